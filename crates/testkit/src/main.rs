//! `berm-testkit`: the make targets' other half.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use berm_testkit::error::{Error, chain};
use berm_testkit::node::{Node, Setup};
use berm_testkit::peers::Peers;
use berm_testkit::suite::{self, Runtime};
use berm_testkit::{
    bench, chaos, critest, crowd, deny, flood, guest, keeper, metrics, neighbours, total, tour,
};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Runs Berm's pods on a real containerd")]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Measures Berm's shim beside runc and crun, without containerd
    Bench(bench::Args),
    /// Kills shims and containerd at random moments of a pod's life
    Chaos(chaos::Args),
    /// Runs Kubernetes' own tests of a container runtime on Berm and on runc
    Critest(Critest),
    /// Creates and deletes many pods at once
    Crowd(crowd::Args),
    /// Writes 10 MB/s for a minute while containerd is killed
    Flood(flood::Args),
    /// Scrapes a pod's metrics with a real Prometheus
    Metrics(metrics::Args),
    /// Runs tasks of one name on two containerds of one host
    Neighbours(neighbours::Args),
    /// Finds the programs that Berm is tested with, and installs what is missing
    Peers,
    /// Runs cargo-deny, which it installs if need be
    Deny,
    /// Runs the tests of all crates, then the pods, and sums both up
    Test(Suite),
    /// Shows Berm at work
    Tour {
        /// The shim [default: the one that `make build` left]
        #[arg(long)]
        shim: Option<PathBuf>,
    },
    /// Runs the pods of test-pods/ on a real containerd
    Suite(Suite),
    /// Runs a command in an emulated guest with cgroup v2, systemd and AppArmor
    Guest(guest::Args),
    /// Runs the pods and kernel tests that depend on cgroup v2, systemd, AppArmor or the kernel
    TestGuest(guest::SuiteArgs),
    /// Runs a shell on a node of its own
    Shell {
        /// The shim under test
        #[arg(long)]
        shim: Option<PathBuf>,
        /// What to run; a shell if nothing is given
        command: Vec<String>,
    },
    /// Keeps a node alive until standard input ends
    #[command(hide = true)]
    Keeper {
        /// Directory of the node
        dir: PathBuf,
        /// Name of its cgroup; without one the node is the machine itself
        cgroup: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Suite {
    /// What runs them; may be given several times
    #[arg(long = "runtime", value_enum, default_values = ["berm", "runc"])]
    runtimes: Vec<Runtime>,
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
    /// The folder of the pods [default: test-pods/ of this workspace]
    #[arg(long)]
    pods: Option<PathBuf>,
    /// How many pods at a time
    #[arg(long, default_value_t = 3)]
    parallel: usize,
    /// The slow pods, and only they
    #[arg(long)]
    slow: bool,
    /// The pods that a guest runs, and only they
    #[arg(long)]
    guest: bool,
    /// With cgroups of systemd, on the machine itself instead of a node of its own
    #[arg(long)]
    systemd: bool,
    /// Write the README's table instead of checking it
    #[arg(long)]
    write_table: bool,
    /// How often a shim of Berm is killed at a random moment
    #[arg(long, default_value_t = 6)]
    shim_kills: u32,
    /// How often containerd is
    #[arg(long, default_value_t = 2)]
    containerd_kills: u32,
    /// Only pods with this in their name, or with one of several words separated by commas
    #[arg(default_value = "")]
    filter: String,
}

#[derive(Debug, clap::Args)]
struct Critest {
    /// What runs the specs; may be given several times
    #[arg(long = "runtime", value_enum, default_values = ["berm", "runc"])]
    runtimes: Vec<Runtime>,
    /// The shim under test [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
    /// The differences that are known [default: critest.toml in test-pods/ of this workspace]
    #[arg(long)]
    differences: Option<PathBuf>,
    /// Write the README's table instead of checking it
    #[arg(long)]
    write_table: bool,
    /// Only specs whose name matches this regular expression
    #[arg(default_value = "")]
    filter: String,
}

impl Critest {
    fn plan(self) -> critest::Plan {
        let berm = self.runtimes.contains(&Runtime::Berm);
        let differences = || suite::default_pods().join("critest.toml");
        critest::Plan {
            shim: self.shim.or_else(|| berm.then(suite::default_shim)),
            differences: self.differences.unwrap_or_else(differences),
            runtimes: self.runtimes,
            filter: self.filter,
            write_table: self.write_table,
        }
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Bench(args) => return bench::main(&args),
        Verb::Chaos(args) => Peers::ensure().and_then(|peers| chaos::run(&peers, &args)),
        Verb::Critest(args) => {
            Peers::ensure().and_then(|peers| total::critest(&peers, &args.plan()))
        }
        Verb::Crowd(args) => Peers::ensure().and_then(|peers| crowd::run(&peers, &args)),
        Verb::Flood(args) => Peers::ensure().and_then(|peers| flood::run(&peers, &args)),
        Verb::Metrics(args) => Peers::ensure().and_then(|peers| metrics::run(&peers, &args)),
        Verb::Neighbours(args) => Peers::ensure().and_then(|peers| neighbours::run(&peers, &args)),
        Verb::Peers => Peers::ensure().map(|_| true),
        Verb::Deny => Peers::ensure().and_then(|peers| deny::run(&peers)),
        Verb::Suite(args) => Peers::ensure().and_then(|peers| total::pods(&peers, &args.plan())),
        Verb::Test(args) => Peers::ensure().and_then(|peers| total::run(&peers, &args.plan())),
        Verb::Tour { shim } => {
            let shim = shim.unwrap_or_else(suite::default_shim);
            Peers::ensure()
                .and_then(|peers| tour::run(&peers, shim))
                .map(|()| true)
        }
        Verb::Guest(args) => Peers::ensure().and_then(|peers| guest::run(&peers, &args)),
        Verb::TestGuest(args) => Peers::ensure().and_then(|peers| total::guest(&peers, &args)),
        Verb::Shell { shim, command } => shell(shim, &command),
        Verb::Keeper { dir, cgroup } => keeper::run(&dir, cgroup.as_deref()).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("berm-testkit: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

impl Suite {
    fn plan(self) -> suite::Plan {
        let berm = self.runtimes.contains(&Runtime::Berm);
        let shim = self.shim.or_else(|| berm.then(suite::default_shim));
        suite::Plan {
            pods: self.pods.unwrap_or_else(suite::default_pods),
            filter: self.filter,
            runtimes: self.runtimes,
            parallel: self.parallel,
            slow: self.slow,
            guest: self.guest,
            write_table: self.write_table,
            shim_kills: self.shim_kills,
            containerd_kills: self.containerd_kills,
            setup: Setup {
                shim,
                systemd: self.systemd,
                ..Setup::default()
            },
        }
    }
}

fn shell(shim: Option<PathBuf>, command: &[String]) -> Result<bool, Error> {
    let peers = Peers::ensure()?;
    let setup = Setup {
        shim,
        ..Default::default()
    };
    let node = Node::start(&peers, &setup)?;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let (program, args) = words.split_first().unwrap_or((&"bash", &[]));
    let status = node
        .command(program, args)
        .status()
        .map_err(|source| Error::Exec {
            program: (*program).into(),
            source,
        })?;
    node.stop()?;
    Ok(status.success())
}
