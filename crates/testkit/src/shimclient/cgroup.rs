//! The cgroup below which a node's containers live, in every hierarchy.

use std::fs;
use std::path::{Path, PathBuf};

/// A cgroup path that belongs to one node; removed in every hierarchy when dropped.
///
/// The shims make it, as they do below kubelet's; this only names it and cleans up.
#[derive(Debug)]
pub struct CgroupParent {
    path: String,
}

impl CgroupParent {
    pub(super) fn new(name: &str) -> Self {
        Self {
            path: format!("/{name}"),
        }
    }

    /// The path as it stands in `linux.cgroupsPath`, with a leading slash.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// The directories of this cgroup that exist now, one per hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        hierarchies()
            .into_iter()
            .map(|root| root.join(self.path.trim_start_matches('/')))
            .filter(|dir| dir.is_dir())
            .collect()
    }

    /// Every cgroup below the parent that exists now, itself not counted: what a teardown left.
    pub fn left(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for dir in self.directories() {
            descend(&dir, &mut all);
            all.pop();
        }
        all
    }
}

impl Drop for CgroupParent {
    fn drop(&mut self) {
        for dir in self.directories() {
            let mut all = Vec::new();
            descend(&dir, &mut all);
            for cgroup in all {
                let _ = fs::remove_dir(cgroup);
            }
        }
    }
}

/// The directories of a tree, children before their parent.
fn descend(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            descend(&entry.path(), all);
        }
    }
    all.push(dir.to_owned());
}

/// Where this host mounts its cgroup hierarchies, v1 and v2.
fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .filter(|(_, fs)| fs.starts_with("cgroup ") || fs.starts_with("cgroup2 "))
        .filter_map(|(mount, _)| mount.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}
