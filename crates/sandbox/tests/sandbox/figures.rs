//! The figures of `containerManager.Event`, each compared with the kernel file that it comes from
//! and with what a workload did.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use berm_testkit::cases::Case;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::container::Made;
use crate::control::{Client, golden};
use crate::world::{Pod, SOON, World, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    cpu_time_is_that_of_cpuacct_usage_and_of_the_processes_clocks,
    throttling_is_that_of_cpu_stat,
    memory_is_that_of_the_usage_file,
    oom_kills_are_those_of_the_memory_controller,
    block_io_is_that_of_the_io_files_and_of_what_was_read_and_written,
    network_counters_are_those_of_the_pods_net_dev_and_of_what_was_sent,
    pressure_is_that_of_the_pressure_files,
];

const MIB: u64 = 1 << 20;

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The value of the first of these keys that the file has.
fn key(path: &Path, keys: &[&str]) -> u64 {
    value(&fs::read_to_string(path).unwrap(), keys)
}

/// The value of the first of these keys that the text has.
pub(crate) fn value(text: &str, keys: &[&str]) -> u64 {
    let of = |key: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(' '))
    };
    let value = keys.iter().find_map(|key| of(key));
    value
        .unwrap_or_else(|| panic!("{keys:?} in {text}"))
        .parse()
        .unwrap()
}

#[track_caller]
pub(crate) fn near(got: u64, want: u64, what: &str) {
    let off = got.abs_diff(want);
    assert!(
        off * 20 <= want,
        "{what}: {got} is not within 5 % of {want}"
    );
}

/// Waits for what nothing tells. A second of CPU time is ten and more beside others.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + SOON * 3;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// An answer with the kernel's figures, which were the same before and after it.
///
/// Of a container at rest they change all the same: what a CPU has charged ahead, 64 pages, is
/// given back when others run there, and memory.stat is brought up to date every 2 s.
pub(crate) async fn at_rest<K: PartialEq, T>(
    kernel: impl Fn() -> K,
    ask: impl AsyncFn() -> T,
) -> (K, T) {
    let until = Instant::now() + SOON;
    loop {
        let before = kernel();
        let answer = ask().await;
        if kernel() == before {
            return (before, answer);
        }
        assert!(Instant::now() < until, "the kernel's figures do not rest");
    }
}

async fn event(pod: &Pod<'_>, c: &Made<'_>) -> Value {
    let event = Client::to(pod).await.ok("Event", json!(c.id)).await;
    golden("containerManager.Event", &event);
    event
}

async fn data(pod: &Pod<'_>, c: &Made<'_>) -> Value {
    event(pod, c).await["event"]["data"].clone()
}

/// CPU time of a container in ns, as the kernel's file has it.
pub(crate) fn cpu_time(w: &World, id: &str) -> u64 {
    let v1 = number(&w.cgroup_dir("cpuacct", id).join("cpuacct.usage"));
    v1.unwrap_or_else(|| key(&w.cgroup_dir("cpu", id).join("cpu.stat"), &["usage_usec"]) * 1000)
}

/// Burns CPU time until told to stop, without a process beside it; then tells its times.
const BURN: &str =
    "while [ ! -e /tmp/stop ]; do i=0; while [ $i -lt 1000 ]; do i=$((i+1)); done; done
    times; echo ready; read a";
/// How much is burnt: `times` and cpuacct.stat tell user and kernel each in whole ticks of 10 ms.
const BURNT: u64 = 2_000_000_000;

fn cpu_time_is_that_of_cpuacct_usage_and_of_the_processes_clocks() {
    world(async |w| {
        let pod = w.pod().await;
        let mut c = pod.sh(BURN).create().await.unwrap();
        // What came before the shell, from the fork on, is the container's too.
        let start = cpu_time(w, &c.id);
        c.start().await.unwrap();
        let idle = pod.container(&["/bin/sleep", "1000"]).run().await;
        until("burnt", || cpu_time(w, &c.id) - start >= BURNT).await;
        fs::write(c.root.join("tmp/stop"), "").unwrap();
        // The shell's own times, then those of its children, of which there are none.
        let clocks = c.line().await;
        assert!(c.line().await.contains("m") && c.line().await == "ready");
        let kernel = || [&c.id, &idle.id].map(|id| cpu_time(w, id));
        let before = kernel();
        let event = event(&pod, &c).await;
        let after = kernel();
        let told = [&c.id, &idle.id].map(|id| event["containerUsage"][id].as_u64().unwrap());
        for (at, used) in told.into_iter().enumerate() {
            assert!((before[at]..=after[at]).contains(&used), "{at}: {used}");
        }
        let usage = &event["event"]["data"]["cpu"]["usage"];
        let of = |key: &str| usage[key].as_u64().unwrap();
        assert!((before[0]..=told[0]).contains(&of("total")), "{usage}");
        let clocks: Duration = clocks.split_ascii_whitespace().map(clock).sum();
        let clocks = u64::try_from(clocks.as_nanos()).unwrap();
        near(told[0] - start, clocks, "times");
        near(of("user") + of("kernel"), of("total"), "user and kernel");
        c.end().await;
        idle.end().await;
    });
}

/// `0m1.230s`
fn clock(text: &str) -> Duration {
    let (minutes, seconds) = text.trim_end_matches('s').split_once('m').unwrap();
    let seconds = Duration::from_secs_f64(seconds.parse().unwrap());
    seconds + Duration::from_secs(60 * minutes.parse::<u64>().unwrap())
}

fn throttling_is_that_of_cpu_stat() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo ready; read a";
        // So little that it is used up on a busy node too.
        let quota = json!({"quota": 1_000, "period": 20_000});
        let c = pod.sh(script).set("/linux/resources/cpu", quota);
        let mut c = c.run().await;
        assert_eq!(c.line().await, "ready");
        let file = w.cgroup_dir("cpu", &c.id).join("cpu.stat");
        let scale = if w.v1("cpu", &c.id).is_some() {
            1
        } else {
            1000
        };
        let kernel = || {
            [
                key(&file, &["nr_periods"]),
                key(&file, &["nr_throttled"]),
                key(&file, &["throttled_time", "throttled_usec"]) * scale,
            ]
        };
        let before = kernel();
        let data = data(&pod, &c).await;
        let after = kernel();
        let keys = ["periods", "throttledPeriods", "throttledTime"];
        for (at, name) in keys.into_iter().enumerate() {
            let got = data["cpu"]["throttling"][name].as_u64().unwrap();
            assert!((before[at]..=after[at]).contains(&got), "{name}: {got}");
            // Kernels differ in when they count the time: on 6.18 it may still be 0.
            assert!(got > 0 || name == "throttledTime", "{name}");
        }
        c.end().await;
    });
}

fn memory_is_that_of_the_usage_file() {
    world(async |w| {
        let pod = w.pod().await;
        let hold = "dd if=/dev/zero of=/dev/shm/t bs=1M count=48 2>/dev/null; echo ready; read a";
        let limit = json!({"limit": 256 * MIB});
        let mut c = pod
            .sh(hold)
            .set("/linux/resources/memory", limit)
            .run()
            .await;
        assert_eq!(c.line().await, "ready");
        let dir = w.cgroup_dir("memory", &c.id);
        let file = |v1: &str, v2: &str| {
            let v1 = number(&dir.join(v1));
            v1.or_else(|| number(&dir.join(v2))).unwrap()
        };
        let kernel = || {
            [
                file("memory.usage_in_bytes", "memory.current"),
                file("memory.limit_in_bytes", "memory.max"),
                key(&dir.join("memory.stat"), &["cache", "file"]),
            ]
        };
        let (kernel, data) = at_rest(kernel, async || data(&pod, &c).await).await;
        let memory = &data["memory"];
        let of = |value: &Value| value.as_u64().unwrap();
        let usage = &memory["usage"];
        let told = [&usage["usage"], &usage["limit"], &memory["cache"]].map(of);
        assert_eq!(told, kernel, "{memory}");
        assert!(told[0] >= 48 * MIB, "{memory}");
        c.end().await;
    });
}

fn oom_kills_are_those_of_the_memory_controller() {
    world(async |w| {
        let pod = w.pod().await;
        let limit = json!({"limit": 32 * MIB, "swap": 32 * MIB});
        let c = pod.container(&["/bin/sleep", "1000"]);
        let c = c.set("/linux/resources/memory", limit).run().await;
        let eat = "x=0123456789abcdef; while [ ${#x} -lt 67108864 ]; do x=$x$x; done";
        assert_eq!(c.exec_sh(eat).await.0, 137);
        let dir = w.cgroup_dir("memory", &c.id);
        let v1 = dir.join("memory.oom_control");
        let file = if v1.exists() {
            v1
        } else {
            dir.join("memory.events")
        };
        let kills = key(&file, &["oom_kill"]);
        assert!(kills > 0);
        assert_eq!(data(&pod, &c).await["memory"]["oomKills"], kills);
        c.end().await;
    });
}

/// Bytes by an operation, as the kernel's file has them.
fn io_bytes(w: &World, id: &str, op: &str) -> u64 {
    let dir = w.cgroup_dir("blkio", id);
    let v1 = dir.join("blkio.throttle.io_service_bytes_recursive");
    if let Ok(text) = fs::read_to_string(v1) {
        let line = |line: &str| {
            line.split_once(' ')?
                .1
                .strip_prefix(op)?
                .trim()
                .parse::<u64>()
                .ok()
        };
        return text.lines().filter_map(line).sum();
    }
    let text = fs::read_to_string(dir.join("io.stat")).unwrap_or_default();
    let word = if op == "Read" { "rbytes=" } else { "wbytes=" };
    let words = text.split_ascii_whitespace();
    words
        .filter_map(|w| w.strip_prefix(word)?.parse::<u64>().ok())
        .sum()
}

fn block_io_is_that_of_the_io_files_and_of_what_was_read_and_written() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "dd if=/dev/zero of=/f bs=1M count=16 oflag=direct 2>/dev/null
            dd if=/f of=/dev/null bs=1M iflag=direct 2>/dev/null; echo ready; read a";
        let (mut c, dev) = (pod.sh(script), w.dir.metadata().unwrap().dev());
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        if w.v1("blkio", "").is_some() && major != 0 {
            // v1 counts only on a device that somebody has limited.
            let rate = json!([{"major": major, "minor": minor, "rate": 1_u64 << 40}]);
            let limit = json!({"throttleReadBpsDevice": rate, "throttleWriteBpsDevice": rate});
            c = c.set("/linux/resources/blockIO", limit);
        }
        let mut c = c.run().await;
        assert_eq!(c.line().await, "ready");
        const OPS: [&str; 2] = ["Read", "Write"];
        let kernel = || OPS.map(|op| io_bytes(w, &c.id, op));
        let (kernel, data) = at_rest(kernel, async || data(&pod, &c).await).await;
        for (op, kernel) in OPS.into_iter().zip(kernel) {
            let entries = data["blkio"]["ioServiceBytesRecursive"].as_array().unwrap();
            let of = entries.iter().filter(|e| e["op"] == op);
            let got: u64 = of.map(|e| e["value"].as_u64().unwrap()).sum();
            assert_eq!(got, kernel, "{op}");
            // A file system in memory, or of a network, has no block device beneath.
            if major != 0 {
                near(got, 16 * MIB, op);
                let entries = data["blkio"]["ioServicedRecursive"].as_array().unwrap();
                let of = entries.iter().filter(|e| e["op"] == op);
                assert!(of.map(|e| e["value"].as_u64().unwrap()).sum::<u64>() >= 16);
            }
        }
        c.end().await;
    });
}

fn network_counters_are_those_of_the_pods_net_dev_and_of_what_was_sent() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "busybox ip link set lo up
            busybox ping -q -c 40 -i 0.01 -s 1000 127.0.0.1 >/dev/null; echo ready; read a";
        let caps = json!(["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SETUID", "CAP_SETGID"]);
        let mut c = pod.sh(script);
        for set in ["bounding", "effective", "permitted"] {
            c = c.set(&format!("/process/capabilities/{set}"), caps.clone());
        }
        let mut c = c.run().await;
        assert_eq!(c.line().await, "ready");
        let data = data(&pod, &c).await;
        let lo = &data["network_interfaces"][0];
        assert_eq!(lo["Name"], "lo");
        let table = fs::read_to_string(format!("/proc/{}/net/dev", pod.init())).unwrap();
        let line = table
            .lines()
            .find_map(|l| l.trim().strip_prefix("lo:"))
            .unwrap();
        let kernel: Vec<u64> = line
            .split_ascii_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        let of = |key: &str| lo[key].as_u64().unwrap();
        assert_eq!([of("RxBytes"), of("RxPackets")], kernel[0..2]);
        assert_eq!([of("TxBytes"), of("TxPackets")], kernel[8..10]);
        // 40 requests and as many answers, with their headers.
        near(of("TxBytes"), 80 * (1000 + 8 + 20), "what was sent");
        near(of("RxPackets"), 80, "packets");
        c.end().await;
    });
}

fn pressure_is_that_of_the_pressure_files() {
    world(async |w| {
        let pod = w.pod().await;
        let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo ready; read a";
        // So little that it is used up on a busy node too.
        let quota = json!({"quota": 1_000, "period": 20_000});
        let mut c = pod
            .sh(script)
            .set("/linux/resources/cpu", quota)
            .run()
            .await;
        assert_eq!(c.line().await, "ready");
        let dirs = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let dirs = dirs.map(|top| Path::new(top).join(&w.cgroup).join(&c.id));
        let dir = dirs.iter().find(|dir| dir.join("cgroup.procs").exists());
        let total = |name: &str| {
            let text = fs::read_to_string(dir?.join(name)).ok()?;
            let line = text.lines().find(|line| line.starts_with("some "))?;
            line.rsplit_once("total=")?.1.parse::<u64>().ok()
        };
        let files = ["cpu", "memory", "io"].map(|what| format!("{what}.pressure"));
        let before = files.each_ref().map(|name| total(name));
        let data = data(&pod, &c).await;
        let after = files.each_ref().map(|name| total(name));
        for (at, what) in ["cpu", "memory", "blkio"].into_iter().enumerate() {
            let got = data[what]["psi"]["some"]["total"].as_u64();
            assert_eq!(got.is_some(), before[at].is_some(), "{what}: {data}");
            assert!(before[at] <= got && got <= after[at], "{what}: {got:?}");
        }
        c.end().await;
    });
}
