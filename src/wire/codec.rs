//! The bytes of the messages: each message's fields in the order of docs/protocol.md, written and read side by side.

use std::time::Duration;

use crate::ids::{GroupId, NodeId, Term, number};
use crate::members::{Health, Role};
use crate::wire::codec_group::{put_group_message, take_group_message};
use crate::wire::fields::{Put, Take};
use crate::wire::frame::{ENTRIES_PREFIX_LEN, FrameHeader, HEADER_LEN, MessageType, payload_crc};
use crate::wire::message::*;

/// Bytes that stand before the run in an Entries frame: the header and the payload's fixed part.
pub const ENTRIES_HEAD_LEN: usize = HEADER_LEN + ENTRIES_PREFIX_LEN;

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
    /// If a text or a list is longer than this module's limits, an optional slot name is empty, or a chunk is: callers
    /// check their configuration first, and orders by [`Order::misfit`]. A status is cut to what fits.
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
    /// bytes (a term history's spans take 16 bytes for 12, and the lists of a status, of at most 255 each, a few times
    /// theirs).
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
            put.u8(m.role.number());
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
            put.standing(m.standing);
            put.address(m.address.as_ref());
        }
        Message::Welcome(m) => {
            put.u8(m.version);
            put.u64(m.incarnation);
            put.u64(m.session);
            put.u32(m.capabilities.bits());
            put.u32(m.max_frame);
            put.u64(u64::try_from(m.heartbeat.as_micros()).unwrap_or(u64::MAX));
            put.text(m.node.as_str(), NodeId::MAX_LEN);
            put.u8(feed_number(m.feed));
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
        Message::NeedSnapshot(m) => {
            put.vlsn(m.oldest);
            put.address(m.provider.as_ref());
        }
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
            put.standing(m.standing);
        }
        Message::Fence => {}
        Message::Bye(m) => put.u8(m.reason.number()),
        other => put_group_message(other, put),
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
                role: take.numbered("role", Role::from_number)?,
                group: GroupId::from_bits(u128::from_le_bytes(take.array("group")?)),
                incarnation: take.u64("incarnation")?,
                session: take.u64("session")?,
                capabilities: Capabilities::from_bits(take.u32("capabilities")?),
                max_frame: take.u32("max_frame")?,
                last: take.position("last")?,
                node: take.node("node")?,
                region: take.text("region", MAX_TEXT)?.to_owned(),
                slot: Some(take.text("slot", MAX_TEXT)?).filter(|s| !s.is_empty()).map(str::to_owned),
                standing: take.standing("standing")?,
                address: take.address("address")?,
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
            feed: take.numbered("feed", feed_from)?,
        }),
        MessageType::Reject => Message::Reject(Reject { reason: take_reject(take)? }),
        MessageType::Syncup => Message::Syncup(Syncup {
            last: take.position("last")?,
            committed: take.vlsn("committed")?,
            history: take.history()?,
        }),
        MessageType::Matchpoint => Message::Matchpoint(Matchpoint { at: take.position("at")? }),
        MessageType::NeedSnapshot => Message::NeedSnapshot(NeedSnapshot {
            oldest: take.vlsn("oldest")?,
            provider: take.address("provider")?,
        }),
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
            standing: take.standing("standing")?,
        }),
        MessageType::Fence => Message::Fence,
        MessageType::Bye => Message::Bye(Bye { reason: take.numbered("reason", ByeReason::from_number)? }),
        _ => take_group_message(take)?,
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
            put.address(hint.as_ref());
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
        RejectReason::NoSnapshot => put.u8(11),
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
            let hint = take.address("reason.hint")?;
            RejectReason::NotMaster { hint }
        }
        5 => RejectReason::Superseded { session: take.u64("reason.session")? },
        6 => RejectReason::OwnName,
        7 => RejectReason::TermAhead { ours: Term::new(take.u32("reason.ours")?) },
        8 => RejectReason::Busy,
        9 => RejectReason::Protocol,
        10 => RejectReason::MemberDiffers,
        11 => RejectReason::NoSnapshot,
        other => return Err(take.value("reason", other)),
    })
}

fn feed_number(feed: Feed) -> u8 {
    match feed {
        Feed::Leads => 1,
        Feed::Follows => 2,
    }
}

fn feed_from(number: u8) -> Option<Feed> {
    [Feed::Leads, Feed::Follows].into_iter().find(|feed| feed_number(*feed) == number)
}

pub(super) fn health_number(health: Health) -> u8 {
    match health {
        Health::Healthy => 1,
        Health::Degraded => 2,
        Health::CatchingUp => 3,
        Health::Lagging => 4,
        Health::Error => 5,
        Health::NeedsSnapshot => 6,
    }
}

pub(super) fn health_from(number: u8) -> Option<Health> {
    use Health::{CatchingUp, Degraded, Error, Healthy, Lagging, NeedsSnapshot};
    [Healthy, Degraded, CatchingUp, Lagging, Error, NeedsSnapshot]
        .into_iter()
        .find(|health| health_number(*health) == number)
}
