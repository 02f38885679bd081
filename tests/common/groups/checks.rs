//! What must hold at every moment of a run, and at its end.

use std::collections::BTreeMap;

use quorate::log::Log;
use quorate::{Answer, EntryKind, Member, Members, Part, Role, Stats, Term, Token, Vlsn};

use super::history::Flaw;
use super::store::Truth;
use super::{Cluster, Violation, id};

/// The term of the entry at this place of a log, if it holds it and still tells.
fn term_at(log: &Log, vlsn: u64) -> Option<Term> {
    if log.last().is_none_or(|last| last.vlsn.get() < vlsn)
        || log.base().is_some_and(|base| base.vlsn.get() >= vlsn)
    {
        return None;
    }
    log.term_history().iter().rev().find(|span| span.first.get() <= vlsn).map(|span| span.term)
}

impl Cluster {
    /// What must hold at every moment.
    pub(super) fn check(&mut self) -> Result<(), Violation> {
        if let Some(violation) = self.truth.lock().violation.clone() {
            return Err(violation);
        }
        let known = self.places.iter().map(|place| place.committed).max().unwrap_or(0);
        for at in 0..self.places.len() {
            let Some(node) = self.places[at].node.take() else { continue };
            let before = self.places[at].committed;
            let checked = self.check_node(at, &node);
            self.places[at].node = Some(node);
            checked?;
            self.check_mastership(at, before, known)?;
        }
        Ok(())
    }

    fn check_node(&mut self, at: usize, node: &quorate::Node) -> Result<(), Violation> {
        let place = &mut self.places[at];
        let name = &place.name.clone();
        let term = node.term();
        if term < place.term {
            return Err(format!("{name} fell from term {} to {term}", place.term));
        }
        place.term = term;
        if place.role == Role::Arbiter {
            return Ok(());
        }
        let committed = node.committed().map_or(0, Vlsn::get);
        if committed < place.committed {
            return Err(format!("{name} had {} committed, and now {committed}", place.committed));
        }
        place.committed = committed;
        let positions = node.positions();
        let applied = positions.applied.map_or(0, Vlsn::get);
        let life = node.log().life();
        // What was applied before a checkpoint may be ahead of what is known to be committed since the node opened.
        if applied > life.flushed.get() || node.leads().is_some() && node.leads() != Some(term) {
            return Err(format!(
                "{name} in term {term} leads {:?}, applied {applied}, has {positions:?}",
                node.leads()
            ));
        }
        for span in node.log().term_history() {
            let number = span.term.get();
            if place.spans.contains(&number) || node.log().base().is_some_and(|base| base.vlsn >= span.first)
            {
                continue;
            }
            let Ok(position) = node.log().position_at(span.first) else { continue };
            if position.term != span.term {
                continue;
            }
            place.spans.insert(number);
            let own = (span.first.get(), position.crc, name.clone());
            let first = self.record.starts.entry(number).or_insert_with(|| own.clone());
            if (first.0, first.1) != (own.0, own.1) {
                return Err(format!("two masters began term {number}: {first:?} and {own:?}"));
            }
        }
        let Some(leads) = node.leads() else { return Ok(()) };
        if node.part() != Part::Master && node.poisoned().is_none() {
            return Err(format!("{name} leads term {leads} and says that it is {:?}", node.part()));
        }
        if self.plan.steady && self.record.masters.keys().any(|term| *term < leads.get()) {
            return Err(format!("{name} leads term {leads}, though nothing happened to the master before"));
        }
        let first = self.record.masters.entry(leads.get()).or_insert_with(|| name.clone());
        if first != name {
            return Err(format!("{first} and {name} both lead in term {leads}"));
        }
        if let Some(stats) = node.stats() {
            self.check_claims(&stats)?;
        }
        for (&by, &(term, vlsn)) in self.record.told.range(..leads.get()) {
            let here = term_at(node.log(), vlsn);
            if here != Some(Term::new(term)) && node.log().base().is_none_or(|base| base.vlsn.get() < vlsn) {
                return Err(format!(
                    "{name} leads term {leads} without VLSN {vlsn} of term {term}, which was committed in term {by} at \
                     the latest; it has {here:?}"
                ));
            }
        }
        Ok(())
    }

    /// What a master commits is on a majority of disks, and of its own term; members change one at a time. `known` is how far
    /// somebody knew the group to be committed at the last look.
    fn check_mastership(&mut self, at: usize, before: u64, known: u64) -> Result<(), Violation> {
        let place = &self.places[at];
        let Some(node) = place.node.as_ref().filter(|_| place.role != Role::Arbiter) else { return Ok(()) };
        let (committed, members) = (node.committed().map_or(0, Vlsn::get), node.members());
        let Some(leads) = node.leads() else {
            let place = &mut self.places[at];
            (place.office, place.before_office) = (Term::NONE, committed);
            // Who stands goes by the list that it has by then.
            place.lists = vec![members];
            return Ok(());
        };
        if place.office != leads {
            // From one mastership to the next without being seen in between: what the first committed is not known.
            // Nor what it heard of the master before, since it was last seen to follow.
            let heard = place.before_office.max(committed.min(known));
            let known = if place.office == Term::NONE { heard } else { committed };
            let place = &mut self.places[at];
            (place.office, place.before_office) = (leads, known);
        }
        let place = &self.places[at];
        let Some(node) = &place.node else { return Ok(()) };
        let name = &place.name;
        let history = node.log().term_history();
        let Some(start) = history.iter().find(|span| span.term == leads).map(|span| span.first.get()) else {
            return Err(format!("{name} leads term {leads} and has no entry of it"));
        };
        let orders = self.plan.extra.transfer + self.plan.extra.promote > 0;
        if committed < start && committed > place.before_office && !orders {
            return Err(format!(
                "{name} committed {committed} of an earlier term: its own, {leads}, begins at {start}"
            ));
        }
        let pending: Vec<u64> = node
            .log()
            .memberships()
            .into_iter()
            .map(Vlsn::get)
            .filter(|vlsn| *vlsn > committed.max(start))
            .collect();
        let founding = node.log().memberships().first().is_some_and(|first| pending.contains(&first.get()));
        if pending.len() > 1 || (pending.len() == 1 && committed < start && !founding) {
            return Err(format!(
                "{name} changes members at {pending:?}, with {committed} committed, since {start}"
            ));
        }
        let place = &mut self.places[at];
        if place.lists.last() != Some(&members) {
            place.lists.push(members);
        }
        if committed > before && committed >= start {
            self.check_majority(at, committed)?;
        }
        Ok(())
    }

    /// By one of the lists that were in force, a majority of the voters may have this entry of a master on its disk.
    fn check_majority(&self, at: usize, vlsn: u64) -> Result<(), Violation> {
        let Some(master) = self.node(at) else { return Ok(()) };
        let term = term_at(master.log(), vlsn);
        let has = |member: &Member| {
            let Some(place) = self.places.iter().find(|place| id(&place.name) == member.id) else {
                return false;
            };
            // Of one that is down, or has lost its directory, it is not known.
            let Some(node) = place.node.as_ref().filter(|node| node.standing().counts()) else {
                return place.node.is_none() || place.generation > 0;
            };
            let flushed = || node.log().life().flushed.get() >= vlsn && term_at(node.log(), vlsn) == term;
            place.role == Role::Arbiter || flushed()
        };
        let holds = |members: &Members| {
            2 * members.voters().filter(|member| has(member)).count() > members.voters().count()
        };
        let place = &self.places[at];
        if place.lists.iter().any(|members| holds(members)) {
            return Ok(());
        }
        Err(format!("{} has VLSN {vlsn} committed, which no majority has:\n{}", place.name, self.describe()))
    }

    /// A client was told that an entry is committed: by a term of whose master this is known, or by any so far.
    pub(super) fn told_committed(&mut self, token: &Token, by: Option<Term>) -> Result<(), Violation> {
        self.count("committed");
        let (term, vlsn) = (token.term.get(), token.vlsn.get());
        if self.record.gone.contains(&(term, vlsn)) {
            return Err(format!("{token:?} was told to be gone, and then to be committed"));
        }
        let highest = self.up().map(|(_, node)| node.term()).max().unwrap_or(token.term);
        let told = self.record.told.entry(by.unwrap_or(highest).get()).or_insert((term, vlsn));
        if told.1 < vlsn {
            *told = (term, vlsn);
        }
        Ok(())
    }

    /// A client was told that an entry is gone.
    pub(super) fn told_gone(&mut self, token: &Token) -> Result<(), Violation> {
        self.count("gone");
        let (term, vlsn) = (token.term.get(), token.vlsn.get());
        let truth = self.truth.lock();
        if truth.at(vlsn).is_some_and(|given| given.term == term) {
            return Err(format!("{token:?} was told to be gone, and engines have it"));
        }
        self.record.gone.insert((term, vlsn));
        Ok(())
    }

    /// Whether every member has all that its master has, and every node that is none has been told so.
    pub(super) fn has_converged(&self) -> bool {
        let Some((_, master)) = self.master() else { return false };
        let Some(last) = master.last() else { return false };
        let members = master.members();
        if master.committed() != Some(last.vlsn) {
            return false;
        }
        members.iter().all(|member| {
            let Some(place) = self.places.iter().find(|place| id(&place.name) == member.id) else {
                return false;
            };
            let Some(node) = &place.node else { return false };
            // The master does not see who is fed by others, and does not promote him.
            let counts = member.role == Role::Secondary || member.is_voter() && node.standing().counts();
            let settled = counts && node.term() == master.term();
            let has_all = || node.last() == Some(last) && place.store.lock().applied == last.vlsn.get();
            settled && (member.role == Role::Arbiter || has_all())
        }) && self.leaving.is_empty()
    }

    /// After all has come right: what was told is so.
    pub(super) fn check_end(&self) -> Result<(), Violation> {
        let truth = self.truth.lock();
        for (term, vlsn) in self.record.told.values() {
            let given = truth.at(*vlsn).map(|given| given.term);
            if given != Some(*term) {
                return Err(format!(
                    "VLSN {vlsn} was told committed in term {term}; the engines got {given:?}"
                ));
            }
        }
        for (term, vlsn) in &self.record.gone {
            if truth.at(*vlsn).is_some_and(|given| given.term == *term) {
                return Err(format!("VLSN {vlsn} of term {term} was told to be gone; the engines got it"));
            }
        }
        self.check_tokens(&truth)?;
        let mut starts: BTreeMap<u32, u64> = BTreeMap::new();
        for (vlsn, given) in (1..).zip(&truth.given) {
            if given.kind == EntryKind::TERM_START && starts.insert(given.term, vlsn).is_some() {
                return Err(format!("term {} began twice", given.term));
            }
            if !starts.contains_key(&given.term) {
                return Err(format!("VLSN {vlsn} of term {} comes before its start", given.term));
            }
        }
        Ok(())
    }

    /// Every member tells of every write what really became of it. A newcomer to which the log was never sent in full can't
    /// exist, as nothing is pruned.
    fn check_tokens(&self, truth: &Truth) -> Result<(), Violation> {
        let Some((_, master)) = self.master() else { return Err("no master".into()) };
        for member in master.members().iter().filter(|member| member.role != Role::Arbiter) {
            let place = self.places.iter().find(|place| id(&place.name) == member.id);
            let Some(node) = place.and_then(|place| place.node.as_ref()) else { continue };
            for token in &self.record.tokens {
                let given = truth.at(token.vlsn.get()).map(|given| given.term);
                let really =
                    if given == Some(token.term.get()) { Answer::Committed } else { Answer::RolledBack };
                let answer = node.ask(token);
                if answer != really {
                    return Err(format!("{} says {answer:?} of {token}, and it is {really:?}", member.id));
                }
            }
        }
        Ok(())
    }

    /// What a master holds of its replicas is on their disks.
    fn check_claims(&self, stats: &Stats) -> Result<(), Violation> {
        let now = self.now();
        for one in &stats.replicas {
            let Some(of) = self.places.iter().find(|place| id(&place.name) == one.id) else { continue };
            let Some(node) = of.node.as_ref().filter(|_| of.role != Role::Arbiter) else { continue };
            // An ack that was on its way when the node left for another term, or ended, may still be held.
            let fresh = one.connected_for.is_some_and(|connected| connected <= now - of.since);
            if !fresh || node.term() != stats.term || node.part() != Part::Replica {
                continue;
            }
            let flushed = node.log().life().flushed.get();
            let claimed = one.positions.durable.map_or(0, Vlsn::get);
            if claimed > flushed {
                return Err(format!(
                    "{} holds {claimed} of {}, which has flushed {flushed}",
                    stats.node, one.id
                ));
            }
        }
        Ok(())
    }

    pub(super) fn describe_flaw(&self, flaw: &Flaw) -> Violation {
        let numbers: Vec<usize> = match *flaw {
            Flaw::TwoWrites { one, other, .. } => vec![one, other],
            Flaw::OtherValue { reader, writer, .. }
            | Flaw::FailedSeen { reader, writer }
            | Flaw::Moved { reader, writer }
            | Flaw::FromTheFuture { reader, writer } => vec![reader, writer],
            Flaw::NobodyWrote { reader } => vec![reader],
            Flaw::CasOnStale { cas, .. } | Flaw::CasRefused { cas } => vec![cas],
            Flaw::Stale { late, ended_before } => vec![late, ended_before],
        };
        let ops: Vec<_> = numbers.iter().map(|number| self.history.ops[*number]).collect();
        format!("not linearizable: {flaw}: {ops:#?}")
    }

    /// Every node in a line or two.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for place in &self.places {
            let Some(node) = &place.node else {
                text += &format!("{} is down, wanted {}: {:?}\n", place.name, place.wanted, place.refusal);
                continue;
            };
            text += &format!(
                "{}: {:?} in term {}, {:?}, hears {:?}, last {:?}, committed {:?}, {:?}\n",
                place.name,
                node.part(),
                node.term(),
                node.standing(),
                node.master(),
                node.last(),
                node.committed(),
                node.positions(),
            );
            let members: Vec<_> =
                node.members().iter().map(|m| format!("{} {} {}", m.id, m.role, m.admission)).collect();
            let error = node.last_error().map(|error| error.to_string());
            text += &format!("    of {members:?}; {:?}; {error:?}\n", node.poisoned());
        }
        let open = self.leaving.len();
        text + &format!("{open} removals open; {:?}", self.counts)
    }
}
