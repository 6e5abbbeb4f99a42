//! `linux.namespaces`: new, the pod's own by inode, or refused.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{self, LinuxNamespace, LinuxNamespaceType};

use crate::annotations::Overrides;
use crate::container::{ContainerFacts, HostShares, PidNs};
use crate::ids::Ids;
use crate::pod::{HostUsers, Namespace, PodFacts, Policy, UserNs};
use crate::refusal::{Error, invalid, quoted, unsupported};
use crate::step::{CgroupNs, Clock, TimeOffset};
use crate::{idmap, pod};

/// What the spec says about one type of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry<'a> {
    /// Nothing: the runtime's own, that is the host's.
    Absent,
    /// A new one.
    New,
    /// That of a path.
    Path(&'a Path),
}

/// The namespaces of a spec, each type at most once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Namespaces<'a> {
    list: &'a [LinuxNamespace],
}

impl<'a> Namespaces<'a> {
    /// Reads the list; refuses what no task of Berm can have.
    pub(crate) fn parse(spec: &'a runtime::Spec) -> Result<Self, Error> {
        let linux = spec.linux().as_ref();
        let list = linux
            .and_then(|l| l.namespaces().as_deref())
            .unwrap_or_default();
        for (index, namespace) in list.iter().enumerate() {
            if list[..index].iter().any(|n| n.typ() == namespace.typ()) {
                let reason = format!("{} is there twice", quoted(name(namespace.typ())));
                return Err(invalid(
                    format!("linux.namespaces[{index}]"),
                    reason,
                    "keep one",
                ));
            }
            if let Some(path) = namespace.path() {
                let text = path.to_string_lossy();
                if !text.is_empty() && (!path.is_absolute() || text.contains('\0')) {
                    let reason = format!("{} is not an absolute path", quoted(&text));
                    let way_out = "use a path such as /proc/<pid>/ns/net";
                    return Err(invalid(field(namespace.typ()), reason, way_out));
                }
            }
        }
        let namespaces = Self { list };
        namespaces.mount_and_cgroup()?;
        Ok(namespaces)
    }

    fn entry(&self, typ: LinuxNamespaceType) -> Entry<'a> {
        let Some(namespace) = self.list.iter().find(|n| n.typ() == typ) else {
            return Entry::Absent;
        };
        match namespace.path().as_deref() {
            Some(path) if !path.as_os_str().is_empty() => Entry::Path(path),
            _ => Entry::New,
        }
    }

    /// Every container has a mount namespace of its own.
    fn mount_and_cgroup(&self) -> Result<(), Error> {
        use LinuxNamespaceType::{Cgroup, Mount};
        match self.entry(Mount) {
            Entry::New => {}
            Entry::Absent => {
                let reason = "a container needs a mount namespace of its own";
                return Err(invalid(field(Mount), reason, "add an entry without a path"));
            }
            Entry::Path(_) => return Err(foreign(Mount, "add the entry without a path")),
        }
        if let Entry::Path(_) = self.entry(Cgroup) {
            return Err(foreign(
                Cgroup,
                "add the entry without a path, or leave it out",
            ));
        }
        Ok(())
    }

    /// How far the clocks of a container are off the node's; `None`: it has the node's.
    pub(crate) fn time(&self, spec: &runtime::Spec) -> Result<Option<Vec<TimeOffset>>, Error> {
        const FIELD: &str = "linux.timeOffsets";
        let linux = spec.linux().as_ref();
        let map = linux.and_then(|l| l.time_offsets().as_ref());
        let mut given: Vec<_> = map.into_iter().flatten().collect();
        given.sort_by_key(|(clock, _)| *clock);
        match self.entry(LinuxNamespaceType::Time) {
            Entry::New => {}
            Entry::Absent if given.is_empty() => return Ok(None),
            Entry::Absent => {
                let way_out = "add a namespace of type \"time\", or drop them";
                return Err(invalid(FIELD, "without a time namespace", way_out));
            }
            Entry::Path(_) => {
                let way_out = "leave the path out and give the same offsets";
                return Err(foreign(LinuxNamespaceType::Time, way_out));
            }
        }
        let offset = |(name, offset): (&String, &runtime::LinuxTimeOffset)| {
            let clock = match name.as_str() {
                "monotonic" => Clock::Monotonic,
                "boottime" => Clock::Boottime,
                other => {
                    let reason = format!("{} is no clock of a time namespace", quoted(other));
                    return Err(invalid(FIELD, reason, "use monotonic or boottime"));
                }
            };
            let (secs, nanosecs) = (
                offset.secs().unwrap_or_default(),
                offset.nanosecs().unwrap_or_default(),
            );
            if nanosecs > 999_999_999 {
                let reason = format!("{nanosecs} nanoseconds are more than a second");
                return Err(invalid(format!("{FIELD}.{name}"), reason, "use secs"));
            }
            Ok(TimeOffset {
                clock,
                secs,
                nanosecs,
            })
        };
        given
            .into_iter()
            .map(offset)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// Refuses what only a workload could have.
    pub(crate) fn of_sandbox_task(&self) -> Result<(), Error> {
        match self.entry(LinuxNamespaceType::Time) {
            Entry::Absent => Ok(()),
            _ => Err(unsupported(
                field(LinuxNamespaceType::Time),
                "a sandbox runs no workload that could see its clocks",
                "give it to the containers",
            )),
        }
    }

    /// The namespaces of a new pod.
    pub(crate) fn of_pod(
        &self,
        spec: &runtime::Spec,
        facts: &PodFacts,
        policy: &Policy,
        overrides: &Overrides,
    ) -> Result<PodNs, Error> {
        use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
        let mut ns = PodNs {
            userns: UserNs::Auto,
            net: self.wanted(Network, facts),
            pid: self.wanted(Pid, facts),
            ipc: self.wanted(Ipc, facts),
            uts: self.wanted(Uts, facts),
        };
        let because = ns.host_users(pod::is_privileged(spec));
        if policy.refuse_host_pods {
            let wish = overrides.host_users == Some(true);
            refuse_host_pod(because.or(wish.then_some(HostUsers::Annotation)))?;
        }
        ns.userns = match self.userns(spec)? {
            Some(given) => {
                if overrides.host_users == Some(true) {
                    let reason = "the spec asks for a user namespace";
                    let field = "annotations[\"dev.berm.userns\"]";
                    return Err(invalid(field, reason, "drop one of the two"));
                }
                given
            }
            None => match (because, overrides.host_users) {
                (Some(because), _) => UserNs::Host(because),
                (None, Some(true)) => UserNs::Host(HostUsers::Annotation),
                (None, None) if policy.host_users => UserNs::Host(HostUsers::Config),
                (None, None) if facts.volumes_without_idmap => {
                    if policy.refuse_host_pods {
                        refuse_host_pod(Some(HostUsers::Kernel))?;
                    }
                    UserNs::Host(HostUsers::Kernel)
                }
                (None, _) => UserNs::Auto,
            },
        };
        if !matches!(ns.userns, UserNs::Host(_)) {
            ns.fit_for_a_user_namespace()?;
        }
        Ok(ns)
    }

    fn wanted(&self, typ: LinuxNamespaceType, facts: &PodFacts) -> Namespace {
        match self.entry(typ) {
            Entry::Absent => Namespace::Host,
            Entry::New => Namespace::New,
            Entry::Path(path) if facts.host_paths.iter().any(|host| host == path) => {
                Namespace::Host
            }
            Entry::Path(path) => Namespace::Path(path.into()),
        }
    }

    /// The user namespace that the spec names; `None`: it says nothing.
    fn userns(&self, spec: &runtime::Spec) -> Result<Option<UserNs>, Error> {
        let ids = mappings(spec);
        let given = !ids.uids.0.is_empty() || !ids.gids.0.is_empty();
        let entry = self.entry(LinuxNamespaceType::User);
        if entry == Entry::Absent {
            return if given {
                Err(mappings_without_userns())
            } else {
                Ok(None)
            };
        }
        idmap::check("linux.uidMappings", &ids.uids)?;
        idmap::check("linux.gidMappings", &ids.gids)?;
        Ok(Some(match entry {
            Entry::Path(path) => UserNs::Path(path.into(), ids),
            _ => UserNs::Mapped(ids),
        }))
    }

    /// Checks a container of an existing pod; gives its PID namespace.
    pub(crate) fn of_container(
        &self,
        spec: &runtime::Spec,
        facts: &ContainerFacts,
    ) -> Result<PidNs, Error> {
        use LinuxNamespaceType::{Ipc, Network, Pid, User, Uts};
        let HostShares { net, ipc, uts, pid } = facts.shares;
        for (typ, pod, shared) in [
            (Network, facts.pod.net, net),
            (Ipc, facts.pod.ipc, ipc),
            (Uts, facts.pod.uts, uts),
        ] {
            match self.entry(typ) {
                Entry::Absent if shared => {}
                Entry::Absent => return Err(host(typ)),
                Entry::New => {
                    let reason = "a container shares this one with its pod";
                    let way_out = "give the path of the sandbox's";
                    return Err(unsupported(field(typ), reason, way_out));
                }
                Entry::Path(path) => inherited(typ, path, pod, facts)?,
            }
        }
        let ids = mappings(spec);
        let given = !ids.uids.0.is_empty() || !ids.gids.0.is_empty();
        match self.entry(User) {
            Entry::Path(path) => inherited(User, path, facts.pod.user, facts)?,
            // Nothing said is the pod's own, whatever the pod has.
            Entry::Absent if given => return Err(mappings_without_userns()),
            Entry::Absent | Entry::New => {}
        }
        if given
            && !(idmap::same(&ids.uids, &facts.ids.uids) && idmap::same(&ids.gids, &facts.ids.gids))
        {
            let reason = "not the id map of the pod";
            return Err(unsupported(
                "linux.uidMappings",
                reason,
                "give it the sandbox's mappings",
            ));
        }
        if !given && self.entry(User) == Entry::New {
            let reason = "a container shares this one with its pod";
            return Err(unsupported(
                field(User),
                reason,
                "give the path of the sandbox's",
            ));
        }
        match self.entry(Pid) {
            Entry::New => Ok(PidNs::Own),
            Entry::Absent if pid => Ok(PidNs::Pod),
            Entry::Absent => Err(host(Pid)),
            Entry::Path(path) => of_pod_or_container(path, facts),
        }
    }

    /// The PID namespace of the workload of a pod of one: the pod is made of the same spec, whose
    /// other namespaces are its own.
    pub(crate) fn of_root(&self, shares: HostShares) -> Result<PidNs, Error> {
        use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
        let HostShares { net, ipc, uts, pid } = shares;
        for (typ, shared) in [(Network, net), (Ipc, ipc), (Uts, uts), (Pid, pid)] {
            if !shared && self.entry(typ) == Entry::Absent {
                return Err(host(typ));
            }
        }
        Ok(match self.entry(Pid) {
            Entry::New => PidNs::Own,
            Entry::Absent | Entry::Path(_) => PidNs::Pod,
        })
    }

    /// The cgroup namespace. Nothing said is the host's for runc; a pod with a user namespace gets
    /// one of its own all the same, because the host's names are not its business.
    pub(crate) fn cgroup(&self, userns: bool) -> CgroupNs {
        match self.entry(LinuxNamespaceType::Cgroup) {
            Entry::Absent if !userns => CgroupNs::Host,
            _ => CgroupNs::New,
        }
    }
}

/// The namespaces of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodNs {
    pub(crate) userns: UserNs,
    pub(crate) net: Namespace,
    pub(crate) pid: Namespace,
    pub(crate) ipc: Namespace,
    pub(crate) uts: Namespace,
}

impl PodNs {
    /// What of the spec asks for the host's user ids, if it names no user namespace.
    ///
    /// The host's UTS namespace alone does not: its name is all that root of a pod gets of it.
    fn host_users(&self, privileged: bool) -> Option<HostUsers> {
        let asked = [
            (self.net == Namespace::Host, HostUsers::HostNetwork),
            (self.pid == Namespace::Host, HostUsers::HostPid),
            (self.ipc == Namespace::Host, HostUsers::HostIpc),
            (privileged, HostUsers::Privileged),
        ];
        asked
            .into_iter()
            .find_map(|(asked, because)| asked.then_some(because))
    }

    /// What a pod with a user namespace cannot have.
    fn fit_for_a_user_namespace(&self) -> Result<(), Error> {
        use LinuxNamespaceType::{Ipc, Pid, Uts};
        for (typ, ns) in [(Pid, &self.pid), (Ipc, &self.ipc), (Uts, &self.uts)] {
            if let Namespace::Path(_) = ns {
                let way_out =
                    "leave the path out, or allow and set annotation dev.berm.userns: host";
                return Err(foreign(typ, way_out));
            }
        }
        if self.pid == Namespace::Host {
            // mount(2) of proc wants CAP_SYS_ADMIN in the owner of the PID namespace.
            return Err(unsupported(
                field(Pid),
                "a pod with a user namespace cannot mount the proc of the host's PID namespace",
                "drop the mappings (hostUsers: false), or the host's PID namespace",
            ));
        }
        Ok(())
    }
}

fn refuse_host_pod(because: Option<HostUsers>) -> Result<(), Error> {
    let Some(because) = because else {
        return Ok(());
    };
    let (field, what) = match because {
        HostUsers::HostNetwork => ("linux.namespaces", "the host's network"),
        HostUsers::HostPid => ("linux.namespaces", "the host's PID namespace"),
        HostUsers::HostIpc => ("linux.namespaces", "the host's IPC namespace"),
        HostUsers::Privileged => ("mounts /sys", "a privileged pod"),
        HostUsers::Annotation | HostUsers::Config => {
            ("annotations[\"dev.berm.userns\"]", "the host's user ids")
        }
        HostUsers::Kernel => ("linux.namespaces", "pods without a user namespace"),
    };
    let way_out = match because {
        HostUsers::Kernel => {
            "use hostUsers: false or Linux 6.3: this kernel cannot idmap volumes in memory"
        }
        _ => "drop it, or use another runtime for this pod",
    };
    let reason = format!("this node refuses {what} (refuse_host_pods)");
    Err(unsupported(field, reason, way_out))
}

/// The pod's PID namespace, or that of one of its containers (`kubectl debug --target`).
fn of_pod_or_container(path: &Path, facts: &ContainerFacts) -> Result<PidNs, Error> {
    let inode = facts.inodes.get(path).copied().flatten();
    let target = inode.and_then(|inode| facts.pidns_of_containers.get(&inode));
    match target {
        Some(id) => Ok(PidNs::Container(id.clone())),
        None => {
            let typ = LinuxNamespaceType::Pid;
            inherited(typ, path, facts.pod.pid, facts).map(|()| PidNs::Pod)
        }
    }
}

/// Refuses a path that is not the pod's own namespace.
fn inherited(
    typ: LinuxNamespaceType,
    path: &Path,
    pod: u64,
    facts: &ContainerFacts,
) -> Result<(), Error> {
    match facts.inodes.get(&PathBuf::from(path)).copied().flatten() {
        Some(inode) if inode == pod => Ok(()),
        Some(_) => Err(foreign(typ, "give the path of the sandbox's")),
        None => {
            let text = quoted(&path.to_string_lossy());
            let reason = format!("{text} cannot be looked at");
            Err(invalid(
                field(typ),
                reason,
                "name a namespace that exists; has the sandbox ended?",
            ))
        }
    }
}

fn mappings(spec: &runtime::Spec) -> Ids {
    let linux = spec.linux().as_ref();
    Ids {
        uids: idmap::extents(linux.and_then(|l| l.uid_mappings().as_deref())),
        gids: idmap::extents(linux.and_then(|l| l.gid_mappings().as_deref())),
    }
}

fn mappings_without_userns() -> Error {
    let reason = "mappings without a user namespace";
    invalid(
        "linux.uidMappings",
        reason,
        "add a namespace of type \"user\", or drop them",
    )
}

fn host(typ: LinuxNamespaceType) -> Error {
    let reason = format!(
        "no entry {} asks for the host's, which the container's pod is not in",
        quoted(name(typ))
    );
    unsupported("linux.namespaces", reason, "give the path of the sandbox's")
}

fn foreign(typ: LinuxNamespaceType, way_out: &str) -> Error {
    unsupported(field(typ), "the path leads out of the pod", way_out)
}

fn field(typ: LinuxNamespaceType) -> String {
    format!("linux.namespaces {}", quoted(name(typ)))
}

/// The name that the spec has for it.
fn name(typ: LinuxNamespaceType) -> &'static str {
    match typ {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}
