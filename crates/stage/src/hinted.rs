//! The tmpfses that a pod's hints ask for, made with the pod.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berm_mount::Scratch;
use berm_plan::PodTmpfs;

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
    /// What mounts are made with.
    pub scratch: Scratch<'a>,
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
    let mut keep = vec![job.scratch.proc, job.scratch.empty];
    keep.extend(job.pod.userns);
    spawn_aside("MountHints", job.report, &keep, || job.make())
}

impl PodTmpfsJob<'_> {
    fn make(&self) -> Result<(), Error> {
        let ids = self.pod.ids;
        let owner = self.pod.owner(None);
        let made = berm_mount::pod_tmpfs(self.all, ids, owner, self.scratch)?;
        let sent = send(self.report, &Message::Made, Some(made.as_fd()));
        sent.map_err(call("sendmsg(mntns)"))
    }
}
