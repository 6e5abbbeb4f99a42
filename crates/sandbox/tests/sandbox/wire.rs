//! Clients of the control socket that misbehave: each is refused or forgotten, and neither the
//! sandbox nor its containers notice.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use berm_testkit::cases::Case;
use rustix::process::Uid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::container::Made;
use crate::control::{Client, exec_args, pipe};
use crate::port_forward::with_loopback;
use crate::world::{Pod, SOON, open_files, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    two_requests_in_one_write_are_both_carried_out,
    an_oversized_message_is_refused_and_its_connection_closed,
    a_message_nested_too_deeply_is_refused_and_its_connection_closed,
    a_truncated_message_is_refused_and_not_carried_out,
    more_than_128_files_are_refused_and_none_stays_open,
    a_file_with_a_method_that_takes_none_is_refused_and_closed,
    a_missing_or_surplus_file_is_refused_and_all_are_closed,
    an_unknown_key_is_refused_by_its_name_in_every_method,
    an_unknown_method_is_refused_in_gvisors_words,
    a_value_of_the_wrong_type_is_refused_in_every_method,
    a_client_that_vanishes_while_it_waits_leaves_no_connection,
    a_client_that_vanishes_in_mid_execute_leaves_no_file_and_its_process_ends_with_the_container,
    a_client_that_vanishes_in_mid_port_forward_leaves_no_connection,
    another_user_that_gets_past_the_directory_is_turned_away,
];

/// A container that runs, and nothing else in it: whoever made it is gone.
async fn sleeper<'p>(pod: &'p Pod<'p>) -> Made<'p> {
    let made = pod.container(&["/bin/sleep", "1000"]).run().await;
    pod.until_runs(&made.id, &["/bin/sleep 1000"]).await;
    made
}

/// The sandbox answers and the container works.
async fn unharmed(pod: &Pod<'_>, c: &Made<'_>) {
    let client = Client::to(pod).await;
    assert_eq!(client.ok("ContainerRuntimeState", json!(c.id)).await, 2);
    let pid = client.exec(&c.id, "exit 5").await;
    let wait = json!({"CID": c.id, "PID": pid});
    assert_eq!(client.ok("WaitPID", wait).await, 5 << 8);
}

/// All that the server says to `bytes`, until it closes the connection.
async fn said(pod: &Pod<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Value {
    let mut client = Client::to(pod).await;
    match fds {
        // It may be closed before all is written.
        [] => {
            let written = timeout(SOON, client.0.write_all(bytes)).await.unwrap();
            let cut = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
            assert!(written.as_ref().err().is_none_or(cut), "{written:?}");
        }
        fds => client.send(bytes, fds).await,
    }
    client.0.shutdown().await.unwrap();
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        match timeout(SOON, client.0.read(&mut part))
            .await
            .expect("an end")
        {
            Ok(0) => break,
            Ok(len) => text.extend(&part[..len]),
            // What was left unread of ours.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => panic!("{e}"),
        }
    }
    serde_json::from_slice(&text).unwrap()
}

#[track_caller]
fn refused(reply: &Value, kind: &str, word: &str) {
    assert_eq!(reply["kind"], kind, "{reply}");
    let text = reply["err"].as_str().unwrap();
    assert!(text.contains(word), "{word:?} in {text:?}");
}

/// Waits until no more files are open than `before` says. No event tells when another task has
/// closed its own.
async fn closed_again(before: usize) {
    let until = Instant::now() + SOON;
    loop {
        let open = open_files();
        if open.len() <= before {
            return;
        }
        assert!(Instant::now() < until, "{before} were open, now {open:?}");
        tokio::task::yield_now().await;
    }
}

fn two_requests_in_one_write_are_both_carried_out() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        let request = json!({"method": "containerManager.ExecuteAsync",
            "arg": exec_args(&c.id, "exit 3")})
        .to_string();
        client
            .send((request.clone() + &request).as_bytes(), &[])
            .await;
        let (replies, _) = client.replies(2).await;
        let pids: Vec<_> = replies.iter().map(|reply| &reply["result"]).collect();
        assert_ne!(pids[0], pids[1]);
        for pid in pids {
            let wait = json!({"CID": c.id, "PID": pid});
            assert_eq!(client.ok("WaitPID", wait).await, 3 << 8);
        }
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn an_oversized_message_is_refused_and_its_connection_closed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let mut args = exec_args(&c.id, "true");
        args["envv"] = json!([format!("A={}", "x".repeat(3 << 20))]);
        let request = json!({"method": "containerManager.ExecuteAsync", "arg": args});
        let reply = said(&pod, request.to_string().as_bytes(), &[]).await;
        refused(&reply, "InvalidArgument", "more than 1048576 bytes");
        let pids = pod.sandbox.pids(&c.id).unwrap();
        assert_eq!(pids.len(), 1, "nothing was run");
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_message_nested_too_deeply_is_refused_and_its_connection_closed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        let deep = format!(r#"{{"method":"Proc.Ps","arg":{open}{close}}}"#);
        let reply = said(&pod, deep.as_bytes(), &[]).await;
        refused(&reply, "InvalidArgument", "nested more than 64 deep");
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_truncated_message_is_refused_and_not_carried_out() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let kill = json!({"method": "containerManager.Signal",
            "arg": {"CID": c.id, "Signo": 9, "PID": 0, "Mode": 1}})
        .to_string();
        for len in [1, kill.len() / 2, kill.len() - 1] {
            let reply = said(&pod, &kill.as_bytes()[..len], &[]).await;
            refused(&reply, "InvalidArgument", "cut off");
        }
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn more_than_128_files_are_refused_and_none_stays_open() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let (mut reader, writer) = pipe();
        let request = json!({"method": "containerManager.ExecuteAsync",
            "arg": exec_args(&c.id, "true")});
        let many = vec![writer.as_fd(); 129];
        let reply = said(&pod, request.to_string().as_bytes(), &many).await;
        refused(&reply, "InvalidArgument", "too many files");
        drop(writer);
        let mut text = String::new();
        // An end: nobody else has the other side.
        reader.read_to_string(&mut text).unwrap();
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_file_with_a_method_that_takes_none_is_refused_and_closed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        let kill = json!({"CID": c.id, "Signo": 9, "PID": 0, "Mode": 1});
        let cases = [
            ("containerManager.Signal", kill),
            ("containerManager.Processes", json!(c.id)),
            ("containerManager.Pause", Value::Null),
            ("Usage.Collect", json!({"Full": false})),
            ("berm.State", Value::Null),
        ];
        for (method, arg) in cases {
            let (mut reader, writer) = pipe();
            let (reply, _) = client.call_with(method, arg, &[writer.as_fd()]).await;
            refused(
                &reply,
                "InvalidArgument",
                &format!("{method} takes no files"),
            );
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
        }
        // It may be a method of another generation: its name is what is wrong.
        let (_, file) = pipe();
        let (reply, _) = client.call_with("Fs.Cat", json!({}), &[file.as_fd()]).await;
        refused(&reply, "NotSupported", "unknown method");
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_missing_or_surplus_file_is_refused_and_all_are_closed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        let forward = json!({"ContainerID": c.id, "Port": 7000});
        let mut exec = exec_args(&c.id, "true");
        exec["GuestFDs"] = json!([0, 1, 2]);
        let cases = [
            ("containerManager.PortForward", &forward, 0, "the stream"),
            ("containerManager.PortForward", &forward, 2, "not 2"),
            ("containerManager.ExecuteAsync", &exec, 2, "payload files"),
            ("containerManager.ExecuteAsync", &exec, 4, "payload files"),
        ];
        for (method, arg, count, word) in cases {
            let (mut reader, writer) = pipe();
            let files = vec![writer.as_fd(); count];
            let (reply, _) = client.call_with(method, arg.clone(), &files).await;
            refused(&reply, "InvalidArgument", word);
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
        }
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

/// Every method that takes an object, with one that is right but for what a case adds.
fn objects(id: &str) -> Vec<(&'static str, Value)> {
    vec![
        ("containerManager.Signal", json!({"CID": id, "Signo": 0})),
        ("containerManager.WaitPID", json!({"CID": id, "PID": 1})),
        ("containerManager.ExecuteAsync", exec_args(id, "true")),
        (
            "containerManager.PortForward",
            json!({"ContainerID": id, "Port": 7000}),
        ),
        ("containerManager.CreateSubcontainer", json!({"CID": "new"})),
        (
            "containerManager.StartSubcontainer",
            json!({"CID": id, "Spec": {}}),
        ),
        (
            "containerManager.Mount",
            json!({"ContainerID": id, "Destination": "/t", "FsType": "tmpfs"}),
        ),
        ("berm.Events", json!({})),
        ("Proc.Ps", json!({"JSON": true})),
        ("Cgroups.ReadControlFiles", json!({"args": []})),
        ("Cgroups.WriteControlFiles", json!({"args": []})),
        ("Logging.Change", json!({"SetLevel": false, "Level": 0})),
        ("Usage.Collect", json!({"Full": true})),
        ("Usage.UsageFD", json!({"Version": 1})),
        ("Metrics.Export", json!({"only_metrics": ""})),
        ("Metrics.GetRegisteredMetrics", json!({})),
        ("containerManager.Pause", json!({})),
        ("containerManager.Resume", json!({})),
        ("containerManager.ProcfsDump", json!({})),
        ("debug.Stacks", json!({})),
        ("berm.State", json!({})),
    ]
}

fn an_unknown_key_is_refused_by_its_name_in_every_method() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        for (method, mut arg) in objects(&c.id) {
            arg["Surprise"] = json!(1);
            let (reply, _) = client.call_with(method, arg, &[]).await;
            refused(&reply, "InvalidArgument", "Surprise");
        }
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn an_unknown_method_is_refused_in_gvisors_words() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        let names = [
            "",
            ".",
            "Processes",
            "containerManager",
            "containerManager.",
            "containerManager.processes",
            "ContainerManager.Processes",
            "containerManager.Processes.x",
            "Nope.Processes",
        ];
        for name in names {
            let (reply, _) = client.call_with(name, json!(c.id), &[]).await;
            assert_eq!(reply["err"], "unknown method", "{name:?}");
            assert_eq!(reply["kind"], "NotSupported", "{name:?}");
        }
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_value_of_the_wrong_type_is_refused_in_every_method() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let client = Client::to(&pod).await;
        for (method, _) in objects(&c.id) {
            for arg in [json!("text"), json!(7), json!([[1]]), json!(true)] {
                let (reply, _) = client.call_with(method, arg.clone(), &[]).await;
                assert_eq!(reply["kind"], "InvalidArgument", "{method} {arg}: {reply}");
            }
        }
        let of_an_id = [
            "Processes",
            "ContainerRuntimeState",
            "Event",
            "Wait",
            "StartRoot",
            "DestroySubcontainer",
        ];
        for method in of_an_id {
            for arg in [json!({"CID": c.id}), json!(7), json!([c.id]), Value::Null] {
                let (kind, text) = client.refused(method, arg).await;
                assert_eq!(kind, "InvalidArgument", "{method}: {text}");
            }
        }
        let signal = json!({"CID": c.id, "Signo": -9, "PID": 0, "Mode": 0});
        let (kind, text) = client.refused("Signal", signal).await;
        assert!(kind == "InvalidArgument" && text.contains("-9"), "{text}");
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_client_that_vanishes_while_it_waits_leaves_no_connection() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let exec = Client::to(&pod).await.exec(&c.id, "exec sleep 1000").await;
        let before = open_files().len();
        let wait = json!({"method": "containerManager.Wait", "arg": c.id});
        let wait_pid = json!({"method": "containerManager.WaitPID",
            "arg": {"CID": c.id, "PID": exec}});
        for _ in 0..20 {
            for request in [&wait, &wait_pid] {
                let client = Client::to(&pod).await;
                client.send(request.to_string().as_bytes(), &[]).await;
            }
        }
        closed_again(before).await;
        // Those that stay are told all the same.
        let client = Client::to(&pod).await;
        client.send(wait_pid.to_string().as_bytes(), &[]).await;
        let kill = json!({"CID": c.id, "PID": exec, "Signo": 9, "Mode": 0});
        Client::to(&pod).await.ok("Signal", kill).await;
        assert_eq!(client.replies(1).await.0[0]["result"], 9);
        unharmed(&pod, &c).await;
        c.end().await;
    });
}

fn a_client_that_vanishes_in_mid_execute_leaves_no_file_and_its_process_ends_with_the_container() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let before = open_files().len();
        let (mut reader, writer) = pipe();
        let mut args = exec_args(&c.id, "exec sleep 1000");
        args["GuestFDs"] = json!([1]);
        let request = json!({"method": "containerManager.ExecuteAsync", "arg": args});
        let client = Client::to(&pod).await;
        client
            .send(request.to_string().as_bytes(), &[writer.as_fd()])
            .await;
        drop((client, writer));
        let until = Instant::now() + SOON;
        // It was asked for and runs, whoever waits for it.
        while pod.sandbox.pids(&c.id).unwrap().len() < 2 {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        unharmed(&pod, &c).await;
        c.end().await;
        let mut text = String::new();
        // An end: only the process had the other side.
        reader.read_to_string(&mut text).unwrap();
        drop(reader);
        closed_again(before).await;
    });
}

fn a_client_that_vanishes_in_mid_port_forward_leaves_no_connection() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let before = open_files().len();
        let request = json!({"method": "containerManager.PortForward",
            "arg": {"ContainerID": c.id, "Port": 7000}})
        .to_string();
        let first = c.id.clone();
        for _ in 0..5 {
            let client = Client::to(&pod).await;
            let (_ours, theirs) = StdUnixStream::pair().unwrap();
            client.send(request.as_bytes(), &[theirs.as_fd()]).await;
        }
        closed_again(before).await;
        unharmed(&pod, &c).await;
        c.end().await;
        // Where somebody listens, the connection is made and ended: he is told.
        let c = with_loopback(&pod, "exec busybox nc -l -p 7000 -e /bin/cat").await;
        let request = request.replace(&first, &c.id);
        let ended = || pod.sandbox.state(&c.id, None).unwrap().exit.is_some();
        let before = open_files().len();
        while !ended() {
            let client = Client::to(&pod).await;
            let (ours, theirs) = StdUnixStream::pair().unwrap();
            client.send(request.as_bytes(), &[theirs.as_fd()]).await;
            drop((client, ours, theirs));
            while open_files().len() > before && !ended() {
                tokio::task::yield_now().await;
            }
        }
        c.delete().await.unwrap();
    });
}

fn another_user_that_gets_past_the_directory_is_turned_away() {
    world(async |w| {
        let pod = w.pod().await;
        let c = sleeper(&pod).await;
        let path = pod.sandbox.record().control_socket_path.clone();
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        open(&path, 0o666);
        for dir in path
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&w.dir))
        {
            open(dir, 0o755);
        }
        // The kernel notes who connects, not who writes.
        let stranger = std::thread::spawn({
            let path = path.clone();
            move || {
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                StdUnixStream::connect(&path).unwrap()
            }
        });
        let stranger = stranger.join().unwrap();
        stranger.set_nonblocking(true).unwrap();
        let mut stranger = tokio::net::UnixStream::from_std(stranger).unwrap();
        // Not a word, whatever it asks for.
        let kill = json!({"method": "containerManager.Signal",
            "arg": {"CID": c.id, "Signo": 9, "PID": 0, "Mode": 1}});
        let _: Result<(), _> = stranger.write_all(kill.to_string().as_bytes()).await;
        let read = timeout(SOON, stranger.read(&mut [0; 64]))
            .await
            .expect("an end");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        unharmed(&pod, &c).await;
        c.end().await;
    });
}
