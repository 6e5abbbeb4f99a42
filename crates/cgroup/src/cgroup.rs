//! Creating, joining, opening and removing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode as FileMode, OFlags};
use rustix::io::Errno;

use crate::controller::Controller;
use crate::dir::{Dir, write_whole};
use crate::{CgroupPath, Error, Host, Unit, cpuset, subtree};

/// The cgroup of one sandbox or container: a directory of the same path in every hierarchy.
///
/// Until [`Cgroup::keep`] is called, dropping it removes again what [`Cgroup::create`] made.
#[derive(Debug)]
pub struct Cgroup {
    pub(crate) host: Arc<Host>,
    pub(crate) path: CgroupPath,
    /// One for each of the host's hierarchies, in the same order. `None` where [`Cgroup::open`]
    /// did not find it.
    pub(crate) dirs: Vec<Option<Dir>>,
    /// What to remove on drop: hierarchy and path, in the order of making.
    undo: Vec<(usize, String)>,
    /// The scope that it is the directory of.
    unit: Option<Unit>,
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy, parents included. On v1 a new cpuset gets the CPUs and
    /// memory nodes of its parent; on v2 every ancestor hands its controllers down. A directory
    /// that exists is taken over if it holds no process and is not frozen, as runc does.
    ///
    /// # Errors
    /// [`berm_sys::Kind::FailedPrecondition`] if the cgroup is in use or frozen; otherwise the
    /// errno of the call that is named.
    pub fn create(host: &Arc<Host>, path: &CgroupPath) -> Result<Self, Error> {
        let mut cgroup = Self {
            host: Arc::clone(host),
            path: path.clone(),
            dirs: Vec::with_capacity(host.hierarchies.len()),
            undo: Vec::new(),
            unit: None,
        };
        let mut existed = false;
        for at in 0..host.hierarchies.len() {
            existed |= !cgroup.create_in(at)?;
        }
        if existed {
            cgroup.refuse_in_use()?;
        }
        Ok(cgroup)
    }

    /// Takes over the directory of a scope that was just started, with the process in it that it
    /// was started around, and hands down the controllers that systemd does not know.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] where controllers are on v1: there systemd would open the
    /// devices again at its next reload; otherwise the errno of the call that is named.
    pub fn adopt(host: &Arc<Host>, path: &CgroupPath, unit: &Unit) -> Result<Self, Error> {
        host.refuse_scopes()?;
        let mut cgroup = Self {
            host: Arc::clone(host),
            path: path.clone(),
            dirs: Vec::with_capacity(host.hierarchies.len()),
            undo: Vec::new(),
            unit: Some(unit.clone()),
        };
        for at in 0..host.hierarchies.len() {
            cgroup.create_in(at)?;
        }
        Ok(cgroup)
    }

    /// The scope of systemd's that the cgroup is the directory of.
    pub fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// Opens a cgroup that exists, to clean up by a record after its shim is gone. Hierarchies
    /// in which it was removed already are left out.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if no hierarchy has it.
    pub fn open(host: &Arc<Host>, path: &CgroupPath) -> Result<Self, Error> {
        let open = |hierarchy: &crate::host::Hierarchy| match hierarchy
            .root
            .child(path.relative().as_bytes())
        {
            Ok(dir) => Ok(Some(dir)),
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        };
        let dirs = host
            .hierarchies
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        if dirs.iter().all(Option::is_none) {
            return Err(Error::Gone {
                path: path.relative().into(),
            });
        }
        Ok(Self {
            host: Arc::clone(host),
            path: path.clone(),
            dirs,
            undo: Vec::new(),
            unit: Unit::of(path),
        })
    }

    /// The path below each mount point.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Disarms the removal on drop: from now on only [`Cgroup::remove`] removes it.
    pub fn keep(&mut self) {
        self.undo.clear();
    }

    /// Opens `tasks` of every v1 hierarchy for [`join`]. Whoever holds these may put itself into
    /// the cgroup, whatever its credentials are then. 3 µs for each of 10 hierarchies, so an exec
    /// opens them anew rather than holding 10 FDs for each container.
    ///
    /// Not `cgroup.procs`: for a whole process the kernel takes a lock against every fork and exit
    /// of the host, which waits for an RCU grace period (measured here: 5 ms, up to 19), for the
    /// calling thread alone it does not (0.04 ms).
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if the cgroup was removed.
    pub fn tasks(&self) -> Result<Vec<OwnedFd>, Error> {
        let v1 = |(hierarchy, dir): (&crate::host::Hierarchy, _)| (!hierarchy.v2).then_some(dir);
        let all = self.host.hierarchies.iter().zip(&self.dirs);
        all.filter_map(v1)
            .flatten()
            .map(|dir| dir.file("tasks", OFlags::WRONLY))
            .collect()
    }

    /// The file of every hierarchy, v1 and cgroup2, by which a process that was born elsewhere
    /// enters this cgroup: it writes "0" there.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if the cgroup was removed.
    pub fn entries(&self) -> Result<Vec<OwnedFd>, Error> {
        let all = self.host.hierarchies.iter().zip(&self.dirs);
        all.filter_map(|(hierarchy, dir)| {
            let name = if hierarchy.v2 {
                "cgroup.procs"
            } else {
                "tasks"
            };
            dir.as_ref().map(|dir| dir.file(name, OFlags::WRONLY))
        })
        .collect()
    }

    /// The cgroup's directory on cgroup2, for a child to be born in (`CLONE_INTO_CGROUP`): that
    /// takes no lock which waits, a write to `cgroup.procs` does. `None` on pure v1.
    pub fn birthplace(&self) -> Option<BorrowedFd<'_>> {
        let v2 = self.host.hierarchies.iter().position(|h| h.v2)?;
        self.dirs.get(v2)?.as_ref().map(AsFd::as_fd)
    }

    /// The descriptors that [`Cgroup::update`] needs; a child that runs it may close all others.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.dirs.iter().flatten().map(AsFd::as_fd).collect()
    }

    /// Removes the cgroup with its sub-groups from every hierarchy; parents stay, as with runc.
    /// What is gone already is fine. Dying processes make it [`Error::Busy`] for a moment: call
    /// it again, after [`Cgroup::watch`] has shown a change or after a short while, until a
    /// deadline of your own. One call removes at most [`MAX_GROUPS`] sub-groups.
    ///
    /// # Errors
    /// [`Error::Busy`]; otherwise the errno of the call that is named.
    ///
    /// [`MAX_GROUPS`]: crate::MAX_GROUPS
    pub fn remove(&self) -> Result<(), Error> {
        let mut first = Ok(());
        for hierarchy in &self.host.hierarchies {
            let removed = subtree::remove(&hierarchy.root, self.path.relative());
            first = first.and(removed);
        }
        first
    }

    /// The directory whose files set the limits of `controller`.
    pub(crate) fn dir(&self, controller: Controller) -> Option<&Dir> {
        self.dirs.get(self.host.hierarchy(controller)?)?.as_ref()
    }

    /// As [`Cgroup::dir`] where the controller must be there.
    pub(crate) fn need(&self, controller: Controller) -> Result<&Dir, Error> {
        self.dir(controller).ok_or_else(|| Error::Gone {
            path: self.path.relative().into(),
        })
    }

    /// The directory in the cgroup2 hierarchy.
    pub(crate) fn unified(&self) -> Option<&Dir> {
        self.dirs.get(self.host.unified()?)?.as_ref()
    }

    /// The directory that knows every process: cgroup2's, else the freezer's, else any.
    pub(crate) fn processes(&self) -> Result<&Dir, Error> {
        self.unified()
            .or_else(|| self.dir(Controller::Freezer))
            .or_else(|| self.dirs.iter().flatten().next())
            .ok_or_else(|| Error::Gone {
                path: self.path.relative().into(),
            })
    }

    /// Makes the directory in one hierarchy; false if it existed.
    fn create_in(&mut self, at: usize) -> Result<bool, Error> {
        let host = Arc::clone(&self.host);
        let hierarchy = &host.hierarchies[at];
        let made = self.mkdir_all(at)?;
        if hierarchy.v2 && !hierarchy.controllers.is_empty() {
            subtree::enable(&hierarchy.root, &self.path)?;
        }
        if !hierarchy.v2 && hierarchy.controllers.contains(Controller::Cpuset) {
            cpuset::inherit(&hierarchy.root, self.path.relative())?;
        }
        let dir = hierarchy.root.child(self.path.relative().as_bytes())?;
        self.dirs.push(Some(dir));
        Ok(made)
    }

    /// Makes the directory and the parents that lack; false if it existed.
    fn mkdir_all(&mut self, at: usize) -> Result<bool, Error> {
        let path = self.path.clone();
        match self.mkdir(at, path.relative()) {
            Err(Error::Mkdir {
                source: Errno::NOENT,
                ..
            }) => {
                for prefix in path.prefixes() {
                    self.mkdir(at, prefix)?;
                }
                Ok(true)
            }
            made => made,
        }
    }

    /// Makes one directory and remembers it; false if it existed.
    fn mkdir(&mut self, at: usize, path: &str) -> Result<bool, Error> {
        let root = &self.host.hierarchies[at].root;
        match rustix::fs::mkdirat(root, path, FileMode::from_raw_mode(0o755)) {
            Ok(()) => {
                self.undo.push((at, path.to_owned()));
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(source) => Err(Error::Mkdir {
                path: root.path().join(path),
                source,
            }),
        }
    }

    fn refuse_in_use(&self) -> Result<(), Error> {
        let dir = self.processes()?;
        let processes = self.pids()?.len();
        if processes > 0 {
            return Err(Error::NotEmpty {
                path: dir.path().to_owned(),
                processes,
            });
        }
        if self.is_freezing()? {
            return Err(Error::Frozen {
                path: dir.path().to_owned(),
            });
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    /// Removes what was made and not kept. A directory that will not go (a process is still in
    /// it) stays: there is nobody left to tell.
    fn drop(&mut self) {
        for (at, path) in self.undo.drain(..).rev() {
            let root = &self.host.hierarchies[at].root;
            let _ = rustix::fs::unlinkat(root, path, AtFlags::REMOVEDIR);
        }
    }
}

/// Moves the calling task into every cgroup behind `procs` by writing "0" to each.
///
/// The kernel checks the opener's credentials, not ours, so this works without privilege inside
/// the pod. About 8 µs per hierarchy.
///
/// # Errors
/// The errno of write(2): `ENODEV` if the cgroup was removed, `EBUSY` for a v2 cgroup that hands
/// controllers down, `ENOSPC` for a v1 cpuset without CPUs.
pub fn join(procs: &[impl AsFd]) -> Result<(), Error> {
    for (hierarchy, procs) in procs.iter().enumerate() {
        write_whole(procs.as_fd(), "0").map_err(|source| Error::Join { hierarchy, source })?;
    }
    Ok(())
}
