//! `containerManager.PortForward`

use std::os::fd::OwnedFd;

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply};
use serde::Deserialize;

use crate::live::Sandbox;

/// gVisor's `PortForwardOpts`; the stream comes as a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct ForwardArgs {
    #[serde(rename = "ContainerID")]
    container_id: String,
    port: u16,
}

impl Sandbox {
    pub(super) async fn control_port_forward(
        self,
        args: ForwardArgs,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, CallError> {
        let invalid = |text: String| CallError::new(ErrorKind::InvalidArgument, text);
        if args.port == 0 {
            return Err(invalid("Port: 0 is none".to_owned()));
        }
        let [stream] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| {
            invalid(format!(
                "one file, the stream, must come along, not {}",
                fds.len()
            ))
        })?;
        self.port_forward(&args.container_id, args.port, stream)
            .await?;
        Ok(Reply::empty())
    }
}
