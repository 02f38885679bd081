//! Models of the waiting code: src/watermark.rs, compiled against shuttle's primitives, under thousands of schedules.
//! A wake-up that is lost shows as a deadlock, which shuttle reports with the schedule.
//!
//! Shuttle's atomics are sequentially consistent, so these models say nothing of weaker orderings.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::mpsc;
use shuttle::thread;
use shuttle::{Config, Runner};

use self::clock::{Deadline, Wait};
use self::planted::Bug;
use self::sync::Arc;
use self::watermark::{Closed, Parker, Watermark, rest};

#[allow(dead_code, reason = "the models do not use all of it")]
#[path = "../src/watermark.rs"]
mod watermark;

/// What src/sync.rs is in the library.
mod sync {
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub use shuttle::sync::{Arc, MutexGuard};
    pub use shuttle::thread::{Thread, current, park};
    pub use shuttle::thread_local;

    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }

    /// Returns at any time: the wait's own clock says whether it is over.
    pub fn park_timeout(_left: std::time::Duration) {
        shuttle::thread::yield_now();
    }
}

/// A clock for which any deadline may have passed at any time.
mod clock {
    use std::time::Duration;

    use shuttle::rand::Rng;

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub struct Deadline;

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Wait {
        Now,
        Until(Deadline),
        Forever,
    }

    impl Wait {
        pub fn remaining(self) -> Option<Duration> {
            match self {
                Wait::Now => Some(Duration::ZERO),
                Wait::Until(Deadline) if shuttle::rand::thread_rng().gen_bool(0.3) => Some(Duration::ZERO),
                Wait::Until(Deadline) => Some(Duration::from_secs(1)),
                Wait::Forever => None,
            }
        }
    }
}

/// What src/planted.rs is in the library. All threads of a model run on the real thread that runs the model.
mod planted {
    use std::cell::Cell;

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Bug {
        WakeUpLost,
    }

    std::thread_local! {
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub fn active(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }

    pub fn plant(bug: Option<Bug>) {
        ACTIVE.set(bug);
    }
}

/// Runs a model under random schedules, and under such as change between threads at few, unlucky points.
fn model(run: fn()) {
    let config = || {
        let mut config = Config::new();
        config.silence_warnings = true;
        config
    };
    Runner::new(RandomScheduler::new_from_seed(1, 2_000), config()).run(run);
    Runner::new(PctScheduler::new_from_seed(2, 3, 2_000), config()).run(run);
}

fn spawn_waiter(mark: &Arc<Watermark>, target: u64, wait: Wait) -> thread::JoinHandle<Result<bool, Closed>> {
    let mark = Arc::clone(mark);
    thread::spawn(move || {
        let outcome = mark.wait(target, wait);
        if outcome == Ok(true) {
            assert!(mark.get() >= target, "woken too early");
        }
        outcome
    })
}

fn advance_beside_a_wait() {
    let mark = Arc::new(Watermark::new(0));
    let waiter = spawn_waiter(&mark, 1, Wait::Forever);
    mark.advance(1);
    assert_eq!(waiter.join().unwrap(), Ok(true));
    assert!(!mark.is_awaited());
}

#[test]
fn no_wake_up_is_lost() {
    model(advance_beside_a_wait);
}

#[test]
fn the_model_finds_the_planted_lost_wake_up() {
    planted::plant(Some(Bug::WakeUpLost));
    let found = catch_unwind(AssertUnwindSafe(|| model(advance_beside_a_wait)));
    planted::plant(None);
    let why = found.expect_err("the planted bug was not found");
    let why = why.downcast_ref::<String>().expect("shuttle reports by a text");
    assert!(why.contains("deadlock"), "{why}");
}

#[test]
fn each_of_several_waiters_is_woken_when_its_target_is_reached() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let waiters = [3, 1, 2, 1].map(|target| spawn_waiter(&mark, target, Wait::Forever));
        let other = Arc::clone(&mark);
        let advancer = thread::spawn(move || {
            other.advance(1);
            other.advance(3);
        });
        mark.advance(2);
        advancer.join().unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), Ok(true));
        }
        assert!(!mark.is_awaited());
    });
}

#[test]
fn a_target_that_is_not_reached_is_not_reported() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let (low, high) = (spawn_waiter(&mark, 1, Wait::Forever), spawn_waiter(&mark, 9, Wait::Forever));
        mark.advance(1);
        assert_eq!(low.join().unwrap(), Ok(true));
        mark.close();
        assert_eq!(high.join().unwrap(), Err(Closed));
    });
}

#[test]
fn closing_ends_every_wait() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let (a, b) = (spawn_waiter(&mark, 1, Wait::Forever), spawn_waiter(&mark, 2, Wait::Forever));
        let closer = Arc::clone(&mark);
        let closer = thread::spawn(move || closer.close());
        mark.advance(1);
        assert!(matches!(a.join().unwrap(), Ok(true) | Err(Closed)));
        assert_eq!(b.join().unwrap(), Err(Closed));
        closer.join().unwrap();
        assert_eq!(mark.wait(2, Wait::Forever), Err(Closed));
    });
}

#[test]
fn a_poke_ends_one_wait_whenever_it_comes() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let (tell, told) = mpsc::channel();
        let waiting = Arc::clone(&mark);
        let waiter = thread::spawn(move || {
            tell.send(Parker::current()).unwrap();
            let poked = waiting.wait(1, Wait::Forever);
            (poked, waiting.wait(2, Wait::Forever))
        });
        told.recv().unwrap().poke();
        // The second wait is not ended by the poke that ended the first.
        mark.advance(2);
        let (first, second) = waiter.join().unwrap();
        match first {
            Ok(true) => assert!(second == Ok(true), "a target that is reached takes no poke"),
            _ => assert_eq!((first, second), (Ok(false), Ok(true))),
        }
    });
}

#[test]
fn a_rest_ends_by_a_poke() {
    model(|| {
        let (tell, told) = mpsc::channel();
        let resting = thread::spawn(move || {
            tell.send(Parker::current()).unwrap();
            rest(Wait::Forever);
        });
        told.recv().unwrap().poke();
        resting.join().unwrap();
    });
}

#[test]
fn a_wait_that_times_out_leaves_the_others_to_be_woken() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let stays = spawn_waiter(&mark, 1, Wait::Forever);
        let leaves = spawn_waiter(&mark, 1, Wait::Until(Deadline));
        let higher = spawn_waiter(&mark, 2, Wait::Until(Deadline));
        mark.advance(1);
        assert_eq!(stays.join().unwrap(), Ok(true));
        assert!(leaves.join().unwrap().is_ok());
        assert_eq!(higher.join().unwrap(), Ok(false));
        assert!(!mark.is_awaited(), "whoever has left is off the list");
    });
}

#[test]
fn what_was_written_before_an_advance_is_there_after_the_wait() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let data = Arc::new(sync::AtomicU64::new(0));
        let (reads, ready) = (Arc::clone(&data), Arc::clone(&mark));
        let reader = thread::spawn(move || {
            assert_eq!(ready.wait(1, Wait::Forever), Ok(true));
            reads.load(sync::Ordering::Relaxed)
        });
        data.store(7, sync::Ordering::Relaxed);
        mark.advance(1);
        assert_eq!(reader.join().unwrap(), 7);
    });
}

/// The protocol by which threads share a flush, as src/log/flush.rs has it: whoever finds the lock free flushes for all,
/// the others wait for the position, and a flusher that is done hands on to one of those whom it did not serve. The
/// code itself hangs on files, so this is a copy of its waiting, over the real watermark.
struct GroupFlush {
    /// The flush lock, which nobody waits for: it is only tried.
    locked: sync::AtomicBool,
    appended: sync::AtomicU64,
    flushed: Watermark,
    waiting: sync::Mutex<Vec<(u64, Arc<Parker>)>>,
    syncs: sync::AtomicU64,
    hands_on: bool,
}

impl GroupFlush {
    fn new(hands_on: bool) -> Arc<GroupFlush> {
        Arc::new(GroupFlush {
            locked: sync::AtomicBool::new(false),
            appended: sync::AtomicU64::new(0),
            flushed: Watermark::new(0),
            waiting: sync::Mutex::new(Vec::new()),
            syncs: sync::AtomicU64::new(0),
            hands_on,
        })
    }

    /// Appends an entry and returns when it is flushed.
    fn commit(&self) {
        let to = self.appended.fetch_add(1, sync::Ordering::SeqCst) + 1;
        while self.flushed.get() < to {
            if !self.locked.swap(true, sync::Ordering::SeqCst) {
                if self.flushed.get() < to {
                    let covered = self.appended.load(sync::Ordering::SeqCst);
                    self.syncs.fetch_add(1, sync::Ordering::SeqCst);
                    self.flushed.advance(covered);
                }
                self.locked.store(false, sync::Ordering::SeqCst);
                self.hand_on();
                continue;
            }
            let parker = Parker::current();
            self.waiting.lock().push((to, Arc::clone(&parker)));
            let reached = self.is_locked() && self.flushed.wait(to, Wait::Forever) == Ok(true);
            let asked = {
                let mut waiting = self.waiting.lock();
                let listed = waiting.iter().position(|(_, other)| Arc::ptr_eq(other, &parker));
                listed.map(|at| waiting.swap_remove(at)).is_none()
            };
            if reached && asked {
                self.hand_on();
            }
        }
    }

    fn is_locked(&self) -> bool {
        self.locked.load(sync::Ordering::SeqCst)
    }

    fn hand_on(&self) {
        if !self.hands_on {
            return;
        }
        let flushed = self.flushed.get();
        let mut waiting = self.waiting.lock();
        if let Some(next) = waiting.iter().position(|(target, _)| *target > flushed) {
            waiting.swap_remove(next).1.poke();
        }
    }
}

fn three_share_flushes(hands_on: bool) {
    let log = GroupFlush::new(hands_on);
    let committers = [(); 3].map(|()| {
        let log = Arc::clone(&log);
        thread::spawn(move || log.commit())
    });
    for committer in committers {
        committer.join().unwrap();
    }
    assert_eq!(log.flushed.get(), 3);
    assert!(log.syncs.load(sync::Ordering::SeqCst) <= 3);
    assert!(log.waiting.lock().is_empty() && !log.flushed.is_awaited());
}

#[test]
fn whoever_shares_a_flush_is_served_or_flushes_itself() {
    model(|| three_share_flushes(true));
}

#[test]
fn a_flusher_that_does_not_hand_on_is_found() {
    let found = catch_unwind(AssertUnwindSafe(|| model(|| three_share_flushes(false))));
    let why = found.expect_err("the mistake was not found");
    let why = why.downcast_ref::<String>().expect("shuttle reports by a text");
    assert!(why.contains("deadlock"), "{why}");
}
