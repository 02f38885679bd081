//! Synchronous, thread-based log replication for blocking storage engines.
#![deny(missing_docs)]

pub mod address;
pub mod channel;
pub mod clock;
pub mod disk;
pub mod engine;
pub mod entry;
pub mod ids;
pub mod log;
pub mod members;
#[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "only the feature switches bugs on"))]
pub mod planted;
pub mod policy;
pub mod runtime;
pub mod state;
mod sync;
pub mod watermark;
pub mod wire;
pub mod worker;

pub use watermark::Watermark;
