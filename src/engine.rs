//! What a storage engine implements to be replicated.

use std::io::Read;

use crate::entry::Entries;
use crate::ids::Vlsn;

/// An error of the embedder's engine.
pub type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// A storage engine, as its replication sees it.
///
/// The engine is called by one thread, the node's apply worker, and only with entries that are committed in the group
/// and flushed in this node's log. So it never has to undo, and a crash at any point is repaired by replay: after a
/// restart the entries after [`applied`](Engine::applied) come again.
pub trait Engine: Send {
    /// The last entry whose effect the engine holds, as it would find it after a restart; `None` if none. Asked once,
    /// when the node opens. An engine keeps this number in the same transaction as the data.
    ///
    /// # Errors
    /// If the engine can't tell: the node then does not open.
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError>;

    /// Applies entries in the order given; they follow what was applied before without a hole. Entries of every kind
    /// come here, also those that mean nothing to the engine, so that its position is exact. When this returns, the
    /// effect is visible to readers; it need not be durable yet.
    ///
    /// # Errors
    /// An error stops the node's apply worker and poisons the node: an entry is never skipped.
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError>;

    /// Makes what was applied durable, and tells how far it now is. Called from time to time, when apply is idle and
    /// before the node closes; the log behind the position it tells may be pruned.
    ///
    /// # Errors
    /// An error poisons the node.
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError>;

    /// The engine's state as it is now, for a node that starts from it, an archive, or a comparison. Has to be cheap (a read
    /// transaction, a clone of files by link): applying goes on while another thread reads it. `None`: this engine can't
    /// be copied so, the default; then a node that needs entries which nobody has any more stays behind, and says so.
    ///
    /// # Errors
    /// An error is told to whoever asked for the snapshot, and harms nothing.
    fn snapshot(&mut self) -> Result<Option<Box<dyn EngineSnapshot>>, EngineError> {
        Ok(None)
    }

    /// Replaces the engine's whole state by a snapshot's, durably and whole or not at all: a crash in the middle leads
    /// to another call with the same snapshot, before anything else is asked of the engine. Afterwards
    /// [`applied`](Engine::applied) is [`Items::at`].
    ///
    /// # Errors
    /// An error poisons the node; opening it again installs again.
    fn install(&mut self, items: &mut dyn Items) -> Result<(), EngineError> {
        let at = items.at();
        Err(format!("this engine takes no snapshots, and was given one at VLSN {at}").into())
    }
}

/// The longest name of an item, in bytes.
pub const MAX_ITEM_NAME: usize = 64;

/// An engine's state at one VLSN, in items that are read one after the other, once. Dropping it frees what it holds.
pub trait EngineSnapshot: Send {
    /// What the engine that installs it will have applied. At most what this engine had when the snapshot was taken; less
    /// if open transactions are not part of the state: the entry before the oldest of their beginnings.
    fn at(&self) -> Vlsn;

    /// About how many bytes all items have, if the engine can tell cheaply: for progress bars only.
    fn bytes(&self) -> Option<u64> {
        None
    }

    /// The next item; `None` after the last. Ends the one before.
    ///
    /// # Errors
    /// An error ends the transfer.
    fn next_item(&mut self) -> Result<Option<Item>, EngineError>;

    /// Bytes of the present item, where the last read ended; 0 at its end.
    ///
    /// # Errors
    /// An error ends the transfer.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, EngineError>;
}

/// A part of a snapshot: a table, a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// What it is called: 1 to [`MAX_ITEM_NAME`] letters, digits, and the characters `.`, `_` and `-`, not dots alone. It
    /// means something to the engine only, and is never used as a path.
    pub name: String,
    /// How long it is, in bytes, if that is known beforehand: for progress bars only.
    pub len: Option<u64>,
}

impl Item {
    /// Whether a name is one that an item may have.
    pub fn is_name(name: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (1..=MAX_ITEM_NAME).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.bytes().all(|byte| byte == b'.')
    }
}

/// A snapshot to be installed: verified, on this node's own disk.
pub trait Items {
    /// What the engine will have applied.
    fn at(&self) -> Vlsn;

    /// The items, in the order in which they were given; every length is known.
    fn list(&self) -> &[Item];

    /// Reads an item, by its place in the list, from its beginning.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// If there is no such place in the list.
    fn open(&self, at: usize) -> std::io::Result<Box<dyn Read + '_>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_items_are_no_paths() {
        for good in ["records", "a.b", "..a", "A-1_2"] {
            assert!(Item::is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/", "a\\b", "a b", "ü", "a\0", &"x".repeat(65)] {
            assert!(!Item::is_name(bad), "{bad}");
        }
    }
}
