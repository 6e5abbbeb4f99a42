//! What a cgroup uses, in the kernel's numbers, under the names of containerd's metrics.
//!
//! v1 and v2 count different things, so each has its own struct. Missing limits are what
//! containerd's cgroups library makes of them: v2's `max` is `u64::MAX`, v1's are the number in
//! the file, but `pids.max` without limit is 0.

mod memory;
mod v1;
mod v2;

pub use memory::MemoryUse;
pub use v1::{
    BlkioEntry, BlkioStats, CpuStats, MemoryEntry, MemoryStat, MemoryStats, OomControl, StatsV1,
};
pub use v2::{
    CpuStatsV2, IoEntry, MemoryEvents, MemoryStatV2, MemoryStatsV2, Pressure, PressureLine,
    Pressures, StatsV2,
};

use crate::controller::Controller;
use crate::dir::Dir;
use crate::{Cgroup, Error, Mode};

/// Figures of one cgroup, sub-groups included.
#[derive(Clone, Debug, PartialEq)]
pub enum Stats {
    /// From v1's hierarchies.
    V1(Box<StatsV1>),
    /// From cgroup2.
    V2(Box<StatsV2>),
}

/// `pids.current` and `pids.max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Tasks, threads included.
    pub current: u64,
    /// No limit is 0 on v1, `u64::MAX` on v2.
    pub limit: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbStats {
    /// `2MB`
    pub page_size: String,
    /// In use.
    pub usage: u64,
    /// v1: the most there ever was in use. v2: the limit.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// One device of `rdma.current` or `rdma.max`; no limit is `u32::MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaEntry {
    /// Name of the device.
    pub device: String,
    /// Open handles.
    pub hca_handles: u32,
    /// Objects.
    pub hca_objects: u32,
}

/// RDMA devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaStats {
    /// In use.
    pub current: Vec<RdmaEntry>,
    /// Limits.
    pub limit: Vec<RdmaEntry>,
}

impl Cgroup {
    /// Reads all figures. Each file is read once; a controller that the host has not is left out
    /// (`None` or empty). 140 µs for the 26 files of v1 (6.18, 2 CPUs, load 10), about 5 µs each.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the cgroup is removed.
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut buf = Vec::with_capacity(16 * 1024);
        match self.host.mode() {
            Mode::V1 | Mode::Hybrid => Ok(Stats::V1(Box::new(v1::read(self, &mut buf)?))),
            Mode::V2 => Ok(Stats::V2(Box::new(v2::read(self, &mut buf)?))),
        }
    }

    /// The pressure stall information. Needs cgroup2 but none of its controllers, so a hybrid host
    /// has it too.
    ///
    /// # Errors
    /// The errno of reading; a cgroup that is removed has none.
    pub fn pressures(&self) -> Result<Pressures, Error> {
        match self.unified() {
            Some(dir) => v2::pressures(dir, &mut Vec::new()),
            None => Ok(Pressures::default()),
        }
    }

    /// How many processes the OOM killer has killed here: the one figure that is wanted at an exit.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the cgroup is removed.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(0);
        };
        let file = match self.host.mode() {
            Mode::V1 | Mode::Hybrid => "memory.oom_control",
            Mode::V2 => "memory.events",
        };
        Ok(dir
            .read_key(file, "oom_kill", &mut Vec::new())?
            .unwrap_or(0))
    }
}

/// The RDMA figures, alike on v1 and v2.
fn rdma(dir: Option<&Dir>, buf: &mut Vec<u8>) -> Result<Option<RdmaStats>, Error> {
    let Some(dir) = dir else { return Ok(None) };
    let mut entries = |file| -> Result<Vec<RdmaEntry>, Error> {
        let text = dir.read_if_there(file, buf)?.unwrap_or_default();
        Ok(text.lines().filter_map(rdma_entry).collect())
    };
    Ok(Some(RdmaStats {
        current: entries("rdma.current")?,
        limit: entries("rdma.max")?,
    }))
}

/// `mlx4_0 hca_handle=2 hca_object=max`
fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let mut words = line.split(' ');
    let mut entry = RdmaEntry {
        device: words.next()?.to_owned(),
        ..RdmaEntry::default()
    };
    for word in words {
        let (key, value) = word.split_once('=')?;
        let value = if value == "max" {
            u32::MAX
        } else {
            value.parse().ok()?
        };
        match key {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}

/// A struct of `u64`s named as the keys of a kernel file of `key value` lines, and its reader.
macro_rules! keyed {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[allow(missing_docs)] // named as the kernel's documentation has them
        $vis struct $name { $(pub $field: u64),* }

        impl $name {
            /// Takes the keys that are known; kernels add others.
            pub(super) fn parse(text: &str) -> Self {
                let mut found = Self::default();
                for (key, value) in $crate::dir::key_values(text) {
                    match key {
                        $(stringify!($field) => found.$field = value,)*
                        _ => {}
                    }
                }
                found
            }
        }
    };
}
use keyed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rdma_lines_are_read_with_max_as_the_largest_number() {
        let entry = rdma_entry("mlx4_0 hca_handle=2 hca_object=max").unwrap();
        assert_eq!((entry.hca_handles, entry.hca_objects), (2, u32::MAX));
        assert_eq!(rdma_entry("mlx4_0 hca_handle"), None);
    }
}
