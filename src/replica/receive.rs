//! The receive worker: connects to the master, agrees with it, and then verifies and appends what comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::apply::ApplyState;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::entry::{RunError, RunSummary, verify_run};
use crate::handshake::{self, Identity, judge_welcome};
use crate::ids::{Position, Term, Vlsn, number};
use crate::log::{FlushError, Log};
use crate::planted::{Bug, active};
use crate::replica::ack::{AckSender, Line};
use crate::replica::{FollowError, ReplicaState};
use crate::runtime::Runtime;
use crate::state::StateFile;
use crate::syncup::{self, Settlement};
use crate::watermark::rest;
use crate::wire::compress::Expander;
use crate::wire::message::{
    Capabilities, Entries, Heartbeat, HeartbeatReply, Message, Nack, NackReason, Syncup, Welcome,
};
use crate::worker::{Step, Stop, Worker};

/// What the worker shares with the node around it.
pub(crate) struct Following {
    pub config: Arc<CheckedConfig>,
    pub identity: Identity,
    pub log: Log,
    pub apply: Arc<ApplyState>,
    pub acks: Arc<AckSender>,
    pub counters: Arc<Counters>,
    pub runtime: Arc<dyn Runtime>,
    /// The directory's small state: the highest term seen.
    pub state: StateFile,
    /// Channels handed over by the embedder.
    offered: Mutex<VecDeque<Arc<dyn Channel>>>,
    /// The channel in use, so that closing the node can end it.
    current: Mutex<Option<Arc<dyn Channel>>>,
    closing: AtomicBool,
    phase: AtomicU8,
    last_error: Mutex<Option<FollowError>>,
}

impl Following {
    #[allow(clippy::too_many_arguments, reason = "each is a part of the node, passed once")]
    pub fn new(
        config: Arc<CheckedConfig>,
        identity: Identity,
        log: Log,
        apply: Arc<ApplyState>,
        acks: Arc<AckSender>,
        counters: Arc<Counters>,
        runtime: Arc<dyn Runtime>,
        state: StateFile,
    ) -> Following {
        Following {
            config,
            identity,
            log,
            apply,
            acks,
            counters,
            runtime,
            state,
            offered: Mutex::default(),
            current: Mutex::default(),
            closing: AtomicBool::new(false),
            phase: AtomicU8::new(0),
            last_error: Mutex::default(),
        }
    }

    /// Hands over a connected channel. The worker has to be poked afterwards.
    pub fn offer(&self, channel: Arc<dyn Channel>) {
        let mut offered = self.offered.lock();
        if self.closing.load(Ordering::SeqCst) {
            channel.close();
        } else {
            offered.push_back(channel);
        }
    }

    /// Ends the connection and keeps the worker from making another.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Some(channel) = self.current.lock().take() {
            channel.close();
        }
        for channel in self.offered.lock().drain(..) {
            channel.close();
        }
    }

    /// What the connection is doing.
    pub fn phase(&self) -> ReplicaState {
        match self.phase.load(Ordering::SeqCst) {
            0 => ReplicaState::Resting,
            1 => ReplicaState::Connecting,
            2 => ReplicaState::Following,
            _ => ReplicaState::Stopped,
        }
    }

    /// Why the last connection ended.
    pub fn last_error(&self) -> Option<FollowError> {
        self.last_error.lock().clone()
    }

    fn set_phase(&self, phase: ReplicaState) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn term(&self) -> Term {
        self.state.state().term
    }
}

/// The worker.
pub(crate) struct Receive {
    shared: Arc<Following>,
    clock: Arc<dyn Clock>,
    stage: Stage,
    buffer: ReceiveBuffer,
    backoff: Duration,
}

enum Stage {
    Resting { until: Deadline },
    Connected(Session),
}

/// One connection.
struct Session {
    channel: Arc<dyn Channel>,
    talk: Talk,
    /// The master's term, once it welcomed us.
    term: Term,
    /// Of the next frame to come.
    expected: u64,
    /// When handshake and syncup have to be over.
    deadline: Deadline,
    seen: Deadline,
    /// The last entry of our log.
    last: Option<Position>,
    /// Bytes appended since the last ack.
    unacked: usize,
    /// When the last burst ended.
    last_burst: Deadline,
    /// Present if batches may come compressed.
    expander: Option<Expander>,
}

/// What comes next on a connection. The line moves to the ack sender when the stream begins.
enum Talk {
    Welcome(Line),
    Matchpoint(Line),
    Stream,
}

/// A burst is acked at the latest after this many bytes, so that the master sees progress in a long catch-up.
const ACK_EVERY: usize = 1 << 20;
/// A burst up to this size that somebody waits for is flushed by the receiving thread itself, which saves a wake-up.
const FLUSH_HERE: usize = 64 << 10;
/// An ack that found no room is tried again after this time.
const RETRY_ACK: Duration = Duration::from_millis(10);

impl Receive {
    pub fn new(shared: Arc<Following>) -> Receive {
        let clock = shared.runtime.clock();
        let backoff = shared.config.backoff_min;
        let stage = Stage::Resting { until: clock.now() };
        Receive { shared, clock, stage, buffer: ReceiveBuffer::default(), backoff }
    }

    fn rest(&mut self, until: Deadline, wait: Wait) -> Result<Step, FollowError> {
        let offered = self.shared.offered.lock().pop_front();
        if let Some(channel) = offered {
            return self.greet(channel);
        }
        let Some(upstream) = self.shared.config.upstream.as_ref() else {
            rest(wait);
            return Ok(Step::Idle { due: Deadline::NEVER });
        };
        if self.clock.now() < until {
            rest(wait.at_most(until));
            return Ok(Step::Idle { due: until });
        }
        self.shared.set_phase(ReplicaState::Connecting);
        let give_up = self.clock.now() + self.shared.config.handshake_timeout;
        match self.shared.runtime.dial(upstream, wait.at_most(give_up))? {
            Some(channel) => self.greet(channel),
            None => Err(FollowError::HandshakeTimeout(self.shared.config.handshake_timeout)),
        }
    }

    fn greet(&mut self, channel: Arc<dyn Channel>) -> Result<Step, FollowError> {
        let shared = &self.shared;
        *shared.current.lock() = Some(Arc::clone(&channel));
        if shared.closing.load(Ordering::SeqCst) {
            channel.close();
            return Err(FollowError::Closing);
        }
        shared.set_phase(ReplicaState::Connecting);
        let now = self.clock.now();
        let mut line = Line::new(Arc::clone(&channel), shared.term());
        let last = shared.log.last();
        if !line.send(&Message::Hello(handshake::hello(
            &shared.config,
            shared.identity,
            shared.state.state().standing,
            last,
        ))) {
            return Err(crate::channel::ChannelError::Closed.into());
        }
        self.buffer = ReceiveBuffer::default();
        self.stage = Stage::Connected(Session {
            channel,
            talk: Talk::Welcome(line),
            term: Term::NONE,
            expected: 0,
            deadline: now + shared.config.handshake_timeout,
            seen: now,
            last,
            unacked: 0,
            last_burst: now,
            expander: None,
        });
        Ok(Step::Worked)
    }
}

impl Session {
    fn step(
        &mut self,
        shared: &Following,
        clock: &dyn Clock,
        buffer: &mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Step, FollowError> {
        let streaming = matches!(self.talk, Talk::Stream);
        let config = &shared.config;
        let deadline = if streaming { self.seen + config.peer_timeout } else { self.deadline };
        let mut due = deadline;
        if streaming && shared.acks.has_unsent() {
            shared.acks.send();
            due = due.min(clock.now() + RETRY_ACK);
        }
        match self.channel.receive(buffer, wait.at_most(due))? {
            Some(frame) => {
                self.seen = clock.now();
                let mut expander = self.expander.take();
                let frame = match &mut expander {
                    Some(expander) => expander.expand(frame, config.max_frame)?,
                    None => frame,
                };
                let (header, message) = Message::decode(frame)?;
                if header.sequence != self.expected && !active(Bug::HoleAccepted) {
                    return Err(FollowError::Sequence { found: header.sequence, expected: self.expected });
                }
                self.expected = header.sequence + 1;
                self.take(shared, header.term, message)?;
                self.expander = self.expander.take().or(expander);
            }
            None if clock.now() >= deadline && streaming => {
                return Err(FollowError::Silent(config.peer_timeout));
            }
            None if clock.now() >= deadline => {
                return Err(FollowError::HandshakeTimeout(config.handshake_timeout));
            }
            None => return Ok(Step::Idle { due }),
        }
        if streaming && self.unacked > 0 {
            // A stream that comes slowly and never pauses is acked too: the master must not take it for silence.
            let overdue = self.seen >= self.last_burst + config.heartbeat;
            if self.unacked >= ACK_EVERY || overdue || !buffer.buffered() {
                self.last_burst = self.seen;
                self.end_burst(shared)?;
            }
        }
        Ok(Step::Worked)
    }

    fn take(&mut self, shared: &Following, term: Term, message: Message<'_>) -> Result<(), FollowError> {
        if !matches!(self.talk, Talk::Welcome(_)) && term != self.term {
            return Err(FollowError::Term { found: term, expected: self.term });
        }
        match (&mut self.talk, message) {
            (_, Message::Bye(bye)) => Err(FollowError::Goodbye(bye.reason)),
            (Talk::Welcome(_), Message::Welcome(welcome)) => self.welcomed(shared, term, &welcome),
            (Talk::Welcome(_), Message::Reject(reject)) => Err(FollowError::Rejected(reject.reason)),
            (Talk::Matchpoint(_), Message::Matchpoint(matchpoint)) => self.matched(shared, matchpoint.at),
            (Talk::Matchpoint(_), Message::NeedSnapshot(need)) => {
                Err(FollowError::NeedsSnapshot { oldest: need.oldest })
            }
            (Talk::Matchpoint(_), Message::Behind(behind)) => Err(FollowError::Behind { last: behind.last }),
            (Talk::Stream, Message::Entries(entries)) => self.append(shared, &entries),
            (Talk::Stream, Message::Heartbeat(heartbeat)) => self.heard(shared, &heartbeat),
            (talk, other) => {
                let expected = match talk {
                    Talk::Welcome(_) => "welcome or reject",
                    Talk::Matchpoint(_) => "matchpoint, need for a snapshot, or behind",
                    Talk::Stream => "entries or heartbeat",
                };
                Err(FollowError::OutOfTurn { found: other.kind(), expected })
            }
        }
    }

    fn welcomed(&mut self, shared: &Following, term: Term, welcome: &Welcome) -> Result<(), FollowError> {
        let Talk::Welcome(line) = &mut self.talk else {
            unreachable!("a welcome is taken while one is awaited")
        };
        let ours = shared.term();
        if let Err(error) = judge_welcome(&shared.config, ours, term, welcome) {
            if term < ours {
                line.send(&Message::Fence);
            }
            return Err(error.into());
        }
        if term > ours {
            shared.state.store(shared.state.state().in_term(term))?;
        }
        self.term = term;
        line.set_term(term);
        self.channel.limit_frames(welcome.max_frame);
        self.expander = welcome.capabilities.contains(Capabilities::LZ4).then(Expander::default);
        let ours = Syncup {
            last: shared.log.last(),
            committed: Vlsn::new(shared.apply.committed.get()),
            history: syncup::history_of(&shared.log)?.spans().to_vec(),
        };
        if !line.send(&Message::Syncup(ours)) {
            return Err(crate::channel::ChannelError::Closed.into());
        }
        self.advance_talk();
        Ok(())
    }

    /// The line moves on to the next part of the talk.
    fn advance_talk(&mut self) {
        self.talk = match std::mem::replace(&mut self.talk, Talk::Stream) {
            Talk::Welcome(line) => Talk::Matchpoint(line),
            Talk::Matchpoint(_) | Talk::Stream => Talk::Stream,
        };
    }

    fn matched(&mut self, shared: &Following, at: Option<Position>) -> Result<(), FollowError> {
        let log = &shared.log;
        let ours = match at {
            Some(theirs) if log.last().is_some_and(|last| last.vlsn >= theirs.vlsn) => {
                Some(log.position_at(theirs.vlsn)?)
            }
            _ => None,
        };
        // What the engine holds is committed, whatever the marks in the log say.
        let committed = shared.apply.committed.get().max(shared.apply.applied.get());
        let settled = syncup::settle(at, ours, log.last(), Vlsn::new(committed));
        let settlement = settled.inspect_err(|error| {
            let reason = match error {
                syncup::SyncupError::Differs { .. } => NackReason::MatchpointDiffers,
                syncup::SyncupError::BelowCommitted { .. } => NackReason::BelowCommitted,
            };
            let nack = Nack { reason, at: at.map(|at| at.vlsn) };
            if let Talk::Matchpoint(line) = &mut self.talk {
                line.send(&Message::Nack(nack));
            }
        })?;
        if let Settlement::CutAfter(keep) = settlement {
            let cut = log.truncate_after(keep)?;
            shared.counters.rollbacks.one();
            log::warn!("cut the log after VLSN {}: {cut:?}", number(keep));
        }
        self.last = log.last();
        let Talk::Matchpoint(line) = std::mem::replace(&mut self.talk, Talk::Stream) else {
            unreachable!("a matchpoint is taken while one is awaited")
        };
        shared.acks.connect(line);
        shared.acks.send_first();
        shared.set_phase(ReplicaState::Following);
        log::info!("following the master of term {} after VLSN {}", self.term, number(at.map(|at| at.vlsn)));
        Ok(())
    }

    fn append(&mut self, shared: &Following, entries: &Entries<'_>) -> Result<(), FollowError> {
        let run = entries.run;
        let summary = match self.verify(run) {
            Ok(summary) => summary,
            Err(error) => {
                shared.counters.damage.one();
                shared.acks.message(&Message::Nack(nack_of(&error)));
                return Err(error.into());
            }
        };
        let head = entries.head();
        if (head.first, head.last) != (summary.range.first(), summary.range.last()) {
            return Err(FollowError::Announced { first: head.first, last: head.last });
        }
        if summary.last.term > self.term {
            return Err(FollowError::Term { found: summary.last.term, expected: self.term });
        }
        shared.log.append_run(run, &summary)?;
        shared.counters.frames_received.one();
        shared.counters.bytes_received.add(run.len() as u64);
        self.last = Some(summary.last);
        self.unacked += run.len();
        shared.acks.want(head.durable_wanted, head.applied_wanted);
        self.committed(shared, head.committed);
        Ok(())
    }

    fn verify(&self, run: &[u8]) -> Result<RunSummary, RunError> {
        if active(Bug::CrcNotChecked) || active(Bug::HoleAccepted) {
            return crate::planted::trust_run(run, self.last);
        }
        verify_run(run, self.last)
    }

    /// The master's word for what is committed, cut to what this log holds, which has been matched with the master's.
    fn committed(&self, shared: &Following, told: Option<Vlsn>) {
        let known = told.min(self.last.map(|last| last.vlsn));
        if let Some(known) = known {
            shared.log.note_committed(known);
            shared.apply.committed.advance(known.get());
        }
    }

    fn heard(&mut self, shared: &Following, heartbeat: &Heartbeat) -> Result<(), FollowError> {
        shared.acks.want(heartbeat.durable_wanted, heartbeat.applied_wanted);
        self.committed(shared, heartbeat.committed);
        let standing = shared.state.state().standing;
        let reply =
            HeartbeatReply { clock: heartbeat.clock, health: crate::members::Health::Healthy, standing };
        shared.acks.message(&Message::HeartbeatReply(reply));
        shared.acks.send();
        self.flush_wanted(shared, heartbeat.durable_wanted, usize::MAX)
    }

    /// Nothing more is ready: acks what was appended, and flushes what somebody waits for.
    fn end_burst(&mut self, shared: &Following) -> Result<(), FollowError> {
        let bytes = std::mem::take(&mut self.unacked);
        shared.acks.appended();
        self.flush_wanted(shared, shared.acks.wanted_durable(), bytes)
    }

    fn flush_wanted(
        &self,
        shared: &Following,
        wanted: Option<Vlsn>,
        bytes: usize,
    ) -> Result<(), FollowError> {
        let target = wanted.min(self.last.map(|last| last.vlsn));
        let Some(target) = target.filter(|target| target.get() > shared.log.life().flushed.get()) else {
            return Ok(());
        };
        let Some(last) = self.last else { return Ok(()) };
        debug_assert!(target <= last.vlsn);
        if bytes <= FLUSH_HERE {
            match shared.log.flush(last.vlsn, Wait::Now) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // The disk is full: the flusher tries again.
                Err(FlushError::Write(error)) => log::warn!("{error}"),
                Err(error) => return Err(error.into()),
            }
        }
        shared.log.request_flush(last.vlsn);
        Ok(())
    }
}

fn nack_of(error: &RunError) -> Nack {
    let (reason, at) = match error {
        RunError::Empty => (NackReason::Hole, None),
        RunError::Damaged { at, .. } | RunError::Local { at } => (NackReason::Damaged, Some(*at)),
        RunError::OutOfOrder { expected, .. } => (NackReason::Hole, Some(*expected)),
        RunError::TermFalls { at, .. } => (NackReason::TermFalls, Some(*at)),
        RunError::Foreign { at, .. } => (NackReason::Foreign, Some(*at)),
    };
    Nack { reason, at }
}

impl Worker for Receive {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        if self.shared.closing.load(Ordering::SeqCst) {
            self.shared.set_phase(ReplicaState::Stopped);
            return Err(Stop::Done);
        }
        let outcome = match &mut self.stage {
            Stage::Resting { until } => {
                let until = *until;
                self.rest(until, wait)
            }
            Stage::Connected(session) => session.step(&self.shared, &*self.clock, &mut self.buffer, wait),
        };
        let error = match outcome {
            Ok(step) => {
                if self.shared.phase() == ReplicaState::Following {
                    self.backoff = self.shared.config.backoff_min;
                }
                return Ok(step);
            }
            Err(error) => error,
        };
        self.shared.acks.disconnect();
        if let Some(channel) = self.shared.current.lock().take() {
            channel.close();
        }
        let fatal = error.is_fatal();
        let expected = self.shared.closing.load(Ordering::SeqCst) || matches!(error, FollowError::Goodbye(_));
        let level = if expected { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "{} lost its master: {error}", self.shared.config.node);
        *self.shared.last_error.lock() = Some(error.clone());
        if fatal {
            self.shared.set_phase(ReplicaState::Stopped);
            return Err(Stop::failed(error));
        }
        self.shared.set_phase(ReplicaState::Resting);
        self.shared.counters.reconnects.one();
        // Half the backoff is fixed and half is chance, so that replicas do not return in step.
        let nanos = u64::try_from(self.backoff.as_nanos()).unwrap_or(u64::MAX).max(2);
        let pause = Duration::from_nanos(nanos / 2 + self.shared.runtime.random() % (nanos / 2));
        self.backoff = (self.backoff * 2).min(self.shared.config.backoff_max);
        self.stage = Stage::Resting { until: self.clock.now() + pause };
        Ok(Step::Worked)
    }
}
