//! What is downloaded or built once for all guests of this machine, outside the checkout.
//!
//! An entry is a folder that appears whole or not at all: it is made under another name and
//! renamed. One process at a time makes entries. Nothing in it is needed: it may be removed
//! whenever no guest runs.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::error::{Error, call, file};

/// The folder of the cache: `$BERM_GUESTS`, else `berm/guests` in the user's cache.
pub(super) fn root() -> PathBuf {
    if let Some(dir) = std::env::var_os("BERM_GUESTS") {
        return dir.into();
    }
    let home = || {
        let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
        PathBuf::from(home).join(".cache")
    };
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.unwrap_or_else(home).join("berm/guests")
}

/// The entry `name`, made by `make` in an empty folder if it is not there yet.
pub(super) fn entry(
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let root = root();
    let path = root.join(name);
    if path.is_dir() {
        return Ok(path);
    }
    std::fs::create_dir_all(&root).map_err(file("mkdir", &root))?;
    let lock = root.join("lock");
    let lock = File::create(&lock).map_err(file("open", lock))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(call("flock(LOCK_EX)"))?;
    if path.is_dir() {
        return Ok(path);
    }
    let half = root.join(format!("{name}.half"));
    // Of somebody who was killed: nobody else is here now.
    remove(&half)?;
    std::fs::create_dir(&half).map_err(file("mkdir", &half))?;
    let made = make(&half).and_then(|()| {
        std::fs::rename(&half, &path).map_err(file("rename", &half))?;
        Ok(path)
    });
    if made.is_err() {
        remove(&half)?;
    }
    made
}

/// A key for what is made from `parts`.
pub(super) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let bytes = hash.finalize();
    bytes[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn remove(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file("rm -r", dir)(error))
        }
        _ => Ok(()),
    }
}
