//! `quorate log`: what is in a log, and whether it is whole. Reads only; a log that is in use may be looked at.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use quorate::entry::EntryRef;
use quorate::ids::{Vlsn, number};
use serde::Serialize;

use crate::{Failure, Verdict};

/// The commands on a log.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Print entries, one a line
    Dump(DumpArgs),
    /// Verify every header, CRC, VLSN and the chain of CRCs; exit code 1 if anything is damaged
    Verify(VerifyArgs),
}

/// What to print.
#[derive(clap::Args)]
pub struct DumpArgs {
    /// The log's directory
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
    /// The log's directory
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// An entry and where it is stored.
pub struct Stored<'a> {
    pub file: &'a Path,
    pub offset: u64,
    pub entry: EntryRef<'a>,
}

/// Bytes that should be entries and are not.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    pub file: PathBuf,
    pub offset: u64,
    /// The first VLSN that can't be read there.
    pub from: u64,
    /// The last; `None` if that can't be told.
    pub to: Option<u64>,
    /// What is wrong, and what it means: a torn tail, or corruption of what was durable.
    pub what: String,
}

/// What a reader comes across.
#[cfg_attr(not(test), expect(dead_code, reason = "no reader is wired yet"))]
pub enum Found<'a> {
    Entry(Stored<'a>),
    Damage(Damage),
}

/// Reads a log from its start to its end, going on behind damage where that is possible.
pub trait Reader {
    /// The next entry or damage; `None` at the end.
    ///
    /// # Errors
    /// If a file can't be read at all.
    fn next(&mut self) -> Result<Option<Found<'_>>, Failure>;

    /// Bytes in all segments, for a progress bar.
    fn bytes(&self) -> u64;
}

/// Runs the command.
///
/// # Errors
/// If the log can't be read.
pub fn run(command: &Command, out: &mut dyn Write) -> Result<Verdict, Failure> {
    match command {
        Command::Dump(args) => dump(&mut *open(&args.dir, args.from)?, args, out),
        Command::Verify(args) => verify(&mut *open(&args.dir, None)?, args.json, out),
    }
}

/// Opens a log for looking: at its oldest entry, or at the segment that has `from`.
fn open(dir: &Path, _from: Option<u64>) -> Result<Box<dyn Reader>, Failure> {
    Err(format!("can't read the log in {}: this build has no log", dir.display()).into())
}

fn dump(reader: &mut dyn Reader, args: &DumpArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (from, mut left, mut verdict) = (args.from.unwrap_or(0), args.limit, Verdict::Good);
    while left != Some(0) {
        match reader.next()? {
            None => break,
            Some(Found::Damage(damage)) => {
                print_damage(&damage, args.json, out)?;
                verdict = Verdict::Bad;
            }
            Some(Found::Entry(stored)) => {
                let vlsn = stored.entry.header().vlsn;
                if (vlsn.is_none() && !args.local) || vlsn.is_some_and(|vlsn| vlsn.get() < from) {
                    continue;
                }
                print_entry(&stored, args.json, out)?;
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

fn verify(reader: &mut dyn Reader, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let bar = crate::progress(reader.bytes(), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let mut seen = Summary::default();
    while let Some(found) = reader.next()? {
        match found {
            Found::Damage(damage) => {
                bar.suspend(|| print_damage(&damage, json, out))?;
                seen.damages += 1;
            }
            Found::Entry(stored) => {
                let len = stored.entry.bytes().len() as u64;
                seen.bytes += len;
                match stored.entry.header().vlsn {
                    None => seen.local += 1,
                    Some(vlsn) => {
                        seen.entries += 1;
                        seen.first = if seen.first == 0 { vlsn.get() } else { seen.first };
                        seen.last = vlsn.get();
                    }
                }
                bar.inc(len);
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

fn print_entry(stored: &Stored<'_>, json: bool, out: &mut dyn Write) -> io::Result<()> {
    let (header, payload) = (stored.entry.header(), stored.entry.payload());
    let shown = payload[..payload.len().min(SHOWN)].escape_ascii().to_string();
    if json {
        let line = EntryLine {
            file: stored.file,
            offset: stored.offset,
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
    let file = Path::new(stored.file.file_name().unwrap_or_default()).display();
    let more = if payload.len() > SHOWN { "…" } else { "" };
    writeln!(
        out,
        "{vlsn:>10} term {:<4} {:<13} txn {txn:<6} {:08x}<-{:08x} {file}+{:<10} {:>8} B  {shown}{more}",
        header.term.get(),
        header.kind,
        header.prev,
        header.crc,
        stored.offset,
        payload.len(),
    )
}

fn print_damage(damage: &Damage, json: bool, out: &mut dyn Write) -> io::Result<()> {
    if json {
        return write_json(&serde_json::json!({ "damage": damage }), out);
    }
    let Damage { file, offset, from, to, what } = damage;
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
    use quorate::entry::{EntryKind, NewEntry, Placement, encode};
    use quorate::ids::Term;

    /// Three entries, a local one before the last, and damage behind it.
    struct Sample {
        entries: Vec<Vec<u8>>,
        next: usize,
    }

    impl Sample {
        fn new() -> Sample {
            let entry = |vlsn, kind, payload: &[u8]| {
                let at = Placement { vlsn: Vlsn::new(vlsn), term: Term::new(2), prev: 7, timestamp: 9 };
                let mut bytes = Vec::new();
                encode(&NewEntry { kind, txn: None, payload }, &at, &mut bytes);
                bytes
            };
            let entries = vec![
                entry(5, EntryKind::TERM_START, b""),
                entry(6, EntryKind::DATA, b"a\0b"),
                entry(0, EntryKind::SYNC_MARK, b"mark"),
                entry(7, EntryKind::DATA, &[b'x'; 100]),
            ];
            Sample { entries, next: 0 }
        }
    }

    impl Reader for Sample {
        fn next(&mut self) -> Result<Option<Found<'_>>, Failure> {
            self.next += 1;
            let (file, offset) = (Path::new("log/seg-5"), 100 * self.next as u64);
            if self.next == self.entries.len() + 1 {
                let what = "the CRC differs".into();
                return Ok(Some(Found::Damage(Damage {
                    file: file.into(),
                    offset,
                    from: 8,
                    to: Some(9),
                    what,
                })));
            }
            let Some(bytes) = self.entries.get(self.next - 1) else { return Ok(None) };
            Ok(Some(Found::Entry(Stored { file, offset, entry: EntryRef::verify(bytes)? })))
        }

        fn bytes(&self) -> u64 {
            self.entries.iter().map(|entry| entry.len() as u64).sum()
        }
    }

    fn dumped(from: Option<u64>, limit: Option<u64>, local: bool, json: bool) -> (Verdict, String) {
        let mut out = Vec::new();
        let args = DumpArgs { dir: PathBuf::new(), from, limit, local, json };
        let verdict = dump(&mut Sample::new(), &args, &mut out).unwrap();
        (verdict, String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_dump_has_a_line_for_each_entry_asked_for() {
        let (verdict, text) = dumped(None, Some(2), false, false);
        assert_eq!((verdict, text.lines().count()), (Verdict::Good, 2));
        assert!(
            text.contains("term-start") && text.contains("a\\x00b") && !text.contains("sync-mark"),
            "{text}"
        );
        let (_, text) = dumped(Some(7), None, true, false);
        assert!(
            text.contains("sync-mark") && text.contains(" 100 B  xxx") && !text.contains("a\\x00b"),
            "{text}"
        );
    }

    #[test]
    fn a_dump_shows_damage_with_its_place_and_fails() {
        let (verdict, text) = dumped(Some(7), None, false, false);
        assert_eq!(verdict, Verdict::Bad);
        assert!(
            text.ends_with("DAMAGE in log/seg-5 at offset 500, VLSN 8 to 9: the CRC differs\n"),
            "{text}"
        );
    }

    #[test]
    fn json_lines_parse() {
        let (_, text) = dumped(None, None, true, true);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 5);
        assert_eq!((&lines[1]["vlsn"], &lines[1]["kind"]), (&6.into(), &"data".into()));
        assert_eq!(lines[4]["damage"]["offset"], 500);
    }

    #[test]
    fn verify_counts_and_its_verdict_follows_the_damage() {
        let mut out = Vec::new();
        assert_eq!(verify(&mut Sample::new(), false, &mut out).unwrap(), Verdict::Bad);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("3 entries (VLSN 5 to 7) and 1 local ones"), "{text}");
        assert!(text.ends_with("1 damaged places\n"), "{text}");
    }
}
