//! Files and directories as the log needs them, so that a simulated disk can stand in for the machine's.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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
    /// Opens an existing file for reading only, and only if the name is no symbolic link: of a directory to which others
    /// write, or may not be written at all.
    fn open_plain(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }
    /// The names in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Renames a file, replacing the target if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Its bytes stay readable through handles and mappings that are open.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that the directory's filesystem has left for us.
    fn space(&self, dir: &Path) -> io::Result<u64>;
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

/// The machine's disk. For local Linux filesystems: locks, renames and syncs must mean what they say.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File);

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn create(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        if let Err(error) = allocate(&file, len) {
            // Half a file is worse than none: the space goes back, and the name is free for the next attempt.
            return match fs::remove_file(path) {
                Ok(()) => Err(error),
                Err(second) => Err(io::Error::new(
                    error.kind(),
                    format!("{error}; and {} could not be removed: {second}", path.display()),
                )),
            };
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(File::options().read(true).write(true).open(path)?)))
    }

    fn open_plain(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Arc::new(RealFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            // A name that is no UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(dir)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }
}

fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        // A filesystem without allocation: the length alone has to do, and a full disk shows at the write.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len),
        other => Ok(other?),
    }
}

impl DiskFile for RealFile {
    fn write_at(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if let [one] = slices {
            return self.0.write_all_at(one, offset);
        }
        let mut offset = offset;
        for group in slices.chunks(MAX_SLICES) {
            let wanted: usize = group.iter().map(|slice| slice.len()).sum();
            let mut written = match rustix::io::pwritev(&self.0, group, offset) {
                Err(rustix::io::Errno::INTR) => 0,
                other => other?,
            };
            if written < wanted {
                // The rest, slice by slice: the system took only a part.
                let mut start = 0;
                for slice in group {
                    let skip = written.saturating_sub(start).min(slice.len());
                    self.0.write_all_at(&slice[skip..], offset + (start + skip) as u64)?;
                    start += slice.len();
                    written = written.max(start);
                }
            }
            offset += wanted as u64;
        }
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.0.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn map(&self) -> io::Result<Mapping> {
        let len = usize::try_from(self.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Mapping::of_file(&self.0, len)
    }
}

/// The most slices that one system call takes (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_of_the_lock_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RealDisk.lock(&path).unwrap();
        assert_eq!(RealDisk.lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(RealDisk.lock(&path).is_ok());
    }

    #[test]
    fn the_space_of_a_filesystem_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let left = RealDisk.space(dir.path()).unwrap();
        assert!(left > 0 && left < u64::MAX / 2, "{left}");
        assert!(RealDisk.space(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_created_file_has_its_length_reads_as_zeroes_and_is_not_created_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealDisk.create(&path, 5000).unwrap();
        assert_eq!(file.len().unwrap(), 5000);
        let mut bytes = [1; 6000];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5000);
        assert!(bytes[..5000].iter().all(|byte| *byte == 0));
        assert_eq!(RealDisk.create(&path, 1).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn many_slices_are_written_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create(&dir.path().join("f"), 0).unwrap();
        let pieces: Vec<Vec<u8>> =
            (0..3000u32).map(|n| n.to_le_bytes()[..(n % 4) as usize].to_vec()).collect();
        let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        file.write_at(&slices, 7).unwrap();
        let all = pieces.concat();
        let mut read = vec![0; all.len()];
        assert_eq!(file.read_at(&mut read, 7).unwrap(), all.len());
        assert_eq!(read, all);
    }
}
