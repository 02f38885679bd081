//! A disk that stops before one of its changes, and stays so for all that follow: what a power loss at that step leaves.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate::disk::{Disk, DiskFile};
use quorate::log::mmap::Mapping;
use quorate::sim::FaultDisk;

/// The disk. Others may go on with the one below it.
pub struct Stopping {
    disk: Arc<FaultDisk>,
    left: Arc<AtomicU64>,
}

struct StoppingFile(Arc<dyn DiskFile>, Arc<AtomicU64>);

fn change(left: &AtomicU64) -> io::Result<()> {
    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("the machine stopped")),
    }
}

impl Stopping {
    /// Stops when `left` is used up.
    pub fn new(disk: Arc<FaultDisk>, left: Arc<AtomicU64>) -> Stopping {
        Stopping { disk, left }
    }

    /// The power fails, and comes back.
    pub fn restart(&self) {
        self.disk.lose_power();
        self.left.store(u64::MAX, Ordering::SeqCst);
    }

    fn file(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(StoppingFile(file, Arc::clone(&self.left)))
    }
}

impl Disk for Stopping {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        change(&self.left)?;
        self.disk.create_dir(dir)
    }
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        change(&self.left)?;
        Ok(self.file(self.disk.create(path, len)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(self.disk.open(path)?))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        change(&self.left)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        change(&self.left)?;
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        change(&self.left)?;
        self.disk.sync_dir(dir)
    }
    fn space(&self, dir: &Path) -> io::Result<u64> {
        self.disk.space(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }
}

impl DiskFile for StoppingFile {
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        change(&self.1)?;
        self.0.write_at(slices, offset)
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(into, offset)
    }
    fn sync(&self) -> io::Result<()> {
        change(&self.1)?;
        self.0.sync()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn map(&self) -> io::Result<Mapping> {
        self.0.map()
    }
}
