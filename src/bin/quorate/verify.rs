//! `quorate verify`: whether all nodes of a running group hold the same.

use std::io::Write;
use std::time::Duration;

use quorate::client::{Client, ClientError, Search};
use quorate::clock::{Wait, deadline_in};
use quorate::compare::{self, Answer, Findings, Nodes, Why, agree};
use quorate::ids::number;
use quorate::wire::message::{ControlReply, EngineState, NodeStatus, Order};
use quorate::{GroupId, Role, Vlsn, VlsnRange};
use serde::Serialize;

use crate::group_args::{Contact, GroupArgs, client};
use crate::status::Survey;
use crate::{Failure, Verdict};

/// How long one answer may take: a node gives up reading before.
const ASKING: Duration = Duration::from_secs(60);

/// Which group, and what of it.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    group: GroupArgs,
    /// Compare the logs, and not the engines
    #[arg(long)]
    log_only: bool,
    /// How long engines may take to be digested
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    patience: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A node that is compared.
struct Compared {
    status: NodeStatus,
    client: Client,
}

/// The nodes, asked over the network.
struct Asked<'a> {
    group: GroupId,
    nodes: &'a mut [Compared],
    bar: indicatif::ProgressBar,
}

impl Nodes for Asked<'_> {
    fn count(&self) -> usize {
        self.nodes.len()
    }

    fn digest(&mut self, whom: &[usize], range: VlsnRange) -> Vec<Answer> {
        let group = self.group;
        let nodes = self.nodes.iter_mut().enumerate().filter(|(at, _)| whom.contains(at));
        std::thread::scope(|scope| {
            let asking: Vec<_> = nodes
                .map(|(_, node)| scope.spawn(move || digest_of(&mut node.client, group, range)))
                .collect();
            let failed = |_| Answer::Failed("the asking failed".into());
            asking.into_iter().map(|one| one.join().unwrap_or_else(failed)).collect()
        })
    }

    fn compared(&mut self, to: Vlsn) {
        self.bar.set_position(to.get());
    }
}

/// Asks one node, again if the connection broke: a digest changes nothing.
fn digest_of(client: &mut Client, group: GroupId, range: VlsnRange) -> Answer {
    let mut ask = || client.order(group, Order::Digest { range }, Wait::Until(deadline_in(ASKING)));
    let answer = match ask() {
        Err(ClientError::Unanswered { .. }) => ask(),
        answer => answer,
    };
    match answer {
        Ok(ControlReply::Digest(digest)) => Answer::Digest(digest),
        Ok(ControlReply::Damaged(at)) => Answer::Damaged(at),
        Ok(ControlReply::Refused(why)) => Answer::Failed(why),
        Ok(other) => Answer::Failed(format!("it answers with {other:?}")),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

#[derive(Serialize)]
struct Report {
    group: String,
    /// `equal`, `different` or `incomplete`.
    verdict: &'static str,
    log: LogReport,
    /// `null` with `--log-only`, and if it could not be ordered.
    engine: Option<EngineReport>,
    /// Nodes that did not answer, or that hold nothing to be compared.
    left_out: Vec<LeftOut>,
}

#[derive(Serialize)]
struct LogReport {
    /// What all nodes have.
    first: u64,
    last: u64,
    /// The last entry that was compared.
    to: Option<u64>,
    bytes: u64,
    difference: Option<Difference>,
    gaps: Vec<GapLine>,
    nodes: Vec<NodeLine>,
}

#[derive(Serialize)]
struct Difference {
    at: u64,
    /// Who agrees with whom, the most first.
    sides: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct GapLine {
    node: String,
    first: u64,
    last: u64,
    /// Of the first entry.
    damaged: bool,
    /// It was, and was compared nevertheless.
    healed: bool,
    why: String,
}

#[derive(Serialize)]
struct NodeLine {
    node: String,
    oldest: u64,
    committed: u64,
    durable: u64,
}

#[derive(Serialize)]
struct EngineReport {
    /// The entry at which the engines were digested.
    at: u64,
    /// Who agrees with whom, the most first.
    sides: Vec<Vec<String>>,
    /// Whose engine takes no snapshots.
    no_snapshots: Vec<String>,
    failed: Vec<LeftOut>,
}

#[derive(Serialize)]
struct LeftOut {
    node: String,
    why: String,
}

/// Compares the nodes.
///
/// # Errors
/// If fewer than two nodes answer, or they have no entry in common.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let contact = args.group.contact()?;
    let (mut nodes, mut left_out) = to_compare(&contact);
    if !args.log_only && nodes.len() > 1 && common(&nodes).is_err() {
        // Who stands on a snapshot in a group that writes nothing holds no entry yet. A mark is one that all get.
        let wait = Wait::Until(deadline_in(ASKING));
        let _marked = contact.client().to_master(contact.group, Order::Verify, wait);
        let mut search = Search::new();
        while common(&nodes).is_err() && search.pause(wait) {
            (nodes, left_out) = to_compare(&contact);
        }
    }
    let range = common(&nodes)?;
    let bar = crate::progress(range.last().get(), "{bar:40} entry {pos} of {len} {eta}");
    let findings = compare::compare(range, &mut Asked { group: contact.group, nodes: &mut nodes, bar });
    let mut log = log_report(range, &nodes, &findings);
    log.gaps.sort_by(|a, b| (&a.node, a.first).cmp(&(&b.node, b.first)));
    let engine = if args.log_only { None } else { engines(args, &contact, &mut nodes, &mut left_out) };
    let differ = log.difference.is_some()
        || log.gaps.iter().any(|gap| gap.damaged)
        || engine.as_ref().is_some_and(|engine| engine.sides.len() > 1);
    let lacks = !left_out.is_empty()
        || !log.gaps.is_empty()
        || engine.as_ref().is_some_and(|engine| !engine.failed.is_empty());
    let (verdict, word) = match (differ, lacks) {
        (true, _) => (Verdict::Bad, "different"),
        (false, true) => (Verdict::Unknown, "incomplete"),
        (false, false) => (Verdict::Good, "equal"),
    };
    let report = Report { group: contact.group.to_string(), verdict: word, log, engine, left_out };
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(verdict)
}

/// Who is to be compared, and who can't be.
fn to_compare(contact: &Contact) -> (Vec<Compared>, Vec<LeftOut>) {
    let survey = Survey::of(contact);
    let mut left_out: Vec<LeftOut> = survey.silent().map(|(node, why)| LeftOut { node, why }).collect();
    let mut nodes = Vec::new();
    for status in survey.answers().filter(|one| one.role != Role::Arbiter) {
        let at = survey.heard_at(&status.node).filter(|_| status.keeping.oldest.is_some());
        match at {
            Some(address) => nodes.push(Compared { status: status.clone(), client: client(&[address]) }),
            None => {
                left_out.push(LeftOut { node: status.node.to_string(), why: "it holds no entries".into() })
            }
        }
    }
    nodes.sort_by(|a, b| a.status.node.cmp(&b.status.node));
    (nodes, left_out)
}

/// What a node has on its disk of what is committed.
fn vouched(status: &NodeStatus) -> Option<Vlsn> {
    status.committed.min(status.positions.durable)
}

/// The range that all have.
fn common(nodes: &[Compared]) -> Result<VlsnRange, Failure> {
    if nodes.len() < 2 {
        let who = nodes.first().map_or("no node".to_owned(), |one| format!("only {}", one.status.node));
        return Err(format!("{who} answers and holds entries: there is nothing to compare").into());
    }
    let first = nodes.iter().filter_map(|one| one.status.keeping.oldest).max();
    let last = nodes.iter().map(|one| vouched(&one.status)).min().flatten();
    let range = first.zip(last).and_then(|(first, last)| VlsnRange::new(first, last));
    let lines = nodes.iter().map(|one| {
        let has = (number(one.status.keeping.oldest), number(vouched(&one.status)));
        format!("{} has {} to {}", one.status.node, has.0, has.1)
    });
    range.ok_or_else(|| {
        format!("no committed entry is in all logs: {}", lines.collect::<Vec<_>>().join(", ")).into()
    })
}

fn names(nodes: &[Compared], sides: &[Vec<usize>]) -> Vec<Vec<String>> {
    let name = |at: &usize| nodes.get(*at).map_or_else(String::new, |one| one.status.node.to_string());
    sides.iter().map(|side| side.iter().map(name).collect()).collect()
}

fn log_report(range: VlsnRange, nodes: &[Compared], findings: &Findings) -> LogReport {
    let gaps = findings.gaps.iter().map(|gap| GapLine {
        node: nodes.get(gap.node).map_or_else(String::new, |one| one.status.node.to_string()),
        first: gap.range.first().get(),
        last: gap.range.last().get(),
        damaged: matches!(gap.why, Why::Damaged | Why::Healed),
        healed: gap.why == Why::Healed,
        why: match &gap.why {
            Why::Damaged => format!("its entry {} is damaged", gap.range.first()),
            Why::Healed => format!("its entry {} was damaged, and has been healed since", gap.range.first()),
            Why::Failed(why) => why.clone(),
        },
    });
    LogReport {
        first: range.first().get(),
        last: range.last().get(),
        to: findings.to.map(Vlsn::get),
        bytes: findings.bytes,
        difference: findings
            .difference
            .as_ref()
            .map(|one| Difference { at: one.at.get(), sides: names(nodes, &one.sides) }),
        gaps: gaps.collect(),
        nodes: nodes
            .iter()
            .map(|one| NodeLine {
                node: one.status.node.to_string(),
                oldest: number(one.status.keeping.oldest),
                committed: number(one.status.committed),
                durable: number(one.status.positions.durable),
            })
            .collect(),
    }
}

/// Has all engines digested at one entry, and compares.
fn engines(
    args: &Args,
    contact: &Contact,
    nodes: &mut [Compared],
    left_out: &mut Vec<LeftOut>,
) -> Option<EngineReport> {
    let wait = Wait::Until(deadline_in(ASKING));
    let at = match contact.client().to_master(contact.group, Order::Verify, wait) {
        Ok(ControlReply::Marked(at)) => at,
        other => {
            let why = match other {
                Ok(ControlReply::Refused(why)) => why,
                Ok(other) => format!("the master answers with {other:?}"),
                Err(error) => error.to_string(),
            };
            left_out.push(LeftOut { node: "all engines".into(), why });
            return None;
        }
    };
    let mut report =
        EngineReport { at: at.get(), sides: Vec::new(), no_snapshots: Vec::new(), failed: Vec::new() };
    let until = Wait::Until(deadline_in(Duration::from_secs(args.patience)));
    let mut digests = Vec::new();
    for (place, node) in nodes.iter_mut().enumerate() {
        let name = node.status.node.to_string();
        match engine_of(node, contact.group, at, until) {
            Ok(EngineState::Digest(digest)) => digests.push((place, digest)),
            Ok(EngineState::NoSnapshots) => report.no_snapshots.push(name),
            Ok(EngineState::Failed(why)) | Err(why) => report.failed.push(LeftOut { node: name, why }),
        }
    }
    report.sides = names(nodes, &agree(digests));
    Some(report)
}

/// Waits until a node has digested its engine at this entry.
fn engine_of(node: &mut Compared, group: GroupId, at: Vlsn, wait: Wait) -> Result<EngineState, String> {
    let mut search = Search::new();
    loop {
        match node.client.order(group, Order::Status, Wait::Until(deadline_in(ASKING))) {
            Ok(ControlReply::Status(status)) => match status.keeping.engine {
                Some(engine) if engine.at == at => return Ok(engine.state),
                Some(engine) if engine.at > at => {
                    return Err(format!("another comparison, at VLSN {}, came between", engine.at));
                }
                _ => {}
            },
            Ok(other) => return Err(format!("it answers with {other:?}")),
            Err(error) => return Err(error.to_string()),
        }
        if !search.pause(wait) {
            return Err(format!("its engine was not digested at VLSN {at} in time"));
        }
    }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let log = &report.log;
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(["node", "oldest", "committed", "durable", "log", "engine"]);
    for node in &log.nodes {
        let gaps: Vec<&GapLine> = log.gaps.iter().filter(|gap| gap.node == node.node).collect();
        let of = |sides: &[Vec<String>]| {
            let side = sides.iter().position(|side| side.contains(&node.node))?;
            Some(if sides.len() == 1 { "equal".to_owned() } else { format!("side {}", side + 1) })
        };
        let side = log.difference.as_ref().and_then(|one| of(&one.sides));
        let word = match (side, gaps.first()) {
            (_, Some(gap)) if gap.healed => "healed".to_owned(),
            (_, Some(gap)) if gap.damaged => "damaged".to_owned(),
            (_, Some(_)) => "in part".to_owned(),
            (Some(side), None) => side,
            (None, None) => "equal".to_owned(),
        };
        let engine = report.engine.as_ref().map_or("-".to_owned(), |engine| {
            let none = if engine.no_snapshots.contains(&node.node) { "no snapshots" } else { "failed" };
            of(&engine.sides).unwrap_or_else(|| none.to_owned())
        });
        let numbers = [node.oldest, node.committed, node.durable].map(|number| number.to_string());
        table.add_row([&[node.node.clone()][..], &numbers, &[word, engine]].concat());
    }
    for number in [1, 2, 3] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    writeln!(out, "group {}", report.group)?;
    writeln!(out, "{}", table.trim_fmt())?;
    let sides = |sides: &[Vec<String>]| {
        let all: Vec<String> = sides.iter().map(|side| side.join(", ")).collect();
        all.join(" | ")
    };
    match (&log.difference, log.to) {
        (Some(one), _) => writeln!(
            out,
            "the logs differ first at VLSN {}: {} (who agrees stands together)",
            one.at,
            sides(&one.sides)
        )?,
        (None, Some(to)) => writeln!(
            out,
            "the logs are equal from VLSN {} to {to}: {}",
            log.first,
            indicatif::HumanBytes(log.bytes)
        )?,
        (None, None) => writeln!(out, "no entry of the logs was compared")?,
    }
    for gap in &log.gaps {
        let GapLine { node, first, last, why, .. } = gap;
        match gap.healed {
            true => writeln!(out, "{node} was compared, but {why}")?,
            false => writeln!(out, "{node} was not compared from VLSN {first} to {last}: {why}")?,
        }
    }
    if let Some(engine) = &report.engine {
        match engine.sides.len() {
            0 => {}
            1 => writeln!(out, "the engines are equal at VLSN {}: {}", engine.at, sides(&engine.sides))?,
            _ => writeln!(out, "the engines differ at VLSN {}: {}", engine.at, sides(&engine.sides))?,
        }
        for node in &engine.no_snapshots {
            writeln!(out, "the engine of {node} takes no snapshots, and was not compared")?;
        }
        for LeftOut { node, why } in &engine.failed {
            writeln!(out, "the engine of {node} was not compared: {why}")?;
        }
    }
    for LeftOut { node, why } in &report.left_out {
        writeln!(out, "{node} was left out: {why}")?;
    }
    Ok(())
}
