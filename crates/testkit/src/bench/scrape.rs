//! What Prometheus waits for on a full node: `berm metric-server` and the shims that it asks.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};

use super::peer::Peer;
use super::report::Report;
use super::rows::pod_with;
use super::{Bed, Error};
use crate::cpus::Pinned;
use crate::shimclient;

const PODS: usize = 100;
/// A server that has not answered by then never does.
const DEADLINE: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";

/// Scrapes of a node with a hundred pods, each with a running container. Shims, server and asker
/// share one CPU. Berm's alone: the others' shims have no metrics to ask for.
pub(super) async fn scrapes(
    bed: &Bed,
    berm: &Peer,
    n: u32,
    report: &mut Report,
) -> Result<(), Error> {
    let failed = || berm.failed("scrapes of a hundred pods");
    let _pinned = Pinned::to(1).map_err(|errno| Error::View {
        call: "sched_setaffinity",
        source: nix::errno::Errno::from_raw(errno.raw_os_error()),
    })?;
    let asked = berm.with_config("metric_server = \"127.0.0.1:9469\"\n");
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(pod_with(bed, &asked, 1).await.map_err(failed())?);
    }
    let mut server = Server::start(berm.path(), bed.node.dir())
        .await
        .map_err(failed())?;
    // The first one connects to each shim.
    server.scrape().await.map_err(failed())?;
    for _ in 0..n {
        let took = server.scrape().await.map_err(failed())?;
        report.time("scrape, 100 pods on one CPU", berm.name(), took);
    }
    server.end().await.map_err(failed())?;
    for (pod, containers) in pods {
        pod.stop(containers).await.map_err(failed())?;
    }
    Ok(())
}

/// `berm metric-server` on a Unix socket, ended with the value.
struct Server {
    process: Child,
    socket: PathBuf,
    #[expect(dead_code, reason = "open for as long as the server may complain")]
    stderr: BufReader<ChildStderr>,
}

impl Server {
    /// The `berm` beside the shim.
    async fn start(shim: &Path, dir: &Path) -> Result<Self, shimclient::Error> {
        let (berm, socket) = (shim.with_file_name("berm"), dir.join("metrics.sock"));
        let failed = |source| shimclient::Error::file("metric-server", &berm)(source);
        let mut process = Command::new(&berm)
            .args(["metric-server", "--config", "/does/not/exist", "--listen"])
            .arg(&socket)
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stderr = process.stderr.take().ok_or(ErrorKind::BrokenPipe.into());
        let mut stderr = BufReader::new(stderr.map_err(failed)?);
        // It says where it listens, once it does.
        in_time(stderr.read_line(&mut String::new()))
            .await
            .map_err(failed)?;
        Ok(Self {
            process,
            socket,
            stderr,
        })
    }

    /// How long it took until the whole page was there.
    async fn scrape(&mut self) -> Result<Duration, shimclient::Error> {
        let begin = Instant::now();
        let page = in_time(self.page()).await;
        let took = begin.elapsed();
        let page = page.map_err(shimclient::Error::file("GET /metrics", &self.socket))?;
        let told = |line: &&str| line.starts_with("berm_container_cpu_seconds_total{");
        match page.lines().filter(told).count() {
            rows if rows >= PODS => Ok(took),
            _ => Err(shimclient::Error::file(
                "GET /metrics: not of every pod",
                &self.socket,
            )(ErrorKind::InvalidData.into())),
        }
    }

    async fn page(&self) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(REQUEST).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        Ok(page)
    }

    async fn end(mut self) -> Result<(), shimclient::Error> {
        let killed = self.process.kill().await;
        killed.map_err(shimclient::Error::file("kill", "berm metric-server"))
    }
}

async fn in_time<T>(work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}
