//! The messages: what nodes say to each other. Their bytes are made and read by `wire::codec`; their meaning and order
//! are in docs/protocol.md.

use std::fmt;
use std::time::Duration;

use crate::address::Address;
use crate::ids::{GroupId, NodeId, Position, Term, TermSpan, Vlsn};
use crate::members::{Health, Role, Standing};
use crate::wire::frame::{FrameError, MessageType};
pub use crate::wire::group::*;
pub use crate::wire::recovery::*;

/// The longest region, slot name or other short text of a peer, in bytes.
pub const MAX_TEXT: usize = 64;
/// The longest address in a [`RejectReason::NotMaster`], in bytes.
pub const MAX_ADDRESS: usize = 255;
/// The most spans of a term history in one message.
pub const MAX_SPANS: usize = 65_536;
/// The highest VLSN that may stand in a message: 2^63 - 1. No log reaches it, so a higher one is damage.
pub const MAX_VLSN: u64 = u64::MAX >> 1;

/// Why a frame holds no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The frame itself is wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The payload ends before the field.
    #[error("the {kind} message ends inside its field {field}")]
    Short {
        /// The message.
        kind: MessageType,
        /// The field.
        field: &'static str,
    },
    /// The payload goes on after the last field.
    #[error("{extra} bytes follow the last field of the {kind} message")]
    Trailing {
        /// The message.
        kind: MessageType,
        /// How many.
        extra: usize,
    },
    /// A field has a value that it can't have.
    #[error("{found} is no value for the field {field} of the {kind} message")]
    Value {
        /// The message.
        kind: MessageType,
        /// The field.
        field: &'static str,
        /// The value found.
        found: u64,
    },
    /// A text is not UTF-8, too long, or not of the form that the field needs.
    #[error("the field {field} of the {kind} message holds an unusable text of {len} bytes")]
    Text {
        /// The message.
        kind: MessageType,
        /// The field.
        field: &'static str,
        /// Bytes of the text.
        len: usize,
    },
    /// The run is compressed: expand the frame first, or refuse it, if the peers did not agree on compression.
    #[error("the frame's run is compressed, which this connection did not agree on")]
    Compressed,
    /// A compressed run does not expand to what it says.
    #[error("the compressed run says that it holds {claimed} bytes, and does not expand to that")]
    Expand {
        /// Bytes that it claims to hold.
        claimed: u32,
    },
}

/// What a node can do beyond the base protocol. Both sides use what both have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(u32);

impl Capabilities {
    /// The base protocol only.
    pub const NONE: Capabilities = Capabilities(0);
    /// Takes Entries frames whose run is compressed with LZ4.
    pub const LZ4: Capabilities = Capabilities(1);
    /// Answers [`EntryRequest`].
    pub const RANGE_READ: Capabilities = Capabilities(2);

    /// What this build can do.
    pub const fn ours() -> Capabilities {
        let lz4 = if cfg!(feature = "lz4") { Capabilities::LZ4.0 } else { 0 };
        Capabilities(lz4 | Capabilities::RANGE_READ.0)
    }

    /// The capabilities with these bits. Unknown bits are kept: they fall away in the intersection with ours.
    pub const fn from_bits(bits: u32) -> Capabilities {
        Capabilities(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// What both have.
    pub const fn intersection(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }

    /// Whether all of `other` is in here.
    pub const fn contains(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({:#x})", self.0)
    }
}

/// The dialling replica introduces itself: the first frame of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The lowest and the highest protocol version that it speaks; the first is not above the second.
    pub versions: (u8, u8),
    /// Its group.
    pub group: GroupId,
    /// Its name.
    pub node: NodeId,
    /// Its directory's incarnation: random, made with the directory.
    pub incarnation: u64,
    /// This open of its directory: a higher one supersedes the older connection.
    pub session: u64,
    /// What it is to the group.
    pub role: Role,
    /// Where it stands; at most [`MAX_TEXT`] bytes, empty if regions are not used.
    pub region: String,
    /// The slot that it uses, 1 to [`MAX_TEXT`] bytes.
    pub slot: Option<String>,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The largest frame that it takes, in bytes, header included.
    pub max_frame: u32,
    /// The last entry of its log.
    pub last: Option<Position>,
    /// Whether its directory holds what it acknowledged.
    pub standing: Standing,
    /// Where it listens.
    pub address: Option<Address>,
}

/// The listener takes the replica in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The protocol version of this connection.
    pub version: u8,
    /// The listener's name.
    pub node: NodeId,
    /// The listener's directory incarnation.
    pub incarnation: u64,
    /// This open of the listener's directory.
    pub session: u64,
    /// What both sides can do.
    pub capabilities: Capabilities,
    /// The largest frame on this connection, in bytes, header included.
    pub max_frame: u32,
    /// How often the listener speaks when it has nothing to say. In whole microseconds on the wire.
    pub heartbeat: Duration,
    /// By what right it feeds.
    pub feed: Feed,
}

/// The listener refuses the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
}

/// Why a connection is refused, for a person to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RejectReason {
    /// The replica belongs to another group.
    WrongGroup {
        /// The listener's.
        ours: GroupId,
    },
    /// The replica is no member of the group.
    UnknownNode,
    /// The versions have none in common.
    NoCommonVersion {
        /// The lowest that the listener speaks.
        min: u8,
        /// The highest.
        max: u8,
    },
    /// The listener does not feed.
    NotMaster {
        /// Who does, as far as it knows.
        hint: Option<Address>,
    },
    /// A newer session of the same node is connected.
    Superseded {
        /// The newer one.
        session: u64,
    },
    /// The replica bears the listener's own name.
    OwnName,
    /// The replica has seen a newer term than the listener.
    TermAhead {
        /// The listener's.
        ours: Term,
    },
    /// The replica's role or region is another than the member list says.
    MemberDiffers,
    /// There are too many connections.
    Busy,
    /// Something else was said than the protocol allows here.
    Protocol,
    /// The listener has no snapshot to give: its engine makes none, or it is itself behind.
    NoSnapshot,
}

/// The replica tells what its log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Syncup {
    /// Its last entry.
    pub last: Option<Position>,
    /// How far it knows the group to be committed.
    pub committed: Option<Vlsn>,
    /// Where each term begins in its log, rising; at most [`MAX_SPANS`]. In a log whose beginning was pruned the first
    /// term begins at the last entry that was.
    pub history: Vec<TermSpan>,
}

/// The master tells the last entry that both logs have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matchpoint {
    /// That entry. `None`: nothing in common, start at VLSN 1.
    pub at: Option<Position>,
}

/// The master no longer has the entries that the replica lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NeedSnapshot {
    /// The master's oldest entry.
    pub oldest: Option<Vlsn>,
    /// Where to ask for a snapshot; `None`: here.
    pub provider: Option<Address>,
}

/// The feeding node is itself behind the replica, and can't judge its tail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behind {
    /// The feeding node's last entry.
    pub last: Option<Vlsn>,
}

/// The fixed part of [`Entries`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntriesHead {
    /// How far the group is committed.
    pub committed: Option<Vlsn>,
    /// How far somebody waits for the replica to have flushed.
    pub durable_wanted: Option<Vlsn>,
    /// How far somebody waits for the replica to have applied.
    pub applied_wanted: Option<Vlsn>,
    /// The run's first entry.
    pub first: Vlsn,
    /// Its last; not below `first`.
    pub last: Vlsn,
}

/// A run of whole entries, as they stand in the log. The entries are not verified by decoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entries<'a> {
    /// How far the group is committed.
    pub committed: Option<Vlsn>,
    /// How far somebody waits for the replica to have flushed.
    pub durable_wanted: Option<Vlsn>,
    /// How far somebody waits for the replica to have applied.
    pub applied_wanted: Option<Vlsn>,
    /// The run's first entry.
    pub first: Vlsn,
    /// Its last; not below `first`.
    pub last: Vlsn,
    /// The entries' bytes; never empty.
    pub run: &'a [u8],
}

impl Entries<'_> {
    /// The fixed part.
    pub fn head(&self) -> EntriesHead {
        let Entries { committed, durable_wanted, applied_wanted, first, last, run: _ } = *self;
        EntriesHead { committed, durable_wanted, applied_wanted, first, last }
    }
}

impl fmt::Debug for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entries({:?}, {} bytes)", self.head(), self.run.len())
    }
}

/// Asks for a range of entries, outside the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryRequest {
    /// The first wanted.
    pub from: Vlsn,
    /// The last wanted; not below `from`.
    pub to: Vlsn,
    /// The most entries of one answer.
    pub max_entries: u32,
    /// The most bytes of one answer, though at least one entry is sent.
    pub max_bytes: u32,
}

/// How far the replica has come. The first one after a Matchpoint states what the replica proved it has, and starts
/// the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ack {
    /// In its log.
    pub received: Option<Vlsn>,
    /// On its disk.
    pub durable: Option<Vlsn>,
    /// In its engine.
    pub applied: Option<Vlsn>,
    /// Durable in its engine.
    pub checkpointed: Option<Vlsn>,
}

/// The replica refuses what it received, and ends the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nack {
    /// Why.
    pub reason: NackReason,
    /// The entry it is about.
    pub at: Option<Vlsn>,
}

/// The master's positions, when no Entries frame carries them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// How far its log is written.
    pub written: Option<Vlsn>,
    /// How far it is on its disk.
    pub flushed: Option<Vlsn>,
    /// How far the group is committed.
    pub committed: Option<Vlsn>,
    /// How far somebody waits for the replica to have flushed.
    pub durable_wanted: Option<Vlsn>,
    /// How far somebody waits for the replica to have applied.
    pub applied_wanted: Option<Vlsn>,
    /// How the master fares.
    pub health: Health,
    /// The sender's clock, in units of its own; comes back in the reply.
    pub clock: u64,
}

/// Answers a heartbeat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeartbeatReply {
    /// The heartbeat's clock.
    pub clock: u64,
    /// How the replica fares.
    pub health: Health,
    /// Whether its directory holds what it acknowledged.
    pub standing: Standing,
}

/// The sender ends the connection in good order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bye {
    /// Why.
    pub reason: ByeReason,
}

reasons! {
    /// Why a replica refuses what it received.
    NackReason {
        /// An entry's bytes are damaged.
        Damaged = 1 "an entry is damaged",
        /// Entries are missing, repeated or out of order.
        Hole = 2 "entries are missing or out of order",
        /// An entry's term is below the one before.
        TermFalls = 3 "a term is below the one before",
        /// An entry follows another history.
        Foreign = 4 "an entry belongs to another history",
        /// The matchpoint's entry is another one here.
        MatchpointDiffers = 5 "the entry at the matchpoint differs",
        /// The matchpoint lies below what is known to be committed.
        BelowCommitted = 6 "the matchpoint is below what is committed",
        /// The replica's disk failed.
        Io = 7 "the replica's disk failed",
        /// The entries asked for are not there yet.
        Beyond = 8 "the entries asked for are not there yet",
    }
}

reasons! {
    /// Why a connection is ended.
    ByeReason {
        /// The node closes.
        Closing = 1 "the node closes",
        /// A newer session of the same node has connected.
        Superseded = 2 "a newer session has connected",
        /// The sender is no longer master.
        Deposed = 3 "the sender is no longer master",
        /// The sender's log failed.
        Poisoned = 4 "the sender's log failed",
        /// The peer broke the protocol.
        Protocol = 5 "the protocol was broken",
        /// The peer was removed from the group.
        Removed = 6 "the node is no longer a member",
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RejectReason::WrongGroup { ours } => {
                write!(f, "the node listening there belongs to group {ours}")
            }
            RejectReason::UnknownNode => f.write_str("this node is no member of the group"),
            RejectReason::NoCommonVersion { min, max } => {
                write!(f, "the node listening there speaks protocol versions {min} to {max}")
            }
            RejectReason::NotMaster { hint: Some(hint) } => {
                write!(f, "the node listening there is not the master; try {:?}", hint.to_string())
            }
            RejectReason::NotMaster { hint: None } => {
                f.write_str("the node listening there is not the master, and knows of none")
            }
            RejectReason::Superseded { session } => {
                write!(f, "a newer session of this node, {session}, is connected")
            }
            RejectReason::OwnName => f.write_str("the node listening there has the same name"),
            RejectReason::TermAhead { ours } => {
                write!(f, "this node has seen a newer term than {ours}, the term of the node listening there")
            }
            RejectReason::MemberDiffers => {
                f.write_str("the member list there gives this node another role or region")
            }
            RejectReason::Busy => f.write_str("the node listening there has too many connections"),
            RejectReason::Protocol => f.write_str("the protocol was broken"),
            RejectReason::NoSnapshot => f.write_str("the node listening there has no snapshot to give"),
        }
    }
}

/// Any message. Owned, but for the run of [`Entries`], which stays in the frame.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each variant's struct says what it is")]
pub enum Message<'a> {
    Hello(Hello),
    Welcome(Welcome),
    Reject(Reject),
    Syncup(Syncup),
    Matchpoint(Matchpoint),
    NeedSnapshot(NeedSnapshot),
    Behind(Behind),
    Entries(Entries<'a>),
    EntryRequest(EntryRequest),
    Ack(Ack),
    Nack(Nack),
    Heartbeat(Heartbeat),
    HeartbeatReply(HeartbeatReply),
    /// There is a newer term: that of the frame's header.
    Fence,
    Bye(Bye),
    Vote(Vote),
    VoteReply(VoteReply),
    Announce(Announce),
    Survey(Survey),
    SurveyReply(SurveyReply),
    /// Stand for election at once: the master hands over.
    Stand,
    Control(Control),
    ControlReply(ControlReply),
    Request(Request<'a>),
    Response(Response<'a>),
    SnapshotRequest(SnapshotRequest),
    SnapshotBegin(SnapshotBegin),
    SnapshotItem(SnapshotItem),
    SnapshotChunk(SnapshotChunk<'a>),
    SnapshotItemEnd(SnapshotItemEnd),
    SnapshotEnd(SnapshotEnd),
    SnapshotAck(SnapshotAck),
}

impl Message<'_> {
    /// The type that stands in the frame's header.
    pub fn kind(&self) -> MessageType {
        match self {
            Message::Hello(_) => MessageType::Hello,
            Message::Welcome(_) => MessageType::Welcome,
            Message::Reject(_) => MessageType::Reject,
            Message::Syncup(_) => MessageType::Syncup,
            Message::Matchpoint(_) => MessageType::Matchpoint,
            Message::NeedSnapshot(_) => MessageType::NeedSnapshot,
            Message::Behind(_) => MessageType::Behind,
            Message::Entries(_) => MessageType::Entries,
            Message::EntryRequest(_) => MessageType::EntryRequest,
            Message::Ack(_) => MessageType::Ack,
            Message::Nack(_) => MessageType::Nack,
            Message::Heartbeat(_) => MessageType::Heartbeat,
            Message::HeartbeatReply(_) => MessageType::HeartbeatReply,
            Message::Fence => MessageType::Fence,
            Message::Bye(_) => MessageType::Bye,
            Message::Vote(_) => MessageType::Vote,
            Message::VoteReply(_) => MessageType::VoteReply,
            Message::Announce(_) => MessageType::Announce,
            Message::Survey(_) => MessageType::Survey,
            Message::SurveyReply(_) => MessageType::SurveyReply,
            Message::Stand => MessageType::Stand,
            Message::Control(_) => MessageType::Control,
            Message::ControlReply(_) => MessageType::ControlReply,
            Message::Request(_) => MessageType::Request,
            Message::Response(_) => MessageType::Response,
            Message::SnapshotRequest(_) => MessageType::SnapshotRequest,
            Message::SnapshotBegin(_) => MessageType::SnapshotBegin,
            Message::SnapshotItem(_) => MessageType::SnapshotItem,
            Message::SnapshotChunk(_) => MessageType::SnapshotChunk,
            Message::SnapshotItemEnd(_) => MessageType::SnapshotItemEnd,
            Message::SnapshotEnd(_) => MessageType::SnapshotEnd,
            Message::SnapshotAck(_) => MessageType::SnapshotAck,
        }
    }
}
