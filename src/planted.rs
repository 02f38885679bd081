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
    CascadeOrdersRollback,
    ChangeBeforeTermStart,
    TwoChangesAtOnce,
    TokenComparesVlsnOnly,
    MatchpointByVlsnOnly,
    TruncateBelowCommitted,
    ArbiterAcksBeforePersisting,
    LowerTermAccepted,
    SnapshotPositionLater,
    InstallWithoutIntent,
    BaseNotStored,
    PruneBeyondCheckpoint,
    PruneIgnoresSlots,
    ArchiveUncommitted,
    RestoreKeepsTerm,
    DamagedServed,
    DamagedSettledBecauseNobodyHasIt,
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

/// What a replica does in place of verifying a run under [`Bug::CrcNotChecked`] and [`Bug::HoleAccepted`]: it believes
/// the headers, and under the second also any first VLSN.
pub(crate) fn trust_run(
    run: &[u8],
    last: Option<crate::ids::Position>,
) -> Result<crate::entry::RunSummary, crate::entry::RunError> {
    use crate::entry::{EntryKind, Header, RunError, RunSummary, follows, verify_run};
    use crate::ids::{Position, Vlsn, VlsnRange};
    let parse = |bytes: &[u8], at| Header::parse(bytes).map_err(|damage| RunError::Damaged { at, damage });
    let first = parse(run, Vlsn::FIRST)?;
    if active(Bug::HoleAccepted) {
        let before = first.vlsn.and_then(Vlsn::previous);
        return verify_run(run, before.map(|vlsn| Position { vlsn, term: first.term, crc: first.prev }));
    }
    let (mut expected, mut term, mut prev) =
        last.map_or((Vlsn::FIRST, first.term, 0), |last| (last.vlsn.next(), last.term, last.crc));
    let (from, mut rest, mut summary) = (expected, run, Err(RunError::Empty));
    let (mut memberships, mut slots) = (false, false);
    while !rest.is_empty() {
        let header = parse(rest, expected)?;
        follows(&header, expected, term, prev)?;
        let position = Position { vlsn: expected, term: header.term, crc: header.crc };
        let range = VlsnRange::new(from, expected).ok_or(RunError::Empty)?;
        memberships |= header.kind == EntryKind::MEMBERSHIP;
        slots |= header.kind == EntryKind::SLOTS;
        summary = Ok(RunSummary { range, last: position, timestamp: header.timestamp, memberships, slots });
        rest = rest.get(header.entry_len()..).unwrap_or(&[]);
        (expected, term, prev) = (expected.next(), header.term, header.crc);
    }
    summary
}
