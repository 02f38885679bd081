//! The digest of the engine's state at a VERIFY entry, made by a worker of its own while applying goes on.

use std::sync::Arc;

use parking_lot::Mutex;
use twox_hash::XxHash3_128;

use crate::clock::Wait;
use crate::engine::{EngineError, EngineSnapshot};
use crate::ids::Vlsn;
use crate::node::core::Core;
use crate::wire::message::{EngineDigest, EngineState};
use crate::worker::{Step, Stop, Worker};

/// What is read of the snapshot at once.
const READ: usize = 256 << 10;
/// As often in one step.
const READS: usize = 16;

/// What there is to digest, and what came of the last.
#[derive(Default)]
pub(super) struct EngineDigests(Mutex<Desk>);

#[derive(Default)]
struct Desk {
    /// What comes next. A later entry takes the place of one that nobody has begun with.
    waiting: Option<Job>,
    /// A worker runs, and looks here again before it ends.
    runs: bool,
    last: Option<EngineDigest>,
}

struct Job {
    at: Vlsn,
    source: Box<dyn EngineSnapshot>,
}

impl EngineDigests {
    /// The last digest.
    pub fn last(&self) -> Option<EngineDigest> {
        self.0.lock().last.clone()
    }

    /// The engine's snapshot at a VERIFY entry is there, or won't be. Called by the apply worker.
    pub fn take(
        self: &Arc<EngineDigests>,
        core: &Core,
        at: Vlsn,
        snapshot: Result<Option<Box<dyn EngineSnapshot>>, EngineError>,
    ) {
        let source = match snapshot {
            Ok(Some(source)) => source,
            Ok(None) => return self.tell(EngineDigest { at, state: EngineState::NoSnapshots }),
            Err(error) => {
                return self.tell(EngineDigest { at, state: EngineState::Failed(error.to_string()) });
            }
        };
        let (runs, _dropped) = {
            let mut desk = self.0.lock();
            (std::mem::replace(&mut desk.runs, true), desk.waiting.replace(Job { at, source }))
        };
        if !runs {
            core.spawn("engine-digest", Digester { digests: Arc::clone(self), making: None }, Vec::new());
        }
    }

    fn tell(&self, digest: EngineDigest) {
        let mut desk = self.0.lock();
        if desk.last.as_ref().is_none_or(|last| last.at <= digest.at) {
            desk.last = Some(digest);
        }
    }

    fn next(&self) -> Option<Job> {
        let mut desk = self.0.lock();
        desk.runs = desk.waiting.is_some();
        desk.waiting.take()
    }
}

/// Digests snapshots until none is waiting.
struct Digester {
    digests: Arc<EngineDigests>,
    making: Option<Making>,
}

impl Worker for Digester {
    fn step(&mut self, _wait: Wait) -> Result<Step, Stop> {
        let Some(making) = &mut self.making else {
            let Some(job) = self.digests.next() else { return Err(Stop::Done) };
            self.making = Some(Making::of(job));
            return Ok(Step::Worked);
        };
        let state = match making.step() {
            Ok(None) => return Ok(Step::Worked),
            Ok(Some(digest)) => EngineState::Digest(digest),
            Err(error) => EngineState::Failed(error.to_string()),
        };
        let at = making.job.at;
        log::info!("the engine at VLSN {at}: {state:?}");
        self.making = None;
        self.digests.tell(EngineDigest { at, state });
        Ok(Step::Worked)
    }
}

/// A digest that is being made: of every item the length of its name, the name, its bytes, and their number.
struct Making {
    job: Job,
    digest: XxHash3_128,
    buffer: Vec<u8>,
    /// Bytes of the present item; `None` between two.
    item: Option<u64>,
}

impl Making {
    fn of(job: Job) -> Making {
        Making { job, digest: XxHash3_128::new(), buffer: vec![0; READ], item: None }
    }

    /// Goes on for a bit. The digest, at the end.
    fn step(&mut self) -> Result<Option<u128>, EngineError> {
        for _ in 0..READS {
            let Some(len) = self.item else {
                let Some(item) = self.job.source.next_item()? else {
                    return Ok(Some(self.digest.finish_128()));
                };
                self.digest.write(&(item.name.len() as u64).to_le_bytes());
                self.digest.write(item.name.as_bytes());
                self.item = Some(0);
                continue;
            };
            let read = self.job.source.read(&mut self.buffer)?;
            let bytes =
                self.buffer.get(..read).ok_or("the engine says that it read more than it was asked for")?;
            self.digest.write(bytes);
            self.item = Some(len + read as u64).filter(|_| read > 0);
            if read == 0 {
                self.digest.write(&len.to_le_bytes());
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Item;

    /// Items that are read in pieces of a few bytes.
    struct Pieces {
        items: Vec<(&'static str, &'static [u8])>,
        rest: &'static [u8],
        piece: usize,
    }

    impl EngineSnapshot for Pieces {
        fn at(&self) -> Vlsn {
            Vlsn::FIRST
        }

        fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
            if self.items.is_empty() {
                return Ok(None);
            }
            let (name, bytes) = self.items.remove(0);
            self.rest = bytes;
            Ok(Some(Item { name: name.into(), len: None }))
        }

        fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
            let (now, rest) = self.rest.split_at(self.rest.len().min(self.piece));
            into[..now.len()].copy_from_slice(now);
            self.rest = rest;
            Ok(now.len())
        }
    }

    fn digest(piece: usize, items: &[(&'static str, &'static [u8])]) -> u128 {
        let source = Box::new(Pieces { items: items.to_vec(), rest: &[], piece });
        let mut making = Making::of(Job { at: Vlsn::FIRST, source });
        loop {
            if let Some(digest) = making.step().unwrap() {
                return digest;
            }
        }
    }

    #[test]
    fn a_digest_tells_items_and_names_apart_and_not_how_they_are_read() {
        let whole = digest(1000, &[("a", b"hello"), ("b", &[7; 100])]);
        assert_eq!(whole, digest(1, &[("a", b"hello"), ("b", &[7; 100])]));
        let others: [&[(&str, &[u8])]; 7] = [
            &[],
            &[("a", b"hello")],
            &[("b", &[7; 100]), ("a", b"hello")],
            &[("ab", b"hello"), ("b", &[7; 100])],
            &[("a", b"hell"), ("b", &[7; 100])],
            &[("a", b"hello"), ("b", &[7; 99])],
            &[("a", b"hello"), ("b", &[7; 100]), ("c", b"")],
        ];
        let mut all = others.map(|items| digest(64, items)).to_vec();
        all.push(whole);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        let mut bytes = Vec::new();
        for (name, item) in [("a", &b"hello"[..]), ("b", &[7; 100])] {
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(item);
            bytes.extend_from_slice(&(item.len() as u64).to_le_bytes());
        }
        assert_eq!(whole, XxHash3_128::oneshot(&bytes));
    }
}
