//! Many pods at once: created together, deleted together, again and again, on two CPUs.

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::command::{self, Output};
use crate::cpus::Pinned;
use crate::error::{Error, call, chain, file};
use crate::guard::Guard;
use crate::image::BUSYBOX;
use crate::node::{Node, Setup};
use crate::peers::Peers;
use crate::total;

/// How many, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
    /// CRI's runtime handler
    #[arg(long, default_value = "berm")]
    handler: String,
    /// Pods at once
    #[arg(long, default_value_t = 60)]
    pods: usize,
    /// How often they come and go
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

/// All that the node has.
const CPUS: usize = 2;
/// Longest time of one call: fifty-nine others are served meanwhile.
const PATIENCE: Duration = Duration::from_secs(180);
/// Longest time that the kernel may take to forget what was removed.
const CLEAN: Duration = Duration::from_secs(60);

/// Runs the rounds and prints a line for each; false when something went wrong.
/// # Errors
/// What hinders the test itself.
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    let start = Instant::now();
    // What is started from here has no more.
    let _pinned = Pinned::to(CPUS).map_err(call("sched_setaffinity"))?;
    let setup = Setup::of_shim(args.shim.clone());
    let node = Node::start(peers, &setup)?;
    let crowd = Crowd::new(&node, args)?;
    // Warms up: the first makes directories and the network's bridge.
    let mut failed = usize::from(!crowd.round("warm up", 1, None));
    let guard = Guard::of_node(&node)?;
    println!(
        "{} pods at once on {}, {CPUS} CPUs",
        args.pods, args.handler
    );
    for number in 1..=args.rounds {
        let name = format!("round {number}");
        failed += usize::from(!crowd.round(&name, args.pods, Some(&guard)));
    }
    node.stop()?;
    let passed = (args.rounds + 1).saturating_sub(failed);
    Ok(total::tell(passed, failed, start))
}

struct Crowd<'a> {
    node: &'a Node,
    handler: &'a str,
    /// The two configurations of each pod: its own and its container's.
    configs: Vec<(PathBuf, PathBuf)>,
}

impl<'a> Crowd<'a> {
    fn new(node: &'a Node, args: &'a Args) -> Result<Self, Error> {
        let configs = (0..args.pods.max(1)).map(|number| configs(node.dir(), number));
        Ok(Self {
            node,
            handler: &args.handler,
            configs: configs.collect::<Result<_, _>>()?,
        })
    }

    /// All come, run and are asked something; when each has answered, all go.
    fn round(&self, name: &str, pods: usize, guard: Option<&Guard>) -> bool {
        let start = Instant::now();
        let all_run = Barrier::new(pods + 1);
        let (mut wrong, up) = std::thread::scope(|scope| {
            let lives: Vec<_> = self.configs[..pods]
                .iter()
                .map(|configs| scope.spawn(|| self.life(configs, &all_run)))
                .collect();
            all_run.wait();
            let up = start.elapsed();
            let ended = lives.into_iter().map(|life| life.join());
            let wrong = ended.filter_map(|ended| match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain(&error)),
                Err(_) => Some("a thread of the test panicked".to_owned()),
            });
            (wrong.collect::<Vec<_>>(), up)
        });
        let gone = start.elapsed() - up;
        let clean = guard.map_or(Ok(()), |guard| guard.assert_clean(CLEAN));
        wrong.extend(clean.err().map(|error| chain(&error)));
        let word = if wrong.is_empty() { "ok" } else { "FAILED" };
        println!(
            "{name}: {pods} pods up in {:.1}s, gone in {:.1}s ... {word}",
            up.as_secs_f32(),
            gone.as_secs_f32()
        );
        wrong.iter().for_each(|text| println!("    {text}"));
        if !wrong.is_empty() {
            println!("    containerd's log:\n{}", self.node.log_tail(25));
        }
        wrong.is_empty()
    }

    fn life(&self, configs: &(PathBuf, PathBuf), all_run: &Barrier) -> Result<(), Error> {
        let mut pod = None;
        let up = self.come(configs, &mut pod);
        all_run.wait();
        // Also after a failure: the next round begins with nothing.
        let gone = match &pod {
            Some(pod) => self.crictl(&["rmp", "--force", pod]).map(drop),
            None => Ok(()),
        };
        up.and(gone)
    }

    fn come(
        &self,
        (own, container): &(PathBuf, PathBuf),
        made: &mut Option<String>,
    ) -> Result<(), Error> {
        let (own, container) = (own.to_string_lossy(), container.to_string_lossy());
        let pod = self.crictl(&["runp", "--runtime", self.handler, &own])?;
        let pod = made.insert(pod.stdout.trim().to_owned());
        let id = self.crictl(&["create", "--no-pull", pod, &container, &own])?;
        let id = id.stdout.trim();
        self.crictl(&["start", id])?;
        let said = self.crictl(&["exec", "--sync", id, "cat", "/proc/1/comm"])?;
        match said.stdout.trim() {
            "sleep" => Ok(()),
            _ => Err(Error::Answer {
                command: said.command,
                why: format!("{:?} runs as PID 1, not sleep", said.stdout),
            }),
        }
    }

    fn crictl(&self, args: &[&str]) -> Result<Output, Error> {
        let limit = format!("{}s", PATIENCE.as_secs());
        let mut all = vec!["--timeout", &limit];
        all.extend(args);
        command::run(self.node.command("crictl", &all), b"", PATIENCE)?.ok()
    }
}

fn configs(dir: &Path, number: usize) -> Result<(PathBuf, PathBuf), Error> {
    let put = |name: String, value: serde_json::Value| {
        let path = dir.join(name);
        std::fs::write(&path, value.to_string()).map_err(file("write", &path))?;
        Ok(path)
    };
    let name = format!("crowd-{number}");
    let pod = json!({
        "metadata": { "name": name, "uid": name, "namespace": "test", "attempt": 0 },
        "hostname": name, "log_directory": dir.join("crowd-logs"),
        "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
    });
    let container = json!({
        "metadata": { "name": "main", "attempt": 0 }, "image": { "image": BUSYBOX },
        "command": ["sleep", "1000"], "log_path": format!("{name}.log"),
        "linux": { "security_context": { "namespace_options": { "pid": 1 } } },
    });
    Ok((
        put(format!("{name}-pod.json"), pod)?,
        put(format!("{name}.json"), container)?,
    ))
}
