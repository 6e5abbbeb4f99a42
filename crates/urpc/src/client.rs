//! The blocking client, for tools and tests.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::recv::{Failure, Message, Received, Receiver};
use crate::send::Sender;
use crate::{Error, Limits, MAX_FDS, Malformed, address, envelope};

/// Deadline of a connect and of each call, unless set otherwise.
const DEADLINE: Duration = Duration::from_secs(10);

/// A connection to a control socket, Berm's or gVisor's. Blocks its thread.
#[derive(Debug)]
pub struct Client {
    /// `None` once a call was given up: its late reply would pass for the next call's.
    socket: Option<OwnedFd>,
    deadline: Option<Duration>,
    reply: Limits,
    max_fds: usize,
}

impl Client {
    /// Connects to the socket at `path`, which may be of any length.
    /// # Errors
    /// The errno's kind: [`Kind::NotFound`](berm_sys::Kind::NotFound) if there is no socket,
    /// [`Kind::Unavailable`](berm_sys::Kind::Unavailable) if nobody serves it.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let socket = address::connect(path, Some(DEADLINE))?;
        Ok(Self::over(socket))
    }

    /// Takes over a connected stream socket.
    pub fn over(socket: impl Into<OwnedFd>) -> Self {
        Self {
            socket: Some(socket.into()),
            deadline: Some(DEADLINE),
            reply: Limits::REPLY,
            max_fds: MAX_FDS,
        }
    }

    /// Sets the deadline of the calls that follow; `None`, for `Wait`, waits for ever.
    pub fn set_deadline(&mut self, deadline: Option<Duration>) {
        self.deadline = deadline;
    }

    /// Sets the bounds of the replies that follow.
    pub fn set_reply_limits(&mut self, reply: Limits) {
        self.reply = reply;
    }

    /// Sets how many descriptors the replies that follow may bring, at most [`MAX_FDS`].
    ///
    /// With 0 none is ever installed: right for a server that is not trusted, because closing a
    /// descriptor of its making may block.
    pub fn set_max_fds(&mut self, max_fds: usize) {
        self.max_fds = max_fds;
    }

    /// Calls `method` with `arg`, lends it `fds`, and returns its result and descriptors.
    /// # Errors
    /// [`Error::Remote`] if the call failed; [`Error::Request`] if nothing was sent. After any
    /// other error the connection is closed and further calls return [`Error::GivenUp`].
    pub fn call<A, R>(
        &mut self,
        method: &str,
        arg: &A,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(R, Vec<OwnedFd>), Error>
    where
        A: Serialize + ?Sized,
        R: DeserializeOwned,
    {
        let unsendable = |source| Error::Request {
            method: method.to_owned(),
            source,
        };
        if fds.len() > MAX_FDS {
            return Err(unsendable(Malformed::TooManyFds));
        }
        let request = envelope::request(method, arg).map_err(unsendable)?;
        let Some(socket) = self.socket.take() else {
            return Err(Error::GivenUp {
                method: method.to_owned(),
            });
        };
        let exchange = Exchange {
            socket: socket.as_fd(),
            method,
            timer: Timer::new(self.deadline),
        };
        let reply = exchange.run(&request, fds, Receiver::new(self.reply, self.max_fds))?;
        let result = envelope::result(method, &reply.bytes);
        if !matches!(result, Err(Error::Reply { .. })) {
            self.socket = Some(socket);
        }
        Ok((result?, reply.fds))
    }
}

/// One request and its reply.
struct Exchange<'a> {
    socket: BorrowedFd<'a>,
    method: &'a str,
    timer: Timer,
}

impl Exchange<'_> {
    fn run(
        &self,
        request: &[u8],
        fds: &[BorrowedFd<'_>],
        receiver: Receiver,
    ) -> Result<Message, Error> {
        match self.send(request, fds) {
            Ok(()) => self.receive(receiver),
            // The server refused what it had read so far; its words may be waiting.
            Err(Error::Io {
                source: Errno::PIPE | Errno::CONNRESET,
                ..
            }) => self.receive(receiver),
            Err(error) => Err(error),
        }
    }

    fn send(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let mut sender = Sender::new(request, fds);
        let failed = |source| Error::Io {
            call: "sendmsg",
            source,
        };
        while !sender.try_send(self.socket).map_err(failed)? {
            self.wait(PollFlags::OUT)?;
        }
        Ok(())
    }

    fn receive(&self, mut receiver: Receiver) -> Result<Message, Error> {
        let method = || self.method.to_owned();
        loop {
            match receiver.try_recv(self.socket) {
                Ok(Received::Message(message)) => return Ok(message),
                Ok(Received::Pending) => self.wait(PollFlags::IN)?,
                Ok(Received::More) => drop(self.left()?),
                Ok(Received::End) | Err(Failure::Recv(Errno::CONNRESET)) => {
                    return Err(Error::Closed { method: method() });
                }
                Err(Failure::Malformed(source)) => {
                    return Err(Error::Reply {
                        method: method(),
                        source,
                    });
                }
                Err(Failure::Recv(source)) => {
                    return Err(Error::Io {
                        call: "recvmsg",
                        source,
                    });
                }
            }
        }
    }

    /// Waits until the socket is ready or closed, or the deadline is over.
    fn wait(&self, events: PollFlags) -> Result<(), Error> {
        let left = self.left()?;
        match poll(
            &mut [PollFd::from_borrowed_fd(self.socket, events)],
            left.as_ref(),
        ) {
            // Too early or not: the caller tries again, and comes back for what is left.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(source) => Err(Error::Io {
                call: "poll",
                source,
            }),
        }
    }

    fn left(&self) -> Result<Option<Timespec>, Error> {
        let late = |deadline| Error::Deadline {
            method: self.method.to_owned(),
            deadline,
        };
        self.timer.left().map_err(late)
    }
}

/// The deadline of one call, its request and its reply together.
struct Timer {
    start: Instant,
    deadline: Option<Duration>,
}

impl Timer {
    fn new(deadline: Option<Duration>) -> Self {
        Self {
            start: Instant::now(),
            deadline,
        }
    }

    /// What is left for poll(2), `None` without a deadline.
    /// # Errors
    /// The deadline, once it is over.
    fn left(&self) -> Result<Option<Timespec>, Duration> {
        let Some(deadline) = self.deadline else {
            return Ok(None);
        };
        let left = deadline.saturating_sub(self.start.elapsed());
        if left.is_zero() {
            return Err(deadline);
        }
        // A deadline that poll(2) cannot express is none.
        Ok(Timespec::try_from(left).ok())
    }
}
