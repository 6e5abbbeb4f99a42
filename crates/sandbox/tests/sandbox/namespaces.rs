//! Namespaces that a container has beside its pod's: another container's processes, other clocks.

use berm_testkit::cases::Case;
use serde_json::json;

use crate::host::ns;
use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    another_containers_pid_namespace_is_shared_and_ends_with_it,
    a_container_has_clocks_of_its_own_and_its_execs_see_them,
];

const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

fn another_containers_pid_namespace_is_shared_and_ends_with_it() {
    world(async |w| {
        let pod = w.pod().await;
        let target = pod.container(&SLEEP).run().await;
        let path = format!("/proc/{}/ns/pid", target.pid);
        let debug = pod
            .container(&SLEEP)
            .set("/linux/namespaces/0", json!({"type": "pid", "path": path}))
            .run()
            .await;
        assert_eq!(ns(debug.pid, "pid"), ns(target.pid, "pid"));
        assert_ne!(ns(debug.pid, "mnt"), ns(target.pid, "mnt"));
        let (_, out) = debug.exec_sh("cat /proc/1/cmdline; echo $$").await;
        assert!(
            out.starts_with("/bin/sleep") && !out.contains("\n1\n"),
            "{out}"
        );
        // Its end leaves the target alone; the target's takes it along.
        let again = pod
            .sh("sleep 1000 & exit 7")
            .set("/linux/namespaces/0", json!({"type": "pid", "path": path}))
            .run()
            .await;
        assert_eq!(again.wait().await.status, 7);
        assert_eq!(target.exec_sh("exit 2").await.0, 2);
        target.kill(9).await.unwrap();
        assert_eq!(debug.wait().await.status, 137);
        assert_eq!(target.wait().await.status, 137);
        // What is nobody's in this pod is refused.
        let host = format!("/proc/{}/ns/pid", std::process::id());
        let error = pod
            .container(&SLEEP)
            .set("/linux/namespaces/0", json!({"type": "pid", "path": host}))
            .refused()
            .await;
        let text = error.chain();
        assert!(text.contains("leads out of the pod"), "{text}");
    });
}

/// Seconds since boot, as `/proc/uptime` tells them.
fn seconds(uptime: &str) -> f64 {
    uptime.split_whitespace().next().unwrap().parse().unwrap()
}

fn a_container_has_clocks_of_its_own_and_its_execs_see_them() {
    const AHEAD: i32 = 1_000_000;
    let own = || seconds(&std::fs::read_to_string("/proc/uptime").unwrap());
    // Read between `before` and now; each is cut to hundredths of a second.
    let is_ahead = |by: i32, before: f64, uptime: &str| {
        let here = seconds(uptime) - f64::from(by);
        let (from, to) = (before - 0.015, own() + 0.015);
        assert!((from..=to).contains(&here), "{uptime} {from} {to}");
    };
    world(async |w| {
        let pod = w.pod().await;
        let offsets = json!({
            "boottime": {"secs": AHEAD, "nanosecs": 5},
            "monotonic": {"secs": AHEAD},
        });
        let mut c = pod
            .sh("cat /proc/uptime; cat /proc/self/timens_offsets; read x")
            .set("/linux/timeOffsets", offsets);
        let list = c.spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.push(json!({"type": "time"}));
        let before = own();
        let mut c = c.run().await;
        is_ahead(AHEAD, before, &c.line().await);
        for want in ["monotonic 1000000 0", "boottime 1000000 5"] {
            let line = c.line().await;
            let words: Vec<_> = line.split_whitespace().collect();
            assert_eq!(words.join(" "), want);
        }
        let before = own();
        is_ahead(AHEAD, before, &c.exec_sh("cat /proc/uptime").await.1);
        assert_eq!(
            c.exec_sh("echo monotonic 5 0 > /proc/self/timens_offsets")
                .await
                .0,
            1
        );
        let plain = pod.container(&SLEEP).run().await;
        let before = own();
        is_ahead(0, before, &plain.exec_sh("cat /proc/uptime").await.1);
        c.end().await;
    });
}
