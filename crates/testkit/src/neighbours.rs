//! Two containerds on one host, and two namespaces of one of them, with tasks of the same name.
//!
//! They share Berm's state directory and its pool of ids. Whatever happens to one task, its shim
//! or its containerd, the others go on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::command::{self, Output};
use crate::error::{Error, chain, file};
use crate::guard::{Guard, pause};
use crate::image::BUSYBOX;
use crate::node::{CALL, Node, Setup};
use crate::peers::Peers;
use crate::process;
use crate::total;

/// The shim.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
}

/// Where each of the two containerds listens.
const FIRST: &str = "/run/containerd/containerd.sock";
const SECOND: &str = "/run/second/containerd.sock";
/// The name that every task has.
const TASK: &str = "same";
const SOON: Duration = Duration::from_secs(60);

/// Runs the test; false when something went wrong.
/// # Errors
/// What hinders the test itself.
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    let start = Instant::now();
    let setup = Setup::of_shim(args.shim.clone());
    let mut node = Node::start(peers, &setup)?;
    let done = neighbours(&mut node);
    let log = node.log_tail(25);
    node.stop()?;
    let wrong: Vec<String> = done.err().map(|error| chain(&error)).into_iter().collect();
    wrong
        .iter()
        .for_each(|text| println!("    {text}\n    containerd's log:\n{log}"));
    let failed = usize::from(!wrong.is_empty());
    Ok(total::tell(1 - failed, failed, start))
}

/// A task: its containerd and its namespace there.
#[derive(Debug, Clone, Copy)]
struct Place {
    address: &'static str,
    namespace: &'static str,
}

const ONE: Place = Place {
    address: FIRST,
    namespace: "one",
};
const TWO: Place = Place {
    address: FIRST,
    namespace: "two",
};
const OTHER: Place = Place {
    address: SECOND,
    namespace: "three",
};
/// The same namespace as `ONE`, of the other containerd.
const TWIN: Place = Place {
    address: SECOND,
    namespace: "one",
};

fn neighbours(node: &mut Node) -> Result<(), Error> {
    start_second(node)?;
    for place in [ONE, TWO, OTHER, TWIN] {
        place.import(node)?;
        // The first of each makes directories that stay.
        place.start(node)?;
        place.first_id(node)?;
        place.remove(node)?;
    }
    let guard = Guard::of_node(node)?;
    for place in [ONE, TWO, OTHER] {
        place.start(node)?;
    }
    let ids: BTreeSet<String> = [ONE, TWO, OTHER]
        .iter()
        .map(|place| place.first_id(node))
        .collect::<Result<_, _>>()?;
    check(ids.len() == 3, || {
        format!("three pods have these first ids: {ids:?}")
    })?;
    println!("three tasks of one name run, their ids begin at {ids:?}");

    let twin = TWIN.try_start(node)?;
    let said = twin.code != 0 && twin.stderr.contains("already exists");
    check(said, || {
        format!("a second one/{TASK} was not refused: {twin:?}")
    })?;
    TWIN.remove(node)?;
    live(node, &[ONE, TWO, OTHER])?;
    println!("a fourth of the same namespace and name is refused, the others live");

    let shim = ONE.shim(node)?;
    shim.kill();
    ONE.ended(node)?;
    ONE.remove(node)?;
    live(node, &[TWO, OTHER])?;
    TWIN.start(node)?;
    live(node, &[TWO, OTHER, TWIN])?;
    println!("the killed shim's name is free for the other containerd");

    node.kill_containerd()?;
    live(node, &[OTHER, TWIN])?;
    node.start_containerd()?;
    live(node, &[TWO, OTHER, TWIN])?;
    for place in [TWO, OTHER, TWIN] {
        place.remove(node)?;
    }
    println!("one containerd was killed and started again, all three live");
    guard.assert_clean(SOON)
}

fn check(right: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    match right {
        true => Ok(()),
        false => Err(Error::Answer {
            command: "neighbours".into(),
            why: what(),
        }),
    }
}

fn live(node: &Node, places: &[Place]) -> Result<(), Error> {
    for place in places {
        place.first_id(node)?;
    }
    Ok(())
}

fn start_second(node: &mut Node) -> Result<(), Error> {
    let (config, root) = (node.dir().join("second.toml"), node.dir().join("second"));
    let text = format!(
        "version = 4
root = '{}'
state = '/run/second'
disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', \
         'io.containerd.cri.v1.runtime', 'io.containerd.nri.v1.nri', \
         'io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', \
         'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', \
         'io.containerd.snapshotter.v1.zfs']
[plugins.'io.containerd.server.v1.grpc']
address = '{SECOND}'
[plugins.'io.containerd.server.v1.ttrpc']
address = '{SECOND}.ttrpc'
[grpc]
address = '{SECOND}'
",
        root.display()
    );
    std::fs::write(&config, text).map_err(file("write", &config))?;
    let binary = node.dir().join("bin/containerd");
    let (binary, config) = (
        binary.to_string_lossy().into_owned(),
        config.to_string_lossy().into_owned(),
    );
    node.spawn(&[&binary, "--config", &config])?;
    let end = Instant::now() + SOON;
    while TWIN.ctr(node, &["version"])?.code != 0 {
        if Instant::now() > end {
            let what = format!("the second containerd: {}", node.log_tail(15));
            return Err(Error::Deadline { what, limit: SOON });
        }
        pause(Duration::from_millis(50));
    }
    Ok(())
}

impl Place {
    fn ctr(self, node: &Node, args: &[&str]) -> Result<Output, Error> {
        let mut all = vec!["--address", self.address, "--namespace", self.namespace];
        all.extend(args);
        command::run(node.command("ctr", &all), b"", CALL)
    }

    fn import(self, node: &Node) -> Result<(), Error> {
        let archive = node.dir().join("images.tar");
        let args = ["images", "import", "--local", &archive.to_string_lossy()];
        self.ctr(node, &args)?.ok().map(drop)
    }

    fn try_start(self, node: &Node) -> Result<Output, Error> {
        let run = [
            "run",
            "--detach",
            "--null-io",
            "--runtime",
            "io.containerd.berm.v1",
        ];
        let mut run = run.to_vec();
        run.extend([BUSYBOX, TASK, "sleep", "1000"]);
        self.ctr(node, &run)
    }

    fn start(self, node: &Node) -> Result<(), Error> {
        self.try_start(node)?.ok().map(drop)
    }

    /// The host's number of the pod's root, which a process of it tells: so it lives.
    fn first_id(self, node: &Node) -> Result<String, Error> {
        let exec = [
            "task",
            "exec",
            "--exec-id",
            "ids",
            TASK,
            "cat",
            "/proc/self/uid_map",
        ];
        let map = self.ctr(node, &exec)?.ok()?.stdout;
        Ok(map.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn shim(self, node: &Node) -> Result<process::Process, Error> {
        let record = format!("/run/berm/{}/{TASK}/sandbox.json", self.namespace);
        let record = node.outside(&record);
        let text = std::fs::read(&record).map_err(file("read", &record))?;
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let pid = record["owner"]["pid"].as_u64().unwrap_or_default();
        let found = process::Process::read(u32::try_from(pid).unwrap_or_default());
        found.ok_or_else(|| Error::Missing {
            what: format!("the shim of {}/{TASK}, pid {pid}", self.namespace),
            way_out: "it has died by itself: see containerd's log".into(),
        })
    }

    /// Waits until containerd knows that the task has ended.
    fn ended(self, node: &Node) -> Result<(), Error> {
        let end = Instant::now() + SOON;
        while self
            .ctr(node, &["task", "list"])?
            .ok()?
            .stdout
            .contains("RUNNING")
        {
            if Instant::now() > end {
                let what = format!("the end of {}/{TASK}", self.namespace);
                return Err(Error::Deadline { what, limit: SOON });
            }
            pause(Duration::from_millis(20));
        }
        Ok(())
    }

    fn remove(self, node: &Node) -> Result<(), Error> {
        // There need not be a task any more.
        let _ = self.ctr(node, &["task", "delete", "--force", TASK])?;
        let containers = self.ctr(node, &["containers", "list", "--quiet"])?.ok()?;
        if containers.stdout.trim().is_empty() {
            return Ok(());
        }
        self.ctr(node, &["containers", "delete", TASK])?
            .ok()
            .map(drop)
    }
}
