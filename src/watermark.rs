//! A monotonic position that threads wait on: the only way in which the engine's threads wait for one another.

use std::fmt;

use crate::clock::Wait;
use crate::planted::{Bug, active};
use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, Ordering, Thread, current, park, park_timeout};

/// The means by which a thread is woken: one for each thread, made when it first waits.
///
/// Whoever holds a thread's parker may [`poke`](Parker::poke) it out of its wait on any watermark.
pub struct Parker {
    thread: Thread,
    poked: AtomicBool,
    /// Whether the thread is in a watermark's list. Changed under that list's lock; a thread is in one list at a time.
    listed: AtomicBool,
}

crate::sync::thread_local! {
    static PARKER: Arc<Parker> = Arc::new(Parker {
        thread: current(),
        poked: AtomicBool::new(false),
        listed: AtomicBool::new(false),
    });
}

impl Parker {
    /// The calling thread's parker.
    pub fn current() -> Arc<Parker> {
        PARKER.with(Arc::clone)
    }

    /// Ends the thread's wait, or its next one if it does not wait now: that call returns `Ok(false)`.
    /// Never blocks; may be called from any thread.
    pub fn poke(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }

    fn take_poke(&self) -> bool {
        self.poked.load(Ordering::SeqCst) && self.poked.swap(false, Ordering::SeqCst)
    }
}

/// Blocks the calling thread until `wait` ends or the thread is poked.
pub fn rest(wait: Wait) {
    let parker = Parker::current();
    while !parker.take_poke() {
        match wait.remaining() {
            Some(left) if left.is_zero() => return,
            Some(left) => park_timeout(left),
            None => park(),
        }
    }
}

/// Waiters taken off a list under one lock, and then woken without it.
const WOKEN_AT_ONCE: usize = 16;

/// The watermark was closed: the position will not advance any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the position that was waited for belongs to a life that ended")]
pub struct Closed;

/// A position that only rises, and the threads that wait until it has reached their target.
///
/// Advancing is one atomic operation and a load unless somebody waits for a position that was reached; then exactly
/// those waiters are woken. The position and the waiters order themselves by the usual store-then-load on both sides:
/// `advance` stores the value and then reads `lowest`; `wait` stores `lowest` and then reads the value. One of the two
/// sees the other, so no wake-up is lost (modelled in tests/model.rs).
pub struct Watermark {
    value: AtomicU64,
    /// The lowest target that anybody waits for; `u64::MAX` if nobody does. Written under `waiters`.
    lowest: AtomicU64,
    closed: AtomicBool,
    /// In order of their targets, lowest last, so that those reached are taken off the end.
    waiters: Mutex<Vec<Waiter>>,
}

struct Waiter {
    target: u64,
    parker: Arc<Parker>,
}

impl Watermark {
    /// A watermark that stands at `value`.
    pub fn new(value: u64) -> Watermark {
        Watermark {
            value: AtomicU64::new(value),
            lowest: AtomicU64::new(u64::MAX),
            closed: AtomicBool::new(false),
            waiters: Mutex::new(Vec::new()),
        }
    }

    /// The position. What was written before it was advanced is visible to the caller.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Acquire)
    }

    /// Raises the position to `to`, if it is lower, and wakes those who waited for that. Never blocks for long: it
    /// takes the list's lock only if somebody is to be woken.
    pub fn advance(&self, to: u64) {
        if active(Bug::WakeUpLost) {
            return self.advance_after_looking(to);
        }
        self.value.fetch_max(to, Ordering::SeqCst);
        if self.lowest.load(Ordering::SeqCst) <= to {
            self.wake_reached();
        }
    }

    /// What [`advance`](Self::advance) does under [`Bug::WakeUpLost`]: it looks for waiters before the value is there, so
    /// that one who comes between the two is seen by nobody.
    fn advance_after_looking(&self, to: u64) {
        let awaited = self.lowest.load(Ordering::SeqCst) <= to;
        self.value.fetch_max(to, Ordering::SeqCst);
        if awaited {
            self.wake_reached();
        }
    }

    /// Waits until the position is `target` or higher.
    ///
    /// Returns `false` if `wait` ended first, or if the thread was poked: the caller then looks again at why it waits.
    /// A wake-up for another reason is not seen by the caller.
    ///
    /// # Errors
    /// [`Closed`], if the watermark was closed before the target was reached.
    pub fn wait(&self, target: u64, wait: Wait) -> Result<bool, Closed> {
        if self.get() >= target {
            return Ok(true);
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(Closed);
        }
        if wait == Wait::Now {
            return Ok(false);
        }
        let parker = Parker::current();
        self.enlist(target, &parker);
        let outcome = loop {
            if self.value.load(Ordering::SeqCst) >= target {
                break Ok(true);
            }
            if self.closed.load(Ordering::SeqCst) {
                break Err(Closed);
            }
            if parker.take_poke() {
                break Ok(false);
            }
            match wait.remaining() {
                Some(left) if left.is_zero() => break Ok(false),
                Some(left) => park_timeout(left),
                None => park(),
            }
        };
        self.delist(&parker);
        outcome
    }

    /// Whether anybody waits now. A hint: it may have changed when the caller acts on it.
    pub fn is_awaited(&self) -> bool {
        self.lowest.load(Ordering::SeqCst) != u64::MAX
    }

    /// Closes the watermark: whoever waits, or will wait, for a position above the present one gets [`Closed`].
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let mut waiters = self.waiters.lock();
        for waiter in waiters.drain(..) {
            waiter.parker.listed.store(false, Ordering::SeqCst);
            waiter.parker.thread.unpark();
        }
        self.lowest.store(u64::MAX, Ordering::SeqCst);
    }

    fn enlist(&self, target: u64, parker: &Arc<Parker>) {
        let mut waiters = self.waiters.lock();
        let at = waiters.partition_point(|waiter| waiter.target > target);
        parker.listed.store(true, Ordering::SeqCst);
        waiters.insert(at, Waiter { target, parker: Arc::clone(parker) });
        self.note_lowest(&waiters);
    }

    fn delist(&self, parker: &Arc<Parker>) {
        // Whoever woke us has taken us off: many woken at once need not queue for the lock again.
        if !parker.listed.load(Ordering::SeqCst) {
            return;
        }
        let mut waiters = self.waiters.lock();
        if let Some(at) = waiters.iter().position(|waiter| Arc::ptr_eq(&waiter.parker, parker)) {
            waiters.remove(at);
            self.note_lowest(&waiters);
        }
        parker.listed.store(false, Ordering::SeqCst);
    }

    fn wake_reached(&self) {
        loop {
            let mut woken = [const { None }; WOKEN_AT_ONCE];
            let more = {
                let mut waiters = self.waiters.lock();
                let value = self.value.load(Ordering::SeqCst);
                let reached =
                    |waiters: &[Waiter]| waiters.last().is_some_and(|waiter| waiter.target <= value);
                for place in &mut woken {
                    if !reached(&waiters) {
                        break;
                    }
                    *place = waiters.pop();
                    if let Some(waiter) = place {
                        waiter.parker.listed.store(false, Ordering::SeqCst);
                    }
                }
                self.note_lowest(&waiters);
                reached(&waiters)
            };
            // Without the lock: who wakes up may wait again at once.
            for waiter in woken.into_iter().flatten() {
                waiter.parker.thread.unpark();
            }
            if !more {
                return;
            }
        }
    }

    fn note_lowest(&self, waiters: &[Waiter]) {
        self.lowest.store(waiters.last().map_or(u64::MAX, |waiter| waiter.target), Ordering::SeqCst);
    }
}

impl fmt::Debug for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watermark({})", self.get())
    }
}
