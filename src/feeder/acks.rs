//! The receiving half of a feeder: handshake, syncup, and then acks, which it hands to the commit gates itself.

use std::io::IoSlice;
use std::sync::Arc;

use crate::channel::ReceiveBuffer;
use crate::clock::{Clock, Deadline, Wait};
use crate::commit::CommitGates;
use crate::feeder::connection::{Connection, FeedError};
use crate::feeder::hub::Hub;
use crate::feeder::output::{FeederOut, Output};
use crate::feeder::status::FeederState;
use crate::handshake::{Identity, judge_hello};
use crate::ids::{NodeId, Vlsn, VlsnRange};
use crate::log::scanner::{LogScanner, RUN_SLICES};
use crate::planted::{Bug, active};
use crate::progress::{Positions, Progress};
use crate::roster::Seat;
use crate::runtime::Running;
use crate::syncup::{self, Answer, AnswerError};
use crate::wire::encode_entries_head;
use crate::wire::message::{
    Ack, Capabilities, EntryRequest, Hello, Message, Nack, NackReason, Reject, Syncup,
};
use crate::worker::{Step, Stop, Worker};

/// The worker.
pub(super) struct FeederAcks {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    clock: Arc<dyn Clock>,
    buffer: ReceiveBuffer,
    /// Of the next frame to come.
    expected: u64,
    /// Of the next frame that this half sends itself; the stream's frames are numbered by the other half.
    sequence: u64,
    stage: Stage,
    scratch: Vec<u8>,
    out: Option<Arc<dyn Running>>,
    seat: Option<Seat>,
}

enum Stage {
    Hello,
    Syncup { node: NodeId, capabilities: Capabilities },
    FirstAck { node: NodeId, capabilities: Capabilities, matched: Option<Vlsn> },
    Stream { node: NodeId },
}

impl Stage {
    fn expects(&self) -> &'static str {
        match self {
            Stage::Hello => "hello",
            Stage::Syncup { .. } => "syncup or entry request",
            Stage::FirstAck { .. } => "ack",
            Stage::Stream { .. } => "ack, heartbeat reply, nack or bye",
        }
    }
}

impl FeederAcks {
    pub fn new(hub: Arc<Hub>, connection: Arc<Connection>) -> FeederAcks {
        FeederAcks {
            clock: hub.clock(),
            hub,
            connection,
            buffer: ReceiveBuffer::default(),
            expected: 0,
            sequence: 0,
            stage: Stage::Hello,
            scratch: Vec::new(),
            out: None,
            seat: None,
        }
    }

    /// When the peer has to have been heard.
    fn deadline(&self) -> Deadline {
        let config = self.hub.config();
        match self.stage {
            Stage::Stream { .. } => self.connection.seen() + config.peer_timeout,
            _ => self.connection.since + config.handshake_timeout,
        }
    }

    fn overdue(&self) -> FeedError {
        let config = self.hub.config();
        match self.stage {
            Stage::Stream { .. } => FeedError::Silent(config.peer_timeout),
            _ => FeedError::HandshakeTimeout(config.handshake_timeout),
        }
    }

    fn receive(&mut self, wait: Wait) -> Result<Step, FeedError> {
        let deadline = self.deadline();
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = self.connection.channel.receive(&mut buffer, wait.at_most(deadline));
        let outcome = match received {
            Ok(Some(frame)) => {
                self.connection.note_seen(self.clock.now());
                self.take(frame).map(|()| Step::Worked)
            }
            Ok(None) if self.clock.now() >= deadline => Err(self.overdue()),
            Ok(None) => Ok(Step::Idle { due: deadline }),
            Err(error) => Err(error.into()),
        };
        self.buffer = buffer;
        outcome
    }

    fn take(&mut self, frame: &[u8]) -> Result<(), FeedError> {
        let (header, message) = Message::decode(frame)?;
        if header.sequence != self.expected {
            return Err(FeedError::Sequence { found: header.sequence, expected: self.expected });
        }
        self.expected += 1;
        if header.term > self.hub.term() {
            // Whoever says so follows a newer master: ours is over. Its hello alone is no proof of that.
            if matches!(message, Message::Fence) {
                self.hub.fence(header.term);
                return Err(FeedError::Fenced(header.term));
            }
        }
        match (&self.stage, message) {
            (_, Message::Bye(bye)) => Err(FeedError::Goodbye(bye.reason)),
            (Stage::Hello, Message::Hello(hello)) => self.greet(hello),
            (Stage::Syncup { node, capabilities }, Message::Syncup(asked)) => {
                let (node, capabilities) = (node.clone(), *capabilities);
                self.sync_up(node, capabilities, &asked)
            }
            (Stage::Syncup { .. }, Message::EntryRequest(request)) => self.serve_range(&request),
            (Stage::FirstAck { .. }, Message::Nack(nack)) => Err(nacked(nack)),
            (Stage::FirstAck { node, capabilities, matched }, Message::Ack(ack)) => {
                let positions = positions(ack);
                let (node, capabilities, matched) = (node.clone(), *capabilities, *matched);
                self.begin(node, capabilities, matched, positions)
            }
            (Stage::Stream { node }, Message::Ack(ack)) => {
                let node = node.clone();
                self.acknowledged(&node, positions(ack))
            }
            (Stage::Stream { .. }, Message::HeartbeatReply(_)) => Ok(()),
            (Stage::Stream { .. }, Message::Nack(nack)) => self.refused(nack),
            (stage, other) => Err(FeedError::OutOfTurn { found: other.kind(), expected: stage.expects() }),
        }
    }

    fn send(&mut self, message: &Message<'_>) -> Result<(), FeedError> {
        message.encode(self.hub.term(), self.sequence, &mut self.scratch);
        let deadline = self.connection.since + self.hub.config().handshake_timeout;
        // The handshake's few bytes fit into an empty channel: waiting for room would mean a peer that reads nothing.
        if !self.connection.channel.send(&[IoSlice::new(&self.scratch)], Wait::Now)? {
            return Err(FeedError::HandshakeTimeout(deadline - self.connection.since));
        }
        self.sequence += 1;
        Ok(())
    }

    fn greet(&mut self, hello: Hello) -> Result<(), FeedError> {
        let own = self.hub.identity();
        let welcome = match judge_hello(self.hub.config(), own, self.hub.term(), &hello) {
            Ok(welcome) => welcome,
            Err(reason) => {
                self.send(&Message::Reject(Reject { reason: reason.clone() }))?;
                return Err(FeedError::Rejected(reason));
            }
        };
        let (capabilities, max_frame) = (welcome.capabilities, welcome.max_frame);
        self.send(&Message::Welcome(welcome))?;
        self.connection.limit_frames(max_frame);
        let _first = self.connection.node.set(hello.node.clone());
        let theirs = Identity { incarnation: hello.incarnation, session: hello.session };
        self.hub.register(&self.connection, &hello.node, theirs, hello.slot);
        self.stage = Stage::Syncup { node: hello.node, capabilities };
        Ok(())
    }

    fn sync_up(&mut self, node: NodeId, capabilities: Capabilities, asked: &Syncup) -> Result<(), FeedError> {
        let source = self.hub.source();
        let history = source.history().map_err(AnswerError::History)?;
        match syncup::answer(&history, self.hub.term(), asked, |vlsn| source.position_at(vlsn))? {
            Answer::Match(matchpoint) => {
                let matched = matchpoint.at.map(|at| at.vlsn);
                // From here on the entries that it needs stay.
                source.pin(node.as_str(), Vlsn::after(matched));
                self.send(&Message::Matchpoint(matchpoint))?;
                self.stage = Stage::FirstAck { node, capabilities, matched };
                Ok(())
            }
            Answer::NeedSnapshot(need) => {
                let oldest = need.oldest;
                self.send(&Message::NeedSnapshot(need))?;
                Err(FeedError::NeedsSnapshot { oldest })
            }
            Answer::Behind(behind) => {
                self.send(&Message::Behind(behind))?;
                Err(FeedError::Closing)
            }
        }
    }

    fn begin(
        &mut self,
        node: NodeId,
        capabilities: Capabilities,
        matched: Option<Vlsn>,
        first: Positions,
    ) -> Result<(), FeedError> {
        if first.received != matched {
            return Err(FeedError::StartsElsewhere { claimed: first.received, matched });
        }
        *self.connection.progress.lock() = Progress::new(matched);
        self.seat = self.hub.gates().join(&node);
        let scanner = self.hub.source().scanner();
        let output = Output::new(scanner, matched, self.sequence, capabilities, self.clock.now());
        *self.connection.output.lock() = Some(output);
        // In this order: whoever pauses meanwhile either finds the stream begun or is found here.
        self.connection.set_state(FeederState::CatchingUp);
        if self.hub.is_paused(&node) {
            self.connection.set_state(FeederState::Paused);
        }
        log::info!("feeding {node} after VLSN {}", crate::ids::number(matched));
        let first = if active(Bug::PositionKeptAcrossReconnect) {
            first.max(self.hub.last_positions(&node))
        } else {
            first
        };
        self.stage = Stage::Stream { node: node.clone() };
        self.acknowledged(&node, first)?;
        let worker = FeederOut::new(Arc::clone(&self.hub), Arc::clone(&self.connection));
        let hub = Arc::downgrade(&self.hub);
        let on_end = move |stop: &Stop| {
            if let Some(hub) = hub.upgrade() {
                hub.out_ended(stop);
            }
        };
        let channels = vec![Arc::clone(&self.connection.channel)];
        let name = format!("feeder-out-{node}");
        self.out = Some(self.hub.runtime().spawn(name, Box::new(worker), channels, Box::new(on_end)));
        Ok(())
    }

    fn acknowledged(&mut self, node: &NodeId, positions: Positions) -> Result<(), FeedError> {
        if active(Bug::PositionKeptAcrossReconnect) {
            // The planted bug lets the old connection's positions stand.
        } else if !self.connection.progress.lock().acknowledge(positions)? {
            return Ok(());
        }
        self.hub.counters().acks.one();
        self.connection.note_received(positions.received);
        self.hub.source().pin(node.as_str(), Vlsn::after(positions.durable));
        if let Some(seat) = self.seat {
            if !self.hub.gates().acknowledge(seat, positions) {
                return Err(FeedError::Closing);
            }
            self.hub.note_committed();
        }
        Ok(())
    }

    /// The replica could not take what was sent. If it found an entry damaged, our own log is read again with all its
    /// CRCs, so that damage here is named here.
    fn refused(&mut self, nack: Nack) -> Result<(), FeedError> {
        if let (NackReason::Damaged, Some(at)) = (nack.reason, nack.at) {
            self.hub.source().position_at(at)?;
        }
        Err(nacked(nack))
    }

    /// Answers a request for a range with one frame.
    fn serve_range(&mut self, request: &EntryRequest) -> Result<(), FeedError> {
        let Some(range) = VlsnRange::new(request.from, request.to) else {
            return Err(FeedError::Nack { reason: NackReason::Hole, at: Some(request.from) });
        };
        let count = range.last().get() - range.first().get() + 1;
        let most = u32::try_from(count).unwrap_or(u32::MAX).min(request.max_entries.max(1));
        let most_bytes = (request.max_bytes as usize).min(self.hub.config().batch_bytes);
        let most_bytes = most_bytes.min(self.connection.max_run());
        let mut scanner: Box<dyn LogScanner> = self.hub.source().scanner();
        let Some(run) = scanner.run(range.first().previous(), most, most_bytes)? else {
            let nack = Nack { reason: NackReason::Beyond, at: Some(range.first()) };
            return self.send(&Message::Nack(nack));
        };
        let head = self.hub.entries_head(&run);
        let prefix = encode_entries_head(self.hub.term(), self.sequence, &head, run.len_bytes());
        let mut slices = [IoSlice::new(&[]); RUN_SLICES + 1];
        slices[0] = IoSlice::new(&prefix);
        for (slice, bytes) in slices[1..].iter_mut().zip(run.slices()) {
            *slice = IoSlice::new(bytes);
        }
        let give_up = Wait::Until(self.clock.now() + self.hub.config().peer_timeout);
        if !self.connection.channel.send(&slices[..=run.slices().len()], give_up)? {
            return Err(FeedError::Stalled { by: self.hub.config().peer_timeout });
        }
        self.sequence += 1;
        Ok(())
    }

    fn finish(&mut self, why: FeedError) -> Stop {
        self.hub.end(&self.connection, why);
        if let Some(seat) = self.seat.take() {
            let gates: &CommitGates = self.hub.gates();
            gates.leave(seat);
        }
        if let Some(out) = self.out.take() {
            out.join();
        }
        Stop::Done
    }
}

fn positions(ack: Ack) -> Positions {
    let Ack { received, durable, applied, checkpointed } = ack;
    Positions { received, durable, applied, checkpointed }
}

fn nacked(nack: Nack) -> FeedError {
    FeedError::Nack { reason: nack.reason, at: nack.at }
}

impl Worker for FeederAcks {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        self.receive(wait).map_err(|why| self.finish(why))
    }
}
