//! What the store promises, on logs made by hand.

use super::*;
use quorate::entry::{NewEntry, Placement, encode};
use quorate::ids::{Term, VlsnRange};

/// A log of `count` entries: puts over a few keys, every seventh a delete, every tenth of a kind that is not ours.
fn log(count: u64) -> Vec<Vec<u8>> {
    let mut prev = 0;
    (1..=count)
        .map(|vlsn| {
            let (key, value) = (format!("key-{}", vlsn % 13), vec![vlsn as u8; vlsn as usize % 300]);
            let mut payload = Vec::new();
            match vlsn % 7 {
                0 => Record::Delete { key: key.as_bytes() }.encode(&mut payload),
                // Some of them find what they expect: a key that an earlier round wrote, or deleted.
                1 => Record::Cas {
                    key: key.as_bytes(),
                    expected: Vlsn::new(vlsn.saturating_sub(13)),
                    value: &value,
                }
                .encode(&mut payload),
                _ => Record::Put { key: key.as_bytes(), value: &value }.encode(&mut payload),
            }
            let kind = if vlsn % 10 == 0 { EntryKind::TERM_START } else { EntryKind::DATA };
            let entry = NewEntry { kind, txn: None, payload: &payload };
            let at = Placement { vlsn: Vlsn::new(vlsn), term: Term::new(1), prev, timestamp: vlsn };
            let mut bytes = Vec::new();
            prev = encode(&entry, &at, &mut bytes);
            bytes
        })
        .collect()
}

/// Applies the entries after `from` up to `to`, `batch` at a time.
fn apply(kv: &mut Kv, log: &[Vec<u8>], from: usize, to: usize, batch: usize) -> Result<(), EngineError> {
    for (at, chunk) in log[from..to].chunks(batch).enumerate() {
        let first = (from + at * batch + 1) as u64;
        let last = first + chunk.len() as u64 - 1;
        let range = VlsnRange::new(Vlsn::new(first).unwrap(), Vlsn::new(last).unwrap()).unwrap();
        let slices: Vec<&[u8]> = chunk.iter().map(Vec::as_slice).collect();
        kv.apply(Entries::new(range, &slices))?;
    }
    Ok(())
}

fn store_after(log: &[Vec<u8>], to: usize) -> Contents {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = Kv::open(&dir.path().join("kv.redb")).unwrap();
    apply(&mut kv, log, 0, to, to.max(1)).unwrap();
    kv.reader().contents().unwrap()
}

#[test]
fn records_round_trip_and_bad_ones_are_refused() {
    for record in [
        Record::Put { key: b"k", value: b"v" },
        Record::Put { key: b"", value: b"" },
        Record::Delete { key: b"gone" },
        Record::Cas { key: b"k", expected: Vlsn::new(9), value: b"v" },
        Record::Cas { key: b"", expected: None, value: b"" },
    ] {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes), Ok(record));
    }
    assert_eq!(Record::decode(&[1, 0, 0]), Err(BadRecord::Short { present: 3, needed: 5 }));
    assert_eq!(Record::decode(&[1, 9, 0, 0, 0]), Err(BadRecord::Short { present: 5, needed: 14 }));
    assert_eq!(Record::decode(&[7, 0, 0, 0, 0]), Err(BadRecord::Operation(7)));
    assert_eq!(Record::decode(&[2, 0, 0, 0, 0, 1]), Err(BadRecord::ValueOfDelete(1)));
    assert_eq!(Record::decode(&[3, 0, 0, 0, 0, 1]), Err(BadRecord::Short { present: 6, needed: 13 }));
}

#[test]
fn a_closed_store_reopens_where_it_was() {
    let (dir, log) = (tempfile::tempdir().unwrap(), log(100));
    let path = dir.path().join("kv.redb");
    let mut kv = Kv::open(&path).unwrap();
    assert_eq!(kv.applied().unwrap(), None);
    apply(&mut kv, &log, 0, 100, 9).unwrap();
    assert_eq!(kv.checkpoint().unwrap(), Vlsn::new(100));
    let before = kv.reader().contents().unwrap();
    assert_eq!(kv.reader().value(b"key-8").unwrap(), Some((Vlsn::new(99).unwrap(), vec![99; 99])));
    drop(kv);
    let mut kv = Kv::open(&path).unwrap();
    assert_eq!(kv.applied().unwrap(), Vlsn::new(100));
    assert_eq!(kv.reader().contents().unwrap(), before);
    assert_eq!(before, store_after(&log, 100), "batches leave no trace");
}

/// A copy of the open file is what the death of the process leaves: redb's own buffers are not in it.
#[test]
fn a_crash_anywhere_leaves_an_exact_entry_and_replay_ends_the_same() {
    let (dir, log) = (tempfile::tempdir().unwrap(), log(60));
    let path = dir.path().join("kv.redb");
    let mut kv = Kv::open(&path).unwrap();
    for applied in 0..60 {
        apply(&mut kv, &log, applied, applied + 1, 1).unwrap();
        if applied == 29 {
            kv.checkpoint().unwrap();
        }
        if applied % 6 != 0 {
            continue;
        }
        let copy = dir.path().join(format!("crashed-{applied}.redb"));
        std::fs::copy(&path, &copy).unwrap();
        let mut found = Kv::open(&copy).unwrap();
        let at = number(found.applied().unwrap()) as usize;
        assert!(at <= applied + 1 && (applied < 29 || at >= 30), "{at} after {applied}");
        assert_eq!(found.reader().contents().unwrap(), store_after(&log, at));
        apply(&mut found, &log, at, 60, 7).unwrap();
        assert_eq!(found.reader().contents().unwrap(), store_after(&log, 60));
    }
}

#[test]
fn an_entry_out_of_order_or_without_a_record_changes_nothing() {
    let (dir, log) = (tempfile::tempdir().unwrap(), log(20));
    let mut kv = Kv::open(&dir.path().join("kv.redb")).unwrap();
    apply(&mut kv, &log, 0, 5, 5).unwrap();
    let before = kv.reader().contents().unwrap();
    let hole = apply(&mut kv, &log, 6, 8, 2).unwrap_err();
    assert_eq!(hole.to_string(), "VLSN 7 comes where the store expects VLSN 6");

    let mut bad = log[5].clone();
    let at = Placement { vlsn: Vlsn::new(7), term: Term::new(1), prev: 0, timestamp: 0 };
    encode(&NewEntry::data(b"\x07\0\0\0\0"), &at, &mut bad);
    let range = VlsnRange::new(Vlsn::new(6).unwrap(), Vlsn::new(7).unwrap()).unwrap();
    let refused = kv.apply(Entries::new(range, &[&bad])).unwrap_err();
    assert_eq!(refused.to_string(), "VLSN 7 holds no record: the record has the unknown operation 7");
    assert_eq!(kv.reader().contents().unwrap(), before);
}

/// A log of these records, and nothing else.
fn log_of(records: &[Record<'_>]) -> Vec<Vec<u8>> {
    let mut prev = 0;
    (1..)
        .zip(records)
        .map(|(vlsn, record)| {
            let (mut payload, mut bytes) = (Vec::new(), Vec::new());
            record.encode(&mut payload);
            let at = Placement { vlsn: Vlsn::new(vlsn), term: Term::new(1), prev, timestamp: vlsn };
            prev = encode(&NewEntry::data(&payload), &at, &mut bytes);
            bytes
        })
        .collect()
}

#[test]
fn a_conditional_write_is_decided_by_its_place_in_the_log_however_it_is_applied() {
    let cas = |expected, value| Record::Cas { key: b"k", expected: Vlsn::new(expected), value };
    let records = [
        cas(0, b"made"),
        cas(0, b"late"),
        cas(1, b"second"),
        cas(1, b"stale"),
        Record::Delete { key: b"k" },
        cas(3, b"gone"),
        cas(0, b"again"),
        Record::Put { key: b"k", value: b"put" },
        cas(8, b"last"),
    ];
    let differs = |found| Some(Verdict::Differs { found: Vlsn::new(found) });
    let verdicts = [
        Some(Verdict::Done),
        differs(1),
        Some(Verdict::Done),
        differs(3),
        None,
        differs(0),
        Some(Verdict::Done),
        None,
        Some(Verdict::Done),
    ];
    let log = log_of(&records);
    let mut all = Vec::new();
    for batch in [1, 2, 4, 9] {
        let dir = tempfile::tempdir().unwrap();
        let mut kv = Kv::open(&dir.path().join("kv.redb")).unwrap();
        apply(&mut kv, &log, 0, log.len(), batch).unwrap();
        let reader = kv.reader();
        for (at, expected) in (1..).zip(verdicts) {
            assert_eq!(reader.verdict(Vlsn::new(at).unwrap()), expected, "VLSN {at}");
        }
        assert_eq!(reader.verdict(Vlsn::new(10).unwrap()), None);
        assert_eq!(reader.value(b"k").unwrap(), Some((Vlsn::new(9).unwrap(), b"last".to_vec())));
        all.push(reader.contents().unwrap());
    }
    assert!(all.iter().all(|contents| *contents == all[0] && contents.versions != 0));
}

#[test]
fn only_the_latest_verdicts_are_kept() {
    let verdicts = Verdicts::default();
    let vlsn = |at| Vlsn::new(at).unwrap();
    let most = MAX_VERDICTS as u64;
    for from in (1..3 * most).step_by(1000) {
        verdicts.add((from..from + 1000).map(|at| (vlsn(at), Verdict::Done)).collect());
        assert!(verdicts.0.lock().len() <= MAX_VERDICTS);
    }
    let last = number(verdicts.0.lock().back().map(|(at, _)| *at));
    assert_eq!(verdicts.on(vlsn(last)), Some(Verdict::Done));
    assert_eq!(verdicts.on(vlsn(last - most + 1)), Some(Verdict::Done));
    assert_eq!(verdicts.on(vlsn(last - most)), None);
}

/// A snapshot that was carried to another node.
struct Carried(Vec<quorate::engine::Item>, Vec<u8>, Vlsn);

impl Items for Carried {
    fn at(&self) -> Vlsn {
        self.2
    }
    fn list(&self) -> &[quorate::engine::Item] {
        &self.0
    }
    fn open(&self, _at: usize) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        Ok(Box::new(&self.1[..]))
    }
}

/// Reads a snapshot in pieces of this many bytes.
fn carry(kv: &mut Kv, piece: usize) -> Carried {
    let mut snapshot = kv.snapshot().unwrap().unwrap();
    let mut item = snapshot.next_item().unwrap().unwrap();
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        let read = snapshot.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
    }
    assert_eq!(item.len, Some(bytes.len() as u64), "what is said beforehand");
    assert!(snapshot.next_item().unwrap().is_none());
    item.len = Some(bytes.len() as u64);
    Carried(vec![item], bytes, snapshot.at())
}

#[test]
fn a_store_that_was_not_made_to_its_end_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("kv.new"), b"redb?").unwrap();
    let mut kv = Kv::open(&dir.path().join("kv.redb")).unwrap();
    assert_eq!(kv.applied().unwrap(), None);
    assert!(!dir.path().join("kv.new").exists());
}

#[test]
fn a_snapshot_is_of_one_entry_and_installs_to_the_same_store_again_and_again() {
    let (dir, log) = (tempfile::tempdir().unwrap(), log(100));
    let mut kv = Kv::open(&dir.path().join("a.redb")).unwrap();
    assert!(kv.snapshot().unwrap().is_none(), "nothing was applied");
    apply(&mut kv, &log, 0, 60, 7).unwrap();
    let early = kv.snapshot().unwrap().unwrap();
    let mut carried = carry(&mut kv, 10);
    apply(&mut kv, &log, 60, 100, 7).unwrap();
    assert_eq!((early.at().get(), carried.2.get()), (60, 60));
    let path = dir.path().join("b.redb");
    let mut other = Kv::open(&path).unwrap();
    // A store of another past.
    apply(&mut other, &log, 0, 33, 5).unwrap();
    for _ in 0..2 {
        other.install(&mut carried).unwrap();
        assert_eq!(other.reader().contents().unwrap(), store_after(&log, 60));
    }
    drop(other);
    let mut other = Kv::open(&path).unwrap();
    assert_eq!(other.applied().unwrap(), Vlsn::new(60));
    apply(&mut other, &log, 60, 100, 9).unwrap();
    assert_eq!(other.reader().contents().unwrap(), kv.reader().contents().unwrap());
    // One that is cut is refused, and changes nothing.
    for len in [0, 3, 50, carried.1.len() - 1] {
        let bytes = carried.1[..len].to_vec();
        let mut cut = Carried(carried.0.clone(), bytes, carried.2);
        assert!(other.install(&mut cut).is_err(), "{len}");
    }
    assert_eq!(other.reader().contents().unwrap(), kv.reader().contents().unwrap());
}
