//! `containerManager.StartRoot`, `CreateSubcontainer`, `StartSubcontainer`, `DestroySubcontainer`.
//!
//! gVisor's launcher sends the spec together with the files of a gofer, which serves the
//! container's file systems to the sandbox's kernel. Here the kernel is the host's and mounts are
//! its own: the spec's `root.path` and `mounts` are paths of the host, and what only a gofer could
//! use is refused.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use berm_plan::Spec;
use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply};
use serde::Deserialize;
use serde_json::Value;

use crate::api::Stdio;
use crate::error::Error;
use crate::live::Sandbox;

/// gVisor's `CreateArgs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateArgs {
    #[serde(rename = "CID")]
    cid: String,
    /// Berm's addition: the directory of the host that a relative `root.path` is in.
    #[serde(rename = "Bundle", default)]
    bundle: Option<PathBuf>,
}

/// gVisor's `StartArgs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StartArgs {
    #[serde(rename = "CID")]
    cid: String,
    #[serde(rename = "Spec")]
    spec: Value,
    #[serde(rename = "Conf", default)]
    conf: Value,
    #[serde(rename = "NumGoferFilestoreFDs", default)]
    filestores: u32,
    #[serde(rename = "IsDevIoFilePresent", default)]
    dev_io: bool,
    #[serde(rename = "GoferMountConfs", default)]
    gofer_mounts: Option<Vec<Value>>,
    #[serde(rename = "IsRootfsUpperTarFilePresent", default)]
    upper_tar: bool,
}

fn invalid(text: impl Into<String>) -> CallError {
    CallError::new(ErrorKind::InvalidArgument, text)
}

impl StartArgs {
    /// Refuses what only gVisor's kernel could use.
    fn check(&self) -> Result<(), CallError> {
        let refused = |text: String| Err(CallError::new(ErrorKind::NotSupported, text));
        let gofers = [
            ("NumGoferFilestoreFDs", self.filestores != 0),
            ("IsDevIoFilePresent", self.dev_io),
            (
                "GoferMountConfs",
                self.gofer_mounts
                    .as_ref()
                    .is_some_and(|all| !all.is_empty()),
            ),
            ("IsRootfsUpperTarFilePresent", self.upper_tar),
        ];
        if let Some((key, _)) = gofers.iter().find(|(_, set)| *set) {
            return refused(format!(
                "{key}: no gofer serves files to this sandbox; leave it out, the Spec's root.path \
                 and mounts are paths of the host"
            ));
        }
        match &self.conf {
            Value::Null => Ok(()),
            Value::Object(keys) if keys.is_empty() => Ok(()),
            _ => refused(
                "Conf: the settings of gVisor's kernel; leave it out, a Berm sandbox has those of \
                 its node"
                    .to_owned(),
            ),
        }
    }

    fn spec(&self) -> Result<Spec, CallError> {
        let json = serde_json::to_vec(&self.spec).map_err(|e| invalid(format!("Spec: {e}")))?;
        Ok(Spec::parse(&json).map_err(Error::from)?)
    }
}

/// Three files or none; none with a terminal, which is one of the container's own.
fn stdio(terminal: bool, fds: Vec<OwnedFd>) -> Result<Stdio, CallError> {
    match (terminal, fds.len()) {
        (_, 0) => Ok(Stdio::default()),
        (true, _) => Err(CallError::new(
            ErrorKind::NotSupported,
            "process.terminal: a container gets a terminal of its own; send no files, the reply \
             brings the terminal's master",
        )),
        (false, _) => {
            let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds).map_err(|fds| {
                let text = "files: the three standard streams or none must come along, not";
                invalid(format!("{text} {}", fds.len()))
            })?;
            Ok(Stdio {
                stdin: Some(stdin),
                stdout: Some(stdout),
                stderr: Some(stderr),
            })
        }
    }
}

impl Sandbox {
    pub(super) async fn control_start_root(self, id: String) -> Result<Reply, CallError> {
        if id != self.id() {
            self.0.task(&id)?;
            let root = self.id();
            let text = format!("{id:?} is not the root container, which is {root:?}");
            return Err(invalid(text));
        }
        self.start_root().await?;
        Ok(Reply::empty())
    }

    pub(super) fn control_create_subcontainer(
        &self,
        args: CreateArgs,
        fds: &[OwnedFd],
    ) -> Result<Reply, CallError> {
        if !fds.is_empty() {
            let text = "a container gets a terminal of its own; send no file, the reply to \
                        StartSubcontainer brings its master";
            return Err(CallError::new(ErrorKind::NotSupported, text));
        }
        let bundle = args.bundle.unwrap_or_else(|| PathBuf::from("/"));
        self.create_subcontainer(&args.cid, bundle)?;
        Ok(Reply::empty())
    }

    pub(super) async fn control_start_subcontainer(
        self,
        args: StartArgs,
        fds: Vec<OwnedFd>,
    ) -> Result<Reply, CallError> {
        self.0.task(&args.cid)?;
        args.check()?;
        let spec = args.spec()?;
        let stdio = stdio(spec.terminal(), fds)?;
        let created = self.start_subcontainer(&args.cid, spec, stdio).await?;
        Ok(Reply::empty().donate(created.terminal.into_iter().collect()))
    }

    pub(super) async fn control_destroy_subcontainer(self, id: String) -> Result<Reply, CallError> {
        self.destroy_container(&id).await?;
        Ok(Reply::empty())
    }
}
