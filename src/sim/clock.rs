//! Virtual time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Deadline};

/// Where the simulated calendar begins: 2030-01-01 00:00 UTC, in microseconds since the Unix epoch.
const WALL_BASE: u64 = 1_893_456_000_000_000;

/// A clock that stands still until the simulation advances it.
#[derive(Debug, Default)]
pub struct SimClock {
    nanos: AtomicU64,
    wall_jump: AtomicI64,
}

impl SimClock {
    /// A clock at the start of its time line.
    pub fn new() -> SimClock {
        SimClock::default()
    }

    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        self.set((self.now() + by).as_nanos());
    }

    /// Moves the calendar (and nothing else) by so many microseconds against where it stood, as an operator or a time
    /// daemon does.
    pub fn jump_wall(&self, micros: i64) {
        self.wall_jump.fetch_add(micros, Ordering::Relaxed);
    }

    /// Moves time to this point, unless it is past it.
    pub(super) fn set(&self, nanos: u64) {
        self.nanos.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(super) fn nanos(&self) -> u64 {
        self.nanos.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Deadline {
        Deadline::from_nanos(self.nanos())
    }

    fn wall_micros(&self) -> u64 {
        (WALL_BASE + self.nanos() / 1_000).saturating_add_signed(self.wall_jump.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_only_forward_and_the_calendar_as_it_likes() {
        let clock = SimClock::new();
        clock.advance(Duration::from_secs(2));
        clock.set(5);
        assert_eq!(clock.now(), Deadline::from_nanos(2_000_000_000));
        let before = clock.wall_micros();
        clock.jump_wall(-1_000_000);
        assert_eq!((clock.wall_micros(), clock.nanos()), (before - 1_000_000, 2_000_000_000));
    }
}
