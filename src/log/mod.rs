//! The log: segment files, appended to by one writer, read through mappings.
//!
//! Entries are encoded into a staging buffer under a short lock (`stage`), written by whoever finds no write in progress
//! (`writer`), synced by one for all who wait (`flush`), and read in runs straight from the mapped files (`reader`).
//! Opening judges what a crash left (`recover`); a master may order the end cut off (`truncate`); old segments are
//! removed from the beginning (`retention`). The formats are described in docs/format.md.

mod catalog;
mod copies;
mod core;
mod error;
mod flush;
mod format;
mod index;
pub mod inspect;
mod life;
mod lists;
pub mod mmap;
mod reader;
mod recover;
mod repair;
mod reserve;
mod reset;
mod retention;
mod saved;
pub mod scanner;
mod scrub;
mod segment;
mod size;
mod stage;
mod stated;
mod truncate;
mod walk;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Wait};
use crate::disk::Disk;
use crate::entry::{NewEntry, RunSummary};
use crate::ids::{GroupId, Position, Term, TermSpan, Vlsn, VlsnRange};
use crate::log::core::Core;

pub use copies::{Copies, TooMuch};
pub(crate) use error::Failed;
pub use error::{AppendError, FileDamage, FlushError, IoFailure, OpenError, PruneError, TruncateError};
pub use flush::Flusher;
pub use format::SEGMENT_HEADER_LEN;
pub(crate) use index::{create_anew, read_whole, write_whole};
pub use life::Life;
pub(crate) use lists::last_membership;
pub use reader::MappedScanner;
pub use recover::{Opened, TailCut, TailVerdict};
pub use repair::{MendError, Wounded};
pub(crate) use retention::ENGINE_PIN;
pub use retention::{Pin, PinInfo, Pruned};
pub use saved::{Saved, retire_saved};
pub use scanner::{LogScanner, Run, ScanError};
pub use scrub::{ScrubPlace, Scrubbed};
pub use size::Extent;
pub use truncate::Truncated;
pub use writer::Appended;

/// The lock file's name in the log's directory.
const LOCK_NAME: &str = "lock";
/// The name of the intent of a snapshot's install, in the log's directory.
pub(crate) const INSTALL_NAME: &str = "install";

/// Where a log is, and how it behaves.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The directory, one for each log; made if missing.
    pub dir: PathBuf,
    /// The group. A directory of another group is refused.
    pub group: GroupId,
    /// Bytes of a segment, at least 4096. A segment is larger if an entry of `max_payload` would not fit.
    pub segment_bytes: u64,
    /// The longest payload that may be appended, in bytes; at most [`crate::entry::MAX_PAYLOAD`].
    pub max_payload: usize,
    /// How long something may stay unflushed if nobody asks for a flush.
    pub lazy_flush: Duration,
    /// What opening does with an end that a crash does not explain.
    pub doubtful: DoubtfulTail,
}

/// What opening does with damage past the last sync mark that may have taken what was flushed. A torn write at the very
/// end is always cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DoubtfulTail {
    /// Saves and cuts it, and reports it. For a node that is alone in its group, that has noted durably from where on its
    /// log is in doubt, or after an operator's decision.
    Cut,
    /// Refuses to open if a torn write does not explain it; cuts a hole.
    Refuse,
    /// Refuses to open also if there is a hole. For a node that votes: whatever is lost behind a place may have been
    /// acknowledged, and has to be noted before it is cut. Sealed segments that are lost, or were cut short, are known
    /// as damaged, as others have them.
    RefuseHoles,
    /// Saves and cuts whatever is damaged, also what was durable. For a node that has noted durably from where on its log
    /// is damaged, and gets it back from others, or after an operator's decision.
    CutDurable,
}

impl LogConfig {
    /// Segments of 64 MiB, payloads of up to 8 MiB, a lazy flush after 100 ms; a doubtful tail is cut.
    pub fn new(dir: impl Into<PathBuf>, group: GroupId) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            group,
            segment_bytes: 64 * 1024 * 1024,
            max_payload: 8 * 1024 * 1024,
            lazy_flush: Duration::from_millis(100),
            doubtful: DoubtfulTail::Cut,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        if self.segment_bytes < 4096 {
            return Err(OpenError::Config("segment_bytes is below 4096"));
        }
        if self.max_payload == 0 || self.max_payload > crate::entry::MAX_PAYLOAD {
            return Err(OpenError::Config("max_payload is not between 1 byte and 1 GiB"));
        }
        Ok(())
    }
}

/// An open log: a cheap handle, all of whose methods may be called from any thread.
#[derive(Clone)]
pub struct Log {
    core: Arc<Core>,
}

impl Log {
    /// Opens the log in `config.dir`, making it if the directory is empty. Reads the last segment and the indexes of
    /// the others. Whatever is in the log afterwards is flushed.
    ///
    /// # Errors
    /// [`OpenError`]; the files are as they were, but that an interrupted truncation may have been finished.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
    ) -> Result<(Log, Opened), OpenError> {
        use error::Failed;
        let path = config.dir.join(INSTALL_NAME);
        match disk.open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                other.failed("open", &path)?;
                return Err(OpenError::HalfInstalled { path });
            }
        }
        Log::open_to_install(disk, clock, config)
    }

    /// [`open`](Log::open), also where the install of a snapshot has begun: for whoever finishes that.
    pub(crate) fn open_to_install(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        config: LogConfig,
    ) -> Result<(Log, Opened), OpenError> {
        use error::Failed;
        config.check()?;
        disk.create_dir(&config.dir).failed("create", &config.dir)?;
        let path = config.dir.join(LOCK_NAME);
        let lock = match disk.lock(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(OpenError::Locked { path });
            }
            other => other.failed("lock", &path)?,
        };
        let capacity = stage::capacity(config.segment_bytes, config.max_payload);
        let place = recover::Place { disk: &*disk, clock: &*clock, config: &config, capacity };
        reserve::with_reserve(place, || truncate::resume(place))?;
        reserve::with_reserve(place, || reset::resume(place))?;
        let recovered = reserve::with_reserve(place, || recover::recover(place))?;
        let opened = recovered.opened.clone();
        let core = Core::new(disk, clock, config, capacity, lock, recovered);
        Ok((Log { core: Arc::new(core) }, opened))
    }

    /// Appends entries of `term`, in order and all or none. They have their VLSNs when this returns, and may be in
    /// memory only. Writes if 64 KiB are staged and nobody else does; never waits for a sync.
    ///
    /// # Errors
    /// [`AppendError`]; none of the entries is in the log then.
    #[inline]
    pub fn append(&self, term: Term, entries: &[NewEntry<'_>]) -> Result<Appended, AppendError> {
        self.core.append(term, entries)
    }

    /// From now on [`append`](Log::append) fails in a term below this one. It takes effect under the lock under which
    /// entries get their VLSNs: when this returns, no entry of a lower term comes in any more but by
    /// [`append_run`](Log::append_run). A lower fence than the present one changes nothing.
    pub fn fence(&self, term: Term) {
        let mut stage = self.core.stage.lock();
        stage.fence = stage.fence.max(term);
    }

    /// Appends a run of replicated entries as they are, with one write, before it returns. The run was verified, by
    /// [`crate::entry::verify_run`], to continue this log, and `summary` is what that returned.
    ///
    /// # Errors
    /// [`AppendError`]; nothing of the run is in the log then, unless it is longer than a segment: then whole entries
    /// from its beginning may be.
    pub fn append_run(&self, run: &[u8], summary: &RunSummary) -> Result<(), AppendError> {
        self.core.append_run(run, summary)
    }

    /// Writes what is staged, so that readers see it. Waits for a write in progress, never for a sync.
    ///
    /// # Errors
    /// [`AppendError::Io`] or `Poisoned`. What could not be written stays staged, and is written by the next who tries.
    pub fn write_out(&self) -> Result<(), AppendError> {
        self.core.write_out()
    }

    /// Makes the entries up to `to` durable: syncs, for all who wait, if nobody else does, or waits for who does.
    /// `false`: `wait` ended first, or the thread was poked. The sync itself is not cut short by `wait`.
    ///
    /// # Errors
    /// [`FlushError`].
    pub fn flush(&self, to: Vlsn, wait: Wait) -> Result<bool, FlushError> {
        self.core.flush(to, wait)
    }

    /// Asks the flusher for a flush up to `to`. Never blocks.
    pub fn request_flush(&self, to: Vlsn) {
        let life = self.core.life();
        life.wanted.advance(to.get().min(life.appended.get()));
    }

    /// The worker that serves [`request_flush`](Log::request_flush). One for each log.
    pub fn flusher(&self) -> Flusher {
        Flusher::new(Arc::clone(&self.core))
    }

    /// Sets what is called after `flushed` advanced, with the new position, or nothing. It is called by the thread that
    /// synced, while no other flush or truncation runs: it must not block, flush, truncate or close.
    pub fn on_flushed(&self, hook: Option<Arc<dyn Fn(Vlsn) + Send + Sync>>) {
        *self.core.hook.lock() = hook;
    }

    /// The last appended entry.
    pub fn last(&self) -> Option<Position> {
        self.core.stage.lock().tail
    }

    /// The oldest entry that is still there.
    pub fn oldest(&self) -> Option<Vlsn> {
        self.core.oldest()
    }

    /// The positions of the log's present life.
    pub fn life(&self) -> Arc<Life> {
        self.core.life()
    }

    /// A reader of the log's present life.
    pub fn scanner(&self) -> MappedScanner {
        MappedScanner::new(Arc::clone(&self.core))
    }

    /// The position of one entry, or of the one before the oldest. Reads it and verifies its CRC.
    ///
    /// # Errors
    /// [`ScanError`].
    pub fn position_at(&self, vlsn: Vlsn) -> Result<Position, ScanError> {
        self.core.position_at(vlsn)
    }

    /// The terms of the entries that the log holds, ascending.
    pub fn term_history(&self) -> Vec<TermSpan> {
        self.core.stage.lock().terms.clone()
    }

    /// The membership entries that the log holds, ascending: appended, and perhaps not flushed or committed.
    pub fn memberships(&self) -> Vec<Vlsn> {
        self.core.stage.lock().stated.memberships.clone()
    }

    /// The lists of slots that the log holds, as [`memberships`](Log::memberships).
    pub fn slot_lists(&self) -> Vec<Vlsn> {
        self.core.stage.lock().stated.slots.clone()
    }

    /// The payload of one entry. Reads it and verifies its CRC.
    ///
    /// # Errors
    /// [`ScanError`].
    pub fn payload(&self, vlsn: Vlsn) -> Result<Vec<u8>, ScanError> {
        self.core.payload(vlsn)
    }

    /// The entry before the oldest; `None` if the log goes back to the group's first entry.
    pub fn base(&self) -> Option<Position> {
        self.core.catalog.lock().base()
    }

    /// Cuts off everything after `keep`, all for `None`: makes the log durable, saves what is cut to a file, replaces
    /// the segment with the cut and ends the life. Blocks flushes and appends meanwhile.
    ///
    /// # Errors
    /// [`TruncateError`]. After `Full` and `Damaged` nothing is changed. After `Io` and `Reopen` the log is poisoned, and opening it finishes
    /// or undoes the cut.
    pub fn truncate_after(&self, keep: Option<Vlsn>) -> Result<Truncated, TruncateError> {
        self.core.truncate_after(keep)
    }

    /// Replaces the log by an empty one that stands on `base`, an entry that is committed in the group: what this log holds
    /// above what it knows to be committed is saved first, as by [`truncate_after`](Log::truncate_after), and then everything goes. The
    /// life ends.
    ///
    /// # Errors
    /// [`TruncateError`]: `BelowCommitted`, if this log knows of more; then nothing was changed. After `Io` and `Reopen` the log is
    /// poisoned, and opening it finishes what was begun.
    pub fn reset(&self, base: Position) -> Result<Truncated, TruncateError> {
        self.core.reset(base)
    }

    /// Removes the sealed segments all of whose entries lie below `floor` and below every pin. Appends go on meanwhile,
    /// and readers keep the segment that they are in.
    ///
    /// # Errors
    /// [`PruneError`].
    pub fn prune(&self, floor: Vlsn) -> Result<Pruned, PruneError> {
        self.core.prune(floor)
    }

    /// Keeps the entries from `from` on until the pin is dropped; those that are still there, as [`Pin::holds`] tells.
    /// `owner` says who needs them, as `kind:NAME`: for the rules that bound pins of some kinds (`crate::retention`), and for
    /// people who wonder why nothing is pruned.
    pub fn pin(&self, owner: &str, from: Vlsn) -> Pin {
        Pin::new(Arc::clone(&self.core), owner, from)
    }

    /// All pins, in the order in which they were made.
    pub fn pins(&self) -> Vec<PinInfo> {
        self.core.pins()
    }

    /// From now on the pin of this number keeps nothing. Returns whether it kept something until now.
    pub fn give_up(&self, number: u64) -> bool {
        self.core.set_void(number, true)
    }

    /// A pin that was given up keeps again what it asks for, unless some of that is gone. Returns whether it does so from
    /// now on.
    pub fn take_back(&self, number: u64) -> bool {
        self.core.set_void(number, false)
    }

    /// Notes that the entries up to `vlsn` are committed, as far as the log has them; the next sync mark says so, and
    /// no truncation goes below. For a replica: only after its log was matched with the master's.
    pub fn note_committed(&self, vlsn: Vlsn) {
        self.core.note_committed(vlsn);
    }

    /// The committed VLSN that the marks stated when the log was opened.
    pub fn known_committed(&self) -> Option<Vlsn> {
        self.core.committed_at_open
    }

    /// The entries that are known to be damaged, and not healed yet.
    pub fn damaged(&self) -> Vec<VlsnRange> {
        self.core.damaged()
    }

    /// Damaged places that were found since the log was opened; rises by one with each.
    pub fn damages_found(&self) -> &crate::watermark::Watermark {
        &self.core.damages.found
    }

    /// Rises when something may be damaged no more: it was healed, or cut.
    pub fn damages_eased(&self) -> &crate::watermark::Watermark {
        &self.core.damages.eased
    }

    /// Damaged segments that were healed since the log was opened.
    pub fn damages_healed(&self) -> u64 {
        self.core.damages.healed.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Seals the segments in which damage is known, also the one that is written to: a new one is begun behind it.
    ///
    /// # Errors
    /// [`FlushError`]: what is not sealed can be sealed by a later call.
    pub fn seal_damaged(&self) -> Result<(), FlushError> {
        self.core.seal_damaged()
    }

    /// Looks through the first damaged segment that is sealed: what of it is good, and what has to be fetched.
    pub fn wounded(&self) -> Option<Wounded> {
        self.core.wounded()
    }

    /// What was cut off behind damage when the log was opened with [`DoubtfulTail::CutDurable`], and is good.
    ///
    /// # Errors
    /// [`IoFailure`].
    pub fn saved(&self) -> Result<Saved, IoFailure> {
        Saved::read(&*self.core.disk, &self.core.config.dir)
    }

    /// Reads the next part of a segment from its file and verifies it.
    pub fn scrub(&self, at: ScrubPlace) -> Scrubbed {
        self.core.scrub(at)
    }

    /// Whether the last write failed, so that entries wait to be written: nothing is appended meanwhile.
    pub fn stuck(&self) -> bool {
        self.core.stage.lock().stuck
    }

    /// Whether a failed sync ended this log's part.
    pub fn poisoned(&self) -> bool {
        self.core.is_poisoned()
    }

    /// Flushes everything and the mark that says so, ends the life and lets go of the directory. Idempotent.
    ///
    /// # Errors
    /// [`FlushError`]; the log is closed all the same.
    pub fn close(&self) -> Result<(), FlushError> {
        self.core.close()
    }
}
