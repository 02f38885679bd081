//! Entries in bulk, from the master's append to the replicas' logs.

use std::path::Path;

use quorate::clock::Stopwatch;
use quorate::{Config, Master, NewEntry, Policy, Ticket};

use super::ceiling;
use super::group::{Group, Via, patience};
use super::limits::write_and_flush;
use super::meter::{allocations, cpu_time, measure, rate};
use super::report::{Row, Spread};
use super::storage::settle;
use super::{Bench, Effort};
use crate::Failure;

/// Entries appended by one call.
const BATCH: usize = 64;
/// Bytes of an entry beside its payload.
const HEADER: u64 = quorate::entry::HEADER_LEN as u64;

/// What one stream took.
struct Streamed {
    rate: f64,
    cpu_nanos: f64,
}

fn plain(_: &mut Config) {}

/// Appends this many entries.
///
/// # Errors
/// The master's.
pub fn append(
    master: &Master,
    payload: &[u8],
    count: u64,
    policy: Policy,
) -> Result<Option<Ticket>, Failure> {
    let entries = [NewEntry::data(payload); BATCH];
    let (mut left, mut ticket) = (count, None);
    while left > 0 {
        let now = left.min(BATCH as u64);
        ticket = Some(master.append(&entries[..now as usize], policy)?);
        left -= now;
    }
    Ok(ticket)
}

/// One stream of entries to all replicas: until they have received the last one, or, with a policy that waits, until it
/// is committed.
fn stream(dir: &Path, via: Via, replicas: usize, load: Load, policy: Policy) -> Result<Streamed, Failure> {
    let group = Group::connected(dir, replicas, via, plain)?;
    let payload = vec![0xa5; load.payload];
    let (cpu, watch) = (cpu_time(), Stopwatch::start());
    let ticket = append(&group.master, &payload, load.count, policy)?;
    match ticket.filter(|_| policy != Policy::Async) {
        Some(ticket) => drop(group.master.commit(&ticket, patience())?),
        None => group.received(group.last(), patience())?,
    }
    let (took, cpu) = (watch.elapsed(), cpu_time() - cpu);
    let cpu_nanos = cpu.as_nanos() as f64 / load.count as f64;
    Ok(Streamed { rate: rate(load.count * replicas as u64, took), cpu_nanos })
}

/// What is sent.
#[derive(Clone, Copy)]
struct Load {
    payload: usize,
    count: u64,
}

/// Measures the streams, beside the ceiling.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    let Effort { runs, scale } = bench.effort;
    let loads = [(128, 2_400_000), (1024, 600_000), (8192, 100_000)];
    for (payload, count) in loads {
        add_streams(bench, Load { payload, count: count / scale })?;
    }
    catch_up(bench)?;
    let dir = bench.dir.path().to_path_buf();
    for (payload, count) in &loads[..2] {
        let id = format!("cpu.entry.{payload}");
        let what = format!("CPU time for an entry of {payload} B, master and one replica");
        let load = Load { payload: *payload, count: count / scale };
        bench.line(&id, || {
            let run = || Ok(stream(&dir, Via::Tcp, 1, load, Policy::Async)?.cpu_nanos);
            Ok(Row::new(&id, what, "ns", measure(runs, run)?))
        })?;
    }
    allocated(bench)
}

/// The lines of one size. A run of each, and then the next of each, so that what they are compared to is as old as they.
fn add_streams(bench: &mut Bench, load: Load) -> Result<(), Failure> {
    let Load { payload, count } = load;
    let one = format!("stream.tcp.1.{payload}");
    let two = format!("stream.tcp.2.{payload}");
    let local = format!("stream.local.1.{payload}");
    let durable = format!("stream.durable.1.{payload}");
    let wanted = [&one, &two, &local, &durable].map(|id| bench.wants(id));
    if !wanted.contains(&true) {
        return Ok(());
    }
    bench.show(&one);
    let dir = bench.dir.path().to_path_buf();
    let (mut ceilings, mut values) = (Vec::new(), [const { Vec::new() }; 4]);
    for _ in 0..bench.effort.runs {
        ceilings.push(if wanted[0] { ceiling::run(payload, count)? } else { 0.0 });
        let kinds = [
            (Via::Tcp, 1, Policy::Async),
            (Via::Tcp, 2, Policy::Async),
            (Via::Local, 1, Policy::Async),
            (Via::Tcp, 1, Policy::MAJORITY),
        ];
        for (at, (via, replicas, policy)) in kinds.into_iter().enumerate() {
            // The others are compared to the first.
            if wanted[at] || at == 0 {
                values[at].push(stream(&dir, via, replicas, load, policy)?.rate);
            }
        }
    }
    let [first, second, third, fourth] = values;
    let row = |id: &String, what: String, values: &[f64], limits: &[f64]| {
        Row::new(id, what, "entries/s", Spread::of(values.to_vec())).against_each(values, limits)
    };
    let lines = [
        (&one, format!("{payload} B to one replica over TCP, logs at both ends"), &first, &ceilings),
        (&two, format!("{payload} B to two replicas over TCP, sum; limit: to one"), &second, &first),
        (&local, format!("{payload} B to one replica in memory; limit: over TCP"), &third, &first),
        (
            &durable,
            format!("{payload} B until flushed on master and replica; limit: not flushed"),
            &fourth,
            &first,
        ),
    ];
    for ((id, what, values, limits), wanted) in lines.into_iter().zip(wanted) {
        if wanted {
            bench.report.add(row(id, what, values, limits));
        }
    }
    Ok(())
}

/// A replica joins when the master's log is long, and flushes as it goes.
fn catch_up(bench: &mut Bench) -> Result<(), Failure> {
    let id = "catchup.durable.1024";
    let Effort { runs, scale } = bench.effort;
    let dir = bench.dir.path().to_path_buf();
    let payload = vec![0x5a; 1024];
    let count = 600_000 / scale;
    let load = Load { payload: payload.len(), count };
    let bytes = count * (payload.len() as u64 + HEADER);
    bench.line(id, || {
        let (mut values, mut limits) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let flushing = write_and_flush(&dir, bytes)?;
            let streamed = stream(&dir, Via::Tcp, 1, load, Policy::Async)?.rate;
            limits.push(flushing.min(streamed * (bytes / count) as f64));
            // A group of three, so that nothing is committed and the master has nothing to do but to feed.
            let mut group = Group::new(&dir, 3, Via::Tcp, plain)?;
            append(&group.master, &payload, count, Policy::Async)?;
            let last = group.master.last().ok_or("nothing was appended")?.vlsn;
            group.master.log().flush(last, patience())?;
            group.add_replica()?;
            let life = group.replicas[0].log().life();
            life.written.wait(1, patience())?;
            let watch = Stopwatch::start();
            life.flushed.wait(last.get(), patience())?;
            values.push(rate(bytes, watch.elapsed()));
        }
        let what =
            "a replica with nothing catches up to the last flush; limit: write and flush, or the stream";
        Ok(Row::new(id, what, "B/s", Spread::of(values.clone())).against_each(&values, &limits))
    })
}

/// Allocations of a stream over TCP that has been running for some segments.
fn allocated(bench: &mut Bench) -> Result<(), Failure> {
    const SEGMENT: u64 = 16 << 20;
    let per_segment = SEGMENT / (128 + HEADER);
    let rotations = if bench.effort.scale > 1 { 4 } else { 12 };
    let dir = bench.dir.path().to_path_buf();
    if !["alloc.entry", "alloc.rotation"].iter().any(|id| bench.wants(id)) {
        return Ok(());
    }
    let (mut of_entries, mut of_rotations) = (Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        let group = Group::connected(&dir, 1, Via::Tcp, |config| config.segment_bytes = SEGMENT)?;
        let payload = [0x33; 128];
        let run = |count: u64| -> Result<u64, Failure> {
            let before = allocations();
            append(&group.master, &payload, count, Policy::Async)?;
            group.received(group.last(), patience())?;
            Ok(allocations() - before)
        };
        // Up to a little behind the beginning of a segment.
        run(per_segment * 4 + per_segment / 8)?;
        settle(group.master.log())?;
        settle(group.replicas[0].log())?;
        let inside = per_segment / 2;
        of_entries.push(run(inside)? as f64 / inside as f64);
        let across = run(per_segment * rotations)?;
        of_rotations.push(across as f64 / rotations as f64);
    }
    let what = "allocations per entry within a segment, appended, sent and received over TCP";
    let row = Row::new("alloc.entry", what, "allocs", Spread::of(of_entries));
    bench.line("alloc.entry", || Ok(row))?;
    let what = "allocations per segment of 16 MiB, master and one replica together";
    let row = Row::new("alloc.rotation", what, "allocs", Spread::of(of_rotations));
    bench.line("alloc.rotation", || Ok(row))
}
