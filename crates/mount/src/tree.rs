//! From detached mounts to the root of a process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::Attr;
use berm_sys::process::{flags, setns, unshare};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use crate::bind::clone_tree;
use crate::copy::copy_up;
use crate::hide::{attach_over, clone_of};
use crate::source::{Built, FsContext};
use crate::target::{Shape, open_or_make, resolve};
use crate::{Error, Owner};

/// Where the empty mount namespace has its directory for a new root.
const STAGE_DIR: &str = "/mnt";
/// Where it has a directory for mounts that must be attached somewhere.
pub(crate) const SCRATCH_DIR: &str = "/scratch";

/// The directories that an empty mount namespace must have.
pub const EMPTY_DIRS: [&str; 3] = ["proc", "mnt", "scratch"];

/// The detached mounts of one container, in the order in which they are attached.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    mounts: Vec<(PathBuf, Built)>,
}

impl Tree {
    /// A tree of the root file system alone.
    pub fn new(root: OwnedFd) -> Self {
        Self {
            root,
            mounts: Vec::new(),
        }
    }

    /// Adds a mount at `target`, over all that came before it.
    pub fn push(&mut self, target: PathBuf, built: Built) {
        self.mounts.push((target, built));
    }

    /// The detached mount at `target`, if there is one.
    pub fn find(&self, target: &Path) -> Option<BorrowedFd<'_>> {
        self.mounts
            .iter()
            .rev()
            .find(|(path, _)| path == target)
            .map(|(_, b)| b.root.as_fd())
    }

    /// Enters the empty mount namespace, attaches root and mounts, and gives back the root.
    ///
    /// The caller's root directory is then the empty one; the tree stands at `/mnt`.
    /// # Errors
    /// See [`Error`]; a target that leads out of the rootfs is refused.
    pub fn assemble(self, empty: BorrowedFd<'_>, owner: Owner<'_>) -> Result<OwnedFd, Error> {
        setns(empty, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
        unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
        self.attach_at(Path::new(STAGE_DIR), owner)
    }

    /// Enters a copy of the caller's mount namespace, attaches root and mounts at `path` of it,
    /// makes that the working directory, which a further copy keeps, and gives back the root.
    ///
    /// What the host mounts from now on shows up in the copy until [`pivot_locked`]; nothing of
    /// the copy shows up on the host.
    /// # Errors
    /// See [`Error`]; a target that leads out of the rootfs is refused.
    pub fn assemble_at(self, path: &Path, owner: Owner<'_>) -> Result<OwnedFd, Error> {
        unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave).map_err(|source| Error::Propagation { source })?;
        let root = self.attach_at(path, owner)?;
        fchdir(&root).map_err(|source| Error::Resolve {
            path: path.into(),
            source,
        })?;
        Ok(root)
    }

    fn attach_at(self, path: &Path, owner: Owner<'_>) -> Result<OwnedFd, Error> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.root, "", CWD, path, flags).map_err(|source| Error::MoveMount {
            path: path.into(),
            source,
        })?;
        let root = self.root;
        owner.act(|| {
            for (target, built) in &self.mounts {
                attach_built(root.as_fd(), target, built).map_err(|e| e.of(built.index, target))?;
            }
            Ok(())
        })?;
        Ok(root)
    }
}

fn attach_built(root: BorrowedFd<'_>, target: &Path, built: &Built) -> Result<(), Error> {
    if built.mode_of_target || built.copy_up {
        take_over(root, target, built)?;
    }
    attach(root, target, &built.root)?;
    // Their places are files of the mount itself, which may be the host's: not a step out of it.
    for (name, mount) in &built.below {
        attach(built.root.as_fd(), name, mount)?;
    }
    Ok(())
}

/// What a tmpfs takes over from the directory that it is about to cover.
fn take_over(root: BorrowedFd<'_>, target: &Path, built: &Built) -> Result<(), Error> {
    let Some(found) = resolve(root, target)? else {
        return Ok(());
    };
    if built.mode_of_target {
        let mode = fstat(&found).map(|s| Mode::from_raw_mode(s.st_mode));
        mode.and_then(|mode| chmodat(&built.root, ".", mode, AtFlags::empty()))
            .map_err(|source| Error::Stat {
                path: target.into(),
                source,
            })?;
    }
    if built.copy_up {
        copy_up(found.as_fd(), built.root.as_fd(), target)?;
    }
    Ok(())
}

pub(crate) fn attach(root: BorrowedFd<'_>, target: &Path, mount: &OwnedFd) -> Result<(), Error> {
    let shape = Shape::of(mount, target)?;
    let at = open_or_make(root, target, shape)?;
    attach_over(mount, at.as_fd(), target)
}

/// Attaches a mount in the empty mount namespace that the caller is in; it goes with the old root.
pub(crate) fn attach_scratch(mount: &OwnedFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, SCRATCH_DIR, flags).map_err(|source| Error::MoveMount {
        path: SCRATCH_DIR.into(),
        source,
    })
}

/// The caller's own root directory, O_PATH.
/// # Errors
/// The errno of open(2).
pub fn own_root() -> Result<OwnedFd, Error> {
    openat(
        CWD,
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|source| Error::Resolve {
        path: "/".into(),
        source,
    })
}

/// Binds a terminal's slave over `/dev/console`.
/// # Errors
/// As for every target.
pub fn console(root: BorrowedFd<'_>, slave: BorrowedFd<'_>, owner: Owner<'_>) -> Result<(), Error> {
    let console = Path::new("/dev/console");
    let stat = fstat(slave).map_err(|source| Error::Stat {
        path: "tty".into(),
        source,
    })?;
    let name = format!("/dev/pts/{}", rustix::fs::minor(stat.st_rdev));
    let missing = || Error::Resolve {
        path: name.clone().into(),
        source: Errno::NOENT,
    };
    let tty = resolve(root, Path::new(&name))?.ok_or_else(missing)?;
    let clone = clone_of(tty.as_fd(), console)?;
    owner.act(|| attach(root, console, &clone))
}

/// Makes the tree the root of this process and drops the old one (pivot_root(2)).
/// # Errors
/// The errno of pivot_root(2) and umount2(2).
pub fn pivot(root: BorrowedFd<'_>) -> Result<(), Error> {
    let pivoted = fchdir(root)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| chdir("/"));
    pivoted.map_err(|source| Error::Pivot { source })
}

/// Makes the tree in the working directory, locked in a copy of the host's mount namespace, the
/// root of this process and drops the host's; gives back the new root.
///
/// A locked mount can be no new root (pivot_root(2) says EINVAL), a copy of it can: of its
/// mounts only the topmost is free then.
/// # Errors
/// The errno of the mount calls.
pub fn pivot_locked() -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let here = openat(CWD, ".", flags, Mode::empty()).map_err(|source| Error::Resolve {
        path: ".".into(),
        source,
    })?;
    let copy = clone_tree(Path::new("."), true)?;
    attach_over(&copy, here.as_fd(), Path::new("/"))?;
    pivot(copy.as_fd())?;
    own_root()
}

/// Mounts `/proc` of the caller's PID namespace at `target` of its root.
///
/// `visible` is a mount namespace in which a whole proc can be seen: the kernel allows a new
/// instance only there (`mount_too_revealing`); `locked` is the one to go back to. What is mounted
/// at the paths `over` below the target already, is mounted there again on the new proc.
/// # Errors
/// The errno of the mount calls; `EPERM` where no whole proc is visible.
pub fn attach_proc(
    target: &Path,
    attr: Attr,
    visible: BorrowedFd<'_>,
    locked: BorrowedFd<'_>,
    over: &[PathBuf],
) -> Result<(), Error> {
    let missing = |path: &Path| Error::Resolve {
        path: path.into(),
        source: Errno::NOENT,
    };
    let mut covers = Vec::with_capacity(over.len());
    if !over.is_empty() {
        let root = own_root()?;
        for path in over {
            let cover = resolve(root.as_fd(), path)?.ok_or_else(|| missing(path))?;
            covers.push((path, cover));
        }
    }
    setns(visible, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    let context = FsContext::open("proc")?;
    context.create()?;
    let proc = context.fsmount(crate::source::attr_bits(attr))?;
    setns(locked, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    let root = own_root()?;
    let at = resolve(root.as_fd(), target)?.ok_or_else(|| missing(target))?;
    attach_over(&proc, at.as_fd(), target)?;
    for (path, cover) in covers {
        // Clones of mounts that are locked are locked as well.
        let cover = clone_of(cover.as_fd(), path)?;
        let at = resolve(root.as_fd(), path)?.ok_or_else(|| missing(path))?;
        attach_over(&cover, at.as_fd(), path)?;
    }
    Ok(())
}
