//! Pausing the whole pod, by the library and by the control socket.

use std::fs;
use std::time::{Duration, Instant};

use berm_sandbox::{Sandbox, Status};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::container::{Made, process};
use crate::control::Client;
use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    pause_of_the_pod_is_counted_and_a_stray_resume_is_an_error,
    pause_of_the_pod_stops_every_container_and_tells_of_each,
    what_was_paused_by_itself_stays_so_when_the_pod_is_resumed,
    in_a_paused_pod_nothing_starts_and_all_can_be_killed_and_deleted,
    a_killed_exec_of_a_paused_container_leaves_the_rest_of_it_frozen,
    a_start_under_way_is_frozen_with_its_pod,
    a_paused_pod_dies_with_its_sandbox,
    a_paused_sandbox_is_destroyed,
];

/// Makes a file longer: one that is emptied each time is empty for as long as the disk takes.
const COUNT: &str = "echo ready; while :; do echo >> /tmp/n; done";

/// How far it is.
fn count(made: &Made<'_>) -> u64 {
    fs::metadata(made.root.join("tmp/n")).map_or(0, |file| file.len())
}

async fn runs(made: &Made<'_>) {
    let (first, until) = (count(made), Instant::now() + SOON);
    while count(made) == first {
        assert!(Instant::now() < until, "{} stands still", made.id);
        sleep(Duration::from_millis(1)).await;
    }
}

/// All is frozen: nothing changes, however long one looks.
async fn stands_still(made: &Made<'_>) {
    let first = count(made);
    sleep(Duration::from_millis(30)).await;
    assert_eq!(first, count(made), "{} runs", made.id);
}

fn status(sandbox: &Sandbox, id: &str) -> Status {
    sandbox.state(id, None).unwrap().status
}

fn pause_of_the_pod_is_counted_and_a_stray_resume_is_an_error() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        let client = Client::to(&pod).await;
        let refused = client.refused("Resume", Value::Null).await;
        assert_eq!(refused.0, "FailedPrecondition");
        assert!(refused.1.contains(pod.id()), "{}", refused.1);
        for _ in 0..2 {
            assert_eq!(client.ok("Pause", Value::Null).await, json!({}));
        }
        client.ok("Resume", Value::Null).await;
        assert_eq!(status(&pod.sandbox, &c.id), Status::Paused);
        client.ok("Resume", Value::Null).await;
        assert_eq!(status(&pod.sandbox, &c.id), Status::Running);
        assert_eq!(
            client.refused("Resume", Value::Null).await.0,
            "FailedPrecondition"
        );
        assert_eq!(
            client.refused("Pause", json!("c1")).await.0,
            "InvalidArgument"
        );
        assert_eq!(c.exec_sh("exit 2").await.0, 2);
        c.end().await;
    });
}

fn pause_of_the_pod_stops_every_container_and_tells_of_each() {
    world(async |w| {
        let pod = w.pod().await;
        let mut all = vec![
            pod.sh(COUNT).run().await,
            pod.sh(COUNT).shared_pidns().run().await,
        ];
        for c in &mut all {
            assert_eq!(c.line().await, "ready");
        }
        pod.sandbox.pause_all().await.unwrap();
        for c in &all {
            stands_still(c).await;
            assert_eq!(status(&pod.sandbox, &c.id), Status::Paused);
            pod.sandbox.stats(&c.id).unwrap();
        }
        pod.sandbox.resume_all().await.unwrap();
        for c in &all {
            runs(c).await;
            c.end().await;
            let story = pod.story(&c.id);
            let told = |word: &str| story.iter().filter(|w| *w == word).count();
            assert_eq!((told("paused"), told("resumed")), (1, 1), "{story:?}");
        }
    });
}

fn a_killed_exec_of_a_paused_container_leaves_the_rest_of_it_frozen() {
    world(async |w| {
        let pod = w.pod().await;
        let sandbox = &pod.sandbox;
        let mut c = pod.sh(COUNT).run().await;
        assert_eq!(c.line().await, "ready");
        let sleep = process(&["/bin/sleep", "1000"]);
        drop(c.start_exec("e", &sleep).await.unwrap());
        sandbox.pause(&c.id).await.unwrap();
        sandbox.kill(&c.id, Some("e"), 9, false).await.unwrap();
        stands_still(&c).await;
        assert_eq!(status(sandbox, &c.id), Status::Paused);
        sandbox.resume(&c.id).await.unwrap();
        let exit = timeout(SOON, sandbox.wait(&c.id, Some("e"))).await;
        assert_eq!(exit.unwrap().unwrap().status, 137);
        runs(&c).await;
        c.end().await;
    });
}

fn what_was_paused_by_itself_stays_so_when_the_pod_is_resumed() {
    world(async |w| {
        let pod = w.pod().await;
        let alone = pod.container(&["/bin/sleep", "1000"]).run().await;
        let other = pod.container(&["/bin/sleep", "1000"]).run().await;
        let sandbox = &pod.sandbox;
        sandbox.pause(&alone.id).await.unwrap();
        sandbox.pause_all().await.unwrap();
        let error = sandbox.resume(&other.id).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(
            error.to_string().contains("resume the pod first"),
            "{error}"
        );
        let error = sandbox.pause(&other.id).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        sandbox.resume_all().await.unwrap();
        assert_eq!(status(sandbox, &alone.id), Status::Paused);
        assert_eq!(status(sandbox, &other.id), Status::Running);
        sandbox.resume(&alone.id).await.unwrap();
        alone.end().await;
        other.end().await;
    });
}

fn in_a_paused_pod_nothing_starts_and_all_can_be_killed_and_deleted() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("sleep 1000 & sleep 1000").run().await;
        let late = pod
            .container(&["/bin/sleep", "1000"])
            .create()
            .await
            .unwrap();
        pod.sandbox.pause_all().await.unwrap();
        let later = pod
            .container(&["/bin/sleep", "1000"])
            .create()
            .await
            .unwrap();
        for made in [&late, &later] {
            let error = made.start().await.unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains(&made.id), "{error}");
        }
        let error = c
            .start_exec("e", &process(&["/bin/true"]))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(
            c.delete().await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        later.delete().await.unwrap();
        c.end().await;
        pod.sandbox.resume_all().await.unwrap();
        late.start().await.unwrap();
        late.end().await;
    });
}

fn a_start_under_way_is_frozen_with_its_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod
            .container(&["/bin/sleep", "1000"])
            .create()
            .await
            .unwrap();
        let (started, paused) = tokio::join!(c.start(), pod.sandbox.pause_all());
        started.unwrap();
        paused.unwrap();
        assert_eq!(status(&pod.sandbox, &c.id), Status::Paused);
        pod.sandbox.resume_all().await.unwrap();
        c.end().await;
    });
}

fn a_paused_pod_dies_with_its_sandbox() {
    world(async |w| {
        for signal in [9, 15] {
            let pod = w.pod().await;
            let c = pod.container(&["/bin/sleep", "1000"]).run().await;
            pod.sandbox.pause_all().await.unwrap();
            pod.sandbox
                .kill(pod.id(), None, signal, false)
                .await
                .unwrap();
            assert_eq!(c.wait().await.status, 137);
            let exit = timeout(SOON, pod.sandbox.wait(pod.id(), None)).await;
            exit.expect("PID 1 ends").unwrap();
            let error = pod.sandbox.pause_all().await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            let error = pod.sandbox.resume_all().await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unavailable);
            c.delete().await.unwrap();
            pod.sandbox.delete(pod.id(), None).await.unwrap();
        }
    });
}

fn a_paused_sandbox_is_destroyed() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        pod.sandbox.pause_all().await.unwrap();
        timeout(SOON, pod.sandbox.destroy()).await.unwrap();
        assert!(pod.sandbox.is_empty(), "{}", c.id);
    });
}
