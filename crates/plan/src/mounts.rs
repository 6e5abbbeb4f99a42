//! `mounts` → the tree that the host builds, and the proc mounts that the workload makes itself.

use std::path::{Path, PathBuf};

use oci_spec::runtime;

use crate::container::ContainerFacts;
use crate::options::{self, parse};
use crate::paths::clean;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::source::{no_data, read};
use crate::step::{Attr, Mount, Propagate, Propagation, Recursive, Source};

/// The mounts of a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts {
    /// What the host builds, in the spec's order.
    pub(crate) tree: Vec<Mount>,
    /// Where the workload mounts its proc.
    pub(crate) proc: Vec<(PathBuf, Attr)>,
    /// Mounts on a proc: the host has them ready where the proc will be.
    pub(crate) over_proc: Vec<PathBuf>,
    /// Propagation of the root itself, where it is not what every new mount has.
    pub(crate) root: Option<Propagate>,
}

/// What runc lets be mounted below `/proc`, too.
const PROC_FILES: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// A mount of the host's tree, seen from a container: what `linux.rootfsPropagation` is if the
/// spec does not name it.
pub(crate) const HOSTS: Propagate = Propagate {
    kind: Propagation::Slave,
    recursive: true,
};

impl Mounts {
    /// Reads the spec's list.
    pub(crate) fn parse(spec: &runtime::Spec, facts: &ContainerFacts) -> Result<Self, Error> {
        let mut mounts = Self::default();
        let root = root_propagation(spec, facts)?;
        mounts.root =
            root.filter(|p| matches!(p.kind, Propagation::Shared | Propagation::Unbindable));
        let list = spec.mounts().as_deref().unwrap_or_default();
        for (index, mount) in list.iter().enumerate() {
            let target = target(index, mount)?;
            let options = parse(index, mount.options().as_deref().unwrap_or_default())?;
            if mount.typ().as_deref() == Some("proc") && !options.bind {
                if let Some(below) = mounts.tree.iter().find(|m| m.target.starts_with(&target)) {
                    let covered = quoted(&below.target.to_string_lossy());
                    return Err(invalid(
                        format!("mounts[{}].destination", below.index),
                        format!("{covered} is under the proc mount that comes later"),
                        "mount it after proc",
                    ));
                }
                no_data(index, &options)?;
                mounts.proc.push((target, options.attr));
            } else {
                mounts.over_proc(index, &target)?;
                let mut mount = read(index, mount, target, options, facts)?;
                if mount.propagation.is_empty() && matches!(mount.source, Source::Bind { .. }) {
                    // As runc has it: a source is first of all part of the host's tree.
                    mount.propagation = vec![root.unwrap_or(HOSTS)];
                }
                mounts.tree.push(mount);
            }
        }
        Ok(mounts)
    }

    /// A file of proc that the host shows otherwise (lxcfs). Proc is not there before the
    /// workload is, so a tmpfs stands in for it until then.
    fn over_proc(&mut self, index: usize, target: &Path) -> Result<(), Error> {
        let Some((proc, _)) = self.proc.iter().find(|(proc, _)| target.starts_with(proc)) else {
            return Ok(());
        };
        let file = target.strip_prefix(proc).unwrap_or(target);
        if !PROC_FILES.iter().any(|name| file == Path::new(name)) {
            let reason = format!("{} is on a proc mount", quoted(&target.to_string_lossy()));
            return Err(unsupported(
                format!("mounts[{index}].destination"),
                reason,
                "mount it elsewhere",
            ));
        }
        let stand_in = proc.clone();
        if !self
            .over_proc
            .iter()
            .any(|path| path.starts_with(&stand_in))
        {
            self.tree.push(Mount {
                index,
                target: stand_in,
                source: Source::Tmpfs {
                    options: vec![("mode".to_owned(), "555".to_owned())],
                    mode_of_target: false,
                    copy_up: false,
                },
                attr: Attr::default(),
                all: Recursive::default(),
                propagation: Vec::new(),
            });
        }
        self.over_proc.push(target.to_owned());
        Ok(())
    }

    /// Those of them that are on this proc.
    pub(crate) fn over(&self, proc: &Path) -> Vec<PathBuf> {
        let on_it = self.over_proc.iter().filter(|path| path.starts_with(proc));
        on_it.cloned().collect()
    }

    /// Takes `ro` from a tmpfs and from `/dev`: they are made read-only when all targets in them
    /// are there, as runc does. Gives the paths of those that it took it from.
    pub(crate) fn readonly_later(&mut self) -> Vec<PathBuf> {
        let mut later: Vec<PathBuf> = Vec::new();
        for mount in &mut self.tree {
            let tmpfs = matches!(mount.source, Source::Tmpfs { .. } | Source::Hinted { .. });
            // What was at this path before is covered now.
            later.retain(|path| *path != mount.target);
            if tmpfs && std::mem::take(&mut mount.attr.ro) {
                later.push(mount.target.clone());
            }
        }
        later
    }

    /// On pure cgroup2, and without a cgroup namespace, a cgroup mount shows the node's whole tree,
    /// as in runc; on v1 it shows the container's own directories.
    pub(crate) fn whole_cgroup2(&mut self) {
        for mount in &mut self.tree {
            if let Source::Cgroup(views) = &mut mount.source
                && let [view] = &mut views[..]
                && view.name.is_empty()
            {
                view.host_dir = "/sys/fs/cgroup".into();
            }
        }
    }

    /// The mount at exactly this path; the last one covers the others.
    pub(crate) fn at(&self, path: &str) -> Option<&Mount> {
        self.tree.iter().rev().find(|m| m.target == Path::new(path))
    }

    /// Whether the path is on one of the proc mounts, which are not there before the workload is.
    pub(crate) fn on_proc(&self, path: &Path) -> bool {
        self.proc.iter().any(|(proc, _)| path.starts_with(proc))
    }
}

fn target(index: usize, mount: &runtime::Mount) -> Result<PathBuf, Error> {
    let field = format!("mounts[{index}].destination");
    let given = mount.destination().to_string_lossy();
    no_nul(&field, &given)?;
    let target = clean(mount.destination());
    if target == Path::new("/") {
        let reason = format!("{} is the root itself", quoted(&given));
        return Err(invalid(
            field,
            reason,
            "mount below the root; the root is the image",
        ));
    }
    Ok(target)
}

/// `linux.rootfsPropagation`
fn root_propagation(
    spec: &runtime::Spec,
    facts: &ContainerFacts,
) -> Result<Option<Propagate>, Error> {
    const FIELD: &str = "linux.rootfsPropagation";
    let linux = spec.linux().as_ref();
    let given = linux.and_then(|l| l.rootfs_propagation().as_deref());
    let Some(given) = given.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let Some(change) = options::propagation(given) else {
        let reason = format!("{} is no propagation", quoted(given));
        return Err(invalid(FIELD, reason, "use \"rprivate\" or \"rslave\""));
    };
    if change.kind == Propagation::Shared && facts.userns() {
        return Err(never_shared(FIELD));
    }
    Ok(Some(change))
}

/// The kernel turns shared mounts into slaves where they cross into a user namespace
/// (`CL_SHARED_TO_SLAVE` in copy_mnt_ns).
pub(crate) fn never_shared(field: impl Into<String>) -> Error {
    unsupported(
        field,
        "mounts of a pod with a user namespace cannot propagate to the host",
        "use mountPropagation HostToContainer or None",
    )
}
