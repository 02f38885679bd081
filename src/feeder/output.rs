//! The sending half of a feeder: entries straight from the log's memory, and heartbeats.
//!
//! The state of the half is behind one lock. The feeder-out worker holds it while it sends; a committing thread that
//! finds it free sends its own entry, which saves a wake-up.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Deadline, Wait};
use crate::feeder::connection::{Connection, FeedError};
use crate::feeder::hub::Hub;
use crate::feeder::status::FeederState;
use crate::ids::{Vlsn, number};
use crate::log::scanner::{LogScanner, RUN_SLICES};
use crate::planted::{Bug, active};
use crate::wire::compress::Compressor;
use crate::wire::message::{Bye, ByeReason, Capabilities, Heartbeat, Message};
use crate::wire::{ENTRIES_HEAD_LEN, encode_entries_head};
use crate::worker::{Step, Stop, Worker};

/// Frames whose acks are awaited and whose time is remembered, for lag in time.
const TIMED_FRAMES: usize = 64;

/// Entries that were appended and can't be read yet are looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Shorter runs are not worth compressing.
const COMPRESS_FROM: usize = 4 << 10;

/// What the sending half knows.
pub(super) struct Output {
    /// What entries are read with; an arbiter is sent none.
    scanner: Option<Box<dyn LogScanner>>,
    /// The last entry sent; for an arbiter, the last that it was told to be flushed.
    sent: Option<Vlsn>,
    /// What the peer was last told to be committed.
    told: Option<Vlsn>,
    /// Of the next frame.
    sequence: u64,
    /// Present if both sides want it.
    compressor: Option<Box<Compressor>>,
    /// Bytes of entries that fit into a frame of this connection.
    room: usize,
    /// When the last heartbeat was sent, or the stream began.
    last_beat: Deadline,
    /// Since when the peer takes nothing more.
    blocked_since: Option<Deadline>,
    scratch: Vec<u8>,
    /// A send failed: nothing more goes out, and nobody knows what did.
    broken: bool,
}

/// What a pump did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pumped {
    /// It sent a frame; there may be more.
    Sent,
    /// Everything there is was sent before.
    Nothing,
    /// The peer takes nothing now.
    NoRoom,
}

/// The VLSNs and timestamps of frames that were sent and are not acknowledged, oldest first.
pub(super) struct InFlight(VecDeque<(Vlsn, u64)>);

impl InFlight {
    pub fn new() -> InFlight {
        InFlight(VecDeque::with_capacity(TIMED_FRAMES))
    }

    pub fn sent(&mut self, last: Vlsn, timestamp: u64) {
        if self.0.len() < TIMED_FRAMES {
            self.0.push_back((last, timestamp));
        }
    }

    pub fn not_sent(&mut self, last: Vlsn) {
        if self.0.back().is_some_and(|(at, _)| *at == last) {
            self.0.pop_back();
        }
    }

    pub fn received(&mut self, upto: Option<Vlsn>) {
        while self.0.front().is_some_and(|(last, _)| Some(*last) <= upto) {
            self.0.pop_front();
        }
    }

    /// When the oldest entry that is not acknowledged was appended, in microseconds since the epoch.
    pub fn oldest_micros(&self) -> Option<u64> {
        self.0.front().map(|(_, timestamp)| *timestamp)
    }
}

/// What the handshake settled.
#[derive(Clone, Copy)]
pub(super) struct Agreed {
    pub capabilities: Capabilities,
    pub max_frame: u32,
}

impl Agreed {
    /// Bytes of entries that fit into a frame.
    pub fn room(self) -> usize {
        (self.max_frame as usize).saturating_sub(ENTRIES_HEAD_LEN)
    }
}

impl Output {
    /// The half that sends what follows `proved`, the last entry that the replica proved to have.
    pub fn new(
        scanner: Option<Box<dyn LogScanner>>,
        proved: Option<Vlsn>,
        sequence: u64,
        agreed: Agreed,
        now: Deadline,
    ) -> Output {
        let sent = if active(Bug::ResumeOffByOne) { Some(Vlsn::after(proved)) } else { proved };
        let compressor = agreed.capabilities.contains(Capabilities::LZ4).then(Box::default);
        Output {
            scanner,
            sent,
            told: None,
            sequence,
            compressor,
            room: agreed.room(),
            last_beat: now,
            blocked_since: None,
            scratch: Vec::new(),
            broken: false,
        }
    }

    /// Sends one frame of what the log has beyond what was sent, at most `max_bytes` (but a whole entry).
    pub fn pump(
        &mut self,
        hub: &Hub,
        to: &Connection,
        max_bytes: usize,
        wait: Wait,
    ) -> Result<Pumped, FeedError> {
        if self.broken {
            return Err(FeedError::Closing);
        }
        let Some(scanner) = &mut self.scanner else { return Ok(Pumped::Nothing) };
        let Some(run) = scanner.run(self.sent, u32::MAX, max_bytes.min(self.room))? else {
            return Ok(Pumped::Nothing);
        };
        let (last, timestamp) = (run.last.vlsn, run.timestamp);
        let head = hub.entries_head(&run);
        // The position is published before the bytes leave: an ack may come back before `send` returns.
        to.sending(last, timestamp);
        let compressor = self.compressor.as_mut().filter(|_| run.len_bytes() >= COMPRESS_FROM);
        let compressed = compressor.and_then(|c| c.frame(hub.term(), self.sequence, &head, run.slices()));
        let sent = if let Some(frame) = compressed {
            to.channel.send(&[IoSlice::new(frame)], wait)
        } else {
            let prefix = encode_entries_head(hub.term(), self.sequence, &head, run.len_bytes());
            let mut slices = [IoSlice::new(&[]); RUN_SLICES + 1];
            slices[0] = IoSlice::new(&prefix);
            for (slice, bytes) in slices[1..].iter_mut().zip(run.slices()) {
                *slice = IoSlice::new(bytes);
            }
            to.channel.send(&slices[..=run.slices().len()], wait)
        };
        self.broken = sent.is_err();
        if !sent? {
            to.not_sent(self.sent, last)?;
            return Ok(Pumped::NoRoom);
        }
        hub.counters().frames_sent.one();
        hub.counters().bytes_sent.add(run.len_bytes() as u64);
        assert!(Some(last) > self.sent, "a feeder sent VLSN {last} after {:?}", self.sent);
        self.sent = Some(last);
        self.told = head.committed;
        self.note_frame();
        Ok(Pumped::Sent)
    }

    /// Sends positions and health. `false`: the peer takes nothing now. An arbiter is told of no entry that is not
    /// flushed here, and of none of an earlier term.
    pub fn heartbeat(&mut self, hub: &Hub, to: &Connection, wait: Wait) -> Result<bool, FeedError> {
        let arbiter = self.scanner.is_none();
        let own = hub.own_positions();
        let flushed = if arbiter { hub.flushed_in_term(own).max(self.sent) } else { own.durable };
        let (durable_wanted, applied_wanted) = hub.wanted();
        let now = hub.clock().now();
        let heartbeat = Heartbeat {
            written: if arbiter { flushed } else { own.received },
            flushed,
            committed: hub.committed().filter(|committed| hub.may_admit(to, *committed)),
            durable_wanted,
            applied_wanted,
            health: hub.health(),
            clock: now.as_nanos(),
        };
        to.beating(now);
        let before = self.sent;
        if let Some(flushed) = flushed.filter(|flushed| arbiter && Some(*flushed) > before) {
            // What it may acknowledge is published before it is told.
            to.progress.lock().sending(flushed);
            self.sent = Some(flushed);
        }
        let sent = self.message(hub, to, &Message::Heartbeat(heartbeat), wait)?;
        if sent {
            self.told = hub.committed();
            self.last_beat = now;
        } else if self.sent != before {
            self.sent = before;
            to.progress.lock().not_sent(before)?;
        }
        Ok(sent)
    }

    /// Sends a message other than entries.
    pub fn message(
        &mut self,
        hub: &Hub,
        to: &Connection,
        message: &Message<'_>,
        wait: Wait,
    ) -> Result<bool, FeedError> {
        message.encode(hub.term(), self.sequence, &mut self.scratch);
        let sent = to.channel.send(&[IoSlice::new(&self.scratch)], wait)?;
        if sent {
            self.note_frame();
        }
        Ok(sent)
    }

    fn note_frame(&mut self) {
        self.sequence += 1;
        self.blocked_since = None;
    }

    /// What the peer was last told to be committed.
    pub fn told(&self) -> Option<Vlsn> {
        self.told
    }

    /// The last entry sent.
    pub fn sent(&self) -> Option<Vlsn> {
        self.sent
    }
}

/// The feeder-out worker: sends what is appended, and heartbeats, whether the stream is idle or busy.
pub(super) struct FeederOut {
    hub: Arc<Hub>,
    connection: Arc<Connection>,
    clock: Arc<dyn Clock>,
}

impl FeederOut {
    pub fn new(hub: Arc<Hub>, connection: Arc<Connection>) -> FeederOut {
        let clock = hub.clock();
        FeederOut { hub, connection, clock }
    }

    fn pump(&self, wait: Wait) -> Result<Next, FeedError> {
        let mut guard = self.connection.output.lock();
        let Some(output) = guard.as_mut() else {
            return Err(FeedError::Closing);
        };
        if self.connection.is_dismissed() {
            let bye = Message::Bye(Bye { reason: ByeReason::Removed });
            let _unsaid = output.message(&self.hub, &self.connection, &bye, Wait::Now);
            return Err(FeedError::Removed);
        }
        let config = self.hub.config();
        let now = self.clock.now();
        let give_up = output.blocked_since.unwrap_or(now) + config.peer_timeout;
        // Before entries, or a busy stream would carry none.
        if now >= output.last_beat + config.heartbeat || self.connection.take_beat() {
            if !output.heartbeat(&self.hub, &self.connection, wait.at_most(give_up))? {
                self.connection.beat_still_wanted();
                return self.blocked(output, now, give_up);
            }
            return Ok(Next::Again);
        }
        let beat = output.last_beat + config.heartbeat;
        // Read before the log is: what the log does not show of this can't be read now, as when the disk is full.
        let fed = self.hub.feed().get();
        if self.connection.is_arbiter() {
            self.connection.caught_up(&self.hub, Vlsn::new(fed));
            return Ok(Next::WaitFor { after: None, until: beat });
        }
        if self.connection.state() == FeederState::Paused {
            return Ok(Next::WaitFor { after: None, until: beat });
        }
        match output.pump(&self.hub, &self.connection, config.batch_bytes, wait.at_most(give_up))? {
            Pumped::Sent => {
                self.connection.caught_up(&self.hub, output.sent());
                return Ok(Next::Again);
            }
            Pumped::NoRoom => return self.blocked(output, now, give_up),
            Pumped::Nothing => self.connection.caught_up(&self.hub, output.sent()),
        }
        let sent = number(output.sent());
        let until = if fed > sent { beat.min(now + LOOK_AGAIN) } else { beat };
        Ok(Next::WaitFor { after: Some(fed.max(sent)), until })
    }

    fn blocked(&self, output: &mut Output, now: Deadline, give_up: Deadline) -> Result<Next, FeedError> {
        if now >= give_up {
            return Err(FeedError::Stalled { by: self.hub.config().peer_timeout });
        }
        output.blocked_since.get_or_insert(now);
        Ok(Next::Blocked { until: give_up })
    }
}

enum Next {
    Again,
    /// The peer takes nothing; look again by then at the latest.
    Blocked {
        until: Deadline,
    },
    /// All was sent up to `after`; `None`: no entry is to be sent.
    WaitFor {
        after: Option<u64>,
        until: Deadline,
    },
}

impl Worker for FeederOut {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        match self.pump(wait) {
            Ok(Next::Again) => Ok(Step::Worked),
            Ok(Next::Blocked { until }) => Ok(Step::Idle { due: until }),
            Ok(Next::WaitFor { after, until }) => {
                let target = after.map_or(u64::MAX, |after| after + 1);
                match self.hub.feed().wait(target, wait.at_most(until)) {
                    Ok(true) => Ok(Step::Worked),
                    Ok(false) => Ok(Step::Idle { due: until }),
                    Err(_closed) => {
                        self.hub.end(&self.connection, FeedError::Closing);
                        Err(Stop::Done)
                    }
                }
            }
            Err(error) => {
                self.hub.end(&self.connection, error);
                Err(Stop::Done)
            }
        }
    }
}
