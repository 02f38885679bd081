//! Copies of entries that others had, and which of them belong into a gap.
//!
//! Any good copy is kept; which ones belong is found from the end backwards: the entry behind a gap tells the CRC of the
//! gap's last entry, and each entry that of the one before it.

use std::collections::BTreeMap;

use crate::entry::EntryRef;
use crate::ids::{Vlsn, VlsnRange};

/// Good copies of entries, by VLSN and CRC.
#[derive(Default)]
pub struct Copies(BTreeMap<(Vlsn, u32), Copied>);

/// A copy of an entry.
struct Copied {
    prev: u32,
    bytes: Vec<u8>,
}

impl Copies {
    /// Keeps the good entries of a run that lie in `wanted`. Where to go on behind them; `None` if there were none.
    pub fn take(&mut self, run: &[u8], wanted: VlsnRange) -> Option<Vlsn> {
        let mut rest = run;
        let mut last = None;
        while let Ok(entry) = EntryRef::verify(rest) {
            if let Some(at) = entry.header().position()
                && wanted.first() <= at.vlsn
                && at.vlsn <= wanted.last()
            {
                let copy = Copied { prev: entry.header().prev, bytes: entry.bytes().to_vec() };
                self.0.insert((at.vlsn, at.crc), copy);
                last = Some(at.vlsn);
            }
            rest = &rest[entry.bytes().len()..];
        }
        last.map(Vlsn::next)
    }

    /// The copies that belong into a gap between an entry with the CRC `before` and one that follows the CRC `last`; nothing
    /// unless all are there.
    pub fn chain(&self, gap: VlsnRange, before: u32, last: u32) -> Option<Vec<(Vlsn, Vec<u8>)>> {
        let (mut vlsn, mut crc) = (gap.last(), last);
        let mut found = Vec::new();
        loop {
            let copy = self.0.get(&(vlsn, crc))?;
            found.push((vlsn, copy.bytes.clone()));
            crc = copy.prev;
            match vlsn.previous().filter(|previous| *previous >= gap.first()) {
                Some(previous) => vlsn = previous,
                None => break,
            }
        }
        (crc == before).then_some(found)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(number: u64) -> Vlsn {
        Vlsn::new(number).unwrap()
    }

    fn pool(copies: &[(u64, u32, u32)]) -> Copies {
        let copy = |prev| Copied { prev, bytes: vec![prev as u8] };
        Copies(copies.iter().map(|(vlsn, crc, prev)| ((v(*vlsn), *crc), copy(*prev))).collect())
    }

    #[test]
    fn a_gap_is_filled_by_what_links_both_of_its_ends_and_nothing_else() {
        let gap = VlsnRange::new(v(5), v(6)).unwrap();
        // Two histories; the entry behind the gap follows CRC 61.
        let both = pool(&[(5, 51, 40), (6, 61, 51), (5, 52, 40), (6, 62, 52)]);
        let found = both.chain(gap, 40, 61).unwrap();
        assert_eq!(found, [(v(6), vec![51]), (v(5), vec![40])]);
        assert_eq!(both.chain(gap, 41, 61), None, "it does not continue what comes before");
        assert_eq!(both.chain(gap, 40, 63), None, "no copy of the last");
        assert_eq!(pool(&[(6, 61, 51)]).chain(gap, 40, 61), None, "no copy of the first");
    }

    #[test]
    fn copies_of_a_gap_may_come_from_several() {
        let gap = VlsnRange::new(v(1), v(3)).unwrap();
        assert_eq!(pool(&[(1, 11, 0), (3, 31, 21)]).chain(gap, 0, 31), None);
        assert_eq!(pool(&[(1, 11, 0), (3, 31, 21), (2, 21, 11)]).chain(gap, 0, 31).unwrap().len(), 3);
    }
}
