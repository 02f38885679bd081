//! What stands in for compression in a build without the feature `lz4`: no frame is compressed, and one that is can't
//! be read. The handshake keeps such frames from being sent.

use crate::ids::Term;
use crate::wire::message::{EntriesHead, WireError};
use crate::wire::{FrameHeader, frame};

/// Compresses nothing.
#[derive(Default)]
pub struct Compressor;

impl Compressor {
    /// `None`: the plain frame is to be sent.
    pub fn frame(
        &mut self,
        _term: Term,
        _sequence: u64,
        _head: &EntriesHead,
        _slices: &[&[u8]],
    ) -> Option<&[u8]> {
        None
    }
}

/// Expands nothing.
#[derive(Default)]
pub struct Expander;

impl Expander {
    /// The frame as it is.
    ///
    /// # Errors
    /// [`WireError::Compressed`] for a compressed one.
    pub fn expand<'a>(&'a mut self, frame: &'a [u8], max_frame: u32) -> Result<&'a [u8], WireError> {
        frame::check_len(frame.len() as u64, max_frame)?;
        let (header, _payload) = FrameHeader::open(frame)?;
        if header.compressed { Err(WireError::Compressed) } else { Ok(frame) }
    }
}
