//! One open cgroup directory and its files.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::Error;

/// No kernel file that we read is longer; `cgroup.procs` is read in pieces.
const MAX_FILE: usize = 256 * 1024;

/// A directory of a cgroup file system. The path is for errors only.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens `path`, a mount point.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        Self::open_at(
            rustix::fs::CWD,
            path.as_os_str().as_bytes(),
            path.to_owned(),
        )
    }

    /// Opens the cgroup `name` below `self`.
    pub(crate) fn child(&self, name: &[u8]) -> Result<Self, Error> {
        let path = self.path.join(std::ffi::OsStr::from_bytes(name));
        Self::open_at(self.fd.as_fd(), name, path)
    }

    fn open_at(at: BorrowedFd<'_>, name: &[u8], path: PathBuf) -> Result<Self, Error> {
        // Not O_PATH: getdents64 and BPF_PROG_ATTACH want a directory that is really open.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(at, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, path }),
            Err(source) => Err(Error::Open {
                path,
                flags: "O_DIRECTORY",
                source,
            }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True if the file is there.
    pub(crate) fn has(&self, file: &str) -> bool {
        rustix::fs::accessat(
            &self.fd,
            file,
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
    }

    /// Opens a file of the cgroup.
    pub(crate) fn file(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Error> {
        self.try_file(file, flags).map_err(|source| Error::Open {
            path: self.path.join(file),
            flags: if flags.contains(OFlags::WRONLY) {
                "O_WRONLY"
            } else {
                "O_RDONLY"
            },
            source,
        })
    }

    fn try_file(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.fd, file, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Writes a file in one write(2), as cgroup files want it.
    pub(crate) fn try_write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let fd = self.try_file(file, OFlags::WRONLY)?;
        write_whole(fd.as_fd(), value)
    }

    /// As `try_write`, with the error that names file and value.
    pub(crate) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        self.try_write(file, value).map_err(|source| Error::Write {
            path: self.path.join(file),
            value: value.to_owned(),
            source,
        })
    }

    /// Reads a whole file into `buf`, which is reused from call to call.
    pub(crate) fn read<'b>(&self, file: &str, buf: &'b mut Vec<u8>) -> Result<&'b str, Error> {
        let fd = self.file(file, OFlags::RDONLY)?;
        read_whole(fd.as_fd(), buf).map_err(|source| Error::Read {
            path: self.path.join(file),
            source,
        })?;
        match std::str::from_utf8(buf) {
            Ok(text) => Ok(text),
            Err(_) => Err(self.unreadable(file, &String::from_utf8_lossy(buf))),
        }
    }

    /// As `read`; `None` if the file does not exist or the kernel has the feature turned off.
    pub(crate) fn read_if_there<'b>(
        &self,
        file: &str,
        buf: &'b mut Vec<u8>,
    ) -> Result<Option<&'b str>, Error> {
        match self.read(file, buf) {
            Ok(text) => Ok(Some(text)),
            Err(Error::Open {
                source: Errno::NOENT | Errno::OPNOTSUPP,
                ..
            })
            | Err(Error::Read {
                source: Errno::OPNOTSUPP,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a file that holds one number; `max` is `u64::MAX`.
    pub(crate) fn read_u64(&self, file: &str) -> Result<u64, Error> {
        let fd = self.file(file, OFlags::RDONLY)?;
        let mut buf = [0; 32];
        let len = rustix::io::read(&fd, &mut buf).map_err(|source| Error::Read {
            path: self.path.join(file),
            source,
        })?;
        let text = String::from_utf8_lossy(&buf[..len]);
        number(&text).ok_or_else(|| self.unreadable(file, &text))
    }

    /// As `read_u64`; `None` if the file does not exist.
    pub(crate) fn read_u64_if_there(&self, file: &str) -> Result<Option<u64>, Error> {
        match self.read_u64(file) {
            Ok(value) => Ok(Some(value)),
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The value of `key` in a file of `key value` lines.
    pub(crate) fn read_key(
        &self,
        file: &str,
        key: &str,
        buf: &mut Vec<u8>,
    ) -> Result<Option<u64>, Error> {
        let text = self.read(file, buf)?;
        Ok(key_values(text)
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value))
    }

    /// The names of the sub-groups, at most `max` of them.
    pub(crate) fn children(&self, max: usize) -> Result<Vec<OsString>, Error> {
        let failed = |source| Error::Read {
            path: self.path.clone(),
            source,
        };
        let mut names = Vec::new();
        // A cgroup's link count is 2 + its children.
        if rustix::fs::fstat(&self.fd).map_err(failed)?.st_nlink <= 2 {
            return Ok(names);
        }
        let entries = match rustix::fs::Dir::read_from(&self.fd) {
            Ok(entries) => entries,
            // Removed meanwhile.
            Err(Errno::NOENT) => return Ok(names),
            Err(source) => return Err(failed(source)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".."
            {
                if names.len() == max {
                    break;
                }
                names.push(std::ffi::OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    /// The error of a file whose text is not what the kernel's documentation promises.
    pub(crate) fn unreadable(&self, file: &str, text: &str) -> Error {
        Error::Parse {
            path: self.path.join(file),
            text: text.chars().take(80).collect(),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Writes `value` in one write(2); a short write would be a broken kernel.
pub(crate) fn write_whole(fd: BorrowedFd<'_>, value: &str) -> Result<(), Errno> {
    match rustix::io::write(fd, value.as_bytes()) {
        Ok(len) if len == value.len() => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(errno) => Err(errno),
    }
}

/// Reads from offset 0 to the end, at most [`MAX_FILE`] bytes.
pub(crate) fn read_whole(fd: BorrowedFd<'_>, buf: &mut Vec<u8>) -> Result<(), Errno> {
    let mut len = 0;
    loop {
        if buf.len() < len + 4096 {
            buf.resize(len + 8192, 0);
        }
        match rustix::io::pread(fd, &mut buf[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
        if len > MAX_FILE {
            return Err(Errno::FBIG);
        }
    }
    buf.truncate(len);
    Ok(())
}

/// A number as cgroup files print it: `max` is `u64::MAX`, a negative one 0.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.trim_end() {
        "max" => Some(u64::MAX),
        text => text
            .parse()
            .ok()
            .or_else(|| text.parse::<i64>().ok().map(|_| 0)),
    }
}

/// The lines of a `key value` file; others are skipped, because kernels add new forms.
pub(crate) fn key_values(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, number(value)?))
    })
}
