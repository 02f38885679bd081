//! What a writer asks for, and what it is told: acknowledgement levels, policies, outcomes, tokens.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::ids::{GroupId, Term, Vlsn};

/// How far an entry has come on a node, in rising order; each level includes the ones before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// In the node's log and visible to its readers: survives the death of the process.
    Received,
    /// On the node's disk: survives loss of power.
    Durable,
    /// Handed to the node's engine, and visible there.
    Applied,
    /// Durable in the node's engine.
    Checkpointed,
}

/// Which voters have to have an entry. The master is a voter and counts as one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Quorum {
    /// The master and this many other voters.
    Acks(u8),
    /// More than half of all voters.
    Majority,
    /// All voters, connected or not.
    All,
    /// More than half of all voters, and voters in at least this many different regions.
    Regions(u8),
}

/// How sure a writer wants to be before `commit` returns. Chosen per append.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Do not wait: the outcome is `Acked` at once.
    Async,
    /// Wait for this many other voters, but not longer than the timeout: then the outcome is `Degraded`, and until the
    /// replicas have caught up further writers do not wait at all.
    SemiSync {
        /// How many voters other than the master.
        acks: u8,
        /// What they have to have done.
        level: Level,
        /// How long to wait for them.
        timeout: Duration,
    },
    /// Wait for the quorum; a wait that ends first is an error that says what is known.
    Sync {
        /// Who has to have the entry.
        quorum: Quorum,
        /// What they have to have done.
        level: Level,
    },
}

impl Policy {
    /// Durable on a majority: the entry survives the loss of any minority. The default for data that matters.
    pub const MAJORITY: Policy = Policy::Sync { quorum: Quorum::Majority, level: Level::Durable };

    /// The rule by which this policy counts acknowledgements; `None` if it waits for nobody.
    pub fn rule(self) -> Option<Rule> {
        match self {
            Policy::Async => None,
            Policy::SemiSync { acks, level, .. } => Some(Rule { quorum: Quorum::Acks(acks), level }),
            Policy::Sync { quorum, level } => Some(Rule { quorum, level }),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Async => f.write_str("async"),
            Policy::SemiSync { acks, level, timeout } => {
                write!(f, "semi-sync {acks} {level} {}ms", timeout.as_millis())
            }
            Policy::Sync { quorum, level } => write!(f, "sync {quorum} {level}"),
        }
    }
}

/// The part of a policy that decides which position counts: policies with equal rules share one gate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rule {
    /// Who has to have the entry.
    pub quorum: Quorum,
    /// What they have to have done.
    pub level: Level,
}

impl Rule {
    /// The rule of the group's `committed` position: durable on a majority.
    pub const COMMITTED: Rule = Rule { quorum: Quorum::Majority, level: Level::Durable };
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Received => "received",
            Level::Durable => "durable",
            Level::Applied => "applied",
            Level::Checkpointed => "checkpointed",
        })
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Quorum::Acks(n) => write!(f, "{n} acks"),
            Quorum::Majority => f.write_str("majority"),
            Quorum::All => f.write_str("all"),
            Quorum::Regions(n) => write!(f, "majority in {n} regions"),
        }
    }
}

/// What became of an entry. Never better than the truth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durable on a majority of the voters: no later master lacks it.
    Committed,
    /// The policy is satisfied, but it is weaker than `Committed`: the entry may still be lost with the master.
    Acked,
    /// The semi-sync timeout passed, or had passed before and replicas have not caught up: the entry is in the
    /// master's log only, as far as is known.
    Degraded,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Committed => "committed",
            Outcome::Acked => "acked",
            Outcome::Degraded => "degraded",
        })
    }
}

/// Names one entry for ever: which group, which term appended it, at which place. Answers later, on any node of the
/// group, whether the entry was committed or rolled back.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token {
    /// The group.
    pub group: GroupId,
    /// The term in which the entry was appended.
    pub term: Term,
    /// The entry's place.
    pub vlsn: Vlsn,
}

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token has the form GROUP:TERM:VLSN")]
pub struct BadToken;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.group, self.term, self.vlsn)
    }
}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Token, BadToken> {
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(BadToken);
        let group = part()?.parse().map_err(|_| BadToken)?;
        let term = Term::new(part()?.parse().map_err(|_| BadToken)?);
        let vlsn = part()?.parse().ok().and_then(Vlsn::new).ok_or(BadToken)?;
        if parts.next().is_some() {
            return Err(BadToken);
        }
        Ok(Token { group, term, vlsn })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_as_text() {
        let token = Token { group: GroupId::from_bits(7), term: Term::new(3), vlsn: Vlsn::FIRST };
        assert_eq!(token.to_string().parse(), Ok(token));
        for bad in ["", "7:3:1", &format!("{}:3:0", token.group), &format!("{token}:1")] {
            assert_eq!(bad.parse::<Token>(), Err(BadToken), "{bad}");
        }
    }

    #[test]
    fn policies_that_count_alike_share_a_rule() {
        let semi = Policy::SemiSync { acks: 1, level: Level::Durable, timeout: Duration::from_secs(1) };
        let sync = Policy::Sync { quorum: Quorum::Acks(1), level: Level::Durable };
        assert_eq!(semi.rule(), sync.rule());
        assert_eq!(Policy::MAJORITY.rule(), Some(Rule::COMMITTED));
        assert_eq!(Policy::Async.rule(), None);
    }
}
