use std::io::IoSlice;

use super::*;
use crate::channel::ReceiveBuffer;
use crate::ids::Term;
use crate::wire::frame::{FrameError, FrameHeader, HEADER_LEN, MessageType};

struct Pair {
    net: Arc<SimNet>,
    clock: Arc<SimClock>,
    a: Arc<dyn Channel>,
    b: Arc<dyn Channel>,
    _listener: Box<dyn Listener>,
}

fn network(seed: u64) -> (Arc<SimNet>, Arc<SimClock>) {
    let clock = Arc::new(SimClock::new());
    (SimNet::new(Arc::clone(&clock), Arc::new(Trace::new(seed)), Rng::new(seed)), clock)
}

fn address() -> Address {
    Address::Local("b".into())
}

fn pair(seed: u64) -> Pair {
    let (net, clock) = network(seed);
    let listener = net.listen("b", &address()).unwrap();
    let a = net.dial("a", &address()).unwrap().unwrap();
    assert!(listener.accept(Wait::Now).unwrap().is_none(), "connecting takes time");
    clock.advance(Duration::from_secs(1));
    let b = listener.accept(Wait::Now).unwrap().unwrap();
    assert_eq!((a.peer(), b.peer()), (&Peer(address()), &Peer(Address::Local("a".into()))));
    Pair { net, clock, a, b, _listener: listener }
}

impl Pair {
    fn later(&self) {
        self.clock.advance(Duration::from_secs(1));
    }
}

fn frame(number: u64, padding: usize) -> Vec<u8> {
    let header = FrameHeader {
        kind: MessageType::Heartbeat,
        compressed: false,
        payload_len: 8 + padding as u32,
        term: Term::new(1),
        sequence: number,
        payload_crc: 0,
    };
    [&header.encode()[..], &number.to_le_bytes(), &vec![0; padding]].concat()
}

fn send(channel: &dyn Channel, number: u64) -> Result<bool, ChannelError> {
    channel.send(&[IoSlice::new(&frame(number, 0))], Wait::Now)
}

fn receive(channel: &dyn Channel) -> Result<Option<u64>, ChannelError> {
    let mut buffer = ReceiveBuffer::default();
    let frame = channel.receive(&mut buffer, Wait::Now)?;
    Ok(frame.map(|frame| u64::from_le_bytes(frame[HEADER_LEN..HEADER_LEN + 8].try_into().unwrap())))
}

#[test]
fn frames_take_time_and_arrive_in_order() {
    for seed in 0..20 {
        let pair = pair(seed);
        for number in 1..=100 {
            assert!(send(&*pair.a, number).unwrap());
        }
        assert_eq!(receive(&*pair.b).unwrap(), None);
        let (mut next, mut empty) = (1, 0);
        while next <= 100 {
            match receive(&*pair.b).unwrap() {
                Some(number) => {
                    assert_eq!(number, next, "seed {seed}");
                    next += 1;
                }
                None => {
                    empty += 1;
                    let due = pair.net.next_due(pair.clock.nanos());
                    assert!(due < u64::MAX, "what is under way has a time");
                    pair.clock.set(due.max(pair.clock.nanos() + 1));
                }
            }
        }
        assert!(empty > 0);
        assert_eq!(receive(&*pair.a).unwrap(), None);
    }
}

#[test]
fn a_full_direction_takes_no_more_and_the_other_is_not_touched() {
    let pair = pair(1);
    pair.net.configure(NetConfig { buffer: 100, ..NetConfig::default() });
    assert!(send(&*pair.a, 1).unwrap() && send(&*pair.a, 2).unwrap());
    assert!(!send(&*pair.a, 3).unwrap(), "two frames of 40 bytes fill 100");
    assert!(send(&*pair.b, 1).unwrap());
    pair.later();
    assert_eq!(receive(&*pair.b).unwrap(), Some(1));
    assert!(send(&*pair.a, 3).unwrap());
    pair.later();
    assert_eq!((receive(&*pair.b).unwrap(), receive(&*pair.b).unwrap()), (Some(2), Some(3)));
    let large = frame(4, 1000);
    assert!(pair.a.send(&[IoSlice::new(&large)], Wait::Now).unwrap(), "a larger one passes alone");
    assert!(!send(&*pair.a, 5).unwrap());
    assert_eq!(pair.net.counts().of(Fault::NoRoom), 2);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_either_side() {
    let pair = pair(1);
    pair.a.limit_frames(64);
    let large = frame(1, 100);
    let refused = pair.a.send(&[IoSlice::new(&large)], Wait::Now);
    assert!(matches!(refused, Err(ChannelError::Frame(FrameError::TooLong { len: 140, limit: 64 }))));
    assert!(send(&*pair.a, 2).unwrap(), "the channel lives");
    pair.a.limit_frames(1000);
    assert!(pair.a.send(&[IoSlice::new(&large)], Wait::Now).unwrap());
    pair.b.limit_frames(64);
    pair.later();
    assert_eq!(receive(&*pair.b).unwrap(), Some(2));
    assert!(matches!(receive(&*pair.b), Err(ChannelError::Frame(FrameError::TooLong { .. }))));
    assert!(matches!(receive(&*pair.b), Err(ChannelError::Closed)), "and the connection is over");
}

#[test]
fn a_partition_holds_frames_and_the_end_of_a_connection_until_it_heals() {
    let pair = pair(1);
    pair.net.partition("a", "b");
    assert!(send(&*pair.a, 1).unwrap());
    pair.a.close();
    pair.later();
    assert_eq!(receive(&*pair.b).unwrap(), None);
    assert!(send(&*pair.b, 9).unwrap(), "the other side knows of nothing");
    assert!(!matches!(pair.net.dial("a", &address()), Ok(Some(_))));
    pair.net.heal();
    assert_eq!(pair.net.next_due(pair.clock.nanos()), 0, "somebody should look");
    pair.later();
    assert_eq!(receive(&*pair.b).unwrap(), Some(1));
    assert!(matches!(receive(&*pair.b), Err(ChannelError::Closed)));
    assert!(matches!(send(&*pair.b, 10), Err(ChannelError::Closed)));
    assert_eq!(pair.net.counts().missing(&[Fault::Held, Fault::DialFailed]), []);
}

#[test]
fn an_isolated_node_hears_nobody_until_it_is_healed() {
    let pair = pair(1);
    pair.net.isolate("b", ["a", "b", "c"]);
    assert!(send(&*pair.a, 1).unwrap() && send(&*pair.b, 2).unwrap());
    pair.later();
    assert_eq!((receive(&*pair.b).unwrap(), receive(&*pair.a).unwrap()), (None, None));
    pair.net.heal();
    pair.later();
    assert_eq!((receive(&*pair.b).unwrap(), receive(&*pair.a).unwrap()), (Some(1), Some(2)));
}

#[test]
fn a_one_way_partition_lets_the_other_way_pass() {
    let pair = pair(1);
    pair.net.block("a", "b");
    assert!(send(&*pair.a, 1).unwrap() && send(&*pair.b, 2).unwrap());
    pair.later();
    assert_eq!((receive(&*pair.b).unwrap(), receive(&*pair.a).unwrap()), (None, Some(2)));
    pair.net.unblock("a", "b");
    assert_eq!(receive(&*pair.b).unwrap(), Some(1));
}

#[test]
fn a_reset_loses_a_suffix_and_both_sides_learn_of_it() {
    let (mut lost, mut kept, mut truncated) = (0, 0, 0);
    for seed in 0..60 {
        let pair = pair(seed);
        for number in 1..=10 {
            send(&*pair.a, number).unwrap();
        }
        pair.net.reset("b", "a");
        pair.later();
        let mut next = 1;
        let end = loop {
            match receive(&*pair.b) {
                Ok(number) => assert_eq!(number, Some(next), "seed {seed}"),
                Err(end) => break end,
            }
            next += 1;
        };
        truncated += u32::from(matches!(end, ChannelError::Truncated));
        *if next <= 10 { &mut lost } else { &mut kept } += 1;
        assert!(receive(&*pair.a).is_err() && send(&*pair.a, 11).is_err() && send(&*pair.b, 1).is_err());
    }
    assert!(lost > 0 && kept > 0 && truncated > 0, "lost {lost}, kept {kept}, truncated {truncated}");
}

#[test]
fn a_dead_node_is_noticed_later_and_can_not_be_dialled() {
    let pair = pair(1);
    send(&*pair.b, 1).unwrap();
    pair.net.crash("b");
    assert!(receive(&*pair.b).is_err(), "the dead side is closed");
    assert!(send(&*pair.a, 1).unwrap(), "the living does not know yet");
    assert!(!matches!(pair.net.dial("a", &address()), Ok(Some(_))));
    pair.later();
    while let Ok(number) = receive(&*pair.a) {
        assert_eq!(number, Some(1));
    }
    assert!(send(&*pair.a, 2).is_err());
    assert!(pair.net.listen("b", &address()).is_ok(), "the address is free for the next life");
}

#[test]
fn dropping_the_last_handle_closes() {
    let Pair { net, clock, a, b, _listener } = pair(1);
    drop(a);
    clock.advance(Duration::from_secs(1));
    assert!(matches!(receive(&*b), Err(ChannelError::Closed)));
    drop(b);
    assert!(net.state.lock().links.is_empty(), "nothing is left of the connection");
}

#[test]
fn a_closed_listener_refuses_and_drops_who_waits_there() {
    let (net, clock) = network(1);
    let listener = net.listen("b", &address()).unwrap();
    assert_eq!(net.listen("c", &address()).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    let waiting = net.dial("a", &address()).unwrap().unwrap();
    listener.closer()();
    assert!(matches!(listener.accept(Wait::Now), Err(ChannelError::Closed)));
    clock.advance(Duration::from_secs(1));
    assert!(receive(&*waiting).is_err());
    let again = net.listen("b", &address()).unwrap();
    drop(listener);
    assert_eq!(again.address(), &address());
    assert!(matches!(again.accept(Wait::Now), Ok(None)), "the old listener's end is not the new one's");
}

#[test]
fn every_fault_fires() {
    let mut counts = FaultCounts::default();
    for seed in 0..20 {
        let pair = pair(seed);
        let config =
            NetConfig { reset: 0.003, damage: 0.01, dial_failure: 0.3, buffer: 400, ..NetConfig::default() };
        pair.net.configure(config);
        for number in 0..100 {
            if number == 40 {
                pair.net.partition("a", "b");
            }
            let _ = send(&*pair.a, number);
            let _ = pair.net.dial("c", &address());
            if number % 20 == 19 {
                pair.later();
                while let Ok(Some(_)) = receive(&*pair.b) {}
            }
        }
        counts.merge(&pair.net.counts());
    }
    println!("{counts}");
    use Fault::*;
    assert_eq!(counts.missing(&[Reset, DamagedFrame, Held, DialFailed, NoRoom]), []);
}
