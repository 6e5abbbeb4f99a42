//! Pids: every process of a container, by its pid on the host.

use std::rc::Rc;

use berm_sandbox::Pid;
use containerd_shim_protos::api::{PidsRequest, PidsResponse, ProcessInfo};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;

use super::pod::Pod;
use crate::error::Error;
use crate::wire;

/// Lists them. A container that has ended is `FailedPrecondition`: after a restart containerd
/// throws away every container that has no process.
pub(super) async fn pids(pod: Rc<Pod>, req: PidsRequest) -> Result<PidsResponse, Error> {
    let pids = pod.sandbox_of(&req.id)?.pids(&req.id)?;
    let processes = pids.into_iter().map(process).collect::<Result<_, _>>()?;
    Ok(PidsResponse {
        processes,
        ..Default::default()
    })
}

fn process(process: Pid) -> Result<ProcessInfo, Error> {
    let info = process.exec.map(details).transpose()?;
    Ok(ProcessInfo {
        pid: wire::pid(process.pid),
        info: MessageField(info.map(Box::new)),
        ..Default::default()
    })
}

fn details(exec_id: String) -> Result<Any, Error> {
    let details = ProcessDetails {
        exec_id,
        ..Default::default()
    };
    Ok(Any {
        type_url: "containerd.runc.v1.ProcessDetails".into(),
        value: details.write_to_bytes().map_err(|source| Error::Encode {
            what: "ProcessDetails",
            source,
        })?,
        ..Any::default()
    })
}
