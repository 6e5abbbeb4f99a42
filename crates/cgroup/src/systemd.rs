//! The systemd driver: a cgroup that is a scope of systemd's, below a slice.
//!
//! A node with cgroup v2 has one writer of its tree, systemd. It is asked for a scope that is
//! delegated (`StartTransientUnit`, `Delegate=yes`): the directory is Berm's from then on, with
//! all that crate does in it, and systemd is told of the limits that it would write itself.
//! A scope is born around a process and ends with the last one in it.
//!
//! All calls here block, up to their deadline; no other part of this crate does.

mod bus;
mod properties;
mod wire;

use std::fmt;
use std::path::Path;
use std::time::Instant;

use self::bus::{Bus, Failed, PRIVATE, SYSTEM_BUS, manager, unit_properties};
pub(crate) use self::properties::rounded;
use self::wire::{Body, Value};
use crate::{CgroupPath, Error, Resources};

/// Exists where systemd is PID 1 (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";
/// The oldest version that Berm knows something of, for one that does not say.
const OLDEST: u32 = 239;

/// Where a cgroup lies, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path below each mount point.
    pub path: CgroupPath,
    /// The unit of systemd that it belongs to; `None`: the directory is made by mkdir(2).
    pub unit: Option<Unit>,
}

impl Place {
    /// Reads `linux.cgroupsPath`: a path, or systemd's `slice:prefix:name`.
    ///
    /// # Errors
    /// [`berm_sys::Kind::InvalidArgument`] for what is neither.
    pub fn parse(cgroups_path: &str) -> Result<Self, Error> {
        if !is_systemds(cgroups_path) {
            let path = CgroupPath::parse(cgroups_path)?;
            return Ok(Self { path, unit: None });
        }
        let unit = Unit::parse(cgroups_path)?;
        let path = format!("{}/{}", expand(&unit.slice, cgroups_path)?, unit.name);
        Ok(Self {
            path: CgroupPath::parse(&path)?,
            unit: Some(unit),
        })
    }
}

/// True for `slice:prefix:name`.
pub(crate) fn is_systemds(cgroups_path: &str) -> bool {
    !cgroups_path.starts_with('/') && cgroups_path.matches(':').count() == 2
}

/// A scope of systemd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `cri-containerd-ID.scope`
    name: String,
    /// `kubepods-burstable.slice`
    slice: String,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Unit {
    fn parse(cgroups_path: &str) -> Result<Self, Error> {
        let bad = |reason| Error::BadPath {
            path: cgroups_path.to_owned(),
            reason,
        };
        let mut parts = cgroups_path.split(':');
        let (slice, prefix, name) = (parts.next(), parts.next(), parts.next());
        let (Some(slice), Some(prefix), Some(name)) = (slice, prefix, name) else {
            return Err(bad("is not slice:prefix:name"));
        };
        if name.is_empty() {
            return Err(bad("names no unit"));
        }
        if name.ends_with(".slice") {
            return Err(bad(
                "names a slice, in which no process can be; name a scope",
            ));
        }
        let slice = if slice.is_empty() {
            "system.slice"
        } else {
            slice
        };
        Ok(Self {
            name: format!("{prefix}-{name}.scope"),
            slice: slice.to_owned(),
        })
    }

    /// The scope that a cgroup belongs to by its path, to clean up by a record: a directory
    /// `X.scope` in a directory `Y.slice`.
    pub fn of(path: &CgroupPath) -> Option<Self> {
        let mut parts = path.relative().rsplit('/');
        let (name, slice) = (parts.next()?, parts.next().unwrap_or("-.slice"));
        (name.ends_with(".scope") && slice.ends_with(".slice")).then(|| Self {
            name: name.to_owned(),
            slice: slice.to_owned(),
        })
    }

    /// Starts the scope with the process `pid` in it and waits until it is there.
    ///
    /// # Errors
    /// [`berm_sys::Kind::NotSupported`] where systemd does not run;
    /// [`berm_sys::Kind::AlreadyExists`] if the scope is there;
    /// [`berm_sys::Kind::DeadlineExceeded`] at `until`; what systemd says otherwise.
    pub fn start(&self, pid: u32, limits: &Resources, until: Instant) -> Result<(), Error> {
        self.refuse_without_systemd()?;
        self.start_over(&mut Bus::connect(PRIVATE, SYSTEM_BUS, until)?, pid, limits)
    }

    /// Tells systemd new limits of the scope, which it writes at once.
    ///
    /// # Errors
    /// As [`Unit::start`]; [`berm_sys::Kind::NotFound`] without the scope.
    pub fn set(&self, limits: &Resources, until: Instant) -> Result<(), Error> {
        self.refuse_without_systemd()?;
        self.set_over(&mut Bus::connect(PRIVATE, SYSTEM_BUS, until)?, limits)
    }

    /// Ends the scope with what is in it and lets systemd forget it. One that is gone is fine, and
    /// so is a host on which systemd does not run.
    ///
    /// # Errors
    /// [`berm_sys::Kind::DeadlineExceeded`] at `until`; what systemd says otherwise.
    pub fn stop(&self, until: Instant) -> Result<(), Error> {
        if !booted() {
            return Ok(());
        }
        self.stop_over(&mut Bus::connect(PRIVATE, SYSTEM_BUS, until)?)
    }

    fn refuse_without_systemd(&self) -> Result<(), Error> {
        if booted() {
            return Ok(());
        }
        Err(Error::NoSystemd {
            unit: self.name.clone(),
        })
    }

    fn start_over(&self, bus: &mut Bus, pid: u32, limits: &Resources) -> Result<(), Error> {
        let version = self.version(bus)?;
        let truly = || Value::Bool(true);
        let mut all = vec![
            (
                "Description",
                Value::Text(format!("Berm container {}", self.name)),
            ),
            ("Slice", Value::Text(self.slice.clone())),
            ("Delegate", truly()),
            ("PIDs", Value::Numbers(vec![pid])),
            ("MemoryAccounting", truly()),
            ("CPUAccounting", truly()),
            ("IOAccounting", truly()),
            ("TasksAccounting", truly()),
            ("DefaultDependencies", Value::Bool(false)),
        ];
        all.extend(properties::of(limits, version)?);
        let mut body = Body::default();
        body.text(&self.name);
        body.text("replace");
        body.properties(&all);
        body.nothing();
        const START: &str = "StartTransientUnit";
        let start = manager(START, "ssa(sv)a(sa(sv))");
        let started = match bus.call(start, &body) {
            // One that failed before stays until it is forgotten.
            Err(Failed::Refused { name, .. }) if name.ends_with(".UnitExists") => {
                self.forget(bus)?;
                bus.call(start, &body)
            }
            started => started,
        };
        let result = self.end_of_job(bus, started.map_err(|e| self.failed(START, e))?)?;
        if result != "done" {
            self.forget(bus)?;
            let reason = format!("its start ended with {result:?}; `systemctl status` may say why");
            return Err(self.error(START, reason));
        }
        Ok(())
    }

    fn set_over(&self, bus: &mut Bus, limits: &Resources) -> Result<(), Error> {
        let version = self.version(bus)?;
        let all = properties::of(limits, version)?;
        if all.is_empty() {
            return Ok(());
        }
        const SET: &str = "SetUnitProperties";
        let body = unit_properties(&self.name, true, &all);
        let set = bus.call(manager(SET, "sba(sv)"), &body);
        set.map(drop).map_err(|failed| self.failed(SET, failed))
    }

    fn stop_over(&self, bus: &mut Bus) -> Result<(), Error> {
        const STOP: &str = "StopUnit";
        let mut body = Body::default();
        body.text(&self.name);
        body.text("replace");
        match bus.call(manager(STOP, "ss"), &body) {
            Err(Failed::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => return Ok(()),
            Err(failed) => return Err(self.failed(STOP, failed)),
            Ok(job) => drop(self.end_of_job(bus, job)?),
        }
        self.forget(bus)
    }

    /// The answer to Start and Stop names the job that does it.
    fn end_of_job(&self, bus: &mut Bus, answer: Vec<String>) -> Result<String, Error> {
        let job = answer.into_iter().next();
        bus.job(&job.ok_or_else(|| self.error("StartTransientUnit", "no job".to_owned()))?)
    }

    /// Lets systemd forget a unit that failed; one that did not is forgotten anyway.
    fn forget(&self, bus: &mut Bus) -> Result<(), Error> {
        let mut body = Body::default();
        body.text(&self.name);
        match bus.call(manager("ResetFailedUnit", "s"), &body) {
            Ok(_) | Err(Failed::Refused { .. }) => Ok(()),
            Err(Failed::Broken(error)) => Err(error),
        }
    }

    fn version(&self, bus: &mut Bus) -> Result<u32, Error> {
        let version = bus.version();
        Ok(version
            .map_err(|failed| self.failed("Get(Version)", failed))?
            .unwrap_or(OLDEST))
    }

    fn failed(&self, call: &'static str, failed: Failed) -> Error {
        let (name, text) = match failed {
            Failed::Broken(error) => return error,
            Failed::Refused { name, text } => (name, text),
        };
        let unit = self.name.clone();
        match name.rsplit('.').next() {
            Some("UnitExists") => Error::UnitExists { unit },
            Some("NoSuchUnit") => Error::Gone { path: unit.into() },
            _ => self.error(call, format!("{name}: {text}").escape_debug().to_string()),
        }
    }

    fn error(&self, call: &'static str, reason: String) -> Error {
        Error::Systemd {
            call,
            unit: self.name.clone(),
            reason,
        }
    }
}

fn booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// A slice's directory: `a-b.slice` lies in `a.slice`; `-.slice` is the root.
fn expand(slice: &str, cgroups_path: &str) -> Result<String, Error> {
    let bad = |reason| Error::BadPath {
        path: cgroups_path.to_owned(),
        reason,
    };
    let name = slice.strip_suffix(".slice").unwrap_or_default();
    if name.is_empty() || slice.contains('/') {
        return Err(bad("begins with no name of a slice, such as system.slice"));
    }
    if name == "-" {
        return Ok(String::new());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(bad("begins with a slice whose name has an empty part"));
        }
        prefix.push_str(part);
        path.push_str(&format!("/{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests;
