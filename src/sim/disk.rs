//! A disk in memory that forgets what was not synced, tears it, fails, lies and rots.

mod contents;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use self::contents::Contents;
use self::names::Names;
use super::fault::{Fault, FaultCounts};
use super::rng::Rng;
use crate::disk::{Disk, DiskFile};
use crate::log::mmap::Mapping;

/// How likely each fault is, at each call that it can hit. All are zero at first. What a crash loses needs no switch: it
/// is always drawn anew.
#[derive(Clone, Debug, Default)]
pub struct DiskFaults {
    /// [`Fault::WriteError`].
    pub write_error: f64,
    /// [`Fault::NoSpace`], for writes and creates.
    pub no_space: f64,
    /// [`Fault::CreateError`].
    pub create_error: f64,
    /// [`Fault::ReadError`].
    pub read_error: f64,
    /// [`Fault::SyncError`].
    pub sync_error: f64,
    /// [`Fault::SyncLied`].
    pub sync_lies: f64,
    /// [`Fault::DirSyncError`].
    pub dir_sync_error: f64,
    /// [`Fault::BitFlip`]: for each file, at each power loss.
    pub bit_flip: f64,
    /// The kernel writes some unsynced sectors back by itself, after a write. No fault: what it wrote may be seen after
    /// a crash although later writes to the same place are not.
    pub write_back: f64,
    /// Whether directories that were created are lost, too, unless their parent was synced.
    pub lose_directories: bool,
}

/// A simulated disk. It belongs to one node and survives that node's crashes.
///
/// Faults come by chance ([`set_faults`](FaultDisk::set_faults)) or by order ([`fail_nth`](FaultDisk::fail_nth)).
/// Memory that was mapped never changes under its reader except where it was not written yet: damage and loss show only
/// in the next life, which gets files with new memory.
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    faults: DiskFaults,
    ordered: Vec<(Fault, u64)>,
    counts: FaultCounts,
    names: Names,
    files: BTreeMap<u64, Entry>,
    next_inode: u64,
    /// Counts crashes, so that handles of an earlier life are known.
    life: u64,
    powered: bool,
    locks: BTreeSet<PathBuf>,
    flips: Vec<(PathBuf, u64, u32)>,
    capacity: Option<u64>,
    syncs: u64,
}

struct Entry {
    contents: Contents,
    /// Every open handle has a clone.
    open: Arc<()>,
}

impl FaultDisk {
    /// An empty disk without faults, whose crashes are drawn from `rng`.
    pub fn new(rng: Rng) -> FaultDisk {
        let state = State {
            rng,
            faults: DiskFaults::default(),
            ordered: Vec::new(),
            counts: FaultCounts::default(),
            names: Names::default(),
            files: BTreeMap::new(),
            next_inode: 1,
            life: 0,
            powered: true,
            locks: BTreeSet::new(),
            flips: Vec::new(),
            capacity: None,
            syncs: 0,
        };
        FaultDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Sets how likely each fault is from now on.
    pub fn set_faults(&self, faults: DiskFaults) {
        self.state.lock().faults = faults;
    }

    /// Lets the `n`th call from now on that this fault can hit be hit by it; 1 is the next.
    pub fn fail_nth(&self, fault: Fault, n: u64) {
        self.state.lock().ordered.push((fault, n.max(1)));
    }

    /// Limits the sum of all files' lengths; more is refused with ENOSPC. Removing a file gives its space back.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity = bytes;
    }

    /// The sum of all files' lengths.
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Flips one bit of a durable byte, at the next power loss.
    pub fn flip_at_power_loss(&self, path: &Path, offset: u64, bit: u32) {
        self.state.lock().flips.push((path.to_owned(), offset, bit));
    }

    /// How often each fault fired.
    pub fn counts(&self) -> FaultCounts {
        self.state.lock().counts.clone()
    }

    /// How many syncs of files have succeeded, or pretended to.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Power loss: what is durable stays, and of what is not an arbitrary part. Handles and locks of the old life are
    /// void; the disk can be used again at once.
    pub fn lose_power(&self) {
        self.state.lock().lose_power();
    }

    /// The death of the process: all that was written stays, and what is not durable is still not. Handles and locks of
    /// the old life are void.
    pub fn lose_process(&self) {
        self.state.lock().lose_process();
    }

    /// Without power every call fails: for the moment in which a dead node's workers are dropped.
    pub(super) fn set_powered(&self, powered: bool) {
        self.state.lock().powered = powered;
    }

    fn handle(&self, state: &State, inode: u64) -> io::Result<Arc<dyn DiskFile>> {
        let entry = state.files.get(&inode).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(FaultFile {
            state: Arc::clone(&self.state),
            inode,
            life: state.life,
            _open: Arc::clone(&entry.open),
        }))
    }

    fn powered(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.powered { Ok(state) } else { Err(dead()) }
    }
}

fn dead() -> io::Error {
    io::Error::other("the simulated node that had this disk open has crashed")
}

impl State {
    /// Whether this fault hits the call in progress.
    fn strikes(&mut self, fault: Fault, probability: f64) -> bool {
        let mut strikes = self.rng.chance(probability);
        self.ordered.retain_mut(|(ordered, left)| {
            if *ordered == fault {
                *left -= 1;
                strikes |= *left == 0;
            }
            *left > 0
        });
        if strikes {
            self.counts.add(fault);
        }
        strikes
    }

    fn used(&self) -> u64 {
        let len = |(_, inode)| self.files.get(&inode).map_or(0, |file| file.contents.len());
        self.names.files().map(len).sum()
    }

    fn has_room(&mut self, more: u64) -> bool {
        let room = more == 0 || self.capacity.is_none_or(|capacity| self.used() + more <= capacity);
        if !room {
            self.counts.add(Fault::DiskFull);
        }
        room
    }

    fn make(&mut self, path: &Path, len: u64) -> io::Result<u64> {
        let inode = self.next_inode;
        self.files.insert(inode, Entry { contents: Contents::new(len)?, open: Arc::new(()) });
        self.next_inode += 1;
        self.names.link(path, inode);
        Ok(inode)
    }

    fn forget_unused(&mut self) {
        let names = &self.names;
        self.files.retain(|&inode, entry| Arc::strong_count(&entry.open) > 1 || names.refers_to(inode));
    }

    fn end_life(&mut self) {
        self.life += 1;
        self.locks.clear();
    }

    fn lose_power(&mut self) {
        self.end_life();
        self.names.lose_power(self.faults.lose_directories, &mut self.rng, &mut self.counts);
        let named: Vec<(PathBuf, u64)> =
            self.names.files().map(|(path, inode)| (path.clone(), inode)).collect();
        let alive: BTreeSet<u64> = named.iter().map(|&(_, inode)| inode).collect();
        self.files.retain(|inode, _| alive.contains(inode));
        for entry in self.files.values_mut() {
            entry.contents.lose_power(&mut self.rng, &mut self.counts);
            if self.rng.chance(self.faults.bit_flip) {
                let offset = entry.contents.random_durable_byte(&mut self.rng);
                if offset.is_some_and(|offset| entry.contents.flip(offset, self.rng.below(8) as u32)) {
                    self.counts.add(Fault::BitFlip);
                }
            }
        }
        for (path, offset, bit) in std::mem::take(&mut self.flips) {
            let inode = named.iter().find(|(named, _)| *named == path).map(|&(_, inode)| inode);
            let file = inode.and_then(|inode| self.files.get_mut(&inode));
            if file.is_some_and(|file| file.contents.flip(offset, bit)) {
                self.counts.add(Fault::BitFlip);
            }
        }
        for entry in self.files.values_mut() {
            entry.open = Arc::new(());
            let renewed = entry.contents.restart();
            assert!(renewed.is_ok(), "no memory for the simulation: {renewed:?}");
        }
    }

    fn lose_process(&mut self) {
        self.end_life();
        let names = &self.names;
        self.files.retain(|&inode, _| names.refers_to(inode));
        for entry in self.files.values_mut() {
            entry.open = Arc::new(());
            let renewed = entry.contents.lose_process();
            assert!(renewed.is_ok(), "no memory for the simulation: {renewed:?}");
        }
    }
}

impl Disk for FaultDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.powered()?.names.create_dir(dir);
        Ok(())
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.powered()?;
        state.names.check_free(path)?;
        let (create_error, no_space) = (state.faults.create_error, state.faults.no_space);
        if state.strikes(Fault::CreateError, create_error) {
            return Err(Errno::IO.into());
        }
        if state.strikes(Fault::NoSpace, no_space) || !state.has_room(len) {
            return Err(Errno::NOSPC.into());
        }
        let inode = state.make(path, len)?;
        self.handle(&state, inode)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.powered()?;
        let inode = state.names.find(path)?;
        self.handle(&state, inode)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.powered()?.names.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.powered()?.names.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        state.names.unlink(path)?;
        state.forget_unused();
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.powered()?;
        state.names.check_dir(dir)?;
        let odds = state.faults.dir_sync_error;
        if state.strikes(Fault::DirSyncError, odds) {
            return Err(Errno::IO.into());
        }
        state.names.sync_dir(dir);
        state.forget_unused();
        Ok(())
    }

    fn space(&self, dir: &Path) -> io::Result<u64> {
        let state = self.powered()?;
        state.names.check_dir(dir)?;
        Ok(state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.powered()?;
        if state.locks.contains(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.names.find(path).is_err() {
            state.names.check_free(path)?;
            state.make(path, 0)?;
        }
        state.locks.insert(path.to_owned());
        Ok(Box::new(Lock { state: Arc::clone(&self.state), path: path.to_owned(), life: state.life }))
    }
}

struct Lock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    life: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

struct FaultFile {
    state: Arc<Mutex<State>>,
    inode: u64,
    life: u64,
    _open: Arc<()>,
}

impl FaultFile {
    /// Runs `work` on the disk, unless this handle's life is over.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock();
        if state.life != self.life || !state.powered { Err(dead()) } else { work(&mut state) }
    }
}

impl State {
    fn contents(&mut self, inode: u64) -> io::Result<&mut Contents> {
        Ok(&mut self.files.get_mut(&inode).ok_or_else(dead)?.contents)
    }
}

impl DiskFile for FaultFile {
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.with(|state| {
            let total: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
            let growth = (offset + total).saturating_sub(state.contents(self.inode)?.len());
            let (write_error, no_space) = (state.faults.write_error, state.faults.no_space);
            let failure = if state.strikes(Fault::WriteError, write_error) {
                Some(Errno::IO)
            } else if state.strikes(Fault::NoSpace, no_space) || !state.has_room(growth) {
                Some(Errno::NOSPC)
            } else {
                None
            };
            let Some(errno) = failure else {
                state.contents(self.inode)?.write(slices, offset, total)?;
                if state.rng.chance(state.faults.write_back) {
                    let mut rng = state.rng.fork();
                    state.contents(self.inode)?.write_back(&mut rng);
                }
                return Ok(());
            };
            // As far as the file reached before, a part of the bytes may be there.
            let part = state.rng.between(0, total.saturating_sub(growth));
            state.contents(self.inode)?.write(slices, offset, part)?;
            Err(errno.into())
        })
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let odds = state.faults.read_error;
            if state.strikes(Fault::ReadError, odds) {
                return Err(Errno::IO.into());
            }
            Ok(state.contents(self.inode)?.read(into, offset))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            let (sync_error, lies) = (state.faults.sync_error, state.faults.sync_lies);
            if state.contents(self.inode)?.is_clean() {
                state.syncs += 1;
                return Ok(());
            }
            if state.strikes(Fault::SyncError, sync_error) {
                let mut rng = state.rng.fork();
                state.contents(self.inode)?.fail_sync(&mut rng);
                return Err(Errno::IO.into());
            }
            state.syncs += 1;
            if !state.strikes(Fault::SyncLied, lies) {
                state.contents(self.inode)?.sync();
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.contents(self.inode)?.len()))
    }

    fn map(&self) -> io::Result<Mapping> {
        self.with(|state| state.contents(self.inode)?.map())
    }
}
