//! The node's own log and engine as what feeders feed from.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::apply::ApplyState;
use crate::feeder::Source;
use crate::ids::{Position, Vlsn};
use crate::log::scanner::{LogScanner, ScanError};
use crate::log::{Log, Pin};
use crate::matchpoint::{BadHistory, History};
use crate::progress::Positions;
use crate::syncup::history_of;

pub(super) struct NodeSource {
    log: Log,
    apply: Arc<ApplyState>,
    pins: Mutex<BTreeMap<String, (Vlsn, Pin)>>,
}

impl NodeSource {
    pub fn new(log: Log, apply: Arc<ApplyState>) -> NodeSource {
        NodeSource { log, apply, pins: Mutex::default() }
    }
}

impl Source for NodeSource {
    fn scanner(&self) -> Box<dyn LogScanner> {
        Box::new(self.log.scanner())
    }

    fn last(&self) -> Option<Vlsn> {
        self.log.last().map(|last| last.vlsn)
    }

    fn history(&self) -> Result<History, BadHistory> {
        history_of(&self.log)
    }

    fn position_at(&self, vlsn: Vlsn) -> Result<Position, ScanError> {
        self.log.position_at(vlsn)
    }

    fn positions(&self) -> Positions {
        let life = self.log.life();
        // Read from the last to the first, so that what is read never contradicts itself.
        let checkpointed = self.apply.checkpointed.get();
        let applied = self.apply.applied.get();
        let durable = life.flushed.get();
        Positions {
            received: Vlsn::new(life.written.get()),
            durable: Vlsn::new(durable),
            applied: Vlsn::new(applied),
            checkpointed: Vlsn::new(checkpointed),
        }
    }

    fn committed(&self, vlsn: Vlsn) {
        self.log.note_committed(vlsn);
        self.apply.committed.advance(vlsn.get());
    }

    fn pin(&self, owner: &str, from: Vlsn) {
        let mut pins = self.pins.lock();
        match pins.get_mut(owner) {
            Some((at, pin)) if *at <= from => {
                pin.advance(from);
                *at = from;
            }
            // Further back than before: the owner lost what it had.
            Some(held) => *held = (from, self.log.pin(owner, from)),
            None => {
                pins.insert(owner.to_owned(), (from, self.log.pin(owner, from)));
            }
        }
    }

    fn unpin(&self, owner: &str) {
        self.pins.lock().remove(owner);
    }

    fn bytes_after(&self, after: Option<Vlsn>) -> u64 {
        self.log.bytes_after(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::disk::RealDisk;
    use crate::ids::GroupId;
    use crate::log::LogConfig;

    #[test]
    fn a_pin_moves_back_for_an_owner_that_lost_what_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        let source = NodeSource::new(log.clone(), Arc::new(ApplyState::new(None, None)));
        for from in [10, 12, 3, 4] {
            let from = Vlsn::new(from).unwrap();
            source.pin("a", from);
            assert_eq!(log.pins().iter().map(|pin| pin.from).collect::<Vec<_>>(), [from]);
        }
        source.unpin("a");
        assert!(log.pins().is_empty());
    }
}
