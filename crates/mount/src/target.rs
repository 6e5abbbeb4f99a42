//! Where a mount goes: paths of an image, walked without leaving it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::Errno;

use crate::{Error, Owner};

/// What a mount's root is: both sides must be alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A directory.
    Dir,
    /// Anything else: file, socket, device.
    File,
}

impl Shape {
    /// The shape of what is behind a descriptor.
    pub(crate) fn of(fd: impl AsFd, path: &Path) -> Result<Self, Error> {
        let stat = fstat(fd).map_err(|source| Error::Stat {
            path: path.into(),
            source,
        })?;
        let dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        Ok(if dir { Self::Dir } else { Self::File })
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Dir => "directory",
            Self::File => "file",
        }
    }
}

/// Opens `path` as a process with `root` as its root directory would, magic links refused.
///
/// `Ok(None)`: it does not exist.
/// # Errors
/// [`Error::Resolve`] with the errno of openat2(2); `ELOOP` stands for a magic link.
pub fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<Option<OwnedFd>, Error> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    match openat2(
        root,
        relative,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        how,
    ) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(source) => Err(Error::Resolve {
            path: path.into(),
            source,
        }),
    }
}

/// Opens the target of a mount, making it and its parents where they are missing.
/// # Errors
/// [`Error::Shape`] when the image has another kind of file there.
pub(crate) fn open_or_make(
    root: BorrowedFd<'_>,
    path: &Path,
    shape: Shape,
) -> Result<OwnedFd, Error> {
    let found = match resolve(root, path)? {
        Some(found) => found,
        None => make(root, path, shape)?,
    };
    let is = Shape::of(&found, path)?;
    if is == shape {
        return Ok(found);
    }
    Err(Error::Shape {
        path: path.into(),
        found: is.noun(),
        wanted: shape.noun(),
    })
}

/// Makes a directory and its parents where they are missing, as root of the pod.
/// # Errors
/// As for the target of a mount.
pub fn make_dir_as(root: BorrowedFd<'_>, path: &Path, owner: Owner<'_>) -> Result<(), Error> {
    owner.act(|| make_dir(root, path).map(drop))
}

/// Opens a directory, making it and its parents where they are missing (mode 0755).
pub(crate) fn make_dir(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Error> {
    open_or_make(root, path, Shape::Dir)
}

/// Walks a path that does not resolve, name by name, and makes what is missing.
///
/// A link of the image that leads nowhere, such as `/etc/resolv.conf` of many, leads to a place
/// inside the image, and that is made, as runc does. The kernel follows no link on the way: each
/// is read, and `..` leads to the directory that was opened before, never out of the root.
fn make(root: BorrowedFd<'_>, path: &Path, shape: Shape) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Resolve {
        path: path.into(),
        source,
    };
    let mut names = Vec::new();
    push_reversed(&mut names, path);
    let mut dirs: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = names.pop() {
        if name == ".." {
            dirs.pop();
            continue;
        }
        let dir = dirs.last().map_or(root, AsFd::as_fd);
        let wanted = if names.is_empty() { shape } else { Shape::Dir };
        let found = one_step(dir, &name, wanted, path)?;
        let kind = fstat(&found).map(|s| FileType::from_raw_mode(s.st_mode));
        match kind.map_err(failed)? {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(Errno::LOOP));
                }
                let to = follow(&found, path)?;
                if to.is_absolute() {
                    dirs.clear();
                }
                push_reversed(&mut names, &to);
            }
            FileType::Directory => dirs.push(found),
            _ if names.is_empty() => return Ok(found),
            _ => return Err(failed(Errno::NOTDIR)),
        }
    }
    match dirs.pop() {
        Some(dir) => Ok(dir),
        None => root.try_clone_to_owned().map_err(|_| failed(Errno::MFILE)),
    }
}

/// As many as the kernel follows (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

fn push_reversed(names: &mut Vec<OsString>, path: &Path) {
    let named = path.components().rev().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.extend(named);
}

/// Opens a name, a link itself and not what it leads to; makes it if it is missing.
fn one_step(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    shape: Shape,
    path: &Path,
) -> Result<OwnedFd, Error> {
    let open = || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::empty())
    };
    match open() {
        Err(Errno::NOENT) => {}
        found => {
            return found.map_err(|source| Error::Resolve {
                path: path.into(),
                source,
            });
        }
    }
    let made = match shape {
        Shape::Dir => mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Shape::File => openat(
            dir,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o644),
        )
        .map(drop),
    };
    made.and_then(|()| open()).map_err(|source| Error::MakeDir {
        path: path.into(),
        source,
    })
}

/// Where a link leads; a link of proc is a door to another process, not a path.
fn follow(link: &OwnedFd, path: &Path) -> Result<PathBuf, Error> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    let failed = |source| Error::Resolve {
        path: path.into(),
        source,
    };
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)] // a magic number, not an amount
    let magic = fstatfs(link).map_err(failed)?.f_type as u64;
    if magic == PROC_SUPER_MAGIC {
        return Err(failed(Errno::LOOP));
    }
    let to = readlinkat(link, "", Vec::new()).map_err(failed)?;
    Ok(PathBuf::from(OsStr::from_bytes(to.as_bytes())))
}
