//! `quorate demo`: real files through the log into a store on each node, with a replica killed on the way.

mod group;
mod load;
mod play;
mod watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::policy::{Level, Policy, Quorum};
use serde::Serialize;

use crate::files::{DEFAULT_LIMIT, Input};
use crate::kv::Contents;
use crate::{Failure, Verdict, bootstrap, failover};

/// What to replicate, and how.
#[derive(clap::Args)]
pub struct Args {
    /// A directory or file to load [default: the files under the current directory, at most 64 MiB]
    #[arg(long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// How the nodes are connected; over TCP the replicas are processes, and one is killed by SIGKILL
    #[arg(long, value_enum, default_value_t = Transport::Tcp)]
    transport: Transport,
    /// Replicas beside the master
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: u8,
    /// What a commit waits for: async, majority, all, acks:N or semi-sync:N:MILLIS; with @received, @durable, @applied
    /// or @checkpointed behind it for how far the nodes have to be (durable if not said)
    #[arg(long, default_value = "majority", value_parser = policy)]
    policy: Policy,
    /// Where the nodes' directories go, which are kept [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Instead: three nodes that elect their master, which is killed under load
    #[arg(long, conflicts_with_all = ["input", "transport", "replicas", "policy"])]
    failover: bool,
    /// How many masters are killed, one after the other
    #[arg(long, value_name = "N", default_value_t = 1, requires = "failover",
        value_parser = clap::value_parser!(u32).range(1..))]
    cycles: u32,
    /// Instead: a third node gets the store of two others, whose log no longer has its beginning, over connections that
    /// are cut
    #[arg(long, conflicts_with_all = ["input", "transport", "replicas", "policy", "failover"])]
    bootstrap: bool,
    /// How large the store is
    #[arg(long, value_name = "MIB", default_value_t = 64, requires = "bootstrap",
        value_parser = clap::value_parser!(u32).range(16..))]
    mib: u32,
    /// How often the connections are cut
    #[arg(long, value_name = "N", default_value_t = 3, requires = "bootstrap")]
    cuts: u32,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// How the nodes are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Transport {
    /// All in this process, over in-memory channels
    Local,
    /// Over loopback TCP, each replica a process
    Tcp,
}

/// A policy as it is written on the command line.
///
/// # Errors
/// What is wrong with the text.
pub fn policy(text: &str) -> Result<Policy, String> {
    let (who, level) = text.split_once('@').unwrap_or((text, "durable"));
    let level = match level {
        "received" => Level::Received,
        "durable" => Level::Durable,
        "applied" => Level::Applied,
        "checkpointed" => Level::Checkpointed,
        other => return Err(format!("{other:?} is no level: received, durable, applied or checkpointed")),
    };
    let count = |text: &str| text.parse::<u8>().map_err(|_| format!("{text:?} is no number of acks"));
    let parts: Vec<&str> = who.split(':').collect();
    let quorum = match parts[..] {
        ["async"] => return Ok(Policy::Async),
        ["majority"] => Quorum::Majority,
        ["all"] => Quorum::All,
        ["acks", acks] => Quorum::Acks(count(acks)?),
        ["semi-sync", acks, millis] => {
            let millis = millis.parse().map_err(|_| format!("{millis:?} is no number of milliseconds"))?;
            return Ok(Policy::SemiSync {
                acks: count(acks)?,
                level,
                timeout: Duration::from_millis(millis),
            });
        }
        _ => return Err("write async, majority, all, acks:N or semi-sync:N:MILLIS".into()),
    };
    Ok(Policy::Sync { quorum, level })
}

/// What came of it.
pub struct Outcome {
    /// Commits, entries in them, bytes of the values, and how long that took.
    pub commits: u64,
    pub entries: u64,
    pub bytes: u64,
    pub took: Duration,
    /// Of the commits, those that were told less than `Committed`.
    pub acked: u64,
    pub degraded: u64,
    /// Commit latency.
    pub p50: Duration,
    pub p99: Duration,
    /// What was committed.
    pub written: Contents,
    /// Every node's name and store, the master's first.
    pub stores: Vec<(String, Contents)>,
}

impl Outcome {
    fn identical(&self) -> bool {
        self.stores.windows(2).all(|pair| pair[0].1 == pair[1].1)
    }

    /// Whether every store has all that was committed, and nothing else.
    fn complete(&self) -> bool {
        self.stores.iter().all(|(_, store)| store.same_records(&self.written))
    }
}

/// Runs the command.
///
/// # Errors
/// If it can't be carried through; stores that differ are a verdict.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    if args.failover {
        let (root, _temporary) = play::directory(args.dir.as_deref())?;
        return failover::run(&root, args.cycles as usize, args.json, out);
    }
    if args.bootstrap {
        let (root, _temporary) = play::directory(args.dir.as_deref())?;
        return bootstrap::run(&root, u64::from(args.mib) << 20, args.cuts as usize, args.json, out);
    }
    let (root, limit) = match &args.input {
        Some(path) => (path.as_path(), None),
        None => (Path::new("."), Some(DEFAULT_LIMIT)),
    };
    let input = Input::scan(root, limit)?;
    if input.files() == 0 {
        return Err(format!("there is no file to replicate in {}", root.display()).into());
    }
    if !args.json {
        let left_out = match input.left_out {
            0 => String::new(),
            files => format!(", {files} files left out for size"),
        };
        writeln!(out, "{} files, {} bytes{left_out}", input.files(), input.bytes)?;
    }
    let outcome = play::play(args, &input)?;
    render(&outcome, args.json, out)
}

#[derive(Serialize)]
struct Line<'a> {
    identical: bool,
    complete: bool,
    commits: u64,
    entries: u64,
    acked: u64,
    degraded: u64,
    bytes: u64,
    seconds: f64,
    commits_per_s: f64,
    mb_per_s: f64,
    p50_us: u128,
    p99_us: u128,
    stores: Vec<StoreLine<'a>>,
}

#[derive(Serialize)]
struct StoreLine<'a> {
    node: &'a str,
    records: u64,
    bytes: u64,
    applied: u64,
    hash: String,
}

fn render(outcome: &Outcome, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let seconds = outcome.took.as_secs_f64().max(1e-9);
    let line = Line {
        identical: outcome.identical(),
        complete: outcome.complete(),
        commits: outcome.commits,
        entries: outcome.entries,
        acked: outcome.acked,
        degraded: outcome.degraded,
        bytes: outcome.bytes,
        seconds,
        commits_per_s: outcome.commits as f64 / seconds,
        mb_per_s: outcome.bytes as f64 / seconds / 1e6,
        p50_us: outcome.p50.as_micros(),
        p99_us: outcome.p99.as_micros(),
        stores: outcome
            .stores
            .iter()
            .map(|(node, contents)| StoreLine {
                node,
                records: contents.records,
                bytes: contents.bytes,
                applied: quorate::ids::number(contents.applied),
                hash: format!("{:016x}", contents.hash),
            })
            .collect(),
    };
    if json {
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    } else {
        for (node, contents) in &outcome.stores {
            writeln!(out, "{node:<8} {contents}")?;
        }
        writeln!(
            out,
            "{} entries in {} commits in {seconds:.2} s: {:.0} commits/s, {:.1} MB/s, latency p50 {} us, p99 {} us",
            line.entries, line.commits, line.commits_per_s, line.mb_per_s, line.p50_us, line.p99_us
        )?;
        if line.acked + line.degraded > 0 {
            let (acked, degraded) = (line.acked, line.degraded);
            writeln!(
                out,
                "{acked} of the commits were told acked, {degraded} degraded: weaker than committed"
            )?;
        }
        if !line.complete {
            writeln!(out, "A STORE LACKS WHAT WAS COMMITTED: written {}", outcome.written)?;
        }
        writeln!(out, "{}", if line.identical { "all stores are identical" } else { "THE STORES DIFFER" })?;
    }
    Ok(if line.identical && line.complete { Verdict::Good } else { Verdict::Bad })
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate::ids::Vlsn;

    fn outcome(hashes: [u64; 2]) -> Outcome {
        let store = |hash| Contents { records: 2, bytes: 10, applied: Vlsn::new(3), hash, versions: 0 };
        Outcome {
            commits: 2,
            entries: 2,
            bytes: 10,
            acked: 0,
            degraded: 0,
            took: Duration::from_millis(500),
            p50: Duration::from_micros(70),
            p99: Duration::from_micros(90),
            written: store(hashes[0]),
            stores: vec![("master".into(), store(hashes[0])), ("n2".into(), store(hashes[1]))],
        }
    }

    #[test]
    fn policies_are_written_as_the_help_says() {
        assert_eq!(policy("majority"), Ok(Policy::MAJORITY));
        assert_eq!(policy("async"), Ok(Policy::Async));
        assert_eq!(
            policy("acks:1@received"),
            Ok(Policy::Sync { quorum: Quorum::Acks(1), level: Level::Received })
        );
        let timeout = Duration::from_millis(50);
        assert_eq!(
            policy("semi-sync:2:50"),
            Ok(Policy::SemiSync { acks: 2, level: Level::Durable, timeout })
        );
        for bad in ["", "most", "acks", "acks:x", "acks:1:2", "semi-sync:1", "majority@soon"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_differing_store_is_a_bad_verdict() {
        let mut out = Vec::new();
        assert_eq!(render(&outcome([1, 1]), false, &mut out).unwrap(), Verdict::Good);
        assert_eq!(render(&outcome([1, 2]), false, &mut out).unwrap(), Verdict::Bad);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("4 commits/s") && text.contains("all stores are identical\n"), "{text}");
        assert!(text.ends_with("THE STORES DIFFER\n"), "{text}");
    }

    #[test]
    fn identical_stores_that_lack_a_commit_are_a_bad_verdict() {
        let (mut out, mut lost) = (Vec::new(), outcome([1, 1]));
        lost.written.add(b"key", b"value");
        assert_eq!(render(&lost, false, &mut out).unwrap(), Verdict::Bad);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("A STORE LACKS WHAT WAS COMMITTED"), "{text}");
    }

    #[test]
    fn json_says_whether_the_stores_are_identical() {
        let mut out = Vec::new();
        render(&outcome([1, 2]), true, &mut out).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&value["identical"], &value["stores"][1]["node"]), (&false.into(), &"n2".into()));
    }
}
