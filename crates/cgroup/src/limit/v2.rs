//! v2's files, and the conversions from OCI's v1 values, which are runc's.

use super::{Absent, Setting, bad, bytes, page_size, pids_max, rdma, set, weight};
use crate::controller::Controller::{self, Blkio, Cpu, Cpuset, Hugetlb, Memory, Pids};
use crate::resources::Throttle;
use crate::{Error, Resources};

/// Everything that `r` asks for. Order matters only where [`super::Cgroup::limit`] says, and for
/// `unified`, which has the last word.
pub(super) fn settings(r: &Resources) -> Result<Vec<Setting>, Error> {
    let mut settings = Vec::new();
    refuse_v1_only(r)?;
    cpuset(r, &mut settings);
    memory(r, &mut settings)?;
    cpu(r, &mut settings);
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
    rdma(r, &mut settings)?;
    unified(r, &mut settings)?;
    Ok(settings)
}

/// What v2 has no counterpart for. runc passes over these in silence.
fn refuse_v1_only(r: &Resources) -> Result<(), Error> {
    let fields = [
        (
            "linux.resources.cpu.realtimeRuntime",
            set(r.cpu.realtime_runtime).is_some(),
        ),
        (
            "linux.resources.cpu.realtimePeriod",
            set(r.cpu.realtime_period).is_some(),
        ),
        (
            "linux.resources.memory.swappiness",
            r.memory.swappiness.is_some_and(|s| s >= 0),
        ),
        (
            "linux.resources.memory.disableOOMKiller",
            r.memory.disable_oom_killer == Some(true),
        ),
        (
            "linux.resources.blockIO.leafWeight",
            set(r.block_io.leaf_weight).is_some(),
        ),
        (
            "linux.resources.network.classID",
            set(r.network.class_id).is_some(),
        ),
        (
            "linux.resources.network.priorities",
            !r.network.priorities.is_empty(),
        ),
    ];
    match fields.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            let reason = "cgroup v2 has nothing like it: drop it from the spec".to_owned();
            Err(Error::Unsupported { field, reason })
        }
        None => Ok(()),
    }
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
    const SWAP: &str = "linux.resources.memory.swap";
    let m = &r.memory;
    let limit = bytes("linux.resources.memory.limit", m.limit)?;
    let max = |value: i64| {
        if value == -1 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    if let Some(swap) = swap_max(limit, bytes(SWAP, m.swap)?)? {
        // Without swap there is no file, and nothing to limit.
        let absent = if swap <= 0 {
            Absent::Ignore
        } else {
            Absent::Refuse
        };
        settings.push(Setting::new(SWAP, Memory, "memory.swap.max", max(swap)).absent(absent));
    }
    if let Some(limit) = limit {
        let field = "linux.resources.memory.limit";
        settings.push(Setting::new(field, Memory, "memory.max", max(limit)));
    }
    if let Some(low) = bytes("linux.resources.memory.reservation", m.reservation)? {
        let field = "linux.resources.memory.reservation";
        settings.push(Setting::new(field, Memory, "memory.low", max(low)));
    }
    Ok(())
}

/// OCI limits memory and swap together, v2 swap alone. -1 = no limit, `None` = leave it.
pub(crate) fn swap_max(limit: Option<i64>, swap: Option<i64>) -> Result<Option<i64>, Error> {
    let refuse = |reason| {
        Err(bad(
            "linux.resources.memory.swap",
            swap.unwrap_or(0),
            reason,
        ))
    };
    match (limit, swap) {
        (Some(-1), None) | (_, Some(-1)) => Ok(Some(-1)),
        (_, None) => Ok(None),
        (Some(-1), Some(swap)) => Ok(Some(swap)),
        (None, Some(_)) => refuse("needs a memory limit beside it"),
        (Some(limit), Some(swap)) if swap < limit => {
            refuse("memory+swap is below the memory limit")
        }
        (Some(limit), Some(swap)) => Ok(Some(swap - limit)),
    }
}

fn cpu(r: &Resources, settings: &mut Vec<Setting>) {
    let c = &r.cpu;
    let mut push = |field, file: &str, value: String| {
        settings.push(Setting::new(field, Cpu, file, value));
    };
    if let Some(shares) = set(c.shares) {
        push(
            "linux.resources.cpu.shares",
            "cpu.weight",
            cpu_weight(shares).to_string(),
        );
    }
    let (quota, period) = (set(c.quota), set(c.period));
    if quota.is_some() || period.is_some() {
        let field = match quota {
            Some(_) => "linux.resources.cpu.quota",
            None => "linux.resources.cpu.period",
        };
        let quota = match quota {
            Some(quota @ 1..) => quota.to_string(),
            _ => "max".to_owned(),
        };
        push(
            field,
            "cpu.max",
            format!("{quota} {}", period.unwrap_or(100_000)),
        );
    }
    if let Some(burst) = c.burst {
        push(
            "linux.resources.cpu.burst",
            "cpu.max.burst",
            burst.to_string(),
        );
    }
    if let Some(idle) = c.idle {
        push("linux.resources.cpu.idle", "cpu.idle", idle.to_string());
    }
}

/// v1's shares (2 to 262144, default 1024) as v2's weight (1 to 10000, default 100): a curve
/// through the minimum, the default and the maximum of both. runc has it since 1.3.2, crun
/// since 1.23; the linear one before it gave the default 39.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1.0 to 10000.0
pub(crate) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        3..262_144 => {
            // Below 2^18: exact as f64.
            #[allow(clippy::cast_precision_loss)]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn block_io(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const WEIGHT: &str = "linux.resources.blockIO.weight";
    const DEVICE: &str = "linux.resources.blockIO.weightDevice";
    let b = &r.block_io;
    if let Some(weight) = weight(WEIGHT, b.weight)? {
        let instead = Absent::Instead("io.weight".to_owned(), io_weight(weight).to_string());
        settings.push(Setting::new(WEIGHT, Blkio, "io.bfq.weight", weight).absent(instead));
    }
    for device in &b.weight_device {
        if set(device.leaf_weight).is_some() {
            let reason = "cgroup v2 has no leaf weight".to_owned();
            return Err(Error::Unsupported {
                field: DEVICE,
                reason,
            });
        }
        if let Some(weight) = weight(DEVICE, device.weight)? {
            let line = |weight: u64| format!("{}:{} {weight}", device.major, device.minor);
            let instead = Absent::Instead("io.weight".to_owned(), line(io_weight(weight)));
            let setting = Setting::new(DEVICE, Blkio, "io.bfq.weight", line(weight.into()));
            settings.push(setting.absent(instead));
        }
    }
    let lists: [(_, _, &[Throttle]); 4] = [
        (
            "linux.resources.blockIO.throttleReadBpsDevice",
            "rbps",
            &b.read_bps,
        ),
        (
            "linux.resources.blockIO.throttleWriteBpsDevice",
            "wbps",
            &b.write_bps,
        ),
        (
            "linux.resources.blockIO.throttleReadIOPSDevice",
            "riops",
            &b.read_iops,
        ),
        (
            "linux.resources.blockIO.throttleWriteIOPSDevice",
            "wiops",
            &b.write_iops,
        ),
    ];
    for (field, key, throttles) in lists {
        for Throttle { major, minor, rate } in throttles {
            // v1 lifts a limit with 0, which v2 refuses.
            let rate = if *rate == 0 {
                "max".to_owned()
            } else {
                rate.to_string()
            };
            settings.push(Setting::new(
                field,
                Blkio,
                "io.max",
                format!("{major}:{minor} {key}={rate}"),
            ));
        }
    }
    Ok(())
}

/// v1's 10 to 1000 as v2's 1 to 10000, on a straight line.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn hugetlb(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const FIELD: &str = "linux.resources.hugepageLimits";
    for limit in &r.hugetlb {
        let size = page_size(&limit.page_size)?;
        let mut push = |file: String, absent| {
            settings.push(Setting::new(FIELD, Hugetlb, file, limit.limit).absent(absent));
        };
        push(format!("hugetlb.{size}.max"), Absent::Refuse);
        // Reservations are counted apart since 5.7.
        push(format!("hugetlb.{size}.rsvd.max"), Absent::Ignore);
    }
    Ok(())
}

/// `unified` names files itself. Of `cgroup.*` only the bounds may be set: the others move,
/// freeze, kill or hand down, which is Berm's to do.
fn unified(r: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const FIELD: &str = "linux.resources.unified";
    for (file, value) in &r.unified {
        let Some((prefix, _)) = file.split_once('.').filter(|_| !file.contains('/')) else {
            return Err(bad(FIELD, file, "is not like CONTROLLER.PARAMETER"));
        };
        let controller = match prefix {
            "cgroup" if file.starts_with("cgroup.max.") => None,
            "cgroup" => return Err(bad(FIELD, file, "is not for a container to set")),
            name => match Controller::by_v2_name(name) {
                Some(controller) => Some(controller),
                None => {
                    let reason = format!("{file} belongs to no controller that Berm knows");
                    return Err(Error::Unsupported {
                        field: FIELD,
                        reason,
                    });
                }
            },
        };
        for line in value.lines() {
            settings.push(Setting {
                field: FIELD,
                controller,
                file: file.clone(),
                value: line.to_owned(),
                absent: Absent::Refuse,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_on_runcs_curve() {
        // The pairs of opencontainers/cgroups' own test.
        let pairs = [
            (1, 1),
            (2, 1),
            (3, 2),
            (1024, 100),
            (262_143, 10_000),
            (262_144, 10_000),
            (262_145, 10_000),
        ];
        for (shares, weight) in pairs {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn memory_and_swap_together_become_swap_alone() {
        let cases = [
            (None, None, Ok(None)),
            (Some(100), None, Ok(None)),
            (Some(-1), None, Ok(Some(-1))),
            (Some(100), Some(-1), Ok(Some(-1))),
            (Some(100), Some(100), Ok(Some(0))),
            (Some(100), Some(300), Ok(Some(200))),
            (Some(-1), Some(300), Ok(Some(300))),
            (None, Some(300), Err(())),
            (Some(300), Some(100), Err(())),
        ];
        for (limit, swap, want) in cases {
            assert_eq!(
                swap_max(limit, swap).map_err(|_| ()),
                want,
                "{limit:?} {swap:?}"
            );
        }
    }

    #[test]
    fn block_io_weights_run_from_1_to_10000() {
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }
}
