//! Builds the mount tree of a container: idmapped layers, overlay, `/dev`, volumes.
//!
//! Everything is built by the host as detached mounts, attached in an empty mount namespace and
//! locked when that namespace is copied into one that the pod's user namespace owns: what is
//! read-only then stays so against root in the pod. Runs in a stage child only, with the host's
//! credentials and `SECBIT_NO_SETUID_FIXUP`; paths of an image are walked with `openat2(2)` and
//! `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`.
#![forbid(unsafe_code)]

mod bind;
mod copy;
mod device;
mod error;
mod hide;
mod hinted;
mod into;
mod lower;
mod mountinfo;
mod node;
mod overlay;
mod rootfs;
mod source;
mod target;
mod tree;
mod upper;
mod userns;

pub use error::Error;
pub use hide::{Null, mask, readonly, readonly_mounts};
pub use hinted::pod_tmpfs;
pub use into::{Staged, stage_mount};
pub use node::{HostNode, devices, host_nodes, links};
pub use overlay::Scratch;
pub use rootfs::rootfs;
pub use source::{Built, build, propagate};
pub use target::{Shape, make_dir_as, resolve};
pub use tree::{EMPTY_DIRS, Tree, attach_proc, console, own_root, pivot, pivot_locked};
pub use upper::upper;

use std::os::fd::BorrowedFd;

/// Whose ids the mounts show.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The pod's user namespace; `None`: ids are shown as they are, because the pod has none or
    /// its ids have the numbers that they have outside.
    pub userns: Option<BorrowedFd<'a>>,
    /// The caller is in a user namespace itself and not root of the host: it can make no device
    /// nodes, and the flags of the mounts that it found are locked.
    pub nested: bool,
    /// Host id of the pod's root user.
    pub uid: u32,
    /// Host id of the pod's root group.
    pub gid: u32,
    /// SELinux context of all files of a new file system; `None`: as the host's policy has it.
    pub label: Option<&'a str>,
}

impl Owner<'_> {
    /// Runs `f` with the file system ids of the pod's root, so that what it makes belongs to it.
    ///
    /// On an idmapped mount the host's id 0 has no number, and making a file as it is EOVERFLOW.
    pub(crate) fn act<T>(self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let set = |uid, gid| {
            berm_sys::process::set_fs_ids(uid, gid).map_err(|source| Error::FsIds {
                uid,
                gid,
                source,
            })
        };
        set(self.uid, self.gid)?;
        let made = f();
        set(0, 0)?;
        made
    }
}
