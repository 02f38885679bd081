//! A group that runs itself, in a simulation: nodes, clients of a store of keys, trouble, and what must hold at all times.
#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "cluster/recovery.rs"]
mod recovery;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock::{Clock, Deadline, Wait};
use quorate::sim::{
    Act, DiskFaults, Fault, FaultCounts, Nemesis, NemesisPlan, NetConfig, Pace, Rng, SimNode, Simulation,
};
use quorate::{
    Address, Answer, Change, Config, GroupId, Host, Member, Members, NewEntry, Node, NodeConfig, NodeError,
    NodeId, Outcome as Told, Part, Policy, Role, Ticket, Token, Vlsn,
};

use crate::history::{Call, History, Outcome, Tally};
use crate::store::{Applied, Op, Store, StoreEngine, Truth};

pub use self::recovery::Keep;
use self::recovery::Recovery;

/// A violation of what is promised. The text says what and where.
pub type Violation = String;

const GROUP: GroupId = GroupId::from_bits(0xfeed);
const KEYS: u64 = 4;

/// Who is in the group, and how it is troubled.
#[derive(Clone)]
pub struct Plan {
    /// Founders, all of which hold data and vote.
    pub nodes: usize,
    /// An arbiter joins them.
    pub arbiter: bool,
    pub nemesis: NemesisPlan,
    pub net: NetConfig,
    pub disk: DiskFaults,
    pub pace: Pace,
    /// Relative to the nemesis: how often a node is cut off from all others, paused, ordered to hand over.
    pub isolate: f64,
    pub pause: f64,
    pub transfer: f64,
    /// How often a member is removed, wiped, and joins again.
    pub churn: f64,
    /// How often a node is wiped and comes back empty without having been removed.
    pub wipe: f64,
    /// What the nodes keep and lose, if that is looked at.
    pub keep: Option<Keep>,
}

impl Plan {
    /// Crashes, kills, partitions and resets among so many nodes, on sound disks.
    pub fn crashes(nodes: usize) -> Plan {
        let ms = Duration::from_millis;
        Plan {
            nodes,
            arbiter: false,
            nemesis: NemesisPlan {
                every: ms(120),
                lasts: ms(250),
                max_down: nodes / 2 + 1,
                ..NemesisPlan::default()
            },
            net: NetConfig { reset: 0.001, dial_failure: 0.05, ..NetConfig::default() },
            disk: DiskFaults { write_back: 0.2, ..DiskFaults::default() },
            pace: Pace::default(),
            isolate: 0.0,
            pause: 0.0,
            transfer: 0.0,
            churn: 0.0,
            wipe: 0.0,
            keep: None,
        }
    }

    /// Nodes that are cut off, whole or in one direction, and hear each other again.
    pub fn partitions(nodes: usize) -> Plan {
        let mut plan = Plan::crashes(nodes);
        (plan.nemesis.crash, plan.nemesis.kill) = (0, 1);
        (plan.nemesis.partition, plan.nemesis.one_way) = (4, 4);
        plan.isolate = 0.02;
        plan
    }

    /// Nodes that stop for longer than an election takes, and go on as if nothing had happened.
    pub fn pauses(nodes: usize) -> Plan {
        Plan { pause: 0.03, transfer: 0.01, ..Plan::crashes(nodes) }
    }

    /// Disks that fail: writes, syncs, creates, space.
    pub fn failing_disks(nodes: usize) -> Plan {
        let disk = DiskFaults {
            write_error: 0.001,
            no_space: 0.001,
            create_error: 0.005,
            sync_error: 0.001,
            dir_sync_error: 0.005,
            write_back: 0.2,
            ..DiskFaults::default()
        };
        Plan { disk, ..Plan::crashes(nodes) }
    }

    /// Two nodes with data, and an arbiter.
    pub fn arbiter() -> Plan {
        Plan { arbiter: true, transfer: 0.01, isolate: 0.01, ..Plan::crashes(2) }
    }

    /// Members come and go.
    pub fn churn(nodes: usize) -> Plan {
        Plan { churn: 0.02, transfer: 0.01, ..Plan::crashes(nodes) }
    }

    /// Nodes lose their directories.
    pub fn wipes(nodes: usize) -> Plan {
        let mut plan = Plan { wipe: 0.01, ..Plan::crashes(nodes) };
        plan.nemesis.max_down = 1;
        plan
    }

    /// All of it.
    pub fn everything(nodes: usize) -> Plan {
        Plan {
            isolate: 0.01,
            pause: 0.01,
            transfer: 0.01,
            churn: 0.01,
            net: NetConfig {
                reset: 0.001,
                dial_failure: 0.05,
                damage: 0.002,
                lose: 0.002,
                ..NetConfig::default()
            },
            ..Plan::failing_disks(nodes)
        }
    }
}

struct Place {
    sim: SimNode,
    name: String,
    role: Role,
    up: Option<Node>,
    since: Deadline,
    /// Directories before this one were wiped.
    generation: u32,
    /// Whether its directory is to be made as a founder's.
    founder: bool,
    store: Arc<Mutex<Store>>,
    /// Why it last did not open.
    refusal: Option<String>,
    opens: u64,
}

/// A client with one operation under way.
struct Client {
    busy: Option<Busy>,
}

enum Busy {
    Write { number: usize, at: usize, life: u64, ticket: Ticket, call: Call, until: Deadline },
    Read { number: usize, at: usize, life: u64, ticket: quorate::node::ReadTicket, key: u64, until: Deadline },
}

/// The group and its clients.
pub struct Cluster {
    pub sim: Simulation,
    plan: Plan,
    places: Vec<Place>,
    nemesis: Option<Nemesis>,
    rng: Rng,
    truth: Arc<Mutex<Truth>>,
    clients: Vec<Client>,
    pub history: History,
    next_value: u64,
    /// Who led in each term.
    masters: BTreeMap<u32, String>,
    /// Entries that were told to be committed, and the term of each.
    committed: BTreeMap<u64, u32>,
    /// Tokens of all writes, to be asked for at the end.
    tokens: Vec<Token>,
    /// Nodes that the nemesis keeps down.
    held: Vec<usize>,
    /// Until when nodes are cut off from all others.
    isolated: Vec<(Deadline, usize)>,
    recovery: Recovery,
    pub counts: Counts,
}

/// What a run came to.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    pub terms: u64,
    pub committed: u64,
    pub transfers: u64,
    pub changes: u64,
    pub wipes: u64,
    pub pauses: u64,
    pub isolations: u64,
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

impl Cluster {
    pub fn new(seed: u64, plan: Plan) -> Cluster {
        let sim = Simulation::new(seed);
        sim.net().configure(plan.net.clone());
        sim.set_pace(plan.pace.clone());
        let mut names: Vec<(String, Role)> =
            (1..=plan.nodes).map(|at| (format!("n{at}"), Role::Electable)).collect();
        if plan.arbiter {
            names.push(("arb".into(), Role::Arbiter));
        }
        let places: Vec<Place> = names
            .into_iter()
            .map(|(name, role)| {
                let node = sim.node(&name);
                node.disk().set_faults(plan.disk.clone());
                Place {
                    sim: node,
                    name,
                    role,
                    up: None,
                    since: sim.clock().now(),
                    generation: 0,
                    founder: role == Role::Electable,
                    store: Arc::default(),
                    refusal: None,
                    opens: 0,
                }
            })
            .collect();
        let recovery = Recovery::new(&sim, &plan, places.len());
        let nodes = places.iter().map(|place| place.sim.clone()).collect();
        let nemesis = Some(Nemesis::new(&sim, nodes, plan.nemesis.clone()));
        Cluster {
            rng: sim.rng(),
            sim,
            places,
            nemesis,
            truth: Arc::default(),
            clients: (0..4).map(|_| Client { busy: None }).collect(),
            history: History::default(),
            next_value: 1,
            masters: BTreeMap::new(),
            committed: BTreeMap::new(),
            tokens: Vec::new(),
            held: Vec::new(),
            isolated: Vec::new(),
            recovery,
            counts: Counts::default(),
            plan,
        }
    }

    fn now(&self) -> Deadline {
        self.sim.clock().now()
    }

    fn config(&self, at: usize) -> NodeConfig {
        let place = &self.places[at];
        let address = |name: &str| Address::Local(name.to_owned());
        let dir = PathBuf::from(format!("/{}-{}", place.name, place.generation));
        let mut base = Config::new(GROUP, id(&place.name), dir);
        let founders = (1..=self.plan.nodes).map(|n| format!("n{n}"));
        let founders =
            founders.map(|name| Member { address: Some(address(&name)), ..Member::electable(id(&name)) });
        if place.role == Role::Electable {
            base.members = Members::new(founders.collect()).unwrap();
        }
        base.segment_bytes = 64 << 10;
        base.max_payload = 8 << 10;
        base.batch_bytes = 4 << 10;
        base.max_frame = 64 << 10;
        let ms = Duration::from_millis;
        (base.lazy_flush, base.heartbeat, base.peer_timeout) = (ms(10), ms(10), ms(100));
        (base.handshake_timeout, base.checkpoint_every) = (ms(100), ms(15));
        (base.backoff_min, base.backoff_max) = (ms(1), ms(20));
        base.listen = Some(address(&place.name));
        let mut config = NodeConfig::new(base);
        config.role = place.role;
        config.election_timeout = ms(60);
        config.seeds = self.places.iter().map(|place| address(&place.name)).collect();
        self.configure(&mut config);
        config
    }

    /// Opens a node. Errors that trouble explains leave it down, to be tried again.
    fn start(&mut self, at: usize) -> Result<(), Violation> {
        if self.places[at].up.is_some() || self.held.contains(&at) {
            return Ok(());
        }
        let (config, now) = (self.config(at), self.now());
        let place = &mut self.places[at];
        place.store.lock().lose_unsynced();
        let engine = Box::new(StoreEngine {
            name: place.name.clone(),
            store: Arc::clone(&place.store),
            truth: Arc::clone(&self.truth),
        });
        let host = Host { runtime: place.sim.runtime(), disk: place.sim.disk() };
        let opened = match (place.role, place.founder) {
            (Role::Arbiter, _) => Node::arbiter(config, host),
            (_, true) => match Node::create(config.clone(), engine, host.clone()) {
                Err(NodeError::Founded { .. }) => {
                    let engine = Box::new(StoreEngine {
                        name: place.name.clone(),
                        store: Arc::clone(&place.store),
                        truth: Arc::clone(&self.truth),
                    });
                    Node::open(config, engine, host)
                }
                other => other,
            },
            (_, false) => Node::join(config, engine, host),
        };
        match opened {
            Ok(node) => {
                place.since = now;
                place.opens += 1;
                place.up = Some(node);
                self.opened(at);
                Ok(())
            }
            Err(error) => {
                place.sim.kill();
                place.refusal = Some(error.to_string());
                let faults = &self.plan.disk;
                let transient =
                    faults.write_error + faults.no_space + faults.sync_error + faults.create_error > 0.0;
                if transient { Ok(()) } else { Err(format!("{} does not open: {error}", place.name)) }
            }
        }
    }

    /// The node's process ends at once; so does every operation that a client had there.
    fn stop(&mut self, at: usize) {
        self.places[at].up = None;
    }

    fn wipe(&mut self, at: usize) {
        self.places[at].sim.kill();
        self.stop(at);
        let place = &mut self.places[at];
        place.generation += 1;
        place.founder = false;
        *place.store.lock() = Store::default();
        self.counts.wipes += 1;
    }

    fn alive(&self, at: usize, life: u64) -> Option<&Node> {
        let place = &self.places[at];
        place.up.as_ref().filter(|_| place.opens == life)
    }

    fn master(&self) -> Option<(usize, &Node)> {
        let nodes = self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.up.as_ref()?)));
        nodes.filter(|(_, node)| node.leads().is_some()).max_by_key(|(_, node)| node.leads())
    }

    /// Each client begins an operation, or looks whether its last one has ended.
    fn clients(&mut self) {
        for client in 0..self.clients.len() {
            match self.clients[client].busy.take() {
                Some(busy) => self.clients[client].busy = self.go_on(busy),
                None if self.rng.chance(0.6) => self.clients[client].busy = self.begin(client),
                None => {}
            }
        }
    }

    fn begin(&mut self, client: usize) -> Option<Busy> {
        // Now and then a client does not know who leads.
        let leads = self.master().map(|(at, _)| at);
        let leads = leads.filter(|_| self.rng.chance(0.8));
        let at = leads.unwrap_or_else(|| self.rng.index(self.places.len()));
        self.places[at].up.as_ref()?;
        let (key, now) = (self.rng.below(KEYS), self.now());
        let life = self.places[at].opens;
        let until = now + Duration::from_millis(150);
        if self.rng.chance(0.4) {
            let number = self.history.begin(client, key, Call::Get, now.as_nanos());
            let node = self.places[at].up.as_ref()?;
            return match node.read_begin() {
                Ok(ticket) => Some(Busy::Read { number, at, life, ticket, key, until }),
                Err(_) => {
                    self.history.end(number, Outcome::Failed, self.now().as_nanos());
                    None
                }
            };
        }
        self.next_value += 1;
        let value = self.next_value;
        let call = match self.rng.below(4) {
            0 => Call::Delete,
            1 => {
                let expected = self.places[at].store.lock().seen(key).version;
                Call::Cas { expected, value }
            }
            _ => Call::Put { value },
        };
        let number = self.history.begin(client, key, call, now.as_nanos());
        let mut payload = Op { key, call }.encode();
        self.fill_up(&mut payload);
        let node = self.places[at].up.as_ref()?;
        match node.append(&[NewEntry::data(&payload)], Policy::MAJORITY) {
            Ok(ticket) => {
                self.tokens.push(ticket.token);
                Some(Busy::Write { number, at, life, ticket, call, until })
            }
            Err(_) => {
                self.history.end(number, Outcome::Failed, self.now().as_nanos());
                None
            }
        }
    }

    fn go_on(&mut self, busy: Busy) -> Option<Busy> {
        let now = self.now();
        match &busy {
            Busy::Write { number, at, life, ticket, call, until } => {
                let vlsn = ticket.token.vlsn.get();
                let unknown = Outcome::Unknown { at: Some(vlsn) };
                let outcome = match self.alive(*at, *life) {
                    None => unknown,
                    Some(node) => match node.poll(ticket) {
                        Ok(Some(Told::Committed)) => {
                            self.committed.insert(vlsn, ticket.token.term.get());
                            match (call, self.places[*at].store.lock().outcome(vlsn)) {
                                (Call::Cas { .. }, None) if now < *until => return Some(busy),
                                (Call::Cas { .. }, None) => unknown,
                                (Call::Cas { .. }, Some(Some(seen))) => Outcome::Mismatch(seen),
                                _ => Outcome::Wrote(vlsn),
                            }
                        }
                        Ok(_) if now < *until => return Some(busy),
                        Ok(_) | Err(_) => unknown,
                    },
                };
                self.history.end(*number, outcome, now.as_nanos());
            }
            Busy::Read { number, at, life, ticket, key, until } => {
                let outcome = match self.alive(*at, *life) {
                    None => Outcome::Failed,
                    Some(node) => match node.read_ready(ticket, Wait::Now) {
                        Ok(true) => Outcome::Read(self.places[*at].store.lock().seen(*key)),
                        Ok(false) if now < *until => return Some(busy),
                        Ok(false) | Err(_) => Outcome::Failed,
                    },
                };
                self.history.end(*number, outcome, now.as_nanos());
            }
        }
        None
    }

    /// What must hold at every moment.
    fn check(&mut self) -> Result<(), Violation> {
        if let Some(violation) = self.truth.lock().violation.clone() {
            return Err(violation);
        }
        let mut new = Vec::new();
        for place in &self.places {
            let Some(node) = &place.up else { continue };
            if let Some(term) = node.leads() {
                let first = self.masters.entry(term.get()).or_insert_with(|| {
                    new.push(place.name.clone());
                    place.name.clone()
                });
                if *first != place.name {
                    return Err(format!("{first} and {} both led in term {term}", place.name));
                }
            }
            let (applied, committed) = (node.positions().applied, node.committed());
            if applied > committed {
                return Err(format!("{} applied {applied:?} with only {committed:?} committed", place.name));
            }
        }
        for name in new {
            self.counts.terms += 1;
            self.has_all_committed(&name)?;
        }
        self.claims()?;
        self.kept()?;
        self.told()
    }

    /// A new master has everything that was ever told to be committed.
    fn has_all_committed(&self, name: &str) -> Result<(), Violation> {
        let place = self.places.iter().find(|place| place.name == name);
        let Some(node) = place.and_then(|place| place.up.as_ref()) else { return Ok(()) };
        let history = node.log().term_history();
        let last = node.last().map_or(0, |last| last.vlsn.get());
        // One that was paused may be found to lead in a term that is long over: it owes nothing to later ones.
        let own = node.leads().map_or(0, |term| term.get());
        // What was removed was committed, or replaced by a snapshot: what that holds is compared when it is installed.
        let base = node.log().base().map_or(0, |base| base.vlsn.get());
        for (vlsn, term) in self.committed.range(base + 1..).filter(|(_, term)| **term < own) {
            let at = history.partition_point(|span| span.first.get() <= *vlsn);
            let found = at.checked_sub(1).map(|at| history[at].term.get()).filter(|_| *vlsn <= last);
            if found != Some(*term) {
                return Err(format!(
                    "{name} leads in term {:?} and has {found:?} at VLSN {vlsn}, which term {term} committed",
                    node.leads()
                ));
            }
        }
        Ok(())
    }

    /// What a master holds of a replica is true.
    fn claims(&self) -> Result<(), Violation> {
        let now = self.now();
        for place in &self.places {
            let Some(stats) = place.up.as_ref().and_then(Node::stats) else { continue };
            for one in stats.replicas {
                let Some(of) = self.places.iter().find(|other| other.name == one.id.as_str()) else {
                    continue;
                };
                let Some(node) = of.up.as_ref().filter(|_| of.role == Role::Electable) else { continue };
                // An ack that was on its way when the node left for another term may still be held.
                let current = node.term() == stats.term && node.part() == Part::Replica;
                if !current || one.connected_for.is_none_or(|connected| connected > now - of.since) {
                    continue;
                }
                let flushed = node.log().life().flushed.get();
                let claimed = one.positions.durable.map_or(0, Vlsn::get);
                if claimed > flushed {
                    return Err(format!(
                        "{} holds {claimed} of {}, which has flushed {flushed}",
                        place.name, of.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// What was told to be committed is what everybody applies.
    fn told(&mut self) -> Result<(), Violation> {
        let truth = self.truth.lock();
        for (vlsn, term) in self.committed.range(truth.checked..) {
            if let Some(Applied { term: applied, .. }) = truth.applied.get(vlsn)
                && applied != term
            {
                return Err(format!(
                    "VLSN {vlsn} was told committed in term {term}, and term {applied} was applied"
                ));
            }
        }
        Ok(())
    }

    /// Nodes that can't go on are restarted, as a supervisor would.
    fn supervise(&mut self) -> Result<(), Violation> {
        for at in 0..self.places.len() {
            let place = &self.places[at];
            let Some(reason) = place.up.as_ref().and_then(Node::poisoned) else { continue };
            let faults = &self.plan.disk;
            if faults.write_error + faults.sync_error + faults.create_error + faults.no_space == 0.0 {
                return Err(format!("{} was poisoned: {reason}", place.name));
            }
            place.sim.kill();
            self.stop(at);
            self.start(at)?;
        }
        Ok(())
    }

    fn obey(&mut self, acts: Vec<Act>) -> Result<(), Violation> {
        for act in acts {
            let place = |name: &str| self.places.iter().position(|place| place.name == *name).unwrap();
            match act {
                Act::Crashed(name) => {
                    let at = place(&name);
                    self.stop(at);
                    self.held.push(at);
                }
                Act::Restart(name) => {
                    let at = place(&name);
                    self.held.retain(|held| *held != at);
                    self.start(at)?;
                }
            }
        }
        Ok(())
    }

    /// Trouble of the group's own kind.
    fn stir(&mut self) {
        let now = self.now();
        let over: Vec<usize> =
            self.isolated.iter().filter(|(until, _)| *until <= now).map(|(_, at)| *at).collect();
        self.isolated.retain(|(until, _)| *until > now);
        for at in over {
            self.connect(at);
        }
        let ms = Duration::from_millis;
        let leads = self.master().map(|(at, _)| at);
        let leads = leads.filter(|_| self.rng.chance(0.6));
        let victim = leads.unwrap_or_else(|| self.rng.index(self.places.len()));
        if self.rng.chance(self.plan.isolate) && self.isolated.is_empty() {
            self.counts.isolations += 1;
            let names: Vec<String> = self.places.iter().map(|place| place.name.clone()).collect();
            self.sim.net().isolate(&names[victim], names.iter().map(String::as_str));
            self.isolated.push((now + ms(self.rng.between(20, 300)), victim));
        }
        if self.rng.chance(self.plan.pause) && self.places[victim].up.is_some() {
            self.counts.pauses += 1;
            self.places[victim].sim.pause(ms(self.rng.between(20, 300)));
        }
        if self.rng.chance(self.plan.transfer)
            && let Some((_, node)) = self.master()
        {
            self.counts.transfers += u64::from(node.transfer(None, ms(50)).is_ok());
        }
        if self.rng.chance(self.plan.wipe) && self.all_well() {
            let at = self.rng.index(self.places.len());
            self.wipe(at);
        }
        if self.rng.chance(self.plan.churn) {
            self.churn();
        }
        self.stir_kept();
    }

    fn connect(&mut self, at: usize) {
        let names: Vec<String> = self.places.iter().map(|place| place.name.clone()).collect();
        for other in names.iter().filter(|other| **other != names[at]) {
            self.sim.net().unblock(&names[at], other);
            self.sim.net().unblock(other, &names[at]);
        }
    }

    /// Everybody is up, counts, and has what the master has: losing one directory loses nothing.
    fn all_well(&self) -> bool {
        let Some((_, master)) = self.master() else { return false };
        let last = master.last();
        master.committed() == last.map(|last| last.vlsn)
            && self.places.iter().all(|place| {
                place.up.as_ref().is_some_and(|node| {
                    let has = place.role == Role::Arbiter || node.positions().durable == last.map(|l| l.vlsn);
                    node.standing().counts() && has
                })
            })
    }

    /// Removes a member, or brings one back that was removed.
    fn churn(&mut self) {
        let Some((leads, members)) = self.master().map(|(at, master)| (at, master.members())) else { return };
        let gone = self.places.iter().position(|place| members.find(&id(&place.name)).is_none());
        match gone {
            // An operator wipes a directory only when the removal is committed: until then it may be needed.
            Some(_) if !self.is_settled(leads) => {}
            Some(at) => {
                if !self.held.contains(&at) {
                    self.wipe(at);
                    // It asks to be taken in when it starts.
                    let _later = self.start(at);
                }
            }
            None => {
                let at = self.rng.index(self.places.len());
                let change = Change::Remove(id(&self.places[at].name));
                let master = self.places[leads].up.as_ref();
                self.counts.changes += u64::from(master.is_some_and(|master| master.change(&change).is_ok()));
            }
        }
    }

    /// Runs with trouble for so long, then without, until everything came right.
    pub fn run(&mut self, time: Duration) -> Result<Tally, Violation> {
        for at in 0..self.places.len() {
            self.start(at)?;
        }
        let end = self.now() + time;
        while self.now() < end {
            if let Some(mut nemesis) = self.nemesis.take() {
                let acts = nemesis.act(&self.sim);
                self.nemesis = Some(nemesis);
                self.obey(acts)?;
            }
            self.stir();
            self.supervise()?;
            for at in 0..self.places.len() {
                self.start(at)?;
            }
            self.clients();
            self.sim.run_steps(self.rng.between(1, 60));
            self.clients();
            self.check()?;
            self.sim.run_for(Duration::from_micros(self.rng.below(1500)));
        }
        self.heal()
    }

    /// All trouble ends: a master is found, writes go through, everybody catches up, nothing committed is missing.
    fn heal(&mut self) -> Result<Tally, Violation> {
        if let Some(mut nemesis) = self.nemesis.take() {
            let acts = nemesis.calm(&self.sim);
            self.held.clear();
            self.obey(acts)?;
        }
        self.sim.net().heal();
        self.sim.net().configure(NetConfig::default());
        self.sim.set_pace(Pace::default());
        for place in &self.places {
            place.sim.disk().set_faults(DiskFaults::default());
        }
        let limit = self.now() + Duration::from_secs(20);
        let goal = self.committed.last_key_value().map_or(0, |(vlsn, _)| *vlsn);
        loop {
            self.supervise()?;
            for at in 0..self.places.len() {
                if self.is_removed(at) {
                    self.wipe(at);
                }
                self.start(at)?;
            }
            self.clients();
            self.sim.run_for(Duration::from_millis(5));
            self.check()?;
            // Something new was committed since the trouble ended.
            if self.committed.last_key_value().is_some_and(|(vlsn, _)| *vlsn > goal) {
                break;
            }
            if self.now() >= limit {
                return Err(format!("nothing is committed any more: {}", self.describe()));
            }
        }
        loop {
            self.supervise()?;
            for at in 0..self.places.len() {
                if self.is_removed(at) {
                    self.wipe(at);
                }
                self.start(at)?;
            }
            for client in 0..self.clients.len() {
                if let Some(busy) = self.clients[client].busy.take() {
                    self.clients[client].busy = self.go_on(busy);
                }
            }
            self.sim.run_for(Duration::from_millis(10));
            self.check()?;
            if self.has_converged() && self.is_kept() {
                break;
            }
            if self.now() >= limit {
                let untold = self.untold().unwrap_or_default();
                return Err(format!("the group did not come right: {untold} {}", self.describe()));
            }
        }
        self.counts.committed = self.committed.len() as u64;
        self.ask_tokens()?;
        self.check_kept()?;
        self.history.check().map_err(|flaw| format!("not linearizable: {flaw}"))
    }

    /// Whether the last change of members is committed, as far as this node knows.
    fn is_settled(&self, at: usize) -> bool {
        let node = self.places[at].up.as_ref();
        node.is_some_and(|node| node.committed() >= node.log().memberships().last().copied())
    }

    fn is_removed(&self, at: usize) -> bool {
        let name = id(&self.places[at].name);
        if self.master().is_none_or(|(leads, _)| !self.is_settled(leads)) {
            return false;
        }
        let gone = self.master().is_some_and(|(_, master)| master.members().find(&name).is_none());
        gone && self.places[at].up.as_ref().is_some_and(|node| node.members().iter().count() > 0)
    }

    fn has_converged(&self) -> bool {
        let Some((_, master)) = self.master() else { return false };
        let Some(last) = master.last() else { return false };
        let data = || self.places.iter().filter(|place| place.role == Role::Electable);
        let same = data().all(|place| {
            place.up.as_ref().is_some_and(|node| node.last() == Some(last))
                && place.store.lock().len() == last.vlsn.get()
        });
        same && self.places.iter().all(|place| master.members().is_voter(&id(&place.name)))
    }

    /// Every node tells of every token what really became of its entry, or that it can't tell.
    fn ask_tokens(&self) -> Result<(), Violation> {
        let truth = self.truth.lock();
        for token in &self.tokens {
            let applied = truth.applied.get(&token.vlsn.get()).map(|applied| applied.term);
            let really =
                if applied == Some(token.term.get()) { Answer::Committed } else { Answer::RolledBack };
            for place in self.places.iter().filter(|place| place.role == Role::Electable) {
                let answer = place.up.as_ref().map_or(Answer::Unknown, |node| node.ask(token));
                if answer != really && answer != Answer::Unknown {
                    return Err(format!("{} says {answer:?} of {token}, and it is {really:?}", place.name));
                }
                let base = place.up.as_ref().and_then(|node| node.log().base());
                if answer == Answer::Unknown && base.is_none_or(|base| base.vlsn < token.vlsn) {
                    return Err(format!("{} can't tell of {token}, which it has seen pass", place.name));
                }
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for place in &self.places {
            let Some(node) = &place.up else {
                text += &format!("{} is down: {:?}\n", place.name, place.refusal);
                continue;
            };
            let members: Vec<String> =
                node.members().iter().map(|m| format!("{} {}", m.id, m.admission)).collect();
            text += &format!(
                "{}: {:?} in term {} master {:?} {:?} last {:?} {:?} members {members:?} error {:?}\n",
                place.name,
                node.part(),
                node.term(),
                node.master(),
                node.standing(),
                node.last(),
                node.positions(),
                node.last_error().map(|error| error.to_string()),
            );
        }
        text
    }

    /// How long the run took, by its own clock.
    pub fn virtual_hours(&self) -> f64 {
        self.now().as_nanos() as f64 / 3.6e12
    }

    pub fn faults(&self) -> FaultCounts {
        self.sim.faults()
    }
}

/// The faults that a campaign has to have met.
pub const CRASH_FAULTS: [Fault; 6] =
    [Fault::Crash, Fault::Kill, Fault::LostWrite, Fault::Reset, Fault::Held, Fault::DialFailed];
