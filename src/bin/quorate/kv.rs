//! A key-value store on redb whose writes come through the replicated log.
//!
//! The store keeps the VLSN of the last applied entry in the same redb transaction as the data. So wherever a crash
//! hits, what redb finds afterwards is the store as of one exact entry, and replay goes on with the next.
//!
//! A record is the payload of one entry of kind DATA:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | operation: 1 put, 2 delete |
//! | 1 | 4 | length of the key, little-endian |
//! | 5 | n | key |
//! | 5 + n | rest | value; empty for a delete |

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::sync::Arc;

use quorate::engine::{Engine, EngineError};
use quorate::entry::{Entries, EntryKind};
use quorate::ids::{Vlsn, number};
use redb::{
    Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, Table,
    TableDefinition,
};

const DATA: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");
const POSITION: TableDefinition<'_, &str, u64> = TableDefinition::new("position");
const APPLIED: &str = "applied";

const PUT: u8 = 1;
const DELETE: u8 = 2;
const HEAD: usize = 5;

/// One change of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// Sets a key.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: &'a [u8],
    },
}

/// Why a payload is no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    /// Shorter than it says.
    #[error("the record is cut short: {present} bytes, {needed} needed")]
    Short {
        /// Bytes there.
        present: usize,
        /// Bytes that it needs.
        needed: usize,
    },
    /// An operation that is not known.
    #[error("the record has the unknown operation {0}")]
    Operation(u8),
    /// A delete with a value.
    #[error("a delete carries {0} bytes of value")]
    ValueOfDelete(usize),
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (operation, key, value): (u8, &[u8], &[u8]) = match *self {
            Record::Put { key, value } => (PUT, key, value),
            Record::Delete { key } => (DELETE, key, &[]),
        };
        out.push(operation);
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(value);
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`BadRecord`].
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, BadRecord> {
        let short = |needed| BadRecord::Short { present: bytes.len(), needed };
        let Some((&[operation, a, b, c, d], rest)) = bytes.split_first_chunk::<HEAD>() else {
            return Err(short(HEAD));
        };
        let key_len = u32::from_le_bytes([a, b, c, d]) as usize;
        let (key, value) = rest.split_at_checked(key_len).ok_or_else(|| short(HEAD + key_len))?;
        match operation {
            PUT => Ok(Record::Put { key, value }),
            DELETE if value.is_empty() => Ok(Record::Delete { key }),
            DELETE => Err(BadRecord::ValueOfDelete(value.len())),
            other => Err(BadRecord::Operation(other)),
        }
    }
}

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
}

impl Contents {
    /// Adds a pair whose key was not there.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let mut hasher = DefaultHasher::new();
        for part in [key, value] {
            hasher.write_u64(part.len() as u64);
            hasher.write(part);
            self.bytes += part.len() as u64;
        }
        self.records += 1;
        self.hash = self.hash.wrapping_add(hasher.finish());
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

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contents { records, bytes, applied, hash } = self;
        write!(f, "{hash:016x} ({records} records, {bytes} bytes, applied {})", number(*applied))
    }
}

/// The store: the side that the node applies entries to. There is one for a database.
pub struct Kv {
    db: Arc<Database>,
    applied: Option<Vlsn>,
}

/// The side that reads. Cheap to clone; any thread.
#[derive(Clone)]
pub struct Reader {
    db: Arc<Database>,
}

impl Kv {
    /// Opens the store in this file, or makes a new one.
    ///
    /// # Errors
    /// The database's, for instance if another process has it open.
    pub fn open(path: &Path) -> Result<Kv, EngineError> {
        let db = Database::create(path)?;
        let first = db.begin_write()?;
        first.open_table(DATA)?;
        let applied = first.open_table(POSITION)?.get(APPLIED)?.map_or(0, |stored| stored.value());
        first.commit()?;
        Ok(Kv { db: Arc::new(db), applied: Vlsn::new(applied) })
    }

    /// A handle for reading.
    #[allow(dead_code, reason = "the command reads closed stores; the example and the tests read open ones")]
    pub fn reader(&self) -> Reader {
        Reader { db: Arc::clone(&self.db) }
    }

    fn apply_all(&self, entries: Entries<'_>) -> Result<Option<Vlsn>, EngineError> {
        let mut txn = self.db.begin_write()?;
        // What this commit leaves out, the next checkpoint makes durable; a crash before that is replayed from the log.
        txn.set_durability(Durability::None)?;
        let mut applied = self.applied;
        {
            let mut data = txn.open_table(DATA)?;
            for entry in entries.iter() {
                let next = Vlsn::after(applied);
                if entry.header().vlsn != Some(next) {
                    let found = number(entry.header().vlsn);
                    return Err(Refused::Order { expected: next, found }.into());
                }
                if entry.kind() == EntryKind::DATA {
                    let record =
                        Record::decode(entry.payload()).map_err(|why| Refused::Record { at: next, why })?;
                    change(&mut data, record)?;
                }
                applied = Some(next);
            }
            txn.open_table(POSITION)?.insert(APPLIED, number(applied))?;
        }
        txn.commit()?;
        Ok(applied)
    }
}

fn change(data: &mut Table<'_, &[u8], &[u8]>, record: Record<'_>) -> Result<(), redb::StorageError> {
    match record {
        Record::Put { key, value } => data.insert(key, value).map(drop),
        Record::Delete { key } => data.remove(key).map(drop),
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
}

impl Reader {
    /// The value of a key.
    ///
    /// # Errors
    /// The database's.
    #[allow(dead_code, reason = "the command reads closed stores; the example and the tests read open ones")]
    pub fn value(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let data = self.db.begin_read()?.open_table(DATA)?;
        Ok(data.get(key)?.map(|value| value.value().to_vec()))
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
        contents.add(key.value(), value.value());
    }
    Ok(contents)
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
