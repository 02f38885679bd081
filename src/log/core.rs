//! What all handles of one open log share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::disk::Disk;
use crate::ids::Vlsn;
use crate::log::LogConfig;
use crate::log::catalog::Catalog;
use crate::log::flush::{FlushSide, Waiting};
use crate::log::life::Life;
use crate::log::recover::Recovered;
use crate::log::repair::Damages;
use crate::log::retention::Pins;
use crate::log::scanner::ScanError;
use crate::log::segment::Segment;
use crate::log::stage::Stage;
use crate::log::writer::{Spare, WriteSide};
use crate::watermark::Parker;

/// Called with a VLSN that became durable.
pub(super) type Hook = Arc<dyn Fn(Vlsn) + Send + Sync>;

/// Locks are taken in the order of the fields: leaving, flush, io, stage; the others are leaves, held for a few instructions.
pub(super) struct Core {
    pub disk: Arc<dyn Disk>,
    pub clock: Arc<dyn Clock>,
    pub config: LogConfig,
    /// Bytes of a new segment.
    pub capacity: u64,
    /// A segment that was pruned, and whose files could not be removed yet. Held while the log is pruned or cut.
    pub leaving: Mutex<Option<Arc<Segment>>>,
    pub flush: Mutex<FlushSide>,
    pub io: Mutex<WriteSide>,
    pub stage: Mutex<Stage>,
    pub catalog: Mutex<Catalog>,
    pub damages: Damages,
    pub spare: Mutex<Option<Spare>>,
    pub pins: Mutex<Pins>,
    pub waiting: Mutex<Vec<Waiting>>,
    pub hook: Mutex<Option<Hook>>,
    pub flusher: Mutex<Option<Arc<Parker>>>,
    /// The lock on the directory, until the log is closed.
    pub directory_lock: Mutex<Option<Box<dyn Send + Sync>>>,
    /// A segment was created since the directory was last synced.
    pub directory_changed: AtomicBool,
    pub poisoned: AtomicBool,
    /// The reserve is there.
    pub reserved: AtomicBool,
    /// The highest VLSN that was noted as committed; never above what was appended.
    pub committed: AtomicU64,
    pub committed_at_open: Option<Vlsn>,
}

impl Core {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
        capacity: u64,
        directory_lock: Box<dyn Send + Sync>,
        recovered: Recovered,
    ) -> Core {
        let life = Arc::new(Life::new(recovered.end.tail.map(|tail| tail.vlsn)));
        let core = Core {
            disk,
            clock,
            config,
            capacity,
            leaving: Mutex::new(None),
            flush: Mutex::new(FlushSide::new(recovered.end.segment)),
            io: Mutex::new(WriteSide::new(recovered.active, recovered.appender)),
            stage: Mutex::new(Stage::new(recovered.end, life)),
            catalog: Mutex::new(recovered.catalog),
            damages: Damages::default(),
            spare: Mutex::new(None),
            pins: Mutex::new(Pins::default()),
            waiting: Mutex::new(Vec::new()),
            hook: Mutex::new(None),
            flusher: Mutex::new(None),
            directory_lock: Mutex::new(Some(directory_lock)),
            directory_changed: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            committed: AtomicU64::new(crate::ids::number(recovered.committed)),
            committed_at_open: recovered.committed,
        };
        for first in recovered.lost {
            core.note_lost(first);
        }
        core.stage_mark();
        core
    }

    pub(super) fn life(&self) -> Arc<Life> {
        Arc::clone(&self.stage.lock().life)
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// After a failed sync: nothing is appended, flushed or read any more, and whoever waits is told.
    pub(super) fn poison(&self) {
        let mut stage = self.stage.lock();
        stage.poisoned = true;
        self.poisoned.store(true, Ordering::SeqCst);
        stage.life.end();
    }

    pub(super) fn wake_flusher(&self) {
        if let Some(parker) = &*self.flusher.lock() {
            parker.poke();
        }
    }

    pub(super) fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.committed.load(Ordering::Acquire))
    }

    pub(super) fn note_committed(&self, vlsn: Vlsn) {
        let appended = self.stage.lock().last_number();
        self.committed.fetch_max(vlsn.get().min(appended), Ordering::AcqRel);
    }

    pub(super) fn oldest(&self) -> Option<Vlsn> {
        let next = self.stage.lock().next();
        self.catalog.lock().oldest().map(|segment| segment.first).filter(|first| *first < next)
    }

    pub(super) fn pruned(&self) -> ScanError {
        ScanError::Pruned { oldest: self.oldest() }
    }
}
