//! The group flush: one thread syncs for all who wait, and the worker that does it when nobody else does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::clock::{Deadline, Wait};
use crate::ids::{TermSpan, Vlsn};
use crate::log::core::Core;
use crate::log::error::{FlushError, IoFailure};
use crate::log::format::SyncMark;
use crate::log::index::Sidecar;
use crate::log::life::Life;
use crate::log::segment::Segment;
use crate::planted::{Bug, active};
use crate::watermark::{Parker, rest};
use crate::worker::{Step, Stop, Worker};

/// What belongs to whoever flushes. Its lock is held during a sync; nobody who appends or writes takes it.
pub(super) struct FlushSide {
    /// The oldest segment that was not synced as a whole.
    from: Vlsn,
    /// Segments that were synced as a whole and have no sidecar yet.
    to_seal: Vec<Arc<Segment>>,
    segments: Vec<Arc<Segment>>,
}

/// A thread that waits for a flush to a VLSN, and may be asked to do the next one.
pub(super) struct Waiting {
    target: u64,
    parker: Arc<Parker>,
}

impl FlushSide {
    pub(super) fn new(from: Vlsn) -> FlushSide {
        FlushSide { from, to_seal: Vec::new(), segments: Vec::new() }
    }
}

impl Core {
    pub(super) fn flush(&self, to: Vlsn, wait: Wait) -> Result<bool, FlushError> {
        let life = self.life();
        loop {
            self.check_life(&life)?;
            if life.flushed.get() >= to.get() {
                return Ok(true);
            }
            if life.appended.get() < to.get() {
                return Err(FlushError::Beyond { asked: to });
            }
            if let Some(mut side) = self.flush.try_lock() {
                let outcome = match self.check_life(&life) {
                    Ok(()) if life.flushed.get() < to.get() => self.sync_all(&mut side),
                    other => other,
                };
                drop(side);
                self.hand_on(&life);
                outcome?;
                continue;
            }
            if wait == Wait::Now {
                return Ok(false);
            }
            if let Some(reached) = self.wait_for_flusher(&life, to, wait) {
                return Ok(reached);
            }
        }
    }

    /// Waits while another thread flushes. `None`: look again, and perhaps flush.
    fn wait_for_flusher(&self, life: &Life, to: Vlsn, wait: Wait) -> Option<bool> {
        let parker = Parker::current();
        self.waiting.lock().push(Waiting { target: to.get(), parker: Arc::clone(&parker) });
        // Whoever flushes hands on after letting go of the lock. So either it is still held, and its holder will find
        // this thread in the list; or it is free, and this thread takes it.
        let outcome = if self.flush.is_locked() { life.flushed.wait(to.get(), wait) } else { Ok(false) };
        let asked = {
            let mut waiting = self.waiting.lock();
            let listed = waiting.iter().position(|other| Arc::ptr_eq(&other.parker, &parker));
            listed.map(|at| waiting.swap_remove(at)).is_none()
        };
        match outcome {
            Ok(true) => {
                if asked {
                    self.hand_on(life);
                }
                Some(true)
            }
            Ok(false) if asked || !self.flush.is_locked() => None,
            Ok(false) => Some(false),
            Err(_) => None,
        }
    }

    /// After a flush: asks one of those whom it did not serve to do the next.
    pub(super) fn hand_on(&self, life: &Life) {
        let flushed = life.flushed.get();
        let mut waiting = self.waiting.lock();
        if let Some(next) = waiting.iter().position(|waiting| waiting.target > flushed) {
            waiting.swap_remove(next).parker.poke();
        }
    }

    fn check_life(&self, life: &Life) -> Result<(), FlushError> {
        if self.is_poisoned() {
            return Err(FlushError::Poisoned);
        }
        if life.has_ended() {
            let closed = self.stage.lock().closed;
            return Err(if closed { FlushError::Closed } else { FlushError::LifeEnded });
        }
        Ok(())
    }

    /// Writes what is staged, syncs it, publishes it and stages a mark. The caller holds the flush lock.
    pub(super) fn sync_all(&self, side: &mut FlushSide) -> Result<(), FlushError> {
        self.write_out().map_err(FlushError::of_write)?;
        let life = self.life();
        // First what is written, then the segments: so every entry up to `written` is in one of these.
        let written = life.written.get();
        side.segments.clear();
        side.segments.extend(self.catalog.lock().from(side.from).cloned());
        let directory = self.directory_changed.swap(false, Ordering::SeqCst);
        let mut end = None;
        for segment in &side.segments {
            let Some((file, published)) = segment.unsealed() else { continue };
            self.sync_or_poison("sync", segment, || file.sync())?;
            end = Some((segment.first, published));
        }
        if let Some(last) = side.segments.last().filter(|_| directory && !active(Bug::DirectoryNotSynced)) {
            self.sync_or_poison("sync the directory of", last, || self.disk.sync_dir(&self.config.dir))?;
        }
        if let Some(active) = side.segments.pop() {
            side.from = active.first;
            side.to_seal.append(&mut side.segments);
        }
        if let Some(end) = end {
            self.stage.lock().synced = end;
        }
        life.flushed.advance(written);
        let hook = self.hook.lock().clone();
        if let (Some(hook), Some(flushed)) = (hook, Vlsn::new(written)) {
            hook(flushed);
        }
        self.stage_mark();
        Ok(())
    }

    fn sync_or_poison(
        &self,
        action: &'static str,
        segment: &Segment,
        mut sync: impl FnMut() -> std::io::Result<()>,
    ) -> Result<(), FlushError> {
        let Err(error) = sync() else { return Ok(()) };
        if active(Bug::RetryAfterFailedSync) && sync().is_ok() {
            return Ok(());
        }
        self.poison();
        Err(FlushError::Sync(IoFailure::new(action, &segment.path, error)))
    }

    /// Stages a mark that states how far the log is durable now, unless the last one said the same.
    pub(super) fn stage_mark(&self) {
        let timestamp = self.clock.wall_micros();
        let mut stage = self.stage.lock();
        let durable = Vlsn::new(stage.life.flushed.get());
        let (segment, offset) = stage.synced;
        let mark = SyncMark { segment, offset, durable, committed: self.committed().min(durable) };
        stage.mark(&mark, timestamp);
        // Between the sync and this mark the flusher may have found nothing to do, and gone to sleep without a deadline.
        let wake = stage.is_unsynced() && std::mem::take(&mut stage.flusher_sleeps);
        drop(stage);
        if wake {
            self.wake_flusher();
        }
    }

    /// Writes the sidecar of one segment that was synced as a whole. Returns whether there was one.
    pub(super) fn seal_one(&self, side: &mut FlushSide) -> bool {
        let Some(segment) = side.to_seal.first().cloned() else { return false };
        side.to_seal.remove(0);
        let Some((_, end)) = segment.unsealed() else { return true };
        let Some(last) = self.catalog.lock().end_of(segment.first) else { return true };
        let (spans, stated) = {
            let stage = self.stage.lock();
            let stated = stage.stated.within(segment.first..=last.vlsn);
            (clip_spans(&stage.terms, segment.first, last.vlsn), stated)
        };
        let (first, base, points) = (segment.first, segment.base, segment.points());
        let sidecar = Sidecar { first, base, end, last, points, spans, stated };
        match sidecar.store(&*self.disk, &self.config.dir, self.config.group) {
            Ok(()) => segment.seal(),
            // Not sealed, and not lost either: later marks cover it, and opening makes the sidecar again.
            Err(error) => log::warn!("segment {} stays without an index: {error}", segment.path.display()),
        }
        true
    }

    /// Syncs everything, and writes the index of a segment that has another behind it, and those that were due before.
    pub(super) fn sync_and_seal(
        &self,
        side: &mut FlushSide,
        segment: &Arc<Segment>,
    ) -> Result<(), FlushError> {
        self.sync_all(side)?;
        if self.stage.lock().is_unsynced() {
            // The mark, too: from then on those of the segment are not read at open.
            self.sync_all(side)?;
        }
        let listed = side.to_seal.iter().any(|other| Arc::ptr_eq(other, segment));
        if !listed && self.catalog.lock().end_of(segment.first).is_some() {
            // Its index could not be written when it was due.
            side.to_seal.push(Arc::clone(segment));
        }
        while self.seal_one(side) {}
        Ok(())
    }

    pub(super) fn close(&self) -> Result<(), FlushError> {
        let mut side = self.flush.lock();
        if self.stage.lock().closed {
            return Ok(());
        }
        let outcome = self.settle(&mut side);
        // No write is under way when the directory is let go, and none begins afterwards.
        let io = self.io.lock();
        let mut stage = self.stage.lock();
        stage.closed = true;
        stage.life.end();
        drop(stage);
        drop(io);
        drop(side);
        *self.directory_lock.lock() = None;
        self.damages.found.close();
        self.damages.eased.close();
        self.wake_flusher();
        outcome
    }

    /// Syncs everything, and then the mark that says so.
    fn settle(&self, side: &mut FlushSide) -> Result<(), FlushError> {
        if self.is_poisoned() {
            return Err(FlushError::Poisoned);
        }
        self.sync_all(side)?;
        if self.stage.lock().is_unsynced() {
            self.sync_all(side)?;
        }
        while self.seal_one(side) {}
        Ok(())
    }
}

/// The terms of the entries from `first` to `last`, the first one beginning at `first`.
pub(super) fn clip_spans(terms: &[TermSpan], first: Vlsn, last: Vlsn) -> Vec<TermSpan> {
    let begun = terms.partition_point(|span| span.first <= first).saturating_sub(1);
    terms[begun..]
        .iter()
        .take_while(|span| span.first <= last)
        .map(|span| TermSpan { term: span.term, first: span.first.max(first) })
        .collect()
}

/// The worker `log-flush`: serves flush requests, flushes what nobody asked for after
/// [`LogConfig::lazy_flush`](crate::log::LogConfig::lazy_flush), writes the indexes of full segments and makes the next
/// segment ahead of need. One for each log.
pub struct Flusher {
    core: Arc<Core>,
    /// When it was first seen that something is not on disk.
    unsynced_since: Option<Deadline>,
    /// After a failed write: not before then again.
    not_before: Option<Deadline>,
}

impl Flusher {
    pub(super) fn new(core: Arc<Core>) -> Flusher {
        Flusher { core, unsynced_since: None, not_before: None }
    }

    /// Flushes if `to` says so; tells a failed write from what ends the worker.
    fn serve(&mut self, outcome: Result<bool, FlushError>) -> Result<Option<Step>, Stop> {
        match outcome {
            Ok(true) => {
                self.unsynced_since = None;
                Ok(Some(Step::Worked))
            }
            Ok(false) => Ok(None),
            Err(FlushError::Closed) => Err(Stop::Done),
            Err(FlushError::LifeEnded | FlushError::Beyond { .. }) => Ok(Some(Step::Worked)),
            Err(FlushError::Write(error)) => {
                log::warn!("{error}");
                self.not_before = Some(self.core.clock.now() + self.core.config.lazy_flush);
                Ok(Some(Step::Worked))
            }
            Err(error) => Err(Stop::failed(error)),
        }
    }

    fn housekeeping(&self) -> bool {
        let sealed = self.core.flush.try_lock().is_some_and(|mut side| self.core.seal_one(&mut side));
        if sealed {
            // Who came meanwhile found the lock held, and waits to be asked.
            self.core.hand_on(&self.core.life());
            return true;
        }
        self.core.prepare_spare().unwrap_or_else(|error| {
            // The writer will find out by itself if this lasts.
            log::debug!("no segment could be made ahead: {error}");
            false
        })
    }

    /// When to flush what nobody asked for; `NEVER` if there is nothing, and then the next entry wakes this thread.
    fn lazy_deadline(&mut self, now: Deadline) -> Deadline {
        let mut stage = self.core.stage.lock();
        stage.flusher_sleeps = !stage.is_unsynced();
        if stage.flusher_sleeps {
            self.unsynced_since = None;
            return Deadline::NEVER;
        }
        *self.unsynced_since.get_or_insert(now) + self.core.config.lazy_flush
    }
}

impl Worker for Flusher {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let life = self.core.life();
        if let Err(error) = self.core.check_life(&life) {
            return match error {
                FlushError::Closed => Err(Stop::Done),
                // A truncation came between the two looks: the next step finds the new life.
                FlushError::LifeEnded => Ok(Step::Worked),
                error => Err(Stop::failed(error)),
            };
        }
        if wait != Wait::Now {
            *self.core.flusher.lock() = Some(Parker::current());
        }
        let now = self.core.clock.now();
        if let Some(due) = self.not_before.filter(|due| now < *due) {
            rest(wait.at_most(due));
            return Ok(Step::Idle { due });
        }
        self.not_before = None;
        let wanted = life.wanted.get().min(life.appended.get());
        if let Some(to) = Vlsn::new(wanted).filter(|_| wanted > life.flushed.get()) {
            let outcome = self.core.flush(to, wait);
            return Ok(self.serve(outcome)?.unwrap_or(Step::Idle { due: now }));
        }
        if self.housekeeping() {
            return Ok(Step::Worked);
        }
        let due = self.lazy_deadline(now);
        if now >= due {
            let outcome = match self.core.flush.try_lock() {
                Some(mut side) => self.core.sync_all(&mut side).map(|()| true),
                // Somebody flushes right now.
                None => Ok(true),
            };
            self.core.hand_on(&life);
            return Ok(self.serve(outcome)?.unwrap_or(Step::Worked));
        }
        match life.wanted.wait(life.flushed.get() + 1, wait.at_most(due)) {
            Ok(true) | Err(_) => Ok(Step::Worked),
            Ok(false) => Ok(Step::Idle { due }),
        }
    }
}
