//! fork, clone3, execve and what a child does to itself before them.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::check;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The parent, with the child's pid in its own PID namespace (0 if it has none there).
    Parent(i32),
    /// The child.
    Child,
}

/// Flags of clone(2) that Berm uses with [`clone3`] and [`setns`].
pub mod flags {
    /// The child becomes a sibling: its parent is the caller's parent.
    pub const PARENT: u64 = libc::CLONE_PARENT as u64;
    /// New mount namespace.
    pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
    /// New cgroup namespace.
    pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// New UTS namespace.
    pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
    /// New IPC namespace.
    pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
    /// New user namespace.
    pub const NEWUSER: u64 = libc::CLONE_NEWUSER as u64;
    /// New PID namespace.
    pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
    /// New network namespace.
    pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
    /// New time namespace, for children (linux/sched.h; since 5.6).
    pub const NEWTIME: u64 = 0x80;
}

/// Forks the calling process (fork(2)).
///
/// The caller must be single-threaded: the child may then use every library as before. A child
/// must end in [`exit`] or [`execve`] and never return into the parent's event loop.
/// # Errors
/// The errno of fork(2).
pub fn fork() -> io::Result<Fork> {
    // SAFETY: no pointers. The caller has one thread (a test watches the shim's), so no lock can
    // be held by a thread that the child does not have.
    let pid = check(i64::from(unsafe { libc::fork() }))?;
    Ok(if pid == 0 {
        Fork::Child
    } else {
        Fork::Parent(pid as i32)
    })
}

/// linux/sched.h; libc's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks the calling process and gives back the child's pidfd, close-on-exec; the child is born
/// in the cgroup2 directory `cgroup`, if there is one (clone3(2), `CLONE_INTO_CGROUP`). Same
/// obligations as [`fork`].
///
/// The kernel makes the descriptor before the child: at the limit of descriptors there is no
/// child that nobody could reap.
/// # Errors
/// The errno of clone3(2).
pub fn fork_into(cgroup: Option<BorrowedFd<'_>>) -> io::Result<(Fork, Option<OwnedFd>)> {
    // SAFETY: an all-zero clone_args is a valid value: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    if let Some(cgroup) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.exit_signal = libc::SIGCHLD as u64;
    clone3_with(args)
}

/// Clones the calling process without a stack of its own (clone3(2)), like fork with flags.
///
/// The returned pidfd is close-on-exec. Same obligations as [`fork`].
/// # Errors
/// The errno of clone3(2).
pub fn clone3(flags: u64) -> io::Result<(Fork, Option<OwnedFd>)> {
    // SAFETY: an all-zero clone_args is a valid value: every field is an integer.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    // With CLONE_PARENT the exit signal is inherited and must be 0 here.
    args.exit_signal = if flags & flags::PARENT != 0 {
        0
    } else {
        libc::SIGCHLD as u64
    };
    clone3_with(args)
}

fn clone3_with(mut args: libc::clone_args) -> io::Result<(Fork, Option<OwnedFd>)> {
    let mut pidfd: i32 = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    args.pidfd = ptr::from_mut(&mut pidfd) as u64;
    // SAFETY: args is valid for its size for the duration of the call, the kernel writes one int
    // to `pidfd`, which outlives it. No CLONE_VM and no stack: the child goes on with a copy of
    // this stack, as after fork. The process has one thread.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&args),
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok((Fork::Child, None));
    }
    // SAFETY: CLONE_PIDFD was asked for and the call succeeded, so the kernel has put a new
    // descriptor there that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((Fork::Parent(pid as i32), Some(pidfd)))
}

/// Ends the process at once: no destructors, no buffers (_exit(2)).
pub fn exit(code: i32) -> ! {
    // SAFETY: no pointers; never returns.
    unsafe { libc::_exit(code) }
}

/// Enters the namespaces that `flags` names (setns(2)): `fd` is an nsfs file or a pidfd.
///
/// `NEWPID` changes only where later children are born.
/// # Errors
/// The errno of setns(2).
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is borrowed for the call.
    check(i64::from(unsafe {
        libc::setns(fd.as_raw_fd(), flags as i32)
    }))
    .map(drop)
}

/// The user namespace that owns a namespace (ioctl_ns(2), NS_GET_USERNS).
/// # Errors
/// `EPERM` where the owner is outside the caller's own user namespace.
pub fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this ioctl takes no argument; the descriptor is borrowed for the call.
    let fd = check(i64::from(unsafe {
        libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS)
    }))?;
    // SAFETY: the call succeeded: it made a new, close-on-exec descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Moves the process into new namespaces (unshare(2)).
/// # Errors
/// The errno of unshare(2).
pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: no pointers; no CLONE_FILES or CLONE_VM is among the flags that callers pass.
    check(i64::from(unsafe { libc::unshare(flags as i32) })).map(drop)
}

/// Closes every descriptor from 3 on that is not in `keep`.
///
/// The caller must own none of the closed ones any more: it is a forked child whose copies of
/// the parent's `OwnedFd`s are never dropped because it ends in [`exit`] or [`execve`].
/// # Errors
/// The errno of close_range(2).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    kept.sort_unstable();
    let mut next = 3u32;
    for fd in kept {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = next.max(fd + 1);
    }
    close_range(next, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: no pointers. The descriptors are a forked child's copies, see close_all_but.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Puts a copy of `fd` at `number`, where it stays open across execve (dup2(2)).
///
/// The caller must own nothing at `number`: it is a forked child, as for [`close_all_but`]. `fd`
/// itself is not there.
/// # Errors
/// The errno of dup2(2).
pub fn place(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: no pointers; what is closed at `number` is a forked child's copy.
    check(i64::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// A copy, close-on-exec and from 3 on, of a descriptor that this process was started with
/// (fcntl(2), F_DUPFD_CLOEXEC).
///
/// For numbers that a user names, before the process has opened anything of its own.
/// # Errors
/// `EBADF` if there is none of that number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a number that is none, or somebody else's, is only copied.
    let fd = check(i64::from(unsafe {
        libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3)
    }))?;
    // SAFETY: the call succeeded: it made a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Marks every descriptor from 3 on close-on-exec; once, at the start of a process.
/// # Errors
/// The errno of close_range(2).
pub fn set_cloexec_on_all_fds() -> io::Result<()> {
    let flag = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: no pointers; only a flag of the descriptors changes.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flag) }).map(drop)
}

/// Sets every signal's action to its default and unblocks all.
///
/// `SIG_IGN` survives execve, and Rust's runtime ignores SIGPIPE.
pub fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL installs no handler; EINVAL for KILL, STOP and libc's own two signals
        // is of no account.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: a sigset_t is plain integers, sigemptyset initialises it.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid and ours.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is initialised; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
}

/// Sets the uid and gid that the kernel uses for file access of this thread (setfsuid(2)).
///
/// With SECBIT_NO_SETUID_FIXUP the capabilities stay. The calls report no errors; the second
/// call of each reads the value back.
/// # Errors
/// `EPERM` if the value did not take.
pub fn set_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { libc::setfsgid(gid) };
    // SAFETY: no pointers.
    unsafe { libc::setfsuid(uid) };
    // SAFETY: no pointers; an invalid id changes nothing and returns the current one.
    let now_uid = unsafe { libc::setfsuid(u32::MAX) } as u32;
    // SAFETY: as above.
    let now_gid = unsafe { libc::setfsgid(u32::MAX) } as u32;
    if (now_uid, now_gid) == (uid, gid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Real, effective and saved ids and the supplementary groups of the process.
/// # Errors
/// The errno of setgroups(2), setresgid(2) or setresuid(2).
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer is valid for `len` gids. Raw system call: libc's would signal threads
    // that do not exist.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// The effective, permitted and inheritable capability sets of the thread (capset(2)).
/// # Errors
/// The errno of capset(2).
pub fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes two data structs, both pointers are valid for the call.
    check(unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), data.as_ptr()) })
        .map(drop)
}

/// Sets a resource limit of the calling process by the kernel's number (prlimit(2)).
/// # Errors
/// The errno of prlimit(2): `EPERM` when a hard limit may not be raised.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let none = ptr::null_mut::<libc::rlimit64>();
    let new = ptr::from_ref(&limit);
    // SAFETY: `limit` is valid for the call; the old value is not asked for.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new, none) }).map(drop)
}

/// Installs a seccomp filter for the calling thread (seccomp(2)).
///
/// `program` is a sequence of `struct sock_filter`, 8 bytes each. With
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` among the flags the listener is given back, close-on-exec.
/// # Errors
/// The errno of seccomp(2): `EACCES` without CAP_SYS_ADMIN and no_new_privs.
pub fn install_seccomp(program: &[[u8; 8]], flags: u32) -> io::Result<Option<OwnedFd>> {
    const NEW_LISTENER: u32 = 1 << 3;
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // `sock_filter` needs an alignment of 4.
    let insns: Vec<libc::sock_filter> = program
        .iter()
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let fprog = libc::sock_fprog {
        len,
        filter: insns.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: fprog points to `len` instructions that live until the call returns; the kernel
    // copies and does not write them.
    let ret =
        check(unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, ptr::from_ref(&fprog)) })?;
    if flags & NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: the flag was given and the call succeeded: it made a new descriptor, which nobody
    // else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(ret as i32) }))
}

/// A copy, close-on-exec, of a descriptor of another process (pidfd_getfd(2), 5.6).
/// # Errors
/// `EBADF` if it has none of that number, `EPERM` without the right to trace it, `ESRCH`.
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is borrowed for the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: the call succeeded: it made a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Replaces the process (execve(2)).
/// # Errors
/// Returns only on failure, with the errno of execve(2).
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: the path and both arrays are NUL-terminated and live until the call returns.
    check(i64::from(unsafe {
        libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr())
    }))?;
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Replaces the process by the program behind a descriptor (execveat(2), AT_EMPTY_PATH).
/// # Errors
/// Returns only on failure, with the errno of execveat(2).
pub fn fexecve(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let (argv, envp) = (pointers(args), pointers(env));
    let (dir, at) = (fd.as_raw_fd(), libc::AT_EMPTY_PATH);
    // SAFETY: the empty path and both arrays are NUL-terminated and live until the call returns.
    check(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            dir,
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            at,
        )
    })?;
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

/// Sends `signal` through a pidfd (pidfd_send_signal(2)); any number that the kernel takes.
/// # Errors
/// `ESRCH` if the process is gone, `EINVAL` for a bad number.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: no siginfo is passed; the descriptor is borrowed for the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            none,
            0,
        )
    })
    .map(drop)
}

/// Sets the NIS domain name of the UTS namespace (setdomainname(2)).
/// # Errors
/// The errno of setdomainname(2).
pub fn set_domainname(name: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer is valid for `len` bytes; no NUL is needed.
    check(i64::from(unsafe {
        libc::setdomainname(name.as_ptr().cast(), name.len())
    }))
    .map(drop)
}

/// Sleeps until a signal comes (pause(2)).
pub fn pause() {
    // SAFETY: takes no argument and touches no memory; its only result is EINTR.
    unsafe {
        libc::pause();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::io::{FdFlags, dup, fcntl_getfd};

    use super::*;

    #[test]
    fn every_descriptor_but_the_streams_is_closed_on_exec() {
        let file = File::open("/dev/null").unwrap();
        // dup(2) makes one that an execve would keep.
        let kept = dup(&file).unwrap();
        assert!(!fcntl_getfd(&kept).unwrap().contains(FdFlags::CLOEXEC));
        set_cloexec_on_all_fds().unwrap();
        assert!(fcntl_getfd(&kept).unwrap().contains(FdFlags::CLOEXEC));
        let output = fcntl_getfd(std::io::stdout()).unwrap();
        assert!(!output.contains(FdFlags::CLOEXEC));
    }
}
