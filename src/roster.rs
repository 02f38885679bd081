//! The voters of one term as its master sees them: who is connected, and what each acknowledged on that connection.

use crate::ids::{NodeId, Vlsn, number};
use crate::members::Members;
use crate::policy::Rule;
use crate::progress::Positions;
use crate::quorum::{self, InsufficientReplicas, Voter};

/// The right of one connection to acknowledge for one voter. A newer connection of the same voter takes it away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    voter: usize,
    connection: u64,
}

/// The voters of one term.
#[derive(Clone, Debug)]
pub struct Roster {
    master: Voter,
    others: Vec<Voter>,
    /// For each of `others`, the connection that speaks for it: the one that joined last.
    connections: Vec<u64>,
    joined: u64,
}

impl Roster {
    /// The voters among the members, of which `master` leads; nobody is connected. `None` if `master` is no voter.
    pub fn new(members: &Members, master: &NodeId) -> Option<Roster> {
        let mut leader = None;
        let mut others = Vec::new();
        for member in members.voters() {
            let voter = Voter { id: member.id.clone(), region: member.region.clone(), acks: None };
            if member.id == *master {
                leader = Some(Voter { acks: Some(Positions::NONE), ..voter });
            } else {
                others.push(voter);
            }
        }
        let connections = vec![0; others.len()];
        leader.map(|master| Roster { master, others, connections, joined: 0 })
    }

    /// Takes a connection of this node, before its first ack; nothing that an earlier connection of it acknowledged
    /// counts any more. `None` if the node is no voter or is the master: its acks count for nothing.
    pub fn join(&mut self, id: &NodeId) -> Option<Seat> {
        let voter = self.others.iter().position(|voter| voter.id == *id)?;
        self.joined += 1;
        self.connections[voter] = self.joined;
        self.others[voter].acks = Some(Positions::NONE);
        Some(Seat { voter, connection: self.joined })
    }

    /// Takes an ack. `false` if the seat belongs to a connection that was superseded or left: the ack counts for nothing.
    pub fn acknowledge(&mut self, seat: Seat, positions: Positions) -> bool {
        match self.seated(seat) {
            Some(voter) => {
                voter.acks = voter.acks.map(|before| before.max(positions));
                voter.acks.is_some()
            }
            None => false,
        }
    }

    /// Ends a connection. Nothing happens if it was superseded: the newer one stays.
    pub fn leave(&mut self, seat: Seat) {
        if let Some(voter) = self.seated(seat) {
            voter.acks = None;
        }
    }

    /// Notes how far the master itself has come. Callers need no order among themselves: the highest counts.
    pub fn master_at(&mut self, positions: Positions) {
        self.master.acks = self.master.acks.map(|before| before.max(positions));
    }

    /// The highest VLSN from `term_start` on that the rule is satisfied for.
    pub fn agreed(&self, rule: Rule, term_start: Vlsn) -> Option<Vlsn> {
        quorum::agreed_in_term(rule, &self.master, &self.others, term_start)
    }

    /// Whether enough voters are connected for the rule.
    ///
    /// # Errors
    /// [`InsufficientReplicas`].
    pub fn reachable(&self, rule: Rule) -> Result<(), InsufficientReplicas> {
        quorum::reachable(rule, &self.master, &self.others)
    }

    /// The connected voters that have this entry at the rule's level, the master first; and how many the rule needs.
    pub fn who_has(&self, vlsn: Vlsn, rule: Rule) -> (Vec<NodeId>, usize) {
        let has = |voter: &&Voter| voter.acks.is_some_and(|acks| number(acks.at(rule.level)) >= vlsn.get());
        let names = self.voters().filter(has).map(|voter| voter.id.clone()).collect();
        (names, quorum::needed(rule.quorum, self.others.len() + 1))
    }

    /// All voters, the master first.
    pub fn voters(&self) -> impl Iterator<Item = &Voter> {
        std::iter::once(&self.master).chain(&self.others)
    }

    /// Who is where, as text.
    pub fn describe(&self, rule: Rule) -> String {
        quorum::Describe { rule, master: &self.master, others: &self.others }.to_string()
    }

    fn seated(&mut self, seat: Seat) -> Option<&mut Voter> {
        let current = self.connections.get(seat.voter) == Some(&seat.connection);
        self.others.get_mut(seat.voter).filter(|voter| current && voter.acks.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::members::{Member, Role};

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn roster() -> Roster {
        let secondary = Member { role: Role::Secondary, ..Member::electable(id("s")) };
        let mut list: Vec<Member> = ["a", "b", "c"].map(|name| Member::electable(id(name))).into();
        list.push(secondary);
        let mut roster = Roster::new(&Members::new(list).unwrap(), &id("a")).unwrap();
        roster.master_at(durable(9));
        roster
    }

    fn durable(at: u64) -> Positions {
        Positions { received: Vlsn::new(at), durable: Vlsn::new(at), ..Positions::NONE }
    }

    fn committed(roster: &Roster) -> u64 {
        number(roster.agreed(Rule::COMMITTED, Vlsn::FIRST))
    }

    #[test]
    fn acks_of_an_ended_connection_count_for_nothing() {
        let mut roster = roster();
        let seat = roster.join(&id("b")).unwrap();
        assert!(roster.acknowledge(seat, durable(5)));
        assert_eq!(committed(&roster), 5);
        roster.leave(seat);
        assert_eq!(committed(&roster), 0);
        assert!(!roster.acknowledge(seat, durable(6)));
        assert!(roster.join(&id("b")).is_some());
        assert_eq!(committed(&roster), 0, "a new connection starts with nothing");
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_end_the_newer_one() {
        let mut roster = roster();
        let old = roster.join(&id("b")).unwrap();
        let new = roster.join(&id("b")).unwrap();
        assert!(roster.acknowledge(new, durable(4)));
        assert!(!roster.acknowledge(old, durable(9)));
        roster.leave(old);
        assert_eq!(committed(&roster), 4);
    }

    #[test]
    fn only_other_voters_have_a_seat() {
        let mut roster = roster();
        for name in ["a", "s", "stranger"] {
            assert_eq!(roster.join(&id(name)), None, "{name}");
        }
        assert_eq!(roster.voters().count(), 3);
    }
}
