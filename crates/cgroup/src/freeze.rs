//! Stopping all processes of a cgroup, letting them go on, and ending them.
//!
//! On v2, and on hybrid by way of the cgroup2 beside v1, the kernel does each in one write and
//! reports by [`Cgroup::watch`]. On pure v1 the freezer has no event: its state has to be read
//! again until it says so (100 µs for a few processes), with a deadline of the caller's.

use rustix::io::Errno;
use rustix::process::Signal;

use crate::controller::Controller;
use crate::dir::Dir;
use crate::{Cgroup, Error};

/// What freezes here.
enum Freezer<'a> {
    V1(&'a Dir),
    V2(&'a Dir),
}

impl Cgroup {
    /// Starts to freeze every process. When [`Cgroup::frozen`] says true, it is done.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] without a freezer.
    pub fn freeze(&self) -> Result<(), Error> {
        match self.freezer()? {
            Freezer::V1(dir) => dir.write("freezer.state", "FROZEN"),
            Freezer::V2(dir) => dir.write("cgroup.freeze", "1"),
        }
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] without a freezer.
    pub fn thaw(&self) -> Result<(), Error> {
        match self.freezer()? {
            Freezer::V1(dir) => dir.write("freezer.state", "THAWED"),
            Freezer::V2(dir) => dir.write("cgroup.freeze", "0"),
        }
    }

    /// True if every process stands still. Never waits.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] without a freezer.
    pub fn frozen(&self) -> Result<bool, Error> {
        let mut buf = Vec::new();
        match self.freezer()? {
            Freezer::V1(dir) => {
                if dir.read("freezer.state", &mut buf)?.trim_end() != "FREEZING" {
                    return Ok(buf.starts_with(b"FROZEN"));
                }
                // Processes that came while it was freezing are only caught by asking again.
                if dir.read_u64_if_there("freezer.self_freezing")? != Some(0) {
                    dir.write("freezer.state", "FROZEN")?;
                }
                Ok(dir.read("freezer.state", &mut buf)?.trim_end() == "FROZEN")
            }
            Freezer::V2(dir) => Ok(dir.read_key("cgroup.events", "frozen", &mut buf)? == Some(1)),
        }
    }

    /// Sends SIGKILL to every process, also in sub-groups, and thaws them so that they can die;
    /// true if none is left, or no cgroup. Never waits: call it again, when [`Cgroup::watch`] shows a change or
    /// after a short while, until it says true or a deadline of the caller's has passed.
    ///
    /// # Errors
    /// As [`Cgroup::signal`]; [`berm_sys::Kind::NotSupported`] without a freezer.
    pub fn kill(&self) -> Result<bool, Error> {
        if self.dirs.is_empty() {
            return Ok(true);
        }
        if self.is_empty()? {
            return Ok(true);
        }
        if !self.kill_at_once()? {
            // A frozen cgroup forks nothing, so the list is complete; whoever slipped through
            // before it stood still is met by the next call.
            self.freeze()?;
            let signalled = self.signal(Signal::KILL);
            self.thaw()?;
            signalled?;
        }
        if self.is_empty()? {
            return Ok(true);
        }
        if let Some(dir) = self.dir(Controller::Freezer) {
            dir.write("freezer.state", "THAWED")?;
        }
        Ok(false)
    }

    /// By `cgroup.kill` (5.14); false without it.
    fn kill_at_once(&self) -> Result<bool, Error> {
        let Some(dir) = self.unified() else {
            return Ok(false);
        };
        match dir.write("cgroup.kill", "1") {
            Ok(()) => Ok(true),
            Err(Error::Write {
                source: Errno::NOENT | Errno::OPNOTSUPP,
                ..
            }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True if somebody asked for it to be frozen, in whichever hierarchy.
    pub(crate) fn is_freezing(&self) -> Result<bool, Error> {
        let asked = |dir: Option<&Dir>, file| match dir {
            Some(dir) => Ok(dir.read_u64_if_there(file)?.unwrap_or(0) != 0),
            None => Ok(false),
        };
        Ok(asked(self.unified(), "cgroup.freeze")?
            || asked(self.dir(Controller::Freezer), "freezer.self_freezing")?)
    }

    fn freezer(&self) -> Result<Freezer<'_>, Error> {
        if let Some(dir) = self.unified().filter(|dir| dir.has("cgroup.freeze")) {
            return Ok(Freezer::V2(dir));
        }
        match self.dir(Controller::Freezer) {
            Some(dir) => Ok(Freezer::V1(dir)),
            None => Err(Error::Unsupported {
                field: "freeze",
                reason: "no freezer hierarchy, and no cgroup2 with cgroup.freeze (Linux 5.2)"
                    .into(),
            }),
        }
    }
}
