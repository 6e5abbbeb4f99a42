//! Probes of how the host is set up.

use std::fs;
use std::path::Path;

use berm_cgroup::{Controller, Host};
use berm_plan::Ids;
use rustix::process::geteuid;

use super::{Finding, Verdict};
use crate::config::Config;
use crate::ids::RANGE;

type Probed = Result<String, String>;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let pool = (config.id_pool_start, config.id_pool_end);
    let mut all = vec![
        Finding::new(
            "root",
            "nothing works: Berm makes namespaces, mounts and cgroups",
            Verdict::Missing,
            root(),
        ),
        Finding::new(
            "max_user_namespaces",
            "as many pods as it allows can run",
            Verdict::Degraded,
            max_user_namespaces(),
        ),
    ];
    all.extend(cgroups());
    all.extend([
        Finding::new(
            "free id ranges",
            "no pod can start without a free range of 65536 ids",
            Verdict::Missing,
            free_ranges(config),
        ),
        Finding::new(
            "subordinate ids",
            "files of a pod may belong to another user's containers as well; move one of the ranges",
            Verdict::Degraded,
            overlaps(pool),
        ),
        Finding::new(
            "CAP_SYS_RESOURCE",
            "an oom_score_adj below, and rlimits above those of the shim cannot be set",
            Verdict::Degraded,
            sys_resource(),
        ),
        Finding::new(
            "layers in a file",
            "containers with rootfs_upper = self or dir=PATH are refused: they need e2fsprogs and \
             loop devices",
            Verdict::Degraded,
            layers_in_files(),
        ),
    ]);
    all
}

pub(super) fn check_rootless(ids: &Ids) -> Vec<Finding> {
    let count: u64 = ids.uids.0.iter().map(|e| u64::from(e.count)).sum();
    let found = format!("root of a user namespace with {count} ids");
    vec![
        Finding::new(
            "root",
            "no cgroups: limits, pause and figures of a container are refused. containerd's pods \
             need root of the node, `berm run` does not",
            Verdict::Degraded,
            Err(found),
        ),
        Finding::new(
            "max_user_namespaces",
            "as many pods as it allows can run",
            Verdict::Degraded,
            max_user_namespaces(),
        ),
    ]
}

fn layers_in_files() -> Probed {
    let mkfs = berm_stage::mkfs().ok_or("mkfs.ext4: not found")?;
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|e| format!("open(\"/dev/loop-control\"): {e}"))?;
    Ok(mkfs.display().to_string())
}

fn root() -> Probed {
    match geteuid().is_root() {
        true => Ok("effective uid 0".to_owned()),
        false => Err(format!("effective uid {}", geteuid().as_raw())),
    }
}

fn read(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn max_user_namespaces() -> Probed {
    let text = read("/proc/sys/user/max_user_namespaces")?;
    let text = text.trim();
    match text.parse::<u64>() {
        Ok(most) if most >= 1024 => Ok(text.to_owned()),
        _ => Err(text.to_owned()),
    }
}

fn cgroups() -> Vec<Finding> {
    let host = match Host::detect() {
        Ok(host) => host,
        Err(e) => {
            let lost = "nothing works without cgroups";
            let probed = Err(e.to_string());
            return vec![Finding::new("cgroups", lost, Verdict::Missing, probed)];
        }
    };
    let mode = format!("{:?}", host.mode()).to_lowercase();
    let controller = |controller, name: &str, lost, otherwise| {
        let probed = match host.has(controller) {
            true => Ok(format!("cgroup {mode}")),
            false => Err("no hierarchy has it".to_owned()),
        };
        Finding::new(format!("cgroup {name}"), lost, otherwise, probed)
    };
    let degraded = Verdict::Degraded;
    vec![
        controller(
            Controller::Memory,
            "memory",
            "pods with memory limits are refused; no memory figures, no OOM events",
            degraded,
        ),
        controller(
            Controller::Cpu,
            "cpu",
            "pods with CPU limits are refused",
            degraded,
        ),
        controller(
            Controller::Pids,
            "pids",
            "pods with a limit of processes are refused",
            degraded,
        ),
        controller(
            Controller::Cpuset,
            "cpuset",
            "pods pinned to CPUs are refused",
            degraded,
        ),
    ]
}

fn free_ranges(config: &Config) -> Probed {
    let total = (config.id_pool_end - config.id_pool_start + 1) / RANGE;
    let used = match fs::read_dir(config.state_dir.join("ids")) {
        Ok(entries) => entries.count(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(e.to_string()),
    };
    let free = usize::try_from(total).unwrap_or(0).saturating_sub(used);
    match free {
        0 => Err(format!("0 of {total}")),
        free => Ok(format!("{free} of {total}")),
    }
}

fn overlaps(pool: (u32, u32)) -> Probed {
    let mut found = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        // Hosts without such users have no such file.
        let text = fs::read_to_string(file).unwrap_or_default();
        found.extend(overlapping(&text, pool).map(|line| format!("{file}: {line}")));
    }
    match found.is_empty() {
        true => Ok(format!("none within {}-{}", pool.0, pool.1)),
        false => Err(found.join(", ")),
    }
}

/// The lines `name:first:count` (subuid(5)) that share ids with the pool.
fn overlapping(text: &str, (first, last): (u32, u32)) -> impl Iterator<Item = &str> {
    text.lines().filter(move |line| {
        let mut fields = line.split(':').skip(1);
        let mut number = || fields.next()?.trim().parse::<u64>().ok();
        let Some((start, count)) = number().zip(number()) else {
            return false;
        };
        start <= u64::from(last) && start.saturating_add(count) > u64::from(first)
    })
}

fn sys_resource() -> Probed {
    /// linux/capability.h
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = read("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    match effective {
        Some(mask) if mask & (1 << CAP_SYS_RESOURCE) != 0 => Ok("effective".to_owned()),
        _ => Err("not among this process's capabilities".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_share_an_id_with_the_pool_are_found() {
        let text = "a:100:10\nb:200:10\nc:209:2\nd:191:9\ne:191:10\nnonsense\nf:x:1\n";
        let found: Vec<_> = overlapping(text, (200, 209)).collect();
        assert_eq!(found, ["b:200:10", "c:209:2", "e:191:10"]);
    }
}
