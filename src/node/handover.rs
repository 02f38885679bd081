//! Changes that an operator orders: of members, and of the master.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use crate::address::Address;
use crate::clock::{Deadline, Wait};
use crate::commit::Ticket;
use crate::election::ask::{Asking, Next, OnAnswer, Question};
use crate::entry::EntryKind;
use crate::feeder::{FeederState, ReplicaStats};
use crate::ids::{NodeId, Term, Vlsn};
use crate::log::AppendError;
use crate::members::{Admission, Change, ChangeError, Members, Role};
use crate::node::Event;
use crate::node::group::Shared;
use crate::node::lead::{Hold, Lead, WriteRefused};
use crate::planted::{Bug, active};
use crate::watermark::Watermark;
use crate::wire::message::{Control, ControlReply, Message, Order};

/// Why the members were not changed. Nothing was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeRefused {
    /// This node does not lead, or its log takes nothing.
    #[error(transparent)]
    Write(#[from] WriteRefused),
    /// The list does not allow it.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The master's term has yet to prove itself.
    #[error("nothing of term {0} is committed yet; try again in a moment")]
    TermNotCommitted(Term),
    /// One change at a time.
    #[error("the change at VLSN {0} is not committed yet; try again in a moment")]
    Pending(Vlsn),
}

/// Why mastership did not move.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node is not the master, and has nothing to hand over")]
    NotMaster,
    /// Nobody can take over.
    #[error("no other electable member is connected and has caught up")]
    Nobody,
    /// The node asked for can't take over.
    #[error("{0} is not connected, or not an electable full member")]
    Unfit(NodeId),
    /// Another transfer is going on.
    #[error("mastership is being handed to {0} already")]
    Busy(NodeId),
    /// This node ceased to lead before the other took over; somebody else may.
    #[error("this node ceased to lead, and does not know {0} to have taken over; ask who leads now")]
    Ended(NodeId),
    /// It took too long; this node goes on leading.
    #[error("{to} did not take over within {patience:?}; this node goes on as master")]
    TimedOut {
        /// Who was to.
        to: NodeId,
        /// How long writing paused.
        patience: Duration,
    },
}

/// A transfer of mastership under way, or over.
pub struct Handover {
    /// Who is to lead.
    pub to: NodeId,
    /// In which term it began.
    term: Term,
    patience: Duration,
    until: Deadline,
    state: Mutex<Progress>,
    /// 1 once it is over.
    over: Watermark,
}

struct Progress {
    asked: Option<Deadline>,
    outcome: Option<Result<(), TransferError>>,
}

impl Handover {
    /// What came of it; `None` while it goes on. Does not block.
    pub fn outcome(&self) -> Option<Result<(), TransferError>> {
        self.state.lock().outcome.clone()
    }

    /// Waits until it is over; `None` if `wait` ended first.
    pub fn wait(&self, wait: Wait) -> Option<Result<(), TransferError>> {
        while self.outcome().is_none() {
            let waited = self.over.wait(1, wait);
            if waited != Ok(true) && wait.remaining().is_some_and(|left| left.is_zero()) {
                break;
            }
        }
        self.outcome()
    }

    pub(super) fn end(&self, outcome: Result<(), TransferError>) {
        self.state.lock().outcome.get_or_insert(outcome);
        self.over.advance(1);
    }
}

impl Shared {
    fn must_lead(&self) -> Result<Arc<Lead>, WriteRefused> {
        self.lead().ok_or_else(|| WriteRefused::NotMaster { hint: self.master_hint() })
    }

    /// Runs a write, and notes if the disk refuses it.
    pub fn write_as_master<T>(
        &self,
        write: impl FnOnce(&Lead) -> Result<T, WriteRefused>,
    ) -> Result<T, WriteRefused> {
        let lead = self.must_lead()?;
        write(&lead).inspect_err(|error| self.note_trouble(error))
    }

    /// A master whose disk refuses writes gives up its place, to whoever's disk does not.
    pub fn note_trouble(&self, refused: &WriteRefused) {
        if let WriteRefused::Append(AppendError::Io { .. } | AppendError::Poisoned) = refused {
            self.trouble.store(self.core.clock.now().as_nanos(), Ordering::Relaxed);
            self.election.poke();
        }
    }

    /// Writes the member list after this change. In force from now on; committed when the ticket is.
    pub fn change(&self, change: &Change) -> Result<Ticket, ChangeRefused> {
        let lead = self.must_lead()?;
        let mut last = self.changed.lock();
        let committed = lead.committed();
        if committed < Some(lead.start) && !active(Bug::ChangeBeforeTermStart) {
            return Err(ChangeRefused::TermNotCommitted(lead.term));
        }
        if let Some(pending) = last.filter(|last| Some(*last) > committed && !active(Bug::TwoChangesAtOnce)) {
            return Err(ChangeRefused::Pending(pending));
        }
        let members = Arc::new(self.roll.members().changed(change)?);
        self.write_members(&lead, &mut last, members)
    }

    fn write_members(
        &self,
        lead: &Lead,
        last: &mut Option<Vlsn>,
        members: Arc<Members>,
    ) -> Result<Ticket, ChangeRefused> {
        // One step: a cut that takes the entry away again puts the list before it in force afterwards, and not meanwhile.
        let mut rolls = self.rolls.lock();
        let ticket = lead.append_own(EntryKind::MEMBERSHIP, &members.encode())?;
        (*last, *rolls) = (Some(ticket.token.vlsn), Some(ticket.token.vlsn));
        lead.feeders.set_members(Arc::clone(&members));
        drop(rolls);
        log::info!("{}: the members change at VLSN {}", self.own.id, ticket.token.vlsn);
        self.tell(Event::Members(members));
        Ok(ticket)
    }

    /// Writes the present list again, so that the log before it can be pruned, or that there is an entry for a newcomer.
    pub fn restate_members(&self) -> Result<Ticket, ChangeRefused> {
        let lead = self.must_lead()?;
        let mut last = self.changed.lock();
        if let Some(pending) = last.filter(|last| Some(*last) > lead.committed()) {
            return Err(ChangeRefused::Pending(pending));
        }
        self.write_members(&lead, &mut last, self.roll.members())
    }

    /// Begins to hand mastership over.
    pub fn transfer(&self, to: Option<&NodeId>, patience: Duration) -> Result<Arc<Handover>, TransferError> {
        let Some(lead) = self.lead() else { return Err(TransferError::NotMaster) };
        let mut handover = self.handover.lock();
        if let Some(going_on) = handover.as_ref().filter(|one| one.outcome().is_none()) {
            return Err(TransferError::Busy(going_on.to.clone()));
        }
        let to = match to {
            Some(to) => {
                let fit = self.heirs(&lead).into_iter().any(|heir| heir.id == *to);
                if fit { to.clone() } else { return Err(TransferError::Unfit(to.clone())) }
            }
            None => {
                let members = self.roll.members();
                let rank = |heir: &ReplicaStats| {
                    (heir.positions.durable, members.find(&heir.id).map_or(0, |member| member.priority))
                };
                self.heirs(&lead).into_iter().max_by_key(rank).ok_or(TransferError::Nobody)?.id
            }
        };
        let now = self.core.clock.now();
        let begun = Arc::new(Handover {
            to,
            term: lead.term,
            patience,
            until: now + patience,
            state: Mutex::new(Progress { asked: None, outcome: None }),
            over: Watermark::new(0),
        });
        log::info!("{} hands mastership to {}", self.own.id, begun.to);
        lead.hold(Hold::Writes);
        *handover = Some(Arc::clone(&begun));
        drop(handover);
        self.election.poke();
        Ok(begun)
    }

    /// Whether this master, whose log is damaged, is handing over to somebody who has everything. It tries once in a term,
    /// for no longer than others would need to find out that it is gone.
    pub fn gives_way(&self) -> bool {
        let Some(lead) = self.lead() else { return false };
        let now = self.core.clock.now();
        let begun = *self.giving_way.lock();
        let until = match begun.filter(|(term, _)| *term == lead.term) {
            Some((_, until)) => until,
            None => {
                let patience = self.election.timeout();
                *self.giving_way.lock() = Some((lead.term, now + patience));
                match self.transfer(None, patience) {
                    Ok(_) | Err(TransferError::Busy(_)) => now + patience,
                    Err(_) => return false,
                }
            }
        };
        let going_on = self.handover.lock().as_ref().is_some_and(|one| one.outcome().is_none());
        going_on && now < until
    }

    /// Who could lead instead.
    fn heirs(&self, lead: &Lead) -> Vec<ReplicaStats> {
        let members = self.roll.members();
        let mut heirs = lead.feeders.status();
        heirs.retain(|one| {
            let streams = matches!(one.state, FeederState::Streaming | FeederState::CatchingUp);
            let fit = |member: &crate::members::Member| member.role == Role::Electable && member.is_voter();
            streams && one.counts && members.find(&one.id).is_some_and(fit)
        });
        heirs
    }

    /// Brings the transfer on. Says when to look again.
    pub fn push_handover(&self, now: Deadline) -> Deadline {
        let Some(handover) = self.handover.lock().clone().filter(|one| one.outcome().is_none()) else {
            return Deadline::NEVER;
        };
        let Some(lead) = self.lead().filter(|lead| lead.term == handover.term) else {
            // Whoever leads now says so, or this node finds out by following it.
            let took_over = match self.election.master() {
                Some(master) if master == handover.to => Ok(()),
                None if now < handover.until => return handover.until.min(now + LOOK_AGAIN),
                _ => Err(TransferError::Ended(handover.to.clone())),
            };
            handover.end(took_over);
            return Deadline::NEVER;
        };
        if now >= handover.until {
            lead.hold(Hold::Nothing);
            let (to, patience) = (handover.to.clone(), handover.patience);
            handover.end(Err(TransferError::TimedOut { to, patience }));
            return Deadline::NEVER;
        }
        let heir = self.heirs(&lead).into_iter().find(|heir| heir.id == handover.to);
        let ready =
            heir.is_some_and(|heir| heir.positions.durable == self.core.log.last().map(|last| last.vlsn));
        let again = self.core.config.heartbeat * 3;
        let mut state = handover.state.lock();
        if ready
            && state.asked.is_none_or(|asked| now >= asked + again)
            && lead.feeders.ask_to_stand(&handover.to)
        {
            state.asked = Some(now);
        }
        handover.until.min(now + LOOK_AGAIN)
    }

    /// What a master does beside leading: promotes learners that have caught up, steps down when it was removed, and
    /// gives way to those who are preferred.
    pub fn tend_members(&self, now: Deadline) {
        let Some(lead) = self.lead() else { return };
        if lead.committed() < Some(lead.start) {
            return;
        }
        let members = self.roll.members();
        let settled = self.changed.lock().is_none_or(|last| Some(last) <= lead.committed());
        if settled && !members.is_voter(&self.own.id) {
            self.election.step_down(lead.term, "it was removed from the group");
            return;
        }
        if !settled || lead.hands_over() {
            return;
        }
        if lead.feeders.newcomer_waits()
            && let Err(error) = self.restate_members()
        {
            log::debug!("the member list was not written anew for a newcomer: {error}");
        }
        let status = lead.feeders.status();
        let tip = self.core.log.last().map(|last| last.vlsn.get()).unwrap_or(0);
        for member in members.iter().filter(|member| member.admission == Admission::Learner) {
            let caught_up = status.iter().any(|one| {
                let behind = tip.saturating_sub(one.positions.durable.map_or(0, Vlsn::get));
                let near = member.role == Role::Arbiter || behind <= PROMOTE_WITHIN;
                one.id == member.id && one.counts && one.state == FeederState::Streaming && near
            });
            if caught_up {
                if let Err(error) = self.change(&Change::Promote(member.id.clone())) {
                    log::warn!("{} can't be promoted yet: {error}", member.id);
                }
                return;
            }
        }
        let own = members.find(&self.own.id).map_or(0, |own| own.priority);
        if own == 0 && self.handover.lock().as_ref().is_none_or(|one| now > one.until + GIVE_WAY_AGAIN) {
            let better =
                |heir: &ReplicaStats| members.find(&heir.id).is_some_and(|member| member.priority > 0);
            if let Some(heir) = self.heirs(&lead).into_iter().find(better)
                && let Err(error) = self.transfer(Some(&heir.id), GIVE_WAY_AGAIN)
            {
                log::warn!("{} can't give way to {}: {error}", self.own.id, heir.id);
            }
        }
    }

    /// Asks the group to take this node in, if it never was a member.
    pub fn ask_to_join(&self, at: &Address) {
        let newcomer = !self.election.state().state().standing.counts();
        if !newcomer || !self.core.log.memberships().is_empty() {
            return;
        }
        let message = Message::Control(Control {
            group: self.core.config.group,
            order: Order::Change(Change::Add(self.own.clone())),
        });
        let own = self.own.id.clone();
        let following = self.following.get().map(Arc::downgrade);
        let receive = self.receive.get().map(Arc::downgrade);
        let on_answer: OnAnswer = Box::new(move |_, message, _| {
            match message {
                Message::ControlReply(ControlReply::Refused(why)) => {
                    log::warn!("{own} was not taken into the group: {why}");
                }
                // It need not wait for the next attempt.
                Message::ControlReply(ControlReply::Done(_)) => {
                    if let Some(following) = following.as_ref().and_then(std::sync::Weak::upgrade) {
                        following.hurry();
                    }
                    if let Some(receive) = receive.as_ref().and_then(std::sync::Weak::upgrade) {
                        receive.poke();
                    }
                }
                _ => {}
            }
            Next::Done
        });
        let until = self.core.clock.now() + self.core.config.handshake_timeout;
        let question =
            Question { to: at.clone(), term: Term::NONE, message, until, on_answer: Some(on_answer) };
        let asking = Asking::start(&self.core.host.runtime, "join".to_owned(), question);
        let mut joining = self.joining.lock();
        joining.retain(|one: &Asking| !one.has_ended());
        joining.push(asking);
    }
}

/// A transfer looks this often whether the heir has everything.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A learner this close to the end of the log, in entries, has caught up.
const PROMOTE_WITHIN: u64 = 1_000;
/// A master that leads only for want of others tries to give way this often.
const GIVE_WAY_AGAIN: Duration = Duration::from_secs(2);
