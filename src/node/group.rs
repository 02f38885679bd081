//! What a node of a group that runs itself shares among its workers, and how they are tied together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, RwLock};

use crate::address::Address;
use crate::base::Base;
use crate::channel::Channel;
use crate::clock::Deadline;
use crate::election::ask::Asking;
use crate::election::{Election, EnterError, Office, Phase};
use crate::entry::EntryKind;
use crate::feeder::{Feeders, Relay, Upstream};
use crate::ids::{LogEnd, NodeId, Term, Vlsn};
use crate::log::Truncated;
use crate::members::{Member, Members, Role, Roll};
use crate::node::archiver::Archiving;
use crate::node::core::Core;
use crate::node::doubt::Doubt;
use crate::node::engine_digest::EngineDigests;
use crate::node::fetch::Fetching;
use crate::node::handover::Handover;
use crate::node::lacking::Lacking;
use crate::node::lead::{Lead, open_term};
use crate::node::reception::Receptions;
use crate::node::repair::Mending;
use crate::node::slots::SlotBook;
use crate::node::snapshots::Givings;
use crate::node::source::NodeSource;
use crate::node::verify::Digests;
use crate::node::{Event, Service};
use crate::replica::FollowError;
use crate::replica::ack::AckSender;
use crate::replica::following::{Following, Guide, Retry};
use crate::runtime::Running;
use crate::wire::message::{Feed, Part, RejectReason, VoteReason};
use crate::worker::Stop;

/// Events that nobody has been told of yet, at most; older ones are dropped.
const MAX_EVENTS: usize = 1024;

/// What the workers of a node share.
pub(super) struct Shared {
    pub core: Arc<Core>,
    /// This node, as it says itself.
    pub own: Member,
    /// Whom to ask for the group before any member is known.
    pub seeds: Vec<Address>,
    /// Whom to be fed by whoever leads, for a replica of replicas.
    pub fed_by: Option<Address>,
    pub founders: Members,
    pub roll: Arc<Roll>,
    /// The entry that holds the list in force. Held while that is changed together with, or after, the log.
    pub rolls: Mutex<Option<Vlsn>>,
    pub election: Arc<Election>,
    pub acks: Arc<AckSender>,
    pub following: OnceLock<Arc<Following>>,
    pub receive: OnceLock<Arc<dyn Running>>,
    /// While this node leads. Lock order: the election's lock comes first.
    pub lead: RwLock<Option<Arc<Lead>>>,
    /// While this node follows and may feed others.
    pub relay: Mutex<Option<Relay>>,
    /// What has ended, and whose threads are still to be joined.
    pub retired: Mutex<Vec<Retired>>,
    /// Requests to be taken into the group.
    pub joining: Mutex<Vec<Asking>>,
    /// How many damaged segments were healed when the list in force was last read.
    pub reread: AtomicU64,
    pub doubt: Mutex<Doubt>,
    /// If it has an archive.
    pub archive: Option<Archiving>,
    pub mending: Arc<Mending>,
    pub whom: Mutex<Whom>,
    pub events: Mutex<VecDeque<Event>>,
    pub service: RwLock<Option<Arc<dyn Service>>>,
    pub receptions: Receptions,
    pub digests: Arc<Digests>,
    pub engine_digests: Arc<EngineDigests>,
    /// The last change of membership of this mastership.
    pub changed: Mutex<Option<Vlsn>>,
    pub handover: Mutex<Option<Arc<Handover>>>,
    /// In which term this node began to hand over because its log is damaged, and until when it tries.
    pub giving_way: Mutex<Option<(Term, Deadline)>>,
    pub slots: Mutex<SlotBook>,
    /// When a write failed for want of space or worse.
    pub trouble: AtomicU64,
    /// When the engine last had all that was known to be committed.
    pub caught_up: AtomicU64,
    /// What the log stands on, if a snapshot was installed here.
    pub base: Mutex<Option<Base>>,
    pub givings: Givings,
    pub fetching: Fetching,
    pub lacking: Lacking,
}

/// What has ended, and whose threads are still to be joined.
pub(super) enum Retired {
    Lead(Feeders),
    Relay(Relay),
}

impl Retired {
    pub fn join(&self) {
        match self {
            Retired::Lead(feeders) => feeders.close(),
            Retired::Relay(relay) => relay.close(),
        }
    }
}

/// Whom to dial next.
#[derive(Default)]
pub(super) struct Whom {
    /// Somebody said that this is the master.
    hint: Option<Address>,
    /// Counts those who were tried for want of better knowledge.
    turn: usize,
    /// Attempts to be fed since the last that came about, by the node that is to feed this one, and then by the group.
    failed: u32,
}

impl Shared {
    /// The mastership, if this node leads.
    pub fn lead(&self) -> Option<Arc<Lead>> {
        self.lead.read().clone()
    }

    /// What feeds from this node while it follows, taken out of its lock: a worker that can't be made ends it.
    pub fn relay(&self) -> Option<Relay> {
        self.relay.lock().clone()
    }

    pub fn tell(&self, event: Event) {
        let mut events = self.events.lock();
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
        drop(events);
        self.election.poke();
    }

    /// What this node is doing.
    pub fn part(&self) -> Part {
        if self.core.poison.reason().is_some() {
            return Part::Failed;
        }
        match self.election.phase() {
            Phase::Leading { .. } => Part::Master,
            Phase::Standing(_) => Part::Candidate,
            Phase::Following if self.election.master().is_some() => Part::Replica,
            Phase::Following => Part::Waiting,
        }
    }

    /// The master as far as this node knows, and where it listens.
    pub fn master_hint(&self) -> Option<(NodeId, Option<Address>)> {
        let master = self.election.master()?;
        let address = self.roll.members().find(&master).and_then(|member| member.address.clone());
        Some((master, address))
    }

    pub fn poke_archiver(&self) {
        if let Some(archive) = &self.archive {
            archive.poke();
        }
    }

    pub fn poke_receive(&self) {
        if let Some(receive) = self.receive.get() {
            receive.poke();
        }
    }

    /// The master told that it leads.
    pub fn announced(
        &self,
        term: Term,
        master: &NodeId,
        address: Option<&Address>,
    ) -> Result<(), EnterError> {
        let known = self.election.master().as_ref() == Some(master) && self.election.term() == term;
        self.election.enter(term, master)?;
        if !known {
            if let Some(address) = address {
                self.whom.lock().hint = Some(address.clone());
            }
            self.tell(Event::Part { part: self.part(), term, master: Some(master.clone()) });
            if let Some(following) = self.following.get() {
                following.turn();
            }
            self.poke_receive();
        }
        Ok(())
    }

    /// Ends the relay, if there is one. Its threads are joined later.
    pub fn end_relay(&self) {
        let relay = self.relay.lock().take();
        if let Some(relay) = relay {
            relay.sever();
            self.retired.lock().push(Retired::Relay(relay));
        }
    }

    /// Cuts this node's ties: it has failed.
    pub fn sever(&self) {
        if let Some(lead) = self.lead() {
            lead.feeders.depose(None);
        }
        self.end_relay();
        if let Some(following) = self.following.get() {
            following.close();
        }
        self.election.poke();
    }
}

/// The node, as its election and its receive worker see it: gone when it is.
#[derive(Clone)]
pub(super) struct Ties(pub Weak<Shared>);

impl Ties {
    /// What is done when a member speaks of a newer term.
    fn fence(&self) -> Box<dyn Fn(Term) + Send + Sync> {
        let weak = self.0.clone();
        Box::new(move |newer: Term| {
            if let Some(node) = weak.upgrade()
                && let Err(error) = node.election.newer(newer)
            {
                log::error!("a newer term was not entered: {error}");
            }
        })
    }
}

impl Office for Ties {
    fn log_end(&self) -> LogEnd {
        let Some(node) = self.0.upgrade() else { return LogEnd::EMPTY };
        if node.own.role == Role::Arbiter {
            return node.election.state().state().mark;
        }
        LogEnd::of(node.core.log.last())
    }

    fn able(&self) -> bool {
        let Some(node) = self.0.upgrade() else { return false };
        let trouble = node.trouble.load(Ordering::Relaxed);
        let recent = trouble > 0 && node.core.clock.now() < Deadline::from_nanos(trouble) + TROUBLE_FOR;
        let installing = node.following.get().is_some_and(|following| following.is_installing());
        node.core.poison.reason().is_none()
            && !node.core.log.poisoned()
            && !node.core.log.stuck()
            && !recent
            && !installing
    }

    fn whole(&self) -> bool {
        self.0.upgrade().is_some_and(|node| node.is_whole() && !node.core.apply.lacks())
    }

    fn hands_over(&self) -> bool {
        self.0.upgrade().is_some_and(|node| node.gives_way())
    }

    fn members(&self) -> Arc<Members> {
        self.0.upgrade().map_or_else(|| Arc::new(Members::unknown()), |node| node.roll.members())
    }

    fn leaving(&self) -> bool {
        let Some(node) = self.0.upgrade() else { return false };
        let changed = node.core.log.memberships().last().copied();
        node.own.role == Role::Electable && changed > Vlsn::new(node.core.apply.committed.get())
    }

    fn leave(&self, newer: Term) {
        let Some(node) = self.0.upgrade() else { return };
        node.end_relay();
        if let Some(following) = node.following.get() {
            following.leave(newer);
        }
        node.poke_receive();
    }

    fn take_office(&self, term: Term) -> bool {
        let Some(node) = self.0.upgrade() else { return false };
        if node.following.get().is_some_and(|following| following.is_installing()) || node.core.apply.lacks()
        {
            return false;
        }
        let opening = match open_term(&node.core, term) {
            Ok(opening) => opening,
            Err(error) => {
                log::error!("{} won term {term} and can't write: {error}", node.own.id);
                node.trouble.store(node.core.clock.now().as_nanos(), Ordering::Relaxed);
                return false;
            }
        };
        if node.core.log.memberships().is_empty() {
            // The group's first master writes down whom it was founded with.
            let payload = node.roll.members().encode();
            let entry = crate::entry::NewEntry { kind: EntryKind::MEMBERSHIP, txn: None, payload: &payload };
            if let Err(error) = node.core.log.append(term, &[entry]) {
                log::error!("{} can't write the member list: {error}", node.own.id);
                return false;
            }
        }
        let lead = match Lead::new(&node.core, Arc::clone(&node.roll), &opening) {
            Ok(lead) => Arc::new(lead),
            Err(error) => {
                log::error!("{} can't lead: {error}", node.own.id);
                return false;
            }
        };
        lead.feeders.on_fence(self.fence());
        lead.feeders.expect_needing(Vlsn::after(node.core.log.base().map(|base| base.vlsn)));
        lead.feeders.own_progress();
        *node.changed.lock() = None;
        *node.lead.write() = Some(Arc::clone(&lead));
        if node.following.get().is_some_and(|following| following.is_installing()) {
            // It began before this could be seen, and its log may be replaced.
            *node.lead.write() = None;
            node.core.log.fence(term.next());
            lead.feeders.depose(None);
            node.retired.lock().push(Retired::Lead(lead.feeders.clone()));
            return false;
        }
        log::info!("{} is master in term {term} from VLSN {}", node.own.id, opening.start);
        node.tell_later(Event::Part { part: Part::Master, term, master: Some(node.own.id.clone()) });
        node.poke_archiver();
        true
    }

    fn step_down(&self, newer: Option<Term>) {
        let Some(node) = self.0.upgrade() else { return };
        let Some(lead) = node.lead.write().take() else { return };
        // First, so that whoever is told that it was deposed finds nothing going on.
        node.core.log.fence(lead.term.next());
        lead.feeders.depose(newer);
        node.poke_archiver();
        node.retired.lock().push(Retired::Lead(lead.feeders.clone()));
        node.tell_later(Event::Part { part: Part::Waiting, term: newer.unwrap_or(lead.term), master: None });
        if let Some(following) = node.following.get() {
            following.hurry();
        }
        node.poke_receive();
    }

    fn contact(&self, now: Deadline) -> Deadline {
        let lead = self.0.upgrade().and_then(|node| node.lead());
        lead.map_or(Deadline::from_nanos(0), |lead| lead.feeders.gates().contact_at(now))
    }
}

/// So often the node that is to feed this one is tried, before the group is, so often.
const UPSTREAM_TRIES: u32 = 5;
const GROUP_TRIES: u32 = 10;

/// How long a node whose disk refused a write does not stand for election.
const TROUBLE_FOR: std::time::Duration = std::time::Duration::from_secs(2);

impl Shared {
    /// Like [`tell`](Shared::tell), with the election's lock held: its worker looks around anyway.
    fn tell_later(&self, event: Event) {
        let mut events = self.events.lock();
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }
}

impl Guide for Ties {
    fn upstream(&self) -> Option<Address> {
        let node = self.0.upgrade()?;
        if let Some(address) = node.fed_by.as_ref().filter(|_| node.whom.lock().failed < UPSTREAM_TRIES) {
            return Some(address.clone());
        }
        if matches!(node.election.phase(), Phase::Leading { .. }) {
            return None;
        }
        let mut whom = node.whom.lock();
        if let Some(hint) = whom.hint.take() {
            return Some(hint);
        }
        let members = node.roll.members();
        let master = node.election.master();
        if let Some(address) = master.and_then(|id| members.find(&id)?.address.clone()) {
            return Some(address);
        }
        let others = members.iter().filter(|member| member.id != node.own.id);
        let mut all: Vec<Address> = others.filter_map(|member| member.address.clone()).collect();
        for seed in node.seeds.iter().filter(|seed| Some(*seed) != node.own.address.as_ref()) {
            if !all.contains(seed) {
                all.push(seed.clone());
            }
        }
        if all.is_empty() {
            return None;
        }
        whom.turn += 1;
        Some(all[whom.turn % all.len()].clone())
    }

    fn dial_within(&self) -> Option<std::time::Duration> {
        // A master that died with its machine does not even refuse: whoever waits for it hears no successor.
        Some(self.0.upgrade()?.election.timeout() / 2)
    }

    fn enter(&self, term: Term, feeder: &NodeId, feed: Feed) -> Result<(), FollowError> {
        let Some(node) = self.0.upgrade() else { return Err(FollowError::Closing) };
        let entered = match feed {
            Feed::Leads => {
                let before = (node.election.term(), node.election.master());
                let entered = node.election.enter(term, feeder);
                if entered.is_ok() && before != (term, Some(feeder.clone())) {
                    let master = Some(feeder.clone());
                    node.tell(Event::Part { part: Part::Replica, term, master });
                }
                entered
            }
            Feed::Follows => node.election.newer(term),
        };
        entered.map_err(|error| match error {
            EnterError::Past(by) => FollowError::Superseded { by },
            EnterError::Absurd(term) => FollowError::AbsurdTerm(term),
            EnterError::SecondMaster { term, known, found } => {
                FollowError::SecondMaster { term, known, found }
            }
            EnterError::State(error) => error.into(),
        })
    }

    fn heard(&self, feed: Feed) {
        let Some(node) = self.0.upgrade() else { return };
        if feed == Feed::Leads {
            node.election.heard();
        }
        let apply = &node.core.apply;
        if let Some(relay) = node.relay() {
            relay.tell_committed();
        }
        if apply.applied.get() >= apply.committed.get() {
            node.caught_up.store(node.core.clock.now().as_nanos(), Ordering::Relaxed);
        }
    }

    fn rejected(&self, by: &Address, reason: &RejectReason) -> Retry {
        let Some(node) = self.0.upgrade() else { return Retry::Later };
        match reason {
            RejectReason::NotMaster { hint: Some(hint) } if hint != by => {
                node.whom.lock().hint = Some(hint.clone());
                Retry::Now
            }
            RejectReason::UnknownNode => {
                node.ask_to_join(by);
                Retry::Later
            }
            _ => Retry::Later,
        }
    }

    fn waiting(&self, feed: Feed) {
        if let Some(node) = self.0.upgrade().filter(|_| feed == Feed::Leads) {
            node.election.heard();
        }
    }

    fn need_snapshot(&self, term: Term, oldest: Option<Vlsn>, from: Address) -> bool {
        self.0.upgrade().is_some_and(|node| node.fetch_snapshot(term, oldest, from))
    }

    fn following(&self, term: Term) {
        let Some(node) = self.0.upgrade() else { return };
        node.whom.lock().failed = 0;
        if node.own.role == Role::Arbiter {
            return;
        }
        node.forget_unneeded_fetch();
        let source = Arc::new(NodeSource::new(node.core.log.clone(), Arc::clone(&node.core.apply)));
        let poison = Arc::clone(&node.core.poison);
        let weak = self.0.clone();
        let hint = Box::new(move || weak.upgrade().and_then(|node| node.master_hint()?.1));
        let apply = Arc::clone(&node.core.apply);
        let committed = Box::new(move || Vlsn::new(apply.committed.get()));
        let relay = Relay::new(
            Arc::clone(&node.core.config),
            node.core.identity,
            Arc::clone(&node.roll),
            source,
            Arc::clone(&node.core.host.runtime),
            Upstream { term, committed, hint },
            Arc::clone(&node.core.counters),
            Box::new(move |stop: &Stop| poison.strike(stop)),
        );
        relay.on_fence(self.fence());
        let old = node.relay.lock().replace(relay);
        if let Some(old) = old {
            old.sever();
            node.retired.lock().push(Retired::Relay(old));
        }
    }

    fn appended(&self, last: Vlsn) {
        let Some(node) = self.0.upgrade() else { return };
        if let Some(relay) = node.relay() {
            relay.appended(last);
        }
    }

    fn lost(&self, why: &FollowError) {
        let Some(node) = self.0.upgrade() else { return };
        if node.fed_by.is_some() {
            let mut whom = node.whom.lock();
            whom.failed = match why {
                // Only the master may say what becomes of the end of this log.
                FollowError::Behind { .. } | FollowError::CutByRelay { .. } => UPSTREAM_TRIES,
                _ if whom.failed >= UPSTREAM_TRIES + GROUP_TRIES => 0,
                _ => whom.failed + 1,
            };
        }
        node.end_relay();
        node.election.lost(VoteReason::PrimaryFailure);
    }

    fn before_cut(&self) {
        if let Some(node) = self.0.upgrade() {
            node.end_relay();
        }
    }

    fn cut(&self, cut: &Truncated) {
        if let (Some(node), Some(range)) = (self.0.upgrade(), cut.cut) {
            node.tell(Event::RolledBack { range, saved: cut.saved.clone() });
        }
    }

    fn members_changed(&self) {
        if let Some(node) = self.0.upgrade() {
            node.reload_members();
            let members = node.roll.members();
            if let Some(relay) = node.relay() {
                relay.set_members(Arc::clone(&members));
            }
            node.tell(Event::Members(members));
        }
    }

    fn slots_changed(&self) {
        if let Some(node) = self.0.upgrade() {
            node.reload_slots();
        }
    }

    fn stand(&self) {
        let Some(node) = self.0.upgrade() else { return };
        let instead_of = node.election.master();
        node.election.stand(VoteReason::ManualFailover, instead_of);
    }
}

/// A connection that nobody here can serve.
pub(super) fn refuse(channel: &dyn Channel, term: Term, reason: RejectReason) {
    let mut frame = Vec::new();
    let reject = crate::wire::message::Message::Reject(crate::wire::message::Reject { reason });
    reject.encode(term, 0, &mut frame);
    let _unsaid = channel.send(&[std::io::IoSlice::new(&frame)], crate::clock::Wait::Now);
    channel.close();
}
