//! A store of keys in memory, driven by the log, and what all stores together were ever given.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use quorate::{Engine, EngineError, Entries, EntryKind, Vlsn};

use super::history::{Call, Outcome, Seen};

/// A violation of what is promised. The text says what and where.
pub type Violation = String;

/// One entry, as the first engine that applied it saw it.
pub struct Given {
    pub term: u32,
    pub crc: u32,
    pub kind: EntryKind,
    call: Option<(u64, Call)>,
    /// What came of the write in it; the same on every node.
    pub result: Option<Outcome>,
}

/// What the engines were given, ever: the first to apply a VLSN decides what it holds.
#[derive(Default)]
pub struct Truth {
    /// From VLSN 1 on.
    pub given: Vec<Given>,
    pub violation: Option<Violation>,
}

impl Truth {
    pub fn at(&self, vlsn: u64) -> Option<&Given> {
        self.given.get(usize::try_from(vlsn).ok()?.checked_sub(1)?)
    }

    pub fn violated(&mut self, text: Violation) {
        self.violation.get_or_insert(text);
    }
}

/// A node's keys. What was not checkpointed is lost with its process.
#[derive(Default)]
pub struct Store {
    keys: BTreeMap<u64, Seen>,
    pub applied: u64,
    durable: u64,
}

impl Store {
    pub fn read(&self, key: u64) -> Seen {
        self.keys.get(&key).copied().unwrap_or(Seen { version: 0, value: None })
    }

    /// The process ended: what the engine finds when it opens again.
    pub fn reopen(&mut self, truth: &Truth) {
        *self = Store { durable: self.durable, ..Store::default() };
        while self.applied < self.durable {
            self.applied += 1;
            if let Some((key, call)) = truth.at(self.applied).and_then(|given| given.call) {
                self.write(key, call);
            }
        }
    }

    /// Applies the write at `applied`.
    fn write(&mut self, key: u64, call: Call) -> Outcome {
        let (before, version) = (self.read(key), self.applied);
        let value = match call {
            Call::Cas { expected, .. } if expected != before.version => return Outcome::Mismatch(before),
            Call::Put { value } | Call::Cas { value, .. } => Some(value),
            Call::Delete => None,
            Call::Get => return Outcome::Failed,
        };
        self.keys.insert(key, Seen { version, value });
        Outcome::Wrote(version)
    }
}

pub struct Keeper {
    pub name: String,
    pub store: Arc<Mutex<Store>>,
    pub truth: Arc<Mutex<Truth>>,
}

impl Engine for Keeper {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(Vlsn::new(self.store.lock().applied))
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut store = self.store.lock();
        let mut truth = self.truth.lock();
        for entry in entries.iter() {
            let vlsn = entry.header().vlsn.map_or(0, Vlsn::get);
            if vlsn != store.applied + 1 {
                let text = format!("{} applied VLSN {vlsn} after {}", self.name, store.applied);
                truth.violated(text);
            }
            store.applied = vlsn;
            let crc = crc32fast::hash(&entry.bytes()[4..]);
            let call = (entry.kind() == EntryKind::DATA).then(|| decode(entry.payload())).flatten();
            let result = call.map(|(key, call)| store.write(key, call));
            let term = entry.header().term.get();
            let Some(given) = truth.at(vlsn) else {
                truth.given.push(Given { term, crc, kind: entry.kind(), call, result });
                continue;
            };
            if (given.crc, given.term) != (crc, term) || entry.header().crc != crc {
                let first = given.term;
                let text = format!(
                    "{} applied VLSN {vlsn} of term {term}, crc {crc:08x}; another had applied one of term {first}",
                    self.name
                );
                truth.violated(text);
            } else if given.result != result {
                truth.violated(format!("{} came to another state at VLSN {vlsn}", self.name));
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        let mut store = self.store.lock();
        store.durable = store.applied;
        Ok(Vlsn::new(store.durable))
    }
}

/// A write as a payload, filled up to this length.
pub fn encode(key: u64, call: Call, len: usize) -> Vec<u8> {
    let (what, value, expected) = match call {
        Call::Put { value } => (1, value, 0),
        Call::Cas { expected, value } => (2, value, expected),
        Call::Delete => (3, 0, 0),
        Call::Get => unreachable!("a read writes nothing"),
    };
    let mut payload: Vec<u8> =
        [what, key, value, expected].iter().flat_map(|number: &u64| number.to_le_bytes()).collect();
    payload.resize(payload.len() + len, 0xa5);
    payload
}

fn decode(payload: &[u8]) -> Option<(u64, Call)> {
    let number = |at: usize| Some(u64::from_le_bytes(payload.get(at * 8..at * 8 + 8)?.try_into().ok()?));
    let (key, value, expected) = (number(1)?, number(2)?, number(3)?);
    let call = match number(0)? {
        1 => Call::Put { value },
        2 => Call::Cas { expected, value },
        3 => Call::Delete,
        _ => return None,
    };
    Some((key, call))
}
