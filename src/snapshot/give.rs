//! A snapshot that is given away: read from the engine once, and kept until the receiver has it on its disk.

use std::collections::VecDeque;

use twox_hash::XxHash3_128;

use crate::engine::{EngineError, EngineSnapshot, Item};
use crate::ids::Vlsn;
use crate::snapshot::{MAX_ITEMS, StagedItem, digest_of};
use crate::wire::message::Message;
use crate::wire::recovery::{
    MAX_CHUNK, SnapshotChunk, SnapshotEnd, SnapshotId, SnapshotItem, SnapshotItemEnd, SnapshotPlace,
};

/// As many bytes are kept that were not acknowledged; beyond that nothing is read.
pub const WINDOW: u64 = 8 << 20;

/// What a chunk's frame has beside the chunk's bytes, and some more.
const CHUNK_HEAD: usize = 256;

/// How many bytes of an item go into one frame.
pub fn chunk_len(max_frame: u32) -> usize {
    (max_frame as usize).saturating_sub(CHUNK_HEAD).clamp(1, MAX_CHUNK)
}

/// Why a snapshot can't be given further.
#[derive(Debug, thiserror::Error)]
pub enum GivingError {
    /// The engine could not read it.
    #[error("the engine could not read its snapshot: {0}")]
    Engine(EngineError),
    /// The engine names an item as none may be named.
    #[error("the engine calls an item {0:?}, which is no name of an item; mend the engine")]
    Name(String),
    /// More items than a snapshot may have.
    #[error("the engine's snapshot has more than {MAX_ITEMS} items; mend the engine")]
    Items,
    /// An acknowledgement of what was not sent.
    #[error("byte {} of item {} was acknowledged, which was not sent", .0.offset, .0.item)]
    Ack(SnapshotPlace),
}

/// A part of the stream, kept until it is acknowledged.
enum Piece {
    Item(SnapshotItem),
    Chunk { at: SnapshotPlace, bytes: Vec<u8> },
    ItemEnd(SnapshotItemEnd),
    End(SnapshotEnd),
}

impl Piece {
    /// What the receiver's place is beyond when it needs this no more.
    fn end(&self) -> Option<SnapshotPlace> {
        match self {
            Piece::Item(item) => Some(SnapshotPlace { item: item.item, offset: 0 }),
            Piece::Chunk { at, bytes } => {
                Some(SnapshotPlace { item: at.item, offset: at.offset + bytes.len() as u64 })
            }
            Piece::ItemEnd(end) => Some(SnapshotPlace { item: end.at.item + 1, offset: 0 }),
            Piece::End(_) => None,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Piece::Chunk { bytes, .. } => bytes.len() as u64,
            _ => 0,
        }
    }

    fn message(&self) -> Message<'_> {
        match self {
            Piece::Item(item) => Message::SnapshotItem(item.clone()),
            Piece::Chunk { at, bytes } => Message::SnapshotChunk(SnapshotChunk { at: *at, bytes }),
            Piece::ItemEnd(end) => Message::SnapshotItemEnd(*end),
            Piece::End(end) => Message::SnapshotEnd(*end),
        }
    }
}

/// A snapshot on its way to one receiver. It outlives a connection.
pub struct Giving {
    id: SnapshotId,
    base: Vec<u8>,
    source: Box<dyn EngineSnapshot>,
    /// The most bytes of a chunk.
    chunk: usize,
    /// What is not acknowledged, in order.
    window: VecDeque<Piece>,
    held: u64,
    /// As many pieces of the window were sent on this connection.
    sent: usize,
    /// Said first on a new connection that begins within an item.
    again: Option<SnapshotItem>,
    /// The item that the receiver is in, for that.
    acked_in: Option<SnapshotItem>,
    acked: SnapshotPlace,
    /// Where reading is.
    here: SnapshotPlace,
    reading: Option<(Item, XxHash3_128)>,
    done: Vec<StagedItem>,
    ended: bool,
}

impl Giving {
    /// Gives `source`, whose log before it is told by `base`, in frames of at most `max_frame` bytes.
    pub fn new(id: SnapshotId, base: Vec<u8>, source: Box<dyn EngineSnapshot>, max_frame: u32) -> Giving {
        let here = SnapshotPlace::default();
        Giving {
            id,
            base,
            source,
            chunk: chunk_len(max_frame),
            window: VecDeque::new(),
            held: 0,
            sent: 0,
            again: None,
            acked_in: None,
            acked: here,
            here,
            reading: None,
            done: Vec::new(),
            ended: false,
        }
    }

    /// Which snapshot it is.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Where it stands.
    pub fn at(&self) -> Vlsn {
        self.source.at()
    }

    /// About how many bytes its items have, if the engine knows.
    pub fn bytes(&self) -> Option<u64> {
        self.source.bytes()
    }

    /// The bytes of the base.
    pub fn base(&self) -> &[u8] {
        &self.base
    }

    /// Bytes that the receiver has on its disk.
    pub fn given(&self) -> u64 {
        let before: u64 = self.done.iter().take(self.acked.item as usize).map(|item| item.len).sum();
        before + self.acked.offset
    }

    /// Whether a receiver that has everything before `from` can go on with this.
    pub fn reaches(&self, id: SnapshotId, from: SnapshotPlace) -> bool {
        id == self.id && self.acked <= from && from <= self.here
    }

    /// A new connection, which goes on at `from`.
    ///
    /// # Errors
    /// [`GivingError::Ack`], unless it [reaches](Giving::reaches) that.
    pub fn go_on(&mut self, from: SnapshotPlace) -> Result<(), GivingError> {
        self.sent = self.window.len();
        self.acknowledge(from)?;
        self.sent = 0;
        let begun = |item: &&SnapshotItem| item.item == from.item;
        self.again = self.acked_in.as_ref().filter(begun).cloned();
        Ok(())
    }

    /// The receiver has everything before `at` on its disk.
    ///
    /// # Errors
    /// [`GivingError::Ack`].
    pub fn acknowledge(&mut self, at: SnapshotPlace) -> Result<(), GivingError> {
        if at < self.acked || at > self.here {
            return Err(GivingError::Ack(at));
        }
        while let Some(end) = self.window.front().and_then(Piece::end) {
            let passed = match self.window.front() {
                // It has the item's beginning when it has something of it, or at least as much of nothing.
                Some(Piece::Item(_)) => end < at,
                _ => end <= at,
            };
            if !passed {
                break;
            }
            if self.sent == 0 {
                return Err(GivingError::Ack(at));
            }
            self.sent -= 1;
            let Some(piece) = self.window.pop_front() else { break };
            self.held -= piece.len();
            if let Piece::Item(item) = piece {
                self.acked_in = Some(item);
            }
        }
        self.acked = at;
        Ok(())
    }

    /// What is to be sent next; `None`: nothing, before more is acknowledged.
    ///
    /// # Errors
    /// [`GivingError`]: the snapshot can't be given to its end.
    pub fn send_next(&mut self) -> Result<Option<Message<'_>>, GivingError> {
        if let Some(item) = self.again.take() {
            return Ok(Some(Message::SnapshotItem(item)));
        }
        if self.sent == self.window.len() {
            if self.ended || self.held + self.chunk as u64 > WINDOW {
                return Ok(None);
            }
            let piece = self.read()?;
            self.held += piece.len();
            self.window.push_back(piece);
        }
        self.sent += 1;
        Ok(self.window.get(self.sent - 1).map(Piece::message))
    }

    /// Whether the receiver has everything.
    pub fn is_whole(&self) -> bool {
        self.ended && self.acked == self.here
    }

    fn read(&mut self) -> Result<Piece, GivingError> {
        let Some((item, hash)) = &mut self.reading else { return self.next_item() };
        let mut bytes = vec![0; self.chunk];
        let read = self.source.read(&mut bytes).map_err(GivingError::Engine)?;
        bytes.truncate(read);
        if read > 0 {
            hash.write(&bytes);
            let at = self.here;
            self.here.offset += read as u64;
            return Ok(Piece::Chunk { at, bytes });
        }
        let end = SnapshotItemEnd { at: self.here, digest: hash.finish_128() };
        self.done.push(StagedItem { name: item.name.clone(), len: self.here.offset, digest: end.digest });
        self.here = SnapshotPlace { item: self.here.item + 1, offset: 0 };
        self.reading = None;
        Ok(Piece::ItemEnd(end))
    }

    fn next_item(&mut self) -> Result<Piece, GivingError> {
        let Some(item) = self.source.next_item().map_err(GivingError::Engine)? else {
            self.ended = true;
            let bytes = self.done.iter().map(|item| item.len).sum();
            let digest = digest_of(&self.base, &self.done);
            return Ok(Piece::End(SnapshotEnd { items: self.here.item, bytes, digest }));
        };
        if !Item::is_name(&item.name) {
            return Err(GivingError::Name(item.name.chars().take(100).collect()));
        }
        if self.here.item == MAX_ITEMS {
            return Err(GivingError::Items);
        }
        let said = SnapshotItem { item: self.here.item, name: item.name.clone(), len: item.len };
        self.reading = Some((item, XxHash3_128::new()));
        Ok(Piece::Item(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An item without end.
    struct Endless(bool);

    impl EngineSnapshot for Endless {
        fn at(&self) -> Vlsn {
            Vlsn::FIRST
        }
        fn next_item(&mut self) -> Result<Option<Item>, EngineError> {
            let first = !std::mem::replace(&mut self.0, true);
            Ok(first.then(|| Item { name: "endless".into(), len: None }))
        }
        fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError> {
            into.fill(7);
            Ok(into.len())
        }
    }

    #[test]
    fn what_is_not_acknowledged_is_bounded_however_slow_the_receiver_is() {
        let id = SnapshotId { incarnation: 1, session: 2, number: 3 };
        let mut giving = Giving::new(id, Vec::new(), Box::new(Endless(false)), 1 << 30);
        let mut sent = 0;
        let mut acked = 0;
        for round in 0..20 {
            while let Some(message) = giving.send_next().unwrap() {
                if let Message::SnapshotChunk(chunk) = message {
                    sent += chunk.bytes.len() as u64;
                }
            }
            assert!(sent - acked <= WINDOW && sent - acked > WINDOW - MAX_CHUNK as u64, "{sent} {acked}");
            assert!(giving.held <= WINDOW && giving.window.len() <= WINDOW as usize / MAX_CHUNK + 1);
            acked += (round % 3) * MAX_CHUNK as u64;
            giving.acknowledge(SnapshotPlace { item: 0, offset: acked }).unwrap();
        }
        assert!(acked > 0);
    }
}
