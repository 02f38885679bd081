//! Bases: an engine's state at one VLSN, in the archive.

use std::io::{self, Cursor, Read};

use byteorder::{LE, ReadBytesExt};
use twox_hash::XxHash3_128;

use crate::archive::catalog::BaseObjects;
use crate::archive::dir::fill;
use crate::archive::object::{ObjectDamage, ReadError};
use crate::archive::{Archive, ArchiveError};
use crate::base::Base;
use crate::engine::{EngineError, EngineSnapshot, Item};
use crate::ids::{GroupId, Position, Term, Vlsn};
use crate::snapshot::{MAX_ITEMS, StagedItem, digest_of};

const MAGIC: &[u8; 8] = b"QRARBASE";
const VERSION: u32 = 1;
/// Magic, version, CRC.
const HEAD_LEN: usize = 16;
/// The longest manifest that is read: one of as many items as there may be is far shorter.
const LONGEST: usize = 64 << 20;

/// What the names of a base's objects begin with. The term is in it so that two masters never write the same objects: two
/// engines need not give the same bytes for the same state.
pub fn prefix(at: Vlsn, term: Term) -> String {
    format!("base/{:020}-{:010}/", at.get(), term.get())
}

/// The object that is put last, and makes the base whole.
pub fn manifest_name(at: Vlsn, term: Term) -> String {
    format!("{}manifest", prefix(at, term))
}

/// The object that holds an item, counted from 0.
pub fn item_name(at: Vlsn, term: Term, item: u32) -> String {
    format!("{}{item:05}.item", prefix(at, term))
}

/// Where a base stands, and who wrote it, by the name of one of its objects.
pub fn in_name(name: &str) -> Option<(Vlsn, Term)> {
    let (dir, _) = name.strip_prefix("base/")?.split_once('/')?;
    let (at, term) = dir.split_once('-')?;
    let (at, term) = (Vlsn::new(at.parse().ok()?)?, Term::new(term.parse().ok()?));
    name.starts_with(&prefix(at, term)).then_some((at, term))
}

/// What a base says of itself: its last object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// The timestamp of the entry at which it stands, or a later one, in microseconds since the epoch.
    pub time: u64,
    /// What the log before it says of the group.
    pub base: Base,
    /// The items: their objects are numbered in this order.
    pub items: Vec<StagedItem>,
}

/// Why a base could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The engine could not be read.
    #[error("the engine could not be copied: {0}")]
    Engine(EngineError),
    /// It has items that a snapshot may not have.
    #[error("the engine's snapshot has an item that is called {0:?}, or too many of them")]
    Item(String),
    /// Another node, which leads now, took it for one that nobody goes on with.
    #[error("parts of the base at VLSN {0} were removed while it was written: another node leads")]
    Removed(Vlsn),
    /// The archive refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl Manifest {
    /// What tells this state from every other, whoever gave it: the digest of the snapshot without the group's part.
    pub fn state_digest(&self) -> u128 {
        digest_of(&[], &self.items)
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.base.group
    }

    /// The entry at which it stands.
    pub fn at(&self) -> Position {
        self.base.at
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let base = self.base.encode();
        let mut body = Vec::new();
        body.extend_from_slice(&self.time.to_le_bytes());
        body.extend_from_slice(&(base.len() as u32).to_le_bytes());
        body.extend_from_slice(&base);
        body.extend_from_slice(&(self.items.len() as u32).to_le_bytes());
        for item in &self.items {
            body.push(item.name.len() as u8);
            body.extend_from_slice(item.name.as_bytes());
            body.extend_from_slice(&item.len.to_le_bytes());
            body.extend_from_slice(&item.digest.to_le_bytes());
        }
        body.extend_from_slice(&digest_of(&base, &self.items).to_le_bytes());
        let mut out = Vec::with_capacity(HEAD_LEN + body.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads the object's bytes.
    ///
    /// # Errors
    /// [`ObjectDamage`].
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ObjectDamage> {
        let (head, body) = bytes.split_first_chunk::<HEAD_LEN>().ok_or(ObjectDamage::NotOurs)?;
        if head[..8] != *MAGIC {
            return Err(ObjectDamage::NotOurs);
        }
        let mut fields = Cursor::new(&head[8..]);
        let version = fields.read_u32::<LE>().map_err(|_| ObjectDamage::Header)?;
        let crc = fields.read_u32::<LE>().map_err(|_| ObjectDamage::Header)?;
        if version > VERSION {
            return Err(ObjectDamage::NewerVersion(version));
        }
        if version != VERSION || crc != crc32fast::hash(body) {
            return Err(ObjectDamage::Header);
        }
        let mut from = Cursor::new(body);
        let (time, base, items, digest) = take(&mut from).map_err(|_| ObjectDamage::Header)?;
        if from.position() != body.len() as u64 || digest_of(&base, &items) != digest {
            return Err(ObjectDamage::Digest);
        }
        let base = Base::decode(&base).map_err(|error| ObjectDamage::Part(error.to_string()))?;
        Ok(Manifest { time, base, items })
    }

    /// Reads the manifest of a whole base.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(archive: &dyn Archive, base: &BaseObjects) -> Result<Manifest, ReadError> {
        let name = manifest_name(base.at, base.term);
        let damaged = |damage| ReadError::Damaged { object: name.clone(), damage };
        let mut bytes = Vec::new();
        let from = archive.open(&name)?;
        from.take(LONGEST as u64).read_to_end(&mut bytes).map_err(ArchiveError::io("read", &name))?;
        let manifest = Manifest::decode(&bytes).map_err(damaged)?;
        if manifest.at().vlsn != base.at {
            return Err(damaged(ObjectDamage::OtherPlace(manifest.at().vlsn)));
        }
        Ok(manifest)
    }
}

type Taken = (u64, Vec<u8>, Vec<StagedItem>, u128);

fn take(from: &mut Cursor<&[u8]>) -> io::Result<Taken> {
    let bytes = |from: &mut Cursor<&[u8]>, len: usize| -> io::Result<Vec<u8>> {
        let at = from.position() as usize;
        let taken =
            from.get_ref().get(at..at.saturating_add(len)).ok_or(io::ErrorKind::UnexpectedEof)?.to_vec();
        from.set_position((at + len) as u64);
        Ok(taken)
    };
    let time = from.read_u64::<LE>()?;
    let len = from.read_u32::<LE>()? as usize;
    let base = bytes(from, len)?;
    let count = from.read_u32::<LE>()?;
    let mut items = Vec::new();
    for _ in 0..count {
        let len = usize::from(from.read_u8()?);
        let name = String::from_utf8(bytes(from, len)?).map_err(io::Error::other)?;
        if !Item::is_name(&name) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        items.push(StagedItem { name, len: from.read_u64::<LE>()?, digest: from.read_u128::<LE>()? });
    }
    Ok((time, base, items, from.read_u128::<LE>()?))
}

/// Writes a base: every item an object, and the manifest last. `time`: of the entry at which it stands.
///
/// # Errors
/// [`MakeError`]; the base is then not whole, and counts for nothing.
pub fn write(
    archive: &dyn Archive,
    snapshot: &mut dyn EngineSnapshot,
    base: Base,
    term: Term,
    time: u64,
) -> Result<Manifest, MakeError> {
    let at = base.at.vlsn;
    let mut items = Vec::new();
    while let Some(item) = snapshot.next_item().map_err(MakeError::Engine)? {
        let number = items.len() as u32;
        if !Item::is_name(&item.name) || number >= MAX_ITEMS {
            return Err(MakeError::Item(item.name.chars().take(100).collect()));
        }
        let mut bytes = ItemBytes { snapshot: &mut *snapshot, len: 0, digest: XxHash3_128::new() };
        archive.put(&item_name(at, term, number), &mut bytes)?;
        items.push(StagedItem { name: item.name, len: bytes.len, digest: bytes.digest.finish_128() });
    }
    let manifest = Manifest { time, base, items };
    archive.put(&manifest_name(at, term), &mut &manifest.encode()[..])?;
    // Whoever removes what is unfinished removes the manifest also when the items are gone: so one of the two sees the other.
    let there = archive.list(&prefix(at, term))?;
    let kept = |(number, item): (usize, &StagedItem)| {
        let name = item_name(at, term, number as u32);
        there.binary_search_by(|object| object.name.cmp(&name)).is_ok_and(|at| there[at].len == item.len)
    };
    if !manifest.items.iter().enumerate().all(kept) {
        archive.remove(&manifest_name(at, term))?;
        return Err(MakeError::Removed(at));
    }
    Ok(manifest)
}

/// The bytes of a snapshot's present item.
struct ItemBytes<'a> {
    snapshot: &'a mut dyn EngineSnapshot,
    len: u64,
    digest: XxHash3_128,
}

impl Read for ItemBytes<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.snapshot.read(into).map_err(io::Error::other)?;
        self.digest.write(&into[..read]);
        self.len += read as u64;
        Ok(read)
    }
}

/// Reads an item of a base, and verifies it; `each` gets its bytes as they come, before the whole is known to be right.
///
/// # Errors
/// [`ReadError`], or what `each` says.
pub fn read_item<E: From<ReadError>>(
    archive: &dyn Archive,
    manifest: &Manifest,
    term: Term,
    number: u32,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let name = item_name(manifest.at().vlsn, term, number);
    let Some(item) = manifest.items.get(number as usize) else { return Ok(()) };
    let damaged = |damage| E::from(ReadError::Damaged { object: name.clone(), damage });
    let mut from = archive.open(&name).map_err(|error| {
        if error.is_missing() { damaged(ObjectDamage::Missing) } else { E::from(error.into()) }
    })?;
    let (mut digest, mut len) = (XxHash3_128::new(), 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = fill(&mut *from, &mut buffer).map_err(ArchiveError::io("read", &name));
        let read = read.map_err(|error| E::from(error.into()))?;
        if read == 0 {
            break;
        }
        len += read as u64;
        if len > item.len {
            return Err(damaged(ObjectDamage::Length));
        }
        digest.write(&buffer[..read]);
        each(&buffer[..read])?;
    }
    match len == item.len {
        false => Err(damaged(ObjectDamage::Length)),
        true if digest.finish_128() != item.digest => Err(damaged(ObjectDamage::Digest)),
        true => Ok(()),
    }
}
