//! Doubt: a directory whose last write was lost may lack what its node acknowledged. The voters together know.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::election::ask::{Asking, Next, OnAnswer, Question};
use crate::entry::verify_run;
use crate::ids::{NodeId, Position, Term, Vlsn};
use crate::members::{Members, Standing};
use crate::node::group::Shared;
use crate::replica::ReplicaState;
use crate::wire::message::{EntryRequest, Message, Survey, SurveyReply};
use crate::worker::Stop;

/// What follows from the voters' answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Resolution {
    /// This node has a valid copy.
    Fetch(NodeId),
    /// What is in doubt was never committed: the log ends where it ends.
    Settled,
    /// Too few have answered.
    Wait,
}

/// Decides by the answers of the other voters to the question what they have after `after`, where the log of `own` ends
/// in doubt.
pub(super) fn resolve(
    members: &Members,
    own: &NodeId,
    after: Option<Position>,
    answers: &BTreeMap<NodeId, SurveyReply>,
) -> Resolution {
    let voters = members.voters().count();
    let others = || members.voters().filter(|member| member.id != *own);
    let (mut lack, mut answered) = (0, 0);
    for (member, answer) in others().filter_map(|member| Some((member, answers.get(&member.id)?))) {
        let same = answer.after == after;
        if same && answer.last.map(|last| last.vlsn) > after.map(|after| after.vlsn) {
            return Resolution::Fetch(member.id.clone());
        }
        // Its log ends here or earlier, or went another way before: it never had what followed here. One that can't tell
        // what it has at this place, as that was pruned or is damaged, has not answered.
        let ends_before = answer.last.map(|last| last.vlsn) <= after.map(|after| after.vlsn);
        if ends_before || answer.after.is_some() {
            answered += 1;
            lack += usize::from(answer.standing.counts());
        }
    }
    if lack > voters / 2 || answered == others().count() { Resolution::Settled } else { Resolution::Wait }
}

/// The survey under way.
#[derive(Default)]
pub(super) struct Doubt {
    next: Option<Deadline>,
    /// Where this node's log ended when the others were asked: answers about another place say nothing.
    asked: Option<Option<Position>>,
    answers: BTreeMap<NodeId, SurveyReply>,
    asking: Vec<Asking>,
}

impl Doubt {
    pub fn close(&mut self) {
        for asking in self.asking.drain(..) {
            asking.end();
        }
    }
}

impl Shared {
    /// While the log's end is in doubt and no master settles it: asks the voters, and goes by what they say.
    pub fn resolve_doubt(self: &Arc<Shared>, now: Deadline) -> Result<Deadline, Stop> {
        let Standing::Doubtful { .. } = self.election.state().state().standing else {
            return Ok(Deadline::NEVER);
        };
        let mut doubt = self.doubt.lock();
        if let Some(next) = doubt.next.filter(|next| now < *next) {
            return Ok(next);
        }
        let members = self.roll.members();
        let after = self.core.log.last();
        // A master settles it, by what it sends; and nothing else may be written meanwhile.
        if self.is_fed() {
            doubt.asked = None;
            return Ok(now + self.core.config.heartbeat * 5);
        }
        if doubt.asked != Some(after) {
            doubt.answers.clear();
        }
        let round = self.core.config.peer_timeout.min(self.core.config.heartbeat * 5);
        match resolve(&members, &self.own.id, after, &doubt.answers) {
            Resolution::Settled if !members.voters().any(|_| true) => {}
            Resolution::Settled => {
                log::warn!("{}: what the log held after {after:?} was never committed", self.own.id);
                let settled = self.election.state().update(|mut state| {
                    state.standing = Standing::Full { since: state.term };
                    state
                });
                settled.map_err(Stop::failed)?;
                return Ok(Deadline::NEVER);
            }
            // Those who have it are asked for it below.
            Resolution::Fetch(_) | Resolution::Wait => {}
        }
        doubt.answers.clear();
        doubt.asked = Some(after);
        doubt.asking.retain(|one| !one.has_ended());
        for member in members.voters().filter(|member| member.id != self.own.id) {
            let Some(to) = member.address.clone() else { continue };
            let message =
                Message::Survey(Survey { group: self.core.config.group, node: self.own.id.clone(), after });
            let node = Arc::downgrade(self);
            let on_answer: OnAnswer = Box::new(move |_term, message, channel| {
                let Some(node) = node.upgrade() else { return Next::Done };
                node.surveyed(after, message, channel)
            });
            let (term, until) = (self.election.term(), now + round);
            let question = Question { to, term, message, until, on_answer: Some(on_answer) };
            let name = format!("survey-{}", member.id);
            doubt.asking.push(Asking::start(&self.core.host.runtime, name, question));
        }
        doubt.next = Some(now + round);
        Ok(now + round)
    }

    fn surveyed(&self, asked: Option<Position>, message: &Message<'_>, channel: &dyn Channel) -> Next {
        match message {
            Message::SurveyReply(reply) => {
                let has = reply.after == asked && reply.last.map(|l| l.vlsn) > asked.map(|a| a.vlsn);
                let mut doubt = self.doubt.lock();
                if doubt.asked != Some(asked) {
                    return Next::Done;
                }
                doubt.answers.insert(reply.node.clone(), reply.clone());
                drop(doubt);
                if has { self.fetch(channel, 1) } else { Next::Done }
            }
            Message::Entries(entries) => match self.patch(entries.run) {
                Ok(()) => self.fetch(channel, 2),
                Err(error) => {
                    log::warn!("{}: entries from a peer do not continue the log: {error}", self.own.id);
                    Next::Done
                }
            },
            _ => Next::Done,
        }
    }

    /// Whether a master is connected, or about to be.
    fn is_fed(&self) -> bool {
        let phase = self.following.get().map(|following| following.phase());
        phase == Some(ReplicaState::Following)
    }

    fn fetch(&self, channel: &dyn Channel, sequence: u64) -> Next {
        let from = Vlsn::after(self.core.log.last().map(|last| last.vlsn));
        let to = Vlsn::new(crate::wire::message::MAX_VLSN).unwrap_or(from);
        let config = &self.core.config;
        let max_bytes = u32::try_from(config.batch_bytes).unwrap_or(u32::MAX);
        let request = Message::EntryRequest(EntryRequest { from, to, max_entries: u32::MAX, max_bytes });
        let mut frame = Vec::new();
        request.encode(Term::NONE, sequence, &mut frame);
        match channel.send(&[IoSlice::new(&frame)], Wait::Now) {
            Ok(true) => Next::Await,
            Ok(false) | Err(_) => Next::Done,
        }
    }

    /// Appends entries that a peer had, and moves the doubt behind them.
    fn patch(&self, run: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
        let Some(following) = self.following.get() else { return Ok(()) };
        following.between_frames(|| {
            let log = &self.core.log;
            if self.election.state().state().standing.counts() || self.is_fed() {
                return Ok(());
            }
            let summary = verify_run(run, log.last())?;
            log.append_run(run, &summary)?;
            log.flush(summary.last.vlsn, Wait::Now)?;
            if summary.memberships {
                self.reload_members();
            }
            if summary.slots {
                self.reload_slots();
            }
            let from = summary.last.vlsn.next();
            self.election.state().update(|mut state| {
                if let Standing::Doubtful { .. } = state.standing {
                    state.standing = Standing::Doubtful { from };
                }
                state
            })?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::Member;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn at(vlsn: u64, crc: u32) -> Option<Position> {
        Vlsn::new(vlsn).map(|vlsn| Position { vlsn, term: Term::new(1), crc })
    }

    fn answer(
        node: &str,
        standing: Standing,
        last: Option<Position>,
        after: Option<Position>,
    ) -> (NodeId, SurveyReply) {
        (id(node), SurveyReply { node: id(node), standing, last, after })
    }

    fn judge(answers: &[(NodeId, SurveyReply)]) -> Resolution {
        let members = Members::new(["a", "b", "c"].map(|name| Member::electable(id(name))).into()).unwrap();
        resolve(&members, &id("a"), at(5, 1), &answers.iter().cloned().collect())
    }

    const FULL: Standing = Standing::Full { since: Term::NONE };

    #[test]
    fn a_valid_copy_anywhere_is_fetched() {
        let doubtful = Standing::Doubtful { from: Vlsn::new(9).unwrap() };
        assert_eq!(judge(&[answer("b", doubtful, at(8, 3), at(5, 1))]), Resolution::Fetch(id("b")));
    }

    #[test]
    fn what_a_majority_surely_lacks_was_never_committed() {
        let b = answer("b", FULL, at(5, 1), at(5, 1));
        let shorter = answer("c", FULL, at(4, 1), None);
        assert_eq!(judge(std::slice::from_ref(&b)), Resolution::Wait, "two of three may have had it");
        assert_eq!(judge(&[b, shorter]), Resolution::Settled);
    }

    #[test]
    fn who_can_not_tell_what_it_has_at_the_place_has_not_answered() {
        let pruned = answer("b", FULL, at(900, 1), None);
        let behind = answer("c", FULL, at(4, 1), None);
        assert_eq!(judge(&[pruned, behind]), Resolution::Wait);
    }

    #[test]
    fn another_history_at_the_same_place_is_no_copy() {
        let other = answer("b", FULL, at(9, 1), at(5, 7));
        assert_eq!(judge(std::slice::from_ref(&other)), Resolution::Wait);
    }

    #[test]
    fn a_whole_group_in_doubt_settles_when_all_have_answered() {
        let doubtful = Standing::Doubtful { from: Vlsn::new(6).unwrap() };
        let b = answer("b", doubtful, at(5, 1), at(5, 1));
        let c = answer("c", doubtful, at(4, 1), None);
        assert_eq!(judge(std::slice::from_ref(&b)), Resolution::Wait);
        assert_eq!(judge(&[b, c]), Resolution::Settled);
    }
}
