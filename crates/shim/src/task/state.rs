//! State and Connect: answered from memory, because containerd asks before nearly every call.

use std::rc::Rc;

use berm_sandbox::Status;
use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, StateRequest, StateResponse, Status as WireStatus,
};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;
use crate::{VERSION, wire};

/// State of a container or an exec. Pid and paths stay after its end.
pub(super) async fn state(pod: Rc<Pod>, req: StateRequest) -> Result<StateResponse, Error> {
    let exec = exec_of(&req.exec_id);
    let state = pod.sandbox_of(&req.id)?.state(&req.id, exec)?;
    let paths = pod.with(&req.id, |container| match exec {
        None => container.origin.paths.clone(),
        Some(exec) => container
            .execs
            .get(exec)
            .map(|exec| exec.paths.clone())
            .unwrap_or_default(),
    })?;
    let mut response = StateResponse {
        id: exec.unwrap_or(&req.id).to_owned(),
        exec_id: req.exec_id.clone(),
        bundle: state.bundle.to_string_lossy().into_owned(),
        pid: wire::pid(state.pid),
        status: status(state.status).into(),
        stdin: paths.stdin,
        stdout: paths.stdout,
        stderr: paths.stderr,
        terminal: paths.terminal,
        ..Default::default()
    };
    if let Some(exit) = state.exit {
        response.exit_status = exit.status;
        response.exited_at = wire::time(exit.at);
    }
    Ok(response)
}

fn status(status: Status) -> WireStatus {
    match status {
        Status::Creating | Status::Created => WireStatus::CREATED,
        Status::Running => WireStatus::RUNNING,
        Status::Paused => WireStatus::PAUSED,
        Status::Stopped => WireStatus::STOPPED,
    }
}

/// Pids of the shim and of the task; 0 for an id that is not there.
pub(super) async fn connect(pod: Rc<Pod>, req: ConnectRequest) -> Result<ConnectResponse, Error> {
    let task_pid = pod
        .sandbox_of(&req.id)
        .ok()
        .and_then(|sandbox| sandbox.pid(&req.id))
        .unwrap_or_default();
    Ok(ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: wire::pid(task_pid),
        version: VERSION.into(),
        ..Default::default()
    })
}
