//! One connection of a client to one node.

use std::io::IoSlice;
use std::sync::Arc;

use crate::address::Address;
use crate::channel::{Channel, ChannelError, ReceiveBuffer};
use crate::client::error::{ClientError, Why};
use crate::clock::Wait;
use crate::ids::Term;
use crate::runtime::Runtime;
use crate::wire::frame::FrameError;
use crate::wire::message::{Message, Reject, WireError};

/// A connection on which questions and answers alternate.
pub(super) struct Connection {
    address: Address,
    channel: Arc<dyn Channel>,
    buffer: ReceiveBuffer,
    scratch: Vec<u8>,
    /// The number of the next frame.
    sequence: u64,
}

/// Why something was not said: the node has not got it, and won't act on it.
pub(super) enum Unsaid {
    /// It fits no frame. The connection lives.
    TooLong { len: u64, limit: u32 },
    /// The connection is of no use any more.
    Failed(Why),
}

impl Connection {
    pub fn open(runtime: &dyn Runtime, address: &Address, wait: Wait) -> Result<Connection, Why> {
        let channel = match runtime.dial(address, wait) {
            Ok(Some(channel)) => channel,
            Ok(None) => return Err(Why::Late),
            Err(error) => return Err(Why::Dial(error.kind)),
        };
        Ok(Connection {
            address: address.clone(),
            channel,
            buffer: ReceiveBuffer::new(),
            scratch: Vec::new(),
            sequence: 0,
        })
    }

    pub fn say(&mut self, message: &Message<'_>, wait: Wait) -> Result<(), Unsaid> {
        message.encode(Term::NONE, self.sequence, &mut self.scratch);
        match self.channel.send(&[IoSlice::new(&self.scratch)], wait) {
            Ok(true) => {
                self.sequence += 1;
                Ok(())
            }
            Ok(false) => Err(Unsaid::Failed(Why::Late)),
            Err(ChannelError::Frame(FrameError::TooLong { len, limit })) => {
                Err(Unsaid::TooLong { len, limit })
            }
            Err(error) => Err(Unsaid::Failed(Why::Ended(error))),
        }
    }

    /// Ends the connection as a broken network would.
    #[cfg(test)]
    pub fn break_off(&self) {
        self.channel.close();
    }

    pub fn hear<T>(&mut self, wait: Wait, read: impl Fn(Message<'_>) -> Option<T>) -> Result<T, ClientError> {
        let address = || self.address.clone();
        let unanswered = |why| ClientError::Unanswered { address: address(), why };
        let frame = match self.channel.receive(&mut self.buffer, wait) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(unanswered(Why::Late)),
            Err(ChannelError::Frame(error)) => {
                return Err(ClientError::BadAnswer { address: address(), error: WireError::Frame(error) });
            }
            Err(error) => return Err(unanswered(Why::Ended(error))),
        };
        let message = match Message::decode(frame) {
            Ok((_, message)) => message,
            Err(error) => return Err(ClientError::BadAnswer { address: address(), error }),
        };
        match message {
            Message::Reject(Reject { reason }) => Err(ClientError::Rejected { address: address(), reason }),
            other => {
                let found = other.kind();
                read(other).ok_or_else(|| ClientError::OtherAnswer { address: address(), found })
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.channel.close();
    }
}
