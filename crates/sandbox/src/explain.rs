//! What isolates a pod, as the kernel tells it, beside what its specs asked for.
//!
//! Read from the host's side: `/proc/<pid>` of the containers' first processes, their cgroups'
//! files, the records and the bundles. The shim is not asked, so a pod whose shim is gone or hangs
//! can be explained too. All that a pod can have written is bounded and escaped.

mod limits;
mod mounts;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use berm_plan::{Ids, MountHints, Spec, Survey, capability_names, dead_capabilities};
use serde::{Deserialize, Serialize};

use crate::error::{Error, io};
use crate::process::Identity;
use crate::record::{ContainerRecord, Record};

pub use limits::Limit;
pub use mounts::MountExplained;
pub use process::{Credentials, NamespaceExplained};

/// Largest `config.json` that is read.
const MAX_SPEC: u64 = 4 << 20;

/// A pod and what keeps it apart from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The sandbox's record.
    pub record: Record,
    /// PID 1 runs.
    pub running: bool,
    /// The pod has a user namespace of its own: what is inside is nobody outside.
    pub boundary: bool,
    /// The namespaces of PID 1.
    pub namespaces: Vec<NamespaceExplained>,
    /// Its containers, by id.
    pub containers: Vec<ContainerExplained>,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerExplained {
    /// Its record.
    pub record: ContainerRecord,
    /// What is in force; `None` when its first process has ended.
    pub in_force: Option<InForce>,
    /// What its spec asked for; `None` when the bundle is gone.
    pub asked: Option<Asked>,
    /// Where the two differ, in words.
    pub differs: Vec<String>,
}

/// What the kernel says of a container's first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Its namespaces.
    pub namespaces: Vec<NamespaceExplained>,
    /// Id maps of its user namespace.
    pub ids: Ids,
    /// Users, capabilities, filters.
    pub credentials: Credentials,
    /// Effective capabilities by name.
    pub capabilities: Vec<String>,
    /// Those of them that the kernel ignores in this pod.
    pub dead_capabilities: Vec<String>,
    /// Its mounts, in the order in which they were made.
    pub mounts: Vec<MountExplained>,
    /// The limits of its cgroup.
    pub limits: Vec<Limit>,
}

/// What a spec asked for, as far as it can be told beside [`InForce`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Effective capabilities by name.
    pub capabilities: Vec<String>,
    /// What its seccomp profile means; `None`: no filter.
    pub seccomp: Option<Survey>,
    /// Names of the pod's mount hints that are for one of its mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_hints: Vec<String>,
}

impl Explanation {
    /// Explains the sandbox of `record`.
    /// # Errors
    /// The errno of reading the records or `/proc`. What a process that ends meanwhile would have
    /// told is left out.
    pub fn of(record: Record) -> Result<Self, Error> {
        let init = record.init();
        let boundary = record.isolation.userns != "none";
        let mut containers = Vec::new();
        let host = berm_cgroup::Host::detect()?;
        for container in record.containers()? {
            containers.push(ContainerExplained::of(container, &record, boundary, &host)?);
        }
        containers.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        let namespaces = match init.is_alive() {
            true => process::namespaces(init.pid, None)?,
            false => Vec::new(),
        };
        Ok(Self {
            running: init.is_alive(),
            boundary,
            namespaces,
            containers,
            record,
        })
    }
}

impl ContainerExplained {
    fn of(
        record: ContainerRecord,
        pod: &Record,
        boundary: bool,
        host: &std::sync::Arc<berm_cgroup::Host>,
    ) -> Result<Self, Error> {
        let in_force = InForce::of(&record, pod, boundary, host)?;
        // One that ended meanwhile may have given its number to somebody else.
        let in_force = in_force.filter(|_| record.init.is_alive());
        let asked = Asked::of(&record.bundle, &pod.mount_hints)?;
        let differs = match (&in_force, &asked) {
            (Some(in_force), Some(asked)) => differences(in_force, asked),
            _ => Vec::new(),
        };
        Ok(Self {
            record,
            in_force,
            asked,
            differs,
        })
    }
}

impl InForce {
    fn of(
        record: &ContainerRecord,
        pod: &Record,
        boundary: bool,
        host: &std::sync::Arc<berm_cgroup::Host>,
    ) -> Result<Option<Self>, Error> {
        let Identity { pid, .. } = record.init;
        if !record.init.is_alive() {
            return Ok(None);
        }
        let Some(credentials) = process::credentials(pid)? else {
            return Ok(None);
        };
        let effective = credentials.effective;
        let dead = match boundary {
            true => effective & dead_capabilities(pod.isolation.owns_netns),
            false => 0,
        };
        Ok(Some(Self {
            namespaces: process::namespaces(pid, Some(pod.pid))?,
            ids: process::ids(pid)?,
            capabilities: capability_names(effective),
            dead_capabilities: capability_names(dead),
            credentials,
            mounts: mounts::of(pid, boundary)?,
            limits: limits::of(host, &record.cgroup)?,
        }))
    }
}

impl Asked {
    fn of(bundle: &Path, hints: &MountHints) -> Result<Option<Self>, Error> {
        let Some(json) = read_bounded(&bundle.join("config.json"), MAX_SPEC)? else {
            return Ok(None);
        };
        let spec = Spec::parse(&json)?;
        let hinted = hints.mounts.values();
        let hinted = hinted.filter(|hint| spec.mounts_source(&hint.mount.source));
        Ok(Some(Self {
            mount_hints: hinted.map(|hint| hint.name.clone()).collect(),
            capabilities: capability_names(spec.effective_capabilities()),
            seccomp: spec.seccomp()?,
        }))
    }
}

/// What the kernel does not say although it was asked for, or says although it was not.
fn differences(in_force: &InForce, asked: &Asked) -> Vec<String> {
    let mut found = Vec::new();
    let have = &in_force.capabilities;
    let missing: Vec<_> = asked
        .capabilities
        .iter()
        .filter(|c| !have.contains(c))
        .collect();
    // A process without root's id may drop them by itself at execve (capabilities(7)).
    if !missing.is_empty() && in_force.credentials.uid == 0 {
        found.push(format!("capabilities asked for and not held: {missing:?}"));
    }
    let more: Vec<_> = have
        .iter()
        .filter(|c| !asked.capabilities.contains(c))
        .collect();
    if !more.is_empty() {
        found.push(format!("capabilities held and not asked for: {more:?}"));
    }
    match (&asked.seccomp, in_force.credentials.seccomp_filters) {
        (Some(_), 0) => found.push("a seccomp profile was asked for, none is in force".to_owned()),
        (None, n) if n > 0 => {
            found.push(format!("{n} seccomp filters that the spec does not have"))
        }
        _ => {}
    }
    found
}

/// Reads a file up to `limit` bytes; `None` if it is not there.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io("open()"))?,
    };
    let mut bytes = Vec::new();
    let read = file.take(limit).read_to_end(&mut bytes);
    match read {
        // A process that has just ended.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        read => read.map(|_| Some(bytes)).map_err(io("read()")),
    }
}

/// The same as text in which no control character is left; bytes that are no UTF-8 are replaced.
fn read_text(path: &Path, limit: u64) -> Result<Option<String>, Error> {
    let bytes = read_bounded(path, limit)?;
    Ok(bytes.map(|bytes| escaped(&String::from_utf8_lossy(&bytes))))
}

/// Line ends and tabs stay: the kernel escapes those that are not its own.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// `Key: value` lines of `/proc/<pid>/status` and the like.
fn pairs(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect()
}
