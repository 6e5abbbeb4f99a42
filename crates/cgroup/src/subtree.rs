//! Walking a cgroup's sub-groups, which the container may have made itself: all is bounded.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::dir::Dir;
use crate::{CgroupPath, Error};

/// How many sub-groups one call looks at.
pub const MAX_GROUPS: usize = 4096;
/// How deep they may lie.
const MAX_DEPTH: usize = 64;

/// Calls `visit` with the cgroup and each sub-group until it returns false. A sub-group that
/// vanishes on the way is skipped.
///
/// # Errors
/// [`Error::TooMany`] beyond [`MAX_GROUPS`] or a depth of [`MAX_DEPTH`].
pub(crate) fn walk(
    top: &Dir,
    visit: &mut dyn FnMut(&Dir) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut left = MAX_GROUPS;
    walk_below(top, MAX_DEPTH, &mut left, visit).map(|_| ())
}

fn walk_below(
    dir: &Dir,
    depth: usize,
    left: &mut usize,
    visit: &mut dyn FnMut(&Dir) -> Result<bool, Error>,
) -> Result<bool, Error> {
    if !visit(dir)? {
        return Ok(false);
    }
    for name in dir.children(*left + 1)? {
        if *left == 0 || depth == 0 {
            let path = dir.path().to_owned();
            return Err(Error::TooMany {
                what: "sub-groups",
                path,
                max: MAX_GROUPS,
            });
        }
        *left -= 1;
        match dir.child(name.as_bytes()) {
            Ok(child) => {
                if !walk_below(&child, depth - 1, left, visit)? {
                    return Ok(false);
                }
            }
            Err(Error::Open {
                source: Errno::NOENT,
                ..
            }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Removes the cgroup `path` below `root` and its sub-groups, deepest first.
pub(crate) fn remove(root: &Dir, path: &str) -> Result<(), Error> {
    let mut left = MAX_GROUPS;
    remove_at(root, OsStr::new(path), MAX_DEPTH, &mut left)
}

fn remove_at(parent: &Dir, name: &OsStr, depth: usize, left: &mut usize) -> Result<(), Error> {
    let path = || parent.path().join(Path::new(name));
    let source = match rmdir(parent, name) {
        Ok(()) => return Ok(()),
        Err(errno @ (Errno::BUSY | Errno::NOTEMPTY)) => errno,
        Err(source) => {
            return Err(Error::Rmdir {
                path: path(),
                source,
            });
        }
    };
    // Busy: it has sub-groups, or processes, or both.
    let dir = match parent.child(name.as_bytes()) {
        Ok(dir) => dir,
        Err(Error::Open {
            source: Errno::NOENT,
            ..
        }) => return Ok(()),
        Err(error) => return Err(error),
    };
    for child in dir.children(*left)? {
        if depth == 0 || *left == 0 {
            return Err(Error::Busy {
                path: path(),
                source,
            });
        }
        *left -= 1;
        remove_at(&dir, &child, depth - 1, left)?;
    }
    rmdir(parent, name).map_err(|source| Error::Busy {
        path: path(),
        source,
    })
}

/// rmdir(2); gone already is fine.
fn rmdir(parent: &Dir, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Hands every controller of the root down to `path`'s parent (v2's `cgroup.subtree_control`).
///
/// A controller that cannot be handed down (a nested node, a cgroup with processes of its own) is
/// left out here; the limit that needs it says so, naming the field.
pub(crate) fn enable(root: &Dir, path: &CgroupPath) -> Result<(), Error> {
    let mut buf = Vec::new();
    // What an ancestor does not hand down, the parent does not even have.
    let available = root.read("cgroup.controllers", &mut buf)?.to_owned();
    let enabled = root.read(&file_in(path.parent(), "cgroup.subtree_control"), &mut buf)?;
    let enabled = enabled.split_whitespace();
    if available
        .split_whitespace()
        .all(|name| enabled.clone().any(|other| other == name))
    {
        return Ok(());
    }
    let ancestors =
        std::iter::once("").chain(path.prefixes().take_while(|at| *at != path.relative()));
    for ancestor in ancestors {
        let controllers = missing(root, ancestor, &mut buf)?;
        if controllers.is_empty() {
            continue;
        }
        let file = file_in(ancestor, "cgroup.subtree_control");
        if root.try_write(&file, &controllers.join(" ")).is_err() {
            for controller in controllers {
                let _ = root.try_write(&file, &controller);
            }
        }
    }
    Ok(())
}

/// What a cgroup could hand down and does not, as words for `cgroup.subtree_control`.
fn missing(root: &Dir, path: &str, buf: &mut Vec<u8>) -> Result<Vec<String>, Error> {
    let enabled = root
        .read(&file_in(path, "cgroup.subtree_control"), buf)?
        .to_owned();
    let available = root.read(&file_in(path, "cgroup.controllers"), buf)?;
    let missing = available
        .split_whitespace()
        .filter(|name| !enabled.split_whitespace().any(|other| other == *name));
    Ok(missing.map(|name| format!("+{name}")).collect())
}

fn file_in(path: &str, file: &str) -> String {
    if path.is_empty() {
        file.to_owned()
    } else {
        format!("{path}/{file}")
    }
}
