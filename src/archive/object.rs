//! Log objects: a run of committed entries behind a header that says where it belongs.

use std::io::{self, Cursor, Read};

use byteorder::{LE, ReadBytesExt};
use twox_hash::XxHash3_128;

use crate::archive::dir::fill;
use crate::archive::{Archive, ArchiveError};
use crate::entry::{EntryDamage, Header, RunError, RunSummary, verify_run};
use crate::ids::{GroupId, Position, Term, Vlsn, VlsnRange, number};
use crate::log::Log;
use crate::log::scanner::{LogScanner, ScanError};

const MAGIC: &[u8; 8] = b"QRARCLOG";
const VERSION: u32 = 1;
/// Bytes of the header; the entries follow.
pub const LOG_HEADER_LEN: usize = 128;
/// Bytes that are read at once, unless an entry is longer.
const CHUNK: usize = 1 << 20;
/// What the log is read in.
const RUN_BYTES: usize = 256 << 10;

/// What a log object says of its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogHeader {
    /// The group.
    pub group: GroupId,
    /// The VLSNs.
    pub range: VlsnRange,
    /// The entry before them; `None` if they begin with the group's first.
    pub base: Option<Position>,
    /// The last entry. Its term is the highest: terms never fall.
    pub last: Position,
    /// The first entry's timestamp, microseconds since the epoch.
    pub first_time: u64,
    /// The last entry's.
    pub last_time: u64,
    /// The highest: timestamps may fall where the master changed.
    pub highest_time: u64,
    /// Bytes of the entries.
    pub len: u64,
    /// XXH3-128 of them.
    pub digest: u128,
}

/// Why an object of the archive is not what its name says.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectDamage {
    /// It begins with something else.
    #[error("it does not begin as such an object does")]
    NotOurs,
    /// A later version of this software wrote it.
    #[error("it has format version {0}, and this software reads up to {VERSION}: upgrade it")]
    NewerVersion(u32),
    /// Its header is damaged.
    #[error("its header's checksum does not match")]
    Header,
    /// Its header and its name disagree.
    #[error("its header speaks of VLSN {0}, and its name of others")]
    OtherName(VlsnRange),
    /// It ends too early, or goes on behind its end.
    #[error("it is not as long as its header says")]
    Length,
    /// The digest over the whole differs.
    #[error("its digest does not match its contents")]
    Digest,
    /// An entry in it is damaged, or does not continue the one before.
    #[error("{0}")]
    Entries(RunError),
    /// The entries end elsewhere than the header says.
    #[error("its entries end at VLSN {0}, and its header says something else")]
    End(Vlsn),
    /// It is no part of the history that the others tell.
    #[error("at VLSN {0} it tells another history than the objects before it")]
    OtherHistory(Vlsn),
    /// A base's manifest speaks of another place than its name.
    #[error("it speaks of a base at VLSN {0}, and its name of another")]
    OtherPlace(Vlsn),
    /// What it says of the group makes no sense.
    #[error("{0}")]
    Part(String),
    /// It is not there, and others say that it should be.
    #[error("it is missing")]
    Missing,
}

impl LogHeader {
    /// The name of the object.
    pub fn name(&self) -> String {
        log_name(self.range)
    }

    /// The header's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LOG_HEADER_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(LOG_HEADER_LEN as u32).to_le_bytes());
        out.extend_from_slice(&self.group.bits().to_le_bytes());
        out.extend_from_slice(&self.range.first().get().to_le_bytes());
        for position in [self.base, Some(self.last)] {
            out.extend_from_slice(&number(position.map(|at| at.vlsn)).to_le_bytes());
            out.extend_from_slice(&position.map_or(0, |at| at.term.get()).to_le_bytes());
            out.extend_from_slice(&position.map_or(0, |at| at.crc).to_le_bytes());
        }
        for value in [self.first_time, self.last_time, self.highest_time, self.len] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.digest.to_le_bytes());
        out.resize(LOG_HEADER_LEN - 4, 0);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`ObjectDamage`].
    pub fn decode(bytes: &[u8]) -> Result<LogHeader, ObjectDamage> {
        let bytes = bytes.get(..LOG_HEADER_LEN).ok_or(ObjectDamage::Length)?;
        if !bytes.starts_with(MAGIC) {
            return Err(ObjectDamage::NotOurs);
        }
        let mut from = Cursor::new(&bytes[MAGIC.len()..]);
        let version = from.read_u32::<LE>().map_err(|_| ObjectDamage::Header)?;
        if version > VERSION {
            return Err(ObjectDamage::NewerVersion(version));
        }
        let (body, crc) = bytes.split_at(LOG_HEADER_LEN - 4);
        if crc != crc32fast::hash(body).to_le_bytes() {
            return Err(ObjectDamage::Header);
        }
        take(&mut from).ok().flatten().ok_or(ObjectDamage::Header)
    }
}

fn take(from: &mut Cursor<&[u8]>) -> io::Result<Option<LogHeader>> {
    let len = from.read_u32::<LE>()?;
    let group = GroupId::from_bits(from.read_u128::<LE>()?);
    let first = Vlsn::new(from.read_u64::<LE>()?);
    let mut position = || -> io::Result<Option<Position>> {
        let (vlsn, term, crc) = (from.read_u64::<LE>()?, from.read_u32::<LE>()?, from.read_u32::<LE>()?);
        Ok(Vlsn::new(vlsn).map(|vlsn| Position { vlsn, term: Term::new(term), crc }))
    };
    let (base, last) = (position()?, position()?);
    let (first_time, last_time) = (from.read_u64::<LE>()?, from.read_u64::<LE>()?);
    let (highest_time, bytes) = (from.read_u64::<LE>()?, from.read_u64::<LE>()?);
    let digest = from.read_u128::<LE>()?;
    let (Some(first), Some(last)) = (first, last) else { return Ok(None) };
    let sound = len as usize == LOG_HEADER_LEN && Vlsn::after(base.map(|base| base.vlsn)) == first;
    Ok(VlsnRange::new(first, last.vlsn).filter(|_| sound).map(|range| LogHeader {
        group,
        range,
        base,
        last,
        first_time,
        last_time,
        highest_time,
        len: bytes,
        digest,
    }))
}

/// The name of the log object with these entries.
pub fn log_name(range: VlsnRange) -> String {
    format!("log/{:020}-{:020}", range.first().get(), range.last().get())
}

/// The entries that a log object's name speaks of.
pub fn range_in_name(name: &str) -> Option<VlsnRange> {
    let (first, last) = name.strip_prefix("log/")?.split_once('-')?;
    let vlsn = |text: &str| text.parse().ok().and_then(Vlsn::new);
    let range = VlsnRange::new(vlsn(first)?, vlsn(last)?)?;
    (log_name(range) == name).then_some(range)
}

/// Why entries could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The log could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// What the log gave does not verify.
    #[error("the log gave entries that do not verify: {0}; repair it from a replica")]
    Run(#[from] RunError),
    /// The archive refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Writes the entries after `base`, of at most `most` bytes and none above `committed`, into an object, as far as the log
/// gives them. `None`: there are none. The log is read twice: a header stands before what it speaks of.
///
/// # Errors
/// [`WriteError`]; no object was made then.
pub fn write_log(
    archive: &dyn Archive,
    log: &Log,
    group: GroupId,
    base: Option<Position>,
    committed: Vlsn,
    most: u64,
) -> Result<Option<LogHeader>, WriteError> {
    let Some(header) = survey(log, group, base, committed, most)? else { return Ok(None) };
    let mut entries = LogBytes {
        scanner: log.scanner(),
        header,
        after: base.map(|base| base.vlsn),
        buffer: header.encode(),
        at: 0,
        digest: XxHash3_128::new(),
    };
    archive.put(&header.name(), &mut entries)?;
    Ok(Some(header))
}

/// What the header of the next object will say.
fn survey(
    log: &Log,
    group: GroupId,
    base: Option<Position>,
    committed: Vlsn,
    most: u64,
) -> Result<Option<LogHeader>, WriteError> {
    let mut scanner = log.scanner();
    let mut digest = XxHash3_128::new();
    let (mut last, mut len) = (base, 0);
    let (mut first_time, mut last_time, mut highest_time) = (None, 0, 0);
    loop {
        let after = last.map(|last| last.vlsn);
        let left = committed.get().saturating_sub(number(after));
        let room = most.saturating_sub(len);
        if left == 0 || (len > 0 && room == 0) {
            break;
        }
        let entries = u32::try_from(left).unwrap_or(u32::MAX);
        let Some(run) = scanner.run(after, entries, RUN_BYTES.min(room.max(1) as usize))? else { break };
        if len > 0 && run.len_bytes() as u64 > room {
            break;
        }
        for slice in run.slices() {
            let summary = verify_run(slice, last)?;
            digest.write(slice);
            len += slice.len() as u64;
            (last, last_time) = (Some(summary.last), summary.timestamp);
        }
        for entry in run.entries().iter() {
            let time = entry.header().timestamp;
            first_time.get_or_insert(time);
            highest_time = highest_time.max(time);
        }
        assert!(last.is_none_or(|last| last.vlsn <= committed), "what is not committed is never archived");
    }
    let (Some(first_time), Some(last)) = (first_time, last) else { return Ok(None) };
    let Some(range) = VlsnRange::new(Vlsn::after(base.map(|base| base.vlsn)), last.vlsn) else {
        return Ok(None);
    };
    let digest = digest.finish_128();
    Ok(Some(LogHeader { group, range, base, last, first_time, last_time, highest_time, len, digest }))
}

/// The bytes of an object: header, then the entries from the log.
struct LogBytes<S> {
    scanner: S,
    header: LogHeader,
    after: Option<Vlsn>,
    buffer: Vec<u8>,
    at: usize,
    digest: XxHash3_128,
}

impl<S: LogScanner> Read for LogBytes<S> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.buffer.len() {
            let last = self.header.range.last();
            let left = last.get().saturating_sub(number(self.after));
            if left == 0 {
                return Ok(0);
            }
            let entries = u32::try_from(left).unwrap_or(u32::MAX);
            let run = self.scanner.run(self.after, entries, RUN_BYTES).map_err(io::Error::other)?;
            let run = run.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.buffer.clear();
            self.at = 0;
            run.slices().iter().for_each(|slice| self.buffer.extend_from_slice(slice));
            self.after = Some(run.last.vlsn);
            self.digest.write(&self.buffer);
            if run.last.vlsn == last && self.digest.finish_128() != self.header.digest {
                return Err(io::Error::other("the log gave other bytes the second time that it was read"));
            }
        }
        let len = into.len().min(self.buffer.len() - self.at);
        into[..len].copy_from_slice(&self.buffer[self.at..self.at + len]);
        self.at += len;
        Ok(len)
    }
}

/// Why an object could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The archive refused.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The object is damaged, or does not belong here.
    #[error("the object {object} of the archive can't be used: {damage}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong.
        damage: ObjectDamage,
    },
}

/// Reads a log object in whole entries, each verified, as is the whole at its end. Holds 1 MiB, or one entry.
pub struct LogReader {
    name: String,
    from: Box<dyn Read + Send>,
    header: LogHeader,
    buffer: Vec<u8>,
    /// Entries that were given out: gone with the next call.
    given: usize,
    /// Bytes of entries not read from the archive yet.
    left: u64,
    last: Option<Position>,
    digest: XxHash3_128,
}

impl LogReader {
    /// Opens an object, and reads its header.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(archive: &dyn Archive, name: &str) -> Result<LogReader, ReadError> {
        let mut from = archive.open(name)?;
        let mut head = [0; LOG_HEADER_LEN];
        let read = fill(&mut *from, &mut head).map_err(ArchiveError::io("read", name))?;
        let damaged = |damage| ReadError::Damaged { object: name.to_owned(), damage };
        let header = LogHeader::decode(&head[..read]).map_err(damaged)?;
        if range_in_name(name) != Some(header.range) {
            return Err(damaged(ObjectDamage::OtherName(header.range)));
        }
        Ok(LogReader {
            name: name.to_owned(),
            from,
            header,
            buffer: Vec::new(),
            given: 0,
            left: header.len,
            last: header.base,
            digest: XxHash3_128::new(),
        })
    }

    /// What the object says of itself.
    pub fn header(&self) -> &LogHeader {
        &self.header
    }

    /// The next entries, which follow the position that the header, or the run before, ended with. `None` after the last:
    /// then the whole object was verified.
    ///
    /// # Errors
    /// [`ReadError`]. Whatever was given out before may then not be used either.
    pub fn run(&mut self) -> Result<Option<(&[u8], RunSummary)>, ReadError> {
        self.buffer.drain(..self.given);
        self.given = 0;
        let whole = loop {
            let (whole, needed) = whole_entries(&self.buffer);
            if whole > 0 {
                break whole;
            }
            if self.left == 0 {
                return if self.buffer.is_empty() {
                    self.end().map(|()| None)
                } else {
                    let present = self.buffer.len();
                    let (at, damage) = (self.next(), EntryDamage::Short { needed, present });
                    Err(self.damaged(ObjectDamage::Entries(RunError::Damaged { at, damage })))
                };
            }
            self.read_more(needed)?;
        };
        let summary = verify_run(&self.buffer[..whole], self.last)
            .map_err(|error| self.damaged(ObjectDamage::Entries(error)))?;
        if summary.last.vlsn > self.header.range.last() {
            return Err(self.damaged(ObjectDamage::End(summary.last.vlsn)));
        }
        self.last = Some(summary.last);
        self.given = whole;
        Ok(Some((&self.buffer[..whole], summary)))
    }

    /// Reads on, so that there are `needed` bytes if the object has them.
    fn read_more(&mut self, needed: usize) -> Result<(), ReadError> {
        let present = self.buffer.len();
        let more = needed.max(CHUNK).saturating_sub(present).max(1) as u64;
        let more = more.min(self.left) as usize;
        self.buffer.resize(present + more, 0);
        let io = ArchiveError::io("read", &self.name);
        let read = fill(&mut *self.from, &mut self.buffer[present..]).map_err(io)?;
        if read < more {
            return Err(self.damaged(ObjectDamage::Length));
        }
        self.digest.write(&self.buffer[present..]);
        self.left -= more as u64;
        Ok(())
    }

    fn end(&mut self) -> Result<(), ReadError> {
        let behind = fill(&mut *self.from, &mut [0]).map_err(ArchiveError::io("read", &self.name))?;
        if behind > 0 {
            return Err(self.damaged(ObjectDamage::Length));
        }
        if self.digest.finish_128() != self.header.digest {
            return Err(self.damaged(ObjectDamage::Digest));
        }
        if self.last != Some(self.header.last) {
            let at = self.last.map_or(self.header.range.first(), |last| last.vlsn);
            return Err(self.damaged(ObjectDamage::End(at)));
        }
        Ok(())
    }

    fn next(&self) -> Vlsn {
        Vlsn::after(self.last.map(|last| last.vlsn))
    }

    /// An error about this object.
    pub fn damaged(&self, damage: ObjectDamage) -> ReadError {
        ReadError::Damaged { object: self.name.clone(), damage }
    }
}

/// Bytes of the whole entries at the beginning, and how many bytes the first that is not whole needs. A header that does
/// not check out is given out with what is there: verifying tells what it is.
fn whole_entries(bytes: &[u8]) -> (usize, usize) {
    let mut at = 0;
    loop {
        match Header::parse(&bytes[at..]) {
            Ok(header) if header.entry_len() <= bytes.len() - at => at += header.entry_len(),
            Ok(header) => return (at, header.entry_len()),
            Err(EntryDamage::Short { needed, .. }) => return (at, needed),
            Err(_) => return (bytes.len(), 0),
        }
    }
}
