//! What operators order over the wire, and how a node says how it stands.

use std::sync::Arc;

use crate::channel::Channel;
use crate::clock::Wait;
use crate::commit::Ticket;
use crate::entry::EntryKind;
use crate::ids::{NodeId, Vlsn};
use crate::log::PinInfo;
use crate::members::Health;
use crate::node::archiver::Archiving;
use crate::node::core::Answer;
use crate::node::group::Shared;
use crate::node::handover::{ChangeRefused, Handover};
use crate::node::lead::WriteRefused;
use crate::node::slots::SlotRefused;
use crate::node::verify::Digesting;
use crate::replica::FollowError;
use crate::slots::SlotChange;
use crate::wire::message::{Ack, ControlReply, Keeping, MemberStatus, NodeStatus, Order, VoteReason};
use crate::wire::recovery::{MAX_PINS, PinStatus};

/// Characters of a pin's name in a status: at most 255 bytes.
const MAX_OWNER: usize = 63;

/// What came of an order.
pub(super) enum Obeyed {
    /// This.
    Now(ControlReply),
    /// It takes its time.
    Later(Pending),
}

/// An order that is being carried out.
pub(super) enum Pending {
    /// A change of members or slots that waits to be committed.
    Change(Ticket),
    /// A change of master.
    Transfer(Arc<Handover>),
    /// A digest of entries.
    Digest(Box<Digesting>),
    /// An entry at which every node digests its engine, that waits to be committed.
    Mark(Ticket),
}

impl Pending {
    /// Whether it is for the caller to bring it on, and not for others.
    pub fn works(&self) -> bool {
        matches!(self, Pending::Digest(_))
    }

    /// The answer, if there is one before `wait` ends.
    pub fn reply(&mut self, node: &Shared, wait: Wait) -> Option<ControlReply> {
        match self {
            Pending::Change(ticket) => {
                committed(ticket, node, wait, |at| ControlReply::Done(format!("committed at VLSN {at}")))
            }
            Pending::Mark(ticket) => committed(ticket, node, wait, ControlReply::Marked),
            Pending::Digest(digesting) => digesting.step(),
            Pending::Transfer(handover) => match handover.wait(wait)? {
                Ok(()) => Some(ControlReply::Done(format!("mastership went to {}", handover.to))),
                Err(error) => Some(ControlReply::Refused(error.to_string())),
            },
        }
    }
}

/// What is said once a ticket's entry is committed.
fn committed(
    ticket: &Ticket,
    node: &Shared,
    wait: Wait,
    told: impl FnOnce(Vlsn) -> ControlReply,
) -> Option<ControlReply> {
    if node.core.ask(&ticket.token) == Answer::Committed {
        return Some(told(ticket.token.vlsn));
    }
    let Some(lead) = node.lead() else {
        let unknown = format!("this node was deposed; ask later for {}", ticket.token);
        return Some(ControlReply::Refused(unknown));
    };
    match lead.feeders.wait(ticket, wait) {
        Ok(None) => None,
        Ok(Some(_)) => Some(told(ticket.token.vlsn)),
        Err(error) => Some(ControlReply::Refused(error.to_string())),
    }
}

impl Shared {
    /// Hands a connection to whoever feeds. `false`: nobody here does.
    pub fn feed(&self, channel: &Arc<dyn Channel>, hello: &[u8]) -> bool {
        if let Some(lead) = self.lead() {
            lead.feeders.accept(Arc::clone(channel), Some(hello.to_vec()));
            return true;
        }
        match self.relay() {
            Some(relay) => {
                relay.accept(Arc::clone(channel), Some(hello.to_vec()));
                true
            }
            None => false,
        }
    }

    pub fn obey(&self, order: Order) -> Obeyed {
        let hint = || ControlReply::NotMaster { hint: self.master_hint().and_then(|(_, address)| address) };
        let refused = |why: &dyn std::fmt::Display| Obeyed::Now(ControlReply::Refused(why.to_string()));
        match order {
            Order::Status => Obeyed::Now(ControlReply::Status(Box::new(self.status()))),
            Order::Change(change) => match self.change(&change) {
                Ok(ticket) => Obeyed::Later(Pending::Change(ticket)),
                Err(ChangeRefused::Write(WriteRefused::NotMaster { .. })) => Obeyed::Now(hint()),
                Err(error) => refused(&error),
            },
            Order::Transfer { .. } if self.lead().is_none() => Obeyed::Now(hint()),
            Order::Transfer { to, patience } => match self.transfer(to.as_ref(), patience) {
                Ok(handover) => Obeyed::Later(Pending::Transfer(handover)),
                Err(error) => refused(&error),
            },
            Order::Promote { term } if term == self.election.term() => {
                self.election.stand(VoteReason::ManualFailover, self.election.master());
                Obeyed::Now(ControlReply::Done(format!("{} stands for election", self.own.id)))
            }
            Order::Demote { term } if self.election.step_down(term, "an operator ordered it") => {
                Obeyed::Now(ControlReply::Done(format!("{} stepped down in term {term}", self.own.id)))
            }
            Order::Archive if self.lead().is_none() => Obeyed::Now(hint()),
            Order::Archive => match &self.archive {
                Some(archive) => {
                    archive.want_base();
                    Obeyed::Now(ControlReply::Done(format!(
                        "{} makes a base; status tells when it is there",
                        self.own.id
                    )))
                }
                None => refused(&"this node has no archive: name one in its configuration"),
            },
            Order::CreateSlot { name, from } => self.slots_ordered(self.create_slot(&name, from)),
            Order::MoveSlot { name, to } => {
                self.slots_ordered(self.change_slot(&SlotChange::Move { name, to }))
            }
            Order::DropSlot { name } => self.slots_ordered(self.change_slot(&SlotChange::Drop { name })),
            Order::Digest { range } => match self.digest(range) {
                Ok(digesting) => Obeyed::Later(Pending::Digest(Box::new(digesting))),
                Err(why) => refused(&why),
            },
            Order::Verify => match self.write_as_master(|lead| lead.append_own(EntryKind::VERIFY, &[])) {
                Ok(ticket) => Obeyed::Later(Pending::Mark(ticket)),
                Err(WriteRefused::NotMaster { .. }) => Obeyed::Now(hint()),
                Err(error) => refused(&error),
            },
            Order::Scrub => {
                self.mending.scrub_now();
                Obeyed::Now(ControlReply::Done(format!("{} begins a round of its scrubber", self.own.id)))
            }
            Order::Promote { term } | Order::Demote { term } => {
                let ours = self.election.term();
                refused(&format!(
                    "term {term} is not the present one of a node that could do this: it is {ours}"
                ))
            }
        }
    }

    fn slots_ordered(&self, changed: Result<Ticket, SlotRefused>) -> Obeyed {
        match changed {
            Ok(ticket) => Obeyed::Later(Pending::Change(ticket)),
            Err(SlotRefused::Write(WriteRefused::NotMaster { .. })) => {
                let hint = self.master_hint().and_then(|(_, address)| address);
                Obeyed::Now(ControlReply::NotMaster { hint })
            }
            Err(error) => Obeyed::Now(ControlReply::Refused(error.to_string())),
        }
    }

    /// What is kept here, and for whom.
    fn keeping(&self) -> Keeping {
        let now = self.core.clock.now();
        let mut pins = self.core.log.pins();
        pins.retain(|pin| !pin.void);
        pins.sort_by_key(|pin| pin.from);
        let pin = |pin: PinInfo| PinStatus {
            owner: pin.owner.chars().take(MAX_OWNER).collect(),
            from: pin.from,
            since: now - pin.since,
            bytes: pin.bytes,
        };
        Keeping {
            oldest: self.core.log.oldest(),
            pins: pins.into_iter().take(MAX_PINS).map(pin).collect(),
            slots: self.slots_in_force().iter().cloned().collect(),
            fetching: self.fetching.status(),
            giving: self.givings.status(),
            archive: self.archive.as_ref().map(Archiving::status),
            engine: self.engine_digests.last(),
            ..self.health_of_log()
        }
    }

    /// How far this node has come.
    pub fn positions(&self) -> crate::progress::Positions {
        self.acks.positions()
    }

    /// Whether what this node needs next is nowhere but in a snapshot.
    fn needs_snapshot(&self) -> bool {
        let following = self.following.get().filter(|_| self.lead().is_none() && !self.is_fed());
        let error = following.and_then(|following| following.last_error());
        self.core.apply.lacks()
            || matches!(error, Some(FollowError::NeedsSnapshot { .. } | FollowError::SnapshotFailed { .. }))
    }

    pub fn status(&self) -> NodeStatus {
        let positions = self.positions();
        let lead = self.lead();
        let replicas = lead.as_ref().map(|lead| lead.feeders.status()).unwrap_or_default();
        let failed = self.core.poison.reason().or_else(|| self.doubt.lock().lost.clone());
        let health = match (&failed, &lead) {
            (Some(_), _) => Health::Error,
            (None, Some(lead)) if lead.feeders.gates().degraded() => Health::Degraded,
            _ if self.needs_snapshot() => Health::NeedsSnapshot,
            _ if Vlsn::new(self.core.apply.committed.get()) > positions.applied => Health::CatchingUp,
            _ => Health::Healthy,
        };
        let ack = |at: crate::progress::Positions| Ack {
            received: at.received,
            durable: at.durable,
            applied: at.applied,
            checkpointed: at.checkpointed,
        };
        let member = |id: &NodeId| replicas.iter().find(|one| one.id == *id);
        let members = self.roll.members();
        let members = members.iter().map(|one| {
            let (known, own) = (member(&one.id), one.id == self.own.id);
            MemberStatus {
                member: one.clone(),
                positions: if own {
                    ack(positions)
                } else {
                    known.map_or(Ack::default(), |k| ack(k.positions))
                },
                health: if own { Some(health) } else { known.map(|known| known.health) },
                last_seen: known.and_then(|known| known.last_seen),
            }
        });
        NodeStatus {
            group: self.core.config.group,
            node: self.own.id.clone(),
            role: self.own.role,
            part: self.part(),
            standing: self.election.state().state().standing,
            term: self.election.term(),
            master: self.election.master(),
            positions: ack(positions),
            committed: Vlsn::new(self.core.apply.committed.get()),
            health,
            failed,
            keeping: Box::new(self.keeping()),
            members: members.collect(),
        }
    }
}
