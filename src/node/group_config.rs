//! What a node of a group that runs itself has to know beside what every node has.

use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::archive::ArchiveConfig;
use crate::config::{Config, ConfigError, Plaintext};
use crate::election::{Builtin, Coordinator};
use crate::members::{Members, Role};

/// What a node of a group that runs itself needs to know before it opens.
#[derive(Clone)]
pub struct NodeConfig {
    /// What every node needs to know. `members` are the founders, and matter only where a group is founded; the same
    /// list on every founder. `upstream`, if set, feeds this node in the master's place: for a [`Role::Secondary`] only.
    pub base: Config,
    /// What the node is to its group. Default electable.
    pub role: Role,
    /// Where it stands, for region-aware quorums. Default nowhere.
    pub region: String,
    /// Who is preferred as master among those who may win: the highest. Default 100; 0 leads only while nobody else can.
    pub priority: u8,
    /// Addresses at which a joining node finds its group; any members will do.
    pub seeds: Vec<Address>,
    /// The address that others dial, if it is not the one to listen at.
    pub advertise: Option<Address>,
    /// A master that was not heard for this time may be replaced; nodes stand after one to two of it. Default 600 ms;
    /// at least three heartbeats, at most 1 minute.
    pub election_timeout: Duration,
    /// Who may stand for election. Default: everybody.
    pub coordinator: Arc<dyn Coordinator>,
    /// Where to archive while this node leads. Default: nowhere.
    pub archive: Option<ArchiveConfig>,
}

impl NodeConfig {
    /// A configuration with default values around this one.
    pub fn new(base: Config) -> NodeConfig {
        NodeConfig {
            base,
            role: Role::Electable,
            region: String::new(),
            priority: 100,
            seeds: Vec::new(),
            advertise: None,
            election_timeout: Duration::from_millis(600),
            coordinator: Arc::new(Builtin),
            archive: None,
        }
    }

    /// Checks what stands here beside `base`, against bounds and against each other. Opening a node does it too.
    ///
    /// # Errors
    /// [`ConfigError`], for the first field that does not fit.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (timeout, beat) = (self.election_timeout, self.base.heartbeat);
        if timeout < beat * 3 || timeout > Duration::from_secs(60) {
            return Err(ConfigError::OutOfBounds {
                field: "election_timeout",
                value: format!("{timeout:?}"),
                bounds: "three heartbeats to 1 minute",
            });
        }
        if self.base.upstream.is_some() && self.role != Role::Secondary {
            return Err(ConfigError::WrongRole { field: "upstream", role: "voter" });
        }
        if self.base.slot.is_some() && self.role == Role::Arbiter {
            return Err(ConfigError::WrongRole { field: "slot", role: "arbiter" });
        }
        if let Some(archive) = &self.archive {
            if self.role != Role::Electable {
                return Err(ConfigError::WrongRole { field: "archive", role: "node that never leads" });
            }
            archive.check()?;
        }
        if self.region.len() > Members::MAX_REGION {
            let bounds = "at most 64 bytes long";
            return Err(ConfigError::OutOfBounds { field: "region", value: self.region.clone(), bounds });
        }
        if self.base.plaintext == Plaintext::LoopbackOnly {
            for address in self.seeds.iter().chain(&self.advertise) {
                if !address.stays_on_this_machine() {
                    return Err(ConfigError::PlaintextRefused { address: address.clone() });
                }
            }
        }
        Ok(())
    }
}
