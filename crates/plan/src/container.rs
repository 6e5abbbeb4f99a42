//! What a container and an exec are made of, decided before anything is forked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berm_cgroup::{DeviceRule, Resources};
use berm_seccomp::Profile;
use oci_spec::runtime;
use serde::{Deserialize, Serialize};

use crate::annotations::Overrides;
use crate::attributes::Attributes;
use crate::caps::Powers;
use crate::hints::{self, MountHints};
use crate::hooks::{Hooks, OciState, StartHook};
use crate::ids::Ids;
use crate::mounts::Mounts;
use crate::namespaces::Namespaces;
use crate::pod::uts_name;
use crate::process::Workload;
use crate::refusal::{Error, invalid, unsupported};
use crate::seccomp::Listener;
use crate::spec::Spec;
use crate::step::{
    CapSets, CgroupNs, CgroupView, Mount, Propagate, Propagation, Rlimit, Rootfs, Scheduling,
    Source, Step, UpperFs,
};
use crate::upper::{RootfsUpper, UpperFile};
use crate::{attributes, devices, exec, hooks, netdevices, paths, resources, seccomp, unbuilt};

/// Inode numbers of the pod's namespaces on nsfs: two paths with the same inode are the same
/// namespace, however they are spelt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNamespaces {
    /// Network.
    pub net: u64,
    /// IPC.
    pub ipc: u64,
    /// UTS.
    pub uts: u64,
    /// PID.
    pub pid: u64,
    /// User.
    pub user: u64,
}

/// Namespaces that a pod shares with the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostShares {
    /// Network.
    pub net: bool,
    /// IPC.
    pub ipc: bool,
    /// UTS.
    pub uts: bool,
    /// PID.
    pub pid: bool,
}

/// The PID namespace of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidNs {
    /// One of its own.
    Own,
    /// The pod's, which may be the host's.
    Pod,
    /// That of another container of the pod, by its id.
    Container(String),
}

/// What the host was asked before the plan is made.
#[derive(Clone, Debug)]
pub struct ContainerFacts {
    /// The container's id.
    pub id: String,
    /// Its bundle directory.
    pub bundle: PathBuf,
    /// Id map of the pod; empty maps: no user namespace.
    pub ids: Ids,
    /// The pod's namespaces.
    pub pod: PodNamespaces,
    /// Inode of each namespace path that [`crate::Spec::namespace_paths`] lists; `None` if it
    /// cannot be looked at.
    pub inodes: BTreeMap<PathBuf, Option<u64>>,
    /// The network namespace belongs to the pod's user namespace, so that every capability works.
    pub owns_netns: bool,
    /// Which of the pod's namespaces are the host's.
    pub shares: HostShares,
    /// Containers of the pod by the inode of the PID namespace that each has of its own.
    pub pidns_of_containers: BTreeMap<u64, String>,
    /// The pod's mount hints.
    pub hints: MountHints,
    /// Annotations `dev.berm.*` that the configuration allows.
    pub allow_annotations: Vec<String>,
    /// True for the workload of a pod of one (plain `ctr run`): the pod's namespaces are its own.
    pub root: bool,
    /// Host name of the pod's UTS namespace, as its plan set it; a container may repeat it.
    pub hostname: Option<String>,
    /// Domain name, likewise.
    pub domainname: Option<String>,
    /// The root file system, as [`crate::rootfs`] made it of containerd's mount list.
    pub rootfs: Rootfs,
    /// Where what is written to it goes, unless the container's spec has a word in it.
    pub rootfs_upper: RootfsUpper,
    /// The cgroup directories that the container will see.
    pub cgroup_views: Vec<CgroupView>,
    /// The task wants a terminal (the request's word wins over the spec's).
    pub terminal: bool,
    /// `dead_capabilities = "warn"`: run a container all the same that asks for a capability
    /// which the kernel will not honour.
    pub allow_dead_capabilities: bool,
}

impl ContainerFacts {
    /// `root.path` as a path of the host.
    fn rootfs_dir(&self, spec: &Spec) -> PathBuf {
        self.bundle
            .join(spec.root_path().unwrap_or(Path::new("rootfs")))
    }

    /// The pod has a user namespace of its own.
    pub(crate) fn userns(&self) -> bool {
        !self.ids.uids.0.is_empty()
    }
}

/// A container, ready to be walked by a stage child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// A builds the tree outside of the container's cgroup and joins it then; elsewhere it is born
    /// in it where the kernel does that.
    pub joins_late: bool,
    /// Where what is written to its root file system goes: `None` is "nowhere else".
    pub rootfs_upper: Option<RootfsUpper>,
    /// The file that the host makes for it, for [`UpperFs::File`].
    pub upper_file: Option<UpperFile>,
    /// Limits of the container's cgroup.
    pub resources: Resources,
    /// What goes behind the device rules of a spec and of an Update; `resources` has them.
    pub device_rules: Vec<DeviceRule>,
    /// Where the container's processes are numbered.
    pub pidns: PidNs,
    /// What execs in it need to know.
    pub exec: ExecBase,
    /// How it is scheduled, set once it is at its gate: a policy that a clone loses, or that
    /// forbids to clone, is set on the workload to be.
    pub scheduling: Option<Scheduling>,
    /// Programs that run at moments of its life; `None`: the usual case.
    pub hooks: Option<Box<Hooks>>,
}

/// What every exec inherits from its container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecBase {
    /// Filter.
    pub seccomp: Option<Arc<Profile>>,
    /// Who is told of the system calls that the filter notifies of.
    pub listener: Option<Box<Listener>>,
    /// Capabilities of an exec whose process names none, as runc does.
    pub capabilities: CapSets,
    /// Limits of an exec whose process names none, as runc does.
    pub rlimits: Vec<Rlimit>,
    /// Scheduling and the like, of an exec whose process says nothing of it.
    pub attributes: Attributes,
    /// Id map of the pod.
    pub ids: Ids,
    /// The container has a time namespace of its own.
    pub timens: bool,
    /// Name of the container's session keyring.
    pub keyring: String,
    /// See [`ContainerFacts::owns_netns`].
    pub owns_netns: bool,
    /// See [`ContainerFacts::allow_dead_capabilities`].
    pub allow_dead_capabilities: bool,
}

/// An exec, ready to be walked by a stage child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecPlan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The CPUs on which it begins, before it is in its cgroup.
    pub initial_cpus: Option<Vec<u32>>,
}

/// Plans a container.
/// # Errors
/// [`Error::Invalid`] and [`Error::NotSupported`] with the field, the reason and the way out.
pub fn container(spec: &Spec, facts: &ContainerFacts) -> Result<ContainerPlan, Error> {
    unbuilt::refuse(spec)?;
    let userns = !facts.ids.uids.0.is_empty();
    let overrides = Overrides::parse(spec, &facts.allow_annotations)?;
    annotation_fits(&overrides, userns)?;
    let rootfs_upper = overrides.rootfs_upper.as_ref();
    let rootfs_upper = rootfs_upper.unwrap_or(&facts.rootfs_upper);
    let (upper, upper_file) = rootfs_upper
        .over(&facts.rootfs, readonly_root(spec))?
        .map_or((None, None), |(upper, file)| (Some(upper), file));
    facts.hints.only_repeated(spec)?;
    let namespaces = Namespaces::parse(&spec.oci)?;
    let pidns = if facts.root {
        namespaces.of_root(facts.shares)?
    } else {
        namespaces.of_container(&spec.oci, facts)?
    };
    let timens = namespaces.time(&spec.oci)?;
    uts_names(spec, facts)?;
    let Some(process) = spec.oci.process() else {
        return Err(invalid(
            "process",
            "missing",
            "a container needs a process to run",
        ));
    };
    let powers = Powers {
        userns,
        owns_netns: facts.owns_netns,
        allow_dead: facts.allow_dead_capabilities,
    };
    let mut workload = Workload::parse(process, &facts.ids, powers)?;
    let linux = spec.oci.linux().as_ref();
    workload.attributes.add(linux)?;
    let seccomp = linux
        .and_then(|l| l.seccomp().as_ref())
        .map(seccomp::profile)
        .transpose()?
        .map(Arc::new);
    let devices = linux
        .and_then(|l| l.devices().as_deref())
        .unwrap_or_default();
    let limits = linux.and_then(|l| l.resources().as_ref());
    let exec = ExecBase {
        seccomp: seccomp.clone(),
        listener: linux
            .and_then(|l| l.seccomp().as_ref())
            .zip(seccomp.as_ref())
            .and_then(|(given, profile)| {
                let state = || OciState::new(spec, &facts.id, &facts.bundle);
                Listener::of(given, profile, state)
            }),
        capabilities: workload.capabilities.unwrap_or_default(),
        rlimits: workload.rlimits.clone().unwrap_or_default(),
        attributes: workload.attributes.clone(),
        ids: facts.ids.clone(),
        timens: timens.is_some(),
        keyring: keyring(facts),
        owns_netns: facts.owns_netns,
        allow_dead_capabilities: facts.allow_dead_capabilities,
    };
    let device_rules = devices::default_rules(devices);
    let resources = resources::at_creation(limits, &device_rules)?;
    let mut mounts = Mounts::parse(&spec.oci, facts)?;
    if namespaces.cgroup(userns) == CgroupNs::Host {
        mounts.whole_cgroup2();
    }
    let readonly = mounts.readonly_later();
    let hidden = Hidden::parse(linux, &mounts, readonly)?;
    let hooks = hooks(spec, &workload, &exec, facts)?;
    let before_pivot = hooks.as_ref().is_some_and(|hooks| hooks.before_pivot());
    let mut steps = tree(spec, facts, &workload, (&mounts, &hidden), upper)?;
    if before_pivot {
        nothing_unbindable(&mounts)?;
        look_before_pivot(&mut steps, facts.rootfs_dir(spec));
    }
    steps.extend(timens.map(Step::TimeNs));
    let own_pidns = pidns == PidNs::Own;
    let cgroupns = namespaces.cgroup(userns);
    steps.extend(crossing(facts, own_pidns, cgroupns, &workload));
    if before_pivot {
        steps.extend([Step::Hooks, Step::PivotLocked]);
        steps.extend(readonly_root(spec).then_some(Step::ReadonlyRoot));
    }
    let joins_late = opens_devices(&facts.rootfs, &mounts, upper);
    steps.extend(mounts.root.map(Step::RootPropagation));
    steps.extend(mounts.proc.iter().map(|(target, attr)| Step::MountProc {
        target: target.clone(),
        attr: *attr,
        over: mounts.over(target),
    }));
    steps.extend(paths_step(hidden.mask_proc, Step::MaskProc));
    steps.extend(paths_step(hidden.readonly_proc, Step::ReadonlyProc));
    steps.extend(workload.label_steps());
    steps.push(Step::Stdio);
    steps.push(workload.resolve_exec());
    steps.push(Step::Gate);
    let scheduling = workload.attributes.scheduling;
    steps.push(workload.umask());
    steps.push(Step::Cwd(workload.cwd.clone()));
    steps.extend(workload.end(seccomp));
    Ok(ContainerPlan {
        steps,
        joins_late,
        rootfs_upper: upper.map(|_| rootfs_upper.clone()),
        upper_file,
        resources,
        device_rules,
        pidns,
        exec,
        scheduling,
        hooks,
    })
}

/// The hooks of the spec; `None`: there are none.
fn hooks(
    spec: &Spec,
    workload: &Workload,
    base: &ExecBase,
    facts: &ContainerFacts,
) -> Result<Option<Box<Hooks>>, Error> {
    if spec.oci.hooks().is_none() {
        return Ok(None);
    }
    let mut hooks = Hooks::parse(spec, &facts.id, &facts.bundle)?;
    for hook in hooks::start_container(spec)? {
        let resolve = Step::ResolveExec {
            command: hook.path.to_string_lossy().into_owned(),
            path: None,
            cwd: workload.cwd.clone(),
            home_of: None,
        };
        let process = workload.with_command(&hook.args, &hook.env);
        let exec = ExecPlan {
            initial_cpus: None,
            steps: exec::steps(process, false, resolve, base),
        };
        hooks.start_container.push(StartHook { hook, exec });
    }
    Ok(Some(Box::new(hooks)))
}

/// Hooks look at the tree from the host's: it is attached there, and neither made read-only nor
/// the root before they are done.
fn look_before_pivot(steps: &mut Vec<Step>, at: PathBuf) {
    steps.retain(|step| !matches!(step, Step::ReadonlyRoot | Step::Pivot));
    for step in steps {
        if *step == Step::Assemble {
            *step = Step::AssembleAt(at);
            return;
        }
    }
}

/// CRI copies annotations of the pod to its containers: one may repeat what its pod is, no more.
fn annotation_fits(overrides: &Overrides, userns: bool) -> Result<(), Error> {
    match overrides.host_users {
        Some(true) if userns => Err(unsupported(
            "annotations[\"dev.berm.userns\"]",
            "the pod has a user namespace, and its containers share it",
            "set it on the pod",
        )),
        _ => Ok(()),
    }
}

/// The UTS namespace and the sysctls are the pod's: a container may say the same, no more.
fn uts_names(spec: &Spec, facts: &ContainerFacts) -> Result<(), Error> {
    if facts.root {
        return Ok(());
    }
    let names = [
        ("hostname", spec.oci.hostname(), &facts.hostname),
        ("domainname", spec.oci.domainname(), &facts.domainname),
    ];
    for (field, asked, pod) in names {
        let asked = uts_name(field, asked.as_deref())?;
        if asked.is_some() && asked != *pod {
            let reason = "not the name of the pod, whose UTS namespace the container shares";
            return Err(unsupported(
                field,
                reason,
                "drop it, or name the sandbox so",
            ));
        }
    }
    let linux = spec.oci.linux().as_ref();
    if linux
        .and_then(|l| l.sysctl().as_ref())
        .is_some_and(|map| !map.is_empty())
    {
        let reason = "the namespaces are the pod's, so its sandbox sets the sysctls";
        return Err(unsupported(
            "linux.sysctl",
            reason,
            "move them to the sandbox",
        ));
    }
    Ok(())
}

/// Masked and read-only paths, by who can reach them: what is on a proc mount is there only once
/// the workload has mounted it.
#[derive(Debug)]
struct Hidden {
    mask: Vec<PathBuf>,
    mask_proc: Vec<PathBuf>,
    readonly: Vec<PathBuf>,
    readonly_proc: Vec<PathBuf>,
    readonly_mounts: Vec<PathBuf>,
}

impl Hidden {
    fn parse(
        linux: Option<&runtime::Linux>,
        mounts: &Mounts,
        readonly_mounts: Vec<PathBuf>,
    ) -> Result<Self, Error> {
        let masked = linux.and_then(|l| l.masked_paths().as_deref());
        let readonly = linux.and_then(|l| l.readonly_paths().as_deref());
        let on_proc = |path: &PathBuf| mounts.on_proc(path);
        let masked = paths::absolute("linux.maskedPaths", masked)?;
        let readonly = paths::absolute("linux.readonlyPaths", readonly)?;
        let (mask_proc, mask) = masked.into_iter().partition(on_proc);
        let (readonly_proc, readonly) = readonly.into_iter().partition(on_proc);
        Ok(Self {
            mask,
            mask_proc,
            readonly,
            readonly_proc,
            readonly_mounts,
        })
    }
}

/// True if the tree has file systems on block devices. Whoever mounts one opens its device, which
/// the rules of the container's cgroup are not about: they are for the workload.
fn opens_devices(rootfs: &Rootfs, mounts: &Mounts, upper: Option<UpperFs>) -> bool {
    // Two slashes are a server's share.
    let device = |path: &str| path.starts_with('/') && !path.starts_with("//");
    let of = |mount: &Mount| matches!(&mount.source, Source::Fs { source, .. } if device(source));
    let root = matches!(rootfs, Rootfs::Fs(_)) || upper == Some(UpperFs::File);
    root || mounts.tree.iter().any(of)
}

/// A, with the host's credentials: everything that the container will see.
fn tree(
    spec: &Spec,
    facts: &ContainerFacts,
    workload: &Workload,
    (mounts, hidden): (&Mounts, &Hidden),
    upper: Option<UpperFs>,
) -> Result<Vec<Step>, Error> {
    let linux = spec.oci.linux().as_ref();
    let devices = linux
        .and_then(|l| l.devices().as_deref())
        .unwrap_or_default();
    let late = opens_devices(&facts.rootfs, mounts, upper);
    let mut steps = vec![Step::Seal];
    let label = attributes::mount_label(linux)?;
    hints::refuse_label(label.as_ref(), &mounts.tree)?;
    steps.extend(label.map(Step::MountLabel));
    steps.extend((!late).then_some(Step::JoinCgroups));
    steps.extend(workload.oom_score_adj.map(Step::OomScoreAdj));
    steps.extend(workload.attributes.io_priority.map(Step::IoPriority));
    let net = netdevices::parse(linux, facts.shares.net)?;
    steps.extend((!net.is_empty()).then_some(Step::NetDevices(net)));
    steps.push(Step::JoinNetIpc);
    steps.extend(upper.map(Step::RootfsUpper));
    steps.push(Step::Rootfs(facts.rootfs.clone()));
    steps.extend(mounts.tree.iter().cloned().map(Step::Mount));
    steps.extend(late.then_some(Step::JoinCgroups));
    if facts.terminal {
        if !matches!(
            mounts.at("/dev/pts").map(|m| &m.source),
            Some(Source::Devpts { .. })
        ) {
            let reason = "a terminal needs a devpts mount at /dev/pts";
            return Err(invalid(
                "process.terminal",
                reason,
                "add the mount, or drop the terminal",
            ));
        }
        steps.push(Step::Pty {
            size: workload.size,
            uid: workload.uid,
        });
    }
    steps.push(Step::Assemble);
    // The process that mounts proc is inside the pod, where the image may be read-only.
    let proc = mounts.proc.iter().map(|(target, _)| target.clone());
    steps.extend(proc.map(Step::MakeDir));
    let limits = linux.and_then(|l| l.resources().as_ref());
    let every = facts.userns() && limits.is_some_and(devices::allow_every);
    let devices = if every {
        devices::open_to_all(devices)
    } else {
        devices.to_vec()
    };
    if let Some(nodes) = devices::nodes(&devices, mounts, &facts.ids)? {
        steps.extend([Step::Devices(nodes), Step::Links(devices::links())]);
    }
    steps.extend(facts.terminal.then_some(Step::Console));
    if workload.cwd != Path::new("/") && !mounts.on_proc(&workload.cwd) {
        steps.push(Step::MakeDir(workload.cwd.clone()));
    }
    let later = hidden.readonly_mounts.clone();
    steps.extend(paths_step(later, Step::ReadonlyMounts));
    steps.extend(paths_step(hidden.mask.clone(), Step::Mask));
    steps.extend(paths_step(hidden.readonly.clone(), Step::ReadonlyPaths));
    steps.extend(readonly_root(spec).then_some(Step::ReadonlyRoot));
    steps.push(Step::Pivot);
    Ok(steps)
}

/// The tree that hooks have seen becomes the root by a copy, which has no unbindable mounts.
fn nothing_unbindable(mounts: &Mounts) -> Result<(), Error> {
    let unbindable = |p: &Propagate| p.kind == Propagation::Unbindable;
    let found = |m: &&Mount| m.propagation.last().is_some_and(unbindable);
    match mounts.tree.iter().find(found) {
        Some(mount) => Err(unsupported(
            format!("mounts[{}].options", mount.index),
            "an unbindable mount in a container whose hooks look at its tree",
            "use \"private\", or hooks of another kind",
        )),
        None => Ok(()),
    }
}

fn readonly_root(spec: &Spec) -> bool {
    let root = spec.oci.root().as_ref();
    root.and_then(runtime::Root::readonly).unwrap_or(false)
}

/// From the host's credentials into the pod, up to B's first step.
fn crossing(
    facts: &ContainerFacts,
    own_pidns: bool,
    cgroupns: CgroupNs,
    workload: &Workload,
) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend((!facts.terminal).then_some(Step::StdioOwner(workload.uid, workload.gid)));
    steps.extend(workload.rlimits_step());
    steps.extend([
        Step::JoinPod,
        Step::NewKeyring(keyring(facts)),
        Step::LockMounts { cgroupns },
        Step::CloneInit { own_pidns },
        Step::Session,
    ]);
    steps
}

/// runc's name for it.
fn keyring(facts: &ContainerFacts) -> String {
    format!("_ses.{}", facts.id)
}

fn paths_step(paths: Vec<PathBuf>, step: fn(Vec<PathBuf>) -> Step) -> Option<Step> {
    (!paths.is_empty()).then(|| step(paths))
}
