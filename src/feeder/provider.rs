//! Who gives a snapshot to a node that needs one, and what is kept for that node until it streams.

use std::collections::BTreeSet;

use crate::address::Address;
use crate::clock::Deadline;
use crate::feeder::connection::Connection;
use crate::feeder::hub::{Hub, Reign};
use crate::feeder::registry::Registry;
use crate::feeder::status::FeederState;
use crate::ids::{NodeId, Vlsn, number};
use crate::members::Role;

/// A node that needs a snapshot, from when it was told so until it streams.
#[derive(Default)]
pub(super) struct Needing {
    /// Who was named last, unless that was this node.
    provider: Option<NodeId>,
    /// By which open of its directory it asked.
    session: u64,
    /// Who was named before, and did not lead to a snapshot.
    failed: BTreeSet<NodeId>,
    /// Until when the log is kept for it, while it is not connected.
    until: Option<Deadline>,
    /// It was told so; else this node leads since a moment ago, and does not know.
    told: bool,
    /// Since it was opened everybody was named to it, and it asks still: nothing says that a snapshot will ever come.
    failing: bool,
}

impl Needing {
    pub fn is_told(&self) -> bool {
        self.told
    }
}

/// A member that could give a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Candidate {
    id: NodeId,
    address: Address,
    /// How far it has applied.
    applied: u64,
    /// To how many others it was named.
    gives: usize,
}

/// The one to name: near the tip, giving to the fewest, and not tried before; `None`: this node itself. The `last` comes
/// first: it may have a part of the snapshot yet.
fn choose<'a>(
    candidates: &'a [Candidate],
    failed: &BTreeSet<NodeId>,
    last: Option<&NodeId>,
    tip: u64,
    near: u64,
) -> Option<&'a Candidate> {
    let fit = |one: &&Candidate| !failed.contains(&one.id) && one.applied.saturating_add(near) >= tip;
    let rank = |one: &&Candidate| (last != Some(&one.id), one.gives, u64::MAX - one.applied, one.id.clone());
    candidates.iter().filter(fit).min_by_key(rank)
}

/// Holds as long as it is there.
fn fetching(node: &NodeId) -> String {
    format!("snapshot:{node}")
}

/// Has the bounds of a replica's pin.
fn failing(node: &NodeId) -> String {
    format!("needs-snapshot:{node}")
}

impl Hub {
    /// This node needs entries from before `oldest`: keeps the log for it from there on, and says whom to ask for a
    /// snapshot; `None`: us. Whoever asks again was not served by whom we named, unless it was opened anew meanwhile.
    pub fn needs_snapshot(&self, to: &Connection, node: &NodeId, oldest: Option<Vlsn>) -> Option<Address> {
        let members = self.roll.members();
        let tip = number(self.source.positions().applied);
        let mut registry = self.registry.lock();
        if !registry.is_current(node, to) {
            return None;
        }
        let mut needing = registry.needing.remove(node).unwrap_or_default();
        needing.until = None;
        let session = registry.session(node);
        let last = needing.provider.take();
        if session == needing.session {
            // We are named last.
            needing.failing |= needing.told && last.is_none();
            needing.failed.extend(last.clone());
        } else {
            needing.failing = false;
        }
        (needing.session, needing.told) = (session, true);
        if let Some(oldest) = oldest {
            // Under the lock, as every pin. The new one holds before the old one goes.
            let (name, other) = match needing.failing {
                true => (failing(node), fetching(node)),
                false => (fetching(node), failing(node)),
            };
            self.source.pin(&name, oldest);
            self.source.unpin(&other);
        }
        let chosen = match &self.reign {
            Reign::Follows(_) => None,
            Reign::Leads(_) => {
                let candidates: Vec<Candidate> = members
                    .iter()
                    .filter(|member| member.id != *node && member.id != self.config.node)
                    .filter(|member| member.role != Role::Arbiter)
                    .filter_map(|member| {
                        let connection = registry.connection(&member.id)?;
                        let streams = connection.state() == FeederState::Streaming && connection.counts();
                        let applied = number(connection.progress.lock().positions().applied);
                        let gives = |other: &&Needing| other.provider.as_ref() == Some(&member.id);
                        streams.then_some(Candidate {
                            id: member.id.clone(),
                            address: member.address.clone()?,
                            applied,
                            gives: registry.needing.values().filter(gives).count(),
                        })
                    })
                    .collect();
                choose(&candidates, &needing.failed, last.as_ref(), tip, self.config.lag_limit.min(NEAR))
                    .cloned()
            }
        };
        needing.provider = chosen.as_ref().map(|chosen| chosen.id.clone());
        if chosen.is_none() {
            // It comes to us now; if that fails too, all are asked again.
            needing.failed.clear();
        }
        registry.needing.insert(node.clone(), needing);
        chosen.map(|chosen| chosen.address)
    }

    /// This node leads from now on: a member may have begun to fetch a snapshot under the master before. The log is kept for
    /// each for a while, until it streams.
    pub fn expect_needing(&self, oldest: Vlsn) {
        let members = self.roll.members();
        let mut registry = self.registry.lock();
        let others = members.iter().filter(|one| one.id != self.config.node && one.role != Role::Arbiter);
        for member in others {
            self.source.pin(&fetching(&member.id), oldest);
            let until = Some(self.clock.now() + self.config.snapshot_patience);
            registry.needing.insert(member.id.clone(), Needing { until, ..Needing::default() });
        }
    }

    /// The node streams: the pin of its connection has taken over. One that was superseded says nothing of what the newer needs.
    pub fn needs_no_snapshot(&self, to: &Connection, node: &NodeId) {
        let mut registry = self.registry.lock();
        if registry.is_current(node, to) && registry.needing.remove(node).is_some() {
            self.unpin_needing(node);
        }
    }

    /// Its connection ended: the log is kept for it for a while longer. Under the registry's lock.
    pub fn needing_left(&self, registry: &mut Registry, node: &NodeId) {
        if let Some(needing) = registry.needing.get_mut(node) {
            needing.until = Some(self.clock.now() + self.config.snapshot_patience);
        }
    }

    /// Forgets those who are no members any more. Under the registry's lock.
    pub fn needing_gone(&self, registry: &mut Registry, is_gone: impl Fn(&NodeId) -> bool) {
        self.give_up(registry, |node, _| is_gone(node));
    }

    /// Gives up those who did not come back in time; returns when to look again.
    pub fn tend_needing(&self, now: Deadline) -> Deadline {
        let mut registry = self.registry.lock();
        self.give_up(&mut registry, |_, needing| needing.until.is_some_and(|until| now >= until));
        registry.needing.values().filter_map(|needing| needing.until).min().unwrap_or(Deadline::NEVER)
    }

    fn unpin_needing(&self, node: &NodeId) {
        self.source.unpin(&fetching(node));
        self.source.unpin(&failing(node));
    }

    fn give_up(&self, registry: &mut Registry, over: impl Fn(&NodeId, &Needing) -> bool) {
        registry.needing.retain(|node, needing| {
            let over = over(node, needing);
            if over {
                self.unpin_needing(node);
            }
            !over
        });
    }
}

/// Entries that a provider may be behind the master.
const NEAR: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_near_the_tip_that_gives_least_and_has_not_failed_is_named() {
        let id = |name: &str| NodeId::new(name).unwrap();
        let one = |name: &str, applied, gives| Candidate {
            id: id(name),
            address: Address::Tcp(format!("127.0.0.1:{applied}")),
            applied,
            gives,
        };
        let all = [one("a", 900, 1), one("b", 990, 0), one("c", 995, 0), one("d", 100, 0)];
        let named = |failed: &[&str], last: Option<&str>, near| {
            let failed = failed.iter().map(|name| id(name)).collect();
            choose(&all, &failed, last.map(id).as_ref(), 1000, near).map(|one| one.id.as_str().to_owned())
        };
        let name = |failed: &[&str], near| named(failed, None, near);
        assert_eq!(named(&[], Some("a"), 200).as_deref(), Some("a"));
        assert_eq!(named(&["a"], Some("a"), 200).as_deref(), Some("c"));
        assert_eq!(name(&[], 200).as_deref(), Some("c"));
        assert_eq!(name(&["c"], 200).as_deref(), Some("b"));
        assert_eq!(name(&["c", "b"], 200).as_deref(), Some("a"));
        assert_eq!(name(&["c", "b", "a"], 200), None);
        assert_eq!(name(&["c", "b"], 50), None);
        assert_eq!(choose(&[], &BTreeSet::new(), None, 0, 0), None);
    }
}
