//! The life that is cut short: a pod's by CRI, a task's by ctr. Any call may fail.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::command::{self, Output};
use crate::cri::Cri;
use crate::error::{Error, file};
use crate::guard::pause;
use crate::image::BUSYBOX;
use crate::node::{CALL, Node};

/// Where a life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    RunPodSandbox,
    Create,
    Start,
    Execs,
    Stop,
    Delete,
    /// `ctr run`.
    TaskRun,
    /// `ctr task exec`, kill, delete.
    TaskEnd,
}

impl Moment {
    /// Whether the shim begins in it.
    pub(super) fn is_birth(self) -> bool {
        matches!(self, Self::RunPodSandbox | Self::TaskRun)
    }

    pub(super) fn is_of_task(self) -> bool {
        matches!(self, Self::TaskRun | Self::TaskEnd)
    }
}

/// Longest time that a removal may take to work after a kill.
const REMOVAL: Duration = Duration::from_secs(120);

pub(super) struct Life<'a> {
    node: &'a Node,
    cri: Cri<'a>,
    handler: &'a str,
    configs: &'a Configs,
}

impl<'a> Life<'a> {
    pub(super) fn new(node: &'a Node, handler: &'a str, configs: &'a Configs) -> Self {
        let cri = Cri::new(node);
        Self {
            node,
            cri,
            handler,
            configs,
        }
    }

    /// A pod's life: sandbox, three containers, execs, stop, removal. Unless it is `stopped`
    /// first, its removal stops it.
    pub(super) fn pod(&self, stopped: bool, step: &dyn Fn(Moment)) {
        let all = &self.configs.containers;
        step(Moment::RunPodSandbox);
        let Some(pod) = id(self.cri.run_pod(self.handler, &self.configs.pod)) else {
            return;
        };
        step(Moment::Create);
        let made: Vec<String> = all
            .iter()
            .filter_map(|config| id(self.cri.create(&pod, config, &self.configs.pod)))
            .collect();
        step(Moment::Start);
        for container in &made {
            if id(self.cri.start(container)).is_none() {
                return;
            }
        }
        step(Moment::Execs);
        self.execs(&made, || {
            if stopped {
                step(Moment::Stop);
                let _ = self.cri.call(&["stopp", &pod]);
            }
            step(Moment::Delete);
            let _ = self.cri.call(&["rmp", "--force", &pod]);
        });
    }

    /// Short execs one by one, a long one beside them that the stop of the pod ends.
    fn execs(&self, containers: &[String], stop: impl FnOnce()) {
        let exec = |container: &str, script: &str| {
            self.cri
                .call(&["exec", "--sync", container, "sh", "-c", script])
        };
        let (Some(own), Some(shared)) = (containers.first(), containers.get(1)) else {
            return;
        };
        std::thread::scope(|scope| {
            scope.spawn(|| exec(shared, "sleep 1000 & sleep 1000"));
            let _ = exec(own, "exit 7");
            let _ = exec(shared, "sleep 0.05");
            stop();
        });
    }

    /// A task's life: run, exec, kill, delete.
    pub(super) fn task(&self, step: &dyn Fn(Moment)) {
        // A new name each time: its exits are counted.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let task = format!("chaos-task-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        // What ctr leaves there when it cannot delete a task is no concern of the shim's.
        let fifos = self.configs.fifos.to_string_lossy();
        step(Moment::TaskRun);
        let mut run = vec!["run", "--detach", "--runtime", "io.containerd.berm.v1"];
        run.extend(["--fifo-dir", &fifos, BUSYBOX, &task]);
        run.extend(["sh", "-c", "sleep 1000 & sleep 1000"]);
        let _ = self.ctr(&run);
        step(Moment::TaskEnd);
        let mut exec = vec!["task", "exec", "--exec-id", "e"];
        exec.extend(["--fifo-dir", &fifos, &task, "true"]);
        let _ = self.ctr(&exec);
        let _ = self.ctr(&["task", "kill", "--signal", "SIGKILL", &task]);
        let _ = remove_tasks(self.node);
    }

    fn ctr(&self, args: &[&str]) -> Result<Output, Error> {
        command::run(self.node.command("ctr", args), b"", CALL)
    }
}

fn id(output: Result<Output, Error>) -> Option<String> {
    let output = output.and_then(Output::ok).ok()?;
    Some(output.stdout.trim().to_owned())
}

/// Removes every pod but `spared` and the task, asking again as kubelet does.
pub(super) fn remove_all(node: &Node, spared: &str) -> Result<(), Error> {
    let cri = Cri::new(node);
    let end = Instant::now() + REMOVAL;
    loop {
        let pods = cri.call(&["pods", "--quiet", "--no-trunc"])?.ok()?.stdout;
        let left: Vec<&str> = pods.lines().filter(|pod| *pod != spared).collect();
        let mut last = remove_tasks(node).err();
        if left.is_empty() && last.is_none() {
            return Ok(());
        }
        for pod in left {
            last = cri.call(&["rmp", "--force", pod])?.ok().err().or(last);
        }
        if Instant::now() > end {
            let (what, limit) = ("rmp".into(), REMOVAL);
            return Err(last.unwrap_or(Error::Deadline { what, limit }));
        }
        if last.is_some() {
            pause(Duration::from_millis(100));
        }
    }
}

fn remove_tasks(node: &Node) -> Result<(), Error> {
    let containers = node.run("ctr", &["containers", "list", "--quiet"])?;
    for task in containers.stdout.lines() {
        // There need not be a task any more.
        let delete = node.command("ctr", &["task", "delete", "--force", task]);
        let _ = command::run(delete, b"", CALL)?;
        node.run("ctr", &["containers", "delete", task])?;
    }
    Ok(())
}

/// The pods that run, but `spared`.
pub(super) fn ready(node: &Node, spared: &str) -> Result<Vec<String>, Error> {
    let pods = ["pods", "--quiet", "--no-trunc", "--state", "ready"];
    let pods = node.run("crictl", &pods)?.stdout;
    let pods = pods.lines().filter(|pod| *pod != spared);
    Ok(pods.map(str::to_owned).collect())
}

/// The configurations of the pods.
#[derive(Debug)]
pub(super) struct Configs {
    pub(super) pod: PathBuf,
    /// One in a PID namespace of its own, one in the pod's, and one that ends at once.
    pub(super) containers: Vec<PathBuf>,
    /// A container that ends with a code of its own when it is told to.
    pub(super) ends: PathBuf,
    pub(super) writer_pod: PathBuf,
    pub(super) writer: PathBuf,
    pub(super) logs: PathBuf,
    pub(super) fifos: PathBuf,
}

/// CRI's PID namespace modes.
const POD: u32 = 0;
const CONTAINER: u32 = 1;

impl Configs {
    pub(super) fn write(dir: &Path) -> Result<Self, Error> {
        let put = |name: &str, value: serde_json::Value| {
            let path = dir.join(format!("chaos-{name}.json"));
            std::fs::write(&path, value.to_string()).map_err(file("write", &path))?;
            Ok(path)
        };
        let pid =
            |mode: u32| json!({ "security_context": { "namespace_options": { "pid": mode } } });
        let logs = dir.join("chaos-logs");
        let pod = |name: &str| {
            json!({
                "metadata": { "name": name, "uid": name, "namespace": "test", "attempt": 0 },
                "hostname": name, "log_directory": logs,
                "dns_config": { "servers": ["192.0.2.53"] }, "linux": pid(POD),
            })
        };
        let container = |name: &str, mode: u32, script: &str| {
            json!({
                "metadata": { "name": name, "attempt": 0 }, "image": { "image": BUSYBOX },
                "command": ["sh", "-c", script], "log_path": format!("{name}.log"),
                "linux": pid(mode),
            })
        };
        let sleeps = "sleep 1000 & sleep 1000";
        Ok(Self {
            pod: put("pod", pod("chaos"))?,
            containers: vec![
                put("own", container("own", CONTAINER, sleeps))?,
                put("shared", container("shared", POD, sleeps))?,
                put("short", container("short", CONTAINER, "exit 3"))?,
            ],
            ends: put(
                "ends",
                container("ends", CONTAINER, &super::away::of_container()),
            )?,
            writer_pod: put("writer-pod", pod("writer"))?,
            writer: put(
                "writer",
                container("writer", CONTAINER, super::writer::SCRIPT),
            )?,
            logs,
            fifos: dir.join("chaos-fifos"),
        })
    }
}
