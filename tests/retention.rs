//! How long the log is kept, and for whom: real nodes with real files and threads, and a log against a model.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::nodes::{Book, Ledger, id, patience, until};
use common::{GROUP, TestDisk};
use parking_lot::Mutex;
use proptest::prelude::*;
use quorate::clock::{Clock, SystemClock};
use quorate::log::{DoubtfulTail, LogConfig, Pin};
use quorate::retention::{Inputs, Limits, decide};
use quorate::slots::{Invalid, SlotError};
use quorate::{
    Address, Answer, Config, Event, Host, Log, Member, Members, NewEntry, Node, NodeConfig, Outcome, Policy,
    Slot, SlotRefused, Term, Ticket, Vlsn, Wait,
};

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

struct Place {
    config: NodeConfig,
    book: Arc<Book>,
    disk: TestDisk,
    events: Arc<Mutex<Vec<Event>>>,
    node: Option<Node>,
}

impl Place {
    fn host(&self) -> Host {
        Host { disk: Arc::new(self.disk.clone()), ..Host::machine() }
    }

    fn open(&mut self, create: bool) {
        let engine = Box::new(Ledger(Arc::clone(&self.book)));
        let open = if create { Node::create } else { Node::open };
        let node = open(self.config.clone(), engine, self.host()).unwrap();
        let events = Arc::clone(&self.events);
        node.on_change(move |event| events.lock().push(event.clone()));
        self.node = Some(node);
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node is up")
    }

    fn oldest(&self) -> Vlsn {
        self.node().log().oldest().unwrap()
    }

    fn told(&self, wanted: impl Fn(&Event) -> bool) -> bool {
        self.events.lock().iter().any(wanted)
    }
}

/// A group of three whose nodes keep no more of their logs than they have to, in segments of 64 KiB.
struct Grove {
    _dir: tempfile::TempDir,
    places: Vec<Place>,
}

impl Grove {
    fn new(name: &str, change: impl Fn(&str, &mut Config)) -> Grove {
        let dir = tempfile::tempdir().unwrap();
        let names = ["n1", "n2", "n3"];
        let at = |node: &str| Some(Address::Local(format!("{name}-{node}")));
        let founders = names.iter().map(|node| Member { address: at(node), ..Member::electable(id(node)) });
        let founders = Members::new(founders.collect()).unwrap();
        let place = |node: &&str| {
            let mut base = Config::new(GROUP, id(node), dir.path().join(node));
            base.members = founders.clone();
            base.listen = at(node);
            base.segment_bytes = 64 << 10;
            base.max_payload = 8 << 10;
            base.heartbeat = Duration::from_millis(20);
            base.backoff_max = Duration::from_millis(100);
            base.checkpoint_every = Duration::from_millis(5);
            base.retention_every = Duration::from_millis(5);
            base.slot_every = Duration::from_millis(5);
            (base.keep_bytes, base.disk_floor) = (0, 0);
            change(node, &mut base);
            let mut config = NodeConfig::new(base);
            config.election_timeout = Duration::from_millis(300);
            let mut place = Place {
                config,
                book: Arc::default(),
                disk: TestDisk::default(),
                events: Arc::default(),
                node: None,
            };
            place.open(true);
            place
        };
        let places = names.iter().map(place).collect();
        let grove = Grove { _dir: dir, places };
        until("everybody to follow", || {
            let follows = |place: &Place| place.node().committed() >= grove.committed();
            grove.master().is_some() && grove.places.iter().all(follows) && grove.committed().is_some()
        });
        grove
    }

    fn up(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.node.is_some())
    }

    fn master(&self) -> Option<&Place> {
        self.up().filter(|place| place.node().leads().is_some()).max_by_key(|place| place.node().leads())
    }

    fn committed(&self) -> Option<Vlsn> {
        self.master().and_then(|master| master.node().committed())
    }

    fn at(&self, node: &str) -> usize {
        self.places.iter().position(|place| place.config.base.node == id(node)).unwrap()
    }

    fn leader(&self) -> usize {
        let mut at = None;
        until("a master", || {
            at = self.master().map(|master| self.at(master.config.base.node.as_str()));
            at.is_some()
        });
        at.unwrap()
    }

    /// Has the master of the moment do something, as often as it takes.
    fn by_master<T>(&self, mut what: impl FnMut(&Node) -> Result<Ticket, T>) -> Vlsn {
        let mut done = None;
        until("the master to do it", || {
            let Some(master) = self.master() else { return false };
            let Ok(ticket) = what(master.node()) else { return false };
            done = Some(ticket.token.vlsn);
            master.node().commit(&ticket, patience()).is_ok_and(|outcome| outcome == Outcome::Committed)
        });
        done.unwrap()
    }

    fn create_slot(&self, name: &str, from: Option<Vlsn>) -> Slot {
        self.by_master(|master| master.create_slot(name, from));
        self.master().unwrap().node().slots().find(name).unwrap().clone()
    }

    /// So many segments of committed entries.
    fn write_segments(&self, count: u64) {
        let payload = [7; 8000];
        for _ in 0..count * 8 {
            self.by_master(|master| master.append(&[NewEntry::data(&payload)], Policy::MAJORITY));
        }
    }

    /// Everybody still has everything from this entry on.
    #[track_caller]
    fn all_hold(&self, from: Vlsn) {
        for place in self.up() {
            let log = place.node().log();
            assert!(place.oldest() <= from, "{} begins at {}", place.config.base.node, place.oldest());
            let last = log.last().unwrap().vlsn;
            assert!(last > from && log.position_at(from).is_ok() && log.position_at(last).is_ok());
        }
    }

    fn until_all_let_go(&self, from: Vlsn) {
        until("everybody to have let go", || self.up().all(|place| place.oldest() > from));
    }

    fn down(&mut self, at: usize) {
        self.places[at].node = None;
    }

    fn open(&mut self, at: usize) {
        self.places[at].open(false);
    }
}

#[test]
fn a_slot_holds_the_log_through_changes_of_master_and_restarts_of_all_nodes() {
    let mut grove = Grove::new("holds", |_, _| ());
    grove.write_segments(3);
    grove.until_all_let_go(v(1));
    let slot = grove.create_slot("backup", None);
    grove.write_segments(4);
    grove.all_hold(slot.from);
    for turn in 0..3 {
        let old = grove.leader();
        grove.down(old);
        grove.write_segments(2);
        grove.open(old);
        grove.write_segments(1);
        grove.all_hold(slot.from);
        assert_eq!(grove.master().unwrap().node().slots().find("backup"), Some(&slot), "turn {turn}");
    }
    for at in 0..3 {
        grove.down(at);
    }
    for at in 0..3 {
        grove.open(at);
    }
    grove.write_segments(2);
    grove.all_hold(slot.from);
    let further = grove.committed().unwrap();
    grove.by_master(|master| master.move_slot("backup", further));
    grove.write_segments(1);
    grove.until_all_let_go(slot.from);
    grove.all_hold(further);
    grove.by_master(|master| master.drop_slot("backup"));
    grove.write_segments(2);
    grove.until_all_let_go(further);
}

#[test]
fn a_replicas_slot_is_made_moves_with_it_and_keeps_what_it_lacks_while_it_is_away() {
    let mut grove = Grove::new("away", |node, config| config.slot = (node == "n3").then(|| "mine".into()));
    if grove.leader() == 2 {
        let to = id("n1");
        until("another to lead", || {
            let _begun = grove.places[2].node().transfer(Some(&to), Duration::from_secs(5));
            grove.leader() != 2
        });
    }
    let from = || grove.master().and_then(|master| Some(master.node().slots().find("mine")?.from));
    until("the slot to be there", || from().is_some());
    let first = from().unwrap();
    grove.write_segments(3);
    until("the slot to move", || from() > Some(first));
    grove.until_all_let_go(first);
    let log = grove.places[2].node().log().clone();
    grove.down(2);
    // What it has on its disk, which its engine may not have been given yet.
    let kept = log.last().unwrap().vlsn;
    drop(log);
    grove.write_segments(4);
    let master = grove.leader();
    let other = grove.places[1 - master].config.base.node.clone();
    grove.places[master].node().transfer(Some(&other), Duration::from_secs(20)).unwrap().wait(patience());
    grove.write_segments(2);
    let from = grove.master().unwrap().node().slots().find("mine").unwrap().from;
    assert!(from <= kept.next(), "{from} of {kept}");
    grove.all_hold(from);
    grove.open(2);
    let end = grove.write_end();
    until("it to have caught up", || grove.places[2].book.last() >= Some(end));
    until("it to let go", || grove.up().all(|place| place.oldest() > kept));
    let pins = |place: &Place| place.node().status().keeping.pins;
    let owners: Vec<String> = pins(grove.master().unwrap()).into_iter().map(|pin| pin.owner).collect();
    assert!(owners.contains(&"engine".into()) && owners.contains(&"slot:mine".into()), "{owners:?}");
    assert!(owners.contains(&"replica:n3".into()), "{owners:?}");
}

impl Grove {
    fn write_end(&self) -> Vlsn {
        self.by_master(|master| master.append(&[NewEntry::data(b"end")], Policy::MAJORITY))
    }
}

#[test]
fn a_slot_is_said_to_hold_only_when_it_is_committed_and_changes_come_one_by_one() {
    let mut grove = Grove::new("commit", |_, _| ());
    let master = grove.leader();
    let (others, master): (Vec<usize>, usize) = ((0..3).filter(|at| *at != master).collect(), master);
    for at in &others {
        grove.down(*at);
    }
    let node = grove.places[master].node();
    // It may have been deposed by now; then there is nothing to see.
    if let Ok(ticket) = node.create_slot("early", None) {
        assert_eq!(node.poll(&ticket).ok().flatten(), None, "nobody else has it");
        assert_eq!(node.ask(&ticket.token), Answer::Unknown);
        let second = node.create_slot("other", None).unwrap_err();
        assert!(second.is_temporary(), "{second}");
        let dropped = node.drop_slot("early").unwrap_err();
        assert!(dropped.is_temporary(), "{dropped}");
        assert!(node.commit(&ticket, patience()).is_err(), "it steps down");
    }
    for at in others {
        grove.open(at);
    }
    grove.create_slot("late", None);
    until("everybody to know", || grove.up().all(|place| place.node().slots().find("late").is_some()));
}

#[test]
fn slots_that_make_no_sense_are_refused_and_say_why() {
    let grove = Grove::new("refused", |_, _| ());
    grove.write_segments(3);
    grove.until_all_let_go(v(1));
    let slot = grove.create_slot("one", None);
    let refused = |what: &dyn Fn(&Node) -> Result<Ticket, SlotRefused>| {
        let mut why = None;
        until("a refusal", || match grove.master().map(|master| what(master.node())) {
            Some(Err(SlotRefused::Slot(error))) => {
                why = Some(error);
                true
            }
            Some(Err(error)) if error.is_temporary() => false,
            Some(other) => panic!("{other:?}"),
            None => false,
        });
        why.unwrap()
    };
    assert_eq!(refused(&|master| master.create_slot("one", None)), SlotError::Exists("one".into()));
    assert!(matches!(refused(&|master| master.create_slot("old", Some(v(1)))), SlotError::Pruned { .. }));
    let back = slot.from.previous().unwrap();
    assert!(matches!(refused(&|master| master.move_slot("one", back)), SlotError::Backwards { .. }));
    assert!(matches!(refused(&|master| master.move_slot("one", v(1 << 40))), SlotError::Beyond { .. }));
    assert_eq!(refused(&|master| master.drop_slot("none")), SlotError::Unknown("none".into()));
    let follower = grove.places.iter().find(|place| place.node().leads().is_none()).unwrap();
    let elsewhere = follower.node().create_slot("two", None);
    assert!(matches!(elsewhere, Err(SlotRefused::Write(_))), "{elsewhere:?}");
}

#[test]
fn a_slot_that_keeps_too_much_is_given_up_by_an_entry_while_commits_go_on() {
    let grove = Grove::new("bytes", |_, config| config.pin_max_bytes = 200_000);
    let slot = grove.create_slot("greedy", None);
    let moving = grove.create_slot("modest", None);
    for _ in 0..8 {
        grove.write_segments(1);
        let to = grove.committed().unwrap();
        grove.by_master(|master| master.move_slot("modest", to));
    }
    let invalid = |event: &Event| *event == Event::SlotInvalid { name: "greedy".into(), why: Invalid::Bytes };
    until("everybody to be told", || grove.up().all(|place| place.told(invalid)));
    grove.until_all_let_go(slot.from);
    let slots = grove.master().unwrap().node().slots();
    assert_eq!(slots.find("greedy").unwrap().invalid, Some(Invalid::Bytes));
    assert!(slots.find("modest").is_some_and(|slot| slot.invalid.is_none() && slot.from > moving.from));
    grove.write_segments(1);
}

#[test]
fn a_replica_that_was_away_too_long_loses_its_slot_and_gets_it_back_when_it_has_caught_up() {
    let mut grove = Grove::new("back", |node, config| {
        config.slot = (node == "n3").then(|| "mine".into());
        // What it needs stays all the same, or it would need a snapshot.
        (config.pin_max_age, config.keep_bytes) = (Duration::from_millis(300), 1 << 30);
    });
    if grove.leader() == 2 {
        let to = id("n1");
        until("another to lead", || {
            let _begun = grove.places[2].node().transfer(Some(&to), Duration::from_secs(5));
            grove.leader() != 2
        });
    }
    let slot = |grove: &Grove| grove.master().and_then(|master| master.node().slots().find("mine").cloned());
    until("the slot to be there", || slot(&grove).is_some());
    grove.down(2);
    grove.write_segments(3);
    until("it to be given up", || slot(&grove).is_some_and(|slot| slot.invalid == Some(Invalid::Age)));
    let given_up = slot(&grove).unwrap();
    grove.open(2);
    until("it to be there again", || slot(&grove).is_some_and(|slot| slot.invalid.is_none()));
    assert!(slot(&grove).unwrap().from > given_up.from);
}

#[test]
fn a_slot_that_stands_still_for_too_long_is_given_up() {
    let grove = Grove::new("age", |_, config| config.pin_max_age = Duration::from_millis(100));
    let slot = grove.create_slot("lost", None);
    grove.write_segments(2);
    let invalid = |event: &Event| *event == Event::SlotInvalid { name: "lost".into(), why: Invalid::Age };
    until("everybody to be told", || grove.up().all(|place| place.told(invalid)));
    grove.until_all_let_go(slot.from);
}

#[test]
fn a_disk_that_is_nearly_full_costs_slots_and_no_commits() {
    let grove = Grove::new("full", |_, config| config.disk_floor = 1 << 20);
    let slot = grove.create_slot("s", None);
    grove.write_segments(3);
    grove.all_hold(slot.from);
    // Of one that follows: it lets go for itself.
    let follower = (grove.leader() + 1) % 3;
    let place = &grove.places[follower];
    place.disk.0.space.store(1, Ordering::SeqCst);
    let given_up = |event: &Event| matches!(event, Event::PinGivenUp { owner, why: Invalid::Disk, .. } if owner == "slot:s");
    until("the follower to let go", || place.oldest() > slot.from);
    until("it to say so", || place.told(given_up));
    let master = grove.leader();
    if master != follower {
        assert_eq!(grove.places[master].node().slots().find("s").unwrap().invalid, None);
        // Of the master: the group lets go.
        grove.places[master].disk.0.space.store(1, Ordering::SeqCst);
        until("all to be told", || {
            grove.up().all(|place| {
                place.told(|event| matches!(event, Event::SlotInvalid { name, .. } if name == "s"))
            })
        });
        grove.until_all_let_go(slot.from);
    }
    grove.write_segments(2);
}

#[test]
fn nodes_remove_what_nobody_needs_beside_writers_and_write_lists_anew_that_are_in_the_way() {
    let grove = Grove::new("beside", |_, _| ());
    let slot = grove.create_slot("s", None);
    let before: Vec<Vlsn> = grove.places.iter().map(Place::oldest).collect();
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| grove.write_segments(2));
            }
        });
        let to = grove.committed().unwrap();
        grove.by_master(|master| master.move_slot("s", to));
    }
    grove.until_all_let_go(slot.from);
    assert!(grove.places.iter().zip(before).all(|(place, before)| place.oldest() > before));
    // The founding list of members stood in the first segment.
    let end = grove.write_end();
    for place in &grove.places {
        until("everybody to have it", || place.book.last() >= Some(end));
        let (log, shortest) =
            (place.node().log(), grove.places[0].book.entries().len().min(place.book.entries().len()));
        assert!(log.memberships().first() >= log.oldest().as_ref());
        assert_eq!(place.book.entries()[..shortest], grove.places[0].book.entries()[..shortest]);
        assert_eq!(place.node().members().iter().count(), 3);
    }
}

/// What a log's user may do next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Append(u16),
    Flush,
    Commit(u16),
    Checkpoint(u16),
    Pin { kind: usize, back: u16 },
    Advance { which: usize, by: u16 },
    Unpin(usize),
    Prune { free: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1..4000u16).prop_map(Act::Append),
        2 => Just(Act::Flush),
        2 => (0..30u16).prop_map(Act::Commit),
        2 => (0..30u16).prop_map(Act::Checkpoint),
        1 => (0..OWNERS.len(), 0..60u16).prop_map(|(kind, back)| Act::Pin { kind, back }),
        1 => (0..8usize, 0..20u16).prop_map(|(which, by)| Act::Advance { which, by }),
        1 => (0..8usize).prop_map(Act::Unpin),
        3 => (0..200_000u64).prop_map(|free| Act::Prune { free }),
    ];
    prop::collection::vec(act, 1..120)
}

const OWNERS: [&str; 6] = ["engine", "snapshot:b", "replica:b", "slot:s", "archive", "subscription:x"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_is_needed_is_ever_removed(acts in acts()) {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig {
            segment_bytes: 8192, max_payload: 4000, doubtful: DoubtfulTail::Cut, ..LogConfig::new(dir.path(), GROUP)
        };
        let (log, _) = Log::open(Arc::new(TestDisk::default()), Arc::new(SystemClock), config).unwrap();
        let mut flusher = log.flusher();
        let (mut committed, mut checkpointed) = (0, 0);
        let mut pins: Vec<(&str, Vlsn, Pin)> = Vec::new();
        let last = |log: &Log| log.last().map_or(0, |last| last.vlsn.get());
        for act in acts {
            match act {
                Act::Append(len) => {
                    log.append(Term::new(1), &[NewEntry::data(&vec![3; usize::from(len)])]).unwrap();
                }
                Act::Flush => if last(&log) > 0 {
                    log.flush(v(last(&log)), Wait::Now).unwrap();
                    common::settle(&mut flusher);
                },
                Act::Commit(by) => committed = (committed + u64::from(by)).min(last(&log)),
                Act::Checkpoint(by) => checkpointed = (checkpointed + u64::from(by)).min(committed),
                Act::Pin { kind, back } => {
                    let from = v(last(&log).saturating_sub(u64::from(back)).max(1));
                    let pin = log.pin(OWNERS[kind], from);
                    prop_assert_eq!(pin.holds(), Vlsn::after(log.base().map(|base| base.vlsn)) <= from);
                    pins.push((OWNERS[kind], from, pin));
                }
                Act::Advance { which, by } => if let Some((_, from, pin)) = pins.get_mut(which) {
                    *from = v(from.get() + u64::from(by));
                    pin.advance(*from);
                    prop_assert_eq!(pin.from(), *from);
                },
                Act::Unpin(which) => if which < pins.len() {
                    pins.remove(which);
                },
                Act::Prune { free } => {
                    let (segments, listed) = (log.extents(), log.pins());
                    let limits = Limits {
                        keep_bytes: 10_000, pin_max_bytes: 60_000, pin_max_age: Duration::MAX, disk_floor: 100_000,
                    };
                    let decision = decide(&Inputs {
                        committed: Vlsn::new(committed), checkpointed: Vlsn::new(checkpointed), members: None, slots: None,
                        segments: &segments, pins: &listed, now: SystemClock.now(), free, limits,
                    });
                    for pin in &listed {
                        match decision.void.iter().any(|(number, _)| *number == pin.number) {
                            true => { log.give_up(pin.number); }
                            false => { log.take_back(pin.number); }
                        }
                    }
                    log.prune(decision.floor).unwrap();
                }
            }
            // Whoever holds has everything; without bounds are two of them, who hold if they ever did.
            let oldest = Vlsn::after(log.base().map(|base| base.vlsn));
            prop_assert!(oldest <= Vlsn::after(Vlsn::new(committed.min(checkpointed))), "{oldest} of {committed}, {checkpointed}");
            for (owner, from, pin) in &pins {
                if pin.holds() {
                    prop_assert!(oldest <= *from, "{owner} has {from} of {oldest}");
                }
            }
            if let Some(first) = log.oldest() {
                prop_assert!(log.position_at(first).is_ok());
            }
        }
    }
}
