//! Groups of real processes on machines of their own (network namespaces) under concurrent clients, while processes are
//! killed and stopped, networks parted and cables pulled. What the clients were told is judged twice: by the search-free
//! test of linearizability, and against the logs that are left.
//!
//! Needs root, or whatever else lets `unshare --net` through, and `ip` and `nft`; it says so and passes where they are not.
//! `QUORATE_CYCLES` says how many faults each group lives through, `QUORATE_SEED` which.

#[allow(dead_code, reason = "the command uses more of it")]
#[path = "../src/bin/quorate/failover/check.rs"]
mod check;
#[allow(dead_code, reason = "the command uses more of it")]
#[path = "../src/bin/quorate/service/client.rs"]
mod client;
#[allow(dead_code, reason = "the command uses more of it")]
#[path = "../src/bin/quorate/service/codec.rs"]
mod codec;
#[path = "common/history.rs"]
mod history;
#[path = "common/netns.rs"]
mod netns;
#[allow(dead_code, reason = "the command uses more of it")]
#[path = "../src/bin/quorate/kv_record.rs"]
mod record;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use check::{Call, Logged, Op, Told};
use client::KvClient;
use codec::{Act, Answer};
use history::{History, Outcome, Seen};
use netns::{Lab, Way, address};
use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::log::inspect::{Found, Inspector};
use quorate::runtime::ThreadRuntime;
use quorate::watermark::rest;
use quorate::wire::message::{ControlReply, NodeStatus, Order};
use quorate::{Address, Client, EntryKind, GroupId, Part, Policy, Vlsn, Watermark};
use record::Record;

const GROUP: GroupId = GroupId::from_bits(0xc4a05);
const CLIENTS: usize = 6;
const KEYS: u64 = 8;
/// How long an operation may take: clients of a lost machine come back after that.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a majority may take to go on.
const RECOVERY: Duration = Duration::from_secs(30);

/// Draws that a seed decides.
struct Chance(u64);

impl Chance {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// What befalls a few nodes, or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT later.
    Stop,
    /// They can't talk with the other nodes; clients reach both sides.
    Part,
    /// They hear nothing from the other nodes.
    Deaf,
    /// The other nodes hear nothing from them.
    Mute,
    /// They reach nobody at all.
    Unplug,
    /// All nodes are killed at once.
    AllDie,
}

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Stop, Fault::Part, Fault::Deaf, Fault::Mute, Fault::Unplug, Fault::AllDie];

struct Process(Child);

impl Process {
    fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(id, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// A group on machines of its own.
struct Group {
    lab: Lab,
    dir: tempfile::TempDir,
    nodes: Vec<Option<Process>>,
}

impl Group {
    fn start(count: usize) -> Result<Group, String> {
        let lab = Lab::new(count)?;
        lab.enter();
        let dir = tempfile::tempdir().unwrap();
        let mut text = format!(
            "group = \"{GROUP}\"\nfound = true\nplaintext = \"allowed\"\nheartbeat_ms = 50\n\
             election_timeout_ms = 300\nbackoff_max_ms = 200\npeer_timeout_ms = 1000\n"
        );
        for at in 0..count {
            text += &format!("[[members]]\nnode = \"n{at}\"\naddress = \"{}:7000\"\n", address(at));
        }
        fs::write(dir.path().join("group.toml"), text).unwrap();
        let mut group = Group { lab, dir, nodes: Vec::new() };
        for at in 0..count {
            group.nodes.push(None);
            group.run(at);
        }
        Ok(group)
    }

    fn path(&self, at: usize, extension: &str) -> PathBuf {
        self.dir.path().join(format!("n{at}{extension}"))
    }

    fn run(&mut self, at: usize) {
        let output = self.path(at, ".out");
        let output = fs::OpenOptions::new().create(true).append(true).open(output).unwrap();
        let child = self
            .lab
            .command(at, env!("CARGO_BIN_EXE_quorate"))
            .args(["node", "--until-stdin-ends", "--node", &format!("n{at}"), "--config"])
            .arg(self.dir.path().join("group.toml"))
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.nodes[at] = Some(Process(child));
    }

    fn addresses(&self) -> Vec<Address> {
        (0..self.nodes.len()).map(|at| Address::Tcp(format!("{}:7000", address(at)))).collect()
    }

    /// What each node says of itself, as far as it answers.
    fn ask(&self) -> Vec<Option<NodeStatus>> {
        let ask = |at: Address| {
            let mut client = Client::new(vec![at], std::sync::Arc::new(ThreadRuntime));
            let wait = Wait::Until(deadline_in(Duration::from_millis(500)));
            match client.order(GROUP, Order::Status, wait) {
                Ok(ControlReply::Status(status)) => Some(*status),
                _ => None,
            }
        };
        let addresses = self.addresses();
        std::thread::scope(|scope| {
            let asking: Vec<_> = addresses.into_iter().map(|at| scope.spawn(move || ask(at))).collect();
            asking.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    /// Who leads in the highest term.
    fn master(&self) -> Option<usize> {
        let answers = self.ask();
        let leads = |one: &NodeStatus| (one.part == Part::Master).then_some(one.term);
        let masters = answers.iter().enumerate().filter_map(|(at, one)| Some((leads(one.as_ref()?)?, at)));
        masters.max().map(|(_, at)| at)
    }

    fn befall(&mut self, fault: Fault, victims: &[usize]) {
        let others: Vec<usize> = (0..self.nodes.len()).filter(|at| !victims.contains(at)).collect();
        match fault {
            Fault::Kill | Fault::AllDie => victims.iter().for_each(|at| self.nodes[*at] = None),
            Fault::Stop => self.signal(victims, rustix::process::Signal::STOP),
            Fault::Part => self.lab.part(victims, &others, Way::Both),
            Fault::Deaf => self.lab.part(victims, &others, Way::In),
            Fault::Mute => self.lab.part(victims, &others, Way::Out),
            Fault::Unplug => victims.iter().for_each(|at| self.lab.unplug(*at)),
        }
    }

    fn heal(&mut self, fault: Fault, victims: &[usize]) {
        match fault {
            Fault::Kill | Fault::AllDie => victims.iter().for_each(|at| self.run(*at)),
            Fault::Stop => self.signal(victims, rustix::process::Signal::CONT),
            _ => victims.iter().for_each(|at| self.lab.heal(*at)),
        }
    }

    fn signal(&self, whom: &[usize], signal: rustix::process::Signal) {
        whom.iter().filter_map(|at| self.nodes[*at].as_ref()).for_each(|process| process.signal(signal));
    }

    /// Waits until every node has applied all that the master has.
    fn settle(&self) {
        let began = Stopwatch::start();
        loop {
            let answers = self.ask();
            let whole: Vec<&NodeStatus> = answers.iter().flatten().collect();
            let master = whole.iter().filter(|one| one.part == Part::Master).max_by_key(|one| one.term);
            let last = master.and_then(|one| one.positions.received);
            if last.is_some()
                && whole.len() == self.nodes.len()
                && whole.iter().all(|one| one.positions.applied == last)
            {
                return;
            }
            assert!(began.elapsed() < RECOVERY, "the nodes do not agree: {answers:#?}");
            rest(Wait::Until(deadline_in(Duration::from_millis(50))));
        }
    }

    fn close(&mut self) {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let mut process = node.take().unwrap();
            process.signal(rustix::process::Signal::TERM);
            assert!(process.0.wait().unwrap().success(), "n{at} closed with an error");
        }
    }

    /// The writes in a node's log.
    fn log(&self, at: usize) -> Vec<Logged> {
        let mut log = Inspector::open(&self.path(at, ""), None).unwrap();
        let mut found = Vec::new();
        while let Some(next) = log.advance().unwrap() {
            let Found::Entry { entry, .. } = next else { panic!("n{at}: {next:?}") };
            let Some(vlsn) = entry.header().vlsn.filter(|_| entry.kind() == EntryKind::DATA) else {
                continue;
            };
            let (key, value, expected) = match Record::decode(entry.payload()).unwrap() {
                Record::Put { key, value } => (key, value, None),
                Record::Cas { key, expected, value } => (key, value, Some(expected.map_or(0, Vlsn::get))),
                Record::Delete { .. } => panic!("nobody deleted anything"),
            };
            found.push(Logged { vlsn: vlsn.get(), key: key.into(), value: value.into(), expected });
        }
        found
    }
}

/// What the clients share.
struct Load {
    began: Stopwatch,
    stopped: AtomicBool,
    history: Mutex<Vec<(usize, Op)>>,
    /// When the latest write that is committed began.
    written: Watermark,
}

impl Load {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for a write that begins from now on to be committed. Says how long that took.
    fn progress(&self) -> Option<Duration> {
        let from = self.now();
        let wait = Wait::Until(deadline_in(RECOVERY));
        let written = self.written.wait(from.as_nanos() as u64 + 1, wait);
        (written == Ok(true)).then(|| self.now() - from)
    }

    fn run(&self, number: usize, addresses: Vec<Address>) {
        let mut kv = KvClient::new(addresses, GROUP).reach(Duration::from_millis(200));
        let mut latest = [0; KEYS as usize];
        let mut chance = Chance(number as u64);
        let mut own = Vec::new();
        while !self.stopped.load(Ordering::SeqCst) {
            let at = chance.draw(KEYS);
            let call = match chance.draw(10) {
                0..4 => Call::Put,
                4..7 => Call::Cas(latest[at as usize]),
                _ => Call::Get,
            };
            let value = ((number as u64) << 32 | own.len() as u64).to_string().into_bytes();
            let key = at.to_string().into_bytes();
            let policy = Policy::MAJORITY;
            let act = match call {
                Call::Put => Act::Put { policy, key: &key, value: &value },
                Call::Cas(expected) => Act::Cas { expected: Vlsn::new(expected), key: &key, value: &value },
                Call::Get => Act::Get { stale: false, key: &key },
            };
            let began = self.now();
            let told = match kv.call(&act, Wait::Until(deadline_in(PATIENCE))) {
                Ok(Answer::Written { version, outcome: quorate::Outcome::Committed }) => {
                    self.written.advance(began.as_nanos() as u64);
                    Told::Wrote(version.get())
                }
                Ok(Answer::Found { version, value }) => Told::Read(version.get(), value),
                Ok(Answer::Absent) => Told::Read(0, Vec::new()),
                Ok(Answer::Differs { found }) => Told::Differs(found.map_or(0, Vlsn::get)),
                Ok(Answer::RolledBack | Answer::Refused { .. } | Answer::NotMaster { .. }) => Told::NotDone,
                Err(error) if !error.may_be_done() => Told::NotDone,
                Ok(_) | Err(_) => Told::Unknown,
            };
            if let Told::Wrote(version) | Told::Read(version, _) | Told::Differs(version) = told {
                latest[at as usize] = version;
            }
            own.push((number, Op { key, value, call, began, ended: self.now(), told }));
        }
        self.history.lock().unwrap().append(&mut own);
    }
}

/// The same history in the words of the judge of linearizability. The log tells what the clients were not told: where
/// writes without an answer stand, and the value of a version that was only named.
fn judged(ops: &[(usize, Op)], log: &[Logged]) -> History {
    let number = |text: &[u8]| std::str::from_utf8(text).unwrap().parse::<u64>().unwrap();
    let places: BTreeMap<&[u8], u64> = log.iter().map(|entry| (&entry.value[..], entry.vlsn)).collect();
    let values: BTreeMap<u64, u64> = log.iter().map(|entry| (entry.vlsn, number(&entry.value))).collect();
    let mut history = History::default();
    for (client, op) in ops {
        let call = match op.call {
            Call::Put => history::Call::Put { value: number(&op.value) },
            Call::Get => history::Call::Get,
            Call::Cas(expected) => history::Call::Cas { expected, value: number(&op.value) },
        };
        let outcome = match &op.told {
            Told::Wrote(version) => Outcome::Wrote(*version),
            Told::Read(version, value) => {
                Outcome::Read(Seen { version: *version, value: (*version > 0).then(|| number(value)) })
            }
            Told::Differs(version) => {
                Outcome::Mismatch(Seen { version: *version, value: values.get(version).copied() })
            }
            Told::NotDone => Outcome::Failed,
            Told::Unknown => match places.get(&op.value[..]) {
                Some(at) => Outcome::Unknown { at: Some(*at) },
                None => Outcome::Failed,
            },
        };
        let nanos = |time: Duration| time.as_nanos() as u64;
        let at = history.begin(*client, number(&op.key), call, nanos(op.began));
        history.end(at, outcome, nanos(op.ended));
    }
    history
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// A group of so many nodes lives through faults.
fn lives(count: usize) {
    let mut group = match Group::start(count) {
        Ok(group) => group,
        Err(why) => {
            eprintln!(
                "SKIPPED: no network namespaces can be made here ({why}); run it as root, with ip and nft"
            );
            return;
        }
    };
    let cycles = from_environment("QUORATE_CYCLES", 3);
    let seed = from_environment("QUORATE_SEED", u64::from(std::process::id()) + count as u64);
    eprintln!("{count} nodes, {cycles} faults, QUORATE_SEED={seed}");
    let load = Load {
        began: Stopwatch::start(),
        stopped: AtomicBool::new(false),
        history: Mutex::default(),
        written: Watermark::new(0),
    };
    let lived = std::thread::scope(|scope| {
        for client in 1..=CLIENTS {
            let (load, addresses) = (&load, group.addresses());
            scope.spawn(move || load.run(client, addresses));
        }
        let mut chance = Chance(seed);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for cycle in 1..=cycles {
                suffer(&mut group, &load, &mut chance, cycle);
            }
            load.progress().expect("the group recovers");
        }));
        load.stopped.store(true, Ordering::SeqCst);
        lived
    });
    let judged = lived.map(|()| {
        let ops = load.history.into_inner().unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(&mut group, &ops)))
    });
    if let Err(panic) | Ok(Err(panic)) = judged {
        group.nodes.clear();
        eprintln!("the nodes' directories are kept in {}", group.dir.keep().display());
        std::panic::resume_unwind(panic);
    }
}

fn suffer(group: &mut Group, load: &Load, chance: &mut Chance, cycle: u64) {
    load.progress().expect("the group recovers");
    let count = group.nodes.len() as u64;
    let fault = FAULTS[chance.draw(FAULTS.len() as u64) as usize];
    let most = if fault == Fault::AllDie { count } else { 1 + chance.draw((count - 1) / 2) };
    let mut victims: Vec<usize> = Vec::new();
    // Mostly those who lead have bad luck.
    victims.extend(group.master().filter(|_| chance.draw(3) > 0));
    while (victims.len() as u64) < most {
        let at = chance.draw(count) as usize;
        if !victims.contains(&at) {
            victims.push(at);
        }
    }
    let led = group.master().is_some_and(|master| victims.contains(&master));
    group.befall(fault, &victims);
    if fault == Fault::AllDie {
        group.heal(fault, &victims);
    }
    let took = load.progress().unwrap_or_else(|| panic!("{fault:?} of {victims:?}: nothing is committed"));
    let who = if led { "the master among them" } else { "the master not among them" };
    eprintln!("{cycle}: {fault:?} {victims:?}, {who}: a write was committed after {} ms", took.as_millis());
    rest(Wait::Until(deadline_in(Duration::from_millis(chance.draw(1500)))));
    if fault != Fault::AllDie {
        group.heal(fault, &victims);
    }
}

fn judge(group: &mut Group, ops: &[(usize, Op)]) {
    group.settle();
    group.close();
    let told: Vec<Op> = ops.iter().map(|(_, op)| op.clone()).collect();
    for at in 0..group.nodes.len() {
        let flaws = check::check(&told, &group.log(at)).err().unwrap_or_default();
        assert!(flaws.is_empty(), "n{at}: {:#?}", &flaws[..flaws.len().min(5)]);
    }
    let tally = judged(ops, &group.log(0)).check().unwrap_or_else(|flaw| panic!("not linearizable: {flaw}"));
    eprintln!("{} operations: {tally:?}", ops.len());
}

#[test]
fn three_processes_on_machines_of_their_own_stay_linearizable() {
    lives(3);
}

#[test]
fn five_processes_on_machines_of_their_own_stay_linearizable() {
    lives(5);
}
