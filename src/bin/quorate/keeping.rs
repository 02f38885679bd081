//! What nodes say of snapshots, checks and archives, as `quorate status` shows it.

use indicatif::HumanBytes;
use quorate::Vlsn;
use quorate::wire::message::{EngineState, Keeping, TransferStatus};
use serde::Serialize;

/// The same as JSON.
#[derive(Serialize)]
pub struct Report {
    fetching: Option<Transfer>,
    giving: Vec<Transfer>,
    scrub: Scrub,
    /// First and last entry that are damaged and not healed.
    damaged: Option<[u64; 2]>,
    archive: Option<Archive>,
    engine: Option<Engine>,
}

#[derive(Serialize)]
struct Transfer {
    peer: String,
    at: u64,
    bytes: u64,
    of: Option<u64>,
}

#[derive(Serialize)]
struct Scrub {
    at: Option<u64>,
    /// Microseconds since the epoch; 0 for never.
    ended: u64,
    bytes: u64,
    found: u32,
    healed: u32,
}

#[derive(Serialize)]
struct Archive {
    last: Option<u64>,
    base: Option<u64>,
    failed: Option<String>,
}

#[derive(Serialize)]
struct Engine {
    at: u64,
    /// In hexadecimal.
    digest: Option<String>,
    why: Option<String>,
}

impl Report {
    pub fn of(keeping: &Keeping) -> Report {
        let transfer = |one: &TransferStatus| Transfer {
            peer: one.peer.clone(),
            at: one.at.get(),
            bytes: one.bytes,
            of: one.of,
        };
        let scrub = keeping.scrub;
        Report {
            fetching: keeping.fetching.as_ref().map(transfer),
            giving: keeping.giving.iter().map(transfer).collect(),
            scrub: Scrub {
                at: scrub.at.map(Vlsn::get),
                ended: scrub.ended,
                bytes: scrub.bytes,
                found: scrub.found,
                healed: scrub.healed,
            },
            damaged: keeping.damaged.map(|range| [range.first().get(), range.last().get()]),
            archive: keeping.archive.as_ref().map(|archive| Archive {
                last: archive.last.map(Vlsn::get),
                base: archive.base.map(Vlsn::get),
                failed: archive.failed.clone(),
            }),
            engine: keeping.engine.as_ref().map(|engine| Engine {
                at: engine.at.get(),
                digest: match engine.state {
                    EngineState::Digest(digest) => Some(format!("{digest:032x}")),
                    _ => None,
                },
                why: match &engine.state {
                    EngineState::Digest(_) => None,
                    EngineState::NoSnapshots => Some("it takes no snapshots".to_owned()),
                    EngineState::Failed(why) => Some(why.clone()),
                },
            }),
        }
    }

    /// What there is to be said of it below the table: nothing, of a node at rest.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let progress = |one: &Transfer| match one.of {
            Some(of) => format!("{} of {}", HumanBytes(one.bytes), HumanBytes(of)),
            None => HumanBytes(one.bytes).to_string(),
        };
        if let Some(one) = &self.fetching {
            lines.push(format!("fetches a snapshot at VLSN {} from {}: {}", one.at, one.peer, progress(one)));
        }
        for one in &self.giving {
            lines.push(format!("gives a snapshot at VLSN {} to {}: {}", one.at, one.peer, progress(one)));
        }
        if let Some([first, last]) = self.damaged {
            lines.push(format!("has damaged entries, VLSN {first} to {last}, that are not healed yet"));
        }
        let Scrub { at, found, healed, .. } = self.scrub;
        if found > 0 {
            lines.push(format!("found {found} damaged places since it opened, and healed {healed}"));
        }
        if let Some(at) = at {
            lines.push(format!("scrubs its log, and has come to VLSN {at}"));
        }
        if let Some(Archive { last: Some(last), base, .. }) = &self.archive {
            let base = base.map_or_else(|| "no base yet".to_owned(), |base| format!("a base at VLSN {base}"));
            lines.push(format!("has archived its log up to VLSN {last}, with {base}"));
        }
        if let Some(why) = self.archive.as_ref().and_then(|archive| archive.failed.as_ref()) {
            lines.push(format!("can't archive: {why}"));
        }
        if let Some(Engine { at, digest: Some(digest), .. }) = &self.engine {
            lines.push(format!("digested its engine at VLSN {at}: {digest}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate::VlsnRange;
    use quorate::wire::message::{ArchiveStatus, EngineDigest, ScrubStatus};

    #[test]
    fn a_node_at_rest_says_nothing_and_one_that_is_busy_says_all() {
        assert_eq!(Report::of(&Keeping::default()).lines(), Vec::<String>::new());
        let v = |number| Vlsn::new(number).unwrap();
        let transfer = |peer: &str, of| TransferStatus { peer: peer.into(), at: v(90), bytes: 1 << 20, of };
        let busy = Keeping {
            fetching: Some(transfer("n1", Some(4 << 20))),
            giving: vec![transfer("n3", None)],
            scrub: ScrubStatus { at: Some(v(50)), found: 2, healed: 1, ..ScrubStatus::default() },
            damaged: VlsnRange::new(v(7), v(9)),
            archive: Some(ArchiveStatus {
                last: Some(v(80)),
                base: Some(v(60)),
                failed: Some("full".into()),
            }),
            engine: Some(EngineDigest { at: v(66), state: EngineState::Digest(0xabc) }),
            ..Keeping::default()
        };
        let lines = Report::of(&busy).lines();
        assert_eq!(
            lines,
            [
                "fetches a snapshot at VLSN 90 from n1: 1.00 MiB of 4.00 MiB",
                "gives a snapshot at VLSN 90 to n3: 1.00 MiB",
                "has damaged entries, VLSN 7 to 9, that are not healed yet",
                "found 2 damaged places since it opened, and healed 1",
                "scrubs its log, and has come to VLSN 50",
                "has archived its log up to VLSN 80, with a base at VLSN 60",
                "can't archive: full",
                "digested its engine at VLSN 66: 00000000000000000000000000000abc",
            ]
        );
    }

    #[test]
    fn an_archive_that_gets_on_is_told_where_it_is_written_and_nowhere_else() {
        let lines = |last, base| {
            let archive = ArchiveStatus { last, base, failed: None };
            Report::of(&Keeping { archive: Some(archive), ..Keeping::default() }).lines()
        };
        assert_eq!(lines(Vlsn::new(9), None), ["has archived its log up to VLSN 9, with no base yet"]);
        // A node that does not lead knows nothing of it.
        assert_eq!(lines(None, None), Vec::<String>::new());
    }
}
