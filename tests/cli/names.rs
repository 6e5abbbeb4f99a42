//! The names by which a sandbox is found.

use serde_json::{Value, json};

use crate::world::{World, code, output, text};

/// A command line for each command that takes a name, `NAME` in its place.
const COMMANDS: &[&[&str]] = &[
    &["state", "NAME"],
    &["ps", "NAME"],
    &["exec", "NAME", "--", "/bin/echo"],
    &["explain", "NAME"],
    &["events", "--stats", "NAME"],
    &["usage", "NAME"],
    &["kill", "NAME", "CONT"],
    &["pause", "NAME"],
    &["resume", "NAME"],
    &["cgroup", "NAME", "pids", "pids.max"],
    &["debug", "NAME"],
    &["log-level", "NAME", "info"],
];

/// Refused by what they are about, not by the name: with 1.
const REFUSED: &[&[&str]] = &[&["metrics", "NAME"], &["delete", "NAME"]];

/// Gives a sandbox the name of a pod, in its record: what looks for names reads no more.
fn name_pod(world: &World, namespace: &str, name: &str) {
    let dir = std::path::Path::new("/run/berm/berm").join(&world.name);
    let path = dir.join("sandbox.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["namespace"] = json!(namespace);
    record["podName"] = json!(name);
    let new = dir.join("sandbox.new");
    std::fs::write(&new, record.to_string()).unwrap();
    std::fs::rename(&new, &path).unwrap();
}

/// Runs every command on a name; gives those that did not find it.
fn not_found(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (commands, want) in [(COMMANDS, &[0, 1][..1]), (REFUSED, &[1][..])] {
        for command in commands {
            let args: Vec<_> = command
                .iter()
                .map(|arg| arg.replace("NAME", name))
                .collect();
            let out = output(&args.iter().map(String::as_str).collect::<Vec<_>>());
            let status = out.status.code().unwrap();
            // Nothing has set up a log whose level could change.
            let no_log = command[0] == "log-level" && status == 1;
            if !want.contains(&status) && !no_log {
                wrong.push(format!("{args:?}: {status}, {}", text(&out.stderr)));
            }
        }
    }
    wrong
}

#[test]
fn every_command_takes_an_id_the_beginning_of_one_and_a_pods_name_with_or_without_its_namespace() {
    let mut world = World::new();
    world.name += "-named";
    let run = world.background("exec sleep 1000");
    let pod = format!("web-{}", world.name);
    name_pod(&world, "shop", &pod);
    let beginning = world.name.trim_end_matches("med");
    let mut wrong = Vec::new();
    for name in [world.name.as_str(), beginning, &pod, &format!("shop/{pod}")] {
        wrong.extend(not_found(name));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A pod's name is given whole, and with its own namespace.
    for name in [&pod[..pod.len() - 1], &format!("shopping/{pod}")] {
        assert_eq!(output(&["state", name]).status.code(), Some(3), "{name}");
    }
    assert_eq!(world.end(run), 137);
}

#[test]
fn a_name_of_several_is_refused_with_those_that_it_fits() {
    let worlds = [World::new(), World::new()];
    let runs: Vec<_> = worlds
        .iter()
        .map(|w| w.background("exec sleep 1000"))
        .collect();
    let pod = format!("twin-{}", worlds[0].name);
    for (world, namespace) in worlds.iter().zip(["shop", "stage"]) {
        name_pod(world, namespace, &pod);
    }
    for command in COMMANDS.iter().chain(REFUSED) {
        let args: Vec<_> = command
            .iter()
            .map(|arg| arg.replace("NAME", &pod))
            .collect();
        let out = output(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let said = text(&out.stderr);
        let code = if command[0] == "exec" { 125 } else { 3 };
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains("is ambiguous; candidates:"), "{said}");
        for (world, namespace) in worlds.iter().zip(["shop", "stage"]) {
            let line = format!("{} (pod {namespace}/{pod})", world.name);
            assert!(said.contains(&line), "{line:?} in {said}");
        }
    }
    // The namespace tells them apart.
    let one = output(&["ps", &format!("stage/{pod}")]);
    assert!(
        text(&one.stdout).contains(&worlds[1].name),
        "{}",
        text(&one.stdout)
    );
    // What the beginnings of ids fit is told as well.
    let common = format!("cli-test-{}-", std::process::id());
    let said = text(&output(&["state", &common]).stderr);
    for world in &worlds {
        assert!(said.contains(&world.name), "{said}");
    }
    for (world, run) in worlds.iter().zip(runs) {
        assert!(
            output(&["kill", &world.name, "KILL", "--all"])
                .status
                .success()
        );
        assert_eq!(code(run), 137);
        world.assert_gone();
    }
}
