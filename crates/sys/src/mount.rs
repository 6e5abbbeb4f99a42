//! Mount calls that rustix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::check;

/// Attribute bits of mount_setattr(2).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits are ignored.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The field of access time bits.
    pub const ATIME: u64 = 0x70;
    /// No access times.
    pub const NOATIME: u64 = 0x10;
    /// Every access time.
    pub const STRICTATIME: u64 = 0x20;
    /// No access times of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
    /// The mount gets the id map of a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
}

/// What mount_setattr(2) changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, … or 0.
    pub propagation: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes the attributes of the mount that `mount` is the root of (mount_setattr(2)).
///
/// `userns` is the user namespace whose map the mount gets when `IDMAP` is set.
/// # Errors
/// The errno of mount_setattr(2): `EINVAL` where the file system cannot be idmapped.
pub fn set_attr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    change: SetAttr,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attr = MountAttr {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` is a struct mount_attr of the size passed,
    // and both descriptors are borrowed for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// `MS_PRIVATE`
pub const PRIVATE: u64 = libc::MS_PRIVATE;
/// `MS_SLAVE`
pub const SLAVE: u64 = libc::MS_SLAVE;
/// `MS_SHARED`
pub const SHARED: u64 = libc::MS_SHARED;
/// `MS_UNBINDABLE`
pub const UNBINDABLE: u64 = libc::MS_UNBINDABLE;
