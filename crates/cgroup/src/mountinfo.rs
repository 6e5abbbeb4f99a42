//! The cgroup lines of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::controller::Controllers;

/// A hierarchy and the one of its mounts that we use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) point: PathBuf,
    pub(crate) v2: bool,
    pub(crate) controllers: Controllers,
    /// `major:minor`: the same for every mount of the hierarchy.
    device: String,
    /// How well this mount fits: below `/sys/fs/cgroup`, showing the hierarchy's root.
    rank: (bool, bool),
}

/// Every mounted hierarchy once, in the order of the file. Of several mounts of one hierarchy
/// (a container's bind mounts, a second cgroup2) the best is taken, and the first of the best.
pub(crate) fn hierarchies(mountinfo: &str) -> Vec<Mounted> {
    let mut found: Vec<Mounted> = Vec::new();
    for mount in mountinfo.lines().filter_map(mounted) {
        match found.iter_mut().find(|other| other.device == mount.device) {
            Some(other) if mount.rank > other.rank => *other = mount,
            Some(_) => {}
            None => found.push(mount),
        }
    }
    found
}

/// One line, if it is a cgroup's: `31 23 0:29 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu`.
fn mounted(line: &str) -> Option<Mounted> {
    let (mount, fs) = line.split_once(" - ")?;
    let mut fs = fs.split(' ');
    let v2 = match fs.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = fs.nth(1).unwrap_or_default();
    let mut mount = mount.split(' ').skip(2);
    let device = mount.next()?.to_owned();
    let root = mount.next()?;
    let point = unescape(mount.next()?);
    let controllers = if v2 {
        Controllers::default()
    } else {
        options.split(',').collect()
    };
    let rank = (point.starts_with("/sys/fs/cgroup"), root == "/");
    Some(Mounted {
        point,
        v2,
        controllers,
        device,
        rank,
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if let [
            b'\\',
            a @ b'0'..=b'3',
            b @ b'0'..=b'7',
            c @ b'0'..=b'7',
            tail @ ..,
        ] = rest
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Controller;

    #[test]
    fn each_hierarchy_is_found_once_at_its_best_mount() {
        let text = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:29 /docker/x /mnt/a\\040b rw - cgroup cgroup rw,cpu,cpuacct
31 22 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 22 0:29 / /sys/fs/cgroup/again rw - cgroup cgroup rw,cpu,cpuacct
33 22 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 22 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
35 22 0:32 / /mnt/a\\040b rw - cgroup cgroup rw,memory
";
        let found = hierarchies(text);
        let points: Vec<_> = found.iter().map(|m| m.point.to_str().unwrap()).collect();
        assert_eq!(
            points,
            [
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/systemd",
                "/sys/fs/cgroup/unified",
                "/mnt/a b"
            ]
        );
        assert!(found[0].controllers.contains(Controller::Cpu));
        assert!(found[0].controllers.contains(Controller::Cpuacct));
        assert!(found[1].controllers.is_empty() && !found[1].v2);
        assert!(found[2].v2);
    }
}
