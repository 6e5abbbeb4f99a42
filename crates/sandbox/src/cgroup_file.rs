//! One file of a container's cgroup, by its name.

use std::time::{Duration, Instant};

use crate::aside::Aside;
use crate::error::Error;
use crate::live::Sandbox;

/// Longest value that is written, in bytes.
const MAX_VALUE: usize = 4096;
/// How long the kernel may take for one, of which reclaiming memory is the longest.
const DEADLINE: Duration = Duration::from_secs(5);

impl Sandbox {
    /// Reads the file `name` of a controller (`memory`, `cpu`, `io`; `cgroup` for cgroup2's own)
    /// of a container's cgroup, or of the sandbox's.
    /// # Errors
    /// `NotFound` for an unknown id, for a name that the cgroup's directory has not (so it is
    /// never a path), and once the cgroup is gone; `InvalidArgument` for a controller that this
    /// host has not.
    pub fn read_cgroup_file(
        &self,
        id: &str,
        controller: &str,
        name: &str,
    ) -> Result<String, Error> {
        let task = self.0.task(id)?;
        task.with_cgroup(|cgroup| cgroup.read_control_file(controller, name))
    }

    /// Writes such a file, in a child, because the kernel may take its time. The next
    /// [`Sandbox::update`] that names the same limit writes over it.
    /// # Errors
    /// As [`Sandbox::read_cgroup_file`]; `InvalidArgument` for what moves, stops or ends
    /// processes, which has calls of its own, and for a value that the kernel refuses;
    /// `DeadlineExceeded`.
    pub async fn write_cgroup_file(
        &self,
        id: &str,
        controller: &str,
        name: &str,
        value: &str,
    ) -> Result<(), Error> {
        if value.len() > MAX_VALUE {
            return Err(Error::LongValue { max: MAX_VALUE });
        }
        let live = &self.0;
        let task = live.task(id)?;
        let _one_at_a_time = task.busy.lock().await;
        let deadline = DEADLINE.min(live.host.config.stage_deadline);
        let until = Instant::now() + DEADLINE;
        let writing = task.with_cgroup(|cgroup| {
            cgroup.may_write_control_file(controller, name)?;
            Aside::begin("WriteCgroup", deadline, |report| {
                let act = || Ok(cgroup.write_control_file(controller, name, value, until)?);
                berm_stage::spawn_aside("Aside", report, &cgroup.descriptors(), act)
            })
        })?;
        writing.end_well("Aside").await
    }
}
