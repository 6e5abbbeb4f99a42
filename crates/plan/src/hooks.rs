//! `hooks` → programs that run at set moments of a container's life.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime;
use serde::{Deserialize, Serialize};

use crate::container::ExecPlan;
use crate::refusal::{Error, invalid, no_nul, quoted, unsupported};
use crate::spec::Spec;

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Which it is: `hooks.createRuntime[0]`.
    pub field: String,
    /// The program.
    pub path: PathBuf,
    /// Arguments, `args[0]` included.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<String>,
    /// How long it may take; `None`: as long as the host allows any.
    pub timeout: Option<Duration>,
}

/// A program of the container's own tree, started and confined as the workload is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartHook {
    /// What it is.
    pub hook: Hook,
    /// How it is started.
    pub exec: ExecPlan,
}

/// All programs of a container, by the moment at which they run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hooks {
    /// In the host's namespaces, once the tree stands and before it is the root.
    pub prestart: Vec<Hook>,
    /// Right after them, likewise.
    pub create_runtime: Vec<Hook>,
    /// Right after them, in the container's namespaces, with the host's tree in sight.
    pub create_container: Vec<Hook>,
    /// In the container, before the workload.
    pub start_container: Vec<StartHook>,
    /// In the host's namespaces, once the workload runs.
    pub poststart: Vec<Hook>,
    /// In the host's namespaces, once the container is gone.
    pub poststop: Vec<Hook>,
    /// What each is told.
    pub state: OciState,
}

impl Hooks {
    /// Reads `hooks`, but for those of `startContainer`, which need a workload.
    pub(crate) fn parse(spec: &Spec, id: &str, bundle: &Path) -> Result<Self, Error> {
        let Some(hooks) = spec.oci.hooks() else {
            return Ok(Self::default());
        };
        #[allow(deprecated, reason = "what many hooks of the field still use")]
        let prestart = hooks.prestart();
        Ok(Self {
            prestart: list("prestart", prestart.as_deref())?,
            create_runtime: list("createRuntime", hooks.create_runtime().as_deref())?,
            create_container: list("createContainer", hooks.create_container().as_deref())?,
            start_container: Vec::new(),
            poststart: list("poststart", hooks.poststart().as_deref())?,
            poststop: list("poststop", hooks.poststop().as_deref())?,
            state: OciState::new(spec, id, bundle),
        })
    }

    /// True if some look at the tree before it is the root.
    pub fn before_pivot(&self) -> bool {
        !(self.prestart.is_empty()
            && self.create_runtime.is_empty()
            && self.create_container.is_empty())
    }
}

/// The hooks of `startContainer`.
pub(crate) fn start_container(spec: &Spec) -> Result<Vec<Hook>, Error> {
    let hooks = spec.oci.hooks().as_ref();
    list(
        "startContainer",
        hooks.and_then(|h| h.start_container().as_deref()),
    )
}

fn list(kind: &str, hooks: Option<&[runtime::Hook]>) -> Result<Vec<Hook>, Error> {
    let hooks = hooks.unwrap_or_default().iter().enumerate();
    hooks
        .map(|(index, hook)| parse(format!("hooks.{kind}[{index}]"), hook))
        .collect()
}

fn parse(field: String, hook: &runtime::Hook) -> Result<Hook, Error> {
    let text = hook.path().to_string_lossy();
    no_nul(&format!("{field}.path"), &text)?;
    if !hook.path().is_absolute() {
        let reason = format!("{} is not an absolute path", quoted(&text));
        let way_out = "use a path that begins with /";
        return Err(invalid(format!("{field}.path"), reason, way_out));
    }
    let args = match hook.args().as_deref().unwrap_or_default() {
        [] => vec![text.into_owned()],
        args => args.to_vec(),
    };
    let env = hook.env().clone().unwrap_or_default();
    for (name, list) in [("args", &args), ("env", &env)] {
        for (index, entry) in list.iter().enumerate() {
            no_nul(&format!("{field}.{name}[{index}]"), entry)?;
        }
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => match u32::try_from(seconds) {
            Ok(1..) => Some(Duration::from_secs(seconds.unsigned_abs())),
            _ => {
                let reason = format!("{seconds} is no number of seconds above zero");
                let way_out = "leave it out, or give whole seconds";
                return Err(invalid(format!("{field}.timeout"), reason, way_out));
            }
        },
    };
    Ok(Hook {
        field,
        path: hook.path().clone(),
        args,
        env,
        timeout,
    })
}

/// The `state` document of the OCI runtime spec, but for status and pid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    oci_version: String,
    id: String,
    bundle: PathBuf,
    annotations: BTreeMap<String, String>,
}

impl OciState {
    pub(crate) fn new(spec: &Spec, id: &str, bundle: &Path) -> Self {
        let annotations = spec.oci.annotations().iter().flatten();
        Self {
            oci_version: spec.oci.version().clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: annotations.map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }

    /// The whole document. `pid`: as the reader sees it; `None`: there
    /// is no process any more.
    pub fn json(&self, status: &str, pid: Option<i32>) -> String {
        self.value(status, pid).to_string()
    }

    pub(crate) fn value(&self, status: &str, pid: Option<i32>) -> serde_json::Value {
        let mut state = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
            "bundle": self.bundle.to_string_lossy(),
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        if !self.annotations.is_empty() {
            state["annotations"] = serde_json::json!(self.annotations);
        }
        state
    }
}

/// Refuses hooks of a pod's sandbox, which runs no container that they could be about.
pub(crate) fn refuse_in_sandbox(spec: &Spec) -> Result<(), Error> {
    let hooks = Hooks::parse(spec, "", Path::new("/"))?;
    let start = start_container(spec)?;
    let mut all = hooks
        .prestart
        .iter()
        .chain(&hooks.create_runtime)
        .chain(&hooks.create_container)
        .chain(&start)
        .chain(&hooks.poststart)
        .chain(&hooks.poststop);
    match all.next() {
        Some(hook) => Err(unsupported(
            hook.field.clone(),
            "the sandbox of a pod has no root file system and starts no process",
            "put the hook into the specs of the containers",
        )),
        None => Ok(()),
    }
}
