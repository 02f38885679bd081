//! A machine that loses its power at every disk operation, one after the other: a node that fetches and installs a snapshot,
//! and a log that rotates and is pruned. Whatever the step, it opens again and comes right.
#![cfg(feature = "sim")]

#[path = "common/history.rs"]
mod history;
#[path = "common/stopping.rs"]
mod stopping;
#[path = "common/store.rs"]
mod store;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use history::Call;
use parking_lot::Mutex;
use quorate::clock::Wait;
use quorate::disk::Disk;
use quorate::ids::Term;
use quorate::log::{Log, LogConfig, LogScanner};
use quorate::sim::{FaultDisk, Rng, SimNode, Simulation};
use quorate::{
    Address, Config, GroupId, Host, Member, Members, NewEntry, Node, NodeConfig, NodeId, Policy, Vlsn,
};
use stopping::Stopping;
use store::{Op, Store, StoreEngine, Truth};

const GROUP: GroupId = GroupId::from_bits(0xfeed);

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn address(name: &str) -> Address {
    Address::Local(name.to_owned())
}

/// A founder that has removed what a second node needs.
struct Pair {
    sim: Simulation,
    truth: Arc<Mutex<Truth>>,
    founder: Node,
    second: SimNode,
    store: Arc<Mutex<Store>>,
}

fn config(name: &str) -> NodeConfig {
    let mut base = Config::new(GROUP, id(name), format!("/{name}"));
    base.members =
        Members::new(vec![Member { address: Some(address(name)), ..Member::electable(id(name)) }]).unwrap();
    (base.segment_bytes, base.max_payload, base.batch_bytes, base.max_frame) =
        (64 << 10, 8 << 10, 16 << 10, 64 << 10);
    (base.lazy_flush, base.heartbeat, base.peer_timeout) = (ms(10), ms(10), ms(100));
    (base.handshake_timeout, base.checkpoint_every) = (ms(100), ms(15));
    (base.backoff_min, base.backoff_max) = (ms(1), ms(20));
    (base.keep_bytes, base.retention_every) = (0, ms(7));
    base.listen = Some(address(name));
    let mut config = NodeConfig::new(base);
    config.election_timeout = ms(60);
    config.seeds = vec![address("first"), address("second")];
    config
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let sim = Simulation::new(seed);
        let (first, truth) = (sim.node("first"), Arc::<Mutex<Truth>>::default());
        let engine = StoreEngine { name: "first".into(), store: Arc::default(), truth: Arc::clone(&truth) };
        let host = Host { runtime: first.runtime(), disk: first.disk() };
        let founder = Node::create(config("first"), Box::new(engine), host).unwrap();
        let second = sim.node("second");
        let pair = Pair { sim, truth, founder, second, store: Arc::default() };
        for value in 0..60 {
            pair.write(value);
        }
        assert!(pair.sim.run_until(|| pair.founder.log().oldest() > Vlsn::new(20), Duration::from_secs(5)));
        pair
    }

    fn write(&self, value: u64) {
        let mut payload = Op { key: value % 4, call: Call::Put { value } }.encode();
        payload.resize(3000, 7);
        let mut ticket = None;
        let lead = self.sim.run_until(
            || {
                ticket =
                    ticket.or_else(|| self.founder.append(&[NewEntry::data(&payload)], Policy::Async).ok());
                ticket.is_some()
            },
            Duration::from_secs(20),
        );
        assert!(lead, "the founder leads");
    }

    /// Opens the second node, whatever it has; `None`: it could not.
    fn start(&self, left: &Arc<AtomicU64>) -> Result<Node, String> {
        self.store.lock().lose_unsynced();
        let engine = StoreEngine {
            name: "second".into(),
            store: Arc::clone(&self.store),
            truth: Arc::clone(&self.truth),
        };
        let disk = Arc::new(Stopping::new(self.second.disk(), Arc::clone(left)));
        let host = Host { runtime: self.second.runtime(), disk };
        Node::join(config("second"), Box::new(engine), host).map_err(|error| error.to_string())
    }

    fn is_equal(&self, node: &Node) -> bool {
        let last = self.founder.last();
        node.last() == last
            && node.committed() == last.map(|last| last.vlsn)
            && Some(self.store.lock().len()) == last.map(|last| last.vlsn.get())
            && node.standing().counts()
            && node.members() == self.founder.members()
    }
}

/// The second node loses its power at this change, and after some more of its time comes again. Whether it came to the end
/// before.
fn snapshot_that_stops_at(step: u64) -> Result<bool, String> {
    let pair = Pair::new(step);
    let left = Arc::new(AtomicU64::new(step));
    let stopped = || left.load(Ordering::SeqCst) == 0;
    let mut first = pair.start(&left).ok();
    let mut done = false;
    if let Some(node) = &first {
        pair.sim.run_until(
            || {
                done = pair.is_equal(node);
                done || stopped() || node.poisoned().is_some()
            },
            Duration::from_secs(20),
        );
    }
    pair.second.crash();
    drop(first.take());
    left.store(u64::MAX, Ordering::SeqCst);
    pair.write(99);
    let node = pair.start(&left).map_err(|error| format!("it does not open: {error}"))?;
    let listed = node.members();
    let installed = pair.store.lock().len() > 0 && node.log().base().is_some();
    if installed && listed.find(&id("first")).is_none() {
        return Err(format!("it stands on a snapshot and knows nobody: {listed:?}"));
    }
    if !pair.sim.run_until(|| pair.is_equal(&node), Duration::from_secs(20)) {
        return Err(format!("it does not come right: {:?} {:?}", node.last(), node.last_error()));
    }
    if let Some(violation) = pair.truth.lock().violation.clone() {
        return Err(violation);
    }
    let staging = pair.second.disk().list(Path::new("/second/snapshot")).unwrap_or_default();
    let half = pair.second.disk().open(Path::new("/second/log/install")).is_ok();
    if half || !staging.is_empty() {
        return Err(format!("an install is left over: {staging:?}"));
    }
    Ok(done)
}

fn sweep() -> Result<u64, String> {
    for step in 0.. {
        if snapshot_that_stops_at(step).map_err(|why| format!("step {step}: {why}"))? {
            return Ok(step);
        }
    }
    Ok(0)
}

#[test]
fn a_power_loss_at_any_step_of_fetching_and_installing_leaves_a_node_that_comes_right() {
    let steps = sweep().unwrap();
    println!("{steps} steps of joining by a snapshot");
    assert!(steps > 40, "{steps}");
}

#[cfg(feature = "planted")]
#[test]
fn the_planted_bugs_of_an_install_are_found() {
    use quorate::planted::{Bug, plant};
    for bug in [Bug::InstallWithoutIntent, Bug::BaseNotStored] {
        plant(Some(bug));
        let found = std::panic::catch_unwind(sweep);
        plant(None);
        assert!(!matches!(found, Ok(Ok(_))), "{bug:?} was not found");
        println!("{bug:?}: {:?}", found.ok());
    }
}

fn log_config() -> LogConfig {
    LogConfig { segment_bytes: 4096, max_payload: 1024, ..LogConfig::new("/log", GROUP) }
}

/// Appends, flushes and prunes; how far it was flushed, and whether it came to the end.
fn rotate_and_prune(log: &Log) -> (u64, bool) {
    let mut flushed = 0;
    let mut flusher = log.flusher();
    for number in 1..=60_u64 {
        let payload = vec![number as u8; 300];
        let Ok(appended) = log.append(Term::new(1), &[NewEntry::data(&payload)]) else {
            return (flushed, false);
        };
        if number % 3 == 0 {
            if log.flush(appended.last.vlsn, Wait::Now).is_err() {
                return (flushed, false);
            }
            flushed = number;
            log.note_committed(appended.last.vlsn);
            let _works = quorate::worker::Worker::step(&mut flusher, Wait::Now);
        }
        if number % 10 == 0 && log.prune(Vlsn::new(number.saturating_sub(12).max(1)).unwrap()).is_err() {
            return (flushed, false);
        }
    }
    (flushed, !log.poisoned())
}

#[test]
fn a_power_loss_at_any_step_of_rotating_and_pruning_leaves_a_log_without_a_hole() {
    let clock = || Simulation::new(1).clock();
    let mut steps = 0;
    loop {
        let disk = Arc::new(FaultDisk::new(Rng::new(steps)));
        let left = Arc::new(AtomicU64::new(u64::MAX));
        let stopping = || Arc::new(Stopping::new(Arc::clone(&disk), Arc::clone(&left)));
        let (log, _) = Log::open(stopping(), clock(), log_config()).unwrap();
        left.store(steps, Ordering::SeqCst);
        let (flushed, done) = rotate_and_prune(&log);
        drop(log);
        disk.lose_power();
        left.store(u64::MAX, Ordering::SeqCst);
        let (log, _) =
            Log::open(stopping(), clock(), log_config()).unwrap_or_else(|e| panic!("step {steps}: {e}"));
        let last = log.last().map_or(0, |last| last.vlsn.get());
        assert!(last >= flushed, "step {steps}: {last} of {flushed}");
        let (mut scanner, mut after) = (log.scanner(), log.base().map(|base| base.vlsn));
        assert!(after.map_or(0, Vlsn::get) <= flushed, "step {steps}");
        while let Some(run) =
            scanner.run(after, u32::MAX, 64 << 10).unwrap_or_else(|e| panic!("step {steps}: {e}"))
        {
            after = Some(run.last.vlsn);
        }
        assert_eq!(after.map_or(0, Vlsn::get), last, "step {steps}");
        if done {
            assert!(log.base().is_some(), "nothing was pruned");
            break;
        }
        steps += 1;
    }
    println!("{steps} steps of rotating and pruning");
    assert!(steps > 40, "{steps}");
}
