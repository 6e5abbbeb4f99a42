//! Create: a sandbox, a container in it, or both at once for a pod of one.

use std::rc::Rc;

use berm_sandbox::{Config, ContainerArgs, RootfsMount, Sandbox, Spec, TaskKind};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CreateTaskRequest, CreateTaskResponse, Empty,
};

use super::pod::{self, Container, Pod};
use crate::error::Error;
use crate::event::Origin;
use crate::stdio::{self, Paths};
use crate::{config, options, wire};

/// Makes what the bundle describes. A failure leaves nothing behind.
pub(super) async fn create(
    pod: Rc<Pod>,
    req: CreateTaskRequest,
) -> Result<CreateTaskResponse, Error> {
    if !req.checkpoint.is_empty() {
        return Err(Error::Unimplemented {
            call: "Create from a checkpoint",
        });
    }
    let paths = Paths {
        stdin: req.stdin,
        stdout: req.stdout,
        stderr: req.stderr,
        terminal: req.terminal,
    };
    paths.check()?;
    let options = options::decode(req.options.as_ref())?;
    let config = config::of_options(&options)?;
    let spec = pod::spec(&req.bundle)?;
    berm_sandbox::phase_done("spec");
    let origin = Origin {
        bundle: req.bundle,
        rootfs: req.rootfs,
        paths,
    };
    let container = Container {
        origin,
        io_owner: options.io_owner,
        ..Container::default()
    };
    pod.reserve(&req.id, container)?;
    match make(&pod, &req.id, spec, config).await {
        Ok(pid) => Ok(CreateTaskResponse {
            pid: wire::pid(pid),
            ..Default::default()
        }),
        Err(e) => {
            pod.remove(&req.id);
            Err(e)
        }
    }
}

async fn make(pod: &Pod, id: &str, spec: Spec, config: Option<Config>) -> Result<i32, Error> {
    let origin = pod.with(id, |container| container.origin.clone())?;
    match spec.kind() {
        TaskKind::Sandbox => {
            let sandbox = pod.make_sandbox(id, &origin.bundle, spec, config).await?;
            Ok(sandbox.pid(id).unwrap_or_default())
        }
        TaskKind::Container { .. } => {
            let sandbox = pod
                .sandbox()
                .ok_or_else(|| Error::NoSandbox { id: id.to_owned() })?;
            container(pod, &sandbox, id, spec, origin).await
        }
        TaskKind::Root => {
            let workload = spec.clone();
            let sandbox = pod.make_sandbox(id, &origin.bundle, spec, config).await?;
            let made = container(pod, &sandbox, id, workload, origin).await;
            if made.is_err() {
                sandbox.destroy().await;
                pod.forget_sandbox();
            }
            made
        }
    }
}

async fn container(
    pod: &Pod,
    sandbox: &Sandbox,
    id: &str,
    spec: Spec,
    origin: Origin,
) -> Result<i32, Error> {
    let owner = pod.with(id, |container| container.io_owner)?;
    let (stdio, mut ends) = pod
        .open_stdio(stdio::Process::Container, &origin.paths, owner, id)
        .await?;
    berm_sandbox::phase_done("stdio");
    let rootfs = |mount: containerd_shim_protos::types::mount::Mount| RootfsMount {
        fstype: mount.type_,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    let args = ContainerArgs {
        rootfs: origin.rootfs.into_iter().map(rootfs).collect(),
        terminal: origin.paths.terminal,
        stdio,
        ..ContainerArgs::new(id, origin.bundle, spec)
    };
    let created = sandbox.create_container(args).await?;
    ends.attach(created.terminal)?;
    pod.with(id, |container| container.ends.open(ends))?;
    Ok(created.pid)
}

/// Not in this version.
pub(super) async fn checkpoint(_: Rc<Pod>, _: CheckpointTaskRequest) -> Result<Empty, Error> {
    Err(Error::Unimplemented { call: "Checkpoint" })
}
