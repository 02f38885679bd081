//! How a feeder and its replica stand, for people and programs.

use std::fmt;
use std::time::Duration;

use crate::ids::{NodeId, Vlsn};
use crate::members::Health;
use crate::progress::Positions;

/// What a feeder does at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FeederState {
    /// Nobody is connected.
    Idle,
    /// The handshake or the syncup is under way.
    Handshaking,
    /// The replica receives what it missed.
    CatchingUp,
    /// The replica is at the tip.
    Streaming,
    /// An operator paused it: heartbeats only.
    Paused,
    /// It is closing.
    Shutdown,
}

impl FeederState {
    /// All states, in the order of their numbers.
    pub(super) const ALL: [FeederState; 6] = [
        FeederState::Idle,
        FeederState::Handshaking,
        FeederState::CatchingUp,
        FeederState::Streaming,
        FeederState::Paused,
        FeederState::Shutdown,
    ];
}

impl fmt::Display for FeederState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FeederState::Idle => "idle",
            FeederState::Handshaking => "handshaking",
            FeederState::CatchingUp => "catching-up",
            FeederState::Streaming => "streaming",
            FeederState::Paused => "paused",
            FeederState::Shutdown => "shutdown",
        })
    }
}

/// How one replica stands, as its feeder sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicaStats {
    /// Its name.
    pub id: NodeId,
    /// Where it stands.
    pub region: String,
    /// What its feeder does.
    pub state: FeederState,
    /// How it fares.
    pub health: Health,
    /// Whether its directory holds what it acknowledged; only then does it count for anything.
    pub counts: bool,
    /// The last entry sent on this connection.
    pub sent: Option<Vlsn>,
    /// What it acknowledged.
    pub positions: Positions,
    /// How many entries it has yet to receive.
    pub lag_entries: u64,
    /// About how many bytes these are.
    pub lag_bytes: u64,
    /// The age of the oldest entry that was sent to it and not acknowledged.
    pub lag_time: Duration,
    /// For how long it has been connected; `None` if it is not.
    pub connected_for: Option<Duration>,
    /// How long ago anything was received from it; `None` if nothing ever was.
    pub last_seen: Option<Duration>,
    /// Why its last connection ended.
    pub last_error: Option<String>,
}
