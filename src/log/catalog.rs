//! The segments of a running log, in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{Position, Vlsn};
use crate::log::segment::Segment;

/// All segments by their first VLSN; never empty in an open log.
#[derive(Default)]
pub(super) struct Catalog {
    segments: BTreeMap<Vlsn, Arc<Segment>>,
}

impl Catalog {
    pub(super) fn insert(&mut self, segment: Arc<Segment>) {
        self.segments.insert(segment.first, segment);
    }

    pub(super) fn remove(&mut self, first: Vlsn) {
        self.segments.remove(&first);
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    /// The segment that holds `vlsn`, or will if the last one does; `None` for one that was pruned.
    pub(super) fn holding(&self, vlsn: Vlsn) -> Option<Arc<Segment>> {
        self.segments.range(..=vlsn).next_back().map(|(_, segment)| Arc::clone(segment))
    }

    /// The segments from the one that begins at `first` on.
    pub(super) fn from(&self, first: Vlsn) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.range(first..).map(|(_, segment)| segment)
    }

    pub(super) fn get(&self, first: Vlsn) -> Option<Arc<Segment>> {
        self.segments.get(&first).map(Arc::clone)
    }

    pub(super) fn oldest(&self) -> Option<&Arc<Segment>> {
        self.segments.values().next()
    }

    pub(super) fn base(&self) -> Option<Position> {
        self.oldest().and_then(|segment| segment.base)
    }

    /// The entry that a segment ends with: what the next one stands on. `None` for the last segment.
    pub(super) fn end_of(&self, first: Vlsn) -> Option<Position> {
        self.segments.range(first.next()..).next().and_then(|(_, next)| next.base)
    }

    /// The oldest segment, if it is sealed and all its entries lie below `floor`. The last segment never is.
    pub(super) fn removable(&self, floor: Vlsn) -> Option<Arc<Segment>> {
        let mut segments = self.segments.values();
        let (oldest, next) = (segments.next()?, segments.next()?);
        (oldest.is_sealed() && next.first <= floor).then(|| Arc::clone(oldest))
    }
}
