//! The bytes of requests to the key-value service, and of its answers.
//!
//! Each begins with the version of this format and the number of its variant; the fields follow in the order in which
//! they stand here. Numbers are little-endian; a VLSN of 0 is none; a text or key has its length, a `u32`, before it; a
//! value takes the rest. Bytes that are left over, or missing, are refused. Frames carry a checksum, so there is none here.

use std::time::Duration;

use quorate::ids::number;
use quorate::policy::{Level, Policy, Quorum};
use quorate::{Address, Outcome, Term, Vlsn};

/// The version of this format.
pub const VERSION: u8 = 1;

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// How long the node may take. In whole milliseconds.
    pub patience: Duration,
    /// What is asked for.
    pub act: Act<'a>,
}

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act<'a> {
    /// Sets a key.
    Put {
        /// What the answer waits for.
        policy: Policy,
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// The value of a key, and its version.
    Get {
        /// Whether the node may answer from what it has, which may be old.
        stale: bool,
        /// The key.
        key: &'a [u8],
    },
    /// Sets a key if it has this version.
    Cas {
        /// The version; `None`: the key is not there.
        expected: Option<Vlsn>,
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// What the answer waits for.
        policy: Policy,
        /// The key.
        key: &'a [u8],
    },
    /// What became of a write whose answer was [`Answer::Unknown`].
    Ask {
        /// The term in which it was appended.
        term: Term,
        /// Its place.
        vlsn: Vlsn,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The write was done.
    Written {
        /// The key's new version; of a delete, the place of the delete.
        version: Vlsn,
        /// How safe it is.
        outcome: Outcome,
    },
    /// The key had another version than expected: nothing was written.
    Differs {
        /// The version that it had; `None`: it was not there.
        found: Option<Vlsn>,
    },
    /// The key's value.
    Found {
        /// Its version.
        version: Vlsn,
        /// The value.
        value: Vec<u8>,
    },
    /// The key is not there.
    Absent,
    /// The entry asked for is committed.
    Committed,
    /// The entry is gone, and will never be there: nothing was written.
    RolledBack,
    /// Nothing was done.
    Refused {
        /// Whether the same may go through later without anybody's help.
        temporary: bool,
        /// Why.
        why: String,
    },
    /// This node is not the master, and did nothing.
    NotMaster {
        /// Who is, as far as it knows.
        hint: Option<Address>,
    },
    /// The entry was appended, and may or may not be committed later. Ask again for this term and place.
    Unknown {
        /// The term.
        term: Term,
        /// The place.
        vlsn: Vlsn,
        /// Why it is not known.
        why: String,
    },
}

/// Why bytes are no request, or no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBytes {
    /// They end inside a field.
    #[error("they end inside the field {0}")]
    Short(&'static str),
    /// They go on behind the last field.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// A field has a value that it can't have.
    #[error("{found} is no value for the field {field}")]
    Value {
        /// The field.
        field: &'static str,
        /// The value.
        found: u64,
    },
    /// A text can't be read.
    #[error("the field {0} holds an unusable text")]
    Text(&'static str),
}

impl<'a> Request<'a> {
    /// The request's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put(vec![VERSION]);
        let millis = u32::try_from(self.patience.as_millis()).unwrap_or(u32::MAX);
        match self.act {
            Act::Put { policy, key, value } => {
                put.u8(1).u32(millis).policy(policy).bytes(key).rest(value);
            }
            Act::Get { stale, key } => {
                put.u8(2).u32(millis).u8(u8::from(stale)).bytes(key);
            }
            Act::Cas { expected, key, value } => {
                put.u8(3).u32(millis).vlsn(expected).bytes(key).rest(value);
            }
            Act::Delete { policy, key } => {
                put.u8(4).u32(millis).policy(policy).bytes(key);
            }
            Act::Ask { term, vlsn } => {
                put.u8(5).u32(millis).u32(term.get()).vlsn(Some(vlsn));
            }
        }
        put.0
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`BadBytes`].
    pub fn decode(bytes: &'a [u8]) -> Result<Request<'a>, BadBytes> {
        let mut take = Take(bytes);
        take.version()?;
        let kind = take.u8("act")?;
        let patience = Duration::from_millis(take.u32("patience")?.into());
        let act = match kind {
            1 => Act::Put { policy: take.policy()?, key: take.bytes("key")?, value: take.rest() },
            2 => Act::Get { stale: take.flag("stale")?, key: take.bytes("key")? },
            3 => Act::Cas { expected: take.vlsn("expected")?, key: take.bytes("key")?, value: take.rest() },
            4 => Act::Delete { policy: take.policy()?, key: take.bytes("key")? },
            5 => Act::Ask { term: Term::new(take.u32("term")?), vlsn: take.some_vlsn("vlsn")? },
            other => return Err(BadBytes::Value { field: "act", found: other.into() }),
        };
        take.end()?;
        Ok(Request { patience, act })
    }
}

impl Answer {
    /// The answer's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put(vec![VERSION]);
        match self {
            Answer::Written { version, outcome } => put.u8(1).vlsn(Some(*version)).u8(match outcome {
                Outcome::Committed => 1,
                Outcome::Acked => 2,
                Outcome::Degraded => 3,
            }),
            Answer::Differs { found } => put.u8(2).vlsn(*found),
            Answer::Found { version, value } => put.u8(3).vlsn(Some(*version)).rest(value),
            Answer::Absent => put.u8(4),
            Answer::Committed => put.u8(5),
            Answer::RolledBack => put.u8(6),
            Answer::Refused { temporary, why } => put.u8(7).u8(u8::from(*temporary)).bytes(why.as_bytes()),
            Answer::NotMaster { hint } => {
                let hint = hint.as_ref().map(Address::to_string).unwrap_or_default();
                put.u8(8).bytes(hint.as_bytes())
            }
            Answer::Unknown { term, vlsn, why } => {
                put.u8(9).u32(term.get()).vlsn(Some(*vlsn)).bytes(why.as_bytes())
            }
        };
        put.0
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`BadBytes`].
    pub fn decode(bytes: &[u8]) -> Result<Answer, BadBytes> {
        let mut take = Take(bytes);
        take.version()?;
        let answer = match take.u8("answer")? {
            1 => Answer::Written {
                version: take.some_vlsn("version")?,
                outcome: match take.u8("outcome")? {
                    1 => Outcome::Committed,
                    2 => Outcome::Acked,
                    3 => Outcome::Degraded,
                    other => return Err(BadBytes::Value { field: "outcome", found: other.into() }),
                },
            },
            2 => Answer::Differs { found: take.vlsn("found")? },
            3 => Answer::Found { version: take.some_vlsn("version")?, value: take.rest().to_vec() },
            4 => Answer::Absent,
            5 => Answer::Committed,
            6 => Answer::RolledBack,
            7 => Answer::Refused { temporary: take.flag("temporary")?, why: take.text("why")?.to_owned() },
            8 => Answer::NotMaster {
                hint: match take.text("hint")? {
                    "" => None,
                    hint => Some(hint.parse().map_err(|_| BadBytes::Text("hint"))?),
                },
            },
            9 => Answer::Unknown {
                term: Term::new(take.u32("term")?),
                vlsn: take.some_vlsn("vlsn")?,
                why: take.text("why")?.to_owned(),
            },
            other => return Err(BadBytes::Value { field: "answer", found: other.into() }),
        };
        take.end()?;
        Ok(answer)
    }
}

struct Put(Vec<u8>);

impl Put {
    fn u8(&mut self, value: u8) -> &mut Put {
        self.0.push(value);
        self
    }

    fn u32(&mut self, value: u32) -> &mut Put {
        self.rest(&value.to_le_bytes())
    }

    fn vlsn(&mut self, vlsn: Option<Vlsn>) -> &mut Put {
        self.rest(&number(vlsn).to_le_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Put {
        self.u32(bytes.len() as u32).rest(bytes)
    }

    fn rest(&mut self, bytes: &[u8]) -> &mut Put {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Its kind, its quorum with a number, its level, and a timeout in milliseconds; what a kind does not have is 0.
    fn policy(&mut self, policy: Policy) -> &mut Put {
        let level = |level| match level {
            Level::Received => 1,
            Level::Durable => 2,
            Level::Applied => 3,
            Level::Checkpointed => 4,
        };
        let (kind, count, level, millis) = match policy {
            Policy::Async => (1, 0, 0, 0),
            Policy::SemiSync { acks, level: at, timeout } => {
                (2, acks, level(at), u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))
            }
            Policy::Sync { quorum, level: at } => {
                let (kind, count) = match quorum {
                    Quorum::Acks(acks) => (3, acks),
                    Quorum::Majority => (4, 0),
                    Quorum::All => (5, 0),
                    Quorum::Regions(regions) => (6, regions),
                };
                (kind, count, level(at), 0)
            }
        };
        self.u8(kind).u8(count).u8(level).u32(millis)
    }
}

struct Take<'a>(&'a [u8]);

impl<'a> Take<'a> {
    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], BadBytes> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(BadBytes::Short(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BadBytes> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(BadBytes::Short(field))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn version(&mut self) -> Result<(), BadBytes> {
        match self.u8("version")? {
            VERSION => Ok(()),
            other => Err(BadBytes::Value { field: "version", found: other.into() }),
        }
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, BadBytes> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, BadBytes> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, BadBytes> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(BadBytes::Value { field, found: other.into() }),
        }
    }

    fn vlsn(&mut self, field: &'static str) -> Result<Option<Vlsn>, BadBytes> {
        self.array(field).map(u64::from_le_bytes).map(Vlsn::new)
    }

    fn some_vlsn(&mut self, field: &'static str) -> Result<Vlsn, BadBytes> {
        self.vlsn(field)?.ok_or(BadBytes::Value { field, found: 0 })
    }

    fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], BadBytes> {
        let len = self.u32(field)? as usize;
        self.take(len, field)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, BadBytes> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| BadBytes::Text(field))
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn policy(&mut self) -> Result<Policy, BadBytes> {
        let [kind, count, level] = self.array("policy")?;
        let millis = self.u32("timeout")?;
        let unused = |used: bool, field, found: u64| match found {
            0 => Ok(()),
            found if !used => Err(BadBytes::Value { field, found }),
            _ => Ok(()),
        };
        unused(matches!(kind, 2 | 3 | 6), "count", count.into())?;
        unused(kind != 1, "level", level.into())?;
        unused(kind == 2, "timeout", millis.into())?;
        if kind == 1 {
            return Ok(Policy::Async);
        }
        let level = match level {
            1 => Level::Received,
            2 => Level::Durable,
            3 => Level::Applied,
            4 => Level::Checkpointed,
            other => return Err(BadBytes::Value { field: "level", found: other.into() }),
        };
        let quorum = match kind {
            2 => {
                let timeout = Duration::from_millis(millis.into());
                return Ok(Policy::SemiSync { acks: count, level, timeout });
            }
            3 => Quorum::Acks(count),
            4 => Quorum::Majority,
            5 => Quorum::All,
            6 => Quorum::Regions(count),
            other => return Err(BadBytes::Value { field: "policy", found: other.into() }),
        };
        Ok(Policy::Sync { quorum, level })
    }

    fn end(&self) -> Result<(), BadBytes> {
        match self.0.len() {
            0 => Ok(()),
            extra => Err(BadBytes::Trailing(extra)),
        }
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
