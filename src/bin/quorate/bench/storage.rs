//! The log alone: append, scan, open.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate::clock::{Stopwatch, SystemClock, Wait, deadline_in};
use quorate::disk::RealDisk;
use quorate::entry::HEADER_LEN;
use quorate::log::{Log, LogConfig, LogScanner};
use quorate::runtime::{Running, Runtime, ThreadRuntime};
use quorate::watermark::rest;
use quorate::{GroupId, NewEntry, Term};
use tempfile::TempDir;

use super::group::patience;
use super::meter::{allocations, measure, rate};
use super::report::{Row, Spread};
use super::{Bench, Effort};
use crate::Failure;

const PAYLOAD: [u8; 128] = [0x42; 128];
const ENTRY: u64 = (HEADER_LEN + PAYLOAD.len()) as u64;
const SEGMENT: u64 = 64 << 20;
const RUN_BYTES: usize = 256 << 10;
const TERM: Term = Term::new(1);

/// A log with its flusher, in a directory that goes away with it.
struct Alive {
    log: Log,
    flusher: Arc<dyn Running>,
}

impl Alive {
    fn open(dir: &Path) -> Result<Alive, Failure> {
        let log = open(dir)?;
        let flusher =
            ThreadRuntime.spawn("log-flush".into(), Box::new(log.flusher()), Vec::new(), Box::new(|_| {}));
        Ok(Alive { log, flusher })
    }

    /// The same entries again and again, `count` in all.
    fn append(&self, entries: &[NewEntry<'_>], count: u64) -> Result<(), Failure> {
        for _ in 0..count / entries.len() as u64 {
            self.log.append(TERM, entries)?;
        }
        Ok(())
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Err(error) = self.log.close() {
            log::warn!("the log closed with an error: {error}");
        }
        self.flusher.join();
    }
}

fn open(dir: &Path) -> Result<Log, Failure> {
    let config = LogConfig::new(dir, GroupId::from_bits(7));
    Ok(Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config)?.0)
}

/// Waits until the flusher has nothing left to do.
///
/// # Errors
/// If the log can't be flushed.
pub fn settle(log: &Log) -> Result<(), Failure> {
    let last = log.last().ok_or("nothing was appended")?.vlsn;
    log.flush(last, patience())?;
    rest(Wait::Until(deadline_in(Duration::from_millis(250))));
    Ok(())
}

fn fresh(below: &Path) -> Result<TempDir, Failure> {
    Ok(tempfile::Builder::new().prefix("log-").tempdir_in(below)?)
}

/// Measures the log.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    append_lines(bench, "append.single.128", 1)?;
    append_lines(bench, "append.batch64.128", 64)?;
    scan_lines(bench)?;
    open_lines(bench)
}

/// Nanoseconds per entry across new segments, and allocations per entry within one.
fn append_lines(bench: &mut Bench, id: &str, batch: usize) -> Result<(), Failure> {
    let allocs = format!("{id}.allocs");
    if !(bench.wants(id) || bench.wants(&allocs)) {
        return Ok(());
    }
    bench.show(id);
    // Four segments begin whatever the effort: they are what may stall.
    let count = 4 * SEGMENT / ENTRY + 64 * 1024;
    let entries = vec![NewEntry::data(&PAYLOAD); batch];
    let (mut nanos, mut allocated) = (Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        let dir = fresh(bench.dir.path())?;
        let running = Alive::open(dir.path())?;
        running.append(&entries, 64 * 1024)?;
        let watch = Stopwatch::start();
        running.append(&entries, count)?;
        nanos.push(watch.elapsed().as_nanos() as f64 / count as f64);
        // Inside the fifth segment, when the flusher is done with the fourth.
        settle(&running.log)?;
        let before = allocations();
        running.append(&entries, 128 * 1024)?;
        allocated.push((allocations() - before) as f64 / (128.0 * 1024.0));
    }
    let what = format!("append 128 B, {batch} at a time, across 4 new segments");
    let row = Row::new(id, what, "ns", Spread::of(nanos));
    bench.line(id, || Ok(row))?;
    let row = Row::new(&allocs, "allocations per entry within a segment", "allocs", Spread::of(allocated));
    bench.line(&allocs, || Ok(row))
}

/// Entries per second of a scan from the beginning to the end.
fn scan(log: &Log, mut each: impl FnMut(&[u8])) -> Result<f64, Failure> {
    let mut scanner = log.scanner();
    let (mut after, watch) = (None, Stopwatch::start());
    while let Some(run) = scanner.run(after, u32::MAX, RUN_BYTES)? {
        run.slices().iter().for_each(|slice| each(slice));
        after = Some(run.last.vlsn);
    }
    Ok(rate(after.map_or(0, |last| last.get()), watch.elapsed()))
}

fn scan_lines(bench: &mut Bench) -> Result<(), Failure> {
    let (runs_id, crc_id) = ("scan.runs.128", "scan.crc.128");
    if !(bench.wants(runs_id) || bench.wants(crc_id)) {
        return Ok(());
    }
    bench.show(runs_id);
    let dir = fresh(bench.dir.path())?;
    let count = 2_400_000 / bench.effort.scale;
    Alive::open(dir.path())?.append(&[NewEntry::data(&PAYLOAD); 64], count)?;
    let (mut by_runs, mut with_crc, mut crcs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.runs {
        // A log just opened trusts nothing: the first scan checks every CRC, the second one headers and the chain.
        let log = open(dir.path())?;
        with_crc.push(scan(&log, |_| {})?);
        by_runs.push(scan(&log, |_| {})?);
        let mut wrong = 0u64;
        let took = scan_apart(&log, &mut wrong)?;
        crcs.push(count as f64 / took);
        if wrong > 0 {
            return Err(format!("{wrong} entries have a wrong CRC").into());
        }
        log.close()?;
    }
    let what = "scan by runs, 128 B: headers and chain";
    let row = Row::new(runs_id, what, "entries/s", Spread::of(by_runs));
    bench.line(runs_id, || Ok(row))?;
    let what = "the same with every CRC; limit: crc32fast over the same bytes";
    let row =
        Row::new(crc_id, what, "entries/s", Spread::of(with_crc.clone())).against_each(&with_crc, &crcs);
    bench.line(crc_id, || Ok(row))
}

/// Seconds that crc32fast takes over all entries of the log, each known by its place only.
fn scan_apart(log: &Log, wrong: &mut u64) -> Result<f64, Failure> {
    let mut seconds = 0.0;
    scan(log, |slice| {
        let watch = Stopwatch::start();
        for entry in slice.chunks_exact(ENTRY as usize) {
            let stored = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
            *wrong += u64::from(crc32fast::hash(&entry[4..]) != stored);
        }
        seconds += watch.elapsed().as_secs_f64();
    })?;
    Ok(seconds)
}

fn open_lines(bench: &mut Bench) -> Result<(), Failure> {
    let Effort { runs, scale } = bench.effort;
    let id = "open.10gib";
    let gib = if scale > 1 { 1 } else { 10 };
    let below = bench.dir.path().to_path_buf();
    bench.line(id, || {
        let dir = fresh(&below)?;
        let payload = vec![0x21; 32 << 10];
        Alive::open(dir.path())?
            .append(&[NewEntry::data(&payload); 16], (gib << 30) / (payload.len() + HEADER_LEN) as u64)?;
        let spread = measure(runs, || {
            let watch = Stopwatch::start();
            let log = open(dir.path())?;
            let took = watch.elapsed();
            log.close()?;
            Ok(took.as_secs_f64() * 1e3)
        })?;
        Ok(Row::new(id, format!("open a log of {gib} GiB that was closed, warm"), "ms", spread))
    })?;
    let id = "open.recover";
    bench.line(id, || {
        let spread = measure(runs, || recover(&below))?;
        Ok(Row::new(id, "open after a crash, per GiB behind the last mark", "ms/GiB", spread))
    })
}

/// Milliseconds per GiB to open a log that was never flushed.
fn recover(below: &Path) -> Result<f64, Failure> {
    let (living, dead) = (fresh(below)?, fresh(below)?);
    let log = open(living.path())?;
    let entries = [NewEntry::data(&PAYLOAD); 64];
    let count = SEGMENT * 7 / 8 / ENTRY / 64;
    for _ in 0..count {
        log.append(TERM, &entries)?;
    }
    log.write_out()?;
    // What a crash would leave: the files as they are now.
    for item in std::fs::read_dir(living.path())? {
        let item = item?;
        std::fs::copy(item.path(), dead.path().join(item.file_name()))?;
    }
    let watch = Stopwatch::start();
    let recovered = open(dead.path())?;
    let took = watch.elapsed();
    let found = recovered.last().map_or(0, |last| last.vlsn.get());
    if found != count * 64 {
        return Err(format!("{found} of {} entries were recovered", count * 64).into());
    }
    recovered.close()?;
    let last = log.last().ok_or("nothing was appended")?.vlsn;
    log.flush(last, patience())?;
    log.close()?;
    Ok(took.as_secs_f64() * 1e3 / (found * ENTRY) as f64 * f64::from(1 << 30))
}
