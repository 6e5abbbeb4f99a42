//! critest, Kubernetes' own tests of a container runtime, on Berm and on its peers.
//!
//! Each runtime has a node of its own, with a registry on its loopback that serves the images
//! which the specs name. What is left out: image management, which is containerd's alone, and
//! AppArmor and SELinux, which the kernel of a test machine need not have. A spec must pass for
//! Berm as it does for runc; one that does not stands in `test-pods/critest.toml` with its reason.

mod differences;
mod images;
mod specs;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::differences::Difference;
use self::specs::Spec;
use crate::command::{self, Output};
use crate::error::Error;
use crate::image::Store;
use crate::node::{Node, Setup};
use crate::peers::Peers;
use crate::registry::{self, Registry};
use crate::suite::{Report, Runtime};

/// What runs, on what.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The shim under test.
    pub shim: Option<PathBuf>,
    /// The file with the differences that are known.
    pub differences: PathBuf,
    /// The runtimes, all at once.
    pub runtimes: Vec<Runtime>,
    /// Only specs whose name matches this regular expression.
    pub filter: String,
    /// Write the README's table instead of checking it.
    pub write_table: bool,
}

/// What became of critest on a node, and of the node.
struct Ran {
    specs: Vec<Spec>,
    stopped: Result<(), Error>,
}

/// Specs by their first word.
const LEFT_OUT: &str = r"\[k8s.io\] (Image |AppArmor|SELinux)";
const LIMIT: Duration = Duration::from_secs(1800);

/// Runs the specs and prints a line for each.
/// # Errors
/// What hinders critest from running; a spec that fails is no error but a row of the report.
pub fn run(peers: &Peers, plan: &Plan) -> Result<Report, Error> {
    let program = peers.critest()?;
    let known = differences::load(&plan.differences)?;
    let images = Arc::new(images::store(&peers.busybox()?)?);
    let one = &|runtime| on_node(peers, &program, plan, runtime, images.clone());
    let ran: Vec<Result<Ran, Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .runtimes
            .iter()
            .map(|&runtime| scope.spawn(move || one(runtime)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut report = Report::default();
    let ran = ran.into_iter().collect::<Result<Vec<_>, Error>>()?;
    for (runtime, Ran { specs, stopped }) in plan.runtimes.iter().zip(&ran) {
        println!("\nran {} specs on {}", specs.len(), runtime.handler());
        for spec in specs {
            row(&mut report, *runtime, spec, &known);
        }
        // A spec that failed may have left its node in a state that it cannot be taken down from.
        if let Err(error) = stopped {
            let wrong = vec![crate::error::chain(error)];
            report.row(*runtime, "critest node-stops", Duration::ZERO, Err(wrong));
        }
    }
    if plan.filter.is_empty() && plan.runtimes.len() > 1 {
        let table = table::of(&plan.runtimes, &ran, &known);
        if plan.write_table && report.failed() == 0 {
            table.write()?;
        }
        report.row(
            Runtime::Berm,
            "critest readme-table",
            Duration::ZERO,
            table.check()?,
        );
    }
    Ok(report)
}

/// A spec that is known to differ must go on to do so, or its entry is out of date.
fn row(report: &mut Report, runtime: Runtime, spec: &Spec, known: &[Difference]) {
    let known = known.iter().find(|known| known.is_of(runtime, &spec.name));
    let name = format!("critest {}", spec.name);
    match (&spec.result, known) {
        (None, _) => report.ignored(runtime, &name, &spec.words),
        (Some(false), Some(known)) => report.ignored(runtime, &name, &known.why),
        (Some(true), Some(_)) => {
            let wrong = vec!["passes: remove it from the known differences".to_owned()];
            report.row(runtime, &name, spec.time, Err(wrong));
        }
        (Some(true), None) => report.row(runtime, &name, spec.time, Ok(())),
        (Some(false), None) => {
            report.row(runtime, &name, spec.time, Err(vec![spec.words.clone()]));
        }
    }
}

fn on_node(
    peers: &Peers,
    program: &Path,
    plan: &Plan,
    runtime: Runtime,
    images: Arc<Store>,
) -> Result<Ran, Error> {
    let setup = Setup {
        shim: plan.shim.clone(),
        config: format!(
            "[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{}'\n",
            registry::CONFIG_PATH
        ),
        ..Setup::default()
    };
    let node = Node::start(peers, &setup)?;
    let registry = Registry::start(&node, images)?;
    let report = node.dir().join("critest.json");
    let args = [
        format!("--runtime-handler={}", runtime.handler()),
        format!("--ginkgo.skip={LEFT_OUT}"),
        format!("--ginkgo.focus={}", plan.filter),
        format!("--ginkgo.json-report={}", report.display()),
        "--ginkgo.no-color".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = node.command(&program.to_string_lossy(), &args);
    // What a spec that fails leaves behind goes with the node.
    command.env("TMPDIR", node.dir());
    let output: Output = command::run(command, b"", LIMIT)?;
    // A run with a failure ends with 1, and has its report all the same.
    let specs = specs::read(&report).map_err(|error| match output.clone().ok() {
        Ok(_) => error,
        Err(said) => said,
    })?;
    drop(registry);
    let stopped = node.stop();
    Ok(Ran { specs, stopped })
}
