//! Bind mounts: clones of what the host has mounted, with the ids of the pod.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::{Idmap, Mount, Propagate, Recursive};
use berm_sys::mount::{self, SetAttr, attr};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mountinfo::{Entry, Host};
use crate::source::{Built, all_bits, attr_bits, propagation_bits};
use crate::{Error, Owner, Scratch, lower, userns};

/// Their files stand for kernel objects and their owners are no people: they are bound with the
/// ids that they have. None of them can be idmapped, but for hugetlbfs on newer kernels.
const KERNEL_OBJECTS: [&str; 21] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "cpuset",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "selinuxfs",
    "configfs",
    "efivarfs",
    "pstore",
    "bpf",
    "binfmt_misc",
    "fusectl",
    "nsfs",
    "rpc_pipefs",
    "autofs",
];

/// Where containerd mounts the shared memory of a pod, a tmpfs of mode 1777.
const SHM: &str = "/dev/shm";

/// Clones the mount at a path of the host, detached (`open_tree(2)`).
pub(crate) fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|source| Error::OpenTree {
        path: path.into(),
        source,
    })
}

/// A clone of what is at `path` on the host, as `mount` wants it.
pub(crate) fn bind(
    (path, recursive, idmap): (&Path, bool, &Idmap),
    mount: &Mount,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<Built, Error> {
    let own = match idmap {
        Idmap::Own { ids, .. } => Some(userns::make(ids)?),
        Idmap::Pod | Idmap::None => None,
    };
    let owner = Owner {
        userns: match idmap {
            Idmap::Pod => owner.userns,
            Idmap::None => None,
            Idmap::Own { .. } => own.as_ref().map(AsFd::as_fd),
        },
        ..owner
    };
    let all = recursive && !matches!(idmap, Idmap::Own { recursive, .. } if !recursive);
    // The first change of propagation needs no call of its own if it is for the whole tree.
    let (first, rest) = match mount.propagation.split_first() {
        Some((first, rest)) if first.recursive == all || !recursive => (Some(first), rest),
        _ => (None, &mount.propagation[..]),
    };
    let clone = |owner| idmapped((path, recursive), all, first, (owner, scratch));
    let built = match clone(owner) {
        // Before 6.3. Everybody may write to it, and what the pod's processes make there has the
        // host's numbers of their ids: without a map all but the owner of its root is the same.
        Err(Error::Idmap { fs, .. }) if fs == "tmpfs" && mount.target == Path::new(SHM) => {
            clone(Owner {
                userns: None,
                ..owner
            })
        }
        built => built,
    }?;
    built.propagate(path, rest)?;
    attributes(&built, path, mount, owner)?;
    Ok(built)
}

fn attributes(built: &Built, path: &Path, m: &Mount, owner: Owner<'_>) -> Result<(), Error> {
    let set = attr_bits(m.attr);
    let explicit = m.attr != berm_plan::Attr::default();
    if explicit {
        let mut clear = 0;
        if m.attr.atime != berm_plan::Atime::Inherit {
            clear |= attr::ATIME;
        }
        if owner.userns.is_none() && !owner.nested {
            // As with mount(8): whoever names flags, names all. A pod with a user namespace of
            // its own could not take off the source's flags, so they stay.
            let flags = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
            clear |= (flags | attr::NOSYMFOLLOW) & !set;
        }
        // Flags are those of the top mount alone, as mount(8) does it for rbind.
        let change = SetAttr {
            set,
            clear,
            propagation: 0,
        };
        built.set(path, false, change)?;
    }
    if m.all != Recursive::default() {
        built.set(path, true, all_bits(m.all))?;
    }
    Ok(())
}

/// The clone, idmapped as a whole if the kernel does that, else mount by mount.
fn idmapped(
    (path, recursive): (&Path, bool),
    all: bool,
    propagation: Option<&Propagate>,
    (owner, scratch): (Owner<'_>, Scratch<'_>),
) -> Result<Built, Error> {
    let tree = clone_tree(path, recursive)?;
    let change = SetAttr {
        set: if owner.userns.is_some() {
            attr::IDMAP
        } else {
            0
        },
        clear: 0,
        propagation: propagation.map_or(0, |p| propagation_bits(p.kind)),
    };
    if (change.set, change.propagation) == (0, 0) {
        return Ok(Built::new(tree));
    }
    match mount::set_attr(tree.as_fd(), all, change, owner.userns) {
        Ok(()) => Ok(Built::new(tree)),
        Err(source) if owner.userns.is_some() && unmappable(&source) => {
            drop(tree);
            one_by_one((path, recursive), all, change.propagation, (owner, scratch))
        }
        Err(source) => Err(Error::SetAttr {
            path: path.into(),
            set: change.set,
            source,
        }),
    }
}

/// EINVAL: the file system has no idmapped mounts; EPERM: the mount has an id map already.
fn unmappable(error: &std::io::Error) -> bool {
    let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
    is(Errno::INVAL) || is(Errno::PERM)
}

/// Each mount of the tree for itself: what cannot be idmapped is bound as it is if it shows
/// kernel objects, put together anew of its layers if it is an overlay, and refused by name
/// otherwise.
fn one_by_one(
    (path, recursive): (&Path, bool),
    all: bool,
    propagation: u64,
    (owner, scratch): (Owner<'_>, Scratch<'_>),
) -> Result<Built, Error> {
    let host = Host::read()?;
    let (top, fd) = host.at(path)?;
    let root = one((path, fd.as_fd()), &top, propagation, (owner, scratch))?;
    let mut below = Vec::new();
    if recursive {
        for (entry, at, fd) in host.below(&top)? {
            let owner = Owner {
                userns: owner.userns.filter(|_| all),
                ..owner
            };
            let source = entry.mountpoint.clone();
            let mount = one((&source, fd.as_fd()), &entry, propagation, (owner, scratch))?;
            below.push((at, mount));
        }
    }
    Ok(Built::with(root, below))
}

fn one(
    (path, fd): (&Path, BorrowedFd<'_>),
    entry: &Entry,
    propagation: u64,
    (owner, scratch): (Owner<'_>, Scratch<'_>),
) -> Result<OwnedFd, Error> {
    let clone = || {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(fd, "", flags).map_err(|source| Error::OpenTree {
            path: path.into(),
            source,
        })
    };
    let plain = |tree: OwnedFd| {
        let change = SetAttr {
            propagation,
            ..SetAttr::default()
        };
        if propagation != 0 {
            crate::source::set_attr(&tree, path, false, change)?;
        }
        Ok(tree)
    };
    if owner.userns.is_none() || KERNEL_OBJECTS.contains(&entry.fs.as_str()) {
        return plain(clone()?);
    }
    let tree = clone()?;
    let change = SetAttr {
        set: attr::IDMAP,
        clear: 0,
        propagation,
    };
    match mount::set_attr(tree.as_fd(), false, change, owner.userns) {
        Ok(()) => Ok(tree),
        Err(_) if entry.fs == "overlay" => plain(lower::rebuild(path, entry, owner, scratch)?),
        Err(source) => Err(Error::Idmap {
            path: path.into(),
            fs: entry.fs.clone(),
            source,
        }),
    }
}

/// Gives a detached mount of the host's own making, a layer or a root the pod's id map.
pub(crate) fn idmap_tree(
    tree: &OwnedFd,
    path: &Path,
    recursive: bool,
    owner: Owner<'_>,
) -> Result<(), Error> {
    let set = if owner.userns.is_some() {
        attr::IDMAP
    } else {
        0
    };
    let change = SetAttr {
        set,
        clear: 0,
        propagation: mount::PRIVATE,
    };
    mount::set_attr(tree.as_fd(), recursive, change, owner.userns).map_err(|source| {
        if owner.userns.is_none() || !unmappable(&source) {
            return Error::SetAttr {
                path: path.into(),
                set,
                source,
            };
        }
        let (path, fs) = culprit(path, recursive);
        Error::Idmap { path, fs, source }
    })
}

/// Which mount it is that cannot be idmapped, for the error.
fn culprit(path: &Path, recursive: bool) -> (PathBuf, String) {
    let unknown = || (path.to_owned(), "a file system".to_owned());
    let Ok(host) = Host::read() else {
        return unknown();
    };
    let Ok((top, _)) = host.at(path) else {
        return unknown();
    };
    let below = host.below(&top).ok().filter(|_| recursive);
    let known = |fs: &str| KERNEL_OBJECTS.contains(&fs) || fs == "overlay";
    let first = below
        .into_iter()
        .flatten()
        .find(|(entry, ..)| known(&entry.fs));
    match first {
        Some((entry, ..)) if !known(&top.fs) => (entry.mountpoint, entry.fs),
        _ => (path.to_owned(), top.fs),
    }
}
