//! The log's own reader: runs of entries straight from the mapped segments.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::entry::{EntryDamage, EntryRef, HEADER_TXN_LEN, Header, Stand, follows, skim};
use crate::ids::{Position, Term, Vlsn, number};
use crate::log::core::Core;
use crate::log::error::AppendError;
use crate::log::life::Life;
use crate::log::mmap::AppendMap;
use crate::log::scanner::{LogScanner, RUN_SLICES, Run, ScanError};
use crate::log::segment::Segment;
use crate::planted::{Bug, active};

/// Bytes of a sealed segment that are brought into memory at once.
const PREFAULT: u64 = 4 * 1024 * 1024;

/// Reads one life of a log. Cheap to make; holds on to the segment that it reads, also when that is pruned.
pub struct MappedScanner {
    core: Arc<Core>,
    life: Arc<Life>,
    reading: Option<Reading>,
}

/// The segment being read.
struct Reading {
    segment: Arc<Segment>,
    map: Arc<AppendMap>,
    /// Where the last run began, so that it can be repeated, and where the next one begins.
    start: Cursor,
    next: Cursor,
    /// How far the mapping was brought into memory; everything, for a segment that this process wrote.
    present_to: u64,
}

/// Before an entry.
#[derive(Clone, Copy)]
struct Cursor {
    after: Option<Vlsn>,
    offset: u64,
    /// Term and CRC of the entry before, if known.
    before: Option<(Term, u32)>,
}

/// Where a walk ended.
struct Found {
    last: Position,
    timestamp: u64,
}

/// Stretches of replicated entries, as offsets in the segment.
struct Pieces {
    offsets: [(u64, u64); RUN_SLICES],
    used: usize,
}

impl Default for Pieces {
    fn default() -> Pieces {
        Pieces { offsets: [(0, 0); RUN_SLICES], used: 0 }
    }
}

impl Pieces {
    /// Adds a stretch, if it is not empty; returns whether there is room for another.
    fn add(&mut self, from: u64, to: u64) -> bool {
        if from < to {
            self.offsets[self.used] = (from, to);
            self.used += 1;
        }
        self.used < RUN_SLICES
    }
}

impl MappedScanner {
    pub(super) fn new(core: Arc<Core>) -> MappedScanner {
        let life = core.life();
        MappedScanner { core, life, reading: None }
    }

    fn check(&self) -> Result<(), ScanError> {
        if self.core.is_poisoned() {
            return Err(ScanError::Poisoned);
        }
        if self.life.has_ended() { Err(ScanError::LifeEnded) } else { Ok(()) }
    }

    /// Whether an entry after `after` is written; staged ones are written now.
    fn has_after(&self, after: u64) -> Result<bool, ScanError> {
        if self.life.written.get() > after {
            return Ok(true);
        }
        let appended = self.life.appended.get();
        if let Some(asked) = Vlsn::new(after).filter(|_| after > appended) {
            return Err(ScanError::Beyond { asked });
        }
        if appended > after {
            match self.core.write_out() {
                Err(AppendError::Poisoned) => return Err(ScanError::Poisoned),
                // A full disk: the entries stay staged, and there is nothing newer to be read yet.
                Err(error) => log::debug!("{error}"),
                Ok(()) => {}
            }
        }
        Ok(self.life.written.get() > after)
    }

    /// Makes `self.reading` stand before the entry after `after`, which is written.
    fn seek(&mut self, after: Option<Vlsn>) -> Result<(), ScanError> {
        if self.reading.as_ref().is_some_and(|reading| reading.segment.is_replaced()) {
            self.reading = None;
        }
        if let Some(reading) = &mut self.reading {
            if reading.next.after == after && reading.next.offset < reading.map.published() {
                reading.start = reading.next;
                return Ok(());
            }
            if reading.start.after == after && reading.start.offset < reading.map.published() {
                return Ok(());
            }
        }
        let wanted = Vlsn::after(after);
        let segment = self.core.catalog.lock().holding(wanted);
        let segment = segment.ok_or_else(|| self.core.pruned())?;
        let map = segment.map(&*self.core.disk, self.core.config.group)?;
        let place = segment.place(&map, wanted)?;
        let start = Cursor { after, offset: place.offset, before: place.before };
        let present_to = if segment.is_sealed() { 0 } else { u64::MAX };
        self.reading = Some(Reading { segment, map, start, next: start, present_to });
        Ok(())
    }

    fn is_replaced(&self) -> bool {
        self.reading.as_ref().is_some_and(|reading| reading.segment.is_replaced())
    }

    fn find(
        &mut self,
        after: Option<Vlsn>,
        max_entries: u32,
        max_bytes: usize,
        pieces: &mut Pieces,
    ) -> Result<Option<Found>, ScanError> {
        self.seek(after)?;
        match &mut self.reading {
            Some(reading) => reading.walk(max_entries, max_bytes, pieces),
            None => Ok(None),
        }
    }
}

impl Reading {
    /// Brings what the next run may touch into memory.
    fn prefault(&mut self, to: u64) -> Result<(), ScanError> {
        let from = self.start.offset.max(self.present_to);
        if to > self.present_to {
            let end = to.max(self.start.offset + PREFAULT).min(self.map.published());
            self.map.prefault(from..end).map_err(|error| self.segment.unreadable(&error))?;
            self.present_to = end;
        }
        Ok(())
    }

    /// Walks over entries from `start` on, header by header, and notes where the replicated ones are. Stops before
    /// damage, and reports it only if nothing good lies before it.
    fn walk(
        &mut self,
        max_entries: u32,
        max_bytes: usize,
        pieces: &mut Pieces,
    ) -> Result<Option<Found>, ScanError> {
        let published = self.map.published();
        let lazily = self.present_to != u64::MAX;
        if lazily {
            self.prefault((self.start.offset + max_bytes as u64).min(published))?;
        }
        let verified = self.segment.verified.load(Ordering::Acquire);
        let bytes = self.map.bytes(0..published);
        let mut offset = self.start.offset;
        let mut piece_start = offset;
        let mut expected = Vlsn::after(self.start.after);
        let mut before = self.start.before;
        let (mut entries, mut total) = (0, 0);
        let mut last: Option<(Position, u64)> = None;
        let mut stopped = None;
        while (offset as usize) < bytes.len() {
            if let (Some((term, crc)), Some(vlsn)) = (before, expected.previous()) {
                let at = offset as usize;
                let behind = Position { vlsn, term, crc };
                let mut stand = Stand { offset: at, behind, timestamp: 0, memberships: false, slots: false };
                let most = max_entries.saturating_sub(entries);
                let room = at.saturating_add(max_bytes.saturating_sub(total));
                let end = room.min(usize::try_from(self.present_to).unwrap_or(usize::MAX));
                let went = if offset < verified {
                    skim::<false>(
                        bytes,
                        &mut stand,
                        most,
                        end.min(usize::try_from(verified).unwrap_or(usize::MAX)),
                    )
                } else {
                    skim::<true>(bytes, &mut stand, most, end)
                };
                if went > 0 {
                    offset = stand.offset as u64;
                    total += stand.offset - at;
                    entries += went;
                    expected = stand.behind.vlsn.next();
                    before = Some((stand.behind.term, stand.behind.crc));
                    last = Some((stand.behind, stand.timestamp));
                    continue;
                }
            }
            let behind = &bytes[offset as usize..];
            if lazily && offset + HEADER_TXN_LEN as u64 > self.present_to && self.present_to < published {
                self.extend_present(offset, HEADER_TXN_LEN as u64)?;
            }
            let header = match Header::parse(behind) {
                Ok(header) => header,
                Err(damage) => {
                    stopped = Some(damage);
                    break;
                }
            };
            let len = header.entry_len();
            if len > behind.len() {
                stopped = Some(EntryDamage::Short { needed: len, present: behind.len() });
                break;
            }
            if header.vlsn.is_none() {
                if !pieces.add(piece_start, offset) {
                    piece_start = offset;
                    break;
                }
                offset += len as u64;
                piece_start = offset;
                continue;
            }
            if entries > 0 && (entries >= max_entries || total + len > max_bytes) {
                break;
            }
            let (term, prev) = before.unwrap_or((header.term, header.prev));
            if follows(&header, expected, term, prev).is_err() {
                stopped = Some(EntryDamage::Misplaced);
                break;
            }
            let end = offset + len as u64;
            if end > verified {
                if lazily && end > self.present_to {
                    self.extend_present(offset, len as u64)?;
                }
                if let Err(damage) = EntryRef::verify(behind)
                    && !active(Bug::DamagedServed)
                {
                    stopped = Some(damage);
                    break;
                }
            }
            before = Some((header.term, header.crc));
            expected = expected.next();
            entries += 1;
            total += len;
            offset = end;
            last = header.position().map(|position| (position, header.timestamp));
        }
        pieces.add(piece_start, offset);
        let Some((last, timestamp)) = last else {
            return match stopped {
                Some(damage) => Err(self.segment.damaged(offset, expected, damage)),
                None => Ok(None),
            };
        };
        self.next = Cursor { after: Some(last.vlsn), offset, before };
        if verified != u64::MAX && self.start.offset <= verified {
            self.segment.verified.fetch_max(offset, Ordering::AcqRel);
        }
        Ok(Some(Found { last, timestamp }))
    }

    fn extend_present(&self, offset: u64, len: u64) -> Result<(), ScanError> {
        self.map.prefault(offset..offset + len.max(PREFAULT)).map_err(|error| self.segment.unreadable(&error))
    }
}

impl LogScanner for MappedScanner {
    fn run(
        &mut self,
        after: Option<Vlsn>,
        max_entries: u32,
        max_bytes: usize,
    ) -> Result<Option<Run<'_>>, ScanError> {
        self.check()?;
        if !self.has_after(number(after))? {
            return Ok(None);
        }
        let first = Vlsn::after(after);
        let max_entries = self.core.undamaged(first, max_entries)?;
        let mut pieces = Pieces::default();
        let found = match self.find(after, max_entries, max_bytes, &mut pieces) {
            // Another file took the segment's place meanwhile.
            Err(ScanError::Damaged { .. }) if self.is_replaced() => {
                pieces = Pieces::default();
                self.find(after, max_entries, max_bytes, &mut pieces)
            }
            other => other,
        };
        let found = found.map_err(|error| self.core.noted(first, error))?;
        let found = match found {
            Some(found) => found,
            None => {
                // Nothing but local entries was left in that segment: the entry is in the next.
                self.reading = None;
                pieces = Pieces::default();
                let again = self.find(after, max_entries, max_bytes, &mut pieces);
                let again = again.map_err(|error| self.core.noted(first, error))?;
                again.ok_or_else(|| self.core.pruned())?
            }
        };
        let Some(reading) = &self.reading else { return Ok(None) };
        let mut slices: [&[u8]; RUN_SLICES] = [&[]; RUN_SLICES];
        for (slice, (from, to)) in slices.iter_mut().zip(&pieces.offsets[..pieces.used]) {
            *slice = reading.map.bytes(*from..*to);
        }
        Ok(Some(Run::new(first, found.last, found.timestamp, &slices[..pieces.used])))
    }
}

impl Core {
    /// The position of one entry, its CRC verified.
    pub(super) fn position_at(&self, vlsn: Vlsn) -> Result<Position, ScanError> {
        let tail = self.stage.lock().tail;
        let base = self.catalog.lock().base();
        if let Some(known) = [tail, base].into_iter().flatten().find(|at| at.vlsn == vlsn) {
            return if self.is_poisoned() { Err(ScanError::Poisoned) } else { Ok(known) };
        }
        self.look_up(vlsn, |entry| entry.header().position())
    }

    /// The payload of one entry, its CRC verified.
    pub(super) fn payload(&self, vlsn: Vlsn) -> Result<Vec<u8>, ScanError> {
        self.look_up(vlsn, |entry| Some(entry.payload().to_vec()))
    }

    /// Finds and verifies one entry, and takes something from it; `None` if it is not the entry that it should be.
    fn look_up<T>(&self, vlsn: Vlsn, take: impl FnOnce(&EntryRef<'_>) -> Option<T>) -> Result<T, ScanError> {
        if self.is_poisoned() {
            return Err(ScanError::Poisoned);
        }
        let (tail, life) = {
            let stage = self.stage.lock();
            (stage.tail, Arc::clone(&stage.life))
        };
        if tail.is_none_or(|tail| tail.vlsn < vlsn) {
            return Err(ScanError::Beyond { asked: vlsn });
        }
        if life.written.get() < vlsn.get() && self.write_out().is_err() {
            return Err(ScanError::Io {
                path: self.config.dir.clone(),
                kind: std::io::ErrorKind::StorageFull,
            });
        }
        self.undamaged(vlsn, 1)?;
        let segment = self.catalog.lock().holding(vlsn);
        let segment = segment.ok_or_else(|| self.pruned())?;
        let found = segment.map(&*self.disk, self.config.group).and_then(|map| {
            let place = segment.place(&map, vlsn)?;
            let bytes = map.bytes(place.offset..map.published());
            let entry =
                EntryRef::verify(bytes).map_err(|damage| segment.damaged(place.offset, vlsn, damage))?;
            take(&entry).ok_or_else(|| segment.damaged(place.offset, vlsn, EntryDamage::Misplaced))
        });
        found.map_err(|error| self.noted(vlsn, error))
    }
}
