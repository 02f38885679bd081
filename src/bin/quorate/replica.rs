//! `quorate replica`: a replica of the demo as a process of its own, which lives as long as its standard input is open.

use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::clock::{Wait, deadline_in};
use quorate::{Address, Config, GroupId, Host, Member, Members, NodeId, Replica};

use crate::kv::Kv;
use crate::{Failure, Verdict};

/// The store's file in a node's directory.
pub const STORE: &str = "store.redb";

/// How long a node may take to close.
pub const CLOSING: Duration = Duration::from_secs(10);

/// Which replica to be.
#[derive(clap::Args)]
pub struct Args {
    /// The group
    #[arg(long)]
    group: GroupId,
    /// This node
    #[arg(long)]
    node: NodeId,
    /// All members
    #[arg(long, value_delimiter = ',')]
    members: Vec<NodeId>,
    /// This node's directory
    #[arg(long)]
    dir: PathBuf,
    /// The master
    #[arg(long)]
    upstream: Address,
    /// How often the store is made durable, in milliseconds
    #[arg(long)]
    checkpoint_ms: u64,
}

impl Args {
    /// The arguments for a replica with this configuration.
    pub fn to_command_line(config: &Config, upstream: &Address) -> Vec<String> {
        let members: Vec<&str> = config.members.iter().map(|member| member.id.as_str()).collect();
        let argument = |name: &str, value: String| [format!("--{name}"), value];
        [
            argument("group", config.group.to_string()),
            argument("node", config.node.to_string()),
            argument("members", members.join(",")),
            argument("dir", config.dir.display().to_string()),
            argument("upstream", upstream.to_string()),
            argument("checkpoint-ms", config.checkpoint_every.as_millis().to_string()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn config(&self) -> Result<Config, Failure> {
        let members = self.members.iter().cloned().map(Member::electable).collect();
        let mut config = Config::new(self.group, self.node.clone(), &self.dir);
        config.members = Members::new(members)?;
        config.upstream = Some(self.upstream.clone());
        config.checkpoint_every = Duration::from_millis(self.checkpoint_ms);
        // It was killed on purpose and is missed: it comes back quickly.
        config.backoff_max = Duration::from_millis(100);
        Ok(config)
    }
}

/// Opens a replica with its store in its directory.
///
/// # Errors
/// If the store or the node does not open.
pub fn open(config: Config) -> Result<Replica, Failure> {
    let store = store_in(&config.dir)?;
    Ok(Replica::open(config, Box::new(store), Host::machine())?)
}

/// Opens the store in a node's directory, making both if need be.
///
/// # Errors
/// If it does not open.
pub fn store_in(dir: &Path) -> Result<Kv, Failure> {
    std::fs::create_dir_all(dir).map_err(|error| format!("can't create {}: {error}", dir.display()))?;
    let path = dir.join(STORE);
    Kv::open(&path).map_err(|error| format!("can't open {}: {error}", path.display()).into())
}

/// Runs the command: follows until standard input says "stop" or ends, which it does when the parent dies.
///
/// # Errors
/// If the replica does not open, or ended before.
pub fn run(args: &Args) -> Result<Verdict, Failure> {
    let replica = open(args.config()?)?;
    for line in io::stdin().lock().lines() {
        if line? == "stop" {
            break;
        }
    }
    replica.close(Wait::Until(deadline_in(CLOSING)));
    match replica.poisoned() {
        Some(reason) => Err(reason.into()),
        None => Ok(Verdict::Good),
    }
}
