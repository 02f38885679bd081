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
