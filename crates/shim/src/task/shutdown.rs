//! Shutdown: the daemon ends when nothing is left.

use std::rc::Rc;

use containerd_shim_protos::api::{Empty, ShutdownRequest};

use super::pod::Pod;
use crate::error::Error;

/// Remembers the wish. containerd sends it once, for the sandbox, and that can be while
/// containers are left; `now` is ignored, as runc's shim does.
pub(super) async fn shutdown(pod: Rc<Pod>, _: ShutdownRequest) -> Result<Empty, Error> {
    pod.shut_down();
    Ok(Empty::default())
}
