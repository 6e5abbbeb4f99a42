//! Capabilities, ids and limits of the workload.
//!
//! The order matters (credentials(7), capabilities(7)): the bounding set while CAP_SETPCAP is
//! there, ids with "keep capabilities", then the sets; a filter without `no_new_privs` wants
//! CAP_SYS_ADMIN, which stays until execve recomputes the sets from the bounding set.

use berm_plan::{CapSets, Rlimit};
use berm_sys::process;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_keep_capabilities,
};

use crate::error::{Error, call, sys};
use crate::join::warn;

const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Drops every capability that is not in `keep` from the bounding set.
pub(crate) fn drop_bounding(keep: u64) -> Result<(), Error> {
    for bit in 0..64 {
        let one = 1u64 << bit;
        if keep & one != 0 {
            continue;
        }
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(one)) {
            Ok(()) => {}
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(source) => {
                return Err(Error::Call {
                    call: "prctl(PR_CAPBSET_DROP)",
                    source,
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<(), Error> {
    set_keep_capabilities(true).map_err(call("prctl(PR_SET_KEEPCAPS, 1)"))?;
    process::set_ids(uid, gid, groups).map_err(sys("setgroups, setresgid, setresuid"))?;
    set_keep_capabilities(false).map_err(call("prctl(PR_SET_KEEPCAPS, 0)"))
}

pub(crate) fn set_capabilities(sets: &CapSets, keep_sys_admin: bool) -> Result<(), Error> {
    let extra = if keep_sys_admin { CAP_SYS_ADMIN } else { 0 };
    process::set_capabilities(
        sets.effective | extra,
        sets.permitted | extra,
        sets.inheritable,
    )
    .map_err(sys("capset()"))?;
    clear_ambient_capability_set().map_err(call("prctl(PR_CAP_AMBIENT_CLEAR_ALL)"))?;
    for bit in (0..64).filter(|bit| sets.ambient & (1 << bit) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << bit), true)
            .map_err(call("prctl(PR_CAP_AMBIENT_RAISE)"))?;
    }
    Ok(())
}

/// Sets each limit; a hard limit that the host itself may not raise stays, with a warning.
pub(crate) fn set_rlimits(
    limits: &[Rlimit],
    report: std::os::fd::BorrowedFd<'_>,
) -> Result<(), Error> {
    for l in limits {
        match process::set_rlimit(l.resource, l.soft, l.hard) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                let text = format!("process.rlimits {}: this host may not raise it", l.name);
                warn(report, text)?;
            }
            Err(source) => {
                let name = l.name.clone();
                return Err(Error::Rlimit {
                    name,
                    soft: l.soft,
                    hard: l.hard,
                    source,
                });
            }
        }
    }
    Ok(())
}
