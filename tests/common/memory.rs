//! A log that an engine keeps itself, in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use quorate::entry::{Placement, encode};
use quorate::feeder::Source;
use quorate::log::ScanError;
use quorate::log::scanner::Run;
use quorate::matchpoint::{BadHistory, History};
use quorate::{LogScanner, NewEntry, Position, Positions, TermSpan, Vlsn};

use super::nodes::until;
use super::t;

/// The engine's log: encoded entries behind a base.
#[derive(Default)]
pub struct Memory {
    pub base: Option<Position>,
    pub entries: Vec<(Position, Arc<[u8]>)>,
}

/// A cheap handle on it.
#[derive(Clone)]
pub struct OwnLog {
    pub memory: Arc<Mutex<Memory>>,
    pub committed: Arc<AtomicU64>,
    /// How much of it counts as flushed.
    pub durable: Arc<AtomicU64>,
    pub pins: Arc<Mutex<BTreeMap<String, Vlsn>>>,
    /// Counts `unpin`s that have begun; they end while `held` is not set.
    pub unpinning: Arc<quorate::Watermark>,
    pub held: Arc<AtomicBool>,
}

impl Default for OwnLog {
    fn default() -> OwnLog {
        OwnLog {
            memory: Arc::default(),
            committed: Arc::default(),
            durable: Arc::new(AtomicU64::new(u64::MAX)),
            pins: Arc::default(),
            unpinning: Arc::new(quorate::Watermark::new(0)),
            held: Arc::default(),
        }
    }
}

impl OwnLog {
    pub fn starting_after(base: Option<Position>) -> OwnLog {
        let log = OwnLog::default();
        log.memory.lock().base = base;
        log
    }

    pub fn append(&self, payload: &[u8]) -> Vlsn {
        let mut memory = self.memory.lock();
        let last = memory.last();
        let vlsn = Vlsn::after(last.map(|last| last.vlsn));
        let prev = last.map_or(0, |last| last.crc);
        let at = Placement { vlsn: Some(vlsn), term: t(1), prev, timestamp: 1_000_000 + vlsn.get() };
        let mut bytes = Vec::new();
        let crc = encode(&NewEntry::data(payload), &at, &mut bytes);
        memory.entries.push((Position { vlsn, term: t(1), crc }, bytes.into()));
        vlsn
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.memory.lock().entries.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }
}

impl Memory {
    fn last(&self) -> Option<Position> {
        self.entries.last().map(|(position, _)| *position).or(self.base)
    }
}

/// Reads it in runs, each copied out, as an engine may that has no mapped files.
struct Reader {
    log: OwnLog,
    run: Vec<u8>,
}

impl LogScanner for Reader {
    fn run(
        &mut self,
        after: Option<Vlsn>,
        max_entries: u32,
        max_bytes: usize,
    ) -> Result<Option<Run<'_>>, ScanError> {
        let memory = self.log.memory.lock();
        let base = memory.base.map(|base| base.vlsn);
        if after < base {
            return Err(ScanError::Pruned { oldest: Some(Vlsn::after(base)) });
        }
        let from = (after.map_or(0, Vlsn::get) - base.map_or(0, Vlsn::get)) as usize;
        self.run.clear();
        let mut last = None;
        for (position, bytes) in memory.entries.iter().skip(from).take(max_entries as usize) {
            if last.is_some() && self.run.len() + bytes.len() > max_bytes {
                break;
            }
            self.run.extend_from_slice(bytes);
            last = Some(*position);
        }
        let first = Vlsn::after(after);
        Ok(last.map(|last| Run::new(first, last, 1_000_000 + last.vlsn.get(), &[&self.run])))
    }
}

impl Source for OwnLog {
    fn scanner(&self) -> Box<dyn LogScanner> {
        Box::new(Reader { log: self.clone(), run: Vec::new() })
    }
    fn last(&self) -> Option<Vlsn> {
        self.memory.lock().last().map(|last| last.vlsn)
    }
    fn history(&self) -> Result<History, BadHistory> {
        let memory = self.memory.lock();
        let first = memory.entries.first().map(|(position, _)| TermSpan { term: t(1), first: position.vlsn });
        let spans: Vec<_> = first.into_iter().collect();
        History::new(memory.base, &spans, memory.last().map(|last| last.vlsn))
    }
    fn position_at(&self, vlsn: Vlsn) -> Result<Position, ScanError> {
        let memory = self.memory.lock();
        let found = memory.entries.iter().map(|(position, _)| *position).chain(memory.base);
        found.into_iter().find(|position| position.vlsn == vlsn).ok_or(ScanError::Beyond { asked: vlsn })
    }
    fn positions(&self) -> Positions {
        // Its memory is as durable as it gets, unless a test says otherwise.
        let last = self.last();
        let durable = last.min(Vlsn::new(self.durable.load(Ordering::SeqCst)));
        Positions { received: last, durable, applied: durable, checkpointed: durable }
    }
    fn committed(&self, vlsn: Vlsn) {
        self.committed.fetch_max(vlsn.get(), Ordering::SeqCst);
    }
    fn pin(&self, owner: &str, from: Vlsn) {
        self.pins.lock().insert(owner.to_owned(), from);
    }
    fn unpin(&self, owner: &str) {
        self.unpinning.advance(1);
        until("it may go on", || !self.held.load(Ordering::SeqCst));
        self.pins.lock().remove(owner);
    }
    fn bytes_after(&self, after: Option<Vlsn>) -> u64 {
        let memory = self.memory.lock();
        let behind = memory.entries.iter().filter(|(position, _)| Some(position.vlsn) > after);
        behind.map(|(_, bytes)| bytes.len() as u64).sum()
    }
}
