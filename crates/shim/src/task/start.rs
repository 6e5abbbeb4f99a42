//! Start: opens a container's gate, or forks an exec.

use std::rc::Rc;

use containerd_shim_protos::api::{StartRequest, StartResponse};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;
use crate::{stdio, wire};

/// Starts a container or an exec.
pub(super) async fn start(pod: Rc<Pod>, req: StartRequest) -> Result<StartResponse, Error> {
    let sandbox = pod.sandbox_of(&req.id)?;
    let pid = match exec_of(&req.exec_id) {
        None => {
            let pid = sandbox.start(&req.id).await?;
            berm_sandbox::phase_done("gate");
            pid
        }
        Some(exec) => {
            let known = |container: &mut super::pod::Container| {
                let exec = container.execs.get(exec)?;
                Some((exec.paths.clone(), container.io_owner))
            };
            let (paths, owner) = pod.with(&req.id, known)?.ok_or_else(|| Error::NoExec {
                id: req.id.clone(),
                exec: exec.to_owned(),
            })?;
            let (stdio, mut ends) = pod
                .open_stdio(stdio::Process::Exec, &paths, owner, exec)
                .await?;
            berm_sandbox::phase_done("stdio");
            let created = sandbox.start_exec(&req.id, exec, stdio).await?;
            berm_sandbox::phase_done("stage");
            ends.attach(created.terminal)?;
            pod.with_ends(&req.id, Some(exec), |kept| kept.open(ends))?;
            created.pid
        }
    };
    Ok(StartResponse {
        pid: wire::pid(pid),
        ..Default::default()
    })
}
