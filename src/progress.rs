//! What a feeder knows of its replica: how far it sent, and how far the replica says it came.
//!
//! `checkpointed ≤ applied ≤ received ≤ sent` and `durable ≤ received`. None of them falls while a connection lives; a
//! new connection starts with a new [`Progress`], at what the replica proved in the syncup. So nothing that was
//! acknowledged before a cut, a restart or a change of master can count afterwards.

use crate::ids::{Vlsn, number};
use crate::policy::Level;

/// How far one node has come; `None` is before the first entry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Positions {
    /// The last entry in its log.
    pub received: Option<Vlsn>,
    /// The last entry on its disk; at most `received`.
    pub durable: Option<Vlsn>,
    /// The last entry handed to its engine; at most `received`.
    pub applied: Option<Vlsn>,
    /// The last entry durable in its engine; at most `applied`.
    pub checkpointed: Option<Vlsn>,
}

impl Positions {
    /// Nothing yet.
    pub const NONE: Positions =
        Positions { received: None, durable: None, applied: None, checkpointed: None };

    /// The last entry that has come to this level *and to those below it*: an entry in an engine whose log still has
    /// to be flushed is not `Applied` for a quorum, because a level promises what the lower ones do.
    pub fn at(&self, level: Level) -> Option<Vlsn> {
        let durable = self.durable.min(self.received);
        match level {
            Level::Received => self.received,
            Level::Durable => durable,
            Level::Applied => durable.min(self.applied),
            Level::Checkpointed => durable.min(self.applied).min(self.checkpointed),
        }
    }

    /// Whether this is what an arbiter may say: it holds no data, and says what it has when it is on its disk.
    pub fn is_mark(&self) -> bool {
        self.received == self.durable && self.applied.is_none() && self.checkpointed.is_none()
    }

    /// The higher of the two in every field.
    #[must_use]
    pub fn max(self, other: Positions) -> Positions {
        Positions {
            received: self.received.max(other.received),
            durable: self.durable.max(other.durable),
            applied: self.applied.max(other.applied),
            checkpointed: self.checkpointed.max(other.checkpointed),
        }
    }
}

/// An ack that contradicts itself, what was sent, or an earlier ack. It ends the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AckError {
    /// It claims entries that were not sent.
    #[error("the replica acknowledges VLSN {} as received, but only {} was sent", number(*.received), number(*.sent))]
    AboveSent {
        /// What it claims.
        received: Option<Vlsn>,
        /// What was sent.
        sent: Option<Vlsn>,
    },
    /// One of its positions is above another that bounds it.
    #[error("the replica acknowledges VLSN {} as {level}, but only {} as {bound_level}", number(*.claimed), number(*.bound))]
    Disordered {
        /// The level of the position that is too high.
        level: Level,
        /// That position.
        claimed: Option<Vlsn>,
        /// The level that bounds it.
        bound_level: Level,
        /// The position there.
        bound: Option<Vlsn>,
    },
    /// It is an arbiter's, and claims more than a mark.
    #[error("the arbiter acknowledges VLSN {} as received and {} as durable: it has nothing but what is durable, and no engine", number(*.received), number(*.durable))]
    NoMark {
        /// What it claims to have received.
        received: Option<Vlsn>,
        /// What it claims to be durable.
        durable: Option<Vlsn>,
    },
    /// One of its positions is below what was acknowledged before on this connection.
    #[error("the replica acknowledges VLSN {} as {level}, after it had acknowledged {}", number(*.to), number(*.from))]
    Fell {
        /// The level of the position that fell.
        level: Level,
        /// What was acknowledged before.
        from: Option<Vlsn>,
        /// What is claimed now.
        to: Option<Vlsn>,
    },
}

/// How far one connection to a replica has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The last entry handed to the channel; never falls.
    sent: Option<Vlsn>,
    /// What the replica acknowledged; `positions.received ≤ sent`.
    positions: Positions,
}

impl Progress {
    /// A connection whose syncup ended at this matchpoint. The replica proved that it has the entries up to there, and
    /// has yet to say how many of them are on its disk.
    pub fn new(matched: Option<Vlsn>) -> Progress {
        Progress { sent: matched, positions: Positions { received: matched, ..Positions::NONE } }
    }

    /// The last entry handed to the channel.
    pub fn sent(&self) -> Option<Vlsn> {
        self.sent
    }

    /// What the replica acknowledged.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Notes that the entries up to `last` are being sent. To be called before they are handed to the channel, as the
    /// ack may come back at once.
    pub fn sending(&mut self, last: Vlsn) {
        assert!(Some(last) > self.sent, "a connection sends every entry once, in order");
        self.sent = Some(last);
    }

    /// Takes back what [`sending`](Progress::sending) noted, as the channel took nothing: the last entry sent is `sent`
    /// again.
    ///
    /// # Errors
    /// [`AckError::AboveSent`], if the replica acknowledged meanwhile what it can't have.
    pub fn not_sent(&mut self, sent: Option<Vlsn>) -> Result<(), AckError> {
        assert!(sent <= self.sent, "what was not sent is not taken back");
        self.sent = sent;
        match self.positions.received {
            received if received > sent => Err(AckError::AboveSent { received, sent }),
            _ => Ok(()),
        }
    }

    /// Takes an ack: whether any position rose.
    ///
    /// # Errors
    /// [`AckError`], and nothing is taken.
    pub fn acknowledge(&mut self, ack: Positions) -> Result<bool, AckError> {
        if ack.received > self.sent {
            return Err(AckError::AboveSent { received: ack.received, sent: self.sent });
        }
        for (level, claimed, bound_level, bound) in [
            (Level::Durable, ack.durable, Level::Received, ack.received),
            (Level::Applied, ack.applied, Level::Received, ack.received),
            (Level::Checkpointed, ack.checkpointed, Level::Applied, ack.applied),
        ] {
            if claimed > bound {
                return Err(AckError::Disordered { level, claimed, bound_level, bound });
            }
        }
        let before = self.positions;
        for (level, from, to) in [
            (Level::Received, before.received, ack.received),
            (Level::Durable, before.durable, ack.durable),
            (Level::Applied, before.applied, ack.applied),
            (Level::Checkpointed, before.checkpointed, ack.checkpointed),
        ] {
            if to < from {
                return Err(AckError::Fell { level, from, to });
            }
        }
        self.positions = ack;
        Ok(ack != before)
    }

    /// How many entries of a log that ends at `tip` the replica has yet to receive.
    pub fn lag_entries(&self, tip: Option<Vlsn>) -> u64 {
        number(tip).saturating_sub(number(self.positions.received))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positions([received, durable, applied, checkpointed]: [u64; 4]) -> Positions {
        let v = Vlsn::new;
        Positions {
            received: v(received),
            durable: v(durable),
            applied: v(applied),
            checkpointed: v(checkpointed),
        }
    }

    fn started(sent: u64) -> Progress {
        let mut progress = Progress::new(Vlsn::new(2));
        progress.sending(Vlsn::new(sent).unwrap());
        progress
    }

    #[test]
    fn acks_above_sent_are_refused() {
        let mut progress = started(5);
        let error = progress.acknowledge(positions([6, 0, 0, 0])).unwrap_err();
        assert_eq!(error.to_string(), "the replica acknowledges VLSN 6 as received, but only 5 was sent");
        assert_eq!(progress.positions().received, Vlsn::new(2), "nothing of it was taken");
    }

    #[test]
    fn acks_that_contradict_themselves_are_refused() {
        for bad in [[4, 5, 0, 0], [4, 0, 5, 0], [4, 0, 2, 3]] {
            let error = started(5).acknowledge(positions(bad)).unwrap_err();
            assert!(matches!(error, AckError::Disordered { .. }), "{bad:?}: {error}");
        }
    }

    #[test]
    fn an_ack_never_falls_on_one_connection() {
        let mut progress = started(5);
        assert_eq!(progress.acknowledge(positions([4, 4, 3, 3])), Ok(true));
        assert_eq!(progress.acknowledge(positions([4, 4, 3, 3])), Ok(false));
        for lower in [[3, 3, 3, 3], [4, 3, 3, 3], [4, 4, 2, 2], [4, 4, 3, 2]] {
            let error = progress.acknowledge(positions(lower)).unwrap_err();
            assert!(matches!(error, AckError::Fell { .. }), "{lower:?}: {error}");
        }
    }

    #[test]
    fn a_connection_starts_at_what_was_proved_and_nothing_of_it_is_durable_yet() {
        let progress = Progress::new(Vlsn::new(7));
        assert_eq!(progress.sent(), Vlsn::new(7));
        assert_eq!(progress.positions(), positions([7, 0, 0, 0]));
        assert_eq!(progress.lag_entries(Vlsn::new(10)), 3);
        assert_eq!(Progress::new(None).lag_entries(Vlsn::new(10)), 10);
    }

    #[test]
    fn an_entry_applied_ahead_of_its_flush_counts_for_no_higher_level() {
        let ahead = positions([9, 5, 8, 8]);
        assert_eq!(ahead.at(Level::Received), Vlsn::new(9));
        assert_eq!(ahead.at(Level::Applied), Vlsn::new(5));
        assert_eq!(ahead.at(Level::Checkpointed), Vlsn::new(5));
    }

    proptest! {
        #[test]
        fn exactly_the_consistent_acks_are_taken(acks in prop::collection::vec(prop::array::uniform4(0_u64..8), 0..20)) {
            let mut progress = Progress::new(None);
            let mut naive = [0_u64; 4];
            for (sent, ack) in (1_u64..).zip(acks) {
                progress.sending(Vlsn::new(sent).unwrap());
                let [received, durable, applied, checkpointed] = ack;
                let sound = received <= sent
                    && durable <= received
                    && applied <= received
                    && checkpointed <= applied
                    && ack.iter().zip(naive).all(|(new, old)| *new >= old);
                prop_assert_eq!(progress.acknowledge(positions(ack)).ok(), sound.then_some(ack != naive));
                if sound {
                    naive = ack;
                }
                prop_assert_eq!(progress.positions(), positions(naive));
            }
        }
    }
}
