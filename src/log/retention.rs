//! What may be removed from the log's beginning, and who still needs it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::ids::{TermSpan, Vlsn};
use crate::log::core::Core;
use crate::log::error::{Failed, IoFailure, PruneError};
use crate::log::format::sidecar_name;
use crate::log::segment::Segment;

/// Who needs which entries, by the number of the pin.
#[derive(Default)]
pub(super) struct Pins {
    next: u64,
    held: BTreeMap<u64, PinInfo>,
}

/// A pin, as [`Log::pins`](crate::log::Log::pins) lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinInfo {
    /// Who holds it.
    pub owner: String,
    /// The first entry that its owner needs.
    pub from: Vlsn,
}

/// Keeps entries from being pruned, until it is dropped. It does not bring back what was pruned before.
pub struct Pin {
    core: Arc<Core>,
    number: u64,
}

impl Pin {
    pub(super) fn new(core: Arc<Core>, owner: &str, from: Vlsn) -> Pin {
        let number = {
            let mut pins = core.pins.lock();
            pins.next += 1;
            let number = pins.next;
            pins.held.insert(number, PinInfo { owner: owner.to_owned(), from });
            number
        };
        Pin { core, number }
    }

    /// From now on only the entries from `to` on are needed. A pin never moves back.
    pub fn advance(&self, to: Vlsn) {
        if let Some(pin) = self.core.pins.lock().held.get_mut(&self.number) {
            pin.from = pin.from.max(to);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.core.pins.lock().held.remove(&self.number);
    }
}

/// What a prune did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pruned {
    /// The oldest entry that is left.
    pub oldest: Option<Vlsn>,
    /// Segments removed.
    pub segments: usize,
}

impl Core {
    pub(super) fn pins(&self) -> Vec<PinInfo> {
        self.pins.lock().held.values().cloned().collect()
    }

    pub(super) fn prune(&self, floor: Vlsn) -> Result<Pruned, PruneError> {
        // One at a time, and not beside a cut, which reads the directory.
        let mut leaving = self.leaving.lock();
        let mut segments = 0;
        loop {
            if self.is_poisoned() {
                return Err(PruneError::Poisoned);
            }
            // What an earlier call could not remove goes first: a hole behind it would make the log unreadable.
            let removed = leaving.take().or_else(|| {
                // Under the pins' lock, so that a pin either holds the segment or comes too late and is told.
                let pins = self.pins.lock();
                let floor = pins.held.values().map(|pin| pin.from).fold(floor, Vlsn::min);
                let mut catalog = self.catalog.lock();
                let removed = catalog.removable(floor);
                if let Some(segment) = &removed {
                    catalog.remove(segment.first);
                }
                removed
            });
            let Some(segment) = removed else { break };
            self.forget_entries();
            if let Err(error) = self.remove_files(&segment) {
                *leaving = Some(segment);
                return Err(error.into());
            }
            segments += 1;
        }
        Ok(Pruned { oldest: self.oldest(), segments })
    }

    pub(super) fn remove_files(&self, segment: &Segment) -> Result<(), IoFailure> {
        let dir = &self.config.dir;
        for path in [segment.path.clone(), dir.join(sidecar_name(segment.first))] {
            match self.disk.remove(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other.failed("remove", &path)?,
            }
        }
        // One by one: a crash must not bring an older segment back and leave a hole behind it.
        self.disk.sync_dir(dir).failed("sync", dir)
    }

    /// Drops the terms that no entry has any more, and the membership entries that are gone.
    fn forget_entries(&self) {
        let Some(oldest) = self.catalog.lock().oldest().map(|segment| segment.first) else { return };
        let mut stage = self.stage.lock();
        stage.memberships.retain(|at| *at >= oldest);
        let terms = &mut stage.terms;
        let begun = terms.partition_point(|span| span.first <= oldest).saturating_sub(1);
        terms.drain(..begun);
        if let Some(span) = terms.first_mut() {
            *span = TermSpan { term: span.term, first: span.first.max(oldest) };
        }
    }
}
