//! Damage that nobody can heal, because everybody else has pruned what was there.

use crate::config::Snapshots;
use crate::ids::{NodeId, Position, Vlsn};
use crate::log::Wounded;
use crate::members::{Members, Role};
use crate::node::group::Shared;
use crate::node::install::store_base;
use crate::retention::is_bounded;
use crate::slots::Invalid;

/// What follows from damage in a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unhealable {
    /// Somebody may have it, or something of it is needed still.
    Wait,
    /// Nobody needs it: everything before this goes.
    Drop(Vlsn),
    /// The engine has not applied it durably, and nobody has it.
    Needed,
}

/// What is known of the segment and its node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    /// The segment's last entry.
    pub last: Vlsn,
    /// Every other member with data has said that it lacks what is missing; or there is none.
    pub all_lack: bool,
    pub committed: Option<Vlsn>,
    pub checkpointed: Option<Vlsn>,
    /// Where the lists of members and slots stand that were in force at the checkpoint, and that the log has to say again.
    pub stated: [Option<Vlsn>; 2],
}

/// Decides: nothing goes that is not committed, in the engine for good, and said again behind it.
pub(super) fn judge(lost: &Lost) -> Unhealable {
    let last = Some(lost.last);
    if !lost.all_lack || last > lost.committed {
        return Unhealable::Wait;
    }
    if last > lost.checkpointed {
        return Unhealable::Needed;
    }
    if lost.stated.iter().flatten().any(|at| *at <= lost.last) {
        return Unhealable::Wait;
    }
    Unhealable::Drop(lost.last.next())
}

impl Shared {
    /// Lets go of a damaged segment, and all before it, if nobody has it and nobody needs it. Returns whether it did.
    pub fn drop_unhealable(&self, wounded: &Wounded) -> bool {
        let lacking = self.mending.lacking();
        let members = self.roll.members();
        let mut others =
            members.iter().filter(|one| one.id != self.own.id && one.role != Role::Arbiter).peekable();
        let alone = others.peek().is_none();
        // Alone only by a list that is the last.
        let sure = !alone || self.last_list().is_none_or(|last| last.as_ref() == Some(&*members));
        let all_lack = sure && others.all(|one| lacking.contains(&one.id));
        let apply = &self.core.apply;
        let lost = Lost {
            last: wounded.last(),
            all_lack,
            committed: Vlsn::new(apply.committed.get()),
            checkpointed: Vlsn::new(apply.checkpointed.get()),
            // Nobody leads who could say them again: the base says them then.
            stated: if alone { [None; 2] } else { self.stated() },
        };
        match judge(&lost) {
            Unhealable::Wait => false,
            Unhealable::Needed => {
                if alone {
                    log::error!(
                        "{}: entries up to VLSN {} are damaged, nobody else has them, and the engine needs them, or will when it \
                         is opened again: restore from the archive, or see `quorate log repair`",
                        self.own.id,
                        lost.last
                    );
                } else if self.core.config.snapshots == Snapshots::Manual {
                    log::error!(
                        "{}: entries up to VLSN {} are damaged, no member has them any more, and the engine needs them: \
                         wipe this directory and rejoin",
                        self.own.id,
                        lost.last
                    );
                } else if !apply.lacks() {
                    log::warn!(
                        "{}: nobody has what the engine needs next: it waits for a snapshot",
                        self.own.id
                    );
                    apply.set_lacks(true);
                    self.election.poke();
                }
                false
            }
            Unhealable::Drop(floor) => (!alone || self.has_base(wounded.end())) && self.drop_below(floor),
        }
    }

    /// The last list of members in the log, committed or not: `Some(None)` if it can't be read.
    fn last_list(&self) -> Option<Option<Members>> {
        let at = *self.core.log.memberships().last()?;
        Some(self.core.log.payload(at).ok().and_then(|payload| Members::decode(&payload).ok()))
    }

    /// Keeps what the log up to there says of the group in the file `base`. As long as the log says it too, that is read.
    fn has_base(&self, end: Position) -> bool {
        let stored = self.base_of(end).map_err(|error| error.to_string()).and_then(|base| {
            let stored = store_base(&*self.core.host.disk, &self.core.config.dir, &base);
            stored.map(|()| base).map_err(|error| error.to_string())
        });
        match stored {
            Ok(base) => {
                *self.base.lock() = Some(base);
                true
            }
            Err(error) => {
                log::warn!("{}: damaged segments are not removed: {error}", self.own.id);
                false
            }
        }
    }

    fn drop_below(&self, floor: Vlsn) -> bool {
        let log = &self.core.log;
        let holders = log.pins();
        for pin in holders.iter().filter(|pin| !pin.void && pin.from < floor && is_bounded(&pin.owner)) {
            self.let_go(pin, Invalid::Gone);
        }
        match log.prune(floor) {
            Ok(pruned) => {
                let done = pruned.oldest.is_none_or(|oldest| oldest >= floor);
                if done {
                    log::warn!(
                        "{}: the log begins at VLSN {floor} now: what was damaged before it nobody has or needs",
                        self.own.id
                    );
                }
                done
            }
            Err(error) => {
                log::warn!("{}: damaged segments were not removed: {error}", self.own.id);
                false
            }
        }
    }
}

/// Who said that it lacks what is missing here.
pub(super) type Lacking = std::collections::BTreeSet<NodeId>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_all_lack_and_nobody_needs_is_dropped() {
        let v = Vlsn::new;
        let drop = Unhealable::Drop(v(51).unwrap());
        use Unhealable::{Needed, Wait};
        // All lack it; committed; checkpointed; members; slots.
        for (all_lack, committed, checkpointed, members, slots, expected) in [
            (true, 90, 80, 0, 0, drop),
            (true, 50, 50, 0, 0, drop),
            (true, 90, 80, 51, 60, drop),
            (false, 90, 80, 0, 0, Wait),
            (true, 49, 49, 0, 0, Wait),
            (true, 90, 49, 0, 0, Needed),
            (true, 90, 0, 0, 0, Needed),
            (false, 90, 49, 0, 0, Wait),
            (true, 90, 80, 50, 0, Wait),
            (true, 90, 80, 60, 3, Wait),
        ] {
            let lost = Lost {
                last: v(50).unwrap(),
                all_lack,
                committed: v(committed),
                checkpointed: v(checkpointed),
                stated: [v(members), v(slots)],
            };
            assert_eq!(judge(&lost), expected, "{lost:?}");
        }
    }
}
