//! `quorate status`: how a group and its nodes stand.

use std::io::Write;
use std::time::Duration;

use quorate::client::ClientError;
use quorate::clock::{Wait, deadline_in};
use quorate::ids::number;
use quorate::members::{Admission, Standing};
use quorate::wire::message::{Ack, ControlReply, MemberStatus, NodeStatus, Order, Part, RejectReason};
use quorate::wire::recovery::PinStatus;
use quorate::{Address, GroupId, NodeId, Slot, Vlsn};
use serde::Serialize;

use crate::group_args::{Contact, GroupArgs, client};
use crate::{Failure, Verdict, keeping};

/// How long one node may take to answer.
const ASKING: Duration = Duration::from_secs(2);

/// Which group.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    group: GroupArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is known of a group.
pub struct Survey {
    group: GroupId,
    /// Who was asked, and what came of it.
    asked: Vec<(Address, Result<NodeStatus, String>)>,
}

impl Survey {
    /// Asks the nodes at these addresses, and then the members that they name.
    pub fn of(contact: &Contact) -> Survey {
        let mut survey = Survey { group: contact.group, asked: Vec::new() };
        survey.ask(contact.addresses.clone(), contact.wait);
        let answered = survey.answers().flat_map(|status| &status.members);
        let named: Vec<Address> = answered.filter_map(|one| one.member.address.clone()).collect();
        survey.ask(named, contact.wait);
        survey
    }

    fn ask(&mut self, whom: Vec<Address>, wait: Wait) {
        let mut new: Vec<Address> = Vec::new();
        for address in whom {
            if !new.contains(&address) && self.asked.iter().all(|(known, _)| *known != address) {
                new.push(address);
            }
        }
        let group = self.group;
        let answers: Vec<_> = std::thread::scope(|scope| {
            let asking: Vec<_> =
                new.iter().map(|at| scope.spawn(move || status_of(at, group, wait))).collect();
            asking
                .into_iter()
                .map(|one| one.join().unwrap_or_else(|_| Err("the asking failed".into())))
                .collect()
        });
        self.asked.extend(new.into_iter().zip(answers));
    }

    /// What each node said that answered, one of a name.
    pub fn answers(&self) -> impl Iterator<Item = &NodeStatus> {
        let all = || self.asked.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        all()
            .enumerate()
            .filter(move |(at, one)| all().take(*at).all(|other| other.node != one.node))
            .map(|(_, one)| one)
    }

    /// The master of the highest term, as it says itself.
    pub fn master(&self) -> Option<&NodeStatus> {
        self.answers().filter(|one| one.part == Part::Master).max_by_key(|one| one.term)
    }

    /// Why there is no master to be asked.
    pub fn nobody_leads(&self) -> String {
        let silent = self.asked.iter().filter_map(|(at, answer)| Some((at, answer.as_ref().err()?)));
        let silent: Vec<String> = silent.map(|(at, why)| format!("{at}: {why}")).collect();
        if silent.len() < self.asked.len() || silent.is_empty() {
            return "no node that answers leads".to_owned();
        }
        format!("no node of group {} answers: {}", self.group, silent.join("; "))
    }

    /// The address at which a node answered.
    pub fn heard_at(&self, node: &NodeId) -> Option<Address> {
        let heard = self.asked.iter().find(|(_, answer)| answer.as_ref().is_ok_and(|one| one.node == *node));
        heard.map(|(address, _)| address.clone())
    }
}

/// Asks one node.
fn status_of(at: &Address, group: GroupId, wait: Wait) -> Result<NodeStatus, String> {
    let wait = wait.at_most(deadline_in(ASKING));
    match client(std::slice::from_ref(at)).order(group, Order::Status, wait) {
        Ok(ControlReply::Status(status)) => Ok(*status),
        Ok(other) => Err(format!("answers {other:?}")),
        Err(ClientError::Unreachable { tried }) => {
            Err(tried.first().map_or_else(String::new, |one| one.why.to_string()))
        }
        Err(ClientError::Unanswered { why, .. }) => Err(format!("no answer: {why}")),
        Err(ClientError::Rejected { reason: RejectReason::WrongGroup { ours }, .. }) => {
            Err(format!("belongs to group {ours}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// What a node is doing, in a word.
pub fn part(part: Part) -> &'static str {
    match part {
        Part::Master => "master",
        Part::Replica => "replica",
        Part::Candidate => "candidate",
        Part::Waiting => "waiting",
        Part::Failed => "failed",
    }
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Newcomer => "newcomer",
        Standing::Doubtful { .. } => "doubtful",
        Standing::Damaged { .. } => "damaged",
        Standing::Full { .. } => "full",
    }
}

/// A node: what it says itself, and what the list of members says of it.
#[derive(Serialize)]
struct Row {
    node: Option<String>,
    address: Option<String>,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    silent: Option<String>,
    part: Option<&'static str>,
    standing: Option<&'static str>,
    term: Option<u32>,
    master: Option<String>,
    #[serde(flatten)]
    at: Positions,
    committed: Option<u64>,
    health: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    role: Option<String>,
    admission: Option<String>,
    region: Option<String>,
    priority: Option<u8>,
    /// Entries that the master has and the node does not have on its disk.
    lag: Option<u64>,
    /// Milliseconds since the master heard of it.
    last_seen_ms: Option<u64>,
    /// The oldest entry of its log.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest: Option<u64>,
    /// For whom it keeps its log.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pins: Vec<PinRow>,
    /// What it says of snapshots, checks and archives.
    keeping: Option<keeping::Report>,
}

/// Who needs what of a node's log.
#[derive(Serialize)]
struct PinRow {
    owner: String,
    from: u64,
    /// For how long it has needed that.
    held_ms: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct SlotRow {
    name: String,
    from: u64,
    created_micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    invalid: Option<String>,
}

#[derive(Default, Serialize)]
struct Positions {
    received: Option<u64>,
    durable: Option<u64>,
    applied: Option<u64>,
    checkpointed: Option<u64>,
}

impl Positions {
    fn of(ack: Ack) -> Positions {
        let Ack { received, durable, applied, checkpointed } = ack;
        let [received, durable, applied, checkpointed] =
            [received, durable, applied, checkpointed].map(|at| Some(number(at)));
        Positions { received, durable, applied, checkpointed }
    }
}

#[derive(Serialize)]
struct Report {
    group: String,
    master: Option<String>,
    term: Option<u32>,
    committed: Option<u64>,
    slots: Vec<SlotRow>,
    nodes: Vec<Row>,
}

impl Survey {
    /// Who does not answer and may hold data, and why.
    pub fn silent(&self) -> impl Iterator<Item = (String, String)> {
        let rows = self.report().nodes.into_iter();
        // Who leads knows whom there is: an address that is no member's may be of one who was removed.
        let known = self.master().is_some();
        let belongs = move |row: &Row| row.role.is_some() || !known;
        let silent = move |row: &Row| row.part.is_none() && row.role.as_deref() != Some("arbiter");
        rows.filter(move |row| silent(row) && belongs(row)).map(|row| {
            let name = row.node.or(row.address).unwrap_or_default();
            (name, row.silent.unwrap_or_else(|| "it is not known where it listens".to_owned()))
        })
    }

    fn report(&self) -> Report {
        // Without a master, whoever is furthest knows best who belongs to the group.
        let informed = self.master().or_else(|| self.answers().max_by_key(|one| (one.committed, one.term)));
        let listed = informed.map_or(&[][..], |one| &one.members);
        let mut rows: Vec<Row> = listed.iter().map(|member| self.row(Some(member), None)).collect();
        for (address, answer) in &self.asked {
            let known = match answer {
                Ok(status) => listed.iter().any(|one| one.member.id == status.node),
                Err(_) => listed.iter().any(|one| one.member.address.as_ref() == Some(address)),
            };
            if !known {
                rows.push(self.row(None, Some((address, answer))));
            }
        }
        let master = self.master();
        Report {
            group: self.group.to_string(),
            master: master.map(|one| one.node.to_string()),
            term: master.map(|one| one.term.get()),
            committed: master.map(|one| number(one.committed)),
            slots: informed.map_or(&[][..], |one| &one.keeping.slots).iter().map(slot_row).collect(),
            nodes: rows,
        }
    }

    fn row(
        &self,
        listed: Option<&MemberStatus>,
        asked: Option<(&Address, &Result<NodeStatus, String>)>,
    ) -> Row {
        let member = listed.map(|one| &one.member);
        let own = match (member, asked) {
            (Some(member), _) => self.answers().find(|one| one.node == member.id),
            (None, asked) => asked.and_then(|(_, answer)| answer.as_ref().ok()),
        };
        let address = member.and_then(|one| one.address.as_ref()).or(asked.map(|(address, _)| address));
        let silent = match own {
            Some(_) => None,
            None => self
                .asked
                .iter()
                .find_map(|(at, answer)| answer.as_ref().err().filter(|_| Some(at) == address).cloned()),
        };
        let name = member.map(|one| &one.id).or(own.map(|one| &one.node));
        let leads = self.master().is_some_and(|master| Some(&master.node) == name);
        // The master knows only from hearsay what the node knows itself.
        let heard = listed.filter(|_| self.master().is_some());
        let at = match (own, heard) {
            (Some(own), _) => Positions::of(own.positions),
            (None, Some(heard)) => Positions::of(heard.positions),
            (None, None) => Positions::default(),
        };
        let behind =
            |master: &NodeStatus| number(master.positions.received).saturating_sub(at.durable.unwrap_or(0));
        Row {
            node: name.map(NodeId::to_string),
            address: address.map(Address::to_string),
            silent,
            part: own.map(|one| part(one.part)),
            standing: own.map(|one| standing(one.standing)),
            term: own.map(|one| one.term.get()),
            master: own.and_then(|one| one.master.as_ref()).map(NodeId::to_string),
            committed: own.map(|one| number(one.committed)),
            health: own.map(|one| one.health).or(heard.and_then(|one| one.health)).map(|one| one.to_string()),
            failed: own.and_then(|one| one.failed.clone()),
            role: member.map(|one| one.role).or(own.map(|one| one.role)).map(|one| one.to_string()),
            admission: member.map(|one| match one.admission {
                Admission::Learner => "learner".to_owned(),
                Admission::Full => "full".to_owned(),
            }),
            region: member.map(|one| one.region.clone()),
            priority: member.map(|one| one.priority),
            lag: self.master().filter(|_| !leads && at.durable.is_some()).map(behind),
            last_seen_ms: heard
                .and_then(|one| one.last_seen)
                .and_then(|ago| u64::try_from(ago.as_millis()).ok()),
            oldest: own.and_then(|one| one.keeping.oldest).map(Vlsn::get),
            pins: own.map_or(&[][..], |one| &one.keeping.pins).iter().map(pin_row).collect(),
            keeping: own.map(|one| keeping::Report::of(&one.keeping)),
            at,
        }
    }
}

fn slot_row(slot: &Slot) -> SlotRow {
    SlotRow {
        name: slot.name.clone(),
        from: slot.from.get(),
        created_micros: slot.created,
        invalid: slot.invalid.map(|why| why.to_string()),
    }
}

fn pin_row(pin: &PinStatus) -> PinRow {
    PinRow {
        owner: pin.owner.clone(),
        from: pin.from.get(),
        held_ms: u64::try_from(pin.since.as_millis()).unwrap_or(u64::MAX),
        bytes: pin.bytes,
    }
}

/// Asks, and prints what it hears.
///
/// # Errors
/// If no node tells which group it belongs to.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let survey = Survey::of(&args.group.contact()?);
    let report = survey.report();
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.master.is_some() { Verdict::Good } else { Verdict::Bad })
}

impl PinRow {
    fn text(&self) -> String {
        let held = Duration::from_secs(self.held_ms / 1000);
        let (owner, from) = (self.owner.escape_debug(), self.from);
        let bytes = indicatif::HumanBytes(self.bytes);
        format!("{owner} from {from} ({bytes}, since {})", indicatif::HumanDuration(held))
    }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    match (&report.master, report.term, report.committed) {
        (Some(master), Some(term), Some(committed)) => {
            writeln!(out, "group {}: {master} leads in term {term}, committed {committed}", report.group)?;
        }
        _ => writeln!(out, "group {}: no node that answers leads", report.group)?,
    }
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "node",
        "address",
        "role",
        "member",
        "part",
        "term",
        "master",
        "received",
        "durable",
        "applied",
        "committed",
        "lag",
        "health",
        "heard",
    ]);
    for row in &report.nodes {
        let word = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let count = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        let part = match (row.part, row.standing) {
            (None, _) => "silent".to_owned(),
            (Some(part), Some("full") | None) => part.to_owned(),
            (Some(part), Some(standing)) => format!("{part}, {standing}"),
        };
        table.add_row([
            word(row.node.as_deref()),
            word(row.address.as_deref()),
            word(row.role.as_deref()),
            word(row.admission.as_deref()),
            part,
            count(row.term.map(u64::from)),
            word(row.master.as_deref()),
            count(row.at.received),
            count(row.at.durable),
            count(row.at.applied),
            count(row.committed),
            count(row.lag),
            word(row.health.as_deref()),
            row.last_seen_ms.map_or("-".to_owned(), |ms| format!("{ms} ms ago")),
        ]);
    }
    for number in [5, 7, 8, 9, 10, 11] {
        if let Some(column) = table.column_mut(number) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
    }
    writeln!(out, "{}", table.trim_fmt())?;
    for slot in &report.slots {
        let state = slot.invalid.as_ref().map_or(String::new(), |why| format!(", given up: {why}"));
        writeln!(out, "slot {} from VLSN {}{state}", slot.name.escape_debug(), slot.from)?;
    }
    for row in &report.nodes {
        let name = row.node.as_deref().or(row.address.as_deref()).unwrap_or("-");
        if let Some(why) = &row.silent {
            writeln!(out, "{name} is silent: {why}")?;
        }
        if let Some(why) = &row.failed {
            writeln!(out, "{name} has failed: {why}")?;
        }
        let pins: Vec<String> = row.pins.iter().map(PinRow::text).collect();
        if let (Some(oldest), false) = (row.oldest, pins.is_empty()) {
            writeln!(out, "{name} has its log from VLSN {oldest} on, for {}", pins.join(", "))?;
        }
        for line in row.keeping.iter().flat_map(keeping::Report::lines) {
            writeln!(out, "{name} {line}")?;
        }
    }
    Ok(())
}
