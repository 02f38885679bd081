//! Acks: how far this replica has come, told by whoever just brought it there.
//!
//! The receive worker after an append, the flushing thread after a sync and the apply worker after a batch all call
//! [`AckSender::send`]. None of them waits for the socket or for another: whoever finds the sender busy leaves its news
//! to the one who is, and what does not fit is sent with the next news, the latest position winning.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::apply::ApplyState;
use crate::channel::Channel;
use crate::clock::Wait;
use crate::counters::Counters;
use crate::ids::{Term, Vlsn, number};
use crate::log::Log;
use crate::planted::{Bug, active};
use crate::progress::Positions;
use crate::wire::message::{Ack, Message};

/// Sends acks, and the replica's other messages, on whatever connection is up.
pub(crate) struct AckSender {
    log: Log,
    apply: Arc<ApplyState>,
    counters: Arc<Counters>,
    line: Mutex<Option<Line>>,
    /// Set by whoever has news and found the line busy; cleared by whoever sends.
    news: AtomicBool,
    /// An ack that found no room.
    unsent: AtomicBool,
    wanted_durable: AtomicU64,
    wanted_applied: AtomicU64,
}

/// The sending side of one connection.
pub(crate) struct Line {
    channel: Arc<dyn Channel>,
    term: Term,
    sequence: u64,
    acked: Positions,
    scratch: Vec<u8>,
}

impl Line {
    pub fn new(channel: Arc<dyn Channel>, term: Term) -> Line {
        Line { channel, term, sequence: 0, acked: Positions::NONE, scratch: Vec::new() }
    }

    pub fn set_term(&mut self, term: Term) {
        self.term = term;
    }

    /// Sends one message without waiting. `false`: no room, or the channel has ended, which its receiver will notice.
    pub fn send(&mut self, message: &Message<'_>) -> bool {
        message.encode(self.term, self.sequence, &mut self.scratch);
        let sent = matches!(self.channel.send(&[IoSlice::new(&self.scratch)], Wait::Now), Ok(true));
        self.sequence += u64::from(sent);
        sent
    }
}

impl AckSender {
    pub fn new(log: Log, apply: Arc<ApplyState>, counters: Arc<Counters>) -> AckSender {
        AckSender {
            log,
            apply,
            counters,
            line: Mutex::new(None),
            news: AtomicBool::new(false),
            unsent: AtomicBool::new(false),
            wanted_durable: AtomicU64::new(0),
            wanted_applied: AtomicU64::new(0),
        }
    }

    /// Begins acks on a connection whose syncup has ended well: the first states what was proved.
    pub fn connect(&self, line: Line) {
        for wanted in [&self.wanted_durable, &self.wanted_applied] {
            wanted.store(0, Ordering::Relaxed);
        }
        *self.line.lock() = Some(line);
    }

    /// Ends acks on the connection.
    pub fn disconnect(&self) {
        *self.line.lock() = None;
    }

    /// Takes note of what the master's writers wait for.
    pub fn want(&self, durable: Option<Vlsn>, applied: Option<Vlsn>) {
        self.wanted_durable.store(number(durable), Ordering::Relaxed);
        self.wanted_applied.store(number(applied), Ordering::Relaxed);
    }

    /// Where this node stands.
    pub fn positions(&self) -> Positions {
        let life = self.log.life();
        // Read from the last to the first, so that what is read never contradicts itself.
        let checkpointed = self.apply.checkpointed.get();
        let applied = self.apply.applied.get();
        let durable = if active(Bug::AckBeforeFlush) { life.written.get() } else { life.flushed.get() };
        let received = life.written.get();
        Positions {
            received: Vlsn::new(received),
            durable: Vlsn::new(durable),
            // An engine may be ahead of a log that damage has shortened: the log has to have it again before that counts.
            applied: Vlsn::new(applied.min(durable)),
            checkpointed: Vlsn::new(checkpointed.min(durable)),
        }
    }

    /// After an append: acks it, unless a flush that will say more is about to follow.
    pub fn appended(&self) {
        let written = self.log.life().written.get();
        if self.wanted_durable.load(Ordering::Relaxed) < written {
            self.send();
        }
    }

    /// After the engine advanced: acks it if somebody waits for that; else it travels with the next ack.
    pub fn applied(&self) {
        let acked = self.line.try_lock().and_then(|line| line.as_ref().map(|line| line.acked.applied));
        let wanted = Vlsn::new(self.wanted_applied.load(Ordering::Relaxed));
        // Whoever found the line held just now, by this look at it, left its news here.
        if acked.is_none_or(|acked| wanted > acked) || self.news.load(Ordering::SeqCst) {
            self.send();
        }
    }

    /// Sends an ack if there is anything new to say. Never blocks; any thread.
    pub fn send(&self) {
        self.news.store(true, Ordering::SeqCst);
        while self.news.load(Ordering::SeqCst) {
            let Some(mut line) = self.line.try_lock() else {
                // Whoever holds the line looks at `news` again after letting it go.
                return;
            };
            self.news.store(false, Ordering::SeqCst);
            if let Some(line) = line.as_mut() {
                self.send_on(line);
            }
        }
    }

    fn send_on(&self, line: &mut Line) {
        let positions = self.positions();
        if positions == line.acked {
            return;
        }
        let sent = line.send(&Message::Ack(ack(positions)));
        if sent {
            line.acked = positions;
            self.counters.acks.one();
        }
        self.unsent.store(!sent, Ordering::SeqCst);
    }

    /// The first ack of a connection: states what was proved, even if that is nothing.
    pub fn send_first(&self) {
        if let Some(line) = self.line.lock().as_mut() {
            let positions = self.positions();
            if line.send(&Message::Ack(ack(positions))) {
                line.acked = positions;
            }
        }
        self.send();
    }

    /// Up to where writers wait for durable entries.
    pub fn wanted_durable(&self) -> Option<Vlsn> {
        Vlsn::new(self.wanted_durable.load(Ordering::Relaxed))
    }

    /// Whether an ack waits for room.
    pub fn has_unsent(&self) -> bool {
        self.unsent.load(Ordering::SeqCst)
    }

    /// Sends another message on the connection, if it is up; `false` if it could not be sent.
    pub fn message(&self, message: &Message<'_>) -> bool {
        let sent = self.line.lock().as_mut().is_some_and(|line| line.send(message));
        if self.news.load(Ordering::SeqCst) {
            self.send();
        }
        sent
    }
}

fn ack(positions: Positions) -> Ack {
    let Positions { received, durable, applied, checkpointed } = positions;
    Ack { received, durable, applied, checkpointed }
}
