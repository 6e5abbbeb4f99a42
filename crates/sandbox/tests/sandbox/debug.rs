//! What the control socket tells of a pod's processes and threads.

use std::time::{SystemTime, UNIX_EPOCH};

use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::control::{Client, golden, until_counted};
use crate::host::without;
use crate::world::{Pod, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    procfs_dump_tells_all_of_every_process_with_escapes,
    procfs_dump_names_what_it_leaves_out,
    ps_is_a_table_of_every_process_of_the_pod,
    stacks_tell_what_every_thread_waits_for,
    stacks_tell_which_calls_are_open_and_what_their_stage_children_wait_for,
    processes_of_a_host_pid_pod_are_told_by_the_hosts_numbers,
    debug_calls_refuse_what_they_do_not_know,
];

/// PID 1 of a pod.
const INIT: &str = "berm-init";

async fn result(pod: &Pod<'_>, method: &str, arg: Value) -> Value {
    let (reply, _) = Client::to(pod).await.call_with(method, arg, &[]).await;
    assert_eq!(reply["success"], true, "{method}: {reply}");
    reply["result"].clone()
}

fn procfs_dump_tells_all_of_every_process_with_escapes() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).user(1000);
        let c = c
            .set("/process/env", json!(["A=b\u{1b}[2J", "PATH=/bin"]))
            .set("/process/cwd", json!("/tmp"));
        let c = c.run().await;
        pod.until_runs(pod.id(), &[INIT]).await;
        pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
        let dump = result(&pod, "containerManager.ProcfsDump", Value::Null).await;
        golden("containerManager.ProcfsDump", &dump);
        let all = dump.as_array().unwrap();
        assert_eq!(all.len(), 2);
        let of = |id: &str| all.iter().find(|p| p["container"] == id).unwrap();
        assert_eq!(of(pod.id())["host_pid"], pod.init());
        let sleep = of(&c.id);
        assert_eq!(sleep["host_pid"], c.pid);
        for (key, want) in [
            ("args", json!(["/bin/sleep", "1000"])),
            ("env", json!(["A=b\\u{1b}[2J", "PATH=/bin", "HOME=/"])),
            ("cwd", json!("/tmp")),
            ("root", json!("/")),
            ("exe", json!("/bin/busybox")),
            ("stat", json!({"pgid": 1, "sid": 1})),
        ] {
            assert_eq!(sleep[key], want, "{key}");
        }
        let ids = json!({"real": 1000, "effective": 1000, "saved": 1000});
        assert_eq!(
            (&sleep["status"]["uid"], &sleep["status"]["gid"]),
            (&ids, &ids)
        );
        assert_eq!(
            (&sleep["status"]["pid"], &sleep["status"]["ppid"]),
            (&json!(1), &json!(0))
        );
        assert_eq!(sleep["status"]["comm"], "sleep");
        assert!(sleep["status"]["vm_rss"].as_u64().unwrap() > 0);
        let stdin = &sleep["fdlist"][0];
        assert_eq!(stdin["number"], 0);
        assert!(
            stdin["path"].as_str().unwrap().starts_with("pipe:["),
            "{stdin}"
        );
        assert_eq!(
            stdin["mode"].as_u64().unwrap() & 0o170_000,
            0o010_000,
            "{stdin}"
        );
        let cgroups = sleep["cgroup"].as_array().unwrap();
        let path = format!("{}/{}", w.cgroup, c.id);
        assert!(
            cgroups
                .iter()
                .any(|g| g["path"].as_str().unwrap().ends_with(&path))
        );
        let maps = sleep["maps"].as_array().unwrap();
        let code =
            |m: &Value| m["permissions"]["Execute"] == true && m["pathname"] == "/bin/busybox";
        assert!(maps.iter().any(code), "{maps:?}");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos();
        let age = now - sleep["clone_ts"].as_u64().map(u128::from).unwrap();
        assert!(age < 60_000_000_000, "{age}");
        c.end().await;
    });
}

fn procfs_dump_names_what_it_leaves_out() {
    world(async |w| {
        let pod = w.pod().await;
        let long = "x".repeat(100 << 10);
        let env = json!([format!("A={long}"), format!("B={long}")]);
        let c = pod
            .container(&["/bin/sleep", "1000"])
            .set("/process/env", env);
        let c = c.run().await;
        pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
        let dump = result(&pod, "containerManager.ProcfsDump", Value::Null).await;
        let mut all = dump.as_array().unwrap().iter();
        let sleep = all.find(|p| p["container"] == c.id).unwrap();
        assert_eq!(sleep["truncated"], json!(["env"]));
        assert_eq!(sleep["args"], json!(["/bin/sleep", "1000"]));
        c.end().await;
    });
}

fn ps_is_a_table_of_every_process_of_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let other = pod.container(&["/bin/sleep", "2000"]).run().await;
        let created = pod
            .container(&["/bin/sleep", "3000"])
            .create()
            .await
            .unwrap();
        let ended = pod.container(&["/bin/true"]).run().await;
        ended.wait().await;
        pod.until_runs(pod.id(), &[INIT]).await;
        pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
        pod.until_runs(&other.id, &["/bin/sleep 2000"]).await;
        until_counted(w, &created.id, 1).await;
        let text = result(&pod, "Proc.Ps", json!({})).await;
        let text = text.as_str().unwrap();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_ascii_whitespace().collect())
            .collect();
        assert_eq!(
            rows[0],
            [
                "CONTAINER",
                "UID",
                "PID",
                "PPID",
                "C",
                "TTY",
                "STIME",
                "TIME",
                "CMD"
            ]
        );
        let row = |id: &str, end: &[&str]| {
            let found = rows.iter().find(|row| row[0] == id && row.ends_with(end));
            found.unwrap_or_else(|| panic!("{id} {end:?} in {text}"))
        };
        assert_eq!(row(&c.id, &["/bin/sleep", "1000"])[1..4], ["0", "1", "0"]);
        row(&other.id, &["/bin/sleep", "2000"]);
        row(pod.id(), &[]);
        row(&created.id, &[]);
        assert!(!text.contains(&format!("{} ", ended.id)));
        let list = result(&pod, "Proc.Ps", json!({"JSON": true})).await;
        golden("containerManager.Processes", &list);
        assert_eq!(list.as_array().unwrap().len(), rows.len() - 1);
        c.end().await;
        other.end().await;
        created.delete().await.unwrap();
        ended.delete().await.unwrap();
    });
}

fn stacks_tell_what_every_thread_waits_for() {
    world(async |w| {
        let pod = w.pod().await;
        let mut c = pod.sh("echo ready; exec cat").run().await;
        assert_eq!(c.line().await, "ready");
        pod.until_runs(pod.id(), &[INIT]).await;
        pod.until_runs(&c.id, &["cat"]).await;
        // Asked until it waits: nothing tells when it does. What is told of a thread that runs is
        // of more than one moment.
        let (text, of) = loop {
            let text = result(&pod, "debug.Stacks", Value::Null).await;
            let text = text.as_str().unwrap().to_owned();
            let of = text
                .split("container ")
                .find(|part| part.starts_with(&c.id));
            let of = of.unwrap_or_else(|| panic!("{text}")).to_owned();
            if of.contains("\"cat\": state S") && of.contains("system call read(0x0, 0x") {
                break (text, of);
            }
        };
        assert!(
            of.starts_with(&format!("{} (running), processes: 1\n", c.id)),
            "{of}"
        );
        assert!(
            of.contains(&format!("process 1 (host {}) \"cat\"", c.pid)),
            "{of}"
        );
        assert!(of.contains("pipe_read"), "{of}");
        assert!(text.contains(&format!("container {} (running), processes: 1", pod.id())));
        c.end().await;
    });
}

fn stacks_tell_which_calls_are_open_and_what_their_stage_children_wait_for() {
    world(async |w| {
        let pod = w.pod().await;
        let stacks = async || {
            let text = result(&pod, "debug.Stacks", Value::Null).await;
            text.as_str().unwrap().to_owned()
        };
        let text = stacks().await;
        let own = std::process::id();
        // The call itself, and the child that it looks with.
        assert!(
            text.starts_with(&format!("shim (host {own}), open calls: ")),
            "{text}"
        );
        assert!(text.contains(" s control debug.Stacks\n"), "{text}");
        assert!(!text.contains("stage Create"), "{text}");
        // A hook that does not end holds up its container's creation.
        let fifo = w.dir("fifo").join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let script = format!("exec /bin/cat {}", fifo.display());
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
        let c = pod
            .container(&["/bin/sleep", "1000"])
            .set("/hooks/createRuntime", hook);
        let creating = c.create();
        let looking = async {
            loop {
                let text = stacks().await;
                if text.contains(" s stage Create\n")
                    && text.contains(" s stage Hook\n")
                    && text.contains("\"cat\"")
                    && text.contains("system call openat(")
                {
                    break text;
                }
            }
        };
        let finish = async {
            let text = looking.await;
            drop(std::fs::OpenOptions::new().write(true).open(&fifo).unwrap());
            text
        };
        let (made, text) = tokio::join!(creating, finish);
        let made = made.unwrap();
        assert!(text.contains("waits in "), "{text}");
        made.delete().await.unwrap();
        let text = stacks().await;
        assert!(
            !text.contains("stage Create") && !text.contains("stage Hook"),
            "{text}"
        );
    });
}

fn processes_of_a_host_pid_pod_are_told_by_the_hosts_numbers() {
    world(async |w| {
        let pod = w.pod_with(without(&["pid"])).await;
        let script = "sleep 1000 & echo ready; wait";
        let mut c = pod.sh(script).shared_pidns().run().await;
        assert_eq!(c.line().await, "ready");
        let nested = pod.container(&["/bin/sleep", "2000"]).run().await;
        pod.until_runs(&nested.id, &["/bin/sleep 2000"]).await;
        let shell = format!("/bin/sh -c {script}");
        pod.until_runs(&c.id, &[&shell, "sleep 1000"]).await;
        let list = result(&pod, "containerManager.Processes", json!(c.id)).await;
        let list = list.as_array().unwrap();
        assert_eq!(list.len(), 2, "{list:?}");
        for process in list {
            assert_eq!(process["pid"], process["host_pid"]);
        }
        assert_eq!(list[0]["pid"], c.pid);
        assert_eq!(
            (&list[1]["ppid"], &list[1]["cmd"]),
            (&json!(c.pid), &json!("sleep 1000"))
        );
        let list = result(&pod, "containerManager.Processes", json!(nested.id)).await;
        assert_eq!(
            (&list[0]["pid"], &list[0]["host_pid"]),
            (&json!(1), &json!(nested.pid))
        );
        let dump = result(&pod, "containerManager.ProcfsDump", Value::Null).await;
        let of = |pid: i32| {
            let mut all = dump.as_array().unwrap().iter();
            all.find(|p| p["host_pid"] == pid).unwrap()["status"].clone()
        };
        let own = std::process::id();
        assert_eq!(
            (&of(c.pid)["pid"], &of(c.pid)["ppid"]),
            (&json!(c.pid), &json!(own))
        );
        // Its parent is in a namespace that it does not see.
        assert_eq!(
            (&of(nested.pid)["pid"], &of(nested.pid)["ppid"]),
            (&json!(1), &json!(0))
        );
        let stacks = result(&pod, "debug.Stacks", Value::Null).await;
        let process = format!("process {0} (host {0}) \"sh\"", c.pid);
        assert!(stacks.as_str().unwrap().contains(&process), "{stacks}");
        c.end().await;
        nested.end().await;
        pod.end().await;
    });
}

fn debug_calls_refuse_what_they_do_not_know() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let cases = [
            ("debug.Stacks", json!("c1"), "InvalidArgument"),
            ("Proc.Ps", json!({"json": true}), "InvalidArgument"),
            (
                "containerManager.ProcfsDump",
                json!("c1"),
                "InvalidArgument",
            ),
            ("containerManager.Processes", Value::Null, "InvalidArgument"),
            ("debug.Nope", Value::Null, "NotSupported"),
        ];
        for (method, arg, kind) in cases {
            let (reply, _) = client.call_with(method, arg, &[]).await;
            assert_eq!(reply["kind"], kind, "{method}: {reply}");
        }
        let later = [
            "containerManager.Checkpoint",
            "containerManager.Restore",
            "containerManager.CreateTraceSession",
            "containerManager.DeleteTraceSession",
            "containerManager.ListTraceSessions",
            "Profile.CPU",
            "Profile.Heap",
            "Profile.Block",
            "Profile.Mutex",
            "Profile.Trace",
        ];
        for method in later {
            let (reply, _) = client.call_with(method, Value::Null, &[]).await;
            assert_eq!(reply["kind"], "NotSupported");
            let text = reply["err"].as_str().unwrap();
            assert!(
                text.starts_with(method) && text.ends_with("later release"),
                "{text}"
            );
        }
    });
}
