//! The node's metric server beside a real Prometheus: what it tells of a pod is scraped, stored and
//! found again under the names that people ask for.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{self, patient};
use crate::error::{Error, chain, file};
use crate::guard::pause;
use crate::image::BUSYBOX;
use crate::node::{CALL, Node, Setup};
use crate::peers::Peers;
use crate::suite::default_shim;
use crate::total;

/// The programs.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The shim under test, with `berm` beside it [default: the one that `make build` left]
    #[arg(long)]
    shim: Option<PathBuf>,
}

/// On the loopback of the node's own network namespace.
const SERVER: &str = "127.0.0.1:9469";
const PROMETHEUS: &str = "127.0.0.1:9090";
const SOON: Duration = Duration::from_secs(60);
/// Between two questions.
const REST: Duration = Duration::from_millis(50);

/// A query, the pod that its answer must name, and its least value.
const QUERIES: &[(&str, bool, f64)] = &[
    ("up", false, 1.0),
    ("berm_sandbox_up", true, 1.0),
    ("berm_containers{state=\"running\"}", true, 1.0),
    ("berm_container_tasks", true, 1.0),
    ("berm_container_cpu_seconds_total", true, 0.0001),
    (
        "berm_network_receive_packets_total{interface=\"eth0\"}",
        true,
        0.0,
    ),
    (
        "berm_call_phase_seconds_count{call=\"start\",phase=\"whole\"}",
        true,
        1.0,
    ),
    (
        "histogram_quantile(1, berm_call_phase_seconds_bucket{phase=\"stage\"})",
        true,
        0.0001,
    ),
];

/// Runs the test; false when something went wrong.
/// # Errors
/// What hinders the test itself.
pub fn run(peers: &Peers, args: &Args) -> Result<bool, Error> {
    let start = Instant::now();
    let (prometheus, promtool) = peers.prometheus()?;
    let shim = args.shim.clone().unwrap_or_else(default_shim);
    let config = Config::write()?;
    let mut node = Node::start(peers, &config.setup(shim.clone()))?;
    let mut test = Test {
        berm: shim.with_file_name("berm"),
        prometheus,
        promtool,
        node: &mut node,
    };
    let done = test.all();
    let log = node.log_tail(25);
    node.stop()?;
    let failed = usize::from(done.is_err());
    if let Err(error) = done {
        println!("    {}\n    the node's log:\n{log}", chain(&error));
    }
    Ok(total::tell(1 - failed, failed, start))
}

/// A configuration of Berm that asks for metrics, gone with the value.
struct Config(PathBuf);

impl Config {
    fn write() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("berm-metrics-{}.toml", std::process::id()));
        let text = format!("metric_server = \"{SERVER}\"\n");
        std::fs::write(&path, text).map_err(file("write", &path))?;
        Ok(Self(path))
    }

    /// A node with a handler `berm-metrics` that reads it.
    fn setup(&self, shim: PathBuf) -> Setup {
        let handler = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.berm-metrics";
        let config = format!(
            "[{handler}]\nruntime_type = 'io.containerd.berm.v1'\n[{handler}.options]\n\
             TypeUrl = 'runtimeoptions.v1.Options'\nConfigPath = '{}'\n",
            self.0.display()
        );
        Setup {
            config,
            ..Setup::of_shim(Some(shim))
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.0) {
            eprintln!("unlink({:?}): {e}", self.0);
        }
    }
}

struct Test<'a> {
    berm: PathBuf,
    prometheus: PathBuf,
    promtool: PathBuf,
    node: &'a mut Node,
}

impl Test<'_> {
    fn all(&mut self) -> Result<(), Error> {
        self.pod()?;
        let berm = self.berm.display().to_string();
        self.node
            .spawn(&[&berm, "metric-server", "--listen", SERVER])?;
        let page = self.until(&format!("http://{SERVER}/metrics"), |page| {
            page.contains("berm_container_tasks{")
                .then(|| page.to_owned())
        })?;
        let mut check = Command::new(&self.promtool);
        check.args(["check", "metrics"]);
        let checked = command::run(check, page.as_bytes(), CALL)?;
        println!(
            "promtool check metrics, {} rows: {}",
            rows(&page),
            checked.code
        );
        checked.ok()?;
        self.scrape()
    }

    /// A pod with a container that is busy for a moment.
    fn pod(&self) -> Result<(), Error> {
        let put = |name: &str, value: Value| {
            let path = self.node.dir().join(name);
            std::fs::write(&path, value.to_string()).map_err(file("write", &path))?;
            Ok::<_, Error>(path.display().to_string())
        };
        let pod = put(
            "metrics-pod.json",
            json!({
                "metadata": { "name": "watched", "uid": "watched", "namespace": "shop", "attempt": 0 },
                "log_directory": self.node.dir().join("metrics-logs"), "linux": {},
            }),
        )?;
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000";
        let container = put(
            "metrics-container.json",
            json!({
                "metadata": { "name": "main", "attempt": 0 }, "image": { "image": BUSYBOX },
                "command": ["sh", "-c", busy], "log_path": "main.log", "linux": {},
            }),
        )?;
        let made = self
            .node
            .run("crictl", &["runp", "--runtime", "berm-metrics", &pod])?;
        let id = made.stdout.trim();
        let made = self
            .node
            .run("crictl", &["create", "--no-pull", id, &container, &pod])?;
        self.node.run("crictl", &["start", made.stdout.trim()])?;
        Ok(())
    }

    /// A real Prometheus finds each of the queries' answers.
    fn scrape(&mut self) -> Result<(), Error> {
        let config = self.node.dir().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: berm\n  \
             static_configs: [{{targets: ['{SERVER}']}}]\n"
        );
        std::fs::write(&config, text).map_err(file("write", &config))?;
        let data = self.node.dir().join("prometheus");
        self.node.spawn(&[
            &self.prometheus.display().to_string(),
            &format!("--config.file={}", config.display()),
            &format!("--storage.tsdb.path={}", data.display()),
            &format!("--web.listen-address={PROMETHEUS}"),
        ])?;
        for (query, of_pod, least) in QUERIES {
            let url = format!("http://{PROMETHEUS}/api/v1/query?query={}", escaped(query));
            let value = self.until(&url, |answer| {
                let answer: Value = serde_json::from_str(answer).ok()?;
                let first = answer["data"]["result"].get(0)?;
                let labels = &first["metric"];
                let pod = labels["pod_name"] == "watched" && labels["namespace_name"] == "shop";
                let value: f64 = first["value"][1].as_str()?.parse().ok()?;
                (value >= *least && (pod || !of_pod)).then_some(value)
            })?;
            println!("prometheus: {query} = {value}");
        }
        Ok(())
    }

    /// Asks until `right` finds what it looks for.
    fn until<T>(&self, url: &str, right: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let end = Instant::now() + patient(SOON);
        loop {
            let get = self
                .node
                .command("busybox", &["wget", "-q", "-O", "-", url]);
            let answer = command::run(get, b"", CALL)?;
            match right(&answer.stdout) {
                Some(found) => return Ok(found),
                None if Instant::now() < end => pause(REST),
                None => {
                    let what = format!("{url}: {} {}", answer.stdout, answer.stderr);
                    return Err(Error::Deadline { what, limit: SOON });
                }
            }
        }
    }
}

fn rows(page: &str) -> usize {
    page.lines().filter(|line| !line.starts_with('#')).count()
}

/// For the query part of a URL.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
