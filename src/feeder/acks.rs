//! The receiving half of a feeder: handshake, syncup, and then acks, which it hands to the commit gates itself.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ballot::HIGHEST_TERM;
use crate::channel::ReceiveBuffer;
use crate::clock::{Clock, Deadline, Wait};
use crate::feeder::connection::{Connection, FeedError};
use crate::feeder::hub::{Hub, Reign};
use crate::feeder::output::{Agreed, FeederOut, Output};
use crate::feeder::status::FeederState;
use crate::handshake::{Identity, judge_hello};
use crate::ids::{NodeId, Vlsn, VlsnRange};
use crate::log::scanner::{LogScanner, RUN_SLICES};
use crate::members::Role;
use crate::planted::{Bug, active};
use crate::progress::{AckError, Positions, Progress};
use crate::roster::Seat;
use crate::runtime::Running;
use crate::syncup::{self, Answer, AnswerError};
use crate::wire::encode_entries_head;
use crate::wire::message::{
    Ack, EntryRequest, Heartbeat, HeartbeatReply, Hello, Message, Nack, NackReason, Reject, RejectReason,
    Syncup, Welcome,
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
    /// The first frame, if it was read before the connection came here.
    first: Option<Vec<u8>>,
    out: Option<Arc<dyn Running>>,
    /// The right to acknowledge for a voter, while the replica is one.
    seat: Option<Seat>,
    /// Whether the replica's directory is known to hold what it acknowledged.
    counts: bool,
    /// The number of the member list by which the seat was taken.
    lists: u64,
}

enum Stage {
    Hello,
    /// An arbiter has no log to agree on: its first ack states its mark.
    Mark {
        node: NodeId,
        agreed: Agreed,
    },
    Syncup {
        node: NodeId,
        agreed: Agreed,
    },
    FirstAck {
        node: NodeId,
        agreed: Agreed,
        matched: Option<Vlsn>,
    },
    /// It needs a snapshot, which it fetches elsewhere; meanwhile it is to know that the master lives.
    Snapshot {
        node: NodeId,
        oldest: Option<Vlsn>,
        next_beat: Deadline,
    },
    Stream {
        node: NodeId,
    },
}

impl Stage {
    fn expects(&self) -> &'static str {
        match self {
            Stage::Hello => "hello",
            Stage::Mark { .. } => "ack of an arbiter",
            Stage::Syncup { .. } => "syncup or entry request",
            Stage::FirstAck { .. } => "ack",
            Stage::Snapshot { .. } => "heartbeat reply or bye",
            Stage::Stream { .. } => "ack, heartbeat reply, nack or bye",
        }
    }
}

impl FeederAcks {
    pub fn new(hub: Arc<Hub>, connection: Arc<Connection>, first: Option<Vec<u8>>) -> FeederAcks {
        FeederAcks {
            clock: hub.clock(),
            hub,
            connection,
            buffer: ReceiveBuffer::default(),
            expected: 0,
            sequence: 0,
            stage: Stage::Hello,
            scratch: Vec::new(),
            first,
            out: None,
            seat: None,
            counts: false,
            lists: 0,
        }
    }

    /// When the peer has to have been heard.
    fn deadline(&self) -> Deadline {
        let config = self.hub.config();
        match self.stage {
            Stage::Stream { .. } | Stage::Snapshot { .. } => self.connection.seen() + config.peer_timeout,
            _ => self.connection.since + config.handshake_timeout,
        }
    }

    fn overdue(&self) -> FeedError {
        let config = self.hub.config();
        match self.stage {
            Stage::Stream { .. } | Stage::Snapshot { .. } => FeedError::Silent(config.peer_timeout),
            _ => FeedError::HandshakeTimeout(config.handshake_timeout),
        }
    }

    fn receive(&mut self, wait: Wait) -> Result<Step, FeedError> {
        if let Some(first) = self.first.take() {
            return self.take(&first).map(|()| Step::Worked);
        }
        let deadline = self.deadline();
        let mut due = deadline;
        if let Stage::Snapshot { next_beat, .. } = &self.stage {
            due = due.min(*next_beat);
            if self.clock.now() >= *next_beat {
                return self.beat().map(|()| Step::Worked);
            }
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = self.connection.channel.receive(&mut buffer, wait.at_most(due));
        let outcome = match received {
            Ok(Some(frame)) => {
                self.connection.note_seen(self.clock.now());
                self.take(frame).map(|()| Step::Worked)
            }
            Ok(None) if self.clock.now() >= deadline => Err(self.overdue()),
            Ok(None) => Ok(Step::Idle { due }),
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
        // Whoever says so after it was welcomed follows a newer master, or has promised to: our time is over. Its hello
        // alone is no proof of that.
        if header.term > self.hub.term() && !matches!(self.stage, Stage::Hello) {
            if header.term > HIGHEST_TERM {
                return Err(FeedError::AbsurdTerm(header.term));
            }
            self.hub.told_of(header.term);
            return Err(FeedError::Fenced(header.term));
        }
        // Whoever was welcomed has entered our term, and speaks in it.
        if header.term < self.hub.term() && !matches!(self.stage, Stage::Hello) {
            // It is told the newer term, unless the sending half numbers the frames by now: its every frame says so.
            if !matches!(self.stage, Stage::Stream { .. }) {
                self.send(&Message::Fence)?;
            }
            return Err(FeedError::PastTerm { found: header.term, ours: self.hub.term() });
        }
        match (&self.stage, message) {
            (_, Message::Bye(bye)) => Err(FeedError::Goodbye(bye.reason)),
            (Stage::Hello, Message::Hello(hello)) => self.greet(hello),
            (Stage::Mark { node, agreed }, Message::Ack(ack)) => {
                let (node, agreed) = (node.clone(), *agreed);
                self.begin_arbiter(node, agreed, positions(ack))
            }
            (Stage::Syncup { node, agreed }, Message::Syncup(asked)) => {
                let (node, agreed) = (node.clone(), *agreed);
                self.sync_up(node, agreed, &asked)
            }
            (Stage::Syncup { agreed, .. }, Message::EntryRequest(request)) => {
                let room = agreed.room();
                self.serve_range(&request, room)
            }
            (Stage::FirstAck { .. }, Message::Nack(nack)) => Err(nacked(nack)),
            (Stage::FirstAck { node, agreed, matched }, Message::Ack(ack)) => {
                let positions = positions(ack);
                let (node, agreed, matched) = (node.clone(), *agreed, *matched);
                self.begin(node, agreed, matched, positions)
            }
            (Stage::Stream { node }, Message::Ack(ack)) => {
                let node = node.clone();
                self.acknowledged(&node, positions(ack))
            }
            (Stage::Stream { node } | Stage::Snapshot { node, .. }, Message::HeartbeatReply(reply)) => {
                let node = node.clone();
                self.answered(&node, reply);
                Ok(())
            }
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
        let welcome = match self.judge(&hello) {
            Ok(welcome) => welcome,
            Err(reason) => {
                self.send(&Message::Reject(Reject { reason: reason.clone() }))?;
                return Err(FeedError::Rejected(reason));
            }
        };
        let agreed = Agreed { capabilities: welcome.capabilities, max_frame: welcome.max_frame };
        self.send(&Message::Welcome(welcome))?;
        self.connection.channel.limit_frames(agreed.max_frame);
        self.connection.introduce(&hello.node, hello.role, hello.standing, self.hub.source().last());
        self.counts = hello.standing.counts();
        self.connection.set_counts(self.counts);
        let theirs = Identity { incarnation: hello.incarnation, session: hello.session };
        if !self.hub.register(&self.connection, &hello.node, theirs, hello.slot) {
            return Err(FeedError::Removed);
        }
        self.stage = match hello.role {
            Role::Arbiter => Stage::Mark { node: hello.node, agreed },
            Role::Electable | Role::Secondary => Stage::Syncup { node: hello.node, agreed },
        };
        Ok(())
    }

    fn judge(&self, hello: &Hello) -> Result<Welcome, RejectReason> {
        let hub = &self.hub;
        let members = hub.roll.members();
        let welcome = judge_hello(&hub.config, &members, hub.identity(), hub.term(), hub.right(), hello)?;
        match &hub.reign {
            // Voters have to hear the master itself: what comes through another is no sign that it lives.
            Reign::Follows(upstream) if hello.role != Role::Secondary => {
                Err(RejectReason::NotMaster { hint: (upstream.hint)() })
            }
            _ => Ok(welcome),
        }
    }

    fn sync_up(&mut self, node: NodeId, agreed: Agreed, asked: &Syncup) -> Result<(), FeedError> {
        let source = self.hub.source();
        let history = source.history().map_err(AnswerError::History)?;
        match syncup::answer(&history, self.hub.standing(), asked, |vlsn| source.position_at(vlsn))? {
            Answer::Match(matchpoint) => {
                let matched = matchpoint.at.map(|at| at.vlsn);
                // From here on the entries that it needs stay.
                self.hub.pin(&self.connection, &node, Vlsn::after(matched));
                self.send(&Message::Matchpoint(matchpoint))?;
                self.stage = Stage::FirstAck { node, agreed, matched };
                Ok(())
            }
            Answer::NeedSnapshot(mut need) => {
                let oldest = need.oldest;
                need.provider = self.hub.needs_snapshot(&self.connection, &node, oldest);
                log::info!("{node} needs a snapshot; it is told to ask {:?}", need.provider);
                self.send(&Message::NeedSnapshot(need))?;
                // It hears us, and a master is in contact with a voter that answers, whatever its log is.
                self.take_seat(&node);
                self.stage = Stage::Snapshot { node, oldest, next_beat: self.clock.now() };
                Ok(())
            }
            Answer::Behind(behind) => {
                self.send(&Message::Behind(behind))?;
                Err(FeedError::Closing)
            }
        }
    }

    /// A heartbeat to one that fetches a snapshot. It is told of nothing that is committed: it has not got it.
    fn beat(&mut self) -> Result<(), FeedError> {
        let now = self.clock.now();
        let heartbeat = Heartbeat {
            written: None,
            flushed: None,
            committed: None,
            durable_wanted: None,
            applied_wanted: None,
            health: self.hub.health(),
            clock: now.as_nanos(),
        };
        self.connection.beating(now);
        self.send(&Message::Heartbeat(heartbeat))?;
        if let Stage::Snapshot { next_beat, .. } = &mut self.stage {
            *next_beat = now + self.hub.config().heartbeat;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        node: NodeId,
        agreed: Agreed,
        matched: Option<Vlsn>,
        first: Positions,
    ) -> Result<(), FeedError> {
        if first.received != matched {
            return Err(FeedError::StartsElsewhere { claimed: first.received, matched });
        }
        let scanner = self.hub.source().scanner();
        self.start(node, agreed, Some(scanner), first)
    }

    /// An arbiter's mark is what it had acknowledged before in this term, which is flushed here.
    fn begin_arbiter(&mut self, node: NodeId, agreed: Agreed, mark: Positions) -> Result<(), FeedError> {
        let flushed = self.hub.flushed_in_term(self.hub.own_positions());
        let claimed = mark.received;
        let start = self.hub.gates().map(|gates| gates.mastership().term_start);
        if claimed > flushed || (claimed.is_some() && claimed < start) {
            return Err(FeedError::StartsElsewhere { claimed, matched: flushed });
        }
        self.start(node, agreed, None, mark)
    }

    /// Begins the stream to a replica that proved to have what its first ack states.
    fn start(
        &mut self,
        node: NodeId,
        agreed: Agreed,
        scanner: Option<Box<dyn LogScanner>>,
        first: Positions,
    ) -> Result<(), FeedError> {
        let proved = first.received;
        *self.connection.progress.lock() = Progress::new(proved);
        self.take_seat(&node);
        if scanner.is_none() {
            self.connection.want_beat();
        }
        let output = Output::new(scanner, proved, self.sequence, agreed, self.clock.now());
        *self.connection.output.lock() = Some(output);
        // In this order: whoever pauses meanwhile either finds the stream begun or is found here.
        self.connection.set_state(FeederState::CatchingUp);
        if self.hub.is_paused(&node) {
            self.connection.set_state(FeederState::Paused);
        }
        log::info!("feeding {node} after VLSN {}", crate::ids::number(proved));
        let first = if active(Bug::PositionKeptAcrossReconnect) {
            first.max(self.hub.last_positions(&node))
        } else {
            first
        };
        self.stage = Stage::Stream { node: node.clone() };
        self.acknowledged(&node, first)?;
        self.hub.needs_no_snapshot(&self.connection, &node);
        let worker = FeederOut::new(Arc::clone(&self.hub), Arc::clone(&self.connection));
        let hub = Arc::downgrade(&self.hub);
        let on_end = move |stop: &Stop| {
            if let Some(hub) = hub.upgrade() {
                hub.out_ended(stop);
            }
        };
        let channels = vec![Arc::clone(&self.connection.channel)];
        let name = format!("feeder-out-{node}");
        let out = self.hub.runtime().spawn(name, Box::new(worker), channels, Box::new(on_end));
        let _first = self.connection.out.set(Arc::clone(&out));
        self.out = Some(out);
        Ok(())
    }

    /// Takes the node's seat among the voters, if it is one; again when the member list has changed, as a learner may
    /// have become one. What it acknowledged on this connection counts then.
    fn take_seat(&mut self, node: &NodeId) {
        self.lists = self.hub.lists.load(Ordering::SeqCst);
        self.seat = self.hub.seat(&self.connection, node, self.counts);
    }

    fn follow_lists(&mut self, node: &NodeId) {
        if self.hub.lists.load(Ordering::SeqCst) == self.lists {
            return;
        }
        if self.seat.is_some() {
            self.lists = self.hub.lists.load(Ordering::SeqCst);
            return;
        }
        self.take_seat(node);
        if let (Some(gates), Some(seat)) = (self.hub.gates(), self.seat) {
            let positions = self.connection.progress.lock().positions();
            gates.acknowledge(seat, positions);
            self.hub.note_committed();
        }
    }

    /// The replica answered a heartbeat: it follows this term, or did when it sent this.
    fn answered(&mut self, node: &NodeId, reply: HeartbeatReply) {
        let counted = self.counts;
        self.counts |= reply.standing.counts();
        self.connection.set_counts(self.counts);
        self.follow_lists(node);
        let (Some(gates), Some(seat)) = (self.hub.gates(), self.seat) else { return };
        if self.counts && !counted {
            gates.admit_seat(seat);
            self.hub.note_committed();
        }
        if self.connection.has_beaten(reply.clock) {
            gates.heard(seat, reply.clock);
        }
    }

    fn acknowledged(&mut self, node: &NodeId, positions: Positions) -> Result<(), FeedError> {
        let arbiter = self.connection.is_arbiter();
        if arbiter && !positions.is_mark() {
            return Err(AckError::NoMark { received: positions.received, durable: positions.durable }.into());
        }
        self.follow_lists(node);
        if active(Bug::PositionKeptAcrossReconnect) {
            // The planted bug lets the old connection's positions stand.
        } else if !self.connection.progress.lock().acknowledge(positions)? {
            return Ok(());
        }
        self.hub.counters().acks.one();
        self.connection.note_received(positions.received);
        if !arbiter {
            self.hub.pin(&self.connection, node, Vlsn::after(positions.durable));
        }
        if let (Some(gates), Some(seat)) = (self.hub.gates(), self.seat) {
            if !gates.acknowledge(seat, positions) {
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
    fn serve_range(&mut self, request: &EntryRequest, room: usize) -> Result<(), FeedError> {
        let Some(range) = VlsnRange::new(request.from, request.to) else {
            return Err(FeedError::Nack { reason: NackReason::Hole, at: Some(request.from) });
        };
        let count = range.last().get() - range.first().get() + 1;
        let most = u32::try_from(count).unwrap_or(u32::MAX).min(request.max_entries.max(1));
        let most_bytes = (request.max_bytes as usize).min(self.hub.config().batch_bytes).min(room);
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
        let why = match (&self.stage, why) {
            // Why it left is clear.
            (Stage::Snapshot { oldest, .. }, FeedError::Channel(_)) => {
                FeedError::NeedsSnapshot { oldest: *oldest }
            }
            (_, why) => why,
        };
        self.hub.end(&self.connection, why);
        if let (Some(gates), Some(seat)) = (self.hub.gates(), self.seat.take()) {
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
