//! A client of another hand: a process of its own that knows gVisor's wire and nothing of Berm.
//!
//! It writes what gVisor's command line writes (pkg/urpc, pkg/sentry/control, runsc/boot), byte for
//! byte but for ids and the names of files and metrics, with a connection for each call, and reads
//! what it would read.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use berm_sys::process::{Fork, exit, fork};
use berm_testkit::cases::Case;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use crate::control::{golden, pipe};
use crate::world::{SOON, World, world_with};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_client_written_from_gvisors_wire_alone_looks_at_a_sandbox,
    a_client_written_from_gvisors_wire_alone_runs_signals_and_waits,
    a_client_written_from_gvisors_wire_alone_reads_and_writes_files_and_settings,
    a_client_written_from_gvisors_wire_alone_meets_its_error_texts,
    a_client_written_from_gvisors_wire_alone_makes_and_destroys_a_container,
];

/// The other hand.
struct Stranger {
    socket: PathBuf,
    sandbox: String,
    container: String,
    /// Of a container that it may make.
    spec: Value,
}

impl Stranger {
    /// One call over a connection of its own: the whole reply and its files.
    fn reply(&self, request: &str, fds: &[BorrowedFd<'_>]) -> (Value, Vec<OwnedFd>) {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(SOON * 2)).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let slices = [IoSlice::new(request.as_bytes())];
        let sent = sendmsg(&stream, &slices, &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent.unwrap(), request.len());
        let (mut bytes, mut files) = (Vec::new(), Vec::new());
        loop {
            let mut part = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut part)];
            let got = recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC);
            let len = got.unwrap().bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    files.extend(rights);
                }
            }
            assert_ne!(len, 0, "closed after {:?}", String::from_utf8_lossy(&bytes));
            bytes.extend(&part[..len]);
            // As gVisor's decoder: the message ends where its JSON does.
            match serde_json::from_slice::<Value>(&bytes) {
                Ok(reply) => return (reply, files),
                Err(e) => assert!(e.is_eof(), "{e}"),
            }
        }
    }

    fn ok_with(&self, method: &str, arg: &str, fds: &[BorrowedFd<'_>]) -> (Value, Vec<OwnedFd>) {
        let request = format!(r#"{{"method":"{method}","arg":{arg}}}"#);
        let (reply, files) = self.reply(&request, fds);
        let keys: Vec<_> = reply.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["err", "result", "success"], "{method}: {reply}");
        assert_eq!(
            (&reply["success"], &reply["err"]),
            (&json!(true), &json!(""))
        );
        (reply["result"].clone(), files)
    }

    fn ok(&self, method: &str, arg: &str) -> Value {
        let (result, files) = self.ok_with(method, arg, &[]);
        assert!(files.is_empty(), "{method}");
        result
    }

    /// Its id as an argument.
    fn id(&self) -> String {
        format!("{:?}", self.container)
    }

    /// What gVisor's `runsc exec` sends.
    fn execute(&self, argv: &Value, fds: &[BorrowedFd<'_>]) -> i64 {
        let places: Vec<_> = (0..fds.len()).collect();
        let arg = format!(
            r#"{{"filename":"","argv":{argv},"envv":["PATH=/bin:/usr/bin"],"MountNamespace":null,"wd":"/tmp","KUID":5,"KGID":6,"ExtraKGIDs":[7],"NoNewPrivileges":false,"Capabilities":{{"PermittedCaps":4128,"InheritableCaps":0,"EffectiveCaps":4128,"BoundingCaps":536875040,"AmbientCaps":0}},"StdioIsPty":false,"GuestFDs":{places:?},"FDTable":null,"ContainerID":{:?},"PIDNamespace":null,"Limits":null}}"#,
            self.container
        );
        let (pid, _) = self.ok_with("containerManager.ExecuteAsync", &arg, fds);
        pid.as_i64().unwrap()
    }

    fn wait_pid(&self, pid: i64) -> Value {
        let arg = format!(r#"{{"PID":{pid},"CID":{:?}}}"#, self.container);
        self.ok("containerManager.WaitPID", &arg)
    }
}

/// Runs `talk` in a process of its own, with a pod whose container sleeps.
fn stranger(talk: fn(&Stranger)) {
    world_with(
        |config| config.metric_server = Some("127.0.0.1:9469".parse().unwrap()),
        async |w: &World| {
            let pod = w.pod().await;
            let c = pod.container(&["/bin/sleep", "1000"]).run().await;
            pod.until_runs(pod.id(), &["berm-init"]).await;
            pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
            let stranger = Stranger {
                socket: pod.sandbox.record().control_socket_path.clone(),
                sandbox: pod.id().to_owned(),
                container: c.id.clone(),
                spec: pod.sh("read line; echo got $line; exit 6").spec,
            };
            let (talking, ended) = pipe();
            let Fork::Parent(pid) = fork().unwrap() else {
                let talked = catch_unwind(AssertUnwindSafe(|| talk(&stranger)));
                exit(i32::from(talked.is_err()))
            };
            drop(ended);
            // It ends with the client, who writes nothing to it.
            let mut talking = Receiver::from_owned_fd(talking.into()).unwrap();
            let end = timeout(SOON * 3, talking.read_u8()).await;
            assert!(end.expect("the client ends").is_err());
            let waited = waitpid(Pid::from_raw(pid), WaitOptions::empty());
            let (_, status) = waited.unwrap().unwrap();
            assert_eq!(
                status.exit_status(),
                Some(0),
                "the client's words are above"
            );
            c.end().await;
        },
    );
}

/// The keys of an object that gVisor's client decodes.
#[track_caller]
fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        let name = key.trim_start_matches('/').replace('/', ".");
        assert!(value.pointer(key).is_some(), "{name} is missing in {value}");
    }
}

fn a_client_written_from_gvisors_wire_alone_looks_at_a_sandbox() {
    stranger(|s| {
        let processes = s.ok("containerManager.Processes", &s.id());
        golden("containerManager.Processes", &processes);
        has(
            &processes[0],
            &[
                "/uid", "/pid", "/ppid", "/threads", "/c", "/tty", "/stime", "/time", "/cmd",
            ],
        );
        assert_eq!(s.ok("containerManager.ContainerRuntimeState", &s.id()), 2);
        let event = s.ok("containerManager.Event", &s.id());
        golden("containerManager.Event", &event);
        has(
            &event,
            &[
                "/event/type",
                "/event/id",
                "/event/data/cpu/usage",
                "/event/data/memory/usage/limit",
                "/event/data/memory/usage/usage",
                "/event/data/memory/usage/failcnt",
                "/event/data/memory/swap",
                "/event/data/memory/kernel",
                "/event/data/memory/kernelTCP",
                "/event/data/pids/current",
                "/event/data/network_interfaces/0/Name",
                "/event/data/network_interfaces/0/RxBytes",
                "/containerUsage",
            ],
        );
        let dump = s.ok("containerManager.ProcfsDump", "null");
        golden("containerManager.ProcfsDump", &dump);
        for key in [
            "exe", "args", "env", "cwd", "fdlist", "clone_ts", "root", "limits", "cgroup",
            "status", "stat", "maps",
        ] {
            let of = |p: &Value| p["container"] == s.container && p.get(key).is_some();
            assert!(dump.as_array().unwrap().iter().any(of), "{key}");
        }
        let table = s.ok("Proc.Ps", "{}");
        let table = table.as_str().unwrap();
        assert!(table.lines().next().unwrap().contains("PID"), "{table}");
        assert!(table.contains("sleep"), "{table}");
        let stacks = s.ok("debug.Stacks", "null");
        assert!(stacks.as_str().unwrap().contains(&s.container), "{stacks}");
        let states = s.ok("berm.State", "null");
        golden("berm.State", &states);
    });
}

fn a_client_written_from_gvisors_wire_alone_runs_signals_and_waits() {
    stranger(|s| {
        let (stdin, to) = pipe();
        let (mut out, stdout) = pipe();
        let (mut err, stderr) = pipe();
        { to }.write_all(b"hello\n").unwrap();
        let script = json!(["/bin/sh", "-c", "cat; id -u; pwd; echo oops >&2; exit 7"]);
        let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let pid = s.execute(&script, &fds);
        drop((stdin, stdout, stderr));
        assert_eq!(s.wait_pid(pid), 1792, "a word of wait(2)");
        let (mut told, mut complained) = (String::new(), String::new());
        out.read_to_string(&mut told).unwrap();
        err.read_to_string(&mut complained).unwrap();
        assert_eq!(
            (told.as_str(), complained.as_str()),
            ("hello\n5\n/tmp\n", "oops\n")
        );
        let pid = s.execute(&json!(["/bin/sleep", "1000"]), &[]);
        let signal = |pid: i64, mode: u32| {
            let id = &s.container;
            format!(r#"{{"CID":{id:?},"Signo":9,"PID":{pid},"Mode":{mode}}}"#)
        };
        let done = s.ok("containerManager.Signal", &signal(pid, 0));
        assert_eq!(done, json!({}));
        assert_eq!(s.wait_pid(pid), 9, "killed by signal 9");
        assert_eq!(s.ok("containerManager.Pause", "null"), json!({}));
        assert_eq!(s.ok("containerManager.Resume", "null"), json!({}));
        s.ok("containerManager.Signal", &signal(0, 1));
        assert_eq!(s.ok("containerManager.Wait", &s.id()), 9);
        assert_eq!(s.ok("containerManager.ContainerRuntimeState", &s.id()), 3);
    });
}

fn a_client_written_from_gvisors_wire_alone_reads_and_writes_files_and_settings() {
    stranger(|s| {
        let used = s.ok("Usage.Collect", r#"{"Full":false}"#);
        golden("Usage.Collect", &used);
        has(
            &used,
            &[
                "/Unknown",
                "/System",
                "/Anonymous",
                "/PageCache",
                "/Mapped",
                "/Tmpfs",
                "/Ramdiskfs",
                "/Total",
            ],
        );
        let (named, files) = s.ok_with("Usage.UsageFD", r#"{"Version":1}"#, &[]);
        golden("Usage.UsageFD", &named);
        assert_eq!(named["cgroups"], json!([s.sandbox, s.container]));
        assert_eq!(files.len(), 4);
        let mut text = [0; 64];
        let len = { files }.remove(2);
        let len = File::from(len).read_at(&mut text, 0).unwrap();
        let bytes = std::str::from_utf8(&text[..len]).unwrap().trim();
        assert!(bytes.parse::<u64>().unwrap() > 0);
        let metrics = s.ok("Metrics.GetRegisteredMetrics", "{}");
        golden("Metrics.GetRegisteredMetrics", &metrics);
        let only = r#"{"only_metrics":"^berm_(containers|execs)$"}"#;
        let exported = s.ok("Metrics.Export", only);
        golden("Metrics.Export", &exported);
        let rows = exported["snapshot"]["data"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["metric"]["type"] == 1), "gauges");
        let level = json!({"SetLevel": true, "Level": 2, "SetLogPackets": false,
            "LogPackets": false, "SetStrace": false, "EnableStrace": false,
            "StraceAllowlist": null, "SetEventStrace": false, "EnableEventStrace": false,
            "StraceEventAllowlist": null});
        assert_eq!(s.ok("Logging.Change", &level.to_string()), 0);
        assert_eq!(s.ok("Logging.Change", r#"{"SetLevel":true,"Level":1}"#), 0);
        let path = format!("/{}", s.container);
        let file = json!({"controller": "pids", "path": path, "name": "pids.max"});
        let write = json!({"args": [{"file": file, "value": "55"}]}).to_string();
        let wrote = s.ok("Cgroups.WriteControlFiles", &write);
        golden("Cgroups.ControlFiles", &wrote);
        let read = json!({"args": [{"file": file}]}).to_string();
        let got = s.ok("Cgroups.ReadControlFiles", &read);
        let value = json!({"results": [{"value": "55", "is_error": false}]});
        assert_eq!(got, value);
    });
}

fn a_client_written_from_gvisors_wire_alone_meets_its_error_texts() {
    stranger(|s| {
        let id = &s.container;
        let cases = [
            (
                "containerManager.Event",
                json!("x"),
                "container \"x\" not found",
            ),
            (
                "containerManager.Wait",
                json!("x"),
                "container \"x\" not found",
            ),
            ("containerManager.Nope", json!(null), "unknown method"),
            (
                "containerManager.WaitPID",
                json!({"PID": 78, "CID": id}),
                "waiting for PID 78: no such process",
            ),
            (
                "containerManager.ExecuteAsync",
                json!({"ContainerID": id, "argv": []}),
                "no filename or command provided",
            ),
            (
                "containerManager.Signal",
                json!({"CID": id, "Signo": 15, "PID": 9999, "Mode": 0}),
                "no such process with PID 9999",
            ),
            (
                "containerManager.Signal",
                json!({"CID": id, "Signo": 15, "PID": 0, "Mode": 2}),
                "no TTY attached",
            ),
        ];
        for (method, arg, text) in cases {
            let request = json!({"method": method, "arg": arg}).to_string();
            let (reply, files) = s.reply(&request, &[]);
            assert!(files.is_empty());
            assert_eq!(reply["success"], false, "{method}: {reply}");
            assert_eq!(reply["result"], Value::Null, "{method}: {reply}");
            let err = reply["err"].as_str().unwrap();
            assert!(err.contains(text), "{method}: {err:?} without {text:?}");
        }
    });
}

fn a_client_written_from_gvisors_wire_alone_makes_and_destroys_a_container() {
    stranger(|s| {
        let root = format!("{:?}", s.sandbox);
        let again = format!(r#"{{"method":"containerManager.StartRoot","arg":{root}}}"#);
        assert_eq!(s.reply(&again, &[]).0["success"], false, "it is started");
        assert_eq!(
            s.ok("containerManager.CreateSubcontainer", r#"{"CID":"s1"}"#),
            json!({})
        );
        assert_eq!(s.ok("containerManager.ContainerRuntimeState", r#""s1""#), 1);
        let start = format!(
            r#"{{"Spec":{},"Conf":{{}},"CID":"s1","NumGoferFilestoreFDs":0,"IsDevIoFilePresent":false,"GoferMountConfs":[],"IsRootfsUpperTarFilePresent":false}}"#,
            s.spec
        );
        let (stdin, to) = pipe();
        let (mut out, stdout) = pipe();
        let fds = [stdin.as_fd(), stdout.as_fd(), stdout.as_fd()];
        let (started, files) = s.ok_with("containerManager.StartSubcontainer", &start, &fds);
        assert_eq!((started, files.len()), (json!({}), 0));
        drop((stdin, stdout));
        assert_eq!(s.ok("containerManager.ContainerRuntimeState", r#""s1""#), 2);
        { to }.write_all(b"it\n").unwrap();
        assert_eq!(s.ok("containerManager.Wait", r#""s1""#), 6 << 8);
        let mut told = String::new();
        out.read_to_string(&mut told).unwrap();
        assert_eq!(told, "got it\n");
        assert_eq!(s.ok("containerManager.ContainerRuntimeState", r#""s1""#), 3);
        assert_eq!(
            s.ok("containerManager.DestroySubcontainer", r#""s1""#),
            json!({})
        );
        let gone = r#"{"method":"containerManager.Event","arg":"s1"}"#;
        assert_eq!(s.reply(gone, &[]).0["err"], "container \"s1\" not found");
    });
}
