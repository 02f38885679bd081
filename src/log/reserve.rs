//! Space that is kept for the day on which the disk is full: cutting the log, and opening it, need some, and must not fail
//! for want of it. It is given up then, and taken again before the log takes a new segment.

use std::io;
use std::sync::atomic::Ordering;

use crate::disk::Disk;
use crate::log::LogConfig;
use crate::log::core::Core;
use crate::log::error::{AppendError, FlushError, IoFailure, OpenError, TruncateError};
use crate::log::index::create_anew;
use crate::log::recover::Place;

/// The file that holds the space.
const NAME: &str = "reserve";
/// The segment that was made ahead.
pub(super) const SPARE: &str = "spare.new";
/// For intents and indexes.
const SMALL_FILES: u64 = 64 * 1024;

/// An error that may say that the disk is full.
pub(super) trait Full {
    fn is_full(&self) -> bool;
}

impl Full for IoFailure {
    fn is_full(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl Full for OpenError {
    fn is_full(&self) -> bool {
        matches!(self, OpenError::Io(error) if error.is_full())
    }
}

impl Full for TruncateError {
    fn is_full(&self) -> bool {
        match self {
            TruncateError::Io(error) => error.is_full(),
            TruncateError::Reopen(error) => error.is_full(),
            TruncateError::Flush(FlushError::Write(AppendError::Io(error))) => error.is_full(),
            _ => false,
        }
    }
}

impl TruncateError {
    /// Of an error before anything was changed: a full disk by its name.
    pub(super) fn or_full(self) -> TruncateError {
        match self {
            TruncateError::Io(error)
            | TruncateError::Reopen(OpenError::Io(error))
            | TruncateError::Flush(FlushError::Write(AppendError::Io(error)))
                if error.is_full() =>
            {
                TruncateError::Full(error)
            }
            other => other,
        }
    }
}

/// Bytes of the reserve: a rollback writes what it saves, and a segment in the place of the one with the cut.
fn len(capacity: u64) -> u64 {
    2 * capacity + SMALL_FILES
}

/// Does something that can be repeated; if the disk is full, once more with the space that is kept for that.
pub(super) fn with_reserve<T, E: Full>(
    place: Place<'_>,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    match attempt() {
        Err(error) if error.is_full() && give_up(place) => attempt(),
        other => other,
    }
}

/// Whether that gave any space.
fn give_up(place: Place<'_>) -> bool {
    let dir = &place.config.dir;
    let mut gave = false;
    for name in [SPARE, NAME] {
        gave |= place.disk.remove(&dir.join(name)).is_ok();
    }
    if gave {
        log::warn!("the disk of {} is full: its reserve is used", dir.display());
    }
    gave
}

/// Makes the reserve unless it is there. Returns whether it was made now.
fn make(disk: &dyn Disk, config: &LogConfig, capacity: u64) -> Result<bool, IoFailure> {
    let path = config.dir.join(NAME);
    let len = len(capacity);
    if disk.open(&path).and_then(|file| file.len()).is_ok_and(|present| present == len) {
        return Ok(false);
    }
    create_anew(disk, &path, len).map(|_file| true)
}

impl Core {
    /// [`with_reserve`], in a log that runs; the caller holds the writer's lock, or nobody writes.
    pub(super) fn with_reserve<T, E: Full>(&self, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let mut first = true;
        with_reserve(self.place(), || {
            if !std::mem::take(&mut first) {
                // Its file went with the reserve.
                *self.spare.lock() = None;
            }
            attempt()
        })
    }

    /// Sees to it that there is a reserve. Only with that the log takes another segment: what a rollback needs is left to it.
    pub(super) fn reserve(&self) -> Result<bool, IoFailure> {
        if self.reserved.load(Ordering::Acquire) {
            return Ok(false);
        }
        let made = make(&*self.disk, &self.config, self.capacity)?;
        self.reserved.store(true, Ordering::Release);
        Ok(made)
    }
}
