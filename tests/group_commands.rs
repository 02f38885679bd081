//! The commands of a running group, as a person uses them: nodes in processes of their own on loopback.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use quorate::clock::Stopwatch;

const GROUP: &str = "6a1f4c0e9b7d4e25a3c8d10f52b6e7f3";

fn quorate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Standard output of a command that has to exit with this code.
fn exits(code: i32, arguments: &[&str]) -> String {
    let output = quorate(arguments);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}:\n{out}{err}");
    if code == 0 { out.to_owned() } else { format!("{out}{err}") }
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = quorate(&[arguments, &["--json"]].concat());
    let out = text(&output.stdout);
    serde_json::from_str(out).unwrap_or_else(|error| panic!("{error}: {out}{}", text(&output.stderr)))
}

/// A port that is free now.
fn port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A node's process. Its output goes to a file, so that nobody has to read it.
struct Process(Child);

impl Process {
    fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

struct Group {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    nodes: Vec<Option<Process>>,
}

impl Group {
    /// Nodes n1, n2 … with these lines in their files. The first founds the group, and the others join.
    fn start(more: &[&str]) -> Group {
        let dir = tempfile::tempdir().unwrap();
        let ports: Vec<u16> = more.iter().map(|_| port()).collect();
        let mut group = Group { dir, ports, nodes: Vec::new() };
        let seeds: Vec<String> = group.ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        for (at, more) in more.iter().enumerate() {
            let text = format!(
                "group = \"{GROUP}\"\nnode = \"n{}\"\nlisten = \"127.0.0.1:{}\"\nfound = {}\nseeds = [{}]\n\
                 heartbeat_ms = 50\nelection_timeout_ms = 300\nbackoff_max_ms = 100\n{more}",
                at + 1,
                group.ports[at],
                at == 0,
                seeds.join(", "),
            );
            fs::write(group.file(at), text).unwrap();
            group.nodes.push(None);
            group.run(at);
        }
        group
    }

    /// Three nodes that all count.
    fn of_three() -> Group {
        let group = Group::start(&["", "", ""]);
        group.until("three members that count", |status| {
            status["nodes"].as_array().unwrap().iter().filter(|row| row["admission"] == "full").count() == 3
        });
        group
    }

    fn file(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("n{}.toml", at + 1))
    }

    fn config(&self) -> String {
        self.file(0).to_str().unwrap().to_owned()
    }

    fn at(&self, at: usize) -> String {
        format!("127.0.0.1:{}", self.ports[at])
    }

    fn output(&self, at: usize) -> PathBuf {
        self.file(at).with_extension("out")
    }

    fn run(&mut self, at: usize) {
        let output = fs::OpenOptions::new().create(true).append(true).open(self.output(at)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args(["node", "--config"])
            .arg(self.file(at))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.nodes[at] = Some(Process(child));
    }

    fn process(&self, at: usize) -> &Process {
        self.nodes[at].as_ref().unwrap()
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at] = None;
    }

    fn status(&self) -> serde_json::Value {
        json(&["status", "--config", &self.config()])
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&serde_json::Value) -> bool) -> serde_json::Value {
        let began = Stopwatch::start();
        loop {
            let status = self.status();
            if holds(&status) {
                return status;
            }
            if began.elapsed() > Duration::from_secs(60) {
                let said: Vec<String> = (0..self.nodes.len())
                    .map(|at| fs::read_to_string(self.output(at)).unwrap_or_default())
                    .collect();
                panic!("{what}: {status:#}\n{}", said.join("\n---\n"));
            }
            std::thread::yield_now();
        }
    }

    /// Which node leads.
    fn master(&self) -> usize {
        let status = self.until("a master", |status| status["master"].is_string());
        let name = status["master"].as_str().unwrap();
        name.trim_start_matches('n').parse::<usize>().unwrap() - 1
    }
}

fn row<'a>(status: &'a serde_json::Value, node: &str) -> &'a serde_json::Value {
    let rows = status["nodes"].as_array().unwrap();
    rows.iter().find(|row| row["node"] == node).unwrap_or_else(|| panic!("{node}: {status:#}"))
}

/// Whether a node is listed, and with this.
fn is(status: &serde_json::Value, node: &str, field: &str, value: &str) -> bool {
    status["nodes"].as_array().unwrap().iter().any(|row| row["node"] == node && row[field] == value)
}

#[test]
fn keys_are_written_and_read_through_any_node_and_survive_the_master() {
    let mut group = Group::of_three();
    let config = group.config();
    let one = group.at(1);
    assert!(exits(0, &["kv", "put", "--at", &one, "k", "v1"]).ends_with(" committed\n"));
    for at in 0..3 {
        assert_eq!(exits(0, &["kv", "get", "--at", &group.at(at), "k"]), "v1\n");
    }
    let version = json(&["kv", "get", "--config", &config, "k"])["version"].as_u64().unwrap().to_string();
    assert!(exits(1, &["kv", "cas", "--config", &config, "k", "1", "x"]).contains("nothing was written"));
    exits(0, &["kv", "cas", "--config", &config, "k", &version, "v2"]);
    exits(1, &["kv", "cas", "--config", &config, "k", "0", "x"]);
    exits(0, &["kv", "cas", "--config", &config, "new", "0", "x"]);
    assert!(
        exits(0, &["kv", "put", "--policy", "async", "--config", &config, "k2", "v"]).ends_with(" acked\n")
    );

    let master = group.master();
    group.kill(master);
    exits(0, &["kv", "put", "--config", &config, "k", "v3"]);
    assert_eq!(exits(0, &["kv", "get", "--config", &config, "k"]), "v3\n");
    let status = group.status();
    let dead = format!("n{}", master + 1);
    assert_eq!(row(&status, &dead)["part"], serde_json::Value::Null);
    assert!(row(&status, &dead)["silent"].as_str().unwrap().contains("connect"));
    group.run(master);
    let same = group.until("the dead one to catch up", |status| {
        let row = row(status, &dead);
        row["part"] == "replica" && row["lag"] == 0 && row["applied"] == status["committed"]
    });
    assert_eq!(row(&same, &dead)["term"], same["term"]);
    assert_eq!(exits(0, &["kv", "get", "--stale", "--at", &group.at(master), "k"]), "v3\n");
    exits(0, &["kv", "delete", "--config", &config, "k"]);
    assert!(exits(1, &["kv", "get", "--config", &config, "k"]).contains("not there"));
}

#[test]
fn the_status_is_a_table_or_json_and_the_exit_code_says_whether_somebody_leads() {
    let mut group = Group::of_three();
    let table = exits(0, &["status", "--at", &group.at(2)]);
    let head = table.lines().next().unwrap();
    assert!(head.starts_with(&format!("group {GROUP}: n")) && head.contains(" leads in term "), "{table}");
    for word in
        ["node", "part", "term", "master", "durable", "committed", "lag", "health", "electable", "full"]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
    // Beside the table, a line for each node says for whom it keeps its log.
    assert_eq!(table.lines().count(), 8, "{table}");
    for node in ["n1", "n2", "n3"] {
        let line = format!("\n{node} has its log from VLSN 1 on, for ");
        assert!(table.contains(&line) && table.contains("engine from "), "{table}");
    }
    // A wrong group is a named error.
    let wrong = exits(1, &["status", "--at", &group.at(0), "--group", &"0".repeat(31).replacen("", "1", 1)]);
    assert!(wrong.contains(GROUP), "{wrong}");
    let group_id = "0".repeat(31).replacen("", "1", 1);
    let wrong = exits(1, &["slots", "list", "--at", &group.at(0), "--group", &group_id]);
    assert!(wrong.contains(&format!("belongs to group {GROUP}")), "{wrong}");
    let unnamed = exits(1, &["slots", "create", "", "--at", &group.at(0)]);
    assert!(unnamed.contains("give its name"), "{unnamed}");
    let master = group.master();
    for at in (0..3).filter(|at| *at != master) {
        group.kill(at);
    }
    // Alone, it can't know whether it still leads, and steps down.
    let alone = group.until("the last one to step down", |status| status["master"].is_null());
    assert!(
        ["candidate", "waiting"].map(Into::into).contains(&row(&alone, &format!("n{}", master + 1))["part"])
    );
    assert!(exits(1, &["status", "--at", &group.at(master)]).contains("no node that answers leads"));
}

#[test]
fn slots_are_created_moved_dropped_and_shown() {
    let group = Group::start(&["", "slot = \"own\"\n"]);
    let config = group.config();
    group.until("two members that count, and the slot of one", |status| {
        let full =
            status["nodes"].as_array().unwrap().iter().filter(|row| row["admission"] == "full").count();
        full == 2 && status["slots"].as_array().unwrap().iter().any(|slot| slot["name"] == "own")
    });
    // Another change may be on its way: then it says so, and is told again.
    let change = |code: i32, arguments: &[&str]| {
        let arguments = [&["slots"], arguments, &["--config", &config]].concat();
        let began = Stopwatch::start();
        loop {
            let output = quorate(&arguments);
            let said = [text(&output.stdout), text(&output.stderr)].concat();
            if said.contains("try again in a moment") && began.elapsed() < Duration::from_secs(60) {
                continue;
            }
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
            return said;
        }
    };
    assert!(change(0, &["create", "backup", "--from", "1"]).starts_with("committed at VLSN "));
    let listed = exits(0, &["slots", "list", "--config", &config]);
    assert!(listed.contains("backup from VLSN 1\n") && listed.contains("own from VLSN "), "{listed}");
    let status = group.until("both to keep it", |status| {
        let pins = |node| row(status, node)["pins"].as_array().cloned().unwrap_or_default();
        ["n1", "n2"].iter().all(|node| pins(node).iter().any(|pin| pin["owner"] == "slot:backup"))
    });
    for node in ["n1", "n2"] {
        let pins = row(&status, node)["pins"].as_array().unwrap();
        let pin = pins.iter().find(|pin| pin["owner"] == "slot:backup").unwrap();
        assert_eq!(pin["from"], 1);
        assert!(pin["bytes"].as_u64() > Some(0) && pin["held_ms"].is_u64(), "{pin}");
    }
    assert!(exits(0, &["status", "--config", &config]).contains("slot backup from VLSN 1\n"));
    assert!(change(1, &["create", "backup"]).contains("exists already"));
    change(0, &["move", "backup", "2"]);
    assert!(change(1, &["move", "backup", "1"]).contains("does not go back"));
    assert!(change(2, &["move", "backup", "0"]).contains("from 1 on"));
    change(0, &["drop", "backup"]);
    assert!(change(1, &["drop", "backup"]).contains("there is no slot"));
    assert!(!exits(0, &["slots", "list", "--config", &config]).contains("backup"));
}

#[test]
fn a_write_whose_answer_does_not_come_is_unknown_and_can_be_asked_after() {
    let group = Group::of_three();
    let config = group.config();
    exits(0, &["kv", "put", "--config", &config, "k", "v"]);
    let master = group.master();
    let others: Vec<usize> = (0..3).filter(|at| *at != master).collect();
    for at in &others {
        group.process(*at).signal("STOP");
    }
    let at = group.at(master);
    let output = quorate(&["kv", "put", "--at", &at, "--timeout", "2", "k", "later"]);
    let said = text(&output.stderr);
    for at in &others {
        group.process(*at).signal("CONT");
    }
    assert_eq!(output.status.code(), Some(3), "{said}");
    let token = said.lines().find_map(|line| line.strip_prefix("ask later: quorate kv ask ")).unwrap();
    let began = Stopwatch::start();
    let committed = loop {
        let output = quorate(&["kv", "ask", "--config", &config, token]);
        match output.status.code() {
            Some(0) => break true,
            Some(1) if text(&output.stderr).contains("rolled back") => break false,
            _ => assert!(began.elapsed() < Duration::from_secs(60), "{}", text(&output.stderr)),
        }
    };
    let found = exits(0, &["kv", "get", "--config", &config, "k"]);
    assert_eq!(found, if committed { "later\n" } else { "v\n" });
    let other = token.replacen(GROUP, &"1".repeat(32), 1);
    assert!(exits(1, &["kv", "ask", "--config", &config, &other]).contains("the token is of group"));
}

#[test]
fn mastership_is_handed_over_taken_and_laid_down() {
    let group = Group::of_three();
    let config = group.config();
    let to = format!("n{}", (group.master() + 1) % 3 + 1);
    let said = exits(0, &["transfer", "--config", &config, "--to", &to]);
    assert_eq!(said, format!("mastership went to {to}\n"));
    group.until("the heir", |status| status["master"] == to.as_str());
    assert!(exits(1, &["transfer", "--config", &config, "--to", "nobody"]).contains("nobody"));
    let said = exits(0, &["transfer", "--config", &config]);
    assert!(said.starts_with("mastership went to n"), "{said}");
    let next = format!("n{}", (group.master() + 1) % 3 + 1);
    exits(0, &["promote", "--config", &config, &next]);
    let before = group.until("the promoted one", |status| status["master"] == next.as_str());
    assert!(exits(1, &["promote", "--config", &config, "nobody"]).contains("does not answer"));
    assert!(exits(0, &["demote", "--config", &config]).contains("stepped down"));
    group.until("another term", |status| status["term"].as_u64() > before["term"].as_u64());
}

#[test]
fn members_come_go_and_move() {
    let mut group = Group::start(&["", "", "role = \"secondary\"\nregion = \"far\""]);
    let config = group.config();
    let status = group.until("three, of whom two vote", |status| {
        is(status, "n2", "admission", "full") && is(status, "n3", "standing", "full")
    });
    assert_eq!(
        (&row(&status, "n3")["role"], &row(&status, "n3")["region"]),
        (&"secondary".into(), &"far".into())
    );
    // One change at a time: the group's own may be under way.
    let change = |code: i32, arguments: &[&str]| {
        let arguments = [&["members"], arguments, &["--config", &config]].concat();
        loop {
            let output = quorate(&arguments);
            let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
            if !said.contains("try again in a moment") {
                assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
                return said;
            }
        }
    };
    assert!(change(0, &["add", "n4", "--address", "127.0.0.1:1", "--role", "arbiter"]).contains("committed"));
    assert_eq!(row(&group.status(), "n4")["admission"], "learner");
    assert!(change(1, &["add", "n4"]).contains("is a member already"));
    change(0, &["move", "n4", "127.0.0.1:2"]);
    assert_eq!(row(&group.status(), "n4")["address"], "tcp://127.0.0.1:2");
    assert!(change(1, &["promote", "n2"]).contains("full member already"));
    change(0, &["remove", "n4"]);
    assert!(change(1, &["remove", "n4"]).contains("no member"));
    assert_eq!(group.status()["nodes"].as_array().unwrap().len(), 3);
    // A node that was removed and comes back with an empty directory joins again.
    change(0, &["remove", "n3"]);
    group.kill(2);
    fs::remove_dir_all(group.dir.path().join("n3")).unwrap();
    group.run(2);
    group.until("it to be back", |status| {
        let rows = status["nodes"].as_array().unwrap();
        rows.iter().any(|row| row["node"] == "n3" && row["role"] == "secondary" && row["lag"] == 0)
    });
}

#[test]
fn the_nodes_of_a_group_are_compared_by_one_command() {
    let mut group = Group::of_three();
    let config = group.config();
    for key in 0..20 {
        exits(0, &["kv", "put", "--config", &config, &format!("k{key}"), "v"]);
    }
    let table = exits(0, &["verify", "--config", &config]);
    assert!(table.contains("the logs are equal from VLSN 1 to "), "{table}");
    let value = json(&["verify", "--config", &config, "--log-only"]);
    assert_eq!((&value["verdict"], value["log"]["nodes"].as_array().unwrap().len()), (&"equal".into(), 3));
    let replica = (group.master() + 1) % 3;
    group.kill(replica);
    let said = exits(3, &["verify", "--config", &config]);
    assert!(said.contains(&format!("n{} was left out: ", replica + 1)), "{said}");
    exits(2, &["verify"]);
}

#[test]
fn sigterm_and_sigint_close_a_node_in_order() {
    let mut group = Group::of_three();
    exits(0, &["kv", "put", "--config", &group.config(), "k", "v"]);
    for (at, signal) in [(0, "TERM"), (1, "INT"), (2, "TERM")] {
        let mut process = group.nodes[at].take().unwrap();
        process.signal(signal);
        assert_eq!(process.0.wait().unwrap().code(), Some(0), "{signal}");
        let verified =
            exits(0, &["log", "verify", group.dir.path().join(format!("n{}", at + 1)).to_str().unwrap()]);
        assert!(verified.ends_with("no damage\n"), "{verified}");
    }
}

#[test]
fn a_founder_that_lost_its_directory_joins_its_living_group() {
    let mut group = Group::of_three();
    exits(0, &["kv", "put", "--config", &group.config(), "k", "v"]);
    group.kill(0);
    fs::remove_dir_all(group.dir.path().join("n1")).unwrap();
    exits(0, &["kv", "put", "--config", &group.config(), "k", "newer"]);
    group.run(0);
    let status = group.until("n1 to be back", |status| is(status, "n1", "standing", "full"));
    assert_eq!(row(&status, "n1")["part"], "replica");
    assert_eq!(exits(0, &["kv", "get", "--at", &group.at(0), "k"]), "newer\n");
}

#[test]
fn files_and_arguments_that_make_no_sense_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let path = file.to_str().unwrap();
    let refused = |more: &str| {
        fs::write(&file, format!("group = \"{GROUP}\"\nnode = \"n1\"\n{more}")).unwrap();
        exits(1, &["node", "--config", path])
    };
    assert!(refused("heartbeat_ms = 0").contains("heartbeat_ms"));
    assert!(refused("hartbeat_ms = 5").contains("hartbeat_ms"));
    assert!(refused("listen = \"db1:7000\"").contains("plaintext"));
    assert!(exits(1, &["node", "--config", "/nowhere.toml"]).contains("/nowhere.toml"));
    for arguments in [
        &["node"][..],
        &["kv", "put", "k", "v"],
        &["kv", "cas", "--at", "127.0.0.1:1", "k", "x", "v"],
        &["kv", "get", "--at", "nowhere", "k"],
        &["kv", "put", "--at", "127.0.0.1:1", "--policy", "most", "k", "v"],
        &["status"],
        &["members", "add", "--at", "127.0.0.1:1"],
        &["members", "add", "--at", "127.0.0.1:1", "n1", "--role", "king"],
        &["promote", "--at", "127.0.0.1:1"],
        &["demo", "--failover", "--replicas", "2"],
        &["demo", "--cycles", "2"],
    ] {
        exits(2, arguments);
    }
    let nobody = format!("127.0.0.1:{}", port());
    let told = exits(1, &["kv", "get", "--at", &nobody, "--group", GROUP, "--timeout", "1", "k"]);
    assert!(told.contains(&nobody), "{told}");
    assert!(exits(1, &["status", "--at", &nobody]).contains(&nobody));
}

#[test]
fn values_come_from_standard_input_and_go_out_as_they_are() {
    let group = Group::start(&[""]);
    let config = group.config();
    group.master();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["kv", "put", "--config", &config, "k", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &bytes).unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && said.ends_with(" committed\n"), "{said}");
    let output = quorate(&["kv", "get", "--config", &config, "k"]);
    assert_eq!(output.stdout[..100_000], bytes);
    assert_eq!(output.stdout[100_000..], *b"\n");
}

#[test]
fn a_node_says_where_it_listens_and_what_becomes_of_it() {
    let group = Group::start(&[""]);
    let mut said = String::new();
    // It is told a moment after it is so.
    group.until("word of the mastership", |_| {
        said = fs::read_to_string(group.output(0)).unwrap();
        said.contains("master in term ")
    });
    assert!(said.contains(&format!("n1 listens at tcp://{}\n", group.at(0))), "{said}");
}

#[test]
fn the_failover_demo_finds_every_answer_in_the_logs() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = dir.path().join("nodes");
    let value = json(&["demo", "--failover", "--cycles", "2", "--dir", nodes.to_str().unwrap()]);
    assert_eq!((&value["identical"], &value["flaws"]), (&true.into(), &serde_json::json!([])), "{value:#}");
    assert_eq!((value["failover_ms"].as_array().unwrap().len(), &value["cycles"]), (2, &2.into()));
    assert!(value["writes"].as_u64().unwrap() > 100 && value["worst_ms"].as_u64().unwrap() > 0, "{value:#}");
    for node in ["n1", "n2", "n3"] {
        exits(0, &["log", "verify", Path::new(&nodes).join(node).to_str().unwrap()]);
    }
}

#[test]
fn the_five_commands_of_the_readme_work_as_they_stand_there() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let block = readme.split("```sh\n").find(|block| block.starts_with("cat > group.toml")).unwrap();
    let mut script = block.split("```").next().unwrap().to_owned();
    for taken in ["7001", "7002", "7003"] {
        script = script.replace(taken, &port().to_string());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new(env!("CARGO_BIN_EXE_quorate")).parent().unwrap().to_str().unwrap();
    let output = Command::new("bash")
        .arg("-c")
        // Job control, as in a shell that a person types into; and nothing is left running.
        .arg(format!("set -m; trap 'kill -9 $(jobs -p) 2>/dev/null; wait' EXIT\n{script}"))
        .current_dir(dir.path())
        .env("PATH", format!("{path}:{}", std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.ends_with("hello\n"), "{out}{err}");
    assert!(out.starts_with("version ") && out.contains(" leads in term "), "{out}{err}");
}

/// Nodes with a log of small segments, and so many keys that some are sealed. They were stopped in good order.
fn filled(nodes: usize) -> Group {
    let more = "segment_bytes = 65536\nmax_payload = 32768\nmax_frame = 65536\nbatch_bytes = 16384\n";
    let mut group = Group::start(&vec![more; nodes]);
    group.until("all to count", |status| {
        status["nodes"].as_array().unwrap().iter().filter(|row| row["admission"] == "full").count() == nodes
    });
    for key in 0..12 {
        exits(0, &["kv", "put", "--config", &group.config(), &format!("k{key}"), &"v".repeat(20_000)]);
    }
    group.until("all to be at rest", |status| {
        let rows = status["nodes"].as_array().unwrap();
        rows.iter().all(|row| row["durable"] == status["committed"] && row["applied"] == status["committed"])
    });
    let at = nodes - 1;
    group.process(at).signal("TERM");
    assert!(group.nodes[at].as_mut().unwrap().0.wait().unwrap().success());
    group.kill(at);
    group
}

/// The segments of a node's log.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    found.sort();
    found
}

/// Flips a byte of the first key's value in a segment.
fn flip(segment: &Path) {
    let mut bytes = fs::read(segment).unwrap();
    let at = bytes.windows(100).position(|some| some == [b'v'; 100]).unwrap();
    bytes[at + 50] ^= 1;
    fs::write(segment, bytes).unwrap();
}

#[test]
fn a_stopped_nodes_log_is_repaired_from_a_running_node_and_never_dropped_beside_others() {
    let mut group = filled(3);
    let path = group.file(2).with_extension("");
    let dir = path.to_str().unwrap();
    assert_eq!(exits(0, &["log", "repair", dir]), "no damage\n");
    let running = group.file(0).with_extension("");
    assert!(exits(1, &["log", "repair", running.to_str().unwrap()]).contains("is in use by a running node"));
    let first = segments(&path)[0].clone();
    flip(&first);
    let damaged = fs::read(&first).unwrap();
    let said = exits(1, &["log", "repair", dir]);
    assert!(said.contains("DAMAGE in ") && said.contains("--from ADDRESS would fetch"), "{said}");
    let refused = exits(1, &["log", "repair", dir, "--drop"]);
    // In the order in which they came to be members.
    let named = refused.split_once("several nodes with data (").and_then(|(_, rest)| rest.split_once(')'));
    let all = named.is_some_and(|(names, _)| {
        let mut names: Vec<&str> = names.split(", ").collect();
        names.sort_unstable();
        names == ["n1", "n2", "n3"]
    });
    // If the list of members is in what is damaged, that is the reason.
    assert!(all || refused.contains("say so by --alone"), "{refused}");
    // Nobody listens there.
    let nobody = format!("127.0.0.1:{}", port());
    let said = exits(1, &["log", "repair", dir, "--from", &nobody]);
    assert!(said.contains("is not healed") && said.contains("\n1 damaged places remain\n"), "{said}");
    assert_eq!(fs::read(&first).unwrap(), damaged, "what was not healed is as it was");
    let said = exits(0, &["log", "repair", dir, "--from", &format!("{nobody},{}", group.at(0))]);
    assert!(
        said.contains("is healed: 1 entries were fetched") && said.ends_with("the log is whole\n"),
        "{said}"
    );
    exits(0, &["log", "verify", dir]);
    group.run(2);
    group.until("it to follow", |status| {
        is(status, "n3", "part", "replica") || is(status, "n3", "part", "master")
    });
    assert_eq!(exits(0, &["kv", "get", "--stale", "--at", &group.at(2), "k0"]).len(), 20_001);
}

#[test]
fn the_log_of_a_node_that_is_alone_is_cut_at_damage_by_order_only_and_what_is_cut_is_kept() {
    let mut group = filled(1);
    let path = group.file(0).with_extension("");
    let dir = path.to_str().unwrap();
    let all = segments(&path);
    assert!(all.len() > 2);
    flip(&all[all.len() - 1]);
    // The node refuses by name, and changes nothing.
    group.run(0);
    assert!(!group.nodes[0].as_mut().unwrap().0.wait().unwrap().success());
    let said = fs::read_to_string(group.output(0)).unwrap();
    assert!(said.contains("quorate log repair"), "{said}");
    flip(&all[1]);
    let said = exits(1, &["log", "repair", dir]);
    assert!(said.contains("--drop would save VLSN "), "{said}");
    assert_eq!(segments(&path), all);
    let refused = exits(1, &["log", "repair", dir, "--drop"]);
    assert!(refused.contains("say so by --alone"), "{refused}");
    assert_eq!(segments(&path), all);
    let said = exits(0, &["log", "repair", dir, "--drop", "--alone"]);
    assert!(said.contains("dropped VLSN ") && said.contains("has to start empty"), "{said}");
    assert!(said.ends_with("the log is whole\n"), "{said}");
    let kept: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("kept in ")).collect();
    assert_eq!(kept.len(), all.len() - 1, "{said}");
    for file in kept {
        assert!(Path::new(file).is_file(), "{file}");
    }
    exits(0, &["log", "verify", dir]);
}
