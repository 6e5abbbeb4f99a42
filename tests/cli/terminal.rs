//! The line of state on a terminal, and its absence elsewhere.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::world::{World, berm, code, expect, output, text};

const ERASE: &str = "\r\x1b[K";

/// Runs a command with a terminal as its stderr: the other side of that.
fn on_terminal(command: &mut Command) -> (Child, File) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave: OwnedFd = ioctl_tiocgptpeer(&master, flags).unwrap();
    let child = command
        .stdout(Stdio::piped())
        .stderr(slave)
        .spawn()
        .unwrap();
    // The child's end alone keeps it open.
    command.stderr(Stdio::null());
    (child, File::from(master))
}

/// What comes until nobody has the terminal open.
fn rest(mut master: File) -> String {
    let mut bytes = Vec::new();
    // EIO is the end.
    let _ = master.read_to_end(&mut bytes);
    text(&bytes)
}

fn stdout(child: &mut Child) -> String {
    let mut said = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    said
}

#[test]
fn wait_shows_a_line_on_a_terminal_and_erases_it_at_the_end() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let (mut wait, mut master) = on_terminal(&mut berm(&["wait", &world.name]));
    expect(&mut master, &format!("waiting for {}: ", world.name));
    assert!(output(&["kill", &world.name, "KILL"]).status.success());
    assert_eq!(code(run), 137);
    assert!(rest(master).ends_with(ERASE));
    assert_eq!(stdout(&mut wait), "137\n");
    assert_eq!(code(wait), 0);
    world.assert_gone();
}

#[test]
fn wait_that_is_interrupted_erases_its_line_and_says_by_what() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let (wait, mut master) = on_terminal(&mut berm(&["wait", &world.name]));
    expect(&mut master, "waiting for ");
    kill_process(Pid::from_child(&wait), Signal::INT).unwrap();
    assert_eq!(code(wait), 128 + 2);
    let said = rest(master);
    assert!(
        said.contains(&format!("{ERASE}berm: interrupted by signal 2")),
        "{said:?}"
    );
    assert_eq!(world.end(run), 137);
}

#[test]
fn run_shows_what_it_prepares_and_leaves_the_terminal_to_the_command() {
    let world = World::new();
    let (mut run, master) = on_terminal(&mut world.run(&[], "echo over there; echo to you >&2"));
    assert_eq!(stdout(&mut run), "over there\n");
    assert_eq!(code(run), 0);
    let said = rest(master);
    let preparing = format!("{ERASE}preparing sandbox {}{ERASE}", world.name);
    assert!(said.starts_with(&preparing), "{said:?}");
    assert!(said.ends_with("to you\r\n"), "{said:?}");
    world.assert_gone();
}

#[test]
fn port_forward_counts_its_connections_on_a_terminal() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let (mut forward, mut master) =
        on_terminal(&mut berm(&["port-forward", &world.name, "0:7000"]));
    expect(&mut master, "connections: 0 open, 0 in all");
    let mut line = String::new();
    let mut out = BufReader::new(forward.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let address = line.split_whitespace().next().unwrap();
    // Nobody listens in the pod: it is told, and the line comes back below.
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(b"x");
    expect(&mut master, "connections: 0 open, 1 in all");
    kill_process(Pid::from_child(&forward), Signal::INT).unwrap();
    assert_eq!(code(forward), 0);
    assert!(rest(master).ends_with(ERASE));
    assert_eq!(world.end(run), 137);
}

#[test]
fn nothing_is_shown_in_a_pipe_nor_with_json() {
    let world = World::new();
    let run = world.background("exec sleep 1000");
    let mut quiet = berm(&["wait", &world.name]);
    let quiet = quiet
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut json, master) = on_terminal(&mut berm(&["wait", "--json", &world.name]));
    assert_eq!(world.end(run), 137);
    let out = quiet.wait_with_output().unwrap();
    let ended_before = |said: &str| said.contains("no sandbox") || said.contains("Closed");
    let said = text(&out.stderr);
    assert!(said.is_empty() || ended_before(&said), "{said:?}");
    let _ = stdout(&mut json);
    let _ = code(json);
    let said = rest(master);
    assert!(!said.contains(ERASE), "{said:?}");
}
