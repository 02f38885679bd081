//! The log knows where its membership entries and lists of slots stand, however they came in and whatever became of the log
//! since.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use common::{TestDisk, config, fill, names, open, payload, read_all, settle, t, v};
use quorate::clock::Wait;
use quorate::entry::{EntryKind, NewEntry, verify_run};
use quorate::ids::Vlsn;
use quorate::log::{AppendError, Log, LogScanner, ScanError};

/// Where the membership entries stand that [`mixed`] appends.
fn is_membership(vlsn: u64) -> bool {
    vlsn % 7 == 3 || vlsn == 1
}

fn expected(range: impl Iterator<Item = u64>) -> Vec<Vlsn> {
    range.filter(|vlsn| is_membership(*vlsn)).map(v).collect()
}

/// Where the lists of slots stand that [`mixed`] appends.
fn is_list(vlsn: u64) -> bool {
    vlsn % 11 == 5
}

fn lists(range: impl Iterator<Item = u64>) -> Vec<Vlsn> {
    range.filter(|vlsn| is_list(*vlsn) && !is_membership(*vlsn)).map(v).collect()
}

/// Both lists of what the log knows have to be as they should be.
#[track_caller]
fn knows(log: &Log, range: impl Iterator<Item = u64> + Clone) {
    assert_eq!(log.memberships(), expected(range.clone()));
    assert_eq!(log.slot_lists(), lists(range));
}

/// Appends entries up to `to`, a new term every 40.
fn mixed(log: &Log, to: u64) {
    while let next @ 1.. = Vlsn::after(log.last().map(|last| last.vlsn)).get() {
        if next > to {
            return;
        }
        let kind = match next {
            _ if is_membership(next) => EntryKind::MEMBERSHIP,
            _ if is_list(next) => EntryKind::SLOTS,
            _ => EntryKind::DATA,
        };
        let payload = payload(next);
        log.append(t(1 + (next / 40) as u32), &[NewEntry { kind, txn: None, payload: &payload }]).unwrap();
        let known = log.memberships();
        assert_eq!(known.last() == Some(&v(next)), is_membership(next), "known at once");
        assert_eq!(log.slot_lists().last() == Some(&v(next)), kind == EntryKind::SLOTS, "known at once");
    }
}

/// Opens the log again, after its process died or after it was closed.
fn reopened(log: Log, dir: &Path, cleanly: bool) -> Log {
    if cleanly {
        log.close().unwrap();
    } else {
        log.write_out().unwrap();
    }
    drop(log);
    open(dir).0
}

#[test]
fn they_are_known_right_after_an_append_and_after_opening_again() {
    for cleanly in [false, true] {
        for flushed in [0, 30, 200] {
            let dir = tempfile::tempdir().unwrap();
            let (log, _) = open(dir.path());
            assert_eq!(log.memberships(), []);
            mixed(&log, 200);
            knows(&log, 1..=200);
            if flushed > 0 {
                log.flush(v(flushed), Wait::Now).unwrap();
                settle(&mut log.flusher());
            }
            let log = reopened(log, dir.path(), cleanly);
            knows(&log, 1..=200);
            // Now most of them are known from the sidecars.
            let log = reopened(log, dir.path(), true);
            knows(&log, 1..=200);
            mixed(&log, 230);
            knows(&log, 1..=230);
        }
    }
}

#[test]
fn one_that_is_too_long_to_be_staged_is_known_too() {
    let dir = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = config(dir.path());
        config.max_payload = 200_000;
        config
    };
    let disk = TestDisk::default();
    let (log, _) = disk.open_log(config()).unwrap();
    let long = vec![7; 100_000];
    let entry = |kind| NewEntry { kind, txn: None, payload: &long };
    log.append(t(1), &[entry(EntryKind::DATA), entry(EntryKind::MEMBERSHIP), entry(EntryKind::DATA)])
        .unwrap();
    log.append(t(1), &[entry(EntryKind::MEMBERSHIP)]).unwrap();
    assert_eq!(log.memberships(), [v(2), v(4)]);
    assert_eq!(log.slot_lists(), []);
    assert_eq!(log.payload(v(4)).unwrap(), long);
    // One that is refused is none.
    disk.0.fail_write.store(true, Ordering::SeqCst);
    disk.0.fail_create.store(true, Ordering::SeqCst);
    let refused = log.append(t(1), &[entry(EntryKind::MEMBERSHIP), entry(EntryKind::MEMBERSHIP)]);
    disk.0.fail_write.store(false, Ordering::SeqCst);
    disk.0.fail_create.store(false, Ordering::SeqCst);
    let known = if refused.is_ok() { vec![v(2), v(4), v(5), v(6)] } else { vec![v(2), v(4)] };
    assert_eq!(log.memberships(), known);
}

#[test]
fn they_are_known_after_a_run_of_any_length() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (master, _) = open(from.path());
    mixed(&master, 300);
    for most in [1, 2, 5, 13, 64, 300] {
        fs::remove_dir_all(to.path()).unwrap();
        let mut config = config(to.path());
        config.segment_bytes = 4096 + u64::from(most) * 16;
        let (replica, _) = common::try_open(config).unwrap();
        let mut scanner = master.scanner();
        let mut after = None;
        loop {
            let bytes = {
                let Some(run) =
                    scanner.run(after.map(|last: quorate::Position| last.vlsn), most, 1 << 20).unwrap()
                else {
                    break;
                };
                run.slices().concat()
            };
            let summary = verify_run(&bytes, after).unwrap();
            let range = summary.range.first().get()..=summary.range.last().get();
            assert_eq!(summary.memberships, range.clone().any(is_membership), "{range:?}");
            assert_eq!(summary.slots, !lists(range.clone()).is_empty(), "{range:?}");
            replica.append_run(&bytes, &summary).unwrap();
            knows(&replica, 1..=summary.last.vlsn.get());
            after = Some(summary.last);
        }
        assert_eq!(replica.term_history(), master.term_history());
        let replica = reopened(replica, to.path(), most % 2 == 0);
        knows(&replica, 1..=300);
    }
}

#[test]
fn a_run_that_could_not_be_written_leaves_none() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (master, _) = open(from.path());
    mixed(&master, 10);
    let mut scanner = master.scanner();
    let bytes = scanner.run(None, 10, 1 << 20).unwrap().unwrap().slices().concat();
    let summary = verify_run(&bytes, None).unwrap();
    let disk = TestDisk::default();
    let (replica, _) = disk.open_log(config(to.path())).unwrap();
    disk.0.fail_write.store(true, Ordering::SeqCst);
    assert!(matches!(replica.append_run(&bytes, &summary), Err(AppendError::Io(_))));
    assert_eq!((replica.memberships(), replica.term_history()), (vec![], vec![]));
    disk.0.fail_write.store(false, Ordering::SeqCst);
    replica.append_run(&bytes, &summary).unwrap();
    knows(&replica, 1..=10);
}

#[test]
fn a_cut_at_every_vlsn_takes_those_behind_it() {
    for keep in 0..=60 {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        mixed(&log, 60);
        if keep % 2 == 0 {
            log.flush(v(60), Wait::Now).unwrap();
            settle(&mut log.flusher());
        }
        log.truncate_after(Vlsn::new(keep)).unwrap();
        knows(&log, 1..=keep);
        let log = reopened(log, dir.path(), keep % 3 == 0);
        knows(&log, 1..=keep);
        fill(&log, 9, 20);
        knows(&log, 1..=keep);
        let log = reopened(log, dir.path(), true);
        knows(&log, 1..=keep);
    }
}

#[test]
fn those_that_are_pruned_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    mixed(&log, 300);
    log.flush(v(300), Wait::Now).unwrap();
    settle(&mut log.flusher());
    for floor in [20, 100, 101, 250] {
        let oldest = log.prune(v(floor)).unwrap().oldest.unwrap().get();
        knows(&log, oldest..=300);
    }
    let oldest = log.oldest().unwrap().get();
    assert!(oldest > 150);
    let log = reopened(log, dir.path(), true);
    knows(&log, oldest..=300);
}

#[test]
fn a_sidecar_that_was_lost_is_made_again_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    mixed(&log, 200);
    log.close().unwrap();
    drop(log);
    let sidecars = names(dir.path(), ".idx");
    let read =
        || -> Vec<Vec<u8>> { sidecars.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect() };
    let before = read();
    assert!(before.len() > 2);
    for (turn, name) in sidecars.iter().enumerate() {
        if turn % 2 == 0 {
            fs::remove_file(dir.path().join(name)).unwrap();
        } else {
            fs::write(dir.path().join(name), b"garbage").unwrap();
        }
    }
    let (log, _) = open(dir.path());
    knows(&log, 1..=200);
    assert_eq!(read_all(&log).unwrap().len(), 200);
    assert_eq!(read(), before);
}

#[test]
fn the_payload_of_any_entry_is_read_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    mixed(&log, 200);
    for vlsn in (1..=200).rev() {
        assert_eq!(log.payload(v(vlsn)).unwrap(), payload(vlsn));
    }
    assert!(matches!(log.payload(v(201)), Err(ScanError::Beyond { .. })));
    log.flush(v(200), Wait::Now).unwrap();
    settle(&mut log.flusher());
    let pruned = log.prune(v(100)).unwrap().oldest.unwrap();
    assert!(matches!(log.payload(pruned.previous().unwrap()), Err(ScanError::Pruned { .. })));
    assert!(log.position_at(pruned.previous().unwrap()).is_ok(), "the base is known, its payload is gone");
    assert_eq!(log.payload(pruned).unwrap(), payload(pruned.get()));
    let log = reopened(log, dir.path(), true);
    for vlsn in pruned.get()..=200 {
        assert_eq!(log.payload(v(vlsn)).unwrap(), payload(vlsn));
    }
    drop(log);
    let path = dir.path().join(&names(dir.path(), ".seg")[0]);
    let mut bytes = fs::read(&path).unwrap();
    // The last byte of the first entry.
    let header = quorate::entry::Header::parse(&bytes[quorate::log::SEGMENT_HEADER_LEN..]).unwrap();
    bytes[quorate::log::SEGMENT_HEADER_LEN + header.entry_len() - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (log, _) = open(dir.path());
    assert!(matches!(log.payload(header.vlsn.unwrap()), Err(ScanError::Damaged { .. })));
}
