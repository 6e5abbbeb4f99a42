//! `tmpcopyup`: a tmpfs that starts with what it covers.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat, chownat,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, read, write};

use crate::Error;

/// No image has directories as deep as this; it keeps the stack small.
const MAX_DEPTH: usize = 200;
const CHUNK: usize = 64 * 1024;

/// Copies what is in the directory `from` into the directory `to`: owners, modes and times stay;
/// links are copied, never followed. How much there can be is up to the size of the tmpfs.
/// # Errors
/// [`Error::CopyUp`] with the path that could not be copied.
pub(crate) fn copy_up(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    target: &Path,
) -> Result<(), Error> {
    directory((from, to), target, 0)
}

fn failed(path: &Path) -> impl Fn(Errno) -> Error {
    move |source| Error::CopyUp {
        path: path.into(),
        source,
    }
}

fn open_dir(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn directory(
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    path: &Path,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(failed(path)(Errno::NAMETOOLONG));
    }
    // The descriptors may be O_PATH ones.
    let from = open_dir(from, c".").map_err(failed(path))?;
    let to = open_dir(to, c".").map_err(failed(path))?;
    for entry in Dir::read_from(&from).map_err(failed(path))? {
        let entry = entry.map_err(failed(path))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let inside = path.join(PathBuf::from(name.to_string_lossy().into_owned()));
        let stat = statat(&from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&inside))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let mode = Mode::from_raw_mode(0o700);
            mkdirat(&to, name, mode).map_err(failed(&inside))?;
            let below = open_dir(from.as_fd(), name).map_err(failed(&inside))?;
            let copy = open_dir(to.as_fd(), name).map_err(failed(&inside))?;
            directory((below.as_fd(), copy.as_fd()), &inside, depth + 1)?;
        } else {
            file((from.as_fd(), to.as_fd()), name, kind, &stat).map_err(failed(&inside))?;
        }
        attributes(to.as_fd(), name, kind, &stat).map_err(failed(&inside))?;
    }
    Ok(())
}

fn file(
    (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
    name: &CStr,
    kind: FileType,
    stat: &Stat,
) -> Result<(), Errno> {
    match kind {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = openat(from, name, flags, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let copy = openat(to, name, flags, Mode::from_raw_mode(0o600))?;
            contents(&source, &copy)
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name),
        other => mknodat(to, name, other, Mode::from_raw_mode(0o600), stat.st_rdev),
    }
}

fn contents(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = read(from, &mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        let mut rest = &chunk[..read];
        while !rest.is_empty() {
            let written = write(to, rest)?;
            rest = &rest[written..];
        }
    }
}

fn attributes(to: BorrowedFd<'_>, name: &CStr, kind: FileType, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        // After chown(2), which takes set-user-id away.
        chmodat(
            to,
            name,
            Mode::from_raw_mode(stat.st_mode),
            AtFlags::empty(),
        )?;
    }
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
