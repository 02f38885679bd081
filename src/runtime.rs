//! What a node needs of its surroundings: time, chance, threads and connections. Threads in production, a seeded run
//! queue in simulation.

use std::any::Any;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, ThreadId};

use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::address::Address;
use crate::channel::{Channel, Listener, local, tcp, unix};
use crate::clock::{Clock, SystemClock, Wait};
use crate::watermark::Parker;
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
    /// Stops the worker and waits for its end. In simulation the worker is dropped. Called on the worker's own thread,
    /// it stops the worker and returns at once.
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
    /// caught and ends it with [`Stop::Failed`]. When the worker ends by itself, or fails though it was stopped, `on_end`
    /// is called with the reason, on the worker's thread, after the worker was dropped; if no thread could be made, on
    /// the calling thread.
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

/// A worker panicked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the worker {worker} panicked: {message}")]
pub struct WorkerPanicked {
    /// The worker's name.
    pub worker: String,
    /// What it said.
    pub message: String,
}

/// No thread could be made for a worker.
#[derive(Clone, Debug, thiserror::Error)]
#[error("can't make a thread for the worker {worker}: {kind}")]
pub struct NoThread {
    /// The worker's name.
    pub worker: String,
    /// The system's error.
    pub kind: io::ErrorKind,
}

/// The surroundings of a node in production: the machine's clocks, a thread for each worker, and its sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadRuntime;

/// What a worker's thread and the handles on it share.
struct Shared {
    name: String,
    stopped: AtomicBool,
    /// Set by the thread when it starts.
    parker: Mutex<Option<Arc<Parker>>>,
    channels: Vec<Arc<dyn Channel>>,
    ended: Mutex<Option<Stop>>,
}

impl Shared {
    fn poke(&self) {
        if let Some(parker) = &*self.parker.lock() {
            parker.poke();
        }
    }

    /// The thread's loop.
    fn run(&self, worker: &mut dyn Worker) -> Stop {
        *self.parker.lock() = Some(Parker::current());
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return Stop::Done;
            }
            if let Err(stop) = worker.step(Wait::Forever) {
                return stop;
            }
        }
    }

    fn body(&self, mut worker: Box<dyn Worker>, on_end: Box<dyn FnOnce(&Stop) + Send>) {
        let stop = catch_unwind(AssertUnwindSafe(|| self.run(&mut *worker)));
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(worker)));
        let stop = match stop.and_then(|stop| dropped.map(|()| stop)) {
            Ok(stop) => stop,
            Err(panic) => {
                let message = text_of(&*panic);
                log::error!("the worker {} panicked: {message}", self.name);
                Stop::failed(WorkerPanicked { worker: self.name.clone(), message })
            }
        };
        self.end(stop, on_end);
    }

    fn end(&self, stop: Stop, on_end: Box<dyn FnOnce(&Stop) + Send>) {
        *self.ended.lock() = Some(stop.clone());
        let asked = self.stopped.load(Ordering::SeqCst);
        if (!asked || matches!(stop, Stop::Failed(_)))
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| on_end(&stop)))
        {
            log::error!("what follows the end of {} panicked: {}", self.name, text_of(&*panic));
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}

struct WorkerThread {
    shared: Arc<Shared>,
    thread: Option<ThreadId>,
    /// Held by whoever joins, so that others who join wait as well.
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Running for WorkerThread {
    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for channel in &self.shared.channels {
            channel.close();
        }
        self.shared.poke();
    }

    fn join(&self) {
        self.stop();
        if self.thread == Some(thread::current().id()) {
            return;
        }
        if let Some(handle) = self.handle.lock().take()
            && handle.join().is_err()
        {
            log::error!("the thread of {} panicked outside its worker", self.shared.name);
        }
    }

    fn ended(&self) -> Option<Stop> {
        self.shared.ended.lock().clone()
    }

    fn poke(&self) {
        self.shared.poke();
    }
}

impl Runtime for ThreadRuntime {
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        match getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(8) => u64::from_ne_bytes(bytes),
            // The standard library's hash keys are random too.
            _ => RandomState::new().hash_one(bytes),
        }
    }

    fn spawn(
        &self,
        name: String,
        worker: Box<dyn Worker>,
        channels: Vec<Arc<dyn Channel>>,
        on_end: Box<dyn FnOnce(&Stop) + Send>,
    ) -> Arc<dyn Running> {
        let shared = Arc::new(Shared {
            name,
            stopped: AtomicBool::new(false),
            parker: Mutex::new(None),
            channels,
            ended: Mutex::new(None),
        });
        // The pieces travel in a slot, so that they are still here if there is no thread.
        let slot = Arc::new(Mutex::new(Some((worker, on_end))));
        let (inner, given) = (Arc::clone(&shared), Arc::clone(&slot));
        // The system cuts thread names to 15 bytes and refuses none but those with a zero byte.
        let builder = thread::Builder::new().name(shared.name.replace('\0', "?"));
        let spawned = builder.spawn(move || {
            let taken = given.lock().take();
            if let Some((worker, on_end)) = taken {
                inner.body(worker, on_end);
            }
        });
        let handle = match spawned {
            Ok(handle) => Some(handle),
            Err(error) => {
                let taken = slot.lock().take();
                if let Some((worker, on_end)) = taken {
                    drop(worker);
                    let worker = shared.name.clone();
                    shared.end(Stop::failed(NoThread { worker, kind: error.kind() }), on_end);
                }
                None
            }
        };
        let thread = handle.as_ref().map(|handle| handle.thread().id());
        Arc::new(WorkerThread { shared, thread, handle: Mutex::new(handle) })
    }

    fn listen(&self, at: &Address) -> io::Result<Box<dyn Listener>> {
        match at {
            Address::Tcp(host_port) => tcp::listen(host_port),
            Address::Unix(path) => unix::listen(path),
            Address::Local(name) => local::listen(name),
        }
    }

    fn dial(&self, to: &Address, wait: Wait) -> Result<Option<Arc<dyn Channel>>, DialError> {
        let dialled = match to {
            Address::Tcp(host_port) => tcp::dial(host_port, wait),
            Address::Unix(path) => unix::dial(path, wait),
            Address::Local(name) => local::dial(name).map(Some),
        };
        dialled.map_err(|error| DialError { to: to.clone(), kind: error.kind() })
    }
}
