//! Connections that come in: the first frame says what they are for.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::channel::{Channel, Listener, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::ids::{Position, Term, VlsnRange};
use crate::log::scanner::{LogScanner, RUN_SLICES};
use crate::members::Role;
use crate::node::group::{Shared, refuse};
use crate::runtime::Running;
use crate::wire::encode_entries_head;
use crate::wire::message::{
    Control, EntriesHead, EntryRequest, Message, Nack, NackReason, RejectReason, Response, Survey,
    SurveyReply,
};
use crate::worker::{Step, Stop, Worker};

/// The connections that are not feeders' yet, and those that never will be.
#[derive(Default)]
pub(super) struct Receptions(Mutex<Guests>);

/// A connection, and its worker once that runs.
type Guest = (Arc<dyn Channel>, Option<Arc<dyn Running>>);

#[derive(Default)]
struct Guests {
    closed: bool,
    next: u64,
    live: BTreeMap<u64, Guest>,
}

impl Receptions {
    /// Serves a connection, whatever it is for. At the limit it is told so and closed.
    pub fn take(node: &Arc<Shared>, channel: Arc<dyn Channel>) {
        let id = {
            let mut guests = node.receptions.0.lock();
            if guests.closed {
                channel.close();
                return;
            }
            if guests.live.len() >= node.core.config.max_connections {
                drop(guests);
                refuse(&*channel, node.election.term(), RejectReason::Busy);
                return;
            }
            guests.next += 1;
            let id = guests.next;
            guests.live.insert(id, (Arc::clone(&channel), None));
            id
        };
        let clock = Arc::clone(&node.core.clock);
        let worker = Reception {
            node: Arc::downgrade(node),
            deadline: clock.now() + node.core.config.handshake_timeout,
            clock,
            channel: Arc::clone(&channel),
            buffer: ReceiveBuffer::default(),
            sequence: 0,
            pending: None,
            kept: false,
        };
        let weak = Arc::downgrade(node);
        let on_end = move |stop: &Stop| {
            let Some(node) = weak.upgrade() else { return };
            node.receptions.0.lock().live.remove(&id);
            if let Stop::Failed(why) = stop {
                log::error!("a connection's worker failed: {why}");
            }
        };
        let name = format!("reception-{id}");
        let runtime = &node.core.host.runtime;
        // Not in the list of channels to close: it may become a feeder's.
        let running = runtime.spawn(name, Box::new(worker), Vec::new(), Box::new(on_end));
        if let Some((_, place)) = node.receptions.0.lock().live.get_mut(&id) {
            *place = Some(running);
        }
    }

    /// Whether clients would take the places that votes and replicas need.
    fn crowded(&self, most: usize) -> bool {
        self.0.lock().live.len() > most - most / 4
    }

    /// Ends all and waits for their threads; no more are taken.
    pub fn close(&self) {
        let live = {
            let mut guests = self.0.lock();
            guests.closed = true;
            std::mem::take(&mut guests.live)
        };
        for (channel, running) in live.into_values() {
            channel.close();
            if let Some(running) = running {
                running.join();
            }
        }
    }
}

/// The accept loop.
pub(super) struct Dispatch {
    listener: Box<dyn Listener>,
    node: Weak<Shared>,
}

impl Dispatch {
    pub fn new(listener: Box<dyn Listener>, node: Weak<Shared>) -> Dispatch {
        Dispatch { listener, node }
    }
}

impl Worker for Dispatch {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        match self.listener.accept(wait) {
            Ok(Some(channel)) => {
                let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
                Receptions::take(&node, channel);
                Ok(Step::Worked)
            }
            Ok(None) => Ok(Step::Idle { due: Deadline::NEVER }),
            Err(_closed) => Err(Stop::Done),
        }
    }
}

/// One connection, until it is known what it is for; then, unless it becomes a feeder's, to its end.
struct Reception {
    node: Weak<Shared>,
    clock: Arc<dyn Clock>,
    channel: Arc<dyn Channel>,
    buffer: ReceiveBuffer,
    /// Of the next frame sent.
    sequence: u64,
    deadline: Deadline,
    /// An order that takes its time.
    pending: Option<super::orders::Pending>,
    /// The channel belongs to a feeder now.
    kept: bool,
}

impl Reception {
    fn send(&mut self, term: Term, message: &Message<'_>) -> Result<(), Stop> {
        let mut frame = Vec::new();
        message.encode(term, self.sequence, &mut frame);
        self.sequence += 1;
        let give_up = Wait::Until(self.deadline);
        match self.channel.send(&[IoSlice::new(&frame)], give_up) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Stop::Done),
        }
    }

    fn take(&mut self, node: &Arc<Shared>, frame: &[u8]) -> Result<(), Stop> {
        let term = node.election.term();
        let Ok((header, message)) = Message::decode(frame) else {
            refuse(&*self.channel, term, RejectReason::Protocol);
            return Err(Stop::Done);
        };
        match message {
            Message::Hello(_) if self.sequence == 0 => {
                self.kept = node.feed(&self.channel, frame);
                if !self.kept {
                    let hint = node.master_hint().and_then(|(_, address)| address);
                    refuse(&*self.channel, term, RejectReason::NotMaster { hint });
                }
                Err(Stop::Done)
            }
            Message::Vote(vote) => {
                let answered = node.election.vote(header.term, &vote);
                let (term, reply) = answered.map_err(|error| {
                    let stop = Stop::failed(error);
                    node.core.poison.strike(&stop);
                    stop
                })?;
                self.send(term, &Message::VoteReply(reply))
            }
            Message::Announce(told) if told.group == node.core.config.group => {
                if let Err(error) = node.announced(header.term, &told.master, told.address.as_ref()) {
                    log::debug!("{} is not followed: {error}", told.master);
                }
                self.send(node.election.term(), &Message::Fence)
            }
            Message::Survey(asked) if asked.group == node.core.config.group => {
                let reply = survey(node, &asked);
                self.send(term, &Message::SurveyReply(reply))
            }
            Message::EntryRequest(request) if self.sequence > 0 => {
                // Whoever goes on asking is not silent: a gap may take longer than a first message may.
                self.deadline = self.clock.now() + node.core.config.handshake_timeout;
                self.entries(node, term, &request)
            }
            Message::Control(_) | Message::Request(_)
                if self.sequence == 0 && node.receptions.crowded(node.core.config.max_connections) =>
            {
                refuse(&*self.channel, term, RejectReason::Busy);
                Err(Stop::Done)
            }
            Message::SnapshotRequest(request) if request.group == node.core.config.group => {
                if self.sequence > 0 {
                    refuse(&*self.channel, term, RejectReason::Protocol);
                    return Err(Stop::Done);
                }
                self.kept = true;
                node.give(&self.channel, request);
                Err(Stop::Done)
            }
            Message::Control(Control { group, order }) if group == node.core.config.group => {
                self.deadline = self.clock.now() + PATIENCE;
                match node.obey(order) {
                    super::orders::Obeyed::Now(reply) => self.send(term, &Message::ControlReply(reply)),
                    super::orders::Obeyed::Later(pending) => {
                        self.pending = Some(pending);
                        Ok(())
                    }
                }
            }
            Message::Request(request) if request.group == node.core.config.group => {
                let service = node.service.read().clone();
                let Some(service) = service else {
                    refuse(&*self.channel, term, RejectReason::Protocol);
                    return Err(Stop::Done);
                };
                let body = service.call(request.body);
                self.deadline = self.clock.now() + PATIENCE;
                self.send(term, &Message::Response(Response { body: &body }))
            }
            Message::Announce(_)
            | Message::Survey(_)
            | Message::Control(_)
            | Message::Request(_)
            | Message::SnapshotRequest(_) => {
                refuse(&*self.channel, term, RejectReason::WrongGroup { ours: node.core.config.group });
                Err(Stop::Done)
            }
            _ => {
                refuse(&*self.channel, term, RejectReason::Protocol);
                Err(Stop::Done)
            }
        }
    }

    /// Sends one frame of entries of a range, as far as they are there.
    fn entries(&mut self, node: &Shared, term: Term, request: &EntryRequest) -> Result<(), Stop> {
        let beyond = Message::Nack(Nack { reason: NackReason::Beyond, at: Some(request.from) });
        let Some(range) = VlsnRange::new(request.from, request.to) else {
            return self.send(term, &beyond);
        };
        let config = &node.core.config;
        let most = u32::try_from(range.last().get() - range.first().get() + 1).unwrap_or(u32::MAX);
        let most = most.min(request.max_entries.max(1));
        let most_bytes = (request.max_bytes as usize).min(config.batch_bytes);
        let mut scanner = node.core.log.scanner();
        let Ok(Some(run)) = scanner.run(range.first().previous(), most, most_bytes) else {
            return self.send(term, &beyond);
        };
        let head = EntriesHead {
            committed: None,
            durable_wanted: None,
            applied_wanted: None,
            first: run.first,
            last: run.last.vlsn,
        };
        let prefix = encode_entries_head(term, self.sequence, &head, run.len_bytes());
        let mut slices = [IoSlice::new(&[]); RUN_SLICES + 1];
        slices[0] = IoSlice::new(&prefix);
        for (slice, bytes) in slices[1..].iter_mut().zip(run.slices()) {
            *slice = IoSlice::new(bytes);
        }
        self.sequence += 1;
        match self.channel.send(&slices[..=run.slices().len()], Wait::Until(self.deadline)) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Stop::Done),
        }
    }
}

/// How long a client may be silent.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

fn survey(node: &Shared, asked: &Survey) -> SurveyReply {
    let log = &node.core.log;
    let after = asked.after.and_then(|at| log.position_at(at.vlsn).ok());
    let state = node.election.state().state();
    // An arbiter has no entries: it tells what it vouched for.
    let mark = state.mark.vlsn.map(|vlsn| Position { vlsn, term: state.mark.term, crc: 0 });
    SurveyReply {
        node: node.own.id.clone(),
        standing: state.standing,
        last: if node.own.role == Role::Arbiter { mark } else { log.last() },
        after,
    }
}

impl Worker for Reception {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        if let Some(pending) = &mut self.pending {
            let Some(reply) = pending.reply(&node, wait.at_most(self.deadline)) else {
                let late = self.clock.now() >= self.deadline;
                if pending.works() && !late {
                    return Ok(Step::Worked);
                }
                return if late { Err(Stop::Done) } else { Ok(Step::Idle { due: self.deadline }) };
            };
            self.pending = None;
            self.send(node.election.term(), &Message::ControlReply(reply))?;
            return Ok(Step::Worked);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = match self.channel.receive(&mut buffer, wait.at_most(self.deadline)) {
            Ok(Some(frame)) => self.take(&node, frame).map(|()| Step::Worked),
            Ok(None) if self.clock.now() >= self.deadline => Err(Stop::Done),
            Ok(None) => Ok(Step::Idle { due: self.deadline }),
            Err(_) => Err(Stop::Done),
        };
        self.buffer = buffer;
        outcome
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        if !self.kept {
            self.channel.close();
        }
    }
}
