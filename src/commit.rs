//! The commit gates: where writers wait for acknowledgements, and what they are told.
//!
//! One gate for each [`Rule`] in use; gate 0 is the group's `committed`. A gate's position is the VLSN up to which its
//! rule is satisfied. Whoever has news of a voter (a feeder's ack reader, the flusher, apply) tells the gates; that
//! recomputes all of them and wakes exactly those writers whose entry was passed. The gates live for one term of one
//! life of the log: when either ends they are closed, and what was not decided by then stays undecided here.

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::clock::{Deadline, Wait};
use crate::ids::{GroupId, NodeId, Term, Vlsn, number};
use crate::members::Members;
use crate::planted::{self, Bug};
use crate::policy::{Outcome, Policy, Rule, Token};
use crate::progress::Positions;
use crate::quorum::InsufficientReplicas;
use crate::roster::{Roster, Seat};
use crate::watermark::{Closed, Watermark};

/// What a writer holds between its append and its commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// The (last) entry that was appended.
    pub token: Token,
    /// What the writer asked for.
    pub policy: Policy,
    /// When it was appended: a semi-sync timeout counts from here.
    pub since: Deadline,
}

/// What is known of an entry whose commit could not be reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Undecided {
    /// The entry. Asking for this token later, on any node, tells what became of it.
    pub token: Token,
    /// What was waited for.
    pub rule: Rule,
    /// Who has it at the rule's level, as far as is known.
    pub acked_by: Vec<NodeId>,
    /// How many voters have to have it, the master included.
    pub needed: usize,
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Undecided { token, rule, acked_by, needed } = self;
        write!(
            f,
            "the entry was appended at VLSN {} in term {} and is {} on ",
            token.vlsn, token.term, rule.level
        )?;
        if acked_by.is_empty() {
            f.write_str("no voter")?;
        }
        for (at, id) in acked_by.iter().enumerate() {
            write!(f, "{}{id}", if at == 0 { "" } else { ", " })?;
        }
        let vlsn = token.vlsn;
        write!(
            f,
            "; {} needs {needed} voters; the outcome is unknown until committed passes {vlsn}",
            rule.quorum
        )
    }
}

/// Why a commit was not reported. The entry *was* appended, and may yet be committed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommitError {
    /// The wait ended first.
    #[error("the commit timed out: {0}")]
    TimedOut(Undecided),
    /// This node is no longer master in the term of the entry.
    #[error("this node was deposed: {0}")]
    Deposed(Undecided),
    /// The log was closed, cut or replaced.
    #[error("the log that the entry was appended to ended its life: {0}")]
    LifeEnded(Undecided),
    /// The policy's rule was never admitted, and there is no room for another.
    #[error("{limit}: the entry was appended as {0}", limit = TooManyRules)]
    TooManyRules(Token),
}

/// As many different rules are in use as there can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at most 32 different combinations of quorum and level can be in use in one term")]
pub struct TooManyRules;

/// Why the first gate refused an append. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Too few voters are connected.
    #[error(transparent)]
    Insufficient(#[from] InsufficientReplicas),
    /// Too many rules are in use.
    #[error(transparent)]
    TooManyRules(#[from] TooManyRules),
    /// The term, or the life of the log, ended.
    #[error("nothing was written: this node's mastership in term {0} has ended")]
    Ended(Term),
}

/// Why the gates were closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Another term began, or this master stepped down.
    Deposed,
    /// The log was closed, cut or replaced.
    LifeEnded,
}

/// The mastership that a set of gates belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mastership {
    /// The group.
    pub group: GroupId,
    /// The term.
    pub term: Term,
    /// The VLSN of the term's first entry.
    pub term_start: Vlsn,
    /// What is known to be committed from earlier terms.
    pub committed: Option<Vlsn>,
}

/// One rule and how far it is satisfied.
struct Gate {
    rule: Rule,
    reached: Arc<Watermark>,
    /// Set while semi-sync commits of this rule do not wait.
    degraded: Mutex<Option<Degradation>>,
}

/// A semi-sync rule that missed its timeout.
#[derive(Clone, Copy)]
struct Degradation {
    /// The highest entry that was told `Degraded`. When the gate reaches it, the replicas have caught up.
    latest: Vlsn,
    /// An entry that was told `Degraded`, and when. If the gate reaches it within the timeout, the replicas are near
    /// enough to be waited for again: writers that never pause keep `latest` out of reach for ever.
    probe: (Vlsn, Deadline),
}

impl Gate {
    fn new(rule: Rule, at: Option<Vlsn>) -> Gate {
        Gate { rule, reached: Arc::new(Watermark::new(number(at))), degraded: Mutex::new(None) }
    }

    fn has(&self, vlsn: Vlsn) -> bool {
        self.reached.get() >= vlsn.get()
    }

    /// Whether a semi-sync commit of this entry must not wait; then it counts as told `Degraded`.
    fn passes_unwaited(&self, vlsn: Vlsn, now: Deadline, timeout: std::time::Duration) -> bool {
        let mut degraded = self.degraded.lock();
        let Some(state) = degraded.as_mut() else { return false };
        let (probe, since) = state.probe;
        if self.has(state.latest) || (self.has(probe) && now - since < timeout) {
            *degraded = None;
            return false;
        }
        if self.has(probe) {
            state.probe = (vlsn, now);
        }
        state.latest = state.latest.max(vlsn);
        true
    }

    fn degrade(&self, vlsn: Vlsn, now: Deadline) {
        let mut degraded = self.degraded.lock();
        let state = degraded.get_or_insert(Degradation { latest: vlsn, probe: (vlsn, now) });
        state.latest = state.latest.max(vlsn);
    }

    fn is_degraded(&self) -> bool {
        self.degraded.lock().is_some_and(|state| !self.has(state.latest))
    }
}

/// How one gate stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GateState {
    /// Its rule.
    pub rule: Rule,
    /// The VLSN up to which the rule is satisfied.
    pub reached: Option<Vlsn>,
    /// Whether semi-sync commits of this rule missed their timeout and do not wait now.
    pub degraded: bool,
}

/// The gates of one term. Any thread may call any method; only [`wait`](CommitGates::wait) blocks.
pub struct CommitGates {
    mastership: Mastership,
    /// Gate 0, and then the others in the order in which their rules were first asked for, without a gap.
    gates: [OnceLock<Gate>; CommitGates::MAX],
    /// Held to add a gate and to close them all. Lock order: `creating`, then `roster`.
    creating: Mutex<()>,
    roster: Mutex<Roster>,
    /// The latest time of the master's clock since which a majority is known to follow it, in nanoseconds.
    contact: Arc<Watermark>,
    ended: OnceLock<End>,
}

impl CommitGates {
    /// The most gates.
    pub const MAX: usize = 32;

    /// Gates for a mastership that begins. `None` if `master` is a member and no voter.
    pub fn new(mastership: Mastership, members: &Members, master: &NodeId) -> Option<CommitGates> {
        let gates = [const { OnceLock::new() }; CommitGates::MAX];
        gates[0].get_or_init(|| Gate::new(Rule::COMMITTED, mastership.committed));
        let roster = Mutex::new(Roster::new(members, master)?);
        let contact = Arc::new(Watermark::new(0));
        Some(CommitGates {
            mastership,
            gates,
            creating: Mutex::new(()),
            roster,
            contact,
            ended: OnceLock::new(),
        })
    }

    /// The mastership that these gates belong to.
    pub fn mastership(&self) -> Mastership {
        self.mastership
    }

    /// The position up to which the group's log is committed.
    pub fn committed(&self) -> &Arc<Watermark> {
        &self.first().reached
    }

    /// The first gate, to be asked before an append: whether enough voters are connected for this policy. Async and
    /// semi-sync are never refused for want of replicas: what they risk is said by their outcome.
    ///
    /// # Errors
    /// [`Refused`]: nothing may be appended.
    pub fn admit(&self, policy: Policy) -> Result<(), Refused> {
        if self.ended.get().is_some() {
            return Err(Refused::Ended(self.mastership.term));
        }
        if let Some(rule) = policy.rule() {
            self.gate(rule)?;
            if let Policy::Sync { .. } = policy {
                self.roster.lock().reachable(rule)?;
            }
        }
        Ok(())
    }

    /// The position up to which this rule is satisfied, for whoever wants to wait on it.
    ///
    /// # Errors
    /// [`TooManyRules`].
    pub fn position(&self, rule: Rule) -> Result<&Arc<Watermark>, TooManyRules> {
        self.gate(rule).map(|gate| &gate.reached)
    }

    /// Puts another member list in force, and recomputes the gates; see [`Roster::set_members`].
    pub fn set_members(&self, members: &Members) {
        self.recompute(|roster| {
            roster.set_members(members);
            true
        });
        self.note_contact();
    }

    /// Takes a connection of a voter, whose acks count at once or when [`admit_seat`](CommitGates::admit_seat) says so;
    /// see [`Roster::join`].
    pub fn join(&self, id: &NodeId, counts: bool) -> Option<Seat> {
        self.roster.lock().join(id, counts)
    }

    /// Lets what this connection acknowledged, and will, count; see [`Roster::admit`].
    pub fn admit_seat(&self, seat: Seat) {
        if self.recompute(|roster| roster.admit(seat)) {
            self.note_contact();
        }
    }

    /// Takes a voter's answer to a heartbeat that the master sent at this time of its clock, in nanoseconds.
    pub fn heard(&self, seat: Seat, clock: u64) {
        if self.roster.lock().heard(seat, clock) {
            self.note_contact();
        }
    }

    /// Since when a majority of the voters, the master included if it is one, is known to follow it: the latest time of
    /// its clock, in nanoseconds, such that each of them answered a heartbeat that was sent then or later. 0 while that
    /// is not so in this term. For a master that makes a majority by itself nobody raises this but
    /// [`contact_at`](CommitGates::contact_at).
    pub fn contact(&self) -> &Arc<Watermark> {
        &self.contact
    }

    /// The contact, at the present time of the master's clock: `now` itself while the master makes a majority alone.
    pub fn contact_at(&self, now: Deadline) -> Deadline {
        if self.roster.lock().alone() {
            // Whoever looks later, when others vote too, finds how long this was so.
            self.contact.advance(now.as_nanos());
            return now;
        }
        Deadline::from_nanos(self.contact.get())
    }

    fn note_contact(&self) {
        let since = self.roster.lock().contact();
        self.contact.advance(since);
    }

    /// Ends a voter's connection; see [`Roster::leave`].
    pub fn leave(&self, seat: Seat) {
        self.roster.lock().leave(seat);
    }

    /// Takes a voter's ack, which its [`Progress`](crate::progress::Progress) has accepted, and recomputes the gates.
    /// `false` if the connection was superseded: then nothing changed.
    pub fn acknowledge(&self, seat: Seat, positions: Positions) -> bool {
        self.recompute(|roster| roster.acknowledge(seat, positions))
    }

    /// Takes the master's own positions and recomputes the gates.
    pub fn master_at(&self, positions: Positions) {
        self.recompute(|roster| {
            roster.master_at(positions);
            true
        });
    }

    /// Waits until it is decided what to tell the writer; `None` if `wait` ended first, or the thread was poked.
    ///
    /// `now` is the present by the clock that stamped the ticket: a caller that polls with [`Wait::Now`] passes its own
    /// time, and a semi-sync commit is decided by it.
    ///
    /// # Errors
    /// [`CommitError::Deposed`] or [`CommitError::LifeEnded`], if the gates were closed before the policy was satisfied.
    pub fn wait(&self, ticket: &Ticket, now: Deadline, wait: Wait) -> Result<Option<Outcome>, CommitError> {
        let Token { vlsn, term, .. } = ticket.token;
        if term != self.mastership.term {
            // Another term's entry may stand at this VLSN: our positions say nothing about it.
            return Err(CommitError::Deposed(self.undecided(ticket)));
        }
        // A sync policy may ask for more than that: all voters, or their engines.
        if self.first().has(vlsn) && !matches!(ticket.policy, Policy::Sync { .. }) {
            return Ok(Some(Outcome::Committed));
        }
        let Some(rule) = ticket.policy.rule() else { return Ok(Some(Outcome::Acked)) };
        let gate = self.gate(rule).map_err(|TooManyRules| CommitError::TooManyRules(ticket.token))?;
        let (wait, due) = match ticket.policy {
            Policy::SemiSync { timeout, .. } if !gate.has(vlsn) => {
                if self.ended.get().is_none() && gate.passes_unwaited(vlsn, now, timeout) {
                    return Ok(Some(Outcome::Degraded));
                }
                let due = ticket.since + timeout;
                // A timeout that has passed ends the wait below at once, if the gate is still closed then.
                let wait = if due <= now { Wait::Now } else { wait.at_most(due) };
                (wait, Some(due))
            }
            _ => (wait, None),
        };
        match gate.reached.wait(vlsn.get(), wait) {
            Ok(true) => Ok(Some(self.satisfied(vlsn))),
            Ok(false) => match due {
                // A real thread that waited asks the clock that it waited by; one that polls was told the time.
                Some(due)
                    if due <= now || (wait != Wait::Now && due.remaining().is_some_and(|t| t.is_zero())) =>
                {
                    gate.degrade(vlsn, now.max(due));
                    Ok(Some(Outcome::Degraded))
                }
                _ => Ok(None),
            },
            Err(Closed) => Err(self.ended(ticket)),
        }
    }

    /// What to tell a writer that waits no longer: the error that says what is known, unless it is decided after all.
    ///
    /// # Errors
    /// [`CommitError`].
    pub fn give_up(&self, ticket: &Ticket, now: Deadline) -> Result<Outcome, CommitError> {
        if let Some(outcome) = self.wait(ticket, now, Wait::Now)? {
            return Ok(outcome);
        }
        if planted::active(Bug::TimeoutToldAsSuccess) {
            return Ok(Outcome::Acked);
        }
        Err(CommitError::TimedOut(self.undecided(ticket)))
    }

    /// Closes all gates: whoever waits, or will wait, for what is not satisfied by now is told why. The first reason stays.
    pub fn close(&self, end: End) {
        let _creating = self.creating.lock();
        self.ended.get_or_init(|| end);
        self.existing().for_each(|gate| gate.reached.close());
        self.contact.close();
    }

    /// Whether any rule's semi-sync commits missed their timeout and its replicas have not caught up.
    pub fn degraded(&self) -> bool {
        self.existing().any(Gate::is_degraded)
    }

    /// How the gates stand, gate 0 first.
    pub fn states(&self) -> Vec<GateState> {
        let state = |gate: &Gate| GateState {
            rule: gate.rule,
            reached: Vlsn::new(gate.reached.get()),
            degraded: gate.is_degraded(),
        };
        self.existing().map(state).collect()
    }

    /// The voters as they stand now.
    pub fn roster(&self) -> Roster {
        self.roster.lock().clone()
    }

    fn first(&self) -> &Gate {
        self.gates[0].get_or_init(|| unreachable!("gate 0 is made with the gates"))
    }

    fn existing(&self) -> impl Iterator<Item = &Gate> {
        self.gates.iter().map_while(OnceLock::get)
    }

    /// The gate of this rule, made if there is none. A new gate is first put in its place and then computed, so that an
    /// ack that comes meanwhile is seen by one of the two.
    fn gate(&self, rule: Rule) -> Result<&Gate, TooManyRules> {
        if let Some(gate) = self.existing().find(|gate| gate.rule == rule) {
            return Ok(gate);
        }
        let _creating = self.creating.lock();
        if let Some(gate) = self.existing().find(|gate| gate.rule == rule) {
            return Ok(gate);
        }
        let empty = self.gates.iter().find(|slot| slot.get().is_none()).ok_or(TooManyRules)?;
        let gate = empty.get_or_init(|| Gate::new(rule, None));
        let agreed = self.roster.lock().agreed(rule, self.mastership.term_start);
        gate.reached.advance(number(agreed));
        if self.ended.get().is_some() {
            gate.reached.close();
        }
        Ok(gate)
    }

    /// Changes the roster and raises every gate to what its rule is now satisfied for. Gate 0 comes first: when a rule
    /// at least as strong lets its writers go, they find the entry committed.
    fn recompute(&self, change: impl FnOnce(&mut Roster) -> bool) -> bool {
        let mut agreed = [0_u64; CommitGates::MAX];
        {
            let mut roster = self.roster.lock();
            // What comes after the end may speak of another life of the log.
            if self.ended.get().is_some() || !change(&mut roster) {
                return false;
            }
            for (slot, gate) in agreed.iter_mut().zip(self.existing()) {
                *slot = number(roster.agreed(gate.rule, self.mastership.term_start));
            }
        }
        // Outside the lock, as this wakes threads. Another caller may overtake: positions only rise.
        for (position, gate) in agreed.into_iter().zip(self.existing()).filter(|(position, _)| *position > 0)
        {
            gate.reached.advance(position);
        }
        true
    }

    fn satisfied(&self, vlsn: Vlsn) -> Outcome {
        if self.first().has(vlsn) { Outcome::Committed } else { Outcome::Acked }
    }

    fn ended(&self, ticket: &Ticket) -> CommitError {
        let undecided = self.undecided(ticket);
        match self.ended.get() {
            Some(End::LifeEnded) => CommitError::LifeEnded(undecided),
            Some(End::Deposed) | None => CommitError::Deposed(undecided),
        }
    }

    fn undecided(&self, ticket: &Ticket) -> Undecided {
        let rule = ticket.policy.rule().unwrap_or(Rule::COMMITTED);
        let roster = self.roster.lock();
        let (acked_by, needed) = if ticket.token.term == self.mastership.term {
            roster.who_has(ticket.token.vlsn, rule)
        } else {
            (Vec::new(), roster.needed(rule.quorum))
        };
        Undecided { token: ticket.token, rule, acked_by, needed }
    }
}

impl fmt::Debug for CommitGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitGates")
            .field("mastership", &self.mastership)
            .field("gates", &self.states())
            .finish()
    }
}

#[cfg(test)]
mod tests;
