//! The commands that ask the control socket one thing each.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::world::{SOON, World, berm, code, json, output, ready, text};

/// What a command that failed with 1 said.
fn refusal(args: &[&str]) -> String {
    let out = output(args);
    assert_eq!(out.status.code(), Some(1), "{args:?}");
    text(&out.stderr)
}

#[test]
fn pauses_are_counted_and_one_resume_too_many_is_an_error() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let status = || json(&["state", name, "--json"])["containers"][0]["status"].clone();
    for _ in 0..2 {
        assert_eq!(json(&["pause", name, "--json"])["state"], "paused");
    }
    assert_eq!(status(), "paused");
    assert_eq!(output(&["resume", name]).status.code(), Some(0));
    assert_eq!(status(), "paused");
    assert_eq!(output(&["resume", name]).status.code(), Some(0));
    assert_eq!(status(), "running");
    let said = refusal(&["resume", name]);
    assert!(said.contains("not paused"), "{said}");
    assert_eq!(world.end(run), 137);
}

#[test]
fn wait_prints_the_exit_code_of_a_container() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let mut waiting = berm(&["wait", &world.name]);
    let waiting = waiting.stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(
        output(&["kill", &world.name, "KILL"]).status.code(),
        Some(0)
    );
    assert_eq!(code(run), 137);
    let waited = waiting.wait_with_output().unwrap();
    match waited.status.success() {
        true => assert_eq!(text(&waited.stdout), "137\n"),
        // The sandbox was gone before it came to ask.
        false => assert_eq!(waited.status.code(), Some(3)),
    }
    world.assert_gone();
}

#[test]
fn usage_splits_the_memory_and_its_parts_make_the_total() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let used = json(&["usage", &world.name, "--json"]);
    let parts = used.as_object().unwrap().iter();
    let parts = parts.filter(|(key, _)| *key != "Total");
    let sum: u64 = parts.map(|(_, bytes)| bytes.as_u64().unwrap()).sum();
    assert!(sum > 0 && sum == used["Total"].as_u64().unwrap(), "{used}");
    let people = text(&output(&["usage", &world.name]).stdout);
    assert!(
        people.starts_with("MEMORY") && people.contains("\nTOTAL"),
        "{people}"
    );
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_cgroup_file_is_read_and_written_by_its_name() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let write = output(&["cgroup", name, "pids", "pids.max", "77"]);
    assert!(write.status.success(), "{}", text(&write.stderr));
    assert_eq!(
        text(&output(&["cgroup", name, "pids", "pids.max"]).stdout),
        "77\n"
    );
    let read = json(&["cgroup", name, "pids", "pids.max", "--json"]);
    assert_eq!(read["value"], "77");
    let said = refusal(&["cgroup", name, "pids", "../pids.max"]);
    assert!(said.contains("../pids.max"), "{said}");
    let said = refusal(&["cgroup", name, "pids", "cgroup.procs", "1"]);
    assert!(said.contains("cgroup.procs"), "{said}");
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_directory_and_a_tmpfs_are_mounted_into_a_running_container() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let dir = world.dir.join("volume");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "there\n").unwrap();
    // Relative to where the command is run.
    let mut mount = berm(&["mount", name, ".", "/data", "-o", "ro,nosuid", "--json"]);
    let told = mount.current_dir(&dir).output().unwrap();
    assert!(told.status.success(), "{}", text(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["destination"], "/data");
    let tmpfs = [
        "mount",
        name,
        "tmpfs",
        "/t",
        "-t",
        "tmpfs",
        "-o",
        "size=1m,mode=700",
    ];
    let tmpfs = output(&tmpfs);
    assert!(tmpfs.status.success(), "{}", text(&tmpfs.stderr));
    let script = "cat /data/file; echo x > /data/x || busybox stat -c %a /t";
    let seen = output(&["exec", name, "--", "sh", "-c", script]);
    assert_eq!(text(&seen.stdout), "there\n700\n", "{}", text(&seen.stderr));
    let missing = output(&["mount", name, "/no/such", "/data"]);
    assert_eq!(missing.status.code(), Some(3));
    let said = text(&missing.stderr);
    assert!(said.contains("/no/such"), "{said}");
    let said = refusal(&["mount", name, "/tmp", "data"]);
    assert!(said.contains("destination"), "{said}");
    assert_eq!(world.end(run), 137);
}

#[test]
fn debug_tells_states_stacks_and_what_proc_says() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    world.until_it_is("sleep 1000");
    let people = text(&output(&["debug", name]).stdout);
    assert!(
        people.starts_with(&format!("{name} running (pid ")),
        "{people}"
    );
    assert!(people.contains("sleep"), "{people}");
    // The process that runs the sandbox is at work for this call.
    let shim = format!("shim (host {}), open calls: ", run.id());
    assert!(
        people.contains(&shim) && people.contains(" control debug.Stacks"),
        "{people}"
    );
    let all = json(&["debug", name, "--json"]);
    assert_eq!(all["containers"][0]["status"], "running");
    let proc = json(&["debug", name, "--proc"]);
    let args = |process: &Value| process["args"] == serde_json::json!(["sleep", "1000"]);
    assert!(proc.as_array().unwrap().iter().any(args), "{proc}");
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_forwarded_port_leads_to_the_loopback_of_the_pod() {
    let world = World::new();
    let run = world.background("while :; do echo over there | nc -l -p 7000; done");
    let mut forward = berm(&["port-forward", &world.name, "0:7000", "--json"]);
    let mut forward = forward
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(forward.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address: Value = serde_json::from_str(&line).unwrap();
    let address = address["listen"].as_str().unwrap();
    let end_of_patience = Instant::now() + SOON;
    let mut said = String::new();
    // nc may not listen yet: the connection ends at once then.
    while said.is_empty() && Instant::now() < end_of_patience {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let _ = stream.read_to_string(&mut said);
    }
    assert_eq!(said, "over there\n");
    kill_process(Pid::from_child(&forward), Signal::INT).unwrap();
    assert_eq!(code(forward), 0);
    assert_eq!(world.end(run), 137);
}

#[test]
fn what_a_sandbox_cannot_do_is_said_by_name() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let said = refusal(&["metrics", name]);
    assert!(said.contains("metric"), "{said}");
    let said = refusal(&["log-level", name]);
    assert!(said.contains("neither a level nor a target"), "{said}");
    let none = output(&["log-level", name, "--target", "no-level"]);
    assert_eq!(none.status.code(), Some(2));
    for verb in ["pause", "resume", "wait", "usage", "debug", "metrics"] {
        assert_eq!(
            output(&[verb, "no-such-pod"]).status.code(),
            Some(3),
            "{verb}"
        );
    }
    assert_eq!(world.end(run), 137);
}

/// `berm events -f` with these arguments, and its lines.
fn follow(args: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let args = [&["events", "-f"], args].concat();
    let mut child = berm(&args).stdout(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// Reads on until a line is `wanted`.
fn until(out: &mut BufReader<ChildStdout>, wanted: impl Fn(&str) -> bool) -> String {
    let mut seen = String::new();
    loop {
        assert!(!out.buffer().is_empty() || ready(out.get_ref()), "{seen}");
        let mut line = String::new();
        assert_ne!(out.read_line(&mut line).unwrap(), 0, "{seen}");
        if wanted(&line) {
            return line;
        }
        seen += &line;
    }
}

#[test]
fn events_are_followed_as_json_until_the_sandbox_ends() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let (child, mut out) = follow(&["--json", name]);
    let is = |line: &str, kind: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["sandbox"], name);
        event["type"] == kind
    };
    let state = until(&mut out, |line| is(line, "state"));
    assert!(state.contains("\"status\":\"running\""), "{state}");
    let figures = until(&mut out, |line| is(line, "stats"));
    assert!(figures.contains("\"pids\":{\"current\":1"), "{figures}");
    assert!(output(&["pause", name]).status.success());
    until(&mut out, |line| is(line, "paused"));
    assert!(output(&["resume", name]).status.success());
    until(&mut out, |line| is(line, "resumed"));
    assert_eq!(world.end(run), 137);
    let exited = until(&mut out, |line| is(line, "exited"));
    assert!(exited.contains("\"exitStatus\":137"), "{exited}");
    assert_eq!(code(child), 0);
}

#[test]
fn events_of_all_sandboxes_tell_of_those_that_come_until_they_are_interrupted() {
    let world = World::new();
    let name = world.name.as_str();
    let (child, mut out) = follow(&["--interval", "1"]);
    let run = world.background("exec sleep 1000");
    let line = until(&mut out, |line| line.contains(name));
    assert_eq!(line.as_bytes()[2], b':', "a time comes first: {line}");
    until(&mut out, |line| {
        line.contains(name) && line.contains("  memory ")
    });
    assert_eq!(world.end(run), 137);
    until(&mut out, |line| {
        line.contains(name) && line.contains("exit code 137")
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(code(child), 0);
}

#[test]
fn events_end_when_nobody_reads_them_any_more() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let (child, mut out) = follow(&["--interval", "1", &world.name]);
    until(&mut out, |line| line.contains("is running"));
    drop(out);
    assert_eq!(code(child), 0);
    assert_eq!(world.end(run), 137);
}

#[test]
fn an_exec_is_waited_for_and_signalled_by_its_number_on_the_host() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let mut exec = berm(&[
        "exec",
        name,
        "--",
        "sh",
        "-c",
        "echo ready; exec sleep 2000",
    ]);
    let mut exec = exec.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(exec.stdout.take().unwrap());
    until(&mut out, |line| line == "ready\n");
    let pid = || {
        let all = json(&["ps", name, "--json"]);
        let of_it = |p: &&Value| p["cmd"] == "sleep 2000";
        all.as_array()
            .unwrap()
            .iter()
            .find(of_it)
            .map(|p| p["host_pid"].to_string())
    };
    // The shell has become it, in a moment.
    let pid = std::iter::repeat_with(pid).flatten().next().unwrap();
    let wait = berm(&["wait", name, "--pid", &pid])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = refusal(&["kill", name, "INT", "--foreground"]);
    assert!(said.contains("no TTY"), "{said}");
    let foreign = output(&["kill", name, "TERM", "--pid", &run.id().to_string()]);
    assert_ne!(foreign.status.code(), Some(0));
    assert!(
        output(&["kill", name, "TERM", "--pid", &pid])
            .status
            .success()
    );
    assert_eq!(code(exec), 128 + 15);
    let waited = wait.wait_with_output().unwrap();
    // Whoever waits first is told; the other that there is no such process any more.
    assert!(
        ["143\n", ""].contains(&&*text(&waited.stdout)),
        "{}",
        text(&waited.stdout)
    );
    assert_eq!(
        json(&["state", name, "--json"])["containers"][0]["status"],
        "running"
    );
    assert_eq!(world.end(run), 137);
}

#[test]
fn usage_is_followed_until_the_sandbox_ends() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let args = ["usage", "-f", "--interval", "1", "--json", &world.name];
    let mut child = berm(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..2 {
        let line = until(&mut out, |line| line.contains(&world.name));
        let seen: Value = serde_json::from_str(&line).unwrap();
        assert!(seen["bytes"].as_u64().unwrap() > 0, "{line}");
    }
    assert_eq!(world.end(run), 137);
    assert_eq!(code(child), 0);
}

#[test]
fn delete_ends_a_sandbox_only_if_it_is_told_to_and_removes_what_a_dead_shim_left() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let said = refusal(&["delete", &world.name]);
    assert!(said.contains("--force"), "{said}");
    assert!(world.is_listed());
    let record = std::path::Path::new("/run/berm/berm").join(&world.name);
    let mut record: Value =
        serde_json::from_slice(&std::fs::read(record.join("sandbox.json")).unwrap()).unwrap();
    let done = output(&["delete", "--force", &world.name]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    code(run);
    world.assert_gone();

    // As a shim that was killed leaves it; in a namespace of its own, where nobody sweeps.
    let namespace = std::path::Path::new("/run/berm").join(format!("of-{}", world.name));
    let dir = namespace.join(&world.name);
    std::fs::create_dir_all(&dir).unwrap();
    record["containerdNamespace"] = format!("of-{}", world.name).into();
    record["controlSocketPath"] = dir.join("control.sock").to_str().unwrap().into();
    std::fs::write(dir.join("sandbox.json"), record.to_string()).unwrap();
    let said = text(&output(&["usage", &world.name]).stderr);
    assert!(
        said.contains(&format!("berm delete {}", world.name)),
        "{said}"
    );
    let done = json(&["delete", &world.name, "--json"]);
    assert_eq!(done["deleted"], true);
    assert!(!dir.exists());
    std::fs::remove_dir(&namespace).unwrap();
    world.assert_gone();
    assert_eq!(output(&["delete", &world.name]).status.code(), Some(3));
}

#[test]
fn a_container_of_ones_own_runs_beside_those_of_a_pod_and_leaves_nothing() {
    let world = World::new();
    let name = world.name.as_str();
    let run = world.background("exec sleep 1000");
    let root = world.dir.to_str().unwrap();
    let beside = format!("{name}-beside");
    let args = [
        "run", "--pod", name, "--rootfs", root, "--name", &beside, "--",
    ];
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; exit 7";
    let script = format!("cd /bin; ln -sf busybox readlink; {script}");
    let out = output(&[&args[..], &["/bin/sh", "-c", &script]].concat());
    assert_eq!(out.status.code(), Some(7), "{}", text(&out.stderr));
    let pid = json(&["state", name, "--json"])["containers"][0]["pid"].to_string();
    let ns = |kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let told = text(&out.stdout);
    let told: Vec<&str> = told.lines().collect();
    assert_eq!(told[0], ns("net").to_str().unwrap(), "the pod's network");
    assert_ne!(told[1], ns("pid").to_str().unwrap(), "processes of its own");

    // It is seen like any other, and a signal to berm goes on to it.
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let mut child = berm(&[&args[..], &["/bin/sh", "-c", script]].concat());
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    until(&mut out, |line| line == "ready\n");
    let of_it = json(&["ps", &beside, "--json"]);
    assert_eq!(of_it[0]["pid"], 1, "{of_it}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(code(child), 9);
    assert_eq!(output(&["ps", &beside]).status.code(), Some(3));
    let containers = json(&["state", name, "--json"])["containers"].clone();
    assert_eq!(containers.as_array().unwrap().len(), 1, "{containers}");
    assert!(
        !std::path::Path::new("/sys/fs/cgroup/pids/berm")
            .join(&beside)
            .exists()
    );
    assert_eq!(world.end(run), 137);
}
