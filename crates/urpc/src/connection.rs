//! One client: request, call, reply, again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use berm_sys::Kind;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, timeout, timeout_at};

use crate::envelope::{self, Request};
use crate::recv::{Failure, Message, Received, Receiver};
use crate::send::Sender;
use crate::server::Shared;
use crate::{CallError, Dispatch, MAX_FDS, Malformed, Reply};

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the client")]
    Closed,
    #[error("closed by the client during a call, which runs on")]
    Vanished,
    #[error("refused: {0}")]
    Refused(Malformed),
    #[error("request not complete within the deadline")]
    SlowRequest,
    #[error("reply not taken within the deadline")]
    SlowReply,
    #[error("{0}() failed: {1}")]
    Io(&'static str, Errno),
    #[error("epoll: {0}")]
    Runtime(#[from] io::Error),
}

pub(crate) struct Connection<D> {
    socket: UnixStream,
    receiver: Receiver,
    shared: Rc<Shared<D>>,
}

impl<D: Dispatch + 'static> Connection<D> {
    pub(crate) fn new(socket: UnixStream, shared: Rc<Shared<D>>) -> Self {
        let receiver = Receiver::new(shared.bounds.request, MAX_FDS);
        Self {
            socket,
            receiver,
            shared,
        }
    }

    /// Serves the client until it leaves or has to go.
    pub(crate) async fn serve(mut self) {
        let end = loop {
            if let Err(end) = self.serve_one().await {
                break end;
            }
        };
        let parting = match &end {
            End::Refused(malformed) => CallError::new(Kind::InvalidArgument, malformed.to_string()),
            End::SlowRequest => CallError::new(Kind::DeadlineExceeded, end.to_string()),
            _ => return log::debug!("urpc: connection {end}"),
        };
        // A client that is still writing may never see it: all the more it is told if it can.
        let told = self.answer(Err(parting)).await;
        log::debug!("urpc: connection {end}, told: {}", told.is_ok());
    }

    async fn serve_one(&mut self) -> Result<(), End> {
        let message = self.message().await?;
        let request = Request::parse(&message.bytes).map_err(End::Refused)?;
        drop(message.bytes);
        let result = match self.spawn(request, message.fds) {
            Some(mut call) => tokio::select! {
                biased;
                joined = &mut call => joined.unwrap_or_else(|_| {
                    Err(CallError::new(Kind::Internal, "call ended without a result"))
                }),
                gone = gone(&self.socket) => return Err(gone),
            },
            None => Err(CallError::new(
                Kind::Unavailable,
                "too many calls are running",
            )),
        };
        self.answer(result).await
    }

    /// Starts the call in a task of its own, which does not end with this connection.
    fn spawn(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Option<JoinHandle<Result<Reply, CallError>>> {
        let slot = self.shared.slot()?;
        let dispatch = Rc::clone(&self.shared.dispatch);
        Some(tokio::task::spawn_local(async move {
            let result = dispatch.call(&request.method, request.arg, fds).await;
            drop(slot);
            result
        }))
    }

    /// Waits for a request: without limit for its first byte, then until the deadline.
    async fn message(&mut self) -> Result<Message, End> {
        let mut deadline = None;
        loop {
            let readable = self.socket.readable();
            match deadline {
                None => readable.await?,
                Some(at) => timeout_at(at, readable)
                    .await
                    .map_err(|_| End::SlowRequest)??,
            }
            let received = attempt(&self.socket, Interest::READABLE, |fd| {
                let received = self.receiver.try_recv(fd);
                (!matches!(received, Ok(Received::Pending))).then_some(received)
            });
            match received? {
                Some(Ok(Received::Message(message))) => return Ok(message),
                None | Some(Ok(Received::Pending)) => {}
                Some(Ok(Received::More)) => yield_now().await,
                Some(Ok(Received::End) | Err(Failure::Recv(Errno::CONNRESET))) => {
                    return Err(End::Closed);
                }
                Some(Err(Failure::Malformed(malformed))) => return Err(End::Refused(malformed)),
                Some(Err(Failure::Recv(errno))) => return Err(End::Io("recvmsg", errno)),
            }
            if deadline.is_none() && self.receiver.started() {
                deadline = Some(Instant::now() + self.shared.bounds.deadline);
            }
        }
    }

    /// Sends the reply to a call and closes its descriptors.
    async fn answer(&self, result: Result<Reply, CallError>) -> Result<(), End> {
        let (bytes, fds) = self.encode(result).map_err(End::Refused)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let mut sender = Sender::new(&bytes, &fds);
        let sent = send(&self.socket, &mut sender);
        timeout(self.shared.bounds.deadline, sent)
            .await
            .map_err(|_| End::SlowReply)?
    }

    fn encode(
        &self,
        result: Result<Reply, CallError>,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), Malformed> {
        let limit = self.shared.bounds.reply_bytes;
        let refusal = match result {
            Err(error) => error,
            Ok(reply) if reply.fds.len() > MAX_FDS => {
                CallError::new(Kind::Internal, format!("reply: {}", Malformed::TooManyFds))
            }
            Ok(reply) => {
                let bytes = envelope::success(&reply.result)?;
                if bytes.len() <= limit {
                    return Ok((bytes, reply.fds));
                }
                CallError::new(
                    Kind::Internal,
                    format!("reply: {}", Malformed::TooLarge { limit }),
                )
            }
        };
        Ok((envelope::failure(refusal)?, Vec::new()))
    }
}

/// Sends until all is sent. It tries before it waits: [`gone`] may have eaten the readiness.
async fn send(socket: &UnixStream, sender: &mut Sender<'_>) -> Result<(), End> {
    let mut sent = sender.try_send(socket.as_fd());
    loop {
        if sent.map_err(|errno| End::Io("sendmsg", errno))? {
            return Ok(());
        }
        socket.writable().await?;
        let attempted = attempt(socket, Interest::WRITABLE, |fd| {
            let sent = sender.try_send(fd);
            (sent != Ok(false)).then_some(sent)
        });
        sent = attempted?.unwrap_or(Ok(false));
    }
}

/// Waits until the client has closed its socket; one that only ended its writing still listens.
async fn gone(socket: &UnixStream) -> End {
    loop {
        match socket.ready(Interest::WRITABLE).await {
            Ok(ready) if ready.is_write_closed() => return End::Vanished,
            // Forget that there is room, so that the next wait is for news.
            Ok(_) => match attempt(socket, Interest::WRITABLE, |_| None::<()>) {
                Ok(_) => {}
                Err(error) => return End::Runtime(error),
            },
            Err(error) => return End::Runtime(error),
        }
    }
}

/// Runs `call`; where it returns `None`, because it would block, the runtime forgets that the
/// socket was ready.
pub(crate) fn attempt<T>(
    socket: &UnixStream,
    interest: Interest,
    call: impl FnOnce(BorrowedFd<'_>) -> Option<T>,
) -> io::Result<Option<T>> {
    let tried = socket.try_io(interest, || {
        call(socket.as_fd()).ok_or(io::ErrorKind::WouldBlock.into())
    });
    match tried {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
