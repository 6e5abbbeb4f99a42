//! A client that does not block its thread, for who asks many sockets at once.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::yield_now;

use crate::connection::attempt;
use crate::recv::{Failure, Received, Receiver};
use crate::send::Sender;
use crate::{Error, Limits, address, envelope};

/// A client of a control socket whose connection is kept from one call to the next; takes no
/// descriptors.
///
/// Must be polled by a tokio runtime with I/O. A call has no deadline: a caller that has waited
/// enough drops it, which closes the connection; the next call makes another.
#[derive(Debug)]
pub struct AsyncClient {
    path: PathBuf,
    reply: Limits,
    /// Taken by a call and put back when its reply has come whole.
    socket: Option<UnixStream>,
}

/// The reply to a call, as bytes, so that its result can be read in place.
#[derive(Debug)]
pub struct RawReply {
    method: String,
    bytes: Vec<u8>,
}

impl RawReply {
    /// The result of the call.
    /// # Errors
    /// [`Error::Remote`] if the call failed; [`Error::Reply`] if the result is of another type.
    pub fn result<'a, R: Deserialize<'a>>(&'a self) -> Result<R, Error> {
        envelope::result(&self.method, &self.bytes)
    }
}

impl AsyncClient {
    /// For the socket at `path`, to which the first call connects; a reply must be within `reply`.
    pub fn new(path: &Path, reply: Limits) -> Self {
        Self {
            path: path.to_owned(),
            reply,
            socket: None,
        }
    }

    /// Calls `method`, which must be one that may be called twice: if the server has closed the
    /// kept connection and said nothing, the call is made again over a new one.
    /// # Errors
    /// As [`Client`](crate::Client)'s: nobody serves the socket, or its queue is full; the reply is
    /// none, or is larger than allowed. That the call failed is told by [`RawReply::result`].
    pub async fn call<A>(&mut self, method: &str, arg: &A) -> Result<RawReply, Error>
    where
        A: Serialize + ?Sized,
    {
        let request = envelope::request(method, arg).map_err(|source| Error::Request {
            method: method.to_owned(),
            source,
        })?;
        if let Some(socket) = self.socket.take() {
            match self.exchange(socket, method, &request).await {
                Err(Error::Closed { .. }) => {}
                done => return done,
            }
        }
        let socket = std::os::unix::net::UnixStream::from(address::connect_now(&self.path)?);
        let socket = UnixStream::from_std(socket).map_err(epoll)?;
        self.exchange(socket, method, &request).await
    }

    async fn exchange(
        &mut self,
        socket: UnixStream,
        method: &str,
        request: &[u8],
    ) -> Result<RawReply, Error> {
        send(&socket, request).await?;
        let bytes = receive(&socket, method, Receiver::new(self.reply, 0)).await?;
        self.socket = Some(socket);
        Ok(RawReply {
            method: method.to_owned(),
            bytes,
        })
    }
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::Io { call, source }
}

fn epoll(error: std::io::Error) -> Error {
    Error::Register { source: error }
}

/// Sends all of it. It tries before it waits: a new socket has room, so the request is on its way
/// once the call was polled.
async fn send(socket: &UnixStream, request: &[u8]) -> Result<(), Error> {
    let mut sender = Sender::new(request, &[]);
    let mut sent = sender.try_send(socket.as_fd());
    loop {
        match sent {
            Ok(false) => {}
            // The server refused it early; its words may be waiting.
            Ok(true) | Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(failed("sendmsg")(errno)),
        }
        socket.writable().await.map_err(epoll)?;
        let attempted = attempt(socket, Interest::WRITABLE, |fd| {
            let sent = sender.try_send(fd);
            (sent != Ok(false)).then_some(sent)
        });
        sent = attempted.map_err(epoll)?.unwrap_or(Ok(false));
    }
}

async fn receive(
    socket: &UnixStream,
    method: &str,
    mut receiver: Receiver,
) -> Result<Vec<u8>, Error> {
    let method = || method.to_owned();
    loop {
        socket.readable().await.map_err(epoll)?;
        let received = attempt(socket, Interest::READABLE, |fd| {
            let received = receiver.try_recv(fd);
            (!matches!(received, Ok(Received::Pending))).then_some(received)
        });
        match received.map_err(epoll)? {
            Some(Ok(Received::Message(message))) => return Ok(message.bytes),
            None | Some(Ok(Received::Pending)) => {}
            Some(Ok(Received::More)) => yield_now().await,
            Some(Ok(Received::End) | Err(Failure::Recv(Errno::CONNRESET))) => {
                return Err(Error::Closed { method: method() });
            }
            Some(Err(Failure::Malformed(source))) => {
                let method = method();
                return Err(Error::Reply { method, source });
            }
            Some(Err(Failure::Recv(errno))) => return Err(failed("recvmsg")(errno)),
        }
    }
}
