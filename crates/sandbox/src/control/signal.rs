//! `containerManager.Signal`

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply};
use serde::Deserialize;

use crate::live::Sandbox;

/// gVisor's `SignalArgs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SignalArgs {
    #[serde(rename = "CID")]
    cid: String,
    #[serde(rename = "Signo")]
    signo: u32,
    /// Host pid of a process of the container; 0: its first one.
    #[serde(rename = "PID")]
    pid: i32,
    /// 0 one process, 1 all of the container, 2 the terminal's foreground process group.
    #[serde(rename = "Mode")]
    mode: u32,
}

impl Sandbox {
    pub(super) fn control_signal(
        &self,
        args: SignalArgs,
    ) -> impl Future<Output = Result<Reply, CallError>> + 'static {
        let sandbox = self.clone();
        async move {
            match (args.mode, args.pid) {
                (0, 0) => sandbox.kill(&args.cid, None, args.signo, false).await?,
                (0, pid) => sandbox.signal_process(&args.cid, pid, args.signo, false)?,
                (1, 0) => sandbox.kill(&args.cid, None, args.signo, true).await?,
                (1, _) => {
                    let text = "PID: must be 0 with Mode 1, which signals all processes";
                    return Err(CallError::new(ErrorKind::InvalidArgument, text));
                }
                (2, pid) => sandbox.signal_process(&args.cid, pid, args.signo, true)?,
                (mode, _) => {
                    let text = format!("Mode: {mode} is none of 0, 1 and 2");
                    return Err(CallError::new(ErrorKind::InvalidArgument, text));
                }
            }
            Ok(Reply::empty())
        }
    }
}
