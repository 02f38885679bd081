//! The client against small servers on loopback that say what the test wants.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::Stopwatch;
use crate::ids::Term;
use crate::runtime::ThreadRuntime;
use crate::wire::message::{Reject, RejectReason, Response};

const GROUP: GroupId = GroupId::from_bits(7);

/// What a server does with a message.
enum Say {
    Reply(ControlReply),
    Body(Vec<u8>),
    Reject(RejectReason),
    /// Closes the connection.
    Close,
    /// Says nothing, and keeps the connection.
    Nothing,
}

/// A server at a free port, whose answers are made from the message and its place on the connection. It ends when the
/// test's process does, or when it is dropped.
struct Server {
    address: Address,
    connections: Arc<AtomicUsize>,
    closer: Arc<dyn Fn() + Send + Sync>,
}

impl Server {
    fn start(answer: impl Fn(&Message<'_>) -> Say + Send + Sync + 'static) -> Server {
        let listener = ThreadRuntime.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let (address, closer) = (listener.address().clone(), listener.closer());
        let connections = Arc::new(AtomicUsize::new(0));
        let (counted, answer) = (Arc::clone(&connections), Arc::new(answer));
        thread::spawn(move || {
            while let Ok(Some(channel)) = listener.accept(Wait::Forever) {
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = Arc::clone(&answer);
                thread::spawn(move || serve(&*channel, &*answer));
            }
        });
        Server { address, connections, closer }
    }

    /// A server that names this node as the master.
    fn naming(hint: Option<Address>) -> Server {
        Server::start(move |_| Say::Reply(ControlReply::NotMaster { hint: hint.clone() }))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        (self.closer)();
    }
}

fn serve(channel: &dyn Channel, answer: &dyn Fn(&Message<'_>) -> Say) {
    let (mut buffer, mut scratch) = (ReceiveBuffer::new(), Vec::new());
    let mut expected = 0;
    while let Ok(Some(frame)) = channel.receive(&mut buffer, Wait::Forever) {
        let (header, message) = Message::decode(frame).unwrap();
        assert_eq!((header.term, header.sequence), (Term::NONE, expected));
        expected += 1;
        let said = answer(&message);
        let message = match &said {
            Say::Reply(reply) => Message::ControlReply(reply.clone()),
            Say::Body(body) => Message::Response(Response { body }),
            Say::Reject(reason) => Message::Reject(Reject { reason: reason.clone() }),
            Say::Close => return,
            Say::Nothing => continue,
        };
        message.encode(Term::new(3), header.sequence, &mut scratch);
        if !channel.send(&[std::io::IoSlice::new(&scratch)], Wait::Forever).unwrap() {
            return;
        }
    }
}

fn done() -> Say {
    Say::Reply(ControlReply::Done("it is done".into()))
}

fn client(servers: &[&Server]) -> Client {
    Client::new(servers.iter().map(|server| server.address.clone()).collect(), Arc::new(ThreadRuntime))
}

fn patience() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(20)))
}

fn briefly() -> Wait {
    Wait::Until(deadline_in(Duration::from_millis(50)))
}

/// An address at which nobody listens.
fn nobody() -> Address {
    ThreadRuntime.listen(&"127.0.0.1:0".parse().unwrap()).unwrap().address().clone()
}

#[test]
fn orders_and_requests_share_a_connection() {
    let server = Server::start(|message| match message {
        Message::Control(Control { group: GROUP, .. }) => done(),
        Message::Request(Request { group: GROUP, body }) => Say::Body(body.iter().rev().copied().collect()),
        _ => Say::Close,
    });
    let mut client = client(&[&server]);
    for _ in 0..3 {
        let reply = client.order(GROUP, Order::Status, patience()).unwrap();
        assert_eq!(reply, ControlReply::Done("it is done".into()));
        assert_eq!(client.request(GROUP, b"abc", patience()).unwrap(), b"cba");
    }
    assert_eq!(server.connections(), 1);
}

#[test]
fn the_first_node_that_can_be_reached_is_asked_and_kept() {
    let server = Server::start(|_| done());
    let mut client = Client::new(vec![nobody(), server.address.clone()], Arc::new(ThreadRuntime));
    for _ in 0..2 {
        assert!(client.order(GROUP, Order::Status, patience()).is_ok());
        assert_eq!(client.at(), Some(&server.address));
    }
    assert_eq!(server.connections(), 1);
    client.turn_away();
    assert!(client.order(GROUP, Order::Status, patience()).is_ok());
    assert_eq!(server.connections(), 2);
}

#[test]
fn nobody_to_reach_is_told_with_every_address() {
    let (one, two) = (nobody(), nobody());
    let mut client = Client::new(vec![one.clone(), two.clone()], Arc::new(ThreadRuntime));
    let error = client.order(GROUP, Order::Status, patience()).unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { tried } if tried.len() == 2));
    assert!(!error.may_be_done());
    let text = error.to_string();
    assert!(text.contains(&one.to_string()) && text.contains(&two.to_string()), "{text}");
    let mut client = Client::new(Vec::new(), Arc::new(ThreadRuntime));
    assert!(matches!(client.request(GROUP, b"", patience()), Err(ClientError::NoAddress)));
    client.turn_away();
    client.turn_to(&one);
    assert!(matches!(client.request(GROUP, b"", patience()), Err(ClientError::Unreachable { .. })));
}

#[test]
fn hints_lead_to_the_master() {
    let master = Server::start(|_| done());
    let second = Server::naming(Some(master.address.clone()));
    let first = Server::naming(Some(second.address.clone()));
    let mut client = client(&[&first]);
    assert!(matches!(client.to_master(GROUP, Order::Status, patience()), Ok(ControlReply::Done(_))));
    assert_eq!(client.at(), Some(&master.address));
    assert!(client.to_master(GROUP, Order::Status, patience()).is_ok());
    assert_eq!((first.connections(), second.connections(), master.connections()), (1, 1, 1));
}

#[test]
fn without_a_hint_every_address_is_asked_again_until_one_leads() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let elected = Server::start(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        0..3 => Say::Reply(ControlReply::NotMaster { hint: None }),
        _ => done(),
    });
    let other = Server::naming(None);
    let dead = nobody();
    let addresses = vec![other.address.clone(), dead, elected.address.clone()];
    let mut client = Client::new(addresses, Arc::new(ThreadRuntime));
    assert!(matches!(client.to_master(GROUP, Order::Status, patience()), Ok(ControlReply::Done(_))));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[test]
fn two_that_name_each_other_and_one_that_names_the_dead_end_with_the_wait() {
    let place = Arc::new(std::sync::Mutex::new(None));
    let named = Arc::clone(&place);
    let first =
        Server::start(move |_| Say::Reply(ControlReply::NotMaster { hint: named.lock().unwrap().clone() }));
    let second = Server::naming(Some(first.address.clone()));
    for hint in [second.address.clone(), nobody(), first.address.clone()] {
        *place.lock().unwrap() = Some(hint);
        let mut client = client(&[&first]);
        let (began, wait) = (Stopwatch::start(), Wait::Until(deadline_in(Duration::from_millis(200))));
        let error = client.to_master(GROUP, Order::Status, wait).unwrap_err();
        // The wait may end while one of them is being asked.
        let ended = matches!(error, ClientError::NoMaster { .. } | ClientError::Unanswered { .. });
        assert!(ended, "{error}");
        assert!(began.elapsed() >= Duration::from_millis(150));
    }
    // Pauses bound how often they were asked.
    assert!(first.connections() + second.connections() < 300);
}

#[test]
fn what_was_sent_and_not_answered_may_be_done_and_is_not_repeated_but_the_next_goes_elsewhere() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let breaks = Server::start(move |_| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Say::Close,
        _ => done(),
    });
    let hangs = Server::start(|_| Say::Nothing);
    let mut client = client(&[&breaks, &hangs]);
    for (server, wait) in [(&breaks, patience()), (&hangs, briefly())] {
        let error = client.to_master(GROUP, Order::Status, wait).unwrap_err();
        assert!(matches!(&error, ClientError::Unanswered { address, .. } if *address == server.address));
        assert!(error.may_be_done());
    }
    assert_eq!((asked.load(Ordering::SeqCst), hangs.connections()), (1, 1));
    assert!(client.order(GROUP, Order::Status, patience()).is_ok());
    assert_eq!((breaks.connections(), hangs.connections()), (2, 1));
}

#[test]
fn a_connection_that_broke_meanwhile_is_made_again() {
    let listener = ThreadRuntime.listen(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let mut client = Client::new(vec![address], Arc::new(ThreadRuntime));
    let server = thread::spawn(move || {
        for _ in 0..2 {
            let channel = listener.accept(patience()).unwrap().unwrap();
            let once = AtomicUsize::new(0);
            serve(&*channel, &|_| if once.fetch_add(1, Ordering::SeqCst) == 0 { done() } else { Say::Close });
        }
    });
    assert!(client.order(GROUP, Order::Status, patience()).is_ok());
    client.connection.as_ref().unwrap().break_off();
    assert!(client.order(GROUP, Order::Status, patience()).is_ok());
    client.turn_away();
    server.join().unwrap();
}

#[test]
fn refusals_wrong_answers_and_damage_are_told_apart() {
    let refusing = Server::start(|_| Say::Reject(RejectReason::Busy));
    let error = client(&[&refusing]).request(GROUP, b"x", patience()).unwrap_err();
    assert!(matches!(error, ClientError::Rejected { reason: RejectReason::Busy, .. }));
    assert!(!error.may_be_done());

    let confused = Server::start(|_| done());
    let error = client(&[&confused]).request(GROUP, b"x", patience()).unwrap_err();
    assert!(matches!(error, ClientError::OtherAnswer { .. }) && error.may_be_done());

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap().to_string());
    let noise = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut socket, &[b'?'; 64]).unwrap();
        socket
    });
    let mut client = Client::new(vec![address], Arc::new(ThreadRuntime));
    let error = client.request(GROUP, b"x", patience()).unwrap_err();
    assert!(matches!(error, ClientError::BadAnswer { .. }) && error.may_be_done());
    drop(noise.join().unwrap());
}

#[test]
fn what_fits_no_frame_is_not_sent_and_the_connection_lives() {
    let server = Server::start(|_| Say::Body(Vec::new()));
    let mut client = client(&[&server]);
    let huge = vec![0; 17 << 20];
    for _ in 0..2 {
        let error = client.request(GROUP, &huge, patience()).unwrap_err();
        assert!(matches!(error, ClientError::TooLong { .. }) && !error.may_be_done());
        assert!(client.request(GROUP, b"x", patience()).is_ok());
    }
    assert!(server.connections() <= 2);
}

#[test]
fn the_client_speaks_over_channels_in_the_process_too() {
    let listener = ThreadRuntime.listen(&Address::Local("client-test".into())).unwrap();
    let address = listener.address().clone();
    let server = thread::spawn(move || {
        let channel = listener.accept(patience()).unwrap().unwrap();
        serve(&*channel, &|_| Say::Body(b"local".to_vec()));
    });
    let mut client = Client::new(vec![address], Arc::new(ThreadRuntime));
    assert_eq!(client.request(GROUP, b"", patience()).unwrap(), b"local");
    drop(client);
    server.join().unwrap();
}
