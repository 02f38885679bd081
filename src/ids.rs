//! Names and numbers that identify things: log positions, terms, nodes, groups.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::Arc;

/// A VLSN, the virtual log sequence number: the place of a replicated entry in its group's log.
///
/// The first entry of a group has VLSN 1; every next one is exactly one higher. "No entry" is
/// `Option::<Vlsn>::None`, and 0 on the wire, on disk and in a [`Watermark`](crate::Watermark).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vlsn(NonZeroU64);

impl Vlsn {
    /// The VLSN of a group's first entry.
    pub const FIRST: Vlsn = Vlsn(NonZeroU64::MIN);

    /// The VLSN with this number; `None` for 0.
    pub const fn new(number: u64) -> Option<Vlsn> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Vlsn(number)),
            None => None,
        }
    }

    /// The number, at least 1.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The VLSN after this one.
    ///
    /// # Panics
    /// At 2^64 - 1, which no log reaches: at a billion entries a second it lasts for 584 years.
    pub const fn next(self) -> Vlsn {
        match self.0.checked_add(1) {
            Some(number) => Vlsn(number),
            None => panic!("VLSN space exhausted"),
        }
    }

    /// The VLSN before this one; `None` before the first.
    pub const fn previous(self) -> Option<Vlsn> {
        Vlsn::new(self.0.get() - 1)
    }

    /// The VLSN that follows `last`, where `None` is an empty log.
    pub const fn after(last: Option<Vlsn>) -> Vlsn {
        match last {
            Some(last) => last.next(),
            None => Vlsn::FIRST,
        }
    }
}

impl fmt::Display for Vlsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vlsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// The number of an optional VLSN: 0 for none. The form of disk, wire and watermarks.
pub const fn number(vlsn: Option<Vlsn>) -> u64 {
    match vlsn {
        Some(vlsn) => vlsn.get(),
        None => 0,
    }
}

/// An inclusive range of VLSNs, never empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VlsnRange {
    first: Vlsn,
    last: Vlsn,
}

impl VlsnRange {
    /// The range from `first` to `last`, both included; `None` if `last` lies before `first`.
    pub fn new(first: Vlsn, last: Vlsn) -> Option<VlsnRange> {
        (first <= last).then_some(VlsnRange { first, last })
    }

    /// The first VLSN of the range.
    pub fn first(self) -> Vlsn {
        self.first
    }

    /// The last VLSN of the range.
    pub fn last(self) -> Vlsn {
        self.last
    }
}

impl fmt::Display for VlsnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{} to {}", self.first, self.last),
        }
    }
}

/// A term: the number of one mastership, and the fencing token that it hands out.
///
/// At most one node is master in a term, and terms only rise. 0 means that no term has begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(u32);

impl Term {
    /// Before the first term.
    pub const NONE: Term = Term(0);

    /// The term with this number.
    pub const fn new(number: u32) -> Term {
        Term(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The next term.
    ///
    /// # Panics
    /// At 2^32 - 1: a change of master every second reaches it after 136 years.
    pub const fn next(self) -> Term {
        match self.0.checked_add(1) {
            Some(number) => Term(number),
            None => panic!("term space exhausted"),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// A place in a log with the proof of its history: equal positions mean equal logs up to there,
/// because every entry's CRC covers the CRC of the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The entry's VLSN.
    pub vlsn: Vlsn,
    /// The term of the master that appended it.
    pub term: Term,
    /// The entry's CRC.
    pub crc: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(term {}, VLSN {}, CRC {:08x})", self.term, self.vlsn, self.crc)
    }
}

/// Where a log ends, as votes compare it: by the last entry's term, then by its VLSN.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogEnd {
    /// The last entry's term.
    pub term: Term,
    /// Its VLSN.
    pub vlsn: Option<Vlsn>,
}

impl LogEnd {
    /// The end of an empty log.
    pub const EMPTY: LogEnd = LogEnd { term: Term::NONE, vlsn: None };

    /// The end of a log whose last entry is this one.
    pub fn of(last: Option<Position>) -> LogEnd {
        last.map_or(LogEnd::EMPTY, |last| LogEnd { term: last.term, vlsn: Some(last.vlsn) })
    }
}

impl fmt::Display for LogEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(term {}, VLSN {})", self.term, number(self.vlsn))
    }
}

/// Where a term begins in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TermSpan {
    /// The term.
    pub term: Term,
    /// The VLSN of its first entry.
    pub first: Vlsn,
}

/// The name of a node within its group: 1 to 64 of `A-Z a-z 0-9 . _ -`, not starting with a dot.
///
/// Safe to print and to use as part of a file or thread name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// A text that is no node id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no node id: use 1 to 64 of A-Z a-z 0-9 . _ - and do not start with a dot")]
pub struct BadNodeId(String);

impl NodeId {
    /// The longest node id, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The node id with this text.
    ///
    /// # Errors
    /// [`BadNodeId`] for a text with other characters or of another length.
    pub fn new(text: &str) -> Result<NodeId, BadNodeId> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if fits && !text.starts_with('.') && text.bytes().all(allowed) {
            Ok(NodeId(text.into()))
        } else {
            Err(BadNodeId(text.chars().take(Self::MAX_LEN).collect()))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;
    fn from_str(text: &str) -> Result<NodeId, BadNodeId> {
        NodeId::new(text)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a replication group: 128 random bits, made once when the group is founded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u128);

/// A text that is no group id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a group id is 32 hexadecimal digits")]
pub struct BadGroupId;

impl GroupId {
    /// The group id with these bits.
    pub const fn from_bits(bits: u128) -> GroupId {
        GroupId(bits)
    }

    /// The bits.
    pub const fn bits(self) -> u128 {
        self.0
    }
}

impl FromStr for GroupId {
    type Err = BadGroupId;
    fn from_str(text: &str) -> Result<GroupId, BadGroupId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadGroupId);
        }
        u128::from_str_radix(text, 16).map(GroupId).map_err(|_| BadGroupId)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlsn_zero_is_no_vlsn_and_the_first_follows_nothing() {
        assert_eq!(Vlsn::new(0), None);
        assert_eq!(Vlsn::after(None), Vlsn::FIRST);
        assert_eq!(Vlsn::FIRST.previous(), None);
        assert_eq!(number(None), 0);
        assert_eq!(number(Some(Vlsn::FIRST.next())), 2);
    }

    #[test]
    fn a_range_is_never_empty() {
        let (one, two) = (Vlsn::FIRST, Vlsn::FIRST.next());
        assert!(VlsnRange::new(two, one).is_none());
        assert_eq!(VlsnRange::new(one, two).map(|r| r.to_string()).as_deref(), Some("1 to 2"));
        assert_eq!(VlsnRange::new(two, two).map(|r| r.to_string()).as_deref(), Some("2"));
    }

    #[test]
    fn node_ids_are_safe_names() {
        for good in ["n1", "db-7.eu_west", "A", &"x".repeat(64)] {
            assert!(NodeId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ü", "a\0", &"x".repeat(65)] {
            assert!(NodeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn group_ids_round_trip_as_text() {
        let id = GroupId::from_bits(0x0123_4567_89ab_cdef);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("+1".parse::<GroupId>(), Err(BadGroupId));
        assert_eq!("+".repeat(32).parse::<GroupId>(), Err(BadGroupId));
    }
}
