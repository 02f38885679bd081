//! The master: appends, feeds, commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::address::Address;
use crate::channel::Channel;
use crate::clock::Wait;
use crate::commit::{CommitError, Ticket};
use crate::config::{Config, ConfigError};
use crate::engine::Engine;
use crate::entry::NewEntry;
use crate::feeder::{Feeding, ReplicaStats};
use crate::ids::{NodeId, Position, Term, TermSpan, Vlsn};
use crate::log::{DoubtfulTail, PruneError, Pruned};
use crate::members::Roll;
use crate::node::core::{Answer, Core, Host, NodeError, TokenError};
use crate::node::dispatch::Dispatch;
use crate::node::lead::{Lead, WriteError, WriteRefused, open_term};
use crate::planted::{Bug, active};
use crate::policy::{Outcome, Policy, Token};
use crate::progress::Positions;
use crate::stats::Stats;

/// A group's fixed master.
///
/// Any thread may call any method. Dropping it closes it.
pub struct Master {
    core: Arc<Core>,
    lead: Lead,
    address: Option<Address>,
    closer: Option<Arc<dyn Fn() + Send + Sync>>,
    closed: AtomicBool,
}

impl Master {
    /// Opens the node's directory as the master of its group, in a new term. Blocks while the log's tail is read.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn open(config: Config, engine: Box<dyn Engine>, host: Host) -> Result<Master, NodeError> {
        if config.upstream.is_some() {
            return Err(ConfigError::WrongRole { field: "upstream", role: "master" }.into());
        }
        // Asked before anything is stored: a term of a node that can't lead would set it against the real master.
        if config.members.voters().all(|member| member.id != config.node) {
            return Err(NodeError::NotElectable(config.node));
        }
        // A master that lost entries of its own flushed log must not lead; alone in its group, nobody else has them.
        let alone = config.members.iter().count() == 1;
        let doubtful = if alone { DoubtfulTail::Cut } else { DoubtfulTail::Refuse };
        let unstarted = Core::open(config, host, engine, doubtful)?;
        let own = unstarted.core.config.node.clone();
        let before =
            unstarted.state.state().term.max(unstarted.core.log.last().map_or(Term::NONE, |last| last.term));
        let term =
            if active(Bug::RestartResumesTerm) && before != Term::NONE { before } else { before.next() };
        unstarted.state.store(unstarted.state.state().in_term(term))?;
        let opening = open_term(&unstarted.core, term)?;
        log::info!(
            "{own} is master in term {term} from VLSN {}; the log opened {:?}",
            opening.start,
            unstarted.opened
        );
        let (core, _state) = unstarted.start();
        let core = Arc::new(core);
        let roll = Arc::new(Roll::new(core.config.members.clone()));
        let lead = Lead::new(&core, roll, &opening)?;
        let feeders = &lead.feeders;
        // Not a strong one: the feeders hold the poison.
        let severed = feeders.downgrade();
        core.poison.on_poison(Arc::new(move || severed.sever()));
        let flushed = feeders.downgrade();
        let counters = Arc::clone(&core.counters);
        core.log.on_flushed(Some(Arc::new(move |_vlsn| {
            counters.flushes.one();
            flushed.own_progress();
        })));
        let applied = feeders.downgrade();
        core.apply.on_advance(Some(Arc::new(move || applied.own_progress())));
        let mut master = Master { core, lead, address: None, closer: None, closed: AtomicBool::new(false) };
        if let Some(at) = master.core.config.listen.clone() {
            let listener = master.core.host.runtime.listen(&at);
            let listener = listener.map_err(|error| NodeError::Listen { at, kind: error.kind() })?;
            master.address = Some(listener.address().clone());
            master.closer = Some(listener.closer());
            master.core.spawn("dispatch", Dispatch::new(listener, master.lead.feeders.clone()), Vec::new());
        }
        master.lead.feeders.own_progress();
        Ok(master)
    }

    /// Serves a connected replica; for transports of the embedder's own. Returns at once.
    pub fn accept(&self, channel: Arc<dyn Channel>) {
        self.lead.feeders.accept(channel, None);
    }

    /// Where replicas can dial; `None` if the configuration names no address to listen at.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// The term of this mastership: the fencing token to hand to whatever else the embedder writes to.
    pub fn term(&self) -> Term {
        self.lead.term
    }

    /// Appends entries that are to be committed together, after asking the first gate. Does not wait for anybody; the
    /// entries travel to the replicas at once. Give the ticket to [`commit`](Master::commit), now or later.
    ///
    /// # Errors
    /// [`WriteRefused`]: nothing was written.
    pub fn append(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        self.lead.append(entries, policy)
    }

    /// Waits until the ticket's policy is satisfied.
    ///
    /// # Errors
    /// [`CommitError`]: the entries were appended, and may yet be committed; ask their token later.
    pub fn commit(&self, ticket: &Ticket, wait: Wait) -> Result<Outcome, CommitError> {
        self.lead.commit(ticket, wait)
    }

    /// Appends and commits: the quickest way for a writer that waits at once, because its own thread sends and flushes
    /// what it wrote if nobody else is about to.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, entries: &[NewEntry<'_>], policy: Policy, wait: Wait) -> Result<Outcome, WriteError> {
        self.lead.write(entries, policy, wait)
    }

    /// What is known of the ticket now: an outcome, or `None` while it is not decided. Does not block.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn poll(&self, ticket: &Ticket) -> Result<Option<Outcome>, CommitError> {
        self.lead.poll(ticket)
    }

    /// Drops whole segments of the log that nobody needs: up to `floor`, and never beyond what is committed, what the
    /// engine has made durable, and what any replica or slot still needs. Appends go on meanwhile.
    ///
    /// # Errors
    /// [`PruneError`].
    pub fn prune(&self, floor: Vlsn) -> Result<Pruned, PruneError> {
        let committed = Vlsn::after(Vlsn::new(self.core.apply.committed.get()));
        self.core.log.prune(floor.min(committed))
    }

    /// How this node and its replicas stand.
    pub fn stats(&self) -> Stats {
        self.lead.stats()
    }

    /// What became of a token's entry, as far as this node knows.
    pub fn ask(&self, token: &Token) -> Answer {
        // A writer that was told Committed is told so again.
        self.lead.feeders.note_committed();
        self.core.ask(token)
    }

    /// Waits until this node's engine shows the token's entry; `false` if `wait` ended first.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn wait_for(&self, token: &Token, wait: Wait) -> Result<bool, TokenError> {
        self.core.wait_for(token, wait)
    }

    /// How far this node has come itself.
    pub fn positions(&self) -> Positions {
        self.lead.feeders.own_positions()
    }

    /// How far the group has committed.
    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.lead.feeders.gates().committed().get())
    }

    /// The last entry appended, flushed or not.
    pub fn last(&self) -> Option<Position> {
        self.core.log.last()
    }

    /// The terms that the log holds.
    pub fn term_history(&self) -> Vec<TermSpan> {
        self.core.log.term_history()
    }

    /// Every other member and how it stands.
    pub fn replicas(&self) -> Vec<ReplicaStats> {
        self.lead.feeders.status()
    }

    /// A number that rises with every change of who is connected.
    pub fn topology_epoch(&self) -> u64 {
        self.lead.feeders.topology_epoch()
    }

    /// Pauses or resumes the feeding of a replica. `false` if it has not connected in this term.
    pub fn set_feeding(&self, node: &NodeId, feeding: Feeding) -> bool {
        self.lead.feeders.set_feeding(node, feeding)
    }

    /// Why this node takes no further part in its group, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.core.poison.reason()
    }

    /// The newer term by which a replica fenced this master, if any: nothing can be committed here any more.
    pub fn fenced(&self) -> Option<Term> {
        self.lead.feeders.fenced()
    }

    /// The node's parts, for tests and tools that look inside.
    pub fn log(&self) -> &crate::log::Log {
        &self.core.log
    }

    /// Closes in order: accepts nobody, ends the feeders (waiting commits get an error with their token), lets the
    /// engine checkpoint for as long as `wait` says, flushes and closes the log. Idempotent.
    pub fn close(&self, wait: Wait) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(closer) = &self.closer {
            closer();
        }
        self.lead.feeders.close();
        self.core.close(wait);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let patience = self.core.clock.now() + self.core.config.handshake_timeout;
        self.close(Wait::Until(patience));
    }
}
