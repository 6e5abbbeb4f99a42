//! v2: few files with many figures.

use super::{HugetlbStats, PidsStats, RdmaStats, keyed, rdma};
use crate::controller::Controller;
use crate::dir::Dir;
use crate::{Cgroup, Error};

/// All figures of v2. What the cgroup has no controller for is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsV2 {
    /// Controller pids.
    pub pids: Option<PidsStats>,
    /// `cpu.stat`, which needs no controller; the throttling figures do.
    pub cpu: CpuStatsV2,
    /// `cpu.pressure`
    pub cpu_psi: Option<Pressure>,
    /// Controller memory.
    pub memory: Option<MemoryStatsV2>,
    /// `memory.events`
    pub memory_events: Option<MemoryEvents>,
    /// `memory.pressure`
    pub memory_psi: Option<Pressure>,
    /// `io.stat`
    pub io: Vec<IoEntry>,
    /// `io.pressure`
    pub io_psi: Option<Pressure>,
    /// Controller hugetlb, one entry for each page size.
    pub hugetlb: Vec<HugetlbStats>,
    /// Controller rdma.
    pub rdma: Option<RdmaStats>,
}

/// Memory in bytes; no limit is `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStatsV2 {
    /// `memory.stat`
    pub stat: MemoryStatV2,
    /// `memory.current`
    pub usage: u64,
    /// `memory.max`
    pub usage_limit: u64,
    /// `memory.peak` (5.19), else 0
    pub max_usage: u64,
    /// `memory.swap.current`, else 0
    pub swap_usage: u64,
    /// `memory.swap.max`, else 0
    pub swap_limit: u64,
    /// `memory.swap.peak` (6.5), else 0
    pub swap_max_usage: u64,
}

keyed! {
    /// `cpu.stat`, times in µs.
    pub struct CpuStatsV2 {
        usage_usec, user_usec, system_usec, nr_periods, nr_throttled, throttled_usec, nr_bursts,
        burst_usec,
    }
}

keyed! {
    /// `memory.stat` of v2 (the kernel's admin-guide/cgroup-v2.rst), as far as containerd's
    /// metrics have it.
    pub struct MemoryStatV2 {
        anon, file, kernel_stack, slab, sock, shmem, file_mapped, file_dirty, file_writeback,
        anon_thp, inactive_anon, active_anon, inactive_file, active_file, unevictable,
        slab_reclaimable, slab_unreclaimable, pgfault, pgmajfault, workingset_refault,
        workingset_activate, workingset_nodereclaim, pgrefill, pgscan, pgsteal, pgactivate,
        pgdeactivate, pglazyfree, pglazyfreed, thp_fault_alloc, thp_collapse_alloc,
    }
}

keyed! {
    /// `memory.events`
    pub struct MemoryEvents { low, high, max, oom, oom_kill, oom_group_kill }
}

/// One device of `io.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // named as the kernel's keys
pub struct IoEntry {
    pub major: u64,
    pub minor: u64,
    pub rbytes: u64,
    pub wbytes: u64,
    pub rios: u64,
    pub wios: u64,
}

/// Pressure stall information of a cgroup; `None` where the kernel has it turned off.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressures {
    /// `cpu.pressure`
    pub cpu: Option<Pressure>,
    /// `memory.pressure`
    pub memory: Option<Pressure>,
    /// `io.pressure`
    pub io: Option<Pressure>,
}

pub(super) fn pressures(dir: &Dir, buf: &mut Vec<u8>) -> Result<Pressures, Error> {
    Ok(Pressures {
        cpu: pressure(dir, "cpu.pressure", buf)?,
        memory: pressure(dir, "memory.pressure", buf)?,
        io: pressure(dir, "io.pressure", buf)?,
    })
}

/// Pressure stall information of one resource (the kernel's accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Time in which some task waited.
    pub some: Option<PressureLine>,
    /// Time in which all tasks waited.
    pub full: Option<PressureLine>,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// µs in all.
    pub total: u64,
}

pub(super) fn read(cgroup: &Cgroup, buf: &mut Vec<u8>) -> Result<StatsV2, Error> {
    let gone = || Error::Gone {
        path: cgroup.path().relative().into(),
    };
    let dir = cgroup.unified().ok_or_else(gone)?;
    let psi = pressures(dir, buf)?;
    Ok(StatsV2 {
        // There in every cgroup, so its absence means that the cgroup is gone.
        cpu: CpuStatsV2::parse(dir.read("cpu.stat", buf)?),
        pids: pids(dir)?,
        cpu_psi: psi.cpu,
        memory: memory(dir, buf)?,
        memory_events: dir
            .read_if_there("memory.events", buf)?
            .map(MemoryEvents::parse),
        memory_psi: psi.memory,
        io: dir
            .read_if_there("io.stat", buf)?
            .unwrap_or_default()
            .lines()
            .filter_map(io)
            .collect(),
        io_psi: psi.io,
        hugetlb: hugetlb(dir, &cgroup.host.huge_page_sizes, buf)?,
        rdma: rdma(cgroup.dir(Controller::Rdma), buf)?,
    })
}

fn pids(dir: &Dir) -> Result<Option<PidsStats>, Error> {
    let Some(current) = dir.read_u64_if_there("pids.current")? else {
        return Ok(None);
    };
    let limit = dir.read_u64_if_there("pids.max")?.unwrap_or(u64::MAX);
    Ok(Some(PidsStats { current, limit }))
}

fn memory(dir: &Dir, buf: &mut Vec<u8>) -> Result<Option<MemoryStatsV2>, Error> {
    let Some(text) = dir.read_if_there("memory.stat", buf)? else {
        return Ok(None);
    };
    let stat = MemoryStatV2::parse(text);
    let read = |file| Ok(dir.read_u64_if_there(file)?.unwrap_or(0));
    Ok(Some(MemoryStatsV2 {
        stat,
        usage: read("memory.current")?,
        usage_limit: read("memory.max")?,
        max_usage: read("memory.peak")?,
        swap_usage: read("memory.swap.current")?,
        swap_limit: read("memory.swap.max")?,
        swap_max_usage: read("memory.swap.peak")?,
    }))
}

fn hugetlb(dir: &Dir, sizes: &[String], buf: &mut Vec<u8>) -> Result<Vec<HugetlbStats>, Error> {
    let mut found = Vec::new();
    for size in sizes {
        let file = |what: &str| format!("hugetlb.{size}.{what}");
        // Not handed down to this cgroup: no files of any size.
        let Some(usage) = dir.read_u64_if_there(&file("current"))? else {
            break;
        };
        let max = dir.read_u64_if_there(&file("max"))?.unwrap_or(0);
        let failcnt = dir.read_key(&file("events"), "max", buf)?.unwrap_or(0);
        found.push(HugetlbStats {
            page_size: size.clone(),
            usage,
            max,
            failcnt,
        });
    }
    Ok(found)
}

/// `254:0 rbytes=12288 wbytes=0 rios=3 wios=0 dbytes=0 dios=0`
fn io(line: &str) -> Option<IoEntry> {
    let mut words = line.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoEntry::default()
    };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let Ok(value) = value.parse() else { continue };
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

/// `None` if the kernel has PSI turned off (no file, or EOPNOTSUPP).
fn pressure(dir: &Dir, file: &str, buf: &mut Vec<u8>) -> Result<Option<Pressure>, Error> {
    let Some(text) = dir.read_if_there(file, buf)? else {
        return Ok(None);
    };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => pressure.some = pressure_line(rest),
            Some(("full", rest)) => pressure.full = pressure_line(rest),
            _ => {}
        }
    }
    Ok(Some(pressure))
}

/// `avg10=0.00 avg60=0.12 avg300=0.05 total=1234`
fn pressure_line(text: &str) -> Option<PressureLine> {
    let mut line = PressureLine::default();
    for word in text.split(' ') {
        let (key, value) = word.split_once('=')?;
        match key {
            "avg10" => line.avg10 = value.parse().ok()?,
            "avg60" => line.avg60 = value.parse().ok()?,
            "avg300" => line.avg300 = value.parse().ok()?,
            "total" => line.total = value.parse().ok()?,
            _ => {}
        }
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_and_pressure_lines_are_read_and_new_keys_skipped() {
        let entry = io("254:0 rbytes=12288 wbytes=1 rios=3 wios=2 dbytes=0 cost.usage=9").unwrap();
        let want = IoEntry {
            major: 254,
            minor: 0,
            rbytes: 12_288,
            wbytes: 1,
            rios: 3,
            wios: 2,
        };
        assert_eq!(entry, want);
        let line = pressure_line("avg10=0.50 avg60=0.12 avg300=0.05 total=1234").unwrap();
        assert_eq!((line.avg10, line.total), (0.5, 1234));
    }
}
