//! Reading and writing the fields of messages.

use crate::address::Address;
use crate::ids::{NodeId, Position, Term, TermSpan, Vlsn, number};
use crate::members::Standing;
use crate::wire::frame::MessageType;
use crate::wire::message::{MAX_ADDRESS, MAX_SPANS, MAX_VLSN, WireError};

const SPAN_LEN: usize = 12;

/// Writes fields.
pub(super) struct Put<'a>(pub(super) &'a mut Vec<u8>);

impl Put<'_> {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(super) fn vlsn(&mut self, vlsn: Option<Vlsn>) {
        self.u64(number(vlsn));
    }

    pub(super) fn position(&mut self, at: Option<Position>) {
        self.vlsn(at.map(|at| at.vlsn));
        self.u32(at.map_or(0, |at| at.term.get()));
        self.u32(at.map_or(0, |at| at.crc));
    }

    pub(super) fn standing(&mut self, standing: Standing) {
        let (kind, at) = match standing {
            Standing::Newcomer => (0, 0),
            Standing::Doubtful { from } => (1, from.get()),
            Standing::Damaged { from, open, .. } => (if open { 4 } else { 3 }, from.get()),
            Standing::Full { since } => (2, u64::from(since.get())),
        };
        self.u8(kind);
        self.u64(at);
        if let Standing::Damaged { to, .. } = standing {
            self.u64(to.get());
        }
    }

    /// An address that is too long is left out.
    pub(super) fn address(&mut self, address: Option<&Address>) {
        let text = address.map(Address::to_string).filter(|text| text.len() <= MAX_ADDRESS);
        self.text(text.as_deref().unwrap_or(""), MAX_ADDRESS);
    }

    pub(super) fn text(&mut self, text: &str, limit: usize) {
        assert!(text.len() <= limit && limit <= 255, "a text of {} bytes; {limit} are allowed", text.len());
        self.u8(text.len() as u8);
        self.bytes(text.as_bytes());
    }
}

/// Reads fields off the front of a payload.
pub(super) struct Take<'a> {
    pub(super) kind: MessageType,
    pub(super) rest: &'a [u8],
}

impl<'a> Take<'a> {
    pub(super) fn short(&self, field: &'static str) -> WireError {
        WireError::Short { kind: self.kind, field }
    }

    pub(super) fn value(&self, field: &'static str, found: impl Into<u64>) -> WireError {
        WireError::Value { kind: self.kind, field, found: found.into() }
    }

    pub(super) fn bad_text(&self, field: &'static str, len: usize) -> WireError {
        WireError::Text { kind: self.kind, field, len }
    }

    pub(super) fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.short(field))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.short(field))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn numbered<T>(
        &mut self,
        field: &'static str,
        from: impl Fn(u8) -> Option<T>,
    ) -> Result<T, WireError> {
        let found = self.u8(field)?;
        from(found).ok_or_else(|| self.value(field, found))
    }

    pub(super) fn vlsn(&mut self, field: &'static str) -> Result<Option<Vlsn>, WireError> {
        match self.u64(field)? {
            found if found > MAX_VLSN => Err(self.value(field, found)),
            found => Ok(Vlsn::new(found)),
        }
    }

    pub(super) fn entry(&mut self, field: &'static str) -> Result<Vlsn, WireError> {
        self.vlsn(field)?.ok_or_else(|| self.value(field, 0u8))
    }

    pub(super) fn position(&mut self, field: &'static str) -> Result<Option<Position>, WireError> {
        let (vlsn, term, crc) = (self.vlsn(field)?, self.u32(field)?, self.u32(field)?);
        match vlsn {
            Some(vlsn) => Ok(Some(Position { vlsn, term: Term::new(term), crc })),
            None if term == 0 && crc == 0 => Ok(None),
            None => Err(self.value(field, term.max(crc))),
        }
    }

    pub(super) fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a str, WireError> {
        let len = usize::from(self.u8(field)?);
        if len > limit {
            return Err(self.bad_text(field, len));
        }
        let bytes = self.bytes(len, field)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad_text(field, len))
    }

    pub(super) fn standing(&mut self, field: &'static str) -> Result<Standing, WireError> {
        let (kind, at) = (self.u8(field)?, self.u64(field)?);
        match (kind, Vlsn::new(at), u32::try_from(at)) {
            (0, None, _) => Ok(Standing::Newcomer),
            (1, Some(from), _) if at <= MAX_VLSN => Ok(Standing::Doubtful { from }),
            (3 | 4, Some(from), _) if at <= MAX_VLSN => {
                Ok(Standing::Damaged { from, to: self.entry(field)?, open: kind == 4 })
            }
            (2, _, Ok(since)) => Ok(Standing::Full { since: Term::new(since) }),
            _ => Err(self.value(field, kind)),
        }
    }

    pub(super) fn address(&mut self, field: &'static str) -> Result<Option<Address>, WireError> {
        match self.text(field, MAX_ADDRESS)? {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| self.bad_text(field, text.len())),
        }
    }

    pub(super) fn node(&mut self, field: &'static str) -> Result<NodeId, WireError> {
        let text = self.text(field, NodeId::MAX_LEN)?;
        NodeId::new(text).map_err(|_| self.bad_text(field, text.len()))
    }

    pub(super) fn history(&mut self) -> Result<Vec<TermSpan>, WireError> {
        let count = self.u32("history")?;
        if count as usize > MAX_SPANS {
            return Err(self.value("history", count));
        }
        let mut bytes = self.bytes(count as usize * SPAN_LEN, "history")?;
        std::mem::swap(&mut self.rest, &mut bytes);
        let mut history: Vec<TermSpan> = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let span =
                TermSpan { term: Term::new(self.u32("history.term")?), first: self.entry("history.first")? };
            if history.last().is_some_and(|last| span.term <= last.term || span.first <= last.first) {
                return Err(self.value("history.first", span.first.get()));
            }
            history.push(span);
        }
        self.rest = bytes;
        Ok(history)
    }
}
