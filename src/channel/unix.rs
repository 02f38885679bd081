//! Channels over Unix sockets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::{Acceptor, SocketChannel, connect};
use super::{Channel, ChannelError, Listener, Peer};
use crate::address::Address;
use crate::clock::Wait;

/// Connects to the socket at `path`. `None`: `wait` ended first.
///
/// # Errors
/// The system's error; `WouldBlock` if too many connections wait there to be taken in.
pub fn dial(path: &Path, wait: Wait) -> io::Result<Option<Arc<dyn Channel>>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if !connect(&socket, &SockAddr::unix(path)?, wait)? {
        return Ok(None);
    }
    Ok(Some(Arc::new(SocketChannel::new(socket, Peer(Address::Unix(path.to_owned())))?)))
}

/// Listens at `path`. A socket there that nobody listens on any more, left by a process that died, is replaced; the
/// socket is removed when the listener is dropped.
///
/// # Errors
/// The system's error; `AddrInUse` if somebody listens there, or if it is no socket.
pub fn listen(path: &Path) -> io::Result<Box<dyn Listener>> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if let Err(error) = socket.bind(&address) {
        let abandoned = Socket::new(Domain::UNIX, Type::STREAM, None)?
            .connect(&address)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        let is_socket = std::fs::symlink_metadata(path)
            .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()));
        if !abandoned || !is_socket {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        socket.bind(&address)?;
    }
    let acceptor = Acceptor::new(socket)?;
    Ok(Box::new(UnixListener { acceptor, path: path.to_owned(), address: Address::Unix(path.to_owned()) }))
}

struct UnixListener {
    acceptor: Acceptor,
    path: PathBuf,
    address: Address,
}

impl Listener for UnixListener {
    fn accept(&self, wait: Wait) -> Result<Option<Arc<dyn Channel>>, ChannelError> {
        loop {
            let Some((socket, _)) = self.acceptor.accept(wait)? else { return Ok(None) };
            match SocketChannel::new(socket, Peer(self.address.clone())) {
                Ok(channel) => return Ok(Some(Arc::new(channel))),
                Err(error) => log::debug!("a connection broke as it was taken in: {error}"),
            }
        }
    }

    fn address(&self) -> &Address {
        &self.address
    }

    fn closer(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.acceptor.closer()
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        // Whoever listens there next replaces it, if it stays.
        let _ = std::fs::remove_file(&self.path);
    }
}
