//! The store as a snapshot: one item, the records in the order of their keys, each as length and bytes of the key, version,
//! length and bytes of the value, numbers little-endian.

use std::io::{BufReader, Read};

use quorate::engine::{EngineError, EngineSnapshot, Item, Items};
use quorate::ids::Vlsn;
use redb::{Database, Durability, Range, ReadableDatabase};

use super::{APPLIED, BYTES, DATA, POSITION, Versioned};

const RECORDS: &str = "records";
/// No key or value is longer: an entry has room for both.
const LONGEST: u32 = 1 << 30;

/// The store as of one entry. It is a read transaction: what is written meanwhile goes to other pages.
pub(super) struct Frozen {
    at: Vlsn,
    records: Range<'static, &'static [u8], Versioned>,
    /// How long it will be.
    len: u64,
    begun: bool,
    /// A record that did not fit, from `taken` on.
    record: Vec<u8>,
    taken: usize,
}

impl Frozen {
    /// The store as it is; `None` if nothing was applied to it.
    pub(super) fn of(db: &Database) -> Result<Option<Frozen>, EngineError> {
        let txn = db.begin_read()?;
        let position = txn.open_table(POSITION)?;
        let applied = position.get(APPLIED)?.map_or(0, |stored| stored.value());
        let len = position.get(BYTES)?.map_or(0, |stored| stored.value());
        let Some(at) = Vlsn::new(applied) else { return Ok(None) };
        let records = txn.open_table(DATA)?.range::<&[u8]>(..)?;
        Ok(Some(Frozen { at, records, len, begun: false, record: Vec::new(), taken: 0 }))
    }

    fn next_record(&mut self) -> Result<bool, EngineError> {
        let Some(pair) = self.records.next() else { return Ok(false) };
        let (key, value) = pair?;
        let (key, (version, value)) = (key.value(), value.value());
        self.record.clear();
        self.taken = 0;
        self.record.extend_from_slice(&u32::try_from(key.len())?.to_le_bytes());
        self.record.extend_from_slice(key);
        self.record.extend_from_slice(&version.to_le_bytes());
        self.record.extend_from_slice(&u32::try_from(value.len())?.to_le_bytes());
        self.record.extend_from_slice(value);
        Ok(true)
    }
}

impl EngineSnapshot for Frozen {
    fn at(&self) -> Vlsn {
        self.at
    }

    fn bytes(&self) -> Option<u64> {
        Some(self.len)
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        if std::mem::replace(&mut self.begun, true) {
            return Ok(None);
        }
        Ok(Some(Item { name: RECORDS.to_owned(), len: Some(self.len) }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let mut filled = 0;
        while filled < into.len() {
            if self.taken == self.record.len() && !self.next_record()? {
                break;
            }
            let left = &self.record[self.taken..];
            let part = left.len().min(into.len() - filled);
            into[filled..filled + part].copy_from_slice(&left[..part]);
            self.taken += part;
            filled += part;
        }
        Ok(filled)
    }
}

/// Replaces the store's records by those of a snapshot, in one transaction.
pub(super) fn install(db: &Database, items: &mut dyn Items) -> Result<(), EngineError> {
    let [item] = items.list() else { return Err("the snapshot is not one of this store".into()) };
    if item.name != RECORDS {
        return Err(format!("the snapshot's item is called {}, and not {RECORDS}", item.name).into());
    }
    let mut records = BufReader::with_capacity(256 << 10, items.open(0)?);
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    txn.delete_table(DATA)?;
    {
        let mut data = txn.open_table(DATA)?;
        let (mut key, mut value) = (Vec::new(), Vec::new());
        let mut left = item.len.unwrap_or(0);
        while left > 0 {
            take(&mut records, &mut key)?;
            let mut version = [0; 8];
            records.read_exact(&mut version)?;
            take(&mut records, &mut value)?;
            data.insert(&key[..], (u64::from_le_bytes(version), &value[..]))?;
            left =
                left.checked_sub(len(key.len(), value.len())).ok_or("the snapshot's last record is cut")?;
        }
        let mut position = txn.open_table(POSITION)?;
        position.insert(APPLIED, items.at().get())?;
        position.insert(BYTES, item.len.unwrap_or(0))?;
    }
    // What was read is compared with its digest at its end.
    if records.read(&mut [0])? != 0 {
        return Err("the snapshot has more bytes than it says".into());
    }
    Ok(txn.commit()?)
}

/// How long a record is whose key and value are so long.
pub(super) fn len(key: usize, value: usize) -> u64 {
    (4 + key + 8 + 4 + value) as u64
}

fn take(from: &mut impl Read, into: &mut Vec<u8>) -> Result<(), EngineError> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(format!("a record of the snapshot claims {len} bytes").into());
    }
    into.clear();
    let read = from.take(u64::from(len)).read_to_end(into)?;
    if read < len as usize {
        return Err("the snapshot's last record is cut".into());
    }
    Ok(())
}
