//! A client of the key-value service that finds the master.

use std::sync::Arc;
use std::time::Duration;

use quorate::client::{Client, ClientError, Search};
use quorate::clock::{Wait, deadline_in};
use quorate::runtime::ThreadRuntime;
use quorate::wire::message::RejectReason;
use quorate::{Address, GroupId};

use super::codec::{Act, Answer, BadBytes, Request};

/// How long one node may take to answer something that can be asked again elsewhere.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The node is to answer so much before the client gives up, to be heard.
const MARGIN: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No node answered.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer can't be read: a write may or may not have been done.
    #[error("the answer of {address} can't be read: {error}")]
    Answer {
        /// Whose.
        address: String,
        /// What is wrong.
        error: BadBytes,
    },
}

impl CallError {
    /// Whether a write may have been done all the same.
    pub fn may_be_done(&self) -> bool {
        match self {
            CallError::Client(error) => error.may_be_done(),
            CallError::Answer { .. } => true,
        }
    }
}

/// Speaks to the service of a group's nodes, one request at a time.
pub struct KvClient {
    client: Client,
    group: GroupId,
}

impl KvClient {
    /// A client of the nodes at these addresses.
    pub fn new(addresses: Vec<Address>, group: GroupId) -> KvClient {
        KvClient { client: Client::new(addresses, Arc::new(ThreadRuntime)), group }
    }

    /// Sets how long connecting to one address may take.
    #[allow(dead_code, reason = "the command takes the default")]
    #[must_use]
    pub fn reach(self, reach: Duration) -> KvClient {
        KvClient { client: self.client.reach(reach), ..self }
    }

    /// Asks the master, or for a stale read any node, until there is an answer or `wait` is over: goes where nodes say that
    /// the master is, and tries again what was not done for a reason that passes. A write that may have been done is never
    /// sent again.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn call(&mut self, act: &Act<'_>, wait: Wait) -> Result<Answer, CallError> {
        let mut search = Search::new();
        let repeatable = matches!(act, Act::Get { .. } | Act::Ask { .. });
        loop {
            let attempt = if repeatable { wait.at_most(deadline_in(ATTEMPT)) } else { wait };
            let left = attempt.remaining().unwrap_or(Duration::MAX);
            let patience = left - MARGIN.min(left / 5);
            let body = Request { patience, act: act.clone() }.encode();
            let (again, last) = match self.client.request(self.group, &body, attempt) {
                Ok(bytes) => match Answer::decode(&bytes) {
                    Ok(Answer::NotMaster { hint }) => {
                        (search.go_on(&mut self.client, hint.as_ref(), wait), Ok(Answer::NotMaster { hint }))
                    }
                    Ok(Answer::Refused { temporary: true, why }) => {
                        (search.pause(wait), Ok(Answer::Refused { temporary: true, why }))
                    }
                    Ok(answer) => return Ok(answer),
                    Err(error) => {
                        let address = self.client.at().map(Address::to_string).unwrap_or_default();
                        return Err(CallError::Answer { address, error });
                    }
                },
                Err(error) if passes(&error, repeatable) => {
                    (search.go_on(&mut self.client, None, wait), Err(error.into()))
                }
                Err(error) => return Err(error.into()),
            };
            if !again {
                return last;
            }
        }
    }
}

/// Whether it is worth asking somebody else.
fn passes(error: &ClientError, repeatable: bool) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Rejected { reason, .. } => matches!(reason, RejectReason::Busy),
        ClientError::Unanswered { .. } => repeatable,
        _ => false,
    }
}
