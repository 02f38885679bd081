//! The configuration file of a node, in TOML: every knob under its own name, durations in milliseconds, sizes in bytes.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use quorate::{
    Address, Compression, Config, ConfigError, Member, Members, NodeConfig, NodeId, Plaintext, Role,
};
use serde::Deserialize;

/// What a file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    group: String,
    node: String,
    dir: Option<PathBuf>,
    listen: Option<String>,
    advertise: Option<String>,
    #[serde(default)]
    found: bool,
    #[serde(default)]
    seeds: Vec<String>,
    #[serde(default)]
    members: Vec<Founder>,
    role: Option<String>,
    region: Option<String>,
    priority: Option<u8>,
    upstream: Option<String>,
    slot: Option<String>,
    election_timeout_ms: Option<u64>,
    segment_bytes: Option<u64>,
    max_payload: Option<usize>,
    max_frame: Option<u32>,
    batch_bytes: Option<usize>,
    lazy_flush_ms: Option<u64>,
    heartbeat_ms: Option<u64>,
    peer_timeout_ms: Option<u64>,
    handshake_timeout_ms: Option<u64>,
    backoff_min_ms: Option<u64>,
    backoff_max_ms: Option<u64>,
    checkpoint_every_ms: Option<u64>,
    lag_limit: Option<u64>,
    max_connections: Option<usize>,
    compression: Option<String>,
    plaintext: Option<String>,
}

/// A member of the list with which a group is founded.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Founder {
    node: String,
    address: Option<String>,
    role: Option<String>,
    region: Option<String>,
    priority: Option<u8>,
}

/// A node as its file describes it, checked.
#[derive(Clone)]
pub struct NodeFile {
    /// What the node is opened with.
    pub config: NodeConfig,
    /// Whether the node founds its group if its directory is new and no seed knows of the group.
    pub found: bool,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("can't read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// It is no TOML, or has a key that is not known, not there, or of another type.
    #[error("{}: {error}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: toml::de::Error,
    },
    /// A key's value makes no sense.
    #[error("{}: {key}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// A key and what is wrong with its value.
struct Bad(String, String);

impl NodeFile {
    /// Reads a file. Relative paths in it begin at its own directory.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(path: &Path) -> Result<NodeFile, FileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| FileError::Read { path: path.to_owned(), error })?;
        NodeFile::parse(&text, path)
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn parse(text: &str, path: &Path) -> Result<NodeFile, FileError> {
        let file: File =
            toml::from_str(text).map_err(|error| FileError::Toml { path: path.to_owned(), error })?;
        let root = path.parent().unwrap_or(Path::new(""));
        file.into_node(root).map_err(|Bad(key, why)| FileError::Value { path: path.to_owned(), key, why })
    }

    /// Every address in it at which a node of the group may be reached, this node's first.
    pub fn addresses(&self) -> Vec<Address> {
        let NodeConfig { base, seeds, advertise, .. } = &self.config;
        let own = advertise.as_ref().or(base.listen.as_ref());
        let members = base.members.iter().filter_map(|member| member.address.as_ref());
        let mut all = Vec::new();
        for address in own.into_iter().chain(seeds).chain(members) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }
}

impl File {
    fn into_node(self, root: &Path) -> Result<NodeFile, Bad> {
        let node: NodeId = parsed("node", &self.node)?;
        let dir = root.join(self.dir.unwrap_or_else(|| node.as_str().into()));
        let mut base = Config::new(parsed("group", &self.group)?, node, dir);
        base.listen = optional("listen", self.listen)?;
        base.upstream = optional("upstream", self.upstream)?;
        base.slot = self.slot;
        set(&mut base.segment_bytes, self.segment_bytes);
        set(&mut base.max_payload, self.max_payload);
        set(&mut base.max_frame, self.max_frame);
        set(&mut base.batch_bytes, self.batch_bytes);
        set(&mut base.lazy_flush, self.lazy_flush_ms.map(Duration::from_millis));
        set(&mut base.heartbeat, self.heartbeat_ms.map(Duration::from_millis));
        set(&mut base.peer_timeout, self.peer_timeout_ms.map(Duration::from_millis));
        set(&mut base.handshake_timeout, self.handshake_timeout_ms.map(Duration::from_millis));
        set(&mut base.backoff_min, self.backoff_min_ms.map(Duration::from_millis));
        set(&mut base.backoff_max, self.backoff_max_ms.map(Duration::from_millis));
        set(&mut base.checkpoint_every, self.checkpoint_every_ms.map(Duration::from_millis));
        set(&mut base.lag_limit, self.lag_limit);
        set(&mut base.max_connections, self.max_connections);
        let compression = [("off", Compression::Off), ("lz4", Compression::Lz4)];
        set(&mut base.compression, one_of("compression", self.compression.as_deref(), &compression)?);
        let plaintext = [("loopback-only", Plaintext::LoopbackOnly), ("allowed", Plaintext::Allowed)];
        set(&mut base.plaintext, one_of("plaintext", self.plaintext.as_deref(), &plaintext)?);

        let mut config = NodeConfig::new(base);
        set(&mut config.role, role("role", self.role.as_deref())?);
        set(&mut config.region, self.region);
        set(&mut config.priority, self.priority);
        set(&mut config.election_timeout, self.election_timeout_ms.map(Duration::from_millis));
        config.advertise = optional("advertise", self.advertise)?;
        config.seeds = self.seeds.iter().map(|seed| parsed("seeds", seed)).collect::<Result<_, _>>()?;
        let own = Member {
            role: config.role,
            region: config.region.clone(),
            priority: config.priority,
            address: config.advertise.clone().or_else(|| config.base.listen.clone()),
            ..Member::electable(config.base.node.clone())
        };
        if self.found {
            config.base.members = founders(self.members, own)?;
        } else if !self.members.is_empty() {
            return Err(bad(
                "members",
                "they belong to a group's founding: set found = true, or leave them out",
            ));
        }
        config.base.clone().check().map_err(named)?;
        config.check().map_err(named)?;
        Ok(NodeFile { config, found: self.found })
    }
}

/// The members with which the group is founded: those listed, or this node alone.
fn founders(listed: Vec<Founder>, own: Member) -> Result<Members, Bad> {
    let mut members = Vec::new();
    for founder in listed {
        let mut member = Member::electable(parsed("members.node", &founder.node)?);
        member.address = optional("members.address", founder.address)?;
        set(&mut member.role, role("members.role", founder.role.as_deref())?);
        set(&mut member.region, founder.region);
        set(&mut member.priority, founder.priority);
        members.push(member);
    }
    if members.is_empty() {
        members.push(own);
    }
    Members::new(members).map_err(|why| bad("members", why))
}

fn bad(key: &str, why: impl ToString) -> Bad {
    Bad(key.to_owned(), why.to_string())
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn parsed<T: FromStr<Err: ToString>>(key: &str, text: &str) -> Result<T, Bad> {
    text.parse().map_err(|why: T::Err| bad(key, why))
}

fn optional<T: FromStr<Err: ToString>>(key: &str, text: Option<String>) -> Result<Option<T>, Bad> {
    text.map(|text| parsed(key, &text)).transpose()
}

fn one_of<T: Copy>(key: &str, text: Option<&str>, choices: &[(&str, T)]) -> Result<Option<T>, Bad> {
    let Some(text) = text else { return Ok(None) };
    match choices.iter().find(|(name, _)| *name == text) {
        Some((_, choice)) => Ok(Some(*choice)),
        None => {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            Err(bad(key, format!("{text:?} is none of {}", names.join(", "))))
        }
    }
}

fn role(key: &str, text: Option<&str>) -> Result<Option<Role>, Bad> {
    let roles = [("electable", Role::Electable), ("secondary", Role::Secondary), ("arbiter", Role::Arbiter)];
    one_of(key, text, &roles)
}

/// The keys of durations say their unit; the library's fields don't.
const DURATIONS: [&str; 8] = [
    "lazy_flush",
    "heartbeat",
    "peer_timeout",
    "handshake_timeout",
    "backoff_min",
    "backoff_max",
    "checkpoint_every",
    "election_timeout",
];

/// The library's complaint, under the key of the file.
fn named(error: ConfigError) -> Bad {
    match error {
        ConfigError::OutOfBounds { field, value, bounds } => {
            let unit = if DURATIONS.contains(&field) { "_ms" } else { "" };
            Bad(format!("{field}{unit}"), format!("{value} is out of bounds: it has to be {bounds}"))
        }
        ConfigError::NotAMember { .. } => bad("members", error),
        ConfigError::PlaintextRefused { address } => bad(
            "plaintext",
            format!(
                "{address} leaves this machine without encryption; write plaintext = \"allowed\" if the network is trusted"
            ),
        ),
        ConfigError::WrongRole { field, .. } => bad(field, error),
    }
}

#[cfg(test)]
#[path = "config_file_tests.rs"]
mod tests;
