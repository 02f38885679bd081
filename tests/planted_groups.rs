//! Bugs planted in groups that run themselves: proof that their simulation can see. Each has to be found within a bounded
//! number of seeds, and the seed that found it has to pass without it.
//!
//! tests/model_groups.rs finds some of them, too, and by the shortest way.
#![cfg(all(feature = "sim", feature = "planted"))]

#[path = "common/groups.rs"]
mod groups;

use std::panic::{AssertUnwindSafe, catch_unwind};

use groups::{Cluster, Plan};
use quorate::planted::{Bug, plant};

const SEEDS: u64 = 400;

/// Runs seeds with the bug until one fails; the same seed has to pass without it.
fn is_found(bug: Bug, plan: fn() -> Plan) {
    for seed in 0..SEEDS {
        let Some(how) = fails(seed, Some(bug), plan) else { continue };
        let first_line = how.lines().next().unwrap_or("").to_owned();
        println!("{bug:?}: found at seed {seed}: {first_line}");
        assert_eq!(fails(seed, None, plan), None, "seed {seed} fails without {bug:?}, too");
        return;
    }
    panic!("{bug:?} was not found in {SEEDS} seeds");
}

/// How a run with this seed fails, if it does: a violation, or a broken invariant's panic.
fn fails(seed: u64, bug: Option<Bug>, plan: fn() -> Plan) -> Option<String> {
    plant(bug);
    let outcome = catch_unwind(AssertUnwindSafe(|| Cluster::new(seed, plan()).run()));
    plant(None);
    match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(text.unwrap_or_else(|| "panic".to_owned()))
        }
    }
}

#[test]
#[ignore]
fn explore() {
    use Bug::*;
    let only = std::env::var("BUG").ok();
    for bug in [
        VoteNotSynced,
        OneVoteSlotSynced,
        SecondVoteInATerm,
        TermsRestartAtOne,
        OldTermCommitted,
        AcksAfterRollbackCount,
        LearnerCounted,
        RemovedNodeCounted,
        NoPreVote,
        PreVoteTakenForVote,
        VoteWhileMasterIsHeard,
        VoteComparesVlsnOnly,
        WipedNodeVotes,
        ChangeBeforeTermStart,
        TwoChangesAtOnce,
        TokenComparesVlsnOnly,
        MatchpointByVlsnOnly,
        TruncateBelowCommitted,
        ArbiterAcksBeforePersisting,
        LowerTermAccepted,
    ] {
        if only.as_ref().is_some_and(|only| *only != format!("{bug:?}")) {
            continue;
        }
        let plans: [(&str, fn() -> Plan); 10] = [
            ("slow", || Plan::slow_network(5)),
            ("steady", || Plan::steady(3)),
            ("cascade", Plan::cascade),
            ("crashes3", || Plan::crashes(3)),
            ("crashes5", || Plan::crashes(5)),
            ("partitions3", || Plan::partitions(3)),
            ("partitions5", || Plan::partitions(5)),
            ("arbiter", Plan::arbiter),
            ("membership", Plan::membership),
            ("everything", Plan::everything),
        ];
        for (name, plan) in plans {
            let limit = std::env::var("LIMIT").map_or(60, |l| l.parse().unwrap());
            let found = (0..limit).find_map(|seed| Some((seed, fails(seed, Some(bug), plan)?)));
            match found {
                Some((seed, how)) => println!("{bug:?} {name} {seed}: {}", how.lines().next().unwrap_or("")),
                None => println!("{bug:?} {name} -"),
            }
        }
    }
}
