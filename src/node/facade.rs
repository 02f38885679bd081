//! A node of a group that runs itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::address::Address;
use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::commit::{CommitError, End, Ticket, Undecided};
use crate::config::ConfigError;
use crate::engine::Engine;
use crate::entry::NewEntry;
use crate::ids::{NodeId, Position, Term, Vlsn, VlsnRange};
use crate::log::{PruneError, Pruned};
use crate::members::{Change, Members, Role, Standing};
use crate::node::assemble::NoEngine;
use crate::node::core::{Answer, Founding, Host, NodeError, TokenError};
use crate::node::group::Shared;
use crate::node::group_config::NodeConfig;
use crate::node::handover::{ChangeRefused, Handover, TransferError};
use crate::node::lead::{WriteError, WriteRefused};
use crate::node::reception::Receptions;
use crate::node::slots::SlotRefused;
use crate::policy::{Outcome, Policy, Token};
use crate::progress::Positions;
use crate::slots::{Invalid, SlotChange, Slots};
use crate::stats::Stats;
use crate::wire::message::{NodeStatus, Part, VoteReason};

/// What happened to a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It does something else than before.
    Part {
        /// What.
        part: Part,
        /// In which term.
        term: Term,
        /// Who leads, as far as it knows.
        master: Option<NodeId>,
    },
    /// The members are others, or somewhere else.
    Members(Arc<Members>),
    /// Entries that were never committed were cut off the log.
    RolledBack {
        /// Which.
        range: VlsnRange,
        /// The file that keeps them.
        saved: Option<std::path::PathBuf>,
    },
    /// Its engine and log have been put on a snapshot that it fetched.
    Installed {
        /// Where the snapshot stands.
        at: Vlsn,
    },
    /// Entries were removed from the log before they were archived, or are gone from the archive and the log: nothing can
    /// ever be restored to them. Archiving goes on with a new base.
    ArchiveGap {
        /// Which.
        missing: VlsnRange,
    },
    /// The group keeps the log for this slot no longer. Its owner has to start from a snapshot.
    SlotInvalid {
        /// The slot.
        name: String,
        /// Why.
        why: Invalid,
    },
    /// This node keeps its log for somebody no longer, who asks for too much: whoever needs more than is there is told so
    /// when it asks.
    PinGivenUp {
        /// Who: the name of the pin.
        owner: String,
        /// The first entry that it needs.
        from: Vlsn,
        /// Why.
        why: Invalid,
    },
}

/// Answers requests of the embedder's own clients over the node's port.
pub trait Service: Send + Sync {
    /// The answer to a request. Called by a thread of the connection, which it may block.
    fn call(&self, request: &[u8]) -> Vec<u8>;
}

/// Why a linearizable read was not possible.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead, or ceased to while it asked.
    #[error(transparent)]
    NotMaster(WriteRefused),
    /// The wait ended first.
    #[error("no majority answered in time; try again")]
    TimedOut,
}

/// A read that waits to be linearizable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadTicket {
    term: Term,
    /// When it was asked for.
    since: Deadline,
}

/// A node of a group that runs itself: it follows, stands for election, leads.
///
/// Any thread may call any method. Dropping it closes it.
pub struct Node {
    pub(super) shared: Arc<Shared>,
    pub(super) address: Option<Address>,
    pub(super) closer: Option<Arc<dyn Fn() + Send + Sync>>,
    pub(super) listeners: Arc<Listeners>,
    pub(super) closed: AtomicBool,
}

pub(super) type Listener = Box<dyn Fn(&Event) + Send + Sync>;

#[derive(Default)]
pub(super) struct Listeners(pub(super) Mutex<Vec<Listener>>);

impl Node {
    /// Founds a group of `config.base.members`. All of them call this once, with the same list; a node that is to join
    /// later calls [`Node::join`]. Refused if the directory is a node's already: then [`Node::open`] is meant.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn create(config: NodeConfig, engine: Box<dyn Engine>, host: Host) -> Result<Node, NodeError> {
        Node::start(config, engine, host, Founding::Found)
    }

    /// Makes a directory for a node that joins an existing group, and asks the group to take it in. It finds the group by
    /// `config.seeds`. A directory that is this node's already is opened.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn join(config: NodeConfig, engine: Box<dyn Engine>, host: Host) -> Result<Node, NodeError> {
        Node::start(config, engine, host, Founding::Join)
    }

    /// Opens a node that was created, or joined, before.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn open(config: NodeConfig, engine: Box<dyn Engine>, host: Host) -> Result<Node, NodeError> {
        Node::start(config, engine, host, Founding::Open)
    }

    /// Makes or opens the directory of an arbiter, which votes and keeps no entries. `config.role` has to say so. It
    /// joins a group like any other node.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn arbiter(config: NodeConfig, host: Host) -> Result<Node, NodeError> {
        if config.role != Role::Arbiter {
            return Err(ConfigError::WrongRole { field: "role", role: "node that is no arbiter" }.into());
        }
        Node::start(config, Box::new(NoEngine), host, Founding::Join)
    }

    /// Serves a connection that came in over a transport of the embedder's own.
    pub fn accept(&self, channel: Arc<dyn Channel>) {
        Receptions::take(&self.shared, channel);
    }

    /// Where others can dial; `None` if the configuration names no address to listen at.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// Has a function called with every [`Event`], one after the other, by the node's election worker: it must not block.
    pub fn on_change(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.listeners.0.lock().push(Box::new(listener));
    }

    /// Offers a service of the embedder's own over the node's port.
    pub fn serve(&self, service: Arc<dyn Service>) {
        *self.shared.service.write() = Some(service);
    }

    /// Appends entries that are to be committed together, after asking the first gate; on the master only. Does not wait
    /// for anybody. Give the ticket to [`commit`](Node::commit), now or later.
    ///
    /// # Errors
    /// [`WriteRefused`]: nothing was written.
    pub fn append(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        self.shared.write_as_master(|lead| lead.append(entries, policy))
    }

    /// Waits until the ticket's policy is satisfied.
    ///
    /// # Errors
    /// [`CommitError`]: the entries were appended, and may yet be committed; ask their token later, on any node.
    pub fn commit(&self, ticket: &Ticket, wait: Wait) -> Result<Outcome, CommitError> {
        match self.lead_of(ticket) {
            Some(lead) => lead.commit(ticket, wait),
            None => self.past(ticket),
        }
    }

    /// Appends and commits: the quickest way for a writer that waits at once.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, entries: &[NewEntry<'_>], policy: Policy, wait: Wait) -> Result<Outcome, WriteError> {
        let lead = self.shared.lead();
        let lead = lead.ok_or_else(|| WriteRefused::NotMaster { hint: self.shared.master_hint() })?;
        let written = lead.write(entries, policy, wait);
        if let Err(WriteError::Refused(refused)) = &written {
            self.shared.note_trouble(refused);
        }
        written
    }

    /// What is known of the ticket now: an outcome, or `None` while it is not decided. Does not block.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn poll(&self, ticket: &Ticket) -> Result<Option<Outcome>, CommitError> {
        match self.lead_of(ticket) {
            Some(lead) => lead.poll(ticket),
            None => self.past(ticket).map(Some),
        }
    }

    fn lead_of(&self, ticket: &Ticket) -> Option<Arc<super::lead::Lead>> {
        self.shared.lead().filter(|lead| lead.term == ticket.token.term)
    }

    /// The mastership that the ticket belongs to is over: what the log tells of it.
    fn past(&self, ticket: &Ticket) -> Result<Outcome, CommitError> {
        let answer = self.shared.core.ask(&ticket.token);
        match ticket.policy {
            Policy::Async if answer != Answer::Committed => return Ok(Outcome::Acked),
            // A sync policy may ask for more than a majority's disks, and nobody knows of that any more.
            Policy::Sync { .. } if ticket.policy.rule() != Some(crate::policy::Rule::COMMITTED) => {}
            _ if answer == Answer::Committed => return Ok(Outcome::Committed),
            _ => {}
        }
        let rule = ticket.policy.rule().unwrap_or(crate::policy::Rule::COMMITTED);
        let needed = self.shared.roll.members().voters().count() / 2 + 1;
        Err(CommitError::Deposed(Undecided { token: ticket.token, rule, acked_by: Vec::new(), needed }))
    }

    /// What became of a token's entry, as far as this node knows.
    pub fn ask(&self, token: &Token) -> Answer {
        if let Some(lead) = self.shared.lead() {
            lead.feeders.note_committed();
        }
        self.shared.core.ask(token)
    }

    /// Waits until this node's engine shows the token's entry, to read one's own writes here; `false` if `wait` ended
    /// first.
    ///
    /// # Errors
    /// [`TokenError`]; never succeeds on another term's entry of the same VLSN.
    pub fn wait_for(&self, token: &Token, wait: Wait) -> Result<bool, TokenError> {
        self.shared.core.wait_for(token, wait)
    }

    /// Begins a linearizable read on the master: asks a majority whether it still follows (Raft's read-index).
    ///
    /// # Errors
    /// [`ReadError::NotMaster`].
    pub fn read_begin(&self) -> Result<ReadTicket, ReadError> {
        let lead = self.shared.lead().ok_or_else(|| self.not_master())?;
        let since = self.shared.core.clock.now();
        lead.feeders.beat();
        Ok(ReadTicket { term: lead.term, since })
    }

    /// Waits until a read of this node's engine shows everything that was committed when the ticket was made; `false`:
    /// `wait` ended first. Only after the master's own term has committed something.
    ///
    /// # Errors
    /// [`ReadError::NotMaster`].
    pub fn read_ready(&self, ticket: &ReadTicket, wait: Wait) -> Result<bool, ReadError> {
        let lead = self.shared.lead().filter(|lead| lead.term == ticket.term);
        let lead = lead.ok_or_else(|| self.not_master())?;
        let gates = lead.feeders.gates();
        let gone = |_closed| self.not_master();
        if !gates.committed().wait(lead.start.get(), wait).map_err(gone)? {
            return Ok(false);
        }
        let committed = gates.committed().get();
        if gates.contact_at(self.shared.core.clock.now()) < ticket.since
            && !gates.contact().wait(ticket.since.as_nanos(), wait).map_err(gone)?
        {
            return Ok(false);
        }
        // Not `committed` as it is now: what was committed meanwhile need not be shown, and may take its time.
        self.shared.core.apply.applied.wait(committed, wait).map_err(gone)
    }

    fn not_master(&self) -> ReadError {
        ReadError::NotMaster(WriteRefused::NotMaster { hint: self.shared.master_hint() })
    }

    /// Waits until a read of this node's engine is linearizable. On the master.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_barrier(&self, wait: Wait) -> Result<(), ReadError> {
        let ticket = self.read_begin()?;
        loop {
            if self.read_ready(&ticket, wait)? {
                return Ok(());
            }
            if wait.remaining().is_some_and(|left| left.is_zero()) {
                return Err(ReadError::TimedOut);
            }
        }
    }

    /// How old a read of this node's engine may be: the time since the engine had all that the master had told to be
    /// committed when it was last heard, itself at most a heartbeat behind. Zero on the master, as far as it knows.
    /// `None`: it never had.
    pub fn staleness(&self) -> Option<Duration> {
        if self.shared.lead().is_some() {
            return Some(Duration::ZERO);
        }
        let at = self.shared.caught_up.load(Ordering::Relaxed);
        (at > 0).then(|| self.shared.core.clock.now() - Deadline::from_nanos(at))
    }

    /// What the node is doing.
    pub fn part(&self) -> Part {
        self.shared.part()
    }

    /// The term that the node is in. While it leads, the fencing token to hand to whatever else the embedder writes to.
    pub fn term(&self) -> Term {
        self.shared.election.term()
    }

    /// The term that this node leads in; `None` if it does not.
    pub fn leads(&self) -> Option<Term> {
        self.shared.lead().map(|lead| lead.term)
    }

    /// The master, as far as this node knows.
    pub fn master(&self) -> Option<NodeId> {
        self.shared.election.master()
    }

    /// Whether the directory holds what its node acknowledged.
    pub fn standing(&self) -> Standing {
        self.shared.election.state().state().standing
    }

    /// How far this node has come.
    pub fn positions(&self) -> Positions {
        self.shared.positions()
    }

    /// How far the group has committed, as far as this node knows.
    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.shared.core.apply.committed.get())
    }

    /// The last entry of the log.
    pub fn last(&self) -> Option<Position> {
        self.shared.core.log.last()
    }

    /// The members in force.
    pub fn members(&self) -> Arc<Members> {
        self.shared.roll.members()
    }

    /// How the node and its group stand.
    pub fn status(&self) -> NodeStatus {
        self.shared.status()
    }

    /// The master's figures; `None` on other nodes.
    pub fn stats(&self) -> Option<Stats> {
        self.shared.lead().map(|lead| lead.stats())
    }

    /// Why the last connection to a master ended.
    pub fn last_error(&self) -> Option<crate::replica::FollowError> {
        let lacking = self.shared.lacking.last_error().filter(|_| self.shared.core.apply.lacks());
        lacking.or_else(|| self.shared.following.get()?.last_error())
    }

    /// Changes the members, on the master. In force at once, committed when the ticket is: give it to
    /// [`commit`](Node::commit). A new member begins as a learner, and is promoted by itself when it has caught up.
    ///
    /// # Errors
    /// [`ChangeRefused`]: nothing was changed.
    pub fn change(&self, change: &Change) -> Result<Ticket, ChangeRefused> {
        self.shared.change(change)
    }

    /// Hands mastership to a node, or to the one that has most. Writing pauses until it has taken over, or until
    /// `patience` ends, when this node goes on. Returns at once.
    ///
    /// # Errors
    /// [`TransferError`]: nothing was begun.
    pub fn transfer(&self, to: Option<&NodeId>, patience: Duration) -> Result<Arc<Handover>, TransferError> {
        self.shared.transfer(to, patience)
    }

    /// Stands for election now, also against a master that is heard. `false`: the node is in another term than the
    /// caller thinks.
    pub fn promote(&self, term: Term) -> bool {
        let fits = term == self.term();
        if fits {
            self.shared.election.stand(VoteReason::ManualFailover, self.master());
        }
        fits
    }

    /// Steps down. `false`: the node does not lead in this term.
    pub fn demote(&self, term: Term) -> bool {
        self.shared.election.step_down(term, "it was told to")
    }

    /// The group's slots, as this node knows them.
    pub fn slots(&self) -> Slots {
        self.shared.slots_in_force()
    }

    /// Has every node keep its log for somebody from the entry `from` on, or from the next one, until the slot is moved or
    /// dropped, or given up because it asks for too much. On the master. The slot holds when the ticket is committed: give it
    /// to [`commit`](Node::commit). An entry from long ago may be gone on other nodes; one of them that becomes master has to
    /// give the slot up.
    ///
    /// # Errors
    /// [`SlotRefused`]: nothing was changed.
    pub fn create_slot(&self, name: &str, from: Option<Vlsn>) -> Result<Ticket, SlotRefused> {
        self.shared.create_slot(name, from)
    }

    /// Says that a slot's owner needs only what is at `to` and behind it. On the master. A slot never moves back.
    ///
    /// # Errors
    /// [`SlotRefused`]: nothing was changed.
    pub fn move_slot(&self, name: &str, to: Vlsn) -> Result<Ticket, SlotRefused> {
        self.shared.change_slot(&SlotChange::Move { name: name.to_owned(), to })
    }

    /// Gives a slot up. On the master.
    ///
    /// # Errors
    /// [`SlotRefused`]: nothing was changed.
    pub fn drop_slot(&self, name: &str) -> Result<Ticket, SlotRefused> {
        self.shared.change_slot(&SlotChange::Drop { name: name.to_owned() })
    }

    /// Drops whole segments of the log that nobody needs: up to `floor`, and never beyond what is committed, what the
    /// engine has made durable, what members and slots stand in, and what any replica or slot still needs. On a master,
    /// members and slots are written anew if only they keep old segments. A node does so by itself, and keeps
    /// [`keep_bytes`](crate::Config::keep_bytes); this does not.
    ///
    /// # Errors
    /// [`PruneError`].
    pub fn prune(&self, floor: Vlsn) -> Result<Pruned, PruneError> {
        self.shared.prune(floor)
    }

    /// Why this node takes no further part in its group, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.shared.core.poison.reason()
    }

    /// The node's log, for tests and tools that look inside.
    pub fn log(&self) -> &crate::log::Log {
        &self.shared.core.log
    }

    /// Closes in order: accepts nobody, ends elections, feeders and the connection to the master (waiting commits get an
    /// error with their token), lets the engine checkpoint for as long as `wait` says, flushes and closes the log.
    /// Idempotent.
    pub fn close(&self, wait: Wait) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let node = &self.shared;
        if let Some(closer) = &self.closer {
            closer();
        }
        node.election.close();
        if let Some(lead) = node.lead.write().take() {
            lead.feeders.gates().close(End::LifeEnded);
            lead.feeders.close();
        }
        // Whoever waits for it may be one of those who are waited for below.
        if let Some(handover) = node.handover.lock().take() {
            handover.end(Err(TransferError::Ended(handover.to.clone())));
        }
        node.end_relay();
        if let Some(following) = node.following.get() {
            following.close();
        }
        if let Some(receive) = node.receive.get() {
            receive.join();
        }
        node.acks.disconnect();
        node.receptions.close();
        node.fetching.close();
        node.givings.close();
        node.reap();
        for asking in node.joining.lock().drain(..) {
            asking.end();
        }
        node.mending.close();
        let mut doubt = std::mem::take(&mut *node.doubt.lock());
        doubt.close();
        node.core.close(wait);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let patience = self.shared.core.clock.now() + self.shared.core.config.handshake_timeout;
        self.close(Wait::Until(patience));
    }
}
