//! Reading a whole archive.

use crate::archive::base::{self, Manifest};
use crate::archive::catalog::{Catalog, Refused, Thread};
use crate::archive::object::{LogReader, ObjectDamage, ReadError};
use crate::archive::restore::{up_to, walk};
use crate::archive::{Archive, ArchiveError};
use crate::ids::{GroupId, Position, Vlsn, VlsnRange};

/// What is wrong in an archive.
#[derive(Clone, Debug)]
pub enum Finding {
    /// An object can't be read, is damaged, or tells another history than those before it.
    Object(Refused),
    /// These entries are in no object. `after`: a base from which the log goes on behind them.
    Gap {
        /// The entries.
        missing: VlsnRange,
        /// The base.
        after: Option<Vlsn>,
    },
    /// Neither a log object nor part of a base.
    Stranger(String),
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Finding::Object(refused) => refused.fmt(f),
            Finding::Gap { missing, after: None } => {
                write!(
                    f,
                    "VLSN {missing} are missing, and no base lies behind them: the log after them is of no use"
                )
            }
            Finding::Gap { missing, after: Some(base) } => {
                write!(
                    f,
                    "VLSN {missing} are missing: nothing can be restored to them; the log goes on from the base at VLSN {base}"
                )
            }
            Finding::Stranger(name) => write!(f, "the object {name} is none of this archive's"),
        }
    }
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// The group.
    pub group: Option<GroupId>,
    /// Log objects.
    pub logs: usize,
    /// Whole bases.
    pub bases: usize,
    /// Bytes.
    pub bytes: u64,
    /// Findings.
    pub findings: usize,
}

/// Reads every object, and tells what is wrong. What an unfinished base left is no damage: it counts for nothing.
/// `each` gets the findings, and now and then how many bytes were read.
///
/// # Errors
/// [`ArchiveError`], if the archive can't be listed.
pub fn verify(
    archive: &dyn Archive,
    each: &mut dyn FnMut(u64, Option<Finding>),
) -> Result<Verified, ArchiveError> {
    let catalog = Catalog::read(archive)?;
    let mut work = Work { each, seen: Verified::default(), places: Vec::new() };
    let mut thread = Thread { group: None, last: None };
    let mut manifests = Vec::new();
    for objects in catalog.whole_bases() {
        match Manifest::read(archive, objects) {
            Ok(manifest) => {
                work.places.push(manifest.at());
                manifests.push((objects.term, manifest));
            }
            Err(error) => work.found(Finding::Object(error.into())),
        }
    }
    let mut end = None;
    for log in &catalog.logs {
        work.seen.logs += 1;
        let next = Vlsn::after(end);
        if log.range.first() > next {
            let base = work.places.iter().map(|at| at.vlsn).filter(|at| at.next() >= log.range.first()).min();
            let missing = log.range.first().previous().and_then(|last| VlsnRange::new(next, last));
            // Before the first object nothing is missing if a base stands there.
            if let Some(missing) = missing.filter(|_| end.is_some() || base.is_none()) {
                work.found(Finding::Gap { missing, after: base });
            }
            thread.last = None;
        }
        end = end.max(Some(log.range.last()));
        if let Err(refused) = work.log(archive, &log.name, &mut thread) {
            work.found(Finding::Object(refused));
            // The next object is judged by itself.
            thread.last = None;
        }
    }
    for (term, manifest) in &manifests {
        work.seen.bases += 1;
        if let Err(error) = work.base(archive, manifest, *term, &mut thread) {
            work.found(Finding::Object(error));
        }
    }
    for name in &catalog.strangers {
        work.found(Finding::Stranger(name.clone()));
    }
    work.seen.group = thread.group;
    Ok(work.seen)
}

struct Work<'a> {
    each: &'a mut dyn FnMut(u64, Option<Finding>),
    seen: Verified,
    /// Where the whole bases stand.
    places: Vec<Position>,
}

impl Work<'_> {
    fn found(&mut self, finding: Finding) {
        self.seen.findings += 1;
        (self.each)(self.seen.bytes, Some(finding));
    }

    fn read(&mut self, bytes: usize) {
        self.seen.bytes += bytes as u64;
        (self.each)(self.seen.bytes, None);
    }

    fn log(&mut self, archive: &dyn Archive, name: &str, thread: &mut Thread) -> Result<(), Refused> {
        let mut reader = LogReader::open(archive, name)?;
        let header = *reader.header();
        if thread.last.is_none() {
            thread.last = header.base;
        }
        thread.admits(&reader)?;
        walk(&mut reader, thread, None, &mut |run, summary| {
            let inside = |at: &&Position| summary.range.first() <= at.vlsn && at.vlsn <= summary.range.last();
            if let Some(base) =
                self.places.iter().filter(inside).find(|at| up_to(run, at.vlsn).1 != Some(**at))
            {
                let damage = ObjectDamage::OtherHistory(base.vlsn);
                return Err(ReadError::Damaged { object: name.to_owned(), damage });
            }
            self.read(run.len());
            Ok(())
        })?;
        Ok(())
    }

    fn base(
        &mut self,
        archive: &dyn Archive,
        manifest: &Manifest,
        term: crate::ids::Term,
        thread: &mut Thread,
    ) -> Result<(), Refused> {
        let group = *thread.group.get_or_insert(manifest.group());
        if manifest.group() != group {
            let object = base::manifest_name(manifest.at().vlsn, term);
            let found = manifest.group();
            return Err(crate::archive::catalog::Foreign { object, found, group }.into());
        }
        for number in 0..manifest.items.len() as u32 {
            base::read_item(archive, manifest, term, number, |bytes| {
                self.read(bytes.len());
                Ok::<(), ReadError>(())
            })?;
        }
        Ok(())
    }
}
