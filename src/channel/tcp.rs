//! Channels over TCP.

use std::io;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::socket::{Acceptor, SocketChannel, connect};
use super::{Channel, ChannelError, Listener, Peer};
use crate::address::Address;
use crate::clock::Wait;

/// How long a connection is silent before the system probes it, and how long sent bytes may stay unacknowledged.
const KEEPALIVE: Duration = Duration::from_secs(10);
const USER_TIMEOUT: Duration = Duration::from_secs(30);

fn channel(socket: Socket, peer: Address) -> io::Result<Arc<dyn Channel>> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(Arc::new(SocketChannel::new(socket, Peer(peer))?))
}

/// Connects to `HOST:PORT`, trying the host's addresses one after the other. `None`: `wait` ended first. Resolving a
/// name blocks as long as the system's resolver takes.
///
/// # Errors
/// The system's error for the last address tried.
pub fn dial(host_port: &str, wait: Wait) -> io::Result<Option<Arc<dyn Channel>>> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for to in host_port.to_socket_addrs()? {
        let to = SockAddr::from(to);
        let socket = Socket::new(to.domain(), Type::STREAM, Some(Protocol::TCP))?;
        match connect(&socket, &to, wait) {
            Ok(true) => return channel(socket, Address::Tcp(host_port.to_owned())).map(Some),
            Ok(false) => return Ok(None),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Listens at `HOST:PORT`; port 0 takes a free one, which [`Listener::address`] tells.
///
/// # Errors
/// The system's error.
pub fn listen(host_port: &str) -> io::Result<Box<dyn Listener>> {
    let mut failed = io::Error::from(io::ErrorKind::NotFound);
    for at in host_port.to_socket_addrs()? {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if let Err(error) = socket.bind(&at.into()) {
            failed = error;
            continue;
        }
        let acceptor = Acceptor::new(socket)?;
        let port = acceptor.socket().local_addr()?.as_socket().map_or(at.port(), |at| at.port());
        let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
        let address = Address::Tcp(format!("{host}:{port}"));
        return Ok(Box::new(TcpListener { acceptor, address }));
    }
    Err(failed)
}

struct TcpListener {
    acceptor: Acceptor,
    address: Address,
}

impl Listener for TcpListener {
    fn accept(&self, wait: Wait) -> Result<Option<Arc<dyn Channel>>, ChannelError> {
        loop {
            let Some((socket, from)) = self.acceptor.accept(wait)? else { return Ok(None) };
            let from = from.as_socket().map_or_else(|| "?:0".to_owned(), |from| from.to_string());
            match channel(socket, Address::Tcp(from)) {
                Ok(channel) => return Ok(Some(channel)),
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
