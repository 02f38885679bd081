//! What writers are told, by polled and by waiting threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::clock::deadline_in;
use crate::members::{Change, Member};
use crate::policy::{Level, Quorum};

const TERM: Term = Term::new(3);
const SECOND: Duration = Duration::from_secs(1);
const ONE_DURABLE: Policy = Policy::SemiSync { acks: 1, level: Level::Durable, timeout: SECOND };
const ALL: Policy = Policy::Sync { quorum: Quorum::All, level: Level::Durable };
const ONE_RECEIVED: Policy = Policy::Sync { quorum: Quorum::Acks(1), level: Level::Received };

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

fn at(seconds: u64) -> Deadline {
    Deadline::from_nanos(0) + Duration::from_secs(seconds)
}

fn gates_members() -> Members {
    Members::new(["a", "b", "c", "d", "e"].map(|name| Member::electable(id(name))).into()).unwrap()
}

/// Gates of five voters, a to e, of which a leads from VLSN 10 on, in a log that is committed up to 8.
fn gates() -> CommitGates {
    let group = GroupId::from_bits(1);
    let mastership = Mastership { group, term: TERM, term_start: v(10), committed: Some(v(8)) };
    let gates = CommitGates::new(mastership, &gates_members(), &id("a")).unwrap();
    gates.master_at(durable(100));
    gates
}

fn durable(at: u64) -> Positions {
    Positions { received: Vlsn::new(at), durable: Vlsn::new(at), ..Positions::NONE }
}

fn ticket(vlsn: u64, policy: Policy) -> Ticket {
    Ticket { token: Token { group: GroupId::from_bits(1), term: TERM, vlsn: v(vlsn) }, policy, since: at(0) }
}

fn poll(gates: &CommitGates, vlsn: u64, policy: Policy, now: u64) -> Option<Outcome> {
    gates.wait(&ticket(vlsn, policy), at(now), Wait::Now).unwrap()
}

#[test]
fn committed_is_said_only_when_a_majority_has_it_durable() {
    let gates = gates();
    let (b, c) = (gates.join(&id("b"), true).unwrap(), gates.join(&id("c"), true).unwrap());
    assert_eq!(poll(&gates, 12, Policy::Async, 0), Some(Outcome::Acked));
    assert_eq!(poll(&gates, 12, ONE_RECEIVED, 0), None);
    gates.acknowledge(b, durable(12));
    assert_eq!(poll(&gates, 12, ONE_RECEIVED, 0), Some(Outcome::Acked));
    assert_eq!(poll(&gates, 12, Policy::MAJORITY, 0), None);
    gates.acknowledge(c, durable(12));
    for policy in [Policy::Async, ONE_RECEIVED, ONE_DURABLE, Policy::MAJORITY] {
        assert_eq!(poll(&gates, 12, policy, 0), Some(Outcome::Committed), "{policy}");
    }
    assert_eq!(poll(&gates, 12, ALL, 0), None, "who asks for all waits for all");
    assert_eq!(poll(&gates, 13, Policy::MAJORITY, 0), None);
}

#[test]
fn committed_of_earlier_terms_stands_until_the_term_has_its_own() {
    let gates = gates();
    let seats = ["b", "c"].map(|name| gates.join(&id(name), true).unwrap());
    seats.iter().for_each(|seat| assert!(gates.acknowledge(*seat, durable(9))));
    assert_eq!(gates.committed().get(), 8);
    seats.iter().for_each(|seat| assert!(gates.acknowledge(*seat, durable(10))));
    assert_eq!(gates.committed().get(), 10);
}

#[test]
fn committed_never_falls_when_voters_leave() {
    let gates = gates();
    for name in ["b", "c"] {
        let seat = gates.join(&id(name), true).unwrap();
        gates.acknowledge(seat, durable(20));
        if name == "c" {
            assert_eq!(gates.committed().get(), 20);
        }
    }
    let seat = gates.join(&id("b"), true).unwrap();
    gates.acknowledge(seat, durable(15));
    assert_eq!(gates.committed().get(), 20);
}

#[test]
fn a_gate_made_late_knows_what_was_acknowledged_before() {
    let gates = gates();
    gates.acknowledge(gates.join(&id("b"), true).unwrap(), durable(12));
    assert_eq!(gates.position(ONE_DURABLE.rule().unwrap()).unwrap().get(), 12);
}

#[test]
fn the_first_gate_refuses_before_anything_is_written() {
    let gates = gates();
    assert!(
        matches!(gates.admit(Policy::MAJORITY), Err(Refused::Insufficient(e)) if e.connected == 1 && e.needed == 3)
    );
    assert_eq!(gates.admit(Policy::Async), Ok(()));
    assert_eq!(gates.admit(ONE_DURABLE), Ok(()), "semi-sync degrades, it does not refuse");
    let _seats = ["b", "c"].map(|name| gates.join(&id(name), true).unwrap());
    assert_eq!(gates.admit(Policy::MAJORITY), Ok(()));
    gates.close(End::Deposed);
    assert_eq!(gates.admit(Policy::MAJORITY), Err(Refused::Ended(TERM)));
}

#[test]
fn a_thirty_third_rule_is_refused() {
    let gates = gates();
    for acks in 0..31 {
        let policy = Policy::SemiSync { acks, level: Level::Applied, timeout: SECOND };
        assert_eq!(gates.admit(policy), Ok(()), "{acks}");
    }
    assert_eq!(gates.admit(ALL), Err(Refused::TooManyRules(TooManyRules)));
    assert_eq!(gates.admit(Policy::SemiSync { acks: 30, level: Level::Applied, timeout: SECOND }), Ok(()));
}

#[test]
fn a_sync_timeout_says_who_has_the_entry() {
    let gates = gates();
    gates.acknowledge(gates.join(&id("b"), true).unwrap(), durable(12));
    let error = gates.give_up(&ticket(12, Policy::MAJORITY), at(9)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the commit timed out: the entry was appended at VLSN 12 in term 3 and is durable on a, b; majority needs 3 \
         voters; the outcome is unknown until committed passes 12"
    );
    gates.acknowledge(gates.join(&id("c"), true).unwrap(), durable(12));
    assert_eq!(
        gates.give_up(&ticket(12, Policy::MAJORITY), at(9)),
        Ok(Outcome::Committed),
        "decided after all"
    );
}

#[test]
fn semi_sync_degrades_once_and_waits_again_when_the_replicas_caught_up() {
    let gates = gates();
    let b = gates.join(&id("b"), true).unwrap();
    assert_eq!(poll(&gates, 12, ONE_DURABLE, 0), None);
    assert!(!gates.degraded());
    assert_eq!(poll(&gates, 12, ONE_DURABLE, 1), Some(Outcome::Degraded));
    assert!(gates.degraded());
    assert_eq!(poll(&gates, 13, ONE_DURABLE, 0), Some(Outcome::Degraded), "at once, without its own timeout");
    gates.acknowledge(b, durable(12));
    assert!(gates.degraded(), "13 is still missing");
    gates.acknowledge(b, durable(13));
    assert!(!gates.degraded());
    assert_eq!(poll(&gates, 14, ONE_DURABLE, 0), None, "it waits again");
    assert_eq!(poll(&gates, 13, ONE_DURABLE, 9), Some(Outcome::Acked));
}

#[test]
fn writers_that_never_pause_do_not_keep_semi_sync_degraded() {
    let gates = gates();
    let b = gates.join(&id("b"), true).unwrap();
    assert_eq!(poll(&gates, 12, ONE_DURABLE, 1), Some(Outcome::Degraded));
    // The replica is slow: it needs two seconds for the next entries. It then is as far behind as before.
    assert_eq!(poll(&gates, 13, ONE_DURABLE, 2), Some(Outcome::Degraded));
    gates.acknowledge(b, durable(12));
    let late = Ticket { since: at(3), ..ticket(14, ONE_DURABLE) };
    assert_eq!(gates.wait(&late, at(3), Wait::Now), Ok(Some(Outcome::Degraded)));
    // Now it is quick: 14 comes within the timeout, though 15 has been appended meanwhile.
    gates.acknowledge(b, durable(14));
    let quick = Ticket { since: at(3), ..ticket(15, ONE_DURABLE) };
    assert_eq!(gates.wait(&quick, at(3), Wait::Now), Ok(None));
}

#[test]
fn a_closed_gate_says_why_and_what_was_satisfied_stays_so() {
    for end in [End::Deposed, End::LifeEnded] {
        let gates = gates();
        let seats = ["b", "c"].map(|name| gates.join(&id(name), true).unwrap());
        seats.iter().for_each(|seat| assert!(gates.acknowledge(*seat, durable(12))));
        gates.close(end);
        gates.close(End::Deposed);
        assert_eq!(poll(&gates, 12, Policy::MAJORITY, 0), Some(Outcome::Committed));
        for policy in [Policy::MAJORITY, ALL, ONE_DURABLE] {
            let error = gates.wait(&ticket(13, policy), at(0), Wait::Now).unwrap_err();
            match end {
                End::Deposed => assert!(matches!(error, CommitError::Deposed(_)), "{error}"),
                End::LifeEnded => assert!(matches!(error, CommitError::LifeEnded(_)), "{error}"),
            }
        }
    }
}

#[test]
fn a_degraded_rule_does_not_hide_that_the_gates_were_closed() {
    let gates = gates();
    assert_eq!(poll(&gates, 12, ONE_DURABLE, 1), Some(Outcome::Degraded));
    gates.close(End::Deposed);
    let told = gates.wait(&ticket(13, ONE_DURABLE), at(1), Wait::Now);
    assert!(matches!(told, Err(CommitError::Deposed(_))), "{told:?}");
}

#[test]
fn another_terms_entry_of_the_same_vlsn_is_not_taken_for_this_one() {
    let gates = gates();
    let mut old = ticket(5, Policy::MAJORITY);
    old.token.term = Term::new(2);
    assert!(gates.committed().get() >= 5);
    assert!(
        matches!(gates.wait(&old, at(0), Wait::Now), Err(CommitError::Deposed(facts)) if facts.acked_by.is_empty())
    );
}

#[test]
fn a_semi_sync_writer_on_a_real_thread_is_let_go_at_its_timeout() {
    let gates = gates();
    let policy = Policy::SemiSync { acks: 1, level: Level::Durable, timeout: Duration::from_millis(5) };
    let now = deadline_in(Duration::ZERO);
    let outcome = gates.wait(&Ticket { since: now, ..ticket(12, policy) }, now, Wait::Forever);
    assert_eq!(outcome, Ok(Some(Outcome::Degraded)));
}

#[test]
fn of_64_waiters_each_is_let_go_only_when_its_entry_was_passed() {
    let gates = gates();
    let (b, c) = (gates.join(&id("b"), true).unwrap(), gates.join(&id("c"), true).unwrap());
    let acknowledged = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (10..74)
            .map(|vlsn| {
                let (gates, acknowledged) = (&gates, &acknowledged);
                scope.spawn(move || {
                    let outcome = gates.wait(&ticket(vlsn, Policy::MAJORITY), at(0), Wait::Forever);
                    assert_eq!(outcome, Ok(Some(Outcome::Committed)));
                    assert!(acknowledged.load(Ordering::SeqCst) >= vlsn);
                })
            })
            .collect();
        for vlsn in 10..74 {
            acknowledged.store(vlsn, Ordering::SeqCst);
            gates.acknowledge(b, durable(vlsn));
            gates.acknowledge(c, durable(vlsn));
        }
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

#[test]
fn closing_lets_every_waiter_go() {
    let gates = gates();
    std::thread::scope(|scope| {
        let waiters: Vec<_> = (10..74)
            .map(|vlsn| {
                let policy = if vlsn % 2 == 0 { Policy::MAJORITY } else { ALL };
                let gates = &gates;
                scope.spawn(move || gates.wait(&ticket(vlsn, policy), at(0), Wait::Forever))
            })
            .collect();
        gates.close(End::LifeEnded);
        for waiter in waiters {
            assert!(matches!(waiter.join().unwrap(), Err(CommitError::LifeEnded(_))));
        }
    });
}

#[test]
fn committed_follows_the_member_list() {
    let gates = gates();
    let (b, c) = (gates.join(&id("b"), true).unwrap(), gates.join(&id("c"), true).unwrap());
    gates.acknowledge(b, durable(12));
    gates.acknowledge(c, durable(11));
    assert_eq!(gates.committed().get(), 11);
    let four = gates_members().changed(&Change::Remove(id("c"))).unwrap();
    gates.set_members(&four);
    assert_eq!(gates.committed().get(), 11, "two of four are no majority, and what is committed stays so");
    assert!(!gates.acknowledge(c, durable(50)));
    // Of three, a and b are a majority: at once, not with the next ack.
    gates.set_members(&four.changed(&Change::Remove(id("d"))).unwrap());
    assert_eq!(gates.committed().get(), 12);
}

#[test]
fn acks_that_do_not_count_yet_count_when_the_seat_is_admitted() {
    let gates = gates();
    let (b, c) = (gates.join(&id("b"), true).unwrap(), gates.join(&id("c"), false).unwrap());
    gates.acknowledge(b, durable(12));
    assert!(gates.acknowledge(c, durable(12)));
    gates.heard(b, 40);
    gates.heard(c, 50);
    assert_eq!((gates.committed().get(), gates.contact().get()), (8, 0));
    gates.admit_seat(c);
    assert_eq!((gates.committed().get(), gates.contact().get()), (12, 40));
}

#[test]
fn a_group_of_one_is_in_contact_with_itself_and_a_closed_one_with_nobody() {
    let alone = Members::new(vec![Member::electable(id("a"))]).unwrap();
    let mastership =
        Mastership { group: GroupId::from_bits(1), term: TERM, term_start: v(10), committed: None };
    let gates = CommitGates::new(mastership, &alone, &id("a")).unwrap();
    assert_eq!(gates.contact_at(at(7)), at(7));
    let two = alone.changed(&Change::Add(Member::electable(id("b")))).unwrap();
    gates.set_members(&two.changed(&Change::Promote(id("b"))).unwrap());
    assert_eq!(gates.contact_at(at(8)), at(7), "since when it was alone is known");
    let b = gates.join(&id("b"), true).unwrap();
    gates.heard(b, at(9).as_nanos());
    gates.heard(b, at(8).as_nanos());
    assert_eq!(gates.contact_at(at(10)), at(9));
    gates.close(End::Deposed);
    assert_eq!(gates.contact().wait(at(10).as_nanos(), Wait::Forever), Err(Closed));
}

#[cfg(feature = "planted")]
#[test]
fn the_planted_bug_tells_a_timeout_as_success() {
    let gates = gates();
    planted::plant(Some(Bug::TimeoutToldAsSuccess));
    let told = gates.give_up(&ticket(12, Policy::MAJORITY), at(9));
    planted::plant(None);
    assert_eq!(told, Ok(Outcome::Acked));
}
