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
}

impl Invalid {
    const ALL: [Invalid; 3] = [Invalid::Bytes, Invalid::Age, Invalid::Disk];

    pub(crate) const fn number(self) -> u8 {
        match self {
            Invalid::Bytes => 1,
            Invalid::Age => 2,
            Invalid::Disk => 3,
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

impl Slots {
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
}
