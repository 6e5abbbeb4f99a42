//! Mounts that come to a container while it runs.

use std::os::fd::AsFd;
use std::path::Path;

use berm_plan::MountAsked;
use berm_stage::MountJob;

use crate::aside::Aside;
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::state::State;
use crate::task::{Kind, Task};

impl Sandbox {
    /// Mounts into a running or paused container: a directory or file of the host (`bind`), with
    /// the ids of the pod, or a new `tmpfs`. What is missing of `target` is made, by root of the
    /// pod; links on the way are followed as in the container, never out of it. It is gone with
    /// the container, and no record tells of it.
    ///
    /// In a pod with a user namespace it is locked as the spec's mounts are: root of the pod can
    /// neither clear the flags that `options` set (`ro`, `nosuid`, `nodev`, `noexec`, access times)
    /// nor unmount it. A file it can unmount, if it has `CAP_SYS_ADMIN`, and finds what was there
    /// before. gVisor's `Mount`, which knows `erofs` alone.
    /// # Errors
    /// `NotFound` for an unknown id and for a source that is not there; `FailedPrecondition` unless
    /// the container runs; the plan's refusal of a type, a path or an option; `NotSupported` for a
    /// file system that cannot be idmapped, and for the source of a mount hint; the errno of the
    /// mount calls; `DeadlineExceeded`.
    pub async fn mount(
        &self,
        id: &str,
        fstype: &str,
        source: &Path,
        target: &Path,
        options: &[String],
    ) -> Result<(), Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        let asked = MountAsked {
            fstype,
            source,
            target,
            options,
        };
        runs(&task)?;
        let mount = berm_plan::mount(&asked, &live.ids)?;
        if let Some(hint) = live.record.mount_hints.find(source) {
            let (name, path) = (hint.name.clone(), source.to_owned());
            return Err(Error::HintedSource { name, path });
        }
        live.mount_into(&task, &mount).await
    }
}

fn runs(task: &Task) -> Result<(), Error> {
    let state = match (task.kind, task.process.state()) {
        (Kind::Container, State::Running | State::Paused) => return Ok(()),
        (Kind::Container, state) => state.word(),
        (Kind::Sandbox, _) => "the pod's sandbox, which has no file system",
    };
    let id = task.id.clone();
    Err(Error::NotRunning { id, state })
}

impl Live {
    async fn mount_into(&self, task: &Task, mount: &berm_plan::Mount) -> Result<(), Error> {
        let gone = || Error::NoContainer {
            id: task.id.clone(),
        };
        let child = task.process.child().ok_or_else(gone)?;
        let label = task.inside.borrow().as_ref().and_then(|i| i.label.clone());
        let scratch = self.host.scratch()?;
        let mounting = Aside::begin("Mount", self.host.config.stage_deadline, |report| {
            berm_stage::spawn_mount(&MountJob {
                mount,
                label: label.as_deref(),
                container: AsFd::as_fd(&*child),
                report,
                scratch,
                pod: self.pod(),
            })
        })?;
        mounting.end_well("MountInto").await
    }
}
