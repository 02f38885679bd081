//! A group in a simulation, step by step: real nodes, and peers that say what the test wants.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate::channel::{Channel, Listener, ReceiveBuffer};
use quorate::clock::Wait;
use quorate::election::Static;
use quorate::ids::LogEnd;
use quorate::sim::{SimNode, Simulation};
use quorate::wire::frame::FrameHeader;
use quorate::wire::message::{Message, Round, Vote, VoteReason, VoteReply};
use quorate::{
    Address, Answer, Config, Host, Member, Members, NewEntry, Node, NodeConfig, Outcome, Policy, Role, Term,
    Ticket, Token, Vlsn,
};

use crate::common::GROUP;
use crate::common::nodes::{Book, Ledger, id};

/// The election timeout of all nodes.
pub const TIMEOUT: Duration = Duration::from_millis(200);
pub const BEAT: Duration = Duration::from_millis(20);
/// Virtual time that is enough for anything that works.
pub const ENOUGH: Duration = Duration::from_secs(20);

pub fn local(name: &str) -> Address {
    Address::Local(name.into())
}

/// Full electable members that listen at their names.
pub fn founders(names: &[&str]) -> Members {
    let member = |name: &&str| Member { address: Some(local(name)), ..Member::electable(id(name)) };
    Members::new(names.iter().map(member).collect()).unwrap()
}

/// One real node of a stage.
pub struct Actor {
    pub name: &'static str,
    pub sim: SimNode,
    pub config: NodeConfig,
    pub book: Arc<Book>,
    pub up: Option<Node>,
    generation: u32,
}

pub struct Stage {
    pub sim: Simulation,
    pub actors: Vec<Actor>,
}

impl Stage {
    /// A stage on which nobody is up yet.
    pub fn new(seed: u64, names: &[&'static str]) -> Stage {
        let sim = Simulation::new(seed);
        let members = founders(names);
        let actors = names.iter().map(|name| Actor {
            name,
            sim: sim.node(name),
            config: config(name, &members),
            book: Arc::default(),
            up: None,
            generation: 0,
        });
        let actors = actors.collect();
        Stage { sim, actors }
    }

    /// A group of these, with a master whose term is settled.
    pub fn group(seed: u64, names: &[&'static str]) -> Stage {
        let mut stage = Stage::new(seed, names);
        (0..names.len()).for_each(|at| stage.create(at));
        stage.settle();
        stage
    }

    /// One node of a group whose other members the test plays. It never stands by itself.
    pub fn voter(seed: u64) -> Stage {
        let mut stage = Stage::new(seed, &["n1", "n2", "n3"]);
        stage.actors[0].config.coordinator = Arc::new(Static::new(id("n2")));
        stage.create(0);
        stage
    }

    /// One more actor, who has not joined yet.
    pub fn newcomer(&mut self, name: &'static str) -> usize {
        let mut config = config(name, &Members::unknown());
        config.base.members = founders(&[name]);
        self.actors.push(Actor {
            name,
            sim: self.sim.node(name),
            config,
            book: Arc::default(),
            up: None,
            generation: 0,
        });
        self.actors.len() - 1
    }

    fn host(&self, at: usize) -> Host {
        let sim = &self.actors[at].sim;
        Host { runtime: sim.runtime(), disk: sim.disk() }
    }

    pub fn create(&mut self, at: usize) {
        let (host, actor) = (self.host(at), &mut self.actors[at]);
        let engine = Box::new(Ledger(Arc::clone(&actor.book)));
        actor.up = Some(Node::create(actor.config.clone(), engine, host).unwrap());
    }

    pub fn open(&mut self, at: usize) {
        let opened = self.try_open(at).unwrap();
        self.actors[at].up = Some(opened);
    }

    pub fn try_open(&self, at: usize) -> Result<Node, quorate::NodeError> {
        let (host, actor) = (self.host(at), &self.actors[at]);
        let engine = Box::new(Ledger(Arc::clone(&actor.book)));
        Node::open(actor.config.clone(), engine, host)
    }

    /// Joins with an empty directory, by way of `seed`.
    pub fn join(&mut self, at: usize, seed: &str) {
        let host = self.host(at);
        let actor = &mut self.actors[at];
        actor.generation += 1;
        actor.config.base.dir = PathBuf::from(format!("/{}-{}", actor.name, actor.generation));
        actor.config.seeds = vec![local(seed)];
        actor.book = Arc::default();
        let engine = Box::new(Ledger(Arc::clone(&actor.book)));
        actor.up = Some(match actor.config.role {
            Role::Arbiter => Node::arbiter(actor.config.clone(), host).unwrap(),
            _ => Node::join(actor.config.clone(), engine, host).unwrap(),
        });
    }

    /// Opens the directory of a node that joined before.
    pub fn join_again(&mut self, at: usize) {
        let (host, actor) = (self.host(at), &mut self.actors[at]);
        let engine = Box::new(Ledger(Arc::clone(&actor.book)));
        actor.up = Some(match actor.config.role {
            Role::Arbiter => Node::arbiter(actor.config.clone(), host).unwrap(),
            _ => Node::join(actor.config.clone(), engine, host).unwrap(),
        });
    }

    /// The power fails.
    pub fn crash(&mut self, at: usize) {
        self.actors[at].sim.crash();
        self.actors[at].up = None;
    }

    pub fn node(&self, at: usize) -> &Node {
        self.actors[at].up.as_ref().expect("the node is up")
    }

    pub fn up(&self) -> impl Iterator<Item = &Node> {
        self.actors.iter().filter_map(|actor| actor.up.as_ref())
    }

    /// Runs until it is so.
    #[track_caller]
    pub fn until(&self, what: &str, so: impl FnMut() -> bool) {
        assert!(self.sim.run_until(so, ENOUGH), "waited in vain: {what}");
    }

    pub fn run(&self, time: Duration) {
        self.sim.run_for(time);
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, at: usize) {
        let others = self.actors.iter().map(|actor| actor.name);
        let own = self.actors[at].name;
        self.sim.net().isolate(own, others.filter(|name| *name != own));
    }

    /// Who leads in the highest term, among these.
    pub fn leader_of(&self, among: &[usize]) -> Option<usize> {
        let up = among.iter().copied().filter(|at| self.actors[*at].up.is_some());
        up.filter(|at| self.node(*at).leads().is_some()).max_by_key(|at| self.node(*at).leads())
    }

    /// Waits for a master among these that has committed something in its term.
    #[track_caller]
    pub fn master_of(&self, among: &[usize]) -> usize {
        let settled = || {
            self.leader_of(among).filter(|at| {
                let node = self.node(*at);
                let start = node.log().term_history().last().map(|span| span.first);
                node.committed() >= start
            })
        };
        self.until("a master", || settled().is_some());
        settled().unwrap()
    }

    pub fn all(&self) -> Vec<usize> {
        (0..self.actors.len()).collect()
    }

    pub fn master(&self) -> usize {
        self.master_of(&self.all())
    }

    /// Waits until there is a master and all that are up have applied all that it has.
    #[track_caller]
    pub fn settle(&self) {
        self.until("all to have the same", || {
            let Some(at) = self.leader_of(&self.all()) else { return false };
            let (node, last) = (self.node(at), self.node(at).last());
            let has_all = |other: &Node| {
                other.last() == last && other.positions().applied == last.map(|last| last.vlsn)
            };
            node.committed() == last.map(|last| last.vlsn) && self.up().all(has_all)
        });
    }

    pub fn append(&self, at: usize, payload: &[u8], policy: Policy) -> Ticket {
        self.node(at).append(&[NewEntry::data(payload)], policy).unwrap()
    }

    /// Writes by the master among these, until it is committed.
    #[track_caller]
    pub fn write_among(&self, among: &[usize], payload: &[u8]) -> Token {
        for _ in 0..100 {
            let at = self.master_of(among);
            let Ok(ticket) = self.node(at).append(&[NewEntry::data(payload)], Policy::MAJORITY) else {
                self.run(BEAT);
                continue;
            };
            let mut told = None;
            self.until("an outcome", || {
                told = self.node(at).poll(&ticket).transpose();
                told.is_some()
            });
            if let Some(Ok(Outcome::Committed)) = told {
                return ticket.token;
            }
        }
        panic!("no write was committed");
    }

    #[track_caller]
    pub fn write(&self, payload: &[u8]) -> Token {
        self.write_among(&self.all(), payload)
    }

    /// Waits until all that are up say this of the token.
    #[track_caller]
    pub fn all_say(&self, token: &Token, answer: Answer) {
        self.until(&format!("all to say {answer:?}"), || self.up().all(|node| node.ask(token) == answer));
    }

    /// What all engines were given, which is the same.
    #[track_caller]
    pub fn agreed(&self) -> Vec<(Vlsn, u32)> {
        let mut books =
            self.actors.iter().filter(|actor| actor.up.is_some()).map(|actor| actor.book.entries());
        let first = books.next().unwrap();
        assert!(books.all(|book| book == first), "the engines differ");
        first
    }

    pub fn dial(&self, name: &str) -> Voice {
        let runtime = self.sim.node("tester").runtime();
        let channel = runtime.dial(&local(name), Wait::Now).unwrap().expect("somebody listens");
        Voice::new(channel)
    }

    /// A listener that the test serves, in the name of a node that is not up.
    pub fn listen(&self, name: &str) -> Box<dyn Listener> {
        self.sim.node(name).runtime().listen(&local(name)).unwrap()
    }

    /// The next connection to it.
    #[track_caller]
    pub fn accept(&self, listener: &dyn Listener) -> Voice {
        let mut channel = None;
        self.until("a connection", || {
            channel = listener.accept(Wait::Now).unwrap();
            channel.is_some()
        });
        Voice::new(channel.unwrap())
    }

    /// Asks a node for its vote, on a connection of its own.
    #[track_caller]
    pub fn ask(&self, name: &str, term: u32, vote: &Vote) -> (Term, VoteReply) {
        let mut voice = self.dial(name);
        voice.say(term, &Message::Vote(vote.clone()));
        match voice.hear(self).expect("an answer") {
            (header, Message::VoteReply(reply)) => (header.term, reply),
            (_, other) => panic!("{other:?}"),
        }
    }
}

/// A candidate's question.
pub fn vote(candidate: &str, round: Round, last: LogEnd) -> Vote {
    Vote {
        group: GROUP,
        candidate: id(candidate),
        election: 7,
        round,
        last,
        reason: VoteReason::PrimaryFailure,
        instead_of: None,
    }
}

pub fn end(term: u32, vlsn: u64) -> LogEnd {
    LogEnd { term: Term::new(term), vlsn: Vlsn::new(vlsn) }
}

pub fn config(name: &str, members: &Members) -> NodeConfig {
    let ms = Duration::from_millis;
    let mut base = Config::new(GROUP, id(name), PathBuf::from(format!("/{name}-0")));
    base.members = members.clone();
    base.segment_bytes = 64 << 10;
    base.max_payload = 8 << 10;
    base.batch_bytes = 4 << 10;
    base.max_frame = 64 << 10;
    base.listen = Some(local(name));
    (base.lazy_flush, base.heartbeat, base.peer_timeout) = (ms(10), BEAT, ms(300));
    (base.handshake_timeout, base.checkpoint_every) = (ms(300), ms(15));
    (base.backoff_min, base.backoff_max) = (ms(1), ms(20));
    let mut config = NodeConfig::new(base);
    config.election_timeout = TIMEOUT;
    config
}

/// One end of a simulated connection that the test speaks for itself.
pub struct Voice {
    pub channel: Arc<dyn Channel>,
    buffer: ReceiveBuffer,
    frame: Vec<u8>,
    sequence: u64,
}

impl Voice {
    pub fn new(channel: Arc<dyn Channel>) -> Voice {
        Voice { channel, buffer: ReceiveBuffer::new(), frame: Vec::new(), sequence: 0 }
    }

    pub fn say(&mut self, term: u32, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(Term::new(term), self.sequence, &mut bytes);
        self.sequence += 1;
        self.say_bytes(&bytes);
    }

    pub fn say_bytes(&self, bytes: &[u8]) {
        // A connection that has ended takes nothing: whoever listens next finds out.
        let _ended = self.channel.send(&[IoSlice::new(bytes)], Wait::Now);
    }

    /// The next message; `None` if the connection ended instead.
    pub fn hear(&mut self, stage: &Stage) -> Option<(FrameHeader, Message<'_>)> {
        let mut heard: Option<Option<Vec<u8>>> = None;
        let (channel, buffer) = (&self.channel, &mut self.buffer);
        stage.until("a message", || {
            heard = match channel.receive(buffer, Wait::Now) {
                Ok(Some(frame)) => Some(Some(frame.to_vec())),
                Ok(None) => None,
                Err(_) => Some(None),
            };
            heard.is_some()
        });
        self.frame = heard.flatten()?;
        Some(Message::decode(&self.frame).expect("a good frame"))
    }

    /// What has arrived already; `None` if nothing has.
    pub fn heard(&mut self) -> Option<(FrameHeader, Message<'_>)> {
        let frame = self.channel.receive(&mut self.buffer, Wait::Now).ok()??;
        Some(Message::decode(frame).expect("a good frame"))
    }
}
