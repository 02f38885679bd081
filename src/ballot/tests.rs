use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::ids::Vlsn;
use crate::wire::message::VoteReason;

const GROUP: GroupId = GroupId::from_bits(7);
const TIMEOUT: Duration = Duration::from_millis(500);

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn end(term: u32, vlsn: u64) -> LogEnd {
    LogEnd { term: Term::new(term), vlsn: Vlsn::new(vlsn) }
}

fn at(millis: u64) -> Deadline {
    Deadline::from_nanos(millis * 1_000_000)
}

/// What a voter knows, with what it points to.
#[derive(Clone, Debug)]
struct Knows {
    promise: Promise,
    last: LogEnd,
    standing: Standing,
    able: bool,
    heard: Option<Heard>,
    started: Deadline,
    now: Deadline,
}

impl Knows {
    /// A voter at rest: in term 4, its vote of it free, its log ending at (4, 9), no master heard for long.
    fn at_rest() -> Knows {
        Knows {
            promise: Promise { term: Term::new(4), vote: None },
            last: end(4, 9),
            standing: Standing::Full { since: Term::NONE },
            able: true,
            heard: None,
            started: at(0),
            now: at(10_000),
        }
    }

    fn voter(&self) -> Voter<'_> {
        Voter {
            group: GROUP,
            promise: &self.promise,
            last: self.last,
            standing: self.standing,
            able: self.able,
            heard: self.heard.as_ref(),
            started: self.started,
            now: self.now,
            min_timeout: TIMEOUT,
        }
    }

    fn judge(&self, term: u32, asked: &Vote) -> Answer {
        judge(&self.voter(), Term::new(term), asked)
    }
}

/// Node c asks in earnest, with a log as long as the voter's.
fn asks() -> Vote {
    Vote {
        group: GROUP,
        candidate: id("c"),
        election: 1,
        round: Round::Real,
        last: end(4, 9),
        reason: VoteReason::PrimaryFailure,
        instead_of: None,
    }
}

fn heard(master: &str, millis: u64) -> Option<Heard> {
    Some(Heard { master: id(master), at: at(millis) })
}

fn granted(term: u32, candidate: &str) -> Answer {
    Answer::Granted(Some(Promise { term: Term::new(term), vote: Some(id(candidate)) }))
}

/// A case of the table: what differs from a voter at rest and its candidate, the term, and the answer.
struct Case {
    name: &'static str,
    term: u32,
    knows: fn(&mut Knows),
    asked: fn(&mut Vote),
    why_not: Option<WhyNot>,
}

#[test]
fn every_refusal_has_its_reason_and_stands_at_its_bound() {
    let cases = [
        Case {
            name: "a candidate with as much in a newer term",
            term: 5,
            knows: |_| {},
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "in the voter's own term, whose vote is free",
            term: 4,
            knows: |_| {},
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "a term that is over",
            term: 3,
            knows: |_| {},
            asked: |_| {},
            why_not: Some(WhyNot::OldTerm),
        },
        Case {
            name: "another group",
            term: 5,
            knows: |_| {},
            asked: |vote| vote.group = GroupId::from_bits(8),
            why_not: Some(WhyNot::WrongGroup),
        },
        Case {
            name: "the highest term",
            term: HIGHEST_TERM.get(),
            knows: |_| {},
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "a term above the highest",
            term: HIGHEST_TERM.get() + 1,
            knows: |_| {},
            asked: |_| {},
            why_not: Some(WhyNot::AbsurdTerm),
        },
        Case {
            name: "a voter whose disk failed",
            term: 5,
            knows: |voter| voter.able = false,
            asked: |_| {},
            why_not: Some(WhyNot::Failed),
        },
        Case {
            name: "a newcomer",
            term: 5,
            knows: |voter| voter.standing = Standing::Newcomer,
            asked: |_| {},
            why_not: Some(WhyNot::NotCaughtUp),
        },
        Case {
            name: "a voter in doubt",
            term: 5,
            knows: |voter| voter.standing = Standing::Doubtful { from: Vlsn::FIRST },
            asked: |_| {},
            why_not: Some(WhyNot::NotCaughtUp),
        },
        Case {
            name: "the term in which the voter came to stand",
            term: 5,
            knows: |voter| voter.standing = Standing::Full { since: Term::new(5) },
            asked: |_| {},
            why_not: Some(WhyNot::NotCaughtUp),
        },
        Case {
            name: "the term after it",
            term: 6,
            knows: |voter| voter.standing = Standing::Full { since: Term::new(5) },
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "a shorter log of the same term",
            term: 5,
            knows: |_| {},
            asked: |vote| vote.last = end(4, 8),
            why_not: Some(WhyNot::LogBehind),
        },
        Case {
            name: "a longer log of an older term",
            term: 5,
            knows: |_| {},
            asked: |vote| vote.last = end(3, 99),
            why_not: Some(WhyNot::LogBehind),
        },
        Case {
            name: "a shorter log of a newer term",
            term: 6,
            knows: |_| {},
            asked: |vote| vote.last = end(5, 1),
            why_not: None,
        },
        Case {
            name: "an empty log against an empty one",
            term: 5,
            knows: |voter| voter.last = LogEnd::EMPTY,
            asked: |vote| vote.last = LogEnd::EMPTY,
            why_not: None,
        },
        Case {
            name: "the vote is another's",
            term: 4,
            knows: |voter| voter.promise.vote = Some(id("b")),
            asked: |_| {},
            why_not: Some(WhyNot::VotedForAnother),
        },
        Case {
            name: "the vote was another's in the term before",
            term: 5,
            knows: |voter| voter.promise.vote = Some(id("b")),
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "the vote is the candidate's already",
            term: 4,
            knows: |voter| voter.promise.vote = Some(id("c")),
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "a master heard of only now",
            term: 5,
            knows: |voter| voter.heard = heard("a", 9_501),
            asked: |_| {},
            why_not: Some(WhyNot::MasterAlive),
        },
        Case {
            name: "a master silent for the timeout",
            term: 5,
            knows: |voter| voter.heard = heard("a", 9_500),
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "the heard master hands over",
            term: 5,
            knows: |voter| voter.heard = heard("a", 10_000),
            asked: |vote| vote.instead_of = Some(id("a")),
            why_not: None,
        },
        Case {
            name: "another than the heard master hands over",
            term: 5,
            knows: |voter| voter.heard = heard("a", 10_000),
            asked: |vote| vote.instead_of = Some(id("b")),
            why_not: Some(WhyNot::MasterAlive),
        },
        Case {
            name: "a voter that has just started",
            term: 5,
            knows: |voter| voter.started = at(9_501),
            asked: |_| {},
            why_not: Some(WhyNot::JustStarted),
        },
        Case {
            name: "a voter that started a timeout ago",
            term: 5,
            knows: |voter| voter.started = at(9_500),
            asked: |_| {},
            why_not: None,
        },
        Case {
            name: "a handover reaches a voter that has just started",
            term: 5,
            knows: |voter| voter.started = at(10_000),
            asked: |vote| vote.instead_of = Some(id("a")),
            why_not: None,
        },
    ];
    for Case { name, term, knows, asked, why_not } in cases {
        let (mut voter, mut vote) = (Knows::at_rest(), asks());
        knows(&mut voter);
        asked(&mut vote);
        let expected = why_not.map_or_else(|| granted(term, "c"), Answer::Refused);
        assert_eq!(voter.judge(term, &vote), expected, "{name}, in earnest");
        // A round of pre-votes gets the same verdict, and promises nothing.
        vote.round = Round::Pre;
        let expected = why_not.map_or(Answer::Granted(None), Answer::Refused);
        assert_eq!(voter.judge(term, &vote), expected, "{name}, asked before");
    }
}

#[test]
fn a_longer_log_of_an_older_term_never_beats_a_shorter_one_of_a_newer_term() {
    assert!(end(2, 1) > end(1, 99));
    assert!(end(1, 99) > end(1, 98));
    assert!(end(1, 1) > LogEnd::EMPTY);
    let voter = Knows { last: end(2, 1), ..Knows::at_rest() };
    let stale = Vote { last: end(1, 99), ..asks() };
    assert_eq!(voter.judge(9, &stale), Answer::Refused(WhyNot::LogBehind));
    let fresh = Vote { last: end(2, 1), ..asks() };
    assert_eq!(Knows { last: end(1, 99), ..voter }.judge(9, &fresh), granted(9, "c"));
}

#[test]
fn of_two_logs_with_the_same_last_term_the_longer_wins() {
    let (short, long) = (end(4, 8), end(4, 9));
    let shorter = Knows { last: short, ..Knows::at_rest() };
    assert_eq!(shorter.judge(5, &Vote { last: long, ..asks() }), granted(5, "c"));
    let longer = Knows { last: long, ..Knows::at_rest() };
    assert_eq!(longer.judge(5, &Vote { last: short, ..asks() }), Answer::Refused(WhyNot::LogBehind));
}

#[test]
fn the_election_and_its_reason_change_no_verdict() {
    let voter = Knows::at_rest();
    for reason in [
        VoteReason::PrimaryFailure,
        VoteReason::NetworkPartition,
        VoteReason::ManualFailover,
        VoteReason::SplitBrainRecovery,
    ] {
        for election in [0, 1, u64::MAX] {
            assert_eq!(voter.judge(5, &Vote { reason, election, ..asks() }), granted(5, "c"));
        }
    }
}

fn any_term() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0_u32..6, 1 => (HIGHEST_TERM.get() - 1)..=(HIGHEST_TERM.get() + 2), 1 => Just(u32::MAX)]
}

fn any_end() -> impl Strategy<Value = LogEnd> {
    prop_oneof![1 => Just(LogEnd::EMPTY), 9 => (1_u32..4, 1_u64..4).prop_map(|(term, vlsn)| end(term, vlsn))]
}

fn any_id() -> impl Strategy<Value = NodeId> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(id)
}

fn any_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        1 => Just(Standing::Newcomer),
        1 => Just(Standing::Doubtful { from: Vlsn::FIRST }),
        6 => (0_u32..4).prop_map(|since| Standing::Full { since: Term::new(since) }),
    ]
}

prop_compose! {
    fn any_knowledge()(
        (term, vote) in (any_term(), prop::option::of(any_id())),
        last in any_end(),
        standing in any_standing(),
        able in prop::bool::weighted(0.9),
        heard in prop::option::of((any_id(), 0_u64..2_000).prop_map(|(master, ms)| Heard { master, at: at(ms) })),
        (started, now) in (0_u64..2_000, 0_u64..3_000),
    ) -> Knows {
        let promise = Promise { term: Term::new(term), vote };
        Knows { promise, last, standing, able, heard, started: at(started), now: at(now) }
    }
}

prop_compose! {
    fn any_vote()(
        right in prop::bool::weighted(0.9),
        candidate in any_id(),
        election in any::<u64>(),
        pre in any::<bool>(),
        last in any_end(),
        instead_of in prop::option::weighted(0.3, any_id()),
    ) -> Vote {
        let group = if right { GROUP } else { GroupId::from_bits(8) };
        let round = if pre { Round::Pre } else { Round::Real };
        Vote { group, candidate, election, round, last, reason: VoteReason::PrimaryFailure, instead_of }
    }
}

/// Every reason that speaks against the vote, each by itself and in plain numbers, in the order in which they are told.
fn objections(voter: &Knows, term: u32, asked: &Vote) -> Vec<WhyNot> {
    let place = |end: LogEnd| (end.term.get(), end.vlsn.map_or(0, Vlsn::get));
    let since = |point: Deadline| voter.now.as_nanos() as i128 - i128::from(point.as_nanos());
    let timeout = TIMEOUT.as_nanos() as i128;
    let steady = match voter.standing {
        Standing::Full { since } => since.get() < term,
        _ => false,
    };
    let promised = voter.promise.term.get();
    let same = voter.promise.vote.as_ref().is_none_or(|vote| *vote == asked.candidate);
    let by_the_heard =
        voter.heard.as_ref().is_some_and(|heard| asked.instead_of.as_ref() == Some(&heard.master));
    let hears = voter.heard.as_ref().is_some_and(|heard| since(heard.at) < timeout);
    let checks = [
        (asked.group != GROUP, WhyNot::WrongGroup),
        (term > HIGHEST_TERM.get(), WhyNot::AbsurdTerm),
        (!voter.able, WhyNot::Failed),
        (term < promised, WhyNot::OldTerm),
        (!steady, WhyNot::NotCaughtUp),
        (place(asked.last) < place(voter.last), WhyNot::LogBehind),
        (term == promised && !same, WhyNot::VotedForAnother),
        (hears && !by_the_heard, WhyNot::MasterAlive),
        (since(voter.started) < timeout && asked.instead_of.is_none(), WhyNot::JustStarted),
    ];
    checks.into_iter().filter(|(objects, _)| *objects).map(|(_, why)| why).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_vote_is_given_exactly_if_nothing_speaks_against_it(
        voter in any_knowledge(),
        term in any_term(),
        asked in any_vote(),
    ) {
        let promise = Promise { term: Term::new(term), vote: Some(asked.candidate.clone()) };
        let expected = match objections(&voter, term, &asked).first() {
            Some(&why) => Answer::Refused(why),
            None if asked.round == Round::Pre => Answer::Granted(None),
            None => Answer::Granted(Some(promise)),
        };
        prop_assert_eq!(voter.judge(term, &asked), expected);
    }

    #[test]
    fn a_promise_is_of_the_asked_term_and_candidate_and_never_of_an_earlier_term(
        voter in any_knowledge(),
        term in any_term(),
        asked in any_vote(),
    ) {
        if let Answer::Granted(Some(promise)) = voter.judge(term, &asked) {
            prop_assert_eq!(promise.term, Term::new(term));
            prop_assert_eq!(&promise.vote, &Some(asked.candidate.clone()));
            prop_assert!(promise.term >= voter.promise.term);
            let again = Knows { promise, ..voter.clone() };
            prop_assert_eq!(again.judge(term, &asked), voter.judge(term, &asked), "asked again");
        }
    }
}

/// What happens to a voter.
#[derive(Clone, Debug)]
enum Event {
    /// The message of this number arrives, the first time or again.
    Asked(usize),
    /// A master of this term is followed: its term is promised, without a vote.
    Told(u32),
    /// The process ends between its verdict on this message and the disk's word that the promise is stored.
    EndsBefore(usize),
    /// It ends after the promise was stored, and before the answer is sent.
    EndsAfter(usize),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0_usize..12).prop_map(Event::Asked),
        1 => (0_u32..6).prop_map(Event::Told),
        1 => (0_usize..12).prop_map(Event::EndsBefore),
        1 => (0_usize..12).prop_map(Event::EndsAfter),
    ]
}

/// What came of a voter's life.
#[derive(Default)]
struct Life {
    /// Whom it told that they have its vote, in each term.
    votes: BTreeMap<Term, BTreeSet<NodeId>>,
    /// Every promise that it stored, in order.
    promises: Vec<Promise>,
}

/// A voter that stores what it promises before it tells it, and knows after a restart what it stored.
fn live(voter: &Knows, letters: &[(u32, Vote)], events: &[Event]) -> Life {
    let mut life = Life::default();
    let mut stored = voter.promise.clone();
    for event in events {
        let knows = Knows { promise: stored.clone(), ..voter.clone() };
        let verdict = |number: usize| {
            let (term, vote) = &letters[number % letters.len()];
            match knows.judge(*term, vote) {
                Answer::Granted(Some(promise)) => Some(promise),
                Answer::Granted(None) | Answer::Refused(_) => None,
            }
        };
        match event {
            Event::Asked(number) => {
                let Some(promise) = verdict(*number) else { continue };
                stored = promise.clone();
                let (term, vote) = &letters[number % letters.len()];
                life.votes.entry(Term::new(*term)).or_default().insert(vote.candidate.clone());
            }
            Event::Told(term) if Term::new(*term) > stored.term => {
                stored = Promise { term: Term::new(*term), vote: None };
            }
            Event::Told(_) => {}
            Event::EndsBefore(number) => drop(verdict(*number)),
            Event::EndsAfter(number) => stored = verdict(*number).unwrap_or(stored),
        }
        life.promises.push(stored.clone());
    }
    life
}

fn any_letters() -> impl Strategy<Value = Vec<(u32, Vote)>> {
    prop::collection::vec((0_u32..6, any_vote()), 1..12)
}

/// A voter that may vote; what it hears and when it started do not matter to what may be told.
fn any_voter() -> impl Strategy<Value = Knows> {
    any_knowledge().prop_map(|mut voter| {
        (voter.promise.term, voter.standing) = (Term::NONE, Standing::Full { since: Term::NONE });
        (voter.promise.vote, voter.able) = (None, true);
        voter
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn duplicate_replayed_reordered_and_delayed_votes_are_harmless(
        voter in any_voter(),
        letters in any_letters(),
        events in prop::collection::vec(any_event(), 0..60),
    ) {
        let life = live(&voter, &letters, &events);
        for (term, candidates) in &life.votes {
            prop_assert!(candidates.len() == 1, "in {term:?} the vote went to {candidates:?}");
        }
        for two in life.promises.windows(2) {
            prop_assert!(two[0].term <= two[1].term, "a promise fell: {two:?}");
            let kept = two[0].term < two[1].term || two[0].vote.is_none() || two[0] == two[1];
            prop_assert!(kept, "a promise was broken: {two:?}");
        }
    }

    /// What a voter answers to one message depends on the promise alone, so asking twice in a row is asking once.
    #[test]
    fn a_message_that_arrives_twice_in_a_row_changes_nothing_the_second_time(
        voter in any_voter(),
        letters in any_letters(),
        events in prop::collection::vec(any_event(), 0..30),
    ) {
        let twice: Vec<Event> = events.iter().flat_map(|event| [event.clone(), event.clone()]).collect();
        let (one, two) = (live(&voter, &letters, &events), live(&voter, &letters, &twice));
        prop_assert_eq!(one.votes, two.votes);
        prop_assert_eq!(one.promises.last(), two.promises.last());
    }
}

#[cfg(feature = "planted")]
mod planted {
    use super::*;
    use crate::planted::plant;

    #[test]
    fn the_test_of_replayed_votes_sees_a_second_vote_in_a_term() {
        let letters = [(5, asks()), (5, Vote { candidate: id("b"), ..asks() })];
        let events = [Event::Asked(0), Event::Asked(1)];
        let votes = || live(&Knows::at_rest(), &letters, &events).votes[&Term::new(5)].len();
        assert_eq!(votes(), 1);
        plant(Some(Bug::SecondVoteInATerm));
        let with_the_bug = votes();
        plant(None);
        assert_eq!(with_the_bug, 2);
    }

    #[test]
    fn each_planted_bug_gives_a_vote_that_is_refused_without_it() {
        let hears = Knows { heard: heard("a", 10_000), ..Knows::at_rest() };
        let started = Knows { started: at(10_000), ..Knows::at_rest() };
        let wiped = Knows { standing: Standing::Newcomer, ..Knows::at_rest() };
        let longer = Vote { last: end(3, 99), ..asks() };
        for (bug, voter, vote, why) in [
            (Bug::VoteWhileMasterIsHeard, &hears, asks(), WhyNot::MasterAlive),
            (Bug::VoteWhileMasterIsHeard, &started, asks(), WhyNot::JustStarted),
            (Bug::WipedNodeVotes, &wiped, asks(), WhyNot::NotCaughtUp),
            (Bug::VoteComparesVlsnOnly, &Knows::at_rest(), longer, WhyNot::LogBehind),
        ] {
            assert_eq!(voter.judge(5, &vote), Answer::Refused(why), "{bug:?}");
            plant(Some(bug));
            let with_the_bug = voter.judge(5, &vote);
            plant(None);
            assert_eq!(with_the_bug, granted(5, "c"), "{bug:?}");
        }
    }
}
