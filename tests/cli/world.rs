//! A sandbox to try `berm` on, and what its tests share.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

/// No wait lasts longer; nothing waits for it to pass.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn berm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berm"));
    command.args(args).stdin(Stdio::null());
    command
}

pub(crate) fn output(args: &[&str]) -> Output {
    berm(args).output().unwrap()
}

pub(crate) fn json(args: &[&str]) -> Value {
    let out = output(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether something can be read, or has ended, before the time is over.
pub(crate) fn ready(fd: impl AsFd) -> bool {
    let limit = Timespec::try_from(SOON).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// Reads until `want` was seen.
pub(crate) fn expect(from: &mut File, want: &str) {
    let mut seen = String::new();
    while !seen.contains(want) {
        assert!(ready(&*from), "no {want:?} in {seen:?}");
        let mut bytes = [0; 4096];
        let len = from.read(&mut bytes).unwrap();
        assert!(len > 0, "no {want:?} in {seen:?}");
        seen += &text(&bytes[..len]);
    }
}

pub(crate) fn code(mut child: Child) -> i32 {
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    if !ready(&pidfd) {
        child.kill().unwrap();
        panic!("{} does not end", child.id());
    }
    child.wait().unwrap().code().unwrap()
}

/// Copies a program that is to be run. By a process of its own: what another thread forks has this
/// one's open files until its execve, and a file that is open for writing cannot be run (ETXTBSY).
pub(crate) fn copy_program(from: &str, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{to:?}");
}

/// A socket that nobody serves any more. It never was: a process that another thread forks just
/// then would have a listening one open for a moment longer.
pub(crate) fn dead_socket(path: &Path) {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
}

/// A directory with busybox as root file system, and a name for its sandbox.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) name: String,
}

impl World {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // None is the beginning of another: by that it would be found once it is gone itself.
        let name = format!("cli-test-{}-{number:03}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        for sub in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "srv"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        copy_program("/bin/busybox", &dir.join("bin/busybox"));
        for applet in [
            "sh", "sleep", "cat", "id", "ls", "stty", "echo", "touch", "pwd", "nc",
        ] {
            symlink("busybox", dir.join("bin").join(applet)).unwrap();
        }
        Self { dir, name }
    }

    /// `berm run` of this script, with more options.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Command {
        let root = self.dir.to_str().unwrap();
        let mut args = vec!["run", "--rootfs", root, "--name", &self.name];
        args.extend(options);
        args.extend(["--", "/bin/sh", "-c", script]);
        berm(&args)
    }

    /// The same in the background, once it has written "ready".
    pub(crate) fn background(&self, script: &str) -> Child {
        let script = format!("echo ready; {script}");
        let mut command = self.run(&["--env", "WHO=me", "--cwd", "/srv"], &script);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = File::from(OwnedFd::from(child.stdout.take().unwrap()));
        expect(&mut out, "ready");
        child
    }

    /// Waits until its command is this one: the shell has become it then.
    pub(crate) fn until_it_is(&self, command: &str) {
        let until = Instant::now() + SOON;
        loop {
            let ps = json(&["ps", &self.name, "--json"]);
            if ps[0]["cmd"] == command {
                return;
            }
            assert!(Instant::now() < until, "no {command:?} in {ps}");
        }
    }

    pub(crate) fn is_listed(&self) -> bool {
        let all = json(&["list", "--json"]);
        all.as_array()
            .unwrap()
            .iter()
            .any(|s| s["id"] == self.name.as_str())
    }

    /// Ends the sandbox and gives what `berm run` ended with.
    pub(crate) fn end(&self, run: Child) -> i32 {
        let killed = output(&["kill", &self.name, "KILL", "--all"]);
        assert!(killed.status.success(), "{}", text(&killed.stderr));
        let code = code(run);
        self.assert_gone();
        code
    }

    /// Nothing of the sandbox is left on the host.
    pub(crate) fn assert_gone(&self) {
        assert!(!self.is_listed());
        let left = [
            Path::new("/run/berm/berm").join(&self.name),
            Path::new("/sys/fs/cgroup/berm").join(&self.name),
            Path::new("/sys/fs/cgroup/memory/berm").join(&self.name),
            Path::new("/sys/fs/cgroup/pids/berm").join(&self.name),
        ];
        for path in left {
            assert!(!path.exists(), "{path:?}");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.name));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
