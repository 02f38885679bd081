//! Slots in a simulated group that keeps no more of its logs than it has to, under crashes and partitions: whoever has a
//! slot comes back without a snapshot, and what a slot keeps is on every node.
//!
//! `QUORATE_SEED=n` replays one seed; `QUORATE_SEEDS=n` runs that many (docs/testing.md).
#![cfg(feature = "sim")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock::Clock;
use quorate::sim::{Act, DiskFaults, Nemesis, NemesisPlan, NetConfig, Rng, SimNode, Simulation, seeds};
use quorate::{
    Address, Answer, Config, Engine, EngineError, Entries, GroupId, Host, Member, Members, NewEntry, Node,
    NodeConfig, NodeError, NodeId, Policy, Token, Vlsn,
};

const GROUP: GroupId = GroupId::from_bits(0xfeed);
const NAMES: [&str; 3] = ["n1", "n2", "n3"];

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How far an engine is, and how far it would be after a crash.
#[derive(Default)]
struct Store {
    applied: u64,
    durable: u64,
}

struct Counting(Arc<Mutex<Store>>);

impl Engine for Counting {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(Vlsn::new(self.0.lock().applied))
    }
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut store = self.0.lock();
        if entries.range().first().get() != store.applied + 1 {
            return Err("entries out of order".into());
        }
        store.applied = entries.range().last().get();
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        let mut store = self.0.lock();
        store.durable = store.applied;
        Ok(Vlsn::new(store.durable))
    }
}

struct Place {
    sim: SimNode,
    store: Arc<Mutex<Store>>,
    held: bool,
    node: Option<Node>,
}

impl Place {
    fn engine(&self) -> Box<Counting> {
        Box::new(Counting(Arc::clone(&self.store)))
    }

    fn start(&mut self) {
        if self.node.is_some() || self.held {
            return;
        }
        let founders = NAMES
            .map(|name| Member { address: Some(Address::Local(name.into())), ..Member::electable(id(name)) });
        let name = self.sim.name().to_owned();
        let mut base = Config::new(GROUP, id(&name), PathBuf::from(format!("/{name}")));
        base.members = Members::new(founders.to_vec()).unwrap();
        base.listen = Some(Address::Local(name.clone()));
        (base.segment_bytes, base.max_payload, base.batch_bytes, base.max_frame) =
            (64 << 10, 8 << 10, 16 << 10, 64 << 10);
        (base.lazy_flush, base.heartbeat, base.peer_timeout) = (ms(10), ms(10), ms(100));
        (base.handshake_timeout, base.checkpoint_every) = (ms(100), ms(15));
        (base.backoff_min, base.backoff_max) = (ms(1), ms(20));
        (base.keep_bytes, base.retention_every, base.slot_every) = (0, ms(7), ms(20));
        base.slot = Some(name);
        let mut config = NodeConfig::new(base);
        config.election_timeout = ms(60);
        {
            let mut store = self.store.lock();
            store.applied = store.durable;
        }
        let host = Host { runtime: self.sim.runtime(), disk: self.sim.disk() };
        let opened = match Node::create(config.clone(), self.engine(), host.clone()) {
            Err(NodeError::Founded { .. }) => Node::open(config, self.engine(), host),
            other => other,
        };
        self.node = Some(opened.unwrap_or_else(|error| panic!("{} does not open: {error}", self.sim.name())));
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// An external slot, as its owner knows it.
struct External {
    /// What was last asked for: whether it is to be there, from where on.
    asked: Option<(Token, Option<Vlsn>)>,
    /// What was last known to be committed.
    known: Option<Vlsn>,
}

struct World {
    sim: Simulation,
    places: Vec<Place>,
    rng: Rng,
    external: External,
    moves: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Simulation::new(seed);
        let place = |name: &&str| {
            let sim = sim.node(name);
            sim.disk().set_faults(DiskFaults { write_back: 0.2, ..DiskFaults::default() });
            Place { sim, store: Arc::default(), held: false, node: None }
        };
        let places = NAMES.iter().map(place).collect();
        World { rng: sim.rng(), sim, places, external: External { asked: None, known: None }, moves: 0 }
    }

    fn up(&self) -> impl Iterator<Item = &Node> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    fn master(&self) -> Option<&Node> {
        self.up().filter(|node| node.leads().is_some()).max_by_key(|node| node.leads())
    }

    /// Writes, and now and then changes the external slot.
    fn act(&mut self) {
        let Some(master) =
            self.places.iter().filter_map(|place| place.node.as_ref()).max_by_key(|n| n.leads())
        else {
            return;
        };
        let payload = vec![1; self.rng.below(6000) as usize];
        let _written = master.append(&[NewEntry::data(&payload)], Policy::MAJORITY);
        if !self.rng.chance(0.2) || self.external.asked.is_some() {
            return;
        }
        let (ticket, then) = match self.external.known {
            None => {
                let next = Vlsn::after(master.last().map(|last| last.vlsn));
                (master.create_slot("external", None), Some(next))
            }
            Some(_) if self.rng.chance(0.1) => (master.drop_slot("external"), None),
            Some(from) => {
                let last = master.committed().map_or(1, Vlsn::get).max(from.get());
                let to = Vlsn::new(self.rng.between(from.get(), last + 1)).unwrap();
                (master.move_slot("external", to), Some(to))
            }
        };
        if let Ok(ticket) = ticket {
            self.external.asked = Some((ticket.token, then));
        }
    }

    /// What a slot keeps is there, wherever the slot is known.
    fn check(&mut self) {
        if let Some((token, then)) = self.external.asked {
            let told = |wanted| self.up().any(|node| node.ask(&token) == wanted);
            if told(Answer::Committed) {
                (self.external.asked, self.external.known) = (None, then);
                self.moves += 1;
            } else if told(Answer::RolledBack) {
                self.external.asked = None;
            }
        }
        for node in self.up() {
            assert_eq!(node.poisoned(), None);
            let base = node.log().base().map(|base| base.vlsn);
            for slot in node.slots().iter() {
                assert_eq!(slot.invalid, None, "{slot:?}");
                let own = node.status().node;
                assert!(base < Some(slot.from), "{own} begins after {base:?}, and has {slot:?}");
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.sim.clock().now() + time;
        let nodes = self.places.iter().map(|place| place.sim.clone()).collect();
        let plan = NemesisPlan { every: ms(100), lasts: ms(200), max_down: 2, ..NemesisPlan::default() };
        let mut nemesis = Nemesis::new(&self.sim, nodes, plan);
        while self.sim.clock().now() < end {
            let acts = nemesis.act(&self.sim);
            self.obey(acts);
            self.step();
        }
        let acts = nemesis.calm(&self.sim);
        self.obey(acts);
        self.sim.net().heal();
        self.sim.net().configure(NetConfig::default());
    }

    fn step(&mut self) {
        self.places.iter_mut().for_each(Place::start);
        self.act();
        self.sim.run_for(Duration::from_micros(self.rng.below(3000)));
        self.check();
    }

    fn obey(&mut self, acts: Vec<Act>) {
        for act in acts {
            let (Act::Crashed(name) | Act::Restart(name)) = &act;
            let place = self.places.iter_mut().find(|place| place.sim.name() == name).unwrap();
            place.held = matches!(act, Act::Crashed(_));
            if place.held {
                place.node = None;
            }
        }
    }

    /// Steps until it is so.
    fn until(&mut self, what: &str, so: impl Fn(&World) -> bool) {
        let limit = self.sim.clock().now() + Duration::from_secs(20);
        while !so(self) {
            self.step();
            if self.sim.clock().now() > limit {
                let states: Vec<_> = self
                    .up()
                    .map(|node| (node.status().node, node.part(), node.last(), node.last_error()))
                    .collect();
                panic!("waited in vain: {what}: {states:?}");
            }
        }
    }
}

#[test]
fn whoever_has_a_slot_comes_back_without_a_snapshot_and_no_slot_loses_what_it_keeps() {
    let (mut moves, mut removed, mut runs) = (0, 0, 0);
    for seed in seeds(30) {
        let mut world = World::new(seed);
        let everybody = |world: &World| {
            let slots = world.master().map(Node::slots).unwrap_or_default();
            NAMES.iter().all(|name| slots.find(name).is_some()) && world.up().count() == 3
        };
        world.until("everybody to have a slot that is committed everywhere", |world| {
            everybody(world)
                && world.up().all(|node| NAMES.iter().all(|name| node.slots().find(name).is_some()))
        });
        world.run(Duration::from_millis(1200));
        let goal = world.up().filter_map(|node| node.last()).map(|last| last.vlsn).max();
        world.until("everybody to have everything", |world| {
            world.up().count() == 3 && world.up().all(|node| node.committed() > goal)
        });
        world.until("what is asked for to be settled", |world| world.external.asked.is_none());
        if let Some(known) = world.external.known {
            let from =
                world.master().and_then(|master| master.slots().find("external").map(|slot| slot.from));
            assert!(from.is_none_or(|from| from >= known), "{from:?} of {known}");
        }
        moves += world.moves;
        removed += world.up().filter(|node| node.log().base().is_some()).count();
        runs += 1;
    }
    println!("{runs} seeds, {moves} changes of the external slot, {removed} logs that were pruned");
    assert!((moves > 0 && removed > 0) || runs < 10);
}
