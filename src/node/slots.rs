//! The slots of a node: the lists that its log holds, what they keep, and how a master changes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Deadline;
use crate::commit::Ticket;
use crate::entry::EntryKind;
use crate::ids::{Term, Vlsn};
use crate::log::{Log, Pin, ScanError};
use crate::node::Event;
use crate::node::group::Shared;
use crate::node::lead::{Lead, WriteRefused};
use crate::slots::{Invalid, SlotChange, SlotError, Slots};
use crate::worker::Stop;

/// Why the slots were not changed. Nothing was written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SlotRefused {
    /// This node does not lead, or its log takes nothing.
    #[error(transparent)]
    Write(#[from] WriteRefused),
    /// The list does not allow it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The master's term has yet to prove itself.
    #[error("nothing of term {0} is committed yet; try again in a moment")]
    TermNotCommitted(Term),
    /// One change at a time.
    #[error("the list of slots at VLSN {0} is not committed yet; try again in a moment")]
    Pending(Vlsn),
}

impl SlotRefused {
    /// Whether the same change may go through later without anybody's help.
    pub fn is_temporary(&self) -> bool {
        match self {
            SlotRefused::Write(refused) => refused.is_temporary(),
            SlotRefused::Slot(_) => false,
            SlotRefused::TermNotCommitted(_) | SlotRefused::Pending(_) => true,
        }
    }
}

/// Lists of slots, each with the entry that holds it; none for the one in which the log begins.
type Lists = Vec<(Option<Vlsn>, Slots)>;

/// What a node knows of the slots.
#[derive(Default)]
pub(super) struct SlotBook {
    /// The last list that is known to be committed and those behind it, each with the entry that holds it; none for the
    /// list in which the log begins.
    lists: Vec<(Option<Vlsn>, Slots)>,
    /// What the lists keep: of each slot the earliest entry that one of them says its owner needs. Until a later list is
    /// committed, what it lets go may be needed again.
    pins: BTreeMap<String, Pin>,
    /// When this node last wrote a list for those who moved.
    moved: Option<Deadline>,
    /// A list of the log is damaged: what is to be kept is not known until that is healed.
    pub uncertain: bool,
}

impl SlotBook {
    /// The slots in force.
    pub fn in_force(&self) -> Slots {
        self.lists.last().map(|(_, slots)| slots.clone()).unwrap_or_default()
    }

    /// The slots as the group will know them whatever happens, until they are changed.
    fn committed(&self) -> Slots {
        self.lists.first().map(|(_, slots)| slots.clone()).unwrap_or_default()
    }

    /// The entry of the list in force.
    fn at(&self) -> Option<Vlsn> {
        self.lists.last().and_then(|(at, _)| *at)
    }

    /// Puts these lists in force, the first of which is committed. Returns which slots are invalid there for the first time.
    fn adopt(&mut self, lists: Vec<(Option<Vlsn>, Slots)>, log: &Log) -> Vec<(String, Invalid)> {
        let before = (!self.lists.is_empty()).then(|| self.committed());
        self.lists = lists;
        self.keep(log);
        let Some(before) = before else { return Vec::new() };
        let now = self.committed();
        let invalid = now.iter().filter_map(|slot| Some((slot.name.clone(), slot.invalid?)));
        // Also one that was made and given up since.
        invalid.filter(|(name, _)| before.find(name).is_none_or(|slot| slot.invalid.is_none())).collect()
    }

    /// Makes the pins what the lists say.
    fn keep(&mut self, log: &Log) {
        let mut needs: BTreeMap<&str, Vlsn> = BTreeMap::new();
        let oldest = Vlsn::after(log.base().map(|base| base.vlsn));
        let all = self.lists.iter().flat_map(|(_, slots)| slots.iter());
        for slot in all.filter(|slot| slot.invalid.is_none()) {
            let from = needs.entry(&slot.name).or_insert(slot.from);
            // What an earlier list asks for may be gone, if that was not known to be committed before the node was opened:
            // what a later one asks for is kept all the same.
            *from = if *from < oldest { slot.from.max(*from) } else { slot.from.min(*from) };
        }
        self.pins.retain(|name, _| needs.contains_key(name.as_str()));
        for (name, from) in needs {
            match self.pins.get(name) {
                Some(pin) if pin.from() <= from => pin.advance(from),
                _ => {
                    self.pins.insert(name.to_owned(), log.pin(&format!("{SLOT}{name}"), from));
                }
            }
        }
    }
}

/// The slot of the archive, so that whoever leads next still has what is not archived.
pub(super) const ARCHIVE: &str = "archive";
/// How the pins of slots are called.
pub(super) const SLOT: &str = "slot:";

impl Shared {
    fn committed_here(&self) -> Option<Vlsn> {
        Vlsn::new(self.core.apply.committed.get())
    }

    /// What is committed and on this node's disk: what lies behind that, a crash may take back here.
    pub(super) fn settled_here(&self) -> Option<Vlsn> {
        self.committed_here().min(Vlsn::new(self.core.log.life().flushed.get()))
    }

    /// Puts the last list of slots of the log in force, else that of the base that the log stands on.
    pub fn reload_slots(&self) {
        let mut book = self.slots.lock();
        let read = self.read_slots();
        book.uncertain = matches!(&read, Ok(None));
        match read {
            // What is kept so far stays.
            Ok(None) => {}
            Ok(Some(lists)) => {
                let invalid = book.adopt(lists, &self.core.log);
                drop(book);
                self.tell_invalid(invalid);
            }
            Err(stop) => {
                drop(book);
                self.core.poison.strike(&stop);
            }
        }
    }

    /// The lists that count; `None` if one of them can't be read now.
    fn read_slots(&self) -> Result<Option<Lists>, Stop> {
        let log = &self.core.log;
        let entries = log.slot_lists();
        let settled = entries.partition_point(|at| Some(*at) <= self.settled_here());
        let mut lists = Vec::new();
        if settled == 0 {
            lists.push((None, self.slots_of_the_base()));
        }
        for at in &entries[settled.saturating_sub(1)..] {
            let payload = match log.payload(*at) {
                // Damaged; or the log is being cut or replaced, and whoever does that has the lists read again.
                Err(
                    ScanError::Damaged { .. }
                    | ScanError::Beyond { .. }
                    | ScanError::Pruned { .. }
                    | ScanError::LifeEnded,
                ) => return Ok(None),
                other => other.map_err(Stop::failed)?,
            };
            lists.push((Some(*at), Slots::decode(&payload).map_err(Stop::failed)?));
        }
        Ok(Some(lists))
    }

    /// The slots that were in force where the log begins.
    fn slots_of_the_base(&self) -> Slots {
        self.base.lock().as_ref().map_or_else(Slots::default, |base| base.slots.clone())
    }

    fn tell_invalid(&self, slots: Vec<(String, Invalid)>) {
        for (name, why) in slots {
            log::warn!("{}: the log is not kept for slot {name:?} any more: {why}", self.own.id);
            self.tell(Event::SlotInvalid { name, why });
        }
    }

    /// Lets go of what only lists before the last committed one keep.
    pub fn settle_slots(&self) {
        let committed = self.settled_here();
        let mut book = self.slots.lock();
        let settled = book.lists.iter().rposition(|(at, _)| *at <= committed).unwrap_or(0);
        if settled == 0 {
            return;
        }
        let lists = book.lists.split_off(settled);
        let invalid = book.adopt(lists, &self.core.log);
        drop(book);
        self.tell_invalid(invalid);
    }

    /// The slots in force.
    pub fn slots_in_force(&self) -> Slots {
        self.slots.lock().in_force()
    }

    /// Creates a slot, for entries from `from` on, or from the next one on.
    pub fn create_slot(&self, name: &str, from: Option<Vlsn>) -> Result<Ticket, SlotRefused> {
        let name = name.to_owned();
        let next = Vlsn::after(self.core.log.last().map(|last| last.vlsn));
        let from = from.unwrap_or(next);
        let change = SlotChange::Create { name, from, now: self.core.clock.wall_micros() };
        self.change_slots(|slots, oldest| slots.changed(&change, oldest, next))
    }

    /// Changes or drops a slot.
    pub fn change_slot(&self, change: &SlotChange) -> Result<Ticket, SlotRefused> {
        let next = Vlsn::after(self.committed_here());
        self.change_slots(|slots, oldest| slots.changed(change, oldest, next))
    }

    /// Writes the present list again, so that the log before it can be pruned.
    pub fn restate_slots(&self) -> Result<Ticket, SlotRefused> {
        self.change_slots(|slots, _| Ok(slots.clone()))
    }

    /// Has the master give slots up. They hold until that is committed.
    pub fn invalidate_slots(&self, given_up: &[(String, Invalid)]) -> Result<Ticket, SlotRefused> {
        self.change_slots(|slots, _| Ok(slots.without(given_up)))
    }

    fn change_slots(
        &self,
        change: impl FnOnce(&Slots, Vlsn) -> Result<Slots, SlotError>,
    ) -> Result<Ticket, SlotRefused> {
        let lead = self.lead().ok_or_else(|| WriteRefused::NotMaster { hint: self.master_hint() })?;
        let mut book = self.slots.lock();
        self.may_change_slots(&lead, &book)?;
        let slots = change(&book.in_force(), self.oldest())?;
        self.write_slots(&lead, &mut book, slots)
    }

    /// The oldest entry of the log, there or to come.
    fn oldest(&self) -> Vlsn {
        Vlsn::after(self.core.log.base().map(|base| base.vlsn))
    }

    fn may_change_slots(&self, lead: &Arc<Lead>, book: &SlotBook) -> Result<(), SlotRefused> {
        let committed = lead.committed();
        if committed < Some(lead.start) {
            return Err(SlotRefused::TermNotCommitted(lead.term));
        }
        if lead.hands_over() {
            return Err(WriteRefused::HandingOver.into());
        }
        match book.at() {
            Some(pending) if Some(pending) > committed => Err(SlotRefused::Pending(pending)),
            _ => Ok(()),
        }
    }

    /// One step, as the book is locked: a cut that takes the entry away again puts the list before it in force afterwards.
    fn write_slots(&self, lead: &Lead, book: &mut SlotBook, slots: Slots) -> Result<Ticket, SlotRefused> {
        let payload = slots.encode();
        // First what it keeps: nothing of that may go between the entry and the pin.
        book.lists.push((None, slots));
        book.keep(&self.core.log);
        let late = book.in_force().iter().find_map(|slot| {
            let known = book.committed().find(&slot.name).is_some_and(|slot| slot.invalid.is_none());
            let gone =
                !known && slot.invalid.is_none() && book.pins.get(&slot.name).is_none_or(|pin| !pin.holds());
            gone.then_some(slot.from)
        });
        let written = match late {
            Some(from) => Err(SlotError::Pruned { from, oldest: self.oldest() }.into()),
            None => lead.append_own(EntryKind::SLOTS, &payload).map_err(SlotRefused::from),
        };
        match &written {
            Ok(ticket) => {
                let at = ticket.token.vlsn;
                if let Some((place, _)) = book.lists.last_mut() {
                    *place = Some(at);
                }
                log::info!("{}: the slots change at VLSN {at}", self.own.id);
            }
            Err(_) => {
                book.lists.pop();
                book.keep(&self.core.log);
            }
        }
        written
    }

    /// What a master does for slots whose owners are connected: writes down how far they have come. Returns what they need
    /// now, which may be more than the list says.
    pub fn follow_owners(&self, now: Deadline) -> Vec<(String, Vlsn)> {
        let Some(lead) = self.lead() else { return Vec::new() };
        let mut owners = lead.feeders.slot_owners();
        if let Some(own) = &self.core.config.slot {
            // A master may be away later, too.
            let needs = Vlsn::after(Vlsn::new(self.core.log.life().flushed.get()));
            match owners.iter_mut().find(|(name, _)| name == own) {
                Some((_, least)) => *least = needs.min(*least),
                None => owners.push((own.clone(), needs)),
            }
        }
        let archived = self.archive.as_ref().and_then(|archive| archive.needs());
        if let Some(needs) = archived {
            owners.retain(|(name, _)| name != ARCHIVE);
            owners.push((ARCHIVE.to_owned(), needs));
        }
        let mut book = self.slots.lock();
        lead.feeders.leave_to_slots(&book.committed());
        if self.may_change_slots(&lead, &book).is_err() {
            return owners;
        }
        let slots = book.in_force();
        // A slot is made, also in the place of one that was given up, when its owner lacks little: or it would be given up
        // again at once, and made again.
        let (config, log) = (&self.core.config, &self.core.log);
        let little = |name: &str| match name {
            // An archive that is new here begins far back.
            ARCHIVE => config.pin_max_bytes / 2,
            _ => config.segment_bytes.min(config.pin_max_bytes / 2),
        };
        let has_one = |name: &str| slots.find(name).is_some_and(|slot| slot.invalid.is_none());
        let served = owners
            .iter()
            .filter(|(name, to)| has_one(name) || log.bytes_after(to.previous()) <= little(name))
            .cloned()
            .collect::<Vec<_>>();
        let followed = slots.followed(&served, self.oldest(), self.core.clock.wall_micros());
        let valid = |slots: &Slots| slots.iter().filter(|slot| slot.invalid.is_none()).count();
        let moved = slots.behind(&served, book.at());
        let due = book.moved.is_none_or(|last| now >= last + self.core.config.slot_every);
        if valid(&followed) > valid(&slots) || (moved && due) {
            match self.write_slots(&lead, &mut book, followed) {
                Ok(_) => book.moved = Some(now),
                Err(error) => log::debug!("the list of slots was not written: {error}"),
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::disk::RealDisk;
    use crate::ids::GroupId;
    use crate::log::LogConfig;

    fn v(number: u64) -> Vlsn {
        Vlsn::new(number).unwrap()
    }

    fn slots(list: &[(&str, u64)]) -> Slots {
        let none = Slots::default();
        list.iter().fold(none, |slots, (name, from)| {
            let create = SlotChange::Create { name: (*name).into(), from: v(*from), now: 0 };
            slots.changed(&create, v(1), v(*from)).unwrap()
        })
    }

    #[test]
    fn a_list_that_asks_for_what_is_gone_lets_nothing_go_that_a_later_one_keeps() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        log.reset(crate::ids::Position { vlsn: v(50), term: Term::new(1), crc: 7 }).unwrap();
        let mut book = SlotBook::default();
        book.adopt(vec![(Some(v(60)), slots(&[("a", 30)])), (Some(v(70)), slots(&[("a", 60)]))], &log);
        let pin = log.pins().remove(0);
        assert_eq!((pin.from, pin.void), (v(60), false));
        book.adopt(vec![(Some(v(60)), slots(&[("a", 30)]))], &log);
        assert!(log.pins().remove(0).void, "all that is asked for is gone");
    }

    #[test]
    fn a_list_that_is_cut_off_gives_back_what_it_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        let kept = || log.pins().into_iter().map(|pin| (pin.owner, pin.from.get())).collect::<Vec<_>>();
        let pins = |list: &[(&str, u64)]| {
            list.iter().map(|(name, from)| (format!("slot:{name}"), *from)).collect::<Vec<_>>()
        };
        let mut book = SlotBook::default();
        let first = (Some(v(5)), slots(&[("a", 3), ("b", 4)]));
        assert_eq!(book.adopt(vec![first.clone()], &log), []);
        assert_eq!(kept(), pins(&[("a", 3), ("b", 4)]));
        // Not committed: a moved, b was dropped, c is new.
        let second = (Some(v(9)), slots(&[("a", 8), ("c", 9)]));
        book.adopt(vec![first.clone(), second.clone()], &log);
        assert_eq!(kept(), pins(&[("a", 3), ("b", 4), ("c", 9)]));
        assert_eq!(book.in_force(), second.1);
        // It is cut off.
        book.adopt(vec![first.clone()], &log);
        assert_eq!((kept(), book.in_force()), (pins(&[("a", 3), ("b", 4)]), first.1.clone()));
        // It comes again, and is committed.
        book.adopt(vec![first, second.clone()], &log);
        book.adopt(vec![second.clone()], &log);
        assert_eq!(kept(), pins(&[("a", 8), ("c", 9)]));
        // Only what was valid before is told to be invalid now.
        let third = second.1.without(&[("a".into(), Invalid::Age)]);
        let told = vec![("a".to_owned(), Invalid::Age)];
        assert_eq!(book.adopt(vec![second, (Some(v(12)), third.clone())], &log), [], "not committed yet");
        assert_eq!(kept(), pins(&[("a", 8), ("c", 9)]));
        assert_eq!(book.adopt(vec![(Some(v(12)), third.clone())], &log), told);
        assert_eq!(kept(), pins(&[("c", 9)]));
        assert_eq!(book.adopt(vec![(Some(v(15)), third)], &log), []);
        drop(book);
        assert_eq!(kept(), pins(&[]));
    }
}
