//! Puts one message into a stream socket.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::MAX_FDS;

/// A message on its way out; its descriptors leave with the first byte.
#[derive(Debug)]
pub(crate) struct Sender<'a> {
    bytes: &'a [u8],
    sent: usize,
    fds: &'a [BorrowedFd<'a>],
}

impl<'a> Sender<'a> {
    /// `fds` must be [`MAX_FDS`] at most.
    pub(crate) fn new(bytes: &'a [u8], fds: &'a [BorrowedFd<'a>]) -> Self {
        Self {
            bytes,
            sent: 0,
            fds,
        }
    }

    /// Sends what `socket` takes without waiting; true once all is sent.
    pub(crate) fn try_send(&mut self, socket: BorrowedFd<'_>) -> Result<bool, Errno> {
        while self.sent < self.bytes.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let with_fds = self.sent == 0 && !self.fds.is_empty();
            if with_fds && !control.push(SendAncillaryMessage::ScmRights(self.fds)) {
                return Err(Errno::INVAL);
            }
            let iov = [IoSlice::new(&self.bytes[self.sent..])];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match retry_on_intr(|| sendmsg(socket, &iov, &mut control, flags)) {
                Ok(sent) => self.sent += sent,
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }
}
