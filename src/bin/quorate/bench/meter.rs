//! What is read off the machine while something runs: time, CPU time, allocations, memory.

use std::time::Duration;

use quorate::clock::Stopwatch;

use super::report::Spread;
use crate::Failure;

/// Runs something several times and gathers the values it returns.
///
/// # Errors
/// The first failure.
pub fn measure(runs: usize, mut run: impl FnMut() -> Result<f64, Failure>) -> Result<Spread, Failure> {
    (0..runs).map(|_| run()).collect::<Result<Vec<f64>, Failure>>().map(Spread::of)
}

/// The value below which `part` of the values lie, 0.5 for the median.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(((last as f64) * part).round() as usize).copied().unwrap_or(0.0)
}

/// Units per second.
pub fn rate(units: u64, took: Duration) -> f64 {
    units as f64 / took.as_secs_f64().max(1e-9)
}

/// Seconds that something takes.
pub fn time<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let watch = Stopwatch::start();
    let result = what();
    (result, watch.elapsed())
}

/// CPU time of all threads of this process since its start, user and system.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Allocations since the start, moves to a larger place included.
pub fn allocations() -> u64 {
    let stats = crate::ALLOCATOR.stats();
    (stats.allocations + stats.reallocations) as u64
}

/// Anonymous memory of this process, in bytes.
///
/// # Errors
/// If the system does not tell.
pub fn anonymous_memory() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| "/proc/self/status has no RssAnon".into())
}

/// How often threads of this process gave up the CPU to wait, and so were woken, since they started.
///
/// # Errors
/// If the system does not tell.
pub fn wake_ups() -> Result<u64, Failure> {
    let mut total = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let status = std::fs::read_to_string(thread?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        total += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meters_see_what_they_measure() {
        let (allocations_before, memory_before, cpu_before) =
            (allocations(), anonymous_memory().unwrap(), cpu_time());
        let big = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(allocations() > allocations_before);
        assert!(anonymous_memory().unwrap() >= memory_before + (32 << 20));
        assert!(crc32fast::hash(&big) != 1);
        assert!(cpu_time() > cpu_before);
    }

    #[test]
    fn quantiles_of_a_hundred() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!((quantile(&mut values, 0.5), quantile(&mut values, 0.99)), (50.0, 99.0));
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}
