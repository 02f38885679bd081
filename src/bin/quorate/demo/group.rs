//! The demo's group: a master in this process, and replicas here or in processes of their own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quorate::clock::{Wait, deadline_in};
use quorate::ids::number;
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::{Address, Config, GroupId, Host, Master, Member, Members, NodeId, Replica, Vlsn};

use super::Transport;
use crate::Failure;
use crate::kv::{self, Contents};
use crate::replica::{self, CLOSING, STORE};

/// The nodes, all in directories below one.
pub struct Group {
    pub master: Arc<Master>,
    replicas: Vec<Seat>,
    transport: Transport,
    upstream: Address,
    root: PathBuf,
}

/// A replica's place, which may be empty.
struct Seat {
    config: Config,
    node: Option<Node>,
}

enum Node {
    Here(Replica),
    Apart(Process),
}

/// A replica's process; it does not outlive this.
struct Process(Child);

impl Group {
    /// Opens the master and all replicas, which are not connected yet.
    ///
    /// # Errors
    /// If a node does not open.
    pub fn open(
        root: &Path,
        transport: Transport,
        replicas: u8,
        checkpoint: Duration,
    ) -> Result<Group, Failure> {
        let random = || u128::from(ThreadRuntime.random());
        let id = GroupId::from_bits(random() << 64 | random());
        let names = std::iter::once("master".to_owned()).chain((1..=replicas).map(|at| format!("r{at}")));
        let names: Vec<NodeId> = names.map(|name| NodeId::new(&name)).collect::<Result<_, _>>()?;
        let members = Members::new(names.iter().cloned().map(Member::electable).collect())?;
        let mut configs = names.iter().map(|name| {
            let mut config = Config::new(id, name.clone(), root.join(name.as_str()));
            config.members = members.clone();
            config.checkpoint_every = checkpoint;
            config.backoff_max = Duration::from_millis(100);
            config
        });
        let Some(mut config) = configs.next() else { return Err("a group has a master".into()) };
        config.listen = Some(match transport {
            Transport::Local => Address::Local(format!("demo-{id}")),
            Transport::Tcp => Address::Tcp("127.0.0.1:0".into()),
        });
        let store = replica::store_in(&config.dir)?;
        let master = Master::open(config, Box::new(store), Host::machine())?;
        let Some(upstream) = master.address().cloned() else {
            return Err("the master does not listen".into());
        };
        let replicas = configs.map(|config| Seat { config, node: None }).collect();
        let mut group = Group { master: Arc::new(master), replicas, transport, upstream, root: root.into() };
        for at in 0..group.replicas.len() {
            group.start(at)?;
        }
        Ok(group)
    }

    /// Starts a replica whose place is empty.
    ///
    /// # Errors
    /// If it does not open.
    pub fn start(&mut self, at: usize) -> Result<(), Failure> {
        let Some(seat) = self.replicas.get_mut(at) else {
            return Err(format!("there is no replica {at}").into());
        };
        seat.node = Some(match self.transport {
            Transport::Local => {
                let config = Config { upstream: Some(self.upstream.clone()), ..seat.config.clone() };
                Node::Here(replica::open(config)?)
            }
            Transport::Tcp => {
                let child = Command::new(std::env::current_exe()?)
                    .arg("replica")
                    .args(replica::Args::to_command_line(&seat.config, &self.upstream))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .spawn()?;
                Node::Apart(Process(child))
            }
        });
        Ok(())
    }

    /// Ends a replica: a process by SIGKILL; one in this process is dropped. Returns what was done to whom.
    ///
    /// # Errors
    /// If the process can't be killed.
    pub fn kill(&mut self, at: usize) -> Result<String, Failure> {
        let Some(seat) = self.replicas.get_mut(at) else {
            return Err(format!("there is no replica {at}").into());
        };
        let name = &seat.config.node;
        Ok(match seat.node.take() {
            Some(Node::Apart(mut process)) => {
                process.0.kill()?;
                format!("{name} (process {}) was killed: {}", process.0.id(), process.0.wait()?)
            }
            Some(Node::Here(replica)) => {
                drop(replica);
                format!("{name} was dropped")
            }
            None => format!("{name} was not there"),
        })
    }

    /// A replica's name.
    pub fn name(&self, at: usize) -> &str {
        self.replicas.get(at).map_or("", |seat| seat.config.node.as_str())
    }

    /// Fails if a node ended by itself.
    ///
    /// # Errors
    /// Which node, and why.
    pub fn check(&mut self) -> Result<(), Failure> {
        if let Some(reason) = self.master.poisoned() {
            return Err(format!("the master can't go on: {reason}").into());
        }
        for Seat { config, node } in &mut self.replicas {
            let ended = match node {
                Some(Node::Here(replica)) => replica.poisoned(),
                Some(Node::Apart(process)) => process.0.try_wait()?.map(|status| status.to_string()),
                None => None,
            };
            if let Some(reason) = ended {
                return Err(format!("{} ended by itself: {reason}", config.node).into());
            }
        }
        Ok(())
    }

    /// Whether every replica is connected and past its syncup.
    pub fn complete(&self) -> bool {
        let replicas = self.master.replicas();
        replicas.len() == self.replicas.len()
            && replicas.iter().all(|replica| replica.connected_for.is_some())
    }

    /// Whether every node's store has all entries up to `last`.
    pub fn applied(&self, last: Option<Vlsn>) -> bool {
        let replicas = self.master.replicas();
        self.master.positions().applied >= last
            && replicas.len() == self.replicas.len()
            && replicas.iter().all(|replica| replica.positions.applied >= last)
    }

    /// A number that rises when any node gets on.
    pub fn moved(&self) -> u64 {
        let own = self.master.positions();
        let others = self.master.replicas();
        let positions = others.iter().map(|replica| replica.positions).chain([own]);
        positions.flat_map(|p| [p.received, p.durable, p.applied]).map(number).sum::<u64>()
            + self.master.topology_epoch()
    }

    /// Closes all nodes in order and reads their stores, the master's first.
    ///
    /// # Errors
    /// If a node or a store fails.
    pub fn close(self) -> Result<Vec<(String, Contents)>, Failure> {
        let wait = || Wait::Until(deadline_in(CLOSING));
        let mut names = vec!["master".to_owned()];
        for Seat { config, node } in self.replicas {
            match node {
                Some(Node::Here(replica)) => replica.close(wait()),
                Some(Node::Apart(process)) => {
                    let status = process.stop()?;
                    if !status.success() {
                        return Err(format!("{} closed with {status}", config.node).into());
                    }
                }
                None => return Err(format!("{} is not running", config.node).into()),
            }
            names.push(config.node.to_string());
        }
        self.master.close(wait());
        drop(self.master);
        names
            .into_iter()
            .map(|name| {
                let path = self.root.join(&name).join(STORE);
                let contents = kv::contents_of(&path);
                let contents = contents.map_err(|error| format!("can't read {}: {error}", path.display()))?;
                Ok((name, contents))
            })
            .collect()
    }
}

impl Process {
    /// Asks it to close and waits for its end.
    fn stop(mut self) -> Result<ExitStatus, Failure> {
        if let Some(mut input) = self.0.stdin.take() {
            input.write_all(b"stop\n")?;
        }
        Ok(self.0.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It ended, or nothing more can be done about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
