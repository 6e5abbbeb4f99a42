//! Why something of a sandbox cannot run, told to whom it belongs: one line each, time and text.
//!
//! gVisor's `--user-log`. A line is written by a child with a deadline: whatever file system the
//! log lies on, neither the call that has failed nor the pod waits for it for long. A line that
//! cannot be written is told in the caller's own log.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use berm_plan::Spec;
use berm_sys::Kind;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use crate::aside::Aside;
use crate::config::Config;
use crate::error::Error;
use crate::live::Live;
use crate::task::Task;

/// How long a line may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Largest log that a line is added to, in bytes.
const MAX_LOG: u64 = 1 << 20;
/// Longest text of a line, in characters.
const MAX_TEXT: usize = 2048;
/// Name of the file in a pod's log directory.
const NAME: &str = "berm.log";

/// Where messages for the user go.
#[derive(Debug)]
pub enum UserLog {
    /// A file that is open for appending.
    File(OwnedFd),
    /// An absolute path, for a directory that others may write to: made when there is something
    /// to tell, opened anew for each line, and left alone if a part of the path is a symbolic
    /// link, or the file is none or has a second name.
    Path(PathBuf),
}

impl UserLog {
    /// `berm.log` in the log directory that CRI names for a pod, if the configuration asks for it.
    pub(crate) fn of_pod(config: &Config, spec: &Spec) -> Result<Option<Self>, Error> {
        let Some(dir) = spec.log_directory().filter(|_| config.user_log) else {
            return Ok(None);
        };
        if !dir.is_absolute() {
            return Err(Error::LogDirectory { path: dir.into() });
        }
        Ok(Some(Self::Path(dir.join(NAME))))
    }

    /// Adds the line that `what` failed, and why.
    pub(crate) async fn tell(&self, what: &str, error: &Error, deadline: Duration) {
        if let Some(line) = message(what, error) {
            self.add(&line, deadline).await;
        }
    }

    async fn add(&self, line: &str, deadline: Duration) {
        if let Err(e) = self.append(line, deadline.min(DEADLINE)).await {
            log::warn!("call=UserLog err={:?}", e.chain());
        }
    }

    async fn append(&self, line: &str, deadline: Duration) -> Result<(), Error> {
        let keep = match self {
            Self::File(file) => vec![file.as_fd()],
            Self::Path(_) => Vec::new(),
        };
        let act = || {
            self.write(line.as_bytes())
                .map_err(|source| berm_stage::Error::Sys {
                    call: "write(user_log)",
                    source,
                })
        };
        let writing = Aside::begin("UserLog", deadline, |report| {
            berm_stage::spawn_aside("Aside", report, &keep, act)
        })?;
        writing.end_well("UserLog").await
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => append(file.as_fd(), line),
            Self::Path(path) => append(open(path)?.as_fd(), line),
        }
    }
}

/// Opens a log where others may have put something else in its place.
fn open(path: &Path) -> io::Result<OwnedFd> {
    // Neither a fifo nor a terminal is waited for or taken.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(CWD, path, flags, Mode::from_raw_mode(0o640), resolve)?;
    let stat = fstat(&file)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !regular || stat.st_nlink != 1 {
        return Err(io::Error::other("is no regular file of one name"));
    }
    Ok(file)
}

fn append(file: BorrowedFd<'_>, mut line: &[u8]) -> io::Result<()> {
    let stat = fstat(file)?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if regular && u64::try_from(stat.st_size).is_ok_and(|size| size >= MAX_LOG) {
        return Err(Errno::FBIG.into());
    }
    while !line.is_empty() {
        match rustix::io::write(file, line) {
            Err(Errno::INTR) => {}
            written => line = line.get(written?..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// The line, if it is for the user.
fn message(what: &str, error: &Error) -> Option<String> {
    is_for_the_user(error).then(|| line(SystemTime::now(), what, &error.chain()))
}

/// One line, whatever a path or a message of the pod's has in it.
fn line(at: SystemTime, what: &str, why: &str) -> String {
    let mut text = humantime::format_rfc3339_millis(at).to_string();
    text += &format!(" {what} failed: ");
    for c in why.chars().take(MAX_TEXT) {
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text.push('\n');
    text
}

/// Whether it says why something does not run, and not only that the call came at a wrong time.
fn is_for_the_user(error: &Error) -> bool {
    !matches!(error.kind(), Kind::AlreadyExists | Kind::FailedPrecondition)
        && !matches!(
            error,
            Error::NoContainer { .. }
                | Error::NoExec { .. }
                | Error::NoSandbox { .. }
                | Error::SandboxGone { .. }
                | Error::BadId { .. }
                | Error::Finished
        )
}

impl Live {
    /// Keeps what the user calls a container, if anything will be told of it.
    pub(crate) fn name_for_user(&self, task: &Task, spec: &Spec) {
        if let (Some(name), true) = (spec.container_name(), self.user_log.get().is_some()) {
            task.name.get_or_init(|| name.to_owned());
        }
    }

    /// Tells the sandbox's user, if there is somewhere to, that `what` of a container failed.
    pub(crate) async fn tell_user(&self, what: &str, task: &Task, error: &Error) {
        if let Some(log) = self.user_log.get() {
            log.tell(&about(what, task), error, self.host.config.stage_deadline)
                .await;
        }
    }

    /// The same for a call that waits for nothing.
    pub(crate) fn tell_user_later(self: &Rc<Self>, what: &str, task: &Task, error: &Error) {
        if self.user_log.get().is_none() {
            return;
        }
        let Some(line) = message(&about(what, task), error) else {
            return;
        };
        let live = Rc::clone(self);
        tokio::task::spawn_local(async move {
            if let Some(log) = live.user_log.get() {
                log.add(&line, live.host.config.stage_deadline).await;
            }
        });
    }
}

fn about(what: &str, task: &Task) -> String {
    match task.name.get() {
        Some(name) => format!("{what} container {name:?} ({})", task.id),
        None => format!("{what} container {:?}", task.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_its_time_and_an_end() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_234);
        let told = line(at, "start of container \"c\"", "no\nsuch\u{1b}[31m \"ü\"");
        let want = "1970-01-01T00:00:01.234Z start of container \"c\" failed: \
            no\\nsuch\\u{1b}[31m \"ü\"\n";
        assert_eq!(told, want);
        let long = line(at, "x", &"y".repeat(MAX_TEXT * 2));
        assert!(long.len() < MAX_TEXT + 64 && long.ends_with("y\n"));
    }

    #[test]
    fn a_file_with_a_second_name_a_link_or_a_fifo_is_no_log_for_others_to_choose() {
        let dir = std::env::temp_dir().join(format!("berm-user-log-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("real")).unwrap();
        let path = |name: &str| dir.join(name);
        std::fs::write(path("victim"), "kept\n").unwrap();
        std::os::unix::fs::symlink("victim", path("link")).unwrap();
        std::os::unix::fs::symlink("real", path("dir")).unwrap();
        std::fs::hard_link(path("victim"), path("second")).unwrap();
        let fifo = Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(CWD, path("fifo"), fifo).unwrap();
        for bad in ["link", "dir/log", "second", "fifo", "real", "none/log"] {
            let log = UserLog::Path(path(bad));
            assert!(log.write(b"x\n").is_err(), "{bad}");
        }
        assert_eq!(std::fs::read_to_string(path("victim")).unwrap(), "kept\n");
        let log = UserLog::Path(path("real/log"));
        log.write(b"one\n").unwrap();
        log.write(b"two\n").unwrap();
        let read = std::fs::read_to_string(path("real/log"));
        assert_eq!(read.unwrap(), "one\ntwo\n");
        std::fs::write(path("real/log"), vec![b'x'; 1 << 20]).unwrap();
        let full = log.write(b"x\n").unwrap_err();
        assert_eq!(full.raw_os_error(), Some(Errno::FBIG.raw_os_error()));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
