//! PID 1 of a pod: reaps orphans, ends at SIGTERM and SIGINT, and does nothing else.
//!
//! It plays the pause container. No libc, no allocation, no file descriptor, no argument: it
//! runs inside the pod, where nothing is trusted, and nobody ever asks it anything. Signals are
//! blocked and taken one by one: PID 1 of a namespace gets no signal whose action is the
//! default, but a blocked one is kept for it (pid_namespaces(7), sigtimedwait(2)).
#![no_std]
#![no_main]
// A program without libc makes its three system calls itself; `crates/sys` needs std.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::panic::PanicInfo;

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
/// Any process, as wait4(2) spells it.
const ANY: usize = usize::MAX;
/// Bytes of the kernel's sigset_t.
const SIGSET_SIZE: usize = 8;

#[cfg(target_arch = "x86_64")]
mod nr {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const WAIT4: usize = 260;
    pub(crate) const PRCTL: usize = 167;
    pub(crate) const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main
);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {main}", "brk #1", main = sym main);

/// One system call of up to four arguments.
///
/// # Safety
/// The arguments fulfil what the kernel asks of that call: pointers are valid for what it reads
/// and writes.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(nr: usize, args: [usize; 4]) -> isize {
    let ret: isize;
    // SAFETY: the caller's promise; the kernel changes rax, rcx and r11 alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr.cast_signed() => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    ret
}

/// One system call of up to four arguments.
///
/// # Safety
/// The arguments fulfil what the kernel asks of that call: pointers are valid for what it reads
/// and writes.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(nr: usize, args: [usize; 4]) -> isize {
    let ret: isize;
    // SAFETY: the caller's promise; the kernel changes x0 alone.
    unsafe {
        asm!(
            "svc 0",
            in("x8") nr,
            inlateout("x0") args[0].cast_signed() => ret,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            options(nostack)
        );
    }
    ret
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: no pointers; does not return.
        unsafe { syscall(nr::EXIT_GROUP, [code, 0, 0, 0]) };
    }
}

/// Takes every child that has ended.
fn reap() {
    loop {
        // SAFETY: neither status nor usage is asked for: both pointers are null.
        let pid = unsafe { syscall(nr::WAIT4, [ANY, 0, WNOHANG, 0]) };
        if pid <= 0 {
            return;
        }
    }
}

extern "C" fn main() -> ! {
    let all: u64 = !0;
    let mask = (&raw const all).addr();
    // SAFETY: no pointers. Nobody inside may read this process, although it holds nothing.
    unsafe { syscall(nr::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0]) };
    // SAFETY: the kernel reads SIGSET_SIZE bytes of `all`; the old mask is not asked for.
    unsafe { syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, mask, 0, SIGSET_SIZE]) };
    loop {
        // SAFETY: the kernel reads SIGSET_SIZE bytes of `all`; no siginfo, no timeout.
        let signal = unsafe { syscall(nr::RT_SIGTIMEDWAIT, [mask, 0, 0, SIGSET_SIZE]) };
        match signal.cast_unsigned() {
            SIGCHLD => reap(),
            SIGTERM | SIGINT => exit(0),
            _ => {}
        }
    }
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(70)
}
