//! Whoever makes bases, beside the archiver: a base may take long, and the log is to be archived meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::archive::base::{self, MakeError, Manifest, manifest_name};
use crate::archive::catalog::{BaseObjects, Catalog};
use crate::archive::worker::Said;
use crate::archive::{Archive, ArchiveConfig, ArchiveError};
use crate::base::Base;
use crate::clock::{Clock, Deadline, Wait};
use crate::engine::EngineSnapshot;
use crate::ids::{Term, Vlsn};
use crate::log::scanner::{LogScanner, ScanError};
use crate::log::{Log, Pin};
use crate::watermark::{Watermark, rest};
use crate::worker::{Step, Stop, Worker};

/// How long to wait after a base that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// How long to wait until what could not be removed is tried again.
const TIDY_AGAIN: Duration = Duration::from_secs(60);

/// Asks for bases. Those asked for while one is being made are one.
pub struct Bases {
    wanted: Watermark,
    served: AtomicU64,
}

impl Default for Bases {
    fn default() -> Bases {
        Bases { wanted: Watermark::new(0), served: AtomicU64::new(0) }
    }
}

impl Bases {
    /// Has a base made soon, if this node leads.
    pub fn want(&self) {
        self.wanted.advance(self.served.load(Ordering::SeqCst) + 1);
    }
}

/// A copy of the engine's state.
pub struct Copied {
    /// The state.
    pub snapshot: Box<dyn EngineSnapshot>,
    /// What the log says of the group there.
    pub base: Base,
    /// Keeps the log from the entry on at which it stands.
    pub pin: Pin,
}

/// Where copies of the engine's state come from.
pub trait Copies: Send {
    /// A copy as of now. `None`: `wait` ended first; the next call goes on waiting.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn copy(&mut self, wait: Wait) -> Result<Option<Copied>, String>;

    /// Nobody waits for the copy any more: what it would hold is let go.
    fn forget(&mut self);
}

/// What makes bases works with this.
pub struct Parts {
    /// Where to, and how many are kept.
    pub config: ArchiveConfig,
    /// The log.
    pub log: Log,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The term in which this node leads.
    pub leads: Box<dyn Fn() -> Option<Term> + Send>,
    /// What is told of it.
    pub said: Arc<Said>,
    /// Who asks.
    pub bases: Arc<Bases>,
    /// The engine's side.
    pub copies: Box<dyn Copies>,
}

/// The worker.
pub struct BaseMaker {
    parts: Parts,
    /// A copy was asked for.
    copying: bool,
    not_before: Deadline,
    /// Something old could not be removed: when to try again. That is no reason to make another base.
    untidy: Option<Deadline>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("a base could not be made: {0}")]
    Make(#[from] MakeError),
    #[error("old bases and log objects could not be removed: {0}")]
    Tidy(#[from] ArchiveError),
    #[error("a base could not be made: {0}")]
    Scan(#[from] ScanError),
}

impl BaseMaker {
    /// A worker that makes bases while the node leads.
    pub fn new(parts: Parts) -> BaseMaker {
        BaseMaker { parts, copying: false, not_before: Deadline::from_nanos(0), untidy: None }
    }

    fn make(&self, mut copied: Copied, term: Term) -> Result<(), Trouble> {
        let parts = &self.parts;
        let at = copied.base.at.vlsn;
        let archive = &*parts.config.to;
        let there = archive.list(&manifest_name(at, term)).map_err(MakeError::from)?;
        if there.is_empty() {
            let time = self.time_of(at)?;
            base::write(archive, &mut *copied.snapshot, copied.base, term, time)?;
        }
        log::info!("the archive has a base at VLSN {at}");
        parts.said.made(at);
        Ok(())
    }

    /// Removes what is old.
    fn tidy(&mut self) {
        let parts = &self.parts;
        let tidied = retain(&*parts.config.to, parts.config.bases).map_err(Trouble::Tidy);
        self.untidy = tidied.is_err().then(|| parts.clock.now() + TIDY_AGAIN);
        parts.said.bases_failed(tidied.err().map(|trouble| trouble.to_string()));
    }

    /// No base is wanted now.
    fn rest(&mut self) -> Step {
        if (self.parts.leads)().is_none() {
            self.untidy = None;
            self.parts.said.bases_failed(None);
        }
        match self.untidy {
            Some(due) if due <= self.parts.clock.now() => {
                self.tidy();
                Step::Worked
            }
            due => Step::Idle { due: due.unwrap_or(Deadline::NEVER) },
        }
    }

    /// The timestamp of an entry; the present for one that the log has no more.
    fn time_of(&self, at: Vlsn) -> Result<u64, ScanError> {
        if self.parts.log.base().is_some_and(|base| base.vlsn >= at) {
            return Ok(self.parts.clock.wall_micros());
        }
        let mut scanner = self.parts.log.scanner();
        let run = scanner.run(at.previous(), 1, 1)?;
        Ok(run.map_or_else(|| self.parts.clock.wall_micros(), |run| run.timestamp))
    }
}

impl Worker for BaseMaker {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let now = self.parts.clock.now();
        if now < self.not_before {
            rest(wait.at_most(self.not_before));
            return Ok(Step::Idle { due: self.not_before });
        }
        let bases = &self.parts.bases;
        let next = bases.served.load(Ordering::SeqCst) + 1;
        if !self.copying {
            let wait = self.untidy.map_or(wait, |due| wait.at_most(due));
            if !matches!(bases.wanted.wait(next, wait), Ok(true)) {
                return Ok(self.rest());
            }
            bases.served.store(bases.wanted.get(), Ordering::SeqCst);
        }
        let Some(term) = (self.parts.leads)() else {
            self.copying = false;
            self.parts.copies.forget();
            return Ok(Step::Worked);
        };
        self.copying = true;
        let copied = match self.parts.copies.copy(wait) {
            Ok(None) => return Ok(Step::Idle { due: Deadline::NEVER }),
            Ok(Some(copied)) => Ok(copied),
            Err(why) => Err(why),
        };
        self.copying = false;
        match copied.and_then(|copied| self.make(copied, term).map_err(|trouble| trouble.to_string())) {
            Ok(()) => self.tidy(),
            Err(why) => {
                self.parts.said.bases_failed(Some(why));
                self.not_before = self.parts.clock.now() + AGAIN;
                self.parts.bases.want();
            }
        }
        Ok(Step::Worked)
    }
}

/// Removes the bases beyond the newest `keep`, what unfinished ones left before them, and the log objects wholly before the
/// oldest that is kept, if there are as many. The oldest goes first, so that what is left is at every moment what a restore
/// can still reach, and of a base the manifest: one that is half removed counts for nothing. What can't be removed does not
/// keep the rest.
///
/// # Errors
/// The first [`ArchiveError`]; what is left is removed the next time.
pub fn retain(archive: &dyn Archive, keep: usize) -> Result<(), ArchiveError> {
    let catalog = Catalog::read(archive)?;
    let kept: Vec<&BaseObjects> = catalog.whole_bases().rev().take(keep.max(1)).collect();
    // While there are fewer, what lies before them is kept with them.
    let Some(oldest) = kept.get(keep.max(1) - 1).map(|base| base.at) else { return Ok(()) };
    let mut failed = None;
    let mut remove = |name: &str| archive.remove(name).map_err(|error| failed.get_or_insert(error).clone());
    let mut logs = catalog.logs.iter().filter(|log| log.range.last() <= oldest).peekable();
    for base in catalog.bases.iter().filter(|base| base.at < oldest || (base.at == oldest && !base.whole)) {
        while let Some(log) = logs.next_if(|log| log.range.last() <= base.at) {
            let _told_below = remove(&log.name);
        }
        let manifest = manifest_name(base.at, base.term);
        // A base that stays whole keeps its items.
        if remove(&manifest).is_ok() {
            for name in base.names.iter().filter(|name| **name != manifest) {
                let _told_below = remove(name);
            }
        }
    }
    for log in logs {
        let _told_below = remove(&log.name);
    }
    failed.map_or(Ok(()), Err)
}

impl Manifest {
    /// Whether another base, of whichever master, holds the same state at the same place.
    pub fn same_state(&self, other: &Manifest) -> bool {
        self.at() == other.at() && self.state_digest() == other.state_digest()
    }
}
