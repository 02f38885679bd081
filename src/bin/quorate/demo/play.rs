//! The course of the demo: write, kill a replica halfway, bring it back, wait until all are equal, close.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::policy::{Level, Policy};
use quorate::watermark::rest;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::group::Group;
use super::load::{self, Gauge, Load};
use super::watch::Watch;
use super::{Args, Outcome, Transport};
use crate::Failure;
use crate::files::Input;

/// Which replica is killed.
const VICTIM: usize = 0;
/// How often the display is refreshed, and all that is not waited on is looked at.
const REFRESH: Duration = Duration::from_millis(50);
/// How long the killed replica stays away at most.
const AWAY: Duration = Duration::from_millis(500);
/// How long nothing may move.
const STALLED: Duration = Duration::from_secs(30);

/// Carries the demo through.
///
/// # Errors
/// If a node or a commit fails, or a signal ends it.
pub fn play(args: &Args, input: &Input) -> Result<Outcome, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let (root, _temporary) = directory(args.dir.as_deref())?;
    let checkpoint = match args.policy.rule() {
        Some(rule) if rule.level == Level::Checkpointed => Duration::from_millis(5),
        _ => Duration::from_millis(500),
    };
    let group = Group::open(&root, args.transport, args.replicas, checkpoint)?;
    let stage = Stage { watch: Watch::new(input.bytes), group, interrupted, still: (0, Stopwatch::start()) };
    stage.play(args.transport, input, args.policy)
}

/// Where the nodes go; a temporary directory is removed with its guard.
///
/// # Errors
/// If there is none, or it is not empty.
pub fn directory(named: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>), Failure> {
    let Some(dir) = named else {
        let dir = tempfile::Builder::new().prefix("quorate-demo-").tempdir()?;
        return Ok((dir.path().into(), Some(dir)));
    };
    let failed = |error| format!("can't use {}: {error}", dir.display());
    std::fs::create_dir_all(dir).map_err(failed)?;
    if std::fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(format!("{} is not empty: name a new directory", dir.display()).into());
    }
    Ok((dir.into(), None))
}

struct Stage {
    // Cleared before the nodes end, and these before their directory.
    watch: Watch,
    group: Group,
    interrupted: Arc<AtomicBool>,
    /// What `Group::moved` said when it last changed, and when.
    still: (u64, Stopwatch),
}

impl Stage {
    fn play(mut self, transport: Transport, input: &Input, policy: Policy) -> Result<Outcome, Failure> {
        let gauge = Gauge::new((input.bytes / 2).max(1));
        self.until(&gauge, None, Group::complete)?;
        let peers = match transport {
            Transport::Tcp => "processes over TCP",
            Transport::Local => "in this process",
        };
        self.watch.note(&format!("the master and all replicas, {peers}, are connected; policy {policy}"));
        let load = Load::new(input.pieces(), input.bytes, policy, &gauge);
        let began = Stopwatch::start();
        let took = std::thread::scope(|scope| {
            load::start(scope, &load, &self.group.master);
            let directed = self.direct(&gauge, input.bytes);
            if directed.is_err() {
                // Nobody waits for a commit any longer.
                load.stop();
                self.group.master.close(Wait::Now);
            }
            directed.map(|()| began.elapsed())
        });
        let results = load.into_results();
        if let Some(failure) = results.failure {
            return Err(format!("a commit failed: {failure}\n{}", self.group.master.stats()).into());
        }
        let took = took?;
        let last = self.group.master.last().map(|last| last.vlsn);
        self.until(&gauge, None, |group| group.applied(last))?;
        self.watch.note("all nodes have applied everything; closing them and reading their stores");
        drop(self.watch);
        let stores = self.group.close()?;
        Ok(Outcome {
            commits: results.commits,
            entries: results.entries,
            bytes: input.bytes,
            took,
            acked: results.acked,
            degraded: results.degraded,
            p50: results.latency.p50(),
            p99: results.latency.p99(),
            written: results.contents,
            stores,
        })
    }

    /// Kills and brings back a replica while the writers write.
    fn direct(&mut self, gauge: &Gauge, bytes: u64) -> Result<(), Failure> {
        let half = bytes / 2;
        self.until(gauge, Some(half), |_| false)?;
        let killed = self.group.kill(VICTIM)?;
        self.watch.note(&format!("{killed}, after {half} bytes of {bytes}"));
        // The writers stopped short of the half until now.
        gauge.allowed.advance(u64::MAX);
        let away = Stopwatch::start();
        self.until(gauge, Some(bytes / 4 * 3), |_| away.elapsed() >= AWAY)?;
        self.group.start(VICTIM)?;
        self.watch.note(&format!(
            "{} is started again after {:.1?}",
            self.group.name(VICTIM),
            away.elapsed()
        ));
        self.until(gauge, Some(u64::MAX), |_| false)
    }

    /// Watches until so many bytes are committed, or something else is so.
    fn until(
        &mut self,
        gauge: &Gauge,
        committed: Option<u64>,
        so: impl Fn(&Group) -> bool,
    ) -> Result<(), Failure> {
        loop {
            let refresh = Wait::Until(deadline_in(REFRESH));
            match committed {
                _ if so(&self.group) => return Ok(()),
                Some(target) => {
                    if gauge.done.wait(target, refresh)? {
                        return Ok(());
                    }
                }
                None => rest(refresh),
            }
            if self.interrupted.load(Ordering::SeqCst) {
                return Err("interrupted".into());
            }
            self.group.check()?;
            gauge.ticks.advance(gauge.ticks.get() + 1);
            self.watch.show(gauge.done.get(), &self.group.master);
            let moved = self.group.moved().wrapping_add(gauge.done.get());
            if moved != self.still.0 {
                self.still = (moved, Stopwatch::start());
            } else if self.still.1.elapsed() >= STALLED {
                return Err(format!("nothing moves any more:\n{}", self.group.master.stats()).into());
            }
        }
    }
}
