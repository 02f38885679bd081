//! The log: segment files, appended to by one writer, read through mappings.

pub mod mmap;
pub mod scanner;
