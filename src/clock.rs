//! Time: the only module that reads a clock.
//!
//! A [`Deadline`] is a point on a monotonic time line, in nanoseconds. In production that line is the machine's
//! `CLOCK_MONOTONIC`; in a simulation it is virtual and only [`Wait::Now`] is used.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in monotonic time, in nanoseconds since an arbitrary start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// A point that is never reached.
    pub const NEVER: Deadline = Deadline(u64::MAX);

    /// The point `nanos` nanoseconds after the start of the time line.
    pub const fn from_nanos(nanos: u64) -> Deadline {
        Deadline(nanos)
    }

    /// Nanoseconds since the start of the time line.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long the machine's monotonic clock takes to reach this point; zero if it has passed, `None` for
    /// [`Deadline::NEVER`]. For code that is about to block a real thread; a simulated run never asks.
    pub fn remaining(self) -> Option<Duration> {
        (self != Deadline::NEVER)
            .then(|| Duration::from_nanos(self.0.saturating_sub(nanos_of(ClockId::Monotonic))))
    }
}

impl Add<Duration> for Deadline {
    type Output = Deadline;
    fn add(self, by: Duration) -> Deadline {
        Deadline(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The time from the earlier point to the later one; zero if they stand the other way round.
impl Sub for Deadline {
    type Output = Duration;
    fn sub(self, earlier: Deadline) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.0 as f64 / 1e9)
    }
}

/// How long a call may block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    Now,
    /// Until this point at the latest.
    Until(Deadline),
    /// As long as it takes.
    Forever,
}

impl Wait {
    /// This wait, cut to end at `deadline` at the latest. `Now` stays `Now`.
    pub fn at_most(self, deadline: Deadline) -> Wait {
        match self {
            Wait::Now => Wait::Now,
            Wait::Until(own) => Wait::Until(own.min(deadline)),
            Wait::Forever if deadline == Deadline::NEVER => Wait::Forever,
            Wait::Forever => Wait::Until(deadline),
        }
    }

    /// How long a real thread may block from now on: zero for [`Wait::Now`] and for a point that has passed, `None`
    /// for no limit.
    pub fn remaining(self) -> Option<Duration> {
        match self {
            Wait::Now => Some(Duration::ZERO),
            Wait::Until(deadline) => deadline.remaining(),
            Wait::Forever => None,
        }
    }
}

/// A source of time. Both clocks may be read from any thread and never block.
pub trait Clock: Send + Sync {
    /// The present, on the time line of [`Deadline`]; never goes back.
    fn now(&self) -> Deadline;

    /// Microseconds since the Unix epoch. May jump; used for timestamps that people read and never for ordering.
    fn wall_micros(&self) -> u64;
}

/// The machine's clocks. Monotonic time is exact, because waits are: a worker that waited until its deadline by one clock
/// and then asked another that lags behind would find nothing due, and spin until it caught up. Wall time is coarse: a
/// reading costs some 3 ns and is up to one timer tick (1–10 ms) old.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Deadline {
        Deadline(nanos_of(ClockId::Monotonic))
    }

    fn wall_micros(&self) -> u64 {
        nanos_of(ClockId::RealtimeCoarse) / 1_000
    }
}

/// Measures elapsed real time exactly, for benchmarks and progress display.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(u64);

impl Stopwatch {
    /// Starts measuring.
    pub fn start() -> Stopwatch {
        Stopwatch(nanos_of(ClockId::Monotonic))
    }

    /// The real time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(nanos_of(ClockId::Monotonic).saturating_sub(self.0))
    }
}

/// A point `after` from now on the machine's monotonic clock: the deadline of a blocking call on real threads.
pub fn deadline_in(after: Duration) -> Deadline {
    Deadline(nanos_of(ClockId::Monotonic)) + after
}

fn nanos_of(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_only_shortens() {
        let (soon, late) = (Deadline::from_nanos(1), Deadline::from_nanos(2));
        assert_eq!(Wait::Now.at_most(soon), Wait::Now);
        assert_eq!(Wait::Until(soon).at_most(late), Wait::Until(soon));
        assert_eq!(Wait::Until(late).at_most(soon), Wait::Until(soon));
        assert_eq!(Wait::Forever.at_most(Deadline::NEVER), Wait::Forever);
        assert_eq!(Wait::Forever.at_most(late), Wait::Until(late));
    }

    #[test]
    fn a_deadline_saturates_and_never_underflows() {
        assert_eq!(Deadline::from_nanos(5) - Deadline::from_nanos(9), Duration::ZERO);
        assert_eq!(Deadline::from_nanos(5) + Duration::MAX, Deadline::NEVER);
        assert_eq!(Deadline::NEVER.remaining(), None);
        assert_eq!(Deadline::from_nanos(0).remaining(), Some(Duration::ZERO));
    }

    #[test]
    fn the_system_clock_tells_a_plausible_date() {
        let year_2020 = 1_577_836_800_000_000;
        assert!(SystemClock.wall_micros() > year_2020);
        assert!(SystemClock.now() <= deadline_in(Duration::ZERO));
    }
}
