//! The unit of activity: every loop in the engine is a [`Worker`], so that threads and the simulator run the same code.

use std::sync::Arc;

use crate::clock::{Deadline, Wait};

/// What a step found to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Something was done; there may be more.
    Worked,
    /// Nothing was ready. The worker wants another step at `due`, or as soon as something arrives.
    Idle {
        /// When the worker has something to do of its own accord; [`Deadline::NEVER`] if it only waits for others.
        due: Deadline,
    },
}

/// Why a worker ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stop {
    /// Its work is over: a channel closed, a life ended, the node closes.
    #[error("the worker's task is over")]
    Done,
    /// It can't go on, and neither can the node's part in the group: a failed sync, a broken invariant on disk, an
    /// engine that refuses an entry. Whoever spawned the worker poisons the node.
    #[error("the node can't go on: {0}")]
    Failed(Arc<dyn std::error::Error + Send + Sync>),
}

impl Stop {
    /// A failure for this reason.
    pub fn failed(why: impl std::error::Error + Send + Sync + 'static) -> Stop {
        Stop::Failed(Arc::new(why))
    }
}

/// A loop of the engine, cut into steps.
///
/// A thread calls `step(Wait::Forever)` until it returns an error; the simulator calls `step(Wait::Now)` in an order
/// drawn from a seed. A worker blocks in one place at a time: in a receive on one of its channels, in a wait on a
/// watermark, or in a rest. That makes it stoppable: closing its channels and poking its thread gets it out of each.
pub trait Worker: Send {
    /// Does what is ready; blocks no longer than `wait` and the worker's own next deadline.
    ///
    /// # Errors
    /// [`Stop`], when the worker has ended. It is not stepped again.
    fn step(&mut self, wait: Wait) -> Result<Step, Stop>;
}
