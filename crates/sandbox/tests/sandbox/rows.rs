//! Small questions that gVisor's package answers too: is it running, which task is the root, where
//! is its cgroup.

use std::time::Instant;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    is_running_is_false_once_pid_1_is_dead,
    is_root_container_is_true_of_the_task_that_the_sandbox_ends_with,
    new_cgroup_is_that_of_the_sandbox_and_gone_with_it,
    getpid_is_the_hosts_number_of_the_first_process,
];

fn is_running_is_false_once_pid_1_is_dead() {
    world(async |w| {
        let pod = w.pod().await;
        assert!(pod.sandbox.is_running());
        kill_process(Pid::from_raw(pod.init()).unwrap(), Signal::KILL).unwrap();
        let until = Instant::now() + SOON;
        while pod.sandbox.is_running() {
            assert!(Instant::now() < until, "what is dead runs");
            tokio::task::yield_now().await;
        }
        pod.end().await;
        assert!(!pod.sandbox.is_running());
    });
}

fn is_root_container_is_true_of_the_task_that_the_sandbox_ends_with() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        assert!(pod.sandbox.is_root_container(pod.id()));
        assert!(!pod.sandbox.is_root_container(&c.id));
        c.end().await;
        pod.end().await;
    });
}

fn new_cgroup_is_that_of_the_sandbox_and_gone_with_it() {
    world(async |w| {
        let pod = w.pod().await;
        let cgroup = pod.sandbox.new_cgroup().unwrap();
        assert_eq!(cgroup.path().relative(), pod.sandbox.record().cgroup);
        assert_eq!(cgroup.pids().unwrap(), [pod.init()]);
        pod.end().await;
        let error = pod.sandbox.new_cgroup().unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    });
}

fn getpid_is_the_hosts_number_of_the_first_process() {
    world(async |w| {
        let pod = w.pod().await;
        assert_eq!(pod.sandbox.pid(pod.id()), Some(pod.sandbox.record().pid));
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", c.pid)).unwrap();
        assert_eq!(pod.sandbox.pid(&c.id), Some(c.pid));
        assert_eq!(cmdline, ["/bin/sleep", "1000", ""].join("\0"));
        assert_eq!(pod.sandbox.pid("nobody"), None);
        c.end().await;
        pod.end().await;
    });
}
