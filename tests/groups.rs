//! Groups that run themselves: real nodes with real files, threads and TCP connections in one process.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::GROUP;
use common::nodes::{Bare, Book, Ledger, hello, id, patience, until};
use quorate::clock::Stopwatch;
use quorate::wire::message::Message;
use quorate::{
    Address, Admission, Answer, Change, ChangeRefused, CommitError, Config, Host, Member, NewEntry, Node,
    NodeConfig, NodeError, Outcome, Part, Policy, Role, Token, TransferError, Wait, WriteRefused,
};

/// One node of a test: its directory and its engine's book outlive it.
struct Place {
    config: NodeConfig,
    book: Arc<Book>,
    node: Option<Node>,
}

impl Place {
    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node is up")
    }

    fn engine(&self) -> Box<Ledger> {
        Box::new(Ledger(Arc::clone(&self.book)))
    }

    fn join(&mut self) {
        self.node = Some(match self.config.role {
            Role::Arbiter => Node::arbiter(self.config.clone(), Host::machine()).unwrap(),
            _ => Node::join(self.config.clone(), self.engine(), Host::machine()).unwrap(),
        });
    }

    fn open(&mut self) {
        self.node = Some(Node::open(self.config.clone(), self.engine(), Host::machine()).unwrap());
    }

    /// The node ends without a word to anybody, as far as a process can do that to itself.
    fn down(&mut self) {
        self.node = None;
    }
}

/// A group in a temporary directory.
struct Grove {
    dir: tempfile::TempDir,
    places: Vec<Place>,
}

impl Grove {
    fn config(&self, name: &str) -> NodeConfig {
        let mut base = Config::new(GROUP, id(name), self.dir.path().join(name));
        base.segment_bytes = 1 << 20;
        base.max_payload = 64 << 10;
        base.heartbeat = Duration::from_millis(20);
        base.listen = Some(Address::Tcp("127.0.0.1:0".into()));
        base.backoff_max = Duration::from_millis(100);
        let mut config = NodeConfig::new(base);
        config.election_timeout = Duration::from_millis(200);
        config
    }

    /// A group founded by its first node alone.
    fn found(name: &str) -> Grove {
        let mut grove = Grove { dir: tempfile::tempdir().unwrap(), places: Vec::new() };
        let config = grove.config(name);
        let book = Arc::<Book>::default();
        let node =
            Node::create(config.clone(), Box::new(Ledger(Arc::clone(&book))), Host::machine()).unwrap();
        grove.places.push(Place { config, book, node: Some(node) });
        grove.keep_address(0);
        grove
    }

    /// From now on the node listens where it does now.
    fn keep_address(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.config.base.listen = place.node().address().cloned();
    }

    fn add(&mut self, name: &str, change: impl FnOnce(&mut NodeConfig)) -> usize {
        let mut config = self.config(name);
        config.seeds = self.places.iter().filter_map(|place| place.config.base.listen.clone()).collect();
        change(&mut config);
        self.places.push(Place { config, book: Arc::default(), node: None });
        let at = self.places.len() - 1;
        self.places[at].join();
        self.keep_address(at);
        at
    }

    /// A group of these names in which everybody counts.
    fn of(names: &[&str]) -> Grove {
        let mut grove = Grove::found(names[0]);
        for name in &names[1..] {
            grove.add(name, |_| ());
        }
        grove.all_count();
        grove
    }

    fn all_count(&self) {
        let count = self.places.len();
        until("everybody to be a full member", || {
            self.up().filter(|node| node.status().role != Role::Arbiter).all(|node| {
                let members = node.members();
                members.iter().count() == count
                    && members.iter().all(|one| one.admission == Admission::Full)
                    && node.committed() >= self.master().and_then(|master| master.committed())
            }) && self.master().is_some()
        });
    }

    fn up(&self) -> impl Iterator<Item = &Node> {
        self.places.iter().filter_map(|place| place.node.as_ref())
    }

    fn master(&self) -> Option<&Node> {
        self.up().filter(|node| node.leads().is_some()).max_by_key(|node| node.leads())
    }

    fn master_at(&self) -> usize {
        until("a master", || self.master().is_some_and(|master| master.committed().is_some()));
        let term = self.master().and_then(Node::leads);
        let at = self.places.iter().position(|place| place.node.as_ref().is_some_and(|n| n.leads() == term));
        at.expect("the master is there")
    }

    /// Changes the members, as soon as the change before is settled.
    fn change(&self, change: &Change) {
        let mut outcome = None;
        until("a change of members to be taken", || {
            let Some(master) = self.master() else { return false };
            match master.change(change) {
                Ok(ticket) => {
                    outcome = Some(master.commit(&ticket, patience()).unwrap());
                    true
                }
                Err(ChangeRefused::Pending(_) | ChangeRefused::TermNotCommitted(_)) => false,
                Err(error) => panic!("{error}"),
            }
        });
        assert_eq!(outcome, Some(Outcome::Committed));
    }

    /// Writes through whoever is master.
    fn write(&self, text: &str) -> Token {
        let mut token = None;
        until("a write to be committed", || {
            let Some(master) = self.master() else { return false };
            let Ok(ticket) = master.append(&[NewEntry::data(text.as_bytes())], Policy::MAJORITY) else {
                return false;
            };
            token = Some(ticket.token);
            matches!(master.commit(&ticket, patience()), Ok(Outcome::Committed))
        });
        token.expect("a token")
    }

    fn all_have(&self, token: &Token) {
        for node in self.up().filter(|node| node.status().role != Role::Arbiter) {
            assert!(node.wait_for(token, patience()).unwrap(), "{}", node.status().node);
            assert_eq!(node.ask(token), Answer::Committed);
        }
    }
}

#[test]
fn a_group_grows_from_its_founder_and_a_new_master_follows_one_that_died() {
    let mut grove = Grove::of(&["n1", "n2", "n3"]);
    let first = grove.write("before");
    grove.all_have(&first);
    let old = grove.master_at();
    let term = grove.places[old].node().term();
    grove.places[old].down();
    let second = grove.write("after");
    assert!(second.term > term);
    grove.places[old].open();
    grove.all_have(&second);
    until("the old master to follow", || grove.places[old].node().part() == Part::Replica);
    let books: Vec<_> = grove.places.iter().map(|place| place.book.entries()).collect();
    let shortest = books.iter().map(Vec::len).min().unwrap();
    assert!(books.windows(2).all(|pair| pair[0][..shortest] == pair[1][..shortest]));
}

#[test]
fn only_the_master_takes_writes_and_the_others_name_it() {
    let grove = Grove::of(&["n1", "n2"]);
    let master = grove.master_at();
    let replica = grove.places[1 - master].node();
    let refused = replica.append(&[NewEntry::data(b"x")], Policy::MAJORITY);
    let Err(WriteRefused::NotMaster { hint: Some((named, address)) }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(named, grove.places[master].config.base.node);
    assert_eq!(address.as_ref(), grove.places[master].node().address());
}

#[test]
fn mastership_moves_to_a_named_node_and_comes_back() {
    let grove = Grove::of(&["n1", "n2", "n3"]);
    for turn in 0..4 {
        let at = grove.master_at();
        let to = grove.places[(at + 1 + turn % 2) % 3].config.base.node.clone();
        let mut begun = None;
        until("the heir to be connected", || {
            match grove.places[at].node().transfer(Some(&to), Duration::from_secs(10)) {
                Ok(handover) => begun = Some(handover),
                Err(error) => assert_eq!(error, TransferError::Unfit(to.clone()), "turn {turn}"),
            }
            begun.is_some()
        });
        assert_eq!(begun.unwrap().wait(patience()), Some(Ok(())), "turn {turn}");
        let token = grove.write(&format!("after turn {turn}"));
        grove.all_have(&token);
        until("the heir to lead", || grove.master().is_some_and(|master| master.status().node == to));
    }
}

#[test]
fn a_transfer_to_a_node_that_is_down_is_refused_and_the_master_goes_on() {
    let mut grove = Grove::of(&["n1", "n2", "n3"]);
    let at = grove.master_at();
    let gone = (at + 1) % 3;
    let name = grove.places[gone].config.base.node.clone();
    grove.places[gone].down();
    let master = grove.places[at].node();
    until("the master to notice", || {
        matches!(master.transfer(Some(&name), Duration::from_millis(100)), Err(TransferError::Unfit(_)))
    });
    grove.write("still there");
}

#[test]
fn a_demoted_master_tells_its_writers_and_another_leads() {
    let grove = Grove::of(&["n1", "n2", "n3"]);
    let at = grove.master_at();
    let master = grove.places[at].node();
    let term = master.leads().unwrap();
    assert!(!master.demote(quorate::Term::new(term.get() + 1)), "an old view is not acted on");
    assert!(master.demote(term));
    until("another to lead", || grove.master().is_some_and(|other| other.leads() > Some(term)));
    grove.write("after");
}

#[test]
fn a_removed_node_counts_no_more_and_a_removed_master_steps_down() {
    let mut grove = Grove::of(&["n1", "n2", "n3"]);
    let at = grove.master_at();
    let own = grove.places[at].config.base.node.clone();
    grove.change(&Change::Remove(own.clone()));
    until("it to step down", || grove.places[at].node().leads().is_none());
    grove.places[at].down();
    grove.places.remove(at);
    let token = grove.write("two are left");
    grove.all_have(&token);
    assert!(grove.up().all(|node| node.members().find(&own).is_none()));
    // Of two, both are needed.
    let at = grove.master_at();
    grove.places[1 - at].down();
    let ticket = grove.places[at].node().append(&[NewEntry::data(b"alone")], Policy::MAJORITY);
    if let Ok(ticket) = ticket {
        let outcome = grove.places[at].node().commit(&ticket, patience());
        assert!(matches!(outcome, Err(CommitError::Deposed(_))), "{outcome:?}");
    }
}

#[test]
fn two_data_nodes_and_an_arbiter_survive_the_loss_of_either_data_node() {
    for victim_leads in [true, false] {
        let mut grove = Grove::found("n1");
        grove.add("n2", |_| ());
        grove.add("arb", |config| config.role = Role::Arbiter);
        grove.all_count();
        let first = grove.write("with three");
        let master = grove.master_at();
        let victim = if victim_leads { master } else { 1 - master };
        grove.places[victim].down();
        let second = grove.write("with one and the arbiter");
        assert!(!victim_leads || second.term > first.term);
        grove.places[victim].open();
        grove.all_have(&second);
    }
}

#[test]
fn a_secondary_feeds_a_secondary_and_neither_counts() {
    let mut grove = Grove::found("n1");
    let first = grove.add("s1", |config| config.role = Role::Secondary);
    grove.all_count();
    let upstream = grove.places[first].node().address().cloned();
    // A node that is fed by a replica is a member before it comes.
    let member = Member { role: Role::Secondary, ..Member::electable(id("s3")) };
    grove.change(&Change::Add(member));
    let third = grove.add("s3", |config| {
        config.role = Role::Secondary;
        config.base.upstream = upstream;
    });
    let token = grove.write("through the cascade");
    assert!(grove.places[third].node().wait_for(&token, patience()).unwrap());
    let seen = grove.places[0].node().status();
    let last = seen.members.iter().find(|one| one.member.id == id("s3")).unwrap();
    assert_eq!(last.positions.received, None, "the master does not feed it");
}

#[test]
fn a_group_is_not_founded_twice_in_one_directory() {
    let mut grove = Grove::found("n1");
    grove.write("once");
    grove.places[0].down();
    let place = &grove.places[0];
    let again = Node::create(place.config.clone(), place.engine(), Host::machine());
    assert!(matches!(again, Err(NodeError::Founded { .. })));
    grove.places[0].open();
    grove.write("and on");
}

#[test]
fn a_wiped_node_comes_back_without_a_vote_until_it_has_caught_up() {
    let mut grove = Grove::of(&["n1", "n2", "n3"]);
    let token = grove.write("before");
    let at = grove.master_at();
    let wiped = (at + 1) % 3;
    grove.places[wiped].down();
    std::fs::remove_dir_all(&grove.places[wiped].config.base.dir).unwrap();
    grove.places[wiped].book = Arc::default();
    grove.places[wiped].join();
    assert!(!grove.places[wiped].node().standing().counts());
    grove.all_have(&token);
    until("it to count again", || grove.places[wiped].node().standing().counts());
    let old = grove.master_at();
    grove.places[old].down();
    grove.write("elected with its vote");
}

#[test]
fn a_read_barrier_holds_on_the_master_and_nowhere_else() {
    let grove = Grove::of(&["n1", "n2", "n3"]);
    let token = grove.write("seen by the next read");
    let at = grove.master_at();
    grove.places[at].node().read_barrier(patience()).unwrap();
    assert!(grove.places[at].book.last() >= Some(token.vlsn));
    assert!(grove.places[(at + 1) % 3].node().read_barrier(Wait::Now).is_err());
}

/// A node that is about to be closed, and whatever of the test keeps it as it is.
type Doomed = (Node, Box<dyn std::any::Any>);

/// Leads alone, and is handing over to a peer that is fit and never stands; an operator waits for that at its port.
fn handing_over(config: NodeConfig) -> Doomed {
    let config = NodeConfig { election_timeout: Duration::from_secs(60), ..config };
    let node = Node::create(config.clone(), Box::new(Ledger(Arc::default())), Host::machine()).unwrap();
    assert!(node.promote(node.term()));
    until("it to lead", || node.leads().is_some() && node.committed().is_some());
    let heir = Member::electable(id("heir"));
    let added = node.change(&Change::Add(heir.clone())).unwrap();
    assert_eq!(node.commit(&added, patience()).unwrap(), Outcome::Committed);
    let mut base = config.base.clone();
    base.members = quorate::Members::new(vec![Member::electable(id("doomed")), heir]).unwrap();
    base.node = id("heir");
    let (here, there) = quorate::channel::local::pair("heir");
    node.accept(here);
    let mut peer = Bare::new(there);
    peer.introduce(hello(base));
    peer.sync_up(None);
    let acks = std::thread::spawn(move || {
        while let Ok((_, message)) = peer.hear() {
            let answer = match message {
                Message::Entries(entries) => Some(entries.last),
                Message::Heartbeat(_) | Message::Stand => None,
                _ => break,
            };
            if let Some(last) = answer {
                peer.ack(Some(last));
            }
        }
    });
    let long = Duration::from_secs(3600);
    until("the heir to be fit", || node.members().is_voter(&id("heir")));
    let (here, there) = quorate::channel::local::pair("operator");
    node.accept(here);
    let mut operator = Bare::new(there);
    let order = quorate::wire::message::Order::Transfer { to: Some(id("heir")), patience: long };
    operator.say(&Message::Control(quorate::wire::message::Control { group: GROUP, order }));
    let data = [NewEntry::data(b"x")];
    until("it to begin", || matches!(node.append(&data, Policy::Async), Err(WriteRefused::HandingOver)));
    (node, Box::new((operator, acks)))
}

#[test]
fn a_node_that_is_dropped_in_any_state_is_gone_soon() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    let mut config = |founders: &[&str]| {
        next += 1;
        let mut base = Config::new(GROUP, id("doomed"), dir.path().join(next.to_string()));
        let nowhere = Some(Address::Tcp("127.0.0.1:9".into()));
        let member = |name: &&str| Member { address: nowhere.clone(), ..Member::electable(id(name)) };
        base.members = quorate::Members::new(founders.iter().map(member).collect()).unwrap();
        base.segment_bytes = 1 << 20;
        base.max_payload = 64 << 10;
        base.heartbeat = Duration::from_millis(20);
        base.handshake_timeout = Duration::from_secs(30);
        let mut config = NodeConfig::new(base);
        config.election_timeout = Duration::from_millis(100);
        config.seeds = nowhere.clone().into_iter().collect();
        config
    };
    let engine = || Box::new(Ledger(Arc::default()));
    let create = |config| Node::create(config, engine(), Host::machine()).unwrap();
    let alone = create(config(&["doomed"]));
    until("it to lead", || alone.leads().is_some());
    let candidate = create(config(&["doomed", "a", "b"]));
    until("it to stand", || candidate.part() == Part::Candidate);
    let joining = Node::join(config(&["doomed"]), engine(), Host::machine()).unwrap();
    let arbiter = NodeConfig { role: Role::Arbiter, ..config(&["doomed"]) };
    let arbiter = Node::arbiter(arbiter, Host::machine()).unwrap();
    let (silent, theirs) = quorate::channel::local::pair("silent");
    joining.accept(theirs);
    let fresh = create(config(&["doomed", "a", "b"]));
    let busy = handing_over(config(&["doomed"]));
    let nodes: Vec<(&str, Doomed)> = vec![
        ("leads alone", (alone, Box::new(()))),
        ("stands in vain", (candidate, Box::new(()))),
        ("joins nobody, and is visited by somebody who says nothing", (joining, Box::new(silent))),
        ("an arbiter that finds nobody", (arbiter, Box::new(()))),
        ("has only just begun", (fresh, Box::new(()))),
        ("hands over", busy),
    ];
    for (what, (node, kept)) in nodes {
        let watch = Stopwatch::start();
        drop(node);
        assert!(watch.elapsed() < Duration::from_secs(10), "a node that {what} took {:?}", watch.elapsed());
        drop(kept);
    }
}
