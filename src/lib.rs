//! Synchronous, thread-based log replication for blocking storage engines.
//!
//! quorate keeps a log of what an engine writes, carries it to replicas, and tells a writer when its entry is safe: no
//! async runtime, any engine, the transport and the log included. An engine implements [`Engine`]; a [`Master`] appends,
//! feeds and commits; a [`Replica`] follows.
//!
//! ```
//! use quorate::*;
//! # #[derive(Default)]
//! # struct Counter(Option<Vlsn>);
//! # impl Engine for Counter {
//! #     fn applied(&mut self) -> Result<Option<Vlsn>, EngineError> { Ok(self.0) }
//! #     fn apply(&mut self, entries: Entries<'_>) -> Result<(), EngineError> {
//! #         self.0 = Some(entries.range().last());
//! #         Ok(())
//! #     }
//! #     fn checkpoint(&mut self) -> Result<Option<Vlsn>, EngineError> { Ok(self.0) }
//! # }
//! # let temp = tempfile::tempdir()?;
//! # let dir = temp.path();
//! let ids = ["m", "r1", "r2"].map(|name| NodeId::new(name).unwrap());
//! let members = Members::new(ids.iter().cloned().map(Member::electable).collect())?;
//! let config = |at: usize| {
//!     let mut config = Config::new(GroupId::from_bits(42), ids[at].clone(), dir.join(ids[at].as_str()));
//!     config.members = members.clone();
//!     config
//! };
//! let host = Host::machine();
//! let master = Master::open(config(0), Box::new(Counter::default()), host.clone())?;
//! let mut replicas = Vec::new();
//! for at in [1, 2] {
//!     let replica = Replica::open(config(at), Box::new(Counter::default()), host.clone())?;
//!     let (here, there) = channel::local::pair(ids[at].as_str());
//!     master.accept(here);
//!     replica.follow(there);
//!     replicas.push(replica);
//! }
//! let patience = Wait::Until(clock::deadline_in(std::time::Duration::from_secs(10)));
//! let ticket = loop {
//!     // The first gate refuses, before anything is written, while too few replicas are connected.
//!     match master.append(&[NewEntry::data(b"hello")], Policy::MAJORITY) {
//!         Ok(ticket) => break ticket,
//!         Err(refused) if refused.is_temporary() => std::thread::yield_now(),
//!         Err(refused) => return Err(refused.into()),
//!     }
//! };
//! assert_eq!(master.commit(&ticket, patience)?, Outcome::Committed);
//! for replica in &replicas {
//!     assert!(replica.wait_for(&ticket.token, patience)?); // read your write, anywhere
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The journey of one entry
//!
//! 1. [`Master::append`] encodes the entry once ([`entry`]) into the log's staging buffer: VLSN, term, CRC, and the CRC
//!    of the entry before it. These bytes are what every disk and every wire carries.
//! 2. The [`log`] writes staged bytes to its active segment file when there are 64 KiB of them, or when somebody wants
//!    them.
//! 3. A [`feeder`]'s sending half takes runs of entries straight from the mapped segment and sends each as one frame
//!    ([`wire`]) over a [`channel`].
//! 4. The [`replica`] verifies every CRC and the chain, and appends the bytes as they came, with one write.
//! 5. Both sides flush; one flush serves all who wait for it. Acks carry positions, so none counts twice.
//! 6. The feeder's receiving half hands acks to the commit gates ([`commit`]), which compute by a pure function
//!    ([`quorum`]) how far each rule is satisfied. [`Master::commit`] waits on the gate of its policy.
//! 7. The news of what is committed travels back, and every node, the master too, hands its engine what is committed and
//!    flushed. So an engine never has to undo anything.
//!
//! # What is promised
//!
//! An entry reported [`Outcome::Committed`] is on the disks of a majority of the voters, the master's among them. A replica never applies an
//! entry whose bytes differ from what was appended, out of order, twice, or with a hole before it. A deposed master gets
//! nothing committed. An outcome never says more than what happened: every error after an append carries a [`Token`]
//! that can be asked later. Bad bytes from a peer end that one connection with a named error.
//!
//! # Groups that run themselves
//!
//! A [`Node`] elects its master together with the others, follows it, and takes its place when it is lost. A [`Master`] and
//! a [`Replica`] have a fixed part each, for an embedder that chooses the master itself.
//!
//! # What is not there yet
//!
//! Encryption and authentication are yet to come. A semi-sync or async write says [`Outcome::Acked`] or
//! [`Outcome::Degraded`], and may be lost with the master.
//!
//! # Features
//!
//! - `lz4` (default): compression of entry batches, negotiated per connection.
//! - `sim`: a simulated clock, network, disk and scheduler, to test whole groups from a seed; for embedders, too.
//! - `cli`: the command `quorate`, for which a library user has no need.
//! - `planted`: bugs planted for this crate's own tests.
//!
//! The directory docs/ has the design, the formats, the protocol, the invariants and how they are tested, and runnable
//! examples.
#![deny(missing_docs)]

pub mod address;
mod apply;
pub mod archive;
pub mod ballot;
pub mod base;
pub mod channel;
pub mod client;
pub mod clock;
pub mod commit;
pub mod compare;
pub mod config;
pub mod counters;
pub mod disk;
pub mod election;
pub mod engine;
pub mod entry;
pub mod feeder;
pub mod handshake;
pub mod histogram;
pub mod ids;
pub mod log;
pub mod matchpoint;
pub mod members;
pub mod node;
#[cfg_attr(not(feature = "planted"), allow(dead_code, reason = "only the feature switches bugs on"))]
pub mod planted;
pub mod policy;
pub mod progress;
pub mod quorum;
pub mod replica;
pub mod retention;
pub mod roster;
pub mod runtime;
#[cfg(feature = "sim")]
pub mod sim;
pub mod slots;
pub mod snapshot;
pub mod state;
pub mod stats;
mod sync;
pub mod syncup;
pub mod watermark;
pub mod wire;
pub mod worker;

pub use address::Address;
pub use channel::Channel;
pub use client::{Client, ClientError};
pub use clock::Wait;
pub use commit::{CommitError, Ticket};
pub use config::{Compression, Config, ConfigError, Plaintext, Snapshots};
pub use engine::{Engine, EngineError, EngineSnapshot, Item, Items};
pub use entry::{Entries, EntryKind, EntryRef, NewEntry, TxnId};
pub use feeder::{FeederState, Feeding, ReplicaStats};
pub use ids::{GroupId, NodeId, Position, Term, TermSpan, Vlsn, VlsnRange};
pub use log::Log;
pub use log::scanner::LogScanner;
pub use members::{Admission, Change, Standing};
pub use members::{Health, Member, Members, Role};
pub use node::{
    Answer, ChangeRefused, Event, Host, Master, Node, NodeConfig, NodeError, ReadError, Replica, Service,
    SlotRefused, TokenError, TransferError, WriteError, WriteRefused,
};
pub use policy::{Level, Outcome, Policy, Quorum, Token};
pub use progress::Positions;
pub use replica::{FollowError, ReplicaState};
pub use slots::{Slot, Slots};
pub use stats::Stats;
pub use watermark::Watermark;
pub use wire::group::{NodeStatus, Part};
