//! A key-value store on redb whose writes come through the replicated log.
//!
//! The store keeps the VLSN of the last applied entry in the same redb transaction as the data. So wherever a crash
//! hits, what redb finds afterwards is the store as of one exact entry, and replay goes on with the next.
//!
//! With each value goes its version: the VLSN of the entry that wrote it. Whether a conditional write is done is decided
//! where it stands in the log, by the version that the key has there, so that every node decides alike.

#[path = "kv_record.rs"]
mod record;
#[path = "kv_snapshot.rs"]
mod snapshot;

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate::engine::{Engine, EngineError, EngineSnapshot, Items};
use quorate::entry::{Entries, EntryKind};
use quorate::ids::{Vlsn, number};
pub use record::{BadRecord, Record};
use redb::{
    Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition,
};

/// A key's version and its value.
type Versioned = (u64, &'static [u8]);

const DATA: TableDefinition<'_, &[u8], Versioned> = TableDefinition::new("data");
const POSITION: TableDefinition<'_, &str, u64> = TableDefinition::new("position");
const APPLIED: &str = "applied";
/// How long a snapshot of the store would be.
const BYTES: &str = "bytes";

/// Bytes of the store that are kept in memory.
const CACHE: usize = 64 << 20;

/// So many verdicts on conditional writes are kept for the writers who wait for them.
const MAX_VERDICTS: usize = 8192;

/// An entry that the store refuses: the log and the store do not belong together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// The entry does not follow the last applied one.
    #[error("VLSN {found} comes where the store expects VLSN {expected}")]
    Order {
        /// Which entry is next.
        expected: Vlsn,
        /// Which came.
        found: u64,
    },
    /// The entry's payload is no record.
    #[error("VLSN {at} holds no record: {why}")]
    Record {
        /// The entry.
        at: Vlsn,
        /// What is wrong.
        why: BadRecord,
    },
}

/// What a store holds, for comparing stores.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Contents {
    /// Keys.
    pub records: u64,
    /// Bytes in keys and values.
    pub bytes: u64,
    /// The last applied entry.
    pub applied: Option<Vlsn>,
    /// The sum of the SipHashes of all pairs of key and value, whatever their order. Contents compare by it if the same
    /// build of this program made both.
    pub hash: u64,
    /// The same sum over keys and versions. Zero for contents that were not read from a store.
    pub versions: u64,
}

impl Contents {
    /// Adds a pair whose key was not there.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = self.hash.wrapping_add(hash(&[key, value]));
    }

    fn add_version(&mut self, key: &[u8], version: u64) {
        self.versions = self.versions.wrapping_add(hash(&[key, &version.to_le_bytes()]));
    }

    /// Adds pairs whose keys were not there.
    pub fn merge(&mut self, other: &Contents) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.hash = self.hash.wrapping_add(other.hash);
    }

    /// Whether both hold the same records, as of whichever entry.
    pub fn same_records(&self, other: &Contents) -> bool {
        (self.records, self.bytes, self.hash) == (other.records, other.bytes, other.hash)
    }
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    }
    hasher.finish()
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents { records, bytes, applied, hash, versions: _ } = self;
        write!(f, "{hash:016x} ({records} records, {bytes} bytes, applied {})", number(*applied))
    }
}

/// What became of a conditional write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The key had the version expected, and has the new value.
    Done,
    /// The key had another version, and nothing was changed.
    Differs {
        /// The version; `None`: the key was not there.
        found: Option<Vlsn>,
    },
}

/// The verdicts on the latest conditional writes, in the order of the log.
#[derive(Default)]
struct Verdicts(Mutex<VecDeque<(Vlsn, Verdict)>>);

impl Verdicts {
    fn add(&self, new: Vec<(Vlsn, Verdict)>) {
        let mut kept = self.0.lock();
        let excess = (kept.len() + new.len()).saturating_sub(MAX_VERDICTS).min(kept.len());
        kept.drain(..excess);
        kept.extend(new);
    }

    fn on(&self, vlsn: Vlsn) -> Option<Verdict> {
        let kept = self.0.lock();
        let at = kept.binary_search_by_key(&vlsn, |(at, _)| *at).ok()?;
        kept.get(at).map(|(_, verdict)| *verdict)
    }
}

/// The store: the side that the node applies entries to. There is one for a database.
pub struct Kv {
    db: Arc<Database>,
    applied: Option<Vlsn>,
    verdicts: Arc<Verdicts>,
}

/// The side that reads. Cheap to clone; any thread.
#[derive(Clone)]
pub struct Reader {
    db: Arc<Database>,
    verdicts: Arc<Verdicts>,
}

impl Kv {
    /// Opens the store in this file, or makes a new one.
    ///
    /// # Errors
    /// The database's, for instance if another process has it open.
    pub fn open(path: &Path) -> Result<Kv, EngineError> {
        if !path.try_exists()? {
            create(path)?;
        }
        let db = Database::builder().set_cache_size(CACHE).create(path)?;
        let first = db.begin_write()?;
        first.open_table(DATA)?;
        let applied = first.open_table(POSITION)?.get(APPLIED)?.map_or(0, |stored| stored.value());
        first.commit()?;
        Ok(Kv { db: Arc::new(db), applied: Vlsn::new(applied), verdicts: Arc::default() })
    }

    /// A handle for reading.
    #[allow(dead_code, reason = "the command reads closed stores; the example and the tests read open ones")]
    pub fn reader(&self) -> Reader {
        Reader { db: Arc::clone(&self.db), verdicts: Arc::clone(&self.verdicts) }
    }

    fn apply_all(&self, entries: Entries<'_>) -> Result<Option<Vlsn>, EngineError> {
        let mut txn = self.db.begin_write()?;
        // What this commit leaves out, the next checkpoint makes durable; a crash before that is replayed from the log.
        txn.set_durability(Durability::None)?;
        let (mut applied, mut verdicts) = (self.applied, Vec::new());
        {
            let (mut data, mut position) = (txn.open_table(DATA)?, txn.open_table(POSITION)?);
            let mut bytes = position.get(BYTES)?.map_or(0, |stored| stored.value());
            for entry in entries.iter() {
                let next = Vlsn::after(applied);
                if entry.header().vlsn != Some(next) {
                    let found = number(entry.header().vlsn);
                    return Err(Refused::Order { expected: next, found }.into());
                }
                if entry.kind() == EntryKind::DATA {
                    let record =
                        Record::decode(entry.payload()).map_err(|why| Refused::Record { at: next, why })?;
                    if let Some(verdict) = change(&mut data, record, next, &mut bytes)? {
                        verdicts.push((next, verdict));
                    }
                }
                applied = Some(next);
            }
            position.insert(APPLIED, number(applied))?;
            position.insert(BYTES, bytes)?;
        }
        txn.commit()?;
        // Before the node tells that the entries are applied, which is when their writers ask.
        self.verdicts.add(verdicts);
        Ok(applied)
    }
}

/// Makes a new store under another name first: who dies while redb begins one leaves a file that redb refuses.
fn create(path: &Path) -> Result<(), EngineError> {
    let new = path.with_extension("new");
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    drop(Database::create(&new)?);
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Makes the change of the entry at `at`, and judges it if it is a conditional one.
fn change(
    data: &mut Table<'_, &[u8], Versioned>,
    record: Record<'_>,
    at: Vlsn,
    bytes: &mut u64,
) -> Result<Option<Verdict>, redb::StorageError> {
    let mut put = |data: &mut Table<'_, &[u8], Versioned>, key: &[u8], value: &[u8]| {
        let before = data.insert(key, (at.get(), value))?.map(|stored| stored.value().1.len());
        *bytes = (*bytes + snapshot::len(key.len(), value.len()))
            .saturating_sub(before.map_or(0, |before| snapshot::len(key.len(), before)));
        Ok::<(), redb::StorageError>(())
    };
    match record {
        Record::Put { key, value } => put(data, key, value).map(|()| None),
        Record::Delete { key } => {
            let before = data.remove(key)?.map(|stored| stored.value().1.len());
            *bytes = bytes.saturating_sub(before.map_or(0, |before| snapshot::len(key.len(), before)));
            Ok(None)
        }
        Record::Cas { key, expected, value } => {
            let found = data.get(key)?.and_then(|stored| Vlsn::new(stored.value().0));
            if found != expected {
                return Ok(Some(Verdict::Differs { found }));
            }
            put(data, key, value)?;
            Ok(Some(Verdict::Done))
        }
    }
}

impl Engine for Kv {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.applied)
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        self.applied = self.apply_all(entries)?;
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        let mut txn = self.db.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        txn.commit()?;
        Ok(self.applied)
    }

    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        Ok(snapshot::Frozen::of(&self.db)?.map(|frozen| Box::new(frozen) as Box<dyn EngineSnapshot>))
    }

    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        snapshot::install(&self.db, items)?;
        self.applied = Some(items.at());
        // Verdicts on entries that the snapshot holds are not known here.
        self.verdicts.0.lock().clear();
        Ok(())
    }
}

impl Reader {
    /// The value of a key, and its version.
    ///
    /// # Errors
    /// The database's.
    #[allow(dead_code, reason = "the example reads whole stores")]
    pub fn value(&self, key: &[u8]) -> Result<Option<(Vlsn, Vec<u8>)>, EngineError> {
        let data = self.db.begin_read()?.open_table(DATA)?;
        Ok(data.get(key)?.and_then(|stored| {
            let (version, value) = stored.value();
            Some((Vlsn::new(version)?, value.to_vec()))
        }))
    }

    /// The verdict on the conditional write at this place of the log, which this store has applied; `None` if it was
    /// another kind of write, or too many conditional ones followed it.
    #[allow(dead_code, reason = "the example writes unconditionally")]
    pub fn verdict(&self, at: Vlsn) -> Option<Verdict> {
        self.verdicts.on(at)
    }

    /// Reads the whole store, as of one moment.
    ///
    /// # Errors
    /// The database's.
    #[allow(dead_code, reason = "the command reads closed stores; the example and the tests read open ones")]
    pub fn contents(&self) -> Result<Contents, EngineError> {
        whole(&self.db.begin_read()?)
    }
}

/// Reads the whole store in this file, which nobody has open.
///
/// # Errors
/// The database's, for instance if there is no store or it was not closed.
#[allow(dead_code, reason = "for comparing files; the example has its stores open")]
pub fn contents_of(path: &Path) -> Result<Contents, EngineError> {
    whole(&ReadOnlyDatabase::open(path)?.begin_read()?)
}

fn whole(txn: &ReadTransaction) -> Result<Contents, EngineError> {
    let applied = txn.open_table(POSITION)?.get(APPLIED)?.map_or(0, |stored| stored.value());
    let mut contents = Contents { applied: Vlsn::new(applied), ..Contents::default() };
    for pair in txn.open_table(DATA)?.iter()? {
        let (key, value) = pair?;
        let (version, value) = value.value();
        contents.add(key.value(), value);
        contents.add_version(key.value(), version);
    }
    Ok(contents)
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
