//! Root inside a pod attacks its host: from a PID namespace of its own and from the pod's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::json;

use crate::container::{Container, Made, process};
use crate::keys;
use crate::world::{Pod, SOON, World, world, world_with};

const CASES: &[Case] = berm_testkit::cases![
    root_of_a_pod_clears_no_read_only_and_unmounts_nothing,
    root_of_a_pod_makes_no_user_namespace,
    root_of_a_pod_does_not_see_into_pid_1_or_a_gated_process,
    root_of_a_pod_neither_kills_nor_stops_pid_1,
    a_gated_process_that_the_pod_kills_or_stops_fails_its_start_in_time,
    a_pod_that_stops_all_it_can_delays_creations_to_the_deadline_and_no_longer,
    a_pod_that_kills_all_it_can_fails_creations_and_is_removed_all_the_same,
    a_first_process_that_never_reaps_ends_like_any_other,
    a_workload_that_drops_root_drops_its_capabilities,
    execs_into_a_stopped_container_work_and_it_dies_of_a_kill,
];

/// The attacker's program, made before the first case.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Compiles the attacker; without a C compiler the cases that need it are ignored, and say so.
pub(crate) fn cases() -> Vec<Case> {
    let to = std::env::temp_dir().join(format!("berm-attack-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sandbox/attack.c");
    let made = ["musl-gcc", "cc", "gcc"].into_iter().any(|compiler| {
        let mut command = Command::new(compiler);
        command.args(["-static", "-O1", "-o"]).arg(&to).arg(&source);
        command.output().is_ok_and(|done| done.status.success())
    });
    if made {
        PROGRAM.set(to).unwrap();
        return [CASES, keys::CASES].concat();
    }
    let ignored = |case: &Case| case.ignored("no C compiler makes a static program here");
    CASES.iter().chain(keys::CASES).map(ignored).collect()
}

/// Removes the program.
pub(crate) fn end() {
    if let Some(program) = PROGRAM.get() {
        fs::remove_file(program).unwrap();
    }
}

pub(crate) fn program() -> &'static Path {
    PROGRAM.get().expect("compiled before the first case")
}

/// All that a spec may give to a pod with a user namespace.
const CAPS: [&str; 17] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
];

fn attacker<'p>(pod: &'p Pod<'_>, program: &Path, args: &[&str]) -> Container<'p> {
    let args: Vec<_> = std::iter::once("/attack")
        .chain(args.iter().copied())
        .collect();
    let container = pod.container(&args);
    fs::copy(program, container.root.join("attack")).unwrap();
    let caps = json!({"bounding": CAPS, "effective": CAPS, "permitted": CAPS});
    container.set("/process/capabilities", caps)
}

/// Runs a case with the attacker's program, in an own and in the shared PID namespace.
fn attacks(body: impl AsyncFn(&World, &Path, bool)) {
    for shared in [false, true] {
        world(async |w| body(w, program(), shared).await);
    }
}

fn placed(container: Container<'_>, shared: bool) -> Container<'_> {
    if shared {
        container.shared_pidns()
    } else {
        container
    }
}

/// The host and the next pod are as they were.
async fn unharmed(w: &World, pod: &Pod<'_>) {
    assert!(pod.sandbox.is_running());
    assert_eq!(pod.sh("echo same").output().await, (0, "same\n".into()));
    let next = w.pod().await;
    assert_eq!(next.sh("echo next").output().await, (0, "next\n".into()));
    next.end().await;
}

fn root_of_a_pod_clears_no_read_only_and_unmounts_nothing() {
    attacks(async |w, program, shared| {
        let pod = w.pod().await;
        let volume = w.dir("volume");
        fs::write(volume.join("file"), "host's").unwrap();
        for strong in [true, false] {
            let mut container = attacker(&pod, program, &["mounts"]);
            container = container.mount("/ro", "bind", &volume, &["rbind", "ro"]);
            if !strong {
                let default = process(&[])["capabilities"].clone();
                container = container.set("/process/capabilities", default);
            }
            let (_, text) = placed(container, shared).output().await;
            assert_eq!(text.lines().count(), 14, "{text}");
            assert!(text.contains("write: EROFS\n"), "{text}");
            // With CAP_SYS_ADMIN the pod may mount and uncover the proc of its own PID namespace,
            // as under every runtime: what is the host's there, the kernel keeps from its ids.
            let own = ["detach-proc-sys: done", "proc: done"];
            let done = text.lines().filter(|line| line.ends_with(": done"));
            let done: Vec<_> = done.filter(|line| !strong || !own.contains(line)).collect();
            assert!(done.is_empty(), "{strong}: {text}");
        }
        assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "host's");
        unharmed(w, &pod).await;
    });
}

fn root_of_a_pod_makes_no_user_namespace() {
    attacks(async |w, program, shared| {
        let pod = w.pod().await;
        // Even where the spec leaves /proc/sys writable.
        for paths in [json!(["/proc/sys"]), json!([])] {
            let container = attacker(&pod, program, &["namespaces"])
                .set("/linux/readonlyPaths", paths.clone())
                .set("/linux/maskedPaths", paths);
            let (_, text) = placed(container, shared).output().await;
            assert!(!text.contains(": done"), "{text}");
            assert!(text.contains("unshare: ENOSPC\n"), "{text}");
        }
        let host = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap();
        assert_ne!(host.trim(), "0");
        unharmed(w, &pod).await;
    });
}

/// The number of a process in the innermost PID namespace that the pod has.
fn inside(pid: i32, depth: usize) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("NSpid:"))
        .unwrap();
    let host = fs::read_to_string("/proc/self/status").unwrap();
    let own = host.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap();
    let levels = own.split_whitespace().count();
    line.split_whitespace()
        .nth(levels - 1 + depth)
        .unwrap()
        .to_owned()
}

fn root_of_a_pod_does_not_see_into_pid_1_or_a_gated_process() {
    world(async |w| {
        let program = program();
        let pod = w.pod().await;
        for gated_shares in [false, true] {
            let gated = pod.container(&["/bin/sleep", "1000"]);
            let gated = placed(gated, gated_shares).create().await.unwrap();
            for target in ["1".to_owned(), inside(gated.pid, 1)] {
                let container = attacker(&pod, program, &["look", &target]).shared_pidns();
                let (_, text) = container.output().await;
                assert_eq!(text.lines().count(), 13, "{text}");
                assert!(!text.contains(": done"), "{target}: {text}");
            }
            gated.start().await.unwrap();
            assert_eq!(gated.exec_sh("exit 5").await.0, 5);
            gated.end().await;
        }
        unharmed(w, &pod).await;
    });
}

fn root_of_a_pod_neither_kills_nor_stops_pid_1() {
    world(async |w| {
        let program = program();
        let pod = w.pod().await;
        for signal in ["9", "19", "11", "1", "64"] {
            let container = attacker(&pod, program, &["kill", "1", signal]).shared_pidns();
            container.output().await;
            let stat = berm_testkit::process::Process::read(pod.init().unsigned_abs()).unwrap();
            // Neither stopped nor a zombie; at this moment it may be reaping.
            assert!("SRD".contains(stat.state), "{signal}: {}", stat.state);
        }
        unharmed(w, &pod).await;
        // In a namespace of its own PID 1 is the workload itself.
        let container = attacker(&pod, program, &["kill", "1", "9"]);
        container.output().await;
        unharmed(w, &pod).await;
        // Ending PID 1 is ending the pod: what pause does, too.
        let container = attacker(&pod, program, &["kill", "1", "15"]).shared_pidns();
        let made = container.run().await;
        made.wait().await;
        let id = pod.id().to_owned();
        assert_eq!(pod.sandbox.wait(&id, None).await.unwrap().status, 0);
    });
}

/// Far below the default, and above what a loaded machine needs for what nobody attacks.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a call may take that fails at its deadline.
const IN_TIME: Duration = Duration::from_secs(15);

fn short(body: impl AsyncFnOnce(&World, &Path)) {
    world_with(
        |config| config.stage_deadline = DEADLINE,
        async |w| body(w, program()).await,
    );
}

fn a_gated_process_that_the_pod_kills_or_stops_fails_its_start_in_time() {
    short(async |w, program| {
        let pod = w.pod().await;
        for (signal, kind) in [("9", Kind::Unavailable), ("19", Kind::DeadlineExceeded)] {
            for shares in [false, true] {
                let gated = pod.container(&["/bin/sleep", "1000"]);
                let gated = placed(gated, shares).create().await.unwrap();
                let target = inside(gated.pid, 1);
                let container = attacker(&pod, program, &["kill", &target, signal]);
                let (_, text) = container.shared_pidns().output().await;
                assert_eq!(text, "kill: done\n");
                let begin = Instant::now();
                // One that dies while its gate opens has started, and ended.
                if let Err(error) = gated.start().await {
                    let gone = [kind, Kind::FailedPrecondition].contains(&error.kind());
                    assert!(gone, "{signal}: {}", error.chain());
                } else {
                    assert_eq!(signal, "9");
                }
                assert!(begin.elapsed() < IN_TIME);
                assert_eq!(gated.wait().await.status, 137);
                gated.delete().await.unwrap();
            }
        }
        unharmed(w, &pod).await;
    });
}

async fn storm<'p>(pod: &'p Pod<'_>, program: &Path, signal: &str) -> Made<'p> {
    let container = attacker(pod, program, &["storm", signal]).shared_pidns();
    let mut storm = container.run().await;
    assert_eq!(storm.line().await, "ready");
    storm
}

/// Creates containers in a pod that is under attack, so many and until one is hit; what fails does
/// so in time, with a reason.
async fn under_attack(pod: &Pod<'_>, rounds: usize) {
    let (mut failed, mut round, until) = (0, 0, Instant::now() + SOON * 3);
    while round < rounds || failed == 0 {
        assert!(Instant::now() < until, "the attack hits nothing");
        round += 1;
        let begin = Instant::now();
        let container = pod.container(&["/bin/sleep", "1000"]);
        let container = placed(container, round % 2 == 0);
        match container.create().await {
            Ok(made) => {
                if made.start().await.is_err() {
                    failed += 1;
                    assert_eq!(made.wait().await.status, 137);
                    made.delete().await.unwrap();
                } else {
                    made.end().await;
                }
            }
            Err(error) => {
                failed += 1;
                let kinds = [Kind::Unavailable, Kind::DeadlineExceeded];
                assert!(kinds.contains(&error.kind()), "{}", error.chain());
            }
        }
        assert!(begin.elapsed() < IN_TIME, "{:?}", begin.elapsed());
    }
}

fn a_pod_that_stops_all_it_can_delays_creations_to_the_deadline_and_no_longer() {
    short(async |w, program| {
        let pod = w.pod().await;
        let storm = storm(&pod, program, "19").await;
        under_attack(&pod, 4).await;
        let next = w.pod().await;
        assert_eq!(next.sh("echo next").output().await, (0, "next\n".into()));
        storm.end().await;
        unharmed(w, &pod).await;
        pod.end().await;
    });
}

fn a_pod_that_kills_all_it_can_fails_creations_and_is_removed_all_the_same() {
    short(async |w, program| {
        let pod = w.pod().await;
        let storm = storm(&pod, program, "9").await;
        under_attack(&pod, 10).await;
        storm.end().await;
        unharmed(w, &pod).await;
        pod.end().await;
    });
}

fn a_first_process_that_never_reaps_ends_like_any_other() {
    attacks(async |w, program, shared| {
        let pod = w.pod().await;
        let mut made = placed(attacker(&pod, program, &["zombies", "300"]), shared)
            .run()
            .await;
        assert_eq!(made.line().await, "ready");
        assert_eq!(made.exec_sh("exit 8").await.0, 8);
        pod.sandbox.pids(&made.id).unwrap();
        pod.sandbox.stats(&made.id).unwrap();
        let begin = Instant::now();
        made.end().await;
        assert!(begin.elapsed() < IN_TIME);
        unharmed(w, &pod).await;
    });
}

fn a_workload_that_drops_root_drops_its_capabilities() {
    attacks(async |w, program, shared| {
        let pod = w.pod().await;
        let container = placed(attacker(&pod, program, &["drop", "1000"]), shared);
        let want = "CapEff:\t0000000000000000\nsecurebits: 0\n";
        assert_eq!(container.output().await, (0, want.into()));
        let container = pod.container(&["/bin/sleep", "1000"]);
        fs::copy(program, container.root.join("attack")).unwrap();
        let container = placed(container, shared).run().await;
        let got = container
            .exec_of(&process(&["/attack", "drop", "1000"]))
            .await;
        assert_eq!(got.unwrap(), (0, want.into()));
    });
}

fn execs_into_a_stopped_container_work_and_it_dies_of_a_kill() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod
            .container(&["/bin/sleep", "1000"])
            .shared_pidns()
            .run()
            .await;
        c.kill(19).await.unwrap();
        assert_eq!(c.exec_sh("exit 3").await.0, 3);
        c.end().await;
        pod.sandbox.kill(pod.id(), None, 19, false).await.unwrap();
        let error = pod.sh("true").refused();
        let other = w.pod().await;
        drop(error);
        assert_eq!(other.sh("echo next").output().await.1, "next\n");
        pod.sandbox.destroy().await;
    });
}
