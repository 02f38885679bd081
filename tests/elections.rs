//! Votes, candidates and arbiters, each a real node in a simulation among peers that the test plays.
#![cfg(feature = "sim")]
#![allow(missing_docs, reason = "tests")]

mod common;
#[path = "common/stage.rs"]
mod stage;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::nodes::{hello, id};
use common::{GROUP, t, v};
use parking_lot::Mutex;
use quorate::ballot::HIGHEST_TERM;
use quorate::channel::{Channel, Listener, ReceiveBuffer};
use quorate::clock::{Deadline, Wait};
use quorate::ids::LogEnd;
use quorate::members::Standing;
use quorate::sim::worker;
use quorate::wire::frame::VERSION;
use quorate::wire::message::{
    Ack, Announce, Bye, ByeReason, Capabilities, Control, EntryRequest, Feed, Heartbeat, HeartbeatReply,
    Message, Nack, NackReason, Order, RejectReason, Request, Round, Survey, Vote, VoteReply, Welcome, WhyNot,
};
use quorate::worker::Step;
use quorate::{GroupId, Health, NodeConfig, Part, Role, Vlsn};
use stage::{BEAT, Stage, TIMEOUT, Voice, end, local, vote};

/// A voter that may vote: its start is longer ago than the timeout.
fn voter(seed: u64) -> Stage {
    let stage = Stage::voter(seed);
    stage.run(TIMEOUT * 2);
    stage
}

fn ask(stage: &Stage, candidate: &str, round: Round, term: u32) -> Option<WhyNot> {
    stage.ask("n1", term, &vote(candidate, round, LogEnd::EMPTY)).1.why_not
}

fn announce(stage: &Stage, term: u32, master: &str) -> u32 {
    let mut voice = stage.dial("n1");
    let told = Announce { group: GROUP, master: id(master), address: None };
    voice.say(term, &Message::Announce(told));
    let (header, message) = voice.hear(stage).unwrap();
    assert!(matches!(message, Message::Fence), "{message:?}");
    header.term.get()
}

#[test]
fn one_vote_in_a_term_however_often_and_late_it_is_asked_for() {
    let stage = voter(1);
    let (term, reply) = stage.ask("n1", 5, &vote("n2", Round::Real, LogEnd::EMPTY));
    let expected =
        VoteReply { voter: id("n1"), election: 7, round: Round::Real, why_not: None, master: None };
    assert_eq!((term, &reply), (t(5), &expected));
    // The same question again, by the network or by the candidate.
    for _ in 0..3 {
        assert_eq!(stage.ask("n1", 5, &vote("n2", Round::Real, LogEnd::EMPTY)), (t(5), expected.clone()));
        assert_eq!(ask(&stage, "n3", Round::Real, 5), Some(WhyNot::VotedForAnother));
        assert_eq!(ask(&stage, "n3", Round::Pre, 5), Some(WhyNot::VotedForAnother));
        assert_eq!(ask(&stage, "n3", Round::Real, 4), Some(WhyNot::OldTerm));
    }
    // What is refused, and what is only a pre-vote, changes nothing.
    assert_eq!(ask(&stage, "n3", Round::Real, HIGHEST_TERM.get() + 1), Some(WhyNot::AbsurdTerm));
    let foreign = Vote { group: GroupId::from_bits(1), ..vote("n3", Round::Real, LogEnd::EMPTY) };
    assert_eq!(stage.ask("n1", 9, &foreign).1.why_not, Some(WhyNot::WrongGroup));
    assert_eq!(ask(&stage, "n3", Round::Pre, 6), None);
    assert_eq!(stage.node(0).term(), t(5));
    // A newer term is another matter; and the question of the older one, which comes last, is too late.
    assert_eq!(ask(&stage, "n3", Round::Real, 6), None);
    assert_eq!(ask(&stage, "n2", Round::Real, 5), Some(WhyNot::OldTerm));
    assert_eq!(stage.node(0).term(), t(6));
}

#[test]
fn a_vote_that_was_told_outlasts_a_power_loss_at_any_step() {
    let (mut told, mut untold) = (0, 0);
    for steps in 0..40 {
        let mut stage = voter(100 + steps);
        let mut voice = stage.dial("n1");
        voice.say(5, &Message::Vote(vote("n2", Round::Real, LogEnd::EMPTY)));
        stage.sim.run_steps(steps);
        stage.crash(0);
        stage.run(BEAT);
        let granted =
            matches!(voice.heard(), Some((_, Message::VoteReply(reply))) if reply.why_not.is_none());
        stage.open(0);
        stage.run(TIMEOUT * 2);
        let other = ask(&stage, "n3", Round::Real, 5);
        if granted {
            told += 1;
            assert_eq!(other, Some(WhyNot::VotedForAnother), "after {steps} steps");
            assert_eq!(ask(&stage, "n2", Round::Real, 5), None, "after {steps} steps");
        } else {
            untold += 1;
        }
    }
    assert!(told > 3 && untold > 3, "{told} votes were told, {untold} were not");
}

#[test]
fn neither_round_is_granted_within_the_timeout_of_the_voters_own_start() {
    let mut stage = Stage::voter(2);
    for round in [Round::Pre, Round::Real] {
        assert_eq!(ask(&stage, "n2", round, 5), Some(WhyNot::JustStarted));
    }
    stage.run(TIMEOUT);
    assert_eq!(ask(&stage, "n2", Round::Real, 5), None);
    stage.crash(0);
    stage.open(0);
    assert_eq!(ask(&stage, "n2", Round::Real, 6), Some(WhyNot::JustStarted));
    // Whoever stands by the word of the master itself is not made to wait.
    let asked = Vote { instead_of: Some(id("n3")), ..vote("n2", Round::Real, LogEnd::EMPTY) };
    assert_eq!(stage.ask("n1", 6, &asked).1.why_not, None);
}

#[test]
fn while_a_master_is_heard_only_whoever_stands_by_its_word_gets_a_vote() {
    let stage = voter(3);
    assert_eq!(announce(&stage, 7, "n2"), 7);
    assert_eq!(stage.node(0).master(), Some(id("n2")));
    for round in [Round::Pre, Round::Real] {
        assert_eq!(ask(&stage, "n3", round, 8), Some(WhyNot::MasterAlive));
        let by_another = Vote { instead_of: Some(id("n1")), ..vote("n3", round, LogEnd::EMPTY) };
        assert_eq!(stage.ask("n1", 8, &by_another).1.why_not, Some(WhyNot::MasterAlive));
    }
    assert_eq!(stage.node(0).term(), t(7), "a candidate that can't win does not drive the term up");
    let by_its_word = Vote { instead_of: Some(id("n2")), ..vote("n3", Round::Real, LogEnd::EMPTY) };
    assert_eq!(stage.ask("n1", 8, &by_its_word).1.why_not, None);
    assert_eq!((stage.node(0).term(), stage.node(0).master()), (t(8), None));
    // A master that falls silent protects nobody for longer than the timeout.
    assert_eq!(announce(&stage, 9, "n2"), 9);
    stage.run(TIMEOUT);
    assert_eq!(ask(&stage, "n3", Round::Real, 10), None);
}

#[test]
fn neither_a_second_master_of_a_term_nor_one_of_an_older_term_is_followed() {
    let stage = voter(4);
    assert_eq!(announce(&stage, 7, "n2"), 7);
    assert_eq!(announce(&stage, 7, "n3"), 7);
    assert_eq!(stage.node(0).master(), Some(id("n2")));
    assert_eq!(announce(&stage, 6, "n3"), 7, "it is told the newer term");
    assert_eq!(stage.node(0).master(), Some(id("n2")));
    assert_eq!(announce(&stage, HIGHEST_TERM.get() + 1, "n3"), 7);
    assert_eq!(announce(&stage, 8, "n3"), 8);
    assert_eq!(stage.node(0).master(), Some(id("n3")));
}

/// What a played voter says to a question in this term, and in the header of its answer.
type Script = Box<dyn FnMut(u32, &Vote) -> (u32, VoteReply) + Send>;

/// A node that the test plays: it answers votes by a script, and feeds nobody.
struct Puppet {
    asked: Arc<Mutex<Vec<(u32, Vote)>>>,
    script: Arc<Mutex<Script>>,
}

fn reply(name: &str, asked: &Vote, why_not: Option<WhyNot>) -> VoteReply {
    VoteReply { voter: id(name), election: asked.election, round: asked.round, why_not, master: None }
}

/// The term of a voter that promises what it grants, and no more.
fn own_term(term: u32, asked: &Vote) -> u32 {
    term - u32::from(asked.round == Round::Pre)
}

impl Puppet {
    fn new(stage: &Stage, name: &'static str) -> Puppet {
        let refuse: Script =
            Box::new(move |term, asked| (own_term(term, asked), reply(name, asked, Some(WhyNot::LogBehind))));
        let puppet = Puppet { asked: Arc::default(), script: Arc::new(Mutex::new(refuse)) };
        let (asked, script) = (Arc::clone(&puppet.asked), Arc::clone(&puppet.script));
        let runtime = stage.sim.node(name).runtime();
        let listener: Box<dyn Listener> = runtime.listen(&local(name)).unwrap();
        let mut open: Vec<(Arc<dyn Channel>, ReceiveBuffer)> = Vec::new();
        let work = worker(move |_| {
            let mut worked = false;
            while let Ok(Some(channel)) = listener.accept(Wait::Now) {
                open.push((channel, ReceiveBuffer::new()));
                worked = true;
            }
            open.retain_mut(|(channel, buffer)| {
                let frame = match channel.receive(buffer, Wait::Now) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => return true,
                    Err(_) => return false,
                };
                worked = true;
                let (header, message) = Message::decode(frame).unwrap();
                // Whatever else comes is answered by the end of the connection.
                let Message::Vote(vote) = message else { return false };
                asked.lock().push((header.term.get(), vote.clone()));
                let (term, reply) = (script.lock())(header.term.get(), &vote);
                let mut bytes = Vec::new();
                Message::VoteReply(reply).encode(t(term), 0, &mut bytes);
                channel.send(&[std::io::IoSlice::new(&bytes)], Wait::Now).is_ok()
            });
            Ok(if worked { Step::Worked } else { Step::Idle { due: Deadline::NEVER } })
        });
        runtime.spawn("puppet".into(), work, Vec::new(), Box::new(|_| ()));
        puppet
    }

    fn says(&self, script: impl FnMut(u32, &Vote) -> (u32, VoteReply) + Send + 'static) {
        *self.script.lock() = Box::new(script);
    }

    fn last_asked(&self) -> Option<(u32, Vote)> {
        self.asked.lock().last().cloned()
    }
}

/// A node that may stand, and two voters that the test plays.
fn candidate(seed: u64) -> (Stage, Puppet, Puppet) {
    let mut stage = Stage::new(seed, &["n1", "n2", "n3"]);
    let (b, c) = (Puppet::new(&stage, "n2"), Puppet::new(&stage, "n3"));
    stage.create(0);
    (stage, b, c)
}

#[test]
fn pre_votes_and_votes_of_another_election_count_for_nothing_in_the_real_round() {
    let (stage, b, _c) = candidate(5);
    let first = Arc::new(Mutex::new(None));
    let rounds = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&rounds);
    b.says(move |term, asked| {
        if asked.round == Round::Pre {
            return (term - 1, reply("n2", asked, None));
        }
        let election = *first.lock().get_or_insert(asked.election);
        let answer = reply("n2", asked, None);
        (
            term,
            match counted.fetch_add(1, Ordering::SeqCst) % 3 {
                // The yes of the round before, once more.
                0 => VoteReply { round: Round::Pre, ..answer },
                // A yes that comes late: it answers an election that is over.
                _ => VoteReply {
                    election: election.wrapping_add(u64::from(election == asked.election)),
                    ..answer
                },
            },
        )
    });
    stage.until("nine real rounds", || {
        assert_eq!(stage.node(0).leads(), None);
        rounds.load(Ordering::SeqCst) >= 9
    });
    let (term, _) = b.last_asked().unwrap();
    b.says(|term, asked| (own_term(term, asked), reply("n2", asked, None)));
    stage.until("it to lead", || stage.node(0).leads().is_some());
    assert!(stage.node(0).leads() > Some(t(term)), "each real round was a term of its own");
}

#[test]
fn a_candidate_that_can_not_win_leaves_the_term_alone() {
    let (stage, b, c) = candidate(6);
    stage.run(TIMEOUT * 20);
    let asked = b.asked.lock().len() + c.asked.lock().len();
    assert!(asked > 10, "asked {asked} times");
    assert!(b.asked.lock().iter().all(|(term, vote)| *term == 1 && vote.round == Round::Pre));
    assert_eq!(stage.node(0).term(), t(0));
}

#[test]
fn a_candidate_that_hears_of_a_newer_term_stands_above_it_and_an_absurd_one_is_not_believed() {
    let (stage, b, c) = candidate(7);
    b.says(|_, asked| (50, reply("n2", asked, Some(WhyNot::OldTerm))));
    c.says(|_, asked| (HIGHEST_TERM.get() + 1, reply("n3", asked, Some(WhyNot::OldTerm))));
    stage.until("it to know of term 50", || stage.node(0).term() == t(50));
    stage.until("it to ask for term 51", || b.last_asked().is_some_and(|(term, _)| term == 51));
    assert_eq!(stage.node(0).term(), t(50));
}

#[test]
fn what_a_stranger_grants_counts_for_nothing() {
    let (stage, b, c) = candidate(8);
    let rounds = Arc::new(AtomicU32::new(0));
    for puppet in [&b, &c] {
        let rounds = Arc::clone(&rounds);
        puppet.says(move |term, asked| {
            rounds.fetch_add(1, Ordering::SeqCst);
            let voter = if asked.round == Round::Pre { "n2" } else { "removed" };
            (own_term(term, asked), reply(voter, asked, None))
        });
    }
    stage.until("twelve answers", || {
        assert_eq!(stage.node(0).leads(), None);
        rounds.load(Ordering::SeqCst) >= 12
    });
}

/// An arbiter that joins, and the master that it finds: the test.
fn arbiter(seed: u64) -> (Stage, Box<dyn Listener>) {
    let mut stage = Stage::new(seed, &["n1", "n2"]);
    stage.actors[0].config.role = Role::Arbiter;
    let listener = stage.listen("n2");
    stage.join(0, "n2");
    (stage, listener)
}

/// Plays the master of a term up to the arbiter's first ack, which it returns.
fn lead(stage: &Stage, listener: &dyn Listener, term: u32) -> (Voice, Option<Vlsn>) {
    for _ in 0..20 {
        let mut voice = stage.accept(listener);
        let Some((_, message)) = voice.hear(stage) else { continue };
        let Message::Hello(hello) = message else { continue };
        assert_eq!(hello.role, Role::Arbiter);
        let welcome = Welcome {
            version: VERSION,
            node: id("n2"),
            incarnation: 1,
            session: u64::from(term),
            feed: Feed::Leads,
            capabilities: Capabilities::NONE,
            max_frame: 64 << 10,
            heartbeat: BEAT,
        };
        voice.say(term, &Message::Welcome(welcome));
        match voice.hear(stage) {
            Some((_, Message::Ack(ack))) => {
                let known = ack.durable;
                return (voice, known);
            }
            Some((_, other)) => panic!("{other:?}"),
            // It had given up on this connection before the test looked.
            None => {}
        }
    }
    panic!("it left: {:?}", stage.node(0).last_error());
}

fn beat(flushed: Option<Vlsn>, committed: Option<Vlsn>) -> Message<'static> {
    Message::Heartbeat(Heartbeat {
        written: flushed,
        flushed,
        committed,
        durable_wanted: None,
        applied_wanted: None,
        health: Health::Healthy,
        clock: 1,
    })
}

/// What it acknowledges next.
fn acked(stage: &Stage, voice: &mut Voice) -> Option<Vlsn> {
    loop {
        match voice.hear(stage).expect("the connection lasts") {
            (_, Message::Ack(ack)) => return ack.durable,
            (_, Message::HeartbeatReply(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

fn standing(stage: &Stage, voice: &mut Voice) -> Standing {
    loop {
        match voice.hear(stage).expect("the connection lasts") {
            (_, Message::HeartbeatReply(HeartbeatReply { standing, .. })) => return standing,
            (_, Message::Ack(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_arbiters_mark_rises_with_the_term_also_to_a_lower_place_and_no_log_below_it_gets_its_vote() {
    let (mut stage, listener) = arbiter(9);
    let (mut voice, known) = lead(&stage, &*listener, 3);
    assert_eq!(known, None);
    // Before anything of the term is committed it counts for nothing.
    voice.say(3, &beat(Vlsn::new(8), None));
    assert_eq!(acked(&stage, &mut voice), Vlsn::new(8));
    assert_eq!(standing(&stage, &mut voice), Standing::Newcomer);
    voice.say(3, &beat(Vlsn::new(10), None));
    assert_eq!(acked(&stage, &mut voice), Vlsn::new(10));
    assert_eq!(standing(&stage, &mut voice), Standing::Newcomer);
    // Nothing is new but that.
    voice.say(3, &beat(Vlsn::new(10), Vlsn::new(10)));
    assert_eq!(standing(&stage, &mut voice), Standing::Full { since: t(3) });
    // What was acknowledged is on its disk.
    stage.crash(0);
    stage.join_again(0);
    stage.run(TIMEOUT * 2);
    let why = |stage: &Stage, term, last| stage.ask("n1", term, &vote("n3", Round::Pre, last)).1.why_not;
    assert_eq!(why(&stage, 4, end(3, 9)), Some(WhyNot::LogBehind));
    assert_eq!(why(&stage, 4, end(2, 99)), Some(WhyNot::LogBehind), "the longer log of an older term");
    assert_eq!(why(&stage, 4, end(3, 10)), None);
    assert_eq!(why(&stage, 3, end(3, 10)), Some(WhyNot::NotCaughtUp), "not in the term in which it was made");
    // Term 5 begins below: its master's log is what counts now.
    let (mut voice, known) = lead(&stage, &*listener, 5);
    assert_eq!(known, None, "the mark is of another term");
    voice.say(5, &beat(Vlsn::new(7), None));
    assert_eq!(acked(&stage, &mut voice), Vlsn::new(7));
    stage.crash(0);
    stage.join_again(0);
    stage.run(TIMEOUT * 2);
    assert_eq!(why(&stage, 6, end(3, 10)), Some(WhyNot::LogBehind));
    assert_eq!(why(&stage, 6, end(5, 6)), Some(WhyNot::LogBehind));
    assert_eq!(why(&stage, 6, end(5, 7)), None);
    // And it is what it tells whoever is in doubt of what was committed.
    let mut voice = stage.dial("n1");
    let who = id("n3");
    voice.say(6, &Message::Survey(Survey { group: GROUP, node: who, after: None }));
    let Some((_, Message::SurveyReply(reply))) = voice.hear(&stage) else { panic!("no answer") };
    assert_eq!(reply.last.map(|last| (last.term, last.vlsn)), Some((t(5), v(7))));
}

#[test]
fn an_arbiters_ack_outlasts_a_power_loss_at_any_step() {
    let (mut told, mut untold) = (0, 0);
    for steps in 0..30 {
        let (mut stage, listener) = arbiter(200 + steps);
        let (mut voice, _) = lead(&stage, &*listener, 3);
        voice.say(3, &beat(Vlsn::new(10), Vlsn::new(10)));
        stage.sim.run_steps(steps);
        stage.crash(0);
        stage.run(BEAT);
        let acked = matches!(voice.heard(), Some((_, Message::Ack(ack))) if ack.durable == Vlsn::new(10));
        stage.join_again(0);
        let (_voice, known) = lead(&stage, &*listener, 3);
        if acked {
            told += 1;
            assert_eq!(known, Vlsn::new(10), "after {steps} steps");
        } else {
            untold += 1;
        }
    }
    assert!(told > 3 && untold > 3, "{told} acks were told, {untold} were not");
}

/// Every message there is, but those by which a conversation may begin.
fn out_of_turn() -> Vec<Message<'static>> {
    vec![
        Message::Welcome(Welcome {
            version: VERSION,
            node: id("n2"),
            incarnation: 1,
            session: 1,
            feed: Feed::Leads,
            capabilities: Capabilities::NONE,
            max_frame: 64 << 10,
            heartbeat: BEAT,
        }),
        Message::Ack(Ack { received: None, durable: None, applied: None, checkpointed: None }),
        Message::Nack(Nack { reason: NackReason::Hole, at: Some(v(1)) }),
        beat(None, None),
        Message::HeartbeatReply(HeartbeatReply {
            clock: 1,
            health: Health::Healthy,
            standing: Standing::Full { since: t(0) },
        }),
        Message::EntryRequest(EntryRequest { from: v(1), to: v(9), max_entries: 9, max_bytes: 999 }),
        Message::VoteReply(reply("n2", &vote("n1", Round::Real, LogEnd::EMPTY), None)),
        Message::Fence,
        Message::Stand,
        Message::Bye(Bye { reason: ByeReason::Closing }),
    ]
}

#[test]
fn whatever_a_connection_begins_with_the_node_goes_on() {
    let stage = Stage::group(10, &["n1"]);
    let term = stage.node(0).term();
    for message in out_of_turn() {
        let mut voice = stage.dial("n1");
        voice.say(99, &message);
        match voice.hear(&stage) {
            Some((_, Message::Reject(reject))) => assert_eq!(reject.reason, RejectReason::Protocol),
            Some((_, other)) => panic!("{message:?} was answered by {other:?}"),
            None => {}
        }
    }
    let other = GroupId::from_bits(1);
    for message in [
        Message::Announce(Announce { group: other, master: id("n2"), address: None }),
        Message::Survey(Survey { group: other, node: id("n2"), after: None }),
        Message::Control(Control { group: other, order: Order::Status }),
        Message::Request(Request { group: other, body: b"x" }),
    ] {
        let mut voice = stage.dial("n1");
        voice.say(99, &message);
        match voice.hear(&stage) {
            Some((_, Message::Reject(reject))) => {
                assert_eq!(reject.reason, RejectReason::WrongGroup { ours: GROUP });
            }
            other => panic!("{message:?} was answered by {other:?}"),
        }
    }
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n and more than a header is long"[..], &[0; 64]] {
        let mut voice = stage.dial("n1");
        voice.say_bytes(bytes);
        assert!(!matches!(voice.hear(&stage), Some((_, message)) if !matches!(message, Message::Reject(_))));
    }
    // A service that nobody offers.
    let mut voice = stage.dial("n1");
    voice.say(0, &Message::Request(Request { group: GROUP, body: b"x" }));
    assert!(matches!(voice.hear(&stage), Some((_, Message::Reject(_)))));
    assert_eq!(
        (stage.node(0).part(), stage.node(0).term()),
        (Part::Master, term),
        "nothing of it was believed"
    );
    stage.write(b"goes on");
}

#[test]
fn beyond_the_limit_on_connections_a_peer_is_told_busy_and_silent_ones_lose_their_place() {
    let mut stage = Stage::new(11, &["n1"]);
    stage.actors[0].config.base.max_connections = 3;
    stage.create(0);
    stage.settle();
    let silent: Vec<Voice> = (0..3).map(|_| stage.dial("n1")).collect();
    stage.run(BEAT);
    match stage.dial("n1").hear(&stage) {
        Some((_, Message::Reject(reject))) => assert_eq!(reject.reason, RejectReason::Busy),
        other => panic!("{other:?}"),
    };
    stage.run(stage.actors[0].config.base.handshake_timeout);
    let (_, reply) = stage.ask("n1", 9, &vote("n2", Round::Pre, LogEnd::EMPTY));
    assert_eq!(reply.why_not, Some(WhyNot::LogBehind));
    drop(silent);
}

#[test]
fn a_replicas_hello_before_there_is_a_master_is_answered_by_name() {
    let stage = voter(12);
    let mut config: NodeConfig = stage.actors[0].config.clone();
    config.base.node = id("n2");
    let mut voice = stage.dial("n1");
    voice.say(0, &Message::Hello(hello(config.base)));
    match voice.hear(&stage) {
        Some((_, Message::Reject(reject))) => {
            assert_eq!(reject.reason, RejectReason::NotMaster { hint: None });
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(feature = "planted")]
mod planted_bugs {
    use quorate::planted::{Bug, plant};

    use super::*;

    #[test]
    fn the_planted_bug_leads_on_pre_votes_alone() {
        let (stage, b, _c) = candidate(20);
        b.says(|term, asked| {
            let why = (asked.round == Round::Real).then_some(WhyNot::LogBehind);
            (own_term(term, asked), reply("n2", asked, why))
        });
        stage.run(TIMEOUT * 20);
        assert_eq!(stage.node(0).leads(), None);
        plant(Some(Bug::PreVoteTakenForVote));
        let found = stage.sim.run_until(|| stage.node(0).leads().is_some(), TIMEOUT * 20);
        plant(None);
        assert!(found);
    }

    #[test]
    fn the_planted_bug_drives_the_term_up() {
        let (stage, _b, _c) = candidate(21);
        plant(Some(Bug::NoPreVote));
        stage.run(TIMEOUT * 20);
        plant(None);
        assert!(stage.node(0).term() > t(3), "term {}", stage.node(0).term());
    }
}
