//! Containers that a client of the control socket makes in a sandbox that is another's.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use berm_sandbox::{ContainerArgs, Spec, Status};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, timeout};

use crate::control::{Client, exec_args, pipe};
use crate::world::{Pod, SOON, World, open_files, pods_get_user_namespaces, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_container_of_the_socket_runs_is_inspected_waited_for_and_destroyed,
    a_container_of_the_socket_is_in_the_record_until_it_is_destroyed,
    a_container_of_the_socket_is_told_to_listeners_and_not_to_the_sandboxs_maker,
    a_container_of_the_socket_with_a_terminal_brings_its_master,
    a_duplicate_id_already_exists_whoever_made_the_first,
    a_start_before_its_create_is_not_found,
    a_second_start_of_a_container_or_of_the_root_fails_its_precondition,
    a_subcontainer_is_not_started_before_its_root,
    a_failed_start_leaves_nothing_and_frees_the_id,
    what_only_a_gofer_could_use_is_refused_by_its_key,
    the_spec_of_a_sandbox_or_of_anothers_container_is_refused,
    a_relative_root_is_in_the_bundle_and_refused_without_one,
    a_destroy_ends_a_paused_container_and_the_second_does_nothing,
    a_destroy_ends_a_container_that_ignores_signals_with_all_its_processes,
    a_destroy_of_a_taken_id_frees_it_and_tells_who_waits,
    a_destroy_of_the_makers_container_leaves_it_stopped_until_he_deletes_it,
    a_destroy_of_the_root_ends_the_whole_pod,
    containers_of_the_socket_end_with_the_last_task_of_the_sandboxs_maker,
    a_destroyed_sandbox_takes_containers_of_the_socket_along_in_every_state,
    a_container_beside_the_workload_of_a_pod_of_one_ends_without_it,
    a_client_that_vanishes_while_it_starts_a_container_leaves_it_whole,
];

/// What gVisor's launcher sends, without the files of a gofer.
fn start_args(id: &str, spec: &Value) -> Value {
    json!({"CID": id, "Spec": spec, "Conf": null, "NumGoferFilestoreFDs": 0,
        "IsDevIoFilePresent": false, "GoferMountConfs": null, "IsRootfsUpperTarFilePresent": false})
}

/// A spec of the pod's, and an id that its cgroup has too.
fn spec(pod: &Pod<'_>, script: &str) -> (String, Value) {
    let c = pod.sh(script);
    (c.id, c.spec)
}

async fn call(
    pod: &Pod<'_>,
    method: &str,
    arg: Value,
    fds: &[BorrowedFd<'_>],
) -> Result<Value, (String, String)> {
    let client = Client::to(pod).await;
    let method = format!("containerManager.{method}");
    let (reply, files) = client.call_with(&method, arg, fds).await;
    assert!(files.is_empty(), "{reply}");
    match reply["success"].as_bool() {
        Some(true) => Ok(reply["result"].clone()),
        _ => {
            let text = |key: &str| reply[key].as_str().unwrap().to_owned();
            Err((text("kind"), text("err")))
        }
    }
}

async fn create(pod: &Pod<'_>, id: &str) -> Result<Value, (String, String)> {
    call(pod, "CreateSubcontainer", json!({"CID": id}), &[]).await
}

async fn destroy(pod: &Pod<'_>, id: &str) -> Result<Value, (String, String)> {
    call(pod, "DestroySubcontainer", json!(id), &[]).await
}

async fn start(pod: &Pod<'_>, id: &str, spec: &Value) -> Result<Value, (String, String)> {
    call(pod, "StartSubcontainer", start_args(id, spec), &[]).await
}

/// One that runs.
async fn made(pod: &Pod<'_>, script: &str) -> String {
    let (id, spec) = spec(pod, script);
    assert_eq!(create(pod, &id).await.unwrap(), json!({}));
    assert_eq!(start(pod, &id, &spec).await.unwrap(), json!({}));
    id
}

/// No process, no cgroup, no record of it is left, and its id is free.
async fn assert_gone(w: &World, pod: &Pod<'_>, id: &str) {
    assert!(!pod.sandbox.tasks().contains(&id.to_owned()));
    assert!(!w.cgroup_dir("memory", id).exists());
    let dir = pod
        .sandbox
        .record()
        .control_socket_path
        .with_file_name("containers");
    let left = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert_eq!(names.find(|name| name.starts_with(&format!("{id}."))), None);
}

fn a_container_of_the_socket_runs_is_inspected_waited_for_and_destroyed() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "echo out; echo err >&2; read a; echo got $a; exit 6";
        let (id, spec) = spec(&pod, script);
        create(&pod, &id).await.unwrap();
        let client = Client::to(&pod).await;
        assert_eq!(client.ok("ContainerRuntimeState", json!(id)).await, 1);
        let (stdin, to) = pipe();
        let (mut out, stdout) = pipe();
        let (mut err, stderr) = pipe();
        let files = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let started = call(&pod, "StartSubcontainer", start_args(&id, &spec), &files).await;
        assert_eq!(started.unwrap(), json!({}));
        drop((stdin, stdout, stderr));
        assert_eq!(client.ok("ContainerRuntimeState", json!(id)).await, 2);
        pod.until_runs(&id, &[&format!("/bin/sh -c {script}")])
            .await;
        let processes = client.ok("Processes", json!(id)).await;
        assert_eq!(processes.as_array().unwrap().len(), 1, "{processes}");
        let event = client.ok("Event", json!(id)).await;
        assert!(event["containerUsage"][&id].is_u64(), "{event}");
        let exec = client.exec(&id, "exit 4").await;
        let wait = json!({"CID": id, "PID": exec});
        assert_eq!(client.ok("WaitPID", wait).await, 4 << 8);
        std::io::Write::write_all(&mut { to }, b"it\n").unwrap();
        for _ in 0..2 {
            assert_eq!(client.ok("Wait", json!(id)).await, 6 << 8, "a late one too");
        }
        assert_eq!(client.ok("ContainerRuntimeState", json!(id)).await, 3);
        let (mut told, mut complained) = (String::new(), String::new());
        out.read_to_string(&mut told).unwrap();
        err.read_to_string(&mut complained).unwrap();
        assert_eq!((&*told, &*complained), ("out\ngot it\n", "err\n"));
        destroy(&pod, &id).await.unwrap();
        assert_gone(w, &pod, &id).await;
        assert_eq!(client.refused("Event", json!(id)).await.0, "NotFound");
    });
}

fn a_container_of_the_socket_is_in_the_record_until_it_is_destroyed() {
    world(async |w| {
        let pod = w.pod().await;
        let id = made(&pod, "exec sleep 1000").await;
        let dir = pod
            .sandbox
            .record()
            .control_socket_path
            .with_file_name("containers");
        let record = fs::read(dir.join(format!("{id}.json"))).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(record["id"], id);
        let pid = pod.sandbox.pid(&id).unwrap();
        assert_eq!(record["init"]["pid"], pid, "{record}");
        let client = Client::to(&pod).await;
        let (states, _) = client.call_with("berm.State", Value::Null, &[]).await;
        let states = states["result"].as_array().unwrap();
        assert!(states.iter().any(|s| s["id"] == id && s["pid"] == pid));
        destroy(&pod, &id).await.unwrap();
        assert_gone(w, &pod, &id).await;
    });
}

fn a_container_of_the_socket_is_told_to_listeners_and_not_to_the_sandboxs_maker() {
    world(async |w| {
        let pod = w.pod().await;
        let (mut heard, says) = pipe();
        pod.sandbox.stream_events(None, says.into()).unwrap();
        let id = made(&pod, "exec sleep 1000").await;
        pod.sandbox.pause(&id).await.unwrap();
        pod.sandbox.resume(&id).await.unwrap();
        pod.sandbox.pause_all().await.unwrap();
        pod.sandbox.resume_all().await.unwrap();
        Client::to(&pod).await.exec(&id, "exec sleep 1000").await;
        pod.sandbox.kill(&id, None, 9, true).await.unwrap();
        pod.sandbox.wait(&id, None).await.unwrap();
        destroy(&pod, &id).await.unwrap();
        assert_eq!(pod.story(&id), Vec::<String>::new());
        assert_eq!(
            types_until_deleted(&mut heard, &id).await,
            [
                "created", "started", "paused", "resumed", "paused", "resumed", "exited", "deleted"
            ]
        );
        // The sandbox's maker hears of his own as ever.
        let c = pod.container(&["/bin/true"]).run().await;
        c.wait().await;
        c.delete().await.unwrap();
        assert_eq!(
            pod.story(&c.id),
            ["created", "started", "exited 0", "deleted 0"]
        );
    });
}

/// The types of a container's events that a listener hears, in order.
async fn types_until_deleted(heard: &mut fs::File, id: &str) -> Vec<String> {
    rustix::io::ioctl_fionbio(&*heard, true).unwrap();
    let (mut bytes, until) = (Vec::new(), Instant::now() + SOON);
    loop {
        let mut part = [0; 4096];
        if let Ok(len) = heard.read(&mut part) {
            bytes.extend(&part[..len]);
        }
        let lines = bytes.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let of = lines.filter(|line| line["id"] == id);
        let types: Vec<_> = of.map(|e| e["type"].as_str().unwrap().to_owned()).collect();
        if types.iter().any(|typ| typ == "deleted") {
            return types;
        }
        assert!(Instant::now() < until, "{types:?}");
        tokio::task::yield_now().await;
    }
}

fn a_container_of_the_socket_with_a_terminal_brings_its_master() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, mut spec) = spec(&pod, "tty; exit 2");
        spec["process"]["terminal"] = json!(true);
        let (_, file) = pipe();
        let taken = json!({"CID": id});
        let refused = call(&pod, "CreateSubcontainer", taken, &[file.as_fd()]).await;
        let (kind, text) = refused.unwrap_err();
        assert!(
            kind == "NotSupported" && text.contains("terminal"),
            "{text}"
        );
        create(&pod, &id).await.unwrap();
        let files = [file.as_fd(), file.as_fd(), file.as_fd()];
        let refused = call(&pod, "StartSubcontainer", start_args(&id, &spec), &files).await;
        assert_eq!(refused.unwrap_err().0, "NotSupported");
        let client = Client::to(&pod).await;
        let method = "containerManager.StartSubcontainer";
        let (reply, mut fds) = client.call_with(method, start_args(&id, &spec), &[]).await;
        assert_eq!(reply["result"], json!({}), "{reply}");
        assert_eq!(fds.len(), 1);
        assert_eq!(client.ok("Wait", json!(id)).await, 2 << 8);
        let mut shown = [0; 512];
        let master = fs::File::from(fds.remove(0));
        let len = { master }.read(&mut shown).unwrap();
        let shown = String::from_utf8_lossy(&shown[..len]);
        assert!(shown.contains("/dev/pts/0"), "{shown}");
        destroy(&pod, &id).await.unwrap();
    });
}

fn a_duplicate_id_already_exists_whoever_made_the_first() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let (id, spec) = spec(&pod, "exec sleep 1000");
        create(&pod, &id).await.unwrap();
        for taken in [c.id.as_str(), pod.id(), &id] {
            let (kind, text) = create(&pod, taken).await.unwrap_err();
            assert_eq!(kind, "AlreadyExists", "{text}");
            assert!(text.contains(taken), "{text}");
        }
        let parsed = Spec::parse(spec.to_string().as_bytes()).unwrap();
        let args = ContainerArgs::new(&id, &w.dir, parsed);
        let e = pod.sandbox.create_container(args).await.unwrap_err();
        assert_eq!(e.kind(), Kind::AlreadyExists);
        // The one that has the id is as before.
        start(&pod, &id, &spec).await.unwrap();
        let (kind, _) = create(&pod, &id).await.unwrap_err();
        assert_eq!(kind, "AlreadyExists");
        assert_eq!(create(&pod, "../x").await.unwrap_err().0, "InvalidArgument");
        destroy(&pod, &id).await.unwrap();
        create(&pod, &id).await.unwrap();
        destroy(&pod, &id).await.unwrap();
        c.end().await;
    });
}

fn a_start_before_its_create_is_not_found() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, spec) = spec(&pod, "true");
        let (kind, text) = start(&pod, &id, &spec).await.unwrap_err();
        assert_eq!(
            (kind.as_str(), text),
            ("NotFound", format!("container {id:?} not found"))
        );
        // The root too, which nobody has created yet.
        let mut of_one = w.sandbox_spec("one");
        for key in [
            "container-type",
            "sandbox-id",
            "sandbox-name",
            "sandbox-namespace",
        ] {
            let all = of_one["annotations"].as_object_mut().unwrap();
            all.remove(&format!("io.kubernetes.cri.{key}"));
        }
        let one = w.sandbox("one", &of_one).await.unwrap();
        let root = call(&one, "StartRoot", json!("one"), &[]).await;
        assert_eq!(root.unwrap_err().0, "NotFound");
    });
}

fn a_second_start_of_a_container_or_of_the_root_fails_its_precondition() {
    world(async |w| {
        let pod = w.try_pod(|_| {}).await.unwrap();
        let root = json!(pod.id());
        assert_eq!(
            call(&pod, "StartRoot", root.clone(), &[]).await,
            Ok(json!({}))
        );
        assert_eq!(pod.story(pod.id()), ["created", "started"]);
        let (kind, text) = call(&pod, "StartRoot", root, &[]).await.unwrap_err();
        assert_eq!(kind, "FailedPrecondition", "{text}");
        assert!(
            text.contains(pod.id()) && text.contains("running"),
            "{text}"
        );
        let (id, spec) = spec(&pod, "exec sleep 1000");
        create(&pod, &id).await.unwrap();
        start(&pod, &id, &spec).await.unwrap();
        let (kind, text) = start(&pod, &id, &spec).await.unwrap_err();
        assert_eq!(kind, "FailedPrecondition", "{text}");
        assert!(text.contains(&id), "{text}");
        let status = pod.sandbox.state(&id, None).unwrap().status;
        assert_eq!(status, Status::Running, "as before");
        // What is not the root is not started by its name, and what is nothing is not found.
        let (kind, text) = call(&pod, "StartRoot", json!(id), &[]).await.unwrap_err();
        assert!(
            kind == "InvalidArgument" && text.contains(pod.id()),
            "{text}"
        );
        let nobody = call(&pod, "StartRoot", json!("nobody"), &[]).await;
        assert_eq!(nobody.unwrap_err().0, "NotFound");
        destroy(&pod, &id).await.unwrap();
    });
}

fn a_subcontainer_is_not_started_before_its_root() {
    world(async |w| {
        let pod = w.try_pod(|_| {}).await.unwrap();
        let (id, spec) = spec(&pod, "true");
        create(&pod, &id).await.unwrap();
        let (kind, text) = start(&pod, &id, &spec).await.unwrap_err();
        assert_eq!(kind, "FailedPrecondition");
        let words = "sandbox is not in started state, cannot start subcontainer";
        assert!(
            text.starts_with(words) && text.ends_with("state=created"),
            "{text}"
        );
        assert_gone(w, &pod, &id).await;
    });
}

fn a_failed_start_leaves_nothing_and_frees_the_id() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, good) = spec(&pod, "exit 3");
        let before = open_files().len();
        let with = |pointer: &str, value: Value| {
            let mut spec = good.clone();
            *spec.pointer_mut(pointer).unwrap() = value;
            spec
        };
        let mut bad = vec![
            (
                with("/process/args", json!(["/no/such"])),
                "NotFound",
                "/no/such",
            ),
            (
                with("/root/path", json!("/no/root")),
                "NotFound",
                "/no/root",
            ),
            (json!({"surprise": 1}), "NotSupported", "surprise"),
            (json!("text"), "InvalidArgument", ""),
        ];
        if pods_get_user_namespaces() {
            let user = with("/process/user", json!({"uid": 5_000_000, "gid": 0}));
            bad.push((user, "NotSupported", "5000000"));
        }
        for (spec, kind, word) in bad {
            create(&pod, &id).await.unwrap();
            let waiter = Client::to(&pod).await;
            let wait = json!({"method": "containerManager.Wait", "arg": id}).to_string();
            waiter.send(wait.as_bytes(), &[]).await;
            let (got, text) = start(&pod, &id, &spec).await.unwrap_err();
            assert_eq!(got, kind, "{text}");
            assert!(text.contains(word), "{text}");
            if pod.sandbox.tasks().contains(&id) {
                // It was not even begun.
                destroy(&pod, &id).await.unwrap();
            }
            assert_eq!(waiter.replies(1).await.0[0]["result"], 255 << 8);
            assert_gone(w, &pod, &id).await;
        }
        create(&pod, &id).await.unwrap();
        start(&pod, &id, &good).await.unwrap();
        assert_eq!(Client::to(&pod).await.ok("Wait", json!(id)).await, 3 << 8);
        destroy(&pod, &id).await.unwrap();
        let until = Instant::now() + SOON;
        while open_files().len() > before {
            assert!(Instant::now() < until, "{:?}", open_files());
            tokio::task::yield_now().await;
        }
    });
}

fn what_only_a_gofer_could_use_is_refused_by_its_key() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, spec) = spec(&pod, "exec sleep 1000");
        create(&pod, &id).await.unwrap();
        let foreign = [
            ("NumGoferFilestoreFDs", json!(1), "NotSupported"),
            ("IsDevIoFilePresent", json!(true), "NotSupported"),
            (
                "GoferMountConfs",
                json!([{"lower": 1, "upper": 2}]),
                "NotSupported",
            ),
            ("IsRootfsUpperTarFilePresent", json!(true), "NotSupported"),
            ("Conf", json!({"DirectFS": true}), "NotSupported"),
            ("Surprise", json!(1), "InvalidArgument"),
        ];
        for (key, value, want) in foreign {
            let mut args = start_args(&id, &spec);
            args[key] = value;
            let (kind, text) = call(&pod, "StartSubcontainer", args, &[])
                .await
                .unwrap_err();
            assert_eq!(kind, want, "{text}");
            assert!(text.contains(key), "{text}");
        }
        let (_, file) = pipe();
        for count in [1, 2, 4] {
            let files = vec![file.as_fd(); count];
            let args = start_args(&id, &spec);
            let (kind, text) = call(&pod, "StartSubcontainer", args, &files)
                .await
                .unwrap_err();
            assert_eq!(kind, "InvalidArgument");
            assert!(text.contains(&format!("not {count}")), "{text}");
        }
        // The id is still taken: nothing was begun.
        start(&pod, &id, &spec).await.unwrap();
        destroy(&pod, &id).await.unwrap();
    });
}

fn the_spec_of_a_sandbox_or_of_anothers_container_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, good) = spec(&pod, "exec sleep 1000");
        let kind_of = |typ: &str, sandbox: &str| {
            let mut spec = good.clone();
            spec["annotations"]["io.kubernetes.cri.container-type"] = json!(typ);
            spec["annotations"]["io.kubernetes.cri.sandbox-id"] = json!(sandbox);
            spec
        };
        for (spec, word) in [
            (kind_of("sandbox", pod.id()), "of a sandbox"),
            (kind_of("container", "other"), "\"other\""),
        ] {
            create(&pod, &id).await.unwrap();
            let (kind, text) = start(&pod, &id, &spec).await.unwrap_err();
            assert_eq!(kind, "InvalidArgument", "{text}");
            assert!(text.contains(word), "{text}");
        }
        // One that says nothing is the sandbox's whose socket it is.
        let mut spec = good.clone();
        spec["annotations"] = json!({});
        create(&pod, &id).await.unwrap();
        start(&pod, &id, &spec).await.unwrap();
        destroy(&pod, &id).await.unwrap();
    });
}

fn a_relative_root_is_in_the_bundle_and_refused_without_one() {
    world(async |w| {
        let pod = w.pod().await;
        let (id, mut spec) = spec(&pod, "exit 8");
        let root = spec["root"]["path"].as_str().unwrap().to_owned();
        let name = root.rsplit_once('/').unwrap().1;
        spec["root"]["path"] = json!(name);
        let take = json!({"CID": id, "Bundle": "relative"});
        let (kind, text) = call(&pod, "CreateSubcontainer", take, &[])
            .await
            .unwrap_err();
        assert!(
            kind == "InvalidArgument" && text.contains("relative"),
            "{text}"
        );
        create(&pod, &id).await.unwrap();
        let (kind, text) = start(&pod, &id, &spec).await.unwrap_err();
        assert_eq!(kind, "InvalidArgument", "{text}");
        assert!(text.contains(name) && text.contains("Bundle"), "{text}");
        let take = json!({"CID": id, "Bundle": w.dir});
        call(&pod, "CreateSubcontainer", take, &[]).await.unwrap();
        start(&pod, &id, &spec).await.unwrap();
        assert_eq!(Client::to(&pod).await.ok("Wait", json!(id)).await, 8 << 8);
        destroy(&pod, &id).await.unwrap();
    });
}

fn a_destroy_ends_a_paused_container_and_the_second_does_nothing() {
    world(async |w| {
        let pod = w.pod().await;
        let alone = made(&pod, "sleep 1000 & exec sleep 1000").await;
        pod.sandbox.pause(&alone).await.unwrap();
        let with_all = made(&pod, "sleep 1000 & exec sleep 1000").await;
        pod.sandbox.pause_all().await.unwrap();
        for id in [&alone, &with_all] {
            assert_eq!(pod.sandbox.state(id, None).unwrap().status, Status::Paused);
            for _ in 0..2 {
                assert_eq!(destroy(&pod, id).await.unwrap(), json!({}));
            }
            assert_gone(w, &pod, id).await;
        }
        pod.sandbox.resume_all().await.unwrap();
        // What never was is not gone.
        let (kind, text) = destroy(&pod, "nobody").await.unwrap_err();
        assert_eq!(
            (kind.as_str(), &*text),
            ("NotFound", "container \"nobody\" not found")
        );
        let e = pod.sandbox.destroy_container("nobody").await.unwrap_err();
        assert_eq!(e.kind(), Kind::NotFound);
    });
}

fn a_destroy_ends_a_container_that_ignores_signals_with_all_its_processes() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "trap '' TERM INT HUP; sleep 1000 & sleep 1000 & exec sleep 1000";
        let id = made(&pod, script).await;
        let client = Client::to(&pod).await;
        client.exec(&id, "sleep 1000 & exec sleep 1000").await;
        let waiter = Client::to(&pod).await;
        let wait = json!({"method": "containerManager.Wait", "arg": id}).to_string();
        waiter.send(wait.as_bytes(), &[]).await;
        destroy(&pod, &id).await.unwrap();
        assert_gone(w, &pod, &id).await;
        assert_eq!(waiter.replies(1).await.0[0]["result"], 9);
    });
}

fn a_destroy_of_a_taken_id_frees_it_and_tells_who_waits() {
    world(async |w| {
        let pod = w.pod().await;
        create(&pod, "taken").await.unwrap();
        let waiter = Client::to(&pod).await;
        let wait = json!({"method": "containerManager.Wait", "arg": "taken"}).to_string();
        waiter.send(wait.as_bytes(), &[]).await;
        let (heard, says) = pipe();
        pod.sandbox
            .stream_events(Some("taken"), says.into())
            .unwrap();
        // What is only an id takes no calls that need a process.
        let client = Client::to(&pod).await;
        let (kind, text) = client
            .refused("ExecuteAsync", exec_args("taken", "true"))
            .await;
        assert_eq!(kind, "FailedPrecondition", "{text}");
        destroy(&pod, "taken").await.unwrap();
        assert_eq!(waiter.replies(1).await.0[0]["result"], 255 << 8);
        assert_gone(w, &pod, "taken").await;
        // A listener's pipe is closed after the last event.
        let mut heard = Receiver::from_owned_fd(heard.into()).unwrap();
        let mut text = String::new();
        let end = timeout(SOON, heard.read_to_string(&mut text)).await;
        end.expect("an end").unwrap();
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&told["type"], &told["exitStatus"]),
            (&json!("exited"), &json!(255))
        );
    });
}

fn a_destroy_of_the_makers_container_leaves_it_stopped_until_he_deletes_it() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("sleep 1000 & exec sleep 1000").run().await;
        let gated = pod.container(&["/bin/true"]).create().await.unwrap();
        c.pod.sandbox.pause(&c.id).await.unwrap();
        for id in [&c.id, &gated.id] {
            for _ in 0..2 {
                destroy(&pod, id).await.unwrap();
            }
            assert_eq!(pod.sandbox.state(id, None).unwrap().status, Status::Stopped);
            assert!(!w.cgroup_dir("memory", id).exists());
        }
        assert_eq!(c.wait().await.status, 137);
        // The last figures are still there.
        pod.sandbox.stats(&c.id).unwrap();
        assert_eq!(c.delete().await.unwrap().status, 137);
        gated.delete().await.unwrap();
        assert_eq!(
            pod.story(&c.id),
            ["created", "started", "paused", "exited 137", "deleted 137"]
        );
    });
}

fn a_destroy_of_the_root_ends_the_whole_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("sleep 1000 & exec sleep 1000").run().await;
        let own = made(&pod, "exec sleep 1000").await;
        create(&pod, "taken").await.unwrap();
        pod.sandbox.pause_all().await.unwrap();
        assert_eq!(destroy(&pod, pod.id()).await.unwrap(), json!({}));
        for _ in 0..2 {
            pod.sandbox.destroy_container(pod.id()).await.unwrap();
        }
        assert!(!pod.sandbox.is_running());
        assert_gone(w, &pod, &own).await;
        assert_gone(w, &pod, "taken").await;
        assert_eq!(c.wait().await.status, 137);
        let exit = pod.sandbox.wait(pod.id(), None).await.unwrap();
        assert_eq!(exit.status, 137);
        let (kind, _) = create(&pod, "late").await.unwrap_err();
        assert_eq!(kind, "Unavailable");
        // Its maker has heard of all ends, and deletes.
        c.delete().await.unwrap();
        pod.sandbox.delete(pod.id(), None).await.unwrap();
        assert!(pod.sandbox.is_empty());
        assert!(!pod.sandbox.record().control_socket_path.exists());
    });
}

fn containers_of_the_socket_end_with_the_last_task_of_the_sandboxs_maker() {
    world(async |w| {
        let pod = w.pod().await;
        let running = made(&pod, "sleep 1000 & exec sleep 1000").await;
        let paused = made(&pod, "exec sleep 1000").await;
        pod.sandbox.pause(&paused).await.unwrap();
        let stopped = made(&pod, "true").await;
        pod.sandbox.wait(&stopped, None).await.unwrap();
        create(&pod, "taken").await.unwrap();
        pod.end().await;
        assert!(pod.sandbox.is_empty());
        for id in [&running, &paused, &stopped] {
            assert_gone(w, &pod, id).await;
        }
        assert!(!pod.sandbox.record().control_socket_path.exists());
    });
}

fn a_destroyed_sandbox_takes_containers_of_the_socket_along_in_every_state() {
    world(async |w| {
        let pod = w.pod().await;
        let running = made(&pod, "sleep 1000 & exec sleep 1000").await;
        let paused = made(&pod, "exec sleep 1000").await;
        pod.sandbox.pause(&paused).await.unwrap();
        create(&pod, "taken").await.unwrap();
        // One on its way.
        let (id, spec) = spec(&pod, "exec sleep 1000");
        create(&pod, &id).await.unwrap();
        let starting = Client::to(&pod).await;
        let request = json!({"method": "containerManager.StartSubcontainer",
            "arg": start_args(&id, &spec)});
        starting.send(request.to_string().as_bytes(), &[]).await;
        let until = Instant::now() + SOON;
        while !w.cgroup_dir("memory", &id).exists() {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        assert_eq!(
            pod.sandbox.state(&id, None).unwrap().status,
            Status::Creating
        );
        timeout(SOON, pod.sandbox.destroy()).await.unwrap();
        assert!(pod.sandbox.is_empty());
        for id in [&running, &paused, &id] {
            assert!(!w.cgroup_dir("memory", id).exists(), "{id}");
        }
        assert!(!pod.sandbox.record().control_socket_path.exists());
    });
}

fn a_container_beside_the_workload_of_a_pod_of_one_ends_without_it() {
    world(async |w| {
        let cri = |spec: &mut Value| {
            let all = spec["annotations"].as_object_mut().unwrap();
            all.retain(|key, _| !key.starts_with("io.kubernetes.cri."));
        };
        let pod = w.try_pod(cri).await.unwrap();
        let mut workload = pod.container(&["/bin/sleep", "1000"]).spec;
        cri(&mut workload);
        workload["linux"]["cgroupsPath"] = json!(format!("/{}/{}", w.cgroup, pod.id()));
        workload["linux"]["namespaces"] = w.sandbox_spec("x")["linux"]["namespaces"].clone();
        let parsed = Spec::parse(workload.to_string().as_bytes()).unwrap();
        let args = ContainerArgs::new(pod.id(), &w.dir, parsed);
        pod.sandbox.create_container(args).await.unwrap();
        call(&pod, "StartRoot", json!(pod.id()), &[]).await.unwrap();
        let id = made(&pod, "exit 5").await;
        let client = Client::to(&pod).await;
        assert_eq!(client.ok("Wait", json!(id)).await, 5 << 8);
        destroy(&pod, &id).await.unwrap();
        assert_eq!(client.ok("ContainerRuntimeState", json!(pod.id())).await, 2);
        let left = made(&pod, "exec sleep 1000").await;
        pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
        pod.sandbox.wait(pod.id(), None).await.unwrap();
        pod.sandbox.delete(pod.id(), None).await.unwrap();
        assert!(pod.sandbox.is_empty());
        assert!(!w.cgroup_dir("memory", &left).exists());
    });
}

fn a_client_that_vanishes_while_it_starts_a_container_leaves_it_whole() {
    world(async |w| {
        let pod = w.pod().await;
        let before = open_files().len();
        let (id, spec) = spec(&pod, "echo ran; exec sleep 1000");
        create(&pod, &id).await.unwrap();
        let (stdin, to) = pipe();
        let (mut out, stdout) = pipe();
        let request = json!({"method": "containerManager.StartSubcontainer",
            "arg": start_args(&id, &spec)});
        let client = Client::to(&pod).await;
        let files = [stdin.as_fd(), stdout.as_fd(), stdout.as_fd()];
        client.send(request.to_string().as_bytes(), &files).await;
        drop((client, stdin, stdout));
        let until = Instant::now() + SOON;
        while pod.sandbox.state(&id, None).unwrap().status != Status::Running {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        let mut told = [0; 4];
        out.read_exact(&mut told).unwrap();
        assert_eq!(&told, b"ran\n");
        destroy(&pod, &id).await.unwrap();
        assert_gone(w, &pod, &id).await;
        assert_eq!(out.read(&mut told).unwrap(), 0);
        drop((out, to));
        while open_files().len() > before {
            assert!(Instant::now() < until, "{:?}", open_files());
            tokio::task::yield_now().await;
        }
    });
}
