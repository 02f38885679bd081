//! Whole groups in this process, for the lines that need one: real nodes with logs and an engine that does nothing.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quorate::channel::{Channel, ReceiveBuffer, local};
use quorate::clock::deadline_in;
use quorate::handshake::{Identity, hello};
use quorate::members::Standing;
use quorate::watermark::rest;
use quorate::wire::message::{Ack, Message, Syncup};
use quorate::*;
use tempfile::TempDir;

use crate::Failure;

/// How replicas are connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    Tcp,
    Local,
}

/// An engine that keeps nothing but its position.
#[derive(Default)]
struct Nothing(Option<Vlsn>);

impl Engine for Nothing {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0)
    }
    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        self.0 = Some(entries.range().last());
        Ok(())
    }
    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0)
    }
}

/// A master and its replicas, in a directory that goes away with them.
pub struct Group {
    // Dropped in this order: the replicas first, so that their ends of the connections close in peace.
    pub replicas: Vec<Replica>,
    pub master: Master,
    members: Members,
    via: Via,
    tune: fn(&mut Config),
    dir: TempDir,
}

/// The end of every wait that ends by itself unless something is broken.
pub fn patience() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(60)))
}

fn name(number: usize) -> Result<NodeId, Failure> {
    Ok(NodeId::new(&format!("node-{number}"))?)
}

impl Group {
    /// A master of a group of `members`, and no replica yet.
    ///
    /// # Errors
    /// If it does not open.
    pub fn new(below: &Path, members: usize, via: Via, tune: fn(&mut Config)) -> Result<Group, Failure> {
        let dir = tempfile::Builder::new().prefix("group-").tempdir_in(below)?;
        let list = (0..members).map(|number| Ok(Member::electable(name(number)?)));
        let members = Members::new(list.collect::<Result<_, Failure>>()?)?;
        let mut config = config(dir.path(), 0, &members, tune)?;
        if via == Via::Tcp {
            config.listen = Some(Address::Tcp("127.0.0.1:0".into()));
        }
        let master = Master::open(config, Box::new(Nothing::default()), Host::machine())?;
        Ok(Group { replicas: Vec::new(), master, members, via, tune, dir })
    }

    /// A group of a master and this many replicas, all connected.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn connected(
        below: &Path,
        replicas: usize,
        via: Via,
        tune: fn(&mut Config),
    ) -> Result<Group, Failure> {
        let mut group = Group::new(below, replicas + 1, via, tune)?;
        for _ in 0..replicas {
            group.add_replica()?;
        }
        until(|| group.replicas.iter().all(|replica| replica.state() == ReplicaState::Following))?;
        let start = group.last();
        group.received(start, patience())?;
        Ok(group)
    }

    /// Opens one more replica, which connects.
    ///
    /// # Errors
    /// If it does not open.
    pub fn add_replica(&mut self) -> Result<(), Failure> {
        let number = self.replicas.len() + 1;
        let mut config = config(self.dir.path(), number, &self.members, self.tune)?;
        if self.via == Via::Tcp {
            config.upstream = self.master.address().cloned();
        }
        let replica = Replica::open(config, Box::new(Nothing::default()), Host::machine())?;
        if self.via == Via::Local {
            let (here, there) = local::pair("bench");
            self.master.accept(here);
            replica.follow(there);
        }
        self.replicas.push(replica);
        Ok(())
    }

    /// The last entry's number.
    pub fn last(&self) -> u64 {
        self.master.last().map_or(0, |last| last.vlsn.get())
    }

    /// Waits until every replica has the entries up to here in its log.
    ///
    /// # Errors
    /// If that does not happen in time.
    pub fn received(&self, to: u64, wait: Wait) -> Result<(), Failure> {
        for replica in &self.replicas {
            if !replica.log().life().written.wait(to, wait)? {
                let error = replica.last_error();
                return Err(format!("a replica did not receive VLSN {to} in time: {error:?}").into());
            }
        }
        Ok(())
    }

    /// A connected member that speaks the protocol by hand, has nothing, and reads nothing more.
    ///
    /// # Errors
    /// If the master does not take it.
    pub fn add_idle_peer(&self, number: usize) -> Result<Arc<dyn Channel>, Failure> {
        let config = config(self.dir.path(), number, &self.members, self.tune)?.check()?;
        let to = self.master.address().ok_or("the master does not listen")?;
        let runtime = Host::machine().runtime;
        let channel = runtime.dial(to, patience())?.ok_or("the master did not answer")?;
        let own = Identity { incarnation: runtime.random(), session: runtime.random() };
        let me = quorate::Member::electable(config.node.clone());
        let term = self.master.term();
        let mut buffer = ReceiveBuffer::new();
        let mut scratch = Vec::new();
        let nothing = Ack { received: None, durable: None, applied: None, checkpointed: None };
        let syncup = Syncup { last: None, committed: None, history: Vec::new() };
        let standing = Standing::Full { since: Term::NONE };
        let words = [
            Message::Hello(hello(&config, &me, own, standing, None)),
            Message::Syncup(syncup),
            Message::Ack(nothing),
        ];
        for (sequence, message) in (0..).zip(&words) {
            message.encode(term, sequence, &mut scratch);
            channel.send(&[IoSlice::new(&scratch)], patience())?;
            if sequence < 2 {
                channel.receive(&mut buffer, patience())?.ok_or("the master did not answer")?;
            }
        }
        Ok(channel)
    }
}

/// Looks again and again, a millisecond apart.
///
/// # Errors
/// If it does not come true in time.
pub fn until(mut reached: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = patience();
    while !reached() {
        if end.remaining().is_some_and(|left| left.is_zero()) {
            return Err("a group did not come to where it was waited for".into());
        }
        rest(Wait::Until(deadline_in(Duration::from_millis(1))));
    }
    Ok(())
}

fn config(dir: &Path, number: usize, members: &Members, tune: fn(&mut Config)) -> Result<Config, Failure> {
    let id = name(number)?;
    let dir = dir.join(id.as_str());
    let mut config = Config::new(GroupId::from_bits(7), id, dir);
    config.members = members.clone();
    tune(&mut config);
    Ok(config)
}
