//! Workers on threads: they stop, they end, they panic, and nobody hangs.
#![allow(missing_docs, reason = "tests")]

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use quorate::channel::{Channel, ReceiveBuffer, local};
use quorate::clock::{Deadline, Wait};
use quorate::runtime::{Running, Runtime, ThreadRuntime};
use quorate::watermark::{Watermark, rest};
use quorate::worker::{Step, Stop, Worker};

struct Does<F>(F);

impl<F: FnMut(Wait) -> Result<Step, Stop> + Send> Worker for Does<F> {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        (self.0)(wait)
    }
}

fn spawn(
    channels: Vec<Arc<dyn Channel>>,
    work: impl FnMut(Wait) -> Result<Step, Stop> + Send + 'static,
) -> (Arc<dyn Running>, mpsc::Receiver<String>) {
    let (told, ends) = mpsc::channel();
    let on_end = Box::new(move |stop: &Stop| told.send(stop.to_string()).unwrap_or_default());
    (ThreadRuntime.spawn("worker".into(), Box::new(Does(work)), channels, on_end), ends)
}

const IDLE: Result<Step, Stop> = Ok(Step::Idle { due: Deadline::NEVER });
const SOON: Duration = Duration::from_secs(20);

#[test]
fn stopping_gets_a_worker_out_of_every_wait() {
    let (a, _b) = local::pair("stop");
    let receiving = Arc::clone(&a);
    let mut buffer = ReceiveBuffer::new();
    let (running, ends) = spawn(vec![a], move |wait| match receiving.receive(&mut buffer, wait) {
        Ok(_) => Ok(Step::Worked),
        Err(_) => Err(Stop::Done),
    });
    running.join();
    assert!(matches!(running.ended(), Some(Stop::Done)));
    assert!(ends.recv_timeout(SOON).is_err(), "it was asked to");

    let mark = Watermark::new(0);
    let (running, _) =
        spawn(vec![], move |wait| mark.wait(1, wait).map(|_| Step::Worked).map_err(|_| Stop::Done));
    running.join();
    assert!(running.ended().is_some());

    let (running, _) = spawn(vec![], |wait| {
        rest(wait);
        IDLE
    });
    thread::scope(|s| {
        s.spawn(|| running.join());
        s.spawn(|| running.join());
    });
    assert!(running.ended().is_some());
}

#[test]
fn a_worker_that_ends_or_panics_says_so() {
    let (running, ends) = spawn(vec![], |_| Err(Stop::Done));
    assert_eq!(ends.recv_timeout(SOON).as_deref(), Ok("the worker's task is over"));
    running.join();
    let (running, ends) = spawn(vec![], |_| panic!("a bug"));
    assert_eq!(
        ends.recv_timeout(SOON).as_deref(),
        Ok("the node can't go on: the worker worker panicked: a bug")
    );
    assert!(matches!(running.ended(), Some(Stop::Failed(_))));
}

#[test]
fn a_worker_may_join_itself_and_a_poke_wakes_it() {
    let (handle, own) = mpsc::channel::<Arc<dyn Running>>();
    let (running, _) = spawn(vec![], move |_| {
        if let Ok(own) = own.recv() {
            own.join();
        }
        IDLE
    });
    handle.send(Arc::clone(&running)).expect("the worker waits for it");
    running.join();

    let (woken, wakes) = mpsc::channel();
    let (running, _) = spawn(vec![], move |wait| {
        rest(wait);
        woken.send(()).unwrap_or_default();
        Ok(Step::Worked)
    });
    // Before the thread runs there is no wait to end; from its first wait on every poke counts.
    while wakes.try_recv().is_err() {
        running.poke();
        thread::yield_now();
    }
    running.join();
    assert_ne!(ThreadRuntime.random(), ThreadRuntime.random());
}
