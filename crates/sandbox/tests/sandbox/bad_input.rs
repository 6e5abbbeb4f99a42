//! What is not there, or not in the state for it: refused by kind and by name, in every method.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::process;
use crate::control::{Client, exec_args};
use crate::world::{Pod, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    an_unknown_container_is_not_found_by_its_name_in_every_method,
    an_unknown_container_is_not_found_by_its_name_in_every_call_of_the_library,
    an_unknown_exec_is_not_found_by_its_name,
    a_stopped_container_is_refused_in_every_method_that_needs_it_running,
    a_container_that_was_not_started_is_refused_where_it_must_run,
    a_signal_out_of_range_is_refused_by_its_number,
];

fn methods(id: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("Processes", json!(id)),
        ("ContainerRuntimeState", json!(id)),
        ("Event", json!(id)),
        ("Wait", json!(id)),
        ("WaitPID", json!({"CID": id, "PID": 1})),
        (
            "Signal",
            json!({"CID": id, "Signo": 9, "PID": 0, "Mode": 0}),
        ),
        (
            "Signal",
            json!({"CID": id, "Signo": 9, "PID": 0, "Mode": 1}),
        ),
        (
            "Signal",
            json!({"CID": id, "Signo": 9, "PID": 1, "Mode": 0}),
        ),
        (
            "Signal",
            json!({"CID": id, "Signo": 9, "PID": 0, "Mode": 2}),
        ),
        ("ExecuteAsync", exec_args(id, "true")),
        ("PortForward", json!({"ContainerID": id, "Port": 80})),
        (
            "Mount",
            json!({"ContainerID": id, "Destination": "/t", "FsType": "tmpfs"}),
        ),
    ]
}

async fn refused(pod: &Pod<'_>, method: &str, arg: Value) -> (String, String) {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let client = Client::to(pod).await;
    let files = [theirs.as_fd()];
    let files = &files[..usize::from(method == "PortForward")];
    let method = format!("containerManager.{method}");
    let (reply, _) = client.call_with(&method, arg, files).await;
    assert_eq!(reply["success"], false, "{method}: {reply}");
    let text = |key: &str| reply[key].as_str().unwrap().to_owned();
    (text("kind"), text("err"))
}

fn an_unknown_container_is_not_found_by_its_name_in_every_method() {
    world(async |w| {
        let pod = w.pod().await;
        for (method, arg) in methods("nobody") {
            let (kind, text) = refused(&pod, method, arg).await;
            assert_eq!(kind, "NotFound", "{method}: {text}");
            assert_eq!(text, "container \"nobody\" not found", "{method}");
        }
    });
}

fn an_unknown_container_is_not_found_by_its_name_in_every_call_of_the_library() {
    world(async |w| {
        let pod = w.pod().await;
        let s = &pod.sandbox;
        let exec = process(&["/bin/true"]).to_string();
        let answers = [
            ("start", s.start("nobody").await.map(drop)),
            ("kill", s.kill("nobody", None, 9, false).await),
            ("delete", s.delete("nobody", None).await.map(drop)),
            ("wait", s.wait("nobody", None).await.map(drop)),
            ("state", s.state("nobody", None).map(drop)),
            ("pids", s.pids("nobody").map(drop)),
            ("stats", s.stats("nobody").map(drop)),
            ("pause", s.pause("nobody").await),
            ("resume", s.resume("nobody").await),
            ("processes", s.processes("nobody").await.map(drop)),
            ("signal_process", s.signal_process("nobody", 1, 9, false)),
            ("destroy_container", s.destroy_container("nobody").await),
            (
                "mount",
                s.mount("nobody", "tmpfs", "".as_ref(), "/t".as_ref(), &[])
                    .await,
            ),
            (
                "add_exec",
                s.add_exec("nobody", "e", exec.as_bytes(), false),
            ),
            (
                "read_cgroup_file",
                s.read_cgroup_file("nobody", "pids", "pids.max").map(drop),
            ),
            (
                "write_cgroup_file",
                s.write_cgroup_file("nobody", "pids", "pids.max", "1").await,
            ),
        ];
        for (call, answer) in answers {
            let e = answer.unwrap_err();
            assert_eq!(e.kind(), Kind::NotFound, "{call}: {e}");
            assert_eq!(e.to_string(), "container \"nobody\" not found", "{call}");
        }
        assert_eq!(s.pid("nobody"), None);
    });
}

fn an_unknown_exec_is_not_found_by_its_name() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let s = &pod.sandbox;
        let (id, exec) = (c.id.as_str(), Some("nobody"));
        let answers = [
            ("kill", s.kill(id, exec, 9, false).await),
            ("delete", s.delete(id, exec).await.map(drop)),
            ("wait", s.wait(id, exec).await.map(drop)),
            ("state", s.state(id, exec).map(drop)),
        ];
        for (call, answer) in answers {
            let e = answer.unwrap_err();
            assert_eq!(e.kind(), Kind::NotFound, "{call}: {e}");
            let text = format!("exec \"nobody\" of container {id:?} not found");
            assert_eq!(e.to_string(), text, "{call}");
        }
        c.end().await;
    });
}

fn a_stopped_container_is_refused_in_every_method_that_needs_it_running() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/true"]).run().await;
        c.wait().await;
        let needs_it = |method: &str| {
            !matches!(
                method,
                "ContainerRuntimeState" | "Event" | "Wait" | "WaitPID"
            )
        };
        for (method, arg) in methods(&c.id).into_iter().filter(|(m, _)| needs_it(m)) {
            let (kind, text) = refused(&pod, method, arg).await;
            if method == "Signal" {
                // In the words that containerd knows it by.
                assert_eq!(kind, "NotFound", "{text}");
                assert_eq!(text, "process already finished");
            } else {
                assert_eq!(kind, "FailedPrecondition", "{method}: {text}");
                assert!(
                    text.contains(&c.id) && text.contains("stopped"),
                    "{method}: {text}"
                );
            }
        }
        for pause in [
            pod.sandbox.pause(&c.id).await,
            pod.sandbox.resume(&c.id).await,
        ] {
            let e = pause.unwrap_err();
            assert_eq!(e.kind(), Kind::FailedPrecondition);
            let text = e.to_string();
            assert!(text.contains(&c.id) && text.contains("stopped"), "{text}");
        }
        let client = Client::to(&pod).await;
        assert_eq!(client.ok("ContainerRuntimeState", json!(c.id)).await, 3);
        assert_eq!(client.ok("Wait", json!(c.id)).await, 0);
        c.delete().await.unwrap();
    });
}

fn a_container_that_was_not_started_is_refused_where_it_must_run() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/true"]).create().await.unwrap();
        let (kind, text) = refused(&pod, "ExecuteAsync", exec_args(&c.id, "true")).await;
        assert_eq!(kind, "FailedPrecondition", "{text}");
        assert!(text.contains(&c.id) && text.contains("created"), "{text}");
        let e = pod.sandbox.pause(&c.id).await.unwrap_err();
        assert_eq!(e.kind(), Kind::FailedPrecondition);
        assert!(e.to_string().contains(&c.id), "{e}");
        c.delete().await.unwrap();
    });
}

fn a_signal_out_of_range_is_refused_by_its_number() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        for (number, all) in [(65, false), (4_294_967_295_u32, false), (65, true)] {
            let mode = u32::from(all);
            let arg = json!({"CID": c.id, "Signo": number, "PID": 0, "Mode": mode});
            let (kind, text) = refused(&pod, "Signal", arg).await;
            assert_eq!(kind, "InvalidArgument", "{text}");
            assert!(text.contains(&number.to_string()), "{text}");
        }
        c.end().await;
    });
}
