//! The frame: what every message travels in.
//!
//! Layout of the header (little-endian; docs/protocol.md repeats it for implementers):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic: `QUOR` |
//! | 4 | 1 | version |
//! | 5 | 1 | message type |
//! | 6 | 2 | flags: bit 0 says that the run of an Entries frame is compressed |
//! | 8 | 4 | payload length |
//! | 12 | 4 | term of the sender |
//! | 16 | 8 | sequence: counts the sender's frames on this connection |
//! | 24 | 4 | CRC-32 of the payload, or of its first 40 bytes in an uncompressed Entries frame |
//! | 28 | 4 | CRC-32 of the 28 bytes before |

use std::fmt;

use crate::ids::Term;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 32;
/// What every frame begins with.
pub const MAGIC: [u8; 4] = *b"QUOR";
/// The version of the protocol that this code speaks, and the only one so far.
pub const VERSION: u8 = 1;
/// The largest frame, header included, unless configured or negotiated otherwise: 16 MiB.
pub const DEFAULT_MAX_FRAME: u32 = 16 << 20;
/// Bytes of the fixed part of an Entries payload, which the payload's CRC covers.
pub const ENTRIES_PREFIX_LEN: usize = 40;

const FLAG_COMPRESSED: u16 = 1;

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They don't begin as our frames do.
    #[error("this is no quorate frame: it begins with the bytes {found:02x?}")]
    NotOurs {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version of the protocol that this code does not speak.
    #[error("the frame is of protocol version {found}, and this node speaks version {ours}")]
    Version {
        /// The frame's version.
        found: u8,
        /// The newest that we speak.
        ours: u8,
    },
    /// Fewer bytes than a header, or than the header says.
    #[error("the frame is cut short: it needs {needed} bytes and {present} are there")]
    Short {
        /// Bytes that the frame needs, as far as can be told.
        needed: usize,
        /// Bytes there.
        present: usize,
    },
    /// More bytes than the header says.
    #[error("{0} bytes follow the frame's end")]
    Trailing(usize),
    /// The header's CRC differs: nothing in it can be trusted.
    #[error("the frame header's CRC is {stored:08x}, but its bytes give {computed:08x}")]
    HeaderCrc {
        /// The CRC that the header carries.
        stored: u32,
        /// The CRC of its bytes.
        computed: u32,
    },
    /// Longer than this connection allows.
    #[error("the frame has {len} bytes, and this connection allows {limit}")]
    TooLong {
        /// Bytes of the whole frame.
        len: u64,
        /// The limit.
        limit: u32,
    },
    /// A message type that this code does not know.
    #[error("message type {found} is unknown in protocol version {version}")]
    UnknownType {
        /// The type.
        found: u8,
        /// The frame's version.
        version: u8,
    },
    /// Flags that this code does not know, or that this type of message does not have.
    #[error("the flags {found:#06x} are unknown in a frame of type {kind}")]
    UnknownFlags {
        /// The type of the message.
        kind: MessageType,
        /// All flags of the frame.
        found: u16,
    },
    /// The payload's CRC differs.
    #[error("the {kind} frame's payload CRC is {stored:08x}, but its bytes give {computed:08x}")]
    PayloadCrc {
        /// The type of the message.
        kind: MessageType,
        /// The CRC that the header carries.
        stored: u32,
        /// The CRC of the bytes.
        computed: u32,
    },
}

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame carries.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum MessageType { $($(#[$doc])* $name = $number,)* }

        impl MessageType {
            /// Every type there is, in the order of their numbers.
            pub const ALL: &'static [MessageType] = &[$(MessageType::$name,)*];

            /// The type with this number.
            pub const fn from_number(number: u8) -> Option<MessageType> {
                match number { $($number => Some(MessageType::$name),)* _ => None }
            }
        }

        impl fmt::Display for MessageType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(MessageType::$name => stringify!($name),)* })
            }
        }
    };
}

message_types! {
    /// The dialling node introduces itself.
    Hello = 1,
    /// The listener takes it in.
    Welcome = 2,
    /// The listener refuses.
    Reject = 3,
    /// The replica tells its log's history.
    Syncup = 4,
    /// The master tells where the histories part.
    Matchpoint = 5,
    /// The master no longer has what the replica lacks.
    NeedSnapshot = 6,
    /// The feeding node is itself behind the replica.
    Behind = 7,
    /// A run of entries.
    Entries = 8,
    /// Asks for a range of entries, outside the stream.
    EntryRequest = 9,
    /// How far the replica has come.
    Ack = 10,
    /// Why the replica refuses what it received.
    Nack = 11,
    /// The master's positions, when nothing else carries them.
    Heartbeat = 12,
    /// Answers a heartbeat.
    HeartbeatReply = 13,
    /// There is a newer term.
    Fence = 14,
    /// The sender ends the connection.
    Bye = 15,
    /// A candidate asks for a vote.
    Vote = 16,
    /// Answers it.
    VoteReply = 17,
    /// A master tells that it leads.
    Announce = 18,
    /// Asks what a node has of a range that is in doubt elsewhere.
    Survey = 19,
    /// Answers it.
    SurveyReply = 20,
    /// The master asks a replica to stand for election at once.
    Stand = 21,
    /// An operator's order.
    Control = 22,
    /// Answers it.
    ControlReply = 23,
    /// A request to the embedder's own service.
    Request = 24,
    /// Answers it.
    Response = 25,
    /// A node asks for a snapshot.
    SnapshotRequest = 26,
    /// A snapshot begins, or goes on.
    SnapshotBegin = 27,
    /// An item of it begins.
    SnapshotItem = 28,
    /// Bytes of an item.
    SnapshotChunk = 29,
    /// An item ends.
    SnapshotItemEnd = 30,
    /// The snapshot ends.
    SnapshotEnd = 31,
    /// How much of it is on the receiver's disk.
    SnapshotAck = 32,
}

impl MessageType {
    /// The number that stands in the frame's header.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// A frame's header. Read from bytes, its CRC was verified and its length was within the limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame carries.
    pub kind: MessageType,
    /// Whether the run in an Entries frame is compressed.
    pub compressed: bool,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// The term that the sender is in.
    pub term: Term,
    /// The sender's count of frames on this connection.
    pub sequence: u64,
    /// CRC over the payload's covered part.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let flags = if self.compressed { FLAG_COMPRESSED } else { 0 };
        let mut h = [0; HEADER_LEN];
        h[..4].copy_from_slice(&MAGIC);
        h[4] = VERSION;
        h[5] = self.kind.number();
        h[6..8].copy_from_slice(&flags.to_le_bytes());
        h[8..12].copy_from_slice(&self.payload_len.to_le_bytes());
        h[12..16].copy_from_slice(&self.term.get().to_le_bytes());
        h[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        h[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&h[..28]);
        h[28..].copy_from_slice(&crc.to_le_bytes());
        h
    }

    /// Reads and checks the header at the start of `bytes`: magic, version, CRC, type, flags, and that the whole frame
    /// has at most `max_frame` bytes. Allocates nothing; the payload need not be there.
    ///
    /// # Errors
    /// [`FrameError`], except `Trailing` and `PayloadCrc`; `Short` only for fewer than [`HEADER_LEN`] bytes.
    pub fn parse(bytes: &[u8], max_frame: u32) -> Result<FrameHeader, FrameError> {
        let Some(h) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(FrameError::Short { needed: HEADER_LEN, present: bytes.len() });
        };
        let found = [h[0], h[1], h[2], h[3]];
        if found != MAGIC {
            return Err(FrameError::NotOurs { found });
        }
        let version = h[4];
        if version != VERSION {
            return Err(FrameError::Version { found: version, ours: VERSION });
        }
        let u32_at = |at: usize| u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let (stored, computed) = (u32_at(28), crc32fast::hash(&h[..28]));
        if stored != computed {
            return Err(FrameError::HeaderCrc { stored, computed });
        }
        let Some(kind) = MessageType::from_number(h[5]) else {
            return Err(FrameError::UnknownType { found: h[5], version });
        };
        let flags = u16::from_le_bytes([h[6], h[7]]);
        let known = if kind == MessageType::Entries { FLAG_COMPRESSED } else { 0 };
        if flags & !known != 0 {
            return Err(FrameError::UnknownFlags { kind, found: flags });
        }
        let header = FrameHeader {
            kind,
            compressed: flags & FLAG_COMPRESSED != 0,
            payload_len: u32_at(8),
            term: Term::new(u32_at(12)),
            sequence: u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32,
            payload_crc: u32_at(24),
        };
        check_len(header.frame_len() as u64, max_frame)?;
        Ok(header)
    }

    /// Bytes of the whole frame, header included.
    pub fn frame_len(&self) -> usize {
        HEADER_LEN + self.payload_len as usize
    }

    /// Splits a whole frame into its header and its payload, with the payload's CRC verified.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn open(frame: &[u8]) -> Result<(FrameHeader, &[u8]), FrameError> {
        let header = FrameHeader::parse(frame, u32::MAX)?;
        let payload = &frame[HEADER_LEN..];
        let needed = header.frame_len();
        if frame.len() < needed {
            return Err(FrameError::Short { needed, present: frame.len() });
        }
        if frame.len() > needed {
            return Err(FrameError::Trailing(frame.len() - needed));
        }
        header.verify_payload(payload)?;
        Ok((header, payload))
    }

    /// Checks the payload's CRC. In an uncompressed Entries frame that covers the fixed part only, because each entry
    /// carries a CRC of its own.
    ///
    /// # Errors
    /// [`FrameError::PayloadCrc`].
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), FrameError> {
        let computed = payload_crc(self.kind, self.compressed, payload);
        if computed != self.payload_crc {
            return Err(FrameError::PayloadCrc { kind: self.kind, stored: self.payload_crc, computed });
        }
        Ok(())
    }
}

/// The CRC that goes into the header of a frame with this payload.
pub fn payload_crc(kind: MessageType, compressed: bool, payload: &[u8]) -> u32 {
    let covered = match kind {
        MessageType::Entries if !compressed => payload.len().min(ENTRIES_PREFIX_LEN),
        _ => payload.len(),
    };
    crc32fast::hash(&payload[..covered])
}

/// Whether a frame of `len` bytes, header included, is within a limit.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn check_len(len: u64, limit: u32) -> Result<(), FrameError> {
    if len > u64::from(limit) { Err(FrameError::TooLong { len, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documented_one() {
        let header = FrameHeader {
            kind: MessageType::Ack,
            compressed: false,
            payload_len: 32,
            term: Term::new(7),
            sequence: 0x0102_0304_0506_0708,
            payload_crc: 0xaabb_ccdd,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], *b"QUOR\x01\x0a\0\0");
        assert_eq!(bytes[8..16], [32, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[16..24], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[24..28], [0xdd, 0xcc, 0xbb, 0xaa]);
        assert_eq!(bytes[28..], crc32fast::hash(&bytes[..28]).to_le_bytes());
        assert_eq!(FrameHeader::parse(&bytes, 64), Ok(header));
        assert_eq!(FrameHeader::parse(&bytes, 63), Err(FrameError::TooLong { len: 64, limit: 63 }));
    }
}
