//! Accepts connections and bounds what they may hold.

use std::cell::Cell;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::connection::Connection;
use crate::{Dispatch, Error, Limits};

/// How long accepting rests when this process or the host is out of descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What the clients of a [`Server`] may hold together.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bounds of one request.
    pub request: Limits,
    /// Bytes of one reply; a longer one becomes an error.
    pub reply_bytes: usize,
    /// Open connections; further ones are closed at once.
    pub connections: usize,
    /// Running calls, those of vanished clients included; further ones are refused.
    pub calls: usize,
    /// For a whole request from its first byte on, and for the client to take a whole reply.
    pub deadline: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            request: Limits::REQUEST,
            reply_bytes: Limits::REPLY.bytes,
            connections: 64,
            calls: 1024,
            deadline: Duration::from_secs(10),
        }
    }
}

/// What the connections of one server share.
#[derive(Debug)]
pub(crate) struct Shared<D> {
    pub(crate) dispatch: Rc<D>,
    pub(crate) bounds: Bounds,
    calls: Cell<usize>,
}

/// One running call; dropped at its end.
pub(crate) struct Slot<D>(Rc<Shared<D>>);

impl<D> Shared<D> {
    /// Room for one more call, if there is.
    pub(crate) fn slot(self: &Rc<Self>) -> Option<Slot<D>> {
        if self.calls.get() >= self.bounds.calls {
            return None;
        }
        self.calls.set(self.calls.get() + 1);
        Some(Slot(Rc::clone(self)))
    }
}

impl<D> Drop for Slot<D> {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
    }
}

/// Serves a control socket to root and to this process's own effective user.
#[derive(Debug)]
pub struct Server<D> {
    listener: UnixListener,
    shared: Rc<Shared<D>>,
}

impl<D: Dispatch + 'static> Server<D> {
    /// Takes over a listening socket, such as [`bind`](crate::bind) makes, with default [`Bounds`].
    ///
    /// Must be called inside a tokio runtime with I/O and time.
    /// # Errors
    /// The errno's kind if the socket cannot be made non-blocking or be registered.
    pub fn new(listener: impl Into<OwnedFd>, dispatch: Rc<D>) -> Result<Self, Error> {
        Self::with_bounds(listener, dispatch, Bounds::default())
    }

    /// As [`Server::new`], with other bounds.
    /// # Errors
    /// As [`Server::new`].
    pub fn with_bounds(
        listener: impl Into<OwnedFd>,
        dispatch: Rc<D>,
        bounds: Bounds,
    ) -> Result<Self, Error> {
        let listener = StdUnixListener::from(listener.into());
        let register = |source| Error::Register { source };
        listener.set_nonblocking(true).map_err(register)?;
        let listener = UnixListener::from_std(listener).map_err(register)?;
        Ok(Self {
            listener,
            shared: Rc::new(Shared {
                dispatch,
                bounds,
                calls: Cell::new(0),
            }),
        })
    }

    /// Serves until this future is dropped; must run inside a tokio `LocalSet`.
    ///
    /// Each connection and each call is a local task. Dropping the future closes all connections;
    /// calls under way run to their end as long as the `LocalSet` does. The socket's file stays.
    /// # Errors
    /// Only if the listening socket itself breaks.
    pub async fn serve(self) -> Result<Infallible, Error> {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = accept(&self.listener) => match accepted? {
                    Some(socket) => self.admit(socket, &mut connections),
                    None => tokio::time::sleep(EXHAUSTED_PAUSE).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    fn admit(&self, socket: UnixStream, connections: &mut JoinSet<()>) {
        while connections.try_join_next().is_some() {}
        if connections.len() >= self.shared.bounds.connections {
            log::debug!("urpc: connection closed, {} are open", connections.len());
            return;
        }
        if let Err(uid) = peer_is_root_or_self(&socket) {
            log::debug!("urpc: connection of uid {uid:?} closed");
            return;
        }
        let connection = Connection::new(socket, Rc::clone(&self.shared));
        connections.spawn_local(connection.serve());
    }
}

/// The next connection; `None` if there is no room for one now.
async fn accept(listener: &UnixListener) -> Result<Option<UnixStream>, Error> {
    loop {
        let error = match listener.accept().await {
            Ok((socket, _)) => return Ok(Some(socket)),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::INTR | Errno::CONNABORTED) => {}
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => return Ok(None),
            Some(source) => return Err(Error::Accept { source }),
            None => return Err(Error::Register { source: error }),
        }
    }
}

/// Otherwise the uid that connected, or `None` if the kernel names none (SO_PEERCRED, unix(7)).
fn peer_is_root_or_self(socket: &UnixStream) -> Result<(), Option<u32>> {
    let peer = socket_peercred(socket).map_err(|_| None)?;
    if peer.uid.is_root() || peer.uid == geteuid() {
        Ok(())
    } else {
        Err(Some(peer.uid.as_raw()))
    }
}
