//! A group that runs itself, in a simulation: nodes over failing disks and a failing network, clients, trouble, and what
//! must hold at all times.
#![allow(dead_code, reason = "each test binary uses a part")]

#[path = "groups/checks.rs"]
mod checks;
#[path = "groups/clients.rs"]
mod clients;
#[path = "history.rs"]
pub mod history;
#[path = "groups/store.rs"]
mod store;
#[path = "groups/trouble.rs"]
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock::{Clock, Deadline};
use quorate::sim::{Act, DiskFaults, FaultCounts, Nemesis, NetConfig, Pace, Rng, SimNode, Simulation};
use quorate::{
    Address, Change, Config, GroupId, Host, Member, Members, Node, NodeConfig, NodeError, NodeId, Part, Role,
    Term, Token,
};

pub use self::history::Tally;
pub use self::store::Violation;
pub use self::trouble::Plan;

use self::clients::Client;
use self::history::History;
use self::store::{Keeper, Store, Truth};

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

/// One machine, and what runs on it.
struct Place {
    sim: SimNode,
    name: String,
    role: Role,
    founder: bool,
    /// Whether it is to run at all: a spare is not until it joins.
    wanted: bool,
    /// The nemesis keeps it down.
    held: bool,
    node: Option<Node>,
    /// When it opened.
    since: Deadline,
    /// Counts the node's openings.
    life: u64,
    /// Directories before this one were wiped.
    generation: u32,
    store: Arc<Mutex<Store>>,
    /// Why it last did not open.
    refusal: Option<String>,
    /// The terms that were looked at in its present life.
    spans: BTreeSet<u32>,
    /// In its present life: how far it was committed, and what it was last in.
    committed: u64,
    term: Term,
    /// The member lists that were in force in its present life.
    lists: Vec<Arc<Members>>,
    /// The term that it leads, and how far it was committed when it last led none.
    office: Term,
    before_office: u64,
}

/// What is on record, to be held against what comes.
#[derive(Default)]
struct Record {
    /// Who led each term.
    masters: BTreeMap<u32, String>,
    /// Each term's first entry: VLSN and CRC.
    starts: BTreeMap<u32, (u64, u32, String)>,
    /// By the term that committed it, or a later one: term and VLSN of the highest entry that was told to be committed.
    told: BTreeMap<u32, (u32, u64)>,
    /// Every write that was appended.
    tokens: Vec<Token>,
    /// Entries that were told to be gone: term and VLSN.
    gone: BTreeSet<(u32, u64)>,
}

/// The group.
pub struct Cluster {
    pub sim: Simulation,
    plan: Plan,
    places: Vec<Place>,
    nemesis: Option<Nemesis>,
    rng: Rng,
    truth: Arc<Mutex<Truth>>,
    record: Record,
    pub history: History,
    clients: Vec<Client>,
    values: u64,
    next_extra: Deadline,
    /// Directions that are blocked beside the nemesis's, and until when.
    blocked: Vec<(Deadline, String, String)>,
    /// Changes of members that were ordered and whose end is not known: what becomes of the node when it is.
    leaving: Vec<(Token, usize)>,
    pub counts: BTreeMap<&'static str, u64>,
}

impl Cluster {
    pub fn new(seed: u64, plan: Plan) -> Cluster {
        let sim = Simulation::new(seed);
        sim.net().configure(plan.net.clone());
        sim.set_pace(plan.pace.clone());
        let (arbiters, secondaries) =
            (plan.founders + plan.arbiters, plan.founders + plan.arbiters + plan.secondaries);
        let count = secondaries + plan.spares;
        let sim_start = sim.clock().now();
        let place = |at: usize| {
            let name = format!("n{}", at + 1);
            let sim = sim.node(&name);
            let disk = plan.first_disk.as_ref().filter(|_| at == 0).unwrap_or(&plan.disks);
            sim.disk().set_faults(disk.clone());
            let role = match at {
                _ if (plan.founders..arbiters).contains(&at) => Role::Arbiter,
                _ if (arbiters..secondaries).contains(&at) => Role::Secondary,
                _ => Role::Electable,
            };
            Place {
                sim,
                name,
                role,
                founder: at < plan.founders,
                wanted: at < secondaries,
                held: false,
                node: None,
                since: sim_start,
                life: 0,
                generation: 0,
                store: Arc::default(),
                refusal: None,
                spans: BTreeSet::new(),
                committed: 0,
                term: Term::NONE,
                lists: Vec::new(),
                office: Term::NONE,
                before_office: 0,
            }
        };
        let places: Vec<Place> = (0..count).map(place).collect();
        let nodes = places.iter().map(|place| place.sim.clone()).collect();
        let nemesis = Some(Nemesis::new(&sim, nodes, plan.nemesis.clone()));
        let next_extra = sim.clock().now() + ms(200);
        Cluster {
            rng: sim.rng(),
            clients: (0..plan.clients).map(Client::new).collect(),
            sim,
            plan,
            places,
            nemesis,
            truth: Arc::default(),
            record: Record::default(),
            history: History::default(),
            values: 0,
            next_extra,
            blocked: Vec::new(),
            leaving: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn now(&self) -> Deadline {
        self.sim.clock().now()
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn config(&self, at: usize) -> NodeConfig {
        let place = &self.places[at];
        let dir = PathBuf::from(format!("/{}-{}", place.name, place.generation));
        let mut base = Config::new(GROUP, id(&place.name), dir);
        if place.founder && place.generation == 0 {
            let founders = self.places.iter().filter(|place| place.founder);
            let member = |place: &Place| Member {
                address: Some(address(&place.name)),
                ..Member::electable(id(&place.name))
            };
            base.members = Members::new(founders.map(member).collect()).unwrap();
        }
        base.listen = Some(address(&place.name));
        base.segment_bytes = 64 << 10;
        base.max_payload = 8 << 10;
        base.batch_bytes = 4 << 10;
        base.max_frame = 64 << 10;
        (base.lazy_flush, base.heartbeat, base.peer_timeout) = (ms(10), ms(10), ms(100));
        (base.handshake_timeout, base.checkpoint_every) = (ms(100), ms(15));
        (base.backoff_min, base.backoff_max) = (ms(1), ms(20));
        if place.role == Role::Secondary {
            base.upstream = Some(address("n2"));
        }
        let mut config = NodeConfig::new(base);
        config.role = place.role;
        config.election_timeout = ms(60);
        let others = self.places.iter().filter(|other| other.name != place.name && other.wanted);
        config.seeds = others.map(|other| address(&other.name)).collect();
        config
    }

    /// Opens a node. Errors that trouble explains leave it down, to be tried again.
    fn start(&mut self, at: usize) -> Result<(), Violation> {
        if self.places[at].node.is_some() || !self.places[at].wanted || self.places[at].held {
            return Ok(());
        }
        let (config, now) = (self.config(at), self.now());
        let truth = Arc::clone(&self.truth);
        let place = &mut self.places[at];
        place.store.lock().reopen(&truth.lock());
        let store = Arc::clone(&place.store);
        let engine = || {
            Box::new(Keeper {
                name: place.name.clone(),
                store: Arc::clone(&store),
                truth: Arc::clone(&truth),
            })
        };
        let host = Host { runtime: place.sim.runtime(), disk: place.sim.disk() };
        let founds = place.founder && place.generation == 0;
        let opened = match place.role {
            Role::Arbiter => Node::arbiter(config, host),
            _ if founds => match Node::create(config.clone(), engine(), host.clone()) {
                Err(NodeError::Founded { .. }) => Node::open(config, engine(), host),
                created => created,
            },
            _ => Node::join(config, engine(), host),
        };
        match opened {
            Ok(node) => {
                place.life += 1;
                place.since = now;
                place.spans.clear();
                place.lists.clear();
                (place.office, place.before_office) = (Term::NONE, 0);
                (place.committed, place.term) = (0, Term::NONE);
                place.node = Some(node);
                Ok(())
            }
            Err(error) => {
                // A failed open is a process that ended.
                place.sim.kill();
                let text = error.to_string();
                if !fails(&self.plan.disks) {
                    return Err(format!("{} does not open: {text}", place.name));
                }
                place.refusal = Some(text);
                Ok(())
            }
        }
    }

    fn stop(&mut self, at: usize) {
        self.places[at].node = None;
    }

    /// The operator wipes a node's directory, with the engine's data.
    fn wipe(&mut self, at: usize) {
        self.stop(at);
        let place = &mut self.places[at];
        place.sim.kill();
        place.generation += 1;
        *place.store.lock() = Store::default();
    }

    fn up(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.places.iter().enumerate().filter_map(|(at, place)| Some((at, place.node.as_ref()?)))
    }

    fn node(&self, at: usize) -> Option<&Node> {
        self.places[at].node.as_ref()
    }

    /// Who leads in the highest term.
    fn master(&self) -> Option<(usize, &Node)> {
        self.up().filter(|(_, node)| node.leads().is_some()).max_by_key(|(_, node)| node.leads())
    }

    /// Nodes that can't go on are restarted, as a supervisor would; a reason that trouble does not explain is a bug.
    fn supervise(&mut self) -> Result<(), Violation> {
        for at in 0..self.places.len() {
            let Some(reason) = self.node(at).and_then(Node::poisoned) else { continue };
            if !fails(&self.plan.disks) {
                return Err(format!("{} can't go on: {reason}", self.places[at].name));
            }
            self.stop(at);
            self.places[at].sim.kill();
            self.count("restarts");
        }
        Ok(())
    }

    /// Trouble for the time of the plan, then calm, and everything must come right.
    pub fn run(&mut self) -> Result<Tally, Violation> {
        let end = self.now() + self.plan.time;
        self.start_all()?;
        while self.now() < end {
            self.act()?;
            self.supervise()?;
            self.start_all()?;
            self.step_clients()?;
            self.sim.run_steps(self.rng.between(1, 80));
            self.step_clients()?;
            self.check()?;
            self.sim.run_for(Duration::from_micros(self.rng.below(400)));
        }
        self.heal()?;
        let tally = self.history.check().map_err(|flaw| self.describe_flaw(&flaw))?;
        self.check_end()?;
        Ok(tally)
    }

    fn start_all(&mut self) -> Result<(), Violation> {
        (0..self.places.len()).try_for_each(|at| self.start(at))
    }

    /// What the nemesis does, and the trouble beside it.
    fn act(&mut self) -> Result<(), Violation> {
        let acts = self.nemesis.as_mut().map_or_else(Vec::new, |nemesis| nemesis.act(&self.sim));
        self.obey(acts)?;
        self.settle_leaving();
        let now = self.now();
        self.unblock(now);
        if now < self.next_extra {
            return Ok(());
        }
        let every = u64::try_from(self.plan.extra_every.as_nanos()).unwrap_or(u64::MAX);
        self.next_extra = now + Duration::from_nanos(self.rng.below(every * 2));
        let weights = self.plan.extra.weights();
        let mut draw = self.rng.below(weights.iter().sum());
        let kind = weights.iter().position(|&weight| {
            let hit = draw < weight;
            draw = draw.saturating_sub(weight);
            hit
        });
        let until = now + ms(self.rng.between(20, 400));
        let some = self.rng.index(self.places.len());
        let count = self.places.len();
        match kind {
            Some(0) if self.plan.steady && !self.may_be_spared(some) => {}
            Some(0) => {
                let ways = self.rng.below(3);
                for other in (0..count).filter(|other| *other != some) {
                    if ways != 1 {
                        self.block(until, some, other);
                    }
                    if ways != 2 {
                        self.block(until, other, some);
                    }
                }
                self.count("isolated");
            }
            Some(1) => {
                for one in 0..count {
                    for other in 0..count {
                        let apart = one.abs_diff(other);
                        if apart > 1 && apart < count - 1 {
                            self.block(until, one, other);
                        }
                    }
                }
                self.count("rings");
            }
            Some(2) => {
                let half: Vec<bool> = (0..count).map(|_| self.rng.chance(0.5)).collect();
                for one in 0..count {
                    for other in (0..count).filter(|other| half[one] != half[*other]) {
                        self.block(until, one, other);
                    }
                }
                self.count("halves");
            }
            Some(3) => {
                for at in 0..count {
                    self.stop(at);
                    self.places[at].sim.crash();
                }
                self.count("blackouts");
            }
            Some(4) => {
                let by = self.rng.between(0, 20_000_000_000) as i64 - 10_000_000_000;
                self.sim.clock().jump_wall(by);
                self.count("jumps");
            }
            Some(5) => {
                let named = self.rng.chance(0.5).then(|| id(&self.places[some].name));
                let patience = ms(self.rng.between(10, 200));
                let begun = self
                    .master()
                    .is_some_and(|(_, master)| master.transfer(named.as_ref(), patience).is_ok());
                self.count(if begun { "transfers" } else { "transfers refused" });
            }
            Some(6) => {
                if let Some(node) = self.node(some) {
                    node.promote(node.term());
                    self.count("promoted");
                }
            }
            Some(7) => {
                if let Some((_, master)) = self.master() {
                    master.demote(master.term());
                    self.count("demoted");
                }
            }
            Some(8) => self.add(),
            Some(9) => self.remove(),
            Some(10) => self.wipe_one(),
            Some(11) => {
                // Mostly who leads: his is the pause that matters.
                let at = self.master().map(|(at, _)| at).filter(|_| some.is_multiple_of(2)).unwrap_or(some);
                self.places[at].sim.pause(until - now);
                self.count("paused");
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the group is so well without this node that its master has to stay.
    fn may_be_spared(&self, at: usize) -> bool {
        let all_follow = self.up().all(|(_, node)| matches!(node.part(), Part::Master | Part::Replica));
        let leads = self.master().is_none_or(|(master, _)| master == at);
        all_follow && !leads && self.blocked.is_empty()
    }

    fn add(&mut self) {
        let Some(at) = self.places.iter().position(|place| !place.wanted) else { return };
        self.places[at].wanted = true;
        self.count("joined");
    }

    /// Has the master remove a member, if those who are left hold what they acknowledged and are enough.
    fn remove(&mut self) {
        let at = self.rng.index(self.places.len());
        let Some((_, master)) = self.master() else { return };
        let members = master.members();
        let name = id(&self.places[at].name);
        let left = || members.iter().filter(|member| member.id != name);
        let counts = |member: &Member| self.node_of(member).is_some_and(|node| node.standing().counts());
        if members.voters().count() < 3
            || members.find(&name).is_none()
            || !left().all(|member| member.role == Role::Secondary || counts(member))
        {
            return;
        }
        if let Ok(ticket) = master.change(&Change::Remove(name)) {
            self.leaving.push((ticket.token, at));
            self.count("removals");
        }
    }

    fn node_of(&self, member: &Member) -> Option<&Node> {
        self.places.iter().find(|place| id(&place.name) == member.id)?.node.as_ref()
    }

    /// A node that was removed for certain is shut down and wiped, and may join again later.
    fn settle_leaving(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        for (token, at) in leaving {
            let answers: Vec<_> = self.up().map(|(_, node)| node.ask(&token)).collect();
            if answers.contains(&quorate::Answer::Committed) {
                let name = id(&self.places[at].name);
                let back = self.up().any(|(_, node)| {
                    node.committed() >= Some(token.vlsn) && node.members().find(&name).is_some()
                });
                if !back {
                    self.wipe(at);
                    self.places[at].wanted = false;
                    self.count("removed");
                }
            } else if !answers.contains(&quorate::Answer::RolledBack) {
                self.leaving.push((token, at));
            }
        }
    }

    /// A member loses its directory, while all others are known to hold what they acknowledged. Beside an arbiter they have
    /// to have all that there is: what one node with data and an arbiter hold does not survive the loss of that node's.
    fn wipe_one(&mut self) {
        let at = self.rng.index(self.places.len());
        let name = id(&self.places[at].name);
        let Some((_, master)) = self.master() else { return };
        let (members, last) = (master.members(), master.last());
        let has_all = |member: &Member| {
            self.node_of(member).is_some_and(|node| {
                let has = || node.positions().durable == last.map(|last| last.vlsn) && node.last() == last;
                node.standing().counts() && (self.plan.arbiters == 0 || member.role == Role::Arbiter || has())
            })
        };
        if members.find(&name).is_none() || !members.iter().all(has_all) || members.voters().count() < 3 {
            return;
        }
        self.wipe(at);
        self.count("wiped");
    }

    fn block(&mut self, until: Deadline, from: usize, to: usize) {
        let (from, to) = (self.places[from].name.clone(), self.places[to].name.clone());
        self.sim.net().block(&from, &to);
        self.blocked.push((until, from, to));
    }

    fn unblock(&mut self, now: Deadline) {
        let (over, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.blocked).into_iter().partition(|(until, ..)| *until <= now);
        self.blocked = left;
        for (_, from, to) in over {
            if !self.blocked.iter().any(|(_, a, b)| (a, b) == (&from, &to)) {
                self.sim.net().unblock(&from, &to);
            }
        }
    }

    fn obey(&mut self, acts: Vec<Act>) -> Result<(), Violation> {
        for act in acts {
            let index = |name: &str| self.places.iter().position(|place| place.name == name).unwrap();
            match act {
                Act::Crashed(name) => {
                    let at = index(&name);
                    self.stop(at);
                    self.places[at].held = true;
                }
                Act::Restart(name) => {
                    let at = index(&name);
                    self.places[at].held = false;
                    self.start(at)?;
                }
            }
        }
        Ok(())
    }

    /// All trouble ends: every node comes up, a master is found, a write goes through, everybody catches up.
    fn heal(&mut self) -> Result<(), Violation> {
        if let Some(mut nemesis) = self.nemesis.take() {
            let acts = nemesis.calm(&self.sim);
            self.obey(acts)?;
        }
        self.unblock(Deadline::NEVER);
        self.sim.net().heal();
        self.sim.net().configure(NetConfig::default());
        self.sim.set_pace(Pace::default());
        for place in &mut self.places {
            place.sim.disk().set_faults(DiskFaults::default());
            place.held = false;
        }
        let calm = self.now();
        let mut written = None;
        loop {
            self.supervise()?;
            self.start_all()?;
            self.settle_leaving();
            self.sim.run_for(ms(10));
            self.step_clients()?;
            self.check()?;
            let now = self.now();
            if written.is_none() && self.clients.iter().any(|client| client.wrote_since(calm)) {
                written = Some(now - calm);
            }
            if written.is_none() && now > calm + AVAILABLE_WITHIN {
                return Err(format!(
                    "no write went through in {AVAILABLE_WITHIN:?} of calm:\n{}",
                    self.describe()
                ));
            }
            if written.is_some() && self.clients_rest(now > calm + ms(500)) && self.has_converged() {
                return Ok(());
            }
            if now > calm + CONVERGED_WITHIN {
                return Err(format!("the group did not come right:\n{}", self.describe()));
            }
        }
    }

    pub fn faults(&self) -> FaultCounts {
        self.sim.faults()
    }
}

/// Of virtual time after the last trouble.
const AVAILABLE_WITHIN: Duration = Duration::from_secs(4);
const CONVERGED_WITHIN: Duration = Duration::from_secs(20);

/// Whether this disk may fail a node.
fn fails(disk: &DiskFaults) -> bool {
    disk.sync_error + disk.dir_sync_error + disk.write_error + disk.no_space + disk.create_error > 0.0
}
