//! A seccomp filter's listener on its way to the agent that answers.
//!
//! In a child, because nobody knows how long an agent lets others wait.

use std::convert::Infallible;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;

use berm_sys::process;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};

use crate::connect::connect_unix;
use crate::error::{Error, call, sys};
use crate::spawn::finish;

/// What is handed over to whom.
#[derive(Debug)]
pub struct ListenerJob<'a> {
    /// The child's end of the channel.
    pub report: BorrowedFd<'a>,
    /// The agent's socket, a path of the host.
    pub path: &'a Path,
    /// The container process state.
    pub state: &'a str,
    /// The listener.
    pub listener: BorrowedFd<'a>,
}

impl ListenerJob<'_> {
    /// The child's life.
    pub(crate) fn run(&self) -> Infallible {
        finish(self.report, 1, "SeccompListener", self.hand_over())
    }

    fn hand_over(&self) -> Result<(), Error> {
        process::close_all_but(&[self.report, self.listener]).map_err(sys("close_range()"))?;
        let socket = connect_unix(self.path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [self.listener];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let mut rest = self.state.as_bytes();
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(&socket, &[IoSlice::new(rest)], &mut control, flags);
        rest = &rest[sent.map_err(call("sendmsg()"))?..];
        while !rest.is_empty() {
            match send(&socket, rest, flags) {
                Err(Errno::INTR) => {}
                sent => rest = &rest[sent.map_err(call("send()"))?..],
            }
        }
        Ok(())
    }
}
