//! The step `port-forward`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::data::Step;
use super::expect::Got;
use super::run::{Run, program};
use crate::command;
use crate::error::{Error, call};
use crate::node::CALL;

impl Run<'_> {
    /// Runs a program on the node while a port of its own leads to the pod's.
    pub(super) fn port_forward(&self, step: &Step) -> Result<Got, Error> {
        let sandbox = self.sandbox.clone().unwrap_or_default();
        let ports = format!("0:{}", step.port.unwrap_or_default());
        let mut command = self
            .node
            .command("crictl", &["port-forward", &sandbox, &ports]);
        let forward = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut forward = Forward(forward.map_err(|source| Error::Exec {
            program: "crictl".into(),
            source,
        })?);
        let port = forward.port()?;
        let args: Vec<String> = step
            .args
            .iter()
            .map(|arg| self.fill(arg).replace("${port}", &port))
            .collect();
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let (name, words) = words.split_first().unwrap_or((&"true", &[]));
        let command = self.node.command(name, words);
        Ok(program(command::run(command, step.stdin.as_bytes(), CALL)?))
    }
}

/// crictl while it forwards a port. Dropping it ends it.
struct Forward(Child);

impl Forward {
    /// The node's port, once crictl tells it.
    fn port(&mut self) -> Result<String, Error> {
        let pipe = self.0.stdout.as_mut();
        let mut lines = pipe.map(|pipe| BufReader::new(pipe).lines());
        let line = lines.as_mut().and_then(Iterator::next);
        let line = line.transpose().map_err(call("read(crictl)"))?;
        let line = line.unwrap_or_default();
        // "Forwarding from 127.0.0.1:33491 -> 80"
        let port = line
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split(' ').next());
        port.map(str::to_owned).ok_or_else(|| Error::Answer {
            command: "crictl port-forward".into(),
            why: line.clone(),
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // It may have ended by itself: both calls may fail.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
