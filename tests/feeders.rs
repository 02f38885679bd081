//! Feeders as bare peers meet them: members that change, standing, contact, arbiters, relays, newer terms.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::memory::OwnLog;
use common::nodes::*;
use common::{GROUP, t, v};
use quorate::channel::{self, Channel, ChannelError, Peer, ReceiveBuffer};
use quorate::clock::{Deadline, deadline_in};
use quorate::commit::{CommitError, CommitGates, Mastership, Ticket};
use quorate::counters::Counters;
use quorate::feeder::{FeederState, Feeders, Relay, Upstream};
use quorate::handshake::Identity;
use quorate::members::{Roll, Standing};
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::wire::frame::VERSION;
use quorate::wire::message::{
    Ack, ByeReason, Feed, Heartbeat, HeartbeatReply, Hello, Message, RejectReason, Syncup,
};
use quorate::{
    Address, Admission, Change, Config, Health, Level, Member, Members, Outcome, Policy, Position, Quorum,
    Role, Term, TermSpan, Token, Vlsn, Wait,
};

const FULL: Standing = Standing::Full { since: Term::NONE };
/// The term that everybody is in, and begins at VLSN 1.
const TERM: u32 = 1;

fn member(name: &str, role: Role, admission: Admission) -> Member {
    Member { role, admission, ..Member::electable(id(name)) }
}

/// m leads; a and b vote, l learns, s is a secondary, w would be an arbiter.
fn list() -> Members {
    use Admission::{Full, Learner};
    let voters = ["m", "a", "b"].map(|name| Member::electable(id(name)));
    let others = [
        member("l", Role::Electable, Learner),
        member("s", Role::Secondary, Full),
        member("w", Role::Arbiter, Learner),
    ];
    Members::new(voters.into_iter().chain(others).collect()).unwrap()
}

struct Place {
    group: Group,
    log: OwnLog,
    feeders: Feeders,
    roll: Arc<Roll>,
    newer: Arc<AtomicU32>,
}

impl Place {
    fn new(members: Members) -> Place {
        Place::with(members, v(1), |_| ())
    }

    fn with(members: Members, start: Vlsn, change: impl FnOnce(&mut Config)) -> Place {
        let group = Group::of(members.iter().cloned().collect());
        let mut config = group.config("m");
        change(&mut config);
        let (log, roll) = (OwnLog::default(), Arc::new(Roll::new(members.clone())));
        let mastership =
            Mastership { group: GROUP, term: t(TERM), term_start: start, committed: start.previous() };
        let gates = CommitGates::new(mastership, &members, &id("m")).unwrap();
        let feeders = Feeders::new(
            Arc::new(config.check().unwrap()),
            Identity { incarnation: 1, session: 1 },
            Arc::clone(&roll),
            Arc::new(log.clone()),
            Arc::new(ThreadRuntime),
            Arc::new(gates),
            Arc::new(Counters::default()),
            Box::new(|stop| panic!("{stop}")),
        );
        let newer = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&newer);
        feeders.on_fence(Box::new(move |term| told.store(term.get(), Ordering::SeqCst)));
        Place { group, log, feeders, roll, newer }
    }

    fn append(&self) -> Vlsn {
        let vlsn = self.log.append(b"entry");
        self.feeders.appended(vlsn, Policy::MAJORITY);
        self.feeders.own_progress();
        vlsn
    }

    fn position(&self, vlsn: u64) -> Position {
        quorate::feeder::Source::position_at(&self.log, v(vlsn)).unwrap()
    }

    fn hello(&self, name: &str, role: Role, standing: Standing) -> Hello {
        let mut config = self.group.config(name);
        config.members = Members::new(vec![Member::electable(id("m")), Member::electable(id(name))]).unwrap();
        Hello { role, standing, ..hello(config) }
    }

    fn connect(&self) -> Bare {
        let (here, there) = channel::local::pair("feeders");
        self.feeders.accept(here, None);
        Bare::new(there)
    }

    /// A peer whose stream has begun, at the end of the log.
    fn peer(&self, name: &str, role: Role, standing: Standing) -> Bare {
        let mut peer = self.connect();
        peer.introduce(self.hello(name, role, standing));
        if role == Role::Arbiter {
            peer.ack(None);
        } else {
            let last = quorate::feeder::Source::last(&self.log).map(|last| self.position(last.get()));
            peer.sync_up(last);
        }
        peer
    }

    fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.feeders.gates().committed().get())
    }

    fn until_committed(&self, at: Vlsn) {
        until("it is committed", || self.committed() == Some(at));
    }

    fn change(&self, change: Change) {
        let members = self.roll.members().changed(&change).unwrap();
        self.feeders.set_members(Arc::new(members));
    }

    fn contact(&self) -> u64 {
        self.feeders.gates().contact().get()
    }

    fn rejected(&self, name: &str, role: Role) -> RejectReason {
        let mut peer = self.connect();
        peer.say(&Message::Hello(self.hello(name, role, FULL)));
        rejection(&mut peer)
    }
}

fn rejection(peer: &mut Bare) -> RejectReason {
    match peer.hear().unwrap() {
        (_, Message::Reject(reject)) => reject.reason,
        (_, other) => panic!("{other:?}"),
    }
}

fn now() -> Deadline {
    ThreadRuntime.clock().now()
}

/// Hears entries and heartbeats until one of these is what it looks for.
fn heartbeat(peer: &mut Bare, mut looked_for: impl FnMut(&Heartbeat) -> bool) -> Heartbeat {
    loop {
        match peer.hear().unwrap().1 {
            Message::Heartbeat(heartbeat) if looked_for(&heartbeat) => return heartbeat,
            Message::Heartbeat(_) | Message::Entries(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Hears until this entry is there, and acknowledges it.
fn take(peer: &mut Bare, vlsn: Vlsn) {
    loop {
        match peer.hear().unwrap().1 {
            Message::Entries(entries) if entries.last >= vlsn => break,
            Message::Heartbeat(_) | Message::Entries(_) => {}
            other => panic!("{other:?}"),
        }
    }
    peer.ack(Some(vlsn));
}

fn reply(peer: &mut Bare, clock: u64, standing: Standing) {
    peer.say(&Message::HeartbeatReply(HeartbeatReply { clock, health: Health::Healthy, standing }));
}

/// Why the other end says that it leaves.
fn goodbye(peer: &mut Bare) -> Option<ByeReason> {
    let mut said = None;
    while let Ok((_, message)) = peer.hear() {
        if let Message::Bye(bye) = message {
            said = Some(bye.reason);
        }
    }
    said
}

#[test]
fn a_learner_counts_from_its_promotion_on_and_a_removed_node_no_more() {
    let place = Place::new(list());
    let mut l = place.peer("l", Role::Electable, FULL);
    let one = place.append();
    take(&mut l, one);
    let mut a = place.peer("a", Role::Electable, FULL);
    until("the learner's ack is known", || {
        place.feeders.status().iter().any(|one| one.id == id("l") && one.positions.durable == Some(v(1)))
    });
    // a is at VLSN 1 already: with m it is a majority of three.
    place.until_committed(one);
    place.change(Change::Promote(id("l")));
    let two = place.append();
    // Of four voters three are needed: m, l, and a. The learner's stream goes on, and counts.
    take(&mut l, two);
    assert_eq!(place.committed(), Some(one));
    take(&mut a, two);
    place.until_committed(two);
    place.change(Change::Remove(id("a")));
    assert_eq!(goodbye(&mut a), Some(ByeReason::Removed));
    assert!(place.feeders.status().iter().all(|one| one.id != id("a")));
    assert_eq!(place.rejected("a", Role::Electable), RejectReason::UnknownNode);
    assert!(!place.log.pins.lock().contains_key("a"));
    // Two of m, b and l.
    let three = place.append();
    take(&mut l, three);
    place.until_committed(three);
    place.feeders.close();
}

#[test]
fn a_master_that_removed_itself_needs_a_majority_of_the_others() {
    let place = Place::new(list());
    let (mut a, mut b) = (place.peer("a", Role::Electable, FULL), place.peer("b", Role::Electable, FULL));
    place.change(Change::Remove(id("m")));
    let one = place.append();
    for peer in [&mut a, &mut b] {
        assert_eq!(place.committed(), None);
        take(peer, one);
    }
    place.until_committed(one);
    place.feeders.close();
}

#[test]
fn acks_count_when_the_standing_does() {
    let place = Place::new(list());
    let mut a = place.peer("a", Role::Electable, Standing::Newcomer);
    let one = place.append();
    take(&mut a, one);
    let beat = heartbeat(&mut a, |_| true);
    reply(&mut a, beat.clock, Standing::Doubtful { from: v(1) });
    // The next heartbeat has gone out after both were taken, or later.
    until("the ack is known", || {
        place.feeders.status().iter().any(|one| one.id == id("a") && one.positions.durable == Some(v(1)))
    });
    assert_eq!((place.committed(), place.contact()), (None, 0));
    assert!(place.feeders.admit(Policy::MAJORITY).is_err());
    let beat = heartbeat(&mut a, |_| true);
    reply(&mut a, beat.clock, Standing::Full { since: t(TERM) });
    place.until_committed(one);
    until("there is contact", || place.contact() >= beat.clock);
    place.feeders.close();
}

#[test]
fn a_newcomer_is_told_what_is_committed_when_an_entry_of_after_it_came_is() {
    for role in [Role::Electable, Role::Arbiter] {
        let voters = [Role::Electable, Role::Electable, role].into_iter().zip(["m", "b", "n"]);
        let voters = voters.map(|(role, name)| member(name, role, Admission::Full));
        let place = Place::new(Members::new(voters.collect()).unwrap());
        let mut b = place.peer("b", Role::Electable, FULL);
        let one = place.append();
        take(&mut b, one);
        place.until_committed(one);
        let mut n = place.peer("n", role, Standing::Newcomer);
        until("the newcomer to wait", || place.feeders.newcomer_waits());
        // That b follows is no sign that it will not vote for a master that n itself helped to make before.
        let came = now().as_nanos();
        let after = heartbeat(&mut b, |beat| beat.clock > came);
        reply(&mut b, after.clock, FULL);
        until("the answer to be taken", || place.contact() == after.clock);
        for _ in 0..3 {
            assert_eq!(heartbeat(&mut n, |_| true).committed, None, "{role:?}");
        }
        let two = place.append();
        assert!(!place.feeders.newcomer_waits());
        assert_eq!(heartbeat(&mut n, |beat| beat.clock > after.clock).committed, None, "{role:?}");
        take(&mut b, two);
        place.until_committed(two);
        assert_eq!(heartbeat(&mut n, |beat| beat.committed.is_some()).committed, Some(two), "{role:?}");
    }
}

/// A connection whose end here does not reach the other: what was under way goes on arriving.
struct HalfOpen(Arc<dyn Channel>);

impl Channel for HalfOpen {
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError> {
        self.0.send(frame, wait)
    }
    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        self.0.receive(buffer, wait)
    }
    fn close(&self) {}
    fn limit_frames(&self, max_frame: u32) {
        self.0.limit_frames(max_frame);
    }
    fn peer(&self) -> &Peer {
        self.0.peer()
    }
}

#[test]
fn a_late_ack_of_a_half_open_connection_does_not_count_for_the_node_that_was_wiped() {
    let place = Place::new(list());
    let (here, there) = channel::local::pair("feeders");
    place.feeders.accept(Arc::new(HalfOpen(here)), None);
    let mut old = Bare::new(there);
    old.introduce(place.hello("a", Role::Electable, FULL));
    old.sync_up(None);
    let one = place.append();
    // Its directory is made anew, and has nothing.
    let mut new = place.connect();
    let hello = place.hello("a", Role::Electable, Standing::Newcomer);
    new.introduce(Hello { incarnation: 99, session: 100, ..hello });
    new.sync_up(None);
    until("it is fed", || {
        let a = place.feeders.status().into_iter().find(|replica| replica.id == id("a")).unwrap();
        a.state != FeederState::Handshaking && !a.counts
    });
    old.ack(Some(one));
    old.hear_the_end();
    let a = place.feeders.status().into_iter().find(|replica| replica.id == id("a")).unwrap();
    assert_eq!((a.positions.durable, place.committed()), (None, None));
    let mut b = place.peer("b", Role::Electable, FULL);
    b.ack(Some(one));
    place.until_committed(one);
    place.feeders.close();
}

#[test]
fn heartbeats_go_out_on_a_stream_that_never_pauses() {
    let place = Place::new(list());
    let mut a = place.peer("a", Role::Electable, FULL);
    let began = now();
    // Five heartbeats' time, full of entries that come faster than heartbeats do.
    while now() - began < Duration::from_millis(100) {
        place.append();
        quorate::watermark::rest(Wait::Until(deadline_in(Duration::from_millis(1))));
    }
    let end = now().as_nanos();
    let (mut beats, mut entries) = (0, 0);
    loop {
        match a.hear().unwrap().1 {
            Message::Heartbeat(beat) if beat.clock > end => break,
            Message::Heartbeat(_) => beats += 1,
            Message::Entries(_) => entries += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        entries > 10 && (3..=entries).contains(&beats),
        "{beats} heartbeats among {entries} frames of entries"
    );
    place.feeders.close();
}

#[test]
fn a_beat_asks_everybody_at_once() {
    let hour = Duration::from_secs(60);
    let place = Place::with(list(), v(1), |config| {
        config.heartbeat = hour;
        config.peer_timeout = hour * 3;
    });
    let mut peers = ["a", "l", "s"].map(|name| {
        let role = if name == "s" { Role::Secondary } else { Role::Electable };
        place.peer(name, role, FULL)
    });
    until("the streams have begun", || {
        place.feeders.status().iter().filter(|one| one.state == quorate::FeederState::Streaming).count() == 3
    });
    let before = now().as_nanos();
    place.feeders.beat();
    for peer in peers.iter_mut().rev() {
        let beat = heartbeat(peer, |_| true);
        assert!(beat.clock >= before);
        // Neither a learner's answer nor a secondary's is a sign of the majority, nor is one to a heartbeat never sent.
        assert_eq!(place.contact(), 0);
        reply(peer, u64::MAX, FULL);
        reply(peer, beat.clock, FULL);
    }
    until("there is contact", || place.contact() >= before);
    assert!(place.contact() <= now().as_nanos());
    place.feeders.close();
}

fn with_arbiter() -> Members {
    let arbiter = member("w", Role::Arbiter, Admission::Full);
    Members::new(vec![Member::electable(id("m")), Member::electable(id("a")), arbiter]).unwrap()
}

#[test]
fn an_arbiter_is_told_what_is_flushed_and_acknowledges_no_more() {
    let place = Place::with(with_arbiter(), v(2), |config| {
        config.heartbeat = Duration::from_secs(60);
        config.peer_timeout = Duration::from_secs(600);
    });
    place.log.durable.store(1, Ordering::SeqCst);
    place.append();
    let mut w = place.peer("w", Role::Arbiter, FULL);
    assert_eq!(heartbeat(&mut w, |_| true).flushed, None, "nothing of an earlier term");
    let two = place.append();
    let three = place.append();
    place.log.durable.store(2, Ordering::SeqCst);
    place.feeders.own_progress();
    // At once: the next one that is due is a minute away.
    let beat = heartbeat(&mut w, |beat| beat.flushed.is_some());
    assert_eq!((beat.flushed, beat.written), (Some(two), Some(two)), "three is not flushed");
    w.ack(Some(two));
    place.until_committed(two);
    let received = Policy::Sync { quorum: Quorum::Majority, level: Level::Received };
    assert!(place.feeders.admit(received).is_err(), "it has nothing but what is durable");
    w.ack(Some(three));
    w.hear_the_end();
    until("it is said why", || {
        let status = place.feeders.status();
        let error = status.iter().find(|one| one.id == id("w")).and_then(|one| one.last_error.clone());
        error.is_some_and(|error| error.contains("only 2 was sent"))
    });
    // It comes back with its mark of this term.
    let mut again = place.connect();
    again.introduce(place.hello("w", Role::Arbiter, FULL));
    again.ack(Some(two));
    assert_eq!(heartbeat(&mut again, |_| true).flushed, Some(two));
    assert_eq!(place.committed(), Some(two));
    // No entries, and no engine either.
    again.say(&Message::Ack(Ack {
        received: Some(two),
        durable: Some(two),
        applied: Some(two),
        checkpointed: None,
    }));
    again.hear_the_end();
    place.feeders.close();
}

#[test]
fn an_arbiters_mark_is_of_this_term_and_flushed_here() {
    let place = Place::with(with_arbiter(), v(2), |_| ());
    for _ in 0..3 {
        place.append();
    }
    for mark in [1, 4] {
        let mut w = place.connect();
        w.introduce(place.hello("w", Role::Arbiter, FULL));
        w.ack(Some(v(mark)));
        w.hear_the_end();
    }
    assert_eq!(place.committed(), Some(v(1)));
    place.feeders.close();
}

#[test]
fn a_dispatcher_may_have_read_the_first_frame() {
    let place = Place::new(list());
    let (here, there) = channel::local::pair("feeders");
    let mut frame = Vec::new();
    Message::Hello(place.hello("a", Role::Electable, FULL)).encode(Term::NONE, 0, &mut frame);
    place.feeders.accept(here, Some(frame));
    let mut a = Bare { sequence: 1, ..Bare::new(there) };
    assert!(matches!(a.hear().unwrap().1, Message::Welcome(welcome) if welcome.feed == Feed::Leads));
    a.term = t(TERM);
    a.sync_up(None);
    let one = place.append();
    take(&mut a, one);
    place.until_committed(one);
    place.feeders.close();
}

#[test]
fn whoever_was_welcomed_and_speaks_of_a_newer_term_fences() {
    for fence in [Message::Fence, Message::Ack(Ack::default())] {
        let place = Place::new(list());
        let mut a = place.connect();
        a.term = t(9);
        a.introduce(place.hello("a", Role::Electable, FULL));
        assert_eq!(place.newer.load(Ordering::SeqCst), 0, "a hello is no proof");
        a.term = t(5);
        a.say(&fence);
        a.hear_the_end();
        assert_eq!(place.newer.load(Ordering::SeqCst), 5);
        assert_eq!(place.feeders.fenced(), Some(t(5)));
        assert!(place.feeders.admit(Policy::Async).is_err());
        place.feeders.close();
    }
    let place = Place::new(list());
    let mut a = place.connect();
    a.introduce(place.hello("a", Role::Electable, FULL));
    a.term = t(u32::MAX);
    a.say(&Message::Fence);
    a.hear_the_end();
    assert_eq!(place.feeders.fenced(), None, "nobody gets there");
    place.feeders.close();
}

#[test]
fn whoever_was_welcomed_and_speaks_in_a_term_that_is_over_is_told_so_and_counts_for_nothing() {
    let place = Place::new(list());
    // Before the stream begins it is told the term of the master; its stand, too, would count for nothing.
    let mut a = place.connect();
    a.introduce(place.hello("a", Role::Electable, FULL));
    a.term = Term::NONE;
    a.say(&Message::Syncup(Syncup { last: None, committed: None, history: Vec::new() }));
    let (header, message) = a.hear().unwrap();
    assert!(header.term == t(TERM) && matches!(message, Message::Fence), "{message:?}");
    a.hear_the_end();
    // And amid the stream its acks commit nothing.
    let mut a = place.peer("a", Role::Electable, FULL);
    let one = place.append();
    a.term = Term::NONE;
    a.ack(Some(one));
    a.hear_the_end();
    until("it is told why", || {
        let a = place.feeders.status().into_iter().find(|replica| replica.id == id("a"));
        a.and_then(|a| a.last_error).is_some_and(|why| why.starts_with("the replica speaks in term 0"))
    });
    assert_eq!((place.committed(), place.feeders.fenced()), (None, None));
    // Another voter, who has it, is needed, and is enough.
    let _b = place.peer("b", Role::Electable, FULL);
    place.until_committed(one);
    place.feeders.close();
}

#[test]
fn a_deposed_master_says_so_to_replicas_and_writers() {
    let place = Place::new(list());
    let mut a = place.peer("a", Role::Electable, FULL);
    let one = place.append();
    until("it may stand", || place.feeders.ask_to_stand(&id("a")));
    loop {
        match a.hear().unwrap().1 {
            Message::Stand => break,
            Message::Heartbeat(_) | Message::Entries(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(!place.feeders.ask_to_stand(&id("b")), "it is not connected");
    let token = Token { group: GROUP, term: t(TERM), vlsn: one };
    let ticket = Ticket { token, policy: Policy::MAJORITY, since: now() };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| place.feeders.wait(&ticket, patience()));
        place.feeders.depose(Some(t(7)));
        assert!(matches!(writer.join().unwrap(), Err(CommitError::Deposed(_))));
    });
    // Unsaid, if its sender was busy just then.
    assert!(matches!(goodbye(&mut a), None | Some(ByeReason::Deposed)));
    assert_eq!(place.feeders.fenced(), Some(t(7)));
    place.connect().hear_the_end();
    place.feeders.close();
    let late = place.feeders.wait(&ticket, Wait::Now);
    assert!(matches!(late, Err(CommitError::Deposed(_))), "the first reason stays: {late:?}");
}

/// A node that follows and has this much.
fn relay(place: &Place, log: &OwnLog, committed: u64) -> Relay {
    Relay::new(
        Arc::new(place.group.config("a").check().unwrap()),
        Identity { incarnation: 2, session: 2 },
        Arc::clone(&place.roll),
        Arc::new(log.clone()),
        Arc::new(ThreadRuntime),
        Upstream {
            term: t(3),
            committed: Box::new(move || Vlsn::new(committed)),
            hint: Box::new(|| Some(Address::Local("the master".into()))),
        },
        Arc::new(Counters::default()),
        Box::new(|stop| panic!("{stop}")),
    )
}

fn meet(relay: &Relay) -> Bare {
    let (here, there) = channel::local::pair("relay");
    relay.accept(here, None);
    Bare::new(there)
}

#[test]
fn a_relay_feeds_secondaries_and_orders_nobody_to_cut() {
    let place = Place::new(list());
    let log = OwnLog::default();
    for _ in 0..3 {
        log.append(b"entry");
    }
    let relay = relay(&place, &log, 2);
    let hint = Some(Address::Local("the master".into()));
    for (name, role) in [("b", Role::Electable), ("l", Role::Electable), ("w", Role::Arbiter)] {
        let mut voter = meet(&relay);
        voter.say(&Message::Hello(place.hello(name, role, FULL)));
        assert_eq!(rejection(&mut voter), RejectReason::NotMaster { hint: hint.clone() }, "{name}");
    }
    // It has an entry more than the relay, of its last term.
    let mut ahead = meet(&relay);
    ahead.say(&Message::Hello(place.hello("s", Role::Secondary, FULL)));
    assert!(matches!(ahead.hear().unwrap(), (header, Message::Welcome(welcome))
        if header.term == t(3) && welcome.feed == Feed::Follows && welcome.version == VERSION));
    let last = Position { vlsn: v(4), ..quorate::feeder::Source::position_at(&log, v(3)).unwrap() };
    let history = vec![TermSpan { term: t(1), first: v(1) }];
    ahead.term = t(3);
    ahead.say(&Message::Syncup(Syncup { last: Some(last), committed: None, history }));
    assert!(matches!(ahead.hear().unwrap().1, Message::Behind(behind) if behind.last == Some(v(3))));
    ahead.hear_the_end();
    let mut s = meet(&relay);
    s.introduce(place.hello("s", Role::Secondary, FULL));
    s.sync_up(None);
    match s.hear().unwrap().1 {
        Message::Entries(entries) => {
            assert_eq!((entries.first, entries.last, entries.committed), (v(1), v(3), Some(v(2))));
        }
        other => panic!("{other:?}"),
    }
    s.ack(Some(v(3)));
    until("its ack is known", || log.pins.lock().get("replica:s") == Some(&v(4)));
    relay.appended(log.append(b"more"));
    loop {
        match s.hear().unwrap().1 {
            Message::Entries(entries) => {
                assert_eq!(entries.first, v(4));
                break;
            }
            Message::Heartbeat(beat) => assert_eq!(beat.committed, Some(v(2))),
            other => panic!("{other:?}"),
        }
    }
    relay.close();
    // Unsaid, if its sender was busy just then.
    assert!(matches!(goodbye(&mut s), None | Some(ByeReason::Closing)));
    place.feeders.close();
}

#[test]
fn policies_of_a_group_with_an_arbiter_end_as_they_say() {
    let place = Place::new(with_arbiter());
    let mut w = place.peer("w", Role::Arbiter, FULL);
    let one = place.append();
    heartbeat(&mut w, |beat| beat.flushed == Some(one));
    let token = Token { group: GROUP, term: t(TERM), vlsn: one };
    let ticket = Ticket { token, policy: Policy::MAJORITY, since: now() };
    w.ack(Some(one));
    assert_eq!(place.feeders.wait(&ticket, patience()).unwrap(), Some(Outcome::Committed));
    place.feeders.close();
}
