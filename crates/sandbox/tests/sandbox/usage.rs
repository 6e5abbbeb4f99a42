//! The memory of a pod, compared with the kernel's files and with what a workload did.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use berm_testkit::cases::Case;
use serde_json::{Value, json};

use crate::container::Made;
use crate::control::{Client, golden};
use crate::figures::{at_rest, near, until, value};
use crate::world::{Pod, world};

pub(crate) const CASES: &[Case] = berm_testkit::cases![
    usage_splits_the_pods_memory_as_memory_stat_does,
    usage_files_are_read_with_no_call_while_the_pod_is_frozen,
    usage_refuses_what_it_does_not_know,
];

const MIB: u64 = 1 << 20;
/// 32 MiB of anonymous memory, 24 of tmpfs, 16 of page cache.
const HOLD: &str = "dd if=/dev/zero of=/dev/shm/t bs=1M count=24 2>/dev/null
    dd if=/dev/zero of=/tmp/f bs=1M count=16 2>/dev/null
    x=0123456789abcdef; while [ ${#x} -lt 33554432 ]; do x=$x$x; done
    echo ready; read a; echo ${#x}";

fn total(dir: &Path) -> u64 {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    let text = read("memory.current").or_else(|| read("memory.usage_in_bytes"));
    text.unwrap().trim().parse().unwrap()
}

/// Anonymous memory, that of tmpfs, and all of the page cache with it, as the kernel's file has it.
fn parts(dir: &Path) -> [u64; 3] {
    let text = fs::read_to_string(dir.join("memory.stat")).unwrap();
    [
        value(&text, &["total_rss", "anon"]),
        value(&text, &["total_shmem", "shmem"]),
        value(&text, &["total_cache", "file"]),
    ]
}

async fn holder<'p>(pod: &'p Pod<'p>) -> Made<'p> {
    let mut c = pod.sh(HOLD).run().await;
    assert_eq!(c.line().await, "ready");
    let dir = pod.world.cgroup_dir("memory", &c.id);
    // The kernel brings memory.stat up to date every 2 s.
    until("memory.stat tells of all", || {
        let least = [32 * MIB, 24 * MIB, 40 * MIB];
        parts(&dir)
            .iter()
            .zip(least)
            .all(|(part, least)| *part >= least)
    })
    .await;
    c
}

fn usage_splits_the_pods_memory_as_memory_stat_does() {
    world(async |w| {
        let pod = w.pod().await;
        let all = [holder(&pod).await, holder(&pod).await];
        pod.sandbox.pause_all().await.unwrap();
        let client = Client::to(&pod).await;
        let collect = async |full: bool| {
            let arg = json!({ "Full": full });
            let (reply, _) = client.call_with("Usage.Collect", arg, &[]).await;
            reply["result"].clone()
        };
        let dirs = all.each_ref().map(|c| w.cgroup_dir("memory", &c.id));
        let own = w.cgroup_dir("memory", pod.id());
        let kernel = || {
            let totals: u64 = dirs.iter().map(|dir| total(dir)).sum();
            let parts = dirs.each_ref().map(|dir| parts(dir));
            let [anon, shmem] = [0, 1].map(|at| parts.iter().map(|parts| parts[at]).sum());
            [totals, total(&own), anon, shmem]
        };
        let ([sum, own, anon, shmem], used) = at_rest(kernel, async || collect(true).await).await;
        golden("Usage.Collect", &used);
        let of = |key: &str| used[key].as_u64().unwrap();
        assert_eq!([of("Anonymous"), of("Tmpfs")], [anon, shmem], "{used}");
        near(of("Tmpfs"), 2 * 24 * MIB, "what was written to tmpfs");
        assert!(of("Anonymous") >= 2 * 32 * MIB, "{used}");
        assert!(of("PageCache") + of("Mapped") >= 2 * 16 * MIB, "{used}");
        assert_eq!([of("Total") - of("Sandbox"), of("Sandbox")], [sum, own]);
        let parts = [
            "Unknown",
            "System",
            "Anonymous",
            "PageCache",
            "Mapped",
            "Tmpfs",
            "Sandbox",
        ];
        let parts: u64 = parts.into_iter().map(of).sum();
        assert_eq!(parts, of("Total"));
        let ([sum, ..], brief) = at_rest(kernel, async || collect(false).await).await;
        assert_eq!(brief["Unknown"], sum, "all in Unknown");
        assert_eq!(brief["Anonymous"], 0);
        pod.sandbox.resume_all().await.unwrap();
        for c in &all {
            c.end().await;
        }
    });
}

fn usage_files_are_read_with_no_call_while_the_pod_is_frozen() {
    world(async |w| {
        let pod = w.pod().await;
        let c = holder(&pod).await;
        let client = Client::to(&pod).await;
        let (reply, fds) = client
            .call_with("Usage.UsageFD", json!({"Version": 1}), &[])
            .await;
        assert_eq!(
            reply["result"],
            json!({"cgroups": [pod.id(), c.id]}),
            "{reply}"
        );
        let files: Vec<File> = fds.into_iter().map(File::from).collect();
        assert_eq!(files.len(), 4);
        let read = |at: usize| {
            let mut bytes = vec![0; 16384];
            let len = files[at].read_at(&mut bytes, 0).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        let used = |at: usize| read(at).trim().parse::<u64>().unwrap();
        pod.sandbox.pause_all().await.unwrap();
        let dir = w.cgroup_dir("memory", &c.id);
        let kernel = || {
            (
                total(&dir),
                fs::read_to_string(dir.join("memory.stat")).unwrap(),
            )
        };
        let (kernel, told) = at_rest(kernel, async || (used(2), read(3))).await;
        assert_eq!(told, kernel);
        let shmem = value(&told.1, &["total_shmem", "shmem"]);
        near(shmem, 24 * MIB, "tmpfs");
        assert!(used(0) < 8 * MIB, "the sandbox's");
        pod.sandbox.resume_all().await.unwrap();
        let before = used(2);
        assert_eq!(
            c.exec_sh("dd if=/dev/zero of=/dev/shm/u bs=1M count=36")
                .await
                .0,
            0
        );
        assert!(
            used(2) >= before + 32 * MIB,
            "the same file tells what came since"
        );
        c.end().await;
    });
}

fn usage_refuses_what_it_does_not_know() {
    world(async |w| {
        let pod = w.pod().await;
        let client = Client::to(&pod).await;
        let cases = [
            (
                "Usage.Collect",
                json!({"full": true}),
                "InvalidArgument",
                "full",
            ),
            ("Usage.Collect", json!("c1"), "InvalidArgument", "string"),
            (
                "Usage.UsageFD",
                json!({"Version": 2}),
                "InvalidArgument",
                "Version: 2",
            ),
            ("Usage.UsageFD", Value::Null, "InvalidArgument", "null"),
            ("Usage.Nope", Value::Null, "NotSupported", "unknown method"),
        ];
        for (method, arg, kind, word) in cases {
            let (reply, _) = client.call_with(method, arg, &[]).await;
            assert_eq!(reply["kind"], kind, "{method}: {reply}");
            assert!(reply["err"].as_str().unwrap().contains(word), "{reply}");
        }
    });
}
