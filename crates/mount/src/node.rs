//! Device nodes and links, made by the host in the tree.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::{Device, DeviceKind};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Stat, Uid, chmodat, chownat, fstat, makedev, mknodat,
    statat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::target::make_dir;
use crate::tree::attach;
use crate::{Error, Owner};

/// A device node of the host, cloned to be bound where no node can be made.
#[derive(Debug)]
pub struct HostNode {
    path: PathBuf,
    clone: OwnedFd,
}

/// Clones the host's nodes at the paths of `devices`. The caller is in the host's mount namespace.
/// # Errors
/// [`Error::HostDevice`] where the host has no such node, or one that is not as the spec wants it:
/// nothing of it can be changed.
pub fn host_nodes(devices: &[Device]) -> Result<Vec<HostNode>, Error> {
    let made_anew = |device: &&Device| device.kind == DeviceKind::Fifo;
    let bound = devices.iter().filter(|device| !made_anew(device));
    bound.map(host_node).collect()
}

fn host_node(device: &Device) -> Result<HostNode, Error> {
    let refused = |reason: String| Error::HostDevice {
        path: device.path.clone(),
        reason,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, &device.path, flags)
        .map_err(|e| refused(format!("the host's node: {e}")))?;
    let stat = fstat(&clone).map_err(|source| Error::Stat {
        path: device.path.clone(),
        source,
    })?;
    same(&stat, device)?;
    let (has, wants) = (stat.st_mode & 0o777, device.mode & 0o777);
    if has != wants {
        return Err(refused(format!(
            "the host's node has mode {has:03o}, not {wants:03o}"
        )));
    }
    if (device.uid, device.gid) != (0, 0) {
        return Err(refused("the host's node cannot get an owner".to_owned()));
    }
    Ok(HostNode {
        path: device.path.clone(),
        clone,
    })
}

fn split(path: &Path) -> (&Path, &Path) {
    let parent = path.parent().unwrap_or(Path::new("/"));
    (parent, path.file_name().map_or(Path::new(""), Path::new))
}

/// Makes the nodes, or binds those of the host that are in `bound`; one that the image has already
/// must be the same device.
///
/// `to_host` gives the host's numbers of a user and a group of the pod.
/// # Errors
/// [`Error::OtherDevice`] when something else has the name.
pub fn devices(
    root: BorrowedFd<'_>,
    devices: &[Device],
    bound: &[HostNode],
    owner: Owner<'_>,
    to_host: impl Fn(u32, u32) -> Option<(u32, u32)>,
) -> Result<(), Error> {
    owner.act(|| {
        for device in devices {
            if let Some(node) = bound.iter().find(|node| node.path == device.path) {
                attach(root, &node.path, &node.clone)?;
                continue;
            }
            let ids = to_host(device.uid, device.gid);
            make(root, device, ids)?;
        }
        Ok(())
    })
}

fn file_type(kind: DeviceKind) -> FileType {
    match kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    }
}

fn make(root: BorrowedFd<'_>, d: &Device, ids: Option<(u32, u32)>) -> Result<(), Error> {
    let (parent, name) = split(&d.path);
    let dir = make_dir(root, parent)?;
    let mode = Mode::from_raw_mode(d.mode & 0o7777);
    let dev = makedev(d.major, d.minor);
    match mknodat(&dir, name, file_type(d.kind), mode, dev) {
        Ok(()) => {}
        Err(Errno::EXIST) => return same_device(dir.as_fd(), name, d),
        Err(source) => {
            return Err(Error::MakeNode {
                path: d.path.clone(),
                source,
            });
        }
    }
    // mknod(2) applied the umask.
    chmodat(&dir, name, mode, AtFlags::empty()).map_err(|source| Error::MakeNode {
        path: d.path.clone(),
        source,
    })?;
    if d.uid == 0 && d.gid == 0 {
        return Ok(());
    }
    let chown = |source| Error::Chown {
        path: d.path.clone(),
        uid: d.uid,
        gid: d.gid,
        source,
    };
    let (uid, gid) = ids.ok_or_else(|| chown(Errno::INVAL))?;
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(chown)
}

fn same_device(dir: BorrowedFd<'_>, name: &Path, d: &Device) -> Result<(), Error> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|source| Error::Stat {
        path: d.path.clone(),
        source,
    })?;
    same(&stat, d)
}

fn same(stat: &Stat, d: &Device) -> Result<(), Error> {
    let same = FileType::from_raw_mode(stat.st_mode) == file_type(d.kind)
        && (d.kind == DeviceKind::Fifo || stat.st_rdev == makedev(d.major, d.minor));
    if same {
        return Ok(());
    }
    Err(Error::OtherDevice {
        path: d.path.clone(),
        major: d.major,
        minor: d.minor,
    })
}

/// Makes symbolic links; a name that the image has already is left alone, as runc does.
/// # Errors
/// [`Error::Link`] with the errno of symlinkat(2).
pub fn links(
    root: BorrowedFd<'_>,
    links: &[(PathBuf, PathBuf)],
    owner: Owner<'_>,
) -> Result<(), Error> {
    owner.act(|| {
        for (path, to) in links {
            let (parent, name) = split(path);
            let dir = make_dir(root, parent)?;
            match symlinkat(to, &dir, name) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => {
                    return Err(Error::Link {
                        path: path.clone(),
                        source,
                    });
                }
            }
        }
        Ok(())
    })
}
