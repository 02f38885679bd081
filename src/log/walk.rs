//! Reading a segment from its file, byte by byte checked: what recovery knows of it.

use std::io;
use std::sync::Arc;

use crate::disk::DiskFile;
use crate::entry::{EntryDamage, EntryKind, EntryRef, HEADER_LEN, HEADER_TXN_LEN, Header, follows};
use crate::ids::{Position, Term, TermSpan, Vlsn};
use crate::log::format::{SEGMENT_HEADER_LEN, SyncMark};
use crate::log::index::{POINT_EVERY, Point};
use crate::log::stated::Stated;

const CHUNK: usize = 1024 * 1024;
/// What a device writes whole or not at all.
const SECTOR: u64 = 512;

/// A file read through one buffer.
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    pub len: u64,
    buffer: Vec<u8>,
    start: u64,
}

impl Window {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> io::Result<Window> {
        let len = file.len()?;
        Ok(Window { file, len, buffer: Vec::new(), start: 0 })
    }

    /// The `wanted` bytes at `offset`; fewer at the end of the file.
    pub(super) fn bytes(&mut self, offset: u64, wanted: usize) -> io::Result<&[u8]> {
        let wanted = wanted.min(self.len.saturating_sub(offset) as usize);
        let inside = offset >= self.start && offset + wanted as u64 <= self.start + self.buffer.len() as u64;
        if !inside {
            let size = wanted.max(CHUNK).min(self.len.saturating_sub(offset) as usize);
            self.buffer.resize(size, 0);
            let read = self.file.read_at(&mut self.buffer, offset)?;
            self.buffer.truncate(read);
            self.start = offset;
        }
        let at = (offset - self.start) as usize;
        let end = (at + wanted).min(self.buffer.len());
        Ok(self.buffer.get(at..end).unwrap_or(&[]))
    }

    /// Behind the last byte from `offset` on that is not zero; `offset` if all are.
    pub(super) fn nonzero_end(&mut self, offset: u64) -> io::Result<u64> {
        let (mut at, mut end) = (offset, offset);
        while at < self.len {
            let chunk = self.bytes(at, CHUNK)?;
            if chunk.is_empty() {
                break;
            }
            if let Some(last) = last_nonzero(chunk) {
                end = at + last as u64 + 1;
            }
            at += chunk.len() as u64;
        }
        Ok(end)
    }
}

fn last_nonzero(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.rchunks(64);
    let mut end = bytes.len();
    for block in blocks {
        if block.iter().fold(0, |seen, byte| seen | byte) != 0 {
            let start = end - block.len();
            return block.iter().rposition(|byte| *byte != 0).map(|at| start + at);
        }
        end -= block.len();
    }
    None
}

/// Where a segment stops making sense, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flaw {
    pub offset: u64,
    /// The entry that should be there.
    pub expected: Vlsn,
    pub damage: EntryDamage,
    /// A torn write explains it: a sector of the entry reads all zero, or the file ends in it.
    pub torn: bool,
    /// Valid entries lie behind it.
    pub entries_behind: bool,
}

/// What a segment holds.
pub(super) struct Walk {
    /// Behind the last good entry.
    pub end: u64,
    /// The last good replicated entry; the one before the segment if it has none.
    pub last: Option<Position>,
    pub points: Vec<Point>,
    pub spans: Vec<TermSpan>,
    pub stated: Stated,
    /// All valid marks, also those behind a flaw.
    pub marks: Vec<SyncMark>,
    pub flaw: Option<Flaw>,
    /// Behind the last byte that is not zero.
    pub nonzero_end: u64,
    /// The highest VLSN of an entry behind a flaw.
    pub highest: Option<Vlsn>,
}

impl Walk {
    /// Whether the segment holds anything that could be an entry.
    pub(super) fn has_content(&self) -> bool {
        self.end > SEGMENT_HEADER_LEN as u64 || self.flaw.is_some_and(|flaw| flaw.entries_behind)
    }
}

/// Walks over the entries of a segment that begins at `first` and stands on `base`, verifying everything.
pub(super) fn walk(window: &mut Window, first: Vlsn, base: Option<Position>) -> io::Result<Walk> {
    let start = SEGMENT_HEADER_LEN as u64;
    let mut walk = Walk {
        end: start,
        last: base,
        points: Vec::new(),
        spans: Vec::new(),
        stated: Stated::default(),
        marks: Vec::new(),
        flaw: None,
        nonzero_end: start,
        highest: None,
    };
    let mut expected = first;
    let mut last_point = start;
    let damage = loop {
        let head = window.bytes(walk.end, HEADER_TXN_LEN)?;
        let header = match Header::parse(head) {
            Ok(header) => header,
            Err(EntryDamage::Short { .. }) if head.iter().all(|byte| *byte == 0) => break None,
            Err(EntryDamage::Zeroes) => break None,
            Err(damage) => break Some((damage, None)),
        };
        let len = header.entry_len();
        let bytes = window.bytes(walk.end, len)?;
        let entry = match EntryRef::verify(bytes) {
            Ok(entry) => entry,
            Err(damage) => break Some((damage, Some(len as u64))),
        };
        let (term, prev) = walk.last.map_or((Term::NONE, 0), |last| (last.term, last.crc));
        let in_place = match header.vlsn {
            Some(_) => follows(&header, expected, term, prev).is_ok(),
            None => header.prev == prev,
        };
        if !in_place {
            break Some((EntryDamage::Misplaced, Some(len as u64)));
        }
        if let Some(mark) = mark_of(&entry) {
            walk.marks.push(mark);
        }
        if let Some(position) = header.position() {
            if walk.end - last_point >= POINT_EVERY {
                walk.points.push(Point { vlsn: position.vlsn, offset: walk.end });
                last_point = walk.end;
            }
            if walk.spans.last().is_none_or(|span| span.term != position.term) {
                walk.spans.push(TermSpan { term: position.term, first: position.vlsn });
            }
            walk.stated.note(header.kind, position.vlsn);
            walk.last = Some(position);
            expected = expected.next();
        }
        walk.end += len as u64;
    };
    walk.nonzero_end = window.nonzero_end(walk.end)?;
    match damage {
        Some((damage, len)) => judge(window, &mut walk, expected, damage, len)?,
        None if walk.nonzero_end > walk.end => judge(window, &mut walk, expected, EntryDamage::Zeroes, None)?,
        None => {}
    }
    Ok(walk)
}

/// A segment whose header is unusable: a flaw at its very start.
pub(super) fn walk_headless(window: &mut Window, first: Vlsn, damage: EntryDamage) -> io::Result<Walk> {
    let nonzero_end = window.nonzero_end(0)?;
    let mut walk = Walk {
        end: 0,
        last: None,
        points: Vec::new(),
        spans: Vec::new(),
        stated: Stated::default(),
        marks: Vec::new(),
        flaw: None,
        nonzero_end,
        highest: None,
    };
    judge(window, &mut walk, first, damage, Some(SEGMENT_HEADER_LEN as u64))?;
    Ok(walk)
}

/// Behind the entry `keep` of a segment; `None` if it is not there, whole and the same.
pub(super) fn end_of(window: &mut Window, keep: Position) -> io::Result<Option<u64>> {
    let mut at = SEGMENT_HEADER_LEN as u64;
    loop {
        let Ok(header) = Header::parse(window.bytes(at, HEADER_TXN_LEN)?) else { return Ok(None) };
        let Ok(entry) = EntryRef::verify(window.bytes(at, header.entry_len())?) else { return Ok(None) };
        at += entry.bytes().len() as u64;
        match entry.header().position() {
            Some(position) if position == keep => return Ok(Some(at)),
            Some(position) if position.vlsn >= keep.vlsn => return Ok(None),
            _ => {}
        }
    }
}

fn mark_of(entry: &EntryRef<'_>) -> Option<SyncMark> {
    let local_mark = entry.header().vlsn.is_none() && entry.kind() == EntryKind::SYNC_MARK;
    local_mark.then(|| SyncMark::decode(entry.payload()))?
}

/// Looks at a flaw at `walk.end`: whether a torn write explains it, and what lies behind it.
fn judge(
    window: &mut Window,
    walk: &mut Walk,
    expected: Vlsn,
    damage: EntryDamage,
    len: Option<u64>,
) -> io::Result<()> {
    let offset = walk.end;
    // An entry of unknown length has a header at least, whose end may lie in a sector that was never written.
    let extent_end = len.map_or(walk.nonzero_end.max(offset + HEADER_LEN as u64), |len| offset + len);
    let file_ends = extent_end > window.len || (matches!(damage, EntryDamage::Short { .. }) && len.is_none());
    let torn = damage != EntryDamage::Misplaced
        && (file_ends || has_zero_sector(window, offset, extent_end.min(window.len))?);
    // What lies inside an entry of known length is its payload, whatever it looks like.
    let mut at = if len.is_some() && damage != EntryDamage::Misplaced { extent_end } else { offset };
    let mut entries_behind = false;
    while at < walk.nonzero_end {
        let head = window.bytes(at, HEADER_TXN_LEN)?;
        let found = match Header::parse(head) {
            Ok(header) => {
                let whole = header.entry_len();
                let bytes = window.bytes(at, whole)?;
                EntryRef::verify(bytes).ok().map(|entry| (*entry.header(), mark_of(&entry)))
            }
            Err(_) => None,
        };
        let Some((header, mark)) = found else {
            at += 1;
            continue;
        };
        entries_behind |= at > offset;
        walk.marks.extend(mark);
        walk.highest = walk.highest.max(header.vlsn);
        at += header.entry_len() as u64;
    }
    walk.flaw = Some(Flaw { offset, expected, damage, torn, entries_behind });
    Ok(())
}

/// Whether one of the sector-sized pieces of a range reads all zero.
fn has_zero_sector(window: &mut Window, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    while at < to {
        let end = ((at / SECTOR + 1) * SECTOR).min(to);
        if window.bytes(at, (end - at) as usize)?.iter().all(|byte| *byte == 0) {
            return Ok(true);
        }
        at = end;
    }
    Ok(false)
}
