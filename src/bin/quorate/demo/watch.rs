//! What a person sees while the demo runs: a table on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};
use quorate::clock::Stopwatch;
use quorate::ids::number;
use quorate::{Master, Positions};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// The display, on standard error.
pub struct Watch {
    bar: ProgressBar,
    total: u64,
    on_terminal: bool,
    last_line: Stopwatch,
}

impl Watch {
    /// A display of so many bytes to be written.
    pub fn new(total: u64) -> Watch {
        let bar = crate::progress(total, "{bar:40} {bytes}/{total_bytes} {bytes_per_sec}\n{msg}");
        Watch { bar, total, on_terminal: std::io::stderr().is_terminal(), last_line: Stopwatch::start() }
    }

    /// Shows how the nodes stand.
    pub fn show(&mut self, done: u64, master: &Master) {
        let done = done.min(self.total);
        if self.on_terminal {
            self.bar.set_position(done);
            self.bar.set_message(table(master));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Stopwatch::start();
            let lags: Vec<String> = master
                .replicas()
                .iter()
                .map(|replica| format!("{} {} lags {}", replica.id, replica.state, replica.lag_entries))
                .collect();
            eprintln!("{} of {}; {}", HumanBytes(done), HumanBytes(self.total), lags.join(", "));
        }
    }

    /// Tells of an event.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A line for each node: its positions, and how far a replica is behind.
fn table(master: &Master) -> String {
    let line = |name: &str, state: &str, at: Positions, lag: String| {
        let [received, durable, applied] = [at.received, at.durable, at.applied].map(number);
        format!("{name:<8} {state:<12} {received:>9} {durable:>9} {applied:>9}  {lag}\n")
    };
    let heads = ["node", "state", "received", "durable", "applied", "lag"];
    let [node, state, received, durable, applied, lag] = heads;
    let mut text = format!("{node:<8} {state:<12} {received:>9} {durable:>9} {applied:>9}  {lag}\n");
    text += &line("master", "master", master.positions(), String::new());
    for replica in master.replicas() {
        let lag = format!("{} entries, {}", replica.lag_entries, HumanBytes(replica.lag_bytes));
        text += &line(replica.id.as_str(), &replica.state.to_string(), replica.positions, lag);
    }
    text
}
