//! Whole nodes: the parts put together.

mod assemble;
mod core;
mod dispatch;
mod doubt;
mod facade;
mod group;
mod group_config;
mod handover;
mod lead;
mod master;
mod orders;
mod reception;
mod repair;
mod replica;
mod scrub;
mod source;

pub use self::core::{Answer, Host, NodeError, TokenError};
pub use facade::{Event, Node, ReadError, ReadTicket, Service};
pub use group_config::NodeConfig;
pub use handover::{ChangeRefused, Handover, TransferError};
pub use lead::{WriteError, WriteRefused};
pub use master::Master;
pub use replica::Replica;
