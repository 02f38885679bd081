//! A life of the log: the time between two cuts, in which its positions only rise.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::ids::{Vlsn, number};
use crate::watermark::Watermark;

/// The positions of a log, each as the number of a VLSN, 0 for none: `flushed ≤ written ≤ appended`.
///
/// A truncation, a failed sync or closing the log ends the life: the watermarks close, and whoever waits for a higher
/// position is told. [`Log::life`](crate::log::Log::life) then returns the next life.
#[derive(Debug)]
pub struct Life {
    /// Has a VLSN; may be in memory only.
    pub appended: Watermark,
    /// In the page cache: seen by readers, survives the death of the process.
    pub written: Watermark,
    /// On the disk: survives loss of power.
    pub flushed: Watermark,
    /// How far a flush was asked for; the flusher waits on it.
    pub(super) wanted: Watermark,
    ended: AtomicBool,
}

impl Life {
    /// A life that begins with a log that is durable up to `last`.
    pub(super) fn new(last: Option<Vlsn>) -> Life {
        let at = number(last);
        Life {
            appended: Watermark::new(at),
            written: Watermark::new(at),
            flushed: Watermark::new(at),
            wanted: Watermark::new(at),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        for watermark in [&self.appended, &self.written, &self.flushed, &self.wanted] {
            watermark.close();
        }
    }

    /// Whether this life ended: positions taken from it mean nothing for the log any more.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}
