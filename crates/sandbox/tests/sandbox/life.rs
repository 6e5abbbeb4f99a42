//! The life of pods, containers and execs: states, exits, their order.

use std::fs;
use std::time::{Duration, Instant};

use berm_sandbox::Status;
use berm_sys::Kind;
use berm_testkit::cases::Case;
use berm_testkit::process::descendants;
use tokio::time::{sleep, timeout};

use crate::container::process;
use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_pod_runs_a_container_and_execs_and_is_gone,
    pid_1_loses_no_signal_however_early_it_comes,
    exit_codes_from_0_to_255_arrive,
    a_signal_is_128_and_its_number,
    a_process_that_ends_at_once_is_told_in_order,
    every_waiter_is_told_the_same_exit_and_a_late_one_too,
    killing_what_has_finished_is_not_found,
    deleting_what_runs_is_refused,
    an_exec_that_outlives_its_container_ends_before_it,
    a_container_in_the_shared_pid_namespace_takes_its_background_children_along,
    start_twice_and_duplicate_ids_are_refused,
    delete_twice_is_not_found,
    a_created_container_can_be_deleted_and_a_created_exec_too,
    kill_all_reaches_every_process_of_the_container,
    hundreds_of_execs_at_once_keep_their_codes_apart,
    the_end_of_pid_1_ends_every_container,
    destroy_ends_everything_at_once_and_twice_is_harmless,
];

const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

fn a_pod_runs_a_container_and_execs_and_is_gone() {
    world(async |w| {
        let pod = w.pod().await;
        let got = pod.sh("echo hello; exit 3").output().await;
        assert_eq!(got, (3, "hello\n".into()));
        let c = pod.container(&SLEEP).run().await;
        assert_eq!(c.exec_sh("echo out; exit 7").await, (7, "out\n".into()));
        let state = pod.sandbox.state(&c.id, None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Running, c.pid));
        c.end().await;
        let story = pod.story(&c.id);
        assert_eq!(story[..2], ["created", "started"]);
        assert!(
            story[2].starts_with("added e") && story[3].starts_with("started e"),
            "{story:?}"
        );
        assert!(story[4].ends_with(" 7"), "{story:?}");
        assert_eq!(story[5..], ["exited 137", "deleted 137"]);
        let error = pod.sandbox.state(&c.id, None).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        pod.end().await;
        assert!(!pod.sandbox.is_running() && pod.sandbox.is_empty());
        assert_eq!(
            pod.story(pod.id()),
            ["created", "started", "exited 0", "deleted 0"]
        );
    });
}

fn pid_1_loses_no_signal_however_early_it_comes() {
    world(async |w| {
        for _ in 0..30 {
            w.pod().await.end().await;
        }
    });
}

fn exit_codes_from_0_to_255_arrive() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        for code in [0, 1, 2, 63, 126, 127, 128, 137, 254, 255] {
            let script = format!("exit {code}");
            assert_eq!(pod.sh(&script).output().await.0, code);
            assert_eq!(c.exec_sh(&script).await.0, code);
        }
    });
}

fn a_signal_is_128_and_its_number() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        for signal in [1, 2, 3, 6, 9, 11, 15, 31, 34, 64] {
            let name = format!("e{signal}");
            drop(c.start_exec(&name, &process(&SLEEP)).await.unwrap());
            let sandbox = &pod.sandbox;
            sandbox
                .kill(&c.id, Some(&name), signal, false)
                .await
                .unwrap();
            let exit = timeout(SOON, sandbox.wait(&c.id, Some(&name))).await;
            assert_eq!(exit.unwrap().unwrap().status, 128 + signal);
        }
        // PID 1 of a namespace has no default action: its handler ends it.
        let mut c = pod.sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done");
        c = c.shared_pidns();
        let mut c = c.run().await;
        assert_eq!(c.line().await, "ready");
        c.kill(15).await.unwrap();
        assert_eq!(c.wait().await.status, 9);
        let error = c.kill(99).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let c = pod.container(&SLEEP).run().await;
        assert_eq!(c.kill(65).await.unwrap_err().kind(), Kind::InvalidArgument);
        c.kill(0).await.unwrap();
        c.kill(9).await.unwrap();
        assert_eq!(c.wait().await.status, 137);
    });
}

fn a_process_that_ends_at_once_is_told_in_order() {
    world(async |w| {
        let pod = w.pod().await;
        for _ in 0..20 {
            let c = pod.container(&["/bin/true"]).create().await.unwrap();
            // Between the start and this line the process has had all the time it needs.
            c.start().await.unwrap();
            c.wait().await;
            c.delete().await.unwrap();
            assert_eq!(
                pod.story(&c.id),
                ["created", "started", "exited 0", "deleted 0"]
            );
        }
        let c = pod.container(&SLEEP).run().await;
        for n in 0..20 {
            let name = format!("x{n}");
            drop(
                c.start_exec(&name, &process(&["/bin/false"]))
                    .await
                    .unwrap(),
            );
            pod.sandbox.wait(&c.id, Some(&name)).await.unwrap();
            let mut story = pod.story(&c.id);
            story.retain(|word| word.split(' ').any(|part| part == name));
            let want = [
                format!("added {name}"),
                format!("started {name}"),
                format!("exited {name} 1"),
            ];
            assert_eq!(story, want);
        }
    });
}

fn every_waiter_is_told_the_same_exit_and_a_late_one_too() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let (sandbox, id) = (pod.sandbox.clone(), c.id.clone());
            waiters.spawn_local(async move { sandbox.wait(&id, None).await.unwrap() });
        }
        tokio::task::yield_now().await;
        c.kill(9).await.unwrap();
        let first = c.wait().await;
        assert_eq!((first.status, first.pid), (137, c.pid));
        while let Some(exit) = timeout(SOON, waiters.join_next()).await.unwrap() {
            assert_eq!(exit.unwrap(), first);
        }
        assert_eq!(c.wait().await, first);
        assert_eq!(c.delete().await.unwrap(), first);
        assert_eq!(
            pod.sandbox.wait(&c.id, None).await.unwrap_err().kind(),
            Kind::NotFound
        );
    });
}

fn killing_what_has_finished_is_not_found() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/true"]).run().await;
        c.wait().await;
        for (signal, all) in [(9, false), (15, false), (9, true)] {
            let error = pod
                .sandbox
                .kill(&c.id, None, signal, all)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            assert_eq!(error.to_string(), "process already finished");
        }
        assert_eq!(
            pod.sandbox.pids(&c.id).unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        let state = pod.sandbox.state(&c.id, None).unwrap();
        assert_eq!((state.status, state.pid), (Status::Stopped, c.pid));
        let c = pod.container(&SLEEP).run().await;
        drop(c.start_exec("e", &process(&["/bin/true"])).await.unwrap());
        pod.sandbox.wait(&c.id, Some("e")).await.unwrap();
        let error = pod
            .sandbox
            .kill(&c.id, Some("e"), 9, false)
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "process already finished");
    });
}

fn deleting_what_runs_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        let error = c.delete().await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(
            error
                .to_string()
                .contains("cannot delete a process that is running"),
            "{error}"
        );
        drop(c.start_exec("e", &process(&SLEEP)).await.unwrap());
        let error = pod.sandbox.delete(&c.id, Some("e")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let error = pod.sandbox.delete(pod.id(), None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(c.exec_sh("exit 4").await.0, 4);
    });
}

fn an_exec_that_outlives_its_container_ends_before_it() {
    world(async |w| {
        let pod = w.pod().await;
        for shared in [false, true] {
            let mut c = pod.container(&SLEEP);
            if shared {
                c = c.shared_pidns();
            }
            let c = c.run().await;
            for name in ["a", "b"] {
                drop(c.start_exec(name, &process(&SLEEP)).await.unwrap());
            }
            c.kill(9).await.unwrap();
            c.wait().await;
            let story = pod.story(&c.id);
            let at = |word: &str| story.iter().position(|w| w == word).unwrap();
            assert_eq!(at("exited 137"), story.len() - 1, "{story:?}");
            assert!(at("exited a 137") < at("exited 137"));
            assert!(at("exited b 137") < at("exited 137"));
            c.delete().await.unwrap();
        }
    });
}

fn a_container_in_the_shared_pid_namespace_takes_its_background_children_along() {
    world(async |w| {
        let pod = w.pod().await;
        let mut c = pod
            .sh("for i in 1 2 3 4 5; do (trap '' TERM HUP; sleep 1000) & done; echo ready; exit 6")
            .shared_pidns()
            .run()
            .await;
        assert_eq!(c.wait().await.status, 6);
        // None is left in its cgroup when the exit is told, and all writers are dead.
        let procs = w.cgroup_dir("pids", &c.id).join("cgroup.procs");
        assert_eq!(fs::read_to_string(procs).unwrap(), "");
        assert_eq!(c.text().await, "ready\n");
        // The kernel makes zombies of them a moment after they left the cgroup, and PID 1 reaps
        // those in its own time.
        let until = Instant::now() + SOON;
        let mut left = descendants(pod.init().unsigned_abs());
        while left.iter().any(|p| p.state != 'Z' && p.state != 'X') {
            assert!(Instant::now() < until, "{left:?}");
            sleep(Duration::from_millis(1)).await;
            left = descendants(pod.init().unsigned_abs());
        }
        c.delete().await.unwrap();
    });
}

fn start_twice_and_duplicate_ids_are_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        assert_eq!(
            c.start().await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        let mut again = pod.container(&SLEEP);
        again.id = c.id.clone();
        let error = again.create().await.err().unwrap();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let mut again = pod.container(&SLEEP);
        again.id = pod.id().to_owned();
        assert_eq!(
            again.create().await.err().unwrap().kind(),
            Kind::AlreadyExists
        );
        let error = w
            .sandbox(pod.id(), &w.sandbox_spec(pod.id()))
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        drop(c.start_exec("e", &process(&SLEEP)).await.unwrap());
        let p = process(&SLEEP).to_string();
        let error = pod
            .sandbox
            .add_exec(&c.id, "e", p.as_bytes(), false)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        let stdio = berm_sandbox::Stdio::default();
        let error = pod.sandbox.start_exec(&c.id, "e", stdio).await.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(c.exec_sh("echo alive").await.1, "alive\n");
        c.end().await;
        let c = pod.container(&["/bin/true"]).run().await;
        c.wait().await;
        assert_eq!(
            c.start().await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
    });
}

fn delete_twice_is_not_found() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/true"]).run().await;
        c.wait().await;
        let (first, second) = tokio::join!(c.delete(), c.delete());
        first.unwrap();
        assert_eq!(second.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(c.delete().await.unwrap_err().kind(), Kind::NotFound);
        let c = pod.container(&SLEEP).run().await;
        drop(c.start_exec("e", &process(&["/bin/true"])).await.unwrap());
        pod.sandbox.wait(&c.id, Some("e")).await.unwrap();
        pod.sandbox.delete(&c.id, Some("e")).await.unwrap();
        let error = pod.sandbox.delete(&c.id, Some("e")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert_eq!(
            pod.story(&c.id)
                .iter()
                .filter(|w| w.starts_with("exited"))
                .count(),
            1
        );
    });
}

fn a_created_container_can_be_deleted_and_a_created_exec_too() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).create().await.unwrap();
        assert_eq!(
            pod.sandbox.state(&c.id, None).unwrap().status,
            Status::Created
        );
        c.delete().await.unwrap();
        let c = pod.container(&SLEEP).create().await.unwrap();
        // At its gate it holds no end of file back: it dies of the first signal that kills.
        c.kill(9).await.unwrap();
        assert_eq!(c.wait().await.status, 137);
        assert_eq!(
            c.start().await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        c.delete().await.unwrap();
        let c = pod.container(&SLEEP).run().await;
        let p = process(&SLEEP).to_string();
        pod.sandbox
            .add_exec(&c.id, "e", p.as_bytes(), false)
            .unwrap();
        let error = pod
            .sandbox
            .kill(&c.id, Some("e"), 9, false)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        pod.sandbox.delete(&c.id, Some("e")).await.unwrap();
        assert!(!pod.story(&c.id).iter().any(|w| w.starts_with("exited e")));
    });
}

fn kill_all_reaches_every_process_of_the_container() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "trap 'echo term; exit 1' TERM; echo ready; while :; do sleep 0.01; done";
        for shared in [true, false] {
            let script = format!("sh -c \"{script}\" & {script}");
            let mut c = pod.sh(&script);
            if shared {
                c = c.shared_pidns();
            }
            let mut c = c.run().await;
            assert_eq!(
                (c.line().await, c.line().await),
                ("ready".into(), "ready".into())
            );
            pod.sandbox.kill(&c.id, None, 15, true).await.unwrap();
            assert_eq!(c.wait().await.status, 1);
            // One is the first process, with whose end the other may end before it has spoken.
            let text = c.text().await;
            assert!(text.contains("term\n"), "{text}");
            c.delete().await.unwrap();
        }
        let c = pod.sh("sleep 1000 & sleep 1000").run().await;
        pod.sandbox.kill(&c.id, None, 9, true).await.unwrap();
        assert_eq!(c.wait().await.status, 137);
    });
}

fn hundreds_of_execs_at_once_keep_their_codes_apart() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&SLEEP).run().await;
        for round in 0..4u32 {
            let mut outs = Vec::new();
            for n in 0..50u32 {
                let code = (n * 37 + round * 101) % 256;
                let p = process(&["/bin/sh", "-c", &format!("echo {n}; exit {code}")]);
                let name = format!("r{round}-{n}");
                outs.push((name.clone(), code, c.start_exec(&name, &p).await.unwrap()));
            }
            for (name, code, out) in outs {
                let exit = pod.sandbox.wait(&c.id, Some(&name)).await.unwrap();
                assert_eq!(exit.status, code);
                drop(out);
                pod.sandbox.delete(&c.id, Some(&name)).await.unwrap();
            }
        }
    });
}

fn the_end_of_pid_1_ends_every_container() {
    world(async |w| {
        let pod = w.pod().await;
        let (own, shared) = (
            pod.container(&SLEEP).run().await,
            pod.container(&SLEEP).shared_pidns().run().await,
        );
        drop(own.start_exec("e", &process(&SLEEP)).await.unwrap());
        pod.sandbox.kill(pod.id(), None, 9, false).await.unwrap();
        assert_eq!(own.wait().await.status, 137);
        assert_eq!(shared.wait().await.status, 137);
        let exit = pod.sandbox.wait(pod.id(), None).await.unwrap();
        assert_eq!(exit.status, 137);
        let error = pod.container(&SLEEP).create().await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unavailable);
        own.delete().await.unwrap();
        shared.delete().await.unwrap();
        pod.sandbox.delete(pod.id(), None).await.unwrap();
    });
}

fn destroy_ends_everything_at_once_and_twice_is_harmless() {
    world(async |w| {
        let pod = w.pod().await;
        let running = pod.container(&SLEEP).run().await;
        let _created = pod.container(&SLEEP).create().await.unwrap();
        let paused = pod.container(&SLEEP).shared_pidns().run().await;
        drop(running.start_exec("e", &process(&SLEEP)).await.unwrap());
        pod.sandbox.pause(&paused.id).await.unwrap();
        timeout(SOON, pod.sandbox.destroy()).await.unwrap();
        timeout(SOON, pod.sandbox.destroy()).await.unwrap();
        assert!(pod.sandbox.is_empty() && !pod.sandbox.is_running());
    });
}
