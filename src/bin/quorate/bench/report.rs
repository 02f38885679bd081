//! The lines that `bench` prints, and the goals that they are held to.

use std::io::{self, Write};

use serde::Serialize;

/// What is asked of a line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// The value is at most this.
    AtMost(f64),
    /// The value is at least this.
    AtLeast(f64),
    /// The value is at most this many times the limit.
    RatioAtMost(f64),
    /// The value is at least this many times the limit.
    RatioAtLeast(f64),
}

/// The goals by id. Ids of one table row differ in their last part; what a row asks beyond its value is a line of its
/// own: `.allocs`, `.p99`.
pub const GOALS: &[(&str, Goal)] = &[
    ("append.single.128", Goal::AtMost(150.0)),
    ("append.single.128.allocs", Goal::AtMost(0.0)),
    ("append.batch64.128", Goal::AtMost(120.0)),
    ("append.batch64.128.allocs", Goal::AtMost(0.0)),
    ("scan.runs.128", Goal::AtLeast(60e6)),
    ("scan.crc.128", Goal::RatioAtLeast(0.85)),
    ("stream.tcp.1.128", Goal::RatioAtLeast(0.50)),
    ("stream.tcp.1.1024", Goal::RatioAtLeast(0.75)),
    ("stream.tcp.1.8192", Goal::RatioAtLeast(0.90)),
    // The limit is the rate to one replica.
    ("stream.tcp.2.128", Goal::RatioAtLeast(1.0)),
    ("stream.tcp.2.1024", Goal::RatioAtLeast(1.0)),
    ("stream.tcp.2.8192", Goal::RatioAtLeast(1.0)),
    // The limit is the rate over TCP.
    ("stream.local.1.128", Goal::RatioAtLeast(1.0)),
    ("stream.local.1.1024", Goal::RatioAtLeast(1.0)),
    ("stream.local.1.8192", Goal::RatioAtLeast(1.0)),
    // The limit is the bandwidth of plain writing and flushing, or the stream's rate, whichever is lower.
    ("catchup.durable.1024", Goal::RatioAtLeast(0.80)),
    // The limit is a ping-pong plus three concurrent flushes.
    ("commit.durable.1", Goal::RatioAtMost(1.2)),
    ("commit.durable.1.p99", Goal::RatioAtMost(4.0)),
    // The limit is a ping-pong.
    ("commit.received.1", Goal::RatioAtMost(1.1)),
    // The value is commits a second times the median of three concurrent flushes in seconds: commits per flush.
    ("commit.durable.64.perflush", Goal::AtLeast(9.0)),
    ("cpu.entry.128", Goal::AtMost(320.0)),
    ("cpu.entry.1024", Goal::AtMost(1_400.0)),
    ("alloc.entry", Goal::AtMost(0.0)),
    ("open.10gib", Goal::AtMost(50.0)),
    ("memory.replica", Goal::AtMost(1.0)),
    ("idle.cpu", Goal::AtMost(0.5)),
    // The limit is three wake-ups for each heartbeat; the odd one is the measuring thread's.
    ("idle.wakeups", Goal::RatioAtMost(1.1)),
];

impl Goal {
    fn met(self, value: f64, ratio: Option<f64>) -> Option<bool> {
        match self {
            Goal::AtMost(most) => Some(value <= most),
            Goal::AtLeast(least) => Some(value >= least),
            Goal::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Goal::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Goal::AtMost(most) => format!("<= {} {unit}", short(most)),
            Goal::AtLeast(least) => format!(">= {} {unit}", short(least)),
            Goal::RatioAtMost(most) => format!("<= {most:.2} x limit"),
            Goal::RatioAtLeast(least) => format!(">= {least:.2} x limit"),
        }
    }
}

/// The median of several runs, and how far they spread.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Spread {
    /// The spread of these values; of no value, all zero.
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        let (runs, half) = (values.len(), values.len() / 2);
        let median = if runs % 2 == 1 { at(half) } else { (at(half.saturating_sub(1)) + at(half)) / 2.0 };
        Spread { median, min: at(0), max: at(runs.saturating_sub(1)), runs }
    }
}

/// One line.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    pub id: String,
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub limit: Option<f64>,
    pub ratio: Option<f64>,
    pub goal: Option<String>,
    pub met: Option<bool>,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Row {
    /// A line without a limit; its goal is the one that [`GOALS`] has for its id.
    pub fn new(id: impl Into<String>, what: impl Into<String>, unit: &'static str, spread: Spread) -> Row {
        let Spread { median, min, max, runs } = spread;
        let (id, what) = (id.into(), what.into());
        Row { id, what, value: median, unit, limit: None, ratio: None, goal: None, met: None, min, max, runs }
            .judged()
    }

    /// The line compared to a limit of the same run, in the same unit.
    pub fn against(mut self, limit: f64) -> Row {
        self.limit = Some(limit);
        self.ratio = (limit > 0.0).then(|| self.value / limit);
        self.judged()
    }

    /// The line compared to a limit that was measured beside every run: the ratio is the median of the pairs'.
    pub fn against_each(self, values: &[f64], limits: &[f64]) -> Row {
        let ratios: Vec<f64> = values
            .iter()
            .zip(limits)
            .filter(|(_, limit)| **limit > 0.0)
            .map(|(value, limit)| value / limit)
            .collect();
        let mut row = self.against(Spread::of(limits.to_vec()).median);
        if !ratios.is_empty() {
            row.ratio = Some(Spread::of(ratios).median);
        }
        row.judged()
    }

    fn judged(mut self) -> Row {
        if let Some((_, goal)) = GOALS.iter().find(|(id, _)| *id == self.id) {
            self.goal = Some(goal.text(self.unit));
            self.met = goal.met(self.value, self.ratio);
        }
        self
    }
}

/// The lines so far.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Adds a line.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The lines.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Prints one object a line.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        for row in &self.rows {
            serde_json::to_writer(&mut *out, row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Prints an aligned table for people.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_header(["id", "what", "median", "unit", "min", "max", "runs", "ratio", "goal", "met"]);
        for row in &self.rows {
            table.add_row([
                row.id.clone(),
                row.what.clone(),
                short(row.value),
                row.unit.into(),
                short(row.min),
                short(row.max),
                row.runs.to_string(),
                row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
                row.goal.clone().unwrap_or_default(),
                row.met.map_or("", |met| if met { "yes" } else { "NO" }).into(),
            ]);
        }
        for number in [2, 4, 5, 6, 7] {
            if let Some(column) = table.column_mut(number) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        writeln!(out, "{}", table.trim_fmt())
    }
}

/// A number in about four digits, with k, M or G for thousands, millions and billions.
pub fn short(value: f64) -> String {
    let (scaled, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        v if v == 0.0 || v >= 1000.0 => 0,
        v if v >= 100.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{scaled:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_middle_value_whatever_the_order() {
        let spread = Spread { median: 2.0, min: 1.0, max: 9.0, runs: 3 };
        assert_eq!(Spread::of(vec![9.0, 1.0, 2.0]), spread);
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(Vec::new()).runs, 0);
    }

    #[test]
    fn a_goal_against_a_limit_is_open_until_the_limit_is_known() {
        let row = Row::new("stream.tcp.1.128", "stream", "entries/s", Spread::of(vec![60.0]));
        assert_eq!((row.met, row.goal.as_deref()), (None, Some(">= 0.50 x limit")));
        assert_eq!(row.clone().against(100.0).met, Some(true));
        assert_eq!(row.against(1000.0).met, Some(false));
        let row = Row::new("append.single.128", "append", "ns", Spread::of(vec![151.0]));
        assert_eq!((row.met, row.goal.as_deref()), (Some(false), Some("<= 150.0 ns")));
    }

    #[test]
    fn json_has_the_documented_fields_in_their_order() {
        let mut report = Report::default();
        report.add(Row::new("limit.x", "a \"limit\"", "B/s", Spread::of(vec![1.5])));
        let mut out = Vec::new();
        report.write_json(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"id\":\"limit.x\",\"what\":\"a \\\"limit\\\"\",\"value\":1.5,\"unit\":\"B/s\",\"limit\":null,\
             \"ratio\":null,\"goal\":null,\"met\":null,\"min\":1.5,\"max\":1.5,\"runs\":1}\n"
        );
    }

    #[test]
    fn every_goal_has_one_id() {
        let mut ids: Vec<_> = GOALS.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), GOALS.len());
    }
}
