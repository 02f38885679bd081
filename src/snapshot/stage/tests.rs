use std::io::Read;
use std::sync::Arc;

use super::*;
use crate::disk::RealDisk;
use crate::engine::Items;
use crate::ids::{GroupId, NodeId, Position, Term, Vlsn};
use crate::members::{Member, Members};
use crate::slots::Slots;
use crate::snapshot::{Intent, LogPart};
use crate::wire::recovery::SnapshotEnd;
use twox_hash::XxHash3_128;

const ID: SnapshotId = SnapshotId { incarnation: 1, session: 2, number: 3 };

fn base() -> Vec<u8> {
    let members = Members::new(vec![Member::electable(NodeId::new("a").unwrap())]).unwrap();
    let at = Position { vlsn: Vlsn::new(90).unwrap(), term: Term::new(4), crc: 5 };
    Base { group: GroupId::from_bits(7), at, members, slots: Slots::default(), history: Vec::new() }.encode()
}

fn place(item: u32, offset: u64) -> SnapshotPlace {
    SnapshotPlace { item, offset }
}

fn items() -> Vec<(&'static str, Vec<u8>)> {
    vec![("records", (0..100_000u32).map(|n| n as u8).collect()), ("empty", vec![]), ("a.b", vec![7; 300])]
}

/// The stream from a place on, in chunks of 1,000 bytes, up to `steps` of them; `true` at its end.
fn feed(staging: &mut Staging, steps: usize, every: usize) -> bool {
    let mut left = steps;
    let from = staging.place();
    for (number, (name, bytes)) in items().into_iter().enumerate().skip(from.item as usize) {
        let number = number as u32;
        staging.item(number, name).unwrap();
        let mut offset = if number == from.item { from.offset } else { 0 };
        for chunk in bytes[offset as usize..].chunks(1000) {
            if left == 0 {
                return false;
            }
            left -= 1;
            staging.chunk(place(number, offset), chunk).unwrap();
            offset += chunk.len() as u64;
            if left.is_multiple_of(every) {
                assert_eq!(staging.sync().unwrap(), staging.place());
            }
        }
        staging.item_end(place(number, offset), XxHash3_128::oneshot(&bytes)).unwrap();
    }
    true
}

fn end() -> SnapshotEnd {
    let items: Vec<StagedItem> = items()
        .into_iter()
        .map(|(name, bytes)| StagedItem {
            name: name.to_owned(),
            len: bytes.len() as u64,
            digest: XxHash3_128::oneshot(&bytes),
        })
        .collect();
    let bytes = items.iter().map(|item| item.len).sum();
    SnapshotEnd { items: items.len() as u32, bytes, digest: digest_of(&base(), &items) }
}

#[test]
fn a_snapshot_staged_in_any_number_of_attempts_is_whole() {
    let mut total = 0;
    for steps in [1000, 7, 20, 1] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("snapshot");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        assert!(Staging::resume(Arc::clone(&disk), &dir).unwrap().is_none());
        let mut staging = Staging::begin(Arc::clone(&disk), &dir, ID, &base()).unwrap();
        while !feed(&mut staging, steps, 2) {
            let (written, synced) = (staging.place(), staging.synced());
            drop(staging);
            assert!(matches!(Staged::open(Arc::clone(&disk), &dir), Err(StageError::Unfinished { .. })));
            staging = Staging::resume(Arc::clone(&disk), &dir).unwrap().unwrap();
            assert_eq!((staging.id(), staging.place()), (ID, synced), "{written:?}");
            total += 1;
        }
        let staged = staging.finish(&end()).unwrap();
        assert_eq!(staged.digest(), end().digest);
        let staged = Staged::open(disk, &dir).unwrap();
        assert_eq!((staged.at().get(), staged.list().len()), (90, 3));
        for (at, (name, bytes)) in items().into_iter().enumerate() {
            let mut read = Vec::new();
            Items::open(&staged, at).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!((staged.list()[at].name.as_str(), &read), (name, &bytes));
        }
    }
    assert!(total > 100);
}

#[test]
fn reading_back_may_stop_at_any_piece_and_nothing_has_to_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut staging = Staging::begin(Arc::clone(&disk), dir.path(), ID, &base()).unwrap();
    let bytes = vec![9; 1 << 20];
    staging.item(0, "long").unwrap();
    staging.chunk(place(0, 0), &bytes).unwrap();
    let digest = XxHash3_128::oneshot(&bytes);
    staging.item_end(place(0, 1 << 20), digest).unwrap();
    let item = StagedItem { name: "long".into(), len: 1 << 20, digest };
    let end = SnapshotEnd { items: 1, bytes: 1 << 20, digest: digest_of(&base(), &[item]) };
    for steps in 0.. {
        let mut sealing = Some(staging.end(&end).unwrap());
        for _ in 0..steps {
            sealing = match sealing.take().unwrap().step().unwrap() {
                Sealed::Not(more) => Some(more),
                Sealed::Whole(_) => break,
            };
        }
        if sealing.is_none() {
            assert!(steps > 4, "a piece is a part of it");
            break;
        }
        // The node closes, and is opened again.
        drop(sealing);
        assert!(matches!(Staged::open(Arc::clone(&disk), dir.path()), Err(StageError::Unfinished { .. })));
        staging = Staging::resume(Arc::clone(&disk), dir.path()).unwrap().unwrap();
        assert_eq!(staging.place(), place(1, 0));
    }
    Staged::open(disk, dir.path()).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let begin = || Staging::begin(Arc::clone(&disk), &dir.path().join("s"), ID, &base()).unwrap();
    let mut staging = begin();
    for name in ["../x", "", "a/b", ".."] {
        assert!(matches!(staging.item(0, name), Err(StageError::Name { .. })), "{name}");
    }
    assert!(matches!(staging.chunk(place(0, 0), b"x"), Err(StageError::Order { .. })));
    assert!(matches!(staging.item_end(place(0, 0), 0), Err(StageError::Order { .. })));
    assert!(matches!(staging.item(1, "x"), Err(StageError::Place { .. })));
    staging.item(0, "x").unwrap();
    assert!(matches!(staging.item(0, "y"), Err(StageError::Order { .. })));
    for wrong in [place(0, 1), place(1, 0), place(0, u64::MAX)] {
        assert!(matches!(staging.chunk(wrong, b"x"), Err(StageError::Place { .. })));
    }
    staging.chunk(place(0, 0), b"xyz").unwrap();
    assert!(matches!(staging.item_end(place(0, 2), 0), Err(StageError::Place { .. })));
    // An item that has not ended, a digest that differs, an end that says otherwise.
    assert!(matches!(staging.finish(&end()), Err(StageError::Order { item: 0 })));
    let mut staging = begin();
    staging.item(0, "x").unwrap();
    staging.chunk(place(0, 0), b"xyz").unwrap();
    staging.item_end(place(0, 3), 1).unwrap();
    let items = [StagedItem { name: "x".into(), len: 3, digest: 1 }];
    let whole = SnapshotEnd { items: 1, bytes: 3, digest: digest_of(&base(), &items) };
    assert!(matches!(staging.finish(&whole), Err(StageError::ItemDigest { item: 0, .. })));
    let mut staging = begin();
    assert!(feed(&mut staging, 1000, 9));
    assert!(matches!(staging.finish(&SnapshotEnd { bytes: 1, ..end() }), Err(StageError::Whole { .. })));
    assert!(matches!(Staged::open(disk, &dir.path().join("s")), Err(StageError::Unfinished { .. })));
}

#[test]
fn a_staged_item_that_changed_is_never_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut staging = Staging::begin(Arc::clone(&disk), dir.path(), ID, &base()).unwrap();
    assert!(feed(&mut staging, 1000, 9));
    let staged = staging.finish(&end()).unwrap();
    let path = item_path(dir.path(), 0);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[70_000] ^= 1;
    for bytes in [&bad[..], &good[..99_999]] {
        std::fs::write(&path, bytes).unwrap();
        let mut read = Vec::new();
        assert!(Items::open(&staged, 0).unwrap().read_to_end(&mut read).is_err());
        // Also for a reader that asks for no more than it should be.
        let mut exact = vec![0; 100_000];
        assert!(Items::open(&staged, 0).unwrap().read_exact(&mut exact).is_err());
        assert!(matches!(staged.verify(), Err(StageError::ItemDigest { item: 0, .. })));
    }
    let manifest = dir.path().join("manifest");
    let good = std::fs::read(&manifest).unwrap();
    for bit in 0..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&manifest, flipped).unwrap();
        let refused = Staged::open(Arc::clone(&disk), dir.path()).is_err();
        assert!(refused || (5..8).contains(&(bit / 8)), "{bit}");
    }
    discard(&*disk, dir.path()).unwrap();
    assert_eq!(disk.list(dir.path()).unwrap(), Vec::<String>::new());
}

#[test]
fn an_intent_round_trips_and_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Intent::load(&RealDisk, dir.path()).unwrap(), None);
    for log in [LogPart::Kept, LogPart::Replaced] {
        let intent = Intent { digest: u128::MAX - 1, at: Vlsn::new(9).unwrap(), log };
        intent.store(&RealDisk, dir.path()).unwrap();
        assert_eq!(Intent::load(&RealDisk, dir.path()).unwrap(), Some(intent));
    }
    Intent::forget(&RealDisk, dir.path()).unwrap();
    Intent::forget(&RealDisk, dir.path()).unwrap();
    assert_eq!(Intent::load(&RealDisk, dir.path()).unwrap(), None);
}
