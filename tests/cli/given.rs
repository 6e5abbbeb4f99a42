//! What `berm run` and `berm exec` are given beyond a command.

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::world::{World, json, ready};

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
