//! What a log's files say of the group's members although the log can't be opened, or before it is.

use std::path::Path;

use crate::disk::Disk;
use crate::entry::{EntryKind, EntryRef, HEADER_TXN_LEN, Header};
use crate::log::error::{Failed, IoFailure};
use crate::log::format::{SEGMENT_HEADER_LEN, first_in_name};
use crate::log::walk::Window;

/// The payload of the last membership entry that is good, whatever is damaged around it.
pub(crate) fn last_membership(disk: &dyn Disk, dir: &Path) -> Result<Option<Vec<u8>>, IoFailure> {
    let names = disk.list(dir).failed("list", dir)?;
    for name in names.iter().rev().filter(|name| first_in_name(name, ".seg").is_some()) {
        let path = dir.join(name);
        let file = disk.open(&path).failed("open", &path)?;
        let mut window = Window::new(file).failed("read", &path)?;
        let found = last_in(&mut window).failed("read", &path)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn last_in(window: &mut Window) -> std::io::Result<Option<Vec<u8>>> {
    let mut last = None;
    let mut offset = SEGMENT_HEADER_LEN as u64;
    while offset < window.len {
        let Ok(header) = Header::parse(window.bytes(offset, HEADER_TXN_LEN)?) else {
            offset += 1;
            continue;
        };
        if header.kind == EntryKind::MEMBERSHIP
            && let Ok(entry) = EntryRef::verify(window.bytes(offset, header.entry_len())?)
        {
            last = Some(entry.payload().to_vec());
        }
        offset += header.entry_len() as u64;
    }
    Ok(last)
}
