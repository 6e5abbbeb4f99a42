//! Delete: forgets a container or an exec and closes its streams.

use std::rc::Rc;

use berm_sandbox::Exit;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;
use crate::wire;

/// Deletes a container or an exec that has ended (or, for a container, never started).
///
/// The answer comes after the last byte of output has been carried to containerd's fifos.
pub(super) async fn delete(pod: Rc<Pod>, req: DeleteRequest) -> Result<DeleteResponse, Error> {
    let sandbox = pod.sandbox_of(&req.id)?;
    let exec = exec_of(&req.exec_id);
    let exit = sandbox.delete(&req.id, exec).await?;
    match exec {
        Some(exec) => {
            let exec = pod.with(&req.id, |container| container.execs.remove(exec))?;
            if let Some(exec) = exec {
                exec.ends.finish().await;
            }
        }
        None => {
            let ends = pod.with(&req.id, |container| std::mem::take(&mut container.ends))?;
            ends.finish().await;
            // Its execs' ends close with it.
            pod.remove(&req.id);
        }
    }
    Ok(response(exit))
}

fn response(exit: Exit) -> DeleteResponse {
    DeleteResponse {
        pid: wire::pid(exit.pid),
        exit_status: exit.status,
        exited_at: wire::time(exit.at),
        ..Default::default()
    }
}
