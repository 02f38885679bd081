//! What others ask of the engine, between two batches: a snapshot, or to take one in.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::clock::Wait;
use crate::engine::{EngineSnapshot, Item, Items};
use crate::ids::Vlsn;
use crate::log::Pin;
use crate::watermark::{Closed, Watermark};
use crate::worker::Stop;

/// The place of an answer that is given once.
pub(crate) struct Answer<T> {
    value: Mutex<Option<T>>,
    /// 1 when it was given; closed when nobody will.
    given: Watermark,
}

impl<T> Answer<T> {
    /// The place, and the right to fill it.
    pub fn new() -> (Arc<Answer<T>>, Asked<T>) {
        let answer = Arc::new(Answer { value: Mutex::new(None), given: Watermark::new(0) });
        (Arc::clone(&answer), Asked(answer))
    }

    /// The answer, taken once; `None`: `wait` ended first.
    ///
    /// # Errors
    /// [`Closed`]: whoever was asked has ended.
    pub fn take(&self, wait: Wait) -> Result<Option<T>, Closed> {
        Ok(if self.given.wait(1, wait)? { self.value.lock().take() } else { None })
    }
}

/// The right to answer. Dropping it without doing so ends the wait.
pub(crate) struct Asked<T>(Arc<Answer<T>>);

impl<T> Asked<T> {
    pub fn give(self, value: T) {
        *self.0.value.lock() = Some(value);
        self.0.given.advance(1);
    }
}

impl<T> Drop for Asked<T> {
    fn drop(&mut self) {
        self.0.given.close();
    }
}

/// A snapshot of this node's engine.
pub(crate) struct Snapshot {
    pub source: Box<dyn EngineSnapshot>,
    /// Keeps the log from the snapshot's entry on.
    pub pin: Pin,
}

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSnapshot {
    #[error("the engine makes no snapshots")]
    Unable,
    #[error("the engine waits for a snapshot itself")]
    Lacks,
    #[error("the engine could not make a snapshot: {0}")]
    Engine(String),
    #[error("the engine's snapshot claims to stand at VLSN {at}, and only {applied} was applied")]
    Ahead { at: u64, applied: u64 },
}

/// A snapshot for the engine to take in.
pub(crate) struct Install {
    pub items: Box<dyn Items + Send>,
    /// The log is put on it, too: then it is of use also to an engine that stands just there.
    pub moves_log: bool,
    /// What is to be done when the engine has it, before anything else is applied: the log is put on it.
    pub settle: Box<dyn FnOnce() -> Result<(), Stop> + Send>,
    /// What is to be done instead if the engine is beyond it by now.
    pub back_out: Box<dyn FnOnce() -> Result<(), Stop> + Send>,
    pub asked: Asked<()>,
}

/// The items of a snapshot while the node is open: when it closes, an engine that reads them gets an error, and the node
/// that is opened there next installs anew.
pub(super) struct WhileOpen<'a> {
    pub items: &'a dyn Items,
    pub closing: &'a AtomicBool,
}

impl WhileOpen<'_> {
    fn check(&self) -> io::Result<()> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(io::Error::other("the node closes: opening it again installs the snapshot"));
        }
        Ok(())
    }
}

impl Items for WhileOpen<'_> {
    fn at(&self) -> Vlsn {
        self.items.at()
    }

    fn list(&self) -> &[Item] {
        self.items.list()
    }

    fn open(&self, at: usize) -> io::Result<Box<dyn Read + '_>> {
        self.check()?;
        Ok(Box::new(Reading { from: self.items.open(at)?, open: self }))
    }
}

struct Reading<'a> {
    from: Box<dyn Read + 'a>,
    open: &'a WhileOpen<'a>,
}

impl Read for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.open.check()?;
        self.from.read(into)
    }
}

pub(crate) enum Request {
    Snapshot(Asked<Result<Snapshot, NoSnapshot>>),
    Install(Install),
}
