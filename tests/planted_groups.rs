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

const SEEDS: u64 = 100;

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

macro_rules! planted {
    ($($name:ident: $bug:ident under $plan:expr;)*) => {
        $(#[test] fn $name() { is_found(Bug::$bug, || $plan); })*
    };
}

planted! {
    a_second_vote_in_one_term: SecondVoteInATerm under Plan::slow_network(5);
    terms_that_restart_at_one: TermsRestartAtOne under Plan::crashes(3);
    a_token_known_by_its_vlsn_alone: TokenComparesVlsnOnly under Plan::crashes(3);
    elections_without_a_pre_vote: NoPreVote under Plan::steady(3);
    a_matchpoint_by_vlsn_alone: MatchpointByVlsnOnly under Plan::crashes(3);
    an_arbiter_that_acks_before_it_persists: ArbiterAcksBeforePersisting under Plan::arbiter();
    a_pre_vote_taken_for_a_vote: PreVoteTakenForVote under Plan::crashes(3);
    two_changes_of_members_at_once: TwoChangesAtOnce under Plan::cascade();
}
