//! The socketpair between a stage child and the process that forked it.
//!
//! A SOCK_SEQPACKET pair, close-on-exec on both sides: one message per packet, JSON, bounded, at
//! most one descriptor. The child's end is gone when it execs, so end of file without a
//! [`Message::Failed`] means that the workload runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// Larger than any message: errors are cut before they are sent.
const MAX_MESSAGE: usize = 8 * 1024;
/// Longest text of an error or a warning.
const MAX_TEXT: usize = 2 * 1024;

/// What a stage child tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Something could not be applied as asked, for want of privilege of the host side itself.
    Warning(String),
    /// The master of the process's terminal comes with this message.
    Pty,
    /// The container's devpts comes with this message.
    Devpts,
    /// What the child was to make comes with this message.
    Made,
    /// A process was cloned; its pidfd comes with this message.
    Init,
    /// A connection comes with this message.
    Socket,
    /// The listener of the child's filter has this number in the child, which waits at its gate.
    Listener(i32),
    /// The tree stands where hooks look for it: the child waits at its gate until they are done.
    Hooks,
    /// The child waits at its gate.
    Created,
    /// A step failed; nothing follows.
    Failed(Failure),
}

/// The step that failed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Position of the step in its plan, from 1.
    pub step: usize,
    /// Its name.
    pub name: String,
    /// Name of the [`berm_sys::Kind`].
    pub kind: String,
    /// The whole error, innermost cause last.
    pub text: String,
}

/// A message and the descriptor that came with it.
#[derive(Debug)]
pub struct Report {
    /// What was told.
    pub message: Message,
    /// The descriptor of `Pty`, `Devpts`, `Made`, `Init` and `Socket`.
    pub fd: Option<OwnedFd>,
}

/// The parent's end of the pair.
#[derive(Debug)]
pub struct Gate(OwnedFd);

/// Makes the pair: the parent's end, non-blocking, and the child's, blocking.
/// # Errors
/// The errno of socketpair(2).
pub fn channel() -> Result<(Gate, OwnedFd), Errno> {
    let (parent, child) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&parent, true)?;
    Ok((Gate(parent), child))
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Gate {
    /// Takes the next message; `Ok(None)`: the child has none left and its end is closed.
    /// # Errors
    /// `EAGAIN` while there is none; `EPROTO` for one that no stage child sends.
    pub fn receive(&self) -> Result<Option<Report>, Errno> {
        let mut bytes = [0u8; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&self.0, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let fd = control.drain().find_map(|m| match m {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if got.bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..got.bytes]).map_err(|_| Errno::PROTO)?;
        Ok(Some(Report { message, fd }))
    }

    /// Lets the child at its gate go on.
    /// # Errors
    /// `EPIPE` when the child is gone.
    pub fn open(&self) -> Result<(), Errno> {
        rustix::net::send(&self.0, b"s", SendFlags::NOSIGNAL).map(drop)
    }
}

/// Sends one message; called in the child.
pub(crate) fn send(
    to: BorrowedFd<'_>,
    message: &Message,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::PROTO)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(
        to,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// Sends one message without a descriptor, by no call but write(2).
pub(crate) fn write_alone(to: BorrowedFd<'_>, message: &Message) -> Result<(), Errno> {
    let bytes = serde_json::to_vec(message).map_err(|_| Errno::PROTO)?;
    rustix::io::write(to, &bytes).map(drop)
}

/// Waits for the parent's word; `false`: the parent is gone.
pub(crate) fn wait_at_gate(from: BorrowedFd<'_>) -> bool {
    let mut byte = [0u8; 1];
    loop {
        match rustix::io::read(from, &mut byte) {
            Err(Errno::INTR) => {}
            got => return got == Ok(1),
        }
    }
}

/// Cuts a text to what a message carries, at a character's end.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut at = MAX_TEXT;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
        text.push('…');
    }
    text
}
