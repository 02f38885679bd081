//! The base of a log that does not go back to its group's first entry: what the entries that are gone said of the group.

use crate::ids::{GroupId, Position, Term, TermSpan, Vlsn};
use crate::members::{BadMembership, Members};
use crate::slots::{BadSlots, Slots};

const MAGIC: [u8; 4] = *b"QBAS";
const VERSION: u8 = 1;
/// Magic, version, padding, CRC of all that follows.
const HEAD_LEN: usize = 12;

/// What stands before a log's first entry. It is carried by snapshots, and kept in the file `base` beside the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    /// The group.
    pub group: GroupId,
    /// The last entry that is gone: the engine's state is as of this one.
    pub at: Position,
    /// The members in force there.
    pub members: Members,
    /// The slots in force there.
    pub slots: Slots,
    /// Where each term began, up to there, as far as is known; ascending.
    pub history: Vec<TermSpan>,
}

/// A base carries the beginnings of so many terms, the latest: nobody agrees on a matchpoint before the base, and it has to
/// fit into a frame.
const MOST_TERMS: usize = 1024;

/// Where each term began up to `at`, of what an earlier base and the log behind it say.
pub fn history_up_to(
    at: Vlsn,
    before: Vec<TermSpan>,
    log: impl IntoIterator<Item = TermSpan>,
) -> Vec<TermSpan> {
    let mut history = before;
    for span in log.into_iter().filter(|span| span.first <= at) {
        if history.last().is_none_or(|last| last.term < span.term && last.first < span.first) {
            history.push(span);
        }
    }
    history.split_off(history.len().saturating_sub(MOST_TERMS))
}

/// Why bytes are no base.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBase {
    /// They begin with something else.
    #[error("these bytes are no base of a log")]
    NotOurs,
    /// A later version of this software wrote it.
    #[error("the base has format version {0}, and this software reads up to {VERSION}: upgrade it")]
    NewerVersion(u8),
    /// They are cut or damaged.
    #[error("the base is damaged: its checksum does not fit")]
    Damaged,
    /// The checksum fits, and a field makes no sense.
    #[error("the base's field {0} makes no sense")]
    Field(&'static str),
    /// The member list.
    #[error(transparent)]
    Members(#[from] BadMembership),
    /// The list of slots.
    #[error(transparent)]
    Slots(#[from] BadSlots),
}

impl Base {
    /// The bytes of the file, and of the field in SnapshotBegin.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.group.bits().to_le_bytes());
        body.extend_from_slice(&self.at.vlsn.get().to_le_bytes());
        body.extend_from_slice(&self.at.term.get().to_le_bytes());
        body.extend_from_slice(&self.at.crc.to_le_bytes());
        for list in [self.members.encode(), self.slots.encode()] {
            body.extend_from_slice(&(list.len() as u32).to_le_bytes());
            body.extend_from_slice(&list);
        }
        body.extend_from_slice(&(self.history.len() as u32).to_le_bytes());
        for span in &self.history {
            body.extend_from_slice(&span.term.get().to_le_bytes());
            body.extend_from_slice(&span.first.get().to_le_bytes());
        }
        let mut out = Vec::with_capacity(HEAD_LEN + body.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
        out.extend_from_slice(&body);
        out
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`BadBase`].
    pub fn decode(bytes: &[u8]) -> Result<Base, BadBase> {
        let (head, body) = bytes.split_first_chunk::<HEAD_LEN>().ok_or(BadBase::NotOurs)?;
        if head[..4] != MAGIC || head[4] == 0 || head[5..8] != [0; 3] {
            return Err(BadBase::NotOurs);
        }
        if head[4] > VERSION {
            return Err(BadBase::NewerVersion(head[4]));
        }
        if head[4] != VERSION || head[8..] != crc32fast::hash(body).to_le_bytes() {
            return Err(BadBase::Damaged);
        }
        let mut rest = body;
        let group = GroupId::from_bits(u128::from_le_bytes(take(&mut rest, "group")?));
        let vlsn = vlsn(&mut rest, "at.vlsn")?;
        let term = Term::new(u32::from_le_bytes(take(&mut rest, "at.term")?));
        let crc = u32::from_le_bytes(take(&mut rest, "at.crc")?);
        let members = Members::decode(list(&mut rest, "members")?)?;
        let slots = Slots::decode(list(&mut rest, "slots")?)?;
        let count = u32::from_le_bytes(take(&mut rest, "history")?);
        let mut history: Vec<TermSpan> = Vec::new();
        for _ in 0..count {
            let term = Term::new(u32::from_le_bytes(take(&mut rest, "history.term")?));
            let span = TermSpan { term, first: self::vlsn(&mut rest, "history.first")? };
            let rises = history.last().is_none_or(|last| last.term < span.term && last.first < span.first);
            if !rises || span.first > vlsn {
                return Err(BadBase::Field("history"));
            }
            history.push(span);
        }
        if !rest.is_empty() {
            return Err(BadBase::Field("end"));
        }
        Ok(Base { group, at: Position { vlsn, term, crc }, members, slots, history })
    }
}

fn take<const N: usize>(rest: &mut &[u8], field: &'static str) -> Result<[u8; N], BadBase> {
    let (taken, behind) = rest.split_first_chunk::<N>().ok_or(BadBase::Field(field))?;
    *rest = behind;
    Ok(*taken)
}

fn vlsn(rest: &mut &[u8], field: &'static str) -> Result<Vlsn, BadBase> {
    Vlsn::new(u64::from_le_bytes(take(rest, field)?)).ok_or(BadBase::Field(field))
}

fn list<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a [u8], BadBase> {
    let len = u32::from_le_bytes(take(rest, field)?) as usize;
    let (taken, behind) = rest.split_at_checked(len).ok_or(BadBase::Field(field))?;
    *rest = behind;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::NodeId;
    use crate::members::Member;

    #[test]
    fn a_base_carries_the_latest_terms_up_to_its_place_and_not_all_that_ever_were() {
        let span =
            |number: u64| TermSpan { term: Term::new(number as u32), first: Vlsn::new(number).unwrap() };
        let mut history = Vec::new();
        // Again and again a log begins with the last term of the base.
        for start in (1..20_000).step_by(100) {
            history = history_up_to(span(start + 100).first, history, (start..start + 200).map(span));
            let last = history.last().copied();
            assert_eq!(last, Some(span(start + 100)), "and no later one");
        }
        assert_eq!(history.len(), MOST_TERMS);
        assert!(history.windows(2).all(|two| two[1].term.get() == two[0].term.get() + 1));
    }

    #[test]
    fn a_base_round_trips_and_every_flip_and_cut_is_refused() {
        let v = |n| Vlsn::new(n).unwrap();
        let base = Base {
            group: GroupId::from_bits(7),
            at: Position { vlsn: v(90), term: Term::new(4), crc: 5 },
            members: Members::new(vec![Member::electable(NodeId::new("a").unwrap())]).unwrap(),
            slots: Slots::default(),
            history: vec![
                TermSpan { term: Term::new(1), first: v(1) },
                TermSpan { term: Term::new(4), first: v(60) },
            ],
        };
        let bytes = base.encode();
        assert_eq!(Base::decode(&bytes), Ok(base));
        for cut in 0..bytes.len() {
            assert!(Base::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Base::decode(&flipped).is_err(), "{bit}");
        }
    }
}
