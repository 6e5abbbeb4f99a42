//! Capabilities, `no_new_privs` and seccomp of started processes, as the kernel shows them.

use berm_sandbox::Error;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::{Made, process};
use crate::world::{Pod, World, world, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    the_kernel_shows_a_started_process_the_sets_that_its_spec_asked_for,
    the_kernel_shows_an_exec_the_sets_that_its_process_asked_for,
    an_exec_without_capabilities_of_its_own_has_its_containers,
    a_seccomp_rule_fails_the_call_with_its_errno,
    a_privileged_container_runs_in_a_user_namespace_where_the_node_warns_of_dead_capabilities,
];

const CHOWN: u64 = 1;
const KILL: u64 = 1 << 5;
const SETUID: u64 = 1 << 7;
const BIND: u64 = 1 << 10;

const STATUS: [&str; 4] = [
    "/bin/grep",
    "-E",
    "^(Cap...|NoNewPrivs|Seccomp):",
    "/proc/self/status",
];

#[derive(Clone, Copy, Debug)]
struct Row {
    uid: u32,
    no_new_privs: bool,
    ambient: bool,
    seccomp: bool,
}

impl Row {
    fn all() -> Vec<Self> {
        let row = |n: u32| Self {
            uid: if n & 1 == 0 { 0 } else { 1000 },
            no_new_privs: n & 2 != 0,
            ambient: n & 4 != 0,
            seccomp: n & 8 != 0,
        };
        (0..16).map(row).collect()
    }

    fn process(self) -> Value {
        let mut process = process(&STATUS);
        process["user"] = json!({"uid": self.uid, "gid": self.uid});
        process["noNewPrivileges"] = json!(self.no_new_privs);
        let ambient: &[&str] = match self.ambient {
            true => &["CAP_NET_BIND_SERVICE"],
            false => &[],
        };
        let permitted = ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
        process["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID"],
            "permitted": permitted,
            "effective": permitted,
            "inheritable": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
            "ambient": ambient,
        });
        process
    }

    /// capabilities(7), "Transformation of capabilities during execve()".
    fn status(self) -> String {
        let bounding = CHOWN | KILL | BIND | SETUID;
        let ambient = if self.ambient { BIND } else { 0 };
        let permitted = match (self.uid, self.no_new_privs) {
            (0, false) => bounding,
            // With no_new_privs execve gives nothing that was not there.
            (0, true) => CHOWN | KILL | BIND,
            _ => ambient,
        };
        format!(
            "CapInh:\t{:016x}\nCapPrm:\t{permitted:016x}\nCapEff:\t{permitted:016x}\n\
             CapBnd:\t{bounding:016x}\nCapAmb:\t{ambient:016x}\nNoNewPrivs:\t{}\nSeccomp:\t{}\n",
            KILL | BIND,
            u8::from(self.no_new_privs),
            if self.seccomp { 2 } else { 0 },
        )
    }
}

/// Neither capset nor setresuid is allowed: the runtime must not need them behind the filter.
fn profile() -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["capset", "setresuid", "chmod", "fchmodat"],
            "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
    })
}

fn the_kernel_shows_a_started_process_the_sets_that_its_spec_asked_for() {
    world(async |w| {
        let pod = w.pod().await;
        for row in Row::all() {
            let mut container = pod.container(&[]).set("/process", row.process());
            if row.seccomp {
                container = container.set("/linux/seccomp", profile());
            }
            let (status, text) = container.output().await;
            assert_eq!((status, text), (0, row.status()), "{row:?}");
        }
    });
}

async fn sleeper<'p>(pod: &'p Pod<'_>, seccomp: bool) -> Made<'p> {
    let mut container = pod.container(&["/bin/sleep", "1000"]);
    if seccomp {
        container = container.set("/linux/seccomp", profile());
    }
    container.run().await
}

fn the_kernel_shows_an_exec_the_sets_that_its_process_asked_for() {
    world(async |w| {
        let pod = w.pod().await;
        let [free, filtered] = [sleeper(&pod, false).await, sleeper(&pod, true).await];
        for row in Row::all() {
            let container = if row.seccomp { &filtered } else { &free };
            let (status, text) = container.exec_of(&row.process()).await.unwrap();
            assert_eq!((status, text), (0, row.status()), "{row:?}");
        }
    });
}

fn an_exec_without_capabilities_of_its_own_has_its_containers() {
    world(async |w| {
        let pod = w.pod().await;
        let row = Row {
            uid: 0,
            no_new_privs: false,
            ambient: true,
            seccomp: false,
        };
        let mut of_container = row.process();
        of_container["args"] = json!(["/bin/sleep", "1000"]);
        let container = pod.container(&[]).set("/process", of_container).run().await;
        let mut of_exec = row.process();
        of_exec.as_object_mut().unwrap().remove("capabilities");
        let got = container.exec_of(&of_exec).await.unwrap();
        assert_eq!(got, (0, row.status()));
    });
}

fn a_seccomp_rule_fails_the_call_with_its_errno() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod.sh("chmod 700 /tmp").set("/linux/seccomp", profile());
        let (status, text) = container.output().await;
        assert_eq!(status, 1);
        assert!(text.contains("Cannot assign requested address"), "{text}");
    });
}

/// As kubelet has it: privileged, with `hostUsers: false`.
async fn privileged(w: &World) -> Result<(u32, String), Error> {
    let map = json!([{"containerID": 0, "hostID": 1_610_612_736_u32, "size": 65536}]);
    let pod = w
        .pod_with(|spec| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.push(json!({"type": "user"}));
            spec["linux"]["uidMappings"] = map.clone();
            spec["linux"]["gidMappings"] = map;
        })
        .await;
    let all = json!([
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYS_MODULE",
        "CAP_SYS_TIME"
    ]);
    let sets = json!({"bounding": all, "effective": all, "permitted": all});
    let script = "grep CapEff /proc/self/status; mount -t tmpfs t /var && echo mounted; \
        /bin/busybox date -s @0 > /dev/null";
    let container = pod.sh(script).set("/process/capabilities", sets);
    let container = container
        .set(
            "/linux/resources/devices",
            json!([{"allow": true, "access": "rwm"}]),
        )
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]));
    let mut made = container.create().await?;
    made.start().await?;
    let status = made.wait().await.status;
    let text = made.text().await;
    made.delete().await?;
    Ok((status, text))
}

fn a_privileged_container_runs_in_a_user_namespace_where_the_node_warns_of_dead_capabilities() {
    world(async |w| {
        let error = privileged(w).await.unwrap_err();
        assert!(error.to_string().contains("dead_capabilities"), "{error}");
    });
    world_with(
        |config| config.allow_dead_capabilities = true,
        async |w| {
            let (status, text) = privileged(w).await.unwrap();
            assert_eq!(status, 0, "{text}");
            // 16, 21, 22 and 25: what the pod's own namespaces have works, the node's clock does not.
            let want = "CapEff:\t0000000002610000\nmounted\n\
                date: can't set date: Operation not permitted\n";
            assert_eq!(text, want);
        },
    );
}
