//! x
mod files;
mod kv;
fn main() {}
