//! What a storage engine implements to be replicated.

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
}
