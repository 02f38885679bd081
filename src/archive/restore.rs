//! A directory of a new group, made from an archive.
//!
//! The order is what makes it safe: a mark that says "unfinished" is durable first; then come the base, staged and verified,
//! and the log; then the mark goes, and the small state comes last. A directory with the mark, or with a log and no small
//! state, opens as nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::address::Address;
use crate::archive::Archive;
use crate::archive::base::{self, Manifest};
use crate::archive::catalog::{Foreign, Refused, Thread};
use crate::archive::object::{LogReader, ObjectDamage, ReadError};
use crate::archive::target::{Plan, PlanError, Start, Until};
use crate::ballot::HIGHEST_TERM;
use crate::base::Base;
use crate::clock::Wait;
use crate::disk::Disk;
use crate::entry::{EntryKind, Header, NewEntry, RunSummary, verify_run};
use crate::ids::{GroupId, NodeId, Position, Term, Vlsn, VlsnRange};
use crate::log::{AppendError, FlushError, IoFailure, Log, LogConfig, OpenError};
use crate::log::{Failed, INSTALL_NAME, TruncateError, create_anew};
use crate::members::{Member, Members, Standing};
use crate::planted::{Bug, active};
use crate::runtime::Runtime;
use crate::slots::Slots;
use crate::snapshot::{Intent, LogPart, STAGING, StageError, Staging, Whole, digest_of};
use crate::state::{State, StateError, StateFile};
use crate::wire::recovery::{SnapshotId, SnapshotPlace};

/// The file that marks a directory in which a restore has begun and not ended.
const UNFINISHED: &str = "restoring";
/// So much is appended before it is flushed.
const FLUSH_EVERY: u64 = 16 << 20;

/// What to restore, and as what.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The name of the node whose directory it will be: the new group's only member.
    pub node: NodeId,
    /// Where others will dial it. `None`: that is said later, by a change of members.
    pub address: Option<Address>,
    /// How far.
    pub until: Until,
    /// With which base to begin.
    pub start: Start,
    /// The new group's id. `None`: a random one.
    pub group: Option<GroupId>,
    /// Bytes of a segment of the new log; what the node will be configured with.
    pub segment_bytes: u64,
}

impl RestoreOptions {
    /// All that was archived, as a node of this name, in a group with a random id.
    pub fn new(node: NodeId) -> RestoreOptions {
        RestoreOptions {
            node,
            address: None,
            until: Until::End,
            start: Start::Latest,
            group: None,
            segment_bytes: 64 << 20,
        }
    }
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The group that was archived.
    pub from: GroupId,
    /// The new one.
    pub group: GroupId,
    /// The term of the entries that follow the archived ones.
    pub term: Term,
    /// The base that was used.
    pub base: Option<Vlsn>,
    /// The last entry taken from the archive.
    pub target: Position,
    /// Its timestamp, in microseconds since the epoch; if the base stands there, it may be a later one.
    pub time: u64,
    /// The last entry of the new log: three of its own follow the target.
    pub last: Vlsn,
    /// Where the archive ends.
    pub end: Vlsn,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The archive can't give what was asked for. Nothing was changed.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An object of the archive is damaged.
    #[error("{0}; what was restored up to there can't be used: remove the directory")]
    Read(#[from] ReadError),
    /// An object is of another group.
    #[error("{0}; what was restored up to there can't be used: remove the directory")]
    Foreign(#[from] Foreign),
    /// An earlier restore into the directory did not end.
    #[error("an earlier restore into {dir} did not end: remove the directory, and restore again", dir = dir.display())]
    Unfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// There is something in the directory.
    #[error("{dir} is not empty: restore into a new directory", dir = dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// A term so high that no group reaches it.
    #[error("the archive speaks of term {0}, which no group reaches: it is damaged")]
    AbsurdTerm(Term),
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The base could not be staged.
    #[error("the base could not be staged: {0}")]
    Stage(#[from] StageError),
    /// The new log did not open.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The new log takes no more.
    #[error("the new log can't take the entries: {0}")]
    Append(#[from] AppendError),
    /// The new log can't be made durable.
    #[error("the new log can't be made durable: {0}")]
    Flush(#[from] FlushError),
    /// The new log can't be put on the base.
    #[error("the new log can't be put on the base: {0}")]
    Reset(#[from] TruncateError),
    /// The small state could not be made.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<Refused> for RestoreError {
    fn from(refused: Refused) -> RestoreError {
        match refused {
            Refused::Read(error) => error.into(),
            Refused::Foreign(error) => error.into(),
        }
    }
}

/// Whether a restore into this directory has begun and not ended: then nothing may be opened there.
pub fn is_unfinished(disk: &dyn Disk, dir: &Path) -> bool {
    let there = |path: &Path| disk.open(&dir.join(path)).is_ok();
    // Whoever fetched a snapshot has a small state from before.
    let intent = Path::new("log").join(INSTALL_NAME);
    there(Path::new(UNFINISHED)) || (there(&intent) && !there(Path::new("state")))
}

/// How far a restore has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Bytes of the archive that were read.
    pub bytes: u64,
    /// Of so many.
    pub of: u64,
}

/// Makes a directory of a new group from the archive: as [`RestoreOptions`] say, on this disk. Everything that is taken is
/// verified before the directory can be opened. `progress` is called now and then.
///
/// # Errors
/// [`RestoreError`]. What is in the directory then is refused by whoever opens it.
pub fn restore(
    archive: &dyn Archive,
    disk: &Arc<dyn Disk>,
    runtime: &dyn Runtime,
    dir: &Path,
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Restored, RestoreError> {
    check_free(&**disk, dir)?;
    let plan = Plan::make(archive, options.until, options.start)?;
    if plan.highest >= HIGHEST_TERM {
        return Err(RestoreError::AbsurdTerm(plan.highest));
    }
    let term = if active(Bug::RestoreKeepsTerm) { plan.highest } else { plan.highest.next() };
    let random = || u128::from(runtime.random()) << 64 | u128::from(runtime.random());
    let group = options.group.unwrap_or_else(|| GroupId::from_bits(random()));
    begin(&**disk, dir)?;
    let mut work = Work { archive, disk, runtime, dir, group, options, plan: &plan, progress, done: 0 };
    let own = Member { address: options.address.clone(), ..Member::electable(options.node.clone()) };
    let alone = Members::new(vec![own]);
    let members = alone.unwrap_or_else(|_| unreachable!("one electable member is a list"));
    let staged = work.stage(&members)?;
    let (target, time, last) = work.write_log(term, &members)?;
    if let Some(intent) = staged {
        intent.store(&**disk, &dir.join("log"))?;
    }
    // From here on the missing small state says that this is not whole.
    let mark = dir.join(UNFINISHED);
    disk.remove(&mark).failed("remove", &mark)?;
    disk.sync_dir(dir).failed("sync", dir)?;
    let state =
        State::new(group, options.node.clone(), runtime.random(), Standing::Full { since: Term::NONE });
    StateFile::create(&**disk, &dir.join("state"), state.in_term(term))?;
    let base = plan.base.as_ref().map(|base| base.at);
    Ok(Restored { from: plan.group, group, term, base, target, time, last, end: plan.end })
}

/// The directory is empty, or not there.
fn check_free(disk: &dyn Disk, dir: &Path) -> Result<(), RestoreError> {
    match disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(names) if names.is_empty() => Ok(()),
        Ok(_) if is_unfinished(disk, dir) => Err(RestoreError::Unfinished { dir: dir.to_owned() }),
        Ok(_) => Err(RestoreError::NotEmpty { dir: dir.to_owned() }),
        Err(error) => Ok(Err(error).failed("list", dir)?),
    }
}

/// Makes the directory, and the mark in it, durable.
fn begin(disk: &dyn Disk, dir: &Path) -> Result<(), RestoreError> {
    disk.create_dir(dir).failed("create", dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).failed("sync", parent)?;
    }
    let mark = dir.join(UNFINISHED);
    create_anew(disk, &mark, 0)?.sync().failed("sync", &mark)?;
    Ok(disk.sync_dir(dir).failed("sync", dir)?)
}

/// A restore that has begun.
struct Work<'a> {
    archive: &'a dyn Archive,
    disk: &'a Arc<dyn Disk>,
    runtime: &'a dyn Runtime,
    dir: &'a Path,
    group: GroupId,
    options: &'a RestoreOptions,
    plan: &'a Plan,
    progress: &'a mut dyn FnMut(Progress),
    done: u64,
}

impl Work<'_> {
    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(Progress { bytes: self.done, of: self.plan.bytes.max(self.done) });
    }

    /// Brings the base into the staging directory, as the new group's; returns the intent with which the node that opens
    /// the directory installs it.
    fn stage(&mut self, members: &Members) -> Result<Option<Intent>, RestoreError> {
        let (Some(objects), Some(manifest)) = (&self.plan.base, &self.plan.head) else { return Ok(None) };
        let base = Base {
            group: self.group,
            members: members.clone(),
            slots: Slots::default(),
            ..manifest.base.clone()
        }
        .encode();
        let [incarnation, session, number] = [(); 3].map(|()| self.runtime.random());
        let id = SnapshotId { incarnation, session, number };
        let mut staging = Staging::begin(Arc::clone(self.disk), &self.dir.join(STAGING), id, &base)?;
        for (at, item) in manifest.items.iter().enumerate() {
            let number = at as u32;
            staging.item(number, &item.name)?;
            base::read_item(self.archive, manifest, objects.term, number, |bytes| {
                staging.chunk(staging.place(), bytes)?;
                self.advance(bytes.len());
                Ok::<(), RestoreError>(())
            })?;
            staging.item_end(SnapshotPlace { item: number, offset: item.len }, item.digest)?;
        }
        let bytes = manifest.items.iter().map(|item| item.len).sum();
        let digest = digest_of(&base, &manifest.items);
        let staged = staging.finish(&Whole { items: manifest.items.len() as u32, bytes, digest })?;
        Ok(Some(Intent { digest: staged.digest(), at: manifest.at().vlsn, log: LogPart::Kept }))
    }

    /// Writes the new log: the archived entries, and those that make it the new group's. Returns the last archived entry, its
    /// time, and the last of all.
    fn write_log(&mut self, term: Term, members: &Members) -> Result<(Position, u64, Vlsn), RestoreError> {
        let config = LogConfig {
            segment_bytes: self.options.segment_bytes,
            ..LogConfig::new(self.dir.join("log"), self.group)
        };
        let clock = self.runtime.clock();
        let base = self.plan.head.as_ref().map(Manifest::at);
        let (log, _) = Log::open(Arc::clone(self.disk), clock, config)?;
        if let Some(base) = base {
            log.reset(base)?;
        }
        let filled = self.fill_log(&log, base, term, members);
        let closed = log.close();
        let filled = filled?;
        closed?;
        Ok(filled)
    }

    fn fill_log(
        &mut self,
        log: &Log,
        base: Option<Position>,
        term: Term,
        members: &Members,
    ) -> Result<(Position, u64, Vlsn), RestoreError> {
        let (archive, plan) = (self.archive, self.plan);
        let mut thread = Thread { group: Some(plan.group), last: base };
        let mut unflushed = 0;
        let mut time = plan.head.as_ref().map_or(0, |head| head.time);
        for name in &plan.chain {
            let mut reader = LogReader::open(archive, name)?;
            thread.admits(&reader)?;
            walk(&mut reader, &mut thread, Some(plan.target), &mut |run, summary| {
                log.append_run(run, summary)?;
                time = summary.timestamp;
                unflushed += run.len() as u64;
                if unflushed >= FLUSH_EVERY {
                    flush(log, summary.last.vlsn)?;
                    unflushed = 0;
                }
                self.advance(run.len());
                Ok::<(), RestoreError>(())
            })?;
        }
        let Some(target) = thread.last.filter(|last| last.vlsn == plan.target) else {
            // The headers said that the target is there.
            let next = Vlsn::after(thread.last.map(|last| last.vlsn));
            let missing = VlsnRange::new(next, plan.target.max(next));
            let missing = missing.unwrap_or_else(|| unreachable!("the end is not below the beginning"));
            return Err(PlanError::Gap { until: self.options.until, missing }.into());
        };
        let (members, slots) = (members.encode(), Slots::default().encode());
        // The term's beginning ends every transaction that was open at the target.
        let own = [
            (EntryKind::TERM_START, &[][..]),
            (EntryKind::MEMBERSHIP, &members[..]),
            (EntryKind::SLOTS, &slots[..]),
        ];
        let own = own.map(|(kind, payload)| NewEntry { kind, txn: None, payload });
        let last = log.append(term, &own)?.last.vlsn;
        flush(log, last)?;
        // The new group is this node alone.
        log.note_committed(last);
        Ok((target, time, last))
    }
}

/// Nobody else flushes this log.
fn flush(log: &Log, to: Vlsn) -> Result<(), FlushError> {
    while !log.flush(to, Wait::Forever)? {}
    Ok(())
}

/// Takes a run of entries.
pub type Each<'a, E> = &'a mut dyn FnMut(&[u8], &RunSummary) -> Result<(), E>;

/// Reads an object to its end, and hands on its entries behind the thread's last and up to `until`, in order. What it has in
/// common with the objects before it has to be the same.
///
/// # Errors
/// [`ReadError`], or what `each` says.
pub fn walk<E: From<ReadError>>(
    reader: &mut LogReader,
    thread: &mut Thread,
    until: Option<Vlsn>,
    each: Each<'_, E>,
) -> Result<(), E> {
    let name = reader.header().name();
    let other =
        |at| E::from(ReadError::Damaged { object: name.clone(), damage: ObjectDamage::OtherHistory(at) });
    while let Some((mut run, mut summary)) = reader.run()? {
        let mut whole = true;
        if let Some(last) = thread.last.filter(|last| summary.range.first() <= last.vlsn) {
            let (len, at) = up_to(run, last.vlsn);
            if at.is_some_and(|at| at.vlsn == last.vlsn && at != last) {
                return Err(other(last.vlsn));
            }
            run = &run[len..];
            whole = false;
        }
        if let Some(until) = until.filter(|until| summary.last.vlsn > *until) {
            run = &run[..up_to(run, until).0];
            whole = false;
        }
        if run.is_empty() {
            continue;
        }
        if !whole {
            let again = verify_run(run, thread.last);
            summary = again.map_err(|_| other(Vlsn::after(thread.last.map(|last| last.vlsn))))?;
        }
        each(run, &summary)?;
        thread.last = Some(summary.last);
    }
    Ok(())
}

/// Bytes of the entries up to `last`, and the position of the last of them.
pub(super) fn up_to(run: &[u8], last: Vlsn) -> (usize, Option<Position>) {
    let (mut len, mut at) = (0, None);
    while let Ok(header) = Header::parse(&run[len..]) {
        if header.vlsn.is_none_or(|vlsn| vlsn > last) {
            break;
        }
        len += header.entry_len();
        at = header.position();
    }
    (len, at)
}
