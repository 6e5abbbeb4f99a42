//! `Cgroups.ReadControlFiles` and `WriteControlFiles`.
//!
//! gVisor's `path` is one in the sandbox's own cgroup file system. Here it names whose cgroup on
//! the host is meant: `/<container id>`, or `/` for the sandbox's. Nothing of it reaches a file
//! system.

use berm_sys::Kind as ErrorKind;
use berm_urpc::{CallError, Reply, decode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Error;
use crate::live::Sandbox;

/// Files of one call.
const MAX_FILES: usize = 256;
/// Bytes of all values of one call.
const MAX_BYTES: usize = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileArgs {
    args: Vec<FileArg>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileArg {
    file: ControlFile,
    value: Option<String>,
}

/// gVisor's `CgroupControlFile`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ControlFile {
    controller: String,
    path: String,
    name: String,
}

#[derive(Debug, Serialize)]
struct Outcome {
    value: String,
    is_error: bool,
}

impl Sandbox {
    pub(super) async fn control_cgroups(self, write: bool, arg: Value) -> Result<Reply, CallError> {
        let FileArgs { args } = decode(arg)?;
        check(write, &args)?;
        let mut results = Vec::with_capacity(args.len());
        let mut bytes = 0;
        for arg in &args {
            let done = match &arg.value {
                Some(value) => self.write_control_file(&arg.file, value).await,
                None if bytes > MAX_BYTES => Err(Error::TooMuch {
                    max: MAX_BYTES as u64,
                }),
                None => self.read_control_file(&arg.file),
            };
            let outcome = match done {
                Ok(value) => Outcome {
                    value,
                    is_error: false,
                },
                Err(e) => Outcome {
                    value: e.chain(),
                    is_error: true,
                },
            };
            bytes += outcome.value.len();
            results.push(outcome);
        }
        Reply::of(&json!({ "results": results }))
    }

    fn read_control_file(&self, file: &ControlFile) -> Result<String, Error> {
        let value = self.read_cgroup_file(self.named_by(file), &file.controller, &file.name)?;
        Ok(value.trim_end_matches('\n').to_owned())
    }

    async fn write_control_file(&self, file: &ControlFile, value: &str) -> Result<String, Error> {
        let id = self.named_by(file);
        self.write_cgroup_file(id, &file.controller, &file.name, value)
            .await?;
        Ok(String::new())
    }

    /// The id that the path stands for.
    fn named_by<'a>(&'a self, file: &'a ControlFile) -> &'a str {
        match file.path.strip_prefix('/') {
            Some("") => self.id(),
            Some(id) => id,
            None => &file.path,
        }
    }
}

fn check(write: bool, args: &[FileArg]) -> Result<(), CallError> {
    let invalid = |text: String| Err(CallError::new(ErrorKind::InvalidArgument, text));
    if args.len() > MAX_FILES {
        return invalid(format!(
            "args: {} files, of {MAX_FILES} at most",
            args.len()
        ));
    }
    match args.iter().position(|arg| arg.value.is_some() != write) {
        Some(at) if write => invalid(format!("args[{at}].value: is missing")),
        Some(at) => invalid(format!("args[{at}].value: a file that is read takes none")),
        None => Ok(()),
    }
}
