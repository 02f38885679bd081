//! A group of three in a simulation: a master, two replicas, writers, trouble, and what must hold at all times.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock::{Clock, Deadline, Wait};
use quorate::log::LogScanner;
use quorate::sim::{
    Act, DiskFaults, Fault, FaultCounts, Nemesis, NemesisPlan, NetConfig, Pace, Rng, SimNode, Simulation,
};
use quorate::{
    Address, CommitError, Config, Engine, EngineError, Entries, GroupId, Host, Level, Master, Member,
    Members, NewEntry, NodeId, Outcome, Policy, Quorum, Replica, Ticket, Vlsn, WriteError,
};

pub const NAMES: [&str; 3] = ["m", "r1", "r2"];
const GROUP: GroupId = GroupId::from_bits(0xfeed);
/// A violation of what is promised. The text says what and where.
pub type Violation = String;

/// What all nodes' engines were given, ever: the first to apply a VLSN decides what it holds.
#[derive(Default)]
struct Truth {
    applied: BTreeMap<u64, u32>,
    violation: Option<Violation>,
}

/// An engine whose unsynced part is lost with the process.
struct Stored {
    /// The CRC of each entry applied, from VLSN 1 on.
    entries: Vec<u32>,
    durable: usize,
}

struct SimEngine {
    name: &'static str,
    stored: Arc<Mutex<Stored>>,
    truth: Arc<Mutex<Truth>>,
}

impl Engine for SimEngine {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(Vlsn::new(self.stored.lock().entries.len() as u64))
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut stored = self.stored.lock();
        let mut truth = self.truth.lock();
        for entry in entries.iter() {
            let vlsn = entry.header().vlsn.map_or(0, Vlsn::get);
            let actual = crc32fast::hash(&entry.bytes()[4..]);
            if vlsn != stored.entries.len() as u64 + 1 {
                let had = stored.entries.len();
                truth.violation = Some(format!("{} applied VLSN {vlsn} after {had}", self.name));
            }
            let first = *truth.applied.entry(vlsn).or_insert(actual);
            if first != actual || actual != entry.header().crc {
                truth.violation = Some(format!("{} applied other bytes at VLSN {vlsn}", self.name));
            }
            stored.entries.push(actual);
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        let mut stored = self.stored.lock();
        stored.durable = stored.entries.len();
        Ok(Vlsn::new(stored.durable as u64))
    }
}

/// How a run is troubled.
#[derive(Clone)]
pub struct Trouble {
    pub nemesis: NemesisPlan,
    pub net: NetConfig,
    /// The disks of the master, of r1, of r2.
    pub disks: [DiskFaults; 3],
    /// How fast the machines are, and how long they pause.
    pub pace: Pace,
    /// Policies that writers draw from.
    pub policies: Vec<Policy>,
}

impl Trouble {
    /// Crashes, kills, partitions and resets, on sound disks.
    pub fn crashes() -> Trouble {
        Trouble {
            nemesis: NemesisPlan { every: Duration::from_millis(60), ..NemesisPlan::default() },
            net: NetConfig { reset: 0.002, dial_failure: 0.1, ..NetConfig::default() },
            disks: std::array::from_fn(|_| DiskFaults { write_back: 0.2, ..DiskFaults::default() }),
            pace: Pace::default(),
            policies: policies(),
        }
    }

    /// Threads that stop for longer than a peer takes for death, and then go on as if nothing had happened.
    pub fn pauses() -> Trouble {
        let pace = Pace { stall: 0.002, max_stall: Duration::from_millis(250), ..Pace::default() };
        Trouble { pace, ..Trouble::crashes() }
    }

    /// Little but kills and power losses, one soon after the other.
    pub fn quick_crashes() -> Trouble {
        let ms = Duration::from_millis;
        let nemesis = NemesisPlan {
            every: ms(6),
            lasts: ms(3),
            max_down: 2,
            crash: 4,
            kill: 4,
            partition: 0,
            one_way: 0,
            reset: 1,
        };
        Trouble { nemesis, net: NetConfig::default(), ..Trouble::crashes() }
    }

    /// The same on disks that fail: writes, syncs, creates, space.
    pub fn failing_disks() -> Trouble {
        let disk = DiskFaults {
            write_error: 0.003,
            no_space: 0.003,
            create_error: 0.01,
            sync_error: 0.003,
            dir_sync_error: 0.01,
            write_back: 0.2,
            ..DiskFaults::default()
        };
        Trouble { disks: std::array::from_fn(|_| disk.clone()), ..Trouble::crashes() }
    }

    /// The same over a network that damages and loses frames.
    pub fn bad_network() -> Trouble {
        let net = NetConfig { damage: 0.01, lose: 0.01, reset: 0.002, ..NetConfig::default() };
        Trouble { net, ..Trouble::crashes() }
    }

    /// Bits flip on the disks of the replicas while they are down.
    pub fn rot() -> Trouble {
        let rot = DiskFaults { bit_flip: 0.02, write_back: 0.2, ..DiskFaults::default() };
        let sound = DiskFaults { write_back: 0.2, ..DiskFaults::default() };
        Trouble { disks: [sound, rot.clone(), rot], ..Trouble::crashes() }
    }

    /// Bits flip on the master's disk while it is down: it may refuse to open, and then the run ends there.
    pub fn rotten_master() -> Trouble {
        let rot = DiskFaults { bit_flip: 0.3, write_back: 0.2, ..DiskFaults::default() };
        let mut trouble = Trouble::crashes();
        trouble.disks[0] = rot;
        trouble
    }

    /// The disk of one replica says that it synced and did not.
    pub fn lying_disk() -> Trouble {
        let liar = DiskFaults { sync_lies: 0.2, write_back: 0.2, ..DiskFaults::default() };
        let mut trouble = Trouble::crashes();
        trouble.disks[1] = liar;
        trouble
    }
}

fn policies() -> Vec<Policy> {
    let sync = |quorum, level| Policy::Sync { quorum, level };
    vec![
        Policy::MAJORITY,
        Policy::MAJORITY,
        sync(Quorum::All, Level::Durable),
        sync(Quorum::Acks(1), Level::Received),
        sync(Quorum::Acks(1), Level::Applied),
        Policy::Async,
        Policy::SemiSync { acks: 1, level: Level::Durable, timeout: Duration::from_millis(5) },
    ]
}

enum Up {
    Master(Box<Master>),
    Replica(Box<Replica>),
}

struct Place {
    sim: SimNode,
    name: &'static str,
    up: Option<Up>,
    since: Deadline,
    /// Directories before this one were wiped.
    generation: u32,
    stored: Arc<Mutex<Stored>>,
    /// What this node told the master to have on its disk, in its present directory.
    promised: u64,
    lies: bool,
    /// Why it last did not open.
    refusal: Option<String>,
}

/// A write that waits for its outcome.
struct Pending {
    ticket: Ticket,
    patience: Deadline,
}

/// The group.
pub struct World {
    pub sim: Simulation,
    places: Vec<Place>,
    nemesis: Option<Nemesis>,
    rng: Rng,
    truth: Arc<Mutex<Truth>>,
    trouble: Trouble,
    pending: Vec<Pending>,
    /// Entries that were told to be committed: VLSN and term.
    committed: BTreeMap<u64, u32>,
    pub appended: u64,
    pub told: BTreeMap<&'static str, u64>,
    /// Why the master refused to open for good.
    pub refused: Option<String>,
    /// Nodes that the nemesis keeps down.
    held: Vec<usize>,
}

impl World {
    pub fn new(seed: u64, trouble: Trouble) -> World {
        let sim = Simulation::new(seed);
        sim.net().configure(trouble.net.clone());
        sim.set_pace(trouble.pace.clone());
        let places = NAMES.iter().enumerate().map(|(at, &name)| {
            let node = sim.node(name);
            node.disk().set_faults(trouble.disks[at].clone());
            Place {
                sim: node,
                name,
                up: None,
                since: sim.clock().now(),
                generation: 0,
                stored: Arc::new(Mutex::new(Stored { entries: Vec::new(), durable: 0 })),
                promised: 0,
                // A replica may cut a doubtful tail, which its master still has; a master refuses to.
                lies: trouble.disks[at].sync_lies > 0.0 || (at > 0 && trouble.disks[at].bit_flip > 0.0),
                refusal: None,
            }
        });
        let places = places.collect::<Vec<_>>();
        let nodes = places.iter().map(|place| place.sim.clone()).collect();
        let nemesis = Some(Nemesis::new(&sim, nodes, trouble.nemesis.clone()));
        World {
            rng: sim.rng(),
            sim,
            places,
            nemesis,
            truth: Arc::default(),
            trouble,
            pending: Vec::new(),
            committed: BTreeMap::new(),
            appended: 0,
            told: BTreeMap::new(),
            refused: None,
            held: Vec::new(),
        }
    }

    fn now(&self) -> Deadline {
        self.sim.clock().now()
    }

    fn config(&self, at: usize) -> Config {
        let id = |name| NodeId::new(name).unwrap();
        let place = &self.places[at];
        let dir = PathBuf::from(format!("/{}-{}", place.name, place.generation));
        let mut config = Config::new(GROUP, id(place.name), dir);
        config.members =
            Members::new(NAMES.iter().map(|name| Member::electable(id(name))).collect()).unwrap();
        config.segment_bytes = 64 << 10;
        config.max_payload = 8 << 10;
        config.batch_bytes = 4 << 10;
        config.max_frame = 64 << 10;
        let ms = Duration::from_millis;
        (config.lazy_flush, config.heartbeat, config.peer_timeout) = (ms(10), ms(10), ms(100));
        (config.handshake_timeout, config.checkpoint_every) = (ms(100), ms(15));
        (config.backoff_min, config.backoff_max) = (ms(1), ms(20));
        match at {
            0 => config.listen = Some(Address::Local("m".into())),
            _ => config.upstream = Some(Address::Local("m".into())),
        }
        config
    }

    /// Opens a node. Errors that trouble explains leave it down, to be tried again.
    fn start(&mut self, at: usize) -> Result<(), Violation> {
        if self.places[at].up.is_some() {
            return Ok(());
        }
        let config = self.config(at);
        let now = self.now();
        let place = &mut self.places[at];
        {
            let mut stored = place.stored.lock();
            let durable = stored.durable;
            stored.entries.truncate(durable);
        }
        let (stored, truth) = (Arc::clone(&place.stored), Arc::clone(&self.truth));
        let engine = Box::new(SimEngine { name: place.name, stored, truth });
        let host = Host { runtime: place.sim.runtime(), disk: place.sim.disk() };
        place.since = now;
        let opened = match at {
            0 => Master::open(config, engine, host).map(|master| Up::Master(Box::new(master))),
            _ => Replica::open(config, engine, host).map(|replica| Up::Replica(Box::new(replica))),
        };
        match opened {
            Ok(up) => {
                let last = match &up {
                    Up::Master(master) => master.last(),
                    Up::Replica(replica) => replica.last(),
                };
                let last = last.map_or(0, |last| last.vlsn.get());
                if last < place.promised && !place.lies {
                    let (name, promised) = (place.name, place.promised);
                    return Err(format!(
                        "{name} had told that VLSN {promised} was on its disk, and opens at {last}"
                    ));
                }
                place.promised = place.promised.min(last);
                place.up = Some(up);
                Ok(())
            }
            Err(error) => {
                let faults = &self.trouble.disks[at];
                let explained = rots(faults);
                let transient =
                    faults.write_error + faults.no_space + faults.sync_error + faults.create_error > 0.0;
                // A failed open is a process that ended.
                place.sim.kill();
                if at > 0 && explained {
                    // The operator wipes the directory, and the node comes back empty.
                    place.generation += 1;
                    place.promised = 0;
                    *place.stored.lock() = Stored { entries: Vec::new(), durable: 0 };
                    return Ok(());
                }
                if at == 0 && explained {
                    // A fixed master that refuses for damage ends the group, by name and with everything kept.
                    self.refused = Some(error.to_string());
                    return Ok(());
                }
                if transient {
                    place.refusal = Some(error.to_string());
                    return Ok(());
                }
                Err(format!("{} does not open: {error}", place.name))
            }
        }
    }

    fn stop(&mut self, at: usize) {
        self.note_promises();
        self.places[at].up = None;
    }

    fn master(&self) -> Option<&Master> {
        match &self.places[0].up {
            Some(Up::Master(master)) => Some(master),
            _ => None,
        }
    }

    fn replica(&self, at: usize) -> Option<&Replica> {
        match &self.places[at].up {
            Some(Up::Replica(replica)) => Some(replica),
            _ => None,
        }
    }

    /// What each replica has told the master lately.
    fn note_promises(&mut self) {
        let told: Vec<(usize, u64)> = match self.master() {
            Some(master) => {
                let own = master.positions().durable.map_or(0, Vlsn::get);
                let status = master.replicas();
                let of = |at: usize| {
                    let one = status.iter().find(|one| one.id.as_str() == NAMES[at])?;
                    let up = self.now() - self.places[at].since;
                    // Only a connection to the node's present life, or to the last one if it is down: its acks may
                    // still have been under way.
                    let now = match self.places[at].up {
                        Some(_) => one.connected_for.is_some_and(|connected| connected <= up),
                        None => true,
                    };
                    now.then_some((at, one.positions.durable.map_or(0, Vlsn::get)))
                };
                std::iter::once((0, own)).chain([1, 2].into_iter().filter_map(of)).collect()
            }
            None => Vec::new(),
        };
        for (at, durable) in told {
            self.places[at].promised = self.places[at].promised.max(durable);
        }
        for at in [1, 2] {
            let last = self.replica(at).map(|replica| replica.last().map_or(0, |last| last.vlsn.get()));
            if let Some(last) = last {
                // A new term's master may have cut what the old one's had.
                self.places[at].promised = self.places[at].promised.min(last);
            }
        }
    }

    /// What must hold at every moment.
    fn check(&mut self) -> Result<(), Violation> {
        if let Some(violation) = self.truth.lock().violation.clone() {
            return Err(violation);
        }
        self.note_promises();
        let Some(master) = self.master() else { return Ok(()) };
        let now = self.now();
        for one in master.replicas() {
            let at = NAMES.iter().position(|name| *name == one.id.as_str()).unwrap();
            let Some(replica) = self.replica(at) else { continue };
            let up = now - self.places[at].since;
            if one.connected_for.is_none_or(|connected| connected > up) {
                continue;
            }
            let life = replica.log().life();
            let (written, flushed) = (life.written.get(), life.flushed.get());
            let claims =
                (one.positions.received.map_or(0, Vlsn::get), one.positions.durable.map_or(0, Vlsn::get));
            if claims.0 > written || claims.1 > flushed {
                let name = one.id;
                return Err(format!(
                    "the master holds {claims:?} of {name}, which has written {written}, flushed {flushed}"
                ));
            }
        }
        for at in [1, 2] {
            let Some(replica) = self.replica(at) else { continue };
            let (applied, committed) = (replica.positions().applied, replica.committed());
            if applied > committed {
                return Err(format!("{} applied {applied:?} with only {committed:?} committed", NAMES[at]));
            }
        }
        Ok(())
    }

    /// Nodes that can't go on are restarted, as a supervisor would; a reason that trouble does not explain is a bug.
    fn supervise(&mut self) -> Result<(), Violation> {
        for (at, name) in NAMES.into_iter().enumerate() {
            let poisoned = match &self.places[at].up {
                Some(Up::Master(master)) => {
                    master.poisoned().or(master.fenced().map(|t| format!("fenced by {t}")))
                }
                Some(Up::Replica(replica)) => replica.poisoned(),
                None => None,
            };
            let Some(reason) = poisoned else { continue };
            let faults = &self.trouble.disks[at];
            let explained = faults.sync_error + faults.dir_sync_error + faults.write_error + faults.no_space
                > 0.0
                || faults.create_error > 0.0
                || rots(faults);
            if !explained {
                return Err(format!("{name} can't go on: {reason}"));
            }
            self.stop(at);
            self.places[at].sim.kill();
            if reason.contains("the cut stopped midway") {
                // By order of a newer term's master; opening finishes it.
                self.places[at].promised = 0;
            }
            if rots(&self.trouble.disks[at]) && at > 0 {
                let place = &mut self.places[at];
                place.generation += 1;
                place.promised = 0;
                *place.stored.lock() = Stored { entries: Vec::new(), durable: 0 };
            }
        }
        Ok(())
    }

    fn write(&mut self) {
        let policy = self.trouble.policies[self.rng.index(self.trouble.policies.len())];
        let sizes = [0, 20, 300, 3000];
        let len = sizes[self.rng.index(4)];
        let count = 1 + self.rng.index(3);
        let payloads: Vec<Vec<u8>> =
            (0..count).map(|n| vec![(self.appended as usize + n) as u8 | 1; len]).collect();
        let entries: Vec<NewEntry<'_>> = payloads.iter().map(|payload| NewEntry::data(payload)).collect();
        let how = self.rng.below(3);
        let now = self.now();
        let patience = now + Duration::from_millis(self.rng.between(1, 150));
        let Some(master) = self.master() else { return };
        let told = match how {
            0 => match master.write(&entries, policy, Wait::Now) {
                Ok(outcome) => {
                    let last = master.last().map(|last| last.vlsn);
                    let token = quorate::Token { group: GROUP, term: master.term(), vlsn: last.unwrap() };
                    Some((Ticket { token, policy, since: now }, Some(outcome)))
                }
                Err(WriteError::Commit(CommitError::TimedOut(undecided))) => {
                    Some((Ticket { token: undecided.token, policy, since: now }, None))
                }
                Err(_) => None,
            },
            _ => master.append(&entries, policy).ok().map(|ticket| {
                if how == 1 {
                    let outcome = master.commit(&ticket, Wait::Now).ok();
                    (ticket, outcome)
                } else {
                    (ticket, None)
                }
            }),
        };
        self.appended += count as u64;
        match told {
            Some((ticket, Some(outcome))) => self.told(&ticket, outcome),
            Some((ticket, None)) => self.pending.push(Pending { ticket, patience }),
            None => {}
        }
    }

    /// What the writer was told goes on record, and is compared with what the disks hold.
    fn told(&mut self, ticket: &Ticket, outcome: Outcome) {
        let vlsn = ticket.token.vlsn.get();
        let name = match outcome {
            Outcome::Committed => "committed",
            Outcome::Acked => "acked",
            Outcome::Degraded => "degraded",
        };
        *self.told.entry(name).or_default() += 1;
        self.note_promises();
        let holders = (0..3)
            .filter(|&at| match &self.places[at].up {
                Some(Up::Master(master)) => master.log().life().flushed.get() >= vlsn,
                Some(Up::Replica(replica)) => replica.log().life().flushed.get() >= vlsn,
                // It is down, and comes back with what it told.
                None => self.places[at].promised >= vlsn || self.places[at].lies,
            })
            .count();
        let safe =
            outcome == Outcome::Committed || (outcome == Outcome::Acked && ticket.policy == Policy::MAJORITY);
        if safe && holders < 2 {
            let policy = ticket.policy;
            self.truth.lock().violation = Some(format!(
                "VLSN {vlsn} under {policy} was told {name}, and is on {holders} disks: {}",
                self.disks()
            ));
        }
        if outcome == Outcome::Committed {
            self.committed.insert(vlsn, ticket.token.term.get());
        }
    }

    fn poll(&mut self) {
        let now = self.now();
        let pending = std::mem::take(&mut self.pending);
        for one in pending {
            let decided = match self.master() {
                None => Err(()),
                Some(master) if now >= one.patience => {
                    master.commit(&one.ticket, Wait::Now).map(Some).map_err(drop)
                }
                Some(master) => master.poll(&one.ticket).map_err(drop),
            };
            match decided {
                Ok(Some(outcome)) => self.told(&one.ticket, outcome),
                Ok(None) => self.pending.push(one),
                Err(()) => *self.told.entry("unknown").or_default() += 1,
            }
        }
    }

    /// Trouble for so much virtual time, then calm, and everything must come right.
    pub fn run(&mut self, time: Duration) -> Result<(), Violation> {
        let end = self.now() + time;
        for at in 0..3 {
            self.start(at)?;
        }
        while self.now() < end && self.refused.is_none() {
            let acts = match self.nemesis.take() {
                Some(mut nemesis) => {
                    self.note_promises();
                    let acts = nemesis.act(&self.sim);
                    self.nemesis = Some(nemesis);
                    acts
                }
                None => Vec::new(),
            };
            self.obey(acts)?;
            self.supervise()?;
            for at in 0..3 {
                let down = self.places[at].up.is_none() && !self.held.contains(&at);
                if down {
                    self.start(at)?;
                }
            }
            if self.rng.chance(0.7) {
                self.write();
            }
            self.sim.run_steps(self.rng.between(1, 60));
            self.poll();
            self.check()?;
            self.sim.run_for(Duration::from_micros(self.rng.below(400)));
        }
        if self.refused.is_some() {
            return self.check();
        }
        self.heal()
    }

    fn obey(&mut self, acts: Vec<Act>) -> Result<(), Violation> {
        for act in acts {
            let index = |name: &str| NAMES.iter().position(|one| *one == name).unwrap();
            match act {
                Act::Crashed(name) => {
                    let at = index(&name);
                    self.places[at].up = None;
                    self.held.push(at);
                }
                Act::Restart(name) => {
                    let at = index(&name);
                    self.held.retain(|held| *held != at);
                    self.start(at)?;
                }
            }
        }
        Ok(())
    }

    /// All trouble ends: every node comes up, every replica catches up, nothing committed is missing.
    fn heal(&mut self) -> Result<(), Violation> {
        if let Some(mut nemesis) = self.nemesis.take() {
            let acts = nemesis.calm(&self.sim);
            self.obey(acts)?;
        }
        self.sim.net().heal();
        self.sim.net().configure(NetConfig::default());
        self.sim.set_pace(Pace::default());
        for place in &self.places {
            place.sim.disk().set_faults(DiskFaults::default());
        }
        self.held.clear();
        let limit = self.now() + Duration::from_secs(20);
        loop {
            self.supervise()?;
            for at in 0..3 {
                self.start(at)?;
            }
            self.sim.run_for(Duration::from_millis(20));
            self.poll();
            self.check()?;
            if self.refused.is_some() {
                return Ok(());
            }
            if self.has_converged() {
                break;
            }
            if self.now() >= limit {
                let state = self.describe();
                if rots(&self.trouble.disks[0]) && state.contains("is damaged at") {
                    // The master found its own damage when a replica needed those entries, and serves them to nobody.
                    return Ok(());
                }
                return Err(format!("the group did not come right: {state}"));
            }
        }
        self.compare()
    }

    fn has_converged(&self) -> bool {
        let Some(master) = self.master() else { return false };
        let Some(last) = master.last().map(|last| last.vlsn.get()) else { return false };
        let all = self.places.iter().all(|place| place.stored.lock().entries.len() as u64 == last);
        all && (1..3).all(|at| self.replica(at).is_some_and(|replica| replica.last() == master.last()))
    }

    fn compare(&self) -> Result<(), Violation> {
        let engines: Vec<Vec<u32>> =
            self.places.iter().map(|place| place.stored.lock().entries.clone()).collect();
        if engines[0] != engines[1] || engines[0] != engines[2] {
            return Err("the engines differ".into());
        }
        let Some(master) = self.master() else { return Err("no master".into()) };
        if self.trouble.disks[0].bit_flip > 0.0 {
            // Its log may hold damage that nobody has read since; what the engines have was compared above.
            return Ok(());
        }
        let mut scanner = master.log().scanner();
        let mut terms = BTreeMap::new();
        let mut after = None;
        while let Some(run) = scanner.run(after, 1000, 1 << 20).map_err(|error| error.to_string())? {
            for entry in run.entries().iter() {
                terms.insert(entry.header().vlsn.map_or(0, Vlsn::get), entry.header().term.get());
            }
            after = Some(run.last.vlsn);
        }
        for (vlsn, term) in &self.committed {
            if terms.get(vlsn) != Some(term) {
                return Err(format!(
                    "VLSN {vlsn} was told committed in term {term}; the log has {:?}",
                    terms.get(vlsn)
                ));
            }
        }
        Ok(())
    }

    fn disks(&self) -> String {
        let one = |place: &Place| {
            let flushed = match &place.up {
                Some(Up::Master(master)) => Some(master.log().life().flushed.get()),
                Some(Up::Replica(replica)) => Some(replica.log().life().flushed.get()),
                None => None,
            };
            format!("{} since {} flushed {flushed:?} promised {}; ", place.name, place.since, place.promised)
        };
        self.places.iter().map(one).collect()
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(master) = self.master() {
            text += &format!("{}last {:?}\n", master.stats(), master.last());
            if let Some(reason) = master.poisoned() {
                text += &format!("poisoned: {reason}\n");
            }
            for one in master.replicas() {
                text += &format!("{}: {:?}\n", one.id, one.last_error);
            }
        }
        text += &format!("m last refused: {:?}\n", self.places[0].refusal);
        for at in [1, 2] {
            match self.replica(at) {
                Some(replica) => {
                    let error = replica.last_error().map(|error| error.to_string());
                    text +=
                        &format!("{}: {} {:?} {error:?}\n", NAMES[at], replica.state(), replica.positions());
                }
                None => text += &format!("{} is down: {:?}\n", NAMES[at], self.places[at].refusal),
            }
        }
        text
    }

    pub fn faults(&self) -> FaultCounts {
        self.sim.faults()
    }

    pub fn committed(&self) -> usize {
        self.committed.len()
    }
}

/// Whether what was synced may be damaged or missing.
fn rots(faults: &DiskFaults) -> bool {
    faults.bit_flip > 0.0 || faults.sync_lies > 0.0
}

/// The faults that a campaign has to have met.
pub const CRASH_FAULTS: [Fault; 8] = [
    Fault::Crash,
    Fault::Kill,
    Fault::LostWrite,
    Fault::TornWrite,
    Fault::Reset,
    Fault::Held,
    Fault::DialFailed,
    Fault::Stall,
];
