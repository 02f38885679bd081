//! Digests of entries as they stand in this node's files, for whoever compares nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use twox_hash::XxHash3_128;

use crate::clock::{Clock, Deadline};
use crate::entry::{EntryRef, follows};
use crate::ids::{Position, Vlsn, VlsnRange, number};
use crate::log::scanner::{LogScanner, Run, ScanError};
use crate::log::{Log, MappedScanner, ScrubPlace};
use crate::node::group::Shared;
use crate::wire::message::{ControlReply, RangeDigest};

/// What one answer covers at most.
const MOST_BYTES: u64 = 64 << 20;
const MOST_ENTRIES: u64 = 1 << 20;
/// Or what can be read in this time, so that whoever waits for the answer knows that the node lives.
const MOST_TIME: Duration = Duration::from_secs(2);
/// What is read at once.
const STEP_BYTES: usize = 1 << 20;
const STEP_ENTRIES: u64 = 16 << 10;
/// So many digests are made at the same time: they are to leave disk and processors to others.
const AT_ONCE: usize = 2;

/// The digests that are being made.
#[derive(Default)]
pub(super) struct Digests(AtomicUsize);

/// One of them: its end makes room.
struct Place(Arc<Digests>);

impl Digests {
    fn take(self: &Arc<Digests>) -> Option<Place> {
        let room = |taken: usize| (taken < AT_ONCE).then_some(taken + 1);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        Some(Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A digest that is being made, step by step, by the thread of the connection that asked for it.
pub(super) struct Digesting {
    log: Log,
    scanner: MappedScanner,
    clock: Arc<dyn Clock>,
    until: Deadline,
    range: VlsnRange,
    /// The entry before the next; `None` before the log's first.
    behind: Option<Position>,
    bytes: u64,
    digest: XxHash3_128,
    _place: Place,
}

impl Shared {
    /// Begins to digest a range, or says why not.
    pub fn digest(&self, range: VlsnRange) -> Result<Digesting, String> {
        let (log, apply) = (&self.core.log, &self.core.apply);
        let (first, last) = (range.first(), range.last());
        let oldest = log.oldest();
        if oldest.is_none_or(|oldest| first < oldest) {
            return Err(match oldest {
                Some(oldest) => format!("VLSN {first} is gone from the log, which begins at {oldest}"),
                None => "this node holds no entries".to_owned(),
            });
        }
        let (committed, flushed) = (apply.committed.get(), log.life().flushed.get());
        if last.get() > committed.min(flushed) {
            return Err(format!(
                "VLSN {last} is beyond what this node can vouch for: it knows entries to be committed up to \
                 {committed}, and has flushed up to {flushed}"
            ));
        }
        let Some(place) = self.digests.take() else {
            return Err(format!("{AT_ONCE} digests are being made already; ask again in a moment"));
        };
        Ok(Digesting {
            scanner: log.scanner(),
            // If it can't be read, the joint between the two is not looked at.
            behind: first.previous().and_then(|before| log.position_at(before).ok()),
            log: log.clone(),
            clock: Arc::clone(&self.core.clock),
            until: self.core.clock.now() + MOST_TIME,
            range,
            bytes: 0,
            digest: XxHash3_128::new(),
            _place: place,
        })
    }
}

impl Digesting {
    /// Digests some more. The answer, if that was all that one answer covers.
    pub fn step(&mut self) -> Option<ControlReply> {
        let first = self.range.first();
        let after = self.behind.map(|at| at.vlsn).max(first.previous());
        let left = self.range.last().get() - number(after);
        let most = u32::try_from(left.min(STEP_ENTRIES)).unwrap_or(u32::MAX);
        let run = match self.scanner.run(after, most, STEP_BYTES) {
            Ok(Some(run)) => run,
            Err(ScanError::LifeEnded) => {
                self.scanner = self.log.scanner();
                return (self.clock.now() >= self.until).then(|| self.late());
            }
            Err(error @ ScanError::Damaged { from, .. }) => {
                // What is known of a segment begins with its first damage, which may lie before what was asked for.
                let at = from.max(Vlsn::after(after));
                log::error!("VLSN {at} can't be digested: {error}");
                return Some(ControlReply::Damaged(at));
            }
            Err(error) => return Some(ControlReply::Refused(error.to_string())),
            Ok(None) => {
                return Some(ControlReply::Refused(format!("the log ends after VLSN {}", number(after))));
            }
        };
        if let Err(at) = check(&run, self.behind) {
            log::error!("VLSN {at} can't be digested: its bytes, or its place in the chain, are damaged");
            self.note(at);
            return Some(ControlReply::Damaged(at));
        }
        for slice in run.slices() {
            self.digest.write(slice);
        }
        self.bytes += run.len_bytes() as u64;
        let last = run.last;
        self.behind = Some(last);
        let over = last.vlsn >= self.range.last()
            || self.bytes >= MOST_BYTES
            || last.vlsn.get() - first.get() >= MOST_ENTRIES
            || self.clock.now() >= self.until;
        let range = VlsnRange::new(first, last.vlsn).filter(|_| over)?;
        let digest = self.digest.finish_128();
        Some(ControlReply::Digest(RangeDigest { range, bytes: self.bytes, digest, last }))
    }

    /// The log's readers trust what they verified once: the damage has to be found in the file, to be healed.
    fn note(&self, at: Vlsn) {
        let mut place = ScrubPlace::behind(at.previous());
        while let Some(next) = self.log.scrub(place).next
            && next.after < Some(at)
        {
            place = next;
        }
    }

    fn late(&self) -> ControlReply {
        ControlReply::Refused("the log is being cut or replaced; ask again in a moment".to_owned())
    }
}

/// Verifies every entry's CRC, and that each follows the one before it, also where the scanner remembers that this process
/// wrote or verified them: the files may have changed since. Names the first that does not fit.
fn check(run: &Run<'_>, behind: Option<Position>) -> Result<(), Vlsn> {
    let (mut expected, mut behind) = (run.first, behind.map(|at| (at.term, at.crc)));
    for slice in run.slices() {
        let mut rest = *slice;
        while !rest.is_empty() {
            let entry = EntryRef::verify(rest).map_err(|_| expected)?;
            let header = entry.header();
            let (term, prev) = behind.unwrap_or((header.term, header.prev));
            follows(header, expected, term, prev).map_err(|_| expected)?;
            behind = Some((header.term, header.crc));
            expected = expected.next();
            rest = &rest[entry.bytes().len()..];
        }
    }
    if expected == run.last.vlsn.next() && behind == Some((run.last.term, run.last.crc)) {
        Ok(())
    } else {
        Err(run.last.vlsn)
    }
}
