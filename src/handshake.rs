//! The handshake: who the two ends are, and what they both can. Nothing else is said before it has ended well.
//!
//! The replica sends [`Hello`]; the master answers [`Welcome`] or [`Reject`](crate::wire::message::Reject). Both halves
//! are functions of the message and of what their side knows.

use crate::ballot::HIGHEST_TERM;
use crate::config::{CheckedConfig, Compression};
use crate::ids::{Position, Term};
use crate::members::{Member, Members, Standing};
use crate::planted::{Bug, active};
use crate::wire::frame::VERSION;
use crate::wire::message::{Capabilities, Feed, Hello, RejectReason, Welcome};

/// What a node says of itself beside its configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Made at random with the directory: another value is another directory, which has lost what the old one had.
    pub incarnation: u64,
    /// Made at random at every open of the directory.
    pub session: u64,
}

/// The opening words of the replica `who`, as it says itself. `last` is the last entry of its log.
pub fn hello(
    config: &CheckedConfig,
    who: &Member,
    own: Identity,
    standing: Standing,
    last: Option<Position>,
) -> Hello {
    Hello {
        versions: (VERSION, VERSION),
        group: config.group,
        node: config.node.clone(),
        incarnation: own.incarnation,
        session: own.session,
        role: who.role,
        region: who.region.clone(),
        slot: config.slot.clone(),
        capabilities: capabilities(config),
        max_frame: config.max_frame,
        last,
        standing,
        address: who.address.clone(),
    }
}

/// What this node can and wants.
fn capabilities(config: &CheckedConfig) -> Capabilities {
    match config.compression {
        Compression::Off => Capabilities::RANGE_READ,
        Compression::Lz4 => Capabilities::ours(),
    }
}

/// The answer to a hello of the master, or of a replica that passes on what it has, by the member list in force.
///
/// # Errors
/// The reason to refuse, as the replica is told it.
pub fn judge_hello(
    config: &CheckedConfig,
    members: &Members,
    own: Identity,
    term: Term,
    feed: Feed,
    hello: &Hello,
) -> Result<Welcome, RejectReason> {
    if hello.group != config.group {
        return Err(RejectReason::WrongGroup { ours: config.group });
    }
    let (min, max) = hello.versions;
    if !(min..=max).contains(&VERSION) {
        return Err(RejectReason::NoCommonVersion { min: VERSION, max: VERSION });
    }
    if hello.node == config.node {
        return Err(RejectReason::OwnName);
    }
    let Some(member) = members.find(&hello.node) else {
        return Err(RejectReason::UnknownNode);
    };
    if member.role != hello.role || member.region != hello.region {
        return Err(RejectReason::MemberDiffers);
    }
    if hello.last.is_some_and(|last| last.term > term) {
        return Err(RejectReason::TermAhead { ours: term });
    }
    Ok(Welcome {
        version: VERSION,
        node: config.node.clone(),
        incarnation: own.incarnation,
        session: own.session,
        capabilities: hello.capabilities.intersection(capabilities(config)),
        max_frame: hello.max_frame.min(config.max_frame),
        heartbeat: config.heartbeat,
        feed,
    })
}

/// Why a replica turns away from the node that welcomed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WelcomeError {
    /// The other end chose a version that we did not offer.
    #[error("the master chose protocol version {chosen}; this node speaks {VERSION}")]
    Version {
        /// What it chose.
        chosen: u8,
    },
    /// The other end is not in our member list.
    #[error("{0} is not among the members that this node knows")]
    UnknownMaster(crate::ids::NodeId),
    /// It claims something that we did not offer.
    #[error("the master chose capabilities or a frame limit that this node did not offer")]
    NotOffered,
    /// Its term is so high that no later one could follow for long: nobody gets there by changes of master.
    #[error("the master claims term {theirs}, which no group reaches")]
    AbsurdTerm {
        /// The term it claims.
        theirs: Term,
    },
    /// It is the master of an older term: deposed, restored from a backup, or wiped.
    #[error(
        "the master is in term {theirs}, but this node has followed term {ours}: it is stale, or its directory was lost"
    )]
    StaleTerm {
        /// The term it leads.
        theirs: Term,
        /// The highest term that this node has seen.
        ours: Term,
    },
}

/// Whether the replica accepts the welcome of a node in term `theirs`, by the members that it knows, having seen terms
/// up to `ours`.
///
/// # Errors
/// [`WelcomeError`].
pub fn judge_welcome(
    config: &CheckedConfig,
    masters: Option<&Members>,
    ours: Term,
    theirs: Term,
    welcome: &Welcome,
) -> Result<(), WelcomeError> {
    if welcome.version != VERSION {
        return Err(WelcomeError::Version { chosen: welcome.version });
    }
    if masters.is_some_and(|list| list.iter().next().is_some() && list.find(&welcome.node).is_none()) {
        return Err(WelcomeError::UnknownMaster(welcome.node.clone()));
    }
    let offered = capabilities(config);
    if welcome.capabilities.intersection(offered) != welcome.capabilities
        || welcome.max_frame > config.max_frame
    {
        return Err(WelcomeError::NotOffered);
    }
    if theirs > HIGHEST_TERM {
        return Err(WelcomeError::AbsurdTerm { theirs });
    }
    if (theirs < ours && !active(Bug::LowerTermAccepted)) || theirs == Term::NONE {
        return Err(WelcomeError::StaleTerm { theirs, ours });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::ids::{GroupId, NodeId, Vlsn};
    use crate::members::{Change, Role};

    fn config(node: &str) -> CheckedConfig {
        let id = |name| NodeId::new(name).unwrap();
        let mut config = Config::new(GroupId::from_bits(9), id(node), "dir");
        let list = ["m", "r"].map(|name| Member::electable(id(name)));
        config.members = Members::new(list.to_vec()).unwrap();
        config.check().unwrap()
    }

    const OWN: Identity = Identity { incarnation: 1, session: 2 };

    fn judge(change: impl FnOnce(&mut Hello)) -> Result<Welcome, RejectReason> {
        let mut hello = hello(
            &config("r"),
            &Member::electable(NodeId::new("r").unwrap()),
            OWN,
            Standing::Full { since: Term::NONE },
            None,
        );
        change(&mut hello);
        let config = config("m");
        judge_hello(&config, &config.members, OWN, Term::new(3), Feed::Leads, &hello)
    }

    #[test]
    fn the_list_in_force_decides_and_not_the_configuration() {
        let config = config("m");
        let hello = hello(
            &self::config("r"),
            &Member::electable(NodeId::new("r").unwrap()),
            OWN,
            Standing::Newcomer,
            None,
        );
        let judged = |list: &Members| judge_hello(&config, list, OWN, Term::new(3), Feed::Follows, &hello);
        let r = NodeId::new("r").unwrap();
        let without = config.members.changed(&Change::Remove(r.clone())).unwrap();
        assert_eq!(judged(&without), Err(RejectReason::UnknownNode));
        // A learner is taken in as what it will be, even before its standing counts.
        let learner = without.changed(&Change::Add(Member::electable(r.clone()))).unwrap();
        assert_eq!(judged(&learner).map(|welcome| welcome.feed), Ok(Feed::Follows));
        let other = Member { role: Role::Secondary, ..Member::electable(r) };
        let other = without.changed(&Change::Add(other)).unwrap();
        assert_eq!(judged(&other), Err(RejectReason::MemberDiffers));
    }

    #[test]
    fn two_members_of_a_group_agree() {
        let welcome = judge(|_| ()).unwrap();
        assert_eq!(welcome.version, VERSION);
        assert_eq!(
            judge_welcome(&config("r"), Some(&config("r").members), Term::new(3), Term::new(3), &welcome),
            Ok(())
        );
    }

    #[test]
    fn strangers_are_told_why_they_are_refused() {
        let other = GroupId::from_bits(8);
        let group = GroupId::from_bits(9);
        assert_eq!(judge(|h| h.group = other), Err(RejectReason::WrongGroup { ours: group }));
        let newer = (VERSION + 1, VERSION + 4);
        assert_eq!(
            judge(|h| h.versions = newer),
            Err(RejectReason::NoCommonVersion { min: VERSION, max: VERSION })
        );
        assert_eq!(judge(|h| h.node = NodeId::new("m").unwrap()), Err(RejectReason::OwnName));
        assert_eq!(judge(|h| h.node = NodeId::new("x").unwrap()), Err(RejectReason::UnknownNode));
        assert_eq!(judge(|h| h.role = Role::Secondary), Err(RejectReason::MemberDiffers));
        assert_eq!(judge(|h| h.region = "moon".into()), Err(RejectReason::MemberDiffers));
        let ahead = Position { vlsn: Vlsn::FIRST, term: Term::new(4), crc: 0 };
        assert_eq!(judge(|h| h.last = Some(ahead)), Err(RejectReason::TermAhead { ours: Term::new(3) }));
    }

    #[test]
    fn a_replica_refuses_a_stale_or_strange_master() {
        let welcome = judge(|_| ()).unwrap();
        let verdict = |term, welcome: &Welcome| {
            judge_welcome(&config("r"), Some(&config("r").members), Term::new(3), Term::new(term), welcome)
        };
        assert!(matches!(verdict(2, &welcome), Err(WelcomeError::StaleTerm { .. })));
        assert!(matches!(verdict(u32::MAX, &welcome), Err(WelcomeError::AbsurdTerm { .. })));
        let strange = Welcome { node: NodeId::new("x").unwrap(), ..welcome.clone() };
        assert!(matches!(verdict(3, &strange), Err(WelcomeError::UnknownMaster(_))));
        let newer = Welcome { version: VERSION + 1, ..welcome.clone() };
        assert!(matches!(verdict(3, &newer), Err(WelcomeError::Version { .. })));
        let large = Welcome { max_frame: u32::MAX, ..welcome };
        assert_eq!(verdict(3, &large), Err(WelcomeError::NotOffered));
    }

    #[test]
    fn frame_limits_and_capabilities_are_the_lower_of_both() {
        let welcome = judge(|h| h.max_frame = 70_000).unwrap();
        assert_eq!(welcome.max_frame, 70_000);
        assert_eq!(welcome.capabilities, Capabilities::RANGE_READ);
    }
}
