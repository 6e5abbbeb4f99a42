//! A directory that takes its mounts with it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{UnmountFlags, unmount};

use super::Error;

/// A new directory of mode 0700 below the system's temporary directory.
///
/// When it is dropped, every mount below it is undone, newest first, and the tree is removed. If
/// a mount stays, so does the tree: a volume's files are never deleted through a bind mount.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    /// Makes `<tmp>/<name>-<pid>-<number>`.
    ///
    /// # Errors
    /// The errno of mkdir(2).
    pub fn new(name: &str) -> Result<Self, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("{name}-{}-{number}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(Error::file("mkdir", &path))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        unmount_below(&self.path);
        if mounts_below(&self.path).is_empty() {
            // The last thing that can be done; what is left is seen by the leak guard.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Undoes every mount on or below `path`, newest first; errors show in [`mounts_below`].
pub(super) fn unmount_below(path: &Path) {
    for target in mounts_below(path).iter().rev() {
        let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    }
}

/// The mount points on or below `path` in this mount namespace, oldest first.
pub(super) fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| PathBuf::from(unescape(target)))
        .filter(|target| target.starts_with(path))
        .collect()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}
