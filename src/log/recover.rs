//! Opening: what the files hold, what of it was durable, and what a crash left at the end.
//!
//! Segments with a valid sidecar are not read. The others, which are the last ones, are read and verified entry by
//! entry. A flaw is judged by whether anything says that it was durable: a mark, a sealed segment behind it, the known
//! committed VLSN. If so it is kept and reported; if not, it is the end of the log, and what lies behind it is saved
//! and cut.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::{Disk, DiskFile};
use crate::entry::EntryDamage;
use crate::ids::{Position, TermSpan, Vlsn, VlsnRange};
use crate::log::catalog::Catalog;
use crate::log::error::{Failed, FileDamage, IoFailure, OpenError};
use crate::log::format::{
    SEGMENT_HEADER_LEN, SegmentHeader, SyncMark, damaged_name, first_in_name, saved_name, segment_name,
    sidecar_name,
};
use crate::log::index::{Sidecar, read_whole};
use crate::log::mmap::{AppendMap, Appender};
use crate::log::saved::{Source, free_number, rewrite, write_segment, write_zeroes};
use crate::log::segment::Segment;
use crate::log::stage::End;
use crate::log::stated::Stated;
use crate::log::walk::{Flaw, Walk, Window, walk, walk_headless};
use crate::log::{DoubtfulTail, LogConfig};
use crate::planted::{Bug, active};

/// The largest sidecar that is read; a larger one is made again.
const SIDECAR_LIMIT: u64 = 64 * 1024 * 1024;
/// Bytes behind the end that are zeroed at least, whatever they read as.
const ZEROED: u64 = 64 * 1024;

/// What opening found.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The last entry.
    pub last: Option<Position>,
    /// Segments.
    pub segments: usize,
    /// What was cut off the end.
    pub cut: Option<TailCut>,
}

/// What opening cut off the log's end. All of it was past what is known to have been durable.
#[derive(Clone, Debug)]
pub struct TailCut {
    /// The segment in which the cut is.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// The first VLSN that is gone.
    pub from: Vlsn,
    /// What was found there.
    pub damage: EntryDamage,
    /// Whether a torn write explains it.
    pub verdict: TailVerdict,
    /// Where the bytes are kept, if there were any but zeroes.
    pub saved: Vec<PathBuf>,
}

/// How the end of a log that is damaged past its last mark is judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TailVerdict {
    /// A write that a crash tore.
    Torn,
    /// The same, with entries behind it: the disk had written later sectors before earlier ones when the power failed.
    Hole,
    /// A crash does not explain it.
    Doubtful,
}

/// A log read from its files, ready to run.
pub(super) struct Recovered {
    pub catalog: Catalog,
    pub active: Arc<Segment>,
    pub appender: Appender,
    pub end: End,
    pub committed: Option<Vlsn>,
    /// Sealed segments whose files are gone or cut short.
    pub lost: Vec<Vlsn>,
    pub opened: Opened,
}

/// Where the log is and what it is.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub disk: &'a dyn Disk,
    pub clock: &'a dyn Clock,
    pub config: &'a LogConfig,
    /// Bytes of a new segment.
    pub capacity: u64,
}

/// A segment file as found.
struct Piece {
    first: Vlsn,
    path: PathBuf,
    base: Option<Position>,
    /// Behind its last entry.
    last: Option<Position>,
    content: Content,
}

enum Content {
    Sealed(Sidecar),
    /// Sealed, and its file is gone or shorter than it was: what its index says, or its neighbours.
    Lost(Sidecar),
    Walked {
        file: Arc<dyn DiskFile>,
        walk: Walk,
    },
}

/// Where the log ends for want of good entries.
struct Break {
    piece: usize,
    flaw: Flaw,
}

pub(super) fn recover(place: Place<'_>) -> Result<Recovered, OpenError> {
    let names = tidy(place)?;
    let mut pieces = read_pieces(place, &names)?;
    let marks: Vec<SyncMark> = pieces.iter().flat_map(|piece| piece.marks().iter().copied()).collect();
    let committed = marks.iter().filter_map(|mark| mark.committed).max();
    let cut = match find_break(place, &pieces)? {
        Some(found) => Some(cut_at(place, &mut pieces, &found, &marks, &names)?),
        None => None,
    };
    make_durable(place, &pieces, &marks)?;
    let mut recovered = assemble(place, pieces, &marks)?;
    // What a log stands on was committed: nothing else is pruned, or installed.
    recovered.committed = committed.max(recovered.catalog.base().map(|base| base.vlsn));
    recovered.opened.cut = cut;
    Ok(recovered)
}

/// Removes what an interrupted operation left under a temporary name; returns the names that are left.
fn tidy(place: Place<'_>) -> Result<Vec<String>, OpenError> {
    let dir = &place.config.dir;
    let names = place.disk.list(dir).failed("list", dir)?;
    let (temporary, mut names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(".new"));
    for name in temporary {
        place.disk.remove(&dir.join(&name)).failed("remove", &dir.join(&name))?;
    }
    let orphan = |name: &String| {
        first_in_name(name, ".idx").is_some_and(|first| {
            // Pruning and cutting remove a segment before its index, at the log's ends. Between others it was lost.
            let lost = keeps_lost(place)
                && names.iter().filter_map(|name| first_in_name(name, ".seg")).any(|other| other < first)
                && names.iter().filter_map(|name| first_in_name(name, ".seg")).any(|other| other > first);
            !names.contains(&segment_name(first)) && !lost
        })
    };
    let orphans: Vec<String> = names.iter().filter(|name| orphan(name)).cloned().collect();
    for name in &orphans {
        place.disk.remove(&dir.join(name)).failed("remove", &dir.join(name))?;
    }
    names.retain(|name| !orphans.contains(name));
    Ok(names)
}

/// Whether what is lost of sealed segments is known as damaged, and not refused.
fn keeps_lost(place: Place<'_>) -> bool {
    matches!(place.config.doubtful, DoubtfulTail::RefuseHoles | DoubtfulTail::CutDurable)
}

fn read_pieces(place: Place<'_>, names: &[String]) -> Result<Vec<Piece>, OpenError> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut firsts: Vec<Vlsn> =
        names.iter().filter_map(|name| first_in_name(name, ".seg").or(first_in_name(name, ".idx"))).collect();
    firsts.sort_unstable();
    firsts.dedup();
    for first in firsts {
        let piece = match read_sidecar(place, first)? {
            Some(sidecar) => sealed_piece(place, first, sidecar)?,
            None if names.contains(&segment_name(first)) => walked_piece(place, first, pieces.is_empty())?,
            None => continue,
        };
        if let Some(lost) = pieces.last().and_then(|before| between(place, before, &piece)) {
            pieces.push(lost);
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

/// The segment that is missing between two, index and all, if both tell where it began and ended. All of its entries are
/// of one term, or it would not be known which terms began in it.
fn between(place: Place<'_>, before: &Piece, behind: &Piece) -> Option<Piece> {
    let (base, last) = (before.last?, behind.base?);
    let first = base.vlsn.next();
    let closed = before.is_sealed() && behind.first > first && last.vlsn.next() == behind.first;
    if !keeps_lost(place) || !closed || base.term != last.term {
        return None;
    }
    let spans = vec![TermSpan { term: base.term, first }];
    let (points, stated) = (Vec::new(), Stated::default());
    let end = SEGMENT_HEADER_LEN as u64;
    let sidecar = Sidecar { first, base: Some(base), end, last, points, spans, stated };
    let path = place.config.dir.join(segment_name(first));
    Some(Piece { first, path, base: Some(base), last: Some(last), content: Content::Lost(sidecar) })
}

fn read_sidecar(place: Place<'_>, first: Vlsn) -> Result<Option<Sidecar>, OpenError> {
    let path = place.config.dir.join(sidecar_name(first));
    let Some(bytes) = read_whole(place.disk, &path, SIDECAR_LIMIT)? else { return Ok(None) };
    match Sidecar::decode(&bytes, place.config.group, first) {
        Ok(sidecar) => Ok(Some(sidecar)),
        Err(damage @ (FileDamage::OtherGroup { .. } | FileDamage::NewerVersion { .. })) => {
            Err(OpenError::File { path, damage })
        }
        Err(damage) => {
            log::warn!("{} is made again: {damage}", path.display());
            Ok(None)
        }
    }
}

fn sealed_piece(place: Place<'_>, first: Vlsn, sidecar: Sidecar) -> Result<Piece, OpenError> {
    let path = place.config.dir.join(segment_name(first));
    let len = match place.disk.open(&path).and_then(|file| file.len()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && keeps_lost(place) => 0,
        other => other.failed("measure", &path)?,
    };
    if len < sidecar.end {
        if keeps_lost(place) {
            let (base, last) = (sidecar.base, Some(sidecar.last));
            return Ok(Piece { first, path, base, last, content: Content::Lost(sidecar) });
        }
        return Err(OpenError::File { path, damage: FileDamage::Truncated { len, needed: sidecar.end } });
    }
    Ok(Piece { first, path, base: sidecar.base, last: Some(sidecar.last), content: Content::Sealed(sidecar) })
}

fn walked_piece(place: Place<'_>, first: Vlsn, oldest: bool) -> Result<Piece, OpenError> {
    let path = place.config.dir.join(segment_name(first));
    let file = place.disk.open(&path).failed("open", &path)?;
    let mut window = Window::new(Arc::clone(&file)).failed("read", &path)?;
    let head = window.bytes(0, SEGMENT_HEADER_LEN).failed("read", &path)?;
    let header = SegmentHeader::decode(head, place.config.group, first);
    let (base, walk) = match header {
        Ok(header) => (header.base, walk(&mut window, first, header.base).failed("read", &path)?),
        // A header that never reached the disk, which only an unsynced segment can have.
        Err(FileDamage::Zeroes) if !oldest || first == Vlsn::FIRST => {
            (None, walk_headless(&mut window, first, EntryDamage::Zeroes).failed("read", &path)?)
        }
        Err(FileDamage::Checksum) if !oldest => {
            (None, walk_headless(&mut window, first, EntryDamage::Header).failed("read", &path)?)
        }
        Err(damage) => return Err(OpenError::File { path, damage }),
    };
    Ok(Piece { first, path, base, last: walk.last, content: Content::Walked { file, walk } })
}

impl Piece {
    fn marks(&self) -> &[SyncMark] {
        match &self.content {
            Content::Sealed(_) | Content::Lost(_) => &[],
            Content::Walked { walk, .. } => &walk.marks,
        }
    }

    fn flaw(&self) -> Option<Flaw> {
        match &self.content {
            Content::Sealed(_) | Content::Lost(_) => None,
            Content::Walked { walk, .. } => walk.flaw,
        }
    }

    fn is_sealed(&self) -> bool {
        matches!(self.content, Content::Sealed(_) | Content::Lost(_))
    }

    fn has_content(&self) -> bool {
        match &self.content {
            Content::Sealed(_) | Content::Lost(_) => true,
            Content::Walked { walk, .. } => walk.has_content(),
        }
    }

    /// The highest entry in it.
    fn highest(&self) -> Option<Vlsn> {
        match &self.content {
            Content::Sealed(sidecar) | Content::Lost(sidecar) => Some(sidecar.last.vlsn),
            Content::Walked { walk, .. } => walk.highest.max(walk.last.map(|last| last.vlsn)),
        }
    }

    fn end(&self) -> u64 {
        match &self.content {
            Content::Sealed(sidecar) | Content::Lost(sidecar) => sidecar.end,
            Content::Walked { walk, .. } => walk.end,
        }
    }
}

/// The first place where the log does not go on: a flaw in a segment, or between two.
fn find_break(place: Place<'_>, pieces: &[Piece]) -> Result<Option<Break>, OpenError> {
    let mut before: Option<&Piece> = None;
    for (at, piece) in pieces.iter().enumerate() {
        if let Some(previous) = before {
            let next = Vlsn::after(previous.last.map(|last| last.vlsn));
            if piece.first > next && previous.is_sealed() {
                let missing = VlsnRange::new(next, piece.first.previous().unwrap_or(next));
                let Some(missing) = missing else { continue };
                return Err(OpenError::Missing { dir: place.config.dir.clone(), missing });
            }
            if piece.first > next {
                let flaw = Flaw {
                    offset: previous.end(),
                    expected: next,
                    damage: EntryDamage::Zeroes,
                    torn: true,
                    entries_behind: false,
                };
                return Ok(Some(Break { piece: at - 1, flaw }));
            }
            let headless = piece.end() == 0;
            if !headless && (piece.first != next || piece.base != previous.last) {
                if piece.is_sealed() || previous.is_sealed() {
                    return Err(OpenError::File { path: piece.path.clone(), damage: FileDamage::WrongBase });
                }
                let damage = EntryDamage::Misplaced;
                let flaw =
                    Flaw { offset: 0, expected: piece.first, damage, torn: false, entries_behind: true };
                return Ok(Some(Break { piece: at, flaw }));
            }
        }
        if let Some(flaw) = piece.flaw() {
            return Ok(Some(Break { piece: at, flaw }));
        }
        before = Some(piece);
    }
    Ok(None)
}

/// Judges a break, and cuts the log there if it may: saves the bytes first. `pieces` then ends with the last good one.
fn cut_at(
    place: Place<'_>,
    pieces: &mut Vec<Piece>,
    found: &Break,
    marks: &[SyncMark],
    names: &[String],
) -> Result<TailCut, OpenError> {
    let flaw = found.flaw;
    let Some(piece) = pieces.get(found.piece) else { unreachable!("a break is in a piece") };
    let path = piece.path.clone();
    let later = &pieces[found.piece + 1..];
    let durable = marks.iter().filter_map(|mark| mark.durable).max();
    let committed = marks.iter().filter_map(|mark| mark.committed).max();
    let cuts_anything =
        active(Bug::TruncateAtFirstBadEntry) || place.config.doubtful == DoubtfulTail::CutDurable;
    let covered = marks.iter().any(|mark| mark.covers(piece.first, flaw.offset))
        || later.iter().any(Piece::is_sealed)
        || committed.is_some_and(|committed| flaw.expected <= committed);
    if covered && !cuts_anything {
        // Whatever is behind it was here, and may have been acknowledged.
        let behind = pieces[found.piece..].iter().filter_map(Piece::highest).max();
        let to = durable.max(committed).max(behind);
        return Err(OpenError::Damaged {
            path,
            offset: flaw.offset,
            from: flaw.expected,
            to,
            damage: flaw.damage,
        });
    }
    let behind = flaw.entries_behind || later.iter().any(Piece::has_content);
    let verdict = match (flaw.torn, behind) {
        (true, false) => TailVerdict::Torn,
        (true, true) => TailVerdict::Hole,
        (false, _) => TailVerdict::Doubtful,
    };
    let refuses = match (place.config.doubtful, verdict) {
        (DoubtfulTail::Cut | DoubtfulTail::CutDurable, _) | (_, TailVerdict::Torn) => false,
        (DoubtfulTail::Refuse, verdict) => verdict == TailVerdict::Doubtful,
        (DoubtfulTail::RefuseHoles, _) => true,
    };
    if refuses && !cuts_anything {
        return Err(OpenError::Doubtful { path, offset: flaw.offset, from: flaw.expected, verdict });
    }
    let saved = save(place, pieces, found, names)?;
    let keep = if flaw.offset == 0 { found.piece } else { found.piece + 1 };
    while pieces.len() > keep {
        let Some(gone) = pieces.pop() else { break };
        remove_segment(place, gone.first)?;
    }
    Ok(TailCut { path, offset: flaw.offset, from: flaw.expected, damage: flaw.damage, verdict, saved })
}

/// Saves what lies behind the break, one file for each segment that has any bytes there.
fn save(
    place: Place<'_>,
    pieces: &[Piece],
    found: &Break,
    names: &[String],
) -> Result<Vec<PathBuf>, OpenError> {
    let mut names = names.to_vec();
    let mut saved = Vec::new();
    for (at, piece) in pieces.iter().enumerate().skip(found.piece) {
        let (file, end, before) = match &piece.content {
            Content::Walked { file, walk } => (Arc::clone(file), walk.nonzero_end, walk.last),
            Content::Sealed(sidecar) => {
                let file = place.disk.open(&piece.path).failed("open", &piece.path)?;
                (file, sidecar.end, piece.base)
            }
            Content::Lost(_) => match place.disk.open(&piece.path) {
                Ok(file) => {
                    let len = file.len().failed("measure", &piece.path)?;
                    (file, len, piece.base)
                }
                Err(_) => continue,
            },
        };
        let from = if at == found.piece { found.flaw.offset } else { 0 };
        let from = from.max(SEGMENT_HEADER_LEN as u64);
        if end <= from {
            continue;
        }
        let (first, base) = if at == found.piece && found.flaw.offset > 0 {
            (found.flaw.expected, before)
        } else {
            (piece.first, piece.base)
        };
        let last = piece.highest().unwrap_or(first).max(first);
        let name = if place.config.doubtful == DoubtfulTail::CutDurable {
            let free = |number: &u32| !names.contains(&damaged_name(first, last, *number));
            damaged_name(first, last, (0..=u32::MAX).find(free).unwrap_or(u32::MAX))
        } else {
            saved_name(first, last, free_number(&names, first, last))
        };
        let path = place.config.dir.join(&name);
        names.push(name);
        let source = Source { file, path: piece.path.clone(), from, to: end };
        let head = (place.config.group, first, base);
        write_segment(place.disk, place.clock, &path, 0, head, &[source])?;
        saved.push(path);
    }
    if !saved.is_empty() {
        sync_dir(place)?;
    }
    Ok(saved)
}

/// Removes a segment and its sidecar, and makes that durable before anything else is removed.
pub(super) fn remove_segment(place: Place<'_>, first: Vlsn) -> Result<(), IoFailure> {
    let path = place.config.dir.join(segment_name(first));
    match place.disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => other.failed("remove", &path)?,
    }
    remove_sidecar(place, first)?;
    sync_dir(place)
}

pub(super) fn remove_sidecar(place: Place<'_>, first: Vlsn) -> Result<(), IoFailure> {
    let path = place.config.dir.join(sidecar_name(first));
    match place.disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.failed("remove", &path),
    }
}

pub(super) fn sync_dir(place: Place<'_>) -> Result<(), IoFailure> {
    place.disk.sync_dir(&place.config.dir).failed("sync", &place.config.dir)
}

/// Makes all that is kept durable. What no mark covers may be in the page cache only, even marked clean by a failed
/// sync of an earlier process: so it is written again. What lies behind the end is zeroed.
fn make_durable(place: Place<'_>, pieces: &[Piece], marks: &[SyncMark]) -> Result<(), OpenError> {
    let Some((last, _)) = pieces.split_last() else { return Ok(()) };
    for piece in pieces {
        let Content::Walked { file, walk } = &piece.content else { continue };
        let is_last = piece.first == last.first;
        if !active(Bug::PageCacheCountsAsFlushed) {
            let durable_to = marks
                .iter()
                .filter(|mark| mark.segment >= piece.first)
                .map(|mark| if mark.segment > piece.first { walk.end } else { mark.offset })
                .max()
                .unwrap_or(0);
            rewrite(&**file, durable_to, walk.end).failed("write", &piece.path)?;
        }
        if is_last {
            let size = file.len().failed("measure", &piece.path)?.max(place.capacity);
            let zero_to = walk.nonzero_end.max(walk.end + ZEROED).min(size);
            write_zeroes(&**file, walk.end, zero_to).failed("write", &piece.path)?;
            if file.len().failed("measure", &piece.path)? < size {
                write_zeroes(&**file, size - 1, size).failed("write", &piece.path)?;
            }
        }
        if !active(Bug::PageCacheCountsAsFlushed) {
            file.sync().failed("sync", &piece.path)?;
        }
    }
    if !active(Bug::DirectoryNotSynced) {
        sync_dir(place)?;
    }
    Ok(())
}

/// Turns the pieces, all durable now, into a running log.
fn assemble(place: Place<'_>, pieces: Vec<Piece>, marks: &[SyncMark]) -> Result<Recovered, OpenError> {
    let mut catalog = Catalog::default();
    let mut terms: Vec<TermSpan> = Vec::new();
    let mut stated = Stated::default();
    let mut tail = None;
    let mut last_walked = None;
    let mut lost = Vec::new();
    let count = pieces.len();
    for (at, piece) in pieces.into_iter().enumerate() {
        tail = piece.last;
        let Piece { first, path, base, last, content } = piece;
        match content {
            content @ (Content::Sealed(_) | Content::Lost(_)) => {
                if let Content::Lost(_) = content {
                    lost.push(first);
                }
                let (Content::Sealed(sidecar) | Content::Lost(sidecar)) = content else { continue };
                merge_terms(&mut terms, &sidecar.spans);
                stated.extend(&sidecar.stated);
                let segment = Segment::sealed(first, base, path, sidecar.end, sidecar.points);
                catalog.insert(Arc::new(segment));
            }
            Content::Walked { file, walk } if at + 1 == count => {
                merge_terms(&mut terms, &walk.spans);
                stated.extend(&walk.stated);
                last_walked = Some((first, base, path, file, walk));
            }
            Content::Walked { walk, .. } => {
                merge_terms(&mut terms, &walk.spans);
                stated.extend(&walk.stated);
                // It has entries, or the next segment would have the same name.
                let Some(last) = last else { continue };
                let Walk { end, points, spans, stated, .. } = walk;
                let sidecar = Sidecar { first, base, end, last, points: points.clone(), spans, stated };
                sidecar.store(place.disk, &place.config.dir, place.config.group)?;
                catalog.insert(Arc::new(Segment::sealed(first, base, path, end, points)));
            }
        }
    }
    let (first, base, path, file, offset, points) = match last_walked {
        Some((first, base, path, file, walk)) => (first, base, path, file, walk.end, walk.points),
        None => {
            let first = Vlsn::after(tail.map(|tail| tail.vlsn));
            let path = place.config.dir.join(segment_name(first));
            let head = (place.config.group, first, tail);
            write_segment(place.disk, place.clock, &path, place.capacity, head, &[])?;
            if !active(Bug::DirectoryNotSynced) {
                sync_dir(place)?;
            }
            let file = place.disk.open(&path).failed("open", &path)?;
            (first, tail, path, file, SEGMENT_HEADER_LEN as u64, Vec::new())
        }
    };
    let capacity = file.len().failed("measure", &path)?;
    let (map, appender) = AppendMap::open(file, offset).failed("map", &path)?;
    let active = Arc::new(Segment::open_ended(first, base, path, map, points));
    catalog.insert(Arc::clone(&active));
    let marked = (
        marks.iter().filter_map(|mark| mark.durable).max(),
        marks.iter().filter_map(|mark| mark.committed).max(),
    );
    let opened = Opened { last: tail, segments: catalog.len(), cut: None };
    let end = End { tail, segment: first, offset, capacity, terms, stated, marked };
    Ok(Recovered { catalog, active, appender, end, committed: None, lost, opened })
}

fn merge_terms(terms: &mut Vec<TermSpan>, spans: &[TermSpan]) {
    for span in spans {
        if terms.last().is_none_or(|last| last.term != span.term) {
            terms.push(*span);
        }
    }
}
