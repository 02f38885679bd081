use std::path::PathBuf;

use super::*;
use crate::clock::{SystemClock, Wait};
use crate::config::Config;
use crate::disk::RealDisk;
use crate::engine::{EngineError, Items};
use crate::entry::{Entries, Header, NewEntry};
use crate::ids::{GroupId, NodeId, Term, Vlsn};
use crate::log::SEGMENT_HEADER_LEN;
use crate::members::{Member, Members};
use crate::slots::Slots;
use crate::snapshot::{Staging, Whole, digest_of};
use crate::wire::recovery::{SnapshotId, SnapshotPlace};
use crate::worker::{Step, Worker};

const GROUP: GroupId = GroupId::from_bits(7);
/// Entries of the log.
const COUNT: u64 = 60;

fn v(number: u64) -> Vlsn {
    Vlsn::new(number).unwrap()
}

#[derive(Default)]
struct Store {
    installs: u32,
}

impl Engine for Store {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
    fn apply(&mut self, _entries: Entries<'_>) -> Result<(), EngineError> {
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
    fn install(&mut self, _items: &mut dyn Items) -> Result<(), EngineError> {
        self.installs += 1;
        Ok(())
    }
}

/// The directory of a node on which an install was broken off.
struct Place {
    _temporary: tempfile::TempDir,
    dir: PathBuf,
}

impl Place {
    /// A log of small segments that says that VLSN `committed` is; what comes behind `flushed` was never synced.
    fn new(committed: u64, flushed: u64) -> Place {
        let temporary = tempfile::tempdir().unwrap();
        let place = Place { dir: temporary.path().join("a"), _temporary: temporary };
        let log = place.open(DoubtfulTail::Refuse).unwrap();
        let mut flusher = log.flusher();
        for number in 1..=COUNT {
            log.append(Term::new(1), &[NewEntry::data(&[number as u8; 300])]).unwrap();
            if number == committed {
                log.note_committed(v(committed));
            }
            if number <= flushed {
                assert!(log.flush(v(number), Wait::Now).unwrap());
                while let Ok(Step::Worked) = flusher.step(Wait::Now) {}
            }
        }
        log.write_out().unwrap();
        if flushed == COUNT {
            log.close().unwrap();
        }
        place
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn config(&self, doubtful: DoubtfulTail) -> LogConfig {
        let small = LogConfig::new(self.log_dir(), GROUP);
        LogConfig { segment_bytes: 4096, max_payload: 1024, doubtful, ..small }
    }

    fn open(&self, doubtful: DoubtfulTail) -> Result<Log, OpenError> {
        Log::open(Arc::new(RealDisk), Arc::new(SystemClock), self.config(doubtful)).map(|(log, _)| log)
    }

    /// A whole snapshot at this entry is staged, and its install has begun.
    fn begun(&self, at: Position, log: LogPart) {
        let members = Members::new(vec![Member::electable(NodeId::new("a").unwrap())]).unwrap();
        let base = Base { group: GROUP, at, members, slots: Slots::default(), history: Vec::new() }.encode();
        let id = SnapshotId { incarnation: 1, session: 2, number: 3 };
        let mut staging = Staging::begin(Arc::new(RealDisk), &self.dir.join(STAGING), id, &base).unwrap();
        staging.item(0, "empty").unwrap();
        let digest = twox_hash::XxHash3_128::oneshot(&[]);
        staging.item_end(SnapshotPlace { item: 0, offset: 0 }, digest).unwrap();
        let item = crate::snapshot::StagedItem { name: "empty".into(), len: 0, digest };
        let staged =
            staging.finish(&Whole { items: 1, bytes: 0, digest: digest_of(&base, &[item]) }).unwrap();
        let intent = Intent { digest: staged.digest(), at: at.vlsn, log };
        intent.store(&RealDisk, &self.log_dir()).unwrap();
    }

    fn finish(&self) -> Result<u32, NodeError> {
        let config = Config::new(GROUP, NodeId::new("a").unwrap(), self.dir.clone());
        let mut engine = Store::default();
        let log = self.config(DoubtfulTail::Cut);
        finish_install(&Host::machine(), log, &config.dir, &mut engine).map(|()| engine.installs)
    }

    /// The segments' files, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let names = RealDisk.list(&self.log_dir()).unwrap();
        let mut names: Vec<_> =
            names.iter().filter(|name| name.ends_with(".seg") && !name.starts_with("replaced-")).collect();
        names.sort();
        names.into_iter().map(|name| self.log_dir().join(name)).collect()
    }

    fn contents(&self) -> Vec<Vec<u8>> {
        self.segments().iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// The file with an entry, its bytes, where the entry begins, and its header.
    fn find(&self, wanted: u64) -> (PathBuf, Vec<u8>, usize, Header) {
        for path in self.segments() {
            let bytes = std::fs::read(&path).unwrap();
            let mut offset = SEGMENT_HEADER_LEN;
            while let Ok(header) = Header::parse(&bytes[offset..]) {
                if header.vlsn == Vlsn::new(wanted) {
                    return (path, bytes, offset, header);
                }
                offset += header.entry_len();
            }
        }
        panic!("VLSN {wanted} is in no segment");
    }

    fn position(&self, wanted: u64) -> Position {
        self.find(wanted).3.position().unwrap()
    }

    /// Flips a bit in an entry's payload.
    fn flip(&self, wanted: u64) {
        let (path, mut bytes, offset, header) = self.find(wanted);
        bytes[offset + header.entry_len() - 1] ^= 4;
        std::fs::write(path, bytes).unwrap();
    }

    /// It stands on the snapshot, and nothing is left of the install.
    fn stands_on(&self, at: Position) {
        let log = self.open(DoubtfulTail::Refuse).unwrap();
        assert_eq!((log.base(), log.last()), (Some(at), Some(at)));
        log.append(Term::new(2), &[NewEntry::data(b"goes on")]).unwrap();
        log.close().unwrap();
        assert_eq!(load_base(&RealDisk, &self.dir).unwrap().map(|base| base.at), Some(at));
        assert_eq!(Intent::load(&RealDisk, &self.log_dir()).unwrap(), None);
        assert!(Staged::open(Arc::new(RealDisk), &self.dir.join(STAGING)).is_err());
    }
}

/// Where the snapshot stands that replaces the log: behind all of it.
fn beyond() -> Position {
    Position { vlsn: v(90), term: Term::new(1), crc: 77 }
}

#[test]
fn a_log_that_stays_is_judged_when_it_is_opened_and_its_doubtful_end_is_not_cut_before() {
    let place = Place::new(30, 40);
    let at = place.position(20);
    place.flip(55);
    let before = place.contents();
    place.begun(at, LogPart::Kept);
    assert_eq!(place.finish().unwrap(), 1);
    assert!(place.contents() == before, "the log was changed before its end was noted to be in doubt");
    let opened = place.open(DoubtfulTail::RefuseHoles);
    assert!(matches!(opened, Err(OpenError::Doubtful { from, .. }) if from <= v(55)), "{:?}", opened.err());
}

#[test]
fn a_log_that_is_to_be_replaced_is_whatever_has_become_of_it() {
    type Harm = fn(&Place);
    let harms: [(&str, Harm); 5] = [
        ("nothing", |_| ()),
        ("what was durable is damaged", |place| place.flip(58)),
        ("a segment is gone", |place| {
            let path = &place.segments()[1];
            std::fs::remove_file(path).unwrap();
            std::fs::remove_file(path.with_extension("idx")).unwrap();
        }),
        ("the last segment's header is damaged", |place| {
            let path = place.segments().pop().unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[9] ^= 4;
            std::fs::write(path, bytes).unwrap();
        }),
        // It opens, and finds out when it is to be cut there.
        ("where it is known to be committed it is damaged", |place| place.flip(5)),
    ];
    for (what, harm) in harms {
        let place = Place::new(5, COUNT);
        assert!(place.segments().len() > 3);
        harm(&place);
        place.begun(beyond(), LogPart::Replaced);
        let installs = place.finish().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(installs, 1);
        place.stands_on(beyond());
        let kept = RealDisk.list(&place.log_dir()).unwrap();
        let set_aside = kept.iter().any(|name| name.starts_with("replaced-"));
        assert_eq!(set_aside, what != "nothing", "{what}: {kept:?}");
    }
}

#[test]
fn a_log_that_is_set_aside_may_be_so_in_part() {
    let count = Place::new(5, COUNT).segments().len();
    for done in 0..=count {
        let place = Place::new(5, COUNT);
        place.flip(58);
        place.begun(beyond(), LogPart::Replaced);
        // The power failed when so many were renamed, and the engine had the snapshot.
        for path in &place.segments()[..done] {
            for path in [path.clone(), path.with_extension("idx")] {
                let name = path.file_name().unwrap().to_str().unwrap();
                // The last has no index.
                let _renamed = std::fs::rename(&path, place.log_dir().join(format!("replaced-{name}")));
            }
        }
        let installs = place.finish().unwrap_or_else(|error| panic!("{done} of {count}: {error}"));
        assert_eq!(installs, 1);
        place.stands_on(beyond());
        let kept = RealDisk.list(&place.log_dir()).unwrap();
        let set_aside = kept.iter().filter(|name| name.starts_with("replaced-") && name.ends_with(".seg"));
        assert_eq!(set_aside.count(), count, "{done} of {count}: {kept:?}");
    }
}
