//! The accept loop.

use crate::channel::Listener;
use crate::clock::{Deadline, Wait};
use crate::feeder::Feeders;
use crate::worker::{Step, Stop, Worker};

/// Hands every connection that comes in to the feeders, whose handshake has a deadline of its own.
pub(super) struct Dispatch {
    listener: Box<dyn Listener>,
    feeders: Feeders,
}

impl Dispatch {
    pub fn new(listener: Box<dyn Listener>, feeders: Feeders) -> Dispatch {
        Dispatch { listener, feeders }
    }
}

impl Worker for Dispatch {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        match self.listener.accept(wait) {
            Ok(Some(channel)) => {
                self.feeders.accept(channel, None);
                Ok(Step::Worked)
            }
            Ok(None) => Ok(Step::Idle { due: Deadline::NEVER }),
            Err(_closed) => Err(Stop::Done),
        }
    }
}
