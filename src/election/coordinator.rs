//! Who may stand for election, where something outside decides that. The votes decide who leads in any case: a coordinator
//! that is wrong or slow costs availability, and never data.

use std::time::Duration;

use crate::ids::{NodeId, Term};

/// What a coordinator is told.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The node that asks.
    pub own: &'a NodeId,
    /// Its term.
    pub term: Term,
}

/// What a coordinator says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Stand, if you hear no master.
    Stand,
    /// Do not stand; ask again after this time.
    Wait(Duration),
}

/// Says who may stand for election: the built-in timers alone, or an outside lease.
///
/// Called by the election worker whenever the node is about to stand. An implementation over an outside lease keeps the
/// lease on a thread of its own, and answers from memory: a call that blocks holds up the node's elections.
pub trait Coordinator: Send + Sync {
    /// Whether this node may stand now.
    fn advise(&self, view: View<'_>) -> Advice;
}

/// Everybody may stand; timers and priorities decide who does first. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Builtin;

impl Coordinator for Builtin {
    fn advise(&self, _view: View<'_>) -> Advice {
        Advice::Stand
    }
}

/// Only one node ever stands: for groups whose master is chosen by a person. A transfer to another node still works.
#[derive(Clone, Debug)]
pub struct Static {
    /// The node.
    pub master: NodeId,
    /// How often the others ask again. In effect never, but a bound keeps clocks honest.
    pub ask_again: Duration,
}

impl Static {
    /// The coordinator that lets this node stand.
    pub fn new(master: NodeId) -> Static {
        Static { master, ask_again: Duration::from_secs(60) }
    }
}

impl Coordinator for Static {
    fn advise(&self, view: View<'_>) -> Advice {
        if *view.own == self.master { Advice::Stand } else { Advice::Wait(self.ask_again) }
    }
}
