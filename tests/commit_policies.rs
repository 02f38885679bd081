//! Every policy from append to outcome, over real replicas.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::nodes::*;
use common::v;
use quorate::clock::{Stopwatch, deadline_in};
use quorate::commit::Refused;
use quorate::wire::message::Message;
use quorate::{
    CommitError, Feeding, Health, Level, Master, Member, NewEntry, Outcome, Policy, Quorum, Replica, Role,
    Ticket, Vlsn, Wait, WriteRefused,
};

const LEVELS: [Level; 4] = [Level::Received, Level::Durable, Level::Applied, Level::Checkpointed];

type Fed = Vec<(Replica, Arc<Book>)>;

fn three() -> (Group, Master, Arc<Book>, Fed) {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let replicas = ["a", "b"].map(|name| {
        let its = Arc::<Book>::default();
        (group.dialling(name, &master, &its), its)
    });
    commit(&master, b"all are here");
    replicas.iter().for_each(|(replica, _)| settle(&master, replica));
    (group, master, book, replicas.into())
}

fn soon() -> Wait {
    Wait::Until(deadline_in(Duration::from_millis(50)))
}

/// The node's position at this level has come to the entry.
fn has(replica: &Replica, level: Level, vlsn: Vlsn) -> bool {
    replica.positions().at(level) >= Some(vlsn)
}

#[test]
fn async_is_acked_at_once_and_committed_later() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let ticket = append(&master, b"nobody is here", Policy::Async);
    assert_eq!(master.commit(&ticket, Wait::Now).unwrap(), Outcome::Acked);
    let _replica = group.dialling("a", &master, &Arc::default());
    commit(&master, b"somebody is");
    assert_eq!(master.commit(&ticket, Wait::Now).unwrap(), Outcome::Committed);
    let outcome = master.write(&[NewEntry::data(b"x")], Policy::Async, patience()).unwrap();
    assert!(matches!(outcome, Outcome::Acked | Outcome::Committed));
}

#[test]
fn semi_sync_degrades_visibly_waits_no_more_and_recovers() {
    let (_group, master, _book, replicas) = three();
    let policy = Policy::SemiSync { acks: 2, level: Level::Durable, timeout: Duration::from_millis(200) };
    let ticket = append(&master, b"in time", policy);
    assert_ne!(master.commit(&ticket, patience()).unwrap(), Outcome::Degraded);
    for name in ["a", "b"] {
        assert!(master.set_feeding(&id(name), Feeding::Paused));
    }
    let first = append(&master, b"too late", policy);
    assert_eq!(master.commit(&first, patience()).unwrap(), Outcome::Degraded);
    let stats = master.stats();
    assert_eq!(stats.health, Health::Degraded);
    assert!(stats.gates.iter().any(|gate| gate.degraded), "{:?}", stats.gates);
    assert!(stats.to_string().contains("degraded"));
    // Further ones do not wait: all of these would take 20 s.
    let watch = Stopwatch::start();
    for _ in 0..100 {
        let ticket = append(&master, b"unwaited", policy);
        assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Degraded);
    }
    assert!(watch.elapsed() < Duration::from_secs(10), "{:?}", watch.elapsed());
    for name in ["a", "b"] {
        assert!(master.set_feeding(&id(name), Feeding::Running));
    }
    replicas.iter().for_each(|(replica, _)| settle(&master, replica));
    until("it recovered", || master.stats().health == Health::Healthy);
    let generous = Policy::SemiSync { acks: 2, level: Level::Durable, timeout: PATIENCE };
    let ticket = append(&master, b"waited for again", generous);
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    assert_eq!(master.commit(&first, patience()).unwrap(), Outcome::Committed);
}

#[test]
fn every_quorum_at_every_level_means_what_it_says() {
    let (_group, master, _book, replicas) = three();
    for level in LEVELS {
        for (quorum, others) in
            [(Quorum::Acks(1), 1), (Quorum::Majority, 1), (Quorum::Acks(2), 2), (Quorum::All, 2)]
        {
            for entry in [&b"one"[..], b"another"] {
                let ticket = append(&master, entry, Policy::Sync { quorum, level });
                let vlsn = ticket.token.vlsn;
                let outcome = master.commit(&ticket, patience()).unwrap();
                let have = replicas.iter().filter(|(replica, _)| has(replica, level, vlsn)).count();
                assert!(have >= others, "{quorum} {level}: {have} replicas have VLSN {vlsn}");
                assert!(master.positions().at(level) >= Some(vlsn), "{quorum} {level}: the master counts");
                if level >= Level::Durable {
                    assert_eq!(outcome, Outcome::Committed, "{quorum} {level}");
                }
            }
        }
    }
}

#[test]
fn all_waits_for_the_last_engine() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let held = Book::held_at(1);
    let _a = group.dialling("a", &master, &Arc::default());
    let _b = group.dialling("b", &master, &held);
    let majority = Policy::Sync { quorum: Quorum::Majority, level: Level::Applied };
    let ticket = append(&master, b"x", majority);
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    let ticket = append(&master, b"x", Policy::Sync { quorum: Quorum::All, level: Level::Applied });
    match master.commit(&ticket, soon()).unwrap_err() {
        CommitError::TimedOut(what) => assert!(!what.acked_by.contains(&id("b")), "{what}"),
        other => panic!("{other}"),
    }
    held.allowed.advance(u64::MAX);
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
}

#[test]
fn the_first_gate_refuses_and_writes_nothing() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let last = master.last();
    let refused = master.append(&[NewEntry::data(b"x")], Policy::MAJORITY).unwrap_err();
    assert!(refused.is_temporary());
    let text = refused.to_string();
    assert!(text.contains("nothing was written") && text.contains("needs 2 voters"), "{text}");
    assert_eq!(master.last(), last);
    let _a = group.dialling("a", &master, &Arc::default());
    commit(&master, b"two of three");
    let last = master.last();
    for quorum in [Quorum::All, Quorum::Acks(2), Quorum::Regions(1)] {
        let policy = Policy::Sync { quorum, level: Level::Durable };
        let refused = master.append(&[NewEntry::data(b"x")], policy).unwrap_err();
        assert!(
            matches!(refused, WriteRefused::Refused(Refused::Insufficient(too_few)) if too_few.connected == 2),
            "{refused}"
        );
    }
    assert_eq!(master.last(), last);
    let reserved = NewEntry { kind: quorate::EntryKind::TERM_START, txn: None, payload: b"" };
    assert!(matches!(master.append(&[reserved], Policy::Async), Err(WriteRefused::ReservedKind(_))));
    assert!(matches!(master.append(&[], Policy::Async), Err(WriteRefused::Append(_))));
    assert_eq!(master.last(), last);
}

#[test]
fn a_timeout_names_the_entry_who_has_it_and_what_is_needed() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let mut mute = Bare::dial(&master);
    mute.introduce(hello(group.config("a")));
    mute.sync_up(None);
    let ticket = append(&master, b"x", Policy::MAJORITY);
    let error = master.commit(&ticket, soon()).unwrap_err();
    let text = error.to_string();
    let CommitError::TimedOut(what) = error else { panic!("{text}") };
    assert_eq!((what.token, what.needed), (ticket.token, 2));
    assert_eq!(what.acked_by, [id("m")], "the master has flushed it by now");
    assert!(text.contains("VLSN 2") && text.contains("unknown") && text.contains("durable on m"), "{text}");
    // It was appended, and is committed once somebody acks it.
    while !matches!(mute.hear().unwrap(), (_, Message::Entries(entries)) if entries.last == v(2)) {}
    mute.ack(Some(v(2)));
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    assert_eq!(master.stats().counted.undecided, 1);
}

#[test]
fn a_region_quorum_needs_a_voter_in_a_second_region() {
    let at = |name, region: &str| Member { region: region.into(), ..Member::electable(id(name)) };
    let group = Group::of(vec![at("m", "east"), at("a", "east"), at("b", "west")]);
    let master = group.listening(&Arc::default());
    let _a = group.dialling("a", &master, &Arc::default());
    commit(&master, b"a majority in the east");
    let two = Policy::Sync { quorum: Quorum::Regions(2), level: Level::Durable };
    let last = master.last();
    let refused = master.append(&[NewEntry::data(b"x")], two).unwrap_err();
    assert!(refused.to_string().contains("in 1 regions"), "{refused}");
    assert_eq!(master.last(), last);
    let b = group.dialling("b", &master, &Arc::default());
    let ticket = append(&master, b"x", two);
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    assert!(has(&b, Level::Durable, ticket.token.vlsn));
    // With the west paused, the east alone commits for a majority and not for two regions.
    assert!(master.set_feeding(&id("b"), Feeding::Paused));
    let ticket = append(&master, b"y", two);
    let majority = Ticket { policy: Policy::MAJORITY, ..ticket };
    assert_eq!(master.commit(&majority, patience()).unwrap(), Outcome::Committed);
    assert!(!has(&b, Level::Durable, ticket.token.vlsn));
    assert_eq!(master.poll(&ticket), Ok(None), "not decided");
    let gates = master.stats().gates;
    let gate = gates.iter().find(|gate| gate.rule.quorum == Quorum::Regions(2)).unwrap();
    assert!(gate.reached < Some(ticket.token.vlsn), "two regions do not have it: {gate:?}");
    assert!(master.set_feeding(&id("b"), Feeding::Running));
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    until("the west has it", || has(&b, Level::Durable, ticket.token.vlsn));
}

#[test]
fn a_secondarys_acks_count_for_nothing() {
    let secondary = Member { role: Role::Secondary, ..Member::electable(id("s")) };
    let group = Group::of(vec![Member::electable(id("m")), Member::electable(id("a")), secondary]);
    let master = group.listening(&Arc::default());
    let reader = group.dialling("s", &master, &Arc::default());
    let ticket = append(&master, b"x", Policy::Async);
    until("the secondary has it", || has(&reader, Level::Durable, ticket.token.vlsn));
    until("and said so", || stats_of(&master, "s").positions.durable == Some(ticket.token.vlsn));
    assert_eq!(master.committed(), None);
    assert!(master.append(&[NewEntry::data(b"y")], Policy::MAJORITY).unwrap_err().is_temporary());
    let _voter = group.dialling("a", &master, &Arc::default());
    commit(&master, b"z");
    settle(&master, &reader);
}

#[test]
fn what_sixteen_threads_were_told_is_committed_is_on_a_majority_of_disks() {
    let (group, master, book, replicas) = three();
    let policies = [
        Policy::Async,
        Policy::MAJORITY,
        Policy::SemiSync { acks: 1, level: Level::Received, timeout: Duration::from_millis(20) },
        Policy::SemiSync { acks: 2, level: Level::Applied, timeout: Duration::from_millis(20) },
        Policy::Sync { quorum: Quorum::All, level: Level::Received },
        Policy::Sync { quorum: Quorum::Acks(1), level: Level::Applied },
        Policy::Sync { quorum: Quorum::Acks(2), level: Level::Durable },
        Policy::Sync { quorum: Quorum::Majority, level: Level::Checkpointed },
    ];
    let told: Vec<(Vlsn, Outcome)> = std::thread::scope(|scope| {
        let master = &master;
        let writers: Vec<_> = (0..16_usize)
            .map(|writer| {
                scope.spawn(move || {
                    let mut told = Vec::new();
                    for n in 0..25 {
                        let ticket =
                            append(master, &[writer as u8; 64], policies[(writer + n) % policies.len()]);
                        told.push((ticket.token.vlsn, master.commit(&ticket, patience()).unwrap()));
                    }
                    told
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(told.len(), 400);
    // Nothing is given time to catch up: the replicas stop where they are.
    drop(replicas);
    master.close(patience());
    let mut ends: Vec<_> = ["m", "a", "b"]
        .map(|name| {
            let log = group.log(name);
            let end = log.last().map(|last| last.vlsn);
            log.close().unwrap();
            end
        })
        .into();
    ends.sort_unstable();
    let committed = told.iter().filter(|(_, outcome)| *outcome == Outcome::Committed).map(|(vlsn, _)| *vlsn);
    let highest = committed.max();
    assert!(highest.is_some() && ends[1] >= highest, "{highest:?} was committed, the logs end at {ends:?}");
    let all = group.log_bytes("m");
    for name in ["a", "b"] {
        assert!(all.starts_with(&group.log_bytes(name)), "{name}");
    }
    assert!(book.entries().len() <= 402);
}
