//! Whole nodes: the parts put together.

mod archiver;
mod assemble;
mod core;
mod dispatch;
mod doubt;
mod engine_digest;
mod facade;
mod fetch;
mod group;
mod group_config;
mod handover;
mod install;
mod lacking;
mod lead;
mod master;
mod orders;
mod reception;
mod repair;
mod replica;
mod retention;
mod scrub;
mod slots;
mod snapshots;
mod source;
mod verify;

pub use self::core::{Answer, Host, NodeError, TokenError};
pub use facade::{Event, Node, ReadError, ReadTicket, Service};
pub use group_config::NodeConfig;
pub use handover::{ChangeRefused, Handover, TransferError};
pub use install::InstallError;
pub use lead::{WriteError, WriteRefused};
pub use master::Master;
pub use replica::Replica;
pub use slots::SlotRefused;
