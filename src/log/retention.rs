//! What may be removed from the log's beginning, and who still needs it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Deadline;
use crate::ids::{TermSpan, Vlsn};
use crate::log::core::Core;
use crate::log::error::{Failed, IoFailure, PruneError};
use crate::log::format::sidecar_name;
use crate::log::segment::Segment;
use crate::planted::{Bug, active};

/// Who holds the pin of the engine: it keeps what is applied and not checkpointed.
pub(crate) const ENGINE_PIN: &str = "engine";

/// Who needs which entries, by the number of the pin.
#[derive(Default)]
pub(super) struct Pins {
    next: u64,
    held: BTreeMap<u64, Held>,
}

/// A pin, as [`Log::pins`](crate::log::Log::pins) lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinInfo {
    /// Tells it from others of the same owner.
    pub number: u64,
    /// Who holds it.
    pub owner: String,
    /// The first entry that its owner needs.
    pub from: Vlsn,
    /// Since when it holds that entry, by the log's clock. While the log has no such entry yet, since the last look.
    pub since: Deadline,
    /// About how many bytes of log there are from that entry on.
    pub bytes: u64,
    /// It keeps nothing any more: it was given up, or what its owner needs was gone when it came.
    pub void: bool,
}

/// A pin, as it is held.
struct Held {
    owner: String,
    from: Vlsn,
    since: Deadline,
    void: bool,
}

/// Keeps entries from being pruned, until it is dropped or [given up](crate::log::Log::give_up). It does not bring back what was
/// pruned before: [`holds`](Pin::holds) tells.
pub struct Pin {
    core: Arc<Core>,
    number: u64,
}

impl Pin {
    pub(super) fn new(core: Arc<Core>, owner: &str, from: Vlsn) -> Pin {
        let since = core.clock.now();
        let number = {
            let mut pins = core.pins.lock();
            pins.next += 1;
            let number = pins.next;
            // Under the pins' lock, under which segments leave the catalog.
            let void = core.begins_after(from);
            pins.held.insert(number, Held { owner: owner.to_owned(), from, since, void });
            number
        };
        Pin { core, number }
    }

    /// From now on only the entries from `to` on are needed. A pin never moves back.
    pub fn advance(&self, to: Vlsn) {
        let now = self.core.clock.now();
        if let Some(pin) = self.core.pins.lock().held.get_mut(&self.number)
            && to > pin.from
        {
            (pin.from, pin.since) = (to, now);
        }
    }

    /// The first entry that it keeps, or kept.
    pub fn from(&self) -> Vlsn {
        self.core.pins.lock().held.get(&self.number).map_or(Vlsn::FIRST, |pin| pin.from)
    }

    /// Whether everything from there on is in the log and stays: not if some of it was pruned before the pin was made, and
    /// not once it was given up.
    pub fn holds(&self) -> bool {
        self.core.pins.lock().held.get(&self.number).is_some_and(|pin| !pin.void)
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
        let (now, next) = (self.clock.now(), self.stage.lock().next());
        let listed: Vec<PinInfo> = {
            let mut pins = self.pins.lock();
            let list = pins.held.iter_mut().map(|(number, pin)| {
                if pin.from >= next {
                    // Whoever has everything holds nothing up, however long nothing comes.
                    pin.since = now;
                }
                let Held { owner, from, since, void } = &*pin;
                PinInfo {
                    number: *number,
                    owner: owner.clone(),
                    from: *from,
                    since: *since,
                    bytes: 0,
                    void: *void,
                }
            });
            list.collect()
        };
        let sized = listed.into_iter().map(|pin| PinInfo { bytes: self.bytes_from(pin.from), ..pin });
        sized.collect()
    }

    /// Whether the log's oldest entry, there or to come, stands behind `vlsn`.
    fn begins_after(&self, vlsn: Vlsn) -> bool {
        self.catalog.lock().oldest().is_some_and(|segment| segment.first > vlsn)
    }

    /// The log begins later now: whoever needs more than is there holds nothing. Not so the engine: it is replaced with the log,
    /// and its pin moves to where it stands then.
    pub(super) fn void_pins(&self) {
        let mut pins = self.pins.lock();
        for pin in pins.held.values_mut().filter(|pin| pin.owner != ENGINE_PIN) {
            pin.void |= self.begins_after(pin.from);
        }
    }

    /// Gives a pin up, or back what it asks for if all of that is still there. Returns whether that changed anything.
    pub(super) fn set_void(&self, number: u64, void: bool) -> bool {
        let mut pins = self.pins.lock();
        let Some(pin) = pins.held.get_mut(&number) else { return false };
        let changes = pin.void != void && (void || !self.begins_after(pin.from));
        if changes {
            pin.void = void;
        }
        changes
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
                let ignored = |pin: &Held| {
                    active(Bug::PruneIgnoresSlots) && pin.owner.starts_with("slot:")
                        || active(Bug::PruneBeyondCheckpoint) && pin.owner == ENGINE_PIN
                };
                let valid = pins.held.values().filter(|pin| !pin.void && !ignored(pin));
                let floor = valid.map(|pin| pin.from).fold(floor, Vlsn::min);
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

    /// Drops the terms that no entry has any more, and what was stated in entries that are gone.
    fn forget_entries(&self) {
        let Some(oldest) = self.catalog.lock().oldest().map(|segment| segment.first) else { return };
        let mut stage = self.stage.lock();
        stage.stated.forget_before(oldest);
        let terms = &mut stage.terms;
        let begun = terms.partition_point(|span| span.first <= oldest).saturating_sub(1);
        terms.drain(..begun);
        if let Some(span) = terms.first_mut() {
            *span = TermSpan { term: span.term, first: span.first.max(oldest) };
        }
    }
}
