//! Pause and Resume: the freezer.

use std::rc::Rc;

use containerd_shim_protos::api::{Empty, PauseRequest, ResumeRequest};

use super::pod::Pod;
use crate::error::Error;

/// Freezes every process of a container.
pub(super) async fn pause(pod: Rc<Pod>, req: PauseRequest) -> Result<Empty, Error> {
    pod.sandbox_of(&req.id)?.pause(&req.id).await?;
    Ok(Empty::default())
}

/// Thaws them.
pub(super) async fn resume(pod: Rc<Pod>, req: ResumeRequest) -> Result<Empty, Error> {
    pod.sandbox_of(&req.id)?.resume(&req.id).await?;
    Ok(Empty::default())
}
