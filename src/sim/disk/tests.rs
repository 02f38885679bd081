use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::log::mmap::AppendMap;
use crate::sim::Rng;

fn disk(seed: u64) -> FaultDisk {
    let disk = FaultDisk::new(Rng::new(seed));
    disk.create_dir(Path::new("/d")).unwrap();
    disk
}

fn at(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn dir() -> &'static Path {
    Path::new("/d")
}

fn put(file: &dyn DiskFile, bytes: &[u8], offset: u64) {
    file.write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

fn all(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[derive(Clone, Debug)]
enum Op {
    Write { offset: u64, len: u64 },
    Sync,
    Crash,
    Kill,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0u64..20_000, 1u64..6_000).prop_map(|(offset, len)| Op::Write { offset, len }),
        2 => Just(Op::Sync),
        1 => Just(Op::Crash),
        1 => Just(Op::Kill),
    ];
    prop::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The model: for each byte the values that it may have. One value after a sync; one more with each write since; a
    /// crash picks one, a whole sector at a time.
    #[test]
    fn what_was_synced_survives_and_what_was_not_may(seed: u64, ops in ops(), write_back in 0..2u8) {
        let disk = disk(seed);
        disk.set_faults(DiskFaults { write_back: f64::from(write_back) * 0.5, ..DiskFaults::default() });
        let mut file = disk.create(&at("f"), 8192).unwrap();
        file.sync().unwrap();
        disk.sync_dir(dir()).unwrap();
        let mut seen = vec![0u8; 8192];
        let mut synced_len = 8192;
        let mut may: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut mark = 0u8;
        for op in ops {
            match op {
                Op::Write { offset, len } => {
                    mark = mark.wrapping_add(1);
                    put(&*file, &vec![mark; len as usize], offset);
                    let end = (offset + len) as usize;
                    seen.resize(seen.len().max(end), 0);
                    for byte in offset..offset + len {
                        let before = seen[byte as usize];
                        may.entry(byte).or_insert_with(|| vec![before]).push(mark);
                    }
                    seen[offset as usize..end].fill(mark);
                }
                Op::Sync => {
                    file.sync().unwrap();
                    may.clear();
                    synced_len = seen.len();
                }
                Op::Crash => {
                    disk.lose_power();
                    prop_assert!(file.sync().is_err() && file.len().is_err());
                    file = disk.open(&at("f")).unwrap();
                    let found = all(&*file);
                    prop_assert!(found.len() == synced_len || found.len() == seen.len());
                    for (byte, &value) in found.iter().enumerate() {
                        let allowed = may.get(&(byte as u64)).map_or(value == seen[byte], |may| may.contains(&value));
                        prop_assert!(allowed, "byte {byte} is {value}");
                    }
                    (seen, synced_len) = (found.clone(), found.len());
                    may.clear();
                }
                Op::Kill => {
                    disk.lose_process();
                    prop_assert!(file.len().is_err());
                    file = disk.open(&at("f")).unwrap();
                }
            }
            prop_assert_eq!(&all(&*file), &seen);
        }
    }
}

#[test]
fn a_crash_loses_all_some_or_nothing_of_what_was_not_synced() {
    let mut counts = FaultCounts::default();
    let (mut nothing, mut everything) = (0, 0);
    for seed in 0..60 {
        let disk = disk(seed);
        let file = disk.create(&at("f"), 8192).unwrap();
        file.sync().unwrap();
        disk.sync_dir(dir()).unwrap();
        put(&*file, &[1; 8192], 0);
        disk.lose_power();
        let left = all(&*disk.open(&at("f")).unwrap());
        nothing += u32::from(left.iter().all(|&byte| byte == 0));
        everything += u32::from(left.iter().all(|&byte| byte == 1));
        counts.merge(&disk.counts());
    }
    assert!(nothing > 0 && everything > 0, "nothing left {nothing} times, everything {everything} times");
    assert_eq!(counts.missing(&[Fault::LostWrite, Fault::TornWrite]), []);
}

#[test]
fn a_mapping_sees_later_writes_and_outlives_the_crash() {
    let disk = disk(1);
    let file = disk.create(&at("f"), 8192).unwrap();
    let (map, mut appender) = AppendMap::open(file, 0).unwrap();
    appender.append(&[IoSlice::new(b"abc")]).unwrap();
    appender.append(&[IoSlice::new(b"def")]).unwrap();
    assert_eq!(map.bytes(0..6), b"abcdef");
    disk.lose_power();
    assert!(appender.append(&[IoSlice::new(b"ghi")]).is_err());
    assert_eq!(map.bytes(0..6), b"abcdef");
}

#[test]
fn a_small_file_grows_until_it_is_mapped() {
    let disk = disk(1);
    let file = disk.create(&at("f"), 0).unwrap();
    put(&*file, b"hello", 10_000);
    let (map, _appender) = AppendMap::open(Arc::clone(&file), 10_005).unwrap();
    assert_eq!(map.bytes(10_000..10_005), b"hello");
    assert_eq!(map.capacity(), 10_005);
    assert!(file.write_at(&[IoSlice::new(b"x")], 10_005).is_err());
}

#[test]
fn names_survive_only_if_the_directory_was_synced() {
    let (mut created, mut renamed, mut removed) = ([0; 2], [0; 2], [0; 2]);
    for seed in 0..60 {
        let disk = disk(seed);
        for name in ["kept", "old", "gone"] {
            disk.create(&at(name), 1).unwrap().sync().unwrap();
        }
        disk.sync_dir(dir()).unwrap();
        disk.create(&at("new"), 1).unwrap().sync().unwrap();
        disk.rename(&at("old"), &at("moved")).unwrap();
        disk.remove(&at("gone")).unwrap();
        assert_eq!(disk.list(dir()).unwrap(), ["kept", "moved", "new"]);
        disk.lose_power();
        let names = disk.list(dir()).unwrap();
        let has = |name: &str| names.iter().any(|other| other == name);
        assert!(has("kept"), "seed {seed}");
        assert!(has("old") != has("moved"), "seed {seed}: a rename is one step");
        created[usize::from(has("new"))] += 1;
        renamed[usize::from(has("moved"))] += 1;
        removed[usize::from(has("gone"))] += 1;
        disk.sync_dir(dir()).unwrap();
        disk.lose_power();
        assert_eq!(disk.list(dir()).unwrap(), names, "seed {seed}");
    }
    assert!([created, renamed, removed].as_flattened().iter().all(|&count| count > 0));
}

#[test]
fn a_name_never_has_its_later_change_without_the_earlier() {
    for seed in crate::sim::seeds(100) {
        let disk = disk(seed);
        let old = disk.create(&at("f"), 1).unwrap();
        put(&*old, b"o", 0);
        old.sync().unwrap();
        disk.sync_dir(dir()).unwrap();
        disk.rename(&at("f"), &at("g")).unwrap();
        disk.rename(&at("g"), &at("h")).unwrap();
        disk.create(&at("f"), 0).unwrap();
        disk.lose_power();
        let names = disk.list(dir()).unwrap();
        assert!(["f", "g", "h", "fg", "fh"].contains(&&*names.concat()), "seed {seed}: {names:?}");
        // The new file never took the old one's name before the old one had another.
        let old = names.iter().filter(|name| all(&*disk.open(&at(name)).unwrap()) == b"o").count();
        assert_eq!(old, 1, "seed {seed}: {names:?}");
    }
}

#[test]
fn directories_are_lost_with_all_in_them_only_when_asked_for() {
    let mut lost = 0;
    for (seed, lose) in (0..40).map(|n| (n / 2, n % 2 == 1)) {
        let disk = disk(seed);
        disk.set_faults(DiskFaults { lose_directories: lose, ..DiskFaults::default() });
        disk.create_dir(Path::new("/d/sub")).unwrap();
        disk.create(Path::new("/d/sub/f"), 1).unwrap();
        disk.sync_dir(Path::new("/d/sub")).unwrap();
        disk.lose_power();
        let there = disk.open(Path::new("/d/sub/f")).is_ok();
        assert!(lose || there);
        assert_eq!(there, disk.list(Path::new("/d/sub")).is_ok());
        lost += u32::from(!there);
    }
    assert!(lost > 0);
}

#[test]
fn a_failed_sync_is_not_repaired_by_the_next_and_a_lie_is_found_out() {
    let (mut after_failure, mut after_lie) = (0, 0);
    for seed in 0..40 {
        for fault in [Fault::SyncError, Fault::SyncLied] {
            let disk = disk(seed);
            let file = disk.create(&at("f"), 4096).unwrap();
            file.sync().unwrap();
            disk.sync_dir(dir()).unwrap();
            put(&*file, &[1; 4096], 0);
            disk.fail_nth(fault, 1);
            assert_eq!(file.sync().is_err(), fault == Fault::SyncError);
            if fault == Fault::SyncError {
                assert!(file.sync().is_ok(), "the second sync pretends");
            }
            assert_eq!(all(&*file), [1; 4096]);
            disk.lose_power();
            let lost = all(&*disk.open(&at("f")).unwrap()) != [1; 4096];
            *if fault == Fault::SyncError { &mut after_failure } else { &mut after_lie } += u32::from(lost);
            assert_eq!(disk.counts().of(fault), 1);
        }
    }
    assert!(after_failure > 0 && after_lie > 0);
}

#[test]
fn a_full_disk_refuses_and_gets_its_space_back_by_remove() {
    let disk = disk(1);
    assert_eq!(disk.space(dir()).unwrap(), u64::MAX);
    disk.set_capacity(Some(100));
    let file = disk.create(&at("f"), 90).unwrap();
    assert_eq!(disk.space(dir()).unwrap(), 10);
    let full = disk.create(&at("g"), 11).err().unwrap();
    assert_eq!(full.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
    assert!(file.write_at(&[IoSlice::new(&[1; 20])], 85).is_err());
    assert_eq!(file.len().unwrap(), 90);
    disk.remove(&at("f")).unwrap();
    assert_eq!((disk.used(), disk.space(dir()).unwrap(), file.len().unwrap()), (0, 100, 90));
    assert!(disk.create(&at("g"), 11).is_ok());
    assert_eq!(disk.counts().of(Fault::DiskFull), 2);
}

#[test]
fn a_lock_excludes_and_ends_with_its_guard_or_its_life() {
    let disk = disk(1);
    let guard = disk.lock(&at("lock")).unwrap();
    assert_eq!(disk.lock(&at("lock")).err().unwrap().kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    let old = disk.lock(&at("lock")).unwrap();
    disk.lose_process();
    let new = disk.lock(&at("lock")).unwrap();
    drop(old);
    assert!(disk.lock(&at("lock")).is_err(), "a dead guard releases nothing");
    drop(new);
}

#[test]
fn a_flip_shows_after_the_power_loss_and_not_before() {
    let disk = disk(1);
    let file = disk.create(&at("f"), 4096).unwrap();
    put(&*file, &[0xff; 4096], 0);
    file.sync().unwrap();
    disk.sync_dir(dir()).unwrap();
    disk.flip_at_power_loss(&at("f"), 700, 3);
    assert_eq!(all(&*file), [0xff; 4096]);
    disk.lose_power();
    let found = all(&*disk.open(&at("f")).unwrap());
    assert_eq!((found[700], found.iter().filter(|&&byte| byte != 0xff).count()), (0xf7, 1));
}

#[test]
fn every_fault_fires() {
    let mut counts = FaultCounts::default();
    for seed in 0..40 {
        let disk = disk(seed);
        let odds = 0.1;
        disk.set_faults(DiskFaults {
            write_error: odds,
            no_space: odds,
            create_error: odds,
            read_error: odds,
            sync_error: odds,
            sync_lies: odds,
            dir_sync_error: odds,
            bit_flip: odds,
            write_back: odds,
            lose_directories: false,
        });
        disk.set_capacity(Some(20_000));
        for number in 0..30 {
            let Ok(file) = disk.create(&at(&number.to_string()), 1000) else { continue };
            let _ = file.write_at(&[IoSlice::new(&[1; 1000])], 0);
            let _ = file.sync();
            let _ = file.read_at(&mut [0; 10], 0);
            let _ = disk.sync_dir(dir());
            let _ = file.write_at(&[IoSlice::new(&[2; 1000])], 0);
            if number % 10 == 9 {
                disk.lose_power();
            }
        }
        counts.merge(&disk.counts());
    }
    println!("{counts}");
    use Fault::*;
    let expected = [
        WriteError,
        NoSpace,
        DiskFull,
        CreateError,
        ReadError,
        SyncError,
        SyncLied,
        DirSyncError,
        LostWrite,
        TornWrite,
        LostEntry,
        BitFlip,
    ];
    assert_eq!(counts.missing(&expected), []);
}
