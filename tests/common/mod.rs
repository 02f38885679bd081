//! What the tests share: a log in a temporary directory, a disk that counts and fails on demand, channels.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod channels;
pub mod memory;
pub mod nodes;

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate::clock::SystemClock;
use quorate::disk::{Disk, DiskFile, RealDisk};
use quorate::entry::{EntryRef, NewEntry};
use quorate::ids::{GroupId, Term, Vlsn};
use quorate::log::mmap::Mapping;
use quorate::log::{DoubtfulTail, Log, LogConfig, LogScanner, OpenError, Opened, ScanError};

pub const GROUP: GroupId = GroupId::from_bits(0x1234);

pub fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

pub fn t(number: u32) -> Term {
    Term::new(number)
}

/// Small segments, so that a few entries fill them.
pub fn config(dir: &Path) -> LogConfig {
    LogConfig { segment_bytes: 4096, max_payload: 1024, ..LogConfig::new(dir, GROUP) }
}

pub fn open(dir: &Path) -> (Log, Opened) {
    try_open(config(dir)).unwrap()
}

pub fn try_open(config: LogConfig) -> Result<(Log, Opened), OpenError> {
    Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config)
}

pub fn refusing(dir: &Path) -> LogConfig {
    LogConfig { doubtful: DoubtfulTail::Refuse, ..config(dir) }
}

/// The payload of an entry of the tests: told by its VLSN alone.
pub fn payload(vlsn: u64) -> Vec<u8> {
    let len = (vlsn * 37 % 200) as usize;
    (0..len).map(|at| (vlsn as usize + at) as u8 | 1).collect()
}

/// Appends the next `count` entries, one by one.
pub fn fill(log: &Log, term: u32, count: u64) {
    for _ in 0..count {
        let next = Vlsn::after(log.last().map(|last| last.vlsn)).get();
        log.append(t(term), &[NewEntry::data(&payload(next))]).unwrap();
    }
}

/// The VLSNs of all entries, with payloads checked against [`payload`].
pub fn read_all(log: &Log) -> Result<Vec<u64>, ScanError> {
    let mut scanner = log.scanner();
    let mut after = log.base().map(|base| base.vlsn);
    let mut seen = Vec::new();
    while let Some(run) = scanner.run(after, 7, 600)? {
        assert_eq!(run.first, Vlsn::after(after));
        for slice in run.slices() {
            let mut rest = *slice;
            while !rest.is_empty() {
                let entry = EntryRef::verify(rest).unwrap();
                let vlsn = entry.header().vlsn.unwrap().get();
                assert_eq!(entry.payload(), payload(vlsn), "payload of {vlsn}");
                seen.push(vlsn);
                rest = &rest[entry.bytes().len()..];
            }
        }
        after = Some(run.last.vlsn);
        assert_eq!(seen.last().copied(), Some(run.last.vlsn.get()));
    }
    Ok(seen)
}

pub fn names(dir: &Path, extension: &str) -> Vec<String> {
    RealDisk.list(dir).unwrap().into_iter().filter(|name| name.ends_with(extension)).collect()
}

/// Steps a flusher until it has nothing to do.
pub fn settle(flusher: &mut quorate::log::Flusher) {
    use quorate::clock::Wait;
    use quorate::worker::{Step, Worker};
    while let Ok(Step::Worked) = flusher.step(Wait::Now) {}
}

/// Counters and switches of a [`TestDisk`].
#[derive(Default)]
pub struct Switches {
    pub syncs: AtomicU64,
    pub dir_syncs: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub fail_sync: AtomicBool,
    pub fail_create: AtomicBool,
    pub fail_write: AtomicBool,
    /// Bytes that the disk says it has left; 0 asks the real one.
    pub space: AtomicU64,
    /// Fails every change to the disk from the one on that brings this to zero; counts down if set.
    pub changes_left: AtomicU64,
    pub limited: AtomicBool,
    /// What others do while a file is synced.
    pub meanwhile: parking_lot::Mutex<Option<Meanwhile>>,
}

type Meanwhile = Box<dyn Fn() + Send>;

impl Switches {
    fn change(&self) -> io::Result<()> {
        if self.limited.load(Ordering::SeqCst) {
            let left = self.changes_left.load(Ordering::SeqCst);
            if left == 0 {
                return Err(io::Error::other("the machine stopped"));
            }
            self.changes_left.store(left - 1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// The real disk, with counters, and errors on demand.
#[derive(Clone, Default)]
pub struct TestDisk(pub Arc<Switches>);

struct TestFile(Arc<dyn DiskFile>, Arc<Switches>);

impl TestDisk {
    pub fn open_log(&self, config: LogConfig) -> Result<(Log, Opened), OpenError> {
        Log::open(Arc::new(self.clone()), Arc::new(SystemClock), config)
    }
}

impl Disk for TestDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.create_dir(dir)
    }
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.0.change()?;
        if self.0.fail_create.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(Arc::new(TestFile(RealDisk.create(path, len)?, Arc::clone(&self.0))))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(TestFile(RealDisk.open(path)?, Arc::clone(&self.0))))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.change()?;
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.change()?;
        RealDisk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.change()?;
        self.0.dir_syncs.fetch_add(1, Ordering::SeqCst);
        RealDisk.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<u64> {
        match self.0.space.load(Ordering::SeqCst) {
            0 => RealDisk.space(dir),
            left => Ok(left),
        }
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        RealDisk.lock(path)
    }
}

impl DiskFile for TestFile {
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.1.change()?;
        self.1.writes.fetch_add(1, Ordering::SeqCst);
        if self.1.fail_write.load(Ordering::SeqCst) {
            // Half of it gets through, as it may on a full disk.
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            self.0.write_at(&[IoSlice::new(&first[..first.len() / 2])], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write_at(slices, offset)
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.0.read_at(into, offset)?;
        self.1.read_bytes.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.change()?;
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        if let Some(meanwhile) = &*self.1.meanwhile.lock() {
            meanwhile();
        }
        if self.1.fail_sync.load(Ordering::SeqCst) {
            return Err(io::Error::other("the device lost the write"));
        }
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn map(&self) -> io::Result<Mapping> {
        self.0.map()
    }
}
