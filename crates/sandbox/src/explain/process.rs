//! A process's namespaces, ids and credentials.

use std::path::Path;

use berm_plan::{Extent, IdMap, Ids};
use rustix::fs::{AtFlags, CWD, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{pairs, read_text};
use crate::error::{Error, call};

/// Largest file of `/proc/<pid>` that is read here; `Groups` may hold 65,536 numbers.
const MAX_STATUS: u64 = 1 << 20;

/// One namespace of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceExplained {
    /// `cgroup`, `ipc`, `mnt`, `net`, `pid`, `time`, `user` or `uts`.
    pub name: String,
    /// Its inode (namespaces(7)).
    pub inode: u64,
    /// `host`, `pod` or `own`.
    pub of: String,
}

/// Who a process is, and what is taken from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// Effective user, as the host numbers it.
    pub host_uid: u32,
    /// Effective group, as the host numbers it.
    pub host_gid: u32,
    /// Effective user inside.
    pub uid: u32,
    /// Effective capabilities (capabilities(7)).
    pub effective: u64,
    /// Bounding set.
    pub bounding: u64,
    /// Ambient set.
    pub ambient: u64,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Filters in force (seccomp(2)).
    pub seccomp_filters: u32,
    /// Label of the security module; empty: none.
    pub label: String,
    /// proc_pid_oom_score_adj(5)
    pub oom_score_adj: i32,
}

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// The namespaces of a process; `pod`: PID 1 of its pod.
pub(super) fn namespaces(pid: i32, pod: Option<i32>) -> Result<Vec<NamespaceExplained>, Error> {
    let mut all = Vec::new();
    for name in NAMESPACES {
        let Some(inode) = inode(&pid.to_string(), name)? else {
            continue;
        };
        let host = inode_of_host(name)?;
        let of_pod = match pod {
            Some(pod) => inode_of(pod, name)?,
            None => None,
        };
        let of = match () {
            () if Some(inode) == host => "host",
            () if Some(inode) == of_pod => "pod",
            () => "own",
        };
        all.push(NamespaceExplained {
            name: name.to_owned(),
            inode,
            of: of.to_owned(),
        });
    }
    Ok(all)
}

fn inode_of(pid: i32, name: &str) -> Result<Option<u64>, Error> {
    inode(&pid.to_string(), name)
}

/// The caller's own is the host's: it runs there.
fn inode_of_host(name: &str) -> Result<Option<u64>, Error> {
    inode("self", name)
}

/// `None`: the process is gone, or the kernel has no such namespace.
fn inode(process: &str, name: &str) -> Result<Option<u64>, Error> {
    let path = format!("/proc/{process}/ns/{name}");
    match statat(CWD, path, AtFlags::empty()) {
        Ok(stat) => Ok(Some(stat.st_ino)),
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        Err(e) => Err(call("stat(/proc/<pid>/ns)")(e)),
    }
}

/// The maps of a process's user namespace.
pub(super) fn ids(pid: i32) -> Result<Ids, Error> {
    let map = |name: &str| -> Result<IdMap, Error> {
        let path = format!("/proc/{pid}/{name}");
        let text = read_text(Path::new(&path), MAX_STATUS)?.unwrap_or_default();
        Ok(IdMap(text.lines().filter_map(extent).collect()))
    };
    Ok(Ids {
        uids: map("uid_map")?,
        gids: map("gid_map")?,
    })
}

/// `inside outside count` (user_namespaces(7))
fn extent(line: &str) -> Option<Extent> {
    let numbers: Vec<u32> = line
        .split_ascii_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    let &[inside, outside, count] = numbers.as_slice() else {
        return None;
    };
    Some(Extent {
        inside,
        outside,
        count,
    })
}

/// `None`: the process is gone.
pub(super) fn credentials(pid: i32) -> Result<Option<Credentials>, Error> {
    let file = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        read_text(Path::new(&path), MAX_STATUS)
    };
    let Some(status) = file("status")? else {
        return Ok(None);
    };
    let label = file("attr/current").unwrap_or_default().unwrap_or_default();
    let score = file("oom_score_adj")?.unwrap_or_default();
    let mut credentials = of_status(&status);
    let maps = ids(pid)?;
    let inside = |map: &IdMap, host: u32| {
        let extents = map.0.iter();
        extents.clone().find_map(|e| {
            let offset = host.checked_sub(e.outside).filter(|n| *n < e.count)?;
            e.inside.checked_add(offset)
        })
    };
    // The kernel shows an id without a name inside as the overflow id.
    credentials.uid = inside(&maps.uids, credentials.host_uid).unwrap_or(65534);
    credentials.label = label.trim_matches(['\0', '\n', ' ']).to_owned();
    credentials.oom_score_adj = score.trim().parse().unwrap_or_default();
    Ok(Some(credentials))
}

fn of_status(status: &str) -> Credentials {
    let pairs = pairs(status);
    // Real, effective, saved, file system.
    let effective_id = |key: &str| {
        let id = pairs
            .get(key)
            .and_then(|ids| ids.split_ascii_whitespace().nth(1));
        id.and_then(|id| id.parse().ok()).unwrap_or_default()
    };
    let mask = |key: &str| {
        let hex = pairs.get(key);
        hex.and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .unwrap_or_default()
    };
    let number = |key: &str| {
        pairs
            .get(key)
            .and_then(|n| n.parse().ok())
            .unwrap_or_default()
    };
    Credentials {
        host_uid: effective_id("Uid"),
        host_gid: effective_id("Gid"),
        uid: 0,
        effective: mask("CapEff"),
        bounding: mask("CapBnd"),
        ambient: mask("CapAmb"),
        no_new_privs: pairs.get("NoNewPrivs") == Some(&"1"),
        seccomp_filters: number("Seccomp_filters"),
        label: String::new(),
        oom_score_adj: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_and_a_name_in_it_is_no_key() {
        let status = "Name:\tCapEff:\tffff\nUmask:\t0022\nUid:\t0\t1879048192\t0\t0\n\
                      Gid:\t0\t7\t0\t0\nCapEff:\t00000000a80425fb\nCapBnd:\t1\nCapAmb:\t0\n\
                      NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        let found = of_status(status);
        assert_eq!((found.host_uid, found.host_gid), (1_879_048_192, 7));
        assert_eq!(found.effective, 0xa804_25fb);
        assert!(found.no_new_privs);
        assert_eq!(found.seccomp_filters, 2);
    }

    #[test]
    fn the_own_process_is_told_as_the_hosts() {
        let pid = std::process::id().cast_signed();
        let all = namespaces(pid, None).unwrap();
        assert_eq!(all.len(), NAMESPACES.len());
        assert!(all.iter().all(|n| n.of == "host"), "{all:?}");
        let own = credentials(pid).unwrap().unwrap();
        assert_eq!(own.host_uid, rustix::process::geteuid().as_raw());
    }
}
