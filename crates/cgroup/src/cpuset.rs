//! v1 cpusets begin empty, and no task can join an empty one (cpusets(7)).

use crate::Error;
use crate::dir::Dir;

/// Gives `path` the CPUs and memory nodes of the nearest ancestor that has some, and everyone
/// between as well. What is set already stays.
pub(crate) fn inherit(root: &Dir, path: &str) -> Result<(), Error> {
    let mut buf = Vec::new();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fill(root, path, file, &mut buf)?;
    }
    Ok(())
}

/// Returns what `path` has in `file` in the end. Depth is bounded by the length of the path.
fn fill(root: &Dir, path: &str, file: &str, buf: &mut Vec<u8>) -> Result<String, Error> {
    let name = if path.is_empty() {
        file.to_owned()
    } else {
        format!("{path}/{file}")
    };
    let own = root.read(&name, buf)?.trim().to_owned();
    if !own.is_empty() || path.is_empty() {
        return Ok(own);
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let inherited = fill(root, parent, file, buf)?;
    root.write(&name, &inherited)?;
    Ok(inherited)
}
