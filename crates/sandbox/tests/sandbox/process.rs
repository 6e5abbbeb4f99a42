//! What a workload is started with: user, limits, terminal, devices, namespaces.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use berm_sys::Kind;
use berm_testkit::cases::Case;
use serde_json::json;
use tokio::time::sleep;

use crate::container::process;
use crate::world::{SOON, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    user_groups_umask_cwd_env_and_limits_are_as_the_spec_says,
    a_missing_working_directory_is_made,
    a_user_enters_a_working_directory_that_only_it_may_enter,
    host_and_domain_name_and_sysctls_are_the_pods,
    a_containers_own_host_name_or_sysctl_is_refused,
    default_devices_work_and_spec_devices_have_mode_and_owner,
    devices_that_no_rule_allows_are_denied,
    a_terminal_has_the_size_of_its_spec_and_is_the_console,
    an_exec_gets_a_terminal_of_its_own,
    containers_share_net_ipc_and_uts_and_have_mounts_and_pids_of_their_own,
    a_shared_pid_namespace_shows_the_processes_of_the_pod,
    a_process_at_its_gate_does_not_show_the_hosts_command_line,
    a_namespace_that_is_not_the_pods_is_refused,
    a_pod_takes_a_network_namespace_by_path,
    a_workload_holds_no_descriptor_but_its_streams,
];

fn user_groups_umask_cwd_env_and_limits_are_as_the_spec_says() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "id -u; id -g; id -G; umask; pwd; echo $GREETING $HOME; ulimit -n; \
            cat /proc/self/oom_score_adj; exec 2>/dev/null; ulimit -c";
        let rlimits = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]);
        let user = json!({"uid": 1000, "gid": 1000, "umask": 0o27, "additionalGids": [2000, 5]});
        let container = pod
            .sh(script)
            .set("/process/user", user)
            .set("/process/cwd", json!("/var"))
            .set("/process/env", json!(["PATH=/bin", "GREETING=hello"]))
            .set("/process/rlimits", rlimits)
            .set("/process/oomScoreAdj", json!(500));
        let (status, text) = container.output().await;
        let want = "1000\n1000\n1000 2000 5\n0027\n/var\nhello /\n100\n500\n0\n";
        let sorted = |line: &str| {
            let mut words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            words.sort();
            words
        };
        let got: Vec<_> = text.lines().map(sorted).collect();
        let want: Vec<_> = want.lines().map(sorted).collect();
        assert_eq!((status, got), (0, want), "{text}");
    });
}

fn a_missing_working_directory_is_made() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod
            .sh("pwd; stat -c %u .")
            .set("/process/cwd", json!("/not/there"));
        assert_eq!(container.output().await, (0, "/not/there\n0\n".into()));
    });
}

fn a_user_enters_a_working_directory_that_only_it_may_enter() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod
            .sh("pwd; touch x")
            .user(1000)
            .set("/process/cwd", json!("/home"));
        let home = container.root.join("home");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(container.output().await, (0, "/home\n".into()));
        assert_eq!(fs::metadata(home.join("x")).unwrap().uid(), 1000);
    });
}

fn host_and_domain_name_and_sysctls_are_the_pods() {
    world(async |w| {
        let sysctls = json!({"kernel.msgmax": "4096", "net.ipv4.ip_forward": "1",
            "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "20"});
        let pod = w
            .pod_with(|spec| {
                spec["domainname"] = json!("example");
                spec["linux"]["sysctl"] = sysctls;
            })
            .await;
        let script = "hostname; cd /proc/sys; cat kernel/domainname kernel/msgmax \
            net/ipv4/ip_forward kernel/shm_rmid_forced fs/mqueue/msg_max";
        let container = pod.sh(script).set("/hostname", json!("the-pod"));
        let want = "the-pod\nexample\n4096\n1\n1\n20\n";
        assert_eq!(container.output().await, (0, want.into()));
    });
}

fn a_containers_own_host_name_or_sysctl_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        let error = pod.sh("").set("/hostname", json!("other")).refused().await;
        assert_eq!(error.kind(), Kind::NotSupported);
        assert!(error.to_string().starts_with("hostname: "), "{error}");
        let sysctl = json!({"net.ipv4.ip_forward": "1"});
        let error = pod.sh("").set("/linux/sysctl", sysctl).refused().await;
        assert!(error.to_string().starts_with("linux.sysctl"), "{error}");
    });
}

fn default_devices_work_and_spec_devices_have_mode_and_owner() {
    world(async |w| {
        let pod = w.pod().await;
        let devices = json!([
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640,
                "uid": 1000, "gid": 2000},
            {"path": "/dev/deep/null", "type": "c", "major": 1, "minor": 3},
        ]);
        let rules = json!([{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw"}]);
        let script = "cd /dev; for d in null zero full random urandom tty; do \
            stat -c '%n %a %u:%g %t:%T' $d; done; stat -c '%a %u:%g %t:%T' mine deep/null; \
            head -c 3 zero mine urandom | wc -c; echo x > null; echo x > full; \
            for l in fd stdin stdout stderr ptmx; do readlink $l; done";
        let container = pod
            .sh(script)
            .set("/linux/devices", devices)
            .set("/linux/resources/devices", rules);
        let (_, text) = container.output().await;
        let want = "null 666 0:0 1:3\nzero 666 0:0 1:5\nfull 666 0:0 1:7\nrandom 666 0:0 1:8\n\
            urandom 666 0:0 1:9\ntty 666 0:0 5:0\n640 1000:2000 1:5\n666 0:0 1:3\n";
        assert!(text.starts_with(want), "{text}");
        assert!(text.contains("No space left on device"), "{text}");
        let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
        assert!(text.ends_with(links), "{text}");
    });
}

fn devices_that_no_rule_allows_are_denied() {
    world(async |w| {
        let pod = w.pod().await;
        // The node is there: a rule, and not its absence, is what denies.
        let devices = json!([{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11,
            "fileMode": 0o666}]);
        let script =
            "ls /dev/kmsg; head -c1 /dev/kmsg; mknod /tmp/mem c 1 1; head -c1 /dev/zero | wc -c";
        let container = pod.sh(script).set("/linux/devices", devices);
        let (_, text) = container.output().await;
        assert!(text.starts_with("/dev/kmsg\n"), "{text}");
        assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
        assert!(text.ends_with("1\n"), "{text}");
    });
}

/// Reads a terminal until the other side is closed.
async fn read_all(master: std::os::fd::OwnedFd) -> String {
    let (mut file, mut text) = (fs::File::from(master), Vec::new());
    let until = Instant::now() + SOON;
    loop {
        let mut part = [0; 4096];
        match file.read(&mut part) {
            Ok(0) => break,
            Ok(n) => text.extend(&part[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < until, "{}", String::from_utf8_lossy(&text));
                sleep(Duration::from_millis(2)).await;
            }
            // EIO: the last slave is closed.
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&text).replace("\r\n", "\n")
}

fn a_terminal_has_the_size_of_its_spec_and_is_the_console() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "stty size; tty; stat -c '%u:%g %a' $(tty); echo on > /dev/console; \
            echo ctty > /dev/tty; read line; echo got $line";
        let container = pod.sh(script).terminal(33, 77).user(1000);
        let mut made = container.run().await;
        let master = made.terminal.take().unwrap();
        fs::File::from(master.try_clone().unwrap())
            .write_all(b"typed\n")
            .unwrap();
        assert_eq!(made.wait().await.status, 0);
        let text = read_all(master).await;
        for want in [
            "33 77\n",
            "/dev/pts/0\n",
            "1000:5 620\n",
            "on\n",
            "ctty\n",
            "got typed\n",
        ] {
            assert!(text.contains(want), "{want:?} is not in {text:?}");
        }
    });
}

fn an_exec_gets_a_terminal_of_its_own() {
    world(async |w| {
        let pod = w.pod().await;
        let container = pod.container(&["/bin/sleep", "1000"]).run().await;
        let mut p = process(&["/bin/sh", "-c", "stty size; tty; echo x > /dev/tty; exit 5"]);
        p["terminal"] = json!(true);
        p["consoleSize"] = json!({"height": 10, "width": 20});
        let json = p.to_string();
        let sandbox = &pod.sandbox;
        sandbox
            .add_exec(&container.id, "e", json.as_bytes(), true)
            .unwrap();
        let stdio = berm_sandbox::Stdio::default();
        let made = sandbox.start_exec(&container.id, "e", stdio).await.unwrap();
        let exit = sandbox.wait(&container.id, Some("e")).await.unwrap();
        assert_eq!((exit.status, exit.pid), (5, made.pid));
        let text = read_all(made.terminal.unwrap()).await;
        assert_eq!(text, "10 20\n/dev/pts/0\nx\n");
        sandbox.delete(&container.id, Some("e")).await.unwrap();
    });
}

const NAMESPACES: &str = "cd /proc/self/ns; for n in net ipc uts user pid mnt cgroup; do \
    readlink $n; done";

fn containers_share_net_ipc_and_uts_and_have_mounts_and_pids_of_their_own() {
    world(async |w| {
        let pod = w.pod().await;
        let (_, first) = pod.sh(NAMESPACES).output().await;
        let (_, second) = pod.sh(NAMESPACES).output().await;
        let (first, second): (Vec<_>, Vec<_>) = (first.lines().collect(), second.lines().collect());
        assert_eq!(first[..4], second[..4]);
        // Inode numbers of nsfs may be given again once their namespace is gone.
        let container = pod.container(&["/bin/sleep", "1000"]).run().await;
        let (_, third) = container.exec_sh(NAMESPACES).await;
        let (_, fourth) = pod.sh(NAMESPACES).output().await;
        let (third, fourth): (Vec<_>, Vec<_>) = (third.lines().collect(), fourth.lines().collect());
        for at in 4..7 {
            assert_ne!(third[at], fourth[at]);
        }
        for name in ["net", "ipc", "uts", "user"] {
            let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            assert_eq!(of(container.pid), of(pod.init()), "{name}");
            assert_ne!(
                of(container.pid),
                of(std::process::id().cast_signed()),
                "{name}"
            );
        }
        let (_, ps) = container
            .exec_sh("ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm")
            .await;
        assert!(ps.ends_with("sleep\n"), "{ps}");
    });
}

fn a_shared_pid_namespace_shows_the_processes_of_the_pod() {
    world(async |w| {
        let pod = w.pod().await;
        let c = pod
            .container(&["/bin/sleep", "1000"])
            .shared_pidns()
            .run()
            .await;
        pod.until_runs(&c.id, &["/bin/sleep 1000"]).await;
        let script = "cat /proc/1/comm; grep -l sleep /proc/[0-9]*/comm | wc -l";
        let (_, text) = pod.sh(script).shared_pidns().output().await;
        assert!(text.ends_with("\n1\n") && !text.starts_with("sh"), "{text}");
        let pids = pod.sandbox.pids(&c.id).unwrap();
        assert_eq!(pids.iter().map(|p| p.pid).collect::<Vec<_>>(), [c.pid]);
    });
}

fn a_process_at_its_gate_does_not_show_the_hosts_command_line() {
    world(async |w| {
        let pod = w.pod().await;
        let gated = pod.container(&["/bin/sleep", "1000"]).shared_pidns();
        let gated = gated.create().await.unwrap();
        let script = "for p in /proc/[0-9]*; do echo \"$(cat $p/comm): $(cat $p/cmdline)\"; done";
        let (_, text) = pod.sh(script).shared_pidns().output().await;
        let program = std::env::current_exe().unwrap();
        let name = program.file_name().unwrap().to_str().unwrap();
        // The gated process is there, by the first 15 bytes of its name, and tells nothing more.
        let comm = format!("{}: \n", &name[..name.len().min(15)]);
        assert!(text.contains(&comm), "{text}");
        assert!(!text.contains(program.to_str().unwrap()), "{text}");
        gated.delete().await.unwrap();
    });
}

fn a_namespace_that_is_not_the_pods_is_refused() {
    world(async |w| {
        let pod = w.pod().await;
        for (at, kind) in [(3, "ipc"), (4, "uts"), (5, "network")] {
            let name = if kind == "network" { "net" } else { kind };
            let own = json!({"type": kind, "path": format!("/proc/self/ns/{name}")});
            let container = pod.sh("").set(&format!("/linux/namespaces/{at}"), own);
            let error = container.refused().await;
            assert_eq!(error.kind(), Kind::NotSupported, "{kind}");
            assert!(
                error.to_string().contains("leads out of the pod"),
                "{error}"
            );
        }
        let own = json!({"type": "pid", "path": "/proc/self/ns/pid"});
        let error = pod.sh("").set("/linux/namespaces/0", own).refused().await;
        assert!(
            error.to_string().contains("linux.namespaces \"pid\""),
            "{error}"
        );
        // A sandbox that names the host's own has asked for it.
        let of_host = w.pod_with(|s| {
            s["linux"]["namespaces"][4]["path"] = json!("/proc/self/ns/net");
        });
        let of_host = of_host.await;
        let isolation = &of_host.sandbox.record().isolation;
        assert_eq!(isolation.userns, "none");
        assert_eq!(isolation.host_namespaces, ["net"]);
    });
}

fn a_pod_takes_a_network_namespace_by_path() {
    world(async |w| {
        let first = w.pod().await;
        let path = format!("/proc/{}/ns/net", first.init());
        let pod = w
            .pod_with(|s| s["linux"]["namespaces"][4]["path"] = json!(path))
            .await;
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_eq!(of(pod.init()), of(first.init()));
        assert!(!pod.sandbox.record().isolation.owns_netns);
        assert!(first.sandbox.record().isolation.owns_netns);
        // Ports below 1024 are opened for a pod whose capabilities are dead in its netns.
        let script =
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /sys/class/net/lo/operstate";
        assert_eq!(pod.sh(script).output().await, (0, "0\nunknown\n".into()));
    });
}

fn a_workload_holds_no_descriptor_but_its_streams() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "ls /proc/self/fd";
        // ls itself opens the directory: 3.
        assert_eq!(pod.sh(script).output().await, (0, "0\n1\n2\n3\n".into()));
        let container = pod.container(&["/bin/sleep", "1000"]).run().await;
        assert_eq!(container.exec_sh(script).await, (0, "0\n1\n2\n3\n".into()));
        let of_init = fs::read_dir(format!("/proc/{}/fd", pod.init())).unwrap();
        for fd in of_init {
            let target = fs::read_link(fd.unwrap().path()).unwrap();
            assert!(target.to_string_lossy().starts_with("pipe:"), "{target:?}");
        }
    });
}
