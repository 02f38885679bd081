//! A master and its replicas on real threads, files and sockets.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::nodes::*;
use common::{GROUP, t, v};
use quorate::clock::Stopwatch;
use quorate::disk::RealDisk;
use quorate::handshake::WelcomeError;
use quorate::node::{Answer, TokenError};
use quorate::state::{State, StateFile};
use quorate::syncup::SyncupError;
use quorate::wire::message::{EntryRequest, Message, RejectReason};
use quorate::{
    Address, Compression, FeederState, Feeding, FollowError, Master, NewEntry, Outcome, Policy, Replica,
    ReplicaState, Token, Wait, channel,
};

/// Feeds two replicas from a master and compares everything at the end.
fn converge(group: &Group, master: Master, book: &Arc<Book>, replicas: Vec<(Replica, Arc<Book>)>) {
    for n in 0..200_u32 {
        commit(&master, &n.to_le_bytes().repeat(n as usize % 40));
    }
    for (replica, _) in &replicas {
        settle(&master, replica);
        assert_eq!(replica.last(), master.last());
        assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
    }
    master.close(patience());
    assert_eq!(book.entries().len(), 201);
    let bytes = group.log_bytes("m");
    for ((replica, its), name) in replicas.into_iter().zip(["a", "b"]) {
        replica.close(patience());
        assert_eq!(its.entries(), book.entries(), "{name}");
        drop(replica);
        assert!(group.log_bytes(name) == bytes, "the log of {name} differs");
    }
}

fn dialled(at: Address) {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let mut config = group.config("m");
    config.listen = Some(at);
    let master = group.open_master(config, &book);
    let replicas = ["a", "b"].map(|name| {
        let book = Arc::<Book>::default();
        (group.dialling(name, &master, &book), book)
    });
    converge(&group, master, &book, replicas.into());
}

#[test]
fn replicas_converge_over_pairs_in_memory() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let master = group.master(&book);
    let replicas = ["a", "b"].map(|name| {
        let book = Arc::<Book>::default();
        let replica = group.replica(name, &book);
        join(&master, &replica);
        (replica, book)
    });
    converge(&group, master, &book, replicas.into());
}

#[test]
fn replicas_converge_over_tcp() {
    dialled(Address::Tcp("127.0.0.1:0".into()));
}

#[test]
fn replicas_converge_over_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    dialled(Address::Unix(dir.path().join("socket")));
}

#[test]
fn compressed_batches_arrive_as_they_were() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    config.compression = Compression::Lz4;
    let master = group.open_master(config, &book);
    for n in 0..500_u32 {
        master.append(&[NewEntry::data(&[n as u8; 2000])], Policy::Async).unwrap();
    }
    let mut config = group.config("a");
    config.compression = Compression::Lz4;
    let replica = group.open_replica(config, &its);
    let (here, there) = channel::local::pair("test");
    let there = Arc::new(Metered::new(there));
    master.accept(here);
    replica.follow(Arc::clone(&there) as Arc<dyn channel::Channel>);
    settle(&master, &replica);
    let seen = there.received.load(Ordering::SeqCst);
    assert!(seen < 200_000, "{seen} bytes came for a million");
    master.close(patience());
    replica.close(patience());
    assert!(group.log_bytes("m") == group.log_bytes("a"));
    assert_eq!(book.entries(), its.entries());
}

#[test]
fn a_replica_with_a_lower_limit_on_frames_is_sent_no_longer_ones() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    (config.batch_bytes, config.max_payload) = (256 << 10, 16 << 10);
    let master = group.open_master(config, &book);
    for n in 0..40_u32 {
        master.append(&[NewEntry::data(&[n as u8; 10_000])], Policy::Async).unwrap();
    }
    let mut config = group.config("a");
    (config.max_frame, config.batch_bytes, config.max_payload) = (64 << 10, 64 << 10, 16 << 10);
    let replica = group.open_replica(config, &its);
    join(&master, &replica);
    settle(&master, &replica);
    assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
}

/// A channel that counts what it receives.
struct Metered {
    inner: Arc<dyn channel::Channel>,
    received: std::sync::atomic::AtomicU64,
    /// If set, it always says that another frame has come behind.
    buffer: Option<parking_lot::Mutex<channel::ReceiveBuffer>>,
}

impl Metered {
    fn new(inner: Arc<dyn channel::Channel>) -> Metered {
        Metered { inner, received: 0.into(), buffer: None }
    }
}

impl channel::Channel for Metered {
    fn send(&self, frame: &[std::io::IoSlice<'_>], wait: Wait) -> Result<bool, channel::ChannelError> {
        self.inner.send(frame, wait)
    }
    fn receive<'b>(
        &self,
        buffer: &'b mut channel::ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, channel::ChannelError> {
        if let Some(own) = &self.buffer {
            let frame = self.inner.receive(&mut own.lock(), wait)?.map(<[u8]>::to_vec);
            return Ok(frame.map(|frame| {
                buffer.hold(frame, true);
                buffer.lent()
            }));
        }
        let frame = self.inner.receive(buffer, wait)?;
        self.received.fetch_add(frame.map_or(0, <[u8]>::len) as u64, Ordering::SeqCst);
        Ok(frame)
    }
    fn close(&self) {
        self.inner.close();
    }
    fn limit_frames(&self, max_frame: u32) {
        self.inner.limit_frames(max_frame);
    }
    fn peer(&self) -> &channel::Peer {
        self.inner.peer()
    }
}

#[test]
fn a_replica_that_comes_back_is_sent_only_what_it_lacks() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let master = group.listening(&book);
    let replica = group.dialling("a", &master, &its);
    for _ in 0..100 {
        commit(&master, &[1; 1000]);
    }
    settle(&master, &replica);
    replica.close(patience());
    drop(replica);
    until("the master saw it go", || stats_of(&master, "a").state == FeederState::Idle);
    let before = master.stats().counted.bytes_sent;
    for _ in 0..10 {
        master.append(&[NewEntry::data(&[2; 1000])], Policy::Async).unwrap();
    }
    let replica = group.dialling("a", &master, &its);
    settle(&master, &replica);
    let sent = master.stats().counted.bytes_sent - before;
    assert_eq!(sent, 10 * 1036, "ten entries, each once");
    assert!(replica.last_error().is_none());
}

#[test]
fn a_master_opened_again_takes_a_new_term_and_its_replicas_cut_what_it_lacks() {
    let (group, book) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default());
    let books = [Arc::<Book>::default(), Arc::default()];
    let master = group.listening(&book);
    let replica = group.dialling("a", &master, &books[0]);
    for _ in 0..20 {
        commit(&master, b"both have it");
    }
    settle(&master, &replica);
    let (last, old_term) = (master.last().unwrap(), master.term());
    replica.close(patience());
    master.close(patience());
    drop((replica, master));
    // The replica had received entries that the master lost with its memory.
    let log = group.log("a");
    for n in 0..5_u8 {
        log.append(old_term, &[NewEntry::data(&[n; 50])]).unwrap();
    }
    log.close().unwrap();
    drop(log);

    let master = group.listening(&book);
    assert_eq!(master.term(), old_term.next());
    let replica = group.dialling("a", &master, &books[0]);
    let ticket = commit(&master, b"in their place");
    settle(&master, &replica);
    assert_eq!(replica.last(), master.last());
    let saved = common::names(&group.log_dir("a"), ".log");
    let saved: Vec<_> = saved.iter().filter(|name| name.starts_with("rolledback-")).collect();
    assert_eq!(saved.len(), 1, "what was cut was saved: {saved:?}");
    // Tokens of the lost entries, and of their successors.
    for vlsn in last.vlsn.get() + 1..=last.vlsn.get() + 5 {
        let lost = Token { group: GROUP, term: old_term, vlsn: v(vlsn) };
        assert_eq!(master.ask(&lost), Answer::RolledBack);
        assert_eq!(replica.ask(&lost), Answer::RolledBack);
        let wait = replica.wait_for(&lost, patience());
        assert!(matches!(wait, Err(TokenError::RolledBack { .. })), "VLSN {vlsn}: {wait:?}");
    }
    assert_eq!(replica.ask(&ticket.token), Answer::Committed);
    assert!(replica.wait_for(&ticket.token, patience()).unwrap());
    master.close(patience());
    replica.close(patience());
    assert_eq!(books[0].entries(), book.entries());
}

#[test]
fn tokens_answer_on_every_node_and_never_for_another_group_or_term() {
    let (group, book, its) = (Group::new(&["m", "a"]), Arc::<Book>::default(), Arc::<Book>::default());
    let (master, replica) = (group.master(&book), group.replica("a", &its));
    join(&master, &replica);
    let ticket = commit(&master, b"x");
    for found in [master.wait_for(&ticket.token, patience()), replica.wait_for(&ticket.token, patience())] {
        assert_eq!(found, Ok(true));
    }
    assert_eq!(
        (master.ask(&ticket.token), replica.ask(&ticket.token)),
        (Answer::Committed, Answer::Committed)
    );
    let beyond = Token { vlsn: v(1000), ..ticket.token };
    assert_eq!(replica.ask(&beyond), Answer::Unknown);
    assert_eq!(replica.wait_for(&beyond, Wait::Now), Ok(false));
    let other = Token { group: quorate::GroupId::from_bits(9), ..ticket.token };
    assert_eq!(master.wait_for(&other, patience()), Err(TokenError::OtherGroup));
    assert_eq!(master.ask(&other), Answer::Unknown);
    let earlier = Token { term: t(0), ..ticket.token };
    assert!(matches!(replica.wait_for(&earlier, patience()), Err(TokenError::RolledBack { .. })));
    let later = Token { term: t(9), ..ticket.token };
    assert!(!matches!(replica.wait_for(&later, patience()), Ok(true)), "another term's entry is no success");
}

#[test]
fn a_newer_connection_of_a_node_supersedes_the_older_and_stays_registered() {
    let (group, book) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let mut older = Bare::dial(&master);
    older.introduce(hello(group.config("a")));
    older.sync_up(None);
    let mut newer = Bare::dial(&master);
    newer.introduce(hello(group.config("a")));
    newer.sync_up(None);
    older.hear_the_end();
    let ticket = append(&master, b"x", Policy::MAJORITY);
    // Acks above what was sent end a connection, so the entries are awaited first.
    let mut last = None;
    while last != Some(ticket.token.vlsn) {
        if let (_, Message::Entries(entries)) = newer.hear().unwrap() {
            last = Some(entries.last);
        }
    }
    newer.ack(Some(ticket.token.vlsn));
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    assert!(stats_of(&master, "a").connected_for.is_some());
}

#[test]
fn a_node_can_be_closed_and_opened_again_and_again() {
    let (group, book, its) = (Group::new(&["m", "a"]), Arc::<Book>::default(), Arc::<Book>::default());
    for round in 1..=5 {
        let master = group.listening(&book);
        assert_eq!(master.term(), t(round));
        let replica = group.dialling("a", &master, &its);
        commit(&master, b"again");
        settle(&master, &replica);
        if round % 2 == 0 {
            master.close(patience());
            replica.close(patience());
        }
    }
    assert!(group.log_bytes("m") == group.log_bytes("a"));
}

#[test]
fn closing_tells_waiting_commits_at_once_and_dropping_never_hangs() {
    let (group, book) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let master = Arc::new(group.listening(&book));
    let mut mute = Bare::dial(&master);
    mute.introduce(hello(group.config("a")));
    mute.sync_up(None);
    let ticket = append(&master, b"nobody acks this", Policy::MAJORITY);
    let waiting = Arc::clone(&master);
    let waiter = std::thread::spawn(move || waiting.commit(&ticket, Wait::Forever));
    let watch = Stopwatch::start();
    master.close(patience());
    let error = waiter.join().unwrap().unwrap_err();
    assert!(matches!(&error, quorate::CommitError::LifeEnded(what) if what.token == ticket.token), "{error}");
    assert!(watch.elapsed() < PATIENCE / 2, "promptly");
    assert!(master.append(&[NewEntry::data(b"y")], Policy::Async).is_err());
    assert!(master.append(&[NewEntry::data(b"y")], Policy::MAJORITY).is_err());
}

#[test]
fn a_follower_of_a_wiped_master_refuses_and_keeps_its_files() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    for _ in 0..3 {
        let master = group.listening(&Arc::default());
        let replica = group.dialling("a", &master, &its);
        commit(&master, b"kept");
        settle(&master, &replica);
    }
    let kept = group.log_bytes("a");
    std::fs::remove_dir_all(group.dir.path().join("m")).unwrap();
    let master = group.listening(&Arc::default());
    assert_eq!(master.term(), t(1), "it knows nothing of its past");
    let replica = group.dialling("a", &master, &its);
    until("it refuses", || replica.last_error().is_some());
    let error = replica.last_error().unwrap();
    let refused = match &error {
        FollowError::Rejected(RejectReason::TermAhead { ours }) => *ours == t(1),
        FollowError::Welcome(WelcomeError::StaleTerm { theirs, ours }) => *theirs == t(1) && *ours == t(3),
        _ => false,
    };
    assert!(refused, "{error}");
    assert!(master.append(&[NewEntry::data(b"x")], Policy::MAJORITY).is_err());
    drop((replica, master));
    assert!(group.log_bytes("a") == kept);
}

#[test]
fn a_replica_that_saw_a_newer_term_fences_a_master_of_an_older_one() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    {
        let master = group.listening(&Arc::default());
        let replica = group.dialling("a", &master, &its);
        commit(&master, b"term 1");
        settle(&master, &replica);
    }
    // The replica follows term 9 without having got an entry of it.
    let path = group.dir.path().join("a").join("state");
    let state = quorate::state::StateFile::open(&quorate::disk::RealDisk, &path).unwrap();
    state.store(quorate::state::State { term: t(9), ..state.state() }).unwrap();
    drop(state);
    let master = group.listening(&Arc::default());
    let replica = group.dialling("a", &master, &its);
    until("the master is fenced", || master.fenced() == Some(t(9)));
    until("the replica refused", || {
        matches!(
            replica.last_error(),
            Some(FollowError::Welcome(WelcomeError::StaleTerm { theirs, ours })) if theirs == t(2) && ours == t(9)
        )
    });
    assert!(master.append(&[NewEntry::data(b"x")], Policy::Async).is_err(), "its time is over");
}

/// Two logs of the same term that differ in their second entry.
fn foreign_pair(committed: bool) -> (Group, Arc<Book>) {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    for (name, bytes) in [("m", b"one"), ("a", b"two")] {
        std::fs::create_dir_all(group.log_dir(name)).unwrap();
        let state = State::new(GROUP, id(name), 1, quorate::Standing::Full { since: t(0) }).in_term(t(1));
        StateFile::create(&RealDisk, &group.dir.path().join(name).join("state"), state).unwrap();
        let log = group.log(name);
        log.append(t(1), &[NewEntry::data(bytes)]).unwrap();
        if committed {
            log.flush(v(1), patience()).unwrap();
            log.note_committed(v(1));
        }
        log.close().unwrap();
    }
    (group, its)
}

#[test]
fn a_matchpoint_with_another_crc_stops_the_replica_which_keeps_its_files() {
    let (group, its) = foreign_pair(false);
    let kept = group.log_bytes("a");
    let master = group.listening(&Arc::default());
    let replica = group.dialling("a", &master, &its);
    until("it stopped", || replica.state() == ReplicaState::Stopped);
    let error = replica.last_error().unwrap();
    assert!(matches!(error, FollowError::Syncup(SyncupError::Differs { .. })), "{error}");
    until("it says why", || replica.poisoned().is_some_and(|why| why.contains("foreign or damaged")));
    until("the master was told", || {
        stats_of(&master, "a")
            .last_error
            .is_some_and(|why| why.contains("the entry at the matchpoint differs"))
    });
    drop(replica);
    assert!(group.log_bytes("a") == kept);
}

#[test]
fn a_matchpoint_below_what_is_committed_stops_the_replica_which_keeps_its_files() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let book = Arc::<Book>::default();
    {
        let master = group.listening(&book);
        let replica = group.dialling("a", &master, &its);
        for _ in 0..10 {
            commit(&master, b"committed");
        }
        settle(&master, &replica);
    }
    let kept = group.log_bytes("a");
    // The master's operator cut what was committed.
    std::fs::remove_dir_all(group.log_dir("m")).unwrap();
    let log = group.log("m");
    let replicated = group.log("a");
    let run = first_entries(&replicated, 4);
    let summary = quorate::entry::verify_run(&run, None).unwrap();
    log.append_run(&run, &summary).unwrap();
    log.close().unwrap();
    replicated.close().unwrap();
    drop((log, replicated));

    let master = group.listening(&Arc::default());
    let replica = group.dialling("a", &master, &its);
    until("it stopped", || replica.state() == ReplicaState::Stopped);
    let error = replica.last_error().unwrap();
    assert!(matches!(error, FollowError::Syncup(SyncupError::BelowCommitted { at: 4, .. })), "{error}");
    drop(replica);
    assert!(group.log_bytes("a") == kept);
}

fn first_entries(log: &quorate::Log, count: u32) -> Vec<u8> {
    use quorate::LogScanner;
    let mut scanner = log.scanner();
    let run = scanner.run(None, count, usize::MAX).unwrap().unwrap();
    run.slices().concat()
}

#[test]
fn a_range_of_entries_is_read_over_the_wire() {
    let (group, book) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let master = group.listening(&book);
    for n in 0..100_u8 {
        master.append(&[NewEntry::data(&[n; 100])], Policy::Async).unwrap();
    }
    let mut reader = Bare::dial(&master);
    reader.introduce(hello(group.config("a")));
    let mut ask = |from, to, max_entries, max_bytes| {
        let request = EntryRequest { from: v(from), to: v(to), max_entries, max_bytes };
        reader.say(&Message::EntryRequest(request));
        match reader.hear().unwrap() {
            (_, Message::Entries(entries)) => {
                Ok((entries.first.get(), entries.last.get(), entries.run.len()))
            }
            (_, Message::Nack(nack)) => Err(nack.at),
            (_, other) => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(2, 11, 100, 1 << 20), Ok((2, 11, 1360)));
    assert_eq!(ask(2, 11, 3, 1 << 20), Ok((2, 4, 408)), "bounded by entries");
    assert_eq!(ask(2, 11, 100, 300), Ok((2, 3, 272)), "bounded by bytes");
    assert_eq!(ask(2, 11, 100, 1), Ok((2, 2, 136)), "but at least one");
    assert_eq!(ask(101, 200, 100, 1 << 20), Ok((101, 101, 136)), "as far as there are any");
    assert_eq!(ask(102, 200, 100, 1 << 20), Err(Some(v(102))));
    // The connection still is good for a syncup.
    reader.sync_up(None);
}

#[test]
fn a_paused_replica_gets_heartbeats_and_no_entries_until_it_is_resumed() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let master = group.listening(&book);
    let replica = group.dialling("a", &master, &its);
    commit(&master, b"before");
    settle(&master, &replica);
    assert!(master.set_feeding(&id("a"), Feeding::Paused));
    assert!(!master.set_feeding(&id("b"), Feeding::Paused), "it has not connected");
    assert_eq!(stats_of(&master, "a").state, FeederState::Paused);
    let at = replica.last();
    for _ in 0..20 {
        let policy =
            Policy::SemiSync { acks: 1, level: quorate::Level::Received, timeout: Duration::from_millis(1) };
        let outcome = master.write(&[NewEntry::data(b"not for it")], policy, patience()).unwrap();
        assert_eq!(outcome, Outcome::Degraded);
    }
    // Some heartbeats later it still has nothing of that.
    let watch = Stopwatch::start();
    while watch.elapsed() < Duration::from_millis(100) {
        std::thread::yield_now();
    }
    assert_eq!(replica.last(), at);
    let stats = stats_of(&master, "a");
    assert_eq!(stats.lag_entries, 20);
    assert!((20 * 46..20 * 46 + 2000).contains(&stats.lag_bytes), "{} with some marks", stats.lag_bytes);
    assert_eq!(replica.state(), ReplicaState::Following);
    assert!(master.set_feeding(&id("a"), Feeding::Running));
    commit(&master, b"after");
    settle(&master, &replica);
    until("it is at the tip", || stats_of(&master, "a").state == FeederState::Streaming);
    until("no lag is left", || {
        let stats = stats_of(&master, "a");
        (stats.lag_entries, stats.lag_bytes, stats.lag_time) == (0, 0, Duration::ZERO)
    });
    assert!(replica.last_error().is_none());
}

#[test]
fn heartbeats_keep_an_idle_connection() {
    let (group, book, its) = (Group::new(&["m", "a"]), Arc::<Book>::default(), Arc::<Book>::default());
    let quick = |name| {
        let mut config = group.config(name);
        config.heartbeat = Duration::from_millis(10);
        config.peer_timeout = Duration::from_millis(500);
        config
    };
    let master = group.open_master(quick("m"), &book);
    let replica = group.open_replica(quick("a"), &its);
    join(&master, &replica);
    commit(&master, b"x");
    let connected = || stats_of(&master, "a").connected_for;
    until("several peer timeouts passed", || {
        connected().is_none_or(|time| time > Duration::from_millis(1500))
    });
    assert!(connected().is_some(), "{:?}", stats_of(&master, "a").last_error);
    assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
}

#[test]
fn a_peer_that_falls_silent_is_dropped_by_name() {
    let (group, book, its) = (Group::new(&["m", "a"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    config.listen = Some(Address::Tcp("127.0.0.1:0".into()));
    config.handshake_timeout = Duration::from_millis(100);
    config.heartbeat = Duration::from_millis(10);
    config.peer_timeout = Duration::from_millis(100);
    let master = group.open_master(config, &book);
    // It never says what its log holds.
    let mut silent = Bare::dial(&master);
    silent.introduce(hello(group.config("a")));
    silent.hear_the_end();
    until("it is said why", || {
        last_error(&master).contains("handshake and syncup did not end within 100 ms")
    });
    // It streams, and then answers no heartbeat.
    let mut silent = Bare::dial(&master);
    silent.introduce(hello(group.config("a")));
    silent.sync_up(None);
    silent.hear_the_end();
    until("it is said why", || last_error(&master).contains("nothing was heard from the replica for 100 ms"));
    // A master that says nothing.
    let mut config = group.config("a");
    config.handshake_timeout = Duration::from_millis(100);
    let replica = group.open_replica(config, &its);
    let (_master, there) = channel::local::pair("test");
    replica.follow(there);
    until("it gave up", || matches!(replica.last_error(), Some(FollowError::HandshakeTimeout(_))));
}

fn last_error(master: &Master) -> String {
    stats_of(master, "a").last_error.unwrap_or_default()
}

#[test]
fn lag_in_entries_bytes_and_time_is_told_and_goes_back_to_zero() {
    let (group, book) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let master = group.listening(&book);
    let mut slow = Bare::dial(&master);
    slow.introduce(hello(group.config("a")));
    slow.sync_up(None);
    for _ in 0..10 {
        master.append(&[NewEntry::data(&[3; 64])], Policy::Async).unwrap();
    }
    until("all of it was sent", || stats_of(&master, "a").sent == Some(v(11)));
    let stats = stats_of(&master, "a");
    assert_eq!(stats.lag_entries, 11);
    assert!((1036..2000).contains(&stats.lag_bytes), "{} with some marks", stats.lag_bytes);
    until("time passes", || stats_of(&master, "a").lag_time > Duration::from_millis(5));
    slow.ack(Some(v(11)));
    until("no lag is left", || {
        let stats = stats_of(&master, "a");
        (stats.lag_entries, stats.lag_bytes, stats.lag_time) == (0, 0, Duration::ZERO)
    });
}

#[test]
fn the_table_and_the_prometheus_text_of_a_live_master_name_each_replica() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let (master, replica) = (group.master(&book), group.replica("a", &its));
    join(&master, &replica);
    commit(&master, b"x");
    settle(&master, &replica);
    until("it acked", || stats_of(&master, "a").positions.durable == Some(v(2)));
    let stats = master.stats();
    let (table, text) = (stats.to_string(), stats.prometheus());
    let row = table.lines().find(|line| line.starts_with("a ")).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains("streaming") && row.contains("healthy"), "{row}");
    assert!(table.lines().any(|line| line.starts_with("b ") && line.contains("idle")), "{table}");
    for (name, value) in [("replica_durable", 2), ("replica_connected", 1)] {
        let line =
            format!("quorate_{name}{{group=\"{GROUP}\",node=\"m\",replica=\"a\",region=\"\"}} {value}");
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.contains("quorate_replica_connected{") && text.contains("replica=\"b\",region=\"\"} 0"));
    assert_eq!(stats.counted.appended_entries, 1);
    assert_eq!(stats.counted.appended_bytes, 37);
}

#[test]
fn a_token_whose_place_was_pruned_is_never_told_as_found() {
    let (group, book, its) = (Group::new(&["m", "a"]), Arc::<Book>::default(), Arc::<Book>::default());
    let mut config = group.config("m");
    (config.segment_bytes, config.max_payload) = (64 << 10, 8 << 10);
    let master = group.open_master(config, &book);
    let replica = group.replica("a", &its);
    join(&master, &replica);
    let early = commit(&master, b"early");
    for _ in 0..200 {
        append(&master, &[1; 1000], Policy::Async);
    }
    commit(&master, b"late");
    let all = master.last().map(|last| last.vlsn);
    until("nobody needs the beginning", || {
        master.positions().checkpointed == all && stats_of(&master, "a").positions.durable == all
    });
    // A segment is sealed in the background, some time after it was flushed.
    until("a segment is pruned", || master.prune(v(u64::MAX >> 1)).unwrap().segments > 0);
    assert_eq!(master.ask(&early.token), Answer::Unknown);
    let forged = Token { term: t(7), ..early.token };
    for token in [early.token, forged] {
        assert_eq!(master.wait_for(&token, patience()), Err(TokenError::Pruned { vlsn: token.vlsn }));
    }
    assert_eq!(replica.wait_for(&early.token, patience()), Ok(true), "this log still has it");
}

#[test]
fn a_stream_that_comes_slowly_and_never_pauses_is_acked_all_the_same() {
    let (group, its) = (Group::new(&["m", "a"]), Arc::<Book>::default());
    let mut config = group.config("a");
    // No flush acks on the way.
    config.lazy_flush = Duration::from_secs(60);
    config.heartbeat = Duration::from_millis(1);
    let replica = group.open_replica(config, &its);
    let (here, there) = channel::local::pair("test");
    replica.follow(Arc::new(Metered { buffer: Some(Default::default()), ..Metered::new(there) }));
    let mut fake = Bare::new(here);
    fake.hear().unwrap();
    fake.term = t(1);
    fake.say(&Message::Welcome(quorate::wire::message::Welcome {
        version: quorate::wire::frame::VERSION,
        node: id("m"),
        incarnation: 1,
        session: 1,
        capabilities: quorate::wire::message::Capabilities::NONE,
        max_frame: 1 << 20,
        heartbeat: Duration::from_secs(1),
        feed: quorate::wire::message::Feed::Leads,
    }));
    fake.hear().unwrap();
    fake.say(&Message::Matchpoint(quorate::wire::message::Matchpoint { at: None }));
    fake.hear().unwrap();
    // Too few bytes to be acked for their number, and always with another frame behind.
    let (mut prev, mut acked) = (0, None);
    let mut vlsn = 0;
    while acked.is_none() && vlsn < 5_000 {
        let watch = Stopwatch::start();
        while watch.elapsed() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        vlsn += 1;
        let at = quorate::entry::Placement { vlsn: Some(v(vlsn)), term: t(1), prev, timestamp: 1 };
        let mut run = Vec::new();
        prev = quorate::entry::encode(&NewEntry::data(b"slow"), &at, &mut run);
        fake.say(&Message::Entries(quorate::wire::message::Entries {
            committed: None,
            durable_wanted: None,
            applied_wanted: None,
            first: v(vlsn),
            last: v(vlsn),
            run: &run,
        }));
        if let Some(frame) = fake.channel.receive(&mut fake.buffer, Wait::Now).unwrap()
            && let (_, Message::Ack(ack)) = Message::decode(frame).unwrap()
        {
            acked = ack.received;
        }
    }
    assert!(acked.is_some() && acked <= Some(v(vlsn)), "{acked:?} of {vlsn}");
}

#[test]
fn a_closed_node_leaves_nothing_behind() {
    let group = Group::new(&["m", "a"]);
    let disk = Arc::clone(&group.host.disk);
    let before = Arc::strong_count(&disk);
    let master = group.master(&Arc::default());
    let replica = group.replica("a", &Arc::default());
    join(&master, &replica);
    commit(&master, b"something");
    settle(&master, &replica);
    master.close(patience());
    replica.close(patience());
    drop((master, replica));
    until("nobody holds the disk", || Arc::strong_count(&disk) == before);
}
