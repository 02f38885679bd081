//! Votes: what a node may promise, and whom.
//!
//! Raft's rules on our log (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, chapters 3, 4 and 9.6): one vote in
//! a term, promised durably before it is told; only for a candidate whose log ends no earlier than the voter's, compared
//! by the last entry's term and then by its VLSN, and by nothing else; a round of pre-votes first, so that a node that
//! comes back disturbs nobody; and none while a master is heard.

use std::time::Duration;

use crate::clock::Deadline;
use crate::ids::{GroupId, LogEnd, NodeId, Term};
use crate::members::Standing;
use crate::planted::{Bug, active};
use crate::wire::message::{Round, Vote, WhyNot};

/// Half of all terms: a change of master every second takes 68 years to get there. A higher one is damage or malice.
pub const HIGHEST_TERM: Term = Term::new(u32::MAX / 2);

/// What a voter has durably promised.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Promise {
    /// It takes part in no earlier term.
    pub term: Term,
    /// Whom it voted for in this one.
    pub vote: Option<NodeId>,
}

/// Whom a voter hears, and when it last did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The master.
    pub master: NodeId,
    /// When it was last heard.
    pub at: Deadline,
}

/// What a voter knows when it is asked.
#[derive(Clone, Debug)]
pub struct Voter<'a> {
    /// Its group.
    pub group: GroupId,
    /// What it promised.
    pub promise: &'a Promise,
    /// Where its own log ends.
    pub last: LogEnd,
    /// Whether its directory holds what it acknowledged.
    pub standing: Standing,
    /// Whether its disk and engine work.
    pub able: bool,
    /// The master that it hears, or the one that it is, if a majority follows it.
    pub heard: Option<&'a Heard>,
    /// When it opened.
    pub started: Deadline,
    /// The present.
    pub now: Deadline,
    /// The shortest election timeout.
    pub min_timeout: Duration,
}

/// The answer to a candidate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The vote is given. What is promised has to be durable before it is told; a pre-vote promises nothing.
    Granted(Option<Promise>),
    /// It is not given.
    Refused(WhyNot),
}

/// Judges a candidate that asks for a vote in `term`. A refusal promises nothing: a candidate that can't win must not
/// be able to drive the group's term up.
pub fn judge(voter: &Voter<'_>, term: Term, asked: &Vote) -> Answer {
    match refusal(voter, term, asked) {
        Some(why) => Answer::Refused(why),
        None if asked.round == Round::Pre => Answer::Granted(None),
        None => Answer::Granted(Some(Promise { term, vote: Some(asked.candidate.clone()) })),
    }
}

fn refusal(voter: &Voter<'_>, term: Term, asked: &Vote) -> Option<WhyNot> {
    let promise = voter.promise;
    if asked.group != voter.group {
        return Some(WhyNot::WrongGroup);
    }
    if term > HIGHEST_TERM {
        return Some(WhyNot::AbsurdTerm);
    }
    if !voter.able {
        return Some(WhyNot::Failed);
    }
    if term < promise.term {
        return Some(WhyNot::OldTerm);
    }
    if !voter.standing.votes_in(term) && !active(Bug::WipedNodeVotes) {
        return Some(WhyNot::NotCaughtUp);
    }
    if asked.last < voter.last && !(active(Bug::VoteComparesVlsnOnly) && asked.last.vlsn >= voter.last.vlsn) {
        return Some(WhyNot::LogBehind);
    }
    if term == promise.term {
        match &promise.vote {
            Some(vote) if *vote == asked.candidate => {}
            _ if active(Bug::SecondVoteInATerm) => {}
            Some(_) => return Some(WhyNot::VotedForAnother),
            None => {}
        }
    }
    let bypass_real = active(Bug::VoteWhileMasterIsHeard) && asked.round == Round::Real;
    if let Some(heard) = voter.heard
        && asked.instead_of.as_ref() != Some(&heard.master)
        && voter.now < heard.at + voter.min_timeout
        && !bypass_real
    {
        return Some(WhyNot::MasterAlive);
    }
    // Promises that the node made before it stopped, by word to a master that it no longer remembers, are over by then.
    if asked.instead_of.is_none() && voter.now < voter.started + voter.min_timeout && !bypass_real {
        return Some(WhyNot::JustStarted);
    }
    None
}

#[cfg(test)]
mod tests;
