//! Sources of bind mounts that the caller has open: gVisor's `IOFiles`, without a gofer behind
//! them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use berm_plan::{Rootfs, Source, Step};

use crate::error::Error;

/// Puts each file in the place of the path that the plan has of it: the first is the root file
/// system, the others are of the spec's mounts, in order.
///
/// The stage child has them by the same numbers and opens what they lead to; all that is done to a
/// source by path is done to these.
/// # Errors
/// `InvalidArgument` for one that is of no bind mount.
pub(crate) fn put(steps: &mut [Step], files: &[Option<OwnedFd>]) -> Result<(), Error> {
    for (at, file) in files.iter().enumerate() {
        let Some(file) = file else { continue };
        let path = steps.iter_mut().find_map(|step| source(step, at));
        let path = path.ok_or(Error::IoFile {
            at,
            reason: match at {
                0 => "the root file system is no directory of the host",
                _ => "the spec's mount of one number less is missing, or no bind mount",
            },
        })?;
        *path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    }
    Ok(())
}

/// The path that file `at` stands for, if this is its step.
fn source(step: &mut Step, at: usize) -> Option<&mut PathBuf> {
    match step {
        Step::Rootfs(Rootfs::Bind { path, .. }) if at == 0 => Some(path),
        Step::Mount(mount) if at.checked_sub(1) == Some(mount.index) => match &mut mount.source {
            Source::Bind { path, .. } => Some(path),
            _ => None,
        },
        _ => None,
    }
}
