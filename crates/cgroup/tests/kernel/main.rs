//! The real cgroup file systems of this host; needs root. `limits`, `stats` and `update` are written
//! for v1 with a cgroup2 beside it, the rest for pure v2 too.
//!
//! Every test works in cgroups `/berm-test-<pid>-<name>` and leaves none behind. Processes in
//! them are this test binary again (see `child.rs`).
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test ends at the first surprise

mod child;
mod devices;
mod kill;
mod life;
mod limits;
mod measure;
mod oom;
mod stats;
mod systemd;
mod update;
mod v2;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berm_cgroup::{Cgroup, CgroupPath, Host, Mode};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Nothing here takes so long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// The lines of this host's cgroup mounts for which `keep` is true.
fn host_with(keep: impl Fn(&str) -> bool) -> Arc<Host> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines: Vec<&str> = mountinfo.lines().filter(|line| keep(line)).collect();
    Host::from_mountinfo(&lines.join("\n")).unwrap()
}

/// The host as it is.
fn host() -> Arc<Host> {
    Host::detect().unwrap()
}

/// The host as it is, and as it would be without its cgroup2 where it has both.
fn hosts() -> Vec<Arc<Host>> {
    let mut hosts = vec![host()];
    if hosts[0].mode() != Mode::V2 {
        hosts.push(host_with(|line| !line.contains(" - cgroup2 ")));
    }
    hosts
}

/// A cgroup of a test. Dropped, it kills what is left in it and removes itself.
struct Scratch {
    cgroup: Cgroup,
}

impl Scratch {
    fn new(host: &Arc<Host>, name: &str) -> Self {
        let mut cgroup = Cgroup::create(host, &path(host, name)).unwrap();
        cgroup.keep();
        Self { cgroup }
    }

    /// A file of the cgroup in the hierarchy that is mounted as `hierarchy`.
    fn file(&self, host: &Host, hierarchy: &str, file: &str) -> PathBuf {
        let view = host
            .views(self.cgroup.path())
            .into_iter()
            .find(|view| view.name == hierarchy);
        view.unwrap().host_dir.join(file)
    }

    fn read(&self, host: &Host, hierarchy: &str, file: &str) -> String {
        std::fs::read_to_string(self.file(host, hierarchy, file))
            .unwrap()
            .trim()
            .to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        until("the cgroup is empty", || self.cgroup.kill().unwrap());
        until("the cgroup is removed", || self.cgroup.remove().is_ok());
    }
}

fn path(host: &Host, name: &str) -> CgroupPath {
    let (pid, mode) = (std::process::id(), host.mode());
    CgroupPath::parse(&format!("/berm-test-{pid}-{mode:?}-{name}")).unwrap()
}

/// A deadline that nothing here should reach.
fn soon() -> Instant {
    Instant::now() + DEADLINE * 2
}

/// Asks again until it is true. For what the kernel has no event for.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < DEADLINE,
            "{what}: not within {DEADLINE:?}"
        );
        std::thread::yield_now();
    }
}

/// Waits until `fd` is readable.
fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap() == 1
}
