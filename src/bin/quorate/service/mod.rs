//! The key-value service that a node of the command offers over its port.

pub mod codec;
