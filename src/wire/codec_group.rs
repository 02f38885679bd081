//! The bytes of the messages in [`super::group`].

use std::time::Duration;

use crate::ids::{GroupId, LogEnd, NodeId, Term};
use crate::members::{Admission, Change, Health, Member, Members, Role};
use crate::wire::codec::{health_from, health_number};
use crate::wire::codec_recovery::{
    put_digest, put_keeping, put_recovery_message, take_digest, take_keeping, take_recovery_message,
};
use crate::wire::fields::{Put, Take};
use crate::wire::frame::MessageType;
use crate::wire::message::*;

/// The longest text of an answer, in bytes.
pub(super) const MAX_ANSWER: usize = 255;

pub(super) fn put_group_message(message: &Message<'_>, put: &mut Put<'_>) {
    match message {
        Message::Vote(m) => {
            put.group(m.group);
            put.u64(m.election);
            put.u8(round_number(m.round));
            put.u32(m.last.term.get());
            put.vlsn(m.last.vlsn);
            put.u8(m.reason.number());
            put.text(m.candidate.as_str(), NodeId::MAX_LEN);
            put.maybe_node(m.instead_of.as_ref());
        }
        Message::VoteReply(m) => {
            put.u64(m.election);
            put.u8(round_number(m.round));
            put.u8(m.why_not.map_or(0, WhyNot::number));
            put.text(m.voter.as_str(), NodeId::MAX_LEN);
            put.maybe_node(m.master.as_ref());
        }
        Message::Announce(m) => {
            put.group(m.group);
            put.text(m.master.as_str(), NodeId::MAX_LEN);
            put.address(m.address.as_ref());
        }
        Message::Survey(m) => {
            put.group(m.group);
            put.position(m.after);
            put.text(m.node.as_str(), NodeId::MAX_LEN);
        }
        Message::SurveyReply(m) => {
            put.standing(m.standing);
            put.position(m.last);
            put.position(m.after);
            put.text(m.node.as_str(), NodeId::MAX_LEN);
        }
        Message::Control(m) => {
            put.group(m.group);
            put_order(&m.order, put);
        }
        Message::ControlReply(m) => put_reply(m, put),
        Message::Request(m) => {
            put.group(m.group);
            put.bytes(m.body);
        }
        Message::Response(m) => put.bytes(m.body),
        Message::Stand => {}
        other => put_recovery_message(other, put),
    }
}

pub(super) fn take_group_message<'a>(take: &mut Take<'a>) -> Result<Message<'a>, WireError> {
    Ok(match take.kind {
        MessageType::Vote => Message::Vote(Vote {
            group: take.group("group")?,
            election: take.u64("election")?,
            round: take.numbered("round", round_from)?,
            last: LogEnd { term: Term::new(take.u32("last.term")?), vlsn: take.vlsn("last.vlsn")? },
            reason: take.numbered("reason", VoteReason::from_number)?,
            candidate: take.node("candidate")?,
            instead_of: take.maybe_node("instead_of")?,
        }),
        MessageType::VoteReply => Message::VoteReply(VoteReply {
            election: take.u64("election")?,
            round: take.numbered("round", round_from)?,
            why_not: match take.u8("why_not")? {
                0 => None,
                number => Some(WhyNot::from_number(number).ok_or(take.value("why_not", number))?),
            },
            voter: take.node("voter")?,
            master: take.maybe_node("master")?,
        }),
        MessageType::Announce => Message::Announce(Announce {
            group: take.group("group")?,
            master: take.node("master")?,
            address: take.address("address")?,
        }),
        MessageType::Survey => Message::Survey(Survey {
            group: take.group("group")?,
            after: take.position("after")?,
            node: take.node("node")?,
        }),
        MessageType::SurveyReply => Message::SurveyReply(SurveyReply {
            standing: take.standing("standing")?,
            last: take.position("last")?,
            after: take.position("after")?,
            node: take.node("node")?,
        }),
        MessageType::Control => {
            Message::Control(Control { group: take.group("group")?, order: take_order(take)? })
        }
        MessageType::ControlReply => Message::ControlReply(take_reply(take)?),
        MessageType::Request => {
            Message::Request(Request { group: take.group("group")?, body: std::mem::take(&mut take.rest) })
        }
        MessageType::Response => Message::Response(Response { body: std::mem::take(&mut take.rest) }),
        MessageType::Stand => Message::Stand,
        _ => take_recovery_message(take)?,
    })
}

fn put_order(order: &Order, put: &mut Put<'_>) {
    match order {
        Order::Status => put.u8(1),
        Order::Change(change) => {
            put.u8(2);
            match change {
                Change::Add(member) => {
                    put.u8(1);
                    put_member(member, put);
                }
                Change::Promote(node) => {
                    put.u8(2);
                    put.text(node.as_str(), NodeId::MAX_LEN);
                }
                Change::Remove(node) => {
                    put.u8(3);
                    put.text(node.as_str(), NodeId::MAX_LEN);
                }
                Change::Move { node, to } => {
                    put.u8(4);
                    put.text(node.as_str(), NodeId::MAX_LEN);
                    put.address(Some(to));
                }
            }
        }
        Order::Transfer { to, patience } => {
            put.u8(3);
            put.maybe_node(to.as_ref());
            put.millis(*patience);
        }
        Order::Promote { term } => {
            put.u8(4);
            put.u32(term.get());
        }
        Order::Demote { term } => {
            put.u8(5);
            put.u32(term.get());
        }
        Order::CreateSlot { name, from } => {
            put.u8(6);
            put.text(name, MAX_TEXT);
            put.vlsn(*from);
        }
        Order::MoveSlot { name, to } => {
            put.u8(7);
            put.text(name, MAX_TEXT);
            put.vlsn(Some(*to));
        }
        Order::DropSlot { name } => {
            put.u8(8);
            put.text(name, MAX_TEXT);
        }
        Order::Digest { range } => {
            put.u8(9);
            put.range(*range);
        }
        Order::Verify => put.u8(10),
        Order::Scrub => put.u8(11),
        Order::Archive => put.u8(12),
    }
}

fn take_order(take: &mut Take<'_>) -> Result<Order, WireError> {
    Ok(match take.u8("order")? {
        1 => Order::Status,
        2 => Order::Change(match take.u8("change")? {
            1 => Change::Add(take_member(take)?),
            2 => Change::Promote(take.node("change.node")?),
            3 => Change::Remove(take.node("change.node")?),
            4 => {
                let node = take.node("change.node")?;
                let to = take.address("change.to")?.ok_or(take.bad_text("change.to", 0))?;
                Change::Move { node, to }
            }
            other => return Err(take.value("change", other)),
        }),
        3 => Order::Transfer { to: take.maybe_node("to")?, patience: take.millis("patience")? },
        4 => Order::Promote { term: Term::new(take.u32("term")?) },
        5 => Order::Demote { term: Term::new(take.u32("term")?) },
        6 => Order::CreateSlot { name: take.slot_name()?, from: take.vlsn("from")? },
        7 => Order::MoveSlot { name: take.slot_name()?, to: take.entry("to")? },
        8 => Order::DropSlot { name: take.slot_name()? },
        9 => Order::Digest { range: take.range("range")? },
        10 => Order::Verify,
        11 => Order::Scrub,
        12 => Order::Archive,
        other => return Err(take.value("order", other)),
    })
}

fn put_reply(reply: &ControlReply, put: &mut Put<'_>) {
    match reply {
        ControlReply::Status(status) => {
            put.u8(1);
            put_status(status, put);
        }
        ControlReply::Done(what) => {
            put.u8(2);
            put.cut_text(what);
        }
        ControlReply::NotMaster { hint } => {
            put.u8(3);
            put.address(hint.as_ref());
        }
        ControlReply::Refused(why) => {
            put.u8(4);
            put.cut_text(why);
        }
        ControlReply::Digest(digest) => {
            put.u8(5);
            put_digest(digest, put);
        }
        ControlReply::Damaged(at) => {
            put.u8(6);
            put.vlsn(Some(*at));
        }
        ControlReply::Marked(at) => {
            put.u8(7);
            put.vlsn(Some(*at));
        }
    }
}

fn take_reply(take: &mut Take<'_>) -> Result<ControlReply, WireError> {
    Ok(match take.u8("reply")? {
        1 => ControlReply::Status(Box::new(take_status(take)?)),
        2 => ControlReply::Done(take.text("done", MAX_ANSWER)?.to_owned()),
        3 => ControlReply::NotMaster { hint: take.address("hint")? },
        4 => ControlReply::Refused(take.text("refused", MAX_ANSWER)?.to_owned()),
        5 => ControlReply::Digest(take_digest(take)?),
        6 => ControlReply::Damaged(take.entry("damaged")?),
        7 => ControlReply::Marked(take.entry("marked")?),
        other => return Err(take.value("reply", other)),
    })
}

fn put_status(status: &NodeStatus, put: &mut Put<'_>) {
    put.group(status.group);
    put.text(status.node.as_str(), NodeId::MAX_LEN);
    put.u8(status.role.number());
    put.u8(part_number(status.part));
    put.standing(status.standing);
    put.u32(status.term.get());
    put.maybe_node(status.master.as_ref());
    put_ack(status.positions, put);
    put.vlsn(status.committed);
    put.u8(health_number(status.health));
    put.cut_text(status.failed.as_deref().unwrap_or(""));
    put_keeping(&status.keeping, put);
    put.u8(status.members.len() as u8);
    for one in &status.members {
        put_member(&one.member, put);
        put_ack(one.positions, put);
        put.u8(one.health.map_or(0, health_number));
        let millis =
            |ago: Duration| u64::try_from(ago.as_millis()).map_or(u64::MAX - 1, |ms| ms.min(u64::MAX - 1));
        put.u64(one.last_seen.map_or(u64::MAX, millis));
    }
}

fn take_status(take: &mut Take<'_>) -> Result<NodeStatus, WireError> {
    let mut status = NodeStatus {
        group: take.group("group")?,
        node: take.node("node")?,
        role: take.numbered("role", Role::from_number)?,
        part: take.numbered("part", part_from)?,
        standing: take.standing("standing")?,
        term: Term::new(take.u32("term")?),
        master: take.maybe_node("master")?,
        positions: take_ack(take)?,
        committed: take.vlsn("committed")?,
        health: take.numbered("health", health_from)?,
        failed: Some(take.text("failed", MAX_ANSWER)?.to_owned()).filter(|text| !text.is_empty()),
        keeping: Box::new(take_keeping(take)?),
        members: Vec::new(),
    };
    let count = take.u8("members")?;
    if usize::from(count) > Members::MAX {
        return Err(take.value("members", count));
    }
    for _ in 0..count {
        status.members.push(MemberStatus {
            member: take_member(take)?,
            positions: take_ack(take)?,
            health: take_health(take)?,
            last_seen: Some(take.u64("last_seen")?).filter(|ms| *ms != u64::MAX).map(Duration::from_millis),
        });
    }
    Ok(status)
}

fn take_health(take: &mut Take<'_>) -> Result<Option<Health>, WireError> {
    match take.u8("member.health")? {
        0 => Ok(None),
        number => health_from(number).map(Some).ok_or(take.value("member.health", number)),
    }
}

fn put_member(member: &Member, put: &mut Put<'_>) {
    put.u8(member.role.number());
    put.u8(u8::from(member.admission == Admission::Full));
    put.u8(member.priority);
    put.text(member.id.as_str(), NodeId::MAX_LEN);
    put.text(&member.region, MAX_TEXT);
    put.address(member.address.as_ref());
}

fn take_member(take: &mut Take<'_>) -> Result<Member, WireError> {
    Ok(Member {
        role: take.numbered("member.role", Role::from_number)?,
        admission: match take.u8("member.admission")? {
            0 => Admission::Learner,
            1 => Admission::Full,
            other => return Err(take.value("member.admission", other)),
        },
        priority: take.u8("member.priority")?,
        id: take.node("member.id")?,
        region: take.text("member.region", MAX_TEXT)?.to_owned(),
        address: take.address("member.address")?,
    })
}

fn put_ack(positions: Ack, put: &mut Put<'_>) {
    let Ack { received, durable, applied, checkpointed } = positions;
    [received, durable, applied, checkpointed].into_iter().for_each(|at| put.vlsn(at));
}

fn take_ack(take: &mut Take<'_>) -> Result<Ack, WireError> {
    Ok(Ack {
        received: take.vlsn("received")?,
        durable: take.vlsn("durable")?,
        applied: take.vlsn("applied")?,
        checkpointed: take.vlsn("checkpointed")?,
    })
}

fn round_number(round: Round) -> u8 {
    match round {
        Round::Pre => 1,
        Round::Real => 2,
    }
}

fn round_from(number: u8) -> Option<Round> {
    [Round::Pre, Round::Real].into_iter().find(|round| round_number(*round) == number)
}

fn part_number(part: Part) -> u8 {
    match part {
        Part::Master => 1,
        Part::Replica => 2,
        Part::Candidate => 3,
        Part::Waiting => 4,
        Part::Failed => 5,
    }
}

fn part_from(number: u8) -> Option<Part> {
    [Part::Master, Part::Replica, Part::Candidate, Part::Waiting, Part::Failed]
        .into_iter()
        .find(|part| part_number(*part) == number)
}

impl Put<'_> {
    fn group(&mut self, group: GroupId) {
        self.bytes(&group.bits().to_le_bytes());
    }

    fn maybe_node(&mut self, node: Option<&NodeId>) {
        self.text(node.map_or("", NodeId::as_str), NodeId::MAX_LEN);
    }

    pub(super) fn millis(&mut self, time: Duration) {
        self.u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// A text for people, cut where it gets too long.
    pub(super) fn cut_text(&mut self, text: &str) {
        let end = (0..=text.len().min(MAX_ANSWER)).rev().find(|at| text.is_char_boundary(*at));
        self.text(&text[..end.unwrap_or(0)], MAX_ANSWER);
    }
}

impl Take<'_> {
    fn group(&mut self, field: &'static str) -> Result<GroupId, WireError> {
        self.array(field).map(|bytes| GroupId::from_bits(u128::from_le_bytes(bytes)))
    }

    fn maybe_node(&mut self, field: &'static str) -> Result<Option<NodeId>, WireError> {
        match self.text(field, NodeId::MAX_LEN)? {
            "" => Ok(None),
            text => NodeId::new(text).map(Some).map_err(|_| self.bad_text(field, text.len())),
        }
    }

    fn slot_name(&mut self) -> Result<String, WireError> {
        match self.text("slot", MAX_TEXT)? {
            "" => Err(self.bad_text("slot", 0)),
            name => Ok(name.to_owned()),
        }
    }

    pub(super) fn millis(&mut self, field: &'static str) -> Result<Duration, WireError> {
        self.u64(field).map(Duration::from_millis)
    }
}
