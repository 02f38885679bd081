//! Putting a node on a snapshot: the intent, the log, the base; and at open, what of that a crash left to do.

use std::path::Path;
use std::sync::Arc;

use crate::base::{BadBase, Base};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::ids::{Position, number};
use crate::log::{
    DoubtfulTail, Failed, IoFailure, Log, LogConfig, OpenError, ScanError, TruncateError, read_whole,
    write_whole,
};
use crate::node::Event;
use crate::node::core::{Host, NodeError};
use crate::node::group::Shared;
use crate::node::lacking::forget_mark;
use crate::planted::{Bug, active};
use crate::replica::following::Guide;
use crate::snapshot::{Intent, LogPart, STAGING, StageError, Staged, Staging, discard};
use crate::worker::Stop;

/// The name of the base's file in the node's directory.
const BASE: &str = "base";
/// A longer file is no base.
const BASE_LIMIT: u64 = 16 << 20;

/// Why a snapshot is not in its place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The staged snapshot, or the intent.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A file.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The log.
    #[error("the log could not be put on the snapshot: {0}")]
    Log(#[from] TruncateError),
    /// The log did not open.
    #[error(transparent)]
    Open(#[from] crate::log::OpenError),
    /// The intent names another snapshot than is staged.
    #[error(
        "the snapshot in {dir} is not the one whose install has begun: wipe the node's directory and rejoin",
        dir = dir.display()
    )]
    Other {
        /// The staging directory.
        dir: std::path::PathBuf,
    },
    /// The snapshot is another group's.
    #[error("the staged snapshot belongs to group {found}, and this node is of group {ours}")]
    OtherGroup {
        /// The snapshot's.
        found: crate::ids::GroupId,
        /// This node's.
        ours: crate::ids::GroupId,
    },
    /// The engine.
    #[error("the engine could not install the snapshot: {0}; mend the engine, and open the node again")]
    Engine(crate::engine::EngineError),
    /// The base's file.
    #[error("{path} can't be read: {why}; restore it, or wipe the node's directory and rejoin", path = path.display())]
    Base {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        why: BadBase,
    },
}

/// What the file `base` says, if there is one.
pub(super) fn load_base(disk: &dyn Disk, dir: &Path) -> Result<Option<Base>, InstallError> {
    let path = dir.join(BASE);
    let Some(bytes) = read_whole(disk, &path, BASE_LIMIT)? else { return Ok(None) };
    Base::decode(&bytes).map(Some).map_err(|why| InstallError::Base { path, why })
}

/// Writes it.
pub(super) fn store_base(disk: &dyn Disk, dir: &Path, base: &Base) -> Result<(), InstallError> {
    write_whole(disk, dir, BASE, &base.encode())?;
    Ok(disk.sync_dir(dir).failed("sync", dir)?)
}

/// Whether an install has begun.
pub(super) enum Begun {
    /// The intent is durable: it has to be finished.
    Install(LogPart),
    /// It is of no use, for this reason.
    Not(String),
}

/// Decides whether the snapshot may be installed, and makes the intent durable. From then on until it is settled, nothing is
/// agreed with any master: what a master had appended here meanwhile would go with the log. If it is never settled, that
/// lasts until the node is opened anew, and the staged snapshot is left alone.
pub(super) fn begin_install(node: &Shared, staged: &Staged) -> Result<Begun, Stop> {
    let Some(following) = node.following.get() else { return Err(Stop::Done) };
    if node.core.apply.lacks() && node.holds(staged.base().at) {
        return begin_beside_stream(node, staged);
    }
    if !following.begin_install() {
        return Ok(Begun::Not("this node follows without it".to_owned()));
    }
    // After the above: whoever takes office looks there first.
    if node.lead().is_some() {
        following.end_install();
        return Ok(Begun::Not("this node leads".to_owned()));
    }
    node.end_relay();
    let (log, at) = (&node.core.log, staged.base().at);
    let part = match log.position_at(at.vlsn) {
        Ok(ours) if ours == at => LogPart::Kept,
        Ok(_) | Err(ScanError::Beyond { .. } | ScanError::Pruned { .. }) => LogPart::Replaced,
        // Whether the log holds it can't be told now.
        Err(error) => {
            following.end_install();
            return Ok(Begun::Not(error.to_string()));
        }
    };
    // Also what was known before damage took it from the log.
    let known = node.core.apply.committed.get().max(number(log.known_committed()));
    let known = known.max(number(log.base().map(|base| base.vlsn)));
    let applied = node.core.apply.applied.get();
    let why = match part {
        LogPart::Kept if applied == at.vlsn.get() => Some("the engine and the log have it".to_owned()),
        _ if applied > at.vlsn.get() => Some(format!("the engine is at VLSN {applied}, beyond it")),
        LogPart::Replaced if known > at.vlsn.get() => {
            Some(format!("this node knows VLSN {known} to be committed, and the snapshot stands before it"))
        }
        _ => None,
    };
    if let Some(why) = why {
        following.end_install();
        return Ok(Begun::Not(why));
    }
    let intent = Intent { digest: staged.digest(), at: at.vlsn, log: part };
    let log_dir = node.core.config.dir.join("log");
    if !active(Bug::InstallWithoutIntent) {
        intent.store(&*node.core.host.disk, &log_dir).map_err(Stop::failed)?;
    }
    Ok(Begun::Install(part))
}

/// An engine that the log can't bring on is replaced, and the log stays: whatever streams goes on.
fn begin_beside_stream(node: &Shared, staged: &Staged) -> Result<Begun, Stop> {
    let Some(following) = node.following.get() else { return Err(Stop::Done) };
    let at = staged.base().at;
    let held = following.between_frames(|| {
        let held = node.holds(at);
        if held {
            // Nobody cuts what is known to be committed.
            node.core.log.note_committed(at.vlsn);
            node.core.apply.committed.advance(at.vlsn.get());
        }
        held
    });
    if !held {
        return Ok(Begun::Not("the log was cut".to_owned()));
    }
    let intent = Intent { digest: staged.digest(), at: at.vlsn, log: LogPart::Kept };
    let log_dir = node.core.config.dir.join("log");
    intent.store(&*node.core.host.disk, &log_dir).map_err(Stop::failed)?;
    Ok(Begun::Install(LogPart::Kept))
}

/// The engine went on by itself while the intent was made durable: nothing was installed, and the intent goes.
pub(super) fn back_out(node: &Arc<Shared>) -> Result<(), Stop> {
    let (core, disk) = (&node.core, &*node.core.host.disk);
    Intent::forget(disk, &core.config.dir.join("log")).map_err(Stop::failed)?;
    if let Err(error) = discard(disk, &core.config.dir.join(STAGING)) {
        log::warn!("a snapshot that is of no use is left behind: {error}");
    }
    if let Some(following) = node.following.get() {
        following.end_install();
    }
    Ok(())
}

/// The engine has it: the log is put on it, and the intent goes.
pub(super) fn settle(node: &Arc<Shared>, base: &Base, part: LogPart) -> Result<(), Stop> {
    let Some(following) = node.following.get() else { return Err(Stop::Done) };
    let (core, disk) = (&node.core, &*node.core.host.disk);
    let done = following.between_frames(|| -> Result<_, InstallError> {
        let cut = match part {
            LogPart::Kept => None,
            LogPart::Replaced => Some(core.log.reset(base.at)?),
        };
        core.log.note_committed(base.at.vlsn);
        if !active(Bug::BaseNotStored) {
            store_base(disk, &core.config.dir, base)?;
        }
        *node.base.lock() = Some(base.clone());
        forget_mark(disk, &core.config.dir)?;
        Intent::forget(disk, &core.config.dir.join("log"))?;
        Ok(cut)
    });
    let cut = done.map_err(Stop::failed)?;
    if let Err(error) = discard(disk, &core.config.dir.join(STAGING)) {
        log::warn!("the installed snapshot's files are left behind: {error}");
    }
    let ties = crate::node::group::Ties(Arc::downgrade(node));
    if let Some(cut) = cut {
        ties.cut(&cut);
    }
    ties.members_changed();
    ties.slots_changed();
    following.end_install();
    log::info!("{} stands on the snapshot at VLSN {}", node.own.id, base.at.vlsn);
    node.tell(Event::Installed { at: base.at.vlsn });
    Ok(())
}

/// Puts an empty log that stands on `at` in the place of the present one. What that can't tell any more does not matter: its
/// files are set aside.
fn replace_log(host: &Host, config: &LogConfig, at: Position) -> Result<(), InstallError> {
    let open = || {
        let mut config = config.clone();
        // What it loses is saved, and was never committed.
        config.doubtful = DoubtfulTail::Cut;
        Log::open_to_install(Arc::clone(&host.disk), host.runtime.clock(), config)
    };
    let replaced = match open() {
        Ok((log, _)) => {
            let reset = log.reset(at);
            // A log whose reset failed is closed all the same.
            let closed = log.close();
            match reset {
                Ok(_) => Some(closed.map_err(TruncateError::from)?),
                Err(TruncateError::Io(error)) => return Err(TruncateError::Io(error).into()),
                Err(error) => {
                    log::warn!("the log that is to be replaced is set aside: {error}");
                    None
                }
            }
        }
        Err(
            error @ (OpenError::Damaged { .. }
            | OpenError::Missing { .. }
            | OpenError::File { .. }
            | OpenError::Doubtful { .. }),
        ) => {
            log::warn!("the log that is to be replaced is set aside: {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    if replaced.is_none() {
        set_aside(&*host.disk, &config.dir)?;
        let (log, _) = open()?;
        log.reset(at)?;
        log.close().map_err(TruncateError::from)?;
    }
    Ok(())
}

/// Renames the segments and indexes of a log, so that it is empty. Can be repeated from any point.
fn set_aside(disk: &dyn Disk, dir: &Path) -> Result<(), InstallError> {
    for name in disk.list(dir).failed("list", dir)? {
        let numbered = name.starts_with(|c: char| c.is_ascii_hexdigit());
        if numbered && (name.ends_with(".seg") || name.ends_with(".idx")) {
            let path = dir.join(&name);
            disk.rename(&path, &dir.join(format!("replaced-{name}"))).failed("rename", &path)?;
        }
    }
    Ok(disk.sync_dir(dir).failed("sync", dir)?)
}

/// A crash may have come between the end of an install and the removal of what was staged, or amid that. Only what a fetch
/// can go on with is left.
fn clear_staged(host: &Host, dir: &Path, staging: &Path) -> Result<(), InstallError> {
    let disk = &*host.disk;
    let goes_on = match Staged::open(Arc::clone(&host.disk), staging) {
        Ok(staged) => Some(staged.base().at.vlsn) > load_base(disk, dir)?.map(|base| base.at.vlsn),
        // `begin` goes first of what is removed.
        Err(_not_whole) => !matches!(Staging::resume(Arc::clone(&host.disk), staging), Ok(None)),
    };
    if !goes_on {
        discard(disk, staging)?;
    }
    Ok(())
}

/// At open: finishes an install that had begun, before anything else looks at the engine or the log.
pub(super) fn finish_install(
    host: &Host,
    config: LogConfig,
    dir: &Path,
    engine: &mut dyn Engine,
) -> Result<(), NodeError> {
    let disk = &*host.disk;
    let mut finish = || -> Result<(), InstallError> {
        let staging = dir.join(STAGING);
        let Some(intent) = Intent::load(disk, &config.dir)? else {
            clear_staged(host, dir, &staging)?;
            return Ok(());
        };
        let mut staged = Staged::open(Arc::clone(&host.disk), &staging)?;
        if staged.digest() != intent.digest {
            return Err(InstallError::Other { dir: staging });
        }
        let base = staged.base().clone();
        if base.group != config.group {
            return Err(InstallError::OtherGroup { found: base.group, ours: config.group });
        }
        log::warn!("the install of the snapshot at VLSN {} goes on", intent.at);
        engine.install(&mut staged).map_err(InstallError::Engine)?;
        // A log that stays is judged when it is opened, as ever.
        if intent.log == LogPart::Replaced {
            replace_log(host, &config, base.at)?;
        }
        store_base(disk, dir, &base)?;
        forget_mark(disk, dir)?;
        Intent::forget(disk, &config.dir)?;
        Ok(discard(disk, &staging)?)
    };
    finish().map_err(NodeError::Install)
}

#[cfg(test)]
mod tests;
