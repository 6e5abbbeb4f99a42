//! Connections that somebody may keep waiting for: to a port of a pod, made inside its network
//! namespace, and to a socket of the host.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use berm_sys::process::{flags, setns};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::aside::spawn_aside;
use crate::error::{Error, call, sys};
use crate::report::{Message, send};

/// Forks a child that connects to `port` of the loopback addresses of the network namespace
/// `netns`, 127.0.0.1 first, and hands over the socket by [`Message::Socket`]; gives back its
/// pidfd.
/// # Errors
/// The errno of fork(2).
pub fn spawn_connect(
    report: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    port: u16,
    patience: Duration,
) -> Result<OwnedFd, Error> {
    spawn_aside("Connect", report, &[netns], || {
        connect(report, netns, port, patience)
    })
}

fn connect(
    report: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    port: u16,
    patience: Duration,
) -> Result<(), Error> {
    setns(netns, flags::NEWNET).map_err(sys("setns(pod, CLONE_NEWNET)"))?;
    let to = |address: SocketAddr| {
        TcpStream::connect_timeout(&address, patience)
            .map_err(|source| Error::Connect { address, source })
    };
    let stream = to((Ipv4Addr::LOCALHOST, port).into())
        // What listens may do so on IPv6 alone; without it the first refusal says more.
        .or_else(|first| to((Ipv6Addr::LOCALHOST, port).into()).map_err(|_| first))?;
    send(report, &Message::Socket, Some(stream.as_fd())).map_err(call("sendmsg(socket)"))
}

/// Forks a child that connects to a unix stream socket of the host and hands over the connection
/// by [`Message::Socket`]; gives back its pidfd.
/// # Errors
/// The errno of fork(2).
pub fn spawn_connect_unix(report: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    spawn_aside("Connect", report, &[], || {
        let socket = connect_unix(path)?;
        send(report, &Message::Socket, Some(socket.as_fd())).map_err(call("sendmsg(socket)"))
    })
}

/// A stream to whoever listens at `path`.
pub(crate) fn connect_unix(path: &Path) -> Result<OwnedFd, Error> {
    let address = SocketAddrUnix::new(path).map_err(call("sockaddr_un"))?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(call("socket()"))?;
    net::connect(&socket, &address).map_err(call("connect()"))?;
    Ok(socket)
}
