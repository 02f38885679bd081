//! Feeding from a node that follows: what a replica passes on of its log, to secondaries only.

use std::sync::Arc;

use crate::channel::Channel;
use crate::clock::Deadline;
use crate::commit::End;
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::feeder::Feeding;
use crate::feeder::hub::{Hub, Parts, Reign, Source, Upstream};
use crate::feeder::status::ReplicaStats;
use crate::handshake::Identity;
use crate::ids::{NodeId, Term, Vlsn, number};
use crate::members::{Members, Roll};
use crate::runtime::Runtime;
use crate::worker::Stop;

/// The feeders of a node that follows a master itself. It orders no cut, what is acknowledged to it counts for no quorum,
/// and it tells no more of what is committed than it was told. It has to be [closed](Relay::close) before the node cuts
/// its own log, and when the node follows another term.
///
/// A cheap handle; any thread may call any method.
#[derive(Clone)]
pub struct Relay {
    hub: Arc<Hub>,
}

impl Relay {
    /// Feeders from `source` in the term that the node follows, of the members on the `roll`. `on_failure` is called when
    /// one of their workers failed in a way that a single connection can't explain.
    #[allow(clippy::too_many_arguments, reason = "each is a part of the node, passed once")]
    pub fn new(
        config: Arc<CheckedConfig>,
        identity: Identity,
        roll: Arc<Roll>,
        source: Arc<dyn Source>,
        runtime: Arc<dyn Runtime>,
        upstream: Upstream,
        counters: Arc<Counters>,
        on_failure: Box<dyn Fn(&Stop) + Send + Sync>,
    ) -> Relay {
        let reign = Reign::Follows(upstream);
        let parts = Parts { config, identity, roll, source, runtime, reign, counters, on_failure };
        Relay { hub: Arc::new(Hub::new(parts)) }
    }

    /// Sets who is told when a member that was welcomed speaks of a newer term than the one followed. To be called before
    /// the first connection comes, and once. Must not block, nor wait for the feeders' workers.
    pub fn on_fence(&self, hook: Box<dyn Fn(Term) + Send + Sync>) {
        self.hub.on_fence(hook);
    }

    /// As [`Feeders::tend`](crate::feeder::Feeders::tend).
    pub fn tend(&self, now: Deadline) -> Deadline {
        self.hub.tend_needing(now)
    }

    /// Serves a connected secondary; others are told who the master is. Returns at once. `first` is the connection's
    /// first frame, if whoever accepted it has read that.
    pub fn accept(&self, channel: Arc<dyn Channel>, first: Option<Vec<u8>>) {
        self.hub.accept(channel, first);
    }

    /// Tells the feeders that entries up to here can be read. Wakes sleeping feeders.
    pub fn appended(&self, last: Vlsn) {
        self.hub.wake_feeders(last);
    }

    /// Tells the secondaries how far the group has committed, as far as this node knows; does not block. Entries and
    /// heartbeats carry it in any case.
    pub fn tell_committed(&self) {
        self.hub.tell_committed(number(self.hub.committed()));
    }

    /// Puts another member list in force, on the roll and for those who are connected. Does not block.
    pub fn set_members(&self, members: Arc<Members>) {
        self.hub.set_members(members);
    }

    /// Pauses or resumes the feeding of a secondary; heartbeats go on.
    pub fn set_feeding(&self, node: &NodeId, feeding: Feeding) -> bool {
        self.hub.set_paused(node, feeding == Feeding::Paused)
    }

    /// Every other member and how its feeder here stands.
    pub fn status(&self) -> Vec<ReplicaStats> {
        self.hub.status()
    }

    /// A number that rises with every change of who is connected or paused.
    pub fn topology_epoch(&self) -> u64 {
        self.hub.topology_epoch()
    }

    /// Cuts all connections and refuses new ones, without waiting for the workers.
    pub fn sever(&self) {
        self.hub.sever(End::LifeEnded);
    }

    /// Ends all feeders and waits for their workers. Not to be called by a worker of theirs.
    pub fn close(&self) {
        self.hub.close();
    }
}
