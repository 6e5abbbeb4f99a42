//! What the memory of a cgroup is used for, on v1 and v2 alike.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;

use crate::controller::Controller;
use crate::dir::{Dir, key_values};
use crate::{Cgroup, Error, Mode};

/// Memory of one cgroup, sub-groups included, in bytes. The parts but for `total` do not overlap;
/// what is in none of them is `total` minus their sum: swap cache, and what the kernel has
/// charged ahead for each CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// v2 `memory.current`, v1 `memory.usage_in_bytes`.
    pub total: u64,
    /// Anonymous memory: v2 `anon`, v1 `total_rss`.
    pub anonymous: u64,
    /// Cached files that nobody has mapped: what is left of v2 `file`, v1 `total_cache`.
    pub page_cache: u64,
    /// Cached files that are mapped: v2 `file_mapped`, v1 `total_mapped_file`. The kernel counts
    /// mapped tmpfs in there too, so this may be too high by what `page_cache` is too low.
    pub mapped: u64,
    /// tmpfs and shared memory: v2 `shmem`, v1 `total_shmem`.
    pub tmpfs: u64,
    /// Kernel memory and network buffers: v2 `kernel` and `sock`, v1
    /// `memory.kmem.usage_in_bytes`.
    pub kernel: u64,
}

impl MemoryUse {
    /// The sum of the parts.
    pub fn known(&self) -> u64 {
        [
            self.anonymous,
            self.page_cache,
            self.mapped,
            self.tmpfs,
            self.kernel,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    fn parse_v2(stat: &str) -> Self {
        let value = |key: &str| value(stat, key).unwrap_or(0);
        // One key since Linux 5.18; before, its largest parts.
        let kernel = self::value(stat, "kernel").unwrap_or_else(|| {
            let parts = ["kernel_stack", "pagetables", "percpu", "slab"];
            parts.into_iter().map(value).fold(0, u64::saturating_add)
        });
        let found = Self {
            anonymous: value("anon"),
            tmpfs: value("shmem"),
            kernel: kernel.saturating_add(value("sock")),
            ..Self::default()
        };
        found.with_files(value("file"), value("file_mapped"))
    }

    fn parse_v1(stat: &str, kernel: u64) -> Self {
        let value = |key: &str| value(stat, key).unwrap_or(0);
        let found = Self {
            anonymous: value("total_rss"),
            tmpfs: value("total_shmem"),
            kernel,
            ..Self::default()
        };
        found.with_files(value("total_cache"), value("total_mapped_file"))
    }

    fn with_files(mut self, files_and_tmpfs: u64, mapped: u64) -> Self {
        let files = files_and_tmpfs.saturating_sub(self.tmpfs);
        self.mapped = mapped.min(files);
        self.page_cache = files - self.mapped;
        self
    }
}

fn value(stat: &str, key: &str) -> Option<u64> {
    let found = key_values(stat).find(|(name, _)| *name == key);
    found.map(|(_, value)| value)
}

impl Cgroup {
    /// What its memory is used for; only the total if `split` is false. `None` without the
    /// controller.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] once the cgroup is removed.
    pub fn memory(&self, split: bool) -> Result<Option<MemoryUse>, Error> {
        let Some(dir) = self.dir(Controller::Memory) else {
            return Ok(None);
        };
        let (total, mut buf) = (dir.read_u64(self.memory_total())?, Vec::new());
        let split = match (split, self.host.mode()) {
            (false, _) => MemoryUse::default(),
            (true, Mode::V2) => MemoryUse::parse_v2(dir.read("memory.stat", &mut buf)?),
            (true, Mode::V1 | Mode::Hybrid) => {
                let kernel = dir.read_u64_if_there("memory.kmem.usage_in_bytes")?;
                MemoryUse::parse_v1(dir.read("memory.stat", &mut buf)?, kernel.unwrap_or(0))
            }
        };
        Ok(Some(MemoryUse { total, ..split }))
    }

    /// The files of [`Cgroup::memory`], open for reading: the total and `memory.stat`. They can
    /// be read again and again (from offset 0), whatever state the cgroup's processes are in.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] without the controller; [`berm_sys::Kind::NotFound`] once
    /// the cgroup is removed.
    pub fn memory_files(&self) -> Result<[OwnedFd; 2], Error> {
        let dir: &Dir = self
            .dir(Controller::Memory)
            .ok_or_else(|| Error::Unsupported {
                field: "memory",
                reason: "this host has no memory controller".into(),
            })?;
        let open = |name| dir.file(name, OFlags::RDONLY);
        Ok([open(self.memory_total())?, open("memory.stat")?])
    }

    fn memory_total(&self) -> &'static str {
        match self.host.mode() {
            Mode::V2 => "memory.current",
            Mode::V1 | Mode::Hybrid => "memory.usage_in_bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_v2_do_not_overlap_and_old_kernels_lack_the_sum_of_kernel_memory() {
        let new = "anon 100\nfile 90\nkernel 30\nkernel_stack 8\nslab 9\nsock 2\nshmem 40\n\
                   file_mapped 20\n";
        let used = MemoryUse::parse_v2(new);
        let want = MemoryUse {
            total: 0,
            anonymous: 100,
            page_cache: 30,
            mapped: 20,
            tmpfs: 40,
            kernel: 32,
        };
        assert_eq!(used, want);
        assert_eq!(used.known(), 222);
        let old = "anon 1\nfile 0\nkernel_stack 8\npagetables 4\npercpu 2\nslab 9\nshmem 0\n";
        assert_eq!(MemoryUse::parse_v2(old).kernel, 23);
    }

    #[test]
    fn mapped_tmpfs_does_not_make_more_files_than_there_are() {
        let stat = "cache 1\ntotal_cache 90\ntotal_rss 7\ntotal_shmem 80\ntotal_mapped_file 60\n";
        let used = MemoryUse::parse_v1(stat, 5);
        assert_eq!((used.mapped, used.page_cache, used.tmpfs), (10, 0, 80));
        assert_eq!((used.anonymous, used.kernel), (7, 5));
    }
}
