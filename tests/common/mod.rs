//! What several test binaries share.

#![allow(dead_code, reason = "not every test binary uses all of it")]

pub mod channels;
