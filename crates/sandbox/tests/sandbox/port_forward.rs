//! Connections from the host to a port of a pod.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use berm_testkit::cases::Case;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::container::Made;
use crate::control::Client;
use crate::world::{Pod, SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    port_forward_carries_both_ways_and_keeps_a_half_close,
    port_forward_ends_with_the_sandbox,
    a_flood_through_a_forwarded_port_holds_up_no_call_and_a_slow_reader_gets_all_of_it,
    a_forwarded_port_that_is_idle_keeps_no_pipe,
    port_forward_refuses_by_name_what_it_cannot_do,
];

const METHOD: &str = "containerManager.PortForward";

/// A container that may bring the pod's loopback up, and does.
pub(crate) async fn with_loopback<'p>(pod: &'p Pod<'p>, script: &str) -> Made<'p> {
    let caps = json!(["CAP_NET_ADMIN"]);
    let mut c = pod.sh(&format!("busybox ip link set lo up; {script}"));
    for set in ["bounding", "effective", "permitted"] {
        c = c.set(&format!("/process/capabilities/{set}"), caps.clone());
    }
    c.run().await
}

fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (UnixStream::from_std(ours).unwrap(), theirs.into())
}

/// A stream to the port, as soon as somebody listens.
async fn forwarded(pod: &Pod<'_>, id: &str, port: u16) -> UnixStream {
    loop {
        let (ours, theirs) = pair();
        let client = Client::to(pod).await;
        let arg = json!({"ContainerID": id, "Port": port});
        let (reply, _) = client.call_with(METHOD, arg, &[theirs.as_fd()]).await;
        match reply["success"].as_bool() {
            Some(true) => return ours,
            _ => assert_eq!(reply["kind"], "Unavailable", "{reply}"),
        }
    }
}

fn port_forward_carries_both_ways_and_keeps_a_half_close() {
    world(async |w| {
        let pod = w.pod().await;
        // Answers only after the end of what it is sent.
        let c = with_loopback(&pod, "exec busybox nc -l -p 7000 -e /bin/wc -c").await;
        let mut stream = forwarded(&pod, &c.id, 7000).await;
        let sent = vec![b'x'; 3 << 20];
        timeout(SOON, stream.write_all(&sent))
            .await
            .unwrap()
            .unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        let read = timeout(SOON, stream.read_to_string(&mut answer)).await;
        read.expect("an end").unwrap();
        assert_eq!(answer.trim(), sent.len().to_string());
        c.end().await;
    });
}

fn port_forward_ends_with_the_sandbox() {
    world(async |w| {
        let pod = w.pod().await;
        let c = with_loopback(&pod, "exec busybox nc -l -p 7000 -e /bin/sleep 1000").await;
        let mut stream = forwarded(&pod, &c.id, 7000).await;
        pod.sandbox.destroy().await;
        let end = timeout(SOON, stream.read(&mut [0; 1]))
            .await
            .expect("an end");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    });
}

fn a_flood_through_a_forwarded_port_holds_up_no_call_and_a_slow_reader_gets_all_of_it() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "busybox nc -l -p 7000 -e /bin/yes & exec busybox nc -l -p 7001 -e /bin/dd \
            if=/dev/zero bs=65536 count=160";
        let c = with_loopback(&pod, script).await;
        let mut flood = forwarded(&pod, &c.id, 7000).await;
        let reading = tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(1..) = flood.read(&mut buffer).await {}
        });
        let mut slow = forwarded(&pod, &c.id, 7001).await;
        let (mut count, mut byte) = (0, [0; 100]);
        // Less than the rest at once, with a call in between each time.
        for _ in 0..20 {
            count += timeout(SOON, slow.read(&mut byte)).await.unwrap().unwrap();
            let call = Client::to(&pod)
                .await
                .call_with("berm.State", Value::Null, &[])
                .await;
            assert_eq!(call.0["success"], true);
        }
        let mut rest = Vec::new();
        timeout(SOON, slow.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(count + rest.len(), 160 << 16);
        c.end().await;
        timeout(SOON, reading).await.expect("an end").unwrap();
    });
}

fn a_forwarded_port_that_is_idle_keeps_no_pipe() {
    world(async |w| {
        let pod = w.pod().await;
        let c = with_loopback(&pod, "exec busybox nc -l -p 7000 -e /bin/cat").await;
        let pipes = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            links
                .filter(|link| link.to_string_lossy().starts_with("pipe:"))
                .count()
        };
        let before = pipes();
        let mut stream = forwarded(&pod, &c.id, 7000).await;
        let mut seen = 0;
        while seen < 2 {
            stream.write_all(b"to and fro").await.unwrap();
            let mut back = [0; 10];
            timeout(SOON, stream.read_exact(&mut back))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&back, b"to and fro");
            // None if this machine has stood still for a second since.
            seen += usize::from(pipes() > before);
            let idle = async {
                while pipes() > before {
                    tokio::task::yield_now().await;
                }
            };
            timeout(SOON, idle).await.expect("no pipe is left");
        }
        c.end().await;
    });
}

fn port_forward_refuses_by_name_what_it_cannot_do() {
    world(async |w| {
        let pod = w.pod().await;
        let c = with_loopback(&pod, "echo ready; exec sleep 1000").await;
        let mut c = c;
        assert_eq!(c.line().await, "ready");
        let client = Client::to(&pod).await;
        let (_ours, stream) = pair();
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        let arg = |id: &str, port: u32| json!({"ContainerID": id, "Port": port});
        let (one, none) = (vec![stream.as_fd()], Vec::new());
        let two = vec![stream.as_fd(), stream.as_fd()];
        let cases: Vec<(Value, &Vec<_>, &str, &str)> = vec![
            (arg(&c.id, 7001), &one, "Unavailable", "127.0.0.1:7001"),
            (arg("nope", 7001), &one, "NotFound", "nope"),
            (arg(&c.id, 0), &one, "InvalidArgument", "Port"),
            (arg(&c.id, 70_000), &one, "InvalidArgument", "70000"),
            (arg(&c.id, 7001), &none, "InvalidArgument", "not 0"),
            (arg(&c.id, 7001), &two, "InvalidArgument", "not 2"),
        ];
        for (arg, fds, kind, word) in cases {
            let (reply, _) = client.call_with(METHOD, arg, fds).await;
            assert_eq!(reply["kind"], kind, "{reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
        let (reply, _) = client
            .call_with(METHOD, arg(&c.id, 7001), &[pipe.as_fd()])
            .await;
        assert_eq!(reply["kind"], "InvalidArgument", "{reply}");
        c.kill(9).await.unwrap();
        c.wait().await;
        let (reply, _) = client.call_with(METHOD, arg(&c.id, 7001), &one).await;
        assert_eq!(reply["kind"], "FailedPrecondition", "{reply}");
        c.delete().await.unwrap();
    });
}
