//! Groups that keep no more of their logs than they have to, simulated, with slots, snapshots, an archive and rot, under every
//! trouble: nobody who needs something finds it gone, what is damaged is never served and heals, whoever lost everything
//! comes back, and what is restored from the archive is what was applied.
//!
//! `QUORATE_SEED=n` replays one seed; `QUORATE_SEEDS=n` runs that many (docs/testing.md).
#![cfg(feature = "sim")]

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/history.rs"]
mod history;
#[path = "common/store.rs"]
mod store;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cluster::{Cluster, Keep, Plan};
use history::Tally;
use quorate::sim::{FaultCounts, replaying, seeds};

std::thread_local! {
    static RESUMED: Cell<u64> = const { Cell::new(0) };
}

/// Counts the snapshots that went on where they were; prints the library's log, where `QUORATE_LOG` is set.
struct Watching {
    shows: bool,
}

impl log::Log for Watching {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.shows {
            println!("{}: {}", record.level(), record.args());
        }
        if record.target() == "quorate::node::fetch" {
            let line = record.args().to_string();
            if line.starts_with("fetching") && !line.contains("item: 0, offset: 0 }") {
                RESUMED.set(RESUMED.get() + 1);
            }
        }
    }
    fn flush(&self) {}
}

const TIME: Duration = Duration::from_millis(1500);

/// What all runs of a campaign met.
type Met = BTreeMap<&'static str, u64>;

fn campaign(name: &str, plan: &dyn Fn() -> Plan, count: u64) -> Met {
    let shows = std::env::var_os("QUORATE_LOG").is_some();
    let level = if shows { log::LevelFilter::Debug } else { log::LevelFilter::Info };
    if log::set_logger(Box::leak(Box::new(Watching { shows }))).is_ok() {
        log::set_max_level(level);
    }
    RESUMED.set(0);
    let (mut met, mut faults, mut tally) = (Met::new(), FaultCounts::default(), Tally::default());
    let (mut runs, mut committed, mut broken) = (0, 0, Vec::new());
    for seed in seeds(count) {
        let mut cluster = Cluster::new(seed, plan());
        match catch_unwind(AssertUnwindSafe(|| cluster.run(TIME))) {
            Ok(Ok(one)) => tally.add(one),
            Ok(Err(violation)) => {
                println!("{name}: QUORATE_SEED={seed}: {violation}");
                broken.push(seed);
            }
            Err(_) => {
                println!("{name}: QUORATE_SEED={seed} panicked");
                broken.push(seed);
            }
        }
        for (what, times) in cluster.met() {
            *met.entry(what).or_default() += times;
        }
        *met.entry("wipes").or_default() += cluster.counts.wipes;
        faults.merge(&cluster.faults());
        committed += cluster.counts.committed;
        runs += 1;
        assert!(broken.len() < 10, "{name}: of {runs} seeds these are broken: {broken:?}");
    }
    met.insert("snapshots resumed", RESUMED.get());
    println!("{name}: {runs} seeds, {committed} told committed, {met:?}, {tally:?}, faults {faults:?}");
    assert!(broken.is_empty(), "{name}: broken seeds: {broken:?}");
    assert!(committed > 0, "{name}: nothing happened");
    met
}

fn must_have_met(name: &str, met: &Met, expected: &[&'static str]) {
    if !replaying() {
        let missing: Vec<_> =
            expected.iter().filter(|what| met.get(*what).is_none_or(|times| *times == 0)).collect();
        assert!(missing.is_empty(), "{name}: never happened: {missing:?}");
    }
}

fn of_slots() -> Plan {
    Plan::crashes(3).keeping(Keep { slots: 0.2, own_slots: true, ..Keep::default() })
}

fn of_wipes() -> Plan {
    let mut plan = Plan::wipes(3).keeping(Keep { rate: 64 << 10, ..Keep::default() });
    (plan.transfer, plan.isolate, plan.net.reset) = (0.01, 0.005, 0.005);
    plan
}

fn of_rot() -> Plan {
    Plan::crashes(3).keeping(Keep { rot: 0.05, pin_max_bytes: 1 << 20, ..Keep::default() })
}

fn of_everything(nodes: usize) -> Plan {
    let keep = Keep { rate: 256 << 10, archive: true, rot: 0.02, own_slots: true, ..Keep::default() };
    Plan { wipe: 0.005, ..Plan::everything(nodes).keeping(keep) }
}

#[test]
fn slots_lose_nothing_and_caps_are_kept_in_crashes() {
    let met = campaign("slots", &of_slots, 20);
    must_have_met(
        "slots",
        &met,
        &["prunes", "slots set", "slots dropped", "slots read", "slots invalidated"],
    );
}

#[test]
fn wiped_nodes_come_back_by_snapshots_that_are_broken_off_and_resumed() {
    let met = campaign("snapshots", &of_wipes, 20);
    must_have_met(
        "snapshots",
        &met,
        &["wipes", "snapshots installed", "snapshots resumed", "providers changed"],
    );
}

#[test]
fn members_that_come_and_go_get_what_no_log_has() {
    let met = campaign("churn", &|| Plan::churn(3).keeping(Keep::default()), 15);
    must_have_met("churn", &met, &["snapshots installed", "prunes"]);
}

/// One node's log ended in doubt where the others had pruned, and without it no majority was left: the third was being removed.
#[test]
fn a_node_in_doubt_where_others_have_pruned_holds_up_no_group_that_needs_its_vote() {
    let mut cluster = Cluster::new(280, Plan::churn(3).keeping(Keep::default()));
    cluster.run(TIME).unwrap();
}

#[test]
fn rot_on_one_node_at_a_time_is_never_served_and_heals() {
    let met = campaign("rot", &of_rot, 20);
    must_have_met("rot", &met, &["rot in sealed segments", "rot under a mark", "segments mended"]);
}

#[test]
fn what_is_restored_from_the_archive_is_what_was_applied() {
    let keep = || Keep { archive: true, ..Keep::default() };
    let met = campaign("archive", &|| Plan { transfer: 0.01, ..Plan::wipes(3).keeping(keep()) }, 20);
    must_have_met("archive", &met, &["bases", "restores compared"]);
}

#[test]
fn everything_at_once() {
    let met = campaign("everything of 3", &|| of_everything(3), 15);
    must_have_met("everything", &met, &["snapshots installed", "prunes", "restores compared"]);
    campaign("everything of 5", &|| of_everything(5), 8);
}

/// Slots that were given up just before the end; a damaged segment that was dropped, with what a slot kept of it; a list of
/// slots that was cut off again, and had asked for less than the one before it.
#[test]
fn what_is_given_up_is_told_and_a_list_that_was_cut_off_kept_what_it_had_asked_for() {
    let seeds: [(u64, fn() -> Plan); 5] = [
        (103, of_slots),
        (276, of_slots),
        (106, of_rot),
        (35, || of_everything(5)),
        (283, || of_everything(5)),
    ];
    for (seed, plan) in seeds {
        let outcome = Cluster::new(seed, plan()).run(TIME).map(|_| ());
        assert_eq!(outcome, Ok(()), "seed {seed}");
    }
}

/// A master came, and said that a snapshot was needed, while the node in doubt already fetched one by itself.
#[test]
fn a_node_in_doubt_that_a_master_waits_for_streams_when_it_has_its_snapshot() {
    Cluster::new(222, of_wipes()).run(TIME).unwrap();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let keep = Keep { archive: true, rot: 0.02, ..Keep::default() };
        let mut cluster = Cluster::new(seed, Plan::everything(3).keeping(keep));
        let outcome = cluster.run(Duration::from_millis(300)).map(|tally| format!("{tally:?}"));
        (outcome, cluster.sim.trace_hash(), cluster.sim.steps())
    };
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(first, second);
    assert_ne!(first.1, other.1);
}
