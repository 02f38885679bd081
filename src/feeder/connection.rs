//! One connection to one replica, as both of its workers and the hub see it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use crate::channel::{Channel, ChannelError};
use crate::clock::Deadline;
use crate::feeder::hub::Hub;
use crate::feeder::output::{InFlight, Output};
use crate::feeder::status::FeederState;
use crate::ids::{NodeId, Vlsn, number};
use crate::log::scanner::ScanError;
use crate::members::{Role, Standing};
use crate::progress::{AckError, Progress};
use crate::runtime::Running;
use crate::wire::MessageType;
use crate::wire::message::{NackReason, RejectReason, WireError};

/// Why a feeder's connection ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FeedError {
    /// The node closes.
    #[error("the connection was closed by this node")]
    Closing,
    /// A newer connection of the same replica took over.
    #[error("a newer connection of the same node, session {by:016x}, took over")]
    Superseded {
        /// Its session.
        by: u64,
    },
    /// The channel ended.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The replica's bytes are no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The log could not be read for it.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// What it told of its log makes no sense, or our own can't be read.
    #[error(transparent)]
    Answer(#[from] crate::syncup::AnswerError),
    /// An ack that can't be true.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// It was refused.
    #[error("the node was refused: {0}")]
    Rejected(RejectReason),
    /// It said something out of turn.
    #[error("the replica sent a {found} where {expected} was expected")]
    OutOfTurn {
        /// The message's name.
        found: MessageType,
        /// What could have come.
        expected: &'static str,
    },
    /// A frame is missing or came twice.
    #[error("frame {found} came where frame {expected} was expected")]
    Sequence {
        /// The sequence number that came.
        found: u64,
        /// The one expected.
        expected: u64,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard from the replica for {} ms", .0.as_millis())]
    Silent(Duration),
    /// Handshake and syncup took too long.
    #[error("handshake and syncup did not end within {} ms", .0.as_millis())]
    HandshakeTimeout(Duration),
    /// It took nothing for too long.
    #[error("the replica took nothing for {} ms", by.as_millis())]
    Stalled {
        /// How long was waited.
        by: Duration,
    },
    /// It refused entries.
    #[error("the replica refused what was sent at VLSN {}: {reason}", number(*.at))]
    Nack {
        /// Why.
        reason: NackReason,
        /// Where.
        at: Option<Vlsn>,
    },
    /// Its first ack claims another position than the matchpoint.
    #[error("the replica starts at VLSN {}, but the matchpoint is {}", number(*.claimed), number(*.matched))]
    StartsElsewhere {
        /// Where it starts.
        claimed: Option<Vlsn>,
        /// The matchpoint.
        matched: Option<Vlsn>,
    },
    /// The entries that it needs were pruned.
    #[error("the replica needs a snapshot: the log's oldest entry is VLSN {}", number(*.oldest))]
    NeedsSnapshot {
        /// The oldest entry.
        oldest: Option<Vlsn>,
    },
    /// It knows a newer term: this master is deposed.
    #[error("the replica follows a newer term, {0}")]
    Fenced(crate::ids::Term),
    /// It speaks in a term that is over, though it was welcomed in a newer one.
    #[error("the replica speaks in term {found}, and was welcomed in term {ours}")]
    PastTerm {
        /// Its term.
        found: crate::ids::Term,
        /// Ours.
        ours: crate::ids::Term,
    },
    /// It claims a term that no group reaches.
    #[error("the replica claims term {0}, which no group reaches")]
    AbsurdTerm(crate::ids::Term),
    /// This node no longer feeds in this term.
    #[error("this node's part in the term is over")]
    Deposed,
    /// The node was removed from the group.
    #[error("the node is no longer a member of the group")]
    Removed,
    /// It ended the connection of its own accord.
    #[error("the replica said goodbye: {0}")]
    Goodbye(crate::wire::message::ByeReason),
}

/// One connection.
pub(super) struct Connection {
    /// Unique in this hub.
    pub id: u64,
    pub channel: Arc<dyn Channel>,
    pub since: Deadline,
    state: AtomicU8,
    /// When the last frame came, in nanoseconds of the clock.
    seen: AtomicU64,
    pub progress: Mutex<Progress>,
    in_flight: Mutex<InFlight>,
    /// `None` until the stream begins. Lock order: `output`, then `progress`, then `in_flight`.
    pub output: Mutex<Option<Output>>,
    /// The replica, once it said who it is.
    pub node: OnceLock<NodeId>,
    /// Whether that is an arbiter, which is sent heartbeats only.
    arbiter: AtomicBool,
    /// Whether the node's directory holds what it acknowledged.
    counts: AtomicBool,
    /// Whether its directory was made anew, so that it knows nothing of what it promised before.
    newcomer: AtomicBool,
    /// The last entry of the feeding log when the replica said who it is.
    came_at: AtomicU64,
    /// A heartbeat is wanted before the next is due.
    beat_wanted: AtomicBool,
    /// The node is no member any more: the sending half says so, and ends.
    dismissed: AtomicBool,
    /// Our clock in the last heartbeat, in nanoseconds.
    beat: AtomicU64,
    /// The feeder-out worker, once there is one.
    pub out: OnceLock<Arc<dyn Running>>,
}

impl Connection {
    pub fn new(id: u64, channel: Arc<dyn Channel>, now: Deadline) -> Connection {
        Connection {
            id,
            channel,
            since: now,
            state: AtomicU8::new(FeederState::Handshaking as u8),
            seen: AtomicU64::new(now.as_nanos()),
            progress: Mutex::new(Progress::new(None)),
            in_flight: Mutex::new(InFlight::new()),
            output: Mutex::new(None),
            node: OnceLock::new(),
            arbiter: AtomicBool::new(false),
            counts: AtomicBool::new(false),
            newcomer: AtomicBool::new(false),
            came_at: AtomicU64::new(0),
            beat_wanted: AtomicBool::new(false),
            dismissed: AtomicBool::new(false),
            beat: AtomicU64::new(0),
            out: OnceLock::new(),
        }
    }

    /// Notes who the replica is, and the last entry here when it came.
    pub fn introduce(&self, node: &NodeId, role: Role, standing: Standing, last: Option<Vlsn>) {
        self.came_at.store(number(last), Ordering::SeqCst);
        self.arbiter.store(role == Role::Arbiter, Ordering::SeqCst);
        self.newcomer.store(standing == Standing::Newcomer, Ordering::SeqCst);
        let _first = self.node.set(node.clone());
    }

    pub fn is_arbiter(&self) -> bool {
        self.arbiter.load(Ordering::Relaxed)
    }

    /// Has the sending half send a heartbeat as soon as it is free.
    pub fn want_beat(&self) {
        self.beat_still_wanted();
        self.poke();
    }

    /// As [`want_beat`](Connection::want_beat), by the sending half itself, whose peer takes nothing now.
    pub fn beat_still_wanted(&self) {
        self.beat_wanted.store(true, Ordering::SeqCst);
    }

    /// Whether a heartbeat was wanted since this was asked last.
    pub fn take_beat(&self) -> bool {
        self.beat_wanted.load(Ordering::SeqCst) && self.beat_wanted.swap(false, Ordering::SeqCst)
    }

    /// Has the sending half say that the node was removed, and end.
    pub fn dismiss(&self) {
        self.dismissed.store(true, Ordering::SeqCst);
        self.poke();
    }

    pub fn is_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::SeqCst)
    }

    fn poke(&self) {
        // Without a worker yet, it looks when it begins.
        if let Some(out) = self.out.get() {
            out.poke();
        }
    }

    /// To be called before a heartbeat with this clock is handed to the channel: the answer may come at once.
    pub fn beating(&self, clock: Deadline) {
        self.beat.fetch_max(clock.as_nanos(), Ordering::SeqCst);
    }

    /// Whether a heartbeat with this clock, or a later one, was sent: nobody answers one that was not.
    pub fn has_beaten(&self, clock: u64) -> bool {
        clock <= self.beat.load(Ordering::SeqCst)
    }

    pub fn state(&self) -> FeederState {
        FeederState::ALL[usize::from(self.state.load(Ordering::SeqCst))]
    }

    /// Changes the state, unless the connection has ended.
    pub fn set_state(&self, to: FeederState) {
        let _ended = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| {
            (now != FeederState::Shutdown as u8).then_some(to as u8)
        });
    }

    /// Ends the connection's part. `true` for the first caller.
    pub fn shut(&self) -> bool {
        self.state.swap(FeederState::Shutdown as u8, Ordering::SeqCst) != FeederState::Shutdown as u8
    }

    /// Notes that the sender reached the end of the log, or left it far behind.
    pub fn caught_up(&self, hub: &Hub, sent: Option<Vlsn>) {
        let behind = hub.feed().get().saturating_sub(number(sent));
        let state = if behind == 0 { FeederState::Streaming } else { FeederState::CatchingUp };
        let from = if behind == 0 { FeederState::CatchingUp } else { FeederState::Streaming };
        // Being a frame behind is streaming still; only a sizeable backlog is a catch-up.
        if behind == 0 || behind > CATCH_UP_FROM {
            let _other =
                self.state.compare_exchange(from as u8, state as u8, Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    pub fn set_counts(&self, counts: bool) {
        self.counts.store(counts, Ordering::SeqCst);
    }

    pub fn counts(&self) -> bool {
        self.counts.load(Ordering::SeqCst)
    }

    /// Whether the node has yet to learn what it may have promised before its directory was made.
    pub fn is_newcomer(&self) -> bool {
        self.newcomer.load(Ordering::Relaxed) && !self.counts()
    }

    /// The last entry of the feeding log when the replica came.
    pub fn came_at(&self) -> u64 {
        self.came_at.load(Ordering::SeqCst)
    }

    pub fn seen(&self) -> Deadline {
        Deadline::from_nanos(self.seen.load(Ordering::Relaxed))
    }

    pub fn note_seen(&self, now: Deadline) {
        self.seen.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// To be called before the entries up to `last` are handed to the channel: the ack may come at once.
    pub fn sending(&self, last: Vlsn, timestamp: u64) {
        self.in_flight.lock().sent(last, timestamp);
        self.progress.lock().sending(last);
    }

    /// The channel took nothing: what was sent ends at `sent`, as before.
    pub fn not_sent(&self, sent: Option<Vlsn>, last: Vlsn) -> Result<(), AckError> {
        self.in_flight.lock().not_sent(last);
        self.progress.lock().not_sent(sent)
    }

    pub fn note_received(&self, upto: Option<Vlsn>) {
        self.in_flight.lock().received(upto);
    }

    /// The age of the oldest entry that was sent and not acknowledged.
    pub fn lag_time(&self, now_micros: u64) -> Duration {
        let oldest = self.in_flight.lock().oldest_micros();
        oldest.map_or(Duration::ZERO, |then| Duration::from_micros(now_micros.saturating_sub(then)))
    }
}

/// A backlog of more entries than this makes a streaming feeder one that catches up.
const CATCH_UP_FROM: u64 = 10_000;
