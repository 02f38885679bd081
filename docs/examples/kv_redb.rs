//! redb as a replicated engine, over TCP: `cargo run --example kv_redb`.
//!
//! The engine is src/bin/quorate/kv.rs, which `quorate demo` uses too. It keeps the applied position in the same redb
//! transaction as the data, so that a store that crashed is the store as of one exact entry, and replay goes on with the
//! next. Here a replica is dropped in the middle of writing and opened again, then all nodes are, and each store is found
//! at an exact entry.

#[allow(dead_code, reason = "the command uses more of it than this example")]
#[path = "../../src/bin/quorate/kv.rs"]
mod kv;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use kv::{Contents, Kv, Reader, Record};
use quorate::clock::{Wait, deadline_in};
use quorate::{
    Address, Config, GroupId, Host, Master, Member, Members, NewEntry, NodeId, Outcome, Policy, Replica,
    Token,
};

type Failure = Box<dyn Error + Send + Sync>;

const NODES: [&str; 3] = ["master", "r1", "r2"];

fn config(directory: &Path, at: usize) -> Result<Config, Failure> {
    let ids = NODES.iter().map(|name| NodeId::new(name)).collect::<Result<Vec<_>, _>>()?;
    let mut config = Config::new(GroupId::from_bits(42), ids[at].clone(), directory.join(NODES[at]));
    config.members = Members::new(ids.into_iter().map(Member::electable).collect())?;
    Ok(config)
}

/// Opens the store of a node, beside its log.
fn store(config: &Config) -> Result<(Box<Kv>, Reader), Failure> {
    std::fs::create_dir_all(&config.dir)?;
    let store = Kv::open(&config.dir.join("store.redb"))?;
    let reader = store.reader();
    Ok((Box::new(store), reader))
}

fn master(directory: &Path) -> Result<(Master, Reader), Failure> {
    let config = Config { listen: Some(Address::Tcp("127.0.0.1:0".into())), ..config(directory, 0)? };
    let (store, reader) = store(&config)?;
    Ok((Master::open(config, store, Host::machine())?, reader))
}

fn replica(directory: &Path, at: usize, master: &Master) -> Result<(Replica, Reader), Failure> {
    let config = Config { upstream: master.address().cloned(), ..config(directory, at)? };
    let (store, reader) = store(&config)?;
    Ok((Replica::open(config, store, Host::machine())?, reader))
}

fn patience() -> Wait {
    Wait::Until(deadline_in(Duration::from_secs(20)))
}

/// Commits `number=square` for every number, each for itself; returns the last one's token.
fn write(master: &Master, numbers: std::ops::Range<u64>) -> Result<Option<Token>, Failure> {
    let mut last = None;
    for number in numbers {
        let (key, value) = (number.to_string(), (number * number).to_string());
        let mut payload = Vec::new();
        Record::Put { key: key.as_bytes(), value: value.as_bytes() }.encode(&mut payload);
        let ticket = loop {
            match master.append(&[NewEntry::data(&payload)], Policy::MAJORITY) {
                Ok(ticket) => break ticket,
                Err(refused) if refused.is_temporary() => std::thread::yield_now(),
                Err(refused) => return Err(refused.into()),
            }
        };
        assert_eq!(master.commit(&ticket, patience())?, Outcome::Committed);
        last = Some(ticket.token);
    }
    Ok(last)
}

/// What a store that has the first `records` numbers holds.
fn expected(records: u64) -> Contents {
    let mut contents = Contents::default();
    for number in 0..records {
        contents.add(number.to_string().as_bytes(), (number * number).to_string().as_bytes());
    }
    contents
}

/// Whether a store is what it should be at the entry that it says it has applied. The entry before the first number is the
/// one that began the master's term.
fn at_an_exact_entry(reader: &Reader) -> Result<Contents, Failure> {
    let contents = reader.contents()?;
    let applied = contents.applied.map_or(0, |vlsn| vlsn.get());
    assert!(contents.same_records(&expected(applied.saturating_sub(1))), "{contents}");
    Ok(contents)
}

fn main() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let dir = directory.path();
    {
        let (master, own) = master(dir)?;
        let (r1, _) = replica(dir, 1, &master)?;
        let (_r2, second) = replica(dir, 2, &master)?;
        write(&master, 0..40)?;
        println!("r1 goes away; the others are a majority");
        drop(r1);
        write(&master, 40..80)?;
        let (r1, first) = replica(dir, 1, &master)?;
        println!("r1 is back at {}", at_an_exact_entry(&first)?);
        let Some(token) = write(&master, 80..120)? else { return Err("nothing was written".into()) };
        assert!(r1.wait_for(&token, patience())?);
        println!("r1 has read what was written: {}", at_an_exact_entry(&first)?);
        println!("master {}, r2 {}", at_an_exact_entry(&own)?, at_an_exact_entry(&second)?);
        // All nodes are dropped here, without anybody waiting for anything.
    }
    for (at, name) in NODES.iter().enumerate() {
        let (_, reader) = store(&config(dir, at)?)?;
        println!("{name} reopens at {}", at_an_exact_entry(&reader)?);
    }
    let (master, own) = master(dir)?;
    let (r1, first) = replica(dir, 1, &master)?;
    let (r2, second) = replica(dir, 2, &master)?;
    let Some(token) = write(&master, 120..130)? else { return Err("nothing was written".into()) };
    for node in [&r1, &r2] {
        assert!(node.wait_for(&token, patience())?);
    }
    assert!(master.wait_for(&token, patience())?);
    let all = own.contents()?;
    assert!(all.same_records(&expected(130)));
    assert_eq!((all, all), (first.contents()?, second.contents()?));
    println!("all are equal at {all}");
    Ok(())
}

#[cfg(test)]
#[test]
fn it_runs() {
    main().unwrap();
}
