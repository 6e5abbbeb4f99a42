//! Limits of a cgroup in use: all of a change, or none.

use berm_cgroup::{BlockIo, Cpu, Error, Memory, Resources, Throttle};
use berm_sys::Kind;

use super::{Scratch, hosts, soon};

const MB: i64 = 1 << 20;

fn limits(memory: i64, swap: i64, cpu: (i64, u64)) -> Resources {
    Resources {
        memory: Memory {
            limit: Some(memory * MB),
            swap: Some(swap * MB),
            ..Memory::default()
        },
        cpu: Cpu {
            quota: Some(cpu.0),
            period: Some(cpu.1),
            ..Cpu::default()
        },
        pids: Some(memory),
        ..Resources::default()
    }
}

/// What the files of [`limits`] say.
fn read(scratch: &Scratch, host: &berm_cgroup::Host) -> [i64; 5] {
    [
        ("memory", "memory.limit_in_bytes"),
        ("memory", "memory.memsw.limit_in_bytes"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("pids", "pids.max"),
    ]
    .map(|(hierarchy, file)| scratch.read(host, hierarchy, file).parse().unwrap())
}

#[test]
fn limits_go_up_and_down_in_one_update() {
    let host = super::host();
    let scratch = Scratch::new(&host, "update");
    let rows = [
        (64, 64, (50_000, 100_000)),
        (256, 512, (1_000, 1_000)),
        (16, 16, (900_000, 1_000_000)),
        (300, 400, (2_000, 4_000)),
        (20, 500, (20_000, 10_000)),
    ];
    for (memory, swap, cpu) in rows {
        scratch
            .cgroup
            .update(&limits(memory, swap, cpu), soon())
            .unwrap();
        let want = [memory * MB, swap * MB, cpu.0, cpu.1.cast_signed(), memory];
        assert_eq!(read(&scratch, &host), want);
    }
}

#[test]
fn a_refused_value_leaves_the_ones_before_it_as_they_were() {
    let host = super::host();
    let scratch = Scratch::new(&host, "undo");
    scratch
        .cgroup
        .update(&limits(64, 128, (50_000, 100_000)), soon())
        .unwrap();
    let before = read(&scratch, &host);
    // Written after memory, cpu and pids; no disk has this number.
    let nowhere = Throttle {
        major: 4000,
        minor: 1,
        rate: 1,
    };
    for (memory, swap) in [(256, 512), (16, 16)] {
        let refused = Resources {
            block_io: BlockIo {
                read_bps: vec![nowhere.clone()],
                ..BlockIo::default()
            },
            ..limits(memory, swap, (2_000, 4_000))
        };
        let error = scratch.cgroup.update(&refused, soon()).unwrap_err();
        assert!(
            error.to_string().contains("throttleReadBpsDevice"),
            "{error}"
        );
        assert_eq!(read(&scratch, &host), before, "{error}");
    }
}

#[test]
fn what_the_host_has_not_is_refused_before_the_first_write() {
    let host = super::host();
    let scratch = Scratch::new(&host, "before");
    scratch
        .cgroup
        .update(&limits(64, 128, (50_000, 100_000)), soon())
        .unwrap();
    let before = read(&scratch, &host);
    let mut absent = limits(16, 16, (2_000, 4_000));
    absent.block_io.leaf_weight = Some(500);
    let error = scratch.cgroup.update(&absent, soon()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let mut wrong = limits(16, 16, (2_000, 4_000));
    wrong.unified = vec![("memory.high".into(), "1".into())];
    let error = scratch.cgroup.update(&wrong, soon()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotSupported, "{error}");
    assert_eq!(read(&scratch, &host), before);
}

#[test]
fn a_cgroup_that_is_gone_is_not_found() {
    for host in hosts() {
        let scratch = Scratch::new(&host, "gone");
        scratch.cgroup.remove().unwrap();
        let error = scratch
            .cgroup
            .update(&limits(64, 128, (50_000, 100_000)), soon())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
}
