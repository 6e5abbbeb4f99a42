//! One pod from its sandbox to its last trace.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::data::{Pod, Step, Verb, includes};
use super::expect::{Got, differences};
use super::{CLEAN, Runtime};
use crate::command::{self, Output};
use crate::cri::{Cri, Exec};
use crate::error::{Error, chain, file};
use crate::mounts::{self, Mount};
use crate::node::{CALL, Node};
use crate::{cgroups, guard};

/// Longest wait of a step that names none.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every step of `pod` and gives what was not as promised.
pub(super) fn pod(node: &Node, runtime: Runtime, pod: &Pod) -> Result<(), Vec<String>> {
    let mut run = Run::new(node, runtime, pod).map_err(|error| vec![chain(&error)])?;
    let mut wrong = run.steps();
    wrong.extend(run.end());
    if !wrong.is_empty() {
        wrong.extend(run.log_lines());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// A container of the pod: its newest attempt.
#[derive(Debug, Default)]
pub(super) struct Container {
    pub(super) id: String,
    attempt: u32,
    started: bool,
}

pub(super) struct Run<'a> {
    pub(super) node: &'a Node,
    cri: Cri<'a>,
    pub(super) runtime: Runtime,
    pub(super) pod: &'a Pod,
    pub(super) uid: String,
    pub(super) dir: PathBuf,
    pub(super) sandbox: Option<String>,
    pub(super) containers: BTreeMap<String, Container>,
    ids: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(node: &'a Node, runtime: Runtime, pod: &'a Pod) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let uid = format!("{:08x}-{number:04}", std::process::id());
        let dir = node.dir().join(format!("pod-{uid}"));
        std::fs::create_dir_all(dir.join("logs")).map_err(file("mkdir", &dir))?;
        let run = Self {
            cri: Cri::new(node),
            node,
            runtime,
            pod,
            uid,
            dir,
            sandbox: None,
            containers: BTreeMap::new(),
            ids: Vec::new(),
        };
        for (name, text) in &pod.expect.files {
            let path = run.dir.join(name);
            let parent = path.parent().unwrap_or(&run.dir);
            std::fs::create_dir_all(parent).map_err(file("mkdir", parent))?;
            std::fs::write(&path, run.fill(text)).map_err(file("write", path))?;
        }
        if node.systemd() {
            node.run("systemctl", &["start", &run.cgroup_parent()])?;
        } else {
            cgroups::create(&run.hierarchies()?, &run.cgroup())?;
        }
        Ok(run)
    }

    /// Stops at the first step that is not as promised: what follows builds on it.
    fn steps(&mut self) -> Vec<String> {
        let first = Step {
            verb: Verb::Pod,
            ..Step::default()
        };
        let asked = self
            .pod
            .expect
            .steps
            .first()
            .is_some_and(|step| step.verb == Verb::Pod);
        let implied = (!asked && self.pod.config.is_some()).then_some(&first);
        for (number, step) in implied
            .into_iter()
            .chain(&self.pod.expect.steps)
            .enumerate()
        {
            if !includes(&step.only, self.runtime) {
                continue;
            }
            let wrong = match self.step(step) {
                Ok(got) => differences(step, &got, |text| self.fill(text)),
                Err(error) => vec![chain(&error)],
            };
            if !wrong.is_empty() {
                let step_number = number + usize::from(asked || self.pod.config.is_none());
                let name = |text: &String| format!("step {step_number} ({:?}): {text}", step.verb);
                return wrong.iter().map(name).collect();
            }
        }
        Vec::new()
    }

    fn step(&mut self, step: &Step) -> Result<Got, Error> {
        match step.verb {
            Verb::Pod => self.run_pod(),
            Verb::Create => self.create(step),
            Verb::Start => self.start(step),
            Verb::Wait => {
                let limit = step
                    .timeout
                    .map_or(PATIENCE, |s| Duration::from_secs(s.into()));
                let id = self.id(step)?;
                let got = ended(&self.cri.wait(&id, limit)?);
                self.with_reason(step, &id, got)
            }
            Verb::Exec => self.exec(step),
            Verb::Attach => {
                let id = self.id(step)?;
                let command = self.node.command("crictl", &["attach", "--stdin", &id]);
                Ok(program(command::run(command, step.stdin.as_bytes(), CALL)?))
            }
            Verb::Stop => {
                let id = self.id(step)?;
                self.cri.stop(&id, step.timeout.unwrap_or(10))?.ok()?;
                Ok(ended(&self.cri.inspect(&id)?))
            }
            Verb::Update => {
                let id = self.id(step)?;
                let args = step.args.iter().map(|arg| self.fill(arg));
                let args: Vec<_> = args.chain([id]).collect();
                let args = std::iter::once("update").chain(args.iter().map(String::as_str));
                Ok(call(self.cri.call(&args.collect::<Vec<_>>())?))
            }
            Verb::Remove => self.remove(step),
            Verb::Logs => Ok(program(self.cri.call(&["logs", &self.id(step)?])?.ok()?)),
            Verb::Log => self.log(step),
            Verb::Kill => self.kill(step),
            Verb::Inspect => Ok(shown(self.cri.inspect(&self.id(step)?)?)),
            Verb::InspectPod => {
                let sandbox = self.sandbox.clone().unwrap_or_default();
                Ok(shown(
                    self.cri.json(&["inspectp", "--output", "json", &sandbox])?,
                ))
            }
            Verb::Stats => {
                let id = self.id(step)?;
                Ok(shown(
                    self.cri.json(&["stats", "--output", "json", "--id", &id])?,
                ))
            }
            Verb::PortForward => self.port_forward(step),
            Verb::StopPod => {
                let sandbox = self.sandbox.clone().unwrap_or_default();
                Ok(call(self.cri.call(&["stopp", &sandbox])?))
            }
            Verb::Host => self.on_node(None, step),
            Verb::Ctr => self.on_node(Some("ctr"), step),
        }
    }

    fn run_pod(&mut self) -> Result<Got, Error> {
        let config = self.pod_config();
        let path = self.write("pod.json", &config)?;
        let output = self.cri.run_pod(self.runtime.handler(), &path)?;
        self.sandbox = self.remember(&output);
        Ok(call(output))
    }

    fn create(&mut self, step: &Step) -> Result<Got, Error> {
        let name = self.container_name(step)?;
        let attempt = self.containers.get(&name).map_or(0, |old| old.attempt + 1);
        let config = self.container_config(&name, attempt);
        let config = self.write(&format!("{name}.json"), &config)?;
        let sandbox = self.sandbox.clone().unwrap_or_default();
        let output = self
            .cri
            .create(&sandbox, &config, &self.dir.join("pod.json"))?;
        if let Some(id) = self.remember(&output) {
            self.containers.insert(
                name,
                Container {
                    id,
                    attempt,
                    started: false,
                },
            );
        }
        Ok(call(output))
    }

    fn start(&mut self, step: &Step) -> Result<Got, Error> {
        let name = self.container_name(step)?;
        if self
            .containers
            .get(&name)
            .is_none_or(|container| container.started)
        {
            let got = self.create(step)?;
            if got.failure.is_some() {
                return Ok(got);
            }
        }
        let id = self.id(step)?;
        let output = self.cri.start(&id)?;
        if let Some(container) = self.containers.get_mut(&name) {
            container.started = true;
        }
        Ok(call(output))
    }

    fn exec(&self, step: &Step) -> Result<Got, Error> {
        let id = self.id(step)?;
        let args: Vec<String> = step.args.iter().map(|arg| self.fill(arg)).collect();
        let exec = Exec {
            args: args.iter().map(String::as_str).collect(),
            stdin: &step.stdin,
            tty: step.tty,
            sync: step.sync,
            timeout: step.timeout.map(|s| Duration::from_secs(s.into())),
        };
        let refusal = step.kind.is_some() || !step.refused.is_empty();
        let one = || {
            let output = self.cri.exec(&id, &exec)?;
            Ok(if refusal {
                call(output)
            } else {
                program(output)
            })
        };
        let Some(times) = step.times else {
            return one();
        };
        // All must be as promised; the first that is not speaks for the rest.
        let begin = Instant::now();
        let all: Vec<Result<Got, Error>> = std::thread::scope(|scope| {
            let when = |number: u32| match step.per_second {
                Some(rate) => begin + Duration::from_secs(number.into()) / rate.max(1),
                None => begin,
            };
            let spawn = |number| {
                guard::pause(when(number).saturating_duration_since(Instant::now()));
                scope.spawn(one)
            };
            let threads: Vec<_> = (0..times).map(spawn).collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect()
        });
        let all = all.into_iter().collect::<Result<Vec<Got>, Error>>()?;
        let bad = |got: &Got| !differences(step, got, |text| self.fill(text)).is_empty();
        let index = all.iter().position(bad).unwrap_or_default();
        Ok(all.into_iter().nth(index).unwrap_or_default())
    }

    fn remove(&mut self, step: &Step) -> Result<Got, Error> {
        let id = self.id(step)?;
        let output = self.cri.call(&["rm", &id])?;
        if output.code == 0 {
            guard::assert_forgotten(self.node, &[id], CLEAN)?;
        }
        Ok(call(output))
    }

    fn log(&self, step: &Step) -> Result<Got, Error> {
        let id = self.id(step)?;
        let limit = step
            .timeout
            .map_or(PATIENCE, |s| Duration::from_secs(s.into()));
        let end = Instant::now() + command::patient(limit);
        loop {
            let got = program(self.cri.call(&["logs", &id])?.ok()?);
            let missing = differences(step, &got, |text| self.fill(text));
            if missing.is_empty() || Instant::now() > end {
                return Ok(got);
            }
            guard::pause(Duration::from_millis(10));
        }
    }

    /// What CRI says once it knows why the container ended: runc's shim may tell of the OOM killer
    /// after the exit, Berm's must not.
    fn with_reason(&self, step: &Step, id: &str, mut got: Got) -> Result<Got, Error> {
        let end = Instant::now() + command::patient(PATIENCE);
        let late = |got: &Got| step.reason.as_ref().is_some_and(|r| *r != got.reason);
        while self.runtime != Runtime::Berm && late(&got) && Instant::now() < end {
            guard::pause(Duration::from_millis(10));
            got = ended(&self.cri.inspect(id)?);
        }
        Ok(got)
    }

    fn kill(&self, step: &Step) -> Result<Got, Error> {
        let id = self.id(step)?;
        let signal = step.signal.as_deref().unwrap_or("SIGKILL");
        let args = ["-n", "k8s.io", "task", "kill", "--signal", signal, &id];
        Ok(call(command::run(
            self.node.command("ctr", &args),
            b"",
            CALL,
        )?))
    }

    fn on_node(&self, program_name: Option<&str>, step: &Step) -> Result<Got, Error> {
        let args: Vec<String> = step.args.iter().map(|arg| self.fill(arg)).collect();
        let mut words = program_name
            .into_iter()
            .chain(args.iter().map(String::as_str));
        let name = words.next().unwrap_or("true");
        let command = self.node.command(name, &words.collect::<Vec<_>>());
        let limit = step.timeout.map_or(CALL, |s| Duration::from_secs(s.into()));
        let output = command::run(command, step.stdin.as_bytes(), limit)?;
        let refusal = step.kind.is_some() || !step.refused.is_empty();
        Ok(if refusal {
            call(output)
        } else {
            program(output)
        })
    }

    /// Stops and removes the pod, and gives all that it left.
    fn end(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(sandbox) = self.sandbox.take() {
            let removed = self
                .cri
                .call(&["rmp", "--force", &sandbox])
                .and_then(Output::ok);
            wrong.extend(
                removed
                    .err()
                    .map(|error| format!("at the end: {}", chain(&error))),
            );
        }
        let forgotten = guard::assert_forgotten(self.node, &self.ids, CLEAN);
        wrong.extend(forgotten.err().map(|error| chain(&error)));
        match self.hierarchies() {
            Ok(hierarchies) if self.node.systemd() => wrong.extend(self.stop_slice(&hierarchies)),
            Ok(hierarchies) => wrong.extend(cgroups::remove(&hierarchies, &self.cgroup())),
            Err(error) => wrong.push(chain(&error)),
        }
        wrong
    }

    /// Ends the pod's slice as kubelet does, and names what was still in it.
    fn stop_slice(&self, hierarchies: &[PathBuf]) -> Vec<String> {
        let slice = self.cgroup();
        let dirs = hierarchies
            .iter()
            .flat_map(|root| cgroups::tree(&root.join(slice.trim_start_matches('/'))));
        let mut left: Vec<String> = dirs
            .map(|dir| format!("cgroup {}", dir.display()))
            .collect();
        let stopped = self.node.run("systemctl", &["stop", &self.cgroup_parent()]);
        left.extend(stopped.err().map(|error| chain(&error)));
        left
    }

    /// What containerd had to say about this pod, as far as it is no routine.
    fn log_lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.node.log()).unwrap_or_default();
        let told = log.lines().filter(|line| {
            !line.contains("level=info") && self.ids.iter().any(|id| line.contains(id))
        });
        told.take(12).map(|line| format!("  log: {line}")).collect()
    }

    fn remember(&mut self, output: &Output) -> Option<String> {
        let id = (output.code == 0).then(|| output.stdout.trim().to_owned())?;
        self.ids.push(id.clone());
        Some(id)
    }

    fn container_name(&self, step: &Step) -> Result<String, Error> {
        let only = || match self.pod.containers.keys().collect::<Vec<_>>()[..] {
            [name] => Some(name.clone()),
            _ => None,
        };
        step.container
            .clone()
            .or_else(only)
            .ok_or_else(|| Error::Data {
                path: "expect.toml".into(),
                why: format!("{:?} must name one of several containers", step.verb),
            })
    }

    fn id(&self, step: &Step) -> Result<String, Error> {
        let name = self.container_name(step)?;
        let container = self.containers.get(&name);
        container
            .map(|container| container.id.clone())
            .ok_or_else(|| Error::Data {
                path: "expect.toml".into(),
                why: format!("{:?} before container {name} was created", step.verb),
            })
    }

    fn hierarchies(&self) -> Result<Vec<PathBuf>, Error> {
        let mounts = mounts::of(self.node.keeper_pid())?;
        let cgroups = mounts.iter().filter(|mount| Mount::is_cgroup(mount));
        Ok(cgroups
            .map(|mount| self.node.outside(&mount.target.to_string_lossy()))
            .collect())
    }

    /// The pod's cgroup, as kubelet names it for either driver.
    pub(super) fn cgroup(&self) -> String {
        match self.node.systemd() {
            true => format!(
                "/kubepods.slice/kubepods-besteffort.slice/{}",
                self.cgroup_parent()
            ),
            false => self.cgroup_parent(),
        }
    }

    /// What kubelet gives CRI as its `cgroup_parent`: the path, or the name of a slice.
    pub(super) fn cgroup_parent(&self) -> String {
        match self.node.systemd() {
            true => format!(
                "kubepods-besteffort-pod{}.slice",
                self.uid.replace('-', "_")
            ),
            false => format!("/test-pods/pod{}", self.uid),
        }
    }

    fn write(&self, name: &str, config: &Value) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        let text = self.fill(&config.to_string());
        std::fs::write(&path, text).map_err(file("write", &path))?;
        Ok(path)
    }
}

/// A CRI call: its failure is a refusal. crictl tells it twice, the second time as the fatal
/// message of a log line, quoted.
fn call(output: Output) -> Got {
    let failure = (output.code != 0).then(|| {
        let said = output.stderr.trim();
        let fatal = said
            .lines()
            .find_map(|line| line.split_once("level=fatal msg="));
        fatal
            .map_or(said, |(_, message)| message)
            .replace("\\\"", "\"")
    });
    Got {
        stdout: output.stdout,
        stderr: output.stderr,
        failure,
        ..Got::default()
    }
}

/// A program's own exit code and output.
pub(super) fn program(output: Output) -> Got {
    let Output {
        code,
        stdout,
        stderr,
        ..
    } = output;
    Got {
        code,
        stdout,
        stderr,
        ..Got::default()
    }
}

fn shown(json: Value) -> Got {
    Got {
        json,
        ..Got::default()
    }
}

fn ended(status: &Value) -> Got {
    let code = status["status"]["exitCode"]
        .as_i64()
        .and_then(|code| i32::try_from(code).ok());
    let reason = status["status"]["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    Got {
        code: code.unwrap_or(-1),
        reason,
        json: status.clone(),
        ..Got::default()
    }
}
