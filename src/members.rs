//! Who belongs to a group.

use std::fmt;

use crate::ids::NodeId;

/// What a node is to its group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Holds data, votes, may become master.
    Electable,
    /// Holds data; its acks count for no quorum.
    Secondary,
}

impl Role {
    /// Whether the node's acknowledgements count.
    pub const fn is_voter(self) -> bool {
        matches!(self, Role::Electable)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Electable => "electable",
            Role::Secondary => "secondary",
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
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::CatchingUp => "catching-up",
            Health::Lagging => "lagging",
            Health::Error => "error",
        })
    }
}

/// One node of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub id: NodeId,
    /// What it is to the group.
    pub role: Role,
    /// Where it stands, for region-aware quorums: any text of up to 64 bytes; empty if regions are not used.
    pub region: String,
}

impl Member {
    /// An electable member in no region.
    pub fn electable(id: NodeId) -> Member {
        Member { id, role: Role::Electable, region: String::new() }
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
        }
        if !list.iter().any(|member| member.role.is_voter()) {
            return Err(BadMembers::NoVoter);
        }
        Ok(Members(list))
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
        self.0.iter().filter(|member| member.role.is_voter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
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
