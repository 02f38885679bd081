//! The loops that every entry goes through, for counting instructions: append, scan, verify.
//!
//! `cargo bench --bench hot_paths [-- append|scan|verify]` times them; docs/performance.md says how to run them under
//! callgrind, whose counts do not depend on what else the machine does.
#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::Arc;

use quorate::clock::{Stopwatch, SystemClock};
use quorate::disk::RealDisk;
use quorate::entry::{HEADER_LEN, NewEntry, Placement, encode, verify_run};
use quorate::log::{Log, LogConfig, LogScanner};
use quorate::{GroupId, Term, Vlsn};

const ENTRIES: u64 = 100_000;
const TERM: Term = Term::new(1);
const PAYLOAD: [u8; 128] = [0x5c; 128];

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn report(what: &str, watch: Stopwatch) {
    println!("{what}: {:.1} ns for an entry", watch.elapsed().as_nanos() as f64 / ENTRIES as f64);
}

fn log() -> Result<(tempfile::TempDir, Log), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
    let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config)?;
    Ok((dir, log))
}

#[inline(never)]
fn append(log: &Log) -> Outcome {
    let entries = [NewEntry::data(&PAYLOAD); 10];
    for _ in 0..ENTRIES / entries.len() as u64 {
        black_box(log.append(TERM, black_box(&entries))?);
    }
    Ok(log.write_out()?)
}

#[inline(never)]
fn scan(log: &Log) -> Outcome {
    let (mut scanner, mut after) = (log.scanner(), None);
    while let Some(run) = scanner.run(after, u32::MAX, 256 << 10)? {
        after = Some(black_box(run).last.vlsn);
    }
    assert_eq!(after, log.last().map(|last| last.vlsn));
    Ok(())
}

fn run_of_entries() -> Vec<u8> {
    let mut run = Vec::with_capacity((HEADER_LEN + PAYLOAD.len()) * ENTRIES as usize);
    let mut prev = 0;
    for number in 1..=ENTRIES {
        let at = Placement { vlsn: Vlsn::new(number), term: TERM, prev, timestamp: number };
        prev = encode(&NewEntry::data(&PAYLOAD), &at, &mut run);
    }
    run
}

#[inline(never)]
fn verify(run: &[u8]) -> Outcome {
    black_box(verify_run(black_box(run), None)?);
    Ok(())
}

fn main() -> Outcome {
    // Cargo passes `--bench`; a name chooses one loop.
    let chosen = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wants = |name: &str| chosen.as_deref().is_none_or(|chosen| chosen == name);
    if wants("append") || wants("scan") {
        let (_dir, log) = log()?;
        let watch = Stopwatch::start();
        append(&log)?;
        report("append", watch);
        if wants("scan") {
            for turn in ["scan, mapped anew", "scan again"] {
                let watch = Stopwatch::start();
                scan(&log)?;
                report(turn, watch);
            }
        }
        log.close()?;
    }
    if wants("verify") {
        let run = run_of_entries();
        let watch = Stopwatch::start();
        verify(&run)?;
        report("verify", watch);
    }
    Ok(())
}
