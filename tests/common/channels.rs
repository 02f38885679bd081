//! The contract that every kind of channel keeps. Each function takes a fresh pair of connected ends.

use std::io::IoSlice;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quorate::channel::{Channel, ChannelError, ReceiveBuffer};
use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::ids::{Term, Vlsn};
use quorate::wire::frame::{FrameError, FrameHeader, HEADER_LEN};
use quorate::wire::message::EntriesHead;
use quorate::wire::{ENTRIES_HEAD_LEN, encode_entries_head};

/// Two connected ends.
pub type Pair = (Arc<dyn Channel>, Arc<dyn Channel>);

/// A wait that no test reaches unless it fails.
pub fn long() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(20)))
}

fn soon() -> Wait {
    Wait::Until(deadline_in(Duration::from_millis(30)))
}

/// The bytes before the run of a frame with this sequence.
pub fn head(sequence: u64, run_len: usize) -> [u8; ENTRIES_HEAD_LEN] {
    let head = EntriesHead {
        committed: None,
        durable_wanted: None,
        applied_wanted: None,
        first: Vlsn::FIRST,
        last: Vlsn::FIRST,
    };
    encode_entries_head(Term::new(1), sequence, &head, run_len)
}

/// Sends a frame with this sequence and run.
pub fn send(to: &dyn Channel, sequence: u64, run: &[u8], wait: Wait) -> Result<bool, ChannelError> {
    let (first, second) = run.split_at(run.len() / 3);
    to.send(&[IoSlice::new(&head(sequence, run.len())), IoSlice::new(first), IoSlice::new(second)], wait)
}

fn sequence_of(frame: &[u8]) -> u64 {
    FrameHeader::parse(frame, u32::MAX).expect("a received frame has a good header").sequence
}

/// Receives one frame and says its sequence and the run's length.
fn receive(from: &dyn Channel, buffer: &mut ReceiveBuffer) -> (u64, usize) {
    let frame = from.receive(buffer, long()).expect("receive").expect("a frame in time");
    (sequence_of(frame), frame.len() - ENTRIES_HEAD_LEN)
}

/// Frames arrive whole and in order, many small ones and others between.
pub fn order_and_sizes((a, b): Pair) {
    let sizes = |n: u64| if n % 100 == 7 { 300_000 } else { n as usize % 50 };
    let sender = thread::spawn(move || {
        for n in 0..20_000 {
            let run = vec![n as u8; sizes(n)];
            assert!(send(&*a, n, &run, long()).expect("send"));
        }
        a
    });
    let mut buffer = ReceiveBuffer::new();
    for n in 0..20_000 {
        let frame = b.receive(&mut buffer, long()).expect("receive").expect("a frame in time");
        assert_eq!(sequence_of(frame), n);
        assert_eq!(frame.len(), ENTRIES_HEAD_LEN + sizes(n));
        assert!(frame[ENTRIES_HEAD_LEN..].iter().all(|byte| *byte == n as u8));
    }
    drop(sender.join());
}

/// Frames up to the limit pass; longer ones are refused by name, by the sender without harm, by the receiver for good.
pub fn limits((a, b): Pair) {
    let limit = 3 << 20;
    a.limit_frames(limit);
    b.limit_frames(limit);
    let largest = vec![5; limit as usize - ENTRIES_HEAD_LEN];
    let over = vec![5; limit as usize - ENTRIES_HEAD_LEN + 1];
    let refused = send(&*a, 1, &over, long());
    let expected = FrameError::TooLong { len: u64::from(limit) + 1, limit };
    assert!(matches!(refused, Err(ChannelError::Frame(error)) if error == expected), "{refused:?}");
    thread::scope(|s| {
        s.spawn(|| assert!(send(&*a, 2, &largest, long()).expect("send")));
        assert_eq!(receive(&*b, &mut ReceiveBuffer::new()), (2, largest.len()));
    });
    a.limit_frames(u32::MAX);
    thread::scope(|s| {
        // The receiver closes in the middle of it.
        s.spawn(|| drop(send(&*a, 3, &over, long())));
        let refused = b.receive(&mut ReceiveBuffer::new(), long()).map(|_| ());
        assert!(matches!(refused, Err(ChannelError::Frame(error)) if error == expected), "{refused:?}");
    });
    assert!(matches!(b.receive(&mut ReceiveBuffer::new(), long()), Err(ChannelError::Closed)));
}

/// A full channel takes no more, says so, and nothing of what it refused arrives.
pub fn full_channels((a, b): Pair) {
    for run in [vec![1; 10], vec![2; 900]] {
        let mut sent = 0;
        while send(&*a, sent, &run, Wait::Now).expect("send") {
            sent += 1;
            assert!(sent < 2_000_000, "the channel is not bounded");
        }
        let watch = Stopwatch::start();
        assert!(!send(&*a, sent, &run, soon()).expect("send"));
        assert!(watch.elapsed() >= Duration::from_millis(25));
        let mut buffer = ReceiveBuffer::new();
        let mut seen = 0;
        while seen < sent {
            // What the last send could not hand over goes out with the sender's next call.
            assert!(matches!(a.receive(&mut ReceiveBuffer::new(), Wait::Now), Ok(None)));
            while let Some(frame) = b.receive(&mut buffer, soon()).expect("receive") {
                assert_eq!(sequence_of(frame), seen);
                seen += 1;
            }
        }
        assert_eq!(seen, sent);
    }
}

/// Closing unblocks threads that send or receive, at both ends, and is idempotent.
pub fn close_unblocks((a, b): Pair) {
    thread::scope(|s| {
        let receiver = s.spawn(|| a.receive(&mut ReceiveBuffer::new(), Wait::Forever).map(|f| f.is_some()));
        let sender = s.spawn(|| {
            let run = vec![3; 100_000];
            loop {
                if let Err(error) = send(&*a, 0, &run, Wait::Forever) {
                    return error;
                }
            }
        });
        let far = s.spawn(|| {
            // Leaves the first frames unread for a while, so that the sender blocks.
            assert!(b.receive(&mut ReceiveBuffer::new(), long()).is_ok());
            a.close();
            a.close();
        });
        assert!(matches!(receiver.join().expect("receiver"), Err(ChannelError::Closed)));
        assert!(matches!(sender.join().expect("sender"), ChannelError::Closed));
        far.join().expect("closer");
    });
    assert!(matches!(send(&*a, 0, b"x", Wait::Now), Err(ChannelError::Closed)));
    assert!(matches!(a.receive(&mut ReceiveBuffer::new(), Wait::Now), Err(ChannelError::Closed)));
}

/// Closing one end ends a receive that blocks at the other.
pub fn close_reaches_the_peer((a, b): Pair) {
    thread::scope(|s| {
        let far = s.spawn(|| b.receive(&mut ReceiveBuffer::new(), Wait::Forever).map(|f| f.is_some()));
        a.close();
        assert!(matches!(far.join().expect("far"), Err(ChannelError::Closed)));
    });
}

/// What was sent before the close arrives before the close.
pub fn close_comes_after_frames((a, b): Pair) {
    for n in 0..50 {
        assert!(send(&*a, n, b"last words", long()).expect("send"));
    }
    a.close();
    let mut buffer = ReceiveBuffer::new();
    for n in 0..50 {
        assert_eq!(receive(&*b, &mut buffer).0, n);
    }
    assert!(matches!(b.receive(&mut buffer, long()), Err(ChannelError::Closed)));
}

/// A receive ends with its wait, and not before.
pub fn waits((a, b): Pair) {
    let mut buffer = ReceiveBuffer::new();
    assert!(matches!(b.receive(&mut buffer, Wait::Now), Ok(None)));
    let watch = Stopwatch::start();
    assert!(matches!(b.receive(&mut buffer, soon()), Ok(None)));
    assert!(watch.elapsed() >= Duration::from_millis(25));
    assert!(send(&*a, 9, b"", Wait::Now).expect("send"));
    assert_eq!(receive(&*b, &mut buffer), (9, 0));
}

/// Both sides send more than fits at once, each from one thread, and read in another.
pub fn both_directions((a, b): Pair) {
    let end = |channel: Arc<dyn Channel>| {
        let sending = Arc::clone(&channel);
        let sender = thread::spawn(move || {
            let run = vec![1; 200_000];
            for n in 0..100 {
                assert!(send(&*sending, n, &run, long()).expect("send"));
            }
        });
        let receiver = thread::spawn(move || {
            let mut buffer = ReceiveBuffer::new();
            for n in 0..100 {
                assert_eq!(receive(&*channel, &mut buffer), (n, 200_000));
            }
            channel
        });
        (sender, receiver)
    };
    let ends = [end(a), end(b)];
    for (sender, receiver) in ends {
        sender.join().expect("sender");
        drop(receiver.join().expect("receiver"));
    }
}

/// Bytes that are no frame end the connection, by name.
pub fn no_frame((a, b): Pair) {
    let bytes = [b'G'; HEADER_LEN];
    assert!(a.send(&[IoSlice::new(&bytes)], long()).expect("send"));
    let refused = b.receive(&mut ReceiveBuffer::new(), long()).map(|_| ());
    assert!(
        matches!(refused, Err(ChannelError::Frame(FrameError::NotOurs { found: [b'G', ..] }))),
        "{refused:?}"
    );
}

/// A receiver can tell whether a burst is over.
pub fn bursts((a, b): Pair) {
    for n in 0..3 {
        assert!(send(&*a, n, b"x", long()).expect("send"));
    }
    let mut buffer = ReceiveBuffer::new();
    for n in 0..3 {
        assert_eq!(receive(&*b, &mut buffer).0, n);
    }
    assert!(!buffer.buffered());
}

/// Makes a test of each part of the contract; `$pair` makes a fresh pair.
#[macro_export]
macro_rules! channel_contract {
    ($kind:ident, $pair:expr) => {
        mod $kind {
            use super::common::channels as contract;
            $crate::channel_contract!(@ $pair, order_and_sizes limits full_channels close_unblocks
                close_reaches_the_peer close_comes_after_frames waits both_directions no_frame bursts);
        }
    };
    (@ $pair:expr, $($part:ident)*) => {
        $(#[test] fn $part() { contract::$part($pair); })*
    };
}
