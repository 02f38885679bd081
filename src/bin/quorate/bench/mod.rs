//! `quorate bench`: the machine's limits, and the engine beside them, in one run.

mod ceiling;
mod commits;
mod group;
mod limits;
mod meter;
mod quiet;
mod recovery;
mod report;
mod storage;
mod streams;

use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use self::report::{Report, Row};
use crate::{Failure, Verdict};

/// What to measure, and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Shorten the runs: about a tenth of the time, and a wider spread
    #[arg(long)]
    quick: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Where the files go; flushes are only as real as its file system [default: target/, or the current directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only the lines whose id begins so
    #[arg(long, value_name = "PREFIX")]
    only: Option<String>,
    /// Runs of each line, at least 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..))]
    runs: u16,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs of each line.
    pub runs: usize,
    /// The work of a full run is divided by this.
    pub scale: u64,
}

/// A run of the benchmark: where its files are, and the lines so far.
pub struct Bench {
    pub report: Report,
    pub effort: Effort,
    pub dir: TempDir,
    only: Option<String>,
    progress: indicatif::ProgressBar,
}

impl Bench {
    /// A run with a directory of its own below `dir`, which goes away with it.
    ///
    /// # Errors
    /// If there can be no such directory.
    pub fn new(dir: Option<&Path>, effort: Effort, only: Option<String>) -> Result<Bench, Failure> {
        let target = Path::new("target");
        let below = dir.unwrap_or(if target.is_dir() { target } else { Path::new(".") });
        std::fs::create_dir_all(below).map_err(|error| format!("can't make {}: {error}", below.display()))?;
        let dir = tempfile::Builder::new().prefix("quorate-bench-").tempdir_in(below)?;
        let progress = crate::progress(0, "{elapsed:>4} {msg}").with_elapsed(std::time::Duration::ZERO);
        Ok(Bench { report: Report::default(), effort, dir, only, progress })
    }

    /// Whether this line is to be measured.
    pub fn wants(&self, id: &str) -> bool {
        self.only.as_ref().is_none_or(|prefix| id.starts_with(prefix.as_str()))
    }

    /// Shows what is being measured.
    pub fn show(&self, id: &str) {
        self.progress.set_message(id.to_owned());
        self.progress.tick();
    }

    /// Measures one line, unless `--only` leaves it out, and adds it.
    ///
    /// # Errors
    /// The measurement's, with the line's id.
    pub fn line(&mut self, id: &str, measure: impl FnOnce() -> Result<Row, Failure>) -> Result<(), Failure> {
        if !self.wants(id) {
            return Ok(());
        }
        self.show(id);
        let row = measure().map_err(|failure| format!("{id}: {failure}"))?;
        self.report.add(row);
        Ok(())
    }
}

/// Runs the command. A goal that is missed is no failure: the machine may be to blame.
///
/// # Errors
/// If something can't be measured.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let effort = Effort { runs: args.runs.into(), scale: if args.quick { 10 } else { 1 } };
    let mut bench = Bench::new(args.dir.as_deref(), effort, args.only.clone())?;
    limits::add_all(&mut bench)?;
    storage::add_all(&mut bench)?;
    streams::add_all(&mut bench)?;
    commits::add_all(&mut bench)?;
    quiet::add_all(&mut bench)?;
    recovery::add_all(&mut bench)?;
    bench.progress.finish_and_clear();
    if bench.report.rows().is_empty() {
        return Err("no line has an id that begins so".into());
    }
    if args.json {
        bench.report.write_json(out)?;
    } else {
        bench.report.write_table(out)?;
    }
    Ok(Verdict::Good)
}
