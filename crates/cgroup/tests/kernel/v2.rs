//! cgroup2 for real, as far as this host lets it: its cgroup2 has few or no controllers, so limits
//! and figures of the big ones are looked at in a tree of plain files. A guest with pure v2 runs
//! the rest.

use std::path::PathBuf;

use berm_cgroup::{
    BlockIo, Cgroup, CgroupPath, Cpu, Host, HugetlbLimit, Memory, Mode, Resources, Stats, StatsV2,
    Throttle,
};
use berm_sys::Kind;

use super::child::Child;
use super::{Scratch, host_with, until};

fn v2(cgroup: &Cgroup) -> StatsV2 {
    match cgroup.stats().unwrap() {
        Stats::V2(stats) => *stats,
        Stats::V1(_) => panic!("this host has v2"),
    }
}

/// The root's `cgroup.subtree_control`, put back as it was at the end.
struct Subtree(PathBuf, String);

impl Drop for Subtree {
    fn drop(&mut self) {
        let now = std::fs::read_to_string(&self.0).unwrap();
        for added in now.split_whitespace().filter(|name| !self.1.contains(name)) {
            std::fs::write(&self.0, format!("-{added}")).unwrap();
        }
    }
}

#[test]
fn a_real_cgroup2_is_created_limited_measured_killed_and_removed() {
    let host = host_with(|line| line.contains(" - cgroup2 "));
    assert_eq!(host.mode(), Mode::V2);
    let path = super::path(&host, "real");
    let root = host
        .views(&path)
        .remove(0)
        .host_dir
        .parent()
        .unwrap()
        .to_owned();
    let control = root.join("cgroup.subtree_control");
    let _subtree = Subtree(control.clone(), std::fs::read_to_string(&control).unwrap());
    let scratch = Scratch::new(&host, "real");
    let available = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
    assert_eq!(
        scratch.read(&host, "", "cgroup.controllers"),
        available.trim()
    );
    if available.contains("hugetlb") {
        let hugetlb = vec![HugetlbLimit {
            page_size: "2MB".into(),
            limit: 4 << 20,
        }];
        scratch
            .cgroup
            .limit(&Resources {
                hugetlb,
                ..Resources::default()
            })
            .unwrap();
        let stats = v2(&scratch.cgroup).hugetlb;
        let two = stats.iter().find(|entry| entry.page_size == "2MB").unwrap();
        assert_eq!((two.max, two.usage), (4 << 20, 0));
    }
    if !available.contains("pids") {
        let refused = scratch.cgroup.limit(&Resources {
            pids: Some(1),
            ..Resources::default()
        });
        assert_eq!(refused.unwrap_err().kind(), Kind::NotSupported);
    }
    let mut child = Child::join(&scratch.cgroup, "burn 200");
    child.go();
    child.expect("burnt");
    let stats = v2(&scratch.cgroup);
    assert!(stats.cpu.usage_usec > 150_000, "{stats:?}");
    assert!(stats.cpu_psi.unwrap().some.is_some());
    until("it is dead", || scratch.cgroup.kill().unwrap());
}

/// A directory of plain files that looks like a cgroup2 with one cgroup `c` in it.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> (Self, Cgroup) {
        let dir = std::env::temp_dir().join(format!("berm-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(dir.join("c")).unwrap();
        std::fs::write(
            dir.join("cgroup.controllers"),
            "cpuset cpu io memory hugetlb pids\n",
        )
        .unwrap();
        for (file, text) in [("cgroup.procs", "")].iter().chain(files) {
            std::fs::write(dir.join("c").join(file), text).unwrap();
        }
        let line = format!("1 1 0:1 / {} rw - cgroup2 cgroup2 rw", dir.display());
        let host = Host::from_mountinfo(&line).unwrap();
        let cgroup = Cgroup::open(&host, &CgroupPath::parse("/c").unwrap()).unwrap();
        (Self(dir), cgroup)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join("c").join(file)).unwrap()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn mocked_limits_land_in_v2s_files() {
    let names = [
        "cpu.weight",
        "cpu.max",
        "memory.max",
        "memory.swap.max",
        "memory.low",
        "pids.max",
    ];
    let mut files: Vec<(&str, &str)> = names.iter().map(|name| (*name, "")).collect();
    files.extend([("io.max", ""), ("io.weight", ""), ("memory.high", "")]);
    let (tree, cgroup) = Tree::new("limits", &files);
    let resources = Resources {
        cpu: Cpu {
            shares: Some(1024),
            quota: Some(50_000),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(100),
            swap: Some(300),
            ..Memory::default()
        },
        pids: Some(9),
        block_io: BlockIo {
            weight: Some(500),
            read_bps: vec![Throttle {
                major: 8,
                minor: 0,
                rate: 7,
            }],
            ..BlockIo::default()
        },
        unified: vec![("memory.high".into(), "90".into())],
        ..Resources::default()
    };
    cgroup.limit(&resources).unwrap();
    let rows = [
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("memory.max", "100"),
        ("memory.swap.max", "200"),
        ("pids.max", "9"),
        ("io.weight", "4950"),
        ("io.max", "8:0 rbps=7"),
        ("memory.high", "90"),
        ("memory.low", ""),
    ];
    for (file, want) in rows {
        assert_eq!(tree.read(file), want, "{file}");
    }
}

#[test]
fn mocked_a_limit_below_the_usage_is_refused_when_it_is_to_be_checked() {
    let (tree, cgroup) = Tree::new("below", &[("memory.max", ""), ("memory.current", "500\n")]);
    let memory = Memory {
        limit: Some(400),
        check_before_update: true,
        ..Memory::default()
    };
    let refused = cgroup
        .limit(&Resources {
            memory,
            ..Resources::default()
        })
        .unwrap_err();
    assert_eq!(refused.kind(), Kind::FailedPrecondition);
    assert_eq!(tree.read("memory.max"), "");
}

#[test]
fn mocked_figures_are_read_with_max_as_the_largest_number() {
    let psi = "some avg10=1.50 avg60=0.12 avg300=0.05 total=1234\n\
               full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
    let files = [
        (
            "cpu.stat",
            "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\n",
        ),
        ("cpu.pressure", psi),
        (
            "memory.stat",
            "anon 4096\nfile 8192\ninactive_file 512\npgfault 9\nbrand_new 1\n",
        ),
        ("memory.current", "20480\n"),
        ("memory.max", "max\n"),
        ("memory.swap.current", "5\n"),
        ("memory.swap.max", "100\n"),
        (
            "memory.events",
            "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
        ),
        (
            "io.stat",
            "254:0 rbytes=12 wbytes=34 rios=5 wios=6 dbytes=0 dios=0\n7:0\n",
        ),
        ("pids.current", "3\n"),
        ("pids.max", "max\n"),
    ];
    let (_tree, cgroup) = Tree::new("figures", &files);
    let stats = v2(&cgroup);
    let cpu = stats.cpu;
    assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (10, 6, 4));
    assert_eq!((cpu.nr_periods, cpu.nr_throttled), (3, 2));
    let memory = stats.memory.unwrap();
    assert_eq!((memory.stat.anon, memory.stat.inactive_file), (4096, 512));
    assert_eq!((memory.usage, memory.usage_limit), (20_480, u64::MAX));
    assert_eq!(
        (memory.swap_usage, memory.swap_limit, memory.max_usage),
        (5, 100, 0)
    );
    assert_eq!(stats.memory_events.unwrap().oom_kill, 1);
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
    assert_eq!(stats.io[0].wbytes, 34);
    let pids = stats.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (3, u64::MAX));
    let some = stats.cpu_psi.unwrap().some.unwrap();
    assert_eq!((some.total, some.avg10), (1234, 1.5));
    assert_eq!(stats.memory_psi, None);
}
