//! Runs the pods of `test-pods/`: each folder is one pod as data (its README has the format).
//!
//! A few pods run at a time on one node. After each pod nothing on the node may carry one of its
//! ids; after the last the whole node must be as it was before the first.

mod config;
mod data;
mod expect;
mod forward;
mod report;
mod run;
mod table;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use self::data::Place;
pub use self::data::Pod;
pub use self::report::Report;
use crate::chaos;
use crate::error::Error;
use crate::guard::Guard;
use crate::image;
use crate::node::{Node, Setup};
use crate::peers::Peers;

/// What runs the pods: the runtime handler of the same name on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Runtime {
    /// The shim under test.
    Berm,
    /// containerd's own shim with runc.
    Runc,
    /// containerd's own shim with crun.
    Crun,
}

impl Runtime {
    /// The name of CRI's handler, which `only` in an `expect.toml` says too.
    #[must_use]
    pub fn handler(self) -> &'static str {
        match self {
            Self::Berm => "berm",
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// containerd's runtime type, for `ctr run --runtime`.
    #[must_use]
    pub fn runtime_type(self) -> &'static str {
        match self {
            Self::Berm => "io.containerd.berm.v1",
            Self::Runc | Self::Crun => "io.containerd.runc.v2",
        }
    }
}

/// Which pods run, on what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The folder with one folder for each pod.
    pub pods: PathBuf,
    /// Only pods with this in their name.
    pub filter: String,
    /// The slow pods, and only they; without it all others.
    pub slow: bool,
    /// The pods that a guest runs, and only they.
    pub guest: bool,
    /// Write the README's table instead of checking it.
    pub write_table: bool,
    /// The runtimes, one after the other.
    pub runtimes: Vec<Runtime>,
    /// How many pods at a time.
    pub parallel: usize,
    /// How often a shim is killed at a random moment of a pod's life.
    pub shim_kills: u32,
    /// How often containerd is.
    pub containerd_kills: u32,
    /// The node.
    pub setup: Setup,
}

/// Time that a pod's remains have to go.
const CLEAN: Duration = Duration::from_secs(30);

/// Runs all pods of the plan and prints a line for each.
/// # Errors
/// [`Error::Data`] for a folder that cannot be read, or what hinders the node; a pod that does
/// not behave is no error but a row of the report.
pub fn run(peers: &Peers, plan: &Plan) -> Result<Report, Error> {
    let all = data::load(&plan.pods, &plan.filter)?;
    let table = table::of(&all);
    let pods: Vec<Pod> = all
        .into_iter()
        .filter(|pod| match plan.guest {
            true => pod.expect.place != Place::Machine,
            false => pod.expect.slow == plan.slow,
        })
        .collect();
    let mut report = Report::default();
    for runtime in &plan.runtimes {
        let mut node = Node::start(peers, &plan.setup)?;
        on_node(peers, &node, *runtime, &pods, plan, &mut report)?;
        crashes(&mut node, *runtime, plan, &mut report)?;
        // A pod that failed may have left the node in a state that it cannot be taken down from.
        if let Err(error) = node.stop() {
            let wrong = vec![crate::error::chain(&error)];
            report.row(*runtime, "node-stops", Duration::ZERO, Err(wrong));
        }
    }
    // Of a part of the pods there is no table to speak of.
    if plan.filter.is_empty() && !plan.slow && !plan.guest && plan.pods == default_pods() {
        if plan.write_table && report.failed() == 0 {
            table.write()?;
        }
        report.row(
            Runtime::Berm,
            "readme-table",
            Duration::ZERO,
            table.check()?,
        );
    }
    Ok(report)
}

fn on_node(
    peers: &Peers,
    node: &Node,
    runtime: Runtime,
    pods: &[Pod],
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Error> {
    let (here, elsewhere): (Vec<&Pod>, Vec<&Pod>) = pods
        .iter()
        .partition(|pod| plan.guest || pod.expect.place != Place::Guest);
    let (wanted, other): (Vec<&Pod>, Vec<&Pod>) =
        here.into_iter().partition(|pod| pod.is_for(runtime));
    println!("\nrunning {} pods on {}", wanted.len(), runtime.handler());
    for pod in other {
        report.ignored(runtime, &pod.name, &pod.expect.why);
    }
    for pod in elsewhere {
        report.ignored(runtime, &pod.name, "runs in a guest: make test-guest");
    }
    if wanted.iter().any(|pod| pod.needs_more_images()) {
        let images = node.dir().join("more-images.tar");
        image::write_more(&images, &peers.busybox()?)?;
        node.import(&images, &["k8s.io"])?;
    }
    let first = Pod::plain();
    let start = Instant::now();
    let result = run::pod(node, runtime, &first);
    report.row(runtime, &first.name, start.elapsed(), result);
    let guard = Guard::of_node(node)?;
    let queue: Mutex<VecDeque<&Pod>> = Mutex::new(wanted.into());
    let report_lock = Mutex::new(&mut *report);
    std::thread::scope(|scope| {
        for _ in 0..plan.parallel.max(1) {
            scope.spawn(|| {
                while let Some(pod) = next(&queue) {
                    let start = Instant::now();
                    let result = run::pod(node, runtime, pod);
                    let mut report = report_lock.lock().unwrap_or_else(|lock| lock.into_inner());
                    report.row(runtime, &pod.name, start.elapsed(), result);
                }
            });
        }
    });
    let result = guard
        .assert_clean(CLEAN)
        .map_err(|error| vec![crate::error::chain(&error)]);
    report.row(runtime, "node-is-as-before", Duration::ZERO, result);
    Ok(())
}

/// Kills shims and containerd at random moments; a filter picks it by name too.
fn crashes(
    node: &mut Node,
    runtime: Runtime,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Error> {
    const NAME: &str = "killed-at-random";
    // runc's shim does leave things behind: this is no promise of the peers.
    let kills = plan.shim_kills + plan.containerd_kills;
    if runtime != Runtime::Berm || kills == 0 || !NAME.contains(&plan.filter) {
        return Ok(());
    }
    let start = Instant::now();
    let kills = chaos::Kills::new(plan.shim_kills, plan.containerd_kills);
    let (passed, failed) = chaos::on_node(node, runtime.handler(), kills)?;
    let wrong = format!("{failed} of {} checks, see above", passed + failed);
    let result = if failed == 0 {
        Ok(())
    } else {
        Err(vec![wrong])
    };
    report.row(runtime, NAME, start.elapsed(), result);
    Ok(())
}

fn next<'a>(queue: &Mutex<VecDeque<&'a Pod>>) -> Option<&'a Pod> {
    queue
        .lock()
        .unwrap_or_else(|lock| lock.into_inner())
        .pop_front()
}

/// The folder of the pods in this workspace.
#[must_use]
pub fn default_pods() -> PathBuf {
    crate::peers::workspace().join("test-pods")
}

/// The shim as `make build` leaves it.
#[must_use]
pub fn default_shim() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| crate::peers::workspace().join("target"));
    target.join(Path::new("release/containerd-shim-berm-v1"))
}
