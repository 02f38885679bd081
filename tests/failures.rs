//! Disks that fail or fill up, engines that refuse or panic, and logs that are pruned under their readers.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::nodes::*;
use common::{GROUP, Switches, TestDisk, t, v};
use quorate::config::Compression;
use quorate::disk::Disk;
use quorate::log::{FileDamage, OpenError};
use quorate::members::Role;
use quorate::node::{Answer, NodeError};
use quorate::state::{State, StateError, StateFile};
use quorate::{
    CommitError, Config, FeederState, FollowError, GroupId, Host, Level, Master, Member, Members, NewEntry,
    Outcome, Policy, Quorum, Replica, ReplicaState, Wait,
};

fn on_test_disk(group: &mut Group) -> Arc<Switches> {
    let disk = TestDisk::default();
    let switches = Arc::clone(&disk.0);
    group.host = Host { disk: Arc::new(disk), ..Host::machine() };
    switches
}

/// A group whose node `bad` is on a disk that fails on demand.
struct Set {
    group: Group,
    switches: Arc<Switches>,
    master: Master,
    book: Arc<Book>,
    replicas: Vec<(Replica, Arc<Book>)>,
}

fn set(bad: &str) -> Set {
    let mut group = Group::new(&["m", "a", "b"]);
    let switches = on_test_disk(&mut group);
    let failing = group.host.clone();
    let book = Arc::<Book>::default();
    let host_of = |name: &str| if name == bad { failing.clone() } else { Host::machine() };
    group.host = host_of("m");
    let master = group.listening(&book);
    let mut replicas = Vec::new();
    for name in ["a", "b"] {
        group.host = host_of(name);
        let its = Arc::<Book>::default();
        replicas.push((group.dialling(name, &master, &its), its));
    }
    let set = Set { group, switches, master, book, replicas };
    for n in 0..20_u8 {
        commit(&set.master, &[n; 100]);
    }
    set.replicas.iter().for_each(|(replica, _)| settle(&set.master, replica));
    set
}

#[test]
fn a_failed_sync_on_the_master_ends_its_part_and_nothing_is_acked_after_it() {
    let set = set("m");
    let committed = set.master.committed();
    set.switches.fail_sync.store(true, Ordering::SeqCst);
    let ticket = append(&set.master, b"x", Policy::MAJORITY);
    let error = set.master.commit(&ticket, patience()).unwrap_err();
    assert!(matches!(&error, CommitError::LifeEnded(what) if what.token == ticket.token), "{error}");
    until("the node says why", || {
        set.master.poisoned().is_some_and(|why| why.contains("the device lost the write"))
    });
    set.switches.fail_sync.store(false, Ordering::SeqCst);
    // The disk works again, and is not asked again.
    for policy in [Policy::Async, Policy::MAJORITY] {
        assert!(set.master.append(&[NewEntry::data(b"y")], policy).is_err());
    }
    assert_eq!(set.master.committed(), committed);
    assert_eq!(set.master.stats().health, quorate::Health::Error);
    set.master.close(patience());
    let log = set.group.log("m");
    assert!(log.last().map(|last| last.vlsn) >= committed, "what was committed is there");
    drop(set.replicas);
}

#[test]
fn a_replica_whose_sync_fails_leaves_the_group_which_goes_on_without_it() {
    let set = set("a");
    let durable = set.replicas[0].0.positions().durable;
    set.switches.fail_sync.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        commit(&set.master, b"on m and b");
    }
    until("it left", || set.replicas[0].0.state() == ReplicaState::Stopped);
    until("it says why", || {
        set.replicas[0].0.poisoned().is_some_and(|why| why.contains("the device lost the write"))
    });
    until("the master saw it go", || stats_of(&set.master, "a").state == FeederState::Idle);
    assert_eq!(stats_of(&set.master, "a").positions.durable, durable, "it acked nothing more as durable");
    commit(&set.master, b"still");
    let all = Policy::Sync { quorum: Quorum::All, level: Level::Durable };
    assert!(set.master.append(&[NewEntry::data(b"x")], all).unwrap_err().is_temporary());
    settle(&set.master, &set.replicas[1].0);
}

#[test]
fn on_a_full_disk_the_master_refuses_appends_keeps_what_it_has_and_goes_on_when_there_is_space() {
    let set = set("m");
    set.switches.fail_write.store(true, Ordering::SeqCst);
    // What is accepted before the first write fails is kept in memory, and written when there is space.
    let mut accepted = Vec::new();
    let refused = loop {
        match set.master.append(&[NewEntry::data(&[7; 1000])], Policy::MAJORITY) {
            Ok(ticket) => accepted.push(ticket),
            Err(refused) => break refused,
        }
        let last = accepted.last().unwrap();
        let waited = set.master.commit(last, Wait::Now);
        assert!(matches!(waited, Err(CommitError::TimedOut(_))), "nothing was committed: {waited:?}");
    };
    let text = refused.to_string();
    assert!(text.contains("as soon as the cause is gone"), "{text}");
    assert!(set.master.poisoned().is_none(), "{:?}", set.master.poisoned());
    // It goes on to serve what it has, and its replicas stay.
    let last = v(21);
    assert_eq!(set.master.committed(), Some(last));
    set.switches.fail_write.store(false, Ordering::SeqCst);
    for ticket in &accepted {
        assert_eq!(set.master.commit(ticket, patience()).unwrap(), Outcome::Committed);
        assert_eq!(set.master.ask(&ticket.token), Answer::Committed);
    }
    commit(&set.master, b"goes on");
    for (replica, its) in &set.replicas {
        settle(&set.master, replica);
        assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
        assert_eq!(its.entries().len(), 22 + accepted.len());
    }
    set.master.close(patience());
    for (replica, its) in &set.replicas {
        replica.close(patience());
        assert_eq!(its.entries(), set.book.entries());
    }
    assert!(set.group.log_bytes("m") == set.group.log_bytes("a"));
}

#[test]
fn a_replica_with_a_full_disk_comes_back_and_catches_up_when_there_is_space() {
    let set = set("a");
    set.switches.fail_write.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        commit(&set.master, b"on m and b");
    }
    until("it says why", || matches!(set.replicas[0].0.last_error(), Some(FollowError::Append(_))));
    assert!(set.replicas[0].0.poisoned().is_none(), "{:?}", set.replicas[0].0.poisoned());
    set.switches.fail_write.store(false, Ordering::SeqCst);
    settle(&set.master, &set.replicas[0].0);
    set.master.close(patience());
    set.replicas.iter().for_each(|(replica, _)| replica.close(patience()));
    assert_eq!(set.replicas[0].1.entries(), set.book.entries());
    assert!(set.group.log_bytes("m") == set.group.log_bytes("a"));
}

#[test]
fn an_engine_that_refuses_an_entry_stops_its_node_and_the_entry_is_not_skipped() {
    let mut set = set("");
    set.replicas[0].1.fail_at.store(25, Ordering::SeqCst);
    for _ in 0..20 {
        commit(&set.master, b"x");
    }
    let (replica, its) = set.replicas.remove(0);
    until("it stopped", || replica.poisoned().is_some());
    let why = replica.poisoned().unwrap();
    assert!(why.contains("the ledger refuses VLSN 25"), "{why}");
    until("it left the group", || stats_of(&set.master, "a").state == FeederState::Idle);
    assert_eq!(its.last(), Some(v(24)), "nothing beyond was applied");
    assert!(replica.positions().applied <= Some(v(24)));
    drop(replica);
    its.fail_at.store(0, Ordering::SeqCst);
    let replica = set.group.dialling("a", &set.master, &its);
    settle(&set.master, &replica);
    settle(&set.master, &set.replicas[0].0);
    assert_eq!(its.entries(), set.replicas[0].1.entries());
}

#[test]
fn a_panic_in_an_engine_ends_its_nodes_part_loudly() {
    let set = set("");
    set.replicas[0].1.panic_at.store(25, Ordering::SeqCst);
    for _ in 0..20 {
        commit(&set.master, b"x");
    }
    until("it stopped", || set.replicas[0].0.poisoned().is_some());
    let why = set.replicas[0].0.poisoned().unwrap();
    assert!(why.contains("the worker apply panicked") && why.contains("the ledger tears"), "{why}");
    // On the master: nobody is told anything more.
    set.book.panic_at.store(set.master.last().unwrap().vlsn.get() + 1, Ordering::SeqCst);
    let ticket = append(&set.master, b"the last", Policy::MAJORITY);
    let _told = set.master.commit(&ticket, patience());
    until("it stopped", || set.master.poisoned().is_some());
    assert!(set.master.append(&[NewEntry::data(b"y")], Policy::Async).is_err());
}

#[test]
fn pruning_goes_on_beside_appends_and_feeding_and_takes_nothing_that_is_needed() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    config.segment_bytes = 64 << 10;
    config.max_payload = 8 << 10;
    config.listen = Some(quorate::Address::Tcp("127.0.0.1:0".into()));
    let master = group.open_master(config, &book);
    let replica = group.dialling("a", &master, &its);
    let pruned = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (master, replica, pruned) = (&master, &replica, &pruned);
        let writer = scope.spawn(move || {
            let mut last = None;
            for n in 0..3000_u32 {
                let ticket = append(master, &n.to_le_bytes().repeat(125), Policy::MAJORITY);
                if n % 100 == 0 {
                    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
                }
                if n % 500 == 499 {
                    // Several segments were filled since.
                    let before = pruned.load(Ordering::SeqCst);
                    until("some of it is pruned", || pruned.load(Ordering::SeqCst) > before);
                }
                last = Some(ticket);
            }
            assert_eq!(master.commit(&last.unwrap(), patience()).unwrap(), Outcome::Committed);
            settle(master, replica);
        });
        while !writer.is_finished() {
            let segments = master.prune(v(u64::MAX >> 1)).unwrap().segments;
            pruned.fetch_add(segments, Ordering::SeqCst);
            std::thread::yield_now();
        }
    });
    assert!(pruned.load(Ordering::SeqCst) >= 6, "{pruned:?} segments were pruned");
    assert_eq!(its.entries().len(), 3001);
    assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
    until("the engine caught up", || master.positions().checkpointed == master.last().map(|last| last.vlsn));
    until("the replica acked all", || {
        stats_of(&master, "a").positions.durable == master.last().map(|l| l.vlsn)
    });
    master.prune(v(u64::MAX >> 1)).unwrap();
    // A replica that comes too late is told so by name.
    let late = group.dialling("b", &master, &Arc::default());
    until("it is told", || matches!(late.last_error(), Some(FollowError::NeedsSnapshot { oldest: Some(_) })));
    until("the master says so too", || {
        stats_of(&master, "b").last_error.is_some_and(|why| why.contains("needs a snapshot"))
    });
    assert!(late.poisoned().is_none());
    commit(&master, b"goes on");
}

#[test]
fn a_slot_keeps_entries_for_a_replica_that_is_away() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    config.segment_bytes = 64 << 10;
    config.max_payload = 8 << 10;
    config.listen = Some(quorate::Address::Tcp("127.0.0.1:0".into()));
    let master = group.open_master(config, &book);
    let _other = group.dialling("b", &master, &Arc::default());
    let with_slot = || {
        let mut config = group.config("a");
        config.slot = Some("mine".into());
        config.upstream = master.address().cloned();
        group.open_replica(config, &its)
    };
    let replica = with_slot();
    commit(&master, b"x");
    settle(&master, &replica);
    drop(replica);
    for _ in 0..300 {
        append(&master, &[1; 1000], Policy::Async);
    }
    commit(&master, b"y");
    until("the engine is ahead", || master.positions().checkpointed == master.last().map(|last| last.vlsn));
    master.prune(v(u64::MAX >> 1)).unwrap();
    let replica = with_slot();
    settle(&master, &replica);
    assert_eq!(its.entries(), book.entries());
}

#[test]
fn a_directory_is_opened_by_one_node_at_a_time() {
    let (group, book) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let master = group.master(&book);
    let second = Master::open(group.config("m"), Box::new(Ledger(Arc::default())), Host::machine());
    let error = second.err().expect("refused").to_string();
    assert!(error.contains("in use by another process"), "{error}");
    drop(master);
    assert!(quorate::disk::RealDisk.list(&group.log_dir("m")).is_ok());
    group.master(&book);
}

#[test]
fn a_node_that_can_not_lead_is_left_as_it_was_when_it_is_opened_as_master() {
    let secondary = Member { role: Role::Secondary, ..Member::electable(id("s")) };
    let group = Group::of(vec![Member::electable(id("m")), secondary]);
    let (book, its) = (Arc::<Book>::default(), Arc::<Book>::default());
    let master = group.master(&book);
    for _ in 0..2 {
        let refused = Master::open(group.config("s"), Box::new(Ledger(Arc::clone(&its))), group.host.clone());
        assert!(matches!(refused, Err(NodeError::NotElectable(_))), "{:?}", refused.err());
    }
    let replica = group.replica("s", &its);
    assert_eq!(replica.last(), None);
    join(&master, &replica);
    settle(&master, &replica);
    assert_eq!(master.fenced(), None);
}

#[test]
fn a_directory_with_a_log_and_without_its_small_state_is_refused() {
    let group = Group::new(&["m"]);
    let book = Arc::<Book>::default();
    let master = group.master(&book);
    commit(&master, b"something");
    master.close(patience());
    let state = group.dir.path().join("m").join("state");
    std::fs::remove_file(&state).unwrap();
    let open = || Master::open(group.config("m"), Box::new(Ledger(Arc::clone(&book))), group.host.clone());
    assert!(matches!(open(), Err(NodeError::StateLost { .. })), "{:?}", open().err());
    assert!(!state.exists());
}

#[test]
fn a_replica_that_takes_only_small_frames_is_fed_with_small_frames() {
    for compression in [Compression::Off, Compression::Lz4] {
        let group = Group::new(&["m", "a"]);
        let (book, its) = (Arc::<Book>::default(), Arc::<Book>::default());
        let config = |name| Config { compression, ..group.config(name) };
        let master = group.open_master(config("m"), &book);
        for n in 0..500_u32 {
            let noise: Vec<u8> =
                (0..2000_u32).map(|at| (n * 7 + at).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
            master.append(&[NewEntry::data(&noise)], Policy::Async).unwrap();
        }
        let mut small = config("a");
        (small.max_frame, small.batch_bytes, small.max_payload) = (64 << 10, 64 << 10, 32 << 10);
        let replica = group.open_replica(small, &its);
        join(&master, &replica);
        until("it has all", || replica.last() == master.last() || replica.last_error().is_some());
        assert!(replica.last_error().is_none(), "{:?}", stats_of(&master, "a").last_error);
    }
}

#[test]
fn a_log_without_its_engine_and_an_engine_without_its_log_are_refused_by_name() {
    let (group, book) = (Group::new(&["m"]), Arc::<Book>::default());
    let config = || {
        let mut config = group.config("m");
        (config.segment_bytes, config.max_payload) = (64 << 10, 8 << 10);
        config
    };
    let open = |config, book: &Arc<Book>| {
        Master::open(config, Box::new(Ledger(Arc::clone(book))), Host::machine()).err().expect("refused")
    };
    let master = group.open_master(config(), &book);
    for _ in 0..200 {
        append(&master, &[1; 1000], Policy::Async);
    }
    commit(&master, b"y");
    until("it is checkpointed", || master.positions().checkpointed == master.last().map(|last| last.vlsn));
    // A segment is sealed in the background, some time after it was flushed.
    until("a segment is pruned", || master.prune(v(u64::MAX >> 1)).unwrap().segments > 0);
    let last = master.last().map(|last| last.vlsn);
    drop(master);
    // An empty store: what it lacks was pruned.
    let error = open(config(), &Arc::default());
    assert!(matches!(error, NodeError::EngineBehind { applied: None, .. }), "{error}");
    // The store with an empty log.
    let mut elsewhere = config();
    elsewhere.dir = group.dir.path().join("empty");
    let error = open(elsewhere, &book);
    assert!(
        matches!(error, NodeError::EngineAhead { applied, last: None } if Some(applied) == last),
        "{error}"
    );
    // Another node's directory, and another group's.
    let mut other = config();
    (other.node, other.members) = (id("n"), Members::new(vec![Member::electable(id("n"))]).unwrap());
    let error = open(other, &book);
    assert!(matches!(error, NodeError::State(StateError::Foreign { .. })), "{error}");
    let mut other = config();
    other.group = GroupId::from_bits(99);
    let error = open(other, &book);
    let foreign = |error: &_| matches!(error, OpenError::File { damage: FileDamage::OtherGroup { .. }, .. });
    assert!(matches!(&error, NodeError::Log(error) if foreign(error)), "{error}");
    // Nothing was lost by all that.
    let master = group.open_master(config(), &book);
    assert!(master.last().map(|tip| tip.vlsn) > last);
}

#[test]
fn a_wait_for_a_token_outlasts_a_wake_up_that_was_meant_for_another_wait() {
    let group = Group::new(&["m"]);
    let book = Book::held_at(1);
    let master = group.master(&book);
    let ticket = append(&master, b"held", Policy::Async);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            book.allowed.advance(u64::MAX);
        });
        quorate::watermark::Parker::current().poke();
        assert!(master.wait_for(&ticket.token, patience()).unwrap());
    });
}

#[test]
fn a_small_state_whose_name_may_not_be_durable_yet_is_made_so_when_it_is_opened() {
    let mut named = 0;
    for changes in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let disk = TestDisk::default();
        let state = State::new(GROUP, id("m"), 1, quorate::Standing::Full { since: t(0) }).in_term(t(4));
        disk.0.changes_left.store(changes, Ordering::SeqCst);
        disk.0.limited.store(true, Ordering::SeqCst);
        let made = StateFile::create(&disk, &path, state);
        disk.0.limited.store(false, Ordering::SeqCst);
        if made.is_err() && path.exists() {
            named += 1;
            StateFile::open(&disk, &path).unwrap();
            assert!(disk.0.dir_syncs.load(Ordering::SeqCst) > 0, "after {changes} changes");
        }
    }
    assert_eq!(named, 1);
}
