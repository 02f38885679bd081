//! What can go wrong in the log, by operation. Every message tells an operator what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::entry::EntryDamage;
use crate::ids::{GroupId, Term, Vlsn, VlsnRange};
use crate::log::recover::TailVerdict;

/// The system could not do something with a file of the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("can't {action} {path}: {source}", path = path.display())]
pub struct IoFailure {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The system's error.
    pub source: Arc<io::Error>,
}

impl IoFailure {
    pub(super) fn new(action: &'static str, path: &Path, source: io::Error) -> IoFailure {
        IoFailure { action, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// The kind of the system's error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// Names the action and the file of a failed system call.
pub(crate) trait Failed<T> {
    fn failed(self, action: &'static str, path: &Path) -> Result<T, IoFailure>;
}

impl<T> Failed<T> for io::Result<T> {
    fn failed(self, action: &'static str, path: &Path) -> Result<T, IoFailure> {
        self.map_err(|source| IoFailure::new(action, path, source))
    }
}

/// Why a file is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileDamage {
    /// The file is empty or all zeroes: it was created and never written.
    #[error("its header is all zeroes")]
    Zeroes,
    /// The first bytes are not this format's.
    #[error("it does not begin with this format's magic")]
    Magic,
    /// A later version of this software wrote it.
    #[error("it has format version {found}, and this software reads up to {supported}: upgrade it")]
    NewerVersion {
        /// The version in the file.
        found: u32,
        /// The latest that can be read.
        supported: u32,
    },
    /// The checksum differs, or the lengths inside do not add up.
    #[error("its checksum does not match its contents")]
    Checksum,
    /// It belongs to another group.
    #[error("it belongs to group {found}, and this log is of group {ours}")]
    OtherGroup {
        /// The group in the file.
        found: GroupId,
        /// The group configured.
        ours: GroupId,
    },
    /// It says that it begins elsewhere.
    #[error("it says that it begins at VLSN {found}")]
    WrongFirst {
        /// What it says.
        found: Vlsn,
    },
    /// What it says comes before it is not what the segment before it ends with.
    #[error("it does not continue the segment before it")]
    WrongBase,
    /// It ends before the last byte that was made durable.
    #[error("it has {len} bytes, and {needed} were made durable: it was truncated")]
    Truncated {
        /// The file's length.
        len: u64,
        /// The length known to have been durable.
        needed: u64,
    },
}

/// Why a log can't be opened. Nothing was changed, except that an interrupted rollback may have been finished.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration makes no sense.
    #[error("the log's configuration is unusable: {0}")]
    Config(&'static str),
    /// Another process, or another log in this one, has the directory.
    #[error("{path} is in use by another process: stop that one first", path = path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The install of a snapshot has begun here and not ended: the engine and the log may not belong together.
    #[error("{path} exists: a snapshot is half installed; open the directory as a node of its group, which finishes that", path = path.display())]
    HalfInstalled {
        /// The intent.
        path: PathBuf,
    },
    /// A file is not what its name says.
    #[error("{path} can't be used: {damage}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        damage: FileDamage,
    },
    /// A segment is missing.
    #[error("{dir} lacks the segment with VLSN {missing}: restore it, or wipe the directory and rejoin", dir = dir.display())]
    Missing {
        /// The log's directory.
        dir: PathBuf,
        /// The VLSNs that no segment holds.
        missing: VlsnRange,
    },
    /// Entries that were durable are damaged. They are kept as they are.
    #[error(
        "{path} is damaged at offset {offset}, inside what was durable, VLSN {from} up to {to:?}: {damage}; \
         repair it from a replica, or wipe the directory and rejoin",
        path = path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damaged entry starts.
        offset: u64,
        /// The first VLSN that can't be read.
        from: Vlsn,
        /// The last VLSN that is known to have been durable; it may lie below `from` if no mark names one.
        to: Option<Vlsn>,
        /// What is wrong.
        damage: EntryDamage,
    },
    /// The end of the log is damaged past what is known to have been durable: in a way that a crash does not explain, or,
    /// if holes are refused, with entries behind the damage.
    #[error(
        "{path} is doubtful from offset {offset}, VLSN {from}, on: {why}; fetch these entries from a replica, or open \
         with DoubtfulTail::Cut to save and cut them",
        path = path.display(),
        why = match verdict {
            TailVerdict::Hole => "entries lie behind a write that was lost",
            _ => "a crash does not explain the damage",
        }
    )]
    Doubtful {
        /// The segment.
        path: PathBuf,
        /// Where the damage starts.
        offset: u64,
        /// The first VLSN in doubt.
        from: Vlsn,
        /// Whether it is a hole, or worse.
        verdict: TailVerdict,
    },
}

/// Why entries were not appended, or staged entries not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// There was nothing to append.
    #[error("there is no entry to append")]
    Empty,
    /// The payload is over the limit.
    #[error(
        "a payload of {len} bytes is over the limit of {limit}: split it, or raise max_payload on every node"
    )]
    TooLarge {
        /// Bytes of the payload, or of the whole entry if it came in a run.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// The term is below the log's last, or none.
    #[error("term {given} can't follow term {last} in the log: this node is no longer master")]
    TermFalls {
        /// The term given.
        given: Term,
        /// The log's last.
        last: Term,
    },
    /// A newer term has begun at this node, and entries of the older one may no longer be made.
    #[error(
        "entries of term {term} can't be appended any more, as term {fence} has begun: this node is no longer master"
    )]
    Fenced {
        /// The term given.
        term: Term,
        /// The lowest that is let through.
        fence: Term,
    },
    /// The run does not begin where the log ends.
    #[error("a run that begins at VLSN {given} can't follow a log that ends before VLSN {expected}")]
    NotNext {
        /// The run's first VLSN.
        given: Vlsn,
        /// The one that has to come.
        expected: Vlsn,
    },
    /// The system refused to write; nothing of this append is in the log, and later ones go on once it can write again.
    #[error("the log can't be written, and will be as soon as the cause is gone: {0}")]
    Io(#[from] IoFailure),
    /// A write or sync failed earlier, and nothing is known of the disk any more.
    #[error("the log is poisoned by an earlier failed sync: restart the node")]
    Poisoned,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

/// Why entries are not known to be durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FlushError {
    /// They could not even be written; a later flush may.
    #[error(transparent)]
    Write(AppendError),
    /// The log does not hold the entry.
    #[error("the log ends before VLSN {asked}")]
    Beyond {
        /// The VLSN asked for.
        asked: Vlsn,
    },
    /// The log was truncated meanwhile: the entries may be gone.
    #[error("the log was truncated while the flush was waited for")]
    LifeEnded,
    /// The sync failed. It is not tried again, and the log is poisoned.
    #[error(
        "the log is poisoned, and what was written since the last flush may be lost: restart the node: {0}"
    )]
    Sync(IoFailure),
    /// A sync failed earlier.
    #[error("the log is poisoned by an earlier failed sync: restart the node")]
    Poisoned,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl FlushError {
    /// Why what was staged was not written.
    pub(super) fn of_write(error: AppendError) -> FlushError {
        match error {
            AppendError::Poisoned => FlushError::Poisoned,
            AppendError::Closed => FlushError::Closed,
            other => FlushError::Write(other),
        }
    }
}

/// Why the log was not truncated.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TruncateError {
    /// The cut would take committed entries.
    #[error(
        "a cut after {keep:?} would take entries up to VLSN {committed}, which are committed: this node's history is \
         not the group's; keep its files, wipe the directory and rejoin"
    )]
    BelowCommitted {
        /// The last entry to keep.
        keep: Option<Vlsn>,
        /// The last that is known to be committed.
        committed: Vlsn,
    },
    /// The place of the cut was pruned.
    #[error("the log begins at VLSN {oldest}, after the place of the cut: a snapshot is needed")]
    Pruned {
        /// The oldest entry.
        oldest: Vlsn,
    },
    /// The log ends before the place of the cut.
    #[error("the log ends before VLSN {asked}")]
    Beyond {
        /// The last entry to keep.
        asked: Vlsn,
    },
    /// The log could not be made durable first.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// There is no room for what is to be saved, not even with the log's reserve. Nothing was changed.
    #[error(
        "there is no room to save the entries that are to be cut, and nothing was changed: make room on the disk; it is tried again: {0}"
    )]
    Full(IoFailure),
    /// What is to be kept is damaged. Nothing was changed, and the damage is known now.
    #[error("{path} is damaged before VLSN {from}, from which on the log is to be cut: it is healed first", path = path.display())]
    Damaged {
        /// The segment with the cut.
        path: PathBuf,
        /// The first entry to be cut.
        from: Vlsn,
    },
    /// The system refused midway: the log is poisoned, and opening it again finishes or undoes the cut.
    #[error("the cut stopped midway, and opening the log again finishes or undoes it: {0}")]
    Io(#[from] IoFailure),
    /// The log could not be read back after the cut, or what is to be kept is damaged.
    #[error("the cut stopped midway: {0}")]
    Reopen(#[from] OpenError),
}

/// Why segments were not removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PruneError {
    /// The system refused; what was removed stays removed.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// A sync of the log failed earlier.
    #[error("the log is poisoned by an earlier failed sync: restart the node")]
    Poisoned,
}
