//! The small state of a node: what has to be durable before anybody is answered, and is not in the log.
//!
//! Two slots in separate blocks of 4 KiB hold it, both written and synced by every store. A block that a crash tears, or
//! that goes bad, leaves the other.

use std::io::{self, Cursor, IoSlice, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use byteorder::{LE, ReadBytesExt};
use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile};
use crate::ids::{GroupId, LogEnd, NodeId, Term, Vlsn, number};
use crate::members::Standing;
use crate::planted::{Bug, active};

/// The version of the format that this software writes, and the latest that it reads.
const VERSION: u32 = 4;
const MAGIC: &[u8; 8] = b"QRSTATE\0";
const SLOT: u64 = 4096;
const SLOTS: u64 = 2;
/// Bytes of a slot that are in use; the rest is zero.
const USED: usize = 8 + 4 + 8 + 16 + 8 + 4 + 1 + NodeId::MAX_LEN + GROUP_PART + DAMAGE_PART + 4;
/// What version 2 added: the vote, the standing, an arbiter's mark.
const GROUP_PART: usize = 1 + NodeId::MAX_LEN + 1 + 8 + 4 + 8;
/// What version 3 added: where the damage of a damaged standing ends. Version 4 tells whether more than that is in doubt.
const DAMAGE_PART: usize = 8;
/// Bytes that version 2 used.
const USED_BY_2: usize = USED - DAMAGE_PART;
/// Bytes that version 1 used.
const USED_BY_1: usize = USED_BY_2 - GROUP_PART;

/// The small state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The group that the directory belongs to.
    pub group: GroupId,
    /// The node that it belongs to.
    pub node: NodeId,
    /// A random number, made with the directory: tells a node whose disk was replaced from the one before.
    pub incarnation: u64,
    /// The highest term that this node has heard of, voted in or led.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// Whether the directory holds what its node acknowledged.
    pub standing: Standing,
    /// An arbiter's whole log: the end of the master's, as far as it was told and acknowledged it. Empty on other nodes.
    pub mark: LogEnd,
}

impl State {
    /// The state of a directory that is made now.
    pub fn new(group: GroupId, node: NodeId, incarnation: u64, standing: Standing) -> State {
        State { group, node, incarnation, term: Term::NONE, vote: None, standing, mark: LogEnd::EMPTY }
    }

    /// The same in a newer term, in which nobody was voted for yet.
    #[must_use]
    pub fn in_term(self, term: Term) -> State {
        if term == self.term { self } else { State { term, vote: None, ..self } }
    }
}

/// Why the small state can't be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused. After a failed store the state on disk is the old or the new one.
    #[error("can't {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// There is none.
    #[error("{path} does not exist: the directory was never set up", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Both copies are damaged.
    #[error("both copies in {path} are damaged: wipe the directory and rejoin", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A later version of this software wrote it.
    #[error(
        "{path} has format version {found}, and this software reads up to {VERSION}: upgrade it",
        path = path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version in it.
        found: u32,
    },
    /// It belongs to another group or node.
    #[error(
        "{path} belongs to node {found_node} of group {found_group}, not to node {node} of group {group}",
        path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The group in it.
        found_group: GroupId,
        /// The node in it.
        found_node: NodeId,
        /// The group expected.
        group: GroupId,
        /// The node expected.
        node: NodeId,
    },
    /// An earlier store failed, and nothing is known of what the disk holds.
    #[error("an earlier store to {path} failed: restart the node", path = path.display())]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

/// The file that keeps the small state. All methods may be called from any thread and block on the device.
pub struct StateFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// Counts stores; the higher slot is the newer.
    sequence: u64,
    failed: bool,
}

impl StateFile {
    /// Makes the file, durably with its directory entry. Fails if it exists.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn create(disk: &dyn Disk, path: &Path, state: State) -> Result<StateFile, StateError> {
        // Under a name of its own first, so that a crash leaves no file without a state.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let io = |action| move |source| failed(action, path, source);
        if disk.open(path).is_ok() {
            return Err(failed("create", path, io::ErrorKind::AlreadyExists.into()));
        }
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &temporary, error));
            }
            _ => {}
        }
        let file = disk.create(&temporary, SLOT * SLOTS).map_err(io("create"))?;
        let made = StateFile {
            path: path.to_path_buf(),
            file,
            inner: Mutex::new(Inner { state: state.clone(), sequence: 0, failed: false }),
        };
        made.store(state)?;
        disk.rename(&temporary, path).map_err(io("rename"))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        disk.sync_dir(dir).map_err(io("sync the directory of"))?;
        Ok(made)
    }

    /// Opens the file. If one copy is damaged or older, it is repaired from the other before this returns.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<StateFile, StateError> {
        let file = match disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::Missing { path: path.to_path_buf() });
            }
            other => other.map_err(|source| failed("open", path, source))?,
        };
        let mut newest: Option<(u64, State)> = None;
        for slot in 0..SLOTS {
            let mut bytes = [0; USED];
            let read =
                file.read_at(&mut bytes, slot * SLOT).map_err(|source| failed("read", path, source))?;
            match decode(&bytes[..read]) {
                Slot::Newer(found) => {
                    return Err(StateError::NewerVersion { path: path.to_path_buf(), found });
                }
                Slot::Damaged => {
                    log::warn!("copy {slot} in {} is damaged, and will be repaired", path.display())
                }
                Slot::Good(sequence, state) => {
                    if newest.as_ref().is_none_or(|(best, _)| *best < sequence) {
                        newest = Some((sequence, state));
                    }
                }
            }
        }
        let Some((sequence, mut state)) = newest else {
            return Err(StateError::Damaged { path: path.to_path_buf() });
        };
        if active(Bug::TermsRestartAtOne) {
            state = state.in_term(Term::NONE);
        }
        let inner = Inner { state: state.clone(), sequence, failed: false };
        let opened = StateFile { path: path.to_path_buf(), file, inner: Mutex::new(inner) };
        // Both copies are written anew: what was read may be in the page cache only. So may the file's name, if the sync
        // that was to make it durable failed.
        opened.store(state)?;
        let dir = path.parent().unwrap_or(Path::new("."));
        disk.sync_dir(dir).map_err(|source| failed("sync the directory of", path, source))?;
        Ok(opened)
    }

    /// The state as last stored.
    pub fn state(&self) -> State {
        self.inner.lock().state.clone()
    }

    /// Whether the file is of this group and node.
    ///
    /// # Errors
    /// [`StateError::Foreign`].
    pub fn belongs_to(&self, group: GroupId, node: &NodeId) -> Result<(), StateError> {
        let state = self.state();
        if state.group == group && state.node == *node {
            return Ok(());
        }
        Err(StateError::Foreign {
            path: self.path.clone(),
            found_group: state.group,
            found_node: state.node,
            group,
            node: node.clone(),
        })
    }

    /// Writes and syncs both copies, the older one first. When this returns the state is durable.
    ///
    /// # Errors
    /// [`StateError::Io`]; every later store then fails with `Poisoned`, since a failed sync proves nothing either way.
    pub fn store(&self, state: State) -> Result<(), StateError> {
        self.write(&mut self.inner.lock(), state)
    }

    /// Stores what `change` makes of the state, and does nothing if that is the same. Nobody else stores in between.
    ///
    /// # Errors
    /// As [`store`](StateFile::store).
    pub fn update(&self, change: impl FnOnce(State) -> State) -> Result<(), StateError> {
        let mut inner = self.inner.lock();
        let state = change(inner.state.clone());
        if state == inner.state && !inner.failed {
            return Ok(());
        }
        self.write(&mut inner, state)
    }

    fn write(&self, inner: &mut Inner, state: State) -> Result<(), StateError> {
        if inner.failed {
            return Err(StateError::Poisoned { path: self.path.clone() });
        }
        let sequence = inner.sequence + 1;
        let bytes = encode(sequence, &state);
        for turn in 0..SLOTS {
            let slot = (sequence + turn) % SLOTS;
            let written = self.file.write_at(&[IoSlice::new(&bytes)], slot * SLOT);
            // Each copy is durable before the other is touched: a crash never finds both half written.
            let one_unsynced = turn > 0 && active(Bug::OneVoteSlotSynced);
            let unsynced = inner.sequence > 0 && (one_unsynced || active(Bug::VoteNotSynced));
            let synced = || if unsynced { Ok(()) } else { self.file.sync() };
            if let Err(source) = written.and_then(|()| synced()) {
                inner.failed = true;
                return Err(failed("write", &self.path, source));
            }
        }
        inner.sequence = sequence;
        inner.state = state;
        Ok(())
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { action, path: path.to_path_buf(), source: Arc::new(source) }
}

fn encode(sequence: u64, state: &State) -> Vec<u8> {
    let mut out = Vec::with_capacity(USED);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&state.group.bits().to_le_bytes());
    out.extend_from_slice(&state.incarnation.to_le_bytes());
    out.extend_from_slice(&state.term.get().to_le_bytes());
    put_name(&mut out, state.node.as_str());
    put_name(&mut out, state.vote.as_ref().map_or("", NodeId::as_str));
    let (kind, at) = match state.standing {
        Standing::Newcomer => (0, 0),
        Standing::Doubtful { from } => (1, from.get()),
        Standing::Damaged { from, open, .. } => (if open { 4 } else { 3 }, from.get()),
        Standing::Full { since } => (2, u64::from(since.get())),
    };
    out.push(kind);
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&state.mark.term.get().to_le_bytes());
    out.extend_from_slice(&number(state.mark.vlsn).to_le_bytes());
    let to = if let Standing::Damaged { to, .. } = state.standing { to.get() } else { 0 };
    out.extend_from_slice(&to.to_le_bytes());
    debug_assert_eq!(out.len(), USED - 4);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// A name in a field of fixed length.
fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    out.resize(out.len() + NodeId::MAX_LEN - name.len(), 0);
}

fn take_name(from: &mut Cursor<&[u8]>) -> io::Result<Option<String>> {
    let len = usize::from(from.read_u8()?);
    let mut field = [0; NodeId::MAX_LEN];
    from.read_exact(&mut field)?;
    let name = field.get(..len).and_then(|name| std::str::from_utf8(name).ok());
    Ok(name.map(str::to_owned))
}

enum Slot {
    Good(u64, State),
    Newer(u32),
    Damaged,
}

fn decode(bytes: &[u8]) -> Slot {
    // The CRC stands behind what the slot's version uses.
    let whole = |used: usize| {
        let (body, crc) = bytes.get(..used)?.split_last_chunk::<4>()?;
        (crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(body)
    };
    let Some(body) = whole(USED).or_else(|| whole(USED_BY_2)).or_else(|| whole(USED_BY_1)) else {
        return Slot::Damaged;
    };
    take(body).ok().flatten().unwrap_or(Slot::Damaged)
}

fn take(body: &[u8]) -> io::Result<Option<Slot>> {
    let mut from = Cursor::new(body);
    let mut magic = [0; 8];
    from.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Ok(None);
    }
    let version = from.read_u32::<LE>()?;
    if version > VERSION {
        return Ok(Some(Slot::Newer(version)));
    }
    let sequence = from.read_u64::<LE>()?;
    let group = GroupId::from_bits(from.read_u128::<LE>()?);
    let incarnation = from.read_u64::<LE>()?;
    let term = Term::new(from.read_u32::<LE>()?);
    let Some(node) = take_name(&mut from)?.and_then(|name| NodeId::new(&name).ok()) else { return Ok(None) };
    // A directory of version 1 belongs to a group with a fixed master, and holds what its node acknowledged.
    let mut state =
        State { term, ..State::new(group, node, incarnation, Standing::Full { since: Term::NONE }) };
    if version >= 2 {
        state.vote = match take_name(&mut from)? {
            Some(none) if none.is_empty() => None,
            Some(name) => match NodeId::new(&name) {
                Ok(vote) => Some(vote),
                Err(_) => return Ok(None),
            },
            None => return Ok(None),
        };
        let (kind, at) = (from.read_u8()?, from.read_u64::<LE>()?);
        state.standing = match (kind, Vlsn::new(at), u32::try_from(at)) {
            (0, _, _) => Standing::Newcomer,
            (1, Some(from), _) => Standing::Doubtful { from },
            (3, Some(from), _) if version >= 3 => Standing::Damaged { from, to: from, open: false },
            (4, Some(from), _) if version >= 4 => Standing::Damaged { from, to: from, open: true },
            (2, _, Ok(since)) => Standing::Full { since: Term::new(since) },
            _ => return Ok(None),
        };
        let (term, vlsn) = (Term::new(from.read_u32::<LE>()?), Vlsn::new(from.read_u64::<LE>()?));
        state.mark = LogEnd { term, vlsn };
        if version >= 3
            && let Some(to) = Vlsn::new(from.read_u64::<LE>()?)
            && let Standing::Damaged { from, open, .. } = state.standing
        {
            state.standing = Standing::Damaged { from, to, open };
        }
    }
    Ok(Some(Slot::Good(sequence, state)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn state(term: u32) -> State {
        let node = NodeId::new("n1").unwrap();
        State {
            term: Term::new(term),
            vote: NodeId::new("n2").ok(),
            mark: LogEnd { term: Term::new(1), vlsn: Vlsn::new(4) },
            ..State::new(GroupId::from_bits(5), node, 9, Standing::Doubtful { from: Vlsn::FIRST })
        }
    }

    fn flip(path: &Path, at: u64) {
        let file = RealDisk.open(path).unwrap();
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_at(&[IoSlice::new(&[byte[0] ^ 1])], at).unwrap();
    }

    #[test]
    fn what_was_stored_is_read_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        assert!(matches!(StateFile::open(&RealDisk, &path), Err(StateError::Missing { .. })));
        let file = StateFile::create(&RealDisk, &path, state(1)).unwrap();
        file.store(state(2)).unwrap();
        assert_eq!(StateFile::open(&RealDisk, &path).unwrap().state(), state(2));
        assert!(StateFile::create(&RealDisk, &path, state(1)).is_err());
    }

    #[test]
    fn one_damaged_copy_is_repaired_and_two_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        StateFile::create(&RealDisk, &path, state(7)).unwrap();
        for at in 0..USED as u64 {
            for slot in [0, SLOT] {
                flip(&path, slot + at);
                assert_eq!(StateFile::open(&RealDisk, &path).unwrap().state(), state(7), "byte {at}");
            }
        }
        // The repair made both good again: one more flip in the other copy is survived.
        flip(&path, 3);
        flip(&path, SLOT + 30);
        assert!(matches!(StateFile::open(&RealDisk, &path), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_store_torn_between_the_copies_yields_the_newer_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let file = StateFile::create(&RealDisk, &path, state(1)).unwrap();
        for slot in [0, SLOT] {
            let newer = encode(99, &state(8));
            RealDisk.open(&path).unwrap().write_at(&[IoSlice::new(&newer)], slot).unwrap();
            assert_eq!(StateFile::open(&RealDisk, &path).unwrap().state(), state(8));
            file.store(state(1)).unwrap();
        }
    }

    #[test]
    fn a_state_of_version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        drop(StateFile::create(&RealDisk, &path, state(7)).unwrap());
        let mut old = encode(50, &state(7))[..USED_BY_1 - 4].to_vec();
        old[8] = 1;
        old.extend(crc32fast::hash(&old).to_le_bytes());
        for slot in [0, SLOT] {
            RealDisk.open(&path).unwrap().write_at(&[IoSlice::new(&old)], slot).unwrap();
        }
        let read = StateFile::open(&RealDisk, &path).unwrap().state();
        assert_eq!((read.term, read.vote), (Term::new(7), None));
        assert_eq!(read.standing, Standing::Full { since: Term::NONE });
    }

    #[test]
    fn a_state_of_version_2_is_read_and_a_damaged_standing_keeps_both_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let file = StateFile::create(&RealDisk, &path, state(7)).unwrap();
        let mut old = encode(50, &state(7))[..USED_BY_2 - 4].to_vec();
        old[8] = 2;
        old.extend(crc32fast::hash(&old).to_le_bytes());
        for slot in [0, SLOT] {
            RealDisk.open(&path).unwrap().write_at(&[IoSlice::new(&old)], slot).unwrap();
        }
        assert_eq!(StateFile::open(&RealDisk, &path).unwrap().state(), state(7));
        let (from, to) = (Vlsn::FIRST.next(), Vlsn::FIRST.next().next());
        for open in [false, true] {
            let damaged = State { standing: Standing::Damaged { from, to, open }, ..state(8) };
            file.store(damaged.clone()).unwrap();
            assert_eq!(StateFile::open(&RealDisk, &path).unwrap().state(), damaged);
        }
    }

    #[test]
    fn another_group_and_a_newer_version_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let file = StateFile::create(&RealDisk, &path, state(1)).unwrap();
        let node = NodeId::new("n1").unwrap();
        assert!(file.belongs_to(GroupId::from_bits(5), &node).is_ok());
        assert!(matches!(file.belongs_to(GroupId::from_bits(6), &node), Err(StateError::Foreign { .. })));
        let mut newer = encode(50, &state(1));
        newer[8] = 5;
        let crc = crc32fast::hash(&newer[..USED - 4]);
        newer[USED - 4..].copy_from_slice(&crc.to_le_bytes());
        RealDisk.open(&path).unwrap().write_at(&[IoSlice::new(&newer)], 0).unwrap();
        assert!(matches!(StateFile::open(&RealDisk, &path), Err(StateError::NewerVersion { found: 5, .. })));
    }

    #[cfg(all(feature = "planted", feature = "sim"))]
    #[test]
    fn the_planted_bugs_forget_a_vote_at_a_power_loss_or_at_opening() {
        use crate::planted::plant;
        use crate::sim::{FaultDisk, Rng};

        let path = Path::new("/node/state");
        // Whether the state stored last is there after a power loss, perhaps with the first copy going bad in it.
        let survives = |bug, seed, rots: bool| {
            let disk = FaultDisk::new(Rng::new(seed));
            disk.create_dir(Path::new("/node")).unwrap();
            plant(bug);
            let file = StateFile::create(&disk, path, state(1)).unwrap();
            file.store(state(2)).unwrap();
            if rots {
                // Sequence 2 begins with copy 0.
                disk.flip_at_power_loss(path, 30, 1);
            }
            disk.lose_power();
            let read = StateFile::open(&disk, path).unwrap().state();
            plant(None);
            read == state(2)
        };
        let lost = |bug, rots| (0..20).filter(|seed| !survives(bug, *seed, rots)).count();
        assert_eq!((lost(None, false), lost(None, true)), (0, 0));
        assert!(lost(Some(Bug::VoteNotSynced), false) > 0);
        assert_eq!(lost(Some(Bug::OneVoteSlotSynced), false), 0);
        assert!(lost(Some(Bug::OneVoteSlotSynced), true) > 0);
        assert_eq!(lost(Some(Bug::TermsRestartAtOne), false), 20);
    }
}
