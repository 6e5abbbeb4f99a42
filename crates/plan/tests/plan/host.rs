//! Pods without a user namespace: when, why, and when a node or a spec says no.

use berm_plan::{
    CgroupNs, CgroupView, ContainerFacts, HostShares, HostUsers, Ids, Mount, Namespace, PidNs,
    PodFacts, PodPlan, Policy, Source, Step, UserNs, pod,
};
use serde_json::json;

use crate::given::{Given, facts, ns, only};

const ALL: [(&str, &str); 5] = [
    ("pid", ""),
    ("ipc", ""),
    ("uts", ""),
    ("mount", ""),
    ("network", ""),
];

fn without(types: &[&str]) -> Given {
    let list: Vec<_> = ALL
        .into_iter()
        .filter(|(name, _)| !types.contains(name))
        .collect();
    Given::ctr_run().namespaces(&list)
}

fn writable_sys() -> Given {
    Given::cri_sandbox().set("/mounts/4/options", json!(["nosuid", "rw"]))
}

fn userns(given: &Given, policy: &Policy) -> UserNs {
    plan(given, policy).userns
}

fn plan(given: &Given, policy: &Policy) -> PodPlan {
    pod(&given.spec(), policy, &PodFacts::default()).unwrap()
}

fn annotated(value: &str) -> Given {
    Given::cri_sandbox().set("/annotations/dev.berm.userns", value)
}

fn allowing() -> Policy {
    Policy {
        allow_annotations: vec!["dev.berm.userns".into()],
        ..Policy::default()
    }
}

#[test]
fn a_pod_of_the_host_has_no_user_namespace_and_says_why() {
    let default = Policy::default();
    let host = Policy {
        host_users: true,
        ..allowing()
    };
    let cases = [
        (
            without(&["network", "uts"]),
            &default,
            HostUsers::HostNetwork,
        ),
        (without(&["pid"]), &default, HostUsers::HostPid),
        (without(&["ipc"]), &default, HostUsers::HostIpc),
        (writable_sys(), &default, HostUsers::Privileged),
        (annotated("host"), &allowing(), HostUsers::Annotation),
        (Given::cri_sandbox(), &host, HostUsers::Config),
        (
            without(&["pid", "ipc", "network"]),
            &host,
            HostUsers::HostNetwork,
        ),
    ];
    for (given, policy, because) in cases {
        assert_eq!(userns(&given, policy), UserNs::Host(because));
    }
    assert_eq!(userns(&annotated("auto"), &host), UserNs::Auto);
    // The host's name alone opens nothing.
    let plan = plan(&without(&["uts"]), &default);
    assert_eq!((plan.userns, plan.utsns), (UserNs::Auto, Namespace::Host));
}

#[test]
fn a_kernel_that_cannot_idmap_its_volumes_leaves_a_pod_the_user_namespace_that_it_brings() {
    let facts = PodFacts {
        volumes_without_idmap: true,
        ..PodFacts::default()
    };
    let asked = |given: &Given, policy: &Policy| pod(&given.spec(), policy, &facts);
    let map = json!([{"containerID": 0, "hostID": 524_288, "size": 65_536}]);
    let mapped = Given::cri_sandbox()
        .namespaces(&[ALL.as_slice(), &[("user", "")]].concat())
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    let cases = [
        (Given::cri_sandbox(), UserNs::Host(HostUsers::Kernel)),
        (without(&["pid"]), UserNs::Host(HostUsers::HostPid)),
        // As it was asked for; a volume that cannot be idmapped is refused then.
        (annotated("auto"), UserNs::Auto),
    ];
    for (given, want) in cases {
        assert_eq!(asked(&given, &allowing()).unwrap().userns, want);
    }
    let userns = asked(&mapped, &allowing()).unwrap().userns;
    assert!(matches!(userns, UserNs::Mapped(_)));
    let refusing = Policy {
        refuse_host_pods: true,
        ..allowing()
    };
    let error = asked(&Given::cri_sandbox(), &refusing).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("refuse_host_pods") && text.contains("6.3"),
        "{text}"
    );
    assert!(asked(&mapped, &refusing).is_ok());
}

#[test]
fn a_path_to_the_hosts_own_namespace_is_the_hosts() {
    let mut list = ALL;
    list[0].1 = "/proc/1/ns/pid";
    let spec = Given::ctr_run().namespaces(&list).spec();
    let facts = PodFacts {
        host_paths: vec!["/proc/1/ns/pid".into()],
        ..PodFacts::default()
    };
    let plan = pod(&spec, &Policy::default(), &facts).unwrap();
    assert_eq!(plan.userns, UserNs::Host(HostUsers::HostPid));
    assert_eq!(plan.pidns, Namespace::Host);
}

#[test]
fn a_mapped_pod_on_the_hosts_network_keeps_its_user_namespace() {
    let map = json!([{"containerID": 0, "hostID": 524_288, "size": 65_536}]);
    let given = Given::cri_sandbox()
        .namespaces(&[("pid", ""), ("ipc", ""), ("mount", ""), ("user", "")])
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .without("/hostname")
        .set("/linux/sysctl", json!({}));
    let plan = plan(&given, &Policy::default());
    assert!(matches!(plan.userns, UserNs::Mapped(_)));
    assert_eq!(plan.netns, Namespace::Host);
    assert_eq!(plan.sysctls, [], "they would be the host's");
}

#[test]
fn a_node_may_refuse_pods_of_the_host() {
    let strict = Policy {
        refuse_host_pods: true,
        ..allowing()
    };
    let map = json!([{"containerID": 0, "hostID": 524_288, "size": 65_536}]);
    let mapped = without(&["network", "uts"])
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    for (given, want) in [
        (without(&["network"]), "the host's network"),
        (mapped, "the host's network"),
        (without(&["pid"]), "the host's PID namespace"),
        (without(&["ipc"]), "the host's IPC namespace"),
        (writable_sys(), "a privileged pod"),
        (annotated("host"), "the host's user ids"),
    ] {
        let error = pod(&given.spec(), &strict, &PodFacts::default()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(want) && text.contains("(refuse_host_pods); "),
            "{text}"
        );
        assert!(text.len() <= 200, "{text}");
    }
    assert_eq!(userns(&Given::cri_sandbox(), &strict), UserNs::Auto);
}

#[test]
fn an_annotation_says_host_or_auto() {
    let error = pod(&annotated("yes").spec(), &allowing(), &PodFacts::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("\"yes\" is neither"), "{text}");
}

/// What the host says of a container in a pod of the host.
fn host_facts(shares: HostShares) -> ContainerFacts {
    ContainerFacts {
        ids: Ids::default(),
        shares,
        ..facts()
    }
}

#[test]
fn a_container_of_a_host_pod_runs_in_what_its_pod_shares() {
    let pid = HostShares {
        pid: true,
        ..HostShares::default()
    };
    let pod_pid = ns("pid");
    let (ipc, uts, net) = (ns("ipc"), ns("uts"), ns("net"));
    let rest = [
        ("ipc", &*ipc),
        ("uts", &*uts),
        ("network", &*net),
        ("mount", ""),
    ];
    let by_path = Given::cri_container().namespaces(&[&rest[..], &[("pid", &*pod_pid)]].concat());
    let absent = Given::cri_container().namespaces(&rest);
    for given in [by_path, absent.clone()] {
        let plan = given.container(&host_facts(pid)).unwrap();
        assert_eq!(plan.pidns, PidNs::Pod);
        let cgroupns = only(&plan.steps, |step| match step {
            Step::LockMounts { cgroupns } => Some(*cgroupns),
            _ => None,
        });
        assert_eq!(cgroupns, CgroupNs::Host, "as runc, where the spec has none");
    }
    let error = absent.container(&host_facts(HostShares::default()));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("no entry \"pid\""), "{text}");
}

#[test]
fn another_containers_pid_namespace_is_honoured() {
    let mut facts = facts();
    facts.inodes.insert("/proc/815/ns/pid".into(), Some(42));
    facts.pidns_of_containers.insert(42, "target".into());
    let (ipc, uts, net) = (ns("ipc"), ns("uts"), ns("net"));
    let with = |path: &str| {
        Given::cri_container()
            .namespaces(&[
                ("pid", path),
                ("ipc", &*ipc),
                ("uts", &*uts),
                ("network", &*net),
                ("mount", ""),
            ])
            .container(&facts)
    };
    let plan = with("/proc/815/ns/pid").unwrap();
    assert_eq!(plan.pidns, PidNs::Container("target".into()));
    let text = with("/proc/1/ns/pid").unwrap_err().to_string();
    assert!(text.contains("leads out of the pod"), "{text}");
}

#[test]
fn a_container_may_not_leave_the_user_namespace_of_its_pod_by_annotation() {
    let given = Given::cri_container().set("/annotations/dev.berm.userns", "host");
    let allowed = ContainerFacts {
        allow_annotations: vec!["dev.berm.userns".into()],
        ..facts()
    };
    let text = given.container(&allowed).unwrap_err().to_string();
    assert!(text.contains("the pod has a user namespace"), "{text}");
    let host = ContainerFacts {
        ids: Ids::default(),
        ..allowed
    };
    given.container(&host).unwrap();
}

fn nodes(given: &Given, facts: &ContainerFacts) -> Vec<String> {
    let plan = given.container(facts).unwrap();
    let devices = only(&plan.steps, |step| match step {
        Step::Devices(devices) => Some(devices.clone()),
        _ => None,
    });
    let paths = devices
        .iter()
        .map(|d| d.path.to_string_lossy().into_owned());
    paths.filter(|path| path.contains("/dev/x")).collect()
}

#[test]
fn a_privileged_container_in_a_user_namespace_gets_no_disk_of_the_node() {
    let device = |path, mode: u32| json!({"path": path, "type": "b", "major": 8, "minor": 0, "fileMode": mode});
    let all = json!([{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]);
    let given = Given::cri_container().set(
        "/linux/devices",
        json!([device("/dev/xdisk", 0o660), device("/dev/xfuse", 0o666)]),
    );
    let privileged = given.clone().set("/linux/resources/devices", all);
    assert_eq!(nodes(&privileged, &facts()), ["/dev/xfuse"]);
    assert_eq!(
        nodes(&given, &facts()),
        ["/dev/xdisk", "/dev/xfuse"],
        "one by one, as asked"
    );
    let host = host_facts(HostShares::default());
    assert_eq!(nodes(&privileged, &host), ["/dev/xdisk", "/dev/xfuse"]);
}

#[test]
fn without_a_cgroup_namespace_cgroup2_is_the_nodes_whole_tree() {
    let facts = ContainerFacts {
        cgroup_views: vec![CgroupView {
            name: String::new(),
            links: Vec::new(),
            host_dir: "/sys/fs/cgroup/kubepods/pod1/c1".into(),
        }],
        ..host_facts(HostShares::default())
    };
    let shown = |given: &Given| {
        let plan = given.container(&facts).unwrap();
        only(&plan.steps, |step| match step {
            Step::Mount(Mount {
                source: Source::Cgroup(views),
                ..
            }) => Some(views[0].host_dir.to_string_lossy().into_owned()),
            _ => None,
        })
    };
    assert_eq!(shown(&Given::cri_container()), "/sys/fs/cgroup");
    let own = Given::cri_container().set("/linux/namespaces/-", json!({"type": "cgroup"}));
    assert_eq!(shown(&own), "/sys/fs/cgroup/kubepods/pod1/c1");
}
