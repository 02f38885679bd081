//! Writing the input: threads that take pieces and commit them.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::histogram::Histogram;
use quorate::watermark::Watermark;
use quorate::{Master, NewEntry, Outcome, Policy, WriteError};

use crate::Failure;
use crate::files::{CHUNK, InputError, Piece};
use crate::kv::{Contents, Record};

/// Threads that commit.
pub const WRITERS: u32 = 8;
/// An input is written in about so many commits, if it has so many pieces.
const COMMITS: u64 = 2000;
/// How long one commit may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How far the writers are and may go.
pub struct Gauge {
    /// Bytes of values committed; `u64::MAX` when all writers ended.
    pub done: Watermark,
    /// Bytes of values that may be begun; closed when all is to stop.
    pub allowed: Watermark,
    /// Rises from time to time: a writer that was refused tries again then.
    pub ticks: Watermark,
}

impl Gauge {
    /// A gauge for writers that may begin so many bytes.
    pub fn new(allowed: u64) -> Gauge {
        Gauge { done: Watermark::new(0), allowed: Watermark::new(allowed), ticks: Watermark::new(0) }
    }
}

/// What the writers share.
pub struct Load<'g, I> {
    source: Mutex<Source<I>>,
    policy: Policy,
    /// Pieces are committed together until they have this many bytes.
    batch: u64,
    gauge: &'g Gauge,
    written: AtomicU64,
    writing: AtomicU32,
    stopped: AtomicBool,
    results: Mutex<Results>,
}

struct Source<I> {
    pieces: I,
    taken: u64,
}

/// What the writers did.
#[derive(Default)]
pub struct Results {
    /// Calls that committed, and entries in them.
    pub commits: u64,
    pub entries: u64,
    /// Of the commits, those that were told less than `Committed`.
    pub acked: u64,
    pub degraded: u64,
    /// What was committed.
    pub contents: Contents,
    /// How long each commit took.
    pub latency: Histogram,
    /// The first failure.
    pub failure: Option<Failure>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'g, I: Iterator<Item = Result<Piece, InputError>>> Load<'g, I> {
    /// Work for [`WRITERS`] threads: pieces with `bytes` bytes of values.
    pub fn new(pieces: I, bytes: u64, policy: Policy, gauge: &'g Gauge) -> Load<'g, I> {
        Load {
            source: Mutex::new(Source { pieces, taken: 0 }),
            policy,
            batch: (bytes / COMMITS).min(CHUNK as u64),
            gauge,
            written: AtomicU64::new(0),
            writing: AtomicU32::new(WRITERS),
            stopped: AtomicBool::new(false),
            results: Mutex::default(),
        }
    }

    /// One writer's work, until nothing is left or something failed.
    pub fn write(&self, master: &Master) {
        let mut own = Results::default();
        let ended = self.write_on(master, &mut own);
        let mut results = lock(&self.results);
        results.add(own);
        if let Err(failure) = ended {
            results.failure.get_or_insert(failure);
            self.stop();
        }
        drop(results);
        if self.writing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.gauge.done.advance(u64::MAX);
        }
    }

    /// Lets the writers begin nothing more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.gauge.allowed.close();
        self.gauge.ticks.close();
    }

    /// What came of it, when all writers ended.
    pub fn into_results(self) -> Results {
        self.results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_on(&self, master: &Master, own: &mut Results) -> Result<(), Failure> {
        while let Some((pieces, bytes)) = self.take()? {
            let payloads: Vec<Vec<u8>> = pieces.iter().map(payload).collect();
            let entries: Vec<NewEntry<'_>> = payloads.iter().map(|payload| NewEntry::data(payload)).collect();
            let began = Stopwatch::start();
            let Some(outcome) = self.commit(master, &entries)? else { break };
            own.latency.record(began.elapsed());
            own.commits += 1;
            own.entries += entries.len() as u64;
            match outcome {
                Outcome::Committed => {}
                Outcome::Acked => own.acked += 1,
                Outcome::Degraded => own.degraded += 1,
            }
            for Piece { key, value } in &pieces {
                own.contents.add(key, value);
            }
            let written = self.written.fetch_add(bytes, Ordering::SeqCst) + bytes;
            self.gauge.done.advance(written);
        }
        Ok(())
    }

    /// The next pieces and their values' bytes; `None` if there are none, or all is to stop.
    fn take(&self) -> Result<Option<(Vec<Piece>, u64)>, Failure> {
        // Who waits here holds up the others, which would have to wait for the same.
        let mut source = lock(&self.source);
        let waited = self.gauge.allowed.wait(source.taken + 1, Wait::Forever);
        if waited.is_err() || self.stopped.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while pieces.is_empty() || bytes < self.batch {
            let Some(piece) = source.pieces.next().transpose()? else { break };
            bytes += piece.value.len() as u64;
            pieces.push(piece);
        }
        source.taken += bytes;
        Ok((!pieces.is_empty()).then_some((pieces, bytes)))
    }

    /// Commits, trying again while too few replicas are connected; `None` if all is to stop.
    fn commit(&self, master: &Master, entries: &[NewEntry<'_>]) -> Result<Option<Outcome>, Failure> {
        let patience = deadline_in(PATIENCE);
        loop {
            match master.write(entries, self.policy, Wait::Until(patience)) {
                Ok(outcome) => return Ok(Some(outcome)),
                Err(_) if self.stopped.load(Ordering::SeqCst) => return Ok(None),
                Err(WriteError::Refused(refused)) if refused.is_temporary() => {
                    if !self.gauge.ticks.wait(self.gauge.ticks.get() + 1, Wait::Until(patience))? {
                        return Err(refused.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn payload(piece: &Piece) -> Vec<u8> {
    let mut payload = Vec::with_capacity(piece.key.len() + piece.value.len() + 8);
    Record::Put { key: &piece.key, value: &piece.value }.encode(&mut payload);
    payload
}

impl Results {
    fn add(&mut self, other: Results) {
        self.commits += other.commits;
        self.entries += other.entries;
        self.acked += other.acked;
        self.degraded += other.degraded;
        self.contents.merge(&other.contents);
        self.latency.merge(&other.latency);
    }
}

/// Starts the writers; they end with the input, or when all is to stop.
pub fn start<'scope, I>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    load: &'scope Load<'_, I>,
    master: &Arc<Master>,
) where
    I: Iterator<Item = Result<Piece, InputError>> + Send,
{
    for _ in 0..WRITERS {
        let master = Arc::clone(master);
        scope.spawn(move || load.write(&master));
    }
}
