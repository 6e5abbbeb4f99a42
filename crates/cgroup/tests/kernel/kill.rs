//! Ending everything in a cgroup.

use berm_cgroup::{Controller, Mode};

use super::child::Child;
use super::{DEADLINE, Scratch, hosts, readable, until};

#[test]
fn kill_ends_a_tree_that_keeps_forking() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "tree");
        let mut child = Child::join(&scratch.cgroup, "tree");
        child.go();
        child.expect("growing");
        until("it has grown", || scratch.cgroup.pids().unwrap().len() > 5);
        until("all are dead", || scratch.cgroup.kill().unwrap());
        assert!(scratch.cgroup.pids().unwrap().is_empty());
        assert_eq!(child.ended_by(), Some(libc::SIGKILL));
    }
}

#[test]
fn kill_ends_a_frozen_cgroup() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "frozen");
        let mut child = Child::join(&scratch.cgroup, "echo");
        scratch.cgroup.freeze().unwrap();
        until("it is frozen", || scratch.cgroup.frozen().unwrap());
        match scratch.cgroup.watch().unwrap() {
            Some(watch) => {
                if !scratch.cgroup.kill().unwrap() {
                    assert!(readable(&watch, DEADLINE));
                }
            }
            None => until("all are dead", || scratch.cgroup.kill().unwrap()),
        }
        assert_eq!(child.ended_by(), Some(libc::SIGKILL));
        scratch.cgroup.thaw().unwrap();
    }
}

#[test]
fn sub_groups_that_a_container_made_are_counted_killed_and_removed() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "sub");
        let child = Child::join(&scratch.cgroup, "echo");
        for view in host.views(scratch.cgroup.path()) {
            std::fs::create_dir_all(view.host_dir.join("x/y")).unwrap();
            if view.name != "cpuset" {
                let procs = view.host_dir.join("x/y/cgroup.procs");
                std::fs::write(procs, child.pid().to_string()).unwrap();
            }
        }
        assert!(host.has(Controller::Freezer) || host.mode() == Mode::V2);
        assert_eq!(scratch.cgroup.pids().unwrap(), [child.pid()]);
        assert!(!scratch.cgroup.is_empty().unwrap());
        until("all are dead", || scratch.cgroup.kill().unwrap());
        drop(child);
        until("all are removed", || scratch.cgroup.remove().is_ok());
        for view in host.views(scratch.cgroup.path()) {
            assert!(!view.host_dir.exists(), "{view:?}");
        }
    }
}

#[test]
fn signal_reaches_every_process() {
    let host = super::host();
    let scratch = Scratch::new(&host, "signal");
    let mut children = [(); 3].map(|()| Child::join(&scratch.cgroup, "echo"));
    scratch
        .cgroup
        .signal(rustix::process::Signal::TERM)
        .unwrap();
    for child in &mut children {
        assert_eq!(child.ended_by(), Some(libc::SIGTERM));
    }
}
