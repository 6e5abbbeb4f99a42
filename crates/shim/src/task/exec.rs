//! Exec: announces a further process; Start forks it.

use std::rc::Rc;

use containerd_shim_protos::api::{Empty, ExecProcessRequest};

use super::pod::{Exec, Pod};
use crate::error::Error;
use crate::stdio::{Ends, Paths};

/// Reserves the exec id for a process that Start will make.
pub(super) async fn exec(pod: Rc<Pod>, req: ExecProcessRequest) -> Result<Empty, Error> {
    let paths = Paths {
        stdin: req.stdin,
        stdout: req.stdout,
        stderr: req.stderr,
        terminal: req.terminal,
    };
    paths.check()?;
    let sandbox = pod.sandbox_of(&req.id)?;
    sandbox.add_exec(&req.id, &req.exec_id, &req.spec.value, req.terminal)?;
    let exec = Exec {
        paths,
        ends: Ends::default(),
    };
    pod.with(&req.id, |container| {
        container.execs.insert(req.exec_id, exec)
    })?;
    Ok(Empty::default())
}
