//! The archiver's place in a node: its workers run on every node that has an archive, and work on the one that leads.

use std::sync::{Arc, OnceLock, Weak};

use crate::apply::desk::{Answer, NoSnapshot, Snapshot};
use crate::archive::bases::{BaseMaker, Bases, Copied, Copies};
use crate::archive::worker::{Archiver, Said};
use crate::archive::{self, ArchiveConfig};
use crate::clock::Wait;
use crate::ids::{Term, Vlsn};
use crate::node::Event;
use crate::node::group::Shared;
use crate::runtime::Running;
use crate::wire::recovery::ArchiveStatus;

/// What the node knows of its archive.
pub(super) struct Archiving {
    config: ArchiveConfig,
    said: Arc<Said>,
    bases: Arc<Bases>,
    workers: OnceLock<[Arc<dyn Running>; 2]>,
}

impl Archiving {
    pub fn new(config: ArchiveConfig) -> Archiving {
        Archiving { config, said: Arc::default(), bases: Arc::default(), workers: OnceLock::new() }
    }

    /// Starts the workers, once the node is put together.
    pub fn start(&self, node: &Arc<Shared>) {
        let core = &node.core;
        let leads = || {
            let weak = Arc::downgrade(node);
            Box::new(move || Some(weak.upgrade()?.lead()?.term)) as Box<dyn Fn() -> Option<Term> + Send>
        };
        let weak = Arc::downgrade(node);
        let archiver = Archiver::new(archive::worker::Parts {
            config: self.config.clone(),
            group: core.config.group,
            log: core.log.clone(),
            apply: Arc::clone(&core.apply),
            clock: Arc::clone(&core.clock),
            object_bytes: core.config.segment_bytes,
            leads: leads(),
            on_gap: Box::new(move |missing| {
                if let Some(node) = weak.upgrade() {
                    node.tell(Event::ArchiveGap { missing });
                }
            }),
            said: Arc::clone(&self.said),
            bases: Arc::clone(&self.bases),
        });
        let maker = BaseMaker::new(archive::bases::Parts {
            config: self.config.clone(),
            log: core.log.clone(),
            clock: Arc::clone(&core.clock),
            leads: leads(),
            said: Arc::clone(&self.said),
            bases: Arc::clone(&self.bases),
            copies: Box::new(EngineCopies { node: Arc::downgrade(node), asked: None }),
        });
        let workers =
            [core.spawn("archive", archiver, Vec::new()), core.spawn("archive-base", maker, Vec::new())];
        let _first = self.workers.set(workers);
    }

    /// The node leads, or does no more.
    pub fn poke(&self) {
        self.workers.get().into_iter().flatten().for_each(|worker| worker.poke());
    }

    /// The first entry that is not archived, if this node archives.
    pub fn needs(&self) -> Option<Vlsn> {
        self.said.needs()
    }

    /// Has a base made now.
    pub fn want_base(&self) {
        self.bases.want();
    }

    pub fn status(&self) -> ArchiveStatus {
        self.said.status()
    }
}

/// Copies of the engine's state, by its apply worker.
struct EngineCopies {
    node: Weak<Shared>,
    /// What was asked for, and has not come yet.
    asked: Option<Arc<Answer<Result<Snapshot, NoSnapshot>>>>,
}

impl Copies for EngineCopies {
    fn copy(&mut self, wait: Wait) -> Result<Option<Copied>, String> {
        let closing = || "the node closes".to_owned();
        let node = self.node.upgrade().ok_or_else(closing)?;
        let asked = self.asked.get_or_insert_with(|| node.core.apply.snapshot());
        let Some(given) = asked.take(wait).map_err(|_closed| closing())? else { return Ok(None) };
        self.asked = None;
        let Snapshot { source, pin } = given.map_err(|why| why.to_string())?;
        let base = node.base_at(source.at()).map_err(|error| error.to_string())?;
        Ok(Some(Copied { snapshot: source, base, pin }))
    }
    fn forget(&mut self) {
        // Whoever still has the right to answer drops what nobody takes: the snapshot, and its hold on the log.
        self.asked = None;
    }
}
