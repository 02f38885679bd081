//! redb as a replicated engine: `cargo run --example kv_redb`.
//!
//! The engine itself is src/bin/quorate/kv.rs, which `quorate demo` uses too. Here it is fed by hand, to show the
//! contract: entries in, position and data in one transaction, and after a restart the position says what comes next.

#[allow(dead_code, reason = "the command uses more of it than this example")]
#[path = "../../src/bin/quorate/kv.rs"]
mod kv;

use kv::{Kv, Record};
use quorate::engine::{Engine, EngineError};
use quorate::entry::{Entries, NewEntry, Placement, encode, verify_run};
use quorate::ids::{Term, Vlsn};

fn main() -> Result<(), EngineError> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("kv.redb");

    // Three entries, as a master's log would hold them.
    let (mut run, mut prev, mut at) = (Vec::new(), 0, None);
    for record in [
        Record::Put { key: b"apples", value: b"12" },
        Record::Put { key: b"pears", value: b"7" },
        Record::Delete { key: b"pears" },
    ] {
        let mut payload = Vec::new();
        record.encode(&mut payload);
        let vlsn = Vlsn::after(at);
        let place = Placement { vlsn: Some(vlsn), term: Term::new(1), prev, timestamp: 0 };
        prev = encode(&NewEntry::data(&payload), &place, &mut run);
        at = Some(vlsn);
    }

    // A replica verifies what it received and hands it to its engine.
    let mut store = Kv::open(&path)?;
    let summary = verify_run(&run, None)?;
    store.apply(Entries::new(summary.range, &[&run]))?;
    println!("applied {}: {}", summary.range, store.reader().contents()?);
    store.checkpoint()?;
    drop(store);

    // After a restart the store says where it stands.
    let mut store = Kv::open(&path)?;
    println!("reopened at {:?}: {}", store.applied()?, store.reader().contents()?);
    println!("apples: {:?}", store.reader().value(b"apples")?.map(|value| value.escape_ascii().to_string()));
    Ok(())
}
