//! `containerManager.Event`: figures under gVisor's names, which are runc's.
//!
//! Beyond gVisor's: `cpu.throttling`, `blkio` and the `psi` of each resource under runc's names,
//! and `memory.oomKills`. Each figure is the container's own, from its cgroup; the network's are
//! those of the pod's namespace, which its containers share.

use std::collections::BTreeMap;
use std::io::Read;

use berm_cgroup::{
    BlkioEntry, IoEntry, MemoryEntry, PidsStats, Pressure, PressureLine, Pressures, Stats, StatsV1,
    StatsV2,
};
use berm_urpc::{CallError, Reply};
use serde::Serialize;

use crate::live::{Live, Sandbox};

/// Largest `/proc/<pid>/net/dev` that is read: over 500 interfaces.
const MAX_NET_DEV: u64 = 64 << 10;

#[derive(Serialize)]
struct EventOut {
    event: Event,
    /// CPU time in nanoseconds, of every container of the sandbox.
    #[serde(rename = "containerUsage")]
    container_usage: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Event {
    r#type: &'static str,
    id: String,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    cpu: Cpu,
    memory: Memory,
    pids: Pids,
    blkio: BlkIo,
    network_interfaces: Vec<Interface>,
}

#[derive(Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    /// Periods of the quota in which something ran.
    periods: u64,
    /// Those in which it was used up.
    throttled_periods: u64,
    /// Nanoseconds, of all CPUs together.
    throttled_time: u64,
}

/// Pressure stall information (the kernel's accounting/psi.rst).
#[derive(Serialize)]
struct Psi {
    some: Stall,
    full: Stall,
}

/// Percent of the last 10, 60 and 300 s; µs in all.
#[derive(Default, Serialize)]
struct Stall {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct BlkIo {
    /// Bytes.
    io_service_bytes_recursive: Vec<BlkIoEntry>,
    /// Operations.
    io_serviced_recursive: Vec<BlkIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, PartialEq, Serialize)]
struct BlkIoEntry {
    major: u64,
    minor: u64,
    /// `Read`, `Write`, and on v1 others beside.
    op: String,
    value: u64,
}

/// Nanoseconds.
#[derive(Serialize)]
struct CpuUsage {
    kernel: u64,
    user: u64,
    total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    percpu: Vec<u64>,
}

/// Bytes.
#[derive(Default, Serialize)]
struct Memory {
    cache: u64,
    usage: Entry,
    swap: Entry,
    kernel: Entry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: Entry,
    /// Processes that the kernel killed for want of memory.
    #[serde(rename = "oomKills")]
    oom_kills: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Default, Serialize)]
struct Entry {
    limit: u64,
    usage: u64,
    max: u64,
    failcnt: u64,
}

#[derive(Default, Serialize)]
struct Pids {
    current: u64,
    limit: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Interface {
    pub(crate) name: String,
    rx_bytes: u64,
    rx_packets: u64,
    rx_errors: u64,
    rx_dropped: u64,
    tx_bytes: u64,
    tx_packets: u64,
    tx_errors: u64,
    tx_dropped: u64,
}

impl Sandbox {
    pub(super) fn control_event(&self, id: &str) -> Result<Reply, CallError> {
        let stats = self.stats(id)?;
        let pressures = match &stats {
            Stats::V1(_) => self.pressures(id)?,
            Stats::V2(v2) => Pressures {
                cpu: v2.cpu_psi,
                memory: v2.memory_psi,
                io: v2.io_psi,
            },
        };
        let container_usage = self
            .tasks()
            .into_iter()
            // One that ends just now has no figures: it is left out.
            .filter_map(|id| Some((id.clone(), cpu(&self.stats(&id).ok()?).total)))
            .collect();
        Reply::of(&EventOut {
            event: Event {
                r#type: "stats",
                id: id.to_owned(),
                data: Data {
                    cpu: Cpu {
                        usage: cpu(&stats),
                        throttling: throttling(&stats),
                        psi: pressures.cpu.map(psi),
                    },
                    memory: Memory {
                        psi: pressures.memory.map(psi),
                        ..memory(&stats)
                    },
                    pids: pids(&stats),
                    blkio: BlkIo {
                        psi: pressures.io.map(psi),
                        ..blkio(&stats)
                    },
                    network_interfaces: self.0.interfaces(),
                },
            },
            container_usage,
        })
    }
}

impl Interface {
    /// Received, then sent: bytes, packets, errors, dropped.
    pub(crate) fn counters(&self) -> [u64; 8] {
        [
            self.rx_bytes,
            self.rx_packets,
            self.rx_errors,
            self.rx_dropped,
            self.tx_bytes,
            self.tx_packets,
            self.tx_errors,
            self.tx_dropped,
        ]
    }
}

impl Live {
    /// The counters of the pod's network namespace, as its PID 1 sees them.
    pub(crate) fn interfaces(&self) -> Vec<Interface> {
        if *self.gone.borrow() {
            return Vec::new();
        }
        let mut text = String::new();
        let read = std::fs::File::open(format!("/proc/{}/net/dev", self.record.pid))
            .and_then(|file| file.take(MAX_NET_DEV).read_to_string(&mut text));
        match read {
            Ok(_) => text.lines().filter_map(interface).collect(),
            Err(e) => {
                log::debug!("call=Event read(net/dev) err={e}");
                Vec::new()
            }
        }
    }
}

/// `  eth0: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes packets errs drop …`
fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.rsplit_once(':')?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    let &[
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        _,
        _,
        _,
        _,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..,
    ] = numbers.as_slice()
    else {
        return None;
    };
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
    })
}

fn cpu(stats: &Stats) -> CpuUsage {
    match stats {
        Stats::V1(v1) => {
            let cpu = v1.cpu.as_ref();
            CpuUsage {
                kernel: cpu.map_or(0, |c| c.kernel),
                user: cpu.map_or(0, |c| c.user),
                total: cpu.map_or(0, |c| c.total),
                percpu: cpu.map_or_else(Vec::new, |c| c.per_cpu.clone()),
            }
        }
        Stats::V2(v2) => CpuUsage {
            kernel: v2.cpu.system_usec * 1000,
            user: v2.cpu.user_usec * 1000,
            total: v2.cpu.usage_usec * 1000,
            percpu: Vec::new(),
        },
    }
}

fn throttling(stats: &Stats) -> Throttling {
    match stats {
        Stats::V1(v1) => v1
            .cpu
            .as_ref()
            .map_or_else(Throttling::default, |cpu| Throttling {
                periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_time,
            }),
        Stats::V2(v2) => Throttling {
            periods: v2.cpu.nr_periods,
            throttled_periods: v2.cpu.nr_throttled,
            throttled_time: v2.cpu.throttled_usec.saturating_mul(1000),
        },
    }
}

fn psi(pressure: Pressure) -> Psi {
    let stall = |line: Option<PressureLine>| {
        line.map_or_else(Stall::default, |line| Stall {
            avg10: line.avg10,
            avg60: line.avg60,
            avg300: line.avg300,
            total: line.total,
        })
    };
    Psi {
        some: stall(pressure.some),
        full: stall(pressure.full),
    }
}

fn blkio(stats: &Stats) -> BlkIo {
    match stats {
        Stats::V1(v1) => v1
            .blkio
            .as_ref()
            .map_or_else(BlkIo::default, |blkio| BlkIo {
                io_service_bytes_recursive: entries(&blkio.io_service_bytes_recursive),
                io_serviced_recursive: entries(&blkio.io_serviced_recursive),
                psi: None,
            }),
        Stats::V2(v2) => BlkIo {
            io_service_bytes_recursive: of_devices(&v2.io, |io| [io.rbytes, io.wbytes]),
            io_serviced_recursive: of_devices(&v2.io, |io| [io.rios, io.wios]),
            psi: None,
        },
    }
}

fn entries(found: &[BlkioEntry]) -> Vec<BlkIoEntry> {
    let entry = |entry: &BlkioEntry| BlkIoEntry {
        major: entry.major,
        minor: entry.minor,
        op: entry.op.clone(),
        value: entry.value,
    };
    found.iter().map(entry).collect()
}

/// v2 has one line for each device, runc's form one entry for each device and operation.
fn of_devices(devices: &[IoEntry], values: impl Fn(&IoEntry) -> [u64; 2]) -> Vec<BlkIoEntry> {
    let of = |io: &IoEntry| {
        let (major, minor) = (io.major, io.minor);
        let pairs = ["Read", "Write"].into_iter().zip(values(io));
        pairs
            .map(|(op, value)| BlkIoEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
            })
            .collect::<Vec<_>>()
    };
    devices.iter().flat_map(of).collect()
}

fn memory(stats: &Stats) -> Memory {
    match stats {
        Stats::V1(v1) => memory_v1(v1),
        Stats::V2(v2) => memory_v2(v2),
    }
}

fn memory_v1(stats: &StatsV1) -> Memory {
    let entry = |entry: &MemoryEntry| Entry {
        limit: entry.limit,
        usage: entry.usage,
        max: entry.max,
        failcnt: entry.failcnt,
    };
    stats
        .memory
        .as_ref()
        .map_or_else(Memory::default, |memory| Memory {
            cache: memory.stat.cache,
            usage: entry(&memory.usage),
            swap: entry(&memory.swap),
            kernel: entry(&memory.kernel),
            kernel_tcp: entry(&memory.kernel_tcp),
            oom_kills: stats.oom_control.map_or(0, |oom| oom.oom_kill),
            psi: None,
        })
}

fn memory_v2(stats: &StatsV2) -> Memory {
    let Some(memory) = &stats.memory else {
        return Memory::default();
    };
    Memory {
        cache: memory.stat.file,
        usage: Entry {
            limit: memory.usage_limit,
            usage: memory.usage,
            max: memory.max_usage,
            failcnt: stats.memory_events.map_or(0, |events| events.max),
        },
        swap: Entry {
            limit: memory.swap_limit,
            usage: memory.swap_usage,
            max: memory.swap_max_usage,
            failcnt: 0,
        },
        kernel: Entry {
            usage: memory.stat.kernel_stack + memory.stat.slab,
            ..Entry::default()
        },
        kernel_tcp: Entry {
            usage: memory.stat.sock,
            ..Entry::default()
        },
        oom_kills: stats.memory_events.map_or(0, |events| events.oom_kill),
        psi: None,
    }
}

fn pids(stats: &Stats) -> Pids {
    let pids: Option<PidsStats> = match stats {
        Stats::V1(v1) => v1.pids,
        Stats::V2(v2) => v2.pids,
    };
    pids.map_or_else(Pids::default, |pids| Pids {
        current: pids.current,
        limit: pids.limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_kernels_table_and_its_head_is_not() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    2464      30    1    2    0     0          0         0     3464      31    3    4    0     0       0          0
eth0:1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
";
        let found: Vec<_> = table.lines().filter_map(interface).collect();
        let lo = Interface {
            name: "lo".into(),
            rx_bytes: 2464,
            rx_packets: 30,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 3464,
            tx_packets: 31,
            tx_errors: 3,
            tx_dropped: 4,
        };
        assert_eq!(found[0], lo);
        assert_eq!(
            (found[1].name.as_str(), found[1].tx_dropped),
            ("eth0:1", 12)
        );
        assert_eq!(found.len(), 2);
    }
}
