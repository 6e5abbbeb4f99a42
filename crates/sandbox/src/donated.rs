//! What a process is given beside its three streams: files of the host under numbers of its own,
//! and the program itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::console::{self, ConsoleSocket};
use crate::error::{Error, call};

/// What a process is given beside its streams; usually nothing.
#[derive(Debug, Default)]
pub struct Donated {
    /// Files that it finds open under these numbers, in any order; all others are closed.
    ///
    /// The container can do with them what they were opened for, whatever else keeps it from the
    /// host: a directory of the host's is a way out of it.
    pub pass_files: Vec<PassFile>,
    /// The program, whatever `process.args[0]` names, which it gets as it is (fexecve(3)).
    ///
    /// It is closed by then: a script, whose interpreter would have to open it again, is refused.
    /// It is for the workload's user to execute, and nobody may have it open for writing. A
    /// dynamic program finds its libraries in the container. Root of a pod without a user
    /// namespace can write to the file by `/proc/self/exe` unless it is sealed, or read-only by
    /// its mount.
    pub exec_file: Option<OwnedFd>,
    /// Path of the unix stream socket on which somebody waits for the terminal's master, in place
    /// of the caller; the process must have a terminal. The connection is made first; a process
    /// whose terminal cannot be given away after that is ended.
    pub console_socket: Option<PathBuf>,
}

/// A file of the host's that a process finds open.
#[derive(Debug)]
pub struct PassFile {
    /// Its number in the process: from 3 on, below the process's `RLIMIT_NOFILE`, and no other
    /// file's.
    pub guest: i32,
    /// The file. Its flags are the process's as well: the two share one open file description.
    pub file: OwnedFd,
}

impl Donated {
    /// Refuses numbers that no file of the process can have, and a socket for a terminal that it
    /// does not have.
    pub(crate) fn check(&self, terminal: bool) -> Result<(), Error> {
        console::check(self.console_socket.as_deref(), terminal)?;
        let mut seen: Vec<i32> = Vec::with_capacity(self.pass_files.len());
        for PassFile { guest, .. } in &self.pass_files {
            let reason = match guest {
                ..0 => "is no number of a file",
                0..=2 => "is a standard stream; donate that as stdio",
                _ if seen.contains(guest) => "is there twice",
                _ => {
                    seen.push(*guest);
                    continue;
                }
            };
            return Err(Error::PassFile {
                guest: *guest,
                reason,
            });
        }
        Ok(())
    }

    /// Connects to who waits for the terminal.
    pub(crate) async fn console(&self, deadline: Duration) -> Result<Option<ConsoleSocket>, Error> {
        match &self.console_socket {
            Some(path) => ConsoleSocket::connect(path, deadline).await.map(Some),
            None => Ok(None),
        }
    }

    /// For a stage child, which must not lose one of them when it puts another in its place: all
    /// are moved above the numbers that the process will see. Nothing to move costs nothing.
    /// # Errors
    /// `InvalidArgument` for a number beyond the caller's own `RLIMIT_NOFILE`.
    pub(crate) fn lift(self) -> Result<Lifted, Error> {
        let highest = self.pass_files.iter().map(|pass| pass.guest).max();
        let mut lifted = Lifted {
            // The streams' numbers are taken in any case.
            highest: highest.unwrap_or(2),
            pass_files: Vec::with_capacity(self.pass_files.len()),
            exec_file: None,
        };
        lifted.exec_file = self.exec_file.map(|file| lifted.lift(file)).transpose()?;
        for PassFile { guest, file } in self.pass_files {
            let file = lifted.lift(file)?;
            lifted.pass_files.push((guest, file));
        }
        Ok(lifted)
    }
}

/// Files on their way into a process.
#[derive(Debug, Default)]
pub(crate) struct Lifted {
    highest: i32,
    pass_files: Vec<(i32, OwnedFd)>,
    exec_file: Option<OwnedFd>,
}

impl Lifted {
    /// Moves a descriptor above every number that the process will see.
    pub(crate) fn lift(&self, fd: OwnedFd) -> Result<OwnedFd, Error> {
        if fd.as_raw_fd() > self.highest {
            return Ok(fd);
        }
        let guest = self.highest;
        let above = guest.checked_add(1).ok_or(Errno::INVAL);
        match above.and_then(|above| fcntl_dupfd_cloexec(&fd, above)) {
            Err(Errno::INVAL) => Err(Error::PassFile {
                guest,
                reason: "is beyond RLIMIT_NOFILE of the process that makes the sandbox",
            }),
            copy => copy.map_err(call("fcntl(F_DUPFD_CLOEXEC)")),
        }
    }

    pub(crate) fn pass_files(&self) -> Vec<(i32, BorrowedFd<'_>)> {
        let files = self.pass_files.iter();
        files.map(|(guest, file)| (*guest, file.as_fd())).collect()
    }

    pub(crate) fn exec_file(&self) -> Option<BorrowedFd<'_>> {
        self.exec_file.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(guests: &[i32]) -> Donated {
        let pass = |guest: &i32| PassFile {
            guest: *guest,
            file: std::fs::File::open("/dev/null").unwrap().into(),
        };
        Donated {
            pass_files: guests.iter().map(pass).collect(),
            ..Donated::default()
        }
    }

    #[test]
    fn streams_and_numbers_that_are_there_twice_are_refused() {
        for (guests, want) in [
            (&[0][..], "pass_files 0: is a standard stream"),
            (&[5, 2], "pass_files 2: is a standard stream"),
            (&[-1], "pass_files -1: is no number"),
            (&[7, 8, 7], "pass_files 7: is there twice"),
        ] {
            let error = of(guests).check(false).unwrap_err();
            assert!(error.to_string().starts_with(want), "{error}");
            assert_eq!(error.kind(), berm_sys::Kind::InvalidArgument);
        }
        of(&[]).check(false).unwrap();
        of(&[9, 3, 1000]).check(false).unwrap();
    }

    #[test]
    fn what_is_passed_lies_above_every_number_that_it_will_have() {
        let lifted = of(&[3, 200, 4]).lift().unwrap();
        let files = lifted.pass_files();
        assert_eq!(
            files.iter().map(|(to, _)| *to).collect::<Vec<_>>(),
            [3, 200, 4]
        );
        assert!(files.iter().all(|(_, file)| file.as_raw_fd() > 200));
        let error = of(&[i32::MAX]).lift().unwrap_err();
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        assert!(of(&[]).lift().unwrap().pass_files().is_empty());
    }
}
