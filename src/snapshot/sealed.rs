//! Small files that are read only if they are whole: magic, version, three bytes of padding, CRC of all that follows.

use std::path::{Path, PathBuf};

use crate::base::BadBase;
use crate::disk::Disk;
use crate::engine::MAX_ITEM_NAME;
use crate::log::{IoFailure, read_whole};
use crate::snapshot::StagedItem;
use crate::wire::recovery::SnapshotPlace;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 12;
/// The longest file that is read: a manifest of as many items as there may be is far shorter.
const LIMIT: u64 = 64 << 20;

/// Why a snapshot can't be staged, or a staged one can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StageError {
    /// The system refused.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// There is no such file: what is staged is not whole.
    #[error("{path} does not exist: the snapshot there is not whole, and has to be fetched anew", path = path.display())]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
    /// A file of the staged form is damaged.
    #[error("{path} is damaged: remove the directory that it is in, and fetch the snapshot anew", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A later version of this software wrote it.
    #[error("{path} has format version {found}, and this software reads up to {VERSION}: upgrade it", path = path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u8,
    },
    /// The base that came with it.
    #[error("the snapshot's base can't be used: {0}")]
    Base(#[from] BadBase),
    /// A name that no item may have.
    #[error("item {item} has a name that no item may have: {name:?}")]
    Name {
        /// Which item.
        item: u32,
        /// The name.
        name: String,
    },
    /// More items than a snapshot may have.
    #[error("the snapshot has more than {} items", crate::snapshot::MAX_ITEMS)]
    Items,
    /// What came does not go on where the staged part ends.
    #[error(
        "the snapshot goes on at byte {} of item {}, but what is here ends at byte {} of item {}",
        got.offset, got.item, here.offset, here.item
    )]
    Place {
        /// Where the staged part ends.
        here: SnapshotPlace,
        /// Where what came stands.
        got: SnapshotPlace,
    },
    /// A piece of an item came while none, or another, was begun.
    #[error("a piece of item {item} came where an item's beginning or end belongs")]
    Order {
        /// The item.
        item: u32,
    },
    /// The bytes of an item are not what the provider read.
    #[error(
        "the bytes of item {item} ({name}) differ from what their provider read: fetch the snapshot anew"
    )]
    ItemDigest {
        /// Which item.
        item: u32,
        /// Its name.
        name: String,
    },
    /// The snapshot as a whole is not what its end says.
    #[error("the snapshot has {items} items of {bytes} bytes, and its end or its digest says otherwise")]
    Whole {
        /// Items here.
        items: u32,
        /// Bytes here.
        bytes: u64,
    },
}

pub(super) fn seal(magic: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
    out.extend_from_slice(body);
    out
}

/// What follows the head of a file; `None` if it does not exist.
pub(super) fn unseal(disk: &dyn Disk, path: &Path, magic: [u8; 4]) -> Result<Option<Vec<u8>>, StageError> {
    let Some(mut bytes) = read_whole(disk, path, LIMIT)? else { return Ok(None) };
    let damaged = || StageError::Damaged { path: path.to_path_buf() };
    let (head, body) = bytes.split_first_chunk::<HEAD_LEN>().ok_or_else(damaged)?;
    if head[..4] != magic {
        return Err(damaged());
    }
    if head[4] > VERSION {
        return Err(StageError::NewerVersion { path: path.to_path_buf(), found: head[4] });
    }
    if head[4] != VERSION || head[8..] != crc32fast::hash(body).to_le_bytes() {
        return Err(damaged());
    }
    bytes.drain(..HEAD_LEN);
    Ok(Some(bytes))
}

/// Reads fields; after the first that is not there, nothing is.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self, len: usize) -> Option<Vec<u8>> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken.to_vec())
    }

    pub fn name(&mut self) -> Option<String> {
        let [len] = self.take::<1>()?;
        let bytes = self.bytes(len as usize)?;
        String::from_utf8(bytes).ok().filter(|name| crate::engine::Item::is_name(name))
    }

    pub fn items(&mut self) -> Option<Vec<StagedItem>> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            let name = self.name()?;
            items.push(StagedItem { name, len: self.u64()?, digest: u128::from_le_bytes(self.take()?) });
        }
        Some(items)
    }

    /// The end of the file is reached.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

pub(super) fn put_name(out: &mut Vec<u8>, name: &str) {
    assert!(name.len() <= MAX_ITEM_NAME, "the name of an item was checked");
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

pub(super) fn put_items(out: &mut Vec<u8>, items: &[StagedItem]) {
    out.extend_from_slice(&(items.len() as u32).to_le_bytes());
    for item in items {
        put_name(out, &item.name);
        out.extend_from_slice(&item.len.to_le_bytes());
        out.extend_from_slice(&item.digest.to_le_bytes());
    }
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}
