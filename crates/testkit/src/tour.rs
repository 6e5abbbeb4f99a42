//! `make try`: Berm at work on a node of its own, told to somebody who sees it for the first time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{self, Output};
use crate::error::{Error, file};
use crate::guard;
use crate::image::BUSYBOX;
use crate::node::{CALL, Node, Setup};
use crate::peers::{CONTAINERD, Peers};
use crate::process;

const RUNTIME: &str = "io.containerd.berm.v1";

/// Runs the tour with `shim` and prints what happens.
/// # Errors
/// The first call that failed, or [`Error::Leak`] if something is left at the end.
pub fn run(peers: &Peers, shim: PathBuf) -> Result<(), Error> {
    let start = Instant::now();
    say(&format!(
        "A node of its own: containerd {CONTAINERD} with Berm's shim. Nothing of this machine is touched."
    ));
    let node = Node::start(
        peers,
        &Setup {
            shim: Some(shim),
            ..Setup::default()
        },
    )?;
    let tour = Tour { node: &node };
    tour.plain_container()?;
    let ids = tour.pod()?;
    guard::assert_forgotten(&node, &ids, Duration::from_secs(5))?;
    println!("  No process, mount, cgroup, socket or file of it is left.");
    node.stop()?;
    say(&format!(
        "Done in {:.1} s; the node is gone.",
        start.elapsed().as_secs_f32()
    ));
    println!(
        "  More: `make test` runs all pods of test-pods/ on Berm and on runc, `make bench` measures,\n  \
         `berm run --rootfs DIR -- sh` tries a sandbox without containerd."
    );
    Ok(())
}

struct Tour<'a> {
    node: &'a Node,
}

impl Tour<'_> {
    fn plain_container(&self) -> Result<(), Error> {
        say("One container in one sandbox, by containerd's own client:");
        let run = ["run", "--rm", "--runtime", RUNTIME, BUSYBOX, "hello"];
        let hello: Vec<&str> = run
            .into_iter()
            .chain(["echo", "Hello from a sandbox"])
            .collect();
        self.show("ctr", &hello)?;
        say("Root in there is nobody on the host (inside id, outside id, how many):");
        let ids: Vec<&str> = run
            .into_iter()
            .chain(["sh", "-c", "id -un; cat /proc/self/uid_map"])
            .collect();
        self.show("ctr", &ids).map(drop)
    }

    /// Runs the pod to its end, and gives all its ids.
    fn pod(&self) -> Result<Vec<String>, Error> {
        say("A Kubernetes pod with three containers, by CRI, as kubelet would make it:");
        let config = self.write(
            "pod",
            &pod_config(&self.node.dir().join("logs").to_string_lossy()),
        )?;
        let pod = self.show("crictl", &["runp", "--runtime", "berm", &config])?;
        let mut ids = vec![pod.stdout.trim().to_owned()];
        let pod = short(&pod);
        for (name, script) in CONTAINERS {
            let container = self.write(name, &container_config(name, script))?;
            let id = self.quiet(&["create", "--no-pull", pod, &container, &config])?;
            self.quiet(&["start", short(&id)])?;
            ids.push(id.stdout.trim().to_owned());
        }
        self.show("crictl", &["ps"])?;
        let id = |name: &str| {
            self.quiet(&["ps", "--quiet", "--name", &format!("^{name}$")])
                .map(|output| short(&output).to_owned())
        };
        let (web, client, worker) = (id("web")?, id("client")?, id("worker")?);
        say(
            "An exec in one container reaches the server in another: they share the pod's network.",
        );
        self.show("crictl", &["exec", &client, "nc", "127.0.0.1", "80"])?;
        say("What they use, and what the worker has logged:");
        self.show("crictl", &["stats", "--pod", pod])?;
        self.show("crictl", &["logs", "--tail", "3", &worker])?;
        say("All that runs on the host for this pod:");
        self.processes();
        say("A container ends when asked; then the pod goes, and everything with it:");
        self.show("crictl", &["stop", "--timeout", "5", &web])?;
        self.show("crictl", &["rmp", "--force", pod])?;
        Ok(ids)
    }

    /// Prints the call, its time and its output, indented.
    fn show(&self, program: &str, args: &[&str]) -> Result<Output, Error> {
        let typed = args
            .iter()
            .map(|arg| quoted(arg))
            .collect::<Vec<_>>()
            .join(" ");
        let start = Instant::now();
        let output = command::run(self.node.command(program, args), b"", CALL)?.ok()?;
        let dir = format!("{}/", self.node.dir().display());
        println!(
            "  $ {program} {}   ({} ms)",
            typed.replace(&dir, ""),
            start.elapsed().as_millis()
        );
        output
            .stdout
            .lines()
            .for_each(|line| println!("    {line}"));
        Ok(output)
    }

    fn quiet(&self, args: &[&str]) -> Result<Output, Error> {
        self.node.run("crictl", args)
    }

    fn processes(&self) {
        println!("    {:>8} {:<16} {:>9}  command", "pid", "name", "memory");
        let all = process::descendants(self.node.keeper_pid());
        for process in all
            .iter()
            .filter(|process| process.pid != self.node.containerd_pid())
        {
            let line: String = process.command_line().chars().take(60).collect();
            println!(
                "    {:>8} {:<16} {:>6} kB  {line}",
                process.pid,
                process.comm,
                process.pss_kb()
            );
        }
    }

    fn write(&self, name: &str, config: &Value) -> Result<String, Error> {
        let path = self.node.dir().join(format!("{name}.json"));
        std::fs::write(&path, config.to_string()).map_err(file("write", &path))?;
        Ok(path.to_string_lossy().into_owned())
    }
}

const CONTAINERS: [(&str, &str); 3] = [
    (
        "web",
        "trap 'exit 0' TERM; nc -ll -p 80 -e echo 'Hello from the web container' & wait",
    ),
    (
        "worker",
        "i=0; while :; do i=$((i+1)); echo \"job $i done\"; [ $i -lt 1000 ] || sleep 1000; done",
    ),
    ("client", "sleep 1000"),
];

fn pod_config(logs: &str) -> Value {
    json!({
        "metadata": { "name": "tour", "uid": "tour-1", "namespace": "default", "attempt": 0 },
        "hostname": "tour", "log_directory": logs, "dns_config": { "servers": ["192.0.2.53"] },
        "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
    })
}

fn container_config(name: &str, script: &str) -> Value {
    json!({
        "metadata": { "name": name, "attempt": 0 }, "image": { "image": BUSYBOX },
        "command": ["sh", "-c", script], "log_path": format!("{name}.log"),
        "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
    })
}

fn say(text: &str) {
    println!("\n{text}");
}

/// An id as people type it.
fn short(output: &Output) -> &str {
    output.stdout.trim().get(..13).unwrap_or_default()
}

fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=^$".contains(c);
    if arg.chars().all(plain) {
        arg.to_owned()
    } else {
        format!("'{}'", arg.replace('\'', "'\\''"))
    }
}
