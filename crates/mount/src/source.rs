//! One detached mount per entry of the spec.

use std::borrow::Cow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::{Atime, Attr, CgroupView, Mount, Propagate, Propagation, Recursive, Source};
use berm_sys::mount::{self, SetAttr, attr};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, XattrFlags, chownat, mkdirat, setxattr, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use crate::bind::{bind, clone_tree};
use crate::{Error, Owner, Scratch, hinted};

/// A detached mount, and what is attached below it once it stands.
#[derive(Debug)]
pub struct Built {
    /// The mount.
    pub root: OwnedFd,
    /// Paths below its root, and the mounts that go there, in order.
    pub below: Vec<(PathBuf, OwnedFd)>,
    /// Its root gets the mode of the directory that it covers.
    pub mode_of_target: bool,
    /// It starts with a copy of what it covers.
    pub copy_up: bool,
    /// The entry of the spec, for errors.
    pub index: usize,
}

impl Built {
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self::with(root, Vec::new())
    }

    pub(crate) fn with(root: OwnedFd, below: Vec<(PathBuf, OwnedFd)>) -> Self {
        Self {
            root,
            below,
            mode_of_target: false,
            copy_up: false,
            index: 0,
        }
    }

    /// Changes attributes or propagation of the mount, and of those below it if it is `recursive`.
    pub(crate) fn set(&self, path: &Path, recursive: bool, change: SetAttr) -> Result<(), Error> {
        let below = self.below.iter().filter(|_| recursive).map(|(_, fd)| fd);
        for mount in std::iter::once(&self.root).chain(below) {
            set_attr(mount, path, recursive, change)?;
        }
        Ok(())
    }

    pub(crate) fn propagate(&self, path: &Path, changes: &[Propagate]) -> Result<(), Error> {
        for change in changes {
            let propagation = propagation_bits(change.kind);
            let to = SetAttr {
                propagation,
                ..SetAttr::default()
            };
            self.set(path, change.recursive, to)?;
        }
        Ok(())
    }
}

pub(crate) fn set_attr(
    mount: &OwnedFd,
    path: &Path,
    recursive: bool,
    change: SetAttr,
) -> Result<(), Error> {
    mount::set_attr(mount.as_fd(), recursive, change, None).map_err(|source| Error::SetAttr {
        path: path.into(),
        set: change.set | change.propagation,
        source,
    })
}

pub(crate) fn propagation_bits(kind: Propagation) -> u64 {
    match kind {
        Propagation::Private => mount::PRIVATE,
        Propagation::Slave => mount::SLAVE,
        Propagation::Shared => mount::SHARED,
        Propagation::Unbindable => mount::UNBINDABLE,
    }
}

/// Builds the mount that `mount` describes, detached.
///
/// The caller is in the host's mount namespace and in the pod's network and IPC namespaces.
/// # Errors
/// [`Error::Idmap`] where the source's file system has no idmapped mounts.
pub fn build(mount: &Mount, owner: Owner<'_>, scratch: Scratch<'_>) -> Result<Built, Error> {
    let mut built = source(mount, owner, scratch).map_err(|e| e.of(mount.index, &mount.target))?;
    built.index = mount.index;
    Ok(built)
}

pub(crate) fn source(
    mount: &Mount,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<Built, Error> {
    let bits = attr_bits(mount.attr);
    let mut built = match &mount.source {
        Source::Bind {
            path,
            recursive,
            idmap,
        } => return bind((path, *recursive, idmap), mount, owner, scratch),
        Source::Tmpfs {
            options,
            mode_of_target,
            copy_up,
        } => Built {
            mode_of_target: *mode_of_target,
            copy_up: *copy_up,
            ..Built::new(tmpfs(options, bits, owner)?)
        },
        Source::Hinted { name } => {
            let hinted = scratch
                .hinted
                .ok_or_else(|| Error::NotMade { name: name.clone() })?;
            Built::new(hinted::part(name, hinted, mount, scratch)?)
        }
        Source::Devpts {
            gid,
            mode,
            ptmxmode,
        } => Built::new(devpts((*gid, mode, ptmxmode), bits, owner)?),
        Source::Mqueue => Built::new(mqueue(bits, owner)?),
        Source::Sysfs => Built::new(FsContext::open("sysfs")?.mount(bits)?),
        Source::Fs {
            fs,
            source,
            options,
        } => Built::new(kernel_fs((fs, source, options), bits, owner)?),
        Source::Cgroup(views) => cgroup(views, bits, owner)?,
    };
    finish(&mut built, mount)?;
    Ok(built)
}

/// What a new mount has beyond its own attributes.
fn finish(built: &mut Built, mount: &Mount) -> Result<(), Error> {
    built.propagate(&mount.target, &mount.propagation)?;
    if mount.all == Recursive::default() {
        return Ok(());
    }
    built.set(&mount.target, true, all_bits(mount.all))
}

pub(crate) fn all_bits(all: Recursive) -> SetAttr {
    SetAttr {
        set: all.set,
        clear: all.clear,
        propagation: 0,
    }
}

/// Changes the propagation of the mount that `mount` is the root of.
/// # Errors
/// The errno of mount_setattr(2).
pub fn propagate(mount: &OwnedFd, path: &Path, change: Propagate) -> Result<(), Error> {
    let to = SetAttr {
        propagation: propagation_bits(change.kind),
        ..SetAttr::default()
    };
    set_attr(mount, path, change.recursive, to)
}

/// A file system of the kernel, mounted as mount(8) would.
pub(crate) fn kernel_fs(
    (fs, source, options): (&str, &str, &[(String, String)]),
    bits: u64,
    owner: Owner<'_>,
) -> Result<OwnedFd, Error> {
    let context = FsContext::named(fs.to_owned(), source)?;
    context.label(owner)?;
    for (key, value) in options {
        context.set(key, value)?;
    }
    context.mount(bits)
}

pub(crate) fn attr_bits(a: Attr) -> u64 {
    let flag = |on: bool, bit: u64| if on { bit } else { 0 };
    let atime = match a.atime {
        Atime::Inherit | Atime::Relatime => 0,
        Atime::Noatime => attr::NOATIME,
        Atime::Strictatime => attr::STRICTATIME,
    };
    flag(a.ro, attr::RDONLY)
        | flag(a.nosuid, attr::NOSUID)
        | flag(a.nodev, attr::NODEV)
        | flag(a.noexec, attr::NOEXEC)
        | flag(a.nosymfollow, attr::NOSYMFOLLOW)
        | flag(a.nodiratime, attr::NODIRATIME)
        | atime
}

/// A file system context of the new mount API, between `fsopen(2)` and `fsmount(2)`.
#[derive(Debug)]
pub(crate) struct FsContext {
    fs: Cow<'static, str>,
    fd: OwnedFd,
}

impl FsContext {
    pub(crate) fn open(fs: &'static str) -> Result<Self, Error> {
        Self::named(fs, fs)
    }

    /// `source` is what mount(8) shows in its first column.
    pub(crate) fn named(fs: impl Into<Cow<'static, str>>, source: &str) -> Result<Self, Error> {
        let fs = fs.into();
        let fd = match fsopen(&*fs, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => fd,
            Err(source) => {
                let fs = fs.into_owned();
                return Err(Error::FsOpen { fs, source });
            }
        };
        let context = Self { fs, fd };
        if !source.is_empty() {
            let set = fsconfig_set_string(&context.fd, "source", source);
            set.map_err(|e| context.config_error("source", source, e))?;
        }
        Ok(context)
    }

    /// Sets `key` to `value`; an empty value makes it a flag.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        let set = match value {
            "" => fsconfig_set_flag(&self.fd, key),
            _ => fsconfig_set_string(&self.fd, key, value),
        };
        set.map_err(|source| self.config_error(key, value, source))
    }

    /// Gives all files the context of the owner's label, if it has one.
    pub(crate) fn label(&self, owner: Owner<'_>) -> Result<(), Error> {
        let Some(label) = owner.label else {
            return Ok(());
        };
        fsconfig_set_string(&self.fd, "context", label)
            .map_err(|source| self.unlabelled(label, source))
    }

    fn unlabelled(&self, label: &str, source: Errno) -> Error {
        Error::Label {
            fs: self.fs.to_string(),
            label: label.to_owned(),
            source,
        }
    }

    pub(crate) fn set_fd(&self, key: &str, value: BorrowedFd<'_>) -> Result<(), Error> {
        rustix::mount::fsconfig_set_fd(&self.fd, key, value)
            .map_err(|source| self.config_error(key, "a descriptor", source))
    }

    fn config_error(&self, key: &str, value: &str, source: Errno) -> Error {
        Error::FsConfig {
            fs: self.fs.to_string(),
            key: key.to_owned(),
            value: value.to_owned(),
            source,
        }
    }

    pub(crate) fn create(&self) -> Result<(), Error> {
        fsconfig_create(&self.fd).map_err(|source| Error::FsCreate {
            fs: self.fs.to_string(),
            hint: self.kernel_message(),
            source,
        })
    }

    /// The kernel's own words on what it did not like, bounded.
    fn kernel_message(&self) -> String {
        let mut text = [0u8; 256];
        match rustix::io::read(&self.fd, &mut text) {
            Ok(n) => format!(
                ": {}",
                String::from_utf8_lossy(&text[..n]).trim().escape_debug()
            ),
            Err(_) => String::new(),
        }
    }

    pub(crate) fn fsmount(&self, bits: u64) -> Result<OwnedFd, Error> {
        let bits = MountAttrFlags::from_bits_retain(u32::try_from(bits).unwrap_or(0));
        fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, bits).map_err(|source| Error::FsMount {
            fs: self.fs.to_string(),
            source,
        })
    }

    pub(crate) fn mount(&self, bits: u64) -> Result<OwnedFd, Error> {
        self.create()?;
        self.fsmount(bits)
    }
}

/// A tmpfs of root of the pod. It has the host's numbers of the pod's ids on it and no id map:
/// the same to whoever is inside, and kernels before 6.3 cannot idmap a tmpfs.
pub(crate) fn tmpfs(
    options: &[(String, String)],
    bits: u64,
    owner: Owner<'_>,
) -> Result<OwnedFd, Error> {
    let context = FsContext::open("tmpfs")?;
    context.label(owner)?;
    if owner.userns.is_some() {
        context.set("uid", &owner.uid.to_string())?;
        context.set("gid", &owner.gid.to_string())?;
    }
    for (key, value) in options {
        context.set(key, value)?;
    }
    context.mount(bits)
}

/// The queues of an IPC namespace are one file system however often it is mounted: as in runc its
/// root alone is labelled.
fn mqueue(bits: u64, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let context = FsContext::open("mqueue")?;
    let mount = context.mount(bits)?;
    if let Some(label) = owner.label {
        // The descriptor is O_PATH: only its name is good for xattrs.
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        setxattr(
            &path,
            "security.selinux",
            label.as_bytes(),
            XattrFlags::empty(),
        )
        .map_err(|source| context.unlabelled(label, source))?;
    }
    Ok(mount)
}

fn devpts(
    (gid, mode, ptmxmode): (Option<u32>, &str, &str),
    bits: u64,
    owner: Owner<'_>,
) -> Result<OwnedFd, Error> {
    let context = FsContext::open("devpts")?;
    context.label(owner)?;
    context.set("newinstance", "")?;
    if let Some(gid) = gid {
        context.set("gid", &gid.to_string())?;
    }
    context.set("mode", mode)?;
    context.set("ptmxmode", ptmxmode)?;
    context.mount(bits)
}

/// The container's own cgroup directories: on v2 the directory itself, on v1 a tmpfs with one
/// directory per hierarchy.
fn cgroup(views: &[CgroupView], bits: u64, owner: Owner<'_>) -> Result<Built, Error> {
    if let [CgroupView { name, host_dir, .. }] = views
        && name.is_empty()
    {
        if bits & attr::RDONLY == 0 && owner.userns.is_some() {
            delegate(host_dir, owner)?;
        }
        return Ok(Built::new(clone_with(host_dir, bits)?));
    }
    let mode = [("mode".to_owned(), "755".to_owned())];
    let root = tmpfs(&mode, bits & !attr::RDONLY, owner)?;
    let mut below = Vec::with_capacity(views.len());
    owner.act(|| {
        for view in views {
            let name = PathBuf::from(&view.name);
            mkdirat(&root, &name, Mode::from_raw_mode(0o755)).map_err(|source| Error::MakeDir {
                path: name.clone(),
                source,
            })?;
            for link in &view.links {
                symlinkat(&name, &root, link).map_err(|source| Error::Link {
                    path: link.into(),
                    source,
                })?;
            }
            below.push((name, clone_with(&view.host_dir, bits)?));
        }
        Ok(())
    })?;
    if bits & attr::RDONLY != 0 {
        let change = SetAttr {
            set: attr::RDONLY,
            ..SetAttr::default()
        };
        mount::set_attr(root.as_fd(), false, change, None).map_err(|source| Error::SetAttr {
            path: "cgroup".into(),
            set: attr::RDONLY,
            source,
        })?;
    }
    Ok(Built::with(root, below))
}

/// Gives a cgroup2 directory to root of the pod, with the files that a delegated group's owner
/// writes (cgroup-v2.rst, "Model of Delegation"): its limits stay the host's.
fn delegate(dir: &Path, owner: Owner<'_>) -> Result<(), Error> {
    const LIST: &str = "/sys/kernel/cgroup/delegate";
    // Kernels before 4.15 have no list.
    let list = std::fs::read_to_string(LIST)
        .unwrap_or_else(|_| "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned());
    let own = |path: &Path| {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        match chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
            // The list names files of controllers that this group has not.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(Error::Chown {
                path: path.into(),
                uid: owner.uid,
                gid: owner.gid,
                source,
            }),
        }
    };
    own(dir)?;
    for name in list.lines().filter(|name| !name.contains('/')) {
        own(&dir.join(name))?;
    }
    Ok(())
}

fn clone_with(dir: &Path, bits: u64) -> Result<OwnedFd, Error> {
    let tree = clone_tree(dir, false)?;
    let change = SetAttr {
        set: bits,
        clear: 0,
        propagation: mount::PRIVATE,
    };
    mount::set_attr(tree.as_fd(), false, change, None).map_err(|source| Error::SetAttr {
        path: dir.into(),
        set: bits,
        source,
    })?;
    Ok(tree)
}
