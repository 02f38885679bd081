//! Groups of three and five that run themselves, simulated: one master a term, nothing told is ever lost, histories are
//! linearizable, and after the trouble ends writing goes on and everybody has the same.
//!
//! `QUORATE_SEED=n` replays one seed; `QUORATE_SEEDS=n` runs that many (docs/testing.md).
#![cfg(feature = "sim")]

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/history.rs"]
mod history;
#[path = "common/store.rs"]
mod store;

use std::time::Duration;

use cluster::{CRASH_FAULTS, Cluster, Plan};
use history::Tally;
use quorate::sim::{Fault, FaultCounts, seeds};

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

const TIME: Duration = Duration::from_millis(1500);

/// Runs the seeds; returns how often each fault fired.
fn campaign(name: &str, plan: &dyn Fn() -> Plan, count: u64) -> FaultCounts {
    if std::env::var_os("QUORATE_LOG").is_some() && log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
    }
    let mut faults = FaultCounts::default();
    let mut tally = Tally::default();
    let (mut runs, mut terms, mut committed) = (0, 0, 0);
    let mut hours = 0.0;
    for seed in seeds(count) {
        let mut cluster = Cluster::new(seed, plan());
        match cluster.run(TIME) {
            Ok(one) => tally.add(one),
            Err(violation) => panic!("{name}: QUORATE_SEED={seed}: {violation}"),
        }
        faults.merge(&cluster.faults());
        terms += cluster.counts.terms;
        committed += cluster.counts.committed;
        hours += cluster.virtual_hours();
        runs += 1;
    }
    println!(
        "{name}: {runs} seeds, {hours:.3} simulated hours, {terms} masters, {committed} told committed, {tally:?}, faults {faults:?}"
    );
    assert!(committed > 0 && terms >= runs, "{name}: nothing happened");
    faults
}

fn must_have_met(name: &str, faults: &FaultCounts, expected: &[Fault]) {
    if std::env::var_os("QUORATE_SEED").is_none() {
        let missing = faults.missing(expected);
        assert!(missing.is_empty(), "{name}: faults that never fired: {missing:?}");
    }
}

#[test]
fn three_nodes_lose_nothing_to_crashes() {
    let faults = campaign("crashes of 3", &|| Plan::crashes(3), 30);
    must_have_met("crashes of 3", &faults, &CRASH_FAULTS);
}

#[test]
fn five_nodes_lose_nothing_to_crashes() {
    let faults = campaign("crashes of 5", &|| Plan::crashes(5), 15);
    must_have_met("crashes of 5", &faults, &CRASH_FAULTS);
}

#[test]
fn partitions_make_no_second_master_that_commits() {
    campaign("partitions of 3", &|| Plan::partitions(3), 25);
    campaign("partitions of 5", &|| Plan::partitions(5), 10);
}

#[test]
fn a_paused_node_comes_back_to_a_group_that_went_on() {
    campaign("pauses of 3", &|| Plan::pauses(3), 25);
}

#[test]
fn failing_disks_cost_a_node_its_part_and_the_group_nothing() {
    let faults = campaign("failing disks of 3", &|| Plan::failing_disks(3), 25);
    must_have_met("failing disks", &faults, &[Fault::WriteError, Fault::NoSpace, Fault::SyncError]);
}

#[test]
fn two_nodes_and_an_arbiter_lose_nothing() {
    campaign("arbiter", &Plan::arbiter, 25);
}

#[test]
fn members_that_come_and_go_lose_nothing() {
    campaign("churn of 3", &|| Plan::churn(3), 20);
    campaign("churn of 5", &|| Plan::churn(5), 10);
}

#[test]
fn wiped_nodes_come_back_and_count_only_when_they_have_caught_up() {
    campaign("wipes of 3", &|| Plan::wipes(3), 20);
}

#[test]
fn everything_at_once() {
    campaign("everything of 3", &|| Plan::everything(3), 20);
    campaign("everything of 5", &|| Plan::everything(5), 10);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed, Plan::everything(3));
        let outcome = cluster.run(Duration::from_millis(300)).map(|tally| format!("{tally:?}"));
        (outcome, cluster.sim.trace_hash(), cluster.sim.steps())
    };
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(first, second);
    assert_ne!(first.1, other.1);
}
