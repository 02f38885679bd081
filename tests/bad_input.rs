//! What hostile or broken peers say to a live master and a live replica: each ends its one connection by name, loses
//! nothing, and leaves a good peer alone.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use common::nodes::*;
use common::{GROUP, t, v};
use quorate::channel::{self, Channel, ChannelError, Peer, ReceiveBuffer};
use quorate::entry::{EntryDamage, Placement, RunError, encode};
use quorate::members::Role;
use quorate::wire::frame::{FrameHeader, HEADER_LEN, MessageType, VERSION, payload_crc};
use quorate::wire::message::{
    Ack, Capabilities, Entries, Heartbeat, Hello, Matchpoint, Message, RejectReason, Welcome, WireError,
};
use quorate::{
    Address, EntryKind, FollowError, GroupId, Master, Member, NewEntry, Position, Replica, Vlsn, Wait,
    Watermark,
};

/// A live master with a good replica, `g`, and a seat for a bad one, `a`.
struct Served {
    group: Group,
    master: Master,
    good: Replica,
    book: Arc<Book>,
    its: Arc<Book>,
}

impl Served {
    fn new() -> Served {
        let group = Group::new(&["m", "a", "g"]);
        let (book, its) = (Arc::<Book>::default(), Arc::<Book>::default());
        let master = group.listening(&book);
        let good = group.dialling("g", &master, &its);
        commit(&master, b"first");
        Served { group, master, good, book, its }
    }

    fn hello(&self) -> Hello {
        hello(self.group.config("a"))
    }

    /// A peer whose stream has begun, with nothing yet.
    fn streaming(&self) -> Bare {
        let mut bare = Bare::dial(&self.master);
        bare.introduce(self.hello());
        bare.sync_up(None);
        bare
    }

    /// The connection of `a` ended for this reason, and the good one goes on.
    #[track_caller]
    fn ended(&self, mut bare: Bare, why: &str) {
        bare.hear_the_end();
        until(why, || stats_of(&self.master, "a").last_error.is_some_and(|said| said.contains(why)));
        self.goes_on();
    }

    #[track_caller]
    fn goes_on(&self) {
        commit(&self.master, b"meanwhile");
        settle(&self.master, &self.good);
        assert!(self.good.last_error().is_none(), "{:?}", self.good.last_error());
        assert!(self.master.poisoned().is_none());
    }

    fn finish(self) {
        self.master.close(patience());
        self.good.close(patience());
        assert_eq!(self.book.entries(), self.its.entries());
        assert!(self.group.log_bytes("m") == self.group.log_bytes("g"));
    }
}

fn raw(master: &Master) -> TcpStream {
    let Some(Address::Tcp(at)) = master.address() else { panic!("the master listens at TCP") };
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame_of(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(t(0), 0, &mut bytes);
    bytes
}

/// A header with one byte changed and its CRC made right again.
fn patched(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    let crc = crc32fast::hash(&frame[..28]);
    frame[28..32].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// A good frame of any type with any payload.
fn around(kind: MessageType, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let payload_len = payload.len() as u32;
    let payload_crc = payload_crc(kind, false, payload);
    let header = FrameHeader { kind, compressed: false, payload_len, term: t(1), sequence, payload_crc };
    [&header.encode()[..], payload].concat()
}

#[test]
fn bytes_that_are_no_hello_end_the_connection_before_anything_is_answered() {
    let served = Served::new();
    let good = frame_of(&Message::Hello(served.hello()));
    let before = served.master.topology_epoch();
    let long = [u8::MAX; 4].iter().zip(8..).fold(good.clone(), |frame, (byte, at)| patched(frame, at, *byte));
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: quorate\r\n\r\n".to_vec(),
        vec![0; 4096],
        (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
        patched(good.clone(), 0, b'X'),
        patched(good.clone(), 4, VERSION + 1),
        patched(good.clone(), 5, 200),
        patched(good.clone(), 6, 0x80),
        long,
        {
            let mut damaged = good.clone();
            *damaged.last_mut().unwrap() ^= 1;
            damaged
        },
        frame_of(&Message::Ack(Ack::default())),
        around(MessageType::Hello, 0, b"too short"),
    ] {
        let mut stream = raw(&served.master);
        stream.write_all(&bytes).unwrap();
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?} was answered to {bytes:?}");
    }
    // A frame that is cut short.
    let mut stream = raw(&served.master);
    stream.write_all(&good[..good.len() - 3]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    assert_eq!(served.master.topology_epoch(), before, "nobody was registered");
    served.goes_on();
    served.finish();
}

#[test]
fn strangers_are_refused_and_told_why() {
    let served = Served::new();
    let refused = |hello: Hello| {
        let mut bare = Bare::dial(&served.master);
        bare.say(&Message::Hello(hello));
        let reason = match bare.hear().unwrap() {
            (_, Message::Reject(reject)) => reject.reason,
            (_, other) => panic!("{other:?}"),
        };
        bare.hear_the_end();
        reason
    };
    let hello = || served.hello();
    assert_eq!(
        refused(Hello { group: GroupId::from_bits(5), ..hello() }),
        RejectReason::WrongGroup { ours: GROUP }
    );
    assert_eq!(refused(Hello { node: id("stranger"), ..hello() }), RejectReason::UnknownNode);
    assert_eq!(refused(Hello { node: id("m"), ..hello() }), RejectReason::OwnName);
    assert_eq!(refused(Hello { role: Role::Secondary, ..hello() }), RejectReason::MemberDiffers);
    assert_eq!(refused(Hello { region: "moon".into(), ..hello() }), RejectReason::MemberDiffers);
    assert_eq!(
        refused(Hello { versions: (VERSION + 1, VERSION + 9), ..hello() }),
        RejectReason::NoCommonVersion { min: VERSION, max: VERSION }
    );
    let last = Some(Position { vlsn: v(9), term: t(99), crc: 1 });
    assert_eq!(refused(Hello { last, ..hello() }), RejectReason::TermAhead { ours: t(1) });
    served.goes_on();
    served.finish();
}

#[test]
fn acks_that_cannot_be_true_end_the_connection_by_name() {
    let served = Served::new();
    let mut bare = served.streaming();
    bare.ack(Some(v(1_000_000)));
    served.ended(bare, "the replica acknowledges VLSN 1000000 as received, but only");

    let mut bare = served.streaming();
    bare.say(&Message::Ack(Ack { received: None, durable: Some(v(1)), applied: None, checkpointed: None }));
    served.ended(bare, "acknowledges VLSN 1 as durable, but only 0 as received");

    let mut bare = served.streaming();
    while !matches!(bare.hear().unwrap(), (_, Message::Entries(entries)) if entries.last >= v(2)) {}
    bare.ack(Some(v(2)));
    bare.ack(Some(v(1)));
    served.ended(bare, "acknowledges VLSN 1 as received, after it had acknowledged 2");
    assert_eq!(stats_of(&served.master, "a").positions.received, Some(v(2)));

    // The first ack states what was proved.
    let mut bare = Bare::dial(&served.master);
    bare.introduce(served.hello());
    bare.say(&Message::Syncup(quorate::wire::message::Syncup {
        last: None,
        committed: None,
        history: vec![],
    }));
    bare.hear().unwrap();
    bare.ack(Some(v(1)));
    served.ended(bare, "the replica starts at VLSN 1, but the matchpoint is 0");
    served.finish();
}

#[test]
fn messages_out_of_turn_and_missing_frames_end_the_connection_by_name() {
    let served = Served::new();
    let mut bare = Bare::dial(&served.master);
    bare.introduce(served.hello());
    bare.ack(None);
    served.ended(bare, "where syncup or entry request was expected");

    let mut bare = served.streaming();
    bare.say(&Message::Hello(served.hello()));
    served.ended(bare, "where ack, heartbeat reply, nack or bye was expected");

    for jump in [1, 5] {
        let mut bare = served.streaming();
        let expected = bare.sequence;
        bare.sequence = if jump == 1 { expected - 1 } else { expected + jump };
        let found = bare.sequence;
        bare.ack(None);
        served.ended(bare, &format!("frame {found} came where frame {expected} was expected"));
    }

    let bare = served.streaming();
    bare.say_bytes(&around(MessageType::Ack, bare.sequence, b"short"));
    served.ended(bare, "message ends inside its field");

    // A history that does not rise can't even be said; one that does not fit its end can.
    let mut bare = Bare::dial(&served.master);
    bare.introduce(served.hello());
    let history = vec![quorate::TermSpan { term: t(1), first: v(5) }];
    bare.say(&Message::Syncup(quorate::wire::message::Syncup { last: None, committed: None, history }));
    served.ended(bare, "the term history does not fit the log's last entry");
    served.finish();
}

#[test]
fn raw_garbage_in_the_middle_of_a_stream_ends_it_by_name() {
    let served = Served::new();
    for (bytes, why) in
        [(&[0xEE; 64][..], "magic"), (&frame_of(&Message::Fence)[..HEADER_LEN - 5], "ended inside a frame")]
    {
        let mut stream = raw(&served.master);
        let mut say = |message: &Message<'_>, sequence| {
            let mut bytes = Vec::new();
            message.encode(t(1), sequence, &mut bytes);
            stream.write_all(&bytes).unwrap();
        };
        say(&Message::Hello(served.hello()), 0);
        let none = quorate::wire::message::Syncup { last: None, committed: None, history: vec![] };
        say(&Message::Syncup(none), 1);
        say(&Message::Ack(Ack::default()), 2);
        until("it streams", || stats_of(&served.master, "a").sent.is_some());
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _reset = stream.read_to_end(&mut Vec::new());
        let said = || stats_of(&served.master, "a").last_error.unwrap_or_default();
        until(why, || !said().is_empty() && stats_of(&served.master, "a").connected_for.is_none());
        assert!(
            said().contains(why) || said().contains("not a frame") || said().contains("begin"),
            "{}",
            said()
        );
        served.goes_on();
    }
    served.finish();
}

/// A master that says what the test wants, to a live replica over TCP.
struct Fake {
    listener: Box<dyn channel::Listener>,
    replica: Replica,
    its: Arc<Book>,
    group: Group,
}

/// Entries with a right chain from `after` on, each in `term`.
fn chain(after: Option<Position>, term: u32, count: u64) -> (Vec<Vec<u8>>, Position) {
    let mut last = after;
    let mut all = Vec::new();
    for _ in 0..count {
        let vlsn = Vlsn::after(last.map(|last| last.vlsn));
        let at = Placement {
            vlsn: Some(vlsn),
            term: t(term),
            prev: last.map_or(0, |last| last.crc),
            timestamp: 7,
        };
        let mut bytes = Vec::new();
        let crc = encode(&NewEntry::data(&[vlsn.get() as u8; 40]), &at, &mut bytes);
        last = Some(Position { vlsn, term: t(term), crc });
        all.push(bytes);
    }
    (all, last.unwrap())
}

fn entries(first: u64, last: u64, run: &[u8]) -> Message<'_> {
    Message::Entries(Entries {
        committed: None,
        durable_wanted: None,
        applied_wanted: None,
        first: v(first),
        last: v(last),
        run,
    })
}

impl Fake {
    fn new() -> Fake {
        let group = Group::of(vec![Member::electable(id("m")), Member::electable(id("a"))]);
        let listener = channel::tcp::listen("127.0.0.1:0").unwrap();
        let its = Arc::<Book>::default();
        let mut config = group.config("a");
        config.upstream = Some(listener.address().clone());
        let replica = group.open_replica(config, &its);
        Fake { listener, replica, its, group }
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: VERSION,
            node: id("m"),
            incarnation: 1,
            session: 1,
            capabilities: Capabilities::NONE,
            max_frame: 1 << 20,
            heartbeat: std::time::Duration::from_secs(1),
            feed: quorate::wire::message::Feed::Leads,
        }
    }

    fn met(&self, term: u32) -> Bare {
        let mut bare = Bare::new(self.listener.accept(patience()).unwrap().unwrap());
        assert!(matches!(bare.hear().unwrap(), (_, Message::Hello(_))));
        bare.term = t(term);
        bare
    }

    /// A connection of term 5 whose stream has begun where the replica's log ends.
    fn streaming(&self) -> Bare {
        let mut bare = self.met(5);
        bare.say(&Message::Welcome(self.welcome()));
        let last = match bare.hear().unwrap() {
            (_, Message::Syncup(syncup)) => syncup.last,
            (_, other) => panic!("{other:?}"),
        };
        bare.say(&Message::Matchpoint(Matchpoint { at: last }));
        assert!(
            matches!(bare.hear().unwrap(), (_, Message::Ack(ack)) if ack.received == last.map(|l| l.vlsn))
        );
        bare
    }

    /// The replica ended the connection for this reason, and its log is as it was.
    #[track_caller]
    fn ended(&self, mut bare: Bare, is: impl Fn(&FollowError) -> bool) {
        let before = self.replica.last();
        bare.hear_the_end();
        until("it says why", || self.replica.last_error().is_some_and(|error| is(&error)));
        assert_eq!(self.replica.last(), before);
        assert!(self.replica.poisoned().is_none());
    }
}

#[test]
fn a_replica_refuses_entries_that_do_not_continue_its_log() {
    let fake = Fake::new();
    let mut bare = fake.streaming();
    let (good, last) = chain(None, 5, 3);
    bare.say(&entries(1, 3, &good.concat()));
    until("it has them", || fake.replica.last() == Some(last));
    drop(bare);
    let run = |name: &'static str,
               first: u64,
               last_vlsn: u64,
               bytes: Vec<u8>,
               is: &dyn Fn(&FollowError) -> bool| {
        let mut bare = fake.streaming();
        bare.say(&entries(first, last_vlsn, &bytes));
        println!("{name}");
        fake.ended(bare, is);
        assert_eq!(fake.replica.last(), Some(last), "{name}");
    };
    let (next, _) = chain(Some(last), 5, 3);
    let hole = next[1..].concat();
    run(
        "hole",
        5,
        6,
        hole,
        &|e| matches!(e, FollowError::Run(RunError::OutOfOrder { expected, found }) if (*expected, *found) == (v(4), v(5))),
    );
    let twice = [&good[2][..], &next[0]].concat();
    run(
        "repetition",
        3,
        4,
        twice,
        &|e| matches!(e, FollowError::Run(RunError::OutOfOrder { found, .. }) if *found == v(3)),
    );
    let inner_hole = [&next[0][..], &next[2]].concat();
    run(
        "hole inside",
        4,
        6,
        inner_hole,
        &|e| matches!(e, FollowError::Run(RunError::OutOfOrder { expected, .. }) if *expected == v(5)),
    );
    let (falling, _) = chain(Some(last), 4, 1);
    run(
        "falling term",
        4,
        4,
        falling.concat(),
        &|e| matches!(e, FollowError::Run(RunError::TermFalls { before, found, .. }) if (*before, *found) == (t(5), t(4))),
    );
    let (foreign, _) = chain(Some(Position { crc: last.crc ^ 1, ..last }), 5, 1);
    run("foreign chain", 4, 4, foreign.concat(), &|e| {
        matches!(e, FollowError::Run(RunError::Foreign { .. }))
    });
    let (newer, _) = chain(Some(last), 6, 1);
    run(
        "an entry of a newer term than its master",
        4,
        4,
        newer.concat(),
        &|e| matches!(e, FollowError::Term { found, expected } if (*found, *expected) == (t(6), t(5))),
    );
    let mut local = Vec::new();
    let at = Placement { vlsn: None, term: t(5), prev: last.crc, timestamp: 7 };
    encode(&NewEntry { kind: EntryKind::SYNC_MARK, txn: None, payload: b"mark" }, &at, &mut local);
    run(
        "local entry",
        4,
        4,
        local,
        &|e| matches!(e, FollowError::Run(RunError::Local { at }) if *at == v(4)),
    );
    run(
        "other first",
        3,
        6,
        next.concat(),
        &|e| matches!(e, FollowError::Announced { first, last } if (*first, *last) == (v(3), v(6))),
    );
    run("other last", 4, 9, next.concat(), &|e| matches!(e, FollowError::Announced { .. }));
    run("cut short", 4, 6, next.concat()[..200].to_vec(), &|e| {
        matches!(e, FollowError::Run(RunError::Damaged { damage: EntryDamage::Short { .. }, .. }))
    });
    // Every byte of an entry, header and payload.
    for at in 0..next[0].len() {
        let mut damaged = next[0].clone();
        damaged[at] ^= 0x10;
        run(
            "damage",
            4,
            4,
            damaged,
            &|e| matches!(e, FollowError::Run(RunError::Damaged { at, .. }) if *at == v(4)),
        );
    }
    // And a good master is followed after all that.
    let mut bare = fake.streaming();
    bare.say(&entries(4, 6, &next.concat()));
    until("it has them", || fake.replica.last().is_some_and(|last| last.vlsn == v(6)));
    assert!(fake.its.entries().is_empty(), "nothing was committed, so nothing was applied");
    drop(bare);
    fake.replica.close(patience());
    assert!(fake.group.log_bytes("a") == [good.concat(), next.concat()].concat());
}

#[test]
fn a_replica_refuses_masters_that_break_the_protocol() {
    let fake = Fake::new();
    let mut bare = fake.met(5);
    bare.say(&Message::Welcome(Welcome { node: id("stranger"), ..fake.welcome() }));
    fake.ended(bare, |e| e.to_string().contains("stranger is not among the members"));
    let mut bare = fake.met(5);
    bare.say(&Message::Welcome(Welcome { version: VERSION + 1, ..fake.welcome() }));
    fake.ended(bare, |e| e.to_string().contains("the master chose protocol version"));
    let mut bare = fake.met(5);
    bare.say(&Message::Welcome(Welcome { max_frame: u32::MAX, ..fake.welcome() }));
    fake.ended(bare, |e| e.to_string().contains("did not offer"));
    let mut bare = fake.met(5);
    bare.say(&Message::Matchpoint(Matchpoint { at: None }));
    fake.ended(bare, |e| matches!(e, FollowError::OutOfTurn { found: MessageType::Matchpoint, .. }));

    let mut bare = fake.streaming();
    let (good, _) = chain(None, 5, 1);
    bare.term = t(6);
    bare.say(&entries(1, 1, &good.concat()));
    fake.ended(
        bare,
        |e| matches!(e, FollowError::Term { found, expected } if (*found, *expected) == (t(6), t(5))),
    );
    let mut bare = fake.streaming();
    bare.sequence += 1;
    bare.say(&entries(1, 1, &good.concat()));
    fake.ended(bare, |e| matches!(e, FollowError::Sequence { found: 3, expected: 2 }));
    let mut bare = fake.streaming();
    bare.say(&Message::Ack(Ack::default()));
    fake.ended(bare, |e| matches!(e, FollowError::OutOfTurn { found: MessageType::Ack, .. }));
    let bare = fake.streaming();
    bare.say_bytes(&around(MessageType::Bye, 2, &[99]));
    fake.ended(bare, |e| matches!(e, FollowError::Wire(WireError::Value { field: "reason", .. })));
    let bare = fake.streaming();
    let mut frame = frame_of(&entries(1, 1, &good.concat()));
    frame[HEADER_LEN] ^= 1;
    bare.say_bytes(&frame);
    fake.ended(bare, |e| matches!(e, FollowError::Wire(WireError::Frame(_)) | FollowError::Channel(_)));
    // A master that was deposed.
    let mut bare = fake.met(4);
    bare.say(&Message::Welcome(fake.welcome()));
    let fence = bare.hear().map(|(header, message)| (header.term, matches!(message, Message::Fence)));
    assert_eq!(fence.unwrap(), (t(5), true));
    fake.ended(bare, |e| {
        e.to_string().contains("the master is in term 4, but this node has followed term 5")
    });
}

#[test]
fn a_replica_applies_nothing_beyond_its_own_log_whatever_is_said_to_be_committed() {
    let fake = Fake::new();
    let mut bare = fake.streaming();
    let (good, last) = chain(None, 5, 3);
    bare.say(&entries(1, 3, &good.concat()));
    bare.say(&Message::Heartbeat(Heartbeat {
        written: Some(v(1000)),
        flushed: Some(v(1000)),
        committed: Some(v(1000)),
        durable_wanted: Some(v(1000)),
        applied_wanted: None,
        health: quorate::Health::Healthy,
        clock: 1,
    }));
    until("it applied what it has", || fake.its.last() == Some(last.vlsn));
    assert_eq!(fake.replica.committed(), Some(last.vlsn));
}

/// A channel that tells when a frame has to wait for room.
struct TellsWhenFull(Arc<dyn Channel>, Arc<Watermark>);

impl Channel for TellsWhenFull {
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError> {
        if self.0.send(frame, Wait::Now)? {
            return Ok(true);
        }
        self.1.advance(1);
        self.0.send(frame, wait)
    }
    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        self.0.receive(buffer, wait)
    }
    fn close(&self) {
        self.0.close();
    }
    fn limit_frames(&self, max_frame: u32) {
        self.0.limit_frames(max_frame);
    }
    fn peer(&self) -> &Peer {
        self.0.peer()
    }
}

#[test]
fn an_ack_for_what_was_not_sent_yet_ends_the_connection_and_not_the_master() {
    let group = Group::new(&["m", "a", "g"]);
    let book = Arc::<Book>::default();
    let mut config = group.config("m");
    config.peer_timeout = std::time::Duration::from_secs(10);
    let master = group.open_master(config, &book);
    let (here, there) = channel::local::pair("deaf");
    let full = Arc::new(Watermark::new(0));
    master.accept(Arc::new(TellsWhenFull(here, Arc::clone(&full))));
    let mut bare = Bare::new(there);
    bare.introduce(hello(group.config("a")));
    bare.sync_up(None);
    for _ in 0..60 {
        master.append(&[NewEntry::data(&[7; 60_000])], quorate::Policy::Async).unwrap();
    }
    // It reads nothing: the channel is full, and a frame waits for room that the peer claims to have received.
    assert!(full.wait(1, patience()).unwrap());
    bare.ack(stats_of(&master, "a").sent);
    until("its connection ended", || stats_of(&master, "a").last_error.is_some());
    assert!(master.poisoned().is_none(), "{:?}", master.poisoned());
    assert!(stats_of(&master, "a").last_error.unwrap().contains("only"));
}

#[test]
fn a_stranger_does_not_fence_a_master() {
    let served = Served::new();
    let mut bare = Bare::dial(&served.master);
    bare.term = t(u32::MAX);
    bare.say(&Message::Fence);
    bare.hear_the_end();
    assert_eq!(served.master.fenced(), None);
    served.goes_on();
    served.finish();
}
