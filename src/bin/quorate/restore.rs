//! `quorate restore`: a directory of a new group from an archive.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate::archive::restore::Progress;
use quorate::archive::{DirArchive, RestoreOptions, Restored, Start, Until, restore};
use quorate::disk::{Disk, RealDisk};
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::{Address, GroupId, NodeId, Term, Vlsn};

use crate::{Failure, Verdict};

/// What to restore, and where to.
#[derive(clap::Args)]
pub struct Args {
    /// The archive's directory
    #[arg(long, value_name = "ARCHIVE")]
    from: PathBuf,
    /// The node's directory to make; it must be empty, or not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The name of the node: the new group's only member
    #[arg(long, value_name = "NODE", default_value = "n1")]
    node: NodeId,
    /// Where others will dial it
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Address>,
    /// The new group's id; a random one if it is not named
    #[arg(long, value_name = "ID")]
    group: Option<GroupId>,
    #[command(flatten)]
    until: UntilArgs,
    /// Begin with the base at this VLSN instead of the latest that will do
    #[arg(long, value_name = "VLSN")]
    base: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How far to restore; everything if none is given.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct UntilArgs {
    /// Leave out the first entry later than this and all behind it: 2026-05-01T12:00:00Z, or microseconds since the epoch
    #[arg(long, value_name = "T", value_parser = time)]
    until_time: Option<u64>,
    /// The last entry to take
    #[arg(long, value_name = "VLSN")]
    until_vlsn: Option<u64>,
    /// Take everything up to the end of this term
    #[arg(long, value_name = "TERM")]
    until_term: Option<u32>,
}

impl UntilArgs {
    fn until(&self) -> Result<Until, Failure> {
        Ok(match (self.until_time, self.until_vlsn, self.until_term) {
            (Some(time), _, _) => Until::Time(time),
            (_, Some(vlsn), _) => {
                Until::Vlsn(Vlsn::new(vlsn).ok_or("--until-vlsn: the first entry has VLSN 1")?)
            }
            (_, _, Some(term)) => Until::Term(Term::new(term)),
            (None, None, None) => Until::End,
        })
    }
}

/// A time in words or in microseconds since the epoch.
fn time(text: &str) -> Result<u64, String> {
    if let Ok(micros) = text.parse() {
        return Ok(micros);
    }
    let time = humantime::parse_rfc3339_weak(text).map_err(|error| error.to_string())?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "it lies before 1970".to_owned())?;
    u64::try_from(since.as_micros()).map_err(|error| error.to_string())
}

/// A time for people.
pub fn in_words(micros: u64) -> String {
    let time: Option<SystemTime> = UNIX_EPOCH.checked_add(Duration::from_micros(micros));
    // Beyond the year 9999 there are no words.
    match time.filter(|_| micros < 253_402_300_800_000_000) {
        Some(time) => humantime::format_rfc3339_micros(time).to_string(),
        None => micros.to_string(),
    }
}

/// The archive in a directory, which has to be there.
///
/// # Errors
/// If it is not.
pub fn archive_at(dir: &Path) -> Result<DirArchive, Failure> {
    if !dir.is_dir() {
        return Err(format!("there is no directory {}", dir.display()).into());
    }
    Ok(DirArchive::new(Arc::new(RealDisk), dir, ThreadRuntime.random()))
}

/// Restores, and shows on a terminal how far it has come.
///
/// # Errors
/// The library's.
pub fn restore_to(archive: &DirArchive, dir: &Path, options: &RestoreOptions) -> Result<Restored, Failure> {
    let bar = crate::progress(0, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut progress = |progress: Progress| {
        bar.set_length(progress.of);
        bar.set_position(progress.bytes);
    };
    let restored = restore(archive, &disk, &ThreadRuntime, dir, options, &mut progress);
    bar.finish_and_clear();
    restored.map_err(|error| match options.until {
        Until::Time(time) => error.to_string().replace(&options.until.to_string(), &in_words(time)).into(),
        _ => error.into(),
    })
}

/// Runs the command.
///
/// # Errors
/// If nothing was restored.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let archive = archive_at(&args.from)?;
    let start = match args.base {
        Some(base) => Start::Base(Vlsn::new(base).ok_or("--base: the first entry has VLSN 1")?),
        None => Start::Latest,
    };
    let options = RestoreOptions {
        address: args.address.clone(),
        until: args.until.until()?,
        start,
        group: args.group,
        ..RestoreOptions::new(args.node.clone())
    };
    let restored = restore_to(&archive, &args.to, &options)?;
    let Restored { from, group, term, base, target, time, last, end } = &restored;
    if let Until::Time(until) = options.until
        && target.vlsn == *end
        && until > *time
    {
        let (until, time) = (in_words(until), in_words(*time));
        eprintln!(
            "quorate: the archive ends at {time}: what was written from then until {until} is not in it"
        );
    }
    if args.json {
        let line = serde_json::json!({
            "from": from.to_string(), "group": group.to_string(), "node": args.node.as_str(), "term": term.get(),
            "base": base.map(Vlsn::get), "target": target.vlsn.get(), "time": time, "last": last.get(), "archive_end": end.get(),
        });
        writeln!(out, "{line}")?;
        return Ok(Verdict::Good);
    }
    let base = base.map_or_else(|| "the first entry".to_owned(), |base| format!("the base at VLSN {base}"));
    writeln!(
        out,
        "group {from} restored up to VLSN {}, written at {} (the archive ends at VLSN {end}), from {base} on",
        target.vlsn,
        in_words(*time)
    )?;
    writeln!(
        out,
        "new group {group}, of {} alone, in term {term}: write this id into the node's configuration",
        args.node
    )?;
    Ok(Verdict::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_words_and_in_numbers_and_printed_back() {
        assert_eq!(time("1700000000000000"), Ok(1_700_000_000_000_000));
        assert_eq!(time("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000_000));
        assert_eq!(time("2023-11-14T22:13:20.000250Z"), Ok(1_700_000_000_000_250));
        for bad in ["yesterday", "", "1969-12-31T00:00:00Z"] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert_eq!(in_words(1_700_000_000_000_250), "2023-11-14T22:13:20.000250Z");
        assert_eq!(in_words(u64::MAX), u64::MAX.to_string());
    }
}
