//! Replacing the log by an empty one that stands on a snapshot's entry. As with a cut, an intent is durable before anything
//! is touched, and opening finishes what a crash interrupts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::ids::Position;
use crate::log::core::Core;
use crate::log::error::{Failed, FileDamage, OpenError, TruncateError};
use crate::log::format::{ResetIntent, first_in_name, segment_name};
use crate::log::index::{read_whole, write_whole};
use crate::log::recover::{Place, recover, remove_segment, remove_sidecar, sync_dir};
use crate::log::saved::write_segment;
use crate::log::truncate::Truncated;

const INTENT_NAME: &str = "reset.intent";

impl Core {
    pub(super) fn reset(&self, base: Position) -> Result<Truncated, TruncateError> {
        if let Some(committed) = self.committed().filter(|committed| *committed > base.vlsn) {
            return Err(TruncateError::BelowCommitted { keep: Some(base.vlsn), committed });
        }
        // What nobody said to be committed is kept in a file, as after any cut.
        let stands_on = self.catalog.lock().base().map(|base| base.vlsn);
        // Damage may have cut the log below that.
        let last = self.stage.lock().tail.map(|last| last.vlsn);
        let saved = self.truncate_after(self.committed().max(stands_on).min(last))?;
        let mut still = self.stand_still()?;
        if still.stage.tail == Some(base) && self.catalog.lock().base() == Some(base) {
            return Ok(Truncated { last: still.stage.tail, ..saved });
        }
        let place = self.leave_memory(&mut still);
        let outcome = self.with_reserve(|| begin(place, base)).and_then(|()| {
            self.with_reserve(|| finish(place, base))?;
            self.with_reserve(|| recover(place))
        });
        let recovered = match outcome {
            Ok(recovered) => recovered,
            Err(error) => {
                self.fail_for_good(&still);
                return Err(error.into());
            }
        };
        self.committed.fetch_max(base.vlsn.get(), Ordering::AcqRel);
        let old = Arc::clone(&still.stage.life);
        self.adopt(&mut still, recovered);
        self.void_pins();
        old.end();
        drop(still.stage);
        self.wake_flusher();
        Ok(Truncated { last: Some(base), ..saved })
    }
}

fn begin(place: Place<'_>, base: Position) -> Result<(), OpenError> {
    let intent = ResetIntent { base }.encode(place.config.group);
    write_whole(place.disk, &place.config.dir, INTENT_NAME, &intent)?;
    Ok(sync_dir(place)?)
}

/// Removes all segments, the last first, makes the new one, and then removes the intent. Can be repeated from any point.
fn finish(place: Place<'_>, base: Position) -> Result<(), OpenError> {
    let dir = &place.config.dir;
    let names = place.disk.list(dir).failed("list", dir)?;
    let first = base.vlsn.next();
    for old in names.iter().rev().filter_map(|name| first_in_name(name, ".seg")).filter(|old| *old != first) {
        remove_segment(place, old)?;
    }
    remove_sidecar(place, first)?;
    let path = dir.join(segment_name(first));
    let head = (place.config.group, first, Some(base));
    write_segment(place.disk, place.clock, &path, place.capacity, head, &[])?;
    sync_dir(place)?;
    let path = dir.join(INTENT_NAME);
    place.disk.remove(&path).failed("remove", &path)?;
    Ok(sync_dir(place)?)
}

/// At open: finishes what had begun.
pub(super) fn resume(place: Place<'_>) -> Result<(), OpenError> {
    let path = place.config.dir.join(INTENT_NAME);
    let Some(bytes) = read_whole(place.disk, &path, ResetIntent::LEN as u64)? else { return Ok(()) };
    let intent = ResetIntent::decode(&bytes, place.config.group)
        .map_err(|damage: FileDamage| OpenError::File { path, damage })?;
    finish(place, intent.base)
}
