//! The bench's own view of the file system.

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Error;

const NOTHING: Option<&str> = None;
/// What crun looks at to find out whether cgroup v2 of a hybrid host holds controllers.
const CONTROLLERS: &str = "/sys/fs/cgroup/unified/cgroup.controllers";

/// Moves this process, and so all that it starts, into a mount namespace with a `/run` of its
/// own: nothing that a shim mounts or leaves there can outlive the bench.
///
/// On a hybrid host crun refuses to work if cgroup v2 holds any controller, even one that nobody
/// uses; here it is shown none. The other peers see the same.
///
/// Must be called while this process has one thread.
pub(super) fn enter() -> Result<(), Error> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("unshare(CLONE_NEWNS)"))?;
    mount(
        NOTHING,
        "/",
        NOTHING,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        NOTHING,
    )
    .map_err(failed("mount(/, MS_REC | MS_PRIVATE)"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        flags,
        Some("mode=755"),
    )
    .map_err(failed("mount(/run, tmpfs)"))?;
    if Path::new(CONTROLLERS).exists() {
        mount(
            Some("/dev/null"),
            CONTROLLERS,
            NOTHING,
            MsFlags::MS_BIND,
            NOTHING,
        )
        .map_err(failed("mount(cgroup.controllers, MS_BIND)"))?;
    }
    Ok(())
}

fn failed(call: &'static str) -> impl FnOnce(nix::errno::Errno) -> Error {
    move |source| Error::View { call, source }
}
