//! Quorums: from what each voter acknowledged to the position that a rule is satisfied for.
//!
//! Values in, decision out. The master's own position bounds every result, even when it counts for nothing as it has
//! removed itself: without elections the same node leads again after a crash, and an entry that it lost would be lost for
//! all.

use std::fmt;

use crate::ids::{NodeId, Vlsn, number};
use crate::members::Members;
use crate::planted::{self, Bug};
use crate::policy::{Level, Quorum, Rule};
use crate::progress::Positions;

/// At which levels a node counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counts {
    /// At every level.
    Fully,
    /// At [`Level::Durable`] only: an arbiter holds no data, and what it has of an entry is that it was flushed.
    DurableOnly,
    /// At none, and it is not one of those of whom a majority is needed: a master that is no member any more.
    Not,
}

/// A voter, and what counts of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Voter {
    /// Its name.
    pub id: NodeId,
    /// At which levels it counts.
    pub counts: Counts,
    /// Where it stands. A voter with an empty region adds none.
    pub region: String,
    /// What it acknowledged on its present connection. `None` while nothing of it counts, as it is not connected: it
    /// then still counts among those of whom a majority is needed.
    pub acks: Option<Positions>,
}

impl Voter {
    /// How far it has come at this level, as far as that counts.
    pub fn at(&self, level: Level) -> u64 {
        if self.present_at(level) { self.acks.map_or(0, |acks| number(acks.at(level))) } else { 0 }
    }

    /// Whether it is connected, and may have anything at this level.
    fn present_at(&self, level: Level) -> bool {
        self.acks.is_some() && (self.counts != Counts::DurableOnly || level == Level::Durable)
    }

    /// Whether it is one of those of whom a majority is needed.
    pub fn is_counted(&self) -> bool {
        self.counts != Counts::Not
    }
}

/// How many voters have to have an entry, the master included if it is one. For [`Quorum::Regions`] this is the
/// majority; the regions come on top.
pub fn needed(quorum: Quorum, master: &Voter, others: &[Voter]) -> usize {
    let own = usize::from(master.is_counted());
    let voters = others.len() + own;
    match quorum {
        Quorum::Acks(others) => own + usize::from(others),
        Quorum::Majority | Quorum::Regions(_) => voters / 2 + 1,
        Quorum::All => voters,
    }
}

/// The highest VLSN that the rule is satisfied for; `None` if it is satisfied for no entry.
///
/// # Panics
/// If there are more voters than a group can have members.
pub fn agreed(rule: Rule, master: &Voter, others: &[Voter]) -> Option<Vlsn> {
    let own = own_position(rule.level, master);
    let needed = needed(rule.quorum, master, others);
    let voters = others.len() + usize::from(master.is_counted());
    if needed > voters {
        return None;
    }
    // (position, voter), the master last: at most 64 members, and a master that is none; on the stack.
    let mut buffer = [(0_u64, 0_u8); Members::MAX + 1];
    for (slot, (voter, index)) in buffer.iter_mut().zip(others.iter().zip(0_u8..)) {
        *slot = (voter.at(rule.level), index);
    }
    buffer[others.len()] = (own, u8::MAX);
    let ranked = &mut buffer[..voters];
    ranked.sort_unstable_by_key(|(position, _)| std::cmp::Reverse(*position));
    let reached = match rule.quorum {
        // Nobody else is asked for, by a master that does not count.
        _ if needed == 0 => own,
        // The master and the n best of the others. Below the bound that follows, the master is always among the best.
        Quorum::Acks(_) | Quorum::Majority | Quorum::All => ranked[needed - 1].0,
        Quorum::Regions(regions) => {
            let region_of = |index: u8| others.get(usize::from(index)).unwrap_or(master).region.as_str();
            reached_in_regions(ranked, needed, usize::from(regions), region_of)
        }
    };
    let bounded = reached.min(own);
    debug_assert!(
        planted::active(Bug::MasterNotInQuorum) || bounded <= master.at(rule.level),
        "the master's own position bounds every quorum"
    );
    Vlsn::new(bounded)
}

/// Like [`agreed`], but only entries of the present term count by themselves, the first of which is `term_start`: those
/// of earlier terms are agreed on when one behind them is.
pub fn agreed_in_term(rule: Rule, master: &Voter, others: &[Voter], term_start: Vlsn) -> Option<Vlsn> {
    let any_term = planted::active(Bug::OldTermCommitted);
    agreed(rule, master, others).filter(|vlsn| *vlsn >= term_start || any_term)
}

fn own_position(level: Level, master: &Voter) -> u64 {
    let level = if planted::active(Bug::MasterNotInQuorum) { Level::Received } else { level };
    master.at(level)
}

/// The highest position that `needed` of the ranked voters have reached, who stand in at least `regions` regions.
fn reached_in_regions<'v>(
    ranked: &[(u64, u8)],
    needed: usize,
    regions: usize,
    region_of: impl Fn(u8) -> &'v str,
) -> u64 {
    let mut seen = 0;
    for (at, (position, index)) in ranked.iter().enumerate() {
        seen +=
            usize::from(is_new_region(region_of(*index), ranked[..at].iter().map(|(_, i)| region_of(*i))));
        if at + 1 >= needed && seen >= regions {
            return *position;
        }
    }
    0
}

fn is_new_region<'v>(region: &str, mut before: impl Iterator<Item = &'v str>) -> bool {
    !region.is_empty() && before.all(|other| other != region)
}

/// Too few voters are connected for the policy asked for. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InsufficientReplicas {
    /// The rule that can't be satisfied now.
    pub rule: Rule,
    /// How many voters it needs, the master included.
    pub needed: usize,
    /// How many are connected, the master included.
    pub connected: usize,
    /// In how many regions these stand.
    pub regions: usize,
}

impl fmt::Display for InsufficientReplicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nothing was written: {} {} needs {} voters with the master, and {} are connected",
            self.rule.quorum, self.rule.level, self.needed, self.connected
        )?;
        match self.rule.quorum {
            Quorum::Regions(_) => write!(f, ", in {} regions", self.regions),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for InsufficientReplicas {}

/// The first gate: whether enough voters are connected for the rule to be satisfied at all.
///
/// # Errors
/// [`InsufficientReplicas`].
pub fn reachable(rule: Rule, master: &Voter, others: &[Voter]) -> Result<(), InsufficientReplicas> {
    let all = || std::iter::once(master).filter(|master| master.is_counted()).chain(others);
    let present = || all().filter(|voter| voter.present_at(rule.level));
    let connected = present().count();
    let regions = present()
        .enumerate()
        .filter(|(at, voter)| is_new_region(&voter.region, present().take(*at).map(|v| v.region.as_str())))
        .count();
    let needed = needed(rule.quorum, master, others);
    let wanted_regions = match rule.quorum {
        Quorum::Regions(wanted) => usize::from(wanted),
        Quorum::Acks(_) | Quorum::Majority | Quorum::All => 0,
    };
    if connected >= needed && regions >= wanted_regions {
        Ok(())
    } else {
        Err(InsufficientReplicas { rule, needed, connected, regions })
    }
}

/// Who is where, and what they agree on: one line for each voter, the furthest first.
#[derive(Clone, Copy, Debug)]
pub struct Describe<'a> {
    /// The rule to describe.
    pub rule: Rule,
    /// The master.
    pub master: &'a Voter,
    /// The other voters.
    pub others: &'a [Voter],
}

impl fmt::Display for Describe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WIDTH: u64 = 24;
        let Rule { quorum, level } = self.rule;
        writeln!(f, "{quorum} {level}: {}", number(agreed(self.rule, self.master, self.others)))?;
        let mut voters: Vec<&Voter> = std::iter::once(self.master).chain(self.others).collect();
        voters.sort_by_key(|voter| std::cmp::Reverse(voter.at(level)));
        let tip = voters.iter().map(|voter| voter.at(level)).max().unwrap_or(0);
        let low = voters.iter().filter(|v| v.present_at(level)).map(|v| v.at(level)).min().unwrap_or(0);
        for voter in voters {
            let mark = if voter.id == self.master.id { '*' } else { ' ' };
            match voter.acks {
                Some(_) if !voter.present_at(level) => {
                    writeln!(f, "{mark} {:<12} - does not count when {level}", voter.id)?;
                }
                None => writeln!(f, "{mark} {:<12} ? not connected", voter.id)?,
                Some(_) => {
                    let at = voter.at(level);
                    // Scaled in 128 bits: a position times the width may not fit in 64.
                    let bar = u128::from(at - low) * u128::from(WIDTH) / u128::from((tip - low).max(1));
                    let bar = usize::try_from(bar).unwrap_or(0);
                    writeln!(f, "{mark} {:<12} {}> {at}", voter.id, "=".repeat(bar))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn voter(name: &str, region: &str, at: Option<u64>) -> Voter {
        let acks = at.map(|at| {
            let at = Vlsn::new(at);
            Positions { received: at, durable: at, applied: at, checkpointed: at }
        });
        Voter { id: NodeId::new(name).unwrap(), counts: Counts::Fully, region: region.into(), acks }
    }

    /// What voters at these positions agree on, in regions named by one letter; the master comes first.
    fn agree(quorum: Quorum, voters: &[(&str, Option<u64>)]) -> u64 {
        let all: Vec<Voter> = voters.iter().map(|(region, at)| voter("n", region, *at)).collect();
        number(agreed(Rule { quorum, level: Level::Durable }, &all[0], &all[1..]))
    }

    #[test]
    fn an_unconnected_voter_blocks_all_but_not_majority() {
        let voters = [("", Some(9)), ("", Some(7)), ("", None)];
        assert_eq!(agree(Quorum::All, &voters), 0);
        assert_eq!(agree(Quorum::Majority, &voters), 7);
        assert_eq!(agree(Quorum::Acks(1), &voters), 7);
        assert_eq!(agree(Quorum::Acks(2), &voters), 0);
    }

    #[test]
    fn the_masters_own_flush_bounds_every_quorum() {
        let voters = [("a", Some(3)), ("b", Some(9)), ("c", Some(9))];
        for quorum in [Quorum::Acks(0), Quorum::Acks(2), Quorum::Majority, Quorum::All, Quorum::Regions(2)] {
            assert_eq!(agree(quorum, &voters), 3, "{quorum}");
        }
    }

    #[test]
    fn region_quorum_needs_a_second_region() {
        let voters = [("eu", Some(9)), ("eu", Some(8)), ("us", Some(4)), ("us", None), ("eu", Some(7))];
        assert_eq!(agree(Quorum::Majority, &voters), 7);
        assert_eq!(agree(Quorum::Regions(1), &voters), 7);
        assert_eq!(agree(Quorum::Regions(2), &voters), 4);
        assert_eq!(agree(Quorum::Regions(3), &voters), 0);
        assert_eq!(agree(Quorum::Regions(2), &[("eu", Some(9)), ("", Some(8)), ("", Some(8))]), 0);
    }

    #[test]
    fn a_group_of_one_agrees_with_itself_and_has_no_ack_to_offer() {
        assert_eq!(agree(Quorum::Majority, &[("", Some(5))]), 5);
        assert_eq!(agree(Quorum::All, &[("", Some(5))]), 5);
        assert_eq!(agree(Quorum::Acks(1), &[("", Some(5))]), 0);
        assert_eq!(agree(Quorum::Acks(255), &[("", Some(5))]), 0);
    }

    #[test]
    fn committed_never_counts_an_entry_of_an_earlier_term_by_itself() {
        let (master, others) = (voter("a", "", Some(9)), [voter("b", "", Some(6)), voter("c", "", None)]);
        let in_term = |start| agreed_in_term(Rule::COMMITTED, &master, &others, Vlsn::new(start).unwrap());
        assert_eq!(in_term(7), None, "6 was written in an earlier term");
        assert_eq!(in_term(6), Vlsn::new(6));
    }

    #[test]
    fn the_first_gate_counts_connections_and_regions() {
        let (master, others) =
            (voter("a", "eu", Some(9)), [voter("b", "eu", Some(0)), voter("c", "us", None)]);
        let refusal = |quorum| reachable(Rule { quorum, level: Level::Received }, &master, &others).err();
        assert_eq!(refusal(Quorum::Majority), None);
        assert_eq!(refusal(Quorum::Acks(1)), None);
        assert_eq!(refusal(Quorum::Acks(2)).map(|e| (e.needed, e.connected)), Some((3, 2)));
        assert_eq!(refusal(Quorum::All).map(|e| (e.needed, e.connected)), Some((3, 2)));
        assert_eq!(
            refusal(Quorum::Regions(2)).map(|e| e.to_string()).as_deref(),
            Some(
                "nothing was written: majority in 2 regions received needs 2 voters with the master, \
                 and 2 are connected, in 1 regions"
            )
        );
    }

    #[test]
    fn an_arbiter_counts_when_durable_and_has_nothing_else() {
        let arbiter = Voter { counts: Counts::DurableOnly, ..voter("c", "", Some(9)) };
        let (master, others) = (voter("a", "", Some(9)), [voter("b", "", None), arbiter]);
        for level in [Level::Received, Level::Durable, Level::Applied, Level::Checkpointed] {
            let rule = Rule { quorum: Quorum::Majority, level };
            let durable = level == Level::Durable;
            assert_eq!(agreed(rule, &master, &others), Vlsn::new(9).filter(|_| durable), "{level}");
            assert_eq!(reachable(rule, &master, &others).is_ok(), durable, "{level}");
        }
    }

    #[test]
    fn a_master_that_is_no_voter_bounds_and_is_not_counted() {
        let gone = |at| Voter { counts: Counts::Not, ..voter("a", "m", Some(at)) };
        let others = [voter("b", "eu", Some(7)), voter("c", "eu", Some(4)), voter("d", "us", None)];
        let rule = |quorum| Rule { quorum, level: Level::Durable };
        let agree = |quorum, at| number(agreed(rule(quorum), &gone(at), &others));
        assert_eq!(agree(Quorum::Majority, 9), 4, "two of three, without the master");
        assert_eq!(agree(Quorum::Majority, 3), 3, "its own position bounds");
        assert_eq!(agree(Quorum::Acks(1), 9), 7);
        assert_eq!(agree(Quorum::Acks(0), 9), 9);
        assert_eq!(agree(Quorum::Regions(2), 9), 0, "its region adds none");
        assert_eq!(reachable(rule(Quorum::All), &gone(9), &others).unwrap_err().needed, 3);
        assert_eq!(agreed(rule(Quorum::Majority), &gone(9), &[]), None);
    }

    #[test]
    fn a_quorum_is_drawn_with_who_is_where() {
        let (master, others) = (voter("a", "", Some(9)), [voter("b", "", None), voter("c", "", Some(7))]);
        let text = Describe { rule: Rule::COMMITTED, master: &master, others: &others }.to_string();
        let expected = format!(
            "majority durable: 7\n* a            {}> 9\n  c            > 7\n  b            ? not connected\n",
            "=".repeat(24)
        );
        assert_eq!(text, expected);
    }

    /// Tries every position from the top, and counts who has it.
    fn naive(rule: Rule, master: &Voter, others: &[Voter]) -> u64 {
        let has = |voter: &&Voter, vlsn: u64| {
            let nothing = voter.counts == Counts::DurableOnly && rule.level != Level::Durable;
            !nothing && voter.acks.is_some_and(|acks| number(acks.at(rule.level)) >= vlsn)
        };
        let own = usize::from(master.counts != Counts::Not);
        let satisfied = |vlsn: u64| {
            let acks = others.iter().filter(|voter| has(voter, vlsn)).count();
            let mut regions: Vec<&str> = Some(master)
                .filter(|_| own == 1)
                .into_iter()
                .chain(others)
                .filter(|voter| has(voter, vlsn))
                .map(|voter| voter.region.as_str())
                .filter(|region| !region.is_empty())
                .collect();
            regions.sort_unstable();
            regions.dedup();
            let majority = 2 * (acks + own) > others.len() + own;
            has(&master, vlsn)
                && match rule.quorum {
                    Quorum::Acks(n) => acks >= usize::from(n),
                    Quorum::Majority => majority,
                    Quorum::All => acks == others.len(),
                    Quorum::Regions(n) => majority && regions.len() >= usize::from(n),
                }
        };
        (1..=12).rev().find(|vlsn| satisfied(*vlsn)).unwrap_or(0)
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let quorum = prop_oneof![
            (0_u8..5).prop_map(Quorum::Acks),
            Just(Quorum::Majority),
            Just(Quorum::All),
            (0_u8..4).prop_map(Quorum::Regions),
        ];
        let level =
            prop::sample::select(vec![Level::Received, Level::Durable, Level::Applied, Level::Checkpointed]);
        (quorum, level).prop_map(|(quorum, level)| Rule { quorum, level })
    }

    fn any_master() -> impl Strategy<Value = Voter> {
        let counts = prop::sample::select(vec![Counts::Fully, Counts::Not]);
        (counts, any_voter()).prop_map(|(counts, voter)| Voter { counts, ..voter })
    }

    fn any_voter() -> impl Strategy<Value = Voter> {
        let acks = prop::option::of(prop::array::uniform4(0_u64..12).prop_map(|[r, d, a, c]| Positions {
            received: Vlsn::new(r),
            durable: Vlsn::new(d),
            applied: Vlsn::new(a),
            checkpointed: Vlsn::new(c),
        }));
        let region = prop::sample::select(vec!["", "eu", "us", "ap"]);
        let counts = prop::sample::select(vec![Counts::Fully, Counts::Fully, Counts::DurableOnly]);
        (region, counts, acks).prop_map(|(region, counts, acks)| Voter {
            counts,
            acks,
            ..voter("n", region, None)
        })
    }

    proptest! {
        #[test]
        fn agreed_is_what_counting_every_position_finds(
            rule in any_rule(),
            master in any_master(),
            others in prop::collection::vec(any_voter(), 0..8),
        ) {
            prop_assert_eq!(number(agreed(rule, &master, &others)), naive(rule, &master, &others));
        }

        #[test]
        fn what_is_agreed_on_was_reachable(
            rule in any_rule(),
            master in any_master(),
            others in prop::collection::vec(any_voter(), 0..8),
        ) {
            if agreed(rule, &master, &others).is_some() {
                prop_assert_eq!(reachable(rule, &master, &others), Ok(()));
            }
        }

        #[test]
        fn the_largest_group_fits(at in prop::collection::vec(1_u64..100, 63)) {
            let others: Vec<Voter> = at.iter().map(|at| voter("n", "", Some(*at))).collect();
            let master = voter("m", "", Some(100));
            let mut sorted = at.clone();
            sorted.sort_unstable();
            // 33 of 64: the master and the 32 best of the others.
            prop_assert_eq!(number(agreed(Rule::COMMITTED, &master, &others)), sorted[63 - 32]);
        }
    }

    #[cfg(feature = "planted")]
    #[test]
    fn the_planted_bug_counts_entries_that_the_master_has_not_flushed() {
        let unflushed = Positions { received: Vlsn::new(9), ..Positions::NONE };
        let master = Voter { acks: Some(unflushed), ..voter("a", "", None) };
        let others = [voter("b", "", Some(9)), voter("c", "", None)];
        assert_eq!(agreed(Rule::COMMITTED, &master, &others), None);
        planted::plant(Some(Bug::MasterNotInQuorum));
        assert_eq!(agreed(Rule::COMMITTED, &master, &others), Vlsn::new(9));
        planted::plant(None);
    }

    #[cfg(feature = "planted")]
    #[test]
    fn the_planted_bug_commits_an_entry_of_an_earlier_term_by_itself() {
        let (master, others) = (voter("a", "", Some(9)), [voter("b", "", Some(6)), voter("c", "", None)]);
        planted::plant(Some(Bug::OldTermCommitted));
        let old = agreed_in_term(Rule::COMMITTED, &master, &others, Vlsn::new(7).unwrap());
        planted::plant(None);
        assert_eq!(old, Vlsn::new(6));
    }
}
