//! One segment: a file of entries, and how an entry is found in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};
use crate::entry::{EntryDamage, Header};
use crate::ids::{GroupId, Position, Term, Vlsn};
use crate::log::format::{SEGMENT_HEADER_LEN, SegmentHeader};
use crate::log::index::{Point, nearest};
use crate::log::mmap::AppendMap;
use crate::log::scanner::ScanError;

/// A segment of a running log. Its file is mapped when it is read, and stays mapped as long as somebody reads it.
pub(super) struct Segment {
    pub first: Vlsn,
    /// The entry before the segment.
    pub base: Option<Position>,
    pub path: PathBuf,
    /// Bytes whose CRCs this process made or verified; only entries beyond are verified when read.
    pub verified: AtomicU64,
    sealed: AtomicBool,
    /// Another file took its place.
    replaced: AtomicBool,
    content: Mutex<Content>,
}

struct Content {
    points: Vec<Point>,
    map: Mapped,
}

enum Mapped {
    /// Appended to, or not yet sealed.
    Held(Arc<AppendMap>),
    /// Sealed: mapped when needed. `end` is where its entries end.
    Lazy { map: Weak<AppendMap>, end: u64 },
}

/// Where an entry is, and what came before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub offset: u64,
    /// Term and CRC of the entry before, if the walk met it.
    pub before: Option<(Term, u32)>,
}

impl Segment {
    /// A segment that is appended to, or waits to be sealed.
    pub(super) fn open_ended(
        first: Vlsn,
        base: Option<Position>,
        path: PathBuf,
        map: Arc<AppendMap>,
        points: Vec<Point>,
    ) -> Segment {
        let content = Content { points, map: Mapped::Held(map) };
        // Whatever is in it was verified by recovery or is written by this process.
        let verified = AtomicU64::new(u64::MAX);
        Segment {
            first,
            base,
            path,
            verified,
            sealed: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            content: Mutex::new(content),
        }
    }

    /// A sealed segment, known from its sidecar.
    pub(super) fn sealed(
        first: Vlsn,
        base: Option<Position>,
        path: PathBuf,
        end: u64,
        points: Vec<Point>,
    ) -> Segment {
        let content = Content { points, map: Mapped::Lazy { map: Weak::new(), end } };
        let verified = AtomicU64::new(SEGMENT_HEADER_LEN as u64);
        let sealed = AtomicBool::new(true);
        let replaced = AtomicBool::new(false);
        Segment { first, base, path, verified, sealed, replaced, content: Mutex::new(content) }
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Whoever reads it looks for the one that took its place.
    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// From now on the file is mapped only while it is read.
    pub(super) fn seal(&self) {
        let mut content = self.content.lock();
        if let Mapped::Held(map) = &content.map {
            content.map = Mapped::Lazy { map: Arc::downgrade(map), end: map.published() };
        }
        self.sealed.store(true, Ordering::Release);
    }

    pub(super) fn add_point(&self, point: Point) {
        self.content.lock().points.push(point);
    }

    pub(super) fn points(&self) -> Vec<Point> {
        self.content.lock().points.clone()
    }

    /// Where its entries end.
    pub(super) fn end(&self) -> u64 {
        match &self.content.lock().map {
            Mapped::Held(map) => map.published(),
            Mapped::Lazy { end, .. } => *end,
        }
    }

    /// The file and how much of it is written, of a segment that is not sealed.
    pub(super) fn unsealed(&self) -> Option<(Arc<dyn DiskFile>, u64)> {
        match &self.content.lock().map {
            Mapped::Held(map) => Some((Arc::clone(map.file()), map.published())),
            Mapped::Lazy { .. } => None,
        }
    }

    /// The mapping, made now if nobody has it. May read the file's header.
    pub(super) fn map(&self, disk: &dyn Disk, group: GroupId) -> Result<Arc<AppendMap>, ScanError> {
        let mut content = self.content.lock();
        match &mut content.map {
            Mapped::Held(map) => Ok(Arc::clone(map)),
            Mapped::Lazy { map, end } => {
                if let Some(map) = map.upgrade() {
                    return Ok(map);
                }
                let fresh = open_sealed(disk, &self.path, group, self.first, *end)?;
                *map = Arc::downgrade(&fresh);
                Ok(fresh)
            }
        }
    }

    /// Finds a replicated entry that lies in the written part: the nearest point of the index, then header by header.
    pub(super) fn place(&self, map: &AppendMap, vlsn: Vlsn) -> Result<Place, ScanError> {
        let point = nearest(&self.content.lock().points, self.first, vlsn);
        let published = map.published();
        if self.is_sealed() {
            map.prefault(point.offset..published).map_err(|error| self.unreadable(&error))?;
        }
        let bytes = map.bytes(0..published);
        let mut offset = point.offset;
        let mut expected = point.vlsn;
        let at_start = point.offset == SEGMENT_HEADER_LEN as u64;
        let mut before = self.base.filter(|_| at_start).map(|base| (base.term, base.crc));
        loop {
            let behind = bytes.get(offset as usize..).unwrap_or(&[]);
            let header = Header::parse(behind).map_err(|damage| self.damaged(offset, expected, damage))?;
            if header.vlsn == Some(vlsn) {
                return Ok(Place { offset, before });
            }
            if header.vlsn.is_some() {
                if header.vlsn != Some(expected) {
                    return Err(self.damaged(offset, expected, EntryDamage::Misplaced));
                }
                before = Some((header.term, header.crc));
                expected = expected.next();
            }
            offset += header.entry_len() as u64;
        }
    }

    pub(super) fn damaged(&self, offset: u64, from: Vlsn, damage: EntryDamage) -> ScanError {
        ScanError::Damaged { path: self.path.clone(), offset, from, damage }
    }

    pub(super) fn unreadable(&self, error: &std::io::Error) -> ScanError {
        ScanError::Io { path: self.path.clone(), kind: error.kind() }
    }
}

fn open_sealed(
    disk: &dyn Disk,
    path: &Path,
    group: GroupId,
    first: Vlsn,
    end: u64,
) -> Result<Arc<AppendMap>, ScanError> {
    let io = |error: std::io::Error| match error.kind() {
        // The file is gone, or shorter than it was.
        std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof => {
            let damage = EntryDamage::Short { needed: end as usize, present: 0 };
            ScanError::Damaged { path: path.to_path_buf(), offset: 0, from: first, damage }
        }
        kind => ScanError::Io { path: path.to_path_buf(), kind },
    };
    let file = disk.open(path).map_err(io)?;
    let mut header = [0; SEGMENT_HEADER_LEN];
    let read = file.read_at(&mut header, 0).map_err(io)?;
    if SegmentHeader::decode(&header[..read], group, first).is_err() {
        let damage = EntryDamage::Header;
        return Err(ScanError::Damaged { path: path.to_path_buf(), offset: 0, from: first, damage });
    }
    let (map, _) = AppendMap::open(file, end).map_err(io)?;
    Ok(map)
}
