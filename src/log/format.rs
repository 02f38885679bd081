//! The bytes of the log's files, but for the entries (see [`crate::entry`]) and the sidecar index (see `index`).
//! docs/format.md describes the same layouts for implementers.

use std::io;

use byteorder::{LE, ReadBytesExt, WriteBytesExt};

use crate::ids::{GroupId, Position, Term, Vlsn, number};
use crate::log::error::FileDamage;

/// The version of segments and intents that this software writes, and the latest that it reads.
pub(super) const VERSION: u32 = 1;
/// Bytes of a segment's header; the first entry follows.
pub const SEGMENT_HEADER_LEN: usize = 128;
/// Bytes of a sync mark's payload.
pub(super) const MARK_PAYLOAD_LEN: usize = 32;
/// Bytes of a whole sync mark.
pub(super) const MARK_LEN: u64 = (crate::entry::HEADER_LEN + MARK_PAYLOAD_LEN) as u64;

const SEGMENT_MAGIC: &[u8; 8] = b"QRSEGMNT";
const INTENT_MAGIC: &[u8; 8] = b"QRINTENT";
const RESET_MAGIC: &[u8; 8] = b"QRRESETS";

/// The start of every file: magic, version. What follows is read only after both were judged.
pub(super) fn put_start(out: &mut Vec<u8>, magic: &[u8; 8], version: u32) {
    out.extend_from_slice(magic);
    out.extend_from_slice(&version.to_le_bytes());
}

/// Judges magic, version and the CRC in the last four bytes; returns the version, and what lies between it and the CRC.
pub(super) fn check<'b>(
    bytes: &'b [u8],
    magic: &[u8; 8],
    supported: u32,
) -> Result<(u32, &'b [u8]), FileDamage> {
    let Some((found, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(if bytes.iter().all(|b| *b == 0) { FileDamage::Zeroes } else { FileDamage::Checksum });
    };
    if found != magic {
        return Err(if bytes.iter().all(|b| *b == 0) { FileDamage::Zeroes } else { FileDamage::Magic });
    }
    let Some((version, rest)) = rest.split_first_chunk::<4>() else { return Err(FileDamage::Checksum) };
    let version = u32::from_le_bytes(*version);
    if version > supported {
        return Err(FileDamage::NewerVersion { found: version, supported });
    }
    let Some((body, crc)) = rest.split_last_chunk::<4>() else { return Err(FileDamage::Checksum) };
    if crc32fast::hash(&bytes[..bytes.len() - 4]) != u32::from_le_bytes(*crc) {
        return Err(FileDamage::Checksum);
    }
    Ok((version, body))
}

/// Closes a file's bytes with the CRC over all of them.
pub(super) fn put_crc(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// 16 bytes: VLSN (0 for none), term, CRC.
pub(super) fn put_position(out: &mut Vec<u8>, position: Option<Position>) {
    out.extend_from_slice(&number(position.map(|p| p.vlsn)).to_le_bytes());
    out.extend_from_slice(&position.map_or(0, |p| p.term.get()).to_le_bytes());
    out.extend_from_slice(&position.map_or(0, |p| p.crc).to_le_bytes());
}

pub(super) fn take_position(from: &mut &[u8]) -> io::Result<Option<Position>> {
    let (vlsn, term, crc) = (from.read_u64::<LE>()?, from.read_u32::<LE>()?, from.read_u32::<LE>()?);
    Ok(Vlsn::new(vlsn).map(|vlsn| Position { vlsn, term: Term::new(term), crc }))
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub group: GroupId,
    /// The VLSN of the first replicated entry that is, or will be, in the segment.
    pub first: Vlsn,
    /// The entry before it.
    pub base: Option<Position>,
    /// Microseconds since the epoch.
    pub created: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_LEN);
        put_start(&mut out, SEGMENT_MAGIC, VERSION);
        out.extend_from_slice(&(SEGMENT_HEADER_LEN as u32).to_le_bytes());
        out.extend_from_slice(&self.group.bits().to_le_bytes());
        out.extend_from_slice(&self.first.get().to_le_bytes());
        put_position(&mut out, self.base);
        out.extend_from_slice(&self.created.to_le_bytes());
        out.resize(SEGMENT_HEADER_LEN - 4, 0);
        put_crc(&mut out);
        out
    }

    /// Reads the header at the start of a segment that should be of `group` and begin at `first`.
    pub(super) fn decode(bytes: &[u8], group: GroupId, first: Vlsn) -> Result<SegmentHeader, FileDamage> {
        let bytes = bytes.get(..SEGMENT_HEADER_LEN).unwrap_or(bytes);
        let (_, mut body) = check(bytes, SEGMENT_MAGIC, VERSION)?;
        let header = Self::take(&mut body).map_err(|_| FileDamage::Checksum)?.ok_or(FileDamage::Checksum)?;
        if header.group != group {
            return Err(FileDamage::OtherGroup { found: header.group, ours: group });
        }
        if header.first != first {
            return Err(FileDamage::WrongFirst { found: header.first });
        }
        if Vlsn::after(header.base.map(|base| base.vlsn)) != first {
            return Err(FileDamage::WrongBase);
        }
        Ok(header)
    }

    fn take(body: &mut &[u8]) -> io::Result<Option<SegmentHeader>> {
        let header_len = body.read_u32::<LE>()?;
        let group = GroupId::from_bits(body.read_u128::<LE>()?);
        let first = Vlsn::new(body.read_u64::<LE>()?);
        let base = take_position(body)?;
        let created = body.read_u64::<LE>()?;
        Ok(first.filter(|_| header_len as usize == SEGMENT_HEADER_LEN).map(|first| SegmentHeader {
            group,
            first,
            base,
            created,
        }))
    }
}

/// What a sync mark states: everything before this place in the log was durable when it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SyncMark {
    /// The first VLSN of the segment that the offset is in. All earlier segments were durable as a whole.
    pub segment: Vlsn,
    /// Bytes of that segment that were durable.
    pub offset: u64,
    /// The last durable VLSN.
    pub durable: Option<Vlsn>,
    /// The last VLSN known to be committed, of those durable.
    pub committed: Option<Vlsn>,
}

impl SyncMark {
    pub(super) fn encode(&self) -> [u8; MARK_PAYLOAD_LEN] {
        let mut out = [0; MARK_PAYLOAD_LEN];
        let mut rest = &mut out[..];
        for field in [self.segment.get(), self.offset, number(self.durable), number(self.committed)] {
            // Writing into memory of the right size can't fail.
            let _ = rest.write_u64::<LE>(field);
        }
        out
    }

    /// Reads a mark's payload; `None` for one that makes no sense.
    pub(super) fn decode(mut payload: &[u8]) -> Option<SyncMark> {
        if payload.len() != MARK_PAYLOAD_LEN {
            return None;
        }
        let mut field = || payload.read_u64::<LE>().ok();
        let (segment, offset, durable, committed) = (field()?, field()?, field()?, field()?);
        Some(SyncMark {
            segment: Vlsn::new(segment)?,
            offset,
            durable: Vlsn::new(durable),
            committed: Vlsn::new(committed),
        })
    }

    /// Whether the byte at `offset` of the segment that begins at `segment` was durable.
    pub(super) fn covers(&self, segment: Vlsn, offset: u64) -> bool {
        (self.segment, self.offset) > (segment, offset)
    }
}

/// A truncation that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Intent {
    /// The last entry to keep.
    pub keep: Option<Position>,
    /// The entries that are cut.
    pub from: Vlsn,
    pub to: Vlsn,
    /// The number in the name of the file where they are saved.
    pub number: u32,
}

/// Bytes of an intent file.
pub(super) const INTENT_LEN: usize = 12 + 16 + 16 + 8 + 8 + 4 + 4;

impl Intent {
    pub(super) fn encode(&self, group: GroupId) -> Vec<u8> {
        let mut out = Vec::with_capacity(INTENT_LEN);
        put_start(&mut out, INTENT_MAGIC, VERSION);
        out.extend_from_slice(&group.bits().to_le_bytes());
        put_position(&mut out, self.keep);
        out.extend_from_slice(&self.from.get().to_le_bytes());
        out.extend_from_slice(&self.to.get().to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        put_crc(&mut out);
        out
    }

    pub(super) fn decode(bytes: &[u8], ours: GroupId) -> Result<Intent, FileDamage> {
        let (_, mut body) = check(bytes, INTENT_MAGIC, VERSION)?;
        let mut take = || -> io::Result<_> {
            let group = GroupId::from_bits(body.read_u128::<LE>()?);
            let keep = take_position(&mut body)?;
            let (from, to) = (body.read_u64::<LE>()?, body.read_u64::<LE>()?);
            Ok((group, keep, from, to, body.read_u32::<LE>()?))
        };
        let (found, keep, from, to, number) = take().map_err(|_| FileDamage::Checksum)?;
        if found != ours {
            return Err(FileDamage::OtherGroup { found, ours });
        }
        match (Vlsn::new(from), Vlsn::new(to)) {
            (Some(from), Some(to)) if from <= to && from == Vlsn::after(keep.map(|p| p.vlsn)) => {
                Ok(Intent { keep, from, to, number })
            }
            _ => Err(FileDamage::Checksum),
        }
    }
}

/// A reset that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ResetIntent {
    /// What the new log stands on.
    pub base: Position,
}

impl ResetIntent {
    /// Bytes of its file.
    pub(super) const LEN: usize = 12 + 16 + 16 + 4;

    pub(super) fn encode(self, group: GroupId) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        put_start(&mut out, RESET_MAGIC, VERSION);
        out.extend_from_slice(&group.bits().to_le_bytes());
        put_position(&mut out, Some(self.base));
        put_crc(&mut out);
        out
    }

    pub(super) fn decode(bytes: &[u8], ours: GroupId) -> Result<ResetIntent, FileDamage> {
        let (_, mut body) = check(bytes, RESET_MAGIC, VERSION)?;
        let mut take = || -> io::Result<_> {
            Ok((GroupId::from_bits(body.read_u128::<LE>()?), take_position(&mut body)?))
        };
        let (found, base) = take().map_err(|_| FileDamage::Checksum)?;
        if found != ours {
            return Err(FileDamage::OtherGroup { found, ours });
        }
        Ok(ResetIntent { base: base.ok_or(FileDamage::Checksum)? })
    }
}

/// A segment's file name.
pub(super) fn segment_name(first: Vlsn) -> String {
    format!("{:020}.seg", first.get())
}

/// A sidecar's file name.
pub(super) fn sidecar_name(first: Vlsn) -> String {
    format!("{:020}.idx", first.get())
}

/// The name of a file with saved entries.
pub(super) fn saved_name(from: Vlsn, to: Vlsn, number: u32) -> String {
    format!("rolledback-{from}-{to}-{number}.log")
}

/// The name of a file with what was cut off behind damage, while it is needed to heal.
pub(super) fn damaged_name(from: Vlsn, to: Vlsn, number: u32) -> String {
    format!("{DAMAGED}{from}-{to}-{number}.log")
}

/// How such names begin.
pub(super) const DAMAGED: &str = "damaged-";

/// The VLSN in a name of 20 digits and this extension.
pub(super) fn first_in_name(name: &str, extension: &str) -> Option<Vlsn> {
    let digits = name.strip_suffix(extension)?;
    let plain = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok().and_then(Vlsn::new))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId::from_bits(7);

    fn header() -> SegmentHeader {
        let base = Position { vlsn: Vlsn::FIRST, term: Term::new(3), crc: 9 };
        SegmentHeader { group: GROUP, first: Vlsn::FIRST.next(), base: Some(base), created: 5 }
    }

    #[test]
    fn a_segment_header_round_trips_and_every_flipped_bit_shows() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), SEGMENT_HEADER_LEN);
        assert_eq!(SegmentHeader::decode(&bytes, GROUP, header().first), Ok(header()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged, GROUP, header().first).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn foreign_newer_and_misnamed_segments_are_refused_by_name() {
        let bytes = header().encode();
        let other = GroupId::from_bits(8);
        let decode = |bytes: &[u8], group, first| SegmentHeader::decode(bytes, group, first).unwrap_err();
        assert!(matches!(decode(&bytes, other, header().first), FileDamage::OtherGroup { .. }));
        assert!(matches!(decode(&bytes, GROUP, Vlsn::FIRST), FileDamage::WrongFirst { .. }));
        let mut newer = bytes.clone();
        newer[8] = 2;
        assert_eq!(
            decode(&newer, GROUP, header().first),
            FileDamage::NewerVersion { found: 2, supported: 1 }
        );
        assert_eq!(decode(b"PNG.....", GROUP, header().first), FileDamage::Magic);
        assert_eq!(decode(&[0; 200], GROUP, header().first), FileDamage::Zeroes);
    }

    #[test]
    fn marks_and_intents_round_trip() {
        let mark =
            SyncMark { segment: header().first, offset: 400, durable: Some(header().first), committed: None };
        assert_eq!(SyncMark::decode(&mark.encode()), Some(mark));
        assert!(mark.covers(Vlsn::FIRST, u64::MAX) && mark.covers(mark.segment, 399));
        assert!(!mark.covers(mark.segment, 400));
        let intent = Intent { keep: None, from: Vlsn::FIRST, to: header().first, number: 4 };
        let bytes = intent.encode(GROUP);
        assert_eq!(bytes.len(), INTENT_LEN);
        assert_eq!(Intent::decode(&bytes, GROUP), Ok(intent));
        assert!(Intent::decode(&bytes, GroupId::from_bits(1)).is_err());
    }

    #[test]
    fn names_are_parsed_strictly() {
        let first = Vlsn::FIRST.next();
        assert_eq!(first_in_name(&segment_name(first), ".seg"), Some(first));
        for name in
            ["2.seg", "0000000000000000000x.seg", "00000000000000000000.seg", "+0000000000000000002.seg"]
        {
            assert_eq!(first_in_name(name, ".seg"), None, "{name}");
        }
    }
}
