//! One election of one candidate: who answered what.

use std::collections::BTreeSet;

use crate::ids::{NodeId, Term};
use crate::members::Members;
use crate::planted::{Bug, active};
use crate::wire::message::{Round, VoteReason, VoteReply};

/// A candidacy under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Campaign {
    /// The term asked for.
    pub term: Term,
    /// Whether in earnest.
    pub round: Round,
    /// Names this election: replies to another count for nothing.
    pub election: u64,
    /// Why the node stands.
    pub reason: VoteReason,
    /// The master that asked it to.
    pub instead_of: Option<NodeId>,
    granted: BTreeSet<NodeId>,
}

/// How an election stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tally {
    /// More votes are needed.
    Open,
    /// A majority of the voters gave theirs.
    Won,
}

impl Campaign {
    /// A candidacy that begins with the candidate's own vote.
    pub fn new(
        own: &NodeId,
        term: Term,
        round: Round,
        election: u64,
        reason: VoteReason,
        instead_of: Option<NodeId>,
    ) -> Campaign {
        Campaign { term, round, election, reason, instead_of, granted: BTreeSet::from([own.clone()]) }
    }

    /// Takes a reply. One that answers another election or round, or refuses, changes nothing; one that comes twice
    /// counts once.
    pub fn take(&mut self, reply: &VoteReply) {
        let round_fits = reply.round == self.round || active(Bug::PreVoteTakenForVote);
        if reply.election == self.election && round_fits && reply.why_not.is_none() {
            self.granted.insert(reply.voter.clone());
        }
    }

    /// How it stands among these members: only voters count, and a majority of all of them is needed.
    pub fn tally(&self, members: &Members) -> Tally {
        let voters = members.voters().count();
        let granted = members.voters().filter(|member| self.granted.contains(&member.id)).count();
        if granted > voters / 2 { Tally::Won } else { Tally::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{Admission, Member, Role};
    use crate::wire::message::WhyNot;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn reply(voter: &str, election: u64, round: Round, why_not: Option<WhyNot>) -> VoteReply {
        VoteReply { voter: id(voter), election, round, why_not, master: None }
    }

    #[test]
    fn only_a_majority_of_the_voters_wins_and_each_counts_once() {
        let learner = Member { admission: Admission::Learner, ..Member::electable(id("d")) };
        let secondary = Member { role: Role::Secondary, ..Member::electable(id("s")) };
        let mut list: Vec<Member> = ["a", "b", "c"].map(|name| Member::electable(id(name))).into();
        list.extend([learner, secondary]);
        let members = Members::new(list).unwrap();
        let mut campaign =
            Campaign::new(&id("a"), Term::new(2), Round::Real, 7, VoteReason::PrimaryFailure, None);
        for useless in [
            reply("a", 7, Round::Real, None),
            reply("d", 7, Round::Real, None),
            reply("s", 7, Round::Real, None),
            reply("stranger", 7, Round::Real, None),
            reply("b", 6, Round::Real, None),
            reply("b", 7, Round::Pre, None),
            reply("b", 7, Round::Real, Some(WhyNot::LogBehind)),
        ] {
            campaign.take(&useless);
            assert_eq!(campaign.tally(&members), Tally::Open, "{useless:?}");
        }
        campaign.take(&reply("b", 7, Round::Real, None));
        assert_eq!(campaign.tally(&members), Tally::Won);
    }
}
