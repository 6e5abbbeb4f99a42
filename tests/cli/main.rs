//! `berm` from its command line, on a real kernel. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test fails by panicking.

mod given;
mod help;
mod names;
mod terminal;
mod verbs;
mod world;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use serde_json::Value;

use crate::world::{World, berm, code, expect, json, output, text};

#[test]
fn a_sandbox_is_seen_entered_and_ended_by_its_name() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    world.until_it_is("sleep 1000");
    assert!(world.is_listed());

    let state = json(&["state", name, "--json"]);
    assert_eq!(state["state"], "running");
    assert_eq!(state["containers"][0]["status"], "running");
    assert_eq!(state["owner"], run.id());
    assert_eq!(state["isolation"]["userns"], "auto");

    let ps = json(&["ps", name, "--json"]);
    assert_eq!(ps[0]["cmd"], "sleep 1000");
    assert_eq!(
        (&ps[0]["pid"], &ps[0]["uid"]),
        (&Value::from(1), &Value::from(0))
    );
    assert_eq!(ps[0]["host_pid"], state["containers"][0]["pid"]);
    assert_eq!(ps[0]["container"], name);

    let out = output(&[
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "echo $WHO; pwd; id; echo no >&2; exit 7",
    ]);
    assert_eq!(out.status.code(), Some(7));
    assert_eq!(text(&out.stdout), "me\n/srv\nuid=0 gid=0\n");
    assert_eq!(text(&out.stderr), "no\n");
    let out = output(&["exec", "-u", "5:6", "--cwd", "/", name, "--", "id"]);
    assert_eq!(text(&out.stdout), "uid=5 gid=6\n");

    assert_eq!(output(&["kill", name, "KILL"]).status.code(), Some(0));
    assert_eq!(code(run), 128 + 9);
    world.assert_gone();
}

#[test]
fn an_execs_streams_are_the_callers_and_its_end_by_a_signal_is_told() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let mut cat = berm(&["exec", &world.name, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = File::from(OwnedFd::from(cat.stdout.take().unwrap()));
    cat.stdin
        .take()
        .unwrap()
        .write_all(b"through the socket\n")
        .unwrap();
    expect(&mut out, "through the socket\n");
    assert_eq!(code(cat), 0);

    let mut sleep = berm(&[
        "exec",
        &world.name,
        "--",
        "sh",
        "-c",
        "echo ready; exec sleep 1000",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    expect(
        &mut File::from(OwnedFd::from(sleep.stdout.take().unwrap())),
        "ready",
    );
    kill_process(Pid::from_child(&sleep), Signal::TERM).unwrap();
    assert_eq!(code(sleep), 128 + 15, "the signal went on to the command");

    let last = berm(&["exec", &world.name, "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    assert_eq!(
        output(&["kill", "--all", &world.name, "9"]).status.code(),
        Some(0)
    );
    let ended = code(last);
    assert!([125, 137].contains(&ended), "{ended}");
    assert_eq!(code(run), 137);
    world.assert_gone();
}

#[test]
fn a_second_signal_ends_a_command_that_ignores_the_first() {
    let world = World::new();
    let run = world.background("trap 'echo no' TERM; while true; do sleep 1; done");
    let pid = Pid::from_child(&run);
    kill_process(pid, Signal::TERM).unwrap();
    // It is still there and answers: the first one was not the end.
    assert_eq!(json(&["state", &world.name, "--json"])["state"], "running");
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(code(run), 137);
    world.assert_gone();
}

#[test]
fn limits_and_volumes_are_in_force() {
    let world = World::new();
    let shared = world.dir.join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "from the host\n").unwrap();
    let volume = format!("{}:/mnt:ro", shared.display());
    let options = ["--memory", "32M", "--pids", "9", "-v", &volume];
    let script = "cat /mnt/file; touch /mnt/new 2>/dev/null && echo written; \
                  cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; exit 3";
    let out = world.run(&options, script).output().unwrap();
    assert_eq!(
        text(&out.stdout),
        "from the host\n9\n",
        "{}",
        text(&out.stderr)
    );
    assert_eq!(out.status.code(), Some(3));
    world.assert_gone();
}

#[test]
fn a_terminal_is_connected_with_its_size() {
    let world = World::new();
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let size = rustix::termios::Winsize {
        ws_row: 33,
        ws_col: 77,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    let end = || Stdio::from(slave.try_clone().unwrap());
    let mut command = world.run(&["-t"], "echo go; read line; stty size; exit 6");
    let run = command
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .unwrap();
    drop((command, slave));
    assert!(
        !rustix::fs::fcntl_getfl(&master)
            .unwrap()
            .contains(OFlags::NONBLOCK)
    );
    let mut master = File::from(master);
    expect(&mut master, "go");
    master.write_all(b"\r").unwrap();
    expect(&mut master, "33 77");
    assert_eq!(code(run), 6);
    world.assert_gone();
}

#[test]
fn errors_have_a_text_and_the_code_that_the_help_promises() {
    let world = World::new();
    let root = world.dir.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["state", "no-such-sandbox"],
            3,
            "berm: \"no-such-sandbox\": no sandbox",
        ),
        (&["ps", "no-such-sandbox"], 3, "berm: "),
        (&["kill", "no-such-sandbox"], 3, "berm: "),
        (&["exec", "no-such-sandbox", "--", "true"], 125, "berm: "),
        (&["kill", "x", "NOPE"], 2, "no signal has that name"),
        (
            &["run", "--rootfs", root, "--", "nope"],
            125,
            "berm: exec: \"nope\": executable file not found in $PATH",
        ),
        (
            &["run", "--rootfs", "/no/such/dir", "--", "sh"],
            125,
            "/no/such/dir",
        ),
        (
            &["run", "-t", "--rootfs", root, "--", "sh"],
            125,
            "must be a terminal",
        ),
        (
            &["run", "--memory", "lots", "--rootfs", root, "--", "sh"],
            2,
            "K, M or G",
        ),
    ];
    let mut wrong = Vec::new();
    for (args, code, want) in cases {
        let out = output(args);
        let err = text(&out.stderr);
        if out.status.code() != Some(*code) || !err.contains(want) {
            wrong.push(format!("{args:?}: {:?} {err}", out.status.code()));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn every_command_is_completed_by_every_shell_and_bash_can_read_its_script() {
    let help = text(&output(&["help"]).stdout);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<_> = commands
        .map_while(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 9, "{help}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = text(&output(&["completion", shell]).stdout);
        let missing: Vec<_> = commands.iter().filter(|c| !script.contains(**c)).collect();
        assert!(missing.is_empty(), "{shell}: {missing:?}");
    }
    let mut bash = Command::new("bash");
    bash.args(["-c", "eval \"$1\" && complete -p berm", "bash"]);
    bash.arg(text(&output(&["completion", "bash"]).stdout));
    let read = bash.output().unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    assert!(text(&read.stdout).contains("-F _berm berm"));
}

#[test]
fn check_says_that_this_host_can_run_sandboxes() {
    let all = json(&["check", "--json"]);
    let all = all.as_array().unwrap();
    assert!(all.len() > 10);
    for finding in all {
        assert_ne!(finding["verdict"], "MISSING", "{finding}");
    }
    let people = text(&output(&["check"]).stdout);
    assert!(people.starts_with("PROBE"), "{people}");
}

#[test]
fn explain_tells_what_the_kernel_enforces() {
    let world = World::new();
    let child = world.background("sleep 1000");
    let all = json(&["explain", "--json", &world.name]);
    let explained = &all["explained"];
    assert_eq!(explained["boundary"], true);
    let container = &explained["containers"][0];
    let in_force = &container["inForce"];
    let pid = container["record"]["init"]["pid"].as_i64().unwrap();
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let outside: u64 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(in_force["credentials"]["hostUid"], outside);
    assert_eq!(in_force["credentials"]["uid"], 0);
    let of = |name: &str| {
        let all = in_force["namespaces"].as_array().unwrap();
        all.iter().find(|n| n["name"] == name).unwrap()["of"].clone()
    };
    assert_eq!((of("mnt"), of("user")), ("own".into(), "pod".into()));
    assert_eq!(of("time"), "host");
    let mounts = in_force["mounts"].as_array().unwrap();
    let mount = |target: &str| mounts.iter().find(|m| m["target"] == target).unwrap();
    assert_eq!(
        (&mount("/")["locked"], &mount("/")["idmapped"]),
        (&true.into(), &true.into())
    );
    assert_eq!(mount("/proc")["locked"], false);
    assert_eq!(container["differs"], serde_json::json!([]));
    let steps = container["record"]["steps"].as_array().unwrap();
    let at = |name: &str| steps.iter().position(|step| step == name).unwrap();
    assert!(at("LockMounts") < at("Gate"), "{steps:?}");
    let people = text(&output(&["explain", &world.name]).stdout);
    for line in [
        "boundary       user namespace (auto)",
        "\nMOUNT ",
        " on the host\n",
        "\nseccomp ",
    ] {
        assert!(people.contains(line), "{line:?} in {people}");
    }
    assert_eq!(world.end(child), 137);
}

#[test]
fn explain_tells_what_was_refused_and_why() {
    let world = World::new();
    let file = world.dir.join("etc/file");
    std::fs::write(&file, "x").unwrap();
    let root = file.to_str().unwrap();
    let args = [
        "run",
        "--rootfs",
        root,
        "--name",
        &world.name,
        "--",
        "/bin/sh",
    ];
    let refused = output(&args);
    assert_eq!(refused.status.code(), Some(125));
    let said = text(&refused.stderr);
    let all = json(&["explain", "--json", &world.name]);
    assert_eq!(all["explained"], Value::Null);
    let error = all["refused"][0]["error"].as_str().unwrap();
    assert!(said.contains(error), "{error:?} in {said:?}");
    let people = text(&output(&["explain", &world.name]).stdout);
    assert!(people.contains(error), "{people}");
    assert_eq!(
        output(&["explain", "none-of-this-name"]).status.code(),
        Some(3)
    );
    world.assert_gone();
}

#[test]
fn events_prints_the_figures_of_a_container() {
    let world = World::new();
    let child = world.background("sleep 1000");
    let out = output(&["events", "--stats", &world.name]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = text(&out.stdout);
    assert_eq!(out.lines().count(), 1, "{out}");
    let event: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&event["type"], &event["id"]),
        (&"stats".into(), &world.name.as_str().into())
    );
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(event["data"]["pids"]["current"].as_u64().unwrap() >= 1);
    assert_eq!(world.end(child), 137);
}
