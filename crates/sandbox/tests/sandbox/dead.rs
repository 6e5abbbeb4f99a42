//! Cleaning up after a shim that was killed.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use berm_sandbox::{Config, cleanup};
use berm_sys::process::{Fork, exit, fork};
use berm_testkit::cases::Case;
use berm_testkit::process;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, wait, waitpid};
use serde_json::json;
use tokio::task::LocalSet;

use crate::container::process as of_args;
use crate::world::{NAMESPACE, Place, Pod, World, runtime};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    a_pod_whose_shim_was_killed_is_cleaned_up_by_record_and_twice_is_harmless,
    a_host_pid_pod_whose_shim_was_killed_is_cleaned_up_by_its_cgroups_and_nobody_else_is_touched,
    a_container_names_the_pod_to_clean_up_as_well,
    a_pod_whose_shim_lives_is_left_alone,
    the_poststop_hooks_of_a_pod_whose_shim_was_killed_are_run,
    what_was_never_there_is_nothing_to_clean_up,
    a_shim_that_is_killed_at_any_moment_leaves_nothing_that_clean_up_does_not_find,
];

const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];

/// A child that plays the shim until it is killed.
pub(crate) struct Shim {
    pid: Pid,
    ready: OwnedFd,
}

impl Shim {
    /// Forks it; it says when its pod is complete.
    pub(crate) fn start(place: &Place, body: impl AsyncFn(&World)) -> Self {
        // Who has no parent any more becomes ours.
        set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let (ready, say) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let Fork::Parent(pid) = fork().unwrap() else {
            let runtime = runtime();
            LocalSet::new().block_on(&runtime, async {
                let world = World::new(place, place.config());
                body(&world).await;
                rustix::io::write(&say, b"x").unwrap();
                std::future::pending::<()>().await;
            });
            exit(1)
        };
        let pid = Pid::from_raw(pid).unwrap();
        Self { pid, ready }
    }

    /// Waits until it is ready, or for so long.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        poll(&mut [PollFd::new(&self.ready, PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    pub(crate) fn kill(self) {
        kill_process(self.pid, Signal::KILL).unwrap();
        waitpid(Some(self.pid), WaitOptions::empty()).unwrap();
    }
}

/// Cleans up in a process of its own, as a `delete` does, while this one reaps as init would:
/// whether there was something.
pub(crate) fn clean(config: &Config, id: &str) -> bool {
    let Fork::Parent(pid) = fork().unwrap() else {
        exit(match cleanup(config, NAMESPACE, id) {
            Ok(Some(exit)) => i32::from(exit.status != 137) * 3,
            Ok(None) => 1,
            Err(e) => {
                eprintln!("{}", e.chain());
                2
            }
        })
    };
    loop {
        let (ended, status) = wait(WaitOptions::empty()).unwrap().unwrap();
        if Some(ended) == Pid::from_raw(pid) {
            let code = status.exit_status();
            assert!(code == Some(0) || code == Some(1), "{code:?}");
            return code == Some(0);
        }
    }
}

/// Everybody is dead.
pub(crate) fn assert_dead() {
    let until = Instant::now() + MINUTE;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = process::descendants(std::process::id());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "{left:?}");
        std::thread::yield_now();
    }
}

fn the_poststop_hooks_of_a_pod_whose_shim_was_killed_are_run() {
    let place = Place::new();
    let told = place.dir.join("told");
    let script = format!("cat > {0}; env >> {0}", told.display());
    let hooks = json!([
        {"path": "/no/such"},
        {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]},
        {"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1},
    ]);
    let shim = Shim::start(&place, async |w| {
        let pod: &Pod<'_> = Box::leak(Box::new(w.pod().await));
        let container = pod.container(&SLEEP).set("/hooks/poststop", hooks.clone());
        std::mem::forget(container.run().await);
    });
    assert!(shim.wait(MINUTE));
    shim.kill();
    assert!(clean(&place.config(), "pod1"));
    let told = std::fs::read_to_string(&told).unwrap();
    assert!(told.contains("\"status\":\"stopped\""), "{told}");
    assert!(told.contains("PATH=/usr/bin:/bin\n"), "{told}");
    assert_dead();
    place.assert_clean(&place.config().state_dir);
}

async fn full(w: &World) {
    fill(w.pod().await).await;
}

/// Puts something of every sort into a pod, to stand until the process is killed.
pub(crate) async fn fill(pod: Pod<'_>) {
    let pod: &Pod<'_> = Box::leak(Box::new(pod));
    let c = pod.container(&SLEEP).run().await;
    let shared = pod.container(&SLEEP).shared_pidns().run().await;
    let gated = pod.container(&SLEEP).create().await.unwrap();
    let exec = c.start_exec("e", &of_args(&SLEEP)).await.unwrap();
    let background = pod.sh("sleep 1000 & sleep 1000 & sleep 1000").run().await;
    pod.sandbox.pause(&background.id).await.unwrap();
    std::mem::forget((c, shared, gated, exec, background));
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

fn a_pod_whose_shim_was_killed_is_cleaned_up_by_record_and_twice_is_harmless() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, full);
    assert!(shim.wait(MINUTE));
    shim.kill();
    let begin = Instant::now();
    assert!(clean(&config, "pod1"));
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert!(!clean(&config, "pod1"));
    assert_dead();
    place.assert_clean(&config.state_dir);
}

/// The kernel ends nothing of such a pod by itself.
async fn full_host_pid(w: &World) {
    let pod = w
        .pod_with(|spec| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|entry| entry["type"] != "pid");
        })
        .await;
    let pod: &Pod<'_> = Box::leak(Box::new(pod));
    let strays = "for i in 1 2 3 4 5 6 7 8; do (/bin/busybox setsid sleep 1000 &) ; done; echo made; \
        exec sleep 1000";
    let mut c = pod.sh(strays).shared_pidns().run().await;
    assert_eq!(c.line().await, "made");
    let gated = pod.container(&SLEEP).shared_pidns().create().await.unwrap();
    let exec = c.start_exec("e", &of_args(&SLEEP)).await.unwrap();
    let paused = pod.container(&SLEEP).shared_pidns().run().await;
    pod.sandbox.pause(&paused.id).await.unwrap();
    std::mem::forget((c, gated, exec, paused));
}

fn a_host_pid_pod_whose_shim_was_killed_is_cleaned_up_by_its_cgroups_and_nobody_else_is_touched() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, full_host_pid);
    assert!(shim.wait(MINUTE));
    shim.kill();
    #[allow(clippy::zombie_processes, reason = "assert_dead reaps every child")]
    let bystander = std::process::Command::new("/bin/sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    assert!(clean(&config, "pod1"));
    assert!(!clean(&config, "pod1"));
    let left = process::descendants(std::process::id());
    assert!(left.iter().any(|p| p.pid == bystander.id()), "{left:?}");
    process::send(bystander.id(), Signal::KILL);
    assert_dead();
    place.assert_clean(&config.state_dir);
}

fn a_container_names_the_pod_to_clean_up_as_well() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, full);
    assert!(shim.wait(MINUTE));
    shim.kill();
    assert!(!clean(&config, "nobody"));
    assert!(clean(&config, "c2"));
    assert!(!clean(&config, "c2"));
    assert_dead();
    place.assert_clean(&config.state_dir);
}

fn a_pod_whose_shim_lives_is_left_alone() {
    let place = Place::new();
    let config = place.config();
    let shim = Shim::start(&place, full);
    assert!(shim.wait(MINUTE));
    // Not those who made them, which may just be ending.
    let of_pod = || {
        let all = process::descendants(std::process::id()).into_iter();
        let workload = all.filter(|p| ["berm-init", "sleep"].contains(&p.comm.as_str()));
        workload.map(|p| p.pid).collect::<BTreeSet<_>>()
    };
    let before = of_pod();
    assert!(before.len() > 1, "{before:?}");
    assert!(!clean(&config, "pod1"));
    assert!(!clean(&config, "c2"));
    assert!(of_pod().is_superset(&before), "{before:?}");
    shim.kill();
    assert!(clean(&config, "pod1"));
    assert_dead();
    place.assert_clean(&config.state_dir);
}

fn what_was_never_there_is_nothing_to_clean_up() {
    let place = Place::new();
    let config = place.config();
    assert!(!clean(&config, "pod1"));
    place.assert_clean(&config.state_dir);
}

fn a_shim_that_is_killed_at_any_moment_leaves_nothing_that_clean_up_does_not_find() {
    const ROUNDS: u32 = 60;
    let mut whole = Duration::ZERO;
    // The first is killed at its end; the others at moments spread over its time.
    for round in 0..ROUNDS {
        let place = Place::new();
        let config = place.config();
        let begin = Instant::now();
        let shim = Shim::start(&place, async |w| {
            let pod: &Pod<'_> = Box::leak(Box::new(w.pod().await));
            let c = pod.container(&SLEEP).run().await;
            std::mem::forget(c);
        });
        if round == 0 {
            assert!(shim.wait(MINUTE));
            whole = begin.elapsed();
        } else {
            shim.wait(whole * round / ROUNDS);
        }
        shim.kill();
        clean(&config, "pod1");
        // A container's record may be there before anything else knows of it.
        clean(&config, "c2");
        assert_dead();
        place.assert_clean(&config.state_dir);
    }
}
