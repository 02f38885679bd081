//! Elections, commits and changes of membership as a model that is searched through to the end, by stateright.
//!
//! What decides is the real code: [`judge`] gives votes, [`Campaign::tally`] counts them, [`agreed_in_term`] commits,
//! [`Members::changed`] makes lists. The model is what lies between: messages, disks, crashes.
//!
//! - Messages: whatever was sent may arrive at any time, any number of times, or never, in any order. So the network is
//!   not a set of messages but the right to do what one of them would do: a vote may be asked for as long as its candidate
//!   stands; what a master wrote in a term may reach anybody, entry by entry, for ever, also after its end. Within one
//!   session the order is the stream's: a cut comes before what follows it, and an ack speaks of what was matched.
//!   Nothing is lost by leaving out votes for candidates that have given up: they help nobody.
//! - Disks: promises are durable before they are told. Of a log a crash keeps what was flushed, and loses the rest.
//! - There is no time: every timeout may have passed, and no voter hears a master.
//! - Nodes that may play the same part are interchangeable, so of states that differ in nothing but names one is kept.
#![cfg(feature = "planted")]

use std::time::Duration;

use quorate::Change;
use quorate::ballot::{self, Answer, Promise, Voter as Judge};
use quorate::clock::Deadline;
use quorate::election::campaign::{Campaign, Tally};
use quorate::ids::{GroupId, LogEnd, NodeId, Term, Vlsn};
use quorate::members::{Admission, Member, Members, Role, Standing};
use quorate::planted::{Bug, plant};
use quorate::policy::Rule;
use quorate::progress::Positions;
use quorate::quorum::{Counts, Voter, agreed_in_term};
use quorate::wire::message::{Round, Vote, VoteReason, VoteReply};
use stateright::{Checker, HasDiscoveries, Model, Property};

const GROUP: GroupId = GroupId::from_bits(1);
/// What the arrays have room for; a model may use less.
const NODES: usize = 5;
const TERMS: usize = 4;
const ENTRIES: usize = 4;

/// An entry: its term, who appended it, and what it is. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Entry {
    term: u8,
    author: u8,
    what: u8,
}

const TERM_START: u8 = 1;
const DATA: u8 = 2;
/// From here on: the member list of this number.
const LIST: u8 = 3;

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.what {
            TERM_START => "start".to_owned(),
            DATA => "data".to_owned(),
            list => format!("list {}", list - LIST),
        };
        write!(f, "{what}@{}", self.term)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Log {
    len: u8,
    entries: [Entry; ENTRIES],
}

/// Of a node whose directory is new.
const NEWCOMER: u8 = u8::MAX;

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.slice().fmt(f)
    }
}

impl Log {
    fn slice(&self) -> &[Entry] {
        &self.entries[..usize::from(self.len)]
    }

    fn push(&mut self, entry: Entry) {
        self.entries[usize::from(self.len)] = entry;
        self.len += 1;
    }

    fn cut(&mut self, len: u8) {
        self.entries[usize::from(len)..].fill(Entry::default());
        self.len = self.len.min(len);
    }

    /// How many entries both begin with.
    fn common(&self, other: &Log) -> u8 {
        self.slice().iter().zip(other.slice()).take_while(|(a, b)| a == b).count() as u8
    }

    fn starts_with(&self, other: &[Entry]) -> bool {
        self.slice().starts_with(other)
    }

    fn end(&self) -> LogEnd {
        self.slice().last().map_or(LogEnd::EMPTY, |last| end(last.term, self.len))
    }
}

fn end(term: u8, vlsn: u8) -> LogEnd {
    LogEnd { term: Term::new(term.into()), vlsn: Vlsn::new(vlsn.into()) }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
enum Phase {
    #[default]
    Follows,
    Stands,
    Leads,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
struct Node {
    /// The promise: the term, and whom the vote went to, counted from 1.
    term: u8,
    vote: u8,
    phase: Phase,
    /// Who voted for it, while it stands.
    votes: u8,
    log: Log,
    flushed: u8,
    /// An arbiter's mark: term and VLSN. A newcomer's: the term of the master that it follows, and what that had when it
    /// came.
    mark: (u8, u8),
    /// The term in which it came to stand: see [`Standing`].
    since: u8,
    /// How far each node acknowledged, while it leads.
    acks: [u8; NODES],
}

/// What a term has seen: all that its master ever wrote, and how far it committed that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
struct Led {
    /// Who won, as bits.
    winners: u8,
    log: Log,
    /// How far the master told an arbiter that it flushed.
    flushed: u8,
    committed: u8,
}

impl Led {
    fn master(&self) -> Option<usize> {
        (self.winners != 0).then(|| self.winners.trailing_zeros() as usize)
    }

    fn committed(&self) -> &[Entry] {
        &self.log.slice()[..usize::from(self.committed)]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
struct State {
    nodes: [Node; NODES],
    /// By term, from 1 on.
    led: [Led; TERMS],
    /// How many directories were lost.
    wiped: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Stand(usize),
    Vote {
        voter: usize,
        candidate: usize,
    },
    Win(usize),
    Append(usize),
    /// The master orders the change to this list.
    Change(usize, u8),
    /// Something of what the master of this term wrote arrives.
    Deliver {
        term: u8,
        to: usize,
    },
    /// What was written is synced, and acknowledged.
    Flush(usize),
    Commit(usize),
    Crash(usize),
    /// A newcomer counts from now on.
    Rise(usize),
    /// A node loses its directory, promises and all.
    Wipe(usize),
}

/// What a newcomer has to have before it counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rising {
    /// All that its master had committed when it came, an entry of the master's own term among it.
    Committed,
    /// An entry that its master appended after it had come, and committed without it.
    Fresh,
}

/// A group to be searched through.
#[derive(Clone)]
struct Group {
    name: &'static str,
    ids: Vec<NodeId>,
    roles: Vec<Role>,
    /// Every member list that can come about; the first is the founders'.
    lists: Vec<Members>,
    /// By list: the lists that one change makes of it.
    changes: Vec<Vec<u8>>,
    /// Renamings under which the group stays what it is: of nodes, and of lists.
    renamings: Vec<(Vec<usize>, Vec<u8>)>,
    start: State,
    terms: u8,
    entries: u8,
    /// Data entries in a log, at most.
    data: usize,
    crashes: bool,
    /// Whether what is written is on the disk at once, and acknowledged at once.
    synced: bool,
    /// Who stands for election.
    candidates: Vec<usize>,
    /// How many directories are lost.
    wipes: u8,
    rising: Rising,
    bug: Option<Bug>,
}

impl Group {
    /// A group of full members of these roles, and of nodes that are none yet, electable if they come to be.
    fn new(name: &'static str, roles: &[Role], others: usize) -> Group {
        let ids: Vec<NodeId> = ["a", "b", "c", "d", "e"][..roles.len() + others]
            .iter()
            .map(|name| NodeId::new(name).unwrap())
            .collect();
        let founders =
            roles.iter().zip(&ids).map(|(role, id)| Member { role: *role, ..Member::electable(id.clone()) });
        let founders = Members::new(founders.collect()).unwrap();
        let mut roles = roles.to_vec();
        roles.resize(ids.len(), Role::Electable);
        let mut group = Group {
            name,
            ids,
            roles,
            lists: vec![founders],
            changes: vec![Vec::new()],
            renamings: Vec::new(),
            start: State::default(),
            terms: 3,
            entries: 3,
            data: 1,
            crashes: true,
            synced: false,
            candidates: (0..NODES).collect(),
            wipes: 0,
            rising: Rising::Fresh,
            bug: None,
        };
        group.find_renamings();
        group
    }

    /// Lets these changes be ordered, one after the other, in any order in which they can be made.
    fn with_changes(mut self, allowed: &[Change]) -> Group {
        let mut at = 0;
        while at < self.lists.len() {
            for change in allowed {
                let Ok(after) = self.lists[at].changed(change) else { continue };
                // Lists are told apart by who is what, in whatever order.
                let known = self.lists.iter().position(|list| same(list, &after));
                let number = known.unwrap_or_else(|| {
                    self.lists.push(after);
                    self.changes.push(Vec::new());
                    self.lists.len() - 1
                });
                if !self.changes[at].contains(&(number as u8)) {
                    self.changes[at].push(number as u8);
                }
            }
            at += 1;
        }
        self.find_renamings();
        self
    }

    fn find_renamings(&mut self) {
        let mut orders = Vec::new();
        permute(&mut (0..self.ids.len()).collect(), 0, &mut orders);
        self.renamings = orders.into_iter().filter_map(|order| self.renaming(order)).collect();
    }

    /// The renaming by this order, if the group looks the same after it.
    fn renaming(&self, order: Vec<usize>) -> Option<(Vec<usize>, Vec<u8>)> {
        if order.iter().enumerate().any(|(from, to)| self.roles[from] != self.roles[*to]) {
            return None;
        }
        let renamed = |list: &Members| {
            let rename = |member: &Member| {
                let at = self.ids.iter().position(|id| *id == member.id).unwrap();
                Member { id: self.ids[order[at]].clone(), ..member.clone() }
            };
            Members::new(list.iter().map(rename).collect()).unwrap()
        };
        let lists: Vec<u8> = self
            .lists
            .iter()
            .map(|list| self.lists.iter().position(|other| same(other, &renamed(list))).map(|at| at as u8))
            .collect::<Option<_>>()?;
        let keeps = |state: &State| rename(state, &(order.clone(), lists.clone()), self.ids.len()) == *state;
        (lists[0] == 0 && keeps(&self.start)).then_some((order, lists))
    }

    /// The member list in force by this log.
    fn list_of(&self, log: &Log) -> u8 {
        log.slice().iter().rev().find(|entry| entry.what >= LIST).map_or(0, |entry| entry.what - LIST)
    }

    fn members_of(&self, log: &Log) -> &Members {
        &self.lists[usize::from(self.list_of(log))]
    }

    fn is_arbiter(&self, node: usize) -> bool {
        self.roles[node] == Role::Arbiter
    }

    fn stand(&self, state: &mut State, at: usize) -> bool {
        let node = &mut state.nodes[at];
        let electable = self.members_of(&node.log).find(&self.ids[at]).is_some_and(|own| own.is_voter())
            && self.roles[at] == Role::Electable;
        let busy = node.phase == Phase::Leads || node.since == NEWCOMER;
        if busy || node.term == self.terms || node.log.len == self.entries || !electable {
            return false;
        }
        node.term += 1;
        (node.vote, node.phase, node.votes) = (at as u8 + 1, Phase::Stands, 0);
        true
    }

    fn vote(&self, state: &mut State, at: usize, candidate: usize) -> bool {
        let asks = &state.nodes[candidate];
        if asks.phase != Phase::Stands || at == candidate {
            return false;
        }
        let (term, last, bit) = (asks.term, asks.log.end(), 1 << at);
        let voter = &mut state.nodes[at];
        let promise = Promise {
            term: Term::new(voter.term.into()),
            vote: voter.vote.checked_sub(1).map(|vote| self.ids[usize::from(vote)].clone()),
        };
        let judge = Judge {
            group: GROUP,
            promise: &promise,
            last: if self.is_arbiter(at) { end(voter.mark.0, voter.mark.1) } else { voter.log.end() },
            standing: match voter.since {
                NEWCOMER => Standing::Newcomer,
                since => Standing::Full { since: Term::new(since.into()) },
            },
            able: true,
            heard: None,
            started: Deadline::from_nanos(0),
            now: Deadline::from_nanos(u64::MAX / 2),
            min_timeout: Duration::from_secs(1),
        };
        let asked = Vote {
            group: GROUP,
            candidate: self.ids[candidate].clone(),
            election: 0,
            round: Round::Real,
            last,
            reason: VoteReason::PrimaryFailure,
            instead_of: None,
        };
        let Answer::Granted(Some(promise)) = ballot::judge(&judge, Term::new(term.into()), &asked) else {
            return false;
        };
        let vote = promise.vote.map_or(0, |vote| self.number(&vote) as u8 + 1);
        let was = (voter.term, voter.vote);
        (voter.term, voter.vote) = (promise.term.get() as u8, vote);
        if self.bug == Some(Bug::VoteNotSynced) {
            (voter.term, voter.vote) = was;
        }
        if was != (voter.term, voter.vote) {
            voter.phase = Phase::Follows;
        }
        let changed = was != (voter.term, voter.vote) || state.nodes[candidate].votes & bit == 0;
        state.nodes[candidate].votes |= bit;
        changed
    }

    fn number(&self, id: &NodeId) -> usize {
        self.ids.iter().position(|own| own == id).unwrap()
    }

    fn win(&self, state: &mut State, at: usize) -> bool {
        let node = &mut state.nodes[at];
        if node.phase != Phase::Stands {
            return false;
        }
        let term = Term::new(node.term.into());
        let mut campaign =
            Campaign::new(&self.ids[at], term, Round::Real, 0, VoteReason::PrimaryFailure, None);
        for voter in (0..self.ids.len()).filter(|voter| node.votes & (1 << voter) != 0) {
            campaign.take(&VoteReply {
                voter: self.ids[voter].clone(),
                election: 0,
                round: Round::Real,
                why_not: None,
                master: None,
            });
        }
        if campaign.tally(self.members_of(&node.log)) != Tally::Won {
            return false;
        }
        (node.phase, node.votes) = (Phase::Leads, 0);
        node.log.push(Entry { term: node.term, author: at as u8, what: TERM_START });
        let led = &mut state.led[usize::from(node.term) - 1];
        let winners = led.winners | 1 << at;
        *led = Led { winners, log: node.log, ..Led::default() };
        true
    }

    fn append(&self, state: &mut State, at: usize, what: u8) -> bool {
        let node = &mut state.nodes[at];
        let data = node.log.slice().iter().filter(|entry| entry.what == DATA).count();
        if node.phase != Phase::Leads || node.log.len == self.entries || what == DATA && data == self.data {
            return false;
        }
        node.log.push(Entry { term: node.term, author: at as u8, what });
        state.led[usize::from(node.term) - 1].log = node.log;
        true
    }

    fn change(&self, state: &mut State, at: usize, list: u8) -> bool {
        let node = &state.nodes[at];
        if node.phase != Phase::Leads {
            return false;
        }
        let committed = usize::from(state.led[usize::from(node.term) - 1].committed);
        let log = node.log.slice();
        let start = log.iter().position(|entry| entry.term == node.term).unwrap_or(0);
        let last = log.iter().rposition(|entry| entry.what >= LIST);
        if committed <= start && self.bug != Some(Bug::ChangeBeforeTermStart) {
            return false;
        }
        if last.is_some_and(|last| committed <= last) && self.bug != Some(Bug::TwoChangesAtOnce) {
            return false;
        }
        self.changes[usize::from(self.list_of(&node.log))].contains(&list)
            && self.append(state, at, LIST + list)
    }

    fn deliver(&self, state: &mut State, term: u8, at: usize) -> bool {
        let led = state.led[usize::from(term) - 1];
        let node = &mut state.nodes[at];
        let past = term < node.term && self.bug != Some(Bug::LowerTermAccepted);
        if led.winners == 0 || led.winners & (1 << at) != 0 || past {
            return false;
        }
        let before = *node;
        if term > node.term {
            (node.term, node.vote) = (term, 0);
            node.phase = Phase::Follows;
        }
        if node.phase == Phase::Stands {
            node.phase = Phase::Follows;
        }
        if node.phase == Phase::Leads {
            return false;
        }
        if self.is_arbiter(at) {
            let told = (term, led.flushed);
            let first = led.log.slice().iter().position(|entry| entry.term == term).unwrap_or(0);
            if usize::from(led.flushed) > first && told > node.mark {
                if self.bug != Some(Bug::ArbiterAcksBeforePersisting) {
                    node.mark = told;
                }
                self.acknowledge(state, at, term, led.flushed);
            }
            return state.nodes[at] != before || self.bug.is_some();
        }
        if node.since == NEWCOMER && node.mark.0 != term {
            // A new connection: what the one before it acknowledged is over. Only a living master takes it.
            let master = led.master().unwrap_or(at);
            let had = if self.rising == Rising::Fresh { led.log.len } else { led.committed };
            node.mark = (term, had);
            let master = &mut state.nodes[master];
            if master.phase != Phase::Leads || master.term != term {
                return false;
            }
            master.acks[at] = 0;
        }
        let node = &mut state.nodes[at];
        let common = node.log.common(&led.log);
        if node.log.len > common {
            node.log.cut(common);
            node.flushed = node.flushed.min(common);
        } else if common < led.log.len {
            node.log.push(led.log.entries[usize::from(common)]);
        }
        *node != before
    }

    /// The master of the term, if it still leads, hears how far this node has come.
    fn acknowledge(&self, state: &mut State, at: usize, term: u8, position: u8) {
        let Some(master) = state.led[usize::from(term) - 1].master() else { return };
        let counts = state.nodes[at].since != NEWCOMER;
        let master = &mut state.nodes[master];
        if counts && master.phase == Phase::Leads && master.term == term {
            master.acks[at] = master.acks[at].max(position);
        }
    }

    fn flush(&self, state: &mut State, at: usize) -> bool {
        let before = *state;
        let node = &mut state.nodes[at];
        let early = self.bug == Some(Bug::AckBeforeFlush) && node.phase != Phase::Leads;
        if !early {
            node.flushed = node.log.len;
        }
        let (term, log) = (node.term, node.log);
        if node.phase == Phase::Leads {
            state.led[usize::from(term) - 1].flushed = log.len;
        } else if term > 0 {
            let led = &state.led[usize::from(term) - 1];
            if led.winners != 0 && led.winners & (1 << at) == 0 && led.log.starts_with(log.slice()) {
                self.acknowledge(state, at, term, log.len);
            }
        }
        *state != before
    }

    fn commit(&self, state: &mut State, at: usize) -> bool {
        let node = &state.nodes[at];
        if node.phase != Phase::Leads {
            return false;
        }
        let members = self.members_of(&node.log);
        let voter = |id: &NodeId, counts: Counts, position: u8| {
            let at = Vlsn::new(position.into());
            let acks = Positions { received: at, durable: at, applied: None, checkpointed: None };
            Voter { id: id.clone(), counts, region: String::new(), acks: Some(acks) }
        };
        let own = &self.ids[at];
        let own_counts = if members.is_voter(own) { Counts::Fully } else { Counts::Not };
        let master = voter(own, own_counts, node.flushed);
        let mut others: Vec<Voter> = members
            .voters()
            .filter(|member| member.id != *own)
            .map(|member| {
                let counts = if member.role == Role::Arbiter { Counts::DurableOnly } else { Counts::Fully };
                voter(&member.id, counts, node.acks[self.number(&member.id)])
            })
            .collect();
        // Those who must not count, under the two bugs that let them, do so in place of a voter that is further behind.
        let learners = members.iter().filter(|member| !member.is_voter());
        let gone = self.lists[0].iter().filter(|member| members.find(&member.id).is_none());
        let strays: Vec<&Member> = match self.bug {
            Some(Bug::LearnerCounted) => learners.collect(),
            Some(Bug::RemovedNodeCounted) => gone.collect(),
            _ => Vec::new(),
        };
        for stray in strays.into_iter().filter(|stray| stray.id != *own) {
            let stray = voter(&stray.id, Counts::Fully, node.acks[self.number(&stray.id)]);
            let lowest = others.iter_mut().min_by_key(|voter| voter.at(Rule::COMMITTED.level));
            if let Some(lowest) = lowest {
                *lowest = stray;
            }
        }
        let start = node.log.slice().iter().position(|entry| entry.term == node.term).unwrap_or(0);
        let start = Vlsn::new(start as u64 + 1).unwrap();
        let agreed = agreed_in_term(Rule::COMMITTED, &master, &others, start).map_or(0, Vlsn::get) as u8;
        let led = &mut state.led[usize::from(node.term) - 1];
        let rises = agreed > led.committed;
        led.committed = led.committed.max(agreed);
        rises
    }

    fn crash(&self, state: &mut State, at: usize) -> bool {
        let node = &mut state.nodes[at];
        let before = *node;
        let flushed = node.flushed;
        node.log.cut(flushed);
        node.phase = Phase::Follows;
        *node != before
    }

    fn wipe(&self, state: &mut State, at: usize) -> bool {
        let happens = state.wiped < self.wipes && state.nodes[at].since != NEWCOMER;
        state.nodes[at] = Node { since: NEWCOMER, ..Node::default() };
        state.wiped += 1;
        happens
    }

    fn rise(&self, state: &mut State, at: usize) -> bool {
        let node = &mut state.nodes[at];
        if node.since != NEWCOMER || node.term == 0 || node.mark.0 != node.term {
            return false;
        }
        let led = &state.led[usize::from(node.term) - 1];
        let first = led.log.slice().iter().take_while(|entry| entry.term < node.term).count() as u8 + 1;
        let needed = match self.rising {
            Rising::Committed => node.mark.1.max(first),
            Rising::Fresh => node.mark.1 + 1,
        };
        if !led.log.starts_with(node.log.slice()) || node.flushed.min(led.committed) < needed {
            return false;
        }
        (node.since, node.mark) = (node.term, (0, 0));
        true
    }

    /// Forgets what nothing can depend on any more, and names the nodes in a fixed order.
    fn settle(&self, mut state: State) -> State {
        let nodes = &mut state.nodes[..self.ids.len()];
        for node in nodes.iter_mut() {
            if node.phase != Phase::Stands {
                node.votes = 0;
            }
            if node.phase != Phase::Leads {
                node.acks = [0; NODES];
            }
        }
        let lowest = nodes.iter().map(|node| node.term).min().unwrap_or(0);
        for (term, led) in (1..).zip(&mut state.led) {
            if term < lowest && self.bug != Some(Bug::LowerTermAccepted) {
                // Nobody takes what this term's master wrote any more; what it had when it won is still compared.
                let had = led.log.slice().iter().take_while(|entry| entry.term < term).count() as u8;
                led.log.cut(led.committed.max(had));
                led.flushed = 0;
            }
        }
        let renamed = self.renamings.iter().map(|renaming| rename(&state, renaming, self.ids.len()));
        renamed.min().unwrap_or(state)
    }
}

fn same(one: &Members, other: &Members) -> bool {
    let part = |list: &Members| {
        let mut all: Vec<(NodeId, bool)> =
            list.iter().map(|member| (member.id.clone(), member.admission == Admission::Full)).collect();
        all.sort();
        all
    };
    part(one) == part(other)
}

fn permute(order: &mut Vec<usize>, from: usize, into: &mut Vec<Vec<usize>>) {
    if from == order.len() {
        into.push(order.clone());
    }
    for other in from..order.len() {
        order.swap(from, other);
        permute(order, from + 1, into);
        order.swap(from, other);
    }
}

fn rename(state: &State, (order, lists): &(Vec<usize>, Vec<u8>), count: usize) -> State {
    let mut renamed = *state;
    let bits = |bits: u8| (0..count).filter(|at| bits & (1 << at) != 0).map(|at| 1 << order[at]).sum::<u8>();
    let log = |log: &mut Log| {
        for entry in &mut log.entries[..usize::from(log.len)] {
            entry.author = order[usize::from(entry.author)] as u8;
            if entry.what >= LIST {
                entry.what = LIST + lists[usize::from(entry.what - LIST)];
            }
        }
    };
    for (at, node) in state.nodes[..count].iter().enumerate() {
        let to = &mut renamed.nodes[order[at]];
        *to = *node;
        to.vote = node.vote.checked_sub(1).map_or(0, |vote| order[usize::from(vote)] as u8 + 1);
        to.votes = bits(node.votes);
        log(&mut to.log);
        for (other, acks) in node.acks[..count].iter().enumerate() {
            to.acks[order[other]] = *acks;
        }
    }
    for led in &mut renamed.led {
        led.winners = bits(led.winners);
        log(&mut led.log);
    }
    renamed
}

impl Model for Group {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        let all = 0..self.ids.len();
        for at in all.clone() {
            if self.candidates.contains(&at) {
                actions.extend([Action::Stand(at), Action::Win(at), Action::Append(at)]);
            }
            actions.extend([Action::Flush(at), Action::Commit(at)]);
            actions.extend(all.clone().map(|candidate| Action::Vote { voter: at, candidate }));
            actions.extend((1..=self.terms).map(|term| Action::Deliver { term, to: at }));
            actions.extend((0..self.lists.len()).map(|list| Action::Change(at, list as u8)));
            actions.push(Action::Rise(at));
            if self.crashes {
                actions.push(Action::Crash(at));
            }
            if self.wipes > 0 {
                actions.push(Action::Wipe(at));
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = *before;
        plant(self.bug);
        let happens = match action {
            Action::Stand(at) => self.stand(&mut state, at),
            Action::Vote { voter, candidate } => self.vote(&mut state, voter, candidate),
            Action::Win(at) => self.win(&mut state, at),
            Action::Append(at) => self.append(&mut state, at, DATA),
            Action::Change(at, list) => self.change(&mut state, at, list),
            Action::Deliver { term, to } => self.deliver(&mut state, term, to),
            Action::Flush(at) => self.flush(&mut state, at),
            Action::Commit(at) => self.commit(&mut state, at),
            Action::Crash(at) => self.crash(&mut state, at),
            Action::Rise(at) => self.rise(&mut state, at),
            Action::Wipe(at) => self.wipe(&mut state, at),
        };
        if self.synced
            && let Action::Deliver { to: at, .. }
            | Action::Win(at)
            | Action::Append(at)
            | Action::Change(at, _) = action
        {
            self.flush(&mut state, at);
        }
        plant(None);
        happens.then(|| self.settle(state))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_LEADER, |_, state: &State| {
                state.led.iter().all(|led| led.winners.count_ones() <= 1)
            }),
            Property::always(NOTHING_LOST, |_, state: &State| {
                pairs(state).all(|(one, later)| later.winners == 0 || later.log.starts_with(one.committed()))
            }),
            Property::always(ONE_HISTORY, |_, state: &State| {
                pairs(state).all(|(one, later)| {
                    one.committed().iter().zip(later.committed()).all(|(entry, other)| entry == other)
                })
            }),
            Property::sometimes("the last term commits", |group: &Group, state: &State| {
                let led = &state.led[usize::from(group.terms) - 1];
                led.log
                    .slice()
                    .get(usize::from(led.committed).wrapping_sub(1))
                    .is_some_and(|e| e.term == group.terms)
            }),
            Property::sometimes(
                "an entry of a term that committed nothing is committed by a later one",
                |_, state| {
                    pairs(state).any(|(one, later)| {
                        one.committed == 0
                            && one.winners != 0
                            && later.committed().iter().any(|e| one.log.slice().contains(e))
                    })
                },
            ),
        ];
        if self.lists.len() > 1 {
            properties.push(Property::sometimes("a change is committed", |_, state: &State| {
                state.led.iter().any(|led| led.committed().iter().any(|entry| entry.what >= LIST))
            }));
        }
        properties
    }
}

const ONE_LEADER: &str = "at most one node leads in a term";
const NOTHING_LOST: &str = "every later master has what was committed";
const ONE_HISTORY: &str = "what two terms committed agrees";

/// Every two terms, the earlier one first.
fn pairs(state: &State) -> impl Iterator<Item = (&Led, &Led)> {
    let all = &state.led;
    (0..all.len()).flat_map(move |one| (one + 1..all.len()).map(move |later| (&all[one], &all[later])))
}

/// Searches through all states. Everything that has to hold holds in each, and what should be possible is.
fn holds(group: Group) {
    let (name, terms, entries, renamings) = (group.name, group.terms, group.entries, group.renamings.len());
    let checker = group.checker().spawn_bfs().join();
    println!(
        "{name}: {terms} terms, {entries} entries, {renamings} renamings: {} states, {} steps, {} deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// Something that has to hold does not: the way there is printed.
fn is_found(group: Group, broken: &'static str) {
    let (name, bug) = (group.name, group.bug);
    let checker = group.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discovery(broken) else { panic!("{bug:?} was not found in {states} states") };
    println!("{bug:?} in {name}, after {states} states: not {broken}: {:?}", path.into_actions());
}

fn with(bug: Bug, group: Group) -> Group {
    Group { bug: Some(bug), ..group }
}

const E: Role = Role::Electable;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn three() -> Group {
    Group::new("three", &[E, E, E], 0)
}

fn with_arbiter() -> Group {
    Group::new("two and an arbiter", &[E, E, Role::Arbiter], 0)
}

/// Three founders, of whom each may be removed, and taken in again.
fn changing() -> Group {
    let changes = ["a", "b", "c"].map(|name| {
        [Change::Remove(id(name)), Change::Add(Member::electable(id(name))), Change::Promote(id(name))]
    });
    let group = Group::new("three that change", &[E, E, E], 0).with_changes(&changes.concat());
    Group { terms: 2, entries: 4, data: 0, ..group }
}

/// Two founders and a newcomer, which may be taken in; anybody may be removed.
fn growing() -> Group {
    let mut changes = vec![Change::Add(Member::electable(id("c"))), Change::Promote(id("c"))];
    changes.extend(["a", "b", "c"].map(|name| Change::Remove(id(name))));
    let mut group = Group::new("two that take in a third", &[E, E], 1).with_changes(&changes);
    group.start.nodes[2].since = NEWCOMER;
    Group { terms: 2, entries: 4, data: 0, ..group }
}

/// Three nodes, of which one loses its directory.
fn forgetful() -> Group {
    Group { name: "three of which one forgets", terms: 2, entries: 3, data: 1, wipes: 1, ..three() }
}

/// Four voters and a learner, of whom a has led since term 1, and its term's start is everywhere but at e: how the
/// published counterexample to changes before a term's start begins (Ongaro 2015, on raft-dev).
fn four_and_one() -> Group {
    let changes = [Change::Promote(id("e")), Change::Remove(id("a"))];
    let mut group = Group::new("four and a learner", &[E, E, E, E], 1);
    let learner = group.lists[0].changed(&Change::Add(Member::electable(id("e")))).unwrap();
    group.lists[0] = learner;
    let mut log = Log::default();
    log.push(Entry { term: 1, author: 0, what: TERM_START });
    for node in &mut group.start.nodes[..4] {
        *node = Node { term: 1, vote: 1, log, flushed: 1, ..Node::default() };
    }
    group.start.nodes[0].phase = Phase::Leads;
    group.start.nodes[0].acks = [0, 1, 1, 1, 0];
    group.start.led[0] = Led { winners: 1, log, flushed: 1, committed: 1 };
    let group = group.with_changes(&changes);
    Group { terms: 3, entries: 3, data: 0, synced: true, candidates: vec![0, 1], ..group }
}

#[test]
fn three_nodes_elect_and_commit_and_lose_nothing() {
    holds(three());
}

#[test]
fn two_nodes_and_an_arbiter_lose_nothing() {
    holds(with_arbiter());
}

#[test]
fn three_nodes_that_change_lose_nothing() {
    holds(changing());
}

#[test]
fn two_nodes_that_take_in_a_third_lose_nothing() {
    holds(growing());
}

#[test]
fn a_node_that_lost_its_directory_costs_nothing() {
    holds(forgetful());
}

#[test]
fn a_newcomer_that_counts_for_what_was_committed_before_it_came_is_found() {
    is_found(Group { rising: Rising::Committed, ..forgetful() }, ONE_LEADER);
}

#[test]
fn a_second_vote_in_a_term_is_found() {
    is_found(with(Bug::SecondVoteInATerm, three()), ONE_LEADER);
}

#[test]
fn a_vote_that_is_forgotten_is_found() {
    is_found(with(Bug::VoteNotSynced, three()), ONE_LEADER);
}

#[test]
fn a_vote_by_vlsn_alone_is_found() {
    is_found(with(Bug::VoteComparesVlsnOnly, three()), NOTHING_LOST);
}

#[test]
fn an_entry_of_an_earlier_term_that_counts_by_itself_is_found() {
    let group = Group { terms: 4, entries: 2, data: 0, ..three() };
    is_found(with(Bug::OldTermCommitted, group), NOTHING_LOST);
}

#[test]
fn a_lower_term_that_is_accepted_is_found() {
    is_found(with(Bug::LowerTermAccepted, three()), NOTHING_LOST);
}

#[test]
fn an_ack_before_its_flush_is_found() {
    is_found(with(Bug::AckBeforeFlush, three()), NOTHING_LOST);
}

#[test]
fn two_changes_at_once_are_found() {
    is_found(with(Bug::TwoChangesAtOnce, changing()), NOTHING_LOST);
}

#[test]
fn a_removed_node_that_counts_is_found() {
    is_found(with(Bug::RemovedNodeCounted, changing()), NOTHING_LOST);
}

#[test]
fn a_learner_that_counts_is_found() {
    is_found(with(Bug::LearnerCounted, growing()), NOTHING_LOST);
}

#[test]
fn a_wiped_node_that_votes_is_found() {
    is_found(with(Bug::WipedNodeVotes, forgetful()), ONE_LEADER);
}

#[test]
fn an_arbiter_that_acks_before_it_persists_is_found() {
    is_found(with(Bug::ArbiterAcksBeforePersisting, with_arbiter()), NOTHING_LOST);
}

#[test]
fn a_change_before_the_terms_start_is_found() {
    is_found(with(Bug::ChangeBeforeTermStart, four_and_one()), NOTHING_LOST);
}

#[test]
fn four_nodes_and_a_learner_lose_nothing() {
    holds(four_and_one());
}
