//! What goes through the cgroup: pause, limits, OOM, figures.

use std::fs;
use std::time::Duration;

use berm_sandbox::{Stats, Status};
use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::json;
use tokio::time::timeout;

use crate::container::process;
use crate::figures::{cpu_time, near, until};
use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    pause_stops_and_resume_continues_and_both_are_told,
    a_paused_container_takes_no_exec_and_is_not_paused_twice,
    a_paused_container_dies_of_a_kill,
    a_memory_limit_kills_and_the_oom_is_told_before_the_exit,
    an_oom_in_a_child_is_told_while_the_container_goes_on,
    figures_after_a_burn_are_the_kernels,
    a_pids_limit_holds_and_is_shown,
    an_update_changes_a_container_in_each_of_its_states_but_the_last,
    an_update_of_the_sandbox_changes_its_own_cgroup,
    a_memory_limit_below_the_usage_is_refused_and_nothing_changes,
    an_update_as_cri_sends_it_changes_devices_too,
];

/// Makes a file longer: one that is emptied each time is empty for as long as the disk takes.
const COUNT: &str = "echo ready; while :; do echo >> /tmp/n; done";

/// How far it is.
fn count(made: &crate::container::Made<'_>) -> u64 {
    fs::metadata(made.root.join("tmp/n")).map_or(0, |file| file.len())
}

fn pause_stops_and_resume_continues_and_both_are_told() {
    world(async |w| {
        let pod = w.pod().await;
        let mut c = pod.sh(COUNT).run().await;
        assert_eq!(c.line().await, "ready");
        for _ in 0..3 {
            timeout(SOON, pod.sandbox.pause(&c.id))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(
                pod.sandbox.state(&c.id, None).unwrap().status,
                Status::Paused
            );
            // All is frozen: nothing changes, however long one looks.
            let first = count(&c);
            tokio::time::sleep(Duration::from_millis(30)).await;
            assert_eq!(first, count(&c));
            pod.sandbox.resume(&c.id).await.unwrap();
            until("it goes on", || count(&c) > first).await;
        }
        c.end().await;
        let story = pod.story(&c.id);
        assert_eq!(
            story.iter().filter(|w| *w == "paused").count(),
            3,
            "{story:?}"
        );
        assert_eq!(
            story.iter().filter(|w| *w == "resumed").count(),
            3,
            "{story:?}"
        );
    });
}

fn a_paused_container_takes_no_exec_and_is_not_paused_twice() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).run().await;
        assert_eq!(
            pod.sandbox.resume(&c.id).await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        let p = process(&["/bin/true"]);
        pod.sandbox
            .add_exec(&c.id, "early", p.to_string().as_bytes(), false)
            .unwrap();
        pod.sandbox.pause(&c.id).await.unwrap();
        assert_eq!(
            pod.sandbox.pause(&c.id).await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        let error = c.start_exec("e", &p).await.err().unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let stdio = berm_sandbox::Stdio::default();
        let error = pod
            .sandbox
            .start_exec(&c.id, "early", stdio)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert_eq!(
            c.delete().await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
        pod.sandbox.stats(&c.id).unwrap();
        pod.sandbox.pids(&c.id).unwrap();
        pod.sandbox.resume(&c.id).await.unwrap();
        assert_eq!(c.exec_sh("exit 2").await.0, 2);
    });
}

fn a_paused_container_dies_of_a_kill() {
    world(async |w| {
        let pod = w.pod().await;
        for (all, shared) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut c = pod.sh("sleep 1000 & sleep 1000");
            if shared {
                c = c.shared_pidns();
            }
            let c = c.run().await;
            drop(
                c.start_exec("e", &process(&["/bin/sleep", "1000"]))
                    .await
                    .unwrap(),
            );
            pod.sandbox.pause(&c.id).await.unwrap();
            pod.sandbox.kill(&c.id, None, 9, all).await.unwrap();
            assert_eq!(c.wait().await.status, 137, "{all} {shared}");
            c.delete().await.unwrap();
        }
    });
}

fn limit(bytes: u64) -> serde_json::Value {
    json!({"limit": bytes, "swap": bytes})
}

/// A shell variable that doubles until it is 64 MiB large.
const EAT: &str = "x=0123456789abcdef; while [ ${#x} -lt 67108864 ]; do x=$x$x; done; echo alive";

fn oom_kills(stats: &Stats) -> u64 {
    match stats {
        Stats::V1(v1) => v1.oom_control.as_ref().map_or(0, |o| o.oom_kill),
        Stats::V2(v2) => v2.memory_events.as_ref().map_or(0, |e| e.oom_kill),
    }
}

fn a_memory_limit_kills_and_the_oom_is_told_before_the_exit() {
    world(async |w| {
        let pod = w.pod().await;
        for shared in [false, true] {
            let mut c = pod.sh(EAT).set("/linux/resources/memory", limit(16 << 20));
            if shared {
                c = c.shared_pidns();
            }
            let c = c.run().await;
            assert_eq!(c.wait().await.status, 137);
            assert_eq!(
                pod.story(&c.id),
                ["created", "started", "oom", "exited 137"]
            );
            assert_eq!(oom_kills(&pod.sandbox.stats(&c.id).unwrap()), 1);
            c.delete().await.unwrap();
            assert_eq!(pod.sandbox.stats(&c.id).unwrap_err().kind(), Kind::NotFound);
        }
        assert_eq!(pod.sh("echo next").output().await.1, "next\n");
    });
}

fn an_oom_in_a_child_is_told_while_the_container_goes_on() {
    world(async |w| {
        let pod = w.pod().await;
        let script = format!("(exec sh -c '{EAT}'); echo code $?; read x");
        let c = pod
            .sh(&script)
            .set("/linux/resources/memory", limit(16 << 20));
        let mut c = c.run().await;
        // busybox says "Killed" itself.
        let mut line = c.line().await;
        if !line.starts_with("code") {
            line = c.line().await;
        }
        assert_eq!(line, "code 137");
        pod.until(&c.id, "oom").await;
        assert_eq!(oom_kills(&pod.sandbox.stats(&c.id).unwrap()), 1);
        c.say("end\n");
        c.wait().await;
        let story = pod.story(&c.id);
        assert_eq!(story, ["created", "started", "oom", "exited 0"]);
    });
}

fn cpu_nanos(stats: &Stats) -> u64 {
    match stats {
        Stats::V1(v1) => v1.cpu.as_ref().map_or(0, |cpu| cpu.total),
        Stats::V2(v2) => v2.cpu.usage_usec * 1000,
    }
}

fn figures_after_a_burn_are_the_kernels() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.sh("while :; do :; done").run().await;
        let kernel = || cpu_time(w, &c.id);
        until("burnt", || kernel() > 1_000_000_000).await;
        pod.sandbox.pause(&c.id).await.unwrap();
        let before = kernel();
        let stats = cpu_nanos(&pod.sandbox.stats(&c.id).unwrap());
        assert!((before..=kernel()).contains(&stats), "{stats} {before}");
        c.kill(9).await.unwrap();
        c.wait().await;
        let after = cpu_nanos(&pod.sandbox.stats(&c.id).unwrap());
        // Dying takes some.
        assert!(after >= stats, "{after} {stats}");
        near(after, stats, "after its end");
    });
}

fn a_pids_limit_holds_and_is_shown() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo all; wait";
        let c = pod
            .sh(script)
            .set("/linux/resources/pids", json!({"limit": 5}));
        let mut c = c.run().await;
        let text = c.line().await;
        assert!(
            text.contains("can't fork") || text.contains("fork"),
            "{text}"
        );
        let limit = match pod.sandbox.stats(&c.id).unwrap() {
            Stats::V1(v1) => v1.pids.map(|p| p.limit),
            Stats::V2(v2) => v2.pids.map(|p| p.limit),
        };
        assert_eq!(limit, Some(5));
        c.end().await;
    });
}

/// The file of a v1 controller, trimmed.
fn v1(w: &crate::world::World, controller: &str, id: &str, file: &str) -> Option<String> {
    let dir = w.v1(controller, id)?;
    Some(
        fs::read_to_string(dir.join(file))
            .unwrap()
            .trim()
            .to_owned(),
    )
}

async fn update(sandbox: &berm_sandbox::Sandbox, id: &str, resources: &serde_json::Value) {
    let json = resources.to_string();
    let updated = timeout(SOON, sandbox.update(id, json.as_bytes())).await;
    updated.expect("update answers").unwrap();
}

fn an_update_changes_a_container_in_each_of_its_states_but_the_last() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod.container(&["/bin/sleep", "1000"]).set(
            "/linux/resources",
            json!({"cpu": {"quota": 50_000, "period": 100_000}}),
        );
        let c = c.create().await.unwrap();
        let rows = [
            json!({"cpu": {"quota": 20_000}, "pids": {"limit": 9}}),
            json!({"cpu": {"period": 200_000}, "memory": {"limit": 64 << 20, "swap": 96 << 20}}),
            json!({"memory": {"limit": 256 << 20, "swap": 512 << 20}, "cpu": {"shares": 77}}),
        ];
        update(&pod.sandbox, &c.id, &rows[0]).await;
        pod.sandbox.start(&c.id).await.unwrap();
        update(&pod.sandbox, &c.id, &rows[1]).await;
        pod.sandbox.pause(&c.id).await.unwrap();
        update(&pod.sandbox, &c.id, &rows[2]).await;
        pod.sandbox.resume(&c.id).await.unwrap();
        let files = [
            ("cpu", "cpu.cfs_quota_us", "20000"),
            ("cpu", "cpu.cfs_period_us", "200000"),
            ("cpu", "cpu.shares", "77"),
            ("memory", "memory.limit_in_bytes", "268435456"),
            ("memory", "memory.memsw.limit_in_bytes", "536870912"),
            ("pids", "pids.max", "9"),
        ];
        for (controller, file, want) in files {
            if let Some(got) = v1(w, controller, &c.id, file) {
                assert_eq!(got, want, "{file}");
            }
        }
        let limits = pod.sandbox.limits(&c.id).unwrap();
        assert_eq!(limits.cpu.quota, Some(20_000));
        assert_eq!(limits.cpu.period, Some(200_000));
        assert_eq!(
            (limits.pids, limits.memory.swap),
            (Some(9), Some(512 << 20))
        );
        c.kill(9).await.unwrap();
        c.wait().await;
        let late = pod.sandbox.update(&c.id, b"{}").await.unwrap_err();
        assert_eq!(late.kind(), Kind::FailedPrecondition, "{late}");
        let unknown = pod.sandbox.update("nobody", b"{}").await.unwrap_err();
        assert_eq!(unknown.kind(), Kind::NotFound, "{unknown}");
    });
}

fn an_update_of_the_sandbox_changes_its_own_cgroup() {
    world(async |w| {
        let pod = w.pod().await;
        let resources = json!({"memory": {"limit": 32 << 20}, "cpu": {"shares": 99}});
        update(&pod.sandbox, pod.id(), &resources).await;
        if let Some(got) = v1(w, "memory", pod.id(), "memory.limit_in_bytes") {
            assert_eq!(got, "33554432");
        }
        if let Some(got) = v1(w, "cpu", pod.id(), "cpu.shares") {
            assert_eq!(got, "99");
        }
        let limits = pod.sandbox.limits(pod.id()).unwrap();
        assert_eq!(limits.memory.limit, Some(32 << 20));
    });
}

fn a_memory_limit_below_the_usage_is_refused_and_nothing_changes() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "x=0123456789abcdef; while [ ${#x} -lt 33554432 ]; do x=$x$x; done; \
            echo full; read y; echo ${#x}";
        let c = pod.sh(script);
        let c = c.set("/linux/resources/memory", limit(256 << 20));
        let mut c = c.run().await;
        assert_eq!(c.line().await, "full");
        let before = pod.sandbox.limits(&c.id).unwrap();
        let lower = json!({
            "cpu": {"shares": 99},
            "memory": {"limit": 8 << 20, "swap": 8 << 20, "checkBeforeUpdate": true},
            "pids": {"limit": 9},
        });
        let error = pod
            .sandbox
            .update(&c.id, lower.to_string().as_bytes())
            .await;
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{}", error.chain());
        assert!(
            error.to_string().contains("linux.resources.memory."),
            "{error}"
        );
        assert!(
            error.to_string().contains("below the present usage"),
            "{error}"
        );
        assert_eq!(pod.sandbox.limits(&c.id).unwrap(), before);
        if let Some(got) = v1(w, "memory", &c.id, "memory.limit_in_bytes") {
            assert_eq!(got, (256 << 20).to_string());
            assert_eq!(v1(w, "cpu", &c.id, "cpu.shares").unwrap(), "1024");
            assert_eq!(v1(w, "pids", &c.id, "pids.max").unwrap(), "max");
        }
        // Above it, it can be had.
        update(&pod.sandbox, &c.id, &json!({"memory": limit(128 << 20)})).await;
        c.say("on\n");
        assert_eq!(c.line().await, "33554432");
        assert_eq!(c.wait().await.status, 0);
    });
}

fn an_update_as_cri_sends_it_changes_devices_too() {
    world(async |w| {
        let pod = w.pod().await;
        let deny = json!({"allow": false, "access": "rwm"});
        let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"});
        let script = "mknod /tmp/z c 1 5 2>/dev/null; while read x; do \
            (: < /dev/zero) 2>/dev/null && echo zero || echo none; done";
        let mut c = pod.sh(script).run().await;
        update(&pod.sandbox, &c.id, &json!({"devices": [deny, fuse]})).await;
        c.say("look\n");
        assert_eq!(c.line().await, "zero");
        if let Some(list) = v1(w, "devices", &c.id, "devices.list") {
            assert!(
                list.contains("c 10:229 rwm") && list.contains("c 1:5 rwm"),
                "{list}"
            );
            // Without devices the rules stay.
            update(
                &pod.sandbox,
                &c.id,
                &json!({"devices": [], "cpu": {"shares": 9}}),
            )
            .await;
            assert_eq!(v1(w, "devices", &c.id, "devices.list").unwrap(), list);
            update(&pod.sandbox, &c.id, &json!({"devices": [deny]})).await;
            let list = v1(w, "devices", &c.id, "devices.list").unwrap();
            assert!(
                !list.contains("10:229") && list.contains("c 1:5 rwm"),
                "{list}"
            );
        }
        c.end().await;
    });
}
