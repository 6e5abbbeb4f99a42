//! Wait: the only way in which CRI learns of an exit.

use std::rc::Rc;

use containerd_shim_protos::api::{WaitRequest, WaitResponse};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;
use crate::wire;

/// Waits for the end of a container or an exec, started or not; at once after it.
pub(super) async fn wait(pod: Rc<Pod>, req: WaitRequest) -> Result<WaitResponse, Error> {
    let sandbox = pod.sandbox_of(&req.id)?;
    let exit = sandbox.wait(&req.id, exec_of(&req.exec_id)).await?;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: wire::time(exit.at),
        ..Default::default()
    })
}
