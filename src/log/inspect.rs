//! Looking into a log's files without opening the log: nothing is locked, changed or repaired.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, RealDisk};
use crate::entry::{EntryDamage, EntryKind, EntryRef, HEADER_TXN_LEN, Header, follows};
use crate::ids::{GroupId, Position, Term, TermSpan, Vlsn};
use crate::log::error::{Failed, FileDamage, IoFailure};
use crate::log::format::{SEGMENT_HEADER_LEN, SegmentHeader, SyncMark, first_in_name, sidecar_name};
use crate::log::index::Sidecar;
use crate::log::mmap::Mapping;
use crate::log::stated::Stated;
use crate::log::walk::{Window, walk};

/// Where a segment's header has the group and the first VLSN.
const GROUP_AT: std::ops::Range<usize> = 16..32;
const FIRST_AT: std::ops::Range<usize> = 32..40;

/// What an [`Inspector`] comes across.
#[derive(Debug)]
pub enum Found<'a> {
    /// An entry, local ones included. Its CRC was verified.
    Entry {
        /// The segment's file.
        path: &'a Path,
        /// Where in it.
        offset: u64,
        /// The entry.
        entry: EntryRef<'a>,
    },
    /// Something that is not as it should be.
    Damage(Damage),
}

/// Bytes that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// The first VLSN that can't be read there.
    pub from: Vlsn,
    /// The last; `None` if that can't be told.
    pub to: Option<Vlsn>,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DamageKind {
    /// The log's end, as a crash in the middle of a write leaves it, or as a write in progress looks.
    #[error("a torn write at the end of the log, past what was durable: opening the log cuts it ({0})")]
    Torn(EntryDamage),
    /// An entry is damaged, or does not continue the one before it.
    #[error(transparent)]
    Entry(EntryDamage),
    /// A whole file is damaged, or is not what its name says.
    #[error(transparent)]
    File(FileDamage),
    /// No segment has these entries.
    #[error("the segment before this one, or its end, is missing")]
    Missing,
    /// The index of a sealed segment says something else than the segment.
    #[error(
        "the index differs from its segment in {0}: opening the log trusts it; remove it, and it is made again"
    )]
    Sidecar(&'static str),
}

/// Why there is nothing to look into.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InspectError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// No segments.
    #[error("{path} has no segments of a log: name a node's directory, its log directory, or one file", path = path.display())]
    NoLog {
        /// The directory.
        path: PathBuf,
    },
}

/// Reads the files of a log from its start to its end, verifies everything, and goes on behind damage.
///
/// The log may be in use meanwhile: what is appended, removed or cut then may show as damage at its end.
pub struct Inspector {
    files: VecDeque<(Option<Vlsn>, PathBuf)>,
    group: Option<GroupId>,
    segment: Option<Segment>,
    /// The last good entry.
    last: Option<Position>,
    /// The entry that is next; `None` if that is not known.
    next: Option<Vlsn>,
    /// Whether `last` is what the next entry continues.
    chained: bool,
    pending: VecDeque<Damage>,
    bytes: u64,
    passed: u64,
}

/// The segment that is being read.
struct Segment {
    path: PathBuf,
    window: Window,
    offset: u64,
    first: Vlsn,
    base: Option<Position>,
    sidecar: Option<Sidecar>,
    /// Of the sidecar's points, those met.
    points: usize,
    spans: Vec<TermSpan>,
    stated: Stated,
    /// Damage was found, so that its sidecar can't be compared.
    damaged: bool,
}

enum Step {
    Entry { offset: u64, len: usize },
    Damage(Damage),
    End,
}

impl Inspector {
    /// Looks into a log's directory, the directory of a node, or one file: a segment, or entries that were saved when they
    /// were cut off. With `from`, begins at the segment that has it.
    ///
    /// # Errors
    /// [`InspectError`].
    pub fn open(path: &Path, from: Option<Vlsn>) -> Result<Inspector, InspectError> {
        let mut files = if path.is_dir() {
            let inside = path.join("log");
            let dir = if inside.is_dir() { &inside } else { path };
            let names = RealDisk.list(dir).failed("list", dir)?;
            names
                .iter()
                .filter_map(|name| Some((Some(first_in_name(name, ".seg")?), dir.join(name))))
                .collect()
        } else {
            VecDeque::from([(None, path.to_path_buf())])
        };
        if files.is_empty() {
            return Err(InspectError::NoLog { path: path.to_path_buf() });
        }
        while files.get(1).is_some_and(|(first, _)| first.is_some() && *first <= from) {
            files.pop_front();
        }
        let mut bytes = 0;
        for (_, path) in &files {
            bytes += std::fs::metadata(path).failed("measure", path)?.len();
        }
        Ok(Inspector {
            files,
            group: None,
            segment: None,
            last: None,
            next: None,
            chained: false,
            pending: VecDeque::new(),
            bytes,
            passed: 0,
        })
    }

    /// The group, once a good header was read.
    pub fn group(&self) -> Option<GroupId> {
        self.group
    }

    /// Bytes in all files to be read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many of them were read.
    pub fn position(&self) -> u64 {
        self.passed + self.segment.as_ref().map_or(0, |segment| segment.offset)
    }

    /// The next entry or damage; `None` at the end.
    ///
    /// # Errors
    /// If a file can't be read.
    pub fn advance(&mut self) -> Result<Option<Found<'_>>, IoFailure> {
        match self.step()? {
            Step::End => Ok(None),
            Step::Damage(damage) => Ok(Some(Found::Damage(damage))),
            Step::Entry { offset, len } => {
                let Some(Segment { path, window, .. }) = &mut self.segment else { return Ok(None) };
                let bytes = window.bytes(offset, len).failed("read", path)?;
                match EntryRef::verify(bytes) {
                    Ok(entry) => Ok(Some(Found::Entry { path, offset, entry })),
                    // It was good a moment ago: somebody changes the file.
                    Err(damage) => Err(IoFailure::new("read", path, io::Error::other(damage.to_string()))),
                }
            }
        }
    }

    fn step(&mut self) -> Result<Step, IoFailure> {
        loop {
            if let Some(damage) = self.pending.pop_front() {
                return Ok(Step::Damage(damage));
            }
            if let Some(segment) = self.segment.take() {
                if let Some(step) = self.look(segment)? {
                    return Ok(step);
                }
            } else {
                let Some((first, path)) = self.files.pop_front() else { return Ok(Step::End) };
                self.begin(first, path)?;
            }
        }
    }

    /// Opens the next file and judges its header.
    fn begin(&mut self, first: Option<Vlsn>, path: PathBuf) -> Result<(), IoFailure> {
        let file = Arc::new(LookOnly(File::open(&path).failed("open", &path)?));
        let mut window = Window::new(file).failed("read", &path)?;
        let head = window.bytes(0, SEGMENT_HEADER_LEN).failed("read", &path)?.to_vec();
        let group = self.group.or_else(|| Some(GroupId::from_bits(number_in(&head, GROUP_AT)?)));
        let first = first.or_else(|| Vlsn::new(u64::try_from(number_in(&head, FIRST_AT)?).ok()?));
        let first = first.unwrap_or(Vlsn::FIRST);
        let decoded = SegmentHeader::decode(&head, group.unwrap_or(GroupId::from_bits(0)), first);
        let damaged = decoded.is_err();
        let base = match decoded {
            Ok(header) => {
                self.group = group;
                self.continue_at(&header, &path);
                header.base
            }
            Err(damage) => {
                let foreign = !matches!(damage, FileDamage::Checksum | FileDamage::Zeroes);
                let to = self.to_next_file(first);
                let kind = DamageKind::File(damage);
                self.pending.push_back(Damage { path: path.clone(), offset: 0, from: first, to, kind });
                (self.last, self.next, self.chained) = (None, Some(first), false);
                if foreign {
                    // Nothing in it is taken for an entry.
                    self.next = None;
                    self.passed += window.len;
                    return Ok(());
                }
                None
            }
        };
        let sidecar = if damaged { None } else { self.sidecar(&path, first)? };
        let offset = SEGMENT_HEADER_LEN as u64;
        let (points, spans) = (0, Vec::new());
        let stated = Stated::default();
        let segment = Segment { path, window, offset, first, base, sidecar, points, spans, stated, damaged };
        self.segment = Some(segment);
        Ok(())
    }

    /// Whether a segment continues the one before it.
    fn continue_at(&mut self, header: &SegmentHeader, path: &Path) {
        let kind = match self.next {
            Some(next) if header.first > next => Some((next, header.first.previous(), DamageKind::Missing)),
            Some(next) if header.first < next || (self.chained && header.base != self.last) => {
                Some((header.first, None, DamageKind::File(FileDamage::WrongBase)))
            }
            _ => None,
        };
        if let Some((from, to, kind)) = kind {
            self.pending.push_back(Damage { path: path.to_path_buf(), offset: 0, from, to, kind });
        }
        (self.last, self.next, self.chained) = (header.base, Some(header.first), true);
    }

    fn sidecar(&mut self, path: &Path, first: Vlsn) -> Result<Option<Sidecar>, IoFailure> {
        let path = path.with_file_name(sidecar_name(first));
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.failed("read", &path)?,
        };
        let decoded = self.group.map(|group| Sidecar::decode(&bytes, group, first));
        match decoded.transpose() {
            Ok(sidecar) => Ok(sidecar),
            Err(damage) => {
                let kind = DamageKind::File(damage);
                self.pending.push_back(Damage { path, offset: 0, from: first, to: None, kind });
                Ok(None)
            }
        }
    }

    /// What is at the segment's offset; `None` if the segment ended.
    fn look(&mut self, mut segment: Segment) -> Result<Option<Step>, IoFailure> {
        let found = self.entry_at(&mut segment).failed("read", &segment.path)?;
        match found {
            At::Entry(header) => {
                let (offset, len) = (segment.offset, header.entry_len());
                segment.offset += len as u64;
                if let Some(position) = header.position() {
                    segment.note(position, header.kind, offset);
                    (self.last, self.next, self.chained) = (Some(position), Some(position.vlsn.next()), true);
                }
                self.segment = Some(segment);
                Ok(Some(Step::Entry { offset, len }))
            }
            At::End => {
                self.passed += segment.window.len;
                self.finish(&segment);
                Ok(None)
            }
            At::Damage(damage, behind) => {
                let from = self.next.unwrap_or(segment.first);
                let offset = segment.offset;
                let torn = self.files.is_empty() && segment.is_torn().failed("read", &segment.path)?;
                let kind = if torn { DamageKind::Torn(damage) } else { DamageKind::Entry(damage) };
                let found = segment.search(behind).failed("read", &segment.path)?;
                let to = match found {
                    Some((_, vlsn)) => vlsn.previous().filter(|to| *to >= from).or(Some(from)),
                    None => self.to_next_file(from),
                };
                let path = segment.path.clone();
                segment.damaged = true;
                match found {
                    Some((offset, _)) => {
                        segment.offset = offset;
                        (self.next, self.chained) = (None, false);
                        self.segment = Some(segment);
                    }
                    None => {
                        // If the next segment begins where this damage ends, nothing else is missing.
                        (self.next, self.chained) = (to.map(Vlsn::next), false);
                        self.passed += segment.window.len;
                    }
                }
                Ok(Some(Step::Damage(Damage { path, offset, from, to, kind })))
            }
        }
    }

    fn entry_at(&self, segment: &mut Segment) -> io::Result<At> {
        let Segment { window, offset, .. } = segment;
        let offset = *offset;
        let head = window.bytes(offset, HEADER_TXN_LEN)?;
        let header = match Header::parse(head) {
            Ok(header) => header,
            Err(damage) => {
                if head.iter().all(|byte| *byte == 0) && window.nonzero_end(offset)? == offset {
                    return Ok(At::End);
                }
                return Ok(At::Damage(damage, offset + 1));
            }
        };
        let behind = offset + header.entry_len() as u64;
        if let Err(damage) = EntryRef::verify(window.bytes(offset, header.entry_len())?) {
            return Ok(At::Damage(damage, behind));
        }
        let (term, prev) = self.last.map_or((Term::NONE, 0), |last| (last.term, last.crc));
        let in_place = match (header.vlsn, self.next) {
            (None, _) => !self.chained || header.prev == prev,
            (Some(_), Some(next)) if self.chained => follows(&header, next, term, prev).is_ok(),
            (Some(vlsn), Some(next)) => vlsn == next,
            (Some(_), None) => true,
        };
        // An entry that is whole in itself is shown, after what is wrong about its place.
        Ok(if in_place { At::Entry(header) } else { At::Damage(EntryDamage::Misplaced, offset) })
    }

    /// The last VLSN before the next file begins.
    fn to_next_file(&self, from: Vlsn) -> Option<Vlsn> {
        let (first, _) = self.files.front()?;
        first.as_ref()?.previous().filter(|to| *to >= from)
    }

    /// Compares a segment that was read to its end with what its sidecar says.
    fn finish(&mut self, segment: &Segment) {
        let Some(sidecar) = segment.sidecar.as_ref().filter(|_| !segment.damaged) else { return };
        let from = segment.first;
        if sidecar.end > segment.offset {
            let damage = FileDamage::Truncated { len: segment.offset, needed: sidecar.end };
            let (path, offset) = (segment.path.clone(), segment.offset);
            let (from, to) = (self.next.unwrap_or(from), Some(sidecar.last.vlsn));
            self.pending.push_back(Damage { path, offset, from, to, kind: DamageKind::File(damage) });
            (self.next, self.chained) = (Some(sidecar.last.vlsn.next()), false);
            return;
        }
        let differs = if sidecar.end != segment.offset {
            "where the entries end"
        } else if Some(sidecar.last) != self.last || sidecar.base != segment.base {
            "the first or the last entry"
        } else if sidecar.points.len() != segment.points {
            "where an entry is"
        } else if sidecar.spans != segment.spans {
            "the terms"
        } else if sidecar.stated != segment.stated {
            "the membership entries, or the lists of slots"
        } else {
            return;
        };
        let path = segment.path.with_file_name(sidecar_name(from));
        let (to, kind) = (Some(sidecar.last.vlsn), DamageKind::Sidecar(differs));
        self.pending.push_back(Damage { path, offset: 0, from, to, kind });
    }
}

enum At {
    Entry(Header),
    /// What is wrong, and where an undamaged entry may begin.
    Damage(EntryDamage, u64),
    End,
}

impl Segment {
    /// Notes what a sidecar would say of an entry.
    fn note(&mut self, position: Position, kind: EntryKind, offset: u64) {
        self.stated.note(kind, position.vlsn);
        if self.spans.last().is_none_or(|span| span.term != position.term) {
            self.spans.push(TermSpan { term: position.term, first: position.vlsn });
        }
        let point = self.sidecar.as_ref().and_then(|sidecar| sidecar.points.get(self.points));
        if point.is_some_and(|point| (point.vlsn, point.offset) == (position.vlsn, offset)) {
            self.points += 1;
        }
    }

    /// The first whole replicated entry from `at` on, and its VLSN.
    fn search(&mut self, mut at: u64) -> io::Result<Option<(u64, Vlsn)>> {
        let end = self.window.nonzero_end(at)?;
        while at < end {
            if let Ok(header) = Header::parse(self.window.bytes(at, HEADER_TXN_LEN)?)
                && EntryRef::verify(self.window.bytes(at, header.entry_len())?).is_ok()
            {
                match header.vlsn {
                    Some(vlsn) => return Ok(Some((at, vlsn))),
                    None => at += header.entry_len() as u64,
                }
            } else {
                at += 1;
            }
        }
        Ok(None)
    }

    /// Whether a torn write explains the damage at the offset, as opening the log would judge.
    fn is_torn(&mut self) -> io::Result<bool> {
        if self.damaged || self.sidecar.is_some() {
            return Ok(false);
        }
        let found = walk(&mut self.window, self.first, self.base)?;
        let covered = |mark: &SyncMark| mark.covers(self.first, self.offset);
        Ok(found.flaw.is_some_and(|flaw| flaw.offset == self.offset && flaw.torn && !flaw.entries_behind)
            && !found.marks.iter().any(covered))
    }
}

fn number_in(bytes: &[u8], at: std::ops::Range<usize>) -> Option<u128> {
    let little_endian = bytes.get(at)?.iter().rev();
    Some(little_endian.fold(0, |number, byte| number << 8 | u128::from(*byte)))
}

/// A file that is read and nothing else.
struct LookOnly(File);

impl DiskFile for LookOnly {
    fn write_at(&self, _slices: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < into.len() {
            match self.0.read_at(&mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn map(&self) -> io::Result<Mapping> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
