//! A disk that is full: what has to work then works by the log's reserve, and the rest goes on when there is room again.
#![cfg(feature = "sim")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/stage.rs"]
mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use quorate::clock::{SystemClock, Wait};
use quorate::disk::{Disk, RealDisk};
use quorate::entry::NewEntry;
use quorate::log::{AppendError, Log, LogConfig, TruncateError};
use quorate::sim::{FaultDisk, Rng};
use quorate::{Answer, Policy, Vlsn};

use common::{config, fill, payload, read_all, settle, t, v};
use stage::Stage;

const DIR: &str = "log";

fn open_on(disk: &Arc<FaultDisk>) -> Log {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as Arc<dyn Disk>;
    Log::open(disk, Arc::new(SystemClock), config(Path::new(DIR))).unwrap().0
}

/// A log of so many entries, with its spare segment and its reserve, on a disk that has not a byte left.
fn full(seed: u64, entries: u64) -> (Arc<FaultDisk>, Log) {
    let disk = Arc::new(FaultDisk::new(Rng::new(seed)));
    let log = open_on(&disk);
    let mut flusher = log.flusher();
    for _ in 0..entries {
        fill(&log, 1, 1);
        settle(&mut flusher);
    }
    log.flush(v(entries), Wait::Now).unwrap();
    settle(&mut flusher);
    disk.set_capacity(Some(disk.used()));
    (disk, log)
}

fn listed(disk: &FaultDisk, part: &str) -> usize {
    disk.list(Path::new(DIR)).unwrap().iter().filter(|name| name.contains(part)).count()
}

/// Appends until the disk refuses, and returns how many entries the log has then.
fn fill_up(log: &Log) -> u64 {
    for _ in 0..100_000 {
        let next = Vlsn::after(log.last().map(|last| last.vlsn)).get();
        match log.append(t(1), &[NewEntry::data(&payload(next))]).map(|_| log.write_out()) {
            Ok(_) => {}
            Err(AppendError::Io(_)) => return log.last().unwrap().vlsn.get(),
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the disk never refused");
}

fn up_to(last: u64) -> Vec<u64> {
    (1..=last).collect()
}

#[test]
fn a_rollback_on_a_full_disk_uses_the_reserve_and_the_log_goes_on() {
    for keep in [1, 40, 79] {
        let (disk, log) = full(keep, 80);
        assert_eq!(listed(&disk, "reserve"), 1);
        let cut = log.truncate_after(Some(v(keep))).unwrap();
        assert!(cut.saved.is_some_and(|saved| disk.open(&saved).is_ok()), "what was cut is kept");
        assert_eq!(read_all(&log).unwrap(), up_to(keep));
        // What was written stays readable, also after a crash on the full disk.
        fill(&log, 1, 3);
        log.flush(v(keep + 3), Wait::Now).unwrap();
        drop(log);
        disk.lose_power();
        let log = open_on(&disk);
        assert_eq!(read_all(&log).unwrap(), up_to(keep + 3));
        assert_eq!(listed(&disk, "reserve"), 0);
        // With room, the reserve is there again before anything else is taken.
        disk.set_capacity(None);
        settle(&mut log.flusher());
        assert_eq!((listed(&disk, "reserve"), listed(&disk, "spare")), (1, 1));
    }
}

#[test]
fn what_waits_to_be_written_is_written_and_cut_on_a_full_disk() {
    let (disk, log) = full(2, 50);
    let last = fill_up(&log);
    assert!(last > 50 && log.stuck());
    let before = listed(&disk, "rolledback");
    let cut = log.truncate_after(Some(v(30))).unwrap();
    assert_eq!(cut.cut.unwrap().last(), v(last), "also what was only staged");
    assert_eq!(listed(&disk, "rolledback"), before + 1);
    assert!(!log.stuck());
    assert_eq!(read_all(&log).unwrap(), up_to(30));
}

#[test]
fn a_cut_for_which_there_is_no_room_changes_nothing_and_is_made_later() {
    // More than the reserve is to be saved.
    let (disk, log) = full(3, 900);
    let error = log.truncate_after(Some(v(2))).unwrap_err();
    assert!(matches!(error, TruncateError::Full(_)), "{error}");
    assert!(!log.poisoned());
    assert_eq!(read_all(&log).unwrap(), up_to(900));
    drop(log);
    disk.lose_power();
    let log = open_on(&disk);
    assert_eq!(read_all(&log).unwrap(), up_to(900));
    disk.set_capacity(None);
    log.truncate_after(Some(v(2))).unwrap();
    assert_eq!(read_all(&log).unwrap(), up_to(2));
}

#[test]
fn a_log_without_its_indexes_opens_on_a_full_disk() {
    let (disk, log) = full(4, 200);
    drop(log);
    disk.lose_process();
    let mut removed = 0;
    for name in disk.list(Path::new(DIR)).unwrap().iter().filter(|name| name.ends_with(".idx")) {
        disk.remove(&PathBuf::from(DIR).join(name)).unwrap();
        removed += 1;
    }
    assert!(removed > 2);
    disk.set_capacity(Some(disk.used()));
    let log = open_on(&disk);
    assert_eq!(read_all(&log).unwrap(), up_to(200));
    assert_eq!(listed(&disk, ".idx"), removed);
}

#[test]
fn appends_fail_on_a_full_disk_and_go_on_when_there_is_room() {
    let (disk, log) = full(5, 60);
    let mut flusher = log.flusher();
    let last = fill_up(&log);
    assert_eq!(listed(&disk, "reserve"), 1, "appends leave the reserve alone");
    disk.set_capacity(None);
    settle(&mut flusher);
    fill(&log, 1, 100);
    log.flush(v(last + 100), Wait::Now).unwrap();
    settle(&mut flusher);
    assert_eq!(read_all(&log).unwrap(), up_to(last + 100));
    drop((flusher, log));
    disk.lose_power();
    assert_eq!(read_all(&open_on(&disk)).unwrap(), up_to(last + 100));
}

#[test]
fn a_master_on_a_full_disk_gives_up_its_place_rolls_back_and_follows() {
    for seed in 0..10 {
        let stage = Stage::group(500 + seed, &["n1", "n2", "n3"]);
        for _ in 0..20 {
            stage.write(&[5; 1_000]);
        }
        stage.settle();
        let old = stage.master();
        let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
        let disk = stage.actors[old].sim.disk();
        disk.set_capacity(Some(disk.used()));
        // Nobody hears of these: they are to be rolled back.
        stage.isolate(old);
        let term = stage.node(old).leads();
        let mut stale = Vec::new();
        while let Ok(ticket) = stage.node(old).append(&[NewEntry::data(&[6; 3_000])], Policy::Async) {
            let _refused_later = stage.node(old).log().write_out();
            stale.push(ticket);
            assert!(stale.len() < 1_000, "seed {seed}: the disk never refused");
        }
        assert!(!stale.is_empty(), "seed {seed}");
        stage.until("the full master to step down", || stage.node(old).leads().is_none());
        let after = stage.write_among(&others, b"after");
        stage.sim.net().heal();
        stage.until("it to follow", || stage.node(old).ask(&after) == Answer::Committed);
        for ticket in &stale {
            stage.all_say(&ticket.token, Answer::RolledBack);
        }
        assert!(stage.leader_of(&stage.all()) != Some(old) || stage.node(old).leads() > term);
        // With room it takes everything again.
        disk.set_capacity(None);
        for _ in 0..20 {
            stage.write(&[7; 3_000]);
        }
        stage.settle();
        stage.agreed();
    }
}

#[test]
fn a_small_filesystem_fills_up_rolls_back_opens_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=12m", "quorate-test"])
        .arg(dir.path())
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no filesystem can be mounted here");
        return;
    }
    let filler = dir.path().join("filler");
    let told = std::panic::catch_unwind(|| {
        let config = LogConfig { segment_bytes: 1 << 20, ..config(&dir.path().join(DIR)) };
        let open = || Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config.clone()).unwrap().0;
        let log = open();
        let mut flusher = log.flusher();
        fill(&log, 1, 9_000);
        log.flush(v(9_000), Wait::Now).unwrap();
        settle(&mut flusher);
        // Somebody else takes all that is left.
        let zeroes = vec![1; 16 << 20];
        assert!(std::fs::write(&filler, &zeroes).is_err(), "the filesystem is small");
        let last = fill_up(&log);
        assert!(last >= 9_000);
        let keep = last - 2_000;
        log.truncate_after(Some(v(keep))).unwrap();
        assert_eq!(log.last().unwrap().vlsn, v(keep));
        drop((flusher, log));
        let log = open();
        assert_eq!(read_all(&log).unwrap(), up_to(keep));
        std::fs::remove_file(&filler).unwrap();
        fill(&log, 1, 3_000);
        log.flush(v(keep + 3_000), Wait::Now).unwrap();
        assert_eq!(read_all(&log).unwrap(), up_to(keep + 3_000));
    });
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(told.is_ok() && unmounted.success());
}
