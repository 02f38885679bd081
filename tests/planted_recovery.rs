//! Bugs planted in how logs are kept, healed and brought back: proof that the simulation of tests/sim_recovery.rs can see.
//! Each has to be found within a bounded number of seeds, and the seed that found it has to pass without it.
#![cfg(all(feature = "sim", feature = "planted"))]

#[path = "common/cluster.rs"]
mod cluster;
#[path = "common/history.rs"]
mod history;
#[path = "common/store.rs"]
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cluster::{Cluster, Keep, Plan};
use quorate::planted::{Bug, plant};

const SEEDS: u64 = 100;
const TIME: Duration = Duration::from_millis(1500);

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
    let outcome = catch_unwind(AssertUnwindSafe(|| Cluster::new(seed, plan()).run(TIME)));
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

fn slots() -> Plan {
    Plan::crashes(3).keeping(Keep { slots: 0.2, own_slots: true, ..Keep::default() })
}

fn late_checkpoints() -> Plan {
    let checkpoint_every = Duration::from_millis(200);
    Plan::crashes(3).keeping(Keep { slots: 0.0, checkpoint_every, ..Keep::default() })
}

fn wipes() -> Plan {
    let keep = Keep { rate: 64 << 10, ..Keep::default() };
    Plan { transfer: 0.01, isolate: 0.005, ..Plan::wipes(3).keeping(keep) }
}

fn rot() -> Plan {
    Plan::crashes(3).keeping(Keep { rot: 0.05, pin_max_bytes: 1 << 20, ..Keep::default() })
}

fn archive() -> Plan {
    Plan { transfer: 0.01, ..Plan::wipes(3).keeping(Keep { archive: true, ..Keep::default() }) }
}

fn split_archive() -> Plan {
    Plan::partitions(3).keeping(Keep { archive: true, ..Keep::default() })
}

macro_rules! planted {
    ($($name:ident: $bug:ident under $plan:expr;)*) => {
        $(#[test] fn $name() { is_found(Bug::$bug, $plan); })*
    };
}

planted! {
    a_snapshot_said_to_stand_where_the_engine_has_gone_to: SnapshotPositionLater under wipes;
    entries_removed_that_the_engine_will_ask_for: PruneBeyondCheckpoint under late_checkpoints;
    entries_removed_that_a_slot_keeps: PruneIgnoresSlots under slots;
    an_archive_of_what_is_not_committed: ArchiveUncommitted under split_archive;
    a_restored_group_in_an_old_term: RestoreKeepsTerm under archive;
    a_damaged_entry_that_is_served: DamagedServed under rot;
}
