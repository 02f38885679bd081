//! Cutting off the log's end, and removing its beginning.

mod common;

use std::fs;
use std::sync::atomic::Ordering;

use common::{TestDisk, config, fill, names, open, payload, read_all, settle, t, v};
use quorate::clock::Wait;
use quorate::entry::{Header, NewEntry};
use quorate::ids::{Vlsn, VlsnRange};
use quorate::log::{FlushError, LogScanner, SEGMENT_HEADER_LEN, ScanError, TruncateError};

#[test]
fn truncate_at_every_vlsn_times_flush_at_every_vlsn() {
    const COUNT: u64 = 24;
    for keep in 0..=COUNT {
        for flushed in (0..=COUNT).step_by(3) {
            let dir = tempfile::tempdir().unwrap();
            let (log, _) = open(dir.path());
            for vlsn in 1..=COUNT {
                // Long enough that there are several segments.
                let bytes = [payload(vlsn), vec![9; 300]].concat();
                log.append(t(1), &[NewEntry::data(&bytes)]).unwrap();
                if vlsn == flushed {
                    log.flush(v(vlsn), Wait::Now).unwrap();
                }
            }
            let position = Vlsn::new(keep).map(|keep| log.position_at(keep).unwrap());
            let life = log.life();
            let mut scanner = log.scanner();
            let done = log.truncate_after(Vlsn::new(keep)).unwrap();
            assert_eq!(done.last, position);
            assert_eq!(log.last(), position);
            if keep == COUNT {
                assert!(done.cut.is_none() && !life.has_ended());
                continue;
            }
            assert_eq!(done.cut, VlsnRange::new(v(keep + 1), v(COUNT)));
            assert!(life.has_ended());
            assert!(matches!(scanner.run(None, 1, 1), Err(ScanError::LifeEnded)));
            assert_eq!(log.life().flushed.get(), keep);
            log.append(t(2), &[NewEntry::data(b"new")]).unwrap();
            assert!(log.flush(v(keep + 1), Wait::Now).unwrap());
            log.close().unwrap();
            let (log, opened) = open(dir.path());
            assert!(opened.cut.is_none());
            let (mut after, mut seen) = (None, 0);
            let mut scanner = log.scanner();
            while let Some(run) = scanner.run(after, 100, 1 << 20).unwrap() {
                seen += run.entries().iter().count() as u64;
                after = Some(run.last.vlsn);
            }
            assert_eq!(seen, keep + 1);
        }
    }
}

#[test]
fn what_was_cut_is_saved_as_a_segment_that_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 100);
    let saved = log.truncate_after(Some(v(10))).unwrap().saved.unwrap();
    assert_eq!(saved.file_name().unwrap(), "rolledback-11-100-0.log");
    let bytes = fs::read(saved).unwrap();
    let (mut at, mut expected) = (SEGMENT_HEADER_LEN, 11);
    while at < bytes.len() {
        let entry = quorate::entry::EntryRef::verify(&bytes[at..]).unwrap();
        if let Some(vlsn) = entry.header().vlsn {
            assert_eq!((vlsn.get(), entry.payload()), (expected, &payload(expected)[..]));
            expected += 1;
        }
        at += Header::parse(&bytes[at..]).unwrap().entry_len();
    }
    assert_eq!(expected, 101);
    // A second cut of the same range does not overwrite the first one's file.
    fill(&log, 2, 90);
    log.truncate_after(Some(v(10))).unwrap();
    assert_eq!(names(dir.path(), ".log").len(), 2);
    assert_eq!(read_all(&log).unwrap().len(), 10);
}

#[test]
fn a_cut_below_what_is_committed_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 10);
    log.note_committed(v(6));
    assert!(matches!(log.truncate_after(Some(v(5))), Err(TruncateError::BelowCommitted { .. })));
    assert!(matches!(log.truncate_after(Some(v(11))), Err(TruncateError::Beyond { .. })));
    assert_eq!(read_all(&log).unwrap().len(), 10);
    assert!(log.truncate_after(Some(v(6))).unwrap().cut.is_some());
}

#[test]
fn a_cut_that_stops_at_any_step_is_finished_or_undone_at_open() {
    let mut finished = 0;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let disk = TestDisk::default();
        let (log, _) = disk.open_log(config(dir.path())).unwrap();
        fill(&log, 1, 120);
        log.flush(v(120), Wait::Now).unwrap();
        settle(&mut log.flusher());
        disk.0.changes_left.store(steps, Ordering::SeqCst);
        disk.0.limited.store(true, Ordering::SeqCst);
        let outcome = log.truncate_after(Some(v(20)));
        let done = outcome.is_ok();
        assert!(done || log.append(t(1), &[NewEntry::data(b"x")]).is_err());
        let _ = log.close();
        drop(log);
        let (log, opened) = open(dir.path());
        assert!(opened.cut.is_none());
        let left = read_all(&log).unwrap();
        assert!(left.len() == 20 || (left.len() == 120 && !done), "step {steps}: {}", left.len());
        assert_eq!(names(dir.path(), ".intent"), Vec::<String>::new());
        if left.len() == 20 {
            finished += 1;
            assert_eq!(names(dir.path(), ".log"), ["rolledback-21-120-0.log"]);
        }
        fill(&log, 2, 3);
        assert!(log.flush(v(left.len() as u64 + 3), Wait::Now).unwrap());
        if done {
            break;
        }
    }
    assert!(finished > 3);
}

#[test]
fn a_flush_that_waits_while_the_log_is_cut_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 10);
    let life = log.life();
    log.truncate_after(Some(v(3))).unwrap();
    assert!(life.flushed.wait(100, Wait::Now).is_err());
    assert!(matches!(log.flush(v(10), Wait::Now), Err(FlushError::Beyond { .. })));
}

#[test]
fn pruning_spares_pinned_and_unsealed_segments_and_keeps_the_base() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 100);
    fill(&log, 2, 200);
    log.flush(v(300), Wait::Now).unwrap();
    settle(&mut log.flusher());
    let pin = log.pin("feeder n2", v(150));
    assert_eq!(log.pins()[0].owner, "feeder n2");
    let pruned = log.prune(v(250)).unwrap();
    let oldest = pruned.oldest.unwrap();
    assert!(pruned.segments > 2 && oldest <= v(150));
    assert_eq!(log.base().unwrap(), log.position_at(oldest.previous().unwrap()).unwrap());
    assert_eq!(log.term_history()[0].first, oldest);
    pin.advance(v(200));
    assert!(log.prune(v(250)).unwrap().oldest.unwrap() <= v(200));
    drop(pin);
    log.prune(v(10_000)).unwrap();
    let oldest = log.oldest().unwrap();
    let mut scanner = log.scanner();
    assert!(matches!(scanner.run(None, 1, 1), Err(ScanError::Pruned { oldest: Some(o) }) if o == oldest));
    assert!(matches!(log.position_at(v(3)), Err(ScanError::Pruned { .. })));
    let (base, terms, left) = (log.base(), log.term_history(), read_all(&log).unwrap());
    log.close().unwrap();
    let (log, _) = open(dir.path());
    assert_eq!((log.base(), log.term_history()), (base, terms));
    assert_eq!(read_all(&log).unwrap(), left);
    assert!(matches!(
        log.truncate_after(Some(v(5))),
        Err(TruncateError::Pruned { .. } | TruncateError::BelowCommitted { .. })
    ));
}

#[test]
fn pruning_goes_on_beside_appends_and_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 50);
    let (writer, reader) = (log.clone(), log.clone());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..20 {
                fill(&writer, 1, 50);
                let last = writer.last().unwrap().vlsn;
                writer.flush(last, Wait::Forever).unwrap();
                settle(&mut writer.flusher());
            }
        });
        scope.spawn(move || {
            let pin = reader.pin("reader", v(1));
            let mut scanner = reader.scanner();
            let mut after = None;
            while after < Vlsn::new(1050) {
                if let Some(run) = scanner.run(after, 100, 1 << 16).unwrap() {
                    after = Some(run.last.vlsn);
                    pin.advance(run.last.vlsn.next());
                }
            }
        });
        for _ in 0..200 {
            log.prune(v(10_000)).unwrap();
        }
    });
    log.prune(v(10_000)).unwrap();
    assert!(log.oldest().unwrap() > v(900));
    assert_eq!(read_all(&log).unwrap().last(), Some(&1050));
}

#[test]
fn a_prune_that_could_not_remove_a_file_leaves_no_hole_for_the_next() {
    for changes in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let disk = common::TestDisk::default();
        let (log, _) = disk.open_log(config(dir.path())).unwrap();
        fill(&log, 1, 300);
        log.flush(v(300), Wait::Now).unwrap();
        settle(&mut log.flusher());
        disk.0.changes_left.store(changes, Ordering::SeqCst);
        disk.0.limited.store(true, Ordering::SeqCst);
        assert!(log.prune(v(200)).is_err());
        disk.0.limited.store(false, Ordering::SeqCst);
        assert!(log.prune(v(200)).unwrap().segments > 0);
        let (base, left) = (log.base(), read_all(&log).unwrap());
        log.close().unwrap();
        let (log, _) = open(dir.path());
        assert_eq!((log.base(), read_all(&log).unwrap()), (base, left), "{changes} changes");
    }
}

#[cfg(feature = "planted")]
#[test]
fn the_planted_bug_cuts_what_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 10);
    log.note_committed(v(6));
    quorate::planted::plant(Some(quorate::planted::Bug::TruncateBelowCommitted));
    let done = log.truncate_after(Some(v(5)));
    quorate::planted::plant(None);
    assert_eq!(done.unwrap().cut, VlsnRange::new(v(6), v(10)));
}
