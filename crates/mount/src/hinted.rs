//! The tmpfses that a pod's hints ask for: made once, mounted in its containers.
//!
//! They are attached in a mount namespace of their own, which nothing runs in and the host alone
//! holds: a kernel before 6.15 clones no mount that is attached nowhere. They live as long as it,
//! or as the last container that has one of them.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use berm_plan::{Ids, Mount, PodTmpfs};
use berm_sys::mount::{SetAttr, attr};
use berm_sys::process::{flags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, stat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::bind::clone_tree;
use crate::overlay::Home;
use crate::source::{attr_bits, set_attr, tmpfs};
use crate::tree::{SCRATCH_DIR, attach_scratch};
use crate::{Error, Owner, Scratch};

/// Makes them, and gives the file of the mount namespace in which each is attached by its name.
///
/// The caller, who is in the host's mount namespace, is in that one from then on.
/// # Errors
/// The errno of fsconfig(2) for an option that the kernel does not take, with the hint's name.
pub fn pod_tmpfs(
    all: &[PodTmpfs],
    ids: &Ids,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let made = all.iter().map(|hint| make(hint, ids, owner));
    let made = made.collect::<Result<Vec<_>, Error>>()?;
    setns(scratch.empty, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    unshare(flags::NEWNS).map_err(|source| Error::Unshare { source })?;
    let host = Owner {
        userns: None,
        ..owner
    };
    attach_scratch(&tmpfs(&[], 0, host)?)?;
    for (hint, mount) in all.iter().zip(&made) {
        attach(mount, &Path::new(SCRATCH_DIR).join(&hint.name))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = openat(scratch.proc, "self/ns/mnt", flags, Mode::empty());
    own.map_err(|source| Error::Resolve {
        path: "/proc/self/ns/mnt".into(),
        source,
    })
}

fn attach(mount: &OwnedFd, at: &Path) -> Result<(), Error> {
    mkdirat(CWD, at, Mode::from_raw_mode(0o755)).map_err(|source| Error::MakeDir {
        path: at.into(),
        source,
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, at, flags).map_err(|source| Error::MoveMount {
        path: at.into(),
        source,
    })
}

fn make(hint: &PodTmpfs, ids: &Ids, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let mut options = of_source(hint, ids).map_err(|e| e.of_hint(&hint.name))?;
    options.extend(hint.options.iter().cloned());
    tmpfs(&options, 0, owner).map_err(|e| e.of_hint(&hint.name))
}

/// What its root has of the directory that it stands for: kubelet gives a volume the group of the
/// pod's `fsGroup`.
fn of_source(hint: &PodTmpfs, ids: &Ids) -> Result<Vec<(String, String)>, Error> {
    let mut options = Vec::new();
    if !hint.mode_of_source && !hint.owner_of_source {
        return Ok(options);
    }
    let stat = match stat(&hint.like) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(options),
        Err(source) => {
            return Err(Error::Stat {
                path: hint.like.clone(),
                source,
            });
        }
    };
    if hint.mode_of_source {
        options.push(("mode".to_owned(), format!("{:o}", stat.st_mode & 0o7777)));
    }
    if hint.owner_of_source {
        let owner = [
            ("uid", ids.uids.to_host(stat.st_uid)),
            ("gid", ids.gids.to_host(stat.st_gid)),
        ];
        for (key, id) in owner {
            options.extend(id.map(|id| (key.to_owned(), id.to_string())));
        }
    }
    Ok(options)
}

/// The tmpfs of this name, out of the namespace `hinted`, as `mount` wants it.
pub(crate) fn part(
    name: &str,
    hinted: BorrowedFd<'_>,
    mount: &Mount,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let home = Home::remember(scratch)?;
    setns(hinted, flags::NEWNS).map_err(|source| Error::EnterEmpty { source })?;
    let cloned = clone_tree(&Path::new(SCRATCH_DIR).join(name), false);
    home.enter()?;
    let cloned = cloned?;
    let set = attr_bits(mount.attr);
    let clear = match mount.attr.atime {
        berm_plan::Atime::Inherit => 0,
        _ => attr::ATIME,
    };
    if (set, clear) != (0, 0) {
        let change = SetAttr {
            set,
            clear,
            propagation: 0,
        };
        set_attr(&cloned, &mount.target, false, change)?;
    }
    Ok(cloned)
}
