//! The walk over headers that every entry goes through on its way: by the scanner, the replica and the applier.
//!
//! It goes as far as nothing is out of the ordinary, with all it knows in registers. Where it stops, the caller looks at
//! that one entry with [`Header::parse`](super::Header::parse) and finds out why: the end, a local entry, damage.

use super::{EntryKind, FLAG_TXN, HEADER_LEN, HEADER_TXN_LEN, MAX_PAYLOAD, header_check, u32_at, u64_at};
use crate::ids::{Position, Term, Vlsn};

/// How far ahead of the walk memory is touched, so that it has arrived when the walk comes there. Each header says
/// where the next one is, so without this the walk waits for memory at each (17.5 ns an entry of 128 B instead of 12.5).
const AHEAD: usize = 2048;

/// Where a walk stands: behind one entry and before the next.
#[derive(Clone, Copy)]
pub(crate) struct Stand {
    /// Where the next entry begins.
    pub offset: usize,
    /// The entry behind; the next has to follow it.
    pub behind: Position,
    /// Its timestamp, if the walk went over it.
    pub timestamp: u64,
    /// Whether the walk, if it verified, went over a membership entry.
    pub memberships: bool,
    /// The same of a list of slots.
    pub slots: bool,
}

/// Goes over whole replicated entries in `bytes`, each of which follows the one before it, checks their headers, and
/// with `VERIFY` their CRCs. Goes over at most `most` entries, none of which ends behind `end`. Returns how many.
#[inline]
pub(crate) fn skim<const VERIFY: bool>(bytes: &[u8], stand: &mut Stand, most: u32, end: usize) -> u32 {
    let bytes = &bytes[..end.min(bytes.len())];
    let mut offset = stand.offset;
    let (mut vlsn, mut term, mut crc) = (stand.behind.vlsn.get(), stand.behind.term.get(), stand.behind.crc);
    let mut timestamp = stand.timestamp;
    let (mut memberships, mut slots) = (stand.memberships, stand.slots);
    let mut count = 0;
    while count < most {
        let Some(rest) = bytes.get(offset..) else { break };
        let Some(fixed) = rest.first_chunk::<HEADER_LEN>() else { break };
        std::hint::black_box(rest.get(AHEAD));
        let flags = fixed[21];
        let payload_len = u32_at(fixed, 4) as usize;
        let header_len = if flags == FLAG_TXN { HEADER_TXN_LEN } else { HEADER_LEN };
        let len = header_len + payload_len;
        if flags & !FLAG_TXN != 0 || payload_len > MAX_PAYLOAD || len > rest.len() {
            break;
        }
        let txn = if flags == FLAG_TXN { u64_at(rest, HEADER_LEN) } else { 0 };
        let check = u16::from_le_bytes([fixed[22], fixed[23]]);
        let sound = check == header_check(fixed, txn);
        let follows = u64_at(fixed, 8) == vlsn.wrapping_add(1)
            && vlsn != u64::MAX
            && u32_at(fixed, 16) >= term
            && u32_at(fixed, 24) == crc;
        if !(sound & follows) {
            break;
        }
        let stored = u32_at(fixed, 0);
        if VERIFY && crc32fast::hash(&rest[4..len]) != stored {
            break;
        }
        vlsn += 1;
        term = u32_at(fixed, 16);
        crc = stored;
        memberships |= VERIFY && fixed[20] == EntryKind::MEMBERSHIP.0;
        slots |= VERIFY && fixed[20] == EntryKind::SLOTS.0;
        timestamp = u64_at(fixed, 28);
        offset += len;
        count += 1;
    }
    if let (1.., Some(vlsn)) = (count, Vlsn::new(vlsn)) {
        let behind = Position { vlsn, term: Term::new(term), crc };
        *stand = Stand { offset, behind, timestamp, memberships, slots };
    }
    count
}
