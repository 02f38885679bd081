//! What a node needs of its surroundings: time, chance, threads and connections. Threads in production, a seeded run
//! queue in simulation.

use std::io;
use std::sync::Arc;

use crate::address::Address;
use crate::channel::{Channel, Listener};
use crate::clock::{Clock, Wait};
use crate::worker::{Stop, Worker};

/// Why no connection could be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("can't connect to {to}: {kind}")]
pub struct DialError {
    /// Whom.
    pub to: Address,
    /// The system's error.
    pub kind: io::ErrorKind,
}

/// A handle on a spawned worker.
pub trait Running: Send + Sync {
    /// Asks the worker to end: closes its channels and pokes its thread out of any wait. Returns at once.
    fn stop(&self);
    /// Stops the worker and waits for its end. In simulation the worker is dropped.
    fn join(&self);
    /// Why it ended; `None` while it runs.
    fn ended(&self) -> Option<Stop>;
    /// Wakes the worker's thread out of its wait, so that it looks around. In simulation: marks it ready.
    fn poke(&self);
}

/// The surroundings of a node.
pub trait Runtime: Send + Sync {
    /// The clock.
    fn clock(&self) -> Arc<dyn Clock>;
    /// A random number, for jitter and identities.
    fn random(&self) -> u64;
    /// Runs a worker under this name until it ends or is stopped. Stopping closes `channels`. A panic in the worker is
    /// caught and ends it with [`Stop::Failed`]. When the worker ends by itself, `on_end` is called with the reason,
    /// on the worker's thread.
    fn spawn(
        &self,
        name: String,
        worker: Box<dyn Worker>,
        channels: Vec<Arc<dyn Channel>>,
        on_end: Box<dyn FnOnce(&Stop) + Send>,
    ) -> Arc<dyn Running>;
    /// Listens at an address.
    ///
    /// # Errors
    /// The system's error.
    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>>;
    /// Connects. `None`: `wait` ended first.
    ///
    /// # Errors
    /// [`DialError`].
    fn dial(&self, to: &Address, wait: Wait) -> Result<Option<Arc<dyn Channel>>, DialError>;
}
