//! Processes that die at a system call, for real: strace ends them by SIGKILL as they enter the Nth write, sync, rename,
//! removal, creation or allocation of theirs. Afterwards a restore is whole, or is refused by name and can be made anew;
//! and a node, started again, is as the others are.
//!
//! A node has many threads, and the Nth call of a kind is the first thread's that comes so far: so also the Nth of each kind that
//! touches one file is a place.
//!
//! Needs strace; says so and passes where there is none. Some of the node's places are tried, `QUORATE_KILLS=all` tries each;
//! with `--nocapture` each says what came out.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use quorate::clock::Stopwatch;

const GROUP: &str = "6a1f4c0e9b7d4e25a3c8d10f52b6e7f3";
const OTHER: &str = "0d9f00112233445566778899aabbccdd";
const CALLS: &str =
    "write,pwrite64,pwritev,fsync,fdatasync,rename,unlink,mkdir,rmdir,openat,ftruncate,fallocate";
/// So many places are tried of those at which a node may die.
const FEW: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

fn quorate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn works(arguments: &[&str]) -> String {
    let output = quorate(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A port that is free now.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether there is a strace that may trace.
fn can_trace() -> bool {
    let traced = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let can = traced.as_ref().is_ok_and(|output| output.status.success());
    if !can {
        println!("SKIPPED: strace does not trace here");
    }
    can
}

fn all() -> bool {
    std::env::var("QUORATE_KILLS").is_ok_and(|kills| kills == "all")
}

/// A system call at which a process is to die.
struct Place {
    call: String,
    /// Only calls that touch this file of its directory count.
    file: Option<String>,
    /// The how manieth of one thread.
    at: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} {}", self.call, self.at)?;
        match &self.file {
            Some(file) => write!(to, " of {file}"),
            None => Ok(()),
        }
    }
}

/// The command under strace, which only writes down the calls.
fn watched(log: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-y", "-o"]).arg(log).arg(format!("-etrace={CALLS}"));
    command.arg(env!("CARGO_BIN_EXE_quorate"));
    command
}

/// The command under strace, which kills it there; its directory is `own`.
fn doomed(place: &Place, own: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-o", "/dev/null", &format!("-etrace={}", place.call)]);
    if let Some(file) = &place.file {
        command.arg("-P").arg(own.join(file));
    }
    command.arg(format!("-einject={}:signal=KILL:when={}", place.call, place.at));
    command.arg(env!("CARGO_BIN_EXE_quorate"));
    command
}

/// The calls that were written down, each as often as the thread made it that made most of them: whatever they touched, and those
/// that touched the same file in `own`. A segment has another name each time, and is no such file.
fn places(log: &Path, own: &Path) -> Vec<Place> {
    let inside = format!("{}/", own.display());
    let mut counts: BTreeMap<(String, Option<String>, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let Some((thread, rest)) = line.split_once(char::is_whitespace) else { continue };
        let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
        let known = |name: &str| CALLS.split(',').any(|call| call == name);
        if !known(call) {
            continue;
        }
        *counts.entry((call.to_owned(), None, thread.to_owned())).or_default() += 1;
        let Some((_, file)) = arguments.split_once(&inside) else { continue };
        let file = file.split(['>', '"']).next().unwrap();
        if !file.contains("00000000") {
            *counts.entry((call.to_owned(), Some(file.to_owned()), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most: BTreeMap<(String, Option<String>), usize> = BTreeMap::new();
    for ((call, file, _), count) in counts {
        let most = most.entry((call, file)).or_default();
        *most = count.max(*most);
    }
    let each = most.into_iter().flat_map(|((call, file), count)| {
        (1..=count).map(move |at| Place { call: call.clone(), file: file.clone(), at })
    });
    each.collect()
}

/// What was under way in this node's directory when it died.
fn under_way(own: &Path) -> &'static str {
    if own.join("log/install").exists() {
        "installing"
    } else if fs::read_dir(own.join("snapshot")).is_ok_and(|mut names| names.next().is_some()) {
        "fetching"
    } else if own.join("log").exists() {
        "in its log"
    } else {
        "at its start"
    }
}

/// How often each of these came out, in words.
fn tallied<'a>(outcomes: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut tally = BTreeMap::new();
    for outcome in outcomes {
        *tally.entry(outcome).or_default() += 1;
    }
    tally
}

struct Process(Child);

impl Process {
    fn start(mut command: Command, output: &Path) -> Process {
        let output = fs::OpenOptions::new().create(true).append(true).open(output).unwrap();
        command.stdin(Stdio::piped()).stdout(output.try_clone().unwrap()).stderr(output);
        Process(command.spawn().unwrap())
    }

    /// Whoever it traces, or it itself, is ended.
    fn kill(&mut self) {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let _ended = Command::new("kill").args(["-9", child]).stderr(Stdio::null()).status();
        }
        if children.trim().is_empty() {
            let _ended = self.0.kill();
        }
        // strace ends when whom it traces has: then its locks are free.
        let _ended = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn node(config: &Path, name: &str) -> [String; 5] {
    ["node", "--config", config.to_str().unwrap(), "--node", name].map(str::to_owned)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Stopwatch::start();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

/// A group's file. Everything is small, so that all that can happen happens soon.
fn group(dir: &Path, nodes: &[&str]) -> PathBuf {
    let members: Vec<String> = nodes
        .iter()
        .map(|node| format!("{{ node = \"{node}\", address = \"127.0.0.1:{}\" }}", port()))
        .collect();
    let text = format!(
        "group = \"{GROUP}\"\nfound = true\nsegment_bytes = 131072\nmax_payload = 65536\nkeep_bytes = 0\n\
         retention_every_ms = 50\ncheckpoint_every_ms = 50\nheartbeat_ms = 50\nelection_timeout_ms = 500\n\
         backoff_max_ms = 100\nmembers = [{}]\n\
         archive = {{ dir = \"archive\", every_ms = 50, base_bytes = 262144, bases = 2 }}\n",
        members.join(", ")
    );
    let path = dir.join("group.toml");
    fs::write(&path, text).unwrap();
    path
}

/// Writes a few keys, of some ten KiB each. The master may die meanwhile: then what became of a write is not known.
fn write(config: &str, round: usize, keys: usize) {
    for key in 0..keys {
        let value = format!("{round}.").repeat(6000);
        let put = ["kv", "put", "--timeout", "60", "--config", config, &format!("k{key}"), &value];
        let output = quorate(&put);
        assert!([Some(0), Some(3)].contains(&output.status.code()), "{}", said(&output));
    }
}

#[test]
fn a_restore_that_dies_is_refused_by_name_or_whole() {
    if !can_trace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = group(dir.path(), &["n1"]);
    let config = file.to_str().unwrap();
    let archive = dir.path().join("archive");
    let archive = archive.to_str().unwrap();
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(node(&file, "n1"));
        let _n1 = Process::start(command, &dir.path().join("n1.out"));
        write(config, 1, 40);
        until("a base, and log behind it", || {
            let list = quorate(&["archive", "list", "--json", archive]);
            let list = said(&list);
            let log = list.lines().rfind(|line| line.contains("\"log\"")).is_some();
            log && list.lines().any(|line| line.contains("\"whole\":true"))
        });
        write(config, 2, 3);
        let version = works(&["kv", "get", "--config", config, "--json", "k2"]);
        let version: serde_json::Value = serde_json::from_str(&version).unwrap();
        until("the last value in the archive", || {
            let list = said(&quorate(&["archive", "list", "--json", archive]));
            let last = list.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
            last.filter_map(|one| one["log"][1].as_u64()).max() >= version["version"].as_u64()
        });
    }
    let to = dir.path().join("restored");
    let path = to.to_str().unwrap();
    let restore = ["restore", "--from", archive, "--to", path, "--node", "r1", "--group", OTHER];
    let log = dir.path().join("strace.log");
    assert!(watched(&log).args(restore).output().unwrap().status.success());
    let places = places(&log, &to);
    let small = dir.path().join("r1.toml");
    let text = format!(
        "group = \"{OTHER}\"\nnode = \"r1\"\ndir = \"restored\"\nlisten = \"127.0.0.1:{}\"\n",
        port()
    );
    fs::write(&small, text).unwrap();
    let own = small.to_str().unwrap();
    let opens = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
        command.args(["node", "--config", own]);
        let _r1 = Process::start(command, &dir.path().join("r1.out"));
        let found = works(&["kv", "get", "--timeout", "60", "--config", own, "k2"]);
        assert_eq!(found, format!("{}\n", "2.".repeat(6000)));
        assert_eq!(works(&["kv", "get", "--config", own, "k39"]), format!("{}\n", "1.".repeat(6000)));
    };
    opens();
    let mut outcomes = Vec::new();
    // One thread does everything: those are all calls.
    for place in places.iter().filter(|place| place.file.is_none()) {
        let _gone = fs::remove_dir_all(&to);
        let died = !doomed(place, &to).args(restore).output().unwrap().status.success();
        assert!(died, "{place}");
        let empty = fs::read_dir(&to).map_or(true, |mut names| names.next().is_none());
        if empty {
            outcomes.push("left nothing");
        } else if to.join("state").exists() {
            // Everything was there before this.
            assert!(!quorate(&restore).status.success());
            opens();
            outcomes.push("whole");
            continue;
        } else {
            let again = quorate(&restore);
            let why = said(&again);
            let named = why.contains("did not end: remove the directory") || why.contains("is not empty");
            assert!(!again.status.success() && named, "{place}: {why}");
            let opened = Command::new("timeout")
                .args(["20", env!("CARGO_BIN_EXE_quorate"), "node", "--config", own])
                .output()
                .unwrap();
            assert_eq!(opened.status.code(), Some(1), "{place}: {}", said(&opened));
            assert!(said(&opened).contains("restored"), "{place}: {}", said(&opened));
            outcomes.push("refused");
            fs::remove_dir_all(&to).unwrap();
        }
        works(&restore);
    }
    opens();
    let tally = tallied(outcomes.iter().copied());
    println!("{} kills: {tally:?}", outcomes.len());
    let [nothing, refused, whole] = ["left nothing", "refused", "whole"].map(|outcome| tally.get(outcome));
    assert!(refused > Some(&20) && whole > Some(&0) && nothing > Some(&0), "{tally:?}");
}

#[test]
fn a_node_that_dies_at_a_system_call_comes_back_equal() {
    if !can_trace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = group(dir.path(), &["n1", "n2", "n3"]);
    let config = file.to_str().unwrap();
    let start = |name: &str, mut command: Command| {
        command.args(node(&file, name)).arg("--until-stdin-ends");
        Process::start(command, &dir.path().join(format!("{name}.out")))
    };
    let plain = || Command::new(env!("CARGO_BIN_EXE_quorate"));
    let _others = [start("n1", plain()), start("n2", plain())];
    let mut n3 = start("n3", plain());
    write(config, 0, 30);
    let status = || {
        let output = quorate(&["status", "--json", "--config", config]);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap_or_default()
    };
    let is_back = || {
        let status = status();
        let rows = status["nodes"].as_array().cloned().unwrap_or_default();
        let row = rows.iter().find(|row| row["node"] == "n3").cloned().unwrap_or_default();
        row["standing"] == "full" && row["part"].is_string() && row["applied"] == status["committed"]
    };
    // It comes, is written to, leads, archives, and is written to again; `ended` says when it is over.
    let live = |round: usize, n3: &mut Process| {
        let began = Stopwatch::start();
        let mut dead = || n3.0.try_wait().unwrap().is_some() || began.elapsed() > Duration::from_secs(10);
        while !dead() && !is_back() {}
        if !dead() {
            write(config, round, 12);
            let _elsewhere = quorate(&["transfer", "--to", "n3", "--config", config]);
            write(config, round, 12);
        }
    };
    until("the others to have the beginning of their logs no more", || {
        // What is written moves the slots that keep the log.
        write(config, 0, 10);
        let status = status();
        let rows = status["nodes"].as_array().cloned().unwrap_or_default();
        !rows.is_empty() && rows.iter().all(|row| row["oldest"].as_u64() > Some(1))
    });
    n3.kill();
    let own = dir.path().join("n3");
    fs::remove_dir_all(&own).unwrap();
    let log = dir.path().join("strace.log");
    n3 = start("n3", watched(&log));
    live(1, &mut n3);
    n3.kill();
    let places = places(&log, &own);
    assert!(places.len() > 100, "{}", places.len());
    let said = fs::read_to_string(dir.path().join("n3.out")).unwrap();
    assert!(said.contains("stands on the snapshot at VLSN "), "{said}");
    let tried = if all() { places.len() } else { FEW.min(places.len()) };
    let dies_at = |number: usize, place: &Place, from_nothing: bool| {
        if from_nothing {
            fs::remove_dir_all(&own).unwrap();
        }
        let began = Stopwatch::start();
        let mut n3 = start("n3", doomed(place, &own));
        live(number + 2, &mut n3);
        let died = n3.0.try_wait().unwrap().is_some();
        n3.kill();
        let outcome = if died { under_way(&own) } else { "not at all" };
        let lived = began.elapsed();
        let _n3 = start("n3", plain());
        let began = Stopwatch::start();
        while !is_back() {
            let out = fs::read_to_string(dir.path().join("n3.out")).unwrap();
            assert!(began.elapsed() < PATIENCE, "{place}: {:#}\n{out}", status());
        }
        let verified = quorate(&["verify", "--config", config]);
        let back = began.elapsed();
        assert_ne!(verified.status.code(), Some(1), "{place}: {}", self::said(&verified));
        println!(
            "{place}{}: died {outcome} after {lived:.1?}, equal {back:.1?} later{}",
            if from_nothing { ", from nothing" } else { "" },
            if verified.status.success() { "" } else { ", as far as it was compared" }
        );
        assert_eq!(under_way(&own), "in its log", "{place}: {}", self::said(&verified));
        outcome
    };
    let mut outcomes: Vec<&'static str> = Vec::new();
    for number in 0..tried {
        // Far from each other, so that a few are of all kinds.
        let place = &places[number * places.len() / tried];
        // Every other time it begins with nothing, and so if it did not come to that place with what it had.
        let mut outcome = dies_at(number, place, number % 2 == 0);
        if all() && outcome == "not at all" && number % 2 != 0 {
            outcome = dies_at(number, place, true);
        }
        outcomes.push(outcome);
    }
    n3 = start("n3", plain());
    until("it to be back", is_back);
    let verified = works(&["verify", "--config", config]);
    assert!(
        verified.contains("the engines are equal at VLSN ") && verified.contains("n1, n2, n3"),
        "{verified}"
    );
    n3.kill();
    let archive = dir.path().join("archive");
    let archive = archive.to_str().unwrap();
    works(&["archive", "verify", archive]);
    let tally = tallied(outcomes.iter().copied());
    println!("{tried} places of {}; died: {tally:?}", places.len());
    let lived = tally.get("not at all").copied().unwrap_or_default();
    assert!((tried - lived) * 4 >= tried, "{tally:?}");
}
