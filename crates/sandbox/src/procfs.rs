//! Reading of `/proc` what there is of a pod's processes: bounded, escaped, never followed.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use berm_plan::HostShares;
use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};

/// Of `stat` and of `status`, whose lists of groups and CPUs may be long.
pub(crate) const MAX_FILE: u64 = 64 << 10;

/// A directory below `/proc`: of the process that had the pid when it was opened, and of no later
/// one.
#[derive(Debug)]
pub(crate) struct ProcDir(OwnedFd);

impl ProcDir {
    /// `None` if there is none.
    pub(crate) fn open(at: impl AsFd, name: &str) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(at, name, flags, Mode::empty()).ok().map(Self)
    }

    /// The first `limit` bytes of a file; `None` for one that cannot be read.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = std::fs::File::from(openat(&self.0, name, flags, Mode::empty()).ok()?);
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The same as text.
    pub(crate) fn text(&self, name: &str, limit: u64) -> Option<String> {
        let bytes = self.read(name, limit)?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Where a link points to.
    pub(crate) fn link(&self, name: &str) -> Option<String> {
        let target = readlinkat(&self.0, name, Vec::new()).ok()?;
        Some(escape(&target.to_string_lossy()))
    }

    /// The numbers among its entries, at most `max`, in ascending order.
    pub(crate) fn numbers(&self, max: usize) -> Vec<i32> {
        let Ok(entries) = Dir::read_from(&self.0) else {
            return Vec::new();
        };
        let number = |entry: rustix::fs::DirEntry| entry.file_name().to_str().ok()?.parse().ok();
        let mut numbers: Vec<i32> = entries.flatten().filter_map(number).take(max).collect();
        numbers.sort_unstable();
        numbers
    }
}

impl AsFd for ProcDir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The words behind a key of `/proc/<pid>/status`.
pub(crate) fn field<'a>(status: &'a str, key: &str) -> Option<impl Iterator<Item = &'a str>> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_ascii_whitespace())
}

/// The last number of a line: that of the innermost namespace.
pub(crate) fn last(status: &str, key: &str) -> Option<i32> {
    field(status, key)?.last()?.parse().ok()
}

/// `NSpid:  4242  17  1`: the last number is the process's own namespace's. A process without
/// a second number is one of the host's namespace: none of a pod's, unless the pod has that one.
pub(crate) fn innermost_pid(status: &str, shares: HostShares) -> Option<i32> {
    let numbers: Vec<&str> = field(status, "NSpid:")?.collect();
    match numbers.as_slice() {
        [_, .., own] => own.parse().ok(),
        [own] if shares.pid => own.parse().ok(),
        _ => None,
    }
}

/// How many PID namespaces a process is in.
pub(crate) fn depth(status: &str) -> usize {
    field(status, "NSpid:").map_or(0, Iterator::count)
}

/// Control characters as escapes: a pod's text must not move the cursor of who looks at it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Fields of `/proc/<pid>/stat` by their number in proc_pid_stat(5); the name may hold anything,
/// so they are counted from the last ')'.
#[derive(Debug)]
pub(crate) struct Stat<'a> {
    /// Field 2.
    pub(crate) name: &'a str,
    rest: Vec<&'a str>,
}

impl<'a> Stat<'a> {
    pub(crate) fn parse(stat: &'a str) -> Option<Self> {
        let (head, rest) = stat.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let rest = rest.split_ascii_whitespace().collect();
        Some(Self { name, rest })
    }

    /// From field 3 on.
    pub(crate) fn field<T: std::str::FromStr>(&self, number: usize) -> Option<T> {
        self.rest.get(number.checked_sub(3)?)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        let stat = Stat::parse("42 (a) S 99 (b\x1b) R 7 42 41 34817 43 0").unwrap();
        assert_eq!(escape(stat.name), "a) S 99 (b\\u{1b}");
        assert_eq!(
            (stat.field::<i32>(4), stat.field::<i32>(8)),
            (Some(7), Some(43))
        );
        assert_eq!(stat.field::<char>(3), Some('R'));
        assert_eq!((stat.field::<i32>(2), stat.field::<i32>(99)), (None, None));
        assert!(Stat::parse("42 (a S 1").is_none());
    }

    #[test]
    fn the_innermost_pid_counts_and_a_process_of_the_host_has_none_unless_the_pod_shares_its_namespace()
     {
        let pid = |status, pid| {
            let shares = HostShares {
                pid,
                ..HostShares::default()
            };
            innermost_pid(status, shares)
        };
        for shared in [false, true] {
            assert_eq!(pid("Name:\tx\nNSpid:\t4242\t17\t1\n", shared), Some(1));
            assert_eq!(pid("", shared), None);
        }
        assert_eq!(pid("NSpid:\t4242\n", false), None);
        assert_eq!(pid("NSpid:\t4242\n", true), Some(4242));
    }
}
