//! Group flush, failing disks, and waiting.

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{TestDisk, config, fill, open, payload, read_all, settle, t, v};
use proptest::prelude::*;
use quorate::clock::{Wait, deadline_in};
use quorate::entry::NewEntry;
use quorate::ids::Vlsn;
use quorate::log::{AppendError, FlushError, LogScanner, ScanError};
use quorate::worker::Worker;

#[test]
fn many_committers_share_few_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    let mut config = config(dir.path());
    config.segment_bytes = 1 << 20;
    let (log, _) = disk.open_log(config).unwrap();
    let before = disk.0.syncs.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let appended = log.append(t(1), &[NewEntry::data(b"commit")]).unwrap();
                    while !log.flush(appended.last.vlsn, Wait::Forever).unwrap() {}
                    assert!(log.life().flushed.get() >= appended.last.vlsn.get());
                }
            });
        }
    });
    let syncs = disk.0.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs < 320, "{syncs} syncs for 320 commits");
    assert_eq!(log.life().flushed.get(), 320);
}

#[test]
fn a_failed_sync_poisons_and_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    let (log, _) = disk.open_log(config(dir.path())).unwrap();
    fill(&log, 1, 3);
    log.flush(v(3), Wait::Now).unwrap();
    fill(&log, 1, 3);
    disk.0.fail_sync.store(true, Ordering::SeqCst);
    let mut flusher = log.flusher();
    assert!(matches!(log.flush(v(6), Wait::Now), Err(FlushError::Sync(_))));
    disk.0.fail_sync.store(false, Ordering::SeqCst);
    let syncs = disk.0.syncs.load(Ordering::SeqCst);
    assert!(log.poisoned());
    assert!(matches!(log.flush(v(6), Wait::Now), Err(FlushError::Poisoned)));
    assert!(matches!(log.append(t(1), &[NewEntry::data(b"x")]), Err(AppendError::Poisoned)));
    assert!(matches!(log.scanner().run(None, 1, 1), Err(ScanError::Poisoned)));
    assert!(flusher.step(Wait::Now).is_err());
    assert!(log.close().is_err());
    assert_eq!(disk.0.syncs.load(Ordering::SeqCst), syncs);
    assert_eq!(log.life().flushed.get(), 3);
    assert_eq!(read_all(&open(dir.path()).0).unwrap().len(), 6);
}

#[test]
fn a_full_disk_refuses_appends_and_loses_nothing_that_was_accepted() {
    for write in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let disk = TestDisk::default();
        let (log, _) = disk.open_log(config(dir.path())).unwrap();
        let switch = if write { &disk.0.fail_write } else { &disk.0.fail_create };
        fill(&log, 1, 10);
        log.write_out().unwrap();
        switch.store(true, Ordering::SeqCst);
        let mut accepted = 10;
        while log.append(t(1), &[NewEntry::data(&payload(accepted + 1))]).is_ok() {
            accepted += 1;
            assert_eq!(log.last().unwrap().vlsn, v(accepted));
        }
        let error = log.append(t(1), &[NewEntry::data(b"x")]).unwrap_err();
        assert!(matches!(error, AppendError::Io(_)), "{error}");
        assert_eq!(log.last().unwrap().vlsn, v(accepted));
        assert!(matches!(log.flush(v(accepted), Wait::Now), Err(FlushError::Write(_))));
        assert!(read_all(&log).unwrap().len() >= 10);
        switch.store(false, Ordering::SeqCst);
        fill(&log, 1, 10);
        assert!(log.flush(v(accepted + 10), Wait::Now).unwrap());
        assert_eq!(read_all(&log).unwrap().len() as u64, accepted + 10);
        log.close().unwrap();
        let (log, opened) = open(dir.path());
        assert!(opened.cut.is_none());
        assert_eq!(read_all(&log).unwrap().len() as u64, accepted + 10);
    }
}

#[test]
fn a_replicas_run_that_can_not_be_written_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    let (log, _) = disk.open_log(config(dir.path())).unwrap();
    let other = tempfile::tempdir().unwrap();
    let (source, _) = open(other.path());
    fill(&source, 1, 8);
    let mut scanner = source.scanner();
    let run = scanner.run(None, 100, 1 << 20).unwrap().unwrap().slices().concat();
    let summary = quorate::entry::verify_run(&run, None).unwrap();
    disk.0.fail_write.store(true, Ordering::SeqCst);
    assert!(matches!(log.append_run(&run, &summary), Err(AppendError::Io(_))));
    assert_eq!((log.last(), log.life().written.get()), (None, 0));
    disk.0.fail_write.store(false, Ordering::SeqCst);
    // A shorter entry takes its place, and nothing of the failed write is left behind it.
    log.append(t(2), &[NewEntry::data(b"short")]).unwrap();
    log.close().unwrap();
    let (log, opened) = open(dir.path());
    assert!(opened.cut.is_none());
    assert_eq!(log.last().unwrap().vlsn, v(1));
}

#[test]
fn a_waiter_for_an_entry_not_yet_written_wakes_or_times_out() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let life = log.life();
    assert!(!life.appended.wait(1, Wait::Now).unwrap());
    let soon = Wait::Until(deadline_in(Duration::from_millis(2)));
    assert!(!life.appended.wait(1, soon).unwrap());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| life.appended.wait(1, Wait::Forever));
        fill(&log, 1, 1);
        assert!(waiter.join().unwrap().unwrap());
    });
    assert_eq!(log.scanner().run(None, 1, 1).unwrap().unwrap().last.vlsn, v(1));
}

#[test]
fn a_closed_log_writes_nothing_into_the_files_that_another_may_have_opened() {
    let dir = tempfile::tempdir().unwrap();
    let disk = TestDisk::default();
    let (log, _) = disk.open_log(config(dir.path())).unwrap();
    fill(&log, 1, 3);
    let other = log.clone();
    *disk.0.meanwhile.lock() = Some(Box::new(move || fill(&other, 1, 1)));
    log.close().unwrap();
    *disk.0.meanwhile.lock() = None;
    let (next, _) = open(dir.path());
    fill(&next, 2, 20);
    next.write_out().unwrap();
    assert!(matches!(log.write_out(), Err(AppendError::Closed)));
    let last = next.last().unwrap().vlsn;
    next.flush(last, Wait::Now).unwrap();
    assert_eq!(read_all(&next).unwrap().len() as u64, last.get());
    next.close().unwrap();
    assert_eq!(read_all(&open(dir.path()).0).unwrap().len() as u64, last.get());
}

#[test]
fn the_flusher_serves_requests_from_its_own_thread() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let mut flusher = log.flusher();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || while flusher.step(Wait::Forever).is_ok() {});
        fill(&log, 1, 100);
        log.request_flush(v(100));
        assert!(log.life().flushed.wait(100, Wait::Forever).unwrap());
        // Nobody asks for this one.
        fill(&log, 1, 1);
        assert!(log.life().flushed.wait(101, Wait::Forever).unwrap());
        log.close().unwrap();
        worker.join().unwrap();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The log against a plain vector: entries, positions, limits, cuts, reopening.
    #[test]
    fn the_log_is_a_vector(steps in proptest::collection::vec((0u8..8, 1u64..60), 1..25)) {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path());
        let mut twin: Vec<quorate::ids::Position> = Vec::new();
        let mut term = 1;
        for (what, count) in steps {
            match what {
                0..=3 => for _ in 0..count {
                    fill(&log, term, 1);
                    twin.push(log.last().unwrap());
                },
                4 if !twin.is_empty() => {
                    let keep = (count * 7) % (twin.len() as u64 + 1);
                    log.truncate_after(Vlsn::new(keep)).unwrap();
                    twin.truncate(keep as usize);
                    term += 1;
                }
                5 => {
                    log.close().unwrap();
                    log = open(dir.path()).0;
                }
                6 => settle(&mut log.flusher()),
                _ => if let Some(last) = twin.last() {
                    prop_assert!(log.flush(last.vlsn, Wait::Now).unwrap());
                },
            }
            prop_assert_eq!(log.last(), twin.last().copied());
        }
        for position in &twin {
            prop_assert_eq!(log.position_at(position.vlsn).unwrap(), *position);
            let after = position.vlsn.previous();
            let mut scanner = log.scanner();
            let run = scanner.run(after, 1, 1).unwrap().unwrap();
            prop_assert_eq!(run.last, *position);
        }
        prop_assert_eq!(read_all(&log).unwrap().len(), twin.len());
    }
}

#[test]
fn what_a_failed_write_left_is_not_sealed_into_a_full_segment() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = TestDisk::default();
    let (log, _) = disk.open_log(config(dir.path())).unwrap();
    let (source, _) = open(other.path());
    for len in [850, 850, 850, 850, 300, 900] {
        source.append(t(1), &[NewEntry::data(&vec![7; len])]).unwrap();
    }
    let mut scanner = source.scanner();
    let mut run = |after, count| scanner.run(after, count, 1 << 20).unwrap().unwrap().slices().concat();
    let (first, one, both) =
        (run(None, 4), run(Some(v(4)), 1), [run(Some(v(4)), 1), run(Some(v(5)), 1)].concat());
    log.append_run(&first, &quorate::entry::verify_run(&first, None).unwrap()).unwrap();
    let last = log.last();
    disk.0.fail_write.store(true, Ordering::SeqCst);
    let refused = log.append_run(&one, &quorate::entry::verify_run(&one, last).unwrap());
    assert!(matches!(refused, Err(AppendError::Io(_))));
    disk.0.fail_write.store(false, Ordering::SeqCst);
    // Together they do not fit into the segment any more.
    log.append_run(&both, &quorate::entry::verify_run(&both, last).unwrap()).unwrap();
    assert!(common::names(dir.path(), ".seg").len() > 1);
    log.close().unwrap();
    // Without its index the segment is read to its end.
    for index in common::names(dir.path(), ".idx") {
        std::fs::remove_file(dir.path().join(index)).unwrap();
    }
    let (log, opened) = open(dir.path());
    assert!(opened.cut.is_none());
    assert_eq!(log.last(), source.last());
}
