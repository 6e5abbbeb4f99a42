//! Takes exactly one message at a time out of a stream socket.
//!
//! Descriptors are bound to a byte of the stream, but `recvmsg` glues the bytes of several sends
//! together and only says that descriptors came somewhere among them. So nothing is read past the
//! end of a message: the bytes are peeked at, the scanner finds the end, and that much is taken.
//! The first byte is taken by a call of its own with room for descriptors, the rest without, so
//! that descriptors elsewhere are refused without being installed. Requests that a client wrote
//! ahead wait in the kernel.
//!
//! unix(7); `unix_stream_read_generic` in net/unix/af_unix.c: a read ends behind the segment that
//! carried descriptors.

use std::io::IoSliceMut;
use std::mem::{self, MaybeUninit};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg,
};

use crate::scan::{Limits, Scanner};
use crate::{MAX_FDS, Malformed};

/// Bytes looked at per round.
const WINDOW: usize = 16 << 10;
/// Rounds per call, so that a busy peer never holds its caller longer than about 100 us.
const ROUNDS: usize = 16;

/// One message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What [`Receiver::try_recv`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message),
    /// Nothing more for now: wait until the socket is readable.
    Pending,
    /// There may be more: look at the clock and call again.
    More,
    /// The peer ended the stream between two messages.
    End,
}

/// Why the stream cannot be read on.
#[derive(Debug, PartialEq)]
pub(crate) enum Failure {
    Malformed(Malformed),
    Recv(Errno),
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Recv(errno)
    }
}

/// A message in the making.
#[derive(Debug)]
pub(crate) struct Receiver {
    limits: Limits,
    /// Most descriptors that a message may bring.
    max_fds: usize,
    scanner: Scanner,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Receiver {
    pub(crate) fn new(limits: Limits, max_fds: usize) -> Self {
        let max_fds = max_fds.min(MAX_FDS);
        Self {
            limits,
            max_fds,
            scanner: Scanner::new(limits),
            bytes: Vec::new(),
            fds: Vec::new(),
        }
    }

    /// True if part of a message is here; white space between messages is none.
    pub(crate) fn started(&self) -> bool {
        self.scanner.started() || !self.fds.is_empty()
    }

    /// Takes what is there of the next message from `socket`, without waiting.
    pub(crate) fn try_recv(&mut self, socket: BorrowedFd<'_>) -> Result<Received, Failure> {
        let mut window = [0; WINDOW];
        for _ in 0..ROUNDS {
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let seen = match retry_on_intr(|| recv(socket, &mut window, peek)) {
                Ok((seen, _)) => &window[..seen],
                Err(Errno::AGAIN) => return Ok(Received::Pending),
                Err(errno) => return Err(errno.into()),
            };
            if seen.is_empty() {
                return if self.started() {
                    Err(Malformed::CutOff.into())
                } else {
                    Ok(Received::End)
                };
            }
            // A copy of the scanner looks ahead: it says how much to take, no more.
            let mut ahead = self.scanner;
            let end = if ahead.started() {
                ahead.scan(seen)?.unwrap_or(seen.len())
            } else {
                let blank = seen
                    .iter()
                    .take_while(|byte| byte.is_ascii_whitespace())
                    .count();
                seen.len().min(blank + 1)
            };
            if let Some(message) = self.take(socket, &mut window[..end])? {
                return Ok(Received::Message(message));
            }
        }
        Ok(Received::More)
    }

    /// Takes up to a `chunk`, which reaches at most to the end of the message.
    fn take(
        &mut self,
        socket: BorrowedFd<'_>,
        chunk: &mut [u8],
    ) -> Result<Option<Message>, Failure> {
        let taken = if self.scanner.started() {
            take_bytes(socket, chunk)?
        } else {
            take_bytes_and_fds(socket, chunk, self.max_fds, &mut self.fds)?
        };
        let chunk = &chunk[..taken];
        // What was peeked at is not believed, what was taken counts.
        let end = self.scanner.scan(chunk)?;
        self.bytes.extend_from_slice(chunk);
        match end {
            None => Ok(None),
            Some(end) if end < taken => Err(Malformed::Syntax {
                at: self.bytes.len(),
            }
            .into()),
            Some(_) => {
                self.scanner = Scanner::new(self.limits);
                let bytes = mem::take(&mut self.bytes);
                Ok(Some(Message {
                    bytes,
                    fds: mem::take(&mut self.fds),
                }))
            }
        }
    }
}

/// Takes bytes; descriptors among them are never installed, and refused.
fn take_bytes(socket: BorrowedFd<'_>, chunk: &mut [u8]) -> Result<usize, Failure> {
    let mut no_room = RecvAncillaryBuffer::default();
    let (taken, truncated) = take_into(socket, chunk, &mut no_room)?;
    if truncated {
        Err(Malformed::LateFds.into())
    } else {
        Ok(taken)
    }
}

/// Takes bytes and appends the descriptors among them to `fds`, which may hold `max`.
fn take_bytes_and_fds(
    socket: BorrowedFd<'_>,
    chunk: &mut [u8],
    max: usize,
    fds: &mut Vec<OwnedFd>,
) -> Result<usize, Failure> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    // Without room the kernel installs nothing: closing a foreign descriptor may block for ever.
    let mut control = match max {
        0 => RecvAncillaryBuffer::default(),
        _ => RecvAncillaryBuffer::new(&mut space),
    };
    let (taken, truncated) = take_into(socket, chunk, &mut control)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if truncated || fds.len() > max {
        return Err(Malformed::TooManyFds.into());
    }
    Ok(taken)
}

fn take_into(
    socket: BorrowedFd<'_>,
    chunk: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
) -> Result<(usize, bool), Errno> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(chunk)], control, flags))?;
    Ok((got.bytes, got.flags.contains(ReturnFlags::CTRUNC)))
}
