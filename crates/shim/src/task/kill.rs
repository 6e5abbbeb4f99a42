//! Kill: a signal to a process or to all of a container.

use std::rc::Rc;

use containerd_shim_protos::api::{Empty, KillRequest};

use super::exec_of;
use super::pod::Pod;
use crate::error::Error;

/// Sends the signal. `NotFound` for what has ended is the one error that CRI takes for success.
pub(super) async fn kill(pod: Rc<Pod>, req: KillRequest) -> Result<Empty, Error> {
    let sandbox = pod.sandbox_of(&req.id)?;
    sandbox
        .kill(&req.id, exec_of(&req.exec_id), req.signal, req.all)
        .await?;
    Ok(Empty::default())
}
