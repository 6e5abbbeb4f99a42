//! The OCI runtime spec of one task, parsed; the only place that holds it.

use std::path::{Path, PathBuf};

use oci_spec::runtime;
use serde_json::Value;

use crate::decode::decode;
use crate::refusal::{Error, invalid, quoted};

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";

const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";

/// What a task is in its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskKind {
    /// A CRI sandbox: it makes the pod and starts no workload.
    Sandbox,
    /// A container of the pod whose sandbox has this id.
    Container {
        /// `io.kubernetes.cri.sandbox-id`
        sandbox_id: String,
    },
    /// The workload of a pod of one, as of plain `ctr run`.
    Root,
}

/// A parsed `config.json`.
#[derive(Clone, Debug)]
pub struct Spec {
    pub(crate) oci: runtime::Spec,
    kind: TaskKind,
}

impl Spec {
    /// Reads a `config.json`. The caller may drop the bytes at once.
    /// # Errors
    /// [`Error::Json`] with line and column; [`Error::NotSupported`] for a key that this version
    /// does not know, [`Error::Invalid`] for annotations that say no kind of task.
    pub fn parse(config_json: &[u8]) -> Result<Self, Error> {
        let oci: runtime::Spec = decode("config.json", "", config_json)?;
        let kind = kind(&oci)?;
        Ok(Self { oci, kind })
    }

    /// What the task is in its pod, from the annotations that CRI writes.
    pub fn kind(&self) -> &TaskKind {
        &self.kind
    }

    /// Every namespace path that the spec names, for `ContainerFacts::inodes`.
    pub fn namespace_paths(&self) -> Vec<PathBuf> {
        let linux = self.oci.linux().as_ref();
        let namespaces = linux
            .and_then(|l| l.namespaces().as_deref())
            .unwrap_or_default();
        let path =
            |n: &runtime::LinuxNamespace| n.path().clone().filter(|p| !p.as_os_str().is_empty());
        namespaces.iter().filter_map(path).collect()
    }

    /// The sources of the spec's bind mounts.
    pub fn bind_sources(&self) -> Vec<PathBuf> {
        let mounts = self.oci.mounts().as_deref().unwrap_or_default();
        let bind = |m: &&runtime::Mount| {
            let options = m.options().as_deref().unwrap_or_default();
            m.typ().as_deref() == Some("bind")
                || options.iter().any(|o| o == "bind" || o == "rbind")
        };
        let sources = mounts.iter().filter(bind).map(|m| m.source().clone());
        sources.flatten().collect()
    }

    /// The entries of `mounts`, as JSON objects of the OCI spec.
    /// # Errors
    /// None that such values have.
    pub fn mounts(&self) -> Result<Vec<Value>, serde_json::Error> {
        let mounts = self.oci.mounts().as_deref().unwrap_or_default();
        mounts.iter().map(serde_json::to_value).collect()
    }

    /// Whether one of the spec's mounts is of this source.
    pub fn mounts_source(&self, source: &Path) -> bool {
        let mounts = self.oci.mounts().as_deref().unwrap_or_default();
        mounts.iter().any(|m| m.source().as_deref() == Some(source))
    }

    /// `linux.cgroupsPath`, if it is not empty.
    pub fn cgroups_path(&self) -> Option<&str> {
        let linux = self.oci.linux().as_ref()?;
        linux
            .cgroups_path()
            .as_deref()
            .and_then(Path::to_str)
            .filter(|p| !p.is_empty())
    }

    /// `root.path`; relative to the bundle unless absolute. `None` if the spec has none.
    pub fn root_path(&self) -> Option<&Path> {
        let root = self.oci.root().as_ref()?;
        Some(root.path().as_path()).filter(|p| !p.as_os_str().is_empty())
    }

    /// `process.terminal`
    pub fn terminal(&self) -> bool {
        self.oci
            .process()
            .as_ref()
            .and_then(runtime::Process::terminal)
            .unwrap_or(false)
    }

    /// `io.kubernetes.cri.container-name`, if it is not empty.
    pub fn container_name(&self) -> Option<&str> {
        self.annotation(CONTAINER_NAME)
            .filter(|name| !name.is_empty())
    }

    /// `io.kubernetes.cri.sandbox-name`
    pub fn pod_name(&self) -> Option<&str> {
        self.annotation(SANDBOX_NAME)
    }

    /// `io.kubernetes.cri.sandbox-namespace`
    pub fn pod_namespace(&self) -> Option<&str> {
        self.annotation(SANDBOX_NAMESPACE)
    }

    /// `io.kubernetes.cri.sandbox-uid`, or the end of the log directory's name, where kubelet puts
    /// it (`/var/log/pods/NAMESPACE_NAME_UID`).
    pub fn pod_uid(&self) -> Option<&str> {
        let uid = self.annotation(SANDBOX_UID).filter(|uid| !uid.is_empty());
        let of_logs = || {
            let dir = Path::new(self.annotation(SANDBOX_LOG_DIRECTORY)?);
            let (_, uid) = dir.file_name()?.to_str()?.rsplit_once('_')?;
            Some(uid)
        };
        uid.or_else(of_logs)
    }

    /// `io.kubernetes.cri.sandbox-log-directory`, if it is not empty.
    pub fn log_directory(&self) -> Option<&Path> {
        let dir = self.annotation(SANDBOX_LOG_DIRECTORY);
        dir.filter(|dir| !dir.is_empty()).map(Path::new)
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        annotation(&self.oci, key)
    }
}

fn annotation<'a>(oci: &'a runtime::Spec, key: &str) -> Option<&'a str> {
    oci.annotations().as_ref()?.get(key).map(String::as_str)
}

fn kind(oci: &runtime::Spec) -> Result<TaskKind, Error> {
    let field = |key: &str| format!("annotations[\"{key}\"]");
    let sandbox_id = annotation(oci, SANDBOX_ID).filter(|id| !id.is_empty());
    match (annotation(oci, CONTAINER_TYPE), sandbox_id) {
        (Some("sandbox"), _) => Ok(TaskKind::Sandbox),
        (Some("container") | None, Some(id)) => Ok(TaskKind::Container {
            sandbox_id: id.to_owned(),
        }),
        (None, None) => Ok(TaskKind::Root),
        (Some("container"), None) => Err(invalid(
            field(SANDBOX_ID),
            "missing in a spec of type \"container\"",
            "name the sandbox that the container belongs to",
        )),
        (Some(other), _) => Err(invalid(
            field(CONTAINER_TYPE),
            format!("{} is neither \"sandbox\" nor \"container\"", quoted(other)),
            "use one of the two, or leave it out for a pod of one",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotations_of_cri_say_what_a_task_is() {
        let container = || {
            Ok(TaskKind::Container {
                sandbox_id: "s1".into(),
            })
        };
        let cases = [
            ("{}", Ok(TaskKind::Root)),
            (
                r#"{"io.kubernetes.cri.container-type":"sandbox"}"#,
                Ok(TaskKind::Sandbox),
            ),
            (
                r#"{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"s1"}"#,
                Ok(TaskKind::Sandbox),
            ),
            (
                r#"{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"s1"}"#,
                container(),
            ),
            (r#"{"io.kubernetes.cri.sandbox-id":"s1"}"#, container()),
            (
                r#"{"io.kubernetes.cri.container-type":"container"}"#,
                Err("sandbox-id\"]: missing"),
            ),
            (
                r#"{"io.kubernetes.cri.container-type":"pod"}"#,
                Err("\"pod\" is neither"),
            ),
        ];
        for (annotations, want) in cases {
            let got = Spec::parse(format!(r#"{{"annotations":{annotations}}}"#).as_bytes());
            match (got, want) {
                (Ok(spec), Ok(kind)) => assert_eq!(spec.kind(), &kind, "{annotations}"),
                (Err(e), Err(text)) => assert!(e.to_string().contains(text), "{annotations}: {e}"),
                (got, want) => panic!("{annotations}: {got:?}, want {want:?}"),
            }
        }
    }

    #[test]
    fn empty_strings_are_absent_fields() {
        let spec = Spec::parse(
            br#"{"root":{"path":""},"linux":{"cgroupsPath":"","namespaces":[{"type":"pid","path":""},
                {"type":"network","path":"/n"}]}}"#,
        )
        .unwrap();
        assert_eq!(spec.root_path(), None);
        assert_eq!(spec.cgroups_path(), None);
        assert_eq!(spec.namespace_paths(), [PathBuf::from("/n")]);
        assert!(!spec.terminal());
    }
}
