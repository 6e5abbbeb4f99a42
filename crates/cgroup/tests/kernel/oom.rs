//! Out-of-memory kills.

use std::time::Duration;

use berm_cgroup::{Memory, Mode, Resources};
use berm_sys::Kind;

use super::child::Child;
use super::{DEADLINE, Scratch, readable, until};

#[test]
fn the_parent_counts_an_oom_kill_of_a_cgroup_that_is_gone() {
    let host = super::host();
    let parent = Scratch::new(&host, "oom-parent");
    let scratch = Scratch::new(&host, "oom-parent/child");
    let around = scratch.cgroup.oom_around().unwrap();
    assert_eq!(around.is_some(), host.mode() == Mode::V2);
    assert!(parent.cgroup.oom_around().unwrap().is_none(), "in the root");
    let Some(around) = around else { return };
    assert_eq!(around.oom_kills().unwrap(), 0);
    scratch.cgroup.limit(&eight_megabytes()).unwrap();
    let mut child = Child::join(&scratch.cgroup, "eat");
    child.go();
    assert_eq!(child.ended_by(), Some(libc::SIGKILL));
    until("it is removed", || scratch.cgroup.remove().is_ok());
    assert_eq!(
        scratch.cgroup.oom_kills().unwrap_err().kind(),
        Kind::NotFound
    );
    assert_eq!(around.oom_kills().unwrap(), 1);
}

fn eight_megabytes() -> Resources {
    let limit = Some(8 << 20);
    let memory = Memory {
        limit,
        swap: limit,
        ..Memory::default()
    };
    Resources {
        memory,
        ..Resources::default()
    }
}

#[test]
fn an_oom_kill_wakes_the_watch_and_is_counted() {
    let host = super::host();
    let scratch = Scratch::new(&host, "oom");
    scratch.cgroup.limit(&eight_megabytes()).unwrap();
    let watch = scratch.cgroup.oom_watch().unwrap().unwrap();
    assert!(!readable(&watch, Duration::ZERO));
    assert_eq!(watch.oom_kills().unwrap(), 0);
    let mut child = Child::join(&scratch.cgroup, "eat");
    child.go();
    assert!(readable(&watch, DEADLINE));
    assert_eq!(child.ended_by(), Some(libc::SIGKILL));
    until("the kill is counted", || watch.oom_kills().unwrap() == 1);
    // v2's event is that some figure of the file changed, up to 10 ms ago.
    assert!(host.mode() == Mode::V2 || !readable(&watch, Duration::ZERO));
    assert_eq!(scratch.cgroup.oom_kills().unwrap(), 1);
    until("it is removed", || scratch.cgroup.remove().is_ok());
    assert!(readable(&watch, DEADLINE));
    assert_eq!(watch.oom_kills().unwrap_err().kind(), Kind::NotFound);
}
