//! The kinds of faults, and how often each fired.

use std::collections::BTreeMap;
use std::fmt;

/// What can go wrong in a simulation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fault {
    /// A write failed with EIO; a part of it may have been written.
    WriteError,
    /// A write or create failed with ENOSPC by chance; a part may have been written.
    NoSpace,
    /// A write or create failed with ENOSPC because the disk's capacity is used up.
    DiskFull,
    /// A create failed with EIO.
    CreateError,
    /// A read failed with EIO.
    ReadError,
    /// A file's sync failed. What was unsynced is durable or not, as chance has it, and counts as clean from then on:
    /// the next sync succeeds and proves nothing.
    SyncError,
    /// A file's sync reported success and made nothing durable.
    SyncLied,
    /// A directory's sync failed; its changes stay unsynced.
    DirSyncError,
    /// A crash lost written, unsynced bytes.
    LostWrite,
    /// A crash kept one part of what was unsynced of a file and lost another.
    TornWrite,
    /// A crash lost an unsynced change of a directory.
    LostEntry,
    /// A bit of a durable sector was found changed after a crash.
    BitFlip,
    /// A node crashed.
    Crash,
    /// A node's process was killed; what it had written stayed in the page cache.
    Kill,
    /// A worker was not scheduled for a while, though it had work.
    Stall,
    /// A whole node was not scheduled for a while.
    Pause,
    /// A connection was reset, and frames in flight were lost.
    Reset,
    /// A frame arrived with a changed bit.
    DamagedFrame,
    /// A frame was lost and the next one arrived all the same: what no good transport does.
    LostFrame,
    /// A frame or the end of a connection was sent into a partition and is held until it heals.
    Held,
    /// A connection attempt timed out or failed.
    DialFailed,
    /// A send found no room.
    NoRoom,
}

/// How often each kind of fault fired.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct FaultCounts(BTreeMap<Fault, u64>);

impl FaultCounts {
    /// How often this kind fired.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// Adds one.
    pub fn add(&mut self, fault: Fault) {
        self.add_times(fault, 1);
    }

    /// Adds so many.
    pub(super) fn add_times(&mut self, fault: Fault, times: u64) {
        if times > 0 {
            *self.0.entry(fault).or_default() += times;
        }
    }

    /// Adds another count to this one, so that a test can total its seeds.
    pub fn merge(&mut self, other: &FaultCounts) {
        for (&fault, &count) in &other.0 {
            self.add_times(fault, count);
        }
    }

    /// Those of `expected` that never fired: a test that meant to provoke them did not test what it says.
    pub fn missing(&self, expected: &[Fault]) -> Vec<Fault> {
        expected.iter().copied().filter(|&fault| self.of(fault) == 0).collect()
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (fault, count) in &self.0 {
            write!(f, "{separator}{fault:?} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}
