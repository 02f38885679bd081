//! How a node stands: a snapshot, its table for people, and its text for Prometheus.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::commit::GateState;
use crate::counters::Counted;
use crate::feeder::ReplicaStats;
use crate::histogram::Histogram;
use crate::ids::{GroupId, NodeId, Term, Vlsn, number};
use crate::members::Health;
use crate::progress::Positions;

/// How a node stands.
#[derive(Clone, PartialEq, Debug)]
pub struct Stats {
    /// The group.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// The term that it knows.
    pub term: Term,
    /// How it fares.
    pub health: Health,
    /// The last entry appended.
    pub appended: Option<Vlsn>,
    /// Its own positions.
    pub positions: Positions,
    /// The last entry that it knows to be committed.
    pub committed: Option<Vlsn>,
    /// The replicas that it feeds.
    pub replicas: Vec<ReplicaStats>,
    /// The commit gates of its term; none if it is not master.
    pub gates: Vec<GateState>,
    /// What it counted.
    pub counted: Counted,
    /// How long commits took.
    pub commit_latency: Histogram,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Positions { received, durable, applied, checkpointed } = self.positions;
        writeln!(f, "node {} of group {}: {} in term {}", self.node, self.group, self.health, self.term)?;
        for (name, position) in [
            ("appended", self.appended),
            ("written", received),
            ("flushed", durable),
            ("committed", self.committed),
            ("applied", applied),
            ("checkpointed", checkpointed),
        ] {
            writeln!(f, "  {name:<12} {:>12}", number(position))?;
        }
        let latency = &self.commit_latency;
        if latency.count() > 0 {
            let (p50, p99, max) = (latency.p50(), latency.p99(), latency.max());
            writeln!(f, "commits: {}, p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}", latency.count())?;
        }
        for gate in &self.gates {
            let rule = format!("{} {}", gate.rule.quorum, gate.rule.level);
            let note = if gate.degraded { "  degraded" } else { "" };
            writeln!(f, "gate {rule:<32} {:>12}{note}", number(gate.reached))?;
        }
        if self.replicas.is_empty() {
            return Ok(());
        }
        let rows: Vec<[String; 11]> = self.replicas.iter().map(row).collect();
        table(f, &HEADINGS, &rows)
    }
}

const HEADINGS: [&str; 11] = [
    "replica",
    "region",
    "state",
    "health",
    "sent",
    "received",
    "durable",
    "applied",
    "lag",
    "connected",
    "seen",
];

fn row(replica: &ReplicaStats) -> [String; 11] {
    let position = |vlsn| number(vlsn).to_string();
    let seconds = |time: Option<Duration>| time.map_or("-".into(), |t| format!("{}s", t.as_secs()));
    let region: String = replica.region.escape_debug().collect();
    [
        replica.id.to_string(),
        if region.is_empty() { "-".into() } else { region },
        replica.state.to_string(),
        replica.health.to_string(),
        position(replica.sent),
        position(replica.positions.received),
        position(replica.positions.durable),
        position(replica.positions.applied),
        format!("{}/{}B/{:.1}s", replica.lag_entries, replica.lag_bytes, replica.lag_time.as_secs_f64()),
        seconds(replica.connected_for),
        seconds(replica.last_seen),
    ]
}

fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    headings: &[&str; N],
    rows: &[[String; N]],
) -> fmt::Result {
    let width = |column: usize| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        longest.max(headings[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut line = |cells: &[&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            write!(text, "{cell:<width$}  ")?;
        }
        writeln!(f, "{}", text.trim_end())
    };
    line(headings)?;
    rows.iter().try_for_each(|row| line(&std::array::from_fn(|column| row[column].as_str())))
}

impl Stats {
    /// The snapshot in the text exposition format of Prometheus.
    pub fn prometheus(&self) -> String {
        let mut out = Exposition { text: String::new(), node: self.labels() };
        for (name, help, value) in self.counted.iter() {
            out.family(&format!("{name}_total"), "counter", help);
            out.sample(&format!("{name}_total"), &[], value);
        }
        out.family("term", "gauge", "The term that the node knows.");
        out.sample("term", &[], self.term.get());
        out.family("position", "gauge", "How far the node's own log and engine are, as VLSN.");
        for (level, vlsn) in [
            ("appended", self.appended),
            ("written", self.positions.received),
            ("flushed", self.positions.durable),
            ("committed", self.committed),
            ("applied", self.positions.applied),
            ("checkpointed", self.positions.checkpointed),
        ] {
            out.sample("position", &[("level", level)], number(vlsn));
        }
        out.family("gate", "gauge", "The VLSN up to which a commit rule is satisfied.");
        for gate in &self.gates {
            out.sample("gate", &gate_labels(gate).each(), number(gate.reached));
        }
        out.family("gate_degraded", "gauge", "1 while semi-sync commits of the rule do not wait.");
        for gate in &self.gates {
            out.sample("gate_degraded", &gate_labels(gate).each(), u8::from(gate.degraded));
        }
        self.replica_metrics(&mut out);
        out.family("commit_seconds", "summary", "How long commits took.");
        for (share, time) in [("0.5", self.commit_latency.p50()), ("0.99", self.commit_latency.p99())] {
            out.sample("commit_seconds", &[("quantile", share)], time.as_secs_f64());
        }
        out.sample("commit_seconds_count", &[], self.commit_latency.count());
        out.text
    }

    fn replica_metrics(&self, out: &mut Exposition) {
        type Value = fn(&ReplicaStats) -> f64;
        let metrics: [(&str, &str, Value); 8] = [
            ("replica_connected", "1 while the replica is connected.", |r| {
                f64::from(u8::from(r.connected_for.is_some()))
            }),
            ("replica_healthy", "1 while the replica is at the tip.", |r| {
                f64::from(u8::from(r.health == Health::Healthy))
            }),
            ("replica_sent", "The last VLSN sent.", |r| number(r.sent) as f64),
            ("replica_received", "The last VLSN received.", |r| number(r.positions.received) as f64),
            ("replica_durable", "The last VLSN on disk.", |r| number(r.positions.durable) as f64),
            ("replica_applied", "The last VLSN applied.", |r| number(r.positions.applied) as f64),
            ("replica_lag_bytes", "Bytes that the replica has yet to receive.", |r| r.lag_bytes as f64),
            ("replica_lag_seconds", "For how long it has not been at the tip.", |r| r.lag_time.as_secs_f64()),
        ];
        for (name, help, value) in metrics {
            out.family(name, "gauge", help);
            for replica in &self.replicas {
                let labels = [("replica", replica.id.as_str()), ("region", &replica.region)];
                out.sample(name, &labels, value(replica));
            }
        }
    }

    fn labels(&self) -> String {
        format!("group=\"{}\",node=\"{}\"", self.group, escaped(self.node.as_str()))
    }
}

struct GateLabels {
    quorum: String,
    level: String,
}

impl GateLabels {
    fn each(&self) -> [(&str, &str); 2] {
        [("quorum", &self.quorum), ("level", &self.level)]
    }
}

fn gate_labels(gate: &GateState) -> GateLabels {
    GateLabels { quorum: gate.rule.quorum.to_string(), level: gate.rule.level.to_string() }
}

struct Exposition {
    text: String,
    node: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.text.push_str(&format!("# HELP quorate_{name} {help}\n# TYPE quorate_{name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.text.push_str(&format!("quorate_{name}{{{}", self.node));
        for (label, text) in labels {
            self.text.push_str(&format!(",{label}=\"{}\"", escaped(text)));
        }
        self.text.push_str(&format!("}} {value}\n"));
    }
}

/// A label's value, as the format wants it: backslash, quote and line feed escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rule;

    fn stats() -> Stats {
        let at = Vlsn::new;
        let positions = Positions { received: at(9), durable: at(8), applied: at(7), checkpointed: None };
        let mut commit_latency = Histogram::new();
        commit_latency.record(Duration::from_micros(50));
        Stats {
            group: GroupId::from_bits(1),
            node: NodeId::new("a").unwrap(),
            term: Term::new(3),
            health: Health::Healthy,
            appended: at(10),
            positions,
            committed: at(7),
            replicas: vec![ReplicaStats {
                id: NodeId::new("b").unwrap(),
                region: "e\"u\n".into(),
                state: crate::feeder::FeederState::Streaming,
                health: Health::Healthy,
                counts: true,
                sent: at(9),
                positions,
                lag_entries: 1,
                lag_bytes: 100,
                lag_time: Duration::from_millis(1500),
                connected_for: Some(Duration::from_secs(60)),
                last_seen: None,
                last_error: None,
            }],
            gates: vec![GateState { rule: Rule::COMMITTED, reached: at(7), degraded: true }],
            counted: Counted { acks: 5, ..Counted::default() },
            commit_latency,
        }
    }

    #[test]
    fn the_table_is_aligned() {
        let text = stats().to_string();
        let lines: Vec<&str> = text.lines().collect();
        let [heading, row] = lines[lines.len() - 2..] else { panic!("{text}") };
        assert_eq!(heading.find("lag"), row.find("1/100B/1.5s"), "{text}");
        assert_eq!(heading.find("seen"), row.rfind('-'), "{text}");
        assert!(text.contains("degraded"), "{text}");
    }

    #[test]
    fn prometheus_text_escapes_what_peers_named() {
        let text = stats().prometheus();
        let group = GroupId::from_bits(1);
        for line in [
            format!("quorate_acks_total{{group=\"{group}\",node=\"a\"}} 5"),
            format!(
                "quorate_replica_durable{{group=\"{group}\",node=\"a\",replica=\"b\",region=\"e\\\"u\\n\"}} 8"
            ),
            format!(
                "quorate_gate_degraded{{group=\"{group}\",node=\"a\",quorum=\"majority\",level=\"durable\"}} 1"
            ),
            format!("quorate_commit_seconds{{group=\"{group}\",node=\"a\",quantile=\"0.5\"}} 0.00005"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("# ") || line.starts_with("quorate_")), "{text}");
    }

    #[test]
    fn every_family_is_announced_once() {
        let text = stats().prometheus();
        let mut families: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all);
    }
}
