//! The real specs of containerd, planned.

use std::path::{Path, PathBuf};

use berm_plan::{
    Atime, Attr, CapSets, Device, DeviceKind, Extent, IdMap, Idmap, Ids, Mount, Namespace, PidNs,
    PodFacts, Policy, Propagate, Propagation, Recursive, Rlimit, Source, Step, SysctlWriter,
    TaskKind, UserNs, exec, pod,
};

use crate::given::{Given, auto_ids, base, facts, names, ns, only, root_facts};

/// Every step of a CRI container that is no mount, in order.
const CRI: [&str; 30] = [
    "Seal",
    "JoinCgroups",
    "OomScoreAdj",
    "JoinNetIpc",
    "Rootfs",
    "Mount",
    "Assemble",
    "MakeDir",
    "Devices",
    "Links",
    "Mask",
    "Pivot",
    "StdioOwner",
    "JoinPod",
    "NewKeyring",
    "LockMounts",
    "CloneInit",
    "Session",
    "MountProc",
    "MaskProc",
    "ReadonlyProc",
    "Stdio",
    "ResolveExec",
    "Gate",
    "Umask",
    "Cwd",
    "Bounding",
    "User",
    "Capabilities",
    "Seccomp",
];

fn without_repeats(mut names: Vec<&'static str>) -> Vec<&'static str> {
    names.dedup();
    names
}

#[test]
fn a_cri_container_walks_these_steps() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let mut want = CRI.to_vec();
    want.push("Exec");
    assert_eq!(without_repeats(names(&plan.steps)), want);
    assert!(plan.pidns == PidNs::Own);
    assert!(plan.exec.seccomp.is_some());
}

#[test]
fn the_mounts_of_a_cri_container_keep_their_order() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let mounts = plan.steps.iter().filter_map(|s| match s {
        Step::Mount(mount) => Some((mount.index, mount.target.to_str().unwrap())),
        _ => None,
    });
    let want = [
        (1, "/dev"),
        (2, "/dev/pts"),
        (3, "/dev/mqueue"),
        (4, "/sys"),
        (5, "/sys/fs/cgroup"),
        (6, "/data"),
        (7, "/etc/hosts"),
        (8, "/dev/termination-log"),
        (9, "/etc/hostname"),
        (10, "/etc/resolv.conf"),
        (11, "/dev/shm"),
        (12, "/var/run/secrets/kubernetes.io/serviceaccount"),
    ];
    assert_eq!(mounts.collect::<Vec<_>>(), want);
}

#[test]
fn each_kind_of_mount_says_what_the_host_has_to_do() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let mount = |target: &str| {
        only(&plan.steps, |s| match s {
            Step::Mount(m) if m.target == Path::new(target) => Some(m.clone()),
            _ => None,
        })
    };
    let attr = Attr::default();
    let strict = Attr {
        nosuid: true,
        nodev: true,
        noexec: true,
        ..attr
    };
    let bind = |path: &str| Source::Bind {
        path: path.into(),
        recursive: true,
        idmap: Idmap::Pod,
    };
    let want = |index, target: &str, source, attr| Mount {
        index,
        target: target.into(),
        source,
        attr,
        all: Recursive::default(),
        propagation: Vec::new(),
    };
    let volume = |index, target, path: &str, attr| Mount {
        propagation: vec![Propagate {
            kind: Propagation::Private,
            recursive: true,
        }],
        ..want(index, target, bind(path), attr)
    };
    let tmpfs = Source::Tmpfs {
        options: vec![
            ("mode".into(), "755".into()),
            ("size".into(), "65536k".into()),
        ],
        mode_of_target: false,
        copy_up: false,
    };
    let devpts = Source::Devpts {
        gid: Some(0x7000_0005),
        mode: "0620".into(),
        ptmxmode: "0666".into(),
    };
    let cases = [
        want(
            1,
            "/dev",
            tmpfs,
            Attr {
                nosuid: true,
                atime: Atime::Strictatime,
                ..attr
            },
        ),
        want(
            2,
            "/dev/pts",
            devpts,
            Attr {
                nosuid: true,
                noexec: true,
                ..attr
            },
        ),
        want(3, "/dev/mqueue", Source::Mqueue, strict),
        want(4, "/sys", Source::Sysfs, Attr { ro: true, ..strict }),
        want(
            5,
            "/sys/fs/cgroup",
            Source::Cgroup(facts().cgroup_views),
            Attr {
                ro: true,
                atime: Atime::Relatime,
                ..strict
            },
        ),
        volume(6, "/data", "/pods/p1/volume", attr),
        volume(
            12,
            "/var/run/secrets/kubernetes.io/serviceaccount",
            "/pods/p1/serviceaccount",
            Attr { ro: true, ..attr },
        ),
    ];
    for case in cases {
        assert_eq!(mount(case.target.to_str().unwrap()), case);
    }
}

#[test]
fn paths_on_proc_are_hidden_by_the_workload_and_the_others_by_the_host() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let mask = only(&plan.steps, |s| {
        if let Step::Mask(p) = s { Some(p) } else { None }
    });
    assert_eq!(
        *mask,
        ["/sys/firmware", "/sys/devices/virtual/powercap"].map(PathBuf::from)
    );
    let on_proc = |paths: &[PathBuf]| paths.iter().all(|p| p.starts_with("/proc"));
    let mask = only(&plan.steps, |s| {
        if let Step::MaskProc(p) = s {
            Some(p)
        } else {
            None
        }
    });
    let readonly = only(&plan.steps, |s| {
        if let Step::ReadonlyProc(p) = s {
            Some(p)
        } else {
            None
        }
    });
    assert!(mask.len() == 10 && on_proc(mask), "{mask:?}");
    assert!(readonly.len() == 5 && on_proc(readonly), "{readonly:?}");
}

#[test]
fn a_proc_elsewhere_has_its_paths_hidden_by_the_workload_too() {
    let given = Given::cri_container()
        .mount("/other", "proc", "proc", &["ro"])
        .set(
            "/linux/maskedPaths",
            ["/other/kcore", "/etc/x"].map(String::from).to_vec(),
        );
    let plan = given.container(&facts()).unwrap();
    let mask = only(&plan.steps, |s| {
        if let Step::MaskProc(p) = s {
            Some(p)
        } else {
            None
        }
    });
    assert_eq!(*mask, [PathBuf::from("/other/kcore")]);
    let procs: Vec<_> = plan
        .steps
        .iter()
        .filter(|s| s.name() == "MountProc")
        .collect();
    let attr = Attr {
        ro: true,
        ..Attr::default()
    };
    assert_eq!(
        *procs[1],
        Step::MountProc {
            target: "/other".into(),
            attr,
            over: Vec::new(),
        }
    );
}

#[test]
fn a_file_over_proc_waits_for_it_on_a_stand_in() {
    let given = Given::cri_container().mount("/proc/meminfo", "bind", "/lxcfs/meminfo", &["bind"]);
    let plan = given.container(&facts()).unwrap();
    let targets: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|s| match s {
            Step::Mount(m) => Some(m.target.to_str().unwrap()),
            _ => None,
        })
        .collect();
    assert_eq!(targets[targets.len() - 2..], ["/proc", "/proc/meminfo"]);
    let over = only(&plan.steps, |s| match s {
        Step::MountProc { over, .. } => Some(over),
        _ => None,
    });
    assert_eq!(*over, [PathBuf::from("/proc/meminfo")]);
}

#[test]
fn ctr_run_is_a_pod_of_one() {
    let spec = Given::ctr_run().spec();
    assert_eq!(spec.kind(), &TaskKind::Root);
    let plan = pod(&spec, &Policy::default(), &PodFacts::default()).unwrap();
    assert_eq!((plan.userns, plan.netns), (UserNs::Auto, Namespace::New));
    assert!(!plan.pause && plan.sysctls.is_empty() && plan.hostname.is_none());
    assert_eq!(plan.cgroup.as_deref(), Some("/default/t1"));

    let plan = Given::ctr_run().container(&root_facts()).unwrap();
    let mut want = CRI.to_vec();
    want.retain(|name| *name != "OomScoreAdj");
    want.insert(
        want.iter().position(|n| *n == "JoinPod").unwrap(),
        "Rlimits",
    );
    want.insert(
        want.iter().position(|n| *n == "Seccomp").unwrap(),
        "NoNewPrivs",
    );
    want.push("Exec");
    assert_eq!(without_repeats(names(&plan.steps)), want);
    let limits = only(&plan.steps, |s| {
        if let Step::Rlimits(l) = s {
            Some(l)
        } else {
            None
        }
    });
    assert_eq!(
        *limits,
        [Rlimit {
            name: "RLIMIT_NOFILE".into(),
            resource: 7,
            soft: 1024,
            hard: 1024
        }]
    );
    assert_eq!(plan.exec.rlimits, *limits);
}

#[test]
fn a_cri_sandbox_makes_a_pod_without_a_workload() {
    let given = Given::cri_sandbox();
    let spec = given.spec();
    assert_eq!(spec.kind(), &TaskKind::Sandbox);
    let plan = pod(&spec, &Policy::default(), &PodFacts::default()).unwrap();
    assert_eq!(plan.userns, UserNs::Auto);
    assert_eq!(plan.netns, Namespace::Path("/run/netns/cni-1".into()));
    assert_eq!(plan.hostname.as_deref(), Some("bench"));
    assert_eq!((plan.oom_score_adj, plan.pause), (Some(-998), true));
    assert_eq!(plan.resources.cpu.shares, Some(2));
    assert_eq!(plan.cgroup.as_deref(), Some("/kubepods/pod1/s1"));
    assert_eq!(plan.pod_name.as_deref(), Some("bench"));
    assert_eq!(plan.pod_namespace.as_deref(), Some("default"));
    let sysctls: Vec<_> = plan
        .sysctls
        .iter()
        .map(|s| (s.path.as_str(), s.writer))
        .collect();
    let host = SysctlWriter::Host;
    let want = [
        ("net/ipv4/ip_unprivileged_port_start", host),
        ("net/ipv4/ping_group_range", host),
    ];
    assert_eq!(sysctls, want);
    assert_eq!(
        plan.sysctls[1].value_for(&auto_ids()),
        "1879048192 1879113727"
    );
}

#[test]
fn low_ports_and_ping_are_opened_only_where_capabilities_are_dead() {
    let bare = Given::cri_sandbox().without("/linux/sysctl");
    let shut = Policy {
        open_low_ports_and_ping: false,
        ..Policy::default()
    };
    assert_eq!(bare.pod().unwrap().sysctls.len(), 2);
    assert_eq!(
        pod(&bare.spec(), &shut, &PodFacts::default())
            .unwrap()
            .sysctls,
        []
    );
    assert_eq!(Given::ctr_run().pod().unwrap().sysctls, []);
    assert_eq!(mapped(bare).pod().unwrap().sysctls, []);
}

/// As CRI writes a spec of a pod with `hostUsers: false`.
fn mapped(given: Given) -> Given {
    let map = serde_json::json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
    given
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set(
            "/linux/namespaces/-",
            serde_json::json!({"type": "user", "path": ns("user")}),
        )
}

fn mapped_ids() -> Ids {
    let map = || {
        IdMap(vec![Extent {
            inside: 0,
            outside: 131_072,
            count: 65_536,
        }])
    };
    Ids {
        uids: map(),
        gids: map(),
    }
}

#[test]
fn a_pod_without_host_users_is_planned_with_its_mappings() {
    let plan = mapped(Given::cri_sandbox()).pod().unwrap();
    assert_eq!(plan.userns, UserNs::Path(ns("user").into(), mapped_ids()));
    let last = "/linux/namespaces/5";
    let plan = mapped(Given::cri_sandbox()).set(last, serde_json::json!({"type": "user"}));
    assert_eq!(plan.pod().unwrap().userns, UserNs::Mapped(mapped_ids()));

    let facts = berm_plan::ContainerFacts {
        ids: mapped_ids(),
        owns_netns: true,
        ..facts()
    };
    let list = serde_json::json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
    let given = mapped(Given::cri_container())
        .set("/mounts/6/uidMappings", list.clone())
        .set("/mounts/6/gidMappings", list);
    given.container(&facts).unwrap();
    let same = given.set(last, serde_json::json!({"type": "user"}));
    same.container(&facts).unwrap();
}

#[test]
fn a_container_may_share_the_pods_pid_namespace() {
    let given = Given::cri_container().set(
        "/linux/namespaces/0",
        serde_json::json!({"type": "pid", "path": ns("pid")}),
    );
    let plan = given.container(&facts()).unwrap();
    assert!(plan.pidns == PidNs::Pod);
    assert!(plan.steps.contains(&Step::CloneInit { own_pidns: false }));
}

#[test]
fn a_terminal_is_opened_on_the_containers_devpts() {
    let given = Given::cri_container()
        .set(
            "/process/consoleSize",
            serde_json::json!({"height": 24, "width": 80}),
        )
        .set("/process/user/uid", 1000);
    let facts = berm_plan::ContainerFacts {
        terminal: true,
        ..facts()
    };
    let plan = given.container(&facts).unwrap();
    let at = |name| names(&plan.steps).iter().position(|n| *n == name);
    assert!(plan.steps.contains(&Step::Pty {
        size: Some((24, 80)),
        uid: 1000
    }));
    assert!(at("Pty") < at("Assemble") && at("Links") < at("Console"));
    assert_eq!(at("StdioOwner"), None);
}

#[test]
fn the_end_of_a_container_is_its_process() {
    let given = Given::cri_container()
        .set(
            "/process/user",
            serde_json::json!({"uid": 1, "gid": 2, "additionalGids": [3, 65_535], "umask": 63}),
        )
        .set("/process/cwd", "/srv/x")
        .set(
            "/process/env",
            ["A=1", "PATH=/x", "A=2", "HOME=/h", "B="]
                .map(String::from)
                .to_vec(),
        );
    let plan = given.container(&facts()).unwrap();
    let default = 0xa804_25fb;
    let sets = CapSets {
        bounding: default,
        effective: default,
        permitted: default,
        ..CapSets::default()
    };
    let want = [
        Step::ResolveExec {
            command: "/bin/sleep".into(),
            path: Some("/x".into()),
            cwd: "/srv/x".into(),
            home_of: None,
        },
        Step::Gate,
        Step::Umask(0o077),
        Step::Cwd("/srv/x".into()),
        Step::Bounding(default),
        Step::User {
            uid: 1,
            gid: 2,
            groups: vec![3, 65_535],
        },
        Step::Capabilities {
            sets,
            keep_sys_admin: true,
        },
        Step::Seccomp(plan.exec.seccomp.clone().unwrap()),
        Step::Exec {
            args: vec!["/bin/sleep".into(), "infinity".into()],
            env: ["PATH=/x", "A=2", "HOME=/h", "B="]
                .map(String::from)
                .to_vec(),
        },
    ];
    assert_eq!(plan.steps[plan.steps.len() - want.len()..], want);
    assert!(plan.steps.contains(&Step::MakeDir("/srv/x".into())));
    assert!(plan.steps.contains(&Step::StdioOwner(1, 2)));
}

#[test]
fn devices_are_runcs_defaults_and_the_specs() {
    let own = serde_json::json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 8630, "uid": 5, "gid": 6},
        {"path": "/dev//null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/pipe", "type": "p"}]);
    let plan = Given::cri_container()
        .set("/linux/devices", own)
        .container(&facts())
        .unwrap();
    let nodes = only(&plan.steps, |s| {
        if let Step::Devices(d) = s {
            Some(d)
        } else {
            None
        }
    });
    let paths: Vec<_> = nodes.iter().map(|d| d.path.to_str().unwrap()).collect();
    let want = [
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
        "/dev/fuse",
        "/dev/null",
        "/dev/pipe",
    ];
    assert_eq!(paths, want);
    let (major, minor) = (10, 229);
    let fuse = Device {
        path: "/dev/fuse".into(),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o666,
        uid: 5,
        gid: 6,
    };
    assert_eq!(nodes[5], fuse);
    assert_eq!((nodes[7].kind, nodes[7].major), (DeviceKind::Fifo, 0));
    let links = only(&plan.steps, |s| {
        if let Step::Links(l) = s {
            Some(l)
        } else {
            None
        }
    });
    assert!(links.contains(&("/dev/ptmx".into(), "pts/ptmx".into())));
    // The spec's own /dev/null has no rule, so the default rule for it is gone too, as in runc.
    assert_eq!(plan.resources.devices.unwrap().len(), 1 + 9);
}

#[test]
fn a_bind_mounted_dev_is_left_as_it_is() {
    let bind = serde_json::json!(
        {"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]});
    let fuse = serde_json::json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    let given = Given::cri_container()
        .set("/mounts/1", bind)
        .set("/linux/devices", fuse);
    let plan = given.container(&facts()).unwrap();
    let names = names(&plan.steps);
    assert!(!names.contains(&"Devices") && !names.contains(&"Links"));
}

#[test]
fn an_exec_walks_these_steps_and_inherits_the_filter() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let mut process = Given::cri_container().0["process"].clone();
    process["oomScoreAdj"].take();
    let want = [
        "Seal",
        "JoinCgroups",
        "StdioOwner",
        "JoinContainer",
        "JoinKeyring",
        "Session",
        "Stdio",
        "Umask",
        "Cwd",
        "ResolveExec",
        "Bounding",
        "User",
        "Capabilities",
        "Seccomp",
        "Exec",
    ];
    let json = process.to_string();
    let got = exec(json.as_bytes(), false, &plan.exec).unwrap();
    assert_eq!(names(&got.steps), want);
    let got = exec(json.as_bytes(), true, &plan.exec).unwrap();
    assert_eq!(names(&got.steps)[2], "Pty");

    process["oomScoreAdj"] = 7.into();
    process["noNewPrivileges"] = true.into();
    process["rlimits"] = serde_json::json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    let got = exec(process.to_string().as_bytes(), false, &plan.exec).unwrap();
    let want = [
        "Seal",
        "JoinCgroups",
        "OomScoreAdj",
        "StdioOwner",
        "Rlimits",
        "JoinContainer",
        "JoinKeyring",
        "Session",
        "Stdio",
        "Umask",
        "Cwd",
        "ResolveExec",
        "Bounding",
        "User",
        "Capabilities",
        "NoNewPrivs",
        "Seccomp",
        "Exec",
    ];
    assert_eq!(names(&got.steps), want);
}

#[test]
fn an_exec_that_names_no_capabilities_or_limits_has_its_containers() {
    let sets = CapSets {
        bounding: 1,
        permitted: 1,
        ..CapSets::default()
    };
    let limit = Rlimit {
        name: "RLIMIT_CORE".into(),
        resource: 4,
        soft: 1,
        hard: 2,
    };
    let base = berm_plan::ExecBase {
        capabilities: sets,
        rlimits: vec![limit.clone()],
        ..base()
    };
    let json = br#"{"user":{},"cwd":"/","args":["id"]}"#;
    let got = exec(json, false, &base).unwrap();
    assert!(got.steps.contains(&Step::Capabilities {
        sets,
        keep_sys_admin: false
    }));
    assert!(got.steps.contains(&Step::Rlimits(vec![limit])));
    let json = br#"{"user":{},"cwd":"/","args":["id"],"capabilities":{},"rlimits":[]}"#;
    let got = exec(json, false, &base).unwrap();
    assert!(got.steps.contains(&Step::Bounding(0)));
    assert!(!names(&got.steps).contains(&"Rlimits"));
}

#[test]
fn home_is_looked_up_only_where_it_is_missing() {
    let home_of = |uid: u32, env: &[&str]| {
        let json = serde_json::json!({"user": {"uid": uid}, "cwd": "/", "args": ["x"], "env": env});
        let plan = exec(json.to_string().as_bytes(), false, &base()).unwrap();
        let looked_up = plan.steps.iter().find_map(|step| match step {
            Step::ResolveExec { home_of, .. } => Some(*home_of),
            _ => None,
        });
        looked_up.unwrap()
    };
    assert_eq!(home_of(0, &["HOME=/x"]), None);
    assert_eq!(home_of(0, &[]), Some(0));
    assert_eq!(home_of(33, &["A=b"]), Some(33));
}

#[test]
fn plans_survive_json_because_records_hold_them() {
    let plan = Given::cri_container().container(&facts()).unwrap();
    let json = serde_json::to_vec(&plan).unwrap();
    assert_eq!(
        serde_json::from_slice::<berm_plan::ContainerPlan>(&json).unwrap(),
        plan
    );
    let plan = mapped(Given::cri_sandbox()).pod().unwrap();
    let json = serde_json::to_vec(&plan).unwrap();
    assert_eq!(
        serde_json::from_slice::<berm_plan::PodPlan>(&json).unwrap(),
        plan
    );
}
