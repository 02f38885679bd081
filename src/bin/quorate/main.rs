//! The `quorate` command. It has no logic of its own: what it shows, the library does.

mod archive;
mod bench;
mod bootstrap;
mod config_file;
mod demo;
mod failover;
mod files;
mod group_args;
mod keeping;
mod kv;
mod kv_command;
mod logs;
mod node;
mod orders;
mod processes;
mod repair;
mod replica;
mod restore;
mod service;
mod slots;
mod status;
mod transfer;
mod verify;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Counts allocations for `bench`: two atomic additions each, and nothing else.
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  something failed or was refused, or a difference or damage was found
  2  the command line makes no sense
  3  no answer came in time: what was asked for may or may not have been done

NO_COLOR turns colours off. QUORATE_LOG=debug shows the library's log.";

/// Replicates the log of a storage engine, with threads and without an async runtime
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replicate real files, kill a replica on the way, bring it back, and compare all stores
    Demo(demo::Args),
    /// Be a node of a group, with a key-value store, until SIGTERM or SIGINT
    Node(node::Args),
    /// Write and read keys of a running group
    Kv(kv_command::Args),
    /// Show how a group and its nodes stand; exit code 1 if no node that answers leads
    Status(status::Args),
    /// Compare what all nodes of a group hold: their logs, and their engines at one entry
    Verify(verify::Args),
    /// Change who belongs to a group
    Members(orders::MembersArgs),
    /// Show, create, move and drop the slots for which a group keeps its log
    Slots(slots::SlotsArgs),
    /// Hand mastership over to another node
    Transfer(orders::TransferArgs),
    /// Have a node stand for election now
    Promote(orders::PromoteArgs),
    /// Have the master step down
    Demote(orders::DemoteArgs),
    /// Be a replica of the demo, in a process of its own
    #[command(hide = true)]
    Replica(replica::Args),
    /// Measure this machine's limits, and how close the engine comes
    Bench(bench::Args),
    /// Look into a log
    #[command(subcommand)]
    Log(logs::Command),
    /// Look into an archive, and try it out
    #[command(subcommand)]
    Archive(archive::Command),
    /// Make a directory of a new group from an archive, as of a time, an entry or a term
    Restore(restore::Args),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// What ends a command early, for standard error; a difference or damage that was found is no failure but
/// [`Verdict::Bad`].
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a command that ran to its end found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All is well.
    Good,
    /// A difference, damage, or a refusal; it was printed.
    Bad,
    /// No answer: what was asked for may or may not have been done.
    Unknown,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The demo breaks connections on purpose, and tells of it itself.
    let level = if matches!(cli.command, Command::Demo(_) | Command::Replica(_)) { "error" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::new().filter_or("QUORATE_LOG", level)).init();
    let mut out = io::stdout().lock();
    match run(cli.command, &mut out).and_then(|verdict| Ok(out.flush().map(|()| verdict)?)) {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(3),
        // Whoever reads us, `head` for one, has seen enough.
        Err(failure) if is_broken_pipe(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("quorate: {failure}");
            ExitCode::from(1)
        }
    }
}

fn run(command: Command, out: &mut dyn Write) -> Result<Verdict, Failure> {
    match command {
        Command::Demo(args) => demo::run(&args, out),
        Command::Node(args) => node::run(&args, out),
        Command::Kv(args) => kv_command::run(&args, out),
        Command::Status(args) => status::run(&args, out),
        Command::Verify(args) => verify::run(&args, out),
        Command::Members(args) => orders::members(&args, out),
        Command::Slots(args) => slots::run(&args, out),
        Command::Transfer(args) => orders::transfer(&args, out),
        Command::Promote(args) => orders::promote(&args, out),
        Command::Demote(args) => orders::demote(&args, out),
        Command::Replica(args) => replica::run(&args),
        Command::Bench(args) => bench::run(&args, out),
        Command::Log(command) => logs::run(&command, out),
        Command::Archive(command) => archive::run(&command, out),
        Command::Restore(args) => restore::run(&args, out),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "quorate", &mut io::stdout());
            Ok(Verdict::Good)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?;
            Ok(Verdict::Good)
        }
    }
}

fn is_broken_pipe(failure: &Failure) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A progress bar over `len` units, drawn on standard error if that is a terminal.
fn progress(len: u64, template: &str) -> indicatif::ProgressBar {
    let target = if io::stderr().is_terminal() {
        indicatif::ProgressDrawTarget::stderr()
    } else {
        indicatif::ProgressDrawTarget::hidden()
    };
    let bar = indicatif::ProgressBar::with_draw_target(Some(len), target);
    match indicatif::ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_says_its_exit_codes() {
        Cli::command().debug_assert();
        assert!(Cli::command().render_long_help().to_string().contains("Exit codes"));
    }
}
