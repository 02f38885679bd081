//! A history of what clients asked of a store of keys, and the judge of whether it is linearizable.
//!
//! Every write that takes effect makes a version: the VLSN of its entry. A deleted key keeps the version of its deletion,
//! and version 0 is a key never written; so a read names the write that it saw. That turns the search for an order of all
//! operations, which is exponential, into a sort: the versions are the order, and it remains to be checked that what was
//! read is what was written, that each compare-and-set stood right behind what it expected, and that nobody who began
//! after another had ended came before it.
//!
//! An operation with an unknown outcome may take effect at any time after it began, or never. Values are written once.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Put {
        value: u64,
    },
    Get,
    /// Writes if the key's version is the expected one.
    Cas {
        expected: u64,
        value: u64,
    },
    Delete,
}

/// A key as a client saw it: the version of its last write, 0 if there is none, and the value, unless that was a deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub version: u64,
    pub value: Option<u64>,
}

/// What a client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The write took effect, and made this version.
    Wrote(u64),
    /// What the read saw.
    Read(Seen),
    /// A compare-and-set found another version, and changed nothing.
    Mismatch(Seen),
    /// Nothing was written, and nothing will be.
    Failed,
    /// It may take effect at any time, or never; if it does, then as this version, where that is known.
    Unknown { at: Option<u64> },
}

/// One operation. `ended` is later than everything while there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    pub client: usize,
    pub key: u64,
    pub call: Call,
    pub began: u64,
    pub ended: u64,
    pub outcome: Outcome,
}

const NEVER: u64 = u64::MAX;

/// Everything that clients asked and were told.
#[derive(Clone, Default, Debug)]
pub struct History {
    pub ops: Vec<Op>,
}

/// Why a history is not linearizable. Numbers are places in [`History::ops`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Two writes made one version.
    TwoWrites { version: u64, one: usize, other: usize },
    /// What was read at a version is not what was written there.
    OtherValue { version: u64, reader: usize, writer: usize },
    /// A value was read that no client wrote to that key, or a deletion that none asked for.
    NobodyWrote { reader: usize },
    /// A write was seen that had certainly failed.
    FailedSeen { reader: usize, writer: usize },
    /// A write was seen as another version than the one that it made.
    Moved { reader: usize, writer: usize },
    /// A compare-and-set took effect although another version stood between.
    CasOnStale { cas: usize, expected: u64, before: u64 },
    /// A compare-and-set was refused although it found what it expected.
    CasRefused { cas: usize },
    /// A read ended before the write that it saw began.
    FromTheFuture { reader: usize, writer: usize },
    /// One saw, or made, an older version than another that had ended before it began.
    Stale { late: usize, ended_before: usize },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a linearizable history held.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub reads: u64,
    pub writes: u64,
    /// Compare-and-sets that found another version.
    pub mismatches: u64,
    pub failed: u64,
    /// Writes of unknown outcome that somebody saw.
    pub unknown_seen: u64,
    /// Those that nobody saw.
    pub unknown_unseen: u64,
}

impl Tally {
    pub fn add(&mut self, other: Tally) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.mismatches += other.mismatches;
        self.failed += other.failed;
        self.unknown_seen += other.unknown_seen;
        self.unknown_unseen += other.unknown_unseen;
    }
}

impl History {
    /// An operation begins. Until it ends its outcome is unknown. Says its number.
    pub fn begin(&mut self, client: usize, key: u64, call: Call, now: u64) -> usize {
        self.ops.push(Op {
            client,
            key,
            call,
            began: now,
            ended: NEVER,
            outcome: Outcome::Unknown { at: None },
        });
        self.ops.len() - 1
    }

    /// It ends. One of unknown outcome goes on for ever, as far as its effect is concerned.
    pub fn end(&mut self, number: usize, outcome: Outcome, now: u64) {
        let op = &mut self.ops[number];
        op.outcome = outcome;
        op.ended = if matches!(outcome, Outcome::Unknown { .. }) { NEVER } else { now };
    }

    /// Whether an order of all operations exists that explains what every client was told.
    pub fn check(&self) -> Result<Tally, Flaw> {
        let mut keys: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, op) in self.ops.iter().enumerate() {
            keys.entry(op.key).or_default().push(number);
        }
        let mut tally = Tally::default();
        let mut all: BTreeMap<u64, usize> = BTreeMap::new();
        for numbers in keys.values() {
            let key = Key::of(&self.ops, numbers)?;
            key.check_order()?;
            for (&version, &writer) in &key.made {
                // A version is a place in one log: no two keys share one.
                if let Some(one) = all.insert(version, writer) {
                    return Err(Flaw::TwoWrites { version, one, other: writer });
                }
            }
            tally.add(key.tally());
        }
        // Whole histories have one order, too: that of the log. Which deletion of unknown outcome made which version is a
        // guess, and proves nothing here.
        let known =
            |writer: &usize| self.ops[*writer].call != Call::Delete || self.ops[*writer].ended != NEVER;
        let writers = all.values().copied().filter(known);
        order_holds(&self.ops, writers.map(|writer| (Some(writer), &[][..])))?;
        Ok(tally)
    }
}

/// The operations on one key, sorted out.
struct Key<'a> {
    ops: &'a [Op],
    numbers: &'a [usize],
    /// Who made each version.
    made: BTreeMap<u64, usize>,
    /// All who made one.
    makers: BTreeSet<usize>,
    /// Who saw each version.
    seen: BTreeMap<u64, Vec<usize>>,
}

impl<'a> Key<'a> {
    fn of(ops: &'a [Op], numbers: &'a [usize]) -> Result<Key<'a>, Flaw> {
        let mut key =
            Key { ops, numbers, made: BTreeMap::new(), makers: BTreeSet::new(), seen: BTreeMap::new() };
        let mut writers = BTreeMap::new();
        for &number in numbers {
            let op = &ops[number];
            assert!(op.began <= op.ended, "ended before it began: {op:?}");
            if let Call::Put { value } | Call::Cas { value, .. } = op.call {
                assert_eq!(writers.insert(value, number), None, "a value is written once: {op:?}");
            }
            match (op.call, op.outcome) {
                (Call::Put { .. } | Call::Cas { .. } | Call::Delete, Outcome::Wrote(version)) => {
                    assert_ne!(version, 0, "no write makes version 0: {op:?}");
                    if let Some(one) = key.made.insert(version, number) {
                        return Err(Flaw::TwoWrites { version, one, other: number });
                    }
                }
                (Call::Get, Outcome::Read(seen)) => key.seen.entry(seen.version).or_default().push(number),
                (Call::Cas { expected, .. }, Outcome::Mismatch(seen)) => {
                    if seen.version == expected {
                        return Err(Flaw::CasRefused { cas: number });
                    }
                    key.seen.entry(seen.version).or_default().push(number);
                }
                (_, Outcome::Failed | Outcome::Unknown { .. }) => {}
                _ => panic!("no answer to such a call: {op:?}"),
            }
        }
        key.makers = key.made.values().copied().collect();
        key.find_writers(&writers)?;
        Ok(key)
    }

    fn sight(&self, reader: usize) -> Seen {
        match self.ops[reader].outcome {
            Outcome::Read(seen) | Outcome::Mismatch(seen) => seen,
            _ => unreachable!("only who saw something is asked"),
        }
    }

    /// Finds who made each version that was seen, among the writes of unknown outcome if nobody says that he did.
    fn find_writers(&mut self, writers: &BTreeMap<u64, usize>) -> Result<(), Flaw> {
        let readers: Vec<usize> = self.seen.values().flatten().copied().collect();
        // Values first: they name their writer. Deletions of unknown outcome all look alike.
        for &reader in &readers {
            let Seen { version, value } = self.sight(reader);
            let Some(value) = value else { continue };
            let Some(&writer) = writers.get(&value) else { return Err(Flaw::NobodyWrote { reader }) };
            let by_himself = match self.ops[writer].outcome {
                Outcome::Wrote(own) => own == version,
                Outcome::Unknown { at } => at.is_none_or(|at| at == version),
                Outcome::Failed | Outcome::Mismatch(_) => return Err(Flaw::FailedSeen { reader, writer }),
                Outcome::Read(_) => unreachable!("a writer reads nothing"),
            };
            match self.made.get(&version) {
                Some(&other) if other != writer => {
                    return Err(Flaw::OtherValue { version, reader, writer: other });
                }
                _ if !by_himself || version == 0 => return Err(Flaw::Moved { reader, writer }),
                Some(_) => {}
                None if self.makers.contains(&writer) => return Err(Flaw::Moved { reader, writer }),
                None => {
                    self.made.insert(version, writer);
                    self.makers.insert(writer);
                }
            }
        }
        let mut orphans: BTreeMap<u64, usize> = BTreeMap::new();
        for &reader in &readers {
            let Seen { version, value } = self.sight(reader);
            if value.is_some() || version == 0 {
                continue;
            }
            match self.made.get(&version) {
                Some(&writer) if self.ops[writer].call != Call::Delete => {
                    return Err(Flaw::OtherValue { version, reader, writer });
                }
                Some(_) => {}
                None => drop(orphans.insert(version, reader)),
            }
        }
        self.find_deletions(orphans)
    }

    /// Deals the deletions of unknown outcome out to the versions that were seen to be one. A version can have been made
    /// by whoever began before the first end of all that stand at it or behind it; these times rise with the versions, so
    /// who began first serves the first best.
    fn find_deletions(&mut self, orphans: BTreeMap<u64, usize>) -> Result<(), Flaw> {
        let mut bound = NEVER;
        let mut wanted = Vec::new();
        let mut versions: Vec<u64> = self.made.keys().chain(self.seen.keys()).copied().collect();
        versions.sort_unstable();
        versions.dedup();
        for version in versions.into_iter().rev() {
            for number in
                self.made.get(&version).into_iter().chain(self.seen.get(&version).into_iter().flatten())
            {
                bound = bound.min(self.ops[*number].ended);
            }
            if let Some(&reader) = orphans.get(&version) {
                wanted.push((version, reader, bound));
            }
        }
        wanted.reverse();
        let mut bound_to_one: BTreeMap<u64, usize> = BTreeMap::new();
        let mut free = Vec::new();
        for &number in self.numbers {
            let op = &self.ops[number];
            match (op.call, op.outcome) {
                (Call::Delete, Outcome::Unknown { at: None }) => free.push(number),
                (Call::Delete, Outcome::Unknown { at: Some(at) }) => {
                    let first = bound_to_one.entry(at).or_insert(number);
                    if op.began < self.ops[*first].began {
                        *first = number;
                    }
                }
                _ => {}
            }
        }
        free.sort_by_key(|number| self.ops[*number].began);
        let mut free = free.into_iter();
        for (version, reader, bound) in wanted {
            let own = bound_to_one.get(&version).copied().filter(|own| self.ops[*own].began <= bound);
            let writer = own.or_else(|| free.next()).ok_or(Flaw::NobodyWrote { reader })?;
            if self.ops[writer].began > bound {
                return Err(Flaw::FromTheFuture { reader, writer });
            }
            self.made.insert(version, writer);
            self.makers.insert(writer);
        }
        Ok(())
    }

    fn check_order(&self) -> Result<(), Flaw> {
        let mut before = 0;
        for (&version, &writer) in &self.made {
            if let Call::Cas { expected, .. } = self.ops[writer].call
                && expected != before
            {
                return Err(Flaw::CasOnStale { cas: writer, expected, before });
            }
            before = version;
        }
        for (version, readers) in &self.seen {
            let Some(&writer) = self.made.get(version) else { continue };
            if let Some(&reader) = readers.iter().find(|r| self.ops[**r].ended < self.ops[writer].began) {
                return Err(Flaw::FromTheFuture { reader, writer });
            }
        }
        let unwritten = self.seen.get(&0).map(|readers| (None, &readers[..]));
        let versions = self.made.iter().map(|(version, writer)| {
            (Some(*writer), self.seen.get(version).map_or(&[][..], |readers| &readers[..]))
        });
        order_holds(self.ops, unwritten.into_iter().chain(versions))
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for &number in self.numbers {
            let op = &self.ops[number];
            match op.outcome {
                Outcome::Wrote(_) => tally.writes += 1,
                Outcome::Read(_) => tally.reads += 1,
                Outcome::Mismatch(_) => tally.mismatches += 1,
                Outcome::Failed => tally.failed += 1,
                Outcome::Unknown { .. } if op.call == Call::Get => {}
                Outcome::Unknown { .. } if self.makers.contains(&number) => tally.unknown_seen += 1,
                Outcome::Unknown { .. } => tally.unknown_unseen += 1,
            }
        }
        tally
    }
}

/// Whether nobody of one version began after somebody of a later one had ended. Versions come in their order, each as who
/// made it and who saw it.
fn order_holds<'a>(
    ops: &[Op],
    versions: impl Iterator<Item = (Option<usize>, &'a [usize])>,
) -> Result<(), Flaw> {
    // Who began last, of all versions so far.
    let mut latest: Option<usize> = None;
    for (writer, readers) in versions {
        for number in writer.into_iter().chain(readers.iter().copied()) {
            if let Some(late) = latest
                && ops[number].ended < ops[late].began
            {
                return Err(Flaw::Stale { late, ended_before: number });
            }
        }
        let of_this = writer.into_iter().chain(readers.iter().copied());
        latest = latest.into_iter().chain(of_this).max_by_key(|number| ops[*number].began);
    }
    Ok(())
}
