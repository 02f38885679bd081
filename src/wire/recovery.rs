//! The messages by which a node gets what the log no longer holds, and what is said about slots, pins and checks.

use std::fmt;
use std::time::Duration;

use crate::ids::{GroupId, NodeId, Position, Vlsn, VlsnRange};
use crate::slots::Slot;

/// The most bytes of one [`SnapshotChunk`].
pub const MAX_CHUNK: usize = 256 << 10;
/// The most pins in a status.
pub const MAX_PINS: usize = 255;

/// Names one snapshot: no two have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SnapshotId {
    /// The provider's directory incarnation.
    pub incarnation: u64,
    /// This open of the provider's directory.
    pub session: u64,
    /// Random.
    pub number: u64,
}

/// A place in a snapshot's stream: everything before it is there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SnapshotPlace {
    /// The item, counted from 0.
    pub item: u32,
    /// Bytes of it.
    pub offset: u64,
}

/// Asks for a snapshot: the first frame of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRequest {
    /// The group.
    pub group: GroupId,
    /// Who asks.
    pub node: NodeId,
    /// The snapshot has to stand here or later, to be of use.
    pub at_least: Option<Vlsn>,
    /// The snapshot of which a part is there already, and how much.
    pub resume: Option<(SnapshotId, SnapshotPlace)>,
}

/// A snapshot begins, or goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotBegin {
    /// Which.
    pub id: SnapshotId,
    /// Where the stream begins: the place asked for if it is the snapshot asked for, else its beginning.
    pub from: SnapshotPlace,
    /// About how many bytes all items have, if the provider knows: for progress bars only.
    pub of: Option<u64>,
    /// What the log before it says of the group, as [`crate::base::Base::encode`] writes it.
    pub base: Vec<u8>,
}

/// An item begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotItem {
    /// Which, counted from 0.
    pub item: u32,
    /// What the engine calls it; [`crate::engine::Item::is_name`] holds.
    pub name: String,
    /// Its length in bytes, if the provider knows it beforehand.
    pub len: Option<u64>,
}

/// Bytes of an item.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SnapshotChunk<'a> {
    /// Where they stand.
    pub at: SnapshotPlace,
    /// 1 to [`MAX_CHUNK`] bytes.
    pub bytes: &'a [u8],
}

impl fmt::Debug for SnapshotChunk<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotChunk({:?}, {} bytes)", self.at, self.bytes.len())
    }
}

/// An item ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotItemEnd {
    /// Its end.
    pub at: SnapshotPlace,
    /// XXH3-128 of its bytes.
    pub digest: u128,
}

/// The snapshot ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotEnd {
    /// Items.
    pub items: u32,
    /// Bytes of all items.
    pub bytes: u64,
    /// XXH3-128 of the base and of every item's name, length and digest, in order.
    pub digest: u128,
}

/// Up to here everything is on the receiver's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotAck {
    /// The place.
    pub at: SnapshotPlace,
}

/// The entries of a range as they stand in a node's log, in one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangeDigest {
    /// Which: from the first that was asked for on, perhaps not to the last.
    pub range: VlsnRange,
    /// Bytes of the entries.
    pub bytes: u64,
    /// XXH3-128 of them.
    pub digest: u128,
    /// The last entry.
    pub last: Position,
}

/// What came of a VERIFY entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineDigest {
    /// The entry.
    pub at: Vlsn,
    /// The engine's state there.
    pub state: EngineState,
}

/// An engine's state at one entry, in one number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EngineState {
    /// XXH3-128 of the snapshot's items, names included.
    Digest(u128),
    /// This engine takes no snapshots.
    NoSnapshots,
    /// It could not be read, and why; at most 255 bytes.
    Failed(String),
}

/// Who keeps entries from being removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinStatus {
    /// Who; at most 255 bytes.
    pub owner: String,
    /// The first entry kept.
    pub from: Vlsn,
    /// For how long it has held that entry. In whole milliseconds on the wire.
    pub since: Duration,
    /// About how many bytes of log that is.
    pub bytes: u64,
}

/// A snapshot on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransferStatus {
    /// The other node, or its address; at most 255 bytes.
    pub peer: String,
    /// Where the snapshot stands.
    pub at: Vlsn,
    /// Bytes that are there.
    pub bytes: u64,
    /// About how many bytes the whole has, if known.
    pub of: Option<u64>,
}

/// The scrubber's part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubStatus {
    /// How far the present round has come.
    pub at: Option<Vlsn>,
    /// When the last whole round ended, in microseconds since the epoch; 0 for never.
    pub ended: u64,
    /// Bytes that the last whole round read.
    pub bytes: u64,
    /// Damaged places found since the node opened.
    pub found: u32,
    /// Of these, healed.
    pub healed: u32,
}

/// The archiver's part.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ArchiveStatus {
    /// The last archived entry.
    pub last: Option<Vlsn>,
    /// The last base.
    pub base: Option<Vlsn>,
    /// Why it does not get on; at most 255 bytes.
    pub failed: Option<String>,
}

/// What a node knows of its own keeping: a part of [`NodeStatus`](crate::wire::message::NodeStatus).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keeping {
    /// The oldest entry of its log.
    pub oldest: Option<Vlsn>,
    /// Who keeps entries.
    pub pins: Vec<PinStatus>,
    /// The group's slots.
    pub slots: Vec<Slot>,
    /// The snapshot that it fetches.
    pub fetching: Option<TransferStatus>,
    /// The snapshots that it gives, at most 255.
    pub giving: Vec<TransferStatus>,
    /// The scrubber's.
    pub scrub: ScrubStatus,
    /// Entries that are damaged here and not healed yet.
    pub damaged: Option<VlsnRange>,
    /// The archiver's, if there is one.
    pub archive: Option<ArchiveStatus>,
    /// The last digest of its engine.
    pub engine: Option<EngineDigest>,
}
