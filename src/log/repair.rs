//! Damage in sealed segments: what is known of it, and how a segment is made anew from what is good in it and what
//! others have.
//!
//! The new file is written beside the old one, synced and verified from base to end; its index is put in place first and
//! then the file itself. An index that does not fit the old, damaged file makes its entries unreadable at worst, and they
//! are healed again.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::disk::DiskFile;
use crate::entry::{EntryDamage, EntryRef, HEADER_TXN_LEN, Header};
use crate::ids::{Position, Vlsn, VlsnRange};
use crate::log::core::Core;
use crate::log::error::{Failed, FlushError, IoFailure};
use crate::log::format::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::log::index::{Sidecar, create_anew};
use crate::log::scanner::ScanError;
use crate::log::segment::Segment;
use crate::log::walk::{Window, walk};
use crate::watermark::Watermark;

/// Bytes that are written at once.
const CHUNK: usize = 1024 * 1024;
/// Bytes of a segment, at most.
const LONGEST: u64 = 1 << 30;

/// The damage that is known, by the first VLSN of its segment.
pub(super) struct Damages {
    any: AtomicBool,
    known: Mutex<BTreeMap<Vlsn, Known>>,
    /// Counts what was found.
    pub found: Watermark,
    pub healed: AtomicU64,
    /// Rises when something may be damaged no more.
    pub eased: Watermark,
}

impl Default for Damages {
    fn default() -> Damages {
        Damages {
            any: AtomicBool::new(false),
            known: Mutex::default(),
            found: Watermark::new(0),
            healed: AtomicU64::new(0),
            eased: Watermark::new(0),
        }
    }
}

/// Damage in one segment.
struct Known {
    range: VlsnRange,
    error: ScanError,
}

/// Why a segment was not made anew. The old file is where it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MendError {
    /// Entries are missing still.
    #[error("VLSN {0} is missing still")]
    Missing(Vlsn),
    /// What was put together does not continue what comes before it.
    #[error("VLSN {0} does not continue the entry before it")]
    Chain(Vlsn),
    /// The segment was pruned or cut meanwhile: nothing is left to be healed.
    #[error("the segment is gone")]
    Gone,
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoFailure),
}

/// An entry of a damaged segment that is good.
#[derive(Clone, Copy)]
struct Good {
    offset: u64,
    len: u64,
    position: Position,
    prev: u32,
}

/// A damaged segment, looked through.
pub struct Wounded {
    core: Arc<Core>,
    segment: Arc<Segment>,
    file: Option<Arc<dyn DiskFile>>,
    last: Position,
    good: BTreeMap<Vlsn, Good>,
}

impl Core {
    /// How many of the entries from `first` on may be read before the next that is known to be damaged.
    #[inline]
    pub(super) fn undamaged(&self, first: Vlsn, most: u32) -> Result<u32, ScanError> {
        if !self.damages.any.load(Ordering::Acquire) {
            return Ok(most);
        }
        let known = self.damages.known.lock();
        let next = known.values().find(|known| known.range.last() >= first);
        match next {
            None => Ok(most),
            Some(known) if known.range.first() <= first => Err(known.error.clone()),
            Some(known) => {
                let room = known.range.first().get() - first.get();
                Ok(most.min(u32::try_from(room).unwrap_or(u32::MAX)))
            }
        }
    }

    /// Notes the damage that an error tells of, met on the way to `wanted`.
    pub(super) fn noted(&self, wanted: Vlsn, error: ScanError) -> ScanError {
        if let ScanError::Damaged { offset, from, .. } = &error {
            let segment = self.catalog.lock().holding(wanted);
            if let Some(segment) = segment.filter(|segment| !segment.is_replaced()) {
                let whole = *offset < SEGMENT_HEADER_LEN as u64;
                self.note_damage(&segment, if whole { None } else { Some(*from) }, error.clone());
            }
        }
        error
    }

    /// Notes a segment whose file is gone or shorter than it was.
    pub(super) fn note_lost(&self, first: Vlsn) {
        let Some(segment) = self.catalog.lock().get(first) else { return };
        let damage = EntryDamage::Short { needed: segment.end() as usize, present: 0 };
        let error = segment.damaged(0, first, damage);
        self.note_damage(&segment, None, error);
    }

    /// Notes one damaged entry, or for `None` the whole segment.
    pub(super) fn note_damage(&self, segment: &Segment, at: Option<Vlsn>, error: ScanError) {
        let end = self.catalog.lock().end_of(segment.first).map(|last| last.vlsn);
        let end = end.or_else(|| self.stage.lock().tail.map(|tail| tail.vlsn));
        let range = match at {
            Some(at) => VlsnRange::new(at, at),
            None => end.and_then(|end| VlsnRange::new(segment.first, end)),
        };
        let Some(range) = range else { return };
        // What was verified or written before is read again with its CRCs.
        segment.verified.store(SEGMENT_HEADER_LEN as u64, Ordering::Release);
        let mut known = self.damages.known.lock();
        let news = match known.get_mut(&segment.first) {
            Some(known) => {
                let first = known.range.first().min(range.first());
                let last = known.range.last().max(range.last());
                let both = VlsnRange::new(first, last).unwrap_or(range);
                let news = both != known.range;
                known.range = both;
                news
            }
            None => {
                log::error!("{error}");
                known.insert(segment.first, Known { range, error });
                true
            }
        };
        self.damages.any.store(true, Ordering::Release);
        drop(known);
        if news {
            self.damages.found.advance(self.damages.found.get() + 1);
        }
    }

    pub(super) fn damaged(&self) -> Vec<VlsnRange> {
        if !self.damages.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let tail = self.stage.lock().tail.map(|tail| tail.vlsn);
        self.forget_damage(tail);
        self.damages.known.lock().values().map(|known| known.range).collect()
    }

    /// What was pruned or cut is damaged no more, also where something else comes in its place. The log ends at `tail` now.
    pub(super) fn forget_damage(&self, tail: Option<Vlsn>) {
        let oldest = self.catalog.lock().oldest().map(|segment| segment.first);
        let mut known = self.damages.known.lock();
        known.retain(|first, known| Some(*first) >= oldest && Some(known.range.first()) <= tail);
        self.damages.any.store(!known.is_empty(), Ordering::SeqCst);
    }

    fn healed(&self, first: Vlsn) {
        let mut known = self.damages.known.lock();
        // Whoever finds nothing damaged any more finds it counted.
        self.damages.healed.fetch_add(1, Ordering::SeqCst);
        known.remove(&first);
        self.damages.any.store(!known.is_empty(), Ordering::SeqCst);
        drop(known);
        self.ease();
    }

    pub(super) fn ease(&self) {
        self.damages.eased.advance(self.damages.eased.get() + 1);
    }

    /// Seals every segment in which damage is known, so that it can be made anew: the one that is written to is left for a
    /// new one first. Nothing is read for that: the index says what memory knows, which is what was written.
    pub(super) fn seal_damaged(&self) -> Result<(), FlushError> {
        let firsts: Vec<Vlsn> = self.damages.known.lock().keys().copied().collect();
        for first in firsts {
            let segment = self.catalog.lock().get(first);
            let Some(segment) = segment.filter(|segment| !segment.is_sealed()) else { continue };
            self.leave_segment(first).map_err(FlushError::of_write)?;
            let mut side = self.flush.lock();
            // A cut may have put another file in its place.
            if !self.catalog.lock().get(first).is_some_and(|there| Arc::ptr_eq(&there, &segment)) {
                continue;
            }
            let outcome = self.sync_and_seal(&mut side, &segment);
            drop(side);
            self.hand_on(&self.life());
            outcome?;
        }
        Ok(())
    }

    pub(super) fn wounded(self: &Arc<Core>) -> Option<Wounded> {
        let firsts: Vec<Vlsn> = self.damages.known.lock().keys().copied().collect();
        for first in firsts {
            let (segment, last) = {
                let catalog = self.catalog.lock();
                (catalog.get(first), catalog.end_of(first))
            };
            let (Some(segment), Some(last)) = (segment, last) else { continue };
            if !segment.is_sealed() {
                continue;
            }
            let file = self.disk.open(&segment.path).ok();
            let mut wounded = Wounded { core: Arc::clone(self), segment, file, last, good: BTreeMap::new() };
            wounded.look_through();
            return Some(wounded);
        }
        None
    }
}

impl Wounded {
    /// Notes every entry that is good by itself, also behind damage.
    fn look_through(&mut self) {
        let Some(file) = self.file.clone() else { return };
        let Ok(mut window) = Window::new(file) else { return };
        let mut offset = SEGMENT_HEADER_LEN as u64;
        while offset < window.len {
            let Ok(head) = window.bytes(offset, HEADER_TXN_LEN) else { break };
            let Ok(header) = Header::parse(head) else {
                offset += 1;
                continue;
            };
            let len = header.entry_len();
            let Ok(bytes) = window.bytes(offset, len) else { break };
            let good = EntryRef::verify(bytes).is_ok();
            if let Some(position) = header.position().filter(|_| good)
                && position.vlsn >= self.segment.first
                && position.vlsn <= self.last.vlsn
            {
                let good = Good { offset, len: len as u64, position, prev: header.prev };
                self.good.entry(position.vlsn).or_insert(good);
            }
            // The length is part of what the header's check covers: what lies inside is its payload.
            offset += len as u64;
        }
    }

    /// The segment's first entry.
    pub fn first(&self) -> Vlsn {
        self.segment.first
    }

    /// The segment's last entry.
    pub fn last(&self) -> Vlsn {
        self.last.vlsn
    }

    /// The segment's last entry, as what stands behind it tells.
    pub fn end(&self) -> Position {
        self.last
    }

    /// The bytes that its entries have, at most.
    pub fn most(&self) -> u64 {
        // Of a file that is gone nobody tells how long it was: a segment is no longer than this, whatever is set now.
        let len = self.file.as_ref().map_or(Ok(LONGEST), |file| file.len()).unwrap_or(LONGEST);
        len.max(self.segment.end()).max(self.core.capacity)
    }

    /// Trusts nothing that is in the old file any more.
    pub fn distrust(&mut self) {
        self.good.clear();
    }

    /// The entries that have to come from others, each stretch with the CRC of the entry before it and the CRC of its last
    /// entry, which the entry behind it tells.
    pub fn missing(&self) -> Vec<(VlsnRange, u32, u32)> {
        let mut missing = Vec::new();
        let mut next = self.segment.first;
        let mut before = self.segment.base.map_or(0, |base| base.crc);
        for (vlsn, good) in &self.good {
            if let Some(gap) = vlsn.previous().and_then(|last| VlsnRange::new(next, last)) {
                missing.push((gap, before, good.prev));
            }
            next = vlsn.next();
            before = good.position.crc;
        }
        if let Some(gap) = VlsnRange::new(next, self.last.vlsn) {
            missing.push((gap, before, self.last.crc));
        }
        missing
    }

    /// Makes the segment anew, with these entries where its own are not good, and puts it in the place of the old one.
    ///
    /// # Errors
    /// [`MendError`].
    pub fn mend<B: AsRef<[u8]>>(&self, fetched: &BTreeMap<Vlsn, B>) -> Result<(), MendError> {
        let (core, segment) = (&self.core, &self.segment);
        let mut temporary = segment.path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let written = self.write(&temporary, fetched);
        let swapped = written.and_then(|sidecar| self.put_in_place(&temporary, sidecar));
        if swapped.is_err() {
            // It may not even be there; opening removes it too.
            let _left = core.disk.remove(&temporary);
        }
        swapped
    }

    fn write<B: AsRef<[u8]>>(
        &self,
        temporary: &Path,
        fetched: &BTreeMap<Vlsn, B>,
    ) -> Result<Sidecar, MendError> {
        let (core, segment) = (&self.core, &self.segment);
        let content: u64 = self.good.values().map(|good| good.len).sum::<u64>()
            + fetched.values().map(|bytes| bytes.as_ref().len() as u64).sum::<u64>();
        let file = create_anew(&*core.disk, temporary, SEGMENT_HEADER_LEN as u64 + content)?;
        let head = SegmentHeader {
            group: core.config.group,
            first: segment.first,
            base: segment.base,
            created: core.clock.wall_micros(),
        };
        let mut buffer = head.encode();
        let mut at = 0;
        let mut next = segment.first;
        while next <= self.last.vlsn {
            match (self.good.get(&next), &self.file, fetched.get(&next)) {
                (Some(good), Some(old), _) => {
                    let start = buffer.len();
                    buffer.resize(start + good.len as usize, 0);
                    old.read_at(&mut buffer[start..], good.offset).failed("read", &segment.path)?;
                }
                (_, _, Some(bytes)) => buffer.extend_from_slice(bytes.as_ref()),
                _ => return Err(MendError::Missing(next)),
            }
            if buffer.len() >= CHUNK {
                file.write_at(&[IoSlice::new(&buffer)], at).failed("write", temporary)?;
                at += buffer.len() as u64;
                buffer.clear();
            }
            next = next.next();
        }
        file.write_at(&[IoSlice::new(&buffer)], at).failed("write", temporary)?;
        file.sync().failed("sync", temporary)?;
        let mut window = Window::new(file).failed("read", temporary)?;
        let walk = walk(&mut window, segment.first, segment.base).failed("read", temporary)?;
        if walk.flaw.is_some() || walk.last != Some(self.last) {
            return Err(MendError::Chain(walk.flaw.map_or(self.last.vlsn, |flaw| flaw.expected)));
        }
        Ok(Sidecar {
            first: segment.first,
            base: segment.base,
            end: walk.end,
            last: self.last,
            points: walk.points,
            spans: walk.spans,
            stated: walk.stated,
        })
    }

    fn put_in_place(&self, temporary: &Path, sidecar: Sidecar) -> Result<(), MendError> {
        let (core, segment) = (&self.core, &self.segment);
        // Nothing is pruned or cut meanwhile.
        let _stays = core.leaving.lock();
        let present = core.catalog.lock().get(segment.first);
        if !present.is_some_and(|present| Arc::ptr_eq(&present, segment)) {
            return Err(MendError::Gone);
        }
        let dir = &core.config.dir;
        sidecar.store(&*core.disk, dir, core.config.group)?;
        core.disk.sync_dir(dir).failed("sync", dir)?;
        core.disk.rename(temporary, &segment.path).failed("rename", temporary)?;
        core.disk.sync_dir(dir).failed("sync", dir)?;
        let path = segment.path.clone();
        let fresh = Segment::sealed(segment.first, segment.base, path, sidecar.end, sidecar.points);
        {
            let mut stage = core.stage.lock();
            // A segment that was lost together with its index had none.
            stage.stated.insert(&sidecar.stated);
        }
        core.catalog.lock().insert(Arc::new(fresh));
        segment.replace();
        core.healed(segment.first);
        log::warn!("{} was damaged, and is whole again", segment.path.display());
        Ok(())
    }
}
