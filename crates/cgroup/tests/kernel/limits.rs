//! Limits on v1, read back from the kernel.

use berm_cgroup::{BlockIo, Cpu, HugetlbLimit, Memory, Resources, Throttle};
use berm_sys::Kind;

use super::Scratch;

const MB: i64 = 1 << 20;

/// The number of a disk that exists here; loop devices come and go.
fn disk() -> Option<(u32, u32)> {
    std::fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"loop"))
        .find_map(|entry| {
            let size = std::fs::read_to_string(entry.path().join("size")).ok()?;
            let dev = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = dev.trim().split_once(':')?;
            (size.trim() != "0").then_some((major.parse().ok()?, minor.parse().ok()?))
        })
}

#[test]
fn every_limit_reads_back_as_it_was_asked_for() {
    let host = super::host();
    let scratch = Scratch::new(&host, "limits");
    let disk = disk();
    let throttle = |rate| {
        let disk = disk.into_iter();
        disk.map(|(major, minor)| Throttle { major, minor, rate })
            .collect::<Vec<_>>()
    };
    let resources = Resources {
        cpu: Cpu {
            shares: Some(512),
            quota: Some(50_000),
            period: Some(200_000),
            burst: Some(10_000),
            cpus: Some("0".into()),
            mems: Some("0".into()),
            idle: Some(0),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(64 * MB),
            swap: Some(128 * MB),
            reservation: Some(32 * MB),
            swappiness: Some(10),
            disable_oom_killer: Some(true),
            check_before_update: true,
        },
        pids: Some(77),
        block_io: BlockIo {
            weight: Some(300),
            read_bps: throttle(1 << 20),
            write_iops: throttle(100),
            ..BlockIo::default()
        },
        ..Resources::default()
    };
    scratch.cgroup.limit(&resources).unwrap();
    // Once more, as an update would.
    scratch.cgroup.limit(&resources).unwrap();
    let rows = [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "200000"),
        ("cpu", "cpu.cfs_burst_us", "10000"),
        ("cpu", "cpu.idle", "0"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.memsw.limit_in_bytes", "134217728"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("memory", "memory.swappiness", "10"),
        ("pids", "pids.max", "77"),
        ("blkio", "blkio.bfq.weight", "300"),
    ];
    for (hierarchy, file, want) in rows {
        assert_eq!(scratch.read(&host, hierarchy, file), want, "{file}");
    }
    assert!(
        scratch
            .read(&host, "memory", "memory.oom_control")
            .contains("oom_kill_disable 1")
    );
    if let Some((major, minor)) = disk {
        let read = scratch.read(&host, "blkio", "blkio.throttle.read_bps_device");
        assert_eq!(read, format!("{major}:{minor} 1048576"));
    }
}

#[test]
fn memory_and_swap_go_up_and_down_in_one_update() {
    let host = super::host();
    let scratch = Scratch::new(&host, "updown");
    let limit = |limit, swap| {
        let memory = Memory {
            limit: Some(limit),
            swap: Some(swap),
            ..Memory::default()
        };
        scratch
            .cgroup
            .limit(&Resources {
                memory,
                ..Resources::default()
            })
            .unwrap();
        let read = |file| scratch.read(&host, "memory", file).parse::<i64>().unwrap();
        (
            read("memory.limit_in_bytes"),
            read("memory.memsw.limit_in_bytes"),
        )
    };
    for (memory, swap) in [(64, 64), (256, 512), (16, 16), (128, 128)] {
        let want = (memory * MB, swap * MB);
        assert_eq!(limit(want.0, want.1), want);
    }
    let (memory, swap) = limit(-1, -1);
    assert!(memory > 1 << 62 && swap > 1 << 62);
}

#[test]
fn a_quota_changes_with_its_period_in_one_update() {
    let host = super::host();
    let parent = Scratch::new(&host, "period");
    let cpu = |quota, period| Resources {
        cpu: Cpu {
            quota: Some(quota),
            period: Some(period),
            ..Cpu::default()
        },
        ..Resources::default()
    };
    parent.cgroup.limit(&cpu(50_000, 100_000)).unwrap();
    let name = format!("{}/child", parent.cgroup.path());
    let path = berm_cgroup::CgroupPath::parse(&name).unwrap();
    let child = berm_cgroup::Cgroup::create(&host, &path).unwrap();
    // At most half a CPU, in each order of growing and shrinking.
    for (quota, period) in [(50_000, 100_000), (5_000, 10_000), (250_000, 500_000)] {
        child.limit(&cpu(quota, period)).unwrap();
    }
    let refused = child.limit(&cpu(90_000, 100_000)).unwrap_err();
    assert_eq!(refused.kind(), Kind::InvalidArgument);
    assert!(
        refused.to_string().contains("linux.resources.cpu."),
        "{refused}"
    );
}

#[test]
fn what_this_host_lacks_is_refused_with_field_and_reason_before_anything_is_written() {
    let host = super::host();
    let scratch = Scratch::new(&host, "lacks");
    let resources = Resources {
        pids: Some(5),
        hugetlb: vec![HugetlbLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        ..Resources::default()
    };
    let refused = scratch.cgroup.limit(&resources).unwrap_err();
    assert_eq!(refused.kind(), Kind::NotSupported);
    let text = "linux.resources.hugepageLimits: this host has no cgroup controller hugetlb";
    assert_eq!(refused.to_string(), text);
    assert_eq!(scratch.read(&host, "pids", "pids.max"), "max");
    let block_io = BlockIo {
        leaf_weight: Some(10),
        ..BlockIo::default()
    };
    let refused = scratch.cgroup.limit(&Resources {
        block_io,
        ..Resources::default()
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), Kind::NotSupported, "{refused}");
    assert!(
        refused
            .to_string()
            .starts_with("linux.resources.blockIO.leafWeight: this kernel")
    );
}

#[test]
fn a_realtime_budget_reads_back_and_one_beyond_the_parents_names_field_and_file() {
    let host = super::host();
    let scratch = Scratch::new(&host, "realtime");
    let realtime = |runtime, period| {
        let cpu = Cpu {
            realtime_runtime: Some(runtime),
            realtime_period: Some(period),
            ..Cpu::default()
        };
        scratch.cgroup.limit(&Resources {
            cpu,
            ..Resources::default()
        })
    };
    match realtime(1000, 100_000) {
        Ok(()) => {
            assert_eq!(scratch.read(&host, "cpu", "cpu.rt_runtime_us"), "1000");
            assert_eq!(scratch.read(&host, "cpu", "cpu.rt_period_us"), "100000");
        }
        // A kernel without RT_GROUP_SCHED, or a nested node without a budget of its own.
        Err(refused) => assert!(refused.to_string().contains("cpu.rt_"), "{refused}"),
    }
    let refused = realtime(2_000_000, 1_000_000).unwrap_err();
    assert!(
        refused.to_string().contains("linux.resources.cpu.realtime"),
        "{refused}"
    );
    assert!(refused.to_string().contains("cpu.rt_"), "{refused}");
}

#[test]
fn cpus_that_do_not_exist_are_refused_by_the_kernel_with_the_field() {
    let host = super::host();
    let scratch = Scratch::new(&host, "cpus");
    let cpu = Cpu {
        cpus: Some("0-99999".into()),
        ..Cpu::default()
    };
    let refused = scratch
        .cgroup
        .limit(&Resources {
            cpu,
            ..Resources::default()
        })
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("linux.resources.cpu.cpus: write("),
        "{refused}"
    );
}
