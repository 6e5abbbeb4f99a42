//! The caller's terminal, connected to one inside a sandbox.

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, errno, io};

/// Refuses where there is nothing to connect.
pub(crate) fn require() -> Result<(), Error> {
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        return Ok(());
    }
    Err(Error::Argument {
        what: "--tty".into(),
        reason: "stdin and stdout must be a terminal",
    })
}

/// The caller's terminal in raw mode; as before when dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self, Error> {
        let before = tcgetattr(std::io::stdin()).map_err(errno("ioctl(stdin, TCGETS)"))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)
            .map_err(errno("ioctl(stdin, TCSETSW)"))?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to be told of a terminal that is gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// Copies between the caller's terminal and `master` until the other side hangs up; keeps the
/// sizes equal. `master` is non-blocking.
///
/// The caller's terminal stays in blocking mode, because other programs share it: it is read
/// only when there is something to read.
pub(crate) async fn attach(master: OwnedFd) -> Result<(), Error> {
    let raw = Raw::new()?;
    let attached = copy(master).await;
    drop(raw);
    attached
}

async fn copy(master: OwnedFd) -> Result<(), Error> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let stdin = stdin.map_err(io("fcntl(stdin, F_DUPFD)"))?;
    let stdin = polled(stdin, Interest::READABLE)?;
    let master = polled(master, Interest::READABLE | Interest::WRITABLE)?;
    let mut resized = signal(SignalKind::window_change()).map_err(io("sigaction(SIGWINCH)"))?;
    resize(&master);
    let mut typed = [0; 4096];
    let mut shown = [0; 16 << 10];
    loop {
        tokio::select! {
            ready = master.readable() => {
                let mut ready = ready.map_err(io("epoll_wait(pty)"))?;
                match read(&master, &mut shown) {
                    // EIO: nobody has the other side open any more.
                    Ok(0) | Err(Errno::IO) => return Ok(()),
                    Ok(len) => write_all(&shown[..len])?,
                    Err(Errno::AGAIN) => ready.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(e) => return Err(errno("read(pty)")(e)),
                }
            }
            ready = stdin.readable() => {
                let mut ready = ready.map_err(io("epoll_wait(stdin)"))?;
                let len = retry_on_intr(|| read(&stdin, &mut typed));
                let len = len.map_err(errno("read(stdin)"))?;
                // Level and edge differ: the next byte makes it ready again.
                ready.clear_ready();
                if len == 0 {
                    return Ok(());
                }
                if !type_in(&master, &typed[..len]).await? {
                    return Ok(());
                }
            }
            _ = resized.recv() => resize(&master),
        }
    }
}

fn polled(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, Error> {
    // Deprecated for values that give another number each time; its successor is unsafe. An
    // `OwnedFd` never changes its number.
    #[allow(deprecated)]
    AsyncFd::with_interest(fd, interest).map_err(io("epoll_ctl()"))
}

fn resize(master: &AsyncFd<OwnedFd>) {
    // A terminal without a size leaves the other one as it is.
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        let _ = tcsetwinsize(master, size);
    }
}

fn write_all(mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        match write(std::io::stdout(), bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(errno("write(stdout)")(e)),
        }
    }
    Ok(())
}

/// False if the other side is gone.
async fn type_in(master: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> Result<bool, Error> {
    while !bytes.is_empty() {
        let mut ready = master.writable().await.map_err(io("epoll_wait(pty)"))?;
        match write(master, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(Errno::IO) => return Ok(false),
            Err(e) => return Err(errno("write(pty)")(e)),
        }
    }
    Ok(true)
}
