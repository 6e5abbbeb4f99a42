//! `io.containerd.cgroups.v1.Metrics`: times in nanoseconds, memory in bytes.

use berm_sandbox::cgroup;
use containerd_shim_protos::cgroups::metrics as wire;
use containerd_shim_protos::protobuf::MessageField;

use super::field;

pub(super) fn metrics(stats: cgroup::StatsV1) -> wire::Metrics {
    wire::Metrics {
        hugetlb: stats.hugetlb.into_iter().map(hugetlb).collect(),
        pids: field(stats.pids.map(|pids| wire::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        })),
        cpu: field(stats.cpu.map(cpu)),
        memory: field(stats.memory.map(|memory| self::memory(&memory))),
        blkio: field(stats.blkio.map(blkio)),
        rdma: field(stats.rdma.map(rdma)),
        memory_oom_control: field(stats.oom_control.map(|oom| wire::MemoryOomControl {
            oom_kill_disable: oom.oom_kill_disable,
            under_oom: oom.under_oom,
            oom_kill: oom.oom_kill,
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn cpu(cpu: cgroup::CpuStats) -> wire::CPUStat {
    wire::CPUStat {
        usage: MessageField::some(wire::CPUUsage {
            total: cpu.total,
            kernel: cpu.kernel,
            user: cpu.user,
            per_cpu: cpu.per_cpu,
            ..Default::default()
        }),
        throttling: MessageField::some(wire::Throttle {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_time,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn memory(memory: &cgroup::MemoryStats) -> wire::MemoryStat {
    let stat = memory.stat;
    wire::MemoryStat {
        cache: stat.cache,
        rss: stat.rss,
        rss_huge: stat.rss_huge,
        mapped_file: stat.mapped_file,
        dirty: stat.dirty,
        writeback: stat.writeback,
        pg_pg_in: stat.pgpgin,
        pg_pg_out: stat.pgpgout,
        pg_fault: stat.pgfault,
        pg_maj_fault: stat.pgmajfault,
        inactive_anon: stat.inactive_anon,
        active_anon: stat.active_anon,
        inactive_file: stat.inactive_file,
        active_file: stat.active_file,
        unevictable: stat.unevictable,
        hierarchical_memory_limit: stat.hierarchical_memory_limit,
        hierarchical_swap_limit: stat.hierarchical_memsw_limit,
        total_cache: stat.total_cache,
        total_rss: stat.total_rss,
        total_rss_huge: stat.total_rss_huge,
        total_mapped_file: stat.total_mapped_file,
        total_dirty: stat.total_dirty,
        total_writeback: stat.total_writeback,
        total_pg_pg_in: stat.total_pgpgin,
        total_pg_pg_out: stat.total_pgpgout,
        total_pg_fault: stat.total_pgfault,
        total_pg_maj_fault: stat.total_pgmajfault,
        total_inactive_anon: stat.total_inactive_anon,
        total_active_anon: stat.total_active_anon,
        total_inactive_file: stat.total_inactive_file,
        total_active_file: stat.total_active_file,
        total_unevictable: stat.total_unevictable,
        usage: entry(memory.usage),
        swap: entry(memory.swap),
        kernel: entry(memory.kernel),
        kernel_tcp: entry(memory.kernel_tcp),
        ..Default::default()
    }
}

fn entry(entry: cgroup::MemoryEntry) -> MessageField<wire::MemoryEntry> {
    MessageField::some(wire::MemoryEntry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
        ..Default::default()
    })
}

fn blkio(blkio: cgroup::BlkioStats) -> wire::BlkIOStat {
    let entries = |entries: Vec<cgroup::BlkioEntry>| entries.into_iter().map(blkio_entry).collect();
    wire::BlkIOStat {
        io_service_bytes_recursive: entries(blkio.io_service_bytes_recursive),
        io_serviced_recursive: entries(blkio.io_serviced_recursive),
        io_queued_recursive: entries(blkio.io_queued_recursive),
        io_service_time_recursive: entries(blkio.io_service_time_recursive),
        io_wait_time_recursive: entries(blkio.io_wait_time_recursive),
        io_merged_recursive: entries(blkio.io_merged_recursive),
        io_time_recursive: entries(blkio.io_time_recursive),
        sectors_recursive: entries(blkio.sectors_recursive),
        ..Default::default()
    }
}

fn blkio_entry(entry: cgroup::BlkioEntry) -> wire::BlkIOEntry {
    wire::BlkIOEntry {
        op: entry.op,
        device: entry.device,
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..Default::default()
    }
}

fn hugetlb(stat: cgroup::HugetlbStats) -> wire::HugetlbStat {
    wire::HugetlbStat {
        usage: stat.usage,
        max: stat.max,
        failcnt: stat.failcnt,
        pagesize: stat.page_size,
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
    fn a_sub_message_is_whole_or_absent() {
        let none = metrics(cgroup::StatsV1::default());
        assert!(none.cpu.is_none() && none.memory.is_none() && none.pids.is_none());
        let some = metrics(cgroup::StatsV1 {
            cpu: Some(cgroup::CpuStats::default()),
            memory: Some(cgroup::MemoryStats::default()),
            ..Default::default()
        });
        assert!(some.cpu.usage.is_some() && some.cpu.throttling.is_some());
        let memory = some.memory.unwrap();
        assert!(memory.usage.is_some() && memory.swap.is_some());
        assert!(memory.kernel.is_some() && memory.kernel_tcp.is_some());
    }

    #[test]
    fn figures_land_in_the_fields_that_kubelet_reads() {
        let stats = cgroup::StatsV1 {
            cpu: Some(cgroup::CpuStats {
                total: 5_000_000_000,
                ..Default::default()
            }),
            memory: Some(cgroup::MemoryStats {
                usage: cgroup::MemoryEntry {
                    usage: 100,
                    limit: 1000,
                    ..Default::default()
                },
                stat: cgroup::MemoryStat {
                    total_inactive_file: 30,
                    total_rss: 40,
                    total_pgmajfault: 2,
                    ..Default::default()
                },
                ..Default::default()
            }),
            pids: Some(cgroup::PidsStats {
                current: 3,
                limit: 0,
            }),
            oom_control: Some(cgroup::OomControl {
                oom_kill: 1,
                ..Default::default()
            }),
            ..Default::default()
        };
        let got = metrics(stats);
        assert_eq!(got.cpu.usage.total, 5_000_000_000);
        assert_eq!(
            (got.memory.usage.usage, got.memory.usage.limit),
            (100, 1000)
        );
        assert_eq!(
            (got.memory.total_inactive_file, got.memory.total_rss),
            (30, 40)
        );
        assert_eq!(got.memory.total_pg_maj_fault, 2);
        assert_eq!((got.pids.current, got.memory_oom_control.oom_kill), (3, 1));
    }
}
