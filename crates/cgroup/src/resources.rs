//! What OCI's `linux.resources` asks for, as plain data.
//!
//! Only crate `plan` knows the OCI types; it fills these. Two things have no field here:
//! `memory.kernel` and `memory.kernelTCP`, which the kernel dropped (5.16) and runc ignores.

use serde::{Deserialize, Serialize};

/// Limits of one cgroup. What is `None`, empty or (where noted) 0 stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// `linux.resources.cpu`
    pub cpu: Cpu,
    /// `linux.resources.memory`
    pub memory: Memory,
    /// `linux.resources.pids.limit`: below 0 = no limit; 0 is written as 1, as runc does.
    pub pids: Option<i64>,
    /// `linux.resources.blockIO`
    pub block_io: BlockIo,
    /// `linux.resources.hugepageLimits`
    pub hugetlb: Vec<HugetlbLimit>,
    /// `linux.resources.network`
    pub network: Network,
    /// `linux.resources.rdma`
    pub rdma: Vec<RdmaLimit>,
    /// `linux.resources.unified`: file name and value, written last and in this order; v2 only.
    pub unified: Vec<(String, String)>,
    /// `linux.resources.devices`, in the spec's order, with [`DeviceRule::defaults`] behind them
    /// for a container. `None` leaves the rules alone; an empty list denies every device.
    pub devices: Option<Vec<DeviceRule>>,
}

/// `linux.resources.cpu`. 0 means unset in every number but `burst` and `idle`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// Relative weight, 2 to 262144; becomes `cpu.weight` on v2.
    pub shares: Option<u64>,
    /// CPU time per period in µs; below 0 = no limit.
    pub quota: Option<i64>,
    /// Unused quota that may be saved up, in µs.
    pub burst: Option<u64>,
    /// Length of a period in µs.
    pub period: Option<u64>,
    /// Realtime budget per period in µs; v1 only.
    pub realtime_runtime: Option<i64>,
    /// Length of a realtime period in µs; v1 only.
    pub realtime_period: Option<u64>,
    /// CPUs as a list ("0-3,5"); empty = unset.
    pub cpus: Option<String>,
    /// Memory nodes as a list; empty = unset.
    pub mems: Option<String>,
    /// 1 = `SCHED_IDLE` for the whole group.
    pub idle: Option<i64>,
}

/// `linux.resources.memory`. Bytes; 0 = unset, -1 = no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Hard limit.
    pub limit: Option<i64>,
    /// Soft limit; becomes `memory.low` on v2.
    pub reservation: Option<i64>,
    /// Limit of memory **and** swap together, also on v2 (converted).
    pub swap: Option<i64>,
    /// 0 to 100; v1 only. Below 0 = unset.
    pub swappiness: Option<i64>,
    /// v1 only.
    pub disable_oom_killer: Option<bool>,
    /// Refuse a limit that is below the present usage (v2; v1's kernel refuses by itself).
    pub check_before_update: bool,
}

/// `linux.resources.blockIO`. Weights 10 to 1000, 0 = unset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    /// Weight of the group.
    pub weight: Option<u16>,
    /// Weight against the group's own children; no kernel since 5.0 has it.
    pub leaf_weight: Option<u16>,
    /// Weight for one device.
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read per second.
    pub read_bps: Vec<Throttle>,
    /// Bytes written per second.
    pub write_bps: Vec<Throttle>,
    /// Reads per second.
    pub read_iops: Vec<Throttle>,
    /// Writes per second.
    pub write_iops: Vec<Throttle>,
}

/// One entry of `blockIO.weightDevice`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeightDevice {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Weight, 10 to 1000.
    pub weight: Option<u16>,
    /// See [`BlockIo::leaf_weight`].
    pub leaf_weight: Option<u16>,
}

/// One entry of the four `blockIO.throttle…Device` lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Bytes or operations per second; 0 lifts the limit.
    pub rate: u64,
}

/// One entry of `hugepageLimits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugetlbLimit {
    /// As the kernel names it: `64KB`, `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// `linux.resources.network`; v1 only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Class of the group's packets; 0 = unset.
    pub class_id: Option<u32>,
    /// Interface and priority.
    pub priorities: Vec<(String, u32)>,
}

/// One entry of `linux.resources.rdma`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdmaLimit {
    /// Name of the device, `mlx5_1`.
    pub device: String,
    /// Open handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

/// Which nodes a device rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeviceType {
    /// `a`: every device, whatever the rule's numbers and access say.
    All,
    /// `b`
    Block,
    /// `c` or `u`
    Char,
}

/// One entry of `linux.resources.devices`. Later rules win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Type of node.
    pub node: DeviceType,
    /// Device number; `None` = any.
    pub major: Option<u32>,
    /// Device number; `None` = any.
    pub minor: Option<u32>,
    /// Letters of `rwm`, at least one.
    pub access: Access,
}

/// A set of read, write and mknod.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Resources {
    /// What [`crate::Cgroup::update`] writes for `self` where `now` is in force: values that the
    /// kernel takes in pairs get the half that is not named, as runc does.
    ///
    /// - quota and period of the CPU: the other one stays as it is;
    /// - memory and swap: v2 limits swap alone, so a change of one sets both. A limit of -1 lifts
    ///   both unless swap is named;
    /// - a group that is idle has no weight (`sched_group_set_shares` in the kernel): shares are
    ///   left out, and set again when it stops to be idle.
    #[must_use]
    pub fn completed(&self, now: &Self) -> Self {
        let mut all = self.clone();
        let (cpu, memory) = (&mut all.cpu, &mut all.memory);
        match (named(cpu.quota), named(cpu.period)) {
            (Some(_), None) => cpu.period = now.cpu.period,
            (None, Some(_)) => cpu.quota = now.cpu.quota,
            _ => {}
        }
        match (named(memory.limit), named(memory.swap)) {
            (Some(limit), None) if limit != -1 => memory.swap = now.memory.swap,
            (None, Some(_)) => memory.limit = now.memory.limit,
            _ => {}
        }
        match cpu.idle.or(now.cpu.idle) {
            Some(1) => cpu.shares = None,
            Some(_) if now.cpu.idle == Some(1) => {
                cpu.shares = named(cpu.shares).or(now.cpu.shares);
            }
            _ => {}
        }
        all
    }

    /// Adds `update`, which is in force now. What it does not name stays.
    pub fn merge(&mut self, update: &Self) {
        self.cpu.merge(&update.cpu);
        self.memory.merge(&update.memory);
        self.block_io.merge(&update.block_io);
        self.pids = update.pids.or(self.pids);
        put(&mut self.hugetlb, &update.hugetlb, |l| l.page_size.clone());
        self.network.class_id = named(update.network.class_id).or(self.network.class_id);
        let priorities = &update.network.priorities;
        put(&mut self.network.priorities, priorities, |p| p.0.clone());
        put(&mut self.rdma, &update.rdma, |l| l.device.clone());
        put(&mut self.unified, &update.unified, |u| u.0.clone());
        if update.devices.is_some() {
            self.devices.clone_from(&update.devices);
        }
    }
}

impl Cpu {
    fn merge(&mut self, update: &Self) {
        let list = |new: &Option<String>| new.clone().filter(|list| !list.is_empty());
        self.shares = named(update.shares).or(self.shares);
        self.quota = named(update.quota).or(self.quota);
        self.burst = update.burst.or(self.burst);
        self.period = named(update.period).or(self.period);
        self.realtime_runtime = named(update.realtime_runtime).or(self.realtime_runtime);
        self.realtime_period = named(update.realtime_period).or(self.realtime_period);
        self.cpus = list(&update.cpus).or(self.cpus.take());
        self.mems = list(&update.mems).or(self.mems.take());
        self.idle = update.idle.or(self.idle);
    }
}

impl Memory {
    fn merge(&mut self, update: &Self) {
        if named(update.limit) == Some(-1) && named(update.swap).is_none() {
            self.swap = None;
        }
        self.limit = named(update.limit).or(self.limit);
        self.reservation = named(update.reservation).or(self.reservation);
        self.swap = named(update.swap).or(self.swap);
        self.swappiness = update.swappiness.filter(|s| *s >= 0).or(self.swappiness);
        self.disable_oom_killer = update.disable_oom_killer.or(self.disable_oom_killer);
    }
}

impl BlockIo {
    fn merge(&mut self, update: &Self) {
        self.weight = named(update.weight).or(self.weight);
        self.leaf_weight = named(update.leaf_weight).or(self.leaf_weight);
        let weights = &update.weight_device;
        put(&mut self.weight_device, weights, |d| (d.major, d.minor));
        for (now, new) in [
            (&mut self.read_bps, &update.read_bps),
            (&mut self.write_bps, &update.write_bps),
            (&mut self.read_iops, &update.read_iops),
            (&mut self.write_iops, &update.write_iops),
        ] {
            put(now, new, |d| (d.major, d.minor));
        }
    }
}

/// A number of the spec, in which 0 means that it is not there.
fn named<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// Puts each of `new` in the place of the one with the same key, or behind the others.
fn put<T: Clone, K: PartialEq>(list: &mut Vec<T>, new: &[T], key: impl Fn(&T) -> K) {
    for entry in new {
        match list.iter_mut().find(|old| key(old) == key(entry)) {
            Some(old) => *old = entry.clone(),
            None => list.push(entry.clone()),
        }
    }
}

impl Access {
    /// `m`, the kernel's `BPF_DEVCG_ACC_MKNOD`
    pub const MKNOD: Self = Self(1);
    /// `r`, the kernel's `BPF_DEVCG_ACC_READ`
    pub const READ: Self = Self(2);
    /// `w`, the kernel's `BPF_DEVCG_ACC_WRITE`
    pub const WRITE: Self = Self(4);
    /// `rwm`
    pub const ALL: Self = Self(7);

    /// Reads the letters of an OCI rule; `None` for another letter. No letters = no access.
    pub fn parse(letters: &str) -> Option<Self> {
        let mut bits = 0;
        for letter in letters.chars() {
            bits |= match letter {
                'r' => Self::READ.0,
                'w' => Self::WRITE.0,
                'm' => Self::MKNOD.0,
                _ => return None,
            };
        }
        Some(Self(bits))
    }

    /// The bits as the kernel's device programs see them.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// True if nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in `self` alone.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if !self.intersection(bit).is_empty() {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

impl TryFrom<String> for Access {
    type Error = String;

    fn try_from(letters: String) -> Result<Self, String> {
        Self::parse(&letters)
            .ok_or_else(|| format!("access {letters:?} has letters beside r, w, m"))
    }
}

impl DeviceRule {
    /// What every container may do, as runc grants it: make any node, use null, zero, full,
    /// random, urandom, tty, ptmx and ptys. Goes behind the rules of the spec.
    pub fn defaults() -> Vec<Self> {
        const NODES: [(Option<u32>, Option<u32>); 8] = [
            (Some(1), Some(3)), // null
            (Some(1), Some(8)), // random
            (Some(1), Some(7)), // full
            (Some(5), Some(0)), // tty
            (Some(1), Some(5)), // zero
            (Some(1), Some(9)), // urandom
            (Some(5), Some(2)), // ptmx
            (Some(136), None),  // ptys
        ];
        let rule = |node, major, minor, access| Self {
            allow: true,
            node,
            major,
            minor,
            access,
        };
        let mut rules = vec![
            rule(DeviceType::Char, None, None, Access::MKNOD),
            rule(DeviceType::Block, None, None, Access::MKNOD),
        ];
        rules.extend(NODES.map(|(major, minor)| rule(DeviceType::Char, major, minor, Access::ALL)));
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(shares: u64, quota: i64, period: u64, idle: Option<i64>) -> Resources {
        let some = |value| (value != 0).then_some(value);
        let cpu = Cpu {
            shares: some(shares),
            quota: (quota != 0).then_some(quota),
            period: some(period),
            idle,
            ..Cpu::default()
        };
        Resources {
            cpu,
            ..Resources::default()
        }
    }

    fn memory(limit: i64, swap: i64) -> Resources {
        let memory = Memory {
            limit: Some(limit),
            swap: Some(swap),
            ..Memory::default()
        };
        Resources {
            memory,
            ..Resources::default()
        }
    }

    #[test]
    fn an_update_gets_the_other_half_of_a_pair_from_what_is_in_force() {
        let idle = Some(1);
        let cases = [
            (cpu(0, 5, 0, None), cpu(0, 7, 9, None), cpu(0, 5, 9, None)),
            (cpu(0, 0, 5, None), cpu(0, 7, 9, None), cpu(0, 7, 5, None)),
            (cpu(0, 1, 2, None), cpu(0, 7, 9, None), cpu(0, 1, 2, None)),
            (cpu(9, 0, 0, idle), cpu(3, 0, 0, None), cpu(0, 0, 0, idle)),
            (cpu(9, 0, 0, None), cpu(3, 0, 0, idle), cpu(0, 0, 0, None)),
            (
                cpu(0, 0, 0, Some(0)),
                cpu(3, 0, 0, idle),
                cpu(3, 0, 0, Some(0)),
            ),
            (memory(5, 0), memory(3, 8), memory(5, 8)),
            (memory(0, 9), memory(3, 8), memory(3, 9)),
            (memory(-1, 0), memory(3, 8), memory(-1, 0)),
        ];
        for (update, now, want) in cases {
            assert_eq!(update.completed(&now), want, "{update:?} on {now:?}");
        }
    }

    #[test]
    fn what_an_update_does_not_name_stays_in_force() {
        let throttle = |minor, rate| Throttle {
            major: 8,
            minor,
            rate,
        };
        let mut now = Resources {
            pids: Some(7),
            unified: vec![("memory.high".into(), "1".into())],
            block_io: BlockIo {
                read_bps: vec![throttle(0, 1), throttle(16, 2)],
                ..BlockIo::default()
            },
            devices: Some(DeviceRule::defaults()),
            ..memory(100, 200)
        };
        let update = Resources {
            unified: vec![
                ("memory.low".into(), "3".into()),
                ("memory.high".into(), "2".into()),
            ],
            block_io: BlockIo {
                read_bps: vec![throttle(16, 0)],
                ..BlockIo::default()
            },
            ..memory(-1, 0)
        };
        now.merge(&update);
        assert_eq!((now.pids, now.memory.limit), (Some(7), Some(-1)));
        assert_eq!(now.memory.swap, None, "-1 lifts both");
        assert_eq!(now.block_io.read_bps, [throttle(0, 1), throttle(16, 0)]);
        let unified: Vec<_> = now
            .unified
            .iter()
            .map(|(f, v)| format!("{f}={v}"))
            .collect();
        assert_eq!(unified, ["memory.high=2", "memory.low=3"]);
        assert_eq!(now.devices, Some(DeviceRule::defaults()));
    }
}
