//! What `berm run` and `berm exec` are given beyond a command.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::world::{
    SOON, World, berm, code, copy_program, dead_socket, expect, json, output, ready, text,
};

#[test]
fn a_sandbox_dies_with_a_berm_run_that_is_killed_and_the_next_one_sweeps_what_is_left() {
    let world = World::new();
    let mut run = world.background("exec sleep 1000");
    let state = json(&["state", &world.name, "--json"]);
    let pid = |value: &serde_json::Value| {
        let pid = Pid::from_raw(value.as_i64().unwrap().try_into().unwrap()).unwrap();
        pidfd_open(pid, PidfdFlags::empty()).unwrap()
    };
    let (init, sleep) = (pid(&state["pid"]), pid(&state["containers"][0]["pid"]));
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(ready(&init) && ready(&sleep), "both have ended");
    let next = World::new();
    assert!(next.run(&[], "exit 0").status().unwrap().success());
    next.assert_gone();
    world.assert_gone();
}

/// A shell with more open files than its streams that becomes `command`.
fn with_files(redirections: &str, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec \"$@\" {redirections}"), "bash"]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null());
    shell
}

#[test]
fn run_and_exec_pass_files_of_the_caller_under_the_numbers_that_are_asked_for() {
    let world = World::new();
    let file = world.dir.join("srv/file");
    std::fs::write(&file, "of the caller\n").unwrap();
    let redirections = format!("7<{0} 8>>{0}", file.display());
    let script = "cat <&9; echo written >&5; ls /proc/$$/fd; true";
    let run = world.run(&["--pass-fd", "7:9", "--pass-fd", "8:5"], script);
    let out = with_files(&redirections, &run).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "of the caller\n0\n1\n2\n5\n9\n");
    world.assert_gone();

    let run = world.background("exec sleep 1000");
    let args = ["exec", "--pass-fd", "7:9", "--pass-fd", "8:5", &world.name];
    let mut exec = berm(&args);
    exec.args(["--", "sh", "-c", script]);
    let out = with_files(&redirections, &exec).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    let want = "of the caller\nwritten\n0\n1\n2\n5\n9\n";
    assert_eq!(text(&out.stdout), want);
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_file_that_cannot_be_passed_is_refused_by_its_number() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let name = world.name.as_str();
    let root = world.dir.to_str().unwrap();
    for (pass, code, want) in [
        ("99:5", 125, "berm has no open file of number 99"),
        ("0:2", 125, "pass_files 2: is a standard stream"),
        ("5", 2, "not HOST:GUEST"),
        ("0:x", 2, "\"x\" is no number of a file"),
    ] {
        for args in [
            ["exec", "--pass-fd", pass, name, "--", "true"].as_slice(),
            &["run", "--pass-fd", pass, "--rootfs", root, "--", "true"],
        ] {
            let out = output(args);
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
            // A stream of an exec is one of its three, by the rules of the control socket.
            let twice = said.contains("GuestFDs: 2 is there twice");
            assert!(said.contains(want) || twice, "{args:?}: {said}");
        }
    }
    assert_eq!(world.end(run), 137);
}

#[test]
fn run_and_exec_run_a_program_of_the_host_under_the_name_that_the_command_gives_it() {
    let world = World::new();
    let own = std::env::temp_dir().join(format!("{}-program", world.name));
    copy_program("/bin/busybox", &own);
    let program = own.to_str().unwrap();
    let options = ["--exec-file", program];
    let out = world.run(&options, "echo $0; exit 4").output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "/bin/sh\n");
    world.assert_gone();

    let run = world.background("exec sleep 1000");
    let name = world.name.as_str();
    let mut args = vec!["exec", "--exec-file", program, name, "--"];
    args.extend(["/none/cat", "/proc/self/cmdline"]);
    let out = output(&args);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(text(&out.stdout), "/none/cat\0/proc/self/cmdline\0");
    std::fs::write(&own, "#!/bin/sh\n").unwrap();
    for (file, want) in [(program, "is a script"), ("/no/such", "/no/such")] {
        let out = output(&["exec", "--exec-file", file, name, "--", "sh"]);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(125), "{said}");
        assert!(said.contains(want), "{said}");
    }
    std::fs::remove_file(&own).unwrap();
    assert_eq!(world.end(run), 137);
}

/// The terminal that somebody sends to the socket.
fn terminal_of(listener: &UnixListener) -> File {
    assert!(ready(listener), "somebody connects");
    let (stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(&stream, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    assert_eq!(&bytes[..got.bytes], b"/dev/ptmx");
    File::from(fd.unwrap())
}

#[test]
fn the_terminal_of_run_and_exec_goes_to_the_console_socket() {
    let world = World::new();
    let path = world.dir.join("console.sock");
    let socket = path.to_str().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let script = "echo go; read line; echo got $line; exit 6";
    let to_socket = ["-t", "--console-socket", socket];
    let run = world.run(&to_socket, script).spawn().unwrap();
    let mut master = terminal_of(&listener);
    expect(&mut master, "go");
    let exec = ["exec", "-t", "--console-socket", socket, &world.name];
    let mut exec = berm(&exec);
    let exec = exec.args(["--", "sh", "-c", script]).spawn().unwrap();
    let mut second = terminal_of(&listener);
    second.write_all(b"two\r").unwrap();
    expect(&mut second, "got two");
    assert_eq!(code(exec), 6);
    master.write_all(b"one\r").unwrap();
    expect(&mut master, "got one");
    assert_eq!(code(run), 6);
    world.assert_gone();
}

#[test]
fn a_console_socket_that_cannot_be_used_is_refused_and_nothing_runs() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let name = world.name.as_str();
    let root = world.dir.to_str().unwrap();
    let deaf = world.dir.join("deaf.sock");
    dead_socket(&deaf);
    let deaf = deaf.to_str().unwrap();
    for (options, code, want) in [
        (&["--console-socket", deaf][..], 2, "--tty"),
        (&["-t", "--console-socket", deaf], 125, "Connection refused"),
        (&["-t", "--console-socket", "/no/such"], 125, "No such file"),
    ] {
        for mut args in [vec!["exec", name], vec!["run", "--rootfs", root]] {
            args.extend(options);
            args.extend(["--", "touch", "/srv/ran"]);
            let out = output(&args);
            let said = text(&out.stderr);
            assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
            assert!(said.contains(want), "{args:?}: {said}");
        }
    }
    assert!(!world.dir.join("srv/ran").exists());
    assert_eq!(world.end(run), 137);
}

#[test]
fn why_a_command_cannot_run_is_added_to_the_user_log() {
    let world = World::new();
    let path = world.dir.join("user.log");
    let log = path.to_str().unwrap();
    std::fs::write(&path, "before\n").unwrap();
    let root = world.dir.to_str().unwrap();
    let name = world.name.as_str();
    let nope = [
        "run",
        "--user-log",
        log,
        "--rootfs",
        root,
        "--name",
        name,
        "--",
        "nope",
    ];
    assert_eq!(output(&nope).status.code(), Some(125));
    let script = "echo ready; exec sleep 1000";
    let mut run = world.run(&["--user-log", log], script);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = File::from(OwnedFd::from(run.stdout.take().unwrap()));
    expect(&mut out, "ready");
    let exec = output(&["exec", name, "--", "neither"]);
    assert_eq!(exec.status.code(), Some(125));
    assert_eq!(world.end(run), 137);
    let told = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "before"), "{told}");
    let want = format!("create container {name:?} failed: exec: \"nope\": executable file not");
    assert!(lines[1].contains(&want), "{told}");
    let want = format!("exec in container {name:?} failed: exec: \"neither\": executable file");
    assert!(lines[2].contains(&want), "{told}");
    let bad = [
        "run",
        "--user-log",
        "/no/such/log",
        "--rootfs",
        root,
        "--",
        "sh",
    ];
    let out = output(&bad);
    assert_eq!(out.status.code(), Some(125));
    assert!(text(&out.stderr).contains("/no/such/log"));
}

#[test]
fn what_run_writes_to_its_root_goes_where_it_is_told_and_explain_says_so() {
    for medium in ["memory,size=1m", "self,size=4m"] {
        let world = World::new();
        let options = ["--rootfs-upper", medium];
        let out = world.run(&options, "echo x > /new && cat /new").output();
        let out = out.unwrap();
        assert_eq!(text(&out.stdout), "x\n", "{}", text(&out.stderr));
        assert!(!world.dir.join("new").exists());
        world.assert_gone();
    }
    let world = World::new();
    let dir = world.dir.join("srv").display().to_string();
    let medium = format!("dir={dir},size=4m");
    let script = "echo ready; exec sleep 1000";
    let mut run = world.run(&["--rootfs-upper", &medium], script);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = File::from(OwnedFd::from(run.stdout.take().unwrap()));
    expect(&mut out, "ready");
    let explained = text(&output(&["explain", &world.name]).stdout);
    let want = format!("root writes to dir={dir},size=4194304\n");
    assert!(explained.contains(&want), "{explained}");
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_place_for_writes_that_is_none_is_refused_before_anything_is_made() {
    let world = World::new();
    for (medium, want) in [
        ("disk", "not one of none, memory, self, dir=/PATH"),
        ("memory,size=0", "size: not a number above zero"),
        ("none,size=1m", "\"none\" has no layer"),
    ] {
        let out = world.run(&["--rootfs-upper", medium], "exit 0").output();
        let out = out.unwrap();
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(want), "{}", text(&out.stderr));
    }
    world.assert_gone();
}

/// The files below `dir` that loop devices show.
fn shown_files(dir: &std::path::Path) -> Vec<String> {
    let all = std::fs::read_dir("/sys/block").unwrap().flatten();
    let file = |entry: std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()
    };
    let below = |file: &String| std::path::Path::new(file).starts_with(dir);
    all.filter_map(file).filter(below).collect()
}

#[test]
fn a_killed_run_leaves_no_file_and_no_loop_device_of_its_layer() {
    let world = World::new();
    let script = "echo ready; exec sleep 1000";
    let mut run = world.run(&["--rootfs-upper", "self,size=4m"], script);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = File::from(OwnedFd::from(run.stdout.take().unwrap()));
    expect(&mut out, "ready");
    assert_eq!(shown_files(&world.dir).len(), 1);
    run.kill().unwrap();
    run.wait().unwrap();
    // The kernel frees it with the last mount namespace, in its own time.
    let until = std::time::Instant::now() + SOON;
    while !shown_files(&world.dir).is_empty() {
        assert!(
            std::time::Instant::now() < until,
            "{:?}",
            shown_files(&world.dir)
        );
        std::thread::yield_now();
    }
    let next = World::new();
    assert!(next.run(&[], "exit 0").status().unwrap().success());
    world.assert_gone();
}
