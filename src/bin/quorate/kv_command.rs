//! `quorate kv`: writes and reads of a running group.

use std::io::{Read, Write};

use quorate::policy::{Policy, Token};
use quorate::{Outcome, Vlsn};
use serde::Serialize;

use crate::demo::policy;
use crate::group_args::GroupArgs;
use crate::service::client::{CallError, KvClient};
use crate::service::codec::{Act, Answer};
use crate::{Failure, Verdict};

/// What to write or read, and where.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// What all of them take.
#[derive(clap::Args)]
struct Common {
    #[command(flatten)]
    group: GroupArgs,
    /// Print the answer as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Set a key
    Put {
        key: String,
        /// Its new value; - reads standard input
        value: String,
        /// What the answer waits for, as in `demo`
        #[arg(long, default_value = "majority", value_parser = policy)]
        policy: Policy,
        #[command(flatten)]
        common: Common,
    },
    /// Print a key's value; its version goes to standard error
    Get {
        key: String,
        /// Take the answer of the first node that can be reached, which may be old
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Set a key if it has this version
    Cas {
        key: String,
        /// The version that it has to have; 0: it must not be there
        expected: u64,
        /// Its new value; - reads standard input
        value: String,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a key
    Delete {
        key: String,
        /// What the answer waits for, as in `demo`
        #[arg(long, default_value = "majority", value_parser = policy)]
        policy: Policy,
        #[command(flatten)]
        common: Common,
    },
    /// Ask what became of a write whose outcome was unknown
    Ask {
        /// The token that was printed
        token: Token,
        #[command(flatten)]
        common: Common,
    },
}

/// The answer, for programs.
#[derive(Default, Serialize)]
struct Line {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// If no node can be reached.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<Verdict, Failure> {
    let (Command::Put { common, .. }
    | Command::Get { common, .. }
    | Command::Cas { common, .. }
    | Command::Delete { common, .. }
    | Command::Ask { common, .. }) = &args.command;
    let (contact, json) = (common.group.contact()?, common.json);
    let mut read = Vec::new();
    let mut bytes = |text: &str| -> Result<Vec<u8>, Failure> {
        if text == "-" {
            std::io::stdin().lock().read_to_end(&mut read)?;
            return Ok(std::mem::take(&mut read));
        }
        Ok(text.as_bytes().to_vec())
    };
    let (value, act);
    act = match &args.command {
        Command::Put { key, value: text, policy, .. } => {
            value = bytes(text)?;
            Act::Put { policy: *policy, key: key.as_bytes(), value: &value }
        }
        Command::Get { key, stale, .. } => Act::Get { stale: *stale, key: key.as_bytes() },
        Command::Cas { key, expected, value: text, .. } => {
            value = bytes(text)?;
            Act::Cas { expected: Vlsn::new(*expected), key: key.as_bytes(), value: &value }
        }
        Command::Delete { key, policy, .. } => Act::Delete { policy: *policy, key: key.as_bytes() },
        Command::Ask { token, .. } if token.group != contact.group => {
            return Err(format!("the token is of group {}, not of {}", token.group, contact.group).into());
        }
        Command::Ask { token, .. } => Act::Ask { term: token.term, vlsn: token.vlsn },
    };
    let mut client = KvClient::new(contact.addresses.clone(), contact.group);
    let answer = match client.call(&act, contact.wait) {
        Ok(answer) => answer,
        Err(error) if error.may_be_done() => return unanswered(&error, json, out),
        Err(error) => return Err(error.into()),
    };
    let token = |term, vlsn| Token { group: contact.group, term, vlsn };
    if json {
        let (line, verdict) = line(answer, token);
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
        return Ok(verdict);
    }
    if let Answer::Found { version, value } = &answer {
        eprintln!("version {version}");
        out.write_all(value)?;
        writeln!(out)?;
        return Ok(Verdict::Good);
    }
    let (line, verdict) = line(answer, token);
    let text = text(&line);
    match verdict {
        Verdict::Good => writeln!(out, "{text}")?,
        Verdict::Bad | Verdict::Unknown => eprintln!("quorate: {text}"),
    }
    Ok(verdict)
}

/// The request was sent, and nobody says what came of it.
fn unanswered(error: &CallError, json: bool, out: &mut dyn Write) -> Result<Verdict, Failure> {
    if json {
        let line = Line { outcome: "unknown", why: Some(error.to_string()), ..Line::default() };
        serde_json::to_writer(&mut *out, &line)?;
        writeln!(out)?;
    } else {
        eprintln!("quorate: {error}");
    }
    Ok(Verdict::Unknown)
}

fn line(answer: Answer, token: impl Fn(quorate::Term, Vlsn) -> Token) -> (Line, Verdict) {
    let plain = |outcome| Line { outcome, ..Line::default() };
    match answer {
        Answer::Written { version, outcome } => {
            let outcome = match outcome {
                Outcome::Committed => "committed",
                Outcome::Acked => "acked",
                Outcome::Degraded => "degraded",
            };
            (Line { version: Some(version.get()), ..plain(outcome) }, Verdict::Good)
        }
        Answer::Differs { found } => {
            (Line { version: Some(quorate::ids::number(found)), ..plain("differs") }, Verdict::Bad)
        }
        Answer::Found { version, value } => {
            let value = String::from_utf8_lossy(&value).into_owned();
            (Line { version: Some(version.get()), value: Some(value), ..plain("found") }, Verdict::Good)
        }
        Answer::Absent => (plain("absent"), Verdict::Bad),
        Answer::Committed => (plain("committed"), Verdict::Good),
        Answer::RolledBack => (plain("rolled-back"), Verdict::Bad),
        Answer::Refused { why, .. } => (Line { why: Some(why), ..plain("refused") }, Verdict::Bad),
        Answer::NotMaster { hint } => {
            let why = match hint {
                Some(hint) => format!("no master was found in time; {hint} was named last"),
                None => "no master was found in time".to_owned(),
            };
            (Line { why: Some(why), ..plain("refused") }, Verdict::Bad)
        }
        Answer::Unknown { term, vlsn, why } => {
            let token = Some(token(term, vlsn).to_string());
            (Line { token, why: Some(why), ..plain("unknown") }, Verdict::Unknown)
        }
    }
}

fn text(line: &Line) -> String {
    let version = line.version.unwrap_or(0);
    let why = line.why.as_deref().unwrap_or_default();
    match line.outcome {
        "differs" if version == 0 => "the key is not there: nothing was written".to_owned(),
        "differs" => format!("the key has version {version}: nothing was written"),
        "absent" => "the key is not there".to_owned(),
        "committed" if version == 0 => "committed".to_owned(),
        "rolled-back" => "the entry was rolled back: nothing was written".to_owned(),
        "refused" => format!("nothing was written or read: {why}"),
        "unknown" => {
            let token = line.token.as_deref().unwrap_or_default();
            format!("the outcome is unknown: {why}\nask later: quorate kv ask {token}")
        }
        outcome => format!("version {version} {outcome}"),
    }
}
