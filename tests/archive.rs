//! The archive: what is written there, and what comes back.
#![cfg(feature = "sim")]

mod common;
#[path = "common/stopping.rs"]
mod stopping;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::nodes::{id, until};
use common::{GROUP, payload, t, v};
use parking_lot::Mutex;
use quorate::archive::bases::{BaseMaker, Bases, Copied, Copies, Parts, retain};
use quorate::archive::object::{ObjectDamage, ReadError, write_log};
use quorate::archive::restore::{Progress, RestoreError};
use quorate::archive::target::PlanError;
use quorate::archive::verify::{Finding, verify};
use quorate::archive::worker::Said;
use quorate::archive::{
    Archive, ArchiveConfig, ArchiveError, DirArchive, Object, RestoreOptions, Restored, Start, Until, base,
    is_object_name, restore,
};
use quorate::clock::{Clock, Deadline, SystemClock, Wait};
use quorate::disk::{Disk, RealDisk};
use quorate::entry::EntryRef;
use quorate::log::{LogConfig, LogScanner};
use quorate::runtime::ThreadRuntime;
use quorate::sim::{FaultDisk, Rng};
use quorate::state::StateFile;
use quorate::worker::{Step, Worker};
use quorate::{
    Config, Engine, EngineError, EngineSnapshot, Entries, EntryKind, GroupId, Host, Item, Items, Log,
    Members, NewEntry, Node, NodeConfig, NodeError, Position, Vlsn,
};
use stopping::Stopping;

/// A clock whose wall time the test sets.
#[derive(Default)]
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn now(&self) -> Deadline {
        SystemClock.now()
    }

    fn wall_micros(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The bytes and the entries of a log.
type Entry = (u64, u32, u64, EntryKind, Vec<u8>);

fn entries(log: &Log) -> Vec<Entry> {
    let mut scanner = log.scanner();
    let mut after = log.base().map(|base| base.vlsn);
    let mut all = Vec::new();
    while let Some(run) = scanner.run(after, 100, 64 << 10).unwrap() {
        for mut rest in run.slices().iter().copied() {
            while !rest.is_empty() {
                let entry = EntryRef::verify(rest).unwrap();
                let header = entry.header();
                let vlsn = header.vlsn.unwrap().get();
                all.push((vlsn, header.term.get(), header.timestamp, header.kind, entry.payload().to_vec()));
                rest = &rest[entry.bytes().len()..];
            }
        }
        after = Some(run.last.vlsn);
    }
    all
}

/// A log in a temporary directory, and an archive of it.
struct Stage {
    dir: tempfile::TempDir,
    clock: Arc<SetClock>,
    log: Log,
    archive: DirArchive,
    /// What was archived.
    last: Option<Position>,
}

fn log_config(dir: &Path, group: GroupId) -> LogConfig {
    LogConfig { segment_bytes: 4096, max_payload: 1024, ..LogConfig::new(dir, group) }
}

impl Stage {
    fn new() -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SetClock::default());
        let shared: Arc<dyn Clock> = Arc::<SetClock>::clone(&clock);
        let config = log_config(&dir.path().join("log"), GROUP);
        let (log, _) = Log::open(Arc::new(RealDisk), shared, config).unwrap();
        let archive = DirArchive::new(Arc::new(RealDisk), dir.path().join("archive"), 1);
        Stage { dir, clock, log, archive, last: None }
    }

    /// Appends entries at the times given, and archives them in one object.
    fn add(&mut self, term: u32, times: &[u64]) {
        for time in times {
            self.clock.0.store(*time, Ordering::SeqCst);
            let next = Vlsn::after(self.log.last().map(|last| last.vlsn)).get();
            self.log.append(t(term), &[NewEntry::data(&payload(next))]).unwrap();
        }
        self.archive_all();
    }

    fn archive_all(&mut self) {
        let last = self.log.last().unwrap();
        let header = write_log(&self.archive, &self.log, GROUP, self.last, last.vlsn, u64::MAX).unwrap();
        assert_eq!(header.unwrap().last, last);
        self.last = Some(last);
    }

    /// Three objects, of three terms, of ten entries each, a second apart.
    fn filled() -> Stage {
        let mut stage = Stage::new();
        for (term, from) in [(1, 1), (4, 11), (5, 21)] {
            let times: Vec<u64> = (from..from + 10).map(|second| second * 1_000_000).collect();
            stage.add(term, &times);
        }
        stage
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("archive")
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn restore(&self, name: &str, until: Until) -> Result<Restored, RestoreError> {
        restore_from(&self.archive, &(Arc::new(RealDisk) as Arc<dyn Disk>), &self.to(name), until)
    }

    fn objects(&self) -> Vec<String> {
        self.archive.list("").unwrap().into_iter().map(|object| object.name).collect()
    }

    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut each = |_bytes: u64, finding: Option<Finding>| found.extend(finding.map(|f| f.to_string()));
        verify(&self.archive, &mut each).unwrap();
        found
    }
}

fn restore_from(
    archive: &dyn Archive,
    disk: &Arc<dyn Disk>,
    dir: &Path,
    until: Until,
) -> Result<Restored, RestoreError> {
    let options = RestoreOptions { until, segment_bytes: 4096, ..RestoreOptions::new(id("r")) };
    let mut last = 0;
    let mut progress = |progress: Progress| {
        assert!(progress.bytes > last && progress.bytes <= progress.of);
        last = progress.bytes;
    };
    restore(archive, disk, &ThreadRuntime, dir, &options, &mut progress)
}

/// Opens the restored node's log, without the node.
fn restored_log(dir: &Path, group: GroupId) -> Log {
    let config = log_config(&dir.join("log"), group);
    Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap().0
}

#[test]
fn a_restore_takes_exactly_the_entries_up_to_its_target() {
    let stage = Stage::filled();
    let all = entries(&stage.log);
    let targets = [
        (Until::End, 30),
        (Until::Vlsn(v(1)), 1),
        (Until::Vlsn(v(10)), 10),
        (Until::Vlsn(v(11)), 11),
        (Until::Vlsn(v(17)), 17),
        (Until::Vlsn(v(30)), 30),
        (Until::Time(1_000_000), 1),
        (Until::Time(10_000_000), 10),
        (Until::Time(16_999_999), 16),
        (Until::Time(17_000_000), 17),
        // Later than all that is known: all of it.
        (Until::Time(u64::MAX), 30),
        (Until::Term(t(1)), 10),
        // No entry has term 3: what stood when it ended.
        (Until::Term(t(3)), 10),
        (Until::Term(t(4)), 20),
        (Until::Term(t(5)), 30),
    ];
    for (at, (target, expected)) in targets.into_iter().enumerate() {
        let name = format!("r{at}");
        let restored = stage.restore(&name, target).unwrap();
        assert_eq!(
            (restored.target.vlsn, restored.end, restored.base),
            (v(expected), v(30), None),
            "{target}"
        );
        assert_eq!((restored.from, restored.term), (GROUP, t(6)));
        assert_eq!(restored.time, expected * 1_000_000);
        assert_ne!(restored.group, GROUP);
        let log = restored_log(&stage.to(&name), restored.group);
        let found = entries(&log);
        assert_eq!(found[..expected as usize], all[..expected as usize], "{target}");
        let own: Vec<(u32, EntryKind)> = found[expected as usize..].iter().map(|e| (e.1, e.3)).collect();
        assert_eq!(
            own,
            [EntryKind::TERM_START, EntryKind::MEMBERSHIP, EntryKind::SLOTS].map(|kind| (6, kind))
        );
        assert_eq!(log.known_committed(), Some(restored.last));
        assert_eq!(log.memberships(), [restored.last.previous().unwrap()]);
    }
}

#[test]
fn targets_outside_of_the_archive_are_refused_by_name() {
    let stage = Stage::filled();
    for target in [Until::Vlsn(v(31)), Until::Term(t(6))] {
        let refused = stage.restore("r", target);
        assert!(
            matches!(refused, Err(RestoreError::Plan(PlanError::TooLate { end, .. })) if end == v(30)),
            "{refused:?}"
        );
    }
    let refused = stage.restore("r", Until::Time(999_999));
    assert!(matches!(refused, Err(RestoreError::Plan(PlanError::TooEarly { .. }))), "{refused:?}");
    let empty = DirArchive::new(Arc::new(RealDisk), stage.to("nothing"), 1);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let refused = restore_from(&empty, &disk, &stage.to("r"), Until::End);
    assert!(matches!(refused, Err(RestoreError::Plan(PlanError::Empty))), "{refused:?}");
    // A refusal leaves nothing behind.
    assert!(!stage.to("r").exists());
}

#[test]
fn a_time_ends_before_the_first_later_entry_also_where_clocks_go_back() {
    let mut stage = Stage::new();
    stage.add(1, &[10, 20, 30]);
    stage.add(2, &[25, 28, 40]);
    for (time, expected) in [(10, 1), (24, 2), (25, 2), (29, 2), (30, 5), (39, 5), (40, 6)] {
        let restored = stage.restore(&format!("t{time}"), Until::Time(time)).unwrap();
        assert_eq!(restored.target.vlsn, v(expected), "{time}");
    }
}

#[test]
fn a_flipped_byte_in_any_object_is_found_and_named() {
    let stage = Stage::filled();
    assert_eq!(stage.findings(), Vec::<String>::new());
    let mut flips = 0;
    for name in stage.objects() {
        let path = stage.root().join(&name);
        let sound = std::fs::read(&path).unwrap();
        // Every byte of the header, and some of the entries.
        for at in (0..128).chain((128..sound.len()).step_by(41)).chain([sound.len() - 1]) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            let dir = stage.to(&format!("r{flips}"));
            flips += 1;
            let refused =
                restore_from(&stage.archive, &(Arc::new(RealDisk) as Arc<dyn Disk>), &dir, Until::End);
            let why = refused.expect_err(&format!("{name} at {at}")).to_string();
            assert!(why.contains(&name), "{name} at {at}: {why}");
            assert!(opens(&dir).is_err(), "{name} at {at}");
            let found = stage.findings();
            assert!(found.iter().any(|finding| finding.contains(&name)), "{name} at {at}: {found:?}");
        }
        for len in [0, 5, 128, sound.len() - 1] {
            std::fs::write(&path, &sound[..len]).unwrap();
            let why = stage.restore(&format!("c{flips}-{len}"), Until::End).unwrap_err().to_string();
            assert!(why.contains(&name), "{name} cut to {len}: {why}");
        }
        std::fs::write(&path, [&sound[..], b"x"].concat()).unwrap();
        assert!(stage.restore(&format!("l{flips}"), Until::End).unwrap_err().to_string().contains(&name));
        std::fs::write(&path, &sound).unwrap();
    }
    assert!(flips > 300, "{flips}");
    stage.restore("sound", Until::End).unwrap();
}

/// Opens the directory as the node whose it is.
fn opens(dir: &Path) -> Result<Node, NodeError> {
    let group = StateFile::open(&RealDisk, &dir.join("state")).map_or(GROUP, |state| state.state().group);
    let config = NodeConfig::new(node_config(dir, group));
    Node::open(config, Box::new(Recorder::default()), Host::machine())
}

fn node_config(dir: &Path, group: GroupId) -> Config {
    let mut config = Config::new(group, id("r"), dir);
    config.segment_bytes = 64 << 10;
    config.max_payload = 8 << 10;
    config
}

#[test]
fn a_missing_object_is_a_gap_and_named_and_what_lies_before_it_is_restored() {
    let stage = Stage::filled();
    let second = stage.root().join(&stage.objects()[1]);
    std::fs::remove_file(second).unwrap();
    for target in [Until::End, Until::Vlsn(v(11)), Until::Vlsn(v(25)), Until::Term(t(5))] {
        let refused = stage.restore("r", target);
        let Err(RestoreError::Plan(PlanError::Gap { missing, .. })) = refused else { panic!("{refused:?}") };
        assert_eq!((missing.first(), missing.last()), (v(11), v(20)));
    }
    assert!(stage.findings().iter().any(|finding| finding.contains("11 to 20")), "{:?}", stage.findings());
    assert_eq!(stage.restore("r", Until::Vlsn(v(10))).unwrap().target.vlsn, v(10));
    std::fs::remove_file(stage.root().join(&stage.objects()[0])).unwrap();
    // Then there is nothing that a restore could begin with, however far it is to go.
    for target in [Until::End, Until::Vlsn(v(5)), Until::Vlsn(v(25)), Until::Time(1), Until::Term(t(5))] {
        let refused = stage.restore("s", target);
        let Err(RestoreError::Plan(PlanError::NoBeginning { missing })) = refused else {
            panic!("{target}: {refused:?}")
        };
        assert_eq!((missing.first(), missing.last()), (v(1), v(20)));
    }
}

#[test]
fn an_object_of_another_group_or_another_history_is_refused_by_name() {
    // The same entries in number, of another group, and of this group with other contents.
    for (group, foreign) in [(GroupId::from_bits(99), true), (GROUP, false)] {
        let stage = Stage::filled();
        let other = tempfile::tempdir().unwrap();
        let config = log_config(other.path(), group);
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        for _ in 0..20 {
            log.append(t(1), &[NewEntry::data(b"other")]).unwrap();
        }
        let base = log.position_at(v(10)).unwrap();
        write_log(&stage.archive, &log, group, Some(base), v(20), u64::MAX).unwrap().unwrap();
        let refused = stage.restore("r", Until::End).unwrap_err();
        let name = "log/00000000000000000011-00000000000000000020";
        assert!(refused.to_string().contains(if foreign { name } else { "another history" }), "{refused}");
        assert_eq!(foreign, matches!(refused, RestoreError::Plan(PlanError::Foreign(_))), "{refused}");
        assert!(opens(&stage.to("r")).is_err());
        assert!(!stage.findings().is_empty());
    }
}

#[test]
fn objects_that_overlap_are_one_log_and_have_to_agree() {
    let mut stage = Stage::filled();
    // A second master cut elsewhere.
    for (after, to) in [(4, 14), (14, 16), (8, 27), (29, 30)] {
        let base = stage.log.position_at(v(after)).unwrap();
        write_log(&stage.archive, &stage.log, GROUP, Some(base), v(to), u64::MAX).unwrap().unwrap();
    }
    assert_eq!((stage.objects().len(), stage.findings()), (7, Vec::new()));
    let all = entries(&stage.log);
    for to in 1..=30 {
        let name = format!("r{to}");
        let restored = stage.restore(&name, Until::Vlsn(v(to))).unwrap();
        let log = restored_log(&stage.to(&name), restored.group);
        assert_eq!(entries(&log)[..to as usize], all[..to as usize]);
    }
    // One that tells something else of what the others hold, too.
    let other = Stage::new();
    stage.archive.remove(&stage.objects()[0]).unwrap();
    for _ in 0..15 {
        other.log.append(t(1), &[NewEntry::data(b"other")]).unwrap();
    }
    write_log(&stage.archive, &other.log, GROUP, None, v(15), u64::MAX).unwrap().unwrap();
    let refused = stage.restore("differs", Until::End).unwrap_err();
    let differs = matches!(
        &refused,
        RestoreError::Read(ReadError::Damaged { damage: ObjectDamage::OtherHistory(_), .. })
    );
    assert!(differs, "{refused:?}");
    stage.last = None;
}

#[test]
fn names_of_objects_lead_nowhere_else_and_links_are_not_followed() {
    for good in ["log/1-2", "base/1-1/manifest", "a", "a.b/c_d-e"] {
        assert!(is_object_name(good), "{good}");
    }
    for bad in
        ["", "/", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", ".", "a b", "a\\b", "ü", &"x".repeat(201)]
    {
        assert!(!is_object_name(bad), "{bad}");
        assert!(is_object_name("x") && DirArchive::new(Arc::new(RealDisk), "/nowhere", 1).open(bad).is_err());
    }
    let stage = Stage::filled();
    let name = &stage.objects()[0];
    let path = stage.root().join(name);
    let elsewhere = stage.to("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(stage.archive.open(name).is_err());
    assert!(stage.restore("r", Until::End).is_err());
}

type Applied = (u64, EntryKind, Vec<u8>);

/// Writes down what it installs and applies.
#[derive(Default)]
struct Recorder {
    book: Arc<Mutex<Vec<Applied>>>,
    installed: Arc<Mutex<Vec<u8>>>,
    applied: Option<Vlsn>,
}

impl Engine for Recorder {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.applied)
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let of = |e: EntryRef<'_>| (e.header().vlsn.unwrap().get(), e.kind(), e.payload().to_vec());
        self.book.lock().extend(entries.iter().map(of));
        self.applied = Some(entries.range().last());
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }

    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let mut bytes = Vec::new();
        for at in 0..items.list().len() {
            items.open(at)?.read_to_end(&mut bytes)?;
        }
        *self.installed.lock() = bytes;
        self.applied = Some(items.at());
        Ok(())
    }
}

/// An engine's state: two items.
struct Fixed {
    at: Vlsn,
    items: Vec<Vec<u8>>,
    next: usize,
    offset: usize,
}

impl Fixed {
    fn at(at: u64) -> Fixed {
        Fixed {
            at: v(at),
            items: vec![format!("state at {at}").into_bytes(), vec![at as u8; 5000]],
            next: 0,
            offset: 0,
        }
    }
}

impl EngineSnapshot for Fixed {
    fn at(&self) -> Vlsn {
        self.at
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        (self.next, self.offset) = (self.next + 1, 0);
        Ok(self.items.get(self.next - 1).map(|_| Item { name: format!("item-{}", self.next), len: None }))
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let part = &self.items[self.next - 1][self.offset..];
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
        self.offset += len;
        Ok(len)
    }
}

impl Stage {
    /// Archives a base at this entry, as the master of its term would.
    fn base(&self, at: u64) {
        let position = self.log.position_at(v(at)).unwrap();
        let own = |name| quorate::Member::electable(id(name));
        let base = quorate::base::Base {
            group: GROUP,
            at: position,
            members: Members::new(vec![own("a"), own("b")]).unwrap(),
            slots: Default::default(),
            history: Vec::new(),
        };
        let time = at * 1_000_000;
        base::write(&self.archive, &mut Fixed::at(at), base, position.term, time).unwrap();
    }

    /// As [`Stage::filled`], with bases at 12 and 25.
    fn with_bases() -> Stage {
        let stage = Stage::filled();
        stage.base(12);
        stage.base(25);
        stage
    }
}

#[test]
fn a_restore_begins_with_the_latest_base_before_its_target() {
    let stage = Stage::with_bases();
    assert_eq!(stage.findings(), Vec::<String>::new());
    let all = entries(&stage.log);
    for (target, base) in
        [(11, None), (12, Some(12)), (13, Some(12)), (24, Some(12)), (25, Some(25)), (30, Some(25))]
    {
        let (name, base) = (format!("r{target}"), base.map(v));
        let restored = stage.restore(&name, Until::Vlsn(v(target))).unwrap();
        assert_eq!((restored.target.vlsn, restored.base), (v(target), base));
        assert_eq!(restored.time, target * 1_000_000);
        let engine = Recorder::default();
        let (book, installed) = (Arc::clone(&engine.book), Arc::clone(&engine.installed));
        let config = NodeConfig::new(node_config(&stage.to(&name), restored.group));
        let node = Node::open(config, Box::new(engine), Host::machine()).unwrap();
        until("the restored node to lead", || node.leads().is_some());
        until("the entries to be applied", || {
            book.lock().last().is_some_and(|last| last.0 > restored.last.get())
        });
        if let Some(base) = base {
            assert!(installed.lock().starts_with(format!("state at {base}").as_bytes()));
        }
        let from = base.map_or(0, Vlsn::get);
        let applied: Vec<_> = book.lock().iter().map(|(vlsn, _, bytes)| (*vlsn, bytes.clone())).collect();
        let expected: Vec<_> =
            all[from as usize..target as usize].iter().map(|e| (e.0, e.4.clone())).collect();
        assert_eq!(applied[..expected.len()], expected);
        let members: Vec<_> = node.members().iter().map(|member| member.id.clone()).collect();
        assert_eq!((members, node.status().keeping.slots.len()), (vec![id("r")], 0));
        assert!(node.term() > restored.term && restored.term > t(5));
    }
}

#[test]
fn damage_in_a_base_is_found_and_named() {
    let stage = Stage::with_bases();
    let bases: Vec<_> = stage
        .objects()
        .into_iter()
        .filter(|name| name.starts_with("base/") && name.contains("25-"))
        .collect();
    assert_eq!(bases.len(), 3);
    for (number, name) in bases.iter().enumerate() {
        let path = stage.root().join(name);
        let sound = std::fs::read(&path).unwrap();
        for at in (0..sound.len()).step_by(7) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            let dir = stage.to(&format!("r{number}-{at}"));
            let refused =
                restore_from(&stage.archive, &(Arc::new(RealDisk) as Arc<dyn Disk>), &dir, Until::End);
            let why = refused.expect_err(name).to_string();
            assert!(why.contains(name), "{at}: {why}");
            assert!(opens(&dir).is_err());
            // The base before it is still good.
            if at == 0 {
                assert_eq!(
                    stage.restore(&format!("before-{number}"), Until::Vlsn(v(24))).unwrap().base,
                    Some(v(12))
                );
                assert!(stage.findings().iter().any(|finding| finding.contains(name)));
            }
        }
        std::fs::remove_file(&path).unwrap();
        let without = stage.restore(&format!("without-{number}"), Until::End);
        match without {
            // Without its manifest it is no base, and the one before is used.
            Ok(restored) => assert!(name.ends_with("manifest") && restored.base == Some(v(12))),
            Err(error) => assert!(error.to_string().contains(name), "{error}"),
        }
        std::fs::write(&path, &sound).unwrap();
    }
}

#[test]
fn a_power_loss_at_any_step_of_a_restore_with_a_base_leaves_what_nobody_opens() {
    let stage = Stage::with_bases();
    every_step_of_a_restore(&stage.archive, Some(v(25)));
}

#[test]
fn retention_keeps_what_a_restore_from_the_kept_bases_needs() {
    let stage = Stage::with_bases();
    stage.base(28);
    let before = stage.objects().len();
    // With fewer bases than are to be kept, the log's beginning is kept with them.
    retain(&stage.archive, 4).unwrap();
    assert_eq!(stage.objects().len(), before);
    retain(&stage.archive, 3).unwrap();
    // The first object lies wholly before the oldest base.
    assert_eq!(stage.objects().len(), before - 1);
    retain(&stage.archive, 2).unwrap();
    let catalog = quorate::archive::Catalog::read(&stage.archive).unwrap();
    assert_eq!(catalog.whole_bases().map(|base| base.at.get()).collect::<Vec<_>>(), [25, 28]);
    assert_eq!(catalog.logs.iter().map(|log| log.range.first().get()).collect::<Vec<_>>(), [21]);
    assert_eq!(stage.findings(), Vec::<String>::new());
    for (target, base) in [(25, 25), (26, 25), (28, 28), (30, 28)] {
        let restored = stage.restore(&format!("r{target}"), Until::Vlsn(v(target))).unwrap();
        assert_eq!((restored.target.vlsn, restored.base), (v(target), Some(v(base))));
    }
    let times = [(25_000_000, 25), (27_500_000, 27), (29_000_000, 29)];
    for (time, expected) in times {
        assert_eq!(stage.restore(&format!("t{time}"), Until::Time(time)).unwrap().target.vlsn, v(expected));
    }
    for target in [Until::Vlsn(v(24)), Until::Time(24_999_999), Until::Term(t(4))] {
        let refused = stage.restore("early", target);
        let Err(RestoreError::Plan(PlanError::TooEarly { oldest, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(oldest, v(25));
    }
}

#[test]
fn a_gap_that_a_base_bridges_is_told_and_only_what_lies_in_it_is_lost() {
    let stage = Stage::filled();
    stage.base(23);
    std::fs::remove_file(stage.root().join("log/00000000000000000011-00000000000000000020")).unwrap();
    let found = stage.findings();
    assert!(
        found.len() == 1 && found[0].contains("11 to 20") && found[0].contains("base at VLSN 23"),
        "{found:?}"
    );
    assert_eq!(stage.restore("a", Until::End).unwrap().base, Some(v(23)));
    assert_eq!(stage.restore("b", Until::Vlsn(v(10))).unwrap().base, None);
    assert_eq!(stage.restore("c", Until::Time(26_000_000)).unwrap().target.vlsn, v(26));
    for target in [Until::Vlsn(v(15)), Until::Vlsn(v(22)), Until::Time(20_000_000), Until::Term(t(4))] {
        let refused = stage.restore("d", target);
        let Err(RestoreError::Plan(PlanError::Gap { missing, .. })) = refused else {
            panic!("{target}: {refused:?}")
        };
        assert_eq!(missing.first(), v(11));
    }
}

#[test]
fn a_restored_directory_opens_as_a_group_of_its_own() {
    let stage = Stage::filled();
    let dir = stage.to("r");
    let restored = stage.restore("r", Until::Vlsn(v(17))).unwrap();
    let state = StateFile::open(&RealDisk, &dir.join("state")).unwrap().state();
    assert_eq!((state.group, state.node, state.term, state.vote), (restored.group, id("r"), t(6), None));
    let book = Arc::new(Mutex::new(Vec::new()));
    let config = NodeConfig::new(node_config(&dir, restored.group));
    let node = Node::open(
        config,
        Box::new(Recorder { book: Arc::clone(&book), ..Recorder::default() }),
        Host::machine(),
    )
    .unwrap();
    until("the restored node to lead", || node.leads().is_some());
    assert!(node.leads() > Some(t(6)));
    let written = node.write(&[NewEntry::data(b"new")], quorate::Policy::MAJORITY, common::nodes::patience());
    assert_eq!(written.unwrap(), quorate::Outcome::Committed);
    let members: Vec<_> = node.members().iter().map(|member| member.id.clone()).collect();
    assert_eq!(members, [id("r")]);
    until("everything to be applied", || book.lock().last().is_some_and(|(_, _, bytes)| bytes == b"new"));
    let applied = book.lock().clone();
    for (vlsn, kind, bytes) in &applied[..17] {
        assert_eq!((*kind, bytes), (EntryKind::DATA, &payload(*vlsn)));
    }
    assert_eq!(applied[17].1, EntryKind::TERM_START);
    assert_eq!(Members::decode(&applied[18].2).unwrap().iter().count(), 1);
    // Nobody of the old group takes it for one of theirs.
    drop(node);
    let refused =
        Node::open(NodeConfig::new(node_config(&dir, GROUP)), Box::new(Recorder::default()), Host::machine());
    assert!(refused.is_err());
}

/// A disk of its own that stops before the change of this number.
fn stopping(steps: u64) -> Arc<Stopping> {
    let disk = Arc::new(FaultDisk::new(Rng::new(steps)));
    Arc::new(Stopping::new(disk, Arc::new(AtomicU64::new(steps))))
}

#[test]
fn a_power_loss_at_any_step_of_archiving_leaves_no_half_object() {
    let stage = Stage::filled();
    let whole = std::fs::read(stage.root().join(&stage.objects()[0])).unwrap();
    let root = Path::new("/a");
    let mut steps = 0;
    loop {
        let disk = stopping(steps);
        let archive = DirArchive::new(Arc::clone(&disk) as Arc<dyn Disk>, root, 1);
        let written = write_log(&archive, &stage.log, GROUP, None, v(10), u64::MAX);
        let stopped = written.is_err();
        disk.restart();
        let after = DirArchive::new(Arc::clone(&disk) as Arc<dyn Disk>, root, 2);
        let there = after.list("").unwrap();
        assert!(!there.is_empty() || stopped, "what was told to be archived is gone");
        for object in &there {
            let mut bytes = Vec::new();
            after.open(&object.name).unwrap().read_to_end(&mut bytes).unwrap();
            assert!(bytes == whole, "step {steps}");
        }
        // It goes on, and what was left unfinished is gone.
        write_log(&after, &stage.log, GROUP, None, v(10), u64::MAX).unwrap().unwrap();
        assert_eq!(disk.list(&root.join("log")).unwrap().len(), 1, "step {steps}");
        if !stopped {
            break;
        }
        steps += 1;
    }
    assert!(steps > 6, "{steps}");
}

#[test]
fn a_power_loss_at_any_step_of_a_restore_leaves_what_nobody_opens() {
    let stage = Stage::filled();
    every_step_of_a_restore(&stage.archive, None);
}

/// Restores with a power loss before every change to the disk; none leaves a directory that opens, or that is restored into
/// once more.
fn every_step_of_a_restore(archive: &dyn Archive, base: Option<Vlsn>) {
    let dir = Path::new("/node");
    let mut steps = 0;
    loop {
        let disk = stopping(steps);
        let plain: Arc<dyn Disk> = Arc::<Stopping>::clone(&disk);
        let group = GroupId::from_bits(77);
        let start = base.map_or(Start::Latest, Start::Base);
        let options =
            RestoreOptions { group: Some(group), start, segment_bytes: 4096, ..RestoreOptions::new(id("r")) };
        let ended = restore(archive, &plain, &ThreadRuntime, dir, &options, &mut |_| ());
        let stopped = ended.is_err();
        disk.restart();
        let config = NodeConfig::new(node_config(dir, group));
        let host = Host { disk: Arc::clone(&plain), ..Host::machine() };
        if !stopped {
            Node::open(config, Box::new(Recorder::default()), host).unwrap();
            break;
        }
        let names = plain.list(dir).unwrap_or_default();
        // Only the last step, the sync of the directory with the small state, may have been done without being told.
        let whole = names.iter().any(|name| name == "state");
        let again = restore(archive, &plain, &ThreadRuntime, dir, &options, &mut |_| ());
        assert_eq!(again.is_ok(), names.is_empty(), "step {steps}: {names:?}");
        if !names.is_empty() {
            let opened = Node::open(config.clone(), Box::new(Recorder::default()), host.clone());
            assert_eq!(opened.is_ok(), whole, "step {steps}: {names:?}, {:?}", opened.err());
        }
        if !names.is_empty() && !whole {
            let refused = Node::create(config, Box::new(Recorder::default()), host);
            let named = matches!(refused, Err(NodeError::HalfRestored { .. } | NodeError::StateLost { .. }));
            assert!(named, "step {steps}: {names:?}, {:?}", refused.err());
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

#[test]
fn a_restore_is_not_made_into_what_is_there() {
    let stage = Stage::filled();
    stage.restore("r", Until::End).unwrap();
    let again = stage.restore("r", Until::End);
    assert!(matches!(again, Err(RestoreError::NotEmpty { .. })), "{again:?}");
    let name = &stage.objects()[2];
    let path = stage.root().join(name);
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(path, bytes).unwrap();
    assert!(stage.restore("half", Until::End).is_err());
    let again = stage.restore("half", Until::Vlsn(v(3)));
    assert!(matches!(again, Err(RestoreError::Unfinished { .. })), "{again:?}");
    assert!(matches!(opens(&stage.to("half")), Err(NodeError::HalfRestored { .. })));
}

#[test]
fn only_what_is_committed_is_archived() {
    let mut stage = Stage::new();
    stage.add(1, &[1, 2, 3]);
    for _ in 0..5 {
        stage.log.append(t(1), &[NewEntry::data(b"more")]).unwrap();
    }
    let header = write_log(&stage.archive, &stage.log, GROUP, stage.last, v(6), u64::MAX).unwrap().unwrap();
    assert_eq!(header.range.last(), v(6));
    assert!(write_log(&stage.archive, &stage.log, GROUP, Some(header.last), v(6), 1).unwrap().is_none());
    // At least one entry, however little is asked for.
    let header = write_log(&stage.archive, &stage.log, GROUP, Some(header.last), v(8), 1).unwrap().unwrap();
    assert_eq!((header.range.first(), header.range.last()), (v(7), v(7)));
}

/// An archive in which one object can't be removed.
struct Immovable {
    to: Arc<DirArchive>,
    stuck: Mutex<Option<String>>,
}

impl Archive for Immovable {
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        self.to.put(name, from)
    }
    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        self.to.open(name)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError> {
        self.to.list(prefix)
    }
    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        match self.stuck.lock().as_deref() == Some(name) {
            true => Err(ArchiveError::io("remove", name)(std::io::ErrorKind::PermissionDenied.into())),
            false => self.to.remove(name),
        }
    }
}

impl Stage {
    /// Another handle on the archive, from which this object can't be removed.
    fn immovable(&self, name: &str) -> Immovable {
        let to = Arc::new(DirArchive::new(Arc::new(RealDisk), self.root(), 2));
        Immovable { to, stuck: Mutex::new(Some(name.to_owned())) }
    }
}

#[test]
fn what_cant_be_removed_keeps_nothing_else_and_no_base_loses_its_items_before_its_manifest() {
    let all = {
        let stage = Stage::with_bases();
        stage.base(28);
        stage.objects()
    };
    let goes = |name: &String| {
        name.contains("base/00000000000000000012") || !name.contains("21-") && name.starts_with("log/")
    };
    for stuck in all.iter().filter(|name| goes(name)) {
        let stage = Stage::with_bases();
        stage.base(28);
        let archive = stage.immovable(stuck);
        let refused = retain(&archive, 2).unwrap_err();
        assert!(refused.to_string().contains(stuck), "{refused}");
        let kept: Vec<_> = all.iter().filter(|name| !goes(name)).cloned().collect();
        let left: Vec<_> = stage.objects().into_iter().filter(|name| !kept.contains(name)).collect();
        match stuck.strip_suffix("manifest") {
            Some(base) => {
                assert!(left.iter().all(|name| name.starts_with(base)) && left.len() == 3, "{left:?}")
            }
            None => assert_eq!(&left, std::slice::from_ref(stuck)),
        }
        // Whatever is left, what is kept is restored, and what is gone is refused by name.
        for target in 25..=30 {
            stage.restore(&format!("r{target}"), Until::Vlsn(v(target))).unwrap();
        }
        let refused = stage.restore("gone", Until::Vlsn(v(24)));
        assert!(matches!(refused, Err(RestoreError::Plan(_))), "{refused:?}");
        assert!(stage.findings().iter().all(|found| found.contains("are missing")), "{:?}", stage.findings());
        *archive.stuck.lock() = None;
        retain(&archive, 2).unwrap();
        assert_eq!(stage.objects(), kept);
    }
}

/// A clock that the test sets.
#[derive(Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Deadline {
        Deadline::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall_micros(&self) -> u64 {
        self.now().as_nanos() / 1000
    }
}

/// Gives copies of a state at VLSN 28, and counts them.
struct Counted {
    log: Log,
    given: Arc<AtomicU64>,
}

impl Copies for Counted {
    fn copy(&mut self, _wait: Wait) -> Result<Option<Copied>, String> {
        self.given.fetch_add(1, Ordering::SeqCst);
        let at = self.log.position_at(v(28)).map_err(|error| error.to_string())?;
        let members = Members::new(vec![quorate::Member::electable(id("a"))]).unwrap();
        let base =
            quorate::base::Base { group: GROUP, at, members, slots: Default::default(), history: Vec::new() };
        Ok(Some(Copied { snapshot: Box::new(Fixed::at(28)), base, pin: self.log.pin("snapshot", v(28)) }))
    }

    fn forget(&mut self) {}
}

#[test]
fn what_cant_be_removed_is_told_and_tried_again_and_no_base_is_made_for_it() {
    let stage = Stage::with_bases();
    let stuck = stage.objects().into_iter().find(|name| name.starts_with("log/")).unwrap();
    let archive = Arc::new(stage.immovable(&stuck));
    let (clock, given) = (Arc::new(Hand::default()), Arc::new(AtomicU64::new(0)));
    let (said, bases) = (Arc::<Said>::default(), Arc::<Bases>::default());
    let mut maker = BaseMaker::new(Parts {
        config: ArchiveConfig::new(Arc::<Immovable>::clone(&archive)),
        log: stage.log.clone(),
        clock: Arc::<Hand>::clone(&clock),
        leads: Box::new(|| Some(t(5))),
        said: Arc::clone(&said),
        bases: Arc::clone(&bases),
        copies: Box::new(Counted { log: stage.log.clone(), given: Arc::clone(&given) }),
    });
    bases.want();
    let mut run = |seconds: u64| {
        for _ in 0..seconds {
            clock.0.fetch_add(1_000_000_000, Ordering::SeqCst);
            while maker.step(Wait::Now).unwrap() == Step::Worked {}
        }
    };
    run(1);
    let why = said.status().failed.expect("it is told");
    assert!(why.contains(&stuck) && why.contains("could not be removed"), "{why}");
    run(600);
    assert_eq!((given.load(Ordering::SeqCst), said.status().failed), (1, Some(why)));
    *archive.stuck.lock() = None;
    run(120);
    assert_eq!((given.load(Ordering::SeqCst), said.status().failed), (1, None));
    assert!(!stage.objects().contains(&stuck));
}

#[test]
fn a_directory_that_is_emptied_or_exchanged_under_an_archive_is_made_again() {
    let stage = Stage::filled();
    let name = &stage.objects()[0];
    let put = |bytes: &[u8]| stage.archive.put(name, &mut &*bytes).unwrap();
    put(b"before");
    std::fs::remove_dir_all(stage.root().join("log")).unwrap();
    put(b"emptied");
    std::fs::rename(stage.root(), stage.to("elsewhere")).unwrap();
    put(b"moved away");
    assert_eq!(std::fs::read(stage.root().join(name)).unwrap(), b"moved away");
    // Also while something is written.
    let emptied = std::cell::Cell::new(false);
    let mut empties = Empties { root: stage.root().join("log"), emptied: &emptied, bytes: &b"bytes"[..] };
    assert!(stage.archive.put(name, &mut empties).is_err() && emptied.get());
    put(b"again");
    assert_eq!(std::fs::read(stage.root().join(name)).unwrap(), b"again");
}

/// Bytes, and meanwhile the directory is gone.
struct Empties<'a> {
    root: PathBuf,
    emptied: &'a std::cell::Cell<bool>,
    bytes: &'a [u8],
}

impl Read for Empties<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if !self.emptied.replace(true) {
            std::fs::remove_dir_all(&self.root)?;
        }
        self.bytes.read(into)
    }
}

#[test]
fn what_unfinished_bases_left_goes_when_a_newer_one_is_there_and_what_may_be_under_way_stays() {
    let stage = Stage::with_bases();
    let before = stage.objects();
    let put = |name: String| {
        let path = stage.root().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"part").unwrap();
        path
    };
    let whole = |at: u64, term: u32| put(base::item_name(v(at), t(term), 0));
    let half = |at: u64, term: u32| {
        put(format!("{}.00000.item.00000000000000ff-0.new", base::prefix(v(at), t(term))))
    };
    // Before the newest base, which stands at 25 in term 5.
    let dead = [whole(20, 4), whole(24, 5), half(13, 4), half(24, 5), half(25, 4), half(12, 4)];
    // Behind it, or of a later term; and no part of a base.
    let alive =
        [whole(27, 5), half(27, 5), whole(14, 6), half(15, 6), put("log/.1-2.00000000000000ff-0.new".into())];
    // As many bases as there may be.
    retain(&stage.archive, 5).unwrap();
    assert_eq!(dead.iter().filter(|path| path.exists()).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert_eq!(alive.iter().filter(|path| !path.exists()).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    assert!(before.iter().all(|name| stage.objects().contains(name)));
}

/// A state during whose copying another node removes what was written.
struct Swept<'a>(Fixed, &'a DirArchive);

impl EngineSnapshot for Swept<'_> {
    fn at(&self) -> Vlsn {
        self.0.at
    }

    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        if self.0.next == 1 {
            retain(self.1, 5)?;
        }
        self.0.next_item()
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        self.0.read(into)
    }
}

#[test]
fn a_base_that_another_node_removes_while_it_is_written_does_not_become_whole() {
    let stage = Stage::with_bases();
    let before = stage.objects();
    let at = stage.log.position_at(v(20)).unwrap();
    let members = Members::new(vec![quorate::Member::electable(id("a"))]).unwrap();
    let base =
        quorate::base::Base { group: GROUP, at, members, slots: Default::default(), history: Vec::new() };
    // A master of term 4, and a base of term 5 is there.
    let mut swept = Swept(Fixed::at(20), &stage.archive);
    let refused = base::write(&stage.archive, &mut swept, base, t(4), 20).unwrap_err();
    assert!(matches!(refused, base::MakeError::Removed(at) if at == v(20)), "{refused}");
    retain(&stage.archive, 5).unwrap();
    assert_eq!((stage.objects(), stage.findings()), (before, Vec::new()));
}
