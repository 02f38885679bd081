//! A snapshot on its way into a directory: what came is written where it belongs, what is synced is remembered.
//!
//! `begin` says which snapshot it is, `progress` what of it is on the disk, at last `manifest` that all of it is. Items are
//! files by number: their names come from elsewhere and are no paths.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::Base;
use crate::disk::{Disk, DiskFile};
use crate::engine::Item;
use crate::log::{Failed, create_anew, write_whole};
use crate::snapshot::manifest::{Sealed, Sealing, digest_of, item_path};
use crate::snapshot::sealed::{Fields, put_bytes, put_items, put_name, seal, unseal};
use crate::snapshot::{StageError, Staged, StagedItem};
use crate::wire::recovery::{SnapshotEnd, SnapshotId, SnapshotPlace};

const BEGIN: &str = "begin";
const BEGIN_MAGIC: [u8; 4] = *b"QSBG";
const PROGRESS: &str = "progress";
const PROGRESS_MAGIC: [u8; 4] = *b"QSPR";
/// As many items as a snapshot may have.
pub const MAX_ITEMS: u32 = 65_536;

/// What the end of a snapshot says of the whole.
pub type Whole = SnapshotEnd;

/// A snapshot that is being staged. One at a time for each directory.
pub struct Staging {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: SnapshotId,
    base_bytes: Vec<u8>,
    base: Base,
    done: Vec<StagedItem>,
    current: Option<Current>,
    /// Of a current item's name that was read from `progress`, or came with it.
    synced: SnapshotPlace,
    /// Bytes of the items that are done.
    bytes: u64,
}

/// The item that is being written.
struct Current {
    name: String,
    file: Arc<dyn DiskFile>,
    offset: u64,
}

impl Staging {
    /// Begins a snapshot: whatever was in the directory is dropped.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn begin(
        disk: Arc<dyn Disk>,
        dir: &Path,
        id: SnapshotId,
        base_bytes: &[u8],
    ) -> Result<Staging, StageError> {
        let base = Base::decode(base_bytes)?;
        discard(&*disk, dir)?;
        disk.create_dir(dir).failed("create", dir)?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent).failed("sync", parent)?;
        }
        let mut body = Vec::new();
        for number in [id.incarnation, id.session, id.number] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        put_bytes(&mut body, base_bytes);
        write_whole(&*disk, dir, BEGIN, &seal(BEGIN_MAGIC, &body))?;
        disk.sync_dir(dir).failed("sync", dir)?;
        let (dir, base_bytes) = (dir.to_path_buf(), base_bytes.to_vec());
        let synced = SnapshotPlace::default();
        Ok(Staging { disk, dir, id, base_bytes, base, done: Vec::new(), current: None, synced, bytes: 0 })
    }

    /// Goes on with what an earlier attempt, perhaps of an earlier process, had synced; `None` if there is nothing to go on
    /// with. What was written behind that is written again.
    ///
    /// # Errors
    /// [`StageError`]: then [`begin`](Staging::begin) anew.
    pub fn resume(disk: Arc<dyn Disk>, dir: &Path) -> Result<Option<Staging>, StageError> {
        let path = dir.join(BEGIN);
        let Some(body) = unseal(&*disk, &path, BEGIN_MAGIC)? else { return Ok(None) };
        let mut fields = Fields(&body);
        let mut read = || {
            let id = SnapshotId { incarnation: fields.u64()?, session: fields.u64()?, number: fields.u64()? };
            let len = fields.u32()? as usize;
            let base = fields.bytes(len)?;
            fields.end()?;
            Some((id, base))
        };
        let (id, base_bytes) = read().ok_or(StageError::Damaged { path })?;
        let base = Base::decode(&base_bytes)?;
        let path = dir.join(PROGRESS);
        let (done, current) = match unseal(&*disk, &path, PROGRESS_MAGIC)? {
            None => (Vec::new(), None),
            Some(body) => {
                let mut fields = Fields(&body);
                let mut read = || {
                    let done = fields.items()?;
                    let current = match fields.take::<1>()? {
                        [0] => None,
                        _ => Some((fields.name()?, fields.u64()?)),
                    };
                    fields.end()?;
                    Some((done, current))
                };
                read().ok_or(StageError::Damaged { path })?
            }
        };
        let item = done.len() as u32;
        let current = match current {
            None => None,
            Some((name, offset)) => {
                let path = item_path(dir, item);
                let file = disk.open(&path).failed("open", &path)?;
                Some(Current { name, file, offset })
            }
        };
        let synced = SnapshotPlace { item, offset: current.as_ref().map_or(0, |current| current.offset) };
        let bytes = done.iter().map(|item| item.len).sum();
        let dir = dir.to_path_buf();
        Ok(Some(Staging { disk, dir, id, base_bytes, base, done, current, synced, bytes }))
    }

    /// Which snapshot it is.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The group as of the snapshot's entry.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The bytes of that, as they came.
    pub fn base_bytes(&self) -> &[u8] {
        &self.base_bytes
    }

    /// Up to where everything is written.
    pub fn place(&self) -> SnapshotPlace {
        SnapshotPlace {
            item: self.done.len() as u32,
            offset: self.current.as_ref().map_or(0, |current| current.offset),
        }
    }

    /// Up to where everything is on the disk.
    pub fn synced(&self) -> SnapshotPlace {
        self.synced
    }

    /// Bytes of items that are written.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.current.as_ref().map_or(0, |current| current.offset)
    }

    /// An item begins, or goes on after a resume.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn item(&mut self, item: u32, name: &str) -> Result<(), StageError> {
        let here = self.place();
        if item != here.item {
            return Err(StageError::Place { here, got: SnapshotPlace { item, offset: 0 } });
        }
        if !Item::is_name(name) {
            return Err(StageError::Name { item, name: name.chars().take(100).collect() });
        }
        if item >= MAX_ITEMS {
            return Err(StageError::Items);
        }
        match &self.current {
            Some(current) if current.name == name => Ok(()),
            Some(_) => Err(StageError::Order { item }),
            None => {
                let file = create_anew(&*self.disk, &item_path(&self.dir, item), 0)?;
                self.current = Some(Current { name: name.to_owned(), file, offset: 0 });
                Ok(())
            }
        }
    }

    /// Writes bytes of the present item behind what is there.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn chunk(&mut self, at: SnapshotPlace, bytes: &[u8]) -> Result<(), StageError> {
        let here = self.place();
        let Some(current) = &mut self.current else { return Err(StageError::Order { item: at.item }) };
        let end = at.offset.checked_add(bytes.len() as u64);
        let Some(end) = end.filter(|_| at == here) else {
            return Err(StageError::Place { here, got: at });
        };
        let path = item_path(&self.dir, at.item);
        current.file.write_at(&[IoSlice::new(bytes)], at.offset).failed("write", &path)?;
        current.offset = end;
        Ok(())
    }

    /// The present item ends. Its digest is compared when everything is there.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn item_end(&mut self, at: SnapshotPlace, digest: u128) -> Result<(), StageError> {
        let here = self.place();
        if self.current.is_none() {
            return Err(StageError::Order { item: at.item });
        }
        if at != here {
            return Err(StageError::Place { here, got: at });
        }
        if let Some(current) = self.current.take() {
            let path = item_path(&self.dir, at.item);
            current.file.sync().failed("sync", &path)?;
            self.done.push(StagedItem { name: current.name, len: current.offset, digest });
            self.bytes += current.offset;
        }
        Ok(())
    }

    /// Makes what is written durable, and that it is; returns up to where.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn sync(&mut self) -> Result<SnapshotPlace, StageError> {
        let place = self.place();
        if place == self.synced {
            return Ok(place);
        }
        if let Some(current) = &self.current {
            let path = item_path(&self.dir, place.item);
            current.file.sync().failed("sync", &path)?;
        }
        self.disk.sync_dir(&self.dir).failed("sync", &self.dir)?;
        let mut body = Vec::new();
        put_items(&mut body, &self.done);
        match &self.current {
            None => body.push(0),
            Some(current) => {
                body.push(1);
                put_name(&mut body, &current.name);
                body.extend_from_slice(&current.offset.to_le_bytes());
            }
        }
        write_whole(&*self.disk, &self.dir, PROGRESS, &seal(PROGRESS_MAGIC, &body))?;
        self.disk.sync_dir(&self.dir).failed("sync", &self.dir)?;
        self.synced = place;
        Ok(place)
    }

    /// Everything came: reads all back, compares it with its digests, and makes the manifest durable.
    ///
    /// # Errors
    /// [`StageError`]: then nothing of it may be used.
    pub fn finish(self, end: &Whole) -> Result<Staged, StageError> {
        let mut sealing = self.end(end)?;
        loop {
            match sealing.step()? {
                Sealed::Not(more) => sealing = more,
                Sealed::Whole(staged) => return Ok(*staged),
            }
        }
    }

    /// Everything came: makes it durable. What is left is to read it back.
    ///
    /// # Errors
    /// [`StageError`]: then nothing of it may be used.
    pub fn end(mut self, end: &Whole) -> Result<Box<Sealing>, StageError> {
        if let Some(current) = &self.current {
            log::debug!("item {} has not ended", current.name);
            return Err(StageError::Order { item: self.done.len() as u32 });
        }
        self.sync()?;
        let found = Whole {
            items: self.done.len() as u32,
            bytes: self.bytes,
            digest: digest_of(&self.base_bytes, &self.done),
        };
        if found != *end {
            return Err(StageError::Whole { items: found.items, bytes: found.bytes });
        }
        Sealing::new(self.disk, self.dir, self.base_bytes, self.done)
    }
}

/// Removes a staged snapshot, whole or not. `begin` goes first, then the manifest: what is left is taken neither for one that can
/// go on nor for a whole one.
///
/// # Errors
/// [`StageError::Io`].
pub fn discard(disk: &dyn Disk, dir: &Path) -> Result<(), StageError> {
    let mut names = match disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.failed("list", dir)?,
    };
    if names.is_empty() {
        return Ok(());
    }
    // `begin`, `manifest` and `progress` before the items they speak of, durably.
    names.sort_by_key(|name| name.ends_with(".item"));
    let mut synced = false;
    for name in names {
        if name.ends_with(".item") && !synced {
            disk.sync_dir(dir).failed("sync", dir)?;
            synced = true;
        }
        let path = dir.join(&name);
        disk.remove(&path).failed("remove", &path)?;
    }
    Ok(disk.sync_dir(dir).failed("sync", dir)?)
}

#[cfg(test)]
mod tests;
