//! An overlay of layers that are detached mounts, each with its id map.
//!
//! Kernels from 6.15 on take them by descriptor as they are. Older ones take layers only that are
//! attached in the caller's mount namespace, and by path: they are attached in a namespace of
//! their own, which is gone once the overlay has clones of them. mount(2) takes one page of
//! options, so the paths there are short, whatever the snapshotter's are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_sys::Kernel;
use berm_sys::process::{flags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, mount, move_mount};
use rustix::process::{chdir, chroot, fchdir};

use crate::bind::clone_tree;
use crate::hide::clone_of;
use crate::rootfs::layer;
use crate::source::{FsContext, tmpfs};
use crate::target::resolve;
use crate::tree::{SCRATCH_DIR, attach_scratch, own_root};
use crate::{Error, Owner, upper};

/// Where layers are attached on kernels that want them so.
#[derive(Clone, Copy, Debug)]
pub struct Scratch<'a> {
    /// What this kernel can.
    pub kernel: Kernel,
    /// The host's `/proc`, O_PATH.
    pub proc: BorrowedFd<'a>,
    /// A mount namespace with the directories of [`crate::EMPTY_DIRS`].
    pub empty: BorrowedFd<'a>,
    /// The mount namespace of the pod's tmpfses, if it has any: see [`crate::pod_tmpfs`].
    pub hinted: Option<BorrowedFd<'a>>,
}

/// Upper and work directory, which the overlay wants on one mount.
#[derive(Debug)]
pub(crate) struct Upper {
    /// The nearest directory above both, detached, with its id map.
    parent: OwnedFd,
    upper: Below,
    work: Below,
}

/// A directory, and its path below that mount.
#[derive(Debug)]
struct Below {
    path: PathBuf,
    dir: OwnedFd,
}

impl Upper {
    /// It is idmapped unless the owner has no user namespace here: the files carry the host's ids
    /// of the pod already.
    pub(crate) fn open(upper: &Path, work: &Path, owner: Owner<'_>) -> Result<Self, Error> {
        let parent: PathBuf = upper
            .components()
            .zip(work.components())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a)
            .collect();
        let mount = layer(&parent, false, owner)?;
        let below = |path: &Path| {
            let below = match path.strip_prefix(&parent) {
                Ok(below) if !below.as_os_str().is_empty() => below.to_owned(),
                _ => PathBuf::from("."),
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(&mount, &below, flags, Mode::empty());
            let dir = dir.map_err(|source| Error::Resolve {
                path: path.into(),
                source,
            })?;
            Ok(Below { path: below, dir })
        };
        let (upper, work) = (below(upper)?, below(work)?);
        Ok(Self {
            parent: mount,
            upper,
            work,
        })
    }
}

impl Upper {
    /// Both on a mount that is there for them alone.
    pub(crate) fn whole(mount: OwnedFd) -> Result<Self, Error> {
        let below = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = openat(&mount, name, flags, Mode::empty());
            let dir = dir.map_err(|source| Error::Resolve {
                path: name.into(),
                source,
            })?;
            let path = name.into();
            Ok(Below { path, dir })
        };
        let (upper, work) = (below(upper::UPPER)?, below(upper::WORK)?);
        Ok(Self {
            parent: mount,
            upper,
            work,
        })
    }
}

/// Everything that an overlay is made of.
#[derive(Debug)]
pub(crate) struct Layers<'a> {
    /// Topmost first. A detached mount lives as long as its descriptor: all stay open until the
    /// overlay has clones of its own.
    pub(crate) lower: Vec<OwnedFd>,
    pub(crate) upper: Option<Upper>,
    pub(crate) options: &'a [(String, String)],
}

impl Layers<'_> {
    /// The overlay, as a detached mount.
    pub(crate) fn mount(&self, owner: Owner<'_>, scratch: Scratch<'_>) -> Result<OwnedFd, Error> {
        if !scratch.kernel.detached_layers {
            return self.mount_attached(owner, scratch);
        }
        match self.mount_detached(owner) {
            // This kernel is older than it looks, or it means something else by it, which it will
            // say again.
            Err(first) if first.may_mean_detached() => self
                .mount_attached(owner, scratch)
                .map_err(|second| first.or(second)),
            mounted => mounted,
        }
    }

    fn mount_detached(&self, owner: Owner<'_>) -> Result<OwnedFd, Error> {
        let context = FsContext::open("overlay")?;
        for (key, value) in self.options {
            context.set(key, value)?;
        }
        for layer in &self.lower {
            context.set_fd("lowerdir+", layer.as_fd())?;
        }
        if let Some(upper) = &self.upper {
            context.set_fd("upperdir", upper.upper.dir.as_fd())?;
            context.set_fd("workdir", upper.work.dir.as_fd())?;
        }
        owner.act(|| context.create())?;
        context.fsmount(0)
    }

    fn mount_attached(&self, owner: Owner<'_>, scratch: Scratch<'_>) -> Result<OwnedFd, Error> {
        let home = Home::leave(scratch)?;
        let mounted = self.mount_in_scratch(owner);
        home.enter()?;
        mounted
    }

    /// The caller is in a copy of the empty mount namespace.
    fn mount_in_scratch(&self, owner: Owner<'_>) -> Result<OwnedFd, Error> {
        let host = Owner {
            userns: None,
            ..owner
        };
        attach_scratch(&tmpfs(&[], 0, host)?)?;
        chdir(SCRATCH_DIR).map_err(|source| Error::Resolve {
            path: SCRATCH_DIR.into(),
            source,
        })?;
        let mut names = Vec::with_capacity(self.lower.len());
        for (n, layer) in self.lower.iter().enumerate() {
            let name = n.to_string();
            attach_here(layer, &name)?;
            names.push(name);
        }
        let mut data = format!("lowerdir={}", names.join(":"));
        if let Some(upper) = &self.upper {
            attach_here(&upper.parent, "p")?;
            for (key, name, to) in [
                ("upperdir", "u", &upper.upper.path),
                ("workdir", "w", &upper.work.path),
            ] {
                // The kernel follows it; its own text has no character that the options take
                // for theirs.
                symlinkat(Path::new("p").join(to), CWD, name).map_err(|source| Error::Link {
                    path: name.into(),
                    source,
                })?;
                data += &format!(",{key}={name}");
            }
        }
        for (key, value) in self.options {
            data += &option(key, value)?;
        }
        let at = "overlay";
        make_dir(at)?;
        owner.act(|| {
            mount(at, at, at, MountFlags::empty(), Some(&*c_string(&data)?)).map_err(|source| {
                Error::MountOverlay {
                    data: data.clone(),
                    source,
                }
            })
        })?;
        clone_tree(Path::new(at), false)
    }
}

/// A clone of what is at `path` of a detached mount; `None` if nothing is.
///
/// Kernels before 6.15 clone nothing out of a mount that is attached nowhere.
pub(crate) fn part_of(
    mount: &OwnedFd,
    path: &Path,
    scratch: Scratch<'_>,
) -> Result<Option<OwnedFd>, Error> {
    let part = || {
        let inside = resolve(mount.as_fd(), path)?;
        inside.map(|fd| clone_of(fd.as_fd(), path)).transpose()
    };
    if scratch.kernel.detached_layers {
        return part();
    }
    let home = Home::leave(scratch)?;
    let part = attach_scratch(mount).and_then(|()| part());
    home.enter()?;
    part
}

/// An option as mount(2) takes it; a comma in it would be the end of it.
fn option(key: &str, value: &str) -> Result<String, Error> {
    match (value.contains([',', '\\']), value) {
        (true, _) => Err(Error::FsConfig {
            fs: "overlay".to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            source: Errno::INVAL,
        }),
        (false, "") => Ok(format!(",{key}")),
        (false, _) => Ok(format!(",{key}={value}")),
    }
}

fn c_string(data: &str) -> Result<std::ffi::CString, Error> {
    std::ffi::CString::new(data).map_err(|_| Error::MountOverlay {
        data: data.to_owned(),
        source: Errno::INVAL,
    })
}

fn make_dir(name: &str) -> Result<(), Error> {
    mkdirat(CWD, name, Mode::from_raw_mode(0o755)).map_err(|source| Error::MakeDir {
        path: name.into(),
        source,
    })
}

fn attach_here(layer: &OwnedFd, name: &str) -> Result<(), Error> {
    make_dir(name)?;
    move_mount(
        layer,
        "",
        CWD,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|source| Error::MoveMount {
        path: name.into(),
        source,
    })
}

/// The mount namespace and the root that the caller comes from and goes back to.
pub(crate) struct Home {
    mntns: OwnedFd,
    root: OwnedFd,
}

impl Home {
    /// Enters a copy of the empty mount namespace, which is gone once it is left.
    fn leave(scratch: Scratch<'_>) -> Result<Self, Error> {
        let home = Self::remember(scratch)?;
        setns(scratch.empty, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
        unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
        Ok(home)
    }

    /// For a caller that is about to leave them.
    pub(crate) fn remember(scratch: Scratch<'_>) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mntns = openat(scratch.proc, "self/ns/mnt", flags, Mode::empty());
        Ok(Self {
            mntns: mntns.map_err(|source| Error::Resolve {
                path: "/proc/self/ns/mnt".into(),
                source,
            })?,
            root: own_root()?,
        })
    }

    /// The mount namespace.
    pub(crate) fn mntns(self) -> OwnedFd {
        self.mntns
    }

    /// Goes back.
    pub(crate) fn enter(self) -> Result<(), Error> {
        setns(self.mntns.as_fd(), flags::NEWNS).map_err(|source| Error::LeaveEmpty { source })?;
        // setns(2) makes the namespace's root the caller's, which it need not have been.
        let rooted = fchdir(&self.root).and_then(|()| chroot("."));
        rooted.map_err(|source| Error::Resolve {
            path: "/".into(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_for_mount_2_holds_no_second_one() {
        assert_eq!(option("index", "off").unwrap(), ",index=off");
        assert_eq!(option("volatile", "").unwrap(), ",volatile");
        for value in ["off,upperdir=/etc", "\\"] {
            assert!(option("index", value).is_err(), "{value}");
        }
    }
}
