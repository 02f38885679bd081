//! Scrubbing: segments are read from their files, whoever else reads them, and what is damaged is noted.

use std::ops::Range;

use crate::entry::{EntryDamage, EntryRef, HEADER_TXN_LEN, Header, follows};
use crate::ids::{Position, Term, Vlsn};
use crate::log::core::Core;
use crate::log::format::{SEGMENT_HEADER_LEN, SegmentHeader, sidecar_name};
use crate::log::index::{Sidecar, read_whole};
use crate::log::segment::Segment;
use crate::log::walk::Window;

/// The largest index that is read.
const SIDECAR_LIMIT: u64 = 64 * 1024 * 1024;
/// Bytes that are verified at once, about.
const PART: u64 = 1024 * 1024;

/// How far a scrub has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubPlace {
    /// The last entry that was verified, or stands in a segment that was dealt with; `None`: begin with the oldest.
    pub after: Option<Vlsn>,
    /// Within a segment: where to go on, and behind which entry.
    inside: Option<(Vlsn, u64, Option<Position>)>,
}

impl ScrubPlace {
    /// Goes on in the segment that holds the next entry.
    pub fn behind(after: Option<Vlsn>) -> ScrubPlace {
        ScrubPlace { after, inside: None }
    }
}

/// What one step of a scrub did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scrubbed {
    /// Where to go on; `None`: the round is over.
    pub next: Option<ScrubPlace>,
    /// Bytes read.
    pub bytes: u64,
}

impl Core {
    pub(super) fn scrub(&self, at: ScrubPlace) -> Scrubbed {
        let over = Scrubbed { next: None, bytes: 0 };
        let oldest = self.catalog.lock().oldest().map(|segment| segment.first);
        let wanted = Vlsn::after(at.after).max(oldest.unwrap_or(Vlsn::FIRST));
        let (segment, end) = {
            let catalog = self.catalog.lock();
            let Some(segment) = catalog.holding(wanted) else { return over };
            let end = catalog.end_of(segment.first);
            (segment, end)
        };
        // The last segment grows meanwhile, and may come to be sealed.
        let (indexed, stop) = (segment.is_sealed(), segment.end());
        let inside = at.inside.filter(|(first, ..)| *first == segment.first);
        let (offset, before) = match inside {
            Some((_, offset, before)) => (offset, before),
            None => (0, segment.base),
        };
        let done = end.map(|end| ScrubPlace::behind(Some(end.vlsn)));
        let (outcome, bytes) = match self.scrub_part(&segment, offset..stop, before, end, indexed) {
            Ok((next, before)) if next < stop => {
                let after = before.map(|before| before.vlsn);
                let inside = Some((segment.first, next, before));
                (Some(ScrubPlace { after, inside }), next - offset)
            }
            Ok((next, _)) => (done, next - offset),
            Err((offset, from, damage)) => {
                let error = segment.damaged(offset, from, damage);
                let whole = offset < SEGMENT_HEADER_LEN as u64;
                if !segment.is_replaced() {
                    self.note_damage(&segment, if whole { None } else { Some(from) }, error);
                }
                // Whoever heals it looks through all of it.
                (done, PART)
            }
        };
        Scrubbed { next: outcome, bytes }
    }

    /// Verifies about [`PART`] bytes of a segment; where it came to, or what is damaged. `end`: what it ends with, if it has
    /// another behind it.
    fn scrub_part(
        &self,
        segment: &Segment,
        range: Range<u64>,
        before: Option<Position>,
        end: Option<Position>,
        indexed: bool,
    ) -> Result<(u64, Option<Position>), (u64, Vlsn, EntryDamage)> {
        let first = segment.first;
        let unreadable = |offset, from| (offset, from, EntryDamage::Short { needed: 1, present: 0 });
        let file = self.disk.open(&segment.path).map_err(|_| unreadable(0, first))?;
        let mut window = Window::new(file).map_err(|_| unreadable(0, first))?;
        let mut offset = range.start;
        if offset == 0 {
            let head = window.bytes(0, SEGMENT_HEADER_LEN).map_err(|_| unreadable(0, first))?;
            SegmentHeader::decode(head, self.config.group, first)
                .map_err(|_| (0, first, EntryDamage::Header))?;
            let path = self.config.dir.join(sidecar_name(first));
            let index = match indexed {
                true => read_whole(&*self.disk, &path, SIDECAR_LIMIT).ok().flatten(),
                false => None,
            };
            let index = index.and_then(|bytes| Sidecar::decode(&bytes, self.config.group, first).ok());
            if indexed && index.is_none_or(|index| Some(index.last) != end || index.end != range.end) {
                return Err((0, first, EntryDamage::Header));
            }
            offset = SEGMENT_HEADER_LEN as u64;
        }
        let (stop, mut before) = ((offset + PART).min(range.end), before);
        while offset < stop {
            let expected = Vlsn::after(before.map(|before| before.vlsn));
            let head = window.bytes(offset, HEADER_TXN_LEN).map_err(|_| unreadable(offset, expected))?;
            let header = Header::parse(head).map_err(|damage| (offset, expected, damage))?;
            let len = header.entry_len();
            let bytes = window.bytes(offset, len).map_err(|_| unreadable(offset, expected))?;
            EntryRef::verify(bytes).map_err(|damage| (offset, expected, damage))?;
            if let Some(position) = header.position() {
                let (term, prev) = before.map_or((Term::NONE, 0), |before| (before.term, before.crc));
                follows(&header, expected, term, prev)
                    .map_err(|_| (offset, expected, EntryDamage::Misplaced))?;
                before = Some(position);
            }
            offset += len as u64;
        }
        if let Some(end) = end.filter(|end| offset >= range.end && before != Some(*end)) {
            return Err((offset, end.vlsn, EntryDamage::Misplaced));
        }
        Ok((offset, before))
    }
}
