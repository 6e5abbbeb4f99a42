//! `berm metric-server` over control sockets of this test's making.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test fails by panicking.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// No wait lasts longer; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(60);

/// A state directory with sandboxes in it, gone with the value.
struct State(PathBuf);

impl State {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("berm-ms-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("k8s.io")).unwrap();
        Self(dir)
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.0.join("k8s.io").join(id)
    }

    /// The record of a sandbox that runs: its PID 1 and its shim are this process.
    fn record(&self, id: &str, registered: &Value) -> PathBuf {
        let dir = self.dir(id);
        fs::create_dir(&dir).unwrap();
        let own = json!({"pid": std::process::id(), "startTime": start_time()});
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let mut record = json!({
            "version": 1, "engine": "native", "id": id, "containerdNamespace": "k8s.io",
            "podName": format!("pod-{id}"), "namespace": "shop", "pid": own["pid"],
            "startTime": own["startTime"], "uid": 0, "gid": 0, "cgroup": "",
            "controlSocketPath": dir.join("control.sock"), "bundle": "/b", "owner": own,
            "boot": boot.trim(),
            "isolation": {"userns": "auto", "ids": {"uids": [], "gids": []}, "range": null,
                "ownsNetns": false},
        });
        if !registered.is_null() {
            record["registeredMetrics"] = registered.clone();
        }
        fs::write(dir.join("sandbox.json"), record.to_string()).unwrap();
        dir.join("control.sock")
    }

    /// A sandbox that answers every export with what `snapshot` makes; gives how many connections
    /// were made to it.
    fn serve(
        &self,
        id: &str,
        snapshot: impl Fn() -> Value + Send + Sync + 'static,
    ) -> Arc<AtomicU64> {
        let listener = UnixListener::bind(self.record(id, &registered())).unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        // Ends with the test's process.
        std::thread::spawn(move || {
            // One at a time: the server has one.
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                answer(stream.unwrap(), &snapshot);
            }
        });
        count
    }
}

/// Answers every export of a connection until the other side goes.
fn answer(mut stream: UnixStream, snapshot: impl Fn() -> Value) {
    let mut request = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut request) {
        assert!(request[..len].starts_with(b"{\"method\":\"Metrics.Export\""));
        let told = snapshot();
        // The sandbox's process ends.
        if told.is_null() {
            return;
        }
        let result = json!({"snapshot": told});
        let reply = json!({"success": true, "err": "", "result": result}).to_string();
        // The server may have given up.
        let _ = stream.write_all(reply.as_bytes());
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start_time() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_ascii_whitespace()
        .nth(19)
        .unwrap()
        .parse()
        .unwrap()
}

fn registered() -> Value {
    let metric = |name: &str, cumulative: bool| {
        json!({"name": format!("/berm/{name}"), "prometheus_name": format!("berm_{name}"),
            "description": "A figure.", "cumulative": cumulative,
            "fields": [{"field_name": "container"}]})
    };
    let mut all: Vec<_> = (0..30)
        .map(|n| metric(&format!("c{n}_total"), true))
        .collect();
    all.push(metric("tasks", false));
    json!({"metrics": all, "stages": []})
}

fn row(name: &str, kind: u8, container: &str, value: u64) -> Value {
    json!({"metric": {"name": name, "type": kind, "help": "told"},
        "labels": {"container": container}, "val": {"int": value}})
}

fn snapshot(rows: &[Value]) -> Value {
    json!({"when": "2026-02-24T15:58:00Z", "data": rows})
}

/// A server, ended with the value.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Server {
    fn start(state: &State, args: &[&str]) -> Self {
        Self::by(Command::new(env!("CARGO_BIN_EXE_berm")), state, args)
    }

    fn by(mut command: Command, state: &State, args: &[&str]) -> Self {
        command.args([
            "metric-server",
            "--config",
            "/does/not/exist",
            "--state-dir",
        ]);
        command.arg(&state.0).args(args).stderr(Stdio::piped());
        // What answers here waits for a CPU like everybody else.
        if !args.contains(&"--deadline-ms") {
            command.args(["--deadline-ms", "60000"]);
        }
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        stderr.read_line(&mut said).unwrap();
        Self {
            child,
            stderr,
            said,
        }
    }

    fn on_tcp(state: &State, args: &[&str]) -> Self {
        Self::start(state, &[&["--listen", "127.0.0.1:0"], args].concat())
    }

    fn address(&self) -> String {
        let (_, rest) = self.said.split_once("http://").expect(&self.said);
        rest.split('/').next().unwrap().to_owned()
    }

    /// Status line and body.
    fn get(&self, path: &str) -> (String, String) {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        ask(
            stream,
            &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
        )
    }

    fn metrics(&self) -> String {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK", "{body}");
        body
    }

    fn end(mut self) -> i32 {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut rest = String::new();
        let _ = self.stderr.read_to_string(&mut rest);
        print!("{rest}");
    }
}

fn ask(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default().to_owned();
    (status, body.to_owned())
}

fn has(page: &str, line: &str) -> bool {
    page.lines().any(|have| have == line)
}

#[test]
fn pods_are_followed_as_they_come_and_go() {
    let state = State::new("follow");
    let server = Server::on_tcp(&state, &[]);
    assert!(has(&server.metrics(), "berm_metric_server_sandboxes 0"));
    let tasks = |n| snapshot(&[row("berm_tasks", 1, "c1", n)]);
    state.serve("s1", move || tasks(7));
    // Made before a metric server was configured.
    state.record("s2", &Value::Null);
    let page = server.metrics();
    let of = "sandbox=\"s1\",pod_name=\"pod-s1\",namespace_name=\"shop\"";
    assert!(
        has(&page, &format!("berm_tasks{{{of},container=\"c1\"}} 7")),
        "{page}"
    );
    assert!(has(&page, &format!("berm_sandbox_up{{{of}}} 1")), "{page}");
    assert!(has(&page, "# HELP berm_tasks A figure."), "{page}");
    assert!(
        page.contains("containerd_namespace=\"k8s.io\",metrics=\"off\"} 1"),
        "{page}"
    );
    assert!(!page.contains("berm_sandbox_up{sandbox=\"s2\""), "{page}");
    fs::remove_dir_all(state.dir("s1")).unwrap();
    let page = server.metrics();
    assert!(!page.contains("\"s1\""), "{page}");
    assert!(has(&page, "berm_metric_server_scrapes_total 3"), "{page}");
    assert_eq!(server.end(), 0);
}

#[test]
fn a_sandbox_that_hangs_costs_its_own_rows_only() {
    let state = State::new("hang");
    state.serve("good", || snapshot(&[row("berm_tasks", 1, "c1", 7)]));
    let _hangs = UnixListener::bind(state.record("hangs", &registered())).unwrap();
    let full = UnixListener::bind(state.record("full", &registered())).unwrap();
    // Its queue is full: a connect would wait.
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(state.dir("full").join("control.sock")).unwrap();
    state.record("gone", &registered());
    let server = Server::on_tcp(&state, &["--deadline-ms", "200"]);
    let up = |page: &str, id: &str, up: u8| {
        let of = format!("sandbox=\"{id}\",pod_name=\"pod-{id}\",namespace_name=\"shop\"");
        has(page, &format!("berm_sandbox_up{{{of}}} {up}"))
    };
    let until = Instant::now() + SOON;
    let page = loop {
        let page = server.metrics();
        for id in ["hangs", "full", "gone"] {
            assert!(up(&page, id, 0), "{id}: {page}");
        }
        // On a busy machine even the good one may be late once.
        if up(&page, "good", 1) || Instant::now() > until {
            break page;
        }
    };
    assert!(page.contains("berm_tasks{sandbox=\"good\""), "{page}");
}

#[test]
fn a_connection_is_kept_between_scrapes_and_made_anew_when_it_was_closed() {
    let state = State::new("kept");
    let close = Arc::new(AtomicBool::new(false));
    let closing = Arc::clone(&close);
    let connections = state.serve("s1", move || match closing.swap(false, Ordering::SeqCst) {
        true => Value::Null,
        false => snapshot(&[row("berm_tasks", 1, "c1", 7)]),
    });
    let server = Server::on_tcp(&state, &[]);
    for _ in 0..3 {
        assert!(server.metrics().contains("berm_tasks{"));
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }
    close.store(true, Ordering::SeqCst);
    assert!(server.metrics().contains("berm_tasks{"), "asked again");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[test]
fn more_connections_are_kept_than_the_soft_limit_of_open_files_allows() {
    let state = State::new("files");
    for number in 0..100 {
        let told = snapshot(&[row("berm_tasks", 1, "c1", 7)]);
        state.serve(&format!("s{number}"), move || told.clone());
    }
    let server = format!("ulimit -Sn 64 && exec {}", env!("CARGO_BIN_EXE_berm"));
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &format!("{server} \"$@\""), "sh"]);
    let server = Server::by(command, &state, &["--listen", "127.0.0.1:0"]);
    for _ in 0..2 {
        let page = server.metrics();
        let told = page.lines().filter(|line| line.starts_with("berm_tasks{"));
        assert_eq!(told.count(), 100, "{page}");
    }
}

#[test]
fn another_record_at_the_same_place_is_another_sandbox() {
    let state = State::new("another");
    state.record("s1", &Value::Null);
    let server = Server::on_tcp(&state, &[]);
    assert!(server.metrics().contains("pod_name=\"pod-s1\""));
    let path = state.dir("s1").join("sandbox.json");
    let record = fs::read_to_string(&path).unwrap();
    let new = state.dir("s1").join("sandbox.new");
    fs::write(
        &new,
        record
            .replace("pod-s1", "pod-s9")
            .replace("\"native\"", "\"gvisor\""),
    )
    .unwrap();
    fs::rename(&new, &path).unwrap();
    let page = server.metrics();
    assert!(page.contains("engine=\"gvisor\""), "{page}");
    assert!(!page.contains("\"pod-s1\""), "{page}");
}

#[test]
fn what_a_sandbox_did_not_register_or_takes_back_is_dropped_and_counted() {
    let state = State::new("verify");
    let count = Arc::new(AtomicU64::new(10));
    let counter = Arc::clone(&count);
    state.serve("s1", move || {
        snapshot(&[
            row(
                "berm_c0_total",
                2,
                "c1",
                counter.fetch_sub(1, Ordering::SeqCst),
            ),
            row("berm_tasks", 1, "c1", 7),
            row("berm_sandbox_up", 2, "c1", 7),
        ])
    });
    let server = Server::on_tcp(&state, &[]);
    let first = server.metrics();
    assert!(first.contains("berm_c0_total{"), "{first}");
    assert!(
        has(&first, "berm_metric_server_dropped_rows_total 1"),
        "{first}"
    );
    let second = server.metrics();
    assert!(!second.contains("berm_c0_total{"), "{second}");
    assert!(second.contains("berm_tasks{"), "{second}");
    assert!(
        has(&second, "berm_metric_server_dropped_rows_total 3"),
        "{second}"
    );
}

#[test]
fn http_is_bounded_and_refuses_what_it_does_not_have() {
    let state = State::new("http");
    let server = Server::on_tcp(&state, &[]);
    assert_eq!(
        server.get("/healthz"),
        ("HTTP/1.1 200 OK".into(), "ok\n".into())
    );
    assert_eq!(server.get("/x").0, "HTTP/1.1 404 Not Found");
    let connect = || {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    let post =
        "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(connect(), post).0, "HTTP/1.1 405 Method Not Allowed");
    let mut stream = connect();
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(64 << 10));
    // It may be closed before all is written.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    // One that says nothing holds up nobody.
    let _silent = connect();
    assert_eq!(server.get("/healthz").0, "HTTP/1.1 200 OK");
}

#[test]
fn a_unix_socket_is_roots_alone_is_taken_over_when_dead_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;
    let state = State::new("unix");
    let path = state.0.join("metrics.sock");
    // It never was served: a listening one could be open in a process that is being started.
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let text = path.to_str().unwrap().to_owned();
    let server = Server::start(&state, &["--listen", &text]);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stream = UnixStream::connect(&path).unwrap();
    let request = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(stream, request).1, "ok\n");
    let second = refused(&["--listen", &text]);
    assert!(
        second.contains(&text) && second.contains("in use"),
        "{second}"
    );
    assert_eq!(server.end(), 0);
    assert!(!Path::new(&path).exists());
}

/// What a server that does not start says.
fn refused(args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berm"));
    let out = command.arg("metric-server").args(args).output().unwrap();
    assert!(!out.status.success(), "{args:?}");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_bad_filter_address_or_configuration_is_refused_by_its_name() {
    assert!(refused(&["--only", "("]).contains("only_metrics \"(\""));
    assert!(refused(&["--listen", "localhost"]).contains("\"localhost\": neither IP:PORT"));
    let state = State::new("config");
    let path = state.0.join("bad.toml");
    fs::write(&path, "metric_server = 7\n").unwrap();
    let said = refused(&["--config", path.to_str().unwrap()]);
    assert!(said.contains("bad.toml:1: metric_server"), "{said}");
}

/// Prints how long 100 pods take, each with three containers; the sockets' threads included.
#[test]
fn a_hundred_pods_are_scraped() {
    let state = State::new("hundred");
    for number in 0..100 {
        let mut rows = Vec::new();
        for container in ["c1", "c2", "c3"] {
            rows.extend((0..30).map(|n| row(&format!("berm_c{n}_total"), 2, container, 7)));
        }
        let told = snapshot(&rows);
        state.serve(&format!("s{number}"), move || told.clone());
    }
    let server = Server::on_tcp(&state, &[]);
    for scrape in 0..3 {
        let start = Instant::now();
        let page = server.metrics();
        println!(
            "scrape {scrape} of 100 pods: {:?}, {} bytes",
            start.elapsed(),
            page.len()
        );
        assert_eq!(
            page.lines()
                .filter(|line| line.starts_with("berm_c0_total"))
                .count(),
            300
        );
    }
}
