//! Damage on a node's disk is found, not served, and healed from whoever has a good copy, with a master or without.
#![cfg(feature = "sim")]

#[path = "common/mod.rs"]
mod common;
#[path = "common/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::path::PathBuf;
use std::time::Duration;

use quorate::clock::Wait;
use quorate::disk::{Disk, RealDisk};
use quorate::entry::{EntryRef, Header};
use quorate::log::{DoubtfulTail, Log, LogConfig, LogScanner, ScanError, ScrubPlace};
use quorate::members::Standing;
use quorate::wire::message::{ControlReply, Message, Order};
use quorate::{Policy, Vlsn};

use common::{GROUP, TestDisk, fill, read_all, settle, v};
use stage::Stage;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// What comes before a segment's first entry.
const HEAD: u64 = quorate::log::SEGMENT_HEADER_LEN as u64;

fn log_dir(stage: &Stage, at: usize) -> PathBuf {
    stage.actors[at].config.base.dir.join("log")
}

fn segments(stage: &Stage, at: usize) -> Vec<PathBuf> {
    let (disk, dir) = (stage.actors[at].sim.disk(), log_dir(stage, at));
    let names = disk.list(&dir).unwrap();
    names.iter().filter(|name| name.ends_with(".seg")).map(|name| dir.join(name)).collect()
}

fn read(stage: &Stage, at: usize, path: &std::path::Path) -> Vec<u8> {
    let file = stage.actors[at].sim.disk().open(path).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn flip(stage: &Stage, at: usize, path: &std::path::Path, offset: u64) {
    let byte = read(stage, at, path)[offset as usize];
    let file = stage.actors[at].sim.disk().open(path).unwrap();
    file.write_at(&[IoSlice::new(&[byte ^ 4])], offset).unwrap();
    file.sync().unwrap();
}

/// Every replicated entry of a node's files: where it is.
fn places(stage: &Stage, at: usize) -> BTreeMap<Vlsn, (PathBuf, u64, usize)> {
    let mut places = BTreeMap::new();
    for path in segments(stage, at) {
        let bytes = read(stage, at, &path);
        let mut offset = HEAD as usize;
        while let Ok(header) = Header::parse(&bytes[offset..]) {
            if let Some(vlsn) = header.vlsn {
                places.insert(vlsn, (path.clone(), offset as u64, header.entry_len()));
            }
            offset += header.entry_len();
        }
    }
    places
}

/// The bytes of all entries that a node's log serves.
fn entries(log: &Log) -> Result<Vec<u8>, ScanError> {
    let mut scanner = log.scanner();
    let (mut after, mut bytes) = (None, Vec::new());
    while let Some(run) = scanner.run(after, u32::MAX, 64 << 10)? {
        run.slices().iter().for_each(|slice| bytes.extend_from_slice(slice));
        after = Some(run.last.vlsn);
    }
    Ok(bytes)
}

/// Waits until all nodes are whole and have the same entries.
#[track_caller]
fn healed(stage: &Stage) {
    stage.until("all to be whole", || {
        stage.up().all(|node| node.log().damaged().is_empty() && node.standing().counts())
    });
    stage.settle();
    let all: Vec<_> = stage.up().map(|node| entries(node.log()).unwrap()).collect();
    assert!(all.iter().all(|one| *one == all[0]), "the logs differ");
    stage.agreed();
}

/// A group that has filled some segments; all but the last are sealed everywhere.
fn filled(seed: u64) -> Stage {
    let stage = Stage::group(seed, &NAMES);
    for number in 0..80_u32 {
        stage.write(&vec![number as u8 | 1; 2000 + number as usize]);
    }
    stage.settle();
    let sealed = || {
        NAMES.iter().enumerate().all(|(at, _)| {
            let segments = segments(&stage, at);
            let disk = stage.actors[at].sim.disk();
            segments[..segments.len() - 1].iter().all(|path| disk.open(&path.with_extension("idx")).is_ok())
        })
    };
    stage.until("sealed segments", sealed);
    assert!(segments(&stage, 0).len() > 2);
    stage
}

/// Has a node scrub now, and waits until it has found something.
fn scrub(stage: &Stage, at: usize) {
    let found = stage.node(at).log().damages_found().get();
    let mut voice = stage.dial(stage.actors[at].name);
    let order = quorate::wire::message::Control { group: GROUP, order: Order::Scrub };
    voice.say(0, &Message::Control(order));
    let answer = voice.hear(stage).map(|(_, message)| match message {
        Message::ControlReply(reply) => reply,
        other => panic!("{other:?}"),
    });
    assert!(matches!(answer, Some(ControlReply::Done(_))), "{answer:?}");
    stage.until("damage to be found", || stage.node(at).log().damages_found().get() > found);
}

#[test]
fn a_flip_that_nobody_read_is_found_by_scrub_and_healed_on_a_replica_and_on_a_master() {
    for on_master in [false, true] {
        let stage = filled(1 + u64::from(on_master));
        let master = stage.master();
        let at = if on_master { master } else { (master + 1) % 3 };
        let before = entries(stage.node(at).log()).unwrap();
        let (path, offset, len) = places(&stage, at)[&v(10)].clone();
        flip(&stage, at, &path, offset + len as u64 / 2);
        scrub(&stage, at);
        stage.until("healing", || stage.node(at).log().damages_healed() == 1);
        healed(&stage);
        assert!(entries(stage.node(at).log()).unwrap().starts_with(&before));
        let scrub = stage.node(at).status().keeping.scrub;
        assert_eq!((scrub.found, scrub.healed), (1, 1));
    }
}

#[test]
fn a_damaged_master_steps_down_and_serves_nothing_of_it_until_it_is_healed() {
    let stage = filled(3);
    let master = stage.master();
    let (path, offset, len) = places(&stage, master)[&v(20)].clone();
    // Nobody can heal it: the others are away.
    stage.isolate(master);
    flip(&stage, master, &path, offset + len as u64 - 1);
    assert!(matches!(stage.node(master).log().payload(v(20)), Err(ScanError::Damaged { .. })));
    assert!(
        matches!(entries(stage.node(master).log()), Err(ScanError::Damaged { from, .. }) if from == v(20))
    );
    stage.until("the master to step down", || stage.node(master).leads().is_none());
    assert!(stage.node(master).status().keeping.damaged.is_some());
    stage.sim.net().heal();
    stage.until("healing", || stage.node(master).log().damages_healed() == 1);
    healed(&stage);
}

#[test]
fn a_header_a_missing_file_and_a_short_one_are_healed_also_when_they_are_found_at_open() {
    for (what, seed) in
        [("header", 4), ("index", 5), ("missing", 6), ("missing with its index", 7), ("short", 8)]
    {
        for reopens in [false, true] {
            if !reopens && what == "missing with its index" {
                continue;
            }
            let mut stage = filled(seed);
            let at = (stage.master() + 1) % 3;
            let path = segments(&stage, at)[1].clone();
            if reopens {
                stage.run(Duration::from_millis(50));
                stage.actors[at].sim.kill();
                stage.actors[at].up = None;
            }
            let disk = stage.actors[at].sim.disk();
            match what {
                "header" => flip(&stage, at, &path, 20),
                "index" => flip(&stage, at, &path.with_extension("idx"), 20),
                "short" => {
                    let bytes = read(&stage, at, &path);
                    disk.remove(&path).unwrap();
                    let file = disk.create(&path, 5000).unwrap();
                    file.write_at(&[IoSlice::new(&bytes[..5000])], 0).unwrap();
                }
                _ => disk.remove(&path).unwrap(),
            }
            if what == "missing with its index" {
                disk.remove(&path.with_extension("idx")).unwrap();
            }
            disk.sync_dir(&log_dir(&stage, at)).unwrap();
            if reopens {
                stage.open(at);
            }
            if what == "index" && reopens {
                // Opening makes it again.
            } else {
                if !reopens || what == "header" {
                    scrub(&stage, at);
                }
                stage.until(what, || stage.node(at).log().damages_healed() == 1);
            }
            healed(&stage);
        }
    }
}

#[test]
fn damage_in_what_is_not_sealed_is_cut_saved_noted_and_healed() {
    let mut stage = filled(9);
    let at = (stage.master() + 1) % 3;
    stage.run(Duration::from_millis(50));
    stage.actors[at].sim.kill();
    stage.actors[at].up = None;
    let last = segments(&stage, at).pop().unwrap();
    let places = places(&stage, at);
    let (vlsn, (_, offset, len)) = places.iter().find(|(_, (path, ..))| *path == last).unwrap();
    flip(&stage, at, &last, offset + *len as u64 / 2);
    stage.open(at);
    assert!(
        matches!(stage.node(at).standing(), Standing::Damaged { from, .. } if from == *vlsn),
        "{:?}",
        stage.node(at).standing()
    );
    let names = stage.actors[at].sim.disk().list(&log_dir(&stage, at)).unwrap();
    assert!(names.iter().any(|name| name.starts_with("damaged-")), "{names:?}");
    healed(&stage);
}

/// Damages every entry on one of the nodes, and lets them all come back at once: there is no master who could feed them.
fn rotate(seed: u64, whose: impl Fn(u64) -> usize) -> Stage {
    let mut stage = filled(seed);
    stage.run(Duration::from_millis(100));
    let before = entries(stage.node(0).log()).unwrap();
    for at in 0..3 {
        stage.actors[at].sim.kill();
        stage.actors[at].up = None;
        for (vlsn, (path, offset, len)) in places(&stage, at) {
            if whose(vlsn.get()) == at {
                // Anywhere in the entry: its header too.
                flip(&stage, at, &path, offset + (vlsn.get() * 31 + seed) % len as u64);
            }
        }
    }
    (0..3).for_each(|at| stage.open(at));
    (0..3).for_each(|at| {
        let scrubbed = stage.node(at).log();
        let mut place = Some(ScrubPlace::default());
        while let Some(next) = place {
            place = scrubbed.scrub(next).next;
        }
    });
    assert!(stage.up().any(|node| !node.standing().counts() || !node.log().damaged().is_empty()));
    healed(&stage);
    assert!(entries(stage.node(0).log()).unwrap().starts_with(&before), "nothing was lost");
    stage
}

#[test]
fn one_good_copy_of_each_entry_anywhere_is_enough() {
    for seed in 20..40 {
        rotate(seed, |vlsn| ((vlsn * 7 + seed) % 3) as usize);
    }
}

#[test]
fn whole_stretches_damaged_on_each_node_in_turn_are_healed() {
    for seed in 30..40 {
        rotate(seed, |vlsn| ((vlsn / 9 + seed) % 3) as usize);
    }
}

#[test]
fn what_nobody_has_halts_its_nodes_by_name_and_nothing_is_cut() {
    let mut stage = filled(40);
    stage.run(Duration::from_millis(100));
    let last = stage.node(0).last().unwrap().vlsn;
    let lost = Vlsn::new(last.get() - 3).unwrap();
    for at in 0..3 {
        stage.actors[at].sim.kill();
        stage.actors[at].up = None;
        let (path, offset, len) = places(&stage, at)[&lost].clone();
        flip(&stage, at, &path, offset + len as u64 / 2);
    }
    (0..3).for_each(|at| stage.open(at));
    let says = format!("VLSN {lost} of {lost} to ");
    stage.until("all to say what is lost", || {
        stage.up().all(|node| node.status().failed.is_some_and(|failed| failed.starts_with(&says)))
    });
    stage.run(Duration::from_secs(5));
    for (at, node) in stage.up().enumerate() {
        assert!(node.leads().is_none() && !node.standing().counts());
        assert_eq!(node.last().map(|last| last.vlsn), lost.previous());
        let saved = node.log().saved().unwrap();
        let names = stage.actors[at].sim.disk().list(&log_dir(&stage, at)).unwrap();
        assert!(names.iter().any(|name| name.starts_with("damaged-")), "{names:?}");
        assert_eq!(saved.vouches(node.last().unwrap()), None);
    }
}

fn of_group(dir: &std::path::Path) -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        max_payload: 1024,
        doubtful: DoubtfulTail::RefuseHoles,
        ..LogConfig::new(dir, GROUP)
    }
}

#[test]
fn a_crash_at_any_step_of_a_replacement_leaves_the_old_file_or_the_new_one() {
    let whole = tempfile::tempdir().unwrap();
    let (log, _) = common::open(whole.path());
    fill(&log, 1, 100);
    assert!(log.flush(v(100), Wait::Now).unwrap());
    settle(&mut log.flusher());
    let mut original = Vec::new();
    let mut scanner = log.scanner();
    let mut after = None;
    while let Some(run) = scanner.run(after, 1, 4096).unwrap() {
        original.push(run.slices().concat());
        after = Some(run.last.vlsn);
    }
    log.close().unwrap();
    let second = common::names(whole.path(), ".seg")[1].clone();
    let mut completed = false;
    let mut limit = 0;
    while !completed {
        let dir = tempfile::tempdir().unwrap();
        for name in RealDisk.list(whole.path()).unwrap() {
            std::fs::copy(whole.path().join(&name), dir.path().join(&name)).unwrap();
        }
        let path = dir.path().join(&second);
        let mut bytes = std::fs::read(&path).unwrap();
        let first = Header::parse(&bytes[HEAD as usize..]).unwrap();
        bytes[HEAD as usize + first.entry_len() - 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let disk = TestDisk::default();
        let (log, _) = disk.open_log(of_group(dir.path())).unwrap();
        completed = {
            disk.0.changes_left.store(limit, std::sync::atomic::Ordering::SeqCst);
            disk.0.limited.store(true, std::sync::atomic::Ordering::SeqCst);
            heal(&log, &original)
        };
        drop(log);
        // The machine comes up again.
        let (log, _) = TestDisk::default().open_log(of_group(dir.path())).unwrap();
        assert!(heal(&log, &original), "after {limit} changes");
        assert_eq!(read_all(&log).unwrap(), (1..=100).collect::<Vec<_>>(), "after {limit} changes");
        limit += 1;
    }
    assert!(limit > 6, "only {limit} steps");
}

/// Scrubs, and heals from these entries; whether all is whole.
fn heal(log: &Log, original: &[Vec<u8>]) -> bool {
    let mut place = Some(ScrubPlace::default());
    while let Some(next) = place {
        place = log.scrub(next).next;
    }
    while let Some(wounded) = log.wounded() {
        let mut fetched = BTreeMap::new();
        for (gap, ..) in wounded.missing() {
            for vlsn in gap.first().get()..=gap.last().get() {
                fetched.insert(v(vlsn), original[vlsn as usize - 1].clone());
            }
        }
        if wounded.mend(&fetched).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn entries_that_do_not_belong_there_are_not_put_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = common::open(dir.path());
    fill(&log, 1, 100);
    assert!(log.flush(v(100), Wait::Now).unwrap());
    settle(&mut log.flusher());
    let path = dir.path().join(&common::names(dir.path(), ".seg")[1]);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = Header::parse(&bytes[HEAD as usize..]).unwrap();
    let at = header.vlsn.unwrap();
    bytes[HEAD as usize + header.entry_len() - 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let mut place = Some(ScrubPlace::default());
    while let Some(next) = place {
        place = log.scrub(next).next;
    }
    assert_eq!(log.damaged().len(), 1);
    let wounded = log.wounded().unwrap();
    let mut other = Vec::new();
    let placement =
        quorate::entry::Placement { vlsn: Some(at), term: header.term, prev: header.prev, timestamp: 1 };
    quorate::entry::encode(&quorate::NewEntry::data(b"another"), &placement, &mut other);
    assert!(EntryRef::verify(&other).is_ok());
    assert!(wounded.mend(&BTreeMap::from([(at, other)])).is_err());
    assert!(wounded.mend(&BTreeMap::new()).is_err());
    assert_eq!(log.damaged().len(), 1);
    assert!(matches!(log.payload(at), Err(ScanError::Damaged { .. })));
    assert_eq!(log.payload(at.next()).unwrap(), common::payload(at.get() + 1));
}

#[test]
fn a_replica_feeds_on_while_another_part_of_its_log_heals() {
    let stage = filled(50);
    let at = (stage.master() + 1) % 3;
    let (path, offset, len) = places(&stage, at)[&v(5)].clone();
    flip(&stage, at, &path, offset + len as u64 / 2);
    assert!(stage.node(at).log().payload(v(5)).is_err());
    let ticket = stage.append(stage.master(), b"meanwhile", Policy::MAJORITY);
    stage.until("a commit", || matches!(stage.node(stage.master()).poll(&ticket), Ok(Some(_))));
    healed(&stage);
}
