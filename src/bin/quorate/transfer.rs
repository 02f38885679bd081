//! What `quorate node` shows of a snapshot that it fetches: a bar on a terminal, else a line now and then.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};
use quorate::Vlsn;
use quorate::clock::Stopwatch;
use quorate::wire::message::TransferStatus;

/// From one line to the next.
const SAY: Duration = Duration::from_secs(2);
const KNOWN: &str = "snapshot {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const UNKNOWN: &str = "snapshot {bytes} {bytes_per_sec}";

/// The fetch that is shown.
#[derive(Default)]
pub struct Transfer(Option<Shown>);

struct Shown {
    at: Vlsn,
    peer: String,
    of: Option<u64>,
    bar: ProgressBar,
    /// Since the last line, and what was there then.
    said: Stopwatch,
    bytes: u64,
}

impl Transfer {
    /// Shows what has become of the fetch, if anything is to be shown now.
    pub fn show(&mut self, now: Option<&TransferStatus>, out: &mut dyn Write) -> std::io::Result<()> {
        let Some(now) = now else {
            self.end();
            return Ok(());
        };
        let TransferStatus { peer, at, bytes, of } = now;
        let same = self.0.as_ref().is_some_and(|shown| (shown.at, &shown.peer) == (*at, peer));
        if !same {
            self.end();
            writeln!(out, "fetches a snapshot at VLSN {at} from {peer}")?;
        }
        let shown = self.0.get_or_insert_with(|| Shown {
            at: *at,
            peer: peer.clone(),
            of: None,
            bar: crate::progress(0, UNKNOWN),
            said: Stopwatch::start(),
            bytes: *bytes,
        });
        if shown.of != *of {
            shown.of = *of;
            shown.bar.set_length(of.unwrap_or(0));
            let template = if of.is_some() { KNOWN } else { UNKNOWN };
            if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
                shown.bar.set_style(style);
            }
        }
        shown.bar.set_position(*bytes);
        let passed = shown.said.elapsed();
        if passed >= SAY && !std::io::stderr().is_terminal() {
            writeln!(out, "{}", line(*bytes, *of, bytes.saturating_sub(shown.bytes), passed))?;
            (shown.said, shown.bytes) = (Stopwatch::start(), *bytes);
        }
        out.flush()
    }

    /// Prints something else.
    pub fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(shown) => shown.bar.suspend(print),
            None => print(),
        }
    }

    /// Nothing is shown any more.
    pub fn end(&mut self) {
        if let Some(shown) = self.0.take() {
            shown.bar.finish_and_clear();
        }
    }
}

/// How far it is, and how many bytes came in what time.
fn line(bytes: u64, of: Option<u64>, came: u64, passed: Duration) -> String {
    let rate = u128::from(came) * 1000 / passed.as_millis().max(1);
    let rate = HumanBytes(u64::try_from(rate).unwrap_or(u64::MAX));
    match of {
        Some(of) => format!("has {} of {} of the snapshot, {rate}/s", HumanBytes(bytes), HumanBytes(of)),
        None => format!("has {} of the snapshot, {rate}/s", HumanBytes(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_is_said_once_and_its_pace_in_words() {
        let status = |at, bytes| TransferStatus {
            peer: "tcp://n2".into(),
            at: Vlsn::new(at).unwrap(),
            bytes,
            of: Some(4 << 20),
        };
        let (mut shown, mut out) = (Transfer::default(), Vec::new());
        for status in [None, Some(status(9, 1)), Some(status(9, 2)), None, Some(status(12, 0))] {
            shown.show(status.as_ref(), &mut out).unwrap();
        }
        let said = String::from_utf8(out).unwrap();
        assert_eq!(
            said,
            "fetches a snapshot at VLSN 9 from tcp://n2\nfetches a snapshot at VLSN 12 from tcp://n2\n"
        );
        let two = Duration::from_secs(2);
        assert_eq!(
            line(1 << 20, Some(4 << 20), 1 << 20, two),
            "has 1.00 MiB of 4.00 MiB of the snapshot, 512.00 KiB/s"
        );
        assert_eq!(line(1 << 20, None, 0, Duration::ZERO), "has 1.00 MiB of the snapshot, 0 B/s");
    }
}
