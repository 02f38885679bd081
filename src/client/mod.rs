//! What a program outside a group uses to speak to its nodes: operators' orders, and requests to the service that the
//! embedder offers over them.

mod connection;
mod error;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::clock::{Wait, deadline_in};
use crate::ids::{GroupId, NodeId, VlsnRange};
use crate::runtime::Runtime;
use crate::watermark::rest;
use crate::wire::message::{Control, ControlReply, EntryRequest, Message, Order, Request, Survey};

use connection::{Connection, Unsaid};
pub use error::{ClientError, Unreached, Why};

/// How long one address may take to connect to before the next is tried.
const REACH: Duration = Duration::from_secs(1);
/// The first pause between two rounds in search of the master, and the longest; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// So many hints are followed one after the other without a pause: nodes that each take another for master may send a
/// client in circles.
const MAX_HOPS: u32 = 4;

/// Speaks to the nodes of a group, with one of them at a time.
///
/// It connects when it first has something to say, and stays connected until that node fails it or it is told to turn
/// elsewhere. It blocks real threads, so it is not for simulations.
pub struct Client {
    runtime: Arc<dyn Runtime>,
    addresses: Vec<Address>,
    /// Whom it speaks to, or will: one of the addresses or one that it was told of.
    at: Option<Address>,
    /// Which of the addresses comes next.
    next: usize,
    connection: Option<Connection>,
    reach: Duration,
}

impl Client {
    /// A client of the nodes that listen at these addresses. Nobody is dialled yet.
    pub fn new(addresses: Vec<Address>, runtime: Arc<dyn Runtime>) -> Client {
        Client { runtime, addresses, at: None, next: 0, connection: None, reach: REACH }
    }

    /// Sets how long one address may take to connect to before the next is tried; 1 s unless set.
    #[must_use]
    pub fn reach(mut self, reach: Duration) -> Client {
        self.reach = reach;
        self
    }

    /// Whom it speaks to, or tries first.
    pub fn at(&self) -> Option<&Address> {
        self.at.as_ref().or(self.addresses.get(self.next))
    }

    /// Speaks to this node from now on, as long as it can be reached.
    pub fn turn_to(&mut self, address: &Address) {
        if self.at.as_ref() != Some(address) {
            self.connection = None;
            self.at = Some(address.clone());
        }
    }

    /// Speaks to the next of its addresses from now on.
    pub fn turn_away(&mut self) {
        self.connection = None;
        if self.at.take().is_none_or(|at| self.addresses.get(self.next) == Some(&at)) {
            self.next = (self.next + 1) % self.addresses.len().max(1);
        }
    }

    /// Gives an order to the node that it speaks to, or to the first that can be reached.
    ///
    /// # Errors
    /// [`ClientError`]. An order that got no answer is not given again: it may have been carried out.
    pub fn order(&mut self, group: GroupId, order: Order, wait: Wait) -> Result<ControlReply, ClientError> {
        if let Some((field, len)) = order.misfit() {
            return Err(ClientError::Misfit { field, len });
        }
        let message = Message::Control(Control { group, order });
        self.exchange(&message, wait, |answer| match answer {
            Message::ControlReply(reply) => Some(reply),
            _ => None,
        })
    }

    /// Gives an order to the master, whom the nodes name: goes where they say, and round its addresses with short pauses
    /// while they name nobody.
    ///
    /// # Errors
    /// [`ClientError`]. An order that got no answer is not given again: it may have been carried out.
    pub fn to_master(
        &mut self,
        group: GroupId,
        order: Order,
        wait: Wait,
    ) -> Result<ControlReply, ClientError> {
        let mut search = Search::new();
        loop {
            let hint = match self.order(group, order.clone(), wait) {
                Ok(ControlReply::NotMaster { hint }) => hint,
                Ok(reply) => return Ok(reply),
                Err(ClientError::Unreachable { .. }) => None,
                Err(error) => return Err(error),
            };
            if !search.go_on(self, hint.as_ref(), wait) {
                return Err(ClientError::NoMaster { hint });
            }
        }
    }

    /// Sends a request to the service of the node that it speaks to, or of the first that can be reached, and returns
    /// the service's answer.
    ///
    /// # Errors
    /// [`ClientError`]. A request that got no answer is not sent again: it may have been carried out.
    pub fn request(&mut self, group: GroupId, body: &[u8], wait: Wait) -> Result<Vec<u8>, ClientError> {
        let message = Message::Request(Request { group, body });
        self.exchange(&message, wait, |answer| match answer {
            Message::Response(response) => Some(response.body.to_vec()),
            _ => None,
        })
    }

    /// Asks for entries as they stand in a node's log: as many of the range, from its first on, as fit one answer; `None`
    /// if the node has not got the first.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn entries(
        &mut self,
        group: GroupId,
        range: VlsnRange,
        wait: Wait,
    ) -> Result<Option<Vec<u8>>, ClientError> {
        let node = NodeId::new("repair").unwrap_or_else(|_| unreachable!("a good name"));
        let survey = Message::Survey(Survey { group, node, after: None });
        self.exchange(&survey, wait, |answer| matches!(answer, Message::SurveyReply(_)).then_some(()))?;
        let (from, to) = (range.first(), range.last());
        let request = EntryRequest { from, to, max_entries: u32::MAX, max_bytes: u32::MAX };
        self.exchange(&Message::EntryRequest(request), wait, |answer| match answer {
            Message::Entries(entries) => Some(Some(entries.run.to_vec())),
            Message::Nack(_) => Some(None),
            _ => None,
        })
    }

    /// Says something to whoever can be reached, and reads the answer.
    fn exchange<T>(
        &mut self,
        message: &Message<'_>,
        wait: Wait,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        if let Some(mut kept) = self.connection.take() {
            match kept.say(message, wait) {
                Ok(()) => return self.hear(kept, wait, read),
                Err(Unsaid::TooLong { len, limit }) => {
                    self.connection = Some(kept);
                    return Err(ClientError::TooLong { len, limit });
                }
                // It broke since it was last used.
                Err(Unsaid::Failed(_)) => {}
            }
        }
        let mut tried = Vec::new();
        // Whom it was told of comes before the addresses that it was given.
        let told = self.at() != self.addresses.get(self.next);
        for _ in 0..self.addresses.len() + usize::from(told) {
            let Some(address) = self.at().cloned() else { break };
            let why = match Connection::open(&*self.runtime, &address, wait.at_most(deadline_in(self.reach)))
            {
                Err(why) => why,
                Ok(mut connection) => match connection.say(message, wait) {
                    Ok(()) => {
                        self.at = Some(address);
                        return self.hear(connection, wait, read);
                    }
                    Err(Unsaid::TooLong { len, limit }) => return Err(ClientError::TooLong { len, limit }),
                    Err(Unsaid::Failed(why)) => why,
                },
            };
            tried.push(Unreached { address, why });
            self.turn_away();
            if over(wait) {
                break;
            }
        }
        Err(if tried.is_empty() { ClientError::NoAddress } else { ClientError::Unreachable { tried } })
    }

    /// Reads the answer to what was said. The connection is kept only if it was read: a later answer would be taken for
    /// that to another question.
    fn hear<T>(
        &mut self,
        mut connection: Connection,
        wait: Wait,
        read: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<T, ClientError> {
        let heard = connection.hear(wait, read);
        match &heard {
            Ok(_) => self.connection = Some(connection),
            // The next one is more likely to answer.
            Err(ClientError::Unanswered { .. }) => self.turn_away(),
            Err(_) => {}
        }
        heard
    }
}

/// The search for the master: whom to turn to next, and when to pause.
///
/// For protocols of an embedder's own, whose answers name the master in a form of their own: after each answer that it was
/// not the master, or no answer at all, [`go_on`](Search::go_on) turns the client to the next candidate.
#[derive(Debug)]
pub struct Search {
    hops: u32,
    turned: usize,
    pause: Duration,
}

impl Default for Search {
    fn default() -> Search {
        Search::new()
    }
}

impl Search {
    /// A search that begins.
    pub fn new() -> Search {
        Search { hops: 0, turned: 0, pause: FIRST_PAUSE }
    }

    /// Turns the client to the hint, or else to its next address, and pauses when all were asked. `false`: `wait` is over.
    pub fn go_on(&mut self, client: &mut Client, hint: Option<&Address>, wait: Wait) -> bool {
        match hint {
            Some(hint) if self.hops < MAX_HOPS && client.at() != Some(hint) => {
                self.hops += 1;
                client.turn_to(hint);
            }
            _ => {
                client.turn_away();
                self.turned += 1;
                if self.hops > 0 || self.turned >= client.addresses.len() {
                    (self.hops, self.turned) = (0, 0);
                    return self.pause(wait);
                }
            }
        }
        !over(wait)
    }

    /// Pauses before the same node is asked again. `false`: `wait` is over.
    pub fn pause(&mut self, wait: Wait) -> bool {
        rest(wait.at_most(deadline_in(self.pause)));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        !over(wait)
    }
}

fn over(wait: Wait) -> bool {
    wait.remaining().is_some_and(|left| left.is_zero())
}
