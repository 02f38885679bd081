//! What opening makes of a log that a crash or the device damaged.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{GROUP, config, fill, names, open, read_all, refusing, t, try_open, v};
use quorate::clock::Wait;
use quorate::entry::NewEntry;
use quorate::ids::GroupId;
use quorate::log::{DoubtfulTail, FileDamage, Log, LogConfig, OpenError, SEGMENT_HEADER_LEN, TailVerdict};

/// Where each entry of the first segment starts, and where the last one ends.
fn offsets(bytes: &[u8]) -> Vec<usize> {
    let mut offsets = vec![SEGMENT_HEADER_LEN];
    while let Ok(header) = quorate::entry::Header::parse(&bytes[offsets[offsets.len() - 1]..]) {
        offsets.push(offsets[offsets.len() - 1] + header.entry_len());
    }
    offsets
}

fn refusing_holes(dir: &Path) -> LogConfig {
    LogConfig { doubtful: DoubtfulTail::RefuseHoles, ..config(dir) }
}

/// Every file in the log's directory, and what is in it.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    names(dir, "").into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

fn first_segment(dir: &Path) -> PathBuf {
    dir.join(&names(dir, ".seg")[0])
}

/// A log whose process died: written, without a flush of the last `unflushed` entries.
fn crashed(dir: &Path, flushed: u64, unflushed: u64) {
    let (log, _) = open(dir);
    if flushed > 0 {
        fill(&log, 1, flushed);
        log.flush(v(flushed), Wait::Now).unwrap();
    }
    fill(&log, 1, unflushed);
    log.write_out().unwrap();
}

fn entries(log: &Log) -> u64 {
    let seen = read_all(log).unwrap();
    assert_eq!(seen, (1..=seen.len() as u64).collect::<Vec<_>>());
    assert_eq!(log.life().flushed.get(), seen.len() as u64);
    seen.len() as u64
}

#[test]
fn what_was_only_written_is_there_after_the_process_died() {
    let dir = tempfile::tempdir().unwrap();
    crashed(dir.path(), 10, 10);
    let (log, opened) = open(dir.path());
    assert!(opened.cut.is_none());
    assert_eq!(entries(&log), 20);
}

#[test]
fn a_tail_that_ends_at_any_byte_is_cut_and_saved_and_the_log_goes_on() {
    let whole = tempfile::tempdir().unwrap();
    crashed(whole.path(), 3, 4);
    let bytes = fs::read(first_segment(whole.path())).unwrap();
    let offsets = offsets(&bytes);
    // Entries 1..=3, the mark, entries 4..=7.
    let (from, to) = (offsets[4], offsets[8]);
    for cut in from..to {
        for shorten in [true, false] {
            if !shorten && cut % 7 != 0 {
                continue;
            }
            let dir = tempfile::tempdir().unwrap();
            let mut damaged = bytes.clone();
            if shorten {
                damaged.truncate(cut);
            } else {
                damaged[cut..].fill(0);
            }
            fs::write(dir.path().join(&names(whole.path(), ".seg")[0]), &damaged).unwrap();
            let (log, opened) = open(dir.path());
            let left = offsets.iter().filter(|offset| **offset <= cut).count() as u64 - 2;
            assert_eq!(entries(&log), left, "cut at {cut}");
            let clean = offsets.contains(&cut);
            assert_eq!(opened.cut.is_none(), clean, "cut at {cut}");
            if let Some(cut_off) = opened.cut.filter(|_| shorten) {
                assert_eq!((cut_off.verdict, cut_off.from), (TailVerdict::Torn, v(left + 1)));
                let saved = fs::read(&cut_off.saved[0]).unwrap();
                let (kept, gone) = (&saved[SEGMENT_HEADER_LEN..], &damaged[offsets[left as usize + 1]..]);
                assert!(gone.starts_with(kept) && gone[kept.len()..].iter().all(|byte| *byte == 0));
            }
            fill(&log, 2, 5);
            log.close().unwrap();
            assert_eq!(entries(&open(dir.path()).0), left + 5);
        }
    }
}

#[test]
fn every_flipped_byte_is_detected_and_what_a_mark_covers_is_never_cut() {
    let whole = tempfile::tempdir().unwrap();
    crashed(whole.path(), 4, 3);
    let name = names(whole.path(), ".seg")[0].clone();
    let bytes = fs::read(whole.path().join(&name)).unwrap();
    let offsets = offsets(&bytes);
    // The mark of the flush of 1..=4 says that all before it was durable.
    let (durable_to, end) = (offsets[4], offsets[8]);
    for at in 0..end {
        let dir = tempfile::tempdir().unwrap();
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let path = dir.path().join(&name);
        fs::write(&path, &damaged).unwrap();
        let refused = try_open(refusing(dir.path())).err();
        assert!(refused.is_some(), "byte {at}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "refusing to open changed the file");
        let opened = try_open(config(dir.path()));
        if at < durable_to {
            let error = opened.err().unwrap();
            let named = matches!(error, OpenError::Damaged { .. } | OpenError::File { .. });
            assert!(named, "byte {at}: {error}");
            assert_eq!(fs::read(&path).unwrap(), damaged);
        } else {
            let (log, opened) = opened.unwrap();
            let cut = opened.cut.unwrap();
            assert!(entries(&log) >= 4, "byte {at}");
            assert!(!cut.saved.is_empty());
        }
    }
}

#[test]
fn a_gap_that_no_torn_write_explains_is_doubtful() {
    let dir = tempfile::tempdir().unwrap();
    crashed(dir.path(), 2, 8);
    let path = first_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let offsets = offsets(&bytes);
    bytes[offsets[5]..offsets[6]].fill(0);
    fs::write(&path, &bytes).unwrap();
    let error = try_open(refusing(dir.path())).err().unwrap();
    let doubtful = |error: &OpenError| matches!(error, OpenError::Doubtful { from, verdict, .. } if (*from, *verdict) == (v(5), TailVerdict::Doubtful));
    assert!(doubtful(&error), "{error}");
    let before = files(dir.path());
    let error = try_open(refusing_holes(dir.path())).err().unwrap();
    assert!(doubtful(&error), "{error}");
    assert!(files(dir.path()) == before);
    let (log, opened) = open(dir.path());
    assert_eq!(opened.cut.unwrap().verdict, TailVerdict::Doubtful);
    assert_eq!(entries(&log), 4);
}

#[test]
fn a_sector_that_was_never_written_is_a_hole_and_cut_though_entries_lie_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 4);
    log.append(t(1), &[NewEntry::data(&[7; 1024])]).unwrap();
    fill(&log, 1, 3);
    log.write_out().unwrap();
    drop(log);
    let path = first_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let sector = (offsets(&bytes)[4] / 512 + 1) * 512;
    bytes[sector..sector + 512].fill(0);
    fs::write(&path, &bytes).unwrap();
    // A node that votes has to know first what it may have acknowledged.
    let before = files(dir.path());
    for _ in 0..2 {
        let error = try_open(refusing_holes(dir.path())).err().unwrap();
        let offset = offsets(&bytes)[4] as u64;
        let verdict = TailVerdict::Hole;
        assert!(
            matches!(&error, OpenError::Doubtful { path: at, offset: o, from, verdict: found }
                if (at, *o, *from, *found) == (&path, offset, v(5), verdict)),
            "{error}"
        );
        assert!(files(dir.path()) == before, "refusing to open changed something");
    }
    // Nothing of it was synced, so that even a node that refuses what is doubtful cuts it.
    let (log, opened) = try_open(refusing(dir.path())).unwrap();
    let cut = opened.cut.unwrap();
    assert_eq!((cut.verdict, cut.from), (TailVerdict::Hole, v(5)));
    assert_eq!(cut.saved.len(), 1);
    assert_eq!(entries(&log), 4);
}

#[test]
fn damage_below_what_is_known_to_be_committed_is_never_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 10);
    log.flush(v(10), Wait::Now).unwrap();
    log.note_committed(v(8));
    log.close().unwrap();
    drop(log);
    let path = first_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let at = offsets(&bytes)[7] + 2;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(try_open(config(dir.path())), Err(OpenError::Damaged { .. })));
}

#[test]
fn damage_in_a_sealed_segment_is_reported_by_its_reader_and_nothing_else_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 200);
    log.close().unwrap();
    drop(log);
    let path = first_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let at = offsets(&bytes)[5] + 40;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (log, _) = open(dir.path());
    let error = read_all(&log).unwrap_err();
    assert!(matches!(error, quorate::log::ScanError::Damaged { .. }), "{error}");
    assert!(log.position_at(v(199)).is_ok());
    assert_eq!(fs::read(&path).unwrap(), bytes, "a reader never changes the log");
}

#[test]
fn sidecars_are_made_again_when_missing_or_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 100);
    fill(&log, 2, 100);
    let terms = log.term_history();
    log.close().unwrap();
    drop(log);
    let sidecars = names(dir.path(), ".idx");
    let contents: Vec<_> = sidecars.iter().map(|name| fs::read(dir.path().join(name)).unwrap()).collect();
    fs::remove_file(dir.path().join(&sidecars[0])).unwrap();
    fs::write(dir.path().join(&sidecars[1]), b"garbage").unwrap();
    let (log, _) = open(dir.path());
    assert_eq!((entries(&log), log.term_history()), (200, terms));
    for (name, content) in sidecars.iter().zip(contents) {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), content, "{name}");
    }
}

#[test]
fn missing_truncated_foreign_newer_and_strange_segments_are_refused_by_name() {
    let damage = |change: &dyn Fn(&Path, &[String])| {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path());
        fill(&log, 1, 200);
        log.close().unwrap();
        drop(log);
        change(dir.path(), &names(dir.path(), ".seg"));
        try_open(config(dir.path())).err().unwrap()
    };
    let error = damage(&|dir, segments| fs::remove_file(dir.join(&segments[1])).unwrap());
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    let error = damage(&|dir, segments| {
        let file = fs::File::options().write(true).open(dir.join(&segments[1])).unwrap();
        file.set_len(1000).unwrap();
    });
    assert!(matches!(error, OpenError::File { damage: FileDamage::Truncated { .. }, .. }), "{error}");
    let error = damage(&|dir, segments| {
        let last = &segments[segments.len() - 1];
        fs::rename(dir.join(last), dir.join("00000000000000009999.seg")).unwrap();
    });
    assert!(
        matches!(
            error,
            OpenError::Missing { .. } | OpenError::File { damage: FileDamage::WrongFirst { .. }, .. }
        ),
        "{error}"
    );
    let patch = |at: usize, byte: u8| {
        damage(&move |dir, segments| {
            let path = dir.join(&segments[segments.len() - 1]);
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] = byte;
            fs::write(path, bytes).unwrap();
        })
    };
    assert!(matches!(patch(0, b'X'), OpenError::File { damage: FileDamage::Magic, .. }));
    assert!(matches!(patch(8, 2), OpenError::File { damage: FileDamage::NewerVersion { found: 2, .. }, .. }));
    let dir = tempfile::tempdir().unwrap();
    crashed(dir.path(), 2, 2);
    let other = LogConfig { group: GroupId::from_bits(GROUP.bits() + 1), ..config(dir.path()) };
    let error = try_open(other).err().unwrap();
    assert!(matches!(error, OpenError::File { damage: FileDamage::OtherGroup { .. }, .. }), "{error}");
}

#[test]
fn a_segment_that_never_reached_the_disk_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    crashed(dir.path(), 0, 200);
    let last = dir.path().join(names(dir.path(), ".seg").last().unwrap());
    let len = fs::metadata(&last).unwrap().len() as usize;
    fs::write(&last, vec![0; len]).unwrap();
    let (log, opened) = open(dir.path());
    assert!(opened.cut.unwrap().saved.is_empty());
    let left = entries(&log);
    log.append(t(3), &[NewEntry::data(&common::payload(left + 1))]).unwrap();
    log.close().unwrap();
    assert_eq!(entries(&open(dir.path()).0), left + 1);
}

#[test]
fn a_header_torn_at_the_edge_of_a_sector_is_torn_and_no_reason_to_doubt() {
    let (whole, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (log, _) = open(whole.path());
    // The second entry's header begins 20 bytes before a sector that never reached the disk.
    let first = 1024 - 20 - SEGMENT_HEADER_LEN - quorate::entry::HEADER_LEN;
    for len in [first, 100] {
        log.append(t(1), &[NewEntry::data(&vec![7; len])]).unwrap();
    }
    log.write_out().unwrap();
    let name = names(whole.path(), ".seg")[0].clone();
    let mut bytes = fs::read(whole.path().join(&name)).unwrap();
    assert!(bytes[1004..1024].iter().any(|byte| *byte != 0));
    bytes[1024..].fill(0);
    fs::write(dir.path().join(&name), &bytes).unwrap();
    let (log, opened) = try_open(refusing_holes(dir.path())).unwrap();
    assert_eq!(opened.cut.unwrap().verdict, TailVerdict::Torn);
    assert_eq!(log.last().map(|last| last.vlsn), Some(v(1)));
}

/// What power losses leave, over many seeds: a voter never loses silently what may have been acknowledged.
#[cfg(feature = "sim")]
mod power_loss {
    use std::sync::Arc;

    use quorate::clock::SystemClock;
    use quorate::disk::Disk;
    use quorate::sim::{DiskFaults, FaultDisk, Rng, seeds};

    use super::*;

    fn files(disk: &FaultDisk, dir: &Path) -> Vec<(String, Vec<u8>)> {
        let read = |name: String| {
            let file = disk.open(&dir.join(&name)).unwrap();
            let mut bytes = vec![0; file.len().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            (name, bytes)
        };
        // What is unfinished may go.
        disk.list(dir).unwrap().into_iter().filter(|name| !name.ends_with(".new")).map(read).collect()
    }

    #[test]
    fn a_hole_is_refused_with_its_first_vlsn_and_a_torn_end_is_cut() {
        let (mut holes, mut torn, mut whole) = (0, 0, 0);
        for seed in seeds(300) {
            let disk = Arc::new(FaultDisk::new(Rng::new(seed)));
            disk.set_faults(DiskFaults { write_back: 0.3, ..DiskFaults::default() });
            let dir = Path::new("/log");
            let opening = |doubtful| {
                let config = LogConfig { doubtful, ..config(dir) };
                Log::open(Arc::clone(&disk) as Arc<dyn Disk>, Arc::new(SystemClock), config)
            };
            let (log, _) = opening(DoubtfulTail::RefuseHoles).unwrap();
            fill(&log, 1, 5 + seed % 7);
            let flushed = log.last().unwrap().vlsn;
            log.flush(flushed, Wait::Now).unwrap();
            for _ in 0..1 + seed % 5 {
                fill(&log, 1, 1 + seed % 6);
                log.write_out().unwrap();
            }
            disk.lose_power();
            drop(log);
            let before = files(&disk, dir);
            let refused = match opening(DoubtfulTail::RefuseHoles) {
                Ok((log, opened)) => {
                    match opened.cut {
                        Some(cut) => {
                            assert_eq!(cut.verdict, TailVerdict::Torn, "seed {seed}");
                            torn += 1;
                        }
                        None => whole += 1,
                    }
                    assert!(entries(&log) >= flushed.get(), "seed {seed}");
                    continue;
                }
                Err(OpenError::Doubtful { from, verdict, .. }) => (from, verdict),
                Err(error) => panic!("seed {seed}: {error}"),
            };
            assert!(refused.0 > flushed, "seed {seed}");
            assert!(files(&disk, dir) == before, "seed {seed}: refusing to open changed something");
            // Another power loss before the caller could note it changes nothing either.
            disk.lose_power();
            let (log, opened) = opening(DoubtfulTail::Cut).unwrap();
            let cut = opened.cut.unwrap();
            assert_eq!((cut.from, cut.verdict), refused, "seed {seed}");
            assert_eq!(entries(&log) + 1, cut.from.get());
            holes += 1;
        }
        println!("{holes} holes, {torn} torn, {whole} whole");
        if std::env::var_os("QUORATE_SEED").is_none() {
            assert!(holes > 5 && torn > 5 && whole > 5, "{holes} holes, {torn} torn, {whole} whole");
        }
    }
}
