//! How a node is put together, and what its election worker does beside elections.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use crate::clock::{Deadline, Wait};
use crate::election::{Election, ElectionWorker, Housekeeping, Settings};
use crate::engine::{Engine, EngineError};
use crate::entry::Entries;
use crate::ids::Vlsn;
use crate::members::{Member, Members, Role, Roll};
use crate::node::archiver::Archiving;
use crate::node::core::{Core, Founding, Host, NodeError};
use crate::node::facade::{Listeners, Node};
use crate::node::group::{Retired, Shared, Ties};
use crate::node::group_config::NodeConfig;
use crate::node::install::load_base;
use crate::node::reception::{Dispatch, Receptions};
use crate::node::repair::Repair;
use crate::node::retention::Retention;
use crate::node::scrub::Scrub;
use crate::replica::ack::AckSender;
use crate::replica::following::{Following, Parts};
use crate::replica::receive::Receive;
use crate::worker::Stop;

/// An arbiter keeps no entries.
pub(super) struct NoEngine;

impl Engine for NoEngine {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
    fn apply(&mut self, _entries: Entries<'_>) -> Result<(), EngineError> {
        Err("an arbiter keeps no entries".into())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
}

impl Node {
    pub(super) fn start(
        config: NodeConfig,
        engine: Box<dyn Engine>,
        host: Host,
        founding: Founding,
    ) -> Result<Node, NodeError> {
        config.check()?;
        let unstarted = Core::open_in_group(config.base.clone(), host, engine, founding)?;
        let opened = unstarted.opened.clone();
        let base = load_base(&*unstarted.core.host.disk, &unstarted.core.config.dir)?;
        let (core, state) = unstarted.start();
        let (core, state) = (Arc::new(core), Arc::new(state));
        let listener = match &core.config.listen {
            Some(at) => Some(core.host.runtime.listen(at).map_err(|error| {
                core.close(Wait::Now);
                NodeError::Listen { at: at.clone(), kind: error.kind() }
            })?),
            None => None,
        };
        let address = listener.as_ref().map(|listener| listener.address().clone());
        let own = Member {
            role: config.role,
            region: config.region.clone(),
            priority: config.priority,
            address: config.advertise.clone().or_else(|| address.clone()),
            ..Member::electable(core.config.node.clone())
        };
        log::info!("{} opens in term {}; the log opened {opened:?}", own.id, state.state().term);
        let settings = Settings {
            group: core.config.group,
            own: own.id.clone(),
            timeout: config.election_timeout,
            coordinator: Arc::clone(&config.coordinator),
        };
        let election = Arc::new(Election::new(settings, Arc::clone(&state), Arc::clone(&core.host.runtime)));
        let acks =
            Arc::new(AckSender::new(core.log.clone(), Arc::clone(&core.apply), Arc::clone(&core.counters)));
        let shared = Arc::new(Shared {
            own: own.clone(),
            seeds: config.seeds.clone(),
            fed_by: config.base.upstream.clone(),
            founders: founders(&config.base.members, &own),
            roll: Arc::new(Roll::new(Members::unknown())),
            rolls: Mutex::default(),
            election: Arc::clone(&election),
            acks: Arc::clone(&acks),
            following: std::sync::OnceLock::new(),
            receive: std::sync::OnceLock::new(),
            lead: Default::default(),
            relay: Mutex::default(),
            retired: Mutex::default(),
            joining: Mutex::default(),
            reread: Default::default(),
            doubt: Mutex::default(),
            archive: config.archive.clone().map(Archiving::new),
            mending: Arc::default(),
            whom: Mutex::default(),
            events: Mutex::default(),
            service: Default::default(),
            receptions: Receptions::default(),
            digests: Arc::default(),
            engine_digests: Arc::default(),
            changed: Mutex::new(None),
            handover: Mutex::new(None),
            giving_way: Mutex::new(None),
            slots: Mutex::default(),
            trouble: Default::default(),
            caught_up: Default::default(),
            base: Mutex::new(base),
            givings: Default::default(),
            fetching: Default::default(),
            lacking: Default::default(),
            core: Arc::clone(&core),
        });
        shared.reload_members();
        shared.reload_slots();
        Node::tie(&shared);
        let ties = Ties(Arc::downgrade(&shared));
        let following = Arc::new(Following::new(Parts {
            config: Arc::clone(&core.config),
            own: own.clone(),
            identity: core.identity,
            log: core.log.clone(),
            apply: Arc::clone(&core.apply),
            acks,
            counters: Arc::clone(&core.counters),
            runtime: Arc::clone(&core.host.runtime),
            masters: None,
            state,
            guide: Arc::new(ties.clone()),
        }));
        let _first = shared.following.set(Arc::clone(&following));
        let receive = core.spawn("receive", Receive::new(following), Vec::new());
        let _first = shared.receive.set(receive);
        if own.role != Role::Arbiter {
            let repair = core.spawn("repair", Repair::new(&shared), Vec::new());
            let _first = shared.mending.repair.set(repair);
            core.spawn("scrub", Scrub::new(&shared), Vec::new());
        }
        let listeners = Arc::new(Listeners::default());
        let house = House { node: Arc::downgrade(&shared), listeners: Arc::clone(&listeners) };
        let worker = ElectionWorker::new(Arc::clone(&election), house, own.address.clone());
        let worker = core.spawn("election", worker, Vec::new());
        if own.role != Role::Arbiter {
            core.spawn("retention", Retention::new(Arc::downgrade(&shared)), Vec::new());
        }
        election.serve(Arc::new(ties), worker);
        if let Some(archive) = &shared.archive {
            archive.start(&shared);
        }
        let mut node = Node { shared, address, closer: None, listeners, closed: AtomicBool::new(false) };
        if let Some(listener) = listener {
            node.closer = Some(listener.closer());
            core.spawn("dispatch", Dispatch::new(listener, Arc::downgrade(&node.shared)), Vec::new());
        }
        Ok(node)
    }

    /// Whoever makes progress tells those who wait for it, whatever this node is doing.
    fn tie(shared: &Arc<Shared>) {
        let weak = Arc::downgrade(shared);
        shared.core.poison.on_poison(Arc::new(move || {
            if let Some(node) = weak.upgrade() {
                node.sever();
            }
        }));
        let weak = Arc::downgrade(shared);
        shared.core.log.on_flushed(Some(Arc::new(move |_vlsn| {
            let Some(node) = weak.upgrade() else { return };
            node.core.counters.flushes.one();
            node.acks.send();
            if let Some(lead) = node.lead() {
                lead.feeders.own_progress();
            }
        })));
        let weak = Arc::downgrade(shared);
        shared.core.apply.on_verify(Some(Arc::new(move |at, snapshot| {
            if let Some(node) = weak.upgrade() {
                node.engine_digests.take(&node.core, at, snapshot);
            }
        })));
        let weak = Arc::downgrade(shared);
        shared.core.apply.on_advance(Some(Arc::new(move || {
            let Some(node) = weak.upgrade() else { return };
            node.acks.applied();
            if let Some(lead) = node.lead() {
                lead.feeders.own_progress();
            }
        })));
    }
}

/// The founders, this one as it says itself.
fn founders(listed: &Members, own: &Member) -> Members {
    let list = listed.iter().map(|one| if one.id == own.id { own.clone() } else { one.clone() });
    Members::new(list.collect()).unwrap_or_else(|_| listed.clone())
}

impl Shared {
    /// Joins the threads of what has ended.
    pub fn reap(&self) {
        let retired = std::mem::take(&mut *self.retired.lock());
        retired.iter().for_each(Retired::join);
    }
}

/// What the election worker does beside elections.
struct House {
    node: std::sync::Weak<Shared>,
    listeners: Arc<Listeners>,
}

impl Housekeeping for House {
    fn tick(&mut self, now: Deadline) -> Result<Deadline, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        node.reap();
        loop {
            let Some(event) = node.events.lock().pop_front() else { break };
            self.listeners.0.lock().iter().for_each(|listener| listener(&event));
        }
        node.tend_members(now);
        let handover = node.push_handover(now);
        let doubt = node.resolve_doubt(now)?;
        let again = if node.lead().is_some() { now + node.core.config.heartbeat } else { Deadline::NEVER };
        let kept = match (node.lead(), node.relay()) {
            (Some(lead), _) => lead.feeders.tend(now),
            (None, Some(relay)) => relay.tend(now),
            (None, None) => Deadline::NEVER,
        };
        let kept = kept.min(node.givings.tend(now)).min(node.tend_engine(now));
        Ok(handover.min(doubt).min(again).min(kept))
    }
}
