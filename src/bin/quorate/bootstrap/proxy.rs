//! A TCP relay before a node, whose connections can be cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate::Address;

use crate::Failure;

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// Passes on what comes to one address to another, in threads of its own.
pub struct Proxy {
    at: Address,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Bytes that went from the node to whoever dialled it.
    out: AtomicU64,
    closed: AtomicBool,
    /// Both ends of every connection, so that they can be cut.
    live: Mutex<Vec<(TcpStream, TcpStream)>>,
}

impl Proxy {
    /// A relay to `to`, at a free port of this machine.
    ///
    /// # Errors
    /// If there is none.
    pub fn start(to: String) -> Result<Proxy, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = Address::Tcp(listener.local_addr()?.to_string());
        let shared = Arc::new(Shared::default());
        let proxy = Proxy { at, shared: Arc::clone(&shared) };
        std::thread::Builder::new().name("proxy".into()).spawn(move || accept(&listener, &to, &shared))?;
        Ok(proxy)
    }

    /// Where it listens.
    pub fn address(&self) -> Address {
        self.at.clone()
    }

    /// Bytes that it has passed on from the node.
    pub fn bytes_out(&self) -> u64 {
        self.shared.out.load(Ordering::Relaxed)
    }

    /// Cuts all its connections. Returns how many there were.
    pub fn cut(&self) -> usize {
        let cut = std::mem::take(&mut *self.shared.live.lock().unwrap_or_else(PoisonError::into_inner));
        for (one, other) in &cut {
            // A connection that has ended already can't be cut.
            let _ = one.shutdown(Shutdown::Both);
            let _ = other.shutdown(Shutdown::Both);
        }
        cut.len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.cut();
        if let Address::Tcp(at) = &self.at {
            // Wakes the thread that accepts, which then ends.
            let _ = TcpStream::connect(at.as_str());
        }
    }
}

fn accept(listener: &TcpListener, to: &str, shared: &Arc<Shared>) {
    for came in listener.incoming() {
        if shared.closed.load(Ordering::SeqCst) {
            return;
        }
        let (Ok(came), Ok(node)) = (came, TcpStream::connect(to)) else { continue };
        let (Ok(came2), Ok(node2)) = (came.try_clone(), node.try_clone()) else { continue };
        let (Ok(came3), Ok(node3)) = (came.try_clone(), node.try_clone()) else { continue };
        shared.live.lock().unwrap_or_else(PoisonError::into_inner).push((came3, node3));
        let counted = Arc::clone(shared);
        std::thread::spawn(move || pass_on(came, node2, &AtomicU64::new(0)));
        std::thread::spawn(move || pass_on(node, came2, &counted.out));
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
    // One end is gone: so is the other.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
