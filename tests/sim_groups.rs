//! Groups that run themselves, simulated: what is told is true, one master in a term, histories that are linearizable, and
//! after the trouble ends the group serves again and everything comes right.
//!
//! `QUORATE_SEED=n` replays one seed; `QUORATE_SEEDS=n` runs that many (docs/testing.md).
#![cfg(feature = "sim")]

#[path = "common/groups.rs"]
mod groups;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use groups::{Cluster, Plan, Tally};
use quorate::sim::{FaultCounts, replaying, seeds};

/// Prints the library's log, where `QUORATE_LOG` is set: for replaying one seed.
struct Shown;

impl log::Log for Shown {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        println!("{}: {}", record.level(), record.args());
    }
    fn flush(&self) {}
}

/// What all runs of a campaign met.
struct Met {
    faults: FaultCounts,
    counts: BTreeMap<&'static str, u64>,
}

fn campaign(name: &str, plan: fn() -> Plan, count: u64) -> Met {
    if std::env::var_os("QUORATE_LOG").is_some() && log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let mut met = Met { faults: FaultCounts::default(), counts: BTreeMap::new() };
    let (mut tally, mut runs) = (Tally::default(), 0);
    let mut broken = Vec::new();
    for seed in seeds(count) {
        let mut cluster = Cluster::new(seed, plan());
        match catch_unwind(AssertUnwindSafe(|| cluster.run())) {
            Ok(Ok(one)) => tally.add(one),
            Ok(Err(violation)) => {
                println!("{name}: QUORATE_SEED={seed}: {violation}");
                broken.push(seed);
            }
            Err(_) => broken.push(seed),
        }
        met.faults.merge(&cluster.faults());
        for (what, times) in &cluster.counts {
            *met.counts.entry(what).or_default() += times;
        }
        runs += 1;
        assert!(broken.len() < 10, "{name}: of {runs} seeds these are broken: {broken:?}");
    }
    println!("{name}: {runs} seeds, {tally:?}, {:?}, faults {:?}", met.counts, met.faults);
    assert!(broken.is_empty(), "{name}: broken seeds: {broken:?}");
    met
}

fn must_have_met(name: &str, met: &Met, expected: &[&'static str]) {
    if !replaying() {
        let missing: Vec<_> = expected.iter().filter(|what| !met.counts.contains_key(*what)).collect();
        assert!(missing.is_empty(), "{name}: never happened: {missing:?}");
    }
}

#[test]
fn a_calm_group_serves() {
    let met = campaign("calm", || Plan::calm(3), 5);
    must_have_met("calm", &met, &["committed"]);
}

#[test]
fn three_nodes_lose_nothing_in_crashes() {
    let met = campaign("crashes of three", || Plan::crashes(3), 20);
    must_have_met("crashes of three", &met, &["committed", "gone", "unknown", "blackouts"]);
}

#[test]
fn five_nodes_lose_nothing_in_crashes() {
    let met = campaign("crashes of five", || Plan::crashes(5), 10);
    must_have_met("crashes of five", &met, &["committed", "blackouts"]);
}

#[test]
fn partitions_of_every_shape_split_nothing() {
    let met = campaign("partitions", || Plan::partitions(5), 10);
    must_have_met("partitions", &met, &["committed", "isolated", "rings", "halves"]);
}

#[test]
fn pauses_longer_than_an_election_and_calendars_that_jump_split_nothing() {
    let met = campaign("pauses", || Plan::pauses(3), 15);
    must_have_met("pauses", &met, &["committed", "jumps"]);
}

#[test]
fn failing_disks_lose_nothing() {
    let met = campaign("failing disks", || Plan::failing_disks(3), 15);
    must_have_met("failing disks", &met, &["committed", "restarts"]);
}

#[test]
fn two_nodes_and_an_arbiter_lose_nothing() {
    let met = campaign("arbiter", Plan::arbiter, 15);
    must_have_met("arbiter", &met, &["committed", "transfers", "blackouts"]);
}

#[test]
fn a_network_so_slow_that_candidates_meet_makes_one_master_a_term() {
    let met = campaign("slow network", || Plan::slow_network(5), 15);
    must_have_met("slow network", &met, &["committed", "demoted", "isolated"]);
}

#[test]
fn nodes_that_were_cut_off_come_back_and_depose_nobody() {
    let met = campaign("steady", || Plan::steady(3), 15);
    must_have_met("steady", &met, &["committed", "isolated"]);
}

#[test]
fn secondaries_fed_by_a_replica_get_what_is_committed_and_nothing_else() {
    let met = campaign("cascade", Plan::cascade, 15);
    must_have_met("cascade", &met, &["committed", "isolated", "transfers"]);
}

#[test]
fn members_that_come_and_go_lose_nothing() {
    let met = campaign("membership", Plan::membership, 15);
    must_have_met("membership", &met, &["committed", "joined", "removed", "wiped", "transfers"]);
}

#[test]
fn everything_at_once_loses_nothing() {
    let met = campaign("everything", Plan::everything, 15);
    must_have_met("everything", &met, &["committed", "removed", "joined", "restarts", "blackouts"]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed, Plan::everything());
        let outcome = cluster.run();
        (outcome, cluster.sim.trace_hash(), cluster.sim.steps(), cluster.counts.clone())
    };
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(first, second);
    assert_ne!(first.1, other.1);
}
