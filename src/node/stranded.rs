//! A log that is in doubt, or damaged, where others have pruned: nobody can tell any more, entry by entry, what was here. What
//! they have removed was committed, so a snapshot that stands behind it brings all of that back, and the doubt begins behind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::address::Address;
use crate::clock::Deadline;
use crate::config::Snapshots;
use crate::ids::{NodeId, Position, Vlsn};
use crate::members::{Members, Role, Standing};
use crate::node::group::Shared;
use crate::wire::message::SurveyReply;

/// For so many election timeouts the log's end has to have stayed where it is: until then a master may come and settle it.
const PATIENCE: u32 = 4;

/// Since when the log has ended where it ends, and who was asked.
#[derive(Default)]
pub(super) struct Stranded {
    since: Option<(Option<Position>, Deadline)>,
    turn: usize,
}

impl Stranded {
    /// Something settles it.
    pub fn moves(&mut self) {
        self.since = None;
    }

    /// Somebody is asked: who comes next has to wait as long.
    fn asked(&mut self, after: Option<Position>, now: Deadline) {
        self.since = Some((after, now));
        self.turn += 1;
    }

    /// Whether the log has ended at `after` for as long as that.
    fn long_enough(&mut self, after: Option<Position>, now: Deadline, patience: std::time::Duration) -> bool {
        match self.since {
            Some((at, since)) if at == after => now >= since + patience,
            _ => {
                self.since = Some((after, now));
                false
            }
        }
    }
}

/// Who goes on beyond `after`, and has an engine.
fn ahead(
    members: &Members,
    own: &NodeId,
    after: Option<Position>,
    answers: &BTreeMap<NodeId, SurveyReply>,
) -> Vec<Address> {
    let place = after.map(|after| after.vlsn);
    let others = members.iter().filter(|member| member.id != *own && member.role != Role::Arbiter);
    let further = others.filter(|member| {
        answers.get(&member.id).is_some_and(|answer| {
            answer.standing != Standing::Newcomer && answer.last.map(|last| last.vlsn) > place
        })
    });
    further.filter_map(|member| member.address.clone()).collect()
}

impl Shared {
    /// Asks one after the other of those who go on beyond this log's end for a snapshot, if nothing else has moved that end
    /// for long.
    pub(super) fn pass_by_snapshot(
        self: &Arc<Shared>,
        stranded: &mut Stranded,
        now: Deadline,
        after: Option<Position>,
        answers: &BTreeMap<NodeId, SurveyReply>,
    ) {
        if self.core.config.snapshots == Snapshots::Manual
            || self.fetching.runs()
            || !stranded.long_enough(after, now, self.election.timeout() * PATIENCE)
        {
            return;
        }
        let givers = ahead(&self.roll.members(), &self.own.id, after, answers);
        if givers.is_empty() {
            return;
        }
        stranded.asked(after, now);
        let from = givers[stranded.turn % givers.len()].clone();
        let known = Vlsn::new(self.core.apply.committed.get()).max(self.core.log.known_committed());
        let least = Some(Vlsn::after(after.map(|after| after.vlsn))).max(known);
        log::warn!(
            "{}: nothing moves the end of the log, and others go on beyond it: {from} is asked for a snapshot",
            self.own.id
        );
        self.fetch_for_doubt(least, from);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::Term;
    use crate::members::Member;

    fn at(vlsn: u64, crc: u32) -> Option<Position> {
        Vlsn::new(vlsn).map(|vlsn| Position { vlsn, term: Term::new(1), crc })
    }

    #[test]
    fn only_members_with_more_are_asked_for_a_snapshot() {
        let id = |name: &str| NodeId::new(name).unwrap();
        let member =
            |name: &str| Member { address: Some(Address::Local(name.into())), ..Member::electable(id(name)) };
        let arbiter = Member { role: Role::Arbiter, ..member("e") };
        let members =
            Members::new(vec![member("a"), member("b"), member("c"), member("d"), arbiter]).unwrap();
        let full = Standing::Full { since: Term::NONE };
        let answers = [
            ("b", full, at(90, 1)),
            ("c", full, at(5, 1)),
            ("d", Standing::Newcomer, at(90, 1)),
            ("e", full, at(90, 1)),
            ("gone", full, at(99, 1)),
        ];
        let answers = answers.map(|(name, standing, last)| {
            (id(name), SurveyReply { node: id(name), standing, last, after: None })
        });
        let asked = ahead(&members, &id("a"), at(5, 1), &answers.into());
        assert_eq!(asked, [Address::Local("b".into())]);
    }

    #[test]
    fn a_log_that_moves_on_is_not_stranded() {
        let mut stranded = Stranded::default();
        let patience = Duration::from_nanos(100);
        let then = Deadline::from_nanos;
        for (after, now, expected) in [
            (at(5, 1), 0, false),
            (at(5, 1), 99, false),
            (at(5, 1), 100, true),
            (at(6, 1), 101, false),
            (at(6, 1), 201, true),
        ] {
            assert_eq!(stranded.long_enough(after, then(now), patience), expected, "{after:?} {now}");
        }
        stranded.asked(at(6, 1), then(201));
        assert!(
            !stranded.long_enough(at(6, 1), then(300), patience),
            "each attempt makes somebody copy its engine"
        );
        assert!(stranded.long_enough(at(6, 1), then(301), patience));
        stranded.moves();
        assert!(!stranded.long_enough(at(6, 1), then(300), patience), "it begins anew");
    }
}
