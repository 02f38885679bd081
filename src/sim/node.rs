//! One simulated machine, and what it offers to the code that runs on it.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::disk::FaultDisk;
use super::fault::{Fault, FaultCounts};
use super::schedule::{OnEnd, State, Task};
use super::simulation::Inner;
use crate::address::Address;
use crate::channel::{Channel, Listener};
use crate::clock::{Clock, Wait};
use crate::runtime::{DialError, Running, Runtime};
use crate::worker::{Step, Stop, Worker};

/// A machine of a simulation. A cheap handle.
#[derive(Clone)]
pub struct SimNode {
    inner: Arc<Inner>,
    data: Arc<NodeData>,
}

pub(super) struct NodeData {
    name: String,
    disk: Arc<FaultDisk>,
    /// Counts crashes: a runtime belongs to one life.
    life: AtomicU64,
    counts: Mutex<FaultCounts>,
}

impl NodeData {
    pub(super) fn new(name: &str, disk: FaultDisk) -> NodeData {
        NodeData {
            name: name.to_owned(),
            disk: Arc::new(disk),
            life: AtomicU64::new(0),
            counts: Mutex::new(FaultCounts::default()),
        }
    }

    pub(super) fn counts(&self) -> FaultCounts {
        let mut counts = self.disk.counts();
        counts.merge(&self.counts.lock());
        counts
    }
}

impl SimNode {
    pub(super) fn new(inner: Arc<Inner>, data: Arc<NodeData>) -> SimNode {
        SimNode { inner, data }
    }

    /// Its name, which partitions go by.
    pub fn name(&self) -> &str {
        &self.data.name
    }

    /// Its disk, which survives crashes.
    pub fn disk(&self) -> Arc<FaultDisk> {
        Arc::clone(&self.data.disk)
    }

    /// A runtime for the present life. After a crash this one is dead, and a new one starts the next life.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(SimRuntime {
            inner: Arc::clone(&self.inner),
            data: Arc::clone(&self.data),
            life: self.data.life.load(Ordering::Relaxed),
        })
    }

    /// The machine loses power: its workers are dropped, its connections end, its disk forgets. Handles that the test
    /// itself holds on that life are dead and should be dropped.
    pub fn crash(&self) {
        self.data.counts.lock().add(Fault::Crash);
        self.end_life(FaultDisk::lose_power);
    }

    /// The process is killed: like a crash, but what was written stays in the page cache.
    pub fn kill(&self) {
        self.data.counts.lock().add(Fault::Kill);
        self.end_life(FaultDisk::lose_process);
    }

    /// The process is stopped for so long, and then goes on as if nothing had happened: none of its workers is stepped
    /// meanwhile. What arrives waits for it.
    pub fn pause(&self, time: Duration) {
        self.data.counts.lock().add(Fault::Pause);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let until = self.inner.clock.nanos().saturating_add(nanos);
        let mut schedule = self.inner.schedule.lock();
        for task in schedule.tasks.iter_mut().filter(|task| task.node == self.data.name) {
            task.stalled = task.stalled.max(until);
        }
    }

    fn end_life(&self, lose: impl Fn(&FaultDisk)) {
        self.data.life.fetch_add(1, Ordering::Relaxed);
        lose(&self.data.disk);
        self.data.disk.set_powered(false);
        self.inner.net.crash(&self.data.name);
        let dead = self.inner.schedule.lock().take(|task| task.node == self.data.name);
        drop(dead);
        self.data.disk.set_powered(true);
    }
}

struct SimRuntime {
    inner: Arc<Inner>,
    data: Arc<NodeData>,
    life: u64,
}

impl SimRuntime {
    fn is_dead(&self) -> bool {
        self.data.life.load(Ordering::Relaxed) != self.life
    }
}

impl Runtime for SimRuntime {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.inner.clock) as Arc<dyn Clock>
    }

    fn random(&self) -> u64 {
        self.inner.random.lock().next_u64()
    }

    fn spawn(
        &self,
        name: String,
        worker: Box<dyn Worker>,
        channels: Vec<Arc<dyn Channel>>,
        on_end: OnEnd,
    ) -> Arc<dyn Running> {
        let ended = Arc::new(Mutex::new(self.is_dead().then_some(Stop::Done)));
        let mut schedule = self.inner.schedule.lock();
        let running = SimRunning {
            inner: Arc::downgrade(&self.inner),
            id: schedule.next_id(),
            channels: channels.clone(),
            ended: Arc::clone(&ended),
        };
        if !self.is_dead() {
            let label = format!("{}/{name}", self.data.name);
            let task = Task {
                id: running.id,
                node: self.data.name.clone(),
                label: u64::from(crc32fast::hash(label.as_bytes())),
                name,
                worker: Some(worker),
                on_end: Some(on_end),
                _channels: channels,
                ended,
                state: State::Ready,
                stalled: 0,
                doomed: false,
            };
            schedule.tasks.push(task);
        }
        Arc::new(running)
    }

    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>> {
        if self.is_dead() {
            return Err(io::ErrorKind::NetworkDown.into());
        }
        self.inner.net.listen(&self.data.name, at)
    }

    fn dial(&self, to: &Address, _wait: Wait) -> Result<Option<Arc<dyn Channel>>, DialError> {
        if self.is_dead() {
            return Err(DialError { to: to.clone(), kind: io::ErrorKind::NetworkDown });
        }
        self.inner.net.dial(&self.data.name, to)
    }
}

struct SimRunning {
    inner: Weak<Inner>,
    id: u64,
    channels: Vec<Arc<dyn Channel>>,
    ended: Arc<Mutex<Option<Stop>>>,
}

impl Running for SimRunning {
    fn stop(&self) {
        self.channels.iter().for_each(|channel| channel.close());
        if let Some(inner) = self.inner.upgrade() {
            let dropped = inner.schedule.lock().take(|task| task.id == self.id);
            drop(dropped);
        }
    }

    fn join(&self) {
        self.stop();
    }

    fn ended(&self) -> Option<Stop> {
        self.ended.lock().clone()
    }

    fn poke(&self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let mut schedule = inner.schedule.lock();
        if let Some(at) = schedule.find(self.id) {
            schedule.tasks[at].state = State::Ready;
        }
    }
}

/// A worker from a closure: for clients, checkers and other actors of a test.
pub fn worker(step: impl FnMut(Wait) -> Result<Step, Stop> + Send + 'static) -> Box<dyn Worker> {
    struct Closure<F>(F);
    impl<F: FnMut(Wait) -> Result<Step, Stop> + Send> Worker for Closure<F> {
        fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
            (self.0)(wait)
        }
    }
    Box::new(Closure(step))
}
