//! Hooks: when they run, where, as whom, and what their failures do.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::{Container, process};
use crate::world::{World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    each_kind_runs_at_its_time_in_its_namespaces_with_the_state_as_its_input,
    a_runtime_hook_mounts_into_the_tree_by_the_containers_pid,
    a_create_container_hook_changes_and_mounts_the_tree,
    a_start_container_hook_is_the_containers_program_as_its_user,
    hooks_run_in_the_order_of_the_spec_with_their_environment_alone,
    a_root_that_is_read_only_is_so_after_the_hooks,
    a_container_with_hooks_is_as_locked_and_as_empty_as_one_without,
    a_failing_hook_fails_creation_with_its_output_and_leaves_nothing,
    a_failing_start_hook_fails_the_start_and_stops_the_container,
    a_hook_that_hangs_is_killed_with_its_children,
    failures_after_start_and_stop_change_nothing,
    a_hook_that_is_not_there_is_named,
    a_hook_may_say_more_than_is_kept,
    a_hook_runs_in_a_pod_with_a_shared_pid_namespace,
    hooks_of_a_host_pod_run_as_root_of_the_host_and_leak_no_mount,
    hooks_of_a_container_without_a_user_namespace_change_its_tree_and_not_the_hosts,
    hooks_of_a_sandbox_are_refused,
];

/// A program of the host that tells, in files of `dir`, that it ran: `NAME.state`, `NAME.env`,
/// `NAME.ns`, `NAME.cwd`; then runs `more`.
fn program(w: &World, dir: &Path, more: &str) -> PathBuf {
    let path = w.dir.join(w.name("hook"));
    let dir = dir.display();
    let script = format!(
        "#!/bin/sh\nIFS= read -r state\necho \"$state\" > {dir}/$1.state\n\
         /usr/bin/env > {dir}/$1.env\n\
         /bin/pwd > {dir}/$1.cwd\necho $1 >> {dir}/order\n\
         for n in mnt pid net ipc uts user cgroup; do readlink /proc/thread-self/ns/$n; \
         done > {dir}/$1.ns\n{more}\n"
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A directory of the host in which everybody may write.
fn open_dir(w: &World) -> PathBuf {
    let dir = w.dir("told");
    fs::write(dir.join("order"), "").unwrap();
    let all = fs::Permissions::from_mode(0o666);
    fs::set_permissions(dir.join("order"), all).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

fn hook(path: &Path, name: &str) -> Value {
    json!({"path": path, "args": ["hook", name], "env": ["A=1"]})
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn state(dir: &Path, name: &str) -> Value {
    serde_json::from_str(&read(dir, &format!("{name}.state"))).unwrap()
}

/// Namespaces by name, as `/proc/<pid>/ns` of the host shows them.
fn namespaces(pid: &str) -> BTreeMap<&'static str, String> {
    ["mnt", "net", "ipc", "uts", "user", "cgroup"]
        .into_iter()
        .map(|name| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            (name, link.display().to_string())
        })
        .collect()
}

fn hooks_of_a_container_without_a_user_namespace_change_its_tree_and_not_the_hosts() {
    world(async |w| {
        let mounts = || {
            fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .lines()
                .count()
        };
        let before = mounts();
        let pod = w
            .pod_with(|spec| {
                let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
                list.retain(|entry| entry["type"] != "pid" && entry["type"] != "network");
            })
            .await;
        let dir = open_dir(w);
        let source = w.dir("source");
        fs::write(source.join("file"), "mounted\n").unwrap();
        let mut container = pod.sh("cat /var/file; exit 3").shared_pidns();
        let more = format!(
            "mount --bind {} {}/var",
            source.display(),
            container.root.display()
        );
        let program = program(w, &dir, &more);
        container.spec["hooks"]["createContainer"] = json!([hook(&program, "createContainer")]);
        container.spec["hooks"]["poststart"] = json!([hook(&program, "poststart")]);
        container.spec["hooks"]["poststart"][0]["path"] = json!("/bin/true");
        let (code, out) = container.output().await;
        assert_eq!((code, &*out), (3, "mounted\n"));
        assert_eq!(mounts(), before);
    });
}

const HOST_KINDS: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

fn each_kind_runs_at_its_time_in_its_namespaces_with_the_state_as_its_input() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = open_dir(w);
        let program = program(w, &dir, "");
        let mut container = pod.container(&["/bin/sleep", "1000"]);
        container.spec["annotations"]["who"] = json!("me");
        for kind in [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop",
        ] {
            container.spec["hooks"][kind] = json!([hook(&program, kind)]);
        }
        let made = container.create().await.unwrap();
        assert_eq!(
            read(&dir, "order"),
            "prestart\ncreateRuntime\ncreateContainer\n"
        );
        let host = namespaces("self");
        for kind in ["prestart", "createRuntime"] {
            let state = state(&dir, kind);
            assert_eq!(state["status"], "creating", "{kind}");
            assert_eq!(state["pid"], made.pid, "{kind}");
            assert_eq!(state["id"], made.id.as_str());
            assert_eq!(state["ociVersion"], "1.2.0");
            assert_eq!(state["bundle"], json!(w.dir));
            assert_eq!(state["annotations"]["who"], "me");
        }
        assert_eq!(state(&dir, "createContainer")["pid"], 1);
        let of_container = namespaces(&made.pid.to_string());
        let inside = read(&dir, "createContainer.ns");
        for name in ["mnt", "net", "ipc", "uts", "user", "cgroup"] {
            assert!(inside.contains(&of_container[name]), "{name}: {inside}");
        }
        // Its working directory is where the tree stands on the host.
        assert_eq!(
            read(&dir, "createContainer.cwd"),
            format!("{}\n", made.root.display())
        );
        made.start().await.unwrap();
        assert!(read(&dir, "order").ends_with("createContainer\npoststart\n"));
        assert_eq!(state(&dir, "poststart")["status"], "running");
        assert_eq!(state(&dir, "poststart")["pid"], made.pid);
        made.end().await;
        assert!(read(&dir, "order").ends_with("poststart\npoststop\n"));
        let stopped = state(&dir, "poststop");
        assert_eq!(
            (&stopped["status"], &stopped["pid"]),
            (&json!("stopped"), &Value::Null)
        );
        for kind in HOST_KINDS {
            let told = read(&dir, &format!("{kind}.ns"));
            for (name, link) in &host {
                assert!(told.contains(link), "{kind} {name}: {told}");
            }
            assert_eq!(
                read(&dir, &format!("{kind}.cwd")),
                format!("{}\n", w.dir.display())
            );
        }
    });
}

fn a_runtime_hook_mounts_into_the_tree_by_the_containers_pid() {
    for kind in ["prestart", "createRuntime"] {
        world(async |w| {
            let pod = w.pod().await;
            let library = w.dir("library");
            fs::write(library.join("libx.so"), "a library\n").unwrap();
            let container =
                pod.sh("cat /mnt/libx.so; echo x > /mnt/new; grep -c /mnt /proc/mounts");
            fs::create_dir(container.root.join("mnt")).unwrap();
            let more = format!(
                "pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/')\n\
                 nsenter -t $pid -m mount --bind -o ro {} {}/mnt",
                library.display(),
                container.root.display()
            );
            let program = program(w, &open_dir(w), &more);
            let container = container.set(&format!("/hooks/{kind}"), json!([hook(&program, kind)]));
            let container = with_path(container, kind);
            let (_, text) = container.output().await;
            assert!(
                text.starts_with("a library\n") && text.ends_with("1\n"),
                "{text}"
            );
            assert!(text.contains("new"), "{text}");
            // Nothing of it is on the host.
            let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(&w.dir.display().to_string()), "{mounts}");
        });
    }
}

/// Gives the only hook of a kind a PATH.
fn with_path<'p>(container: Container<'p>, kind: &str) -> Container<'p> {
    let env = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    container.set(&format!("/hooks/{kind}/0/env"), env)
}

fn a_create_container_hook_changes_and_mounts_the_tree() {
    world(async |w| {
        let pod = w.pod().await;
        let extra = w.dir("extra");
        fs::write(extra.join("f"), "extra\n").unwrap();
        let more = format!(
            "ln -s busybox bin/made-by-hook && mkdir -p mnt/x && \
             mount --bind {} $PWD/mnt/x && echo of the pod > etc/hooked",
            extra.display()
        );
        let program = program(w, &open_dir(w), &more);
        let script = "readlink /bin/made-by-hook; cat /mnt/x/f /etc/hooked; stat -c %u /etc/hooked";
        let container = pod
            .sh(script)
            .set("/hooks/createContainer", json!([hook(&program, "c")]));
        let (status, text) = with_path(container, "createContainer").output().await;
        assert_eq!(
            (status, text.as_str()),
            (0, "busybox\nextra\nof the pod\n0\n")
        );
    });
}

fn a_start_container_hook_is_the_containers_program_as_its_user() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod
            .sh("cat /tmp/hook; id -u")
            .user(1000)
            .set("/process/noNewPrivileges", json!(true));
        fs::set_permissions(
            container.root.join("tmp"),
            fs::Permissions::from_mode(0o777),
        )
        .unwrap();
        let script = "{ id -u; env; readlink /proc/self/root; grep -E 'NoNewPrivs|CapEff' \
            /proc/self/status; cat; } > /tmp/hook";
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]});
        let (status, text) = container
            .set("/hooks/startContainer", json!([hook]))
            .output()
            .await;
        assert_eq!(status, 0, "{text}");
        let caps = "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n";
        for want in [
            "1000\n",
            "PATH=/bin\n",
            "\n/\n",
            caps,
            "\"status\":\"created\"",
            "\"pid\":1",
        ] {
            assert!(text.contains(want), "{want:?} is not in {text}");
        }
        assert!(!text.contains("HOME="), "{text}");
    });
}

fn hooks_run_in_the_order_of_the_spec_with_their_environment_alone() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = open_dir(w);
        let program = program(w, &dir, "");
        let mut bare = hook(&program, "second");
        bare.as_object_mut().unwrap().remove("env");
        let hooks = json!([hook(&program, "first"), bare, hook(&program, "third")]);
        let container = pod.sh("true").set("/hooks/createRuntime", hooks);
        assert_eq!(container.output().await.0, 0);
        assert_eq!(read(&dir, "order"), "first\nsecond\nthird\n");
        // sh itself adds PWD and the like.
        let env = |name: &str| {
            let text = read(&dir, &format!("{name}.env"));
            let own = |l: &&str| {
                !["PWD=", "SHLVL=", "_=", "OLDPWD="]
                    .iter()
                    .any(|p| l.starts_with(p))
            };
            text.lines()
                .filter(own)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(env("first"), ["A=1"]);
        assert_eq!(env("second"), Vec::<String>::new());
    });
}

fn a_root_that_is_read_only_is_so_after_the_hooks() {
    world(async |w| {
        let pod = w.pod().await;
        let program = program(w, &open_dir(w), "echo early > etc/early");
        let container = pod
            .sh("cat /etc/early; echo late > /etc/late")
            .set("/root/readonly", json!(true))
            .set("/hooks/createContainer", json!([hook(&program, "c")]));
        let (status, text) = with_path(container, "createContainer").output().await;
        assert_eq!(status, 1, "{text}");
        assert!(text.starts_with("early\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
    });
}

fn a_container_with_hooks_is_as_locked_and_as_empty_as_one_without() {
    world(async |w| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        let script = "sed -e 's/^[0-9]* [0-9]* [0-9:]* //' -e 's/ - / /' /proc/self/mountinfo \
            | sed -e 's/master:[0-9]* //' | cut -d' ' -f2-5; mount -o remount,rw,bind /v; echo x > /v/x";
        let container = |hooked: bool| {
            let container = pod.sh(script).mount("/v", "bind", &volume, &["bind", "ro"]);
            let masks = json!(["/etc/passwd", "/etc/group", "/root", "/var"]);
            let container = container.set("/linux/maskedPaths", masks);
            let bounding = json!(["CAP_SYS_ADMIN"]);
            let mut container = container.set(
                "/process/capabilities",
                json!({
                "bounding": bounding, "effective": bounding, "permitted": bounding}),
            );
            if hooked {
                container.spec["hooks"]["createRuntime"] = json!([{"path": "/bin/true"}]);
            }
            container
        };
        let (_, plain) = container(false).output().await;
        let (_, hooked) = container(true).output().await;
        assert_eq!(hooked, plain);
        assert!(!volume.join("x").exists());
    });
}

fn a_failing_hook_fails_creation_with_its_output_and_leaves_nothing() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        world(async |w| {
            let pod = w.pod().await;
            let dir = open_dir(w);
            let bad = program(w, &dir, "echo said; printf 'no \\033device' >&2; exit 3");
            let good = program(w, &dir, "");
            let container = pod
                .sh("true")
                .set(
                    &format!("/hooks/{kind}"),
                    json!([hook(&good, "good"), hook(&bad, "bad")]),
                )
                .set("/hooks/poststop", json!([hook(&good, "stopped")]));
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            let want = format!(
                "hooks.{kind}[1] {bad:?}: exited with 3, stderr: no \\u{{1b}}device, stdout: said"
            );
            assert_eq!(error.to_string(), want);
            assert_eq!(read(&dir, "order"), "good\nbad\nstopped\n");
            assert_eq!(pod.sh("exit 4").output().await.0, 4);
        });
    }
}

fn a_failing_start_hook_fails_the_start_and_stops_the_container() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = open_dir(w);
        let stopped = program(w, &dir, "");
        let bad = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 7"]});
        let container = pod
            .sh("echo ran")
            .set("/hooks/startContainer", json!([bad]))
            .set("/hooks/poststop", json!([hook(&stopped, "stopped")]));
        let mut made = container.create().await.unwrap();
        let error = made.start().await.unwrap_err();
        let want = "hooks.startContainer[0] \"/bin/sh\": exited with 7, stderr: why";
        assert_eq!(error.to_string(), want);
        made.wait().await;
        assert_eq!(made.text().await, "");
        made.delete().await.unwrap();
        assert_eq!(read(&dir, "order"), "stopped\n");
    });
}

fn a_hook_that_hangs_is_killed_with_its_children() {
    world(async |w| {
        let pod = w.pod().await;
        // A shell on a busy machine has time enough to speak.
        let hung = json!({"path": "/bin/sh", "env": ["PATH=/bin"], "timeout": 3,
            "args": ["sh", "-c", "echo waiting; sleep 1000 & sleep 1000"]});
        let hangs = async |kind: &str| {
            let container = pod.sh("true").set(&format!("/hooks/{kind}"), json!([hung]));
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::DeadlineExceeded);
            let want =
                format!("hooks.{kind}[0] \"/bin/sh\": did not end within 3 s, stdout: waiting");
            assert_eq!(error.to_string(), want);
        };
        tokio::join!(
            hangs("createRuntime"),
            hangs("createContainer"),
            hangs("startContainer")
        );
    });
}

fn failures_after_start_and_stop_change_nothing() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = open_dir(w);
        let bad = program(w, &dir, "exit 1");
        let container = pod
            .container(&["/bin/sleep", "1000"])
            .set(
                "/hooks/poststart",
                json!([hook(&bad, "a"), hook(&bad, "b")]),
            )
            .set("/hooks/poststop", json!([hook(&bad, "c"), hook(&bad, "d")]));
        let made = container.run().await;
        assert_eq!(made.exec(&["/bin/true"]).await.0, 0);
        made.end().await;
        assert_eq!(read(&dir, "order"), "a\nb\nc\nd\n");
    });
}

fn a_hook_that_is_not_there_is_named() {
    for (kind, text) in [
        (
            "createRuntime",
            "exec \"/no/such\": no such file or directory",
        ),
        (
            "createContainer",
            "exec \"/no/such\": no such file or directory",
        ),
        (
            "startContainer",
            "exec: \"/no/such\": stat /no/such: no such file or directory",
        ),
    ] {
        world(async |w| {
            let pod = w.pod().await;
            let hooks = json!([{"path": "/no/such"}]);
            let error = pod
                .sh("true")
                .set(&format!("/hooks/{kind}"), hooks)
                .refused()
                .await;
            assert_eq!(error.kind(), Kind::NotFound);
            assert_eq!(
                error.to_string(),
                format!("hooks.{kind}[0] \"/no/such\": {text}")
            );
        });
    }
}

fn a_hook_may_say_more_than_is_kept() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "head -c 3000000 /dev/zero | tr '\\0' x; exit 1";
        let loud = json!({"path": "/bin/sh", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/bin:/bin"]});
        let error = pod
            .sh("true")
            .set("/hooks/prestart", json!([loud]))
            .refused()
            .await;
        let text = error.to_string();
        assert!(
            text.ends_with(&format!("stdout: {}", "x".repeat(512))),
            "{text}"
        );
    });
}

fn a_hook_runs_in_a_pod_with_a_shared_pid_namespace() {
    world(async |w| {
        let pod = w.pod().await;
        let dir = open_dir(w);
        let program = program(w, &dir, "");
        let container = pod
            .container(&["/bin/sleep", "1000"])
            .shared_pidns()
            .set("/hooks/createContainer", json!([hook(&program, "c")]))
            .set("/hooks/startContainer", json!([{"path": "/bin/true"}]));
        let made = container.run().await;
        let pid = state(&dir, "c")["pid"].as_i64().unwrap();
        assert!(pid > 1, "{pid}");
        let (_, comm) = made.exec(&["/bin/cat", &format!("/proc/{pid}/comm")]).await;
        assert_eq!(comm, "sleep\n");
        let mut exec = process(&["/bin/true"]);
        exec["cwd"] = json!("/");
        assert_eq!(made.exec_of(&exec).await.unwrap().0, 0);
        made.end().await;
    });
}

fn hooks_of_a_host_pod_run_as_root_of_the_host_and_leak_no_mount() {
    world(async |w| {
        let no_network = |spec: &mut Value| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|entry| entry["type"] != "network");
        };
        let pod = w.pod_with(no_network).await;
        let dir = open_dir(w);
        let extra = w.dir("extra");
        fs::write(extra.join("f"), "extra\n").unwrap();
        let mount = format!(
            "mount --bind {} $PWD/mnt && id -u > mnt/id",
            extra.display()
        );
        let inside = program(w, &dir, &mount);
        let outside = program(w, &dir, "");
        let mut container = pod.sh("cat /mnt/f /mnt/id /tmp/started; grep -c /mnt /proc/mounts");
        no_network(&mut container.spec);
        fs::create_dir(container.root.join("mnt")).unwrap();
        let start = json!({"path": "/bin/sh", "args": ["sh", "-c", "echo s > /tmp/started"]});
        let container = container
            .set("/hooks/createRuntime", json!([hook(&outside, "r")]))
            .set("/hooks/createContainer", json!([hook(&inside, "c")]))
            .set("/hooks/startContainer", json!([start]));
        let container = with_path(container, "createContainer");
        assert_eq!(container.output().await, (0, "extra\n0\ns\n1\n".into()));
        assert_eq!(read(&dir, "order"), "r\nc\n");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&w.dir.display().to_string()), "{mounts}");
    });
}

fn hooks_of_a_sandbox_are_refused() {
    world(async |w| {
        let hooks = json!({"poststart": [{"path": "/bin/true"}]});
        let error = w.try_pod(|spec| spec["hooks"] = hooks).await.err().unwrap();
        assert_eq!(error.kind(), Kind::NotSupported);
        let text = error.to_string();
        assert!(
            text.starts_with("hooks.poststart[0]: the sandbox of a pod has no root"),
            "{text}"
        );
    });
}
