//! Channels carry frames between two nodes. They know frames and deadlines, not message types.

use std::io::IoSlice;
use std::sync::Arc;

use crate::address::Address;
use crate::clock::Wait;

/// Who is at the other end, for people and logs; what a peer says of itself is checked by the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer(pub Address);

/// A channel ended, or the bytes on it make no sense. The connection is over in any case.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChannelError {
    /// Closed, by either side or by another thread here.
    #[error("the connection is closed")]
    Closed,
    /// Closed by the peer or the network in the middle of a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// The wait ended in the middle of a frame, so the connection was closed.
    #[error("the peer stopped in the middle of a frame")]
    Stalled,
    /// The bytes are no frame of ours.
    #[error(transparent)]
    Frame(#[from] crate::wire::frame::FrameError),
    /// The system's error.
    #[error("the connection failed: {0}")]
    Io(std::io::ErrorKind),
}

/// The buffer that a receiver owns and frames are lent from.
#[derive(Default)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
}

impl ReceiveBuffer {
    /// For channels that carry whole frames in buffers: takes one such frame, says whether another is waiting, and
    /// gives back the buffer of the frame before, to be used again.
    pub fn hold(&mut self, frame: Vec<u8>, _more: bool) -> Vec<u8> {
        std::mem::replace(&mut self.bytes, frame)
    }

    /// The frame lent last.
    pub fn lent(&self) -> &[u8] {
        &self.bytes
    }
}

/// A connection to one peer. One thread sends and one receives at a time; any thread may close.
pub trait Channel: Send + Sync {
    /// Sends one frame, header first, given in pieces. `false`: there was no room before `wait` ended, and nothing was
    /// sent. A wait that ends inside a frame closes the channel.
    ///
    /// # Errors
    /// [`ChannelError`]; `Frame` if the frame exceeds the channel's limit: then nothing was sent and the channel lives.
    fn send(&self, frame: &[IoSlice<'_>], wait: Wait) -> Result<bool, ChannelError>;

    /// The next frame, header and payload, lent from the caller's buffer, with its header checked and its length within
    /// the limit. `None`: `wait` ended.
    ///
    /// # Errors
    /// [`ChannelError`].
    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError>;

    /// Ends both directions at once, also for threads that are blocked in `send` or `receive`. Idempotent.
    fn close(&self);

    /// Sets the largest frame that may be sent or received from now on, as negotiated.
    fn limit_frames(&self, max_frame: u32);

    /// Who is at the other end.
    fn peer(&self) -> &Peer;
}

/// Accepts connections at one address.
pub trait Listener: Send {
    /// The next connection; `None`: `wait` ended.
    ///
    /// # Errors
    /// [`ChannelError`] when the listener is closed or failed for good; a single bad connection is not an error.
    fn accept(&self, wait: Wait) -> Result<Option<Arc<dyn Channel>>, ChannelError>;

    /// The address that others dial: with the real port, where port 0 was asked for.
    fn address(&self) -> &Address;

    /// What unblocks `accept` from another thread and ends it.
    fn closer(&self) -> Arc<dyn Fn() + Send + Sync>;
}
