//! The entry: the unit of the log, and the one codec of its bytes, which are the same on disk and on the wire.
//!
//! Layout (little-endian; docs/format.md repeats it for implementers):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | `crc`: CRC-32 (IEEE) over everything after it, header and payload |
//! | 4 | 4 | `payload_len` |
//! | 8 | 8 | `vlsn`; 0 in a local entry, which is never shipped |
//! | 16 | 4 | `term` |
//! | 20 | 1 | `kind` |
//! | 21 | 1 | `flags`: bit 0 says that `txn` is present |
//! | 22 | 2 | `header_check`: over the header alone, so that a rotten payload does not cost the length |
//! | 24 | 4 | `prev`: the CRC of the replicated entry before this one; 0 before the first |
//! | 28 | 8 | `timestamp`: microseconds since the Unix epoch |
//! | 36 | 8 | `txn`, if flagged |
//! | 36 or 44 | n | payload |
//!
//! A header of zeroes never checks out, so zeroes mean the end of the log.

use std::fmt;

mod skim;
#[cfg(test)]
mod tests;

pub(crate) use skim::{Stand, skim};

use crate::ids::{Position, Term, Vlsn, VlsnRange, number};

/// Bytes of a header without a transaction id: the shortest entry.
pub const HEADER_LEN: usize = 36;
/// Bytes of a header with a transaction id.
pub const HEADER_TXN_LEN: usize = 44;
/// The largest payload that the format can carry. Configured limits are lower.
pub const MAX_PAYLOAD: usize = 1 << 30;

const FLAG_TXN: u8 = 1;

/// What an entry is about. Kinds up to 127 belong to quorate; 128 to 255 are the engine's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryKind(pub u8);

impl EntryKind {
    /// A record was inserted.
    pub const INSERT: EntryKind = EntryKind(1);
    /// A record was changed.
    pub const UPDATE: EntryKind = EntryKind(2);
    /// A record was deleted.
    pub const DELETE: EntryKind = EntryKind(3);
    /// A transaction begins.
    pub const TXN_BEGIN: EntryKind = EntryKind(4);
    /// A transaction commits.
    pub const TXN_COMMIT: EntryKind = EntryKind(5);
    /// A transaction is given up.
    pub const TXN_ABORT: EntryKind = EntryKind(6);
    /// The engine's checkpoint record.
    pub const CHECKPOINT: EntryKind = EntryKind(7);
    /// A schema changed.
    pub const SCHEMA_CHANGE: EntryKind = EntryKind(8);
    /// A branch of the data was made, merged or dropped.
    pub const BRANCH_OP: EntryKind = EntryKind(9);
    /// A logical change: schema, table, operation, old and new values.
    pub const LOGICAL: EntryKind = EntryKind(10);
    /// Data in a form that only the engine knows.
    pub const DATA: EntryKind = EntryKind(11);
    /// A master opens its term. Every transaction still open in the log is aborted by it.
    pub const TERM_START: EntryKind = EntryKind(32);
    /// The group's member list from here on.
    pub const MEMBERSHIP: EntryKind = EntryKind(33);
    /// The group's slots from here on.
    pub const SLOTS: EntryKind = EntryKind(34);
    /// Every node digests its engine's state when it has applied this entry.
    pub const VERIFY: EntryKind = EntryKind(35);
    /// Local: how far the log was durable before this entry.
    pub const SYNC_MARK: EntryKind = EntryKind(64);
    /// The first of the kinds that are the engine's own.
    pub const ENGINE_FIRST: EntryKind = EntryKind(128);
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            EntryKind::INSERT => "insert",
            EntryKind::UPDATE => "update",
            EntryKind::DELETE => "delete",
            EntryKind::TXN_BEGIN => "txn-begin",
            EntryKind::TXN_COMMIT => "txn-commit",
            EntryKind::TXN_ABORT => "txn-abort",
            EntryKind::CHECKPOINT => "checkpoint",
            EntryKind::SCHEMA_CHANGE => "schema-change",
            EntryKind::BRANCH_OP => "branch-op",
            EntryKind::LOGICAL => "logical",
            EntryKind::DATA => "data",
            EntryKind::TERM_START => "term-start",
            EntryKind::MEMBERSHIP => "membership",
            EntryKind::SLOTS => "slots",
            EntryKind::VERIFY => "verify",
            EntryKind::SYNC_MARK => "sync-mark",
            EntryKind(other) => return write!(f, "kind-{other}"),
        };
        f.pad(name)
    }
}

impl fmt::Debug for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a transaction, given by the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TxnId(pub u64);

/// What a writer hands to `append`.
#[derive(Clone, Copy, Debug)]
pub struct NewEntry<'a> {
    /// What it is about.
    pub kind: EntryKind,
    /// The transaction it belongs to.
    pub txn: Option<TxnId>,
    /// The engine's bytes.
    pub payload: &'a [u8],
}

impl<'a> NewEntry<'a> {
    /// An entry of kind [`EntryKind::DATA`] outside any transaction.
    pub fn data(payload: &'a [u8]) -> NewEntry<'a> {
        NewEntry { kind: EntryKind::DATA, txn: None, payload }
    }

    /// Bytes that the entry takes in the log.
    pub fn encoded_len(&self) -> usize {
        header_len(self.txn.is_some()) + self.payload.len()
    }
}

#[inline(always)]
const fn header_len(has_txn: bool) -> usize {
    if has_txn { HEADER_TXN_LEN } else { HEADER_LEN }
}

/// Where an entry stands in the log: what the log adds to a [`NewEntry`].
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// `None` makes a local entry.
    pub vlsn: Option<Vlsn>,
    /// The term.
    pub term: Term,
    /// The CRC of the replicated entry before it; 0 if there is none.
    pub prev: u32,
    /// Microseconds since the epoch.
    pub timestamp: u64,
}

/// Appends the entry's bytes to `out` and returns its CRC.
///
/// # Panics
/// If the payload is longer than [`MAX_PAYLOAD`]: callers check their configured limit first.
#[inline]
pub fn encode(entry: &NewEntry<'_>, at: &Placement, out: &mut Vec<u8>) -> u32 {
    let start = out.len();
    let (header, len) = encode_header(entry, at);
    out.extend_from_slice(&header[..len]);
    out.extend_from_slice(entry.payload);
    let crc = crc32fast::hash(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// The header of an entry whose payload stays where it is: for an entry that is written from its owner's slices.
/// Returns the bytes, how many of them count, and the entry's CRC.
///
/// # Panics
/// As [`encode`].
pub fn encode_apart(entry: &NewEntry<'_>, at: &Placement) -> ([u8; HEADER_TXN_LEN], usize, u32) {
    let (mut header, len) = encode_header(entry, at);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[4..len]);
    hasher.update(entry.payload);
    let crc = hasher.finalize();
    header[..4].copy_from_slice(&crc.to_le_bytes());
    (header, len, crc)
}

#[inline]
fn encode_header(entry: &NewEntry<'_>, at: &Placement) -> ([u8; HEADER_TXN_LEN], usize) {
    assert!(entry.payload.len() <= MAX_PAYLOAD, "payload over the format's limit");
    let len = header_len(entry.txn.is_some());
    let mut h = [0; HEADER_TXN_LEN];
    h[4..8].copy_from_slice(&(entry.payload.len() as u32).to_le_bytes());
    h[8..16].copy_from_slice(&number(at.vlsn).to_le_bytes());
    h[16..20].copy_from_slice(&at.term.get().to_le_bytes());
    h[20] = entry.kind.0;
    h[21] = if entry.txn.is_some() { FLAG_TXN } else { 0 };
    h[24..28].copy_from_slice(&at.prev.to_le_bytes());
    h[28..36].copy_from_slice(&at.timestamp.to_le_bytes());
    h[36..44].copy_from_slice(&entry.txn.map_or(0, |txn| txn.0).to_le_bytes());
    let check = h.first_chunk().map_or(0, |fixed| header_check(fixed, entry.txn.map_or(0, |txn| txn.0)));
    h[22..24].copy_from_slice(&check.to_le_bytes());
    (h, len)
}

#[inline(always)]
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

#[inline(always)]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

/// The 16-bit check over a header's fields but the CRC and itself: a folded-multiply mix in the manner of wyhash. It is
/// on the scan path, where a CRC of its own would cost too much; the CRC covers the same bytes again.
#[inline(always)]
fn header_check(h: &[u8; HEADER_LEN], txn: u64) -> u16 {
    #[inline(always)]
    fn fold(a: u64, b: u64) -> u64 {
        let wide = u128::from(a) * u128::from(b);
        wide as u64 ^ (wide >> 64) as u64
    }
    let length = u64::from(u32_at(h, 4));
    let vlsn = u64_at(h, 8);
    let term_kind_flags = u64_at(h, 16) & 0x0000_ffff_ffff_ffff;
    let prev = u64::from(u32_at(h, 24));
    let timestamp = u64_at(h, 28);
    let mixed = fold(vlsn ^ 0xa076_1d64_78bd_642f, (length | prev << 32) ^ 0xe703_7ed1_a0b4_28db)
        ^ fold(term_kind_flags ^ 0x8ebc_6af0_9c88_c6e3, timestamp ^ 0x5899_65cc_7537_4cc3)
        ^ fold(txn ^ 0x1d8e_4e27_c47d_124f, 0xeb44_acca_b455_d165);
    (mixed ^ mixed >> 32 ^ mixed >> 16 ^ mixed >> 48) as u16
}

/// An entry's header, with its own check passed; the payload is not verified by that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// CRC over everything after it.
    pub crc: u32,
    /// `None` in a local entry.
    pub vlsn: Option<Vlsn>,
    /// The term.
    pub term: Term,
    /// What the entry is about.
    pub kind: EntryKind,
    /// CRC of the replicated entry before.
    pub prev: u32,
    /// Microseconds since the epoch.
    pub timestamp: u64,
    /// The transaction.
    pub txn: Option<TxnId>,
    header_len: u8,
    payload_len: u32,
}

/// Why bytes are no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EntryDamage {
    /// Fewer bytes than the entry says it has.
    #[error("the entry is cut short: it needs {needed} bytes and {present} are there")]
    Short {
        /// Bytes that the entry needs, as far as can be told.
        needed: usize,
        /// Bytes there.
        present: usize,
    },
    /// All zeroes: the end of a log.
    #[error("there is no entry: the header is all zeroes")]
    Zeroes,
    /// The header does not check out; its length can't be trusted.
    #[error("the entry's header is damaged")]
    Header,
    /// The header checks out, but the CRC over the whole entry differs.
    #[error("the entry's CRC is {stored:08x}, but its bytes give {computed:08x}")]
    Crc {
        /// The CRC that the entry carries.
        stored: u32,
        /// The CRC of its bytes.
        computed: u32,
    },
    /// The entry is whole, but it does not continue the one before it in the log.
    #[error("the entry does not continue the one before it: VLSN, term or the chain of CRCs breaks here")]
    Misplaced,
}

impl Header {
    /// Reads the header at the start of `bytes`. Panics for no input; allocates nothing.
    ///
    /// # Errors
    /// [`EntryDamage`], except `Crc`, which needs [`EntryRef::verify`].
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Header, EntryDamage> {
        let Some(fixed) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(EntryDamage::Short { needed: HEADER_LEN, present: bytes.len() });
        };
        let flags = fixed[21];
        let header_len = header_len(flags & FLAG_TXN != 0);
        if bytes.len() < header_len {
            return Err(EntryDamage::Short { needed: header_len, present: bytes.len() });
        }
        let stored = u16::from_le_bytes([fixed[22], fixed[23]]);
        let txn = if header_len == HEADER_TXN_LEN { u64_at(bytes, HEADER_LEN) } else { 0 };
        let payload_len = u32_at(fixed, 4);
        if stored != header_check(fixed, txn) || flags & !FLAG_TXN != 0 || payload_len > MAX_PAYLOAD as u32 {
            let zeroes = fixed.iter().all(|byte| *byte == 0);
            return Err(if zeroes { EntryDamage::Zeroes } else { EntryDamage::Header });
        }
        Ok(Header {
            crc: u32_at(fixed, 0),
            vlsn: Vlsn::new(u64_at(fixed, 8)),
            term: Term::new(u32_at(fixed, 16)),
            kind: EntryKind(fixed[20]),
            prev: u32_at(fixed, 24),
            timestamp: u64_at(fixed, 28),
            txn: (flags & FLAG_TXN != 0).then_some(TxnId(txn)),
            header_len: header_len as u8,
            payload_len,
        })
    }

    /// Bytes of the whole entry.
    #[inline]
    pub fn entry_len(&self) -> usize {
        self.header_len as usize + self.payload_len as usize
    }

    /// Bytes of the payload.
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// The entry's position; `None` for a local entry.
    pub fn position(&self) -> Option<Position> {
        self.vlsn.map(|vlsn| Position { vlsn, term: self.term, crc: self.crc })
    }
}

/// An entry whose CRC was verified, in the bytes that hold it.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    header: Header,
    bytes: &'a [u8],
}

impl<'a> EntryRef<'a> {
    /// Reads and verifies the entry at the start of `bytes`.
    ///
    /// # Errors
    /// [`EntryDamage`].
    #[inline]
    pub fn verify(bytes: &'a [u8]) -> Result<EntryRef<'a>, EntryDamage> {
        let header = Header::parse(bytes)?;
        let Some(bytes) = bytes.get(..header.entry_len()) else {
            return Err(EntryDamage::Short { needed: header.entry_len(), present: bytes.len() });
        };
        let computed = crc32fast::hash(&bytes[4..]);
        if computed != header.crc {
            return Err(EntryDamage::Crc { stored: header.crc, computed });
        }
        Ok(EntryRef { header, bytes })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The engine's bytes.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header.header_len as usize..]
    }

    /// The whole entry's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What the entry is about.
    pub fn kind(&self) -> EntryKind {
        self.header.kind
    }
}

/// What a verified run of replicated entries holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunSummary {
    /// The VLSNs.
    pub range: VlsnRange,
    /// The last entry's position.
    pub last: Position,
    /// The last entry's timestamp, microseconds since the epoch.
    pub timestamp: u64,
    /// Whether one of them is a membership entry.
    pub memberships: bool,
    /// Whether one of them is a list of slots.
    pub slots: bool,
}

/// Why a run of entries does not continue a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RunError {
    /// There is no entry in it.
    #[error("the run holds no entry")]
    Empty,
    /// An entry is damaged.
    #[error("the entry expected to be VLSN {at} is damaged: {damage}")]
    Damaged {
        /// Which entry was expected there.
        at: Vlsn,
        /// What is wrong.
        damage: EntryDamage,
    },
    /// A local entry, which is never shipped.
    #[error("a local entry stands where VLSN {at} was expected")]
    Local {
        /// Which entry was expected there.
        at: Vlsn,
    },
    /// A hole, a repetition, or entries out of order.
    #[error("VLSN {found} follows where VLSN {expected} was expected")]
    OutOfOrder {
        /// Which entry was expected.
        expected: Vlsn,
        /// Which was found.
        found: Vlsn,
    },
    /// A term lower than the one before it, or none at all.
    #[error("VLSN {at} has term {found}, which is below the term {before} before it")]
    TermFalls {
        /// Where.
        at: Vlsn,
        /// The term before.
        before: Term,
        /// The entry's term.
        found: Term,
    },
    /// The entry does not continue this history: it follows an entry with another CRC.
    #[error(
        "VLSN {at} follows an entry with CRC {claimed:08x}, but the entry before it here has CRC {actual:08x}"
    )]
    Foreign {
        /// Where.
        at: Vlsn,
        /// The CRC that the entry says comes before it.
        claimed: u32,
        /// The CRC of the entry that does.
        actual: u32,
    },
}

/// Verifies that `bytes` is a run of whole replicated entries that continues the log after `after`: every header and
/// CRC, VLSNs without a hole, terms that never fall, and the chain of CRCs.
///
/// # Errors
/// [`RunError`], for the first entry that does not fit; nothing of the run may then be used.
pub fn verify_run(bytes: &[u8], after: Option<Position>) -> Result<RunSummary, RunError> {
    let (mut expected, mut term, mut prev) = match after {
        Some(after) => (after.vlsn.next(), after.term, after.crc),
        None => (Vlsn::FIRST, Term::NONE, 0),
    };
    let first = expected;
    let mut rest = bytes;
    let mut last: Option<Header> = None;
    let (mut memberships, mut slots) = (false, false);
    while !rest.is_empty() {
        if let Some(behind) = last.and_then(|header| header.position()).or(after) {
            let mut stand = Stand { offset: 0, behind, timestamp: 0, memberships, slots };
            if skim::<true>(rest, &mut stand, u32::MAX, rest.len()) > 0 {
                (memberships, slots) = (stand.memberships, stand.slots);
                if stand.offset == rest.len() {
                    let range = VlsnRange::new(first, stand.behind.vlsn).ok_or(RunError::Empty)?;
                    let Stand { behind: last, timestamp, .. } = stand;
                    return Ok(RunSummary { range, last, timestamp, memberships, slots });
                }
                rest = &rest[stand.offset..];
                let behind = stand.behind;
                (expected, term, prev) = (behind.vlsn.next(), behind.term, behind.crc);
            }
        }
        // The first of a log, or whatever the walk stopped at.
        let entry = EntryRef::verify(rest).map_err(|damage| RunError::Damaged { at: expected, damage })?;
        let header = entry.header();
        follows(header, expected, term, prev)?;
        memberships |= header.kind == EntryKind::MEMBERSHIP;
        slots |= header.kind == EntryKind::SLOTS;
        rest = &rest[header.entry_len()..];
        (expected, term, prev) = (expected.next(), header.term, header.crc);
        last = Some(*header);
    }
    match last.and_then(|header| Some((header.position()?, header.timestamp))) {
        Some((last, timestamp)) => {
            let range = VlsnRange::new(first, last.vlsn).ok_or(RunError::Empty)?;
            Ok(RunSummary { range, last, timestamp, memberships, slots })
        }
        None => Err(RunError::Empty),
    }
}

/// Whether an entry with this header may follow (`expected - 1`, `term`, `prev`) in a log.
///
/// # Errors
/// [`RunError`], except `Empty` and `Damaged`.
#[inline]
pub fn follows(header: &Header, expected: Vlsn, term: Term, prev: u32) -> Result<(), RunError> {
    match header.vlsn {
        None => Err(RunError::Local { at: expected }),
        Some(found) if found != expected => Err(RunError::OutOfOrder { expected, found }),
        Some(at) if header.term < term || header.term == Term::NONE => {
            Err(RunError::TermFalls { at, before: term, found: header.term })
        }
        Some(at) if header.prev != prev => Err(RunError::Foreign { at, claimed: header.prev, actual: prev }),
        Some(_) => Ok(()),
    }
}

/// Verified replicated entries, in order, in up to a few pieces of memory: what an engine applies.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a> {
    range: VlsnRange,
    slices: &'a [&'a [u8]],
}

impl<'a> Entries<'a> {
    /// The entries of `range`, whose bytes stand in `slices`, each a sequence of whole entries that were verified.
    pub fn new(range: VlsnRange, slices: &'a [&'a [u8]]) -> Entries<'a> {
        Entries { range, slices }
    }

    /// Which entries these are.
    pub fn range(&self) -> VlsnRange {
        self.range
    }

    /// The entries one by one, in order.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'a>> + 'a {
        self.slices.iter().flat_map(|slice| {
            let mut rest = *slice;
            std::iter::from_fn(move || {
                let header = Header::parse(rest).ok()?;
                let (bytes, behind) = rest.split_at_checked(header.entry_len())?;
                rest = behind;
                Some(EntryRef { header, bytes })
            })
        })
    }
}
