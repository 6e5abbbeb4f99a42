//! A process's mounts, from `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::read_text;
use crate::error::Error;

/// Some 20,000 mounts: more than a mount namespace may have in a pod of sense.
const MAX_MOUNTINFO: u64 = 4 << 20;

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MountExplained {
    /// Where, inside; escaped as the kernel does.
    pub target: String,
    /// Type of file system.
    pub fs: String,
    /// What of the file system is mounted: its directory.
    pub root: String,
    /// Read-only, as a mount or as a whole.
    pub ro: bool,
    /// Files carry ids of the pod's.
    pub idmapped: bool,
    /// Nobody in the pod can unmount it or change its flags.
    pub locked: bool,
    /// `private`, `slave`, `shared` or `unbindable`.
    pub propagation: String,
    /// The other flags: `nosuid`, `nodev`, `noexec`, …
    pub flags: Vec<String>,
}

/// `userns`: the tree was handed over to a user namespace of the pod.
pub(super) fn of(pid: i32, userns: bool) -> Result<Vec<MountExplained>, Error> {
    let path = format!("/proc/{pid}/mountinfo");
    let text = read_text(Path::new(&path), MAX_MOUNTINFO)?.unwrap_or_default();
    Ok(text
        .lines()
        .filter_map(|line| mount(line, userns))
        .collect())
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn mount(line: &str, userns: bool) -> Option<MountExplained> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, target) = (head.next()?, head.next()?);
    let options: Vec<_> = head.next()?.split(',').collect();
    let tags: Vec<_> = head.collect();
    let mut tail = tail.splitn(3, ' ');
    let fs = tail.next()?;
    let of_fs = tail.nth(1).unwrap_or_default();
    let has = |name: &str| options.contains(&name);
    let tagged = |name: &str| tags.iter().any(|tag| tag.starts_with(name));
    let propagation = match () {
        () if tagged("shared:") => "shared",
        () if tagged("master:") => "slave",
        () if tagged("unbindable") => "unbindable",
        () => "private",
    };
    // The container mounts its own proc, and what hides parts of it, after the tree was locked.
    let below_proc = target == "/proc" || target.starts_with("/proc/");
    let said = ["rw", "ro", "idmapped", "relatime"];
    Some(MountExplained {
        target: target.to_owned(),
        fs: fs.to_owned(),
        root: root.to_owned(),
        ro: has("ro") || of_fs.split(',').any(|option| option == "ro"),
        idmapped: has("idmapped"),
        locked: userns && !below_proc,
        propagation: propagation.to_owned(),
        flags: options
            .iter()
            .filter(|option| !said.contains(*option))
            .map(|option| (*option).to_owned())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read_whole() {
        let line =
            r"36 35 98:0 /a\040b /mnt/x ro,nosuid,noatime,idmapped master:1 - ext4 /dev/r rw,x";
        let found = mount(line, true).unwrap();
        assert_eq!(found.target, "/mnt/x");
        assert_eq!(
            (found.root.as_str(), found.fs.as_str()),
            (r"/a\040b", "ext4")
        );
        assert!(found.ro && found.idmapped && found.locked);
        assert_eq!(found.propagation, "slave");
        assert_eq!(found.flags, ["nosuid", "noatime"]);
        let line = "40 36 0:5 / /proc/kcore rw,relatime - tmpfs tmpfs ro,size=4k";
        let found = mount(line, true).unwrap();
        assert!(found.ro && !found.locked && !found.idmapped);
        assert_eq!(mount("no line of it", true), None);
    }
}
