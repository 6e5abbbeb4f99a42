//! `berm metric-server`: Prometheus' view of the node.

mod http;
mod scrape;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berm_sandbox::Config;
use berm_sandbox::metrics::{Address, Filter};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::error::{Error, errno, io};

/// Where it listens if nobody says.
const DEFAULT: &str = "127.0.0.1:9469";

/// Serves the metrics of every sandbox of the node over HTTP, for Prometheus
///
/// GET /metrics has the figures of all sandboxes, GET /healthz says `ok`. Pods are followed as
/// they come and go. Only sandboxes made while the configuration has `metric_server` tell figures;
/// of the others there is only that they run. A connection to each is kept between scrapes. A sandbox that does not answer within the deadline
/// costs its own rows: its `berm_sandbox_up` is 0.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// IP:PORT, or the absolute path of a Unix socket, which is root's alone
    /// [default: `metric_server` of the configuration, or 127.0.0.1:9469]
    #[arg(long)]
    listen: Option<Address>,
    /// Configuration: `state_dir` and `metric_server` are read; no file is fine
    #[arg(long, default_value = "/etc/berm/config.toml")]
    config: PathBuf,
    /// Directory of the sandboxes [default: `state_dir` of the configuration]
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Only metrics of sandboxes whose names match this regular expression
    #[arg(long, default_value = "")]
    only: String,
    /// Milliseconds that a sandbox may take to answer
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    deadline_ms: u64,
}

const EXAMPLES: &str = "\
Examples:
  berm metric-server
  berm metric-server --listen 0.0.0.0:9469 --only '^berm_container_(cpu|memory)'
  berm metric-server --listen /run/berm-metrics.sock
  curl -s localhost:9469/metrics | promtool check metrics";

pub(crate) fn main(args: &Args) -> Result<(), Error> {
    let config = berm_shim::config(&args.config)?;
    let listen = match (&args.listen, &config.metric_server) {
        (Some(address), _) | (None, Some(address)) => address.clone(),
        (None, None) => DEFAULT.parse()?,
    };
    // Refused here, and not once by each sandbox.
    Filter::new(&args.only)?;
    let node = scrape::Node::new(
        state_dir(args, &config),
        args.only.clone(),
        Duration::from_millis(args.deadline_ms),
    );
    raise_open_files()?;
    let runtime = crate::runtime()?;
    LocalSet::new().block_on(&runtime, serve(&listen, node))
}

/// A connection to each sandbox stays open: as many as this process may have.
fn raise_open_files() -> Result<(), Error> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).map_err(errno("setrlimit(RLIMIT_NOFILE)"))
}

fn state_dir(args: &Args, config: &Config) -> PathBuf {
    args.state_dir
        .clone()
        .unwrap_or_else(|| config.state_dir.clone())
}

/// Serves until SIGTERM or SIGINT.
async fn serve(listen: &Address, node: scrape::Node) -> Result<(), Error> {
    let mut term = signal(SignalKind::terminate()).map_err(io("sigaction(SIGTERM)"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io("sigaction(SIGINT)"))?;
    let serving = async {
        match listen {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                let listener = listener.map_err(|source| bind(listen, source))?;
                let address = listener.local_addr().map_err(io("getsockname()"))?;
                eprintln!("berm: metrics of the node on http://{address}/metrics");
                http::serve(async || Ok(listener.accept().await?.0), node).await
            }
            Address::Unix(path) => {
                let (listener, _remove) = unix(path)?;
                eprintln!("berm: metrics of the node on {path:?}");
                http::serve(async || Ok(listener.accept().await?.0), node).await
            }
        }
    };
    tokio::select! {
        ended = serving => ended,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

fn bind(address: &Address, source: std::io::Error) -> Error {
    Error::Bind {
        address: address.to_string(),
        source,
    }
}

/// Removes the socket's file when the server ends.
struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(self.0) {
            eprintln!("berm: unlink({:?}): {e}", self.0);
        }
    }
}

/// Listens on a path; one that a dead server has left is taken over.
fn unix(path: &Path) -> Result<(UnixListener, Remove<'_>), Error> {
    let failed = |source| bind(&Address::Unix(path.to_owned()), source);
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let dead = || {
        let tried = std::os::unix::net::UnixStream::connect(path);
        tried.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    };
    if is_socket && dead() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let remove = Remove(path);
    // Until here only its owner could write to it, by any umask that leaves out others' write bit.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok((listener, remove))
}
