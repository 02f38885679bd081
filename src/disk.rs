//! Files and directories as the log needs them, so that a simulated disk can stand in for the machine's.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use crate::log::mmap::Mapping;

/// A disk. May be used from any thread; every call may block on the device.
///
/// What a crash leaves: file contents as of the last [`DiskFile::sync`] plus any subset of what was written since, and
/// directory entries as of the last [`Disk::sync_dir`] plus any subset of the changes since.
pub trait Disk: Send + Sync {
    /// Creates a directory and its parents, if missing.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Creates a file of `len` bytes that reads as zeroes, with its space allocated; fails if the path exists.
    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing the target if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Its bytes stay readable through handles and mappings that are open.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that this file stands for, creating the file if missing; held until the guard drops.
    /// Fails at once with `WouldBlock` if another process, or another holder in this one, has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>>;
}

/// An open file.
#[allow(
    clippy::len_without_is_empty,
    reason = "the length is asked of the system and can fail; nobody asks for emptiness"
)]
pub trait DiskFile: Send + Sync {
    /// Writes all of `slices`, one after the other, at `offset`; grows the file if need be.
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reads up to `into.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Makes the contents and the length durable. After an error nothing is known of what was written since the last
    /// success, and trying again proves nothing.
    fn sync(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Maps the whole file for reading.
    fn map(&self) -> io::Result<Mapping>;
}
