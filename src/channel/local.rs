//! Channels within a process: queues of frames in memory, bounded in frames and in bytes. Buffers go back to the sender
//! when their frame was received, so that a running connection allocates nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Channel, ChannelError, Listener, Peer, ReceiveBuffer};
use crate::address::Address;
use crate::clock::Wait;
use crate::wire::frame::{DEFAULT_MAX_FRAME, FrameError, FrameHeader, check_len};

/// How many frames wait in one direction before a sender waits.
pub const MAX_FRAMES: usize = 256;
/// How many bytes do; a single larger frame goes through when nothing else waits.
pub const MAX_BYTES: usize = 1 << 20;
/// How many bytes of empty buffers are kept for the sender.
const MAX_SPARE: usize = 2 * MAX_BYTES;
/// How many connections wait to be accepted.
const BACKLOG: usize = 128;

/// One direction.
struct Pipe {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
    closed: bool,
}

impl Pipe {
    fn new() -> Arc<Pipe> {
        Arc::new(Pipe { queue: Mutex::new(Queue::default()), changed: Condvar::new() })
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Waits for a change. `false`: `wait` is over.
fn wait_for<T>(changed: &Condvar, queue: &mut MutexGuard<'_, T>, wait: Wait) -> bool {
    match wait.remaining() {
        Some(left) if left.is_zero() => false,
        Some(left) => {
            changed.wait_for(queue, left);
            true
        }
        None => {
            changed.wait(queue);
            true
        }
    }
}

struct LocalChannel {
    out: Arc<Pipe>,
    into: Arc<Pipe>,
    closed: AtomicBool,
    max_frame: AtomicU32,
    peer: Peer,
}

/// The two ends of a connection, each known to the other by this name. Dropping an end closes the connection.
pub fn pair(name: &str) -> (Arc<dyn Channel>, Arc<dyn Channel>) {
    let (there, back) = (Pipe::new(), Pipe::new());
    let end = |out: &Arc<Pipe>, into: &Arc<Pipe>| {
        Arc::new(LocalChannel {
            out: Arc::clone(out),
            into: Arc::clone(into),
            closed: AtomicBool::new(false),
            max_frame: AtomicU32::new(DEFAULT_MAX_FRAME),
            peer: Peer(Address::Local(name.to_owned())),
        })
    };
    (end(&there, &back), end(&back, &there))
}

impl Channel for LocalChannel {
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError> {
        let len: usize = frame.iter().map(|slice| slice.len()).sum();
        check_len(len as u64, self.max_frame.load(Ordering::Relaxed))?;
        let mut queue = self.out.queue.lock();
        while !queue.closed
            && !queue.frames.is_empty()
            && (queue.frames.len() >= MAX_FRAMES || queue.bytes + len > MAX_BYTES)
        {
            if !wait_for(&self.out.changed, &mut queue, wait) {
                return Ok(false);
            }
        }
        if queue.closed {
            return Err(ChannelError::Closed);
        }
        let mut copy = queue.spare.pop().unwrap_or_default();
        queue.spare_bytes -= copy.capacity();
        drop(queue);
        copy.clear();
        for slice in frame {
            copy.extend_from_slice(slice);
        }
        let mut queue = self.out.queue.lock();
        if queue.closed {
            return Err(ChannelError::Closed);
        }
        queue.bytes += len;
        queue.frames.push_back(copy);
        drop(queue);
        self.out.changed.notify_all();
        Ok(true)
    }

    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        let mut queue = self.into.queue.lock();
        let frame = loop {
            if self.closed.load(Ordering::SeqCst) {
                return Err(ChannelError::Closed);
            }
            if let Some(frame) = queue.frames.pop_front() {
                break frame;
            }
            if queue.closed {
                return Err(ChannelError::Closed);
            }
            if !wait_for(&self.into.changed, &mut queue, wait) {
                return Ok(None);
            }
        };
        queue.bytes -= frame.len();
        let used = buffer.hold(frame, !queue.frames.is_empty());
        if used.capacity() > 0 && queue.spare_bytes + used.capacity() <= MAX_SPARE {
            queue.spare_bytes += used.capacity();
            queue.spare.push(used);
        }
        drop(queue);
        self.into.changed.notify_all();
        let frame = buffer.lent();
        match whole(frame, self.max_frame.load(Ordering::Relaxed)) {
            Ok(()) => Ok(Some(frame)),
            Err(error) => {
                self.close();
                Err(error.into())
            }
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.out.close();
        self.into.close();
    }

    fn limit_frames(&self, max_frame: u32) {
        self.max_frame.store(max_frame, Ordering::Relaxed);
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Drop for LocalChannel {
    fn drop(&mut self) {
        self.close();
    }
}

fn whole(frame: &[u8], max_frame: u32) -> Result<(), FrameError> {
    let needed = FrameHeader::parse(frame, max_frame)?.frame_len();
    match frame.len() {
        present if present < needed => Err(FrameError::Short { needed, present }),
        present if present > needed => Err(FrameError::Trailing(present - needed)),
        _ => Ok(()),
    }
}

/// Who listens, by name.
static LISTENERS: Mutex<BTreeMap<String, Weak<Door>>> = Mutex::new(BTreeMap::new());

struct Door {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    channels: VecDeque<Arc<dyn Channel>>,
    closed: bool,
}

impl Door {
    fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.channels.clear();
        drop(waiting);
        self.changed.notify_all();
    }
}

/// Listens under a name, which only one listener of the process has at a time.
///
/// # Errors
/// `AddrInUse` if somebody listens under the name.
pub fn listen(name: &str) -> io::Result<Box<dyn Listener>> {
    let mut listeners = LISTENERS.lock();
    if listeners.get(name).is_some_and(|door| door.upgrade().is_some_and(|door| !door.waiting.lock().closed))
    {
        return Err(ErrorKind::AddrInUse.into());
    }
    let door = Arc::new(Door { waiting: Mutex::new(Waiting::default()), changed: Condvar::new() });
    listeners.insert(name.to_owned(), Arc::downgrade(&door));
    Ok(Box::new(LocalListener { door, address: Address::Local(name.to_owned()) }))
}

/// Connects to who listens under a name. Never blocks.
///
/// # Errors
/// `ConnectionRefused` if nobody listens there or too many wait to be accepted.
pub fn dial(name: &str) -> io::Result<Arc<dyn Channel>> {
    let door = LISTENERS.lock().get(name).and_then(Weak::upgrade);
    let door = door.ok_or(ErrorKind::ConnectionRefused)?;
    let mut waiting = door.waiting.lock();
    if waiting.closed || waiting.channels.len() >= BACKLOG {
        return Err(ErrorKind::ConnectionRefused.into());
    }
    let (ours, theirs) = pair(name);
    waiting.channels.push_back(theirs);
    drop(waiting);
    door.changed.notify_all();
    Ok(ours)
}

struct LocalListener {
    door: Arc<Door>,
    address: Address,
}

impl Listener for LocalListener {
    fn accept(&self, wait: Wait) -> Result<Option<Arc<dyn Channel>>, ChannelError> {
        let mut waiting = self.door.waiting.lock();
        loop {
            if waiting.closed {
                return Err(ChannelError::Closed);
            }
            if let Some(channel) = waiting.channels.pop_front() {
                return Ok(Some(channel));
            }
            if !wait_for(&self.door.changed, &mut waiting, wait) {
                return Ok(None);
            }
        }
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn closer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let door = Arc::clone(&self.door);
        Arc::new(move || door.close())
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        self.door.close();
        if let Address::Local(name) = &self.address {
            let mut listeners = LISTENERS.lock();
            let own = listeners.get(name).is_some_and(|door| door.as_ptr() == Arc::as_ptr(&self.door));
            if own {
                listeners.remove(name);
            }
        }
    }
}
