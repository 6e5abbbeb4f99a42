//! The node's pool of id ranges: one range of 65,536 ids for each pod.
//!
//! `<state_dir>/ids/<index>` is a range in use, made with O_EXCL by its owner and removed once the
//! pod's PID 1 is gone. Its text names the owner (pid, start time, boot id) and the sandbox; an
//! entry whose owner and whose sandbox are both gone is taken over, under a lock on the directory.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use berm_plan::{Extent, IdMap, Ids};
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::api::Args;
use crate::config::Config;
use crate::error::{Error, io};
use crate::process::{Identity, boot_id, is_of_this_boot};
use crate::record::Record;

/// Ids of one pod.
pub(crate) const RANGE: u32 = 65_536;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    namespace: String,
    id: String,
    owner: Identity,
    boot: String,
}

/// A range that this process holds; freed on drop until it is kept.
#[derive(Debug)]
pub(crate) struct Range {
    path: PathBuf,
    index: u32,
    /// Its first id in the pod.
    inside: u32,
    /// And on the host.
    start: u32,
    keep: bool,
}

impl Range {
    /// Takes a free range for the ids of a sandbox that begin with `first_id` inside.
    ///
    /// The search begins at a place that the sandbox's id decides, so that pods which start
    /// together do not meet.
    /// # Errors
    /// [`Error::IdsExhausted`] if every range is in use.
    pub(crate) fn allocate(config: &Config, args: &Args, first_id: u32) -> Result<Self, Error> {
        let (namespace, id) = (&args.namespace, &args.id);
        let dir = config.state_dir.join("ids");
        let owner = Identity::of(std::process::id().cast_signed()).ok_or(Error::Call {
            call: "read(/proc/self/stat)",
            source: Errno::SRCH,
        })?;
        let boot = boot_id()?;
        let entry = Entry {
            namespace: namespace.clone(),
            id: id.clone(),
            owner,
            boot,
        };
        let text = serde_json::to_vec(&entry).map_err(|source| Error::Record {
            path: dir.clone(),
            source,
        })?;
        let total = (config.id_pool_end - config.id_pool_start + 1) / RANGE;
        let first = hash(id) % total.max(1);
        for at in 0..total {
            let index = (first + at) % total;
            let path = dir.join(index.to_string());
            if create(&dir, &path, &text)? || take_over(config, &dir, &path, &text, &entry.boot)? {
                let start = config.id_pool_start + index * RANGE;
                return Ok(Self {
                    path,
                    index,
                    inside: first_id,
                    start,
                    keep: false,
                });
            }
        }
        Err(Error::IdsExhausted { total })
    }

    /// The range's number in the pool.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The range outlives this value: whoever ends the sandbox frees it.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if !self.keep {
            free_path(&self.path);
        }
    }
}

/// The maps of a pod that has these ranges.
pub(crate) fn of(ranges: &[Range]) -> Ids {
    let extent = |range: &Range| Extent {
        inside: range.inside,
        outside: range.start,
        count: RANGE,
    };
    let map = IdMap(ranges.iter().map(extent).collect());
    Ids {
        uids: map.clone(),
        gids: map,
    }
}

/// Frees a range by its index, once the pod's PID 1 is gone.
pub(crate) fn free(config: &Config, index: u32) {
    free_path(&config.state_dir.join("ids").join(index.to_string()));
}

fn free_path(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            log::warn!("call=FreeIds path={path:?} err={:?}", e.to_string());
        }
        _ => {}
    }
}

/// FNV-1a.
fn hash(id: &str) -> u32 {
    id.bytes().fold(0x811c_9dc5, |h, b| {
        (h ^ u32::from(b)).wrapping_mul(0x0100_0193)
    })
}

/// True if the entry is ours now, false if somebody has it.
///
/// It gets its name when its text is complete: a process that is killed leaves no entry that
/// nobody can read.
fn create(dir: &Path, path: &Path, text: &[u8]) -> Result<bool, Error> {
    let failed = |call| {
        move |source| Error::File {
            call,
            path: dir.to_owned(),
            source,
        }
    };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let open = || openat(CWD, dir, flags, Mode::RUSR | Mode::WUSR);
    let file = match open() {
        Err(Errno::NOENT) => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(io("mkdir(ids)"))?;
            open()
        }
        opened => opened,
    }
    .map_err(failed("open(O_TMPFILE)"))?;
    let mut file = fs::File::from(file);
    file.write_all(text).map_err(io("write(id range)"))?;
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(source) => Err(failed("linkat(id range)")(source)),
    }
}

/// Takes an entry whose owner and sandbox are gone, under the directory's lock.
fn take_over(
    config: &Config,
    dir: &Path,
    path: &Path,
    text: &[u8],
    boot: &str,
) -> Result<bool, Error> {
    let lock = fs::File::open(dir).map_err(io("open(ids)"))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        // Somebody else takes an entry over just now: the next range will do as well.
        Err(Errno::WOULDBLOCK) => return Ok(false),
        locked => locked.map_err(crate::error::call("flock(ids)"))?,
    }
    let Ok(old) = fs::read(path) else {
        // Freed meanwhile: the next range will do as well.
        return Ok(false);
    };
    // Whatever that is: nobody of ours wrote it.
    let Ok(old) = serde_json::from_slice::<Entry>(&old) else {
        return Ok(false);
    };
    if old.boot == boot && (old.owner.is_alive() || sandbox_lives(config, &old)) {
        return Ok(false);
    }
    free_path(path);
    create(dir, path, text)
}

fn sandbox_lives(config: &Config, entry: &Entry) -> bool {
    match Record::load(&config.state_dir, &entry.namespace, &entry.id) {
        Ok(record) => record.init().is_alive(),
        Err(Error::NoSandbox { .. }) => false,
        // Better a range too many in use than one twice.
        Err(_) => true,
    }
}

/// Frees the range of a sandbox whose owner is gone. Another sandbox may have it by now: only an
/// entry that names this one is removed.
pub(crate) fn free_of(config: &Config, namespace: &str, id: &str) {
    let entries = fs::read_dir(config.state_dir.join("ids"));
    for path in entries.into_iter().flatten().flatten().map(|e| e.path()) {
        let Ok(text) = fs::read(&path) else { continue };
        let Ok(entry) = serde_json::from_slice::<Entry>(&text) else {
            continue;
        };
        let stale = !is_of_this_boot(&entry.boot) || !entry.owner.is_at_work();
        if entry.id == id && entry.namespace == namespace && stale {
            free_path(&path);
        }
    }
}

/// Frees every range of another boot.
pub(crate) fn sweep(config: &Config) {
    let entries = fs::read_dir(config.state_dir.join("ids"));
    for path in entries.into_iter().flatten().flatten().map(|e| e.path()) {
        let Ok(text) = fs::read(&path) else { continue };
        let entry = serde_json::from_slice::<Entry>(&text);
        if entry.is_ok_and(|entry| !is_of_this_boot(&entry.boot)) {
            free_path(&path);
        }
    }
}
