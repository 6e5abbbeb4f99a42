//! The master side of a process's terminal.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::watch;
use crate::error::Error;

/// A pty master until somebody hangs up.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    input_ended: Cell<bool>,
    input_end: Notify,
}

impl Terminal {
    /// Takes a non-blocking master.
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub(super) fn new(master: OwnedFd) -> Result<Self, Error> {
        let master = watch(
            master,
            Interest::READABLE | Interest::WRITABLE,
            "pty master",
        )?;
        Ok(Self {
            master: RefCell::new(Some(Rc::new(master))),
            input_ended: Cell::new(false),
            input_end: Notify::new(),
        })
    }

    fn master(&self) -> Option<Rc<AsyncFd<OwnedFd>>> {
        self.master.borrow().clone()
    }

    /// Sets the size in characters; nothing happens after the hang-up.
    /// # Errors
    /// The errno of ioctl(TIOCSWINSZ).
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        let Some(master) = self.master() else {
            return Ok(());
        };
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&*master, size).map_err(|e| Error::Stdio {
            call: "ioctl(TIOCSWINSZ)",
            what: "pty master",
            source: e.into(),
        })
    }

    /// Waits for output. `None` once the last process has closed the terminal.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(master) = self.master() else {
            return Ok(None);
        };
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut *buffer)?);
        ended_at_eio(master.async_io(Interest::READABLE, read).await)
    }

    /// Takes what is there; `None` if that is nothing.
    pub(super) fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(master) = self.master() else {
            return Ok(None);
        };
        match rustix::io::read(&*master, buffer) {
            Err(Errno::AGAIN) => Ok(None),
            other => ended_at_eio(other.map_err(io::Error::from)),
        }
    }

    /// Writes input. False once nobody holds the terminal any more.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            let Some(master) = self.master() else {
                return Ok(false);
            };
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            match ended_at_eio(master.async_io(Interest::WRITABLE, write).await)? {
                Some(n) => bytes = bytes.get(n..).unwrap_or_default(),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Closes the master: the kernel sends SIGHUP to the session on the other side.
    pub(super) fn hang_up(&self) {
        self.master.borrow_mut().take();
    }

    /// Tells the output side that no input will come any more.
    pub(super) fn input_ended(&self) {
        self.input_ended.set(true);
        self.input_end.notify_waiters();
    }

    /// Waits for [`Self::input_ended`].
    pub(super) async fn wait_input_end(&self) {
        let end = self.input_end.notified();
        if !self.input_ended.get() {
            end.await;
        }
    }
}

/// The kernel's word for "no slave is open" is EIO.
fn ended_at_eio(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}
