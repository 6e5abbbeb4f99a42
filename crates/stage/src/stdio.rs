//! Standard streams and terminals.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_sys::process::set_fs_ids;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, openat};
use rustix::io::Errno;
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{Error, call, sys};

/// A pseudo terminal.
pub(crate) struct Pty {
    /// Non-blocking; for the shim.
    pub(crate) master: OwnedFd,
    /// For the process.
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal on a devpts instance. The slave belongs to `uid` (host's number).
pub(crate) fn open_pty(
    devpts: BorrowedFd<'_>,
    uid: u32,
    size: Option<(u16, u16)>,
) -> Result<Pty, Error> {
    // devpts gives the slave to the fsuid of whoever opens ptmx.
    set_fs_ids(uid, 0).map_err(sys("setfsuid()"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = openat(devpts, "ptmx", flags, Mode::empty());
    set_fs_ids(0, 0).map_err(sys("setfsuid(0)"))?;
    let master = master.map_err(call("openat(devpts, \"ptmx\")"))?;
    unlockpt(&master).map_err(call("ioctl(TIOCSPTLCK)"))?;
    if let Some((rows, columns)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).map_err(call("ioctl(TIOCSWINSZ)"))?;
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(call("ioctl(TIOCGPTPEER)"))?;
    Ok(Pty { master, slave })
}

/// A new session; the terminal becomes its controlling terminal.
pub(crate) fn new_session(terminal: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    setsid().map_err(call("setsid()"))?;
    terminal.map_or(Ok(()), |fd| {
        ioctl_tiocsctty(fd).map_err(call("ioctl(TIOCSCTTY)"))
    })
}

/// The null device of the host: what a process without a stream gets.
pub(crate) fn open_null() -> Result<OwnedFd, Error> {
    openat(
        CWD,
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(call("open(\"/dev/null\")"))
}

/// Puts three descriptors to 0, 1 and 2.
pub(crate) fn install(streams: [BorrowedFd<'_>; 3]) -> Result<(), Error> {
    dup2_stdin(streams[0]).map_err(call("dup2(stdin)"))?;
    dup2_stdout(streams[1]).map_err(call("dup2(stdout)"))?;
    dup2_stderr(streams[2]).map_err(call("dup2(stderr)"))
}

/// Closes 0, 1 and 2's ties to the host: an empty pipe's ends that nobody else holds.
///
/// The sandbox's first process is in an empty mount namespace: there is no null device to open.
pub(crate) fn null_stdio() -> Result<(), Error> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(call("pipe2()"))?;
    install([read.as_fd(), write.as_fd(), write.as_fd()])
}

/// Gives pipes and fifos to the workload's user, so that it can open `/dev/stdout` anew, and lets
/// whoever it becomes do so too: nobody outside the pod can reach them.
///
/// Without root a stream may belong to somebody whose it stays (EPERM); the descriptor is as good.
pub(crate) fn own(streams: &[Option<BorrowedFd<'_>>; 3], uid: u32, gid: u32) -> Result<(), Error> {
    let [input, output, errors] = streams;
    for (stream, mode) in [(input, 0o644), (output, 0o622), (errors, 0o622)] {
        let Some(fd) = stream else { continue };
        let stat = fstat(fd).map_err(call("fstat(stdio)"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            match fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                Err(Errno::PERM) => continue,
                owned => owned.map_err(call("fchown(stdio)"))?,
            }
            fchmod(fd, Mode::from_raw_mode(mode)).map_err(call("fchmod(stdio)"))?;
        }
    }
    Ok(())
}
