//! `quorate node`: a node of a group that runs itself, with the key-value store.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::time::Duration;

use quorate::client::Client;
use quorate::clock::{Wait, deadline_in};
use quorate::runtime::ThreadRuntime;
use quorate::wire::message::{ControlReply, Order};
use quorate::{Event, Host, Node, NodeId, Role};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config_file::NodeFile;
use crate::kv::Reader;
use crate::replica::{CLOSING, store_in};
use crate::service::KvService;
use crate::transfer::Transfer;
use crate::{Failure, Verdict};

/// How long a seed may take to say whether the group exists.
const ASKING: Duration = Duration::from_secs(1);
/// How often the node is asked whether it still takes part, and what it fetches.
const LOOK: Duration = Duration::from_millis(250);
/// So many events wait to be printed; what comes then is left out.
const MAX_EVENTS: usize = 1024;

/// Which node to be.
#[derive(clap::Args)]
pub struct Args {
    /// The node's configuration; docs/examples/node.toml shows every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which node to be, if the file does not name it
    #[arg(long, value_name = "NODE")]
    node: Option<NodeId>,
    /// Close also when standard input ends, which it does when the parent dies
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

/// What the main thread waits for.
enum News {
    Signal,
    Event(Event),
}

/// Runs the node until a signal closes it.
///
/// # Errors
/// If it does not open, or can't go on.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let file = NodeFile::read(&args.config, args.node.as_ref())?;
    let (tell, news) = mpsc::sync_channel(MAX_EVENTS);
    // Before the node opens: a signal that comes meanwhile is not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let told: SyncSender<News> = tell.clone();
    std::thread::spawn(move || {
        for _signal in signals.forever() {
            if told.send(News::Signal).is_err() {
                break;
            }
        }
    });
    if args.until_stdin_ends {
        let told = tell.clone();
        std::thread::spawn(move || {
            let _bytes = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            let _ended = told.send(News::Signal);
        });
    }
    let (node, _store) = open(&file)?;
    let own = &file.config.base.node;
    // It must not block the node: who does not read what we print misses some of it.
    node.on_change(move |event| drop(tell.try_send(News::Event(event.clone()))));
    match node.address() {
        Some(address) => writeln!(out, "{own} listens at {address}")?,
        None => writeln!(out, "{own} listens nowhere")?,
    }
    out.flush()?;
    let mut transfer = Transfer::default();
    let ended = loop {
        match news.recv_timeout(LOOK) {
            Ok(News::Signal) | Err(RecvTimeoutError::Disconnected) => break None,
            Ok(News::Event(event)) => {
                // Nobody may be reading any more; that is no reason to end.
                let _unread =
                    transfer.beside(|| writeln!(out, "{}", line(&event)).and_then(|()| out.flush()));
            }
            Err(RecvTimeoutError::Timeout) => {
                let _unread = transfer.show(node.status().keeping.fetching.as_ref(), out);
            }
        }
        if let Some(reason) = node.poisoned() {
            break Some(reason);
        }
    };
    transfer.end();
    node.close(Wait::Until(deadline_in(CLOSING)));
    match ended.or_else(|| node.poisoned()) {
        Some(reason) => Err(reason.into()),
        None => Ok(Verdict::Good),
    }
}

/// Opens the node that the file describes, and offers its store over its port. An arbiter has no store.
///
/// # Errors
/// If the store or the node does not open.
pub fn open(file: &NodeFile) -> Result<(Arc<Node>, Option<Reader>), Failure> {
    let config = &file.config;
    let (node, store) = if config.role == Role::Arbiter {
        (Node::arbiter(config.clone(), Host::machine())?, None)
    } else {
        let found = founds(file);
        let store = store_in(&config.base.dir)?;
        let (reader, engine) = (store.reader(), Box::new(store));
        let node = match found {
            true => Node::create(config.clone(), engine, Host::machine())?,
            false => Node::join(config.clone(), engine, Host::machine())?,
        };
        (node, Some(reader))
    };
    let node = Arc::new(node);
    KvService::offer(&node, config.base.group, store.clone());
    Ok((node, store))
}

/// Whether this is the start that founds the group. A founder whose directory was lost finds that its group lives, and
/// joins it like anybody else.
fn founds(file: &NodeFile) -> bool {
    let base = &file.config.base;
    let new = !base.dir.join("state").exists();
    let lives = |seed: &quorate::Address| {
        let mut client = Client::new(vec![seed.clone()], Arc::new(ThreadRuntime)).reach(ASKING);
        let reply = client.order(base.group, Order::Status, Wait::Until(deadline_in(ASKING)));
        matches!(reply, Ok(ControlReply::Status(status)) if status.committed.is_some())
    };
    file.found && new && !file.others().iter().any(lives)
}

fn line(event: &Event) -> String {
    match event {
        Event::Part { part, term, master } => {
            let master = master.as_ref().map_or(String::new(), |master| format!("; {master} leads"));
            format!("{} in term {term}{master}", crate::status::part(*part))
        }
        Event::Members(members) => {
            let names: Vec<String> = members
                .iter()
                .map(|member| match member.is_voter() {
                    true => member.id.to_string(),
                    false => format!("{} ({} {})", member.id, member.admission, member.role),
                })
                .collect();
            format!("members: {}", names.join(", "))
        }
        Event::Installed { at } => format!("stands on the snapshot at VLSN {at}"),
        Event::ArchiveGap { missing } => {
            format!(
                "VLSN {missing} are in neither the archive nor the log, and nothing can be restored to them"
            )
        }
        Event::RolledBack { range, saved } => {
            let saved = saved.as_ref().map_or(String::new(), |path| format!("; kept in {}", path.display()));
            format!("rolled back VLSN {range}, which were never committed{saved}")
        }
        Event::SlotInvalid { name, why } => {
            format!("the log is not kept for slot {} any more: {why}", name.escape_debug())
        }
        Event::PinGivenUp { owner, from, why } => {
            let owner = owner.escape_debug();
            format!("the log is not kept for {owner} from VLSN {from} on any more: {why}")
        }
    }
}
