use berm_sys::Kind;

use super::{v1, v2};
use crate::resources::{Cpu, HugetlbLimit, Memory, Network, Throttle};
use crate::{BlockIo, Error, Resources, Setting};

type Row = (
    &'static str,
    Resources,
    &'static [&'static str],
    &'static [&'static str],
);

fn cpu(cpu: Cpu) -> Resources {
    Resources {
        cpu,
        ..Resources::default()
    }
}

fn memory(memory: Memory) -> Resources {
    Resources {
        memory,
        ..Resources::default()
    }
}

fn lines(settings: Result<Vec<Setting>, Error>) -> Vec<String> {
    match settings {
        Ok(settings) => settings
            .iter()
            .map(|s| format!("{} {}", s.file, s.value))
            .collect(),
        Err(error) => vec![format!("{}: {error}", error.kind())],
    }
}

#[test]
fn each_field_becomes_its_files_on_v1_and_on_v2() {
    let throttle = |rate| {
        vec![Throttle {
            major: 8,
            minor: 0,
            rate,
        }]
    };
    let rows: Vec<Row> = vec![
        ("nothing", Resources::default(), &[], &[]),
        (
            "zeros are unset",
            cpu(Cpu {
                shares: Some(0),
                quota: Some(0),
                ..Cpu::default()
            }),
            &[],
            &[],
        ),
        (
            "cpu",
            cpu(Cpu {
                shares: Some(1024),
                quota: Some(50_000),
                period: Some(100_000),
                burst: Some(0),
                cpus: Some("0-1".into()),
                mems: Some("0".into()),
                idle: Some(0),
                ..Cpu::default()
            }),
            &[
                "cpuset.cpus 0-1",
                "cpuset.mems 0",
                "cpu.shares 1024",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_quota_us 50000",
                "cpu.cfs_burst_us 0",
                "cpu.idle 0",
            ],
            &[
                "cpuset.cpus 0-1",
                "cpuset.mems 0",
                "cpu.weight 100",
                "cpu.max 50000 100000",
                "cpu.max.burst 0",
                "cpu.idle 0",
            ],
        ),
        (
            "no quota",
            cpu(Cpu {
                quota: Some(-1),
                ..Cpu::default()
            }),
            &["cpu.cfs_quota_us -1"],
            &["cpu.max max 100000"],
        ),
        (
            "memory and swap",
            memory(Memory {
                limit: Some(100),
                swap: Some(300),
                reservation: Some(50),
                ..Memory::default()
            }),
            &[
                "memory.limit_in_bytes 100",
                "memory.memsw.limit_in_bytes 300",
                "memory.soft_limit_in_bytes 50",
            ],
            &["memory.swap.max 200", "memory.max 100", "memory.low 50"],
        ),
        (
            "memory without limit",
            memory(Memory {
                limit: Some(-1),
                ..Memory::default()
            }),
            &["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1"],
            &["memory.swap.max max", "memory.max max"],
        ),
        (
            "pids without limit",
            Resources {
                pids: Some(-1),
                ..Resources::default()
            },
            &["pids.max max"],
            &["pids.max max"],
        ),
        (
            "pids",
            Resources {
                pids: Some(0),
                ..Resources::default()
            },
            &["pids.max 1"],
            &["pids.max 1"],
        ),
        (
            "block I/O",
            Resources {
                block_io: BlockIo {
                    weight: Some(500),
                    read_bps: throttle(1_000_000),
                    write_iops: throttle(0),
                    ..BlockIo::default()
                },
                ..Resources::default()
            },
            &[
                "blkio.weight 500",
                "blkio.throttle.read_bps_device 8:0 1000000",
                "blkio.throttle.write_iops_device 8:0 0",
            ],
            &[
                "io.bfq.weight 500",
                "io.max 8:0 rbps=1000000",
                "io.max 8:0 wiops=max",
            ],
        ),
        (
            "huge pages",
            Resources {
                hugetlb: vec![HugetlbLimit {
                    page_size: "2MB".into(),
                    limit: 0,
                }],
                ..Resources::default()
            },
            &[
                "hugetlb.2MB.limit_in_bytes 0",
                "hugetlb.2MB.rsvd.limit_in_bytes 0",
            ],
            &["hugetlb.2MB.max 0", "hugetlb.2MB.rsvd.max 0"],
        ),
    ];
    for (name, resources, on_v1, on_v2) in rows {
        assert_eq!(lines(v1::settings(&resources)), on_v1, "{name}, v1");
        assert_eq!(lines(v2::settings(&resources)), on_v2, "{name}, v2");
    }
}

#[test]
fn what_a_version_cannot_do_is_refused_with_the_field() {
    type Refusal = (&'static str, Resources, Option<Kind>, Option<Kind>);
    let refused = Some(Kind::NotSupported);
    let bad = Some(Kind::InvalidArgument);
    let unified = |file: &str| Resources {
        unified: vec![(file.into(), "1".into())],
        ..Resources::default()
    };
    let rows: Vec<Refusal> = vec![
        (
            "cpu.shares",
            cpu(Cpu {
                shares: Some(1),
                ..Cpu::default()
            }),
            bad,
            None,
        ),
        (
            "realtime",
            cpu(Cpu {
                realtime_runtime: Some(1),
                ..Cpu::default()
            }),
            None,
            refused,
        ),
        (
            "swappiness",
            memory(Memory {
                swappiness: Some(60),
                ..Memory::default()
            }),
            None,
            refused,
        ),
        (
            "swappiness",
            memory(Memory {
                swappiness: Some(101),
                ..Memory::default()
            }),
            bad,
            refused,
        ),
        (
            "swappiness",
            memory(Memory {
                swappiness: Some(-1),
                ..Memory::default()
            }),
            None,
            None,
        ),
        (
            "limit",
            memory(Memory {
                limit: Some(-2),
                ..Memory::default()
            }),
            bad,
            bad,
        ),
        (
            "swap",
            memory(Memory {
                limit: Some(9),
                swap: Some(8),
                ..Memory::default()
            }),
            bad,
            bad,
        ),
        (
            "oom",
            memory(Memory {
                disable_oom_killer: Some(true),
                ..Memory::default()
            }),
            None,
            refused,
        ),
        (
            "classID",
            Resources {
                network: Network {
                    class_id: Some(1),
                    ..Network::default()
                },
                ..Resources::default()
            },
            None,
            refused,
        ),
        (
            "page size",
            Resources {
                hugetlb: vec![HugetlbLimit {
                    page_size: "../x".into(),
                    limit: 0,
                }],
                ..Resources::default()
            },
            bad,
            bad,
        ),
        ("unified", unified("memory.high"), refused, None),
        ("unified", unified("cgroup.max.depth"), refused, None),
        ("unified", unified("cgroup.procs"), refused, bad),
        ("unified", unified("../memory.high"), refused, bad),
        ("unified", unified("nothing"), refused, bad),
        ("unified", unified("alien.max"), refused, refused),
    ];
    for (name, resources, on_v1, on_v2) in rows {
        assert_eq!(
            v1::settings(&resources).err().map(|e| e.kind()),
            on_v1,
            "{name}, v1"
        );
        assert_eq!(
            v2::settings(&resources).err().map(|e| e.kind()),
            on_v2,
            "{name}, v2"
        );
    }
}
