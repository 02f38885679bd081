//! Giving snapshots of this node's engine to members that ask for one.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::apply::desk::{Answer, NoSnapshot, Snapshot};
use crate::base::{Base, history_up_to};
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::config::Config;
use crate::ids::{NodeId, Position, TermSpan, Vlsn};
use crate::log::ScanError;
use crate::members::Members;
use crate::node::group::{Shared, refuse};
use crate::planted::{Bug, active};
use crate::runtime::Running;
use crate::slots::Slots;
use crate::snapshot::{Giving, GivingError, chunk_len};
use crate::watermark::rest;
use crate::wire::message::{
    Message, RejectReason, SnapshotBegin, SnapshotId, SnapshotPlace, SnapshotRequest, TransferStatus,
};
use crate::worker::{Step, Stop, Worker};

/// The snapshots that this node gives, and those whose receivers may come back.
#[derive(Default)]
pub(super) struct Givings(Mutex<Held>);

/// A transfer, and its worker once that runs.
type Live = (Arc<Transfer>, Option<Arc<dyn Running>>);

#[derive(Default)]
struct Held {
    closed: bool,
    next: u64,
    live: BTreeMap<u64, Live>,
    kept: BTreeMap<NodeId, (Giving, Deadline)>,
}

/// What others may know of one.
struct Transfer {
    to: NodeId,
    at: AtomicU64,
    bytes: AtomicU64,
    /// About how many there are; `u64::MAX`: nobody knows.
    of: AtomicU64,
    channel: Arc<dyn Channel>,
    /// A newer request of the same node goes on with it.
    superseded: AtomicBool,
}

impl Givings {
    /// Lets go of those whose receivers did not come back; returns when to look again.
    pub fn tend(&self, now: Deadline) -> Deadline {
        let mut over = Vec::new();
        let mut held = self.0.lock();
        let names: Vec<NodeId> = held.kept.keys().cloned().collect();
        for name in names {
            if held.kept.get(&name).is_some_and(|(_, until)| now >= *until) {
                over.extend(held.kept.remove(&name));
            }
        }
        let next = held.kept.values().map(|(_, until)| *until).min();
        drop(held);
        // The engine may take its time to free what they hold.
        drop(over);
        next.unwrap_or(Deadline::NEVER)
    }

    /// Ends all and waits for their threads.
    pub fn close(&self) {
        let (live, kept) = {
            let mut held = self.0.lock();
            held.closed = true;
            (std::mem::take(&mut held.live), std::mem::take(&mut held.kept))
        };
        for (_, running) in live.into_values() {
            if let Some(running) = running {
                running.join();
            }
        }
        drop(kept);
    }

    pub fn status(&self) -> Vec<TransferStatus> {
        let held = self.0.lock();
        let status = |(transfer, _): &Live| {
            Some(TransferStatus {
                peer: transfer.to.as_str().to_owned(),
                at: Vlsn::new(transfer.at.load(Ordering::Relaxed))?,
                bytes: transfer.bytes.load(Ordering::Relaxed),
                of: Some(transfer.of.load(Ordering::Relaxed)).filter(|of| *of != u64::MAX),
            })
        };
        held.live.values().filter_map(status).take(255).collect()
    }
}

/// Why a base can't be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoBase {
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Members(#[from] crate::members::BadMembership),
    #[error(transparent)]
    Slots(#[from] crate::slots::BadSlots),
}

impl Shared {
    /// What this node's log and its own base say of the group as of one entry, which is committed.
    pub fn base_at(&self, at: Vlsn) -> Result<Base, NoBase> {
        self.base_of(self.core.log.position_at(at)?)
    }

    /// The same, of an entry that need not be readable.
    pub fn base_of(&self, position: Position) -> Result<Base, NoBase> {
        let (log, at) = (&self.core.log, position.vlsn);
        let before = self.base.lock().clone();
        let members = match log.memberships().into_iter().rev().find(|vlsn| *vlsn <= at) {
            Some(vlsn) => Members::decode(&log.payload(vlsn)?)?,
            None => before.as_ref().map_or_else(|| self.founders.clone(), |base| base.members.clone()),
        };
        let slots = match log.slot_lists().into_iter().rev().find(|vlsn| *vlsn <= at) {
            Some(vlsn) => Slots::decode(&log.payload(vlsn)?)?,
            None => before.as_ref().map_or_else(Slots::default, |base| base.slots.clone()),
        };
        let stands_on = log.base().map(|base| TermSpan { term: base.term, first: base.vlsn });
        let spans = stands_on.into_iter().chain(log.term_history());
        let history = history_up_to(at, before.map_or_else(Vec::new, |base| base.history), spans);
        Ok(Base { group: self.core.config.group, at: position, members, slots, history })
    }

    /// Serves a request for a snapshot; the connection belongs to that from now on.
    pub fn give(self: &Arc<Shared>, channel: &Arc<dyn Channel>, request: SnapshotRequest) {
        let term = self.election.term();
        if self.roll.members().find(&request.node).is_none() {
            return refuse(&**channel, term, RejectReason::UnknownNode);
        }
        let clock = Arc::clone(&self.core.clock);
        let transfer = Arc::new(Transfer {
            to: request.node.clone(),
            at: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            of: AtomicU64::new(u64::MAX),
            channel: Arc::clone(channel),
            superseded: AtomicBool::new(false),
        });
        let id = {
            let mut held = self.givings.0.lock();
            let others = held.live.values().filter(|(one, _)| one.to != request.node).count();
            if held.closed || others >= self.core.config.max_snapshots {
                drop(held);
                return refuse(&**channel, term, RejectReason::Busy);
            }
            // An earlier connection of the same node may not have noticed yet that it ended.
            for (older, running) in held.live.values().filter(|(one, _)| one.to == request.node) {
                older.superseded.store(true, Ordering::SeqCst);
                older.channel.close();
                if let Some(running) = running {
                    running.poke();
                }
            }
            held.next += 1;
            let id = held.next;
            held.live.insert(id, (Arc::clone(&transfer), None));
            id
        };
        let worker = Give {
            node: Arc::downgrade(self),
            now: clock.now(),
            deadline: clock.now() + silence(&self.core.config),
            clock,
            channel: Arc::clone(channel),
            buffer: ReceiveBuffer::default(),
            request,
            id,
            stage: Stage::Waits,
            transfer,
            sequence: 0,
            expected: 1,
            scratch: Vec::new(),
        };
        let weak = Arc::downgrade(self);
        let name = format!("snapshot-to-{}", worker.request.node);
        let on_end = move |stop: &Stop| {
            if let Some(node) = weak.upgrade() {
                let mut held = node.givings.0.lock();
                if let Some((ended, _)) = held.live.remove(&id) {
                    // A newer connection of the same node waits for it.
                    let newer = held.live.values().filter(|(one, _)| one.to == ended.to);
                    newer.filter_map(|(_, running)| running.as_ref()).for_each(|running| running.poke());
                }
            }
            if let Stop::Failed(why) = stop {
                log::error!("a snapshot's worker failed: {why}");
            }
        };
        let channels = vec![Arc::clone(channel)];
        let running = self.core.host.runtime.spawn(name, Box::new(worker), channels, Box::new(on_end));
        if let Some((_, place)) = self.givings.0.lock().live.get_mut(&id) {
            // It may have begun to wait before it could be poked.
            running.poke();
            *place = Some(running);
        }
    }
}

/// For how long a receiver may be silent: beside the patience, while chunks are under way at the slowest rate and it syncs.
fn silence(config: &Config) -> Duration {
    let chunks = 2 * chunk_len(config.max_frame) as u64 * 1_000_000_000 / config.snapshot_bytes_per_second;
    config.snapshot_patience + config.peer_timeout * 2 + Duration::from_nanos(chunks)
}

/// Gives one snapshot on one connection.
struct Give {
    node: Weak<Shared>,
    clock: Arc<dyn Clock>,
    /// When the next bytes may go, by the limit on their rate.
    now: Deadline,
    /// When the receiver has to have been heard.
    deadline: Deadline,
    channel: Arc<dyn Channel>,
    buffer: ReceiveBuffer,
    request: SnapshotRequest,
    /// Among those that live.
    id: u64,
    stage: Stage,
    transfer: Arc<Transfer>,
    /// Of the next frame sent, and of the next to come.
    sequence: u64,
    expected: u64,
    scratch: Vec<u8>,
}

enum Stage {
    /// An earlier worker for the same node may still have what is kept for it.
    Waits,
    /// The apply worker was asked for one.
    Asked(Arc<Answer<Result<Snapshot, NoSnapshot>>>),
    /// A stream begins, at a place.
    Begins(Box<Giving>, SnapshotPlace),
    Streams(Box<Giving>),
    Over,
}

/// How a part of the conversation ended.
enum Ended {
    /// The connection: whoever comes back may go on.
    Broken(String),
    /// It can't go on.
    Failed(String),
    /// All is there.
    Whole,
}

impl From<GivingError> for Ended {
    fn from(error: GivingError) -> Ended {
        Ended::Failed(error.to_string())
    }
}

impl Give {
    fn send(&mut self, node: &Shared, message: &Message<'_>) -> Result<(), Ended> {
        message.encode(node.election.term(), self.sequence, &mut self.scratch);
        let patience = Wait::Until(self.clock.now() + node.core.config.snapshot_patience);
        match self.channel.send(&[IoSlice::new(&self.scratch)], patience) {
            Ok(true) => {
                self.sequence += 1;
                Ok(())
            }
            Ok(false) => Err(Ended::Broken("it took nothing for too long".to_owned())),
            Err(error) => Err(Ended::Broken(error.to_string())),
        }
    }

    fn reject(&self, node: &Shared, reason: RejectReason) -> Ended {
        refuse(&*self.channel, node.election.term(), reason);
        Ended::Failed("none could be given".to_owned())
    }

    /// A snapshot was made, or none.
    fn taken(&mut self, node: &Shared, taken: Result<Snapshot, NoSnapshot>) -> Result<(), Ended> {
        let Snapshot { source, pin } = taken.map_err(|error| {
            log::warn!("{} asks for a snapshot: {error}", self.request.node);
            self.reject(node, RejectReason::NoSnapshot)
        })?;
        let at = source.at();
        if Some(at) < self.request.at_least {
            return Err(self.reject(node, RejectReason::NoSnapshot));
        }
        let at = match active(Bug::SnapshotPositionLater) {
            true => Vlsn::new(node.core.apply.applied.get()).unwrap_or(at),
            false => at,
        };
        let base = node.base_at(at).map_err(|error| {
            log::warn!("the base of a snapshot at VLSN {at} can't be told: {error}");
            self.reject(node, RejectReason::NoSnapshot)
        })?;
        drop(pin);
        let identity = node.core.identity;
        let id = SnapshotId {
            incarnation: identity.incarnation,
            session: identity.session,
            number: node.core.host.runtime.random(),
        };
        let giving = Giving::new(id, base.encode(), source, node.core.config.max_frame);
        self.stage = Stage::Begins(Box::new(giving), SnapshotPlace::default());
        Ok(())
    }

    /// Goes on with what is kept for the receiver, or has a snapshot made, once nobody else gives to it.
    fn begin(&mut self, node: &Shared, wait: Wait) -> Result<Step, Ended> {
        let mut held = node.givings.0.lock();
        let same = |(id, (one, _)): (&u64, &Live)| *id < self.id && one.to == self.request.node;
        if held.live.iter().any(same) {
            drop(held);
            let now = self.clock.now();
            if now >= self.deadline {
                return Err(self.reject(node, RejectReason::Busy));
            }
            self.stage = Stage::Waits;
            rest(wait.at_most(self.deadline));
            return Ok(Step::Idle { due: self.deadline });
        }
        let kept = held.kept.remove(&self.request.node).map(|(giving, _)| giving);
        drop(held);
        self.stage = match (kept, self.request.resume) {
            (Some(giving), Some((named, from)))
                if giving.reaches(named, from) && Some(giving.at()) >= self.request.at_least =>
            {
                Stage::Begins(Box::new(giving), from)
            }
            // Another that was kept goes.
            _ => Stage::Asked(node.core.apply.snapshot()),
        };
        Ok(Step::Worked)
    }

    fn talk(&mut self, node: &Shared, wait: Wait) -> Result<Step, Ended> {
        if self.transfer.superseded.load(Ordering::SeqCst) {
            return Err(Ended::Broken("a newer request of the same node took over".to_owned()));
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Waits => self.begin(node, wait),
            Stage::Asked(answer) => match answer.take(wait.at_most(self.deadline)) {
                Ok(Some(taken)) => self.taken(node, taken).map(|()| Step::Worked),
                Ok(None) if self.clock.now() < self.deadline => {
                    self.stage = Stage::Asked(answer);
                    Ok(Step::Idle { due: self.deadline })
                }
                _ => Err(Ended::Failed("the engine gave none in time".to_owned())),
            },
            Stage::Begins(mut giving, from) => {
                giving.go_on(from)?;
                let (id, of, base) = (giving.id(), giving.bytes(), giving.base().to_vec());
                self.transfer.of.store(of.unwrap_or(u64::MAX), Ordering::Relaxed);
                self.transfer.at.store(giving.at().get(), Ordering::Relaxed);
                log::info!("giving {} a snapshot at VLSN {}, from {from:?}", self.request.node, giving.at());
                self.stage = Stage::Streams(giving);
                self.send(node, &Message::SnapshotBegin(SnapshotBegin { id, from, of, base }))?;
                Ok(Step::Worked)
            }
            Stage::Streams(mut giving) => {
                let step = self.stream(node, &mut giving, wait);
                self.transfer.bytes.store(giving.given(), Ordering::Relaxed);
                self.stage = Stage::Streams(giving);
                step
            }
            Stage::Over => Err(Ended::Whole),
        }
    }

    fn stream(&mut self, node: &Shared, giving: &mut Giving, wait: Wait) -> Result<Step, Ended> {
        let now = self.clock.now();
        let mut sent = false;
        if now >= self.now
            && let Some(message) = giving.send_next()?
        {
            let len = match &message {
                Message::SnapshotChunk(chunk) => chunk.bytes.len() as u64,
                _ => 0,
            };
            self.send(node, &message)?;
            let rate = node.core.config.snapshot_bytes_per_second;
            self.now = self.now.max(now) + Duration::from_nanos(len * 1_000_000_000 / rate);
            sent = true;
        }
        // While there is more to send, acknowledgements are only looked for.
        let due = if sent {
            now
        } else if self.now > now {
            self.now.min(self.deadline)
        } else {
            self.deadline
        };
        let wait = if sent { Wait::Now } else { wait.at_most(due) };
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = self.channel.receive(&mut buffer, wait);
        let outcome = match received {
            Ok(Some(frame)) => self.acknowledged(node, giving, frame).map(|()| Step::Worked),
            Ok(None) if sent => Ok(Step::Worked),
            Ok(None) if self.clock.now() >= self.deadline => {
                Err(Ended::Broken("it was silent for too long".to_owned()))
            }
            Ok(None) => Ok(Step::Idle { due }),
            Err(error) => Err(Ended::Broken(error.to_string())),
        };
        self.buffer = buffer;
        outcome
    }

    fn acknowledged(&mut self, node: &Shared, giving: &mut Giving, frame: &[u8]) -> Result<(), Ended> {
        let (header, message) = Message::decode(frame).map_err(|error| Ended::Failed(error.to_string()))?;
        let Message::SnapshotAck(ack) = message else {
            return Err(Ended::Failed(format!("it sent a {}", message.kind())));
        };
        if header.sequence != self.expected {
            return Err(Ended::Failed("a frame is missing".to_owned()));
        }
        self.expected += 1;
        giving.acknowledge(ack.at)?;
        self.deadline = self.clock.now() + silence(&node.core.config);
        if giving.is_whole() { Err(Ended::Whole) } else { Ok(()) }
    }
}

impl Worker for Give {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        let ended = match self.talk(&node, wait) {
            Ok(step) => return Ok(step),
            Err(ended) => ended,
        };
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let to = &self.request.node;
        match (ended, stage) {
            (Ended::Broken(why), Stage::Begins(giving, _) | Stage::Streams(giving)) => {
                log::info!("the snapshot for {to} was broken off, and is kept for a while: {why}");
                let until = self.clock.now() + node.core.config.snapshot_patience;
                let mut held = node.givings.0.lock();
                if !held.closed {
                    held.kept.insert(to.clone(), (*giving, until));
                }
                drop(held);
                node.election.poke();
            }
            (Ended::Whole, _) => log::info!("{to} has the whole snapshot"),
            (Ended::Broken(why) | Ended::Failed(why), _) => log::warn!("no snapshot for {to}: {why}"),
        }
        Err(Stop::Done)
    }
}

impl Drop for Give {
    fn drop(&mut self) {
        self.channel.close();
    }
}
