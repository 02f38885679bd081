//! Nodes that need what no log has any more: real nodes with real files, threads and TCP connections.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use common::nodes::{id, patience, until};
use common::{GROUP, v};
use parking_lot::Mutex;
use quorate::engine::{EngineSnapshot, Item, Items};
use quorate::{
    Address, Admission, Config, Engine, EngineError, Entries, Host, NewEntry, Node, NodeConfig, Outcome,
    Policy, Token, Vlsn,
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
        let Some(at) = self.0.last() else { return Ok(None) };
        self.0.snapshots.fetch_add(1, Ordering::SeqCst);
        let mut bytes = Vec::new();
        for (vlsn, crc) in &*self.0.entries.lock() {
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
        let mut group = Group { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        for at in 0..count {
            let mut config = group.config(&format!("n{at}"));
            config.seeds = group.places.iter().filter_map(|place| place.config.base.listen.clone()).collect();
            change(at, &mut config);
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
