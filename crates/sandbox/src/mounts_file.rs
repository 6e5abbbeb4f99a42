//! Tells whoever asked where a container's mounts are: gVisor's `MountsFile`, which its gofer
//! writes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};
use rustix::io::Errno;
use serde_json::Value;

use crate::api::ContainerArgs;
use crate::aside::Aside;
use crate::error::Error;
use crate::live::Live;

impl Live {
    /// Writes the spec's mounts as one JSON array, with the paths that they really have: of the
    /// tree that waits at the gate of `pid`, in which no code of the pod has run yet. A child does
    /// it: file systems are walked, and what is written to may be full.
    pub(crate) async fn write_mounts(
        &self,
        to: BorrowedFd<'_>,
        args: &ContainerArgs,
        pid: i32,
    ) -> Result<(), Error> {
        let proc = self.host.proc.as_fd();
        let mut keep = vec![proc, to];
        keep.extend(args.io_files.iter().flatten().map(AsFd::as_fd));
        let act = || {
            write(to, args, proc, pid).map_err(|source| berm_stage::Error::Sys {
                call: "write(mounts_file)",
                source,
            })
        };
        let writing = Aside::begin("MountsFile", self.host.config.stage_deadline, |report| {
            berm_stage::spawn_aside("MountsFile", report, &keep, act)
        })?;
        writing.end_well("MountsFile").await
    }
}

fn write(
    to: BorrowedFd<'_>,
    args: &ContainerArgs,
    proc: BorrowedFd<'_>,
    pid: i32,
) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(proc, format!("{pid}/root"), flags, Mode::empty())?;
    let mut mounts = args.spec.mounts()?;
    // The first file is the root's.
    let mut files = args.io_files.iter().skip(1).map(Option::as_ref);
    for mount in &mut mounts {
        resolve(mount, files.next().flatten(), &root)?;
    }
    let json = serde_json::to_vec(&mounts)?;
    let mut rest = json.as_slice();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Err(Errno::INTR) => {}
            written => rest = rest.get(written?..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Puts the real paths into an entry of the spec.
fn resolve(mount: &mut Value, file: Option<&OwnedFd>, root: &OwnedFd) -> io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let destination = text(&mount["destination"]);
    if let Some(inside) = inside(root, &destination)? {
        mount["destination"] = inside.into();
    }
    if let Some(file) = file {
        mount["source"] = path_of(file)?.into();
    } else if text(&mount["type"]) == "bind" {
        // What was there when it was mounted may have gone since: its name is left as it was.
        let source = std::fs::canonicalize(text(&mount["source"]));
        if let Some(source) = source.ok().as_deref().and_then(Path::to_str) {
            mount["source"] = source.into();
        }
    }
    Ok(())
}

/// Where a path of the container leads; `None`: another mount covers it.
fn inside(root: &OwnedFd, path: &str) -> io::Result<Option<String>> {
    let relative = match path.trim_start_matches('/') {
        "" => ".",
        relative => relative,
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let at = match openat2(root, relative, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        at => at?,
    };
    path_of(&at).map(Some)
}

/// Where an open file is, in its own mount namespace.
fn path_of(file: &OwnedFd) -> io::Result<String> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = readlinkat(CWD, link, Vec::new())?;
    path.into_string().map_err(io::Error::other)
}
