//! Pods without a user namespace, and what of them ends with them.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::world::{Pod, SOON, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_host_pod_shows_the_hosts_namespaces_under_its_pid_and_changes_nothing_of_the_host,
    the_record_says_that_a_host_pod_is_no_boundary_and_why,
    the_end_of_a_host_pid_pod_takes_hundreds_of_processes_and_nothing_else,
    a_host_pid_pod_ends_when_its_first_process_is_killed_from_inside,
    a_container_that_is_made_while_its_host_pid_pod_ends_ends_too,
    the_end_of_a_container_in_the_hosts_pid_namespace_takes_its_own_processes_only,
    a_paused_container_does_not_keep_a_host_pid_pod,
    a_workload_of_a_host_pod_that_gives_up_root_gives_up_its_capabilities,
    a_root_container_in_the_hosts_pid_namespace_ends_with_its_processes,
    a_host_pod_joins_a_namespace_that_its_spec_names,
    an_annotation_drops_the_user_namespace_where_the_node_allows_it,
    a_node_that_refuses_host_pods_runs_the_others,
];

const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

/// Drops entries of `linux.namespaces`.
pub(crate) fn without(types: &'static [&'static str]) -> impl Fn(&mut Value) {
    move |spec| {
        let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|entry| !types.iter().any(|name| entry["type"] == *name));
        if types.contains(&"uts") {
            spec.as_object_mut().unwrap().remove("hostname");
        }
    }
}

async fn host_pid(w: &World) -> Pod<'_> {
    w.pod_with(without(&["pid"])).await
}

pub(crate) fn ns(pid: i32, name: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
    link.to_string_lossy().into_owned()
}

pub(crate) fn own(name: &str) -> String {
    ns(std::process::id().cast_signed(), name)
}

fn processes_of(w: &World, id: &str) -> usize {
    let Some(dir) = w.v1("pids", id) else {
        return 0;
    };
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    procs.lines().count()
}

/// A process of the host that no pod owns.
struct Bystander(Child);

impl Bystander {
    fn start() -> Self {
        Self(Command::new("/bin/sleep").arg("1000").spawn().unwrap())
    }

    fn end(mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "it was killed");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn a_host_pod_shows_the_hosts_namespaces_under_its_pid_and_changes_nothing_of_the_host() {
    world(async |w| {
        let limit = || fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap();
        let name = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let before = (limit(), name());
        let pod = w.pod_with(without(&["pid", "ipc", "uts", "network"])).await;
        let mut c = pod
            .sh("cat /proc/self/uid_map; echo; cat")
            .shared_pidns()
            .run()
            .await;
        for kind in ["net", "pid", "ipc", "uts", "user"] {
            assert_eq!(ns(pod.init(), kind), own(kind), "{kind}");
            assert_eq!(ns(c.pid, kind), own(kind), "{kind}");
        }
        assert_ne!(ns(c.pid, "mnt"), own("mnt"));
        assert!(c.line().await.ends_with("4294967295"));
        let (code, out) = c.exec_sh("kill -0 1 && readlink /proc/self/ns/pid").await;
        assert_eq!((code, out.trim()), (0, &*own("pid")));
        assert_eq!((limit(), name()), before);
        c.end().await;
        pod.end().await;
    });
}

fn the_record_says_that_a_host_pod_is_no_boundary_and_why() {
    world(async |w| {
        let pod = w.pod_with(without(&["network", "uts"])).await;
        let isolation = &pod.sandbox.record().isolation;
        assert_eq!(isolation.userns, "none");
        assert_eq!(isolation.because.as_deref(), Some("hostNetwork"));
        assert_eq!(isolation.host_namespaces, ["net", "uts"]);
        assert_eq!(isolation.range, None);
        let auto = w.pod().await;
        let isolation = &auto.sandbox.record().isolation;
        assert_eq!((&*isolation.userns, &isolation.because), ("auto", &None));
        assert!(isolation.host_namespaces.is_empty());
        // The host's name alone opens nothing.
        let named = w.pod_with(without(&["uts"])).await;
        assert_eq!(named.sandbox.record().isolation.userns, "auto");
        assert_eq!(ns(named.init(), "uts"), own("uts"));
        assert_ne!(ns(named.init(), "user"), own("user"));
    });
}

/// 40 shells with 5 children each, in sessions of their own.
const MANY: &str = "i=0; while [ $i -lt 40 ]; do /bin/busybox setsid /bin/sh -c \
    'for j in 1 2 3 4 5; do sleep 1000 & done; wait' & i=$((i+1)); done; echo made; wait";

fn the_end_of_a_host_pid_pod_takes_hundreds_of_processes_and_nothing_else() {
    world(async |w| {
        let bystander = Bystander::start();
        let pod = host_pid(w).await;
        let mut c = pod.sh(MANY).shared_pidns().run().await;
        let nested = pod.container(&SLEEP).run().await;
        let gated = pod.container(&SLEEP).shared_pidns().create().await.unwrap();
        assert_eq!(c.line().await, "made");
        let until = Instant::now() + SOON;
        while w.v1("pids", &c.id).is_some() && processes_of(w, &c.id) < 241 {
            assert!(Instant::now() < until);
            sleep(Duration::from_millis(1)).await;
        }
        pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
        assert_eq!(pod.sandbox.wait(pod.id(), None).await.unwrap().status, 137);
        // Whoever is told of the pod's end finds none of its processes.
        for id in [&c.id, &nested.id, &gated.id] {
            assert_eq!(processes_of(w, id), 0, "{id}");
        }
        for made in [&c, &nested, &gated] {
            assert_eq!(made.wait().await.status, 137);
            made.delete().await.unwrap();
        }
        pod.sandbox.delete(pod.id(), None).await.unwrap();
        bystander.end();
    });
}

fn a_host_pid_pod_ends_when_its_first_process_is_killed_from_inside() {
    world(async |w| {
        let pod = host_pid(w).await;
        let c = pod.container(&SLEEP).shared_pidns().run().await;
        let other = pod.container(&SLEEP).shared_pidns().run().await;
        let kill = format!("kill -9 {}", pod.init());
        c.exec_sh(&kill).await;
        assert_eq!(c.wait().await.status, 137);
        assert_eq!(other.wait().await.status, 137);
        assert_eq!(pod.sandbox.wait(pod.id(), None).await.unwrap().status, 137);
        assert!(!pod.sandbox.is_running());
        let refused = pod.container(&SLEEP).shared_pidns().create().await;
        assert!(refused.is_err());
    });
}

fn a_container_that_is_made_while_its_host_pid_pod_ends_ends_too() {
    world(async |w| {
        for _ in 0..30 {
            let pod = host_pid(w).await;
            let making = pod.container(&SLEEP).shared_pidns().create();
            let ending = async {
                tokio::task::yield_now().await;
                pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
            };
            let (made, ()) = tokio::join!(making, ending);
            if let Ok(made) = made {
                assert_eq!(made.wait().await.status, 137);
                made.delete().await.unwrap();
            }
            pod.sandbox.wait(pod.id(), None).await.unwrap();
            pod.sandbox.delete(pod.id(), None).await.unwrap();
        }
    });
}

fn the_end_of_a_container_in_the_hosts_pid_namespace_takes_its_own_processes_only() {
    world(async |w| {
        let pod = host_pid(w).await;
        let script = "sleep 1000 & /bin/busybox setsid sleep 1000 & echo made; read x; exit 5";
        let mut c = pod.sh(script).shared_pidns().run().await;
        let other = pod.container(&SLEEP).shared_pidns().run().await;
        assert_eq!(c.line().await, "made");
        c.say("x\n");
        assert_eq!(c.wait().await.status, 5);
        assert_eq!(processes_of(w, &c.id), 0);
        c.delete().await.unwrap();
        assert_eq!(other.exec_sh("exit 3").await.0, 3);
    });
}

fn a_paused_container_does_not_keep_a_host_pid_pod() {
    world(async |w| {
        let pod = host_pid(w).await;
        let c = pod.container(&SLEEP).shared_pidns().run().await;
        pod.sandbox.pause(&c.id).await.unwrap();
        pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
        pod.sandbox.wait(pod.id(), None).await.unwrap();
        assert_eq!(c.wait().await.status, 137);
        c.delete().await.unwrap();
        pod.sandbox.delete(pod.id(), None).await.unwrap();
    });
}

/// Status of a process that was root and became alice by setuid(2), as su(1) does.
const GIVE_UP_ROOT: &str = "exec /bin/busybox su alice -c 'grep CapEff /proc/self/status'";

fn a_workload_of_a_host_pod_that_gives_up_root_gives_up_its_capabilities() {
    world(async |w| {
        let pod = w.pod_with(without(&["network", "uts"])).await;
        let (code, out) = pod.sh(GIVE_UP_ROOT).output().await;
        assert_eq!((code, out.trim()), (0, "CapEff:\t0000000000000000"));
        let c = pod.container(&SLEEP).run().await;
        let (code, out) = c.exec_sh(GIVE_UP_ROOT).await;
        assert_eq!((code, out.trim()), (0, "CapEff:\t0000000000000000"));
        let (_, out) = c.exec_sh("grep CapEff /proc/self/status").await;
        assert_eq!(out.trim(), "CapEff:\t00000000a80425fb");
    });
}

fn a_root_container_in_the_hosts_pid_namespace_ends_with_its_processes() {
    world(async |w| {
        let bystander = Bystander::start();
        let pod = w
            .try_pod(|spec| {
                spec.as_object_mut().unwrap().remove("annotations");
                without(&["pid", "network", "uts"])(spec);
            })
            .await
            .unwrap();
        let id = pod.id().to_owned();
        let mut c = pod.sh("/bin/busybox setsid sleep 1000 & echo made; read x; exit 4");
        c.id = id.clone();
        c.spec.as_object_mut().unwrap().remove("annotations");
        let mut c = c
            .set("/linux/cgroupsPath", json!(format!("/{}/{id}", w.cgroup)))
            .set(
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "ipc"}]),
            )
            .run()
            .await;
        assert_eq!(ns(c.pid, "pid"), own("pid"));
        assert_eq!(c.line().await, "made");
        c.say("x\n");
        assert_eq!(c.wait().await.status, 4);
        assert_eq!(processes_of(w, &id), 0);
        c.delete().await.unwrap();
        bystander.end();
    });
}

fn a_host_pod_joins_a_namespace_that_its_spec_names() {
    world(async |w| {
        let first = w.pod_with(without(&["network", "uts"])).await;
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", first.init());
        let join = |spec: &mut Value| {
            without(&["network", "uts"])(spec);
            for entry in spec["linux"]["namespaces"].as_array_mut().unwrap() {
                for kind in ["pid", "ipc"] {
                    if entry["type"] == kind {
                        entry["path"] = json!(path(kind));
                    }
                }
            }
        };
        let second = w.pod_with(join).await;
        for kind in ["pid", "ipc"] {
            assert_eq!(ns(second.init(), kind), ns(first.init(), kind), "{kind}");
            assert_ne!(ns(second.init(), kind), own(kind), "{kind}");
        }
        let c = second.container(&SLEEP).shared_pidns().run().await;
        assert_eq!(ns(c.pid, "pid"), ns(first.init(), "pid"));
        assert!(second.sandbox.record().isolation.host_namespaces == ["net", "uts"]);
        // Its end is not the other's.
        second
            .sandbox
            .kill(second.id(), None, 9, false)
            .await
            .unwrap();
        assert_eq!(c.wait().await.status, 137);
        assert!(first.sandbox.is_running());
        // A pod with a user namespace gets no namespace of somebody else.
        let foreign = |spec: &mut Value| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|entry| entry["type"] != "ipc");
            list.push(json!({"type": "ipc", "path": path("ipc")}));
        };
        let Err(error) = w.try_pod(foreign).await else {
            panic!("not refused")
        };
        assert!(
            error.chain().contains("leads out of the pod"),
            "{}",
            error.chain()
        );
    });
}

fn an_annotation_drops_the_user_namespace_where_the_node_allows_it() {
    let annotate = |spec: &mut Value| spec["annotations"]["dev.berm.userns"] = json!("host");
    world_with(
        |config| config.policy.allow_annotations.clear(),
        async |w| {
            let Err(error) = w.try_pod(annotate).await else {
                panic!("not refused")
            };
            assert_eq!(error.kind(), Kind::NotSupported);
            assert!(
                error.chain().contains("allow_annotations"),
                "{}",
                error.chain()
            );
        },
    );
    world_with(
        |config| config.policy.allow_annotations = vec!["dev.berm.userns".into()],
        async |w| {
            let pod = w.pod_with(annotate).await;
            assert_eq!(ns(pod.init(), "user"), own("user"));
            for kind in ["net", "pid", "ipc", "uts"] {
                assert_ne!(ns(pod.init(), kind), own(kind), "{kind}");
            }
            let (code, out) = pod.sh("hostname; exit 6").output().await;
            assert_eq!((code, out.trim()), (6, "the-pod"));
            let record = pod.sandbox.record();
            assert_eq!(record.isolation.because.as_deref(), Some("annotation"));
        },
    );
}

fn a_node_that_refuses_host_pods_runs_the_others() {
    world_with(
        |config| config.policy.refuse_host_pods = true,
        async |w| {
            for types in [&["network", "uts"][..], &["pid"], &["ipc"]] {
                let types: &'static [&'static str] = types;
                let Err(error) = w.try_pod(without(types)).await else {
                    panic!("not refused")
                };
                assert!(
                    error.chain().contains("refuse_host_pods"),
                    "{}",
                    error.chain()
                );
            }
            let pod = w.pod().await;
            assert_eq!(pod.sh("exit 3").output().await.0, 3);
        },
    );
}
