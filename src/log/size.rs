//! How much there is in the log.

use crate::ids::Vlsn;
use crate::log::Log;
use crate::log::core::Core;
use crate::log::format::SEGMENT_HEADER_LEN;
use crate::log::index::nearest;

/// A segment of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first entry in it.
    pub first: Vlsn,
    /// Bytes of its file that are in use.
    pub bytes: u64,
    /// Whether it may be removed.
    pub sealed: bool,
}

impl Core {
    pub(super) fn bytes_from(&self, from: Vlsn) -> u64 {
        let catalog = self.catalog.lock();
        let begin = catalog.holding(from).map_or(Vlsn::FIRST, |segment| segment.first);
        let sizes = catalog.from(begin).map(|segment| {
            let start = match segment.first < from {
                true => nearest(&segment.points(), segment.first, from).offset,
                false => SEGMENT_HEADER_LEN as u64,
            };
            segment.end().saturating_sub(start)
        });
        sizes.sum()
    }
}

impl Log {
    /// About how many bytes of entries follow `after` in the segment files: exact to the distance of two index points,
    /// 64 KiB. Does not read the disk.
    pub fn bytes_after(&self, after: Option<Vlsn>) -> u64 {
        self.core.bytes_from(Vlsn::after(after))
    }

    /// The segments, oldest first; the last one is written to. Does not read the disk.
    pub fn extents(&self) -> Vec<Extent> {
        let catalog = self.core.catalog.lock();
        let extent = |segment: &std::sync::Arc<crate::log::segment::Segment>| Extent {
            first: segment.first,
            bytes: segment.end(),
            sealed: segment.is_sealed(),
        };
        catalog.from(Vlsn::FIRST).map(extent).collect()
    }
}
