//! The payloads of the store's entries.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | operation: 1 put, 2 delete, 3 compare and set |
//! | 1 | 4 | length of the key, little-endian |
//! | 5 | n | key |
//! | 5 + n | 8 | compare and set only: the version expected, little-endian; 0: the key is not there |
//! | | rest | value; empty for a delete |

use quorate::ids::{Vlsn, number};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const CAS: u8 = 3;
const HEAD: usize = 5;
const VERSION: usize = 8;

/// One change of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// Sets a key.
    Put {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// Sets a key, if it has the version expected when the entry's turn comes.
    Cas {
        /// The key.
        key: &'a [u8],
        /// The version: the VLSN of the entry that wrote the value. `None`: the key is not there.
        expected: Option<Vlsn>,
        /// Its new value.
        value: &'a [u8],
    },
}

/// Why a payload is no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    /// Shorter than it says.
    #[error("the record is cut short: {present} bytes, {needed} needed")]
    Short {
        /// Bytes there.
        present: usize,
        /// Bytes that it needs.
        needed: usize,
    },
    /// An operation that is not known.
    #[error("the record has the unknown operation {0}")]
    Operation(u8),
    /// A delete with a value.
    #[error("a delete carries {0} bytes of value")]
    ValueOfDelete(usize),
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (operation, key, value): (u8, &[u8], &[u8]) = match *self {
            Record::Put { key, value } => (PUT, key, value),
            Record::Delete { key } => (DELETE, key, &[]),
            Record::Cas { key, value, .. } => (CAS, key, value),
        };
        out.push(operation);
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
        if let Record::Cas { expected, .. } = *self {
            out.extend_from_slice(&number(expected).to_le_bytes());
        }
        out.extend_from_slice(value);
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`BadRecord`].
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, BadRecord> {
        let short = |needed| BadRecord::Short { present: bytes.len(), needed };
        let Some((&[operation, a, b, c, d], rest)) = bytes.split_first_chunk::<HEAD>() else {
            return Err(short(HEAD));
        };
        let key_len = u32::from_le_bytes([a, b, c, d]) as usize;
        let (key, value) = rest.split_at_checked(key_len).ok_or_else(|| short(HEAD + key_len))?;
        match operation {
            PUT => Ok(Record::Put { key, value }),
            DELETE if value.is_empty() => Ok(Record::Delete { key }),
            DELETE => Err(BadRecord::ValueOfDelete(value.len())),
            CAS => {
                let needed = HEAD + key_len + VERSION;
                let (version, value) = value.split_first_chunk().ok_or_else(|| short(needed))?;
                Ok(Record::Cas { key, expected: Vlsn::new(u64::from_le_bytes(*version)), value })
            }
            other => Err(BadRecord::Operation(other)),
        }
    }
}
