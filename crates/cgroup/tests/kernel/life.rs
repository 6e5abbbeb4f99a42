//! Creating, joining, freezing, removing.

use std::time::Duration;

use berm_cgroup::{Cgroup, CgroupPath, Error, Host, Mode};
use berm_sys::Kind;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::child::Child;
use super::{DEADLINE, Scratch, hosts, path, readable, until};

fn count(host: &Host, path: &CgroupPath) -> usize {
    host.views(path)
        .iter()
        .filter(|view| view.host_dir.exists())
        .count()
}

#[test]
fn what_is_not_kept_is_removed_on_drop_with_the_parents_that_were_made() {
    for host in hosts() {
        let top = path(&host, "drop");
        let deep = CgroupPath::parse(&format!("{top}/a/b")).unwrap();
        let cgroup = Cgroup::create(&host, &deep).unwrap();
        assert_eq!(count(&host, &deep), host.views(&deep).len());
        drop(cgroup);
        assert_eq!(count(&host, &top), 0);
    }
}

#[test]
fn a_kept_cgroup_is_opened_again_and_removed_twice_without_error() {
    for host in hosts() {
        let path = path(&host, "keep");
        let mut cgroup = Cgroup::create(&host, &path).unwrap();
        cgroup.keep();
        drop(cgroup);
        let cgroup = Cgroup::open(&host, &path).unwrap();
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert_eq!(count(&host, &path), 0);
        assert_eq!(
            Cgroup::open(&host, &path).unwrap_err().kind(),
            Kind::NotFound
        );
        assert_eq!(cgroup.stats().unwrap_err().kind(), Kind::NotFound);
        assert_eq!(cgroup.pids().unwrap_err().kind(), Kind::NotFound);
    }
}

#[test]
fn an_empty_cgroup_is_taken_over_and_one_in_use_refused() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "again");
        drop(Cgroup::create(&host, scratch.cgroup.path()).unwrap());
        assert_eq!(
            count(&host, scratch.cgroup.path()),
            host.views(scratch.cgroup.path()).len()
        );
        let child = Child::join(&scratch.cgroup, "echo");
        match Cgroup::create(&host, scratch.cgroup.path()) {
            Err(Error::NotEmpty { processes: 1, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(scratch.cgroup.remove(), Err(Error::Busy { .. })));
        drop(child);
        scratch.cgroup.freeze().unwrap();
        let refused = Cgroup::create(&host, scratch.cgroup.path()).unwrap_err();
        assert!(matches!(refused, Error::Frozen { .. }), "{refused}");
        scratch.cgroup.thaw().unwrap();
    }
}

#[test]
fn a_child_that_joins_is_in_every_hierarchy() {
    let host = super::host();
    let scratch = Scratch::new(&host, "join");
    let child = Child::join(&scratch.cgroup, "echo");
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    let inside = cgroups
        .lines()
        .filter(|line| line.ends_with(&scratch.cgroup.path().to_string()));
    assert_eq!(
        inside.count(),
        host.views(scratch.cgroup.path()).len(),
        "{cgroups}"
    );
    assert_eq!(scratch.cgroup.pids().unwrap(), [child.pid()]);
    assert!(!scratch.cgroup.is_empty().unwrap());
}

#[test]
fn a_new_cpuset_has_what_its_parent_has() {
    let host = super::host();
    let scratch = Scratch::new(&host, "cpuset/a/b");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let root = std::fs::read_to_string(format!("/sys/fs/cgroup/cpuset/{file}")).unwrap();
        assert_eq!(scratch.read(&host, "cpuset", file), root.trim());
    }
    drop(scratch);
    // The parents stay: they are not the library's to remove, but the test's.
    for parent in ["cpuset/a", "cpuset"] {
        Cgroup::open(&host, &path(&host, parent))
            .unwrap()
            .remove()
            .unwrap();
    }
}

#[test]
fn a_frozen_process_stands_still_until_it_is_thawed() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "freeze");
        let mut child = Child::join(&scratch.cgroup, "echo");
        child.go();
        child.expect("echo");
        let watch = scratch.cgroup.watch().unwrap();
        assert_eq!(watch.is_some(), host.mode() != Mode::V1);
        assert!(!scratch.cgroup.frozen().unwrap());
        scratch.cgroup.freeze().unwrap();
        match &watch {
            Some(watch) => {
                assert!(readable(watch, DEADLINE));
                watch.drain().unwrap();
                assert!(!readable(watch, Duration::ZERO));
                assert!(scratch.cgroup.frozen().unwrap());
            }
            None => until("it is frozen", || scratch.cgroup.frozen().unwrap()),
        }
        scratch.cgroup.freeze().unwrap();
        child.go();
        scratch.cgroup.thaw().unwrap();
        child.expect("echo");
        assert!(!scratch.cgroup.frozen().unwrap());
    }
}

#[test]
fn a_watch_shows_that_the_last_process_is_gone_and_then_the_cgroup() {
    let host = super::host();
    let scratch = Scratch::new(&host, "watch");
    let child = Child::join(&scratch.cgroup, "echo");
    let watch = scratch.cgroup.watch().unwrap().unwrap();
    assert!(!readable(&watch, Duration::ZERO));
    drop(child);
    assert!(readable(&watch, DEADLINE));
    watch.drain().unwrap();
    assert!(scratch.cgroup.is_empty().unwrap());
    scratch.cgroup.remove().unwrap();
    assert!(readable(&watch, DEADLINE));
    assert_eq!(watch.drain().unwrap_err().kind(), Kind::NotFound);
}

/// How tokio waits: registered once, edge-triggered, never asked again in between.
#[test]
fn a_watch_wakes_an_edge_triggered_epoll_at_every_change() {
    let host = super::host();
    let scratch = Scratch::new(&host, "edge");
    let _child = Child::join(&scratch.cgroup, "echo");
    let watch = scratch.cgroup.watch().unwrap().unwrap();
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&outer, &watch, epoll::EventData::new_u64(7), flags).unwrap();
    for round in 0..20 {
        let frozen = round % 2 == 0;
        if frozen {
            scratch.cgroup.freeze().unwrap();
        } else {
            scratch.cgroup.thaw().unwrap();
        }
        // The kernel may tell twice of one change; what counts is that it does not tell of none.
        while scratch.cgroup.frozen().unwrap() != frozen {
            let mut events = Vec::with_capacity(4);
            let timeout = Timespec::try_from(DEADLINE).unwrap();
            epoll::wait(&outer, spare_capacity(&mut events), Some(&timeout)).unwrap();
            assert_eq!(events.len(), 1, "round {round}: no wake-up");
            watch.drain().unwrap();
        }
    }
}

#[test]
fn views_name_every_hierarchy_as_it_is_mounted() {
    let host = super::host();
    let path = CgroupPath::parse("/a/b").unwrap();
    let views = host.views(&path);
    let memory = views.iter().find(|view| view.name == "memory").unwrap();
    assert_eq!(memory.host_dir.to_str(), Some("/sys/fs/cgroup/memory/a/b"));
}
