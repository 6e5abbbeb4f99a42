//! Stats: the figures of a container's cgroup, until its Delete.

use std::rc::Rc;

use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::protobuf::MessageField;

use super::pod::Pod;
use crate::error::Error;
use crate::stats::metrics;

/// Reads them; of a container that has ended, the last that were read.
pub(super) async fn stats(pod: Rc<Pod>, req: StatsRequest) -> Result<StatsResponse, Error> {
    let stats = pod.sandbox_of(&req.id)?.stats(&req.id)?;
    Ok(StatsResponse {
        stats: MessageField::some(metrics(stats)?),
        ..Default::default()
    })
}
