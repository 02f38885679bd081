//! Directory entries, as they are seen and as they are durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::sim::Rng;
use crate::sim::fault::{Fault, FaultCounts};

/// A change of a directory that was not synced yet.
enum Change {
    Link(PathBuf, u64),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
    Directory(PathBuf),
}

impl Change {
    fn names(&self) -> [&PathBuf; 2] {
        match self {
            Change::Link(path, _) | Change::Unlink(path) | Change::Directory(path) => [path, path],
            Change::Rename(from, to) => [from, to],
        }
    }
}

/// The files and directories that there are.
#[derive(Clone, Default)]
struct Tree {
    files: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
}

impl Tree {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Link(path, inode) => drop(self.files.insert(path.clone(), *inode)),
            Change::Unlink(path) => drop(self.files.remove(path)),
            Change::Rename(from, to) => {
                if let Some(inode) = self.files.remove(from) {
                    self.files.insert(to.clone(), inode);
                }
            }
            Change::Directory(path) => drop(self.dirs.insert(path.clone())),
        }
    }
}

/// The names of a disk.
#[derive(Default)]
pub(super) struct Names {
    live: Tree,
    durable: Tree,
    pending: Vec<Change>,
}

impl Names {
    pub(super) fn find(&self, path: &Path) -> io::Result<u64> {
        self.live.files.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&PathBuf, u64)> {
        self.live.files.iter().map(|(path, &inode)| (path, inode))
    }

    /// Whether some life of the disk may still see this file.
    pub(super) fn refers_to(&self, inode: u64) -> bool {
        let linked = |change: &Change| matches!(change, Change::Link(_, of) if *of == inode);
        self.live.files.values().chain(self.durable.files.values()).any(|&of| of == inode)
            || self.pending.iter().any(linked)
    }

    pub(super) fn create_dir(&mut self, dir: &Path) {
        let mut missing: Vec<&Path> = dir.ancestors().take_while(|&dir| !self.is_dir(dir)).collect();
        while let Some(dir) = missing.pop() {
            self.change(Change::Directory(dir.to_owned()));
        }
    }

    fn is_dir(&self, dir: &Path) -> bool {
        dir.parent().is_none() || dir.as_os_str().is_empty() || self.live.dirs.contains(dir)
    }

    pub(super) fn check_dir(&self, dir: &Path) -> io::Result<()> {
        if self.is_dir(dir) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        self.check_dir(parent(path))
    }

    /// Whether a file can be made here.
    pub(super) fn check_free(&self, path: &Path) -> io::Result<()> {
        self.check_parent(path)?;
        match self.live.files.contains_key(path) || self.live.dirs.contains(path) {
            true => Err(io::ErrorKind::AlreadyExists.into()),
            false => Ok(()),
        }
    }

    pub(super) fn link(&mut self, path: &Path, inode: u64) {
        self.change(Change::Link(path.to_owned(), inode));
    }

    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        self.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.find(from)?;
        if parent(from) != parent(to) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a simulated file is renamed within its directory",
            ));
        }
        if from != to {
            self.change(Change::Rename(from.to_owned(), to.to_owned()));
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.pending.push(change);
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_dir(dir)?;
        let inside = self.live.files.keys().chain(&self.live.dirs).filter(|path| parent(path) == dir);
        let mut names: Vec<String> =
            inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
        names.sort();
        Ok(names)
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) {
        let (durable, pending) = (&mut self.durable, std::mem::take(&mut self.pending));
        for change in pending {
            if parent(change.names()[0]) == dir {
                durable.apply(&change);
            } else {
                self.pending.push(change);
            }
        }
    }

    /// The power fails. Of the unsynced changes any may be lost; the changes of one name are lost from some point on,
    /// never the earlier without the later. New directories are lost only if `dirs_too`.
    pub(super) fn lose_power(&mut self, dirs_too: bool, rng: &mut Rng, counts: &mut FaultCounts) {
        let odds = [0.0, 0.5, 1.0][rng.index(3)];
        let mut cut: BTreeSet<PathBuf> = BTreeSet::new();
        for change in std::mem::take(&mut self.pending) {
            let names = change.names();
            let safe = matches!(change, Change::Directory(_)) && !dirs_too;
            if safe || (!names.iter().any(|&name| cut.contains(name)) && !rng.chance(odds)) {
                self.durable.apply(&change);
            } else {
                counts.add(Fault::LostEntry);
                cut.extend(names.map(PathBuf::clone));
            }
        }
        self.live = self.durable.clone();
        let dirs = self.live.dirs.clone();
        let whole = |path: &Path| {
            path.ancestors()
                .skip(1)
                .all(|dir| dir.parent().is_none() || dir.as_os_str().is_empty() || dirs.contains(dir))
        };
        self.live.files.retain(|path, _| whole(path));
        self.live.dirs.retain(|path| whole(path));
        self.durable = self.live.clone();
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}
