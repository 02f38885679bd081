//! Slots: names under which the log is kept for somebody who is not always there. The list is part of the log.

use std::fmt;
use std::io::{Cursor, Read};

use byteorder::{LittleEndian, ReadBytesExt};

use crate::ids::Vlsn;

const VERSION: u8 = 1;
/// The longest name, in bytes.
pub const MAX_SLOT_NAME: usize = 64;

/// A slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// 1 to [`MAX_SLOT_NAME`] bytes.
    pub name: String,
    /// The first entry that its owner needs.
    pub from: Vlsn,
    /// When it was created, in microseconds since the epoch by the master's clock.
    pub created: u64,
    /// Why the log is not kept for it any more.
    pub invalid: Option<Invalid>,
}

/// Why a slot was given up. Its owner has to start from a snapshot, and to create it anew.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Invalid {
    /// It held more bytes than it may.
    Bytes,
    /// It had not moved for longer than it may.
    Age,
    /// The disk was nearly full.
    Disk,
    /// The master's log no longer reached back to what its owner needs: it had been given up there before, or the master had
    /// begun from a snapshot.
    Gone,
}

impl Invalid {
    const ALL: [Invalid; 4] = [Invalid::Bytes, Invalid::Age, Invalid::Disk, Invalid::Gone];

    pub(crate) const fn number(self) -> u8 {
        match self {
            Invalid::Bytes => 1,
            Invalid::Age => 2,
            Invalid::Disk => 3,
            Invalid::Gone => 4,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Invalid> {
        Invalid::ALL.into_iter().find(|why| why.number() == number)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Invalid::Bytes => "it held more of the log than it may",
            Invalid::Age => "it had not moved for longer than it may",
            Invalid::Disk => "the disk was nearly full",
            Invalid::Gone => "the log no longer reached back to it",
        })
    }
}

/// All slots of a group, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots(Vec<Slot>);

/// Why a list of slots is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadSlots {
    /// A later version of this software wrote it.
    #[error("the list of slots has format version {0}, and this software reads up to {VERSION}: upgrade it")]
    NewerVersion(u8),
    /// The bytes are no list.
    #[error("the bytes at offset {0} are no part of a list of slots")]
    Malformed(u64),
    /// Names repeat, are empty or too long, or there are too many slots.
    #[error("the slots have no proper names, or are more than {}", Slots::MAX)]
    Names,
}

/// Why a list of slots was not changed so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SlotError {
    /// There is one of this name.
    #[error("the slot {0:?} exists already")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no slot {0:?}")]
    Unknown(String),
    /// A name of no bytes, or of too many.
    #[error("{0:?} is no name of a slot: it has 1 to {MAX_SLOT_NAME} bytes")]
    Name(String),
    /// There are as many as there may be.
    #[error("there are {} slots, and no more are possible: drop one first", Slots::MAX)]
    TooMany,
    /// What it needs is gone.
    #[error("the log begins at VLSN {oldest}, after VLSN {from}: start from a snapshot")]
    Pruned {
        /// The first entry that was asked for.
        from: Vlsn,
        /// The first entry that there is.
        oldest: Vlsn,
    },
    /// It stands behind what was asked for already.
    #[error("the slot {name:?} stands at VLSN {at} and does not go back to {to}")]
    Backwards {
        /// The slot.
        name: String,
        /// Where it stands.
        at: Vlsn,
        /// Where it was to go.
        to: Vlsn,
    },
    /// There is no such entry yet.
    #[error("VLSN {asked} lies beyond VLSN {next}, the next one to be written or committed")]
    Beyond {
        /// Where the slot was to stand.
        asked: Vlsn,
        /// The furthest that it could.
        next: Vlsn,
    },
    /// It was given up before.
    #[error("the slot {name:?} was given up: {why}; start from a snapshot, drop it and create it anew")]
    Invalid {
        /// The slot.
        name: String,
        /// Why.
        why: Invalid,
    },
}

/// A change of a list of slots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotChange {
    /// A new slot.
    Create {
        /// Its name.
        name: String,
        /// The first entry that its owner needs.
        from: Vlsn,
        /// The time, in microseconds since the epoch.
        now: u64,
    },
    /// Its owner needs nothing before this entry any more.
    Move {
        /// The slot.
        name: String,
        /// The first entry that it needs.
        to: Vlsn,
    },
    /// Nobody needs it any more.
    Drop {
        /// The slot.
        name: String,
    },
}

impl Slots {
    /// The list after a change, in a log that begins at `oldest` and goes on, committed, at `next`.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn changed(&self, change: &SlotChange, oldest: Vlsn, next: Vlsn) -> Result<Slots, SlotError> {
        let mut list = self.0.clone();
        match change {
            SlotChange::Create { name, from, now } => {
                if !(1..=MAX_SLOT_NAME).contains(&name.len()) {
                    return Err(SlotError::Name(name.clone()));
                }
                if self.find(name).is_some() {
                    return Err(SlotError::Exists(name.clone()));
                }
                if list.len() == Slots::MAX {
                    return Err(SlotError::TooMany);
                }
                if *from < oldest {
                    return Err(SlotError::Pruned { from: *from, oldest });
                }
                if *from > next {
                    return Err(SlotError::Beyond { asked: *from, next });
                }
                list.push(Slot { name: name.clone(), from: *from, created: *now, invalid: None });
                list.sort_by(|a, b| a.name.cmp(&b.name));
            }
            SlotChange::Move { name, to } => {
                let slot = list.iter_mut().find(|slot| slot.name == *name);
                let slot = slot.ok_or_else(|| SlotError::Unknown(name.clone()))?;
                if let Some(why) = slot.invalid {
                    return Err(SlotError::Invalid { name: name.clone(), why });
                }
                if *to < slot.from {
                    return Err(SlotError::Backwards { name: name.clone(), at: slot.from, to: *to });
                }
                if *to > next {
                    return Err(SlotError::Beyond { asked: *to, next });
                }
                slot.from = *to;
            }
            SlotChange::Drop { name } => {
                self.find(name).ok_or_else(|| SlotError::Unknown(name.clone()))?;
                list.retain(|slot| slot.name != *name);
            }
        }
        Ok(Slots(list))
    }

    /// The list after its owners have come so far: a slot that is not there, or was given up, begins where its owner
    /// stands, as long as there is room for it and the log reaches back so far; none goes back.
    pub fn followed(&self, owners: &[(String, Vlsn)], oldest: Vlsn, now: u64) -> Slots {
        let mut slots = self.clone();
        for (name, to) in owners {
            match slots.0.iter_mut().find(|slot| slot.name == *name) {
                Some(slot) if slot.invalid.is_none() => slot.from = slot.from.max(*to),
                Some(slot) if *to >= oldest => {
                    *slot = Slot { name: name.clone(), from: *to, created: now, invalid: None };
                }
                Some(_) => {}
                None => {
                    let create = SlotChange::Create { name: name.clone(), from: *to, now };
                    slots = slots.changed(&create, oldest, *to).unwrap_or(slots);
                }
            }
        }
        slots
    }

    /// Whether an owner came further since this list was written at `at` than to the list itself, which it gets and acknowledges
    /// as any other entry: if that were news, a group at rest would write lists without end.
    pub fn behind(&self, owners: &[(String, Vlsn)], at: Option<Vlsn>) -> bool {
        owners.iter().filter_map(|(name, to)| Some((self.find(name)?, *to))).any(|(slot, to)| {
            let only_the_list = Some(slot.from) == at && to == slot.from.next();
            slot.from < to && !only_the_list
        })
    }

    /// The list without the claims of these.
    pub fn without(&self, given_up: &[(String, Invalid)]) -> Slots {
        let mut slots = self.clone();
        for slot in slots.0.iter_mut().filter(|slot| slot.invalid.is_none()) {
            slot.invalid = given_up.iter().find(|(name, _)| *name == slot.name).map(|(_, why)| *why);
        }
        slots
    }

    /// The most slots of a group.
    pub const MAX: usize = 64;

    /// A list, sorted by name.
    ///
    /// # Errors
    /// [`BadSlots::Names`].
    pub fn new(mut list: Vec<Slot>) -> Result<Slots, BadSlots> {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        let named = list.iter().all(|slot| (1..=MAX_SLOT_NAME).contains(&slot.name.len()));
        let twice = list.windows(2).any(|pair| pair[0].name == pair[1].name);
        if !named || twice || list.len() > Slots::MAX { Err(BadSlots::Names) } else { Ok(Slots(list)) }
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Slot> {
        self.0.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The slot of this name.
    pub fn find(&self, name: &str) -> Option<&Slot> {
        self.0.iter().find(|slot| slot.name == name)
    }

    /// The payload of an entry of kind SLOTS.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.0.len() as u8];
        for slot in &self.0 {
            out.push(slot.name.len() as u8);
            out.extend_from_slice(slot.name.as_bytes());
            out.extend_from_slice(&slot.from.get().to_le_bytes());
            out.extend_from_slice(&slot.created.to_le_bytes());
            out.push(slot.invalid.map_or(0, Invalid::number));
        }
        out
    }

    /// Reads the payload of an entry of kind SLOTS.
    ///
    /// # Errors
    /// [`BadSlots`].
    pub fn decode(payload: &[u8]) -> Result<Slots, BadSlots> {
        let mut from = Cursor::new(payload);
        match take(&mut from) {
            Some(Ok(list)) if from.position() == payload.len() as u64 => Slots::new(list),
            Some(Err(newer)) => Err(newer),
            _ => Err(BadSlots::Malformed(from.position())),
        }
    }
}

fn take(from: &mut Cursor<&[u8]>) -> Option<Result<Vec<Slot>, BadSlots>> {
    let version = from.read_u8().ok()?;
    if version > VERSION {
        return Some(Err(BadSlots::NewerVersion(version)));
    }
    let count = from.read_u8().ok()?;
    let mut list = Vec::new();
    for _ in 0..count {
        let mut name = vec![0; usize::from(from.read_u8().ok()?)];
        from.read_exact(&mut name).ok()?;
        list.push(Slot {
            name: String::from_utf8(name).ok()?,
            from: Vlsn::new(from.read_u64::<LittleEndian>().ok()?)?,
            created: from.read_u64::<LittleEndian>().ok()?,
            invalid: match from.read_u8().ok()? {
                0 => None,
                number => Some(Invalid::from_number(number)?),
            },
        });
    }
    Some(Ok(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_round_trips_and_damage_is_refused() {
        let slot = |name: &str, from, invalid| Slot {
            name: name.into(),
            from: Vlsn::new(from).unwrap(),
            created: 77,
            invalid,
        };
        let slots = Slots::new(vec![slot("b", 3, None), slot("a", 9, Some(Invalid::Age))]).unwrap();
        let bytes = slots.encode();
        assert_eq!(Slots::decode(&bytes), Ok(slots.clone()));
        assert_eq!(slots.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        for cut in 0..bytes.len() {
            assert!(Slots::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Slots::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert_eq!(Slots::decode(&[2, 0]), Err(BadSlots::NewerVersion(2)));
        assert_eq!(Slots::new(vec![slot("a", 1, None), slot("a", 2, None)]), Err(BadSlots::Names));
        assert_eq!(Slots::new(vec![slot("", 1, None)]), Err(BadSlots::Names));
    }

    #[test]
    fn a_list_changes_as_asked_and_refuses_the_rest() {
        let v = |number| Vlsn::new(number).unwrap();
        let create = |name: &str, from| SlotChange::Create { name: name.into(), from: v(from), now: 7 };
        let shift = |name: &str, to| SlotChange::Move { name: name.into(), to: v(to) };
        let drop = |name: &str| SlotChange::Drop { name: name.into() };
        let after = |slots: &Slots, change: &SlotChange| slots.changed(change, v(10), v(90));
        let none = Slots::default();
        let one = after(&none, &create("b", 10)).unwrap();
        let two = after(&one, &create("a", 90)).unwrap();
        assert_eq!(
            two.iter().map(|slot| (slot.name.as_str(), slot.from.get())).collect::<Vec<_>>(),
            [("a", 90), ("b", 10)]
        );
        assert_eq!(Slots::decode(&two.encode()), Ok(two.clone()));
        assert_eq!(after(&one, &create("b", 10)), Err(SlotError::Exists("b".into())));
        assert_eq!(after(&one, &create("", 10)), Err(SlotError::Name(String::new())));
        assert!(matches!(after(&one, &create("c", 9)), Err(SlotError::Pruned { .. })));
        assert!(matches!(after(&one, &create("c", 91)), Err(SlotError::Beyond { .. })));
        let many = (0..Slots::MAX).map(|n| Slot { name: n.to_string(), ..one.0[0].clone() }).collect();
        assert_eq!(after(&Slots::new(many).unwrap(), &create("c", 10)), Err(SlotError::TooMany));
        let moved = after(&two, &shift("b", 30)).unwrap();
        assert_eq!(moved.find("b").unwrap().from, v(30));
        assert_eq!(after(&moved, &shift("b", 30)), Ok(moved.clone()));
        let back = SlotError::Backwards { name: "b".into(), at: v(30), to: v(29) };
        assert_eq!(after(&moved, &shift("b", 29)), Err(back));
        assert!(matches!(after(&moved, &shift("b", 91)), Err(SlotError::Beyond { .. })));
        assert_eq!(after(&moved, &shift("c", 30)), Err(SlotError::Unknown("c".into())));
        assert_eq!(after(&moved, &drop("c")), Err(SlotError::Unknown("c".into())));
        assert_eq!(after(&two, &drop("a")), Ok(one.clone()));
        let given_up = one.without(&[("b".into(), Invalid::Age), ("z".into(), Invalid::Disk)]);
        assert_eq!(given_up.find("b").unwrap().invalid, Some(Invalid::Age));
        assert_eq!(given_up.without(&[("b".into(), Invalid::Disk)]), given_up, "the first reason stays");
        assert!(matches!(after(&given_up, &shift("b", 30)), Err(SlotError::Invalid { .. })));
    }

    #[test]
    fn slots_follow_their_owners_and_never_go_back() {
        let v = |number| Vlsn::new(number).unwrap();
        let at = |list: &[(&str, u64)]| -> Vec<(String, Vlsn)> {
            list.iter().map(|(name, from)| ((*name).to_owned(), v(*from))).collect()
        };
        let followed = |slots: &Slots, list: &[(&str, u64)]| slots.followed(&at(list), v(10), 8);
        let begun = followed(&Slots::default(), &[("a", 20), ("b", 9)]);
        assert_eq!(begun.len(), 1, "the log no longer has what b needs");
        let moved = followed(&begun, &[("a", 30)]);
        assert_eq!(moved.find("a").unwrap().from, v(30));
        assert_eq!(followed(&moved, &[("a", 29)]), moved);
        // What is written at 30 says that its owner needs 30: it gets that, and something else.
        let behind = |list: &[(&str, u64)], written| moved.behind(&at(list), Some(v(written)));
        assert!(!behind(&[("a", 30)], 30) && !behind(&[("a", 31)], 30) && behind(&[("a", 32)], 30));
        assert!(behind(&[("a", 31)], 29) && behind(&[("a", 41)], 40) && !behind(&[("a", 29), ("c", 50)], 40));
        let given_up = moved
            .without(&at(&[("a", 1)]).into_iter().map(|(name, _)| (name, Invalid::Age)).collect::<Vec<_>>());
        assert_eq!(followed(&given_up, &[("a", 9)]), given_up);
        let renewed = followed(&given_up, &[("a", 15)]);
        assert_eq!((renewed.find("a").unwrap().from, renewed.find("a").unwrap().invalid), (v(15), None));
    }
}
