//! The walk-throughs of docs/operating.md, typed into bash as they stand there, against nodes in processes of their own.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A port that is free now.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What is to be typed under these headings of a page, in this order.
fn commands(page: &str, headings: &[&str]) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let mut typed = String::new();
    for heading in headings {
        let (_, part) = page.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
        let part = part.split("\n## ").next().unwrap();
        for block in part.split("```sh\n").skip(1) {
            typed += block.split("```").next().unwrap();
        }
    }
    for taken in ["7001", "7002", "7003", "7004", "7009"] {
        typed = typed.replace(&format!(":{taken}"), &format!(":{}", port()));
    }
    typed
}

/// Types it, and returns everything that was printed.
fn typed(page: &str, headings: &[&str]) -> String {
    let script = commands(page, headings);
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap().to_str().unwrap();
    let output = Command::new("timeout")
        .args(["180", "bash", "-c"])
        // Job control, as in a shell that a person types into; and nothing is left running.
        .arg(format!(
            "set -m; exec 2>&1; trap 'exec > /dev/null 2>&1; kill -9 $(jobs -p); wait' EXIT\n{script}"
        ))
        .current_dir(dir.path())
        .env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let nodes: Vec<String> = ["n1", "n2", "n3", "n4", "r1"]
        .iter()
        .filter_map(|node| fs::read_to_string(dir.path().join(format!("{node}.out"))).ok())
        .collect();
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, nodes.join("\n---\n"));
    said
}

fn walked(heading: &str) -> String {
    typed("docs/operating.md", &["# Three walk-throughs", heading])
}

/// How often this is said.
fn count(said: &str, what: &str) -> usize {
    said.matches(what).count()
}

#[test]
fn a_dead_node_is_replaced_as_the_page_says() {
    let said = walked("## Walk through: a dead node");
    // The bytes that are there, and of how many.
    let fetches = said.lines().find(|line| line.starts_with("n3 fetches a snapshot at VLSN ")).unwrap();
    assert!(fetches.contains(" of 11.45 MiB"), "{said}");
    for engines in ["n1, n2, n3", "n1, n3, n4"] {
        let equal =
            said.lines().any(|line| line.starts_with("the engines are equal at ") && line.ends_with(engines));
        assert!(equal, "{engines}: {said}");
    }
    assert_eq!(
        (count(&said, "the logs are equal from VLSN "), count(&said, "was left out")),
        (2, 0),
        "{said}"
    );
}

#[test]
fn a_group_is_restored_to_a_time_as_the_page_says() {
    let said = walked("## Walk through: back to a time");
    assert!(said.ends_with("hello\n") && !said.contains("mistake"), "{said}");
    for line in
        ["no damage", "log: same: ", " restored up to VLSN ", "new group 0d9f00112233445566778899aabbccdd"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn a_flipped_byte_is_named_and_healed_as_the_page_says() {
    let said = walked("## Walk through: a flipped byte");
    assert!(said.contains("DAMAGE in n2/log/") && said.contains("1 damaged places\n"), "{said}");
    let healed = said
        .find("n2 found 1 damaged places since it opened, and healed 1")
        .unwrap_or_else(|| panic!("{said}"));
    assert!(
        said[healed..].contains("the engines are equal at ") && said[healed..].contains("the logs are equal"),
        "{said}"
    );
    // And with the node stopped.
    assert!(said.contains("--drop would save VLSN ") && said.contains("\nthe log is whole\n"), "{said}");
    assert!(said.ends_with("no damage\n"), "{said}");
}

#[test]
fn what_the_readme_does_when_something_breaks_works_as_it_stands_there() {
    let said = typed("README.md", &["## A group in five commands", "## When something breaks"]);
    assert!(said.contains("\nhello\n") && said.ends_with("no damage\n"), "{said}");
    assert!(said.contains("the engines are equal at VLSN ") && said.contains(": n1, n2, n3\n"), "{said}");
}
