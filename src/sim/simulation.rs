//! The loop that steps workers and moves time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::clock::SimClock;
use super::disk::FaultDisk;
use super::fault::{Fault, FaultCounts};
use super::net::SimNet;
use super::node::{NodeData, SimNode};
use super::rng::Rng;
use super::schedule::{Schedule, State};
use super::trace::Trace;
use crate::clock::{Clock, Wait};
use crate::worker::Step;

/// How fast the simulated machines are.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The longest time that a step takes; each takes an arbitrary part of it.
    pub step: Duration,
    /// How likely a worker is, after a step, not to be scheduled for a while.
    pub stall: f64,
    /// The longest stall.
    pub max_stall: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { step: Duration::from_micros(5), stall: 0.002, max_stall: Duration::from_millis(20) }
    }
}

/// A group of machines on one thread. The seed determines the schedule, the faults and all random numbers.
///
/// A test that panics while it holds a simulation prints the seed, so that `QUORATE_SEED` replays it.
pub struct Simulation {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    seed: u64,
    pub(super) clock: Arc<SimClock>,
    pub(super) net: Arc<SimNet>,
    trace: Arc<Trace>,
    pace: Mutex<Pace>,
    verbose: bool,
    /// For numbers that the workers and the test ask for.
    pub(super) random: Mutex<Rng>,
    nodes: Mutex<BTreeMap<String, Arc<NodeData>>>,
    /// Never locked while a worker is stepped or dropped.
    pub(super) schedule: Mutex<Schedule>,
}

impl Simulation {
    /// A simulation without nodes. With the environment variable `QUORATE_TRACE` set, every step is printed.
    pub fn new(seed: u64) -> Simulation {
        let mut rng = Rng::new(seed);
        let (clock, trace) = (Arc::new(SimClock::new()), Arc::new(Trace::new(seed)));
        let net = SimNet::new(Arc::clone(&clock), Arc::clone(&trace), rng.fork());
        let inner = Inner {
            seed,
            clock,
            net,
            trace,
            pace: Mutex::new(Pace::default()),
            verbose: std::env::var_os("QUORATE_TRACE").is_some(),
            random: Mutex::new(rng.fork()),
            nodes: Mutex::new(BTreeMap::new()),
            schedule: Mutex::new(Schedule::new(rng.fork())),
        };
        Simulation { inner: Arc::new(inner) }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// The node of this name, made with an empty disk when first asked for.
    pub fn node(&self, name: &str) -> SimNode {
        let mut nodes = self.inner.nodes.lock();
        let make = || Arc::new(NodeData::new(name, FaultDisk::new(self.inner.random.lock().fork())));
        let data = Arc::clone(nodes.entry(name.to_owned()).or_insert_with(make));
        SimNode::new(Arc::clone(&self.inner), data)
    }

    /// The network.
    pub fn net(&self) -> &SimNet {
        &self.inner.net
    }

    /// The clock that all nodes share.
    pub fn clock(&self) -> Arc<SimClock> {
        Arc::clone(&self.inner.clock)
    }

    /// A random number from the seed.
    pub fn random(&self) -> u64 {
        self.inner.random.lock().next_u64()
    }

    /// A generator from the seed, for a test's own choices.
    pub fn rng(&self) -> Rng {
        self.inner.random.lock().fork()
    }

    /// Sets how fast the machines are from now on.
    pub fn set_pace(&self, pace: Pace) {
        *self.inner.pace.lock() = pace;
    }

    /// Steps workers until `condition` holds, which is asked before every step, and says whether it does; gives up when
    /// `limit` of virtual time has passed or when nothing will happen any more.
    pub fn run_until(&self, mut condition: impl FnMut() -> bool, limit: Duration) -> bool {
        let end = (self.inner.clock.now() + limit).as_nanos();
        self.inner.look_again();
        loop {
            if condition() {
                return true;
            }
            if !self.inner.step(end) {
                return condition();
            }
        }
    }

    /// Steps workers for so much virtual time, which passes also if nothing happens.
    pub fn run_for(&self, time: Duration) {
        let end = (self.inner.clock.now() + time).as_nanos();
        self.inner.look_again();
        while self.inner.step(end) {}
        self.inner.clock.set(end);
    }

    /// Makes so many steps, or fewer if nothing is left that could happen. Says how many.
    pub fn run_steps(&self, steps: u64) -> u64 {
        self.inner.look_again();
        (0..steps).take_while(|_| self.inner.step(u64::MAX - 1)).count() as u64
    }

    /// Steps made so far.
    pub fn steps(&self) -> u64 {
        self.inner.schedule.lock().steps
    }

    /// The names of all workers, as `node/worker`.
    pub fn workers(&self) -> Vec<String> {
        let schedule = self.inner.schedule.lock();
        schedule.tasks.iter().map(|task| format!("{}/{}", task.node, task.name)).collect()
    }

    /// A fingerprint of all that happened so far: the same for the same seed.
    pub fn trace_hash(&self) -> u64 {
        self.inner.trace.hash()
    }

    /// How often each fault fired, on the network, on all disks and in the schedule.
    pub fn faults(&self) -> FaultCounts {
        let mut counts = self.inner.net.counts();
        for node in self.inner.nodes.lock().values() {
            counts.merge(&node.counts());
        }
        counts.add_times(Fault::Stall, self.inner.schedule.lock().stalls);
        counts
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        let tasks = {
            let mut schedule = self.inner.schedule.lock();
            if std::thread::panicking() {
                let (now, steps, last, seed) =
                    (self.inner.clock.now(), schedule.steps, &schedule.last, self.inner.seed);
                let text = format!("simulation failed at {now} after {steps} steps, the last of {last}");
                eprintln!("{text}; replay with QUORATE_SEED={seed}"); // tidy: part of a failing test's output
            }
            std::mem::take(&mut schedule.tasks)
        };
        for name in self.inner.nodes.lock().keys() {
            self.inner.net.crash(name);
        }
        if std::thread::panicking() {
            // A second panic, in the drop of a worker, would hide the first.
            std::mem::forget(tasks);
        }
    }
}

impl Inner {
    /// The test may have done anything between two runs.
    fn look_again(&self) {
        self.schedule.lock().happened += 1;
    }

    /// Makes one step, at a time not after `end`. `false`: nothing happens up to then.
    fn step(&self, end: u64) -> bool {
        let Some((id, mut worker, was_due)) = self.choose(end) else { return false };
        let result = worker.step(Wait::Now);
        let pace = self.pace.lock().clone();
        let mut schedule = self.schedule.lock();
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let now = self.clock.nanos() + schedule.rng.below(nanos(pace.step)) + 1;
        self.clock.set(now);
        let Some(at) = schedule.find(id) else { return true };
        let (code, due) = match &result {
            Ok(Step::Worked) => (1, 0),
            Ok(Step::Idle { due }) => (2, due.as_nanos()),
            Err(_) => (3, 0),
        };
        let label = schedule.tasks[at].label;
        self.trace.note(&[label, code, due, now]);
        if self.verbose {
            let task = &schedule.tasks[at];
            eprintln!("{now:>14} {}/{}: {result:?}", task.node, task.name); // tidy: only if QUORATE_TRACE asks for it
        }
        if schedule.tasks[at].doomed || result.is_err() {
            let mut task = schedule.tasks.remove(at);
            schedule.happened += 1;
            drop(schedule);
            drop(worker);
            if let (false, Err(stop)) = (task.doomed, result) {
                *task.ended.lock() = Some(stop.clone());
                if let Some(on_end) = task.on_end.take() {
                    on_end(&stop);
                }
            }
            return true;
        }
        if was_due || code == 1 {
            schedule.happened += 1;
        }
        let since = schedule.happened;
        let stalls = code == 1 && schedule.rng.chance(pace.stall);
        let task = &mut schedule.tasks[at];
        task.worker = Some(worker);
        // A poke during the step has left it ready.
        task.state = match (code, task.state) {
            (2, State::Idle { .. }) => State::Idle { due, since },
            _ => State::Ready,
        };
        if stalls {
            let stall = schedule.rng.below(nanos(pace.max_stall));
            schedule.tasks[at].stalled = now + stall;
            schedule.stalls += 1;
        }
        true
    }

    /// Picks a worker and moves time to where it has something to do.
    fn choose(&self, end: u64) -> Option<(u64, Box<dyn crate::worker::Worker>, bool)> {
        let mut schedule = self.schedule.lock();
        loop {
            let now = self.clock.nanos();
            if now > end {
                return None;
            }
            let arrival = self.net.next_due(now);
            if arrival <= now {
                schedule.happened += 1;
            }
            let Some(at) = schedule.pick(now) else {
                let next = if arrival <= now { now } else { arrival.min(schedule.next_due(now)) };
                if next == u64::MAX {
                    return None;
                }
                if next > end {
                    self.clock.set(end);
                    return None;
                }
                self.clock.set(next.max(now + 1));
                continue;
            };
            schedule.steps += 1;
            let task = &mut schedule.tasks[at];
            let was_due = matches!(task.state, State::Idle { due, .. } if due <= now);
            task.state = State::Idle { due: u64::MAX, since: 0 };
            let (id, worker) = (task.id, task.worker.take()?);
            let last = format!("{}/{}", task.node, task.name);
            schedule.last = last;
            return Some((id, worker, was_due));
        }
    }
}
