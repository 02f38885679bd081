//! A group of three under crashes, partitions and failing disks, simulated: what is told is true, nothing is applied
//! with a hole, twice, out of order or changed, and after the trouble ends everything comes right.
//!
//! `QUORATE_SEED=n` replays one seed; `QUORATE_SEEDS=n` runs that many (docs/testing.md).
#![cfg(feature = "sim")]

#[path = "common/group.rs"]
mod group;

use std::time::Duration;

use group::{CRASH_FAULTS, Trouble, World};
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

/// Runs the seeds; returns how often each fault fired.
fn campaign(name: &str, trouble: fn() -> Trouble, count: u64, time: Duration) -> FaultCounts {
    if std::env::var_os("QUORATE_LOG").is_some() && log::set_logger(&Shown).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let mut faults = FaultCounts::default();
    let (mut appended, mut committed, mut runs) = (0, 0, 0);
    for seed in seeds(count) {
        let mut world = World::new(seed, trouble());
        if let Err(violation) = world.run(time) {
            panic!("{name}: QUORATE_SEED={seed}: {violation}");
        }
        faults.merge(&world.faults());
        appended += world.appended;
        committed += world.committed() as u64;
        runs += 1;
    }
    println!(
        "{name}: {runs} seeds of {time:?}, {appended} entries, {committed} told committed, faults {faults:?}"
    );
    assert!(committed > 0 || runs < 10, "{name}: nothing was ever committed");
    faults
}

fn must_have_met(name: &str, faults: &FaultCounts, expected: &[Fault]) {
    if std::env::var_os("QUORATE_SEED").is_none() {
        let missing = faults.missing(expected);
        assert!(missing.is_empty(), "{name}: faults that never fired: {missing:?}");
    }
}

const TIME: Duration = Duration::from_millis(600);

#[test]
fn committed_entries_survive_crashes_and_partitions() {
    let faults = campaign("crashes", Trouble::crashes, 60, TIME);
    must_have_met("crashes", &faults, &CRASH_FAULTS);
}

#[test]
fn crashes_in_quick_succession_lose_nothing_that_was_told() {
    campaign("quick crashes", Trouble::quick_crashes, 20, TIME);
}

#[test]
fn pauses_longer_than_a_timeout_lose_nothing_that_was_told() {
    let faults = campaign("pauses", Trouble::pauses, 40, TIME);
    must_have_met("pauses", &faults, &[Fault::Stall]);
}

#[test]
fn failing_disks_lose_nothing_that_was_told() {
    let faults = campaign("failing disks", Trouble::failing_disks, 60, TIME);
    let expected =
        [Fault::WriteError, Fault::NoSpace, Fault::SyncError, Fault::DirSyncError, Fault::CreateError];
    must_have_met("failing disks", &faults, &expected);
}

#[test]
fn damaged_and_lost_frames_end_connections_and_nothing_else() {
    let faults = campaign("bad network", Trouble::bad_network, 60, TIME);
    must_have_met("bad network", &faults, &[Fault::DamagedFrame, Fault::LostFrame]);
}

#[test]
fn flipped_bits_on_replicas_are_never_applied() {
    let faults = campaign("rot", Trouble::rot, 60, TIME);
    must_have_met("rot", &faults, &[Fault::BitFlip]);
}

#[test]
fn a_rotten_master_refuses_by_name_and_cuts_nothing() {
    let faults = campaign("rotten master", Trouble::rotten_master, 60, TIME);
    must_have_met("rotten master", &faults, &[Fault::BitFlip]);
}

#[test]
fn one_lying_disk_loses_nothing_that_was_told() {
    let faults = campaign("lying disk", Trouble::lying_disk, 60, TIME);
    must_have_met("lying disk", &faults, &[Fault::SyncLied]);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(seed, Trouble::failing_disks());
        let outcome = world.run(Duration::from_millis(200));
        (outcome, world.sim.trace_hash(), world.sim.steps(), world.told.clone())
    };
    let (first, second, other) = (run(11), run(11), run(12));
    assert_eq!(first, second);
    assert_ne!(first.1, other.1);
}
