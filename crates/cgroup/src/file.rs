//! One file of a cgroup by its name, for those who know which they want.

use std::time::Instant;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::controller::Controller;
use crate::dir::Dir;
use crate::{Cgroup, Error, Mode};

/// Longest name of a file: the kernel's own limit.
const MAX_NAME: usize = 255;
/// What moves processes or stops them: the owner of the cgroup does that by calls of its own.
const NOT_WRITTEN: [&str; 10] = [
    "tasks",
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.type",
    "cgroup.subtree_control",
    "freezer.state",
    "notify_on_release",
    "cgroup.clone_children",
];

impl Cgroup {
    /// Reads the file `name` of the controller `controller` (`memory`, `cpu`, `io`; `cgroup` for
    /// cgroup2's own files), at most 256 KiB.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotFound`] if the directory has no such file; `InvalidArgument` for a
    /// controller that the kernel does not know; otherwise the errno of the call that is named.
    pub fn read_control_file(&self, controller: &str, name: &str) -> Result<String, Error> {
        let dir = self.listed(controller, name)?;
        let mut buf = Vec::new();
        Ok(dir.read(name, &mut buf)?.to_owned())
    }

    /// Writes the file `name` of `controller`, in one write(2), which may take as long as the
    /// kernel needs to reclaim memory: call it in a child, with a deadline.
    ///
    /// # Errors
    /// As [`Cgroup::read_control_file`]; `InvalidArgument` for the files by which processes are
    /// moved, stopped and ended; the errno with which the kernel refuses the value.
    pub fn write_control_file(
        &self,
        controller: &str,
        name: &str,
        value: &str,
        until: Instant,
    ) -> Result<(), Error> {
        let dir = self.writable_file(controller, name)?;
        if Instant::now() >= until {
            return Err(Error::Write {
                path: dir.path().join(name),
                value: value.to_owned(),
                source: Errno::TIMEDOUT,
            });
        }
        dir.write(name, value)
    }

    /// Refuses what [`Cgroup::write_control_file`] would, but for the value.
    ///
    /// # Errors
    /// As [`Cgroup::write_control_file`].
    pub fn may_write_control_file(&self, controller: &str, name: &str) -> Result<(), Error> {
        self.writable_file(controller, name).map(drop)
    }

    fn writable_file(&self, controller: &str, name: &str) -> Result<&Dir, Error> {
        let dir = self.listed(controller, name)?;
        if NOT_WRITTEN.contains(&name) || controller == Controller::Devices.name() {
            return Err(Error::BadValue {
                field: "name",
                value: name.to_owned(),
                reason: "its owner would not know what became of its processes; use its own \
                         calls: Pause, Resume, Signal, Update",
            });
        }
        Ok(dir)
    }

    /// The directory of `controller`, if it has the file `name`.
    fn listed(&self, controller: &str, name: &str) -> Result<&Dir, Error> {
        let dir = self.of_controller(controller, name)?;
        let path = || dir.path().join(name);
        let none = || Error::Open {
            path: path(),
            flags: "O_RDONLY",
            source: Errno::NOENT,
        };
        // The name goes to the kernel only if the directory has it: '/' and ".." are in none.
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(none());
        }
        let failed = |source| Error::Read {
            path: dir.path().to_owned(),
            source,
        };
        let list = rustix::fs::Dir::read_from(dir).map_err(failed)?;
        for entry in list {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_bytes() == name.as_bytes() {
                let is_file = entry.file_type() == FileType::RegularFile;
                return is_file.then_some(dir).ok_or_else(none);
            }
        }
        Err(none())
    }

    fn of_controller(&self, controller: &str, name: &str) -> Result<&Dir, Error> {
        let unknown = || Error::BadValue {
            field: "controller",
            value: controller.to_owned(),
            reason: "no controller of that name is in use on this host",
        };
        let gone = || Error::Gone {
            path: self.path().relative().into(),
        };
        if controller == "cgroup" {
            return self.unified().ok_or_else(unknown);
        }
        let known = Controller::by_v2_name(controller).ok_or_else(unknown)?;
        if !self.host.has(known) {
            return Err(unknown());
        }
        // All controllers share a directory on v2: the file's own name says whose it is.
        let own = |prefix: &str| {
            name.strip_prefix(prefix)
                .is_some_and(|r| r.starts_with('.'))
        };
        let v2_name = if known == Controller::Blkio {
            "io"
        } else {
            known.name()
        };
        if self.host.mode() == Mode::V2 && !own(v2_name) {
            return Err(Error::BadValue {
                field: "name",
                value: name.to_owned(),
                reason: "is no file of this controller",
            });
        }
        self.dir(known).ok_or_else(gone)
    }
}
