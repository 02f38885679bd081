//! Frames and messages: the bytes between nodes. docs/protocol.md describes them for other implementations.

mod codec;
#[cfg_attr(not(feature = "lz4"), path = "plain.rs")]
pub mod compress;
pub mod frame;
pub mod message;

pub use codec::{ENTRIES_HEAD_LEN, encode_entries_head};
pub use frame::{FrameError, FrameHeader, MessageType};
pub use message::{Message, WireError};
