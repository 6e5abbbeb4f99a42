//! A process's logger: a child on the host's side that has the read ends of its output.
//!
//! It is a program that containerd's client named, or a copy of both streams into one file: that
//! can wait for a slow disk, which the forking process must not.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berm_sys::process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::error::{Error, call, sys};
use crate::report::{Message, send};
use crate::spawn::finish;

/// Where a program finds its descriptors: both streams and the pipe on which it says that it is
/// ready. Copies are made above, so that none is overwritten before it is moved.
const FIRST: i32 = 3;
const ABOVE: i32 = 10;
/// Bytes per read: a pipe's default size.
const CHUNK: usize = 64 << 10;

/// What takes the output.
#[derive(Debug)]
pub enum Logger<'a> {
    /// A program, with its whole environment and the write end of its ready pipe.
    Program {
        /// Absolute path; also its `argv[0]`.
        path: &'a Path,
        /// What follows.
        args: &'a [String],
        /// `NAME=value`
        env: &'a [String],
        /// Descriptor 5.
        ready: BorrowedFd<'a>,
    },
    /// A file that is appended to; made, with its directories, if it is missing.
    File(&'a Path),
}

/// A logger and every descriptor that it gets.
#[derive(Debug)]
pub struct LoggerJob<'a> {
    /// What takes the output.
    pub logger: Logger<'a>,
    /// Read ends of stdout and stderr.
    pub streams: [BorrowedFd<'a>; 2],
    /// The child's end of the [`crate::channel`]: its end of file means that a program runs,
    /// [`Message::Created`] that the file is open.
    pub report: BorrowedFd<'a>,
}

impl LoggerJob<'_> {
    pub(crate) fn run(&self) -> Infallible {
        let high = |fd| fcntl_dupfd_cloexec(fd, ABOVE).map_err(call("fcntl(F_DUPFD_CLOEXEC)"));
        let report = match high(self.report) {
            Ok(report) => report,
            Err(e) => finish(self.report, 1, "Logger", Err(e)),
        };
        let streams = self.streams.map(high);
        let done = match (streams, &self.logger) {
            (
                [Ok(out), Ok(err)],
                Logger::Program {
                    path,
                    args,
                    env,
                    ready,
                },
            ) => high(*ready)
                .and_then(|ready| become_program([out, err, ready], path, args, env, &report)),
            ([Ok(out), Ok(err)], Logger::File(path)) => append([out, err], path, &report),
            ([Err(e), _] | [_, Err(e)], _) => Err(e),
        };
        finish(report.as_fd(), 1, "Logger", done)
    }
}

fn become_program(
    fds: [OwnedFd; 3],
    path: &Path,
    args: &[String],
    env: &[String],
    report: &OwnedFd,
) -> Result<(), Error> {
    let text = |s: &[u8]| CString::new(s).map_err(|_| Error::Nul { field: "logger" });
    let file = text(path.as_os_str().as_encoded_bytes())?;
    let rest: Result<Vec<_>, _> = args.iter().map(|arg| text(arg.as_bytes())).collect();
    let env: Result<Vec<_>, _> = env.iter().map(|entry| text(entry.as_bytes())).collect();
    let argv: Vec<_> = std::iter::once(file.clone()).chain(rest?).collect();
    let [out, err, ready] = &fds;
    process::close_all_but(&[out.as_fd(), err.as_fd(), ready.as_fd(), report.as_fd()])
        .map_err(sys("close_range()"))?;
    for (number, fd) in (FIRST..).zip(&fds) {
        process::place(fd.as_fd(), number).map_err(sys("dup2()"))?;
    }
    let Err(source) = process::execve(&file, &argv, &env?);
    Err(Error::Exec {
        path: path.to_owned(),
        errno: Errno::from_io_error(&source).unwrap_or(Errno::IO),
    })
}

/// Carries both streams into the file until nobody holds their other ends.
fn append(streams: [OwnedFd; 2], path: &Path, report: &OwnedFd) -> Result<(), Error> {
    let failed = |source| Error::LogFile {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)?;
    let [out, err] = &streams;
    process::close_all_but(&[out.as_fd(), err.as_fd(), file.as_fd(), report.as_fd()])
        .map_err(sys("close_range()"))?;
    // Without it `ps` would show another shim.
    rustix::thread::set_name(c"berm-log-file").map_err(call("prctl(PR_SET_NAME)"))?;
    send(report.as_fd(), &Message::Created, None).map_err(call("sendmsg()"))?;
    copy(Vec::from(streams), &mut file).map_err(failed)
}

fn copy(mut streams: Vec<OwnedFd>, file: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while !streams.is_empty() {
        let mut fds: Vec<_> = streams
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        let mut failed = Ok(());
        streams.retain(|fd| {
            if failed.is_err() || !ready.next().unwrap_or_default() {
                return true;
            }
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => false,
                Ok(n) => {
                    failed = file.write_all(buffer.get(..n).unwrap_or_default());
                    true
                }
                Err(Errno::INTR | Errno::AGAIN) => true,
                Err(e) => {
                    failed = Err(e.into());
                    true
                }
            }
        });
        failed?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_streams_reach_the_file_whole_whoever_ends_first() {
        let (out, mut to_out) = io::pipe().unwrap();
        let (err, mut to_err) = io::pipe().unwrap();
        to_err.write_all(b"e").unwrap();
        drop(to_err);
        let writer = std::thread::spawn(move || to_out.write_all(&[b'o'; 300_000]).unwrap());
        let mut file = Vec::new();
        copy(vec![out.into(), err.into()], &mut file).unwrap();
        writer.join().unwrap();
        assert_eq!(file.iter().filter(|byte| **byte == b'o').count(), 300_000);
        assert_eq!(file.len(), 300_001);
    }
}
