//! Replacing the log by one that stands on a snapshot.

mod common;

use std::sync::atomic::Ordering;

use common::{TestDisk, config, fill, names, open, payload, read_all, settle, t, try_open, v};
use quorate::clock::Wait;
use quorate::entry::NewEntry;
use quorate::ids::{Position, VlsnRange};
use quorate::log::{LogScanner, OpenError, ScanError, TruncateError};

fn base(vlsn: u64) -> Position {
    Position { vlsn: v(vlsn), term: t(5), crc: 77 }
}

#[test]
fn a_log_that_only_has_a_base_ends_there_and_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 120);
    log.note_committed(v(40));
    let (life, mut scanner) = (log.life(), log.scanner());
    let (gone, stays) = (log.pin("replica:a", v(50)), log.pin("replica:b", v(901)));
    let engine = log.pin("engine", v(50));
    let done = log.reset(base(900)).unwrap();
    assert_eq!((done.last, done.cut), (Some(base(900)), VlsnRange::new(v(41), v(120))));
    assert!(life.has_ended());
    assert_eq!((gone.holds(), stays.holds()), (false, true), "who needs more than is there is told");
    engine.advance(v(901));
    assert!(engine.holds(), "what it gets from here on is not checkpointed yet");
    assert!(matches!(scanner.run(None, 1, 1), Err(ScanError::LifeEnded)));
    for round in 0..3 {
        let log = if round == 0 {
            log.clone()
        } else {
            log.close().unwrap();
            let (log, opened) = open(dir.path());
            assert_eq!((opened.last, opened.cut.is_none()), (Some(base(900)), true));
            log
        };
        assert_eq!((log.last(), log.base(), log.oldest()), (Some(base(900)), Some(base(900)), None));
        assert_eq!(log.position_at(v(900)).unwrap(), base(900));
        assert_eq!((log.term_history(), log.memberships()), (vec![], vec![]));
        let life = log.life();
        assert_eq!((life.appended.get(), life.written.get(), life.flushed.get()), (900, 900, 900));
        assert_eq!(log.known_committed(), (round > 0).then_some(v(900)));
        let cut = log.truncate_after(Some(v(899)));
        assert!(matches!(cut, Err(TruncateError::BelowCommitted { .. })), "{cut:?}");
        assert_eq!(names(dir.path(), ".log"), ["rolledback-41-120-0.log"]);
        if round > 0 {
            log.close().unwrap();
        }
    }
    let (log, _) = open(dir.path());
    assert!(log.append(t(4), &[NewEntry::data(b"x")]).is_err());
    fill(&log, 6, 30);
    assert!(log.flush(v(930), Wait::Now).unwrap());
    assert_eq!(read_all(&log).unwrap(), (901..=930).collect::<Vec<_>>());
    assert_eq!(log.payload(v(905)).unwrap(), payload(905));
    log.close().unwrap();
    let (log, _) = open(dir.path());
    assert_eq!(read_all(&log).unwrap(), (901..=930).collect::<Vec<_>>());
    assert_eq!(log.term_history()[0].first, v(901));
}

#[test]
fn a_base_below_what_is_committed_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 20);
    log.note_committed(v(10));
    assert!(matches!(log.reset(base(9)), Err(TruncateError::BelowCommitted { .. })));
    assert_eq!(read_all(&log).unwrap().len(), 20);
}

#[test]
fn a_log_that_ends_before_what_is_known_to_be_committed_is_put_on_a_later_base() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 20);
    log.note_committed(v(40));
    assert_eq!(log.reset(base(900)).unwrap().last, Some(base(900)));
    assert_eq!(log.last(), Some(base(900)));
}

#[test]
fn a_reset_that_stops_at_any_step_is_finished_or_undone_at_open() {
    let mut finished = 0;
    for steps in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let disk = TestDisk::default();
        let (log, _) = disk.open_log(config(dir.path())).unwrap();
        fill(&log, 1, 120);
        log.note_committed(v(60));
        log.flush(v(120), Wait::Now).unwrap();
        settle(&mut log.flusher());
        disk.0.changes_left.store(steps, Ordering::SeqCst);
        disk.0.limited.store(true, Ordering::SeqCst);
        // Within the old log, so that a segment of the old and one of the new may have the same name.
        let done = log.reset(base(118)).is_ok();
        assert!(done || log.append(t(9), &[NewEntry::data(b"x")]).is_err());
        let _ = log.close();
        drop(log);
        let (log, opened) = open(dir.path());
        assert!(opened.cut.is_none());
        let left = read_all(&log).unwrap();
        assert_eq!(names(dir.path(), ".intent"), Vec::<String>::new());
        if left.is_empty() {
            finished += 1;
            assert_eq!(log.last(), Some(base(118)));
        } else {
            assert!(!done && (left.len() == 120 || left.len() == 60), "step {steps}: {}", left.len());
        }
        if left.len() < 120 {
            assert_eq!(names(dir.path(), ".log"), ["rolledback-61-120-0.log"]);
        }
        fill(&log, 9, 3);
        let last = log.last().unwrap().vlsn;
        assert!(log.flush(last, Wait::Now).unwrap());
        if done {
            break;
        }
    }
    assert!(finished > 3);
}

#[test]
fn a_log_with_the_intent_of_an_install_is_refused_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).0.close().unwrap();
    std::fs::write(dir.path().join("install"), b"").unwrap();
    assert!(matches!(try_open(config(dir.path())), Err(OpenError::HalfInstalled { .. })));
    std::fs::remove_file(dir.path().join("install")).unwrap();
    assert!(try_open(config(dir.path())).is_ok());
}
