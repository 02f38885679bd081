//! Following a master: one worker receives, verifies and appends; acks are sent by whoever completed the work.

pub(crate) mod ack;
pub(crate) mod following;
pub(crate) mod receive;

use crate::channel::ChannelError;
use crate::entry::RunError;
use crate::handshake::WelcomeError;
use crate::ids::{NodeId, Term, Vlsn, number};
use crate::log::scanner::ScanError;
use crate::log::{AppendError, FlushError, TruncateError};
use crate::runtime::DialError;
use crate::syncup::SyncupError;
use crate::wire::MessageType;
use crate::wire::message::{ByeReason, RejectReason, WireError};

/// What a replica's connection is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaState {
    /// Waiting before it dials again, or for a channel to be handed over.
    Resting,
    /// Dialling, handshake or syncup.
    Connecting,
    /// Receiving.
    Following,
    /// Ended for good.
    Stopped,
}

impl std::fmt::Display for ReplicaState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            ReplicaState::Resting => "resting",
            ReplicaState::Connecting => "connecting",
            ReplicaState::Following => "following",
            ReplicaState::Stopped => "stopped",
        })
    }
}

/// Why a connection to the master ended, or could not be made. The replica tries again, except where
/// [`is_fatal`](FollowError::is_fatal).
#[derive(Clone, Debug, thiserror::Error)]
pub enum FollowError {
    /// The node closes.
    #[error("the connection was closed by this node")]
    Closing,
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The connection ended.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The master's bytes are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The master refused this node.
    #[error("the master refused this node: {0}")]
    Rejected(RejectReason),
    /// This node refuses the master.
    #[error(transparent)]
    Welcome(#[from] WelcomeError),
    /// Something out of turn.
    #[error("the master sent a {found} where {expected} was expected")]
    OutOfTurn {
        /// The message's name.
        found: MessageType,
        /// What could have come.
        expected: &'static str,
    },
    /// A frame is missing or came twice.
    #[error("frame {found} came where frame {expected} was expected")]
    Sequence {
        /// What came.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// A frame of another term than the one that the connection began with.
    #[error("a frame of term {found} came on a connection of term {expected}")]
    Term {
        /// What came.
        found: Term,
        /// What was expected.
        expected: Term,
    },
    /// This node promised a newer term while the connection was up.
    #[error("this node has promised term {by}, and takes nothing from the master of an older one")]
    Superseded {
        /// The term.
        by: Term,
    },
    /// Two nodes say that they lead in one term.
    #[error("{found} says that it leads in term {term}, and this node knows {known} to do so")]
    SecondMaster {
        /// The term.
        term: Term,
        /// Whom this node knows.
        known: NodeId,
        /// Who says so now.
        found: NodeId,
    },
    /// The other end claims a term that no group reaches.
    #[error("the other end claims term {0}, which no group reaches")]
    AbsurdTerm(Term),
    /// A node that is not the master wants this node's log cut.
    #[error("the other end follows a master itself, and may not have this node's log cut after VLSN {}", number(*.after))]
    CutByRelay {
        /// Where it wants it cut.
        after: Option<Vlsn>,
    },
    /// Entries that do not continue this log, or are damaged.
    #[error("the entries received do not continue this log: {0}")]
    Run(#[from] RunError),
    /// The frame says other VLSNs than its entries have.
    #[error("a frame announces VLSN {first} to {last}, but its entries are others")]
    Announced {
        /// What it says comes first.
        first: Vlsn,
        /// What it says comes last.
        last: Vlsn,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard from the master for {} ms", .0.as_millis())]
    Silent(std::time::Duration),
    /// Handshake and syncup took too long.
    #[error("handshake and syncup did not end within {} ms", .0.as_millis())]
    HandshakeTimeout(std::time::Duration),
    /// The entries that this node needs were pruned.
    #[error("the master's log begins at VLSN {}: this node needs a snapshot", number(*.oldest))]
    NeedsSnapshot {
        /// The master's oldest entry.
        oldest: Option<Vlsn>,
    },
    /// The snapshot that this node needs did not come.
    #[error("the snapshot from {from} did not come: {why}; another member is asked")]
    SnapshotFailed {
        /// Who was to give it.
        from: crate::address::Address,
        /// What went wrong.
        why: String,
    },
    /// Nothing is agreed while a snapshot is being installed.
    #[error("a snapshot is being installed here; the master is asked again afterwards")]
    Installing,
    /// The other end knows less than this node.
    #[error("the other end has the log only up to VLSN {}, less than this node: it can't feed it", number(*.last))]
    Behind {
        /// Its last entry.
        last: Option<Vlsn>,
    },
    /// The logs contradict each other.
    #[error(transparent)]
    Syncup(#[from] SyncupError),
    /// This node's log tells terms that do not rise.
    #[error(transparent)]
    History(#[from] crate::matchpoint::BadHistory),
    /// This node's log could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The entries could not be written here.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The entries could not be made durable here.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// The log could not be cut.
    #[error(transparent)]
    Truncate(#[from] TruncateError),
    /// The new term could not be stored.
    #[error("the master's term could not be stored: {0}")]
    State(#[from] crate::state::StateError),
    /// The master ended the connection.
    #[error("the master said goodbye: {0}")]
    Goodbye(ByeReason),
}

impl FollowError {
    /// Whether trying again can't help and may do harm: the node stops and keeps its files for a person to look at.
    pub fn is_fatal(&self) -> bool {
        if let FollowError::Truncate(TruncateError::Full(_) | TruncateError::Damaged { .. }) = self {
            return false;
        }
        matches!(
            self,
            FollowError::Syncup(_)
                | FollowError::State(_)
                | FollowError::Truncate(_)
                | FollowError::Scan(ScanError::Poisoned)
                | FollowError::Append(AppendError::Poisoned)
                | FollowError::Flush(FlushError::Sync(_) | FlushError::Poisoned)
        )
    }
}
