//! CRI through crictl: one method per call, the answer as it came.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::command::{self, Output};
use crate::error::Error;
use crate::node::{CALL, Node};

/// crictl on a node.
#[derive(Debug, Clone, Copy)]
pub struct Cri<'a> {
    node: &'a Node,
}

/// How an exec is done.
#[derive(Debug, Clone, Default)]
pub struct Exec<'a> {
    /// The command.
    pub args: Vec<&'a str>,
    /// Its input.
    pub stdin: &'a str,
    /// With a terminal.
    pub tty: bool,
    /// By ExecSync, as probes do, instead of the streaming server.
    pub sync: bool,
    /// CRI's own timeout, for `sync`.
    pub timeout: Option<Duration>,
}

impl<'a> Cri<'a> {
    /// Drives the CRI of `node`.
    #[must_use]
    pub fn new(node: &'a Node) -> Self {
        Self { node }
    }

    /// Runs crictl with `args`, whatever comes of it.
    /// # Errors
    /// [`Error::Deadline`] after [`CALL`].
    pub fn call(&self, args: &[&str]) -> Result<Output, Error> {
        command::run(self.node.command("crictl", args), b"", CALL)
    }

    /// RunPodSandbox with the PodSandboxConfig in `config`: stdout is the id.
    /// # Errors
    /// As [`Cri::call`].
    pub fn run_pod(&self, handler: &str, config: &Path) -> Result<Output, Error> {
        self.call(&["runp", "--runtime", handler, &config.to_string_lossy()])
    }

    /// CreateContainer: stdout is the id.
    /// # Errors
    /// As [`Cri::call`].
    pub fn create(&self, pod: &str, config: &Path, pod_config: &Path) -> Result<Output, Error> {
        let (config, pod_config) = (config.to_string_lossy(), pod_config.to_string_lossy());
        self.call(&["create", "--no-pull", pod, &config, &pod_config])
    }

    /// StartContainer.
    /// # Errors
    /// As [`Cri::call`].
    pub fn start(&self, container: &str) -> Result<Output, Error> {
        self.call(&["start", container])
    }

    /// StopContainer: its stop signal, `grace` seconds, SIGKILL.
    /// # Errors
    /// As [`Cri::call`].
    pub fn stop(&self, container: &str, grace: u32) -> Result<Output, Error> {
        self.call(&["stop", "--timeout", &grace.to_string(), container])
    }

    /// ExecSync or Exec; the code of [`Output`] is the command's own.
    /// # Errors
    /// As [`Cri::call`].
    pub fn exec(&self, container: &str, exec: &Exec<'_>) -> Result<Output, Error> {
        let timeout = exec.timeout.unwrap_or_default().as_secs().to_string();
        let mut args = vec!["exec"];
        if exec.sync {
            args.extend(["--sync", "--timeout", &timeout]);
        }
        if !exec.stdin.is_empty() || exec.tty {
            args.push("--interactive");
        }
        if exec.tty {
            args.push("--tty");
        }
        args.push(container);
        args.extend(&exec.args);
        let command = match exec.tty {
            true => self.with_terminal(&args),
            false => self.node.command("crictl", &args),
        };
        let mut output = command::run(command, exec.stdin.as_bytes(), CALL)?;
        // A terminal has one stream for both.
        let said = if exec.tty {
            &output.stdout
        } else {
            &output.stderr
        };
        if let Some(code) = exit_code(said) {
            output.code = code;
        }
        Ok(output)
    }

    /// crictl demands that its own standard input is a terminal, which script(1) makes.
    fn with_terminal(&self, args: &[&str]) -> std::process::Command {
        let quoted = args
            .iter()
            .map(|arg| format!("'{}'", arg.replace('\'', "'\\''")));
        let line = format!("crictl {}", quoted.collect::<Vec<_>>().join(" "));
        self.node.command(
            "script",
            &["--quiet", "--return", "--command", &line, "/dev/null"],
        )
    }

    /// What crictl prints as JSON.
    /// # Errors
    /// [`Error::Failed`], [`Error::Answer`] if it is not JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value, Error> {
        let output = self.call(args)?.ok()?;
        serde_json::from_str(&output.stdout).map_err(|error| Error::Answer {
            command: output.command,
            why: error.to_string(),
        })
    }

    /// ContainerStatus, verbose: `/status` is CRI's, `/info` containerd's.
    /// # Errors
    /// As [`Cri::json`].
    pub fn inspect(&self, container: &str) -> Result<Value, Error> {
        self.json(&["inspect", "--output", "json", container])
    }

    /// Waits until the container has ended, on its pidfd, and gives its status.
    /// # Errors
    /// [`Error::Deadline`] after `limit`.
    pub fn wait(&self, container: &str, limit: Duration) -> Result<Value, Error> {
        let end = std::time::Instant::now() + command::patient(limit);
        loop {
            let status = self.inspect(container)?;
            if status["status"]["state"] == "CONTAINER_EXITED" {
                return Ok(status);
            }
            if std::time::Instant::now() > end {
                return Err(Error::Deadline {
                    what: format!("the end of {container}"),
                    limit,
                });
            }
            let pid = status["info"]["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            // Between the process's end and CRI's knowledge of it there is no event to wait on.
            match pid.filter(|pid| *pid > 0).map(command::pidfd) {
                Some(Ok(pidfd)) if command::readable(&pidfd, std::time::Instant::now())? => {
                    crate::guard::pause(Duration::from_millis(5));
                }
                Some(Ok(pidfd)) => drop(command::readable(&pidfd, end)?),
                _ => crate::guard::pause(Duration::from_millis(5)),
            }
        }
    }
}

/// crictl reports the command's exit code only in its words.
fn exit_code(stderr: &str) -> Option<i32> {
    let words = [
        "terminated with exit code ",
        "exited with ",
        "terminated with signal ",
    ];
    let at = words
        .iter()
        .find_map(|word| Some(stderr.find(word)? + word.len()))?;
    let digits = stderr[at..].split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_read_from_both_of_crictls_messages() {
        let cases = [
            (
                "level=fatal msg=\"command terminated with exit code 3\"",
                Some(3),
            ),
            ("command 'sh -c exit 7' exited with 7: ", Some(7)),
            ("rpc error: code = Unknown", None),
        ];
        for (text, want) in cases {
            assert_eq!(exit_code(text), want, "{text}");
        }
    }
}
