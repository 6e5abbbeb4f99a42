//! A mount for a container that runs already.

use std::os::fd::{BorrowedFd, OwnedFd};

use berm_mount::Scratch;
use berm_plan::Mount;
use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::{CapabilitiesSecureBits, set_capabilities_secure_bits};

use crate::aside::spawn_aside;
use crate::error::{Error, call};
use crate::{Pod, join, label};

/// What is mounted where.
#[derive(Debug)]
pub struct MountJob<'a> {
    /// The mount.
    pub mount: &'a Mount,
    /// Context of its files, if it is a new file system.
    pub label: Option<&'a str>,
    /// pidfd of the container's first process.
    pub container: BorrowedFd<'a>,
    /// The child's end of the channel.
    pub report: BorrowedFd<'a>,
    /// What mounts are made with.
    pub scratch: Scratch<'a>,
    /// The pod.
    pub pod: Pod<'a>,
}

/// Forks a child that puts the mount into the container; gives back its pidfd.
///
/// It looks at paths of the host and of the container, which may take long.
/// # Errors
/// The errno of fork(2).
pub fn spawn_mount(job: &MountJob<'_>) -> Result<OwnedFd, Error> {
    let mut keep = vec![
        job.scratch.proc,
        job.scratch.empty,
        job.container,
        job.pod.init,
    ];
    keep.extend(job.pod.userns);
    spawn_aside("MountInto", job.report, &keep, || job.mount())
}

impl MountJob<'_> {
    fn mount(&self) -> Result<(), Error> {
        set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .map_err(call("prctl(PR_SET_SECUREBITS)"))?;
        umask(Mode::empty());
        if let Some(context) = self.label {
            label::of_mounts(self.scratch.proc, context)?;
        }
        let owner = self.pod.owner(self.label);
        // Without a user namespace of the pod's nothing is locked.
        let lock = self.pod.userns.is_some();
        let staged =
            berm_mount::stage_mount(self.mount, self.container, lock, owner, self.scratch)?;
        if lock {
            join::join_pod(self.pod.init, lock)?;
        }
        Ok(staged.unstage(&self.mount.target, lock)?)
    }
}
