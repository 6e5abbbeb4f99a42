//! What each call costs; prints medians. Run with `--ignored --nocapture measure`, best with
//! `--release` and nothing else.

use std::time::Instant;

use berm_cgroup::{Cgroup, Cpu, DeviceRule, Host, Memory, Resources};

use super::child::Child;
use super::{Scratch, path, until};

const ROUNDS: usize = 200;

fn median(name: &str, mut times: Vec<u128>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{name:24} {:>6} us   p90 {:>6} us",
        at(50) / 1000,
        at(90) / 1000
    );
}

fn times(mut call: impl FnMut()) -> Vec<u128> {
    let timed = |()| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos()
    };
    [(); ROUNDS].map(timed).to_vec()
}

#[test]
#[ignore = "a measurement"]
fn calls() {
    median("Host::detect", times(|| drop(Host::detect().unwrap())));
    let host = Host::detect().unwrap();
    let path = path(&host, "measure");
    let (mut create, mut limit, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    let resources = Resources {
        cpu: Cpu {
            shares: Some(102),
            quota: Some(50_000),
            period: Some(100_000),
            ..Cpu::default()
        },
        memory: Memory {
            limit: Some(64 << 20),
            ..Memory::default()
        },
        devices: Some(DeviceRule::defaults()),
        ..Resources::default()
    };
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut cgroup = Cgroup::create(&host, &path).unwrap();
        cgroup.keep();
        create.push(start.elapsed().as_nanos());
        let start = Instant::now();
        cgroup.limit(&resources).unwrap();
        limit.push(start.elapsed().as_nanos());
        let start = Instant::now();
        cgroup.remove().unwrap();
        remove.push(start.elapsed().as_nanos());
    }
    median("create", create);
    median("limit (16 writes)", limit);
    median("remove", remove);
    let scratch = Scratch::new(&host, "measure");
    let child = Child::join(&scratch.cgroup, "echo");
    median(
        "procs (open)",
        times(|| drop(scratch.cgroup.tasks().unwrap())),
    );
    median("stats", times(|| drop(scratch.cgroup.stats().unwrap())));
    median("oom_kills", times(|| drop(scratch.cgroup.oom_kills())));
    median("pids", times(|| drop(scratch.cgroup.pids().unwrap())));
    median(
        "oom_watch",
        times(|| drop(scratch.cgroup.oom_watch().unwrap())),
    );
    let freeze = || {
        scratch.cgroup.freeze().unwrap();
        until("it is frozen", || scratch.cgroup.frozen().unwrap());
        scratch.cgroup.thaw().unwrap();
    };
    median("freeze + thaw", times(freeze));
    drop(child);
}
