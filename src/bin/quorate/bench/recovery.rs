//! Getting back: a snapshot to a new node, a restore from an archive, and the scrubber beside commits.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use quorate::archive::object::write_log;
use quorate::archive::{Archive, DirArchive, RestoreOptions, restore};
use quorate::clock::{Stopwatch, SystemClock, deadline_in};
use quorate::disk::{Disk, RealDisk};
use quorate::engine::{EngineSnapshot, Item, Items};
use quorate::log::LogConfig;
use quorate::runtime::ThreadRuntime;
use quorate::watermark::rest;
use quorate::wire::message::{ControlReply, Order};
use quorate::*;

use super::Bench;
use super::group::{patience, until};
use super::limits::{bulk, micros, write_and_flush};
use super::meter::{anonymous_memory, quantile, rate};
use super::report::{Row, Spread};
use crate::Failure;

const GROUP: GroupId = GroupId::from_bits(11);
/// Bytes of an entry that is restored or scrubbed.
const PAYLOAD: [u8; 1024] = [0x3c; 1024];
/// Bytes of an entry whose commit is measured.
const SMALL: [u8; 128] = [0x3d; 128];

/// An engine whose state is so many bytes, made when they are asked for.
struct Bytes {
    len: u64,
    applied: Option<Vlsn>,
}

impl Engine for Bytes {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.applied)
    }
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        self.applied = Some(entries.range().last());
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.applied)
    }
    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        let Some(at) = self.applied else { return Ok(None) };
        Ok(Some(Box::new(Copied { at, left: self.len, given: false })))
    }
    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let mut buffer = vec![0; 1 << 20];
        for at in 0..items.list().len() {
            let mut item = items.open(at)?;
            while item.read(&mut buffer)? > 0 {}
        }
        self.applied = Some(items.at());
        Ok(())
    }
}

struct Copied {
    at: Vlsn,
    left: u64,
    given: bool,
}

impl EngineSnapshot for Copied {
    fn at(&self) -> Vlsn {
        self.at
    }
    fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
        let first = !std::mem::replace(&mut self.given, true);
        Ok(first.then(|| Item { name: "bytes".into(), len: Some(self.left) }))
    }
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
        let len = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        into[..len].fill(0x5a);
        self.left -= len as u64;
        Ok(len)
    }
}

/// Measures them.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    bootstrap_lines(bench)?;
    restore_line(bench)?;
    scrub_line(bench)?;
    scrub_beside_commits(bench)
}

fn bootstrap_lines(bench: &mut Bench) -> Result<(), Failure> {
    let (id, memory) = ("bootstrap.tcp", "bootstrap.memory");
    if !(bench.wants(id) || bench.wants(memory)) {
        return Ok(());
    }
    bench.show(id);
    let (dir, bytes) = (bench.dir.path().to_path_buf(), (2048 << 20) / bench.effort.scale);
    let (mut rates, mut peaks, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        let lower = bulk(256 << 10, bytes)?.min(write_and_flush(&dir, bytes.min(512 << 20))?);
        limits.push(lower);
        let (speed, peak) = bootstrap(&dir, bytes)?;
        rates.push(speed);
        peaks.push(peak as f64 / f64::from(1 << 20));
    }
    let what = format!(
        "a new node gets a snapshot of {} MiB; limit: loopback or write-and-flush, the lower",
        bytes >> 20
    );
    let row = Row::new(id, what, "B/s", Spread::of(rates.clone())).against_each(&rates, &limits);
    bench.line(id, || Ok(row))?;
    let row = Row::new(memory, "the same, memory of giver and receiver", "MiB", Spread::of(peaks));
    bench.line(memory, || Ok(row))
}

fn config(dir: &Path, name: &str) -> Result<NodeConfig, Failure> {
    let mut base = Config::new(GROUP, NodeId::new(name)?, dir.join(name));
    base.listen = Some(Address::Tcp("127.0.0.1:0".into()));
    (base.disk_floor, base.scrub_bytes_per_second) = (0, 0);
    Ok(NodeConfig::new(base))
}

fn founder(config: &mut NodeConfig) -> Result<(), Failure> {
    config.base.members = Members::new(vec![Member::electable(config.base.node.clone())])?;
    Ok(())
}

fn lead(node: &Node) -> Result<(), Failure> {
    until(|| node.leads().is_some() && node.committed() == node.last().map(|last| last.vlsn))
}

/// Bytes a second from the join of a new node until it counts, and how much memory this process had more meanwhile.
fn bootstrap(below: &Path, bytes: u64) -> Result<(f64, u64), Failure> {
    let dir = tempfile::Builder::new().prefix("bootstrap-").tempdir_in(below)?;
    let mut giver = config(dir.path(), "giver")?;
    founder(&mut giver)?;
    giver.base.segment_bytes = 64 << 10;
    (giver.base.max_payload, giver.base.max_frame) = (8 << 10, 1 << 20);
    (giver.base.keep_bytes, giver.base.retention_every) = (0, Duration::from_millis(10));
    giver.base.snapshot_bytes_per_second = u64::MAX;
    let mut receiver = config(dir.path(), "receiver")?;
    (receiver.base.max_payload, receiver.base.max_frame) = (8 << 10, 1 << 20);
    let machine = Host::machine;
    let giver = Node::create(giver, Box::new(Bytes { len: bytes, applied: None }), machine())?;
    lead(&giver)?;
    until(|| {
        let written = giver.write(&[NewEntry::data(&PAYLOAD)], Policy::MAJORITY, patience());
        written.is_err() || giver.log().oldest() > Vlsn::new(1)
    })?;
    receiver.seeds = giver.address().cloned().into_iter().collect();
    let (stopped, before) = (AtomicBool::new(false), anonymous_memory()?);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<u64, Failure> {
            let mut most = 0;
            while !stopped.load(Ordering::SeqCst) {
                most = most.max(anonymous_memory()?);
                rest(Wait::Until(deadline_in(Duration::from_millis(5))));
            }
            Ok(most)
        });
        let watch = Stopwatch::start();
        let joined = Node::join(receiver, Box::new(Bytes { len: 0, applied: None }), machine());
        let came = joined.map_err(Failure::from).and_then(|node| {
            let has_it = until(|| node.standing().counts() && node.positions().applied >= giver.committed());
            has_it.map(|()| (node, watch.elapsed()))
        });
        stopped.store(true, Ordering::SeqCst);
        let most = watcher.join().map_err(|_| "the watcher panicked")??;
        let (_node, took) = came?;
        Ok((rate(bytes, took), most.saturating_sub(before)))
    })
}

fn restore_line(bench: &mut Bench) -> Result<(), Failure> {
    let id = "restore";
    if !bench.wants(id) {
        return Ok(());
    }
    bench.show(id);
    let (dir, bytes) = (bench.dir.path().to_path_buf(), (1024 << 20) / bench.effort.scale);
    let archived = tempfile::Builder::new().prefix("archive-").tempdir_in(&dir)?;
    let archive = fill_archive(archived.path(), bytes)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (mut rates, mut limits) = (Vec::new(), Vec::new());
    for run in 0..bench.effort.runs {
        limits.push(write_and_flush(&dir, bytes.min(512 << 20))?);
        let options = RestoreOptions::new(NodeId::new("restored")?);
        let to = archived.path().join(format!("restored-{run}"));
        let watch = Stopwatch::start();
        let restored = restore(&archive, &disk, &ThreadRuntime, &to, &options, &mut |_| {});
        restored.map_err(|error| error.to_string())?;
        rates.push(rate(bytes, watch.elapsed()));
        std::fs::remove_dir_all(&to)?;
    }
    let what =
        format!("restore {} MiB of log from an archive, verified; limit: write-and-flush", bytes >> 20);
    let row = Row::new(id, what, "B/s", Spread::of(rates.clone())).against_each(&rates, &limits);
    bench.line(id, || Ok(row))
}

/// An archive with so many bytes of log.
fn fill_archive(dir: &Path, bytes: u64) -> Result<DirArchive, Failure> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let archive = DirArchive::new(Arc::clone(&disk), dir.join("archive"), 1);
    let config = LogConfig::new(dir.join("log"), GROUP);
    let (log, _) = Log::open(disk, Arc::new(SystemClock), config)?;
    let entries = [NewEntry::data(&PAYLOAD); 64];
    for _ in 0..bytes / (PAYLOAD.len() * entries.len()) as u64 {
        log.append(Term::new(1), &entries)?;
    }
    let last = log.last().ok_or("nothing was appended")?.vlsn;
    log.flush(last, patience())?;
    log.note_committed(last);
    let mut base = None;
    while let Some(header) = write_log(&archive as &dyn Archive, &log, GROUP, base, last, 64 << 20)
        .map_err(|error| error.to_string())?
    {
        base = Some(header.last);
    }
    log.close()?;
    Ok(archive)
}

fn scrub_line(bench: &mut Bench) -> Result<(), Failure> {
    let id = "scrub";
    if !bench.wants(id) {
        return Ok(());
    }
    bench.show(id);
    let bytes = (1024 << 20) / bench.effort.scale;
    let dir = tempfile::Builder::new().prefix("scrub-").tempdir_in(bench.dir.path())?;
    let mut config = config(dir.path(), "scrubbed")?;
    founder(&mut config)?;
    config.base.segment_bytes = 16 << 20;
    config.base.scrub_bytes_per_second = u64::MAX;
    config.base.keep_bytes = u64::MAX;
    let node = Node::create(config, Box::new(Bytes { len: 0, applied: None }), Host::machine())?;
    lead(&node)?;
    append(&node, bytes)?;
    let client = || -> Result<Client, Failure> {
        let at = node.address().cloned().ok_or("the node does not listen")?;
        Ok(Client::new(vec![at], Arc::new(ThreadRuntime)))
    };
    let mut rates = Vec::new();
    for _ in 0..bench.effort.runs {
        let before = node.status().keeping.scrub.ended;
        let watch = Stopwatch::start();
        match client()?.order(GROUP, Order::Scrub, patience())? {
            ControlReply::Done(_) => {}
            other => return Err(format!("the order was answered {other:?}").into()),
        }
        until(|| node.status().keeping.scrub.ended != before)?;
        rates.push(rate(node.status().keeping.scrub.bytes, watch.elapsed()));
    }
    let what = format!("scrub {} MiB of log, unbounded; limit: CRC-32 over 1 KiB", bytes >> 20);
    let limit = super::limits::crc(1024, bytes)?;
    let row = Row::new(id, what, "B/s", Spread::of(rates)).against(limit);
    bench.line(id, || Ok(row))
}

/// Appends so many bytes, and waits until they are committed.
fn append(node: &Node, bytes: u64) -> Result<(), Failure> {
    let entries = [NewEntry::data(&PAYLOAD); 256];
    let rounds = bytes / (PAYLOAD.len() * entries.len()) as u64;
    for _ in 0..rounds {
        node.write(&entries, Policy::MAJORITY, patience())?;
    }
    Ok(())
}

fn scrub_beside_commits(bench: &mut Bench) -> Result<(), Failure> {
    let id = "commit.durable.1.p99.scrub";
    if !bench.wants(id) {
        return Ok(());
    }
    bench.show(id);
    let (dir, each) = (bench.dir.path().to_path_buf(), 3_000 / bench.effort.scale);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        without.push(commits_of_three(&dir, each, 0)?);
        with.push(commits_of_three(&dir, each, 16 << 20)?);
    }
    let what = "1 committer of a group of nodes, p99, while all scrub at 16 MiB/s; limit: while none does";
    let row = Row::new(id, what, "us", Spread::of(with.clone())).against_each(&with, &without);
    bench.line(id, || Ok(row))
}

/// The 99th percentile of durable commits in a group of three whose nodes scrub so fast, round after round.
fn commits_of_three(below: &Path, commits: u64, scrub: u64) -> Result<f64, Failure> {
    let dir = tempfile::Builder::new().prefix("scrubbing-").tempdir_in(below)?;
    let names = ["n1", "n2", "n3"];
    let listed = names.iter().map(|name| Ok(Member::electable(NodeId::new(name)?)));
    let mut listed: Vec<Member> = listed.collect::<Result<_, Failure>>()?;
    for member in &mut listed {
        let free = std::net::TcpListener::bind("127.0.0.1:0")?;
        member.address = Some(Address::Tcp(free.local_addr()?.to_string()));
    }
    let members = Members::new(listed)?;
    let mut nodes = Vec::new();
    for member in members.iter() {
        let mut config = config(dir.path(), member.id.as_str())?;
        config.base.members = members.clone();
        config.base.listen = member.address.clone();
        config.base.segment_bytes = 4 << 20;
        config.base.keep_bytes = u64::MAX;
        config.base.scrub_bytes_per_second = scrub;
        config.base.scrub_every = Duration::from_millis(1);
        (config.base.max_payload, config.base.max_frame) = (1 << 20, 8 << 20);
        // A machine that is busy with the measurement is no reason to elect anybody.
        config.election_timeout = Duration::from_secs(5);
        nodes.push(Node::create(config, Box::new(Bytes { len: 0, applied: None }), Host::machine())?);
    }
    let leads = |node: &&Node| node.leads().is_some();
    until(|| nodes.iter().any(|node| leads(&node)))?;
    let master = nodes.iter().find(leads).ok_or("nobody leads any more")?;
    lead(master)?;
    append(master, 32 << 20)?;
    let mut took = Vec::with_capacity(commits as usize);
    for _ in 0..commits {
        let watch = Stopwatch::start();
        master.write(&[NewEntry::data(&SMALL)], Policy::MAJORITY, patience())?;
        took.push(micros(watch.elapsed()));
    }
    Ok(quantile(&mut took, 0.99))
}
