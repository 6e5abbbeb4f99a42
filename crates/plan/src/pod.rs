//! What a new sandbox is made of, decided before anything is forked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berm_cgroup::{DeviceRule, Resources};
use oci_spec::runtime;
use serde::{Deserialize, Serialize};

use crate::annotations::Overrides;
use crate::hints::MountHints;
use crate::ids::Ids;
use crate::namespaces::{Namespaces, PodNs};
use crate::paths::clean;
use crate::refusal::{Error, invalid, no_nul, quoted};
use crate::spec::{Spec, TaskKind};
use crate::step::NetDevice;
use crate::upper::RootfsUpper;
use crate::{
    attributes, devices, extra_ids, hooks, netdevices, process, resources, sysctl, unbuilt,
};

/// Where the pod's user namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNs {
    /// A range of the node's pool; the sandbox allocates it.
    Auto,
    /// A new namespace with the mappings of the spec.
    Mapped(Ids),
    /// A namespace that somebody made and pinned (CRI with `hostUsers: false`), with its mappings.
    Path(PathBuf, Ids),
    /// The host's: root inside is root of the host, and nothing of the pod is a security boundary.
    Host(HostUsers),
}

/// Why a pod has no user namespace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostUsers {
    /// It is in the host's network namespace.
    HostNetwork,
    /// It is in the host's PID namespace.
    HostPid,
    /// It is in the host's IPC namespace.
    HostIpc,
    /// Its `/sys` is writable, CRI's only mark of a privileged sandbox.
    Privileged,
    /// Annotation `dev.berm.userns: host`.
    Annotation,
    /// `userns = "host"` in the configuration.
    Config,
    /// This kernel cannot idmap what its containers mount: see
    /// [`PodFacts::volumes_without_idmap`].
    Kernel,
}

impl HostUsers {
    /// The word for logs and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HostNetwork => "hostNetwork",
            Self::HostPid => "hostPID",
            Self::HostIpc => "hostIPC",
            Self::Privileged => "privileged",
            Self::Annotation => "annotation",
            Self::Config => "config",
            Self::Kernel => "kernel",
        }
    }
}

/// Where a namespace of the pod comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Namespace {
    /// A new one inside the pod's user namespace. In a new network namespace loopback is brought
    /// up.
    New,
    /// The host's.
    Host,
    /// One that somebody made: a network namespace of CNI's, or any in a pod without a user
    /// namespace.
    Path(PathBuf),
}

/// Who can write a sysctl of the pod's own namespaces (measured: the kernel checks the writer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SysctlWriter {
    /// `net.*`: the host, from inside the network namespace.
    Host,
    /// `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`: root of the pod.
    Pod,
}

/// One sysctl of a namespace that is the pod's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Path below `/proc/sys`, with slashes.
    pub path: String,
    /// The value as it is written.
    pub value: String,
    /// Who writes it.
    pub writer: SysctlWriter,
}

/// Everything that the creation of a sandbox needs to know of its spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodPlan {
    /// User namespace.
    pub userns: UserNs,
    /// First ids of the blocks of 65,536 that [`UserNs::Auto`] maps beside ids 0 to 65535.
    pub extra_ids: Vec<u32>,
    /// Network namespace.
    pub netns: Namespace,
    /// PID namespace.
    pub pidns: Namespace,
    /// IPC namespace.
    pub ipcns: Namespace,
    /// UTS namespace.
    pub utsns: Namespace,
    /// Host name, set in the pod's UTS namespace.
    pub hostname: Option<String>,
    /// Domain name, likewise.
    pub domainname: Option<String>,
    /// Sysctls of the pod's namespaces, by name; [`Sysctl::value_for`] is what is written.
    pub sysctls: Vec<Sysctl>,
    /// Network devices of the node that become the pod's, of a CRI sandbox; those of a root
    /// container come with its own steps.
    pub net_devices: Vec<NetDevice>,
    /// What the pod says of its volumes beyond their mounts.
    pub hints: MountHints,
    /// Where what its containers write to their root file systems goes.
    pub rootfs_upper: RootfsUpper,
    /// Score of PID 1 (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// The spec's `cgroupsPath`, if it names one.
    pub cgroup: Option<String>,
    /// Limits of the sandbox's own cgroup.
    pub resources: Resources,
    /// What goes behind the device rules of a spec and of an Update; `resources` has them.
    pub device_rules: Vec<DeviceRule>,
    /// True for a CRI sandbox container: no workload, its rootfs is never mounted. False: the
    /// spec describes a root container, the workload of a pod of one.
    pub pause: bool,
    /// `io.kubernetes.cri.sandbox-name`.
    pub pod_name: Option<String>,
    /// `io.kubernetes.cri.sandbox-namespace`.
    pub pod_namespace: Option<String>,
}

/// What the configuration says about new pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// In a pod whose network namespace CNI made for another user namespace, ports below 1024 and
    /// ping sockets are opened by sysctl, because the kernel ignores its capabilities there.
    pub open_low_ports_and_ping: bool,
    /// Pods that share a namespace with the host, are privileged, or want no user namespace are
    /// refused.
    pub refuse_host_pods: bool,
    /// A pod whose spec says nothing gets no user namespace (`userns = "host"`).
    pub host_users: bool,
    /// Ids above 65535 that are mapped in every pod with a range of the pool, with their
    /// neighbours.
    pub extra_ids: Vec<u32>,
    /// Where what containers write to their root file systems goes, where a pod has no word in it.
    pub rootfs_upper: RootfsUpper,
    /// Annotations `dev.berm.*` that a pod may set.
    pub allow_annotations: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            open_low_ports_and_ping: true,
            refuse_host_pods: false,
            host_users: false,
            extra_ids: Vec::new(),
            rootfs_upper: RootfsUpper::default(),
            allow_annotations: Vec::new(),
        }
    }
}

/// What the host was asked before the plan is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Those of [`Spec::namespace_paths`] that are the caller's own namespaces: the host's under
    /// another name.
    pub host_paths: Vec<PathBuf>,
    /// The kernel cannot idmap a tmpfs (before 6.3), and volumes of the pod lie on one, or will:
    /// kubelet keeps secrets and tokens in memory.
    pub volumes_without_idmap: bool,
    /// Where kubelet has the volumes that [`Spec::volumes_to_find`] names, as far as it has them.
    pub volumes: BTreeMap<String, PathBuf>,
}

/// Plans the sandbox of a pod.
/// # Errors
/// [`Error::Invalid`] and [`Error::NotSupported`] with the field, the reason and the way out.
pub fn pod(spec: &Spec, policy: &Policy, facts: &PodFacts) -> Result<PodPlan, Error> {
    let pause = match spec.kind() {
        TaskKind::Sandbox => true,
        TaskKind::Root => false,
        TaskKind::Container { sandbox_id } => {
            let reason = format!(
                "the container's sandbox {} is not there",
                quoted(sandbox_id)
            );
            return Err(invalid("annotations", reason, "create the sandbox first"));
        }
    };
    unbuilt::refuse(spec)?;
    if pause {
        hooks::refuse_in_sandbox(spec)?;
    }
    let overrides = Overrides::parse(spec, &policy.allow_annotations)?;
    let namespaces = Namespaces::parse(&spec.oci)?;
    if pause {
        namespaces.of_sandbox_task()?;
    }
    let PodNs {
        userns,
        net: netns,
        pid: pidns,
        ipc: ipcns,
        uts: utsns,
    } = namespaces.of_pod(&spec.oci, facts, policy, &overrides)?;
    let process = spec.oci.process().as_ref();
    process.map(process::refuse_foreign).transpose()?;
    if pause {
        attributes::refuse_in_sandbox(&spec.oci)?;
    }
    let linux = spec.oci.linux().as_ref();
    let mut sysctls = sysctls(linux)?;
    sysctl::refuse_shared(&sysctls, &netns, &ipcns)?;
    let from_cni = matches!(netns, Namespace::Path(_));
    if policy.open_low_ports_and_ping && userns == UserNs::Auto && from_cni {
        sysctl::open_low_ports_and_ping(&mut sysctls);
    }
    let net_devices = netdevices::parse(linux, netns == Namespace::Host)?;
    let devices = linux
        .and_then(|l| l.devices().as_deref())
        .unwrap_or_default();
    let limits = linux.and_then(|l| l.resources().as_ref());
    let device_rules = devices::default_rules(devices);
    let hostname = uts_name("hostname", spec.oci.hostname().as_deref())?;
    let domainname = uts_name("domainname", spec.oci.domainname().as_deref())?;
    refuse_host_name(&utsns, hostname.as_deref(), domainname.as_deref())?;
    let extra_ids = match userns {
        UserNs::Auto => extra_ids::blocks(&policy.extra_ids, process)?,
        _ => Vec::new(),
    };
    Ok(PodPlan {
        userns,
        extra_ids,
        netns,
        pidns,
        ipcns,
        utsns,
        hostname,
        domainname,
        sysctls,
        net_devices: if pause { net_devices } else { Vec::new() },
        rootfs_upper: overrides
            .rootfs_upper
            .unwrap_or_else(|| policy.rootfs_upper.clone()),
        hints: MountHints::parse(spec, &facts.volumes)?,
        oom_score_adj: process.map(process::oom_score_adj).transpose()?.flatten(),
        cgroup: spec.cgroups_path().map(str::to_owned),
        resources: resources::at_creation(limits, &device_rules)?,
        device_rules,
        pause,
        pod_name: spec.pod_name().map(str::to_owned),
        pod_namespace: spec.pod_namespace().map(str::to_owned),
    })
}

/// A name of the UTS namespace; the kernel keeps 64 bytes (`__NEW_UTS_LEN`).
pub(crate) fn uts_name(field: &str, name: Option<&str>) -> Result<Option<String>, Error> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    no_nul(field, name)?;
    if name.len() > 64 {
        let reason = format!("{} bytes, the kernel takes 64", name.len());
        return Err(invalid(field, reason, "use a shorter name"));
    }
    Ok(Some(name.to_owned()))
}

/// In the order of their names, because the spec's map has none.
fn sysctls(linux: Option<&runtime::Linux>) -> Result<Vec<Sysctl>, Error> {
    let map = linux.and_then(|l| l.sysctl().as_ref());
    let mut entries: Vec<_> = map.into_iter().flatten().collect();
    entries.sort();
    entries
        .into_iter()
        .map(|(key, value)| sysctl::parse(key, value))
        .collect()
}

/// The name would be the node's.
fn refuse_host_name(
    utsns: &Namespace,
    hostname: Option<&str>,
    domainname: Option<&str>,
) -> Result<(), Error> {
    let field = match (hostname, domainname) {
        _ if *utsns == Namespace::New => return Ok(()),
        (None, None) => return Ok(()),
        (Some(_), _) => "hostname",
        (None, Some(_)) => "domainname",
    };
    Err(invalid(
        field,
        "the UTS namespace is not the pod's own, so the name would be somebody else's too",
        "drop it, or add a namespace of type \"uts\"",
    ))
}

/// CRI marks a privileged sandbox by a writable `/sys`, and by nothing else.
pub(crate) fn is_privileged(oci: &runtime::Spec) -> bool {
    let mounts = oci.mounts().as_deref().unwrap_or_default();
    let sys = mounts
        .iter()
        .rfind(|m| clean(m.destination()) == Path::new("/sys"));
    let options = sys.map(|m| m.options().as_deref().unwrap_or_default());
    let last = |options: &[String]| {
        let word = options
            .iter()
            .rev()
            .find_map(|option| match option.as_str() {
                "ro" | "rro" => Some(false),
                "rw" | "rrw" => Some(true),
                _ => None,
            });
        word.unwrap_or(true)
    };
    options.is_some_and(last)
}
