//! `io.containerd.cgroups.v2.Metrics`: times in microseconds, memory in bytes.

use berm_sandbox::cgroup;
use containerd_shim_protos::cgroups_v2::metrics as wire;
use containerd_shim_protos::protobuf::MessageField;

use super::field;

pub(super) fn metrics(stats: cgroup::StatsV2) -> wire::Metrics {
    let memory_psi = stats.memory_psi;
    wire::Metrics {
        pids: field(stats.pids.map(|pids| wire::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        })),
        cpu: MessageField::some(cpu(&stats.cpu, stats.cpu_psi)),
        memory: field(stats.memory.map(|memory| self::memory(&memory, memory_psi))),
        rdma: field(stats.rdma.map(rdma)),
        io: MessageField::some(wire::IOStat {
            usage: stats.io.iter().map(io).collect(),
            psi: field(stats.io_psi.map(pressure)),
            ..Default::default()
        }),
        hugetlb: stats.hugetlb.into_iter().map(hugetlb).collect(),
        memory_events: field(stats.memory_events.map(|events| wire::MemoryEvents {
            low: events.low,
            high: events.high,
            max: events.max,
            oom: events.oom,
            oom_kill: events.oom_kill,
            oom_group_kill: events.oom_group_kill,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn cpu(cpu: &cgroup::CpuStatsV2, psi: Option<cgroup::Pressure>) -> wire::CPUStat {
    wire::CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        psi: field(psi.map(pressure)),
        nr_bursts: cpu.nr_bursts,
        burst_usec: cpu.burst_usec,
        ..Default::default()
    }
}

fn memory(memory: &cgroup::MemoryStatsV2, psi: Option<cgroup::Pressure>) -> wire::MemoryStat {
    let stat = memory.stat;
    wire::MemoryStat {
        anon: stat.anon,
        file: stat.file,
        kernel_stack: stat.kernel_stack,
        slab: stat.slab,
        sock: stat.sock,
        shmem: stat.shmem,
        file_mapped: stat.file_mapped,
        file_dirty: stat.file_dirty,
        file_writeback: stat.file_writeback,
        anon_thp: stat.anon_thp,
        inactive_anon: stat.inactive_anon,
        active_anon: stat.active_anon,
        inactive_file: stat.inactive_file,
        active_file: stat.active_file,
        unevictable: stat.unevictable,
        slab_reclaimable: stat.slab_reclaimable,
        slab_unreclaimable: stat.slab_unreclaimable,
        pgfault: stat.pgfault,
        pgmajfault: stat.pgmajfault,
        workingset_refault: stat.workingset_refault,
        workingset_activate: stat.workingset_activate,
        workingset_nodereclaim: stat.workingset_nodereclaim,
        pgrefill: stat.pgrefill,
        pgscan: stat.pgscan,
        pgsteal: stat.pgsteal,
        pgactivate: stat.pgactivate,
        pgdeactivate: stat.pgdeactivate,
        pglazyfree: stat.pglazyfree,
        pglazyfreed: stat.pglazyfreed,
        thp_fault_alloc: stat.thp_fault_alloc,
        thp_collapse_alloc: stat.thp_collapse_alloc,
        usage: memory.usage,
        usage_limit: memory.usage_limit,
        swap_usage: memory.swap_usage,
        swap_limit: memory.swap_limit,
        max_usage: memory.max_usage,
        swap_max_usage: memory.swap_max_usage,
        psi: field(psi.map(pressure)),
        ..Default::default()
    }
}

fn pressure(psi: cgroup::Pressure) -> wire::PSIStats {
    let line = |line: cgroup::PressureLine| wire::PSIData {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total,
        ..Default::default()
    };
    wire::PSIStats {
        some: field(psi.some.map(line)),
        full: field(psi.full.map(line)),
        ..Default::default()
    }
}

fn io(entry: &cgroup::IoEntry) -> wire::IOEntry {
    wire::IOEntry {
        major: entry.major,
        minor: entry.minor,
        rbytes: entry.rbytes,
        wbytes: entry.wbytes,
        rios: entry.rios,
        wios: entry.wios,
        ..Default::default()
    }
}

fn hugetlb(stat: cgroup::HugetlbStats) -> wire::HugeTlbStat {
    wire::HugeTlbStat {
        current: stat.usage,
        max: stat.max,
        pagesize: stat.page_size,
        failcnt: stat.failcnt,
        ..Default::default()
    }
}

fn rdma(rdma: cgroup::RdmaStats) -> wire::RdmaStat {
    let entries = |entries: Vec<cgroup::RdmaEntry>| {
        let entry = |entry: cgroup::RdmaEntry| wire::RdmaEntry {
            device: entry.device,
            hca_handles: entry.hca_handles,
            hca_objects: entry.hca_objects,
            ..Default::default()
        };
        entries.into_iter().map(entry).collect()
    };
    wire::RdmaStat {
        current: entries(rdma.current),
        limit: entries(rdma.limit),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_land_in_the_fields_that_kubelet_reads() {
        let line = cgroup::PressureLine {
            avg10: 1.5,
            total: 9,
            ..Default::default()
        };
        let stats = cgroup::StatsV2 {
            cpu: cgroup::CpuStatsV2 {
                usage_usec: 5,
                ..Default::default()
            },
            cpu_psi: Some(cgroup::Pressure {
                some: Some(line),
                full: None,
            }),
            memory: Some(cgroup::MemoryStatsV2 {
                usage: 100,
                usage_limit: u64::MAX,
                stat: cgroup::MemoryStatV2 {
                    inactive_file: 30,
                    anon: 40,
                    pgmajfault: 2,
                    ..Default::default()
                },
                ..Default::default()
            }),
            memory_events: Some(cgroup::MemoryEvents {
                oom_kill: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let got = metrics(stats);
        assert_eq!(got.cpu.usage_usec, 5);
        assert_eq!(got.cpu.psi.some.total, 9);
        assert!(got.cpu.psi.full.is_none() && got.pids.is_none());
        assert_eq!((got.memory.usage, got.memory.usage_limit), (100, u64::MAX));
        assert_eq!((got.memory.inactive_file, got.memory.anon), (30, 40));
        assert_eq!(got.memory.pgmajfault, 2);
        assert_eq!(got.memory_events.oom_kill, 1);
    }
}
