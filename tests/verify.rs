//! The comparison of a group's nodes: real nodes in this process, and the command that asks them.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::GROUP;
use common::nodes::{id, patience, until};
use parking_lot::Mutex;
use quorate::runtime::ThreadRuntime;
use quorate::wire::message::{ControlReply, EngineState, Order};
use quorate::{
    Address, Admission, Client, Config, Engine, EngineError, EngineSnapshot, Entries, Host, Item, NewEntry,
    Node, NodeConfig, Outcome, Policy, Vlsn, VlsnRange,
};

/// What an engine of the tests holds: of every entry the CRC of its payload.
#[derive(Default)]
struct Shelf {
    applied: Option<Vlsn>,
    bytes: Vec<u8>,
}

struct Keeper {
    shelf: Arc<Mutex<Shelf>>,
    /// Whether it can be copied.
    copies: bool,
}

impl Engine for Keeper {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.shelf.lock().applied)
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut shelf = self.shelf.lock();
        for entry in entries.iter() {
            shelf.bytes.extend_from_slice(&crc32fast::hash(entry.payload()).to_le_bytes());
        }
        shelf.applied = Some(entries.range().last());
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.shelf.lock().applied)
    }

    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let shelf = self.shelf.lock();
        let Some(at) = shelf.applied.filter(|_| self.copies) else { return Ok(None) };
        Ok(Some(Box::new(Copied { at, rest: Some(shelf.bytes.clone()), open: Vec::new() })))
    }
}

struct Copied {
    at: Vlsn,
    rest: Option<Vec<u8>>,
    open: Vec<u8>,
}

impl EngineSnapshot for Copied {
    fn at(&self) -> Vlsn {
        self.at
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        let Some(bytes) = self.rest.take() else { return Ok(None) };
        self.open = bytes;
        Ok(Some(Item { name: "shelf".into(), len: None }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let len = self.open.len().min(into.len());
        into[..len].copy_from_slice(&self.open[..len]);
        self.open.drain(..len);
        Ok(len)
    }
}

/// One node, with what outlives it.
struct Place {
    config: NodeConfig,
    shelf: Arc<Mutex<Shelf>>,
    copies: bool,
    node: Option<Node>,
}

impl Place {
    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn engine(&self) -> Box<Keeper> {
        Box::new(Keeper { shelf: Arc::clone(&self.shelf), copies: self.copies })
    }

    fn open(&mut self) {
        self.node = Some(Node::open(self.config.clone(), self.engine(), Host::machine()).unwrap());
    }

    fn address(&self) -> String {
        self.config.base.listen.as_ref().unwrap().to_string()
    }
}

/// Three nodes in a temporary directory.
struct Trio {
    _dir: tempfile::TempDir,
    places: Vec<Place>,
}

impl Trio {
    fn new(copies: [bool; 3]) -> Trio {
        let dir = tempfile::tempdir().unwrap();
        let mut places: Vec<Place> = Vec::new();
        for (at, copies) in copies.into_iter().enumerate() {
            let name = format!("n{}", at + 1);
            let mut base = Config::new(GROUP, id(&name), dir.path().join(&name));
            base.segment_bytes = 64 << 10;
            base.max_payload = 8 << 10;
            base.heartbeat = Duration::from_millis(20);
            base.listen = Some(Address::Tcp("127.0.0.1:0".into()));
            base.backoff_max = Duration::from_millis(100);
            base.lazy_flush = Duration::from_millis(20);
            let mut config = NodeConfig::new(base);
            config.election_timeout = Duration::from_millis(300);
            config.seeds = places.iter().filter_map(|place| place.config.base.listen.clone()).collect();
            let mut place = Place { config, shelf: Arc::default(), copies, node: None };
            let start = if at == 0 { Node::create } else { Node::join };
            let node = start(place.config.clone(), place.engine(), Host::machine()).unwrap();
            place.config.base.listen = node.address().cloned();
            place.node = Some(node);
            places.push(place);
        }
        let trio = Trio { _dir: dir, places };
        until("three members that count", || {
            let full = |node: &Node| {
                node.members().iter().filter(|one| one.admission == Admission::Full).count() == 3
            };
            trio.places.iter().all(|place| full(place.node()))
        });
        trio
    }

    fn master(&self) -> Option<&Node> {
        self.places.iter().filter_map(|place| place.node.as_ref()).find(|node| node.leads().is_some())
    }

    /// Writes one entry, through whoever leads.
    fn write(&self, payload: &[u8]) -> Vlsn {
        let mut vlsn = None;
        until("a write", || {
            let Some(master) = self.master() else { return false };
            let Ok(ticket) = master.append(&[NewEntry::data(payload)], Policy::MAJORITY) else {
                return false;
            };
            vlsn = Some(ticket.token.vlsn);
            matches!(master.commit(&ticket, patience()), Ok(Outcome::Committed))
        });
        vlsn.unwrap()
    }

    /// Writes some segments full: every payload is told by its number. The place of each in the log.
    fn fill(&self) -> Vec<Vlsn> {
        let places = (0..400).map(|number| self.write(&payload(number))).collect();
        self.settle();
        places
    }

    /// Waits until everybody that is up has, and knows, everything.
    fn settle(&self) {
        until("everybody to have everything", || {
            let last = self.master().and_then(|master| master.last());
            let nodes = || self.places.iter().filter_map(|place| place.node.as_ref());
            last.is_some()
                && nodes().all(|node| {
                    let positions = node.positions();
                    node.committed() == last.map(|at| at.vlsn)
                        && positions.applied == positions.durable
                        && positions.durable == node.committed()
                })
        });
    }

    fn at(&self) -> String {
        self.places.iter().map(Place::address).collect::<Vec<_>>().join(",")
    }

    /// The command's exit code, what it prints as JSON, and as a table.
    fn verify(&self, more: &[&str]) -> (i32, serde_json::Value) {
        let at = self.at();
        let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args([&["verify", "--json", "--at", &at][..], more].concat())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{said}"));
        (output.status.code().unwrap(), value)
    }

    fn table(&self, more: &[&str]) -> String {
        let at = self.at();
        let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
            .args([&["verify", "--at", &at][..], more].concat())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The segment file of a node that holds this payload, sealed, and where.
    fn find(&self, node: usize, payload: &[u8]) -> (PathBuf, usize) {
        let log = self.places[node].config.base.dir.join("log");
        let mut files: Vec<PathBuf> = fs::read_dir(log).unwrap().map(|file| file.unwrap().path()).collect();
        // Others come and go: a segment is made under another name ahead of need.
        files.retain(|path| path.extension().is_some_and(|kind| kind == "seg"));
        files.sort();
        let found = files.into_iter().find_map(|path| {
            let bytes = fs::read(&path).unwrap();
            let at = bytes.windows(payload.len()).position(|window| window == payload)?;
            Some((path, at))
        });
        found.unwrap()
    }
}

fn payload(number: u32) -> Vec<u8> {
    let mut payload = format!("entry {number:05} ").into_bytes();
    payload.resize(1000, b'.');
    payload
}

/// Changes a byte of an entry's payload, and its last four so that the CRC stays: nothing but the bytes tells.
fn forge(entry: &mut [u8]) {
    let crc = crc32fast::hash(&entry[4..]);
    assert_eq!(entry[..4], crc.to_le_bytes(), "an entry stands there");
    let end = entry.len();
    entry[end - 100] ^= 1;
    entry[end - 4..].fill(0);
    let base = crc32fast::hash(&entry[4..]);
    // Each bit of the four bytes flips a set of the CRC's bits: which of them together make the difference?
    let mut rows: Vec<(u32, u32)> = (0..32)
        .map(|bit| {
            entry[end - 4..].copy_from_slice(&(1u32 << bit).to_le_bytes());
            (crc32fast::hash(&entry[4..]) ^ base, 1 << bit)
        })
        .collect();
    let (mut missing, mut bits) = (crc ^ base, 0);
    for pivot in 0..32 {
        let Some(at) = rows.iter().position(|(effect, _)| effect & (1 << pivot) != 0) else { continue };
        let row = rows.swap_remove(at);
        for (effect, made_of) in &mut rows {
            if *effect & (1 << pivot) != 0 {
                *effect ^= row.0;
                *made_of ^= row.1;
            }
        }
        if missing & (1 << pivot) != 0 {
            missing ^= row.0;
            bits ^= row.1;
        }
    }
    assert_eq!(missing, 0);
    entry[end - 4..].copy_from_slice(&bits.to_le_bytes());
    assert_eq!(crc32fast::hash(&entry[4..]), crc);
}

#[test]
fn three_nodes_that_hold_the_same_are_equal_also_while_they_write() {
    let trio = Trio::new([true; 3]);
    let places = trio.fill();
    let (code, value) = trio.verify(&[]);
    assert_eq!((code, &value["verdict"]), (0, &"equal".into()), "{value:#}");
    assert_eq!((&value["log"]["first"], &value["log"]["difference"]), (&1.into(), &serde_json::Value::Null));
    assert_eq!(value["log"]["to"], value["log"]["last"]);
    assert!(value["log"]["to"].as_u64() >= places.last().map(|at| at.get()), "{value:#}");
    assert_eq!(value["engine"]["sides"], serde_json::json!([["n1", "n2", "n3"]]), "{value:#}");
    assert!(value["engine"]["at"].as_u64() > value["log"]["last"].as_u64(), "the mark comes behind");
    let table = trio.table(&["--log-only"]);
    assert!(table.contains("the logs are equal from VLSN 1 to ") && !table.contains("engines"), "{table}");

    let (stop, written) = (AtomicBool::new(false), Mutex::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                trio.write(&payload(7));
                *written.lock() += 1;
            }
        });
        let mut before = 0;
        for _ in 0..3 {
            until("writes to go on", || *written.lock() > before);
            before = *written.lock();
            let (code, value) = trio.verify(&[]);
            if code != 0 {
                stop.store(true, Ordering::SeqCst);
            }
            assert_eq!((code, &value["verdict"]), (0, &"equal".into()), "{value:#}");
            assert_eq!(value["engine"]["sides"], serde_json::json!([["n1", "n2", "n3"]]), "{value:#}");
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn an_entry_that_was_forged_with_its_checksums_right_is_found_and_named() {
    let mut trio = Trio::new([false; 3]);
    let places = trio.fill();
    trio.places[1].node = None;
    // Two of them: the first is named.
    for number in [150, 120] {
        let (path, at) = trio.find(1, &payload(number));
        let mut bytes = fs::read(&path).unwrap();
        forge(&mut bytes[at - 36..at + 1000]);
        fs::write(&path, bytes).unwrap();
    }
    trio.places[1].open();
    trio.settle();
    let (code, value) = trio.verify(&[]);
    assert_eq!((code, &value["verdict"]), (1, &"different".into()), "{value:#}");
    assert_eq!(value["log"]["difference"]["at"], places[120].get(), "{value:#}");
    assert_eq!(value["log"]["difference"]["sides"], serde_json::json!([["n1", "n3"], ["n2"]]));
    assert_eq!(value["engine"]["no_snapshots"], serde_json::json!(["n1", "n2", "n3"]));
    let table = trio.table(&[]);
    let line = format!("the logs differ first at VLSN {}: n1, n3 | n2", places[120]);
    assert!(table.contains(&line) && table.contains("n2 takes no snapshots"), "{table}");
}

#[test]
fn an_entry_that_is_damaged_under_a_running_node_is_named_and_the_rest_compared() {
    let trio = Trio::new([false; 3]);
    let places = trio.fill();
    let (path, at) = trio.find(2, &payload(200));
    // In place, as a disk would: the node has the file mapped, and has verified the entry before.
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"#", at as u64 + 50).unwrap();
    let (code, value) = trio.verify(&["--log-only"]);
    assert_eq!((code, &value["verdict"]), (1, &"different".into()), "{value:#}");
    let log = &value["log"];
    assert_eq!((&log["to"], &log["difference"]), (&log["last"], &serde_json::Value::Null), "{value:#}");
    let gap = &log["gaps"][0];
    assert_eq!((&gap["node"], &gap["damaged"]), (&"n3".into(), &true.into()), "{value:#}");
    assert_eq!((&gap["first"], log["gaps"].as_array().unwrap().len()), (&places[200].get().into(), 1));
    // Who found it has it healed, perhaps before that was looked at once more.
    let why = if gap["healed"] == true { "was damaged, and has been healed since" } else { "is damaged" };
    assert_eq!(gap["why"], format!("its entry {} {why}", places[200]), "{value:#}");
    common::nodes::until("it to be healed", || trio.verify(&["--log-only"]).0 == 0);
    let mut client =
        Client::new(trio.places[2].config.base.listen.clone().into_iter().collect(), Arc::new(ThreadRuntime));
    let mut ask = |first: Vlsn, last: Vlsn| {
        let range = VlsnRange::new(first, last).unwrap();
        client.order(GROUP, Order::Digest { range }, patience()).unwrap()
    };
    let before = places[200].previous().unwrap();
    let ControlReply::Digest(good) = ask(Vlsn::FIRST, before) else { panic!("a digest") };
    assert_eq!((good.range.last(), good.last.vlsn), (before, before));
    let ControlReply::Refused(why) = ask(Vlsn::FIRST, Vlsn::new(1 << 40).unwrap()) else { panic!("refused") };
    assert!(why.contains("beyond what this node can vouch for"), "{why}");
}

#[test]
fn an_engine_whose_store_was_changed_behind_its_back_is_found_and_one_that_is_no_copy_is_said_so() {
    let trio = Trio::new([true, true, false]);
    trio.fill();
    let (code, value) = trio.verify(&[]);
    assert_eq!((code, &value["engine"]["no_snapshots"]), (0, &serde_json::json!(["n3"])), "{value:#}");
    trio.places[0].shelf.lock().bytes[40] ^= 1;
    let (code, value) = trio.verify(&[]);
    assert_eq!((code, &value["verdict"]), (1, &"different".into()), "{value:#}");
    assert_eq!(value["log"]["difference"], serde_json::Value::Null);
    let sides = value["engine"]["sides"].as_array().unwrap();
    assert_eq!(sides.len(), 2, "{value:#}");
    // The status tells the last digest, and the log where it was taken.
    let at = Vlsn::new(value["engine"]["at"].as_u64().unwrap()).unwrap();
    let engine = trio.places[1].node().status().keeping.engine.unwrap();
    assert_eq!(engine.at, at);
    assert!(matches!(engine.state, EngineState::Digest(_)), "{engine:?}");
    assert_eq!(trio.places[2].node().status().keeping.engine.unwrap().state, EngineState::NoSnapshots);
}

#[test]
fn a_node_that_is_down_is_named_and_what_was_compared_does_not_count_as_all() {
    let mut trio = Trio::new([true; 3]);
    trio.fill();
    let down = trio.places.iter().position(|place| place.node().leads().is_none()).unwrap();
    trio.places[down].node = None;
    let (code, value) = trio.verify(&[]);
    assert_eq!((code, &value["verdict"]), (3, &"incomplete".into()), "{value:#}");
    let name = format!("n{}", down + 1);
    assert_eq!(value["left_out"][0]["node"], name, "{value:#}");
    assert!(value["left_out"][0]["why"].as_str().unwrap().contains("connect"), "{value:#}");
    assert_eq!(value["engine"]["sides"][0].as_array().unwrap().len(), 2, "{value:#}");
    let left = trio.places.iter().position(|place| place.node.is_some()).unwrap();
    let other = (0..3).find(|at| ![down, left].contains(at)).unwrap();
    trio.places[other].node = None;
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["verify", "--at", &trio.places[left].address()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is nothing to compare"), "{said}");
}
