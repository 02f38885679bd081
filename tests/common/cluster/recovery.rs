//! What the nodes of a cluster keep, lose and get back: slots, retention, snapshots, an archive and rot, and what must hold
//! of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::archive::target::PlanError;
use quorate::archive::{ArchiveConfig, DirArchive, RestoreError, RestoreOptions, Until, restore};
use quorate::clock::Deadline;
use quorate::disk::Disk;
use quorate::entry::{EntryKind, Header};
use quorate::log::{LogScanner, SEGMENT_HEADER_LEN, ScanError};
use quorate::sim::{SimNode, Simulation};
use quorate::{Answer, Config, Event, Host, NewEntry, Node, NodeConfig, Policy, Role, Token, Vlsn};

use super::{Cluster, Plan, Violation, id};
use crate::store::{Store, StoreEngine};

/// How much the nodes keep, and how it is troubled.
#[derive(Clone)]
pub struct Keep {
    /// How often a client does something with a slot, and how often one reads through one.
    pub slots: f64,
    /// Nodes have slots of their own.
    pub own_slots: bool,
    /// The cap of slots and replicas.
    pub pin_max_bytes: u64,
    /// How often the engine makes durable what it applied.
    pub checkpoint_every: Duration,
    /// Bytes per second of a snapshot.
    pub rate: u64,
    /// How often bits of one node's log are flipped, when all is well.
    pub rot: f64,
    /// Who leads archives, onto a machine that never fails.
    pub archive: bool,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            slots: 0.05,
            own_slots: false,
            pin_max_bytes: 160 << 10,
            checkpoint_every: ms(15),
            rate: 1 << 20,
            rot: 0.0,
            archive: false,
        }
    }
}

impl Plan {
    /// This plan, with nodes that keep no more of their logs than they have to.
    pub fn keeping(self, keep: Keep) -> Plan {
        Plan { keep: Some(keep), ..self }
    }
}

const EXTERNAL: [&str; 2] = ["external-1", "external-2"];

/// A slot, as its owner knows it.
#[derive(Default)]
struct External {
    /// What was last asked for: from where on it is to be there, if it is to be.
    asked: Option<(Token, Option<Vlsn>)>,
    /// What was last known to be committed.
    known: Option<Vlsn>,
    /// What became of something asked for can't be told any more.
    unsure: bool,
}

/// What is remembered of one place.
#[derive(Default)]
struct Seen {
    life: u64,
    installs: u64,
    base: Option<Vlsn>,
    healed: u64,
    /// Valid slots all of whose entries were here, and from where on: a list that was cut off again may have asked for less
    /// than the one before it does.
    held: BTreeMap<String, Vlsn>,
    /// Those that this node alone let go, and when: it tells so as soon as its workers run.
    letting_go: BTreeMap<String, Deadline>,
    /// Slots that were valid in this life, and committed so.
    valid: BTreeSet<String>,
    /// Those of them that were given up.
    given_up: BTreeSet<String>,
    provider: Option<String>,
    /// Since when it leads with known damage.
    leads_damaged: Option<Deadline>,
    events: Arc<Mutex<Vec<Event>>>,
}

/// What a cluster knows of all that.
pub struct Recovery {
    vault: Option<SimNode>,
    external: BTreeMap<&'static str, External>,
    seen: Vec<Seen>,
    /// What happened, and how often.
    pub met: BTreeMap<&'static str, u64>,
}

impl Recovery {
    pub fn new(sim: &Simulation, plan: &Plan, places: usize) -> Recovery {
        let archive = plan.keep.as_ref().is_some_and(|keep| keep.archive);
        Recovery {
            vault: archive.then(|| sim.node("vault")),
            external: EXTERNAL.into_iter().map(|name| (name, External::default())).collect(),
            seen: (0..places).map(|_| Seen::default()).collect(),
            met: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.met.entry(what).or_default() += times;
        }
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The longest that a node leads with damage that it knows of.
const STEPS_DOWN_WITHIN: Duration = ms(500);
/// The longest that it does not tell what it let go.
const TELLS_WITHIN: Duration = ms(500);

impl Cluster {
    /// What happened of what a campaign has to have met.
    pub fn met(&self) -> &BTreeMap<&'static str, u64> {
        &self.recovery.met
    }

    fn archive(&self) -> Option<DirArchive> {
        let vault = self.recovery.vault.as_ref()?;
        Some(DirArchive::new(vault.disk(), "/archive", self.sim.random()))
    }

    pub(super) fn configure(&self, config: &mut NodeConfig) {
        let Some(keep) = &self.plan.keep else { return };
        let base = &mut config.base;
        (base.keep_bytes, base.retention_every, base.slot_every) = (0, ms(7), ms(20));
        (base.pin_max_bytes, base.pin_max_age) = (keep.pin_max_bytes, Duration::from_secs(2));
        (base.snapshot_bytes_per_second, base.snapshot_patience) = (keep.rate, ms(300));
        base.checkpoint_every = keep.checkpoint_every;
        (base.scrub_bytes_per_second, base.scrub_every) = (8 << 20, ms(60));
        if config.role == Role::Arbiter {
            return;
        }
        if keep.own_slots {
            base.slot = Some(base.node.as_str().to_owned());
        }
        config.archive = self.archive().map(|archive| ArchiveConfig {
            every: ms(20),
            base_bytes: 96 << 10,
            ..ArchiveConfig::new(Arc::new(archive))
        });
    }

    pub(super) fn opened(&mut self, at: usize) {
        let place = &self.places[at];
        let seen = &mut self.recovery.seen[at];
        let base = place.up.as_ref().and_then(|node| node.log().base()).map(|base| base.vlsn);
        // What it let go is gone, whether it came to tell so or not.
        seen.held.retain(|name, _| !seen.letting_go.contains_key(name));
        *seen = Seen {
            life: place.opens,
            base: seen.base.max(base),
            held: std::mem::take(&mut seen.held),
            installs: seen.installs,
            ..Seen::default()
        };
        if let Some(node) = &place.up {
            let events = Arc::clone(&seen.events);
            node.on_change(move |event| events.lock().push(event.clone()));
        }
    }

    pub(super) fn fill_up(&mut self, payload: &mut Vec<u8>) {
        if self.plan.keep.is_some() {
            let len = self.rng.below(5000) as usize;
            payload.resize(payload.len() + len, 0xa5);
        }
    }

    pub(super) fn stir_kept(&mut self) {
        let Some(keep) = self.plan.keep.clone() else { return };
        if self.rng.chance(keep.slots) {
            self.stir_slots();
        }
        if self.rng.chance(keep.rot) {
            self.rot();
        }
        self.wipe_the_lost();
    }

    /// A client creates, moves or drops a slot.
    fn stir_slots(&mut self) {
        let name = EXTERNAL[self.rng.index(EXTERNAL.len())];
        let Some((leads, _)) = self.master() else { return };
        let Some(node) = &self.places[leads].up else { return };
        let external = &self.recovery.external[name];
        if external.asked.is_some() {
            return;
        }
        let there = node.slots().find(name).filter(|slot| slot.invalid.is_none()).map(|slot| slot.from);
        let (ticket, then) = match there {
            None => {
                let next = Vlsn::after(node.last().map(|last| last.vlsn));
                (node.create_slot(name, None), Some(next))
            }
            Some(_) if self.rng.chance(0.1) => (node.drop_slot(name), None),
            Some(from) if self.rng.chance(0.5) => {
                let last = node.committed().map_or(1, Vlsn::get).max(from.get());
                let to = Vlsn::new(self.rng.between(from.get(), last + 1)).unwrap();
                (node.move_slot(name, to), Some(to))
            }
            Some(_) => return,
        };
        if let (Ok(ticket), Some(external)) = (ticket, self.recovery.external.get_mut(name)) {
            external.asked = Some((ticket.token, then));
        }
    }

    /// What became of what was asked for.
    fn settle_external(&mut self) {
        let data = || self.places.iter().filter(|place| place.role == Role::Electable);
        for (name, external) in &mut self.recovery.external {
            let Some((token, then)) = external.asked else { continue };
            let answers: Vec<Answer> =
                data().filter_map(|place| place.up.as_ref()).map(|node| node.ask(&token)).collect();
            if answers.contains(&Answer::Committed) {
                (external.asked, external.known, external.unsure) = (None, then, false);
                let kind = if then.is_some() { "slots set" } else { "slots dropped" };
                *self.recovery.met.entry(kind).or_default() += 1;
            } else if answers.contains(&Answer::RolledBack) {
                external.asked = None;
            } else if data().all(|place| {
                let base = place.up.as_ref().and_then(|node| node.log().base());
                base.is_some_and(|base| base.vlsn >= token.vlsn)
            }) {
                (external.asked, external.unsure) = (None, true);
                log::debug!("nobody can tell what became of {name}");
            }
        }
    }

    /// Flips bits in the log of one node while it is down, when all others have everything.
    fn rot(&mut self) {
        if !self.all_well() || !self.is_whole() {
            return;
        }
        let at = self.rng.index(self.places.len());
        if self.places[at].role != Role::Electable {
            return;
        }
        self.places[at].sim.kill();
        self.stop(at);
        let (disk, dir) = (self.places[at].sim.disk(), self.log_dir(at));
        let names = disk.list(&dir).unwrap();
        let segments: Vec<PathBuf> =
            names.iter().filter(|name| name.ends_with(".seg")).map(|name| dir.join(name)).collect();
        let nth = self.rng.index(segments.len());
        let path = &segments[nth];
        let sealed = nth + 1 < segments.len() && disk.open(&path.with_extension("idx")).is_ok();
        let Ok(file) = disk.open(path) else { return };
        let mut bytes = vec![0; file.len().unwrap() as usize];
        let read = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(read);
        // What lies before the last but one mark was durable, and something tells so.
        let (mut offset, mut marks) = (SEGMENT_HEADER_LEN, vec![SEGMENT_HEADER_LEN, SEGMENT_HEADER_LEN]);
        while let Ok(header) = Header::parse(&bytes[offset..]) {
            if header.kind == EntryKind::SYNC_MARK {
                marks.push(offset);
            }
            offset += header.entry_len();
        }
        let end = if sealed { offset } else { marks[marks.len() - 2] };
        let begin = if sealed && self.rng.chance(0.1) { 0 } else { SEGMENT_HEADER_LEN };
        if end <= begin {
            return;
        }
        let flips = self.rng.between(1, 3);
        for _ in 0..flips {
            let place = self.rng.between(begin as u64, end as u64 - 1);
            bytes[place as usize] ^= 1 << self.rng.below(8);
            file.write_at(&[IoSlice::new(&bytes[place as usize..=place as usize])], place).unwrap();
        }
        file.sync().unwrap();
        log::info!("rot in {} of {}, sealed {sealed}", path.display(), self.places[at].name);
        self.recovery.count(if sealed { "rot in sealed segments" } else { "rot under a mark" }, 1);
    }

    fn log_dir(&self, at: usize) -> PathBuf {
        let place = &self.places[at];
        PathBuf::from(format!("/{}-{}", place.name, place.generation)).join("log")
    }

    /// A node that says that it lost something for good is wiped, if another leads: what its message tells an operator to do.
    fn wipe_the_lost(&mut self) {
        for at in 0..self.places.len() {
            let lost = self.places[at].up.as_ref().is_some_and(|node| {
                node.leads().is_none()
                    && matches!(node.standing(), quorate::Standing::Damaged { .. })
                    && node.status().failed.is_some_and(|failed| failed.contains("no member has it"))
            });
            if lost && self.master().is_some_and(|(leads, _)| leads != at) {
                log::info!("{} lost something and is wiped", self.places[at].name);
                self.wipe(at);
                self.recovery.count("wiped for damage", 1);
            }
        }
    }

    /// Whether every node's log reads whole.
    fn is_whole(&self) -> bool {
        self.places.iter().filter(|place| place.role == Role::Electable).all(|place| {
            place.up.as_ref().is_some_and(|node| {
                node.log().damaged().is_empty()
                    && self.read_through(&place.name, node, None).is_ok_and(|whole| whole)
            })
        })
    }

    /// Reads what a node's log has from `from` on, and compares it with what was applied. Whether it could be read to the end.
    fn read_through(&self, name: &str, node: &Node, from: Option<Vlsn>) -> Result<bool, Violation> {
        let truth = self.truth.lock();
        let mut scanner = node.log().scanner();
        let mut after = from.map_or(node.log().base().map(|base| base.vlsn), Vlsn::previous);
        loop {
            let run = match scanner.run(after, u32::MAX, 64 << 10) {
                Ok(Some(run)) => run,
                Ok(None) => return Ok(true),
                Err(ScanError::Pruned { .. }) if from.is_some() => {
                    return Err(format!("{name} has removed what follows on {after:?}, which a slot keeps"));
                }
                Err(_) => return Ok(false),
            };
            after = Some(run.last.vlsn);
            let bytes = run.slices().concat();
            let mut rest = &bytes[..];
            while let Ok(header) = Header::parse(rest) {
                let (entry, behind) = rest.split_at(header.entry_len());
                rest = behind;
                let crc = crc32fast::hash(&entry[4..]);
                let vlsn = header.vlsn.map_or(0, Vlsn::get);
                let committed = node.committed().is_some_and(|committed| committed.get() >= vlsn);
                let applied = truth.applied.get(&vlsn).filter(|_| committed);
                if crc != header.crc || applied.is_some_and(|applied| applied.crc != crc) {
                    return Err(format!("{name} serves another entry {vlsn} than was applied: {applied:?}"));
                }
            }
        }
    }

    /// What must hold at every moment of what is kept.
    pub(super) fn kept(&mut self) -> Result<(), Violation> {
        let Some(keep) = self.plan.keep.clone() else { return Ok(()) };
        self.settle_external();
        let now = self.now();
        let polls = self.rng.chance(0.2);
        for at in 0..self.places.len() {
            let place = &self.places[at];
            let Some(node) = place.up.as_ref().filter(|_| place.role == Role::Electable) else { continue };
            let seen = &mut self.recovery.seen[at];
            let met = &mut self.recovery.met;
            let mut count = |what, times| {
                if times > 0 {
                    *met.entry(what).or_default() += times;
                }
            };
            let installs = place.store.lock().installs;
            let base = node.log().base().map(|base| base.vlsn);
            if installs != seen.installs {
                count("snapshots installed", installs.saturating_sub(seen.installs));
                seen.installs = installs;
                seen.held.clear();
            } else if base > seen.base {
                count("prunes", 1);
            }
            seen.base = base;
            let healed = node.log().damages_healed();
            count("segments mended", healed.saturating_sub(seen.healed));
            seen.healed = healed;
            let slots = node.slots();
            seen.held.retain(|name, _| slots.find(name).is_some_and(|slot| slot.invalid.is_none()));
            let told = |name: &str| {
                let owner = format!("slot:{name}");
                let events = seen.events.lock();
                events
                    .iter()
                    .any(|event| matches!(event, Event::PinGivenUp { owner: of, .. } if *of == owner))
            };
            // What a damaged node has of the lists may be old.
            let damaged = !node.log().damaged().is_empty()
                || matches!(node.standing(), quorate::Standing::Damaged { .. });
            let pins = node.log().pins();
            let void = |name: &str| pins.iter().any(|pin| pin.void && pin.owner == format!("slot:{name}"));
            for slot in slots.iter().filter(|slot| slot.invalid.is_none() && !damaged) {
                let held = seen.held.get(&slot.name).copied();
                if base < Some(slot.from) {
                    seen.held.insert(slot.name.clone(), held.map_or(slot.from, |held| held.min(slot.from)));
                } else if held.is_some_and(|held| held <= slot.from) {
                    if !told(&slot.name) {
                        if !void(&slot.name) {
                            return Err(format!(
                                "{} begins after {base:?}, and has had {slot:?}",
                                place.name
                            ));
                        }
                        seen.letting_go.entry(slot.name.clone()).or_insert(now);
                    }
                    seen.held.remove(&slot.name);
                }
            }
            seen.letting_go.retain(|name, _| !told(name));
            if let Some((name, _)) = seen.letting_go.iter().find(|(_, since)| now > **since + TELLS_WITHIN) {
                return Err(format!("{} did not tell that it let {name} go", place.name));
            }
            let settled = node.committed() >= node.log().slot_lists().last().copied();
            if settled {
                for slot in slots.iter() {
                    if slot.invalid.is_none() {
                        seen.valid.insert(slot.name.clone());
                    } else if seen.valid.remove(&slot.name) {
                        seen.given_up.insert(slot.name.clone());
                        count("slots invalidated", 1);
                    }
                }
            }
            if node.leads().is_some() && damaged {
                let since = *seen.leads_damaged.get_or_insert(now);
                if now > since + STEPS_DOWN_WITHIN {
                    return Err(format!("{} leads with damage that it knows of", place.name));
                }
            } else {
                seen.leads_damaged = None;
            }
            if polls {
                let keeping = node.status().keeping;
                let provider = keeping.fetching.map(|fetching| fetching.peer);
                if let (Some(old), Some(new)) = (&seen.provider, &provider)
                    && old != new
                {
                    count("providers changed", 1);
                }
                seen.provider = provider.or(seen.provider.take());
                count("bases", u64::from(keeping.archive.is_some_and(|archive| archive.base.is_some())));
            }
        }
        if self.rng.chance(keep.slots) {
            self.read_a_slot()?;
        }
        Ok(())
    }

    /// The owner of a slot reads from where it is to the end.
    fn read_a_slot(&mut self) -> Result<(), Violation> {
        let at = self.rng.index(self.places.len());
        let place = &self.places[at];
        let Some(node) = &place.up else { return Ok(()) };
        let held = &self.recovery.seen[at].held;
        let slots = node.slots();
        let Some(slot) = slots.iter().find(|slot| slot.invalid.is_none() && held.contains_key(&slot.name))
        else {
            return Ok(());
        };
        if node.log().base().map(|base| base.vlsn) < Some(slot.from) {
            self.read_through(&place.name, node, Some(slot.from))?;
            self.recovery.count("slots read", 1);
        }
        Ok(())
    }

    /// Whether, at the end, all is healed and archived.
    pub(super) fn is_kept(&mut self) -> bool {
        if self.plan.keep.is_none() {
            return true;
        }
        self.settle_external();
        self.wipe_the_lost();
        let whole = self.is_whole();
        let Some((_, master)) = self.master() else { return false };
        let (last, members, slots) = (master.last(), master.members(), master.slots());
        let archived = self.recovery.vault.is_none()
            || master
                .status()
                .keeping
                .archive
                .is_some_and(|archive| archive.last == last.map(|last| last.vlsn));
        let same = self.places.iter().filter(|place| place.role == Role::Electable).all(|place| {
            place.up.as_ref().is_some_and(|node| {
                let keeping = node.status().keeping;
                node.committed() == last.map(|last| last.vlsn)
                    && node.standing().counts()
                    && *node.members() == *members
                    && node.slots() == slots
                    && keeping.damaged.is_none()
            })
        });
        whole
            && same
            && archived
            && self.untold().is_none()
            && self.recovery.external.values().all(|external| external.asked.is_none())
    }

    /// Whoever saw a slot given up tells so, soon after that is committed, unless it was made again before it was looked at.
    pub(super) fn untold(&self) -> Option<Violation> {
        let (_, master) = self.master()?;
        let slots = master.slots();
        for (place, seen) in self.places.iter().zip(&self.recovery.seen) {
            if place.up.is_none() || place.role != Role::Electable {
                continue;
            }
            let still = |name: &&String| slots.find(name).is_some_and(|slot| slot.invalid.is_some());
            for name in seen.given_up.iter().filter(still) {
                let told = |event: &Event| matches!(event, Event::SlotInvalid { name: of, .. } if of == name);
                if !seen.events.lock().iter().any(told) {
                    return Some(format!("{} did not tell that {name} was given up", place.name));
                }
            }
        }
        None
    }

    /// What must hold at the end.
    pub(super) fn check_kept(&mut self) -> Result<(), Violation> {
        let Some(keep) = self.plan.keep.clone() else { return Ok(()) };
        let Some((_, master)) = self.master() else { return Err("nobody leads".to_owned()) };
        let slots = master.slots();
        for (name, external) in &self.recovery.external {
            let slot = slots.find(name);
            let right = match external.known {
                _ if external.unsure => true,
                None => slot.is_none(),
                Some(from) => slot.is_some_and(|slot| slot.invalid.is_some() || slot.from >= from),
            };
            if !right {
                return Err(format!("{name} is {slot:?}, and {:?} was told", external.known));
            }
        }
        for pin in master.log().pins() {
            let bounded = quorate::retention::is_bounded(&pin.owner) && !pin.void;
            if bounded && pin.bytes > keep.pin_max_bytes + (192 << 10) {
                return Err(format!("{pin:?} is beyond its cap"));
            }
        }
        if let Some(untold) = self.untold() {
            return Err(untold);
        }
        for place in &self.places {
            let Some(node) = place.up.as_ref().filter(|_| place.role == Role::Electable) else { continue };
            let shown = node.status().keeping.slots;
            for slot in slots.iter() {
                if !shown.contains(slot) {
                    return Err(format!("{} does not show {slot:?}", place.name));
                }
            }
        }
        self.check_restored()
    }

    /// What is restored from the archive is what was applied.
    fn check_restored(&mut self) -> Result<(), Violation> {
        let Some(archive) = self.archive() else { return Ok(()) };
        let last = self.master().and_then(|(_, master)| master.last()).map_or(1, |last| last.vlsn.get());
        for at in 0..self.places.len() {
            self.places[at].sim.kill();
            self.stop(at);
        }
        let truth = Arc::clone(&self.truth);
        let some = Vlsn::new(self.rng.between(1, last)).unwrap();
        let time = {
            let times: Vec<u64> = truth.lock().applied.values().map(|applied| applied.time).collect();
            times[self.rng.index(times.len())]
        };
        for (number, until) in [Until::End, Until::Vlsn(some), Until::Time(time)].into_iter().enumerate() {
            let sim = self.sim.node(&format!("restored-{number}"));
            let disk: Arc<dyn Disk> = sim.disk();
            let name = id("restored");
            let options = RestoreOptions { segment_bytes: 64 << 10, ..RestoreOptions::new(name.clone()) };
            let options = RestoreOptions { until, ..options };
            let runtime = sim.runtime();
            let restored = match restore(&archive, &disk, &*runtime, Path::new("/r"), &options, &mut |_| ()) {
                Ok(restored) => restored,
                Err(RestoreError::Plan(PlanError::TooEarly { .. })) if until != Until::End => {
                    self.recovery.count("too early", 1);
                    continue;
                }
                Err(error) => return Err(format!("the archive is not restored to {until}: {error}")),
            };
            let target = restored.target.vlsn.get();
            let highest = {
                let truth = truth.lock();
                let wanted = match until {
                    Until::Vlsn(vlsn) => vlsn.get(),
                    Until::Time(time) => {
                        let later = truth.applied.iter().find(|(_, applied)| applied.time > time);
                        later.map_or(last, |(vlsn, _)| vlsn - 1)
                    }
                    _ => last,
                };
                if target != wanted {
                    return Err(format!(
                        "the archive was restored to VLSN {target} of {until}, not {wanted}"
                    ));
                }
                truth.applied.values().map(|applied| applied.term).max()
            };
            if Some(restored.term.get()) <= highest {
                return Err(format!(
                    "what is restored goes on in term {}, not above {highest:?}",
                    restored.term
                ));
            }
            let store = Arc::new(Mutex::new(Store::default()));
            let engine =
                StoreEngine { name: "restored".into(), store: Arc::clone(&store), truth: Arc::default() };
            let mut base = Config::new(restored.group, name, "/r");
            (base.segment_bytes, base.max_payload) = (64 << 10, 8 << 10);
            (base.max_frame, base.batch_bytes) = (64 << 10, 4 << 10);
            let host = Host { runtime: sim.runtime(), disk: sim.disk() };
            let node = Node::open(NodeConfig::new(base), Box::new(engine), host)
                .map_err(|error| format!("what was restored to {until} does not open: {error}"))?;
            let there = || store.lock().len() >= restored.last.get() && node.leads().is_some();
            if !self.sim.run_until(there, Duration::from_secs(30)) {
                return Err(format!("what was restored to {until} has applied {}", store.lock().len()));
            }
            let written = node.append(&[NewEntry::data(b"again")], Policy::MAJORITY);
            let token = written.map_err(|error| format!("what was restored takes nothing: {error}"))?.token;
            if !self.sim.run_until(|| node.ask(&token) == Answer::Committed, Duration::from_secs(10)) {
                return Err(format!("what was restored to {until} commits nothing"));
            }
            let truth = truth.lock();
            let different = store
                .lock()
                .crcs()
                .zip(truth.applied.values())
                .take(target as usize)
                .position(|(crc, applied)| crc != applied.crc);
            if let Some(at) = different {
                return Err(format!("what was restored to {until} differs at VLSN {}", at + 1));
            }
            self.recovery.count("restores compared", 1);
        }
        Ok(())
    }
}
