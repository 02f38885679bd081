//! Clients that write and read while masters come and go, and remember what they were told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::ids::number;
use quorate::watermark::Watermark;
use quorate::{Address, GroupId, Outcome, Policy, Vlsn};

use super::check::{Call, Op, Told};
use crate::service::client::{CallError, KvClient};
use crate::service::codec::{Act, Answer};

/// How many clients there are, and on how many keys they meet.
pub const CLIENTS: usize = 8;
const KEYS: u64 = 16;
/// How long one operation may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long connecting to one node may take.
const REACH: Duration = Duration::from_millis(300);

/// What the clients share.
pub struct Load {
    addresses: Vec<Address>,
    group: GroupId,
    began: Stopwatch,
    stopped: AtomicBool,
    history: Mutex<Vec<Op>>,
    /// When the latest write that is committed began, in nanoseconds since the load did.
    written: Watermark,
}

impl Load {
    /// Work for clients of the nodes at these addresses.
    pub fn new(addresses: Vec<Address>, group: GroupId) -> Load {
        Load {
            addresses,
            group,
            began: Stopwatch::start(),
            stopped: AtomicBool::new(false),
            history: Mutex::default(),
            written: Watermark::new(0),
        }
    }

    /// The time since the load began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits until a write that began after this moment is committed. `false`: `wait` is over.
    pub fn committed_after(&self, moment: Duration, wait: Wait) -> bool {
        self.written.wait(nanos(moment) + 1, wait) == Ok(true)
    }

    /// Lets the clients begin nothing more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// What all clients were told, when they have ended.
    pub fn into_history(self) -> Vec<Op> {
        self.history.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// One client's work, until the load is stopped.
    pub fn run(&self, client: usize) {
        let mut kv = KvClient::new(self.addresses.clone(), self.group).reach(REACH);
        let mut own = Vec::new();
        let mut latest = [0; KEYS as usize];
        let mut chance = Chance(client as u64 + 1);
        while !self.stopped.load(Ordering::SeqCst) {
            let at = chance.draw(KEYS) as usize;
            let call = match chance.draw(10) {
                0..4 => Call::Put,
                4..7 => Call::Cas(latest[at]),
                _ => Call::Get,
            };
            let (key, value) =
                (format!("key-{at}").into_bytes(), format!("{client}.{}", own.len()).into_bytes());
            let policy = Policy::MAJORITY;
            let act = match call {
                Call::Put => Act::Put { policy, key: &key, value: &value },
                Call::Cas(expected) => Act::Cas { expected: Vlsn::new(expected), key: &key, value: &value },
                Call::Get => Act::Get { stale: false, key: &key },
            };
            let began = self.now();
            let told = told(kv.call(&act, Wait::Until(deadline_in(PATIENCE))));
            let ended = self.now();
            match told {
                Told::Wrote(version) => {
                    self.written.advance(nanos(began));
                    latest[at] = version;
                }
                Told::Read(version, _) | Told::Differs(version) => latest[at] = version,
                Told::NotDone | Told::Unknown => {}
            }
            own.push(Op { key, value, call, began, ended, told });
        }
        self.history.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(&mut own);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn told(answer: Result<Answer, CallError>) -> Told {
    match answer {
        Ok(Answer::Written { version, outcome: Outcome::Committed }) => Told::Wrote(version.get()),
        Ok(Answer::Found { version, value }) => Told::Read(version.get(), value),
        Ok(Answer::Absent) => Told::Read(0, Vec::new()),
        Ok(Answer::Differs { found }) => Told::Differs(number(found)),
        Ok(Answer::RolledBack | Answer::Refused { .. } | Answer::NotMaster { .. }) => Told::NotDone,
        Err(error) if !error.may_be_done() => Told::NotDone,
        Ok(Answer::Unknown { .. } | Answer::Committed | Answer::Written { .. }) | Err(_) => Told::Unknown,
    }
}

/// A few random bits, the same in every run.
struct Chance(u64);

impl Chance {
    fn draw(&mut self, below: u64) -> u64 {
        // Knuth's linear congruence; the high bits are good enough for choosing.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}
