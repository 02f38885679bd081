//! Why a client got no answer.

use std::fmt;
use std::io;

use crate::address::Address;
use crate::channel::ChannelError;
use crate::wire::frame::MessageType;
use crate::wire::message::{RejectReason, WireError};

/// Why a client got no answer, or none that it could use.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// It was given no address.
    #[error("no address was given")]
    NoAddress,
    /// No node could be reached: nothing was sent to any.
    #[error("no node could be reached: {}", Listed(tried))]
    Unreachable {
        /// Who was tried, and what happened.
        tried: Vec<Unreached>,
    },
    /// It was sent, and no answer came: it may or may not have been done.
    #[error("{address} did not answer, and may or may not have done it: {why}")]
    Unanswered {
        /// By whom.
        address: Address,
        /// What happened.
        why: Why,
    },
    /// The node refused the connection: it did nothing.
    #[error("{address} refuses: {reason}")]
    Rejected {
        /// Which.
        address: Address,
        /// Why.
        reason: RejectReason,
    },
    /// The answer's bytes are none: it may or may not have been done.
    #[error("the answer of {address} can't be read: {error}")]
    BadAnswer {
        /// Whose.
        address: Address,
        /// What is wrong.
        error: WireError,
    },
    /// Something else was answered than was asked for: it may or may not have been done.
    #[error("{address} answers with {found}, which is no answer to what was asked")]
    OtherAnswer {
        /// Who.
        address: Address,
        /// The answer's type.
        found: MessageType,
    },
    /// It fits no frame: nothing was sent.
    #[error("it makes a frame of {len} bytes, and the connection allows {limit}")]
    TooLong {
        /// Bytes of the frame.
        len: u64,
        /// The limit.
        limit: u32,
    },
    /// A text of the order is longer or shorter than it may be: nothing was sent.
    #[error("{}", match len { 0 => format!("no {field} is named: give its name"), len => format!("the {field} has {len} bytes: give a shorter one") })]
    Misfit {
        /// Of what.
        field: &'static str,
        /// Its bytes.
        len: usize,
    },
    /// The time is up, and no node that was reached was the master.
    #[error("no master was found in time{}", Hinted(hint.as_ref()))]
    NoMaster {
        /// The master as a node named it last.
        hint: Option<Address>,
    },
}

impl ClientError {
    /// Whether what was asked for may have been done all the same.
    pub fn may_be_done(&self) -> bool {
        match self {
            ClientError::Unanswered { .. }
            | ClientError::BadAnswer { .. }
            | ClientError::OtherAnswer { .. } => true,
            ClientError::NoAddress
            | ClientError::Unreachable { .. }
            | ClientError::Rejected { .. }
            | ClientError::TooLong { .. }
            | ClientError::Misfit { .. }
            | ClientError::NoMaster { .. } => false,
        }
    }
}

/// A node that could not be reached.
#[derive(Clone, Debug)]
pub struct Unreached {
    /// Which.
    pub address: Address,
    /// What happened.
    pub why: Why,
}

/// What became of a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Why {
    /// The time was up.
    #[error("the time is up")]
    Late,
    /// No connection was made.
    #[error("can't connect: {0}")]
    Dial(io::ErrorKind),
    /// The connection ended.
    #[error(transparent)]
    Ended(ChannelError),
}

struct Listed<'a>(&'a [Unreached]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Unreached { address, why }) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{address} ({why})")?;
        }
        Ok(())
    }
}

struct Hinted<'a>(Option<&'a Address>);

impl fmt::Display for Hinted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, "; {hint} was named last"),
            None => Ok(()),
        }
    }
}
