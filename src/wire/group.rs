//! The messages of a group that runs itself: votes, what nodes ask each other, orders of operators, and requests to the
//! embedder's own service.

use std::time::Duration;

use crate::address::Address;
use crate::ids::{GroupId, LogEnd, NodeId, Position, Term, Vlsn, VlsnRange};
use crate::members::{Change, Health, Member, Role, Standing};
use crate::wire::message::{Ack, MAX_ADDRESS, MAX_TEXT};
use crate::wire::recovery::{Keeping, RangeDigest};

/// By what right a node feeds another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Feed {
    /// It is the master of the term.
    Leads,
    /// It follows the master itself, and passes on what it has: it orders no cut, and acks to it count for nothing.
    Follows,
}

/// Whether a vote is asked for in earnest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Round {
    /// Only to learn whether it would be given: promises nothing, and changes nothing.
    Pre,
    /// The voter promises, durably, before it answers.
    Real,
}

reasons! {
    /// Why a node stands for election, for people.
    VoteReason {
        /// The master was not heard of.
        PrimaryFailure = 1 "the master was not heard of",
        /// The master said that it can reach no majority.
        NetworkPartition = 2 "the master lost its majority",
        /// An operator asked for it.
        ManualFailover = 3 "an operator ordered a change of master",
        /// Two nodes held themselves for master.
        SplitBrainRecovery = 4 "a stale master was found",
    }
}

reasons! {
    /// Why a vote is not given.
    WhyNot {
        /// The term asked for is over, or begun already.
        OldTerm = 1 "the term asked for is past",
        /// Another got the vote of that term.
        VotedForAnother = 2 "another node has the vote of that term",
        /// The candidate's log ends before the voter's.
        LogBehind = 3 "the candidate's log ends before the voter's",
        /// A master was heard of only now.
        MasterAlive = 4 "the voter hears a master",
        /// The voter started only now: its promises of before may still be needed.
        JustStarted = 5 "the voter has just started",
        /// The voter's directory is new, or doubtful: it may lack what it acknowledged.
        NotCaughtUp = 6 "the voter has not caught up since its directory was made or damaged",
        /// The voter's disk or engine failed.
        Failed = 7 "the voter has failed",
        /// The term is so high that no group reaches it.
        AbsurdTerm = 8 "no group reaches the term asked for",
        /// The candidate belongs to another group.
        WrongGroup = 9 "the candidate belongs to another group",
    }
}

/// Asks for a vote in the term of the frame's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vote {
    /// The candidate's group.
    pub group: GroupId,
    /// The candidate.
    pub candidate: NodeId,
    /// Random; comes back in the reply, which thereby names the election that it answers.
    pub election: u64,
    /// Whether in earnest.
    pub round: Round,
    /// Where the candidate's log ends.
    pub last: LogEnd,
    /// Why it stands.
    pub reason: VoteReason,
    /// The master that asked it to: voters who hear exactly that master vote all the same.
    pub instead_of: Option<NodeId>,
}

/// Answers a [`Vote`]. The frame's term is the voter's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VoteReply {
    /// The voter.
    pub voter: NodeId,
    /// The election.
    pub election: u64,
    /// The round.
    pub round: Round,
    /// Nothing if the vote is given.
    pub why_not: Option<WhyNot>,
    /// The master that the voter knows of.
    pub master: Option<NodeId>,
}

/// The sender leads in the term of the frame's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announce {
    /// Its group.
    pub group: GroupId,
    /// Who.
    pub master: NodeId,
    /// Where it listens.
    pub address: Option<Address>,
}

/// Asks what a node has from a VLSN on that is in doubt at the sender's. The same connection may ask for the entries
/// next, by [`EntryRequest`](crate::wire::message::EntryRequest).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survey {
    /// The sender's group.
    pub group: GroupId,
    /// The sender.
    pub node: NodeId,
    /// The entry before the first in doubt.
    pub after: Option<Position>,
}

/// Answers a [`Survey`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SurveyReply {
    /// Who answers.
    pub node: NodeId,
    /// Whether its own directory holds what it acknowledged.
    pub standing: Standing,
    /// Where its log ends. Of an arbiter: its mark, without a CRC.
    pub last: Option<Position>,
    /// Its own entry at the place asked about; `None` if it has none there, or no longer.
    pub after: Option<Position>,
}

/// What an operator, or a node on its own behalf, asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    /// How the node and its group stand.
    Status,
    /// Change the member list. Of the master only.
    Change(Change),
    /// Hand mastership over, to this node or to the best. Of the master only.
    Transfer {
        /// To whom; `None` for the most advanced.
        to: Option<NodeId>,
        /// How long writing may pause. In whole milliseconds on the wire.
        patience: Duration,
    },
    /// Stand for election now. The term guards against acting on an old view: it has to be the node's present one.
    Promote {
        /// The node's term.
        term: Term,
    },
    /// Step down as master, if the node still leads in this term.
    Demote {
        /// Its term.
        term: Term,
    },
    /// Keep the log for somebody, from an entry on. Of the master only; answered when it is committed.
    CreateSlot {
        /// The slot's name, 1 to 64 bytes.
        name: String,
        /// The first entry that it needs; `None` for the next one.
        from: Option<Vlsn>,
    },
    /// The owner of a slot needs nothing before this entry any more. Of the master only.
    MoveSlot {
        /// The slot.
        name: String,
        /// The first entry that it needs.
        to: Vlsn,
    },
    /// Give a slot up. Of the master only.
    DropSlot {
        /// The slot.
        name: String,
    },
    /// Digest entries as they stand in the node's log.
    Digest {
        /// Which.
        range: VlsnRange,
    },
    /// Have every node digest its engine's state at one place of the log. Of the master only.
    Verify,
    /// Begin a round of the scrubber now.
    Scrub,
    /// Write a base to the archive now.
    Archive,
}

impl Order {
    /// What of it fits no message, and how many bytes that has: such an order can't be sent.
    pub fn misfit(&self) -> Option<(&'static str, usize)> {
        let text = |field, text: &str, least| {
            (!(least..=MAX_TEXT).contains(&text.len())).then_some((field, text.len()))
        };
        let address = |address: &Address| {
            let len = address.to_string().len();
            (len > MAX_ADDRESS).then_some(("address", len))
        };
        match self {
            Order::Change(Change::Add(member)) => {
                text("region", &member.region, 0).or_else(|| member.address.as_ref().and_then(address))
            }
            Order::Change(Change::Move { to, .. }) => address(to),
            Order::CreateSlot { name, .. } | Order::MoveSlot { name, .. } | Order::DropSlot { name } => {
                text("slot", name, 1)
            }
            _ => None,
        }
    }
}

/// An operator's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    /// The group that is meant.
    pub group: GroupId,
    /// The order.
    pub order: Order,
}

/// What came of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlReply {
    /// How the node stands.
    Status(Box<NodeStatus>),
    /// It was done; says what changed.
    Done(String),
    /// The node is not the master, and who is.
    NotMaster {
        /// The master's address.
        hint: Option<Address>,
    },
    /// It was not done; says why.
    Refused(String),
    /// The digest asked for.
    Digest(RangeDigest),
    /// This entry can't be read: it is damaged.
    Damaged(Vlsn),
    /// This entry makes every node digest its engine; it is committed.
    Marked(Vlsn),
}

/// What a node is doing in its group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// It leads.
    Master,
    /// It follows a master.
    Replica,
    /// It stands for election.
    Candidate,
    /// It knows of no master.
    Waiting,
    /// It takes no further part.
    Failed,
}

/// How a node and its group stand, as the node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// Its role.
    pub role: Role,
    /// What it is doing.
    pub part: Part,
    /// Whether its directory holds what it acknowledged.
    pub standing: Standing,
    /// Its term.
    pub term: Term,
    /// The master, as far as it knows.
    pub master: Option<NodeId>,
    /// How far it has come.
    pub positions: Ack,
    /// How far it knows the group to be committed.
    pub committed: Option<Vlsn>,
    /// How it fares.
    pub health: Health,
    /// Why it takes no further part; at most 255 bytes.
    pub failed: Option<String>,
    /// What it keeps, for whom, and in what state.
    pub keeping: Box<Keeping>,
    /// The members, and what it knows of them.
    pub members: Vec<MemberStatus>,
}

/// A member, as another node sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberStatus {
    /// The member.
    pub member: Member,
    /// How far it has come; only the master knows.
    pub positions: Ack,
    /// How it fares; only the master knows.
    pub health: Option<Health>,
    /// How long ago it was heard. In whole milliseconds on the wire.
    pub last_seen: Option<Duration>,
}

/// A request to the service that the embedder offers over the node's port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The group that is meant.
    pub group: GroupId,
    /// The embedder's bytes.
    pub body: &'a [u8],
}

/// The service's answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The embedder's bytes.
    pub body: &'a [u8],
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Request({} bytes)", self.body.len())
    }
}

impl std::fmt::Debug for Response<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Response({} bytes)", self.body.len())
    }
}
