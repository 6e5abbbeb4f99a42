//! Every refusal: field, reason, way out, on one line, of the right kind.

use berm_plan::{ContainerFacts, Error, exec};
use serde_json::{Value, json};

use crate::given::{Given, base, facts, ns, root_facts};

/// One row: how a spec is changed, and how its refusal begins.
struct Case {
    name: &'static str,
    given: Given,
    want: &'static str,
}

fn case(name: &'static str, given: Given, want: &'static str) -> Case {
    Case { name, given, want }
}

/// Collects what differs over all rows, then fails once.
fn check(cases: Vec<Case>, run: impl Fn(&Given) -> Option<Error>) {
    let mut wrong = Vec::new();
    for Case { name, given, want } in cases {
        let error = run(&given);
        let text = error
            .as_ref()
            .map_or_else(|| "no refusal".into(), Error::to_string);
        let ways = text.matches("; ").count();
        let ours = matches!(
            error,
            Some(Error::Invalid { .. } | Error::NotSupported { .. })
        );
        if !text.starts_with(want) || text.len() > 200 || text.contains('\n') || (ours && ways == 0)
        {
            wrong.push(format!("{name}: {text}\n  want: {want}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn ours(pointer: &str, value: impl Into<Value>) -> Given {
    Given::cri_container().set(pointer, value)
}

fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Given {
    Given::cri_container().mount(destination, typ, source, options)
}

/// CRI's list of namespaces with one entry changed: `None` drops it.
fn namespace(typ: &str, entry: Option<&str>) -> Given {
    let [ipc, uts, net] = ["ipc", "uts", "net"].map(ns);
    let list = [
        ("pid", ""),
        ("ipc", &*ipc),
        ("uts", &*uts),
        ("mount", ""),
        ("network", &*net),
    ];
    let mut list: Vec<(&str, &str)> = list.into_iter().filter(|(name, _)| *name != typ).collect();
    list.extend(entry.map(|path| (typ, path)));
    Given::cri_container().namespaces(&list)
}

#[test]
fn fields_that_no_task_gets() {
    let cases = vec![
        case(
            "spec of version 2",
            ours("/ociVersion", "2.0.0"),
            "ociVersion: \"2.0.0\" is not of version 1",
        ),
        case(
            "windows",
            ours("/windows", json!({"layerFolders": []})),
            "windows: Berm runs Linux",
        ),
        case(
            "solaris",
            ours("/solaris", json!({})),
            "solaris: Berm runs Linux",
        ),
        case(
            "mappings at the top",
            ours("/uidMappings", json!([])),
            "uidMappings: no field",
        ),
        case(
            "hook by a relative path",
            ours("/hooks", json!({"poststop": [{"path": "bin/x"}]})),
            "hooks.poststop[0].path: \"bin/x\" is not an absolute path",
        ),
        case(
            "hook with a timeout of nothing",
            ours(
                "/hooks",
                json!({"prestart": [{"path": "/x", "timeout": 0}]}),
            ),
            "hooks.prestart[0].timeout: 0 is no number of seconds above zero",
        ),
        case(
            "annotation for Berm",
            ours("/annotations/dev.berm.userns", "host"),
            "annotations[\"dev.berm.userns\"]: not allowed on this node",
        ),
        case(
            "property of a systemd unit",
            ours("/linux/cgroupsPath", "pod.slice:cri-containerd:c1").set(
                "/annotations/org.systemd.property.CollectMode",
                "'inactive-or-failed'",
            ),
            "annotations[\"org.systemd.property.CollectMode\"]: Berm gives a unit",
        ),
        case(
            "annotation of nobody",
            ours("/annotations/dev.berm.usrns", "host"),
            "annotations[\"dev.berm.usrns\"]: no annotation of Berm",
        ),
        case(
            "mount label",
            ours("/linux/mountLabel", "a\0b"),
            "linux.mountLabel: holds a NUL byte",
        ),
        case(
            "net device",
            ours("/linux/netDevices", json!({"eth 1": {}})),
            "linux.netDevices[\"eth 1\"]: \"eth 1\" is no name",
        ),
        case(
            "time offsets",
            ours("/linux/timeOffsets", json!({"boottime": {"secs": 1}})),
            "linux.timeOffsets: without a time namespace",
        ),
        case(
            "no clock",
            ours("/linux/timeOffsets", json!({"realtime": {"secs": 1}}))
                .set("/linux/namespaces/-", json!({"type": "time"})),
            "linux.timeOffsets: \"realtime\" is no clock",
        ),
        case(
            "too many nanoseconds",
            ours(
                "/linux/timeOffsets",
                json!({"boottime": {"nanosecs": 1_000_000_000}}),
            )
            .set("/linux/namespaces/-", json!({"type": "time"})),
            "linux.timeOffsets.boottime: 1000000000 nanoseconds",
        ),
        case(
            "foreign time",
            ours(
                "/linux/namespaces/-",
                json!({"type": "time", "path": "/proc/1/ns/time"}),
            ),
            "linux.namespaces \"time\": the path leads out",
        ),
        case(
            "RDT",
            ours("/linux/intelRdt", json!({"closID": "a"})),
            "linux.intelRdt: Berm makes no groups in resctrl",
        ),
        case(
            "personality",
            ours(
                "/linux/personality",
                json!({"domain": "LINUX32", "flags": ["X"]}),
            ),
            "linux.personality.flags: \"X\": the specification has none",
        ),
        case(
            "shared root",
            ours("/linux/rootfsPropagation", "rshared"),
            "linux.rootfsPropagation: mounts of",
        ),
        case(
            "unbindable root",
            ours("/linux/rootfsPropagation", "shared"),
            "linux.rootfsPropagation: mounts of",
        ),
        case(
            "no propagation",
            ours("/linux/rootfsPropagation", "x"),
            "linux.rootfsPropagation: \"x\" is no",
        ),
    ];
    check(cases, |given| given.container(&facts()).err());
}

#[test]
fn empty_values_of_the_same_fields_are_no_request() {
    let given = ours("/linux/mountLabel", "")
        .set("/hooks", json!({"prestart": [], "poststop": null}))
        .set("/linux/netDevices", json!({}))
        .set("/linux/timeOffsets", json!({}))
        .set("/linux/sysctl", json!({}))
        .set("/linux/rootfsPropagation", "rslave")
        .set("/process/apparmorProfile", "")
        .set("/process/selinuxLabel", "")
        .set("/hostname", "bench");
    given.container(&facts()).unwrap();
}

#[test]
fn pods_that_ask_for_the_host() {
    let sandbox = |list: &[(&str, &str)]| Given::cri_sandbox().namespaces(list);
    let map = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
    let all = [
        ("pid", ""),
        ("ipc", ""),
        ("uts", ""),
        ("mount", ""),
        ("network", ""),
    ];
    let without = |typ: &str| {
        sandbox(
            &all.into_iter()
                .filter(|(name, _)| *name != typ)
                .collect::<Vec<_>>(),
        )
    };
    let with = |typ: &'static str, path: &'static str| {
        let mut list: Vec<_> = all.into_iter().filter(|(name, _)| *name != typ).collect();
        list.push((typ, path));
        sandbox(&list)
    };
    let cases = vec![
        case(
            "no mount namespace",
            without("mount"),
            "linux.namespaces \"mount\": a container needs",
        ),
        case(
            "foreign PID",
            with("pid", "/proc/1/ns/pid"),
            "linux.namespaces \"pid\": the path leads out",
        ),
        case(
            "foreign mounts",
            with("mount", "/proc/1/ns/mnt"),
            "linux.namespaces \"mount\": the path leads",
        ),
        case(
            "foreign cgroup",
            with("cgroup", "/x"),
            "linux.namespaces \"cgroup\": the path leads out",
        ),
        case(
            "time",
            with("time", ""),
            "linux.namespaces \"time\": a sandbox runs no workload",
        ),
        case(
            "relative path",
            with("network", "netns/a"),
            "linux.namespaces \"network\": \"netns/a\" is not",
        ),
        case(
            "twice",
            sandbox(&[("pid", ""), ("pid", "")]),
            "linux.namespaces[1]: \"pid\" is there twice",
        ),
        case(
            "foreign IPC",
            with("ipc", "/proc/1/ns/ipc"),
            "linux.namespaces \"ipc\": the path leads out",
        ),
        case(
            "userns without maps",
            with("user", ""),
            "linux.uidMappings: empty",
        ),
        case(
            "maps without userns",
            Given::cri_sandbox().set("/linux/uidMappings", map.clone()),
            "linux.uidMappings: mappings without a user namespace",
        ),
        case(
            "one map only",
            with("user", "/u").set("/linux/uidMappings", map.clone()),
            "linux.gidMappings: empty",
        ),
        case(
            "a container",
            Given::cri_container(),
            "annotations: the container's sandbox \"s1\" is not there",
        ),
        case(
            "long hostname",
            Given::cri_sandbox().set("/hostname", "h".repeat(65)),
            "hostname: 65 bytes",
        ),
        case(
            "host PID with a user namespace",
            sandbox(&[
                ("ipc", ""),
                ("uts", ""),
                ("mount", ""),
                ("network", ""),
                ("user", ""),
            ])
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map.clone()),
            "linux.namespaces \"pid\": a pod with a user namespace cannot mount",
        ),
        case(
            "name of the host",
            without("uts").set("/hostname", "x"),
            "hostname: the UTS namespace is not the pod's own",
        ),
        case(
            "domain of the host",
            without("uts").without("/hostname").set("/domainname", "x"),
            "domainname: the UTS namespace is not",
        ),
        case(
            "network sysctl of the host",
            without("network").set("/linux/sysctl/net.ipv4.ip_forward", "1"),
            "linux.sysctl[\"net/ipv4/",
        ),
        case(
            "IPC sysctl of the host",
            without("ipc").set("/linux/sysctl", json!({"kernel.shmmax": "1"})),
            "linux.sysctl[\"kernel/shmmax\"]: the pod shares",
        ),
        case(
            "sysctl of the node",
            Given::cri_sandbox().set("/linux/sysctl/vm.swappiness", "1"),
            "linux.sysctl[\"vm.swappiness\"]: the kernel has one value",
        ),
        case(
            "label",
            Given::cri_sandbox().set("/process/selinuxLabel", "x"),
            "process.selinuxLabel: ",
        ),
        case(
            "scheduler of a sandbox",
            Given::cri_sandbox().set("/process/scheduler", json!({"policy": "SCHED_RR"})),
            "process.scheduler: the sandbox of a pod runs no process",
        ),
        case(
            "personality of a sandbox",
            Given::cri_sandbox().set("/linux/personality", json!({"domain": "LINUX32"})),
            "linux.personality: the sandbox of a pod runs no process",
        ),
        case(
            "score",
            Given::cri_sandbox().set("/process/oomScoreAdj", -1001),
            "process.oomScoreAdj: -1001",
        ),
        case(
            "limit",
            Given::cri_sandbox().set("/linux/resources/memory", json!({"useHierarchy": false})),
            "linux.resources.memory.useHierarchy: ",
        ),
    ];
    check(cases, |given| given.pod().err());
}

#[test]
fn containers_that_leave_their_pod() {
    let map = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
    let host_pid = || namespace("pid", Some("/proc/1/ns/pid"));
    let cases = vec![
        case(
            "host network",
            namespace("network", None),
            "linux.namespaces: no entry \"network\"",
        ),
        case(
            "host IPC",
            namespace("ipc", None),
            "linux.namespaces: no entry \"ipc\"",
        ),
        case(
            "host UTS",
            namespace("uts", None),
            "linux.namespaces: no entry \"uts\"",
        ),
        case(
            "host PID",
            namespace("pid", None),
            "linux.namespaces: no entry \"pid\"",
        ),
        case(
            "own network",
            namespace("network", Some("")),
            "linux.namespaces \"network\": a container shares",
        ),
        case(
            "own user",
            namespace("user", Some("")),
            "linux.namespaces \"user\": a container shares",
        ),
        case(
            "other network",
            namespace("network", Some("/proc/1/ns/net")),
            "linux.namespaces \"network\": the path leads out",
        ),
        case(
            "other PID",
            host_pid(),
            "linux.namespaces \"pid\": the path leads out of the pod",
        ),
        case(
            "other user",
            namespace("user", Some("/proc/1/ns/pid")),
            "linux.namespaces \"user\": the path leads",
        ),
        case(
            "gone",
            namespace("ipc", Some("/proc/9/ns/ipc")),
            "linux.namespaces \"ipc\": \"/proc/9/ns/ipc\" cannot",
        ),
        case(
            "never looked at",
            namespace("ipc", Some("/x")),
            "linux.namespaces \"ipc\": \"/x\" cannot",
        ),
        case(
            "maps alone",
            ours("/linux/uidMappings", map.clone()),
            "linux.uidMappings: mappings without",
        ),
        case(
            "other maps",
            namespace("user", Some(&ns("user")))
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map),
            "linux.uidMappings: not the id map of the pod",
        ),
        case(
            "hostname",
            ours("/hostname", "other"),
            "hostname: not the name of the pod",
        ),
        case(
            "domainname",
            ours("/domainname", "other"),
            "domainname: not the name of the pod",
        ),
        case(
            "sysctl",
            ours("/linux/sysctl", json!({"net.a": "1"})),
            "linux.sysctl: the namespaces are the pod's",
        ),
    ];
    check(cases, |given| given.container(&facts()).err());
}

#[test]
fn processes_that_cannot_be_started_as_asked() {
    let twice = json!([{"type": "RLIMIT_CORE", "soft": 1, "hard": 1}, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}]);
    let cases = vec![
        case(
            "no process",
            Given::cri_container().without("/process"),
            "process: missing",
        ),
        case(
            "no args",
            ours("/process/args", json!([])),
            "process.args: must not be empty",
        ),
        case(
            "null args",
            ours("/process/args", Value::Null),
            "process.args: must not be empty",
        ),
        case(
            "NUL",
            ours("/process/args", json!(["a", "b\0c"])),
            "process.args[1]: holds a NUL byte",
        ),
        case(
            "bad env",
            ours("/process/env", json!(["A"])),
            "process.env[0]: \"A\" is not NAME=value",
        ),
        case(
            "empty name",
            ours("/process/env", json!(["=x"])),
            "process.env[0]: \"=x\" is not NAME=value",
        ),
        case(
            "cwd",
            ours("/process/cwd", "srv"),
            "process.cwd: \"srv\" is not an absolute path",
        ),
        case(
            "empty cwd",
            ours("/process/cwd", ""),
            "process.cwd: \"\" is not an absolute path",
        ),
        case(
            "uid",
            ours("/process/user/uid", 65_536),
            "process.user.uid: 65536 is outside the id map",
        ),
        case(
            "gid",
            ours("/process/user/gid", 70_000),
            "process.user.gid: 70000 is outside",
        ),
        case(
            "groups",
            ours("/process/user/additionalGids", json!([0, 70_000])),
            "process.user.additionalGids[1]: 70000",
        ),
        case(
            "umask",
            ours("/process/user/umask", 512),
            "process.user.umask: 0o1000 has bits",
        ),
        case(
            "score",
            ours("/process/oomScoreAdj", 1001),
            "process.oomScoreAdj: 1001 is not within",
        ),
        case(
            "twice",
            ours("/process/rlimits", twice),
            "process.rlimits[1]: RLIMIT_CORE is there twice",
        ),
        case(
            "profile with a NUL",
            ours("/process/apparmorProfile", "x\0y"),
            "process.apparmorProfile: holds a NUL",
        ),
        case(
            "policy of no kernel",
            ours("/process/scheduler", json!({"policy": "SCHED_ISO"})),
            "process.scheduler.policy: SCHED_ISO is in no kernel",
        ),
        case(
            "nice beyond",
            ours(
                "/process/scheduler",
                json!({"policy": "SCHED_OTHER", "nice": 20}),
            ),
            "process.scheduler.nice: 20 is not within",
        ),
        case(
            "priority of a fair policy",
            ours(
                "/process/scheduler",
                json!({"policy": "SCHED_BATCH", "priority": 1}),
            ),
            "process.scheduler.priority: SCHED_BATCH has none",
        ),
        case(
            "negative priority",
            ours(
                "/process/scheduler",
                json!({"policy": "SCHED_RR", "priority": -1}),
            ),
            "process.scheduler.priority: -1 is not",
        ),
        case(
            "deadline of another policy",
            ours(
                "/process/scheduler",
                json!({"policy": "SCHED_FIFO", "priority": 1, "deadline": 9}),
            ),
            "process.scheduler.deadline: SCHED_FIFO has none",
        ),
        case(
            "I/O",
            ours(
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_RT", "priority": 8}),
            ),
            "process.ioPriority.priority: 8 is not within",
        ),
        case(
            "affinity",
            ours("/process/execCPUAffinity", json!({"initial": "3-1"})),
            "process.execCPUAffinity.initial: \"3-1\" is neither",
        ),
        case(
            "memory nodes",
            ours(
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "nodes": "x"}),
            ),
            "linux.memoryPolicy.nodes: \"x\" is neither",
        ),
        case(
            "Windows",
            ours("/process/commandLine", "x"),
            "process.commandLine: only Windows",
        ),
        case(
            "Windows user",
            ours("/process/user/username", "x"),
            "process.user.username: only Windows",
        ),
        case(
            "console",
            ours(
                "/process/consoleSize",
                json!({"height": 65_536, "width": 1}),
            ),
            "process.consoleSize: larger",
        ),
        case(
            "dead capability",
            ours("/process/capabilities/bounding/-", "CAP_SYS_TIME"),
            "process.capabilities: CAP_SYS_TIME is without effect in the pod's user namespace; drop it",
        ),
        case(
            "dead in this network",
            ours("/process/capabilities/bounding/-", "CAP_NET_ADMIN"),
            "process.capabilities: CAP_NET_ADMIN is without effect in the pod's user namespace; set hostUsers: false",
        ),
        case(
            "unknown capability",
            ours("/process/capabilities/bounding/-", "CAP_FLY"),
            "config.json: process.capabilities.bounding[14]: no variant for CAP_FLY",
        ),
        case(
            "unknown limit",
            ours("/process/rlimits", json!([{"type": "RLIMIT_X"}])),
            "config.json: process.rlimits[0].type: unknown variant `RLIMIT_X`",
        ),
        case(
            "notify",
            ours("/linux/seccomp/defaultAction", "SCMP_ACT_NOTIFY"),
            "linux.seccomp.defaultAction: ",
        ),
        case(
            "unknown key",
            ours("/process/foo", 1),
            "process.foo: not known to Berm",
        ),
    ];
    // The long texts of the JSON parser are its own.
    check(cases, |given| match given.container(&facts()).err() {
        Some(Error::Json {
            document,
            at,
            reason,
            line,
            column,
        }) => {
            let reason = reason.chars().take(40).collect();
            Some(Error::Json {
                document,
                at,
                reason,
                line,
                column,
            })
        }
        other => other,
    });
}

#[test]
fn mounts_that_cannot_be_made() {
    let map = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
    let cases = vec![
        case(
            "below proc",
            mount("/proc/sys", "bind", "/x", &["bind"]),
            "mounts[13].destination: \"/proc/sys\" is on a proc",
        ),
        case(
            "bind over proc",
            mount("/proc", "bind", "/proc", &["rbind"]),
            "mounts[13].destination: \"/proc\" is on a proc",
        ),
        case(
            "root",
            mount("/a/..", "tmpfs", "tmpfs", &[]),
            "mounts[13].destination: \"/a/..\" is the root",
        ),
        case(
            "type",
            mount("/a", "nfs", "h:/e", &[]),
            "mounts[13].type \"nfs\": a pod with a user namespace mounts bind",
        ),
        case(
            "no type",
            mount("/a", "", "/x", &[]),
            "mounts[13].type \"\": a pod with a user namespace mounts bind",
        ),
        case(
            "relative source",
            mount("/a", "bind", "x", &["bind"]),
            "mounts[13].source: \"x\" is not",
        ),
        case(
            "shared",
            mount("/a", "bind", "/x", &["rbind", "rshared"]),
            "mounts[13].options \"shared\": mounts of a pod",
        ),
        case(
            "idmap of a tmpfs",
            mount("/a", "tmpfs", "tmpfs", &["idmap"]),
            "mounts[13].uidMappings: id mappings are for bind",
        ),
        case(
            "remount",
            mount("/a", "bind", "/x", &["bind", "remount"]),
            "mounts[13].options \"remount\": changes a mount",
        ),
        case(
            "a flag of the whole file system",
            mount("/a", "bind", "/x", &["bind", "sync"]),
            "mounts[13].options \"sync\": belongs to the whole",
        ),
        case(
            "data on a bind",
            mount("/a", "bind", "/x", &["bind", "uid=5"]),
            "mounts[13].options \"uid=5\": not known",
        ),
        case(
            "tmpcopyup of a bind",
            mount("/a", "bind", "/x", &["bind", "tmpcopyup"]),
            "mounts[13].options \"tmpcopyup\": copies what a tmpfs",
        ),
        case(
            "tmpfs option",
            mount("/a", "tmpfs", "tmpfs", &["context=x"]),
            "mounts[13].options \"context=x\": no option of a tmpfs",
        ),
        case(
            "tmpfs owner",
            mount("/a", "tmpfs", "tmpfs", &["uid=99999"]),
            "mounts[13].options \"uid=99999\": outside",
        ),
        case(
            "tmpfs value",
            mount("/a", "tmpfs", "tmpfs", &["size="]),
            "mounts[13].options \"size\": not a value",
        ),
        case(
            "devpts option",
            mount("/a", "devpts", "devpts", &["max=3"]),
            "mounts[13].options \"max=3\": not applied",
        ),
        case(
            "devpts gid",
            mount("/a", "devpts", "devpts", &["gid=99999"]),
            "mounts[13].options \"gid=99999\": outside",
        ),
        case(
            "devpts mode",
            mount("/a", "devpts", "devpts", &["mode=9"]),
            "mounts[13].options \"mode=9\": not a value",
        ),
        case(
            "mqueue option",
            mount("/a", "mqueue", "mqueue", &["x"]),
            "mounts[13].options \"x\": not known",
        ),
        case(
            "proc option",
            mount("/a", "proc", "proc", &["hidepid=2"]),
            "mounts[13].options \"hidepid=2\": not known",
        ),
        case(
            "writable sysfs",
            mount("/a", "sysfs", "sysfs", &[]),
            "mounts[13].options: a writable sysfs",
        ),
        case(
            "cgroup option",
            mount("/a", "cgroup", "cgroup", &["ro", "x=1"]),
            "mounts[13].options \"x=1\": not",
        ),
        case(
            "half a map",
            ours("/mounts/6/uidMappings", map.clone()),
            "mounts[6].gidMappings: missing beside uidMappings",
        ),
        case(
            "map of a tmpfs",
            ours("/mounts/1/gidMappings", map),
            "mounts[1].uidMappings: id mappings are for bind",
        ),
        case(
            "relative mask",
            ours("/linux/maskedPaths/-", "x"),
            "linux.maskedPaths[12]: \"x\" is not an absolute",
        ),
        case(
            "relative ro",
            ours("/linux/readonlyPaths/-", "x"),
            "linux.readonlyPaths[5]: \"x\" is not an absolute",
        ),
    ];
    check(cases, |given| given.container(&facts()).err());
}

#[test]
fn devices_that_cannot_be_made() {
    let device = |device: Value| ours("/linux/devices", json!([device]));
    let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
    let bind = json!({"destination": "/dev", "type": "bind", "source": "/x", "options": ["rbind"]});
    let cases = vec![
        case(
            "relative",
            device(json!({"path": "fuse", "type": "c"})),
            "linux.devices[0].path: \"fuse\" is no",
        ),
        case(
            "type",
            device(json!({"path": "/dev/a", "type": "a"})),
            "linux.devices[0].type: \"a\" is no node",
        ),
        case(
            "number",
            device(json!({"path": "/dev/a", "type": "c", "major": -1})),
            "linux.devices[0]: -1 is no",
        ),
        case(
            "owner",
            device(json!({"path": "/dev/a", "type": "c", "uid": 99_999})),
            "linux.devices[0]: owner 99999:0",
        ),
        case(
            "bound /dev",
            device(fuse).set("/mounts/1", bind),
            "linux.devices[0]: /dev is a bind mount",
        ),
        case(
            "rule",
            ours(
                "/linux/resources/devices/-",
                json!({"allow": true, "access": "x"}),
            ),
            "linux.resources.devices[1].access: \"x\"",
        ),
    ];
    check(cases, |given| given.container(&facts()).err());
}

#[test]
fn a_terminal_without_devpts() {
    let facts = ContainerFacts {
        terminal: true,
        ..facts()
    };
    let tmpfs = json!({"destination": "/dev/pts", "type": "tmpfs"});
    let cases = vec![
        case(
            "none",
            Given::cri_container().without("/mounts/2"),
            "process.terminal: a terminal needs a devpts",
        ),
        case(
            "other",
            ours("/mounts/2", tmpfs),
            "process.terminal: a terminal needs a devpts",
        ),
    ];
    check(cases, |given| given.container(&facts).err());
}

#[test]
fn a_pod_of_one_is_checked_like_a_pod() {
    let cases = vec![
        case(
            "host network",
            Given::ctr_run().without("/linux/namespaces/4"),
            "linux.namespaces: no entry \"network\"",
        ),
        case(
            "uid",
            Given::ctr_run().set("/process/user/uid", 100_000),
            "process.user.uid: 100000",
        ),
        case(
            "dead capability",
            Given::ctr_run().set("/process/capabilities/bounding/-", "CAP_SYS_MODULE"),
            "process.capabilities: CAP_SYS_MODULE is",
        ),
    ];
    check(cases, |given| given.container(&root_facts()).err());
    // Every capability of the network works in a network namespace of the pod's own.
    let own = Given::ctr_run().set("/process/capabilities/bounding/-", "CAP_NET_ADMIN");
    own.container(&root_facts()).unwrap();
}

#[test]
fn dead_capabilities_run_where_the_configuration_says_so() {
    let given = ours("/process/capabilities/bounding/-", "CAP_SYS_TIME");
    given
        .container(&ContainerFacts {
            allow_dead_capabilities: true,
            ..facts()
        })
        .unwrap();
}

#[test]
fn execs_are_refused_by_the_same_fields() {
    let process = |changes: Value| {
        let mut process = json!({"user": {"uid": 0, "gid": 0}, "args": ["id"], "cwd": "/"});
        for (key, value) in changes.as_object().unwrap() {
            process[key] = value.clone();
        }
        Given(process)
    };
    let cases = vec![
        case(
            "args",
            process(json!({"args": []})),
            "process.args: must not be empty",
        ),
        case(
            "uid",
            process(json!({"user": {"uid": 65_536}})),
            "process.user.uid: 65536",
        ),
        case(
            "key",
            process(json!({"user": {"shell": 1}})),
            "process.user.shell: not known",
        ),
        case(
            "type",
            process(json!({"cwd": 5})),
            "process: process.cwd: invalid type",
        ),
        case(
            "capability",
            process(json!({"capabilities": {"bounding": ["CAP_BPF"]}})),
            "process.capabilities: CAP_BPF is without effect",
        ),
    ];
    check(cases, |given| {
        exec(given.0.to_string().as_bytes(), false, &base()).err()
    });
}
