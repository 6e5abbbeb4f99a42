//! The limits of a cgroup, as the kernel's files have them.

use std::path::Path;
use std::sync::Arc;

use berm_cgroup::{CgroupPath, Host};
use serde::{Deserialize, Serialize};

use super::read_text;
use crate::error::Error;

/// Bytes of a file that are read: `io.max` has a line for each device.
const MAX_FILE: u64 = 4096;

/// One limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// The kernel's file.
    pub file: String,
    /// What it holds; lines joined by `; `.
    pub value: String,
}

/// Files of both versions that limit something; a hierarchy has those of its controllers.
const FILES: [&str; 27] = [
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "cpu.shares",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.cfs_burst_us",
    "cpu.weight",
    "cpu.max",
    "cpu.max.burst",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "io.max",
    "io.weight",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "devices.list",
    "rdma.max",
];

/// Those of the cgroup that a record names; none if it is gone.
pub(super) fn of(host: &Arc<Host>, cgroup: &str) -> Result<Vec<Limit>, Error> {
    if cgroup.is_empty() {
        return Ok(Vec::new());
    }
    let path = CgroupPath::parse(&format!("/{cgroup}"))?;
    let views = host.views(&path);
    let mut limits = Vec::new();
    for file in FILES {
        for view in &views {
            limits.extend(limit(&view.host_dir, file)?);
        }
    }
    Ok(limits)
}

fn limit(dir: &Path, file: &str) -> Result<Option<Limit>, Error> {
    let Some(text) = read_text(&dir.join(file), MAX_FILE)? else {
        return Ok(None);
    };
    let value = text.trim().replace('\n', "; ");
    Ok((!value.is_empty()).then(|| Limit {
        file: file.to_owned(),
        value,
    }))
}
