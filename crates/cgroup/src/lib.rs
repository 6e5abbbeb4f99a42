//! cgroup v1, v2 and hybrid behind one type: create, limit, freeze, kill, stats, OOM, remove.
//!
//! Nothing here waits and nothing starts a thread: what takes time in the kernel (freezing,
//! dying, emptying) is begun by one call and asked about by another, and the caller owns the
//! deadline. What a container may have made itself (sub-groups, thousands of processes) is
//! bounded. Paths are those of the cgroupfs driver; with the systemd driver a [`Unit`] is started
//! first, by the only calls here that block, and [`Cgroup::adopt`] takes what it made.
//!
//! ```no_run
//! use berm_cgroup::{Cgroup, CgroupPath, Host, Resources};
//!
//! # fn main() -> Result<(), berm_cgroup::Error> {
//! let host = Host::detect()?;
//! let mut cgroup = Cgroup::create(&host, &CgroupPath::parse("/berm/c1")?)?;
//! cgroup.limit(&Resources { pids: Some(100), ..Resources::default() })?;
//! let tasks = cgroup.tasks()?; // a child born in `birthplace()` calls berm_cgroup::join(&tasks)
//! cgroup.keep(); // from here on only remove() removes it
//! # drop(tasks);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod cgroup;
mod controller;
mod cpuset;
mod device;
mod dir;
mod error;
mod file;
mod freeze;
mod host;
mod limit;
mod mountinfo;
mod path;
mod pids;
mod resources;
mod stats;
mod subtree;
mod systemd;
mod watch;

pub use cgroup::{Cgroup, join};
pub use controller::Controller;
pub use error::Error;
pub use host::{Host, Mode, View};
pub use limit::Setting;
pub use path::CgroupPath;
pub use pids::MAX_PIDS;
pub use resources::{
    Access, BlockIo, Cpu, DeviceRule, DeviceType, HugetlbLimit, Memory, Network, RdmaLimit,
    Resources, Throttle, WeightDevice,
};
pub use stats::{
    BlkioEntry, BlkioStats, CpuStats, CpuStatsV2, HugetlbStats, IoEntry, MemoryEntry, MemoryEvents,
    MemoryStat, MemoryStatV2, MemoryStats, MemoryStatsV2, MemoryUse, OomControl, PidsStats,
    Pressure, PressureLine, Pressures, RdmaEntry, RdmaStats, Stats, StatsV1, StatsV2,
};
pub use subtree::MAX_GROUPS;
pub use systemd::{Place, Unit};
pub use watch::{OomAround, OomWatch, Watch};
