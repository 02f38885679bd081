//! The worker that removes what nobody needs any more, and gives up the claims of those who hold too much.

use std::sync::Weak;

use crate::clock::{Deadline, Wait};
use crate::ids::Vlsn;
use crate::log::{Extent, PinInfo, PruneError, Pruned};
use crate::node::Event;
use crate::node::group::Shared;
use crate::node::lead::WriteRefused;
use crate::node::slots::{SLOT, SlotRefused};
use crate::retention::{Decision, Inputs, Limits, decide, holds_up};
use crate::slots::Invalid;
use crate::watermark::rest;
use crate::worker::{Step, Stop, Worker};

/// The worker.
pub(super) struct Retention {
    node: Weak<Shared>,
    due: Deadline,
}

impl Retention {
    pub fn new(node: Weak<Shared>) -> Retention {
        Retention { node, due: Deadline::from_nanos(0) }
    }
}

impl Worker for Retention {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        let now = node.core.clock.now();
        if now >= self.due {
            node.retain(now);
            self.due = now + node.core.config.retention_every;
        }
        // Not while it sleeps: whoever drops the node waits for the last handle.
        drop(node);
        rest(wait.at_most(self.due));
        Ok(Step::Idle { due: self.due })
    }
}

impl Shared {
    /// One round.
    fn retain(&self, now: Deadline) {
        if self.core.poison.reason().is_some() {
            return;
        }
        if self.slots.lock().uncertain {
            return;
        }
        self.settle_slots();
        let owners = self.follow_owners(now);
        let segments = self.core.log.extents();
        let pins = self.judged_pins(&owners, now);
        // There is nothing to remove, nor anybody to get back what was taken from him.
        if segments.len() < 2 && pins.iter().all(|pin| !pin.void) {
            return;
        }
        let decision = self.decide(&segments, &pins, now);
        self.give_up(&pins, &decision.void);
        self.restate(decision.restate_members, decision.restate_slots);
        if let Err(error) = self.core.log.prune(decision.floor) {
            log::warn!("{}: the log was not pruned: {error}", self.own.id);
        }
    }

    /// Removes what nobody needs up to `floor`.
    pub fn prune(&self, floor: Vlsn) -> Result<Pruned, PruneError> {
        self.settle_slots();
        let log = &self.core.log;
        let floor = floor.min(Vlsn::after(Vlsn::new(self.core.apply.committed.get())));
        let [members, slots] = self.stated();
        let checkpointed = Vlsn::new(self.core.apply.checkpointed.get());
        let extents = log.extents();
        let needed = floor.min(Vlsn::after(checkpointed));
        let in_the_way = |at: Option<Vlsn>| at.is_some_and(|at| holds_up(&extents, at, needed));
        self.restate(in_the_way(members), in_the_way(slots));
        log.prune([members, slots].into_iter().flatten().fold(floor, Vlsn::min))
    }

    /// Where the last lists of members and slots stand that were in force where the engine is: a snapshot of it has to have
    /// them.
    fn stated(&self) -> [Option<Vlsn>; 2] {
        let apply = &self.core.apply;
        let settled = Vlsn::new(apply.committed.get().min(apply.checkpointed.get()));
        let log = &self.core.log;
        [log.memberships(), log.slot_lists()].map(|list| list.into_iter().rfind(|at| Some(*at) <= settled))
    }

    fn decide(&self, segments: &[Extent], pins: &[PinInfo], now: Deadline) -> Decision {
        let (core, config) = (&self.core, &self.core.config);
        let committed = Vlsn::new(core.apply.committed.get());
        let checkpointed = Vlsn::new(core.apply.checkpointed.get());
        let [members, slots] = self.stated();
        let free = core.host.disk.space(&config.dir).unwrap_or_else(|error| {
            log::warn!(
                "{}: it is not known how much room {} has: {error}",
                self.own.id,
                config.dir.display()
            );
            u64::MAX
        });
        decide(&Inputs {
            committed,
            checkpointed,
            members,
            slots,
            segments,
            pins,
            now,
            free,
            limits: Limits {
                keep_bytes: config.keep_bytes,
                pin_max_bytes: config.pin_max_bytes,
                pin_max_age: config.pin_max_age,
                disk_floor: config.disk_floor,
            },
        })
    }

    /// The pins, those of slots as they are to be judged here.
    fn judged_pins(&self, owners: &[(String, Vlsn)], now: Deadline) -> Vec<PinInfo> {
        let leads = self.lead().is_some();
        let mut pins = self.core.log.pins();
        for pin in &mut pins {
            let Some(name) = pin.owner.strip_prefix(SLOT) else { continue };
            let owner = owners.iter().find(|(slot, to)| slot == name && *to > pin.from);
            if let Some((_, to)) = owner {
                // It has come further than the list says.
                (pin.since, pin.bytes) = (now, self.core.log.bytes_after(to.previous()));
            } else if !leads {
                // Whether it asks for too much is the master's to say; how much room there is here is not.
                (pin.since, pin.bytes) = (now, 0);
            }
        }
        pins
    }

    fn give_up(&self, pins: &[PinInfo], void: &[(u64, Invalid)]) {
        let leads = self.lead().is_some();
        let mut slots: Vec<(String, Invalid)> = Vec::new();
        for pin in pins {
            let why = void.iter().find(|(number, _)| *number == pin.number).map(|(_, why)| *why);
            match (why, pin.owner.strip_prefix(SLOT)) {
                (Some(why), Some(name)) if leads => slots.push((name.to_owned(), why)),
                (Some(why), _) if !pin.void => self.let_go(pin, why),
                (None, _) if pin.void && self.core.log.take_back(pin.number) => {
                    log::info!("{}: the log is kept again for {}", self.own.id, pin.owner);
                }
                _ => {}
            }
        }
        if slots.is_empty() {
            return;
        }
        match self.invalidate_slots(&slots) {
            Ok(_) => {}
            Err(SlotRefused::Write(error @ WriteRefused::Append(_))) => {
                log::warn!("{}: slots are given up that could not be written down: {error}", self.own.id);
                // A log that takes nothing more is what giving them up is to prevent.
                let held = |pin: &&PinInfo| pin.owner.strip_prefix(SLOT).is_some() && !pin.void;
                for pin in pins.iter().filter(held) {
                    if let Some((_, why)) = void.iter().find(|(number, _)| *number == pin.number) {
                        self.let_go(pin, *why);
                    }
                }
            }
            Err(error) => log::debug!("{}: slots are not given up yet: {error}", self.own.id),
        }
    }

    fn let_go(&self, pin: &PinInfo, why: Invalid) {
        if self.core.log.give_up(pin.number) {
            let PinInfo { owner, from, .. } = pin.clone();
            log::warn!(
                "{}: the log is not kept for {owner} from VLSN {from} on any more: {why}",
                self.own.id
            );
            self.tell(Event::PinGivenUp { owner, from, why });
        }
    }

    /// Has the master write the lists anew that keep old segments; not again while the last ones are on their way.
    fn restate(&self, members: bool, slots: bool) {
        if self.lead().is_none_or(|lead| lead.committed() < Some(lead.start)) {
            return;
        }
        let log = &self.core.log;
        let [stated_members, stated_slots] = self.stated();
        if members
            && log.memberships().last().copied() == stated_members
            && let Err(error) = self.restate_members()
        {
            log::debug!("the member list was not written anew: {error}");
        }
        if slots
            && log.slot_lists().last().copied() == stated_slots
            && let Err(error) = self.restate_slots()
        {
            log::debug!("the list of slots was not written anew: {error}");
        }
    }
}
