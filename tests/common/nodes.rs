//! Whole nodes for the tests: a group in a temporary directory, an engine that keeps a ledger, and a bare peer that says
//! what it likes.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate::channel::{self, Channel, ChannelError, ReceiveBuffer};
use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::disk::RealDisk;
use quorate::engine::{EngineSnapshot, Item, Items};
use quorate::handshake::{self, Identity};
use quorate::log::{Log, LogConfig};
use quorate::wire::frame::FrameHeader;
use quorate::wire::message::{Ack, Hello, Message, Syncup};
use quorate::{
    Address, Config, Engine, EngineError, Entries, Host, LogScanner, Master, Member, Members, NewEntry,
    NodeId, Outcome, Policy, Position, Replica, ReplicaStats, Term, TermSpan, Ticket, Vlsn, Watermark,
};

use super::GROUP;

/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn patience() -> Wait {
    Wait::Until(deadline_in(PATIENCE))
}

/// Looks until it is so.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !so() {
        assert!(watch.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// What an engine was given, in order, and what it is to do about it. Outlives the engine, as a store would.
pub struct Book {
    entries: Mutex<Vec<(Vlsn, u32)>>,
    /// How far it may apply; it waits there.
    pub allowed: Watermark,
    /// The entry at which it fails, or panics; 0 for none.
    pub fail_at: AtomicU64,
    pub panic_at: AtomicU64,
    pub batches: AtomicU64,
    pub checkpoints: AtomicU64,
    /// Whether its engine makes snapshots.
    pub gives: AtomicBool,
    /// How many its engine has taken in.
    pub installs: AtomicU64,
}

impl Default for Book {
    fn default() -> Book {
        Book {
            entries: Mutex::default(),
            allowed: Watermark::new(u64::MAX),
            fail_at: AtomicU64::new(0),
            panic_at: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            gives: AtomicBool::new(false),
            installs: AtomicU64::new(0),
        }
    }
}

impl Book {
    /// A book whose engine applies nothing beyond `allowed` until that is advanced.
    pub fn held_at(allowed: u64) -> Arc<Book> {
        Arc::new(Book { allowed: Watermark::new(allowed), ..Book::default() })
    }

    pub fn entries(&self) -> Vec<(Vlsn, u32)> {
        self.entries.lock().clone()
    }

    pub fn last(&self) -> Option<Vlsn> {
        self.entries.lock().last().map(|(vlsn, _)| *vlsn)
    }
}

/// An engine that writes down the VLSN and the payload's CRC of every entry.
pub struct Ledger(pub Arc<Book>);

impl Engine for Ledger {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0.last())
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let last = entries.range().last().get();
        let _closed = self.0.allowed.wait(last, patience());
        self.0.batches.fetch_add(1, Ordering::SeqCst);
        for entry in entries.iter() {
            let vlsn = entry.header().vlsn.expect("only replicated entries are applied");
            if vlsn.get() == self.0.fail_at.load(Ordering::SeqCst) {
                return Err(format!("the ledger refuses VLSN {vlsn}").into());
            }
            assert_ne!(vlsn.get(), self.0.panic_at.load(Ordering::SeqCst), "the ledger tears");
            let mut book = self.0.entries.lock();
            assert_eq!(vlsn, Vlsn::after(book.last().map(|(vlsn, _)| *vlsn)), "applied in order, once");
            book.push((vlsn, crc32fast::hash(entry.payload())));
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        self.0.checkpoints.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.last())
    }

    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let Some(at) = self.0.last().filter(|_| self.0.gives.load(Ordering::SeqCst)) else { return Ok(None) };
        let entries = self.0.entries();
        let bytes = entries.iter().flat_map(|(_, crc)| crc.to_le_bytes()).collect();
        Ok(Some(Box::new(Pages { at, bytes, read: None })))
    }

    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        items.open(0)?.read_to_end(&mut bytes)?;
        let crcs = bytes.chunks_exact(4).map(|crc| u32::from_le_bytes(crc.try_into().unwrap()));
        let entries: Vec<_> = (1..).map(|vlsn| Vlsn::new(vlsn).unwrap()).zip(crcs).collect();
        assert_eq!(entries.last().map(|(vlsn, _)| *vlsn), Some(items.at()));
        *self.0.entries.lock() = entries;
        self.0.installs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A ledger as it was.
struct Pages {
    at: Vlsn,
    bytes: Vec<u8>,
    /// Bytes read of the one item, once that has begun.
    read: Option<usize>,
}

impl EngineSnapshot for Pages {
    fn at(&self) -> Vlsn {
        self.at
    }
    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        if self.read.replace(0).is_some() {
            return Ok(None);
        }
        Ok(Some(Item { name: "pages".into(), len: Some(self.bytes.len() as u64) }))
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let from = self.read.unwrap_or(0);
        // In small pieces, so that a simulation has many steps.
        let len = into.len().min(self.bytes.len() - from).min(20);
        into[..len].copy_from_slice(&self.bytes[from..from + len]);
        self.read = Some(from + len);
        Ok(len)
    }
}

pub fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A group whose nodes keep their files in one temporary directory.
pub struct Group {
    pub dir: tempfile::TempDir,
    pub members: Members,
    pub host: Host,
}

impl Group {
    /// The first is to be the master.
    pub fn new(names: &[&str]) -> Group {
        Group::of(names.iter().map(|name| Member::electable(id(name))).collect())
    }

    pub fn of(members: Vec<Member>) -> Group {
        let members = Members::new(members).unwrap();
        Group { dir: tempfile::tempdir().unwrap(), members, host: Host::machine() }
    }

    pub fn config(&self, name: &str) -> Config {
        let mut config = Config::new(GROUP, id(name), self.dir.path().join(name));
        config.members = self.members.clone();
        config.segment_bytes = 1 << 20;
        config.max_payload = 64 << 10;
        config.heartbeat = Duration::from_millis(20);
        config.peer_timeout = Duration::from_secs(10);
        config.handshake_timeout = Duration::from_secs(10);
        config.backoff_min = Duration::from_millis(2);
        config.backoff_max = Duration::from_millis(20);
        config.checkpoint_every = Duration::from_millis(20);
        config.lazy_flush = Duration::from_millis(20);
        config
    }

    pub fn master(&self, book: &Arc<Book>) -> Master {
        self.open_master(self.config("m"), book)
    }

    pub fn listening(&self, book: &Arc<Book>) -> Master {
        let mut config = self.config("m");
        config.listen = Some(Address::Tcp("127.0.0.1:0".into()));
        self.open_master(config, book)
    }

    pub fn open_master(&self, config: Config, book: &Arc<Book>) -> Master {
        Master::open(config, Box::new(Ledger(Arc::clone(book))), self.host.clone()).unwrap()
    }

    pub fn replica(&self, name: &str, book: &Arc<Book>) -> Replica {
        self.open_replica(self.config(name), book)
    }

    pub fn open_replica(&self, config: Config, book: &Arc<Book>) -> Replica {
        Replica::open(config, Box::new(Ledger(Arc::clone(book))), self.host.clone()).unwrap()
    }

    /// A replica that dials the master, and goes on dialling.
    pub fn dialling(&self, name: &str, master: &Master, book: &Arc<Book>) -> Replica {
        let mut config = self.config(name);
        config.upstream = Some(master.address().expect("the master listens").clone());
        self.open_replica(config, book)
    }

    pub fn log_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name).join("log")
    }

    /// The log of a node that is closed.
    pub fn log(&self, name: &str) -> Log {
        open_log(&self.log_dir(name))
    }

    /// The bytes of all entries of a closed node's log.
    pub fn log_bytes(&self, name: &str) -> Vec<u8> {
        let log = self.log(name);
        let bytes = bytes_of(&log);
        log.close().unwrap();
        bytes
    }
}

pub fn open_log(dir: &Path) -> Log {
    let config = LogConfig { segment_bytes: 1 << 20, max_payload: 64 << 10, ..LogConfig::new(dir, GROUP) };
    Log::open(Arc::new(RealDisk), Arc::new(quorate::clock::SystemClock), config).unwrap().0
}

/// The bytes of all entries that a log holds.
pub fn bytes_of(log: &Log) -> Vec<u8> {
    let mut scanner = log.scanner();
    let mut after = log.base().map(|base| base.vlsn);
    let mut bytes = Vec::new();
    while let Some(run) = scanner.run(after, u32::MAX, 256 << 10).unwrap() {
        run.slices().iter().for_each(|slice| bytes.extend_from_slice(slice));
        after = Some(run.last.vlsn);
    }
    bytes
}

/// Connects a replica to a master within the process.
pub fn join(master: &Master, replica: &Replica) {
    let (here, there) = channel::local::pair("test");
    master.accept(here);
    replica.follow(there);
}

pub fn stats_of(master: &Master, name: &str) -> ReplicaStats {
    master.replicas().into_iter().find(|replica| replica.id == id(name)).expect("a member")
}

/// Appends once the first gate lets it.
pub fn append(master: &Master, payload: &[u8], policy: Policy) -> Ticket {
    let watch = Stopwatch::start();
    loop {
        match master.append(&[NewEntry::data(payload)], policy) {
            Ok(ticket) => return ticket,
            Err(refused) => assert!(refused.is_temporary() && watch.elapsed() < PATIENCE, "{refused}"),
        }
        std::thread::yield_now();
    }
}

/// Appends, and waits until it is committed.
pub fn commit(master: &Master, payload: &[u8]) -> Ticket {
    let ticket = append(master, payload, Policy::MAJORITY);
    assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
    ticket
}

/// Waits until the replica's engine has the last entry of the master.
pub fn settle(master: &Master, replica: &Replica) {
    let last = master.last().expect("a master has its term's first entry");
    let token = quorate::Token { group: GROUP, term: last.term, vlsn: last.vlsn };
    assert!(replica.wait_for(&token, patience()).unwrap(), "{:?}", replica.last_error());
}

/// One end of a connection that a test speaks for itself.
pub struct Bare {
    pub channel: Arc<dyn Channel>,
    pub buffer: ReceiveBuffer,
    pub sequence: u64,
    pub term: Term,
}

impl Bare {
    pub fn new(channel: Arc<dyn Channel>) -> Bare {
        Bare { channel, buffer: ReceiveBuffer::new(), sequence: 0, term: Term::NONE }
    }

    pub fn dial(master: &Master) -> Bare {
        let Some(Address::Tcp(at)) = master.address() else { panic!("the master listens at TCP") };
        Bare::new(channel::tcp::dial(at, patience()).unwrap().unwrap())
    }

    pub fn say(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(self.term, self.sequence, &mut bytes);
        self.sequence += 1;
        self.say_bytes(&bytes);
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        assert!(self.channel.send(&[IoSlice::new(bytes)], patience()).unwrap());
    }

    /// The next message.
    pub fn hear(&mut self) -> Result<(FrameHeader, Message<'_>), ChannelError> {
        let frame = self.channel.receive(&mut self.buffer, patience())?.expect("a frame in time");
        Ok(Message::decode(frame).expect("a good frame"))
    }

    /// Hears until the other end closes.
    pub fn hear_the_end(&mut self) {
        while self.hear().is_ok() {}
    }

    /// Waits for a message of this kind, and passes by heartbeats and entries.
    pub fn introduce(&mut self, hello: Hello) {
        self.say(&Message::Hello(hello));
        let (header, message) = self.hear().unwrap();
        assert!(matches!(message, Message::Welcome(_)), "{message:?}");
        self.term = header.term;
    }

    /// Goes on from `last` as a replica that has that; its first ack claims all of it is durable.
    pub fn sync_up(&mut self, last: Option<Position>) {
        let history = last.map(|last| TermSpan { term: last.term, first: Vlsn::FIRST }).into_iter().collect();
        self.say(&Message::Syncup(Syncup { last, committed: None, history }));
        let (_, message) = self.hear().unwrap();
        assert!(matches!(message, Message::Matchpoint(at) if at.at == last), "{message:?}");
        self.ack(last.map(|last| last.vlsn));
    }

    pub fn ack(&mut self, at: Option<Vlsn>) {
        let ack = Ack { received: at, durable: at, applied: None, checkpointed: None };
        self.say(&Message::Ack(ack));
    }
}

/// The hello of a node of the group.
pub fn hello(config: Config) -> Hello {
    let own = Identity { incarnation: 77, session: 78 };
    let who = config.members.find(&config.node).unwrap().clone();
    handshake::hello(
        &config.check().unwrap(),
        &who,
        own,
        quorate::members::Standing::Full { since: Term::NONE },
        None,
    )
}
