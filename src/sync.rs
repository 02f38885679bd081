//! The primitives that waiting is built from, in one place, so that tests/model.rs can compile the same waiting code
//! against shuttle's primitives and explore its interleavings.

pub(crate) use parking_lot::Mutex;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::thread::{Thread, current, park, park_timeout};
pub(crate) use std::thread_local;
