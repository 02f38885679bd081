//! Files with entries that were cut off: whole segments in form, so that whatever reads a segment reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::{Disk, DiskFile};
use crate::entry::{EntryRef, HEADER_TXN_LEN, Header};
use crate::ids::{GroupId, Position, Vlsn};
use crate::log::error::{Failed, IoFailure};
use crate::log::format::{DAMAGED, SEGMENT_HEADER_LEN, SegmentHeader, saved_name};
use crate::log::index::create_anew;
use crate::log::walk::Window;

const CHUNK: u64 = 1024 * 1024;

/// What goes into a saved file, and into a replacement segment: the bytes of a range of a file.
#[derive(Clone)]
pub(super) struct Source {
    pub file: Arc<dyn DiskFile>,
    pub path: PathBuf,
    pub from: u64,
    pub to: u64,
}

/// The first number under which nothing is saved yet for this range.
pub(super) fn free_number(names: &[String], from: Vlsn, to: Vlsn) -> u32 {
    (0..=u32::MAX).find(|number| !names.contains(&saved_name(from, to, *number))).unwrap_or(u32::MAX)
}

/// Writes a segment file of `len` bytes at least, of a header and the sources' bytes, syncs it under a temporary name
/// and renames it to `path`. The directory is not synced.
pub(super) fn write_segment(
    disk: &dyn Disk,
    clock: &dyn Clock,
    path: &Path,
    len: u64,
    head: (GroupId, Vlsn, Option<Position>),
    sources: &[Source],
) -> Result<(), IoFailure> {
    let (group, first, base) = head;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let content: u64 = sources.iter().map(|source| source.to - source.from).sum();
    let file = create_anew(disk, &temporary, len.max(SEGMENT_HEADER_LEN as u64 + content))?;
    let header = SegmentHeader { group, first, base, created: clock.wall_micros() }.encode();
    file.write_at(&[io::IoSlice::new(&header)], 0).failed("write", &temporary)?;
    let mut at = SEGMENT_HEADER_LEN as u64;
    let mut buffer = Vec::new();
    for source in sources {
        let mut from = source.from;
        while from < source.to {
            buffer.resize((source.to - from).min(CHUNK) as usize, 0);
            let read = source.file.read_at(&mut buffer, from).failed("read", &source.path)?;
            if read == 0 {
                break;
            }
            file.write_at(&[io::IoSlice::new(&buffer[..read])], at).failed("write", &temporary)?;
            from += read as u64;
            at += read as u64;
        }
    }
    file.sync().failed("sync", &temporary)?;
    disk.rename(&temporary, path).failed("rename", &temporary)
}

/// Writes a range of a file again as it reads.
pub(super) fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    let mut at = from;
    while at < to {
        buffer.resize(((to - at) as usize).min(CHUNK as usize), 0);
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(&[io::IoSlice::new(&buffer[..read])], at)?;
        at += read as u64;
    }
    Ok(())
}

/// Fills a range of a file with zeroes.
pub(super) fn write_zeroes(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeroes = vec![0; CHUNK.min(to.saturating_sub(from)) as usize];
    let mut at = from;
    while at < to {
        let len = ((to - at) as usize).min(CHUNK as usize);
        file.write_at(&[io::IoSlice::new(&zeroes[..len])], at)?;
        at += len as u64;
    }
    Ok(())
}

/// What was cut off behind damage, and is good by itself: the entries, and what the entries and marks among them say of
/// those before them.
#[derive(Default)]
pub struct Saved {
    entries: BTreeMap<Vlsn, Vec<Kept>>,
    /// CRCs of entries that came right before a sync mark.
    marked: BTreeSet<u32>,
}

/// Where an entry is kept.
struct Kept {
    file: Arc<dyn DiskFile>,
    offset: u64,
    len: usize,
    prev: u32,
}

impl Saved {
    /// Looks through the files that recovery made when it cut off what was durable.
    pub(super) fn read(disk: &dyn Disk, dir: &Path) -> Result<Saved, IoFailure> {
        let mut saved = Saved::default();
        for name in disk.list(dir).failed("list", dir)?.iter().filter(|name| name.starts_with(DAMAGED)) {
            if name.ends_with(".new") {
                continue;
            }
            let path = dir.join(name);
            let file = disk.open(&path).failed("open", &path)?;
            saved.take(file).failed("read", &path)?;
        }
        Ok(saved)
    }

    fn take(&mut self, file: Arc<dyn DiskFile>) -> io::Result<()> {
        let mut window = Window::new(Arc::clone(&file))?;
        let mut offset = SEGMENT_HEADER_LEN as u64;
        while offset < window.len {
            let Ok(header) = Header::parse(window.bytes(offset, HEADER_TXN_LEN)?) else {
                offset += 1;
                continue;
            };
            let len = header.entry_len();
            if EntryRef::verify(window.bytes(offset, len)?).is_ok() {
                match header.vlsn {
                    Some(vlsn) => {
                        let kept = Kept { file: Arc::clone(&file), offset, len, prev: header.prev };
                        self.entries.entry(vlsn).or_default().push(kept);
                    }
                    None => {
                        self.marked.insert(header.prev);
                    }
                }
            }
            offset += len as u64;
        }
        Ok(())
    }

    /// The entry that follows, if it is here.
    pub fn after(&self, last: Option<Position>) -> Option<Vec<u8>> {
        let next = Vlsn::after(last.map(|last| last.vlsn));
        let crc = last.map_or(0, |last| last.crc);
        let kept = self.entries.get(&next)?.iter().find(|kept| kept.prev == crc)?;
        let mut bytes = vec![0; kept.len];
        let read = kept.file.read_at(&mut bytes, kept.offset).ok()?;
        (read == kept.len).then_some(bytes)
    }

    /// Whether the entry at this place was the one that was here: what stood behind it tells. `None`: nothing does.
    pub fn vouches(&self, at: Position) -> Option<bool> {
        if self.marked.contains(&at.crc) {
            return Some(true);
        }
        let next = self.entries.get(&at.vlsn.next())?;
        Some(next.iter().any(|kept| kept.prev == at.crc))
    }
}

/// Gives files of damage that was healed the names of what is kept for people only.
///
/// # Errors
/// [`IoFailure`].
pub fn retire_saved(disk: &dyn Disk, dir: &Path) -> Result<(), IoFailure> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.failed("list", dir)?,
    };
    for name in &names {
        let Some(rest) = name.strip_prefix(DAMAGED) else { continue };
        let to = (0..=u32::MAX)
            .map(|number| match number {
                0 => format!("rolledback-{rest}"),
                number => format!("rolledback-{number}-{rest}"),
            })
            .find(|to| !names.contains(to));
        let Some(to) = to else { continue };
        disk.rename(&dir.join(name), &dir.join(to)).failed("rename", &dir.join(name))?;
    }
    disk.sync_dir(dir).failed("sync", dir)
}
