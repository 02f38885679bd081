//! The archiver: writes what is committed into the archive, on the node that leads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::apply::ApplyState;
use crate::archive::bases::Bases;
use crate::archive::catalog::{Catalog, LogObject};
use crate::archive::object::{LogReader, ReadError, WriteError, write_log};
use crate::archive::{ArchiveConfig, ArchiveError};
use crate::clock::{Clock, Deadline, Wait};
use crate::ids::{GroupId, Position, Term, Vlsn, VlsnRange, number};
use crate::log::scanner::ScanError;
use crate::log::{Log, Pin};
use crate::planted::{Bug, active};
use crate::watermark::rest;
use crate::wire::recovery::ArchiveStatus;
use crate::worker::{Step, Stop, Worker};

/// How often the archiver looks whether a whole object's worth is committed.
const LOOK: Duration = Duration::from_millis(500);
/// How long it waits before it tries again what failed.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest reason that a status tells, in bytes.
const LONGEST_REASON: usize = 255;

/// Entries that the archive lacks for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Gap {
    missing: VlsnRange,
    /// Some of them were archived, and are gone from there.
    lost: bool,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Gap { missing, lost } = self;
        match lost {
            false => write!(f, "VLSN {missing} were removed from the log before they were archived"),
            true => {
                write!(f, "VLSN {missing} are not in the log any more, and objects are gone from the archive")
            }
        }
    }
}

/// What a node tells of its archiver.
#[derive(Default)]
pub struct Said {
    status: Mutex<ArchiveStatus>,
    /// A gap that this mastership found. It stays, whatever else is told.
    gap: Mutex<Option<Gap>>,
    /// How many bases this node has made.
    made: AtomicU64,
    /// Why bases are not made, or old ones not removed. It stays, however well the log is archived.
    bases: Mutex<Option<String>>,
    /// The first entry that is not archived.
    needs: Mutex<Option<Vlsn>>,
}

impl Said {
    /// How it stands.
    pub fn status(&self) -> ArchiveStatus {
        let mut status = self.status.lock().clone();
        status.failed = status.failed.or_else(|| self.bases.lock().clone());
        if let (None, Some(gap)) = (&status.failed, *self.gap.lock()) {
            status.failed = Some(format!("{gap}: nothing can be restored to them"));
        }
        status
    }

    /// The first entry that is not archived, once that is known and while this node archives.
    pub fn needs(&self) -> Option<Vlsn> {
        *self.needs.lock()
    }

    fn failed(&self, why: Option<String>) {
        tell(&mut self.status.lock().failed, why);
    }

    pub(super) fn bases_failed(&self, why: Option<String>) {
        tell(&mut self.bases.lock(), why);
    }

    /// A base was made there.
    pub(super) fn made(&self, at: Vlsn) {
        self.base(at);
        self.made.fetch_add(1, Ordering::SeqCst);
    }

    fn base(&self, at: Vlsn) {
        let mut status = self.status.lock();
        status.base = status.base.max(Some(at));
    }

    fn forget(&self) {
        *self.status.lock() = ArchiveStatus::default();
        *self.gap.lock() = None;
        *self.bases.lock() = None;
        *self.needs.lock() = None;
    }
}

/// Takes down why something does not get on, and logs it if it is new.
fn tell(told: &mut Option<String>, why: Option<String>) {
    let why = why.map(|mut why| {
        let end = (0..=LONGEST_REASON.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
        why.truncate(end.unwrap_or(0));
        why
    });
    if let Some(why) = why.as_ref().filter(|_| *told != why) {
        log::warn!("the archive does not get on: {why}");
    }
    *told = why;
}

/// Why the archive does not fit the log, or could not be read or written.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("it holds entries of group {0}: give this group an archive of its own")]
    OtherGroup(GroupId),
    #[error(
        "the entry at VLSN {0} in it is not the one in this group's log: it is another history; give this group a new archive"
    )]
    OtherHistory(Vlsn),
    #[error(
        "it has entries up to VLSN {archived}, and this group's log ends before: it is another history; give this group a new archive"
    )]
    Ahead { archived: Vlsn },
    #[error("the object {0}, which was written last, is not there any more")]
    Gone(String),
    #[error("the node closes")]
    Closing,
}

/// What the archiver works with.
pub struct Parts {
    /// Where to, and how often.
    pub config: ArchiveConfig,
    /// Whose log it is.
    pub group: GroupId,
    /// The log.
    pub log: Log,
    /// What is committed.
    pub(crate) apply: Arc<ApplyState>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Bytes of a log object, about.
    pub object_bytes: u64,
    /// The term in which this node leads.
    pub leads: Box<dyn Fn() -> Option<Term> + Send>,
    /// Told of entries that will never be archived.
    pub on_gap: Box<dyn Fn(VlsnRange) + Send>,
    /// What is told of it.
    pub said: Arc<Said>,
    /// Whoever makes bases.
    pub bases: Arc<Bases>,
}

/// The worker.
pub struct Archiver {
    parts: Parts,
    doing: Doing,
}

enum Doing {
    /// This node does not lead.
    Nothing,
    /// It has to find out where the archive ends, from then on.
    Beginning { from: Deadline },
    /// What is archived up to there is not known to be committed yet: this master's term has only begun.
    Behind { archived: Vlsn, term: Term },
    /// The log does not go back to where the archive ends: waits for a base that stands in it. The pin keeps that so.
    /// `made`: how many bases were made until it began to wait.
    Waiting { pin: Pin, term: Term, made: u64 },
    /// Follows the log.
    Archiving(Following),
}

struct Following {
    term: Term,
    /// Keeps the log from the first entry on that is not archived.
    pin: Pin,
    /// The last archived entry.
    last: Option<Position>,
    /// The object that was written last.
    object: Option<String>,
    /// When what is committed and not archived has to be.
    due: Option<Deadline>,
    /// Not before then: something failed.
    not_before: Deadline,
    /// Bytes of log archived since the last base.
    since_base: u64,
}

/// Where the archive can be continued.
enum End {
    /// It is in the log, and not known to be committed yet.
    NotYet(Vlsn),
    /// After this entry.
    After { last: Option<Position>, since_base: u64 },
    /// The log begins later.
    Missing(Gap),
    /// Nothing was archived yet, and the log does not go back to its first entry.
    NoBeginning,
}

impl Archiver {
    /// A worker that archives while the node leads.
    pub fn new(parts: Parts) -> Archiver {
        Archiver { parts, doing: Doing::Nothing }
    }

    fn begin(&mut self, term: Term, now: Deadline) -> Step {
        match self.parts.end() {
            Ok(End::After { last, since_base }) => {
                let pin = self.parts.pin(last.map(|last| last.vlsn));
                // It may have been pruned until the pin was there.
                if self.parts.log.base().map(|base| base.vlsn) > last.map(|last| last.vlsn) {
                    return Step::Worked;
                }
                self.parts.said.failed(None);
                *self.parts.said.needs.lock() = Some(Vlsn::after(last.map(|last| last.vlsn)));
                self.parts.said.status.lock().last = last.map(|last| last.vlsn);
                let not_before = Deadline::from_nanos(0);
                let following =
                    Following { term, pin, last, object: None, due: None, not_before, since_base };
                self.doing = Doing::Archiving(following);
            }
            Ok(End::NotYet(archived)) => self.doing = Doing::Behind { archived, term },
            Ok(End::Missing(gap)) => {
                self.parts.tell(gap);
                self.wait_for_base(term);
            }
            Ok(End::NoBeginning) => self.wait_for_base(term),
            Err(trouble) => {
                self.parts.said.failed(Some(trouble.to_string()));
                self.doing = Doing::Beginning { from: now + AGAIN };
            }
        }
        Step::Worked
    }

    fn wait_for_base(&mut self, term: Term) {
        let pin = self.parts.pin(self.parts.log.base().map(|base| base.vlsn));
        *self.parts.said.needs.lock() = Some(pin.from());
        let made = self.parts.said.made.load(Ordering::SeqCst);
        self.parts.bases.want();
        self.doing = Doing::Waiting { pin, term, made };
    }
}

impl Parts {
    fn tell(&self, gap: Gap) {
        if self.said.gap.lock().replace(gap) != Some(gap) {
            log::error!("{gap}");
            (self.on_gap)(gap.missing);
        }
    }

    fn pin(&self, after: Option<Vlsn>) -> Pin {
        self.log.pin("archive", Vlsn::after(after))
    }

    /// Finds out where the archive ends, and whether this log continues it.
    fn end(&self) -> Result<End, Trouble> {
        let catalog = Catalog::read(&*self.config.to)?;
        let newest = catalog.whole_bases().next_back();
        if let Some(base) = newest {
            self.said.base(base.at);
        }
        let stands_on = self.log.base();
        let committed = self.apply.committed.get();
        let base_at = newest.map(|base| base.at);
        let since_base = catalog.logs.iter().filter(|log| Some(log.range.first()) > base_at);
        let since_base = since_base.map(|log| log.len).sum();
        let archived = self.place_of(catalog.last_log())?;
        if let Some(archived) = archived
            && stands_on.is_none_or(|base| base.vlsn <= archived.vlsn)
        {
            self.check(archived)?;
            if archived.vlsn.get() > committed {
                return Ok(End::NotYet(archived.vlsn));
            }
        }
        // Log to which neither a base nor the first entry leads is of no use: it goes on where that breaks off.
        let led = catalog.last_led();
        let last = if led == catalog.last_log() { archived } else { self.place_of(led)? };
        let lost = last != archived;
        if stands_on.map(|base| base.vlsn) <= last.map(|last| last.vlsn) {
            if lost {
                let from = Vlsn::after(last.map(|last| last.vlsn));
                log::error!("objects of the archive are gone: the log is archived again from VLSN {from} on");
                last.map_or(Ok(()), |last| self.check(last))?;
            }
            return Ok(End::After { last, since_base });
        }
        let stands_on = stands_on.map(|base| base.vlsn);
        let before = Vlsn::after(last.map(|last| last.vlsn));
        let missing = stands_on.and_then(|end| VlsnRange::new(before, end));
        // A base that stands in the log takes the place of what is missing.
        if let Some(base) = catalog.whole_bases().find(|base| Some(base.at) >= stands_on) {
            let manifest = crate::archive::base::Manifest::read(&*self.config.to, base)?;
            if manifest.group() != self.group {
                return Err(Trouble::OtherGroup(manifest.group()));
            }
            self.check(manifest.at())?;
            if base.at.get() > committed {
                return Ok(End::NotYet(base.at));
            }
            if let Some(missing) = missing.filter(|_| lost) {
                self.tell(Gap { missing, lost });
            }
            return Ok(End::After { last: Some(manifest.at()), since_base: 0 });
        }
        // Nothing at all is there, and this mastership has archived something.
        let emptied = archived.is_none() && self.said.status.lock().last.is_some();
        let missing = missing.filter(|_| archived.is_some() || emptied);
        let gap = missing.map(|missing| Gap { missing, lost: lost || emptied });
        Ok(gap.map_or(End::NoBeginning, End::Missing))
    }

    /// Where a log object ends.
    fn place_of(&self, log: Option<&LogObject>) -> Result<Option<Position>, Trouble> {
        let Some(log) = log else { return Ok(None) };
        let header = *LogReader::open(&*self.config.to, &log.name)?.header();
        if header.group != self.group {
            return Err(Trouble::OtherGroup(header.group));
        }
        Ok(Some(header.last))
    }

    /// What was archived is what this log has there. For a place that the log goes back to.
    fn check(&self, archived: Position) -> Result<(), Trouble> {
        if self.log.last().is_none_or(|ours| ours.vlsn < archived.vlsn) {
            return Err(Trouble::Ahead { archived: archived.vlsn });
        }
        match self.log.position_at(archived.vlsn)? == archived {
            true => Ok(()),
            false => Err(Trouble::OtherHistory(archived.vlsn)),
        }
    }
}

impl Following {
    /// Writes what is due; the time of the next look.
    fn archive(&mut self, parts: &Parts, wait: Wait) -> Result<Step, Trouble> {
        let now = parts.clock.now();
        if now < self.not_before {
            rest(wait.at_most(self.not_before));
            return Ok(Step::Idle { due: self.not_before });
        }
        let after = number(self.last.map(|last| last.vlsn));
        if !parts.apply.committed.wait(after + 1, wait).map_err(|_closed| Trouble::Closing)? {
            return Ok(Step::Idle { due: Deadline::NEVER });
        }
        let now = parts.clock.now();
        let due = *self.due.get_or_insert(now + parts.config.every);
        let full = parts.log.bytes_after(self.last.map(|last| last.vlsn)) >= parts.object_bytes;
        if now < due && !full {
            let look = due.min(now + LOOK);
            rest(wait.at_most(look));
            return Ok(Step::Idle { due: look });
        }
        let known = match active(Bug::ArchiveUncommitted) {
            true => number(parts.log.last().map(|last| last.vlsn)),
            false => parts.apply.committed.get(),
        };
        let Some(committed) = Vlsn::new(known) else {
            return Ok(Step::Idle { due: Deadline::NEVER });
        };
        let most = parts.object_bytes;
        let archive = &*parts.config.to;
        self.due = None;
        // What follows is of use only with what was written before.
        if let Some(name) = &self.object
            && archive.open(name).is_err_and(|error| error.is_missing())
        {
            return Err(Trouble::Gone(name.clone()));
        }
        let Some(header) = write_log(archive, &parts.log, parts.group, self.last, committed, most)? else {
            return Ok(Step::Idle { due: now + LOOK });
        };
        self.last = Some(header.last);
        self.object = Some(header.name());
        self.pin.advance(header.last.vlsn.next());
        *parts.said.needs.lock() = Some(header.last.vlsn.next());
        self.since_base += header.len;
        parts.said.failed(None);
        parts.said.status.lock().last = Some(header.last.vlsn);
        if self.since_base >= parts.config.base_bytes {
            self.since_base = 0;
            parts.bases.want();
        }
        Ok(Step::Worked)
    }
}

impl Worker for Archiver {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(term) = (self.parts.leads)() else {
            if !matches!(self.doing, Doing::Nothing) {
                self.doing = Doing::Nothing;
                self.parts.said.forget();
                return Ok(Step::Worked);
            }
            rest(wait);
            return Ok(Step::Idle { due: Deadline::NEVER });
        };
        let now = self.parts.clock.now();
        match &mut self.doing {
            Doing::Nothing => {
                self.doing = Doing::Beginning { from: now };
                Ok(Step::Worked)
            }
            Doing::Beginning { from } if now < *from => {
                let due = *from;
                rest(wait.at_most(due));
                Ok(Step::Idle { due })
            }
            Doing::Beginning { .. } => Ok(self.begin(term, now)),
            Doing::Behind { term: then, .. } | Doing::Waiting { term: then, .. } if *then != term => {
                self.doing = Doing::Beginning { from: now };
                Ok(Step::Worked)
            }
            Doing::Behind { archived, .. } => {
                match self.parts.apply.committed.wait(archived.get(), wait) {
                    Ok(true) => self.doing = Doing::Beginning { from: now },
                    Ok(false) => return Ok(Step::Idle { due: Deadline::NEVER }),
                    Err(_closed) => return Err(Stop::Done),
                }
                Ok(Step::Worked)
            }
            Doing::Waiting { pin, made, .. } => {
                if *made != self.parts.said.made.load(Ordering::SeqCst) {
                    let base = self.parts.said.status.lock().base;
                    if base >= self.parts.log.base().map(|base| base.vlsn) {
                        // The base stands in the log, and what follows it is kept.
                        pin.advance(Vlsn::after(base));
                    }
                    // If the log had been given up beyond it meanwhile, another one is wanted.
                    return Ok(self.begin(term, now));
                }
                let due = now + LOOK;
                rest(wait.at_most(due));
                Ok(Step::Idle { due })
            }
            Doing::Archiving(following) if following.term != term => {
                self.doing = Doing::Beginning { from: now };
                Ok(Step::Worked)
            }
            Doing::Archiving(following) => match following.archive(&self.parts, wait) {
                Ok(step) => Ok(step),
                Err(Trouble::Write(WriteError::Scan(ScanError::Pruned { .. }))) => {
                    self.doing = Doing::Beginning { from: now };
                    Ok(Step::Worked)
                }
                Err(trouble @ Trouble::Gone(_)) => {
                    // It was removed as too old, or somebody emptied the archive.
                    log::info!("{trouble}: looking for where the archive ends");
                    self.doing = Doing::Beginning { from: now };
                    Ok(Step::Worked)
                }
                // The log's end was cut: what is committed is still there.
                Err(Trouble::Write(WriteError::Scan(ScanError::LifeEnded))) => Ok(Step::Worked),
                Err(Trouble::Closing) => Err(Stop::Done),
                Err(trouble) => {
                    self.parts.said.failed(Some(trouble.to_string()));
                    following.not_before = self.parts.clock.now() + AGAIN;
                    following.due = Some(following.not_before);
                    Ok(Step::Idle { due: following.not_before })
                }
            },
        }
    }
}
