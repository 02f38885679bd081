//! Healing sealed segments: what is damaged in them is asked of every member that has data, master or not.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::channel::Channel;
use crate::clock::{Deadline, Wait};
use crate::election::ask::{Asking, Next, OnAnswer, Question};
use crate::ids::{NodeId, Term, Vlsn, VlsnRange};
use crate::log::{Copies, MendError, TooMuch, Wounded};
use crate::node::group::Shared;
use crate::node::unhealable::Lacking;
use crate::runtime::Running;
use crate::watermark::Watermark;
use crate::wire::message::{EntryRequest, Message, Survey};
use crate::wire::recovery::{Keeping, ScrubStatus};
use crate::worker::{Step, Stop, Worker};

/// What the workers that heal and scrub share with their node.
pub(super) struct Mending {
    /// Counts orders to scrub; closed when the node is.
    pub orders: Watermark,
    pub scrub: Mutex<ScrubStatus>,
    /// The worker "repair", to be woken when something came.
    pub repair: OnceLock<Arc<dyn Running>>,
    pool: Mutex<Pool>,
    /// Who lacks the first entry that is missing now.
    lacking: Mutex<Lacking>,
}

/// What others had of the segment that is healed now.
#[derive(Default)]
struct Pool {
    /// The segment's first entry.
    segment: Option<Vlsn>,
    copies: Copies,
}

impl Default for Mending {
    fn default() -> Mending {
        Mending {
            orders: Watermark::new(0),
            scrub: Mutex::default(),
            repair: OnceLock::new(),
            pool: Mutex::default(),
            lacking: Mutex::default(),
        }
    }
}

impl Mending {
    pub fn scrub_now(&self) {
        self.orders.advance(self.orders.get() + 1);
    }

    pub fn lacking(&self) -> Lacking {
        self.lacking.lock().clone()
    }

    /// The node closes.
    pub fn close(&self) {
        self.orders.close();
        self.poke();
    }

    fn poke(&self) {
        if let Some(repair) = self.repair.get() {
            repair.poke();
        }
    }
}

/// The worker "repair".
pub(super) struct Repair {
    node: Weak<Shared>,
    wounded: Option<Wounded>,
    asking: Vec<Asking>,
    /// When to ask again.
    next: Option<Deadline>,
}

impl Repair {
    pub fn new(node: &Arc<Shared>) -> Repair {
        Repair { node: Arc::downgrade(node), wounded: None, asking: Vec::new(), next: None }
    }

    /// Asks every other member for what is missing, each from where it last came to.
    fn ask(&mut self, node: &Arc<Shared>, segment: Vlsn, missing: &[VlsnRange], until: Deadline) {
        let members = node.roll.members();
        let own = node.own.address.as_ref();
        let mut whom: Vec<_> = members
            .iter()
            .filter(|member| member.id != node.own.id && member.role != crate::members::Role::Arbiter)
            .filter_map(|member| member.address.clone())
            .collect();
        for seed in node.seeds.iter().filter(|seed| Some(*seed) != own) {
            if !whom.contains(seed) {
                whom.push(seed.clone());
            }
        }
        self.asking.retain(|one| !one.has_ended());
        for (turn, to) in whom.into_iter().enumerate() {
            let group = node.core.config.group;
            let message = Message::Survey(Survey { group, node: node.own.id.clone(), after: None });
            let (node_of, missing) = (Arc::downgrade(node), missing.to_vec());
            let giver = to.to_string();
            let mut talk = Talk {
                node: node_of,
                segment,
                missing,
                giver,
                afresh: false,
                peer: None,
                next: None,
                said: 0,
            };
            let on_answer: OnAnswer = Box::new(move |_, message, channel| talk.heard(message, channel));
            let term = node.election.term();
            let question = Question { to, term, message, until, on_answer: Some(on_answer) };
            self.asking.push(Asking::start(&node.core.host.runtime, format!("heal-{turn}"), question));
        }
    }

    fn finish(&mut self, node: &Shared) {
        self.wounded = None;
        self.next = None;
        *node.mending.pool.lock() = Pool::default();
        node.mending.lacking.lock().clear();
        // The members and the slots may have been read from older lists.
        node.reload_members();
        node.reload_slots();
        node.election.poke();
    }

    fn end(&mut self) -> Stop {
        self.asking.drain(..).for_each(|asking| asking.end());
        Stop::Done
    }

    fn pause(node: &Shared, wait: Wait, due: Deadline) -> Result<Step, Stop> {
        let _more = node.core.log.damages_found().wait(u64::MAX, wait.at_most(due));
        Ok(Step::Idle { due })
    }
}

impl Worker for Repair {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(self.end()) };
        let (log, now) = (&node.core.log, node.core.clock.now());
        let found = log.damages_found().get();
        if node.mending.orders.wait(0, Wait::Now).is_err() || log.poisoned() {
            return Err(self.end());
        }
        if log.damaged().is_empty() {
            self.asking.retain(|one| !one.has_ended());
            return match log.damages_found().wait(found + 1, wait) {
                Ok(true) => {
                    node.election.poke();
                    Ok(Step::Worked)
                }
                Ok(false) => Ok(Step::Idle { due: Deadline::NEVER }),
                Err(_closed) => Err(self.end()),
            };
        }
        let round = node.core.config.peer_timeout.min(node.core.config.heartbeat * 5);
        if self.wounded.is_none() {
            // A master steps down, if it leads: somebody whole takes over.
            node.election.poke();
            if let Err(error) = log.seal_damaged() {
                log::warn!("{}: a damaged segment can't be sealed yet: {error}", node.own.id);
            }
            self.wounded = log.wounded();
            if let Some(wounded) = &self.wounded {
                let mut pool = node.mending.pool.lock();
                if pool.segment != Some(wounded.first()) {
                    *pool = Pool { segment: Some(wounded.first()), copies: Copies::new(wounded.most()) };
                }
            }
        }
        let Some(wounded) = &mut self.wounded else {
            // It could not be sealed yet.
            return Repair::pause(&node, wait, now + round);
        };
        let gaps = wounded.missing();
        let mut fetched = BTreeMap::new();
        let mut missing = Vec::new();
        {
            let pool = node.mending.pool.lock();
            for (gap, before, last) in gaps {
                match pool.copies.chain(gap, before, last) {
                    Some(entries) => fetched.extend(entries),
                    None => missing.push(gap),
                }
            }
        }
        if missing.is_empty() {
            match wounded.mend(&fetched) {
                Ok(()) | Err(MendError::Gone) => self.finish(&node),
                Err(MendError::Chain(at) | MendError::Missing(at)) => {
                    log::warn!(
                        "{}: VLSN {at} is not what belongs there: the whole segment is fetched",
                        node.own.id
                    );
                    wounded.distrust();
                }
                Err(MendError::Io(error)) => {
                    log::warn!("{}: a damaged segment can't be healed yet: {error}", node.own.id);
                    self.wounded = None;
                    return Repair::pause(&node, wait, now + round);
                }
            }
            return Ok(Step::Worked);
        }
        let due = self.next.filter(|due| now < *due);
        let Some(due) = due else {
            if node.drop_unhealable(wounded) {
                self.finish(&node);
                return Ok(Step::Worked);
            }
            // Whoever lacked it then may have it now.
            node.mending.lacking.lock().clear();
            let segment = wounded.first();
            self.next = Some(now + round);
            self.ask(&node, segment, &missing, now + round);
            return Ok(Step::Worked);
        };
        Repair::pause(&node, wait, due)
    }
}

/// A conversation with one member about what is missing.
struct Talk {
    node: Weak<Shared>,
    /// The first entry of the segment that is healed.
    segment: Vlsn,
    missing: Vec<VlsnRange>,
    /// Where it listens.
    giver: String,
    /// It gave all before, and not what belongs there: it is asked for all once more.
    afresh: bool,
    peer: Option<NodeId>,
    /// The entry that was asked for last.
    next: Option<Vlsn>,
    said: u64,
}

impl Talk {
    fn heard(&mut self, message: &Message<'_>, channel: &dyn Channel) -> Next {
        let Some(node) = self.node.upgrade() else { return Next::Done };
        if node.mending.pool.lock().segment != Some(self.segment) {
            // It was healed meanwhile, by others.
            return Next::Done;
        }
        let next = match (message, self.next) {
            (Message::SurveyReply(reply), None) => {
                self.peer = Some(reply.node.clone());
                let first = self.missing.first().map(|gap| gap.first());
                self.afresh = first.and_then(|first| self.wanted(&node, first)).is_none();
                first
            }
            (Message::Entries(entries), Some(asked)) => {
                let gap = self.missing.iter().find(|gap| gap.last() >= asked).copied();
                let next = match gap.map(|gap| self.take(&node, entries.run, gap)).transpose() {
                    Ok(next) => next.flatten(),
                    Err(error) => {
                        log::warn!("{}: {} is asked no more: {error}", node.own.id, self.giver);
                        return Next::Done;
                    }
                };
                node.mending.poke();
                Some(next.unwrap_or(asked.next()))
            }
            // It has not got this one, and perhaps the next.
            (Message::Nack(_), Some(asked)) => {
                let first = self.missing.first().is_some_and(|gap| gap.first() == asked);
                if let Some(peer) = self.peer.take().filter(|_| first) {
                    node.mending.lacking.lock().insert(peer);
                }
                Some(asked.next())
            }
            _ => None,
        };
        let next = next.and_then(|next| self.wanted(&node, next));
        let Some(next) = next else { return Next::Done };
        let Some(gap) = self.missing.iter().find(|gap| gap.last() >= next) else { return Next::Done };
        let (from, to) = (next.max(gap.first()), gap.last());
        self.next = Some(from);
        self.said += 1;
        let max_bytes = u32::try_from(node.core.config.batch_bytes).unwrap_or(u32::MAX);
        let request = Message::EntryRequest(EntryRequest { from, to, max_entries: u32::MAX, max_bytes });
        let mut frame = Vec::new();
        request.encode(Term::NONE, self.said, &mut frame);
        match channel.send(&[IoSlice::new(&frame)], Wait::Now) {
            Ok(true) => Next::Await,
            Ok(false) | Err(_) => Next::Done,
        }
    }

    /// What is to be asked for next, from here on.
    fn wanted(&self, node: &Shared, from: Vlsn) -> Option<Vlsn> {
        let ahead = self.missing.iter().filter_map(|gap| VlsnRange::new(from.max(gap.first()), gap.last()));
        let pool = node.mending.pool.lock();
        let wanted = |gap: VlsnRange| match self.afresh {
            true => Some(gap.first()),
            false => pool.copies.wanted_of(&self.giver, gap),
        };
        ahead.into_iter().find_map(wanted)
    }

    fn take(&self, node: &Shared, run: &[u8], gap: VlsnRange) -> Result<Option<Vlsn>, TooMuch> {
        let mut pool = node.mending.pool.lock();
        pool.copies.take(&self.giver, run, gap)
    }
}

impl Shared {
    /// What this node says of the state of its log.
    pub fn health_of_log(&self) -> Keeping {
        let log = &self.core.log;
        let damaged = log.damaged();
        let whole = damaged.first().zip(damaged.last());
        let standing = match self.election.state().state().standing {
            crate::members::Standing::Damaged { from, to, .. } => VlsnRange::new(from, to),
            _ => None,
        };
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Keeping {
            scrub: ScrubStatus {
                found: number(log.damages_found().get()),
                healed: number(log.damages_healed()),
                ..*self.mending.scrub.lock()
            },
            damaged: whole.and_then(|(first, last)| VlsnRange::new(first.first(), last.last())).or(standing),
            ..Keeping::default()
        }
    }
}
