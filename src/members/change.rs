//! One change of membership at a time: the list before, the change, the list after.
//!
//! A majority of the voters before and one of the voters after always share a voter, because no change makes or unmakes
//! more than one.

use crate::address::Address;
use crate::ids::NodeId;
use crate::members::{Admission, BadMembers, Member, Members};

/// A change of the member list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A new node joins, as a learner of the role that it will have.
    Add(Member),
    /// A learner has caught up and counts from now on.
    Promote(NodeId),
    /// A node leaves the group.
    Remove(NodeId),
    /// A node listens at another address.
    Move {
        /// Which.
        node: NodeId,
        /// Where.
        to: Address,
    },
}

/// Why a change can't be made to a list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    /// It is there already.
    #[error("{0} is a member already")]
    Exists(NodeId),
    /// It is not there.
    #[error("{0} is no member of the group")]
    Unknown(NodeId),
    /// It is no learner.
    #[error("{0} is a full member already")]
    Full(NodeId),
    /// The list would be no member list.
    #[error(transparent)]
    Bad(#[from] BadMembers),
}

impl Members {
    /// The list after the change.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn changed(&self, change: &Change) -> Result<Members, ChangeError> {
        let mut list = self.0.clone();
        let place = |id: &NodeId| {
            self.0.iter().position(|member| member.id == *id).ok_or_else(|| ChangeError::Unknown(id.clone()))
        };
        match change {
            Change::Add(member) if self.find(&member.id).is_some() => {
                return Err(ChangeError::Exists(member.id.clone()));
            }
            Change::Add(member) => list.push(Member { admission: Admission::Learner, ..member.clone() }),
            Change::Promote(id) => {
                let at = place(id)?;
                if list[at].admission == Admission::Full {
                    return Err(ChangeError::Full(id.clone()));
                }
                list[at].admission = Admission::Full;
            }
            Change::Remove(id) => {
                list.remove(place(id)?);
            }
            Change::Move { node, to } => list[place(node)?].address = Some(to.clone()),
        }
        Ok(Members::new(list)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::members::Role;

    fn id(at: usize) -> NodeId {
        NodeId::new(["a", "b", "c", "d", "e"][at]).unwrap()
    }

    fn voters(members: &Members) -> BTreeSet<NodeId> {
        members.voters().map(|member| member.id.clone()).collect()
    }

    fn any_change() -> impl Strategy<Value = Change> {
        (0..4, 0..5_usize, 0..3_usize).prop_map(|(what, node, role)| {
            let role = [Role::Electable, Role::Secondary, Role::Arbiter][role];
            match what {
                0 => Change::Add(Member { role, ..Member::electable(id(node)) }),
                1 => Change::Promote(id(node)),
                2 => Change::Remove(id(node)),
                _ => Change::Move { node: id(node), to: Address::Local("x".into()) },
            }
        })
    }

    proptest! {
        #[test]
        fn every_majority_before_meets_every_majority_after(changes in proptest::collection::vec(any_change(), 1..20)) {
            let mut members = Members::new(vec![Member::electable(id(0))]).unwrap();
            for change in changes {
                let Ok(after) = members.changed(&change) else { continue };
                let (old, new) = (voters(&members), voters(&after));
                prop_assert!(old.symmetric_difference(&new).count() <= 1);
                // The two smallest majorities, put as far apart as they go.
                let all = old.union(&new).count();
                prop_assert!(old.len() / 2 + 1 + new.len() / 2 + 1 > all);
                members = after;
            }
        }
    }

    #[test]
    fn a_new_member_is_a_learner_until_it_is_promoted() {
        let alone = Members::new(vec![Member::electable(id(0))]).unwrap();
        let two = alone.changed(&Change::Add(Member::electable(id(1)))).unwrap();
        assert!(!two.is_voter(&id(1)));
        assert_eq!(two.changed(&Change::Add(Member::electable(id(1)))), Err(ChangeError::Exists(id(1))));
        let promoted = two.changed(&Change::Promote(id(1))).unwrap();
        assert!(promoted.is_voter(&id(1)));
        assert_eq!(promoted.changed(&Change::Promote(id(1))), Err(ChangeError::Full(id(1))));
        assert_eq!(promoted.changed(&Change::Remove(id(2))), Err(ChangeError::Unknown(id(2))));
        assert_eq!(alone.changed(&Change::Remove(id(0))), Err(ChangeError::Bad(BadMembers::NoVoter)));
    }
}
