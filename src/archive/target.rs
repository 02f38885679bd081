//! How far a restore goes: from a time, a term or a place to the last entry that is taken.

use crate::archive::catalog::{BaseObjects, Catalog, Foreign, Refused, Thread};
use crate::archive::object::{LogReader, ReadError};
use crate::archive::{Archive, ArchiveError, base};
use crate::entry::EntryRef;
use crate::ids::{GroupId, Position, Term, Vlsn, VlsnRange};

/// Up to where to restore: the longest beginning of the log without an entry that lies beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// All that was archived.
    End,
    /// This entry, which is the last one taken.
    Vlsn(Vlsn),
    /// This time, in microseconds since the epoch: the log ends before the first entry with a later timestamp. Timestamps
    /// are those of the masters' clocks, and may fall where one follows another: what stands behind the first later entry
    /// is left out, whatever its own timestamp says.
    Time(u64),
    /// The end of this term.
    Term(Term),
}

/// Where a restore begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the latest base that will do; without one, with the group's first entry.
    Latest,
    /// With the base at this entry.
    Base(Vlsn),
    /// With the latest base before this entry, or the group's first entry.
    Before(Vlsn),
}

impl std::fmt::Display for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Until::End => f.write_str("the end"),
            Until::Vlsn(vlsn) => write!(f, "VLSN {vlsn}"),
            Until::Time(micros) => write!(f, "{micros} microseconds since the epoch"),
            Until::Term(term) => write!(f, "the end of term {term}"),
        }
    }
}

impl Until {
    /// Whether an entry lies beyond.
    fn excludes(self, vlsn: Vlsn, term: Term, time: u64) -> bool {
        match self {
            Until::End => false,
            Until::Vlsn(last) => vlsn > last,
            Until::Time(last) => time > last,
            Until::Term(last) => term > last,
        }
    }
}

/// Why an archive can't give what was asked for. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlanError {
    /// There is nothing in it.
    #[error("there is no archive there: neither a log object nor a whole base was found")]
    Empty,
    /// The archive refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// An object is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An object is of another group.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// The target lies before what is kept.
    #[error("{until} lies before what the archive still has: it begins at VLSN {oldest}")]
    TooEarly {
        /// What was asked for.
        until: Until,
        /// The first place to which it can restore.
        oldest: Vlsn,
    },
    /// Nothing at all can be restored.
    #[error(
        "nothing can be restored: VLSN {missing} are missing in the archive, and it has no base from which the log behind them could go on"
    )]
    NoBeginning {
        /// What is missing.
        missing: VlsnRange,
    },
    /// The target lies behind what was archived.
    #[error("{until} was not archived: the archive ends at VLSN {end}, in term {term}")]
    TooLate {
        /// What was asked for.
        until: Until,
        /// The last entry archived.
        end: Vlsn,
        /// Its term.
        term: Term,
    },
    /// Entries are missing on the way, or the target is among them.
    #[error(
        "VLSN {missing} are missing in the archive, and {until} can't be reached without them: restore to an entry before them, or to one after a later base"
    )]
    Gap {
        /// What was asked for.
        until: Until,
        /// What is missing.
        missing: VlsnRange,
    },
    /// There is no such base.
    #[error("the archive has no whole base at VLSN {0} that could lead to the target")]
    NoBase(Vlsn),
}

impl From<Refused> for PlanError {
    fn from(refused: Refused) -> PlanError {
        match refused {
            Refused::Read(error) => error.into(),
            Refused::Foreign(error) => error.into(),
        }
    }
}

/// What a restore reads.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The group that was archived.
    pub group: GroupId,
    /// The base to begin with; `None`: the group's first entry.
    pub base: Option<BaseObjects>,
    /// What the base says of itself.
    pub head: Option<base::Manifest>,
    /// The log objects, by name.
    pub chain: Vec<String>,
    /// Bytes in all of these.
    pub bytes: u64,
    /// The last entry to take.
    pub target: Vlsn,
    /// Where the archive ends.
    pub end: Vlsn,
    /// The highest term archived.
    pub highest: Term,
}

impl Plan {
    /// Decides what to read, from the names and headers of the objects.
    ///
    /// # Errors
    /// [`PlanError`].
    pub fn make(archive: &dyn Archive, until: Until, start: Start) -> Result<Plan, PlanError> {
        let catalog = Catalog::read(archive)?;
        let newest = catalog.whole_bases().next_back();
        let end = catalog.last_log().map(|log| log.range.last()).max(newest.map(|base| base.at));
        let end = end.ok_or(PlanError::Empty)?;
        let (group, mut highest) = known(archive, &catalog)?;
        highest = catalog.bases.iter().map(|base| base.term).fold(highest, Term::max);
        let late = || PlanError::TooLate { until, end, term: highest };
        let target = match until {
            Until::End => end,
            Until::Vlsn(vlsn) if vlsn > end => return Err(late()),
            Until::Vlsn(vlsn) => vlsn,
            Until::Term(term) if term > highest => return Err(late()),
            Until::Time(_) | Until::Term(_) => find(archive, &catalog, group, until)?,
        };
        let fits = |base: &&BaseObjects| {
            base.at <= target
                && match start {
                    Start::Latest => true,
                    Start::Base(at) => base.at == at,
                    Start::Before(at) => base.at < at,
                }
        };
        let base = catalog.whole_bases().rfind(fits).cloned();
        if let (Start::Base(at), None) = (start, &base) {
            return Err(PlanError::NoBase(at));
        }
        let after = base.as_ref().map(|base| base.at);
        let chain =
            if after == Some(target) { Vec::new() } else { catalog.chain(Vlsn::after(after), Some(target)) };
        let reached = chain.last().map(|log| log.range.last()).or(after);
        if reached.is_none_or(|reached| reached < target) {
            return Err(missing(&catalog, until, reached, target));
        }
        let head = base.as_ref().map(|base| base::Manifest::read(archive, base)).transpose()?;
        let mut thread = Thread { group: Some(group), last: head.as_ref().map(|head| head.at()) };
        if let (Some(base), Some(head)) = (&base, &head) {
            of_group(&base::manifest_name(base.at, base.term), head.group(), group)?;
        }
        for log in &chain {
            let reader = LogReader::open(archive, &log.name)?;
            thread.admits(&reader)?;
            thread.last = Some(reader.header().last);
        }
        let bytes = chain.iter().map(|log| log.len).sum::<u64>() + base.as_ref().map_or(0, |base| base.len);
        let chain = chain.iter().map(|log| log.name.clone()).collect();
        Ok(Plan { group, base, head, chain, bytes, target, end, highest })
    }
}

/// Whose archive it is, and the highest term in its log, by the object that ends last, or by the latest base.
fn known(archive: &dyn Archive, catalog: &Catalog) -> Result<(GroupId, Term), PlanError> {
    if let Some(last) = catalog.last_log() {
        let reader = LogReader::open(archive, &last.name)?;
        return Ok((reader.header().group, reader.header().last.term));
    }
    let base = catalog.whole_bases().next_back().ok_or(PlanError::Empty)?;
    let head = base::Manifest::read(archive, base)?;
    Ok((head.group(), head.at().term))
}

fn of_group(object: &str, found: GroupId, group: GroupId) -> Result<(), Foreign> {
    if found == group { Ok(()) } else { Err(Foreign { object: object.to_owned(), found, group }) }
}

/// What is wrong if the log does not lead from `reached` to the target.
fn missing(catalog: &Catalog, until: Until, reached: Option<Vlsn>, target: Vlsn) -> PlanError {
    let next = Vlsn::after(reached);
    let behind = catalog.logs.iter().map(|log| log.range.first()).filter(|first| *first > next).min();
    let first_base = catalog.whole_bases().next().map(|base| base.at);
    if let Some(oldest) = first_base.filter(|base| reached.is_none() && *base > target) {
        return PlanError::TooEarly { until, oldest };
    }
    let last = behind.and_then(Vlsn::previous).unwrap_or(target).max(next);
    let missing =
        VlsnRange::new(next, last).unwrap_or_else(|| unreachable!("the end is not below the beginning"));
    match reached {
        None if first_base.is_none() => PlanError::NoBeginning { missing },
        _ => PlanError::Gap { until, missing },
    }
}

/// The entry before the first one that lies beyond a time or a term.
fn find(archive: &dyn Archive, catalog: &Catalog, group: GroupId, until: Until) -> Result<Vlsn, PlanError> {
    let goes_back = catalog.logs.first().is_some_and(|log| log.range.first() == Vlsn::FIRST);
    let mut bases = catalog.whole_bases();
    // What was reached so far: nothing, or a base, or the end of a run of objects without a gap.
    let mut reached: Option<Position> = None;
    if !goes_back {
        let base = bases.next().ok_or_else(|| missing(catalog, until, None, Vlsn::FIRST))?;
        let head = base::Manifest::read(archive, base)?;
        of_group(&base::manifest_name(base.at, base.term), head.group(), group)?;
        if until.excludes(head.at().vlsn, head.at().term, head.time) {
            return Err(PlanError::TooEarly { until, oldest: base.at });
        }
        reached = Some(head.at());
    }
    loop {
        let next = Vlsn::after(reached.map(|at| at.vlsn));
        for log in catalog.chain(next, None) {
            let mut reader = LogReader::open(archive, &log.name)?;
            let mut thread = Thread { group: Some(group), last: reached };
            thread.admits(&reader)?;
            let header = *reader.header();
            if until.excludes(header.range.last(), header.last.term, header.highest_time)
                && let Some(beyond) = first_beyond(&mut reader, until, reached)?
            {
                let oldest = catalog.whole_bases().next().map_or(Vlsn::FIRST, |base| base.at);
                return beyond.previous().ok_or(PlanError::TooEarly { until, oldest });
            }
            reached = Some(header.last);
        }
        let Some(end) = reached.map(|at| at.vlsn) else { return Err(PlanError::Empty) };
        let Some(base) = bases.find(|base| base.at > end) else {
            // Log behind a gap that no base bridges is of no use, but it tells that there was more.
            let more = catalog.last_log().map(|log| log.range.last()).filter(|last| *last > end);
            return more.map_or(Ok(end), |last| Err(missing(catalog, until, Some(end), last)));
        };
        let head = base::Manifest::read(archive, base)?;
        of_group(&base::manifest_name(base.at, base.term), head.group(), group)?;
        if until.excludes(head.at().vlsn, head.at().term, head.time) {
            return Err(missing(catalog, until, reached.map(|at| at.vlsn), base.at));
        }
        reached = Some(head.at());
    }
}

/// The first entry of an object, behind what was reached, that lies beyond.
fn first_beyond(
    reader: &mut LogReader,
    until: Until,
    reached: Option<Position>,
) -> Result<Option<Vlsn>, ReadError> {
    while let Some((mut rest, _)) = reader.run()? {
        while let Ok(entry) = EntryRef::verify(rest) {
            let header = entry.header();
            if let Some(vlsn) = header.vlsn
                && Some(vlsn) > reached.map(|at| at.vlsn)
                && until.excludes(vlsn, header.term, header.timestamp)
            {
                return Ok(Some(vlsn));
            }
            rest = &rest[entry.bytes().len()..];
        }
    }
    Ok(None)
}
