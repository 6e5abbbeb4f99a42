//! The files of a pod's folder, read and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::Runtime;
use crate::error::{Error, file};

/// One folder of `test-pods/`.
#[derive(Debug)]
pub struct Pod {
    /// The folder's name.
    pub name: String,
    /// CRI's PodSandboxConfig; `None` for a test that uses ctr alone.
    pub(super) config: Option<Value>,
    /// CRI's ContainerConfig by name: `container.json` is `main`, `container-x.json` is `x`.
    pub(super) containers: BTreeMap<String, Value>,
    pub(super) expect: Expect,
}

/// `expect.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    /// One sentence: what is promised.
    pub(super) about: String,
    /// Its row in the README's table.
    #[serde(default)]
    pub(super) area: Area,
    /// Its column there.
    #[serde(default)]
    pub(super) outcome: Outcome,
    /// Takes longer than a developer waits: it runs only with `--slow`.
    #[serde(default)]
    pub(super) slow: bool,
    /// Where it runs.
    #[serde(default)]
    pub(super) place: Place,
    /// The runtimes that this holds for; all if it is left out.
    #[serde(default)]
    pub(super) only: Vec<String>,
    /// Why not for the others.
    #[serde(default)]
    pub(super) why: String,
    /// Files made in `${dir}` before the pod.
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
    #[serde(rename = "step")]
    pub(super) steps: Vec<Step>,
}

/// Where a pod runs: a guest is slow, and not every machine has what it has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Place {
    /// On the machine.
    #[default]
    Machine,
    /// In the guest too: its outcome depends on cgroup v2, systemd or an old kernel.
    Both,
    /// In the guest alone.
    Guest,
}

/// The rows of the README's table, in their order there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Area {
    /// Pods and containers from start to end: order, restart, codes, signals.
    Life,
    /// exec, attach, terminals, logs, port-forward.
    Streams,
    /// Arguments, environment, directories, users, groups.
    Process,
    /// User, PID, IPC, network namespaces, and the host's.
    Namespaces,
    /// Capabilities, seccomp, no_new_privs, masked paths, labels.
    Privileges,
    /// Root file systems and images.
    Images,
    /// Volumes of every kind.
    Volumes,
    /// Device nodes and their rules, CDI.
    Devices,
    /// Addresses, ports, names, sysctls.
    Network,
    /// Limits, their updates, figures, OOM.
    Resources,
    /// OCI hooks.
    Hooks,
    /// What the node's own tools see of a pod.
    Node,
    /// OCI specs that are wrong, or ask for what no pod has.
    Specs,
    /// What fits nowhere else.
    #[default]
    Other,
}

/// How Berm's outcome compares with runc's.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// The promise holds for both.
    #[default]
    Same,
    /// runc does not do it, or not as well; `why` says so.
    Better,
    /// Berm refuses it for a reason that stays; `why` says it.
    Refused,
    /// Berm refuses it until it is built.
    NotYet,
}

/// What is done, to whom, and what must come of it.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    #[serde(rename = "do")]
    pub(super) verb: Verb,
    #[serde(default)]
    pub(super) container: Option<String>,
    #[serde(default)]
    pub(super) only: Vec<String>,
    #[serde(default)]
    pub(super) why: String,
    #[serde(default)]
    pub(super) args: Vec<String>,
    #[serde(default)]
    pub(super) stdin: String,
    #[serde(default)]
    pub(super) tty: bool,
    #[serde(default)]
    pub(super) sync: bool,
    /// Seconds: CRI's timeout of an exec with `sync`, grace of a stop, deadline of a wait.
    #[serde(default)]
    pub(super) timeout: Option<u32>,
    /// How often an exec is done, all at once.
    #[serde(default)]
    pub(super) times: Option<u32>,
    /// With `times`: so many of them begin in a second.
    #[serde(default)]
    pub(super) per_second: Option<u32>,
    /// The pod's port.
    #[serde(default)]
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) signal: Option<String>,

    #[serde(default)]
    pub(super) code: Option<i32>,
    #[serde(default)]
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) stdout: Option<String>,
    #[serde(default)]
    pub(super) stdout_has: Vec<String>,
    #[serde(default)]
    pub(super) stdout_lacks: Vec<String>,
    #[serde(default)]
    pub(super) stderr_has: Vec<String>,
    /// The call fails, and its message has all of these.
    #[serde(default)]
    pub(super) refused: Vec<String>,
    /// The gRPC code of the refusal.
    #[serde(default)]
    pub(super) kind: Option<String>,
    /// JSON pointer → value.
    #[serde(default)]
    pub(super) json: BTreeMap<String, Value>,
    /// JSON pointer → the number there is at least this.
    #[serde(default)]
    pub(super) at_least: BTreeMap<String, u64>,
    /// JSON pointer → the number there is at most this.
    #[serde(default)]
    pub(super) at_most: BTreeMap<String, u64>,
}

/// The verbs of a step.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verb {
    /// RunPodSandbox; done first anyway unless it is the first step.
    #[default]
    Pod,
    /// CreateContainer alone.
    Create,
    /// StartContainer, after CreateContainer unless the step before did that. A second time:
    /// the next attempt of the same container.
    Start,
    /// Waits for the end: `code` and `reason` are the container's.
    Wait,
    /// Exec, or with `sync` ExecSync.
    Exec,
    /// Attach with `stdin`.
    Attach,
    /// StopContainer: `code` is the container's.
    Stop,
    /// UpdateContainerResources, by the flags in `args`.
    Update,
    /// Removes the container.
    Remove,
    /// The container's log.
    Logs,
    /// Waits until the log has `stdout_has`.
    Log,
    /// `ctr task kill --signal`.
    Kill,
    /// ContainerStatus, for `json`.
    Inspect,
    /// PodSandboxStatus, for `json`.
    InspectPod,
    /// ContainerStats, for `json`, `at_least`, `at_most`.
    Stats,
    /// PortForward: `args` run on the node, with `${port}`.
    PortForward,
    /// StopPodSandbox.
    StopPod,
    /// A program on the node; `code` is its own.
    Host,
    /// ctr on the node.
    Ctr,
}

impl Pod {
    /// Whether it makes a promise for `runtime`.
    #[must_use]
    pub fn is_for(&self, runtime: Runtime) -> bool {
        includes(&self.expect.only, runtime)
    }

    /// The sentence of `about`.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.expect.about
    }

    /// Whether a container of it names an image that a node has not got by itself.
    pub(super) fn needs_more_images(&self) -> bool {
        let image = |config: &Value| config.pointer("/image/image").cloned();
        let named = self.containers.values().filter_map(image);
        named
            .into_iter()
            .any(|image| image != crate::image::BUSYBOX)
    }

    /// The plainest pod. It runs first on a node: what a runtime makes once and keeps is there
    /// before the guard is taken.
    pub(super) fn plain() -> Self {
        let step = |verb| Step {
            verb,
            ..Step::default()
        };
        let ctr = [
            "run",
            "--rm",
            "--runtime",
            "${runtime}",
            crate::image::BUSYBOX,
            "ctr-${uid}",
            "true",
        ];
        let ctr = Step {
            args: ctr.map(str::to_owned).into(),
            ..step(Verb::Ctr)
        };
        Self {
            name: "first".into(),
            config: Some(Value::Null),
            containers: [("main".into(), serde_json::json!({ "command": ["true"] }))].into(),
            expect: Expect {
                about: "A plain pod runs to its end".into(),
                area: Area::Life,
                outcome: Outcome::Same,
                slow: false,
                place: Place::Machine,
                only: Vec::new(),
                why: String::new(),
                files: BTreeMap::new(),
                steps: vec![step(Verb::Start), step(Verb::Wait), ctr],
            },
        }
    }

    fn read(dir: &Path) -> Result<Self, Error> {
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let path = dir.join("expect.toml");
        let text = std::fs::read_to_string(&path).map_err(file("read", &path))?;
        let expect: Expect = toml::from_str(&text).map_err(|error| bad(&path, &error))?;
        let config = dir.join("pod.json");
        let config = if config.exists() {
            Some(json(&config)?)
        } else {
            None
        };
        let mut containers = BTreeMap::new();
        for path in entries(dir)? {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Some(rest) = stem.strip_prefix("container") {
                let name = rest.strip_prefix('-').unwrap_or("main");
                containers.insert(name.to_owned(), json(&path)?);
            }
        }
        let pod = Self {
            name,
            config,
            containers,
            expect,
        };
        pod.check().map_err(|why| Error::Data { path, why })?;
        Ok(pod)
    }

    /// What the types cannot say: names and reasons.
    fn check(&self) -> Result<(), String> {
        let known = |only: &[String]| {
            only.iter()
                .all(|name| ["berm", "runc", "crun"].contains(&&**name))
        };
        let Expect {
            only,
            why,
            steps,
            outcome,
            ..
        } = &self.expect;
        if !known(only) || (!only.is_empty() && why.is_empty()) {
            return Err("`only` names berm, runc, crun and needs a `why`".into());
        }
        let of_both = ["berm", "runc"]
            .iter()
            .all(|name| only.is_empty() || only.iter().any(|o| o == name));
        match outcome {
            Outcome::Same if !of_both => {
                return Err("`outcome` must say how it compares, as it is not for both".into());
            }
            Outcome::Better | Outcome::Refused | Outcome::NotYet if why.is_empty() => {
                return Err("such an `outcome` needs a `why`".into());
            }
            _ => {}
        }
        for (number, step) in steps.iter().enumerate() {
            let fail = |why: &str| Err(format!("step {}: {why}", number + 1));
            if !known(&step.only) || (!step.only.is_empty() && step.why.is_empty()) {
                return fail("`only` names berm, runc, crun and needs a `why`");
            }
            if step
                .container
                .as_ref()
                .is_some_and(|name| !self.containers.contains_key(name))
            {
                return fail("no such container file");
            }
        }
        Ok(())
    }
}

pub(super) fn includes(only: &[String], runtime: Runtime) -> bool {
    only.is_empty() || only.iter().any(|name| name == runtime.handler())
}

/// Reads every folder of `dir` whose name has `filter` in it, or one of several separated by
/// commas; by name.
pub(super) fn load(dir: &Path, filter: &str) -> Result<Vec<Pod>, Error> {
    let folders = entries(dir)?
        .into_iter()
        .filter(|path| path.join("expect.toml").exists());
    let name = |path: &PathBuf| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let wanted = folders.filter(|path| filter.split(',').any(|word| name(path).contains(word)));
    wanted.map(|path| Pod::read(&path)).collect()
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = std::fs::read_dir(dir).map_err(file("opendir", dir))?;
    let mut paths: Vec<PathBuf> = list.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn json(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(file("read", path))?;
    serde_json::from_str(&text).map_err(|error| bad(path, &error))
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Data {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_of_this_workspace_can_be_read_and_says_what_it_promises() {
        let pods = load(&super::super::default_pods(), "").unwrap();
        assert!(pods.len() >= 24, "{} pods", pods.len());
        for pod in &pods {
            assert!(!pod.about().is_empty(), "{}", pod.name);
        }
    }
}
