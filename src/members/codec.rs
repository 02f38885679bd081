//! The bytes of a member list, as they stand in the payload of a membership entry (docs/format.md).

use std::io::{Cursor, Read};

use byteorder::ReadBytesExt;

use crate::ids::NodeId;
use crate::members::{Admission, BadMembers, Member, Members, Role};

const VERSION: u8 = 1;

/// Why a payload is no member list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadMembership {
    /// A later version of this software wrote it.
    #[error("the member list has format version {0}, and this software reads up to {VERSION}: upgrade it")]
    NewerVersion(u8),
    /// The bytes are no list.
    #[error("the bytes at offset {0} are no part of a member list")]
    Malformed(u64),
    /// The list makes no sense.
    #[error(transparent)]
    Bad(#[from] BadMembers),
}

impl Role {
    /// The number that stands for the role in entries and messages.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Role::Electable => 1,
            Role::Secondary => 2,
            Role::Arbiter => 3,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Role> {
        [Role::Electable, Role::Secondary, Role::Arbiter].into_iter().find(|role| role.number() == number)
    }
}

impl Members {
    /// The payload of a membership entry.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.0.len() as u8];
        for member in &self.0 {
            let admission = match member.admission {
                Admission::Learner => 0,
                Admission::Full => 1,
            };
            out.extend([member.role.number(), admission, member.priority]);
            let address = member.address.as_ref().map_or(String::new(), ToString::to_string);
            for text in [member.id.as_str(), &member.region, &address] {
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    /// Reads the payload of a membership entry.
    ///
    /// # Errors
    /// [`BadMembership`].
    pub fn decode(payload: &[u8]) -> Result<Members, BadMembership> {
        let mut from = Cursor::new(payload);
        let list = take(&mut from);
        match list {
            Some(Ok(list)) if from.position() == payload.len() as u64 => Ok(Members::new(list)?),
            Some(Err(newer)) => Err(newer),
            _ => Err(BadMembership::Malformed(from.position())),
        }
    }
}

fn take(from: &mut Cursor<&[u8]>) -> Option<Result<Vec<Member>, BadMembership>> {
    let version = from.read_u8().ok()?;
    if version > VERSION {
        return Some(Err(BadMembership::NewerVersion(version)));
    }
    let count = from.read_u8().ok()?;
    let mut list = Vec::new();
    for _ in 0..count {
        let role = Role::from_number(from.read_u8().ok()?)?;
        let admission = match from.read_u8().ok()? {
            0 => Admission::Learner,
            1 => Admission::Full,
            _ => return None,
        };
        let priority = from.read_u8().ok()?;
        let id = NodeId::new(&text(from)?).ok()?;
        let region = text(from)?;
        let address = match text(from)? {
            none if none.is_empty() => None,
            some => Some(some.parse().ok()?),
        };
        list.push(Member { id, role, admission, address, priority, region });
    }
    Some(Ok(list))
}

fn text(from: &mut Cursor<&[u8]>) -> Option<String> {
    let len = usize::from(from.read_u8().ok()?);
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_round_trips_and_damage_is_refused() {
        let id = |name| NodeId::new(name).unwrap();
        let list = vec![
            Member { address: Some("127.0.0.1:7001".parse().unwrap()), ..Member::electable(id("a")) },
            Member { role: Role::Arbiter, priority: 0, region: "west".into(), ..Member::electable(id("b")) },
            Member { admission: Admission::Learner, ..Member::electable(id("c")) },
        ];
        let members = Members::new(list).unwrap();
        let bytes = members.encode();
        assert_eq!(Members::decode(&bytes), Ok(members));
        for cut in 0..bytes.len() {
            assert!(Members::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Members::decode(&longer).is_err());
        assert_eq!(Members::decode(&[2, 0]), Err(BadMembership::NewerVersion(2)));
    }
}
