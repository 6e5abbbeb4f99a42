//! The root file system: an overlay over idmapped layers, one idmapped directory, or a file system
//! on a device.
//!
//! The overlay itself cannot be idmapped (EINVAL), its layers can. The upper directory is
//! idmapped too, so that what root in the pod writes is owned by id 0 on disk, as with every
//! other runtime; the overlay's creator then needs the pod root's fsuid, or it comes up
//! read-only without a word.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berm_plan::Rootfs;
use berm_sys::mount::{self, SetAttr, attr};
use rustix::fs::{StatVfsMountFlags, fstatvfs};

use crate::bind::{clone_tree, idmap_tree};
use crate::device;
use crate::overlay::{Layers, Scratch, Upper};
use crate::{Error, Owner, upper};

/// Builds the root file system as a detached mount; `own`: the file system that takes what is
/// written to it, as [`crate::upper`] has made it.
/// # Errors
/// [`Error::Idmap`] where a layer's file system has no idmapped mounts.
pub fn rootfs(
    rootfs: &Rootfs,
    own: Option<OwnedFd>,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    if let Some(own) = own {
        return upper::over(rootfs, own, owner, scratch);
    }
    match rootfs {
        Rootfs::Overlay {
            lower, upper: None, ..
        } if lower.len() == 1 => view(lower, &[], owner, scratch),
        Rootfs::Overlay {
            lower,
            upper,
            shifted_upper,
            options,
        } => {
            let upper = upper
                .as_ref()
                .map(|(upper, work)| (upper, work, *shifted_upper));
            overlay(lower, upper, options, owner, scratch)
        }
        Rootfs::Bind {
            path,
            recursive,
            ro,
        } => {
            let tree = clone_tree(path, *recursive)?;
            idmap_tree(&tree, path, *recursive, owner)?;
            if *ro {
                set_readonly(&tree, path)?;
            }
            Ok(tree)
        }
        Rootfs::Fs(fs) => device::mount(fs, owner),
    }
}

/// A read-only overlay of these layers, or the layer itself if it is the only one.
pub(crate) fn view(
    lower: &[PathBuf],
    options: &[(String, String)],
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    match lower {
        [only] => layer(only, true, owner),
        _ => overlay(lower, None, options, owner, scratch),
    }
}

fn set_readonly(tree: &OwnedFd, path: &Path) -> Result<(), Error> {
    let change = SetAttr {
        set: attr::RDONLY,
        ..SetAttr::default()
    };
    mount::set_attr(tree.as_fd(), false, change, None).map_err(|source| Error::SetAttr {
        path: path.into(),
        set: attr::RDONLY,
        source,
    })
}

/// One directory as a detached, idmapped mount.
pub(crate) fn layer(path: &Path, ro: bool, owner: Owner<'_>) -> Result<OwnedFd, Error> {
    let tree = clone_tree(path, false)?;
    idmap_tree(&tree, path, false, owner)?;
    if ro {
        set_readonly(&tree, path)?;
    }
    Ok(tree)
}

fn overlay(
    lower: &[PathBuf],
    upper: Option<(&PathBuf, &PathBuf, bool)>,
    options: &[(String, String)],
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let lower = layers(lower, owner)?;
    let upper = upper
        .map(|(upper, work, shifted)| {
            let userns = owner.userns.filter(|_| !shifted);
            Upper::open(upper, work, Owner { userns, ..owner })
        })
        .transpose()?;
    let layers = Layers {
        lower,
        upper,
        options,
    };
    mounted(&layers, owner, scratch)
}

/// The layers below, each with its id map.
pub(crate) fn layers(lower: &[PathBuf], owner: Owner<'_>) -> Result<Vec<OwnedFd>, Error> {
    let all = lower.iter().map(|path| layer(path, false, owner));
    all.collect()
}

/// Their overlay, which must be writable if it is to be.
pub(crate) fn mounted(
    layers: &Layers<'_>,
    owner: Owner<'_>,
    scratch: Scratch<'_>,
) -> Result<OwnedFd, Error> {
    let mount = layers.mount(owner, scratch)?;
    let writable = layers.upper.is_none() || !is_readonly(&mount)?;
    if writable {
        Ok(mount)
    } else {
        Err(Error::ReadOnlyOverlay)
    }
}

fn is_readonly(mount: &OwnedFd) -> Result<bool, Error> {
    let stat = fstatvfs(mount).map_err(|source| Error::Stat {
        path: "overlay".into(),
        source,
    })?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}
