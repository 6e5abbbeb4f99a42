//! `berm-testkit bench`: shims side by side at their ttrpc door, without containerd.
//!
//! Every peer gets the same CRI specs, the same five-layer image and a network namespace of its
//! own per pod, and the peers take turns within each repetition, so that what else the machine
//! does hits all alike. Only calls are timed: what CRI and kubelet prepare (files, snapshot,
//! fifos, network namespace) is made before the clock starts.

mod execs;
mod memory;
mod peer;
mod report;
mod rows;
mod scrape;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args as ClapArgs, ValueEnum};

use crate::shimclient::{self, Image, Node};
use peer::Peer;
pub use report::{Report, Series, Unit};

/// A row, or a group of rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Shim start, pod ready, container Create+Start, Kill+Wait+Delete, teardown of an empty pod
    Life,
    /// Exec, Start, Wait, Delete of `/bin/true`
    Exec,
    /// State and Stats of a running container
    Reads,
    /// Teardown of a pod with five containers
    Teardown,
    /// PSS of an idle pod, alone and as one of ten
    Memory,
    /// Pods per second, four at once
    Throughput,
    /// Metrics of a hundred pods, Berm's alone
    Scrape,
}

/// A runtime behind containerd-shim-runc-v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Other {
    /// runc
    Runc,
    /// crun
    Crun,
}

/// A check that is not a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// 1,000 execs, 50 at a time, random exit codes: none may be wrong
    Execs,
}

/// The arguments of `berm-testkit bench`.
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Berm's shim; without it only the peers are measured
    #[arg(long, value_name = "PATH")]
    pub shim: Option<PathBuf>,
    /// What Berm is measured beside, each driven by containerd-shim-runc-v2; may be empty
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["runc", "crun"], num_args = 0..)]
    pub peers: Vec<Other>,
    /// Which rows; all without this
    #[arg(long, value_enum, value_delimiter = ',')]
    pub rows: Vec<Row>,
    /// Repetitions of the quick rows; the slow ones take a fifth of it
    #[arg(short, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub n: u32,
    /// Where to write all figures as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Run a check instead of the measurements
    #[arg(long, value_enum)]
    pub check: Option<Check>,
}

/// A failure of the bench.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A shim failed, or the machine under it.
    #[error("{peer}: {what}")]
    Peer {
        /// Which peer.
        peer: String,
        /// In which row or step.
        what: &'static str,
        /// How.
        #[source]
        source: Box<shimclient::Error>,
    },
    /// The node, which all peers share, could not be made.
    #[error("node")]
    Node(#[source] Box<shimclient::Error>),
    /// The bench's own mount namespace could not be made.
    #[error("{call}")]
    View {
        /// The system call.
        call: &'static str,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// The shim of `--shim` is not there.
    #[error("--shim: {path:?}")]
    NoShim {
        /// What was given.
        path: PathBuf,
        /// Why it cannot be used.
        #[source]
        source: std::io::Error,
    },
    /// A peer is not installed and could not be.
    #[error("--peers")]
    Install(#[source] Box<crate::error::Error>),
    /// The output could not be written.
    #[error("write({path:?})")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runtime, or its signal handling, could not be set up.
    #[error("tokio")]
    Runtime(#[source] std::io::Error),
}

/// Runs the bench, prints its table and cleans up; interrupted, it cleans up all the same.
pub fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("berm-testkit bench: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// As [`main`]: whether every check held and nobody interrupted.
///
/// # Errors
/// [`Error`], after everything that was started is gone.
pub fn run(args: &Args) -> Result<bool, Error> {
    let peers = peer::find(args)?;
    view::enter()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(async {
        tokio::select! {
            done = measure(args, &peers) => done,
            ended = ended() => ended.map(|()| false),
        }
    })
}

/// Until SIGINT or SIGTERM.
async fn ended() -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// What all peers share.
struct Bed {
    image: Image,
    pause: Image,
    // Last: all else lies in it.
    node: Node,
}

async fn measure(args: &Args, peers: &[Peer]) -> Result<bool, Error> {
    let node = Node::new("berm-bench").await.map_err(node_failed)?;
    let image = Image::busybox(&node).map_err(node_failed)?;
    let pause = Image::pause(&node).map_err(node_failed)?;
    let bed = Bed { image, pause, node };
    if args.check == Some(Check::Execs) {
        return execs::check(&bed, peers).await;
    }
    let begin = Instant::now();
    let mut report = Report::new(&peers.iter().map(Peer::name).collect::<Vec<_>>());
    let all = args.rows.is_empty();
    let asked = |row| all || args.rows.contains(&row);
    let few = args.n.div_ceil(5);
    if asked(Row::Life) {
        rows::life(&bed, peers, args.n, &mut report).await?;
    }
    if asked(Row::Exec) || asked(Row::Reads) {
        let counts = [Row::Exec, Row::Reads].map(|row| if asked(row) { args.n } else { 0 });
        rows::calls(&bed, peers, counts, &mut report).await?;
    }
    if asked(Row::Teardown) {
        rows::teardown(&bed, peers, few, &mut report).await?;
    }
    if asked(Row::Throughput) {
        rows::throughput(&bed, peers, &mut report).await?;
    }
    if asked(Row::Memory) {
        memory::pss(&bed, peers, &mut report).await?;
    }
    if let Some(berm) = peers
        .iter()
        .find(|peer| asked(Row::Scrape) && peer.has_metrics())
    {
        scrape::scrapes(&bed, berm, args.n, &mut report).await?;
    }
    print!("{report}");
    println!("{} s", begin.elapsed().as_secs());
    if let Some(path) = &args.json {
        let json = format!("{:#}\n", report.to_json());
        std::fs::write(path, json).map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })?;
    }
    Ok(true)
}

fn node_failed(source: shimclient::Error) -> Error {
    Error::Node(Box::new(source))
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
