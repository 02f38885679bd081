//! Every kind of channel keeps the same contract.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use common::channels::{Pair, head, long, send};
use quorate::address::Address;
use quorate::channel::{ChannelError, ReceiveBuffer, local};
use quorate::clock::{Wait, deadline_in};
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::wire::ENTRIES_HEAD_LEN;

fn connected(at: &Address) -> Pair {
    let listener = ThreadRuntime.listen(at).expect("listen");
    let there = listener.address().clone();
    let dialled = ThreadRuntime.dial(&there, long()).expect("dial").expect("in time");
    (dialled, listener.accept(long()).expect("accept").expect("in time"))
}

fn tcp() -> Pair {
    connected(&Address::Tcp("127.0.0.1:0".into()))
}

fn unix() -> Pair {
    let dir = tempfile::tempdir().expect("a directory");
    connected(&Address::Unix(dir.path().join("socket")))
}

channel_contract!(over_tcp, super::tcp());
channel_contract!(over_unix_sockets, super::unix());
channel_contract!(over_memory, quorate::channel::local::pair("contract"));

/// A raw peer, to send what no channel would.
fn raw() -> (TcpStream, std::sync::Arc<dyn quorate::channel::Channel>) {
    let listener = ThreadRuntime.listen(&Address::Tcp("127.0.0.1:0".into())).expect("listen");
    let Address::Tcp(at) = listener.address() else { panic!("a TCP address") };
    let raw = TcpStream::connect(at).expect("connect");
    raw.set_nodelay(true).expect("nodelay");
    (raw, listener.accept(long()).expect("accept").expect("in time"))
}

#[test]
fn a_frame_in_pieces_arrives_whole_and_a_wait_in_the_middle_loses_nothing() {
    let (mut raw, channel) = raw();
    let mut bytes = head(4, 5).to_vec();
    bytes.extend_from_slice(b"hello");
    let mut buffer = ReceiveBuffer::new();
    for byte in &bytes[..bytes.len() - 1] {
        raw.write_all(&[*byte]).expect("write");
        assert!(matches!(channel.receive(&mut buffer, Wait::Now), Ok(None)));
    }
    raw.write_all(&bytes[bytes.len() - 1..]).expect("write");
    let frame = channel.receive(&mut buffer, long()).expect("receive").expect("in time");
    assert_eq!(frame, bytes);
}

#[test]
fn several_frames_in_one_segment_are_known_to_be_buffered() {
    let (mut raw, channel) = raw();
    let bytes = [head(1, 0), head(2, 0), head(3, 0)].concat();
    raw.write_all(&bytes).expect("write");
    let mut buffer = ReceiveBuffer::new();
    for left in [true, true, false] {
        assert!(channel.receive(&mut buffer, long()).expect("receive").is_some());
        assert_eq!(buffer.buffered(), left);
    }
}

#[test]
fn an_end_inside_a_frame_is_told_from_an_end_between_frames() {
    for cut in [1, 31, 32, 33, ENTRIES_HEAD_LEN + 4] {
        let (mut raw, channel) = raw();
        let mut bytes = head(1, 5).to_vec();
        bytes.extend_from_slice(b"hello");
        raw.write_all(&bytes).expect("write");
        raw.write_all(&bytes[..cut]).expect("write");
        drop(raw);
        let mut buffer = ReceiveBuffer::new();
        assert!(matches!(channel.receive(&mut buffer, long()), Ok(Some(_))));
        let ended = channel.receive(&mut buffer, long()).map(|_| ());
        assert!(matches!(ended, Err(ChannelError::Truncated)), "cut at {cut}: {ended:?}");
    }
}

#[test]
fn a_send_whose_wait_ends_inside_a_frame_closes() {
    let (a, b) = tcp();
    let run = vec![0; 15 << 20];
    let soon = Wait::Until(deadline_in(Duration::from_millis(50)));
    assert!(matches!(send(&*a, 1, &run, soon), Err(ChannelError::Stalled)));
    assert!(matches!(send(&*a, 2, b"", Wait::Now), Err(ChannelError::Closed)));
    let ended = b.receive(&mut ReceiveBuffer::new(), long()).map(|_| ());
    assert!(matches!(ended, Err(ChannelError::Truncated)), "{ended:?}");
}

#[test]
fn a_sender_whose_peer_is_gone_gets_an_error_and_no_signal() {
    let (raw, channel) = raw();
    drop(raw);
    let ended = (0..10_000).find_map(|n| send(&*channel, n, &[0; 1000], long()).err());
    assert!(matches!(ended, Some(ChannelError::Closed)), "{ended:?}");
}

#[test]
fn closing_sends_the_peer_an_end() {
    let (mut raw, channel) = raw();
    channel.close();
    assert_eq!(raw.read(&mut [0; 8]).expect("read"), 0);
}

#[test]
fn a_closer_ends_accept_from_another_thread() {
    let dir = tempfile::tempdir().expect("a directory");
    let places = [
        Address::Tcp("127.0.0.1:0".into()),
        Address::Unix(dir.path().join("s")),
        Address::Local("closer".into()),
    ];
    for at in places {
        let listener = ThreadRuntime.listen(&at).expect("listen");
        assert!(matches!(listener.accept(Wait::Now), Ok(None)));
        let close = listener.closer();
        let accepting = thread::spawn(move || listener.accept(Wait::Forever).map(|c| c.is_some()));
        close();
        assert!(matches!(accepting.join().expect("thread"), Err(ChannelError::Closed)), "{at}");
    }
}

#[test]
fn addresses_that_nobody_listens_at_are_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    for at in [Address::Local("nobody".into()), Address::Unix(dir.path().join("none"))] {
        let error = ThreadRuntime.dial(&at, long()).map(|_| ()).expect_err("nobody is there");
        assert_eq!(error.to, at);
        assert!(error.to_string().starts_with("can't connect to "), "{error}");
    }
}

#[test]
fn an_abandoned_unix_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let at = Address::Unix(path.clone());
    let listener = ThreadRuntime.listen(&at).expect("the abandoned one is replaced");
    assert!(ThreadRuntime.listen(&at).is_err());
    drop(listener);
    assert!(!path.exists());
    std::fs::write(&path, b"precious").expect("write");
    assert!(ThreadRuntime.listen(&at).is_err());
    assert_eq!(std::fs::read(&path).expect("read"), b"precious");
}

#[test]
fn a_local_name_is_free_again_after_its_listener() {
    let at = Address::Local("again".into());
    let listener = ThreadRuntime.listen(&at).expect("listen");
    assert!(ThreadRuntime.listen(&at).is_err());
    let waiting = local::dial("again").expect("dial");
    drop(listener);
    assert!(matches!(waiting.receive(&mut ReceiveBuffer::new(), long()), Err(ChannelError::Closed)));
    drop(ThreadRuntime.listen(&at).expect("free again"));
}
