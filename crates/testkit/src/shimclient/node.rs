//! What containerd is to a shim: directories, addresses, a namespace and an event endpoint.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::set_child_subreaper;

use super::processes::kill_all;
use super::{CgroupParent, Error, Events, ScratchDir};

/// The side of containerd: everything a shim is told at its start, and where its events go.
///
/// Nodes do not see each other: each has its own directory, sockets and cgroup. Dropping one
/// kills every process that was started through it, then undoes mounts, cgroups and files.
#[derive(Debug)]
pub struct Node {
    namespace: String,
    leftovers: Mutex<Vec<PathBuf>>,
    events: Events,
    // Dropped in this order, after `Drop::drop` has killed the processes.
    cgroup: CgroupParent,
    dir: ScratchDir,
}

impl Node {
    /// Makes a node in namespace `k8s.io` whose name starts with `name`, and serves its events.
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The errno of the file system, or ttrpc's if the event socket cannot be served.
    pub async fn new(name: &str) -> Result<Self, Error> {
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(Error::errno("prctl", "PR_SET_CHILD_SUBREAPER"))?;
        let dir = ScratchDir::new(name)?;
        let leaf = dir
            .path()
            .file_name()
            .map(|leaf| leaf.to_string_lossy().into_owned());
        let cgroup = CgroupParent::new(&leaf.unwrap_or_else(|| name.to_owned()));
        for sub in ["state", "work", "pods", "fifo", "s"] {
            make_dir(&dir.path().join(sub))?;
        }
        let events = Events::serve(dir.path().join("containerd.sock.ttrpc")).await?;
        let namespace = "k8s.io".to_owned();
        Ok(Self {
            namespace,
            leftovers: Mutex::default(),
            events,
            cgroup,
            dir,
        })
    }

    /// The namespace of containerd that all calls are made in.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The events that shims of this node sent.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The event endpoint, to take it down and up again.
    pub fn events_mut(&mut self) -> &mut Events {
        &mut self.events
    }

    /// The cgroup below which this node's containers live.
    pub fn cgroup(&self) -> &CgroupParent {
        &self.cgroup
    }

    /// The node's directory; all that it makes lies below.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where containerd would serve gRPC. Nobody does; it goes into the socket's name.
    pub fn grpc_address(&self) -> PathBuf {
        self.dir().join("containerd.sock")
    }

    /// Where shims put their sockets when they are told a directory.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir().join("s")
    }

    /// The directory for bundle `id` (not made).
    pub fn bundle_dir(&self, id: &str) -> PathBuf {
        self.dir().join("state").join(&self.namespace).join(id)
    }

    /// A new id of 64 hexadecimal digits, as CRI's; no other node on this host gets the same.
    pub fn new_id(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        format!(
            "{:032x}{:016x}{number:016x}",
            now.as_nanos(),
            std::process::id()
        )
    }

    /// Has a file or directory outside the node removed with it, if it is still there then: what
    /// a shim leaves that was killed.
    pub(super) fn remove_later(&self, path: PathBuf) {
        self.leftovers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path);
    }

    /// Whether a process, given as its directory in `/proc`, belongs to this node: it is in the
    /// node's cgroup, or has the node's event address in its environment as every shim has.
    pub fn owns(&self, proc_dir: &Path) -> bool {
        let address = format!("TTRPC_ADDRESS={}", self.events.path().display());
        let environ = fs::read(proc_dir.join("environ")).unwrap_or_default();
        environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == address.as_bytes())
            || fs::read_to_string(proc_dir.join("cgroup")).is_ok_and(|text| {
                text.lines()
                    .any(|line| line.contains(&format!(":{}/", self.cgroup.as_str())))
            })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        kill_all(|proc_dir| self.owns(proc_dir));
        let leftovers = self
            .leftovers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for path in leftovers.drain(..) {
            // Mostly they are gone already.
            let _ = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
        }
    }
}

/// Makes a directory of mode 0700 with its parents.
pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("mkdir", path))
}
