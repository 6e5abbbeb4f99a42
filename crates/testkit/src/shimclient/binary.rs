//! The shim binary: `start`, `delete` and `-info` as each generation of containerd runs them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension, LogLevel};
use containerd_shim_protos::protobuf::{
    self, CodedOutputStream, EnumOrUnknown, Message, MessageField,
};
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::answer::parse_answer;
use super::{Answer, Any, Bundle, Error, Exit, Generation, Node};

/// Everything that a shim binary prints is read up to here.
const OUTPUT_LIMIT: u64 = 64 << 10;
/// containerd gives `start` its own call's deadline and `delete` 5 s; here both get this.
const DEADLINE: Duration = Duration::from_secs(30);

/// `runtimeoptions.v1.Options.config_body`, which the protos crate lacks.
const CONFIG_BODY: u32 = 3;

/// A shim binary and how containerd is configured to run it.
#[derive(Clone, Debug)]
pub struct ShimBinary {
    path: PathBuf,
    options: Option<Any>,
    generation: Generation,
    env: Vec<(OsString, OsString)>,
    debug: bool,
}

impl ShimBinary {
    /// The binary at `path`, run without options as containerd 2.3 runs it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (options, env) = (None, Vec::new());
        Self {
            path: path.into(),
            options,
            generation: Generation::default(),
            env,
            debug: false,
        }
    }

    /// With these options of the runtime handler, at `start` and at `Create`.
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// With runc's options, `binary_name` being the runtime to execute ("" means `runc`).
    pub fn runc_options(self, binary_name: &str) -> Self {
        let options = Options {
            binary_name: binary_name.to_owned(),
            ..Options::default()
        };
        self.options(Any {
            type_url: "containerd.runc.v1.Options".to_owned(),
            value: options.write_to_bytes().unwrap_or_default(),
            ..Any::default()
        })
    }

    /// With the text of a configuration file of Berm (`runtimeoptions.v1.Options.config_body`).
    pub fn config(self, toml: &str) -> Self {
        self.options(Any {
            type_url: "runtimeoptions.v1.Options".to_owned(),
            value: field(CONFIG_BODY, toml).unwrap_or_default(),
            ..Any::default()
        })
    }

    /// Run as that generation of containerd runs it.
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// With a variable more in the environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// As a containerd at log level debug runs it.
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = debug;
        self
    }

    /// The binary.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The options for `Create`.
    pub fn create_options(&self) -> Option<Any> {
        self.options.clone()
    }

    /// Runs `start` in the bundle and reads the answer.
    ///
    /// # Errors
    /// [`Error::Program`] with what it printed when it fails, [`Error::Answer`] when this
    /// generation of containerd would not understand the answer.
    pub async fn start(&self, node: &Node, bundle: &Bundle) -> Result<Answer, Error> {
        let mut command = self.command(node, bundle.id());
        command.current_dir(bundle.path()).arg("start");
        let input = self.stdin(node, bundle.id());
        let output = self.run(command, "start", &input, true).await?;
        parse_answer(&output, self.generation).ok_or_else(|| answer("start", &output))
    }

    /// Runs `delete` in the bundle, as after every end of a task.
    ///
    /// # Errors
    /// [`Error::Program`] when it fails, [`Error::Answer`] if it prints no `DeleteResponse`.
    pub async fn delete(&self, node: &Node, bundle: &Bundle) -> Result<Exit, Error> {
        let mut command = self.command(node, bundle.id());
        command
            .current_dir(bundle.path())
            .arg("-bundle")
            .arg(bundle.path())
            .arg("delete");
        let output = self.run(command, "delete", &[], false).await?;
        let response = DeleteResponse::parse_from_bytes(&output);
        response
            .map(Exit::from)
            .map_err(|_| answer("delete", &output))
    }

    /// Runs `-info`, the options on stdin.
    ///
    /// # Errors
    /// [`Error::Program`] when it fails, [`Error::Answer`] if it prints no `RuntimeInfo`.
    pub async fn info(&self) -> Result<RuntimeInfo, Error> {
        let mut command = Command::new(&self.path);
        command.arg("-info");
        let input = bytes(self.options.as_ref());
        let output = self.run(command, "-info", &input, false).await?;
        RuntimeInfo::parse_from_bytes(&output).map_err(|_| answer("-info", &output))
    }

    fn command(&self, node: &Node, id: &str) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(["-namespace", node.namespace(), "-address"])
            .arg(node.grpc_address());
        command.args(["-publish-binary", "/usr/local/bin/containerd", "-id", id]);
        if self.debug {
            command.arg("-debug");
        }
        command
            .env("TTRPC_ADDRESS", node.events().path())
            .env("GOMAXPROCS", "2");
        if self.generation > Generation::V1_6 {
            command
                .env("MAX_SHIM_VERSION", "2")
                .env("NAMESPACE", node.namespace());
            command.env("GRPC_ADDRESS", node.grpc_address());
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn stdin(&self, node: &Node, id: &str) -> Vec<u8> {
        if self.generation < Generation::V2_3 {
            return bytes(self.options.as_ref());
        }
        let extension = |options: &Any| Extension {
            value: MessageField::some(options.clone()),
            ..Extension::default()
        };
        let level = if self.debug {
            LogLevel::LOG_LEVEL_DEBUG
        } else {
            LogLevel::LOG_LEVEL_INFO
        };
        let params = BootstrapParams {
            instance_id: id.to_owned(),
            namespace: node.namespace().to_owned(),
            log_level: EnumOrUnknown::new(level),
            containerd_version: "v2.3.4".to_owned(),
            containerd_ttrpc_address: node.events().path().display().to_string(),
            containerd_grpc_address: node.grpc_address().display().to_string(),
            containerd_binary: "/usr/local/bin/containerd".to_owned(),
            extensions: self.options.iter().map(extension).collect(),
            socket_dir: Some(node.socket_dir().display().to_string()),
            ..BootstrapParams::default()
        };
        params.write_to_bytes().unwrap_or_default()
    }

    /// Runs a command in a process group of its own; stderr goes where stdout goes, or apart.
    async fn run(
        &self,
        mut command: Command,
        action: &'static str,
        input: &[u8],
        together: bool,
    ) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Spawn {
            program: self.path.clone(),
            source,
        };
        let (stdout, ours) = output_pipe().map_err(failed)?;
        let (stderr, errors) = if together {
            (stdout.try_clone().map_err(failed)?, None)
        } else {
            let (stderr, errors) = output_pipe().map_err(failed)?;
            (stderr, Some(errors))
        };
        command
            .process_group(0)
            .stdout(stdout)
            .stderr(stderr)
            .kill_on_drop(true);
        command.stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        let mut child = command.spawn().map_err(failed)?;
        // The command holds our copies of the write ends, which would keep the output open.
        drop(command);
        let stdin = child.stdin.take();
        let run = async {
            if let Some(mut stdin) = stdin {
                stdin.write_all(input).await?;
            }
            let (output, errors) = tokio::try_join!(read(Some(ours)), read(errors))?;
            Ok((child.wait().await?, output, errors))
        };
        let late = |_| Error::Deadline {
            what: format!("end of {action}"),
            deadline: DEADLINE,
        };
        let done = tokio::time::timeout(DEADLINE, run).await.map_err(late)?;
        let (status, output, errors) = done.map_err(failed)?;
        self.check(status, action, output, &errors)
    }

    fn check(
        &self,
        status: ExitStatus,
        action: &str,
        output: Vec<u8>,
        errors: &[u8],
    ) -> Result<Vec<u8>, Error> {
        if status.success() {
            return Ok(output);
        }
        let mut text = String::from_utf8_lossy(&output).into_owned();
        text.push_str(&String::from_utf8_lossy(errors));
        let (program, action) = (self.path.clone(), action.to_owned());
        Err(Error::Program {
            program,
            action,
            status,
            output: text,
        })
    }
}

fn answer(action: &'static str, output: &[u8]) -> Error {
    Error::Answer {
        action,
        text: String::from_utf8_lossy(output).into_owned(),
    }
}

fn bytes(options: Option<&Any>) -> Vec<u8> {
    options
        .and_then(|options| options.write_to_bytes().ok())
        .unwrap_or_default()
}

/// A pipe: the write end for the child, the read end for us.
fn output_pipe() -> std::io::Result<(std::io::PipeWriter, pipe::Receiver)> {
    let (read, write) = std::io::pipe()?;
    let read = std::os::fd::OwnedFd::from(read);
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((write, pipe::Receiver::from_owned_fd(read)?))
}

async fn read(pipe: Option<pipe::Receiver>) -> std::io::Result<Vec<u8>> {
    let mut output = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_LIMIT).read_to_end(&mut output).await?;
    }
    Ok(output)
}

/// A message with one field, a text.
fn field(number: u32, text: &str) -> protobuf::Result<Vec<u8>> {
    let mut message = Vec::new();
    let mut out = CodedOutputStream::vec(&mut message);
    out.write_string(number, text)?;
    out.flush()?;
    drop(out);
    Ok(message)
}
