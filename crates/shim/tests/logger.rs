//! Loggers of containers and execs: `binary://`, `binary-v2://` and `file://`. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use berm_sys::Kind;
use berm_testkit::shimclient::{Container, Image, Node, Pod, ShimBinary, Stdio, write_program};

const SLEEP: [&str; 2] = ["/bin/sleep", "infinity"];
/// No wait lasts longer; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(60);

struct World {
    node: Node,
    pause: Image,
    busybox: Image,
}

impl World {
    async fn new() -> Self {
        let node = Node::new("berm-logger").await.unwrap();
        let (pause, busybox) = (Image::pause(&node).unwrap(), Image::busybox(&node).unwrap());
        Self {
            node,
            pause,
            busybox,
        }
    }

    async fn pod(&self) -> Pod<'_> {
        let berm = ShimBinary::new(env!("CARGO_BIN_EXE_berm-shim"));
        let mut pod = Pod::prepare(&self.node, &berm, &self.pause).unwrap();
        pod.start_shim().await.unwrap();
        pod.run().await.unwrap();
        pod
    }

    async fn container(&self, pod: &Pod<'_>, args: &[&str]) -> Container {
        pod.prepare_container(&self.busybox, args).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.dir().join(name)
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap()).into_owned()
    }

    /// A logger, as a script that knows the node's directory as `$dir`.
    fn script(&self, name: &str, body: &str) -> String {
        let path = self.path(name);
        let dir = self.node.dir().display();
        write_program(&path, &format!("#!/bin/sh\ndir={dir}\n{body}\n")).unwrap();
        path.display().to_string()
    }
}

/// The open files of a process: number and sort.
fn open_files(pid: &str) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let show = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).unwrap();
        let sort = match target.to_string_lossy() {
            pipe if pipe.starts_with("pipe:") => "pipe".into(),
            file if file.ends_with("/logger") => "script".into(),
            other => other,
        };
        format!("{} {sort}", entry.file_name().to_string_lossy())
    };
    let mut all: Vec<_> = entries.map(|entry| show(entry.unwrap())).collect();
    all.sort();
    all
}

/// Copies both streams to files until they end, as loggers do.
const COPIES: &str = "cat <&3 >$dir/out & cat <&4 >$dir/err & wait";
/// The same, and however long that takes after the end of the streams.
const COPIES_ALL: &str = "trap '' TERM; cat <&3 >$dir/out & cat <&4 >$dir/err & wait";
/// Delete waits 1 s for a logger that stays, and 12 s more for one that does not end at SIGTERM.
const KILLED_AFTER: Duration = Duration::from_secs(13);

#[tokio::test]
async fn a_program_gets_its_arguments_environment_descriptors_and_every_byte() {
    let world = World::new().await;
    let pod = world.pod().await;
    // It is a child that says ready: the files of the shell itself are looked at from then on.
    let script = format!(
        "printf '%s\\n' \"$@\" >$dir/args; tr '\\0' '\\n' </proc/$$/environ >$dir/env
         echo $$ >$dir/pid; ps -o ppid= -p $$ >$dir/parent
         (echo ready >&5); {COPIES_ALL}"
    );
    let script = world.script("logger", &script);
    // Longer than a pipe, by a process that ends at once.
    let command = "yes 0123456 | head -c 800000; echo oops >&2; exit 3";
    let mut container = world.container(&pod, &["/bin/sh", "-c", command]).await;
    container.log_to(&format!("binary-v2://{script}?key=va%20lue&flag"));
    container.start().await.unwrap();
    let fds = open_files(world.text("pid").trim());
    assert_eq!(container.wait().await.unwrap().status, 3);
    let id = container.id().to_owned();
    container.task().unwrap().delete(&id, "").await.unwrap();

    assert_eq!(world.text("args"), "key\nva lue\nflag\n\n");
    let mut env: Vec<_> = world.text("env").lines().map(str::to_owned).collect();
    env.sort();
    let namespace = world.node.namespace();
    let want = [
        format!("CONTAINER_ID={id}"),
        format!("CONTAINER_NAMESPACE={namespace}"),
    ];
    assert_eq!(env, want);
    let shim = pod.shim().unwrap().process().pid();
    assert_eq!(world.text("parent").trim(), shim.to_string());
    // 10 is the script itself, as the shell holds it.
    let want = [
        "0 /dev/null",
        "1 /dev/null",
        "10 script",
        "2 /dev/null",
        "3 pipe",
        "4 pipe",
        "5 pipe",
    ];
    assert_eq!(fds, want);
    assert_eq!(world.text("out"), "0123456\n".repeat(100_000));
    assert_eq!(world.text("err"), "oops\n");
    let threads = fs::read_dir(format!("/proc/{shim}/task")).unwrap().count();
    assert_eq!(threads, 1);
    pod.stop(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn only_binary_v2_takes_an_end_without_a_word_for_a_failure() {
    let world = World::new().await;
    let pod = world.pod().await;
    // Of those that are given up one may come to open its file after the last has written.
    let mute = world.script("mute", "trap '' TERM; exec 5>&-; cat <&3 >>$dir/out");
    let dies = world.script("dies", "exit 1");
    let mut container = world.container(&pod, &["/bin/echo", "hello"]).await;
    for (uri, want, kind) in [
        (
            format!("binary-v2://{dies}"),
            "ended before it was ready",
            Kind::Unavailable,
        ),
        (
            format!("binary-v2://{mute}"),
            "ended before it was ready",
            Kind::Unavailable,
        ),
        (
            "binary:///no/such/logger".into(),
            "/no/such/logger",
            Kind::NotFound,
        ),
        (
            "file:///proc/nothing/log".into(),
            "/proc/nothing/log",
            Kind::NotFound,
        ),
    ] {
        container.log_to(&uri);
        let error = container.start().await.unwrap_err();
        assert!(error.to_string().contains(want), "{uri}: {error}");
        assert_eq!(error.kind(), kind, "{uri}: {error}");
    }
    container.log_to(&format!("binary://{mute}"));
    container.start().await.unwrap();
    container.wait().await.unwrap();
    container.remove().await.unwrap();
    assert_eq!(world.text("out"), "hello\n");
    pod.stop(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_logger_that_stays_is_told_to_end_by_delete() {
    let world = World::new().await;
    let pod = world.pod().await;
    let stays = "trap 'echo told >$dir/told; kill $!; exit' TERM; echo >&5; exec 5>&-
        sleep 1000 & wait";
    let stays = world.script("stays", stays);
    let mut container = world.container(&pod, &["/bin/true"]).await;
    container.log_to(&format!("binary://{stays}"));
    container.start().await.unwrap();
    container.wait().await.unwrap();
    assert!(!world.path("told").exists());
    let start = Instant::now();
    container.remove().await.unwrap();
    assert_eq!(world.text("told"), "told\n");
    assert!(start.elapsed() < KILLED_AFTER);
    pod.stop(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_file_gets_both_streams_of_containers_and_execs_and_keeps_what_it_had() {
    let world = World::new().await;
    let pod = world.pod().await;
    let log = world.path("logs/deep/log");
    let uri = format!("file://{}", log.display());
    let mut container = world
        .container(
            &pod,
            &[
                "/bin/sh",
                "-c",
                "echo out; echo err >&2; exec sleep infinity",
            ],
        )
        .await;
    container.log_to(&uri);
    container.start().await.unwrap();
    // It writes in its own time, and is killed at the end.
    let until = Instant::now() + SOON;
    while !["out\n", "err\n"]
        .iter()
        .all(|l| world.text("logs/deep/log").contains(l))
    {
        assert!(Instant::now() < until, "{}", world.text("logs/deep/log"));
        tokio::task::yield_now().await;
    }
    let (task, id) = (container.task().unwrap(), container.id());
    for (exec, stderr, terminal) in [
        ("e1", uri.as_str(), false),
        ("e2", "", false),
        ("e3", "", true),
    ] {
        let mut process = container.process().clone();
        let command = "echo $0 out; echo $0 err >&2";
        process["args"] = serde_json::json!(["/bin/sh", "-c", command, exec]);
        let stdio = Stdio {
            stdout: uri.clone(),
            stderr: stderr.into(),
            terminal,
            ..Stdio::default()
        };
        task.exec(id, exec, &process, stdio).await.unwrap();
        task.start(id, exec).await.unwrap();
        task.wait(id, exec).await.unwrap();
        task.delete(id, exec).await.unwrap();
    }
    pod.stop(vec![container]).await.unwrap();
    let text = fs::read_to_string(&log).unwrap();
    let mut lines: Vec<_> = text.split('\n').collect();
    lines.sort_unstable();
    let want = [
        "", "e1 err", "e1 out", "e2 out", "e3 err\r", "e3 out\r", "err", "out",
    ];
    assert_eq!(lines, want);
    let mode = fs::metadata(&log).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
}

#[tokio::test]
async fn an_execs_logger_is_named_after_it_and_a_child_that_stays_holds_nobody_up() {
    let world = World::new().await;
    let pod = world.pod().await;
    let script = format!("echo $CONTAINER_ID >$dir/id; exec 5>&-; {COPIES}");
    let script = world.script("logger", &script);
    let mut container = world.container(&pod, &SLEEP).await;
    container.start().await.unwrap();
    let (task, id) = (container.task().unwrap(), container.id());
    let mut process = container.process().clone();
    process["args"] = serde_json::json!(["/bin/sh", "-c", "echo said; sleep infinity &"]);
    let stdio = Stdio {
        stdout: format!("binary://{script}"),
        ..Stdio::default()
    };
    task.exec(id, "e1", &process, stdio).await.unwrap();
    task.start(id, "e1").await.unwrap();
    task.wait(id, "e1").await.unwrap();
    let start = Instant::now();
    task.delete(id, "e1").await.unwrap();
    assert!(start.elapsed() < KILLED_AFTER);
    assert_eq!(
        (world.text("id"), world.text("out")),
        ("e1\n".into(), "said\n".into())
    );
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn a_terminals_output_goes_to_descriptor_three() {
    let world = World::new().await;
    let pod = world.pod().await;
    let script = world.script("logger", &format!("exec 5>&-; {COPIES_ALL}"));
    let mut container = world
        .container(&pod, &["/bin/sh", "-c", "echo a; echo b >&2"])
        .await;
    container.log_to(&format!("binary://{script}"));
    container.with_terminal();
    container.start().await.unwrap();
    container.wait().await.unwrap();
    container.remove().await.unwrap();
    assert_eq!(world.text("out"), "a\r\nb\r\n");
    assert_eq!(world.text("err"), "");
    pod.stop(Vec::new()).await.unwrap();
}
