//! A mastership: what a node has while it leads, from its term's first entry to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::clock::{Stopwatch, Wait};
use crate::commit::{CommitError, CommitGates, Mastership, Refused, Ticket};
use crate::entry::{EntryKind, NewEntry};
use crate::feeder::{Committing, Feeders, Others};
use crate::histogram::Histogram;
use crate::ids::{NodeId, Position, Term, Vlsn};
use crate::log::{AppendError, FlushError};
use crate::members::{Health, Roll};
use crate::node::core::{Core, NodeError};
use crate::node::source::NodeSource;
use crate::policy::{Level, Outcome, Policy, Token};
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
    Append(AppendError),
    /// The kind belongs to quorate itself.
    #[error("entries of kind {0} are written by quorate only; use DATA or a kind of 128 and above")]
    ReservedKind(EntryKind),
    /// This node does not lead. Nothing was written.
    #[error("this node is not the master{}", hint.as_ref().map_or(String::new(), |(id, at)| match at {
        Some(at) => format!("; {id} is, at {at}"),
        None => format!("; {id} is"),
    }))]
    NotMaster {
        /// Who is, as far as this node knows, and where.
        hint: Option<(NodeId, Option<crate::address::Address>)>,
    },
    /// The master is about to hand over. Nothing was written.
    #[error("this master is handing over to another node; try again in a moment")]
    HandingOver,
}

impl From<AppendError> for WriteRefused {
    fn from(error: AppendError) -> WriteRefused {
        match error {
            AppendError::Fenced { term, .. } => WriteRefused::Refused(Refused::Ended(term)),
            other => WriteRefused::Append(other),
        }
    }
}

impl WriteRefused {
    /// Whether the same append may go through later without anybody's help: too few replicas are connected now, or the
    /// master is about to change.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            WriteRefused::Refused(Refused::Insufficient(_))
                | WriteRefused::NotMaster { .. }
                | WriteRefused::HandingOver
        )
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

/// The entries that open a term.
pub(super) struct Opening {
    pub term: Term,
    /// The term's first entry.
    pub start: Vlsn,
}

/// Appends the term's first entry.
pub(super) fn open_term(core: &Core, term: Term) -> Result<Opening, AppendError> {
    let start = NewEntry { kind: EntryKind::TERM_START, txn: None, payload: &[] };
    let start = core.log.append(term, &[start])?.first;
    Ok(Opening { term, start })
}

/// A mastership. Any thread may call any method.
pub(super) struct Lead {
    core: Arc<Core>,
    pub feeders: Feeders,
    pub term: Term,
    pub start: Vlsn,
    latency: Mutex<Histogram>,
    /// Nothing more is taken: the mastership is being handed over.
    handing_over: AtomicBool,
}

impl Lead {
    /// A mastership whose term was opened. Its workers run until [`Lead::end`].
    pub fn new(core: &Arc<Core>, roll: Arc<Roll>, opening: &Opening) -> Result<Lead, NodeError> {
        let own = &core.config.node;
        let Opening { term, start } = *opening;
        let committed = Vlsn::new(core.apply.committed.get());
        let mastership = Mastership { group: core.config.group, term, term_start: start, committed };
        let gates = CommitGates::new(mastership, &roll.members(), own);
        let gates = gates.ok_or_else(|| NodeError::NotElectable(own.clone()))?;
        let source = Arc::new(NodeSource::new(core.log.clone(), Arc::clone(&core.apply)));
        let poison = Arc::clone(&core.poison);
        let feeders = Feeders::new(
            Arc::clone(&core.config),
            core.identity,
            roll,
            source,
            Arc::clone(&core.host.runtime),
            Arc::new(gates),
            Arc::clone(&core.counters),
            Box::new(move |stop: &Stop| poison.strike(stop)),
        );
        core.spawn("commit-tell", feeders.teller(), Vec::new());
        core.log.request_flush(start);
        Ok(Lead {
            core: Arc::clone(core),
            feeders,
            term,
            start,
            latency: Mutex::default(),
            handing_over: AtomicBool::new(false),
        })
    }

    /// Takes no more writes until it goes on.
    pub fn hold(&self, hold: Hold) {
        self.handing_over.store(hold == Hold::Writes, Ordering::SeqCst);
    }

    pub fn append(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        let ticket = self.stage(entries, policy)?;
        self.feeders.appended(ticket.token.vlsn, policy);
        Ok(ticket)
    }

    /// Whether it takes no writes, as it hands over.
    pub fn hands_over(&self) -> bool {
        self.handing_over.load(Ordering::SeqCst)
    }

    /// Appends an entry of quorate's own. Not while it hands over: an heir that was told to stand with everything would lack
    /// this one, and get no vote from here.
    pub fn append_own(&self, kind: EntryKind, payload: &[u8]) -> Result<Ticket, WriteRefused> {
        if self.hands_over() {
            return Err(WriteRefused::HandingOver);
        }
        let policy = Policy::MAJORITY;
        let ticket = self.put(&[NewEntry { kind, txn: None, payload }], policy)?;
        self.feeders.appended(ticket.token.vlsn, policy);
        Ok(ticket)
    }

    fn stage(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        let reserved =
            |kind: EntryKind| (EntryKind::TERM_START.0..EntryKind::ENGINE_FIRST.0).contains(&kind.0);
        if let Some(entry) = entries.iter().find(|entry| reserved(entry.kind)) {
            return Err(WriteRefused::ReservedKind(entry.kind));
        }
        if self.hands_over() {
            return Err(WriteRefused::HandingOver);
        }
        self.feeders.admit(policy)?;
        self.put(entries, policy)
    }

    fn put(&self, entries: &[NewEntry<'_>], policy: Policy) -> Result<Ticket, WriteRefused> {
        let appended = self.core.log.append(self.term, entries)?;
        let bytes: usize = entries.iter().map(NewEntry::encoded_len).sum();
        self.core.counters.appended_entries.add(entries.len() as u64);
        self.core.counters.appended_bytes.add(bytes as u64);
        let token = Token { group: self.core.config.group, term: self.term, vlsn: appended.last.vlsn };
        Ok(Ticket { token, policy, since: self.core.clock.now() })
    }

    pub fn commit(&self, ticket: &Ticket, wait: Wait) -> Result<Outcome, CommitError> {
        let commit = self.feeders.commit_begins();
        self.see_through(ticket, commit, wait)
    }

    pub fn write(&self, entries: &[NewEntry<'_>], policy: Policy, wait: Wait) -> Result<Outcome, WriteError> {
        let commit = self.feeders.commit_begins();
        let ticket = self.stage(entries, policy)?;
        self.feeders.push(ticket.token.vlsn, policy, commit.others());
        Ok(self.see_through(&ticket, commit, wait)?)
    }

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

    /// How this node and its replicas stand.
    pub fn stats(&self) -> Stats {
        let health = if self.core.poison.reason().is_some() || self.feeders.fenced().is_some() {
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
            positions: self.feeders.own_positions(),
            committed: self.committed(),
            replicas: self.feeders.status(),
            gates: self.feeders.gates().states(),
            counted: self.core.counters.snapshot(),
            commit_latency: self.latency.lock().clone(),
        }
    }

    /// How far the group has committed.
    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.feeders.gates().committed().get())
    }

    fn last(&self) -> Option<Position> {
        self.core.log.last()
    }
}

/// Whether a master takes writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hold {
    /// It does.
    Nothing,
    /// It does not, as it hands over.
    Writes,
}
