//! `quorate demo --failover`: three nodes, clients that never pause, and a master that is killed again and again.

pub mod check;
mod load;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::clock::{Wait, deadline_in};
use quorate::watermark::rest;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::processes::Nodes;
use crate::{Failure, Verdict};
use check::{Tally, check};
use load::{CLIENTS, Load};

/// How many nodes there are.
const NODES: usize = 3;
/// How long the clients run before and after each death.
const CALM: Duration = Duration::from_millis(500);
/// How long a new master may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a signal is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// So many flaws are printed.
const FLAWS: usize = 10;

/// What came of it.
#[derive(Serialize)]
struct Report {
    cycles: usize,
    /// From a master's death to the end of the first write that began after it and was committed.
    failover_ms: Vec<u64>,
    median_ms: u64,
    worst_ms: u64,
    operations: usize,
    writes: u64,
    reads: u64,
    /// Conditional writes that found another version than they expected.
    differed: u64,
    not_done: u64,
    unknown: u64,
    unknown_done: u64,
    /// What the clients were told and the log does not explain.
    flaws: Vec<String>,
    identical: bool,
}

/// Runs the demo in this directory.
///
/// # Errors
/// If it can't be carried through; what clients were told and does not hold is a verdict.
pub fn run(root: &Path, cycles: usize, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut nodes = Nodes::start(root, NODES)?;
    let first = nodes.master()?;
    eprintln!(
        "{NODES} nodes, each a process, founded a group; {} leads; {CLIENTS} clients begin",
        nodes.name(first)
    );
    let load = Load::new(nodes.addresses(), nodes.group);
    let took = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || load.run(client));
        }
        let stage = Stage { load: &load, interrupted: &interrupted };
        let took: Result<Vec<Duration>, Failure> =
            (1..=cycles).map(|cycle| stage.cycle(&mut nodes, cycle)).collect();
        load.stop();
        took
    })?;
    nodes.settle()?;
    nodes.close()?;
    let report = report(&nodes, load, &took)?;
    print(&report, json, out)?;
    Ok(if report.flaws.is_empty() && report.identical { Verdict::Good } else { Verdict::Bad })
}

struct Stage<'a> {
    load: &'a Load,
    interrupted: &'a AtomicBool,
}

impl Stage<'_> {
    /// Kills the master, waits for the next one, and brings the dead one back. Returns how long nothing was committed.
    fn cycle(&self, nodes: &mut Nodes, cycle: usize) -> Result<Duration, Failure> {
        let master = nodes.master()?;
        self.run_on(CALM)?;
        nodes.kill(master)?;
        let died = self.load.now();
        while !self.load.committed_after(died, Wait::Until(deadline_in(LOOK))) {
            self.run_on(Duration::ZERO)?;
            if self.load.now() - died > PATIENCE {
                return Err(format!("nothing was committed for {PATIENCE:?}").into());
            }
        }
        let took = self.load.now() - died;
        self.run_on(CALM)?;
        nodes.bring_back(master)?;
        eprintln!(
            "cycle {cycle}: {} was killed; the next write was committed after {} ms",
            nodes.name(master),
            took.as_millis()
        );
        Ok(took)
    }

    /// Lets the clients run for so long.
    fn run_on(&self, calm: Duration) -> Result<(), Failure> {
        let until = deadline_in(calm);
        loop {
            if self.interrupted.load(Ordering::SeqCst) {
                return Err("interrupted".into());
            }
            match Wait::Until(until).remaining() {
                Some(left) if !left.is_zero() => rest(Wait::Until(until.min(deadline_in(LOOK)))),
                _ => return Ok(()),
            }
        }
    }
}

fn report(nodes: &Nodes, load: Load, took: &[Duration]) -> Result<Report, Failure> {
    let history = load.into_history();
    let mut flaws = Vec::new();
    let mut tally = Tally::default();
    for at in 0..NODES {
        match check(&history, &nodes.log(at)?) {
            Ok(found) => tally = found,
            Err(found) => flaws.extend(found.into_iter().map(|flaw| format!("{}: {flaw}", nodes.name(at)))),
        }
    }
    let stores = nodes.stores()?;
    let mut sorted: Vec<u64> =
        took.iter().map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)).collect();
    let failover_ms = sorted.clone();
    sorted.sort_unstable();
    let Tally { writes, reads, differed, not_done, unknown, unknown_done } = tally;
    Ok(Report {
        cycles: took.len(),
        failover_ms,
        median_ms: sorted.get(sorted.len() / 2).copied().unwrap_or(0),
        worst_ms: sorted.last().copied().unwrap_or(0),
        operations: history.len(),
        writes,
        reads,
        differed,
        not_done,
        unknown,
        unknown_done,
        flaws,
        identical: stores.windows(2).all(|pair| pair[0].1 == pair[1].1),
    })
}

fn print(report: &Report, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if json {
        serde_json::to_writer(&mut *out, report)?;
        writeln!(out)?;
        return Ok(());
    }
    let Report { cycles, median_ms, worst_ms, operations, writes, reads, differed, .. } = report;
    writeln!(
        out,
        "{operations} operations: {writes} writes committed, {reads} linearizable reads, {differed} conditional writes \
         that found another version"
    )?;
    writeln!(
        out,
        "{} were told not done; of {} whose outcome was unknown {} were done",
        report.not_done, report.unknown, report.unknown_done
    )?;
    writeln!(out, "{cycles} times without a master: median {median_ms} ms, worst {worst_ms} ms")?;
    for flaw in report.flaws.iter().take(FLAWS) {
        writeln!(out, "{flaw}")?;
    }
    let held = match report.flaws.len() {
        0 => "every answer agrees with the log of every node".to_owned(),
        flaws => format!("{flaws} ANSWERS DO NOT AGREE WITH THE LOGS"),
    };
    let stores = if report.identical { "all stores are identical" } else { "THE STORES DIFFER" };
    writeln!(out, "{held}; {stores}")?;
    Ok(())
}
