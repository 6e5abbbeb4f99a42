//! Limits: first a pure list of what to write where, then the writing.
//!
//! The list is complete and checked before the first write, so that a spec this host cannot
//! honour changes nothing. It is what `explain` prints.

mod undo;
mod v1;
pub(crate) mod v2;

use std::borrow::Cow;
use std::time::Instant;

use rustix::io::Errno;

use self::undo::Undo;
use crate::controller::Controller;
use crate::device::Policy;
use crate::dir::Dir;
use crate::{Cgroup, Error, Host, Mode, Resources};

/// One line to write into one file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field of the spec that asks for it.
    pub field: &'static str,
    /// The controller; `None` for a file of cgroup2 itself.
    pub controller: Option<Controller>,
    /// The file's name.
    pub file: String,
    /// What is written.
    pub value: String,
    absent: Absent,
}

/// What to do where the kernel has no such file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absent {
    /// The limit cannot be had: refuse.
    Refuse,
    /// What is asked for is what holds without the file.
    Ignore,
    /// Another file and value for the same.
    Instead(String, String),
}

impl Setting {
    fn new(
        field: &'static str,
        controller: Controller,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        Self {
            field,
            controller: Some(controller),
            file: file.into(),
            value: value.to_string(),
            absent: Absent::Refuse,
        }
    }

    fn absent(mut self, absent: Absent) -> Self {
        self.absent = absent;
        self
    }

    /// The file of `dir` that it goes to, and what is written; `None` if the kernel has none.
    fn target(&self, dir: &Dir) -> Option<(&str, &str)> {
        if dir.has(&self.file) {
            return Some((&self.file, &self.value));
        }
        match &self.absent {
            Absent::Instead(file, value) if dir.has(file) => Some((file, value)),
            _ => None,
        }
    }
}

impl Host {
    /// What [`Cgroup::limit`] would write for `resources` on this host, device rules aside.
    ///
    /// # Errors
    /// [`berm_sys::Kind::InvalidArgument`] for a value that makes no sense,
    /// [`berm_sys::Kind::NotSupported`] for one that this host cannot honour; both name the field.
    pub fn settings(&self, resources: &Resources) -> Result<Vec<Setting>, Error> {
        let settings = match self.mode() {
            Mode::V1 | Mode::Hybrid => v1::settings(resources)?,
            Mode::V2 => v2::settings(resources)?,
        };
        match settings.iter().find(|setting| !self.can(setting)) {
            Some(setting) => Err(Error::Unsupported {
                field: setting.field,
                reason: self.lacks(setting.controller),
            }),
            None => Ok(settings),
        }
    }

    fn can(&self, setting: &Setting) -> bool {
        let has = match setting.controller {
            Some(controller) => self.has(controller),
            None => !self.hierarchies.is_empty(),
        };
        has || setting.absent == Absent::Ignore
    }

    fn lacks(&self, controller: Option<Controller>) -> String {
        match controller {
            Some(controller) if !self.hierarchies.is_empty() => {
                format!("this host has no cgroup controller {}", controller.name())
            }
            _ => "it needs a cgroup, and without root there is none; leave it out, or run as root"
                .to_owned(),
        }
    }
}

impl Cgroup {
    /// Sets every limit of `resources`, and the device rules, in a new cgroup: what fails half-way
    /// is removed with it. One in use takes [`Cgroup::update`].
    ///
    /// # Errors
    /// Before anything is written: [`berm_sys::Kind::InvalidArgument`] and
    /// [`berm_sys::Kind::NotSupported`] with the field, [`berm_sys::Kind::FailedPrecondition`] for
    /// a memory limit below the usage. While writing: [`Error::Limit`] with field, file and errno
    /// (`EACCES` on a nested node); what was written before stays.
    pub fn limit(&self, resources: &Resources) -> Result<(), Error> {
        let resources = &*self.as_systemd_writes(resources);
        let settings = self.host.settings(resources)?;
        // Without root nobody can make a device node: what was not bound cannot be reached.
        let devices = resources
            .devices
            .as_deref()
            .filter(|_| !self.dirs.is_empty());
        let policy = devices.map(Policy::new).transpose()?;
        self.refuse_below_usage(resources)?;
        self.write_all(&settings, policy.as_ref(), &mut write)
    }

    /// Changes the limits of a cgroup in use, all or none: every value is checked before the first
    /// write, they are written in an order that the kernel takes, and when it refuses one all the
    /// same, those before it are taken back. `resources` is what
    /// [`Resources::completed`] made of the change.
    ///
    /// May take as long as the kernel needs to reclaim memory down to a lower limit, and systemd
    /// gets until `until`, if the cgroup is a scope of its.
    ///
    /// # Errors
    /// As [`Cgroup::limit`]; [`Error::NotTakenBack`] where a value written before could not be
    /// restored.
    pub fn update(&self, resources: &Resources, until: Instant) -> Result<(), Error> {
        let resources = &*self.as_systemd_writes(resources);
        let settings = self.host.settings(resources)?;
        let policy = resources.devices.as_deref().map(Policy::new).transpose()?;
        self.refuse_below_usage(resources)?;
        self.refuse_absent(&settings)?;
        let mut undo = Undo::default();
        let written = self.write_all(&settings, policy.as_ref(), &mut |dir, setting| {
            let before = Undo::look(dir, setting);
            write(dir, setting)?;
            undo.remember(dir, before);
            Ok(())
        });
        // systemd writes the same again, and remembers it.
        let told = written.and_then(|()| match self.unit() {
            Some(unit) => unit.set(resources, until),
            None => Ok(()),
        });
        told.map_err(|error| undo.take_back(error))
    }

    /// The limits as they will stay: systemd writes those of a scope too, with a quota in percents.
    fn as_systemd_writes<'r>(&self, resources: &'r Resources) -> Cow<'r, Resources> {
        match self.unit() {
            Some(_) => Cow::Owned(crate::systemd::rounded(resources)),
            None => Cow::Borrowed(resources),
        }
    }

    fn write_all<'c>(
        &'c self,
        settings: &[Setting],
        policy: Option<&Policy>,
        write: &mut dyn FnMut(&'c Dir, &Setting) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for batch in settings.chunk_by(|a, b| a.controller == b.controller) {
            self.write_batch(batch, write)
                .map_err(|error| self.explain(error))?;
        }
        policy.map_or(Ok(()), |policy| self.limit_devices(policy))
    }

    /// v1's kernel says EBUSY for a memory limit that it cannot reclaim down to.
    fn explain(&self, error: Error) -> Error {
        let Error::Limit {
            field,
            path,
            value,
            source: Errno::BUSY,
        } = &error
        else {
            return error;
        };
        let usage = match path.file_name().and_then(|name| name.to_str()) {
            Some("memory.limit_in_bytes") => "memory.usage_in_bytes",
            Some("memory.memsw.limit_in_bytes") => "memory.memsw.usage_in_bytes",
            _ => return error,
        };
        let usage = self
            .need(Controller::Memory)
            .and_then(|dir| dir.read_u64(usage));
        match (value.parse(), usage) {
            (Ok(limit), Ok(usage)) => Error::BelowUsage {
                field,
                limit,
                usage,
            },
            _ => error,
        }
    }

    /// Looks for every file before one is written.
    fn refuse_absent(&self, settings: &[Setting]) -> Result<(), Error> {
        for setting in settings {
            let Some(dir) = self.batch_dir(std::slice::from_ref(setting))? else {
                continue;
            };
            match setting.target(dir) {
                Some(_) => {}
                None if !dir.has("cgroup.procs") => {
                    let path = dir.path().to_owned();
                    return Err(Error::Gone { path });
                }
                None if setting.absent == Absent::Ignore => {}
                None => return Err(no_such_file(dir, setting, &setting.file)),
            }
        }
        Ok(())
    }

    /// Writes the settings of one controller, which may depend on each other: a memory limit must
    /// not exceed memory + swap, a quota with its period must fit the parent's, and whether the
    /// one or the other has to go first depends on what is there now. So what is refused is tried
    /// again as long as another one of the batch went through.
    fn write_batch<'c>(
        &'c self,
        batch: &[Setting],
        write: &mut dyn FnMut(&'c Dir, &Setting) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(dir) = self.batch_dir(batch)? else {
            return Ok(());
        };
        let mut pending: Vec<&Setting> = batch.iter().collect();
        loop {
            let before = pending.len();
            let mut refused = None;
            let mut again = Vec::new();
            for setting in pending {
                match write(dir, setting) {
                    Ok(()) => {}
                    Err(Error::Limit {
                        source: Errno::INVAL | Errno::BUSY,
                        ..
                    }) if before > 1 => {
                        again.push(setting);
                    }
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
            if let Some(error) = refused {
                return Err(error);
            }
            match again.first() {
                None => return Ok(()),
                Some(setting) if again.len() == before => return write(dir, setting),
                Some(_) => pending = again,
            }
        }
    }

    /// Where a batch is written. `None` if the host has no such controller, which
    /// [`Host::settings`] lets pass only for what then holds anyway.
    fn batch_dir(&self, batch: &[Setting]) -> Result<Option<&Dir>, Error> {
        match batch.first().and_then(|setting| setting.controller) {
            Some(controller) if !self.host.has(controller) => Ok(None),
            Some(controller) => self.need(controller).map(Some),
            None => Ok(self.unified()),
        }
    }

    /// v2's kernel would reclaim and kill to get below a new limit; v1's refuses by itself.
    fn refuse_below_usage(&self, resources: &Resources) -> Result<(), Error> {
        let memory = &resources.memory;
        if !memory.check_before_update || self.host.mode() != Mode::V2 {
            return Ok(());
        }
        let Some(usage) = self
            .need(Controller::Memory)?
            .read_u64_if_there("memory.current")?
        else {
            return Ok(());
        };
        let limits = [
            ("linux.resources.memory.swap", memory.swap),
            ("linux.resources.memory.limit", memory.limit),
        ];
        for (field, limit) in limits {
            let Some(limit) = limit.filter(|limit| *limit > 0) else {
                continue;
            };
            if limit.unsigned_abs() <= usage {
                return Err(Error::BelowUsage {
                    field,
                    limit,
                    usage,
                });
            }
        }
        Ok(())
    }
}

/// Writes one setting, or what stands in for it.
fn write(dir: &Dir, setting: &Setting) -> Result<(), Error> {
    let refused = |file: &str, value: &str, source| Error::Limit {
        field: setting.field,
        path: dir.path().join(file),
        value: value.to_owned(),
        source,
    };
    match dir.try_write(&setting.file, &setting.value) {
        Ok(()) => return Ok(()),
        // A removed cgroup has no files either; then it is not the kernel that lacks one.
        Err(Errno::NOENT) if dir.has("cgroup.procs") => {}
        Err(source) => return Err(refused(&setting.file, &setting.value, source)),
    }
    match &setting.absent {
        Absent::Ignore => Ok(()),
        Absent::Refuse => Err(no_such_file(dir, setting, &setting.file)),
        Absent::Instead(file, value) => match dir.try_write(file, value) {
            Err(Errno::NOENT) => Err(no_such_file(dir, setting, file)),
            Err(source) => Err(refused(file, value, source)),
            Ok(()) => Ok(()),
        },
    }
}

fn no_such_file(dir: &Dir, setting: &Setting, file: &str) -> Error {
    let reason = format!("this kernel has no {file} in {:?}", dir.path());
    Error::Unsupported {
        field: setting.field,
        reason,
    }
}

/// `value`, unless it is absent or 0, the field's "unset".
fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// A field that only v1 has, or a value that is out of its range.
fn bad(field: &'static str, value: impl ToString, reason: &'static str) -> Error {
    Error::BadValue {
        field,
        value: value.to_string(),
        reason,
    }
}

/// A memory size: a number of bytes or -1 for no limit; 0 is unset.
fn bytes(field: &'static str, value: Option<i64>) -> Result<Option<i64>, Error> {
    match set(value) {
        Some(value) if value < -1 => Err(bad(field, value, "is neither a number of bytes nor -1")),
        value => Ok(value),
    }
}

/// `pids.max`: runc writes 1 for 0, as systemd must.
fn pids_max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        1.. => limit.to_string(),
    }
}

/// A weight of block I/O, 10 to 1000; 0 is unset.
fn weight(field: &'static str, value: Option<u16>) -> Result<Option<u16>, Error> {
    match set(value) {
        Some(value) if !(10..=1000).contains(&value) => {
            Err(bad(field, value, "is not in 10..=1000"))
        }
        value => Ok(value),
    }
}

/// The name of a huge page size, which becomes a part of a file name.
fn page_size(size: &str) -> Result<&str, Error> {
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| size.strip_suffix(unit));
    match digits {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(size)
        }
        _ => Err(bad(
            "linux.resources.hugepageLimits.pageSize",
            size,
            "is not like 2MB",
        )),
    }
}

/// `rdma.max` is the same on v1 and v2.
fn rdma(resources: &Resources, settings: &mut Vec<Setting>) -> Result<(), Error> {
    const FIELD: &str = "linux.resources.rdma";
    for limit in &resources.rdma {
        if limit.device.is_empty() || limit.device.contains(char::is_whitespace) {
            return Err(bad(FIELD, &limit.device, "is not the name of a device"));
        }
        let mut line = limit.device.clone();
        for (key, value) in [
            ("hca_handle", limit.hca_handles),
            ("hca_object", limit.hca_objects),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        settings.push(Setting::new(FIELD, Controller::Rdma, "rdma.max", line));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
