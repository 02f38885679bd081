//! What the receive worker shares with the node around it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::address::Address;
use crate::apply::ApplyState;
use crate::channel::Channel;
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::handshake::Identity;
use crate::ids::{NodeId, Term, TermSpan, Vlsn, number};
use crate::log::{Log, Truncated};
use crate::members::{Member, Members, Standing};
use crate::planted::{Bug, active};
use crate::replica::ack::AckSender;
use crate::replica::{FollowError, ReplicaState};
use crate::runtime::Runtime;
use crate::state::StateFile;
use crate::wire::message::{Feed, RejectReason};

/// Whom a replica follows, and what the node around it has to know of that.
pub(crate) trait Guide: Send + Sync {
    /// Whom to dial now; `None`: nobody, until the worker is poked.
    fn upstream(&self) -> Option<Address>;
    /// How long a dial may take, if less than a whole handshake: while it blocks, nothing else is looked at.
    fn dial_within(&self) -> Option<Duration> {
        None
    }
    /// Enters the term of the node that welcomed us; durably, before anything is said to it.
    fn enter(&self, term: Term, feeder: &NodeId, feed: Feed) -> Result<(), FollowError>;
    /// The feeder was heard.
    fn heard(&self, feed: Feed);
    /// The other end refused us. Whether to try the next at once.
    fn rejected(&self, by: &Address, reason: &RejectReason) -> Retry;
    /// The feeder was heard while this node has not got what it feeds.
    fn waiting(&self, _feed: Feed) {}
    /// The master has no longer what follows on this log: a snapshot at `oldest` less one or later is needed, and is to be had
    /// `from` there. `false`: none will be fetched.
    fn need_snapshot(&self, _term: Term, _oldest: Option<Vlsn>, _from: Address) -> bool {
        false
    }
    /// The logs agree up to here, and the stream begins.
    fn following(&self, term: Term);
    /// The log got longer: whoever is fed from it wants to know.
    fn appended(&self, last: Vlsn);
    /// The connection ended, or none came about.
    fn lost(&self, why: &FollowError);
    /// The log is about to be cut: whoever is fed from it has to go first.
    fn before_cut(&self);
    /// The log was cut.
    fn cut(&self, cut: &Truncated);
    /// The log has other membership entries than before.
    fn members_changed(&self);
    /// The log has other lists of slots than before.
    fn slots_changed(&self) {}
    /// The master asks this node to stand for election.
    fn stand(&self);
}

/// When to dial again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Retry {
    /// At once.
    Now,
    /// After a pause.
    Later,
}

/// The parts of a replica.
pub(crate) struct Following {
    pub config: Arc<CheckedConfig>,
    /// What this node is to its group, as it says itself.
    pub own: Member,
    pub identity: Identity,
    pub log: Log,
    pub apply: Arc<ApplyState>,
    pub acks: Arc<AckSender>,
    pub counters: Arc<Counters>,
    pub runtime: Arc<dyn Runtime>,
    /// Who may lead, if that is fixed. In a group that runs itself this node's list may be older than the master's
    /// membership, or hold a change that was never committed: there the term alone tells.
    pub masters: Option<Members>,
    /// The directory's small state: what was promised.
    pub state: Arc<StateFile>,
    pub guide: Arc<dyn Guide>,
    /// The lowest term whose master may append and be acknowledged here. Held while a frame is taken.
    gate: Mutex<Term>,
    /// The term of the node that welcomed us and whose term is being entered; 0 for none.
    arriving: AtomicU32,
    /// Channels handed over by the embedder.
    offered: Mutex<VecDeque<Arc<dyn Channel>>>,
    /// The channel in use, so that closing the node can end it.
    pub(super) current: Mutex<Option<Arc<dyn Channel>>>,
    closing: AtomicBool,
    /// Do not wait for the backoff to end.
    hurry: AtomicBool,
    /// A snapshot is being installed: nothing is agreed with any master meanwhile.
    installing: AtomicBool,
    phase: AtomicU8,
    pub(super) last_error: Mutex<Option<FollowError>>,
    /// Why this node ends a connection itself.
    parting: Mutex<Option<FollowError>>,
}

/// How a [`Following`] is made.
pub(crate) struct Parts {
    pub config: Arc<CheckedConfig>,
    pub own: Member,
    pub identity: Identity,
    pub log: Log,
    pub apply: Arc<ApplyState>,
    pub acks: Arc<AckSender>,
    pub counters: Arc<Counters>,
    pub runtime: Arc<dyn Runtime>,
    pub masters: Option<Members>,
    pub state: Arc<StateFile>,
    pub guide: Arc<dyn Guide>,
}

impl Following {
    pub fn new(parts: Parts) -> Following {
        let Parts { config, own, identity, log, apply, acks, counters, runtime, masters, state, guide } =
            parts;
        Following {
            config,
            own,
            identity,
            log,
            apply,
            acks,
            counters,
            runtime,
            masters,
            state,
            guide,
            gate: Mutex::new(Term::NONE),
            arriving: AtomicU32::new(0),
            offered: Mutex::default(),
            current: Mutex::default(),
            closing: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            installing: AtomicBool::new(false),
            phase: AtomicU8::new(0),
            last_error: Mutex::default(),
            parting: Mutex::default(),
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

    pub(super) fn next_offered(&self) -> Option<Arc<dyn Channel>> {
        self.offered.lock().pop_front()
    }

    /// Ends the connection and keeps the worker from making another.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.hang_up();
        for channel in self.offered.lock().drain(..) {
            channel.close();
        }
    }

    fn hang_up(&self) {
        let current = self.current.lock().take();
        if let Some(channel) = current {
            channel.close();
        }
    }

    /// Enters the term of the node that welcomed us, which does not end that connection.
    pub(super) fn enter(&self, term: Term, feeder: &NodeId, feed: Feed) -> Result<(), FollowError> {
        self.arriving.store(term.get(), Ordering::SeqCst);
        let entered = self.guide.enter(term, feeder, feed);
        self.arriving.store(0, Ordering::SeqCst);
        entered
    }

    /// A newer term was promised: when this returns, nothing of an older one is appended or acknowledged any more.
    pub fn leave(&self, newer: Term) {
        {
            let mut gate = self.gate.lock();
            *gate = newer.max(*gate);
            self.acks.disconnect();
        }
        if self.arriving.load(Ordering::SeqCst) != newer.get() {
            self.hang_up();
            self.hurry();
        }
    }

    /// The right to take a frame of this term, for as long as it is held.
    ///
    /// # Errors
    /// [`FollowError::Superseded`], if a newer term was promised.
    pub(super) fn pass(&self, term: Term) -> Result<MutexGuard<'_, Term>, FollowError> {
        let gate = self.gate.lock();
        if *gate > term && !active(Bug::LowerTermAccepted) {
            return Err(FollowError::Superseded { by: *gate });
        }
        Ok(gate)
    }

    /// Runs something that changes the log while no frame is taken.
    pub fn between_frames<T>(&self, what: impl FnOnce() -> T) -> T {
        let _gate = self.gate.lock();
        what()
    }

    /// From now on, until it is over, no session agrees on a matchpoint; `false` if one streams, or none may begin.
    pub fn begin_install(&self) -> bool {
        let _gate = self.gate.lock();
        let may = self.phase() != ReplicaState::Following && !self.is_closing();
        self.installing.store(may, Ordering::SeqCst);
        may
    }

    /// The install is over.
    pub fn end_install(&self) {
        self.installing.store(false, Ordering::SeqCst);
    }

    pub fn is_installing(&self) -> bool {
        self.installing.load(Ordering::SeqCst)
    }

    /// Ends the present connection, for this reason; the next is made after the usual pause.
    pub fn part(&self, why: FollowError) {
        *self.parting.lock() = Some(why);
        self.hang_up();
    }

    /// Why the connection was ended, if this node did.
    pub(super) fn take_parting(&self) -> Option<FollowError> {
        self.parting.lock().take()
    }

    /// Ends the present connection, or the attempt at one, and any backoff: it is known now who leads. The worker has to
    /// be poked afterwards.
    pub fn turn(&self) {
        self.hang_up();
        self.hurry();
    }

    /// Ends a backoff. The worker has to be poked afterwards.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::SeqCst);
    }

    pub(super) fn take_hurry(&self) -> bool {
        self.hurry.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
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

    pub(super) fn set_phase(&self, phase: ReplicaState) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    pub(super) fn term(&self) -> Term {
        self.state.state().term
    }

    /// How far the log is known to be committed. What the engine holds is, too; but behind damage the log lacks entries of
    /// which it has to learn again, and ends before them.
    pub(super) fn known_committed(&self) -> u64 {
        let committed = self.apply.committed.get().max(self.apply.applied.get());
        match self.state.state().standing {
            Standing::Damaged { .. } => committed.min(number(self.log.last().map(|last| last.vlsn))),
            _ => committed,
        }
    }

    /// A directory that was new or doubtful holds what the group may have counted on once an entry of the master's own
    /// term is committed and flushed here. `committed` is what a heartbeat told: to a newcomer the master tells it only
    /// when a majority without this node is known to follow its term.
    pub(super) fn admit(&self, term: Term, committed: Option<Vlsn>) -> Result<(), FollowError> {
        let Some(committed) = committed else { return Ok(()) };
        if self.state.state().standing.counts() || self.log.life().flushed.get() < committed.get() {
            return Ok(());
        }
        let base = self.log.base().map(|base| TermSpan { term: base.term, first: base.vlsn });
        let last = self.log.term_history().last().copied().or(base);
        if last.is_some_and(|span| span.term == term && span.first <= committed) {
            self.state.update(|mut state| {
                // A node that has promised a newer term meanwhile votes in none before that one either.
                state.standing = Standing::Full { since: state.term };
                state
            })?;
            log::info!("{} has caught up, and counts from now on", self.config.node);
        }
        Ok(())
    }
}
