//! bpf(2), as far as cgroup2's device programs need it.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`
const TYPE_CGROUP_DEVICE: u32 = 15;
/// `BPF_CGROUP_DEVICE`, the attach type
const CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
const F_REPLACE: u32 = 4;
/// The kernel attaches at most this many programs of one type to a cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;
/// A signal makes the verifier give up with EAGAIN; libbpf and runc try again so often.
const MAX_TRIES: usize = 30;

/// One instruction, `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Class, operation and source.
    pub code: u8,
    registers: u8,
    /// Offset of a jump or of a load.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

impl Insn {
    /// An instruction with destination and source registers (0 to 10).
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        // Two bit fields: the first is the low half on little-endian machines.
        let registers = if cfg!(target_endian = "little") {
            dst | src << 4
        } else {
            dst << 4 | src
        };
        Self {
            code,
            registers,
            off,
            imm,
        }
    }

    /// The destination register.
    pub const fn dst(self) -> u8 {
        if cfg!(target_endian = "little") {
            self.registers & 15
        } else {
            self.registers >> 4
        }
    }

    /// The source register.
    pub const fn src(self) -> u8 {
        if cfg!(target_endian = "little") {
            self.registers >> 4
        } else {
            self.registers & 15
        }
    }
}

/// `union bpf_attr` of `BPF_PROG_LOAD`, its first fields; the kernel takes the rest as 0.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` of `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: RawFd,
}

/// `union bpf_attr` of `BPF_PROG_QUERY`, whole: kernels from 6.17 write `revision` whatever size
/// they are told.
#[repr(C)]
struct Query {
    target_fd: RawFd,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// `union bpf_attr` of `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`. Needs `CAP_BPF` or `CAP_SYS_ADMIN` in
/// the initial user namespace; before 5.11 it counts against `RLIMIT_MEMLOCK`.
///
/// # Errors
/// `EINVAL` or `EACCES` if the verifier refuses it, `EPERM` without privilege, `ENOSYS` without
/// bpf(2), `E2BIG` with no or too many instructions.
pub fn load_cgroup_device(program: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut attr = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    for _ in 1..MAX_TRIES {
        // SAFETY: a `Load`; its pointers lead to `insn_cnt` instructions and to a string with a
        // final NUL, both of which outlive the call, and the kernel copies both.
        match unsafe { bpf(PROG_LOAD, &mut attr) } {
            Err(Errno::AGAIN) => {}
            // SAFETY: BPF_PROG_LOAD returned a new FD that nobody else owns; it is close-on-exec.
            other => return other.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }
    Err(Errno::AGAIN)
}

/// Attaches a device program to a cgroup2 directory, in the place of `replace` if that is given
/// (5.6), else beside what is attached.
///
/// # Errors
/// `ENOENT` if `replace` is not attached, `E2BIG` with 64 attached programs, `EPERM` if an
/// ancestor forbids it, `EBADF` if `cgroup` is none.
pub fn attach_cgroup_device(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attr = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags: if replace.is_some() {
            F_ALLOW_MULTI | F_REPLACE
        } else {
            F_ALLOW_MULTI
        },
        replace_bpf_fd: replace.map_or(0, |fd| fd.as_raw_fd()),
    };
    // SAFETY: an `Attach`, whose FDs are borrowed for the call; it has no pointers.
    unsafe { bpf(PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a device program from a cgroup2 directory.
///
/// # Errors
/// `ENOENT` if it is not attached.
pub fn detach_cgroup_device(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: an `Attach`, whose FDs are borrowed for the call; it has no pointers.
    unsafe { bpf(PROG_DETACH, &mut attr) }.map(drop)
}

/// The ids of the device programs that are attached to a cgroup2 directory itself.
///
/// # Errors
/// `EBADF` if `cgroup` is none, `EPERM` without privilege.
pub fn cgroup_device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = vec![0u32; MAX_PROGRAMS];
    let mut attr = Query {
        target_fd: cgroup.as_raw_fd(),
        attach_type: CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        pad: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: a `Query`; its one pointer leads to `prog_cnt` writable u32s that outlive the call.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(usize::try_from(attr.prog_cnt).unwrap_or(MAX_PROGRAMS));
    Ok(ids)
}

/// Opens a program by its id.
///
/// # Errors
/// `ENOENT` if it is gone, `EPERM` or `EACCES` if an LSM forbids it.
pub fn program_by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = ById {
        id,
        next_id: 0,
        open_flags: 0,
    };
    // SAFETY: a `ById`; it has no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID returned a new FD that nobody else owns; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// bpf(2) with the attributes of one command.
///
/// # Safety
/// `A` must be the leading part of the `union bpf_attr` of `command` with no padding, and every
/// pointer in it must be good for what the command does with it.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> Result<RawFd, Errno> {
    let attr: *mut A = attr;
    // SAFETY: `attr` points to `size_of::<A>()` readable and writable bytes for the whole call, the
    // kernel keeps no reference to them, and the caller vouches for what they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<A>()) };
    let result =
        crate::check(result).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    RawFd::try_from(result).map_err(|_| Errno::RANGE)
}
