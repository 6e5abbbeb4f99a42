//! The tmpfses that a pod's hints ask for, made with the pod.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_mount::Scratch;
use berm_plan::PodTmpfs;
use berm_sys::Kernel;

use crate::Pod;
use crate::aside::spawn_aside;
use crate::error::{Error, call};
use crate::report::{Message, send};

/// What they are made of.
#[derive(Debug)]
pub struct PodTmpfsJob<'a> {
    /// The tmpfses.
    pub all: &'a [PodTmpfs],
    /// The child's end of the channel.
    pub report: BorrowedFd<'a>,
    /// The host's `/proc`, O_PATH.
    pub proc: BorrowedFd<'a>,
    /// The empty mount namespace.
    pub empty: BorrowedFd<'a>,
    /// What this kernel can.
    pub kernel: Kernel,
    /// The pod.
    pub pod: Pod<'a>,
}

/// Forks a child that makes them and hands over the file of their mount namespace by
/// [`Message::Made`]; gives back its pidfd.
///
/// It looks at the directories that they stand for, which may take long.
/// # Errors
/// The errno of fork(2).
pub fn spawn_pod_tmpfs(job: &PodTmpfsJob<'_>) -> Result<OwnedFd, Error> {
    let mut keep = vec![job.proc, job.empty];
    keep.extend(job.pod.userns);
    spawn_aside("MountHints", job.report, &keep, || job.make())
}

impl PodTmpfsJob<'_> {
    fn make(&self) -> Result<(), Error> {
        let ids = self.pod.ids;
        let owner = self.pod.owner(None);
        let scratch = Scratch {
            kernel: self.kernel,
            proc: self.proc,
            empty: self.empty,
            hinted: None,
        };
        let made = berm_mount::pod_tmpfs(self.all, ids, owner, scratch)?;
        let sent = send(self.report, &Message::Made, Some(made.as_fd()));
        sent.map_err(call("sendmsg(mntns)"))
    }
}
