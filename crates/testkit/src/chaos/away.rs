//! Processes that end while no containerd runs: when it is back it knows their codes, who lives
//! is the same process as before, and nothing was started a second time.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::life::Configs;
use crate::command;
use crate::cri::Cri;
use crate::error::Error;
use crate::guard::pause;
use crate::image::BUSYBOX;
use crate::node::{CALL, Node};
use crate::process;

/// What the container and the task end with when they are told to.
const CONTAINER_CODE: u32 = 7;
const TASK_CODE: u32 = 5;
const TASK: &str = "chaos-away";
const SOON: Duration = Duration::from_secs(60);

/// A pod with a container that will end and one that will not, and a task that will end.
pub(super) struct Scene {
    pub(super) pod: String,
    ends: String,
    stays: String,
    /// Pids of the two that end.
    doomed: [u32; 2],
    stays_pid: u32,
    /// How many processes of each sort the node has.
    shims: usize,
    sleeps: usize,
}

/// A script that ends with `code` when it is told to, and says when it can be.
pub(super) fn script(code: u32) -> String {
    format!("trap 'exit {code}' TERM; touch /tmp/ready; sleep 1000 & wait")
}

/// The script of the container that ends.
pub(super) fn of_container() -> String {
    script(CONTAINER_CODE)
}

impl Scene {
    pub(super) fn build(node: &Node, handler: &str, configs: &Configs) -> Result<Self, Error> {
        let cri = Cri::new(node);
        let pod = cri.run_pod(handler, &configs.pod)?.ok()?;
        let pod = pod.stdout.trim().to_owned();
        let container = |config| {
            let id = cri.create(&pod, config, &configs.pod)?.ok()?;
            let id = id.stdout.trim().to_owned();
            cri.start(&id)?.ok()?;
            Ok::<_, Error>(id)
        };
        let (ends, stays) = (
            container(&configs.ends)?,
            container(&configs.containers[0])?,
        );
        let (fifos, script) = (configs.fifos.to_string_lossy(), script(TASK_CODE));
        let mut run = vec!["run", "--detach", "--runtime", "io.containerd.berm.v1"];
        run.extend(["--fifo-dir", &fifos, BUSYBOX, TASK, "sh", "-c", &script]);
        node.run("ctr", &run)?;
        until("the trap of the container", || {
            let ready = ["exec", "--sync", &ends, "test", "-e", "/tmp/ready"];
            Ok(cri.call(&ready)?.code == 0)
        })?;
        until("the trap of the task", || {
            let mut ready = vec!["task", "exec", "--exec-id", "ready", "--fifo-dir", &fifos];
            ready.extend([TASK, "test", "-e", "/tmp/ready"]);
            Ok(command::run(node.command("ctr", &ready), b"", CALL)?.code == 0)
        })?;
        let doomed = [pid(&cri, &ends)?, task_pid(node)?];
        let stays_pid = pid(&cri, &stays)?;
        Ok(Self {
            pod,
            ends,
            stays,
            doomed,
            stays_pid,
            shims: count(node, "containerd-shim"),
            sleeps: count(node, "sleep"),
        })
    }

    /// Tells both to end, and waits until they have.
    pub(super) fn end_them(&self) -> Result<(), Error> {
        for pid in self.doomed {
            let pidfd = command::pidfd(pid)?;
            process::send(pid, Signal::TERM);
            if !command::readable(&pidfd, Instant::now() + SOON)? {
                let what = format!("the end of {pid}");
                return Err(Error::Deadline { what, limit: SOON });
            }
        }
        Ok(())
    }

    /// What a containerd that has just started says wrongly of it all.
    pub(super) fn wrong(&self, node: &Node) -> Result<Vec<String>, Error> {
        let cri = Cri::new(node);
        let mut wrong = Vec::new();
        let mut expect = |right: bool, what: String| {
            if !right {
                wrong.push(what);
            }
        };
        let ended = cri.inspect(&self.ends)?;
        let (state, code) = (&ended["status"]["state"], &ended["status"]["exitCode"]);
        let right = *state == "CONTAINER_EXITED" && *code == CONTAINER_CODE;
        expect(
            right,
            format!("the container that ended is {state} with code {code}"),
        );
        let lives = cri.inspect(&self.stays)?;
        let state = &lives["status"]["state"];
        let now = lives["info"]["pid"].as_u64().unwrap_or_default();
        let right = *state == "CONTAINER_RUNNING" && now == u64::from(self.stays_pid);
        expect(
            right,
            format!("pid {} is {state} with pid {now}", self.stays_pid),
        );
        let list = node.run("ctr", &["task", "list"])?.stdout;
        expect(
            list.contains("STOPPED"),
            format!("the task that ended: {list}"),
        );
        let deleted = node.command("ctr", &["task", "delete", TASK]);
        let deleted = command::run(deleted, b"", CALL)?;
        let said = deleted.stderr.contains(&format!("exit code {TASK_CODE}"));
        let code = u32::try_from(deleted.code).unwrap_or_default();
        expect(
            said || code == TASK_CODE,
            format!("the task's exit: {deleted:?}"),
        );
        let left = self.left(node);
        expect(left.is_ok(), left.err().unwrap_or_default());
        Ok(wrong)
    }

    /// The task's shim goes with it, soon after its Delete; each of the two that ended had a sleep.
    fn left(&self, node: &Node) -> Result<(), String> {
        let end = Instant::now() + SOON;
        loop {
            let (shims, sleeps) = (count(node, "containerd-shim"), count(node, "sleep"));
            if shims < self.shims && sleeps + 2 == self.sleeps {
                return Ok(());
            }
            if Instant::now() > end {
                let was = format!("{} shims and {} sleeps", self.shims, self.sleeps);
                return Err(format!(
                    "{shims} shims and {sleeps} sleeps run, there were {was}"
                ));
            }
            pause(Duration::from_millis(20));
        }
    }
}

fn count(node: &Node, name: &str) -> usize {
    let all = process::descendants(node.keeper_pid());
    all.iter().filter(|p| p.comm.starts_with(name)).count()
}

fn pid(cri: &Cri<'_>, container: &str) -> Result<u32, Error> {
    let pid = cri.inspect(container)?["info"]["pid"].as_u64();
    Ok(u32::try_from(pid.unwrap_or_default()).unwrap_or_default())
}

/// `TASK PID STATUS`
fn task_pid(node: &Node) -> Result<u32, Error> {
    let list = node.run("ctr", &["task", "list"])?.stdout;
    let line = list.lines().find_map(|line| line.strip_prefix(TASK));
    let pid = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    pid.ok_or_else(|| Error::Answer {
        command: "ctr task list".into(),
        why: list,
    })
}

fn until(what: &str, ask: impl Fn() -> Result<bool, Error>) -> Result<(), Error> {
    let end = Instant::now() + SOON;
    while !ask()? {
        if Instant::now() > end {
            let (what, limit) = (what.into(), SOON);
            return Err(Error::Deadline { what, limit });
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}
