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
use quorate::log::{DoubtfulTail, Log, LogConfig, LogScanner, ScanError, ScrubPlace, TruncateError};
use quorate::members::{Change, Standing};
use quorate::sim::NetConfig;
use quorate::wire::message::{ControlReply, Message, Order};
use quorate::{Node, NodeError, Policy, Vlsn};

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

fn now(stage: &Stage) -> quorate::clock::Deadline {
    quorate::clock::Clock::now(&*stage.sim.clock())
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

/// Entries of a node's newest segment, from the first to the last.
fn newest(stage: &Stage, at: usize) -> Vec<(Vlsn, (PathBuf, u64, usize))> {
    let last = segments(stage, at).pop().unwrap();
    places(stage, at).into_iter().filter(|(_, (path, ..))| *path == last).collect()
}

#[test]
fn damage_in_the_segment_that_is_written_to_is_found_and_healed_though_nothing_more_is_written() {
    // Found by a reader, or by scrub; on a replica, or on a master; in the newest entry, or in an older one, or in its header.
    for case in 0..12_u64 {
        let mut stage = filled(200 + case);
        let (by_scrub, on_master) = (case % 2 == 0, case / 2 % 2 == 0);
        let master = stage.master();
        let at = if on_master { master } else { (master + 1) % 3 };
        let before = entries(stage.node(at).log()).unwrap();
        let entries_there = newest(&stage, at);
        let (vlsn, (path, offset, len)) =
            entries_there[(case / 4) as usize * (entries_there.len() - 1) / 2].clone();
        let header = case % 3 == 0;
        flip(&stage, at, &path, offset + if header { 9 } else { len as u64 / 2 });
        if by_scrub {
            scrub(&stage, at);
        } else {
            assert!(stage.node(at).log().payload(vlsn).is_err(), "case {case}");
        }
        stage.until("healing", || stage.node(at).log().damages_healed() == 1);
        healed(&stage);
        assert!(entries(stage.node(at).log()).unwrap().starts_with(&before), "case {case}");
        // It is whole on the disk too, and written to as before.
        stage.crash(at);
        stage.open(at);
        assert!(stage.node(at).standing().counts(), "case {case}");
        assert!(stage.node(at).log().known_committed() >= Some(vlsn), "case {case}: its marks are not lost");
        stage.write(b"after");
        healed(&stage);
        assert!(entries(stage.node(at).log()).unwrap().starts_with(&before), "case {case}");
    }
}

#[test]
fn two_of_three_that_are_damaged_in_what_they_write_to_heal_each_other_and_go_on() {
    for seed in 220..226 {
        let mut stage = filled(seed);
        let master = stage.master();
        let [other, gone] = [(master + 1) % 3, (master + 2) % 3];
        stage.crash(gone);
        let before = entries(stage.node(master).log()).unwrap();
        for (at, from_end) in [(other, 1), (master, 2)] {
            let entries = newest(&stage, at);
            let (vlsn, (path, offset, len)) = entries[entries.len() - from_end].clone();
            flip(&stage, at, &path, offset + len as u64 / 2);
            assert!(stage.node(at).log().payload(vlsn).is_err());
        }
        stage.until("both to be whole", || stage.up().all(|node| node.log().damaged().is_empty()));
        stage.write_among(&[master, other], b"after");
        healed(&stage);
        assert!(entries(stage.node(other).log()).unwrap().starts_with(&before), "seed {seed}");
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
fn a_damaged_master_hands_over_to_an_heir_that_has_everything() {
    for seed in 60..70 {
        let stage = filled(seed);
        let old = stage.master();
        let (path, offset, len) = places(&stage, old)[&v(20)].clone();
        flip(&stage, old, &path, offset + len as u64 - 1);
        let began = now(&stage);
        assert!(stage.node(old).log().payload(v(20)).is_err());
        let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
        stage.until("an heir", || stage.leader_of(&others).is_some());
        // Without a word from the old master they would have waited for longer.
        assert!(now(&stage) - began < stage::TIMEOUT, "seed {seed}");
        healed(&stage);
    }
}

#[test]
fn a_damaged_list_of_members_or_slots_poisons_nobody_and_its_node_does_not_lead_by_an_older_one() {
    for seed in 70..80 {
        let mut stage = Stage::group(seed, &NAMES);
        let master = stage.master();
        let [at, gone] = [(master + 1) % 3, (master + 2) % 3];
        let removed = common::nodes::id(NAMES[gone]);
        let mut listed = None;
        stage.until("the change", || {
            listed = listed.or(stage
                .node(master)
                .change(&Change::Remove(removed.clone()))
                .ok()
                .map(|one| one.token.vlsn));
            listed.is_some()
        });
        stage.crash(gone);
        let mut slot = None;
        stage.until("the slot", || {
            slot = slot.or(stage.node(master).create_slot("backup", None).ok().map(|one| one.token.vlsn));
            slot.is_some()
        });
        for number in 0..60_u8 {
            stage.write_among(&[master, at], &vec![number | 1; 2000]);
        }
        stage.run(Duration::from_millis(100));
        stage.actors[at].sim.kill();
        stage.actors[at].up = None;
        let places = places(&stage, at);
        for vlsn in [listed.unwrap(), slot.unwrap()] {
            let (path, offset, len) = places[&vlsn].clone();
            flip(&stage, at, &path, offset + len as u64 - 1);
        }
        // Nobody can heal it yet.
        stage.isolate(at);
        stage.open(at);
        stage.run(stage::TIMEOUT * 20);
        let node = stage.node(at);
        assert_eq!((node.leads(), node.status().failed), (None, None), "seed {seed}");
        assert!(!node.log().damaged().is_empty());
        assert!(node.members().find(&removed).is_some(), "an older list tells whom to ask");
        stage.sim.net().heal();
        stage.until("the list to be back", || stage.node(at).members().find(&removed).is_none());
        healed(&stage);
        assert!(stage.node(at).slots().find("backup").is_some());
    }
}

#[test]
fn damage_that_everybody_else_has_pruned_and_nobody_needs_is_dropped_and_bars_nobody() {
    for seed in 90..96 {
        let stage = filled(seed);
        let master = stage.master();
        let at = (master + 1) % 3;
        // This node keeps its log for somebody; the others do not.
        let pin = stage.node(at).log().pin("subscription:late", v(1));
        let (path, offset, len) = places(&stage, at)[&v(20)].clone();
        stage.until("the others to have pruned it", || {
            let oldest = |node: usize| {
                let _perhaps_later = stage.node(node).prune(v(60));
                stage.node(node).log().oldest()
            };
            // All are asked each time: the followers wait for a list that the master writes.
            let others: Vec<_> = (0..3).filter(|node| *node != at).map(oldest).collect();
            others.iter().all(|oldest| *oldest > Some(v(25)))
        });
        assert!(stage.node(at).log().oldest() < Some(v(20)));
        flip(&stage, at, &path, offset + len as u64 - 1);
        assert!(stage.node(at).log().payload(v(20)).is_err());
        assert!(pin.holds());
        stage.until("it to be dropped", || stage.node(at).log().damaged().is_empty());
        assert!(stage.node(at).log().oldest() > Some(v(20)), "seed {seed}");
        assert!(!pin.holds(), "who needs it is told");
        // It may lead again.
        stage.until("it to lead", || {
            let _perhaps_later = stage
                .node(stage.master())
                .transfer(Some(&common::nodes::id(NAMES[at])), Duration::from_secs(1));
            stage.node(at).leads().is_some()
        });
        stage.write(b"after");
        stage.agreed();
    }
}

#[test]
fn damage_that_everybody_else_has_pruned_and_the_engine_needs_is_passed_by_a_snapshot() {
    for seed in 100..104 {
        let mut stage = filled(seed);
        let master = stage.master();
        for actor in &stage.actors {
            actor.book.gives.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        let at = (master + 1) % 3;
        let pin = stage.node(at).log().pin("subscription:late", v(1));
        let (path, offset, len) = places(&stage, at)[&v(20)].clone();
        stage.until("the others to have pruned it", || {
            let oldest = |node: usize| {
                let _perhaps_later = stage.node(node).prune(v(60));
                stage.node(node).log().oldest()
            };
            // All are asked each time: the followers wait for a list that the master writes.
            let others: Vec<_> = (0..3).filter(|node| *node != at).map(oldest).collect();
            others.iter().all(|oldest| *oldest > Some(v(25)))
        });
        stage.run(Duration::from_millis(100));
        stage.actors[at].sim.kill();
        stage.actors[at].up = None;
        drop(pin);
        // Its engine begins anew, from a log that it can't read through.
        stage.actors[at].book = std::sync::Arc::default();
        flip(&stage, at, &path, offset + len as u64 - 1);
        stage.open(at);
        stage.until("it to be passed", || {
            stage.node(at).log().damaged().is_empty() && stage.node(at).log().oldest() > Some(v(20))
        });
        let token = stage.write(b"after");
        stage.until("it to apply again", || stage.node(at).positions().applied >= Some(token.vlsn));
        stage.settle();
        stage.agreed();
    }
}

#[test]
fn damage_that_everybody_else_has_pruned_is_passed_by_a_snapshot_also_where_nobody_can_lead_without_that_node()
 {
    for seed in 110..116 {
        let mut stage = Stage::new(seed, &["n1", "n2"]);
        // What n2 has sealed and pruned is in what n1 has not sealed yet.
        stage.actors[0].config.base.segment_bytes = 1 << 20;
        for at in 0..2 {
            stage.actors[at].book.gives.store(true, std::sync::atomic::Ordering::SeqCst);
            stage.create(at);
        }
        stage.settle();
        for number in 0..80_u32 {
            stage.write(&vec![number as u8 | 1; 2000 + number as usize]);
        }
        stage.until("n2 to lead", || {
            let heir = common::nodes::id("n2");
            let _perhaps_later = stage.node(0).transfer(Some(&heir), Duration::from_secs(1));
            stage.node(1).leads().is_some()
        });
        stage.until("n2 to have pruned it", || {
            let _perhaps_later = stage.node(1).prune(v(60));
            stage.node(1).log().oldest() > Some(v(25))
        });
        stage.settle();
        stage.run(Duration::from_millis(100));
        let before = stage.agreed();
        for at in 0..2 {
            stage.actors[at].sim.kill();
            stage.actors[at].up = None;
        }
        let (path, offset, len) = places(&stage, 0)[&v(20)].clone();
        flip(&stage, 0, &path, offset + len as u64 - 1);
        (0..2).for_each(|at| stage.open(at));
        assert!(
            matches!(stage.node(0).standing(), Standing::Damaged { from, .. } if from == v(20)),
            "{:?}",
            stage.node(0).standing()
        );
        stage.until("both to be whole", || stage.up().all(|node| node.standing().counts()));
        stage.write(b"after");
        stage.settle();
        assert!(stage.agreed().starts_with(&before), "seed {seed}: nothing was lost");
    }
}

#[test]
fn a_node_that_is_alone_drops_damage_that_its_engine_is_beyond_and_leads_again_with_all_it_had() {
    for seed in 82..86 {
        let mut stage = Stage::group(seed, &["n1"]);
        let mut slot = None;
        stage.until("a slot", || {
            slot = slot.or(stage.node(0).create_slot("backup", None).ok());
            slot.is_some()
        });
        for number in 0..100_u8 {
            stage.write(&vec![number | 1; 2000]);
        }
        stage.run(Duration::from_millis(100));
        let before = stage.agreed();
        let (path, offset, len) = places(&stage, 0)[&v(20)].clone();
        flip(&stage, 0, &path, offset + len as u64 - 1);
        scrub(&stage, 0);
        stage.until("it to be dropped", || stage.node(0).log().damaged().is_empty());
        assert!(stage.node(0).log().oldest() > Some(v(20)), "seed {seed}");
        stage.write(b"after");
        for reopens in [false, true] {
            if reopens {
                stage.crash(0);
                stage.open(0);
                stage.write(b"and later");
            }
            stage.settle();
            let members = stage.node(0).members();
            assert_eq!(members.iter().map(|one| one.id.to_string()).collect::<Vec<_>>(), ["n1"]);
            assert!(stage.node(0).slots().find("backup").is_some(), "what the log began with says the base");
            assert!(stage.agreed().starts_with(&before), "seed {seed}");
        }
    }
}

#[test]
fn a_node_that_is_alone_refuses_damage_by_name_and_drops_nothing() {
    for (seed, sealed) in [(80, false), (81, true)] {
        let mut stage = Stage::group(seed, &["n1"]);
        for number in 0..100_u8 {
            stage.write(&vec![number | 1; 2000]);
        }
        stage.run(Duration::from_millis(100));
        let last = stage.node(0).last();
        stage.actors[0].sim.kill();
        stage.actors[0].up = None;
        let all = segments(&stage, 0);
        assert!(all.len() > 2);
        let disk = stage.actors[0].sim.disk();
        if sealed {
            disk.remove(&all[1]).unwrap();
        } else {
            let places = places(&stage, 0);
            let (_, (path, offset, len)) =
                places.iter().find(|(_, (path, ..))| path == &all[all.len() - 1]).unwrap();
            flip(&stage, 0, path, offset + *len as u64 / 2);
        }
        let before = disk.list(&log_dir(&stage, 0)).unwrap();
        for _ in 0..2 {
            let error = stage.try_open(0).map(|_: Node| ()).unwrap_err();
            assert!(
                matches!(error, NodeError::DamagedAlone { to, .. } if to >= last.map(|last| last.vlsn) || sealed),
                "{error}"
            );
            assert!(error.to_string().contains("quorate log repair"), "{error}");
        }
        let after = disk.list(&log_dir(&stage, 0)).unwrap();
        assert!(
            before.iter().all(|name| name.ends_with(".new") || after.contains(name)),
            "{before:?} {after:?}"
        );
    }
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
fn a_cut_behind_damage_waits_until_it_is_healed_and_changes_nothing_before() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { segment_bytes: 64 << 10, ..of_group(dir.path()) };
    let (log, _) = TestDisk::default().open_log(config).unwrap();
    fill(&log, 1, 100);
    assert!(log.flush(v(100), Wait::Now).unwrap());
    let mut original = Vec::new();
    let mut scanner = log.scanner();
    let mut after = None;
    while let Some(run) = scanner.run(after, 1, 4096).unwrap() {
        original.push(run.slices().concat());
        after = Some(run.last.vlsn);
    }
    let names = common::names(dir.path(), ".seg");
    assert_eq!(names.len(), 1, "all is in the segment that is written to");
    let path = dir.path().join(&names[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(original[49].len()).position(|bytes| bytes == original[49]).unwrap();
    bytes[at + original[49].len() - 1] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    for _ in 0..2 {
        let refused = log.truncate_after(Some(v(70))).unwrap_err();
        assert!(matches!(refused, TruncateError::Damaged { from, .. } if from == v(71)), "{refused}");
        assert!(!log.poisoned() && !log.damaged().is_empty());
    }
    log.seal_damaged().unwrap();
    assert!(heal(&log, &original));
    assert_eq!(log.truncate_after(Some(v(70))).unwrap().last.map(|last| last.vlsn), Some(v(70)));
    assert_eq!(read_all(&log).unwrap(), (1..=70).collect::<Vec<_>>());
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
    assert!(wounded.mend(&BTreeMap::<Vlsn, Vec<u8>>::new()).is_err());
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

#[test]
fn a_gap_that_takes_its_giver_long_is_healed_all_the_same() {
    let stage = filled(51);
    let at = (stage.master() + 1) % 3;
    let path = segments(&stage, at)[1].clone();
    stage.actors[at].sim.disk().remove(&path).unwrap();
    // A run is on its way for longer than a few of them fit into a round of questions.
    let way = Duration::from_millis(10);
    stage.sim.net().configure(NetConfig { min_delay: way, max_delay: way, ..NetConfig::default() });
    scrub(&stage, at);
    stage.until("it to be healed", || stage.node(at).log().damages_healed() == 1);
    healed(&stage);
}
