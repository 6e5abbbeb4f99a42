//! Typed kernel calls that rustix and nix lack; the only room with `unsafe`.
//!
//! | feature | since | used for | without it |
//! |---|---|---|---|
//! | `fsopen`, `fsmount`, `move_mount`, `open_tree` | 5.2 | every mount | Berm does not run |
//! | `pidfd_open`, `clone3` | 5.3 | signals, waiting, init | Berm does not run |
//! | `openat2` | 5.6 | targets in a rootfs | Berm does not run |
//! | `setns` with a pidfd | 5.8 | joining a pod in one call | Berm does not run |
//! | `LOOP_CONFIGURE` | 5.8 | a root file system in a file | refused |
//! | `mount_setattr` with idmap | 5.12 | layers and volumes | Berm does not run |
//! | overlay over idmapped layers | 5.19 | the root file system | Berm does not run |
//! | executable memfd (`MFD_EXEC`) | 6.3 | PID 1 | the same without the flag, which is not needed then |
//! | idmapped tmpfs | 6.3 | volumes in memory | pods without a user namespace |
//! | detached overlay layers, by descriptor | 6.15 | the root file system | layers attached in a mount namespace for a moment |
//!
//! Numbers of versions are a guide only: [`Kernel::probe`] and `berm check` look.
#![allow(unsafe_code)]
// Numbers cross the system call boundary here: the kernel's types, not ours, decide.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss
)]

pub mod argv;
pub mod bpf;
mod kernel;
pub mod keyring;
mod kind;
pub mod loopdev;
pub mod memory;
pub mod mount;
pub mod net;
pub mod process;
pub mod rtnetlink;
pub mod sched;
pub mod signal;

pub use kernel::Kernel;
pub use kind::Kind;

/// The result of a raw system call: -1 means that errno is set.
pub(crate) fn check(ret: i64) -> std::io::Result<i64> {
    if ret < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}
