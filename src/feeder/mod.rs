//! Feeding replicas: one connection is two workers on one channel, so that reading acks never waits behind sending, and
//! sending never behind acks.
//!
//! *feeder-acks* receives: it answers the replica's hello and syncup, and from then on takes acks and hands them to the
//! commit gates. *feeder-out* sends: entries as soon as the log has them, many in a frame while the replica catches up
//! and one at the tip, without a timer; and heartbeats, to arbiters nothing else. A committing thread that finds the
//! sending half free sends its own entry.

mod acks;
mod connection;
mod hub;
mod output;
mod provider;
mod registry;
mod relay;
mod status;

use std::sync::{Arc, Weak};

pub use connection::FeedError;
pub use hub::{Source, Upstream};
pub use relay::Relay;
pub use status::{FeederState, ReplicaStats};

use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::commit::{CommitError, CommitGates, End, Refused, Ticket};
use crate::config::CheckedConfig;
use crate::counters::Counters;
use crate::handshake::Identity;
use crate::ids::{NodeId, Term, Vlsn};
use crate::members::{Members, Roll};
use crate::policy::{Outcome, Policy};
use crate::progress::Positions;
use crate::runtime::Runtime;
use crate::slots::Slots;
use crate::watermark::Closed;
use crate::worker::{Step, Stop, Worker};

/// The feeders of a master, over quorate's own log or over one that an engine keeps itself and shows as a [`Source`].
///
/// A cheap handle; any thread may call any method.
#[derive(Clone)]
pub struct Feeders {
    hub: Arc<hub::Hub>,
    gates: Arc<CommitGates>,
}

impl Feeders {
    /// Feeders from `source` for the term that `gates` were made for, of the members on the `roll`. `on_failure` is
    /// called when one of their workers failed in a way that a single connection can't explain.
    #[allow(clippy::too_many_arguments, reason = "each is a part of the node, passed once")]
    pub fn new(
        config: Arc<CheckedConfig>,
        identity: Identity,
        roll: Arc<Roll>,
        source: Arc<dyn Source>,
        runtime: Arc<dyn Runtime>,
        gates: Arc<CommitGates>,
        counters: Arc<Counters>,
        on_failure: Box<dyn Fn(&Stop) + Send + Sync>,
    ) -> Feeders {
        let reign = hub::Reign::Leads(Arc::clone(&gates));
        let parts = hub::Parts { config, identity, roll, source, runtime, reign, counters, on_failure };
        Feeders { hub: Arc::new(hub::Hub::new(parts)), gates }
    }

    /// Sets who is told when a member that was welcomed speaks of a newer term than ours. To be called before the first
    /// connection comes, and once; the gates are closed by then. Must not block, nor wait for the feeders' workers.
    pub fn on_fence(&self, hook: Box<dyn Fn(Term) + Send + Sync>) {
        self.hub.on_fence(hook);
    }

    /// Serves a connected replica. Returns at once; the channel is closed if the node is closing or has as many
    /// connections as it may. `first` is the connection's first frame, if whoever accepted it has read that.
    pub fn accept(&self, channel: Arc<dyn Channel>, first: Option<Vec<u8>>) {
        self.hub.accept(channel, first);
    }

    /// Puts another member list in force: on the roll, for the gates, and for those who are connected. Does not block.
    pub fn set_members(&self, members: Arc<Members>) {
        self.hub.set_members(members);
    }

    /// Sends a heartbeat on every stream, now or as soon as its sender is free: its answers renew the
    /// [contact](CommitGates::contact). Does not block.
    pub fn beat(&self) {
        self.hub.beat_all();
    }

    /// Keeps the log from `oldest` on for every member that may be fetching a snapshot, until it streams, or for a while. To be
    /// called before the first connection comes.
    pub fn expect_needing(&self, oldest: Vlsn) {
        self.hub.expect_needing(oldest);
    }

    /// Lets go of the log that was kept for nodes which needed a snapshot and did not come back. Returns when to look again.
    pub fn tend(&self, now: Deadline) -> Deadline {
        self.hub.tend_needing(now)
    }

    /// Asks this replica to stand for election at once. `false` if it is not fed now, holds no data, or takes nothing
    /// at present: ask again.
    pub fn ask_to_stand(&self, node: &NodeId) -> bool {
        self.hub.ask_to_stand(node)
    }

    /// Ends this mastership, in favour of a newer term if one is known: waiting commits are told that this node was
    /// deposed, all connections end, new ones are refused. Does not wait for the workers:
    /// [`close`](Feeders::close) does.
    pub fn depose(&self, newer: Option<Term>) {
        if let Some(newer) = newer {
            self.hub.fence(newer);
        }
        self.hub.sever(End::Deposed);
    }

    /// The first gate: whether an append with this policy may go ahead.
    ///
    /// # Errors
    /// [`Refused`]: nothing may be written.
    pub fn admit(&self, policy: Policy) -> Result<(), Refused> {
        self.gates.admit(policy)
    }

    /// Whether a new member with a new directory waits for an entry that is appended now: only one of after it came shows
    /// that its old directory promised nothing that matters.
    pub fn newcomer_waits(&self) -> bool {
        self.hub.newcomer_waits()
    }

    /// Tells the feeders that entries up to here can be read, and what their writer waits for. Wakes sleeping feeders.
    pub fn appended(&self, last: Vlsn, policy: Policy) {
        self.hub.want(policy, last);
        self.hub.wake_feeders(last);
    }

    /// As [`appended`](Feeders::appended), for a writer that is about to wait: if it is alone, its own thread sends the
    /// entries, which saves a wake-up.
    pub fn push(&self, last: Vlsn, policy: Policy, others: Others) {
        self.hub.want(policy, last);
        match others {
            Others::None => self.hub.push(last),
            Others::Some => self.hub.wake_feeders(last),
        }
    }

    /// Counts the calling writer among those that wait, until the guard drops.
    pub fn commit_begins(&self) -> Committing {
        let alone = self.hub.commit_begins();
        Committing { hub: Arc::clone(&self.hub), others: if alone { Others::None } else { Others::Some } }
    }

    /// Waits for what the ticket's policy asks for; see [`CommitGates::wait`].
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn wait(&self, ticket: &Ticket, wait: Wait) -> Result<Option<Outcome>, CommitError> {
        self.gates.wait(ticket, self.hub.clock().now(), wait)
    }

    /// Takes the master's own news, after its log flushed or its engine applied.
    pub fn own_progress(&self) {
        self.hub.own_progress();
    }

    /// A worker that tells replicas what was committed when the stream is idle.
    pub fn teller(&self) -> impl Worker + use<> {
        Teller { hub: Arc::clone(&self.hub), gates: Arc::clone(&self.gates), told: 0, due: None }
    }

    /// The term that fenced this master, if a replica told of one.
    pub fn fenced(&self) -> Option<Term> {
        self.hub.fenced()
    }

    /// Pauses or resumes the feeding of a replica; heartbeats go on.
    pub fn set_feeding(&self, node: &NodeId, feeding: Feeding) -> bool {
        self.hub.set_paused(node, feeding == Feeding::Paused)
    }

    /// Every other member and how its feeder stands.
    pub fn status(&self) -> Vec<ReplicaStats> {
        self.hub.status()
    }

    /// The slots whose owners are being fed, and the first entry that each needs.
    pub fn slot_owners(&self) -> Vec<(String, Vlsn)> {
        self.hub.slot_owners()
    }

    /// Gives up the pins of replicas that are away and have one of these slots, which keep what they need.
    pub fn leave_to_slots(&self, slots: &Slots) {
        self.hub.leave_to_slots(slots);
    }

    /// A number that rises with every change of who is connected or paused.
    pub fn topology_epoch(&self) -> u64 {
        self.hub.topology_epoch()
    }

    /// How far the master itself has come.
    pub fn own_positions(&self) -> Positions {
        self.hub.own_positions()
    }

    /// Passes on to the node how far the group has committed: whoever advanced the gate may not have come to it yet.
    pub(crate) fn note_committed(&self) {
        self.hub.note_committed();
    }

    /// A handle that does not keep the feeders alive, for hooks in what they feed from.
    pub(crate) fn downgrade(&self) -> WeakFeeders {
        WeakFeeders(Arc::downgrade(&self.hub))
    }

    /// The gates.
    pub fn gates(&self) -> &CommitGates {
        &self.gates
    }

    /// Ends all feeders and waits for their workers; commits that wait get an error. Not to be called by a worker.
    pub fn close(&self) {
        self.hub.close();
    }
}

/// The feeders, if they still are.
pub(crate) struct WeakFeeders(Weak<hub::Hub>);

impl WeakFeeders {
    /// Cuts all connections and ends all waits, without waiting for the workers: what a poisoned node does.
    pub fn sever(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.sever(End::LifeEnded);
        }
    }

    /// Takes the master's own news.
    pub fn own_progress(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.own_progress();
        }
    }
}

/// Whether a replica is being fed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feeding {
    /// As fast as it takes the entries.
    Running,
    /// Heartbeats only.
    Paused,
}

/// Whether other commits are under way beside one's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// No.
    None,
    /// At least one.
    Some,
}

/// A commit under way.
pub struct Committing {
    hub: Arc<hub::Hub>,
    others: Others,
}

impl Committing {
    /// Whether others were under way when this one began.
    pub fn others(&self) -> Others {
        self.others
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        self.hub.commit_ends();
    }
}

/// How long the news of a commit may wait for an entry to travel with.
const TELL_AFTER: std::time::Duration = std::time::Duration::from_millis(1);

struct Teller {
    hub: Arc<hub::Hub>,
    gates: Arc<CommitGates>,
    told: u64,
    due: Option<crate::clock::Deadline>,
}

impl Worker for Teller {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let clock = self.hub.clock();
        if let Some(due) = self.due {
            crate::watermark::rest(wait.at_most(due));
            if clock.now() < due {
                return Ok(Step::Idle { due });
            }
            self.due = None;
            // What was committed when the wait began; what came since is told with entries, or by the next round.
            self.hub.tell_committed(self.told);
            return Ok(Step::Worked);
        }
        match self.gates.committed().wait(self.told + 1, wait) {
            Ok(true) => {
                self.told = self.gates.committed().get();
                self.due = Some(clock.now() + TELL_AFTER);
                Ok(Step::Worked)
            }
            Ok(false) => Ok(Step::Idle { due: crate::clock::Deadline::NEVER }),
            Err(Closed) => Err(Stop::Done),
        }
    }
}
