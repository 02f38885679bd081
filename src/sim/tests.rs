use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::address::Address;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::Wait;
use crate::disk::Disk;
use crate::ids::Term;
use crate::runtime::{Running, Runtime};
use crate::wire::frame::{FrameHeader, HEADER_LEN, MessageType};
use crate::worker::{Step, Stop};

const SECOND: Duration = Duration::from_secs(1);

fn spawn(rt: &Arc<dyn Runtime>, name: &str, worker: Box<dyn crate::worker::Worker>) -> Arc<dyn Running> {
    rt.spawn(name.into(), worker, Vec::new(), Box::new(|_| {}))
}

fn frame(number: u64) -> Vec<u8> {
    let header = FrameHeader {
        kind: MessageType::Heartbeat,
        compressed: false,
        payload_len: 8,
        term: Term::new(1),
        sequence: number,
        payload_crc: 0,
    };
    [&header.encode()[..], &number.to_le_bytes()].concat()
}

fn receive(channel: &dyn Channel) -> Option<u64> {
    let mut buffer = ReceiveBuffer::default();
    let frame = channel.receive(&mut buffer, Wait::Now).ok()??;
    Some(u64::from_le_bytes(frame[HEADER_LEN..].try_into().unwrap()))
}

/// A toy of a replicated log: a master numbers entries and sends them, a replica writes each as a byte and acks after
/// the flush, or before it, which is the planted bug. Says how far the master saw acks and what the replica's disk kept.
fn toy(seed: u64, flush_first: bool) -> (u64, u64, u64) {
    let sim = Simulation::new(seed);
    let (master, replica) = (sim.node("master"), sim.node("replica"));
    let address = Address::Local("replica".into());
    let (disk, path) = (replica.disk(), Path::new("/r/log"));
    disk.create_dir(Path::new("/r")).unwrap();
    let file = disk.create(path, 4096).unwrap();
    file.sync().unwrap();
    disk.sync_dir(Path::new("/r")).unwrap();

    let listener = replica.runtime().listen(&address).unwrap();
    let (mut channel, mut unsynced, mut to_ack) = (None::<Arc<dyn Channel>>, 0, 0);
    let receiver = worker(move |_| {
        let Some(channel) = &channel else {
            channel = listener.accept(Wait::Now).map_err(|_| Stop::Done)?;
            return Ok(if channel.is_some() {
                Step::Worked
            } else {
                Step::Idle { due: crate::clock::Deadline::NEVER }
            });
        };
        if to_ack > 0 && (unsynced == 0 || !flush_first) {
            let ack = frame(std::mem::take(&mut to_ack));
            let _ = channel.send(&[IoSlice::new(&ack)], Wait::Now);
            return Ok(Step::Worked);
        }
        if unsynced > 0 {
            file.sync().map_err(Stop::failed)?;
            unsynced = 0;
            return Ok(Step::Worked);
        }
        let Some(number) = receive(&**channel) else {
            return Ok(Step::Idle { due: crate::clock::Deadline::NEVER });
        };
        file.write_at(&[IoSlice::new(&[number as u8])], number * 16).map_err(Stop::failed)?;
        (unsynced, to_ack) = (1, number);
        Ok(Step::Worked)
    });
    spawn(&replica.runtime(), "receive", receiver);

    let acked = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&acked);
    let channel = master.runtime().dial(&address, Wait::Now).unwrap().unwrap();
    let mut next = 1;
    let sender = worker(move |_| {
        while let Some(number) = receive(&*channel) {
            seen.fetch_max(number, Ordering::Relaxed);
        }
        if next < 200 && channel.send(&[IoSlice::new(&frame(next))], Wait::Now).map_err(|_| Stop::Done)? {
            next += 1;
            return Ok(Step::Worked);
        }
        Ok(Step::Idle { due: crate::clock::Deadline::NEVER })
    });
    spawn(&master.runtime(), "send", sender);

    sim.run_steps(sim.rng().between(20, 400));
    replica.crash();
    sim.run_for(Duration::from_millis(5));
    let file = disk.open(path).unwrap();
    let mut bytes = [0; 4096];
    file.read_at(&mut bytes, 0).unwrap();
    let kept = (1..200).take_while(|&number| bytes[number * 16] == number as u8).count() as u64;
    (acked.load(Ordering::Relaxed), kept, sim.trace_hash())
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let mut hashes = Vec::new();
    for seed in seeds(30) {
        let (first, again) = (toy(seed, true), toy(seed, true));
        assert_eq!(first, again, "seed {seed}");
        assert!(!hashes.contains(&first.2), "seed {seed} runs like one before");
        hashes.push(first.2);
    }
}

#[test]
fn an_ack_before_the_flush_is_found_and_one_after_it_is_never_blamed() {
    for seed in seeds(300) {
        let (acked, kept, _) = toy(seed, true);
        assert!(acked <= kept, "seed {seed}: {acked} acked, {kept} kept");
    }
    let found = (0..100).find(|&seed| {
        let (acked, kept, _) = toy(seed, false);
        acked > kept
    });
    println!("ack before flush found at seed {found:?}");
    assert!(found.is_some(), "100 seeds did not find it");
}

#[test]
fn an_idle_worker_is_woken_by_anothers_work_and_by_its_own_time() {
    let sim = Simulation::new(1);
    let rt = sim.node("n").runtime();
    let value = Arc::new(crate::Watermark::new(0));
    let (waits, raises) = (Arc::clone(&value), Arc::clone(&value));
    let clock = rt.clock();
    let raiser = worker(move |_| {
        if clock.now().as_nanos() < 5_000_000_000 {
            return Ok(Step::Idle { due: crate::clock::Deadline::from_nanos(5_000_000_000) });
        }
        raises.advance(1);
        Err(Stop::Done)
    });
    let waiter = worker(move |wait| match waits.wait(1, wait) {
        Ok(true) => Err(Stop::Done),
        _ => Ok(Step::Idle { due: crate::clock::Deadline::NEVER }),
    });
    let waiter = spawn(&rt, "wait", waiter);
    assert!(!sim.run_until(|| waiter.ended().is_some(), SECOND), "nothing raised it");
    spawn(&rt, "raise", raiser);
    assert!(!sim.run_until(|| waiter.ended().is_some(), SECOND), "too early");
    assert!(sim.run_until(|| waiter.ended().is_some(), SECOND * 10));
    assert!(sim.clock().nanos() >= 5_000_000_000 && sim.steps() < 20);
    assert_eq!(sim.workers(), Vec::<String>::new());
}

#[test]
fn a_worker_may_spawn_and_stop_others_and_itself_from_its_step() {
    let sim = Simulation::new(2);
    let rt = sim.node("n").runtime();
    let ends = Arc::new(AtomicU64::new(0));
    let (inner_rt, counted) = (Arc::clone(&rt), Arc::clone(&ends));
    let mut child: Option<Arc<dyn Running>> = None;
    let own: Arc<parking_lot::Mutex<Option<Arc<dyn Running>>>> = Arc::default();
    let me = Arc::clone(&own);
    let parent = worker(move |_| {
        let Some(child) = child.take() else {
            let endless = worker(|_| Ok(Step::Worked));
            child = Some(spawn(&inner_rt, "child", endless));
            let count = Arc::clone(&counted);
            let once = worker(|_| Err(Stop::Done));
            let on_end = move |_: &Stop| {
                count.fetch_add(1, Ordering::Relaxed);
            };
            inner_rt.spawn("once".into(), once, Vec::new(), Box::new(on_end));
            return Ok(Step::Worked);
        };
        child.join();
        assert!(child.ended().is_some());
        me.lock().as_ref().unwrap().stop();
        Ok(Step::Worked)
    });
    *own.lock() = Some(spawn(&rt, "parent", parent));
    sim.run_steps(1000);
    assert_eq!((sim.workers(), ends.load(Ordering::Relaxed)), (Vec::new(), 1));
}

#[test]
fn a_crash_ends_the_workers_connections_and_runtime_of_that_life() {
    let sim = Simulation::new(3);
    let (a, b) = (sim.node("a"), sim.node("b"));
    let address = Address::Local("b".into());
    let old = b.runtime();
    let listener = old.listen(&address).unwrap();
    let running = spawn(&old, "busy", worker(|_| Ok(Step::Worked)));
    let channel = a.runtime().dial(&address, Wait::Now).unwrap().unwrap();
    sim.run_steps(10);
    b.crash();
    assert!(running.ended().is_some() && sim.workers().is_empty());
    assert!(spawn(&old, "late", worker(|_| Ok(Step::Worked))).ended().is_some());
    assert!(old.listen(&address).is_err() && old.dial(&address, Wait::Now).is_err());
    assert!(listener.accept(Wait::Now).is_err());
    sim.run_for(SECOND);
    assert!(channel.receive(&mut ReceiveBuffer::default(), Wait::Now).is_err());
    assert!(b.runtime().listen(&address).is_ok());
    assert_eq!(sim.faults().of(Fault::Crash), 1);
}

#[test]
fn a_panic_in_a_step_is_the_tests_panic() {
    let sim = Simulation::new(4);
    spawn(&sim.node("n").runtime(), "bad", worker(|_| panic!("planted")));
    let caught = catch_unwind(AssertUnwindSafe(move || {
        let sim = sim;
        sim.run_steps(1);
    }));
    assert!(caught.is_err());
}

#[test]
fn a_nemesis_brings_every_trouble_and_ends_it() {
    let mut total = FaultCounts::default();
    for seed in 0..20 {
        let sim = Simulation::new(seed);
        let names = ["a", "b", "c"];
        let nodes: Vec<SimNode> = names.iter().map(|name| sim.node(name)).collect();
        let mut nemesis = Nemesis::new(&sim, nodes, NemesisPlan::default());
        let mut down = 0;
        let mut follow = |acts: Vec<Act>| {
            for act in acts {
                match act {
                    Act::Crashed(_) => down += 1,
                    Act::Restart(_) => down -= 1,
                }
                assert!((0..=1).contains(&down));
            }
            down
        };
        for _ in 0..500 {
            sim.run_for(Duration::from_millis(10));
            follow(nemesis.act(&sim));
        }
        assert_eq!(follow(nemesis.calm(&sim)), 0);
        total.merge(&sim.faults());
    }
    println!("{total}");
    assert_eq!(total.missing(&[Fault::Crash, Fault::Kill]), []);
}

/// Not a test of behaviour: prints how fast the loop is (`--nocapture`).
#[test]
fn steps_per_second() {
    let sim = Simulation::new(5);
    let rt = sim.node("n").runtime();
    for number in 0..10 {
        let mut left = 0;
        let busy = worker(move |_| {
            left += 1;
            Ok(if left % 4 == 0 { Step::Idle { due: crate::clock::Deadline::NEVER } } else { Step::Worked })
        });
        spawn(&rt, &format!("w{number}"), busy);
    }
    let watch = crate::clock::Stopwatch::start();
    let steps = sim.run_steps(200_000);
    println!("{:.0} steps/s", steps as f64 / watch.elapsed().as_secs_f64());
    assert_eq!(steps, 200_000);
}
