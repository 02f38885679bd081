//! Trying an archive out: replaying what was restored into an engine, and digesting what that makes of it.

use std::path::Path;
use std::sync::Arc;

use twox_hash::XxHash3_128;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::engine::{Engine, EngineError};
use crate::ids::{GroupId, Vlsn, number};
use crate::log::scanner::{LogScanner, ScanError};
use crate::log::{FlushError, Log, LogConfig, OpenError};
use crate::snapshot::{STAGING, StageError, Staged, StagedItem, digest_of};

/// Why a restored directory could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The engine refused.
    #[error("the engine could not {action}: {source}")]
    Engine {
        /// What it was to do, as a verb.
        action: &'static str,
        /// What it said.
        source: EngineError,
    },
    /// The engine can't be copied, and so not be compared.
    #[error("the engine can't be copied, so its state can't be compared")]
    NoSnapshot,
    /// The copy stands elsewhere.
    #[error("the engine was brought to VLSN {to}, and its copy stands at {found}")]
    Elsewhere {
        /// Where it should stand.
        to: Vlsn,
        /// Where it does.
        found: Vlsn,
    },
    /// The staged base.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The log did not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The log did not close.
    #[error(transparent)]
    Close(#[from] FlushError),
}

/// Replays a directory that was restored and not opened yet into an empty engine, up to one entry, and digests the engine's
/// state there: comparable with [`Manifest::state_digest`](crate::archive::base::Manifest::state_digest) of a base that stands
/// there.
///
/// # Errors
/// [`DrillError`].
pub fn replay(
    disk: &Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    dir: &Path,
    group: GroupId,
    engine: &mut dyn Engine,
    to: Vlsn,
) -> Result<u128, DrillError> {
    let (log, _) = Log::open_to_install(Arc::clone(disk), clock, LogConfig::new(dir.join("log"), group))?;
    if log.base().is_some() {
        let mut staged = Staged::open(Arc::clone(disk), &dir.join(STAGING))?;
        engine.install(&mut staged).map_err(failed("install the base"))?;
    }
    let mut scanner = log.scanner();
    let mut applied = engine.applied().map_err(failed("tell what it has applied"))?;
    while applied < Some(to) {
        let left = u32::try_from(to.get() - number(applied)).unwrap_or(u32::MAX);
        let Some(run) = scanner.run(applied, left, 1 << 20)? else { break };
        engine.apply(run.entries()).map_err(failed("apply the log"))?;
        applied = Some(run.last.vlsn);
    }
    let digest = digest(engine, to)?;
    drop(scanner);
    log.close()?;
    Ok(digest)
}

fn failed(action: &'static str) -> impl Fn(EngineError) -> DrillError {
    move |source| DrillError::Engine { action, source }
}

/// The digest of the engine's items, as a base's manifest has it.
fn digest(engine: &mut dyn Engine, to: Vlsn) -> Result<u128, DrillError> {
    let copied = failed("be copied");
    let mut snapshot = engine.snapshot().map_err(&copied)?.ok_or(DrillError::NoSnapshot)?;
    if snapshot.at() != to {
        return Err(DrillError::Elsewhere { to, found: snapshot.at() });
    }
    let mut items = Vec::new();
    let mut buffer = vec![0; 256 << 10];
    while let Some(item) = snapshot.next_item().map_err(&copied)? {
        let (mut hash, mut len) = (XxHash3_128::new(), 0);
        loop {
            match snapshot.read(&mut buffer).map_err(&copied)? {
                0 => break,
                read => {
                    hash.write(&buffer[..read]);
                    len += read as u64;
                }
            }
        }
        items.push(StagedItem { name: item.name, len, digest: hash.finish_128() });
    }
    Ok(digest_of(&[], &items))
}
