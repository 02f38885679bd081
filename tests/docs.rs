//! The pages under docs/ against the code: the bytes that they show are those that the code makes, and the tests and
//! files that they name exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use quorate::entry::{EntryKind, NewEntry, Placement, TxnId, encode, verify_run};
use quorate::ids::{LogEnd, VlsnRange};
use quorate::members::{Admission, Member, Members, Role};
use quorate::wire::frame::FrameHeader;
use quorate::wire::message::{
    Ack, Control, ControlReply, Entries, Message, Order, RangeDigest, Round, Vote, VoteReason,
};
use quorate::{GroupId, NodeId, Position, Term, Vlsn};
use twox_hash::XxHash3_128;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The bytes in the page's blocks that are marked so, one after the other.
fn hex(page: &str, mark: &str) -> Vec<u8> {
    let fence = format!("```hex {mark}\n");
    let blocks: Vec<&str> = page.split(&fence).skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty(), "no block is marked {mark}");
    let digits = blocks.iter().flat_map(|block| block.split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn vlsn(number: u64) -> Option<Vlsn> {
    Vlsn::new(number)
}

/// The two entries that docs/format.md describes in words.
fn entries() -> Vec<u8> {
    let mut run = Vec::new();
    let term = Term::new(1);
    let timestamp = 1_700_000_000_000_000;
    let start = NewEntry { kind: EntryKind::TERM_START, txn: None, payload: &[] };
    let prev = encode(&start, &Placement { vlsn: vlsn(1), term, prev: 0, timestamp }, &mut run);
    let data = NewEntry { kind: EntryKind::DATA, txn: Some(TxnId(7)), payload: b"hello" };
    let timestamp = timestamp + 250;
    encode(&data, &Placement { vlsn: vlsn(2), term, prev, timestamp }, &mut run);
    run
}

#[test]
fn the_entries_shown_are_the_entries_made() {
    let shown = hex(&page("format.md"), "entries");
    assert_eq!(shown, entries());
    let summary = verify_run(&shown, None).unwrap();
    assert_eq!(summary.last, Position { vlsn: vlsn(2).unwrap(), term: Term::new(1), crc: 0x5759_0c34 });
    assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
}

#[test]
fn the_member_list_shown_is_the_list_made() {
    let a = Member {
        address: Some("127.0.0.1:7001".parse().unwrap()),
        ..Member::electable(NodeId::new("a").unwrap())
    };
    let b = Member {
        role: Role::Arbiter,
        admission: Admission::Learner,
        region: "west".into(),
        ..Member::electable(NodeId::new("b").unwrap())
    };
    let members = Members::new(vec![a, b]).unwrap();
    let shown = hex(&page("format.md"), "members");
    assert_eq!(shown, members.encode());
    assert_eq!(Members::decode(&shown), Ok(members));
}

#[test]
fn the_frames_shown_are_the_frames_made() {
    let (protocol, run) = (page("protocol.md"), entries());
    let sent = Message::Entries(Entries {
        committed: vlsn(1),
        durable_wanted: vlsn(2),
        applied_wanted: None,
        first: vlsn(1).unwrap(),
        last: vlsn(2).unwrap(),
        run: &run,
    });
    let acked =
        Message::Ack(Ack { received: vlsn(2), durable: vlsn(2), applied: vlsn(1), checkpointed: None });
    let asked = Message::Vote(Vote {
        group: GroupId::from_bits(0x0f),
        candidate: NodeId::new("b").unwrap(),
        election: 77,
        round: Round::Real,
        last: LogEnd { term: Term::new(1), vlsn: vlsn(2) },
        reason: VoteReason::PrimaryFailure,
        instead_of: None,
    });
    let range = VlsnRange::new(Vlsn::FIRST, Vlsn::FIRST.next()).unwrap();
    let order = Order::Digest { range };
    let wanted = Message::Control(Control { group: GroupId::from_bits(0x0f), order });
    let digested = Message::ControlReply(ControlReply::Digest(RangeDigest {
        range,
        bytes: run.len() as u64,
        digest: XxHash3_128::oneshot(&run),
        last: verify_run(&run, None).unwrap().last,
    }));
    let all = [
        ("frame Entries", sent, 1, 3),
        ("frame Ack", acked, 1, 2),
        ("frame Vote", asked, 2, 0),
        ("frame Control", wanted, 0, 0),
        ("frame ControlReply", digested, 1, 0),
    ];
    for (mark, message, term, sequence) in all {
        let (shown, mut made) = (hex(&protocol, mark), Vec::new());
        message.encode(Term::new(term), sequence, &mut made);
        assert_eq!(shown, made, "{mark}");
        let (header, read) = Message::decode(&shown).unwrap();
        assert_eq!((header.term, header.sequence), (Term::new(term), sequence));
        assert_eq!(read, message);
        assert!(FrameHeader::parse(&shown, shown.len() as u32).is_ok());
    }
}

fn files_under(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            files_under(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            into.push(path);
        }
    }
}

/// Every test there is, as (file or directory that holds it, name).
fn tests() -> BTreeSet<(String, String)> {
    let mut paths = Vec::new();
    for dir in ["src", "tests", "docs/examples"] {
        files_under(&root().join(dir), "rs", &mut paths);
    }
    let mut found = BTreeSet::new();
    for path in paths {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let dir = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let home = if ["mod", "tests"].contains(&stem) { dir } else { stem };
        let text = fs::read_to_string(&path).unwrap();
        let mut note = |name: &str| {
            let name = name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("");
            found.insert((home.to_owned(), name.to_owned()));
        };
        for behind in text.split("#[test]").skip(1) {
            if let Some((_, rest)) = behind.split_once("fn ") {
                note(rest);
            }
        }
        // The tests of tests/planted.rs are lines of a table.
        for line in text.lines().filter(|line| line.contains(" under ") && line.ends_with(';')) {
            note(line.trim());
        }
    }
    found
}

/// What stands between backticks in a page, blocks of code left out.
fn quoted(page: &str) -> Vec<String> {
    let prose: String = page.split("```").step_by(2).collect::<Vec<_>>().join("\n");
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether it has the form in which the pages name a test: `file::test`, all in small letters.
fn names_a_test(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
    text.contains("::") && text.chars().all(plain)
}

#[test]
fn every_test_that_the_pages_name_exists() {
    let tests = tests();
    assert!(tests.len() > 200, "only {} tests were found", tests.len());
    for name in ["invariants.md", "testing.md", "guarantees.md"] {
        let named: Vec<String> = quoted(&page(name)).into_iter().filter(|text| names_a_test(text)).collect();
        assert!(named.len() > 20, "{name} names {} tests", named.len());
        let missing: Vec<&String> = named
            .iter()
            .filter(|text| {
                let (home, test) = text.split_once("::").unwrap();
                !tests.contains(&(home.to_owned(), test.to_owned()))
            })
            .collect();
        assert!(missing.is_empty(), "{name} names tests that do not exist: {missing:#?}");
    }
}

#[test]
fn every_file_that_the_pages_name_exists() {
    let mut pages = vec![root().join("README.md")];
    files_under(&root().join("docs"), "md", &mut pages);
    let mut missing = Vec::new();
    for path in pages {
        let text = fs::read_to_string(&path).unwrap();
        let words = text.split(|c: char| c.is_whitespace() || "`()[],;|:".contains(c));
        for word in words.map(|word| word.trim_end_matches(['.', '/'])) {
            let is_path = ["src/", "tests/", "docs/", "benches/"].iter().any(|dir| word.starts_with(dir));
            if is_path && !word.contains(['*', '{', '<']) && !root().join(word).exists() {
                missing.push(format!("{}: {word}", path.display()));
            }
        }
        // Links are relative to their page.
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or("");
            if !target.contains("://") && !path.parent().unwrap().join(file).exists() {
                missing.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "named, but not there: {missing:#?}");
}

#[test]
fn every_test_file_and_every_planted_bug_is_in_the_page_on_testing() {
    let testing = page("testing.md");
    let planted = fs::read_to_string(root().join("src/planted.rs")).unwrap();
    let list = planted.split_once("pub enum Bug {").unwrap().1.split_once('}').unwrap().0;
    let bugs = list.split(',').map(str::trim).filter(|bug| !bug.is_empty());
    let mut files = Vec::new();
    files_under(&root().join("tests"), "rs", &mut files);
    let files = files.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap());
    let files = files.filter(|path| !path.contains("common"));
    let missing: Vec<&str> = bugs.chain(files).filter(|name| !testing.contains(name)).collect();
    assert!(missing.is_empty(), "docs/testing.md does not speak of {missing:#?}");
}
