//! Runs a program to its end with a deadline, and keeps all that it wrote.
//!
//! `std::process::Child::wait_with_output` has no deadline; this polls the two pipes, stdin and
//! the pidfd instead. It returns when the program has ended and what is in the pipes is read:
//! a child in the background that keeps a pipe open does not hold it up.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, call};

/// What a program left: its code and its output.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// 0 to 255, or 128 plus the signal that ended it.
    pub code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// The output of a program that succeeded.
    /// # Errors
    /// [`Error::Failed`] with what it wrote to stderr.
    pub fn ok(self) -> Result<Self, Error> {
        if self.code == 0 {
            return Ok(self);
        }
        let stderr = self.stderr.trim();
        let said = if stderr.is_empty() {
            self.stdout.trim()
        } else {
            stderr
        };
        Err(Error::Failed {
            command: self.command,
            code: self.code,
            stderr: said.to_owned(),
        })
    }
}

/// `limit` on a machine that is slower by `$BERM_PATIENCE` (a whole number, 1 if it is not set).
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    let factor = std::env::var("BERM_PATIENCE");
    limit * factor.ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Runs `command` with `stdin` as its input, for at most `limit`, made [`patient`]; then it is
/// killed.
/// # Errors
/// [`Error::Exec`] if it cannot be started, [`Error::Deadline`] if it took too long.
pub fn run(mut command: Command, stdin: &[u8], limit: Duration) -> Result<Output, Error> {
    let (line, limit) = (line(&command), patient(limit));
    let input = if stdin.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    command
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::Exec {
        program: command.get_program().into(),
        source,
    })?;
    let mut io = Io::take(&mut child, stdin)?;
    let status = io.drive(&mut child, Instant::now() + limit)?;
    let Some(status) = status else {
        // It may have ended since: both calls may fail, and the deadline is the news.
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::Deadline { what: line, limit });
    };
    Ok(Output {
        command: line,
        code: code(status),
        stdout: String::from_utf8_lossy(&io.out).into_owned(),
        stderr: String::from_utf8_lossy(&io.err).into_owned(),
    })
}

/// Seconds between tries of what asks a mirror of packages: it may be out of reach for a moment.
const RESTS: [u64; 4] = [2, 10, 30, 60];

/// Does what needs a mirror of packages until it works: five tries, with rests between.
/// # Errors
/// Those of the last try.
pub(crate) fn insist<T>(mut what: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    for seconds in RESTS {
        match what() {
            Err(error @ (Error::Failed { .. } | Error::Deadline { .. })) => {
                let why = crate::error::chain(&error);
                eprintln!("{why}; tried again in {seconds} s");
                crate::guard::pause(Duration::from_secs(seconds));
            }
            done => return done,
        }
    }
    what()
}

/// The exit code that a shell would show.
#[must_use]
pub fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Opens a pidfd, which becomes readable when the process ends.
/// # Errors
/// The errno of pidfd_open(2); ESRCH when there is no such process.
pub fn pidfd(pid: u32) -> Result<OwnedFd, Error> {
    let what = || format!("pidfd_open({pid}, 0)");
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = raw.ok_or_else(|| call(what())(rustix::io::Errno::INVAL))?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(call(what()))
}

/// Waits until `fd` is readable, at most until `end`; false when the time is over.
/// # Errors
/// The errno of poll(2).
pub fn readable(fd: impl AsFd, end: Instant) -> Result<bool, Error> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll_until(&mut fds, end)
}

fn poll_until(fds: &mut [PollFd<'_>], end: Instant) -> Result<bool, Error> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let spec = rustix::event::Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(fds, Some(&spec)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(call("poll")(errno)),
        }
    }
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

struct Io<'a> {
    stdin: Option<ChildStdin>,
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    out: Vec<u8>,
    err: Vec<u8>,
    pidfd: OwnedFd,
}

impl<'a> Io<'a> {
    fn take(child: &mut Child, input: &'a [u8]) -> Result<Self, Error> {
        let io = Self {
            stdin: child.stdin.take(),
            input,
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            out: Vec::new(),
            err: Vec::new(),
            pidfd: pidfd(child.id())?,
        };
        for fd in [
            io.stdin.as_ref().map(AsFd::as_fd),
            io.stdout.as_ref().map(AsFd::as_fd),
            io.stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            rustix::io::ioctl_fionbio(fd, true).map_err(call("ioctl(FIONBIO)"))?;
        }
        Ok(io)
    }

    fn drive(&mut self, child: &mut Child, end: Instant) -> Result<Option<ExitStatus>, Error> {
        loop {
            let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
            fds.extend(
                self.stdin
                    .as_ref()
                    .map(|fd| PollFd::new(fd, PollFlags::OUT)),
            );
            fds.extend(
                self.stdout
                    .as_ref()
                    .map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            fds.extend(
                self.stderr
                    .as_ref()
                    .map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            if !poll_until(&mut fds, end)? {
                return Ok(None);
            }
            let ended = !fds[0].revents().is_empty();
            drop(fds);
            self.feed();
            drain(&mut self.stdout, &mut self.out);
            drain(&mut self.stderr, &mut self.err);
            if ended {
                return child.wait().map(Some).map_err(call("wait4"));
            }
        }
    }

    fn feed(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(self.input) {
            Ok(n) => self.input = &self.input[n..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            // The program closed its input: what it thinks of that shows in its exit code.
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }
}

/// Reads what there is, and drops the pipe at its end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) {
    let Some(reader) = pipe else { return };
    // `read_to_end` keeps what it read before EAGAIN; any other error ends the stream.
    match reader.read_to_end(into) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
        _ => *pipe = None,
    }
}
