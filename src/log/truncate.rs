//! Cutting off the log's end by order of the master. An intent file is durable before anything is touched, so a cut
//! that a crash interrupts is finished at open, or undone if the entries were not yet saved.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use crate::entry::EntryDamage;
use crate::ids::{Position, Vlsn, VlsnRange};
use crate::log::core::Core;
use crate::log::error::{Failed, FileDamage, IoFailure, OpenError, TruncateError};
use crate::log::flush::FlushSide;
use crate::log::format::{
    INTENT_LEN, Intent, SEGMENT_HEADER_LEN, SegmentHeader, first_in_name, saved_name, segment_name,
};
use crate::log::index::{create_anew, read_whole, write_whole};
use crate::log::life::Life;
use crate::log::recover::{Place, Recovered, recover, remove_segment, remove_sidecar, sync_dir};
use crate::log::reserve::Full;
use crate::log::saved::{Source, free_number, write_segment};
use crate::log::segment::Segment;
use crate::log::stage::Stage;
use crate::log::walk::{Window, end_of, walk};
use crate::log::writer::WriteSide;
use crate::planted::{Bug, active};

const INTENT_NAME: &str = "truncate.intent";

/// What a truncation did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truncated {
    /// The log's last entry now.
    pub last: Option<Position>,
    /// The entries that were cut; `None` if there was nothing to cut, and then the life goes on.
    pub cut: Option<VlsnRange>,
    /// The file that keeps them.
    pub saved: Option<PathBuf>,
}

/// A log that stands still: what is held of it, to be let go in this order.
pub(super) struct Still<'a> {
    pub stage: MutexGuard<'a, Stage>,
    io: MutexGuard<'a, WriteSide>,
    flush: MutexGuard<'a, FlushSide>,
    _leaving: MutexGuard<'a, Option<Arc<Segment>>>,
}

impl Core {
    pub(super) fn truncate_after(&self, keep: Option<Vlsn>) -> Result<Truncated, TruncateError> {
        let mut still = self.stand_still()?;
        let Some(cut) = self.judge_cut(&still.stage, keep)? else {
            return Ok(Truncated { last: still.stage.tail, cut: None, saved: None });
        };
        let keep = match self.position_for_cut(&still.stage, keep) {
            Ok(keep) => keep,
            Err(error) => {
                drop(still);
                return Err(self.for_damage(cut.first(), error));
            }
        };
        let place = self.leave_memory(&mut still);
        let begun = self.with_reserve(|| begin_cut(place, keep, cut));
        if let Err(error) = &begun
            && error.is_full()
            && forget_intent(place).is_ok()
        {
            still.stage.poisoned = false;
            return Err(error.clone().or_full());
        }
        if let Err(error @ TruncateError::Reopen(OpenError::File { .. })) = &begun
            && forget_intent(place).is_ok()
        {
            still.stage.poisoned = false;
            drop(still);
            return Err(self.for_damage(cut.first(), error.clone()));
        }
        let outcome = begun.and_then(|(intent, saved)| {
            self.with_reserve(|| finish_cut(place, &intent))?;
            Ok((saved, self.with_reserve(|| recover(place))?))
        });
        let (saved, recovered) = match outcome {
            Ok(done) => done,
            Err(error) => {
                self.fail_for_good(&still);
                return Err(error);
            }
        };
        let last = recovered.end.tail;
        let old = Arc::clone(&still.stage.life);
        let survives = active(Bug::WatermarkSurvivesCut);
        self.adopt(&mut still, recovered);
        if survives {
            still.stage.life = old;
        } else {
            old.end();
        }
        drop(still.stage);
        self.wake_flusher();
        Ok(Truncated { last, cut: Some(cut), saved: Some(saved) })
    }

    /// A cut from `from` on that can't be made as what is to be kept is damaged; nothing was changed. The segment is healed first,
    /// as any.
    fn for_damage(&self, from: Vlsn, error: TruncateError) -> TruncateError {
        let segment = self.catalog.lock().holding(from);
        match (segment, &error) {
            (Some(segment), TruncateError::Reopen(OpenError::File { path, .. })) if segment.path == *path => {
                self.note_damage(&segment, None, segment.damaged(0, segment.first, EntryDamage::Header));
                TruncateError::Damaged { path: path.clone(), from }
            }
            _ => error,
        }
    }

    /// Nobody writes, flushes or prunes as long as this is held, and everything is durable: then a crash in the midst finds the
    /// same entries again.
    pub(super) fn stand_still(&self) -> Result<Still<'_>, TruncateError> {
        let mut leaving = self.leaving.lock();
        if let Some(segment) = &*leaving {
            // What follows reads the directory, and must not find it again.
            self.remove_files(segment)?;
            *leaving = None;
        }
        let mut flush = self.flush.lock();
        self.sync_for_cut(&mut flush)?;
        let io = self.io.lock();
        Ok(Still { stage: self.stage.lock(), io, flush, _leaving: leaving })
    }

    /// From here on the files are changed, and what memory says of them does not hold.
    pub(super) fn leave_memory(&self, still: &mut Still<'_>) -> Place<'_> {
        still.stage.poisoned = true;
        // The segment made ahead goes either way, and the reserve may.
        *self.spare.lock() = None;
        self.reserved.store(false, Ordering::Release);
        self.place()
    }

    /// Files and memory may differ: only opening anew may look at them.
    pub(super) fn fail_for_good(&self, still: &Still<'_>) {
        self.poisoned.store(true, Ordering::SeqCst);
        still.stage.life.end();
    }

    /// Goes on with what the files hold now, in a new life. The old one is the caller's to end.
    pub(super) fn adopt(&self, still: &mut Still<'_>, recovered: Recovered) {
        let stage = &mut *still.stage;
        *self.spare.lock() = None;
        let life = Arc::new(Life::new(recovered.end.tail.map(|last| last.vlsn)));
        *self.catalog.lock() = recovered.catalog;
        *still.flush = FlushSide::new(recovered.end.segment);
        *still.io = WriteSide::new(recovered.active, recovered.appender);
        let fence = stage.fence;
        *stage = Stage::new(recovered.end, life);
        stage.fence = fence;
        self.forget_damage(stage.tail.map(|tail| tail.vlsn));
        self.ease();
    }

    fn sync_for_cut(&self, flush: &mut FlushSide) -> Result<(), TruncateError> {
        let stage = self.stage.lock();
        let state = (stage.closed, stage.poisoned);
        drop(stage);
        match state {
            (true, _) => Err(crate::log::FlushError::Closed.into()),
            (_, true) => Err(crate::log::FlushError::Poisoned.into()),
            // What waits to be written may need another segment.
            _ => self.with_reserve(|| Ok(self.sync_all(flush)?)).map_err(TruncateError::or_full),
        }
    }

    /// What a cut after `keep` takes, if anything, and whether it may.
    fn judge_cut(&self, stage: &Stage, keep: Option<Vlsn>) -> Result<Option<VlsnRange>, TruncateError> {
        let last = stage.tail.map(|tail| tail.vlsn);
        if let Some(asked) = keep.filter(|_| keep > last) {
            return Err(TruncateError::Beyond { asked });
        }
        let Some(cut) = last.and_then(|last| VlsnRange::new(Vlsn::after(keep), last)) else {
            return Ok(None);
        };
        let unguarded = active(Bug::TruncateBelowCommitted);
        let committed = self.committed().filter(|committed| Some(*committed) > keep && !unguarded);
        if let Some(committed) = committed {
            return Err(TruncateError::BelowCommitted { keep, committed });
        }
        let base = self.catalog.lock().base().map(|base| base.vlsn);
        if keep < base {
            return Err(TruncateError::Pruned { oldest: Vlsn::after(base) });
        }
        Ok(Some(cut))
    }

    /// The position of the last entry to keep. Everything is written by now; the caller holds the locks, so the file
    /// is asked and not the log.
    fn position_for_cut(&self, stage: &Stage, keep: Option<Vlsn>) -> Result<Option<Position>, TruncateError> {
        let Some(keep) = keep else { return Ok(None) };
        if let Some(known) = stage.tail.filter(|tail| tail.vlsn == keep) {
            return Ok(Some(known));
        }
        let next = self.catalog.lock().holding(keep.next());
        if let Some(base) = next.and_then(|segment| segment.base).filter(|base| base.vlsn == keep) {
            return Ok(Some(base));
        }
        let path = self.config.dir.clone();
        let damaged = |path: PathBuf| OpenError::File { path, damage: FileDamage::Checksum };
        let segment = self.catalog.lock().holding(keep).ok_or_else(|| damaged(path))?;
        let map = segment.map(&*self.disk, self.config.group).map_err(|_| damaged(segment.path.clone()))?;
        let at = segment.place(&map, keep).map_err(|_| damaged(segment.path.clone()))?;
        let entry = crate::entry::EntryRef::verify(map.bytes(at.offset..map.published()));
        Ok(entry
            .ok()
            .and_then(|entry| entry.header().position())
            .map(Some)
            .ok_or_else(|| damaged(segment.path.clone()))?)
    }

    pub(super) fn place(&self) -> Place<'_> {
        Place { disk: &*self.disk, clock: &*self.clock, config: &self.config, capacity: self.capacity }
    }
}

/// Makes the intent durable and saves the entries. Nothing of the log is changed by that.
fn begin_cut(
    place: Place<'_>,
    keep: Option<Position>,
    cut: VlsnRange,
) -> Result<(Intent, PathBuf), TruncateError> {
    let dir = &place.config.dir;
    let names = place.disk.list(dir).failed("list", dir)?;
    let (from, to) = (cut.first(), cut.last());
    let intent = Intent { keep, from, to, number: free_number(&names, from, to) };
    write_whole(place.disk, dir, INTENT_NAME, &intent.encode(place.config.group))?;
    sync_dir(place)?;
    let sources = sources_after(place, &segments(&names), keep, from)?;
    let content: u64 = sources.iter().map(|source| source.to - source.from).sum();
    has_room(place, 2 * SEGMENT_HEADER_LEN as u64 + content + place.capacity)?;
    let saved = dir.join(saved_name(from, to, intent.number));
    write_segment(place.disk, place.clock, &saved, 0, (place.config.group, from, keep), &sources)?;
    sync_dir(place)?;
    Ok((intent, saved))
}

/// Finds out whether there is room for all that a cut writes, while it can still be left alone.
fn has_room(place: Place<'_>, len: u64) -> Result<(), IoFailure> {
    let path = place.config.dir.join("room.new");
    drop(create_anew(place.disk, &path, len)?);
    place.disk.remove(&path).failed("remove", &path)
}

/// Puts a shorter file in the place of the segment with the cut, removes the later ones, and then the intent. Can be
/// repeated from any point.
fn finish_cut(place: Place<'_>, intent: &Intent) -> Result<(), OpenError> {
    let dir = &place.config.dir;
    let names = place.disk.list(dir).failed("list", dir)?;
    let firsts = segments(&names);
    for first in firsts.iter().rev().filter(|first| **first > intent.from) {
        remove_segment(place, *first)?;
    }
    if let Some(first) = firsts.iter().rev().find(|first| **first <= intent.from) {
        replace_segment(place, *first, intent.keep)?;
    }
    forget_intent(place)
}

fn replace_segment(place: Place<'_>, first: Vlsn, keep: Option<Position>) -> Result<(), OpenError> {
    let Kept { source, base } = kept_part(place, first, keep)?;
    remove_sidecar(place, first)?;
    let path = place.config.dir.join(segment_name(first));
    let head = (place.config.group, first, base);
    write_segment(place.disk, place.clock, &path, place.capacity, head, &[source])?;
    sync_dir(place)?;
    Ok(())
}

/// At open: finishes a cut whose entries were saved before the crash, and forgets one that had not come so far.
pub(super) fn resume(place: Place<'_>) -> Result<(), OpenError> {
    let dir = &place.config.dir;
    let path = dir.join(INTENT_NAME);
    let Some(bytes) = read_whole(place.disk, &path, INTENT_LEN as u64)? else { return Ok(()) };
    let intent =
        Intent::decode(&bytes, place.config.group).map_err(|damage| OpenError::File { path, damage })?;
    let names = place.disk.list(dir).failed("list", dir)?;
    if names.contains(&saved_name(intent.from, intent.to, intent.number)) {
        return finish_cut(place, &intent);
    }
    forget_intent(place)
}

fn forget_intent(place: Place<'_>) -> Result<(), OpenError> {
    let path = place.config.dir.join(INTENT_NAME);
    match place.disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        other => other.failed("remove", &path)?,
    }
    Ok(sync_dir(place)?)
}

fn segments(names: &[String]) -> Vec<Vlsn> {
    names.iter().filter_map(|name| first_in_name(name, ".seg")).collect()
}

/// A segment's file and header, and where its entries up to and including `keep` end.
fn kept_part(place: Place<'_>, first: Vlsn, keep: Option<Position>) -> Result<Kept, OpenError> {
    let path = place.config.dir.join(segment_name(first));
    let file = place.disk.open(&path).failed("open", &path)?;
    let mut window = Window::new(Arc::clone(&file)).failed("read", &path)?;
    let head = window.bytes(0, SEGMENT_HEADER_LEN).failed("read", &path)?;
    let header = SegmentHeader::decode(head, place.config.group, first)
        .map_err(|damage| OpenError::File { path: path.clone(), damage })?;
    let start = SEGMENT_HEADER_LEN as u64;
    let to = match keep {
        Some(keep) if header.base != Some(keep) => end_of(&mut window, keep).failed("read", &path)?,
        _ => Some(start),
    };
    let Some(to) = to else { return Err(OpenError::File { path, damage: FileDamage::Checksum }) };
    Ok(Kept { source: Source { file, path, from: start, to }, base: header.base })
}

struct Kept {
    source: Source,
    base: Option<Position>,
}

/// The bytes behind the cut, segment by segment.
fn sources_after(
    place: Place<'_>,
    firsts: &[Vlsn],
    keep: Option<Position>,
    from: Vlsn,
) -> Result<Vec<Source>, OpenError> {
    let begun = firsts.partition_point(|first| *first <= from).saturating_sub(1);
    let mut sources = Vec::new();
    for first in &firsts[begun..] {
        // Of the segment with the cut, the part behind it; of later ones everything behind the header.
        let kept = kept_part(place, *first, if *first <= from { keep } else { None })?;
        let path = kept.source.path;
        let mut window = Window::new(Arc::clone(&kept.source.file)).failed("read", &path)?;
        let end = walk(&mut window, *first, kept.base).failed("read", &path)?.end;
        sources.push(Source {
            file: kept.source.file,
            path,
            from: kept.source.to,
            to: end.max(kept.source.to),
        });
    }
    Ok(sources)
}
