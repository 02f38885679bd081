//! The configuration file of a node, in TOML: every knob under its own name, durations in milliseconds, sizes in bytes.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use quorate::archive::{ArchiveConfig, DirArchive};
use quorate::disk::RealDisk;
use quorate::runtime::{Runtime, ThreadRuntime};
use quorate::{
    Address, Compression, Config, ConfigError, GroupId, Member, Members, NodeConfig, NodeId, Plaintext, Role,
    Snapshots,
};
use serde::Deserialize;

/// What a file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    group: String,
    node: Option<String>,
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
    keep_bytes: Option<u64>,
    pin_max_bytes: Option<u64>,
    pin_max_age_ms: Option<u64>,
    disk_floor: Option<u64>,
    slot_every_ms: Option<u64>,
    retention_every_ms: Option<u64>,
    scrub_bytes_per_second: Option<u64>,
    scrub_every_ms: Option<u64>,
    snapshots: Option<String>,
    max_snapshots: Option<usize>,
    snapshot_bytes_per_second: Option<u64>,
    snapshot_patience_ms: Option<u64>,
    lag_limit: Option<u64>,
    max_connections: Option<usize>,
    compression: Option<String>,
    plaintext: Option<String>,
    archive: Option<ArchiveTable>,
}

/// Where the node archives while it leads.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveTable {
    dir: PathBuf,
    every_ms: Option<u64>,
    base_bytes: Option<u64>,
    bases: Option<usize>,
}

impl ArchiveTable {
    fn config(self, root: &Path) -> ArchiveConfig {
        let to = DirArchive::new(Arc::new(RealDisk), root.join(self.dir), ThreadRuntime.random());
        let mut config = ArchiveConfig::new(Arc::new(to));
        set(&mut config.every, self.every_ms.map(Duration::from_millis));
        set(&mut config.base_bytes, self.base_bytes);
        set(&mut config.bases, self.bases);
        config
    }
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
    /// Reads a file, as the configuration of this node if it names none or another. Relative paths in it begin at its own
    /// directory.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(path: &Path, node: Option<&NodeId>) -> Result<NodeFile, FileError> {
        NodeFile::parse(&text_of(path)?, path, node)
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn parse(text: &str, path: &Path, node: Option<&NodeId>) -> Result<NodeFile, FileError> {
        let mut file = File::parse(text, path)?;
        if let Some(node) = node {
            file.node = Some(node.to_string());
        }
        let root = path.parent().unwrap_or(Path::new(""));
        file.into_node(root).map_err(|bad| bad.at(path))
    }

    /// Where the other nodes that the file names listen.
    pub fn others(&self) -> Vec<Address> {
        let NodeConfig { base, seeds, advertise, .. } = &self.config;
        let own = [base.listen.as_ref(), advertise.as_ref()];
        seeds.iter().filter(|seed| !own.contains(&Some(seed))).cloned().collect()
    }
}

/// The group that a file is about, and every address in it at which a node of the group may be reached.
///
/// # Errors
/// [`FileError`].
pub fn group_in(path: &Path) -> Result<(GroupId, Vec<Address>), FileError> {
    let file = File::parse(&text_of(path)?, path)?;
    file.addresses().map_err(|bad| bad.at(path))
}

fn text_of(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|error| FileError::Read { path: path.to_owned(), error })
}

impl Bad {
    fn at(self, path: &Path) -> FileError {
        let Bad(key, why) = self;
        FileError::Value { path: path.to_owned(), key, why }
    }
}

impl File {
    fn parse(text: &str, path: &Path) -> Result<File, FileError> {
        toml::from_str(text).map_err(|error| FileError::Toml { path: path.to_owned(), error })
    }

    fn addresses(&self) -> Result<(GroupId, Vec<Address>), Bad> {
        let own = self.advertise.iter().map(|text| ("advertise", text));
        let own = own.chain(self.listen.iter().map(|text| ("listen", text))).take(1);
        let seeds = self.seeds.iter().map(|text| ("seeds", text));
        let members =
            self.members.iter().filter_map(|member| Some(("members.address", member.address.as_ref()?)));
        let mut all = Vec::new();
        for (key, text) in own.chain(seeds).chain(members) {
            let address = parsed(key, text)?;
            if !all.contains(&address) {
                all.push(address);
            }
        }
        Ok((parsed("group", &self.group)?, all))
    }

    /// What the list of founders says of the node fills in what the file does not say elsewhere.
    fn take_from_founders(&mut self, node: &str) {
        let Some(own) = self.members.iter().find(|member| member.node == node) else { return };
        if self.listen.is_none() {
            self.listen.clone_from(&own.address);
        }
        if self.role.is_none() {
            self.role.clone_from(&own.role);
        }
        if self.region.is_none() {
            self.region.clone_from(&own.region);
        }
        self.priority = self.priority.or(own.priority);
    }

    fn into_node(mut self, root: &Path) -> Result<NodeFile, Bad> {
        let Some(name) = self.node.take() else {
            return Err(bad("node", "no node is named: name it here, or with --node"));
        };
        let node: NodeId = parsed("node", &name)?;
        self.take_from_founders(&name);
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
        set(&mut base.keep_bytes, self.keep_bytes);
        set(&mut base.pin_max_bytes, self.pin_max_bytes);
        set(&mut base.pin_max_age, self.pin_max_age_ms.map(Duration::from_millis));
        set(&mut base.disk_floor, self.disk_floor);
        set(&mut base.slot_every, self.slot_every_ms.map(Duration::from_millis));
        set(&mut base.retention_every, self.retention_every_ms.map(Duration::from_millis));
        set(&mut base.scrub_bytes_per_second, self.scrub_bytes_per_second);
        set(&mut base.scrub_every, self.scrub_every_ms.map(Duration::from_millis));
        let snapshots = [("automatic", Snapshots::Automatic), ("manual", Snapshots::Manual)];
        set(&mut base.snapshots, one_of("snapshots", self.snapshots.as_deref(), &snapshots)?);
        set(&mut base.max_snapshots, self.max_snapshots);
        set(&mut base.snapshot_bytes_per_second, self.snapshot_bytes_per_second);
        set(&mut base.snapshot_patience, self.snapshot_patience_ms.map(Duration::from_millis));
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
        config.archive = self.archive.map(|archive| archive.config(root));
        config.advertise = optional("advertise", self.advertise)?;
        config.seeds = self.seeds.iter().map(|seed| parsed("seeds", seed)).collect::<Result<_, _>>()?;
        let mut founders = founders(self.members)?;
        for member in founders.iter().filter(|member| member.id != config.base.node) {
            config.seeds.extend(member.address.clone());
        }
        if self.found {
            if founders.is_empty() {
                // The node says the rest of itself when it opens.
                let own = config.base.node.clone();
                founders.push(Member { role: config.role, ..Member::electable(own) });
            }
            config.base.members = Members::new(founders).map_err(|why| bad("members", why))?;
        }
        config.base.clone().check().map_err(named)?;
        config.check().map_err(named)?;
        Ok(NodeFile { config, found: self.found })
    }
}

/// The members in the list of founders.
fn founders(listed: Vec<Founder>) -> Result<Vec<Member>, Bad> {
    let mut members = Vec::new();
    for founder in listed {
        let mut member = Member::electable(parsed("members.node", &founder.node)?);
        member.address = optional("members.address", founder.address)?;
        set(&mut member.role, role("members.role", founder.role.as_deref())?);
        set(&mut member.region, founder.region);
        set(&mut member.priority, founder.priority);
        members.push(member);
    }
    Ok(members)
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
const DURATIONS: [&str; 14] = [
    "archive.every",
    "lazy_flush",
    "heartbeat",
    "peer_timeout",
    "handshake_timeout",
    "backoff_min",
    "backoff_max",
    "checkpoint_every",
    "pin_max_age",
    "slot_every",
    "retention_every",
    "scrub_every",
    "snapshot_patience",
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
