//! `containerManager.Processes` and `ProcfsDump`, `Proc.Ps`, `debug.Stacks`.

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply, decode};
use serde::Deserialize;
use serde_json::Value;

use crate::live::Sandbox;
use crate::processes::table;

/// gVisor's `PsArgs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PsArgs {
    /// The same as JSON instead of a table.
    #[serde(rename = "JSON")]
    json: bool,
}

impl Sandbox {
    pub(super) async fn control_processes(self, id: String) -> Result<Reply, CallError> {
        Reply::of(&self.processes(&id).await?)
    }

    pub(super) async fn control_procfs_dump(self) -> Result<Reply, CallError> {
        Reply::of(&self.procfs_dump().await?)
    }

    pub(super) async fn control_stacks(self) -> Result<Reply, CallError> {
        Reply::of(&self.stacks().await?)
    }

    /// Every process of the pod, container by container.
    pub(super) async fn control_ps(self, arg: Value) -> Result<Reply, CallError> {
        let args: Option<PsArgs> = decode(arg)?;
        let args = args.unwrap_or_default();
        let mut all = Vec::new();
        for id in self.tasks() {
            match self.processes(&id).await {
                Ok(processes) => all.push((id, processes)),
                // It has ended.
                Err(e) if e.kind() == ErrorKind::FailedPrecondition => {}
                Err(e) => return Err(e.into()),
            }
        }
        match args.json {
            false => Reply::of(&table(&all)),
            true => {
                let all: Vec<_> = all.into_iter().flat_map(|(_, list)| list).collect();
                Reply::of(&all)
            }
        }
    }
}
