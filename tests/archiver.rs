//! Nodes that archive while they lead: real nodes with real files and threads.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::GROUP;
use common::nodes::{id, patience, until};
use parking_lot::Mutex;
use quorate::archive::base::Manifest;
use quorate::archive::drill::replay;
use quorate::archive::verify::{Finding, verify};
use quorate::archive::{
    Archive, ArchiveConfig, ArchiveError, Catalog, DirArchive, Object, RestoreOptions, Restored, Start,
    Until, restore,
};
use quorate::clock::SystemClock;
use quorate::disk::{Disk, RealDisk};
use quorate::ids::VlsnRange;
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::wire::recovery::ArchiveStatus;
use quorate::{
    Address, Admission, Config, Engine, EngineError, EngineSnapshot, Entries, Event, GroupId, Host, Item,
    Items, NewEntry, Node, NodeConfig, Policy, Token, Vlsn,
};

type Records = Vec<(u64, u32)>;

/// An engine that keeps the VLSN and the payload's CRC of every entry, also in its copies. The store outlives it.
struct Clerk(Arc<Mutex<Records>>);

impl Clerk {
    fn last(&self) -> Option<Vlsn> {
        self.0.lock().last().and_then(|(vlsn, _)| Vlsn::new(*vlsn))
    }
}

impl Engine for Clerk {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.last())
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut records = self.0.lock();
        for entry in entries.iter() {
            let vlsn = entry.header().vlsn.unwrap().get();
            assert_eq!(vlsn, records.last().map_or(0, |(vlsn, _)| *vlsn) + 1, "in order, once");
            records.push((vlsn, crc32fast::hash(entry.payload())));
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.last())
    }

    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let Some(at) = self.last() else { return Ok(None) };
        let bytes = |(vlsn, crc): &(u64, u32)| [&vlsn.to_le_bytes()[..], &crc.to_le_bytes()].concat();
        let bytes: Vec<u8> = self.0.lock().iter().flat_map(bytes).collect();
        Ok(Some(Box::new(Copied { at, bytes: Some(bytes), offset: 0, given: false })))
    }

    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        items.open(0)?.read_to_end(&mut bytes)?;
        let record = |chunk: &[u8]| {
            let (vlsn, crc) = chunk.split_at(8);
            (u64::from_le_bytes(vlsn.try_into().unwrap()), u32::from_le_bytes(crc.try_into().unwrap()))
        };
        *self.0.lock() = bytes.chunks_exact(12).map(record).collect();
        assert_eq!(self.last(), Some(items.at()));
        Ok(())
    }
}

struct Copied {
    at: Vlsn,
    bytes: Option<Vec<u8>>,
    offset: usize,
    given: bool,
}

impl EngineSnapshot for Copied {
    fn at(&self) -> Vlsn {
        self.at
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        let first = !std::mem::replace(&mut self.given, true);
        Ok(first.then(|| Item { name: "records".into(), len: None }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let part = &self.bytes.as_ref().unwrap()[self.offset..];
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
        self.offset += len;
        Ok(len)
    }
}

/// One node of a test.
struct Place {
    config: NodeConfig,
    records: Arc<Mutex<Records>>,
    node: Option<Node>,
}

impl Place {
    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node is up")
    }

    fn engine(&self) -> Box<Clerk> {
        Box::new(Clerk(Arc::clone(&self.records)))
    }

    fn open(&mut self) {
        self.node = Some(Node::open(self.config.clone(), self.engine(), Host::machine()).unwrap());
    }
}

/// A group whose nodes archive into one directory.
struct Grove {
    dir: tempfile::TempDir,
    places: Vec<Place>,
}

fn archive_in(dir: &Path) -> DirArchive {
    DirArchive::new(Arc::new(RealDisk), dir.join("archive"), ThreadRuntime.random())
}

impl Grove {
    fn found(change: impl Fn(&mut NodeConfig)) -> Grove {
        let mut grove = Grove { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        let mut config = grove.config("n1");
        change(&mut config);
        let mut place = Place { config, records: Arc::default(), node: None };
        place.node = Some(Node::create(place.config.clone(), place.engine(), Host::machine()).unwrap());
        place.config.base.listen = place.node().address().cloned();
        grove.places.push(place);
        until("the founder to lead", || grove.master().is_some());
        grove
    }

    fn config(&self, name: &str) -> NodeConfig {
        let mut base = Config::new(GROUP, id(name), self.dir.path().join(name));
        base.segment_bytes = 64 << 10;
        base.max_payload = 8 << 10;
        base.heartbeat = Duration::from_millis(20);
        base.checkpoint_every = Duration::from_millis(20);
        base.backoff_max = Duration::from_millis(100);
        base.listen = Some(Address::Tcp("127.0.0.1:0".into()));
        let mut config = NodeConfig::new(base);
        config.election_timeout = Duration::from_millis(200);
        let mut archive = ArchiveConfig::new(Arc::new(archive_in(self.dir.path())));
        archive.every = Duration::from_millis(20);
        config.archive = Some(archive);
        config
    }

    fn add(&mut self, name: &str) {
        let mut config = self.config(name);
        config.seeds = self.places.iter().filter_map(|place| place.config.base.listen.clone()).collect();
        let mut place = Place { config, records: Arc::default(), node: None };
        place.node = Some(Node::join(place.config.clone(), place.engine(), Host::machine()).unwrap());
        place.config.base.listen = place.node().address().cloned();
        self.places.push(place);
        let count = self.places.len();
        until("everybody to be a full member", || {
            let Some(master) = self.master() else { return false };
            let members = master.members();
            members.iter().count() == count && members.iter().all(|one| one.admission == Admission::Full)
        });
    }

    fn up(&self) -> impl Iterator<Item = &Node> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    fn master(&self) -> Option<&Node> {
        self.up()
            .filter(|node| node.leads().is_some() && node.committed().is_some())
            .max_by_key(|node| node.leads())
    }

    fn write(&self, payload: &[u8]) -> Token {
        let mut token = None;
        until("a write to be committed", || {
            let Some(master) = self.master() else { return false };
            let Ok(ticket) = master.append(&[NewEntry::data(payload)], Policy::MAJORITY) else {
                return false;
            };
            token = Some(ticket.token);
            master.commit(&ticket, patience()).is_ok()
        });
        token.expect("a token")
    }

    fn write_many(&self, count: usize, len: usize) -> Token {
        let mut token = None;
        for at in 0..count {
            let mut payload = vec![b'x'; len];
            payload[..8].copy_from_slice(&(at as u64).to_le_bytes());
            token = Some(self.write(&payload));
        }
        token.expect("at least one")
    }

    fn status(&self) -> ArchiveStatus {
        self.master().and_then(|master| master.status().keeping.archive).unwrap_or_default()
    }

    /// Everything that is committed now is in the archive.
    fn archived(&self) -> Vlsn {
        let committed = self.master().and_then(Node::committed).expect("a master");
        until("the archive to have it all", || {
            let status = self.status();
            assert_eq!(status.failed, None);
            status.last >= Some(committed)
        });
        committed
    }

    fn archived_bytes(&self) -> u64 {
        Catalog::read(&self.archive()).unwrap().logs.iter().map(|log| log.len).sum()
    }

    fn archive(&self) -> DirArchive {
        archive_in(self.dir.path())
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn restore(
        &self,
        name: &str,
        until: Until,
        base: Option<Vlsn>,
    ) -> Result<Restored, quorate::archive::RestoreError> {
        let start = base.map_or(Start::Latest, Start::Base);
        let options =
            RestoreOptions { until, start, segment_bytes: 64 << 10, ..RestoreOptions::new(id("r")) };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        restore(&self.archive(), &disk, &ThreadRuntime, &self.to(name), &options, &mut |_| ())
    }

    /// Opens what was restored, and returns what its engine has of the entries up to the target.
    fn records_of(&self, name: &str, restored: &Restored) -> Records {
        let records = Arc::<Mutex<Records>>::default();
        let mut base = Config::new(restored.group, id("r"), self.to(name));
        base.segment_bytes = 64 << 10;
        base.max_payload = 8 << 10;
        let engine = Box::new(Clerk(Arc::clone(&records)));
        let node = Node::open(NodeConfig::new(base), engine, Host::machine()).unwrap();
        until("the restored node to lead", || node.leads().is_some());
        until("its engine to have it all", || {
            records.lock().last().is_some_and(|last| last.0 > restored.last.get())
        });
        drop(node);
        let mut records = records.lock().clone();
        records.truncate(restored.target.vlsn.get() as usize);
        records
    }

    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut each =
            |_: u64, finding: Option<Finding>| found.extend(finding.map(|finding| finding.to_string()));
        verify(&self.archive(), &mut each).unwrap();
        found
    }
}

/// The engine's records up to here, in the group that was archived.
fn up_to(records: &Mutex<Records>, last: Vlsn) -> Records {
    let mut records = records.lock().clone();
    records.truncate(last.get() as usize);
    records
}

#[test]
fn a_node_archives_while_it_writes_and_a_restore_has_it_all() {
    let grove = Grove::found(|_| ());
    grove.write_many(300, 100);
    let last = grove.archived();
    assert_eq!(grove.findings(), Vec::<String>::new());
    assert!(grove.master().unwrap().log().pins().iter().any(|pin| pin.owner == "archive" && pin.from > last));
    let restored = grove.restore("r", Until::Vlsn(last), None).unwrap();
    assert_eq!((restored.from, restored.target.vlsn), (GROUP, last));
    assert_eq!(grove.records_of("r", &restored), up_to(&grove.places[0].records, last));
}

#[test]
fn a_slot_follows_the_archive_to_the_end_also_if_nothing_more_is_written() {
    let mut grove = Grove::found(|config| config.archive = None);
    grove.write_many(100, 100);
    let place = &mut grove.places[0];
    place.node = None;
    let mut archive = ArchiveConfig::new(Arc::new(archive_in(grove.dir.path())));
    archive.every = Duration::from_millis(20);
    place.config.archive = Some(archive);
    place.config.base.slot_every = Duration::from_millis(20);
    place.config.base.retention_every = Duration::from_millis(5);
    place.open();
    // The first list is written when nothing is archived yet, and is the last entry for now.
    until("a list that says that all before it is archived, and after which none comes", || {
        let Some(master) = grove.master() else { return false };
        let slots = master.slots();
        let slot = slots.iter().find(|slot| slot.name == "archive");
        slot.is_some_and(|slot| {
            slot.from > Vlsn::new(100).unwrap() && Some(slot.from) == master.status().positions.received
        })
    });
}

#[test]
fn a_new_master_goes_on_where_the_archive_ends() {
    let mut grove = Grove::found(|_| ());
    grove.add("n2");
    grove.add("n3");
    for round in 0..3 {
        grove.write_many(50, 100);
        if round == 1 {
            // Not all of it need be archived when the master goes.
            grove.archived();
        }
        let term = grove.master().unwrap().leads();
        let at = grove
            .places
            .iter()
            .position(|place| place.node.as_ref().is_some_and(|n| n.leads() == term))
            .unwrap();
        grove.places[at].node = None;
        until("another to lead", || grove.master().is_some_and(|master| master.leads() > term));
        grove.places[at].open();
    }
    grove.write_many(50, 100);
    let last = grove.archived();
    assert_eq!(grove.findings(), Vec::<String>::new());
    let restored = grove.restore("r", Until::Vlsn(last), None).unwrap();
    let term = grove.master().unwrap().leads().unwrap();
    let at = grove.places.iter().position(|place| place.node().leads() == Some(term)).unwrap();
    until("the engine", || grove.places[at].records.lock().len() as u64 >= last.get());
    assert_eq!(grove.records_of("r", &restored), up_to(&grove.places[at].records, last));
    assert!(restored.term > restored.target.term);
    // Those who do not lead keep no pin, and say nothing of an archive.
    for place in grove.places.iter().filter(|place| place.node().leads().is_none()) {
        until("the pin to go", || place.node().log().pins().iter().all(|pin| pin.owner != "archive"));
    }
}

#[test]
fn bases_are_made_and_kept_and_the_engine_comes_out_the_same_from_each() {
    let mut grove = Grove::found(|config| {
        if let Some(archive) = &mut config.archive {
            archive.base_bytes = 64 << 10;
        }
    });
    let archive = grove.archive();
    let bases = || {
        let catalog = Catalog::read(&archive).unwrap();
        catalog.whole_bases().cloned().collect::<Vec<_>>()
    };
    until("several bases", || {
        grove.write_many(40, 1000);
        grove.archived();
        bases().len() == 2 && bases()[0].at.get() > 200
    });
    let last = grove.archived();
    // From here on nobody makes or removes anything.
    grove.places[0].node = None;
    let bases = bases();
    let [older, newer] = &bases[..] else { panic!("{bases:?}") };
    assert_eq!(grove.findings(), Vec::<String>::new());
    // The log before the older one is gone.
    let catalog = Catalog::read(&grove.archive()).unwrap();
    assert!(catalog.logs.iter().all(|log| log.range.last() > older.at));
    let records = &grove.places[0].records;
    for (name, target, base) in [("a", last, None), ("b", last, Some(older.at)), ("c", older.at.next(), None)]
    {
        let restored = grove.restore(name, Until::Vlsn(target), base).unwrap();
        let expected = if name == "a" { newer.at } else { older.at };
        assert_eq!(restored.base, Some(expected));
        assert_eq!(grove.records_of(name, &restored), up_to(records, target));
    }
    // From the older base to the newer one's place, the engine holds what the newer one says.
    let restored = grove.restore("drill", Until::Vlsn(newer.at), Some(older.at)).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut engine = Clerk(Arc::default());
    let dir = grove.to("drill");
    let digest = replay(&disk, Arc::new(SystemClock), &dir, restored.group, &mut engine, newer.at).unwrap();
    assert_eq!(digest, Manifest::read(&grove.archive(), newer).unwrap().state_digest());
    assert!(grove.restore("early", Until::Vlsn(older.at.previous().unwrap()), None).is_err());
}

#[test]
fn what_was_removed_before_it_was_archived_is_a_gap_that_is_told_and_bridged_by_a_base() {
    let mut grove = Grove::found(|_| ());
    grove.write_many(20, 100);
    let archived = grove.archived();
    // Without its archive the node writes on and removes old segments.
    let archive = grove.places[0].config.archive.take();
    grove.places[0].node = None;
    grove.places[0].open();
    until("the node to lead", || grove.master().is_some());
    let written = grove.write_many(300, 1000);
    until("old segments to go", || {
        grove.write(b"more");
        let node = grove.places[0].node();
        node.prune(written.vlsn).unwrap();
        node.log().base().is_some_and(|base| base.vlsn > archived.next())
    });
    grove.places[0].config.archive = archive;
    grove.places[0].node = None;
    let place = &mut grove.places[0];
    let told = Arc::<Mutex<Vec<VlsnRange>>>::default();
    place.open();
    let listener = Arc::clone(&told);
    place.node().on_change(move |event| {
        if let Event::ArchiveGap { missing } = event {
            listener.lock().push(*missing);
        }
    });
    let base = place.node().log().base().unwrap();
    until("the archive to go on", || grove.status().last > Some(base.vlsn) && grove.status().base.is_some());
    let why = grove.status().failed.expect("the gap stays known");
    assert!(why.contains("removed from the log before"), "{why}");
    until("the gap to be told", || !told.lock().is_empty());
    let missing = told.lock()[0];
    assert_eq!((missing.first(), missing.last()), (archived.next(), base.vlsn));
    // There is log behind the base, too: only then there is a gap in between.
    grove.write(b"behind the base");
    let last = grove.master().unwrap().committed().unwrap();
    until("the archive to have it all", || grove.status().last >= Some(last));
    let found = grove.findings();
    assert!(found.len() == 1 && found[0].contains("are missing"), "{found:?}");
    let restored = grove.restore("end", Until::Vlsn(last), None).unwrap();
    assert_eq!(grove.records_of("end", &restored), up_to(&grove.places[0].records, last));
    let before = grove.restore("before", Until::Vlsn(archived), None).unwrap();
    assert_eq!(grove.records_of("before", &before), up_to(&grove.places[0].records, archived));
    assert!(grove.restore("within", Until::Vlsn(archived.next()), None).is_err());
}

#[test]
fn an_archive_of_another_group_is_left_alone_and_named() {
    let first = Grove::found(|_| ());
    first.write_many(5, 100);
    let last = first.archived();
    let root = first.dir.path().to_owned();
    let second = Grove::found(|config| {
        config.base.group = GroupId::from_bits(4711);
        config.archive = Some(ArchiveConfig::new(Arc::new(archive_in(&root))));
    });
    until("the archiver to refuse", || second.status().failed.is_some());
    let why = second.status().failed.unwrap();
    assert!(why.contains("an archive of its own") && why.contains(&GROUP.to_string()), "{why}");
    second.write_many(5, 100);
    assert_eq!(Catalog::read(&first.archive()).unwrap().last_log().unwrap().range.last(), last);
    assert_eq!(first.findings(), Vec::<String>::new());
}

#[test]
fn an_order_makes_a_base_now() {
    let grove = Grove::found(|_| ());
    grove.write_many(5, 100);
    grove.archived();
    let master = grove.master().unwrap();
    let at = master.address().unwrap().clone();
    let mut client = quorate::Client::new(vec![at], Arc::new(ThreadRuntime));
    let order = quorate::wire::message::Order::Archive;
    let reply = client.order(GROUP, order, patience()).unwrap();
    assert!(matches!(reply, quorate::wire::message::ControlReply::Done(_)), "{reply:?}");
    until("the base", || grove.status().base.is_some());
    assert_eq!(Catalog::read(&grove.archive()).unwrap().whole_bases().count(), 1);
    assert_eq!(grove.findings(), Vec::<String>::new());
}

/// An archive that takes nothing for a while.
struct Stuck {
    to: DirArchive,
    stuck: Arc<AtomicBool>,
}

impl Archive for Stuck {
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        if self.stuck.load(Ordering::SeqCst) {
            return Err(ArchiveError::io("write", name)(std::io::ErrorKind::StorageFull.into()));
        }
        self.to.put(name, from)
    }
    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        self.to.open(name)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError> {
        self.to.list(prefix)
    }
    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        self.to.remove(name)
    }
}

#[test]
fn what_is_not_archived_is_kept_on_every_node_and_a_change_of_master_leaves_no_gap() {
    let stuck = Arc::new(AtomicBool::new(false));
    let dir = tempfile::tempdir().unwrap();
    let mut grove = Grove::found(|_| ());
    grove.places[0].node = None;
    for name in ["n1", "n2"] {
        if name == "n2" {
            grove.add(name);
        }
        let place = grove.places.last_mut().unwrap();
        place.node = None;
        let to = Stuck { to: archive_in(dir.path()), stuck: Arc::clone(&stuck) };
        let mut archive = ArchiveConfig::new(Arc::new(to));
        archive.every = Duration::from_millis(20);
        place.config.archive = Some(archive);
        (place.config.base.keep_bytes, place.config.base.disk_floor) = (0, 0);
        place.config.base.slot_every = Duration::from_millis(20);
        place.config.base.retention_every = Duration::from_millis(5);
        place.open();
        until("a master", || grove.master().is_some());
    }
    grove.write_many(20, 1000);
    let slot = |grove: &Grove| {
        let slots = grove.master()?.slots();
        slots.iter().find(|slot| slot.name == "archive" && slot.invalid.is_none()).map(|slot| slot.from)
    };
    until("the archive to have its slot", || slot(&grove).is_some());
    // It moves with what is archived.
    let from = slot(&grove);
    grove.write_many(20, 1000);
    until("the slot to move", || slot(&grove) > from);
    stuck.store(true, Ordering::SeqCst);
    let token = grove.write_many(400, 1000);
    let kept = slot(&grove).unwrap();
    for node in grove.up() {
        assert!(node.wait_for(&token, patience()).unwrap());
        for _ in 0..50 {
            node.prune(token.vlsn).unwrap();
        }
        assert!(node.log().oldest() <= Some(kept), "{:?} is gone, and not archived", node.log().oldest());
    }
    let old = grove.master().unwrap().status().node;
    until("the other to lead", || {
        let Some(master) = grove.master() else { return false };
        if master.status().node == old {
            // Again, if the machine was too slow for the other's election.
            let _begun = master.transfer(None, Duration::from_secs(10));
        }
        master.status().node != old
    });
    let master = grove.master().unwrap();
    for _ in 0..50 {
        master.prune(token.vlsn).unwrap();
    }
    stuck.store(false, Ordering::SeqCst);
    until("all to be archived", || grove.status().last >= Some(token.vlsn));
    assert_eq!(grove.status().failed, None);
    let catalog = Catalog::read(&archive_in(dir.path())).unwrap();
    assert_eq!(catalog.last_log().map(|log| log.range.last() >= token.vlsn), Some(true));
    assert!(catalog.gaps().is_empty());
    // Then it lets go.
    until("the log to be pruned", || {
        grove.write(&[1; 1000]);
        master.log().oldest() > Some(kept)
    });
}

#[test]
fn a_copy_that_comes_when_its_master_leads_no_more_holds_no_log() {
    let mut grove = Grove::found(|_| ());
    grove.add("n2");
    grove.add("n3");
    for place in &mut grove.places {
        place.node = None;
        place.config.archive.as_mut().unwrap().base_bytes = 64 << 10;
        place.open();
    }
    until("a master", || grove.master().is_some());
    grove.write_many(5, 100);
    let master = grove.master().unwrap();
    let (name, term) = (master.status().node, master.leads().unwrap());
    let at = grove.places.iter().position(|place| place.config.base.node == name).unwrap();
    let records = Arc::clone(&grove.places[at].records);
    {
        // Its engine is slow, and the copy that the base needs does not come.
        let _slow = records.lock();
        let before = grove.archived_bytes();
        until("more to be archived than a base is made for", || {
            grove.write(&[1; 8000]);
            grove.archived_bytes() > before + (128 << 10)
        });
        assert!(grove.places[at].node().demote(term), "it led all the while");
        until("another to lead", || grove.master().is_some_and(|master| master.leads() > Some(term)));
    }
    // When it has applied what comes now, it has also made the copy.
    let token = grove.write_many(5, 100);
    let node = grove.places[at].node();
    assert!(node.wait_for(&token, patience()).unwrap());
    until("its log to be let go", || node.log().pins().iter().all(|pin| pin.owner != "snapshot"));
}

/// An archive in which bases take as long as the test wants.
struct SlowBases {
    to: DirArchive,
    held: Arc<AtomicBool>,
    began: Arc<AtomicBool>,
}

impl Archive for SlowBases {
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        if name.starts_with("base/") {
            self.began.store(true, Ordering::SeqCst);
            until("the base to be let on", || !self.held.load(Ordering::SeqCst));
        }
        self.to.put(name, from)
    }
    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        self.to.open(name)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError> {
        self.to.list(prefix)
    }
    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        self.to.remove(name)
    }
}

impl Grove {
    /// Writes and prunes until the log has no more of what was there before.
    fn prune_beyond(&self, last: Vlsn) {
        let written = self.write_many(300, 1000);
        until("old segments to go", || {
            self.write(b"more");
            let node = self.master().unwrap();
            node.prune(written.vlsn).unwrap();
            node.log().base().is_some_and(|base| base.vlsn > last.next())
        });
    }
}

#[test]
fn a_base_that_the_log_has_left_behind_when_it_comes_is_followed_by_another() {
    let mut grove = Grove::found(|_| ());
    grove.write_many(20, 100);
    let archived = grove.archived();
    grove.places[0].config.archive = None;
    grove.places[0].node = None;
    grove.places[0].open();
    until("the node to lead", || grove.master().is_some());
    grove.prune_beyond(archived);
    grove.places[0].node = None;
    let [held, began] = [true, false].map(|so| Arc::new(AtomicBool::new(so)));
    let to = archive_in(grove.dir.path());
    let to = SlowBases { to, held: Arc::clone(&held), began: Arc::clone(&began) };
    let mut archive = ArchiveConfig::new(Arc::new(to));
    archive.every = Duration::from_millis(20);
    let place = &mut grove.places[0];
    place.config.archive = Some(archive);
    let base = &mut place.config.base;
    (base.keep_bytes, base.disk_floor, base.pin_max_bytes) = (0, 0, 200_000);
    base.retention_every = Duration::from_millis(5);
    place.open();
    until("a base to be begun", || began.load(Ordering::SeqCst));
    let node = grove.places[0].node();
    until("the archive's hold on the log to be given up", || {
        grove.write(&[1; 1000]);
        node.log().pins().iter().any(|pin| pin.owner == "archive" && pin.void)
    });
    grove.write_many(100, 1000);
    held.store(false, Ordering::SeqCst);
    let last = grove.write(b"all of this is archived");
    until("the archive to go on", || {
        grove.write(b"and more");
        grove.status().last >= Some(last.vlsn)
    });
}

#[test]
fn an_archive_whose_beginning_is_gone_is_told_and_gets_a_base() {
    let mut grove = Grove::found(|_| ());
    grove.write_many(50, 1000);
    grove.archived();
    let gone = Catalog::read(&grove.archive()).unwrap().logs;
    grove.prune_beyond(gone.last().unwrap().range.last());
    grove.archived();
    grove.places[0].node = None;
    for object in &gone {
        grove.archive().remove(&object.name).unwrap();
    }
    assert!(grove.restore("nothing", Until::End, None).is_err());
    let told = Arc::<Mutex<Vec<VlsnRange>>>::default();
    grove.places[0].open();
    let listener = Arc::clone(&told);
    grove.places[0].node().on_change(move |event| {
        if let Event::ArchiveGap { missing } = event {
            listener.lock().push(*missing);
        }
    });
    until("a base", || grove.status().base.is_some());
    let why = grove.status().failed.expect("it is told");
    assert!(why.contains("gone from the archive"), "{why}");
    until("what is missing to be told", || !told.lock().is_empty());
    assert_eq!(told.lock()[0].first(), Vlsn::FIRST);
    let token = grove.write(b"behind the base");
    until("the archive to go on", || grove.status().last >= Some(token.vlsn));
    let restored = grove.restore("end", Until::Vlsn(token.vlsn), None).unwrap();
    assert!(restored.base.is_some(), "{restored:?}");
    assert_eq!(grove.records_of("end", &restored), up_to(&grove.places[0].records, token.vlsn));
    // Whoever leads next finds nothing wrong.
    grove.places[0].node = None;
    grove.places[0].open();
    let token = grove.write(b"in another term");
    until("the archive to go on", || grove.status().last >= Some(token.vlsn));
    assert_eq!(grove.status().failed, None);
}

#[test]
fn what_is_gone_from_the_archive_and_still_in_the_log_is_archived_again() {
    let mut grove = Grove::found(|_| ());
    // The middle, while nobody leads; the beginning; and everything, under the master.
    for round in 0..3 {
        for _ in 0..3 {
            grove.write_many(20, 1000);
            grove.archived();
        }
        let objects = Catalog::read(&grove.archive()).unwrap().logs;
        if round == 2 {
            std::fs::remove_dir_all(grove.to("archive")).unwrap();
        } else {
            grove.places[0].node = None;
            grove.archive().remove(&objects[1 - round].name).unwrap();
            assert!(grove.restore(&format!("broken{round}"), Until::End, None).is_err());
            grove.places[0].open();
        }
        let token = grove.write(b"more");
        until("all to be restorable", || {
            let catalog = Catalog::read(&grove.archive()).unwrap();
            catalog.last_led().is_some_and(|log| log.range.last() >= token.vlsn)
        });
        assert_eq!(grove.archived(), grove.master().and_then(Node::committed).unwrap());
        assert_eq!(grove.findings(), Vec::<String>::new());
        let name = format!("whole{round}");
        let restored = grove.restore(&name, Until::Vlsn(token.vlsn), None).unwrap();
        assert_eq!(restored.base, None);
        assert_eq!(grove.records_of(&name, &restored), up_to(&grove.places[0].records, token.vlsn));
    }
}
