//! `Usage.Collect` and `Usage.UsageFD`.
//!
//! gVisor's `UsageFD` gives two memory files of the sandbox's kernel, which the reader has to map
//! and to stat. Here the kernel is the host's, and every container has a count of its own: two
//! files of each cgroup, the sandbox's first, named by `cgroups` in the reply. Reading them from
//! offset 0 brings the figures of that moment with no further call.

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, MAX_FDS, Reply, decode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Answer;
use crate::live::Sandbox;
use crate::usage::Usage;

/// gVisor's `MemoryUsageOpts`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct CollectArgs {
    full: bool,
}

/// gVisor's `MemoryUsageFileOpts`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct FileArgs {
    version: u64,
}

/// gVisor's `MemoryUsage`, in bytes: `Total` is the sum of all others.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Collected {
    unknown: u64,
    system: u64,
    anonymous: u64,
    page_cache: u64,
    mapped: u64,
    tmpfs: u64,
    /// Always 0: nothing of a pod lies in a ramdisk.
    ramdiskfs: u64,
    /// Berm's addition.
    sandbox: u64,
    total: u64,
}

impl Collected {
    fn of(usage: &Usage) -> Self {
        let of = &usage.containers;
        // The kernel's counters of the parts are a little behind or ahead of its total.
        let unknown = of.total.saturating_sub(of.known());
        Self {
            unknown,
            system: of.kernel,
            anonymous: of.anonymous,
            page_cache: of.page_cache,
            mapped: of.mapped,
            tmpfs: of.tmpfs,
            ramdiskfs: 0,
            sandbox: usage.sandbox,
            total: of
                .known()
                .saturating_add(unknown)
                .saturating_add(usage.sandbox),
        }
    }
}

impl Sandbox {
    pub(super) fn control_usage(&self, name: &str, arg: Value) -> Answer {
        match name {
            "Collect" => Some(self.collect(arg)),
            "UsageFD" => Some(self.usage_fd(arg)),
            _ => None,
        }
    }

    fn collect(&self, arg: Value) -> Result<Reply, CallError> {
        let args: CollectArgs = decode(arg)?;
        Reply::of(&Collected::of(&self.usage(args.full)?))
    }

    fn usage_fd(&self, arg: Value) -> Result<Reply, CallError> {
        let args: FileArgs = decode(arg)?;
        if args.version != 1 {
            let text = format!("Version: {} is none that is known; use 1", args.version);
            return Err(CallError::new(ErrorKind::InvalidArgument, text));
        }
        let files = self.usage_files()?;
        if files.len() * 2 > MAX_FDS {
            let text = format!(
                "{} cgroups: a message carries the files of {} at most; ask for their figures by \
                 Usage.Collect or containerManager.Event",
                files.len(),
                MAX_FDS / 2
            );
            return Err(CallError::new(ErrorKind::NotSupported, text));
        }
        let ids: Vec<_> = files.iter().map(|files| files.id.clone()).collect();
        let fds = files
            .into_iter()
            .flat_map(|files| [files.total, files.stat]);
        Ok(Reply::of(&json!({ "cgroups": ids }))?.donate(fds.collect()))
    }
}

#[cfg(test)]
mod tests {
    use berm_cgroup::MemoryUse;

    use super::*;

    #[test]
    fn the_total_is_the_sum_of_its_parts_even_when_the_kernels_counters_disagree() {
        let ahead = MemoryUse {
            total: 100,
            anonymous: 90,
            tmpfs: 20,
            ..MemoryUse::default()
        };
        let behind = MemoryUse {
            total: 100,
            anonymous: 60,
            ..MemoryUse::default()
        };
        for (containers, unknown, total) in [(ahead, 0, 117), (behind, 40, 107)] {
            let sandbox = 7;
            let collected = Collected::of(&Usage {
                containers,
                sandbox,
            });
            assert_eq!((collected.unknown, collected.total), (unknown, total));
        }
    }
}
