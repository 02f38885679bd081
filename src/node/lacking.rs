//! An engine that this node's log can't bring on: it lacks what the log no longer has, or holds what the log never had. In a
//! group with others it waits for a snapshot of theirs, and the log goes on without it.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::address::Address;
use crate::clock::Deadline;
use crate::config::{CheckedConfig, Snapshots};
use crate::disk::Disk;
use crate::ids::{Position, Vlsn, number};
use crate::log::{Failed, IoFailure, Log, OpenError, read_whole, retire_saved, write_whole};
use crate::members::{Members, Role, Standing};
use crate::node::core::{Founding, NodeError};
use crate::node::group::Shared;
use crate::node::install::load_base;
use crate::replica::FollowError;
use crate::state::StateFile;

/// The file that says that the engine was once found ahead of the log: what the log holds there later need not be what the
/// engine has applied.
const MARK: &str = "engine-ahead";

/// Where an engine stands in its log.
pub(super) struct Stands {
    /// What may be relied on.
    pub applied: Option<Vlsn>,
    /// It waits for a snapshot.
    pub lacks: bool,
}

/// What an engine and a log are judged by, when a node opens.
pub(super) struct Judged<'a> {
    pub config: &'a CheckedConfig,
    pub disk: &'a dyn Disk,
    pub log: &'a Log,
    pub state: &'a StateFile,
    /// `None`: a fixed part, for which nobody fetches snapshots.
    pub founding: Option<Founding>,
}

impl Judged<'_> {
    /// Whether the log can bring this engine on, or else others can.
    pub fn judge(&self, applied: Option<Vlsn>) -> Result<Stands, NodeError> {
        let (dir, last) = (&self.config.dir, self.log.last().map(|last| last.vlsn));
        let marked = applied.is_some() && is_marked(self.disk, dir).map_err(OpenError::from)?;
        if applied.is_none() {
            // An empty engine takes everything from the log.
            forget_mark(self.disk, dir).map_err(OpenError::from)?;
        }
        if let Some(ahead) = applied.filter(|applied| marked || Some(*applied) > last) {
            return self.is_ahead(ahead, last, marked);
        }
        match self.log.base().filter(|base| Some(base.vlsn) > applied) {
            Some(base) if !self.others_give()? => {
                Err(NodeError::EngineBehind { applied, oldest: base.vlsn.next() })
            }
            Some(base) => {
                log::warn!(
                    "{}: the engine has applied VLSN {}, and the log begins after VLSN {}: it waits for a snapshot",
                    self.config.node,
                    number(applied),
                    base.vlsn
                );
                Ok(Stands { applied, lacks: true })
            }
            None => Ok(Stands { applied, lacks: false }),
        }
    }

    fn is_ahead(&self, applied: Vlsn, last: Option<Vlsn>, marked: bool) -> Result<Stands, NodeError> {
        let standing = self.state.state().standing;
        if let (Standing::Damaged { to, .. }, false) = (standing, marked) {
            // What the engine has was here, and is to come back; more than was known of, and then perhaps more than that.
            self.state.update(|mut state| {
                state.standing = standing.damaged(applied, applied, applied > to);
                state
            })?;
            return Ok(Stands { applied: Some(applied), lacks: false });
        }
        if !self.others_give()? {
            return Err(NodeError::EngineAhead { applied, last });
        }
        if !marked {
            write_whole(self.disk, &self.config.dir, MARK, format!("{applied}\n").as_bytes())
                .map_err(OpenError::from)?;
            self.disk.sync_dir(&self.config.dir).failed("sync", &self.config.dir).map_err(OpenError::from)?;
            retire_saved(self.disk, &self.config.dir.join("log")).map_err(OpenError::from)?;
            // If the two belong together, the log has lost what it had flushed, and this node acknowledged: as much as the engine
            // has, or more.
            self.state.update(|mut state| {
                state.standing = standing.damaged(Vlsn::after(last), applied, true);
                state
            })?;
        }
        log::warn!(
            "{}: the engine has applied VLSN {applied}, and the log ends at VLSN {}: it waits for a snapshot",
            self.config.node,
            number(last)
        );
        Ok(Stands { applied: None, lacks: true })
    }

    /// Whether there are other members that have an engine, of whom this node may take a snapshot.
    fn others_give(&self) -> Result<bool, NodeError> {
        let joins = match self.founding {
            None | Some(Founding::Fixed | Founding::Found) => return Ok(false),
            Some(founding) => founding == Founding::Join,
        };
        if self.config.snapshots == Snapshots::Manual {
            return Ok(false);
        }
        let listed = self.log.memberships().into_iter().rev();
        let listed = listed.filter_map(|at| Members::decode(&self.log.payload(at).ok()?).ok()).next();
        let members = match listed {
            Some(members) => members,
            None => match load_base(self.disk, &self.config.dir)? {
                Some(base) => base.members,
                None if joins => return Ok(true),
                None => self.config.members.clone(),
            },
        };
        Ok(members.iter().any(|member| member.id != self.config.node && member.role != Role::Arbiter))
    }
}

fn is_marked(disk: &dyn Disk, dir: &Path) -> Result<bool, IoFailure> {
    Ok(read_whole(disk, &dir.join(MARK), 64)?.is_some())
}

/// The engine was replaced, or is empty.
pub(super) fn forget_mark(disk: &dyn Disk, dir: &Path) -> Result<(), IoFailure> {
    let path = dir.join(MARK);
    match disk.remove(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => {
            other.failed("remove", &path)?;
            disk.sync_dir(dir).failed("sync", dir)
        }
    }
}

/// Whom a lacking engine's node has asked.
#[derive(Default)]
pub(super) struct Lacking(Mutex<Asked>);

#[derive(Default)]
struct Asked {
    turn: usize,
    not_before: Option<Deadline>,
    failed: Option<FollowError>,
}

impl Lacking {
    /// Why the last attempt to get a snapshot ended without one.
    pub fn failed(&self, why: Option<FollowError>) {
        self.0.lock().failed = why;
    }

    pub fn last_error(&self) -> Option<FollowError> {
        self.0.lock().failed.clone()
    }
}

impl Shared {
    /// While the engine waits for a snapshot: asks one member after the other for it, the master first. Returns when to look
    /// again.
    pub fn tend_engine(self: &Arc<Shared>, now: Deadline) -> Deadline {
        if !self.core.apply.lacks() || self.core.poison.reason().is_some() {
            return Deadline::NEVER;
        }
        let again = now + self.core.config.backoff_max;
        let from = {
            let mut asked = self.lacking.0.lock();
            if let Some(not_before) = asked.not_before.filter(|not_before| now < *not_before) {
                return not_before;
            }
            asked.not_before = Some(again);
            let givers = self.givers();
            if givers.is_empty() || self.fetching.runs() {
                return again;
            }
            asked.turn += 1;
            givers[(asked.turn - 1) % givers.len()].clone()
        };
        // Its log has to reach on from there.
        let least = self.core.log.base().map(|base| base.vlsn);
        self.fetch_for_engine(least, from);
        again
    }

    /// Who may give a snapshot, as far as this node knows.
    fn givers(&self) -> Vec<Address> {
        let members = self.roll.members();
        let others = members.iter().filter(|one| one.id != self.own.id && one.role != Role::Arbiter);
        let master = self.master_hint().filter(|(master, _)| *master != self.own.id);
        let known = master.and_then(|(_, address)| address);
        let mut all: Vec<Address> = Vec::new();
        for address in known.into_iter().chain(others.filter_map(|one| one.address.clone())) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        if all.is_empty() {
            all.extend(self.seeds.iter().filter(|seed| Some(*seed) != self.own.address.as_ref()).cloned());
        }
        all
    }

    /// Whether the log holds this entry.
    pub fn holds(&self, at: Position) -> bool {
        self.core.log.position_at(at.vlsn).is_ok_and(|ours| ours == at)
    }
}
