//! What an operator can set about sandboxes.

use std::path::PathBuf;
use std::time::Duration;

use berm_metrics::Address;
use berm_plan::Policy;
use berm_sys::Kernel;

use crate::change_logging::ChangeLogging;

/// Settings of the sandbox room. Each has a default; an absent file is fine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where records and control sockets live: `<state_dir>/<namespace>/<sandbox id>/`.
    pub state_dir: PathBuf,
    /// First host id of the node's pool.
    pub id_pool_start: u32,
    /// Last host id of the node's pool.
    pub id_pool_end: u32,
    /// Run a container that asks for a capability which the kernel will not honour in a pod with
    /// a user namespace (`dead_capabilities = "warn"`).
    pub allow_dead_capabilities: bool,
    /// What the kernel can; `None`: what a look at it says. Anything else is for tests of the
    /// ways around what older kernels lack.
    pub kernel: Option<Kernel>,
    /// Where the node's metric server listens. Only where it is set do new sandboxes register
    /// metrics.
    pub metric_server: Option<Address>,
    /// Tell why a container of a CRI pod cannot run in `berm.log` of the pod's log directory
    /// (`io.kubernetes.cri.sandbox-log-directory`), as gVisor does in `gvisor.log`.
    pub user_log: bool,
    /// What a sandbox's spec may ask for.
    pub policy: Policy,
    /// How the process that owns the sandboxes changes what it logs; `None`: by the level alone.
    pub change_logging: Option<ChangeLogging>,
    /// How long a stage child may take: a hung volume must not hang its pod's shim.
    pub stage_deadline: Duration,
    /// How long a hook may take whose spec gives it no timeout.
    pub hook_deadline: Duration,
    /// How long processes may take to die once they are killed.
    pub kill_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/run/berm"),
            // Neither kubelet nor systemd hands these out; 4,094 ranges of 65,536.
            id_pool_start: 0x7000_0000,
            id_pool_end: 0x7FFD_FFFF,
            allow_dead_capabilities: false,
            kernel: None,
            metric_server: None,
            user_log: false,
            policy: Policy::default(),
            change_logging: None,
            stage_deadline: Duration::from_secs(30),
            hook_deadline: Duration::from_secs(120),
            kill_deadline: Duration::from_secs(10),
        }
    }
}
