//! Where a node can be reached.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a node. As text: `tcp://HOST:PORT` (or just `HOST:PORT`), `unix:PATH`, `local:NAME`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Address {
    /// A TCP host and port.
    Tcp(String),
    /// A Unix socket's path.
    Unix(PathBuf),
    /// A name within this process (or within a simulation).
    Local(String),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: write tcp://HOST:PORT, unix:PATH or local:NAME")]
pub struct BadAddress(String);

impl Address {
    /// Whether traffic to this address never leaves the machine: loopback, Unix sockets, and names in this process.
    /// A host name other than `localhost` counts as leaving it.
    pub fn stays_on_this_machine(&self) -> bool {
        match self {
            Address::Unix(_) | Address::Local(_) => true,
            Address::Tcp(host_port) => {
                let host = host_port.rsplit_once(':').map_or("", |(host, _)| host);
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

impl FromStr for Address {
    type Err = BadAddress;
    fn from_str(text: &str) -> Result<Address, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(Address::Unix(path.into())) };
        }
        if let Some(name) = text.strip_prefix("local:") {
            return if name.is_empty() { Err(bad()) } else { Ok(Address::Local(name.to_owned())) };
        }
        let host_port = text.strip_prefix("tcp://").unwrap_or(text);
        match host_port.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Address::Tcp(host_port.to_owned()))
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host_port) => write!(f, "tcp://{host_port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Local(name) => write!(f, "local:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_as_text() {
        for text in ["tcp://127.0.0.1:7000", "tcp://[::1]:7000", "unix:/run/q.sock", "local:m"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()).as_deref(), Ok(text));
        }
        assert_eq!("db1:7000".parse(), Ok(Address::Tcp("db1:7000".into())));
        for bad in ["", "db1", "db1:x", ":1", "unix:", "local:", "db1:99999"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
