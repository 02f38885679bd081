//! Which worker is stepped next.

use std::sync::Arc;

use parking_lot::Mutex;

use super::rng::Rng;
use crate::channel::Channel;
use crate::worker::{Stop, Worker};

/// What is done when a worker ends by itself.
pub(super) type OnEnd = Box<dyn FnOnce(&Stop) + Send>;

/// One spawned worker.
pub(super) struct Task {
    pub(super) id: u64,
    pub(super) node: String,
    pub(super) name: String,
    /// The name as a number, for the trace.
    pub(super) label: u64,
    /// `None` while it is stepped.
    pub(super) worker: Option<Box<dyn Worker>>,
    pub(super) on_end: Option<OnEnd>,
    /// Kept until the task is gone, so that a channel does not close because nobody else holds it.
    pub(super) _channels: Vec<Arc<dyn Channel>>,
    pub(super) ended: Arc<Mutex<Option<Stop>>>,
    pub(super) state: State,
    /// Not stepped before this time, whatever it has to do.
    pub(super) stalled: u64,
    /// To be dropped when its step is over.
    pub(super) doomed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// Waits until `due`, or until something has happened since the count of happenings stood at `since`.
    Idle {
        due: u64,
        since: u64,
    },
}

/// All workers of a simulation.
pub(super) struct Schedule {
    pub(super) rng: Rng,
    pub(super) tasks: Vec<Task>,
    next_id: u64,
    /// How many things have happened that may concern an idle worker.
    pub(super) happened: u64,
    pub(super) steps: u64,
    pub(super) stalls: u64,
    pub(super) last: String,
}

impl Schedule {
    pub(super) fn new(rng: Rng) -> Schedule {
        Schedule { rng, tasks: Vec::new(), next_id: 1, happened: 0, steps: 0, stalls: 0, last: String::new() }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn is_runnable(&self, task: &Task, now: u64) -> bool {
        task.worker.is_some()
            && task.stalled <= now
            && match task.state {
                State::Ready => true,
                State::Idle { due, since } => due <= now || since < self.happened,
            }
    }

    /// A random one of those that have something to do.
    pub(super) fn pick(&mut self, now: u64) -> Option<usize> {
        let runnable = |task: &&Task| self.is_runnable(task, now);
        let count = self.tasks.iter().filter(runnable).count();
        if count == 0 {
            return None;
        }
        let nth = self.rng.index(count);
        (0..self.tasks.len()).filter(|&at| self.is_runnable(&self.tasks[at], now)).nth(nth)
    }

    /// When the next worker has something to do by itself; for when none has now.
    pub(super) fn next_due(&self, now: u64) -> u64 {
        let due = |task: &Task| match task.state {
            _ if task.worker.is_none() => u64::MAX,
            State::Idle { due, since } if since >= self.happened => due.max(task.stalled),
            _ => task.stalled.max(now),
        };
        self.tasks.iter().map(due).min().unwrap_or(u64::MAX)
    }

    pub(super) fn find(&self, id: u64) -> Option<usize> {
        self.tasks.iter().position(|task| task.id == id)
    }

    /// Takes those that `chosen` picks off the schedule, to be dropped by the caller without the schedule's lock. One
    /// that is being stepped is dropped after its step.
    pub(super) fn take(&mut self, chosen: impl Fn(&Task) -> bool) -> Vec<Task> {
        let mut taken = Vec::new();
        let mut at = 0;
        while at < self.tasks.len() {
            if !chosen(&self.tasks[at]) {
                at += 1;
                continue;
            }
            self.tasks[at].ended.lock().get_or_insert(Stop::Done);
            if self.tasks[at].worker.is_some() {
                taken.push(self.tasks.remove(at));
            } else {
                self.tasks[at].doomed = true;
                at += 1;
            }
        }
        self.happened += 1;
        taken
    }
}
