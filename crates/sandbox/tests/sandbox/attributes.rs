//! Scheduling, I/O priority, CPUs, memory policy, personality, labels: as the kernel shows them.

use std::fs;

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::{Made, process};
use crate::world::world;

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_container_and_its_execs_have_the_policy_of_the_spec,
    a_policy_that_is_lost_at_a_fork_is_the_workloads,
    realtime_and_deadline_policies_are_the_workloads_or_an_error,
    an_exec_may_have_a_policy_of_its_own,
    io_priority_personality_and_memory_policy_are_as_the_spec_says,
    an_exec_begins_and_goes_on_where_its_affinity_says,
    the_shim_keeps_its_own_cpus,
    what_the_kernel_does_not_take_is_an_error_by_field,
    labels_are_refused_where_no_module_is_and_unconfined_is_none,
    every_limit_is_set,
];

/// Policy, priority and nice value of a process (proc_pid_stat(5), fields 41, 40, 19).
fn policy(pid: i32) -> (u32, u32, i32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields[number - 3];
    (
        field(41).parse().unwrap(),
        field(40).parse().unwrap(),
        field(19).parse().unwrap(),
    )
}

/// Policy, priority and nice value of an exec that sleeps.
async fn policy_of_exec(made: &Made<'_>, name: &str, process: &Value) -> (u32, u32, i32) {
    let out = made.start_exec(name, process).await.unwrap();
    let sandbox = &made.pod.sandbox;
    let pids = sandbox.pids(&made.id).unwrap();
    let exec = pids.iter().find(|pid| pid.exec.as_deref() == Some(name));
    let policy = policy(exec.unwrap().pid);
    sandbox.kill(&made.id, Some(name), 9, false).await.unwrap();
    sandbox.wait(&made.id, Some(name)).await.unwrap();
    sandbox.delete(&made.id, Some(name)).await.unwrap();
    drop(out);
    policy
}

fn a_container_and_its_execs_have_the_policy_of_the_spec() {
    for (scheduler, want) in [
        (json!({"policy": "SCHED_OTHER", "nice": -7}), (0, 0, -7)),
        (json!({"policy": "SCHED_BATCH", "nice": 11}), (3, 0, 11)),
        (json!({"policy": "SCHED_IDLE"}), (5, 0, 0)),
    ] {
        world(async |w| {
            let pod = w.pod().await;
            let container = pod.container(&["/bin/sleep", "1000"]);
            let made = container
                .set("/process/scheduler", scheduler.clone())
                .run()
                .await;
            assert_eq!(policy(made.pid), want);
            let sleep = process(&["/bin/sleep", "1000"]);
            assert_eq!(policy_of_exec(&made, "e", &sleep).await, want);
            made.end().await;
        });
    }
}

fn a_policy_that_is_lost_at_a_fork_is_the_workloads() {
    world(async |w| {
        let pod = w.pod().await;
        let scheduler =
            json!({"policy": "SCHED_OTHER", "nice": -3, "flags": ["SCHED_RESET_ON_FORK"]});
        // The shell has it, and what it starts does not.
        let script = "cut -d' ' -f19 /proc/self/stat; read x < /proc/$$/stat; \
            echo $x | cut -d' ' -f19";
        let container = pod.sh(script).set("/process/scheduler", scheduler);
        assert_eq!(container.output().await, (0, "0\n-3\n".into()));
    });
}

/// Whether this host's cgroups leave realtime and deadline processes any time.
fn realtime_is_possible(w: &crate::world::World) -> bool {
    // v1 without a budget of its own has none for a cgroup below the root.
    w.v1("cpu", "x").is_none_or(|dir| {
        let top = dir.ancestors().find(|dir| dir.is_dir()).unwrap();
        !top.join("cpu.rt_runtime_us").exists()
    })
}

fn realtime_and_deadline_policies_are_the_workloads_or_an_error() {
    world(async |w| {
        let pod = w.pod().await;
        for (scheduler, want) in [
            (json!({"policy": "SCHED_FIFO", "priority": 5}), (1, 5, 0)),
            (json!({"policy": "SCHED_RR", "priority": 9}), (2, 9, 0)),
        ] {
            let mut container = pod
                .container(&["/bin/sleep", "1000"])
                .set("/process/scheduler", scheduler);
            if !realtime_is_possible(w) {
                container.spec["linux"]["resources"]["cpu"] = json!({});
                let error = container.refused().await;
                assert_eq!(error.kind(), Kind::Denied);
                let text = error.chain();
                assert!(
                    text.starts_with("process.scheduler: sched_setattr()"),
                    "{text}"
                );
                continue;
            }
            let made = container.run().await;
            assert_eq!(policy(made.pid), want);
            made.end().await;
        }
        let scheduler = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000,
            "deadline": 10_000_000, "period": 10_000_000});
        let made = pod
            .container(&["/bin/sleep", "1000"])
            .set("/process/scheduler", scheduler)
            .run()
            .await;
        assert_eq!(policy(made.pid), (6, 0, 0));
        made.end().await;
    });
}

fn an_exec_may_have_a_policy_of_its_own() {
    world(async |w| {
        let pod = w.pod().await;
        let made = pod.container(&["/bin/sleep", "1000"]).run().await;
        let mut sleep = process(&["/bin/sleep", "1000"]);
        assert_eq!(policy_of_exec(&made, "a", &sleep).await, (0, 0, 0));
        sleep["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": -1});
        assert_eq!(policy_of_exec(&made, "b", &sleep).await, (3, 0, -1));
        made.end().await;
    });
}

fn io_priority_personality_and_memory_policy_are_as_the_spec_says() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "ionice -p $$; uname -m";
        let container = pod
            .container(&["/bin/sleep", "1000"])
            .set(
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_RT", "priority": 2}),
            )
            .set("/linux/personality", json!({"domain": "LINUX32"}))
            .set(
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "nodes": "0"}),
            );
        std::os::unix::fs::symlink("busybox", container.root.join("bin/ionice")).unwrap();
        let made = container.run().await;
        let maps = fs::read_to_string(format!("/proc/{}/numa_maps", made.pid)).unwrap();
        assert!(maps.contains(" bind:0 "), "{maps}");
        let (_, text) = made.exec_sh(script).await;
        assert_eq!(text, "realtime: prio 2\ni686\n");
        let (_, text) = made.exec(&["/bin/cat", "/proc/self/numa_maps"]).await;
        assert!(text.contains(" bind:0 "), "{text}");
        made.end().await;
    });
}

/// `Cpus_allowed_list` of the own process.
const CPUS: &[&str] = &["/bin/grep", "Cpus_allowed_list", "/proc/self/status"];

fn cpus(text: &str) -> String {
    text.trim().rsplit('\t').next().unwrap().to_owned()
}

fn an_exec_begins_and_goes_on_where_its_affinity_says() {
    world(async |w| {
        let pod = w.pod().await;
        let made = pod
            .container(&["/bin/sleep", "1000"])
            .set("/process/execCPUAffinity", json!({"final": "0"}))
            .run()
            .await;
        // It is of execs only.
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let of_container = fs::read_to_string(format!("/proc/{}/status", made.pid)).unwrap();
        let line = |status: &str| {
            let mut lines = status.lines();
            cpus(lines.find(|l| l.starts_with("Cpus_allowed_list")).unwrap())
        };
        assert_eq!(line(&of_container), line(&own));
        assert_eq!(cpus(&made.exec(CPUS).await.1), "0");
        let mut exec = process(CPUS);
        for (affinity, want) in [
            (json!({"initial": "0"}), "0"),
            (
                json!({"initial": "0", "final": line(&own)}),
                line(&own).as_str(),
            ),
        ] {
            exec["execCPUAffinity"] = affinity.clone();
            let (_, text) = made.exec_of(&exec).await.unwrap();
            assert_eq!(cpus(&text), want, "{affinity}");
        }
        made.end().await;
    });
}

fn the_shim_keeps_its_own_cpus() {
    world(async |w| {
        let pod = w.pod().await;
        let made = pod.container(&["/bin/sleep", "1000"]).run().await;
        let before = berm_sys::sched::affinity().unwrap();
        let mut exec = process(&["/bin/true"]);
        exec["execCPUAffinity"] = json!({"initial": "0"});
        assert_eq!(made.exec_of(&exec).await.unwrap().0, 0);
        assert_eq!(berm_sys::sched::affinity().unwrap(), before);
        exec["execCPUAffinity"] = json!({"initial": "8000"});
        let error = made.exec_of(&exec).await.unwrap_err().chain();
        assert!(
            error.starts_with("process.execCPUAffinity.initial: "),
            "{error}"
        );
        assert_eq!(berm_sys::sched::affinity().unwrap(), before);
        made.end().await;
    });
}

fn what_the_kernel_does_not_take_is_an_error_by_field() {
    for (pointer, value, want) in [
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 100}),
            "process.scheduler: sched_setattr()",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "1000"}),
            "linux.memoryPolicy: set_mempolicy()",
        ),
    ] {
        world(async |w| {
            let pod = w.pod().await;
            let error = pod.sh("true").set(pointer, value.clone()).refused().await;
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
            assert!(error.chain().contains(want), "{}", error.chain());
        });
    }
}

fn labels_are_refused_where_no_module_is_and_unconfined_is_none() {
    world(async |w| {
        let pod = w.pod().await;
        let has = |path: &str| std::path::Path::new(path).exists();
        if !has("/sys/fs/selinux") {
            let labelled = pod
                .sh("true")
                .set("/linux/mountLabel", json!("a_u:b_r:c_t:s0"));
            let error = labelled.refused().await;
            assert_eq!(error.kind(), Kind::NotSupported);
            let want = "linux.mountLabel: SELinux is not enabled on this host to take";
            assert!(error.to_string().contains(want), "{error}");
        }
        if !has("/sys/module/apparmor") {
            let plain = pod
                .sh("echo ran")
                .set("/process/apparmorProfile", json!("unconfined"));
            assert_eq!(plain.output().await, (0, "ran\n".into()));
            let profile = pod
                .sh("true")
                .set("/process/apparmorProfile", json!("a-profile"));
            let error = profile.refused().await;
            assert_eq!(error.kind(), Kind::NotSupported);
            let text = error.to_string();
            assert!(
                text.contains("process.apparmorProfile: AppArmor is not enabled"),
                "{text}"
            );
            let made = pod.container(&["/bin/sleep", "1000"]).run().await;
            let mut exec = process(&["/bin/true"]);
            exec["apparmorProfile"] = json!("a-profile");
            let error = made.exec_of(&exec).await.unwrap_err();
            assert_eq!(error.kind(), Kind::NotSupported);
            exec["apparmorProfile"] = json!("unconfined");
            assert_eq!(made.exec_of(&exec).await.unwrap().0, 0);
            made.end().await;
        }
        if !has("/sys/fs/selinux/enforce") {
            let label = "system_u:system_r:container_t:s0";
            let error = pod
                .sh("true")
                .set("/process/selinuxLabel", json!(label))
                .refused()
                .await;
            assert_eq!(error.kind(), Kind::NotSupported);
            let text = error.to_string();
            assert!(
                text.contains("process.selinuxLabel: SELinux is not enabled"),
                "{text}"
            );
        }
    });
}

fn every_limit_is_set() {
    const ALL: [(&str, &str, u64); 16] = [
        ("AS", "Max address space", 1 << 40),
        ("CORE", "Max core file size", 11),
        ("CPU", "Max cpu time", 1000),
        ("DATA", "Max data size", 1 << 39),
        ("FSIZE", "Max file size", 1 << 30),
        ("LOCKS", "Max file locks", 12),
        ("MEMLOCK", "Max locked memory", 4096),
        ("MSGQUEUE", "Max msgqueue size", 8192),
        ("NICE", "Max nice priority", 0),
        ("NOFILE", "Max open files", 64),
        ("NPROC", "Max processes", 99),
        ("RSS", "Max resident set", 1 << 38),
        ("RTPRIO", "Max realtime priority", 0),
        ("RTTIME", "Max realtime timeout", 77),
        ("SIGPENDING", "Max pending signals", 33),
        ("STACK", "Max stack size", 1 << 20),
    ];
    world(async |w| {
        let pod = w.pod().await;
        let limits: Vec<_> = ALL
            .iter()
            .map(|(name, _, value)| {
                json!({"type": format!("RLIMIT_{name}"), "soft": value, "hard": value})
            })
            .collect();
        let container = pod
            .container(&["/bin/cat", "/proc/self/limits"])
            .set("/process/rlimits", json!(limits));
        let (_, text) = container.output().await;
        for (name, line, value) in ALL {
            let line = text.lines().find(|l| l.starts_with(line)).unwrap();
            assert_eq!(
                line.matches(&format!(" {value} ")).count(),
                2,
                "{name}: {line}"
            );
        }
    });
}
