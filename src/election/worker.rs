//! The election worker: timers, calls to the voters, the watch over a mastership.

use std::sync::Arc;

use crate::address::Address;
use crate::clock::{Deadline, Wait};
use crate::election::ask::{Asking, Next, Question};
use crate::election::coordinator::{Advice, View};
use crate::election::{Election, Office, Phase};
use crate::ids::{NodeId, Term};
use crate::planted::{Bug, active};
use crate::state::StateError;
use crate::watermark::rest;
use crate::wire::message::{Announce, Message, Round, Vote, VoteReason};
use crate::worker::{Step, Stop, Worker};

/// What the node has to do regularly, beside elections.
pub(crate) trait Housekeeping: Send {
    /// Does what is due, outside the election's lock; says when it wants to be called again at the latest.
    fn tick(&mut self, now: Deadline) -> Result<Deadline, Stop>;
}

pub(crate) struct ElectionWorker<H> {
    election: Arc<Election>,
    house: H,
    address: Option<Address>,
    asking: Vec<Asking>,
}

impl<H: Housekeeping> ElectionWorker<H> {
    /// `address` is where this node listens, for announcements.
    pub fn new(election: Arc<Election>, house: H, address: Option<Address>) -> ElectionWorker<H> {
        ElectionWorker { election, house, address, asking: Vec::new() }
    }

    /// Asks the voters what the election has decided to ask.
    fn send(&mut self, office: &dyn Office, asks: Vec<(Term, Vote)>, announce: bool) {
        let members = office.members();
        let own = self.election.settings.own.clone();
        let until = self.election.clock.now() + self.election.settings.timeout;
        for (term, vote) in asks {
            for member in members.voters().filter(|member| member.id != own) {
                let Some(to) = member.address.clone() else { continue };
                let election = Arc::clone(&self.election);
                let on_answer = move |term: Term, message: &Message<'_>, _: &dyn crate::channel::Channel| {
                    if let Message::VoteReply(reply) = message
                        && let Err(error) = election.replied(term, reply)
                    {
                        log::error!("a vote could not be stored: {error}");
                    }
                    Next::Done
                };
                let message = Message::Vote(vote.clone());
                let on_answer: Option<crate::election::ask::OnAnswer> = Some(Box::new(on_answer));
                let asking = self.start(&member.id, "vote", Question { to, term, message, until, on_answer });
                self.asking.push(asking);
            }
        }
        if announce {
            let term = self.election.term();
            for member in members.iter().filter(|member| member.id != own) {
                let Some(to) = member.address.clone() else { continue };
                let announce = Announce {
                    group: self.election.settings.group,
                    master: own.clone(),
                    address: self.address.clone(),
                };
                let election = Arc::clone(&self.election);
                let on_answer = move |term: Term, _: &Message<'_>, _: &dyn crate::channel::Channel| {
                    if let Err(error) = election.newer(term) {
                        log::error!("a newer term was not entered: {error}");
                    }
                    Next::Done
                };
                let message = Message::Announce(announce);
                let on_answer: Option<crate::election::ask::OnAnswer> = Some(Box::new(on_answer));
                let asking = self.start(&member.id, "tell", Question { to, term, message, until, on_answer });
                self.asking.push(asking);
            }
        }
    }

    fn start(&self, whom: &NodeId, what: &str, question: Question) -> Asking {
        Asking::start(&self.election.runtime, format!("{what}-{whom}"), question)
    }
}

impl Election {
    /// Does what is due; when something will be.
    fn tick(&self, office: &Arc<dyn Office>, now: Deadline) -> Result<Deadline, StateError> {
        let mut inner = self.inner.lock();
        let timeout = self.settings.timeout;
        if inner.closed {
            return Ok(Deadline::NEVER);
        }
        if inner.broken {
            // Says what is wrong with the file: the node has failed, whoever found out.
            self.state.update(|state| state)?;
        }
        if let Phase::Leading { since } = inner.phase {
            inner.ordered = None;
            let end = office.contact(now).max(since) + timeout;
            if office.able() && now < end && (office.whole() || office.hands_over()) {
                return Ok(end.min(now + timeout / 2));
            }
            drop(inner);
            let why = match (office.able(), office.whole()) {
                (false, _) => "it has failed",
                (true, false) => "its log is damaged, or its engine waits for a snapshot",
                (true, true) => "it hears no majority",
            };
            self.step_down(self.term(), why);
            return Ok(now + timeout);
        }
        let members = office.members();
        let may = self.may_stand(&**office, &members);
        if let Some((reason, instead_of)) = inner.ordered.take()
            && may
        {
            self.ask_in_earnest(&mut inner, office, reason, instead_of)?;
            return Ok(inner.due);
        }
        if matches!(inner.phase, Phase::Following) && inner.master.is_some() {
            let heard = self.heard_at().unwrap_or(self.started);
            if now < heard + timeout {
                // Drawn anew from the last sign of life on, once that is over.
                if inner.due < heard + timeout {
                    inner.due = heard + (self.next_due(now, &members) - now);
                }
                return Ok(inner.due);
            }
        }
        if now < inner.due {
            return Ok(inner.due);
        }
        let term = self.term();
        // Also by who may not stand: it would dial a dead master for ever.
        if inner.master.take().is_some() {
            log::warn!("{} has not heard its master for {timeout:?}", self.settings.own);
        }
        if !may {
            inner.phase = Phase::Following;
            inner.due = self.next_due(now, &members);
            return Ok(inner.due);
        }
        if let Advice::Wait(time) = self.settings.coordinator.advise(View { own: &self.settings.own, term }) {
            inner.due = now + time.max(timeout);
            return Ok(inner.due);
        }
        let reason = std::mem::replace(&mut inner.reason, VoteReason::PrimaryFailure);
        if active(Bug::NoPreVote) {
            self.ask_in_earnest(&mut inner, office, reason, None)?;
        } else {
            self.ask(&mut inner, office, term.next(), Round::Pre, reason, None)?;
        }
        Ok(inner.due)
    }
}

impl<H: Housekeeping> Worker for ElectionWorker<H> {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let now = self.election.clock.now();
        let (office, closed) = {
            let inner = self.election.inner.lock();
            (inner.office.clone(), inner.closed)
        };
        let Some(office) = office.filter(|_| !closed) else {
            for asking in self.asking.drain(..) {
                asking.end();
            }
            if closed {
                return Err(Stop::Done);
            }
            rest(wait);
            return Ok(Step::Idle { due: Deadline::NEVER });
        };
        let due = self.election.tick(&office, now).map_err(Stop::failed)?;
        let (asks, announce) = {
            let mut inner = self.election.inner.lock();
            (std::mem::take(&mut inner.asks), std::mem::take(&mut inner.announce))
        };
        self.asking.retain(|asking| !asking.has_ended());
        let spoke = announce || !asks.is_empty();
        self.send(&*office, asks, announce);
        let due = due.min(self.house.tick(now)?);
        if spoke {
            return Ok(Step::Worked);
        }
        rest(wait.at_most(due));
        Ok(Step::Idle { due })
    }
}
