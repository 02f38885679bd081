//! Snapshots: an engine's state at one VLSN, carried to a node that needs entries which nobody has any more.
//!
//! What arrives is staged in a directory ([`Staging`]), verified as a whole ([`Staged`]), and installed only after an
//! intent ([`Intent`]) is durable, so that a crash anywhere in between is finished at the next open. docs/recovery.md
//! tells the whole way, docs/format.md the files.

mod give;
mod intent;
mod manifest;
mod sealed;
mod stage;

pub use give::{Giving, GivingError, WINDOW, chunk_len};
pub use intent::{Intent, LogPart};
pub use manifest::{Sealed, Sealing, Staged, StagedItem, digest_of};
pub use sealed::StageError;
pub use stage::{MAX_ITEMS, Staging, Whole, discard};

/// The name of a node's staging directory, in its own.
pub const STAGING: &str = "snapshot";
