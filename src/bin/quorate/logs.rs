//! `quorate log`: what is in a log, and whether it is whole. What is here reads only; a log that is in use may be looked at.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate::entry::EntryRef;
use quorate::ids::{Vlsn, number};
use quorate::log::inspect::{Damage, Found, Inspector};
use serde::Serialize;

use crate::{Failure, Verdict};

/// The commands on a log.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Print entries, one a line
    Dump(DumpArgs),
    /// Verify every header, CRC, VLSN and the chain of CRCs; exit code 1 if anything is damaged
    Verify(VerifyArgs),
    /// Heal the log of a node that is stopped; exit code 1 if damage remains
    Repair(crate::repair::Args),
}

/// What to print.
#[derive(clap::Args)]
pub struct DumpArgs {
    /// The log's directory, the node's, or one file of either
    dir: PathBuf,
    /// Start at this VLSN
    #[arg(long, value_name = "VLSN")]
    from: Option<u64>,
    /// Print at most so many entries
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print the log's local entries (sync marks) too
    #[arg(long)]
    local: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What to verify.
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The log's directory, the node's, or one file of either
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Damage, as it is printed.
#[derive(Serialize)]
struct DamageLine<'a> {
    file: &'a Path,
    offset: u64,
    /// The first VLSN that can't be read there.
    from: u64,
    /// The last; `None` if that can't be told.
    to: Option<u64>,
    what: String,
}

/// Runs the command.
///
/// # Errors
/// If the log can't be read.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<Verdict, Failure> {
    match command {
        Command::Dump(args) => {
            dump(&mut Inspector::open(&args.dir, args.from.and_then(Vlsn::new))?, args, out)
        }
        Command::Repair(args) => crate::repair::run(args, out),
        Command::Verify(args) => verify(&mut Inspector::open(&args.dir, None)?, args.json, out),
    }
}

fn dump(log: &mut Inspector, args: &DumpArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (from, mut left, mut verdict) = (args.from.unwrap_or(0), args.limit, Verdict::Good);
    while left != Some(0) {
        match log.advance()? {
            None => break,
            Some(Found::Damage(damage)) => {
                print_damage(&damage, args.json, out)?;
                verdict = Verdict::Bad;
            }
            Some(Found::Entry { path, offset, entry }) => {
                let vlsn = entry.header().vlsn;
                if (vlsn.is_none() && !args.local) || vlsn.is_some_and(|vlsn| vlsn.get() < from) {
                    continue;
                }
                print_entry(path, offset, &entry, args.json, out)?;
                left = left.map(|left| left - 1);
            }
        }
    }
    Ok(verdict)
}

#[derive(Default, Serialize)]
struct Summary {
    entries: u64,
    local: u64,
    first: u64,
    last: u64,
    bytes: u64,
    damages: u64,
}

fn verify(log: &mut Inspector, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let bar = crate::progress(log.bytes(), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let mut seen = Summary::default();
    loop {
        bar.set_position(log.position());
        let Some(found) = log.advance()? else { break };
        match found {
            Found::Damage(damage) => {
                bar.suspend(|| print_damage(&damage, json, out))?;
                seen.damages += 1;
            }
            Found::Entry { entry, .. } => {
                seen.bytes += entry.bytes().len() as u64;
                match entry.header().vlsn {
                    None => seen.local += 1,
                    Some(vlsn) => {
                        seen.entries += 1;
                        seen.first = if seen.first == 0 { vlsn.get() } else { seen.first };
                        seen.last = vlsn.get();
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    let Summary { entries, local, first, last, bytes, damages } = seen;
    if json {
        write_json(&seen, out)?;
    } else {
        writeln!(out, "{entries} entries (VLSN {first} to {last}) and {local} local ones, {bytes} bytes")?;
        writeln!(
            out,
            "{}",
            if damages == 0 { "no damage".into() } else { format!("{damages} damaged places") }
        )?;
    }
    Ok(if damages == 0 { Verdict::Good } else { Verdict::Bad })
}

#[derive(Serialize)]
struct EntryLine<'a> {
    file: &'a Path,
    offset: u64,
    /// 0 for a local entry.
    vlsn: u64,
    term: u32,
    kind: String,
    txn: Option<u64>,
    timestamp: u64,
    prev: String,
    crc: String,
    payload_len: usize,
    /// The payload's beginning, with what can't be printed escaped.
    payload: String,
}

/// How much of a payload is shown.
const SHOWN: usize = 32;

fn print_entry(
    path: &Path,
    offset: u64,
    entry: &EntryRef<'_>,
    json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (header, payload) = (entry.header(), entry.payload());
    let shown = payload[..payload.len().min(SHOWN)].escape_ascii().to_string();
    if json {
        let line = EntryLine {
            file: path,
            offset,
            vlsn: number(header.vlsn),
            term: header.term.get(),
            kind: header.kind.to_string(),
            txn: header.txn.map(|txn| txn.0),
            timestamp: header.timestamp,
            prev: format!("{:08x}", header.prev),
            crc: format!("{:08x}", header.crc),
            payload_len: payload.len(),
            payload: shown,
        };
        return write_json(&line, out);
    }
    let vlsn = header.vlsn.map_or("-".into(), |vlsn: Vlsn| vlsn.to_string());
    let txn = header.txn.map_or("-".into(), |txn| txn.0.to_string());
    let file = Path::new(path.file_name().unwrap_or_default()).display();
    let more = if payload.len() > SHOWN { "…" } else { "" };
    writeln!(
        out,
        "{vlsn:>10} term {:<4} {:<13} txn {txn:<6} {:08x}<-{:08x} {file}+{:<10} {:>8} B  {shown}{more}",
        header.term.get(),
        header.kind,
        header.prev,
        header.crc,
        offset,
        payload.len(),
    )
}

fn print_damage(damage: &Damage, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let (file, offset, what) = (damage.path.as_path(), damage.offset, damage.kind.to_string());
    let (from, to) = (damage.from.get(), damage.to.map(Vlsn::get));
    if json {
        let line = DamageLine { file, offset, from, to, what };
        return write_json(&serde_json::json!({ "damage": line }), out);
    }
    let to = to.map_or("the end".into(), |to| to.to_string());
    writeln!(out, "DAMAGE in {} at offset {offset}, VLSN {from} to {to}: {what}", file.display())
}

fn write_json(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate::clock::{SystemClock, Wait};
    use quorate::disk::RealDisk;
    use quorate::log::LogConfig;
    use quorate::{GroupId, Log, NewEntry, Term};
    use std::sync::Arc;

    /// Three entries with local ones between them.
    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path(), GroupId::from_bits(1));
        let config = LogConfig { segment_bytes: 4096, max_payload: 1024, ..config };
        let (log, _) = Log::open(Arc::new(RealDisk), Arc::new(SystemClock), config).unwrap();
        for payload in [&b"first"[..], b"a\0b", &[b'x'; 100]] {
            let appended = log.append(Term::new(2), &[NewEntry::data(payload)]).unwrap();
            assert!(log.flush(appended.last.vlsn, Wait::Now).unwrap());
        }
        log.close().unwrap();
        dir
    }

    /// Flips a byte of the second entry's payload.
    fn damaged() -> tempfile::TempDir {
        let dir = sample();
        let path = dir.path().join(format!("{:020}.seg", 1));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(3).position(|three| three == b"a\0b").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        dir
    }

    fn dumped(dir: &Path, from: Option<u64>, limit: Option<u64>, local: bool) -> (Verdict, String) {
        let mut out = Vec::new();
        let args = DumpArgs { dir: dir.into(), from, limit, local, json: false };
        let verdict = run(&Command::Dump(args), &mut out).unwrap();
        (verdict, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_dump_has_a_line_for_each_entry_asked_for() {
        let dir = sample();
        let (verdict, text) = dumped(dir.path(), None, Some(2), false);
        assert_eq!((verdict, text.lines().count()), (Verdict::Good, 2));
        assert!(text.contains("a\\x00b") && !text.contains("sync-mark"), "{text}");
        let (_, text) = dumped(dir.path(), Some(3), None, true);
        assert!(
            text.contains("sync-mark") && text.contains(" 100 B  xxx") && !text.contains("a\\x00b"),
            "{text}"
        );
    }

    #[test]
    fn damage_is_shown_with_its_place_and_what_lies_behind_it_is_read() {
        let dir = damaged();
        let (verdict, text) = dumped(dir.path(), None, None, false);
        assert_eq!(verdict, Verdict::Bad);
        assert!(text.contains("VLSN 2 to 2: the entry's CRC is") && text.contains(" 100 B  xxx"), "{text}");
        let mut out = Vec::new();
        let verify = VerifyArgs { dir: dir.path().into(), json: false };
        assert_eq!(run(&Command::Verify(verify), &mut out).unwrap(), Verdict::Bad);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("2 entries (VLSN 1 to 3)") && text.ends_with("1 damaged places\n"), "{text}");
    }

    #[test]
    fn json_lines_parse() {
        let (dir, mut out) = (damaged(), Vec::new());
        let args = DumpArgs { dir: dir.path().into(), from: None, limit: None, local: false, json: true };
        run(&Command::Dump(args), &mut out).unwrap();
        let lines = String::from_utf8(out).unwrap();
        let lines: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["vlsn"], &lines[0]["kind"]), (&1.into(), &"data".into()));
        assert_eq!((&lines[1]["damage"]["from"], &lines[1]["damage"]["to"]), (&2.into(), &2.into()));
    }
}
