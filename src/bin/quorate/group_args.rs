//! How the commands that speak to a running group name it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate::client::{Client, ClientError};
use quorate::clock::{Wait, deadline_in};
use quorate::runtime::ThreadRuntime;
use quorate::wire::message::{Order, RejectReason};
use quorate::{Address, GroupId};

use crate::Failure;
use crate::config_file::group_in;

/// Which group is meant, and where its nodes listen.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("whom").args(["at", "config"]).required(true).multiple(true))]
pub struct GroupArgs {
    /// Where nodes of the group listen: any of them, as many as are known
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    at: Vec<Address>,
    /// The configuration file of a node, which names the group and addresses
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The group; if it is named neither here nor in a file, the group of the first node that answers
    #[arg(long, value_name = "ID")]
    group: Option<GroupId>,
    /// How long all of it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// A group to speak to.
pub struct Contact {
    /// Where its nodes listen, as far as was said.
    pub addresses: Vec<Address>,
    /// Which it is.
    pub group: GroupId,
    /// How long all of it may take.
    pub wait: Wait,
}

impl GroupArgs {
    /// Finds out which group is meant.
    ///
    /// # Errors
    /// If the file can't be read, or no node tells its group.
    pub fn contact(&self) -> Result<Contact, Failure> {
        let wait = Wait::Until(deadline_in(Duration::from_secs(self.timeout)));
        let (group, named) = match self.config.as_deref().map(group_in).transpose()? {
            Some((group, named)) => (Some(group), named),
            None => (None, Vec::new()),
        };
        let addresses = if self.at.is_empty() { named } else { self.at.clone() };
        let group = match self.group.or(group) {
            Some(group) => group,
            None => group_of(&addresses, wait)?,
        };
        Ok(Contact { addresses, group, wait })
    }
}

impl Contact {
    /// A client of the group's nodes.
    pub fn client(&self) -> Client {
        client(&self.addresses)
    }
}

/// A client of the nodes at these addresses.
pub fn client(addresses: &[Address]) -> Client {
    Client::new(addresses.to_vec(), Arc::new(ThreadRuntime))
}

/// The group of the first node that answers: one that is asked for a group that is none names its own.
fn group_of(addresses: &[Address], wait: Wait) -> Result<GroupId, Failure> {
    let nobodys = GroupId::from_bits(0);
    match client(addresses).order(nobodys, Order::Status, wait) {
        Err(ClientError::Rejected { reason: RejectReason::WrongGroup { ours }, .. }) => Ok(ours),
        Ok(_) => Ok(nobodys),
        Err(error) => Err(error.into()),
    }
}
