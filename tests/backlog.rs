//! A long backlog over TCP, to a replica that is slow, beside one at the tip.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::nodes::*;
use common::v;
use quorate::channel::{self, Channel, ChannelError, Peer, ReceiveBuffer};
use quorate::clock::deadline_in;
use quorate::watermark::rest;
use quorate::{Address, FeederState, NewEntry, Policy, Wait};

const BACKLOG: u64 = 400_000;

/// A TCP channel whose receiver rests before it takes each frame, as a slow machine would.
struct Slow {
    inner: Arc<dyn Channel>,
    frames: AtomicU64,
    slow: AtomicBool,
}

impl Channel for Slow {
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError> {
        self.inner.send(frame, wait)
    }
    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        self.frames.fetch_add(1, Ordering::SeqCst);
        if self.slow.load(Ordering::SeqCst) {
            rest(Wait::Until(deadline_in(Duration::from_millis(20))));
        }
        self.inner.receive(buffer, wait)
    }
    fn close(&self) {
        self.inner.close();
    }
    fn limit_frames(&self, max_frame: u32) {
        self.inner.limit_frames(max_frame);
    }
    fn peer(&self) -> &Peer {
        self.inner.peer()
    }
}

/// Memory of this process that no file stands behind, in bytes.
fn anonymous_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("Linux tells it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn a_slow_replica_catches_up_with_400_000_entries_over_tcp_while_commits_go_on() {
    let (group, book) = (Group::new(&["m", "a", "slow"]), Arc::<Book>::default());
    let mut config = group.config("m");
    config.listen = Some(Address::Tcp("127.0.0.1:0".into()));
    config.segment_bytes = 16 << 20;
    let master = group.open_master(config, &book);
    let tip = group.dialling("a", &master, &Arc::default());
    let payload = [5; 40];
    let hundred = [NewEntry::data(&payload); 100];
    for _ in 0..BACKLOG / 100 {
        master.append(&hundred, Policy::Async).unwrap();
    }
    settle(&master, &tip);
    until("the other is at the tip", || stats_of(&master, "a").state == FeederState::Streaming);
    until("nothing is pending", || master.positions().checkpointed == master.last().map(|last| last.vlsn));

    let before = anonymous_memory();
    let mut most = before;
    let its = Arc::<Book>::default();
    let replica = group.replica("slow", &its);
    let Some(Address::Tcp(at)) = master.address() else { panic!("it listens at TCP") };
    let inner = channel::tcp::dial(at, patience()).unwrap().unwrap();
    let slow = Arc::new(Slow { inner, frames: AtomicU64::new(0), slow: AtomicBool::new(true) });
    replica.follow(Arc::clone(&slow) as Arc<dyn Channel>);
    let mut commits = 0;
    while stats_of(&master, "slow").positions.received < Some(v(BACKLOG)) {
        commit(&master, b"the group goes on");
        commits += 1;
        most = most.max(anonymous_memory());
        assert!(replica.last_error().is_none(), "{:?}", replica.last_error());
        assert!(commits < 1_000_000, "it never catches up");
    }
    assert!(commits > 20, "{commits} commits went on beside it");
    // The commits made meanwhile stand in its socket, a small frame each: it need not take a pause at every one of them.
    slow.slow.store(false, Ordering::SeqCst);
    settle(&master, &replica);
    // Its ledger takes 16 bytes for an entry; the engine's own buffers are all of the rest.
    let grown = most.saturating_sub(before);
    println!("{commits} commits meanwhile; memory grew by {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");
    assert!(slow.frames.load(Ordering::SeqCst) > 50);
    until("the backlog is gone", || stats_of(&master, "slow").lag_entries == 0);
    assert!(stats_of(&master, "slow").last_error.is_none());
    master.close(patience());
    tip.close(patience());
    replica.close(patience());
    assert_eq!(its.entries(), book.entries());
}

#[test]
fn full_buffers_in_both_directions_never_stop_the_stream() {
    // The peer acks each entry by itself and reads late: acks pile up while entries do.
    let group = Group::new(&["m", "a"]);
    let master = group.listening(&Arc::default());
    for _ in 0..2_000 {
        master.append(&[NewEntry::data(&[9; 4000])], Policy::Async).unwrap();
    }
    let mut peer = Bare::dial(&master);
    peer.introduce(hello(group.config("a")));
    peer.sync_up(None);
    let (mut received, mut frames) = (0, 0);
    while received < 2_001 {
        let (first, last) = match peer.hear().unwrap() {
            (_, quorate::wire::message::Message::Entries(entries)) => (entries.first, entries.last),
            _ => continue,
        };
        frames += 1;
        for vlsn in first.get()..=last.get() {
            for _ in 0..20 {
                peer.ack(Some(v(vlsn)));
            }
        }
        received = last.get();
    }
    assert!(frames > 10, "{frames} frames");
    until("every ack was taken", || stats_of(&master, "a").positions.durable == Some(v(2_001)));
    // The master's own flush of what nobody waits for comes within `lazy_flush`.
    until("all of it to be committed", || master.committed() == Some(v(2_001)));
}
