//! The ceiling: the same entries as the engine's, packed in plain writes of 64 KiB over loopback TCP, with every CRC
//! checked by the receiver and positions acknowledged. No log, no frames, no quorum: what any engine could reach here.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use quorate::clock::Stopwatch;
use quorate::entry::{EntryRef, Header, NewEntry, Placement, encode};
use quorate::ids::{Term, Vlsn};

use super::meter::rate;
use crate::Failure;

const WRITE: usize = 64 << 10;

/// Two ends of a connection over loopback.
///
/// # Errors
/// The system's.
pub fn loopback_pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The kernel completes the connection before it is accepted, so one thread can do both.
    let dialled = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    for end in [&dialled, &accepted] {
        end.set_nodelay(true)?;
    }
    Ok((dialled, accepted))
}

/// Entries acknowledged per second when `count` entries with this payload are sent as fast as they go.
///
/// # Errors
/// A failed connection, or bytes that arrived changed.
pub fn run(payload: usize, count: u64) -> Result<f64, Failure> {
    let (sender, receiver) = loopback_pair()?;
    let acks = sender.try_clone()?;
    let watch = Stopwatch::start();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || receive(receiver, count));
        let sending = scope.spawn(move || send(sender, payload, count));
        let acked = await_acks(acks, count);
        let took = watch.elapsed();
        for ended in [sending.join(), receiving.join()] {
            ended.map_err(|_| "a thread of the ceiling panicked")??;
        }
        acked?;
        Ok(rate(count, took))
    })
}

fn send(mut to: TcpStream, payload: usize, count: u64) -> Result<(), Failure> {
    let payload = vec![0xa5; payload];
    let mut out = Vec::with_capacity(WRITE + payload.len() + 64);
    let mut prev = 0;
    for number in 1..=count {
        let at = Placement { vlsn: Vlsn::new(number), term: Term::new(1), prev, timestamp: number };
        prev = encode(&NewEntry::data(&payload), &at, &mut out);
        if out.len() >= WRITE {
            to.write_all(&out)?;
            out.clear();
        }
    }
    Ok(to.write_all(&out)?)
}

fn receive(mut from: TcpStream, count: u64) -> Result<(), Failure> {
    let mut buffer = vec![0; 1 << 20];
    let (mut filled, mut received) = (0, 0);
    while received < count {
        let read = from.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err("the connection ended early".into());
        }
        filled += read;
        let mut used = 0;
        while let Some(len) = whole_entry(&buffer[used..filled])? {
            let entry = EntryRef::verify(&buffer[used..used + len])?;
            received += 1;
            if entry.header().vlsn != Vlsn::new(received) {
                return Err("an entry arrived out of order".into());
            }
            used += len;
        }
        buffer.copy_within(used..filled, 0);
        filled -= used;
        from.write_all(&received.to_le_bytes())?;
    }
    Ok(())
}

/// The length of the entry at the start, once all of it is there.
fn whole_entry(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    if bytes.len() < quorate::entry::HEADER_LEN {
        return Ok(None);
    }
    let len = Header::parse(bytes)?.entry_len();
    Ok((len <= bytes.len()).then_some(len))
}

fn await_acks(mut from: TcpStream, count: u64) -> Result<(), Failure> {
    let mut ack = [0; 8];
    while u64::from_le_bytes(ack) < count {
        from.read_exact(&mut ack)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn all_entries_arrive_at_every_size() {
        for payload in [0, 128, 8192, 100_000] {
            assert!(super::run(payload, 500).unwrap() > 0.0);
        }
    }
}
