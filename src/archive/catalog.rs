//! What an archive holds, by the names of its objects.

use std::collections::BTreeMap;

use crate::archive::object::{LogReader, ObjectDamage, ReadError, range_in_name};
use crate::archive::{Archive, ArchiveError, base};
use crate::ids::{GroupId, Position, Term, Vlsn, VlsnRange};

/// A log object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogObject {
    /// Its name.
    pub name: String,
    /// The entries in it.
    pub range: VlsnRange,
    /// Its length in bytes.
    pub len: u64,
}

/// A base: the objects under one prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BaseObjects {
    /// What their names begin with, up to the last slash.
    pub prefix: String,
    /// Where it stands.
    pub at: Vlsn,
    /// The term of the master that wrote it.
    pub term: Term,
    /// Its objects, sorted by name.
    pub names: Vec<String>,
    /// Their length in bytes.
    pub len: u64,
    /// Whether it is whole: its manifest, which is put last, is there.
    pub whole: bool,
}

/// What an archive holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Catalog {
    /// The log objects, by their first entry, then by their last.
    pub logs: Vec<LogObject>,
    /// The bases, by where they stand, then by term.
    pub bases: Vec<BaseObjects>,
    /// Objects that are neither.
    pub strangers: Vec<String>,
}

impl Catalog {
    /// Lists the archive. Nothing but names is read.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn read(archive: &dyn Archive) -> Result<Catalog, ArchiveError> {
        let mut catalog = Catalog::default();
        let mut bases: BTreeMap<(Vlsn, Term), BaseObjects> = BTreeMap::new();
        for object in archive.list("")? {
            if let Some(range) = range_in_name(&object.name) {
                catalog.logs.push(LogObject { name: object.name, range, len: object.len });
            } else if let Some((at, term)) = base::in_name(&object.name) {
                let base = bases.entry((at, term)).or_insert_with(|| BaseObjects {
                    prefix: base::prefix(at, term),
                    at,
                    term,
                    names: Vec::new(),
                    len: 0,
                    whole: false,
                });
                base.whole |= object.name == base::manifest_name(at, term);
                base.len += object.len;
                base.names.push(object.name);
            } else {
                catalog.strangers.push(object.name);
            }
        }
        catalog.logs.sort_by_key(|object| (object.range.first(), object.range.last()));
        catalog.bases = bases.into_values().collect();
        Ok(catalog)
    }

    /// The bases that are whole, the oldest first.
    pub fn whole_bases(&self) -> impl DoubleEndedIterator<Item = &BaseObjects> {
        self.bases.iter().filter(|base| base.whole)
    }

    /// The object that ends last: where the archived log ends.
    pub fn last_log(&self) -> Option<&LogObject> {
        self.logs.iter().max_by_key(|object| object.range.last())
    }

    /// The object in which the log ends that leads on from a whole base, or from the group's first entry: the last that is of
    /// any use.
    pub fn last_led(&self) -> Option<&LogObject> {
        let starts = self.whole_bases().map(|base| Some(base.at)).chain([None]);
        let ends = starts.filter_map(|start| self.chain(Vlsn::after(start), None).pop());
        ends.max_by_key(|object| object.range.last())
    }

    /// Objects that together hold the entries from `next` on, each as far as any reaches, up to `to` or the first gap.
    pub fn chain(&self, mut next: Vlsn, to: Option<Vlsn>) -> Vec<&LogObject> {
        let mut chain = Vec::new();
        let mut at = 0;
        let mut furthest: Option<&LogObject> = None;
        while to.is_none_or(|to| next <= to) {
            while let Some(object) = self.logs.get(at).filter(|object| object.range.first() <= next) {
                if furthest.is_none_or(|best| best.range.last() < object.range.last()) {
                    furthest = Some(object);
                }
                at += 1;
            }
            let Some(object) = furthest.filter(|object| object.range.last() >= next) else { break };
            next = object.range.last().next();
            chain.push(object);
        }
        chain
    }

    /// The entries between log objects that none of them holds.
    pub fn gaps(&self) -> Vec<VlsnRange> {
        let mut gaps = Vec::new();
        let mut end: Option<Vlsn> = None;
        for object in &self.logs {
            if let Some(end) = end.filter(|end| object.range.first() > end.next()) {
                gaps.extend(
                    object.range.first().previous().and_then(|last| VlsnRange::new(end.next(), last)),
                );
            }
            end = end.max(Some(object.range.last()));
        }
        gaps
    }
}

/// Follows a chain of log objects of one group, and refuses what does not belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// The group; the first object says which.
    pub group: Option<GroupId>,
    /// The last entry so far. `None`: nothing yet, and the next object has to begin with the group's first entry.
    pub last: Option<Position>,
}

impl Thread {
    /// Whether the object may come next, by its header.
    ///
    /// # Errors
    /// [`ReadError::Damaged`], if it tells another history; [`Foreign`], if it is of another group.
    pub fn admits(&mut self, reader: &LogReader) -> Result<(), Refused> {
        let header = reader.header();
        let group = *self.group.get_or_insert(header.group);
        if header.group != group {
            return Err(Foreign { object: header.name(), found: header.group, group }.into());
        }
        let next = Vlsn::after(self.last.map(|last| last.vlsn));
        if header.range.first() == next && header.base != self.last {
            return Err(reader.damaged(ObjectDamage::OtherHistory(header.range.first())).into());
        }
        Ok(())
    }
}

/// An object of another group.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the object {object} of the archive is of group {found}, and the others of group {group}: it does not belong here; give each group an archive of its own"
)]
pub struct Foreign {
    /// The object.
    pub object: String,
    /// Its group.
    pub found: GroupId,
    /// The group of the others.
    pub group: GroupId,
}

/// Why an object is no part of a chain.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be read, or tells another history.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is of another group.
    #[error(transparent)]
    Foreign(#[from] Foreign),
}
