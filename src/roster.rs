//! The voters of one term as its master sees them: who is connected, and what each acknowledged on that connection.

use crate::ids::{NodeId, Vlsn};
use crate::members::{Member, Members, Role};
use crate::planted::{self, Bug};
use crate::policy::{Quorum, Rule};
use crate::progress::Positions;
use crate::quorum::{self, Counts, InsufficientReplicas, Voter};

/// The right of one connection to acknowledge for one voter. A newer connection of the same voter takes it away, and so
/// does a member list in which the voter is none. It names the connection and nobody's place in a list, so it never comes
/// to speak for another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat(u64);

/// What is known of a voter's connection.
#[derive(Clone, Copy, Debug)]
struct Chair {
    /// The connection that speaks for the voter: the one that joined last. 0 if it has left.
    seat: u64,
    /// Whether what it says counts: its directory is known to hold what it acknowledged.
    counts: bool,
    /// What it acknowledged, whether that counts or not.
    acks: Positions,
    /// The latest time of the master's clock that it answered.
    heard: u64,
}

impl Chair {
    const EMPTY: Chair = Chair { seat: 0, counts: false, acks: Positions::NONE, heard: 0 };
}

/// The voters of one term.
#[derive(Clone, Debug)]
pub struct Roster {
    master: Voter,
    others: Vec<Voter>,
    /// For each of `others`, and then of `strays`.
    chairs: Vec<Chair>,
    joined: u64,
    /// Those who count though they are no voters: nobody, but for planted bugs.
    strays: Vec<Voter>,
}

impl Roster {
    /// The voters among the members, of which `master` leads; nobody is connected. A master that is no member any more, as
    /// its removal is yet to be committed, is not counted. `None` if `master` is a member and no voter.
    pub fn new(members: &Members, master: &NodeId) -> Option<Roster> {
        let acks = Some(Positions::NONE);
        let master = match members.find(master) {
            Some(leader) if leader.is_voter() => Voter { acks, ..voter(leader) },
            Some(_) => return None,
            None => Voter { id: master.clone(), counts: Counts::Not, region: String::new(), acks },
        };
        let nobody = Roster { master, others: Vec::new(), chairs: Vec::new(), joined: 0, strays: Vec::new() };
        Some(nobody.with(members))
    }

    /// Another member list is in force. Voters who stay keep what they acknowledged, and their connections their seats;
    /// new ones have nothing yet; those who go, and their seats, count for nothing any more. A master that is no voter is
    /// not counted, though nothing is agreed on beyond its own position.
    pub fn set_members(&mut self, members: &Members) {
        *self = self.with(members);
    }

    fn with(&self, members: &Members) -> Roster {
        let own = members.find(&self.master.id).filter(|member| member.is_voter());
        let master = match own {
            Some(member) => Voter { acks: self.master.acks, ..voter(member) },
            None => Voter { counts: Counts::Not, ..self.master.clone() },
        };
        let mut roster = Roster {
            master,
            others: Vec::new(),
            chairs: Vec::new(),
            joined: self.joined,
            strays: Vec::new(),
        };
        for member in members.voters().filter(|member| member.id != self.master.id) {
            roster.others.push(Voter { acks: None, ..voter(member) });
            roster.chairs.push(self.chair_of(&member.id));
        }
        self.keep_strays(&mut roster, members);
        for place in 0..roster.chairs.len() {
            roster.note(place);
        }
        roster
    }

    /// Under [`Bug::LearnerCounted`] and [`Bug::RemovedNodeCounted`] those who must not count keep a chair.
    fn keep_strays(&self, roster: &mut Roster, members: &Members) {
        if planted::active(Bug::LearnerCounted) {
            let learners = members.iter().filter(|member| member.role.is_voter() && !member.is_voter());
            roster.strays.extend(learners.map(voter));
        }
        if planted::active(Bug::RemovedNodeCounted) {
            let gone = self.others.iter().chain(&self.strays).filter(|old| members.find(&old.id).is_none());
            roster.strays.extend(gone.cloned());
        }
        roster.chairs.extend(roster.strays.iter().map(|stray| self.chair_of(&stray.id)));
    }

    fn chair_of(&self, id: &NodeId) -> Chair {
        self.place_of(id).map_or(Chair::EMPTY, |place| self.chairs[place])
    }

    fn place_of(&self, id: &NodeId) -> Option<usize> {
        self.others.iter().chain(&self.strays).position(|voter| voter.id == *id)
    }

    /// Takes a connection of this node, before its first ack; nothing that an earlier connection of it acknowledged
    /// counts any more, nor does what this one will, unless it `counts`: until [`admit`](Roster::admit) says so. `None` if
    /// the node is no voter or is the master: its acks count for nothing.
    pub fn join(&mut self, id: &NodeId, counts: bool) -> Option<Seat> {
        let place = self.place_of(id)?;
        self.joined += 1;
        let kept = planted::active(Bug::AcksAfterRollbackCount);
        let acks = if kept { self.chairs[place].acks } else { Positions::NONE };
        self.chairs[place] = Chair { seat: self.joined, counts, acks, heard: 0 };
        self.note(place);
        Some(Seat(self.joined))
    }

    /// The connection's node has come to hold what it acknowledged, durably: what it says counts from now on. `false` if
    /// that is not new.
    pub fn admit(&mut self, seat: Seat) -> bool {
        let Some(place) = self.seated(seat).filter(|place| !self.chairs[*place].counts) else { return false };
        self.chairs[place].counts = true;
        self.note(place);
        true
    }

    /// Takes an ack. `false` if the seat belongs to a connection that was superseded or left, or to no voter any more:
    /// the ack counts for nothing.
    pub fn acknowledge(&mut self, seat: Seat, positions: Positions) -> bool {
        let Some(place) = self.seated(seat) else { return false };
        self.chairs[place].acks = self.chairs[place].acks.max(positions);
        self.note(place);
        true
    }

    /// Notes that the connection answered what the master sent at this time of its clock. `false` if the seat is nobody's.
    pub fn heard(&mut self, seat: Seat, clock: u64) -> bool {
        let Some(place) = self.seated(seat) else { return false };
        self.chairs[place].heard = self.chairs[place].heard.max(clock);
        true
    }

    /// Ends a connection. Nothing happens if it was superseded: the newer one stays.
    pub fn leave(&mut self, seat: Seat) {
        if let Some(place) = self.seated(seat) {
            self.chairs[place] = Chair { acks: self.chairs[place].acks, ..Chair::EMPTY };
            self.note(place);
        }
    }

    /// Notes how far the master itself has come. Callers need no order among themselves: the highest counts.
    pub fn master_at(&mut self, positions: Positions) {
        self.master.acks = self.master.acks.map(|before| before.max(positions));
    }

    /// The highest VLSN from `term_start` on that the rule is satisfied for.
    pub fn agreed(&self, rule: Rule, term_start: Vlsn) -> Option<Vlsn> {
        if !self.strays.is_empty() {
            return quorum::agreed_in_term(rule, &self.master, &self.with_strays_counted(rule), term_start);
        }
        quorum::agreed_in_term(rule, &self.master, &self.others, term_start)
    }

    /// The planted bugs: a stray counts in place of a voter that is further behind.
    fn with_strays_counted(&self, rule: Rule) -> Vec<Voter> {
        let mut others = self.others.clone();
        for stray in &self.strays {
            let lowest = others.iter_mut().min_by_key(|voter| voter.at(rule.level));
            if let Some(lowest) = lowest.filter(|lowest| lowest.at(rule.level) < stray.at(rule.level)) {
                *lowest = stray.clone();
            }
        }
        others
    }

    /// The latest time of the master's clock since which a majority is known to have followed it; 0 for none. A master
    /// that makes a majority by itself is in contact with it always: [`alone`](Roster::alone).
    pub fn contact(&self) -> u64 {
        let mut buffer = [0_u64; Members::MAX];
        let heard = &mut buffer[..self.others.len()];
        for (slot, chair) in heard.iter_mut().zip(&self.chairs) {
            *slot = if chair.counts { chair.heard } else { 0 };
        }
        heard.sort_unstable_by_key(|clock| std::cmp::Reverse(*clock));
        let others_needed = self.needed(Quorum::Majority) - usize::from(self.master.is_counted());
        others_needed.checked_sub(1).and_then(|last| heard.get(last).copied()).unwrap_or(0)
    }

    /// Whether the master is a majority of the voters by itself.
    pub fn alone(&self) -> bool {
        self.master.is_counted() && self.needed(Quorum::Majority) == 1
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
        let has = |voter: &&Voter| voter.at(rule.level) >= vlsn.get();
        let names = self.voters().filter(has).map(|voter| voter.id.clone()).collect();
        (names, self.needed(rule.quorum))
    }

    /// How many voters this quorum needs.
    pub fn needed(&self, quorum: Quorum) -> usize {
        quorum::needed(quorum, &self.master, &self.others)
    }

    /// All voters, the master first, if it is one.
    pub fn voters(&self) -> impl Iterator<Item = &Voter> {
        std::iter::once(&self.master).filter(|master| master.is_counted()).chain(&self.others)
    }

    /// Who is where, as text.
    pub fn describe(&self, rule: Rule) -> String {
        quorum::Describe { rule, master: &self.master, others: &self.others }.to_string()
    }

    fn seated(&self, seat: Seat) -> Option<usize> {
        self.chairs.iter().position(|chair| chair.seat == seat.0)
    }

    /// What counts of a voter follows what is known of it.
    fn note(&mut self, place: usize) {
        let chair = self.chairs[place];
        let behind = place.checked_sub(self.others.len());
        let voter = behind.map_or_else(|| self.others.get_mut(place), |place| self.strays.get_mut(place));
        if let Some(voter) = voter {
            voter.acks = (chair.seat != 0 && chair.counts).then_some(chair.acks);
        }
    }
}

/// The voter that this member is, with nothing acknowledged.
fn voter(member: &Member) -> Voter {
    let counts = if member.role == Role::Arbiter { Counts::DurableOnly } else { Counts::Fully };
    Voter { id: member.id.clone(), counts, region: member.region.clone(), acks: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::number;
    use crate::members::{Admission, Change};
    use crate::policy::Level;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn members() -> Members {
        let secondary = Member { role: Role::Secondary, ..Member::electable(id("s")) };
        let learner = Member { admission: Admission::Learner, ..Member::electable(id("l")) };
        let mut list: Vec<Member> = ["a", "b", "c"].map(|name| Member::electable(id(name))).into();
        list.extend([secondary, learner]);
        Members::new(list).unwrap()
    }

    fn changed(changes: &[Change]) -> Members {
        changes.iter().fold(members(), |members, change| members.changed(change).unwrap())
    }

    fn roster() -> Roster {
        let mut roster = Roster::new(&members(), &id("a")).unwrap();
        roster.master_at(durable(9));
        roster
    }

    fn durable(at: u64) -> Positions {
        Positions { received: Vlsn::new(at), durable: Vlsn::new(at), ..Positions::NONE }
    }

    fn join(roster: &mut Roster, name: &str) -> Seat {
        roster.join(&id(name), true).unwrap()
    }

    fn committed(roster: &Roster) -> u64 {
        number(roster.agreed(Rule::COMMITTED, Vlsn::FIRST))
    }

    #[test]
    fn acks_of_an_ended_connection_count_for_nothing() {
        let mut roster = roster();
        let seat = join(&mut roster, "b");
        assert!(roster.acknowledge(seat, durable(5)));
        assert_eq!(committed(&roster), 5);
        roster.leave(seat);
        assert_eq!(committed(&roster), 0);
        assert!(!roster.acknowledge(seat, durable(6)));
        join(&mut roster, "b");
        assert_eq!(committed(&roster), 0, "a new connection starts with nothing");
    }

    #[test]
    fn the_end_of_an_old_connection_does_not_end_the_newer_one() {
        let mut roster = roster();
        let old = join(&mut roster, "b");
        let new = join(&mut roster, "b");
        assert!(roster.acknowledge(new, durable(4)));
        assert!(!roster.acknowledge(old, durable(9)));
        roster.leave(old);
        assert_eq!(committed(&roster), 4);
    }

    #[test]
    fn only_other_voters_have_a_seat() {
        let mut roster = roster();
        for name in ["a", "s", "l", "stranger"] {
            assert_eq!(roster.join(&id(name), true), None, "{name}");
        }
        assert_eq!(roster.voters().count(), 3);
    }

    #[test]
    fn what_a_doubtful_node_acknowledges_counts_when_its_standing_does() {
        let mut roster = roster();
        let seat = roster.join(&id("b"), false).unwrap();
        assert!(roster.acknowledge(seat, durable(5)));
        assert!(roster.heard(seat, 70));
        assert_eq!((committed(&roster), roster.contact()), (0, 0));
        assert_eq!(roster.needed(Quorum::Majority), 2, "it is one of those of whom a majority is needed");
        let refused = roster.reachable(Rule::COMMITTED).unwrap_err();
        assert_eq!((refused.needed, refused.connected), (2, 1));
        assert!(roster.admit(seat));
        assert!(!roster.admit(seat));
        assert_eq!((committed(&roster), roster.contact()), (5, 70));
    }

    #[test]
    fn voters_who_stay_keep_their_acks_and_their_seats() {
        let mut roster = roster();
        let (b, c) = (join(&mut roster, "b"), join(&mut roster, "c"));
        roster.acknowledge(b, durable(5));
        roster.acknowledge(c, durable(4));
        // b goes, and c takes its place in the list.
        roster.set_members(&changed(&[Change::Remove(id("b")), Change::Promote(id("l"))]));
        assert_eq!(committed(&roster), 4);
        assert!(!roster.acknowledge(b, durable(9)), "it is not c that this seat speaks for");
        assert!(!roster.heard(b, 1));
        roster.leave(b);
        assert_eq!(committed(&roster), 4);
        assert!(roster.acknowledge(c, durable(6)));
        assert_eq!(committed(&roster), 6);
        let l = join(&mut roster, "l");
        assert_eq!(roster.who_has(Vlsn::FIRST, Rule::COMMITTED), (vec![id("a"), id("c")], 2));
        assert!(roster.acknowledge(l, durable(8)));
        assert_eq!(committed(&roster), 8);
        // Whoever comes back has to join again.
        roster.set_members(&members());
        assert!(!roster.acknowledge(b, durable(9)));
        assert!(!roster.acknowledge(l, durable(9)));
        assert_eq!(committed(&roster), 6);
    }

    #[test]
    fn a_master_that_removed_itself_is_not_counted_and_bounds_what_is_agreed() {
        let mut roster = roster();
        let (b, c) = (join(&mut roster, "b"), join(&mut roster, "c"));
        roster.acknowledge(b, durable(20));
        roster.heard(b, 30);
        roster.set_members(&changed(&[Change::Remove(id("a"))]));
        assert_eq!(committed(&roster), 0, "two of b and c");
        assert_eq!(roster.contact(), 0);
        roster.acknowledge(c, durable(15));
        roster.heard(c, 20);
        assert_eq!(committed(&roster), 9, "the master has no more");
        assert_eq!(roster.contact(), 20);
        roster.master_at(durable(30));
        assert_eq!(committed(&roster), 15);
        assert_eq!(roster.voters().count(), 2);
    }

    #[test]
    fn contact_is_the_time_that_a_majority_has_answered() {
        let mut roster = roster();
        roster.set_members(&changed(&[Change::Promote(id("l")), Change::Add(Member::electable(id("e")))]));
        let (b, c, l) = (join(&mut roster, "b"), join(&mut roster, "c"), join(&mut roster, "l"));
        assert_eq!(roster.contact(), 0);
        roster.heard(b, 30);
        assert_eq!(roster.contact(), 0, "two of four are none");
        roster.heard(c, 10);
        assert_eq!(roster.contact(), 10);
        roster.heard(l, 20);
        assert_eq!(roster.contact(), 20);
        roster.leave(b);
        assert_eq!(roster.contact(), 10, "only connections that are up are asked");
        join(&mut roster, "c");
        assert_eq!(roster.contact(), 0);
        assert!(!roster.alone());
    }

    #[test]
    fn a_master_alone_is_a_majority_though_others_learn() {
        let learner = Member { admission: Admission::Learner, ..Member::electable(id("b")) };
        let list = Members::new(vec![Member::electable(id("a")), learner]).unwrap();
        let mut roster = Roster::new(&list, &id("a")).unwrap();
        assert!(roster.alone());
        roster.set_members(&list.changed(&Change::Promote(id("b"))).unwrap());
        assert!(!roster.alone());
        roster.set_members(
            &list.changed(&Change::Promote(id("b"))).unwrap().changed(&Change::Remove(id("a"))).unwrap(),
        );
        assert!(!roster.alone(), "b is");
    }

    #[test]
    fn an_arbiter_helps_to_make_durable_and_no_more() {
        let list = [("a", Role::Electable), ("b", Role::Electable), ("w", Role::Arbiter)];
        let list = list.map(|(name, role)| Member { role, ..Member::electable(id(name)) });
        let mut roster = Roster::new(&Members::new(list.into()).unwrap(), &id("a")).unwrap();
        roster.master_at(durable(9));
        let seat = join(&mut roster, "w");
        roster.acknowledge(seat, durable(7));
        assert_eq!(committed(&roster), 7);
        let received = Rule { quorum: Quorum::Majority, level: Level::Received };
        assert_eq!(roster.agreed(received, Vlsn::FIRST), None);
        assert_eq!(roster.who_has(Vlsn::FIRST, received).0, [id("a")]);
        assert!(roster.reachable(received).is_err());
        roster.heard(seat, 5);
        assert_eq!(roster.contact(), 5);
    }

    #[cfg(feature = "planted")]
    mod planted_bugs {
        use super::*;

        fn under(bug: Bug, roster: &mut Roster, work: impl FnOnce(&mut Roster)) {
            planted::plant(Some(bug));
            work(roster);
            planted::plant(None);
        }

        #[test]
        fn acks_of_an_earlier_connection_stand() {
            under(Bug::AcksAfterRollbackCount, &mut roster(), |roster| {
                let seat = join(roster, "b");
                roster.acknowledge(seat, durable(5));
                roster.leave(seat);
                assert_eq!(committed(roster), 0);
                join(roster, "b");
                assert_eq!(committed(roster), 5);
            });
        }

        #[test]
        fn a_learner_counts_in_place_of_a_voter() {
            under(Bug::LearnerCounted, &mut roster(), |roster| {
                roster.set_members(&members());
                let seat = join(roster, "l");
                roster.acknowledge(seat, durable(5));
                assert_eq!(committed(roster), 5);
                assert_eq!(roster.needed(Quorum::Majority), 2);
            });
        }

        #[test]
        fn a_removed_node_counts_in_place_of_a_voter() {
            under(Bug::RemovedNodeCounted, &mut roster(), |roster| {
                let seat = join(roster, "b");
                roster.set_members(&changed(&[Change::Promote(id("l")), Change::Remove(id("b"))]));
                assert!(roster.acknowledge(seat, durable(5)));
                assert_eq!(committed(roster), 5);
            });
        }
    }
}
