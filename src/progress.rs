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
        debug_assert!(Some(last) >= self.sent, "a connection sends every entry once, in order");
        self.sent = self.sent.max(Some(last));
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
