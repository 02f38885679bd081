//! Frames and messages: the bytes between nodes.

pub mod frame;
