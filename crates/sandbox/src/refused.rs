//! What was asked for and not made: kept for `berm explain`, because the error that a user sees is
//! one short line and the shim of a refused pod is gone when he asks.
//!
//! `<state_dir>/.refused/<container id>.json`, the newest [`KEPT`] of the node. Only a failing
//! call pays for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use berm_plan::Spec;
use serde::{Deserialize, Serialize};

use crate::error::{Error, io};
use crate::live::Live;
use crate::record::{check_id, files_in, read, write};

/// How many are kept on a node.
pub(crate) const KEPT: usize = 64;
/// Characters of an error that are kept.
const TEXT_LIMIT: usize = 8 << 10;
/// Begins with a dot: no namespace of containerd does.
const DIR: &str = ".refused";

/// A sandbox or container that was not made, or not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Id of what was to be made.
    pub id: String,
    /// The sandbox that it was to be in; its own id for a sandbox.
    pub sandbox: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Name of the pod, if the spec has one.
    pub pod_name: String,
    /// Namespace of the pod, if the spec has one.
    pub namespace: String,
    /// The call that failed: `Create` or `Start`.
    pub call: String,
    /// The sort of failure, as `berm_sys::Kind` writes it.
    pub kind: String,
    /// The whole error with its causes.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Refused {
    /// Every refusal that is kept, the oldest first; unreadable ones are left out, with a warning.
    /// # Errors
    /// The errno of reading the directory.
    pub fn load_all(state_dir: &Path) -> Result<Vec<Self>, Error> {
        let mut all: Vec<Self> = Vec::new();
        for path in files_in(&state_dir.join(DIR), "json")? {
            match read(&path) {
                Ok(refused) => all.extend(refused),
                Err(e) => log::warn!("call=LoadRefused path={path:?} err={:?}", e.chain()),
            }
        }
        all.sort_by(|a, b| (a.at_ms, &a.id).cmp(&(b.at_ms, &b.id)));
        Ok(all)
    }
}

/// Who asked for what was refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) call: &'static str,
    pub(crate) id: &'a str,
    pub(crate) sandbox: &'a str,
    pub(crate) containerd_namespace: &'a str,
    pub(crate) pod_name: &'a str,
    pub(crate) namespace: &'a str,
}

impl<'a> Asked<'a> {
    /// For a sandbox that is to be made from `spec`.
    pub(crate) fn sandbox(id: &'a str, containerd_namespace: &'a str, spec: &'a Spec) -> Self {
        Self {
            call: "Create",
            id,
            sandbox: id,
            containerd_namespace,
            pod_name: spec.pod_name().unwrap_or_default(),
            namespace: spec.pod_namespace().unwrap_or_default(),
        }
    }

    /// Keeps `error`. Failing to is no reason to hide it: that is only a warning.
    pub(crate) fn keep(&self, state_dir: &Path, error: &Error) {
        // An id that is none has no file; the caller made it up and knows.
        if check_id(self.id).is_err() {
            return;
        }
        if let Err(e) = self.store(state_dir, error) {
            log::warn!("call=KeepRefused id={} err={:?}", self.id, e.chain());
        }
    }

    fn store(&self, state_dir: &Path, error: &Error) -> Result<(), Error> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let refused = Refused {
            id: self.id.to_owned(),
            sandbox: self.sandbox.to_owned(),
            containerd_namespace: self.containerd_namespace.to_owned(),
            pod_name: self.pod_name.to_owned(),
            namespace: self.namespace.to_owned(),
            call: self.call.to_owned(),
            kind: error.kind().to_string(),
            error: error.chain().chars().take(TEXT_LIMIT).collect(),
            at_ms: since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        };
        let dir = state_dir.join(DIR);
        fs::create_dir_all(&dir).map_err(io("mkdir(.refused)"))?;
        write(&dir.join(format!("{}.json", self.id)), &refused)?;
        prune(&dir)
    }
}

impl Live {
    /// Keeps why a container of this sandbox was not made or not started.
    pub(crate) fn keep_refused(&self, call: &'static str, id: &str, error: &Error) {
        let asked = Asked {
            call,
            id,
            sandbox: &self.record.id,
            containerd_namespace: &self.record.containerd_namespace,
            pod_name: &self.record.pod_name,
            namespace: &self.record.namespace,
        };
        asked.keep(&self.host.config.state_dir, error);
    }
}

/// Removes the oldest beyond [`KEPT`]. Two shims that do so at once remove the same ones.
fn prune(dir: &Path) -> Result<(), Error> {
    let paths = files_in(dir, "json")?;
    let Some(beyond) = paths.len().checked_sub(KEPT).filter(|n| *n > 0) else {
        return Ok(());
    };
    // One that another shim has just removed is the oldest.
    let age = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).ok();
    let mut paths: Vec<_> = paths.into_iter().map(|path| (age(&path), path)).collect();
    paths.sort();
    for (_, path) in &paths[..beyond] {
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("unlink(.refused)")(e));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str) -> Asked<'_> {
        Asked {
            call: "Create",
            id,
            sandbox: "pod",
            containerd_namespace: "k8s.io",
            pod_name: "web",
            namespace: "shop",
        }
    }

    #[test]
    fn the_newest_refusals_of_a_node_are_kept_whole() {
        let dir = std::env::temp_dir().join(format!("berm-refused-{}", std::process::id()));
        let long = "x".repeat(TEXT_LIMIT);
        for n in 0..KEPT + 3 {
            let id = format!("c{n}");
            let error = Error::BadId {
                id: long.clone(),
                reason: "is too long",
            };
            asked(&id).keep(&dir, &error);
            // The order of files of one tick is not told by their times.
            let path = dir.join(DIR).join(format!("{id}.json"));
            let file = fs::File::options().append(true).open(path).unwrap();
            let at = UNIX_EPOCH + std::time::Duration::from_secs(n as u64);
            file.set_modified(at).unwrap();
        }
        asked("../c").keep(&dir, &Error::Finished);
        let kept = Refused::load_all(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        let ids: Vec<_> = kept.iter().map(|r| r.id.as_str()).collect();
        assert_eq!(ids.len(), KEPT);
        assert!(!ids.contains(&"c0") && ids.contains(&"c66"), "{ids:?}");
        assert_eq!(kept[0].error.len(), TEXT_LIMIT);
        assert_eq!(kept[0].kind, "InvalidArgument");
    }

    #[test]
    fn a_node_without_refusals_has_none() {
        let none = Path::new("/nonexistent");
        assert_eq!(Refused::load_all(none).unwrap(), []);
    }
}
