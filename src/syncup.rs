//! Syncup: where the replica's log and the master's agree, and what becomes of the replica's log beyond that.
//!
//! The replica sends [`Syncup`]; the master answers [`Matchpoint`], [`NeedSnapshot`] or [`Behind`]; the replica compares
//! the CRC of its own entry there, cuts what it has beyond, and states by its first ack what it proved to have.

use crate::ids::{Position, Vlsn};
use crate::log::Log;
use crate::log::scanner::ScanError;
use crate::matchpoint::{BadHistory, History, Standing, Verdict, matchpoint};
use crate::wire::message::{Behind, Matchpoint, NeedSnapshot, Syncup};

/// The history of this node's own log.
///
/// # Errors
/// [`BadHistory`], if the log tells terms that do not rise, which its appends refuse.
pub fn history_of(log: &Log) -> Result<History, BadHistory> {
    History::new(log.base(), &log.term_history(), log.last().map(|last| last.vlsn))
}

/// What the master answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Both have the entry named, and all before it.
    Match(Matchpoint),
    /// The master no longer has the entries that follow.
    NeedSnapshot(NeedSnapshot),
    /// The node asked knows less than the asker and judges nobody.
    Behind(Behind),
}

/// Why a syncup has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AnswerError {
    /// What the replica told of its log makes no sense.
    #[error(transparent)]
    History(#[from] BadHistory),
    /// The master can't read its own entry at the matchpoint.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// The half of the feeding node: `ours` is its log's history, `standing` its right to order a cut, and `position_at`
/// reads one of its entries.
///
/// # Errors
/// [`AnswerError`].
pub fn answer(
    ours: &History,
    standing: Standing,
    asked: &Syncup,
    position_at: impl FnOnce(Vlsn) -> Result<Position, ScanError>,
) -> Result<Answer, AnswerError> {
    let theirs = History::new(None, &asked.history, asked.last.map(|last| last.vlsn))?;
    Ok(match matchpoint(ours, &theirs, standing) {
        Verdict::Match(None) => Answer::Match(Matchpoint { at: None }),
        Verdict::Match(Some((_, vlsn))) => Answer::Match(Matchpoint { at: Some(position_at(vlsn)?) }),
        Verdict::NeedSnapshot { oldest } => {
            Answer::NeedSnapshot(NeedSnapshot { oldest: Some(oldest), provider: None })
        }
        Verdict::Behind => Answer::Behind(Behind { last: ours.last() }),
    })
}

/// Why a replica can't follow from the matchpoint. Its files are kept as they are; a person has to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SyncupError {
    /// The entries at the matchpoint differ although their term and VLSN are equal: one of the logs is not what the
    /// group wrote.
    #[error(
        "this node's entry {ours:?} differs from the master's {theirs} at the same place: one of the two logs is foreign or damaged; keep both and compare them"
    )]
    Differs {
        /// The replica's entry; `None` if it has none there.
        ours: Option<Position>,
        /// The master's.
        theirs: Position,
    },
    /// Following would undo entries that were committed.
    #[error(
        "the master's log agrees with this node's only up to VLSN {at}, but VLSN {committed} is known to be committed: the master has lost committed entries; keep this node's files"
    )]
    BelowCommitted {
        /// The matchpoint's VLSN; 0 for none.
        at: u64,
        /// What this node knows to be committed.
        committed: Vlsn,
    },
}

/// What the replica does with its own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It ends at the matchpoint.
    Keep,
    /// Entries after the matchpoint were never committed and go.
    CutAfter(Option<Vlsn>),
}

/// The replica's half. `ours` is its own entry at the matchpoint, `last` its last entry.
///
/// # Errors
/// [`SyncupError`].
pub fn settle(
    at: Option<Position>,
    ours: Option<Position>,
    last: Option<Position>,
    committed: Option<Vlsn>,
) -> Result<Settlement, SyncupError> {
    let matched = at.map(|theirs| theirs.vlsn);
    if let Some(theirs) = at
        && ours != Some(theirs)
    {
        return Err(SyncupError::Differs { ours, theirs });
    }
    if let Some(committed) = committed.filter(|committed| Some(*committed) > matched) {
        return Err(SyncupError::BelowCommitted { at: crate::ids::number(matched), committed });
    }
    Ok(if last.map(|last| last.vlsn) > matched { Settlement::CutAfter(matched) } else { Settlement::Keep })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;

    fn at(vlsn: u64, crc: u32) -> Option<Position> {
        Vlsn::new(vlsn).map(|vlsn| Position { vlsn, term: Term::new(1), crc })
    }

    #[test]
    fn a_log_that_ends_at_the_matchpoint_is_kept() {
        assert_eq!(settle(at(5, 1), at(5, 1), at(5, 1), Vlsn::new(5)), Ok(Settlement::Keep));
        assert_eq!(settle(None, None, None, None), Ok(Settlement::Keep));
    }

    #[test]
    fn what_lies_beyond_the_matchpoint_is_cut() {
        assert_eq!(
            settle(at(5, 1), at(5, 1), at(7, 2), Vlsn::new(4)),
            Ok(Settlement::CutAfter(Vlsn::new(5)))
        );
        assert_eq!(settle(None, None, at(7, 2), None), Ok(Settlement::CutAfter(None)));
    }

    #[test]
    fn a_differing_crc_and_a_matchpoint_below_committed_stop_the_node() {
        assert!(matches!(settle(at(5, 1), at(5, 9), at(5, 9), None), Err(SyncupError::Differs { .. })));
        assert!(matches!(settle(at(5, 1), None, at(9, 9), None), Err(SyncupError::Differs { .. })));
        let below = settle(at(5, 1), at(5, 1), at(7, 2), Vlsn::new(6));
        assert!(matches!(below, Err(SyncupError::BelowCommitted { at: 5, .. })));
        assert!(matches!(
            settle(None, None, at(7, 2), Vlsn::new(1)),
            Err(SyncupError::BelowCommitted { at: 0, .. })
        ));
    }
}
