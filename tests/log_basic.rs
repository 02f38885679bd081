//! Appending, reading, flushing and opening a healthy log.

mod common;

use common::{config, fill, names, open, payload, read_all, settle, t, v};
use quorate::clock::Wait;
use quorate::entry::{NewEntry, verify_run};
use quorate::log::{AppendError, FlushError, LogScanner, OpenError, ScanError};

#[test]
fn entries_survive_reopening_across_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (log, opened) = open(dir.path());
    assert_eq!((opened.last, log.oldest(), log.base()), (None, None, None));
    fill(&log, 1, 60);
    fill(&log, 3, 60);
    assert!(log.flush(v(120), Wait::Now).unwrap());
    assert_eq!(read_all(&log).unwrap(), (1..=120).collect::<Vec<_>>());
    let (last, terms) = (log.last(), log.term_history());
    log.close().unwrap();
    assert!(names(dir.path(), ".seg").len() >= 4);
    let (log, opened) = open(dir.path());
    assert_eq!(opened.last, last);
    assert!(opened.cut.is_none());
    assert_eq!(log.term_history(), terms);
    assert_eq!(read_all(&log).unwrap(), (1..=120).collect::<Vec<_>>());
    assert_eq!(log.life().flushed.get(), 120);
    fill(&log, 3, 60);
    assert_eq!(read_all(&log).unwrap().len(), 180);
}

#[test]
fn a_batch_over_several_segments_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let payloads: Vec<Vec<u8>> = (1..=200).map(payload).collect();
    let entries: Vec<NewEntry<'_>> = payloads.iter().map(|bytes| NewEntry::data(bytes)).collect();
    let appended = log.append(t(2), &entries).unwrap();
    assert_eq!((appended.first, appended.last.vlsn), (v(1), v(200)));
    assert_eq!(read_all(&log).unwrap(), (1..=200).collect::<Vec<_>>());
}

#[test]
fn runs_skip_marks_and_honour_their_limits_but_hold_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    for vlsn in 1..=20 {
        fill(&log, 1, 1);
        assert!(log.flush(v(vlsn), Wait::Now).unwrap());
    }
    let mut scanner = log.scanner();
    let run = scanner.run(None, 5, usize::MAX).unwrap().unwrap();
    assert_eq!((run.first, run.last.vlsn), (v(1), v(5)));
    assert_eq!(run.entries().iter().count(), 5);
    // The same again: a refused send loses nothing.
    assert_eq!(scanner.run(None, 5, usize::MAX).unwrap().unwrap().last.vlsn, v(5));
    assert_eq!(scanner.run(Some(v(5)), 100, 1).unwrap().unwrap().last.vlsn, v(6));
    let run = scanner.run(Some(v(6)), 100, 400).unwrap().unwrap();
    assert!(run.len_bytes() <= 400 && run.last.vlsn > v(6));
    assert!(scanner.run(Some(v(20)), 1, 1).unwrap().is_none());
    assert!(matches!(scanner.run(Some(v(21)), 1, 1), Err(ScanError::Beyond { .. })));
}

#[test]
fn a_replica_that_appends_runs_has_the_same_log() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (master, _) = open(a.path());
    fill(&master, 1, 50);
    fill(&master, 2, 50);
    let (replica, _) = open(b.path());
    let mut scanner = master.scanner();
    let mut after = None;
    while let Some(run) = scanner.run(after.map(|at: quorate::ids::Position| at.vlsn), 9, 1 << 20).unwrap() {
        let bytes = run.slices().concat();
        let summary = verify_run(&bytes, after).unwrap();
        replica.append_run(&bytes, &summary).unwrap();
        assert!(matches!(replica.append_run(&bytes, &summary), Err(AppendError::NotNext { .. })));
        after = Some(summary.last);
    }
    assert_eq!(replica.last(), master.last());
    assert_eq!(replica.term_history(), master.term_history());
    assert_eq!(read_all(&replica).unwrap().len(), 100);
    replica.close().unwrap();
    assert_eq!(open(b.path()).1.last, master.last());
}

#[test]
fn an_oversized_entry_amid_small_ones_stays_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_payload = 1 << 20;
    let (log, _) = common::try_open(config.clone()).unwrap();
    let large: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    let sizes = [3, 300_000, 70_000, 1, 65_537, 8, 300_000, 300_000, 300_000, 300_000, 5];
    for size in sizes {
        log.append(t(1), &[NewEntry::data(&large[..size])]).unwrap();
    }
    log.append(t(1), &[NewEntry::data(b"a"), NewEntry::data(&large[..100_000]), NewEntry::data(b"b")])
        .unwrap();
    let expected: Vec<usize> = sizes.into_iter().chain([1, 100_000, 1]).collect();
    log.close().unwrap();
    let (log, _) = common::try_open(config).unwrap();
    let (mut scanner, mut after, mut seen) = (log.scanner(), None, Vec::new());
    while let Some(run) = scanner.run(after, 2, 1 << 20).unwrap() {
        seen.extend(run.entries().iter().map(|entry| entry.payload().len()));
        after = Some(run.last.vlsn);
    }
    assert_eq!(seen, expected);
    let over = vec![0; (1 << 20) + 1];
    assert!(matches!(log.append(t(1), &[NewEntry::data(&over)]), Err(AppendError::TooLarge { .. })));
}

#[test]
fn appends_that_make_no_sense_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 5, 1);
    assert!(matches!(log.append(t(4), &[NewEntry::data(b"x")]), Err(AppendError::TermFalls { .. })));
    assert!(matches!(log.append(t(5), &[]), Err(AppendError::Empty)));
    assert!(matches!(log.flush(v(2), Wait::Now), Err(FlushError::Beyond { .. })));
    log.close().unwrap();
    assert!(matches!(log.append(t(5), &[NewEntry::data(b"x")]), Err(AppendError::Closed)));
    assert!(matches!(log.flush(v(1), Wait::Now), Err(FlushError::Closed)));
    assert!(matches!(log.scanner().run(None, 1, 1), Err(ScanError::LifeEnded)));
}

#[test]
fn a_second_opener_is_refused_until_the_first_closes() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    assert!(matches!(common::try_open(config(dir.path())), Err(OpenError::Locked { .. })));
    log.close().unwrap();
    open(dir.path());
}

#[test]
fn an_idle_log_settles_after_it_was_flushed_lazily() {
    let dir = tempfile::tempdir().unwrap();
    let disk = common::TestDisk::default();
    let mut config = config(dir.path());
    config.lazy_flush = std::time::Duration::ZERO;
    let (log, _) = disk.open_log(config).unwrap();
    let mut flusher = log.flusher();
    fill(&log, 1, 3);
    settle(&mut flusher);
    assert_eq!(log.life().flushed.get(), 3);
    let before = disk.0.syncs.load(std::sync::atomic::Ordering::SeqCst);
    for _ in 0..5 {
        settle(&mut flusher);
    }
    assert_eq!(disk.0.syncs.load(std::sync::atomic::Ordering::SeqCst), before);
    log.note_committed(v(3));
    log.close().unwrap();
    let (log, _) = open(dir.path());
    assert_eq!(log.known_committed(), Some(v(3)));
}

#[test]
fn sealed_segments_are_not_read_at_open() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 2000);
    log.close().unwrap();
    let segments = names(dir.path(), ".seg").len();
    assert!(segments > 40);
    assert_eq!(names(dir.path(), ".idx").len(), segments - 1);
    let disk = common::TestDisk::default();
    let (log, opened) = disk.open_log(config(dir.path())).unwrap();
    assert_eq!(opened.segments, segments);
    let read = disk.0.read_bytes.load(std::sync::atomic::Ordering::SeqCst);
    assert!(read < 4096 * 4 + segments as u64 * 200, "{read} bytes read");
    assert_eq!(read_all(&log).unwrap().len(), 2000);
}

#[test]
fn a_fence_stops_appends_in_lower_terms_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.max_payload = 100_000;
    let (log, _) = common::try_open(config).unwrap();
    fill(&log, 2, 3);
    log.fence(t(5));
    log.fence(t(4));
    for payload in [vec![1; 10], vec![1; 80_000]] {
        let entry = NewEntry::data(&payload);
        let error = log.append(t(4), &[entry]).unwrap_err();
        assert!(
            matches!(error, AppendError::Fenced { term, fence } if (term, fence) == (t(4), t(5))),
            "{error}"
        );
        assert!(matches!(log.append(t(1), &[entry]), Err(AppendError::TermFalls { .. })));
    }
    assert_eq!(log.last().map(|last| last.vlsn), Some(v(3)));
    // A run of what a master of an older term sent is still taken: its reader looks at the terms.
    let other_dir = tempfile::tempdir().unwrap();
    let (other, _) = open(other_dir.path());
    let mut bytes = Vec::new();
    let at = quorate::entry::Placement {
        vlsn: Some(v(4)),
        term: t(3),
        prev: log.last().unwrap().crc,
        timestamp: 1,
    };
    quorate::entry::encode(&NewEntry::data(&payload(4)), &at, &mut bytes);
    log.append_run(&bytes, &verify_run(&bytes, log.last()).unwrap()).unwrap();
    assert_eq!(log.last().map(|last| last.term), Some(t(3)));
    // Cutting the log leaves the fence where it is.
    log.truncate_after(Some(v(2))).unwrap();
    assert!(matches!(log.append(t(4), &[NewEntry::data(b"x")]), Err(AppendError::Fenced { .. })));
    fill(&log, 5, 1);
    fill(&log, 7, 1);
    assert_eq!(read_all(&log).unwrap(), [1, 2, 3, 4]);
    // Appending in a term puts up no fence, and it does not outlive the open log.
    fill(&other, 7, 1);
    other.truncate_after(None).unwrap();
    fill(&other, 1, 1);
}

#[test]
fn nothing_of_a_lower_term_comes_in_after_the_fence_stands() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let begun = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                begun.wait();
                loop {
                    match log.append(t(1), &[NewEntry::data(b"old")]) {
                        Ok(_) => {}
                        Err(AppendError::Fenced { .. } | AppendError::TermFalls { .. }) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        begun.wait();
        log.fence(t(2));
        let last = log.last();
        for _ in 0..1000 {
            assert_eq!(log.last(), last);
        }
        log.append(t(2), &[NewEntry::data(b"new")]).unwrap();
    });
    assert_eq!(log.last().map(|last| last.term), Some(t(2)));
}
