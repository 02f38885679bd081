//! What clients were told, held against the log that came of it.
//!
//! The log is the order in which writes took effect, so it needs no search: every write that was told done stands in the
//! log at its version, every read saw what the log had made of the key at some moment while it ran, and nothing stands in
//! the log twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Put,
    Get,
    /// With the version expected; 0: none.
    Cas(u64),
}

/// What it was told. Version 0: the key was not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// The write is committed, as this version.
    Wrote(u64),
    /// The read saw this version, and this value.
    Read(u64, Vec<u8>),
    /// The key had this version, so nothing was written.
    Differs(u64),
    /// Nothing was done, and nothing will be.
    NotDone,
    /// It may have been done, or be done later.
    Unknown,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    pub key: Vec<u8>,
    /// What a write writes; no two write the same.
    pub value: Vec<u8>,
    pub call: Call,
    /// Since the load began.
    pub began: Duration,
    pub ended: Duration,
    pub told: Told,
}

/// A write as it stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Logged {
    pub vlsn: u64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// Of a conditional write; 0: none.
    pub expected: Option<u64>,
}

/// What a history held.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub writes: u64,
    pub reads: u64,
    /// Conditional writes that found another version.
    pub differed: u64,
    pub not_done: u64,
    pub unknown: u64,
    /// Of those, the ones that were done.
    pub unknown_done: u64,
}

/// What the log makes of each write.
struct Ledger<'a> {
    /// By version: whose value it is.
    written: HashMap<u64, &'a Logged>,
    /// By value: where it stands, and the version that the key had there, if it was not the one expected.
    judged: HashMap<&'a [u8], (u64, Option<u64>)>,
    flaws: Vec<String>,
}

impl<'a> Ledger<'a> {
    fn of(log: &'a [Logged]) -> Ledger<'a> {
        let mut ledger = Ledger { written: HashMap::new(), judged: HashMap::new(), flaws: Vec::new() };
        let mut now: HashMap<&[u8], u64> = HashMap::new();
        for entry in log {
            let found = now.get(&entry.key[..]).copied().unwrap_or(0);
            let differs = entry.expected.is_some_and(|expected| expected != found);
            let judged = (entry.vlsn, differs.then_some(found));
            if let Some((before, _)) = ledger.judged.insert(&entry.value, judged) {
                ledger
                    .flaws
                    .push(format!("one write stands in the log twice, at {before} and {}", entry.vlsn));
            }
            if !differs {
                now.insert(&entry.key, entry.vlsn);
                ledger.written.insert(entry.vlsn, entry);
            }
        }
        ledger
    }

    /// What is wrong with one answer, if anything is.
    fn look(&mut self, op: &Op, tally: &mut Tally) {
        let stands = self.judged.get(&op.value[..]).copied();
        let wrong = match (&op.told, stands) {
            (Told::Wrote(version), stands) => {
                tally.writes += 1;
                let done = stands == Some((*version, None));
                (!done).then(|| format!("version {version} was told committed, and the log says {stands:?}"))
            }
            (Told::Differs(found), stands) => {
                tally.differed += 1;
                let refused = stands.is_some_and(|(_, differs)| differs == Some(*found));
                (!refused).then(|| format!("version {found} was told to differ, and the log says {stands:?}"))
            }
            (Told::NotDone, stands) => {
                tally.not_done += 1;
                stands.map(|at| format!("it was told not done, and the log says {at:?}"))
            }
            (Told::Unknown, stands) => {
                tally.unknown += 1;
                tally.unknown_done += u64::from(stands.is_some_and(|(_, differs)| differs.is_none()));
                None
            }
            (Told::Read(0, _), _) => {
                tally.reads += 1;
                None
            }
            (Told::Read(version, value), _) => {
                tally.reads += 1;
                let written = self.written.get(version);
                let same = written.is_some_and(|entry| entry.key == op.key && entry.value == *value);
                (!same).then(|| format!("version {version} was read, and nobody wrote that there"))
            }
        };
        self.flaws.extend(wrong.map(|wrong| format!("{wrong}: {op:?}")));
    }
}

/// Looks whether the log explains what every client was told.
///
/// # Errors
/// What it does not explain.
pub fn check(ops: &[Op], log: &[Logged]) -> Result<Tally, Vec<String>> {
    let (mut ledger, mut tally) = (Ledger::of(log), Tally::default());
    let (mut versions, mut by_key) = (HashSet::new(), BTreeMap::<&[u8], Vec<(&Op, u64, bool)>>::new());
    for op in ops {
        ledger.look(op, &mut tally);
        let (version, wrote) = match op.told {
            Told::Wrote(version) => (version, true),
            Told::Read(version, _) => (version, false),
            _ => continue,
        };
        if wrote && !versions.insert(version) {
            ledger.flaws.push(format!("version {version} was told twice: {op:?}"));
        }
        by_key.entry(&op.key).or_default().push((op, version, wrote));
    }
    for mut seen in by_key.into_values() {
        in_order(&mut seen, &mut ledger.flaws);
    }
    if ledger.flaws.is_empty() { Ok(tally) } else { Err(ledger.flaws) }
}

/// Whoever began after another had ended saw no older version, and wrote a newer one.
fn in_order(seen: &mut [(&Op, u64, bool)], flaws: &mut Vec<String>) {
    let mut ends: Vec<(Duration, u64)> = seen.iter().map(|(op, version, _)| (op.ended, *version)).collect();
    ends.sort_unstable();
    seen.sort_by_key(|(op, ..)| op.began);
    let (mut newest, mut ended) = (0, ends.into_iter().peekable());
    for (op, version, wrote) in seen {
        while let Some((_, version)) = ended.next_if(|(end, _)| *end < op.began) {
            newest = newest.max(version);
        }
        if *version < newest || (*wrote && *version == newest) {
            flaws.push(format!("version {newest} was known before this began: {op:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(call: Call, value: &str, (began, ended): (u64, u64), told: Told) -> Op {
        let at = Duration::from_millis;
        Op { key: b"k".to_vec(), value: value.into(), call, began: at(began), ended: at(ended), told }
    }

    fn logged(vlsn: u64, value: &str, expected: Option<u64>) -> Logged {
        Logged { vlsn, key: b"k".to_vec(), value: value.into(), expected }
    }

    fn read(version: u64, value: &str) -> Told {
        Told::Read(version, value.into())
    }

    /// Two puts, a conditional write that is done, one that is not, and one whose answer was lost.
    fn log() -> Vec<Logged> {
        vec![
            logged(2, "a", None),
            logged(3, "b", Some(2)),
            logged(5, "c", Some(2)),
            logged(6, "d", None),
            logged(9, "e", None),
        ]
    }

    fn history() -> Vec<Op> {
        vec![
            op(Call::Get, "", (0, 1), read(0, "")),
            op(Call::Put, "a", (2, 4), Told::Wrote(2)),
            op(Call::Cas(2), "b", (5, 8), Told::Wrote(3)),
            op(Call::Get, "", (5, 9), read(2, "a")),
            op(Call::Cas(2), "c", (9, 10), Told::Differs(3)),
            op(Call::Put, "d", (11, 12), Told::Unknown),
            op(Call::Get, "", (12, 13), read(6, "d")),
            op(Call::Put, "x", (13, 14), Told::NotDone),
            op(Call::Put, "y", (13, 14), Told::Unknown),
            op(Call::Put, "e", (14, 15), Told::Wrote(9)),
        ]
    }

    #[test]
    fn a_history_that_the_log_explains_passes() {
        let tally = Tally { writes: 3, reads: 3, differed: 1, not_done: 1, unknown: 2, unknown_done: 1 };
        assert_eq!(check(&history(), &log()), Ok(tally));
    }

    #[test]
    fn every_lie_is_found() {
        type Lie = fn(&mut Vec<Op>, &mut Vec<Logged>);
        let lies: [(&str, Lie); 10] = [
            ("told committed", |_, log| drop(log.pop())),
            ("told committed", |ops, _| ops[1].told = Told::Wrote(3)),
            ("told twice", |ops, _| ops[9].told = Told::Wrote(2)),
            ("told committed", |_, log| log[1].expected = Some(1)),
            ("told to differ", |ops, _| ops[4].told = Told::Differs(2)),
            ("told to differ", |_, log| log[2].expected = Some(3)),
            ("told not done", |_, log| log.push(logged(10, "x", None))),
            ("twice", |_, log| log.push(logged(10, "d", None))),
            ("nobody wrote", |ops, _| ops[6].told = read(6, "a")),
            ("known before", |ops, _| ops[6].told = read(2, "a")),
        ];
        for (at, (found, lie)) in lies.iter().enumerate() {
            let (mut ops, mut log) = (history(), log());
            lie(&mut ops, &mut log);
            let flaws = check(&ops, &log).expect_err("the lie passes");
            assert!(flaws.iter().any(|flaw| flaw.contains(found)), "{at}: {flaws:?}");
        }
    }
}
