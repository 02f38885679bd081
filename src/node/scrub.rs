//! The worker "scrub": reads sealed segments at a bounded rate, so that damage is found while others have a good copy.

use std::io::{Error, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::clock::{Deadline, Wait};
use crate::disk::Disk;
use crate::ids::{Vlsn, number};
use crate::log::ScrubPlace;
use crate::node::group::Shared;
use crate::worker::{Step, Stop, Worker};

const MAGIC: &[u8; 8] = b"QRSCRUB\0";
const VERSION: u32 = 1;
/// Bytes of the file.
const LEN: usize = 8 + 4 + 8 + 8 + 8 + 8 + 4;

/// What outlasts a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Round {
    /// The round under way came here; `None`: it has not begun.
    after: Option<Vlsn>,
    /// Bytes that it read.
    bytes: u64,
    /// When the last whole round ended, and what it read.
    ended: u64,
    ended_bytes: u64,
}

impl Round {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        for field in [number(self.after), self.bytes, self.ended, self.ended_bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` for anything that this software did not write: then a round begins anew.
    fn decode(bytes: &[u8]) -> Option<Round> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let good = body.starts_with(MAGIC)
            && body[8..12] == VERSION.to_le_bytes()
            && crc32fast::hash(body) == u32::from_le_bytes(*crc);
        let field =
            |at: usize| body[12 + 8 * at..].first_chunk::<8>().map(|field| u64::from_le_bytes(*field));
        let round =
            Round { after: Vlsn::new(field(0)?), bytes: field(1)?, ended: field(2)?, ended_bytes: field(3)? };
        good.then_some(round)
    }
}

/// The worker.
pub(super) struct Scrub {
    node: Weak<Shared>,
    path: PathBuf,
    round: Round,
    /// Where the round under way is.
    place: Option<ScrubPlace>,
    orders: u64,
    /// Not before then.
    due: Option<Deadline>,
}

impl Scrub {
    pub fn new(node: &Arc<Shared>) -> Scrub {
        let path = node.core.config.dir.join("scrub");
        let round = read(&*node.core.host.disk, &path).unwrap_or_default();
        let place = round.after.map(|after| ScrubPlace::behind(Some(after)));
        {
            let mut status = node.mending.scrub.lock();
            (status.ended, status.bytes) = (round.ended, round.ended_bytes);
        }
        Scrub { node: Arc::downgrade(node), path, round, place, orders: 0, due: None }
    }

    /// When the next round begins by itself.
    fn next_round(&self, node: &Shared, now: Deadline) -> Deadline {
        if node.core.config.scrub_bytes_per_second == 0 {
            return Deadline::NEVER;
        }
        let passed = Duration::from_micros(node.core.clock.wall_micros().saturating_sub(self.round.ended));
        now + node.core.config.scrub_every.saturating_sub(passed)
    }

    fn read_on(&mut self, node: &Shared, place: ScrubPlace, now: Deadline) {
        let before = place.after;
        let scrubbed = node.core.log.scrub(place);
        self.round.bytes += scrubbed.bytes;
        self.place = scrubbed.next;
        let after = scrubbed.next.and_then(|next| next.after);
        if scrubbed.next.is_none() {
            let (ended, ended_bytes) = (node.core.clock.wall_micros(), self.round.bytes);
            self.round = Round { after: None, bytes: 0, ended, ended_bytes };
        } else if scrubbed.next == Some(ScrubPlace::behind(after)) && after > before {
            // A segment is done.
            self.round.after = after;
        }
        let done = scrubbed.next.is_none() || self.round.after == after;
        if done && let Err(error) = write(&*node.core.host.disk, &self.path, &self.round) {
            log::warn!("{} can't be written; the scrubber would begin anew: {error}", self.path.display());
        }
        let mut status = node.mending.scrub.lock();
        (status.at, status.ended, status.bytes) = (after, self.round.ended, self.round.ended_bytes);
        drop(status);
        // A round that was ordered where there is to be none goes at the default's pace.
        let rate = match node.core.config.scrub_bytes_per_second {
            0 => 16 << 20,
            rate => rate,
        };
        let nanos = u128::from(scrubbed.bytes) * 1_000_000_000 / u128::from(rate);
        self.due = Some(now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
    }
}

impl Worker for Scrub {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        let now = node.core.clock.now();
        let orders = &node.mending.orders;
        if orders.wait(0, Wait::Now).is_err() || node.core.log.poisoned() {
            return Err(Stop::Done);
        }
        let ordered = orders.get();
        if ordered > self.orders {
            self.orders = ordered;
            (self.place, self.round.after, self.round.bytes) = (Some(ScrubPlace::default()), None, 0);
            self.due = None;
        }
        let due = match (self.place, self.due) {
            (Some(_), due) => due.unwrap_or(now),
            (None, _) => self.next_round(&node, now),
        };
        if now < due {
            return match orders.wait(self.orders + 1, wait.at_most(due)) {
                Ok(true) => Ok(Step::Worked),
                Ok(false) => Ok(Step::Idle { due }),
                Err(_closed) => Err(Stop::Done),
            };
        }
        let place = self.place.unwrap_or_default();
        self.read_on(&node, place, now);
        Ok(Step::Worked)
    }
}

fn read(disk: &dyn Disk, path: &Path) -> Option<Round> {
    let file = disk.open(path).ok()?;
    let mut bytes = [0; LEN];
    let read = file.read_at(&mut bytes, 0).ok()?;
    Round::decode(&bytes[..read])
}

/// Not synced with its directory: a place that is lost costs a round, and no more.
fn write(disk: &dyn Disk, path: &Path, round: &Round) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    let _none = disk.remove(&temporary);
    let bytes = round.encode();
    let file = disk.create(&temporary, bytes.len() as u64)?;
    file.write_at(&[IoSlice::new(&bytes)], 0)?;
    file.sync()?;
    disk.rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_round_trips_and_every_flipped_bit_begins_anew() {
        let round = Round { after: Vlsn::new(77), bytes: 3, ended: 4, ended_bytes: 5 };
        let bytes = round.encode();
        assert_eq!(bytes.len(), LEN);
        assert_eq!(Round::decode(&bytes), Some(round));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Round::decode(&damaged), None, "bit {bit}");
        }
    }
}
