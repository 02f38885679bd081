//! The service over nodes in this process, spoken to by its client.

use std::path::Path;

use quorate::ids::number;
use quorate::{Outcome, Part, Vlsn};

use super::client::{CallError, KvClient};
use super::*;
use crate::config_file::NodeFile;
use crate::node::open;

const GROUP: &str = "0000000000000000000000000000002a";

/// A node whose file says this beside its group, its name and what makes it quick.
fn node(dir: &Path, name: &str, more: &str) -> Arc<Node> {
    let text = format!(
        "group = \"{GROUP}\"\nnode = \"{name}\"\nheartbeat_ms = 20\nelection_timeout_ms = 100\n\
         backoff_max_ms = 50\n{more}"
    );
    open(&NodeFile::parse(&text, &dir.join("node.toml"), None).unwrap()).unwrap().0
}

/// A founder on its own, and a client of it.
fn alone(dir: &Path) -> (Arc<Node>, KvClient) {
    let node = node(dir, "n1", "found = true\nlisten = \"127.0.0.1:0\"");
    let addresses = node.address().cloned().into_iter().collect();
    (node, KvClient::new(addresses, GROUP.parse().unwrap()))
}

fn patience() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(20)))
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Act<'a> {
    Act::Put { policy: Policy::MAJORITY, key, value }
}

fn cas<'a>(key: &'a [u8], expected: u64, value: &'a [u8]) -> Act<'a> {
    Act::Cas { expected: Vlsn::new(expected), key, value }
}

/// The version of a write that has to be committed.
fn committed(answer: Answer) -> u64 {
    match answer {
        Answer::Written { version, outcome: Outcome::Committed } => version.get(),
        other => panic!("{other:?}"),
    }
}

fn found(version: u64, value: &[u8]) -> Answer {
    Answer::Found { version: Vlsn::new(version).unwrap(), value: value.to_vec() }
}

#[test]
fn what_is_written_is_read_with_its_version_and_conditions_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (_node, mut kv) = alone(dir.path());
    let mut ask = |act: Act<'_>| kv.call(&act, patience()).unwrap();
    let get = |stale| Act::Get { stale, key: b"k" };
    assert_eq!(ask(get(false)), Answer::Absent);
    assert_eq!(ask(cas(b"k", 7, b"x")), Answer::Differs { found: None });
    let first = committed(ask(cas(b"k", 0, b"one")));
    assert_eq!(ask(get(false)), found(first, b"one"));
    let second = committed(ask(put(b"k", b"two")));
    assert!(second > first);
    assert_eq!(ask(cas(b"k", first, b"x")), Answer::Differs { found: Vlsn::new(second) });
    assert_eq!(ask(get(false)), found(second, b"two"));
    assert_eq!(ask(get(true)), found(second, b"two"));
    let third = committed(ask(cas(b"k", second, b"three")));
    assert_eq!(ask(get(false)), found(third, b"three"));
    committed(ask(Act::Delete { policy: Policy::MAJORITY, key: b"k" }));
    assert_eq!(ask(get(false)), Answer::Absent);
    committed(ask(cas(b"k", 0, b"again")));
}

#[test]
fn a_write_can_be_asked_after_and_a_refused_condition_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (node, mut kv) = alone(dir.path());
    let mut ask = |act: Act<'_>| kv.call(&act, patience()).unwrap();
    let version = committed(ask(put(b"k", b"v")));
    let term = node.term();
    let fate = |vlsn| Act::Ask { term, vlsn: Vlsn::new(vlsn).unwrap() };
    assert_eq!(ask(fate(version)), Answer::Committed);
    assert_eq!(ask(cas(b"k", 99, b"x")), Answer::Differs { found: Vlsn::new(version) });
    assert_eq!(ask(fate(version + 1)), Answer::Differs { found: Vlsn::new(version) });
    assert!(matches!(ask(fate(version + 50)), Answer::Unknown { .. }));
    let other = Act::Ask { term: quorate::Term::new(term.get() + 5), vlsn: Vlsn::new(version).unwrap() };
    assert_eq!(ask(other), Answer::RolledBack);
}

#[test]
fn a_request_that_is_none_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (node, mut kv) = alone(dir.path());
    committed(kv.call(&put(b"k", b"v"), patience()).unwrap());
    let last = node.last();
    let service = KvService { node: Arc::downgrade(&node), group: GROUP.parse().unwrap(), store: None };
    for bytes in [&b""[..], b"\x02", b"\x01\x09\0\0\0\0", b"\x01\x01\0\0\0\0"] {
        let answer = Answer::decode(&service.call(bytes)).unwrap();
        assert!(
            matches!(&answer, Answer::Refused { temporary: false, why } if why.contains("can't be read"))
        );
    }
    assert_eq!(node.last(), last);
}

#[test]
fn conditional_writes_of_many_clients_are_done_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let (node, mut kv) = alone(dir.path());
    const CLIENTS: usize = 4;
    const EACH: u64 = 50;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let addresses = node.address().cloned().into_iter().collect();
            scope.spawn(move || {
                let mut kv = KvClient::new(addresses, GROUP.parse().unwrap());
                let mut done = 0;
                while done < EACH {
                    let get = Act::Get { stale: false, key: b"count" };
                    let (version, count) = match kv.call(&get, patience()).unwrap() {
                        Answer::Found { version, value } => {
                            (version.get(), String::from_utf8(value).unwrap().parse::<u64>().unwrap())
                        }
                        _ => (0, 0),
                    };
                    let next = (count + 1).to_string();
                    match kv.call(&cas(b"count", version, next.as_bytes()), patience()).unwrap() {
                        Answer::Written { .. } => done += 1,
                        Answer::Differs { found } => assert!(number(found) > version),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
    });
    let answer = kv.call(&Act::Get { stale: false, key: b"count" }, patience()).unwrap();
    let total = (CLIENTS as u64 * EACH).to_string();
    assert!(matches!(&answer, Answer::Found { value, .. } if *value == total.as_bytes()), "{answer:?}");
}

#[test]
fn whoever_is_asked_the_master_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = alone(dir.path());
    let joins = |more: &str| {
        let seed = first.address().unwrap();
        format!("listen = \"127.0.0.1:0\"\nseeds = [\"{seed}\"]\n{more}")
    };
    let second = node(dir.path(), "n2", &joins(""));
    let arbiter = node(dir.path(), "a1", &joins("role = \"arbiter\""));
    let nodes = [&first, &second, &arbiter];
    while first.members().voters().count() < 3 || nodes.iter().any(|node| node.part() == Part::Waiting) {
        std::thread::yield_now();
    }
    // An arbiter may not know where the master listens; then the next address is asked.
    for asked in [&[&second][..], &[&arbiter, &second]] {
        let addresses = asked.iter().filter_map(|node| node.address().cloned()).collect();
        let mut kv = KvClient::new(addresses, GROUP.parse().unwrap());
        let version = committed(kv.call(&put(b"k", b"v"), patience()).unwrap());
        let get = Act::Get { stale: false, key: b"k" };
        assert_eq!(kv.call(&get, patience()).unwrap(), found(version, b"v"));
    }
}

#[test]
fn a_wait_that_ends_without_a_master_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let lost = node(dir.path(), "n2", "listen = \"127.0.0.1:0\"");
    let group = GROUP.parse().unwrap();
    let mut kv = KvClient::new(lost.address().cloned().into_iter().collect(), group);
    let briefly = || Wait::Until(deadline_in(Duration::from_millis(200)));
    assert_eq!(kv.call(&put(b"k", b"v"), briefly()).unwrap(), Answer::NotMaster { hint: None });
    lost.close(Wait::Now);
    let error = kv.call(&put(b"k", b"v"), briefly()).unwrap_err();
    assert!(matches!(error, CallError::Client(_)));
}
