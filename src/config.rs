//! Every knob, with its default, its bounds and its reason. Checked once; bad values are refused, never repaired.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::Address;
use crate::entry::HEADER_TXN_LEN;
use crate::ids::{GroupId, NodeId};
use crate::members::{Member, Members};

/// Whether connections without encryption may leave the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plaintext {
    /// Only loopback, Unix and in-process addresses are accepted. The default.
    LoopbackOnly,
    /// Any address: for networks that are trusted or encrypted below us.
    Allowed,
}

/// Whether batches of entries are compressed on the wire, if the peer can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// No. The default: on a fast network compression costs more than it saves.
    Off,
    /// LZ4, for batches of 4 KiB and more. Needs the feature `lz4` on both sides; without it batches go plain.
    Lz4,
}

/// What a node needs to know before it opens. Make one with [`Config::new`] and change the fields that matter.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group. The same on every member.
    pub group: GroupId,
    /// This node's name within the group.
    pub node: NodeId,
    /// The node's own directory: the log and small state. Created if missing; locked while open.
    pub dir: PathBuf,
    /// All members, this node included. The same on every member.
    pub members: Members,
    /// Where a master listens. Default: nowhere (channels are handed over by [`crate::Master::accept`]).
    pub listen: Option<Address>,
    /// Whom a replica dials. Default: nobody (channels are handed over by [`crate::Replica::follow`]).
    pub upstream: Option<Address>,
    /// The slot by which a replica asks its master to keep entries. Default: none.
    pub slot: Option<String>,
    /// Size of a segment file. Default 64 MiB; 64 KiB to 1 GiB. Larger files mean fewer rotations and coarser pruning.
    pub segment_bytes: u64,
    /// The largest payload of an entry. Default 8 MiB. An entry must fit into a frame and into a segment.
    pub max_payload: usize,
    /// The largest frame sent or accepted. Default 16 MiB; 64 KiB to 1 GiB. Peers use the lower of both limits.
    pub max_frame: u32,
    /// How much a feeder puts into one frame. Default 256 KiB; 4 KiB to `max_frame`.
    pub batch_bytes: usize,
    /// Entries that nobody waits for are flushed within this time. Default 100 ms; 1 ms to 1 minute.
    pub lazy_flush: Duration,
    /// Silence after which a heartbeat is sent. Default 100 ms; 1 ms to 1 minute.
    pub heartbeat: Duration,
    /// Silence after which a peer is taken for dead. Default 3 s; at least three heartbeats.
    pub peer_timeout: Duration,
    /// Time for the whole of dialling, handshake and syncup. Default 5 s; 10 ms to 10 minutes.
    pub handshake_timeout: Duration,
    /// A replica's first pause between attempts to connect; it doubles up to `backoff_max`, with jitter. Default 20 ms.
    pub backoff_min: Duration,
    /// The longest pause between attempts. Default 2 s; at least `backoff_min`.
    pub backoff_max: Duration,
    /// How often the engine is asked to make durable what it applied. Default 1 s; 1 ms to 1 hour.
    pub checkpoint_every: Duration,
    /// Bytes of log that a [`Node`](crate::Node) keeps though nobody needs them, while the disk has room: who was away for a
    /// moment then needs no snapshot. Default 256 MiB; 0 for none.
    pub keep_bytes: u64,
    /// Bytes of log that a node keeps for one replica, slot, archive or subscription before it gives that up. Default
    /// 16 GiB, some minutes of a log that is written as fast as one can be, and hours or days of most. `u64::MAX` for no bound.
    pub pin_max_bytes: u64,
    /// How long one of these may keep the log without getting on. Default 24 h; 1 ms to 10 years.
    pub pin_max_age: Duration,
    /// Bytes that a node leaves free on its disk by giving up whom it keeps its log for, the oldest first. Default 1 GiB, so
    /// that it gives them up before writes fail; 0 for none.
    pub disk_floor: u64,
    /// How often a master at most writes down how far the owners of slots have come. Default 10 s; 1 ms to 1 hour.
    pub slot_every: Duration,
    /// How often a node looks what of its log can be removed. Default 1 s; 1 ms to 1 hour.
    pub retention_every: Duration,
    /// How fast sealed segments are read to find damage. Default 16 MiB a second; 0: never but by order.
    pub scrub_bytes_per_second: u64,
    /// From the end of one such round to the beginning of the next. Default 24 hours; 1 ms to 365 days.
    pub scrub_every: Duration,
    /// A replica further behind than this, in entries, counts as lagging. Default 100,000.
    pub lag_limit: u64,
    /// The most connections that a master serves at once, those in handshake included. Default 64; 1 to 1024.
    pub max_connections: usize,
    /// Compression of entry batches. Default off.
    pub compression: Compression,
    /// Whether plaintext connections may leave the machine. Default: loopback only.
    pub plaintext: Plaintext,
    /// Whether a node that needs entries which no member has fetches a snapshot by itself. Default: it does.
    pub snapshots: Snapshots,
    /// The most snapshots that a node gives at once. Default 2; 1 to 64.
    pub max_snapshots: usize,
    /// The bytes per second of one snapshot that a node gives. Default 256 MiB; at least 64 KiB.
    pub snapshot_bytes_per_second: u64,
    /// How long a snapshot that was broken off, and the log behind it, are kept for its receiver. Default 60 s; 10 ms to 1 day.
    pub snapshot_patience: Duration,
}

/// Whether a node fetches snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshots {
    /// By itself, when it needs one.
    Automatic,
    /// Not at all: it says that it needs one, and waits for a person.
    Manual,
}

/// A configuration that can't work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A value lies outside its bounds.
    #[error("{field} is {value}; it has to be {bounds}")]
    OutOfBounds {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        bounds: &'static str,
    },
    /// This node is missing from the member list.
    #[error("{node} is not among the members; add it to the list")]
    NotAMember {
        /// This node.
        node: NodeId,
    },
    /// An address leaves the machine without encryption.
    #[error(
        "{address} leaves this machine without encryption; set plaintext to Allowed if the network is trusted"
    )]
    PlaintextRefused {
        /// The address.
        address: Address,
    },
    /// A master's setting on a replica, or the other way round.
    #[error("{field} has no meaning for a {role}; leave it unset")]
    WrongRole {
        /// The field.
        field: &'static str,
        /// What the node was opened as.
        role: &'static str,
    },
}

impl Config {
    /// A configuration with default values for node `node` of `group`, which keeps its files in `dir`. The member list
    /// holds just this node, electable: set [`Config::members`] for a real group.
    pub fn new(group: GroupId, node: NodeId, dir: impl Into<PathBuf>) -> Config {
        let alone = Members::new(vec![Member::electable(node.clone())]);
        Config {
            group,
            node,
            dir: dir.into(),
            members: alone.unwrap_or_else(|_| unreachable!("one electable member is a list")),
            listen: None,
            upstream: None,
            slot: None,
            segment_bytes: 64 << 20,
            max_payload: 8 << 20,
            max_frame: 16 << 20,
            batch_bytes: 256 << 10,
            lazy_flush: Duration::from_millis(100),
            heartbeat: Duration::from_millis(100),
            peer_timeout: Duration::from_secs(3),
            handshake_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(2),
            checkpoint_every: Duration::from_secs(1),
            keep_bytes: 256 << 20,
            pin_max_bytes: 16 << 30,
            pin_max_age: Duration::from_secs(24 * 3600),
            disk_floor: 1 << 30,
            slot_every: Duration::from_secs(10),
            retention_every: Duration::from_secs(1),
            scrub_bytes_per_second: 16 << 20,
            scrub_every: Duration::from_secs(24 * 60 * 60),
            lag_limit: 100_000,
            max_connections: 64,
            compression: Compression::Off,
            plaintext: Plaintext::LoopbackOnly,
            snapshots: Snapshots::Automatic,
            max_snapshots: 2,
            snapshot_bytes_per_second: 256 << 20,
            snapshot_patience: Duration::from_secs(60),
        }
    }

    /// Checks every field against its bounds and against the others.
    ///
    /// # Errors
    /// [`ConfigError`], for the first field that does not fit.
    pub fn check(self) -> Result<CheckedConfig, ConfigError> {
        let ms = Duration::from_millis;
        let minute = Duration::from_secs(60);
        within("segment_bytes", self.segment_bytes, 64 << 10, 1 << 30, "64 KiB to 1 GiB")?;
        within("max_frame", self.max_frame, 64 << 10, 1 << 30, "64 KiB to 1 GiB")?;
        within("batch_bytes", self.batch_bytes, 4 << 10, self.max_frame as usize, "4 KiB to max_frame")?;
        let room = (self.max_frame as usize).min(self.segment_bytes as usize) - ENTRY_OVERHEAD;
        within(
            "max_payload",
            self.max_payload,
            1,
            room,
            "1 byte to what fits into max_frame and segment_bytes",
        )?;
        within("lazy_flush", self.lazy_flush, ms(1), minute, "1 ms to 1 minute")?;
        within("heartbeat", self.heartbeat, ms(1), minute, "1 ms to 1 minute")?;
        within(
            "peer_timeout",
            self.peer_timeout,
            self.heartbeat * 3,
            minute * 60,
            "three heartbeats to 1 hour",
        )?;
        within("handshake_timeout", self.handshake_timeout, ms(10), minute * 10, "10 ms to 10 minutes")?;
        within("backoff_min", self.backoff_min, ms(1), minute, "1 ms to 1 minute")?;
        within("backoff_max", self.backoff_max, self.backoff_min, minute * 60, "backoff_min to 1 hour")?;
        within("checkpoint_every", self.checkpoint_every, ms(1), minute * 60, "1 ms to 1 hour")?;
        within("pin_max_age", self.pin_max_age, ms(1), minute * 60 * 24 * 3653, "1 ms to 10 years")?;
        within("slot_every", self.slot_every, ms(1), minute * 60, "1 ms to 1 hour")?;
        within("retention_every", self.retention_every, ms(1), minute * 60, "1 ms to 1 hour")?;
        within("scrub_every", self.scrub_every, ms(1), minute * 60 * 24 * 365, "1 ms to 365 days")?;
        within("max_connections", self.max_connections, 1, 1024, "1 to 1024")?;
        within("lag_limit", self.lag_limit, 1, u64::MAX, "at least 1")?;
        within("max_snapshots", self.max_snapshots, 1, 64, "1 to 64")?;
        let rate = self.snapshot_bytes_per_second;
        within("snapshot_bytes_per_second", rate, 64 << 10, u64::MAX, "at least 64 KiB")?;
        within("snapshot_patience", self.snapshot_patience, ms(10), minute * 1440, "10 ms to 1 day")?;
        if let Some(slot) = &self.slot {
            within("slot", slot.len(), 1, 64, "1 to 64 bytes long")?;
        }
        if self.members.find(&self.node).is_none() {
            return Err(ConfigError::NotAMember { node: self.node });
        }
        if self.plaintext == Plaintext::LoopbackOnly {
            for address in [&self.listen, &self.upstream].into_iter().flatten() {
                if !address.stays_on_this_machine() {
                    return Err(ConfigError::PlaintextRefused { address: address.clone() });
                }
            }
        }
        Ok(CheckedConfig(self))
    }
}

/// What an entry needs beside its payload in a frame or segment: its header, and the largest header of either.
const ENTRY_OVERHEAD: usize = HEADER_TXN_LEN + 256;

fn within<T: PartialOrd + std::fmt::Debug>(
    field: &'static str,
    value: T,
    min: T,
    max: T,
    bounds: &'static str,
) -> Result<(), ConfigError> {
    if value < min || value > max {
        return Err(ConfigError::OutOfBounds { field, value: format!("{value:?}"), bounds });
    }
    Ok(())
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct CheckedConfig(Config);

impl Deref for CheckedConfig {
    type Target = Config;
    fn deref(&self) -> &Config {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(GroupId::from_bits(1), NodeId::new("a").unwrap(), "dir")
    }

    #[test]
    fn the_defaults_pass() {
        assert!(config().check().is_ok());
    }

    #[test]
    fn every_bound_is_held_and_named() {
        let refused = |change: fn(&mut Config), field: &str| {
            let mut config = config();
            change(&mut config);
            match config.check() {
                Err(ConfigError::OutOfBounds { field: named, .. }) => assert_eq!(named, field),
                other => panic!("{field}: {other:?}"),
            }
        };
        refused(|c| c.segment_bytes = 1, "segment_bytes");
        refused(|c| c.max_frame = 1, "max_frame");
        refused(|c| c.batch_bytes = usize::MAX, "batch_bytes");
        refused(|c| c.max_payload = 16 << 20, "max_payload");
        refused(|c| c.lazy_flush = Duration::ZERO, "lazy_flush");
        refused(|c| c.heartbeat = Duration::ZERO, "heartbeat");
        refused(|c| c.peer_timeout = c.heartbeat, "peer_timeout");
        refused(|c| c.handshake_timeout = Duration::ZERO, "handshake_timeout");
        refused(|c| c.backoff_min = Duration::ZERO, "backoff_min");
        refused(|c| c.backoff_max = Duration::ZERO, "backoff_max");
        refused(|c| c.checkpoint_every = Duration::ZERO, "checkpoint_every");
        refused(|c| c.pin_max_age = Duration::ZERO, "pin_max_age");
        refused(|c| c.slot_every = Duration::ZERO, "slot_every");
        refused(|c| c.retention_every = Duration::ZERO, "retention_every");
        refused(|c| c.scrub_every = Duration::ZERO, "scrub_every");
        refused(|c| c.max_connections = 0, "max_connections");
        refused(|c| c.lag_limit = 0, "lag_limit");
        refused(|c| c.max_snapshots = 0, "max_snapshots");
        refused(|c| c.snapshot_bytes_per_second = 1, "snapshot_bytes_per_second");
        refused(|c| c.snapshot_patience = Duration::ZERO, "snapshot_patience");
        refused(|c| c.slot = Some(String::new()), "slot");
    }

    #[test]
    fn a_node_belongs_to_its_group_and_plaintext_stays_home() {
        let mut stranger = config();
        stranger.node = NodeId::new("b").unwrap();
        assert!(matches!(stranger.check(), Err(ConfigError::NotAMember { .. })));
        let mut open = config();
        open.listen = Some(Address::Tcp("0.0.0.0:7000".into()));
        assert!(matches!(open.clone().check(), Err(ConfigError::PlaintextRefused { .. })));
        open.plaintext = Plaintext::Allowed;
        assert!(open.check().is_ok());
    }
}
