//! A network in memory that delays, cuts, damages and partitions.

mod channel;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use self::channel::SimChannel;
use super::clock::SimClock;
use super::fault::{Fault, FaultCounts};
use super::rng::Rng;
use super::trace::Trace;
use crate::address::Address;
use crate::channel::{Channel, ChannelError, Listener, Peer};
use crate::clock::Wait;
use crate::runtime::DialError;

/// How the network behaves.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The shortest time that a frame takes.
    pub min_delay: Duration,
    /// The longest time that a frame takes, unless it waits for one before it.
    pub max_delay: Duration,
    /// How many bytes may be under way in each direction of a connection. A larger frame passes alone.
    pub buffer: usize,
    /// How likely each frame sent is to end its connection: [`Fault::Reset`].
    pub reset: f64,
    /// How likely each frame is to arrive with a flipped bit: [`Fault::DamagedFrame`].
    pub damage: f64,
    /// How likely each frame is to vanish from the middle of its connection: [`Fault::LostFrame`].
    pub lose: f64,
    /// How likely a dial to a living listener is to fail: [`Fault::DialFailed`].
    pub dial_failure: f64,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            min_delay: Duration::from_micros(20),
            max_delay: Duration::from_micros(500),
            buffer: 256 << 10,
            reset: 0.0,
            damage: 0.0,
            lose: 0.0,
            dial_failure: 0.0,
        }
    }
}

/// The network of a simulation. Connections are ordered byte streams like TCP's: a partition holds frames, and what was
/// held arrives after it heals, unless the connection is gone by then.
pub struct SimNet {
    clock: Arc<SimClock>,
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    config: NetConfig,
    counts: FaultCounts,
    listeners: BTreeMap<Address, Listening>,
    next_listener: u64,
    links: BTreeMap<u64, [End; 2]>,
    next_link: u64,
    /// Directions in which nothing passes, as (from, to).
    blocked: BTreeSet<(String, String)>,
    /// No delivery is due before this time. Too early is harmless.
    next_due: u64,
}

struct Listening {
    id: u64,
    node: String,
    queue: VecDeque<(u64, SimChannel)>,
}

/// One side of a connection.
struct End {
    node: String,
    /// What is under way to this side or has arrived, in order.
    inbox: VecDeque<(u64, Item)>,
    bytes: usize,
    closed: bool,
}

enum Item {
    Frame(Vec<u8>),
    /// The connection ends here; everything before it arrives.
    End(ChannelError),
}

impl SimNet {
    pub(super) fn new(clock: Arc<SimClock>, trace: Arc<Trace>, rng: Rng) -> Arc<SimNet> {
        let state = State {
            rng,
            config: NetConfig::default(),
            counts: FaultCounts::default(),
            listeners: BTreeMap::new(),
            next_listener: 1,
            links: BTreeMap::new(),
            next_link: 1,
            blocked: BTreeSet::new(),
            next_due: u64::MAX,
        };
        Arc::new(SimNet { clock, trace, state: Mutex::new(state) })
    }

    /// Sets how the network behaves from now on.
    pub fn configure(&self, config: NetConfig) {
        self.state.lock().config = config;
    }

    /// Nothing passes from the one node to the other; the way back is not touched. Frames sent are held.
    pub fn block(&self, from: &str, to: &str) {
        self.state.lock().blocked.insert((from.to_owned(), to.to_owned()));
    }

    /// Nothing passes between the two nodes.
    pub fn partition(&self, a: &str, b: &str) {
        self.block(a, b);
        self.block(b, a);
    }

    /// Nothing passes between this node and any of `others`.
    pub fn isolate<'a>(&self, node: &str, others: impl IntoIterator<Item = &'a str>) {
        others.into_iter().filter(|&other| other != node).for_each(|other| self.partition(node, other));
    }

    /// Ends what [`block`](Self::block) began. What was held arrives.
    pub fn unblock(&self, from: &str, to: &str) {
        let mut state = self.state.lock();
        state.blocked.remove(&(from.to_owned(), to.to_owned()));
        state.next_due = 0;
    }

    /// Ends all partitions.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.blocked.clear();
        state.next_due = 0;
    }

    /// Resets all connections between the two nodes; an arbitrary part of what is under way is lost.
    pub fn reset(&self, a: &str, b: &str) {
        let now = self.clock.nanos();
        let mut state = self.state.lock();
        let between = |ends: &[End; 2]| {
            (ends[0].node == a && ends[1].node == b) || (ends[0].node == b && ends[1].node == a)
        };
        let links: Vec<u64> =
            state.links.iter().filter(|(_, ends)| between(ends)).map(|(&link, _)| link).collect();
        links.into_iter().for_each(|link| state.reset(link, now));
    }

    /// How often each fault fired.
    pub fn counts(&self) -> FaultCounts {
        self.state.lock().counts.clone()
    }

    /// The connections of a dead node end: what it had sent may arrive in part, and its peers learn of the end when the
    /// network tells them.
    pub(super) fn crash(&self, node: &str) {
        let now = self.clock.nanos();
        let mut state = self.state.lock();
        let links: Vec<u64> = state.links.keys().copied().collect();
        for link in links {
            for side in 0..2 {
                let Some(ends) = state.links.get(&link) else { continue };
                if ends[side].node == node && !ends[side].closed {
                    state.end_side(link, side, now, true);
                }
            }
        }
        let dead: Vec<Address> = state
            .listeners
            .iter()
            .filter(|(_, listening)| listening.node == node)
            .map(|(address, _)| address.clone())
            .collect();
        let queues: Vec<_> = dead.iter().filter_map(|address| state.listeners.remove(address)).collect();
        // Channels are dropped without the lock, because that closes them.
        drop(state);
        drop(queues);
    }

    /// When the next frame or connection arrives: at `now` or before it if something has arrived since the last call.
    pub(super) fn next_due(&self, now: u64) -> u64 {
        let mut state = self.state.lock();
        let due = state.next_due;
        if due <= now {
            state.next_due = state.earliest_after(now);
        }
        due
    }

    pub(super) fn listen(self: &Arc<Self>, node: &str, at: &Address) -> io::Result<Box<dyn Listener>> {
        let mut state = self.state.lock();
        if state.listeners.contains_key(at) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let id = state.next_listener;
        state.next_listener += 1;
        state.listeners.insert(at.clone(), Listening { id, node: node.to_owned(), queue: VecDeque::new() });
        Ok(Box::new(SimListener { net: Arc::clone(self), at: at.clone(), id }))
    }

    pub(super) fn dial(
        self: &Arc<Self>,
        node: &str,
        to: &Address,
    ) -> Result<Option<Arc<dyn Channel>>, DialError> {
        let now = self.clock.nanos();
        let mut state = self.state.lock();
        let state = &mut *state;
        let failed = |kind| Err(DialError { to: to.clone(), kind });
        let odds = state.config.dial_failure;
        let Some(target) = state.listeners.get(to).map(|listening| listening.node.clone()) else {
            // A dead machine is silent; a machine without a listener refuses.
            let silent = state.rng.chance(0.5);
            state.counts.add(Fault::DialFailed);
            return if silent { Ok(None) } else { failed(io::ErrorKind::ConnectionRefused) };
        };
        if state.is_blocked(node, &target) || state.is_blocked(&target, node) || state.rng.chance(odds) {
            state.counts.add(Fault::DialFailed);
            return if state.rng.chance(0.5) { Ok(None) } else { failed(io::ErrorKind::TimedOut) };
        }
        let link = state.next_link;
        state.next_link += 1;
        let end = |node: &str| End { node: node.to_owned(), inbox: VecDeque::new(), bytes: 0, closed: false };
        state.links.insert(link, [end(node), end(&target)]);
        let channel = |side, peer| SimChannel::new(Arc::clone(self), link, side, Peer(peer));
        let (ours, theirs) = (channel(0, to.clone()), channel(1, Address::Local(node.to_owned())));
        let due = state.delay(now);
        if let Some(listening) = state.listeners.get_mut(to) {
            listening.queue.push_back((due, theirs));
        }
        state.note_due(due);
        Ok(Some(Arc::new(ours)))
    }
}

impl State {
    fn is_blocked(&self, from: &str, to: &str) -> bool {
        !self.blocked.is_empty() && self.blocked.iter().any(|(a, b)| a == from && b == to)
    }

    fn delay(&mut self, now: u64) -> u64 {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        now + self.rng.between(nanos(self.config.min_delay), nanos(self.config.max_delay))
    }

    fn note_due(&mut self, due: u64) {
        self.next_due = self.next_due.min(due);
    }

    fn earliest_after(&self, now: u64) -> u64 {
        let mut earliest = u64::MAX;
        let mut consider = |at: u64| {
            if at > now {
                earliest = earliest.min(at);
            }
        };
        for ends in self.links.values() {
            for side in 0..2 {
                if !self.is_blocked(&ends[1 - side].node, &ends[side].node) {
                    // The first item that has not arrived yet; those before it were reported when they did.
                    let next = ends[side].inbox.partition_point(|(at, _)| *at <= now);
                    ends[side].inbox.get(next).iter().for_each(|(at, _)| consider(*at));
                }
            }
        }
        for listening in self.listeners.values() {
            listening.queue.iter().for_each(|(at, _)| consider(*at));
        }
        earliest
    }

    /// Puts an item on its way to a side, behind what is under way already.
    fn post(&mut self, link: u64, to: usize, item: Item, now: u64) {
        let due = self.delay(now);
        let Some(ends) = self.links.get_mut(&link) else { return };
        let due = ends[to].inbox.back().map_or(due, |(before, _)| due.max(*before));
        ends[to].inbox.push_back((due, item));
        let (from, node) = (ends[1 - to].node.clone(), ends[to].node.clone());
        if self.is_blocked(&from, &node) {
            self.counts.add(Fault::Held);
        }
        self.note_due(due);
    }

    /// The network breaks a connection: both sides learn of it, each after what still arrives.
    fn reset(&mut self, link: u64, now: u64) {
        self.counts.add(Fault::Reset);
        for side in 0..2 {
            self.cut(link, side, now);
        }
    }

    /// Ends the stream towards a side, losing an arbitrary suffix of what is under way.
    fn cut(&mut self, link: u64, side: usize, now: u64) {
        let Some(ends) = self.links.get_mut(&link) else { return };
        let end = &mut ends[side];
        if end.inbox.iter().any(|(_, item)| matches!(item, Item::End(_))) {
            return;
        }
        let arrived = end.inbox.partition_point(|(at, _)| *at <= now);
        let keep = arrived + self.rng.index(end.inbox.len() - arrived + 1);
        let lost = end.inbox.split_off(keep);
        for (_, item) in &lost {
            if let Item::Frame(frame) = item {
                end.bytes -= frame.len();
            }
        }
        let why = match self.rng.below(3) {
            0 if !lost.is_empty() => ChannelError::Truncated,
            1 => ChannelError::Io(io::ErrorKind::ConnectionReset),
            _ => ChannelError::Closed,
        };
        self.post(link, side, Item::End(why), now);
    }

    /// A side closes, or dies with its node: it reads and sends no more, and the other learns of it.
    fn end_side(&mut self, link: u64, side: usize, now: u64, dead: bool) {
        let Some(ends) = self.links.get_mut(&link) else { return };
        if std::mem::replace(&mut ends[side].closed, true) {
            return;
        }
        let unread = !ends[side].inbox.is_empty();
        ends[side].inbox.clear();
        ends[side].bytes = 0;
        if ends[1 - side].closed {
            self.links.remove(&link);
            return;
        }
        // As with TCP, closing with unread data resets the connection, which may overtake what was sent last.
        if dead || (unread && self.rng.chance(0.5)) {
            self.cut(link, 1 - side, now);
        } else if !ends[1 - side].inbox.iter().any(|(_, item)| matches!(item, Item::End(_))) {
            self.post(link, 1 - side, Item::End(ChannelError::Closed), now);
        }
    }
}

struct SimListener {
    net: Arc<SimNet>,
    at: Address,
    id: u64,
}

impl Listener for SimListener {
    fn accept(&self, _wait: Wait) -> Result<Option<Arc<dyn Channel>>, ChannelError> {
        let now = self.net.clock.nanos();
        let mut state = self.net.state.lock();
        let state = &mut *state;
        let listening = state.listeners.get_mut(&self.at).filter(|listening| listening.id == self.id);
        let listening = listening.ok_or(ChannelError::Closed)?;
        // Connections of several nodes overtake one another.
        let Some(at) = listening.queue.iter().position(|(due, _)| *due <= now) else { return Ok(None) };
        Ok(listening.queue.remove(at).map(|(_, channel)| Arc::new(channel) as Arc<dyn Channel>))
    }

    fn address(&self) -> &Address {
        &self.at
    }

    fn closer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (net, at, id) = (Arc::clone(&self.net), self.at.clone(), self.id);
        Arc::new(move || close_listener(&net, &at, id))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        close_listener(&self.net, &self.at, self.id);
    }
}

fn close_listener(net: &SimNet, at: &Address, id: u64) {
    let mut state = net.state.lock();
    let ours = state.listeners.get(at).is_some_and(|listening| listening.id == id);
    let queue = if ours { state.listeners.remove(at) } else { None };
    drop(state);
    drop(queue);
}
