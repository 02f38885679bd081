//! Clients: each does one thing after the other, and everything it did and was told goes into the history.

use quorate::clock::{Deadline, Wait};
use quorate::node::ReadTicket;
use quorate::{Answer, NewEntry, Node, Outcome as Told, Policy, ReadError, Ticket, Token};

use super::history::{Call, Outcome};
use super::store::encode;
use super::{Cluster, Violation, ms};

const KEYS: u64 = 4;

/// One client. It remembers the version that it last saw of each key.
pub(super) struct Client {
    number: usize,
    seen: [u64; KEYS as usize],
    open: Option<Open>,
    /// When its last write was told to have taken effect.
    wrote: Option<Deadline>,
    /// It begins nothing more.
    rests: bool,
}

struct Open {
    /// In the history.
    number: usize,
    key: u64,
    /// Which node it talks to, and in which of its lives.
    at: usize,
    life: u64,
    patience: Deadline,
    stage: Stage,
}

enum Stage {
    Writing(Ticket),
    /// It was told that its write is committed, and waits for the engine to show what came of it.
    Shown(Token),
    /// The node that it talked to is gone: it asks others about the token.
    Asking(Token),
    Reading(ReadTicket),
}

impl Client {
    pub fn new(number: usize) -> Client {
        Client { number, seen: [0; KEYS as usize], open: None, wrote: None, rests: false }
    }

    pub fn wrote_since(&self, when: Deadline) -> bool {
        self.wrote.is_some_and(|wrote| wrote >= when)
    }
}

impl Cluster {
    pub(super) fn step_clients(&mut self) -> Result<(), Violation> {
        for at in 0..self.clients.len() {
            match self.clients[at].open.take() {
                Some(open) => self.go_on(at, open)?,
                None if !self.clients[at].rests && self.rng.chance(0.3) => self.begin(at),
                None => {}
            }
        }
        Ok(())
    }

    /// Whether all clients are done; from now on they begin nothing, if they are to rest.
    pub(super) fn clients_rest(&mut self, rest: bool) -> bool {
        self.clients.iter_mut().for_each(|client| client.rests |= rest);
        self.clients.iter().all(|client| client.rests && client.open.is_none())
    }

    fn begin(&mut self, client: usize) {
        let key = self.rng.below(KEYS);
        let call = match self.rng.below(10) {
            0..4 => Call::Get,
            4..7 => Call::Put { value: self.new_value() },
            7..9 => Call::Cas { expected: self.clients[client].seen[key as usize], value: self.new_value() },
            _ => Call::Delete,
        };
        // Mostly who leads, as far as anybody can tell; sometimes anybody.
        let leading: Vec<usize> =
            self.up().filter(|(_, node)| node.leads().is_some()).map(|(at, _)| at).collect();
        // Two may hold themselves for master, of whom one is stale.
        let any = self.rng.index(leading.len());
        let leads = leading.get(any).copied().filter(|_| self.rng.chance(0.9));
        let at = leads.unwrap_or_else(|| self.rng.index(self.places.len()));
        let Some(node) = self.node(at) else { return };
        let now = self.now();
        let (life, patience) = (self.places[at].life, now + ms(self.rng.clone().between(5, 150)));
        let open = |number, stage| Some(Open { number, key, at, life, patience, stage });
        if call == Call::Get {
            let Ok(ticket) = node.read_begin() else { return };
            let number = self.history.begin(self.clients[client].number, key, call, now.as_nanos());
            self.clients[client].open = open(number, Stage::Reading(ticket));
            return;
        }
        let len = [0, 20, 300, 3000][self.rng.clone().index(4)];
        let payload = encode(key, call, len);
        let appended = node.append(&[NewEntry::data(&payload)], Policy::MAJORITY);
        let number = self.history.begin(self.clients[client].number, key, call, now.as_nanos());
        match appended {
            Ok(ticket) => {
                self.clients[client].open = open(number, Stage::Writing(ticket));
                self.record.tokens.push(ticket.token);
            }
            // Nothing was written.
            Err(_) => self.history.end(number, Outcome::Failed, now.as_nanos()),
        }
        self.rng.next_u64();
    }

    fn new_value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    fn go_on(&mut self, client: usize, mut open: Open) -> Result<(), Violation> {
        let now = self.now();
        let life = self.places[open.at].life;
        let node = self.node(open.at).filter(|_| life == open.life);
        let late = now >= open.patience;
        match (&open.stage, node) {
            (Stage::Reading(_), None) => {
                self.history.end(open.number, Outcome::Failed, now.as_nanos());
                return Ok(());
            }
            (Stage::Reading(ticket), Some(node)) => match node.read_ready(ticket, Wait::Now) {
                Ok(true) => {
                    let seen = self.places[open.at].store.lock().read(open.key);
                    self.clients[client].seen[open.key as usize] = seen.version;
                    self.history.end(open.number, Outcome::Read(seen), now.as_nanos());
                    return Ok(());
                }
                Ok(false) if !late => {}
                Ok(false) | Err(ReadError::NotMaster(_) | ReadError::TimedOut) => {
                    self.history.end(open.number, Outcome::Failed, now.as_nanos());
                    return Ok(());
                }
            },
            (Stage::Writing(ticket), None) => open.stage = Stage::Asking(ticket.token),
            (Stage::Writing(ticket), Some(node)) => match poll(node, ticket, late) {
                Ok(true) => {
                    let token = ticket.token;
                    let by = node.leads().filter(|leads| *leads == token.term);
                    self.told_committed(&token, by)?;
                    open.stage = Stage::Shown(token);
                }
                Ok(false) => {}
                Err(()) => open.stage = Stage::Asking(ticket.token),
            },
            (Stage::Shown(token), node) => {
                let token = *token;
                let here = node.map(|node| node.wait_for(&token, Wait::Now));
                if let Some(Err(error)) = here
                    && !matches!(error, quorate::TokenError::Stopped)
                {
                    return Err(format!("{token:?} was told committed, and then: {error}"));
                }
                if here == Some(Ok(true)) || here.is_none() || late {
                    // What the engines were given tells it, whoever applied it first.
                    if let Some(outcome) = self.result_of(&token)? {
                        self.end_write(client, &open, outcome);
                        return Ok(());
                    }
                }
            }
            (Stage::Asking(token), _) => {
                let token = *token;
                let any = self.rng.index(self.places.len());
                let answer = self.node(any).map_or(Answer::Unknown, |node| node.ask(&token));
                match answer {
                    Answer::Committed => {
                        self.told_committed(&token, None)?;
                        open.stage = Stage::Shown(token);
                    }
                    Answer::RolledBack => {
                        self.told_gone(&token)?;
                        self.history.end(open.number, Outcome::Failed, now.as_nanos());
                        return Ok(());
                    }
                    Answer::Unknown if now > open.patience + ms(300) => {
                        let at = Some(token.vlsn.get());
                        self.history.end(open.number, Outcome::Unknown { at }, now.as_nanos());
                        self.count("unknown");
                        return Ok(());
                    }
                    Answer::Unknown => {}
                }
            }
        }
        self.clients[client].open = Some(open);
        Ok(())
    }

    /// What came of a write that was told to be committed; `None` while no engine has it.
    fn result_of(&self, token: &Token) -> Result<Option<Outcome>, Violation> {
        let truth = self.truth.lock();
        let Some(given) = truth.at(token.vlsn.get()) else { return Ok(None) };
        if given.term != token.term.get() {
            return Err(format!(
                "{token:?} was told committed; the engines got an entry of term {}",
                given.term
            ));
        }
        given.result.map(Some).ok_or_else(|| format!("{token:?} names an entry that writes nothing"))
    }

    fn end_write(&mut self, client: usize, open: &Open, outcome: Outcome) {
        let now = self.now();
        self.history.end(open.number, outcome, now.as_nanos());
        let seen = match outcome {
            Outcome::Wrote(version) => version,
            Outcome::Mismatch(seen) => seen.version,
            _ => return,
        };
        self.clients[client].seen[open.key as usize] = seen;
        self.clients[client].wrote = Some(now);
    }
}

/// Whether the write is committed; an error if this node can't tell any more.
fn poll(node: &Node, ticket: &Ticket, late: bool) -> Result<bool, ()> {
    let told = if late { node.commit(ticket, Wait::Now).map(Some) } else { node.poll(ticket) };
    match told {
        Ok(Some(Told::Committed)) => Ok(true),
        Ok(None) => Ok(false),
        // A majority's acks are less than its commit.
        Ok(Some(_)) if !late => Ok(false),
        Ok(Some(_)) | Err(_) => Err(()),
    }
}
