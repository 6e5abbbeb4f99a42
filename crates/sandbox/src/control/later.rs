//! Methods of gVisor's that a later release brings: known by name, so that a client learns more
//! than that the name is unknown.

use berm_sys::Kind as ErrorKind;
use berm_urpc::CallError;

/// The refusal of `method`: by its reason if it is one of gVisor's, else as unknown.
pub(super) fn refusal(method: &str) -> CallError {
    let reason = match method {
        "containerManager.Checkpoint" | "containerManager.Restore" => {
            "checkpoint and restore, by CRIU, come with a later release"
        }
        "containerManager.CreateTraceSession"
        | "containerManager.DeleteTraceSession"
        | "containerManager.ListTraceSessions" => "trace sessions come with a later release",
        "Profile.CPU" | "Profile.Heap" | "Profile.Block" | "Profile.Mutex" | "Profile.Trace" => {
            "profiles of a pod, taken from the host, come with a later release"
        }
        _ => return CallError::unknown_method(),
    };
    CallError::new(ErrorKind::NotSupported, format!("{method}: {reason}"))
}
