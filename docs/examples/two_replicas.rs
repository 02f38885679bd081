//! The smallest whole program: a master and two replicas in one process, over in-memory channels:
//! `cargo run --example two_replicas`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate::clock::{Wait, deadline_in};
use quorate::{
    Config, Engine, EngineError, Entries, EntryKind, GroupId, Host, Master, Member, Members, NewEntry,
    NodeId, Outcome, Policy, Replica, Vlsn, channel,
};

/// A store in memory: each entry is `key=value`. It forgets everything when it is closed, and says so: `applied` is what
/// it holds, so that a node would replay its whole log.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    applied: Option<Vlsn>,
    values: BTreeMap<String, String>,
}

impl Store {
    fn value(&self, key: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values.get(key).cloned()
    }
}

impl Engine for Store {
    fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).applied)
    }

    fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries.iter().filter(|entry| entry.kind() == EntryKind::DATA) {
            let text = std::str::from_utf8(entry.payload())?;
            let (key, value) = text.split_once('=').ok_or("no key=value")?;
            store.values.insert(key.into(), value.into());
        }
        store.applied = Some(entries.range().last());
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> {
        Ok(None)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let patience = Wait::Until(deadline_in(Duration::from_secs(10)));
    let names = ["master", "r1", "r2"].map(NodeId::new);
    let [master, r1, r2] = names;
    let ids = [master?, r1?, r2?];
    let members = Members::new(ids.iter().cloned().map(Member::electable).collect())?;
    let config = |id: &NodeId| {
        let mut config = Config::new(GroupId::from_bits(42), id.clone(), directory.path().join(id.as_str()));
        config.members = members.clone();
        config
    };

    let store = Store::default();
    let master = Master::open(config(&ids[0]), Box::new(store.clone()), Host::machine())?;
    let mut replicas = Vec::new();
    for id in &ids[1..] {
        let store = Store::default();
        let replica = Replica::open(config(id), Box::new(store.clone()), Host::machine())?;
        let (here, there) = channel::local::pair(id.as_str());
        master.accept(here);
        replica.follow(there);
        replicas.push((replica, store));
    }

    // While too few replicas are connected nothing is written, and the writer is told so at once.
    let ticket = loop {
        match master.append(&[NewEntry::data(b"greeting=hello")], Policy::MAJORITY) {
            Ok(ticket) => break ticket,
            Err(refused) if refused.is_temporary() => std::thread::yield_now(),
            Err(refused) => return Err(refused.into()),
        }
    };
    assert_eq!(master.commit(&ticket, patience)?, Outcome::Committed);

    // The token reads one's own write on any node.
    for (replica, store) in &replicas {
        assert!(replica.wait_for(&ticket.token, patience)?);
        assert_eq!(store.value("greeting").as_deref(), Some("hello"));
    }
    assert!(master.wait_for(&ticket.token, patience)?);
    assert_eq!(store.value("greeting").as_deref(), Some("hello"));
    print!("{}", master.stats());

    for (replica, _) in &replicas {
        replica.close(patience);
    }
    master.close(patience);
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
