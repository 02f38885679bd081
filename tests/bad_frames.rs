//! What a frame or a message must not be, and that each refusal names its facts.
#![allow(missing_docs, reason = "tests")]

use std::time::Duration;

use proptest::prelude::*;
use quorate::address::Address;
use quorate::ids::{GroupId, LogEnd, NodeId, Position, Term, TermSpan, Vlsn, VlsnRange};
use quorate::members::{Admission, Change, Health, Member, Members, Role, Standing};
use quorate::slots::{Invalid, Slot, Slots};
use quorate::wire::frame::{FrameError, FrameHeader, HEADER_LEN, MessageType, VERSION, payload_crc};
use quorate::wire::message::*;

fn frame(message: &Message<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(Term::new(3), 42, &mut out);
    out
}

/// A good frame around any payload.
fn around(kind: MessageType, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        kind,
        compressed: false,
        payload_len: payload.len() as u32,
        term: Term::new(3),
        sequence: 1,
        payload_crc: payload_crc(kind, false, payload),
    };
    [&header.encode()[..], payload].concat()
}

/// A header with these bytes changed, and its CRC made right again.
fn patched(mut frame: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    frame[at] = byte;
    let crc = crc32fast::hash(&frame[..28]);
    frame[28..32].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn samples() -> Vec<Message<'static>> {
    let v = Vlsn::new;
    let at = v(7).map(|vlsn| Position { vlsn, term: Term::new(2), crc: 9 });
    let node = NodeId::new("db-1").expect("a name");
    let (first, last) = (Vlsn::FIRST, Vlsn::FIRST.next());
    let group = GroupId::from_bits(77);
    let mut all = vec![
        Message::Hello(Hello {
            versions: (1, 2),
            group,
            node: node.clone(),
            incarnation: 5,
            session: 6,
            role: Role::Secondary,
            region: "eu".into(),
            slot: Some("s".into()),
            capabilities: Capabilities::LZ4,
            max_frame: 1 << 20,
            last: at,
            standing: Standing::Full { since: Term::new(2) },
            address: Some(Address::Tcp("db1:7000".into())),
        }),
        Message::Welcome(Welcome {
            version: 1,
            node,
            incarnation: 1,
            session: 2,
            capabilities: Capabilities::NONE,
            max_frame: 1 << 20,
            heartbeat: Duration::from_millis(100),
            feed: Feed::Leads,
        }),
        Message::Syncup(Syncup {
            last: at,
            committed: v(3),
            history: vec![
                TermSpan { term: Term::new(1), first },
                TermSpan { term: Term::new(2), first: last },
            ],
        }),
        Message::Matchpoint(Matchpoint { at }),
        Message::Matchpoint(Matchpoint { at: None }),
        Message::NeedSnapshot(NeedSnapshot { oldest: v(9), provider: None }),
        Message::Behind(Behind { last: None }),
        Message::Entries(Entries {
            committed: v(1),
            durable_wanted: None,
            applied_wanted: None,
            first,
            last,
            run: b"entries",
        }),
        Message::EntryRequest(EntryRequest { from: first, to: last, max_entries: 3, max_bytes: 4 }),
        Message::Ack(Ack { received: v(4), durable: v(3), applied: v(2), checkpointed: v(1) }),
        Message::Nack(Nack { reason: NackReason::Hole, at: v(2) }),
        Message::Heartbeat(Heartbeat {
            written: v(4),
            flushed: v(3),
            committed: v(2),
            durable_wanted: v(4),
            applied_wanted: v(2),
            health: Health::Degraded,
            clock: 99,
        }),
        Message::HeartbeatReply(HeartbeatReply {
            clock: 99,
            health: Health::CatchingUp,
            standing: Standing::Doubtful { from: last },
        }),
        Message::Fence,
        Message::Bye(Bye { reason: ByeReason::Deposed }),
    ];
    let reasons = [
        RejectReason::WrongGroup { ours: group },
        RejectReason::UnknownNode,
        RejectReason::NoCommonVersion { min: 1, max: 3 },
        RejectReason::NotMaster { hint: Some(Address::Tcp("db1:7000".into())) },
        RejectReason::NotMaster { hint: None },
        RejectReason::Superseded { session: 8 },
        RejectReason::OwnName,
        RejectReason::TermAhead { ours: Term::new(2) },
        RejectReason::MemberDiffers,
        RejectReason::Busy,
        RejectReason::Protocol,
        RejectReason::NoSnapshot,
    ];
    all.extend(reasons.map(|reason| Message::Reject(Reject { reason })));
    all.extend(group_samples());
    all.extend(snapshot_samples());
    all
}

/// A snapshot's conversation.
fn snapshot_samples() -> Vec<Message<'static>> {
    let id = SnapshotId { incarnation: 1, session: 2, number: 3 };
    let at = SnapshotPlace { item: 4, offset: 5 << 32 };
    let node = NodeId::new("db-2").expect("a name");
    let request =
        SnapshotRequest { group: GroupId::from_bits(79), node, at_least: Vlsn::new(6), resume: None };
    vec![
        Message::SnapshotRequest(SnapshotRequest { resume: Some((id, at)), ..request.clone() }),
        Message::SnapshotRequest(SnapshotRequest { at_least: None, ..request }),
        Message::SnapshotBegin(SnapshotBegin { id, from: at, of: Some(99), base: b"a base".to_vec() }),
        Message::SnapshotItem(SnapshotItem { item: 4, name: "records.redb".into(), len: Some(1 << 40) }),
        Message::SnapshotItem(SnapshotItem { item: 5, name: "x".into(), len: None }),
        Message::SnapshotChunk(SnapshotChunk { at, bytes: b"bytes" }),
        Message::SnapshotItemEnd(SnapshotItemEnd { at, digest: 7 << 100 }),
        Message::SnapshotEnd(SnapshotEnd { items: 6, bytes: 1 << 40, digest: 8 << 100 }),
        Message::SnapshotAck(SnapshotAck { at }),
        Message::NeedSnapshot(NeedSnapshot {
            oldest: Vlsn::new(9),
            provider: Some(Address::Tcp("db3:7000".into())),
        }),
    ]
}

/// What a node keeps, with every part of it there.
fn keeping() -> Keeping {
    let v = |number| Vlsn::new(number).expect("not 0");
    let transfer = |of| TransferStatus { peer: "db-3".into(), at: v(90), bytes: 1 << 33, of };
    Keeping {
        oldest: Vlsn::new(5),
        pins: vec![PinStatus {
            owner: "slot:backup".into(),
            from: v(7),
            since: Duration::from_millis(1_500),
            bytes: 1 << 34,
        }],
        slots: vec![
            Slot { name: "backup".into(), from: v(7), created: 99, invalid: None },
            Slot { name: "old".into(), from: v(2), created: 98, invalid: Some(Invalid::Bytes) },
        ],
        fetching: Some(transfer(None)),
        giving: vec![transfer(Some(1 << 34)), transfer(None)],
        scrub: ScrubStatus {
            at: Vlsn::new(8),
            ended: 1_700_000_000_000_000,
            bytes: 1 << 35,
            found: 2,
            healed: 1,
        },
        damaged: VlsnRange::new(v(20), v(30)),
        archive: Some(ArchiveStatus {
            last: Vlsn::new(70),
            base: Vlsn::new(60),
            failed: Some("the archive's disk is full".into()),
        }),
        engine: Some(EngineDigest { at: v(66), state: EngineState::Digest(9 << 100) }),
    }
}

/// The messages of a group that runs itself, each variant of their fields at least once.
fn group_samples() -> Vec<Message<'static>> {
    let v = Vlsn::new;
    let group = GroupId::from_bits(78);
    let [a, b] = ["db-1", "db-2"].map(|name| NodeId::new(name).expect("a name"));
    let at = v(7).map(|vlsn| Position { vlsn, term: Term::new(2), crc: 9 });
    let address = Some(Address::Tcp("db2:7000".into()));
    let member = Member {
        role: Role::Arbiter,
        admission: Admission::Learner,
        address: address.clone(),
        region: "eu".into(),
        ..Member::electable(b.clone())
    };
    let positions = Ack { received: v(4), durable: v(3), applied: v(2), checkpointed: v(1) };
    let vote = Vote {
        group,
        candidate: a.clone(),
        election: 11,
        round: Round::Real,
        last: LogEnd { term: Term::new(2), vlsn: v(9) },
        reason: VoteReason::PrimaryFailure,
        instead_of: Some(b.clone()),
    };
    let reply = VoteReply {
        voter: b.clone(),
        election: 11,
        round: Round::Real,
        why_not: None,
        master: Some(a.clone()),
    };
    let status = NodeStatus {
        group,
        node: a.clone(),
        role: Role::Electable,
        part: Part::Master,
        standing: Standing::Full { since: Term::NONE },
        term: Term::new(3),
        master: Some(a.clone()),
        positions,
        committed: v(3),
        health: Health::Healthy,
        failed: None,
        keeping: Box::new(keeping()),
        members: vec![
            MemberStatus { member: Member::electable(a.clone()), positions, health: None, last_seen: None },
            MemberStatus {
                member: member.clone(),
                positions: Ack::default(),
                health: Some(Health::Lagging),
                last_seen: Some(Duration::from_millis(1_500)),
            },
        ],
    };
    let failed = NodeStatus {
        part: Part::Failed,
        failed: Some("the disk".into()),
        keeping: Box::default(),
        members: Vec::new(),
        ..status.clone()
    };
    let survey =
        |standing, after| Message::SurveyReply(SurveyReply { node: b.clone(), standing, last: at, after });
    let mut all = vec![
        Message::Vote(Vote { round: Round::Pre, last: LogEnd::EMPTY, instead_of: None, ..vote.clone() }),
        Message::Vote(vote),
        Message::VoteReply(VoteReply { master: None, ..reply.clone() }),
        Message::VoteReply(VoteReply { why_not: Some(WhyNot::LogBehind), ..reply }),
        Message::Announce(Announce { group, master: a.clone(), address: address.clone() }),
        Message::Announce(Announce { group, master: a.clone(), address: None }),
        Message::Survey(Survey { group, node: a.clone(), after: at }),
        Message::Survey(Survey { group, node: a.clone(), after: None }),
        survey(Standing::Newcomer, None),
        survey(Standing::Doubtful { from: Vlsn::FIRST }, at),
        Message::Stand,
        Message::Request(Request { group, body: b"what" }),
        Message::Request(Request { group, body: b"" }),
        Message::Response(Response { body: b"that" }),
        Message::Response(Response { body: b"" }),
    ];
    let patience = Duration::from_millis(250);
    let range = VlsnRange::new(Vlsn::FIRST, Vlsn::FIRST.next()).expect("rises");
    let orders = [
        Order::Status,
        Order::Change(Change::Add(member)),
        Order::Change(Change::Promote(b.clone())),
        Order::Change(Change::Remove(b.clone())),
        Order::Change(Change::Move { node: b.clone(), to: Address::Local("b".into()) }),
        Order::Transfer { to: Some(b), patience },
        Order::Transfer { to: None, patience },
        Order::Promote { term: Term::new(4) },
        Order::Demote { term: Term::new(5) },
        Order::CreateSlot { name: "backup".into(), from: v(7) },
        Order::CreateSlot { name: "x".repeat(64), from: None },
        Order::MoveSlot { name: "backup".into(), to: Vlsn::FIRST },
        Order::DropSlot { name: "backup".into() },
        Order::Digest { range },
        Order::Verify,
        Order::Scrub,
        Order::Archive,
    ];
    all.extend(orders.map(|order| Message::Control(Control { group, order })));
    let replies = [
        ControlReply::Status(Box::new(status)),
        ControlReply::Status(Box::new(failed)),
        ControlReply::Done("added".into()),
        ControlReply::NotMaster { hint: address },
        ControlReply::NotMaster { hint: None },
        ControlReply::Refused("not now".into()),
        ControlReply::Digest(RangeDigest {
            range,
            bytes: 1 << 33,
            digest: 10 << 100,
            last: Position { vlsn: range.last(), term: Term::new(2), crc: 9 },
        }),
        ControlReply::Damaged(Vlsn::FIRST),
        ControlReply::Marked(Vlsn::FIRST),
    ];
    all.extend(replies.map(Message::ControlReply));
    all
}

/// Bytes of the payload before a part of any length, in the messages that end with one.
fn fixed_part(kind: MessageType) -> Option<usize> {
    match kind {
        MessageType::Entries => Some(40),
        MessageType::Request => Some(16),
        MessageType::Response => Some(0),
        MessageType::SnapshotBegin => Some(44),
        MessageType::SnapshotChunk => Some(12),
        _ => None,
    }
}

#[test]
fn every_message_round_trips_and_every_type_has_a_sample() {
    for message in samples() {
        let bytes = frame(&message);
        let (header, read) = Message::decode(&bytes).expect("decodes");
        assert_eq!(read, message);
        assert_eq!((header.kind, header.term, header.sequence), (message.kind(), Term::new(3), 42));
    }
    for kind in MessageType::ALL {
        assert!(samples().iter().any(|message| message.kind() == *kind), "{kind}");
    }
}

#[test]
fn every_flipped_bit_of_header_and_covered_payload_is_refused() {
    for message in samples() {
        let bytes = frame(&message);
        let covered = if message.kind() == MessageType::Entries { HEADER_LEN + 40 } else { bytes.len() };
        for bit in 0..covered * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Message::decode(&damaged).is_err(), "{message:?}, bit {bit}");
        }
    }
}

#[test]
fn every_cut_and_every_addition_is_refused() {
    for message in samples() {
        let bytes = frame(&message);
        for cut in 0..bytes.len() {
            let error = Message::decode(&bytes[..cut]).expect_err("cut");
            assert!(matches!(error, WireError::Frame(FrameError::Short { present, .. }) if present == cut));
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(Message::decode(&longer), Err(FrameError::Trailing(1).into()));
        // The same with a frame around that is good.
        let (kind, payload) = (message.kind(), &bytes[HEADER_LEN..]);
        for cut in 0..fixed_part(kind).unwrap_or(payload.len()) {
            assert!(Message::decode(&around(kind, &payload[..cut])).is_err(), "{message:?} cut at {cut}");
        }
        if fixed_part(kind).is_none() {
            let longer = [payload, b"x"].concat();
            assert_eq!(Message::decode(&around(kind, &longer)), Err(WireError::Trailing { kind, extra: 1 }));
        }
    }
}

#[test]
fn a_byte_changed_inside_a_good_frame_never_panics() {
    for message in samples() {
        let (kind, bytes) = (message.kind(), frame(&message));
        let payload = &bytes[HEADER_LEN..];
        for at in 0..payload.len() {
            for byte in 0..=255 {
                let mut damaged = payload.to_vec();
                damaged[at] = byte;
                // What is read all the same can be written, and reads the same again.
                if let Ok((_, read)) = Message::decode(&around(kind, &damaged)) {
                    let again = frame(&read);
                    assert_eq!(
                        Message::decode(&again).map(|(_, read)| read),
                        Ok(read),
                        "{message:?} at {at}"
                    );
                }
            }
        }
    }
}

#[test]
fn headers_are_refused_by_name() {
    let good = frame(&Message::Fence);
    let parse = |bytes: &[u8]| FrameHeader::parse(bytes, 4096).expect_err("refused");
    assert_eq!(parse(&patched(good.clone(), 0, b'X')), FrameError::NotOurs { found: *b"XUOR" });
    assert_eq!(parse(&patched(good.clone(), 4, 9)), FrameError::Version { found: 9, ours: VERSION });
    assert_eq!(
        parse(&patched(good.clone(), 4, 9)).to_string(),
        "the frame is of protocol version 9, and this node speaks version 1"
    );
    assert_eq!(parse(&patched(good.clone(), 5, 99)), FrameError::UnknownType { found: 99, version: 1 });
    let unknown = FrameError::UnknownFlags { kind: MessageType::Fence, found: 1 };
    assert_eq!(parse(&patched(good.clone(), 6, 1)), unknown);
    assert_eq!(parse(&patched(good.clone(), 10, 1)), FrameError::TooLong { len: 65_536 + 32, limit: 4096 });
    let longest = [255; 4].iter().enumerate().fold(good, |f, (i, byte)| patched(f, 8 + i, *byte));
    assert!(matches!(parse(&longest), FrameError::TooLong { len, .. } if len == u64::from(u32::MAX) + 32));
}

#[test]
fn values_out_of_range_are_refused_by_name() {
    let value = |kind, payload: &[u8], field: &str| {
        let error = Message::decode(&around(kind, payload)).expect_err("refused");
        let named = match &error {
            WireError::Value { field, .. }
            | WireError::Text { field, .. }
            | WireError::Short { field, .. } => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(*named, field, "{error}");
    };
    for number in [0, 7, 255] {
        value(MessageType::Bye, &[number], "reason");
        value(MessageType::HeartbeatReply, &[0, 0, 0, 0, 0, 0, 0, 0, number], "health");
    }
    let standing = |kind: u8, at: u64| {
        let reply = [&[0; 8][..], &[1, kind], &at.to_le_bytes()].concat();
        value(MessageType::HeartbeatReply, &reply, "standing");
    };
    standing(3, 0);
    standing(0, 1);
    standing(1, 0);
    standing(1, MAX_VLSN + 1);
    standing(2, 1 << 32);
    let of_group = |rest: &[u8]| [&[0; 16][..], rest].concat();
    value(MessageType::Vote, &of_group(&[&[0; 8][..], &[0]].concat()), "round");
    value(MessageType::Vote, &of_group(&[&[0; 8][..], &[3]].concat()), "round");
    value(MessageType::Vote, &of_group(&[&[0; 8][..], &[1], &[0; 12], &[5]].concat()), "reason");
    value(MessageType::VoteReply, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 10], "why_not");
    value(MessageType::Announce, &of_group(&[0]), "master");
    value(MessageType::Announce, &of_group(&[1, b'a', 1, b'x']), "address");
    for order in [0, 13] {
        value(MessageType::Control, &of_group(&[order]), "order");
    }
    value(MessageType::Control, &of_group(&[2, 5]), "change");
    value(MessageType::Control, &of_group(&[2, 1, 4]), "member.role");
    value(MessageType::Control, &of_group(&[2, 1, 1, 2]), "member.admission");
    value(MessageType::Control, &of_group(&[2, 4, 1, b'a', 0]), "change.to");
    for reply in [0, 8] {
        value(MessageType::ControlReply, &[reply], "reply");
    }
    value(MessageType::Nack, &[9, 0, 0, 0, 0, 0, 0, 0, 0], "reason");
    value(MessageType::Reject, &[12], "reason");
    value(MessageType::Reject, &[4, 2, b'x', b'y'], "reason.hint");
    value(MessageType::Behind, &[255; 8], "last");
    value(MessageType::Matchpoint, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "at");
    let [zero, one, two] = [0u64, 1, 2].map(u64::to_le_bytes);
    value(MessageType::Entries, &[zero, zero, zero, zero, one].concat(), "first");
    value(MessageType::Entries, &[zero, zero, zero, two, one].concat(), "last");
    value(MessageType::Entries, &[zero, zero, zero, one, one].concat(), "run");
    value(MessageType::EntryRequest, &[two, one, zero].concat(), "to");
    let mut hello = frame(&samples()[0])[HEADER_LEN..].to_vec();
    let name = hello.windows(4).position(|w| w == b"db-1").expect("the name");
    hello[name] = b'/';
    value(MessageType::Hello, &hello, "node");
    let mut hello = frame(&samples()[0])[HEADER_LEN..].to_vec();
    hello[2] = 4;
    value(MessageType::Hello, &hello, "role");
    hello[0] = 9;
    value(MessageType::Hello, &hello, "versions.min");
}

#[test]
fn what_recovery_says_is_refused_by_name() {
    let named = |kind, payload: &[u8]| match Message::decode(&around(kind, payload)) {
        Err(
            WireError::Value { field, .. } | WireError::Text { field, .. } | WireError::Short { field, .. },
        ) => field,
        other => panic!("{other:?}"),
    };
    let [zero, one, two, beyond] = [0, 1, 2, MAX_VLSN + 1].map(u64::to_le_bytes);
    let order = |rest: &[&[u8]]| named(MessageType::Control, &[&[0; 16], &rest.concat()[..]].concat());
    assert_eq!(order(&[&[6, 0], &one]), "slot");
    assert_eq!(order(&[&[6, 65], &[b'x'; 65], &one]), "slot");
    assert_eq!(order(&[&[6, 1, b's'], &beyond]), "from");
    assert_eq!(order(&[&[7, 1, b's'], &zero]), "to");
    assert_eq!(order(&[&[8, 1, 0xff]]), "slot");
    for (first, last) in [(zero, one), (one, zero), (two, one), (one, beyond)] {
        assert_eq!(order(&[&[9], &first, &last]), "range");
    }
    let reply = |rest: &[&[u8]]| named(MessageType::ControlReply, &rest.concat());
    assert_eq!(reply(&[&[5], &two, &one, &zero, &[0; 16], &[0; 16]]), "range");
    assert_eq!(reply(&[&[5], &one, &two, &zero, &[0; 16], &[0; 16]]), "last");
    assert_eq!(reply(&[&[6], &zero]), "damaged");
    assert_eq!(reply(&[&[7], &beyond]), "marked");
    let (request, begin) = (MessageType::SnapshotRequest, MessageType::SnapshotBegin);
    let asked = |rest: &[&[u8]]| named(request, &[&[0; 16], &rest.concat()[..]].concat());
    assert_eq!(asked(&[&[0], &zero, &[0]]), "node");
    assert_eq!(asked(&[&[1, b'a'], &beyond, &[0]]), "at_least");
    assert_eq!(asked(&[&[1, b'a'], &zero, &[2]]), "resume");
    assert_eq!(asked(&[&[1, b'a'], &zero, &[1], &one, &two]), "id.number");
    assert_eq!(named(begin, &[0; 30]), "at.offset");
    assert_eq!(named(begin, &[0; 43]), "of");
    let item = |name: &str| {
        let payload = [&[0; 4][..], &[name.len() as u8], name.as_bytes(), &one].concat();
        named(MessageType::SnapshotItem, &payload)
    };
    for name in ["", ".", "..", "a/b", "/etc/passwd", "a b", "ü", &"x".repeat(65)] {
        assert_eq!(item(name), "name", "{name}");
    }
    assert_eq!(named(MessageType::SnapshotChunk, &[0; 12]), "bytes");
    assert_eq!(named(MessageType::SnapshotChunk, &vec![0; 12 + MAX_CHUNK + 1]), "bytes");
    assert_eq!(named(MessageType::SnapshotItemEnd, &[0; 27]), "digest");
    assert_eq!(named(MessageType::SnapshotEnd, &[0; 27]), "digest");
    assert_eq!(named(MessageType::SnapshotAck, &[0; 11]), "at.offset");
    assert_eq!(named(MessageType::NeedSnapshot, &[&zero[..], &[3], b"x:y"].concat()), "provider");
    let largest = SnapshotChunk { at: SnapshotPlace::default(), bytes: &[7; MAX_CHUNK] };
    let bytes = frame(&Message::SnapshotChunk(largest));
    assert_eq!(Message::decode(&bytes).map(|(_, read)| read), Ok(Message::SnapshotChunk(largest)));
}

/// A status that says this of what the node keeps.
fn status_with(keeping: Keeping) -> Message<'static> {
    let status = NodeStatus { keeping: Box::new(keeping), ..plain_status() };
    Message::ControlReply(ControlReply::Status(Box::new(status)))
}

fn plain_status() -> NodeStatus {
    NodeStatus {
        group: GroupId::from_bits(1),
        node: NodeId::new("a").expect("a name"),
        role: Role::Electable,
        part: Part::Waiting,
        standing: Standing::Newcomer,
        term: Term::NONE,
        master: None,
        positions: Ack::default(),
        committed: None,
        health: Health::Healthy,
        failed: None,
        keeping: Box::default(),
        members: Vec::new(),
    }
}

#[test]
fn what_a_node_keeps_is_refused_by_name() {
    // Where it begins in the payload: every part of the empty one is at a fixed place from there on.
    let payload = frame(&status_with(Keeping::default()))[HEADER_LEN..].to_vec();
    let keeping = payload.len() - 1 - (8 + 1 + (4 + 2) + 1 + 1 + 32 + 1 + 1 + 8);
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = payload.clone();
        changed[keeping + at..keeping + at + bytes.len()].copy_from_slice(bytes);
        match Message::decode(&around(MessageType::ControlReply, &changed)) {
            Err(
                WireError::Value { field, .. }
                | WireError::Text { field, .. }
                | WireError::Short { field, .. },
            ) => field,
            other => panic!("{other:?}"),
        }
    };
    assert!(Message::decode(&around(MessageType::ControlReply, &payload)).is_ok());
    assert_eq!(with(0, &[255; 8]), "oldest");
    // A pin whose owner has no bytes, then VLSN 0.
    assert_eq!(with(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "pin.from");
    assert_eq!(with(9, &u32::MAX.to_le_bytes()), "slots");
    assert_eq!(with(9, &3u32.to_le_bytes()), "slots");
    assert_eq!(with(13, &[2]), "slots");
    assert_eq!(with(15, &[2]), "fetching");
    assert_eq!(with(15, &[1]), "transfer.at");
    assert_eq!(with(16, &[255]), "transfer.at");
    assert_eq!(with(17, &[255; 8]), "scrub.at");
    assert_eq!(with(49, &[2]), "damaged");
    assert_eq!(with(49, &[1]), "damaged");
    assert_eq!(with(50, &[2]), "archive");
    assert_eq!(with(51, &[255; 8]), "engine.at");
    // With an entry there the rest is read into the number of members, and beyond.
    assert_eq!(with(51, &1u64.to_le_bytes()), "engine.state");
    let told =
        |state| Keeping { engine: Some(EngineDigest { at: Vlsn::FIRST, state }), ..Keeping::default() };
    for state in [EngineState::Digest(7), EngineState::NoSnapshots, EngineState::Failed("no".into())] {
        let message = status_with(told(state));
        assert_eq!(Message::decode(&frame(&message)).map(|(_, read)| read), Ok(message));
    }
}

#[test]
fn a_status_is_cut_to_what_the_wire_carries_and_never_panics() {
    let one = keeping();
    let long = "ü".repeat(300);
    let slots = (0..80u64).map(|at| Slot { name: format!("s{at}"), ..one.slots[0].clone() }).collect();
    let told = Keeping {
        pins: vec![PinStatus { owner: long.clone(), since: Duration::MAX, ..one.pins[0].clone() }; 300],
        giving: vec![TransferStatus { peer: long.clone(), of: Some(u64::MAX), ..one.giving[0].clone() }; 300],
        // No list that a group can have: none is told.
        slots,
        archive: Some(ArchiveStatus { failed: Some(long.clone()), ..ArchiveStatus::default() }),
        ..one
    };
    let bytes = frame(&status_with(told));
    let Ok((_, Message::ControlReply(ControlReply::Status(read)))) = Message::decode(&bytes) else {
        panic!("a status");
    };
    let cut = "ü".repeat(127);
    assert_eq!((read.keeping.pins.len(), read.keeping.giving.len()), (MAX_PINS, MAX_PINS));
    assert_eq!((&read.keeping.pins[0].owner, &read.keeping.giving[0].peer), (&cut, &cut));
    assert_eq!((read.keeping.giving[0].of, read.keeping.slots.len()), (None, 0));
    assert_eq!(read.keeping.archive.and_then(|archive| archive.failed), Some(cut));
    // The most that a group may have of everything fits.
    let slots: Vec<Slot> = (0..Slots::MAX)
        .map(|at| Slot { name: format!("{at:02}{}", "x".repeat(62)), ..keeping().slots[0].clone() })
        .collect();
    let bytes = frame(&status_with(Keeping { slots: slots.clone(), ..keeping() }));
    let Ok((_, Message::ControlReply(ControlReply::Status(read)))) = Message::decode(&bytes) else {
        panic!("a status");
    };
    assert_eq!(read.keeping.slots, slots);
}

#[test]
fn an_order_whose_text_fits_no_message_is_found_before_it_is_sent() {
    let slot = |len| Order::DropSlot { name: "x".repeat(len) };
    assert_eq!((slot(1).misfit(), slot(64).misfit()), (None, None));
    assert_eq!((slot(0).misfit(), slot(65).misfit()), (Some(("slot", 0)), Some(("slot", 65))));
    let member = Member { region: "r".repeat(65), ..Member::electable(NodeId::new("a").expect("a name")) };
    assert_eq!(Order::Change(Change::Add(member)).misfit(), Some(("region", 65)));
    let long = Address::Unix("/".repeat(300).into());
    let moved = Change::Move { node: NodeId::new("a").expect("a name"), to: long.clone() };
    assert_eq!(Order::Change(moved).misfit(), Some(("address", 305)));
    // What passes can be sent.
    for message in group_samples() {
        if let Message::Control(Control { order, .. }) = &message {
            assert_eq!(order.misfit(), None);
            assert!(Message::decode(&frame(&message)).is_ok());
        }
    }
}

#[test]
fn a_history_is_bounded_before_it_is_allocated_and_must_rise() {
    let syncup = |count: u32, spans: &[(u32, u64)]| {
        let mut payload = vec![0; 24];
        payload.extend_from_slice(&count.to_le_bytes());
        for (term, first) in spans {
            payload.extend_from_slice(&term.to_le_bytes());
            payload.extend_from_slice(&first.to_le_bytes());
        }
        Message::decode(&around(MessageType::Syncup, &payload)).map(|_| ())
    };
    assert_eq!(syncup(2, &[(1, 1), (2, 5)]), Ok(()));
    assert!(matches!(syncup(u32::MAX, &[]), Err(WireError::Value { field: "history", .. })));
    assert!(matches!(syncup(65_536, &[]), Err(WireError::Short { field: "history", .. })));
    for bad in [[(1, 1), (1, 5)], [(2, 1), (1, 5)], [(1, 5), (2, 5)]] {
        assert!(matches!(syncup(2, &bad), Err(WireError::Value { field: "history.first", .. })));
    }
}

#[cfg(feature = "lz4")]
mod compressed {
    use super::*;
    use quorate::wire::compress::{Compressor, Expander};

    const HEAD: EntriesHead = EntriesHead {
        committed: None,
        durable_wanted: None,
        applied_wanted: None,
        first: Vlsn::FIRST,
        last: Vlsn::FIRST,
    };

    #[test]
    fn a_compressed_run_comes_back_and_damage_is_refused() {
        let run = vec![7; 100_000];
        let mut compressor = Compressor::default();
        let (a, b) = run.split_at(33_000);
        let bytes = compressor.frame(Term::new(1), 5, &HEAD, &[a, b]).expect("it compresses").to_vec();
        assert!(bytes.len() < 2_000);
        assert_eq!(Message::decode(&bytes), Err(WireError::Compressed));
        let mut expander = Expander::default();
        let plain = expander.expand(&bytes, 1 << 20).expect("expands");
        let (header, message) = Message::decode(plain).expect("decodes");
        assert_eq!(header.sequence, 5);
        assert!(matches!(message, Message::Entries(entries) if entries.run == run && entries.head() == HEAD));
        let limit = FrameError::TooLong { len: 100_072, limit: 100_071 };
        assert_eq!(expander.expand(&bytes, 100_071), Err(limit.into()));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(expander.expand(&damaged, 1 << 20).is_err(), "bit {bit}");
        }
        assert_eq!(compressor.frame(Term::new(1), 5, &HEAD, &[b"abcdef"]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_never_panic(block in proptest::collection::vec(any::<u8>(), 0..200), claimed in 0u32..5000) {
            let mut payload = frame(&samples()[7])[HEADER_LEN..HEADER_LEN + 40].to_vec();
            payload.extend_from_slice(&claimed.to_le_bytes());
            payload.extend_from_slice(&block);
            let header = FrameHeader {
                kind: MessageType::Entries, compressed: true, payload_len: payload.len() as u32,
                term: Term::new(1), sequence: 1, payload_crc: crc32fast::hash(&payload),
            };
            let bytes = [&header.encode()[..], &payload].concat();
            let _ = Expander::default().expand(&bytes, 4096);
        }
    }
}

fn vlsn() -> impl Strategy<Value = Option<Vlsn>> {
    (0..=MAX_VLSN).prop_map(Vlsn::new)
}

fn entry() -> impl Strategy<Value = Vlsn> {
    (1..=MAX_VLSN).prop_filter_map("not 0", Vlsn::new)
}

fn position() -> impl Strategy<Value = Option<Position>> {
    (vlsn(), any::<u32>(), any::<u32>())
        .prop_map(|(vlsn, term, crc)| vlsn.map(|vlsn| Position { vlsn, term: Term::new(term), crc }))
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Newcomer),
        entry().prop_map(|from| Standing::Doubtful { from }),
        any::<u32>().prop_map(|since| Standing::Full { since: Term::new(since) }),
    ]
}

fn address() -> impl Strategy<Value = Option<Address>> {
    prop_oneof![
        Just(None),
        "[a-z0-9.]{1,40}:[1-9][0-9]{0,3}".prop_map(|text| Some(Address::Tcp(text))),
        "/[a-z0-9/]{1,40}".prop_map(|path| Some(Address::Unix(path.into()))),
        "[a-z0-9]{1,40}".prop_map(|name| Some(Address::Local(name))),
    ]
}

fn node() -> impl Strategy<Value = NodeId> {
    "[A-Za-z0-9_-]{1,64}".prop_filter_map("a name", |name| NodeId::new(&name).ok())
}

fn positions() -> impl Strategy<Value = Ack> {
    [vlsn(), vlsn(), vlsn(), vlsn()].prop_map(|[received, durable, applied, checkpointed]| Ack {
        received,
        durable,
        applied,
        checkpointed,
    })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Electable), Just(Role::Secondary), Just(Role::Arbiter)]
}

fn health() -> impl Strategy<Value = Health> {
    let healths = [Health::Healthy, Health::Degraded, Health::CatchingUp, Health::Lagging, Health::Error];
    (0..healths.len()).prop_map(move |which| healths[which])
}

fn member() -> impl Strategy<Value = Member> {
    (node(), role(), any::<bool>(), any::<u8>(), "\\PC{0,16}", address()).prop_map(
        |(id, role, full, priority, region, address)| {
            let admission = if full { Admission::Full } else { Admission::Learner };
            Member { id, role, admission, address, priority, region }
        },
    )
}

/// Times that are whole milliseconds.
fn millis() -> impl Strategy<Value = Duration> {
    (0..u64::MAX).prop_map(Duration::from_millis)
}

fn order() -> impl Strategy<Value = Order> {
    let maybe = proptest::option::of(node());
    prop_oneof![
        Just(Order::Status),
        member().prop_map(|member| Order::Change(Change::Add(member))),
        node().prop_map(|node| Order::Change(Change::Promote(node))),
        node().prop_map(|node| Order::Change(Change::Remove(node))),
        (node(), address())
            .prop_filter_map("somewhere", |(node, to)| Some(Order::Change(Change::Move { node, to: to? }))),
        (maybe, millis()).prop_map(|(to, patience)| Order::Transfer { to, patience }),
        any::<u32>().prop_map(|term| Order::Promote { term: Term::new(term) }),
        any::<u32>().prop_map(|term| Order::Demote { term: Term::new(term) }),
        (slot_name(), vlsn()).prop_map(|(name, from)| Order::CreateSlot { name, from }),
        (slot_name(), entry()).prop_map(|(name, to)| Order::MoveSlot { name, to }),
        slot_name().prop_map(|name| Order::DropSlot { name }),
        range().prop_map(|range| Order::Digest { range }),
        prop_oneof![Just(Order::Verify), Just(Order::Scrub), Just(Order::Archive)],
    ]
}

fn slot_name() -> impl Strategy<Value = String> {
    "\\PC{1,16}"
}

fn range() -> impl Strategy<Value = VlsnRange> {
    (entry(), entry()).prop_filter_map("rises", |(a, b)| VlsnRange::new(a.min(b), a.max(b)))
}

fn slots() -> impl Strategy<Value = Vec<Slot>> {
    let invalid = prop_oneof![
        Just(None),
        Just(Some(Invalid::Bytes)),
        Just(Some(Invalid::Age)),
        Just(Some(Invalid::Disk))
    ];
    let one = (slot_name(), entry(), any::<u64>(), invalid).prop_map(|(name, from, created, invalid)| Slot {
        name,
        from,
        created,
        invalid,
    });
    proptest::collection::vec(one, 0..5)
        .prop_filter_map("names", |list| Some(Slots::new(list).ok()?.iter().cloned().collect()))
}

fn transfer() -> impl Strategy<Value = TransferStatus> {
    let of = proptest::option::of(0..u64::MAX);
    ("\\PC{0,60}", entry(), any::<u64>(), of).prop_map(|(peer, at, bytes, of)| TransferStatus {
        peer,
        at,
        bytes,
        of,
    })
}

fn any_keeping() -> impl Strategy<Value = Keeping> {
    let pin = ("\\PC{0,60}", entry(), millis(), any::<u64>())
        .prop_map(|(owner, from, since, bytes)| PinStatus { owner, from, since, bytes });
    let scrub = (vlsn(), any::<[u64; 2]>(), any::<[u32; 2]>())
        .prop_map(|(at, [ended, bytes], [found, healed])| ScrubStatus { at, ended, bytes, found, healed });
    let archive = (vlsn(), vlsn(), proptest::option::of("\\PC{1,60}"))
        .prop_map(|(last, base, failed)| ArchiveStatus { last, base, failed });
    let state = prop_oneof![
        any::<u128>().prop_map(EngineState::Digest),
        Just(EngineState::NoSnapshots),
        "\\PC{0,60}".prop_map(EngineState::Failed),
    ];
    let engine = (entry(), state).prop_map(|(at, state)| EngineDigest { at, state });
    let lists = (proptest::collection::vec(pin, 0..4), slots(), proptest::collection::vec(transfer(), 0..3));
    let maybe = (
        proptest::option::of(transfer()),
        proptest::option::of(range()),
        proptest::option::of(archive),
        proptest::option::of(engine),
    );
    (vlsn(), lists, scrub, maybe).prop_map(|(oldest, (pins, slots, giving), scrub, maybe)| {
        let (fetching, damaged, archive, engine) = maybe;
        Keeping { oldest, pins, slots, fetching, giving, scrub, damaged, archive, engine }
    })
}

fn snapshot_message() -> impl Strategy<Value = Message<'static>> {
    let id = any::<[u64; 3]>().prop_map(|[incarnation, session, number]| SnapshotId {
        incarnation,
        session,
        number,
    });
    let place = || (any::<u32>(), any::<u64>()).prop_map(|(item, offset)| SnapshotPlace { item, offset });
    let resume = proptest::option::of((id.clone(), place()));
    let request = (any::<u128>(), node(), vlsn(), resume).prop_map(|(group, node, at_least, resume)| {
        let group = GroupId::from_bits(group);
        Message::SnapshotRequest(SnapshotRequest { group, node, at_least, resume })
    });
    let of = proptest::option::of(0..u64::MAX);
    let begin = (id, place(), of, proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(id, from, of, base)| Message::SnapshotBegin(SnapshotBegin { id, from, of, base }));
    let item = (any::<u32>(), "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", proptest::option::of(0..u64::MAX))
        .prop_map(|(item, name, len)| Message::SnapshotItem(SnapshotItem { item, name, len }));
    let chunk = (place(), proptest::sample::select(vec![&b"x"[..], b"some bytes", &[0; 4096]]))
        .prop_map(|(at, bytes)| Message::SnapshotChunk(SnapshotChunk { at, bytes }));
    let item_end = (place(), any::<u128>())
        .prop_map(|(at, digest)| Message::SnapshotItemEnd(SnapshotItemEnd { at, digest }));
    let end = (any::<u32>(), any::<u64>(), any::<u128>())
        .prop_map(|(items, bytes, digest)| Message::SnapshotEnd(SnapshotEnd { items, bytes, digest }));
    let ack = place().prop_map(|at| Message::SnapshotAck(SnapshotAck { at }));
    let need = (vlsn(), address())
        .prop_map(|(oldest, provider)| Message::NeedSnapshot(NeedSnapshot { oldest, provider }));
    prop_oneof![request, begin, item, chunk, item_end, end, ack, need]
}

fn member_status() -> impl Strategy<Value = MemberStatus> {
    let seen = proptest::option::of(millis());
    (member(), positions(), proptest::option::of(health()), seen).prop_map(
        |(member, positions, health, last_seen)| MemberStatus { member, positions, health, last_seen },
    )
}

fn status() -> impl Strategy<Value = NodeStatus> {
    let parts = [Part::Master, Part::Replica, Part::Candidate, Part::Waiting, Part::Failed];
    let who = (any::<u128>(), node(), role(), 0..parts.len(), standing(), any::<u32>());
    let what = (proptest::option::of(node()), positions(), vlsn(), health());
    let members = proptest::collection::vec(member_status(), 0..Members::MAX);
    let more = (proptest::option::of("\\PC{1,60}"), members, any_keeping());
    (who, what, more).prop_map(move |(who, what, (failed, members, keeping))| {
        let (group, node, role, part, standing, term) = who;
        let (master, positions, committed, health) = what;
        NodeStatus {
            group: GroupId::from_bits(group),
            node,
            role,
            part: parts[part],
            standing,
            term: Term::new(term),
            master,
            positions,
            committed,
            health,
            failed,
            keeping: Box::new(keeping),
            members,
        }
    })
}

fn group_message() -> impl Strategy<Value = Message<'static>> {
    let rounds = |real| if real { Round::Real } else { Round::Pre };
    let vote = (any::<u128>(), node(), any::<u64>(), any::<bool>(), (any::<u32>(), vlsn()), any::<usize>());
    let vote = (vote, proptest::option::of(node())).prop_map(move |(vote, instead_of)| {
        let (group, candidate, election, real, (term, vlsn), reason) = vote;
        Message::Vote(Vote {
            group: GroupId::from_bits(group),
            candidate,
            election,
            round: rounds(real),
            last: LogEnd { term: Term::new(term), vlsn },
            reason: VoteReason::ALL[reason % VoteReason::ALL.len()],
            instead_of,
        })
    });
    let answer = (node(), any::<u64>(), any::<bool>(), any::<usize>(), proptest::option::of(node()));
    let answer = answer.prop_map(move |(voter, election, real, why, master)| {
        let why_not = WhyNot::ALL.get(why % (WhyNot::ALL.len() + 1)).copied();
        Message::VoteReply(VoteReply { voter, election, round: rounds(real), why_not, master })
    });
    let announce = (any::<u128>(), node(), address()).prop_map(|(group, master, address)| {
        Message::Announce(Announce { group: GroupId::from_bits(group), master, address })
    });
    let survey = (any::<u128>(), node(), position()).prop_map(|(group, node, after)| {
        Message::Survey(Survey { group: GroupId::from_bits(group), node, after })
    });
    let surveyed = (node(), standing(), position(), position()).prop_map(|(node, standing, last, after)| {
        Message::SurveyReply(SurveyReply { node, standing, last, after })
    });
    let control = (any::<u128>(), order())
        .prop_map(|(group, order)| Message::Control(Control { group: GroupId::from_bits(group), order }));
    let reply = prop_oneof![
        status().prop_map(|status| ControlReply::Status(Box::new(status))),
        "\\PC{0,60}".prop_map(ControlReply::Done),
        address().prop_map(|hint| ControlReply::NotMaster { hint }),
        "\\PC{0,60}".prop_map(ControlReply::Refused),
        (range(), any::<u64>(), any::<u128>(), any::<[u32; 2]>()).prop_map(
            |(range, bytes, digest, [term, crc])| {
                let last = Position { vlsn: range.last(), term: Term::new(term), crc };
                ControlReply::Digest(RangeDigest { range, bytes, digest, last })
            }
        ),
        entry().prop_map(ControlReply::Damaged),
        entry().prop_map(ControlReply::Marked),
    ];
    prop_oneof![vote, answer, announce, survey, surveyed, control, reply.prop_map(Message::ControlReply)]
}

/// An address has a short form too, which is read.
fn may_hold_an_address(kind: MessageType) -> bool {
    use MessageType::{Announce, Control, ControlReply, Hello, NeedSnapshot, Reject};
    matches!(kind, Announce | Control | ControlReply | Hello | NeedSnapshot | Reject)
}

fn history() -> impl Strategy<Value = Vec<TermSpan>> {
    let set = proptest::collection::btree_map(any::<u32>(), 1u64..1000, 0..50);
    set.prop_map(|spans| {
        let mut first = 0;
        let mut rise = |by| {
            first += by;
            Vlsn::new(first).expect("above 0")
        };
        spans.into_iter().map(|(term, by)| TermSpan { term: Term::new(term), first: rise(by) }).collect()
    })
}

proptest! {
    #[test]
    fn arbitrary_hellos_round_trip(
        low: u8, high: u8, group: u128, name in "[A-Za-z0-9_-]{1,64}", numbers: [u64; 2], electable: bool,
        region in "\\PC{0,16}", slot in proptest::option::of("\\PC{1,16}"), bits: u32, max_frame: u32,
        last in position(), standing in standing(), address in address(), term: u32, sequence: u64, micros: u64,
    ) {
        let node = NodeId::new(&name).expect("a name");
        let capabilities = Capabilities::from_bits(bits);
        let hello = Message::Hello(Hello {
            versions: (low.min(high), low.max(high)), group: GroupId::from_bits(group), node: node.clone(),
            incarnation: numbers[0], session: numbers[1],
            role: if electable { Role::Electable } else { Role::Secondary },
            region, slot, capabilities, max_frame, last, standing, address,
        });
        let welcome = Message::Welcome(Welcome {
            version: low, node, incarnation: numbers[1], session: numbers[0], capabilities, max_frame,
            heartbeat: Duration::from_micros(micros), feed: if electable { Feed::Leads } else { Feed::Follows },
        });
        let mut out = Vec::new();
        for message in [hello, welcome] {
            message.encode(Term::new(term), sequence, &mut out);
            let (header, read) = Message::decode(&out).expect("decodes");
            prop_assert_eq!(read, message);
            prop_assert_eq!((header.term.get(), header.sequence), (term, sequence));
        }
    }

    #[test]
    fn arbitrary_positions_round_trip(
        v in [vlsn(), vlsn(), vlsn(), vlsn()], at in position(), history in history(), clock: u64,
        (one, other) in (entry(), entry()), standing in standing(), run in proptest::collection::vec(any::<u8>(), 1..300),
        numbers: [u32; 2], which in 0usize..100,
    ) {
        let (first, last) = (one.min(other), one.max(other));
        let healths = [Health::Healthy, Health::Degraded, Health::CatchingUp, Health::Lagging, Health::Error];
        let health = healths[which % healths.len()];
        let messages = [
            Message::Syncup(Syncup { last: at, committed: v[0], history }),
            Message::Matchpoint(Matchpoint { at }),
            Message::NeedSnapshot(NeedSnapshot { oldest: v[0], provider: None }),
            Message::Behind(Behind { last: v[0] }),
            Message::Entries(Entries { committed: v[0], durable_wanted: v[1], applied_wanted: v[2], first, last, run: &run }),
            Message::EntryRequest(EntryRequest {
                from: first, to: last, max_entries: numbers[0], max_bytes: numbers[1],
            }),
            Message::Ack(Ack { received: v[0], durable: v[1], applied: v[2], checkpointed: v[3] }),
            Message::Nack(Nack { reason: NackReason::ALL[which % NackReason::ALL.len()], at: v[0] }),
            Message::Heartbeat(Heartbeat {
                written: v[0], flushed: v[1], committed: v[2], durable_wanted: v[3], applied_wanted: v[1], health, clock,
            }),
            Message::HeartbeatReply(HeartbeatReply { clock, health, standing }),
            Message::Bye(Bye { reason: ByeReason::ALL[which % ByeReason::ALL.len()] }),
        ];
        let mut out = Vec::new();
        for message in messages {
            message.encode(Term::new(1), 1, &mut out);
            prop_assert_eq!(Message::decode(&out).map(|(_, read)| read), Ok(message));
        }
    }

    #[test]
    fn arbitrary_messages_of_a_group_round_trip(message in group_message(), term: u32, cut: prop::sample::Index) {
        let mut out = Vec::new();
        message.encode(Term::new(term), 1, &mut out);
        prop_assert_eq!(Message::decode(&out).map(|(_, read)| read), Ok(message.clone()));
        let payload = &out[HEADER_LEN..];
        let short = around(message.kind(), &payload[..cut.index(payload.len())]);
        prop_assert!(Message::decode(&short).is_err());
    }

    #[test]
    fn arbitrary_messages_of_a_snapshot_round_trip(message in snapshot_message(), term: u32, cut: prop::sample::Index) {
        let mut out = Vec::new();
        message.encode(Term::new(term), 1, &mut out);
        prop_assert_eq!(Message::decode(&out).map(|(_, read)| read), Ok(message.clone()));
        let payload = &out[HEADER_LEN..];
        let needed = fixed_part(message.kind()).unwrap_or(payload.len());
        prop_assert!(Message::decode(&around(message.kind(), &payload[..cut.index(needed)])).is_err());
    }

    #[test]
    fn arbitrary_requests_round_trip(group: u128, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let group = GroupId::from_bits(group);
        for message in [Message::Request(Request { group, body: &body }), Message::Response(Response { body: &body })] {
            let bytes = frame(&message);
            prop_assert_eq!(Message::decode(&bytes).map(|(_, read)| read), Ok(message));
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Message::decode(&bytes).is_err());
        for kind in MessageType::ALL {
            let framed = around(*kind, &bytes);
            if let Ok((_, message)) = Message::decode(&framed) {
                // What is read is written back the same: there is one form of everything.
                let mut again = Vec::new();
                message.encode(Term::new(3), 1, &mut again);
                let same = again == framed;
                prop_assert!(same || may_hold_an_address(*kind));
            }
        }
    }
}
