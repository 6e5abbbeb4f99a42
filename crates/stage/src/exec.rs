//! Finding the command and becoming it.

use std::ffi::CString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berm_sys::Kind;
use berm_sys::process;
use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags, accessat, fstat, stat};
use rustix::io::{Errno, pread};

use crate::error::{Error, call};

/// Looks `command` up as Go's `exec.LookPath` does, whose words users know from runc.
pub(crate) fn resolve(command: &str, path: Option<&str>, cwd: &Path) -> Result<PathBuf, Error> {
    if command.contains('/') {
        let at = cwd.join(command);
        return executable(&at)
            .map(|()| at)
            .map_err(|source| not_executable(command, source));
    }
    let mut denied = false;
    for dir in path
        .unwrap_or_default()
        .split(':')
        .filter(|dir| dir.starts_with('/'))
    {
        let at = Path::new(dir).join(command);
        match executable(&at) {
            Ok(()) => return Ok(at),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied && !command.is_empty() {
        return Err(not_executable(command, Errno::ACCESS));
    }
    Err(Error::NotInPath {
        command: command.to_owned(),
    })
}

fn executable(path: &Path) -> Result<(), Errno> {
    let stat = stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    if stat.st_mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()) {
        Err(Errno::NOSYS) => Ok(()),
        checked => checked,
    }
}

fn not_executable(command: &str, errno: Errno) -> Error {
    let (reason, kind) = match errno {
        Errno::NOENT => (
            format!("stat {command}: no such file or directory"),
            Kind::NotFound,
        ),
        Errno::ISDIR => ("is a directory".to_owned(), Kind::InvalidArgument),
        Errno::NOTDIR => (
            format!("stat {command}: not a directory"),
            Kind::InvalidArgument,
        ),
        Errno::LOOP => (
            format!("stat {command}: too many levels of symbolic links"),
            Kind::InvalidArgument,
        ),
        _ => ("permission denied".to_owned(), Kind::Denied),
    };
    Error::NotExecutable {
        command: command.to_owned(),
        reason,
        kind,
    }
}

fn strings(field: &'static str, list: &[String]) -> Result<Vec<CString>, Error> {
    let one = |s: &String| CString::new(s.as_bytes()).map_err(|_| Error::Nul { field });
    list.iter().map(one).collect()
}

/// What a process becomes.
#[derive(Debug)]
pub(crate) enum Program<'a> {
    /// A file of the container's.
    Path(PathBuf),
    /// One of the host's, close-on-exec.
    File(BorrowedFd<'a>),
}

/// Refuses what execve(2) would refuse only once the process is somebody else, and a script: the
/// kernel tells the interpreter to open `/dev/fd/<n>`, where nothing is any more by then.
pub(crate) fn check_file(file: BorrowedFd<'_>) -> Result<(), Error> {
    let refused = |reason, kind| Err(Error::ExecFile { reason, kind });
    let stat = fstat(file).map_err(call("fstat(exec_file)"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return refused("is no regular file", Kind::InvalidArgument);
    }
    if stat.st_mode & 0o111 == 0 {
        return refused("has no permission to be executed", Kind::Denied);
    }
    let mut first = [0; 2];
    match pread(file, &mut first, 0) {
        Ok(2) if first == *b"#!" => refused(
            "is a script, which its interpreter could not open; donate the interpreter, and the \
             script by pass_files",
            Kind::NotSupported,
        ),
        // One that is not open for reading is executed all the same.
        Ok(_) | Err(Errno::BADF) => Ok(()),
        Err(source) => Err(call("pread(exec_file)")(source)),
    }
}

/// Becomes the command; returns only when that failed.
pub(crate) fn exec(
    program: &Program<'_>,
    args: &[String],
    env: &[String],
    home: Option<String>,
) -> Result<(), Error> {
    let (argv, mut envp) = (strings("process.args", args)?, strings("process.env", env)?);
    let home = home.map(|home| CString::new(format!("HOME={home}")));
    envp.extend(home.transpose().map_err(|_| Error::Nul { field: "HOME" })?);
    let errno = |source: &std::io::Error| Errno::from_io_error(source).unwrap_or(Errno::IO);
    match program {
        Program::Path(path) => {
            let file = CString::new(path.as_os_str().as_bytes());
            let file = file.map_err(|_| Error::Nul { field: "args" })?;
            let Err(source) = process::execve(&file, &argv, &envp);
            Err(Error::Exec {
                path: path.clone(),
                errno: errno(&source),
            })
        }
        Program::File(file) => {
            let Err(source) = process::fexecve(*file, &argv, &envp);
            Err(Error::FileExec {
                errno: errno(&source),
            })
        }
    }
}

/// Longest `/etc/passwd` that is searched.
const MAX_PASSWD: u64 = 1 << 20;

/// The home directory of a user, from the container's own `/etc/passwd`; `/` if it has none.
pub(crate) fn home(uid: u32) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    // An image without the file, or with one that cannot be read, has no homes.
    let read = std::fs::OpenOptions::new()
        .read(true)
        // What an image put there may be a fifo.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open("/etc/passwd")
        .and_then(|file| file.take(MAX_PASSWD).read_to_end(&mut text));
    let text = if read.is_ok() {
        String::from_utf8_lossy(&text)
    } else {
        "".into()
    };
    home_in(&text, uid).unwrap_or("/").to_owned()
}

/// Field six of the line whose third is `uid` (passwd(5)).
fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let of = fields.nth(2)?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (of == uid && home.starts_with('/')).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_that_of_the_first_line_with_the_uid() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad\nwww:x:33:33::/var/www:\nw2:x:33:33::/no:\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 33), Some("/var/www"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in("a:x:7:7::relative:", 7), None);
    }
}
