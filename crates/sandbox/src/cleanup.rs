//! Cleaning up by record, for a pod whose shim is gone. Blocking and bounded.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use berm_cgroup::{Cgroup, CgroupPath, Unit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::api::Exit;
use crate::config::Config;
use crate::error::{Error, call, io};
use crate::exits::killed;
use crate::process::{Identity, SIGKILL, signal};
use crate::record::{
    ContainerRecord, Record, container_intents, containers, intent, remove_dir, sandbox_dir,
    sandbox_of_container, sandboxes, says_whose,
};

/// containerd kills `delete` after 5 s: better an error of our own before that.
const LONGEST: Duration = Duration::from_secs(4);

/// Until when the whole may take.
#[derive(Clone, Copy)]
struct Limit {
    until: Instant,
    after: Duration,
}

impl Limit {
    fn new(after: Duration) -> Self {
        Self {
            until: Instant::now() + after,
            after,
        }
    }
}

/// Ends a pod whose shim is gone: kills, removes cgroups and records, frees ids.
///
/// `id` is the sandbox's own or that of one of its containers; the exit is that one's, with pid 0
/// if the sandbox was only half made. `None`: there is nothing to clean up, or the shim lives and
/// nothing was touched. Half-made sandboxes, twice, by several at once and out of order are harmless.
/// # Errors
/// `DeadlineExceeded` if a process or a cgroup does not go; the errno of the call that is named.
pub fn cleanup(config: &Config, namespace: &str, id: &str) -> Result<Option<Exit>, Error> {
    let own = sandbox_dir(&config.state_dir, namespace, id)?;
    let of_container = || sandbox_of_container(&config.state_dir, namespace, id);
    let dir = if own.exists() {
        Some(own)
    } else {
        of_container()?
    };
    let Some(dir) = dir else { return Ok(None) };
    match turn(&dir)? {
        Some(_turn) => clean(config, namespace, &dir, id),
        None => Ok(None),
    }
}

/// As [`cleanup`], for who does not know what the sandbox is: while its directory does not tell who
/// makes it, it is left alone.
pub(crate) fn cleanup_left(
    config: &Config,
    namespace: &str,
    id: &str,
) -> Result<Option<Exit>, Error> {
    let dir = sandbox_dir(&config.state_dir, namespace, id)?;
    match turn(&dir)? {
        Some(_turn) if says_whose(&dir) => clean(config, namespace, &dir, id),
        _ => Ok(None),
    }
}

/// Who holds it is the only one that cleans up in this directory; `None`: another one has, and what
/// may have its name by now is not the same sandbox. Waits no longer than that one's deadline.
fn turn(dir: &Path) -> Result<Option<fs::File>, Error> {
    let turn = match fs::File::open(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io("open(sandbox)"))?,
    };
    flock(&turn, FlockOperation::LockExclusive).map_err(call("flock(sandbox)"))?;
    let of = |stat: fs::Metadata| (stat.dev(), stat.ino());
    let mine = of(turn.metadata().map_err(io("fstat(sandbox)"))?);
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        now => Ok((of(now.map_err(io("stat(sandbox)"))?) == mine).then_some(turn)),
    }
}

/// Cleans up, as [`cleanup`] does, after every owner of a sandbox of `namespace` that has died;
/// gives back the ids of those sandboxes. What cannot be cleaned up is told in the log and left.
///
/// A sandbox that says not yet whose it is may be in the making: it is left alone.
/// # Errors
/// The errno of reading the namespace's directory.
pub fn sweep_dead(config: &Config, namespace: &str) -> Result<Vec<String>, Error> {
    let mut swept = Vec::new();
    for id in sandboxes(&config.state_dir, namespace)? {
        match cleanup_left(config, namespace, &id) {
            Ok(None) => {}
            Ok(Some(_)) => swept.push(id),
            Err(e) => log::warn!("call=Sweep id={id} err={:?}", e.chain()),
        }
    }
    Ok(swept)
}

fn clean(config: &Config, namespace: &str, dir: &Path, id: &str) -> Result<Option<Exit>, Error> {
    let sandbox = dir.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let record = match Record::load(&config.state_dir, namespace, sandbox) {
        Ok(record) => record,
        Err(Error::NoSandbox { .. }) => {
            return clean_half_made(config, namespace, dir);
        }
        Err(e) => return Err(e),
    };
    if record.owner.is_at_work() {
        return Ok(None);
    }
    let all = containers(dir)?;
    let pid = all
        .iter()
        .find(|c| c.id == id)
        .map_or(record.pid, |c| c.init.pid);
    let limit = Limit::new(config.kill_deadline.min(LONGEST));
    end_processes(&record, &all, limit)?;
    // A container that was only half made has no record, but an intent.
    let mut cgroups: BTreeSet<String> = all.iter().map(|c| c.cgroup.clone()).collect();
    cgroups.extend(
        container_intents(dir)?
            .into_iter()
            .map(|intent| intent.cgroup),
    );
    cgroups.insert(record.cgroup);
    remove_cgroups(&cgroups, limit)?;
    for container in &all {
        crate::hooks::run_recorded(container, limit.until);
    }
    if record.isolation.range.is_some() {
        crate::ids::free_of(config, namespace, sandbox);
    }
    remove_dir(dir);
    Ok(Some(killed_now(pid)))
}

/// The directory stands, the record does not. PID 1 ends by itself: nobody told it to go on.
fn clean_half_made(config: &Config, namespace: &str, dir: &Path) -> Result<Option<Exit>, Error> {
    if let Some(intent) = intent(dir) {
        if intent.owner.is_at_work() {
            return Ok(None);
        }
        let limit = Limit::new(config.kill_deadline.min(LONGEST));
        remove_cgroups(&BTreeSet::from([intent.cgroup]), limit)?;
    }
    let sandbox = dir.file_name().and_then(OsStr::to_str).unwrap_or_default();
    crate::ids::free_of(config, namespace, sandbox);
    remove_dir(dir);
    Ok(Some(killed_now(0)))
}

fn killed_now(pid: i32) -> Exit {
    Exit {
        pid,
        status: 128 + SIGKILL,
        at: SystemTime::now(),
    }
}

fn end_processes(record: &Record, all: &[ContainerRecord], limit: Limit) -> Result<(), Error> {
    // PID 1 first: the kernel takes the rest with it.
    let doomed = [record.init()]
        .into_iter()
        .chain(all.iter().map(|c| c.init));
    for process in doomed {
        kill(process, limit)?;
    }
    Ok(())
}

fn kill(process: Identity, limit: Limit) -> Result<(), Error> {
    use std::os::fd::AsFd;
    let Some(pidfd) = process.open() else {
        return Ok(());
    };
    match signal(pidfd.as_fd(), SIGKILL) {
        Err(Error::Finished) => return Ok(()),
        sent => sent?,
    }
    loop {
        let left = limit.until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                return Err(Error::Slow {
                    what: "a killed process",
                    after: limit.after,
                });
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(call("poll(pidfd)")(e)),
        }
    }
}

fn remove_cgroups(paths: &BTreeSet<String>, limit: Limit) -> Result<(), Error> {
    let host = berm_cgroup::Host::detect()?;
    for path in paths.iter().filter(|path| !path.is_empty()) {
        remove_cgroup(&host, path, limit)?;
    }
    Ok(())
}

fn remove_cgroup(host: &Arc<berm_cgroup::Host>, path: &str, limit: Limit) -> Result<(), Error> {
    let path = CgroupPath::parse(&format!("/{}", path.trim_start_matches('/')))?;
    let cgroup = match Cgroup::open(host, &path) {
        Err(berm_cgroup::Error::Gone { .. }) => return stop_scope(&path, limit),
        opened => opened?,
    };
    loop {
        // A hierarchy from which the last round removed it has none to kill.
        killed(&cgroup)?;
        match cgroup.remove() {
            Err(berm_cgroup::Error::Busy { .. }) if Instant::now() < limit.until => pause()?,
            removed => {
                removed?;
                return stop_scope(&path, limit);
            }
        }
    }
}

/// A scope of systemd's ends with its last process by itself, but one that failed stays.
fn stop_scope(path: &CgroupPath, limit: Limit) -> Result<(), Error> {
    match Unit::of(path) {
        Some(unit) => Ok(unit.stop(limit.until)?),
        None => Ok(()),
    }
}

/// The kernel has no event for the emptiness of a v1 cgroup: asked again after 1 ms.
fn pause() -> Result<(), Error> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    match poll(&mut [], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(call("poll()")(e)),
    }
}
