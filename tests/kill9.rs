//! Nodes in processes of their own, killed with SIGKILL again and again, in the middle of whatever they do.
#![allow(missing_docs, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::nodes::*;
use quorate::clock::Stopwatch;
use quorate::entry::EntryRef;
use quorate::{Address, EntryKind, FeederState, NewEntry, Outcome, Policy, Vlsn};

const DIR: &str = "QUORATE_KILL9_DIR";
const UPSTREAM: &str = "QUORATE_KILL9_UPSTREAM";

/// A process of this test binary; killed when it goes out of scope.
struct Process(Child);

impl Process {
    fn run(test: &str, vars: &[(&str, &str)]) -> (Process, BufReader<ChildStdout>) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([test, "--exact", "--ignored", "--nocapture"]).envs(vars.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (Process(child), out)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn var(name: &str) -> String {
    std::env::var(name).expect("set by the test that runs this")
}

/// What the child appends: told by its number.
fn payload_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number * 31 % 60) as usize)
}

#[test]
#[ignore = "run in a process of its own by the tests of this file"]
fn child_master() {
    let group = Group::new(&["m"]);
    let mut config = group.config("m");
    config.dir = PathBuf::from(var(DIR)).join("m");
    config.segment_bytes = 256 << 10;
    let master = group.open_master(config, &Arc::default());
    let (watch, mut out) = (Stopwatch::start(), std::io::stdout());
    let mut number = master.last().map_or(0, |last| last.vlsn.get());
    while watch.elapsed() < PATIENCE {
        // Some in groups, some that nobody waits for.
        let payloads: Vec<_> = (0..1 + number % 4).map(|more| payload_of(number + more)).collect();
        let entries: Vec<_> = payloads.iter().map(|payload| NewEntry::data(payload)).collect();
        number += entries.len() as u64;
        let policy = if number.is_multiple_of(3) { Policy::Async } else { Policy::MAJORITY };
        let ticket = master.append(&entries, policy).unwrap();
        if master.commit(&ticket, patience()).unwrap() == Outcome::Committed {
            writeln!(out, "committed {}", ticket.token.vlsn).unwrap();
        }
    }
}

/// The bytes of a closed node's log, whose entries are all what was appended, and its last entry.
fn checked(group: &Group, name: &str) -> (Vec<u8>, Option<Vlsn>) {
    let log = group.log(name);
    let last = log.last().map(|last| last.vlsn);
    let bytes = bytes_of(&log);
    log.close().unwrap();
    let (mut rest, mut next) = (&bytes[..], 1);
    while !rest.is_empty() {
        let entry = EntryRef::verify(rest).unwrap();
        assert_eq!(entry.header().vlsn.map(Vlsn::get), Some(next));
        if entry.kind() == EntryKind::DATA {
            let number = u64::from_le_bytes(entry.payload()[..8].try_into().unwrap());
            assert_eq!(entry.payload(), payload_of(number), "VLSN {next}");
        }
        next += 1;
        rest = &rest[entry.bytes().len()..];
    }
    assert_eq!(last.map_or(0, Vlsn::get), next - 1);
    (bytes, last)
}

#[test]
fn a_master_killed_twenty_times_has_every_entry_that_it_called_committed() {
    let group = Group::new(&["m"]);
    let dir = group.dir.path().to_str().unwrap();
    let (mut kept, mut reported) = (Vec::new(), 0);
    for round in 0..20_u64 {
        let (mut process, mut out) = Process::run("child_master", &[(DIR, dir)]);
        let (mut line, mut lines) = (String::new(), 0);
        let wanted = 1 + round * 37 % 150;
        while lines < wanted {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the child ended by itself in round {round}");
            if let Some((_, vlsn)) = line.trim_end().split_once("committed ") {
                reported = reported.max(vlsn.parse().unwrap());
                lines += 1;
            }
        }
        process.kill();
        // What it said before it died counts too.
        for line in out.lines() {
            let line = line.unwrap();
            let vlsn = line.split_once("committed ").and_then(|(_, vlsn)| vlsn.parse().ok());
            reported = reported.max(vlsn.unwrap_or(0));
        }
        let (bytes, last) = checked(&group, "m");
        assert!(
            last.map_or(0, Vlsn::get) >= reported,
            "round {round}: {reported} was committed, {last:?} is last"
        );
        assert!(bytes.starts_with(&kept), "round {round}: what was there has changed");
        kept = bytes;
    }
    assert!(reported > 1000, "{reported}");
}

#[test]
#[ignore = "run in a process of its own by the tests of this file"]
fn child_replica() {
    let group = Group::new(&["m", "a", "b"]);
    let mut config = group.config("a");
    config.dir = PathBuf::from(var(DIR)).join("a");
    config.segment_bytes = 256 << 10;
    config.upstream = Some(Address::Tcp(var(UPSTREAM)));
    let replica = group.open_replica(config, &Arc::default());
    let watch = Stopwatch::start();
    while watch.elapsed() < PATIENCE && replica.poisoned().is_none() {
        quorate::watermark::rest(quorate::Wait::Until(quorate::clock::deadline_in(PATIENCE / 300)));
    }
}

#[test]
fn a_replica_killed_under_load_keeps_what_it_acked_and_converges() {
    let (group, book, its) = (Group::new(&["m", "a", "b"]), Arc::<Book>::default(), Arc::<Book>::default());
    let master = group.listening(&book);
    let _other = group.dialling("b", &master, &Arc::default());
    let Some(Address::Tcp(upstream)) = master.address() else { panic!("it listens at TCP") };
    let dir = group.dir.path().to_str().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (master, stop) = (&master, &stop);
        scope.spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) {
                let ticket = append(master, &payload_of(number), Policy::MAJORITY);
                assert_eq!(master.commit(&ticket, patience()).unwrap(), Outcome::Committed);
                number += 1;
            }
        });
        let stops = Stops(stop);
        for round in 0..8_u64 {
            let (mut process, _out) = Process::run("child_replica", &[(DIR, dir), (UPSTREAM, upstream)]);
            until("it is fed", || stats_of(master, "a").state == FeederState::Streaming);
            let from = master.committed().map_or(0, Vlsn::get);
            until("it acked some", || {
                stats_of(master, "a").positions.durable.map_or(0, Vlsn::get) > from + round * 29 % 100
            });
            let acked = stats_of(master, "a").positions.durable;
            process.kill();
            until("the master saw it die", || stats_of(master, "a").connected_for.is_none());
            let acked = acked.max(stats_of(master, "a").positions.durable);
            let (_, last) = checked(&group, "a");
            assert!(last >= acked, "round {round}: it acked {acked:?} and has {last:?}");
        }
        drop(stops);
    });
    let replica = group.dialling("a", &master, &its);
    settle(&master, &replica);
    master.close(patience());
    replica.close(patience());
    assert_eq!(its.entries(), book.entries());
    assert!(group.log_bytes("a") == group.log_bytes("m"));
}

/// Ends the load when the rounds are over, or failed.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
