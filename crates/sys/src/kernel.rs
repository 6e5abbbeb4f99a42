//! What of the running kernel is worked around where it is missing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::mount::{SetAttr, attr, set_attr};

/// What this kernel can. Only what Berm does in another way, or without, has a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// An overlay takes layers that are attached nowhere (6.15); else they are attached for a
    /// moment in a mount namespace of their own.
    pub detached_layers: bool,
    /// A tmpfs can be idmapped (6.3); else pods that nobody gave a user namespace have none.
    pub idmapped_tmpfs: bool,
}

impl Kernel {
    /// A kernel that lacks nothing.
    pub const WHOLE: Self = Self {
        detached_layers: true,
        idmapped_tmpfs: true,
    };

    /// Looks at the running kernel: one call where it lacks nothing. `userns` makes a user
    /// namespace with a map and is asked on older kernels only; without one nothing is known to
    /// be missing, and whoever needs user namespaces will meet the reason.
    pub fn probe<E>(userns: impl FnOnce() -> Result<OwnedFd, E>) -> Self {
        // open_tree_attr(2) is of the release that brought detached layers, and younger than the
        // rest. Where it is hidden, by a filter or a kernel with parts of newer ones, the other
        // ways work as well.
        if has_open_tree_attr() {
            return Self::WHOLE;
        }
        Self {
            detached_layers: false,
            idmapped_tmpfs: !userns().is_ok_and(|ns| refuses_idmapped_tmpfs(ns.as_fd())),
        }
    }
}

fn has_open_tree_attr() -> bool {
    /// asm-generic/unistd.h; the same number on every architecture.
    const SYS_OPEN_TREE_ATTR: libc::c_long = 467;
    let null = std::ptr::null::<u8>();
    // SAFETY: attributes of a size but without an address are refused (EINVAL) before anything
    // is read or opened.
    let asked =
        crate::check(unsafe { libc::syscall(SYS_OPEN_TREE_ATTR, -1, c"".as_ptr(), 0, null, 1) });
    !asked.is_err_and(|e| e.raw_os_error() == Some(libc::ENOSYS))
}

fn refuses_idmapped_tmpfs(userns: BorrowedFd<'_>) -> bool {
    let Ok(mount) = tmpfs() else { return false };
    let change = SetAttr {
        set: attr::IDMAP,
        ..SetAttr::default()
    };
    set_attr(mount.as_fd(), false, change, Some(userns))
        .is_err_and(|e| e.raw_os_error() == Some(libc::EINVAL))
}

fn tmpfs() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}
