//! The apply worker: hands committed and flushed entries to the engine, in order, each once.
//!
//! On every node, the master too, an engine sees only what is committed in the group and flushed here. So it never has
//! to undo, and after a crash the log repairs it by replay.

pub(crate) mod desk;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::apply::desk::{Answer, Install, NoSnapshot, Request, Snapshot, WhileOpen};
use crate::clock::{Clock, Deadline, Wait};
use crate::engine::{Engine, EngineError, EngineSnapshot};
use crate::entry::EntryKind;
use crate::ids::{Vlsn, number};
use crate::log::scanner::{LogScanner, ScanError};
use crate::log::{ENGINE_PIN, Life, Log, MappedScanner, Pin};
use crate::planted::{Bug, active};
use crate::runtime::Running;
use crate::watermark::{Closed, Watermark, rest};
use crate::worker::{Step, Stop, Worker};

/// How much is handed to the engine at once.
const BATCH_ENTRIES: u64 = 4096;
const BATCH_BYTES: usize = 1 << 20;

/// The positions around the engine. `applied ≤ min(committed, flushed)` and `checkpointed ≤ applied`.
pub(crate) struct ApplyState {
    /// What the group has committed, as far as this node knows, and never beyond this node's log.
    pub committed: Watermark,
    /// What the engine has applied.
    pub applied: Watermark,
    /// What the engine would still have after loss of power.
    pub checkpointed: Watermark,
    closing: AtomicBool,
    /// Damage in the log is healed by this node, and need not end it.
    pub heals: AtomicBool,
    /// The log can't bring the engine on: nothing is applied before it was given a snapshot.
    lacks: AtomicBool,
    /// Called after `applied` or `checkpointed` advanced, on the apply thread; must not block.
    on_advance: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
    /// What is asked of the engine between two batches.
    requests: Mutex<VecDeque<Request>>,
    /// Called when a VERIFY entry was applied and nothing behind it, on the apply thread.
    on_verify: Mutex<Option<OnVerify>>,
    /// The worker, to be woken for a request.
    worker: OnceLock<Arc<dyn Running>>,
}

/// Takes a VERIFY entry's VLSN, and the engine's snapshot just there. It is read by another thread.
pub(crate) type OnVerify =
    Arc<dyn Fn(Vlsn, Result<Option<Box<dyn EngineSnapshot>>, EngineError>) + Send + Sync>;

impl ApplyState {
    /// The state of an engine that stands at `applied`, in a log known to be committed up to `committed`.
    pub fn new(committed: Option<Vlsn>, applied: Option<Vlsn>) -> ApplyState {
        ApplyState {
            committed: Watermark::new(number(committed).max(number(applied))),
            applied: Watermark::new(number(applied)),
            checkpointed: Watermark::new(number(applied)),
            closing: AtomicBool::new(false),
            heals: AtomicBool::new(false),
            lacks: AtomicBool::new(false),
            on_advance: Mutex::new(None),
            requests: Mutex::default(),
            on_verify: Mutex::new(None),
            worker: OnceLock::new(),
        }
    }

    /// Whether the engine waits for a snapshot.
    pub fn lacks(&self) -> bool {
        self.lacks.load(Ordering::SeqCst)
    }

    /// Sets that. Nothing more is applied then, once the batch under way is.
    pub fn set_lacks(&self, lacks: bool) {
        self.lacks.store(lacks, Ordering::SeqCst);
    }

    /// Asks the worker to leave the engine durable where it is, and to end.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.committed.close();
        // It may wait for something else.
        if let Some(worker) = self.worker.get() {
            worker.poke();
        }
    }

    /// Sets who is told when the engine's positions advance.
    pub fn on_advance(&self, hook: Option<Arc<dyn Fn() + Send + Sync>>) {
        *self.on_advance.lock() = hook;
    }

    /// Sets who is given the engine's snapshot at each VERIFY entry.
    pub fn on_verify(&self, hook: Option<OnVerify>) {
        *self.on_verify.lock() = hook;
    }

    /// The worker that runs.
    pub fn runs(&self, worker: Arc<dyn Running>) {
        let _first = self.worker.set(worker);
    }

    /// Asks for a snapshot of the engine.
    pub fn snapshot(&self) -> Arc<Answer<Result<Snapshot, NoSnapshot>>> {
        let (answer, asked) = Answer::new();
        self.ask(Request::Snapshot(asked));
        answer
    }

    /// Has the engine take in a snapshot.
    pub fn ask(&self, request: Request) {
        let mut requests = self.requests.lock();
        if self.closing.load(Ordering::SeqCst) {
            return;
        }
        requests.push_back(request);
        drop(requests);
        if let Some(worker) = self.worker.get() {
            worker.poke();
        }
    }

    fn advanced(&self) {
        let hook = self.on_advance.lock().clone();
        if let Some(hook) = hook {
            hook();
        }
    }
}

/// Why the engine could not be driven further. Poisons the node.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The engine refused entries.
    #[error(
        "the engine could not apply the entries after VLSN {after}: {source}; mend the engine and restart the node"
    )]
    Engine {
        /// The last entry that it has applied; 0 for none.
        after: u64,
        /// What it said.
        source: EngineError,
    },
    /// The engine could not make durable what it applied.
    #[error("the engine could not checkpoint at VLSN {at}: {source}; mend the engine and restart the node")]
    Checkpoint {
        /// The last entry that it has applied; 0 for none.
        at: u64,
        /// What it said.
        source: EngineError,
    },
    /// The engine could not take in a snapshot.
    #[error(
        "the engine could not install the snapshot at VLSN {at}: {source}; mend the engine and restart the node, which installs it again"
    )]
    Install {
        /// Where it stands.
        at: Vlsn,
        /// What it said.
        source: EngineError,
    },
    /// The engine took in a snapshot and is elsewhere.
    #[error("the engine says that it has applied VLSN {}, after it installed the snapshot at VLSN {at}; mend the engine", number(*.applied))]
    InstalledElsewhere {
        /// Where the snapshot stands.
        at: Vlsn,
        /// What the engine says.
        applied: Option<Vlsn>,
    },
    /// The log could not be read back.
    #[error("the log could not be read for the engine: {0}")]
    Scan(#[from] ScanError),
}

/// The worker.
pub(crate) struct Apply {
    log: Log,
    life: Arc<Life>,
    scanner: MappedScanner,
    engine: Box<dyn Engine>,
    state: Arc<ApplyState>,
    clock: Arc<dyn Clock>,
    checkpoint_every: Duration,
    /// When the next checkpoint is due; `NEVER` while nothing was applied since the last.
    checkpoint_due: Deadline,
    /// Keeps the log from the first entry that the engine would need again.
    pin: Pin,
}

impl Apply {
    /// A worker that applies from `log` to `engine`, which stands at `state.applied`.
    pub fn new(
        log: Log,
        engine: Box<dyn Engine>,
        state: Arc<ApplyState>,
        clock: Arc<dyn Clock>,
        checkpoint_every: Duration,
    ) -> Apply {
        let pin = log.pin(ENGINE_PIN, Vlsn::after(Vlsn::new(state.checkpointed.get())));
        let (life, scanner) = (log.life(), log.scanner());
        Apply {
            log,
            life,
            scanner,
            engine,
            state,
            clock,
            checkpoint_every,
            checkpoint_due: Deadline::NEVER,
            pin,
        }
    }

    fn idle(&self) -> Result<Step, Stop> {
        Ok(Step::Idle { due: self.checkpoint_due })
    }

    /// Waits until something is damaged no more: it was at `eased` when damage was met.
    fn pause(&mut self, eased: u64, wait: Wait) -> Result<Step, Stop> {
        let due = self.checkpoint_due;
        match self.log.damages_eased().wait(eased + 1, wait.at_most(due)) {
            Ok(true) => Ok(Step::Worked),
            Ok(false) => Ok(Step::Idle { due }),
            Err(Closed) => self.finish(),
        }
    }

    fn checkpoint(&mut self) -> Result<(), Stop> {
        self.checkpoint_due = Deadline::NEVER;
        let applied = self.state.applied.get();
        let durable = self
            .engine
            .checkpoint()
            .map_err(|source| Stop::failed(ApplyError::Checkpoint { at: applied, source }))?;
        let durable = number(durable);
        assert!(durable <= applied, "engine checkpointed {durable}, beyond the {applied} that it applied");
        if durable > self.state.checkpointed.get() {
            self.state.checkpointed.advance(durable);
            self.pin.advance(Vlsn::after(Vlsn::new(durable)));
            self.state.advanced();
        }
        Ok(())
    }

    /// The node closes: apply nothing more, leave the engine durable.
    fn finish(&mut self) -> Result<Step, Stop> {
        if !self.state.lacks() {
            self.checkpoint()?;
        }
        Err(Stop::Done)
    }

    fn new_life(&mut self) -> Result<Step, Stop> {
        let life = self.log.life();
        if Arc::ptr_eq(&life, &self.life) {
            return self.finish();
        }
        self.life = life;
        self.scanner = self.log.scanner();
        Ok(Step::Worked)
    }

    fn apply_up_to(&mut self, limit: u64, wait: Wait) -> Result<Step, Stop> {
        let applied = self.state.applied.get();
        let most = (limit - applied).min(BATCH_ENTRIES) as u32;
        let eased = self.log.damages_eased().get();
        let run = match self.scanner.run(Vlsn::new(applied), most, BATCH_BYTES) {
            Ok(Some(run)) => run,
            Ok(None) => return self.idle(),
            Err(ScanError::LifeEnded) => return self.new_life(),
            // It waits until that is healed.
            Err(ScanError::Damaged { .. }) if self.state.heals.load(Ordering::Relaxed) => {
                return self.pause(eased, wait);
            }
            Err(error) => return Err(Stop::failed(ApplyError::Scan(error))),
        };
        let hook = self.state.on_verify.lock().clone();
        let verify = hook.as_ref().and_then(|_| {
            let found = run.entries().iter().find(|entry| entry.kind() == EntryKind::VERIFY);
            found.map(|entry| number(entry.header().vlsn))
        });
        if let Some(at) = verify.filter(|at| *at < run.last.vlsn.get()) {
            // What comes behind it waits: the engine is looked at as it is just there.
            return self.apply_up_to(at, wait);
        }
        let (first, last) = (run.first.get(), run.last.vlsn.get());
        assert!(first == applied + 1 && last <= limit, "apply would leave a hole or run ahead");
        self.engine
            .apply(run.entries())
            .map_err(|source| Stop::failed(ApplyError::Engine { after: applied, source }))?;
        self.state.applied.advance(last);
        if self.checkpoint_due == Deadline::NEVER {
            self.checkpoint_due = self.clock.now() + self.checkpoint_every;
        }
        self.state.advanced();
        if let (Some(hook), Some(at)) = (hook, verify.and_then(Vlsn::new)) {
            hook(at, self.engine.snapshot());
        }
        Ok(Step::Worked)
    }

    fn serve(&mut self, request: Request) -> Result<Step, Stop> {
        match request {
            Request::Snapshot(asked) => asked.give(self.snapshot()),
            Request::Install(install) => self.install(install)?,
        }
        Ok(Step::Worked)
    }

    fn snapshot(&mut self) -> Result<Snapshot, NoSnapshot> {
        if self.state.lacks() {
            return Err(NoSnapshot::Lacks);
        }
        let source = self.engine.snapshot().map_err(|error| NoSnapshot::Engine(error.to_string()))?;
        let source = source.ok_or(NoSnapshot::Unable)?;
        let (at, applied) = (source.at(), self.state.applied.get());
        if at.get() > applied {
            return Err(NoSnapshot::Ahead { at: at.get(), applied });
        }
        Ok(Snapshot { pin: self.log.pin("snapshot", at), source })
    }

    fn install(&mut self, install: Install) -> Result<(), Stop> {
        let Install { items, moves_log, settle, back_out, asked } = install;
        let at = items.at();
        let applied = self.state.applied.get();
        if applied > at.get() || (applied == at.get() && !moves_log) {
            // It was applied to while the intent was made durable. Setting it back would leave a hole.
            back_out()?;
            asked.give(());
            return Ok(());
        }
        let mut while_open = WhileOpen { items: &*items, closing: &self.state.closing };
        if let Err(source) = self.engine.install(&mut while_open) {
            // The intent is durable: opening the node again installs it anew.
            let closes = self.state.closing.load(Ordering::SeqCst);
            return Err(if closes { Stop::Done } else { Stop::failed(ApplyError::Install { at, source }) });
        }
        let applied = self.engine.applied();
        let applied = applied.map_err(|source| Stop::failed(ApplyError::Install { at, source }))?;
        if applied != Some(at) {
            return Err(Stop::failed(ApplyError::InstalledElsewhere { at, applied }));
        }
        settle()?;
        (self.life, self.scanner) = (self.log.life(), self.log.scanner());
        for watermark in [&self.state.committed, &self.state.applied, &self.state.checkpointed] {
            watermark.advance(at.get());
        }
        self.state.set_lacks(false);
        self.checkpoint_due = Deadline::NEVER;
        self.pin.advance(at.next());
        self.state.advanced();
        asked.give(());
        Ok(())
    }
}

impl Drop for Apply {
    fn drop(&mut self) {
        // Nobody will answer them.
        self.state.closing.store(true, Ordering::SeqCst);
        let left = std::mem::take(&mut *self.state.requests.lock());
        drop(left);
    }
}

impl Worker for Apply {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        if self.state.closing.load(Ordering::SeqCst) {
            return self.finish();
        }
        let request = self.state.requests.lock().pop_front();
        if let Some(request) = request {
            return self.serve(request);
        }
        if self.state.lacks() {
            rest(wait);
            return Ok(Step::Idle { due: Deadline::NEVER });
        }
        if self.clock.now() >= self.checkpoint_due {
            self.checkpoint()?;
        }
        let wait = wait.at_most(self.checkpoint_due);
        let target = self.state.applied.get() + 1;
        let skip_commit = active(Bug::ApplyBeforeCommit);
        match self.state.committed.wait(target, wait) {
            Ok(true) => {}
            Ok(false) if skip_commit => {}
            Ok(false) => return self.idle(),
            Err(Closed) => return self.finish(),
        }
        match self.life.flushed.wait(target, wait) {
            Ok(true) => {}
            Ok(false) => return self.idle(),
            Err(Closed) => return self.new_life(),
        }
        let committed = if skip_commit { u64::MAX } else { self.state.committed.get() };
        self.apply_up_to(committed.min(self.life.flushed.get()), wait)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::SystemClock;
    use crate::disk::RealDisk;
    use crate::engine::{Item, Items};
    use crate::entry::{Entries, NewEntry};
    use crate::ids::{GroupId, Term};
    use crate::log::LogConfig;

    #[derive(Default)]
    struct Store {
        at: u64,
        installs: Arc<AtomicUsize>,
    }

    impl Engine for Store {
        fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
            Ok(Vlsn::new(self.at))
        }
        fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
            self.at = entries.range().last().get();
            Ok(())
        }
        fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
            Ok(Vlsn::new(self.at))
        }
        fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
            self.installs.fetch_add(1, Ordering::SeqCst);
            self.at = items.at().get();
            Ok(())
        }
    }

    struct Nothing(Vlsn);

    impl Items for Nothing {
        fn at(&self) -> Vlsn {
            self.0
        }
        fn list(&self) -> &[Item] {
            &[]
        }
        fn open(&self, _at: usize) -> std::io::Result<Box<dyn Read + '_>> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn an_engine_that_went_on_meanwhile_is_not_set_back_by_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let clock = Arc::new(SystemClock);
        let (log, _) = Log::open(Arc::new(RealDisk), clock.clone(), config).unwrap();
        let last = log.append(Term::new(1), &[NewEntry::data(b"x"); 10]).unwrap().last.vlsn;
        assert!(log.flush(last, Wait::Now).unwrap());
        let state = Arc::new(ApplyState::new(None, None));
        let store = Store::default();
        let installs = Arc::clone(&store.installs);
        let mut apply =
            Apply::new(log, Box::new(store), Arc::clone(&state), clock, Duration::from_secs(3600));
        state.committed.advance(8);
        while state.applied.get() < 8 {
            apply.step(Wait::Now).unwrap();
        }
        for (at, moves_log, taken) in
            [(5, false, false), (5, true, false), (8, false, false), (8, true, true), (9, false, true)]
        {
            let before = installs.load(Ordering::SeqCst);
            let (settled, backed_out) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let note = |flag: &Arc<AtomicBool>| {
                let flag = Arc::clone(flag);
                Box::new(move || {
                    flag.store(true, Ordering::SeqCst);
                    Ok(())
                })
            };
            let (answer, asked) = Answer::new();
            state.ask(Request::Install(Install {
                items: Box::new(Nothing(Vlsn::new(at).unwrap())),
                moves_log,
                settle: note(&settled),
                back_out: note(&backed_out),
                asked,
            }));
            apply.step(Wait::Now).unwrap();
            assert_eq!(answer.take(Wait::Now), Ok(Some(())));
            let done = (settled.load(Ordering::SeqCst), backed_out.load(Ordering::SeqCst));
            let installed = installs.load(Ordering::SeqCst) - before;
            assert_eq!((done, installed), ((taken, !taken), usize::from(taken)), "{at}");
            assert_eq!(state.applied.get(), if taken { at } else { 8 });
        }
    }

    /// An engine during whose install the node closes.
    struct Surprised(Arc<ApplyState>);

    impl Engine for Surprised {
        fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
            Ok(None)
        }
        fn apply(&mut self, _entries: Entries<'_>) -> Result<(), EngineError> {
            Ok(())
        }
        fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
            panic!("it is half installed")
        }
        fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
            let mut bytes = items.open(0)?;
            bytes.read_exact(&mut [0; 100])?;
            self.0.close();
            assert!(items.open(0).is_err());
            std::io::copy(&mut bytes, &mut std::io::sink())?;
            Ok(())
        }
    }

    /// One item that has no end.
    struct Endless;

    impl Items for Endless {
        fn at(&self) -> Vlsn {
            Vlsn::new(9).unwrap()
        }
        fn list(&self) -> &[Item] {
            &[]
        }
        fn open(&self, _at: usize) -> std::io::Result<Box<dyn Read + '_>> {
            Ok(Box::new(std::io::repeat(7)))
        }
    }

    #[test]
    fn an_engine_that_reads_a_snapshot_when_the_node_closes_is_stopped_and_nothing_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let clock = Arc::new(SystemClock);
        let (log, _) = Log::open(Arc::new(RealDisk), clock.clone(), config).unwrap();
        let state = Arc::new(ApplyState::new(None, None));
        let engine = Box::new(Surprised(Arc::clone(&state)));
        let mut apply = Apply::new(log, engine, Arc::clone(&state), clock, Duration::from_secs(3600));
        let (answer, asked) = Answer::new();
        let not = |what: &'static str| move || -> Result<(), Stop> { panic!("{what}") };
        state.ask(Request::Install(Install {
            items: Box::new(Endless),
            moves_log: true,
            settle: Box::new(not("it is settled")),
            back_out: Box::new(not("it is backed out of")),
            asked,
        }));
        let stop = apply.step(Wait::Now);
        assert!(matches!(stop, Err(Stop::Done)), "{stop:?}");
        assert!(answer.take(Wait::Now).is_err());
    }
}
