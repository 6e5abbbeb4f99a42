//! Pathname sockets: bind and connect, with paths of any length.
//!
//! A socket address holds 107 bytes of path. A longer one is reached through its directory:
//! `/proc/self/fd/<dirfd>/<name>`, as gVisor does. Names in the abstract namespace are not used,
//! because they have no owner and no mode.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, fchmod, fstat, mkdirat, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, connect as connect_to,
    listen, socket_with,
};
use rustix::process::geteuid;

use crate::Error;

/// Bytes of a path that fit into `sockaddr_un` with their NUL.
const SUN_PATH: usize = 107;
/// Connections that wait for `accept4`: gVisor's figure.
const BACKLOG: i32 = 16;

/// A socket's address, and the directory that keeps it valid.
struct Address {
    address: SocketAddrUnix,
    _directory: Option<OwnedFd>,
}

/// Creates the listening socket `path` with mode 0600.
///
/// Its directory is created with mode 0700 if only that is missing. The file is left to the caller
/// to remove: only it knows whether a socket that is already there is still served.
/// # Errors
/// [`Kind::Denied`](berm_sys::Kind::Denied) if the directory is another user's or open to others;
/// [`Kind::AlreadyExists`](berm_sys::Kind::AlreadyExists) if `path` exists; otherwise the errno's.
pub fn bind(path: &Path) -> Result<OwnedFd, Error> {
    let directory = private_directory(path)?;
    let address = address(path, directory)?;
    let socket = stream_socket()?;
    let failed = |call| {
        move |source| Error::Bind {
            call,
            path: path.to_owned(),
            source,
        }
    };
    // The file gets the socket's own mode less the umask: no moment with a wider one.
    fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("fchmod"))?;
    bind_to(&socket, &address.address).map_err(failed("bind"))?;
    listen(&socket, BACKLOG).map_err(failed("listen"))?;
    Ok(socket)
}

/// Connects to `path`; waits at most `deadline` for room in the server's queue.
pub(crate) fn connect(path: &Path, deadline: Option<Duration>) -> Result<OwnedFd, Error> {
    let address = address(path, None)?;
    let socket = stream_socket()?;
    let failed = |source| Error::Connect {
        path: path.to_owned(),
        source,
    };
    // unix_stream_connect() waits for the queue as long as a send may take.
    set_socket_timeout(&socket, Timeout::Send, deadline).map_err(failed)?;
    retry_on_intr(|| connect_to(&socket, &address.address)).map_err(failed)?;
    Ok(socket)
}

/// Connects to `path` without waiting: a full queue is [`Errno::AGAIN`]. The socket never blocks.
pub(crate) fn connect_now(path: &Path) -> Result<OwnedFd, Error> {
    let address = address(path, None)?;
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    connect_to(&socket, &address.address).map_err(|source| Error::Connect {
        path: path.to_owned(),
        source,
    })?;
    Ok(socket)
}

fn stream_socket() -> Result<OwnedFd, Error> {
    socket(SocketFlags::CLOEXEC)
}

fn socket(flags: SocketFlags) -> Result<OwnedFd, Error> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|source| Error::Socket { source })
}

/// Opens the directory of `path`, made if missing; refuses one that others can reach.
fn private_directory(path: &Path) -> Result<Option<OwnedFd>, Error> {
    let (parent, _) = split(path)?;
    match mkdirat(CWD, parent, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(source) => {
            return Err(Error::Mkdir {
                path: parent.to_owned(),
                source,
            });
        }
    }
    let directory = open_directory(parent)?;
    let open = |source| Error::OpenDir {
        path: parent.to_owned(),
        source,
    };
    let stat = fstat(&directory).map_err(open)?;
    let mode = stat.st_mode & 0o7777;
    if stat.st_uid != geteuid().as_raw() || mode & 0o077 != 0 {
        return Err(Error::Exposed {
            path: parent.to_owned(),
            uid: stat.st_uid,
            mode,
        });
    }
    Ok(Some(directory))
}

/// The address of `path`; a long one goes through `directory`, opened if not given.
fn address(path: &Path, directory: Option<OwnedFd>) -> Result<Address, Error> {
    let (parent, name) = split(path)?;
    let bad = |source| Error::Path {
        path: path.to_owned(),
        source,
    };
    if path.as_os_str().len() <= SUN_PATH {
        let address = SocketAddrUnix::new(path).map_err(bad)?;
        return Ok(Address {
            address,
            _directory: directory,
        });
    }
    let directory = match directory {
        Some(directory) => directory,
        None => open_directory(parent)?,
    };
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    if short.as_os_str().len() > SUN_PATH {
        return Err(bad(Errno::NAMETOOLONG));
    }
    let address = SocketAddrUnix::new(&short).map_err(bad)?;
    Ok(Address {
        address,
        _directory: Some(directory),
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|source| Error::OpenDir {
        path: path.to_owned(),
        source,
    })
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Error> {
    let bad = || Error::Path {
        path: path.to_owned(),
        source: Errno::INVAL,
    };
    let name = path.file_name().ok_or_else(bad)?;
    let parent = path.parent().ok_or_else(bad)?;
    Ok((
        if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        },
        name,
    ))
}
