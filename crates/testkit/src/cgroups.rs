//! Cgroups in every hierarchy at once: the node's own subtree, and the parents that kubelet makes
//! for its pods.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, open, openat, unlinkat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::{Error, call, file};
use crate::mounts::{self, Mount};
use crate::process;

/// A cgroup of the same name in every hierarchy, with the calling process in it.
#[derive(Debug)]
pub(crate) struct Subtree {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

/// One of them, from before the cgroup namespace.
#[derive(Debug)]
struct Hierarchy {
    mount: Mount,
    root: OwnedFd,
    /// `cgroup.procs` of the root. With `nsdelegate`, as systemd mounts cgroup2, a process leaves
    /// its cgroup namespace only through a file that was opened outside.
    procs: OwnedFd,
}

impl Subtree {
    /// Makes the cgroups and moves the calling process into them.
    pub(crate) fn enter(name: &str) -> Result<Self, Error> {
        let mut hierarchies = Vec::new();
        for mount in mounts::of("self")?.into_iter().filter(Mount::is_cgroup) {
            // What the root keeps to itself is nowhere below it; systemd hands on little unasked.
            give_controllers(&mount.target)?;
            let dir = mount.target.join(name);
            std::fs::create_dir(&dir).map_err(file("mkdir", &dir))?;
            inherit_cpuset(&mount.target, &dir)?;
            write(&dir.join("cgroup.procs"), "0")?;
            let root = open(
                &mount.target,
                OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(call(format!("open({:?}, O_DIRECTORY)", mount.target)))?;
            let procs = openat(
                &root,
                "cgroup.procs",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(call(format!("openat({:?}, cgroup.procs)", mount.target)))?;
            hierarchies.push(Hierarchy { mount, root, procs });
        }
        Ok(Self {
            name: name.to_owned(),
            hierarchies,
        })
    }

    /// Mounts every hierarchy anew, so that the cgroup namespace shows its own root.
    pub(crate) fn mount(&self) -> Result<(), Error> {
        for Hierarchy { mount, .. } in self.hierarchies.iter().rev() {
            unmount(&mount.target, UnmountFlags::DETACH)
                .map_err(call(format!("umount2({:?}, MNT_DETACH)", mount.target)))?;
        }
        for Hierarchy { mount: old, .. } in &self.hierarchies {
            let data = CString::new(old.hierarchy_options()).unwrap_or_default();
            mount(
                "cgroup",
                &old.target,
                old.fs.as_str(),
                MountFlags::empty(),
                data.as_c_str(),
            )
            .map_err(call(format!(
                "mount({:?}, {}, {data:?})",
                old.target, old.fs
            )))?;
            if old.fs == "cgroup2" {
                delegate(&old.target)?;
            }
        }
        Ok(())
    }

    /// Moves the calling process back to the roots and removes the subtree.
    pub(crate) fn leave(self) -> Result<(), Error> {
        for Hierarchy { mount, root, procs } in self.hierarchies {
            let what = || format!("{:?}/cgroup.procs", mount.target);
            rustix::io::write(&procs, b"0").map_err(call(format!("write({}, 0)", what())))?;
            for path in tree(&mount.target).into_iter().rev() {
                std::fs::remove_dir(&path).map_err(file("rmdir", &path))?;
            }
            unlinkat(&root, &self.name, AtFlags::REMOVEDIR).map_err(call(format!(
                "unlinkat({}, {})",
                what(),
                self.name
            )))?;
        }
        Ok(())
    }
}

/// Makes cgroup `path` of the node in every hierarchy, as kubelet does for a pod.
///
/// `hierarchies` are the node's cgroup mount points as this process can open them.
pub(crate) fn create(hierarchies: &[PathBuf], path: &str) -> Result<(), Error> {
    for root in hierarchies {
        let mut parent = root.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let dir = parent.join(part);
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => made.map_err(file("mkdir", &dir))?,
            }
            inherit_cpuset(&parent, &dir)?;
            give_controllers(&dir)?;
            parent = dir;
        }
    }
    Ok(())
}

/// Removes cgroup `path` with all below it, and names what should not have been there any more:
/// cgroups below it, and processes.
pub(crate) fn remove(hierarchies: &[PathBuf], path: &str) -> Vec<String> {
    let mut left = Vec::new();
    for root in hierarchies {
        let top = root.join(path.trim_start_matches('/'));
        let mut dirs = tree(&top);
        left.extend(dirs.iter().map(|dir| format!("cgroup {}", dir.display())));
        dirs.insert(0, top);
        for dir in dirs.iter().rev() {
            let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|pid| pid.parse().ok()) {
                left.extend(process::Process::read(pid).map(|process| format!("{process}")));
                process::send(pid, rustix::process::Signal::KILL);
            }
            if let Err(error) = std::fs::remove_dir(dir) {
                left.push(format!("cgroup {}: {error}", dir.display()));
            }
        }
    }
    left
}

/// All cgroups below `root`, parents first.
pub(crate) fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut next = vec![root.to_owned()];
    while let Some(dir) = next.pop() {
        // A cgroup may go while it is listed.
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                next.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Thaws every cgroup of the node, on either version.
pub(crate) fn thaw() {
    for mount in mounts::of("self")
        .into_iter()
        .flatten()
        .filter(Mount::is_cgroup)
    {
        for dir in tree(&mount.target) {
            // Each hierarchy has at most one of the two files; a cgroup may be gone by now.
            let _ = std::fs::OpenOptions::new()
                .write(true)
                .open(dir.join("freezer.state"))
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"THAWED"));
            let _ = std::fs::OpenOptions::new()
                .write(true)
                .open(dir.join("cgroup.freeze"))
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"0"));
        }
    }
}

/// A new v1 cpuset is empty, and takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let ours = dir.join(name);
        let empty = std::fs::read_to_string(&ours).is_ok_and(|text| text.trim().is_empty());
        if empty && !dir.join("cgroup.controllers").exists() {
            let from = parent.join(name);
            let value = std::fs::read_to_string(&from).map_err(file("read", from))?;
            write(&ours, value.trim())?;
        }
    }
    Ok(())
}

/// v2 gives controllers to children only when the parent itself holds no process: the node's
/// own processes live in a leaf.
fn delegate(root: &Path) -> Result<(), Error> {
    if controllers(root).is_empty() {
        return Ok(());
    }
    let leaf = root.join("node");
    std::fs::create_dir(&leaf).map_err(file("mkdir", &leaf))?;
    write(&leaf.join("cgroup.procs"), "0")?;
    give_controllers(root)
}

/// Hands all controllers of a v2 cgroup to its children; v1 has nothing to hand.
fn give_controllers(dir: &Path) -> Result<(), Error> {
    let list = controllers(dir);
    if list.is_empty() {
        Ok(())
    } else {
        write(&dir.join("cgroup.subtree_control"), &list)
    }
}

fn controllers(dir: &Path) -> String {
    let list = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let names = list.split_whitespace().map(|name| format!("+{name}"));
    names.collect::<Vec<_>>().join(" ")
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    std::fs::write(path, text).map_err(file("write", path))
}
