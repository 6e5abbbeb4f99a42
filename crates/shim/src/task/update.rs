//! Update: new limits for a container or for the sandbox.

use std::rc::Rc;

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};

use super::pod::Pod;
use crate::error::Error;

/// What containerd's typeurl calls an OCI `linux.resources`; its value is JSON.
const LINUX_RESOURCES: &str = "opencontainers/runtime-spec/1/LinuxResources";

/// Changes the limits. Annotations that come along ask nothing of this runtime, as of runc.
pub(super) async fn update(pod: Rc<Pod>, req: UpdateTaskRequest) -> Result<Empty, Error> {
    let sandbox = pod.sandbox_of(&req.id)?;
    let resources = req.resources.into_option().unwrap_or_default();
    if !resources.type_url.ends_with(LINUX_RESOURCES) {
        return Err(Error::UnknownType {
            call: "Update",
            type_url: resources.type_url,
            wanted: LINUX_RESOURCES,
        });
    }
    sandbox.update(&req.id, &resources.value).await?;
    Ok(Empty::default())
}
