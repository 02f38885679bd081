//! What this machine can do at most: memory, CRC, loopback, disk. Each function is one run; [`add_all`] makes the lines.

use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use quorate::clock::Stopwatch;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};

use super::ceiling::{self, loopback_pair};
use super::meter::{measure, quantile, rate, time};
use super::report::Row;
use super::{Bench, Effort};
use crate::Failure;

/// Bytes there and back of one ping-pong: a small entry in its frame, and a position.
const PING: usize = 145;
const PONG: usize = 8;
/// Bytes of one write whose flush is measured.
const FLUSHED: usize = 128;
const FLUSH_FILE: u64 = 64 << 20;
const BULK_FLUSH_EVERY: u64 = 8 << 20;

/// Measures every limit.
///
/// # Errors
/// The first that can't be measured.
pub fn add_all(bench: &mut Bench) -> Result<(), Failure> {
    let Effort { runs, scale } = bench.effort;
    let mib = |n: u64| (n << 20) / scale;
    for (id, what, block) in [
        ("limit.memcpy.cached", "copy 64 KiB, in cache", 64 << 10),
        ("limit.memcpy.dram", "copy 256 MiB, one thread", 256 << 20),
    ] {
        bench.line(id, || Ok(Row::new(id, what, "B/s", measure(runs, || memcpy(block, mib(4096)))?)))?;
    }
    for block in [128, 1024, 8192] {
        let id = format!("limit.crc.{block}");
        let what = format!("CRC-32 over {block} B");
        bench.line(&id, || Ok(Row::new(&id, what, "B/s", measure(runs, || crc(block, mib(2048)))?)))?;
    }
    let trips = 20_000 / scale;
    bench.line("limit.pingpong", || {
        let what = "loopback TCP, 145 B there and 8 B back, p50";
        Ok(Row::new("limit.pingpong", what, "us", measure(runs, || ping_pong(trips))?))
    })?;
    for block in [64 << 10, 256 << 10] {
        let id = format!("limit.bulk.{block}");
        let what = format!("loopback TCP, writes of {} KiB", block >> 10);
        bench.line(&id, || Ok(Row::new(&id, what, "B/s", measure(runs, || bulk(block, mib(4096)))?)))?;
    }
    let (flushes, dir) = (2_000 / scale, bench.dir.path().to_path_buf());
    for files in [1, 3] {
        let id = format!("limit.flush.{files}");
        let what = match files {
            1 => "write 128 B and fdatasync, p50".to_owned(),
            _ => format!("the same on {files} files at once, p50"),
        };
        bench.line(&id, || Ok(Row::new(&id, what, "us", measure(runs, || flush(&dir, files, flushes))?)))?;
    }
    bench.line("limit.writeflush", || {
        let what = "write 64 KiB at a time, fdatasync each 8 MiB";
        Ok(Row::new("limit.writeflush", what, "B/s", measure(runs, || write_and_flush(&dir, mib(512)))?))
    })?;
    for (payload, count) in [(128, 4_000_000), (1024, 1_000_000), (8192, 150_000)] {
        let id = format!("limit.ceiling.{payload}");
        let what = format!("entries of {payload} B in 64 KiB writes over TCP, checked and acked");
        let count = count / scale;
        bench.line(&id, || {
            Ok(Row::new(&id, what, "entries/s", measure(runs, || ceiling::run(payload, count))?))
        })?;
    }
    Ok(())
}

/// Bytes copied per second, in blocks of this size.
fn memcpy(block: usize, total: u64) -> Result<f64, Failure> {
    let (from, mut to) = (vec![1u8; block], vec![2u8; block]);
    let rounds = (total / block as u64).max(2);
    let ((), took) = time(|| {
        for _ in 0..rounds {
            black_box(&mut to[..]).copy_from_slice(black_box(&from[..]));
        }
    });
    Ok(rate(rounds * block as u64, took))
}

/// Bytes checked per second, in blocks of this size that lie in cache.
pub fn crc(block: usize, total: u64) -> Result<f64, Failure> {
    let bytes = vec![0x5a; block];
    let rounds = total / block as u64;
    let ((), took) = time(|| {
        for _ in 0..rounds {
            black_box(crc32fast::hash(black_box(&bytes)));
        }
    });
    Ok(rate(rounds * block as u64, took))
}

/// The median round trip in microseconds.
pub fn ping_pong(trips: u64) -> Result<f64, Failure> {
    let (mut near, mut far) = loopback_pair()?;
    let echo = thread::spawn(move || {
        let mut ping = [0; PING];
        // Ends when the near side closes.
        while far.read_exact(&mut ping).is_ok() && far.write_all(&ping[..PONG]).is_ok() {}
    });
    let mut took = Vec::with_capacity(trips as usize);
    for _ in 0..trips {
        let watch = Stopwatch::start();
        near.write_all(&[1; PING])?;
        near.read_exact(&mut [0; PONG])?;
        took.push(micros(watch.elapsed()));
    }
    drop(near);
    echo.join().map_err(|_| "the echo panicked")?;
    Ok(quantile(&mut took, 0.5))
}

/// Bytes per second through a connection, in writes of this size.
pub fn bulk(block: usize, total: u64) -> Result<f64, Failure> {
    let (mut near, mut far) = loopback_pair()?;
    let writes = (total / block as u64).max(1);
    let expected = writes * block as u64;
    let watch = Stopwatch::start();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<Duration, Failure> {
            let (mut buffer, mut received) = (vec![0; 1 << 20], 0);
            while received < expected {
                match far.read(&mut buffer)? {
                    0 => return Err("the connection ended early".into()),
                    read => received += read as u64,
                }
            }
            Ok(watch.elapsed())
        });
        let bytes = vec![3; block];
        for _ in 0..writes {
            near.write_all(&bytes)?;
        }
        let took = receiving.join().map_err(|_| "the receiver panicked")??;
        Ok(rate(expected, took))
    })
}

fn allocated(dir: &Path, name: &str, len: u64) -> Result<File, Failure> {
    let path = dir.join(name);
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, len)?;
    file.sync_all()?;
    Ok(file)
}

/// The median time in microseconds of a small write behind the last one and its flush, on this many files at once: each
/// round starts together on all, and ends when the slowest has ended.
pub fn flush(dir: &Path, files: usize, rounds: u64) -> Result<f64, Failure> {
    let opened: Vec<File> = (0..files)
        .map(|number| allocated(dir, &format!("flush-{number}"), FLUSH_FILE))
        .collect::<Result<_, _>>()?;
    let barrier = Barrier::new(files);
    let write = |file: &File| -> Vec<Result<f64, std::io::Error>> {
        (0..rounds)
            .map(|round| {
                barrier.wait();
                let watch = Stopwatch::start();
                // A failure may not end the round early: the others wait at the barrier.
                file.write_all_at(&[7; FLUSHED], round * FLUSHED as u64 % (FLUSH_FILE - 4096))?;
                fdatasync(file)?;
                Ok(micros(watch.elapsed()))
            })
            .collect()
    };
    let of_files = thread::scope(|scope| {
        let running: Vec<_> = opened.iter().map(|file| scope.spawn(|| write(file))).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    let mut slowest = vec![0f64; rounds as usize];
    for of_file in of_files {
        for (slowest, took) in slowest.iter_mut().zip(of_file.map_err(|_| "a flusher panicked")?) {
            *slowest = slowest.max(took?);
        }
    }
    Ok(quantile(&mut slowest, 0.5))
}

/// Bytes per second of writing a file that was allocated before, with a flush each 8 MiB.
pub fn write_and_flush(dir: &Path, total: u64) -> Result<f64, Failure> {
    let file = allocated(dir, "write-and-flush", total)?;
    let block = vec![9; 64 << 10];
    let watch = Stopwatch::start();
    let mut at = 0;
    while at < total {
        file.write_all_at(&block, at)?;
        at += block.len() as u64;
        if at % BULK_FLUSH_EVERY == 0 {
            fdatasync(&file)?;
        }
    }
    fdatasync(&file)?;
    Ok(rate(at, watch.elapsed()))
}

/// Microseconds.
pub fn micros(took: Duration) -> f64 {
    took.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_can_be_measured_in_a_small_run() {
        let mut bench = Bench::new(None, Effort { runs: 1, scale: 500 }, None).unwrap();
        add_all(&mut bench).unwrap();
        let rows = bench.report.rows();
        assert_eq!(rows.len(), 14);
        assert!(rows.iter().all(|row| row.value > 0.0 && row.id.starts_with("limit.")), "{rows:?}");
    }
}
