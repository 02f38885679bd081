//! Frames and messages: the bytes between nodes. docs/protocol.md describes them for other implementations.

#[macro_use]
mod reasons;

mod codec;
mod codec_group;
mod codec_recovery;
#[cfg_attr(not(feature = "lz4"), path = "plain.rs")]
pub mod compress;
mod fields;
pub mod frame;
pub mod group;
pub mod message;
pub mod recovery;

pub use codec::{ENTRIES_HEAD_LEN, encode_entries_head};
pub use frame::{FrameError, FrameHeader, MessageType};
pub use message::{Message, WireError};
