//! Every metric of a native sandbox.

use berm_metrics::{Definition, Label, Type};

/// The whole of a timed call.
pub(super) const WHOLE: &str = "whole";
/// The parts that [`crate::phase_done`] marks in a timed call.
pub(super) const PHASES: [&str; 10] = [
    "spec", "plan", "cgroup", "clone", "init", "proc", "stage", "stdio", "gate", WHOLE,
];
const CALLS: &[&str] = &["create", "start", "exec"];
pub(super) const STATES: &[&str] = &["creating", "created", "running", "paused", "stopped"];

const NONE: &[Label] = &[];
const INTERFACE: &[Label] = &[("interface", &[])];
const CONTAINER: &[Label] = &[("container", &[])];
const PRESSURE: &[Label] = &[
    ("container", &[]),
    ("kind", &["full", "some"]),
    ("resource", &["cpu", "io", "memory"]),
];

/// Defines constants and the list of them all.
macro_rules! table {
    ($($id:ident: $kind:ident $name:literal $labels:expr, $help:literal;)*) => {
        $(pub(super) const $id: Definition = Definition {
            name: concat!("berm_", $name),
            kind: Type::$kind,
            labels: $labels,
            help: $help,
        };)*

        pub(super) static ALL: &[Definition] = &[$($id),*];
    };
}

table! {
    CONTAINERS: Gauge "containers" &[("state", STATES)], "Containers that are not deleted, by state.";
    EXECS: Gauge "execs" NONE, "Execs that run.";
    CONTAINER_STARTS: Counter "container_starts_total" NONE, "Containers that were started; more than there are containers in the pod's spec: restarts.";
    CONTAINER_EXITS: Counter "container_exits_total" NONE, "Containers that have ended.";
    EXEC_STARTS: Counter "exec_starts_total" NONE, "Execs that were started by containerd.";
    EXEC_EXITS: Counter "exec_exits_total" NONE, "Execs that have ended.";
    PHASE_SECONDS: Histogram "call_phase_seconds" &[("call", CALLS), ("phase", &PHASES)], "How long calls took that bring a process to life, whole and by phase.";

    NET_RX_BYTES: Counter "network_receive_bytes_total" INTERFACE, "Bytes received (/proc/PID/net/dev).";
    NET_RX_PACKETS: Counter "network_receive_packets_total" INTERFACE, "Packets received.";
    NET_RX_ERRORS: Counter "network_receive_errors_total" INTERFACE, "Packets received with an error.";
    NET_RX_DROPPED: Counter "network_receive_dropped_total" INTERFACE, "Packets received and dropped.";
    NET_TX_BYTES: Counter "network_transmit_bytes_total" INTERFACE, "Bytes sent.";
    NET_TX_PACKETS: Counter "network_transmit_packets_total" INTERFACE, "Packets sent.";
    NET_TX_ERRORS: Counter "network_transmit_errors_total" INTERFACE, "Packets not sent for an error.";
    NET_TX_DROPPED: Counter "network_transmit_dropped_total" INTERFACE, "Packets dropped before they were sent.";

    CPU: Counter "container_cpu_seconds_total" CONTAINER, "CPU time (v1 cpuacct.usage, v2 cpu.stat usage_usec).";
    CPU_USER: Counter "container_cpu_user_seconds_total" CONTAINER, "CPU time in user mode; on v1 to 10 ms.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" CONTAINER, "CPU time in the kernel; on v1 to 10 ms.";
    CPU_PERIODS: Counter "container_cpu_periods_total" CONTAINER, "Periods with a CPU quota in force (cpu.stat nr_periods).";
    CPU_THROTTLED_PERIODS: Counter "container_cpu_throttled_periods_total" CONTAINER, "Periods in which the quota ran out (cpu.stat nr_throttled).";
    CPU_THROTTLED: Counter "container_cpu_throttled_seconds_total" CONTAINER, "Time spent waiting for the next period.";

    MEMORY: Gauge "container_memory_usage_bytes" CONTAINER, "Memory, page cache included (v1 memory.usage_in_bytes, v2 memory.current).";
    MEMORY_PEAK: Gauge "container_memory_peak_bytes" CONTAINER, "The most memory that there ever was in use (v1 memory.max_usage_in_bytes, v2 memory.peak).";
    MEMORY_LIMIT: Gauge "container_memory_limit_bytes" CONTAINER, "Limit of memory; no row: no limit.";
    MEMORY_ANON: Gauge "container_memory_anonymous_bytes" CONTAINER, "Memory that belongs to no file (v1 total_rss, v2 anon).";
    MEMORY_CACHE: Gauge "container_memory_cache_bytes" CONTAINER, "Page cache, tmpfs included (v1 total_cache, v2 file).";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" CONTAINER, "Memory less the page cache that was not used of late.";
    SWAP: Gauge "container_memory_swap_bytes" CONTAINER, "Swap.";
    MEMORY_LIMIT_HITS: Counter "container_memory_limit_hits_total" CONTAINER, "How often the limit of memory was hit (v1 memory.failcnt, v2 memory.events max).";
    OOM_KILLS: Counter "container_oom_kills_total" CONTAINER, "Processes that the kernel killed for want of memory.";
    PAGE_FAULTS: Counter "container_page_faults_total" CONTAINER, "Page faults.";
    MAJOR_PAGE_FAULTS: Counter "container_major_page_faults_total" CONTAINER, "Page faults that had to wait for a disk.";

    TASKS: Gauge "container_tasks" CONTAINER, "Processes and threads (pids.current).";
    TASKS_LIMIT: Gauge "container_tasks_limit" CONTAINER, "Limit of processes and threads; no row: no limit.";

    READ_BYTES: Counter "container_block_read_bytes_total" CONTAINER, "Bytes read from block devices (v1 blkio.throttle.io_service_bytes_recursive, v2 io.stat).";
    WRITTEN_BYTES: Counter "container_block_written_bytes_total" CONTAINER, "Bytes written to block devices.";
    READS: Counter "container_block_reads_total" CONTAINER, "Reads from block devices.";
    WRITES: Counter "container_block_writes_total" CONTAINER, "Writes to block devices.";

    STALLED: Counter "container_pressure_seconds_total" PRESSURE, "Time in which some or all tasks waited for a resource (cgroup v2 *.pressure).";
}

/// In the order of an interface's counters.
pub(super) const NETWORK: [Definition; 8] = [
    NET_RX_BYTES,
    NET_RX_PACKETS,
    NET_RX_ERRORS,
    NET_RX_DROPPED,
    NET_TX_BYTES,
    NET_TX_PACKETS,
    NET_TX_ERRORS,
    NET_TX_DROPPED,
];
