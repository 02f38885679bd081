//! A running connection allocates nothing: frames are sent from the owner's slices and lent from the receiver's buffer.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::channels::{Pair, long, send};
use quorate::address::Address;
use quorate::channel::{Channel, ReceiveBuffer};
use quorate::clock::{Stopwatch, Wait};
use quorate::runtime::{Runtime, ThreadRuntime};

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

/// Sends `count` runs through a pair and says how many allocations the second half of them took.
fn stream((a, b): Pair, run_len: usize, count: u64) -> u64 {
    let sender = thread::spawn(move || {
        let run = vec![7; run_len];
        for n in 0..count {
            assert!(send(&*a, n, &run, long()).expect("send"));
        }
        a
    });
    let mut buffer = ReceiveBuffer::new();
    let (mut before, watch) = (0, Stopwatch::start());
    for n in 0..count {
        assert!(b.receive(&mut buffer, long()).expect("receive").is_some());
        if n == count / 2 {
            before = ALLOCATIONS.load(Ordering::SeqCst);
        }
    }
    let taken = ALLOCATIONS.load(Ordering::SeqCst) - before;
    let rate = (run_len as f64 * count as f64) / watch.elapsed().as_secs_f64() / 1e9;
    println!("frames of {run_len} bytes: {rate:.2} GB/s, {taken} allocations");
    drop::<Arc<dyn Channel>>(sender.join().expect("sender"));
    taken
}

/// One test, because the allocations of others would be counted too.
#[test]
fn a_running_connection_allocates_nothing() {
    let tcp = || {
        let listener = ThreadRuntime.listen(&Address::Tcp("127.0.0.1:0".into())).expect("listen");
        let dialled = ThreadRuntime.dial(listener.address(), long()).expect("dial").expect("in time");
        (dialled, listener.accept(long()).expect("accept").expect("in time"))
    };
    for (run_len, count) in [(128, 100_000), (64 << 10, 20_000), (256 << 10, 8_000)] {
        // The thread that sends makes its own few things while it ends.
        assert!(stream(tcp(), run_len, count) <= 2, "over TCP, {run_len}");
        // In memory there are as many buffers as the queue ever held frames: fill it once, then no more are made.
        let (a, b) = quorate::channel::local::pair("count");
        let run = vec![7; run_len];
        while send(&*a, 0, &run, Wait::Now).expect("send") {}
        let mut buffer = ReceiveBuffer::new();
        while b.receive(&mut buffer, Wait::Now).expect("receive").is_some() {}
        let taken = stream((a, b), run_len, count);
        assert!(taken <= 8, "in memory, {run_len}: {taken}");
    }
}
