//! The OCI specs that containerd 2.3.4's CRI plugin makes, captured and filled in.
//!
//! `data/cri-sandbox.json` and `data/cri-container.json` are what its `RunPodSandbox` and
//! `CreateContainer` wrote for a pod with default seccomp, limits, a volume and a service
//! account; only paths, ids and amounts were replaced, and the version lowered from 1.3.0, which
//! the crun of some distributions refuses.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use super::node::make_dir;
use super::{Error, Netns, Node};

const SANDBOX: &str = include_str!("../../data/cri-sandbox.json");
const CONTAINER: &str = include_str!("../../data/cri-container.json");

/// The files that CRI and kubelet make for a pod before they start it.
#[derive(Debug)]
pub struct PodFiles {
    sandbox_id: String,
    dir: PathBuf,
    netns: Netns,
}

impl PodFiles {
    /// Makes network namespace, `/dev/shm`, hosts, hostname, resolv.conf, a volume and a service
    /// account for the pod of that id.
    ///
    /// # Errors
    /// The errno of the file system or of mount(2), or those of [`Netns::new`].
    pub fn new(node: &Node, sandbox_id: &str) -> Result<Self, Error> {
        let dir = node.dir().join("pods").join(sandbox_id);
        for sub in ["shm", "volume", "serviceaccount"] {
            make_dir(&dir.join(sub))?;
        }
        for (name, text) in [
            ("hosts", "127.0.0.1 localhost\n"),
            ("hostname", "bench\n"),
            (
                "resolv.conf",
                "search default.svc.cluster.local\nnameserver 10.96.0.10\n",
            ),
            ("termination-log", ""),
            ("serviceaccount/token", "token"),
        ] {
            fs::write(dir.join(name), text).map_err(Error::file("write", dir.join(name)))?;
        }
        let shm = dir.join("shm");
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("shm", &shm, "tmpfs", flags, Some(c"mode=1777,size=65536k"))
            .map_err(Error::errno("mount", &shm))?;
        let netns = Netns::new(dir.join("netns"))?;
        Ok(Self {
            sandbox_id: sandbox_id.to_owned(),
            dir,
            netns,
        })
    }

    /// The directory that they lie in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pod's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for PodFiles {
    fn drop(&mut self) {
        super::scratch::unmount_below(&self.dir);
        if super::scratch::mounts_below(&self.dir).is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The spec of a pod's sandbox container, as CRI writes it.
///
/// # Errors
/// [`Error::Json`] if the template is broken.
pub fn sandbox_spec(node: &Node, files: &PodFiles, args: &[String]) -> Result<Value, Error> {
    let mut spec = parse(SANDBOX)?;
    let netns = files.netns().path().display().to_string();
    fill(&mut spec, &common(node, files, &[("@NETNS@", netns)]));
    spec["process"]["args"] = json!(args);
    restrict_oom_score(&mut spec);
    Ok(spec)
}

/// The spec of a container of that pod, as CRI writes it.
///
/// # Errors
/// [`Error::Json`] if the template is broken.
pub fn container_spec(
    node: &Node,
    files: &PodFiles,
    sandbox_pid: u32,
    id: &str,
    args: &[&str],
) -> Result<Value, Error> {
    let mut spec = parse(CONTAINER)?;
    let own = [
        ("@SANDBOX_PID@", sandbox_pid.to_string()),
        ("@CONTAINER_ID@", id.to_owned()),
    ];
    fill(&mut spec, &common(node, files, &own));
    spec["process"]["args"] = json!(args);
    restrict_oom_score(&mut spec);
    Ok(spec)
}

fn parse(template: &str) -> Result<Value, Error> {
    serde_json::from_str(template).map_err(|source| Error::Json {
        what: "the template of a CRI spec",
        source,
    })
}

type Fill = (&'static str, String);

fn common(node: &Node, files: &PodFiles, own: &[Fill]) -> Vec<Fill> {
    let mut all = vec![
        ("@SANDBOX_ID@", files.sandbox_id.clone()),
        ("@POD_DIR@", files.dir().display().to_string()),
        ("@CGROUP_PARENT@", node.cgroup().as_str().to_owned()),
    ];
    all.extend_from_slice(own);
    all
}

/// Replaces the placeholders in every string of a document.
fn fill(value: &mut Value, with: &[Fill]) {
    match value {
        Value::String(text) if text.contains('@') => {
            *text = with
                .iter()
                .fold(text.clone(), |text, (from, to)| text.replace(from, to));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, with)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, with)),
        _ => {}
    }
}

/// CRI's `restrict_oom_score_adj`: a score below our own needs CAP_SYS_RESOURCE, and without it
/// runc fails instead of starting.
fn restrict_oom_score(spec: &mut Value) {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own: i64 = own.trim().parse().unwrap_or(0);
    let score = &mut spec["process"]["oomScoreAdj"];
    *score = json!(score.as_i64().unwrap_or(0).max(own));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_no_placeholder_but_those_that_are_filled() {
        let names = [
            "SANDBOX_ID",
            "POD_DIR",
            "CGROUP_PARENT",
            "NETNS",
            "SANDBOX_PID",
            "CONTAINER_ID",
        ];
        for template in [SANDBOX, CONTAINER] {
            parse(template).unwrap();
            for (number, piece) in template.split('@').enumerate() {
                assert!(number % 2 == 0 || names.contains(&piece), "{piece:?}");
            }
        }
    }
}
