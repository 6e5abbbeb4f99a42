//! `containerManager.Mount`

use std::path::PathBuf;

use berm_urpc::{CallError, Reply};
use serde::Deserialize;

use crate::live::Sandbox;

/// gVisor's `MountArgs`; the image that comes along there is a path of the host here.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct MountArgs {
    #[serde(rename = "ContainerID")]
    container_id: String,
    #[serde(default)]
    source: PathBuf,
    destination: PathBuf,
    fs_type: String,
    /// Berm's addition.
    #[serde(default)]
    options: Vec<String>,
}

impl Sandbox {
    pub(super) async fn control_mount(self, args: MountArgs) -> Result<Reply, CallError> {
        let MountArgs {
            container_id,
            source,
            destination,
            fs_type,
            options,
        } = args;
        self.mount(&container_id, &fs_type, &source, &destination, &options)
            .await?;
        Ok(Reply::empty())
    }
}
