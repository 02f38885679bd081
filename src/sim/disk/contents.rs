//! One simulated file: its page cache, and what of it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};

use crate::log::mmap::Mapping;
use crate::sim::Rng;
use crate::sim::fault::{Fault, FaultCounts};

const PAGE: u64 = 4096;
const SECTOR: u64 = 512;
const SECTORS: u64 = PAGE / SECTOR;

/// The contents of a file. The memory is the page cache, which reads, writes and mappings share; the image is what a
/// power loss leaves for certain. Both are sparse: what nobody wrote reads as zeroes.
pub(super) struct Contents {
    len: u64,
    durable_len: u64,
    memory: Mapping,
    mapped: bool,
    image: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    /// Unsynced sectors: for each page one bit a sector.
    dirty: BTreeMap<u64, u8>,
    /// Pages that were ever written in this memory.
    touched: BTreeSet<u64>,
}

impl Contents {
    pub(super) fn new(len: u64) -> io::Result<Contents> {
        Ok(Contents {
            len,
            durable_len: 0,
            memory: Mapping::anonymous(len as usize)?,
            mapped: false,
            image: BTreeMap::new(),
            dirty: BTreeMap::new(),
            touched: BTreeSet::new(),
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether a sync would have nothing to do.
    pub(super) fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.len == self.durable_len
    }

    /// Writes the first `limit` bytes of `slices`.
    pub(super) fn write(&mut self, slices: &[IoSlice<'_>], offset: u64, limit: u64) -> io::Result<()> {
        let mut left = limit;
        let mut at = offset;
        self.reserve(offset + limit.min(slices.iter().map(|slice| slice.len() as u64).sum()))?;
        for slice in slices {
            let take = left.min(slice.len() as u64);
            self.memory.write_simulated(&slice[..take as usize], at as usize);
            self.mark(at, at + take);
            at += take;
            left -= take;
        }
        if at > offset {
            self.len = self.len.max(at);
        }
        Ok(())
    }

    fn reserve(&mut self, end: u64) -> io::Result<()> {
        if end <= self.memory.len() as u64 {
            return Ok(());
        }
        if self.mapped {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a simulated file can't outgrow its mapping",
            ));
        }
        self.move_to(Mapping::anonymous(end.next_power_of_two().max(PAGE) as usize)?);
        Ok(())
    }

    fn move_to(&mut self, memory: Mapping) {
        let mut page = [0; PAGE as usize];
        for &number in &self.touched {
            let at = number * PAGE;
            let end = (at + PAGE).min(self.memory.len() as u64).min(memory.len() as u64);
            let bytes = &mut page[..end.saturating_sub(at) as usize];
            if !bytes.is_empty() {
                self.memory.read_simulated(bytes, at as usize);
                memory.write_simulated(bytes, at as usize);
            }
        }
        self.memory = memory;
    }

    fn mark(&mut self, from: u64, to: u64) {
        if from == to {
            return;
        }
        for page in from / PAGE..=(to - 1) / PAGE {
            let first = from.saturating_sub(page * PAGE) / SECTOR;
            let last = ((to - 1 - page * PAGE) / SECTOR).min(SECTORS - 1);
            let bits = (first..=last).fold(0u8, |bits, sector| bits | 1 << sector);
            *self.dirty.entry(page).or_default() |= bits;
            self.touched.insert(page);
        }
    }

    pub(super) fn read(&self, into: &mut [u8], offset: u64) -> usize {
        let len = (into.len() as u64).min(self.len.saturating_sub(offset)) as usize;
        if len > 0 {
            self.memory.read_simulated(&mut into[..len], offset as usize);
        }
        len
    }

    pub(super) fn map(&mut self) -> io::Result<Mapping> {
        if self.memory.len() as u64 != self.len {
            self.move_to(Mapping::anonymous(self.len as usize)?);
        }
        self.mapped = true;
        Ok(self.memory.share())
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        self.persist(|_, _| true);
        self.dirty.clear();
        self.durable_len = self.len;
    }

    /// What the kernel does of its own accord: some of what is unsynced becomes durable.
    pub(super) fn write_back(&mut self, rng: &mut Rng) {
        self.persist(|_, _| rng.chance(0.5));
    }

    /// What a failed sync leaves: some of what was unsynced is durable, and all of it counts as clean.
    pub(super) fn fail_sync(&mut self, rng: &mut Rng) {
        self.write_back(rng);
        self.dirty.clear();
        if rng.chance(0.5) {
            self.durable_len = self.len;
        }
    }

    /// Copies the unsynced sectors that `choose` picks, given page and sector, into the image. Says how many were
    /// picked and how many not.
    fn persist(&mut self, mut choose: impl FnMut(u64, u64) -> bool) -> (u64, u64) {
        let (mut kept, mut lost) = (0, 0);
        for (&page, bits) in &mut self.dirty {
            for sector in 0..SECTORS {
                if *bits & 1 << sector == 0 {
                    continue;
                }
                if !choose(page, sector) {
                    lost += 1;
                    continue;
                }
                kept += 1;
                *bits &= !(1 << sector);
                let at = page * PAGE + sector * SECTOR;
                let end = (at + SECTOR).min(self.memory.len() as u64);
                let image = self.image.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
                let start = (sector * SECTOR) as usize;
                self.memory.read_simulated(&mut image[start..start + (end - at) as usize], at as usize);
            }
        }
        self.dirty.retain(|_, bits| *bits != 0);
        (kept, lost)
    }

    /// The power fails: an arbitrary part of what was unsynced becomes durable. To be followed by
    /// [`restart`](Self::restart).
    pub(super) fn lose_power(&mut self, rng: &mut Rng, counts: &mut FaultCounts) {
        let (kept, lost) = match rng.below(5) {
            0 => self.persist(|_, _| false),
            1 => self.persist(|_, _| true),
            2 => self.persist(|_, _| rng.chance(0.5)),
            3 => {
                let salt = rng.next_u64();
                self.persist(|page, _| Rng::new(salt ^ page).chance(0.5))
            }
            _ => {
                let sectors: u64 = self.dirty.values().map(|bits| u64::from(bits.count_ones())).sum();
                let mut left = rng.between(0, sectors);
                self.persist(|_, _| {
                    let keep = left > 0;
                    left = left.saturating_sub(1);
                    keep
                })
            }
        };
        if lost > 0 {
            counts.add(Fault::LostWrite);
        }
        if lost > 0 && kept > 0 {
            counts.add(Fault::TornWrite);
        }
        if rng.chance(0.5) {
            self.durable_len = self.len;
        }
    }

    /// What is durable, and nothing else, stands in new memory, so that mappings of the old life keep what they saw.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.len = self.durable_len;
        self.image.retain(|page, _| page * PAGE < self.len);
        if let Some((page, bytes)) = self.image.iter_mut().next_back() {
            let end = (self.len - page * PAGE).min(PAGE) as usize;
            bytes[end..].fill(0);
        }
        self.memory = Mapping::anonymous(self.len as usize)?;
        for (page, bytes) in &self.image {
            let end = (self.len - page * PAGE).min(PAGE) as usize;
            self.memory.write_simulated(&bytes[..end], (page * PAGE) as usize);
        }
        self.mapped = false;
        self.dirty.clear();
        self.touched = self.image.keys().copied().collect();
        Ok(())
    }

    /// The process is killed: nothing written is lost, but the next life gets memory of its own.
    pub(super) fn lose_process(&mut self) -> io::Result<()> {
        self.move_to(Mapping::anonymous(self.len as usize)?);
        self.mapped = false;
        Ok(())
    }

    /// Flips one bit of a byte of the durable image; to be followed by [`restart`](Self::restart), which makes it
    /// visible. `false` if the byte was never written durably.
    pub(super) fn flip(&mut self, offset: u64, bit: u32) -> bool {
        if offset >= self.durable_len {
            return false;
        }
        match self.image.get_mut(&(offset / PAGE)) {
            Some(page) => page[(offset % PAGE) as usize] ^= 1 << (bit % 8),
            None => return false,
        }
        true
    }

    /// A random byte of the durable image.
    pub(super) fn random_durable_byte(&self, rng: &mut Rng) -> Option<u64> {
        let page = self.image.keys().nth(rng.index(self.image.len()))?;
        Some(page * PAGE + rng.below(PAGE))
    }
}
