//! Who belongs to a group.

use std::fmt;

use crate::address::Address;
use crate::ids::{NodeId, Term, Vlsn};

mod change;
mod codec;
mod roll;

pub use change::{Change, ChangeError};
pub use codec::BadMembership;
pub use roll::Roll;

/// What a node is to its group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Holds data, votes, may become master.
    Electable,
    /// Holds data; its acks count for no quorum.
    Secondary,
    /// Votes and acknowledges positions, but holds no data: makes a majority where only two nodes have disks for it.
    Arbiter,
}

impl Role {
    /// Whether a full member of this role votes, and its acknowledgements count.
    pub const fn is_voter(self) -> bool {
        matches!(self, Role::Electable | Role::Arbiter)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Electable => "electable",
            Role::Secondary => "secondary",
            Role::Arbiter => "arbiter",
        })
    }
}

/// How a node fares.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Health {
    /// At the tip of the log.
    Healthy,
    /// A semi-sync master whose replicas missed a timeout and have not caught up.
    Degraded,
    /// Connected, and receiving what it missed.
    CatchingUp,
    /// Connected, but further behind than the configured limit.
    Lagging,
    /// Not connected, or ended with an error.
    Error,
    /// Nobody has the entries any more that it needs next: it waits for a snapshot, or has to be given one by hand.
    NeedsSnapshot,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::CatchingUp => "catching-up",
            Health::Lagging => "lagging",
            Health::Error => "error",
            Health::NeedsSnapshot => "needs-snapshot",
        })
    }
}

/// Whether a directory holds what its node may have promised, and so may vote and be counted.
///
/// A node whose directory is new, or damaged past its last mark, may lack entries that it acknowledged before. It stays
/// in the denominator of every quorum, and in no numerator, until it has flushed an entry of the current term that was
/// committed without it; its first vote is in a later term.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    /// The directory was made to join a group, and has not caught up yet.
    Newcomer,
    /// What the log held from here on is not known: a write was lost that may have been acknowledged.
    Doubtful {
        /// The first VLSN in doubt.
        from: Vlsn,
    },
    /// Entries that were durable here were damaged, and have to come from others before it takes part again.
    Damaged {
        /// The first that is not back yet.
        from: Vlsn,
        /// The last that is known to have been here.
        to: Vlsn,
        /// Whether more may have been here than that: then the rest is in doubt once these are back.
        open: bool,
    },
    /// It holds what it acknowledged. It votes in terms after this one.
    Full {
        /// The term in which it came to be so; none for a founder's directory.
        since: Term,
    },
}

impl Standing {
    /// Whether acknowledgements count.
    pub const fn counts(self) -> bool {
        matches!(self, Standing::Full { .. })
    }

    /// The standing of a directory that turns out to be damaged in these entries, and `open` if perhaps behind them too.
    #[must_use]
    pub fn damaged(self, from: Vlsn, to: Vlsn, open: bool) -> Standing {
        match self {
            Standing::Newcomer => Standing::Newcomer,
            // Nobody knows how far its doubt reached.
            Standing::Doubtful { from: before } => {
                Standing::Damaged { from: before.min(from), to, open: true }
            }
            Standing::Damaged { from: before, to: end, open: was } => {
                Standing::Damaged { from: before.min(from), to: end.max(to), open: was || open }
            }
            Standing::Full { .. } => Standing::Damaged { from, to, open },
        }
    }

    /// The standing of a directory that has everything before `from` again, in this term.
    #[must_use]
    pub fn back(self, from: Vlsn, term: Term) -> Standing {
        match self {
            Standing::Newcomer | Standing::Full { .. } => self,
            Standing::Damaged { to, open, .. } if from <= to => Standing::Damaged { from, to, open },
            Standing::Damaged { open: false, .. } => Standing::Full { since: term },
            Standing::Damaged { .. } | Standing::Doubtful { .. } => Standing::Doubtful { from },
        }
    }

    /// Whether it may vote in this term.
    pub fn votes_in(self, term: Term) -> bool {
        matches!(self, Standing::Full { since } if term > since)
    }
}

/// Whether a member counts already.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Admission {
    /// It is fed, and counts for nothing until it has caught up and was promoted.
    Learner,
    /// It counts as its role says.
    Full,
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Admission::Learner => "learner",
            Admission::Full => "full",
        })
    }
}

/// One node of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// What it is to the group, once it counts.
    pub role: Role,
    /// Whether it counts.
    pub admission: Admission,
    /// Where it listens; `None` in a group whose channels are handed over.
    pub address: Option<Address>,
    /// Who is preferred as master among those who may win: the highest. Default 100; 0 leads only while nobody else can.
    pub priority: u8,
    /// Where it stands, for region-aware quorums: any text of up to 64 bytes; empty if regions are not used.
    pub region: String,
}

impl Member {
    /// A full electable member in no region, without an address.
    pub fn electable(id: NodeId) -> Member {
        Member {
            id,
            role: Role::Electable,
            admission: Admission::Full,
            address: None,
            priority: 100,
            region: String::new(),
        }
    }

    /// Whether it votes and its acknowledgements count.
    pub fn is_voter(&self) -> bool {
        self.role.is_voter() && self.admission == Admission::Full
    }
}

/// The members of a group, each name once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Members(Vec<Member>);

/// A list that is no member list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMembers {
    /// A name stands twice.
    #[error("{0} is listed twice")]
    Twice(NodeId),
    /// A region's name is too long.
    #[error("the region of {0} is longer than 64 bytes")]
    Region(NodeId),
    /// An address is too long.
    #[error("the address of {0} is longer than 255 bytes")]
    Address(NodeId),
    /// Nobody can vote.
    #[error("a group needs at least one electable member")]
    NoVoter,
    /// Too many.
    #[error("a group has at most 64 members")]
    TooMany,
}

impl Members {
    /// The longest region name, in bytes.
    pub const MAX_REGION: usize = 64;
    /// The longest address, as text, in bytes.
    pub const MAX_ADDRESS: usize = 255;
    /// The most members.
    pub const MAX: usize = 64;

    /// These members.
    ///
    /// # Errors
    /// [`BadMembers`].
    pub fn new(list: Vec<Member>) -> Result<Members, BadMembers> {
        if list.len() > Self::MAX {
            return Err(BadMembers::TooMany);
        }
        for (at, member) in list.iter().enumerate() {
            if list[..at].iter().any(|other| other.id == member.id) {
                return Err(BadMembers::Twice(member.id.clone()));
            }
            if member.region.len() > Self::MAX_REGION {
                return Err(BadMembers::Region(member.id.clone()));
            }
            if member.address.as_ref().is_some_and(|at| at.to_string().len() > Self::MAX_ADDRESS) {
                return Err(BadMembers::Address(member.id.clone()));
            }
        }
        let can_lead = |member: &Member| member.role == Role::Electable && member.is_voter();
        if !list.iter().any(can_lead) {
            return Err(BadMembers::NoVoter);
        }
        Ok(Members(list))
    }

    /// The list of a node that has yet to learn who belongs to its group: nobody.
    pub fn unknown() -> Members {
        Members(Vec::new())
    }

    /// The member of this name.
    pub fn find(&self, id: &NodeId) -> Option<&Member> {
        self.0.iter().find(|member| member.id == *id)
    }

    /// All of them, in the order in which they were listed.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.0.iter()
    }

    /// Those whose acknowledgements count.
    pub fn voters(&self) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(|member| member.is_voter())
    }

    /// Whether this node votes.
    pub fn is_voter(&self, id: &NodeId) -> bool {
        self.find(id).is_some_and(Member::is_voter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_doubt_that_had_no_end_is_there_again_behind_the_damage() {
        let v = |number| Vlsn::new(number).unwrap();
        let (full, doubtful) = (Standing::Full { since: Term::new(1) }, Standing::Doubtful { from: v(50) });
        let damaged = |from, to, open| Standing::Damaged { from: v(from), to: v(to), open };
        // What was found, and perhaps more than that: of what the directory was before.
        for (before, open, after) in [
            (full, false, damaged(30, 45, false)),
            (full, true, damaged(30, 45, true)),
            (doubtful, false, damaged(30, 45, true)),
            (damaged(40, 60, false), false, damaged(30, 60, false)),
            (damaged(20, 40, true), false, damaged(20, 45, true)),
            (damaged(20, 40, false), true, damaged(20, 45, true)),
            (Standing::Newcomer, true, Standing::Newcomer),
        ] {
            assert_eq!(before.damaged(v(30), v(45), open), after, "{before:?} {open}");
        }
        for (before, after) in [
            (damaged(30, 46, true), damaged(46, 46, true)),
            (damaged(30, 46, false), damaged(46, 46, false)),
            (damaged(30, 45, false), Standing::Full { since: Term::new(7) }),
            (damaged(30, 45, true), Standing::Doubtful { from: v(46) }),
            (doubtful, Standing::Doubtful { from: v(46) }),
            (Standing::Newcomer, Standing::Newcomer),
            (full, full),
        ] {
            assert_eq!(before.back(v(46), Term::new(7)), after, "{before:?}");
        }
    }

    #[test]
    fn a_list_names_everybody_once_and_has_a_voter() {
        let a = Member::electable(id("a"));
        assert_eq!(Members::new(vec![a.clone(), a.clone()]), Err(BadMembers::Twice(id("a"))));
        let secondary = Member { role: Role::Secondary, ..a.clone() };
        assert_eq!(Members::new(vec![secondary]), Err(BadMembers::NoVoter));
        let far = Member { region: "x".repeat(65), ..a.clone() };
        assert_eq!(Members::new(vec![far]), Err(BadMembers::Region(id("a"))));
        assert_eq!(Members::new(vec![a]).map(|m| m.voters().count()), Ok(1));
    }
}
