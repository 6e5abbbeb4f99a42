//! The control socket: what other programs of the host may ask of a living sandbox.
//!
//! `<state_dir>/<namespace>/<id>/control.sock`, mode 0600, speaks gVisor's uRPC with gVisor's
//! method names and keys, so that a tool for the one can talk to the other. It is served by the
//! process that owns the sandbox; nothing of the pod ever reaches it.
//!
//! | method | arg → result |
//! |---|---|
//! | `containerManager.Processes` | `"c1"` → a list of processes, numbers as the container sees them |
//! | `containerManager.ContainerRuntimeState` | `"c1"` → 1 creating, 2 running or paused, 3 stopped |
//! | `containerManager.Event` | `"c1"` → figures of the container |
//! | `containerManager.Signal` | `{"CID","Signo","PID","Mode"}` → `{}`; mode 0 a process, 1 all, 2 the terminal's foreground group |
//! | `containerManager.ExecuteAsync` | gVisor's `ExecArgs` and files → host pid; `GuestFDs` are the files' numbers in the process; with Berm's own `"ExecFile":true` the last file is the program |
//! | `containerManager.Wait` | `"c1"` → wait(2) word |
//! | `containerManager.WaitPID` | `{"CID","PID"}` → wait(2) word of an exec |
//! | `containerManager.StartRoot` | `"s1"` → `{}`; the root container, or the sandbox task of a CRI pod |
//! | `containerManager.CreateSubcontainer` | `{"CID","Bundle"}` → `{}`; takes the id. `Bundle`, Berm's addition: where a relative `root.path` is |
//! | `containerManager.StartSubcontainer` | `{"CID","Spec"}` and three files or none → `{}`, with `process.terminal` and the terminal's master |
//! | `containerManager.DestroySubcontainer` | `"c1"` → `{}` once nothing is left; the root takes the sandbox with it |
//! | `containerManager.Mount` | `{"ContainerID","FsType","Source","Destination","Options"}` → `{}`; `bind` of a path of the host, or `tmpfs`. `Options` is Berm's addition |
//! | `containerManager.Pause`, `containerManager.Resume` | `null` → `{}`; the whole pod, counted |
//! | `containerManager.PortForward` | `{"ContainerID","Port"}` and one unix stream → `{}` once connected |
//! | `containerManager.ProcfsDump` | `null` → what `/proc` says of every process of the pod |
//! | `Proc.Ps` | `{}` → the table as text; `{"JSON":true}` → as `Processes` |
//! | `debug.Stacks` | `null` → text: the calls and stage children that this process is busy with; state, system call and kernel stack of every thread of the pod and of those children |
//! | `Cgroups.ReadControlFiles` | `{"args":[{"file":{"controller":"memory","path":"/c1","name":"memory.stat"}}]}` → `{"results":[{"value","is_error"}]}`; path `/` is the sandbox |
//! | `Cgroups.WriteControlFiles` | the same with `value` beside `file` |
//! | `Logging.Change` | `{"SetLevel","Level"}`, and `{"SetTargets","Targets":{"berm_sandbox":"debug"}}` → 0; of the shim |
//! | `Usage.Collect` | `{"Full":true}` → bytes of memory by use; not full: all in `Unknown` and `Sandbox` |
//! | `Usage.UsageFD` | `{"Version":1}` → `{"cgroups":["s1","c1"]}` and two files of each: usage, `memory.stat` |
//! | `containerManager.Checkpoint`, `Restore`, `CreateTraceSession`, `DeleteTraceSession`, `ListTraceSessions`, `Profile.*` | `NotSupported`: a later release |
//! | `Metrics.GetRegisteredMetrics` | `{}` → what was registered at birth |
//! | `Metrics.Export` | `{"only_metrics"}`, a regular expression → the figures of now |
//! | `berm.Events` | `null` or `{"CID"}`, and the write end of a pipe → `{}`; then a line of JSON in the pipe for each event, until the end |
//! | `berm.State` | `null` → every container with its state in the words of the OCI spec |
//!
//! A PID in an argument, and the one that `ExecuteAsync` gives back, is the host's: gVisor's are
//! the sandbox kernel's. An unknown container is `NotFound` everywhere, where gVisor at times says
//! that it has stopped. Every call but the two waits has a deadline. A file that comes along with
//! a method that takes none is refused, where gVisor drops it.

mod cgroups;
mod debug;
mod event;
mod events;
mod execute;
mod later;
mod logging;
mod metrics;
mod mount;
mod port_forward;
mod signal;
mod subcontainer;
mod usage;

use std::cell::Cell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Dispatch, Reply, Server, decode};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::api::Status;
use crate::error::Error;
use crate::live::{Live, Sandbox};
use crate::open_calls::OpenCall;
use crate::process::Child;
use crate::task::Process;

/// Of every call but the waits.
const DEADLINE: Duration = Duration::from_secs(10);

impl Sandbox {
    /// Serves the control socket of [`crate::Record::control_socket_path`] until the sandbox is
    /// released. Must run in a `LocalSet`; about 30 µs.
    /// # Errors
    /// `AlreadyExists` if the socket is there; the errno of socket(2), bind(2) or epoll_ctl(2).
    pub fn serve_control(&self) -> Result<(), Error> {
        let control = Rc::new(Control {
            live: Rc::downgrade(&self.0),
            last_exec: Cell::new(0),
        });
        let socket = berm_urpc::bind(&self.0.record.control_socket_path)?;
        let server = Server::new(socket, control)?;
        let serving = tokio::task::spawn_local(async move {
            let Err(e) = server.serve().await;
            log::error!("call=ServeControl err={:?}", Error::Control(e).chain());
        });
        self.0.state_dir.borrow_mut().serve(serving);
        Ok(())
    }
}

/// Answers the calls; does not keep the sandbox alive.
#[derive(Debug)]
struct Control {
    live: Weak<Live>,
    /// Number of the last exec that was made here.
    last_exec: Cell<u64>,
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error.chain())
    }
}

impl Dispatch for Control {
    async fn call(&self, method: &str, arg: Value, fds: Vec<OwnedFd>) -> Result<Reply, CallError> {
        let _open = OpenCall::begin(format!("control {}", described(method, &arg)));
        let sandbox = self.live.upgrade().map(Sandbox);
        let ended = || CallError::new(ErrorKind::Unavailable, "the sandbox has ended");
        let sandbox = sandbox.ok_or_else(ended)?;
        no_files(method, &fds)?;
        let (receiver, name) = method.split_once('.').unwrap_or((method, ""));
        let answered = match receiver {
            "containerManager" => self.container_manager(&sandbox, name, arg, fds).await,
            "Cgroups" => sandbox.control_cgroup_files(name, arg).await,
            "Logging" => (name == "Change").then(|| sandbox.control_logging(arg)),
            "Usage" => sandbox.control_usage(name, arg),
            "Metrics" => sandbox.control_metrics(name, arg),
            "Proc" if name == "Ps" => Some(within(sandbox.control_ps(arg)).await),
            "debug" if name == "Stacks" => {
                let stacks = async {
                    nothing(arg)?;
                    within(sandbox.control_stacks()).await
                };
                Some(stacks.await)
            }
            "berm" => sandbox.control_berm(name, arg, fds),
            _ => None,
        };
        answered.unwrap_or_else(|| Err(later::refusal(method)))
    }
}

/// A method, and the container that it is about.
fn described(method: &str, arg: &Value) -> String {
    let keys = ["CID", "ContainerID"];
    let id = arg
        .as_str()
        .or_else(|| keys.iter().find_map(|key| arg.get(key)?.as_str()));
    let text = format!("{method} {}", id.unwrap_or_default());
    text.trim_end().chars().take(256).collect()
}

/// What a receiver says to a method; `None` if it has none of that name.
type Answer = Option<Result<Reply, CallError>>;

impl Control {
    async fn container_manager(
        &self,
        sandbox: &Sandbox,
        name: &str,
        arg: Value,
        fds: Vec<OwnedFd>,
    ) -> Answer {
        let answered = async {
            Ok(Some(match name {
                "Processes" => within(sandbox.clone().control_processes(decode(arg)?)).await?,
                "ProcfsDump" => {
                    nothing(arg)?;
                    within(sandbox.clone().control_procfs_dump()).await?
                }
                "ContainerRuntimeState" => runtime_state(sandbox, &decode::<String>(arg)?)?,
                "Event" => sandbox.control_event(&decode::<String>(arg)?)?,
                "Signal" => within(sandbox.control_signal(decode(arg)?)).await?,
                "Pause" | "Resume" => {
                    nothing(arg)?;
                    within(sandbox.control_pause(name == "Pause")).await?
                }
                "Mount" => within(sandbox.clone().control_mount(decode(arg)?)).await?,
                "StartRoot" => within(sandbox.clone().control_start_root(decode(arg)?)).await?,
                "CreateSubcontainer" => sandbox.control_create_subcontainer(decode(arg)?, &fds)?,
                "StartSubcontainer" => {
                    let starting = sandbox
                        .clone()
                        .control_start_subcontainer(decode(arg)?, fds);
                    within(starting).await?
                }
                "DestroySubcontainer" => {
                    let destroying = sandbox.clone().control_destroy_subcontainer(decode(arg)?);
                    within(destroying).await?
                }
                "ExecuteAsync" => {
                    self.last_exec.set(self.last_exec.get() + 1);
                    let exec = format!("{EXEC_PREFIX}{}", self.last_exec.get());
                    within(sandbox.control_execute(exec, decode(arg)?, fds)).await?
                }
                "PortForward" => {
                    let forwarding = sandbox.clone().control_port_forward(decode(arg)?, fds);
                    within(forwarding).await?
                }
                "Wait" => sandbox.control_wait(&decode::<String>(arg)?).await?,
                "WaitPID" => sandbox.control_wait_pid(decode(arg)?).await?,
                _ => return Ok(None),
            }))
        };
        answered.await.transpose()
    }
}

impl Sandbox {
    fn control_berm(&self, name: &str, arg: Value, fds: Vec<OwnedFd>) -> Answer {
        match name {
            "State" => Some(nothing(arg).and_then(|()| states(self))),
            "Events" => Some(self.control_events(arg, fds)),
            _ => None,
        }
    }

    async fn control_cgroup_files(self, name: &str, arg: Value) -> Answer {
        let write = match name {
            "ReadControlFiles" => false,
            "WriteControlFiles" => true,
            _ => return None,
        };
        Some(within(self.control_cgroups(write, arg)).await)
    }

    /// Pauses or resumes the whole pod.
    fn control_pause(
        &self,
        pause: bool,
    ) -> impl Future<Output = Result<Reply, CallError>> + 'static {
        let sandbox = self.clone();
        async move {
            match pause {
                true => sandbox.pause_all().await?,
                false => sandbox.resume_all().await?,
            }
            Ok(Reply::empty())
        }
    }
}

/// Execs of this socket: a '/' is in no id that a client of containerd can choose.
const EXEC_PREFIX: &str = "control/";

/// The argument of a method that has none: `null` or `{}`.
fn nothing(arg: Value) -> Result<(), CallError> {
    match arg {
        Value::Null => Ok(()),
        arg => decode::<berm_urpc::Empty>(arg).map(drop),
    }
}

/// The methods that take no files. Those that do check them by themselves; an unknown one is
/// refused as such.
const WITHOUT_FILES: [&str; 22] = [
    "Cgroups.ReadControlFiles",
    "Cgroups.WriteControlFiles",
    "Logging.Change",
    "Metrics.Export",
    "Metrics.GetRegisteredMetrics",
    "Proc.Ps",
    "Usage.Collect",
    "Usage.UsageFD",
    "berm.State",
    "containerManager.ContainerRuntimeState",
    "containerManager.DestroySubcontainer",
    "containerManager.Event",
    "containerManager.Mount",
    "containerManager.Pause",
    "containerManager.Processes",
    "containerManager.ProcfsDump",
    "containerManager.Resume",
    "containerManager.Signal",
    "containerManager.StartRoot",
    "containerManager.Wait",
    "containerManager.WaitPID",
    "debug.Stacks",
];

fn no_files(method: &str, fds: &[OwnedFd]) -> Result<(), CallError> {
    if fds.is_empty() || !WITHOUT_FILES.contains(&method) {
        return Ok(());
    }
    let text = format!("{method} takes no files; {} came along", fds.len());
    Err(CallError::new(ErrorKind::InvalidArgument, text))
}

/// Runs a call with a deadline. The call itself is not cut off: a sandbox's verbs run to their
/// end.
async fn within<F>(call: F) -> Result<Reply, CallError>
where
    F: Future<Output = Result<Reply, CallError>> + 'static,
{
    match timeout(DEADLINE, tokio::task::spawn_local(call)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(CallError::new(
            ErrorKind::Internal,
            "call ended without a result",
        )),
        Err(_) => Err(CallError::new(
            ErrorKind::DeadlineExceeded,
            format!("no result within {} s", DEADLINE.as_secs()),
        )),
    }
}

/// gVisor's `ContainerRuntimeState`; it has no number for a paused container.
fn runtime_state(sandbox: &Sandbox, id: &str) -> Result<Reply, CallError> {
    let number: u32 = match sandbox.state(id, None)?.status {
        Status::Creating | Status::Created => 1,
        Status::Running | Status::Paused => 2,
        Status::Stopped => 3,
    };
    Reply::of(&number)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerState {
    id: String,
    pid: i32,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<u32>,
}

fn states(sandbox: &Sandbox) -> Result<Reply, CallError> {
    let tasks = sandbox.0.tasks.borrow();
    let state = |process: &Process, id: &str| ContainerState {
        id: id.to_owned(),
        pid: process.pid(),
        status: process.status().as_str(),
        exit_status: process.exit().map(|exit| exit.status),
    };
    let all: Vec<_> = tasks.values().map(|t| state(&t.process, &t.id)).collect();
    Reply::of(&all)
}

/// What wait(2) would say of a process that has ended.
fn wait_word(process: &Process) -> Result<Reply, CallError> {
    let word = process.child().and_then(|child| Child::wait_word(&child));
    // One that never ran has no word of the kernel's, only a status of ours.
    let never_ran = || process.exit().map_or(0, |exit| exit.status << 8);
    Reply::of(&word.unwrap_or_else(never_ran))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_execs_are_none_that_containerd_may_use() {
        assert!(crate::record::check_id(&format!("{EXEC_PREFIX}1")).is_err());
    }
}
