//! An archive in a directory: a mounted disk, another machine's export.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use twox_hash::XxHash3_128;

use crate::archive::{Archive, ArchiveError, Object, is_object_name};
use crate::disk::{Disk, DiskFile};

const CHUNK: usize = 256 << 10;
/// What unfinished files end with; they begin with a dot, so that no object has their name.
const UNFINISHED: &str = ".new";

/// A directory of objects. A slash in an object's name is one of the path. Objects are read only if they are plain files.
pub struct DirArchive {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Tells this handle's unfinished files from those of others.
    own: u64,
    next: AtomicU64,
    /// The directories that are known to be durable, and free of what others left unfinished.
    ready: Mutex<BTreeSet<PathBuf>>,
}

impl DirArchive {
    /// The archive in `root`, which is made when something is put there. `random`: a number that no other handle on the
    /// directory has.
    pub fn new(disk: Arc<dyn Disk>, root: impl Into<PathBuf>, random: u64) -> DirArchive {
        DirArchive { disk, root: root.into(), own: random, next: AtomicU64::new(0), ready: Mutex::default() }
    }

    fn path(&self, name: &str) -> Result<PathBuf, ArchiveError> {
        if is_object_name(name) { Ok(self.root.join(name)) } else { Err(ArchiveError::Name(name.to_owned())) }
    }

    /// Makes the object's directory, durably, and removes what an earlier handle left unfinished there. A node that is
    /// still at it fails, and puts again if it still has a part to play.
    fn prepare(&self, dir: &Path) -> io::Result<()> {
        let mut ready = self.ready.lock();
        if ready.contains(dir) {
            return Ok(());
        }
        self.disk.create_dir(dir)?;
        for made in dir.ancestors().take_while(|made| made.starts_with(&self.root)) {
            if let Some(parent) = made.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                self.disk.sync_dir(parent)?;
            }
        }
        for name in self.disk.list(dir)? {
            if name.starts_with('.') && name.ends_with(UNFINISHED) {
                ignore_missing(self.disk.remove(&dir.join(name)))?;
            }
        }
        ready.insert(dir.to_owned());
        Ok(())
    }

    /// Writes into the file and syncs it; returns the digest of what was given, and how much that was.
    fn write(file: &dyn DiskFile, name: &str, from: &mut dyn Read) -> Result<(u128, u64), ArchiveError> {
        let mut digest = XxHash3_128::new();
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        loop {
            let read = fill(from, &mut buffer).map_err(ArchiveError::io("read what goes into", name))?;
            if read == 0 {
                break;
            }
            digest.write(&buffer[..read]);
            file.write_at(&[IoSlice::new(&buffer[..read])], at).map_err(ArchiveError::io("write", name))?;
            at += read as u64;
        }
        file.sync().map_err(ArchiveError::io("sync", name))?;
        Ok((digest.finish_128(), at))
    }

    /// What the file holds.
    fn read_back(&self, path: &Path) -> io::Result<(u128, u64)> {
        let mut from = PlainFile { file: self.disk.open_plain(path)?, at: 0 };
        let mut digest = XxHash3_128::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok((digest.finish_128(), from.at)),
                read => digest.write(&buffer[..read]),
            }
        }
    }

    fn finish(
        &self,
        file: &dyn DiskFile,
        temporary: &Path,
        path: &Path,
        name: &str,
        from: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        let written = Self::write(file, name, from)?;
        if self.read_back(temporary).map_err(ArchiveError::io("read back", name))? != written {
            return Err(ArchiveError::NotKept { object: name.to_owned() });
        }
        self.disk.rename(temporary, path).map_err(ArchiveError::io("rename", name))?;
        let dir = path.parent().unwrap_or(&self.root);
        self.disk.sync_dir(dir).map_err(ArchiveError::io("sync the directory of", name))
    }

    fn collect(
        &self,
        dir: &Path,
        under: &str,
        prefix: &str,
        into: &mut Vec<Object>,
    ) -> Result<(), ArchiveError> {
        for entry in self.disk.list(dir).map_err(ArchiveError::io("list", under))? {
            let name = format!("{under}{entry}");
            let below = format!("{name}/");
            let wanted = name.starts_with(prefix) || prefix.starts_with(&below) || below.starts_with(prefix);
            if !wanted || !is_object_name(&name) {
                continue;
            }
            let path = dir.join(&entry);
            if self.disk.list(&path).is_ok() {
                self.collect(&path, &below, prefix, into)?;
                continue;
            }
            match self.disk.open_plain(&path).and_then(|file| file.len()) {
                Ok(len) if name.starts_with(prefix) => into.push(Object { name, len }),
                Ok(_) => {}
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ArchiveError::io("measure", &name)(error)),
            }
        }
        Ok(())
    }
}

impl Archive for DirArchive {
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = self.path(name)?;
        let (dir, file) = (path.parent().unwrap_or(&self.root), path.file_name().unwrap_or_default());
        self.prepare(dir).map_err(ArchiveError::io("make the directory of", name))?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let file = file.to_string_lossy();
        let temporary = dir.join(format!(".{file}.{:016x}-{number}{UNFINISHED}", self.own));
        let mut created = self.disk.create(&temporary, 0);
        if is_missing(&created) {
            // The directory was there and is gone: somebody emptied the archive, or put another in its place.
            self.ready.lock().remove(dir);
            self.prepare(dir).map_err(ArchiveError::io("make the directory of", name))?;
            created = self.disk.create(&temporary, 0);
        }
        let created = created.map_err(ArchiveError::io("create", name));
        let put = created.and_then(|file| self.finish(&*file, &temporary, &path, name, from));
        if put.as_ref().is_err_and(ArchiveError::is_missing) {
            // What was given is read: whoever gave it puts it again.
            self.ready.lock().remove(dir);
        }
        if put.is_err()
            && let Err(error) = ignore_missing(self.disk.remove(&temporary))
        {
            log::debug!("{} was not removed: {error}", temporary.display());
        }
        put
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        let path = self.path(name)?;
        let file = self.disk.open_plain(&path).map_err(ArchiveError::io("open", name))?;
        Ok(Box::new(PlainFile { file, at: 0 }))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError> {
        let mut objects = Vec::new();
        match self.collect(&self.root, "", prefix, &mut objects) {
            // Nothing was put yet.
            Err(error) if error.is_missing() && objects.is_empty() => {}
            other => other?,
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        let path = self.path(name)?;
        ignore_missing(self.disk.remove(&path)).map_err(ArchiveError::io("remove", name))
    }
}

/// A file, read from its beginning.
struct PlainFile {
    file: Arc<dyn DiskFile>,
    at: u64,
}

impl Read for PlainFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads until the buffer is full or the source ends.
pub(super) fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn is_missing<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
