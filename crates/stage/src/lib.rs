//! What runs between fork and execve: a stage child walks the steps of a plan.
//!
//! [`spawn`] forks the calling, single-threaded process. The child runs host code only: nothing
//! of the pod executes in it until its last step replaces it. It is not dumpable, holds no
//! descriptor that its [`Job`] does not list, and tells its parent by a socketpair that no other
//! process ever held: warnings, descriptors, "created", or the step that failed.
#![forbid(unsafe_code)]

mod apply;
mod aside;
mod connect;
mod credentials;
mod error;
mod exec;
mod filter;
mod hinted;
mod hook;
mod join;
mod keyring;
mod label;
mod listener;
mod logger;
mod mount;
mod netdev;
mod report;
mod rootless;
mod sandbox;
mod scope;
mod spawn;
mod stdio;
mod upper_file;

pub use apply::attr_of;
pub use aside::spawn_aside;
pub use connect::{spawn_connect, spawn_connect_unix};
pub use error::Error;
pub use filter::Filter;
pub use hinted::{PodTmpfsJob, spawn_pod_tmpfs};
pub use hook::{HookInside, HookJob};
pub use listener::ListenerJob;
pub use logger::{Logger, LoggerJob};
pub use mount::{MountJob, spawn_mount};
pub use report::{Failure, Gate, Message, Report, channel};
pub use rootless::{enter_user_namespace, set_user_mappings};
pub use sandbox::{Namespace, SandboxJob, UserNs};
pub use scope::{spawn_scope, spawn_scope_stop};
pub use spawn::{
    PidNs, empty_mount_namespace, spawn, spawn_hook, spawn_listener, spawn_logger,
    spawn_net_devices, spawn_sandbox, spawn_sandbox_proc,
};

pub use berm_mount::Scratch;
pub use upper_file::{UpperFileJob, mkfs, spawn_upper_file};

use std::os::fd::BorrowedFd;

use berm_mount::Owner;
use berm_plan::{IdMap, Ids, Step};
use berm_sys::Kernel;

/// The namespaces of a sandbox, as its stage children need them.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// pidfd of PID 1.
    pub init: BorrowedFd<'a>,
    /// User namespace; `None`: the host's.
    pub userns: Option<BorrowedFd<'a>>,
    /// Mount namespace of PID 1, in which a whole `/proc` can be seen.
    pub mntns: BorrowedFd<'a>,
    /// Id maps.
    pub ids: &'a Ids,
    /// The host side is in a user namespace itself: see [`berm_mount::Owner::nested`].
    pub nested: bool,
}

impl<'a> Pod<'a> {
    /// Whose ids the pod's mounts show; new file systems get `label`.
    pub(crate) fn owner(&self, label: Option<&'a str>) -> Owner<'a> {
        let root = |map: &IdMap| map.to_host(0).unwrap_or(0);
        Owner {
            userns: self.userns.filter(|_| !self.ids.are_identity()),
            nested: self.nested,
            uid: root(&self.ids.uids),
            gid: root(&self.ids.gids),
            label,
        }
    }
}

/// One stage child: its steps and every descriptor that it may keep.
#[derive(Debug)]
pub struct Job<'a> {
    /// What to do, in order.
    pub steps: &'a [Step],
    /// The child's end of the [`channel`].
    pub report: BorrowedFd<'a>,
    /// The host's `/proc`, O_PATH.
    pub proc: BorrowedFd<'a>,
    /// A mount namespace that holds an empty directory; containers only.
    pub empty: Option<BorrowedFd<'a>>,
    /// The mount namespace of the pod's tmpfses, if it has any; containers only.
    pub hinted: Option<BorrowedFd<'a>>,
    /// The file of [`berm_plan::ContainerPlan::upper_file`]; containers only.
    pub upper_file: Option<BorrowedFd<'a>>,
    /// What this kernel can.
    pub kernel: Kernel,
    /// The pod.
    pub pod: Pod<'a>,
    /// pidfd of the container's first process; execs only.
    pub container: Option<BorrowedFd<'a>>,
    /// The container's devpts; execs with a terminal only.
    pub devpts: Option<BorrowedFd<'a>>,
    /// What becomes 0, 1, 2; `None`: the null device.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// What steps open by `/proc/self/fd`.
    pub sources: Vec<BorrowedFd<'a>>,
    /// What becomes these numbers, none of which is 0, 1 or 2; every descriptor here and `report`
    /// are above all of them.
    pub pass: Vec<(i32, BorrowedFd<'a>)>,
    /// The program, in place of the file that the steps name; above 2, as `pass` says.
    pub exec_file: Option<BorrowedFd<'a>>,
    /// The steps' filter, if it was compiled before; execs of a container share theirs.
    pub filter: Option<&'a Filter>,
    /// By which it joins its cgroup, open for writing: `tasks` of each v1 hierarchy, and
    /// `cgroup.procs` of cgroup2 if it is not born there.
    pub tasks: Vec<BorrowedFd<'a>>,
    /// The cgroup's directory on cgroup2, for the child to be born in.
    pub birthplace: Option<BorrowedFd<'a>>,
}

impl Job<'_> {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.report, self.proc, self.pod.init, self.pod.mntns];
        all.extend(self.pod.userns);
        all.extend(
            [
                self.empty,
                self.hinted,
                self.upper_file,
                self.container,
                self.devpts,
            ]
            .into_iter()
            .flatten(),
        );
        all.extend(self.stdio.into_iter().flatten());
        all.extend(&self.tasks);
        all.extend(&self.sources);
        all.extend(self.of_workload());
        all
    }

    /// What is open until `execve` beside the streams.
    fn of_workload(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.pass.iter().map(|(_, fd)| *fd).chain(self.exec_file)
    }
}
