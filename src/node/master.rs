//! The master: appends, feeds, commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::address::Address;
use crate::channel::Channel;
use crate::clock::{Stopwatch, Wait};
use crate::commit::{CommitError, CommitGates, Mastership, Refused, Ticket};
use crate::config::{Config, ConfigError};
use crate::engine::Engine;
use crate::entry::{EntryKind, NewEntry};
use crate::feeder::{Committing, Feeders, Feeding, Others, ReplicaStats};
use crate::histogram::Histogram;
use crate::ids::{NodeId, Position, Term, TermSpan, Vlsn};
use crate::log::{AppendError, DoubtfulTail, FlushError, PruneError, Pruned};
use crate::members::{Health, Roll};
use crate::node::core::{Answer, Core, Host, NodeError, TokenError};
use crate::node::dispatch::Dispatch;
use crate::node::source::NodeSource;
use crate::planted::{Bug, active};
use crate::policy::{Level, Outcome, Policy, Token};
use crate::progress::Positions;
use crate::stats::Stats;
use crate::worker::Stop;

/// Why nothing was appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteRefused {
    /// The first gate: too few replicas, or this master's time is over. Nothing was written.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The log could not take the entries. Nothing of them is visible.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The kind belongs to quorate itself.
    #[error("entries of kind {0} are written by quorate only; use DATA or a kind of 128 and above")]
    ReservedKind(EntryKind),
}

impl WriteRefused {
    /// Whether the same append may go through later without anybody's help: too few replicas are connected now.
    pub fn is_temporary(&self) -> bool {
        matches!(self, WriteRefused::Refused(Refused::Insufficient(_)))
    }
}

/// Why a write did not end in an outcome.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// Nothing was written.
    #[error(transparent)]
    Refused(#[from] WriteRefused),
    /// The entries were appended, and their fate is not known yet.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A group's fixed master.
///
/// Any thread may call any method. Dropping it closes it.
pub struct Master {
    core: Core,
    feeders: Feeders,
    term: Term,
    address: Option<Address>,
    closer: Option<Arc<dyn Fn() + Send + Sync>>,
    latency: Mutex<Histogram>,
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
        let known = Vlsn::new(unstarted.core.apply.committed.get());
        let start = NewEntry { kind: EntryKind::TERM_START, txn: None, payload: &[] };
        let term_start = unstarted.core.log.append(term, &[start])?.first;
        log::info!(
            "{own} is master in term {term} from VLSN {term_start}; the log opened {:?}",
            unstarted.opened
        );
        let (core, _state) = unstarted.start();
        let group = core.config.group;
        let mastership = Mastership { group, term, term_start, committed: known };
        let Some(gates) = CommitGates::new(mastership, &core.config.members, &own) else {
            return Err(NodeError::NotElectable(own));
        };
        let source = Arc::new(NodeSource::new(core.log.clone(), Arc::clone(&core.apply)));
        let poison = Arc::clone(&core.poison);
        let feeders = Feeders::new(
            Arc::clone(&core.config),
            core.identity,
            Arc::new(Roll::new(core.config.members.clone())),
            source,
            Arc::clone(&core.host.runtime),
            Arc::new(gates),
            Arc::clone(&core.counters),
            Box::new(move |stop: &Stop| poison.strike(stop)),
        );
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
        core.spawn("commit-tell", feeders.teller(), Vec::new());
        core.log.request_flush(term_start);
        let mut master = Master {
            core,
            feeders,
            term,
            address: None,
            closer: None,
            latency: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        if let Some(at) = master.core.config.listen.clone() {
            let listener = master.core.host.runtime.listen(&at);
            let listener = listener.map_err(|error| NodeError::Listen { at, kind: error.kind() })?;
            master.address = Some(listener.address().clone());
            master.closer = Some(listener.closer());
            master.core.spawn("dispatch", Dispatch::new(listener, master.feeders.clone()), Vec::new());
        }
        master.feeders.own_progress();
        Ok(master)
    }

    /// Serves a connected replica; for transports of the embedder's own. Returns at once.
    pub fn accept(&self, channel: Arc<dyn Channel>) {
        self.feeders.accept(channel, None);
    }

    /// Where replicas can dial; `None` if the configuration names no address to listen at.
    pub fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    /// The term of this mastership: the fencing token to hand to whatever else the embedder writes to.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Appends entries that are to be committed together, after asking the first gate. Does not wait for anybody; the
    /// entries travel to the replicas at once. Give the ticket to [`commit`](Master::commit), now or later.
    ///
    /// # Errors
    /// [`WriteRefused`]: nothing was written.
    pub fn append(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        let ticket = self.stage(entries, policy)?;
        self.feeders.appended(ticket.token.vlsn, policy);
        Ok(ticket)
    }

    fn stage(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        let reserved =
            |kind: EntryKind| (EntryKind::TERM_START.0..EntryKind::ENGINE_FIRST.0).contains(&kind.0);
        if let Some(entry) = entries.iter().find(|entry| reserved(entry.kind)) {
            return Err(WriteRefused::ReservedKind(entry.kind));
        }
        self.feeders.admit(policy)?;
        let appended = self.core.log.append(self.term, entries)?;
        let bytes: usize = entries.iter().map(NewEntry::encoded_len).sum();
        self.core.counters.appended_entries.add(entries.len() as u64);
        self.core.counters.appended_bytes.add(bytes as u64);
        let token = Token { group: self.core.config.group, term: self.term, vlsn: appended.last.vlsn };
        Ok(Ticket { token, policy, since: self.core.clock.now() })
    }

    /// Waits until the ticket's policy is satisfied.
    ///
    /// # Errors
    /// [`CommitError`]: the entries were appended, and may yet be committed; ask their token later.
    pub fn commit(&self, ticket: &Ticket, wait: Wait) -> Result<Outcome, CommitError> {
        let commit = self.feeders.commit_begins();
        self.see_through(ticket, commit, wait)
    }

    /// Appends and commits: the quickest way for a writer that waits at once, because its own thread sends and flushes
    /// what it wrote if nobody else is about to.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, entries: &[NewEntry<'_>], policy: Policy, wait: Wait) -> Result<Outcome, WriteError> {
        let commit = self.feeders.commit_begins();
        let ticket = self.stage(entries, policy)?;
        self.feeders.push(ticket.token.vlsn, policy, commit.others());
        Ok(self.see_through(&ticket, commit, wait)?)
    }

    /// What is known of the ticket now: an outcome, or `None` while it is not decided. Does not block.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn poll(&self, ticket: &Ticket) -> Result<Option<Outcome>, CommitError> {
        self.feeders.wait(ticket, Wait::Now)
    }

    fn see_through(&self, ticket: &Ticket, commit: Committing, wait: Wait) -> Result<Outcome, CommitError> {
        if let Some(rule) = ticket.policy.rule() {
            self.hasten(ticket.token.vlsn, rule.level, commit.others());
        }
        let waited = Stopwatch::start();
        loop {
            if let Some(outcome) = self.feeders.wait(ticket, wait)? {
                self.core.counters.told(Some(outcome));
                self.latency.lock().record(waited.elapsed());
                return Ok(outcome);
            }
            if wait.remaining().is_some_and(|left| left.is_zero()) {
                let outcome = self.feeders.gates().give_up(ticket, self.core.clock.now());
                self.core.counters.told(outcome.as_ref().ok().copied());
                return outcome;
            }
        }
    }

    /// Brings the master's own log to the level that is waited for.
    fn hasten(&self, vlsn: Vlsn, level: Level, others: Others) {
        let done = if level == Level::Received {
            let written = self.core.log.write_out();
            self.feeders.own_progress();
            written.map_err(Stop::failed)
        } else if others == Others::Some {
            // Those who wait together are served by the flusher's next round.
            self.core.log.request_flush(vlsn);
            Ok(())
        } else {
            match self.core.log.flush(vlsn, Wait::Now) {
                Ok(true) => Ok(()),
                Ok(false) => {
                    self.core.log.request_flush(vlsn);
                    Ok(())
                }
                Err(FlushError::LifeEnded) => Ok(()),
                Err(error) => Err(Stop::failed(error)),
            }
        };
        if let Err(stop) = done
            && self.core.log.poisoned()
        {
            self.core.poison.strike(&stop);
        }
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
        let health = if self.poisoned().is_some() || self.fenced().is_some() {
            Health::Error
        } else if self.feeders.gates().degraded() {
            Health::Degraded
        } else {
            Health::Healthy
        };
        Stats {
            group: self.core.config.group,
            node: self.core.config.node.clone(),
            term: self.term,
            health,
            appended: self.last().map(|last| last.vlsn),
            positions: self.positions(),
            committed: self.committed(),
            replicas: self.replicas(),
            gates: self.feeders.gates().states(),
            counted: self.core.counters.snapshot(),
            commit_latency: self.latency.lock().clone(),
        }
    }

    /// What became of a token's entry, as far as this node knows.
    pub fn ask(&self, token: &Token) -> Answer {
        // A writer that was told Committed is told so again.
        self.feeders.note_committed();
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
        self.feeders.own_positions()
    }

    /// How far the group has committed.
    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.feeders.gates().committed().get())
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
        self.feeders.status()
    }

    /// A number that rises with every change of who is connected.
    pub fn topology_epoch(&self) -> u64 {
        self.feeders.topology_epoch()
    }

    /// Pauses or resumes the feeding of a replica. `false` if it has not connected in this term.
    pub fn set_feeding(&self, node: &NodeId, feeding: Feeding) -> bool {
        self.feeders.set_feeding(node, feeding)
    }

    /// Why this node takes no further part in its group, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.core.poison.reason()
    }

    /// The newer term by which a replica fenced this master, if any: nothing can be committed here any more.
    pub fn fenced(&self) -> Option<Term> {
        self.feeders.fenced()
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
        self.feeders.close();
        self.core.close(wait);
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let patience = self.core.clock.now() + self.core.config.handshake_timeout;
        self.close(Wait::Until(patience));
    }
}
