//! An archive that is no directory: a node archives into an object store, and what it wrote is restored from there:
//! `cargo run --example object_store`.
//!
//! The store here is an imitation in memory of what the usual ones offer; `bucket.rs` is what has to be written for a real
//! one, with its client in the place of `Bucket`. tests/archive_contract.rs is what such an implementation has to pass.

mod bucket;

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bucket::{Bucket, BucketArchive};
use quorate::archive::{ArchiveConfig, Catalog, RestoreOptions, restore};
use quorate::clock::{SystemClock, Wait, deadline_in};
use quorate::disk::{Disk, RealDisk};
use quorate::log::LogConfig;
use quorate::runtime::ThreadRuntime;
use quorate::{
    Config, Engine, EngineError, Entries, GroupId, Host, Log, NewEntry, Node, NodeConfig, NodeId, Outcome,
    Policy, Vlsn,
};

/// An engine that keeps nothing: the log is the store.
struct Nothing;

impl Engine for Nothing {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }

    fn apply(&mut self, _entries: Entries<'_>) -> Result<(), EngineError> {
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let patience = Wait::Until(deadline_in(Duration::from_secs(10)));
    let archive = Arc::new(BucketArchive::new(Bucket::default()));

    let base = Config::new(GroupId::from_bits(42), NodeId::new("n1")?, directory.path().join("n1"));
    let mut config = NodeConfig::new(base);
    let mut archiving = ArchiveConfig::new(Arc::<BucketArchive>::clone(&archive));
    archiving.every = Duration::from_millis(10);
    config.archive = Some(archiving);
    let node = Node::create(config, Box::new(Nothing), Host::machine())?;
    let ticket = loop {
        match node.append(&[NewEntry::data(b"greeting=hello")], Policy::MAJORITY) {
            Ok(ticket) => break ticket,
            // It is being elected, by itself.
            Err(refused) if refused.is_temporary() => thread::yield_now(),
            Err(refused) => return Err(refused.into()),
        }
    };
    assert_eq!(node.commit(&ticket, patience)?, Outcome::Committed);
    let written = ticket.token.vlsn;
    while Catalog::read(&*archive)?.last_log().is_none_or(|log| log.range.last() < written) {
        thread::yield_now();
    }
    drop(node);

    let (disk, restored): (Arc<dyn Disk>, _) = (Arc::new(RealDisk), directory.path().join("restored"));
    let options = RestoreOptions::new(NodeId::new("r1")?);
    let done = restore(&*archive, &disk, &ThreadRuntime, &restored, &options, &mut |_progress| ())?;
    println!("group {} restored up to VLSN {}", done.group, done.target.vlsn);

    // A node would open the directory; the entry is in its log.
    let log = LogConfig::new(restored.join("log"), done.group);
    let (log, _) = Log::open(disk, Arc::new(SystemClock), log)?;
    assert_eq!(log.payload(written)?, b"greeting=hello");
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
