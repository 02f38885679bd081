//! Who is connected: connections from their beginning to their end, and what is known of the replicas behind them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::commit::End;
use crate::feeder::acks::FeederAcks;
use crate::feeder::connection::{Connection, FeedError};
use crate::feeder::hub::Hub;
use crate::feeder::provider::Needing;
use crate::feeder::status::{FeederState, ReplicaStats};
use crate::handshake::Identity;
use crate::ids::{NodeId, Vlsn, number};
use crate::members::{Health, Members};
use crate::planted::{Bug, active};
use crate::progress::Positions;
use crate::roster::Seat;
use crate::runtime::Running;
use crate::slots::Slots;
use crate::wire::message::{Bye, ByeReason, Message};
use crate::worker::Stop;

#[derive(Default)]
pub(super) struct Registry {
    closed: bool,
    next_id: u64,
    /// Connections whose acks worker lives, in the order of their ids.
    live: BTreeMap<u64, Live>,
    /// The connection that speaks for each replica, and what is known of those that are not connected.
    replicas: BTreeMap<NodeId, Known>,
    /// Rises with every change of `replicas`.
    epoch: u64,
    /// Nodes that need a snapshot.
    pub needing: BTreeMap<NodeId, Needing>,
}

impl Registry {
    /// Whether this connection is the one that speaks for the replica.
    pub fn is_current(&self, node: &NodeId, connection: &Connection) -> bool {
        let current = self.replicas.get(node).and_then(|known| known.connection.as_ref());
        current.is_some_and(|current| current.id == connection.id)
    }

    /// The open of the replica's directory that connected last.
    pub fn session(&self, node: &NodeId) -> u64 {
        self.replicas.get(node).map_or(0, |known| known.session)
    }

    /// The connection that speaks for the replica.
    pub fn connection(&self, node: &NodeId) -> Option<&Arc<Connection>> {
        self.replicas.get(node)?.connection.as_ref()
    }
}

/// A connection and its acks worker, once that is spawned.
type Live = (Arc<Connection>, Option<Arc<dyn Running>>);

/// What is known of a replica that has connected in this term.
struct Known {
    connection: Option<Arc<Connection>>,
    incarnation: u64,
    session: u64,
    slot: Option<String>,
    /// The name of its pin.
    pin: String,
    positions: Positions,
    paused: bool,
    seen: Deadline,
    ended: Option<FeedError>,
}

impl Hub {
    /// Takes a connected channel and serves it: handshake, syncup, stream; `first` is its first frame, if that was read
    /// before. Refused silently (the channel is closed) when the node closes or has too many connections.
    pub fn accept(self: &Arc<Self>, channel: Arc<dyn Channel>, first: Option<Vec<u8>>) {
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
        let worker = FeederAcks::new(Arc::clone(self), Arc::clone(&connection), first);
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

    /// Makes this connection the one that speaks for `node`; an earlier one is superseded and ends. `false` if the node
    /// was removed meanwhile.
    pub fn register(
        &self,
        connection: &Arc<Connection>,
        node: &NodeId,
        theirs: Identity,
        slot: Option<String>,
    ) -> bool {
        let superseded = {
            let mut registry = self.registry.lock();
            // Under the lock: whoever changes the list looks at the registry afterwards.
            if self.roll.members().find(node).is_none() {
                return false;
            }
            registry.epoch += 1;
            let now = self.clock.now();
            let known = registry.replicas.entry(node.clone()).or_insert_with(|| Known {
                connection: None,
                incarnation: theirs.incarnation,
                session: theirs.session,
                slot: None,
                pin: format!("replica:{node}"),
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
        true
    }

    /// A seat among the voters for this connection, if its node is one and the connection still speaks for it: an older
    /// one must not take the seat of the newer.
    pub fn seat(&self, connection: &Connection, node: &NodeId, counts: bool) -> Option<Seat> {
        let gates = self.gates()?;
        let registry = self.registry.lock();
        if registry.is_current(node, connection) { gates.join(node, counts) } else { None }
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
        let expected = matches!(why, FeedError::Closing | FeedError::Deposed | FeedError::Goodbye(_));
        let level = if expected { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "feeder of {node} ended: {why}");
        let mut registry = self.registry.lock();
        registry.epoch += 1;
        // A newer connection of the same replica keeps its registration.
        if !registry.is_current(node, connection) {
            return;
        }
        let Some(known) = registry.replicas.get_mut(node) else { return };
        known.connection = None;
        known.positions = connection.progress.lock().positions();
        known.seen = connection.seen();
        known.ended = Some(why);
        if known.slot.is_none() {
            // Under the lock, or it might be the pin of the replica's next connection.
            self.source.unpin(&known.pin);
        }
        self.needing_left(&mut registry, node);
        self.note_streams(&registry);
    }

    /// Keeps what the replica needs from `from` on, if this connection still speaks for it: nobody would take back the
    /// pin of one that has ended.
    pub fn pin(&self, connection: &Connection, node: &NodeId, from: Vlsn) {
        let registry = self.registry.lock();
        if registry.is_current(node, connection)
            && let Some(known) = registry.replicas.get(node)
        {
            self.source.pin(&known.pin, from);
        }
    }

    /// The slots whose owners are being fed, and the first entry that each needs. If several go by one name, the least.
    pub fn slot_owners(&self) -> Vec<(String, Vlsn)> {
        let registry = self.registry.lock();
        let mut owners: BTreeMap<String, Vlsn> = BTreeMap::new();
        for known in registry.replicas.values() {
            let (Some(slot), Some(connection)) = (&known.slot, &known.connection) else { continue };
            if matches!(connection.state(), FeederState::Handshaking | FeederState::Shutdown) {
                continue;
            }
            let needs = Vlsn::after(connection.progress.lock().positions().durable);
            owners.entry(slot.clone()).and_modify(|least| *least = needs.min(*least)).or_insert(needs);
        }
        owners.into_iter().collect()
    }

    /// Gives up the pins of replicas that are away, where a slot of theirs keeps what they need.
    pub fn leave_to_slots(&self, slots: &Slots) {
        let registry = self.registry.lock();
        for known in registry.replicas.values().filter(|known| known.connection.is_none()) {
            let slot = known.slot.as_ref().and_then(|name| slots.find(name));
            if slot.is_some_and(|slot| slot.invalid.is_none()) {
                self.source.unpin(&known.pin);
            }
        }
    }

    /// The connections whose stream has begun, or soon will.
    pub fn streaming(&self) -> Arc<[Arc<Connection>]> {
        Arc::clone(&self.streams.lock())
    }

    /// To be called with every change of a replica's connection.
    fn note_streams(&self, registry: &Registry) {
        let connected = registry.replicas.values().filter_map(|known| known.connection.as_ref());
        let streams: Arc<[_]> = connected.cloned().collect();
        self.arbiters.store(streams.iter().any(|to| to.is_arbiter()), Ordering::Relaxed);
        *self.streams.lock() = streams;
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

    /// Puts another member list in force: the gates follow it, connections of those who are no members any more end, and
    /// those of new voters take their seats with what they say next.
    pub fn set_members(&self, members: Arc<Members>) {
        self.roll.set(Arc::clone(&members));
        if let Some(gates) = self.gates() {
            // A master alone was in contact until now.
            gates.contact_at(self.clock.now());
            gates.set_members(&members);
            self.note_committed();
        }
        self.lists.fetch_add(1, Ordering::SeqCst);
        let gone: Vec<_> = {
            let mut registry = self.registry.lock();
            registry.epoch += 1;
            if active(Bug::RemovedNodeCounted) {
                return;
            }
            let is_gone = |node: &NodeId| members.find(node).is_none();
            let names: Vec<_> = registry.replicas.keys().filter(|node| is_gone(node)).cloned().collect();
            let mut gone = Vec::new();
            for node in names {
                let Some(known) = registry.replicas.remove(&node) else { continue };
                self.source.unpin(&known.pin);
                gone.extend(known.connection);
            }
            self.needing_gone(&mut registry, is_gone);
            self.note_streams(&registry);
            gone
        };
        for connection in &gone {
            self.dismiss(connection);
        }
        self.beat_all();
    }

    /// Ends the connection of a node that is no member any more, and tells it so.
    fn dismiss(&self, connection: &Arc<Connection>) {
        let busy = match connection.output.try_lock().as_deref_mut() {
            Some(Some(output)) => {
                let bye = Message::Bye(Bye { reason: ByeReason::Removed });
                // A goodbye that does not fit is a goodbye that is not said.
                let _unsaid = output.message(self, connection, &bye, Wait::Now);
                false
            }
            Some(None) => false,
            None => true,
        };
        if busy {
            connection.dismiss();
        } else {
            self.end(connection, FeedError::Removed);
        }
    }

    pub fn topology_epoch(&self) -> u64 {
        self.registry.lock().epoch
    }

    /// All members but this node, connected or not.
    pub fn status(&self) -> Vec<ReplicaStats> {
        let (now, now_micros) = (self.clock.now(), self.clock.wall_micros());
        let tip = self.source.last();
        let members = self.roll.members();
        let registry = self.registry.lock();
        let others = members.iter().filter(|member| member.id != self.config.node);
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
                    _ if registry.needing.get(&member.id).is_some_and(Needing::is_told) => {
                        Health::NeedsSnapshot
                    }
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
                    counts: connection.is_some_and(|connection| connection.counts()),
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
    pub fn sever(&self, end: End) {
        let (reason, why) = match end {
            End::Deposed => (ByeReason::Deposed, FeedError::Deposed),
            End::LifeEnded => (ByeReason::Closing, FeedError::Closing),
        };
        let live: Vec<_> = {
            let mut registry = self.registry.lock();
            registry.closed = true;
            registry.live.values().map(|(connection, _)| Arc::clone(connection)).collect()
        };
        self.close_gates(end);
        for connection in &live {
            if let Some(Some(output)) = connection.output.try_lock().as_deref_mut() {
                // A goodbye that does not fit is a goodbye that is not said.
                let _unsaid = output.message(self, connection, &Message::Bye(Bye { reason }), Wait::Now);
            }
            self.end(connection, why.clone());
        }
        self.feed().close();
    }

    /// Ends all feeders and waits for their workers.
    pub fn close(&self) {
        self.sever(End::LifeEnded);
        let running: Vec<_> =
            self.registry.lock().live.values().filter_map(|(_, running)| running.clone()).collect();
        for running in running {
            running.join();
        }
    }
}
