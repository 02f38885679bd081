//! Elections: who leads, found out by votes.
//!
//! One worker, "election", keeps the timers of a node and counts votes; whoever receives a vote, an announcement or a
//! newer term tells `Election`, which decides by [`crate::ballot`] and makes every promise durable before anybody hears of
//! it. Calls to other nodes are short-lived workers. Pre-votes and check-quorum are Raft's (Ongaro 2014, 4.2.3 and 9.6).

pub(crate) mod ask;
pub mod campaign;
mod coordinator;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use coordinator::{Advice, Builtin, Coordinator, Static, View};
pub(crate) use worker::{ElectionWorker, Housekeeping};

use crate::ballot::{self, Answer, HIGHEST_TERM, Heard, Promise, Voter};
use crate::clock::{Clock, Deadline};
use crate::election::campaign::{Campaign, Tally};
use crate::ids::{GroupId, LogEnd, NodeId, Term};
use crate::members::{Member, Members, Role};
use crate::planted::{Bug, active};
use crate::runtime::{Running, Runtime};
use crate::state::{StateError, StateFile};
use crate::wire::message::{Round, Vote, VoteReason, VoteReply, WhyNot};

/// What an election needs of the node around it. Called with the election's lock held: it must not call back, and must
/// not wait for a thread that might.
pub(crate) trait Office: Send + Sync {
    /// Where the log ends; for an arbiter, its mark.
    fn log_end(&self) -> LogEnd;
    /// Whether the node works: its disk and engine do. Else it neither leads nor votes.
    fn able(&self) -> bool;
    /// Whether nothing of its log is known to be damaged, and its engine can follow the log: else it does not lead, but votes.
    fn whole(&self) -> bool {
        true
    }
    /// Leading and not whole: whether it is handing over, and need not step down yet.
    fn hands_over(&self) -> bool {
        false
    }
    /// The members in force.
    fn members(&self) -> Arc<Members>;
    /// Whether the members in force are without this node by a change that it does not know to be committed. Its log may
    /// be the only one that can win, and then it has to lead once more (Ongaro 2014, 4.2.2).
    fn leaving(&self) -> bool;
    /// A newer term was promised: nothing of an older one may be appended or acknowledged from now on.
    fn leave(&self, newer: Term);
    /// The node won the election of this term, and leads. `false`: it could not take office.
    fn take_office(&self, term: Term) -> bool;
    /// The node does not lead any more.
    fn step_down(&self, newer: Option<Term>);
    /// Leading: the latest time since which a majority is known to follow.
    fn contact(&self, now: Deadline) -> Deadline;
}

/// What an election goes by.
#[derive(Clone)]
pub(crate) struct Settings {
    pub group: GroupId,
    pub own: NodeId,
    pub timeout: Duration,
    pub coordinator: Arc<dyn Coordinator>,
}

/// The election of one node, shared by all who have news for it. Any thread may call any method; those that promise
/// block on the disk.
pub(crate) struct Election {
    settings: Settings,
    state: Arc<StateFile>,
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    started: Deadline,
    /// When the present master was last heard, in nanoseconds; set for every frame, and so without the lock.
    heard_at: AtomicU64,
    /// The worker, to be woken.
    worker: Mutex<Option<Arc<dyn Running>>>,
    /// Lock order: this before anything of the node's, but the following session's gate.
    inner: Mutex<Inner>,
}

/// What a node is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It follows, or waits to.
    Following,
    /// It stands for election.
    Standing(Campaign),
    /// It leads.
    Leading {
        /// Since when.
        since: Deadline,
    },
}

struct Inner {
    office: Option<Arc<dyn Office>>,
    phase: Phase,
    /// The master of the present term, if one is known.
    master: Option<NodeId>,
    /// When to stand, if no master is heard; while standing, when to begin anew.
    due: Deadline,
    /// The last term that this node led in, since it opened.
    led: Term,
    /// Whether an operator, or a master that hands over, wants this node to stand at once.
    ordered: Option<(VoteReason, Option<NodeId>)>,
    /// The last master was lost by its own word.
    reason: VoteReason,
    /// Votes to ask for: the worker does it.
    asks: Vec<(Term, Vote)>,
    /// The worker has to tell the members that this node leads.
    announce: bool,
    /// A promise could not be stored: the worker ends, and the node with it.
    broken: bool,
    closed: bool,
}

/// Why a master's term was not entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnterError {
    #[error("this node has promised term {0}")]
    Past(Term),
    #[error("no group reaches term {0}")]
    Absurd(Term),
    #[error("{found} says that it leads in term {term}, and {known} does")]
    SecondMaster { term: Term, known: NodeId, found: NodeId },
    #[error(transparent)]
    State(#[from] StateError),
}

impl Election {
    pub fn new(settings: Settings, state: Arc<StateFile>, runtime: Arc<dyn Runtime>) -> Election {
        let clock = runtime.clock();
        let now = clock.now();
        let election = Election {
            settings,
            state,
            clock,
            started: now,
            heard_at: AtomicU64::new(0),
            worker: Mutex::new(None),
            inner: Mutex::new(Inner {
                office: None,
                phase: Phase::Following,
                master: None,
                due: now,
                led: Term::NONE,
                ordered: None,
                reason: VoteReason::PrimaryFailure,
                asks: Vec::new(),
                announce: false,
                broken: false,
                closed: false,
            }),
            runtime,
        };
        let due = election.next_due(now, &Members::unknown());
        election.inner.lock().due = due;
        election
    }

    /// Gives the election its node and its worker. Until then it does nothing.
    pub fn serve(&self, office: Arc<dyn Office>, worker: Arc<dyn Running>) {
        self.inner.lock().office = Some(office);
        worker.poke();
        *self.worker.lock() = Some(worker);
    }

    /// Has the worker look around.
    pub fn poke(&self) {
        let worker = self.worker.lock().clone();
        if let Some(worker) = worker {
            worker.poke();
        }
    }

    pub fn state(&self) -> &StateFile {
        &self.state
    }

    /// The highest term promised.
    pub fn term(&self) -> Term {
        self.state.state().term
    }

    pub fn phase(&self) -> Phase {
        self.inner.lock().phase.clone()
    }

    /// The master of the present term, if one is known.
    pub fn master(&self) -> Option<NodeId> {
        self.inner.lock().master.clone()
    }

    /// When the master was last heard.
    pub fn heard_at(&self) -> Option<Deadline> {
        Some(self.heard_at.load(Ordering::Relaxed)).filter(|at| *at > 0).map(Deadline::from_nanos)
    }

    /// The master was heard just now. For every frame.
    pub fn heard(&self) {
        self.heard_at.store(self.clock.now().as_nanos(), Ordering::Relaxed);
    }

    /// Answers a candidate that asks for a vote in `term`. What the reply says is durable when this returns.
    ///
    /// # Errors
    /// [`StateError`]: nothing may be answered, and the node has failed.
    pub fn vote(&self, term: Term, asked: &Vote) -> Result<(Term, VoteReply), StateError> {
        let mut inner = self.inner.lock();
        let state = self.state.state();
        let promise = Promise { term: state.term, vote: state.vote.clone() };
        let now = self.clock.now();
        let Some(office) = inner.office.clone() else {
            return Ok((promise.term, self.reply(asked, Some(WhyNot::JustStarted), None)));
        };
        let heard = self.heard_by(&inner, &office, now);
        let voter = Voter {
            group: self.settings.group,
            promise: &promise,
            last: office.log_end(),
            standing: state.standing,
            able: office.able(),
            heard: heard.as_ref(),
            started: self.started,
            now,
            min_timeout: self.settings.timeout,
        };
        let why_not = match ballot::judge(&voter, term, asked) {
            Answer::Refused(why) => Some(why),
            Answer::Granted(None) => None,
            Answer::Granted(Some(promise)) => {
                self.promise(&mut inner, promise)?;
                inner.due = self.next_due(now, &office.members());
                log::info!(
                    "{} votes for {} in term {term}: {}",
                    self.settings.own,
                    asked.candidate,
                    asked.reason
                );
                None
            }
        };
        let stored = self.state.state();
        let given = stored.term == term && stored.vote.as_ref() == Some(&asked.candidate);
        assert!(
            why_not.is_some() || asked.round == Round::Pre || given,
            "a vote for {} in term {term} is about to be told and was not stored",
            asked.candidate
        );
        Ok((stored.term, self.reply(asked, why_not, inner.master.clone())))
    }

    fn reply(&self, asked: &Vote, why_not: Option<WhyNot>, master: Option<NodeId>) -> VoteReply {
        let voter = self.settings.own.clone();
        VoteReply { voter, election: asked.election, round: asked.round, why_not, master }
    }

    /// Whom this node hears: while it leads, itself, as long as a majority follows.
    fn heard_by(&self, inner: &Inner, office: &Arc<dyn Office>, now: Deadline) -> Option<Heard> {
        match inner.phase {
            Phase::Leading { since } => {
                let at = office.contact(now).max(since);
                Some(Heard { master: self.settings.own.clone(), at })
            }
            _ => Some(Heard { master: inner.master.clone()?, at: self.heard_at()? }),
        }
    }

    /// Makes a promise durable, and ends what belongs to older terms, in this order: then the promise may be told.
    fn promise(&self, inner: &mut Inner, promise: Promise) -> Result<(), StateError> {
        let before = self.term();
        let newer = promise.term;
        let own = promise.vote.as_ref() == Some(&self.settings.own);
        let stored =
            self.state.update(|state| crate::state::State { vote: promise.vote, ..state.in_term(newer) });
        if let Err(error) = stored {
            inner.broken = true;
            return Err(error);
        }
        if newer > before {
            inner.master = None;
            let was = std::mem::replace(&mut inner.phase, Phase::Following);
            if let Some(office) = inner.office.clone() {
                office.leave(newer);
                if matches!(was, Phase::Leading { .. }) {
                    log::warn!("{} is deposed: term {newer} begins", self.settings.own);
                    office.step_down(Some(newer));
                }
            }
        } else if !own && matches!(inner.phase, Phase::Standing(_)) {
            inner.phase = Phase::Following;
        }
        Ok(())
    }

    /// Enters the term of a master that welcomed this node, or announced itself.
    pub fn enter(&self, term: Term, master: &NodeId) -> Result<(), EnterError> {
        let mut inner = self.inner.lock();
        self.enter_locked(&mut inner, term)?;
        if let Some(known) = inner.master.as_ref().filter(|known| *known != master && term == self.term()) {
            return Err(EnterError::SecondMaster { term, known: known.clone(), found: master.clone() });
        }
        if matches!(inner.phase, Phase::Standing(_)) {
            inner.phase = Phase::Following;
        }
        inner.master = Some(master.clone());
        self.heard();
        Ok(())
    }

    /// Takes note of a newer term, whoever leads it.
    pub fn newer(&self, term: Term) -> Result<(), EnterError> {
        let mut inner = self.inner.lock();
        if term > self.term() { self.enter_locked(&mut inner, term) } else { Ok(()) }
    }

    fn enter_locked(&self, inner: &mut Inner, term: Term) -> Result<(), EnterError> {
        let promised = self.term();
        if term > HIGHEST_TERM {
            return Err(EnterError::Absurd(term));
        }
        if term < promised && !active(Bug::LowerTermAccepted) {
            return Err(EnterError::Past(promised));
        }
        if term > promised {
            self.promise(inner, Promise { term, vote: None })?;
        }
        Ok(())
    }

    /// The node has lost its master, by the master's own word or because the connection ended: it need not wait for the
    /// timeout to look for another, but does, as the master may be back at once.
    pub fn lost(&self, reason: VoteReason) {
        self.inner.lock().reason = reason;
    }

    /// Stand for election at once: an operator wants it, or the master hands over.
    pub fn stand(&self, reason: VoteReason, instead_of: Option<NodeId>) {
        let mut inner = self.inner.lock();
        inner.ordered = Some((reason, instead_of));
        inner.due = self.clock.now();
        drop(inner);
        self.poke();
    }

    /// Takes a voter's reply.
    pub fn replied(&self, term: Term, reply: &VoteReply) -> Result<(), StateError> {
        let mut inner = self.inner.lock();
        let Some(office) = inner.office.clone() else { return Ok(()) };
        let promised = self.term();
        if term > promised && term <= HIGHEST_TERM {
            // The next pre-vote asks for a term above it.
            return self.promise(&mut inner, Promise { term, vote: None });
        }
        let Phase::Standing(campaign) = &mut inner.phase else { return Ok(()) };
        campaign.take(reply);
        let campaign = campaign.clone();
        let counted = self.count(&mut inner, &office, campaign);
        drop(inner);
        self.poke();
        counted
    }

    /// Goes on to the next round, or into office, if there is a majority.
    fn count(
        &self,
        inner: &mut Inner,
        office: &Arc<dyn Office>,
        campaign: Campaign,
    ) -> Result<(), StateError> {
        let members = office.members();
        if campaign.tally(&members) == Tally::Open {
            return Ok(());
        }
        let now = self.clock.now();
        let early = active(Bug::PreVoteTakenForVote) && campaign.round == Round::Pre;
        if campaign.round == Round::Pre && !early {
            return self.ask_in_earnest(inner, office, campaign.reason, campaign.instead_of);
        }
        if early {
            self.promise(inner, Promise { term: campaign.term, vote: Some(self.settings.own.clone()) })?;
        }
        let term = campaign.term;
        assert!(self.term() == term, "an election of term {term} was won in term {}", self.term());
        if office.take_office(term) {
            assert!(inner.led < term, "a second mastership in term {term}, after one in term {}", inner.led);
            inner.led = term;
            inner.phase = Phase::Leading { since: now };
            inner.master = Some(self.settings.own.clone());
            inner.announce = true;
        } else {
            inner.phase = Phase::Following;
            inner.due = self.next_due(now, &members);
        }
        Ok(())
    }

    fn ask_in_earnest(
        &self,
        inner: &mut Inner,
        office: &Arc<dyn Office>,
        reason: VoteReason,
        instead_of: Option<NodeId>,
    ) -> Result<(), StateError> {
        let own = self.settings.own.clone();
        let term = self.term().next();
        self.promise(inner, Promise { term, vote: Some(own) })?;
        self.ask(inner, office, term, Round::Real, reason, instead_of)
    }

    fn ask(
        &self,
        inner: &mut Inner,
        office: &Arc<dyn Office>,
        term: Term,
        round: Round,
        reason: VoteReason,
        instead_of: Option<NodeId>,
    ) -> Result<(), StateError> {
        let election = self.runtime.random();
        let own = &self.settings.own;
        let campaign = Campaign::new(own, term, round, election, reason, instead_of.clone());
        let vote = Vote {
            group: self.settings.group,
            candidate: own.clone(),
            election,
            round,
            last: office.log_end(),
            reason,
            instead_of,
        };
        inner.asks.push((term, vote));
        inner.phase = Phase::Standing(campaign.clone());
        inner.due = self.next_due(self.clock.now(), &office.members());
        self.count(inner, office, campaign)
    }

    /// Whether this node may stand at all.
    fn may_stand(&self, office: &dyn Office, members: &Members) -> bool {
        let state = self.state.state();
        let electable = match members.find(&self.settings.own) {
            Some(own) => own.is_voter() && own.role == Role::Electable,
            None => office.leaving(),
        };
        electable
            && office.able()
            && office.whole()
            && state.standing.votes_in(state.term.next())
            && state.term < HIGHEST_TERM
    }

    /// How long a master that is not heard is still taken to lead.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// A random time from now on: one to two timeouts, and more for whom others are preferred to.
    fn next_due(&self, now: Deadline, members: &Members) -> Deadline {
        let timeout = self.settings.timeout;
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX).max(1);
        let jitter = Duration::from_nanos(self.runtime.random() % nanos);
        let own = members.find(&self.settings.own).map_or(0, |own| own.priority);
        let preferred = |other: &Member| other.role == Role::Electable && other.priority > own;
        let wait = match own {
            _ if !members.voters().any(preferred) => Duration::ZERO,
            0 => timeout * 2,
            _ => timeout,
        };
        now + timeout + jitter + wait
    }

    /// Steps down, if this node leads in the term; an operator's order, or the node's own finding.
    pub fn step_down(&self, term: Term, why: &str) -> bool {
        let mut inner = self.inner.lock();
        if self.term() != term || !matches!(inner.phase, Phase::Leading { .. }) {
            return false;
        }
        log::warn!("{} steps down in term {term}: {why}", self.settings.own);
        inner.phase = Phase::Following;
        inner.master = None;
        inner.reason = VoteReason::NetworkPartition;
        let Some(office) = inner.office.clone() else { return false };
        office.step_down(None);
        // Others first.
        inner.due = self.next_due(self.clock.now(), &office.members()) + self.settings.timeout;
        true
    }

    /// No more elections.
    pub fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        inner.office = None;
        drop(inner);
        self.poke();
    }
}
