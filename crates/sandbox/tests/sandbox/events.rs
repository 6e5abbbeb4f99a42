//! Events of a pod over its control socket, into a pipe of the listener's.

use std::os::fd::{AsFd, OwnedFd};

use berm_testkit::cases::Case;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::time::timeout;

use crate::control::Client;
use crate::world::{Pod, SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    events_tell_a_containers_life_in_its_order_and_end_with_the_sandbox,
    events_of_one_container_end_with_it_and_tell_of_no_other,
    a_listener_that_does_not_read_loses_the_oldest_events_and_is_told_how_many,
    a_listener_that_vanishes_leaks_nothing_and_the_others_are_told,
    events_of_a_sandbox_that_is_destroyed_end,
    events_refuse_by_name_what_they_cannot_be_written_to,
];

struct Listener(Lines<BufReader<Receiver>>);

/// Asks for events; the read end that stays here.
async fn listen(pod: &Pod<'_>, arg: Value) -> OwnedFd {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let client = Client::to(pod).await;
    let (reply, _) = client.call_with("berm.Events", arg, &[write.as_fd()]).await;
    assert_eq!(reply["success"], true, "{reply}");
    read
}

impl Listener {
    fn over(read: OwnedFd) -> Self {
        Self(BufReader::new(Receiver::from_owned_fd(read).unwrap()).lines())
    }

    async fn to(pod: &Pod<'_>, arg: Value) -> Self {
        Self::over(listen(pod, arg).await)
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        let line = timeout(SOON, self.0.next_line()).await.expect("a line");
        let event: Value = serde_json::from_str(&line.unwrap()?).unwrap();
        assert!(event["time"].as_str().unwrap().ends_with('Z'), "{event}");
        Some(event)
    }

    /// Types and ids until the end.
    async fn story(&mut self) -> Vec<String> {
        let mut story = Vec::new();
        while let Some(event) = self.next().await {
            let word = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            story.push(format!("{} {}", word("id"), word("type")));
        }
        story
    }
}

fn events_tell_a_containers_life_in_its_order_and_end_with_the_sandbox() {
    world(async |w| {
        let pod = w.pod().await;
        let mut all = Listener::to(&pod, Value::Null).await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let created = all.next().await.unwrap();
        assert_eq!(
            (&created["type"], &created["id"]),
            (&json!("created"), &json!(c.id))
        );
        assert_eq!(
            (&created["sandbox"], &created["pid"]),
            (&json!(pod.id()), &json!(c.pid))
        );
        assert_eq!(all.next().await.unwrap()["type"], "started");
        assert_eq!(c.exec_sh("exit 3").await.0, 3);
        for (kind, status) in [
            ("exec-added", None),
            ("exec-started", None),
            ("exited", Some(3)),
        ] {
            let event = all.next().await.unwrap();
            assert_eq!(event["type"], kind, "{event}");
            assert!(event["exec"].is_string(), "{event}");
            assert_eq!(event["exitStatus"].as_u64(), status, "{event}");
        }
        pod.sandbox.pause(&c.id).await.unwrap();
        pod.sandbox.resume(&c.id).await.unwrap();
        assert_eq!(all.next().await.unwrap()["type"], "paused");
        assert_eq!(all.next().await.unwrap()["type"], "resumed");
        c.kill(9).await.unwrap();
        c.wait().await;
        c.delete().await.unwrap();
        for kind in ["exited", "deleted"] {
            let event = all.next().await.unwrap();
            assert_eq!(
                (&event["type"], &event["exitStatus"]),
                (&json!(kind), &json!(137))
            );
            assert_eq!(event.get("exec"), None);
        }
        pod.end().await;
        assert_eq!(all.story().await, [format!("{} exited", pod.id())]);
    });
}

fn events_of_one_container_end_with_it_and_tell_of_no_other() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let mut of_it = Listener::to(&pod, json!({"CID": c.id})).await;
        let mut of_all = Listener::to(&pod, json!({})).await;
        let other = pod.container(&["/bin/sleep", "1000"]).run().await;
        c.kill(9).await.unwrap();
        assert_eq!(of_it.story().await, [format!("{} exited", c.id)]);
        c.delete().await.unwrap();
        other.end().await;
        // The containers of a pod whose PID 1 is killed end after it: they are told of.
        let last = pod.container(&["/bin/sleep", "1000"]).run().await;
        pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
        let story = of_all.story().await;
        assert!(story.contains(&format!("{} exited", last.id)), "{story:?}");
        assert!(story.contains(&format!("{} exited", pod.id())), "{story:?}");
        last.delete().await.unwrap();
    });
}

fn a_listener_that_does_not_read_loses_the_oldest_events_and_is_told_how_many() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let read = listen(&pod, json!({"CID": c.id})).await;
        // A pipe of one page holds about 30 lines, the queue 256.
        rustix::pipe::fcntl_setpipe_size(&read, 4096).unwrap();
        for _ in 0..200 {
            pod.sandbox.pause(&c.id).await.unwrap();
            pod.sandbox.resume(&c.id).await.unwrap();
        }
        c.kill(9).await.unwrap();
        c.wait().await;
        let mut slow = Listener::over(read);
        let (mut told, mut lost, mut last) = (0, 0, Value::Null);
        while let Some(event) = slow.next().await {
            match event["type"].as_str().unwrap() {
                "lost" => lost += event["count"].as_u64().unwrap(),
                _ => told += 1,
            }
            last = event;
        }
        assert!(lost > 0 && told > 256, "{lost} lost, {told} told");
        assert_eq!(told + lost, 401);
        assert_eq!(last["type"], "exited");
        c.delete().await.unwrap();
    });
}

fn a_listener_that_vanishes_leaks_nothing_and_the_others_are_told() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let pipes = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            let pipes = links.filter(|link| link.to_string_lossy().starts_with("pipe:"));
            pipes.count()
        };
        let before = pipes();
        let mut stays = Listener::to(&pod, Value::Null).await;
        for _ in 0..70 {
            drop(listen(&pod, Value::Null).await);
            // Nothing has happened since: it is forgotten all the same.
            timeout(SOON, async {
                while pipes() > before + 2 {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .expect("its pipe is closed");
        }
        pod.sandbox.pause(&c.id).await.unwrap();
        assert_eq!(stays.next().await.unwrap()["type"], "paused");
        pod.sandbox.resume(&c.id).await.unwrap();
        c.end().await;
    });
}

fn events_of_a_sandbox_that_is_destroyed_end() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let mut all = Listener::to(&pod, Value::Null).await;
        pod.sandbox.destroy().await;
        let story = all.story().await;
        assert!(story.contains(&format!("{} exited", c.id)), "{story:?}");
    });
}

fn events_refuse_by_name_what_they_cannot_be_written_to() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let null = std::fs::File::options()
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (one, none, two) = (
            vec![write.as_fd()],
            vec![],
            vec![write.as_fd(), write.as_fd()],
        );
        let cases = [
            (Value::Null, none, "InvalidArgument", "not 0"),
            (Value::Null, two, "InvalidArgument", "not 2"),
            (
                Value::Null,
                vec![read.as_fd()],
                "InvalidArgument",
                "write end of a pipe",
            ),
            (
                Value::Null,
                vec![null.as_fd()],
                "InvalidArgument",
                "write end of a pipe",
            ),
            (json!({"CID": "nope"}), one.clone(), "NotFound", "nope"),
            (json!({"id": "nope"}), one.clone(), "InvalidArgument", "id"),
        ];
        for (arg, fds, kind, word) in cases {
            let (reply, _) = client.call_with("berm.Events", arg, &fds).await;
            assert_eq!(reply["kind"], kind, "{reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
        c.kill(9).await.unwrap();
        c.wait().await;
        let arg = json!({"CID": c.id});
        let (reply, _) = client.call_with("berm.Events", arg, &one).await;
        assert_eq!(reply["kind"], "FailedPrecondition", "{reply}");
        let mut full = Vec::new();
        for _ in 0..64 {
            full.push(listen(&pod, Value::Null).await);
        }
        let (reply, _) = client.call_with("berm.Events", Value::Null, &one).await;
        assert_eq!(reply["kind"], "Unavailable", "{reply}");
        c.delete().await.unwrap();
    });
}
