//! `quorate demo --bootstrap`: a new node gets a large store over connections that are cut, while the group goes on writing.

mod proxy;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::ids::number;
use quorate::watermark::rest;
use quorate::wire::message::NodeStatus;
use quorate::{Outcome, Policy, Vlsn};
use serde::Serialize;

use crate::processes::Nodes;
use crate::service::client::KvClient;
use crate::service::codec::{Act, Answer};
use crate::{Failure, Verdict};
use proxy::Proxy;

/// Bytes of a value in the store that is copied.
const VALUE: usize = 64 << 10;
/// Clients that fill the store.
const FILLERS: u64 = 8;
/// How often the transfer is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long one write, and how long the whole transfer may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(1800);
/// Of the two nodes that have the store, and the one that gets it.
const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// Little of the log is kept, so that the new node finds what it lacks nowhere.
const CONFIG: &str = "segment_bytes = 16777216\nkeep_bytes = 8388608\nretention_every_ms = 100\nscrub_bytes_per_second = 0\nbackoff_max_ms = 200\n";

/// What came of it.
#[derive(Serialize)]
struct Report {
    /// Bytes of the keys and values that the new node got.
    store_bytes: u64,
    /// The oldest entry that the others still had when it came.
    oldest: u64,
    cuts: usize,
    /// Bytes that came over the wire for the new node, the log included.
    wire_bytes: u64,
    seconds: f64,
    megabytes_per_second: f64,
    /// Writes that were committed meanwhile.
    written_meanwhile: u64,
    /// The most memory that each process had of its own, in KiB.
    anonymous_kib: Vec<u64>,
    identical: bool,
}

/// Runs the demo in this directory.
///
/// # Errors
/// If it can't be carried through; stores that differ are a verdict.
pub fn run(
    root: &Path,
    bytes: u64,
    cuts: usize,
    json: bool,
    out: &mut dyn Write,
) -> Result<Verdict, Failure> {
    let mut nodes = Nodes::new(root);
    let (proxies, listen) = proxies()?;
    for (at, name) in NAMES.iter().enumerate().take(2) {
        nodes.add(name, proxies[at].address(), &founder(&proxies, &listen, at))?;
    }
    nodes.master()?;
    eprintln!("two nodes founded a group; their store is filled with {} MiB", bytes >> 20);
    let values = bytes.div_ceil(VALUE as u64);
    fill(&nodes, values)?;
    let oldest = nodes.until("a log without its beginning", |survey| {
        let oldest = survey.answers().map(|one| number(one.keeping.oldest)).min()?;
        (survey.answers().count() == 2 && oldest > values / 2).then_some(oldest)
    })?;
    eprintln!("the log begins at VLSN {oldest} now; a third node comes");
    let config = format!(
        "{CONFIG}listen = \"{}\"\nadvertise = \"{}\"\nseeds = [\"{}\", \"{}\"]\n",
        listen[2],
        proxies[2].address(),
        proxies[0].address(),
        proxies[1].address()
    );
    let (stopped, meanwhile) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut client = KvClient::new(nodes.addresses(), nodes.group);
    let transfer = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&mut client, &stopped, &meanwhile));
        let transfer = nodes
            .add(NAMES[2], proxies[2].address(), &config)
            .and_then(|()| watch(&mut nodes, &proxies, bytes, cuts));
        stopped.store(true, Ordering::SeqCst);
        writer.join().map_err(|_| Failure::from("the writer failed"))??;
        transfer
    })?;
    nodes.settle()?;
    nodes.close()?;
    let stores = nodes.stores()?;
    let report = Report {
        store_bytes: stores.first().map_or(0, |(_, store)| store.bytes),
        oldest,
        cuts: transfer.cuts,
        wire_bytes: transfer.wire_bytes,
        seconds: transfer.took.as_secs_f64(),
        megabytes_per_second: bytes as f64 / 1e6 / transfer.took.as_secs_f64(),
        written_meanwhile: meanwhile.load(Ordering::SeqCst),
        anonymous_kib: transfer.anonymous_kib,
        identical: stores.windows(2).all(|pair| pair[0].1 == pair[1].1),
    };
    print(&report, json, out)?;
    Ok(if report.identical && report.cuts >= cuts { Verdict::Good } else { Verdict::Bad })
}

/// A relay before each node, and where the nodes listen behind them.
fn proxies() -> Result<(Vec<Proxy>, Vec<String>), Failure> {
    // The ports are free now, and the nodes take them soon.
    let free = NAMES.iter().map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let listen = free.iter().map(|one| Ok(one.local_addr()?.to_string()));
    let listen = listen.collect::<Result<Vec<_>, std::io::Error>>()?;
    let proxies = listen.iter().map(|to| Proxy::start(to.clone())).collect::<Result<_, _>>()?;
    Ok((proxies, listen))
}

fn founder(proxies: &[Proxy], listen: &[String], at: usize) -> String {
    let mut config = format!(
        "{CONFIG}found = true\nlisten = \"{}\"\nadvertise = \"{}\"\n",
        listen[at],
        proxies[at].address()
    );
    for (name, proxy) in NAMES.iter().zip(proxies).take(2) {
        config += &format!("[[members]]\nnode = \"{name}\"\naddress = \"{}\"\n", proxy.address());
    }
    config
}

/// Puts `values` values of bytes that can't be compressed into the store.
fn fill(nodes: &Nodes, values: u64) -> Result<(), Failure> {
    let bar = ProgressBar::new(values);
    std::thread::scope(|scope| {
        let fillers: Vec<_> = (0..FILLERS)
            .map(|filler| {
                let (addresses, group, bar) = (nodes.addresses(), nodes.group, &bar);
                scope.spawn(move || -> Result<(), Failure> {
                    let mut client = KvClient::new(addresses, group);
                    let mut noise = Noise(filler + 1);
                    for number in (filler..values).step_by(FILLERS as usize) {
                        put(&mut client, &format!("value-{number}"), &noise.bytes(VALUE))?;
                        bar.inc(1);
                    }
                    Ok(())
                })
            })
            .collect();
        fillers.into_iter().try_for_each(|one| one.join().map_err(|_| Failure::from("a filler failed"))?)
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// Sets a key, and sets it again if nobody knows whether it was set.
fn put(client: &mut KvClient, key: &str, value: &[u8]) -> Result<(), Failure> {
    let give_up = deadline_in(PATIENCE);
    let act = Act::Put { policy: Policy::MAJORITY, key: key.as_bytes(), value };
    loop {
        match client.call(&act, Wait::Until(give_up)) {
            Ok(Answer::Written { outcome: Outcome::Committed, .. }) => return Ok(()),
            Ok(Answer::Unknown { .. } | Answer::RolledBack) => {}
            Ok(other) => return Err(format!("a write was answered {other:?}").into()),
            Err(error) if error.may_be_done() => {}
            Err(error) => return Err(error.into()),
        }
        if Wait::Until(give_up).remaining().is_some_and(|left| left.is_zero()) {
            return Err(format!("nothing was committed for {PATIENCE:?}").into());
        }
    }
}

/// Writes until it is stopped: none of it may be missing on the new node.
fn write_on(client: &mut KvClient, stopped: &AtomicBool, count: &AtomicU64) -> Result<(), Failure> {
    while !stopped.load(Ordering::SeqCst) {
        let number = count.load(Ordering::SeqCst);
        put(client, &format!("meanwhile-{number}"), &number.to_le_bytes())?;
        count.store(number + 1, Ordering::SeqCst);
    }
    Ok(())
}

/// How the new node got what it has.
struct Transfer {
    took: Duration,
    cuts: usize,
    wire_bytes: u64,
    anonymous_kib: Vec<u64>,
}

/// Cuts the connections to the nodes that have the store whenever another part of it has passed, until the new node has
/// it and counts.
fn watch(nodes: &mut Nodes, proxies: &[Proxy], bytes: u64, cuts: usize) -> Result<Transfer, Failure> {
    let began = Stopwatch::start();
    let sent = || proxies.iter().take(2).map(Proxy::bytes_out).sum::<u64>();
    let start = sent();
    let part = bytes / (cuts as u64 + 1);
    let bar = ProgressBar::new(bytes);
    let mut transfer =
        Transfer { took: Duration::ZERO, cuts: 0, wire_bytes: 0, anonymous_kib: vec![0; NAMES.len()] };
    let mut looked = Duration::ZERO;
    loop {
        let passed = sent() - start;
        bar.set_position(passed.min(bytes));
        if transfer.cuts < cuts && passed > part * (transfer.cuts as u64 + 1) {
            proxies.iter().take(2).for_each(|proxy| {
                proxy.cut();
            });
            transfer.cuts += 1;
        }
        for (at, most) in transfer.anonymous_kib.iter_mut().enumerate() {
            *most = (*most).max(nodes.process(at).and_then(anonymous_kib).unwrap_or(0));
        }
        // Asking the nodes goes through the relays too: not all the time.
        if began.elapsed() > looked + Duration::from_millis(200) {
            looked = began.elapsed();
            if nodes.looks(|survey| survey.answers().find(|one| has_all(one)).map(|_| ())).is_some() {
                break;
            }
        }
        if began.elapsed() > LONG {
            return Err(format!("the new node has not got the store within {LONG:?}").into());
        }
        rest(Wait::Until(deadline_in(LOOK)));
    }
    bar.finish_and_clear();
    transfer.took = began.elapsed();
    transfer.wire_bytes = sent() - start;
    Ok(transfer)
}

/// Whether this is the new node, with everything that was there when it came.
fn has_all(one: &NodeStatus) -> bool {
    one.node.as_str() == NAMES[2]
        && one.standing.counts()
        && one.keeping.fetching.is_none()
        && one.positions.applied >= one.keeping.oldest
        && one.positions.applied > Vlsn::new(1)
}

/// Memory of its own that a process has, from /proc.
fn anonymous_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn print(report: &Report, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        serde_json::to_writer(&mut *out, report)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(
        out,
        "{} MiB in {:.1} s: {:.0} MB/s, {} MiB over the wire, connections cut {} times",
        report.store_bytes >> 20,
        report.seconds,
        report.megabytes_per_second,
        report.wire_bytes >> 20,
        report.cuts
    )?;
    let memory: Vec<String> = NAMES
        .iter()
        .zip(&report.anonymous_kib)
        .map(|(name, kib)| format!("{name} {:.1} MiB", *kib as f64 / 1024.0))
        .collect();
    writeln!(out, "memory at most: {}", memory.join(", "))?;
    let stores = if report.identical { "all stores are identical" } else { "THE STORES DIFFER" };
    writeln!(out, "{} writes were committed meanwhile; {stores}", report.written_meanwhile)?;
    Ok(())
}

/// Bytes that no compression makes smaller.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            // Xorshift (Marsaglia 2003).
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
