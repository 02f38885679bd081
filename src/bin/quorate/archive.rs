//! `quorate archive`: what an archive holds, whether it is whole, and whether a node comes out of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate::archive::base::Manifest;
use quorate::archive::drill::{DrillError, replay};
use quorate::archive::object::LogReader;
use quorate::archive::verify::{Finding, verify};
use quorate::archive::{Catalog, DirArchive, RestoreOptions, Start, Until};
use quorate::clock::{SystemClock, Wait, deadline_in};
use quorate::disk::{Disk, RealDisk};
use quorate::{Config, Host, Node, NodeConfig, NodeId, Vlsn};
use serde_json::json;

use crate::replica::store_in;
use crate::restore::{archive_at, in_words, restore_to};
use crate::{Failure, Verdict};

/// The commands on an archive.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the bases and log objects, and to what can be restored
    List(Look),
    /// Read everything, and check digests, entries, joints and gaps; exit code 1 if anything is wrong
    Verify(Look),
    /// Restore into a temporary directory, open a node there, and compare; exit code 1 if it differs
    Drill(Drill),
}

/// Which archive to look at.
#[derive(clap::Args)]
pub struct Look {
    /// The archive's directory
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which archive to try out.
#[derive(clap::Args)]
pub struct Drill {
    /// The archive's directory
    #[arg(long, value_name = "ARCHIVE")]
    from: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the archive can't be read.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<Verdict, Failure> {
    match command {
        Command::List(look) => list(&archive_at(&look.dir)?, look.json, out),
        Command::Verify(look) => check(&archive_at(&look.dir)?, look.json, out),
        Command::Drill(drill) => try_out(&archive_at(&drill.from)?, drill.json, out),
    }
}

fn list(archive: &DirArchive, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let catalog = Catalog::read(archive)?;
    if catalog.logs.is_empty() && catalog.bases.is_empty() {
        return Err("there is no archive there: neither a log object nor a base was found".into());
    }
    let mut verdict = Verdict::Good;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["object", "VLSN", "term", "until", "bytes"]);
    for base in &catalog.bases {
        let manifest = if base.whole { Some(Manifest::read(archive, base)) } else { None };
        let (time, note) = match manifest {
            Some(Ok(manifest)) => (Some(manifest.time), None),
            Some(Err(error)) => {
                verdict = Verdict::Bad;
                (None, Some(error.to_string()))
            }
            None => (None, Some("unfinished".to_owned())),
        };
        if json {
            let line = json!({ "base": base.at.get(), "term": base.term.get(), "time": time, "bytes": base.len,
                "whole": base.whole, "note": note });
            writeln!(out, "{line}")?;
        } else {
            let shown = note.or(time.map(in_words)).unwrap_or_default();
            table.add_row([
                "base".into(),
                base.at.to_string(),
                base.term.to_string(),
                shown,
                base.len.to_string(),
            ]);
        }
    }
    for log in &catalog.logs {
        let header = LogReader::open(archive, &log.name).map(|reader| *reader.header());
        if header.is_err() {
            verdict = Verdict::Bad;
        }
        if json {
            let header = header.as_ref();
            let line = json!({ "log": [log.range.first().get(), log.range.last().get()], "bytes": log.len,
                "term": header.ok().map(|header| header.last.term.get()),
                "first_time": header.ok().map(|header| header.first_time),
                "last_time": header.ok().map(|header| header.last_time),
                "note": header.err().map(ToString::to_string) });
            writeln!(out, "{line}")?;
        } else {
            let (term, time) = match &header {
                Ok(header) => (header.last.term.to_string(), in_words(header.last_time)),
                Err(error) => (String::new(), error.to_string()),
            };
            let range = format!("{} to {}", log.range.first(), log.range.last());
            table.add_row(["log".into(), range, term, time, log.len.to_string()]);
        }
    }
    for gap in catalog.gaps() {
        let (first, last) = (gap.first(), gap.last());
        if json {
            writeln!(out, "{}", json!({ "gap": [first.get(), last.get()] }))?;
        } else {
            table.add_row([
                "GAP".into(),
                format!("{first} to {last}"),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    if !json {
        writeln!(out, "{table}")?;
    }
    Ok(verdict)
}

fn check(archive: &DirArchive, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let total = Catalog::read(archive)?;
    let total = total.logs.iter().map(|log| log.len).chain(total.bases.iter().map(|base| base.len)).sum();
    let bar = crate::progress(total, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let mut unsaid = Ok(());
    let mut each = |bytes: u64, finding: Option<Finding>| {
        bar.set_position(bytes);
        if let Some(finding) = finding
            && unsaid.is_ok()
        {
            unsaid = bar.suspend(|| match json {
                true => writeln!(out, "{}", json!({ "finding": finding.to_string() })),
                false => writeln!(out, "DAMAGE: {finding}"),
            });
        }
    };
    let seen = verify(archive, &mut each)?;
    bar.finish_and_clear();
    unsaid?;
    let group = seen.group.map(|group| group.to_string());
    if json {
        let line = json!({ "group": group, "logs": seen.logs, "bases": seen.bases, "bytes": seen.bytes,
            "findings": seen.findings });
        writeln!(out, "{line}")?;
    } else {
        let group = group.unwrap_or_else(|| "unknown".to_owned());
        writeln!(
            out,
            "group {group}: {} log objects and {} bases, {} bytes",
            seen.logs, seen.bases, seen.bytes
        )?;
        let found =
            if seen.findings == 0 { "no damage".into() } else { format!("{} findings", seen.findings) };
        writeln!(out, "{found}")?;
    }
    let sound = seen.findings == 0 && seen.logs + seen.bases > 0;
    Ok(if sound { Verdict::Good } else { Verdict::Bad })
}

/// How long the restored node may take to open its term and to replay.
const PATIENCE: Duration = Duration::from_secs(3600);

fn try_out(archive: &DirArchive, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let scratch = tempfile::tempdir()?;
    let node = opens(archive, scratch.path())?;
    let state = same_state(archive, scratch.path())?;
    let mut verdict = Verdict::Good;
    for (what, compared) in [("log", node), ("state", state)] {
        let (found, text) = match compared {
            Compared::Same(text) => ("same", text),
            Compared::Differs(text) => {
                verdict = Verdict::Bad;
                ("DIFFERS", text)
            }
            Compared::Not(why) => ("not compared", why),
        };
        if json {
            writeln!(out, "{}", json!({ "compared": what, "found": found, "what": text }))?;
        } else {
            writeln!(out, "{what}: {found}: {text}")?;
        }
    }
    Ok(verdict)
}

enum Compared {
    Same(String),
    Differs(String),
    Not(String),
}

/// Restores everything, opens a node there, has it replay, and compares where its log has the archive's last entry.
fn opens(archive: &DirArchive, scratch: &Path) -> Result<Compared, Failure> {
    let dir = scratch.join("end");
    let own = NodeId::new("drill")?;
    let restored = restore_to(archive, &dir, &RestoreOptions::new(own.clone()))?;
    let config = NodeConfig::new(Config::new(restored.group, own, &dir));
    let node = Node::open(config, Box::new(store_in(&dir)?), Host::machine())?;
    let token = quorate::Token { group: restored.group, term: restored.term, vlsn: restored.last };
    let applied = node.wait_for(&token, Wait::Until(deadline_in(PATIENCE)))?;
    let found = node.log().position_at(restored.target.vlsn)?;
    let poisoned = node.poisoned();
    drop(node);
    Ok(match (poisoned, found == restored.target && applied) {
        (Some(why), _) => Compared::Differs(why),
        (None, true) => {
            Compared::Same(format!("a node opened, and replayed up to {found}, where the archive ends"))
        }
        (None, false) => {
            Compared::Differs(format!("a node has {found}, and the archive ends with {}", restored.target))
        }
    })
}

/// Brings an engine from an older base, or from nothing, to where the newest stands, and compares the two.
fn same_state(archive: &DirArchive, scratch: &Path) -> Result<Compared, Failure> {
    let catalog = Catalog::read(archive)?;
    let mut bases = catalog.whole_bases().rev();
    let Some(newest) = bases.next() else { return Ok(Compared::Not("the archive has no base".into())) };
    let older = bases.find(|base| base.at < newest.at);
    if older.is_none()
        && catalog.chain(Vlsn::FIRST, Some(newest.at)).last().is_none_or(|log| log.range.last() < newest.at)
    {
        return Ok(Compared::Not("there is one base, and no log before it".into()));
    }
    let manifest = Manifest::read(archive, newest)?;
    let mut options = RestoreOptions::new(NodeId::new("drill")?);
    options.until = Until::Vlsn(newest.at);
    options.start = Start::Before(newest.at);
    let dir = scratch.join("state");
    let restored = restore_to(archive, &dir, &options)?;
    let mut engine = store_in(&dir)?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let replayed = replay(&disk, Arc::new(SystemClock), &dir, restored.group, &mut engine, newest.at);
    let digest = match replayed {
        Err(error @ DrillError::NoSnapshot) => return Ok(Compared::Not(error.to_string())),
        other => other?,
    };
    let from =
        restored.base.map_or_else(|| "the first entry".to_owned(), |base| format!("the base at VLSN {base}"));
    let text = format!("replayed from {from} to the base at VLSN {}: {digest:032x}", newest.at);
    Ok(match digest == manifest.state_digest() {
        true => Compared::Same(text),
        false => Compared::Differs(format!("{text}, and the base has {:032x}", manifest.state_digest())),
    })
}
