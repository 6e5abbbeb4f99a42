//! Small questions that gVisor's package answers too: is it running, which task is the root, where
//! is its cgroup, what does the record say.

use std::time::Instant;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::figures::until;
use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    is_running_is_false_once_pid_1_is_dead,
    is_root_container_is_true_of_the_task_that_the_sandbox_ends_with,
    new_cgroup_is_that_of_the_sandbox_and_gone_with_it,
    getpid_is_the_hosts_number_of_the_first_process,
    the_record_has_gvisors_keys_and_its_own_and_never_changes,
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
        // Who cloned it is in it until it has ended.
        until("it is alone", || cgroup.pids().unwrap() == [pod.init()]).await;
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

fn the_record_has_gvisors_keys_and_its_own_and_never_changes() {
    world(async |w| {
        let pod = w.pod().await;
        let path = pod.sandbox.record().control_socket_path.clone();
        let path = path.with_file_name("sandbox.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let gvisors = [
            "id",
            "podName",
            "namespace",
            "pid",
            "uid",
            "gid",
            "cgroup",
            "originalOomScoreAdj",
            "controlSocketPath",
        ];
        let own = ["version", "engine", "startTime", "isolation"];
        for key in gvisors.iter().chain(&own) {
            assert!(record.get(key).is_some(), "no {key} in {text}");
        }
        let spec = w.sandbox_spec(pod.id());
        let annotation = |name: &str| spec["annotations"][name].clone();
        assert_eq!(
            record["podName"],
            annotation("io.kubernetes.cri.sandbox-name")
        );
        assert_eq!(
            record["namespace"],
            annotation("io.kubernetes.cri.sandbox-namespace")
        );
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        c.end().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        pod.end().await;
    });
}
