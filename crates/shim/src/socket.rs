//! The pod's socket: its name, its making, and whether somebody answers on it.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sha2::{Digest, Sha256};

use crate::error::Error;

/// `sun_path` with room for its final NUL, less one as containerd counts.
const PATH_LIMIT: usize = 106;

/// A socket that somebody listens on: this process, or a shim that was there before.
#[derive(Debug)]
pub(crate) enum Bound {
    /// Ours.
    New(UnixListener),
    /// A living shim has it.
    Taken,
}

/// Path of the socket of one pod: the hash of containerd's address, the namespace and the group.
/// # Errors
/// `InvalidArgument` if it does not fit a socket address.
pub(crate) fn path(dir: &Path, grpc: &str, namespace: &str, group: &str) -> Result<PathBuf, Error> {
    let mut hash = Sha256::new();
    for part in [grpc.trim_end_matches('/'), "/", namespace, "/", group] {
        hash.update(part.as_bytes());
    }
    let name: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = dir.join(name);
    if path.as_os_str().len() > PATH_LIMIT {
        return Err(Error::SocketPath { path });
    }
    Ok(path)
}

/// Binds and listens, unless a living shim has the address. Only root may speak to the socket, if
/// the caller's umask lets nobody else in before its mode is set.
///
/// A socket that nobody answers on is what a dead shim left behind: it is removed.
/// # Errors
/// The errno of mkdir(2), bind(2) or unlink(2).
pub(crate) fn bind(path: &Path) -> Result<Bound, Error> {
    let failed = |call| {
        move |source| Error::Io {
            call,
            what: format!("{path:?}"),
            source,
        }
    };
    if let Some(dir) = path.parent() {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(failed("mkdir"))?;
    }
    // The second time the stale one is gone; the third bind lost a race twice.
    for _ in 0..3 {
        match UnixListener::bind(path) {
            Ok(listener) => {
                fs::set_permissions(path, Permissions::from_mode(0o600))
                    .map_err(failed("chmod"))?;
                return Ok(Bound::New(listener));
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(failed("bind")(e)),
        }
        if answers(path) {
            return Ok(Bound::Taken);
        }
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("unlink")(e)),
            _ => {}
        }
    }
    Err(failed("bind")(io::ErrorKind::AddrInUse.into()))
}

/// True if a process listens there. Never waits: a full backlog is an answer too.
pub(crate) fn answers(path: &Path) -> bool {
    let connect = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        net::connect(&socket, &SocketAddrUnix::new(path)?)
    };
    matches!(connect(), Ok(()) | Err(Errno::AGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_hash_that_containerds_own_shims_use() {
        // sha256("/run/containerd/containerd.sock/default/x")
        let got = path(
            Path::new("/s"),
            "/run/containerd/containerd.sock",
            "default",
            "x",
        )
        .unwrap();
        let want = Sha256::digest(b"/run/containerd/containerd.sock/default/x");
        let want: String = want.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(got, Path::new("/s").join(want));
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let long = format!("/{}", "d".repeat(60));
        let e = path(Path::new(&long), "/c", "ns", "id").unwrap_err();
        assert!(e.to_string().contains("106"), "{e}");
    }

    #[test]
    fn a_living_shim_is_found_and_a_dead_ones_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/s");
        assert!(!answers(&path));
        let Bound::New(listener) = bind(&path).unwrap() else {
            panic!("nobody was there")
        };
        assert!(answers(&path));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(matches!(bind(&path).unwrap(), Bound::Taken));
        drop(listener);
        assert!(path.exists() && !answers(&path));
        assert!(matches!(bind(&path).unwrap(), Bound::New(_)));
    }

    #[test]
    fn a_full_backlog_counts_as_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&socket, 0).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(answers(&path));
    }
}
