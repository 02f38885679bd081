//! The command as people run it: the built program, its output and its exit codes.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{config, fill, open, try_open};
use quorate::GroupId;
use quorate::clock::Wait;

fn quorate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(arguments).stdin(Stdio::null()).env_remove("QUORATE_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory of a few files, one of them of several chunks.
fn input() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, len) in [("empty", 0), ("small", 10), ("chunks", 200_000)] {
        fs::write(dir.path().join(name), vec![b'x'; len]).unwrap();
    }
    for at in 0..30 {
        fs::write(dir.path().join(format!("file-{at}")), vec![at; 1000]).unwrap();
    }
    dir
}

fn demo(transport: &str, replicas: &str, policy: &str) {
    let input = input();
    let arguments = ["--transport", transport, "--replicas", replicas, "--policy", policy];
    let output = quorate(&[&["demo", "--input", path(input.path())][..], &arguments].concat());
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.ends_with("all stores are identical\n"), "{out}");
    assert!(out.contains("36 entries in ") && out.contains(" commits/s, "), "{out}");
    let ended = if transport == "tcp" { "r1 (process " } else { "r1 was dropped" };
    assert!(err.contains(ended) && err.contains("r1 is started again"), "{err}");
    let nodes = out.lines().filter(|line| line.contains("(36 records, ")).count();
    assert_eq!(nodes.to_string(), (replicas.parse::<usize>().unwrap() + 1).to_string(), "{out}");
}

#[test]
fn the_demo_over_tcp_ends_with_identical_stores() {
    demo("tcp", "2", "majority");
}

#[test]
fn the_demo_in_one_process_ends_with_identical_stores() {
    demo("local", "2", "majority");
}

#[test]
fn a_replica_that_everybody_waits_for_may_be_killed_too() {
    demo("tcp", "1", "all@applied");
}

#[test]
fn the_demos_json_is_one_object_and_its_directory_is_kept_and_can_be_looked_into() {
    let (input, dir) = (input(), tempfile::tempdir().unwrap());
    let nodes = dir.path().join("nodes");
    let arguments =
        ["demo", "--json", "--transport", "local", "--input", path(input.path()), "--dir", path(&nodes)];
    let output = quorate(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["identical"], &value["complete"]), (&true.into(), &true.into()));
    assert_eq!((&value["entries"], &value["stores"][0]["records"]), (&36.into(), &36.into()));
    for node in ["master", "r1", "r2"] {
        let output = quorate(&["log", "verify", path(&nodes.join(node))]);
        let out = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{out}");
        assert!(out.contains("37 entries (VLSN 1 to 37)") && out.ends_with("no damage\n"), "{out}");
    }
    // A second run would write into the same logs.
    let again = quorate(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
}

#[test]
fn an_input_without_files_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let output = quorate(&["demo", "--input", path(dir.path())]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("quorate: there is no file to replicate in "));
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    for arguments in [
        &["fly"][..],
        &["demo", "--wings"],
        &["demo", "--replicas", "0"],
        &["demo", "--replicas", "99"],
        &["demo", "--policy", "most"],
        &["log", "verify"],
        &["log", "dump", "x", "--from", "y"],
        &[],
    ] {
        assert_eq!(quorate(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn help_completions_and_the_man_page_are_printed_and_colour_can_be_turned_off() {
    let help = quorate(&["--help"]);
    assert!(text(&help.stdout).contains("Exit codes:") && !text(&help.stdout).contains("replica  "));
    assert!(text(&quorate(&["man"]).stdout).starts_with(".ie"));
    for shell in ["bash", "zsh", "fish"] {
        let output = quorate(&["completions", shell]);
        assert!(output.status.success() && text(&output.stdout).contains("quorate"), "{shell}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["fly"])
        .env("NO_COLOR", "1")
        .env("CLICOLOR_FORCE", "1")
        .output()
        .unwrap();
    assert!(!output.stderr.contains(&0x1b), "{}", text(&output.stderr));
}

/// A closed log of 120 entries in several segments; returns the segments.
fn log() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 60);
    fill(&log, 3, 60);
    assert!(log.flush(common::v(120), Wait::Now).unwrap());
    log.close().unwrap();
    let segments: Vec<PathBuf> = segments(dir.path());
    assert!(segments.len() >= 4, "{segments:?}");
    (dir, segments)
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    common::names(dir, ".seg").iter().map(|name| dir.join(name)).collect()
}

/// Verifies, checks that nothing was changed, and returns the exit code and the output.
fn verify(dir: &Path) -> (Option<i32>, String) {
    let state = |dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| (file.clone(), fs::read(&file).unwrap())).collect()
    };
    let before = state(dir);
    let output = quorate(&["log", "verify", path(dir)]);
    assert!(state(dir) == before, "verify changed a file");
    (output.status.code(), text(&output.stdout).to_owned() + text(&output.stderr))
}

/// Where the last entry of a segment ends, and where it begins: by its dump.
fn last_entry(segment: &Path) -> (u64, u64, u64) {
    let output = quorate(&["log", "dump", "--json", "--local", path(segment)]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.iter().rfind(|line| line["vlsn"] != 0).unwrap();
    let len = last["payload_len"].as_u64().unwrap();
    (last["offset"].as_u64().unwrap(), len, last["vlsn"].as_u64().unwrap())
}

#[test]
fn a_whole_log_verifies_and_dumps_also_while_it_is_in_use() {
    let (dir, segments) = log();
    let (code, out) = verify(dir.path());
    assert!(code == Some(0) && out.contains("120 entries (VLSN 1 to 120)"), "{out}");
    let (opened, _) = open(dir.path());
    let output = quorate(&["log", "dump", path(dir.path()), "--from", "50", "--limit", "20"]);
    let out = text(&output.stdout);
    assert_eq!((output.status.code(), out.lines().count()), (Some(0), 20), "{out}");
    assert!(out.lines().next().unwrap().trim_start().starts_with("50 term 1"), "{out}");
    assert!(out.lines().last().unwrap().trim_start().starts_with("69 term 3"), "{out}");
    opened.close().unwrap();
    let one = quorate(&["log", "verify", path(&segments[1])]);
    assert_eq!(one.status.code(), Some(0), "{}", text(&one.stdout));
}

#[test]
fn a_flipped_byte_is_found_with_its_file_offset_and_vlsn() {
    let (dir, segments) = log();
    let (offset, len, vlsn) = last_entry(&segments[1]);
    assert!(len > 0);
    let mut bytes = fs::read(&segments[1]).unwrap();
    bytes[offset as usize + 40] ^= 4;
    fs::write(&segments[1], bytes).unwrap();
    let (code, out) = verify(dir.path());
    let place = format!(
        "DAMAGE in {} at offset {offset}, VLSN {vlsn} to {vlsn}: the entry's CRC",
        segments[1].display()
    );
    assert!(code == Some(1) && out.contains(&place) && out.contains("119 entries"), "{out}");
    assert!(out.ends_with("1 damaged places\n"), "{out}");
    let output = quorate(&["log", "verify", "--json", path(dir.path())]);
    let first: serde_json::Value =
        serde_json::from_str(text(&output.stdout).lines().next().unwrap()).unwrap();
    assert_eq!((&first["damage"]["offset"], &first["damage"]["from"]), (&offset.into(), &vlsn.into()));
    assert_eq!(quorate(&["log", "dump", path(dir.path())]).status.code(), Some(1));
}

#[test]
fn every_flipped_byte_of_a_segments_entries_is_found() {
    let (dir, segments) = log();
    let path = &segments[1];
    let whole = fs::read(path).unwrap();
    let (offset, len, _) = last_entry(path);
    let from = Some(quorate::Vlsn::FIRST);
    for at in (0..(offset + len + 36) as usize).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(path, bytes).unwrap();
        let mut log = quorate::log::inspect::Inspector::open(dir.path(), from).unwrap();
        let mut damages = 0;
        while let Some(found) = log.advance().unwrap() {
            damages += u32::from(matches!(found, quorate::log::inspect::Found::Damage(_)));
        }
        assert!(damages > 0, "byte {at}");
        assert_eq!(log.position(), log.bytes());
    }
}

#[test]
fn a_torn_tail_is_told_from_damage_to_what_was_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 8);
    log.write_out().unwrap();
    drop(log);
    let segment = &segments(dir.path())[0];
    let (offset, len, vlsn) = last_entry(segment);
    let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.set_len(offset + 36 + len - 1).unwrap();
    let (code, out) = verify(dir.path());
    let place = format!("at offset {offset}, VLSN {vlsn} to the end: a torn write at the end of the log");
    assert!(code == Some(1) && out.contains(&place), "{out}");
    // Opening does what the report says.
    let (log, opened) = try_open(config(dir.path())).unwrap();
    assert_eq!(opened.cut.unwrap().offset, offset);
    log.close().unwrap();
    assert_eq!(verify(dir.path()).0, Some(0));
}

#[test]
fn a_missing_segment_is_reported_with_what_it_held() {
    let (dir, segments) = log();
    fs::remove_file(&segments[1]).unwrap();
    let (code, out) = verify(dir.path());
    assert!(code == Some(1) && out.contains("is missing") && out.ends_with("1 damaged places\n"), "{out}");
    let first = |path: &Path| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    let range = format!("VLSN {} to {}: ", first(&segments[1]), first(&segments[2]) - 1);
    assert!(out.contains(&range), "{out}");
}

#[test]
fn foreign_files_are_reported_and_nothing_of_them_is_read() {
    let (dir, segments) = log();
    fs::write(&segments[1], b"#!/bin/sh\nexit 0\n".repeat(100)).unwrap();
    let (code, out) = verify(dir.path());
    assert!(code == Some(1) && out.contains("does not begin with this format's magic"), "{out}");

    let (dir, segments) = log();
    let other = tempfile::tempdir().unwrap();
    let group = GroupId::from_bits(9);
    let (strange, _) = try_open(quorate::log::LogConfig { group, ..config(other.path()) }).unwrap();
    fill(&strange, 1, 60);
    strange.close().unwrap();
    fs::copy(other.path().join(segments[0].file_name().unwrap()), &segments[0]).unwrap();
    let (code, out) = verify(dir.path());
    assert!(code == Some(1) && out.contains("belongs to group"), "{out}");
}

#[test]
fn a_sidecar_that_differs_from_its_segment_is_reported() {
    let (dir, segments) = log();
    let (second, third) = (segments[1].with_extension("idx"), segments[2].with_extension("idx"));
    let mut bytes = fs::read(&second).unwrap();
    bytes[40] ^= 1;
    fs::write(&second, bytes).unwrap();
    let (code, out) = verify(dir.path());
    assert!(code == Some(1) && out.contains("checksum does not match"), "{out}");
    fs::copy(third, &second).unwrap();
    let (code, out) = verify(dir.path());
    assert!(code == Some(1) && out.contains("it says that it begins at VLSN"), "{out}");
}

#[test]
fn what_was_cut_off_can_be_read_and_what_is_no_log_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    fill(&log, 1, 20);
    log.truncate_after(quorate::Vlsn::new(12)).unwrap();
    log.close().unwrap();
    let saved = common::names(dir.path(), ".log");
    let output = quorate(&["log", "dump", path(&dir.path().join(&saved[0]))]);
    let out = text(&output.stdout);
    assert_eq!((output.status.code(), out.lines().count()), (Some(0), 8), "{out}");

    let empty = tempfile::tempdir().unwrap();
    for dir in [empty.path(), Path::new("/nowhere")] {
        let output = quorate(&["log", "verify", path(dir)]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).starts_with("quorate: "), "{}", text(&output.stderr));
    }
}

/// An archive of 40 entries in two objects.
fn archived() -> tempfile::TempDir {
    use quorate::archive::{DirArchive, object::write_log};
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&dir.path().join("log"));
    for term in [1, 3] {
        for _ in 0..20 {
            // Of a kind that the command's store passes by.
            let entry = quorate::NewEntry { kind: quorate::EntryKind(200), txn: None, payload: b"entry" };
            log.append(common::t(term), &[entry]).unwrap();
        }
    }
    let disk = std::sync::Arc::new(quorate::disk::RealDisk);
    let archive = DirArchive::new(disk, dir.path().join("archive"), 1);
    let group = GroupId::from_bits(0x1234);
    let first = write_log(&archive, &log, group, None, common::v(20), u64::MAX).unwrap().unwrap();
    write_log(&archive, &log, group, Some(first.last), common::v(40), u64::MAX).unwrap().unwrap();
    log.close().unwrap();
    dir
}

#[test]
fn an_archive_is_listed_verified_drilled_and_restored_and_damage_has_exit_code_1() {
    let dir = archived();
    let (archive, to) = (dir.path().join("archive"), dir.path().join("restored"));
    let list = quorate(&["archive", "list", path(&archive)]);
    assert_eq!(list.status.code(), Some(0), "{}", text(&list.stderr));
    assert!(
        text(&list.stdout).contains("1 to 20") && text(&list.stdout).contains("21 to 40"),
        "{}",
        text(&list.stdout)
    );
    let verify = quorate(&["archive", "verify", path(&archive)]);
    assert!(text(&verify.stdout).ends_with("no damage\n"), "{}", text(&verify.stdout));
    assert_eq!(verify.status.code(), Some(0));
    let drill = quorate(&["archive", "drill", "--from", path(&archive)]);
    let out = text(&drill.stdout);
    assert_eq!(drill.status.code(), Some(0), "{out}{}", text(&drill.stderr));
    assert!(out.contains("log: same") && out.contains("state: not compared"), "{out}");
    let arguments = ["restore", "--from", path(&archive), "--to", path(&to), "--node", "n7", "--json"];
    let restored = quorate(&[&arguments[..], &["--until-vlsn", "25"]].concat());
    let line: serde_json::Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert_eq!((&line["target"], &line["last"], &line["term"]), (&25.into(), &28.into(), &4.into()));
    let again = quorate(&arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("is not empty"), "{}", text(&again.stderr));
    let log = quorate(&["log", "verify", path(&to)]);
    assert!(text(&log.stdout).contains("28 entries (VLSN 1 to 28)"), "{}", text(&log.stdout));
    for wrong in [&["--until-vlsn", "1", "--until-term", "1"][..], &["--until-time", "noon"]] {
        assert_eq!(quorate(&[&arguments[..], wrong].concat()).status.code(), Some(2), "{wrong:?}");
    }
    assert!(line["time"].as_u64() > Some(1_577_836_800_000_000), "{line}");
    // A time behind everything is told to be, and one before it in words.
    let times = [
        ("2100-01-01T00:00:00Z", Some(0), "the archive ends at 2"),
        ("2020-01-01T00:00:00Z", Some(1), "2020-01-01T00:00:00.000000Z lies before"),
    ];
    for (time, code, says) in times {
        let to = dir.path().join(&time[..4]);
        let restored =
            quorate(&["restore", "--from", path(&archive), "--to", path(&to), "--until-time", time]);
        let (out, error) = (text(&restored.stdout), text(&restored.stderr));
        assert!(restored.status.code() == code && error.contains(says), "{out}{error}");
        assert_eq!(code == Some(0), out.contains("restored up to VLSN 40, written at 2"), "{out}");
    }
    let refused =
        quorate(&[&arguments[..3], &["--to", path(&dir.path().join("none")), "--base", "0"]].concat());
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("--base"), "{refused:?}");
    let object = archive.join("log/00000000000000000021-00000000000000000040");
    let mut bytes = fs::read(&object).unwrap();
    bytes[300] ^= 1;
    fs::write(&object, bytes).unwrap();
    let verify = quorate(&["archive", "verify", path(&archive)]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(text(&verify.stdout).contains("log/00000000000000000021-"), "{}", text(&verify.stdout));
    let refused = quorate(&["archive", "drill", "--from", path(&archive)]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));
    for (place, says) in [("nowhere", "there is no directory"), ("log", "there is no archive there")] {
        let refused = quorate(&["archive", "list", path(&dir.path().join(place))]);
        assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), ""));
        assert!(text(&refused.stderr).contains(says), "{refused:?}");
    }
}
