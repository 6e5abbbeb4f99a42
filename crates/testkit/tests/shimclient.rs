//! The shim client against containerd's own shim and runc. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use berm_sys::Kind;
use berm_testkit::peers::Peers;
use berm_testkit::shimclient::{
    Body, Bundle, Container, Event, Generation, Image, Node, Pod, ShimBinary, write_program,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::protobuf::Message;

const SLEEP: [&str; 2] = ["/bin/sleep", "infinity"];
const SOON: Duration = Duration::from_secs(60);

fn runc() -> ShimBinary {
    let peers = Peers::ensure().unwrap();
    let runc = peers.find("runc").unwrap();
    let shim = peers.find("containerd-shim-runc-v2").unwrap();
    ShimBinary::new(shim).runc_options(runc.to_str().unwrap())
}

async fn pod<'n>(node: &'n Node, binary: &ShimBinary) -> (Pod<'n>, Container) {
    let image = Image::busybox(node).unwrap();
    let mut pod = Pod::prepare(node, binary, &Image::pause(node).unwrap()).unwrap();
    pod.start_shim().await.unwrap();
    pod.run().await.unwrap();
    let mut container = pod.prepare_container(&image, &SLEEP).await.unwrap();
    container.start().await.unwrap();
    (pod, container)
}

/// The event kinds of a container in order, `exit` with the id of its process.
fn story(node: &Node, container_id: &str) -> Vec<String> {
    let events = node.events().of(container_id);
    let word = |body: &Body| match body {
        Body::Exit(exit) if exit.id != exit.container_id => format!("exit {}", exit.id),
        body => format!("{body:?}")
            .split('(')
            .next()
            .unwrap()
            .to_lowercase(),
    };
    events.iter().map(|event| word(&event.body)).collect()
}

fn cgroups_and_dir(node: &Node) -> (Vec<PathBuf>, PathBuf) {
    (node.cgroup().directories(), node.dir().to_owned())
}

fn mounts_below(dir: &Path) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| line.contains(dir.to_str().unwrap()))
        .count()
}

#[tokio::test]
async fn a_pod_runs_execs_tells_its_events_in_order_and_leaves_nothing() {
    let node = Node::new("berm-test").await.unwrap();
    let (pod, container) = pod(&node, &runc()).await;
    let id = container.id().to_owned();
    let output = container
        .exec("e1", &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
        .await;
    let output = output.unwrap();
    assert_eq!(
        (output.status, &*output.stdout, &*output.stderr),
        (7, &b"out\n"[..], &b"err\n"[..])
    );
    let unknown = pod.task().unwrap().state("nobody", "").await.unwrap_err();
    assert_eq!(unknown.kind(), Kind::NotFound, "{unknown}");

    let (cgroups, dir) = cgroups_and_dir(&node);
    pod.stop(vec![container]).await.unwrap();
    let deleted =
        |event: &Event| matches!(&event.body, Body::Delete(event) if event.container_id == id);
    node.events()
        .wait_for("TaskDelete", SOON, deleted)
        .await
        .unwrap();
    let told = [
        "create",
        "start",
        "execadded",
        "execstarted",
        "exit e1",
        "exit",
        "delete",
    ];
    assert_eq!(story(&node, &id), told);
    assert_eq!(node.cgroup().left(), Vec::<PathBuf>::new());
    drop(node);
    assert_eq!(mounts_below(&dir), 0);
    assert!(!dir.exists(), "{dir:?}");
    assert_eq!(cgroups.iter().find(|cgroup| cgroup.exists()), None);
}

#[tokio::test]
async fn a_node_dropped_in_mid_life_takes_processes_mounts_and_cgroups_with_it() {
    let node = Node::new("berm-test").await.unwrap();
    let (pod, container) = pod(&node, &runc()).await;
    let state = container
        .task()
        .unwrap()
        .state(container.id(), "")
        .await
        .unwrap();
    let shim = pod.shim().unwrap().process().pid();
    let pids = [shim, pod.pid().unwrap(), state.pid];
    let (cgroups, dir) = cgroups_and_dir(&node);
    assert!(!cgroups.is_empty() && mounts_below(&dir) > 0);
    drop((container, pod));
    drop(node);
    for pid in pids {
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} of {pids:?}"
        );
    }
    assert_eq!(mounts_below(&dir), 0);
    assert!(!dir.exists(), "{dir:?}");
    assert_eq!(cgroups.iter().find(|cgroup| cgroup.exists()), None);
}

/// A shim of one line: writes what it was given into the bundle and prints a plain address.
const RECORDER: &str = "#!/bin/sh\necho \"$@\" >args; env >env; cat >stdin; echo unix:///nowhere\n";

#[tokio::test]
async fn each_generation_gives_start_its_own_environment_and_input() {
    let node = Node::new("berm-test").await.unwrap();
    let script = node.dir().join("recorder");
    write_program(&script, RECORDER).unwrap();
    for (generation, environment, params) in [
        (Generation::V1_6, false, false),
        (Generation::V1_7, true, false),
        (Generation::V2_0, true, false),
        (Generation::V2_3, true, true),
    ] {
        let id = node.new_id();
        let bundle = Bundle::new(&node, &id, &serde_json::json!({}), Vec::new()).unwrap();
        let binary = ShimBinary::new(&script)
            .runc_options("crun")
            .generation(generation);
        let answer = binary.start(&node, &bundle).await.unwrap();
        assert_eq!((answer.version, &*answer.address), (2, "unix:///nowhere"));
        let read = |file| std::fs::read(bundle.path().join(file)).unwrap();
        let args = String::from_utf8(read("args")).unwrap();
        assert!(args.starts_with("-namespace k8s.io -address /") && args.ends_with("start\n"));
        let env = String::from_utf8(read("env")).unwrap();
        assert_eq!(
            env.contains("\nMAX_SHIM_VERSION=2\n"),
            environment,
            "{generation:?}"
        );
        assert!(env.contains("TTRPC_ADDRESS=/") && env.contains("GOMAXPROCS=2"));
        let input = BootstrapParams::parse_from_bytes(&read("stdin")).ok();
        let told = input.is_some_and(|params| params.instance_id == id);
        assert_eq!(told, params, "{generation:?}");
    }
}

#[tokio::test]
async fn events_go_on_after_the_endpoint_was_down() {
    let mut node = Node::new("berm-test").await.unwrap();
    node.events_mut().pause().await.unwrap();
    node.events_mut().resume().await.unwrap();
    let (pod, container) = pod(&node, &runc()).await;
    let started = |event: &Event| matches!(event.body, Body::Start(_));
    node.events()
        .wait_for("TaskStart", SOON, started)
        .await
        .unwrap();
    pod.stop(vec![container]).await.unwrap();
}

#[tokio::test]
async fn info_of_the_binary_is_read() {
    let info = runc().info().await.unwrap();
    assert_eq!(info.name, "io.containerd.runc.v2");
}
