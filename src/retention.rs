//! What of a log may be removed, and whose claims on it are given up: a pure decision.

use std::time::Duration;

use crate::clock::Deadline;
use crate::ids::Vlsn;
use crate::log::{ENGINE_PIN, Extent, PinInfo};
use crate::planted::{Bug, active};
use crate::slots::Invalid;

#[cfg(test)]
mod tests;

/// How much a node keeps for others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of log that stay though nobody needs them, while there is room.
    pub keep_bytes: u64,
    /// Bytes that one pin may keep.
    pub pin_max_bytes: u64,
    /// For how long a pin may stand still.
    pub pin_max_age: Duration,
    /// Bytes that are to stay free on the disk.
    pub disk_floor: u64,
}

/// What is known of a node and its log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inputs<'a> {
    /// How far the group has committed.
    pub committed: Option<Vlsn>,
    /// How far the engine has made durable what it applied.
    pub checkpointed: Option<Vlsn>,
    /// The last committed member list in the log.
    pub members: Option<Vlsn>,
    /// The last committed list of slots in the log.
    pub slots: Option<Vlsn>,
    /// The segments of the log, oldest first; the last one is written to.
    pub segments: &'a [Extent],
    /// Who needs what.
    pub pins: &'a [PinInfo],
    /// The time, by the log's clock.
    pub now: Deadline,
    /// Bytes that are free on the disk.
    pub free: u64,
    /// What is configured.
    pub limits: Limits,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Sealed segments all of whose entries lie below may be removed.
    pub floor: Vlsn,
    /// The pins that keep nothing, by number, and why. Those that were given up before and are not here may hold again.
    pub void: Vec<(u64, Invalid)>,
    /// The member list stands in a segment of which this node itself needs nothing else: it is to be written anew, or it
    /// would keep that segment everywhere.
    pub restate_members: bool,
    /// The same of the list of slots.
    pub restate_slots: bool,
}

/// Whether the pins of this owner are bounded: those of a replica, slot, archive or subscription, and of a node to which nobody
/// could give the snapshot that it needs. The engine's own, and that of a snapshot that is being given, hold as long as they
/// are there.
pub fn is_bounded(owner: &str) -> bool {
    let kind = owner.split(':').next().unwrap_or_default();
    matches!(kind, "replica" | "slot" | "archive" | "subscription" | "needs-snapshot")
}

/// Decides. What it lets go is below everything that is not committed, that the engine may ask for again, that states who
/// belongs to the group or which slots it has, and that a pin keeps which is not in `void`.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    let view = View { inputs, short: inputs.free < inputs.limits.disk_floor };
    let mut void = view.over_their_bounds();
    view.make_room(&mut void);
    let own = view.own_floor();
    // Whoever else needs that segment: on other nodes they may not, or give up, and the list is to be in nobody's way.
    let holds = |at: Option<Vlsn>| at.is_some_and(|at| holds_up(inputs.segments, at, own));
    let lists = [inputs.members, inputs.slots];
    Decision {
        floor: lists.into_iter().flatten().fold(view.floor(&void), Vlsn::min),
        void,
        restate_members: holds(inputs.members),
        restate_slots: holds(inputs.slots),
    }
}

/// Whether a list at `at` alone keeps a segment of which nobody needs anything before `floor`.
pub fn holds_up(segments: &[Extent], at: Vlsn, floor: Vlsn) -> bool {
    removable(segments, floor.min(at)) < removable(segments, floor)
}

/// How many segments could be removed.
fn removable(segments: &[Extent], floor: Vlsn) -> usize {
    let pairs = segments.windows(2);
    pairs.take_while(|pair| pair[0].sealed && pair[1].first <= floor).count()
}

struct View<'a> {
    inputs: &'a Inputs<'a>,
    /// The disk has too little room.
    short: bool,
}

impl View<'_> {
    /// Pins whose owners can't be served any more, or that ask for more than they may.
    fn over_their_bounds(&self) -> Vec<(u64, Invalid)> {
        let Inputs { segments, pins, now, limits, .. } = self.inputs;
        let oldest = segments.first().map_or(Vlsn::FIRST, |segment| segment.first);
        let newest = segments.last().map_or(Vlsn::FIRST, |segment| segment.first);
        let judged = pins.iter().filter(|pin| is_bounded(&pin.owner)).filter_map(|pin| {
            // What keeps only the segment that is written to costs nothing.
            let costs = pin.from < newest;
            let why = if pin.from < oldest {
                Invalid::Gone
            } else if costs && pin.bytes > limits.pin_max_bytes {
                Invalid::Bytes
            } else if costs && *now - pin.since > limits.pin_max_age {
                Invalid::Age
            } else {
                return None;
            };
            Some((pin.number, why))
        });
        judged.collect()
    }

    /// If the disk has too little room, gives pins up, those that keep most first: as few as make enough room, or, if
    /// nothing makes enough, as few as make all the room that there is to make.
    fn make_room(&self, void: &mut Vec<(u64, Invalid)>) {
        let room = |void: &[(u64, Invalid)]| self.room(self.floor(void));
        let enough = |room: u64| self.inputs.free.saturating_add(room) >= self.inputs.limits.disk_floor;
        if enough(room(void)) {
            return;
        }
        let is_void = |pin: &&PinInfo| void.iter().any(|(number, _)| *number == pin.number);
        let bounded = self.inputs.pins.iter().filter(|pin| is_bounded(&pin.owner));
        let mut candidates: Vec<&PinInfo> = bounded.filter(|pin| !is_void(pin)).collect();
        candidates.sort_by_key(|pin| (pin.from, pin.since, pin.number));
        let mut best = (room(void), void.len());
        let mut more = void.clone();
        for pin in candidates {
            more.push((pin.number, Invalid::Disk));
            let made = room(&more);
            if made > best.0 {
                best = (made, more.len());
            }
            if enough(made) {
                break;
            }
        }
        more.truncate(best.1);
        *void = more;
    }

    /// What the node itself needs begins here, the places of the lists not counted.
    fn own_floor(&self) -> Vlsn {
        let Inputs { committed, checkpointed, .. } = self.inputs;
        let checkpointed = if active(Bug::PruneBeyondCheckpoint) { committed } else { checkpointed };
        Vlsn::after((*committed).min(*checkpointed)).min(self.kept_anyway())
    }

    /// What anybody needs begins here, the places of the lists not counted, which can be others.
    fn floor(&self, void: &[(u64, Invalid)]) -> Vlsn {
        let pins = self.inputs.pins.iter();
        let ignored = |pin: &PinInfo| {
            active(Bug::PruneIgnoresSlots) && pin.owner.starts_with("slot:")
                || active(Bug::PruneBeyondCheckpoint) && pin.owner == ENGINE_PIN
        };
        let valid = pins.filter(|pin| void.iter().all(|(number, _)| *number != pin.number) && !ignored(pin));
        valid.map(|pin| pin.from).fold(self.own_floor(), Vlsn::min)
    }

    /// Where the bytes begin that stay though nobody needs them.
    fn kept_anyway(&self) -> Vlsn {
        let Inputs { committed, segments, limits, .. } = self.inputs;
        if self.short {
            // What nobody needs goes before what somebody needs.
            return Vlsn::after(*committed);
        }
        let mut bytes = 0;
        let newest_first = segments.iter().rev();
        let mut kept = newest_first.skip_while(|segment| {
            bytes += segment.bytes;
            bytes < limits.keep_bytes
        });
        kept.next().map_or(Vlsn::FIRST, |segment| segment.first)
    }

    /// How many segments could be removed.
    fn removable(&self, floor: Vlsn) -> usize {
        removable(self.inputs.segments, floor)
    }

    /// How many bytes that would make free.
    fn room(&self, floor: Vlsn) -> u64 {
        self.inputs.segments[..self.removable(floor)].iter().map(|segment| segment.bytes).sum()
    }
}
