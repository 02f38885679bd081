//! The archive: the group's log and copies of its engine's state, kept elsewhere, and the way back from there.
//!
//! An [`Archive`] keeps named objects. The archiver of the master writes the committed log into objects
//! ([`object`]) and bases ([`base`]); [`catalog`] tells what there is; [`mod@restore`] makes a directory of a new group from
//! it, and [`verify`] reads it all. docs/format.md describes the objects.

pub mod base;
pub mod bases;
pub mod catalog;
pub mod dir;
pub mod drill;
pub mod object;
pub mod restore;
pub mod target;
pub mod verify;
pub mod worker;

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use crate::config::ConfigError;

pub use catalog::Catalog;
pub use dir::DirArchive;
pub use restore::{RestoreError, RestoreOptions, Restored, restore};
pub use target::{Start, Until};

/// The longest name of an object, in bytes.
pub const MAX_OBJECT_NAME: usize = 200;

/// A keeper of named objects: a directory, an object store. Objects are written once, read whole, and removed.
///
/// What an implementation has to promise:
///
/// - [`put`](Archive::put) is *atomic*: a reader, and whoever looks after a crash of either side, finds the whole object
///   under its name, or what was there before. It is *durable*: when it returns, the object survives the archive's loss
///   of power. It is *idempotent*: the same put again, also by another node at the same time, leaves the same object.
/// - [`list`](Archive::list) shows every object whose put returned before, and none whose removal did.
/// - [`remove`](Archive::remove) of an object that is not there is no error. It need not be durable: what comes back is
///   removed again.
///
/// All methods block for as long as it takes, and are called by one thread of each node; several nodes may call at once.
pub trait Archive: Send + Sync {
    /// Keeps all that `from` gives, to its end, under this name, in place of what has that name; whole or not at all.
    ///
    /// # Errors
    /// [`ArchiveError`], also if reading `from` fails: then nothing is under the name that was not before.
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError>;

    /// Reads an object from its beginning.
    ///
    /// # Errors
    /// [`ArchiveError`]; [`ArchiveError::is_missing`] tells that there is none.
    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError>;

    /// The objects whose names begin with `prefix`, sorted by name. Only of names that [`is_object_name`] allows.
    ///
    /// # Errors
    /// [`ArchiveError`].
    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError>;

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// [`ArchiveError`].
    fn remove(&self, name: &str) -> Result<(), ArchiveError>;

    /// Removes what puts that never ended have left of the objects whose names `dead` picks; a put of one that is still
    /// under way fails. An archive that itself forgets such puts has nothing to do.
    ///
    /// # Errors
    /// [`ArchiveError`].
    fn sweep(&self, _dead: &dyn Fn(&str) -> bool) -> Result<(), ArchiveError> {
        Ok(())
    }
}

/// An object, as a list shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// Why an archive did not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system refused.
    #[error("the archive can't {action} {object}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The object, or the prefix of a list.
        object: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A name that no object has.
    #[error("{0:?} is no name of an object in an archive")]
    Name(String),
    /// What was written reads back as something else.
    #[error("the archive did not keep {object}: it reads back as something else; look at the archive's disk")]
    NotKept {
        /// The object.
        object: String,
    },
}

impl ArchiveError {
    /// Names the action and the object of a failed call.
    pub fn io(action: &'static str, object: &str) -> impl Fn(io::Error) -> ArchiveError {
        move |source| ArchiveError::Io { action, object: object.to_owned(), source: Arc::new(source) }
    }

    /// Whether the object asked for is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Whether an object may have this name: at most [`MAX_OBJECT_NAME`] bytes, in parts between slashes, each of the letters,
/// digits and the characters `.`, `_` and `-`, and none beginning with a dot.
pub fn is_object_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
    name.len() <= MAX_OBJECT_NAME && name.split('/').all(part)
}

/// Where and how a node archives while it leads. The same on every node that may lead.
#[derive(Clone)]
pub struct ArchiveConfig {
    /// The archive, of this group alone.
    pub to: Arc<dyn Archive>,
    /// What is committed is archived within this time. Default 10 s; 10 ms to 1 day.
    pub every: Duration,
    /// A base is made when so many bytes of log have been archived since the last. Default 1 GiB; at least 64 KiB.
    pub base_bytes: u64,
    /// How many bases are kept, with the log from the oldest of them on. Default 2; 1 to 1000.
    pub bases: usize,
}

impl ArchiveConfig {
    /// Default values with this archive.
    pub fn new(to: Arc<dyn Archive>) -> ArchiveConfig {
        ArchiveConfig { to, every: Duration::from_secs(10), base_bytes: 1 << 30, bases: 2 }
    }

    /// Checks the values against their bounds. Opening a node does it too.
    ///
    /// # Errors
    /// [`ConfigError`], for the first field that does not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        let out = |field, value: String, bounds| Err(ConfigError::OutOfBounds { field, value, bounds });
        let (least, most) = (Duration::from_millis(10), Duration::from_secs(24 * 60 * 60));
        if self.every < least || self.every > most {
            return out("archive.every", format!("{:?}", self.every), "10 ms to 1 day");
        }
        if self.base_bytes < 64 << 10 {
            return out("archive.base_bytes", self.base_bytes.to_string(), "at least 64 KiB");
        }
        if !(1..=1000).contains(&self.bases) {
            return out("archive.bases", self.bases.to_string(), "1 to 1000");
        }
        Ok(())
    }
}
