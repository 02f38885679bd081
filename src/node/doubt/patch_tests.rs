//! Entries that come back while the log's end is in doubt or damaged: what is told of them, and when nothing is taken.

use std::io;
use std::path::Path;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::clock::{Stopwatch, SystemClock};
use crate::config::Config;
use crate::disk::{Disk, DiskFile, RealDisk};
use crate::engine::{Engine, EngineError};
use crate::entry::{Entries, NewEntry};
use crate::ids::{GroupId, Position, number};
use crate::log::mmap::Mapping;
use crate::log::{Log, LogConfig, LogScanner};
use crate::node::{Host, Node, NodeConfig};
use crate::state::State;

const GROUP: GroupId = GroupId::from_bits(5);

struct Nothing;

impl Engine for Nothing {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
    fn apply(&mut self, _entries: Entries<'_>) -> Result<(), EngineError> {
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
}

/// A disk whose syncs of the log's segments wait while the gate is shut.
#[derive(Clone, Default)]
struct Gated(Arc<Gate>);

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    /// How many syncs wait.
    waiting: Mutex<u32>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut shut = self.shut.lock();
        if *shut {
            *self.waiting.lock() += 1;
            self.changed.notify_all();
            self.changed.wait_while(&mut shut, |shut| *shut);
        }
    }

    fn shut(&self, to: bool) {
        *self.shut.lock() = to;
        self.changed.notify_all();
    }

    fn until_somebody_waits(&self) {
        let mut shut = self.shut.lock();
        self.changed.wait_while(&mut shut, |_| *self.waiting.lock() == 0);
    }
}

struct GatedFile(Arc<dyn DiskFile>, Arc<Gate>);

impl Gated {
    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let is_log = path.extension().is_some_and(|extension| extension == "seg");
        if is_log { Arc::new(GatedFile(file, Arc::clone(&self.0))) } else { file }
    }
}

impl Disk for Gated {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.create(path, len)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, RealDisk.open(path)?))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<u64> {
        RealDisk.space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for GatedFile {
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.0.write_at(slices, offset)
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(into, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn map(&self) -> io::Result<Mapping> {
        self.0.map()
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

/// A founder of three of whom nobody else can be reached.
struct Place {
    dir: tempfile::TempDir,
    gate: Arc<Gate>,
    node: Node,
}

impl Place {
    /// Whatever it had is damaged, up to VLSN `to`.
    fn damaged(to: u64) -> Place {
        Place::standing_so(Standing::Damaged { from: v(1), to: v(to), open: false })
    }

    fn standing_so(standing: Standing) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut base = Config::new(GROUP, id("a"), dir.path().join("a"));
        base.members = Members::new(["a", "b", "c"].map(|name| Member::electable(id(name))).into()).unwrap();
        base.handshake_timeout = Duration::from_millis(100);
        let disk = Gated::default();
        let gate = Arc::clone(&disk.0);
        let host = Host { disk: Arc::new(disk), ..Host::machine() };
        let node = Node::create(NodeConfig::new(base), Box::new(Nothing), host).unwrap();
        let noted = node.shared.election.state().update(|state| State { standing, ..state });
        noted.unwrap();
        Place { dir, gate, node }
    }

    /// The first entries of the group, as another node has them.
    fn runs(&self, ends: &[u64]) -> Vec<Vec<u8>> {
        let config = LogConfig::new(self.dir.path().join("other"), GROUP);
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        let count = ends.last().copied().unwrap_or(0);
        for number in 0..count {
            log.append(Term::new(1), &[NewEntry::data(&number.to_le_bytes())]).unwrap();
        }
        let (mut scanner, mut after) = (log.scanner(), None);
        let mut runs = Vec::new();
        for end in ends {
            let most = end - number(after);
            let run = scanner.run(after, most as u32, 1 << 20).unwrap().unwrap();
            assert_eq!(run.last.vlsn, v(*end));
            runs.push(run.slices().concat());
            after = Some(run.last.vlsn);
        }
        runs
    }

    fn standing(&self) -> Standing {
        self.node.shared.election.state().state().standing
    }

    fn last(&self) -> u64 {
        number(self.node.shared.core.log.last().map(|last| last.vlsn))
    }
}

#[test]
fn a_standing_waits_for_the_disk_to_have_what_came_back() {
    let place = Place::damaged(9);
    let runs = place.runs(&[4, 9]);
    let (node, log) = (&place.node.shared, &place.node.shared.core.log);
    place.gate.shut(true);
    std::thread::scope(|scope| {
        // Somebody else syncs what came first, and is long about it.
        let first = scope.spawn(|| {
            let summary = verify_run(&runs[0], None).unwrap();
            log.append_run(&runs[0], &summary).unwrap();
            log.flush(v(4), Wait::Forever).unwrap()
        });
        place.gate.until_somebody_waits();
        while place.last() < 4 {
            std::thread::yield_now();
        }
        let patched = node.patch(&node.own.id, &runs[1]);
        let (standing, last) = (place.standing(), place.last());
        place.gate.shut(false);
        assert!(first.join().unwrap());
        assert_eq!(last, 9, "{patched:?}");
        assert_eq!(
            standing,
            Standing::Damaged { from: v(1), to: v(9), open: false },
            "nothing of it is on the disk yet"
        );
        assert!(patched.is_err());
    });
    // It is told as soon as it is, though nothing more comes.
    assert!(log.flush(v(9), Wait::Forever).unwrap());
    let watch = Stopwatch::start();
    while !place.standing().counts() {
        assert!(watch.elapsed() < Duration::from_secs(30), "nobody tells of it");
        node.election.poke();
        std::thread::yield_now();
    }
}

#[test]
fn what_may_have_been_behind_the_damage_is_in_doubt_when_that_is_back_or_a_snapshot_is_in_its_place() {
    let open = Standing::Damaged { from: v(1), to: v(9), open: true };
    let place = Place::standing_so(open);
    let runs = place.runs(&[9]);
    place.node.shared.patch(&place.node.shared.own.id, &runs[0]).unwrap();
    assert_eq!((place.last(), place.standing()), (9, Standing::Doubtful { from: v(10) }));
    // The engine that came with it may lack what this node acknowledged behind it.
    let place = Place::standing_so(open);
    place.node.shared.core.log.reset(Position { vlsn: v(12), term: Term::new(1), crc: 7 }).unwrap();
    assert!(place.node.shared.is_passed(v(9)).unwrap());
    assert_eq!(place.standing(), Standing::Doubtful { from: v(13) });
}

#[test]
fn nothing_is_patched_while_a_snapshot_is_installed() {
    let place = Place::damaged(9);
    let runs = place.runs(&[4, 9]);
    let node = &place.node.shared;
    let following = node.following.get().unwrap();
    assert!(following.begin_install());
    node.patch(&node.own.id, &runs[0]).unwrap();
    assert_eq!(
        (place.last(), place.standing()),
        (0, Standing::Damaged { from: v(1), to: v(9), open: false })
    );
    following.end_install();
    for run in &runs {
        node.patch(&node.own.id, run).unwrap();
    }
    assert_eq!(place.last(), 9);
    assert!(place.standing().counts());
}

#[test]
fn what_was_saved_waits_while_a_snapshot_is_installed() {
    let place = Place::damaged(9);
    let runs = place.runs(&[9]);
    let node = &place.node.shared;
    // A file as recovery makes it: a header that nothing looks at, and the entries.
    let mut file = vec![0; crate::log::SEGMENT_HEADER_LEN];
    file.extend_from_slice(&runs[0]);
    let following = node.following.get().unwrap();
    assert!(following.begin_install());
    std::fs::write(node.core.config.dir.join("log/damaged-1-9-0.log"), file).unwrap();
    let saved = Arc::new(node.core.log.saved().unwrap());
    assert!(saved.after(None).is_some());
    node.doubt.lock().saved = Some(saved);
    // Whoever is told that something came back asks again at once.
    assert!(!node.heal_from_saved(v(9)).unwrap());
    assert_eq!(place.last(), 0);
    following.end_install();
    while !place.standing().counts() {
        node.heal_from_saved(v(9)).unwrap();
    }
    assert_eq!(place.last(), 9);
}
