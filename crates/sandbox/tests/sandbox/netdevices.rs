//! `linux.netDevices`, on a node that is a network namespace of the case's own.

use std::process::Command;

use berm_sys::Kind;
use berm_sys::process::{flags, unshare};
use berm_testkit::cases::Case;
use serde_json::json;

use crate::figures::until;
use crate::world::{Pod, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_device_moves_with_all_that_it_is_and_ends_with_the_pod,
    the_devices_of_a_sandbox_are_there_for_all_its_containers,
    devices_that_cannot_be_moved_are_refused_and_the_node_is_as_it_was,
];

/// ip(8) on the node.
fn ip(args: &str) -> String {
    let done = Command::new("ip").args(args.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {args}: {errors}");
    String::from_utf8(done.stdout).unwrap()
}

/// Runs a case on a node with loopback and two devices, `here1` and `here2`, and their peers.
fn node(body: impl AsyncFnOnce(&World)) {
    unshare(flags::NEWNET).unwrap();
    for n in [1, 2] {
        ip(&format!("link add here{n} type veth peer name peer{n}"));
        ip(&format!("link set peer{n} up"));
        ip(&format!(
            "link set here{n} mtu 1280 address 02:00:00:00:00:0{n}"
        ));
        ip(&format!(
            "addr add 192.0.2.{n}/24 brd 192.0.2.77 dev here{n}"
        ));
        ip(&format!("addr add 2001:db8::{n}/64 dev here{n} nodad"));
        ip(&format!("addr add 169.254.1.{n}/16 scope link dev here{n}"));
        ip(&format!("link set here{n} up"));
    }
    world(body);
}

/// What a container sees of a device.
async fn seen(pod: &Pod<'_>, name: &str) -> String {
    let container = pod.container(&["/bin/busybox", "ip", "addr", "show", "dev", name]);
    container.output().await.1
}

/// What there is to be seen of `hereN` in a pod where it has this name.
fn check(text: &str, n: u32, name: &str) {
    for part in [
        format!(": {name}@"),
        ",UP".into(),
        "mtu 1280".into(),
        format!("link/ether 02:00:00:00:00:0{n} "),
        format!("inet 192.0.2.{n}/24 brd 192.0.2.77 scope global"),
        format!("inet6 2001:db8::{n}/64 scope global"),
    ] {
        assert!(text.contains(&part), "{part} is not in {text}");
    }
    // It was of this link alone.
    assert!(!text.contains("169.254"), "{text}");
}

fn names() -> Vec<String> {
    let lines = ip("-br link");
    let first = |line: &str| line.split(['@', ' ']).next().unwrap_or_default().to_owned();
    lines.lines().map(first).collect()
}

/// How the node's devices are configured. Their numbers may be others, and addresses that the
/// kernel makes come and go with the device.
fn configured() -> Vec<String> {
    let text = ip("-o addr") + &ip("-o link");
    let lines = text.lines().filter(|line| !line.contains("fe80::"));
    let without_number = |line: &str| line.split_once(": ").unwrap().1.to_owned();
    let mut lines: Vec<_> = lines.map(without_number).collect();
    lines.sort();
    lines
}

fn a_device_moves_with_all_that_it_is_and_ends_with_the_pod() {
    node(async |w| {
        let pod = w.pod().await;
        let devices = json!({"here1": {"name": "net0"}, "here2": {}});
        let first = pod.sh("sleep 1000").set("/linux/netDevices", devices);
        let made = first.run().await;
        check(&seen(&pod, "net0").await, 1, "net0");
        check(&seen(&pod, "here2").await, 2, "here2");
        assert_eq!(names(), ["lo", "peer1", "peer2"]);
        made.end().await;
        // They are the network namespace's, which is the pod's.
        check(&seen(&pod, "net0").await, 1, "net0");
        pod.end().await;
        pod.sandbox.destroy().await;
        // The kernel takes a network namespace apart in the background.
        until("only lo is left", || names() == ["lo"]).await;
    });
}

fn the_devices_of_a_sandbox_are_there_for_all_its_containers() {
    node(async |w| {
        let devices = json!({"here1": {}});
        let pod = w
            .pod_with(|spec| spec["linux"]["netDevices"] = devices)
            .await;
        check(&seen(&pod, "here1").await, 1, "here1");
        let missing = json!({"here9": {}});
        let refused = w
            .try_pod(|spec| spec["linux"]["netDevices"] = missing)
            .await;
        let error = refused.map(drop).unwrap_err();
        let want = "step 1 NetDevices: linux.netDevices[\"here9\"]: the node's network namespace has no device of this \
            name; name one that it has";
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (Kind::FailedPrecondition, want)
        );
    });
}

fn devices_that_cannot_be_moved_are_refused_and_the_node_is_as_it_was() {
    node(async |w| {
        let pod = w.pod().await;
        // The kernel tells up to a second later that a link is up.
        until("all are up", || {
            ip("-o link").matches("state UP").count() == 4
        })
        .await;
        let before = configured();
        for (devices, kind, want) in [
            (
                json!({"here1": {}, "here2": {"name": "lo"}}),
                Kind::FailedPrecondition,
                "linux.netDevices[\"here2\"]: the pod has a network device \"lo\" already",
            ),
            (
                json!({"here1": {"name": "net0"}, "here2": {}, "no-such": {}}),
                Kind::FailedPrecondition,
                "linux.netDevices[\"no-such\"]: the node's network namespace has no device",
            ),
            (
                json!({"here2": {}, "lo": {"name": "lo1"}}),
                Kind::NotSupported,
                "linux.netDevices[\"lo\"]: the kernel does not move this device",
            ),
        ] {
            let container = pod.sh("true").set("/linux/netDevices", devices);
            let error = container.refused().await;
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(want), "{error}");
            let there = seen(&pod, "net0").await + &seen(&pod, "here2").await;
            assert_eq!(there.matches("can't find device").count(), 2, "{there}");
            until("they are as they were", || configured() == before).await;
        }
    });
}
