//! Where entries are: points of the index of a segment, and the sidecar file that keeps them for a sealed one.

use std::io;
use std::path::Path;

use byteorder::{LE, ReadBytesExt};

use crate::disk::Disk;
use crate::ids::{GroupId, Position, Term, TermSpan, Vlsn};
use crate::log::error::{Failed, FileDamage, IoFailure};
use crate::log::format::{
    SEGMENT_HEADER_LEN, check, put_crc, put_position, put_start, sidecar_name, take_position,
};

/// Bytes between two points of an index, at least; a run that was appended at once is not divided.
pub(super) const POINT_EVERY: u64 = 64 * 1024;

const MAGIC: &[u8; 8] = b"QRINDEX\0";
/// The version that is written, and the latest that is read. Version 1 did not list the membership entries, and no log
/// of its time had any.
const VERSION: u32 = 2;
/// All but the lists and, from version 2 on, the number of membership entries.
const FIXED_LEN: usize = 12 + 16 + 8 + 16 + 8 + 16 + 4 + 4 + 4;
const COUNT_LEN: usize = 4;
const POINT_LEN: usize = 16;
const SPAN_LEN: usize = 12;
const VLSN_LEN: usize = 8;

/// Where one entry starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Point {
    pub vlsn: Vlsn,
    pub offset: u64,
}

/// The last point at or before `vlsn`; the segment's start if there is none.
pub(super) fn nearest(points: &[Point], first: Vlsn, vlsn: Vlsn) -> Point {
    let behind = points.partition_point(|point| point.vlsn <= vlsn);
    let start = Point { vlsn: first, offset: SEGMENT_HEADER_LEN as u64 };
    behind.checked_sub(1).and_then(|at| points.get(at)).copied().unwrap_or(start)
}

/// What the sidecar of a sealed segment says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Sidecar {
    pub first: Vlsn,
    /// The entry before the segment.
    pub base: Option<Position>,
    /// Bytes of the segment that hold its header and entries.
    pub end: u64,
    /// Its last replicated entry.
    pub last: Position,
    pub points: Vec<Point>,
    /// The terms in it, ascending; the first begins at `first` even if the term began before.
    pub spans: Vec<TermSpan>,
    /// The membership entries in it, ascending.
    pub memberships: Vec<Vlsn>,
}

impl Sidecar {
    pub(super) fn encode(&self, group: GroupId) -> Vec<u8> {
        let lists =
            self.points.len() * POINT_LEN + self.spans.len() * SPAN_LEN + self.memberships.len() * VLSN_LEN;
        let mut out = Vec::with_capacity(FIXED_LEN + COUNT_LEN + lists);
        put_start(&mut out, MAGIC, VERSION);
        out.extend_from_slice(&group.bits().to_le_bytes());
        out.extend_from_slice(&self.first.get().to_le_bytes());
        put_position(&mut out, self.base);
        out.extend_from_slice(&self.end.to_le_bytes());
        put_position(&mut out, Some(self.last));
        out.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.spans.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.memberships.len() as u32).to_le_bytes());
        for point in &self.points {
            out.extend_from_slice(&point.vlsn.get().to_le_bytes());
            out.extend_from_slice(&point.offset.to_le_bytes());
        }
        for span in &self.spans {
            out.extend_from_slice(&span.term.get().to_le_bytes());
            out.extend_from_slice(&span.first.get().to_le_bytes());
        }
        for vlsn in &self.memberships {
            out.extend_from_slice(&vlsn.get().to_le_bytes());
        }
        put_crc(&mut out);
        out
    }

    /// Reads a sidecar of the segment of `group` that begins at `first`.
    pub(super) fn decode(bytes: &[u8], group: GroupId, first: Vlsn) -> Result<Sidecar, FileDamage> {
        let (version, mut body) = check(bytes, MAGIC, VERSION)?;
        let (found, sidecar) = Self::take(&mut body, version, bytes.len())
            .map_err(|_| FileDamage::Checksum)?
            .ok_or(FileDamage::Checksum)?;
        if found != group {
            return Err(FileDamage::OtherGroup { found, ours: group });
        }
        if sidecar.first != first {
            return Err(FileDamage::WrongFirst { found: sidecar.first });
        }
        if Vlsn::after(sidecar.base.map(|base| base.vlsn)) != first || sidecar.last.vlsn < first {
            return Err(FileDamage::WrongBase);
        }
        Ok(sidecar)
    }

    fn take(body: &mut &[u8], version: u32, file_len: usize) -> io::Result<Option<(GroupId, Sidecar)>> {
        let group = GroupId::from_bits(body.read_u128::<LE>()?);
        let first = Vlsn::new(body.read_u64::<LE>()?);
        let base = take_position(body)?;
        let end = body.read_u64::<LE>()?;
        let last = take_position(body)?;
        let (points, spans) = (body.read_u32::<LE>()? as usize, body.read_u32::<LE>()? as usize);
        let (memberships, fixed) = if version < 2 {
            (0, FIXED_LEN)
        } else {
            (body.read_u32::<LE>()? as usize, FIXED_LEN + COUNT_LEN)
        };
        let (Some(first), Some(last)) = (first, last) else { return Ok(None) };
        let lists = [(points, POINT_LEN), (spans, SPAN_LEN), (memberships, VLSN_LEN)];
        let len =
            lists.iter().try_fold(fixed, |len, (count, each)| len.checked_add(count.checked_mul(*each)?));
        if len != Some(file_len) {
            return Ok(None);
        }
        let (point_count, span_count) = (points, spans);
        let (points, spans) = (Vec::new(), Vec::new());
        let mut sidecar = Sidecar { first, base, end, last, points, spans, memberships: Vec::new() };
        for _ in 0..point_count {
            let (vlsn, offset) = (Vlsn::new(body.read_u64::<LE>()?), body.read_u64::<LE>()?);
            let Some(vlsn) = vlsn else { return Ok(None) };
            sidecar.points.push(Point { vlsn, offset });
        }
        for _ in 0..span_count {
            let (term, vlsn) = (Term::new(body.read_u32::<LE>()?), Vlsn::new(body.read_u64::<LE>()?));
            let Some(vlsn) = vlsn else { return Ok(None) };
            sidecar.spans.push(TermSpan { term, first: vlsn });
        }
        for _ in 0..memberships {
            let Some(vlsn) = Vlsn::new(body.read_u64::<LE>()?) else { return Ok(None) };
            sidecar.memberships.push(vlsn);
        }
        Ok(Some((group, sidecar)))
    }

    /// Writes and syncs the sidecar under a name of its own and then gives it its final one. The directory is not
    /// synced: a sidecar that is lost is made again.
    pub(super) fn store(&self, disk: &dyn Disk, dir: &Path, group: GroupId) -> Result<(), IoFailure> {
        write_whole(disk, dir, &sidecar_name(self.first), &self.encode(group))
    }
}

/// Writes a small file whole: under a temporary name, synced, and then renamed. The directory is not synced.
pub(crate) fn write_whole(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), IoFailure> {
    let temporary = dir.join(format!("{name}.new"));
    let file = create_anew(disk, &temporary, bytes.len() as u64)?;
    file.write_at(&[io::IoSlice::new(bytes)], 0).failed("write", &temporary)?;
    file.sync().failed("sync", &temporary)?;
    disk.rename(&temporary, &dir.join(name)).failed("rename", &temporary)
}

/// Creates a file with a temporary name, in place of one that an earlier attempt may have left.
pub(crate) fn create_anew(
    disk: &dyn Disk,
    path: &Path,
    len: u64,
) -> Result<std::sync::Arc<dyn crate::disk::DiskFile>, IoFailure> {
    match disk.create(path, len) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(path).failed("remove", path)?;
            disk.create(path, len).failed("create", path)
        }
        other => other.failed("create", path),
    }
}

/// Reads a small file whole; `None` if it does not exist or is longer than `limit` bytes.
pub(crate) fn read_whole(disk: &dyn Disk, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, IoFailure> {
    let file = match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.failed("open", path)?,
    };
    let len = file.len().failed("measure", path)?;
    if len > limit {
        return Ok(None);
    }
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(&mut bytes, 0).failed("read", path)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlsn(number: u64) -> Vlsn {
        Vlsn::new(number).unwrap()
    }

    fn sidecar() -> Sidecar {
        Sidecar {
            first: vlsn(11),
            base: Some(Position { vlsn: vlsn(10), term: Term::new(1), crc: 4 }),
            end: 9000,
            last: Position { vlsn: vlsn(40), term: Term::new(2), crc: 5 },
            points: vec![Point { vlsn: vlsn(20), offset: 3000 }, Point { vlsn: vlsn(30), offset: 6000 }],
            spans: vec![TermSpan { term: Term::new(2), first: vlsn(11) }],
            memberships: vec![vlsn(12), vlsn(40)],
        }
    }

    #[test]
    fn a_sidecar_round_trips_and_every_flipped_bit_and_every_cut_shows() {
        let group = GroupId::from_bits(3);
        let bytes = sidecar().encode(group);
        assert_eq!(Sidecar::decode(&bytes, group, vlsn(11)), Ok(sidecar()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Sidecar::decode(&damaged, group, vlsn(11)).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Sidecar::decode(&bytes[..cut], group, vlsn(11)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_sidecar_of_version_1_is_read_and_lists_no_membership_entries() {
        let group = GroupId::from_bits(3);
        let mut bytes = Sidecar { memberships: Vec::new(), ..sidecar() }.encode(group);
        bytes[8] = 1;
        let count = FIXED_LEN - 4;
        bytes.drain(count..count + COUNT_LEN);
        bytes.truncate(bytes.len() - 4);
        put_crc(&mut bytes);
        let read = Sidecar::decode(&bytes, group, vlsn(11));
        assert_eq!(read, Ok(Sidecar { memberships: Vec::new(), ..sidecar() }));
    }

    #[test]
    fn the_nearest_point_never_lies_behind() {
        let points = sidecar().points;
        let found = |v| nearest(&points, vlsn(11), vlsn(v)).vlsn.get();
        assert_eq!(
            [found(11), found(19), found(20), found(29), found(30), found(99)],
            [11, 11, 20, 20, 30, 30]
        );
    }
}
