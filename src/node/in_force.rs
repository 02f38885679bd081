//! Which member list is in force: the last one of the log, or of what the log stands on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ids::Term;
use crate::log::ScanError;
use crate::members::{Members, Role, Standing};
use crate::node::group::Shared;
use crate::worker::Stop;

impl Shared {
    /// Puts the last member list of the log in force.
    pub fn reload_members(&self) {
        let mut rolls = self.rolls.lock();
        self.reread.store(self.core.log.damages_healed(), Ordering::SeqCst);
        for vlsn in self.core.log.memberships().iter().rev() {
            let payload = match self.core.log.payload(*vlsn) {
                Err(ScanError::Damaged { .. }) if *rolls == Some(*vlsn) => return,
                // The log is being cut or replaced: whoever does that has the lists read again.
                Err(ScanError::Beyond { .. } | ScanError::Pruned { .. } | ScanError::LifeEnded) => return,
                // Until it is healed, the list before it tells whom to ask.
                Err(ScanError::Damaged { .. }) => continue,
                other => other.map_err(Stop::failed),
            };
            match payload.and_then(|payload| Members::decode(&payload).map_err(Stop::failed)) {
                Ok(members) => {
                    *rolls = Some(*vlsn);
                    self.roll.set(Arc::new(members));
                }
                Err(stop) => self.core.poison.strike(&stop),
            }
            return;
        }
        *rolls = None;
        if let Some(base) = &*self.base.lock() {
            // The log says nothing newer.
            self.roll.set(Arc::new(base.members.clone()));
            return;
        }
        // Before the first entry of the group: a founder knows whom it founded it with, and a newcomer nobody.
        let standing = self.election.state().state().standing;
        let founded = (standing == Standing::Full { since: Term::NONE }
            || matches!(standing, Standing::Damaged { .. }))
            && self.own.role != Role::Arbiter;
        self.roll.set(Arc::new(if founded { self.founders.clone() } else { Members::unknown() }));
    }

    /// Whether nothing of the log is known to be damaged, and the list in force was read since something was.
    pub fn is_whole(&self) -> bool {
        let log = &self.core.log;
        log.damaged().is_empty() && self.reread.load(Ordering::SeqCst) == log.damages_healed()
    }
}
