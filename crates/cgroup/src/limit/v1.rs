//! v1's files and values.

use super::{Absent, Setting, bad, bytes, page_size, pids_max, rdma, set, weight};
use crate::controller::Controller::{
    self, Blkio, Cpu, Cpuset, Hugetlb, Memory, NetCls, NetPrio, Pids,
};
use crate::resources::Throttle;
use crate::{Error, Resources};

/// Everything that `r` asks for. Order matters only where [`super::Cgroup::limit`] says.
pub(super) fn settings(r: &Resources) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    cpuset(r, &mut settings);
    memory(r, &mut settings)?;
    cpu(r, &mut settings)?;
    if let Some(limit) = r.pids {
        settings.push(Setting::new(
            "linux.resources.pids.limit",
            Pids,
            "pids.max",
            pids_max(limit),
        ));
    }
    block_io(r, &mut settings)?;
    hugetlb(r, &mut settings)?;
    network(r, &mut settings)?;
    rdma(r, &mut settings)?;
    if let Some((file, _)) = r.unified.first() {
        let reason = format!("{file} is a file of cgroup v2, and this host has v1");
        return Err(Error::Unsupported {
            field: "linux.resources.unified",
            reason,
        });
    }
    Ok(settings)
}

fn cpuset(r: &Resources, settings: &mut Vec<Setting>) {
    let lists = [
        ("linux.resources.cpu.cpus", "cpuset.cpus", &r.cpu.cpus),
        ("linux.resources.cpu.mems", "cpuset.mems", &r.cpu.mems),
    ];
    for (field, file, list) in lists {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            settings.push(Setting::new(field, Cpuset, file, list));
        }
    }
}

fn memory(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let m = &r.memory;
    let mut push = |field, file: &str, value: i64, absent| {
        settings.push(Setting::new(field, Memory, file, value).absent(absent));
    };
    let limit = bytes("linux.resources.memory.limit", m.limit)?;
    // Memory without limit and no word on swap: both without limit.
    let swap = bytes("linux.resources.memory.swap", m.swap)?.or(limit.filter(|limit| *limit == -1));
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (limit, swap)
        && swap < limit
    {
        let reason = "memory+swap is below the memory limit";
        return Err(bad("linux.resources.memory.swap", swap, reason));
    }
    if let Some(limit) = limit {
        push(
            "linux.resources.memory.limit",
            "memory.limit_in_bytes",
            limit,
            Absent::Refuse,
        );
    }
    if let Some(swap) = swap {
        let absent = if swap == -1 {
            Absent::Ignore
        } else {
            Absent::Refuse
        };
        push(
            "linux.resources.memory.swap",
            "memory.memsw.limit_in_bytes",
            swap,
            absent,
        );
    }
    if let Some(soft) = bytes("linux.resources.memory.reservation", m.reservation)? {
        let field = "linux.resources.memory.reservation";
        push(field, "memory.soft_limit_in_bytes", soft, Absent::Refuse);
    }
    match m.swappiness {
        None | Some(..0) => {}
        Some(value @ 0..=100) => {
            push(
                "linux.resources.memory.swappiness",
                "memory.swappiness",
                value,
                Absent::Refuse,
            );
        }
        Some(value) => {
            return Err(bad(
                "linux.resources.memory.swappiness",
                value,
                "is not in 0..=100",
            ));
        }
    }
    if let Some(disable) = m.disable_oom_killer {
        let absent = if disable {
            Absent::Refuse
        } else {
            Absent::Ignore
        };
        let field = "linux.resources.memory.disableOOMKiller";
        push(field, "memory.oom_control", disable.into(), absent);
    }
    Ok(())
}

fn cpu(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    let c = &r.cpu;
    let mut push = |field, file: &str, value: String| {
        settings.push(Setting::new(field, Cpu, file, value));
    };
    if let Some(shares) = set(c.shares) {
        // The kernel would clamp in silence.
        if !(2..=262_144).contains(&shares) {
            return Err(bad(
                "linux.resources.cpu.shares",
                shares,
                "is not in 2..=262144",
            ));
        }
        push(
            "linux.resources.cpu.shares",
            "cpu.shares",
            shares.to_string(),
        );
    }
    if let Some(period) = set(c.period) {
        push(
            "linux.resources.cpu.period",
            "cpu.cfs_period_us",
            period.to_string(),
        );
    }
    if let Some(quota) = set(c.quota) {
        push(
            "linux.resources.cpu.quota",
            "cpu.cfs_quota_us",
            quota.max(-1).to_string(),
        );
    }
    if let Some(burst) = c.burst {
        push(
            "linux.resources.cpu.burst",
            "cpu.cfs_burst_us",
            burst.to_string(),
        );
    }
    if let Some(idle) = c.idle {
        push("linux.resources.cpu.idle", "cpu.idle", idle.to_string());
    }
    if let Some(period) = set(c.realtime_period) {
        push(
            "linux.resources.cpu.realtimePeriod",
            "cpu.rt_period_us",
            period.to_string(),
        );
    }
    if let Some(runtime) = set(c.realtime_runtime) {
        push(
            "linux.resources.cpu.realtimeRuntime",
            "cpu.rt_runtime_us",
            runtime.to_string(),
        );
    }
    Ok(())
}

fn block_io(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const WEIGHT: &str = "linux.resources.blockIO.weight";
    const DEVICE: &str = "linux.resources.blockIO.weightDevice";
    const LEAF: &str = "linux.resources.blockIO.leafWeight";
    let b = &r.block_io;
    // The scheduler bfq has its own names for what cfq had.
    let either = |field, file: &str, bfq: &str, value: String| {
        let instead = Absent::Instead(bfq.to_owned(), value.clone());
        Setting::new(field, Blkio, file, value).absent(instead)
    };
    if let Some(weight) = weight(WEIGHT, b.weight)? {
        settings.push(either(
            WEIGHT,
            "blkio.weight",
            "blkio.bfq.weight",
            weight.to_string(),
        ));
    }
    if let Some(leaf) = weight(LEAF, b.leaf_weight)? {
        settings.push(Setting::new(LEAF, Blkio, "blkio.leaf_weight", leaf));
    }
    for device in &b.weight_device {
        let (major, minor) = (device.major, device.minor);
        if let Some(weight) = weight(DEVICE, device.weight)? {
            let line = format!("{major}:{minor} {weight}");
            settings.push(either(
                DEVICE,
                "blkio.weight_device",
                "blkio.bfq.weight_device",
                line,
            ));
        }
        if let Some(leaf) = weight(DEVICE, device.leaf_weight)? {
            let line = format!("{major}:{minor} {leaf}");
            settings.push(Setting::new(
                DEVICE,
                Blkio,
                "blkio.leaf_weight_device",
                line,
            ));
        }
    }
    let lists: [(_, _, &[Throttle]); 4] = [
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            "read_bps",
            &b.read_bps,
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "write_bps",
            &b.write_bps,
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "read_iops",
            &b.read_iops,
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "write_iops",
            &b.write_iops,
        ),
    ];
    for (field, what, throttles) in lists {
        for Throttle { major, minor, rate } in throttles {
            let file = format!("blkio.throttle.{what}_device");
            settings.push(Setting::new(
                field,
                Blkio,
                file,
                format!("{major}:{minor} {rate}"),
            ));
        }
    }
    Ok(())
}

fn hugetlb(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const FIELD: &str = "linux.resources.hugepageLimits";
    for limit in &r.hugetlb {
        let size = page_size(&limit.page_size)?;
        let mut push = |file: String, absent| {
            settings.push(Setting::new(FIELD, Hugetlb, file, limit.limit).absent(absent));
        };
        push(format!("hugetlb.{size}.limit_in_bytes"), Absent::Refuse);
        // Reservations are counted apart since 5.7.
        push(
            format!("hugetlb.{size}.rsvd.limit_in_bytes"),
            Absent::Ignore,
        );
    }
    Ok(())
}

fn network(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const PRIORITIES: &str = "linux.resources.network.priorities";
    let mut push = |field, controller: Controller, file: &str, value: String| {
        settings.push(Setting::new(field, controller, file, value));
    };
    if let Some(class) = set(r.network.class_id) {
        push(
            "linux.resources.network.classID",
            NetCls,
            "net_cls.classid",
            class.to_string(),
        );
    }
    for (name, priority) in &r.network.priorities {
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(bad(PRIORITIES, name, "is not the name of an interface"));
        }
        push(
            PRIORITIES,
            NetPrio,
            "net_prio.ifpriomap",
            format!("{name} {priority}"),
        );
    }
    Ok(())
}
