//! Fetching the snapshot that this node needs, and putting the node on it.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::address::Address;
use crate::apply::desk::{Answer, Install, Request};
use crate::base::Base;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::config::Snapshots;
use crate::ids::{Term, Vlsn};
use crate::node::group::Shared;
use crate::node::install::{Begun, back_out, begin_install, settle};
use crate::replica::FollowError;
use crate::runtime::Running;
use crate::snapshot::{LogPart, STAGING, Sealed, Sealing, StageError, Staged, Staging, discard};
use crate::watermark::rest;
use crate::wire::message::{
    MAX_CHUNK, Message, SnapshotAck, SnapshotBegin, SnapshotPlace, SnapshotRequest, TransferStatus,
};
use crate::worker::{Step, Stop, Worker};

/// After this many bytes, or a peer's timeout, what came is synced and acknowledged.
const SYNC_EVERY: u64 = 4 << 20;
/// As many attempts without a byte of progress are made with one provider.
const TRIES: u32 = 3;

/// The fetch that runs, if one does.
#[derive(Default)]
pub(super) struct Fetching(Mutex<Option<Arc<Fetch>>>);

/// What a fetch is for, and how far it is.
struct Fetch {
    need: Mutex<Need>,
    status: Mutex<Option<TransferStatus>>,
    running: Mutex<Option<Arc<dyn Running>>>,
    /// Why it ended without a snapshot.
    failed: Mutex<Option<FollowError>>,
}

/// What is needed.
#[derive(Clone)]
struct Need {
    whose: Whose,
    /// The entry before the master's oldest, or before this log's, or the first that is in doubt: the snapshot has to stand
    /// here or later.
    least: Option<Vlsn>,
}

/// For what a snapshot is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whose {
    /// The master of this term said so last.
    Term(Term),
    /// This node's engine alone needs it.
    Engine,
    /// What was here and may be lost nobody has any more as entries, and no master settles it.
    Doubt,
}

impl Fetching {
    pub fn status(&self) -> Option<TransferStatus> {
        self.0.lock().as_ref().and_then(|fetch| fetch.status.lock().clone())
    }

    pub fn runs(&self) -> bool {
        self.0.lock().is_some()
    }

    pub fn close(&self) {
        let fetch = self.0.lock().take();
        let running = fetch.and_then(|fetch| fetch.running.lock().take());
        if let Some(running) = running {
            running.join();
        }
    }
}

impl Shared {
    /// The master said that this node needs a snapshot. `false`: none is fetched.
    pub fn fetch_snapshot(self: &Arc<Shared>, term: Term, oldest: Option<Vlsn>, from: Address) -> bool {
        if self.core.config.snapshots == Snapshots::Manual {
            return false;
        }
        if self.following.get().is_none_or(|following| following.is_installing()) {
            return false;
        }
        self.begin_fetch(Need { whose: Whose::Term(term), least: oldest.and_then(Vlsn::previous) }, from)
    }

    /// This node's engine needs a snapshot, to which its log reaches back.
    pub fn fetch_for_engine(self: &Arc<Shared>, least: Option<Vlsn>, from: Address) {
        self.begin_fetch(Need { whose: Whose::Engine, least }, from);
    }

    /// This node's log ends where others have pruned, and it does not count before it has what was behind that.
    pub fn fetch_for_doubt(self: &Arc<Shared>, least: Option<Vlsn>, from: Address) {
        self.begin_fetch(Need { whose: Whose::Doubt, least }, from);
    }

    /// This node follows: what a fetch of an earlier life left in the middle is not gone on with.
    pub fn forget_unneeded_fetch(&self) {
        if self.fetching.runs() || self.core.apply.lacks() {
            return;
        }
        if let Err(error) = discard(&*self.core.host.disk, &self.core.config.dir.join(STAGING)) {
            log::warn!("a snapshot that is not needed any more is left behind: {error}");
        }
    }

    fn begin_fetch(self: &Arc<Shared>, need: Need, from: Address) -> bool {
        let mut fetching = self.fetching.0.lock();
        if let Some(fetch) = &*fetching {
            // It goes on, if what it fetches is still of use; the worker sees to that.
            // A master that said so waits for the end of it: only another's word takes the place of its own.
            let before = fetch.need.lock().whose;
            if matches!(need.whose, Whose::Term(_)) || (need.whose, before) == (Whose::Doubt, Whose::Engine) {
                *fetch.need.lock() = need;
                // What it waits for with a whole snapshot may be over.
                if let Some(running) = &*fetch.running.lock() {
                    running.poke();
                }
            }
            return true;
        }
        let fetch = Arc::new(Fetch {
            need: Mutex::new(need),
            status: Mutex::default(),
            running: Mutex::default(),
            failed: Mutex::default(),
        });
        *fetching = Some(Arc::clone(&fetch));
        drop(fetching);
        let clock = Arc::clone(&self.core.clock);
        let worker = Fetcher {
            node: Arc::downgrade(self),
            fetch: Arc::clone(&fetch),
            dir: self.core.config.dir.join(STAGING),
            from,
            stage: Stage::Dial { at: clock.now() },
            tries: 0,
            staging: None,
            scratch: Vec::new(),
            clock,
        };
        let (weak, own) = (Arc::downgrade(self), Arc::downgrade(&fetch));
        let on_end = move |stop: &Stop| {
            let Some(node) = weak.upgrade() else { return };
            // The last handle: the worker's own is gone.
            let own = own.upgrade();
            node.fetching.0.lock().take_if(|fetch| own.as_ref().is_some_and(|own| Arc::ptr_eq(fetch, own)));
            node.core.poison.strike(stop);
            let asked = own.as_ref().is_some_and(|own| matches!(own.need.lock().whose, Whose::Term(_)));
            if !asked {
                // Whatever streams is none of its business.
                node.lacking.failed(own.and_then(|fetch| fetch.failed.lock().take()));
                node.election.poke();
                return;
            }
            // The master is asked anew: for entries, or for another provider.
            // Not after an install that did not end: then the staged snapshot has to stay as it is, and only opening the node
            // anew goes on.
            if let Some(following) = node.following.get().filter(|following| !following.is_installing()) {
                let failed = own.and_then(|fetch| fetch.failed.lock().take());
                match failed {
                    Some(why) => following.part(why),
                    None => following.turn(),
                }
                node.poke_receive();
            }
        };
        let runtime = &self.core.host.runtime;
        let running =
            runtime.spawn("snapshot-fetch".to_owned(), Box::new(worker), Vec::new(), Box::new(on_end));
        let mut place = fetch.running.lock();
        // What is needed may have changed before it could be poked.
        running.poke();
        *place = Some(running);
        true
    }
}

/// The worker.
struct Fetcher {
    node: Weak<Shared>,
    fetch: Arc<Fetch>,
    dir: PathBuf,
    from: Address,
    stage: Stage,
    /// Attempts since the last progress.
    tries: u32,
    /// What is there, between two connections too.
    staging: Option<Staging>,
    scratch: Vec<u8>,
    clock: Arc<dyn Clock>,
}

enum Stage {
    Dial {
        at: Deadline,
    },
    Connected(Line),
    /// Everything is there, and is read back.
    Seals(Box<Sealing>, Line),
    /// Everything is there and verified.
    Whole(Box<Staged>),
    /// The engine takes it in.
    Installs(Arc<Answer<()>>),
    Over,
}

/// A connection to the provider.
struct Line {
    channel: Arc<dyn Channel>,
    buffer: ReceiveBuffer,
    sequence: u64,
    expected: u64,
    /// Whether the stream has begun.
    begun: bool,
    /// When the provider has to have been heard.
    deadline: Deadline,
    /// Bytes written and not synced.
    unsynced: u64,
    /// When they are to be.
    sync_due: Deadline,
    /// Where the snapshot ended, once it has.
    end: SnapshotPlace,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.channel.close();
    }
}

/// Why an attempt, or the whole fetch, ended.
enum Failed {
    /// Another attempt may go better, and goes on where this one was.
    Again(String),
    /// What came can't be used: it begins anew, elsewhere.
    Useless(String),
    /// This node can't go on.
    Stop(Stop),
}

impl From<StageError> for Failed {
    fn from(error: StageError) -> Failed {
        match error {
            StageError::Io(error) => Failed::Again(error.to_string()),
            other => Failed::Useless(other.to_string()),
        }
    }
}

impl Fetcher {
    fn dial(&mut self, node: &Shared, wait: Wait) -> Result<Step, Failed> {
        let config = &node.core.config;
        if self.staging.is_none() {
            self.staging = match Staging::resume(Arc::clone(&node.core.host.disk), &self.dir) {
                Ok(staging) => staging,
                Err(error) => {
                    log::warn!("a snapshot that was begun is of no use: {error}");
                    None
                }
            };
        }
        let least = self.fetch.need.lock().least;
        if self.staging.as_ref().is_some_and(|staging| Some(staging.base().at.vlsn) < least) {
            self.staging = None;
        }
        let deadline = self.clock.now() + config.handshake_timeout;
        let dialled = node.core.host.runtime.dial(&self.from, wait.at_most(deadline));
        let channel = dialled
            .map_err(|error| Failed::Again(error.to_string()))?
            .ok_or_else(|| Failed::Again("it did not answer in time".to_owned()))?;
        let mut line = Line {
            channel,
            buffer: ReceiveBuffer::default(),
            sequence: 0,
            expected: 0,
            begun: false,
            deadline: self.clock.now() + config.handshake_timeout.max(config.peer_timeout),
            unsynced: 0,
            sync_due: self.clock.now() + config.peer_timeout,
            end: SnapshotPlace::default(),
        };
        let resume = self.staging.as_ref().map(|staging| (staging.id(), staging.synced()));
        let request =
            SnapshotRequest { group: config.group, node: node.own.id.clone(), at_least: least, resume };
        self.send(node, &mut line, &Message::SnapshotRequest(request))?;
        self.stage = Stage::Connected(line);
        Ok(Step::Worked)
    }

    fn send(&mut self, node: &Shared, line: &mut Line, message: &Message<'_>) -> Result<(), Failed> {
        message.encode(node.election.term(), line.sequence, &mut self.scratch);
        let patience = Wait::Until(self.clock.now() + node.core.config.peer_timeout);
        match line.channel.send(&[IoSlice::new(&self.scratch)], patience) {
            Ok(true) => {
                line.sequence += 1;
                Ok(())
            }
            Ok(false) => Err(Failed::Again("it took nothing for too long".to_owned())),
            Err(error) => Err(Failed::Again(error.to_string())),
        }
    }

    fn receive(&mut self, node: &Shared, mut line: Line, wait: Wait) -> Result<Step, Failed> {
        let mut buffer = std::mem::take(&mut line.buffer);
        let frame = match line.channel.receive(&mut buffer, wait.at_most(line.deadline)) {
            Ok(Some(frame)) => frame,
            Ok(None) if self.clock.now() >= line.deadline => {
                return Err(Failed::Again("it was silent for too long".to_owned()));
            }
            Ok(None) => {
                let due = line.deadline;
                line.buffer = buffer;
                self.stage = Stage::Connected(line);
                return Ok(Step::Idle { due });
            }
            Err(error) => return Err(Failed::Again(error.to_string())),
        };
        let (header, message) = Message::decode(frame).map_err(|error| Failed::Useless(error.to_string()))?;
        if header.sequence != line.expected {
            return Err(Failed::Useless(format!(
                "frame {} came where frame {} belongs",
                header.sequence, line.expected
            )));
        }
        line.expected += 1;
        let config = &node.core.config;
        let slowest = Duration::from_nanos(
            2 * MAX_CHUNK as u64 * 1_000_000_000 / config.snapshot_bytes_per_second.max(1),
        );
        line.deadline = self.clock.now() + config.peer_timeout + slowest;
        let ended = self.take(node, &mut line, message)?;
        line.buffer = buffer;
        self.stage = match ended {
            Some(sealing) => Stage::Seals(sealing, line),
            None => Stage::Connected(line),
        };
        Ok(Step::Worked)
    }

    /// Takes a message; with the last of the snapshot all is there.
    fn take(
        &mut self,
        node: &Shared,
        line: &mut Line,
        message: Message<'_>,
    ) -> Result<Option<Box<Sealing>>, Failed> {
        if !line.begun {
            return match message {
                Message::SnapshotBegin(begin) => self.begin(node, line, &begin).map(|()| None),
                Message::Reject(reject) => Err(Failed::Again(reject.reason.to_string())),
                other => Err(Failed::Useless(format!("it sent a {} first", other.kind()))),
            };
        }
        let staging = self.staging.as_mut().ok_or_else(|| Failed::Again("nothing is staged".to_owned()))?;
        match message {
            Message::SnapshotItem(item) => {
                staging.item(item.item, &item.name)?;
            }
            Message::SnapshotChunk(chunk) => {
                staging.chunk(chunk.at, chunk.bytes)?;
                line.unsynced += chunk.bytes.len() as u64;
            }
            Message::SnapshotItemEnd(end) => staging.item_end(end.at, end.digest)?,
            Message::SnapshotEnd(end) => {
                line.end = staging.place();
                return Ok(self.staging.take().map(|staging| staging.end(&end)).transpose()?);
            }
            other => return Err(Failed::Useless(format!("it sent a {} amid the snapshot", other.kind()))),
        }
        let bytes = staging.bytes();
        let due = line.unsynced >= SYNC_EVERY || (line.unsynced > 0 && self.clock.now() >= line.sync_due);
        let synced = if due { Some(staging.sync()?) } else { None };
        if let Some(status) = &mut *self.fetch.status.lock() {
            status.bytes = bytes;
        }
        if let Some(at) = synced {
            line.unsynced = 0;
            line.sync_due = self.clock.now() + node.core.config.peer_timeout;
            self.tries = 0;
            self.send(node, line, &Message::SnapshotAck(SnapshotAck { at }))?;
        }
        Ok(None)
    }

    /// Reads the next piece back: between two of them a closing node ends this worker.
    fn seal(&mut self, node: &Shared, sealing: Box<Sealing>, mut line: Line) -> Result<Step, Failed> {
        self.stage = match sealing.step()? {
            Sealed::Not(more) => Stage::Seals(more, line),
            Sealed::Whole(staged) => {
                let at = line.end;
                // It may not hear it: then it keeps the snapshot for a while in vain.
                let _unsaid = self.send(node, &mut line, &Message::SnapshotAck(SnapshotAck { at }));
                Stage::Whole(staged)
            }
        };
        Ok(Step::Worked)
    }

    fn begin(&mut self, node: &Shared, line: &mut Line, begin: &SnapshotBegin) -> Result<(), Failed> {
        let base = Base::decode(&begin.base).map_err(|error| Failed::Useless(error.to_string()))?;
        if base.group != node.core.config.group {
            return Err(Failed::Useless(format!("its snapshot is of group {}", base.group)));
        }
        if Some(base.at.vlsn) < self.fetch.need.lock().least {
            return Err(Failed::Useless(format!("its snapshot stands at VLSN {}, too early", base.at.vlsn)));
        }
        let goes_on = self.staging.as_ref().is_some_and(|staging| {
            staging.id() == begin.id && staging.place() == begin.from && staging.base_bytes() == begin.base
        });
        if !goes_on {
            if begin.from != SnapshotPlace::default() {
                return Err(Failed::Useless("it goes on with another snapshot than was begun".to_owned()));
            }
            let disk = Arc::clone(&node.core.host.disk);
            self.staging = Some(Staging::begin(disk, &self.dir, begin.id, &begin.base)?);
        }
        line.begun = true;
        log::info!("fetching a snapshot at VLSN {} from {}, {:?} on", base.at.vlsn, self.from, begin.from);
        *self.fetch.status.lock() = Some(TransferStatus {
            peer: self.from.to_string(),
            at: base.at.vlsn,
            bytes: self.staging.as_ref().map_or(0, Staging::bytes),
            of: begin.of,
        });
        Ok(())
    }

    /// Everything is there: the engine takes it in, if it is still of use.
    fn install(&mut self, node: &Arc<Shared>, staged: Staged, wait: Wait) -> Result<Step, Failed> {
        let need = self.fetch.need.lock().clone();
        if Some(staged.base().at.vlsn) < need.least {
            return Err(Failed::Useless("the master has no longer what follows on it".to_owned()));
        }
        if need.whose == Whose::Doubt && node.election.state().state().standing.counts() {
            return Err(Failed::Useless("what was in doubt is settled".to_owned()));
        }
        if need.whose == Whose::Engine {
            // The log brings on what follows: it has to have come so far.
            let (at, life) = (staged.base().at, node.core.log.life());
            match life.written.wait(at.vlsn.get(), wait) {
                Ok(true) if node.holds(at) => {}
                Ok(true) => {
                    return Err(Failed::Useless(format!("this log holds another entry at VLSN {}", at.vlsn)));
                }
                Ok(false) => {
                    self.stage = Stage::Whole(Box::new(staged));
                    return Ok(Step::Idle { due: Deadline::NEVER });
                }
                // It closes, or was cut.
                Err(_ended) if Arc::ptr_eq(&life, &node.core.log.life()) => {
                    return Err(Failed::Stop(Stop::Done));
                }
                Err(_ended) => {
                    self.stage = Stage::Whole(Box::new(staged));
                    return Ok(Step::Worked);
                }
            }
        }
        let begun = begin_install(node, &staged).map_err(Failed::Stop)?;
        let part = match begun {
            Begun::Install(part) => part,
            Begun::Not(why) => return Err(Failed::Useless(why)),
        };
        log::info!("installing the snapshot at VLSN {}, needed by {:?}", staged.base().at.vlsn, need.whose);
        let (answer, asked) = Answer::new();
        let (weak, base) = (Arc::downgrade(node), staged.base().clone());
        let settle = Box::new(move || match weak.upgrade() {
            Some(node) => settle(&node, &base, part),
            None => Err(Stop::Done),
        });
        let weak = Arc::downgrade(node);
        let back_out = Box::new(move || weak.upgrade().map_or(Err(Stop::Done), |node| back_out(&node)));
        let (items, moves_log) = (Box::new(staged), part == LogPart::Replaced);
        node.core.apply.ask(Request::Install(Install { items, moves_log, settle, back_out, asked }));
        self.stage = Stage::Installs(answer);
        Ok(Step::Worked)
    }

    fn talk(&mut self, node: &Arc<Shared>, wait: Wait) -> Result<Step, Failed> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Dial { at } if self.clock.now() < at => {
                self.stage = Stage::Dial { at };
                rest(wait.at_most(at));
                Ok(Step::Idle { due: at })
            }
            Stage::Dial { .. } => self.dial(node, wait),
            Stage::Connected(line) => self.receive(node, line, wait),
            Stage::Seals(sealing, line) => self.seal(node, sealing, line),
            Stage::Whole(staged) => self.install(node, *staged, wait),
            Stage::Installs(answer) => match answer.take(wait) {
                Ok(Some(())) => Err(Failed::Stop(Stop::Done)),
                Ok(None) => {
                    self.stage = Stage::Installs(answer);
                    Ok(Step::Idle { due: Deadline::NEVER })
                }
                // The node closes, or has failed; opening it again goes on.
                Err(_closed) => Err(Failed::Stop(Stop::Done)),
            },
            Stage::Over => Err(Failed::Stop(Stop::Done)),
        }
    }

    /// Another attempt after a pause, or the end of this fetch.
    fn retry(&mut self, node: &Shared, why: String) -> Result<Step, Stop> {
        log::warn!("the snapshot from {} did not come: {why}", self.from);
        // Only what is synced counts.
        self.staging = None;
        self.tries += 1;
        if self.tries >= TRIES {
            *self.fetch.failed.lock() = Some(FollowError::SnapshotFailed { from: self.from.clone(), why });
            return Err(Stop::Done);
        }
        let pause = node.core.config.backoff_min * 2u32.pow(self.tries);
        self.stage = Stage::Dial { at: self.clock.now() + pause.min(node.core.config.backoff_max) };
        Ok(Step::Worked)
    }
}

impl Worker for Fetcher {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let Some(node) = self.node.upgrade() else { return Err(Stop::Done) };
        if node.core.poison.reason().is_some() {
            return Err(Stop::Done);
        }
        match self.talk(&node, wait) {
            Ok(step) => Ok(step),
            Err(Failed::Stop(stop)) => Err(stop),
            Err(Failed::Again(why)) => self.retry(&node, why),
            Err(Failed::Useless(why)) => {
                self.staging = None;
                if let Err(error) = discard(&*node.core.host.disk, &self.dir) {
                    log::warn!("the staged snapshot can't be removed: {error}");
                }
                self.tries = TRIES;
                self.retry(&node, why)
            }
        }
    }
}
