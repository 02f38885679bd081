//! A whole staged snapshot: what its manifest says, and its items, checked once more while they are read.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use twox_hash::XxHash3_128;

use crate::base::Base;
use crate::disk::{Disk, DiskFile};
use crate::engine::{Item, Items};
use crate::ids::Vlsn;
use crate::log::{Failed, write_whole};
use crate::snapshot::StageError;
use crate::snapshot::sealed::{Fields, put_bytes, put_items, seal, unseal};

const MAGIC: [u8; 4] = *b"QSMF";
const NAME: &str = "manifest";

/// An item of a whole snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StagedItem {
    /// What the engine calls it.
    pub name: String,
    /// Bytes.
    pub len: u64,
    /// XXH3-128 of them.
    pub digest: u128,
}

/// The digest of a whole snapshot: XXH3-128 of the base's bytes and, for each item, of its name, a zero byte, its length and its
/// digest.
pub fn digest_of(base: &[u8], items: &[StagedItem]) -> u128 {
    let mut hash = XxHash3_128::new();
    hash.write(base);
    for item in items {
        hash.write(item.name.as_bytes());
        hash.write(&[0]);
        hash.write(&item.len.to_le_bytes());
        hash.write(&item.digest.to_le_bytes());
    }
    hash.finish_128()
}

/// The file that holds an item.
pub(super) fn item_path(dir: &Path, item: u32) -> PathBuf {
    dir.join(format!("{item:04}.item"))
}

/// A snapshot in a directory, whole: its manifest was written after everything was read back.
pub struct Staged {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    base: Base,
    digest: u128,
    items: Vec<StagedItem>,
    list: Vec<Item>,
}

impl Staged {
    /// Reads the manifest in `dir`, and verifies it, but not the items: whoever reads one verifies it.
    ///
    /// # Errors
    /// [`StageError`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Staged, StageError> {
        let path = dir.join(NAME);
        let body = unseal(&*disk, &path, MAGIC)?;
        let body = body.ok_or_else(|| StageError::Unfinished { path: path.clone() })?;
        let mut fields = Fields(&body);
        let mut read = || {
            let len = fields.u32()? as usize;
            let base = fields.bytes(len)?;
            let (items, digest) = (fields.items()?, u128::from_le_bytes(fields.take()?));
            fields.end()?;
            Some((base, items, digest))
        };
        let (base, items, digest) = read()
            .filter(|(base, items, digest)| digest_of(base, items) == *digest)
            .ok_or(StageError::Damaged { path })?;
        Ok(Staged::new(disk, dir.to_path_buf(), Base::decode(&base)?, digest, items))
    }

    fn new(disk: Arc<dyn Disk>, dir: PathBuf, base: Base, digest: u128, items: Vec<StagedItem>) -> Staged {
        let list = items.iter().map(|item| Item { name: item.name.clone(), len: Some(item.len) }).collect();
        Staged { disk, dir, base, digest, items, list }
    }

    /// Reads every item and compares it with its digest.
    ///
    /// # Errors
    /// [`StageError::ItemDigest`], or the disk's.
    pub fn verify(&self) -> Result<(), StageError> {
        let mut back = ReadBack::default();
        while !back.step(self)? {}
        Ok(())
    }

    /// The group as of the snapshot's entry.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// What tells this snapshot from every other.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// The items, with their digests.
    pub fn items(&self) -> &[StagedItem] {
        &self.items
    }
}

/// Bytes that are read back in one step.
const BUFFER: usize = 256 << 10;

/// How far the items of a staged snapshot were read back.
#[derive(Default)]
struct ReadBack {
    item: usize,
    reading: Option<Reading>,
    buffer: Vec<u8>,
}

impl ReadBack {
    /// Reads the next piece; whether that was all.
    fn step(&mut self, staged: &Staged) -> Result<bool, StageError> {
        let Some(item) = staged.items.get(self.item) else { return Ok(true) };
        let path = item_path(&staged.dir, self.item as u32);
        let mut reading = match self.reading.take() {
            Some(reading) => reading,
            None => staged.read(self.item).failed("open", &path)?,
        };
        self.buffer.resize(BUFFER, 0);
        match reading.read(item, &mut self.buffer) {
            Ok(0) => self.item += 1,
            Ok(_) => self.reading = Some(reading),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                return Err(StageError::ItemDigest { item: self.item as u32, name: item.name.clone() });
            }
            Err(error) => return Err(error).failed("read", &path)?,
        }
        Ok(false)
    }
}

/// A snapshot of which everything came, while it is read back.
pub struct Sealing {
    staged: Staged,
    base_bytes: Vec<u8>,
    back: ReadBack,
}

/// What a step of reading back leads to.
pub enum Sealed {
    /// There is more to be read.
    Not(Box<Sealing>),
    /// Everything is as it should be, and the manifest is durable.
    Whole(Box<Staged>),
}

impl Sealing {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        base_bytes: Vec<u8>,
        items: Vec<StagedItem>,
    ) -> Result<Box<Sealing>, StageError> {
        let base = Base::decode(&base_bytes)?;
        let digest = digest_of(&base_bytes, &items);
        let staged = Staged::new(disk, dir, base, digest, items);
        Ok(Box::new(Sealing { staged, base_bytes, back: ReadBack::default() }))
    }

    /// Reads a piece back and compares it with what it should be; behind the last, makes the manifest durable.
    ///
    /// # Errors
    /// [`StageError`]: then nothing of it may be used.
    pub fn step(mut self: Box<Self>) -> Result<Sealed, StageError> {
        if !self.back.step(&self.staged)? {
            return Ok(Sealed::Not(self));
        }
        let Sealing { staged, base_bytes, .. } = *self;
        let mut body = Vec::new();
        put_bytes(&mut body, &base_bytes);
        put_items(&mut body, &staged.items);
        body.extend_from_slice(&staged.digest.to_le_bytes());
        let dir = &staged.dir;
        write_whole(&*staged.disk, dir, NAME, &seal(MAGIC, &body))?;
        staged.disk.sync_dir(dir).failed("sync", dir)?;
        Ok(Sealed::Whole(Box::new(staged)))
    }
}

impl Staged {
    fn read(&self, at: usize) -> io::Result<Reading> {
        let file = self.disk.open(&item_path(&self.dir, at as u32))?;
        Ok(Reading { file, offset: 0, hash: XxHash3_128::new() })
    }
}

impl Items for Staged {
    fn at(&self) -> Vlsn {
        self.base.at.vlsn
    }

    fn list(&self) -> &[Item] {
        &self.list
    }

    fn open(&self, at: usize) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(Checked { item: &self.items[at], reading: self.read(at)? }))
    }
}

/// Reads an item, and fails where it is shorter than it should be, or at its end if its digest differs.
struct Checked<'a> {
    item: &'a StagedItem,
    reading: Reading,
}

impl Read for Checked<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reading.read(self.item, into)
    }
}

struct Reading {
    file: Arc<dyn DiskFile>,
    offset: u64,
    hash: XxHash3_128,
}

impl Reading {
    fn read(&mut self, item: &StagedItem, into: &mut [u8]) -> io::Result<usize> {
        let left = item.len - self.offset;
        let most = (into.len() as u64).min(left) as usize;
        if most > 0 {
            let read = self.file.read_at(&mut into[..most], self.offset)?;
            if read == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "a staged item is shorter than it was",
                ));
            }
            self.hash.write(&into[..read]);
            self.offset += read as u64;
            if self.offset < item.len {
                return Ok(read);
            }
            self.check(item)?;
            return Ok(read);
        }
        if left == 0 {
            self.check(item)?;
        }
        Ok(0)
    }

    /// With the last bytes, before they are handed out: some readers never ask for the end.
    fn check(&self, item: &StagedItem) -> io::Result<()> {
        if self.hash.finish_128() == item.digest {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a staged item's digest does not fit"))
    }
}
