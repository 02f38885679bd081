//! Where the entries stand that state something of the group: its members, its slots.

use crate::entry::EntryKind;
use crate::ids::Vlsn;

/// Each list ascends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Stated {
    /// The membership entries.
    pub memberships: Vec<Vlsn>,
    /// The lists of slots.
    pub slots: Vec<Vlsn>,
}

impl Stated {
    /// Notes an entry that was appended, of whatever kind.
    #[inline]
    pub(super) fn note(&mut self, kind: EntryKind, vlsn: Vlsn) {
        match kind {
            EntryKind::MEMBERSHIP => self.memberships.push(vlsn),
            EntryKind::SLOTS => self.slots.push(vlsn),
            _ => {}
        }
    }

    /// Takes over what a later segment holds.
    pub(super) fn extend(&mut self, later: &Stated) {
        self.memberships.extend(&later.memberships);
        self.slots.extend(&later.slots);
    }

    /// Takes over what a segment in the midst of the log holds, as far as it was not known.
    pub(super) fn insert(&mut self, found: &Stated) {
        self.extend(found);
        for list in [&mut self.memberships, &mut self.slots] {
            list.sort_unstable();
            list.dedup();
        }
    }

    /// What stands in a range.
    pub(super) fn within(&self, range: std::ops::RangeInclusive<Vlsn>) -> Stated {
        let inside = |list: &[Vlsn]| list.iter().copied().filter(|at| range.contains(at)).collect();
        Stated { memberships: inside(&self.memberships), slots: inside(&self.slots) }
    }

    /// Forgets what stood before `oldest`.
    pub(super) fn forget_before(&mut self, oldest: Vlsn) {
        for list in [&mut self.memberships, &mut self.slots] {
            list.drain(..list.partition_point(|at| *at < oldest));
        }
    }
}
