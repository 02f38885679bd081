//! The receive worker: connects to the master, agrees with it, and then verifies and appends what comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::address::Address;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::entry::{RunError, RunSummary, verify_run};
use crate::handshake::{self, judge_welcome};
use crate::ids::{LogEnd, Position, Term, Vlsn, number};
use crate::log::{FlushError, TruncateError};
use crate::members::{Role, Standing};
use crate::planted::{Bug, active};
use crate::replica::ack::Line;
use crate::replica::following::{Following, Retry};
use crate::replica::{FollowError, ReplicaState};
use crate::state::State;
use crate::syncup::{self, Settlement};
use crate::watermark::rest;
use crate::wire::compress::Expander;
use crate::wire::message::{
    Ack, Capabilities, Entries, Feed, Heartbeat, HeartbeatReply, Message, Nack, NackReason, NeedSnapshot,
    RejectReason, Syncup, Welcome,
};
use crate::worker::{Step, Stop, Worker};

/// The worker.
pub(crate) struct Receive {
    shared: Arc<Following>,
    clock: Arc<dyn Clock>,
    stage: Stage,
    buffer: ReceiveBuffer,
    backoff: Duration,
    /// Whom it dialled last.
    dialled: Option<Address>,
}

enum Stage {
    Resting { until: Deadline },
    Connected(Box<Session>),
}

/// One connection.
struct Session {
    channel: Arc<dyn Channel>,
    talk: Talk,
    /// The master's term, once it welcomed us.
    term: Term,
    /// By what right the other end feeds us.
    feed: Feed,
    /// Of the next frame to come.
    expected: u64,
    /// When handshake and syncup have to be over.
    deadline: Deadline,
    seen: Deadline,
    /// The last entry of our log, as the master was told.
    last: Option<Position>,
    /// Bytes appended since the last ack.
    unacked: usize,
    /// When the last burst ended.
    last_burst: Deadline,
    /// Present if batches may come compressed.
    expander: Option<Expander>,
    /// Where the other end listens, if we dialled it.
    dialled: Option<Address>,
}

/// What comes next on a connection. The line moves to the ack sender when the stream begins.
enum Talk {
    Welcome(Line),
    Matchpoint(Line),
    Stream,
    /// An arbiter's: heartbeats only.
    Marks(Line),
    /// This node needs a snapshot, and fetches it elsewhere: heartbeats only.
    Snapshot(Line),
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
        Receive { shared, clock, stage, buffer: ReceiveBuffer::default(), backoff, dialled: None }
    }

    fn rest(&mut self, until: Deadline, wait: Wait) -> Result<Step, FollowError> {
        if let Some(channel) = self.shared.next_offered() {
            self.dialled = None;
            return self.greet(channel);
        }
        if !self.shared.take_hurry() && self.clock.now() < until {
            rest(wait.at_most(until));
            return Ok(Step::Idle { due: until });
        }
        let Some(upstream) = self.shared.guide.upstream() else {
            rest(wait);
            return Ok(Step::Idle { due: Deadline::NEVER });
        };
        self.shared.set_phase(ReplicaState::Connecting);
        let patience = self.shared.config.handshake_timeout;
        let patience = self.shared.guide.dial_within().unwrap_or(patience).min(patience);
        let give_up = self.clock.now() + patience;
        self.dialled = Some(upstream.clone());
        match self.shared.runtime.dial(&upstream, wait.at_most(give_up))? {
            Some(channel) => self.greet(channel),
            None => Err(FollowError::HandshakeTimeout(patience)),
        }
    }

    fn greet(&mut self, channel: Arc<dyn Channel>) -> Result<Step, FollowError> {
        let shared = &self.shared;
        *shared.current.lock() = Some(Arc::clone(&channel));
        if shared.is_closing() {
            channel.close();
            return Err(FollowError::Closing);
        }
        shared.set_phase(ReplicaState::Connecting);
        let now = self.clock.now();
        let mut line = Line::new(Arc::clone(&channel), shared.term());
        let last = shared.log.last();
        if !line.send(&Message::Hello(handshake::hello(
            &shared.config,
            &shared.own,
            shared.identity,
            shared.state.state().standing,
            last,
        ))) {
            return Err(crate::channel::ChannelError::Closed.into());
        }
        self.buffer = ReceiveBuffer::default();
        self.stage = Stage::Connected(Box::new(Session {
            channel,
            talk: Talk::Welcome(line),
            term: Term::NONE,
            feed: Feed::Leads,
            expected: 0,
            deadline: now + shared.config.handshake_timeout,
            seen: now,
            last,
            unacked: 0,
            last_burst: now,
            expander: None,
            dialled: self.dialled.clone(),
        }));
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
        let streaming = matches!(self.talk, Talk::Stream | Talk::Marks(_) | Talk::Snapshot(_));
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
            (Talk::Matchpoint(_), Message::NeedSnapshot(need)) => self.needs_snapshot(shared, need),
            (Talk::Snapshot(line), Message::Heartbeat(heartbeat)) => {
                shared.guide.waiting(self.feed);
                let (standing, clock) = (shared.state.state().standing, heartbeat.clock);
                let health = crate::members::Health::CatchingUp;
                line.send(&Message::HeartbeatReply(HeartbeatReply { clock, health, standing }));
                Ok(())
            }
            (Talk::Matchpoint(_), Message::Behind(behind)) => Err(FollowError::Behind { last: behind.last }),
            (Talk::Stream, Message::Entries(entries)) => self.append(shared, &entries),
            (Talk::Stream, Message::Heartbeat(heartbeat)) => self.heard(shared, &heartbeat),
            (Talk::Marks(_), Message::Heartbeat(heartbeat)) => self.mark(shared, &heartbeat),
            (Talk::Stream, Message::Stand) => {
                shared.guide.stand();
                Ok(())
            }
            (talk, other) => {
                let expected = match talk {
                    Talk::Welcome(_) => "welcome or reject",
                    Talk::Matchpoint(_) => "matchpoint, need for a snapshot, or behind",
                    Talk::Stream => "entries, heartbeat or an order to stand",
                    Talk::Marks(_) | Talk::Snapshot(_) => "heartbeat",
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
        if let Err(error) = judge_welcome(&shared.config, shared.masters.as_ref(), ours, term, welcome) {
            if term < ours {
                line.send(&Message::Fence);
            }
            return Err(error.into());
        }
        shared.enter(term, &welcome.node, welcome.feed)?;
        self.term = term;
        self.feed = welcome.feed;
        line.set_term(term);
        self.channel.limit_frames(welcome.max_frame);
        self.expander = welcome.capabilities.contains(Capabilities::LZ4).then(Expander::default);
        if shared.own.role == Role::Arbiter {
            return self.begin_marks(shared);
        }
        self.last = shared.log.last();
        let ours = Syncup {
            last: self.last,
            committed: Vlsn::new(shared.known_committed()),
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
            talk => talk,
        };
    }

    /// The master has no longer what follows on this log. The connection stays, so that each hears that the other lives.
    fn needs_snapshot(&mut self, shared: &Following, need: NeedSnapshot) -> Result<(), FollowError> {
        let oldest = need.oldest;
        let provider = need.provider.or_else(|| self.dialled.clone());
        if !provider.is_some_and(|from| shared.guide.need_snapshot(self.term, oldest, from)) {
            return Err(FollowError::NeedsSnapshot { oldest });
        }
        self.talk = match std::mem::replace(&mut self.talk, Talk::Stream) {
            Talk::Matchpoint(line) => Talk::Snapshot(line),
            talk => talk,
        };
        Ok(())
    }

    fn matched(&mut self, shared: &Following, at: Option<Position>) -> Result<(), FollowError> {
        let pass = shared.pass(self.term)?;
        if shared.is_installing() {
            return Err(FollowError::Installing);
        }
        let log = &shared.log;
        if log.last() != self.last {
            // It was healed further meanwhile: the answer is about another log.
            return Err(crate::channel::ChannelError::Closed.into());
        }
        let ours = match at {
            Some(theirs) if log.last().is_some_and(|last| last.vlsn >= theirs.vlsn) => {
                Some(log.position_at(theirs.vlsn)?)
            }
            _ => None,
        };
        // What the engine holds is committed, whatever the marks in the log say.
        let committed = shared.known_committed();
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
            if self.feed == Feed::Follows {
                return Err(FollowError::CutByRelay { after: keep });
            }
            shared.guide.before_cut();
            let cut = log.truncate_after(keep)?;
            shared.counters.rollbacks.one();
            log::warn!("cut the log after VLSN {}: {cut:?}", number(keep));
            shared.guide.cut(&cut);
            shared.guide.members_changed();
            shared.guide.slots_changed();
        }
        self.last = log.last();
        let Talk::Matchpoint(line) = std::mem::replace(&mut self.talk, Talk::Stream) else {
            unreachable!("a matchpoint is taken while one is awaited")
        };
        shared.acks.connect(line);
        shared.acks.send_first();
        // Before the gate opens: whoever is about to install a snapshot looks there.
        shared.set_phase(ReplicaState::Following);
        drop(pass);
        shared.guide.following(self.term);
        log::info!("following the master of term {} after VLSN {}", self.term, number(at.map(|at| at.vlsn)));
        Ok(())
    }

    fn append(&mut self, shared: &Following, entries: &Entries<'_>) -> Result<(), FollowError> {
        let _pass = shared.pass(self.term)?;
        assert!(!shared.is_installing(), "an install began beside a stream");
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
        shared.guide.appended(summary.last.vlsn);
        if summary.memberships {
            shared.guide.members_changed();
        }
        if summary.slots {
            shared.guide.slots_changed();
        }
        shared.acks.want(head.durable_wanted, head.applied_wanted);
        self.committed(shared, head.committed);
        shared.guide.heard(self.feed);
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
        let _pass = shared.pass(self.term)?;
        shared.guide.heard(self.feed);
        shared.acks.want(heartbeat.durable_wanted, heartbeat.applied_wanted);
        self.committed(shared, heartbeat.committed);
        shared.admit(self.term, heartbeat.committed)?;
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

/// An arbiter's part: it keeps no entries, only how far the master's log was on the master's disk.
impl Session {
    fn begin_marks(&mut self, shared: &Following) -> Result<(), FollowError> {
        let _pass = shared.pass(self.term)?;
        let mark = shared.state.state().mark;
        let known = mark.vlsn.filter(|_| mark.term == self.term);
        let Talk::Welcome(mut line) = std::mem::replace(&mut self.talk, Talk::Stream) else {
            unreachable!("a welcome is taken while one is awaited")
        };
        if !line.send(&Message::Ack(mark_ack(known))) {
            return Err(crate::channel::ChannelError::Closed.into());
        }
        self.talk = Talk::Marks(line);
        shared.set_phase(ReplicaState::Following);
        shared.guide.following(self.term);
        Ok(())
    }

    /// The mark of a newer term replaces that of an older one, also by a lower VLSN; durably, before it is told.
    fn mark(&mut self, shared: &Following, heartbeat: &Heartbeat) -> Result<(), FollowError> {
        let _pass = shared.pass(self.term)?;
        shared.guide.heard(self.feed);
        let told = LogEnd { term: self.term, vlsn: heartbeat.flushed };
        let before = shared.state.state();
        let news = told.vlsn.is_some() && told > before.mark;
        // A newcomer is told what is committed only once that is of the master's own term, and a majority without this
        // node is known to follow it.
        let standing = match before.standing {
            Standing::Newcomer if told.vlsn.is_some() && heartbeat.committed.is_some() => {
                Standing::Full { since: self.term }
            }
            standing => standing,
        };
        if (news || standing != before.standing) && !active(Bug::ArbiterAcksBeforePersisting) {
            shared.state.update(|state| State {
                mark: if news { told } else { state.mark },
                standing,
                ..state
            })?;
        }
        let Talk::Marks(line) = &mut self.talk else {
            unreachable!("a mark is taken in an arbiter's stream")
        };
        if news {
            line.send(&Message::Ack(mark_ack(told.vlsn)));
        }
        let reply =
            HeartbeatReply { clock: heartbeat.clock, health: crate::members::Health::Healthy, standing };
        line.send(&Message::HeartbeatReply(reply));
        Ok(())
    }
}

fn mark_ack(mark: Option<Vlsn>) -> Ack {
    Ack { received: mark, durable: mark, applied: None, checkpointed: None }
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
        if self.shared.is_closing() {
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
            Err(error) => self.shared.take_parting().filter(|_| !error.is_fatal()).unwrap_or(error),
        };
        self.shared.acks.disconnect();
        let current = self.shared.current.lock().take();
        if let Some(channel) = current {
            channel.close();
        }
        self.shared.guide.lost(&error);
        let damaged = matches!(error, FollowError::Truncate(TruncateError::Damaged { .. }));
        // A node with a fixed part has nobody who heals it: it stops, and says why.
        let fatal = error.is_fatal() || (damaged && !self.shared.apply.heals.load(Ordering::Relaxed));
        // Nobody leads for a moment, or somebody else: that is daily life.
        let elsewhere = matches!(error, FollowError::Rejected(RejectReason::NotMaster { .. }));
        let expected = self.shared.is_closing() || elsewhere || matches!(error, FollowError::Goodbye(_));
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
        if let (FollowError::Rejected(reason), Some(by)) = (&error, &self.dialled)
            && self.shared.guide.rejected(by, reason) == Retry::Now
        {
            self.shared.hurry();
        }
        Ok(Step::Worked)
    }
}
