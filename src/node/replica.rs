//! The replica: follows a master, holds a copy of its log, applies what is committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::address::Address;
use crate::channel::Channel;
use crate::clock::Wait;
use crate::config::{Config, ConfigError};
use crate::engine::Engine;
use crate::ids::{NodeId, Position, Term, Vlsn};
use crate::log::{DoubtfulTail, Truncated};
use crate::members::Member;
use crate::node::core::{Answer, Core, Host, NodeError, TokenError};
use crate::policy::Token;
use crate::progress::Positions;
use crate::replica::ack::AckSender;
use crate::replica::following::{Following, Guide, Parts, Retry};
use crate::replica::receive::Receive;
use crate::replica::{FollowError, ReplicaState};
use crate::runtime::Running;
use crate::state::StateFile;
use crate::wire::message::{Feed, RejectReason};

/// A node that follows its group's master.
///
/// Any thread may call any method. Dropping it closes it.
pub struct Replica {
    core: Core,
    following: Arc<Following>,
    acks: Arc<AckSender>,
    receive: Arc<dyn Running>,
    closed: AtomicBool,
}

impl Replica {
    /// Opens the node's directory as a replica. It dials `config.upstream`, and dials again whenever the connection
    /// ends; without an upstream it waits for [`follow`](Replica::follow). Blocks while the log's tail is read.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn open(config: Config, engine: Box<dyn Engine>, host: Host) -> Result<Replica, NodeError> {
        if config.listen.is_some() {
            return Err(ConfigError::WrongRole { field: "listen", role: "replica" }.into());
        }
        // What a replica cuts, its master still has, and sends again.
        let unstarted = Core::open(config, host, engine, DoubtfulTail::Cut)?;
        log::info!(
            "{} opens as a replica; the log opened {:?}",
            unstarted.core.config.node,
            unstarted.opened
        );
        let (core, state) = unstarted.start();
        let acks =
            Arc::new(AckSender::new(core.log.clone(), Arc::clone(&core.apply), Arc::clone(&core.counters)));
        let flushed = Arc::downgrade(&acks);
        let counters = Arc::clone(&core.counters);
        core.log.on_flushed(Some(Arc::new(move |_vlsn| {
            counters.flushes.one();
            if let Some(acks) = flushed.upgrade() {
                acks.send();
            }
        })));
        let applied = Arc::downgrade(&acks);
        core.apply.on_advance(Some(Arc::new(move || {
            if let Some(acks) = applied.upgrade() {
                acks.applied();
            }
        })));
        let state = Arc::new(state);
        let members = core.config.members.clone();
        let own = members.find(&core.config.node).cloned();
        let following = Arc::new(Following::new(Parts {
            config: Arc::clone(&core.config),
            own: own.unwrap_or_else(|| Member::electable(core.config.node.clone())),
            identity: core.identity,
            log: core.log.clone(),
            apply: Arc::clone(&core.apply),
            acks: Arc::clone(&acks),
            counters: Arc::clone(&core.counters),
            runtime: Arc::clone(&core.host.runtime),
            masters: Some(members),
            guide: Arc::new(Fixed { state: Arc::clone(&state), upstream: core.config.upstream.clone() }),
            state,
        }));
        let severed = Arc::downgrade(&following);
        core.poison.on_poison(Arc::new(move || {
            if let Some(following) = severed.upgrade() {
                following.close();
            }
        }));
        let receive = core.spawn("receive", Receive::new(Arc::clone(&following)), Vec::new());
        Ok(Replica { core, following, acks, receive, closed: AtomicBool::new(false) })
    }

    /// Follows the master at the other end of a connected channel; for transports of the embedder's own. Returns at
    /// once. The channel is used when the present connection, if any, has ended.
    pub fn follow(&self, channel: Arc<dyn Channel>) {
        self.following.offer(channel);
        self.receive.poke();
    }

    /// What the connection to the master is doing.
    pub fn state(&self) -> ReplicaState {
        self.following.phase()
    }

    /// Why the last connection ended.
    pub fn last_error(&self) -> Option<FollowError> {
        self.following.last_error()
    }

    /// How far this node has come.
    pub fn positions(&self) -> Positions {
        self.acks.positions()
    }

    /// How far the group has committed, as far as this node's log goes and the master has said.
    pub fn committed(&self) -> Option<Vlsn> {
        Vlsn::new(self.core.apply.committed.get())
    }

    /// The last entry of the log.
    pub fn last(&self) -> Option<Position> {
        self.core.log.last()
    }

    /// What became of a token's entry, as far as this node knows.
    pub fn ask(&self, token: &Token) -> Answer {
        self.core.ask(token)
    }

    /// Waits until this node's engine shows the token's entry, to read one's own writes here; `false` if `wait` ended
    /// first.
    ///
    /// # Errors
    /// [`TokenError`]; never succeeds on another term's entry of the same VLSN.
    pub fn wait_for(&self, token: &Token, wait: Wait) -> Result<bool, TokenError> {
        self.core.wait_for(token, wait)
    }

    /// Why this node takes no further part in its group, if so.
    pub fn poisoned(&self) -> Option<String> {
        self.core.poison.reason()
    }

    /// The node's log, for tests and tools that look inside.
    pub fn log(&self) -> &crate::log::Log {
        &self.core.log
    }

    /// Closes in order: ends the connection, lets the engine checkpoint for as long as `wait` says, flushes and closes
    /// the log. Idempotent.
    pub fn close(&self, wait: Wait) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.following.close();
        self.receive.join();
        self.acks.disconnect();
        self.core.close(wait);
    }
}

/// The guide of a replica whose master never changes but by an operator's hand.
struct Fixed {
    state: Arc<StateFile>,
    upstream: Option<Address>,
}

impl Guide for Fixed {
    fn upstream(&self) -> Option<Address> {
        self.upstream.clone()
    }

    fn enter(&self, term: Term, _feeder: &NodeId, _feed: Feed) -> Result<(), FollowError> {
        Ok(self.state.update(|state| state.in_term(term))?)
    }

    fn heard(&self, _feed: Feed) {}

    fn rejected(&self, _by: &Address, _reason: &RejectReason) -> Retry {
        Retry::Later
    }

    fn following(&self, _term: Term) {}
    fn appended(&self, _last: Vlsn) {}
    fn lost(&self, _why: &FollowError) {}
    fn before_cut(&self) {}
    fn cut(&self, _cut: &Truncated) {}
    fn members_changed(&self) {}
    fn stand(&self) {}
}

impl Drop for Replica {
    fn drop(&mut self) {
        let patience = self.core.clock.now() + self.core.config.handshake_timeout;
        self.close(Wait::Until(patience));
    }
}
