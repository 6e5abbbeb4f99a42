//! Every list of steps keeps the order that the kernel asks for.

use berm_plan::{ContainerFacts, Step, exec};

use crate::device::on_a_device;
use crate::given::{Given, base, facts, names, ns};

/// Steps that need the host's credentials.
const AS_HOST: [&str; 18] = [
    "Seal",
    "JoinCgroups",
    "OomScoreAdj",
    "JoinNetIpc",
    "RootfsUpper",
    "Rootfs",
    "Mount",
    "Pty",
    "Assemble",
    "Devices",
    "Links",
    "Console",
    "MakeDir",
    "Mask",
    "ReadonlyPaths",
    "ReadonlyRoot",
    "Pivot",
    "StdioOwner",
];

/// What must come before what, where both are there.
const BEFORE: [(&str, &str); 39] = [
    // A mount or a device finds the namespace it belongs to.
    ("JoinNetIpc", "Mount"),
    ("NetDevices", "JoinNetIpc"),
    // All that is new is labelled.
    ("MountLabel", "Rootfs"),
    ("MountLabel", "Mount"),
    ("RootfsUpper", "Rootfs"),
    ("Rootfs", "Mount"),
    ("Mount", "Assemble"),
    ("Mount", "Pty"),
    ("Pty", "Console"),
    ("Pty", "Assemble"),
    ("Assemble", "Devices"),
    ("Devices", "Links"),
    ("Links", "Console"),
    ("MakeDir", "ReadonlyRoot"),
    ("Mask", "Pivot"),
    ("ReadonlyPaths", "Pivot"),
    ("ReadonlyRoot", "Pivot"),
    // Limits are raised by the host, and everything is locked before the workload is born.
    ("Rlimits", "JoinPod"),
    ("JoinCgroups", "JoinPod"),
    ("JoinCgroups", "Assemble"),
    ("JoinPod", "LockMounts"),
    // A keyring is of the pod's user namespace and within the quota of its root.
    ("JoinPod", "NewKeyring"),
    ("NewKeyring", "CloneInit"),
    ("JoinContainer", "JoinKeyring"),
    ("JoinKeyring", "User"),
    ("LockMounts", "CloneInit"),
    ("CloneInit", "Session"),
    ("CloneInit", "MountProc"),
    ("MountProc", "MaskProc"),
    ("MountProc", "ReadonlyProc"),
    // The command is looked up, and reported missing, before the container counts as created.
    ("ResolveExec", "Gate"),
    ("Gate", "User"),
    ("Cwd", "User"),
    ("Bounding", "User"),
    ("User", "Capabilities"),
    ("Capabilities", "NoNewPrivs"),
    ("NoNewPrivs", "Seccomp"),
    ("Seccomp", "Exec"),
    ("JoinContainer", "Session"),
];

fn check(steps: &[Step]) {
    let names = names(steps);
    let last = |name: &str| names.iter().rposition(|n| *n == name);
    let first = |name: &str| names.iter().position(|n| *n == name);
    for (before, after) in BEFORE {
        if let (Some(before_at), Some(after_at)) = (last(before), first(after)) {
            assert!(
                before_at < after_at,
                "{before} comes after {after} in {names:?}"
            );
        }
    }
    let crossing = first("JoinPod").or_else(|| first("JoinContainer")).unwrap();
    for name in AS_HOST {
        assert!(
            last(name) < Some(crossing),
            "{name} comes after the crossing in {names:?}"
        );
    }
    for name in names
        .iter()
        .filter(|n| !matches!(**n, "Mount" | "MakeDir" | "MountProc"))
    {
        assert_eq!(
            first(name),
            last(name),
            "{name} is there twice in {names:?}"
        );
    }
    assert_eq!(
        (first("Seal"), first("Exec")),
        (Some(0), Some(names.len() - 1))
    );
    let has = |name: &str| first(name).is_some();
    assert_eq!(has("Pty"), !has("StdioOwner"));
    for step in steps {
        if let Step::Capabilities { keep_sys_admin, .. } = step {
            assert_eq!(*keep_sys_admin, has("Seccomp") && !has("NoNewPrivs"));
        }
    }
}

/// One bit of a combination: how it changes a spec.
type Change = fn(Given) -> Given;

const CHANGES: [Change; 10] = [
    |g| g.set("/root/readonly", true),
    |g| g.without("/linux/seccomp"),
    |g| g.set("/process/noNewPrivileges", true),
    |g| g.without("/process/oomScoreAdj"),
    |g| g.set("/process/cwd", "/srv"),
    |g| {
        g.set(
            "/linux/namespaces/0",
            serde_json::json!({"type": "pid", "path": ns("pid")}),
        )
    },
    |g| {
        g.without("/linux/maskedPaths")
            .set("/linux/readonlyPaths", vec!["/etc".to_owned()])
    },
    |g| {
        let limit = serde_json::json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
        g.set("/process/rlimits", limit)
    },
    |g| g.set("/process/user/uid", 1000),
    |g| {
        g.set("/linux/mountLabel", "a_u:b_r:c_t:s0")
            .set("/linux/netDevices", serde_json::json!({"eth1": {}}))
    },
];

#[test]
fn every_combination_of_what_a_container_asks_for_keeps_the_order() {
    for bits in 0..1_u32 << CHANGES.len() {
        let mut given = Given::cri_container();
        for (bit, change) in CHANGES.iter().enumerate() {
            if bits & (1 << bit) != 0 {
                given = change(given);
            }
        }
        let spec = given.spec();
        for (terminal, device) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut facts = ContainerFacts {
                terminal,
                ..facts()
            };
            if device {
                facts.rootfs = on_a_device(None);
                facts.rootfs_upper = "memory".parse().unwrap();
            }
            let plan = berm_plan::container(&spec, &facts).unwrap();
            check(&plan.steps);
            let process = given.0["process"].to_string();
            check(
                &exec(process.as_bytes(), terminal, &plan.exec)
                    .unwrap()
                    .steps,
            );
        }
    }
}

#[test]
fn the_smallest_exec_keeps_the_order() {
    for terminal in [false, true] {
        let json = br#"{"user":{},"cwd":"/","args":["id"]}"#;
        check(&exec(json, terminal, &base()).unwrap().steps);
    }
}
