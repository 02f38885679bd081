//! The key-value service that a node of the command offers over its port.

pub mod client;
pub mod codec;

use std::sync::{Arc, Weak};
use std::time::Duration;

use quorate::clock::{Wait, deadline_in};
use quorate::commit::Refused;
use quorate::{GroupId, NewEntry, Node, Policy, ReadError, Service, Ticket, Token, TokenError, WriteRefused};

use crate::kv::{Reader, Record, Verdict};
use codec::{Act, Answer, Request};

/// The longest that a request may take, whatever it asks for.
const MAX_PATIENCE: Duration = Duration::from_secs(60);

/// Writes through the node, and reads its store.
pub struct KvService {
    /// Not held: the node holds the service.
    node: Weak<Node>,
    group: GroupId,
    /// An arbiter has none, and only tells who is master.
    store: Option<Reader>,
}

impl KvService {
    /// Offers a node's store over the node's port.
    pub fn offer(node: &Arc<Node>, group: GroupId, store: Option<Reader>) {
        node.serve(Arc::new(KvService { node: Arc::downgrade(node), group, store }));
    }

    fn answer(&self, request: &[u8]) -> Answer {
        let Some(node) = self.node.upgrade() else { return refused(true, "the node closes") };
        let Request { patience, act } = match Request::decode(request) {
            Ok(request) => request,
            Err(why) => return refused(false, format!("the request can't be read: {why}")),
        };
        let wait = Wait::Until(deadline_in(patience.min(MAX_PATIENCE)));
        match act {
            Act::Put { policy, key, value } => {
                self.write(&node, Record::Put { key, value }, policy, wait).unwrap_or_else(written)
            }
            Act::Delete { policy, key } => {
                self.write(&node, Record::Delete { key }, policy, wait).unwrap_or_else(written)
            }
            Act::Cas { expected, key, value } => {
                match self.write(&node, Record::Cas { key, expected, value }, Policy::MAJORITY, wait) {
                    Err((ticket, _)) => self.verdict(&node, &ticket.token, wait),
                    Ok(answer) => answer,
                }
            }
            Act::Get { stale, key } => self.read(&node, stale, key, wait),
            Act::Ask { term, vlsn } => self.fate(&node, &Token { group: self.group, term, vlsn }, wait),
        }
    }

    /// Writes a record: what it came to, or else the answer.
    fn write(
        &self,
        node: &Node,
        record: Record<'_>,
        policy: Policy,
        wait: Wait,
    ) -> Result<Answer, (Ticket, quorate::Outcome)> {
        let mut payload = Vec::new();
        record.encode(&mut payload);
        let ticket = match node.append(&[NewEntry::data(&payload)], policy) {
            Ok(ticket) => ticket,
            Err(refusal) => return Ok(not_written(&refusal)),
        };
        match node.commit(&ticket, wait) {
            Ok(outcome) => Err((ticket, outcome)),
            // The entry may have been decided since.
            Err(error) => match node.ask(&ticket.token) {
                quorate::Answer::Committed => Err((ticket, quorate::Outcome::Committed)),
                quorate::Answer::RolledBack => Ok(Answer::RolledBack),
                quorate::Answer::Unknown => Ok(unknown(&ticket.token, error)),
            },
        }
    }

    /// What became of a conditional write that is committed.
    fn verdict(&self, node: &Node, token: &Token, wait: Wait) -> Answer {
        match node.wait_for(token, wait) {
            Ok(true) => {}
            Ok(false) => return unknown(token, "it is committed, and was not applied in time"),
            Err(TokenError::RolledBack { .. }) => return Answer::RolledBack,
            Err(error) => return unknown(token, error),
        }
        match self.store.as_ref().and_then(|store| store.verdict(token.vlsn)) {
            Some(Verdict::Done) => {
                Answer::Written { version: token.vlsn, outcome: quorate::Outcome::Committed }
            }
            Some(Verdict::Differs { found }) => Answer::Differs { found },
            None => unknown(token, "too many writes followed it"),
        }
    }

    /// What became of the entry of a token.
    fn fate(&self, node: &Node, token: &Token, wait: Wait) -> Answer {
        match node.ask(token) {
            quorate::Answer::RolledBack => Answer::RolledBack,
            quorate::Answer::Unknown => unknown(token, "this node can't tell, yet or any more"),
            quorate::Answer::Committed => match self.verdict(node, token, wait) {
                // Not every write has a verdict.
                Answer::Unknown { .. } | Answer::Written { .. } => Answer::Committed,
                answer => answer,
            },
        }
    }

    fn read(&self, node: &Node, stale: bool, key: &[u8], wait: Wait) -> Answer {
        let Some(store) = &self.store else {
            return Answer::NotMaster {
                hint: node.status().master.and_then(|id| node.members().find(&id)?.address.clone()),
            };
        };
        if !stale && let Err(error) = node.read_barrier(wait) {
            return match error {
                ReadError::NotMaster(refusal) => not_written(&refusal),
                ReadError::TimedOut => refused(true, error),
            };
        }
        match store.value(key) {
            Ok(Some((version, value))) => Answer::Found { version, value },
            Ok(None) => Answer::Absent,
            Err(error) => refused(false, format!("the store can't be read: {error}")),
        }
    }
}

impl Service for KvService {
    fn call(&self, request: &[u8]) -> Vec<u8> {
        self.answer(request).encode()
    }
}

fn written((ticket, outcome): (Ticket, quorate::Outcome)) -> Answer {
    Answer::Written { version: ticket.token.vlsn, outcome }
}

fn not_written(refusal: &WriteRefused) -> Answer {
    match refusal {
        WriteRefused::NotMaster { hint } => {
            Answer::NotMaster { hint: hint.as_ref().and_then(|(_, address)| address.clone()) }
        }
        WriteRefused::Refused(Refused::Ended(_)) => Answer::NotMaster { hint: None },
        other => refused(other.is_temporary(), other),
    }
}

fn refused(temporary: bool, why: impl ToString) -> Answer {
    Answer::Refused { temporary, why: why.to_string() }
}

fn unknown(token: &Token, why: impl ToString) -> Answer {
    Answer::Unknown { term: token.term, vlsn: token.vlsn, why: why.to_string() }
}

#[cfg(test)]
mod tests;
