//! Limits as properties of a unit.
//!
//! systemd writes the files of these limits itself, whenever it likes (`daemon-reload`), so it has
//! to know them, although the scope is delegated. What it has no property for is in the files
//! alone and is left alone by it. The list and the conversions are runc's.

use super::wire::Value;
use crate::limit::v2;
use crate::{Error, Resources};

/// `USEC_INFINITY` and `CGROUP_LIMIT_MAX`.
const INFINITY: u64 = u64::MAX;
/// The kernel's default period, µs.
const PERIOD: u64 = 100_000;
/// systemd keeps quotas as whole percents of a CPU: 10 ms of each second.
const PERCENT: u64 = 10_000;

/// Versions of systemd that brought something.
const HAS_PERIOD: u32 = 242;
const HAS_CPUSET: u32 = 244;
const HAS_IDLE: u32 = 252;

pub(super) type Properties = Vec<(&'static str, Value)>;

/// What systemd of this version can be told of `limits`.
pub(super) fn of(limits: &Resources, version: u32) -> Result<Properties, Error> {
    let mut all = Properties::new();
    memory(limits, &mut all)?;
    cpu(limits, version, &mut all);
    if let Some(limit) = limits.pids {
        all.push(("TasksMax", number(tasks_max(limit))));
    }
    let lists = [
        ("AllowedCPUs", &limits.cpu.cpus),
        ("AllowedMemoryNodes", &limits.cpu.mems),
    ];
    for (name, list) in lists {
        cpuset(name, list.as_deref().unwrap_or_default(), version, &mut all);
    }
    for (file, value) in &limits.unified {
        unified(file, value.trim(), version, &mut all);
    }
    Ok(all)
}

/// The limits with a quota of whole percents, as systemd will write it.
pub(crate) fn rounded(limits: &Resources) -> Resources {
    let mut limits = limits.clone();
    let period = limits.cpu.period.filter(|p| *p != 0).unwrap_or(PERIOD);
    limits.cpu.quota = limits.cpu.quota.map(|quota| match u64::try_from(quota) {
        Ok(quota @ 1..) => {
            let rounded = u128::from(per_second(quota, period)) * u128::from(period) / 1_000_000;
            i64::try_from(rounded).unwrap_or(i64::MAX)
        }
        _ => quota,
    });
    limits
}

/// µs of CPU time in each second, rounded up to whole percents.
fn per_second(quota: u64, period: u64) -> u64 {
    let exact = u128::from(quota) * 1_000_000 / u128::from(period.max(1));
    u64::try_from(exact)
        .ok()
        .and_then(|exact| exact.checked_next_multiple_of(PERCENT))
        .unwrap_or(INFINITY)
}

fn memory(limits: &Resources, all: &mut Properties) -> Result<(), Error> {
    let memory = &limits.memory;
    let named = |value: Option<i64>| value.filter(|value| *value != 0);
    if let Some(limit) = named(memory.limit) {
        all.push(("MemoryMax", number(bytes(limit))));
    }
    if let Some(low) = named(memory.reservation) {
        all.push(("MemoryLow", number(bytes(low))));
    }
    if let Some(swap) = v2::swap_max(named(memory.limit), named(memory.swap))? {
        all.push(("MemorySwapMax", number(bytes(swap))));
    }
    Ok(())
}

fn cpu(limits: &Resources, version: u32, all: &mut Properties) {
    let cpu = &limits.cpu;
    if cpu.idle == Some(1) && version >= HAS_IDLE {
        // A weight of 0 is systemd's "idle".
        all.push(("CPUWeight", number(0)));
    } else if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        all.push(("CPUWeight", number(v2::cpu_weight(shares))));
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    quota_and_period(quota, cpu.period.filter(|p| *p != 0), version, all);
}

fn quota_and_period(quota: Option<i64>, period: Option<u64>, version: u32, all: &mut Properties) {
    if let Some(period) = period.filter(|_| version >= HAS_PERIOD) {
        all.push(("CPUQuotaPeriodUSec", number(period)));
    }
    if quota.is_none() && period.is_none() {
        return;
    }
    let per_second = match quota.map(u64::try_from) {
        Some(Ok(quota @ 1..)) => per_second(quota, period.unwrap_or(PERIOD)),
        _ => INFINITY,
    };
    all.push(("CPUQuotaPerSecUSec", number(per_second)));
}

fn cpuset(name: &'static str, list: &str, version: u32, all: &mut Properties) {
    if version >= HAS_CPUSET
        && let Some(mask) = mask(list).filter(|mask| !mask.is_empty())
    {
        all.push((name, Value::Bytes(mask)));
    }
}

/// A file of `unified` that systemd knows; the others are in the files alone. A value that cannot
/// be read here is for the kernel to refuse.
fn unified(file: &str, value: &str, version: u32, all: &mut Properties) {
    let limit = match value {
        "max" => Some(INFINITY),
        value => value.parse().ok(),
    };
    let name = match file {
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let quota = words.next().and_then(|word| word.parse().ok());
            let period = words.next().and_then(|word| word.parse().ok());
            return quota_and_period(quota.or(Some(-1)), period, version, all);
        }
        "cpuset.cpus" => return cpuset("AllowedCPUs", value, version, all),
        "cpuset.mems" => return cpuset("AllowedMemoryNodes", value, version, all),
        "cpu.idle" if value == "1" && version >= HAS_IDLE => {
            all.retain(|(name, _)| *name != "CPUWeight");
            return all.push(("CPUWeight", number(0)));
        }
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        _ => return,
    };
    if let Some(limit) = limit {
        all.retain(|(other, _)| *other != name);
        all.push((name, number(limit)));
    }
}

fn number(value: u64) -> Value {
    Value::Number(value)
}

/// -1 is "no limit".
fn bytes(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

/// systemd takes no 0.
fn tasks_max(limit: i64) -> u64 {
    u64::try_from(limit).map_or(INFINITY, |limit| limit.max(1))
}

/// "0-2,7" as bits, the first number in the lowest bit of the first byte. `None` for what is no
/// such list, or names more CPUs than any kernel has.
fn mask(list: &str) -> Option<Vec<u8>> {
    const MOST: usize = 8192;
    let mut mask = Vec::new();
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|range| !range.is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last >= MOST {
            return None;
        }
        for number in first..=last {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0);
            }
            mask[number / 8] |= 1 << (number % 8);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Memory};

    fn shown(limits: &Resources, version: u32) -> Vec<String> {
        let show = |(name, value): (&str, Value)| match value {
            Value::Number(INFINITY) => format!("{name}=infinity"),
            Value::Number(value) => format!("{name}={value}"),
            value => format!("{name}={value:?}"),
        };
        of(limits, version).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn limits_become_the_properties_that_runc_sets() {
        let limits = Resources {
            cpu: Cpu {
                shares: Some(1024),
                quota: Some(12_345),
                period: Some(100_000),
                cpus: Some("0-2,9".into()),
                ..Cpu::default()
            },
            memory: Memory {
                limit: Some(100),
                swap: Some(300),
                reservation: Some(-1),
                ..Memory::default()
            },
            pids: Some(0),
            unified: vec![
                ("io.weight".into(), "5".into()),
                ("memory.high".into(), "max".into()),
                ("pids.max".into(), "7".into()),
            ],
            ..Resources::default()
        };
        let want = [
            "MemoryMax=100",
            "MemoryLow=infinity",
            "MemorySwapMax=200",
            "CPUWeight=100",
            "CPUQuotaPeriodUSec=100000",
            "CPUQuotaPerSecUSec=130000",
            "AllowedCPUs=Bytes([7, 2])",
            "MemoryHigh=infinity",
            "TasksMax=7",
        ];
        assert_eq!(shown(&limits, 252), want);
        assert_eq!(rounded(&limits).cpu.quota, Some(13_000));
        let old = shown(&limits, 239);
        assert!(
            !old.iter()
                .any(|p| p.starts_with("Allowed") || p.contains("Period")),
            "{old:?}"
        );
        assert!(shown(&Resources::default(), 252).is_empty());
    }

    #[test]
    fn an_idle_group_and_one_without_a_quota_are_told_in_systemds_words() {
        let cpu = |quota, idle, shares| Resources {
            cpu: Cpu {
                quota,
                idle,
                shares,
                ..Cpu::default()
            },
            ..Resources::default()
        };
        assert_eq!(
            shown(&cpu(Some(-1), None, None), 252),
            ["CPUQuotaPerSecUSec=infinity"]
        );
        assert_eq!(shown(&cpu(None, Some(1), Some(5)), 252), ["CPUWeight=0"]);
        assert_eq!(shown(&cpu(None, Some(1), Some(2)), 250), ["CPUWeight=1"]);
        assert_eq!(rounded(&cpu(Some(-1), None, None)).cpu.quota, Some(-1));
    }

    #[test]
    fn a_list_that_is_none_is_left_to_the_kernel() {
        assert_eq!(mask("0,8"), Some(vec![1, 1]));
        for wrong in ["a", "3-1", "0-99999999999", "1-2-3"] {
            assert_eq!(mask(wrong), None, "{wrong}");
        }
    }
}
