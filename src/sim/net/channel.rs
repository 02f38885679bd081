//! One side of a simulated connection.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Item, SimNet};
use crate::channel::{Channel, ChannelError, Peer, ReceiveBuffer};
use crate::clock::Wait;
use crate::sim::fault::Fault;
use crate::wire::frame::{FrameError, FrameHeader};

/// A channel over a simulated network.
pub(super) struct SimChannel {
    net: Arc<SimNet>,
    link: u64,
    side: usize,
    peer: Peer,
    max_frame: AtomicU32,
}

impl SimChannel {
    pub(super) fn new(net: Arc<SimNet>, link: u64, side: usize, peer: Peer) -> SimChannel {
        SimChannel { net, link, side, peer, max_frame: AtomicU32::new(u32::MAX) }
    }

    fn take(&self) -> Result<Option<(Vec<u8>, bool)>, ChannelError> {
        let now = self.net.clock.nanos();
        let mut state = self.net.state.lock();
        let state = &mut *state;
        let ends = state.links.get(&self.link).ok_or(ChannelError::Closed)?;
        if ends[self.side].closed {
            return Err(ChannelError::Closed);
        }
        if state.is_blocked(&ends[1 - self.side].node, &ends[self.side].node) {
            return Ok(None);
        }
        let Some(end) = state.links.get_mut(&self.link).map(|ends| &mut ends[self.side]) else {
            return Err(ChannelError::Closed);
        };
        match end.inbox.front() {
            Some((due, _)) if *due <= now => {}
            _ => return Ok(None),
        }
        match end.inbox.pop_front() {
            Some((_, Item::Frame(frame))) => {
                end.bytes -= frame.len();
                let more = end
                    .inbox
                    .front()
                    .is_some_and(|(due, item)| *due <= now && matches!(item, Item::Frame(_)));
                self.net.trace.note(&[self.link, self.side as u64, frame.len() as u64]);
                self.net.trace.note_bytes(&frame);
                Ok(Some((frame, more)))
            }
            Some((_, Item::End(why))) => {
                let error = why.clone();
                end.inbox.push_front((now, Item::End(why)));
                Err(error)
            }
            None => Ok(None),
        }
    }
}

impl Channel for SimChannel {
    fn send(&self, frame: &[IoSlice<'_>], _wait: Wait) -> Result<bool, ChannelError> {
        let len: usize = frame.iter().map(|slice| slice.len()).sum();
        let limit = self.max_frame.load(Ordering::Relaxed);
        if len as u64 > u64::from(limit) {
            return Err(FrameError::TooLong { len: len as u64, limit }.into());
        }
        let now = self.net.clock.nanos();
        let mut state = self.net.state.lock();
        let state = &mut *state;
        let ends = state.links.get_mut(&self.link).ok_or(ChannelError::Closed)?;
        if ends[self.side].closed {
            return Err(ChannelError::Closed);
        }
        let (here, there) = (ends[self.side].node.clone(), ends[1 - self.side].node.clone());
        let ended = ends[self.side]
            .inbox
            .back()
            .is_some_and(|(due, item)| *due <= now && matches!(item, Item::End(_)));
        if ended && !state.is_blocked(&there, &here) {
            return Err(ChannelError::Closed);
        }
        let Some(target) = state.links.get_mut(&self.link).map(|ends| &mut ends[1 - self.side]) else {
            return Err(ChannelError::Closed);
        };
        // The other side has ended, which this side does not know yet: the bytes go nowhere.
        if target.closed || matches!(target.inbox.back(), Some((_, Item::End(_)))) {
            return Ok(true);
        }
        if target.bytes > 0 && target.bytes + len > state.config.buffer {
            state.counts.add(Fault::NoRoom);
            return Ok(false);
        }
        if state.rng.chance(state.config.lose) {
            state.counts.add(Fault::LostFrame);
            return Ok(true);
        }
        let mut bytes = Vec::with_capacity(len);
        frame.iter().for_each(|slice| bytes.extend_from_slice(slice));
        target.bytes += len;
        if len > 0 && state.rng.chance(state.config.damage) {
            bytes[state.rng.index(len)] ^= 1 << state.rng.below(8);
            state.counts.add(Fault::DamagedFrame);
        }
        state.post(self.link, 1 - self.side, Item::Frame(bytes), now);
        if state.rng.chance(state.config.reset) {
            state.reset(self.link, now);
        }
        Ok(true)
    }

    fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
        _wait: Wait,
    ) -> Result<Option<&'b [u8]>, ChannelError> {
        let Some((frame, more)) = self.take()? else { return Ok(None) };
        let header = FrameHeader::parse(&frame, self.max_frame.load(Ordering::Relaxed));
        let whole = header.and_then(|header| match frame.len().checked_sub(header.frame_len()) {
            Some(0) => Ok(()),
            Some(more) => Err(FrameError::Trailing(more)),
            None => Err(FrameError::Short { needed: header.frame_len(), present: frame.len() }),
        });
        if let Err(error) = whole {
            self.close();
            return Err(error.into());
        }
        buffer.hold(frame, more);
        Ok(Some(buffer.lent()))
    }

    fn close(&self) {
        let now = self.net.clock.nanos();
        self.net.state.lock().end_side(self.link, self.side, now, false);
    }

    fn limit_frames(&self, max_frame: u32) {
        self.max_frame.store(max_frame, Ordering::Relaxed);
    }

    fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        self.close();
    }
}
