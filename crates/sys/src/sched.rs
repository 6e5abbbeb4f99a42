//! How the kernel schedules a process: policy, CPUs, I/O priority, memory nodes, personality.

use std::io;
use std::ptr;

use crate::check;

/// Scheduling policy and parameters (sched_setattr(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    /// `SCHED_*`
    pub policy: u32,
    /// `SCHED_FLAG_*`
    pub flags: u64,
    /// Nice value, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// Static priority, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Nanoseconds of CPU time in each period, for `SCHED_DEADLINE`.
    pub runtime_ns: u64,
    /// Nanoseconds, likewise.
    pub deadline_ns: u64,
    /// Nanoseconds, likewise.
    pub period_ns: u64,
}

/// Sets policy and parameters of a process of one thread; 0 is the caller.
/// # Errors
/// The errno of sched_setattr(2): `EPERM` without CAP_SYS_NICE, for a cgroup without realtime
/// budget, or for a deadline with CPUs taken away; `EINVAL`, `EBUSY`.
pub fn set_scheduler(pid: i32, attr: SchedAttr) -> io::Result<()> {
    // struct sched_attr of linux/sched/types.h, its first version (3.14) with the clamps of 5.3.
    #[repr(C)]
    struct Raw {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    let raw = Raw {
        size: size_of::<Raw>() as u32,
        policy: attr.policy,
        flags: attr.flags,
        nice: attr.nice,
        priority: attr.priority,
        runtime: attr.runtime_ns,
        deadline: attr.deadline_ns,
        period: attr.period_ns,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: `raw` is a sched_attr that says its own size and lives until the call returns.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, ptr::from_ref(&raw), 0) }).map(drop)
}

/// Sets class and level of the caller's I/O (ioprio_set(2)): `class << 13 | level`.
/// # Errors
/// The errno of ioprio_set(2).
pub fn set_io_priority(value: u16) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: no pointers; 0 is the caller.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, i32::from(value)) })
        .map(drop)
}

/// The most CPUs or memory nodes that a mask of Berm names.
pub const MAX_MASK_BITS: u32 = 8192;

/// A set of CPUs or of memory nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Vec<libc::c_ulong>);

impl Mask {
    /// The set of these numbers; those from [`MAX_MASK_BITS`] on are left out.
    pub fn of(numbers: &[u32]) -> Self {
        let width = libc::c_ulong::BITS;
        let mut words = vec![0; (MAX_MASK_BITS / width) as usize];
        for number in numbers.iter().filter(|n| **n < MAX_MASK_BITS) {
            words[(number / width) as usize] |= 1 << (number % width);
        }
        Self(words)
    }
}

/// Sets the CPUs that the caller may run on (sched_setaffinity(2)).
/// # Errors
/// `EINVAL` if none of them is there, or in the caller's cpuset.
pub fn set_affinity(cpus: &Mask) -> io::Result<()> {
    // SAFETY: the pointer is valid for the bytes whose number is passed; the kernel reads them.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0,
            size_of_val(&cpus.0[..]),
            cpus.0.as_ptr(),
        )
    })
    .map(drop)
}

/// The CPUs that the caller may run on (sched_getaffinity(2)).
/// # Errors
/// `EINVAL` on a kernel with more CPUs than [`MAX_MASK_BITS`].
pub fn affinity() -> io::Result<Mask> {
    let mut mask = Mask::of(&[]);
    // SAFETY: the pointer is valid for writes of the bytes whose number is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            size_of_val(&mask.0[..]),
            mask.0.as_mut_ptr(),
        )
    })?;
    Ok(mask)
}

/// Sets the NUMA memory policy of the caller (set_mempolicy(2)); `mode` with its flags.
/// # Errors
/// `EINVAL` for nodes that are not there, not in the caller's cpuset, or that the mode wants not.
pub fn set_memory_policy(mode: u32, nodes: &[u32]) -> io::Result<()> {
    let mask = Mask::of(nodes);
    // The kernel takes one bit less than it is told.
    let (pointer, bits) = match nodes {
        [] => (ptr::null(), 0),
        _ => (mask.0.as_ptr(), u64::from(MAX_MASK_BITS) + 1),
    };
    // SAFETY: the pointer is null with no bits, or valid for MAX_MASK_BITS bits; the kernel reads.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) }).map(drop)
}

/// Sets the execution domain of the caller (personality(2)).
/// # Errors
/// The errno of personality(2).
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(i64::from(unsafe {
        libc::personality(libc::c_ulong::from(domain))
    }))
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_its_numbers() {
        let mask = Mask::of(&[0, 63, 64, 8191, 8192]);
        assert_eq!(mask.0[0], 1 | 1 << 63);
        assert_eq!((mask.0[1], mask.0[127]), (1, 1 << 63));
        assert_eq!(mask.0.len(), 128);
    }

    #[test]
    fn the_cpus_of_a_process_can_be_set_to_what_they_are() {
        set_affinity(&affinity().unwrap()).unwrap();
        let none = set_affinity(&Mask::of(&[])).unwrap_err();
        assert_eq!(none.raw_os_error(), Some(libc::EINVAL));
    }
}
