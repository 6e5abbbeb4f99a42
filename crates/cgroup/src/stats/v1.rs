//! v1: one file for each figure.

use super::{HugetlbStats, PidsStats, RdmaStats, keyed, rdma};
use crate::controller::Controller;
use crate::dir::{Dir, number};
use crate::{Cgroup, Error};

/// `cpuacct.stat` counts in these: `USER_HZ` is 100 on every architecture that Berm runs on.
const TICK_NS: u64 = 10_000_000;

/// All figures of v1. What the host has no controller for is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsV1 {
    /// Controllers cpuacct and cpu.
    pub cpu: Option<CpuStats>,
    /// Controller memory.
    pub memory: Option<MemoryStats>,
    /// `memory.oom_control`
    pub oom_control: Option<OomControl>,
    /// Controller pids.
    pub pids: Option<PidsStats>,
    /// Controller blkio.
    pub blkio: Option<BlkioStats>,
    /// Controller hugetlb, one entry for each page size.
    pub hugetlb: Vec<HugetlbStats>,
    /// Controller rdma.
    pub rdma: Option<RdmaStats>,
}

/// CPU time in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuStats {
    /// `cpuacct.usage`
    pub total: u64,
    /// In user mode, to 10 ms.
    pub user: u64,
    /// In kernel mode, to 10 ms.
    pub kernel: u64,
    /// `cpuacct.usage_percpu`
    pub per_cpu: Vec<u64>,
    /// Periods with a quota in force.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled_time: u64,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// `memory.stat`
    pub stat: MemoryStat,
    /// `memory.*`
    pub usage: MemoryEntry,
    /// `memory.memsw.*`: memory and swap together; zeros if the kernel does not count swap.
    pub swap: MemoryEntry,
    /// `memory.kmem.*`
    pub kernel: MemoryEntry,
    /// `memory.kmem.tcp.*`
    pub kernel_tcp: MemoryEntry,
}

/// Four files of one kind of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEntry {
    /// `limit_in_bytes`
    pub limit: u64,
    /// `usage_in_bytes`
    pub usage: u64,
    /// `max_usage_in_bytes`
    pub max: u64,
    /// `failcnt`
    pub failcnt: u64,
}

keyed! {
    /// `memory.stat` of v1 (the kernel's admin-guide/cgroup-v1/memory.rst, 5.2).
    pub struct MemoryStat {
        cache, rss, rss_huge, mapped_file, dirty, writeback, pgpgin, pgpgout, pgfault, pgmajfault,
        inactive_anon, active_anon, inactive_file, active_file, unevictable,
        hierarchical_memory_limit, hierarchical_memsw_limit,
        total_cache, total_rss, total_rss_huge, total_mapped_file, total_dirty, total_writeback,
        total_pgpgin, total_pgpgout, total_pgfault, total_pgmajfault, total_inactive_anon,
        total_active_anon, total_inactive_file, total_active_file, total_unevictable,
    }
}

keyed! {
    /// `memory.oom_control`
    pub struct OomControl { oom_kill_disable, under_oom, oom_kill }
}

keyed! {
    /// `cpu.stat`
    struct Throttling { nr_periods, nr_throttled, throttled_time }
}

keyed! {
    /// `cpuacct.stat`
    struct Ticks { user, system }
}

/// Block I/O. The last six are counted by cfq only, a scheduler that kernels had until 5.0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // named as the kernel's files
pub struct BlkioStats {
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    pub io_serviced_recursive: Vec<BlkioEntry>,
    pub io_queued_recursive: Vec<BlkioEntry>,
    pub io_service_time_recursive: Vec<BlkioEntry>,
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    pub io_merged_recursive: Vec<BlkioEntry>,
    pub io_time_recursive: Vec<BlkioEntry>,
    pub sectors_recursive: Vec<BlkioEntry>,
}

/// One line of a blkio file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioEntry {
    /// `Read`, `Write`, …; empty where the file has none.
    pub op: String,
    /// `/dev/vda` as `/proc/partitions` names it; empty if it does not.
    pub device: String,
    /// Device number.
    pub major: u64,
    /// Device number.
    pub minor: u64,
    /// Bytes, operations, ns or sectors.
    pub value: u64,
}

pub(super) fn read(cgroup: &Cgroup, buf: &mut Vec<u8>) -> Result<StatsV1, Error> {
    let dir = |controller| cgroup.dir(controller);
    let memory = dir(Controller::Memory);
    Ok(StatsV1 {
        cpu: cpu(dir(Controller::Cpuacct), dir(Controller::Cpu), buf)?,
        memory: memory.map(|dir| read_memory(dir, buf)).transpose()?,
        oom_control: memory
            .map(|dir| Ok(OomControl::parse(dir.read("memory.oom_control", buf)?)))
            .transpose()?,
        pids: dir(Controller::Pids).map(pids).transpose()?,
        blkio: dir(Controller::Blkio)
            .map(|dir| blkio(dir, buf))
            .transpose()?,
        hugetlb: match dir(Controller::Hugetlb) {
            Some(dir) => hugetlb(dir, &cgroup.host.huge_page_sizes)?,
            None => Vec::new(),
        },
        rdma: rdma(dir(Controller::Rdma), buf)?,
    })
}

fn cpu(
    cpuacct: Option<&Dir>,
    cpu: Option<&Dir>,
    buf: &mut Vec<u8>,
) -> Result<Option<CpuStats>, Error> {
    let Some(cpuacct) = cpuacct else {
        return Ok(None);
    };
    let total = cpuacct.read_u64("cpuacct.usage")?;
    let ticks = Ticks::parse(cpuacct.read("cpuacct.stat", buf)?);
    let per_cpu = cpuacct.read("cpuacct.usage_percpu", buf)?;
    let per_cpu = per_cpu.split_whitespace().filter_map(number).collect();
    let throttling = match cpu {
        // The file is there only with CONFIG_CFS_BANDWIDTH.
        Some(cpu) => Throttling::parse(cpu.read_if_there("cpu.stat", buf)?.unwrap_or_default()),
        None => Throttling::default(),
    };
    Ok(Some(CpuStats {
        total,
        user: ticks.user.saturating_mul(TICK_NS),
        kernel: ticks.system.saturating_mul(TICK_NS),
        per_cpu,
        periods: throttling.nr_periods,
        throttled_periods: throttling.nr_throttled,
        throttled_time: throttling.throttled_time,
    }))
}

fn read_memory(dir: &Dir, buf: &mut Vec<u8>) -> Result<MemoryStats, Error> {
    Ok(MemoryStats {
        stat: MemoryStat::parse(dir.read("memory.stat", buf)?),
        usage: MemoryEntry {
            limit: dir.read_u64("memory.limit_in_bytes")?,
            usage: dir.read_u64("memory.usage_in_bytes")?,
            max: dir.read_u64("memory.max_usage_in_bytes")?,
            failcnt: dir.read_u64("memory.failcnt")?,
        },
        swap: optional(dir, "memory.memsw")?,
        kernel: optional(dir, "memory.kmem")?,
        kernel_tcp: optional(dir, "memory.kmem.tcp")?,
    })
}

/// The four files of a kind of memory that a kernel may not count.
fn optional(dir: &Dir, kind: &str) -> Result<MemoryEntry, Error> {
    let read = |what: &str| dir.read_u64_if_there(&format!("{kind}.{what}"));
    let Some(usage) = read("usage_in_bytes")? else {
        return Ok(MemoryEntry::default());
    };
    Ok(MemoryEntry {
        usage,
        limit: read("limit_in_bytes")?.unwrap_or(0),
        max: read("max_usage_in_bytes")?.unwrap_or(0),
        failcnt: read("failcnt")?.unwrap_or(0),
    })
}

fn pids(dir: &Dir) -> Result<PidsStats, Error> {
    let limit = dir.read_u64("pids.max")?;
    Ok(PidsStats {
        current: dir.read_u64("pids.current")?,
        limit: if limit == u64::MAX { 0 } else { limit },
    })
}

fn hugetlb(dir: &Dir, sizes: &[String]) -> Result<Vec<HugetlbStats>, Error> {
    let entry = |size: &String| {
        let read = |what: &str| dir.read_u64(&format!("hugetlb.{size}.{what}"));
        Ok(HugetlbStats {
            page_size: size.clone(),
            usage: read("usage_in_bytes")?,
            max: read("max_usage_in_bytes")?,
            failcnt: read("failcnt")?,
        })
    };
    sizes.iter().map(entry).collect()
}

/// cfq's files where there are any, else the throttling layer's, which count for every scheduler.
fn blkio(dir: &Dir, buf: &mut Vec<u8>) -> Result<BlkioStats, Error> {
    let mut stats = BlkioStats {
        io_serviced_recursive: entries(dir, "blkio.io_serviced_recursive", buf)?
            .unwrap_or_default(),
        ..BlkioStats::default()
    };
    if stats.io_serviced_recursive.is_empty() {
        stats.io_serviced_recursive = throttled(dir, "io_serviced", buf)?;
        stats.io_service_bytes_recursive = throttled(dir, "io_service_bytes", buf)?;
    } else {
        let mut cfq = |file: &str| -> Result<Vec<BlkioEntry>, Error> {
            Ok(entries(dir, &format!("blkio.{file}_recursive"), buf)?.unwrap_or_default())
        };
        stats.io_service_bytes_recursive = cfq("io_service_bytes")?;
        stats.io_queued_recursive = cfq("io_queued")?;
        stats.io_service_time_recursive = cfq("io_service_time")?;
        stats.io_wait_time_recursive = cfq("io_wait_time")?;
        stats.io_merged_recursive = cfq("io_merged")?;
        stats.io_time_recursive = cfq("time")?;
        stats.sectors_recursive = cfq("sectors")?;
    }
    name_devices(&mut stats);
    Ok(stats)
}

/// With the sub-groups since 5.2, before that without.
fn throttled(dir: &Dir, what: &str, buf: &mut Vec<u8>) -> Result<Vec<BlkioEntry>, Error> {
    let file = format!("blkio.throttle.{what}_recursive");
    if let Some(entries) = entries(dir, &file, buf)? {
        return Ok(entries);
    }
    Ok(entries(dir, &format!("blkio.throttle.{what}"), buf)?.unwrap_or_default())
}

fn entries(dir: &Dir, file: &str, buf: &mut Vec<u8>) -> Result<Option<Vec<BlkioEntry>>, Error> {
    let Some(text) = dir.read_if_there(file, buf)? else {
        return Ok(None);
    };
    Ok(Some(text.lines().filter_map(blkio_entry).collect()))
}

/// `8:0 Read 1282048`, or `8:0 6792`; the grand `Total 3477504` is left out.
fn blkio_entry(line: &str) -> Option<BlkioEntry> {
    let (device, rest) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let (op, value) = rest.rsplit_once(' ').unwrap_or(("", rest));
    Some(BlkioEntry {
        op: op.to_owned(),
        device: String::new(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        value: value.parse().ok()?,
    })
}

/// Fills in the names. Only a label for graphs: without `/proc/partitions` they stay empty.
fn name_devices(stats: &mut BlkioStats) {
    let lists = [
        &mut stats.io_service_bytes_recursive,
        &mut stats.io_serviced_recursive,
        &mut stats.io_queued_recursive,
        &mut stats.io_service_time_recursive,
        &mut stats.io_wait_time_recursive,
        &mut stats.io_merged_recursive,
        &mut stats.io_time_recursive,
        &mut stats.sectors_recursive,
    ];
    let mut entries = lists.into_iter().flatten().peekable();
    if entries.peek().is_none() {
        return;
    }
    let partitions = std::fs::read_to_string("/proc/partitions").unwrap_or_default();
    for entry in entries {
        let named = partitions.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor): (u64, u64) =
                (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            (major == entry.major && minor == entry.minor).then(|| words.nth(1))?
        });
        entry.device = named.map(|name| format!("/dev/{name}")).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blkio_lines_are_read_and_totals_left_out() {
        let entry = blkio_entry("8:16 Read 1282048").unwrap();
        assert_eq!(
            (entry.op.as_str(), entry.major, entry.minor),
            ("Read", 8, 16)
        );
        assert_eq!(entry.value, 1_282_048);
        assert_eq!(blkio_entry("8:0 6792").unwrap().value, 6792);
        assert_eq!(blkio_entry("Total 3477504"), None);
    }
}
