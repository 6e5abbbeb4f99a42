//! Changing the limits of a container, or of the sandbox, while it runs.

use std::time::{Duration, Instant};

use berm_cgroup::Resources;

use crate::aside::Aside;
use crate::error::Error;
use crate::live::Sandbox;
use crate::task::Task;

impl Sandbox {
    /// Changes limits of a container or of the sandbox task: all that `resources_json`, an OCI
    /// `linux.resources` object, names, or none of it. What it does not name stays.
    /// # Errors
    /// The plan's refusal of a field; `NotSupported` and `InvalidArgument` for what this host
    /// cannot do, before anything is written; `FailedPrecondition` for a memory limit that the
    /// kernel cannot reclaim down to, and once the container has ended; `DeadlineExceeded` if the
    /// kernel takes longer than the stage deadline.
    pub async fn update(&self, id: &str, resources_json: &[u8]) -> Result<(), Error> {
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        if task.process.has_ended() {
            let state = task.process.state().word();
            let id = id.to_owned();
            return Err(Error::NotRunning { id, state });
        }
        let (change, write) = {
            let limits = task.limits.borrow();
            let change = berm_plan::resources(resources_json, &limits.device_rules)?;
            let write = change.completed(&limits.in_force);
            (change, write)
        };
        write_limits(&task, &write, live.host.config.stage_deadline).await?;
        task.limits.borrow_mut().in_force.merge(&change);
        Ok(())
    }

    /// The limits in force of a container or of the sandbox task.
    /// # Errors
    /// `NotFound` for an unknown id.
    pub fn limits(&self, id: &str) -> Result<Resources, Error> {
        Ok(self.0.task(id)?.limits.borrow().in_force.clone())
    }
}

/// In a child: until the kernel has reclaimed what is above a new limit, write(2) does not return.
async fn write_limits(task: &Task, limits: &Resources, deadline: Duration) -> Result<(), Error> {
    let until = Instant::now() + deadline;
    let writing = task.with_cgroup(|cgroup| {
        Aside::begin("Update", deadline, |report| {
            let act = || Ok(cgroup.update(limits, until)?);
            berm_stage::spawn_aside("Update", report, &cgroup.descriptors(), act)
        })
    })?;
    writing.end_well("Update").await
}
