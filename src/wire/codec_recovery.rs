//! The bytes of the messages in [`super::recovery`].

use crate::engine::{Item, MAX_ITEM_NAME};
use crate::ids::{GroupId, NodeId, Position, Vlsn, VlsnRange};
use crate::slots::{BadSlots, Slots};
use crate::wire::codec_group::MAX_ANSWER;
use crate::wire::fields::{Put, Take};
use crate::wire::frame::MessageType;
use crate::wire::message::*;

pub(super) fn put_recovery_message(message: &Message<'_>, put: &mut Put<'_>) {
    match message {
        Message::SnapshotRequest(m) => {
            put.bytes(&m.group.bits().to_le_bytes());
            put.text(m.node.as_str(), NodeId::MAX_LEN);
            put.vlsn(m.at_least);
            put.u8(u8::from(m.resume.is_some()));
            if let Some((id, at)) = m.resume {
                put.snapshot_id(id);
                put.place(at);
            }
        }
        Message::SnapshotBegin(m) => {
            put.snapshot_id(m.id);
            put.place(m.from);
            put.u64(m.of.unwrap_or(u64::MAX));
            put.bytes(&m.base);
        }
        Message::SnapshotItem(m) => {
            put.u32(m.item);
            put.text(&m.name, MAX_ITEM_NAME);
            put.u64(m.len.unwrap_or(u64::MAX));
        }
        Message::SnapshotChunk(m) => {
            assert!(!m.bytes.is_empty() && m.bytes.len() <= MAX_CHUNK, "a chunk of {}", m.bytes.len());
            put.place(m.at);
            put.bytes(m.bytes);
        }
        Message::SnapshotItemEnd(m) => {
            put.place(m.at);
            put.u128(m.digest);
        }
        Message::SnapshotEnd(m) => {
            put.u32(m.items);
            put.u64(m.bytes);
            put.u128(m.digest);
        }
        Message::SnapshotAck(m) => put.place(m.at),
        // The others are written by the caller.
        _ => {}
    }
}

pub(super) fn take_recovery_message<'a>(take: &mut Take<'a>) -> Result<Message<'a>, WireError> {
    Ok(match take.kind {
        MessageType::SnapshotRequest => Message::SnapshotRequest(SnapshotRequest {
            group: GroupId::from_bits(take.u128("group")?),
            node: take.node("node")?,
            at_least: take.vlsn("at_least")?,
            resume: match take.flag("resume")? {
                false => None,
                true => Some((take.snapshot_id()?, take.place()?)),
            },
        }),
        MessageType::SnapshotBegin => Message::SnapshotBegin(SnapshotBegin {
            id: take.snapshot_id()?,
            from: take.place()?,
            of: Some(take.u64("of")?).filter(|of| *of != u64::MAX),
            base: std::mem::take(&mut take.rest).to_vec(),
        }),
        MessageType::SnapshotItem => {
            let item = take.u32("item")?;
            let name = take.text("name", MAX_ITEM_NAME)?.to_owned();
            if !Item::is_name(&name) {
                return Err(take.bad_text("name", name.len()));
            }
            let len = Some(take.u64("len")?).filter(|len| *len != u64::MAX);
            Message::SnapshotItem(SnapshotItem { item, name, len })
        }
        MessageType::SnapshotChunk => {
            let at = take.place()?;
            let bytes = std::mem::take(&mut take.rest);
            match bytes.len() {
                0 => return Err(take.short("bytes")),
                len if len > MAX_CHUNK => return Err(take.value("bytes", len as u64)),
                _ => Message::SnapshotChunk(SnapshotChunk { at, bytes }),
            }
        }
        MessageType::SnapshotItemEnd => {
            Message::SnapshotItemEnd(SnapshotItemEnd { at: take.place()?, digest: take.u128("digest")? })
        }
        MessageType::SnapshotEnd => Message::SnapshotEnd(SnapshotEnd {
            items: take.u32("items")?,
            bytes: take.u64("bytes")?,
            digest: take.u128("digest")?,
        }),
        _ => Message::SnapshotAck(SnapshotAck { at: take.place()? }),
    })
}

pub(super) fn put_digest(digest: &RangeDigest, put: &mut Put<'_>) {
    put.range(digest.range);
    put.u64(digest.bytes);
    put.u128(digest.digest);
    put.position(Some(digest.last));
}

pub(super) fn take_digest(take: &mut Take<'_>) -> Result<RangeDigest, WireError> {
    let (range, bytes, digest) = (take.range("range")?, take.u64("bytes")?, take.u128("digest")?);
    let last: Position = take.position("last")?.ok_or_else(|| take.value("last", 0u8))?;
    Ok(RangeDigest { range, bytes, digest, last })
}

pub(super) fn put_keeping(keeping: &Keeping, put: &mut Put<'_>) {
    put.vlsn(keeping.oldest);
    let pins = &keeping.pins[..keeping.pins.len().min(MAX_PINS)];
    put.u8(pins.len() as u8);
    for pin in pins {
        put.cut_text(&pin.owner);
        put.u64(pin.from.get());
        put.millis(pin.since);
        put.u64(pin.bytes);
    }
    let slots = Slots::new(keeping.slots.clone()).unwrap_or_default().encode();
    put.u32(slots.len() as u32);
    put.bytes(&slots);
    put.u8(u8::from(keeping.fetching.is_some()));
    if let Some(fetching) = &keeping.fetching {
        put_transfer(fetching, put);
    }
    let giving = &keeping.giving[..keeping.giving.len().min(MAX_PINS)];
    put.u8(giving.len() as u8);
    giving.iter().for_each(|one| put_transfer(one, put));
    let ScrubStatus { at, ended, bytes, found, healed } = keeping.scrub;
    put.vlsn(at);
    put.u64(ended);
    put.u64(bytes);
    put.u32(found);
    put.u32(healed);
    put.u8(u8::from(keeping.damaged.is_some()));
    if let Some(damaged) = keeping.damaged {
        put.range(damaged);
    }
    put.u8(u8::from(keeping.archive.is_some()));
    if let Some(archive) = &keeping.archive {
        put.vlsn(archive.last);
        put.vlsn(archive.base);
        put.cut_text(archive.failed.as_deref().unwrap_or(""));
    }
    put.vlsn(keeping.engine.as_ref().map(|engine| engine.at));
    match keeping.engine.as_ref().map(|engine| &engine.state) {
        None => {}
        Some(EngineState::Digest(digest)) => {
            put.u8(1);
            put.u128(*digest);
        }
        Some(EngineState::NoSnapshots) => put.u8(2),
        Some(EngineState::Failed(why)) => {
            put.u8(3);
            put.cut_text(why);
        }
    }
}

pub(super) fn take_keeping(take: &mut Take<'_>) -> Result<Keeping, WireError> {
    let mut keeping = Keeping { oldest: take.vlsn("oldest")?, ..Keeping::default() };
    for _ in 0..take.u8("pins")? {
        keeping.pins.push(PinStatus {
            owner: take.text("pin.owner", MAX_ANSWER)?.to_owned(),
            from: take.entry("pin.from")?,
            since: take.millis("pin.since")?,
            bytes: take.u64("pin.bytes")?,
        });
    }
    let len = take.u32("slots")?;
    let slots = take.bytes(len as usize, "slots")?;
    let bad = |_: BadSlots| take.value("slots", len);
    keeping.slots = Slots::decode(slots).map_err(bad)?.iter().cloned().collect();
    if take.flag("fetching")? {
        keeping.fetching = Some(take_transfer(take)?);
    }
    for _ in 0..take.u8("giving")? {
        keeping.giving.push(take_transfer(take)?);
    }
    keeping.scrub = ScrubStatus {
        at: take.vlsn("scrub.at")?,
        ended: take.u64("scrub.ended")?,
        bytes: take.u64("scrub.bytes")?,
        found: take.u32("scrub.found")?,
        healed: take.u32("scrub.healed")?,
    };
    if take.flag("damaged")? {
        keeping.damaged = Some(take.range("damaged")?);
    }
    if take.flag("archive")? {
        keeping.archive = Some(ArchiveStatus {
            last: take.vlsn("archive.last")?,
            base: take.vlsn("archive.base")?,
            failed: Some(take.text("archive.failed", MAX_ANSWER)?.to_owned()).filter(|t| !t.is_empty()),
        });
    }
    if let Some(at) = take.vlsn("engine.at")? {
        let state = match take.u8("engine.state")? {
            1 => EngineState::Digest(take.u128("engine.digest")?),
            2 => EngineState::NoSnapshots,
            3 => EngineState::Failed(take.text("engine.failed", MAX_ANSWER)?.to_owned()),
            other => return Err(take.value("engine.state", other)),
        };
        keeping.engine = Some(EngineDigest { at, state });
    }
    Ok(keeping)
}

fn put_transfer(transfer: &TransferStatus, put: &mut Put<'_>) {
    put.cut_text(&transfer.peer);
    put.u64(transfer.at.get());
    put.u64(transfer.bytes);
    put.u64(transfer.of.unwrap_or(u64::MAX));
}

fn take_transfer(take: &mut Take<'_>) -> Result<TransferStatus, WireError> {
    Ok(TransferStatus {
        peer: take.text("transfer.peer", MAX_ANSWER)?.to_owned(),
        at: take.entry("transfer.at")?,
        bytes: take.u64("transfer.bytes")?,
        of: Some(take.u64("transfer.of")?).filter(|of| *of != u64::MAX),
    })
}

impl Put<'_> {
    fn u128(&mut self, value: u128) {
        self.bytes(&value.to_le_bytes());
    }

    fn snapshot_id(&mut self, id: SnapshotId) {
        [id.incarnation, id.session, id.number].into_iter().for_each(|part| self.u64(part));
    }

    fn place(&mut self, at: SnapshotPlace) {
        self.u32(at.item);
        self.u64(at.offset);
    }

    pub(super) fn range(&mut self, range: VlsnRange) {
        self.u64(range.first().get());
        self.u64(range.last().get());
    }
}

impl Take<'_> {
    fn u128(&mut self, field: &'static str) -> Result<u128, WireError> {
        self.array(field).map(u128::from_le_bytes)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.value(field, other)),
        }
    }

    fn snapshot_id(&mut self) -> Result<SnapshotId, WireError> {
        Ok(SnapshotId {
            incarnation: self.u64("id.incarnation")?,
            session: self.u64("id.session")?,
            number: self.u64("id.number")?,
        })
    }

    fn place(&mut self) -> Result<SnapshotPlace, WireError> {
        Ok(SnapshotPlace { item: self.u32("at.item")?, offset: self.u64("at.offset")? })
    }

    pub(super) fn range(&mut self, field: &'static str) -> Result<VlsnRange, WireError> {
        let (first, last): (Vlsn, Vlsn) = (self.entry(field)?, self.entry(field)?);
        VlsnRange::new(first, last).ok_or_else(|| self.value(field, last.get()))
    }
}
