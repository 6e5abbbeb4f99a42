//! Mounts that come to a container while it runs.
//!
//! The kernel locks what is copied into a mount namespace that another user namespace owns
//! (`lock_mnt_tree` in fs/namespace.c), and nothing else: a mount that is only moved there could be
//! made writable by root of the pod. So it is staged in a namespace of the host's, that is copied
//! by a process of the pod's, and a clone of the copy is moved. The flags of all its mounts are
//! locked then, and each but the topmost is locked to its place: a directory is staged as two
//! mounts, one over the other, of which the one that is seen cannot be unmounted. What lies under a
//! file cannot be named (only a directory can be the working directory), so a file is one mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use berm_plan::{Mount, Source};
use berm_sys::process::{flags, setns, unshare};
use rustix::fs::{CWD, fstat};
use rustix::process::fchdir;

use crate::bind::clone_tree;
use crate::hide::{attach_over, clone_of};
use crate::overlay::Home;
use crate::source::{Built, source, tmpfs};
use crate::target::{Shape, open_or_make, resolve};
use crate::tree::{attach, attach_scratch, own_root};
use crate::{Error, Owner, Scratch};

/// Where it is staged, on a tmpfs of its own.
const STAGED: &str = "staged";

/// A mount that waits in a namespace of its own.
#[derive(Debug)]
pub struct Staged {
    /// The container's mount namespace.
    container: OwnedFd,
    /// It is the working directory; else a file in it.
    is_dir: bool,
}

/// Builds the mount and attaches it in a copy of the empty mount namespace, which the caller is
/// in from then on. The caller comes from the host's.
///
/// `container` is a pidfd of the container's first process. A tmpfs without a mode gets that of the
/// directory which it will cover. `lock`: see [`Staged::unstage`].
/// # Errors
/// As [`crate::build`], without the place in a spec.
pub fn stage_mount(
    mount: &Mount,
    container: BorrowedFd<'_>,
    lock: bool,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<Staged, Error> {
    let (container, mode) = look_inside(container, &mount.target, scratch)?;
    let mut mount = mount.clone();
    if let Source::Tmpfs {
        options,
        mode_of_target: true,
        ..
    } = &mut mount.source
    {
        options.extend(mode.map(|mode| ("mode".to_owned(), format!("{mode:o}"))));
    }
    let built = source(&mount, owner, scratch)?;
    setns(scratch.empty, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
    let host = Owner {
        userns: None,
        label: None,
        ..owner
    };
    let place = tmpfs(&[], 0, host)?;
    attach_scratch(&place)?;
    let is_dir = attach_staged(built, &place, lock)?;
    Ok(Staged { container, is_dir })
}

/// Attaches it, and makes it, or where it is, the working directory; true if it is a directory.
fn attach_staged(built: Built, place: &OwnedFd, lock: bool) -> Result<bool, Error> {
    let name = Path::new(STAGED);
    let shape = Shape::of(&built.root, name)?;
    let at = open_or_make(place.as_fd(), name, shape)?;
    attach_over(&built.root, at.as_fd(), name)?;
    let is_dir = shape == Shape::Dir;
    fchdir(if is_dir { &built.root } else { place }).map_err(|source| Error::Resolve {
        path: name.into(),
        source,
    })?;
    let mut seen = built.root;
    if is_dir && lock {
        let over = clone_of(seen.as_fd(), name)?;
        attach_over(&over, seen.as_fd(), name)?;
        seen = over;
    }
    for (name, below) in &built.below {
        attach(seen.as_fd(), name, below)?;
    }
    Ok(is_dir)
}

impl Staged {
    /// Moves a clone of it to `target` of the container, below whose root the path is walked; what
    /// is missing of it is made. The caller is in the container's mount namespace then.
    ///
    /// `lock`: the caller has entered the pod's user namespace, and the mount shall be locked.
    /// # Errors
    /// [`Error::Resolve`] for a target behind a magic link; [`Error::Shape`]; the errno of the
    /// mount calls.
    pub fn unstage(&self, target: &Path, lock: bool) -> Result<(), Error> {
        if lock {
            unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
        }
        let name = Path::new(STAGED);
        let mount = match self.is_dir {
            true => clone_of(CWD, name)?,
            false => clone_tree(name, true)?,
        };
        enter(self.container.as_fd())?;
        attach(own_root()?.as_fd(), target, &mount)
    }
}

/// The container's mount namespace, and the permission bits of what is at `path` of it.
///
/// With the host's credentials: root of the pod need not have access to the process.
fn look_inside(
    container: BorrowedFd<'_>,
    path: &Path,
    scratch: Scratch<'_>,
) -> Result<(OwnedFd, Option<u32>), Error> {
    let home = Home::remember(scratch)?;
    enter(container)?;
    let inside = Home::remember(scratch);
    let found = own_root().and_then(|root| resolve(root.as_fd(), path));
    home.enter()?;
    let stat = found?.map(fstat).transpose();
    let stat = stat.map_err(|source| Error::Stat {
        path: path.into(),
        source,
    })?;
    Ok((inside?.mntns(), stat.map(|stat| stat.st_mode & 0o7777)))
}

/// The root of the namespace is the caller's root then.
fn enter(mntns: BorrowedFd<'_>) -> Result<(), Error> {
    setns(mntns, flags::NEWNS).map_err(|source| Error::EnterContainer { source })
}
