//! What the memory of a pod is used for.

use std::os::fd::OwnedFd;

use berm_cgroup::{Cgroup, MemoryUse};
use berm_sys::Kind as ErrorKind;

use crate::error::Error;
use crate::live::Sandbox;
use crate::task::{Kind, Task};

/// Memory of a whole pod in bytes, by what it is used for; no byte is counted twice.
///
/// It is the memory of its cgroups. The shim's own is not among it: that is the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all containers together.
    pub containers: MemoryUse,
    /// All of the sandbox's own cgroup: PID 1, and what the kernel keeps for the pod. 0 in a pod
    /// of one, whose PID 1 has none.
    pub sandbox: u64,
}

/// The memory files of one cgroup of a pod.
#[derive(Debug)]
pub struct UsageFiles {
    /// Id of the container, or of the sandbox.
    pub id: String,
    /// v2 `memory.current`, v1 `memory.usage_in_bytes`: one number.
    pub total: OwnedFd,
    /// `memory.stat`
    pub stat: OwnedFd,
}

impl Sandbox {
    /// What the pod's memory is used for; without `full` only the totals, from one file for each
    /// cgroup. A container that has ended uses nothing.
    /// # Errors
    /// The errno of reading a cgroup file.
    pub fn usage(&self, full: bool) -> Result<Usage, Error> {
        self.0.host.need_cgroups("memory figures of a pod")?;
        let mut usage = Usage::default();
        for task in self.0.tasks.borrow().values() {
            let own = task.kind == Kind::Sandbox;
            let read = |cgroup: &Cgroup| cgroup.memory(full && !own);
            let Some(used) = of_cgroup(task, read)?.flatten() else {
                continue;
            };
            match own {
                true => usage.sandbox = usage.sandbox.saturating_add(used.total),
                false => add(&mut usage.containers, &used),
            }
        }
        Ok(usage)
    }

    /// The memory files of the pod's cgroups, for somebody who reads them with no further call,
    /// whatever state the pod is in: the kernel answers, nobody else. The sandbox's come first.
    /// # Errors
    /// `NotSupported` without a memory controller; the errno of opening.
    pub fn usage_files(&self) -> Result<Vec<UsageFiles>, Error> {
        self.0.host.need_cgroups("memory files of a pod")?;
        let mut files = Vec::new();
        for task in self.0.tasks.borrow().values() {
            let Some([total, stat]) = of_cgroup(task, Cgroup::memory_files)? else {
                continue;
            };
            let id = task.id.clone();
            let at = if task.kind == Kind::Sandbox {
                0
            } else {
                files.len()
            };
            files.insert(at, UsageFiles { id, total, stat });
        }
        Ok(files)
    }
}

/// `None` for a task without a cgroup, or whose cgroup is gone.
fn of_cgroup<T>(
    task: &Task,
    read: impl FnOnce(&Cgroup) -> Result<T, berm_cgroup::Error>,
) -> Result<Option<T>, Error> {
    match task.cgroup.borrow().as_ref().map(read) {
        Some(Err(e)) if e.kind() == ErrorKind::NotFound => Ok(None),
        read => Ok(read.transpose()?),
    }
}

fn add(sum: &mut MemoryUse, used: &MemoryUse) {
    let pairs = [
        (&mut sum.total, used.total),
        (&mut sum.anonymous, used.anonymous),
        (&mut sum.page_cache, used.page_cache),
        (&mut sum.mapped, used.mapped),
        (&mut sum.tmpfs, used.tmpfs),
        (&mut sum.kernel, used.kernel),
    ];
    for (sum, used) in pairs {
        *sum = sum.saturating_add(used);
    }
}
