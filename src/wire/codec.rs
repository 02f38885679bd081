//! The bytes of the messages: each message's fields in the order of docs/protocol.md, written and read side by side.

use std::time::Duration;

use crate::address::Address;
use crate::ids::{GroupId, NodeId, Position, Term, TermSpan, Vlsn, number};
use crate::members::{Health, Role};
use crate::wire::frame::{ENTRIES_PREFIX_LEN, FrameHeader, HEADER_LEN, MessageType, payload_crc};
use crate::wire::message::*;

/// Bytes that stand before the run in an Entries frame: the header and the payload's fixed part.
pub const ENTRIES_HEAD_LEN: usize = HEADER_LEN + ENTRIES_PREFIX_LEN;

const SPAN_LEN: usize = 12;

/// The bytes of an Entries frame that stand before its run of `run_len` bytes, so that the run can be sent from where
/// it is.
///
/// # Panics
/// If the run is longer than 2^32 - 33 bytes, which no limit on frames allows.
pub fn encode_entries_head(
    term: Term,
    sequence: u64,
    head: &EntriesHead,
    run_len: usize,
) -> [u8; ENTRIES_HEAD_LEN] {
    let prefix = entries_prefix(head);
    let header = FrameHeader {
        kind: MessageType::Entries,
        compressed: false,
        payload_len: payload_len(ENTRIES_PREFIX_LEN + run_len),
        term,
        sequence,
        payload_crc: crc32fast::hash(&prefix),
    };
    let mut bytes = [0; ENTRIES_HEAD_LEN];
    bytes[..HEADER_LEN].copy_from_slice(&header.encode());
    bytes[HEADER_LEN..].copy_from_slice(&prefix);
    bytes
}

/// The fixed part of an Entries payload.
pub(super) fn entries_prefix(head: &EntriesHead) -> [u8; ENTRIES_PREFIX_LEN] {
    let mut prefix = [0; ENTRIES_PREFIX_LEN];
    let fields = [
        number(head.committed),
        number(head.durable_wanted),
        number(head.applied_wanted),
        head.first.get(),
        head.last.get(),
    ];
    for (place, field) in prefix.chunks_exact_mut(8).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    prefix
}

pub(super) fn payload_len(len: usize) -> u32 {
    match u32::try_from(len) {
        Ok(len) => len,
        Err(_) => panic!("a payload of {len} bytes fits no frame"),
    }
}

impl Message<'_> {
    /// Replaces what is in `out` by the message's frame, header and payload. Allocates only if `out` is too small.
    ///
    /// # Panics
    /// If a text or a list is longer than this module's limits, or an optional slot name is empty: callers check their
    /// configuration first.
    pub fn encode(&self, term: Term, sequence: u64, out: &mut Vec<u8>) {
        out.clear();
        out.resize(HEADER_LEN, 0);
        put_message(self, &mut Put(out));
        let kind = self.kind();
        let header = FrameHeader {
            kind,
            compressed: false,
            payload_len: payload_len(out.len() - HEADER_LEN),
            term,
            sequence,
            payload_crc: payload_crc(kind, false, &out[HEADER_LEN..]),
        };
        out[..HEADER_LEN].copy_from_slice(&header.encode());
    }
}

impl<'a> Message<'a> {
    /// Reads the message in a whole frame. Never panics, whatever the bytes, and allocates no more than the payload has
    /// bytes (a term history's spans take 16 bytes for 12).
    ///
    /// # Errors
    /// [`WireError`]; `Compressed` for an Entries frame that has to be expanded first.
    pub fn decode(frame: &'a [u8]) -> Result<(FrameHeader, Message<'a>), WireError> {
        let (header, payload) = FrameHeader::open(frame)?;
        if header.compressed {
            return Err(WireError::Compressed);
        }
        let mut take = Take { kind: header.kind, rest: payload };
        let message = take_message(&mut take)?;
        if !take.rest.is_empty() {
            return Err(WireError::Trailing { kind: header.kind, extra: take.rest.len() });
        }
        Ok((header, message))
    }
}

fn put_message(message: &Message<'_>, put: &mut Put<'_>) {
    match message {
        Message::Hello(m) => {
            put.u8(m.versions.0);
            put.u8(m.versions.1);
            put.u8(role_number(m.role));
            put.bytes(&m.group.bits().to_le_bytes());
            put.u64(m.incarnation);
            put.u64(m.session);
            put.u32(m.capabilities.bits());
            put.u32(m.max_frame);
            put.position(m.last);
            put.text(m.node.as_str(), NodeId::MAX_LEN);
            put.text(&m.region, MAX_TEXT);
            let slot = m.slot.as_deref().unwrap_or("");
            assert!(m.slot.is_none() || !slot.is_empty(), "a slot has a name");
            put.text(slot, MAX_TEXT);
        }
        Message::Welcome(m) => {
            put.u8(m.version);
            put.u64(m.incarnation);
            put.u64(m.session);
            put.u32(m.capabilities.bits());
            put.u32(m.max_frame);
            put.u64(u64::try_from(m.heartbeat.as_micros()).unwrap_or(u64::MAX));
            put.text(m.node.as_str(), NodeId::MAX_LEN);
        }
        Message::Reject(m) => put_reject(&m.reason, put),
        Message::Syncup(m) => {
            put.position(m.last);
            put.vlsn(m.committed);
            assert!(m.history.len() <= MAX_SPANS, "a term history of {} spans", m.history.len());
            put.u32(m.history.len() as u32);
            for span in &m.history {
                put.u32(span.term.get());
                put.u64(span.first.get());
            }
        }
        Message::Matchpoint(m) => put.position(m.at),
        Message::NeedSnapshot(m) => put.vlsn(m.oldest),
        Message::Behind(m) => put.vlsn(m.last),
        Message::Entries(m) => {
            put.bytes(&entries_prefix(&m.head()));
            put.bytes(m.run);
        }
        Message::EntryRequest(m) => {
            put.u64(m.from.get());
            put.u64(m.to.get());
            put.u32(m.max_entries);
            put.u32(m.max_bytes);
        }
        Message::Ack(m) => {
            put.vlsn(m.received);
            put.vlsn(m.durable);
            put.vlsn(m.applied);
            put.vlsn(m.checkpointed);
        }
        Message::Nack(m) => {
            put.u8(m.reason.number());
            put.vlsn(m.at);
        }
        Message::Heartbeat(m) => {
            put.vlsn(m.written);
            put.vlsn(m.flushed);
            put.vlsn(m.committed);
            put.vlsn(m.durable_wanted);
            put.vlsn(m.applied_wanted);
            put.u64(m.clock);
            put.u8(health_number(m.health));
        }
        Message::HeartbeatReply(m) => {
            put.u64(m.clock);
            put.u8(health_number(m.health));
        }
        Message::Fence => {}
        Message::Bye(m) => put.u8(m.reason.number()),
    }
}

fn take_message<'a>(take: &mut Take<'a>) -> Result<Message<'a>, WireError> {
    Ok(match take.kind {
        MessageType::Hello => {
            let versions = (take.u8("versions.min")?, take.u8("versions.max")?);
            if versions.0 > versions.1 {
                return Err(take.value("versions.min", versions.0));
            }
            Message::Hello(Hello {
                versions,
                role: take.numbered("role", role_from)?,
                group: GroupId::from_bits(u128::from_le_bytes(take.array("group")?)),
                incarnation: take.u64("incarnation")?,
                session: take.u64("session")?,
                capabilities: Capabilities::from_bits(take.u32("capabilities")?),
                max_frame: take.u32("max_frame")?,
                last: take.position("last")?,
                node: take.node("node")?,
                region: take.text("region", MAX_TEXT)?.to_owned(),
                slot: Some(take.text("slot", MAX_TEXT)?).filter(|s| !s.is_empty()).map(str::to_owned),
            })
        }
        MessageType::Welcome => Message::Welcome(Welcome {
            version: take.u8("version")?,
            incarnation: take.u64("incarnation")?,
            session: take.u64("session")?,
            capabilities: Capabilities::from_bits(take.u32("capabilities")?),
            max_frame: take.u32("max_frame")?,
            heartbeat: Duration::from_micros(take.u64("heartbeat")?),
            node: take.node("node")?,
        }),
        MessageType::Reject => Message::Reject(Reject { reason: take_reject(take)? }),
        MessageType::Syncup => Message::Syncup(Syncup {
            last: take.position("last")?,
            committed: take.vlsn("committed")?,
            history: take.history()?,
        }),
        MessageType::Matchpoint => Message::Matchpoint(Matchpoint { at: take.position("at")? }),
        MessageType::NeedSnapshot => Message::NeedSnapshot(NeedSnapshot { oldest: take.vlsn("oldest")? }),
        MessageType::Behind => Message::Behind(Behind { last: take.vlsn("last")? }),
        MessageType::Entries => {
            let head = take_entries_head(take)?;
            let EntriesHead { committed, durable_wanted, applied_wanted, first, last } = head;
            let run = std::mem::take(&mut take.rest);
            if run.is_empty() {
                return Err(take.short("run"));
            }
            Message::Entries(Entries { committed, durable_wanted, applied_wanted, first, last, run })
        }
        MessageType::EntryRequest => {
            let (from, to) = (take.entry("from")?, take.entry("to")?);
            if to < from {
                return Err(take.value("to", to.get()));
            }
            let (max_entries, max_bytes) = (take.u32("max_entries")?, take.u32("max_bytes")?);
            Message::EntryRequest(EntryRequest { from, to, max_entries, max_bytes })
        }
        MessageType::Ack => Message::Ack(Ack {
            received: take.vlsn("received")?,
            durable: take.vlsn("durable")?,
            applied: take.vlsn("applied")?,
            checkpointed: take.vlsn("checkpointed")?,
        }),
        MessageType::Nack => Message::Nack(Nack {
            reason: take.numbered("reason", NackReason::from_number)?,
            at: take.vlsn("at")?,
        }),
        MessageType::Heartbeat => Message::Heartbeat(Heartbeat {
            written: take.vlsn("written")?,
            flushed: take.vlsn("flushed")?,
            committed: take.vlsn("committed")?,
            durable_wanted: take.vlsn("durable_wanted")?,
            applied_wanted: take.vlsn("applied_wanted")?,
            clock: take.u64("clock")?,
            health: take.numbered("health", health_from)?,
        }),
        MessageType::HeartbeatReply => Message::HeartbeatReply(HeartbeatReply {
            clock: take.u64("clock")?,
            health: take.numbered("health", health_from)?,
        }),
        MessageType::Fence => Message::Fence,
        MessageType::Bye => Message::Bye(Bye { reason: take.numbered("reason", ByeReason::from_number)? }),
    })
}

/// The fixed part of an Entries payload.
pub(super) fn take_entries_head(take: &mut Take<'_>) -> Result<EntriesHead, WireError> {
    let head = EntriesHead {
        committed: take.vlsn("committed")?,
        durable_wanted: take.vlsn("durable_wanted")?,
        applied_wanted: take.vlsn("applied_wanted")?,
        first: take.entry("first")?,
        last: take.entry("last")?,
    };
    if head.last < head.first {
        return Err(take.value("last", head.last.get()));
    }
    Ok(head)
}

fn put_reject(reason: &RejectReason, put: &mut Put<'_>) {
    match reason {
        RejectReason::WrongGroup { ours } => {
            put.u8(1);
            put.bytes(&ours.bits().to_le_bytes());
        }
        RejectReason::UnknownNode => put.u8(2),
        RejectReason::NoCommonVersion { min, max } => {
            put.u8(3);
            put.u8(*min);
            put.u8(*max);
        }
        RejectReason::NotMaster { hint } => {
            put.u8(4);
            let hint = hint.as_ref().map(Address::to_string).filter(|text| text.len() <= MAX_ADDRESS);
            put.text(hint.as_deref().unwrap_or(""), MAX_ADDRESS);
        }
        RejectReason::Superseded { session } => {
            put.u8(5);
            put.u64(*session);
        }
        RejectReason::OwnName => put.u8(6),
        RejectReason::TermAhead { ours } => {
            put.u8(7);
            put.u32(ours.get());
        }
        RejectReason::Busy => put.u8(8),
        RejectReason::Protocol => put.u8(9),
        RejectReason::MemberDiffers => put.u8(10),
    }
}

fn take_reject(take: &mut Take<'_>) -> Result<RejectReason, WireError> {
    Ok(match take.u8("reason")? {
        1 => RejectReason::WrongGroup {
            ours: GroupId::from_bits(u128::from_le_bytes(take.array("reason.ours")?)),
        },
        2 => RejectReason::UnknownNode,
        3 => {
            let (min, max) = (take.u8("reason.min")?, take.u8("reason.max")?);
            RejectReason::NoCommonVersion { min, max }
        }
        4 => {
            let text = take.text("reason.hint", MAX_ADDRESS)?;
            let hint = match text {
                "" => None,
                _ => Some(text.parse().map_err(|_| take.bad_text("reason.hint", text.len()))?),
            };
            RejectReason::NotMaster { hint }
        }
        5 => RejectReason::Superseded { session: take.u64("reason.session")? },
        6 => RejectReason::OwnName,
        7 => RejectReason::TermAhead { ours: Term::new(take.u32("reason.ours")?) },
        8 => RejectReason::Busy,
        9 => RejectReason::Protocol,
        10 => RejectReason::MemberDiffers,
        other => return Err(take.value("reason", other)),
    })
}

fn role_number(role: Role) -> u8 {
    match role {
        Role::Electable => 1,
        Role::Secondary => 2,
    }
}

fn role_from(number: u8) -> Option<Role> {
    [Role::Electable, Role::Secondary].into_iter().find(|role| role_number(*role) == number)
}

fn health_number(health: Health) -> u8 {
    match health {
        Health::Healthy => 1,
        Health::Degraded => 2,
        Health::CatchingUp => 3,
        Health::Lagging => 4,
        Health::Error => 5,
    }
}

fn health_from(number: u8) -> Option<Health> {
    [Health::Healthy, Health::Degraded, Health::CatchingUp, Health::Lagging, Health::Error]
        .into_iter()
        .find(|health| health_number(*health) == number)
}

/// Writes fields.
struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn vlsn(&mut self, vlsn: Option<Vlsn>) {
        self.u64(number(vlsn));
    }

    fn position(&mut self, at: Option<Position>) {
        self.vlsn(at.map(|at| at.vlsn));
        self.u32(at.map_or(0, |at| at.term.get()));
        self.u32(at.map_or(0, |at| at.crc));
    }

    fn text(&mut self, text: &str, limit: usize) {
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
    fn short(&self, field: &'static str) -> WireError {
        WireError::Short { kind: self.kind, field }
    }

    fn value(&self, field: &'static str, found: impl Into<u64>) -> WireError {
        WireError::Value { kind: self.kind, field, found: found.into() }
    }

    fn bad_text(&self, field: &'static str, len: usize) -> WireError {
        WireError::Text { kind: self.kind, field, len }
    }

    fn bytes(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(self.short(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.short(field))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, WireError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn numbered<T>(&mut self, field: &'static str, from: impl Fn(u8) -> Option<T>) -> Result<T, WireError> {
        let found = self.u8(field)?;
        from(found).ok_or_else(|| self.value(field, found))
    }

    fn vlsn(&mut self, field: &'static str) -> Result<Option<Vlsn>, WireError> {
        match self.u64(field)? {
            found if found > MAX_VLSN => Err(self.value(field, found)),
            found => Ok(Vlsn::new(found)),
        }
    }

    fn entry(&mut self, field: &'static str) -> Result<Vlsn, WireError> {
        self.vlsn(field)?.ok_or_else(|| self.value(field, 0u8))
    }

    fn position(&mut self, field: &'static str) -> Result<Option<Position>, WireError> {
        let (vlsn, term, crc) = (self.vlsn(field)?, self.u32(field)?, self.u32(field)?);
        match vlsn {
            Some(vlsn) => Ok(Some(Position { vlsn, term: Term::new(term), crc })),
            None if term == 0 && crc == 0 => Ok(None),
            None => Err(self.value(field, term.max(crc))),
        }
    }

    fn text(&mut self, field: &'static str, limit: usize) -> Result<&'a str, WireError> {
        let len = usize::from(self.u8(field)?);
        if len > limit {
            return Err(self.bad_text(field, len));
        }
        let bytes = self.bytes(len, field)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad_text(field, len))
    }

    fn node(&mut self, field: &'static str) -> Result<NodeId, WireError> {
        let text = self.text(field, NodeId::MAX_LEN)?;
        NodeId::new(text).map_err(|_| self.bad_text(field, text.len()))
    }

    fn history(&mut self) -> Result<Vec<TermSpan>, WireError> {
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
