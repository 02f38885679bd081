//! Files with entries that were cut off: whole segments in form, so that whatever reads a segment reads them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::Clock;
use crate::disk::{Disk, DiskFile};
use crate::ids::{GroupId, Position, Vlsn};
use crate::log::error::{Failed, IoFailure};
use crate::log::format::{SEGMENT_HEADER_LEN, SegmentHeader, saved_name};
use crate::log::index::create_anew;

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
