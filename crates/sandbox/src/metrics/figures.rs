//! From a cgroup's figures to rows.

use berm_cgroup::{BlkioEntry, BlkioStats, PidsStats, Pressure, Stats, StatsV1, StatsV2};
use berm_metrics::{Definition, Number};

use super::{Out, table};

/// v1 has no word for no limit, but the largest number of pages.
const V1_ENDLESS: u64 = 1 << 62;

/// The rows of one container.
struct Rows<'a> {
    out: &'a mut Out,
    id: &'a str,
}

impl Out {
    pub(super) fn container(&mut self, id: &str, stats: &Stats) {
        let mut rows = Rows { out: self, id };
        match stats {
            Stats::V1(v1) => rows.v1(v1),
            Stats::V2(v2) => rows.v2(v2),
        }
    }
}

impl Rows<'_> {
    fn push(&mut self, definition: &Definition, number: impl Into<Number>) {
        self.out
            .push(definition, &[("container", self.id)], number.into());
    }

    fn v1(&mut self, stats: &StatsV1) {
        if let Some(cpu) = &stats.cpu {
            self.push(&table::CPU, Number::seconds(cpu.total));
            self.push(&table::CPU_USER, Number::seconds(cpu.user));
            self.push(&table::CPU_SYSTEM, Number::seconds(cpu.kernel));
            self.push(&table::CPU_PERIODS, cpu.periods);
            self.push(&table::CPU_THROTTLED_PERIODS, cpu.throttled_periods);
            self.push(&table::CPU_THROTTLED, Number::seconds(cpu.throttled_time));
        }
        if let Some(memory) = &stats.memory {
            let stat = &memory.stat;
            self.memory(
                memory.usage.usage,
                memory.usage.max,
                stat.total_inactive_file,
            );
            self.push(&table::MEMORY_ANON, stat.total_rss);
            self.push(&table::MEMORY_CACHE, stat.total_cache);
            self.limit(&table::MEMORY_LIMIT, memory.usage.limit, V1_ENDLESS);
            // Its files count memory and swap together.
            let swap = memory.swap.usage.saturating_sub(memory.usage.usage);
            self.push(&table::SWAP, swap);
            self.push(&table::MEMORY_LIMIT_HITS, memory.usage.failcnt);
            self.push(&table::PAGE_FAULTS, stat.total_pgfault);
            self.push(&table::MAJOR_PAGE_FAULTS, stat.total_pgmajfault);
        }
        if let Some(oom) = stats.oom_control {
            self.push(&table::OOM_KILLS, oom.oom_kill);
        }
        self.pids(stats.pids);
        if let Some(blkio) = &stats.blkio {
            self.blkio(blkio);
        }
    }

    fn v2(&mut self, stats: &StatsV2) {
        let cpu = &stats.cpu;
        let seconds = |usec: u64| Number::seconds(usec.saturating_mul(1000));
        self.push(&table::CPU, seconds(cpu.usage_usec));
        self.push(&table::CPU_USER, seconds(cpu.user_usec));
        self.push(&table::CPU_SYSTEM, seconds(cpu.system_usec));
        self.push(&table::CPU_PERIODS, cpu.nr_periods);
        self.push(&table::CPU_THROTTLED_PERIODS, cpu.nr_throttled);
        self.push(&table::CPU_THROTTLED, seconds(cpu.throttled_usec));
        if let Some(memory) = &stats.memory {
            let stat = &memory.stat;
            self.memory(memory.usage, memory.max_usage, stat.inactive_file);
            self.push(&table::MEMORY_ANON, stat.anon);
            self.push(&table::MEMORY_CACHE, stat.file);
            self.limit(&table::MEMORY_LIMIT, memory.usage_limit, u64::MAX);
            self.push(&table::SWAP, memory.swap_usage);
            self.push(&table::PAGE_FAULTS, stat.pgfault);
            self.push(&table::MAJOR_PAGE_FAULTS, stat.pgmajfault);
        }
        if let Some(events) = stats.memory_events {
            self.push(&table::MEMORY_LIMIT_HITS, events.max);
            self.push(&table::OOM_KILLS, events.oom_kill);
        }
        self.pids(stats.pids);
        let sum = |of: fn(&berm_cgroup::IoEntry) -> u64| stats.io.iter().map(of).sum::<u64>();
        self.push(&table::READ_BYTES, sum(|io| io.rbytes));
        self.push(&table::WRITTEN_BYTES, sum(|io| io.wbytes));
        self.push(&table::READS, sum(|io| io.rios));
        self.push(&table::WRITES, sum(|io| io.wios));
        self.pressure("cpu", stats.cpu_psi);
        self.pressure("io", stats.io_psi);
        self.pressure("memory", stats.memory_psi);
    }

    fn memory(&mut self, usage: u64, peak: u64, inactive_file: u64) {
        self.push(&table::MEMORY, usage);
        if peak > 0 {
            self.push(&table::MEMORY_PEAK, peak);
        }
        self.push(
            &table::MEMORY_WORKING_SET,
            usage.saturating_sub(inactive_file),
        );
    }

    fn limit(&mut self, definition: &Definition, limit: u64, endless: u64) {
        if limit < endless {
            self.push(definition, limit);
        }
    }

    fn pids(&mut self, pids: Option<PidsStats>) {
        let Some(pids) = pids else { return };
        self.push(&table::TASKS, pids.current);
        // 0 on v1: no limit.
        if pids.limit > 0 {
            self.limit(&table::TASKS_LIMIT, pids.limit, u64::MAX);
        }
    }

    fn blkio(&mut self, blkio: &BlkioStats) {
        let sum = |entries: &[BlkioEntry], op: &str| {
            let of_op = entries.iter().filter(|entry| entry.op == op);
            of_op.map(|entry| entry.value).sum::<u64>()
        };
        let (bytes, number) = (
            &blkio.io_service_bytes_recursive,
            &blkio.io_serviced_recursive,
        );
        self.push(&table::READ_BYTES, sum(bytes, "Read"));
        self.push(&table::WRITTEN_BYTES, sum(bytes, "Write"));
        self.push(&table::READS, sum(number, "Read"));
        self.push(&table::WRITES, sum(number, "Write"));
    }

    fn pressure(&mut self, resource: &str, pressure: Option<Pressure>) {
        let Some(Pressure { some, full }) = pressure else {
            return;
        };
        for (kind, line) in [("some", some), ("full", full)] {
            let Some(line) = line else { continue };
            let labels = [
                ("container", self.id),
                ("kind", kind),
                ("resource", resource),
            ];
            let total = Number::seconds(line.total.saturating_mul(1000));
            self.out.push(&table::STALLED, &labels, total);
        }
    }
}
