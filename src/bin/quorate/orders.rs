//! `quorate members`, `transfer`, `promote` and `demote`: what operators order.

use std::io::Write;
use std::time::Duration;

use quorate::client::ClientError;
use quorate::wire::message::{ControlReply, NodeStatus, Order};
use quorate::{Address, Change, Member, NodeId, Role};

use crate::group_args::{Contact, GroupArgs, client};
use crate::status::Survey;
use crate::{Failure, Verdict};

/// Which change, of which group.
#[derive(clap::Args)]
pub struct MembersArgs {
    #[command(subcommand)]
    command: MembersCommand,
}

#[derive(clap::Subcommand)]
enum MembersCommand {
    /// Add a node, as a learner until it has caught up; a node that starts with seeds asks for this itself
    Add {
        node: NodeId,
        /// Where it listens
        #[arg(long, value_name = "ADDRESS")]
        address: Option<Address>,
        /// What it is to the group
        #[arg(long, value_enum, default_value_t = RoleName::Electable)]
        role: RoleName,
        /// Where it stands
        #[arg(long, default_value = "")]
        region: String,
        /// Who is preferred as master: the highest; 0 leads only while nobody else can
        #[arg(long, default_value_t = 100)]
        priority: u8,
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Take a node out of the group
    Remove {
        node: NodeId,
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Have a learner count from now on; the master does so itself when it has caught up
    Promote {
        node: NodeId,
        #[command(flatten)]
        group: GroupArgs,
    },
    /// Tell the group that a node listens elsewhere
    Move {
        node: NodeId,
        to: Address,
        #[command(flatten)]
        group: GroupArgs,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum RoleName {
    /// Holds data, votes, may lead
    Electable,
    /// Holds data, and counts for nothing
    Secondary,
    /// Votes, and holds no data
    Arbiter,
}

/// To whom.
#[derive(clap::Args)]
pub struct TransferArgs {
    /// Who is to lead [default: the member that has most]
    #[arg(long, value_name = "NODE")]
    to: Option<NodeId>,
    /// How long writing may pause before the master goes on itself
    #[arg(long, value_name = "MILLIS", default_value_t = 3000)]
    patience: u64,
    #[command(flatten)]
    group: GroupArgs,
}

/// Which node.
#[derive(clap::Args)]
pub struct PromoteArgs {
    /// The node
    node: NodeId,
    #[command(flatten)]
    group: GroupArgs,
}

/// Which group's master.
#[derive(clap::Args)]
pub struct DemoteArgs {
    #[command(flatten)]
    group: GroupArgs,
}

/// Changes the members.
///
/// # Errors
/// If no node can be reached.
pub fn members(args: &MembersArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (change, group) = match &args.command {
        MembersCommand::Add { node, address, role, region, priority, group } => {
            let role = match role {
                RoleName::Electable => Role::Electable,
                RoleName::Secondary => Role::Secondary,
                RoleName::Arbiter => Role::Arbiter,
            };
            let (address, region) = (address.clone(), region.clone());
            let member =
                Member { role, address, region, priority: *priority, ..Member::electable(node.clone()) };
            (Change::Add(member), group)
        }
        MembersCommand::Remove { node, group } => (Change::Remove(node.clone()), group),
        MembersCommand::Promote { node, group } => (Change::Promote(node.clone()), group),
        MembersCommand::Move { node, to, group } => {
            (Change::Move { node: node.clone(), to: to.clone() }, group)
        }
    };
    let contact = group.contact()?;
    tell(contact.client().to_master(contact.group, Order::Change(change), contact.wait), out)
}

/// Hands mastership over.
///
/// # Errors
/// If no node can be reached.
pub fn transfer(args: &TransferArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let contact = args.group.contact()?;
    let order = Order::Transfer { to: args.to.clone(), patience: Duration::from_millis(args.patience) };
    tell(contact.client().to_master(contact.group, order, contact.wait), out)
}

/// Has a node stand for election.
///
/// # Errors
/// If it can't be reached.
pub fn promote(args: &PromoteArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let contact = args.group.contact()?;
    let survey = Survey::of(&contact);
    let Some(status) = survey.answers().find(|status| status.node == args.node) else {
        return Err(format!("{} does not answer, or is no member of the group", args.node).into());
    };
    order_one(&contact, &survey, status, Order::Promote { term: status.term }, out)
}

/// Has the master step down.
///
/// # Errors
/// If there is none, or it can't be reached.
pub fn demote(args: &DemoteArgs, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let contact = args.group.contact()?;
    let survey = Survey::of(&contact);
    let Some(status) = survey.master() else { return Err(survey.nobody_leads().into()) };
    order_one(&contact, &survey, status, Order::Demote { term: status.term }, out)
}

/// Gives an order to one node, which has just said how it stands.
fn order_one(
    contact: &Contact,
    survey: &Survey,
    whom: &NodeStatus,
    order: Order,
    out: &mut dyn Write,
) -> Result<Verdict, Failure> {
    let Some(address) = survey.heard_at(&whom.node) else {
        return Err(format!("it is not known where {} listens", whom.node).into());
    };
    tell(client(&[address]).order(contact.group, order, contact.wait), out)
}

/// Prints what came of an order.
///
/// # Errors
/// If it was refused, or nobody was reached.
pub fn tell(reply: Result<ControlReply, ClientError>, out: &mut dyn Write) -> Result<Verdict, Failure> {
    match reply {
        Ok(ControlReply::Done(what)) => {
            writeln!(out, "{what}")?;
            Ok(Verdict::Good)
        }
        Ok(ControlReply::Refused(why)) => Err(why.into()),
        Ok(ControlReply::NotMaster { .. }) => Err("the node is not the master any more; try again".into()),
        Ok(
            ControlReply::Status(_)
            | ControlReply::Digest(_)
            | ControlReply::Damaged(_)
            | ControlReply::Marked(_),
        ) => Err("the node answered another question".into()),
        Err(error) if error.may_be_done() => {
            eprintln!("quorate: {error}");
            Ok(Verdict::Unknown)
        }
        Err(error) => Err(error.into()),
    }
}
