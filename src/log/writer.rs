//! The group writer: appenders stage their entries, and whoever finds no write in progress writes for all.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::entry::{Header, NewEntry, Placement, RunSummary, encode_apart};
use crate::ids::{Position, Term, TermSpan, Vlsn, number};
use crate::log::core::Core;
use crate::log::error::{AppendError, Failed, IoFailure};
use crate::log::format::{SegmentHeader, segment_name};
use crate::log::index::create_anew;
use crate::log::mmap::{AppendMap, Appender};
use crate::log::reserve::SPARE;
use crate::log::segment::Segment;
use crate::log::stage::{Event, Stage, What};
use crate::planted::{Bug, active};

/// Staged bytes that make it worth writing; entries longer than that are written from their owner's memory.
pub(super) const WRITE_AT: usize = 64 * 1024;
/// Staged bytes at which an appender waits for the write in progress.
const WAIT_AT: usize = 1024 * 1024;

/// What a new append is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// The first entry's VLSN.
    pub first: Vlsn,
    /// The last entry's position.
    pub last: Position,
}

/// The side that writes to the active segment. Its lock is held during a write.
pub(super) struct WriteSide {
    segment: Arc<Segment>,
    appender: Appender,
    /// The buffers that are exchanged for the stage's, so that nothing is allocated.
    bytes: Vec<u8>,
    events: Vec<Event>,
    /// Where a failed write may have left something.
    soiled_to: u64,
}

/// A segment made ahead of need: allocated and mapped, under a temporary name.
pub(super) struct Spare {
    path: PathBuf,
    appender: Appender,
}

impl WriteSide {
    pub(super) fn new(segment: Arc<Segment>, appender: Appender) -> WriteSide {
        WriteSide { segment, appender, bytes: Vec::new(), events: Vec::new(), soiled_to: 0 }
    }

    pub(super) fn published(&self) -> u64 {
        self.appender.map().published()
    }

    fn append(&mut self, slices: &[IoSlice<'_>]) -> Result<(), IoFailure> {
        let len: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        if len == 0 {
            return Ok(());
        }
        self.clean()?;
        let start = self.published();
        self.appender.append(slices).map_err(|error| {
            self.soiled_to = start + len;
            // At once, if the disk lets us: a crash must not bring back what was refused.
            if let Err(again) = self.clean() {
                log::warn!("the remains of a failed write stay until the next: {again}");
            }
            IoFailure::new("write", &self.segment.path, error)
        })
    }

    /// Erases what a failed write may have left behind the end.
    fn clean(&mut self) -> Result<(), IoFailure> {
        if self.soiled_to > self.published() {
            self.appender.erase(self.soiled_to).failed("write", &self.segment.path)?;
            self.soiled_to = 0;
        }
        Ok(())
    }
}

impl Core {
    pub(super) fn append(&self, term: Term, entries: &[NewEntry<'_>]) -> Result<Appended, AppendError> {
        let limit = self.config.max_payload;
        let mut longest = 0;
        for entry in entries {
            longest = longest.max(entry.payload.len());
        }
        if longest > limit {
            return Err(AppendError::TooLarge { len: longest, limit });
        }
        if longest > WRITE_AT {
            return self.append_large(term, entries);
        }
        let timestamp = self.clock.wall_micros();
        let (appended, staged, wake) = {
            let mut stage = self.admitted(term)?;
            let first = stage.next();
            for entry in entries {
                stage.place(entry, term, timestamp, self.capacity);
            }
            let appended = self.announce(&stage, first)?;
            (appended, stage.bytes.len(), std::mem::take(&mut stage.flusher_sleeps))
        };
        if wake {
            self.wake_flusher();
        }
        if staged >= WRITE_AT {
            self.write_if_free(staged);
        }
        Ok(appended)
    }

    /// The stage, once entries of this term may be appended: what a failed write left behind was written first.
    fn admitted(&self, term: Term) -> Result<parking_lot::MutexGuard<'_, Stage>, AppendError> {
        loop {
            let stage = self.stage.lock();
            stage.admit_own(term)?;
            if !stage.stuck {
                return Ok(stage);
            }
            drop(stage);
            self.write_out()?;
        }
    }

    fn announce(&self, stage: &Stage, first: Vlsn) -> Result<Appended, AppendError> {
        match stage.tail {
            Some(last) if last.vlsn >= first => {
                stage.life.appended.advance(last.vlsn.get());
                Ok(Appended { first, last })
            }
            _ => Err(AppendError::Empty),
        }
    }

    fn write_if_free(&self, staged: usize) {
        let mut staged = staged;
        while staged >= WRITE_AT {
            let side = if staged >= WAIT_AT { Some(self.io.lock()) } else { self.io.try_lock() };
            // Whoever writes now looks again when done, so nothing is left behind by leaving.
            let Some(mut side) = side else { return };
            if let Err(error) = self.write_staged(&mut side) {
                // The entries stay staged; the next append and every flush are told.
                log::warn!("{error}");
                return;
            }
            drop(side);
            staged = self.stage.lock().bytes.len();
        }
    }

    pub(super) fn write_out(&self) -> Result<(), AppendError> {
        let mut side = self.io.lock();
        self.write_staged(&mut side)
    }

    /// Writes everything that is staged. What can't be written stays staged, in front.
    fn write_staged(&self, side: &mut WriteSide) -> Result<(), AppendError> {
        let (life, to) = {
            let mut stage = self.stage.lock();
            if stage.poisoned {
                return Err(AppendError::Poisoned);
            }
            if stage.closed {
                return Err(AppendError::Closed);
            }
            if stage.bytes.is_empty() && stage.events.is_empty() {
                return Ok(());
            }
            std::mem::swap(&mut stage.bytes, &mut side.bytes);
            std::mem::swap(&mut stage.events, &mut side.events);
            (Arc::clone(&stage.life), stage.last_number())
        };
        let bytes = std::mem::take(&mut side.bytes);
        let events = std::mem::take(&mut side.events);
        let mut progress = Progress { bytes: 0, events: 0, last: None, rotated: None };
        let outcome = self.write_pieces(side, &bytes, &events, &mut progress);
        if outcome.is_ok() {
            life.written.advance(to);
        } else {
            life.written.advance(number(progress.last));
        }
        if let Some(full) = progress.rotated {
            life.wanted.advance(full.get());
        }
        let mut stage = self.stage.lock();
        match &outcome {
            Ok(()) => stage.stuck = false,
            Err(_) => {
                let left: Vec<Event> = events[progress.events..]
                    .iter()
                    .map(|event| Event { at: event.at - progress.bytes, what: event.what })
                    .collect();
                stage.put_back(&bytes[progress.bytes..], &left);
            }
        }
        drop(stage);
        (side.bytes, side.events) = (bytes, events);
        side.bytes.clear();
        side.events.clear();
        Ok(outcome?)
    }

    fn write_pieces(
        &self,
        side: &mut WriteSide,
        bytes: &[u8],
        events: &[Event],
        progress: &mut Progress,
    ) -> Result<(), IoFailure> {
        for event in events {
            match event.what {
                What::Point(point) => side.segment.add_point(point),
                What::Rotate { first, base } => {
                    side.append(&[IoSlice::new(&bytes[progress.bytes..event.at])])?;
                    progress.bytes = event.at;
                    progress.last = base.map(|base| base.vlsn);
                    self.begin_segment(side, first, base)?;
                    progress.rotated = progress.last;
                }
            }
            progress.events += 1;
        }
        side.append(&[IoSlice::new(&bytes[progress.bytes..])])?;
        progress.bytes = bytes.len();
        Ok(())
    }

    /// Makes a new segment the active one. The old one waits for its sync; nobody waits for that here.
    fn begin_segment(
        &self,
        side: &mut WriteSide,
        first: Vlsn,
        base: Option<Position>,
    ) -> Result<(), IoFailure> {
        // What a failed write left must not stay behind the end of a segment that is about to be sealed.
        side.clean()?;
        let ready = self.spare.lock().take();
        let mut spare = match ready {
            Some(spare) => spare,
            None => {
                self.reserve()?;
                self.make_spare()?
            }
        };
        let created = self.clock.wall_micros();
        let header = SegmentHeader { group: self.config.group, first, base, created }.encode();
        let path = self.config.dir.join(segment_name(first));
        let renamed = spare
            .appender
            .append(&[IoSlice::new(&header)])
            .and_then(|()| self.disk.rename(&spare.path, &path))
            .failed("write", &spare.path);
        // Should this fail, the next attempt takes the name over.
        renamed?;
        self.directory_changed.store(true, Ordering::SeqCst);
        let map = Arc::clone(spare.appender.map());
        let segment =
            Arc::new(Segment::open_ended(first, base, path, map, Vec::with_capacity(self.points())));
        self.catalog.lock().insert(Arc::clone(&segment));
        side.segment = segment;
        side.appender = spare.appender;
        side.soiled_to = 0;
        Ok(())
    }

    /// Leaves the segment that begins at `first` for a new one, if it is the one that is written to and has entries.
    pub(super) fn leave_segment(&self, first: Vlsn) -> Result<(), AppendError> {
        let mut side = self.io.lock();
        self.write_staged(&mut side)?;
        // Made before anything is staged: a full disk must not keep what fits into the old segment from being written.
        if self.spare.lock().is_none() {
            self.reserve()?;
            let spare = self.make_spare()?;
            *self.spare.lock() = Some(spare);
        }
        let mut stage = self.stage.lock();
        if stage.segment != first || !stage.has_entries() {
            return Ok(());
        }
        stage.rotate(self.capacity);
        // What the marks said is said again: those of a sealed segment are not read at open.
        stage.marked = (None, None);
        drop(stage);
        self.write_staged(&mut side)
    }

    fn points(&self) -> usize {
        (self.capacity / crate::log::index::POINT_EVERY) as usize + 1
    }

    fn make_spare(&self) -> Result<Spare, IoFailure> {
        let path = self.config.dir.join(SPARE);
        let file = create_anew(&*self.disk, &path, self.capacity)?;
        let (_, appender) = AppendMap::open(file, 0).failed("map", &path)?;
        Ok(Spare { path, appender })
    }

    /// Makes the next segment ahead of need, unless it is there. Returns whether it was made now.
    pub(super) fn prepare_spare(&self) -> Result<bool, IoFailure> {
        // The writer's lock keeps two from using the spare's name at once; it is free when nobody is writing.
        let Some(_side) = self.io.try_lock() else { return Ok(false) };
        if self.stage.lock().closed {
            return Ok(false);
        }
        let mut spare = self.spare.lock();
        if spare.is_some() {
            return Ok(false);
        }
        self.reserve()?;
        *spare = Some(self.make_spare()?);
        Ok(true)
    }

    /// Appends entries of which at least one is too long to be copied into the staging buffer.
    fn append_large(&self, term: Term, entries: &[NewEntry<'_>]) -> Result<Appended, AppendError> {
        let timestamp = self.clock.wall_micros();
        let mut side = self.io.lock();
        self.write_staged(&mut side)?;
        let mut stage = self.stage.lock();
        stage.admit_own(term)?;
        let first = stage.next();
        for entry in entries {
            let staged = stage.bytes.len() + stage.events.len();
            let fits = stage.fits(entry.encoded_len() as u64);
            if entry.payload.len() <= WRITE_AT || staged > 0 || !fits || stage.stuck {
                // Staged like any other; a long one then costs a copy.
                stage.place(entry, term, timestamp, self.capacity);
                continue;
            }
            let vlsn = stage.next();
            let prev = stage.tail.map_or(0, |tail| tail.crc);
            let (header, len, crc) =
                encode_apart(entry, &Placement { vlsn: Some(vlsn), term, prev, timestamp });
            let position = Position { vlsn, term, crc };
            match side.append(&[IoSlice::new(&header[..len]), IoSlice::new(entry.payload)]) {
                Ok(()) => {
                    stage.note_point(vlsn);
                    self.take_points(&mut stage, &side);
                    stage.stated.note(entry.kind, vlsn);
                    stage.extend(entry.encoded_len() as u64, position);
                    stage.life.appended.advance(vlsn.get());
                    stage.life.written.advance(vlsn.get());
                }
                Err(error) if vlsn == first => return Err(error.into()),
                Err(_) => {
                    stage.stuck = true;
                    stage.place(entry, term, timestamp, self.capacity);
                }
            }
        }
        let appended = self.announce(&stage, first)?;
        let wake = std::mem::take(&mut stage.flusher_sleeps);
        drop(stage);
        if let Err(error) = self.write_staged(&mut side) {
            log::warn!("{error}");
        }
        drop(side);
        if wake {
            self.wake_flusher();
        }
        Ok(appended)
    }

    fn admitted_by_writer(&self, term: Term) -> Result<parking_lot::MutexGuard<'_, Stage>, AppendError> {
        let stage = self.stage.lock();
        stage.admit(term)?;
        Ok(stage)
    }

    /// Moves points that were noted without staged bytes into the active segment's index.
    fn take_points(&self, stage: &mut Stage, side: &WriteSide) {
        for event in stage.events.drain(..) {
            if let What::Point(point) = event.what {
                side.segment.add_point(point);
            }
        }
    }

    pub(super) fn append_run(&self, run: &[u8], summary: &RunSummary) -> Result<(), AppendError> {
        let mut side = self.io.lock();
        let mut stage = self.admitted_by_writer(summary.last.term)?;
        if stage.next() != summary.range.first() && !active(Bug::HoleAccepted) {
            return Err(AppendError::NotNext { given: summary.range.first(), expected: stage.next() });
        }
        if run.is_empty() {
            return Err(AppendError::Empty);
        }
        if stage.fits(run.len() as u64) && stage.events.is_empty() && !stage.stuck {
            return self.append_piece(&mut side, &mut stage, run, summary.last, states_something(summary));
        }
        // Rare: the run does not fit, or something that is not plain bytes is staged.
        drop(stage);
        self.write_staged(&mut side)?;
        let mut stage = self.admitted_by_writer(summary.last.term)?;
        let mut rest = run;
        while !rest.is_empty() {
            if !stage.fits(rest.len() as u64) && stage.next() != stage.segment {
                let (next, tail) = (stage.next(), stage.tail);
                if !stage.bytes.is_empty() {
                    drop(stage);
                    self.write_staged(&mut side)?;
                    stage = self.admitted_by_writer(summary.last.term)?;
                    continue;
                }
                self.begin_segment(&mut side, next, tail)?;
                stage.rotate(self.capacity);
                stage.events.clear();
                stage.life.wanted.advance(number(tail.map(|tail| tail.vlsn)));
            }
            let (piece, last) = longest_prefix(rest, summary.last, |len| stage.fits(len));
            let Some(last) = last else {
                let limit = Stage::room_when_empty(self.capacity) as usize;
                return Err(AppendError::TooLarge { len: rest.len(), limit });
            };
            let (now, later) = rest.split_at(piece);
            self.append_piece(&mut side, &mut stage, now, last, states_something(summary))?;
            rest = later;
        }
        Ok(())
    }

    /// Writes what is staged, which is plain bytes, and one piece of a run behind it, at once.
    fn append_piece(
        &self,
        side: &mut WriteSide,
        stage: &mut Stage,
        piece: &[u8],
        last: Position,
        states: bool,
    ) -> Result<(), AppendError> {
        let first = stage.next();
        side.append(&[IoSlice::new(&stage.bytes), IoSlice::new(piece)])?;
        stage.bytes.clear();
        stage.note_point(first);
        self.take_points(stage, side);
        note_entries(stage, piece, last.term, states);
        stage.extend(piece.len() as u64, last);
        stage.life.appended.advance(last.vlsn.get());
        stage.life.written.advance(last.vlsn.get());
        if std::mem::take(&mut stage.flusher_sleeps) {
            self.wake_flusher();
        }
        Ok(())
    }
}

/// How far a write came.
struct Progress {
    bytes: usize,
    events: usize,
    /// The last entry in a segment that was filled.
    last: Option<Vlsn>,
    rotated: Option<Vlsn>,
}

/// How many bytes of whole entries of a verified run fit, and the last of those entries.
fn longest_prefix(run: &[u8], last: Position, fits: impl Fn(u64) -> bool) -> (usize, Option<Position>) {
    if fits(run.len() as u64) {
        return (run.len(), Some(last));
    }
    let (mut len, mut position) = (0, None);
    while let Ok(header) = Header::parse(&run[len..]) {
        if !fits((len + header.entry_len()) as u64) {
            break;
        }
        len += header.entry_len();
        position = header.position();
    }
    (len, position)
}

fn states_something(run: &RunSummary) -> bool {
    run.memberships || run.slots
}

/// Notes the terms that begin in a piece of a run, and what is stated in it. Walks it only if there may be something.
fn note_entries(stage: &mut Stage, piece: &[u8], last: Term, states: bool) {
    if stage.terms.last().is_some_and(|span| span.term == last) && !states {
        return;
    }
    let mut rest = piece;
    while let Ok(header) = Header::parse(rest) {
        let Some(vlsn) = header.vlsn else { break };
        if stage.terms.last().is_none_or(|span| span.term != header.term) {
            stage.terms.push(TermSpan { term: header.term, first: vlsn });
        }
        stage.stated.note(header.kind, vlsn);
        rest = rest.get(header.entry_len()..).unwrap_or(&[]);
    }
}
