//! What TCP and Unix sockets share: frames over a stream socket, and accepting.

use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use socket2::{SockAddr, Socket};

use super::{Channel, ChannelError, Peer, ReceiveBuffer};
use crate::clock::{Wait, deadline_in};
use crate::wire::frame::{DEFAULT_MAX_FRAME, check_len};

/// The longest rest of a frame that the channel keeps for a sender that does not wait: that of any short message.
const MAX_TAIL: usize = 4 << 10;
/// Pieces handed to the system in one call when a frame is continued.
const PIECES: usize = 64;
/// How long accepting pauses when the process has no descriptors or memory left for a connection.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Frames over a connected stream socket.
pub(super) struct SocketChannel {
    socket: Socket,
    peer: Peer,
    closed: AtomicBool,
    max_frame: AtomicU32,
    /// The rest of a short frame of which the system took only a part. Held by the sender while it sends.
    tail: Mutex<Vec<u8>>,
    has_tail: AtomicBool,
}

impl SocketChannel {
    /// A channel over a connected socket, which is made non-blocking.
    pub(super) fn new(socket: Socket, peer: Peer) -> io::Result<SocketChannel> {
        socket.set_nonblocking(true)?;
        Ok(SocketChannel {
            socket,
            peer,
            closed: AtomicBool::new(false),
            max_frame: AtomicU32::new(DEFAULT_MAX_FRAME),
            tail: Mutex::new(Vec::new()),
            has_tail: AtomicBool::new(false),
        })
    }

    fn ended(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn fail<T>(&self, error: ChannelError) -> Result<T, ChannelError> {
        let error = if self.ended() { ChannelError::Closed } else { error };
        self.close();
        Err(error)
    }

    /// Hands as much of `slices`, from byte `sent` on, to the system as it takes. `None`: nothing for now.
    fn push(&self, slices: &[IoSlice<'_>], sent: usize) -> Result<Option<usize>, Errno> {
        let mut skip = sent;
        let mut at = 0;
        while at < slices.len() && skip >= slices[at].len() {
            skip -= slices[at].len();
            at += 1;
        }
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let count = (slices.len() - at).min(PIECES);
        for (piece, slice) in pieces.iter_mut().zip(&slices[at..]) {
            *piece = *slice;
        }
        pieces[0].advance(skip);
        let mut no_control = SendAncillaryBuffer::default();
        loop {
            match sendmsg(&self.socket, &pieces[..count], &mut no_control, SendFlags::NOSIGNAL) {
                Ok(taken) => return Ok(Some(taken)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends what is left of the frame before. `true`: nothing is left.
    fn push_tail(&self, tail: &mut Vec<u8>) -> Result<bool, Errno> {
        while !tail.is_empty() {
            match self.push(&[IoSlice::new(tail)], 0)? {
                Some(taken) => drop(tail.drain(..taken)),
                None => return Ok(false),
            }
        }
        self.has_tail.store(false, Ordering::Release);
        Ok(true)
    }

    fn send_failed<T>(&self, errno: Errno) -> Result<T, ChannelError> {
        self.fail(match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ChannelError::Closed,
            errno => ChannelError::Io(io::Error::from(errno).kind()),
        })
    }

    /// The wait ended after `sent` bytes: a short rest is kept for later, a long one ends the connection.
    fn cut(&self, frame: &[IoSlice<'_>], sent: usize, tail: &mut Vec<u8>) -> Result<bool, ChannelError> {
        let total: usize = frame.iter().map(|slice| slice.len()).sum();
        if sent == 0 {
            return Ok(false);
        }
        if total - sent > MAX_TAIL {
            return self.fail(ChannelError::Stalled);
        }
        let mut skip = sent;
        for slice in frame {
            let skipped = skip.min(slice.len());
            tail.extend_from_slice(&slice[skipped..]);
            skip -= skipped;
        }
        self.has_tail.store(true, Ordering::Release);
        Ok(true)
    }
}

impl Channel for SocketChannel {
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError> {
        let total: usize = frame.iter().map(|slice| slice.len()).sum();
        check_len(total as u64, self.max_frame.load(Ordering::Relaxed))?;
        let mut tail = self.tail.lock();
        let mut sent = 0;
        loop {
            if self.ended() {
                return Err(ChannelError::Closed);
            }
            let room = match self.push_tail(&mut tail) {
                Ok(room) => room,
                Err(errno) => return self.send_failed(errno),
            };
            while room && sent < total {
                match self.push(frame, sent) {
                    Ok(Some(taken)) => sent += taken,
                    Ok(None) => break,
                    Err(errno) => return self.send_failed(errno),
                }
            }
            if sent == total {
                return Ok(true);
            }
            match ready(&[(self.socket.as_fd(), PollFlags::OUT)], wait) {
                Ok(true) => {}
                Ok(false) => return self.cut(frame, sent, &mut tail),
                Err(errno) => return self.send_failed(errno),
            }
        }
    }

    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        buffer.advance();
        let max_frame = self.max_frame.load(Ordering::Relaxed);
        loop {
            if self.ended() {
                return Err(ChannelError::Closed);
            }
            match buffer.lend(max_frame) {
                Ok(true) => return Ok(Some(buffer.lent())),
                Ok(false) => {}
                Err(error) => return self.fail(error.into()),
            }
            match rustix::io::read(&self.socket, buffer.space(max_frame)) {
                Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => {
                    let inside = buffer.inside_frame();
                    return self.fail(if inside { ChannelError::Truncated } else { ChannelError::Closed });
                }
                Ok(len) => {
                    buffer.filled(len);
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(errno) => return self.fail(ChannelError::Io(io::Error::from(errno).kind())),
            }
            let mut events = PollFlags::IN;
            if self.has_tail.load(Ordering::Acquire)
                && let Some(mut tail) = self.tail.try_lock()
            {
                match self.push_tail(&mut tail) {
                    Ok(true) => {}
                    Ok(false) => events |= PollFlags::OUT,
                    Err(errno) => return self.send_failed(errno),
                }
            }
            match ready(&[(self.socket.as_fd(), events)], wait) {
                Ok(true) => {}
                // A part of a frame stays in the buffer for the next call.
                Ok(false) => return Ok(None),
                Err(errno) => return self.fail(ChannelError::Io(io::Error::from(errno).kind())),
            }
        }
    }

    fn close(&self) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            // It fails only if the connection is gone already.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
    }

    fn limit_frames(&self, max_frame: u32) {
        self.max_frame.store(max_frame, Ordering::Relaxed);
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }
}

/// Blocks until one of the descriptors is ready or `wait` ends (`false`). Allocates nothing.
pub(super) fn ready(on: &[(BorrowedFd<'_>, PollFlags)], wait: Wait) -> Result<bool, Errno> {
    let Some((first, events)) = on.first() else { return Ok(false) };
    loop {
        let left = wait.remaining();
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        let mut fds = [PollFd::new(first, *events), PollFd::new(first, PollFlags::empty())];
        if let Some((second, events)) = on.get(1) {
            fds[1] = PollFd::new(second, *events);
        }
        let used = on.len().min(fds.len());
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds[..used], timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

/// Connects a new socket. `false`: `wait` ended first.
pub(super) fn connect(socket: &Socket, to: &SockAddr, wait: Wait) -> io::Result<bool> {
    socket.set_nonblocking(true)?;
    match socket.connect(to) {
        Ok(()) => return Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    if !ready(&[(socket.as_fd(), PollFlags::OUT)], wait)? {
        return Ok(false);
    }
    match socket.take_error()? {
        None => Ok(true),
        Some(error) => Err(error),
    }
}

/// A listening socket that any thread can close.
pub(super) struct Acceptor {
    socket: Socket,
    closer: Arc<Closer>,
}

struct Closer {
    closed: AtomicBool,
    /// Readable once closed.
    event: OwnedFd,
}

impl Acceptor {
    /// Listens on a bound socket.
    pub(super) fn new(socket: Socket) -> io::Result<Acceptor> {
        socket.set_nonblocking(true)?;
        socket.listen(128)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Acceptor { socket, closer: Arc::new(Closer { closed: AtomicBool::new(false), event }) })
    }

    /// The next connection; `None`: `wait` ended.
    pub(super) fn accept(&self, wait: Wait) -> Result<Option<(Socket, SockAddr)>, ChannelError> {
        loop {
            if self.closer.closed.load(Ordering::SeqCst) {
                return Err(ChannelError::Closed);
            }
            let closer = (self.closer.event.as_fd(), PollFlags::IN);
            let waited = match self.socket.accept() {
                Ok(accepted) => return Ok(Some(accepted)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready(&[(self.socket.as_fd(), PollFlags::IN), closer], wait)
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        log::warn!("can't take in a connection now: {error}");
                        let pause = wait.at_most(deadline_in(SHORTAGE_PAUSE));
                        ready(&[closer], pause).map(|_| wait.remaining() != Some(Duration::ZERO))
                    }
                    Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::FAULT | Errno::OPNOTSUPP) => {
                        return Err(ChannelError::Io(error.kind()));
                    }
                    // The connection was broken before it was taken in.
                    _ => Ok(true),
                },
            };
            match waited {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(errno) => return Err(ChannelError::Io(io::Error::from(errno).kind())),
            }
        }
    }

    /// The listening socket.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Ends `accept`, from any thread.
    pub(super) fn closer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let closer = Arc::clone(&self.closer);
        Arc::new(move || {
            closer.closed.store(true, Ordering::SeqCst);
            // It fails only if the counter is full, and then it is readable as well.
            let _ = rustix::io::write(&closer.event, &1u64.to_ne_bytes());
        })
    }
}
