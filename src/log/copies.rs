//! Copies of entries that others had, and which of them belong into a gap.
//!
//! Any good copy is kept; which ones belong is found from the end backwards: the entry behind a gap tells the CRC of the
//! gap's last entry, and each entry that of the one before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::entry::EntryRef;
use crate::ids::{Vlsn, VlsnRange};

/// Good copies of entries: of each giver one for each VLSN, and no more bytes than the entries have that are sought.
#[derive(Default)]
pub struct Copies {
    /// By VLSN and giver.
    copies: BTreeMap<(Vlsn, usize), Copied>,
    givers: Vec<Giver>,
    most: u64,
}

struct Giver {
    name: String,
    bytes: u64,
}

/// A copy of an entry. Equal ones of several givers share their bytes.
struct Copied {
    crc: u32,
    prev: u32,
    bytes: Arc<[u8]>,
}

/// A giver has given more than there can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it has given more bytes than the missing entries can have")]
pub struct TooMuch;

impl Copies {
    /// Keeps up to so many bytes of each giver.
    pub fn new(most: u64) -> Copies {
        Copies { most, ..Copies::default() }
    }

    /// Keeps the good entries of a run that lie in `wanted`; another copy that the same giver gave takes the place of its
    /// former one. Where to go on behind them; `None` if there were none.
    ///
    /// # Errors
    /// [`TooMuch`]: nothing more is to be asked of this giver.
    pub fn take(&mut self, from: &str, run: &[u8], wanted: VlsnRange) -> Result<Option<Vlsn>, TooMuch> {
        let mut rest = run;
        let mut last = None;
        while let Ok(entry) = EntryRef::verify(rest) {
            if let Some(at) = entry.header().position()
                && wanted.first() <= at.vlsn
                && at.vlsn <= wanted.last()
            {
                self.keep(from, at.vlsn, at.crc, entry.header().prev, entry.bytes())?;
                last = Some(at.vlsn);
            }
            rest = &rest[entry.bytes().len()..];
        }
        Ok(last.map(Vlsn::next))
    }

    fn keep(&mut self, from: &str, vlsn: Vlsn, crc: u32, prev: u32, bytes: &[u8]) -> Result<(), TooMuch> {
        let known = self.givers.iter().position(|giver| giver.name == from);
        let giver = known.unwrap_or_else(|| {
            self.givers.push(Giver { name: from.to_owned(), bytes: 0 });
            self.givers.len() - 1
        });
        let former = self.copies.get(&(vlsn, giver)).map_or(0, |former| former.bytes.len() as u64);
        let held = self.givers[giver].bytes - former + bytes.len() as u64;
        if held > self.most {
            return Err(TooMuch);
        }
        let equal = self.at(vlsn).find(|copy| *copy.bytes == *bytes).map(|copy| Arc::clone(&copy.bytes));
        let bytes = equal.unwrap_or_else(|| bytes.into());
        self.givers[giver].bytes = held;
        self.copies.insert((vlsn, giver), Copied { crc, prev, bytes });
        Ok(())
    }

    /// The first entry of these of which this giver gave no copy yet.
    pub fn wanted_of(&self, giver: &str, of: VlsnRange) -> Option<Vlsn> {
        let Some(giver) = self.givers.iter().position(|known| known.name == giver) else {
            return Some(of.first());
        };
        let mut vlsn = of.first();
        while self.copies.contains_key(&(vlsn, giver)) {
            vlsn = vlsn.next();
        }
        (vlsn <= of.last()).then_some(vlsn)
    }

    fn at(&self, vlsn: Vlsn) -> impl Iterator<Item = &Copied> {
        self.copies.range((vlsn, 0)..=(vlsn, usize::MAX)).map(|(_, copy)| copy)
    }

    /// The copies that belong into a gap between an entry with the CRC `before` and one that follows the CRC `last`; nothing
    /// unless all are there.
    pub fn chain(&self, gap: VlsnRange, before: u32, last: u32) -> Option<Vec<(Vlsn, Arc<[u8]>)>> {
        let (mut vlsn, mut crc) = (gap.last(), last);
        let mut found = Vec::new();
        loop {
            let copy = self.at(vlsn).find(|copy| copy.crc == crc)?;
            found.push((vlsn, Arc::clone(&copy.bytes)));
            crc = copy.prev;
            match vlsn.previous().filter(|previous| *previous >= gap.first()) {
                Some(previous) => vlsn = previous,
                None => break,
            }
        }
        (crc == before).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(number: u64) -> Vlsn {
        Vlsn::new(number).unwrap()
    }

    /// Each copy of a giver of its own.
    fn pool(copies: &[(u64, u32, u32)]) -> Copies {
        let mut pool = Copies::new(1);
        for (giver, (vlsn, crc, prev)) in copies.iter().enumerate() {
            pool.keep(&giver.to_string(), v(*vlsn), *crc, *prev, &[*prev as u8]).unwrap();
        }
        pool
    }

    #[test]
    fn a_gap_is_filled_by_what_links_both_of_its_ends_and_nothing_else() {
        let gap = VlsnRange::new(v(5), v(6)).unwrap();
        // Two histories; the entry behind the gap follows CRC 61.
        let both = pool(&[(5, 51, 40), (6, 61, 51), (5, 52, 40), (6, 62, 52)]);
        let found = both.chain(gap, 40, 61).unwrap();
        assert_eq!(found, [(v(6), Arc::from([51])), (v(5), Arc::from([40]))]);
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

    #[test]
    fn of_a_giver_no_more_is_kept_than_can_be_missing_however_much_it_gives() {
        let held = |pool: &Copies| pool.copies.values().map(|copy| copy.bytes.len()).sum::<usize>();
        let mut pool = Copies::new(100);
        // Again and again another copy of the same entry.
        for crc in 0..1000 {
            pool.keep("liar", v(5), crc, 4, &[crc as u8; 60]).unwrap();
        }
        assert_eq!((pool.copies.len(), held(&pool)), (1, 60));
        // And of others, and longer ones.
        assert_eq!(pool.keep("liar", v(6), 1, 4, &[1; 41]), Err(TooMuch));
        assert_eq!(pool.keep("liar", v(5), 1, 4, &[1; 101]), Err(TooMuch));
        assert_eq!(held(&pool), 60);
        // Whoever else gives is not hindered by that.
        let gap = VlsnRange::new(v(5), v(6)).unwrap();
        for giver in ["one", "two"] {
            pool.keep(giver, v(5), 51, 40, &[5; 50]).unwrap();
            pool.keep(giver, v(6), 61, 51, &[6; 50]).unwrap();
        }
        let found = pool.chain(gap, 40, 61).unwrap();
        let shared = found.iter().all(|(_, bytes)| Arc::strong_count(bytes) == 3);
        assert!(shared, "equal copies are kept once");
    }
}
