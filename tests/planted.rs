//! Bugs planted on purpose: proof that the simulation can see. Each has to be found within a bounded number of seeds.
//!
//! The lost wake-up can't show in a simulation that never parks a thread: tests/model.rs finds that one.
#![cfg(all(feature = "sim", feature = "planted"))]

#[path = "common/group.rs"]
mod group;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use group::{Trouble, World};
use quorate::planted::{Bug, plant};

const SEEDS: u64 = 400;
const TIME: Duration = Duration::from_millis(600);

/// Runs seeds with the bug until one fails; the same seed has to pass without it.
fn is_found(bug: Bug, trouble: fn() -> Trouble) {
    for seed in 0..SEEDS {
        let Some(how) = fails(seed, Some(bug), trouble) else { continue };
        let first_line = how.lines().next().unwrap_or("").to_owned();
        println!("{bug:?}: found at seed {seed}: {first_line}");
        assert_eq!(fails(seed, None, trouble), None, "seed {seed} fails without {bug:?}, too");
        return;
    }
    panic!("{bug:?} was not found in {SEEDS} seeds");
}

/// How a run with this seed fails, if it does: a violation, or a broken invariant's panic.
fn fails(seed: u64, bug: Option<Bug>, trouble: fn() -> Trouble) -> Option<String> {
    plant(bug);
    let outcome = catch_unwind(AssertUnwindSafe(|| World::new(seed, trouble()).run(TIME)));
    plant(None);
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(text.unwrap_or_else(|| "panic".to_owned()))
        }
    }
}

macro_rules! planted {
    ($($name:ident: $bug:ident under $trouble:ident;)*) => {
        $(#[test] fn $name() { is_found(Bug::$bug, Trouble::$trouble); })*
    };
}

planted! {
    an_ack_before_its_flush: AckBeforeFlush under crashes;
    a_quorum_without_the_masters_own_flush: MasterNotInQuorum under crashes;
    a_restart_that_resumes_its_term: RestartResumesTerm under crashes;
    a_watermark_that_survives_a_cut: WatermarkSurvivesCut under crashes;
    a_crc_that_is_not_checked: CrcNotChecked under bad_network;
    a_hole_that_is_accepted: HoleAccepted under bad_network;
    a_stream_that_resumes_one_too_far: ResumeOffByOne under crashes;
    a_recovery_that_cuts_at_the_first_bad_entry: TruncateAtFirstBadEntry under rotten_master;
    a_directory_that_is_not_synced: DirectoryNotSynced under crashes;
    a_failed_sync_that_is_tried_again: RetryAfterFailedSync under failing_disks;
    a_position_kept_across_a_reconnect: PositionKeptAcrossReconnect under crashes;
    a_timeout_told_as_success: TimeoutToldAsSuccess under crashes;
    a_page_cache_that_counts_as_flushed: PageCacheCountsAsFlushed under quick_crashes;
    an_engine_given_what_is_not_committed: ApplyBeforeCommit under crashes;
}
