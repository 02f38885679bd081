//! What a group takes when nothing is written: memory, CPU, wake-ups.

use std::time::Duration;

use quorate::clock::{Stopwatch, deadline_in};
use quorate::watermark::rest;
use quorate::{Config, Policy, Wait};

use super::Bench;
use super::group::{Group, Via, patience, until};
use super::meter::{anonymous_memory, cpu_time, wake_ups};
use super::report::{Row, Spread};
use super::streams::append;
use crate::Failure;

const PEERS: usize = 16;
const HEARTBEATS_PER_S: f64 = 10.0;

fn plain(_: &mut Config) {}

/// Measures memory and idle CPU.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    let dir = bench.dir.path().to_path_buf();
    let runs = bench.effort.runs;
    bench.line("memory.replica", || {
        let spread = super::meter::measure(runs, || {
            let group = Group::new(&dir, PEERS + 1, Via::Tcp, |config| {
                config.peer_timeout = Duration::from_secs(60);
            })?;
            append(&group.master, &[1; 1024], 64 << 10, Policy::Async)?;
            let before = anonymous_memory()?;
            let mut peers = Vec::new();
            for number in 1..=PEERS {
                peers.push(group.add_idle_peer(number)?);
            }
            // Each has been sent what fits into a socket's buffers and lags by the rest.
            until(|| {
                let replicas = group.master.replicas();
                replicas.iter().all(|replica| replica.sent.is_some_and(|sent| sent.get() > 1))
            })?;
            rest(Wait::Until(deadline_in(Duration::from_millis(100))));
            let grown = anonymous_memory()?.saturating_sub(before);
            Ok(grown as f64 / PEERS as f64 / f64::from(1 << 20))
        })?;
        let what = "anonymous memory of the master for a connected replica that lags by 64 MiB";
        Ok(Row::new("memory.replica", what, "MiB", spread))
    })?;
    idle(bench)
}

/// Two replicas: for each heartbeat the feeder wakes, the replica, and the feeder's ack reader.
fn idle(bench: &mut Bench) -> Result<(), Failure> {
    let (id, wakes) = ("idle.cpu", "idle.wakeups");
    if !(bench.wants(id) || bench.wants(wakes)) {
        return Ok(());
    }
    bench.show(id);
    let window = Duration::from_secs(if bench.effort.scale > 1 { 1 } else { 3 });
    let (mut cpus, mut woken) = (Vec::new(), Vec::new());
    let group = Group::connected(bench.dir.path(), 2, Via::Tcp, plain)?;
    append(&group.master, &[1; 128], 1000, Policy::MAJORITY)?;
    let last = group.last();
    until(|| {
        group
            .replicas
            .iter()
            .all(|replica| replica.positions().checkpointed.is_some_and(|at| at.get() >= last))
    })?;
    rest(Wait::Until(deadline_in(Duration::from_millis(1500))));
    for _ in 0..bench.effort.runs {
        let (cpu, wakes, watch) = (cpu_time(), wake_ups()?, Stopwatch::start());
        rest(Wait::Until(deadline_in(window)));
        let seconds = watch.elapsed().as_secs_f64();
        cpus.push((cpu_time() - cpu).as_secs_f64() / seconds * 100.0);
        woken.push(wake_ups()?.saturating_sub(wakes) as f64 / seconds);
    }
    group.received(last, patience())?;
    let row = Row::new(id, "an idle group of three, of one core", "%", Spread::of(cpus));
    bench.line(id, || Ok(row))?;
    let row =
        Row::new(wakes, "the same, wake-ups; limit: three for each heartbeat", "1/s", Spread::of(woken));
    bench.line(wakes, || Ok(row.against(2.0 * 3.0 * HEARTBEATS_PER_S)))
}
