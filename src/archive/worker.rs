//! The archiver: writes what is committed into the archive, on the node that leads.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::apply::ApplyState;
use crate::archive::bases::Bases;
use crate::archive::catalog::Catalog;
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
/// How soon it looks again whether its master's term has committed something.
const SOON: Duration = Duration::from_millis(20);
/// How long it waits before it tries again what failed.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest reason that a status tells, in bytes.
const LONGEST_REASON: usize = 255;

/// What a node tells of its archiver.
#[derive(Default)]
pub struct Said {
    status: Mutex<ArchiveStatus>,
    /// A gap that this mastership found. It stays, whatever else is told.
    gap: Mutex<Option<VlsnRange>>,
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
            status.failed = Some(format!(
                "VLSN {gap} were removed from the log before they were archived: nothing can be restored to them"
            ));
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

    pub(super) fn base(&self, at: Vlsn) {
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
    /// The log does not go back to where the archive ends: waits for a base that stands in it. The pin keeps that so.
    Waiting { pin: Pin, term: Term },
    /// Follows the log.
    Archiving(Following),
}

struct Following {
    term: Term,
    /// Keeps the log from the first entry on that is not archived.
    pin: Pin,
    /// The last archived entry.
    last: Option<Position>,
    /// When what is committed and not archived has to be.
    due: Option<Deadline>,
    /// Not before then: something failed.
    not_before: Deadline,
    /// Bytes of log archived since the last base.
    since_base: u64,
}

/// Where the archive can be continued.
enum End {
    /// It is in the log, and not known to be committed yet: this master's term has only begun.
    NotYet,
    /// After this entry.
    After { last: Option<Position>, since_base: u64 },
    /// The log begins later: these are lost.
    Gap(VlsnRange),
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
                let following = Following { term, pin, last, due: None, not_before, since_base };
                self.doing = Doing::Archiving(following);
            }
            Ok(End::NotYet) => self.doing = Doing::Beginning { from: now + SOON },
            Ok(End::Gap(missing)) => {
                let known = self.parts.said.gap.lock().replace(missing);
                if known != Some(missing) {
                    log::error!("VLSN {missing} were removed from the log before they were archived");
                    (self.parts.on_gap)(missing);
                }
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
        self.parts.bases.want();
        self.doing = Doing::Waiting { pin, term };
    }
}

impl Parts {
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
        let last = match catalog.last_log() {
            Some(log) => {
                let header = *LogReader::open(&*self.config.to, &log.name)?.header();
                if header.group != self.group {
                    return Err(Trouble::OtherGroup(header.group));
                }
                Some(header.last)
            }
            None => None,
        };
        if let Some(last) = last
            && stands_on.is_none_or(|base| base.vlsn <= last.vlsn)
        {
            if self.log.last().is_none_or(|ours| ours.vlsn < last.vlsn) {
                return Err(Trouble::Ahead { archived: last.vlsn });
            }
            if last.vlsn.get() > committed {
                return Ok(End::NotYet);
            }
            if self.log.position_at(last.vlsn)? != last {
                return Err(Trouble::OtherHistory(last.vlsn));
            }
            return Ok(End::After { last: Some(last), since_base });
        }
        let Some(stands_on) = stands_on else { return Ok(End::After { last: None, since_base }) };
        // A base that stands in the log takes the place of what is missing.
        let base = catalog.whole_bases().find(|base| base.at >= stands_on.vlsn && base.at.get() <= committed);
        if let Some(base) = base {
            let manifest = crate::archive::base::Manifest::read(&*self.config.to, base)?;
            if manifest.group() != self.group {
                return Err(Trouble::OtherGroup(manifest.group()));
            }
            if self.log.position_at(base.at)? != manifest.at() {
                return Err(Trouble::OtherHistory(base.at));
            }
            return Ok(End::After { last: Some(manifest.at()), since_base: 0 });
        }
        let gap = last.and_then(|last| VlsnRange::new(last.vlsn.next(), stands_on.vlsn));
        Ok(gap.map_or(End::NoBeginning, End::Gap))
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
        let Some(header) = write_log(archive, &parts.log, parts.group, self.last, committed, most)? else {
            return Ok(Step::Idle { due: now + LOOK });
        };
        self.last = Some(header.last);
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
            Doing::Waiting { term: then, .. } if *then != term => {
                self.doing = Doing::Beginning { from: now };
                Ok(Step::Worked)
            }
            Doing::Waiting { pin, .. } => {
                let made = self.parts.said.status.lock().base;
                if made.is_some() && made >= self.parts.log.base().map(|base| base.vlsn) {
                    // The base stands in the log, and what follows it is kept.
                    pin.advance(Vlsn::after(made));
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
