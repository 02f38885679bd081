//! Commits in a closed loop: each committer writes the next entry when the last is committed.

use std::path::Path;
use std::thread;

use quorate::clock::Stopwatch;
use quorate::{Config, Level, NewEntry, Policy, Quorum};

use super::Bench;
use super::group::{Group, Via, patience};
use super::limits::{flush, micros, ping_pong};
use super::meter::{quantile, rate};
use super::report::{Row, Spread};
use crate::Failure;

const PAYLOAD: [u8; 128] = [0x77; 128];
/// One ack beside the master's own.
const RECEIVED: Policy = Policy::Sync { quorum: Quorum::Acks(1), level: Level::Received };

/// What a closed loop took.
struct Looped {
    p50: f64,
    p99: f64,
    per_second: f64,
}

fn plain(_: &mut Config) {}

fn closed_loop(
    dir: &Path,
    replicas: usize,
    committers: u64,
    each: u64,
    policy: Policy,
) -> Result<Looped, Failure> {
    let group = Group::connected(dir, replicas, Via::Tcp, plain)?;
    let master = &group.master;
    let write = |count: u64| -> Result<Vec<f64>, Failure> {
        (0..count)
            .map(|_| {
                let watch = Stopwatch::start();
                master.write(&[NewEntry::data(&PAYLOAD)], policy, patience())?;
                Ok(micros(watch.elapsed()))
            })
            .collect()
    };
    write(each.min(100))?;
    let watch = Stopwatch::start();
    let of_threads = thread::scope(|scope| {
        let running: Vec<_> = (0..committers).map(|_| scope.spawn(|| write(each))).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let elapsed = watch.elapsed();
    let mut took = Vec::with_capacity((committers * each) as usize);
    for of_thread in of_threads {
        took.append(&mut of_thread.map_err(|_| "a committer panicked")??);
    }
    let per_second = rate(committers * each, elapsed);
    Ok(Looped { p50: quantile(&mut took, 0.5), p99: quantile(&mut took, 0.99), per_second })
}

/// Measures commits, each run beside a ping-pong and flushes.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    one_received(bench)?;
    one_durable(bench)?;
    for committers in [8, 64] {
        many_durable(bench, committers)?;
    }
    Ok(())
}

fn one_received(bench: &mut Bench) -> Result<(), Failure> {
    let (id, slow) = ("commit.received.1", "commit.received.1.p99");
    if !(bench.wants(id) || bench.wants(slow)) {
        return Ok(());
    }
    bench.show(id);
    let (dir, each) = (bench.dir.path().to_path_buf(), 10_000 / bench.effort.scale);
    let (mut p50s, mut p99s, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        limits.push(ping_pong(each)?);
        let looped = closed_loop(&dir, 1, 1, each, RECEIVED)?;
        p50s.push(looped.p50);
        p99s.push(looped.p99);
    }
    let what = "1 committer, received by a replica, p50; limit: ping-pong";
    let row = Row::new(id, what, "us", Spread::of(p50s.clone())).against_each(&p50s, &limits);
    bench.line(id, || Ok(row))?;
    let row = Row::new(slow, "the same, p99", "us", Spread::of(p99s.clone())).against_each(&p99s, &limits);
    bench.line(slow, || Ok(row))
}

fn one_durable(bench: &mut Bench) -> Result<(), Failure> {
    let (id, slow) = ("commit.durable.1", "commit.durable.1.p99");
    if !(bench.wants(id) || bench.wants(slow)) {
        return Ok(());
    }
    bench.show(id);
    let scale = bench.effort.scale;
    let (dir, each) = (bench.dir.path().to_path_buf(), 3_000 / scale);
    let (mut p50s, mut p99s, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        limits.push(ping_pong(5_000 / scale)? + flush(&dir, 3, 1_500 / scale)?);
        let looped = closed_loop(&dir, 2, 1, each, Policy::MAJORITY)?;
        p50s.push(looped.p50);
        p99s.push(looped.p99);
    }
    let what = "1 committer, durable on 2 of 3, p50; limit: ping-pong and three flushes at once";
    let row = Row::new(id, what, "us", Spread::of(p50s.clone())).against_each(&p50s, &limits);
    bench.line(id, || Ok(row))?;
    let row = Row::new(slow, "the same, p99", "us", Spread::of(p99s.clone())).against_each(&p99s, &limits);
    bench.line(slow, || Ok(row))
}

fn many_durable(bench: &mut Bench, committers: u64) -> Result<(), Failure> {
    let id = format!("commit.durable.{committers}");
    let per_flush = format!("{id}.perflush");
    if !(bench.wants(&id) || bench.wants(&per_flush)) {
        return Ok(());
    }
    bench.show(&id);
    let scale = bench.effort.scale;
    let (dir, each) = (bench.dir.path().to_path_buf(), 40_000 / scale / committers);
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        let flushes = flush(&dir, 3, 1_500 / scale)?;
        let looped = closed_loop(&dir, 2, committers, each, Policy::MAJORITY)?;
        rates.push(looped.per_second);
        ratios.push(looped.per_second * flushes / 1e6);
    }
    let what = format!("{committers} committers, durable on 2 of 3");
    let row = Row::new(&id, what, "commits/s", Spread::of(rates));
    bench.line(&id, || Ok(row))?;
    let what = "the same, commits in the time of three flushes at once";
    let row = Row::new(&per_flush, what, "commits", Spread::of(ratios));
    bench.line(&per_flush, || Ok(row))
}
