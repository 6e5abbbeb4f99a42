//! `berm.Events`

use std::os::fd::OwnedFd;

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply, decode};
use serde::Deserialize;
use serde_json::Value;

use crate::live::Sandbox;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsArgs {
    /// Only this container's; without it the whole pod's.
    #[serde(rename = "CID")]
    container: Option<String>,
}

impl Sandbox {
    pub(super) fn control_events(&self, arg: Value, fds: Vec<OwnedFd>) -> Result<Reply, CallError> {
        let args: Option<EventsArgs> = decode(arg)?;
        let args = args.unwrap_or_default();
        let [pipe] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| {
            let text = format!(
                "one file, the write end of a pipe, must come along, not {}",
                fds.len()
            );
            CallError::new(ErrorKind::InvalidArgument, text)
        })?;
        self.stream_events(args.container.as_deref(), pipe)?;
        Ok(Reply::empty())
    }
}
