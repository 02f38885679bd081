//! Bugs planted on purpose, which the simulator must find: the proof that it can see.
//!
//! Without the feature `planted` (which only tests enable) `active` is `false` at compile time and nothing of this is
//! left in the code. With it, a bug is active on the thread that switched it on, and so never in a threaded node.

/// A bug that can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(
    missing_docs,
    reason = "each variant's name says what goes wrong; docs/testing.md lists them with their effect"
)]
pub enum Bug {
    AckBeforeFlush,
    MasterNotInQuorum,
    RestartResumesTerm,
    WatermarkSurvivesCut,
    CrcNotChecked,
    HoleAccepted,
    ResumeOffByOne,
    TruncateAtFirstBadEntry,
    DirectoryNotSynced,
    RetryAfterFailedSync,
    PositionKeptAcrossReconnect,
    WakeUpLost,
    TimeoutToldAsSuccess,
    PageCacheCountsAsFlushed,
    ApplyBeforeCommit,
}

#[cfg(feature = "planted")]
std::thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this bug is switched on for the calling thread.
#[cfg(feature = "planted")]
pub(crate) fn active(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Whether this bug is switched on: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub(crate) const fn active(_bug: Bug) -> bool {
    false
}

/// Switches one bug on, or none, for the calling thread.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    ACTIVE.set(bug);
}
