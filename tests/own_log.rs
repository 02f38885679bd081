//! An engine that keeps its own log and has it replicated: it implements [`LogScanner`] and [`Source`], and nothing of
//! quorate's own log takes part on its side.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::memory::OwnLog;
use common::nodes::*;
use common::{GROUP, t, v};
use quorate::channel;
use quorate::commit::{CommitGates, Mastership, Ticket};
use quorate::counters::Counters;
use quorate::entry::verify_run;
use quorate::feeder::Feeders;
use quorate::handshake::Identity;
use quorate::members::Roll;
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::{FeederState, FollowError, Outcome, Policy, Position, ReplicaState, Token, Vlsn};

/// Feeders over the engine's log, in term 1 from `term_start` on.
fn feeders(group: &Group, log: &OwnLog, term_start: Vlsn) -> Feeders {
    let config = Arc::new(group.config("m").check().unwrap());
    let mastership = Mastership { group: GROUP, term: t(1), term_start, committed: term_start.previous() };
    let gates = CommitGates::new(mastership, &group.members, &id("m")).unwrap();
    Feeders::new(
        config,
        Identity { incarnation: 1, session: 1 },
        Arc::new(Roll::new(group.members.clone())),
        Arc::new(log.clone()),
        Arc::new(ThreadRuntime),
        Arc::new(gates),
        Arc::new(Counters::default()),
        Box::new(|stop| panic!("{stop}")),
    )
}

fn ticket(vlsn: Vlsn) -> Ticket {
    let token = Token { group: GROUP, term: t(1), vlsn };
    Ticket { token, policy: Policy::MAJORITY, since: ThreadRuntime.clock().now() }
}

#[test]
fn an_engine_that_keeps_its_own_log_feeds_a_replica_and_commits() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let log = OwnLog::default();
    for n in 0..1000_u32 {
        log.append(&n.to_le_bytes().repeat(n as usize % 30));
    }
    let feeders = feeders(&group, &log, v(1));
    let replica = group.replica("a", &its);
    let (here, there) = channel::local::pair("own");
    feeders.accept(here, None);
    replica.follow(there);
    feeders.own_progress();
    until("the backlog is there", || replica.last().map(|last| last.vlsn) == Some(v(1000)));
    for n in 0..100_u8 {
        let vlsn = log.append(&[n; 50]);
        feeders.appended(vlsn, Policy::MAJORITY);
        feeders.own_progress();
        assert_eq!(feeders.wait(&ticket(vlsn), patience()).unwrap(), Some(Outcome::Committed));
    }
    until("it learnt what is committed", || log.committed.load(Ordering::SeqCst) == 1100);
    // Without a teller of its own the source relies on heartbeats for the news of commits.
    until("it applied all", || its.last() == Some(v(1100)));
    feeders.close();
    replica.close(patience());
    assert!(group.log_bytes("a") == log.bytes());
    let summary = verify_run(&log.bytes(), None).unwrap();
    assert_eq!(summary.last.vlsn, v(1100));
}

#[test]
fn a_chain_that_starts_anywhere_is_followed_by_a_log_that_stands_there() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    // Both had the first fifty; the engine has forgotten them, but for the position of the last.
    let whole = OwnLog::default();
    for n in 0..50_u8 {
        whole.append(&[n; 20]);
    }
    let summary = verify_run(&whole.bytes(), None).unwrap();
    group.replica("a", &its).close(patience());
    let before = group.log("a");
    before.append_run(&whole.bytes(), &summary).unwrap();
    before.close().unwrap();
    drop(before);
    let log = OwnLog::starting_after(Some(summary.last));
    for n in 0..50_u8 {
        log.append(&[n; 20]);
    }
    let feeders = feeders(&group, &log, v(51));
    let replica = group.replica("a", &its);
    let (here, there) = channel::local::pair("own");
    feeders.accept(here, None);
    replica.follow(there);
    feeders.own_progress();
    assert_eq!(feeders.wait(&ticket(v(100)), patience()).unwrap(), Some(Outcome::Committed));
    until("it applied all", || its.last() == Some(v(100)));
    replica.close(patience());
    assert!(group.log_bytes("a") == [whole.bytes(), log.bytes()].concat());
    feeders.close();
}

#[test]
fn a_replica_that_needs_what_an_engine_has_forgotten_is_told_so() {
    let group = Group::new(&["m", "a"]);
    let log = OwnLog::starting_after(Some(Position { vlsn: v(50), term: t(1), crc: 7 }));
    log.append(b"x");
    let feeders = feeders(&group, &log, v(51));
    let replica = group.replica("a", &Arc::default());
    let (here, there) = channel::local::pair("own");
    feeders.accept(here, None);
    replica.follow(there);
    until(
        "it is told",
        || matches!(replica.last_error(), Some(FollowError::NeedsSnapshot { oldest }) if oldest == Some(v(51))),
    );
    assert_ne!(replica.state(), ReplicaState::Stopped);
    feeders.close();
}

#[test]
fn the_end_of_a_connection_leaves_the_pin_of_the_next_one_alone() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let log = OwnLog::default();
    for n in 0..10_u8 {
        log.append(&[n]);
    }
    let feeders = feeders(&group, &log, v(1));
    let replica = group.replica("a", &its);
    let (here, there) = channel::local::pair("first");
    feeders.accept(here, None);
    replica.follow(Arc::clone(&there));
    feeders.own_progress();
    let pinned = || log.pins.lock().get("replica:a").copied();
    until("all is durable there", || pinned() == Some(v(11)));
    log.held.store(true, Ordering::SeqCst);
    there.close();
    assert!(log.unpinning.wait(1, patience()).unwrap());
    // The pin is given up under the lock that the next connection needs: it goes on before that one comes.
    log.held.store(false, Ordering::SeqCst);
    let (here, there) = channel::local::pair("second");
    feeders.accept(here, None);
    replica.follow(there);
    until("it is fed again", || feeders.status()[0].state == FeederState::Streaming);
    assert_eq!(pinned(), Some(v(11)));
    feeders.close();
    assert_eq!(pinned(), None);
    replica.close(patience());
}
