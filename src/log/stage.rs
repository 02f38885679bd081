//! The staging buffer: where entries are encoded, under a short lock, before somebody writes them for all.

use std::sync::Arc;

use crate::entry::{EntryKind, NewEntry, Placement, encode};
use crate::ids::{Position, Term, TermSpan, Vlsn, number};
use crate::log::error::AppendError;
use crate::log::format::{MARK_LEN, SEGMENT_HEADER_LEN, SyncMark};
use crate::log::index::{POINT_EVERY, Point};
use crate::log::life::Life;
use crate::log::stated::Stated;

/// Marks that may stand in a segment before its first entry; the segment's size allows for them.
const MARKS_BEFORE_ENTRIES: u64 = 8;
/// The space at a segment's end that only marks may use, so that the flush of a full segment can be marked in it.
const RESERVE: u64 = MARK_LEN;

/// Bytes of a segment that can hold any entry of up to `max_payload` bytes.
pub(super) fn capacity(segment_bytes: u64, max_payload: usize) -> u64 {
    let entry = (crate::entry::HEADER_TXN_LEN + max_payload) as u64;
    segment_bytes.max(SEGMENT_HEADER_LEN as u64 + MARKS_BEFORE_ENTRIES * MARK_LEN + entry + RESERVE)
}

/// Something that the writer does when it has come to a place in the staged bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// The place, in bytes from the start of the staged ones.
    pub at: usize,
    pub what: What,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The bytes from here on begin a new segment.
    Rotate { first: Vlsn, base: Option<Position> },
    /// The index gets a point.
    Point(Point),
}

/// What appenders share. Its lock is held for the time of encoding, and never across a system call, except by those who
/// write their entries themselves.
pub(super) struct Stage {
    pub life: Arc<Life>,
    pub bytes: Vec<u8>,
    pub events: Vec<Event>,
    /// The last entry, staged or not.
    pub tail: Option<Position>,
    pub segment: Vlsn,
    /// Where the next entry goes in its segment.
    pub offset: u64,
    pub capacity: u64,
    last_point: u64,
    pub terms: Vec<TermSpan>,
    pub stated: Stated,
    /// The last write failed: nothing more is staged until one succeeds.
    pub stuck: bool,
    /// Below this term nothing is appended but runs of a master.
    pub fence: Term,
    pub poisoned: bool,
    pub closed: bool,
    /// The flusher sleeps without a deadline and wants to be woken by the next entry.
    pub flusher_sleeps: bool,
    /// What the latest mark states.
    pub marked: (Option<Vlsn>, Option<Vlsn>),
    /// Where the log was durable to, after the last sync.
    pub synced: (Vlsn, u64),
}

/// Where the log ends: what recovery found.
pub(super) struct End {
    pub tail: Option<Position>,
    pub segment: Vlsn,
    pub offset: u64,
    pub capacity: u64,
    pub terms: Vec<TermSpan>,
    pub stated: Stated,
    pub marked: (Option<Vlsn>, Option<Vlsn>),
}

impl Stage {
    pub(super) fn new(end: End, life: Arc<Life>) -> Stage {
        Stage {
            life,
            bytes: Vec::new(),
            events: Vec::new(),
            tail: end.tail,
            segment: end.segment,
            offset: end.offset,
            capacity: end.capacity,
            last_point: end.offset,
            terms: end.terms,
            stated: end.stated,
            stuck: false,
            fence: Term::NONE,
            poisoned: false,
            closed: false,
            flusher_sleeps: false,
            marked: end.marked,
            synced: (end.segment, end.offset),
        }
    }

    pub(super) fn next(&self) -> Vlsn {
        Vlsn::after(self.tail.map(|tail| tail.vlsn))
    }

    /// Whether entries of this term may be appended now, by a node that makes them itself.
    #[inline]
    pub(super) fn admit_own(&self, term: Term) -> Result<(), AppendError> {
        self.admit(term)?;
        if term < self.fence {
            return Err(AppendError::Fenced { term, fence: self.fence });
        }
        Ok(())
    }

    /// Whether entries of this term may be appended now.
    pub(super) fn admit(&self, term: Term) -> Result<(), AppendError> {
        if self.poisoned {
            return Err(AppendError::Poisoned);
        }
        if self.closed {
            return Err(AppendError::Closed);
        }
        let last = self.tail.map_or(Term::NONE, |tail| tail.term);
        if term < last || term == Term::NONE {
            return Err(AppendError::TermFalls { given: term, last });
        }
        Ok(())
    }

    /// Whether `len` more bytes of entries fit into the segment.
    pub(super) fn fits(&self, len: u64) -> bool {
        self.offset + len + RESERVE <= self.capacity
    }

    /// Bytes of entries that an empty segment of `capacity` takes at least.
    pub(super) fn room_when_empty(capacity: u64) -> u64 {
        capacity - SEGMENT_HEADER_LEN as u64 - MARKS_BEFORE_ENTRIES * MARK_LEN - RESERVE
    }

    pub(super) fn has_entries(&self) -> bool {
        self.next() != self.segment
    }

    /// Encodes an entry at the end, in a new segment if it does not fit into the present one.
    #[inline]
    pub(super) fn place(&mut self, entry: &NewEntry<'_>, term: Term, timestamp: u64, fresh_capacity: u64) {
        let vlsn = self.next();
        let len = entry.encoded_len() as u64;
        if !self.fits(len) && self.has_entries() {
            self.rotate(fresh_capacity);
        }
        assert!(self.offset + len <= self.capacity, "an entry within the limit fits into an empty segment");
        self.note_point(vlsn);
        let prev = self.tail.map_or(0, |tail| tail.crc);
        let at = Placement { vlsn: Some(vlsn), term, prev, timestamp };
        let crc = encode(entry, &at, &mut self.bytes);
        self.stated.note(entry.kind, vlsn);
        self.extend(len, Position { vlsn, term, crc });
    }

    /// Everything from here on goes into a new segment.
    pub(super) fn rotate(&mut self, capacity: u64) {
        let what = What::Rotate { first: self.next(), base: self.tail };
        self.events.push(Event { at: self.bytes.len(), what });
        self.segment = self.next();
        self.offset = SEGMENT_HEADER_LEN as u64;
        self.last_point = self.offset;
        self.capacity = capacity;
    }

    /// Gives the index a point for the entry that comes next, if the last one is far enough.
    pub(super) fn note_point(&mut self, vlsn: Vlsn) {
        if self.offset - self.last_point >= POINT_EVERY {
            let point = Point { vlsn, offset: self.offset };
            self.events.push(Event { at: self.bytes.len(), what: What::Point(point) });
            self.last_point = self.offset;
        }
    }

    /// Accounts for entries of `len` bytes that end with `last`, all of one term, or of terms noted before. What
    /// is stated among them is noted before, too.
    #[inline]
    pub(super) fn extend(&mut self, len: u64, last: Position) {
        self.offset += len;
        if self.terms.last().is_none_or(|span| span.term != last.term) {
            self.terms.push(TermSpan { term: last.term, first: self.next() });
        }
        self.tail = Some(last);
    }

    /// Stages a mark, if it would say something new and there is room for it.
    pub(super) fn mark(&mut self, mark: &SyncMark, timestamp: u64) {
        let news = mark.durable > self.marked.0 || mark.committed > self.marked.1;
        let room = if self.has_entries() {
            self.offset + MARK_LEN <= self.capacity
        } else {
            self.offset < SEGMENT_HEADER_LEN as u64 + MARKS_BEFORE_ENTRIES * MARK_LEN
        };
        if !news || !room || self.poisoned || self.closed {
            return;
        }
        let payload = mark.encode();
        let entry = NewEntry { kind: EntryKind::SYNC_MARK, txn: None, payload: &payload };
        let (term, prev) = self.tail.map_or((Term::NONE, 0), |tail| (tail.term, tail.crc));
        encode(&entry, &Placement { vlsn: None, term, prev, timestamp }, &mut self.bytes);
        self.offset += MARK_LEN;
        self.marked = (mark.durable, mark.committed);
    }

    /// Whether something is not yet known to be on disk.
    pub(super) fn is_unsynced(&self) -> bool {
        (self.segment, self.offset) != self.synced
    }

    /// Puts bytes that could not be written back in front of what was staged meanwhile.
    pub(super) fn put_back(&mut self, bytes: &[u8], events: &[Event]) {
        let shift = bytes.len();
        for event in &mut self.events {
            event.at += shift;
        }
        self.events.splice(0..0, events.iter().copied());
        self.bytes.splice(0..0, bytes.iter().copied());
        self.stuck = true;
    }

    pub(super) fn last_number(&self) -> u64 {
        number(self.tail.map(|tail| tail.vlsn))
    }
}
