//! What the help promises: a command for everything that a sandbox can be asked.

use std::path::Path;

use crate::world::{output, text};

/// Methods of gVisor's package `sandbox`, each with the command for it and a word of its help.
const METHODS: &[(&str, &str, &str)] = &[
    ("New", "run", "--rootfs"),
    ("StartRoot", "run", "--rootfs"),
    ("CreateSubcontainer", "run", "--pod"),
    ("StartSubcontainer", "run", "--pod"),
    ("DestroyContainer", "delete", "--force"),
    ("Execute", "exec", "--tty"),
    ("Wait", "wait", "exit code"),
    ("WaitPID", "wait", "--pid"),
    ("SignalContainer", "kill", "--all"),
    ("SignalProcess", "kill", "--foreground"),
    ("Pause", "pause", "counted"),
    ("Resume", "resume", "paused"),
    ("Processes", "ps", "HOSTPID"),
    ("Event", "events", "--stats"),
    ("ContainerRuntimeState", "state", "state of its containers"),
    ("Usage", "usage", "memory"),
    ("UsageFD", "usage", "--follow"),
    ("PortForward", "port-forward", "LOCAL:REMOTE"),
    ("CgroupsReadControlFile", "cgroup", "Reads"),
    ("CgroupsWriteControlFile", "cgroup", "writes"),
    ("IsRunning", "list", "STATE"),
    ("GetRegisteredMetrics", "metrics", "--registered"),
    ("ExportMetrics", "metrics", "--only"),
    ("metric server", "metric-server", "/healthz"),
    ("ProcfsDump", "debug", "--proc"),
    ("Stacks", "debug", "kernel stack"),
    ("ChangeLogging", "log-level", "--target"),
];

/// Methods of the control socket that no command calls, and why.
const WITHOUT: &[(&str, &str)] = &[
    (
        "Proc.Ps",
        "berm ps asks containerManager.Processes, and makes the table itself",
    ),
    (
        "containerManager.ContainerRuntimeState",
        "berm state asks berm.State, which knows more states",
    ),
    (
        "containerManager.StartRoot",
        "berm run starts its sandbox without a socket",
    ),
];

#[test]
fn every_method_of_a_sandbox_has_its_command() {
    let mut wrong = Vec::new();
    for (method, command, word) in METHODS {
        let out = output(&[command, "--help"]);
        let help = text(&out.stdout);
        if !out.status.success() || !help.contains(word) {
            wrong.push(format!("{method}: no {word:?} in berm {command} --help"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every source of the command line in one text.
fn sources(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let text = entries.map(|entry| match entry.path() {
        dir if dir.is_dir() => sources(&dir),
        file => std::fs::read_to_string(file).unwrap(),
    });
    text.collect()
}

#[test]
fn every_method_of_the_control_socket_is_called_by_a_command_or_says_why_not() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let table = include_str!("../../crates/sandbox/src/control.rs");
    // The rows of its table, but for what a later release brings.
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `"));
    let rows = rows.filter(|row| !row.contains("a later release"));
    let methods: Vec<&str> = rows
        .flat_map(|row| row.split(" | ").next().unwrap_or_default().split(", "))
        .map(|name| name.trim_matches('`'))
        .filter(|name| name.contains('.'))
        .collect();
    assert!(methods.len() > 20, "{methods:?}");
    let mut wrong = Vec::new();
    for method in &methods {
        let called = sources.contains(&format!("\"{method}\""));
        let excused = WITHOUT.iter().any(|(name, _)| name == method);
        if called == excused {
            wrong.push(*method);
        }
    }
    assert!(
        wrong.is_empty(),
        "neither called nor excused, or both: {wrong:?}"
    );
}
