//! `quorate log repair`: heals the log of a node that is stopped, from others that run, or cuts it at the damage.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quorate::base::Base;
use quorate::client::Client;
use quorate::clock::{SystemClock, Wait, deadline_in};
use quorate::disk::{Disk, RealDisk};
use quorate::log::inspect::{Damage, DamageKind, Found, Inspector};
use quorate::log::{Copies, DoubtfulTail, LogConfig, OpenError, ScrubPlace, retire_saved};
use quorate::runtime::ThreadRuntime;
use quorate::state::StateFile;
use quorate::{Address, EntryKind, GroupId, Log, Members, Role, Standing, Vlsn, VlsnRange};

use crate::{Failure, Verdict};

/// What to heal, and how. Without `--from` and `--drop` it only says what is damaged, and what each would do.
#[derive(clap::Args)]
pub struct Args {
    /// The directory of a node that is stopped, or of its log
    dir: PathBuf,
    /// Fetch what is damaged from these running nodes of the group
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', conflicts_with = "drop")]
    from: Vec<Address>,
    /// For a node that is alone in its group: save everything from the damage on to files, and cut it off
    #[arg(long)]
    drop: bool,
    /// With `--drop`, where the log can't prove it: no other node was ever added to the group
    #[arg(long, requires = "drop")]
    alone: bool,
    /// How long fetching may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// What a look through the log found.
struct Look {
    damages: Vec<Damage>,
    group: Option<GroupId>,
    members: Option<Members>,
    /// Where that list stands.
    stated: Option<Vlsn>,
    last: Option<Vlsn>,
}

/// Runs the command.
///
/// # Errors
/// If the directory is in use, or can't be read or written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let inside = args.dir.join("log");
    let dir = if inside.is_dir() { inside } else { args.dir.clone() };
    let guard = free(&dir)?;
    let look = look(&dir)?;
    for Damage { path, offset, from, to, kind } in &look.damages {
        let to = to.map_or("the end".into(), |to| to.to_string());
        writeln!(out, "DAMAGE in {} at offset {offset}, VLSN {from} to {to}: {kind}", path.display())?;
    }
    let Some(first) = look.damages.iter().map(|damage| damage.from).min() else {
        writeln!(out, "no damage")?;
        return Ok(Verdict::Good);
    };
    if args.from.is_empty() && !args.drop {
        let last = look.last.map_or("the end".into(), |last| last.to_string());
        writeln!(out, "--from ADDRESS would fetch what is damaged from a running node of the group")?;
        writeln!(
            out,
            "--drop would save VLSN {first} to {last} to files and cut them off: for a node that is alone"
        )?;
        return Ok(Verdict::Bad);
    }
    let config = config(&dir, &look)?;
    if args.drop {
        alone(&dir, &look, args.alone)?;
        drop(guard);
        cut(config, first, out)?;
    } else {
        drop(guard);
        fetch(args, config, &look, out)?;
    }
    let left = self::look(&dir)?.damages.len();
    writeln!(
        out,
        "{}",
        if left == 0 { "the log is whole".into() } else { format!("{left} damaged places remain") }
    )?;
    Ok(if left == 0 { Verdict::Good } else { Verdict::Bad })
}

/// The lock of the directory: no node runs on it.
fn free(dir: &Path) -> Result<Box<dyn Send + Sync>, Failure> {
    // Looked for first: nothing is left behind in a directory that is something else, as an archive's.
    let of_log = |name: &String| name.ends_with(".seg") || name.ends_with(".idx");
    if !dir.is_dir() || !RealDisk.list(dir)?.iter().any(of_log) {
        return Err(format!("{} is no directory of a log: it has no segments", dir.display()).into());
    }
    match RealDisk.lock(&dir.join("lock")) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(format!("{} is in use by a running node: stop it first", dir.display()).into())
        }
        other => Ok(other?),
    }
}

fn look(dir: &Path) -> Result<Look, Failure> {
    let mut log = Inspector::open(dir, None)?;
    let mut look = Look { damages: Vec::new(), group: None, members: None, stated: None, last: None };
    while let Some(found) = log.advance()? {
        match found {
            // A crash explains it, and opening cuts it.
            Found::Damage(Damage { kind: DamageKind::Torn(_), .. }) => {}
            Found::Damage(damage) => look.damages.push(damage),
            Found::Entry { entry, .. } => {
                look.last = look.last.max(entry.header().vlsn);
                if entry.kind() == EntryKind::MEMBERSHIP {
                    look.members = Some(Members::decode(entry.payload())?);
                    look.stated = entry.header().vlsn;
                }
            }
        }
    }
    look.group = log.group();
    Ok(look)
}

fn segments(dir: &Path) -> Result<Vec<(Vlsn, PathBuf)>, Failure> {
    let names = RealDisk.list(dir)?;
    let first = |name: &String| Vlsn::new(name.strip_suffix(".seg")?.parse().ok()?);
    Ok(names.iter().filter_map(|name| Some((first(name)?, dir.join(name)))).collect())
}

fn config(dir: &Path, look: &Look) -> Result<LogConfig, Failure> {
    let group = look.group.ok_or("no segment tells which group it belongs to")?;
    let mut segment_bytes = 4096;
    for (_, path) in segments(dir)? {
        segment_bytes = segment_bytes.max(RealDisk.open(&path)?.len()?);
    }
    Ok(LogConfig { segment_bytes, max_payload: 1, ..LogConfig::new(dir, group) })
}

fn remove_index(segment: &Path) -> Result<(), Failure> {
    match RealDisk.remove(&segment.with_extension("idx")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Refuses unless nobody else can have what is about to be cut off.
fn alone(dir: &Path, look: &Look, sworn: bool) -> Result<(), Failure> {
    let base = dir.parent().map(|node| node.join("base"));
    let members = match (&look.members, base.filter(|base| base.is_file())) {
        (Some(members), _) => Some(members.clone()),
        (None, Some(base)) => Some(Base::decode(&std::fs::read(base)?)?.members),
        (None, None) => None,
    };
    let data = members.iter().flat_map(Members::iter).filter(|member| member.role != Role::Arbiter);
    let names: Vec<String> = data.map(|member| member.id.to_string()).collect();
    if names.len() > 1 {
        let names = names.join(", ");
        return Err(format!(
            "the group has several nodes with data ({names}): start the node, and it fetches what is damaged, or use --from; \
             if nobody has it, wipe the directory and have the node rejoin"
        )
        .into());
    }
    // A later list may be among what is damaged.
    let behind = look.damages.iter().all(|damage| look.stated.is_some_and(|at| at > damage.from));
    if !behind && !sworn {
        return Err("what is damaged may have named other nodes of the group. If one was ever added, cutting would lose what it \
                    holds, and two nodes could lead: have this one rejoin instead. If none was, say so by --alone"
            .into());
    }
    Ok(())
}

/// Has the log opened without trust in what lies at and behind the damage: that saves it, and cuts it off.
fn cut(config: LogConfig, first: Vlsn, out: &mut dyn Write) -> Result<(), Failure> {
    let dir = config.dir.clone();
    let path = dir.parent().map(|node| node.join("state")).filter(|path| path.is_file());
    if let Some(path) = path {
        // That its end is what it is, is decided now. First: whoever is interrupted finds the damage again, and not a standing
        // that nothing explains.
        let state = StateFile::open(&RealDisk, &path)?;
        state.update(|mut state| {
            if matches!(state.standing, Standing::Damaged { .. } | Standing::Doubtful { .. }) {
                state.standing = Standing::Full { since: state.term };
            }
            state
        })?;
    }
    // Without their indexes, the segment with the damage and the one before it are read anew.
    let begun = segments(&dir)?.into_iter().filter(|(begin, _)| *begin <= first).collect::<Vec<_>>();
    for (_, path) in begun.iter().rev().take(2) {
        remove_index(path)?;
    }
    let config = LogConfig { doubtful: DoubtfulTail::CutDurable, ..config };
    let (log, opened) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config)?;
    log.close()?;
    if let Some(cut) = opened.cut {
        writeln!(out, "dropped VLSN {} and everything behind it", cut.from)?;
        retire_saved(&RealDisk, &dir)?;
        for saved in cut.saved {
            let name =
                saved.file_name().unwrap_or_default().to_string_lossy().replace("damaged-", "rolledback-");
            writeln!(out, "kept in {}", saved.with_file_name(name).display())?;
        }
        let last = opened.last.map_or(0, |last| last.vlsn.get());
        writeln!(out, "the log ends at VLSN {last}: an engine that has applied more has to start empty")?;
    }
    Ok(())
}

fn fetch(args: &Args, config: LogConfig, look: &Look, out: &mut dyn Write) -> Result<(), Failure> {
    for damage in look.damages.iter().filter(|damage| matches!(damage.kind, DamageKind::Sidecar(_))) {
        // Opening makes it again.
        remove_index(&damage.path)?;
    }
    let config = LogConfig { doubtful: DoubtfulTail::RefuseHoles, ..config };
    let group = config.group;
    let (log, _) = match Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config) {
        Err(error @ (OpenError::Damaged { .. } | OpenError::Doubtful { .. })) => {
            writeln!(out, "{error}")?;
            writeln!(
                out,
                "this is in the log's last segment, which the node heals itself: start it beside its group"
            )?;
            return Ok(());
        }
        other => other?,
    };
    let mut place = Some(ScrubPlace::default());
    while let Some(at) = place {
        place = log.scrub(at).next;
    }
    let wait = Wait::Until(deadline_in(Duration::from_secs(args.timeout)));
    while let Some(wounded) = log.wounded() {
        let mut copies = Copies::new(wounded.most());
        let mut fetched = BTreeMap::new();
        for (gap, before, last) in wounded.missing() {
            for address in &args.from {
                if copies.chain(gap, before, last).is_none() {
                    copy(&mut copies, address, group, gap, wait, out)?;
                }
            }
            fetched.extend(copies.chain(gap, before, last).into_iter().flatten());
        }
        let first = wounded.first();
        if let Err(error) = wounded.mend(&fetched) {
            writeln!(out, "the segment from VLSN {first} on is not healed: {error}")?;
            break;
        }
        writeln!(out, "the segment from VLSN {first} on is healed: {} entries were fetched", fetched.len())?;
    }
    log.close()?;
    Ok(())
}

/// Takes what one node has of a gap.
fn copy(
    copies: &mut Copies,
    address: &Address,
    group: GroupId,
    gap: VlsnRange,
    wait: Wait,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut client = Client::new(vec![address.clone()], Arc::new(ThreadRuntime));
    let mut next = gap.first();
    while let Some(rest) = VlsnRange::new(next, gap.last()) {
        match client.entries(group, rest, wait) {
            Ok(run) => {
                let taken = run.map(|run| copies.take(&address.to_string(), &run, rest)).transpose();
                match taken {
                    Ok(taken) => next = taken.flatten().unwrap_or(next.next()),
                    Err(error) => {
                        writeln!(out, "{address}: {error}")?;
                        break;
                    }
                }
            }
            Err(error) => {
                writeln!(out, "{address}: {error}")?;
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_segments_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let objects = dir.path().join("log");
        std::fs::create_dir(&objects).unwrap();
        std::fs::write(objects.join("1-5"), b"an object of an archive").unwrap();
        for drop in [false, true] {
            let dir = dir.path().to_owned();
            let args = Args { dir, from: Vec::new(), drop, alone: drop, timeout: 1 };
            let refused = run(&args, &mut Vec::new()).map(|_| ()).unwrap_err();
            assert!(refused.to_string().contains("no segments"), "{refused}");
        }
        assert_eq!(RealDisk.list(&objects).unwrap(), ["1-5"]);
    }
}
