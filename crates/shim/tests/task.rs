//! The Task service of a running shim, with real pods and without containerd. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use berm_sys::Kind;
use berm_testkit::shimclient::{
    Body, Container, Error, Event, Fifos, Generation, Image, Node, Pod, Process, ShimBinary, Stdio,
};
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::Message;
use tokio::task::JoinSet;

const SLEEP: [&str; 2] = ["/bin/sleep", "infinity"];
const SOON: Duration = Duration::from_secs(60);
const SIGKILL: u32 = 9;

fn berm() -> ShimBinary {
    ShimBinary::new(env!("CARGO_BIN_EXE_berm-shim"))
}

async fn node() -> Node {
    Node::new("berm-shim").await.unwrap()
}

/// The images of a node, unpacked once.
struct Images {
    pause: Image,
    busybox: Image,
}

impl Images {
    fn of(node: &Node) -> Self {
        Self {
            pause: Image::pause(node).unwrap(),
            busybox: Image::busybox(node).unwrap(),
        }
    }
}

async fn pod<'n>(node: &'n Node, images: &Images, binary: &ShimBinary) -> Pod<'n> {
    let mut pod = Pod::prepare(node, binary, &images.pause).unwrap();
    pod.start_shim().await.unwrap();
    pod.run().await.unwrap();
    pod
}

async fn prepared(pod: &Pod<'_>, images: &Images, args: &[&str]) -> Container {
    pod.prepare_container(&images.busybox, args).await.unwrap()
}

async fn started(pod: &Pod<'_>, images: &Images, args: &[&str]) -> Container {
    let mut container = prepared(pod, images, args).await;
    container.start().await.unwrap();
    container
}

fn kind<T>(result: Result<T, Error>) -> Option<Kind> {
    result.err().map(|e| e.kind())
}

/// The kinds of a container's events, in order; exits with the id of their process.
async fn story(node: &Node, id: &str) -> Vec<String> {
    let deleted = |event: &Event| matches!(&event.body, Body::Delete(e) if e.container_id == id);
    node.events()
        .wait_for("TaskDelete", SOON, deleted)
        .await
        .unwrap();
    let word = |body: &Body| match body {
        Body::Exit(exit) if exit.id != exit.container_id => format!("exit {}", exit.id),
        body => format!("{body:?}")
            .split('(')
            .next()
            .unwrap()
            .to_lowercase(),
    };
    node.events()
        .of(id)
        .iter()
        .map(|event| word(&event.body))
        .collect()
}

/// One ttrpc request, written by hand: length, stream 1, a request, no flags.
fn send_and_vanish(address: &str, method: &str, request: &impl Message) {
    let request = ttrpc::proto::Request {
        service: "containerd.task.v3.Task".into(),
        method: method.into(),
        payload: request.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let request = request.write_to_bytes().unwrap();
    let mut frame = u32::try_from(request.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
    frame.extend_from_slice(&request);
    let mut socket = UnixStream::connect(address.strip_prefix("unix://").unwrap()).unwrap();
    socket.write_all(&frame).unwrap();
}

fn threads(pod: &Pod<'_>) -> usize {
    let pid = pod.shim().unwrap().process().pid();
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .count()
}

/// Kilobytes of heap and stack that a pod's shim has in memory.
fn own_memory(pod: &Pod<'_>) -> u64 {
    let pid = pod.shim().unwrap().process().pid();
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = smaps.lines();
    let mut own = 0;
    while let Some(line) = lines.next() {
        if line.ends_with("[heap]") || line.ends_with("[stack]") {
            let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            let rss = rss.trim().trim_end_matches(" kB").parse::<u64>();
            own += rss.unwrap();
        }
    }
    own
}

#[tokio::test]
async fn the_shim_of_a_pod_that_is_left_alone_gives_memory_back_and_works_on() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    assert_eq!(
        container.exec("e1", &["/bin/true"]).await.unwrap().status,
        0
    );
    let busy = own_memory(&pod);
    let rests = async {
        while own_memory(&pod) * 3 > busy * 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, rests)
        .await
        .expect("it keeps all");
    let output = container.exec("e2", &["/bin/sh", "-c", "echo out; exit 7"]);
    let output = output.await.unwrap();
    assert_eq!((output.status, &*output.stdout), (7, &b"out\n"[..]));
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn a_pod_lives_and_dies_in_order_and_its_shim_has_one_thread() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    assert_eq!(pod.shim().unwrap().answer().version, 3);
    let container = started(&pod, &images, &SLEEP).await;
    let id = container.id().to_owned();
    let output = container
        .exec("e1", &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
        .await;
    let output = output.unwrap();
    assert_eq!(
        (output.status, &*output.stdout, &*output.stderr),
        (7, &b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(threads(&pod), 1);
    pod.stop(vec![container]).await.unwrap();
    let told = [
        "create",
        "start",
        "execadded",
        "execstarted",
        "exit e1",
        "exit",
        "delete",
    ];
    assert_eq!(story(&node, &id).await, told);
    assert_eq!(node.cgroup().left(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn the_log_has_one_line_for_each_call_with_its_phases() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let id = container.id().to_owned();
    container.exec("e1", &["/bin/true"]).await.unwrap();
    let refused = container.exec("e2", &["/bin/none"]).await;
    assert!(refused.is_err());
    pod.remove(vec![container]).await.unwrap();
    let log = pod.bundle().log();
    let line = |call: &str, exec: &str| {
        let of_call = format!("call={call} container={id} exec={exec} ");
        let found: Vec<_> = log.lines().filter(|l| l.contains(&of_call)).collect();
        assert_eq!(found.len(), 1, "{of_call:?} in {log}");
        found[0].to_owned()
    };
    let calls = [
        (
            line("Create", "\"\""),
            &["spec", "stdio", "plan", "cgroup", "stage"][..],
        ),
        (line("Start", "\"\""), &["gate"]),
        (line("Start", "e1"), &["stdio", "stage"]),
        (line("Delete", "\"\""), &["cgroup"]),
    ];
    for (line, phases) in calls {
        let mut at = line.find(" dur_us=").unwrap();
        for phase in phases {
            let next = line[at..].find(&format!(" {phase}_us="));
            at += next.unwrap_or_else(|| panic!("{phase} in its order: {line}"));
        }
        assert!(line.contains(" result=ok"), "{line}");
    }
    let failed = line("Start", "e2");
    assert!(failed.contains(" result=NotFound err="), "{failed}");
    assert!(failed.contains("/bin/none"), "{failed}");
    pod.stop(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn processes_that_end_before_start_replies_are_told_in_order() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let mut short = started(&pod, &images, &["/bin/sh", "-c", "exit 3"]).await;
    assert_eq!(short.wait().await.unwrap().status, 3);
    let container = started(&pod, &images, &SLEEP).await;
    let all = (0..20u32).map(|n| {
        let container = &container;
        async move {
            let (exec, script) = (format!("e{n}"), format!("exit {n}"));
            container
                .exec(&exec, &["/bin/sh", "-c", &script])
                .await
                .unwrap()
                .status
        }
    });
    let mut set = Vec::new();
    for exec in all {
        set.push(exec.await);
    }
    assert_eq!(set, (0..20).collect::<Vec<_>>());
    let (short_id, id) = (short.id().to_owned(), container.id().to_owned());
    pod.stop(vec![short, container]).await.unwrap();
    assert_eq!(
        story(&node, &short_id).await,
        ["create", "start", "exit", "delete"]
    );
    let story = story(&node, &id).await;
    for n in 0..20 {
        assert_eq!(
            story
                .iter()
                .filter(|word| **word == format!("exit e{n}"))
                .count(),
            1
        );
    }
    assert_eq!(story[story.len() - 2..], ["exit", "delete"]);
}

#[tokio::test]
async fn fifty_execs_at_once_keep_their_exit_codes_apart() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = Arc::new(started(&pod, &images, &SLEEP).await);
    for round in 0..4 {
        let mut execs = JoinSet::new();
        for n in 0..50u32 {
            let container = container.clone();
            let code = (n * 7 + round * 13) % 256;
            execs.spawn(async move {
                let (exec, script) = (format!("e{round}-{n}"), format!("echo {n}; exit {code}"));
                let output = container
                    .exec(&exec, &["/bin/sh", "-c", &script])
                    .await
                    .unwrap();
                assert_eq!(output.status, code);
                assert_eq!(output.stdout, format!("{n}\n").into_bytes());
            });
        }
        while let Some(done) = execs.join_next().await {
            done.unwrap();
        }
    }
    assert_eq!(threads(&pod), 1);
    pod.stop(vec![Arc::into_inner(container).unwrap()])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_leaves_nothing_and_its_shim_goes() {
    let node = node().await;
    let images = Images::of(&node);
    let mut pod = Pod::prepare(&node, &berm(), &images.pause).unwrap();
    let config = pod.bundle().path().join("config.json");
    pod.start_shim().await.unwrap();
    for broken in ["{", r#"{"ociVersion":"1.3.0","surprise":1}"#] {
        std::fs::write(&config, broken).unwrap();
        let e = pod.run().await.unwrap_err();
        assert!(
            matches!(e.kind(), Kind::InvalidArgument | Kind::NotSupported),
            "{e}"
        );
    }
    let task = pod.task().unwrap();
    assert_eq!(kind(task.delete(pod.id(), "").await), Some(Kind::NotFound));
    pod.stop_sandbox().await.unwrap();
    pod.shim_exited().await.unwrap();
    assert_eq!(node.cgroup().left(), Vec::<std::path::PathBuf>::new());
    assert!(
        !Path::new("/run/berm")
            .join(node.namespace())
            .join(pod.id())
            .exists()
    );
}

#[tokio::test]
async fn many_waiters_and_a_late_one_hear_the_same() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let mut container = started(&pod, &images, &SLEEP).await;
    let (task, id) = (container.task().unwrap().clone(), container.id().to_owned());
    let waiters: Vec<_> = (0..20)
        .map(|_| {
            let (task, id) = (task.clone(), id.clone());
            tokio::spawn(async move { task.wait(&id, "").await.unwrap() })
        })
        .collect();
    task.kill(&id, "", SIGKILL, false).await.unwrap();
    let first = container.wait().await.unwrap();
    assert_eq!(first.status, 128 + SIGKILL);
    assert!(first.at.is_some());
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), first);
    }
    assert_eq!(task.wait(&id, "").await.unwrap(), first);
    let state = task.state(&id, "").await.unwrap();
    assert_eq!(
        (state.exit_status, state.exited_at.into_option()),
        (137, first.at.clone())
    );
    assert!(state.pid > 0 && !state.stdout.is_empty());
    assert_eq!(task.delete(&id, "").await.unwrap().at, first.at);
    assert_eq!(kind(task.wait(&id, "").await), Some(Kind::NotFound));
    pod.stop(vec![]).await.unwrap();
}

#[tokio::test]
async fn wrong_calls_have_the_contracts_codes() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let mut container = started(&pod, &images, &SLEEP).await;
    let (task, id) = (container.task().unwrap().clone(), container.id().to_owned());
    let none = Default::default;

    assert_eq!(kind(task.state("nobody", "").await), Some(Kind::NotFound));
    assert_eq!(kind(task.state(&id, "nobody").await), Some(Kind::NotFound));
    assert_eq!(
        kind(task.delete(&id, "").await),
        Some(Kind::FailedPrecondition)
    );
    assert_eq!(
        kind(task.start(&id, "").await),
        Some(Kind::FailedPrecondition)
    );
    assert_eq!(kind(task.resume(&id).await), Some(Kind::FailedPrecondition));
    assert_eq!(kind(task.resize_pty(&id, "", 80, 24).await), None);
    let update = serde_json::json!({"pids": {"limit": 50}, "blockIO": {"leafWeight": 500}});
    assert_eq!(
        kind(task.update(&id, &update).await),
        Some(Kind::InvalidArgument)
    );
    let update = serde_json::json!({"pids": {"limit": 50}});
    task.update(&id, &update).await.unwrap();
    task.update(pod.id(), &update).await.unwrap();
    task.exec(&id, "e1", container.process(), none())
        .await
        .unwrap();
    let again = task.exec(&id, "e1", container.process(), none()).await;
    assert_eq!(kind(again), Some(Kind::AlreadyExists));
    assert_eq!(
        kind(task.kill(&id, "e1", SIGKILL, false).await),
        Some(Kind::FailedPrecondition)
    );
    task.delete(&id, "e1").await.unwrap();
    let stream = Stdio {
        stdout: "ttrpc+unix:///run/x?streaming_id=e2-stdout".into(),
        ..Stdio::default()
    };
    let refused = task.exec(&id, "e2", container.process(), stream).await;
    assert_eq!(kind(refused), Some(Kind::InvalidArgument));
    assert_eq!(kind(task.state(&id, "e2").await), Some(Kind::NotFound));

    task.pause(&id).await.unwrap();
    assert_eq!(kind(task.pause(&id).await), Some(Kind::FailedPrecondition));
    assert_eq!(
        kind(task.delete(&id, "").await),
        Some(Kind::FailedPrecondition)
    );
    task.resume(&id).await.unwrap();

    task.kill(&id, "", SIGKILL, true).await.unwrap();
    container.wait().await.unwrap();
    assert_eq!(
        kind(task.kill(&id, "", SIGKILL, false).await),
        Some(Kind::NotFound)
    );
    assert_eq!(kind(task.pids(&id).await), Some(Kind::FailedPrecondition));
    assert_eq!(
        kind(task.exec(&id, "e3", container.process(), none()).await),
        Some(Kind::FailedPrecondition)
    );
    assert!(
        task.stats(&id)
            .await
            .unwrap()
            .type_url
            .starts_with("io.containerd.cgroups.v")
    );
    task.delete(&id, "").await.unwrap();
    assert_eq!(kind(task.delete(&id, "").await), Some(Kind::NotFound));
    assert_eq!(task.connect(&id).await.unwrap().task_pid, 0);
    pod.stop(vec![]).await.unwrap();
}

#[tokio::test]
async fn an_exec_that_outlives_its_container_is_told_before_it() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let mut container = started(&pod, &images, &SLEEP).await;
    let (task, id) = (container.task().unwrap().clone(), container.id().to_owned());
    let fifos = container.exec_fifos("e1").unwrap();
    let mut process = container.process().clone();
    process["args"] = serde_json::json!(SLEEP);
    task.exec(&id, "e1", &process, fifos.stdio().clone())
        .await
        .unwrap();
    let pid = task.start(&id, "e1").await.unwrap();
    let pids = task.pids(&id).await.unwrap();
    let exec = pids
        .processes
        .iter()
        .find(|process| process.pid == pid)
        .unwrap();
    assert_eq!(exec.info.type_url, "containerd.runc.v1.ProcessDetails");
    assert_eq!(exec.info.value, b"\x0a\x02e1");
    task.kill(&id, "", SIGKILL, false).await.unwrap();
    container.wait().await.unwrap();
    assert_eq!(task.wait(&id, "e1").await.unwrap().status, 137);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    task.delete(&id, "e1").await.unwrap();
    pod.stop(vec![container]).await.unwrap();
    let story = story(&node, &id).await;
    assert_eq!(story[story.len() - 3..], ["exit e1", "exit", "delete"]);
}

#[tokio::test]
async fn a_client_that_vanishes_in_mid_call_leaves_a_whole_container() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    for _ in 0..5 {
        let container = prepared(&pod, &images, &SLEEP).await;
        let id = container.id().to_owned();
        let create = CreateTaskRequest {
            id: id.clone(),
            bundle: container.bundle().path().display().to_string(),
            rootfs: container.bundle().rootfs().to_vec(),
            ..CreateTaskRequest::default()
        };
        let other = pod.task().unwrap();
        // The request is in the socket's buffer when its sender is gone.
        send_and_vanish(&pod.shim().unwrap().answer().address, "Create", &create);
        let created =
            |event: &Event| matches!(&event.body, Body::Create(event) if event.container_id == id);
        node.events()
            .wait_for("TaskCreate", SOON, created)
            .await
            .unwrap();
        assert!(other.state(&id, "").await.unwrap().pid > 0);
        other.start(&id, "").await.unwrap();
        other.kill(&id, "", SIGKILL, false).await.unwrap();
        assert_eq!(other.wait(&id, "").await.unwrap().status, 137);
        other.delete(&id, "").await.unwrap();
        drop(container);
    }
    pod.stop(vec![]).await.unwrap();
}

#[tokio::test]
async fn delete_of_an_exec_ends_its_output_while_a_child_holds_it() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let script = "sleep 1000 & echo started";
    let output = container
        .exec("e1", &["/bin/sh", "-c", script])
        .await
        .unwrap();
    assert_eq!((output.status, &*output.stdout), (0, &b"started\n"[..]));
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn an_exec_reads_its_stdin_to_the_end_that_close_io_makes() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let (task, id) = (container.task().unwrap().clone(), container.id().to_owned());
    let mut process = container.process().clone();
    process["args"] = serde_json::json!(["/bin/cat"]);
    for early in [false, true] {
        let exec = if early { "early" } else { "late" };
        let mut fifos = Fifos::new(node.dir().join(exec), exec, true, false).unwrap();
        task.exec(&id, exec, &process, fifos.stdio().clone())
            .await
            .unwrap();
        if early {
            task.close_stdin(&id, exec).await.unwrap();
        }
        fifos.write(b"typed").await.unwrap();
        task.start(&id, exec).await.unwrap();
        fifos.close_stdin();
        if !early {
            task.close_stdin(&id, exec).await.unwrap();
        }
        assert_eq!(task.wait(&id, exec).await.unwrap().status, 0, "{exec}");
        task.delete(&id, exec).await.unwrap();
        let (stdout, _) = fifos.output(SOON).await.unwrap();
        assert_eq!(stdout, b"typed", "{exec}");
    }
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn an_exec_with_a_terminal_has_its_size_and_ends_its_output() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let (task, id) = (container.task().unwrap().clone(), container.id().to_owned());
    let mut process = container.process().clone();
    process["args"] = serde_json::json!([
        "/bin/sh",
        "-c",
        "read line; stty size; echo got $line; sleep 1000 &"
    ]);
    let mut fifos = Fifos::new(node.dir().join("tty"), "tty", true, true).unwrap();
    task.exec(&id, "tty", &process, fifos.stdio().clone())
        .await
        .unwrap();
    task.start(&id, "tty").await.unwrap();
    task.resize_pty(&id, "tty", 101, 42).await.unwrap();
    let state = task.state(&id, "tty").await.unwrap();
    assert!(state.terminal && state.stderr.is_empty());
    fifos.write(b"word\n").await.unwrap();
    assert_eq!(task.wait(&id, "tty").await.unwrap().status, 0);
    task.delete(&id, "tty").await.unwrap();
    let (stdout, _) = fifos.output(SOON).await.unwrap();
    assert_eq!(
        String::from_utf8(stdout).unwrap(),
        "word\r\n42 101\r\ngot word\r\n"
    );
    assert_eq!(threads(&pod), 1);
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn containers_of_the_control_socket_are_none_of_containerds_and_end_with_its_pod() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    // Nobody but the socket hears of this one.
    let bundle = prepared(&pod, &images, &SLEEP).await;
    let spec = std::fs::read(bundle.bundle().path().join("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let layers = images.busybox.layers().iter();
    let mut layers = layers.filter(|layer| layer.join("bin/busybox").exists());
    spec["root"]["path"] = serde_json::json!(layers.next().unwrap());
    let socket = format!("/run/berm/{}/{}/control.sock", node.namespace(), pod.id());
    let mut client = berm_sandbox::urpc::Client::connect(Path::new(&socket)).unwrap();
    let mut call = |method: &str, arg: serde_json::Value| {
        let method = format!("containerManager.{method}");
        let called: (serde_json::Value, _) = client.call(&method, &arg, &[]).unwrap();
        called.0
    };
    call("CreateSubcontainer", serde_json::json!({"CID": "own"}));
    call("CreateSubcontainer", serde_json::json!({"CID": "taken"}));
    call(
        "StartSubcontainer",
        serde_json::json!({"CID": "own", "Spec": spec}),
    );
    assert_eq!(call("ContainerRuntimeState", "own".into()), 2);

    let task = container.task().unwrap().clone();
    for id in ["own", "taken"] {
        let answers = [
            kind(task.state(id, "").await),
            kind(task.start(id, "").await),
            kind(task.kill(id, "", SIGKILL, true).await),
            kind(task.delete(id, "").await),
            kind(task.wait(id, "").await),
            kind(task.pids(id).await),
            kind(task.stats(id).await),
            kind(task.pause(id).await),
        ];
        assert_eq!(answers, [Some(Kind::NotFound); 8], "{id}");
        assert_eq!(task.connect(id).await.unwrap().task_pid, 0);
    }
    assert_eq!(call("ContainerRuntimeState", "own".into()), 2);
    pod.stop(vec![container]).await.unwrap();
    assert_eq!(node.events().of("own").len(), 0);
    assert!(!Path::new(&socket).exists());
}

#[tokio::test]
async fn stacks_of_a_pod_tell_which_calls_of_containerds_are_open() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let id = container.id().to_owned();
    let socket = format!("/run/berm/{}/{}/control.sock", node.namespace(), pod.id());
    let stacks = || {
        let mut client = berm_sandbox::urpc::Client::connect(Path::new(&socket)).unwrap();
        let told: (String, _) = client.call("debug.Stacks", &(), &[]).unwrap();
        told.0
    };
    let task = container.task().unwrap().clone();
    let waiting = tokio::spawn({
        let id = id.clone();
        async move { task.wait(&id, "").await }
    });
    let open = format!(" s Task.Wait {id}\n");
    // Asked until the call has come: nothing tells when it does.
    let seen = async {
        while !stacks().contains(&open) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, seen).await.unwrap();
    let task = container.task().unwrap();
    task.kill(&id, "", SIGKILL, false).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().status, 137);
    assert!(!stacks().contains(&open));
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_while_containers_are_left_is_remembered() {
    let node = node().await;
    let images = Images::of(&node);
    let mut pod = pod(&node, &images, &berm()).await;
    let mut container = started(&pod, &images, &SLEEP).await;
    // The sandbox goes first: its containers die with it.
    pod.stop_sandbox().await.unwrap();
    let exit = container.wait().await.unwrap();
    assert_eq!(exit.status, 137);
    let task = container.task().unwrap().clone();
    task.delete(container.id(), "").await.unwrap();
    pod.shim_exited().await.unwrap();
}

#[tokio::test]
async fn the_older_generation_is_answered_plainly_and_served_as_version_2() {
    let node = node().await;
    let images = Images::of(&node);
    for generation in [Generation::V1_6, Generation::V1_7, Generation::V2_0] {
        let binary = berm().generation(generation);
        let pod = pod(&node, &images, &binary).await;
        assert_eq!(pod.shim().unwrap().answer().version, 2);
        let container = started(&pod, &images, &SLEEP).await;
        let address = std::fs::read_to_string(container.bundle().path().join("address")).unwrap();
        assert_eq!(address, pod.shim().unwrap().answer().address);
        assert_eq!(
            container.exec("e1", &["/bin/true"]).await.unwrap().status,
            0
        );
        pod.stop(vec![container]).await.unwrap();
    }
}

#[tokio::test]
async fn delete_harms_nobody_while_the_shim_lives_and_cleans_up_when_it_is_dead() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let answer = berm().delete(&node, pod.bundle()).await.unwrap();
    assert_eq!(answer.status, 137);
    let state = container
        .task()
        .unwrap()
        .state(container.id(), "")
        .await
        .unwrap();
    assert_eq!(
        container.exec("e1", &["/bin/true"]).await.unwrap().status,
        0
    );

    let shim = pod.shim().unwrap().process();
    shim.kill().unwrap();
    shim.ended(SOON).await.unwrap();
    let sandbox = pod.pid().unwrap();
    // The orphans are this process's now, and PID 1 goes only after whatever it left is reaped.
    let orphans = [state.pid, sandbox].map(|pid| Process::open(pid).unwrap());
    let berm = berm();
    let (answer, first, second) = tokio::join!(
        berm.delete(&node, pod.bundle()),
        orphans[0].ended(SOON),
        orphans[1].ended(SOON)
    );
    first.unwrap();
    second.unwrap();
    assert_eq!(answer.unwrap().status, 137);
    for pid in [state.pid, sandbox] {
        assert!(
            !Path::new(&format!("/proc/{pid}/exe")).exists(),
            "{pid} is left"
        );
    }
    assert_eq!(node.cgroup().left(), Vec::<std::path::PathBuf>::new());
    assert!(
        !Path::new("/run/berm")
            .join(node.namespace())
            .join(pod.id())
            .exists()
    );
    for _ in 0..2 {
        assert_eq!(berm.delete(&node, pod.bundle()).await.unwrap().status, 137);
    }
}

#[tokio::test]
async fn a_signal_ends_the_pod_and_every_exit_is_told() {
    let node = node().await;
    let images = Images::of(&node);
    let pod = pod(&node, &images, &berm()).await;
    let container = started(&pod, &images, &SLEEP).await;
    let shim = pod.shim().unwrap().process();
    let pid = rustix::process::Pid::from_raw(i32::try_from(shim.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    for id in [container.id(), pod.id()] {
        let exited = |event: &Event| matches!(&event.body, Body::Exit(exit) if exit.id == id);
        let exit = node
            .events()
            .wait_for("TaskExit", SOON, exited)
            .await
            .unwrap();
        assert!(matches!(exit.body, Body::Exit(exit) if exit.exit_status == 137));
    }
    shim.ended(SOON).await.unwrap();
    assert_eq!(node.cgroup().left(), Vec::<std::path::PathBuf>::new());
}
