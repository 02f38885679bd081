//! The comparison of what several nodes hold: digests of ranges, halved where they differ, down to the first entry.

use crate::ids::{Vlsn, VlsnRange};
use crate::wire::message::RangeDigest;

/// So often a difference may be gone when it is looked for.
const FICKLE: usize = 8;

/// What a node says to the order to digest a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The digest, from the range's first entry on, perhaps not to its last.
    Digest(RangeDigest),
    /// This entry can't be read.
    Damaged(Vlsn),
    /// It gives none, and why.
    Failed(String),
}

/// The nodes that are compared, by number.
pub trait Nodes {
    /// How many there are.
    fn count(&self) -> usize;

    /// Asks these for digests of a range, all at the same time if possible; an answer for each, in their order.
    fn digest(&mut self, whom: &[usize], range: VlsnRange) -> Vec<Answer>;

    /// Everything up to this entry was compared.
    fn compared(&mut self, to: Vlsn);
}

/// Where the nodes differ first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The entry.
    pub at: Vlsn,
    /// Who agrees with whom about it, the most first.
    pub sides: Vec<Vec<usize>>,
}

/// A range that a node was not compared in, or in which it was damaged at first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gap {
    /// Which node.
    pub node: usize,
    /// Where.
    pub range: VlsnRange,
    /// Why.
    pub why: Why,
}

/// Why a node was not compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// Its entry at the beginning of the range is damaged.
    Damaged,
    /// It said so of this entry, and could read it when it was asked again: it was compared.
    Healed,
    /// It gave no digest from there on, and what it said.
    Failed(String),
}

/// What the comparison found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// The last entry that was compared between at least two nodes.
    pub to: Option<Vlsn>,
    /// The first difference; nothing behind it was compared.
    pub difference: Option<Difference>,
    /// What was not compared, in the order in which it was met.
    pub gaps: Vec<Gap>,
    /// Bytes of entries compared, of one node.
    pub bytes: u64,
}

/// Compares the nodes over a range, from its first entry on, and ends at the first entry about which two of them differ.
pub fn compare(range: VlsnRange, nodes: &mut dyn Nodes) -> Findings {
    let live = (0..nodes.count()).collect();
    let mut comparison =
        Comparison { nodes, live, last: range.last(), met: Vec::new(), findings: Findings::default() };
    let mut at = range.first();
    let mut fickle = 0;
    while let Some(rest) = VlsnRange::new(at, range.last()).filter(|_| comparison.live.len() > 1) {
        let probe = comparison.probe(rest);
        let Some(last) = probe.last else { break };
        if !probe.equal {
            let stretch = VlsnRange::new(at, last).unwrap_or(rest);
            match comparison.narrow(stretch) {
                Some(difference) => {
                    comparison.findings.difference = Some(difference);
                    break;
                }
                // Whoever differed says nothing any more, or the same no more.
                None => {
                    fickle += 1;
                    if fickle > FICKLE {
                        let why = "what the nodes say changes from one time to the next";
                        for node in std::mem::take(&mut comparison.live) {
                            comparison.fail(node, at, why.to_owned());
                        }
                    }
                    continue;
                }
            }
        }
        comparison.leave_out(&probe.damaged, at, last);
        if probe.compared {
            comparison.findings.to = Some(last);
            comparison.findings.bytes += probe.bytes;
        }
        comparison.nodes.compared(last);
        at = last.next();
    }
    comparison.tell_healed();
    comparison.findings
}

struct Comparison<'a> {
    nodes: &'a mut dyn Nodes,
    /// Those who still answer.
    live: Vec<usize>,
    /// The last entry of the whole range.
    last: Vlsn,
    /// Whose entries were said to be damaged.
    met: Vec<(usize, Vlsn)>,
    findings: Findings,
}

/// What the nodes say of one stretch.
struct Probe {
    /// Its last entry, the same for all; `None` if nobody answers any more.
    last: Option<Vlsn>,
    /// Whether at least two were compared.
    compared: bool,
    equal: bool,
    bytes: u64,
    /// Who says what.
    said: Vec<(usize, RangeDigest)>,
    /// Who can't read its first entry.
    damaged: Vec<usize>,
}

impl Comparison<'_> {
    /// Compares a stretch that begins where the range does, as far as one answer of each reaches. Whoever fails is asked
    /// nothing any more, and whoever is damaged at its beginning is left out of this stretch.
    fn probe(&mut self, range: VlsnRange) -> Probe {
        let first = range.first();
        let mut wanted = range;
        let mut asked = self.live.clone();
        let mut said: Vec<(usize, RangeDigest)> = Vec::new();
        let mut damaged = Vec::new();
        loop {
            let answers = self.nodes.digest(&asked, wanted);
            let mut last = wanted.last();
            for (node, answer) in std::mem::take(&mut asked).into_iter().zip(answers) {
                match answer {
                    Answer::Digest(one)
                        if one.range.first() == first && one.range.last() <= wanted.last() =>
                    {
                        last = last.min(one.range.last());
                        said.push((node, one));
                    }
                    Answer::Damaged(at) if at <= first => damaged.push(node),
                    Answer::Damaged(at) if at <= wanted.last() => {
                        self.met.push((node, at));
                        last = last.min(at.previous().unwrap_or(first));
                        asked.push(node);
                    }
                    Answer::Failed(why) => self.fail(node, first, why),
                    other => self.fail(node, first, format!("it answers with {other:?}")),
                }
            }
            // Whoever went further, or has damage behind the others' end, is asked once more, for what all can tell.
            let (fits, again): (Vec<_>, Vec<_>) =
                said.drain(..).partition(|(_, one)| one.range.last() == last);
            said = fits;
            asked.extend(again.into_iter().map(|(node, _)| node));
            asked.sort_unstable();
            if asked.is_empty() {
                break;
            }
            match VlsnRange::new(first, last) {
                Some(shorter) => wanted = shorter,
                None => break,
            }
        }
        // If nobody can read the first entry, there is only that to be left out.
        let last = said.first().map(|(_, one)| one.range.last()).or((!damaged.is_empty()).then_some(first));
        said.sort_unstable_by_key(|(node, _)| *node);
        let equal = said.windows(2).all(|pair| pair[0].1 == pair[1].1);
        let bytes = said.first().map_or(0, |(_, one)| one.bytes);
        Probe { last, compared: said.len() > 1, equal, bytes, said, damaged }
    }

    /// Halves a stretch in which nodes differ down to the first entry. `None`: those who are left do not differ there.
    fn narrow(&mut self, stretch: VlsnRange) -> Option<Difference> {
        let (mut low, mut high) = (stretch.first(), stretch.last());
        loop {
            let middle = Vlsn::new(low.get() + (high.get() - low.get()) / 2)?;
            let probe = self.probe(VlsnRange::new(low, middle)?);
            let last = probe.last?;
            if probe.equal {
                if last >= high {
                    return None;
                }
                self.leave_out(&probe.damaged, low, last);
                low = last.next();
            } else if last == low {
                self.leave_out(&probe.damaged, low, last);
                return Some(Difference { at: low, sides: agree(probe.said) });
            } else {
                high = last;
            }
        }
    }

    /// Asks a node nothing any more.
    fn fail(&mut self, node: usize, from: Vlsn, why: String) {
        self.live.retain(|live| *live != node);
        let range = VlsnRange::new(from, self.last).unwrap_or_else(|| unreachable!("asked beyond the range"));
        self.findings.gaps.push(Gap { node, range, why: Why::Failed(why) });
    }

    /// Who finds damage has it healed, perhaps before it is asked about that entry by itself: it was damaged all the same.
    fn tell_healed(&mut self) {
        let findings = &mut self.findings;
        for (node, at) in std::mem::take(&mut self.met) {
            let compared =
                findings.to >= Some(at) && findings.difference.as_ref().is_none_or(|found| at < found.at);
            let within = |range: VlsnRange| range.first() <= at && at <= range.last();
            let told = findings.gaps.iter().any(|gap| gap.node == node && within(gap.range));
            if let Some(range) = VlsnRange::new(at, at).filter(|_| compared && !told) {
                findings.gaps.push(Gap { node, range, why: Why::Healed });
            }
        }
    }

    /// Notes who was left out of a stretch for damage, together with the stretch right before it.
    fn leave_out(&mut self, damaged: &[usize], first: Vlsn, last: Vlsn) {
        for node in damaged.iter().copied() {
            let joins = |gap: &&mut Gap| {
                gap.node == node && gap.why == Why::Damaged && gap.range.last().next() >= first
            };
            let gaps = &mut self.findings.gaps;
            let known = gaps.iter_mut().rev().find(joins);
            let Some(range) = VlsnRange::new(known.as_ref().map_or(first, |gap| gap.range.first()), last)
            else {
                continue;
            };
            match known {
                Some(gap) => gap.range = range,
                None => gaps.push(Gap { node, range, why: Why::Damaged }),
            }
        }
    }
}

/// Who says the same as whom, the most first.
pub fn agree<T: PartialEq>(said: Vec<(usize, T)>) -> Vec<Vec<usize>> {
    let mut sides: Vec<(T, Vec<usize>)> = Vec::new();
    for (node, what) in said {
        match sides.iter_mut().find(|(other, _)| *other == what) {
            Some((_, side)) => side.push(node),
            None => sides.push((what, vec![node])),
        }
    }
    sides.sort_by_key(|(_, side)| std::cmp::Reverse(side.len()));
    sides.into_iter().map(|(_, side)| side).collect()
}

#[cfg(test)]
mod tests;
