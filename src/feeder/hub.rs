//! What all feeders of a node share: by what right they feed, from what, and what they learn for the commit gates.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::address::Address;
use crate::clock::{Clock, Wait};
use crate::commit::{CommitGates, End};
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::feeder::connection::Connection;
use crate::feeder::output::Pumped;
use crate::feeder::registry::Registry;
use crate::feeder::status::FeederState;
use crate::handshake::Identity;
use crate::ids::{NodeId, Position, Term, Vlsn, number};
use crate::log::scanner::{LogScanner, Run, ScanError};
use crate::matchpoint::{BadHistory, History, Standing};
use crate::members::{Health, Roll};
use crate::planted::{Bug, active};
use crate::policy::{Level, Policy};
use crate::progress::Positions;
use crate::runtime::Runtime;
use crate::watermark::Watermark;
use crate::wire::message::{EntriesHead, Feed, Message};
use crate::worker::Stop;

/// A log that replicas are fed from: quorate's own, or one that an engine keeps itself.
///
/// Any thread may call any method; none blocks for longer than a read of the log.
pub trait Source: Send + Sync {
    /// A new reader.
    fn scanner(&self) -> Box<dyn LogScanner>;
    /// The last entry.
    fn last(&self) -> Option<Vlsn>;
    /// The terms that the log holds.
    ///
    /// # Errors
    /// [`BadHistory`], if what the log tells of itself makes no sense.
    fn history(&self) -> Result<History, BadHistory>;
    /// The term and CRC of one entry.
    ///
    /// # Errors
    /// [`ScanError`].
    fn position_at(&self, vlsn: Vlsn) -> Result<Position, ScanError>;
    /// How far this node itself has come: written, flushed, applied, checkpointed.
    fn positions(&self) -> Positions;
    /// Takes note that the group has committed up to here.
    fn committed(&self, vlsn: Vlsn);
    /// Keeps the entries after `from` from being pruned, in the name of `owner`; replaces the owner's earlier pin.
    fn pin(&self, owner: &str, from: Vlsn);
    /// Gives the owner's pin up.
    fn unpin(&self, owner: &str);
    /// About how many bytes of entries follow `after`.
    fn bytes_after(&self, after: Option<Vlsn>) -> u64;
}

/// What a node that follows a master tells those whom it passes its log on to.
pub struct Upstream {
    /// The term that it follows.
    pub term: Term,
    /// How far it knows the group to be committed. Must not block.
    pub committed: Box<dyn Fn() -> Option<Vlsn> + Send + Sync>,
    /// Where the master listens, for those who have to be fed by it. Must not block.
    pub hint: Box<dyn Fn() -> Option<Address> + Send + Sync>,
}

/// By what right a node feeds others.
pub(super) enum Reign {
    /// It is the master of the term: what its voters acknowledge counts, and it orders what its log lacks to be cut.
    Leads(Arc<CommitGates>),
    /// It is a replica itself: acks to it count for nothing, and it orders no cut.
    Follows(Upstream),
}

/// The feeders of one term of one node.
pub(super) struct Hub {
    pub config: Arc<CheckedConfig>,
    identity: Identity,
    pub roll: Arc<Roll>,
    pub source: Arc<dyn Source>,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub reign: Reign,
    counters: Arc<Counters>,
    /// The last entry that feeders may ask their scanners for, and are woken for.
    feed: Watermark,
    durable_wanted: AtomicU64,
    applied_wanted: AtomicU64,
    /// The highest newer term that a replica told of; 0 if none.
    fenced: AtomicU32,
    on_fence: OnceLock<Box<dyn Fn(Term) + Send + Sync>>,
    /// Commits under way.
    committing: AtomicUsize,
    pub registry: Mutex<Registry>,
    /// The connections of `registry.replicas`, for the commit path, which must not allocate.
    pub streams: Mutex<Arc<[Arc<Connection>]>>,
    /// Whether an arbiter is among them.
    pub arbiters: AtomicBool,
    /// The last flushed position that arbiters were told of, or are about to be.
    flushed_told: AtomicU64,
    /// Rises after every change of the member list.
    pub lists: AtomicU64,
    pub on_failure: Box<dyn Fn(&Stop) + Send + Sync>,
}

/// How a hub is made.
pub(super) struct Parts {
    pub config: Arc<CheckedConfig>,
    pub identity: Identity,
    pub roll: Arc<Roll>,
    pub source: Arc<dyn Source>,
    pub runtime: Arc<dyn Runtime>,
    pub reign: Reign,
    pub counters: Arc<Counters>,
    pub on_failure: Box<dyn Fn(&Stop) + Send + Sync>,
}

impl Hub {
    pub fn new(parts: Parts) -> Hub {
        let feed = number(parts.source.last());
        Hub {
            clock: parts.runtime.clock(),
            config: parts.config,
            identity: parts.identity,
            roll: parts.roll,
            source: parts.source,
            runtime: parts.runtime,
            reign: parts.reign,
            counters: parts.counters,
            feed: Watermark::new(feed),
            durable_wanted: AtomicU64::new(0),
            applied_wanted: AtomicU64::new(0),
            fenced: AtomicU32::new(0),
            on_fence: OnceLock::new(),
            committing: AtomicUsize::new(0),
            registry: Mutex::new(Registry::default()),
            streams: Mutex::new(Arc::new([])),
            arbiters: AtomicBool::new(false),
            flushed_told: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            on_failure: parts.on_failure,
        }
    }

    pub fn config(&self) -> &CheckedConfig {
        &self.config
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    pub fn source(&self) -> &dyn Source {
        &*self.source
    }

    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    pub fn runtime(&self) -> &dyn Runtime {
        &*self.runtime
    }

    /// The gates, if this node leads.
    pub fn gates(&self) -> Option<&CommitGates> {
        match &self.reign {
            Reign::Leads(gates) => Some(gates),
            Reign::Follows(_) => None,
        }
    }

    /// By what right it feeds, as it tells its replicas.
    pub fn right(&self) -> Feed {
        match &self.reign {
            Reign::Leads(_) => Feed::Leads,
            Reign::Follows(_) => Feed::Follows,
        }
    }

    /// By what right it judges their logs.
    pub fn standing(&self) -> Standing {
        match &self.reign {
            Reign::Follows(_) if !active(Bug::CascadeOrdersRollback) => Standing::Follows,
            _ => Standing::Leads(self.term()),
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn term(&self) -> Term {
        match &self.reign {
            Reign::Leads(gates) => gates.mastership().term,
            Reign::Follows(upstream) => upstream.term,
        }
    }

    pub fn feed(&self) -> &Watermark {
        &self.feed
    }

    pub fn committed(&self) -> Option<Vlsn> {
        match &self.reign {
            Reign::Leads(gates) => Vlsn::new(gates.committed().get()),
            Reign::Follows(upstream) => (upstream.committed)(),
        }
    }

    /// Whether a heartbeat may tell this peer what is committed: to a newcomer it says that it counts from now on. Its
    /// directory may be new in the place of one that promised a newer term, or made up the majority of one. So first
    /// an entry of this term that was appended after it came has to be committed, which it does not count for: then a
    /// majority without it holds that entry, none of which had promised a newer term when the newcomer came, and a master of a
    /// newer term that it helped to make would need one of them.
    pub fn may_admit(&self, to: &Connection, committed: Vlsn) -> bool {
        let Some(gates) = self.gates().filter(|_| to.is_newcomer()) else { return true };
        committed >= gates.mastership().term_start && committed.get() > to.came_at()
    }

    /// Whether a newcomer waits for an entry to be appended.
    pub fn newcomer_waits(&self) -> bool {
        let last = number(self.source.last());
        self.streaming().iter().any(|to| to.is_newcomer() && to.came_at() >= last)
    }

    pub fn own_positions(&self) -> Positions {
        self.source.positions()
    }

    /// What arbiters are told to be flushed: nothing of earlier terms, of which they can't say what became.
    pub fn flushed_in_term(&self, own: Positions) -> Option<Vlsn> {
        let start = self.gates().map(|gates| gates.mastership().term_start);
        own.durable.filter(|flushed| start.is_some_and(|start| *flushed >= start))
    }

    pub fn health(&self) -> Health {
        let degraded = self.gates().is_some_and(CommitGates::degraded);
        if degraded { Health::Degraded } else { Health::Healthy }
    }

    /// Up to where writers wait for durable and for applied entries: replicas hasten those.
    pub fn wanted(&self) -> (Option<Vlsn>, Option<Vlsn>) {
        let at = |wanted: &AtomicU64| Vlsn::new(wanted.load(Ordering::Relaxed));
        (at(&self.durable_wanted), at(&self.applied_wanted))
    }

    /// Notes what the writer of this entry waits for.
    pub fn want(&self, policy: Policy, vlsn: Vlsn) {
        let Some(rule) = policy.rule() else { return };
        if rule.level >= Level::Durable {
            self.durable_wanted.fetch_max(vlsn.get(), Ordering::Relaxed);
        }
        if rule.level >= Level::Applied {
            self.applied_wanted.fetch_max(vlsn.get(), Ordering::Relaxed);
        }
    }

    /// What is said at the head of a frame with this run.
    pub fn entries_head(&self, run: &Run<'_>) -> EntriesHead {
        let (durable_wanted, applied_wanted) = self.wanted();
        let (first, last) = (run.first, run.last.vlsn);
        EntriesHead { committed: self.committed(), durable_wanted, applied_wanted, first, last }
    }

    /// Takes the master's own news: its flusher's, its apply worker's, or after a write.
    pub fn own_progress(&self) {
        let Some(gates) = self.gates() else { return };
        let own = self.source.positions();
        gates.master_at(own);
        self.note_committed();
        if self.arbiters.load(Ordering::Relaxed) {
            self.tell_arbiters(number(own.durable));
        }
    }

    /// Passes on how far the group has committed.
    pub fn note_committed(&self) {
        if let Some(committed) = self.gates().and_then(|gates| Vlsn::new(gates.committed().get())) {
            self.source.committed(committed);
        }
    }

    /// Tells arbiters how far the master has flushed, which is what they acknowledge. Never blocks.
    fn tell_arbiters(&self, flushed: u64) {
        if self.flushed_told.fetch_max(flushed, Ordering::SeqCst) < flushed {
            let streaming = self.streaming();
            streaming.iter().filter(|to| to.is_arbiter()).for_each(|arbiter| self.beat(arbiter));
        }
    }

    /// Sends a heartbeat on this connection, now or as soon as its sender is free. Never blocks.
    pub fn beat(&self, to: &Arc<Connection>) {
        let sent = match to.output.try_lock().as_deref_mut() {
            Some(Some(output)) => output.heartbeat(self, to, Wait::Now),
            // A stream that has not begun.
            Some(None) => return,
            None => Ok(false),
        };
        match sent {
            Ok(true) => {}
            Ok(false) => to.want_beat(),
            Err(error) => self.end(to, error),
        }
    }

    /// Sends a heartbeat on every stream.
    pub fn beat_all(&self) {
        self.streaming().iter().for_each(|to| self.beat(to));
    }

    /// Asks this replica to stand for election. `false` if that could not be said now.
    pub fn ask_to_stand(&self, node: &NodeId) -> bool {
        let streaming = self.streaming();
        let Some(to) = streaming.iter().find(|to| to.node.get() == Some(node)) else { return false };
        if to.is_arbiter() || !matches!(to.state(), FeederState::Streaming | FeederState::CatchingUp) {
            return false;
        }
        let said = match to.output.try_lock().as_deref_mut() {
            Some(Some(output)) => output.message(self, to, &Message::Stand, Wait::Now),
            _ => Ok(false),
        };
        said.unwrap_or_else(|error| {
            self.end(to, error);
            false
        })
    }

    /// Sends what was just appended, from the committing thread itself, to every replica whose sender is free, and
    /// wakes the senders of the others.
    pub fn push(&self, last: Vlsn) {
        let mut left = false;
        for connection in self.streaming().iter() {
            if connection.state() == FeederState::Paused || connection.is_arbiter() {
                continue;
            }
            let Some(mut output) = connection.output.try_lock() else {
                left = true;
                continue;
            };
            let Some(output) = output.as_mut() else { continue };
            // More than one small frame behind is the feeder's own work.
            if output.sent() >= Some(last) {
                continue;
            }
            match output.pump(self, connection, PUSH_BYTES, Wait::Now) {
                Ok(Pumped::Sent) if output.sent() >= Some(last) => {}
                Ok(_) => left = true,
                Err(error) => self.end(connection, error),
            }
        }
        if left {
            self.feed.advance(last.get());
        }
    }

    /// Lets the feeders send up to here.
    pub fn wake_feeders(&self, last: Vlsn) {
        self.feed.advance(last.get());
    }

    /// Tells replicas how far the group has committed, but those who heard of `committed` with an entry meanwhile.
    pub fn tell_committed(&self, committed: u64) {
        for connection in self.streaming().iter().filter(|to| !to.is_arbiter()) {
            let Some(mut output) = connection.output.try_lock() else { continue };
            let Some(output) = output.as_mut().filter(|output| number(output.told()) < committed) else {
                continue;
            };
            if let Err(error) = output.heartbeat(self, connection, Wait::Now) {
                self.end(connection, error);
            }
        }
    }

    /// A commit begins: whether it is the only one.
    pub fn commit_begins(&self) -> bool {
        self.committing.fetch_add(1, Ordering::SeqCst) == 0
    }

    pub fn commit_ends(&self) {
        self.committing.fetch_sub(1, Ordering::SeqCst);
    }

    /// There is a newer term: nothing can be committed in ours any more.
    pub fn fence(&self, newer: Term) {
        self.fenced.fetch_max(newer.get(), Ordering::SeqCst);
        self.close_gates(End::Deposed);
    }

    /// A replica told of a newer term.
    pub fn told_of(&self, newer: Term) {
        self.fence(newer);
        if let Some(hook) = self.on_fence.get() {
            hook(newer);
        }
    }

    /// Sets who is told of newer terms; the first stays.
    pub fn on_fence(&self, hook: Box<dyn Fn(Term) + Send + Sync>) {
        let _first = self.on_fence.set(hook);
    }

    pub fn close_gates(&self, end: End) {
        if let Some(gates) = self.gates() {
            gates.close(end);
        }
    }

    /// The newer term by which this master was fenced.
    pub fn fenced(&self) -> Option<Term> {
        Some(Term::new(self.fenced.load(Ordering::SeqCst))).filter(|term| *term != Term::NONE)
    }
}

/// A committing thread sends frames up to this size itself; a socket takes that much in one go.
const PUSH_BYTES: usize = 16 << 10;
