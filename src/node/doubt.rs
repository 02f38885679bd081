//! Doubt: a directory whose last write was lost may lack what its node acknowledged. The voters together know.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::Arc;

use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::election::ask::{Asking, Next, OnAnswer, Question};
use crate::entry::{Header, verify_run};
use crate::ids::{LogEnd, NodeId, Position, Term, Vlsn};
use crate::log::Saved;
use crate::members::{Member, Members, Role, Standing};
use crate::node::group::Shared;
use crate::node::stranded::Stranded;
use crate::planted::{Bug, active};
use crate::replica::ReplicaState;
use crate::state::StateError;
use crate::wire::message::{EntryRequest, Message, Survey, SurveyReply};
use crate::worker::Stop;

/// What follows from the voters' answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Resolution {
    /// This node has a valid copy: to be believed as far as this entry, or without bound.
    Fetch(NodeId, Option<Vlsn>),
    /// What is in doubt was never committed: the log ends where it ends.
    Settled,
    /// Too few have answered.
    Wait,
    /// All have answered, and nobody has what was here.
    Lost,
}

/// Decides the same where the log of `own` is damaged behind `after`, up to an entry that was durable: nothing is given up
/// but what a majority surely lacks and is not known to be committed. Whom to fetch from is whom to believe if nothing
/// here tells which entries they were: the furthest of those who can tell, once so many have that one of them has what
/// was committed.
pub(super) fn resolve_damage(
    members: &Members,
    own: &NodeId,
    after: Option<Position>,
    committed: Option<Vlsn>,
    answers: &BTreeMap<NodeId, SurveyReply>,
) -> Resolution {
    let voters = members.voters().count();
    let place = after.map(|after| after.vlsn);
    let (mut lack, mut telling) = (0, 0);
    let mut bound: Option<Option<Vlsn>> = None;
    let mut best: Option<&SurveyReply> = None;
    let mut marks = Vec::new();
    for (member, answer) in answers_of(members, own, answers) {
        let ends_before = answer.last.map(|last| last.vlsn) <= place;
        if member.role == Role::Arbiter {
            let counts = member.is_voter() && answer.standing.counts();
            let vouches_not = usize::from(counts && ends_before);
            (telling, lack) = (telling + vouches_not, lack + vouches_not);
            marks.extend((counts && !ends_before).then(|| LogEnd::of(answer.last)));
            continue;
        }
        let came_here = answer.after.is_some() || after.is_none();
        if members.is_voter(&answer.node) {
            // One whose own log is damaged tells of what it has, and no further.
            let counts = answer.standing.counts();
            let partly = came_here && !ends_before && answer.standing != Standing::Newcomer;
            telling += usize::from((counts && (came_here || ends_before)) || partly);
            if partly && !counts {
                let has = answer.last.map(|last| last.vlsn);
                bound = Some(bound.map_or(has, |bound: Option<Vlsn>| bound.min(has)));
            }
            let lacks = ends_before || (answer.after.is_some() && answer.after != after);
            lack += usize::from(lacks && answer.standing.counts());
        }
        let further = |best: &SurveyReply| LogEnd::of(answer.last) > LogEnd::of(best.last);
        if came_here && answer.after == after && !ends_before && best.is_none_or(further) {
            best = Some(answer);
        }
    }
    telling += reached(&marks, best);
    // Whatever was committed by a majority with this node is with one of so many others.
    let enough = (voters - voters.min(voters / 2 + 1) + 1).min(voters.saturating_sub(1));
    let mut others = members.iter().filter(|member| member.id != *own);
    match best {
        Some(best) if telling >= enough => Resolution::Fetch(best.node.clone(), bound.flatten()),
        Some(_) => Resolution::Wait,
        None if lack > voters / 2 && committed <= place => Resolution::Settled,
        None if others.all(|one| answers.contains_key(&one.id)) => {
            let settled = active(Bug::DamagedSettledBecauseNobodyHasIt);
            if settled { Resolution::Settled } else { Resolution::Lost }
        }
        None => Resolution::Wait,
    }
}

/// The other members that have answered, and what.
fn answers_of<'a>(
    members: &'a Members,
    own: &'a NodeId,
    answers: &'a BTreeMap<NodeId, SurveyReply>,
) -> impl Iterator<Item = (&'a Member, &'a SurveyReply)> {
    let others = members.iter().filter(move |member| member.id != *own);
    others.filter_map(|member| Some((member, answers.get(&member.id)?)))
}

/// An arbiter has no entries, and lacks none: its answer is its mark. Behind that it vouched for nothing. What it vouched for
/// is in every log that ends there or later, as votes compare logs.
fn reached(marks: &[LogEnd], best: Option<&SurveyReply>) -> usize {
    let Some(best) = best else { return 0 };
    marks.iter().filter(|mark| **mark <= LogEnd::of(best.last)).count()
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
    let (mut lack, mut answered, mut telling) = (0, 0, 0);
    let mut best: Option<&SurveyReply> = None;
    let mut marks = Vec::new();
    for (member, answer) in answers_of(members, own, answers).filter(|(member, _)| member.is_voter()) {
        // Its log ends here or earlier, or went another way before: it never had what followed here. One that can't tell
        // what it has at this place, as that was pruned or is damaged, has not answered.
        let ends_before = answer.last.map(|last| last.vlsn) <= after.map(|after| after.vlsn);
        if member.role == Role::Arbiter {
            let vouches_not = usize::from(answer.standing.counts() && ends_before);
            (answered, telling, lack) = (answered + 1, telling + vouches_not, lack + vouches_not);
            marks.extend((answer.standing.counts() && !ends_before).then(|| LogEnd::of(answer.last)));
            continue;
        }
        let same = answer.after == after;
        let further = |best: &SurveyReply| LogEnd::of(answer.last) > LogEnd::of(best.last);
        if same
            && answer.last.map(|last| last.vlsn) > after.map(|after| after.vlsn)
            && best.is_none_or(further)
        {
            best = Some(answer);
        }
        if ends_before || answer.after.is_some() {
            answered += 1;
            telling += usize::from(answer.standing.counts());
            lack += usize::from(answer.standing.counts() && (ends_before || !same));
        }
    }
    telling += reached(&marks, best);
    if let Some(best) = best {
        // A copy of a term that was overruled is as valid: the furthest is taken of so many that one of them has what was
        // committed here, or of all.
        let enough = (voters - voters.min(voters / 2 + 1) + 1).min(voters.saturating_sub(1));
        let told = telling >= enough || answered == others().count();
        return if told { Resolution::Fetch(best.node.clone(), None) } else { Resolution::Wait };
    }
    if lack > voters / 2 || answered == others().count() { Resolution::Settled } else { Resolution::Wait }
}

/// Entries of which nothing here tells that they are the ones that were here.
#[derive(Debug, thiserror::Error)]
#[error("nothing tells yet that these are the entries that were damaged")]
struct Unproven;

/// The survey under way.
#[derive(Default)]
pub(super) struct Doubt {
    next: Option<Deadline>,
    /// Where this node's log ended when the others were asked: answers about another place say nothing.
    asked: Option<Option<Position>>,
    answers: BTreeMap<NodeId, SurveyReply>,
    asking: Vec<Asking>,
    /// Of damage: what was cut off behind it.
    saved: Option<Arc<Saved>>,
    /// Whom to believe without proof, and how far.
    believed: Option<(NodeId, Option<Vlsn>)>,
    stranded: Stranded,
    /// Of damage: what nobody has.
    pub lost: Option<String>,
    /// The last entry that came back, while it is not known to be on the disk.
    patched: Option<Position>,
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
        let standing = self.election.state().state().standing;
        let damage = match standing {
            Standing::Doubtful { .. } => None,
            Standing::Damaged { to, .. } => Some(to),
            Standing::Newcomer | Standing::Full { .. } => {
                let mut doubt = self.doubt.lock();
                (doubt.lost, doubt.patched) = (None, None);
                return Ok(Deadline::NEVER);
            }
        };
        if self.tell_patched()? {
            return Ok(now);
        }
        if let Some(to) = damage
            && (self.is_passed(to)? || self.heal_from_saved(to)?)
        {
            return Ok(now);
        }
        let mut doubt = self.doubt.lock();
        if let Some(next) = doubt.next.filter(|next| now < *next) {
            return Ok(next);
        }
        let members = self.roll.members();
        let after = self.core.log.last();
        // A master settles it, by what it sends; and nothing else may be written meanwhile.
        if self.is_fed() {
            doubt.asked = None;
            doubt.stranded.moves();
            return Ok(now + self.core.config.heartbeat * 5);
        }
        if doubt.asked != Some(after) {
            doubt.answers.clear();
        }
        let round = self.core.config.peer_timeout.min(self.core.config.heartbeat * 5);
        let committed = self.core.log.known_committed();
        let resolution = match damage {
            None => resolve(&members, &self.own.id, after, &doubt.answers),
            Some(_) => resolve_damage(&members, &self.own.id, after, committed, &doubt.answers),
        };
        (doubt.believed, doubt.lost) = (None, None);
        match resolution {
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
            Resolution::Fetch(node, to) => doubt.believed = Some((node, to)),
            Resolution::Wait => {}
            Resolution::Lost => {
                let from = Vlsn::after(after.map(|after| after.vlsn));
                let to = damage.unwrap_or(from);
                let lost = format!(
                    "VLSN {from} of {from} to {to} was damaged here, and no member has it: bring back a member that \
                     does, or wipe this directory and rejoin if another node leads"
                );
                log::error!("{}: {lost}", self.own.id);
                doubt.lost = Some(lost);
            }
        }
        let answers = std::mem::take(&mut doubt.answers);
        self.pass_by_snapshot(&mut doubt.stranded, now, after, &answers);
        doubt.asked = Some(after);
        doubt.asking.retain(|one| !one.has_ended());
        let asked = |member: &&Member| member.id != self.own.id && (damage.is_some() || member.is_voter());
        for member in members.iter().filter(asked) {
            let Some(to) = member.address.clone() else { continue };
            let message =
                Message::Survey(Survey { group: self.core.config.group, node: self.own.id.clone(), after });
            let node = Arc::downgrade(self);
            let (whom, mut said) = (member.id.clone(), 1);
            let on_answer: OnAnswer = Box::new(move |_term, message, channel| {
                let Some(node) = node.upgrade() else { return Next::Done };
                let next = node.surveyed(after, &whom, message, channel, said);
                said += 1;
                next
            });
            let (term, until) = (self.election.term(), now + round);
            let question = Question { to, term, message, until, on_answer: Some(on_answer) };
            let name = format!("survey-{}", member.id);
            doubt.asking.push(Asking::start(&self.core.host.runtime, name, question));
        }
        doubt.next = Some(now + round);
        Ok(now + round)
    }

    fn surveyed(
        &self,
        asked: Option<Position>,
        whom: &NodeId,
        message: &Message<'_>,
        channel: &dyn Channel,
        said: u64,
    ) -> Next {
        match message {
            Message::SurveyReply(reply) => {
                let has = reply.after == asked && reply.last.map(|l| l.vlsn) > asked.map(|a| a.vlsn);
                let mut doubt = self.doubt.lock();
                if doubt.asked != Some(asked) {
                    return Next::Done;
                }
                doubt.answers.insert(reply.node.clone(), reply.clone());
                drop(doubt);
                if has { self.fetch(channel, said) } else { Next::Done }
            }
            Message::Entries(entries) => match self.patch(whom, entries.run) {
                Ok(()) => self.fetch(channel, said),
                Err(error) => {
                    log::warn!("{}: entries from a peer do not continue the log: {error}", self.own.id);
                    Next::Done
                }
            },
            _ => Next::Done,
        }
    }

    /// Whether a snapshot was put in the place of all that was damaged: then nothing is missing any more.
    fn is_passed(&self, to: Vlsn) -> Result<bool, Stop> {
        let installing = self.following.get().is_some_and(|following| following.is_installing());
        let Some(base) = self.core.log.base().filter(|base| !installing && base.vlsn >= to) else {
            return Ok(false);
        };
        let passed = self.election.state().update(|mut state| {
            state.standing = state.standing.back(base.vlsn.next(), state.term);
            state
        });
        passed.map(|_| true).map_err(Stop::failed)
    }

    /// Takes what was cut off behind damage back, as far as it continues the log. Whether there was any, or none is needed.
    fn heal_from_saved(&self, to: Vlsn) -> Result<bool, Stop> {
        let saved = {
            let mut doubt = self.doubt.lock();
            match &doubt.saved {
                Some(saved) => Arc::clone(saved),
                None => {
                    let read = Arc::new(self.core.log.saved().map_err(Stop::failed)?);
                    doubt.saved = Some(Arc::clone(&read));
                    read
                }
            }
        };
        let installing = self.following.get().is_some_and(|following| following.is_installing());
        if self.is_fed() || installing {
            return Ok(false);
        }
        let mut run = Vec::new();
        let mut last = self.core.log.last();
        while run.len() < self.core.config.batch_bytes
            && last.is_none_or(|last| last.vlsn < to)
            && let Some(bytes) = saved.after(last)
            && let Ok(summary) = verify_run(&bytes, last)
        {
            last = Some(summary.last);
            run.extend_from_slice(&bytes);
        }
        if run.is_empty() {
            return Ok(false);
        }
        let own = self.own.id.clone();
        match self.patch(&own, &run) {
            Ok(()) => Ok(true),
            Err(error) => {
                log::warn!("{}: what was saved can't be taken back: {error}", self.own.id);
                Ok(false)
            }
        }
    }

    /// How much of a run are the entries that were here: as far as what stood behind them tells; all, if the answers of
    /// the others say whom to believe.
    fn believable<'a>(&self, whom: &NodeId, run: &'a [u8]) -> Result<&'a [u8], Unproven> {
        if *whom == self.own.id {
            return Ok(run);
        }
        let (saved, believed) = {
            let doubt = self.doubt.lock();
            (doubt.saved.clone(), doubt.believed.clone())
        };
        let bound = believed.filter(|(node, _)| node == whom).map(|(_, to)| to);
        let (mut at, mut proven, mut told) = (0, 0, 0);
        while let Ok(header) = Header::parse(&run[at..]) {
            at += header.entry_len().min(run.len() - at);
            let vouched = header.position().and_then(|position| saved.as_ref()?.vouches(position));
            match vouched {
                Some(true) => proven = at,
                // It is not what was here, nor is anything before it that nothing else vouches for.
                Some(false) => return if proven > 0 { Ok(&run[..proven]) } else { Err(Unproven) },
                None => {}
            }
            if bound.is_some_and(|to| to.is_none() || header.vlsn <= to) {
                told = at;
            }
        }
        match proven.max(told) {
            0 => Err(Unproven),
            believed => Ok(&run[..believed]),
        }
    }

    /// Whether a master is connected, or about to be.
    pub fn is_fed(&self) -> bool {
        let phase = self.following.get().map(|following| following.phase());
        phase == Some(ReplicaState::Following)
    }

    fn fetch(&self, channel: &dyn Channel, sequence: u64) -> Next {
        if self.election.state().state().standing.counts() {
            return Next::Done;
        }
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
    fn patch(&self, whom: &NodeId, run: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
        let Some(following) = self.following.get() else { return Ok(()) };
        following.between_frames(|| {
            let log = &self.core.log;
            // An install is about to put another log in the place of this one.
            if self.election.state().state().standing.counts() || self.is_fed() || following.is_installing() {
                return Ok(());
            }
            let run = self.believable(whom, run)?;
            let summary = verify_run(run, log.last())?;
            log.append_run(run, &summary)?;
            self.doubt.lock().patched = Some(summary.last);
            if summary.memberships {
                self.reload_members();
            }
            // Another thread may be syncing: the standing tells what is on the disk, and waits for it.
            let patience = self.core.clock.now() + self.core.config.handshake_timeout;
            if !log.flush(summary.last.vlsn, Wait::Until(patience))? {
                return Err("the entries are not on the disk in time".into());
            }
            Ok(self.came_back(summary.last.vlsn)?)
        })
    }

    /// Tells of what came back and was not on the disk in time, once it is. Whether it did.
    fn tell_patched(&self) -> Result<bool, Stop> {
        let patched = self.doubt.lock().patched;
        let (Some(last), Some(following)) = (patched, self.following.get()) else { return Ok(false) };
        following.between_frames(|| {
            let log = &self.core.log;
            let waits = log.last() != Some(last) || log.life().flushed.get() < last.vlsn.get();
            if waits || self.is_fed() || following.is_installing() {
                return Ok(false);
            }
            self.came_back(last.vlsn).map_err(Stop::failed)?;
            Ok(true)
        })
    }

    /// The log is back up to this entry, on the disk.
    fn came_back(&self, last: Vlsn) -> Result<(), StateError> {
        self.doubt.lock().patched = None;
        self.reload_slots();
        let from = last.next();
        self.election.state().update(|mut state| {
            state.standing = state.standing.back(from, state.term);
            state
        })
    }
}

#[cfg(test)]
mod patch_tests;

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_valid_copy_is_fetched_when_so_many_told_that_it_is_the_furthest() {
        let doubtful = Standing::Doubtful { from: Vlsn::new(9).unwrap() };
        let b = answer("b", doubtful, at(8, 3), at(5, 1));
        assert_eq!(judge(std::slice::from_ref(&b)), Resolution::Wait, "c may have what was committed");
        let c = answer("c", FULL, at(5, 1), at(5, 1));
        assert_eq!(judge(&[b, c]), Resolution::Fetch(id("b"), None));
    }

    #[test]
    fn the_tail_of_a_term_that_was_overruled_is_not_taken_for_what_was_committed() {
        let later = Some(Position { vlsn: Vlsn::new(8).unwrap(), term: Term::new(4), crc: 9 });
        let stale = Some(Position { vlsn: Vlsn::new(9).unwrap(), term: Term::new(3), crc: 8 });
        let (b, c) = (answer("b", FULL, later, at(5, 1)), answer("c", FULL, stale, at(5, 1)));
        assert_eq!(judge(std::slice::from_ref(&c)), Resolution::Wait);
        assert_eq!(judge(&[b, c]), Resolution::Fetch(id("b"), None));
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

    #[cfg(feature = "planted")]
    #[test]
    fn the_planted_bug_gives_up_what_nobody_has() {
        let damaged =
            Standing::Damaged { from: Vlsn::new(6).unwrap(), to: Vlsn::new(9).unwrap(), open: false };
        let answers = ["b", "c"].map(|name| answer(name, damaged, at(5, 1), at(5, 1)));
        crate::planted::plant(Some(Bug::DamagedSettledBecauseNobodyHasIt));
        let planted = judge_damage(0, &answers);
        crate::planted::plant(None);
        assert_eq!((planted, judge_damage(0, &answers)), (Resolution::Settled, Resolution::Lost));
    }

    fn judge_damage(committed: u64, answers: &[(NodeId, SurveyReply)]) -> Resolution {
        let members = Members::new(["a", "b", "c"].map(|name| Member::electable(id(name))).into()).unwrap();
        let answers = answers.iter().cloned().collect();
        resolve_damage(&members, &id("a"), at(5, 1), Vlsn::new(committed), &answers)
    }

    #[test]
    fn without_proof_the_furthest_of_enough_voters_is_believed() {
        let b = answer("b", FULL, at(8, 3), at(5, 1));
        let c = answer("c", FULL, at(9, 4), at(5, 1));
        assert_eq!(
            judge_damage(0, std::slice::from_ref(&b)),
            Resolution::Wait,
            "c may have what was committed"
        );
        assert_eq!(judge_damage(0, &[b.clone(), c]), Resolution::Fetch(id("c"), None));
        let damaged =
            Standing::Damaged { from: Vlsn::new(7).unwrap(), to: Vlsn::new(9).unwrap(), open: false };
        let partly = answer("c", damaged, at(6, 1), at(5, 1));
        let bounded = Resolution::Fetch(id("b"), Vlsn::new(6));
        assert_eq!(judge_damage(0, &[b.clone(), partly]), bounded, "c tells no further");
        let damaged =
            Standing::Damaged { from: Vlsn::new(3).unwrap(), to: Vlsn::new(9).unwrap(), open: false };
        let short = answer("c", damaged, at(2, 1), None);
        assert_eq!(judge_damage(0, &[b, short]), Resolution::Wait, "c can't tell yet");
    }

    #[test]
    fn damage_is_never_settled_because_nobody_has_it() {
        let damaged =
            Standing::Damaged { from: Vlsn::new(6).unwrap(), to: Vlsn::new(9).unwrap(), open: false };
        let b = answer("b", damaged, at(5, 1), at(5, 1));
        let c = answer("c", damaged, at(5, 1), at(5, 1));
        assert_eq!(judge_damage(0, std::slice::from_ref(&b)), Resolution::Wait);
        assert_eq!(judge_damage(0, &[b, c]), Resolution::Lost);
        let (b, c) = (answer("b", FULL, at(5, 1), at(5, 1)), answer("c", FULL, at(4, 1), None));
        assert_eq!(
            judge_damage(5, &[b.clone(), c.clone()]),
            Resolution::Settled,
            "a majority surely lacks it"
        );
        assert_eq!(judge_damage(6, &[b, c]), Resolution::Lost, "it is known to be committed");
    }

    /// Of a group of a, b and the arbiter w: what follows on what b and w say to a, in doubt and damaged behind VLSN 5.
    fn judge_with_arbiter(b: SurveyReply, mark: Option<Position>) -> (Resolution, Resolution) {
        let arbiter = Member { role: Role::Arbiter, ..Member::electable(id("w")) };
        let members = vec![Member::electable(id("a")), Member::electable(id("b")), arbiter];
        let members = Members::new(members).unwrap();
        let answers = [(id("b"), b), answer("w", FULL, mark, None)].into_iter().collect();
        let (own, after) = (id("a"), at(5, 1));
        let damaged = resolve_damage(&members, &own, after, Vlsn::new(5), &answers);
        (resolve(&members, &own, after, &answers), damaged)
    }

    #[test]
    fn an_arbiter_has_no_log_that_could_lack_what_it_vouched_for() {
        // What a and w committed without b was damaged at a, and is not given up because w has no entries.
        let short = answer("b", FULL, at(5, 1), at(5, 1)).1;
        let (_, damaged) = judge_with_arbiter(short.clone(), at(9, 0));
        assert_eq!(damaged, Resolution::Lost);
        // If w vouched for nothing behind it, it was never committed.
        let (doubt, damaged) = judge_with_arbiter(short, at(5, 0));
        assert_eq!((doubt, damaged), (Resolution::Settled, Resolution::Settled));
        // What w vouched for is where the log is as long, and need not be where it is shorter.
        let long = answer("b", FULL, at(9, 9), at(5, 1)).1;
        let (doubt, damaged) = judge_with_arbiter(long, at(9, 0));
        let fetch = Resolution::Fetch(id("b"), None);
        assert_eq!((doubt, damaged), (fetch.clone(), fetch));
        let part = answer("b", FULL, at(8, 9), at(5, 1)).1;
        assert_eq!(judge_with_arbiter(part, at(9, 0)).1, Resolution::Wait);
    }

    #[test]
    fn arbiters_do_not_settle_a_doubt_about_what_they_vouched_for() {
        let arbiters = ["v", "w"].map(|name| Member { role: Role::Arbiter, ..Member::electable(id(name)) });
        let members = ["a", "b", "c"].map(|name| Member::electable(id(name)));
        let members = Members::new(members.into_iter().chain(arbiters).collect()).unwrap();
        let judge = |marks: u64| {
            let c = answer("c", FULL, at(5, 1), at(5, 1));
            let arbiters = ["v", "w"].map(|name| answer(name, FULL, at(marks, 0), None));
            let answers = [c].into_iter().chain(arbiters).collect();
            resolve(&members, &id("a"), at(5, 1), &answers)
        };
        assert_eq!(judge(9), Resolution::Wait, "b may have what the arbiters vouched for");
        assert_eq!(judge(5), Resolution::Settled);
    }
}
