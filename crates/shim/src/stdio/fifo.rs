//! Opening containerd's fifos so that no open waits and no flag is shared.
//!
//! containerd's ends open in the background and wait for a peer. `O_RDONLY | O_NONBLOCK` never
//! waits; with that reader there, `O_WRONLY` neither waits nor fails with `ENXIO`. A flag belongs
//! to the open file description, so the process's blocking end is one of its own.
//!
//! On a busy node containerd may come to its open only after a short process has ended, and would
//! wait for a writer for ever. So its readers are waited for first, as runc's shim does.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use tokio::time::{Duration, Instant, sleep};

use crate::error::Error;

/// How long a process waits for somebody who reads what it will write. A client that never reads
/// has its process all the same, and the shim keeps what it writes until Delete.
pub(super) const READER_DEADLINE: Duration = Duration::from_secs(2);
/// Between two looks for a reader: from the first to the last, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(16);

const READ_NONBLOCK: (OFlags, &str) = (
    OFlags::RDONLY.union(OFlags::NONBLOCK),
    "O_RDONLY|O_NONBLOCK",
);
const WRITE: (OFlags, &str) = (OFlags::WRONLY, "O_WRONLY");
const WRITE_NONBLOCK: (OFlags, &str) = (
    OFlags::WRONLY.union(OFlags::NONBLOCK),
    "O_WRONLY|O_NONBLOCK",
);

/// An output fifo, held readable by the shim.
#[derive(Debug)]
pub(super) struct Output {
    /// Keeps writers from `EPIPE` and unread bytes from being dropped.
    pub(super) reader: OwnedFd,
}

/// An input fifo with both ends, neither of which blocks.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) reader: OwnedFd,
    /// Keeps the reader from an early end of file.
    pub(super) writer: OwnedFd,
}

/// The fifos that a terminal is copied from and to.
#[derive(Debug, Default)]
pub(super) struct TerminalFifos {
    pub(super) source: Option<OwnedFd>,
    pub(super) sink: Option<OwnedFd>,
}

/// Waits until containerd reads the fifos, for at most [`READER_DEADLINE`], and gives back a
/// writer of each that has a reader. A path that cannot be opened is left to whoever needs it.
pub(super) async fn wait_for_readers(paths: [&String; 2]) -> Vec<OwnedFd> {
    let until = Instant::now() + READER_DEADLINE;
    let mut writers = Vec::new();
    for path in paths.into_iter().filter(|path| !path.is_empty()) {
        let mut pause = FIRST_PAUSE;
        loop {
            match open(path, WRITE_NONBLOCK) {
                Ok(writer) => break writers.push(writer),
                // Nobody reads yet, of which there is no event.
                Err(Error::OpenStdio {
                    source: Errno::NXIO,
                    ..
                }) if Instant::now() < until => {}
                Err(_) => break,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
    writers
}

/// Opens an output fifo; `None` for an empty path, which means `/dev/null`.
/// # Errors
/// The errno of open(2) or fchown(2); `InvalidArgument` if it is not a fifo.
pub(super) fn output(
    stream: &'static str,
    path: &str,
    owner: Option<(u32, u32)>,
) -> Result<Option<Output>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let reader = open(path, READ_NONBLOCK)?;
    is_fifo(stream, path, &reader)?;
    chown(&reader, "output fifo", owner)?;
    Ok(Some(Output { reader }))
}

impl Output {
    /// A write end that waits while the fifo is full, for the process.
    pub(super) fn blocking_writer(&self, path: &str) -> Result<OwnedFd, Error> {
        open(path, WRITE)
    }

    /// A write end that does not wait, for the shim.
    pub(super) fn writer(&self, path: &str) -> Result<OwnedFd, Error> {
        open(path, WRITE_NONBLOCK)
    }
}

/// Opens the input fifo; `None` for an empty path.
/// # Errors
/// As [`output`].
pub(super) fn input(path: &str, owner: Option<(u32, u32)>) -> Result<Option<Input>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let reader = open(path, READ_NONBLOCK)?;
    is_fifo("stdin", path, &reader)?;
    let writer = open(path, WRITE_NONBLOCK)?;
    chown(&reader, "input fifo", owner)?;
    Ok(Some(Input { reader, writer }))
}

/// A pipe: the shim's read end, which does not wait, and the process's write end, which does.
/// # Errors
/// The errno of pipe2(2), ioctl(FIONBIO) or fchown(2).
pub(super) fn pipe(owner: Option<(u32, u32)>) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = ends_of_pipe("output pipe")?;
    dont_wait(&reader, "output pipe")?;
    chown(&writer, "output pipe", owner)?;
    Ok((reader, writer))
}

/// A pipe: the process's read end, which waits, and the shim's write end, which does not.
/// # Errors
/// As [`pipe`].
pub(super) fn input_pipe(owner: Option<(u32, u32)>) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = ends_of_pipe("input pipe")?;
    dont_wait(&writer, "input pipe")?;
    chown(&reader, "input pipe", owner)?;
    Ok((reader, writer))
}

fn ends_of_pipe(what: &'static str) -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::Stdio {
        call: "pipe2",
        what,
        source: e.into(),
    })
}

/// Each end has an open file description of its own: the other one goes on waiting.
fn dont_wait(fd: &OwnedFd, what: &'static str) -> Result<(), Error> {
    rustix::io::ioctl_fionbio(fd, true).map_err(|e| Error::Stdio {
        call: "ioctl(FIONBIO)",
        what,
        source: e.into(),
    })
}

/// A pipe whose both ends wait: a logger's and the process's.
/// # Errors
/// The errno of pipe2(2) or fchown(2).
pub(super) fn blocking_pipe(owner: Option<(u32, u32)>) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = ends_of_pipe("logger's pipe")?;
    chown(&writer, "logger's pipe", owner)?;
    Ok((reader, writer))
}

/// Makes an end of a pipe one that does not wait, for the shim.
/// # Errors
/// The errno of ioctl(FIONBIO).
pub(super) fn unblock(fd: OwnedFd) -> Result<OwnedFd, Error> {
    dont_wait(&fd, "logger's pipe")?;
    Ok(fd)
}

fn open(path: &str, (flags, names): (OFlags, &'static str)) -> Result<OwnedFd, Error> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::OpenStdio {
        path: path.to_owned(),
        flags: names,
        source,
    })
}

fn is_fifo(stream: &'static str, path: &str, fd: &OwnedFd) -> Result<(), Error> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::Stdio {
        call: "fstat",
        what: stream,
        source: e.into(),
    })?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        Ok(())
    } else {
        Err(Error::StdioPath {
            stream,
            path: path.to_owned(),
            why: "is not a fifo",
        })
    }
}

/// Gives the file to the ids that `io_uid` and `io_gid` name, so that the process can open its
/// own `/proc/self/fd/1`.
fn chown(fd: &OwnedFd, what: &'static str, owner: Option<(u32, u32)>) -> Result<(), Error> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|e| {
        Error::Stdio {
            call: "fchown",
            what,
            source: e.into(),
        }
    })
}
