//! The judge of histories (tests/common/history.rs) against histories known to be good and bad, and against a search
//! through all orders.
#![cfg(feature = "sim")]

#[path = "common/history.rs"]
mod history;

use history::{Call, Flaw, History, Op, Outcome, Seen, Tally};
use quorate::sim::{Rng, replaying, seeds};

const NEVER: u64 = u64::MAX;

/// A history of one key: each operation with its begin, its end, the call and what was told.
fn of_key(ops: &[(u64, u64, Call, Outcome)]) -> History {
    let op = |(client, &(began, ended, call, outcome))| Op { client, key: 1, call, began, ended, outcome };
    History { ops: ops.iter().enumerate().map(op).collect() }
}

fn put(value: u64) -> Call {
    Call::Put { value }
}

fn cas(expected: u64, value: u64) -> Call {
    Call::Cas { expected, value }
}

fn sees(version: u64, value: u64) -> Outcome {
    Outcome::Read(Seen { version, value: Some(value) })
}

fn sees_none(version: u64) -> Outcome {
    Outcome::Read(Seen { version, value: None })
}

const LOST: Outcome = Outcome::Unknown { at: None };

use Call::{Delete, Get};
use Outcome::{Failed, Mismatch, Wrote};

#[track_caller]
fn good(ops: &[(u64, u64, Call, Outcome)]) -> Tally {
    of_key(ops).check().unwrap()
}

#[track_caller]
fn bad(ops: &[(u64, u64, Call, Outcome)], flaw: Flaw) {
    assert_eq!(of_key(ops).check(), Err(flaw));
}

#[test]
fn a_history_of_all_calls_one_after_the_other_is_good() {
    let tally = good(&[
        (0, 1, Get, sees_none(0)),
        (2, 3, put(10), Wrote(5)),
        (4, 5, Get, sees(5, 10)),
        (6, 7, cas(5, 11), Wrote(7)),
        (8, 9, cas(5, 12), Mismatch(Seen { version: 7, value: Some(11) })),
        (10, 11, Delete, Wrote(8)),
        (12, 13, Get, sees_none(8)),
        (14, 15, cas(8, 13), Wrote(9)),
        (16, 17, put(14), Failed),
        (18, 19, Get, sees(9, 13)),
    ]);
    assert_eq!(tally, Tally { reads: 4, writes: 4, mismatches: 1, failed: 1, ..Tally::default() });
}

#[test]
fn operations_that_overlap_may_take_effect_in_any_order() {
    good(&[
        (0, 9, put(1), Wrote(2)),
        (0, 9, put(2), Wrote(1)),
        (3, 4, Get, sees(1, 2)),
        (5, 6, Get, sees(2, 1)),
    ]);
    good(&[(0, 9, put(1), Wrote(1)), (3, 4, Get, sees(1, 1)), (3, 4, Get, sees_none(0))]);
    // To end at the moment at which another begins is to overlap.
    good(&[(0, 5, put(1), Wrote(1)), (5, 6, Get, sees_none(0))]);
}

#[test]
fn a_write_of_unknown_outcome_may_be_seen_early_late_or_never() {
    let lost = (0, NEVER, put(1), LOST);
    good(&[lost, (5, 6, Get, sees_none(0)), (7, 8, Get, sees_none(0))]);
    good(&[lost, (5, 6, Get, sees(3, 1))]);
    good(&[lost, (5, 6, Get, sees_none(0)), (7, 8, put(2), Wrote(2)), (9, 10, Get, sees(3, 1))]);
    let tally = good(&[lost, (2, NEVER, put(2), LOST), (5, 6, Get, sees(3, 1))]);
    assert_eq!((tally.unknown_seen, tally.unknown_unseen), (1, 1));
}

#[test]
fn deletions_of_unknown_outcome_are_dealt_to_whoever_they_can_serve() {
    let (early, late) = ((0, NEVER, Delete, LOST), (20, NEVER, Delete, LOST));
    good(&[late, early, (1, 2, put(1), Wrote(1)), (3, 4, Get, sees_none(2)), (21, 22, Get, sees_none(3))]);
    bad(
        &[late, (1, 2, put(1), Wrote(1)), (3, 4, Get, sees_none(2))],
        Flaw::FromTheFuture { reader: 2, writer: 0 },
    );
    bad(&[early, (1, 2, Get, sees_none(2)), (3, 4, Get, sees_none(3))], Flaw::NobodyWrote { reader: 2 });
    let placed = |at| (0, NEVER, Delete, Outcome::Unknown { at: Some(at) });
    good(&[placed(3), (1, 2, put(1), Wrote(1)), (3, 4, Get, sees_none(3))]);
    bad(&[placed(4), (1, 2, put(1), Wrote(1)), (3, 4, Get, sees_none(3))], Flaw::NobodyWrote { reader: 2 });
}

#[test]
fn a_stale_read_is_found() {
    bad(
        &[(0, 1, put(1), Wrote(1)), (2, 3, put(2), Wrote(2)), (4, 5, Get, sees(1, 1))],
        Flaw::Stale { late: 2, ended_before: 1 },
    );
    // Two readers disagree about the order, though the write has not ended.
    bad(
        &[(0, 9, put(1), Wrote(1)), (1, 2, Get, sees(1, 1)), (3, 4, Get, sees_none(0))],
        Flaw::Stale { late: 2, ended_before: 1 },
    );
}

#[test]
fn a_lost_update_is_found() {
    // Both read version 1 and both wrote on it.
    bad(
        &[(0, 1, put(1), Wrote(1)), (2, 9, cas(1, 2), Wrote(2)), (2, 9, cas(1, 3), Wrote(3))],
        Flaw::CasOnStale { cas: 2, expected: 1, before: 2 },
    );
}

#[test]
fn a_write_told_ok_and_never_seen_is_found() {
    bad(&[(0, 1, put(1), Wrote(4)), (2, 3, Get, sees_none(0))], Flaw::Stale { late: 1, ended_before: 0 });
    bad(
        &[(0, 1, put(1), Wrote(4)), (2, 3, put(2), Wrote(4)), (4, 5, Get, sees(4, 2))],
        Flaw::TwoWrites { version: 4, one: 0, other: 1 },
    );
}

#[test]
fn a_failed_write_that_is_seen_is_found() {
    bad(&[(0, 1, put(1), Failed), (2, 3, Get, sees(4, 1))], Flaw::FailedSeen { reader: 1, writer: 0 });
    let found = Mismatch(Seen { version: 1, value: Some(9) });
    bad(
        &[(0, 1, put(9), Wrote(1)), (2, 3, cas(0, 1), found), (4, 5, Get, sees(2, 1))],
        Flaw::FailedSeen { reader: 2, writer: 1 },
    );
}

#[test]
fn two_writes_with_one_version_are_found_on_one_key_and_on_two() {
    bad(
        &[(0, 1, put(1), Wrote(4)), (0, 1, Delete, Wrote(4))],
        Flaw::TwoWrites { version: 4, one: 0, other: 1 },
    );
    let mut history = of_key(&[(0, 1, put(1), Wrote(4)), (0, 1, put(2), Wrote(4))]);
    history.ops[1].key = 2;
    assert_eq!(history.check(), Err(Flaw::TwoWrites { version: 4, one: 0, other: 1 }));
}

#[test]
fn versions_of_two_keys_that_run_against_time_are_found() {
    let mut history = of_key(&[(0, 1, put(1), Wrote(5)), (2, 3, put(2), Wrote(4))]);
    history.ops[1].key = 2;
    assert_eq!(history.check(), Err(Flaw::Stale { late: 1, ended_before: 0 }));
}

#[test]
fn a_read_from_the_future_is_found() {
    bad(&[(0, 1, Get, sees(4, 1)), (2, 3, put(1), Wrote(4))], Flaw::FromTheFuture { reader: 0, writer: 1 });
    bad(&[(0, 1, Get, sees(4, 1)), (2, NEVER, put(1), LOST)], Flaw::FromTheFuture { reader: 0, writer: 1 });
}

#[test]
fn a_cas_that_succeeded_on_a_stale_version_is_found() {
    bad(
        &[(0, 1, put(1), Wrote(1)), (2, 3, put(2), Wrote(2)), (4, 5, cas(1, 3), Wrote(3))],
        Flaw::CasOnStale { cas: 2, expected: 1, before: 2 },
    );
    // One of unknown outcome, which a read shows to have taken effect.
    bad(
        &[
            (0, 1, put(1), Wrote(1)),
            (2, 3, put(2), Wrote(2)),
            (4, NEVER, cas(1, 3), LOST),
            (5, 6, Get, sees(3, 3)),
        ],
        Flaw::CasOnStale { cas: 2, expected: 1, before: 2 },
    );
    let found = Mismatch(Seen { version: 1, value: Some(1) });
    bad(&[(0, 1, put(1), Wrote(1)), (2, 3, cas(1, 2), found)], Flaw::CasRefused { cas: 1 });
}

#[test]
fn a_value_read_after_its_key_was_deleted_is_found() {
    bad(
        &[(0, 1, put(1), Wrote(1)), (2, 3, Delete, Wrote(2)), (4, 5, Get, sees(1, 1))],
        Flaw::Stale { late: 2, ended_before: 1 },
    );
    bad(
        &[(0, 1, put(1), Wrote(1)), (2, 3, Delete, Wrote(2)), (4, 5, Get, sees(2, 1))],
        Flaw::OtherValue { version: 2, reader: 2, writer: 1 },
    );
}

#[test]
fn values_that_nobody_wrote_or_that_move_are_found() {
    bad(&[(0, 1, Get, sees(4, 1))], Flaw::NobodyWrote { reader: 0 });
    bad(&[(0, 1, Get, sees_none(4))], Flaw::NobodyWrote { reader: 0 });
    bad(&[(0, 1, put(1), Wrote(1)), (2, 3, Get, sees(2, 1))], Flaw::Moved { reader: 1, writer: 0 });
    bad(
        &[(0, NEVER, put(1), LOST), (2, 3, Get, sees(1, 1)), (4, 5, Get, sees(2, 1))],
        Flaw::Moved { reader: 2, writer: 0 },
    );
    let placed = Outcome::Unknown { at: Some(3) };
    bad(&[(0, NEVER, put(1), placed), (2, 3, Get, sees(2, 1))], Flaw::Moved { reader: 1, writer: 0 });
    bad(
        &[(0, 1, put(1), Wrote(1)), (0, 1, put(2), Wrote(2)), (2, 3, Get, sees(2, 1))],
        Flaw::OtherValue { version: 2, reader: 2, writer: 1 },
    );
}

/// Searches for an order of all operations by trying each: whoever may come next does, and what it was told has to be
/// true. For histories of one key and a few operations.
fn some_order_explains(ops: &[Op], done: u32, state: Seen) -> bool {
    let left = |number: usize| done & (1 << number) == 0;
    if (0..ops.len())
        .all(|number| !left(number) || matches!(ops[number].outcome, Outcome::Unknown { .. } | Failed))
    {
        return true;
    }
    let first_end = (0..ops.len()).filter(|n| left(*n)).map(|n| ops[n].ended).min().unwrap_or(NEVER);
    for (number, op) in ops.iter().enumerate().filter(|(number, _)| left(*number)) {
        if op.began > first_end || op.outcome == Failed && op.ended > first_end {
            continue;
        }
        let done = done | 1 << number;
        let next = |version: u64| match op.call {
            Call::Put { value } => Some(Seen { version, value: Some(value) }),
            Call::Cas { expected, value } => {
                (expected == state.version).then_some(Seen { version, value: Some(value) })
            }
            Call::Delete => Some(Seen { version, value: None }),
            Call::Get => None,
        };
        let goes_on = match op.outcome {
            Outcome::Wrote(version) => {
                version > state.version
                    && next(version).is_some_and(|state| some_order_explains(ops, done, state))
            }
            Outcome::Read(seen) => seen == state && some_order_explains(ops, done, state),
            Outcome::Mismatch(seen) => {
                let refused = !matches!(op.call, Call::Cas { expected, .. } if expected == state.version);
                seen == state && refused && some_order_explains(ops, done, state)
            }
            Failed => some_order_explains(ops, done, state),
            Outcome::Unknown { at } => (state.version + 1..=LAST_VERSION)
                .filter(|version| at.is_none_or(|at| at == *version))
                .filter_map(next)
                .any(|state| some_order_explains(ops, done, state)),
        };
        if goes_on {
            return true;
        }
    }
    false
}

const LAST_VERSION: u64 = 8;

/// What really happened, or nearly: a run with true answers, of which one or two are then bent.
fn any_history(rng: &mut Rng) -> History {
    let count = rng.between(2, 6);
    let mut state = Seen { version: 0, value: None };
    let mut ops: Vec<Op> = Vec::new();
    let mut now = 10;
    for number in 0..count {
        now += rng.below(4);
        let value = 100 + number;
        let known: Vec<u64> = std::iter::once(0).chain(ops.iter().filter_map(version_of)).collect();
        let call = match rng.below(6) {
            0 | 1 => Call::Get,
            2 => Call::Delete,
            3 => Call::Cas { expected: known[rng.index(known.len())], value },
            4 => Call::Cas { expected: state.version, value },
            _ => Call::Put { value },
        };
        let version = (state.version + rng.between(1, 2)).min(LAST_VERSION);
        let takes_effect = match call {
            Call::Get => false,
            Call::Cas { expected, .. } => expected == state.version,
            _ => true,
        } && version > state.version;
        let fate = rng.below(8);
        let mut outcome = match (call, takes_effect, fate) {
            (Call::Get, ..) => Outcome::Read(state),
            (_, _, 0) => Failed,
            (_, false, 1..=3) | (_, true, 1) => Outcome::Unknown { at: None },
            (Call::Cas { expected, .. }, false, _) if expected != state.version => Mismatch(state),
            (_, false, _) => Failed,
            (_, true, 2) => Outcome::Unknown { at: rng.chance(0.5).then_some(version) },
            (_, true, _) => Wrote(version),
        };
        if takes_effect && fate >= 2 {
            let value = match call {
                Call::Put { value } | Call::Cas { value, .. } => Some(value),
                _ => None,
            };
            state = Seen { version, value };
        }
        if let (Outcome::Unknown { at }, Call::Get) = (&mut outcome, call) {
            *at = None;
        }
        let began = now - rng.below(6);
        let ended = if matches!(outcome, Outcome::Unknown { .. }) { NEVER } else { now + rng.below(6) };
        ops.push(Op { client: number as usize, key: 1, call, began, ended, outcome });
    }
    for _ in 0..rng.below(3) {
        bend(&mut ops, rng);
    }
    History { ops }
}

fn version_of(op: &Op) -> Option<u64> {
    match op.outcome {
        Outcome::Wrote(version) => Some(version),
        Outcome::Read(seen) | Mismatch(seen) => Some(seen.version),
        Failed | Outcome::Unknown { .. } => None,
    }
}

fn bend(ops: &mut [Op], rng: &mut Rng) {
    let (one, other) = (rng.index(ops.len()), rng.index(ops.len()));
    let outcomes = (ops[one].outcome, ops[other].outcome);
    match (rng.below(4), outcomes) {
        (0, (Outcome::Read(_) | Mismatch(_), Outcome::Read(seen) | Mismatch(seen))) => {
            ops[one].outcome = if ops[one].call == Call::Get { Outcome::Read(seen) } else { Mismatch(seen) };
        }
        (0, (Wrote(a), Wrote(b))) => (ops[one].outcome, ops[other].outcome) = (Wrote(b), Wrote(a)),
        (1, (Wrote(version), _)) => ops[one].outcome = Wrote(rng.between(version.max(2) - 1, LAST_VERSION)),
        (1, (Outcome::Read(seen), _)) => {
            ops[one].outcome = Outcome::Read(Seen { version: rng.below(LAST_VERSION), ..seen });
        }
        (2, (Wrote(_), _)) => ops[one].outcome = Failed,
        _ => {
            let long = if ops[one].ended == NEVER { 0 } else { ops[one].ended - ops[one].began };
            ops[one].began = rng.between(5, 25);
            ops[one].ended = if ops[one].ended == NEVER { NEVER } else { ops[one].began + long };
        }
    }
}

/// A compare-and-set names a version that somebody saw or made: clients have no other.
fn expects_what_is_known(history: &History) -> bool {
    let known: Vec<u64> = history.ops.iter().filter_map(version_of).collect();
    history.ops.iter().all(|op| match op.call {
        Call::Cas { expected, .. } => expected == 0 || known.contains(&expected),
        _ => true,
    })
}

#[test]
fn the_judge_says_what_a_search_through_all_orders_says() {
    let (mut linearizable, mut flawed) = (0, 0);
    for seed in seeds(60_000) {
        let history = any_history(&mut Rng::new(seed));
        if !expects_what_is_known(&history) {
            continue;
        }
        let found = some_order_explains(&history.ops, 0, Seen { version: 0, value: None });
        let judged = history.check();
        assert_eq!(judged.is_ok(), found, "QUORATE_SEED={seed}: {judged:?} of {:#?}", history.ops);
        *if found { &mut linearizable } else { &mut flawed } += 1;
    }
    println!("{linearizable} linearizable, {flawed} flawed");
    assert!(replaying() || (linearizable > 10_000 && flawed > 10_000), "{linearizable} and {flawed}");
}

#[test]
fn a_hundred_thousand_operations_on_one_key_are_judged_at_once() {
    let mut history = History::default();
    for number in 0..50_000 {
        let now = number * 10;
        let (version, value) = (number + 1, number + 1);
        let write = history.begin(0, 1, put(value), now);
        let read = history.begin(1, 1, Get, now);
        history.end(write, if number % 7 == 0 { LOST } else { Wrote(version) }, now + 25);
        history.end(read, sees(version, value), now + 9);
    }
    let tally = history.check().unwrap();
    assert_eq!((tally.reads, tally.unknown_seen), (50_000, 7_143));
}
