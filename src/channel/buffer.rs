//! The buffer that a receiver owns and frames are lent from.

use crate::wire::frame::{FrameError, FrameHeader, HEADER_LEN};

/// Bytes of a receive buffer, unless a frame is larger.
const CAPACITY: usize = 512 << 10;
/// How far a read goes beyond the frame that is being received, so that many small frames take one call.
const READ_AHEAD: usize = 128 << 10;

/// The buffer that a receiver owns and frames are lent from: one for each channel, for as long as the channel lives,
/// because bytes of the next frames stay in it between calls.
///
/// It takes 512 KiB of address space, of which only what is used becomes memory, or as much as the largest frame
/// received so far, which the channel's limit bounds.
#[derive(Default)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
    /// What was received and not yet lent stands at `start..end`, behind the lent frame.
    start: usize,
    end: usize,
    lent: usize,
    more: bool,
}

impl ReceiveBuffer {
    /// An empty buffer; allocates at the first receive.
    pub fn new() -> ReceiveBuffer {
        ReceiveBuffer::default()
    }

    /// Whether a further whole frame has arrived behind the one lent last, as far as is known without asking the
    /// system: a receiver of a burst answers when this turns `false`.
    pub fn buffered(&self) -> bool {
        let rest = &self.bytes[(self.start + self.lent).min(self.end)..self.end];
        self.more || FrameHeader::parse(rest, u32::MAX).is_ok_and(|header| header.frame_len() <= rest.len())
    }

    /// For channels that carry whole frames in buffers: takes one such frame, says whether another is waiting, and
    /// gives back the buffer of the frame before, to be used again. Any bytes received before are dropped.
    pub fn hold(&mut self, frame: Vec<u8>, more: bool) -> Vec<u8> {
        (self.start, self.end, self.lent, self.more) = (0, frame.len(), frame.len(), more);
        std::mem::replace(&mut self.bytes, frame)
    }

    /// The frame lent last.
    pub fn lent(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.lent]
    }

    /// Forgets the frame lent last.
    pub(super) fn advance(&mut self) {
        self.start += self.lent;
        self.lent = 0;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Lends the next frame, if all of it is here.
    pub(super) fn lend(&mut self, max_frame: u32) -> Result<bool, FrameError> {
        let rest = &self.bytes[self.start..self.end];
        if rest.len() < HEADER_LEN {
            return Ok(false);
        }
        let needed = FrameHeader::parse(rest, max_frame)?.frame_len();
        if needed <= rest.len() {
            self.lent = needed;
        }
        Ok(needed <= rest.len())
    }

    /// Where the next bytes belong. A long frame is read exactly to its end, so that the next one begins at the start
    /// of the buffer and nothing is moved; behind a short one as much as there is room for.
    pub(super) fn space(&mut self, max_frame: u32) -> &mut [u8] {
        let here = self.end - self.start;
        let needed = match FrameHeader::parse(&self.bytes[self.start..self.end], max_frame) {
            Ok(header) => header.frame_len(),
            Err(_) => HEADER_LEN,
        };
        if self.bytes.len() < needed.max(CAPACITY) {
            let mut larger = vec![0; needed.max(CAPACITY)];
            larger[..here].copy_from_slice(&self.bytes[self.start..self.end]);
            (self.bytes, self.start, self.end) = (larger, 0, here);
        }
        let missing = needed.saturating_sub(here);
        if self.end + missing.max(HEADER_LEN) > self.bytes.len() || self.bytes.len() - self.end < HEADER_LEN {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, here);
        }
        let until = (self.end + missing.max(READ_AHEAD)).min(self.bytes.len());
        &mut self.bytes[self.end..until]
    }

    /// So many bytes were put into the space.
    pub(super) fn filled(&mut self, len: usize) {
        self.end += len;
    }

    /// Whether a part of a frame is here.
    pub(super) fn inside_frame(&self) -> bool {
        self.end > self.start
    }
}
