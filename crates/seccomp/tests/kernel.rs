//! The kernel takes the programs and does what they say.
//!
//! Each test runs itself once more as a process of its own, which installs the filter.
#![allow(
    unsafe_code,
    reason = "raw system calls, some of which have no safe wrapper"
)]
#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(unreachable_pub, reason = "modules that several tests share")]

#[path = "support/fixture.rs"]
mod fixture;

use std::env;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use berm_seccomp::{Action, Arch, ArgCmp, Flags, Op, Profile, Rule, compile};
use berm_sys::process::{Fork, exit, fork, install_seccomp};

const CHILD: &str = "BERM_SECCOMP_TEST_CHILD";

/// Runs the named test in a process of its own; `None`: this is that process.
fn in_child(test: &str) -> Option<ExitStatus> {
    if env::var_os(CHILD).is_some() {
        // SAFETY: no pointers. Whatever hangs ends by SIGALRM, which no test expects.
        unsafe { libc::alarm(120) };
        return None;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--test-threads=1", "--nocapture"])
        .env(CHILD, "1");
    Some(command.output().unwrap().status)
}

fn install(profile: &Profile) {
    let program = compile(profile, Arch::native().unwrap()).unwrap();
    let bytes: Vec<_> = program.iter().map(|insn| insn.to_bytes()).collect();
    install_seccomp(&bytes, profile.flags.bits()).unwrap();
}

/// Makes a system call; the errno if it fails.
fn call(number: libc::c_long, args: [u64; 3]) -> Result<i64, i32> {
    // SAFETY: the calls made here take numbers, or a null pointer that the kernel refuses.
    match unsafe { libc::syscall(number, args[0], args[1], args[2]) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
        value => Ok(value),
    }
}

/// Lets everything pass but what `rules` say.
fn all_but(rules: &[(&str, Action, Vec<ArgCmp>)]) -> Profile {
    let rule = |(name, action, args): &(&str, Action, Vec<ArgCmp>)| Rule {
        names: vec![(*name).to_owned()],
        action: *action,
        args: args.clone(),
    };
    Profile {
        default: Action::Allow,
        architectures: vec![],
        rules: rules.iter().map(rule).collect(),
        flags: Flags {
            log: true,
            spec_allow: true,
            ..Flags::default()
        },
    }
}

#[test]
fn containerds_default_profile_refuses_mounts_and_lets_clone3_fall_back() {
    if let Some(status) =
        in_child("containerds_default_profile_refuses_mounts_and_lets_clone3_fall_back")
    {
        return assert_eq!(status.code(), Some(0));
    }
    install(&fixture::containerd_default());
    assert_eq!(call(libc::SYS_getppid, [0; 3]).map(|pid| pid > 0), Ok(true));
    assert_eq!(call(libc::SYS_unshare, [0; 3]), Err(libc::EPERM));
    assert_eq!(call(libc::SYS_mount, [0; 3]), Err(libc::EPERM));
    assert_eq!(call(libc::SYS_clone3, [0; 3]), Err(libc::ENOSYS));
    assert_eq!(
        call(470, [0; 3]),
        Err(libc::ENOSYS),
        "newer than the profile"
    );
    let vsock = u64::try_from(libc::AF_VSOCK).unwrap();
    assert_eq!(call(libc::SYS_socket, [vsock, 1, 0]), Err(libc::EPERM));
    assert!(
        std::thread::spawn(|| ()).join().is_ok(),
        "glibc falls back to clone"
    );
    assert!(std::fs::read("/proc/self/stat").is_ok());
}

#[test]
fn arguments_decide_to_the_last_of_64_bits() {
    if let Some(status) = in_child("arguments_decide_to_the_last_of_64_bits") {
        return assert_eq!(status.code(), Some(0));
    }
    // getpriority(2) has two arguments: the kernel does not look at the third.
    let value = (1 << 63) | 5;
    let arg = ArgCmp {
        index: 2,
        op: Op::Eq,
        value,
        value_two: 0,
    };
    install(&all_but(&[("getpriority", Action::Errno(77), vec![arg])]));
    assert_eq!(call(libc::SYS_getpriority, [0, 0, value]), Err(77));
    for other in [5, 1 << 63, value - 1, value ^ (1 << 32)] {
        assert!(
            call(libc::SYS_getpriority, [0, 0, other]).is_ok(),
            "{other:#x}"
        );
    }
}

#[test]
fn kill_process_ends_it_with_sigsys() {
    let Some(status) = in_child("kill_process_ends_it_with_sigsys") else {
        install(&all_but(&[("getppid", Action::KillProcess, vec![])]));
        call(libc::SYS_getppid, [0; 3]).unwrap();
        return;
    };
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

#[test]
fn trap_raises_sigsys() {
    let Some(status) = in_child("trap_raises_sigsys") else {
        install(&all_but(&[("getppid", Action::Trap, vec![])]));
        call(libc::SYS_getppid, [0; 3]).unwrap();
        return;
    };
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_x32_call_ends_the_thread_where_x32_is_not_listed() {
    let program = compile(
        &all_but(&[("getppid", Action::Errno(1), vec![])]),
        Arch::X86_64,
    );
    let bytes: Vec<_> = program
        .unwrap()
        .iter()
        .map(|insn| insn.to_bytes())
        .collect();
    // A fork has one thread, so that its end is the end of the process.
    let Fork::Parent(pid) = fork().unwrap() else {
        let installed = install_seccomp(&bytes, 0).is_ok();
        let _ = call(0x4000_0000 | libc::SYS_getpid, [0; 3]);
        exit(if installed { 1 } else { 2 });
    };
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(ExitStatus::from_raw(status).signal(), Some(libc::SIGSYS));
}

#[test]
fn log_and_trace_without_a_tracer() {
    if let Some(status) = in_child("log_and_trace_without_a_tracer") {
        return assert_eq!(status.code(), Some(0));
    }
    install(&all_but(&[
        ("getppid", Action::Log, vec![]),
        ("getpgid", Action::Trace(3), vec![]),
    ]));
    assert!(call(libc::SYS_getppid, [0; 3]).is_ok());
    assert_eq!(call(libc::SYS_getpgid, [0; 3]), Err(libc::ENOSYS));
}
