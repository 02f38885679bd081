//! Compression of the run of an Entries frame with LZ4, for connections whose two sides have
//! [`Capabilities::LZ4`](super::message::Capabilities::LZ4).
//!
//! The payload of a compressed frame is the fixed part of [`Entries`](super::message::Entries), the run's length as 4
//! bytes, and the run as one LZ4 block. The payload's CRC covers all of it.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::codec::{ENTRIES_HEAD_LEN, entries_prefix, payload_len, take_entries_head};
use super::fields::Take;
use super::frame::{ENTRIES_PREFIX_LEN, FrameHeader, HEADER_LEN, MessageType, check_len, payload_crc};
use super::message::{EntriesHead, WireError};
use crate::ids::Term;

const BEFORE_BLOCK: usize = ENTRIES_HEAD_LEN + 4;

/// Makes compressed frames. Reused, it allocates nothing once it has seen its largest run.
pub struct Compressor {
    table: CompressTable,
    run: Vec<u8>,
    frame: Vec<u8>,
}

impl Default for Compressor {
    fn default() -> Compressor {
        Compressor { table: CompressTable::large(), run: Vec::new(), frame: Vec::new() }
    }
}

impl Compressor {
    /// The whole frame for this run; `None` if it would not be shorter than the plain frame, which is then to be sent.
    ///
    /// # Panics
    /// If the run fits no frame: callers keep within the connection's limit.
    pub fn frame(
        &mut self,
        term: Term,
        sequence: u64,
        head: &EntriesHead,
        slices: &[&[u8]],
    ) -> Option<&[u8]> {
        let run = match slices {
            [run] => run,
            _ => {
                self.run.clear();
                slices.iter().for_each(|slice| self.run.extend_from_slice(slice));
                &self.run[..]
            }
        };
        let room = BEFORE_BLOCK + get_maximum_output_size(run.len());
        if self.frame.len() < room {
            self.frame.resize(room, 0);
        }
        let block = compress_into_with_table(run, &mut self.frame[BEFORE_BLOCK..], &mut self.table).ok()?;
        let len = BEFORE_BLOCK + block;
        if len >= ENTRIES_HEAD_LEN + run.len() {
            return None;
        }
        self.frame[HEADER_LEN..ENTRIES_HEAD_LEN].copy_from_slice(&entries_prefix(head));
        self.frame[ENTRIES_HEAD_LEN..BEFORE_BLOCK].copy_from_slice(&payload_len(run.len()).to_le_bytes());
        let payload = &self.frame[HEADER_LEN..len];
        let header = FrameHeader {
            kind: MessageType::Entries,
            compressed: true,
            payload_len: payload_len(payload.len()),
            term,
            sequence,
            payload_crc: payload_crc(MessageType::Entries, true, payload),
        };
        self.frame[..HEADER_LEN].copy_from_slice(&header.encode());
        Some(&self.frame[..len])
    }
}

/// Turns compressed frames into plain ones. Reused, it allocates nothing once it has seen its largest run.
#[derive(Default)]
pub struct Expander(Vec<u8>);

impl Expander {
    /// The plain frame that says the same as this one: to be decoded. A frame that is not compressed comes back as it
    /// is. The plain frame has at most `max_frame` bytes, which is checked before anything is allocated.
    ///
    /// # Errors
    /// [`WireError`]; `Frame(TooLong)` if the plain frame would exceed the limit.
    pub fn expand<'a>(&'a mut self, frame: &'a [u8], max_frame: u32) -> Result<&'a [u8], WireError> {
        let (header, payload) = FrameHeader::open(frame)?;
        if !header.compressed {
            return Ok(frame);
        }
        let mut take = Take { kind: header.kind, rest: payload };
        take_entries_head(&mut take)?;
        let claimed = take.u32("run length")?;
        check_len(ENTRIES_HEAD_LEN as u64 + u64::from(claimed), max_frame)?;
        let len = ENTRIES_HEAD_LEN + claimed as usize;
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        let plain = &mut self.0[..len];
        match decompress_into(take.rest, &mut plain[ENTRIES_HEAD_LEN..]) {
            Ok(expanded) if expanded == claimed as usize => {}
            _ => return Err(WireError::Expand { claimed }),
        }
        plain[HEADER_LEN..ENTRIES_HEAD_LEN].copy_from_slice(&payload[..ENTRIES_PREFIX_LEN]);
        let header = FrameHeader {
            compressed: false,
            payload_len: payload_len(len - HEADER_LEN),
            payload_crc: payload_crc(MessageType::Entries, false, &plain[HEADER_LEN..]),
            ..header
        };
        plain[..HEADER_LEN].copy_from_slice(&header.encode());
        Ok(plain)
    }
}
