//! Which cgroup file systems the host has, found once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::controller::{Controller, Controllers};
use crate::dir::Dir;
use crate::mountinfo::{self, Mounted};
use crate::{CgroupPath, Error};

/// 300,000 mounts of common length; the kernel's own limit is 100,000.
const MAX_MOUNTINFO: u64 = 64 << 20;

/// How a host has its cgroups set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The controllers are on v1, and there is nothing else.
    V1,
    /// The controllers are on v1; a cgroup2 that can be written is mounted beside them. Its controllers are not used;
    /// what it can do without any (freeze, kill, events) is.
    Hybrid,
    /// Everything is on cgroup2.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    pub(crate) root: Dir,
    pub(crate) v2: bool,
    pub(crate) controllers: Controllers,
    /// Name below `/sys/fs/cgroup`, then the links to it.
    names: Vec<String>,
}

/// The cgroup file systems of the host, each with its mount point open.
#[derive(Debug)]
pub struct Host {
    mode: Mode,
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// Sizes of huge pages as the hugetlb controller names them; empty without it.
    pub(crate) huge_page_sizes: Vec<String>,
}

/// A directory that a container shall find below its `/sys/fs/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Name below `/sys/fs/cgroup`; empty on v2, where the directory takes its place.
    pub name: String,
    /// Further names of the same hierarchy: links to `name` (`cpu` to `cpu,cpuacct`).
    pub links: Vec<String>,
    /// The cgroup's directory on the host.
    pub host_dir: PathBuf,
}

impl Host {
    /// Finds the hierarchies in `/proc/self/mountinfo` and opens their mount points.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] if there are none; otherwise the errno of open(2) or read(2).
    pub fn detect() -> Result<Arc<Self>, Error> {
        Self::from_mountinfo(&cgroup_lines()?)
    }

    /// As [`Host::detect`], of the lines that are handed in. Tests use it to look at a part of
    /// the host, or at a tree of plain files.
    ///
    /// # Errors
    /// As [`Host::detect`].
    pub fn from_mountinfo(mountinfo: &str) -> Result<Arc<Self>, Error> {
        let mut mounted = mountinfo::hierarchies(mountinfo);
        let has_v1 = mounted.iter().any(|m| !m.v2 && !m.controllers.is_empty());
        // What has no controllers limits nothing. A nested node often has it read-only, and does
        // without it then, as with runc.
        mounted.retain(|m| !has_v1 || !m.controllers.is_empty() || writable(&m.point));
        let has_v2 = mounted.iter().any(|m| m.v2);
        let mode = match (has_v1, has_v2) {
            (true, true) => Mode::Hybrid,
            (true, false) => Mode::V1,
            (false, true) => Mode::V2,
            (false, false) => return Err(Error::NoHierarchy),
        };
        let mut links = BTreeMap::new();
        let mut hierarchies = Vec::new();
        for mount in mounted.into_iter().filter(|m| m.v2 || mode != Mode::V2) {
            hierarchies.push(Hierarchy::open(mount, mode, &mut links)?);
        }
        let mut host = Self {
            mode,
            hierarchies,
            huge_page_sizes: Vec::new(),
        };
        if host.hierarchy(Controller::Hugetlb).is_some() {
            host.huge_page_sizes = huge_page_sizes();
        }
        Ok(Arc::new(host))
    }

    /// A host on which the caller may make no cgroup: every limit is refused.
    pub fn without() -> Arc<Self> {
        Arc::new(Self {
            mode: Mode::V2,
            hierarchies: Vec::new(),
            huge_page_sizes: Vec::new(),
        })
    }

    /// How the host is set up.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Refuses a scope of systemd's where its controllers are on v1.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`]
    pub fn refuse_scopes(&self) -> Result<(), Error> {
        if self.mode == Mode::V2 {
            return Ok(());
        }
        let reason = "a scope of systemd's needs cgroup v2, and this host has v1; boot it with \
                      cgroup v2, or set the cgroup driver of kubelet and containerd to cgroupfs";
        Err(Error::Unsupported {
            field: "linux.cgroupsPath",
            reason: reason.to_owned(),
        })
    }

    /// True if limits of this controller can be set.
    pub fn has(&self, controller: Controller) -> bool {
        self.hierarchy(controller).is_some()
    }

    /// What a container in `path` shall see below its `/sys/fs/cgroup`.
    pub fn views(&self, path: &CgroupPath) -> Vec<View> {
        let view = |hierarchy: &Hierarchy| {
            let mut names = hierarchy.names.iter().cloned();
            View {
                name: names.next().unwrap_or_default(),
                links: names.collect(),
                host_dir: path.below(hierarchy.root.path()),
            }
        };
        self.hierarchies.iter().map(view).collect()
    }

    /// The place of the hierarchy whose files set this controller's limits.
    pub(crate) fn hierarchy(&self, controller: Controller) -> Option<usize> {
        self.hierarchies
            .iter()
            .position(|h| h.controllers.contains(controller))
    }

    /// The place of the cgroup2 hierarchy.
    pub(crate) fn unified(&self) -> Option<usize> {
        self.hierarchies.iter().position(|h| h.v2)
    }
}

impl Hierarchy {
    /// `links` remembers the links of each directory that was looked at.
    fn open(
        mount: Mounted,
        mode: Mode,
        links: &mut BTreeMap<PathBuf, Vec<(String, PathBuf)>>,
    ) -> Result<Self, Error> {
        let root = Dir::open(&mount.point)?;
        let mut controllers = mount.controllers;
        let mut names = Vec::new();
        if mount.v2 && mode == Mode::V2 {
            let mut buf = Vec::new();
            controllers = root
                .read("cgroup.controllers", &mut buf)?
                .split_whitespace()
                .collect();
            names.push(String::new());
        } else if let (Some(parent), Some(name)) = (mount.point.parent(), mount.point.file_name()) {
            names.push(name.to_string_lossy().into_owned());
            let found = links
                .entry(parent.to_owned())
                .or_insert_with(|| links_of(parent));
            let ours = found
                .iter()
                .filter(|(_, target)| target.as_os_str() == name);
            names.extend(ours.map(|(link, _)| link.clone()));
        }
        Ok(Self {
            root,
            v2: mount.v2,
            controllers,
            names,
        })
    }
}

/// True if cgroups can be made below `point`.
fn writable(point: &Path) -> bool {
    rustix::fs::access(point, rustix::fs::Access::WRITE_OK).is_ok()
}

/// The symbolic links of a directory and where they lead. What cannot be read has none.
fn links_of(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let link = |entry: std::fs::DirEntry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().into_string().ok()?, target))
    };
    let mut links: Vec<_> = entries.flatten().filter_map(link).collect();
    links.sort();
    links
}

/// The huge page sizes of this host as the hugetlb controller names them: `2MB`, `1GB`.
fn huge_page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let name = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?
            .parse()
            .ok()?;
        Some(match kib {
            kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
            kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
            kib => format!("{kib}KB"),
        })
    };
    let mut sizes: Vec<_> = entries.flatten().filter_map(name).collect();
    sizes.sort();
    sizes
}

/// The cgroup lines of `/proc/self/mountinfo`. Read as a stream, because a node with many pods
/// has megabytes of overlay mounts in it and the shim's heap has to stay small.
fn cgroup_lines() -> Result<String, Error> {
    const PATH: &str = "/proc/self/mountinfo";
    let errno = |error: &std::io::Error| Errno::from_io_error(error).unwrap_or(Errno::IO);
    let file = File::open(PATH).map_err(|error| Error::Open {
        path: PATH.into(),
        flags: "O_RDONLY",
        source: errno(&error),
    })?;
    let mut reader = BufReader::with_capacity(64 * 1024, file.take(MAX_MOUNTINFO));
    let (mut found, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let len = reader
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::Read {
                path: PATH.into(),
                source: errno(&error),
            })?;
        if len == 0 {
            return Ok(String::from_utf8_lossy(&found).into_owned());
        }
        if line.windows(9).any(|part| part == b" - cgroup") {
            found.extend_from_slice(&line);
        }
    }
}
