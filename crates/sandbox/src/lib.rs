//! Creates a sandbox process for a pod and runs, signals, waits for, inspects and destroys
//! containers in it: the Rust counterpart of gVisor's package `runsc/sandbox`.
//!
//! Nothing inside a pod is ever asked: every process of it is a child of the caller, so pids,
//! exit codes and pidfds come from the kernel. The caller is single-threaded, runs a tokio
//! `current_thread` runtime and makes all calls in one [`tokio::task::LocalSet`].
//!
//! `examples/pod.rs` makes a pod of two containers, without containerd. In short:
//!
//! ```no_run
//! use std::rc::Rc;
//!
//! use berm_sandbox::{Args, Config, ContainerArgs, Host, Sandbox, Spec};
//!
//! # async fn run(config_json: &[u8]) -> Result<(), berm_sandbox::Error> {
//! let host = Rc::new(Host::detect(Config::default())?);
//! let (events, _happenings) = tokio::sync::mpsc::unbounded_channel();
//! let args = Args::new("demo", "default", "/bundle", Spec::parse(config_json)?);
//! let sandbox = Sandbox::create(host, args, events).await?;
//! sandbox
//!     .create_container(ContainerArgs::new("demo", "/bundle", Spec::parse(config_json)?))
//!     .await?;
//! sandbox.start("demo").await?;
//! let exit = sandbox.wait("demo", None).await?;
//! sandbox.delete("demo", None).await?;
//! # let _ = exit;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod api;
mod aside;
mod cgroup_file;
mod change_logging;
mod check;
mod cleanup;
mod config;
mod console;
mod container;
mod control;
mod create;
mod delete;
mod donated;
mod error;
mod events;
mod exec;
mod exits;
mod explain;
mod hints;
mod hooks;
mod host;
mod ids;
mod inspect;
mod io_files;
mod kill;
mod listener;
mod live;
mod logger;
pub mod metrics;
mod mount;
mod mounts_file;
mod namespace;
mod oom;
mod open_calls;
mod pause;
mod phases;
mod polled;
mod port_forward;
mod process;
mod processes;
mod procfs;
mod procfs_dump;
mod record;
mod refused;
pub mod rootless;
mod scope;
mod signal;
mod splice;
mod stacks;
mod stage;
mod start;
mod state;
mod subcontainer;
mod task;
mod update;
mod upper;
mod usage;
mod user_log;

pub use api::{
    Args, ContainerArgs, Created, Event, Exit, Pid, ProcessState, RootfsMount, Status, Stdio,
};
/// What `stats` answers is made of this room's types.
pub use berm_cgroup as cgroup;
pub use berm_cgroup::Stats;
pub use berm_plan::{
    Extent, HintType, IdMap, MountHint, MountHints, Policy, RootfsUpper, Spec, TaskKind,
};
/// For a caller that starts: what it was started with does not get into what it forks.
pub use berm_sys::process::set_cloexec_on_all_fds;
pub use berm_urpc as urpc;
pub use change_logging::{ChangeLogging, LogChange};
pub use check::{Finding, Verdict, check};
pub use cleanup::{cleanup, sweep_dead};
pub use config::Config;
pub use console::ConsoleSocket;
pub use donated::{Donated, PassFile};
pub use error::Error;
pub use explain::{
    Asked, ContainerExplained, Credentials, Explanation, InForce, Limit, MountExplained,
    NamespaceExplained,
};
pub use host::Host;
pub use live::Sandbox;
pub use logger::{Logger, LoggerArgs};
pub use metrics::Timed;
pub use open_calls::OpenCall;
pub use phases::{Phases, done as phase_done};
pub use process::Identity;
pub use processes::ProcessEntry;
pub use procfs_dump::{
    AddressRange, CgroupEntry, Mapping, OpenFile, Permissions, ProcessDump, Rlimit, StatDump,
    StatusDump, ThreeIds,
};
pub use record::{ContainerRecord, Isolation, Record, Records};
pub use refused::Refused as RefusedTask;
pub use state::Refused;
pub use usage::{Usage, UsageFiles};
pub use user_log::UserLog;
