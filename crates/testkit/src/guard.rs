//! Looks for what a test leaves behind.
//!
//! A guard is taken before and asked after: what is there now and was not there before is a
//! leak, what was there and is gone was somebody else's. The kernel takes namespaces, cgroups
//! and zombies down in its own time, so a guard asks again until a deadline.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cgroups;
use crate::error::Error;
use crate::mounts::{self, Mount};
use crate::node::Node;
use crate::process;

/// What was there when the guard was taken.
#[derive(Debug)]
pub struct Guard {
    scope: Scope,
    before: BTreeSet<String>,
}

/// Whose things are watched.
#[derive(Debug, Clone)]
enum Scope {
    /// The calling process and all below it.
    Own,
    /// A node: all below its keeper.
    Node { keeper: u32 },
}

impl Guard {
    /// Watches the calling process: processes below it, its threads, its mounts and its open
    /// files. For kernel tests, which run in one thread: other tests of the same program must
    /// not run beside.
    /// # Errors
    /// [`Error::File`] if `/proc` cannot be read.
    pub fn of_self() -> Result<Self, Error> {
        Self::take(Scope::Own)
    }

    /// Watches a node: processes, mounts, network links, Unix sockets, cgroups in every
    /// hierarchy and all files below `/run`.
    /// # Errors
    /// [`Error::File`] if `/proc` cannot be read.
    pub fn of_node(node: &Node) -> Result<Self, Error> {
        Self::take(Scope::Node {
            keeper: node.keeper_pid(),
        })
    }

    fn take(scope: Scope) -> Result<Self, Error> {
        let before = scope.snapshot()?;
        Ok(Self { scope, before })
    }

    /// Waits until everything is as before.
    /// # Errors
    /// [`Error::Leak`] with one line for each difference when `limit` is over.
    pub fn assert_clean(&self, limit: Duration) -> Result<(), Error> {
        let own = matches!(self.scope, Scope::Own);
        until_empty(limit, || {
            let now = self.scope.snapshot()?;
            let new = now.difference(&self.before).map(|line| format!("+ {line}"));
            let gone = self.before.difference(&now);
            // A mount goes wherever it was copied to when somebody removes its directory.
            let gone = gone.filter(|line| !(own && line.starts_with("mount ")));
            let gone = gone.map(|line| format!("- {line}"));
            Ok(new.chain(gone).collect())
        })
    }
}

/// Waits until nothing on the node carries one of `ids`, in a command line or a path.
/// # Errors
/// [`Error::Leak`] with what still does when `limit` is over.
pub fn assert_forgotten(node: &Node, ids: &[String], limit: Duration) -> Result<(), Error> {
    let scope = Scope::Node {
        keeper: node.keeper_pid(),
    };
    until_empty(limit, || {
        let now = scope.snapshot()?.into_iter();
        Ok(now
            .filter(|line| ids.iter().any(|id| line.contains(id)))
            .collect())
    })
}

/// Asks until the answer is empty. There is no event for the end of a mount or a cgroup.
fn until_empty(limit: Duration, ask: impl Fn() -> Result<Vec<String>, Error>) -> Result<(), Error> {
    let end = Instant::now() + crate::command::patient(limit);
    loop {
        let left = ask()?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Error::Leak(left.join("\n")));
        }
        pause(Duration::from_millis(10));
    }
}

/// Rests between two questions of which no event tells when to ask the second.
pub(crate) fn pause(time: Duration) {
    let time = rustix::event::Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    };
    // Only ends early at a signal, which is no harm.
    let _ = rustix::event::poll(&mut [], Some(&time));
}

impl Scope {
    fn snapshot(&self) -> Result<BTreeSet<String>, Error> {
        match self {
            Self::Own => own(),
            Self::Node { keeper } => of_node(*keeper),
        }
    }
}

fn own() -> Result<BTreeSet<String>, Error> {
    let mut found = mount_lines(&mounts::of("self")?);
    found.extend(
        process::descendants(std::process::id())
            .iter()
            .map(ToString::to_string),
    );
    for entry in std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        // The directory that is being read is open too, and its link dangles by the time.
        if let Ok(target) = std::fs::read_link(entry.path())
            && !target.starts_with(format!("/proc/{}/fd", std::process::id()))
        {
            found.insert(format!("fd {:?} {}", entry.file_name(), target.display()));
        }
    }
    Ok(found)
}

fn of_node(keeper: u32) -> Result<BTreeSet<String>, Error> {
    let root = PathBuf::from(format!("/proc/{keeper}/root"));
    let mounts = mounts::of(keeper)?;
    let mut found = mount_lines(&mounts);
    let processes = process::descendants(keeper).into_iter();
    found.extend(
        processes
            .filter(|p| p.comm != "containerd")
            .map(|p| p.to_string()),
    );
    for mount in mounts.iter().filter(|mount| mount.is_cgroup()) {
        let dirs = cgroups::tree(&under(&root, &mount.target));
        found.extend(
            dirs.iter()
                .map(|dir| format!("cgroup {}", shown(dir, &root))),
        );
    }
    files(&root.join("run"), &root, &mut found);
    let links = std::fs::read_to_string(format!("/proc/{keeper}/net/dev")).unwrap_or_default();
    let links = links.lines().filter_map(|line| line.split_once(':'));
    found.extend(links.map(|(name, _)| format!("link {}", name.trim())));
    let sockets = std::fs::read_to_string(format!("/proc/{keeper}/net/unix")).unwrap_or_default();
    let listening = sockets
        .lines()
        .filter(|line| line.split(' ').nth(3) == Some("00010000"));
    found.extend(listening.filter_map(|line| Some(format!("socket {}", line.split_once(" /")?.1))));
    Ok(found)
}

fn mount_lines(mounts: &[Mount]) -> BTreeSet<String> {
    let line = |m: &Mount| {
        format!(
            "mount {} {} {} {}",
            m.target.display(),
            m.fs,
            m.source,
            m.root
        )
    };
    mounts.iter().map(line).collect()
}

/// Every file below `dir`, at most ten levels deep.
fn files(dir: &Path, root: &Path, found: &mut BTreeSet<String>) {
    let mut next = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = next.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            // What Berm refused stays for those who ask why; it is bounded. systemd's and udev's
            // own accounts of units and devices come and go late.
            let name = entry.file_name();
            if name == ".refused" || (depth == 0 && (name == "systemd" || name == "udev")) {
                continue;
            }
            // containerd makes it with the first image volume and keeps it.
            let empty =
                || std::fs::read_dir(entry.path()).is_ok_and(|mut dir| dir.next().is_none());
            if entry.file_name() == "image-volumes" && empty() {
                continue;
            }
            found.insert(format!("file {}", shown(&entry.path(), root)));
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            // A mounted rootfs is a leak by its mount; its files would only bury that line.
            if is_dir && depth < 10 && entry.file_name() != "rootfs" {
                next.push((entry.path(), depth + 1));
            }
        }
    }
}

fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn shown(path: &Path, root: &Path) -> String {
    format!("/{}", path.strip_prefix(root).unwrap_or(path).display())
}
