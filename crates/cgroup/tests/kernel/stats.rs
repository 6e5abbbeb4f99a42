//! Figures under a known load, beside the kernel's own files.

use berm_cgroup::{Cgroup, Memory, Resources, Stats, StatsV1};

use super::Scratch;
use super::child::Child;

fn v1(cgroup: &Cgroup) -> StatsV1 {
    match cgroup.stats().unwrap() {
        Stats::V1(stats) => *stats,
        Stats::V2(_) => panic!("this host has v1"),
    }
}

#[test]
fn cpu_time_is_the_kernels() {
    let host = super::host();
    let scratch = Scratch::new(&host, "cpu");
    let mut child = Child::join(&scratch.cgroup, "burn 300");
    child.go();
    child.expect("burnt");
    let cpu = v1(&scratch.cgroup).cpu.unwrap();
    let kernel: u64 = scratch
        .read(&host, "cpuacct", "cpuacct.usage")
        .parse()
        .unwrap();
    assert!(cpu.total >= 290_000_000, "{cpu:?}");
    assert!(kernel.abs_diff(cpu.total) < kernel / 20, "{kernel} {cpu:?}");
    assert!(
        cpu.per_cpu.iter().sum::<u64>().abs_diff(cpu.total) < kernel / 20,
        "{cpu:?}"
    );
    // Both are whole ticks of 10 ms, and each tick is where its CPU was found: most of it was in user mode.
    let modes = cpu.user + cpu.kernel;
    assert!(modes.abs_diff(cpu.total) <= 20_000_000, "{cpu:?}");
    assert!(cpu.user > cpu.total / 2, "{cpu:?}");
}

#[test]
fn memory_pids_and_limits_are_the_kernels() {
    let host = super::host();
    let scratch = Scratch::new(&host, "memory");
    let unlimited = v1(&scratch.cgroup);
    let file = |file| scratch.read(&host, "memory", file).parse::<u64>().unwrap();
    let memory = unlimited.memory.unwrap();
    assert_eq!(memory.usage.limit, file("memory.limit_in_bytes"));
    assert!(memory.usage.limit > 1 << 62);
    assert_eq!(unlimited.pids.unwrap().limit, 0);
    let memory = Memory {
        limit: Some(64 << 20),
        ..Memory::default()
    };
    let resources = Resources {
        memory,
        pids: Some(50),
        ..Resources::default()
    };
    scratch.cgroup.limit(&resources).unwrap();
    let child = Child::join(&scratch.cgroup, "echo");
    let stats = v1(&scratch.cgroup);
    let memory = stats.memory.unwrap();
    assert_eq!(memory.usage.limit, 64 << 20);
    assert_eq!(memory.stat.hierarchical_memory_limit, 64 << 20);
    assert!(memory.usage.max >= memory.usage.usage);
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.pid()))
        .unwrap()
        .count();
    let pids = stats.pids.unwrap();
    assert_eq!((pids.current, pids.limit), (threads as u64, 50));
    assert_eq!(stats.oom_control.unwrap().oom_kill, 0);
    assert!(stats.hugetlb.is_empty() && stats.blkio.is_some());
}
