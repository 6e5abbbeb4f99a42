//! No descriptor is left open. Alone in its binary, because it counts those of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test ends at the first surprise

use berm_cgroup::{Cgroup, CgroupPath, DeviceRule, Host, Resources};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_whole_life_leaves_no_descriptor_open() {
    let path = format!("/berm-test-{}-leak", std::process::id());
    let path = CgroupPath::parse(&path).unwrap();
    let before = open_descriptors();
    for _ in 0..20 {
        let host = Host::detect().unwrap();
        let mut cgroup = Cgroup::create(&host, &path).unwrap();
        cgroup.keep();
        let devices = Some(DeviceRule::defaults());
        cgroup
            .limit(&Resources {
                devices,
                ..Resources::default()
            })
            .unwrap();
        let watches = (cgroup.watch().unwrap(), cgroup.oom_watch().unwrap());
        let procs = cgroup.tasks().unwrap();
        cgroup.stats().unwrap();
        cgroup.pids().unwrap();
        assert!(cgroup.kill().unwrap());
        cgroup.remove().unwrap();
        drop((watches, procs));
    }
    assert_eq!(open_descriptors(), before);
}
