//! The watermark on real threads. Its interleavings are explored in tests/model.rs; here the real primitives are used.

use std::sync::mpsc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use quorate::Watermark;
use quorate::clock::{Deadline, Wait, deadline_in};
use quorate::watermark::{Closed, Parker, rest};

const LONG: Duration = Duration::from_secs(60);

#[test]
fn the_position_never_falls() {
    let mark = Watermark::new(5);
    mark.advance(3);
    assert_eq!(mark.get(), 5);
    mark.advance(9);
    assert_eq!((mark.get(), format!("{mark:?}")), (9, "Watermark(9)".into()));
}

#[test]
fn a_wait_without_time_only_looks() {
    let mark = Watermark::new(1);
    assert_eq!(mark.wait(1, Wait::Now), Ok(true));
    assert_eq!(mark.wait(2, Wait::Now), Ok(false));
    assert_eq!(mark.wait(2, Wait::Until(Deadline::from_nanos(0))), Ok(false));
    assert_eq!(mark.wait(2, Wait::Until(deadline_in(Duration::from_millis(1)))), Ok(false));
    assert!(!mark.is_awaited());
}

#[test]
fn a_closed_watermark_still_tells_what_was_reached() {
    let mark = Watermark::new(3);
    mark.close();
    assert_eq!(mark.wait(3, Wait::Forever), Ok(true));
    assert_eq!(mark.wait(4, Wait::Forever), Err(Closed));
}

#[test]
fn many_waiters_see_every_position_in_turn() {
    let (mark, back) = (Arc::new(Watermark::new(0)), Arc::new(Watermark::new(0)));
    let rounds = 2_000;
    let waiters: Vec<_> = (0..4)
        .map(|_| {
            let mark = Arc::clone(&mark);
            thread::spawn(move || {
                (1..=rounds).all(|n| mark.wait(n, Wait::Until(deadline_in(LONG))) == Ok(true))
            })
        })
        .collect();
    let (there, here) = (Arc::clone(&mark), Arc::clone(&back));
    let echo = thread::spawn(move || {
        (1..=rounds).for_each(|n| {
            assert_eq!(there.wait(n, Wait::Until(deadline_in(LONG))), Ok(true));
            here.advance(n);
        })
    });
    for n in 1..=rounds {
        mark.advance(n);
        assert_eq!(back.wait(n, Wait::Until(deadline_in(LONG))), Ok(true), "round {n}");
    }
    assert!(waiters.into_iter().all(|waiter| waiter.join().unwrap()));
    echo.join().unwrap();
    assert!(!mark.is_awaited() && !back.is_awaited());
}

#[test]
fn concurrent_advances_end_at_the_highest() {
    let (mark, start) = (Arc::new(Watermark::new(0)), Arc::new(Barrier::new(4)));
    let threads: Vec<_> = (0..4u64)
        .map(|k| {
            let (mark, start) = (Arc::clone(&mark), Arc::clone(&start));
            thread::spawn(move || {
                start.wait();
                (0..10_000).for_each(|n| mark.advance(n * 4 + k));
            })
        })
        .collect();
    assert_eq!(mark.wait(39_999, Wait::Until(deadline_in(LONG))), Ok(true));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(mark.get(), 39_999);
}

#[test]
fn a_poke_ends_a_wait_and_a_rest_and_is_kept_if_it_comes_first() {
    let (tell, told) = mpsc::channel();
    let (done, finished) = mpsc::channel();
    let waiter = thread::spawn(move || {
        tell.send(Parker::current()).unwrap();
        let mark = Watermark::new(0);
        done.send(mark.wait(1, Wait::Until(deadline_in(LONG)))).unwrap();
        rest(Wait::Until(deadline_in(LONG)));
        done.send(Ok(true)).unwrap();
    });
    let parker = told.recv().unwrap();
    parker.poke();
    assert_eq!(finished.recv_timeout(LONG / 2).unwrap(), Ok(false));
    parker.poke();
    assert_eq!(finished.recv_timeout(LONG / 2).unwrap(), Ok(true));
    waiter.join().unwrap();
    Parker::current().poke();
    rest(Wait::Forever);
    Parker::current().poke();
    assert_eq!(Watermark::new(0).wait(1, Wait::Forever), Ok(false));
}
