//! The intent of an install: durable before anything is replaced, and gone when everything is.

use std::path::Path;

use crate::disk::Disk;
use crate::ids::Vlsn;
use crate::log::{Failed, INSTALL_NAME, write_whole};
use crate::snapshot::StageError;
use crate::snapshot::sealed::{Fields, seal, unseal};

const MAGIC: [u8; 4] = *b"QINS";

/// What an install does with the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogPart {
    /// It holds the snapshot's entry, or stands on it, and stays.
    Kept,
    /// It is replaced by an empty one that stands on the snapshot's entry.
    Replaced,
}

/// An install that has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intent {
    /// Which staged snapshot: [`Staged::digest`](crate::snapshot::Staged::digest).
    pub digest: u128,
    /// Where it stands.
    pub at: Vlsn,
    /// What becomes of the log.
    pub log: LogPart,
}

impl Intent {
    /// Makes the intent durable. It stands in the log's directory, so that nobody opens that as a plain one.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn store(&self, disk: &dyn Disk, log_dir: &Path) -> Result<(), StageError> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.digest.to_le_bytes());
        body.extend_from_slice(&self.at.get().to_le_bytes());
        body.push(match self.log {
            LogPart::Kept => 0,
            LogPart::Replaced => 1,
        });
        write_whole(disk, log_dir, INSTALL_NAME, &seal(MAGIC, &body))?;
        Ok(disk.sync_dir(log_dir).failed("sync", log_dir)?)
    }

    /// The intent in a log's directory, if there is one.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn load(disk: &dyn Disk, log_dir: &Path) -> Result<Option<Intent>, StageError> {
        let path = log_dir.join(INSTALL_NAME);
        let Some(body) = unseal(disk, &path, MAGIC)? else { return Ok(None) };
        let mut fields = Fields(&body);
        let mut read = || {
            let (digest, at) = (u128::from_le_bytes(fields.take()?), Vlsn::new(fields.u64()?)?);
            let log = match fields.take::<1>()? {
                [0] => LogPart::Kept,
                [1] => LogPart::Replaced,
                _ => return None,
            };
            fields.end()?;
            Some(Intent { digest, at, log })
        };
        read().map(Some).ok_or(StageError::Damaged { path })
    }

    /// Everything is in its place: the intent goes, durably. It is no error if it is gone already.
    ///
    /// # Errors
    /// [`StageError::Io`].
    pub fn forget(disk: &dyn Disk, log_dir: &Path) -> Result<(), StageError> {
        let path = log_dir.join(INSTALL_NAME);
        match disk.remove(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.failed("remove", &path)?,
        }
        Ok(disk.sync_dir(log_dir).failed("sync", log_dir)?)
    }
}
