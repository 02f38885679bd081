//! Where two logs part: found from their term histories, in one exchange.
//!
//! In each term only one master appends, so two logs that both hold an entry of the same term and VLSN are equal up to
//! there. Hence they part at the lesser end of the highest term that both know; comparing VLSNs alone is wrong after two
//! quick changes of master, when different terms stand at the same VLSN. The CRC of the matched entry proves the result.

use crate::ids::{Position, Term, TermSpan, Vlsn};
use crate::planted::{Bug, active};

/// What is known of the terms of one log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// The entry before the oldest that the log holds.
    base: Option<Vlsn>,
    /// Where each term begins, ascending in both fields; the first begins at the base, if there is one.
    spans: Vec<TermSpan>,
    /// The last entry, or the base if there is none behind it; at or after the beginning of the last span.
    last: Option<Vlsn>,
}

/// A list that is no term history.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadHistory {
    /// Terms or VLSNs do not rise.
    #[error("the term history does not rise at term {0}")]
    Unordered(Term),
    /// The last entry lies before the last term's beginning, or only one of the two is there.
    #[error("the term history does not fit the log's last entry")]
    LastDiffers,
}

impl History {
    /// The history of a log with these terms, that begins behind `base` and ends at `last`. For a history that a peer
    /// sent as its [`spans`](History::spans), `base` is `None`: the spans begin at it.
    ///
    /// # Errors
    /// [`BadHistory`], as lists come from peers.
    pub fn new(
        base: Option<Position>,
        spans: &[TermSpan],
        last: Option<Vlsn>,
    ) -> Result<History, BadHistory> {
        let mut all = Vec::with_capacity(spans.len() + 1);
        let mut rest = spans;
        if let Some(base) = base {
            all.push(TermSpan { term: base.term, first: base.vlsn });
            if let [first, behind @ ..] = spans {
                // The base's term may go on in the log.
                rest = if first.term == base.term { behind } else { spans };
            }
        }
        all.extend_from_slice(rest);
        for pair in all.windows(2) {
            if pair[1].term <= pair[0].term || pair[1].first <= pair[0].first {
                return Err(BadHistory::Unordered(pair[1].term));
            }
        }
        let base = base.map(|base| base.vlsn);
        let last = last.max(base);
        match (all.last(), last) {
            (None, None) => {}
            (Some(span), Some(last)) if span.first <= last => {}
            _ => return Err(BadHistory::LastDiffers),
        }
        Ok(History { base, spans: all, last })
    }

    /// Where each term begins, the base's included: what one node sends to another.
    pub fn spans(&self) -> &[TermSpan] {
        &self.spans
    }

    /// The last entry's VLSN.
    pub fn last(&self) -> Option<Vlsn> {
        self.last
    }

    fn last_term(&self) -> Term {
        self.spans.last().map_or(Term::NONE, |span| span.term)
    }

    /// The last entry of the span at this index.
    fn end(&self, index: usize) -> Option<Vlsn> {
        self.spans.get(index + 1).map_or(self.last, |next| next.first.previous())
    }
}

/// By what right the feeding side speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is master in this term: what its log lacks was never committed.
    Leads(Term),
    /// It is a replica itself: what its log lacks may merely not have come yet.
    Follows,
}

/// What a replica is to do before it is fed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The logs are equal up to here (`None`: not even the first entry is). What the replica has behind it is cut. If
    /// that lies below what the replica knows to be committed, it refuses and keeps its files.
    Match(Option<(Term, Vlsn)>),
    /// The replica needs entries that were pruned here.
    NeedSnapshot {
        /// The oldest entry here.
        oldest: Vlsn,
    },
    /// The replica has entries that this node lacks and may not order to be cut.
    Behind,
}

/// Compares the logs of a feeding node and a replica.
pub fn matchpoint(feeder: &History, replica: &History, standing: Standing) -> Verdict {
    if matches!(standing, Standing::Leads(term) if replica.last_term() > term) {
        return Verdict::Behind;
    }
    let common = highest_common(feeder, replica);
    let at = common.map(|(_, vlsn)| vlsn);
    let pruned = at < feeder.base;
    let cuts = replica.last > at;
    // Below a pruned history a shorter log can't be told from one that parted: the snapshot settles both.
    if standing == Standing::Follows && cuts && !(pruned && replica.last <= feeder.base) {
        return Verdict::Behind;
    }
    if pruned {
        return Verdict::NeedSnapshot { oldest: Vlsn::after(feeder.base) };
    }
    Verdict::Match(common)
}

fn highest_common(a: &History, b: &History) -> Option<(Term, Vlsn)> {
    if active(Bug::MatchpointByVlsnOnly) {
        return a.last.min(b.last).map(|vlsn| (a.last_term(), vlsn));
    }
    let (mut i, mut j) = (a.spans.len(), b.spans.len());
    while i > 0 && j > 0 {
        let (left, right) = (a.spans[i - 1].term, b.spans[j - 1].term);
        match left.cmp(&right) {
            std::cmp::Ordering::Greater => i -= 1,
            std::cmp::Ordering::Less => j -= 1,
            std::cmp::Ordering::Equal => return a.end(i - 1).min(b.end(j - 1)).map(|vlsn| (left, vlsn)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A whole log: the term of each entry. What a node with all its files, and no histories, would compare.
    type Whole = Vec<u32>;

    fn v(number: usize) -> Option<Vlsn> {
        Vlsn::new(number as u64)
    }

    /// The history of a log of which the first `pruned` entries are gone.
    fn history(log: &[u32], pruned: usize) -> History {
        let base = (pruned > 0).then(|| Position {
            vlsn: v(pruned).unwrap(),
            term: Term::new(log[pruned - 1]),
            crc: 0,
        });
        let mut spans: Vec<TermSpan> = Vec::new();
        for (at, term) in log.iter().enumerate().skip(pruned) {
            if spans.last().is_none_or(|span| span.term != Term::new(*term)) {
                spans.push(TermSpan { term: Term::new(*term), first: v(at + 1).unwrap() });
            }
        }
        History::new(base, &spans, v(log.len())).unwrap()
    }

    fn common_prefix(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(x, y)| x == y).count()
    }

    fn leads(feeder: &[u32], replica: &[u32]) -> Verdict {
        matchpoint(&history(feeder, 0), &history(replica, 0), Standing::Leads(Term::new(99)))
    }

    fn at(term: u32, vlsn: u64) -> Verdict {
        Verdict::Match(Vlsn::new(vlsn).map(|vlsn| (Term::new(term), vlsn)))
    }

    /// Logs of three nodes: in each term one of them appends to its own log, and others take a prefix of it.
    fn grown() -> impl Strategy<Value = [Whole; 3]> {
        let round = (0_usize..3, 0_usize..4, prop::option::of(0_usize..5), prop::option::of(0_usize..5));
        prop::collection::vec(round, 0..12).prop_map(|rounds| {
            let mut logs: [Whole; 3] = Default::default();
            for (term, (master, appends, one, other)) in (1_u32..).zip(rounds) {
                logs[master].extend(std::iter::repeat_n(term, appends));
                for (follower, short) in [((master + 1) % 3, one), ((master + 2) % 3, other)] {
                    if let Some(short) = short {
                        let keep = common_prefix(&logs[master], &logs[follower]);
                        let take = logs[master].len().saturating_sub(short).max(keep);
                        logs[follower] = logs[master][..take].to_vec();
                    }
                }
            }
            logs
        })
    }

    proptest! {
        #[test]
        fn histories_part_where_the_whole_logs_part(logs in grown(), pruned in any::<(u8, u8)>(), follows: bool) {
            let [feeder, replica, _] = &logs;
            let prefix = common_prefix(feeder, replica);
            let gone = usize::from(pruned.0) % (feeder.len() + 1);
            // A replica prunes only what is committed, which every master has.
            let gone_there = usize::from(pruned.1) % (prefix + 1);
            let standing = if follows { Standing::Follows } else { Standing::Leads(Term::new(99)) };
            let verdict = matchpoint(&history(feeder, gone), &history(replica, gone_there), standing);
            match verdict {
                Verdict::Match(matched) => {
                    prop_assert!(prefix >= gone);
                    let expected = v(prefix).map(|vlsn| (Term::new(feeder[prefix - 1]), vlsn));
                    prop_assert_eq!(matched, expected);
                    prop_assert!(!follows || replica.len() == prefix, "a follower cuts nobody");
                }
                Verdict::NeedSnapshot { oldest } => {
                    prop_assert!(prefix < gone);
                    prop_assert_eq!(oldest, Vlsn::after(v(gone)));
                }
                Verdict::Behind => prop_assert!(follows && replica.len() > prefix),
            }
        }

        #[test]
        fn a_history_that_was_sent_is_the_same_history(logs in grown(), pruned: u8) {
            let log = &logs[0];
            let own = history(log, usize::from(pruned) % (log.len() + 1));
            let sent = History::new(None, own.spans(), own.last()).unwrap();
            prop_assert_eq!(sent.spans(), own.spans());
            prop_assert_eq!(sent.last(), own.last());
        }
    }

    #[test]
    fn empty_logs_match_before_the_first_entry() {
        assert_eq!(leads(&[], &[]), Verdict::Match(None));
        assert_eq!(leads(&[1, 1], &[]), Verdict::Match(None));
        assert_eq!(leads(&[], &[1, 1]), Verdict::Match(None));
    }

    #[test]
    fn a_longer_replica_is_cut_to_the_end_of_the_masters_log() {
        assert_eq!(leads(&[1, 1], &[1, 1, 1, 1]), at(1, 2));
    }

    #[test]
    fn equal_vlsns_of_different_terms_do_not_match_after_two_quick_changes_of_master() {
        // Term 2's master appended VLSN 3 and died; term 3's, which had not seen it, appended its own VLSN 3.
        assert_eq!(leads(&[1, 1, 3], &[1, 1, 2]), at(1, 2));
        // And a third one, that has neither, has its own 3 and 4.
        assert_eq!(leads(&[1, 1, 3, 3], &[1, 1, 2, 2, 2]), at(1, 2));
        assert_eq!(leads(&[1, 1, 4, 4], &[1, 1, 3, 3]), at(1, 2));
    }

    #[test]
    fn a_term_that_the_master_skipped_is_cut_only_if_no_newer_term_may_exist() {
        let (feeder, replica) = (history(&[1, 1], 0), history(&[1, 1, 5], 0));
        assert_eq!(matchpoint(&feeder, &replica, Standing::Leads(Term::new(6))), at(1, 2));
        assert_eq!(matchpoint(&feeder, &replica, Standing::Leads(Term::new(4))), Verdict::Behind);
    }

    #[test]
    fn a_follower_orders_no_cut() {
        let (feeder, replica) = (history(&[1, 1], 0), history(&[1, 1, 1], 0));
        assert_eq!(matchpoint(&feeder, &replica, Standing::Follows), Verdict::Behind);
        assert_eq!(matchpoint(&replica, &feeder, Standing::Follows), at(1, 2));
    }

    #[test]
    fn a_replica_at_the_base_of_a_pruned_log_needs_no_snapshot() {
        let master = history(&[1, 1, 2, 2], 2);
        let lead = Standing::Leads(Term::new(2));
        assert_eq!(matchpoint(&master, &history(&[1, 1], 0), lead), at(1, 2));
        let oldest = Vlsn::new(3).unwrap();
        assert_eq!(matchpoint(&master, &history(&[1], 0), lead), Verdict::NeedSnapshot { oldest });
        assert_eq!(matchpoint(&master, &history(&[], 0), lead), Verdict::NeedSnapshot { oldest });
    }

    #[test]
    fn a_history_that_does_not_rise_is_refused() {
        let span = |term, first| TermSpan { term: Term::new(term), first: v(first).unwrap() };
        let refused = |spans: &[TermSpan], last| History::new(None, spans, v(last)).unwrap_err();
        assert_eq!(refused(&[span(2, 1), span(1, 2)], 2), BadHistory::Unordered(Term::new(1)));
        assert_eq!(refused(&[span(1, 2), span(2, 2)], 2), BadHistory::Unordered(Term::new(2)));
        assert_eq!(refused(&[span(1, 3)], 2), BadHistory::LastDiffers);
        assert_eq!(refused(&[], 2), BadHistory::LastDiffers);
        assert_eq!(refused(&[span(1, 1)], 0), BadHistory::LastDiffers);
    }
}
