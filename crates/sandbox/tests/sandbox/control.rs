//! The control socket, by a client that writes the wire itself.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use berm_testkit::cases::Case;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::figures::until;
use crate::world::{Pod, SOON, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_container_is_described_under_gvisors_names,
    an_exec_has_the_clients_files_and_is_forgotten_once_waited_for,
    execs_of_the_socket_are_kept_from_containerd,
    an_exec_with_a_terminal_brings_its_master,
    wait_words_are_the_kernels,
    signals_go_to_one_process_or_to_all_of_a_container_and_to_no_other,
    signals_reach_the_foreground_group_of_a_terminal_and_not_its_shell,
    what_is_unknown_is_refused_with_its_kind,
    requests_in_one_write_are_all_answered_in_order,
    a_vanished_client_harms_nobody,
    the_socket_is_roots_alone_and_ends_with_the_sandbox,
];

/// One connection.
pub(crate) struct Client(pub(crate) UnixStream);

impl Client {
    pub(crate) async fn to(pod: &Pod<'_>) -> Self {
        let path = &pod.sandbox.record().control_socket_path;
        Self(UnixStream::connect(path).await.unwrap())
    }

    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        self.0.writable().await.unwrap();
        let sent = self.0.try_io(Interest::WRITABLE, || {
            let slices = [IoSlice::new(bytes)];
            Ok(sendmsg(&self.0, &slices, &mut control, SendFlags::empty())?)
        });
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// The next replies, as many as asked for, with their descriptors.
    pub(crate) async fn replies(&self, count: usize) -> (Vec<Value>, Vec<OwnedFd>) {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        loop {
            timeout(SOON, self.0.readable())
                .await
                .expect("a reply")
                .unwrap();
            let mut part = [0; 4096];
            let got = self.0.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let flags = RecvFlags::CMSG_CLOEXEC;
                let mut slices = [IoSliceMut::new(&mut part)];
                let got = recvmsg(&self.0, &mut slices, &mut control, flags)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                Ok(got.bytes)
            });
            match got {
                Ok(0) => panic!("closed after {:?}", String::from_utf8_lossy(&bytes)),
                Ok(len) => bytes.extend(&part[..len]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(e) => panic!("{e}"),
            }
            let read = serde_json::Deserializer::from_slice(&bytes).into_iter::<Value>();
            let whole: Vec<Value> = read.map_while(Result::ok).collect();
            if whole.len() >= count {
                return (whole, fds);
            }
        }
    }

    pub(crate) async fn call_with(
        &self,
        method: &str,
        arg: Value,
        fds: &[BorrowedFd<'_>],
    ) -> (Value, Vec<OwnedFd>) {
        let request = json!({"method": method, "arg": arg}).to_string();
        self.send(request.as_bytes(), fds).await;
        let (mut replies, fds) = self.replies(1).await;
        (replies.remove(0), fds)
    }

    /// The result of a method of gVisor's containerManager.
    pub(crate) async fn ok(&self, method: &str, arg: Value) -> Value {
        let method = format!("containerManager.{method}");
        let (reply, _) = self.call_with(&method, arg, &[]).await;
        assert_eq!(reply["success"], true, "{method}: {reply}");
        reply["result"].clone()
    }

    /// Kind and text of its failure.
    pub(crate) async fn refused(&self, method: &str, arg: Value) -> (String, String) {
        let method = format!("containerManager.{method}");
        let (reply, _) = self.call_with(&method, arg, &[]).await;
        assert_eq!(reply["success"], false, "{method}: {reply}");
        let text = |key: &str| reply[key].as_str().unwrap().to_owned();
        (text("kind"), text("err"))
    }

    /// Starts an exec of a shell script without streams: its host pid.
    pub(crate) async fn exec(&self, id: &str, script: &str) -> i64 {
        let pid = self.ok("ExecuteAsync", exec_args(id, script)).await;
        pid.as_i64().unwrap()
    }
}

/// Waits until the kernel counts so many processes in a container: one that has ended counts until
/// it is reaped.
pub(crate) async fn until_counted(w: &World, id: &str, count: u32) {
    let file = w.cgroup_dir("pids", id).join("pids.current");
    let want = format!("{count}\n");
    until("others have ended", || {
        std::fs::read_to_string(&file).unwrap() == want
    })
    .await;
}

pub(crate) fn exec_args(id: &str, script: &str) -> Value {
    json!({"ContainerID": id, "argv": ["/bin/sh", "-c", script], "envv": ["PATH=/bin"]})
}

fn a_container_is_described_under_gvisors_names() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let c = pod
            .sh("sleep 1000 & exec sleep 1000")
            .create()
            .await
            .unwrap();
        let id = json!(c.id);
        assert_eq!(client.ok("ContainerRuntimeState", id.clone()).await, 1);
        c.start().await.unwrap();
        assert_eq!(client.ok("ContainerRuntimeState", id.clone()).await, 2);
        // Both have become what they are once the shell is gone.
        pod.until_runs(&c.id, &["sleep 1000"; 2]).await;
        let processes = client.ok("Processes", id.clone()).await;
        golden("containerManager.Processes", &processes);
        until_counted(w, &c.id, 2).await;
        assert_eq!(processes[0]["host_pid"], c.pid);
        let first = processes[0].as_object().unwrap();
        for (key, want) in [
            ("pid", json!(1)),
            ("ppid", json!(0)),
            ("uid", json!(0)),
            ("tty", json!("?")),
            ("threads", json!([1])),
        ] {
            assert_eq!(first[key], want, "{key}");
        }
        assert_eq!(processes[1]["ppid"], 1);
        let event = client.ok("Event", id.clone()).await;
        assert_eq!(event["event"]["type"], "stats");
        assert_eq!(event["event"]["id"], id);
        golden("containerManager.Event", &event);
        let data = &event["event"]["data"];
        assert_eq!(data["pids"]["current"], 2);
        assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
        assert_eq!(data["network_interfaces"][0]["Name"], "lo");
        let used = event["containerUsage"][&c.id].as_u64().unwrap();
        assert!(used > 0, "{event}");
        let (state, _) = client.call_with("berm.State", Value::Null, &[]).await;
        let states = state["result"].as_array().unwrap();
        assert!(
            states
                .iter()
                .any(|s| s["id"] == id && s["status"] == "running")
        );
        c.kill(9).await.unwrap();
        c.wait().await;
        assert_eq!(client.ok("ContainerRuntimeState", id.clone()).await, 3);
        c.delete().await.unwrap();
        assert_eq!(client.refused("Event", id).await.0, "NotFound");
    });
}

fn an_exec_has_the_clients_files_and_is_forgotten_once_waited_for() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let (stdin, mut to) = pipe();
        let (mut from, stdout) = pipe();
        to.write_all(b"hello\n").unwrap();
        drop(to);
        let mut args = exec_args(&c.id, "cat; id -u; id -g; pwd; echo $A; exit 7");
        args["envv"] = json!(["PATH=/bin", "A=b"]);
        args["GuestFDs"] = json!([0, 1, 2]);
        args["KUID"] = json!(5);
        args["KGID"] = json!(6);
        args["wd"] = json!("/tmp");
        let files = [stdin.as_fd(), stdout.as_fd(), stdout.as_fd()];
        let method = "containerManager.ExecuteAsync";
        let (reply, _) = client.call_with(method, args, &files).await;
        drop((stdin, stdout));
        let wait = json!({"CID": c.id, "PID": reply["result"]});
        assert_eq!(client.ok("WaitPID", wait.clone()).await, 7 << 8);
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n5\n6\n/tmp\nb\n");
        let (kind, text) = client.refused("WaitPID", wait).await;
        assert_eq!(kind, "NotFound");
        assert!(text.contains("no such process"), "{text}");
        c.end().await;
    });
}

fn execs_of_the_socket_are_kept_from_containerd() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let told = pod.story(&c.id);
        let pid = client.exec(&c.id, "exec sleep 1000").await;
        let pids = pod.sandbox.pids(&c.id).unwrap();
        assert!(pids.iter().any(|p| i64::from(p.pid) == pid));
        assert!(pids.iter().all(|p| p.exec.is_none()));
        let kill = json!({"CID": c.id, "PID": pid, "Signo": 9, "Mode": 0});
        client.ok("Signal", kill).await;
        client.ok("WaitPID", json!({"CID": c.id, "PID": pid})).await;
        // One that cannot start leaves nothing either.
        let missing = json!({"ContainerID": c.id, "argv": ["/no/such"]});
        assert_eq!(client.refused("ExecuteAsync", missing).await.0, "NotFound");
        assert_eq!(pod.story(&c.id), told);
        c.end().await;
    });
}

fn an_exec_with_a_terminal_brings_its_master() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let mut args = exec_args(&c.id, "tty; read a; echo got $a; exit 3");
        args["StdioIsPty"] = json!(true);
        let method = "containerManager.ExecuteAsync";
        let (_, other) = pipe();
        let (reply, _) = client
            .call_with(method, args.clone(), &[other.as_fd()])
            .await;
        assert_eq!(reply["kind"], "NotSupported", "{reply}");
        let (reply, mut fds) = client.call_with(method, args, &[]).await;
        let mut master = File::from(fds.remove(0));
        master.write_all(b"it\n").unwrap();
        let wait = json!({"CID": c.id, "PID": reply["result"]});
        assert_eq!(client.ok("WaitPID", wait).await, 3 << 8);
        let mut shown = Vec::new();
        let mut part = [0; 512];
        // The other side is closed: EIO after the last byte.
        while let Ok(len) = master.read(&mut part) {
            shown.extend(&part[..len]);
        }
        let shown = String::from_utf8_lossy(&shown);
        assert!(
            shown.contains("/dev/pts/0") && shown.contains("got it"),
            "{shown}"
        );
        c.end().await;
    });
}

fn wait_words_are_the_kernels() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("read x; exit 9").run().await;
        let client = Client::to(&pod).await;
        // A code above 128 is no signal.
        for (script, want) in [("exit 137", 137 << 8), ("kill -9 $$", 9), ("true", 0)] {
            let pid = client.exec(&c.id, script).await;
            let wait = json!({"CID": c.id, "PID": pid});
            assert_eq!(client.ok("WaitPID", wait).await, want, "{script}");
        }
        let waiter = Client::to(&pod).await;
        let request = json!({"method": "containerManager.Wait", "arg": c.id}).to_string();
        waiter.send(request.as_bytes(), &[]).await;
        c.say("now\n");
        assert_eq!(waiter.replies(1).await.0[0]["result"], 9 << 8);
        assert_eq!(
            client.ok("Wait", json!(c.id)).await,
            9 << 8,
            "a late waiter"
        );
        c.delete().await.unwrap();
    });
}

fn signals_go_to_one_process_or_to_all_of_a_container_and_to_no_other() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let other = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let pid = client.exec(&c.id, "exec sleep 1000").await;
        let signal =
            |pid: i64, mode: u32| json!({"CID": c.id, "Signo": 9, "PID": pid, "Mode": mode});
        for stranger in [i64::from(other.pid), 1, i64::from(std::process::id())] {
            let (kind, text) = client.refused("Signal", signal(stranger, 0)).await;
            assert_eq!(kind, "NotFound", "{text}");
        }
        assert_eq!(
            client.refused("Signal", signal(pid, 1)).await.0,
            "InvalidArgument"
        );
        assert_eq!(
            client.refused("Signal", signal(0, 2)).await,
            (
                "FailedPrecondition".to_owned(),
                format!(
                    "signaling foreground process group of PID {} in container {:?}: no TTY attached",
                    c.pid, c.id
                )
            )
        );
        assert_eq!(
            client.refused("Signal", signal(0, 7)).await.0,
            "InvalidArgument"
        );
        client.ok("Signal", signal(pid, 0)).await;
        assert_eq!(
            client.ok("WaitPID", json!({"CID": c.id, "PID": pid})).await,
            9
        );
        client.ok("Signal", signal(0, 1)).await;
        assert_eq!(client.ok("Wait", json!(c.id)).await, 9);
        assert_eq!(client.refused("Signal", signal(0, 0)).await.0, "NotFound");
        assert_eq!(client.ok("ContainerRuntimeState", json!(other.id)).await, 2);
        c.delete().await.unwrap();
        other.end().await;
    });
}

fn signals_reach_the_foreground_group_of_a_terminal_and_not_its_shell() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let mut args = exec_args(&c.id, "set -m; sleep 1000; exit $?");
        args["StdioIsPty"] = json!(true);
        let method = "containerManager.ExecuteAsync";
        let (reply, _master) = client.call_with(method, args, &[]).await;
        let pid = reply["result"].as_i64().unwrap();
        // The shell puts its job into the foreground: nothing tells when.
        let field = |stat: &str, at: usize| {
            let (_, rest) = stat.rsplit_once(')').unwrap();
            let word = rest.split_ascii_whitespace().nth(at - 3).unwrap();
            word.parse::<i64>().unwrap()
        };
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            if ![-1, field(&stat, 5)].contains(&field(&stat, 8)) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let signal = json!({"CID": c.id, "Signo": 15, "PID": pid, "Mode": 2});
        client.ok("Signal", signal).await;
        let wait = json!({"CID": c.id, "PID": pid});
        assert_eq!(client.ok("WaitPID", wait).await, (128 + 15) << 8);
        c.end().await;
    });
}

fn what_is_unknown_is_refused_with_its_kind() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let (reply, _) = client
            .call_with("containerManager.Nope", json!(1), &[])
            .await;
        assert_eq!(
            (&reply["err"], &reply["kind"]),
            (&json!("unknown method"), &json!("NotSupported"))
        );
        let unknown = [
            ("Processes", json!("nope")),
            ("ContainerRuntimeState", json!("nope")),
            ("Event", json!("nope")),
            ("Wait", json!("nope")),
            ("WaitPID", json!({"CID": "nope", "PID": 1})),
            ("WaitPID", json!({"CID": c.id, "PID": 1})),
            ("Signal", json!({"CID": "nope", "Signo": 9})),
            ("ExecuteAsync", exec_args("nope", "true")),
        ];
        for (method, arg) in unknown {
            assert_eq!(client.refused(method, arg).await.0, "NotFound", "{method}");
        }
        let with = |key: &str, value: Value| {
            let mut args = exec_args(&c.id, "true");
            args[key] = value;
            args
        };
        let bad = [
            ("Processes", json!({"CID": c.id}), "InvalidArgument"),
            (
                "Signal",
                json!({"CID": c.id, "Signo": 9, "Sig": 9}),
                "InvalidArgument",
            ),
            (
                "Signal",
                json!({"CID": c.id, "Signo": 99}),
                "InvalidArgument",
            ),
            ("ExecuteAsync", with("argv", json!([])), "InvalidArgument"),
            (
                "ExecuteAsync",
                with("working_directory", json!("/")),
                "InvalidArgument",
            ),
            (
                "ExecuteAsync",
                with("GuestFDs", json!([0])),
                "InvalidArgument",
            ),
            (
                "ExecuteAsync",
                with("FDTable", json!({})),
                "InvalidArgument",
            ),
            ("ExecuteAsync", with("Limits", json!({})), "NotSupported"),
            (
                "ExecuteAsync",
                with("filename", json!("/bin/other")),
                "NotSupported",
            ),
        ];
        for (method, arg, want) in bad {
            let (kind, text) = client.refused(method, arg).await;
            assert_eq!(kind, want, "{method}: {text}");
        }
        pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
        let processes = client.ok("Processes", json!(c.id)).await;
        assert_eq!(processes.as_array().unwrap().len(), 1, "{processes}");
        c.end().await;
    });
}

fn requests_in_one_write_are_all_answered_in_order() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let id = pod.id();
        pod.until_runs(id, &["berm-init"]).await;
        let request = |method: &str| {
            json!({"method": format!("containerManager.{method}"), "arg": id}).to_string()
        };
        let both = request("ContainerRuntimeState") + &request("Nope") + &request("Processes");
        client.send(both.as_bytes(), &[]).await;
        let (replies, _) = client.replies(3).await;
        assert_eq!(replies[0]["result"], 2);
        assert_eq!(replies[1]["err"], "unknown method");
        assert_eq!(
            replies[2]["result"].as_array().unwrap().len(),
            1,
            "{}",
            replies[2]
        );
    });
}

fn a_vanished_client_harms_nobody() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let waiter = Client::to(&pod).await;
        let request = json!({"method": "containerManager.Wait", "arg": c.id}).to_string();
        waiter.send(request.as_bytes(), &[]).await;
        let other = Client::to(&pod).await;
        let exec = json!({"method": "containerManager.ExecuteAsync",
            "arg": exec_args(&c.id, "exec sleep 1000")});
        other.send(exec.to_string().as_bytes(), &[]).await;
        drop((waiter, other));
        let client = Client::to(&pod).await;
        assert_eq!(client.ok("ContainerRuntimeState", json!(c.id)).await, 2);
        c.end().await;
    });
}

fn the_socket_is_roots_alone_and_ends_with_the_sandbox() {
    world(async |w| {
        let pod = w.pod().await;
        let path = pod.sandbox.record().control_socket_path.clone();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        berm_sys::process::set_fs_ids(65534, 65534).unwrap();
        let refused = std::os::unix::net::UnixStream::connect(&path);
        berm_sys::process::set_fs_ids(0, 0).unwrap();
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::PermissionDenied
        );
        let client = Client::to(&pod).await;
        client.ok("ContainerRuntimeState", json!(pod.id())).await;
        pod.sandbox.destroy().await;
        assert!(!path.exists());
        loop {
            timeout(SOON, client.0.readable()).await.unwrap().unwrap();
            match client.0.try_read(&mut [0]) {
                // Left over from the reply.
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                read => break assert_eq!(read.unwrap(), 0, "closed"),
            }
        }
    });
}

pub(crate) fn pipe() -> (File, File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}

/// Compares the keys of a reply, and the kinds of their values, with `golden/<method>.json`: they
/// are the same, in lists in each element. A key `name?` may be left out, `*` stands for names
/// that differ from call to call. Berm's additions stand in the files too.
#[track_caller]
pub(crate) fn golden(method: &str, got: &Value) {
    let of_method = GOLDEN.iter().find(|(name, _)| *name == method);
    let (_, text) = of_method.expect("a golden file");
    let want: Value = serde_json::from_str(text).unwrap();
    same_keys(method, &want, got);
}

/// Compiled in: the test may run on a machine that has no sources.
const GOLDEN: [(&str, &str); 9] = [
    (
        "Cgroups.ControlFiles",
        include_str!("golden/Cgroups.ControlFiles.json"),
    ),
    ("Metrics.Export", include_str!("golden/Metrics.Export.json")),
    (
        "Metrics.GetRegisteredMetrics",
        include_str!("golden/Metrics.GetRegisteredMetrics.json"),
    ),
    ("Usage.Collect", include_str!("golden/Usage.Collect.json")),
    ("Usage.UsageFD", include_str!("golden/Usage.UsageFD.json")),
    ("berm.State", include_str!("golden/berm.State.json")),
    (
        "containerManager.Event",
        include_str!("golden/containerManager.Event.json"),
    ),
    (
        "containerManager.Processes",
        include_str!("golden/containerManager.Processes.json"),
    ),
    (
        "containerManager.ProcfsDump",
        include_str!("golden/containerManager.ProcfsDump.json"),
    ),
];

type Object = serde_json::Map<String, Value>;

#[track_caller]
fn same_keys(at: &str, want: &Value, got: &Value) {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => same_object(at, want, got),
        (Value::Array(want), Value::Array(got)) => {
            let element = want.first().expect("an element to compare with");
            for one in got {
                same_keys(&format!("{at}[]"), element, one);
            }
        }
        (want, got) => assert_eq!(
            std::mem::discriminant(want),
            std::mem::discriminant(got),
            "{at}: {got} is not as {want}"
        ),
    }
}

#[track_caller]
fn same_object(at: &str, want: &Object, got: &Object) {
    let of = |key: &str| {
        let optional = || want.get(&format!("{key}?"));
        want.get(key).or_else(optional).or_else(|| want.get("*"))
    };
    for (key, value) in got {
        let want = of(key).unwrap_or_else(|| panic!("{at}: unknown key {key}"));
        same_keys(&format!("{at}.{key}"), want, value);
    }
    let must = want.keys().filter(|key| !key.ends_with('?') && *key != "*");
    let lacking: Vec<_> = must.filter(|key| !got.contains_key(*key)).collect();
    assert!(lacking.is_empty(), "{at}: without {lacking:?}");
}
