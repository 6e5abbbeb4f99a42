//! What compiling and installing costs, beside libseccomp. Run it in release:
//! `cargo test --release -p berm-seccomp --test measure -- --ignored --nocapture`
#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "modules that several tests share"
)]

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/reference.rs"]
mod reference;

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use berm_seccomp::{Arch, Insn, compile, fingerprint};
use berm_sys::process::install_seccomp;

/// The median of 200 runs, and the least.
fn median(mut run: impl FnMut() -> Duration) -> String {
    let mut all: Vec<_> = (0..200).map(|_| run()).collect();
    all.sort();
    format!("{:?}, at least {:?}", all[all.len() / 2], all[0])
}

fn timed<T>(run: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(run());
    start.elapsed()
}

/// A thread of its own installs it: filters are per thread, and pile up.
fn install(program: &[Insn]) -> Duration {
    let bytes: Vec<_> = program.iter().map(|insn| insn.to_bytes()).collect();
    let thread = thread::spawn(move || timed(|| install_seccomp(&bytes, 0).unwrap()));
    thread.join().unwrap()
}

#[test]
#[ignore = "a measurement"]
fn cost_of_containerds_default_profile() {
    let profile = fixture::containerd_default();
    let native = Arch::native().unwrap();
    let ours = compile(&profile, native).unwrap();
    let theirs = reference::libseccomp(&profile, native).unwrap();
    for (name, program) in [("berm", &ours), ("libseccomp", &theirs)] {
        println!(
            "{name}: {} instructions, {:016x}",
            program.len(),
            fingerprint(program)
        );
        println!("{name}: install {}", median(|| install(program)));
    }
    println!(
        "berm: compile {}",
        median(|| timed(|| compile(&profile, native)))
    );
    let compile = || timed(|| reference::libseccomp(&profile, native));
    println!("libseccomp: compile {}", median(compile));
}
