//! A call that does not block its thread, for who asks many sockets at once.

use std::path::Path;

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::yield_now;

use crate::connection::attempt;
use crate::recv::{Failure, Received, Receiver};
use crate::send::Sender;
use crate::{Error, Limits, address, envelope};

/// Calls `method` of the socket at `path` over a connection of its own; takes no descriptors.
///
/// Without a deadline: the caller drops it when it has waited enough, which closes the connection.
/// Must be polled by a tokio runtime with I/O.
/// # Errors
/// As [`Client`](crate::Client)'s: nobody serves the socket, or its queue is full; the reply is
/// none, or is larger than `limits`; the call failed.
pub async fn call<A, R>(path: &Path, method: &str, arg: &A, limits: Limits) -> Result<R, Error>
where
    A: Serialize + ?Sized,
    R: DeserializeOwned,
{
    let request = envelope::request(method, arg).map_err(|source| Error::Request {
        method: method.to_owned(),
        source,
    })?;
    let socket = std::os::unix::net::UnixStream::from(address::connect_now(path)?);
    let socket = UnixStream::from_std(socket).map_err(|source| Error::Register { source })?;
    send(&socket, &request).await?;
    let reply = receive(&socket, method, Receiver::new(limits, 0)).await?;
    envelope::result(method, &reply)
}

fn failed(call: &'static str) -> impl Fn(Errno) -> Error {
    move |source| Error::Io { call, source }
}

fn epoll(error: std::io::Error) -> Error {
    Error::Register { source: error }
}

async fn send(socket: &UnixStream, request: &[u8]) -> Result<(), Error> {
    let mut sender = Sender::new(request, &[]);
    loop {
        socket.writable().await.map_err(epoll)?;
        let sent = attempt(socket, Interest::WRITABLE, |fd| {
            let sent = sender.try_send(fd);
            (sent != Ok(false)).then_some(sent)
        });
        match sent.map_err(epoll)? {
            None | Some(Ok(false)) => {}
            // The server refused it early; its words may be waiting.
            Some(Ok(true) | Err(Errno::PIPE | Errno::CONNRESET)) => return Ok(()),
            Some(Err(errno)) => return Err(failed("sendmsg")(errno)),
        }
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
