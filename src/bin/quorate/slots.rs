//! `quorate slots`: for whom a group keeps its log.

use std::io::Write;

use quorate::Vlsn;
use quorate::wire::message::Order;

use crate::group_args::GroupArgs;
use crate::orders::tell;
use crate::status::Survey;
use crate::{Failure, Verdict};

/// Which change, of which group.
#[derive(clap::Args)]
pub struct SlotsArgs {
    #[command(subcommand)]
    command: SlotsCommand,
}

#[derive(clap::Subcommand)]
enum SlotsCommand {
    /// Show the slots
    List {
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Have every node keep its log for somebody
    Create {
        name: String,
        /// The first entry that it needs [default: the next one to be written]
        #[arg(long, value_name = "VLSN", value_parser = vlsn)]
        from: Option<Vlsn>,
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Say that the owner of a slot needs only this entry and what comes after it
    Move {
        name: String,
        #[arg(value_name = "VLSN", value_parser = vlsn)]
        to: Vlsn,
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Give a slot up
    Drop {
        name: String,
        #[command(flatten)]
        group: GroupArgs,
    },
}

fn vlsn(text: &str) -> Result<Vlsn, String> {
    text.parse().ok().and_then(Vlsn::new).ok_or_else(|| "it has to be a whole number from 1 on".to_owned())
}

/// Shows or changes the slots.
///
/// # Errors
/// If no node can be reached.
pub fn run(args: &SlotsArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (order, group) = match &args.command {
        SlotsCommand::List { group } => return list(group, out),
        SlotsCommand::Create { name, from, group } => {
            (Order::CreateSlot { name: name.clone(), from: *from }, group)
        }
        SlotsCommand::Move { name, to, group } => (Order::MoveSlot { name: name.clone(), to: *to }, group),
        SlotsCommand::Drop { name, group } => (Order::DropSlot { name: name.clone() }, group),
    };
    let contact = group.contact()?;
    tell(contact.client().to_master(contact.group, order, contact.wait), out)
}

fn list(group: &GroupArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let survey = Survey::of(&group.contact()?);
    let Some(master) = survey.master() else { return Err(survey.nobody_leads().into()) };
    if master.keeping.slots.is_empty() {
        writeln!(out, "there are no slots")?;
    }
    for slot in &master.keeping.slots {
        let state = slot.invalid.map_or(String::new(), |why| format!(", given up: {why}"));
        writeln!(out, "{} from VLSN {}{state}", slot.name.escape_debug(), slot.from)?;
    }
    Ok(Verdict::Good)
}
