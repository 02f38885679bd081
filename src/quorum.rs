//! Quorums: from what each voter acknowledged to the position that a rule is satisfied for.
//!
//! Values in, decision out. The master is a voter. Its own position bounds every result: without elections the same node
//! leads again after a crash, and an entry that it lost would be lost for all.

use std::fmt;

use crate::ids::{NodeId, Vlsn, number};
use crate::members::Members;
use crate::planted::{self, Bug};
use crate::policy::{Level, Quorum, Rule};
use crate::progress::Positions;

/// A voter, and what counts of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Voter {
    /// Its name.
    pub id: NodeId,
    /// Where it stands. A voter with an empty region adds none.
    pub region: String,
    /// What it acknowledged on its present connection. `None` while nothing of it counts, as it is not connected: it
    /// then still counts among those of whom a majority is needed.
    pub acks: Option<Positions>,
}

impl Voter {
    fn at(&self, level: Level) -> u64 {
        self.acks.map_or(0, |acks| number(acks.at(level)))
    }
}

/// How many voters have to have an entry, the master included. For [`Quorum::Regions`] this is the majority; the
/// regions come on top.
pub fn needed(quorum: Quorum, voters: usize) -> usize {
    match quorum {
        Quorum::Acks(others) => 1 + usize::from(others),
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
    let needed = needed(rule.quorum, others.len() + 1);
    if needed > others.len() + 1 {
        return None;
    }
    // (position, voter), the master last: at most 64, on the stack.
    let mut buffer = [(0_u64, 0_u8); Members::MAX];
    let ranked = &mut buffer[..=others.len()];
    for (slot, (voter, index)) in ranked.iter_mut().zip(others.iter().zip(0_u8..)) {
        *slot = (voter.at(rule.level), index);
    }
    ranked[others.len()] = (own, u8::MAX);
    ranked.sort_unstable_by_key(|(position, _)| std::cmp::Reverse(*position));
    let reached = match rule.quorum {
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
    agreed(rule, master, others).filter(|vlsn| *vlsn >= term_start)
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
    let present = || std::iter::once(master).chain(others.iter().filter(|voter| voter.acks.is_some()));
    let connected = present().count();
    let regions = present()
        .enumerate()
        .filter(|(at, voter)| is_new_region(&voter.region, present().take(*at).map(|v| v.region.as_str())))
        .count();
    let needed = needed(rule.quorum, others.len() + 1);
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
        let low = voters.iter().filter(|v| v.acks.is_some()).map(|v| v.at(level)).min().unwrap_or(0);
        for voter in voters {
            let mark = if voter.id == self.master.id { '*' } else { ' ' };
            match voter.acks {
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
