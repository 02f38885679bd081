//! What every node has, whatever its part in the group: a log, small state, an engine behind an apply worker.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::apply::{Apply, ApplyState};
use crate::channel::Channel;
use crate::clock::{Clock, Wait};
use crate::config::{CheckedConfig, Config, ConfigError};
use crate::counters::Counters;
use crate::disk::{Disk, RealDisk};
use crate::engine::{Engine, EngineError};
use crate::handshake::Identity;
use crate::ids::{Position, Term, Vlsn, number};
use crate::log::{DoubtfulTail, Log, LogConfig, OpenError, Opened, last_membership};
use crate::members::{Member, Members, Role, Standing};
use crate::node::install::{finish_install, load_base};
use crate::node::lacking::{Judged, Stands};
use crate::planted::{Bug, active};
use crate::policy::Token;
use crate::runtime::{Running, Runtime, ThreadRuntime};
use crate::state::{State, StateError, StateFile};
use crate::watermark::Watermark;
use crate::worker::{Stop, Worker};

/// What a node runs on: the machine, or a simulation of one.
#[derive(Clone)]
pub struct Host {
    /// Time, chance, threads and connections.
    pub runtime: Arc<dyn Runtime>,
    /// Files.
    pub disk: Arc<dyn Disk>,
}

impl Host {
    /// This machine.
    pub fn machine() -> Host {
        Host { runtime: Arc::new(ThreadRuntime), disk: Arc::new(RealDisk) }
    }
}

/// Why a node did not open.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The configuration can't work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log did not open.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The small state did not open.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file operation outside the log failed.
    #[error("can't prepare {path}: {kind}", path = path.display())]
    Io {
        /// The path.
        path: std::path::PathBuf,
        /// The system's error.
        kind: std::io::ErrorKind,
    },
    /// The engine can't tell where it is.
    #[error("the engine can't tell what it has applied: {0}")]
    Engine(EngineError),
    /// The directory has a log and lost what goes with it: the terms that this node has led and followed.
    #[error(
        "{path} does not exist, but the log holds entries up to VLSN {last}: the directory was restored in part; restore all of it, or wipe it and rejoin",
        path = path.display()
    )]
    StateLost {
        /// The file that is missing.
        path: std::path::PathBuf,
        /// Where the log ends.
        last: Vlsn,
    },
    /// Entries that were durable are damaged, and this node is alone with them.
    #[error(
        "VLSN {from} up to {to:?} in {dir} are damaged, and the group has no other node with data: look at \
         `quorate log repair {dir}`, which fetches them from a copy or drops them",
        dir = dir.display()
    )]
    DamagedAlone {
        /// The node's directory.
        dir: std::path::PathBuf,
        /// The first that can't be read.
        from: Vlsn,
        /// The last that is known to have been here.
        to: Option<Vlsn>,
    },
    /// The engine holds entries that the log does not.
    #[error("the engine has applied VLSN {applied}, but the log ends at {}: they do not belong together; restore both from one copy, or start with an empty engine and directory", number(*.last))]
    EngineAhead {
        /// What the engine has.
        applied: Vlsn,
        /// Where the log ends.
        last: Option<Vlsn>,
    },
    /// The log begins after what the engine needs next.
    #[error("the engine has applied only VLSN {}, but the log begins at {oldest}: a snapshot is needed", number(*.applied))]
    EngineBehind {
        /// What the engine has.
        applied: Option<Vlsn>,
        /// Where the log begins.
        oldest: Vlsn,
    },
    /// A snapshot is half installed, and that could not be finished.
    #[error("the install of a snapshot could not be finished: {0}")]
    Install(#[from] crate::node::install::InstallError),
    /// The node can't listen.
    #[error("can't listen at {at}: {kind}")]
    Listen {
        /// The address.
        at: crate::address::Address,
        /// The system's error.
        kind: std::io::ErrorKind,
    },
    /// The first entry of the term could not be written.
    #[error("the term could not be opened in the log: {0}")]
    TermStart(#[from] crate::log::AppendError),
    /// A group is founded in a directory that is a node's already.
    #[error("{path} exists: this directory belongs to a node already; open it instead of founding a group", path = path.display())]
    Founded {
        /// The node's small state.
        path: std::path::PathBuf,
    },
    /// A restore from an archive did not end.
    #[error("a restore into {dir} did not end: remove the directory, and restore again", dir = dir.display())]
    HalfRestored {
        /// The node's directory.
        dir: std::path::PathBuf,
    },
    /// A node that is to lead is no voter.
    #[error("{0} is not electable and can't be master")]
    NotElectable(crate::ids::NodeId),
}

/// What became of the entry that a token names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is committed.
    Committed,
    /// Another entry was committed in its place, or a later term began before it: it is gone.
    RolledBack,
    /// This node can't tell, yet or any more.
    Unknown,
}

/// Why a wait for a token failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// It names another group's entry.
    #[error("the token belongs to another group")]
    OtherGroup,
    /// The entry is gone.
    #[error("the entry was rolled back: term {term} holds VLSN {vlsn} in its place")]
    RolledBack {
        /// The place.
        vlsn: Vlsn,
        /// The term that holds it, or that began before it.
        term: Term,
    },
    /// The engine is past the entry's place, but the log no longer tells which term's entry stood there.
    #[error("the log was pruned beyond VLSN {vlsn}, and no longer tells which term's entry it was")]
    Pruned {
        /// The place.
        vlsn: Vlsn,
    },
    /// The node is closing or stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// How a directory that is not there yet is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Founding {
    /// Whatever its node acknowledges from now on is all that it ever did: a fixed part in a group, or a founder's.
    Fixed,
    /// As the directory of a founder, and it must not exist.
    Found,
    /// As that of a newcomer, if it does not exist.
    Join,
    /// Not at all.
    Open,
}

/// As many reasons are kept.
const MAX_REASONS: usize = 4;

/// A node's common part.
pub(super) struct Core {
    pub config: Arc<CheckedConfig>,
    pub host: Host,
    pub clock: Arc<dyn Clock>,
    pub log: Log,
    pub apply: Arc<ApplyState>,
    pub counters: Arc<Counters>,
    pub identity: Identity,
    pub poison: Arc<Poison>,
    /// 1 once the apply worker has ended.
    apply_ended: Arc<Watermark>,
    workers: Mutex<Vec<Arc<dyn Running>>>,
}

/// What is opened before it runs.
pub(super) struct Unstarted {
    pub core: Core,
    pub state: StateFile,
    pub opened: Opened,
    engine: Box<dyn Engine>,
}

/// Set by the first worker that can't go on. The node takes no further part in its group.
#[derive(Default)]
pub(super) struct Poison {
    /// What the workers say that can't go on: the first is not always the one that saw the cause.
    reasons: Mutex<Vec<String>>,
    /// What cuts the node's ties; set when it is put together.
    sever: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl Poison {
    pub fn on_poison(&self, sever: Arc<dyn Fn() + Send + Sync>) {
        *self.sever.lock() = Some(Arc::clone(&sever));
        if self.reason().is_some() {
            sever();
        }
    }

    /// Cuts the node's ties first: whoever is told the reason finds nothing going on.
    pub fn strike(&self, stop: &Stop) {
        let Stop::Failed(reason) = stop else { return };
        log::error!("this node takes no further part in its group: {reason}");
        let cut = self.cut();
        {
            let text = stop.to_string();
            let mut reasons = self.reasons.lock();
            if reasons.len() < MAX_REASONS && !reasons.contains(&text) {
                reasons.push(text);
            }
        }
        if !cut {
            // The node was being put together, and did not see the reason yet.
            self.cut();
        }
    }

    fn cut(&self) -> bool {
        let sever = self.sever.lock().clone();
        sever.is_some_and(|sever| {
            sever();
            true
        })
    }

    pub fn reason(&self) -> Option<String> {
        let reasons = self.reasons.lock();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

impl Core {
    /// Opens the directory's log and small state, and checks that the engine belongs to them.
    pub fn open(
        config: Config,
        host: Host,
        engine: Box<dyn Engine>,
        doubtful: crate::log::DoubtfulTail,
    ) -> Result<Unstarted, NodeError> {
        let config = Arc::new(config.check()?);
        is_whole(&config, &host)?;
        let (log, opened) = open_log(&config, &host, doubtful)?;
        let state = open_state(&config, &host, &log, Founding::Fixed)?;
        Core::assemble(config, host, engine, state, log, opened, None)
    }

    /// Opens the directory of a node whose part may change. If the log's end is in doubt, that is noted durably before
    /// anything is cut.
    pub fn open_in_group(
        config: Config,
        host: Host,
        mut engine: Box<dyn Engine>,
        founding: Founding,
    ) -> Result<Unstarted, NodeError> {
        let config = Arc::new(config.check()?);
        is_whole(&config, &host)?;
        finish_install(&host, log_config(&config, DoubtfulTail::Cut), &config.dir, &mut *engine)?;
        let path = config.dir.join("state");
        if founding == Founding::Found && host.disk.open(&path).is_ok() {
            return Err(NodeError::Founded { path });
        }
        let (log, opened) = match open_log(&config, &host, DoubtfulTail::RefuseHoles) {
            Err(NodeError::Log(OpenError::Damaged { from, to, .. })) => {
                refuse_alone(&config, &host, from, to)?;
                let state = StateFile::open(&*host.disk, &path)?;
                let to = to.map_or(from, |to| to.max(from));
                let before = state.state().standing;
                if !matches!(before, Standing::Damaged { .. }) {
                    crate::log::retire_saved(&*host.disk, &config.dir.join("log"))
                        .map_err(OpenError::from)?;
                }
                state.update(|mut state| {
                    state.standing = before.damaged(from, to, false);
                    state
                })?;
                log::error!("{}: VLSN {from} to {to} are damaged, and have to come from others", config.node);
                open_log(&config, &host, DoubtfulTail::CutDurable)?
            }
            Err(NodeError::Log(OpenError::Doubtful { from, .. })) => {
                let state = StateFile::open(&*host.disk, &path)?;
                state.update(|mut state| {
                    state.standing = match state.standing {
                        Standing::Newcomer => Standing::Newcomer,
                        Standing::Doubtful { from: before } => Standing::Doubtful { from: before.min(from) },
                        Standing::Damaged { from: before, to, open } => {
                            Standing::Damaged { from: before.min(from), to, open }
                        }
                        Standing::Full { .. } => Standing::Doubtful { from },
                    };
                    state
                })?;
                log::warn!("{}: what the log held from VLSN {from} on is in doubt", config.node);
                open_log(&config, &host, DoubtfulTail::Cut)?
            }
            opened => opened?,
        };
        if let Some(lost) = log.damaged().first() {
            refuse_alone(&config, &host, lost.first(), Some(lost.last()))?;
        }
        let state = open_state(&config, &host, &log, founding)?;
        let unstarted = Core::assemble(config, host, engine, state, log, opened, Some(founding))?;
        unstarted.core.apply.heals.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(unstarted)
    }

    fn assemble(
        config: Arc<CheckedConfig>,
        host: Host,
        mut engine: Box<dyn Engine>,
        state: StateFile,
        log: Log,
        opened: Opened,
        founding: Option<Founding>,
    ) -> Result<Unstarted, NodeError> {
        let clock = host.runtime.clock();
        let identity = Identity { incarnation: state.state().incarnation, session: host.runtime.random() };
        let applied = engine.applied().map_err(NodeError::Engine)?;
        let judged = Judged { config: &config, disk: &*host.disk, log: &log, state: &state, founding };
        let Stands { applied, lacks } = judged.judge(applied)?;
        let last = log.last().map(|last| last.vlsn);
        let apply = Arc::new(ApplyState::new(log.known_committed().min(last), applied));
        apply.set_lacks(lacks);
        let core = Core {
            config,
            clock,
            log,
            apply,
            counters: Arc::default(),
            identity,
            poison: Arc::default(),
            apply_ended: Arc::new(Watermark::new(0)),
            workers: Mutex::default(),
            host,
        };
        Ok(Unstarted { core, state, opened, engine })
    }

    /// Runs a worker until the node closes; its failure poisons the node.
    pub fn spawn(
        &self,
        name: &str,
        worker: impl Worker + 'static,
        channels: Vec<Arc<dyn Channel>>,
    ) -> Arc<dyn Running> {
        let poison = Arc::clone(&self.poison);
        let on_end = Box::new(move |stop: &Stop| poison.strike(stop));
        let running = self.host.runtime.spawn(name.to_owned(), Box::new(worker), channels, on_end);
        let mut workers = self.workers.lock();
        // A mastership's worker ends with it: what has ended need not be joined.
        workers.retain(|worker| worker.ended().is_none());
        workers.push(Arc::clone(&running));
        running
    }

    /// Starts what every node runs: the log's flusher and the apply worker.
    fn start(&self, engine: Box<dyn Engine>) {
        self.spawn("log-flush", self.log.flusher(), Vec::new());
        let apply = Apply::new(
            self.log.clone(),
            engine,
            Arc::clone(&self.apply),
            Arc::clone(&self.clock),
            self.config.checkpoint_every,
        );
        let (poison, ended) = (Arc::clone(&self.poison), Arc::clone(&self.apply_ended));
        let on_end = Box::new(move |stop: &Stop| {
            ended.advance(1);
            poison.strike(stop);
        });
        let running = self.host.runtime.spawn("apply".to_owned(), Box::new(apply), Vec::new(), on_end);
        self.apply.runs(Arc::clone(&running));
        self.workers.lock().push(running);
    }

    /// The term of the entry that holds `vlsn` here, if the log still tells.
    fn term_at(&self, vlsn: Vlsn) -> Option<Term> {
        let base = self.log.base().map(|base: Position| base.vlsn);
        if Some(vlsn) < base || self.log.last().is_none_or(|last| vlsn > last.vlsn) {
            return None;
        }
        if let Some(base) = self.log.base().filter(|base| base.vlsn == vlsn) {
            return Some(base.term);
        }
        self.log.term_history().iter().rev().find(|span| span.first <= vlsn).map(|span| span.term)
    }

    /// What became of a token's entry, as far as this node knows. Does not block.
    pub fn ask(&self, token: &Token) -> Answer {
        if token.group != self.config.group {
            return Answer::Unknown;
        }
        let committed = Vlsn::new(self.apply.committed.get());
        if self.supplanted(token).is_some() {
            return Answer::RolledBack;
        }
        if active(Bug::TokenComparesVlsnOnly) && Some(token.vlsn) <= committed {
            return Answer::Committed;
        }
        if Some(token.vlsn) > committed {
            return Answer::Unknown;
        }
        match self.term_at(token.vlsn) {
            Some(term) if term == token.term => Answer::Committed,
            Some(_) => Answer::RolledBack,
            None => Answer::Unknown,
        }
    }

    /// Waits until this node's engine shows the token's entry.
    pub fn wait_for(&self, token: &Token, wait: Wait) -> Result<bool, TokenError> {
        if token.group != self.config.group {
            return Err(TokenError::OtherGroup);
        }
        loop {
            if let Some(term) = self.supplanted(token) {
                return Err(TokenError::RolledBack { vlsn: token.vlsn, term });
            }
            let applied = self.apply.applied.get();
            if applied >= token.vlsn.get() {
                break;
            }
            // Looked at with every advance: a newer term may begin before the entry's place, and then nothing may come
            // to that place for a long time.
            let advanced =
                self.apply.applied.wait(applied + 1, wait).map_err(|_closed| TokenError::Stopped)?;
            // A wake-up that was meant for another wait of this thread does not end this one.
            if !advanced && wait.remaining().is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
        match self.term_at(token.vlsn) {
            _ if active(Bug::TokenComparesVlsnOnly) => Ok(true),
            Some(term) if term == token.term => Ok(true),
            Some(term) => Err(TokenError::RolledBack { vlsn: token.vlsn, term }),
            None => Err(TokenError::Pruned { vlsn: token.vlsn }),
        }
    }

    /// The newer term, if one that is committed began at the token's place or before.
    fn supplanted(&self, token: &Token) -> Option<Term> {
        if active(Bug::TokenComparesVlsnOnly) {
            return None;
        }
        let committed = Vlsn::new(self.apply.committed.get());
        if self.log.last().is_none_or(|last| last.term <= token.term) {
            return None;
        }
        let later = self.log.term_history().into_iter().find(|span| span.term > token.term)?;
        (later.first <= token.vlsn && Some(later.first) <= committed).then_some(later.term)
    }

    /// Ends apply, the log and all workers. The node's own connections have been ended before.
    pub fn close(&self, wait: Wait) {
        self.apply.close();
        // The apply worker may wait for a flush that does not come.
        self.workers.lock().iter().for_each(|worker| worker.poke());
        // A closed watermark can't fail this wait: it is never closed.
        let _ended = self.apply_ended.wait(1, wait);
        self.log.on_flushed(None);
        self.apply.on_advance(None);
        if let Err(error) = self.log.close() {
            log::warn!("the log closed with an error: {error}");
        }
        self.apply.applied.close();
        let workers = std::mem::take(&mut *self.workers.lock());
        for worker in workers {
            worker.join();
        }
    }
}

fn open_log(
    config: &Arc<CheckedConfig>,
    host: &Host,
    doubtful: DoubtfulTail,
) -> Result<(Log, Opened), NodeError> {
    let io = |error: std::io::Error| NodeError::Io { path: config.dir.clone(), kind: error.kind() };
    host.disk.create_dir(&config.dir).map_err(io)?;
    // The log's lock covers the whole directory.
    Ok(Log::open(Arc::clone(&host.disk), host.runtime.clock(), log_config(config, doubtful))?)
}

fn log_config(config: &CheckedConfig, doubtful: DoubtfulTail) -> LogConfig {
    LogConfig {
        dir: config.dir.join("log"),
        group: config.group,
        segment_bytes: config.segment_bytes,
        max_payload: config.max_payload,
        lazy_flush: config.lazy_flush,
        doubtful,
    }
}

/// Damage heals from other nodes. Where there are none, nothing is given up but by an operator.
fn refuse_alone(config: &CheckedConfig, host: &Host, from: Vlsn, to: Option<Vlsn>) -> Result<(), NodeError> {
    let listed = last_membership(&*host.disk, &config.dir.join("log")).map_err(OpenError::from)?;
    let listed = listed.and_then(|payload| Members::decode(&payload).ok());
    let members = match listed {
        Some(members) => members,
        None => {
            load_base(&*host.disk, &config.dir)?.map_or_else(|| config.members.clone(), |base| base.members)
        }
    };
    let other = |member: &Member| member.id != config.node && member.role != Role::Arbiter;
    if members.find(&config.node).is_none() || members.iter().any(other) {
        return Ok(());
    }
    Err(NodeError::DamagedAlone { dir: config.dir.clone(), from, to })
}

/// What a restore left half done is not touched: not even the engine.
fn is_whole(config: &CheckedConfig, host: &Host) -> Result<(), NodeError> {
    match crate::archive::restore::is_unfinished(&*host.disk, &config.dir) {
        true => Err(NodeError::HalfRestored { dir: config.dir.clone() }),
        false => Ok(()),
    }
}

fn open_state(
    config: &CheckedConfig,
    host: &Host,
    log: &Log,
    founding: Founding,
) -> Result<StateFile, NodeError> {
    let path = config.dir.join("state");
    let (group, node) = (config.group, config.node.clone());
    let standing = match founding {
        Founding::Join => Standing::Newcomer,
        Founding::Fixed | Founding::Found | Founding::Open => Standing::Full { since: Term::NONE },
    };
    let state = match StateFile::open(&*host.disk, &path) {
        Err(StateError::Missing { path }) if founding != Founding::Open => {
            // It is made before the first entry is.
            if let Some(last) = log.last() {
                return Err(NodeError::StateLost { path, last: last.vlsn });
            }
            let state = State::new(group, node, host.runtime.random(), standing);
            StateFile::create(&*host.disk, &path, state)?
        }
        opened => opened?,
    };
    state.belongs_to(config.group, &config.node)?;
    Ok(state)
}

impl Unstarted {
    /// Starts the common workers.
    pub fn start(self) -> (Core, StateFile) {
        self.core.start(self.engine);
        (self.core, self.state)
    }
}
