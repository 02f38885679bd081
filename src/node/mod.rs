//! Whole nodes: the parts put together.

mod core;
mod dispatch;
mod master;
mod replica;
mod source;

pub use self::core::{Answer, Host, NodeError, TokenError};
pub use master::{Master, WriteError, WriteRefused};
pub use replica::Replica;
