//! Entries are appended, scanned, sent and received without an allocation per entry, over TCP and across segments.
#![allow(missing_docs, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quorate::clock::deadline_in;
use quorate::log::LogScanner;
use quorate::*;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations that a new segment may cost a master and a replica together: path, mapping, index, sidecar.
const PER_SEGMENT: u64 = 100;
const SEGMENT: u64 = 1 << 20;
const PAYLOAD: [u8; 128] = [7; 128];
const ENTRY: u64 = (entry::HEADER_LEN + PAYLOAD.len()) as u64;
const IN_A_SEGMENT: u64 = SEGMENT / ENTRY;

#[derive(Default)]
struct Nothing(Option<Vlsn>);

impl Engine for Nothing {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0)
    }
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        self.0 = Some(entries.range().last());
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0)
    }
}

fn patience() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(60)))
}

/// Allocations during `work`.
fn counted(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    work();
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

/// One test, because the allocations of others would be counted too.
#[test]
fn a_running_stream_allocates_nothing_for_an_entry() {
    let temp = tempfile::tempdir().unwrap();
    let ids = ["m", "r"].map(|name| NodeId::new(name).unwrap());
    let members = Members::new(ids.iter().cloned().map(Member::electable).collect()).unwrap();
    let config = |at: usize| {
        let dir = temp.path().join(ids[at].as_str());
        let mut config = Config::new(GroupId::from_bits(9), ids[at].clone(), dir);
        config.members = members.clone();
        config.segment_bytes = SEGMENT;
        config.max_payload = 4096;
        // Nothing but the stream itself shall happen meanwhile.
        config.lazy_flush = Duration::from_secs(60);
        config.heartbeat = Duration::from_secs(1);
        config.checkpoint_every = Duration::from_secs(600);
        config
    };
    let mut of_master = config(0);
    of_master.listen = Some(Address::Tcp("127.0.0.1:0".into()));
    let master = Master::open(of_master, Box::new(Nothing::default()), Host::machine()).unwrap();
    let mut of_replica = config(1);
    of_replica.upstream = master.address().cloned();
    let replica = Replica::open(of_replica, Box::new(Nothing::default()), Host::machine()).unwrap();
    let life = replica.log().life();
    assert!(life.written.wait(1, patience()).unwrap());

    let entries = [NewEntry::data(&PAYLOAD); 16];
    let last = || master.last().unwrap().vlsn;
    let stream = |count: u64| {
        for _ in 0..count / entries.len() as u64 {
            master.append(&entries, Policy::Async).unwrap();
            // A committer waits now and then, so that waiting is counted as well, and the replica keeps up.
            assert!(life.written.wait(last().get(), patience()).unwrap());
        }
    };
    // Buffers grow to what they will be; ends a little behind the beginning of a segment.
    stream(IN_A_SEGMENT * 6 + IN_A_SEGMENT / 8);
    // The background's last work for these segments.
    assert!(master.log().flush(last(), patience()).unwrap());
    assert!(replica.log().flush(last(), patience()).unwrap());
    stream(IN_A_SEGMENT / 8);
    watermark::rest(Wait::Until(deadline_in(Duration::from_millis(200))));

    let mut scanner = master.log().scanner();
    let mut scan = |count: u64| {
        let mut after = Vlsn::new(last().get() - count);
        while let Some(run) = scanner.run(after, u32::MAX, 64 << 10).unwrap() {
            after = Some(run.last.vlsn);
        }
        assert_eq!(after, Some(last()));
    };

    // What an entry or a frame allocates, it allocates every time. The background, which makes and seals segments when it
    // finds the time, may fall into one stretch or another, but not into all.
    let stretch = |_| {
        let within = counted(|| stream(IN_A_SEGMENT / 2));
        stream(IN_A_SEGMENT / 2);
        within
    };
    let within = (0..8).map(stretch).min().unwrap();
    assert_eq!(within, 0, "allocations for {} entries within a segment", IN_A_SEGMENT / 2);
    // A reader that goes on where it was.
    scan(IN_A_SEGMENT / 8);
    let more = IN_A_SEGMENT / 8 / entries.len() as u64 * entries.len() as u64;
    let scanned = (0..4).map(|_| {
        stream(more);
        counted(|| scan(more))
    });
    let scanned = scanned.min().unwrap();
    assert_eq!(scanned, 0, "allocations of a scan");
    let segments = 10;
    let across = counted(|| stream(IN_A_SEGMENT * segments));
    println!("{:.1} allocations for each segment", across as f64 / segments as f64);
    assert!(across <= PER_SEGMENT * segments, "{across} allocations for {segments} segments");
}
