//! Compression of the run of an Entries frame.
