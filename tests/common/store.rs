//! The store of a simulated node: keys with versions, and what all nodes together have ever applied.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate::{Engine, EngineError, EngineSnapshot, Entries, EntryKind, Item, Items, Vlsn};

use crate::history::{Call, Seen};

/// A write, as it stands in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    pub key: u64,
    pub call: Call,
}

impl Op {
    pub fn encode(self) -> Vec<u8> {
        let (kind, a, b) = match self.call {
            Call::Put { value } => (1_u64, value, 0),
            Call::Delete => (2, 0, 0),
            Call::Cas { expected, value } => (3, value, expected),
            Call::Get => unreachable!("a read is no entry"),
        };
        [kind, self.key, a, b].iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn decode(payload: &[u8]) -> Option<Op> {
        let number = |at: usize| Some(u64::from_le_bytes(payload.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let (value, expected) = (number(2)?, number(3)?);
        let call = match number(0)? {
            1 => Call::Put { value },
            2 => Call::Delete,
            3 => Call::Cas { expected, value },
            _ => return None,
        };
        Some(Op { key: number(1)?, call })
    }
}

/// An entry as it was applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    pub term: u32,
    pub crc: u32,
    pub time: u64,
}

/// What all nodes' engines were given, ever: the first to apply a VLSN decides what it holds.
#[derive(Default)]
pub struct Truth {
    pub applied: BTreeMap<u64, Applied>,
    pub violation: Option<String>,
    /// Below this, what was told was compared with what was applied.
    pub checked: u64,
}

/// One node's store. Its unsynced part is lost with the process.
#[derive(Default)]
pub struct Store {
    entries: Vec<(u32, Option<Op>)>,
    durable: usize,
    keys: BTreeMap<u64, Seen>,
    /// Snapshots that were installed.
    pub installs: u64,
    /// What each conditional write found, if it was not what it expected.
    results: BTreeMap<u64, Option<Seen>>,
}

impl Store {
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub fn seen(&self, key: u64) -> Seen {
        self.keys.get(&key).copied().unwrap_or(Seen { version: 0, value: None })
    }

    /// The CRC of each entry that it was made from, from the first on.
    pub fn crcs(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|(crc, _)| *crc)
    }

    /// What became of the write at this VLSN, once it was applied: what it found in its way, if it is conditional.
    pub fn outcome(&self, vlsn: u64) -> Option<Option<Seen>> {
        self.results.get(&vlsn).copied()
    }

    /// The whole store, entry by entry: the CRC, and the write if it is one.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (crc, op) in &self.entries {
            bytes.extend_from_slice(&crc.to_le_bytes());
            let op = op.map_or_else(|| vec![0; OP_LEN], Op::encode);
            bytes.extend_from_slice(&op);
        }
        bytes
    }

    pub fn lose_unsynced(&mut self) {
        let kept: Vec<_> = self.entries.drain(..).take(self.durable).collect();
        *self = Store { durable: self.durable, installs: self.installs, ..Store::default() };
        kept.into_iter().for_each(|(crc, op)| self.apply(crc, op));
    }

    fn apply(&mut self, crc: u32, op: Option<Op>) {
        self.entries.push((crc, op));
        let version = self.entries.len() as u64;
        let Some(Op { key, call }) = op else { return };
        let seen = self.seen(key);
        let (written, found) = match call {
            Call::Put { value } => (Some(Some(value)), None),
            Call::Delete => (Some(None), None),
            Call::Cas { expected, value } if expected == seen.version => (Some(Some(value)), None),
            Call::Cas { .. } | Call::Get => (None, Some(seen)),
        };
        self.results.insert(version, found);
        if let Some(value) = written {
            self.keys.insert(key, Seen { version, value });
        }
    }
}

const OP_LEN: usize = 32;
const RECORD_LEN: usize = 4 + OP_LEN;
/// Bytes of an item of a snapshot: a store of some hundred entries has several.
const ITEM_LEN: usize = RECORD_LEN * 100;

/// A copy of a store, in items of a hundred entries.
struct Copied {
    at: Vlsn,
    bytes: Vec<u8>,
    item: usize,
    offset: usize,
}

impl EngineSnapshot for Copied {
    fn at(&self) -> Vlsn {
        self.at
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        let begin = self.item * ITEM_LEN;
        if begin >= self.bytes.len() {
            return Ok(None);
        }
        self.offset = begin;
        self.item += 1;
        let len = (self.bytes.len() - begin).min(ITEM_LEN) as u64;
        Ok(Some(Item { name: format!("entries.{}", self.item), len: Some(len) }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let end = (self.item * ITEM_LEN).min(self.bytes.len());
        let part = &self.bytes[self.offset..end];
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
        self.offset += len;
        Ok(len)
    }
}

pub struct StoreEngine {
    pub name: String,
    pub store: Arc<Mutex<Store>>,
    pub truth: Arc<Mutex<Truth>>,
}

impl Engine for StoreEngine {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(Vlsn::new(self.store.lock().len()))
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut store = self.store.lock();
        let mut truth = self.truth.lock();
        for entry in entries.iter() {
            let header = entry.header();
            let vlsn = header.vlsn.map_or(0, Vlsn::get);
            let actual = crc32fast::hash(&entry.bytes()[4..]);
            if vlsn != store.len() + 1 {
                truth.violation = Some(format!("{} applied VLSN {vlsn} after {}", self.name, store.len()));
            }
            let this = Applied { term: header.term.get(), crc: actual, time: header.timestamp };
            let first = *truth.applied.entry(vlsn).or_insert(this);
            if first != this || actual != header.crc {
                truth.violation =
                    Some(format!("{} applied {this:?} at VLSN {vlsn}, another node {first:?}", self.name));
            }
            let op = if header.kind == EntryKind::DATA { Op::decode(entry.payload()) } else { None };
            store.apply(actual, op);
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        let mut store = self.store.lock();
        store.durable = store.entries.len();
        Ok(Vlsn::new(store.len()))
    }

    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let store = self.store.lock();
        let Some(at) = Vlsn::new(store.len()) else { return Ok(None) };
        Ok(Some(Box::new(Copied { at, bytes: store.bytes(), item: 0, offset: 0 })))
    }

    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        for at in 0..items.list().len() {
            items.open(at)?.read_to_end(&mut bytes)?;
        }
        let mut fresh = Store::default();
        for record in bytes.chunks(RECORD_LEN) {
            let (crc, op) = record.split_first_chunk::<4>().ok_or("a record is cut")?;
            fresh.apply(u32::from_le_bytes(*crc), Op::decode(op));
        }
        fresh.durable = fresh.entries.len();
        let mut truth = self.truth.lock();
        if fresh.len() != items.at().get() {
            truth.violation = Some(format!(
                "{} was given {} entries as the state at {}",
                self.name,
                fresh.len(),
                items.at()
            ));
        }
        for (vlsn, (crc, _)) in (1..).zip(&fresh.entries) {
            if truth.applied.get(&vlsn).is_some_and(|applied| applied.crc != *crc) {
                truth.violation =
                    Some(format!("{} was given another entry {vlsn} than was applied", self.name));
            }
        }
        let mut store = self.store.lock();
        fresh.installs = store.installs + 1;
        *store = fresh;
        Ok(())
    }
}
