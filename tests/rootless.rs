//! `berm` for somebody who is not root. Needs root: it makes the user, for the commands of a test
//! alone, by files that only they see in place of the node's; and `su`, newuidmap(1), newgidmap(1).
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test fails by panicking.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

/// No wait lasts longer; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(60);
/// How many ids the user is lent.
const LENT: u32 = 65_536;

/// A user, its home, a root file system in it, and a copy of `berm` that it may run.
struct User {
    home: PathBuf,
    name: String,
    uid: u32,
    first: u32,
}

impl User {
    /// With the line of a host that lends it ids.
    fn new() -> Self {
        let user = Self::poor();
        let line = format!("{}:{}:{LENT}\n", user.name, user.first);
        user.write("subuid", &line);
        user.write("subgid", &line);
        user
    }

    /// A user whom the host lends nothing.
    fn poor() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Nobody else's, not even those of the same tests that run beside these.
        let own = std::process::id() % 1000;
        let uid = 54_000 + own + number * 1000;
        let name = format!("berm-test-{uid}");
        let home = std::env::temp_dir().join(&name);
        for sub in [
            "root/bin",
            "root/dev",
            "root/proc",
            "root/sys",
            "root/tmp",
            "volume",
        ] {
            fs::create_dir_all(home.join(sub)).unwrap();
        }
        let user = Self {
            first: 0x1000_0000 + (own * 20 + number) * LENT,
            home,
            name,
            uid,
        };
        user.copy("/bin/busybox", "root/bin/busybox");
        for applet in ["sh", "sleep", "cat", "id", "chown", "touch", "stat"] {
            symlink("busybox", user.home.join("root/bin").join(applet)).unwrap();
        }
        user.copy(env!("CARGO_BIN_EXE_berm"), "berm");
        user.write("volume/file", "of the host\n");
        for owned in ["", "root", "root/tmp", "volume", "volume/file"] {
            chown(user.home.join(owned), Some(uid), Some(uid)).unwrap();
        }
        let home = user.home.display();
        let line = format!("{}:*:{uid}:{uid}::{home}:/bin/sh\n", user.name);
        let passwd = fs::read_to_string("/etc/passwd").unwrap() + &line;
        user.write("passwd", &passwd);
        let group = fs::read_to_string("/etc/group").unwrap();
        user.write("group", &format!("{group}{}:x:{uid}:\n", user.name));
        user.write("subuid", "");
        user.write("subgid", "");
        user
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.home.join(name), text).unwrap();
    }

    /// Copies a program that is to be run. By a process of its own: what another thread forks has
    /// this one's open files until its execve, and a file that is open for writing cannot be run.
    fn copy(&self, from: impl AsRef<OsStr>, name: &str) {
        let mut copy = Command::new("cp");
        copy.arg(from.as_ref()).arg(self.home.join(name));
        assert!(copy.status().unwrap().success(), "{name}");
    }

    /// A program of the user's that comes before the node's.
    fn program(&self, name: &str, script: &str) {
        let text = format!("{name}.text");
        self.write(&text, &format!("#!/bin/sh\n{script}\n"));
        self.copy(self.home.join(&text), name);
        fs::set_permissions(self.home.join(name), Permissions::from_mode(0o755)).unwrap();
    }

    /// The user's shell runs this in its home, with `$PATH` as it is given.
    fn shell_with(&self, path: &str, script: &str) -> Command {
        let home = self.home.display();
        let bind = |name: &str| format!("mount --bind {home}/{name} /etc/{name} && ");
        let binds: String = ["passwd", "group", "subuid", "subgid"].map(bind).concat();
        let script =
            format!("unset XDG_RUNTIME_DIR XDG_STATE_HOME; PATH={path}; cd {home}; {script}");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{binds} exec su {} -c \"$0\"", self.name));
        command.arg(script).stdin(Stdio::null());
        command
    }

    fn shell(&self, script: &str) -> Command {
        let home = self.home.display();
        self.shell_with(&format!("{home}:/usr/sbin:/usr/bin:/sbin:/bin"), script)
    }

    /// `berm` with these words, to its end.
    fn berm(&self, words: &str) -> Output {
        self.shell(&format!("exec berm {words}")).output().unwrap()
    }

    /// `berm run` with these options of a script, to its end.
    fn run(&self, options: &str, script: &str) -> Output {
        let words = format!("run --rootfs root {options} -- sh -c '{script}'");
        self.berm(&words)
    }

    /// A sandbox of this name that runs until it is told to end.
    fn background(&self, name: &str) -> Child {
        let script = "echo ready; exec sleep 1000";
        let words = format!("exec berm run --rootfs root --name {name} -- sh -c '{script}'");
        let mut shell = self.shell(&words);
        // An end of ours that a failed test left would keep its reader waiting.
        let mut child = shell
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = child.stdout.as_mut().unwrap();
        assert!(ready(&*out), "no output");
        let mut bytes = [0; 6];
        out.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"ready\n");
        child
    }

    fn json(&self, words: &str) -> Value {
        let out = self.berm(words);
        assert!(out.status.success(), "{words}: {}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// What runs with an id of the user's, its own or one that it was lent; not what is dead and
    /// waits for the node's first process to take note.
    fn processes(&self) -> Vec<Pid> {
        let lent = self.first..self.first + LENT;
        let own = |uid: u32| uid == self.uid || lent.contains(&uid);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap() {
            let path = entry.unwrap().path();
            let Ok(status) = fs::read_to_string(path.join("status")) else {
                continue;
            };
            if ["State:\tZ", "State:\tX"]
                .iter()
                .any(|s| status.contains(s))
            {
                continue;
            }
            let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            let mut uids = uids.unwrap_or_default().split_whitespace();
            if uids.any(|uid| uid.parse().is_ok_and(own)) {
                let pid = path.file_name().unwrap().to_str().unwrap();
                found.extend(Pid::from_raw(pid.parse().unwrap()));
            }
        }
        found
    }

    /// Nothing of the user runs any more, and no sandbox has a record.
    fn assert_gone(&self) {
        assert_eq!(self.processes(), [], "processes are left");
        let state = self.home.join(".local/state/berm/berm");
        let left: Vec<_> = fs::read_dir(state).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // What a failed test has left.
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn ready(fd: impl AsFd) -> bool {
    let limit = Timespec::try_from(SOON).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

fn code(mut child: Child) -> Option<i32> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    if !ready(&pidfd) {
        child.kill().unwrap();
        panic!("{} does not end", child.id());
    }
    child.wait().unwrap().code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails with exactly this code, and words that name all of it.
fn assert_refused(out: &Output, code: i32, words: &[&str]) {
    let said = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said:?}");
    }
}

#[test]
fn an_ordinary_user_runs_enters_sees_and_ends_a_sandbox() {
    let user = User::new();
    let run = user.background("mine");

    let state = user.json("state mine --json");
    assert_eq!(state["state"], "running");
    let isolation = &state["isolation"];
    assert_eq!(isolation["userns"], "rootless");
    let own = &isolation["ids"]["uids"];
    assert_eq!(own[0]["outside"], user.uid);
    assert_eq!(
        (&own[1]["outside"], &own[1]["count"]),
        (&user.first.into(), &LENT.into())
    );

    // The shell becomes it in its own time.
    let until = Instant::now() + SOON;
    let ps = loop {
        let ps = user.json("ps mine --json");
        if ps[0]["cmd"] == "sleep 1000" || Instant::now() > until {
            break ps;
        }
    };
    assert_eq!(ps[0]["cmd"], "sleep 1000");
    assert_eq!(ps[0]["pid"], 1);

    let script = "echo out; echo err >&2; id; cat /proc/sys/user/max_user_namespaces; exit 7";
    let exec = user.berm(&format!("exec mine -- sh -c '{script}'"));
    assert_eq!(exec.status.code(), Some(7));
    assert_eq!(text(&exec.stdout), "out\nuid=0 gid=0\n0\n");
    assert_eq!(text(&exec.stderr), "err\n");
    let other = user.berm("exec -u 5:6 mine -- id");
    assert_eq!(text(&other.stdout), "uid=5 gid=6\n");

    assert!(user.berm("kill mine KILL --all").status.success());
    assert_eq!(code(run), Some(137));
    user.assert_gone();
}

#[test]
fn what_an_ordinary_users_root_writes_is_the_users_and_what_others_write_has_lent_ids() {
    let user = User::new();
    let out = user.run(
        "",
        "touch /tmp/roots /tmp/others; chown 5:6 /tmp/others; stat -c %u:%g /tmp/others",
    );
    assert_eq!(text(&out.stdout), "5:6\n", "{}", text(&out.stderr));
    let owner = |name: &str| {
        let stat = fs::metadata(user.home.join("root/tmp").join(name)).unwrap();
        (stat.uid(), stat.gid())
    };
    assert_eq!(owner("roots"), (user.uid, user.uid));
    // 0 is the user itself, so 5 is the fifth that it was lent.
    assert_eq!(owner("others"), (user.first + 4, user.first + 5));
    user.assert_gone();
}

#[test]
fn a_read_only_volume_of_an_ordinary_user_cannot_be_written() {
    let user = User::new();
    let volume = user.home.join("volume");
    let option = format!("-v {}:/volume:ro", volume.display());
    let out = user.run(
        &option,
        "cat /volume/file; echo no > /volume/file || echo refused",
    );
    assert_eq!(
        text(&out.stdout),
        "of the host\nrefused\n",
        "{}",
        text(&out.stderr)
    );
    assert_eq!(
        fs::read_to_string(volume.join("file")).unwrap(),
        "of the host\n"
    );
    user.assert_gone();
}

#[test]
fn an_ordinary_user_mounts_a_directory_and_a_tmpfs_into_a_running_sandbox() {
    let user = User::new();
    let run = user.background("mine");
    let volume = user.home.join("volume");
    let words = format!("mount mine {} /data -o ro,nosuid", volume.display());
    let mounted = user.berm(&words);
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    let mounted = user.berm("mount mine tmpfs /t -t tmpfs -o mode=700");
    assert!(mounted.status.success(), "{}", text(&mounted.stderr));
    let script = "cat /data/file; echo no > /data/file || echo refused; busybox stat -c %a:%u /t";
    let seen = user.berm(&format!("exec mine -- sh -c '{script}'"));
    let inside = fs::read_to_string(volume.join("file")).unwrap();
    let said = format!("{inside}refused\n700:0\n");
    assert_eq!(text(&seen.stdout), said, "{}", text(&seen.stderr));
    assert!(user.berm("kill mine KILL --all").status.success());
    assert_eq!(code(run), Some(137));
    user.assert_gone();
}

#[test]
fn what_needs_root_is_refused_by_its_name() {
    let user = User::new();
    let limits = [
        ("--memory 64m", "linux.resources.memory.limit"),
        ("--pids 10", "linux.resources.pids.limit"),
    ];
    for (option, field) in limits {
        assert_refused(&user.run(option, "true"), 125, &[field, "without root"]);
    }
    let run = user.background("limited");
    let calls = [
        ("pause limited", "pausing a pod"),
        ("usage limited", "memory figures"),
        ("events --stats limited", "figures of a container"),
        ("kill limited TERM --all", "a signal to all processes"),
    ];
    for (words, what) in calls {
        assert_refused(&user.berm(words), 1, &[what, "without root"]);
    }
    assert!(user.berm("kill limited KILL").status.success());
    assert_eq!(code(run), Some(137));
    user.assert_gone();
}

#[test]
fn what_is_about_a_users_own_sandbox_works_without_root() {
    let user = User::new();
    let run = user.background("own");
    for words in ["list", "state own", "ps own", "explain own", "debug own"] {
        let out = user.berm(words);
        let (said, told) = (text(&out.stdout), text(&out.stderr));
        assert!(
            out.status.success() && said.contains("own"),
            "{words}: {said}{told}"
        );
    }
    let deleted = user.berm("delete --force own");
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    assert_eq!(code(run), Some(137));
    user.assert_gone();
}

#[test]
fn what_an_ordinary_user_can_and_cannot_do_is_told_by_berm_check() {
    let user = User::new();
    let found = user.json("check --json");
    let verdict = |name: &str| {
        let all = found.as_array().unwrap();
        let one = all.iter().find(|finding| finding["name"] == name);
        one.unwrap_or_else(|| panic!("no {name} in {found}"))["verdict"].clone()
    };
    assert_eq!(verdict("user namespaces"), "ok");
    assert_eq!(verdict("mount API"), "ok");
    assert_eq!(verdict("root"), "degraded");
    assert_refused(&User::poor().berm("check"), 1, &["/etc/subuid"]);
}

#[test]
fn an_ordinary_users_sandbox_has_a_terminal() {
    let user = User::new();
    let script =
        "script -qec \"berm run -t --rootfs root -- sh -c '[ -t 0 ] && echo terminal'\" /dev/null";
    let out = user.shell(script).output().unwrap();
    assert!(text(&out.stdout).contains("terminal"), "{out:?}");
    user.assert_gone();
}

#[test]
fn a_user_whom_the_host_lends_no_ids_is_told_the_file_and_the_way_out() {
    let user = User::poor();
    let words = ["/etc/subuid", &user.name, "usermod --add-subuids"];
    assert_refused(&user.run("", "true"), 125, &words);
    user.assert_gone();
}

#[test]
fn a_missing_newuidmap_is_named_with_its_package() {
    let user = User::new();
    let script = "exec ./berm run --rootfs root -- true";
    let out = user.shell_with("/nowhere", script).output().unwrap();
    assert_refused(&out, 125, &["newuidmap", "uidmap"]);
    user.assert_gone();
}

#[test]
fn a_refused_range_is_told_in_the_words_of_the_program_that_refused_it() {
    let user = User::new();
    user.program("newgidmap", "echo 'gid range not allowed' >&2; exit 1");
    let range = format!("1 {} {LENT}", user.first);
    let words = ["newgidmap", &range, "gid range not allowed"];
    assert_refused(&user.run("", "true"), 125, &words);
    user.assert_gone();
}

#[test]
fn a_sandbox_ends_with_a_killed_berm_run_and_its_name_is_free_again() {
    let user = User::new();
    let run = user.background("killed");
    let owner = user.json("state killed --json")["owner"].as_i64().unwrap();
    let owner = Pid::from_raw(i32::try_from(owner).unwrap()).unwrap();
    let init = user.json("state killed --json")["pid"].as_i64().unwrap();
    let init = Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    let init = pidfd_open(init, PidfdFlags::empty()).unwrap();
    kill_process(owner, Signal::KILL).unwrap();
    assert_ne!(code(run), Some(0));
    assert!(ready(&init), "PID 1 of the sandbox lives on");
    let again = user.run("--name killed", "echo again");
    assert_eq!(text(&again.stdout), "again\n", "{}", text(&again.stderr));
    user.assert_gone();
}

#[test]
fn an_ordinary_user_writes_to_a_layer_in_memory_and_is_told_why_there_is_none_in_a_file() {
    let user = User::new();
    let old = user.home.join("root/tmp/old");
    user.write("root/tmp/old", "");
    chown(&old, Some(user.uid), Some(user.uid)).unwrap();
    let script = "touch /new && chown 7:8 /new && stat -c %u:%g / /new && \
        busybox rm /tmp/old && test ! -e /tmp/old && echo removed";
    let out = user.run("--rootfs-upper memory,size=1m", script);
    assert_eq!(
        text(&out.stdout),
        "0:0\n7:8\nremoved\n",
        "{}",
        text(&out.stderr)
    );
    assert!(!user.home.join("root/new").exists() && old.exists());
    let out = user.run("--rootfs-upper self,size=4m", "exit 0");
    assert_refused(&out, 125, &["without root", "loop device", "\"memory\""]);
    user.assert_gone();
}
