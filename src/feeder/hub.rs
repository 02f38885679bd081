//! What all feeders of a master share: whom they feed, from what, and what they learn for the commit gates.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::channel::Channel;
use crate::clock::{Clock, Deadline, Wait};
use crate::commit::{CommitGates, End};
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::feeder::acks::FeederAcks;
use crate::feeder::connection::{Connection, FeedError};
use crate::feeder::output::Pumped;
use crate::feeder::status::{FeederState, ReplicaStats};
use crate::handshake::Identity;
use crate::ids::{NodeId, Position, Term, Vlsn, number};
use crate::log::scanner::{LogScanner, Run, ScanError};
use crate::matchpoint::{BadHistory, History};
use crate::members::Health;
use crate::policy::{Level, Policy};
use crate::progress::Positions;
use crate::runtime::{Running, Runtime};
use crate::watermark::Watermark;
use crate::wire::message::{Bye, ByeReason, EntriesHead, Message};
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

/// The feeders of one term of one master.
pub(super) struct Hub {
    config: Arc<CheckedConfig>,
    identity: Identity,
    source: Arc<dyn Source>,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    gates: Arc<CommitGates>,
    counters: Arc<Counters>,
    /// The last entry that feeders may ask their scanners for, and are woken for.
    feed: Watermark,
    durable_wanted: AtomicU64,
    applied_wanted: AtomicU64,
    /// The highest newer term that a replica told of; 0 if none.
    fenced: AtomicU32,
    /// Commits under way.
    committing: AtomicUsize,
    registry: Mutex<Registry>,
    /// The connections of `registry.replicas`, for the commit path, which must not allocate.
    streams: Mutex<Arc<[Arc<Connection>]>>,
    on_failure: Box<dyn Fn(&Stop) + Send + Sync>,
}

struct Registry {
    closed: bool,
    next_id: u64,
    /// Connections whose acks worker lives, in the order of their ids.
    live: BTreeMap<u64, Live>,
    /// The connection that speaks for each replica, and what is known of those that are not connected.
    replicas: BTreeMap<NodeId, Known>,
    /// Rises with every change of `replicas`.
    epoch: u64,
}

/// A connection and its acks worker, once that is spawned.
type Live = (Arc<Connection>, Option<Arc<dyn Running>>);

/// What is known of a replica that has connected in this term.
struct Known {
    connection: Option<Arc<Connection>>,
    incarnation: u64,
    session: u64,
    slot: Option<String>,
    positions: Positions,
    paused: bool,
    seen: Deadline,
    ended: Option<FeedError>,
}

/// How a hub is made.
pub(super) struct Parts {
    pub config: Arc<CheckedConfig>,
    pub identity: Identity,
    pub source: Arc<dyn Source>,
    pub runtime: Arc<dyn Runtime>,
    pub gates: Arc<CommitGates>,
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
            source: parts.source,
            runtime: parts.runtime,
            gates: parts.gates,
            counters: parts.counters,
            feed: Watermark::new(feed),
            durable_wanted: AtomicU64::new(0),
            applied_wanted: AtomicU64::new(0),
            fenced: AtomicU32::new(0),
            committing: AtomicUsize::new(0),
            registry: Mutex::new(Registry {
                closed: false,
                next_id: 0,
                live: BTreeMap::new(),
                replicas: BTreeMap::new(),
                epoch: 0,
            }),
            streams: Mutex::new(Arc::new([])),
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

    pub fn gates(&self) -> &CommitGates {
        &self.gates
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn term(&self) -> Term {
        self.gates.mastership().term
    }

    pub fn feed(&self) -> &Watermark {
        &self.feed
    }

    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.gates.committed().get())
    }

    pub fn own_positions(&self) -> Positions {
        self.source.positions()
    }

    pub fn health(&self) -> Health {
        if self.gates.degraded() { Health::Degraded } else { Health::Healthy }
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
        self.gates.master_at(self.source.positions());
        self.note_committed();
    }

    /// Passes on how far the group has committed.
    pub fn note_committed(&self) {
        if let Some(committed) = self.committed() {
            self.source.committed(committed);
        }
    }

    /// Takes a connected channel and serves it: handshake, syncup, stream. Refused silently (the channel is closed)
    /// when the node closes or has too many connections.
    pub fn accept(self: &Arc<Self>, channel: Arc<dyn Channel>) {
        let connection = {
            let mut registry = self.registry.lock();
            if registry.closed || registry.live.len() >= self.config.max_connections {
                channel.close();
                return;
            }
            registry.next_id += 1;
            let id = registry.next_id;
            let connection = Arc::new(Connection::new(id, channel, self.clock.now()));
            registry.live.insert(id, (Arc::clone(&connection), None));
            connection
        };
        let id = connection.id;
        let worker = FeederAcks::new(Arc::clone(self), Arc::clone(&connection));
        let hub = Arc::downgrade(self);
        let on_end = move |stop: &Stop| {
            if let Some(hub) = hub.upgrade() {
                hub.acks_ended(id, stop);
            }
        };
        let channels = vec![Arc::clone(&connection.channel)];
        let running =
            self.runtime.spawn(format!("feeder-acks-{id}"), Box::new(worker), channels, Box::new(on_end));
        let mut registry = self.registry.lock();
        if let Some((_, place)) = registry.live.get_mut(&id) {
            *place = Some(running);
        }
    }

    fn acks_ended(&self, id: u64, stop: &Stop) {
        self.registry.lock().live.remove(&id);
        if let Stop::Failed(_) = stop {
            (self.on_failure)(stop);
        }
    }

    pub fn out_ended(&self, stop: &Stop) {
        if let Stop::Failed(_) = stop {
            (self.on_failure)(stop);
        }
    }

    /// Makes this connection the one that speaks for `node`; an earlier one is superseded and ends.
    pub fn register(
        &self,
        connection: &Arc<Connection>,
        node: &NodeId,
        theirs: Identity,
        slot: Option<String>,
    ) {
        let superseded = {
            let mut registry = self.registry.lock();
            registry.epoch += 1;
            let now = self.clock.now();
            let known = registry.replicas.entry(node.clone()).or_insert_with(|| Known {
                connection: None,
                incarnation: theirs.incarnation,
                session: theirs.session,
                slot: None,
                positions: Positions::NONE,
                paused: false,
                seen: now,
                ended: None,
            });
            if known.incarnation != theirs.incarnation {
                known.positions = Positions::NONE;
            }
            known.incarnation = theirs.incarnation;
            known.session = theirs.session;
            known.slot = slot;
            let superseded = known.connection.replace(Arc::clone(connection));
            self.note_streams(&registry);
            superseded
        };
        if let Some(old) = superseded.filter(|old| old.id != connection.id) {
            self.end(&old, FeedError::Superseded { by: theirs.session });
        }
    }

    /// Whether an operator paused this replica.
    pub fn is_paused(&self, node: &NodeId) -> bool {
        self.registry.lock().replicas.get(node).is_some_and(|known| known.paused)
    }

    /// The positions that the replica's last connection had.
    pub fn last_positions(&self, node: &NodeId) -> Positions {
        self.registry.lock().replicas.get(node).map_or(Positions::NONE, |known| known.positions)
    }

    /// Ends a connection: closes its channel, and notes why, the first time. Both of its workers call this.
    pub fn end(&self, connection: &Arc<Connection>, why: FeedError) {
        let first = connection.shut();
        connection.channel.close();
        if !first {
            return;
        }
        let Some(node) = connection.node.get() else {
            log::warn!("connection from {} ended: {why}", connection.channel.peer().0);
            return;
        };
        let expected = matches!(why, FeedError::Closing | FeedError::Goodbye(_));
        let level = if expected { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "feeder of {node} ended: {why}");
        let mut registry = self.registry.lock();
        registry.epoch += 1;
        let Some(known) = registry.replicas.get_mut(node) else { return };
        // A newer connection of the same replica keeps its registration.
        if known.connection.as_ref().is_none_or(|current| current.id != connection.id) {
            return;
        }
        known.connection = None;
        known.positions = connection.progress.lock().positions();
        known.seen = connection.seen();
        known.ended = Some(why);
        if known.slot.is_none() {
            // Under the lock, or it might be the pin of the replica's next connection.
            self.source.unpin(node.as_str());
        }
        self.note_streams(&registry);
    }

    /// Keeps what the replica needs from `from` on, if this connection still speaks for it: nobody would take back the
    /// pin of one that has ended.
    pub fn pin(&self, connection: &Connection, node: &NodeId, from: Vlsn) {
        let registry = self.registry.lock();
        let current = registry.replicas.get(node).and_then(|known| known.connection.as_ref());
        if current.is_some_and(|current| current.id == connection.id) {
            self.source.pin(node.as_str(), from);
        }
    }

    /// Sends what was just appended, from the committing thread itself, to every replica whose sender is free, and
    /// wakes the senders of the others.
    pub fn push(&self, last: Vlsn) {
        let mut left = false;
        for connection in self.streaming().iter() {
            if connection.state() == FeederState::Paused {
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
        for connection in self.streaming().iter() {
            let Some(mut output) = connection.output.try_lock() else { continue };
            let Some(output) = output.as_mut().filter(|output| number(output.told()) < committed) else {
                continue;
            };
            if let Err(error) = output.heartbeat(self, connection, Wait::Now) {
                self.end(connection, error);
            }
        }
    }

    /// The connections whose stream has begun, or soon will.
    fn streaming(&self) -> Arc<[Arc<Connection>]> {
        Arc::clone(&self.streams.lock())
    }

    /// To be called with every change of a replica's connection.
    fn note_streams(&self, registry: &Registry) {
        let connected = registry.replicas.values().filter_map(|known| known.connection.as_ref());
        *self.streams.lock() = connected.cloned().collect();
    }

    /// A commit begins: whether it is the only one.
    pub fn commit_begins(&self) -> bool {
        self.committing.fetch_add(1, Ordering::SeqCst) == 0
    }

    pub fn commit_ends(&self) {
        self.committing.fetch_sub(1, Ordering::SeqCst);
    }

    /// A replica follows a newer term: nothing can be committed in ours any more.
    pub fn fence(&self, newer: Term) {
        self.fenced.fetch_max(newer.get(), Ordering::SeqCst);
        self.gates.close(End::Deposed);
    }

    /// The newer term by which this master was fenced.
    pub fn fenced(&self) -> Option<Term> {
        Some(Term::new(self.fenced.load(Ordering::SeqCst))).filter(|term| *term != Term::NONE)
    }

    /// Pauses or resumes the feeding of a replica. `false` if there is no such replica in this term.
    pub fn set_paused(&self, node: &NodeId, paused: bool) -> bool {
        let connection = {
            let mut registry = self.registry.lock();
            registry.epoch += 1;
            let Some(known) = registry.replicas.get_mut(node) else { return false };
            known.paused = paused;
            known.connection.clone()
        };
        // A handshake that is under way looks for itself when its stream begins.
        if let Some(connection) = connection.filter(|c| c.state() != FeederState::Handshaking) {
            connection.set_state(if paused { FeederState::Paused } else { FeederState::CatchingUp });
        }
        true
    }

    pub fn topology_epoch(&self) -> u64 {
        self.registry.lock().epoch
    }

    /// All members but this node, connected or not.
    pub fn status(&self) -> Vec<ReplicaStats> {
        let (now, now_micros) = (self.clock.now(), self.clock.wall_micros());
        let tip = self.source.last();
        let registry = self.registry.lock();
        let others = self.config.members.iter().filter(|member| member.id != self.config.node);
        others
            .map(|member| {
                let known = registry.replicas.get(&member.id);
                let connection = known.and_then(|known| known.connection.as_ref());
                let (sent, positions) = match (connection, known) {
                    (Some(connection), _) => {
                        let progress = connection.progress.lock();
                        (progress.sent(), progress.positions())
                    }
                    (None, Some(known)) => (None, known.positions),
                    (None, None) => (None, Positions::NONE),
                };
                let state = connection.map_or(FeederState::Idle, |connection| connection.state());
                let lag_entries = number(tip).saturating_sub(number(positions.received));
                let health = match state {
                    FeederState::Idle | FeederState::Shutdown => Health::Error,
                    FeederState::Handshaking | FeederState::CatchingUp => Health::CatchingUp,
                    _ if lag_entries > self.config.lag_limit => Health::Lagging,
                    _ => Health::Healthy,
                };
                let ago = |then: Deadline| now - then;
                ReplicaStats {
                    id: member.id.clone(),
                    region: member.region.clone(),
                    state,
                    health,
                    sent,
                    positions,
                    lag_entries,
                    // What the log says is about right for a backlog, and never nothing.
                    lag_bytes: if lag_entries == 0 { 0 } else { self.source.bytes_after(positions.received) },
                    lag_time: connection.map_or(Duration::ZERO, |c| c.lag_time(now_micros)),
                    connected_for: connection.map(|connection| ago(connection.since)),
                    last_seen: connection.map(|c| c.seen()).or(known.map(|known| known.seen)).map(ago),
                    last_error: known.and_then(|known| known.ended.as_ref()).map(FeedError::to_string),
                }
            })
            .collect()
    }

    /// Ends all connections and waits; new channels are refused from now on. Does not wait for the workers.
    pub fn sever(&self) {
        let live: Vec<_> = {
            let mut registry = self.registry.lock();
            registry.closed = true;
            registry.live.values().map(|(connection, _)| Arc::clone(connection)).collect()
        };
        self.gates.close(End::LifeEnded);
        for connection in &live {
            if let Some(output) = connection.output.try_lock().as_mut().and_then(|guard| guard.as_mut()) {
                // A goodbye that does not fit is a goodbye that is not said.
                let bye = Message::Bye(Bye { reason: ByeReason::Closing });
                let _unsaid = output.message(self, connection, &bye, Wait::Now);
            }
            self.end(connection, FeedError::Closing);
        }
        self.feed.close();
    }

    /// Ends all feeders and waits for their workers.
    pub fn close(&self) {
        self.sever();
        let running: Vec<_> =
            self.registry.lock().live.values().filter_map(|(_, running)| running.clone()).collect();
        for running in running {
            running.join();
        }
    }
}

/// A committing thread sends frames up to this size itself; a socket takes that much in one go.
const PUSH_BYTES: usize = 16 << 10;
