//! The file in whose file system a container's own writable layer lies.
//!
//! It has no name (O_TMPFILE) and can get none: it is gone with its last user, whoever dies when.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berm_plan::UpperFile;
use berm_sys::process;
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, fstatvfs, ftruncate, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::error::{Error, call, sys};
use crate::exec::Program;
use crate::report::{Message, send};
use crate::spawn::{finish, fork_in};
use crate::{exec, stdio};

/// Where e2fsprogs is installed.
const PROGRAMS: [&str; 4] = [
    "/usr/sbin/mkfs.ext4",
    "/sbin/mkfs.ext4",
    "/usr/bin/mkfs.ext4",
    "/usr/local/sbin/mkfs.ext4",
];
/// No journal: nobody mounts it a second time. Nothing is kept back for root.
const OPTIONS: [&str; 8] = [
    "-q",
    "-F",
    "-m",
    "0",
    "-O",
    "^has_journal,^resize_inode",
    "-E",
    "lazy_itable_init=1,nodiscard",
];
/// Where the program finds the file, and keeps the channel open for as long as it runs.
const FILE: i32 = 3;
const REPORT: i32 = 4;
/// Copies are made above, so that none is overwritten before it is moved.
const ABOVE: i32 = 10;

/// What the file is made of.
#[derive(Debug)]
pub struct UpperFileJob<'a> {
    /// Where, and how large.
    pub file: &'a UpperFile,
    /// What the program complains of.
    pub errors: BorrowedFd<'a>,
    /// The child's end of the channel: it is closed when the program has ended.
    pub report: BorrowedFd<'a>,
}

/// Forks a child that makes the file, hands it over by [`Message::Made`] and becomes mkfs.ext4;
/// gives back its pidfd.
/// # Errors
/// The errno of fork(2).
pub fn spawn_upper_file(job: &UpperFileJob<'_>) -> Result<OwnedFd, Error> {
    fork_in(None, None, || job.run())
}

impl UpperFileJob<'_> {
    fn run(&self) -> Infallible {
        let done = self.become_mkfs();
        finish(self.report, 1, "UpperFile", done)
    }

    fn become_mkfs(&self) -> Result<(), Error> {
        process::close_all_but(&[self.report, self.errors]).map_err(sys("close_range()"))?;
        let program = mkfs().ok_or(Error::NoMkfs)?;
        let file = self.make()?;
        send(self.report, &Message::Made, Some(file.as_fd())).map_err(call("sendmsg(file)"))?;
        let high = |fd: BorrowedFd<'_>| {
            fcntl_dupfd_cloexec(fd, ABOVE).map_err(call("fcntl(F_DUPFD_CLOEXEC)"))
        };
        let (file, report) = (high(file.as_fd())?, high(self.report)?);
        let null = stdio::open_null()?;
        stdio::install([null.as_fd(), null.as_fd(), self.errors])?;
        for (fd, number) in [(&file, FILE), (&report, REPORT)] {
            process::place(fd.as_fd(), number).map_err(sys("dup2()"))?;
        }
        let mut args = vec!["mkfs.ext4".to_owned()];
        args.extend(OPTIONS.map(str::to_owned));
        args.push(format!("/proc/self/fd/{FILE}"));
        exec::exec(&Program::Path(program.into()), &args, &[], None)
    }

    fn make(&self) -> Result<OwnedFd, Error> {
        let failed = |call| {
            move |source| Error::UpperFile {
                call,
                dir: self.file.dir.clone(),
                source,
            }
        };
        // O_EXCL: nobody can give it a name later on.
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = openat(CWD, &self.file.dir, flags, mode).map_err(failed("O_TMPFILE"))?;
        let size = match self.file.size_bytes {
            Some(size) => size,
            None => {
                let stat = fstatvfs(&file).map_err(failed("statvfs"))?;
                stat.f_bavail.saturating_mul(stat.f_frsize)
            }
        };
        ftruncate(&file, size).map_err(failed("ftruncate"))?;
        Ok(file)
    }
}

/// Where this node has mkfs.ext4, if it has it.
pub fn mkfs() -> Option<&'static Path> {
    let can = |path: &&&str| {
        let checked = accessat(CWD, **path, Access::EXEC_OK, AtFlags::empty());
        !matches!(checked, Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS))
    };
    PROGRAMS.iter().find(can).map(Path::new)
}
