//! `/proc/<pid>/mountinfo`, read (proc_pid_mountinfo(5)).

use std::path::PathBuf;

use crate::error::{Error, file};

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Root of the mount within its file system.
    pub root: String,
    /// Type of the file system.
    pub fs: String,
    /// What was mounted.
    pub source: String,
    /// Options of the file system, by commas.
    pub super_options: String,
}

impl Mount {
    /// Whether it is a cgroup hierarchy, of either version.
    #[must_use]
    pub fn is_cgroup(&self) -> bool {
        self.fs == "cgroup" || self.fs == "cgroup2"
    }

    /// The data of mount(2) that names this v1 hierarchy again; empty on v2.
    pub(crate) fn hierarchy_options(&self) -> String {
        if self.fs == "cgroup2" {
            return String::new();
        }
        let options = self.super_options.split(',').filter(|option| {
            !matches!(*option, "rw" | "ro" | "xattr" | "clone_children")
                && !option.starts_with("release_agent=")
        });
        let options: Vec<&str> = options.collect();
        let named = options.iter().any(|option| option.starts_with("name="));
        if named {
            format!("none,{}", options.join(","))
        } else {
            options.join(",")
        }
    }
}

/// The mounts that process `pid` (or `self`) sees, in kernel order.
/// # Errors
/// [`Error::File`] when the process is gone.
pub fn of(pid: impl std::fmt::Display) -> Result<Vec<Mount>, Error> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = std::fs::read_to_string(&path).map_err(file("read", path))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, target) = (left.next()?.to_owned(), left.next()?.into());
    let mut right = right.split(' ').map(str::to_owned);
    Some(Mount {
        target,
        root,
        fs: right.next()?,
        source: right.next()?,
        super_options: right.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_line_gives_the_options_to_mount_a_named_hierarchy_again() {
        let line = "40 34 0:30 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, PathBuf::from("/sys/fs/cgroup/systemd"));
        assert_eq!(mount.hierarchy_options(), "none,name=systemd");
    }
}
