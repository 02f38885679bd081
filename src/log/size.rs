//! How much there is in the log.

use crate::ids::Vlsn;
use crate::log::Log;
use crate::log::format::SEGMENT_HEADER_LEN;
use crate::log::index::nearest;

impl Log {
    /// About how many bytes of entries follow `after` in the segment files: exact to the distance of two index points,
    /// 64 KiB. Does not read the disk.
    pub fn bytes_after(&self, after: Option<Vlsn>) -> u64 {
        let from = Vlsn::after(after);
        let catalog = self.core.catalog.lock();
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
