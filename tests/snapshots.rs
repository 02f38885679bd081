//! Nodes that need what no log has any more: real nodes with real files, threads and TCP connections.

mod common;
#[cfg(feature = "sim")]
#[path = "common/stage.rs"]
mod stage;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use common::nodes::{id, patience, until};
use common::{GROUP, v};
use parking_lot::Mutex;
use quorate::engine::{EngineSnapshot, Item, Items};
use quorate::log::{Log, LogConfig, OpenError};
use quorate::replica::FollowError;
use quorate::wire::MessageType;
use quorate::wire::frame::{FrameHeader, HEADER_LEN};
use quorate::wire::message::{Message, RejectReason, SnapshotId, SnapshotPlace, SnapshotRequest};
use quorate::{
    Address, Admission, Config, Engine, EngineError, Entries, Health, Host, NewEntry, Node, NodeConfig,
    NodeError, NodeId, Outcome, Policy, Replica, Snapshots, Token, TransferError, Vlsn,
};

/// What an engine holds. It outlives the engine, as a store would.
#[derive(Default)]
struct Shelf {
    /// VLSN and CRC of every entry, also of those that came in a snapshot.
    entries: Mutex<Vec<(u64, u32)>>,
    /// Bytes of another item, so that a snapshot takes its time.
    ballast: AtomicU64,
    snapshots: AtomicUsize,
    installs: AtomicUsize,
    /// It makes no snapshots.
    mute: AtomicBool,
    /// So many of its last entries are of open transactions, and in no snapshot.
    open: AtomicU64,
    /// The next install fails when it is done.
    crash: AtomicBool,
}

impl Shelf {
    fn last(&self) -> Option<Vlsn> {
        self.entries.lock().last().and_then(|(vlsn, _)| Vlsn::new(*vlsn))
    }
}

struct Clerk(Arc<Shelf>);

impl Engine for Clerk {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0.last())
    }
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut shelf = self.0.entries.lock();
        for entry in entries.iter() {
            let vlsn = entry.header().vlsn.unwrap().get();
            assert_eq!(vlsn, shelf.last().map_or(0, |(vlsn, _)| *vlsn) + 1, "in order, once");
            shelf.push((vlsn, crc32fast::hash(entry.payload())));
        }
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0.last())
    }
    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let open = self.0.open.load(Ordering::SeqCst);
        let at = self.0.last().and_then(|last| Vlsn::new(last.get().saturating_sub(open)));
        let Some(at) = at.filter(|_| !self.0.mute.load(Ordering::SeqCst)) else { return Ok(None) };
        self.0.snapshots.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Vec::new();
        for (vlsn, crc) in self.0.entries.lock().iter().take(at.get() as usize) {
            bytes.extend_from_slice(&vlsn.to_le_bytes());
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        let ballast = self.0.ballast.load(Ordering::SeqCst);
        Ok(Some(Box::new(Copied { at, bytes, ballast, item: 0, offset: 0 })))
    }
    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let names: Vec<_> = items.list().iter().map(|item| item.name.clone()).collect();
        assert_eq!(names, ["entries", "ballast"]);
        let mut bytes = Vec::new();
        items.open(0)?.read_to_end(&mut bytes)?;
        let read = |chunk: &[u8]| {
            let (vlsn, crc) = chunk.split_at(8);
            (u64::from_le_bytes(vlsn.try_into().unwrap()), u32::from_le_bytes(crc.try_into().unwrap()))
        };
        let entries: Vec<_> = bytes.chunks_exact(12).map(read).collect();
        let (mut ballast, mut buffer, mut at) = (items.open(1)?, vec![0; 64 << 10], 0);
        loop {
            let read = ballast.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            assert!(buffer[..read].iter().enumerate().all(|(n, byte)| *byte == pattern(at + n as u64)));
            at += read as u64;
        }
        assert_eq!(entries.last().map(|(vlsn, _)| *vlsn), Some(items.at().get()));
        *self.0.entries.lock() = entries;
        self.0.ballast.store(at, Ordering::SeqCst);
        self.0.installs.fetch_add(1, Ordering::SeqCst);
        if self.0.crash.swap(false, Ordering::SeqCst) {
            return Err("the machine stopped".into());
        }
        Ok(())
    }
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

struct Copied {
    at: Vlsn,
    bytes: Vec<u8>,
    ballast: u64,
    item: u32,
    offset: u64,
}

impl EngineSnapshot for Copied {
    fn at(&self) -> Vlsn {
        self.at
    }
    fn bytes(&self) -> Option<u64> {
        Some(self.bytes.len() as u64 + self.ballast)
    }
    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        self.item += 1;
        self.offset = 0;
        Ok(match self.item {
            1 => Some(Item { name: "entries".into(), len: Some(self.bytes.len() as u64) }),
            2 => Some(Item { name: "ballast".into(), len: None }),
            _ => None,
        })
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let len = if self.item == 1 { self.bytes.len() as u64 } else { self.ballast };
        let read = (into.len() as u64).min(len - self.offset) as usize;
        if self.item == 1 {
            let from = self.offset as usize;
            into[..read].copy_from_slice(&self.bytes[from..from + read]);
        } else {
            let from = self.offset;
            into[..read].iter_mut().enumerate().for_each(|(n, byte)| *byte = pattern(from + n as u64));
        }
        self.offset += read as u64;
        Ok(read)
    }
}

/// Stands before a node, and does something to the snapshots that it gives.
struct Proxy {
    address: Address,
    way: Arc<Way>,
}

#[derive(Default)]
struct Way {
    to: Mutex<String>,
    /// Cuts a connection that carries a snapshot after so many bytes; 0 for never.
    cut_after: AtomicU64,
    cuts: AtomicUsize,
    bytes: AtomicU64,
    /// Changes what is said in a snapshot.
    lie: Mutex<Option<Lie>>,
    lies: AtomicUsize,
}

type Lie = fn(Message<'static>) -> Option<Message<'static>>;

impl Proxy {
    fn new() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let way = Arc::<Way>::default();
        let weak = Arc::downgrade(&way);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(way)) = (client, weak.upgrade()) else { return };
                std::thread::spawn(move || way.carry(client));
            }
        });
        Proxy { address, way }
    }
}

impl Way {
    fn carry(&self, mut client: TcpStream) -> Option<()> {
        let first = frame(&mut client)?;
        let snapshot = FrameHeader::parse(&first, u32::MAX).ok()?.kind == MessageType::SnapshotRequest;
        let mut server = TcpStream::connect(&*self.to.lock()).ok()?;
        server.write_all(&first).ok()?;
        let (mut back, mut forth) = (client.try_clone().ok()?, server.try_clone().ok()?);
        let up = std::thread::spawn(move || {
            let _ended = std::io::copy(&mut back, &mut forth);
            let _gone = forth.shutdown(Shutdown::Both);
        });
        let mut carried = 0;
        while let Some(bytes) = frame(&mut server) {
            let cut = self.cut_after.load(Ordering::SeqCst);
            carried += bytes.len() as u64;
            if snapshot && cut > 0 && carried > cut {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if snapshot {
                self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            }
            let bytes = if snapshot { self.said(bytes) } else { bytes };
            if client.write_all(&bytes).is_err() {
                break;
            }
        }
        let _gone = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        up.join().ok()
    }

    fn said(&self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(lie) = *self.lie.lock() else { return bytes };
        // Lent for the length of the test.
        let bytes: &'static [u8] = bytes.leak();
        let (header, message) = Message::decode(bytes).unwrap();
        let Some(message) = lie(message) else { return bytes.to_vec() };
        self.lies.fetch_add(1, Ordering::SeqCst);
        let mut out = Vec::new();
        message.encode(header.term, header.sequence, &mut out);
        out
    }
}

fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER_LEN];
    from.read_exact(&mut bytes).ok()?;
    let header = FrameHeader::parse(&bytes, u32::MAX).ok()?;
    bytes.resize(header.frame_len(), 0);
    from.read_exact(&mut bytes[HEADER_LEN..]).ok()?;
    Some(bytes)
}

struct Place {
    config: NodeConfig,
    shelf: Arc<Shelf>,
    node: Option<Node>,
}

impl Place {
    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node is up")
    }
    fn engine(&self) -> Box<Clerk> {
        Box::new(Clerk(Arc::clone(&self.shelf)))
    }
    fn open(&mut self) {
        self.node = Some(Node::open(self.config.clone(), self.engine(), Host::machine()).unwrap());
    }
    fn join(&mut self) {
        self.node = Some(Node::join(self.config.clone(), self.engine(), Host::machine()).unwrap());
    }
}

struct Group {
    dir: tempfile::TempDir,
    places: Vec<Place>,
}

impl Group {
    fn config(&self, name: &str) -> NodeConfig {
        let mut base = Config::new(GROUP, id(name), self.dir.path().join(name));
        base.segment_bytes = 64 << 10;
        base.max_payload = 16 << 10;
        base.heartbeat = Duration::from_millis(20);
        base.listen = Some(Address::Tcp("127.0.0.1:0".into()));
        base.backoff_max = Duration::from_millis(100);
        base.checkpoint_every = Duration::from_millis(20);
        let mut config = NodeConfig::new(base);
        config.election_timeout = Duration::from_millis(400);
        config
    }

    /// Nodes n0, n1, …, all full; with as much ballast in their engines.
    fn of(count: usize, ballast: u64, change: impl Fn(usize, &mut NodeConfig)) -> Group {
        Group::behind(&[], count, ballast, change)
    }

    /// The same, each reached by the others through its proxy only.
    fn behind(
        proxies: &[Proxy],
        count: usize,
        ballast: u64,
        change: impl Fn(usize, &mut NodeConfig),
    ) -> Group {
        let mut group = Group { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        for at in 0..count {
            let mut config = group.config(&format!("n{at}"));
            let seed = |(at, place): (usize, &Place)| match proxies.get(at) {
                Some(proxy) => Some(proxy.address.clone()),
                None => place.config.base.listen.clone(),
            };
            config.seeds = group.places.iter().enumerate().filter_map(seed).collect();
            change(at, &mut config);
            config.advertise = proxies.get(at).map(|proxy| proxy.address.clone());
            let shelf = Arc::new(Shelf::default());
            shelf.ballast.store(ballast, Ordering::SeqCst);
            let mut place = Place { config, shelf, node: None };
            if at == 0 {
                let node = Node::create(place.config.clone(), place.engine(), Host::machine());
                place.node = Some(node.unwrap());
            } else {
                place.join();
            }
            place.config.base.listen = place.node().address().cloned();
            if let (Some(proxy), Some(Address::Tcp(to))) = (proxies.get(at), &place.config.base.listen) {
                *proxy.way.to.lock() = to.clone();
            }
            group.places.push(place);
        }
        until("everybody to be a full member", || {
            group.master().is_some_and(|master| {
                let members = master.members();
                members.iter().count() == count && members.iter().all(|one| one.admission == Admission::Full)
            })
        });
        group
    }

    fn up(&self) -> impl Iterator<Item = &Node> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    fn master(&self) -> Option<&Node> {
        self.up().filter(|node| node.leads().is_some()).max_by_key(|node| node.leads())
    }

    /// Moves mastership, as soon as the heir is connected to the master.
    fn hand_over(&self, to: &NodeId) {
        let mut begun = None;
        until("the heir to be connected", || {
            match self.places[self.master_at()].node().transfer(Some(to), Duration::from_secs(10)) {
                Ok(handover) => begun = Some(handover),
                Err(error) => assert_eq!(error, TransferError::Unfit(to.clone())),
            }
            begun.is_some()
        });
        assert_eq!(begun.unwrap().wait(patience()), Some(Ok(())));
    }

    fn master_at(&self) -> usize {
        until("a master", || self.master().is_some());
        let term = self.master().and_then(Node::leads);
        self.places.iter().position(|place| place.node.as_ref().is_some_and(|n| n.leads() == term)).unwrap()
    }

    fn write(&self, count: usize) -> Token {
        let mut token = None;
        for number in 0..count {
            let payload = vec![number as u8; 1000];
            until("a write to be committed", || {
                let Some(master) = self.master() else { return false };
                let Ok(ticket) = master.append(&[NewEntry::data(&payload)], Policy::MAJORITY) else {
                    return false;
                };
                token = Some(ticket.token);
                matches!(master.commit(&ticket, patience()), Ok(Outcome::Committed))
            });
        }
        token.expect("a token")
    }

    /// Everybody who is up removes what it may.
    fn prune(&self) -> Vlsn {
        let token = self.write(1);
        for node in self.up() {
            assert!(node.wait_for(&token, patience()).unwrap());
            until("something to be pruned", || {
                node.prune(v(u64::MAX >> 1)).unwrap();
                node.log().oldest() > Vlsn::new(50)
            });
        }
        self.up().filter_map(|node| node.log().oldest()).min().unwrap()
    }

    fn all_have(&self, token: &Token) {
        for node in self.up() {
            let name = node.status().node;
            assert!(node.wait_for(token, patience()).unwrap(), "{name}: {:?}", node.last_error());
        }
        let at = token.vlsn.get() as usize;
        let first = self.places[0].shelf.entries.lock()[..at].to_vec();
        for place in &self.places[1..] {
            assert_eq!(place.shelf.entries.lock()[..at], first[..], "{}", place.config.base.node);
        }
    }

    /// A node that is not the master goes down, and loses all or nothing.
    fn down(&mut self, wipe: bool) -> usize {
        let at = (self.master_at() + 1) % self.places.len();
        self.places[at].node = None;
        if wipe {
            std::fs::remove_dir_all(&self.places[at].config.base.dir).unwrap();
            self.places[at].shelf = Arc::default();
        }
        at
    }
}

#[test]
fn a_wiped_node_and_one_far_behind_return_by_themselves_while_writes_go_on() {
    for wipe in [true, false] {
        let mut group = Group::of(3, 3 << 20, |_, _| ());
        group.write(20);
        let at = group.down(wipe);
        group.write(300);
        group.prune();
        if wipe {
            group.places[at].join();
        } else {
            group.places[at].open();
        }
        let done = AtomicBool::new(false);
        let last = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut last = group.write(1);
                while !done.load(Ordering::SeqCst) {
                    last = group.write(1);
                }
                last
            });
            let shelf = &group.places[at].shelf;
            until("a snapshot to be installed", || shelf.installs.load(Ordering::SeqCst) > 0);
            done.store(true, Ordering::SeqCst);
            writer.join().unwrap()
        });
        group.all_have(&last);
        let node = group.places[at].node();
        assert!(node.log().oldest() > Vlsn::new(300), "it stands on the snapshot");
        assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 1);
        let dir = &group.places[at].config.base.dir;
        assert!(dir.join("base").exists() && !dir.join("log/install").exists());
        until("it counts again", || node.status().standing.counts());
        // It can be opened, and lead, from what it has.
        drop(group.places[at].node.take());
        group.places[at].open();
        let token = group.write(3);
        group.all_have(&token);
        let name = group.places[at].config.base.node.clone();
        let master = group.master_at();
        if let Ok(handover) = group.places[master].node().transfer(Some(&name), Duration::from_secs(10)) {
            handover.wait(patience());
        }
        let token = group.write(3);
        group.all_have(&token);
    }
}

#[test]
fn an_install_that_stops_midway_is_finished_at_open_and_refused_as_a_plain_store() {
    let mut group = Group::of(3, 100_000, |_, _| ());
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    group.places[at].shelf.crash.store(true, Ordering::SeqCst);
    group.places[at].join();
    until("the install to stop", || group.places[at].node().poisoned().is_some());
    assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 1);
    group.places[at].node = None;
    let dir = group.places[at].config.base.dir.clone();
    let alone = Log::open(
        Arc::new(quorate::disk::RealDisk),
        Arc::new(quorate::clock::SystemClock),
        LogConfig::new(dir.join("log"), GROUP),
    );
    assert!(matches!(alone, Err(OpenError::HalfInstalled { .. })));
    let mut config = group.places[at].config.base.clone();
    config.listen = None;
    let refused = Replica::open(config, group.places[at].engine(), Host::machine()).err().unwrap();
    assert!(matches!(refused, NodeError::Log(OpenError::HalfInstalled { .. })), "{refused}");
    // It stops there again, and is then let through.
    group.places[at].shelf.crash.store(true, Ordering::SeqCst);
    let place = &group.places[at];
    let again = Node::open(place.config.clone(), place.engine(), Host::machine());
    assert!(matches!(again, Err(NodeError::Install(_))));
    group.places[at].open();
    assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 3);
    assert!(!dir.join("log/install").exists() && !dir.join("snapshot/manifest").exists());
    let token = group.write(5);
    group.all_have(&token);
    assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 3);
}

#[test]
fn a_snapshot_whose_connection_is_cut_again_and_again_goes_on_at_the_last_synced_chunk() {
    const BALLAST: u64 = 40 << 20;
    const CUT: u64 = 7 << 20;
    let proxies: Vec<Proxy> = (0..3).map(|_| Proxy::new()).collect();
    let mut group = Group::behind(&proxies, 3, BALLAST, |_, _| ());
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    proxies.iter().for_each(|proxy| proxy.way.cut_after.store(CUT, Ordering::SeqCst));
    group.places[at].join();
    let Some(Address::Tcp(to)) = group.places[at].node().address().cloned() else { panic!("it listens") };
    *proxies[at].way.to.lock() = to;
    let shelf = Arc::clone(&group.places[at].shelf);
    until("the snapshot to be installed", || shelf.installs.load(Ordering::SeqCst) > 0);
    let token = group.write(5);
    group.all_have(&token);
    let sum = |what: fn(&Way) -> u64| proxies.iter().map(|proxy| what(&proxy.way)).sum::<u64>();
    let (cuts, bytes) =
        (sum(|way| way.cuts.load(Ordering::SeqCst) as u64), sum(|way| way.bytes.load(Ordering::SeqCst)));
    let taken: usize = group.places.iter().map(|place| place.shelf.snapshots.load(Ordering::SeqCst)).sum();
    assert_eq!(taken, 1, "no attempt began anew");
    assert!(cuts >= BALLAST / CUT, "{cuts} cuts");
    // Of each connection at most what came after the last sync, every 4 MiB, was sent twice.
    assert!(bytes < BALLAST + cuts * (4 << 20), "{bytes} bytes with {cuts} cuts");
}

/// Fetching at this rate takes a few seconds.
fn slowly(config: &mut NodeConfig) {
    config.base.snapshot_bytes_per_second = 8 << 20;
}

impl Group {
    /// A group in which one node was wiped and is fetching, and how many bytes it has.
    fn fetching(count: usize, bytes: u64) -> (Group, usize) {
        let mut group = Group::of(count, 24 << 20, |_, config| slowly(config));
        group.write(20);
        let at = group.down(true);
        group.write(300);
        group.prune();
        group.places[at].join();
        until("a part of the snapshot", || {
            group.places[at].node().status().keeping.fetching.is_some_and(|is| is.bytes >= bytes)
        });
        (group, at)
    }

    fn giver(&self) -> usize {
        let gives =
            |place: &Place| place.node.as_ref().is_some_and(|n| !n.status().keeping.giving.is_empty());
        until("somebody to give", || self.places.iter().any(gives));
        self.places.iter().position(gives).unwrap()
    }

    fn installed(&self, at: usize) {
        until("the snapshot to be installed", || self.places[at].shelf.installs.load(Ordering::SeqCst) > 0);
    }

    fn taken(&self) -> usize {
        self.places.iter().map(|place| place.shelf.snapshots.load(Ordering::SeqCst)).sum()
    }
}

#[test]
fn a_receiver_that_restarts_midway_goes_on_with_the_same_snapshot() {
    let (mut group, at) = Group::fetching(3, 9 << 20);
    group.places[at].node = None;
    group.write(5);
    group.places[at].open();
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
    assert_eq!(group.taken(), 1);
}

#[test]
fn when_the_provider_dies_another_gives_a_snapshot() {
    let (mut group, at) = Group::fetching(5, 5 << 20);
    let giver = group.giver();
    let master = group.master_at();
    assert_ne!(giver, master, "the master has others to give");
    group.places[giver].node = None;
    group.write(5);
    group.installed(at);
    group.places[giver].open();
    let token = group.write(5);
    group.all_have(&token);
}

#[test]
fn a_fetch_goes_on_when_the_master_changes_and_the_log_behind_it_is_pinned() {
    let (group, at) = Group::fetching(4, 5 << 20);
    let giver = group.giver();
    let master = group.places[group.master_at()].node();
    let pins: Vec<_> = master.log().pins().into_iter().map(|pin| pin.owner).collect();
    assert!(pins.contains(&format!("snapshot:n{at}")), "{pins:?}");
    let old = group.master_at();
    let heir = (0..4).find(|one| ![old, at].contains(one)).unwrap();
    let heir = group.places[heir].config.base.node.clone();
    group.hand_over(&heir);
    group.write(50);
    assert_eq!(group.giver(), giver, "it gives still");
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
    assert_eq!(group.taken(), 1);
    let master = group.places[group.master_at()].node();
    until("the pin to go", || !master.log().pins().iter().any(|pin| pin.owner.starts_with("snapshot:")));
}

#[test]
fn a_new_master_keeps_its_log_for_a_receiver_that_has_not_come_back_to_it() {
    let (mut group, at) = Group::fetching(4, 9 << 20);
    let (giver, old) = (group.giver(), group.master_at());
    let stands = group.places[at].node().status().keeping.fetching.unwrap().at;
    group.places[at].node = None;
    let heir = (0..4).find(|one| ![old, at, giver].contains(one)).unwrap();
    let name = group.places[heir].config.base.node.clone();
    group.hand_over(&name);
    let node = group.places[heir].node();
    let oldest = node.log().oldest();
    let owner = format!("snapshot:n{at}");
    assert!(node.log().pins().iter().any(|pin| pin.owner == owner), "{:?}", node.log().pins());
    let token = group.write(250);
    assert!(node.wait_for(&token, patience()).unwrap());
    for _ in 0..20 {
        node.prune(v(u64::MAX >> 1)).unwrap();
    }
    assert_eq!(node.log().oldest(), oldest);
    assert!(oldest <= Some(stands.next()), "what the receiver has would do");
    group.places[at].open();
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
    let node = group.places[group.master_at()].node();
    until("the pins to go", || !node.log().pins().iter().any(|pin| pin.owner.starts_with("snapshot:")));
}

#[test]
fn what_a_lying_provider_sends_is_refused_by_name_and_never_installed() {
    let lies: [(&str, Lie); 8] = [
        ("goes on at", |message| match message {
            Message::SnapshotChunk(mut chunk) => {
                chunk.at.offset += 1;
                Some(Message::SnapshotChunk(chunk))
            }
            _ => None,
        }),
        ("differ from what", |message| match message {
            Message::SnapshotChunk(mut chunk) => {
                let mut bytes = chunk.bytes.to_vec();
                bytes[7] ^= 1;
                chunk.bytes = bytes.leak();
                Some(Message::SnapshotChunk(chunk))
            }
            _ => None,
        }),
        ("its digest says otherwise", |message| match message {
            Message::SnapshotItemEnd(mut end) => {
                end.digest ^= 1;
                Some(Message::SnapshotItemEnd(end))
            }
            _ => None,
        }),
        ("its digest says otherwise", |message| match message {
            Message::SnapshotEnd(mut end) => {
                end.bytes += 1;
                Some(Message::SnapshotEnd(end))
            }
            _ => None,
        }),
        ("goes on at", |message| match message {
            Message::SnapshotItem(mut item) => {
                item.item += 1;
                Some(Message::SnapshotItem(item))
            }
            _ => None,
        }),
        ("name", |message| match message {
            Message::SnapshotItem(mut item) => {
                item.name = "../../state".into();
                Some(Message::SnapshotItem(item))
            }
            _ => None,
        }),
        ("another snapshot", |message| match message {
            Message::SnapshotBegin(mut begin) => {
                begin.from.item = 1;
                Some(Message::SnapshotBegin(begin))
            }
            _ => None,
        }),
        ("base", |message| match message {
            Message::SnapshotBegin(mut begin) => {
                begin.base[40] ^= 1;
                Some(Message::SnapshotBegin(begin))
            }
            _ => None,
        }),
    ];
    let proxies: Vec<Proxy> = (0..3).map(|_| Proxy::new()).collect();
    let mut group = Group::behind(&proxies, 3, 600_000, |_, _| ());
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    let state = std::fs::metadata(group.places[group.master_at()].config.base.dir.join("state")).unwrap();
    for (at_first, (expected, lie)) in lies.into_iter().enumerate() {
        proxies.iter().for_each(|proxy| *proxy.way.lie.lock() = Some(lie));
        if at_first == 0 {
            group.places[at].join();
            let Some(Address::Tcp(to)) = group.places[at].node().address().cloned() else { panic!() };
            *proxies[at].way.to.lock() = to;
        }
        until(expected, || {
            group.places[at].node().last_error().is_some_and(
                |error| matches!(&error, FollowError::SnapshotFailed { why, .. } if why.contains(expected)),
            )
        });
        assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 0, "{expected}");
    }
    let dir = &group.places[at].config.base.dir;
    assert_eq!(std::fs::metadata(dir.join("state")).unwrap().len(), state.len());
    proxies.iter().for_each(|proxy| *proxy.way.lie.lock() = None);
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
}

#[test]
fn a_node_that_falls_behind_again_takes_a_second_snapshot() {
    let mut group = Group::of(3, 100_000, |_, _| ());
    group.write(20);
    let at = group.down(true);
    for round in 1..=2 {
        let before = group.write(300).vlsn;
        for node in group.up() {
            until("all of the last round to be pruned", || {
                group.write(1);
                node.prune(v(u64::MAX >> 1)).unwrap();
                node.log().oldest() > Some(before)
            });
        }
        if round == 1 {
            group.places[at].join()
        } else {
            group.places[at].open()
        }
        until("the snapshot", || group.places[at].shelf.installs.load(Ordering::SeqCst) == round);
        let token = group.write(5);
        group.all_have(&token);
        if round == 1 {
            group.places[at].node = None;
        }
    }
}

/// A connection that asks for a snapshot in a member's name, and what it was answered.
fn ask(
    node: &Node,
    name: &str,
    at_least: Option<Vlsn>,
    resume: Option<Resume>,
) -> (TcpStream, Message<'static>) {
    let Some(Address::Tcp(to)) = node.address().cloned() else { panic!("it listens") };
    let mut stream = TcpStream::connect(to).unwrap();
    let request = SnapshotRequest { group: GROUP, node: id(name), at_least, resume };
    let mut bytes = Vec::new();
    Message::SnapshotRequest(request).encode(node.status().term, 0, &mut bytes);
    stream.write_all(&bytes).unwrap();
    let answer: &'static [u8] = frame(&mut stream).expect("an answer").leak();
    (stream, Message::decode(answer).unwrap().1)
}

type Resume = (SnapshotId, SnapshotPlace);

#[test]
fn a_newer_request_of_the_same_node_takes_over_what_an_older_connection_holds() {
    let mut group = Group::of(3, 20 << 20, |_, config| config.base.max_snapshots = 1);
    group.write(20);
    let at = group.down(false);
    let name = format!("n{at}");
    let master = group.places[group.master_at()].node();
    let (mut half_dead, begun) = ask(master, &name, None, None);
    let Message::SnapshotBegin(first) = begun else { panic!("{begun:?}") };
    assert_eq!(first.of.map(|of| of >> 20), Some(20));
    let chunk = (0..3).filter_map(|_| frame(&mut half_dead)).count();
    assert_eq!(chunk, 3);
    for _ in 0..2 {
        let (_kept, again) = ask(master, &name, None, Some((first.id, SnapshotPlace::default())));
        let Message::SnapshotBegin(again) = again else { panic!("{again:?}") };
        assert_eq!((again.id, again.from), (first.id, SnapshotPlace::default()));
    }
    while frame(&mut half_dead).is_some() {}
    assert_eq!(group.taken(), 1);
    // For another node there is no room before that one is given up.
    let other = (0..3).find(|one| *one != at && *one != group.master_at()).unwrap();
    let (_open, again) = ask(master, &name, None, Some((first.id, SnapshotPlace::default())));
    assert!(matches!(again, Message::SnapshotBegin(_)), "{again:?}");
    let (_refused, busy) = ask(master, &format!("n{other}"), None, None);
    assert!(matches!(&busy, Message::Reject(reject) if reject.reason == RejectReason::Busy), "{busy:?}");
}

#[test]
fn a_provider_that_is_behind_refuses() {
    let group = Group::of(2, 10, |_, _| ());
    let last = group.write(5).vlsn;
    let master = group.places[group.master_at()].node();
    until("the engine to have what is committed", || master.positions().applied >= Some(last));
    let (_gone, answer) = ask(master, "n1", Vlsn::new(last.get() + 1000), None);
    assert!(matches!(&answer, Message::Reject(it) if it.reason == RejectReason::NoSnapshot), "{answer:?}");
    let (_gone, answer) = ask(master, "n1", Some(last), None);
    assert!(matches!(answer, Message::SnapshotBegin(_)), "{answer:?}");
    let (_gone, answer) = ask(master, "n7", None, None);
    assert!(matches!(&answer, Message::Reject(it) if it.reason == RejectReason::UnknownNode), "{answer:?}");
}

#[test]
fn busy_nodes_and_those_that_make_no_snapshots_lead_to_another_provider() {
    let mut group = Group::of(4, 20 << 20, |_, config| config.base.max_snapshots = 1);
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    let master = group.master_at();
    let others: Vec<usize> = (0..4).filter(|one| ![at, master].contains(one)).collect();
    let (_held, begun) = ask(group.places[others[0]].node(), &format!("n{}", others[1]), None, None);
    assert!(matches!(begun, Message::SnapshotBegin(_)), "{begun:?}");
    group.places[others[1]].shelf.mute.store(true, Ordering::SeqCst);
    group.places[at].join();
    group.installed(at);
    assert!(group.places[master].shelf.snapshots.load(Ordering::SeqCst) > 0, "the master gave it");
    let token = group.write(5);
    group.all_have(&token);
}

#[test]
fn a_node_that_takes_no_snapshot_says_so_and_does_not_keep_the_masters_log_for_ever() {
    let mut group = Group::of(3, 10, |_, config| {
        (config.base.snapshots, config.base.pin_max_bytes) = (Snapshots::Manual, 500_000);
        config.base.retention_every = Duration::from_millis(50);
    });
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    group.places[at].join();
    let health = |node: usize, of: &NodeId| {
        let status = group.places[node].node().status();
        status.members.iter().find(|one| one.member.id == *of).and_then(|one| one.health)
    };
    let name = group.places[at].config.base.node.clone();
    until("both to say that it needs a snapshot", || {
        let own = group.places[at].node().status().health;
        let master = health(group.master_at(), &name);
        (own, master) == (Health::NeedsSnapshot, Some(Health::NeedsSnapshot))
    });
    let master = group.places[group.master_at()].node();
    let owner = format!("needs-snapshot:{name}");
    until("its pin to be bounded", || master.log().pins().iter().any(|pin| pin.owner == owner));
    let oldest = master.log().oldest();
    until("the master to let go of what nobody could ever take", || {
        group.write(20);
        let _as_far_as_may_be = master.prune(v(u64::MAX >> 1)).unwrap();
        master.log().oldest() > oldest
    });
    assert!(group.places[at].node().log().last().is_none());
}

#[test]
fn with_snapshots_by_hand_a_node_says_that_it_needs_one_and_stays_behind() {
    let mut group = Group::of(3, 10, |_, config| config.base.snapshots = Snapshots::Manual);
    group.write(20);
    let at = group.down(true);
    group.write(300);
    let oldest = group.prune();
    group.places[at].join();
    until("it to say so", || {
        let error = group.places[at].node().last_error();
        matches!(error, Some(FollowError::NeedsSnapshot { oldest: at }) if at >= Some(oldest))
    });
    group.write(20);
    assert_eq!((group.taken(), group.places[at].node().log().last()), (0, None));
    assert!(!group.places[at].node().status().standing.counts());
}

#[test]
fn the_log_is_kept_for_a_receiver_that_is_gone_until_its_patience_ends() {
    let mut group = Group::of(3, 24 << 20, |_, config| {
        slowly(config);
        config.base.snapshot_patience = Duration::from_millis(700);
    });
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    group.places[at].join();
    until("a part of the snapshot", || {
        group.places[at].node().status().keeping.fetching.is_some_and(|is| is.bytes > 1 << 20)
    });
    group.places[at].node = None;
    let master = group.places[group.master_at()].node();
    let owner = format!("snapshot:n{at}");
    let pinned = || master.log().pins().iter().any(|pin| pin.owner == owner);
    assert!(pinned());
    until("the pin to go", || !pinned());
    group.places[at].open();
    group.installed(at);
}

#[test]
fn a_snapshot_that_stands_before_open_transactions_loses_and_doubles_nothing() {
    let mut group = Group::of(3, 10, |_, _| ());
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    let token = group.write(40);
    for place in group.places.iter().enumerate().filter(|(one, _)| *one != at).map(|(_, place)| place) {
        place.shelf.open.store(25, Ordering::SeqCst);
        assert!(place.node().wait_for(&token, patience()).unwrap());
    }
    group.places[at].join();
    group.installed(at);
    let node = group.places[at].node();
    until("the log to stand on it", || node.log().base().is_some());
    let base = node.log().base().map(|base| base.vlsn);
    assert!(base < Some(token.vlsn), "{base:?}: open transactions are in no snapshot");
    let token = group.write(5);
    // The engine takes each entry after the one before only, and all have the same.
    group.all_have(&token);
    assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 1);
}

#[test]
fn pruning_again_and_again_writes_a_bounded_number_of_lists() {
    let group = Group::of(2, 10, |_, _| ());
    group.write(300);
    let before = group.master().and_then(|master| master.log().last()).unwrap().vlsn;
    group.prune();
    let master = group.places[group.master_at()].node();
    for _ in 0..300 {
        master.prune(v(u64::MAX >> 1)).unwrap();
        let last = master.log().last().unwrap().vlsn;
        until("all to be committed", || master.committed() >= Some(last));
    }
    let last = master.log().last().unwrap().vlsn;
    assert!(last.get() - before.get() < 20, "{before} to {last}");
    assert!(master.log().oldest() > Vlsn::new(50));
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_node_whose_store_is_gone_or_old_takes_a_snapshot_and_keeps_its_log() {
    let mut group = Group::of(3, 100_000, |_, _| ());
    group.write(320);
    group.prune();
    let at = group.down(false);
    for (round, keep) in [0, 30].into_iter().enumerate() {
        group.places[at].node = None;
        group.write(5);
        let shelf = Arc::new(Shelf::default());
        let entries = group.places[at].shelf.entries.lock()[..keep].to_vec();
        *shelf.entries.lock() = entries;
        group.places[at].shelf = shelf;
        group.places[at].open();
        let node = group.places[at].node();
        let base = node.log().base();
        assert!(base.is_some_and(|base| base.vlsn.get() > keep as u64), "{base:?}");
        assert!(node.status().standing.counts(), "its log holds what it acknowledged");
        group.installed(at);
        let token = group.write(5);
        group.all_have(&token);
        assert_eq!(group.places[at].node().log().base(), base, "the log stays, round {round}");
        assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 1);
        assert!(!group.places[at].config.base.dir.join("log/install").exists());
    }
    // It can lead with what it has.
    let name = group.places[at].config.base.node.clone();
    group.hand_over(&name);
    let token = group.write(5);
    group.all_have(&token);
}

#[test]
fn a_node_whose_store_is_gone_votes_for_one_who_has_more_and_then_gets_its_snapshot() {
    for pruned in [false, true] {
        let mut group = Group::of(3, 100_000, |_, _| ());
        group.write(320);
        group.prune();
        let (master, at) = (group.master_at(), group.down(false));
        group.write(if pruned { 320 } else { 5 });
        if pruned {
            let last = group.places[at].shelf.last();
            until("what it lacks to be pruned", || {
                group.up().for_each(|node| _ = node.prune(v(u64::MAX >> 1)).unwrap());
                group.up().all(|node| node.log().oldest() > last)
            });
        }
        let other = 3 - master - at;
        group.places.iter_mut().for_each(|place| place.node = None);
        group.places[at].shelf = Arc::default();
        for at in [other, at] {
            // The snapshot is there before anybody leads.
            group.places[at].config.election_timeout = Duration::from_secs(2);
            group.places[at].open();
        }
        // The other has all that was committed: it leads, and what the snapshot is behind comes from its log.
        group.installed(at);
        let token = group.write(5);
        let node = group.places[at].node();
        assert!(node.wait_for(&token, patience()).unwrap(), "pruned {pruned}: {:?}", node.last_error());
        assert!(group.places[other].node().leads().is_some());
    }
}

#[test]
fn a_log_that_stands_on_a_snapshot_and_lost_the_store_takes_another() {
    let mut group = Group::of(3, 10, |_, _| ());
    group.write(20);
    let at = group.down(true);
    group.write(300);
    group.prune();
    group.places[at].join();
    group.installed(at);
    let node = group.places[at].node();
    until("it to stand on it", || node.log().base().is_some() && node.status().standing.counts());
    group.places[at].node = None;
    group.places[at].shelf = Arc::default();
    group.places[at].open();
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
}

#[test]
fn an_engine_ahead_of_its_log_is_replaced_and_the_log_comes_back_before_it_counts() {
    let mut group = Group::of(3, 100_000, |_, _| ());
    group.write(40);
    let at = group.down(false);
    let dir = group.places[at].config.base.dir.clone();
    let copy = group.dir.path().join("copy");
    copy_dir(&dir, &copy);
    group.places[at].open();
    let token = group.write(40);
    group.all_have(&token);
    group.places[at].node = None;
    std::fs::remove_dir_all(&dir).unwrap();
    copy_dir(&copy, &dir);
    // What it has applied there is of no group.
    group.places[at].shelf.entries.lock().last_mut().unwrap().1 ^= 1;
    // First with nobody to give a snapshot: opened again, it is not taken for the engine of the log that has come back.
    let mute = |group: &Group, mute| {
        group.places.iter().for_each(|place| place.shelf.mute.store(mute, Ordering::SeqCst));
    };
    mute(&group, true);
    group.places[at].open();
    assert!(!group.places[at].node().status().standing.counts(), "its log lost what it acknowledged");
    group.write(5);
    until("its log to come back", || {
        let node = group.places[at].node();
        node.status().standing.counts() && node.log().last().is_some_and(|last| last.vlsn > token.vlsn)
    });
    assert!(dir.join("engine-ahead").exists());
    until("it to say why", || {
        matches!(group.places[at].node().last_error(), Some(FollowError::SnapshotFailed { .. }))
    });
    group.places[at].node = None;
    group.places[at].open();
    assert_eq!(group.places[at].node().positions().applied, None, "nothing of it is relied on");
    mute(&group, false);
    group.installed(at);
    let token = group.write(5);
    group.all_have(&token);
    assert_eq!(group.places[at].shelf.installs.load(Ordering::SeqCst), 1);
    assert!(!dir.join("engine-ahead").exists());
    assert_eq!(group.places[at].node().log().base(), None, "the log stays");
}

#[test]
fn alone_or_by_hand_an_engine_that_does_not_fit_its_log_is_refused_by_name() {
    let mut alone = Group::of(1, 10, |_, _| ());
    alone.write(320);
    alone.prune();
    alone.places[0].node = None;
    let entries = std::mem::take(&mut *alone.places[0].shelf.entries.lock());
    let place = &alone.places[0];
    let refused = Node::open(place.config.clone(), place.engine(), Host::machine()).err().unwrap();
    assert!(matches!(refused, NodeError::EngineBehind { applied: None, .. }), "{refused}");
    let last = entries.last().unwrap().0;
    *place.shelf.entries.lock() = entries;
    // The log may end a little behind what was applied.
    place.shelf.entries.lock().push((last + 1000, 0));
    let refused = Node::open(place.config.clone(), place.engine(), Host::machine()).err().unwrap();
    assert!(matches!(refused, NodeError::EngineAhead { .. }), "{refused}");
    assert!(!place.config.base.dir.join("engine-ahead").exists());

    let mut group = Group::of(2, 10, |_, config| config.base.snapshots = Snapshots::Manual);
    group.write(320);
    group.prune();
    let at = group.down(false);
    group.places[at].shelf = Arc::default();
    let place = &group.places[at];
    let refused = Node::open(place.config.clone(), place.engine(), Host::machine()).err().unwrap();
    assert!(matches!(refused, NodeError::EngineBehind { .. }), "{refused}");
}

#[cfg(feature = "sim")]
#[test]
fn power_losses_at_any_step_of_a_fetch_or_an_install_lose_nothing() {
    use quorate::entry::NewEntry;
    use stage::Stage;
    let (mut interrupted, mut installed) = (0, 0);
    for steps in 0..40_u64 {
        let mut stage = Stage::group(7_000 + steps, &["n1", "n2", "n3"]);
        stage.actors.iter().for_each(|actor| actor.book.gives.store(true, Ordering::SeqCst));
        let at = (stage.master() + 1) % 3;
        let rest: Vec<usize> = (0..3).filter(|one| *one != at).collect();
        stage.crash(at);
        stage.write_among(&rest, &[1; 3_000]);
        for _ in 0..3 {
            let master = stage.master_of(&rest);
            let entries: Vec<_> = (0..25).map(|_| NewEntry::data(&[2; 3_000])).collect();
            stage.node(master).append(&entries, Policy::Async).unwrap();
            stage.write_among(&rest, &[3; 3_000]);
        }
        // The master first writes its member list anew, so that the old one may go.
        for _ in 0..10 {
            stage.run(Duration::from_millis(100));
            rest.iter().for_each(|one| assert!(stage.node(*one).prune(v(u64::MAX >> 1)).is_ok()));
        }
        assert!(rest.iter().all(|one| stage.node(*one).log().oldest() > Vlsn::new(30)));
        stage.open(at);
        stage.sim.run_steps(steps * 60);
        interrupted += u64::from(stage.node(at).log().oldest() < Vlsn::new(30));
        stage.crash(at);
        stage.open(at);
        stage.sim.run_steps(steps * 25);
        stage.crash(at);
        let last = stage.write_among(&rest, &[4; 30]);
        stage.open(at);
        stage.settle();
        stage.agreed();
        stage.all_say(&last, quorate::Answer::Committed);
        installed += u64::from(stage.actors[at].book.installs.load(Ordering::SeqCst) > 0);
        let books: Vec<_> = stage.actors.iter().map(|actor| actor.book.entries()).collect();
        assert!(
            books.windows(2).all(|pair| pair[0] == pair[1]),
            "the engines differ, seed {}",
            7_000 + steps
        );
    }
    assert_eq!(installed, 40);
    assert!(interrupted > 3, "{interrupted} power losses came before the end");
}
