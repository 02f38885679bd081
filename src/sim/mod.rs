//! The simulation kit: whole groups of nodes on one thread, with virtual time, a network and disks that fail, and a
//! schedule drawn from a seed. The same seed gives the same run.
//!
//! ```
//! use quorate::sim::{Simulation, worker};
//! use quorate::worker::{Step, Stop};
//!
//! let sim = Simulation::new(7);
//! let node = sim.node("n1");
//! let mut left = 3;
//! let count = worker(move |_wait| {
//!     left -= 1;
//!     if left == 0 { Err(Stop::Done) } else { Ok(Step::Worked) }
//! });
//! let running = node.runtime().spawn("count".into(), count, Vec::new(), Box::new(|_| {}));
//! assert!(sim.run_until(|| running.ended().is_some(), std::time::Duration::from_secs(1)));
//! ```
//!
//! Workers see [`Wait::Now`](crate::clock::Wait::Now) in every step and must not block otherwise. A worker that did
//! something says [`Step::Worked`](crate::worker::Step::Worked): that is what wakes those who said `Idle`.

mod clock;
mod disk;
mod fault;
mod nemesis;
mod net;
mod node;
mod rng;
mod schedule;
mod simulation;
#[cfg(test)]
mod tests;
mod trace;

pub use clock::SimClock;
pub use disk::{DiskFaults, FaultDisk};
pub use fault::{Fault, FaultCounts};
pub use nemesis::{Act, Nemesis, NemesisPlan};
pub use net::{NetConfig, SimNet};
pub use node::{SimNode, worker};
pub use rng::Rng;
pub use simulation::{Pace, Simulation};

/// The seeds that a test runs: 0 and up, `default_count` of them, or as many as the environment variable
/// `QUORATE_SEEDS` says; or the one in `QUORATE_SEED` and no other.
///
/// A test that also asserts something of all seeds together, such as that every kind of fault fired, asks
/// [`replaying`] first.
///
/// # Panics
/// If a variable is set to something that is no number.
pub fn seeds(default_count: u64) -> impl Iterator<Item = u64> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        let Ok(number) = text.parse::<u64>() else { panic!("{name}={text:?} is no number") };
        Some(number)
    };
    match number("QUORATE_SEED") {
        Some(seed) => seed..seed.saturating_add(1),
        None => 0..number("QUORATE_SEEDS").unwrap_or(default_count),
    }
}

/// Whether the environment restricts the seeds, so that a total over them proves nothing.
pub fn replaying() -> bool {
    ["QUORATE_SEED", "QUORATE_SEEDS"].iter().any(|name| std::env::var_os(name).is_some())
}
