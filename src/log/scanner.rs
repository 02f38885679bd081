//! Reading the log in runs: the seam between a log and whatever is fed from it.

use std::path::PathBuf;

use crate::entry::{Entries, EntryDamage};
use crate::ids::{Position, Vlsn, VlsnRange};

/// How many pieces of memory a run may consist of: local entries between replicated ones split it.
pub const RUN_SLICES: usize = 64;

/// Whole replicated entries without a hole, in the log's own memory: nothing was copied.
#[derive(Clone, Copy, Debug)]
pub struct Run<'s> {
    /// The first entry's VLSN.
    pub first: Vlsn,
    /// The last entry's position.
    pub last: Position,
    /// The last entry's timestamp, microseconds since the epoch.
    pub timestamp: u64,
    slices: [&'s [u8]; RUN_SLICES],
    used: usize,
}

impl<'s> Run<'s> {
    /// A run of the entries from `first` to `last`, whose bytes are `slices`, at most [`RUN_SLICES`] of them.
    ///
    /// # Panics
    /// If there is no slice or there are too many.
    pub fn new(first: Vlsn, last: Position, timestamp: u64, slices: &[&'s [u8]]) -> Run<'s> {
        assert!(!slices.is_empty() && slices.len() <= RUN_SLICES, "a run has 1 to {RUN_SLICES} slices");
        let mut own: [&'s [u8]; RUN_SLICES] = [&[]; RUN_SLICES];
        own[..slices.len()].copy_from_slice(slices);
        Run { first, last, timestamp, slices: own, used: slices.len() }
    }

    /// The pieces, each a sequence of whole entries.
    pub fn slices(&self) -> &[&'s [u8]] {
        &self.slices[..self.used]
    }

    /// Bytes in all pieces.
    pub fn len_bytes(&self) -> usize {
        self.slices().iter().map(|slice| slice.len()).sum()
    }

    /// The VLSNs.
    pub fn range(&self) -> VlsnRange {
        VlsnRange::new(self.first, self.last.vlsn).unwrap_or_else(|| unreachable!("a run is never empty"))
    }

    /// The entries, for a run whose source verified them.
    pub fn entries(&self) -> Entries<'_> {
        Entries::new(self.range(), self.slices())
    }
}

/// Why a log could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScanError {
    /// The entries asked for were pruned.
    #[error(
        "the log no longer has the entries asked for: its oldest is VLSN {oldest:?}; a snapshot is needed"
    )]
    Pruned {
        /// The oldest entry that is still there.
        oldest: Option<Vlsn>,
    },
    /// The reader asked for a position beyond the end of the log.
    #[error("the log ends before VLSN {asked}")]
    Beyond {
        /// The position asked for.
        asked: Vlsn,
    },
    /// Stored bytes are damaged. They are kept as they are and never served.
    #[error("{path} is damaged at offset {offset}, VLSN {from} and later: {damage}; repair it from a replica", path = path.display())]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// Where the damaged entry starts.
        offset: u64,
        /// The first VLSN that can't be read there.
        from: Vlsn,
        /// What is wrong.
        damage: EntryDamage,
    },
    /// The device could not read the file.
    #[error("can't read {path}: {kind}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        kind: std::io::ErrorKind,
    },
    /// The log was truncated or replaced since this reader was made: make a new one.
    #[error("the log was truncated or replaced; read again from a position that it still has")]
    LifeEnded,
    /// A write or sync of the log failed earlier, and it takes no part any more.
    #[error("the log is poisoned by an earlier failure; restart the node")]
    Poisoned,
}

/// A reader of a log in runs. The log's own mapped reader implements it, and so may an engine that keeps its own log.
pub trait LogScanner: Send {
    /// The entries that follow `after` (all, for `None`), as many as are there, at most `max_entries` and `max_bytes`,
    /// but at least one. `Ok(None)`: there is nothing newer yet. The call does not block and can be repeated with the
    /// same arguments: a reader keeps no position that a refused send would lose.
    ///
    /// # Errors
    /// [`ScanError`].
    fn run(
        &mut self,
        after: Option<Vlsn>,
        max_entries: u32,
        max_bytes: usize,
    ) -> Result<Option<Run<'_>>, ScanError>;
}
