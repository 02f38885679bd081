//! The fingerprint of a run.

use std::sync::atomic::{AtomicU64, Ordering};

/// A running hash over everything that happens, so that two runs can be told apart, or shown to be the same.
pub(super) struct Trace(AtomicU64);

impl Trace {
    pub(super) fn new(seed: u64) -> Trace {
        Trace(AtomicU64::new(seed ^ 0xcbf2_9ce4_8422_2325))
    }

    /// Takes these numbers into the hash. FNV-1a over whole words, with a rotation that brings high bits down.
    pub(super) fn note(&self, words: &[u64]) {
        let mut hash = self.hash();
        for word in words {
            hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        }
        self.0.store(hash, Ordering::Relaxed);
    }

    pub(super) fn note_bytes(&self, bytes: &[u8]) {
        self.note(&[u64::from(crc32fast::hash(bytes))]);
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
