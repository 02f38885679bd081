//! Nodes for the demos, each in a process of its own.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate::channel::tcp;
use quorate::clock::{Stopwatch, Wait, deadline_in};
use quorate::ids::number;
use quorate::log::inspect::{Found, Inspector};
use quorate::members::Admission;
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::watermark::rest;
use quorate::wire::message::{NodeStatus, Part};
use quorate::{Address, EntryKind, GroupId};

use crate::Failure;
use crate::failover::check::Logged;
use crate::group_args::Contact;
use crate::kv::{self, Contents, Record};
use crate::replica::STORE;
use crate::status::Survey;

/// How often nodes are asked how they stand.
const LOOK: Duration = Duration::from_millis(50);
/// How long the group may take to be what it should be.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes, in directories below one.
pub struct Nodes {
    pub group: GroupId,
    root: PathBuf,
    seats: Vec<Seat>,
}

struct Seat {
    name: String,
    address: Address,
    process: Option<Process>,
}

/// A node's process, which ends with its standard input, and so with this process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It ended, or nothing more can be done about it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Nodes {
    /// No nodes yet, of a new group.
    pub fn new(root: &Path) -> Nodes {
        let random = || u128::from(ThreadRuntime.random());
        let group = GroupId::from_bits(random() << 64 | random());
        Nodes { group, root: root.into(), seats: Vec::new() }
    }

    /// Starts one more node, which others reach at `address`. `config` is its file, without group and name.
    ///
    /// # Errors
    /// If its process does not start.
    pub fn add(&mut self, name: &str, address: Address, config: &str) -> Result<(), Failure> {
        let text = format!("group = \"{}\"\nnode = \"{name}\"\n{config}", self.group);
        fs::write(self.root.join(format!("{name}.toml")), text)?;
        self.seats.push(Seat { name: name.into(), address, process: None });
        self.bring_back(self.seats.len() - 1)
    }

    /// Starts `count` nodes, which found a group together.
    ///
    /// # Errors
    /// If a process does not start.
    pub fn start(root: &Path, count: usize) -> Result<Nodes, Failure> {
        // The ports are free now, and the nodes take them at once.
        let listeners = (0..count).map(|_| tcp::listen("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let addresses: Vec<Address> = listeners.iter().map(|listener| listener.address().clone()).collect();
        drop(listeners);
        let mut config = "found = true\nbackoff_max_ms = 200\n".to_owned();
        for (at, address) in (1..).zip(&addresses) {
            config += &format!("[[members]]\nnode = \"n{at}\"\naddress = \"{address}\"\n");
        }
        let mut nodes = Nodes::new(root);
        for (at, address) in (1..).zip(addresses) {
            nodes.add(&format!("n{at}"), address, &config)?;
        }
        Ok(nodes)
    }

    /// Starts a node that is not running.
    ///
    /// # Errors
    /// If its process does not start.
    pub fn bring_back(&mut self, at: usize) -> Result<(), Failure> {
        let seat = &mut self.seats[at];
        let output = self.root.join(format!("{}.out", seat.name));
        let output: File = OpenOptions::new().create(true).append(true).open(output)?;
        let child = Command::new(std::env::current_exe()?)
            .args(["node", "--until-stdin-ends", "--config"])
            .arg(self.root.join(format!("{}.toml", seat.name)))
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        seat.process = Some(Process(child));
        Ok(())
    }

    /// Ends a node by SIGKILL.
    ///
    /// # Errors
    /// If it can't be killed.
    pub fn kill(&mut self, at: usize) -> Result<(), Failure> {
        if let Some(mut process) = self.seats[at].process.take() {
            process.0.kill()?;
            process.0.wait()?;
        }
        Ok(())
    }

    /// The nodes' addresses.
    pub fn addresses(&self) -> Vec<Address> {
        self.seats.iter().map(|seat| seat.address.clone()).collect()
    }

    /// The number of a node's process, while it runs.
    pub fn process(&self, at: usize) -> Option<u32> {
        self.seats[at].process.as_ref().map(|process| process.0.id())
    }

    /// A node's name.
    pub fn name(&self, at: usize) -> &str {
        &self.seats[at].name
    }

    /// Asks all nodes how they stand, once.
    pub fn looks<T>(&self, holds: impl Fn(&Survey) -> Option<T>) -> Option<T> {
        let wait = Wait::Until(deadline_in(PATIENCE));
        holds(&Survey::of(&Contact { addresses: self.addresses(), group: self.group, wait }))
    }

    /// Waits until this holds of what all nodes say.
    ///
    /// # Errors
    /// If it does not come to hold, or a process ended by itself.
    pub fn until<T>(&mut self, what: &str, holds: impl Fn(&Survey) -> Option<T>) -> Result<T, Failure> {
        let began = Stopwatch::start();
        loop {
            if let Some(value) = self.looks(&holds) {
                return Ok(value);
            }
            for seat in &mut self.seats {
                let ended = seat.process.as_mut().map(|process| process.0.try_wait()).transpose()?.flatten();
                if let Some(status) = ended {
                    let output = self.root.join(format!("{}.out", seat.name));
                    let said = fs::read_to_string(output).unwrap_or_default();
                    return Err(format!("{} ended by itself: {status}\n{said}", seat.name).into());
                }
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{what}: not within {PATIENCE:?}").into());
            }
            rest(Wait::Until(deadline_in(LOOK)));
        }
    }

    /// Waits until all nodes are members that count, and one leads the others. Says which.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn master(&mut self) -> Result<usize, Failure> {
        let count = self.seats.len();
        let master = self.until("a group of all nodes", |survey| {
            let master = survey.master()?;
            let follows =
                |one: &NodeStatus| one.master.as_ref() == Some(&master.node) && one.standing.counts();
            let part = |one: &NodeStatus| matches!(one.part, Part::Master | Part::Replica);
            let whole = survey.answers().filter(|one| follows(one) && part(one)).count() == count
                && master.members.iter().filter(|one| one.member.admission == Admission::Full).count()
                    == count;
            whole.then(|| master.node.to_string())
        })?;
        let at = self.seats.iter().position(|seat| seat.name == master);
        at.ok_or_else(|| format!("{master} is none of ours").into())
    }

    /// Waits until every node has applied everything.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn settle(&mut self) -> Result<(), Failure> {
        self.master()?;
        let count = self.seats.len();
        self.until("the same log on all nodes", |survey| {
            let last = survey.master()?.positions.received;
            (survey.answers().filter(|one| one.positions.applied == last).count() == count).then_some(())
        })
    }

    /// Closes all nodes in order.
    ///
    /// # Errors
    /// If one ends with an error.
    pub fn close(&mut self) -> Result<(), Failure> {
        for seat in &mut self.seats {
            if let Some(mut process) = seat.process.take() {
                drop(process.0.stdin.take());
                let status = process.0.wait()?;
                if !status.success() {
                    return Err(format!("{} closed with {status}", seat.name).into());
                }
            }
        }
        Ok(())
    }

    /// Every node's store, when they are closed.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn stores(&self) -> Result<Vec<(String, Contents)>, Failure> {
        let read = |seat: &Seat| {
            let path = self.root.join(&seat.name).join(STORE);
            let contents = kv::contents_of(&path);
            let contents = contents.map_err(|error| format!("can't read {}: {error}", path.display()))?;
            Ok((seat.name.clone(), contents))
        };
        self.seats.iter().map(read).collect()
    }

    /// The writes that a node's log holds, when it is closed.
    ///
    /// # Errors
    /// If it can't be read, or is damaged.
    pub fn log(&self, at: usize) -> Result<Vec<Logged>, Failure> {
        let mut log = Inspector::open(&self.root.join(&self.seats[at].name), None)?;
        let mut found = Vec::new();
        while let Some(next) = log.advance()? {
            let entry = match next {
                Found::Entry { entry, .. } => entry,
                Found::Damage(damage) => return Err(format!("{}: {}", self.name(at), damage.kind).into()),
            };
            let Some(vlsn) = entry.header().vlsn.filter(|_| entry.kind() == EntryKind::DATA) else {
                continue;
            };
            let (key, value, expected) = match Record::decode(entry.payload())? {
                Record::Put { key, value } => (key, value, None),
                Record::Cas { key, expected, value } => (key, value, Some(number(expected))),
                Record::Delete { key } => (key, &[][..], None),
            };
            found.push(Logged { vlsn: vlsn.get(), key: key.into(), value: value.into(), expected });
        }
        Ok(found)
    }
}
