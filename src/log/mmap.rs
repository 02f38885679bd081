//! Memory-mapped segment files. The crate's only unsafe code.
//!
//! The rule that makes a mapping sound to read: bytes below `published` never change and never go away while the
//! mapping lives. It holds because
//! - a file under a mapping is written only by its one [`Appender`], only at or above `published`, and `published` is
//!   raised (with Release) only after the write returned; readers take it with Acquire;
//! - the file is never shortened or overwritten: a truncation writes a new file, and removal leaves the inode to us;
//! - the lock on the log's directory keeps other processes of ours out. A process that ignores the lock and writes into
//!   the files of a running log is outside what any mapping can survive; docs/format.md says so.
//!
//! A media error under a mapping would raise SIGBUS. [`AppendMap::prefault`] finds it first and returns an error.

use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::disk::DiskFile;

/// Mapped memory that can't be read as it is: only an [`AppendMap`] hands out its bytes.
pub struct Mapping {
    raw: Arc<MmapRaw>,
    of_file: bool,
}

impl Mapping {
    /// Maps the first `len` bytes of a file, read-only. Reading beyond the end of a shorter file would be fatal, so the
    /// file's length is checked.
    ///
    /// # Errors
    /// The system's error, or `UnexpectedEof` for a file shorter than `len`.
    pub fn of_file(file: &File, len: usize) -> io::Result<Mapping> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "file shorter than the mapping asked for",
            ));
        }
        let raw = MmapOptions::new().len(len).map_raw_read_only(file)?;
        Ok(Mapping { raw: Arc::new(raw), of_file: true })
    }

    /// Memory that belongs to no file, all zeroes: the "page cache" of a simulated file.
    ///
    /// # Errors
    /// The system's error.
    pub fn anonymous(len: usize) -> io::Result<Mapping> {
        let raw = MmapRaw::from(MmapOptions::new().len(len).map_anon()?);
        Ok(Mapping { raw: Arc::new(raw), of_file: false })
    }

    /// The same anonymous memory once more: what maps a simulated file and what is written to it later are one, as with
    /// a real file's page cache.
    ///
    /// # Panics
    /// If this maps a file.
    #[cfg(feature = "sim")]
    pub(crate) fn share(&self) -> Mapping {
        assert!(!self.of_file, "a file is mapped again through the file");
        Mapping { raw: Arc::clone(&self.raw), of_file: false }
    }

    /// Mapped bytes.
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes into anonymous memory: how a simulated file does what the kernel does for a real one. The caller is a
    /// [`DiskFile`] and owes the module's rule, which binds its writers the same way as a real file's.
    ///
    /// # Panics
    /// If this maps a file, or the bytes do not fit.
    #[cfg(feature = "sim")]
    pub(crate) fn write_simulated(&self, bytes: &[u8], offset: usize) {
        assert!(!self.of_file, "a mapped file is written through the file");
        assert!(
            offset.checked_add(bytes.len()).is_some_and(|end| end <= self.len()),
            "write past the mapping"
        );
        // SAFETY: the range lies in the mapping (asserted), which is private writable memory of ours, kept alive by the
        // Arc. No slice covers it: slices exist only below the `published` of an `AppendMap` over this memory, and
        // writers stay at or above it (the module's rule, which binds the simulated file's callers like a real one's).
        // `bytes` can't overlap it for the same reason. Writes and `read_simulated` do not race: both are called by
        // the simulated disk alone, which holds its lock over every access to the memory of its files.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.raw.as_mut_ptr().add(offset), bytes.len())
        }
    }

    /// Copies out of anonymous memory, for a simulated file's `read_at`.
    ///
    /// # Panics
    /// If the range does not lie in the mapping, or this maps a file.
    #[cfg(feature = "sim")]
    pub(crate) fn read_simulated(&self, into: &mut [u8], offset: usize) {
        assert!(!self.of_file, "a mapped file is read through the file");
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= self.len()), "read past the mapping");
        // SAFETY: the range lies in the mapping (asserted) and is initialised (anonymous memory starts as zeroes);
        // `into` is exclusively borrowed, so the two can't overlap; no write races (see `write_simulated`).
        unsafe { std::ptr::copy_nonoverlapping(self.raw.as_ptr().add(offset), into.as_mut_ptr(), into.len()) }
    }
}

/// A file that only grows at its end, and its mapping: the reading side, shared by any number of threads.
pub struct AppendMap {
    file: Arc<dyn DiskFile>,
    map: Mapping,
    published: AtomicU64,
}

static ZEROES: [u8; 4096] = [0; 4096];

/// The one right to append to an [`AppendMap`].
pub struct Appender {
    map: Arc<AppendMap>,
}

impl AppendMap {
    /// Maps `file`, whose first `published` bytes are final. The caller hands over the file: nobody else writes to it.
    ///
    /// # Errors
    /// The system's error, or `UnexpectedEof` if the file is shorter than `published`.
    pub fn open(file: Arc<dyn DiskFile>, published: u64) -> io::Result<(Arc<AppendMap>, Appender)> {
        let map = file.map()?;
        if (map.len() as u64) < published {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "file shorter than its published part"));
        }
        let map = Arc::new(AppendMap { file, map, published: AtomicU64::new(published) });
        Ok((Arc::clone(&map), Appender { map }))
    }

    /// How many bytes are final and may be read.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// The mapping's size: how far the file can grow.
    pub fn capacity(&self) -> u64 {
        self.map.len() as u64
    }

    /// The bytes of a range that lies in the published part.
    ///
    /// # Panics
    /// If it does not.
    #[inline]
    pub fn bytes(&self, range: Range<u64>) -> &[u8] {
        let published = self.published();
        assert!(range.start <= range.end && range.end <= published, "{range:?} is not below {published}");
        let len = (range.end - range.start) as usize;
        // SAFETY: the range lies below `published`, which never exceeds the mapping's length (checked in `open` and
        // `append`), so the memory is mapped and readable for as long as `self` lives. Bytes below `published` never
        // change and the file is never shortened while mapped (the module's rule), so a shared slice of them is sound.
        unsafe { std::slice::from_raw_parts(self.map.raw.as_ptr().add(range.start as usize), len) }
    }

    /// Brings a range into memory, so that reading it through the mapping can't raise SIGBUS for a media error.
    ///
    /// # Errors
    /// The system's error: the range can't be read from the device. Kernels before Linux 5.14 can't prefault; there the
    /// call succeeds and does nothing.
    pub fn prefault(&self, range: Range<u64>) -> io::Result<()> {
        let end = range.end.min(self.capacity());
        if !self.map.of_file || range.start >= end {
            return Ok(());
        }
        let page = rustix::param::page_size() as u64;
        let start = range.start / page * page;
        match self.map.raw.advise_range(Advice::PopulateRead, start as usize, (end - start) as usize) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    /// The file, for reading by `read_at` and for syncing. Not for writing: only the [`Appender`] writes.
    pub fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }
}

impl Appender {
    /// Writes `slices` at the end and then publishes them.
    ///
    /// # Errors
    /// The system's error; nothing is published, and the same bytes may be overwritten by the next append.
    ///
    /// # Panics
    /// If the bytes do not fit into the mapping.
    pub fn append(&mut self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let at = self.map.published();
        let end = at + slices.iter().map(|slice| slice.len() as u64).sum::<u64>();
        assert!(end <= self.map.capacity(), "append past the end of the segment");
        self.map.file.write_at(slices, at)?;
        self.map.published.store(end, Ordering::Release);
        Ok(())
    }

    /// Overwrites with zeroes whatever a failed append may have left between the end and `to`, so that it can't pass
    /// for entries behind the next, shorter one.
    ///
    /// # Errors
    /// The system's error.
    pub fn erase(&mut self, to: u64) -> io::Result<()> {
        let mut at = self.map.published();
        let to = to.min(self.map.capacity());
        while at < to {
            let len = (to - at).min(ZEROES.len() as u64);
            self.map.file.write_at(&[IoSlice::new(&ZEROES[..len as usize])], at)?;
            at += len;
        }
        Ok(())
    }

    /// The reading side.
    pub fn map(&self) -> &Arc<AppendMap> {
        &self.map
    }
}
