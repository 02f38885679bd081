//! What a node counts: numbers that only rise, for people and their monitoring. No decision is taken by them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::policy::Outcome;

/// A number that rises. Cheap from any thread; readers see it a little late.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Adds this many.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What is counted, from the opening of a node on.
        #[derive(Default, Debug)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: Counter,)+ }

        /// The counters at one moment.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub struct Counted { $($(#[doc = $doc])+ pub $name: u64,)+ }

        impl Counters {
            /// The numbers now; each by itself, not all at one instant.
            pub fn snapshot(&self) -> Counted {
                Counted { $($name: self.$name.get(),)+ }
            }
        }

        impl Counted {
            /// Each number with its name and what it counts.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Entries appended by this node as master.
    appended_entries,
    /// Bytes of these entries, headers included.
    appended_bytes,
    /// Times that the log was flushed further.
    flushes,
    /// Frames sent to peers.
    frames_sent,
    /// Bytes of these frames.
    bytes_sent,
    /// Frames received from peers.
    frames_received,
    /// Bytes of these frames.
    bytes_received,
    /// Acks received from replicas, or sent to the master.
    acks,
    /// Commits that ended as committed.
    committed,
    /// Commits that ended as acked.
    acked,
    /// Commits that ended as degraded.
    degraded,
    /// Commits that ended with an unknown outcome.
    undecided,
    /// Connections made again after one had ended.
    reconnects,
    /// Times that the end of the log was cut off by order of a master.
    rollbacks,
    /// Damaged places found in the log.
    damage,
}

impl Counters {
    /// Counts what a writer was told; `None` is an error after the append.
    pub fn told(&self, outcome: Option<Outcome>) {
        match outcome {
            Some(Outcome::Committed) => &self.committed,
            Some(Outcome::Acked) => &self.acked,
            Some(Outcome::Degraded) => &self.degraded,
            None => &self.undecided,
        }
        .one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_counted_once() {
        let counters = Counters::default();
        for outcome in [Some(Outcome::Committed), Some(Outcome::Acked), Some(Outcome::Degraded), None] {
            counters.told(outcome);
        }
        counters.bytes_sent.add(7);
        let expected = Counted {
            committed: 1,
            acked: 1,
            degraded: 1,
            undecided: 1,
            bytes_sent: 7,
            ..Counted::default()
        };
        assert_eq!(counters.snapshot(), expected);
        assert!(expected.iter().any(|it| it == ("bytes_sent", "Bytes of these frames.", 7)));
    }
}
