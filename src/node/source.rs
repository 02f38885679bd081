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
    pins: Mutex<BTreeMap<String, Pin>>,
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
        match pins.get(owner) {
            Some(pin) => pin.advance(from),
            None => {
                pins.insert(owner.to_owned(), self.log.pin(owner, from));
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
